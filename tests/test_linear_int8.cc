// Static pipelines through qe_linear: int8 in, int8 out, two linears in a row, on every backend that is linked in, against
// quantization.md 7.6 computed here from the canonical tensors.
#include "support.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <qengine/gemm.h>
#include <qengine/num.h>
#include <qengine/quant.h>
#include <qengine/quantize.h>
#include "device_memory.h"

namespace {

const struct { int id; const char *name, *isa; } backends[] = {
    {QE_BACKEND_REF, "ref", nullptr}, {QE_BACKEND_CPU, "cpu", nullptr}, {QE_BACKEND_CPU, "cpu avx512", "avx512"},
    {QE_BACKEND_CPU, "cpu avx2", "avx2"}, {QE_BACKEND_CPU, "cpu scalar", "scalar"}, {QE_BACKEND_CUDA, "cuda", nullptr}};
// Weights whose sums are one int32, and whether the input is asymmetric.
const struct { const char *name, *quant; bool asymmetric; } schemes[] = {
    {"w8a8", "int8:channel:f32", false},
    {"w8a8_asymmetric", "int8:channel:f32", true},
    {"w4a8_channel", "int4:channel:f32", false},
    {"w4a8_two_level", "int4:g32:u8:s=f32/channel", false},
    {"w8a8_tensor", "int8:tensor:f32", false},
};

qe_act grid(float scale, int32_t zero, bool asymmetric) {
    qe_act a = {};
    a.mode = QE_ACT_STATIC;
    a.quant.code = QE_CODE_INT, a.quant.bits = 8, a.quant.scale = QE_NUM_F32, a.quant.super = QE_NUM_ONE;
    a.quant.zero = asymmetric ? QE_ZERO_POINT : QE_ZERO_CONST;
    a.quant.zero_num = asymmetric ? QE_NUM_U8 : QE_NUM_ONE;
    a.quant.zero_const = asymmetric ? 0 : 128;
    a.scale = scale, a.zero = asymmetric ? zero : 128;
    return a;
}

struct Weight {
    qe_qtensor t{};
    std::unique_ptr<char, decltype(&free)> block{nullptr, free};
    std::vector<float> dense;
    Weight(const char *quant, int64_t n, int64_t k, uint32_t seed) : dense(size_t(n * k)) {
        std::mt19937 rng(seed);
        std::normal_distribution<float> normal;
        for (float &v : dense) v = normal(rng);
        qe_quant q;
        qe_error err{};
        EXPECT_EQ(qe_quant_parse(quant, &q, &err), QE_OK) << quant << ": " << err.message;
        size_t bytes = qe_qtensor_bytes(&q, n, k, 0);
        block.reset(static_cast<char *>(aligned_alloc(64, (bytes + 63) / 64 * 64)));
        EXPECT_EQ(qe_qtensor_place(&t, &q, n, k, 0, block.get(), bytes, &err), QE_OK) << err.message;
        EXPECT_EQ(qe_quantize(dense.data(), k, 0, &t, &err), QE_OK) << err.message;
        std::vector<float> w(size_t(n * k));
        EXPECT_EQ(qe_dequantize(&t, 0, n, w.data(), k, &err), QE_OK);
        dense = w;
    }
};

struct Linear {
    qe_linear *handle = nullptr;
    mutable qe_error err{};
    qe_status status;
    Linear(qe_device *d, const Weight &w, const qe_act &x, const qe_act *y, const float *bias, uint32_t flags = 0) {
        qe_linear_options o = {};
        o.struct_size = sizeof o;
        o.act = &x, o.bias = bias, o.flags = flags, o.y_act = y;
        if (y) o.y_type = QE_CODE_INT;
        status = qe_linear_create(d, &w.t, &o, &handle, &err);
    }
    ~Linear() { qe_linear_destroy(handle); }
    Linear(const Linear &) = delete;
    template <class Y = int8_t> std::vector<Y> run(const qe_device *d, const void *x, int64_t ldx, int32_t x_type, int64_t m, int64_t ldy) const {
        const size_t x_bytes = size_t(m * ldx) * (x_type == QE_CODE_F32 ? 4 : 1), work = qe_linear_workspace(handle, m, x_type);
        EXPECT_GT(work, 0u);
        std::vector<Y> y(size_t(m * ldy), Y(85));
        Memory in(d, x_bytes, x), out(d, y.size() * sizeof(Y), y.data()), space(d, work);
        qe_linear_args a = {};
        a.struct_size = sizeof a;
        a.m = m, a.x = in.data, a.ldx = ldx, a.x_type = x_type, a.y = out.data, a.ldy = ldy;
        a.workspace = space.data, a.workspace_bytes = work;
        EXPECT_EQ(qe_linear_run(handle, &a, &err), QE_OK) << err.message;
        out.copy(y.data(), out.data);
        return y;
    }
};

std::shared_ptr<qe_device> open(int backend, const char *isa = nullptr) {
    qe_test::HeldBack held(isa);
    qe_device_options o = {};
    o.struct_size = sizeof o;
    o.backend = backend, o.threads = 2;
    qe_device *d = nullptr;
    qe_error err{};
    if (qe_device_create(&o, &d, &err)) return nullptr;
    return {d, qe_device_destroy};
}

// The definition: the exact sum of codes, the rounded bias, one of the two requantizations.
std::vector<int8_t> expected(const Weight &w, const std::vector<int8_t> &x, int64_t ldx, int64_t m, const qe_act &in,
                             const qe_act &out, const float *bias, bool fixed, int64_t ldy) {
    const int64_t n = w.t.n, k = w.t.k;
    std::vector<int8_t> y(size_t(m * ldy), 85);
    const int32_t x_zero = in.zero - 128, y_zero = out.zero - 128;
    const qe_quant &q = w.t.quant;
    for (int64_t c = 0; c < n; c++) {
        const bool levels = q.super != QE_NUM_ONE;
        const float s_w = levels ? qe_num_get(q.super, w.t.super, c) : qe_num_get(q.scale, w.t.scales, q.group_n ? c : 0);
        qe_requant r;
        int32_t b = 0;
        EXPECT_EQ(qe_requant_make(in.scale, s_w, out.scale, &r, nullptr), QE_OK);
        if (bias) {
            EXPECT_EQ(qe_requant_bias(bias[c], in.scale, s_w, &b, nullptr), QE_OK);
        }
        for (int64_t i = 0; i < m; i++) {
            int64_t sum = b;
            for (int64_t j = 0; j < k; j++) // the integer a code stands for, exact in double
                sum += (x[size_t(i * ldx + j)] - x_zero) * int64_t(std::llrint(double(w.dense[size_t(c * k + j)]) / s_w));
            y[size_t(i * ldy + c)] = fixed ? qe_requant_fixed(int32_t(sum), &r, y_zero) : qe_requant_float(int32_t(sum), &r, y_zero);
        }
    }
    return y;
}

TEST(LinearInt8, ChainsOnEveryBackend) {
    int cases = 0;
    const int64_t k = 160, hidden = 100, last = 37;
    for (const auto &s : schemes)
        for (int64_t m : {1, 2, 13, 40})
            for (bool fixed : {false, true}) {
                SCOPED_TRACE(std::string(s.name) + " m " + std::to_string(m) + (fixed ? " fixed" : ""));
                const Weight first(s.quant, hidden, k, 1), second(s.quant, last, hidden, 2);
                const qe_act in = grid(0.02f, 140, s.asymmetric), mid = grid(0.31f, 120, s.asymmetric), out = grid(1.7f, 125, true);
                std::vector<float> x(size_t(m) * k), bias(hidden, 0.0f);
                std::mt19937 rng(3);
                std::normal_distribution<float> normal;
                for (float &v : x) v = normal(rng);
                for (float &v : bias) v = 3 * normal(rng);
                std::vector<int8_t> q(x.size());
                for (size_t i = 0; i < x.size(); i++)
                    q[i] = s.asymmetric ? qe_act_code_asymmetric(x[i], qe_div(1.0f, in.scale), in.zero - 128)
                                        : qe_act_code_symmetric(x[i], qe_div(1.0f, in.scale));
                const auto want1 = expected(first, q, k, m, in, mid, bias.data(), fixed, 103);
                const auto want2 = expected(second, want1, 103, m, mid, out, nullptr, fixed, last);
                EXPECT_GT(std::set<int8_t>(want2.begin(), want2.end()).size(), m * last > 30 ? 20u : 5u);
                std::vector<float> floats; // of a static linear that writes them: the reference's, then everybody's
                for (const auto &b : backends) {
                    auto d = open(b.id, b.isa);
                    if (!d) continue;
                    SCOPED_TRACE(b.name);
                    const uint32_t flags = fixed ? QE_LINEAR_FIXED_POINT : 0;
                    Linear one(d.get(), first, in, &mid, bias.data(), flags), two(d.get(), second, mid, &out, nullptr, flags);
                    ASSERT_EQ(one.status, QE_OK) << one.err.message;
                    ASSERT_EQ(two.status, QE_OK) << two.err.message;
                    EXPECT_TRUE(one.run(d.get(), x.data(), k, QE_CODE_F32, m, 103) == want1);
                    EXPECT_TRUE(one.run(d.get(), q.data(), k, QE_CODE_INT, m, 103) == want1);
                    EXPECT_TRUE(two.run(d.get(), want1.data(), 103, QE_CODE_INT, m, last) == want2);
                    const Linear plain(d.get(), first, in, nullptr, bias.data());
                    const auto y = plain.run<float>(d.get(), q.data(), k, QE_CODE_INT, m, hidden);
                    if (floats.empty()) floats = y;
                    EXPECT_EQ(memcmp(y.data(), floats.data(), y.size() * sizeof(float)), 0);
                    EXPECT_EQ(plain.run<float>(d.get(), x.data(), k, QE_CODE_F32, m, hidden), y);
                    cases++;
                }
            }
    printf("%d chains\n", cases);
    EXPECT_GE(cases, 2 * 4 * 2 * 5);
}

TEST(LinearInt8, RefusesWhatHasNoIntegerSumsOrGrid) {
    auto d = open(QE_BACKEND_CPU);
    const Weight rows("int8:channel:f32", 8, 64, 1), groups("int4:g32:f16", 8, 64, 1);
    const qe_act in = grid(0.02f, 128, false), out = grid(0.5f, 128, false);
    qe_act dynamic = in, bad = out;
    dynamic.mode = QE_ACT_DYNAMIC, dynamic.scale = 0, dynamic.zero = 0, dynamic.quant.group_n = 1;
    bad.scale = 0;
    EXPECT_EQ(Linear(d.get(), groups, in, &out, nullptr).status, QE_E_UNSUPPORTED);
    EXPECT_EQ(Linear(d.get(), rows, dynamic, &out, nullptr).status, QE_E_UNSUPPORTED);
    EXPECT_EQ(Linear(d.get(), rows, in, &bad, nullptr).status, QE_E_ARGUMENT);
    EXPECT_EQ(Linear(d.get(), rows, in, nullptr, nullptr, QE_LINEAR_FIXED_POINT).status, QE_E_ARGUMENT);
    EXPECT_EQ(Linear(d.get(), rows, in, &out, nullptr, QE_LINEAR_RESIDUAL).status, QE_E_ARGUMENT);
    bad.scale = 1e-9f; // a multiplier above 1
    Linear steep(d.get(), rows, in, &bad, nullptr);
    EXPECT_EQ(steep.status, QE_E_RANGE) << steep.err.message;
    Linear floats(d.get(), rows, dynamic, nullptr, nullptr);
    ASSERT_EQ(floats.status, QE_OK) << floats.err.message;
    int8_t x[64] = {};
    float y[8];
    alignas(256) char work[65536];
    qe_linear_args a = {};
    a.struct_size = sizeof a;
    a.m = 1, a.x = x, a.ldx = 64, a.x_type = QE_CODE_INT, a.y = y, a.ldy = 8, a.workspace = work, a.workspace_bytes = sizeof work;
    EXPECT_EQ(qe_linear_run(floats.handle, &a, nullptr), QE_E_ARGUMENT) << "codes for a dynamic grid";
    a.x_type = QE_CODE_F32, a.y_type = QE_CODE_INT;
    EXPECT_EQ(qe_linear_run(floats.handle, &a, nullptr), QE_E_ARGUMENT) << "int8 output of a linear made for floats";
}

} // namespace
