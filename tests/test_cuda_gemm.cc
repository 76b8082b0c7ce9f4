// The cuda backend in the emulator through qk.h: every layout and row, full tiles and ragged edges, K of more than two
// rounds of the ring, splits, three schedules. Integer families must give the reference's bits, floating ones stay within
// the bound of quantization.md 7.7 carried through the epilogue.
#include "cuda_support.h"

#include <map>
#include "cuda_backend.h"

#include "ref/oracle.h"

namespace {
using namespace cuda_test;

const Problem kProblems[] = {
    {1, 8, 64, QE_CODE_F16, QE_CODE_F32, 0, 0},
    {33, 100, 304, QE_CODE_F16, QE_CODE_F16, QK_ACT_SILU, QK_GEMM_BIAS},
    {70, 136, 1072, QE_CODE_F16, QE_CODE_F16, 0, QK_GEMM_BIAS | QK_GEMM_RESIDUAL},
    {5, 66, 1300, QE_CODE_BF16, QE_CODE_BF16, QK_ACT_GELU_TANH, QK_GEMM_GATED | QK_GEMM_RESIDUAL},
    {17, 72, 512, QE_CODE_F32, QE_CODE_F32, QK_ACT_RELU2, QK_GEMM_BIAS},
    {16, 128, 2304, QE_CODE_F16, QE_CODE_F16, 0, 0, true},
    {12, 128, 2304, QE_CODE_F16, QE_CODE_F16, QK_ACT_SILU, QK_GEMM_GATED, true, 1},
    {24, 130, 1540, QE_CODE_F16, QE_CODE_F16, 0, 0, true, 1},
    {64, 128, 2304, QE_CODE_F16, QE_CODE_F32, 0, 0, true, 1},
    {64, 130, 2300, QE_CODE_BF16, QE_CODE_F16, QK_ACT_GELU, QK_GEMM_BIAS, true},
    {128, 128, 2304, QE_CODE_F16, QE_CODE_F16, 0, 0, true, 1},
    {257, 136, 1424, QE_CODE_F16, QE_CODE_BF16, 0, QK_GEMM_BIAS, true},
};
constexpr size_t kOneTiled = 9; // what schemes that share kernels with a thorough one run of the tiled problems

// What a float problem must give, and how far off it may be: 7.7 for the sums, then each step of the epilogue.
struct Bounded {
    double y, slack;
};
double activated(double v, int act) {
    if (act == QK_ACT_SILU) return v / (1 + std::exp(-v));
    if (act == QK_ACT_GELU) return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
    if (act == QK_ACT_GELU_TANH)
        return 0.5 * v * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v)));
    return v;
}
Bounded activate(Bounded b, int act) { // slopes stay below 1.13; num.h is within 1e-6 * (1 + |v|)
    if (!act) return b;
    if (act == QK_ACT_RELU2) { // twice the slope, and the square of what it may be off
        const double v = std::max(b.y, 0.0);
        return {v * v, (2 * v + b.slack) * b.slack};
    }
    return {activated(b.y, act), 1.13 * b.slack + 1e-6 * (1 + std::fabs(b.y))};
}
class Oracle {
  public:
    Oracle(const qe_qtensor &t, const Problem &problem, int64_t chunk_k, uint32_t seed)
        : p(problem), chunk(chunk_k), w(size_t(p.n * p.k)), x(size_t(p.m * p.k)) {
        EXPECT_EQ(qe_dequantize(&t, 0, p.n, w.data(), p.k, nullptr), QE_OK);
        const std::vector<char> typed = as_type(random_row(size_t(p.m * p.k), seed), p.x_type);
        for (size_t i = 0; i < x.size(); i++) x[i] = value_at(typed, i, p.x_type);
        bias = random_row(size_t(p.n), seed + 1);
        residual = as_type(random_row(size_t(p.m * ldy()), seed + 2), p.y_type);
    }
    int64_t outputs() const { return p.flags & QK_GEMM_GATED ? p.n / 2 : p.n; }
    int64_t ldy() const { return outputs() + 3; }
    // The largest error of y as a fraction of its bound.
    double worst(const std::vector<char> &y, double u_acc, double u_w) const {
        if (dots.empty())
            for (int64_t i = 0; i < p.m * p.n; i++)
                dots.push_back(qk_oracle_dot(&x[size_t(i / p.n * p.k)], &w[size_t(i % p.n * p.k)], p.k));
        double worst = 0;
        for (int64_t m = 0; m < p.m; m++)
            for (int64_t n = 0; n < outputs(); n++) {
                const Bounded b = want(m, n, u_acc, u_w);
                const double got = value_at(y, size_t(m * ldy() + n), p.y_type);
                if (p.y_type == QE_CODE_F16 && std::isinf(got) && std::fabs(b.y) + b.slack >= 65520 && got * b.y > 0)
                    continue; // overflow gives infinity
                const double e = std::fabs(got - b.y) / b.slack;
                worst = e > worst || std::isnan(e) ? e : worst;
                if (std::isnan(e)) return INFINITY;
            }
        return worst;
    }

  private:
    const Problem p;
    const int64_t chunk;
    std::vector<float> w, x, bias;
    std::vector<char> residual;
    mutable std::vector<qk_oracle> dots; // of float64, computed once

    Bounded sum(int64_t m, int64_t n, double u_acc, double u_w) const {
        const qk_oracle o = dots[size_t(m * p.n + n)];
        Bounded b{o.y, qk_oracle_bound(o, p.k, chunk, u_acc, u_w)};
        if (p.flags & QK_GEMM_BIAS) b.y += bias[size_t(n)], b.slack += std::fabs(b.y) * 0x1p-24;
        return b;
    }
    Bounded want(int64_t m, int64_t n, double u_acc, double u_w) const {
        Bounded b;
        if (p.flags & QK_GEMM_GATED) {
            const Bounded gate = activate(sum(m, 2 * n, u_acc, u_w), p.act), up = sum(m, 2 * n + 1, u_acc, u_w);
            b = {gate.y * up.y, gate.slack * std::fabs(up.y) + up.slack * (std::fabs(gate.y) + gate.slack)};
        } else
            b = activate(sum(m, n, u_acc, u_w), p.act);
        if (p.flags & QK_GEMM_RESIDUAL) b.y += value_at(residual, size_t(m * ldy() + n), p.y_type);
        b.slack += (std::fabs(b.y) + b.slack) * 0x1p-23; // the fp32 steps of the epilogue
        const double rounding = p.y_type == QE_CODE_F32 ? 0x1p-24 : p.y_type == QE_CODE_F16 ? 0x1p-11 : 0x1p-8;
        b.slack += (std::fabs(b.y) + b.slack) * rounding + 0x1p-25;
        return b;
    }
};
// A group of all of k is no group: one level then serves w4a8, two levels do not.
const char *expected_layout(const Scheme &s, int64_t k, const qk_device &device) {
    if (device.sm / 10 == 9 && device.toolkit >= QK_S4_TOOLKIT && s.act_group == 0 && s.quant.code == QE_CODE_INT &&
        s.quant.bits <= 4 && std::strcmp(s.layout, "cuda/w2a8") && qk_w4a8_units(&s.quant, k) == 0)
        return "cuda/s4a8";
    const bool whole = s.quant.group_k && s.quant.group_k >= k;
    if (!whole || s.act_group != 0 || s.quant.bits > 4 || s.quant.zero == QE_ZERO_REAL) return s.layout;
    if (s.quant.code == QE_CODE_SIGN) return s.signs ? "cuda/w1a1" : "cuda/w2a8";
    return s.quant.super == QE_NUM_ONE ? "cuda/w4a8" : "cuda/any";
}
// The race and asan flavours judge order and addresses, not luck: one schedule of the large problems will do, and for
// addresses the ragged ones.
bool hooks() {
    const char *flavour = std::getenv("SIMT_FLAVOUR");
    return flavour && *flavour;
}
bool addresses_only() {
    const char *flavour = std::getenv("SIMT_FLAVOUR");
    return flavour && !std::strcmp(flavour, "asan");
}
bool one_thread_per_output(const qk_row *row) {
    return !std::strcmp(row->name, "cuda/any") || std::strstr(row->name, "_simt");
}

struct Schedule {
    simt::Order order;
    simt::Async async;
};
const Schedule kSchedules[] = {{simt::Order::RoundRobin, simt::Async::Eager},
                               {simt::Order::Reverse, simt::Async::Lazy},
                               {simt::Order::Random, simt::Async::Random}};

// u_w of 7.7: rows that scale weights in registers round them to fp16; those that promote keep codes exact where the
// 16-bit type holds them. Dense ones round every weight once.
double weight_rounding(const qk_row *row, int x_type, const qe_quant &q) {
    if (!std::strncmp(row->name, "cuda/w4a16", 10)) return x_type == QE_CODE_F16 ? std::ldexp(1, -11) : 0;
    if (!std::strncmp(row->name, "cuda/ka16", 9)) return std::ldexp(1, x_type == QE_CODE_F16 ? -11 : -8);
    if (!std::strncmp(row->name, "cuda/dense", 10)) {
        const bool held = q.code == QE_CODE_F16 || q.code == QE_CODE_BF16; // as they are
        return held ? 0 : std::ldexp(1, x_type == QE_CODE_F16 ? -11 : -8);
    }
    if (q.code == QE_CODE_NF4 || q.code == QE_CODE_LUT || q.code == QE_CODE_FP4B)
        return std::ldexp(1, x_type == QE_CODE_F16 ? -11 : -8);
    return 0;
}
std::string first_difference(const std::vector<char> &got, const std::vector<char> &want, const Problem &p) {
    for (size_t i = 0; i < got.size(); i += type_bytes(p.y_type))
        if (std::memcmp(&got[i], &want[i], type_bytes(p.y_type))) {
            const size_t e = i / type_bytes(p.y_type);
            const int64_t ldy = (p.flags & QK_GEMM_GATED ? p.n / 2 : p.n) + 3;
            return "y[" + std::to_string(int64_t(e) / ldy) + "][" + std::to_string(int64_t(e) % ldy) + "] is " +
                   std::to_string(value_at(got, e, p.y_type)) + ", want " + std::to_string(value_at(want, e, p.y_type));
        }
    return "";
}

struct Chip {
    int sm, toolkit;
};
class CudaGemm : public testing::TestWithParam<size_t> {
  protected:
    ~CudaGemm() override {
        simt::device().options = {};
        simt::device().sm = 90, simt::device().units = 132, simt::device().toolkit = 1300;
    }
};

TEST_P(CudaGemm, MatchesReference) {
    const Scheme &s = schemes()[GetParam()];
    int cases = 0, rows_seen = 0;
    double worst = 0;
    for (const Problem &p : kProblems) {
        if (p.tiles && !s.thorough && &p != &kProblems[kOneTiled]) continue;
        if (p.tiles && p.n % 128 == 0 && addresses_only()) continue;
        Tensor t;
        make_tensor(&t, s, p.n, p.k, uint32_t(p.n));
        const qk_shape shape = shape_of(s, p.n, p.k);
        Pool ref(&qk_ref_backend);
        std::vector<char> want;
        const Oracle oracle(t.t, p, shape.chunk_k, 7);
        for (const auto &chip : {Chip{80, 1300}, Chip{90, 1300}, Chip{90, 1304}}) {
            const int sm = chip.sm;
            simt::device().sm = sm, simt::device().units = p.units, simt::device().toolkit = chip.toolkit;
            Pool cuda(&qk_cuda_backend);
            const qk_weight w = pack(cuda, shape, t.t);
            ASSERT_STREQ(w.shape.layout->name, expected_layout(s, p.k, cuda.device));
            if (chip.toolkit == 1304 && w.shape.layout != &qk_cuda_s4a8) continue; // as the chip before
            qk_x x{};
            for (auto row = qk_cuda_backend.rows; *row; row++) {
                if ((*row)->layout != w.shape.layout) continue;
                const bool simple = one_thread_per_output(*row);
                if (simple ? p.tiles || sm != 80 : sm == 90 && !ends_with((*row)->name, "_sm90")) continue;
                qk_gemm g{};
                g.w = w.shape, g.m = p.m, g.y_type = p.y_type, g.act = p.act, g.flags = p.flags;
                g.x = s.act_group < 0 ? plain(p.x_type, p.x_type == QE_CODE_F32 ? 32 : 16) : shape.act.quant;
                qk_why why{};
                if (!(*row)->supports(&cuda.device, &g, &why)) continue;
                rows_seen++;
                const bool exact = s.act_group >= 0 || simple;
                if (exact && want.empty()) {
                    const qk_weight w_ref = pack(ref, shape, t.t);
                    want = run(ref, w_ref, *qk_ref_backend.rows, p, input(ref, w_ref, p, 7), 7);
                }
                if (!x.data) x = input(cuda, w, p, 7);
                for (const Schedule &schedule : kSchedules) {
                    if (simple && &schedule != kSchedules) continue; // no collective to reorder
                    if (p.tiles && hooks() && &schedule != &kSchedules[1]) continue;
                    simt::device().options.order = schedule.order;
                    simt::device().options.async = schedule.async;
                    simt::device().options.seed = uint64_t(cases) + 1;
                    const std::vector<char> got = run(cuda, w, *row, p, x, 7);
                    const std::string what = std::string((*row)->name) + " sm_" + std::to_string(sm) + " m " +
                                             std::to_string(p.m) + " n " + std::to_string(p.n) + " k " +
                                             std::to_string(p.k);
                    if (exact) { ASSERT_EQ(first_difference(got, want, p), "") << what; }
                    if (s.act_group < 0) {
                        const double u_acc = std::ldexp(1, simple ? -24 : -22);
                        const double e = oracle.worst(got, u_acc, simple ? 0 : weight_rounding(*row, p.x_type, s.quant));
                        ASSERT_LE(e, 1) << what;
                        worst = std::max(worst, e);
                    }
                    cases++;
                }
            }
        }
    }
    EXPECT_GT(rows_seen, 0);
    std::printf("%s: %d runs", s.name, cases);
    std::printf(s.act_group < 0 ? ", worst error %.2f of the bound\n" : ", the reference's bits\n", worst);
}
// Clusters over a number of bands that is odd: the last block only sends tokens. k covers the ring's four slots four times.
TEST(CudaCluster, OddBands) {
    if (hooks()) GTEST_SKIP() << "order and addresses are judged by the other problems and simt_patches";
    const Scheme &s = schemes()[0];
    const Problem p{131, 16 * 128 + 3, 2000, QE_CODE_F16, QE_CODE_F16, 0, QK_GEMM_BIAS, true};
    Tensor t;
    make_tensor(&t, s, p.n, p.k, 5);
    Pool ref(&qk_ref_backend), cuda(&qk_cuda_backend);
    const qk_weight w_ref = pack(ref, shape_of(s, p.n, p.k), t.t), w = pack(cuda, shape_of(s, p.n, p.k), t.t);
    const std::vector<char> want = run(ref, w_ref, *qk_ref_backend.rows, p, input(ref, w_ref, p, 7), 7);
    const qk_row *row = &qk_cuda_w8a8_sm90_row;
    qk_gemm g{};
    g.w = w.shape, g.m = p.m, g.y_type = p.y_type, g.x = w.shape.act.quant;
    const qk_x x = input(cuda, w, p, 7);
    simt::device().options.order = simt::Order::Random, simt::device().options.async = simt::Async::Random;
    for (const uint32_t units : {132u, 8u}) { // sums leave in parts, or finished
        cuda.device.units = units;
        qk_plan plan = qk_plan_begin(row, &g);
        row->plan(&cuda.device, &g, &plan);
        ASSERT_EQ(plan.grid[1], 18u) << "not in clusters";
        ASSERT_EQ(plan.splits > 1, units == 132);
        EXPECT_EQ(first_difference(run(cuda, w, row, p, x, 7), want, p), "") << units << " units";
    }
    simt::device().options = {};
}
// Tiles of 128 tokens that two blocks share: whole sums and splits, odd bands, a ring that goes around more than once.
TEST(CudaCluster, PairsOf128Tokens) {
    const struct {
        const char *scheme;
        int64_t m, n, k;
        int units;
        bool splits;
    } forms[] = {{"w8a8", 131, 256, 1200, 5, false},     {"w8a8", 127, 17 * 128 - 5, 300, 8, false}, {"w8a8", 200, 512, 1100, 132, true},
                 {"w4a8_channel", 100, 256, 1200, 2, false}, {"w4a8_g32_asym_x", 131, 256, 1200, 5, false},
                 {"w2a8", 130, 250, 1200, 5, false},     {"w1a8", 70, 256, 1200, 2, false}};
    int runs = 0;
    for (const auto &form : forms)
        for (const Scheme &s : schemes()) {
            if (s.name != std::string(form.scheme) || (addresses_only() && form.n % 128 == 0)) continue;
            const Problem p{form.m, form.n, form.k, QE_CODE_F16, QE_CODE_F16, 0, QK_GEMM_BIAS, true};
            Tensor t;
            make_tensor(&t, s, p.n, p.k, 5);
            Pool ref(&qk_ref_backend), cuda(&qk_cuda_backend);
            const qk_weight w_ref = pack(ref, shape_of(s, p.n, p.k), t.t), w = pack(cuda, shape_of(s, p.n, p.k), t.t);
            const std::vector<char> want = run(ref, w_ref, *qk_ref_backend.rows, p, input(ref, w_ref, p, 7), 7);
            const qk_x x = input(cuda, w, p, 7);
            const qk_gemm g = gemm_of(w, p, x);
            cuda.device.units = form.units;
            qk_plan plan{};
            ASSERT_EQ(qk_gemm_plan(&cuda.device, &g, &plan, nullptr, nullptr, nullptr), QE_OK);
            ASSERT_EQ(plan.variant, 5) << s.name << " m " << p.m << " n " << p.n;
            ASSERT_EQ(plan.splits > 1, form.splits) << s.name << " m " << p.m << " n " << p.n;
            for (const Schedule &schedule : kSchedules) {
                if (hooks() && &schedule != &kSchedules[1]) continue;
                simt::device().options.order = schedule.order, simt::device().options.async = schedule.async;
                simt::device().options.seed = uint64_t(++runs);
                ASSERT_EQ(first_difference(run_plan(cuda, w, plan, p, x, 7), want, p), "")
                    << s.name << " m " << p.m << " n " << p.n << ", " << plan.splits << " splits";
            }
        }
    simt::device().options = {};
    EXPECT_EQ(runs, addresses_only() ? 2 : hooks() ? 7 : 21);
}
// A device that refuses clusters, or some sizes, runs every plan without them: the same bits. The emulated one fails the
// launch of a cluster that it refuses.
TEST(CudaCluster, RefusedByTheDevice) {
    if (simt::kGpu) GTEST_SKIP() << "a real device has the clusters it has";
    struct Form {
        const char *scheme;
        int64_t m, n, k;
        bool differs; // plans of a device without clusters and of one with all
    };
    const Form forms[] = {{"w8a8", 31, 130, 2100, true},      {"w8a8", 131, 256, 640, true},   {"w4a8_g128", 131, 256, 640, true},
                          {"w4a16_sym", 31, 130, 4100, true}, {"w8a16", 31, 130, 4100, true},  {"fp8", 70, 200, 1024, true},
                          {"f16", 130, 200, 1024, true},      {"w8a8", 20, 17000, 256, false}, {"q4_k_a16", 31, 130, 4096, true}};
    int runs = 0;
    for (const Form &form : forms)
        for (const Scheme &s : schemes()) {
            if (s.name != std::string(form.scheme) || (hooks() && &form != forms && &form != forms + 6)) continue;
            const Problem p{form.m, form.n, form.k, QE_CODE_F16, QE_CODE_F16, 0, QK_GEMM_BIAS, true};
            Tensor t;
            make_tensor(&t, s, p.n, p.k, 5);
            std::vector<char> first;
            qk_plan with_all{};
            for (const uint32_t sizes : {uint32_t(QK_CLUSTERS_ALL), 0u, 1u << 2, 1u << 2 | 1u << 4 | 1u << 8}) {
                simt::device().clusters = sizes;
                Pool cuda(&qk_cuda_backend);
                ASSERT_EQ(cuda.device.clusters, sizes);
                const qk_weight w = pack(cuda, shape_of(s, p.n, p.k), t.t);
                const qk_x x = input(cuda, w, p, 7);
                const qk_gemm g = gemm_of(w, p, x);
                qk_plan plan{};
                ASSERT_EQ(qk_gemm_plan(&cuda.device, &g, &plan, nullptr, nullptr, nullptr), QE_OK);
                const std::vector<char> y = run_plan(cuda, w, plan, p, x, 7);
                if (first.empty()) first = y, with_all = plan;
                if (!sizes) {
                    const bool differs = plan.variant != with_all.variant || plan.workspace_bytes != with_all.workspace_bytes;
                    EXPECT_EQ(differs, form.differs) << s.name << " m " << p.m;
                    EXPECT_EQ(plan.row, with_all.row);
                }
                ASSERT_EQ(first_difference(y, first, p), "") << plan.row->name << " m " << p.m << ", clusters " << sizes;
                runs++;
            }
        }
    simt::device().clusters = QK_CLUSTERS_ALL;
    EXPECT_EQ(runs, hooks() ? 8 : int(std::size(forms)) * 4);
}
// Any number of splits, summed in a cluster and through the workspace: the same bits, of exact and of float sums.
TEST(CudaCluster, SplitsSummedOnChipAndInTheWorkspace) {
    struct Form {
        const char *scheme;
        int x_type, blocks; // of 128 columns in a split
    };
    const Form forms[] = {{"w8a8", QE_CODE_F16, 4}, {"w4a16_sym", QE_CODE_F16, 8}, {"w4a16_sym", QE_CODE_BF16, 8}};
    int runs = 0;
    for (const Form &form : forms)
        for (const Scheme &s : schemes())
            for (int splits = 2; splits <= 8 && s.name == std::string(form.scheme); splits += hooks() ? 3 : 1) {
                const Problem p{splits * 8 - 1, 130, splits * form.blocks * 128, form.x_type, QE_CODE_F16, 0, QK_GEMM_BIAS, true};
                Tensor t;
                make_tensor(&t, s, p.n, p.k, 5);
                Pool cuda(&qk_cuda_backend);
                const qk_weight w = pack(cuda, shape_of(s, p.n, p.k), t.t);
                const qk_x x = input(cuda, w, p, 7);
                const qk_row *row = s.act_group < 0 ? &qk_cuda_w4a16_sm90_row : &qk_cuda_w8a8_sm90_row;
                const qk_gemm g = gemm_of(w, p, x);
                simt::device().options.order = simt::Order::Random, simt::device().options.async = simt::Async::Random;
                simt::device().options.seed = uint64_t(runs) + 1;
                std::vector<char> y[2];
                for (int on_chip = 0; on_chip < 2; on_chip++) {
                    cuda.device.units = on_chip ? 132 : 15; // fewer than a cluster needs
                    qk_plan plan = qk_plan_begin(row, &g);
                    row->plan(&cuda.device, &g, &plan);
                    ASSERT_EQ(plan.workspace_bytes == 0, on_chip == 1);
                    if (on_chip || form.blocks == 8) { ASSERT_EQ(plan.splits, splits); }
                    y[on_chip] = run_plan(cuda, w, plan, p, x, 7);
                }
                ASSERT_EQ(first_difference(y[1], y[0], p), "") << s.name << " m " << p.m << ", " << splits << " splits";
                runs++;
            }
    EXPECT_EQ(runs, hooks() ? 9 : 21);
    simt::device().options = {};
}
// The largest sums of weights kept as 16 times their value, and the first k at which they are not kept so.
TEST(CudaSignedNibbles, SumsOfTheLongestRow) {
    if (hooks()) GTEST_SKIP() << "values alone are in question";
    const Scheme *s = &schemes()[0];
    while (std::strcmp(s->name, "w4a8_points")) s++;
    Scheme lowest = *s; // with an asymmetric input all of whose codes are -128
    lowest.quant = integer(4, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 8);
    for (const int64_t k : {(int64_t(1) << 17) - 1, int64_t(1) << 17}) {
        ASSERT_EQ(qk_w4a8_units(&lowest.quant, k), k >> 17);
        const Problem p{1, 2, k, QE_CODE_F32, QE_CODE_F32, 0, 0};
        Tensor t;
        make_tensor(&t, lowest, p.n, p.k, 5);
        std::memset(t.t.codes, 0, size_t(p.n * p.k));
        std::vector<char> want;
        for (int sm : {0, 80, 90}) {
            simt::device().sm = sm;
            Pool pool(sm ? &qk_cuda_backend : &qk_ref_backend);
            const qk_weight w = pack(pool, shape_of(lowest, p.n, p.k), t.t);
            qk_x x{};
            pool.backend->ops.x_bytes(&pool.device, &w.shape, p.m, p.x_type, &x);
            std::vector<int8_t> q(size_t(x.ld), 0);
            std::fill_n(q.begin(), k, int8_t(-128));
            const int32_t zero = 5, sum = -128 * int32_t(k);
            const float scale = 1;
            x.data = pool.put(q.data(), q.size());
            x.scales = static_cast<float *>(pool.put(&scale, 4)), x.zeros = static_cast<int32_t *>(pool.put(&zero, 4));
            x.sums = static_cast<int32_t *>(pool.put(&sum, 4)), x.sum_k = k;
            const qk_gemm g = gemm_of(w, p, x);
            qk_plan plan;
            ASSERT_EQ(qk_gemm_plan(&pool.device, &g, &plan, nullptr, nullptr, nullptr), QE_OK);
            const std::vector<char> y = run_plan(pool, w, plan, p, x, 7);
            if (!sm) want = y;
            EXPECT_EQ(first_difference(y, want, p), "") << plan.row->name << " k " << k;
        }
        EXPECT_FLOAT_EQ(value_at(want, 0, QE_CODE_F32), static_cast<float *>(t.t.scales)[0] * float(-8 * (-128 - 5) * double(k)));
    }
    simt::device().sm = 90;
}
TEST_P(CudaGemm, PacksLosslessly) {
    const Scheme &s = schemes()[GetParam()];
    const int64_t n = 75, k = 304;
    Pool cuda(&qk_cuda_backend);
    Tensor t, back;
    make_tensor(&t, s, n, k, 3);
    make_tensor(&back, s, n, k, 4);
    std::vector<char> blob;
    const qk_weight w = pack(cuda, shape_of(s, n, k), t.t, &blob);
    const qk_layout *l = w.shape.layout;
    for (int64_t row = 0, b = 0; row < n; row += l->band_rows, b++) {
        qe_qtensor view = band_of(back.t, row, std::min<int64_t>(l->band_rows, n - row));
        l->unpack(&w.shape, blob.data(), blob.data() + l->head_bytes(&w.shape) + size_t(b) * l->band_bytes(&w.shape),
                  &view);
    }
    std::vector<float> a(size_t(n * k)), c(size_t(n * k));
    ASSERT_EQ(qe_dequantize(&t.t, 0, n, a.data(), k, nullptr), QE_OK);
    ASSERT_EQ(qe_dequantize(&back.t, 0, n, c.data(), k, nullptr), QE_OK);
    EXPECT_EQ(std::memcmp(a.data(), c.data(), a.size() * 4), 0);
}
INSTANTIATE_TEST_SUITE_P(Schemes, CudaGemm, testing::Range(size_t(0), schemes().size()),
                         [](const auto &i) { return std::string(schemes()[i.param].name); });

// Shapes that nobody chose, through the plan that a call would get: any m, n, k and group, of at most 0.1 GMAC.
struct Draw {
    Scheme s;
    Problem p;
    int sm;
};
Draw draw(uint32_t seed, double macs) {
    std::mt19937 g(seed);
    auto log_uniform = [&](double most) {
        return std::max<int64_t>(1, int64_t(std::exp2(std::log2(most) * double(g() % 1000) / 999)));
    };
    Draw d{schemes()[seed * 7 % schemes().size()], {}, g() % 2 ? 90 : 80};
    d.p.k = log_uniform(4096), d.p.n = std::min<int64_t>(log_uniform(2048), std::max(1.0, macs / double(d.p.k)));
    d.p.m = std::min<int64_t>(log_uniform(1024), std::max(1.0, macs / double(d.p.k * d.p.n)));
    d.p.units = g() % 2 ? 132 : 1 + int(g() % 8);
    d.p.x_type = g() % 3 ? QE_CODE_F16 : g() % 2 ? QE_CODE_BF16 : QE_CODE_F32;
    d.p.y_type = g() % 2 ? QE_CODE_F16 : g() % 2 ? QE_CODE_BF16 : QE_CODE_F32;
    d.p.flags = uint32_t(g() % 4) | (d.p.n % 2 == 0 && g() % 3 == 0 ? uint32_t(QK_GEMM_GATED) : 0);
    if (d.p.flags & QK_GEMM_GATED) d.p.flags &= ~uint32_t(QK_GEMM_RESIDUAL);
    d.p.act = g() % 2 ? 0 : QK_ACT_SILU;
    if (d.s.quant.group_k && d.s.quant.super == QE_NUM_ONE) d.s.quant.group_k = random_group(g, d.p.k);
    int32_t &group = d.s.quant.group_k;
    if (d.s.act_group > 0 && group % d.s.act_group && d.s.act_group % group) // one divides the other (7.4)
        group = (group / d.s.act_group + 1) * d.s.act_group;
    return d;
}
TEST(CudaShapes, AnyShapeMatchesTheReference) {
    const char *asked = std::getenv("QE_TEST_SHAPES");
    const int shapes = asked ? std::atoi(asked) : hooks() ? 10 : 300;
    ASSERT_GT(shapes, 0) << "QE_TEST_SHAPES=" << asked;
    double worst = 0, macs = 0;
    std::map<std::string, int> rows;
    for (int i = 0; i < shapes; i++) {
        const Draw d = draw(uint32_t(i), hooks() ? 1e6 : 1e8);
        Tensor t;
        make_tensor(&t, d.s, d.p.n, d.p.k, uint32_t(i));
        const qk_shape shape = shape_of(d.s, d.p.n, d.p.k);
        simt::device().sm = d.sm, simt::device().units = d.p.units;
        simt::device().options.order = simt::Order::Random, simt::device().options.async = simt::Async::Random;
        simt::device().options.seed = uint64_t(i) + 1;
        Pool cuda(&qk_cuda_backend), ref(&qk_ref_backend);
        const qk_weight w = pack(cuda, shape, t.t), w_ref = pack(ref, shape, t.t);
        qk_gemm g{};
        g.w = w.shape, g.m = d.p.m, g.y_type = d.p.y_type, g.act = d.p.act, g.flags = d.p.flags;
        const qk_x x = input(cuda, w, d.p, 7);
        g.x = x.quant;
        qk_plan plan{};
        qe_error err{};
        const std::string what = std::string(d.s.name) + " group " + std::to_string(d.s.quant.group_k) + " m " +
                                 std::to_string(d.p.m) + " n " + std::to_string(d.p.n) + " k " + std::to_string(d.p.k) +
                                 " sm_" + std::to_string(d.sm);
        ASSERT_EQ(qk_gemm_plan(&cuda.device, &g, &plan, nullptr, nullptr, &err), QE_OK) << what << ": " << err.message;
        const std::vector<char> got = run(cuda, w, plan.row, d.p, x, 7);
        const bool simple = one_thread_per_output(plan.row);
        if (d.s.act_group >= 0 || simple) {
            const std::vector<char> want = run(ref, w_ref, *qk_ref_backend.rows, d.p, input(ref, w_ref, d.p, 7), 7);
            ASSERT_EQ(first_difference(got, want, d.p), "") << what << ", " << plan.row->name;
        } else {
            const Oracle oracle(t.t, d.p, shape.chunk_k, 7);
            const double e = oracle.worst(got, std::ldexp(1, -22), weight_rounding(plan.row, d.p.x_type, d.s.quant));
            ASSERT_LE(e, 1) << what << ", " << plan.row->name;
            worst = std::max(worst, e);
        }
        rows[plan.row->name]++, macs += double(d.p.m) * double(d.p.n) * double(d.p.k);
    }
    simt::device().options = {};
    simt::device().sm = 90, simt::device().units = 132;
    std::printf("%d shapes, %.2f GMAC, worst error %.2f of the bound:", shapes, macs * 1e-9, worst);
    for (const auto &r : rows) std::printf(" %s %d", r.first.c_str(), r.second);
    std::printf("\n");
}

} // namespace
