// What surrounds rounding: column scales, rotations, mixed precision, fake quantization, static requantization.
#include <cmath>

#include <qengine/quantize.h>
#include "support.h"

using namespace qe_test;

namespace {

qe_quant parse(const char *text) {
    qe_quant q;
    EXPECT_EQ(qe_quant_parse(text, &q, nullptr), QE_OK) << text;
    return q;
}

struct Smooth {
    const int64_t n = 64, k = 256, tokens = 128;
    std::vector<float> w = std::vector<float>((size_t)(n * k)), x = std::vector<float>((size_t)(tokens * k));
    std::vector<float> absmax = std::vector<float>((size_t)k), s = std::vector<float>((size_t)k);
    std::vector<double> sum_abs = std::vector<double>((size_t)k);
    qe_calibration c{};
    qe_linears l{};
    const float *ws[1];
    Smooth() {
        Random random(31);
        for (float &v : w) v = 0.02f * random.normal();
        for (size_t i = 0; i < x.size(); i++) x[i] = random.normal() * (i % (size_t)k % 43 == 3 ? 40.0f : 1.0f);
        EXPECT_EQ(qe_columns_add(absmax.data(), sum_abs.data(), k, x.data(), tokens, k, nullptr), QE_OK);
        c.x = x.data(), c.x_rows = tokens, c.ldx = k;
        ws[0] = w.data();
        l = {1, ws, &n, &k, k};
    }
    float search(const char *scheme, const char *input, int by_weights, float alpha_given, double *error) {
        qe_quant q = parse(scheme);
        qe_act act{};
        if (input) act.quant = parse(input), act.mode = QE_ACT_DYNAMIC;
        qe_smooth_options o;
        memset(&o, 0, sizeof o);
        o.struct_size = sizeof o;
        o.by_weights = by_weights;
        o.alpha = alpha_given;
        float alpha = -1;
        qe_error err;
        EXPECT_TRUE(is_ok(qe_smooth_search(&l, &c, absmax.data(), sum_abs.data(), tokens, &q, input ? &act : nullptr,
                                           &o, s.data(), &alpha, error, &err), err));
        return alpha;
    }
};

TEST(AlgoTransforms, AwqAndSmoothQuantLowerTheOutputsError) {
    Smooth m;
    double none, awq, smooth, plain;
    m.search("int4:g128:f16", nullptr, 0, 1e-9f, &none);              // all scales 1
    float a = m.search("int4:g128:f16", nullptr, 0, 0, &awq);
    EXPECT_GT(a, 0);
    EXPECT_LT(awq, 0.8 * none);
    // The error it reports is that of rounding W s and dividing by s.
    std::vector<float> scaled = m.w;
    qe_columns_scale(scaled.data(), m.n, m.k, m.k, m.s.data(), 0);
    qe_quant q = parse("int4:g128:f16");
    std::vector<char> memory(qe_qtensor_bytes(&q, m.n, m.k, 0) + 64);
    qe_qtensor t;
    void *block = (void *)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
    ASSERT_EQ(qe_qtensor_place(&t, &q, m.n, m.k, 0, block, memory.size() - 64, nullptr), QE_OK);
    ASSERT_EQ(qe_quantize(scaled.data(), m.k, 0, &t, nullptr), QE_OK);
    ASSERT_EQ(qe_dequantize(&t, 0, m.n, scaled.data(), m.k, nullptr), QE_OK);
    qe_columns_scale(scaled.data(), m.n, m.k, m.k, m.s.data(), 1);
    double by_hand = 0;
    for (int64_t r = 0; r < m.tokens; r++) {
        for (int64_t i = 0; i < m.n; i++) {
            double y = 0;
            for (int64_t j = 0; j < m.k; j++)
                y += ((double)m.w[(size_t)(i * m.k + j)] - scaled[(size_t)(i * m.k + j)]) * m.x[(size_t)(r * m.k + j)];
            by_hand += y * y / (double)(m.tokens * m.n);
        }
    }
    EXPECT_NEAR(by_hand, awq, 1e-3 * awq);
    const char *token = "int8:channel:f32";
    float b = m.search(token, token, 1, 0, &smooth);
    EXPECT_GT(b, 0);
    m.search(token, token, 0, 1e-9f, &plain);
    EXPECT_LT(smooth, 0.3 * plain);
    printf("AWQ alpha %.2f: %.3f of the plain error; SmoothQuant alpha %.2f: %.3f\n", (double)a, awq / none, (double)b,
           smooth / plain);
    qe_error err;
    m.c.x_rows = 0;
    EXPECT_TRUE(has_status(qe_smooth_search(&m.l, &m.c, m.absmax.data(), m.sum_abs.data(), m.tokens, &q, nullptr,
                                            nullptr, m.s.data(), nullptr, nullptr, &err), QE_E_STATE, err));
}

TEST(AlgoTransforms, HadamardIsOrthonormalAndUndone) {
    int blocks = 0;
    for (int64_t block : {1, 2, 64, 256, 12, 20, 28, 24, 36, 44, 76, 108, 140, 352, 2048, 5632}) {
        for (uint64_t seed : {0u, 9u}) {
            const int64_t rows = 3, k = block * 2;
            Random random((uint64_t)block);
            std::vector<float> x((size_t)(rows * k)), y;
            for (float &v : x) v = random.normal();
            y = x;
            qe_error err;
            ASSERT_TRUE(is_ok(qe_hadamard(y.data(), rows, k, k, block, seed, 0, nullptr, &err), err)) << block;
            for (int64_t a = 0; a < rows; a++) {                      // inner products stay
                for (int64_t b = 0; b <= a; b++) {
                    double before = 0, after = 0;
                    for (int64_t c = 0; c < k; c++) {
                        before += (double)x[(size_t)(a * k + c)] * x[(size_t)(b * k + c)];
                        after += (double)y[(size_t)(a * k + c)] * y[(size_t)(b * k + c)];
                    }
                    EXPECT_NEAR(before, after, 1e-5 * (double)k) << block;
                }
            }
            std::vector<float> z = y;
            ASSERT_EQ(qe_hadamard(z.data(), rows, k, k, block, seed, 1, nullptr, nullptr), QE_OK);
            for (size_t i = 0; i < x.size(); i++) ASSERT_NEAR(z[i], x[i], 2e-5) << block;
            std::vector<float> unit((size_t)k);                       // every entry is +-1 / sqrt(block)
            unit[(size_t)(block - 1)] = 1;
            ASSERT_EQ(qe_hadamard(unit.data(), 1, k, k, block, seed, 0, nullptr, nullptr), QE_OK);
            for (int64_t c = 0; c < block; c++)
                ASSERT_NEAR(std::fabs(unit[(size_t)c]) * std::sqrt((double)block), 1, 1e-5) << block;
            blocks++;
        }
    }
    EXPECT_EQ(blocks, 32);
    EXPECT_EQ(qe_hadamard_block(4096), 4096);
    EXPECT_EQ(qe_hadamard_block(5632), 5632);
    EXPECT_EQ(qe_hadamard_block(14336), 14336);
    EXPECT_EQ(qe_hadamard_block(7), 1);
    std::vector<float> x(64);
    EXPECT_EQ(qe_hadamard(x.data(), 1, 64, 64, 48, 0, 0, nullptr, nullptr), QE_E_ARGUMENT);
}

TEST(AlgoTransforms, RotationLowersTheErrorOfOutliers) {
    Random random(40);
    const int64_t n = 32, k = 512;
    std::vector<float> w((size_t)(n * k)), v;
    for (float &x : w) x = random.normal() * (random.below(64) ? 1.0f : 20.0f);
    qe_quant q = parse("int4:channel:f32");
    double error[2] = {0, 0};
    for (int rotated = 0; rotated < 2; rotated++) {
        v = w;
        if (rotated) {
            ASSERT_EQ(qe_hadamard(v.data(), n, k, k, 512, 7, 0, nullptr, nullptr), QE_OK);
        }
        std::vector<char> memory(qe_qtensor_bytes(&q, n, k, 0) + 64);
        qe_qtensor t;
        void *block = (void *)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
        ASSERT_EQ(qe_qtensor_place(&t, &q, n, k, 0, block, memory.size() - 64, nullptr), QE_OK);
        ASSERT_EQ(qe_quantize(v.data(), k, 0, &t, nullptr), QE_OK);
        ASSERT_EQ(qe_dequantize(&t, 0, n, v.data(), k, nullptr), QE_OK);
        if (rotated) {
            ASSERT_EQ(qe_hadamard(v.data(), n, k, k, 512, 7, 1, nullptr, nullptr), QE_OK);
        }
        for (size_t i = 0; i < w.size(); i++) error[rotated] += ((double)w[i] - v[i]) * ((double)w[i] - v[i]);
    }
    EXPECT_LT(error[1], 0.5 * error[0]);
}

TEST(AlgoTransforms, MixedPrecisionEqualsExhaustiveSearch) {
    for (uint64_t seed = 1; seed <= 40; seed++) {
        Random random(seed);
        const int layers = 6, count = 4;
        std::vector<qe_choice> choices((size_t)(layers * count));
        for (qe_choice &c : choices) {
            c.cost = random.below(20) ? (int64_t)random.below(1000) : -1;
            c.loss = (double)random.uniform();
        }
        for (int l = 0; l < layers; l++) choices[(size_t)(l * count)].cost = random.below(1000);
        int64_t budget = 1000 + random.below(2500), cost;
        double best = INFINITY, loss;
        for (int code = 0; code < 4096; code++) {
            int64_t sum = 0;
            double total = 0;
            bool ok = true;
            for (int l = 0; l < layers; l++) {
                const qe_choice &c = choices[(size_t)(l * count + (code >> (2 * l) & 3))];
                ok = ok && c.cost >= 0;
                sum += c.cost, total += c.loss;
            }
            if (ok && sum <= budget && total < best) best = total;
        }
        int32_t picked[layers];
        qe_error err;
        qe_status status = qe_mixed_solve(choices.data(), layers, count, budget, picked, &cost, &loss, &err);
        if (best == INFINITY) {
            EXPECT_TRUE(has_status(status, QE_E_LIMIT, err));
            continue;
        }
        ASSERT_TRUE(is_ok(status, err)) << seed;
        EXPECT_DOUBLE_EQ(loss, best) << seed;
        EXPECT_LE(cost, budget);
        int64_t sum = 0;
        for (int l = 0; l < layers; l++) sum += choices[(size_t)(l * count + picked[l])].cost;
        EXPECT_EQ(sum, cost);
    }
}

// y against its definition; dx straight through; dscale against a finite difference of the loss where rounding does not
// jump: with q frozen, y = s (q - z), and x / s enters by the straight-through rule.
TEST(AlgoTransforms, FakeQuantizeGradients) {
    Random random(50);
    const int64_t n = 5, k = 70;
    std::vector<float> x((size_t)(n * k)), dy(x.size()), y(x.size()), dx(x.size());
    for (float &v : x) v = random.normal();
    for (float &v : dy) v = random.normal();
    for (int with_zero = 0; with_zero < 2; with_zero++) {
        std::vector<float> scale((size_t)(n * 3), 0.11f), zero((size_t)(n * 3), with_zero ? 2.0f : 0.0f);
        for (size_t g = 0; g < scale.size(); g++) scale[g] *= 1 + 0.1f * (float)g;
        qe_fake_quant f = {n, k, 1, 32, -8, 7, scale.data(), with_zero ? zero.data() : nullptr};
        std::vector<double> ds(scale.size()), dz(scale.size());
        ASSERT_EQ(qe_fake_quantize_forward(&f, x.data(), y.data(), nullptr), QE_OK);
        ASSERT_EQ(qe_fake_quantize_backward(&f, x.data(), dy.data(), 0, dx.data(), ds.data(), dz.data(), nullptr),
                  QE_OK);
        std::vector<double> want_s(ds.size()), want_z(dz.size());
        int outside = 0;
        for (int64_t r = 0; r < n; r++) {
            for (int64_t c = 0; c < k; c++) {
                size_t i = (size_t)(r * k + c), g = (size_t)(r * 3 + c / 32);
                double s = scale[g], z = zero[g], u = (double)(x[i] / scale[g] + zero[g]);
                double q = std::fmin(7, std::fmax(-8, std::nearbyint(u)));
                EXPECT_NEAR(y[i], s * (q - z), 1e-6);
                bool in = u >= -8 && u <= 7;
                EXPECT_EQ(dx[i], in ? dy[i] : 0.0f);
                outside += !in;
                // Central differences of s * (round(x/s + z) - z), with round(v) taken as v + constant inside.
                auto loss = [&](double t, double zz) {
                    double v = in ? x[i] / t + zz + (q - (x[i] / s + z)) : q;
                    return dy[i] * t * (v - zz);
                };
                double h = 1e-5;
                want_s[g] += (loss(s + h, z) - loss(s - h, z)) / (2 * h);
                want_z[g] += (loss(s, z + h) - loss(s, z - h)) / (2 * h);
            }
        }
        EXPECT_GT(outside, 5);
        for (size_t g = 0; g < ds.size(); g++) {
            EXPECT_NEAR(ds[g], want_s[g], 1e-4 * (1 + std::fabs(want_s[g]))) << g;
            EXPECT_NEAR(dz[g], want_z[g], 1e-4 * (1 + std::fabs(want_z[g]))) << g;
        }
        std::vector<double> lsq(ds.size());
        ASSERT_EQ(qe_fake_quantize_backward(&f, x.data(), dy.data(), 1, dx.data(), lsq.data(), nullptr, nullptr),
                  QE_OK);
        EXPECT_NEAR(lsq[0], ds[0] / std::sqrt(32.0 * 7), 1e-9);
        EXPECT_NEAR(lsq[2], ds[2] / std::sqrt(6.0 * 7), 1e-9);        // the short last group
    }
    float bad = 0;
    qe_fake_quant f = {1, 1, 0, 0, -8, 7, &bad, nullptr};
    EXPECT_EQ(qe_fake_quantize_forward(&f, x.data(), y.data(), nullptr), QE_E_VALUE);
}

TEST(AlgoTransforms, RequantizationByItsDefinition) {
    Random random(60);
    int differ = 0, total = 0;
    for (int i = 0; i < 2000; i++) {
        float sx = std::exp(random.uniform(-8, 0)), sw = std::exp(random.uniform(-8, -2));
        float sy = std::exp(random.uniform(-3, 3));
        qe_requant r;
        qe_error err;
        double m = (double)sx * sw / sy;
        if (m >= 1) continue;
        ASSERT_TRUE(is_ok(qe_requant_make(sx, sw, sy, &r, &err), err));
        EXPECT_EQ(r.multiplier, (float)m);
        EXPECT_GE(r.shift, 31);
        EXPECT_LE(r.shift, 62);
        EXPECT_NEAR(std::ldexp((double)r.fixed, -r.shift), m, m * 0x1p-30);
        for (int j = 0; j < 50; j++, total++) {
            int32_t acc = (int32_t)(random.bits() >> 32) >> random.below(24), zero = random.between(-128, 127);
            double v = std::nearbyint((double)((float)acc * r.multiplier)) + zero;
            ASSERT_EQ(qe_requant_float(acc, &r, zero), (int)std::fmin(127, std::fmax(-128, v)));
            __int128 exact = ((__int128)acc * r.fixed + ((__int128)1 << (r.shift - 1))) >> r.shift;
            int64_t want = (int64_t)exact + zero;
            ASSERT_EQ(qe_requant_fixed(acc, &r, zero), (int)(want < -128 ? -128 : want > 127 ? 127 : want));
            int d = qe_requant_fixed(acc, &r, zero) - qe_requant_float(acc, &r, zero);
            ASSERT_LE(std::abs(d), 1);
            differ += d != 0;
        }
    }
    EXPECT_LT(differ, total / 100);
    qe_requant r;
    qe_error err;
    EXPECT_TRUE(has_status(qe_requant_make(1, 1, 0.5f, &r, &err), QE_E_RANGE, err));
    EXPECT_TRUE(has_status(qe_requant_make(0, 1, 1, &r, &err), QE_E_RANGE, err));
    ASSERT_EQ(qe_requant_make(1e-20f, 1e-3f, 1, &r, &err), QE_OK);     // far below 2^-62
    EXPECT_EQ(qe_requant_fixed(INT32_MIN, &r, 5), 5);
    ASSERT_EQ(qe_requant_make(0.99999994f, 1, 1, &r, &err), QE_OK);
    EXPECT_EQ(r.shift, 31);
    EXPECT_EQ(qe_requant_fixed(INT32_MAX, &r, 0), 127);
    int32_t bias;
    ASSERT_EQ(qe_requant_bias(-1.5f, 0.5f, 0.25f, &bias, &err), QE_OK);
    EXPECT_EQ(bias, -12);
    EXPECT_TRUE(has_status(qe_requant_bias(1e9f, 1e-4f, 1e-4f, &bias, &err), QE_E_RANGE, err));
}

}  // namespace
