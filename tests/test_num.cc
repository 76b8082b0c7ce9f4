// Conversions over every value, the activation quantizer's edges, and the functions against long double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <qengine/num.h>

namespace {

// The format's value from its definition, and the nearest code by search over all codes.
double half_value(uint16_t h) {
    int e = h >> 10 & 31, f = h & 1023;
    double v = e == 0 ? std::ldexp(f, -24) : std::ldexp(1024 + f, e - 25);
    return h & 0x8000 ? -v : v;
}

TEST(Num, EveryHalfConvertsExactlyAndBack) {
    for (uint32_t u = 0; u < 65536; u++) {
        uint16_t h = (uint16_t)u;
        float f = qe_f16_to_f32(h);
        if ((h & 0x7c00) == 0x7c00) {
            EXPECT_EQ(std::isnan(f), (h & 0x3ff) != 0) << u;
            EXPECT_EQ(std::isinf(f), (h & 0x3ff) == 0) << u;
        } else {
            ASSERT_EQ((double)f, half_value(h)) << u;
        }
        ASSERT_EQ(std::signbit(f), (h & 0x8000) != 0) << u;
        uint16_t back = qe_f32_to_f16(f);
        ASSERT_TRUE(std::isnan(f) ? (back & 0x7fff) > 0x7c00 : back == h) << u;
    }
}

TEST(Num, HalfRoundsToNearestEvenBetweenAllNeighbors) {
    for (uint32_t u = 0; u < 0x7bff; u++) {
        float a = qe_f16_to_f32((uint16_t)u), b = qe_f16_to_f32((uint16_t)(u + 1)), mid = a + (b - a) * 0.5f;
        ASSERT_EQ(qe_f32_to_f16(mid), u % 2 ? u + 1 : u) << u;
        ASSERT_EQ(qe_f32_to_f16(std::nextafterf(mid, 0.0f)), u) << u;
        ASSERT_EQ(qe_f32_to_f16(std::nextafterf(mid, INFINITY)), u + 1) << u;
        ASSERT_EQ(qe_f32_to_f16(-mid), (u % 2 ? u + 1 : u) | 0x8000) << u;
    }
    EXPECT_EQ(qe_f32_to_f16(65519.996f), 0x7bff);
    EXPECT_EQ(qe_f32_to_f16(65520.0f), 0x7c00);
    EXPECT_EQ(qe_f32_to_f16(-1e30f), 0xfc00);
}

TEST(Num, EveryBfloat16ConvertsExactlyAndRounds) {
    for (uint32_t u = 0; u < 65536; u++) {
        float f = qe_bf16_to_f32((uint16_t)u);
        ASSERT_EQ(qe_f32_bits(f), u << 16);
        if (std::isnan(f)) {
            ASSERT_TRUE((qe_f32_to_bf16(f) & 0x7fff) > 0x7f80) << u;
            continue;
        }
        ASSERT_EQ(qe_f32_to_bf16(f), u);
        if ((u & 0x7fff) >= 0x7f80) continue;
        uint32_t mid = (u << 16) + 0x8000;
        ASSERT_EQ(qe_f32_to_bf16(qe_f32_from_bits(mid)), u + (u & 1)) << u;
        ASSERT_EQ(qe_f32_to_bf16(qe_f32_from_bits(mid - 1)), u) << u;
        ASSERT_EQ(qe_f32_to_bf16(qe_f32_from_bits(mid + 1)), u + 1) << u;
    }
}

TEST(Num, EightBitFormats) {
    for (int u = 0; u < 255; u++) EXPECT_EQ(qe_e8m0_to_f32((uint8_t)u), std::ldexp(1.0, u - 127)) << u;
    EXPECT_TRUE(std::isnan(qe_e8m0_to_f32(255)));
    for (int u = 0; u < 256; u++) {
        float f = qe_e4m3_to_f32((uint8_t)u);
        if ((u & 127) == 127) {
            EXPECT_TRUE(std::isnan(f)) << u;
            continue;
        }
        int e = u >> 3 & 15, m = u & 7;
        double v = e ? std::ldexp(8 + m, e - 10) : std::ldexp(m, -9);
        EXPECT_EQ((double)f, u & 128 ? -v : v) << u;
        EXPECT_EQ(qe_f32_to_e4m3(f), u) << u;
        if ((u & 127) >= 126) continue;
        float next = qe_e4m3_to_f32((uint8_t)(u + 1)), mid = f + (next - f) * 0.5f;
        EXPECT_EQ(qe_f32_to_e4m3(mid), u + (u & 1)) << u;
        EXPECT_EQ(qe_f32_to_e4m3(std::nextafterf(mid, f)), u) << u;
    }
    EXPECT_EQ(qe_f32_to_e4m3(1e9f), 0x7e);
    EXPECT_EQ(qe_e5m2_to_f32(0x7b), 57344.0f);
}

TEST(Num, RoundHalfToEvenEqualsRint) {
    for (int i = -4000; i <= 4000; i++) {
        float f = (float)i * 0.25f;
        EXPECT_EQ(qe_rne(f), (int32_t)std::nearbyint(f)) << f;
    }
    EXPECT_EQ(qe_rne(4194304.0f), 4194304);
    EXPECT_EQ(qe_rne(-4194303.5f), -4194304);
}

TEST(Num, SymmetricActivations) {
    struct Row {
        std::vector<float> x;
        float scale;
        std::vector<int> q;
    };
    const float nan = std::nanf(""), inf = INFINITY;
    const Row rows[] = {
        {{0, 0, 0}, 1.0f, {0, 0, 0}},
        {{127, -127, 63.5f, 0.5f, 1.5f}, 1.0f, {127, -127, 64, 0, 2}},
        {{0x1p-101f, -0x1p-101f}, 1.0f, {0, 0}},
        {{0x1p-100f, -0x1p-101f}, 0x1p-100f / 127.0f, {127, -64}},
        {{3.4028235e38f, -1e38f}, 3.4028235e38f / 127.0f, {127, -37}},
        {{1, inf}, nan, {0, 0}},
        {{nan, 1}, nan, {0, 0}},
        {{-0.0f, 1e-45f}, 1.0f, {0, 0}},
    };
    for (const Row &row : rows) {
        std::vector<int8_t> q(row.x.size(), 99);
        qe_act_range r = qe_act_quantize_symmetric(row.x.data(), (int64_t)row.x.size(), q.data());
        EXPECT_TRUE(std::isnan(row.scale) ? std::isnan(r.scale) : r.scale == row.scale) << r.scale;
        for (size_t i = 0; i < q.size(); i++) EXPECT_EQ(q[i], row.q[i]) << row.x[0] << " " << i;
    }
}

TEST(Num, SignActivations) {
    struct Row {
        std::vector<float> x;
        float scale;
        std::vector<int> q;
    };
    const float nan = std::nanf(""), inf = INFINITY;
    const Row rows[] = {
        {{0, -0.0f, 0}, 0.0f, {1, 1, 1}},
        {{1, -2, 3, -6}, 3.0f, {1, -1, 1, -1}},
        {{-1e-45f, 1e-45f}, 1e-45f, {-1, 1}},
        {{3e38f, -3e38f}, nan, {1, -1}}, // the sum is infinite
        {{-1, inf}, nan, {-1, 1}},
        {{nan, -1}, nan, {1, -1}},
    };
    for (const Row &row : rows) {
        std::vector<int8_t> q(row.x.size(), 99);
        qe_act_range r = qe_act_quantize_sign(row.x.data(), (int64_t)row.x.size(), q.data());
        EXPECT_TRUE(std::isnan(row.scale) ? std::isnan(r.scale) : r.scale == row.scale) << r.scale;
        for (size_t i = 0; i < q.size(); i++) EXPECT_EQ(q[i], row.q[i]) << row.x[0] << " " << i;
    }
    // Lanes of 512: 2^24 and 1 in one lane round to 2^24, in two lanes as well, but 1 + 1 of two lanes meet first.
    std::vector<float> wide(1024, 0.0f);
    wide[0] = 0x1p24f, wide[1] = 1.0f, wide[3] = -1.0f;
    std::vector<int8_t> q(1024);
    EXPECT_EQ(qe_act_quantize_sign(wide.data(), 1024, q.data()).scale, 0x1.000002p14f);
}

TEST(Num, AsymmetricActivations) {
    const float x[] = {-7.59f, 10.8f, 0.0f};
    int8_t q[3];
    qe_act_range r = qe_act_quantize_asymmetric(x, 3, q);
    EXPECT_EQ(r.zero, -23);
    EXPECT_NEAR(1.0f / r.scale, 13.87f, 0.005f);
    EXPECT_EQ(q[0], -128);
    EXPECT_EQ(q[1], 127);
    EXPECT_EQ(q[2], -23);
    const float bad[] = {1.0f, -INFINITY}, wide[] = {3e38f, -3e38f}, silent[] = {0.0f, 0.0f};
    EXPECT_TRUE(std::isnan(qe_act_quantize_asymmetric(bad, 2, q).scale));
    EXPECT_TRUE(std::isnan(qe_act_quantize_asymmetric(wide, 2, q).scale));
    r = qe_act_quantize_asymmetric(silent, 2, q);
    EXPECT_EQ(r.scale, 1.0f);
    EXPECT_EQ(r.zero, 0);
}

// Distance in units of the last place of the result, or the absolute error over `unit` where that is looser.
void expect_close(const char *name, float (*f)(float), long double (*want)(long double), float low, float high,
                  double ulps, double absolute) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(low, high);
    for (int i = 0; i < 200000; i++) {
        float x = uniform(random);
        long double w = want(x);
        float nearest = (float)w;
        double ulp = std::max((double)std::nextafterf(std::fabs(nearest), INFINITY) - std::fabs(nearest), 1.5e-45);
        ASSERT_LE((double)std::fabs((long double)f(x) - w), std::max(ulps * ulp, absolute)) << name << "(" << x << ")";
    }
}

TEST(Num, Functions) {
    expect_close("exp", qe_exp, [](long double x) { return std::exp(x); }, -87.0f, 88.7f, 2.0, 0);
    expect_close("exp", qe_exp, [](long double x) { return std::exp(x); }, -1.0f, 1.0f, 2.0, 0);
    expect_close("exp subnormal", qe_exp, [](long double x) { return std::exp(x); }, -104.0f, -87.0f, 2.0, 0);
    expect_close("tanh", qe_tanh, [](long double x) { return std::tanh(x); }, -10.0f, 10.0f, 2.0, 0);
    expect_close("tanh", qe_tanh, [](long double x) { return std::tanh(x); }, -0.7f, 0.7f, 2.0, 0);
    expect_close("sigmoid", qe_sigmoid, [](long double x) { return 1 / (1 + std::exp(-x)); }, -80.0f, 80.0f, 4.0, 0);
    expect_close("silu", qe_silu, [](long double x) { return x / (1 + std::exp(-x)); }, -80.0f, 80.0f, 4.0, 0);
    expect_close("gelu", qe_gelu, [](long double x) { return x / 2 * (1 + std::erf(x / std::sqrt(2.0L))); }, -12.0f,
                 12.0f, 8.0, 4e-6);
    expect_close("gelu_tanh", qe_gelu_tanh,
                 [](long double x) {
                     long double c = std::sqrt(2.0L / 3.14159265358979323846L);
                     return x / 2 * (1 + std::tanh(c * (x + 0.044715L * x * x * x)));
                 },
                 -12.0f, 12.0f, 8.0, 2e-6);
    EXPECT_EQ(qe_exp(-200.0f), 0.0f);
    EXPECT_EQ(qe_exp(100.0f), INFINITY);
    EXPECT_TRUE(std::isnan(qe_exp(std::nanf(""))));
    EXPECT_EQ(qe_exp(0.0f), 1.0f);
    EXPECT_EQ(qe_tanh(50.0f), 1.0f);
    EXPECT_EQ(qe_rsqrt(4.0f), 0.5f);
}

}  // namespace
