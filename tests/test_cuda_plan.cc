// Plans of the cuda backend for machines that are not there: every shape has one, its tiles cover y, every refusal names
// its reason, and what a plan asks of the device exists.
#include "cuda_support.h"

#include <algorithm>
#include <map>
#include <set>

namespace {
using namespace cuda_test;

struct Machine {
    const char *name;
    int sm, units;
    uint32_t shared, clusters;
    int toolkit = 1300;
};
const Machine kMachines[] = {
#define GPU(id, title, sm, units, shared_kib, l2_mib, memory_gib)                                                        \
    {id, sm, units, shared_kib * 1024u, sm / 10 == 9 ? uint32_t(QK_CLUSTERS_ALL) : 0u},
#include "bench/gpus.txt"
#undef GPU
    {"a10", 86, 72, 99 * 1024, 0},
    {"rtx5090", 120, 170, 99 * 1024, 0},
    {"h100_alone", 90, 132, 227 * 1024, 0}, // refuses every cluster
    {"h100_pairs", 90, 132, 227 * 1024, 1 << 2},
    {"h100_nvcc13.5", 90, 132, 227 * 1024, QK_CLUSTERS_ALL, 1305},
};
struct Shape {
    const char *name;
    int64_t n, k;
};
const Shape kShapes[] = {
#define SHAPE(name, n, k) {name, n, k},
#include "bench/shapes.txt"
#undef SHAPE
};
qk_device device_of(const Machine &m) {
    qk_device d{};
    d.backend = QK_CUDA, d.sm = m.sm, d.units = m.units, d.unit_bytes = m.shared, d.clusters = m.clusters;
    d.toolkit = m.toolkit, d.cache_bytes = 50u << 20, d.memory_bytes = uint64_t(24) << 30;
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
        if (s.quant.group_k && s.quant.super == QE_NUM_ONE) s.quant.group_k = random_group(g, k);
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
                const bool dense = dense_plan(plan);
                if (plan.splits == 1 && !dense) { EXPECT_EQ(plan.workspace_bytes, 0u) << plan.row->name; }
                if (machine.sm / 10 != 9 && !dense) { EXPECT_EQ(plan.workspace_bytes != 0, plan.splits > 1) << plan.row->name; }
                // Sums of every split, and a pass of dequantized weights: 1/256 of the memory, or one band.
                const uint64_t weights = std::max<uint64_t>(d.memory_bytes / 256, 128 * 2 * uint64_t(k + 7));
                EXPECT_LE(plan.workspace_bytes, uint64_t(8) * uint64_t(m) * uint64_t(n + 127) * 4 + (dense ? weights : 0));
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
// Kernels of ldmatrix.s4 are chosen where the binary holds them: a fact of the device as described, and a reason where not.
TEST(CudaPlan, NibblesAreLoadedWhereNvccKnewHow) {
    struct Want {
        const char *form;
        int sm, toolkit;
        const char *layout, *why;
    };
    const Want table[] = {
        {"w4a8_channel", 90, 1304, "cuda/s4a8", ""},
        {"w3a8_static", 90, 1305, "cuda/s4a8", ""},
        {"w4a8_channel", 90, 1300, "cuda/w4a8", "built by nvcc 13.0, ldmatrix.s4 needs 13.4"},
        {"w4a8_channel", 90, 0, "cuda/w4a8", "nvcc not named, ldmatrix.s4 needs 13.4"},
        {"w4a8_channel", 80, 1305, "cuda/w4a8", "sm_80, needed sm_90"},
        {"w4a8_channel", 100, 1305, "cuda/w4a8", "sm_100, needed sm_90"},
        {"w4a8_points", 90, 1305, "cuda/w4a8", "scales or zeros inside a row, or differences beyond -8..7"},
        {"w4a8_g128", 90, 1305, "cuda/w4a8", "scales or zeros inside a row, or differences beyond -8..7"},
    };
    int found = 0;
    for (const Want &want : table)
        for (const Scheme &s : schemes()) {
            if (s.name != std::string(want.form)) continue;
            qk_device d = device_of({"machine", want.sm, 132, 227 * 1024, want.sm == 90 ? uint32_t(QK_CLUSTERS_ALL) : 0u, want.toolkit});
            qk_shape shape = shape_of(s, 4096, 4096);
            std::map<std::string, std::string> reasons;
            shape.layout = qk_layout_choose(&d, &shape, collect, &reasons);
            EXPECT_STREQ(shape.layout->name, want.layout) << want.form << " nvcc " << want.toolkit << " sm_" << want.sm;
            EXPECT_EQ(reasons["cuda/s4a8"], want.why);
            found++;
        }
    EXPECT_EQ(found, int(std::size(table)));
}
// Splits of k are the blocks of a cluster where as many clusters run at once as the tiles need; else a workspace.
TEST(CudaPlan, SplitsAreSummedInClustersThatFit) {
    struct Want {
        const char *gpu, *form;
        int64_t m, n, k;
        int splits;
        bool workspace;
    };
    const Want table[] = {
        {"h100", "w8a8", 16, 4096, 4096, 4, false},      // 32 clusters of 4
        {"h100", "w8a8", 64, 4096, 4096, 4, false},
        {"h100", "w8a8", 1, 2560, 9728, 5, false},       // 6 would fill more units, but 16 of them run at once
        {"h100", "w8a8", 16, 65 * 128, 4096, 2, true},   // 64 clusters of 2 at once
        {"h100", "w8a8", 16, 17000, 4096, 1, false},     // the tiles fill the device
        {"h100", "w8a8", 100, 1024, 4096, 8, false},     // tiles of 128 tokens
        {"h100", "w8a8", 200, 1024, 4096, 8, true},      // pairs that share tokens are clusters already
        {"h200", "w4a8_g128", 64, 1024, 4096, 8, false},
        {"h100", "w4a16_sym", 16, 4096, 4096, 4, false}, // splits of float sums are chunks of the weight
        {"h100", "w4a16_sym", 16, 2560, 9728, 6, true},
        {"a100", "w8a8", 16, 4096, 4096, 3, true},       // no clusters
        {"h100_alone", "w8a8", 16, 4096, 4096, 4, true},
        {"h100_alone", "w4a16_sym", 16, 4096, 4096, 4, true},
        {"h100_alone", "w8a8", 200, 1024, 4096, 8, true},
        {"h100_pairs", "w8a8", 16, 4096, 4096, 4, true},
        {"h100_pairs", "w8a8", 16, 5632, 4096, 2, false}, // 3 would fill the device
        {"h100_pairs", "w4a16_sym", 16, 4096, 4096, 4, true},
    };
    int found = 0;
    for (const Want &want : table)
        for (const Machine &machine : kMachines)
            for (const Scheme &s : schemes()) {
                if (machine.name != std::string(want.gpu) || s.name != std::string(want.form)) continue;
                const qk_device d = device_of(machine);
                qk_gemm g{};
                g.w = shape_of(s, want.n, want.k), g.w.layout = qk_layout_choose(&d, &g.w, nullptr, nullptr);
                g.x = s.act_group < 0 ? plain(QE_CODE_F16, 16) : g.w.act.quant, g.m = want.m, g.y_type = QE_CODE_F16;
                qk_plan plan{};
                ASSERT_EQ(qk_gemm_plan(&d, &g, &plan, nullptr, nullptr, nullptr), QE_OK);
                const std::string what = std::string(want.gpu) + " " + want.form + " m " + std::to_string(want.m) + " n " +
                                         std::to_string(want.n) + " k " + std::to_string(want.k);
                EXPECT_EQ(plan.splits, want.splits) << what;
                EXPECT_EQ(plan.workspace_bytes != 0, want.workspace) << what;
                found++;
            }
    EXPECT_EQ(found, int(std::size(table)));
}
// Tokens are shared by pairs of blocks where those run, else the same rows of y come from a block alone.
TEST(CudaPlan, TokensAreSharedWherePairsRun) {
    const struct {
        const char *form;
        int64_t m, n;
        int alone, pairs; // variants
    } table[] = {{"w8a8", 4096, 4096, 3, 4},         {"w8a8", 1536, 4096, 3, 5},
                 {"w4a8_g128", 4096, 4096, 3, 4},    {"w4a8_channel", 128, 14336, 2, 5},
                 {"w2a8", 300, 14336, 3, 5},         {"fp8", 100, 4096, 4, 2},
                 {"fp8", 4096, 4096, 4, 2},     {"bf16", 4096, 4096, 4, 2}};
    int found = 0;
    for (const auto &want : table)
        for (const Machine &machine : kMachines)
            for (const Scheme &s : schemes()) {
                if (machine.sm != 90 || s.name != std::string(want.form)) continue;
                const qk_device d = device_of(machine);
                qk_gemm g{};
                g.w = shape_of(s, want.n, 4096), g.w.layout = qk_layout_choose(&d, &g.w, nullptr, nullptr);
                g.x = s.act_group < 0 ? plain(QE_CODE_BF16, 16) : g.w.act.quant, g.m = want.m, g.y_type = QE_CODE_F16;
                qk_plan plan{};
                ASSERT_EQ(qk_gemm_plan(&d, &g, &plan, nullptr, nullptr, nullptr), QE_OK);
                EXPECT_EQ(plan.variant, machine.clusters ? want.pairs : want.alone)
                    << machine.name << " " << want.form << " m " << want.m << " " << plan.row->name;
                found++;
            }
    const auto hoppers = std::count_if(std::begin(kMachines), std::end(kMachines), [](const Machine &m) { return m.sm == 90; });
    EXPECT_EQ(found, int(std::size(table)) * int(hoppers));
}
// Plans of real shapes, which bench/budget.py predicts the time of: with QE_PLANS_OUT they are written there, one JSON
// object a line.
TEST(CudaPlan, CoverRealShapes) {
    const char *path = std::getenv("QE_PLANS_OUT");
    std::FILE *out = path ? std::fopen(path, "w") : nullptr;
    ASSERT_EQ(path != nullptr, out != nullptr) << path;
    const char *forms[] = {"w8a8",        "w4a8_channel",  "w4a8_g128", "w4a8_g32_asym_x", "w4a16_sym",
                           "w4a16_points", "w4a16_channel", "w8a16",     "w8a16_points",    "w8a16_g16_points",
                            "nf4_g128",     "nf4",           "mxfp4",     "nvfp4",            "q4_k_a16",      "q6_k_a16",
                            "q4_k",         "q6_k",          "fp8",       "bf16",
                            "w1a8",         "w2a8"};
    const int64_t tokens[] = {1,   2,   4,   8,   15,  16,  17,  24,  31,  32,  33,   48,   63,   64,   65,   96,
                              127, 128, 129, 192, 255, 256, 257, 384, 512, 513, 768, 1024, 1536, 2048, 4096, 8192};
    int plans = 0;
    for (const char *form : forms)
        for (const Scheme &s : schemes()) {
            if (s.name != std::string(form)) continue;
            for (const Machine &machine : kMachines)
                for (const Shape &at : kShapes)
                    for (int type : {QE_CODE_F16, QE_CODE_BF16}) {
                        if (type == QE_CODE_BF16 && s.act_group >= 0) continue;
                        const qk_device d = device_of(machine);
                        qk_gemm problem{};
                        problem.w = shape_of(s, at.n, at.k);
                        problem.w.layout = qk_layout_choose(&d, &problem.w, nullptr, nullptr);
                        problem.x = s.act_group < 0 ? plain(type, 16) : problem.w.act.quant;
                        problem.y_type = QE_CODE_F16;
                        const qk_layout *layout = problem.w.layout;
                        const int64_t bands = (at.n + layout->band_rows - 1) / layout->band_rows;
                        const int64_t packed = bands * int64_t(layout->band_bytes(&problem.w));
                        for (int64_t m : tokens) {
                            qk_plan plan{};
                            problem.m = m;
                            ASSERT_EQ(qk_gemm_plan(&d, &problem, &plan, nullptr, nullptr, nullptr), QE_OK) << form;
                            const int64_t pass = int64_t(plan.grid[1]) * 128, passes = (at.n + pass - 1) / pass; // of dense rows
                            ASSERT_GE(int64_t(plan.grid[1]) * passes * 128, at.n) << plan.row->name;
                            ASSERT_GE(int64_t(plan.grid[0]) * 256, m) << plan.row->name; // at the largest tile
                            plans++;
                            if (!out) continue;
                            const bool handed = dense_plan(plan) && plan.variant >= 8;
                            std::fprintf(out,
                                         "{\"gpu\": \"%s\", \"scheme\": \"%s\", \"bf16\": %s, \"shape\": \"%s\", \"m\": %lld, "
                                         "\"n\": %lld, \"k\": %lld, \"group\": %d, \"bits\": %d, \"row\": \"%s\", "
                                         "\"variant\": %d, \"splits\": %d, \"workspace\": %llu, \"threads\": %u, \"shared\": %u, "
                                         "\"packed\": %lld, \"written\": %s, \"passes\": %lld}\n",
                                         machine.name, s.name, type == QE_CODE_BF16 ? "true" : "false", at.name,
                                         (long long)m, (long long)at.n, (long long)at.k, int(s.quant.group_k),
                                         int(s.quant.bits), handed ? "cuda/dense_sm80" : plan.row->name,
                                         plan.variant - (handed ? 8 : 0), plan.splits,
                                         (unsigned long long)plan.workspace_bytes, plan.block, plan.shared_bytes,
                                         (long long)packed, s.quant.code == problem.x.code ? "false" : "true", (long long)passes);
                        }
                    }
        }
    if (out) std::fclose(out);
    EXPECT_GT(plans, 10000);
    std::printf("%d plans\n", plans);
}
} // namespace
