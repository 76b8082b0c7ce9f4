// Every plan that tuning may pick gives the bits of the untuned one: all schemes, tiles, splits and, where sums are exact,
// rows. What would change bits is refused.
#include "cuda_support.h"

#include <map>
#include <set>

#include "cuda_backend.h"

namespace {
using namespace cuda_test;

struct CudaTuning : testing::Test {
    ~CudaTuning() override {
        simt::device().options = {}, simt::device().sm = 90, simt::device().units = 132, simt::device().toolkit = 1300;
    }
};

bool exact(const qk_shape &s) {
    return s.act.mode != QE_ACT_FLOAT && qk_whole_k(&s.quant, s.facts, &s.act, s.k);
}

TEST_F(CudaTuning, NoPlanChangesBits) {
    // k of two chunks where floats are summed; all tiles, and ragged ones.
    const struct {
        int64_t m, n, k;
        bool all;
    } sizes[] = {{3, 66, 2304, true}, {33, 140, 2200, false}, {70, 66, 2304, false}, {150, 40, 520, false}};
    std::map<std::string, int> plans;
    std::set<std::string> split, rows_mixed;
    int compared = 0;
    for (const Scheme &s : schemes())
        for (const auto &size : sizes)
            for (int sm : {80, 90, 91}) { // 91: sm_90 with what nvcc 13.4 adds
                if (!size.all && !s.thorough) continue;
                simt::device().toolkit = sm == 91 ? QK_S4_TOOLKIT : 1300;
                const Problem p{size.m, size.n, size.k, QE_CODE_F16, QE_CODE_F16, 0, QK_GEMM_BIAS};
                simt::device().sm = sm == 91 ? 90 : sm, simt::device().units = 8;
                simt::device().options.order = simt::Order::Random, simt::device().options.async = simt::Async::Random;
                Tensor t;
                make_tensor(&t, s, p.n, p.k, 5);
                Pool cuda(&qk_cuda_backend);
                const qk_weight w = pack(cuda, shape_of(s, p.n, p.k), t.t);
                if (sm == 91 && w.shape.layout != &qk_cuda_s4a8) continue;
                const qk_x x = input(cuda, w, p, 7);
                const qk_gemm g = gemm_of(w, p, x);
                qk_tuning tunings[QK_TUNINGS];
                const int count = qk_gemm_tunings(&cuda.device, &g, tunings);
                ASSERT_GT(count, 0) << s.name;
                std::vector<char> want;
                const qk_row *first = nullptr;
                for (int i = 0; i < count; i++) {
                    qk_plan plan;
                    qe_error err{};
                    ASSERT_EQ(qk_gemm_plan_tuned(&cuda.device, &g, &tunings[i], &plan, &err), QE_OK) << err.message;
                    const std::vector<char> y = run_plan(cuda, w, plan, p, x, 7);
                    if (i == 0) want = y, first = plan.row;
                    ASSERT_TRUE(y == want) << s.name << " m " << p.m << " sm_" << sm << ": " << plan.row->name << " instance "
                                           << plan.variant << ", " << plan.splits << " splits";
                    if (plan.row != first) { EXPECT_TRUE(exact(w.shape)) << s.name; }
                    if (plan.row != first) rows_mixed.insert(w.shape.layout->name);
                    if (plan.splits > 1) split.insert(w.shape.layout->name);
                    plans[plan.row->name]++, compared++;
                }
            }
    for (auto row = qk_cuda_backend.rows; *row; row++)
        if (!std::strstr((*row)->name, "_simt")) { EXPECT_GT(plans[(*row)->name], 0) << (*row)->name; }
    EXPECT_EQ(rows_mixed, (std::set<std::string>{"cuda/w1a1", "cuda/w2a8", "cuda/w4a8", "cuda/w8a8"}));
    EXPECT_EQ(split, (std::set<std::string>{"cuda/any", "cuda/k", "cuda/s4a8", "cuda/w1a1", "cuda/w2a8", "cuda/w4a16", "cuda/w4a8",
                                            "cuda/w8a8", "cuda/wxa16"}));
    std::printf("%d plans compared:", compared);
    for (const auto &c : plans) std::printf(" %s %d", c.first.c_str(), c.second);
    std::printf("\n");
}

// Plans of the real machines: how many there are to choose from, and that each fits the device.
TEST_F(CudaTuning, EveryRowIsAChoiceOrHasAReasonNotToBe) {
    int refused = 0, allowed = 0;
    for (const Scheme &s : schemes())
        for (int sm : {80, 90})
            for (int type : {QE_CODE_F16, QE_CODE_BF16, QE_CODE_F32}) {
                if (s.act_group >= 0 && type != QE_CODE_F16) continue;
                qk_device d{};
                d.backend = QK_CUDA, d.sm = sm, d.units = sm == 90 ? 132 : 108, d.unit_bytes = sm == 90 ? 232448 : 166912;
                d.clusters = sm == 90 ? QK_CLUSTERS_ALL : 0;
                qk_gemm g{};
                g.w = shape_of(s, 1024, 4096), g.w.layout = qk_layout_choose(&d, &g.w, nullptr, nullptr);
                g.x = s.act_group < 0 ? plain(type, type == QE_CODE_F32 ? 32 : 16) : g.w.act.quant;
                g.m = 64, g.y_type = QE_CODE_F16;
                qk_tuning tunings[QK_TUNINGS];
                const int count = qk_gemm_tunings(&d, &g, tunings);
                ASSERT_GE(count, 1) << s.name;
                for (int i = 0; i < count; i++) {
                    qk_plan plan;
                    ASSERT_EQ(qk_gemm_plan_tuned(&d, &g, &tunings[i], &plan, nullptr), QE_OK);
                    EXPECT_LE(plan.shared_bytes, d.unit_bytes) << plan.row->name;
                    const bool dense = dense_plan(plan); // dequantized weights lie there too
                    if (plan.splits == 1 && !dense) { EXPECT_EQ(plan.workspace_bytes, 0u) << plan.row->name; }
                }
                qk_plan first;
                ASSERT_EQ(qk_gemm_plan(&d, &g, &first, nullptr, nullptr, nullptr), QE_OK);
                for (auto row = qk_cuda_backend.rows; *row; row++) {
                    if (*row == first.row) continue;
                    const qk_tuning other{*row, 0, 0};
                    qk_plan plan;
                    qe_error err{};
                    qk_why why{};
                    const bool may = (*row)->layout == g.w.layout && exact(g.w) && (*row)->supports(&d, &g, &why);
                    const qe_status status = qk_gemm_plan_tuned(&d, &g, &other, &plan, &err);
                    EXPECT_EQ(status, may ? QE_OK : QE_E_UNSUPPORTED) << s.name << " " << (*row)->name;
                    if (status) { EXPECT_NE(std::string(err.message).find("tuning: "), std::string::npos) << err.message; }
                    (may ? allowed : refused)++;
                }
                for (const qk_tuning &bad : {qk_tuning{nullptr, -1, 0}, qk_tuning{nullptr, 0, -1}, qk_tuning{nullptr, 0, 1 << 20}}) {
                    qk_plan plan;
                    EXPECT_EQ(qk_gemm_plan_tuned(&d, &g, &bad, &plan, nullptr), QE_E_UNSUPPORTED);
                }
            }
    EXPECT_GT(allowed, 0);
    EXPECT_GT(refused, 100);
    std::printf("%d rows allowed, %d refused\n", allowed, refused);
}

} // namespace
