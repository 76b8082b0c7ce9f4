// Plans of the cuda backend for machines that are not there: every shape has one, its tiles cover y, every refusal names
// its reason, and what a plan asks of the device exists.
#include "cuda_support.h"

#include <map>
#include <set>

namespace {
using namespace cuda_test;

struct Machine {
    const char *name;
    int sm, units;
    uint32_t shared;
};
const Machine kMachines[] = {
    {"A100", 80, 108, 163 * 1024}, {"A10", 86, 72, 99 * 1024},     {"L40S", 89, 142, 99 * 1024},
    {"H100", 90, 132, 227 * 1024}, {"B200", 100, 148, 227 * 1024}, {"RTX 5090", 120, 170, 99 * 1024},
};
qk_device device_of(const Machine &m) {
    qk_device d{};
    d.backend = QK_CUDA, d.sm = m.sm, d.units = m.units, d.unit_bytes = m.shared;
    d.cache_bytes = 50u << 20, d.memory_bytes = uint64_t(24) << 30;
    std::snprintf(d.name, sizeof d.name, "%s", m.name);
    return d;
}
void collect(void *ctx, const char *name, const char *why) {
    static_cast<std::map<std::string, std::string> *>(ctx)->emplace(name, why);
}

TEST(CudaPlan, EveryShapeHasOne) {
    std::mt19937 g(17);
    std::map<std::string, int> chosen;
    int plans = 0;
    for (int i = 0; i < 2000; i++) {
        Scheme s = schemes()[g() % schemes().size()];
        const int64_t n = 1 + int64_t(g() % (i % 3 ? 700 : 60000)), k = 1 + int64_t(g() % (i % 2 ? 900 : 30000));
        if (s.quant.group_k && s.quant.super == QE_NUM_ONE) s.quant.group_k = int32_t(16 << g() % 6);
        const int64_t m = g() % 2 ? 1 + int64_t(g() % 64) : 1 + int64_t(g() % 8192);
        for (const Machine &machine : kMachines) {
            const qk_device d = device_of(machine);
            qk_shape shape = shape_of(s, n, k);
            std::map<std::string, std::string> reasons;
            shape.layout = qk_layout_choose(&d, &shape, collect, &reasons);
            ASSERT_NE(shape.layout, nullptr) << s.name << " on " << machine.name;
            for (int type : {QE_CODE_F16, QE_CODE_BF16, QE_CODE_F32}) {
                if (s.act_group >= 0 && type != QE_CODE_F16) continue;
                qk_gemm problem{};
                problem.w = shape, problem.m = m, problem.y_type = QE_CODE_F16;
                problem.x = s.act_group < 0 ? plain(type, type == QE_CODE_F32 ? 32 : 16) : shape.act.quant;
                qk_plan plan{};
                qe_error err{};
                ASSERT_EQ(qk_gemm_plan(&d, &problem, &plan, collect, &reasons, &err), QE_OK)
                    << s.name << " n " << n << " k " << k << " m " << m << " on " << machine.name << ": " << err.message;
                for (const auto &r : reasons) EXPECT_FALSE(r.second.empty()) << r.first;
                EXPECT_LE(plan.shared_bytes, d.unit_bytes) << plan.row->name;
                EXPECT_EQ(plan.block % 32, 0u) << plan.row->name;
                EXPECT_GT(plan.block, 0u) << plan.row->name;
                EXPECT_GE(plan.splits, 1);
                EXPECT_EQ(plan.workspace_bytes != 0, plan.splits > 1) << plan.row->name;
                EXPECT_LE(plan.workspace_bytes, uint64_t(8) * uint64_t(m) * uint64_t(n + 127) * 4);
                if (plan.splits > 1) { EXPECT_LE(m, 64) << plan.row->name; }
                chosen[std::string(plan.row->name) + " sm_" + std::to_string(machine.sm)]++;
                plans++;
            }
        }
    }
    std::set<std::string> seen;
    for (const auto &c : chosen) seen.insert(c.first.substr(0, c.first.find(' ')));
    for (auto row = qk_cuda_backend.rows; *row; row++) EXPECT_TRUE(seen.count((*row)->name)) << (*row)->name;
    std::printf("%d plans\n", plans);
}
// The row of a token never depends on how many tokens come with it: float sums differ between rows.
TEST(CudaPlan, TheRowDoesNotDependOnM) {
    int shapes = 0;
    for (const Scheme &s : schemes())
        for (const Machine &machine : kMachines) {
            const qk_device d = device_of(machine);
            if (s.act_group >= 0) continue;
            for (int type : {QE_CODE_F16, QE_CODE_BF16, QE_CODE_F32}) {
                qk_shape shape = shape_of(s, 4096, 4096);
                shape.layout = qk_layout_choose(&d, &shape, nullptr, nullptr);
                const qk_row *row = nullptr;
                for (int64_t m : {1, 16, 17, 64, 65, 128, 129, 4096}) {
                    qk_gemm problem{};
                    problem.w = shape, problem.m = m, problem.y_type = QE_CODE_F16;
                    problem.x = plain(type, type == QE_CODE_F32 ? 32 : 16);
                    qk_plan plan{};
                    ASSERT_EQ(qk_gemm_plan(&d, &problem, &plan, nullptr, nullptr, nullptr), QE_OK);
                    if (row) { EXPECT_EQ(plan.row, row) << s.name << " m " << m << " on " << machine.name; }
                    row = plan.row;
                }
                shapes++;
            }
        }
    EXPECT_GT(shapes, 100);
}
} // namespace
