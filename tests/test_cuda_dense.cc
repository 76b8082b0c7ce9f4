// The dense rows of the emulated cuda backend: weights of layout cuda/any are rounded once to the input's 16-bit type,
// whatever their range; passes, tiles and splits give the same bits; what would lose bits is refused with its reason.
#include "cuda_support.h"

#include <map>
#include <set>
#include "cuda_backend.h"
#include "ref/oracle.h"

namespace {
using namespace cuda_test;

struct CudaDense : testing::Test {
    ~CudaDense() override { simt::device().options = {}, simt::device().sm = 90, simt::device().units = 132; }
};
const qk_row *const kRows[] = {
    &qk_cuda_dense_sm80_row,
    &qk_cuda_dense_sm90_row,
};
int sm_of(const qk_row *row) {
    return ends_with(row->name, "_sm90") ? 90 : 80;
}

// Scales at the ends of what their types hold: products far beyond fp16, and far below it.
struct Range {
    const char *name;
    qe_quant quant;
    float low, high; // magnitude of scales, bytes for E8M0
};
const Range kRanges[] = {
    {"f32_large", integer(8, QE_NUM_F32, 32, QE_ZERO_CONST, 0, 256), 1e6f, 1e30f},
    {"f32_small", integer(8, QE_NUM_F32, 32, QE_ZERO_CONST, 0, 256), 1e-28f, 1e-26f},
    {"bf16_biases", integer(3, QE_NUM_BF16, 64, QE_ZERO_REAL, QE_NUM_BF16, 0), 1e5f, 1e9f},
    {"mx_large", table(QE_CODE_E4M3, 8, QE_NUM_E8M0, 32), 200, 210},
    {"mx_small", table(QE_CODE_E4M3, 8, QE_NUM_E8M0, 32), 30, 40},
    {"two_level", two_level(integer(6, QE_NUM_S8, 32, QE_ZERO_CONST, 0, 32), QE_NUM_F16, 256), 1e3f, 6e4f},
    {"bf16", plain(QE_CODE_BF16, 16), 1e5f, 1e20f},
    {"sign", table(QE_CODE_SIGN, 1, QE_NUM_F32, 0), 1e-20f, 1e20f},
};
void stretch(std::mt19937 &g, int num, void *p, int64_t count, const Range &r) {
    for (int64_t i = 0; i < count; i++) {
        const double u = double(g() % 1001) / 1000;
        const float v = float(std::exp(std::log(double(r.low)) * (1 - u) + std::log(double(r.high)) * u)) * (g() % 2 ? 1.0f : -1.0f);
        if (num == QE_NUM_F32) static_cast<float *>(p)[i] = v;
        if (num == QE_NUM_F16) static_cast<uint16_t *>(p)[i] = qe_f32_to_f16(v);
        if (num == QE_NUM_BF16) static_cast<uint16_t *>(p)[i] = qe_f32_to_bf16(v);
        if (num == QE_NUM_E8M0) static_cast<uint8_t *>(p)[i] = uint8_t(r.low + float(g() % uint32_t(r.high - r.low)));
    }
}
void stretch(Tensor *t, const Range &r, int64_t n, int64_t k) {
    std::mt19937 g(11);
    const qe_quant &q = r.quant;
    if (q.code == QE_CODE_BF16) stretch(g, QE_NUM_BF16, t->t.codes, n * k, r);
    if (q.super != QE_NUM_ONE)
        stretch(g, q.super, t->t.super, n * parts(k, q.super_k), r);
    else if (t->t.scales)
        stretch(g, q.scale, t->t.scales, n * parts(k, q.group_k), r);
    if (q.zero == QE_ZERO_REAL) stretch(g, q.zero_num, t->t.zeros, n * parts(k, q.group_k), r);
}
// Rows of the unit matrix give the weights themselves, as they were rounded: each alone within half a unit of its last place,
// but for those of less than 2^-24 of the row's largest.
TEST_F(CudaDense, EveryWeightIsRoundedOnce) {
    int weights = 0, rounded = 0;
    for (const qk_row *row : kRows)
        for (const Range &r : kRanges)
            for (int type : {QE_CODE_F16, QE_CODE_BF16}) {
                if (r.quant.code == type) continue; // read where it lies
                const Scheme s{r.name, r.quant, 0, -1, false, "cuda/any"};
                const Problem p{64, 24, 320, type, QE_CODE_F32, 0, 0};
                Tensor t;
                make_tensor(&t, s, p.n, p.k, 3);
                stretch(&t, r, p.n, p.k);
                std::vector<float> w(size_t(p.n * p.k));
                ASSERT_EQ(qe_dequantize(&t.t, 0, p.n, w.data(), p.k, nullptr), QE_OK);
                simt::device().sm = sm_of(row);
                Pool cuda(&qk_cuda_backend);
                const qk_weight packed = pack(cuda, shape_of(s, p.n, p.k), t.t);
                ASSERT_STREQ(packed.shape.layout->name, "cuda/any") << r.name;
                for (int64_t first : {0, 256}) {
                    std::vector<float> unit(size_t(p.m * p.k));
                    for (int64_t i = 0; i < p.m; i++) unit[size_t(i * p.k + first + i)] = 1;
                    qk_x x = input(cuda, packed, p, 7);
                    const std::vector<char> typed = as_type(unit, type);
                    ASSERT_EQ(x.ld, p.k);
                    ASSERT_EQ(cuda.backend->copy(&cuda.queue, x.data, typed.data(), typed.size(), nullptr), QE_OK);
                    const std::vector<char> y = run(cuda, packed, row, p, x, 7);
                    for (int64_t n = 0; n < p.n; n++) {
                        double largest = 0;
                        for (int64_t c = 0; c < p.k; c++) largest = std::max(largest, std::fabs(double(w[size_t(n * p.k + c)])));
                        for (int64_t i = 0; i < p.m; i++) {
                            const double want = w[size_t(n * p.k + first + i)], got = value_at(y, size_t(i * (p.n + 3) + n), QE_CODE_F32);
                            const double least = largest * std::ldexp(1, -24), unit_w = type == QE_CODE_F16 ? 0x1p-11 : 0x1p-8;
                            ASSERT_LE(std::fabs(got - want), unit_w * std::max(std::fabs(want), least))
                                << r.name << " " << row->name << " w[" << n << "][" << first + i << "]";
                            weights++, rounded += got != want;
                        }
                    }
                }
            }
    EXPECT_GT(rounded, weights / 4) << "nothing was rounded: not the kernels meant";
    std::printf("%d weights, %d of them not held exactly\n", weights, rounded);
}
// A device with little memory takes the weights in several passes, and its workspace is smaller.
TEST_F(CudaDense, PassesTilesAndSplitsGiveTheSameBits) {
    int plans = 0;
    for (const Scheme &s : schemes()) {
        if (s.name != std::string("w3a16_biases") && s.name != std::string("f16")) continue;
        const bool direct = s.quant.code == QE_CODE_F16;
        for (const qk_row *row : kRows) {
            const Problem p{17, 300, 2304, QE_CODE_F16, QE_CODE_F16, QK_ACT_SILU, QK_GEMM_BIAS | QK_GEMM_RESIDUAL};
            simt::device().sm = sm_of(row);
            simt::device().options.order = simt::Order::Random, simt::device().options.async = simt::Async::Random;
            Tensor t;
            make_tensor(&t, s, p.n, p.k, 5);
            Pool cuda(&qk_cuda_backend);
            const qk_weight w = pack(cuda, shape_of(s, p.n, p.k), t.t);
            const qk_x x = input(cuda, w, p, 7);
            std::vector<char> want;
            std::map<uint32_t, uint64_t> workspaces; // by bands of a pass
            for (uint64_t band : {3, 2, 1})
                for (uint32_t units : {1, 132}) {
                    qk_device d = cuda.device;
                    d.memory_bytes = 256 * band * 128 * 4608, d.units = int32_t(units);
                    const qk_gemm g = gemm_of(w, p, x);
                    qk_plan plan = qk_plan_begin(row, &g);
                    row->plan(&d, &g, &plan);
                    ASSERT_EQ(plan.grid[1], direct ? 3 : band);
                    ASSERT_EQ(plan.splits > 1, units == 132);
                    if (units == 1) workspaces[plan.grid[1]] = plan.workspace_bytes;
                    const std::vector<char> y = run_plan(cuda, w, plan, p, x, 7);
                    if (want.empty()) want = y;
                    ASSERT_TRUE(y == want) << s.name << " " << row->name << ", passes of " << band << " bands, " << plan.splits << " splits";
                    plans++;
                }
            for (const auto &b : workspaces) EXPECT_EQ(b.second, direct ? 0 : uint64_t(b.first) * 128 * 4608) << row->name;
        }
    }
    EXPECT_EQ(plans, 2 * 2 * 6);
}
// A token alone, among few and among many: every instance, the same bits.
TEST_F(CudaDense, ATokenHasTheSameBitsInAnyBatch) {
    for (const Scheme &s : schemes()) {
        if (s.name != std::string("w3a16_biases")) continue;
        for (const qk_row *row : kRows) {
            simt::device().sm = sm_of(row);
            std::set<int> instances;
            std::vector<char> first;
            Tensor t;
            const int64_t n = 132, k = 2304;
            make_tensor(&t, s, n, k, 5);
            for (int64_t m : {1, 17, 70, 130}) {
                Problem p{m, n, k, QE_CODE_BF16, QE_CODE_F32, 0, 0};
                Pool cuda(&qk_cuda_backend);
                const qk_weight w = pack(cuda, shape_of(s, n, k), t.t);
                const qk_x x = input(cuda, w, p, 7);
                const qk_gemm g = gemm_of(w, p, x);
                qk_plan plan = qk_plan_begin(row, &g);
                row->plan(&cuda.device, &g, &plan);
                instances.insert(plan.variant);
                const std::vector<char> y = run_plan(cuda, w, plan, p, x, 7);
                if (first.empty()) first = y;
                EXPECT_EQ(std::memcmp(first.data(), y.data(), size_t(n) * 4), 0) << s.name << " " << row->name << " m " << m;
            }
            EXPECT_GE(instances.size(), 3u) << row->name;
        }
    }
}
// Rows of layout cuda/k unpack in registers what a dense row reads from the workspace: the same bits, also where second levels lie
// at the ends of fp16 and mins cancel codes.
TEST_F(CudaDense, SuperBlocksInRegistersHaveItsBits) {
    int compared = 0;
    for (const Scheme &s : schemes()) {
        if (s.layout != std::string("cuda/k") || s.act_group >= 0) continue;
        for (const float low : {1e-4f, 6e-8f})
            for (const qk_row *row : {&qk_cuda_ka16_sm80_row, &qk_cuda_ka16_sm90_row})
                for (const int64_t m : {3, 72}) // in registers, and below sm_90 handed over
                    for (const int type : {QE_CODE_F16, QE_CODE_BF16}) {
                        const Problem p{m, 136, 2304, type, QE_CODE_F32, 0, 0};
                        simt::device().sm = sm_of(row);
                        Tensor t;
                        make_tensor(&t, s, p.n, p.k, 3);
                        const Range r{s.name, s.quant, low, 6e4f}; // w = S (L c - m): often 0
                        std::mt19937 g(9);
                        stretch(g, QE_NUM_F16, t.t.super, p.n * parts(p.k, 256), r);
                        for (int64_t i = 0; t.t.zero_super && i < p.n * parts(p.k, 256); i++)
                            static_cast<uint16_t *>(t.t.zero_super)[i] = static_cast<uint16_t *>(t.t.super)[i] ^ 0x8000;
                        std::vector<char> y[2];
                        for (const bool dense : {false, true}) {
                            Pool cuda(&qk_cuda_backend);
                            qk_shape shape = shape_of(s, p.n, p.k);
                            shape.layout = dense ? &qk_cuda_any : &qk_cuda_k;
                            const qk_weight w = pack_as(cuda, shape, t.t);
                            const qk_row *of = !dense ? row : sm_of(row) == 90 ? &qk_cuda_dense_sm90_row : &qk_cuda_dense_sm80_row;
                            y[dense] = run(cuda, w, of, p, input(cuda, w, p, 7), 7);
                        }
                        ASSERT_TRUE(y[0] == y[1]) << s.name << " " << row->name << " m " << m;
                        compared++;
                    }
    }
    EXPECT_EQ(compared, 2 * 2 * 2 * 2 * 2);
}
TEST_F(CudaDense, RefusesWhatWouldLoseBits) {
    qk_device d{};
    d.backend = QK_CUDA, d.sm = 90, d.units = 132, d.unit_bytes = 232448, d.clusters = QK_CLUSTERS_ALL, d.memory_bytes = uint64_t(80) << 30;
    const struct {
        const char *scheme;
        int x;
        const char *why;
    } refused[] = {{"f32", QE_CODE_F16, "fp32 weights would be rounded to 16 bits"},
                   {"f16", QE_CODE_BF16, "fp16 weights would be rounded to bf16"},
                   {"fp8", QE_CODE_F32, "input is not of 16 bits"},
                   {"w3a8_biases", QE_CODE_INT, "the input is quantized: its sums are exact"}};
    for (const auto &c : refused)
        for (const Scheme &s : schemes()) {
            if (s.name != std::string(c.scheme)) continue;
            qk_gemm g{};
            g.w = shape_of(s, 512, 512), g.w.layout = qk_layout_choose(&d, &g.w, nullptr, nullptr);
            g.m = 100, g.y_type = QE_CODE_F16, g.x = s.act_group < 0 ? plain(c.x, c.x == QE_CODE_F32 ? 32 : 16) : g.w.act.quant;
            std::map<std::string, std::string> reasons;
            qk_plan plan;
            auto tell = [](void *to, const char *name, const char *why) {
                static_cast<std::map<std::string, std::string> *>(to)->emplace(name, why);
            };
            ASSERT_EQ(qk_gemm_plan(&d, &g, &plan, tell, &reasons, nullptr), QE_OK);
            EXPECT_STREQ(plan.row->name, "cuda/any") << c.scheme;
            for (const qk_row *row : kRows) EXPECT_EQ(reasons[row->name], c.why) << row->name << " " << c.scheme;
        }
}

} // namespace
