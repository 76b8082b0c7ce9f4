// Range methods on values and histograms: golden scales, exact sorts, a plain KL, OCTAV and MSE optima, logits.
#include <algorithm>
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

qe_range_options with(int32_t method) {
    qe_range_options o;
    memset(&o, 0, sizeof o);
    o.struct_size = sizeof o;
    o.method = method;
    return o;
}

enum { KINDS = 10 };
std::vector<float> values(int kind, size_t count, uint64_t seed) {
    Random random(seed);
    std::vector<float> x(count);
    for (float &v : x) {
        v = random.normal();
        if (kind == 1) v = v * v * v;                                  // long tails
        if (kind == 2 && random.below(1000) == 0) v *= 60.0f;          // outliers
        if (kind == 3) v = std::fabs(v) * 0.1f + 2.0f;                 // one sign
        if (kind == 4) v = random.below(2) ? 1.0f : -1.0f;
        if (kind == 5) v = random.below(10) ? 0.0f : v;                // a spike at 0
        if (kind == 6) v = v * v * v * v * v;                          // tails that min-max does better with than a model
        if (kind == 7) v = &v == &x[0] ? 1.0f : 1e-3f;                 // one loud value
        if (kind == 8) v = 0.25f;
        if (kind == 9) v = 0.0f;
    }
    return x;
}

qe_status range_of(const std::vector<float> &x, const qe_quant &q, const qe_range_options &o, float *low, float *high) {
    return qe_range_of(x.data(), 1, (int64_t)x.size(), (int64_t)x.size(), &q, &o, low, high, nullptr);
}

double error_of(const std::vector<float> &x, float low, float high, const qe_quant &q) {
    float s;
    int32_t z;
    qe_range_scale(low, high, &q, nullptr, &s, &z);
    int top = (1 << q.bits) - 1;
    double sum = 0;
    for (float v : x) {
        float c = std::nearbyintf(v / s) + (float)z;
        c = std::fmin((float)top, std::fmax(q.zero == QE_ZERO_CONST ? 1.0f : 0.0f, c));
        double e = v - s * (c - (float)z);
        sum += e * e;
    }
    return sum;
}

TEST(Range, GoldenScales) {
    float s;
    int32_t z;
    qe_quant symmetric = parse("int8:tensor:f32"), asymmetric = parse("int8:tensor:f32:z=u8");
    qe_range_scale(-7.59f, 10.8f, &symmetric, nullptr, &s, &z);
    EXPECT_NEAR(1 / s, 11.76, 0.005);
    EXPECT_EQ(z, 128);
    qe_range_scale(-7.59f, 10.8f, &asymmetric, nullptr, &s, &z);
    EXPECT_NEAR(1 / s, 13.87, 0.005);
    EXPECT_EQ(z - 128, -23);
    qe_range_scale(0, 0, &symmetric, nullptr, &s, &z);
    EXPECT_EQ(s, 1.0f);
    qe_range_options o = with(QE_RANGE_MINMAX);
    o.power_of_two = 1;
    qe_range_scale(-7.59f, 10.8f, &symmetric, &o, &s, &z);
    EXPECT_EQ(s, 0.125f);                                              // the smallest power not below 10.8 / 127
}

TEST(Range, ExtremesAndPercentilesEqualAScanAndASort) {
    qe_quant symmetric = parse("int8:tensor:f32"), asymmetric = parse("int8:tensor:f32:z=u8");
    for (int kind = 0; kind < 5; kind++) {
        std::vector<float> x = values(kind, 10007, 5), sorted = x, sizes = x;
        std::sort(sorted.begin(), sorted.end());
        for (float &v : sizes) v = std::fabs(v);
        std::sort(sizes.begin(), sizes.end());
        float low, high;
        qe_range_options o = with(QE_RANGE_MINMAX);
        ASSERT_EQ(range_of(x, symmetric, o, &low, &high), QE_OK);
        EXPECT_EQ(low, std::fmin(0.0f, sorted.front()));
        EXPECT_EQ(high, std::fmax(0.0f, sorted.back()));
        for (float p : {90.0f, 99.0f, 99.9f, 100.0f}) {
            o = with(QE_RANGE_PERCENTILE);
            o.percentile = p;
            auto rank = [&](double percent) {
                double r = std::ceil(percent / 100.0 * (double)x.size()) - 1;
                return (size_t)std::fmax(0.0, r);
            };
            ASSERT_EQ(range_of(x, symmetric, o, &low, &high), QE_OK);
            float t = sizes[rank((double)p)];
            EXPECT_EQ(high, std::fmax(0.0f, std::fmin(t, sorted.back()))) << kind << " " << p;
            EXPECT_EQ(low, std::fmin(0.0f, std::fmax(-t, sorted.front()))) << kind << " " << p;
            ASSERT_EQ(range_of(x, asymmetric, o, &low, &high), QE_OK);
            EXPECT_EQ(high, std::fmax(0.0f, sorted[rank((double)p)])) << kind << " " << p;
            EXPECT_EQ(low, std::fmin(0.0f, sorted[rank(100.0 - (double)p)])) << kind << " " << p;
        }
    }
}

// The optimum is MSE's with 1000 steps down to a five-hundredth of the extremes; OCTAV measures a twentieth as often.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
const int kDraws = 1;
#else
const int kDraws = 4; // of every kind of values
#endif

TEST(Range, MseIsNeverWorseAndOctavIsWithinOnePercentOfIt) {
    int cases = 0, bad = 0;
    double worst = 1;
    const int64_t count = 4000;
    for (const char *name : {"int8:tensor:f32", "int6:tensor:f32", "int4:tensor:f32", "int3:tensor:f32", "int2:tensor:f32",
                             "int4:tensor:f32:z=u8", "int8:tensor:f32:z=u8"}) {
        qe_quant q = parse(name);
        for (int i = 0; i < kDraws * KINDS; i++, cases++) {
            int kind = i % KINDS;
            std::vector<float> x = values(kind, (size_t)count, 6 + (uint64_t)i);
            float low, high, l, h;
            qe_range_options o = with(QE_RANGE_MINMAX);
            ASSERT_EQ(qe_range_of(x.data(), 1, count, count, &q, &o, &low, &high, nullptr), QE_OK);
            double plain = error_of(x, low, high, q), best = plain;
            for (bool dense : {false, true}) {
                o = with(QE_RANGE_MSE);
                if (dense) o.steps = 1000, o.least_ratio = 0.002f;
                ASSERT_EQ(qe_range_of(x.data(), 1, count, count, &q, &o, &l, &h, nullptr), QE_OK);
                best = error_of(x, l, h, q);
                bad += !(best <= plain * (1 + 1e-6));
            }
            o = with(QE_RANGE_OCTAV);
            ASSERT_EQ(qe_range_of(x.data(), 1, count, count, &q, &o, &l, &h, nullptr), QE_OK);
            double octav = error_of(x, l, h, q);
            bool good = octav <= best * 1.01 + 1e-12;
            bad += !good;
            worst = std::max(worst, best > 1e-9 ? octav / best : 1.0);
            if (!good) printf("%-21s kind %d: OCTAV %.4f of the optimum, min-max %.4f\n", name, kind, octav / best, plain / best);
        }
    }
    printf("%d cases, OCTAV at most %.4f of the optimum\n", cases, worst);
    EXPECT_EQ(bad, 0);
    EXPECT_EQ(cases, 7 * kDraws * KINDS);
}

// The definition, written straight down.
int plain_kl(const std::vector<uint64_t> &h, int levels) {
    double best = INFINITY;
    int chosen = (int)h.size();
    for (int kept = levels; kept <= (int)h.size(); kept++) {
        std::vector<double> p(h.begin(), h.begin() + kept), q((size_t)kept);
        for (size_t i = (size_t)kept; i < h.size(); i++) p[(size_t)kept - 1] += (double)h[i];
        for (int level = 0; level < levels; level++) {
            int from = level * kept / levels, end = (level + 1) * kept / levels, live = 0;
            double mass = 0;
            for (int i = from; i < end; i++) mass += (double)h[(size_t)i], live += h[(size_t)i] > 0;
            for (int i = from; i < end; i++) q[(size_t)i] = h[(size_t)i] ? mass / live : 0;
        }
        double sp = 0, sq = 0, kl = 0;
        for (double v : p) sp += v;
        for (double v : q) sq += v;
        if (sq == 0) continue;
        for (int i = 0; i < kept; i++) {
            if (p[(size_t)i] == 0) continue;
            double share = p[(size_t)i] / sp;
            kl += q[(size_t)i] == 0 ? INFINITY : share * std::log(share / (q[(size_t)i] / sq));
        }
        if (kl < best) best = kl, chosen = kept;
    }
    return chosen;
}

TEST(Range, KlEqualsAPlainReferenceOnFixedHistograms) {
    int clipped = 0;
    for (int kind = 0; kind < 5; kind++) {
        Random random(70 + (uint64_t)kind);
        std::vector<uint64_t> h(2048);
        for (int i = 0; i < 2048; i++) {
            double x = i / 2048.0;
            if (kind == 0) h[(size_t)i] = (uint64_t)(1e6 * std::exp(-40 * x));
            if (kind == 1) h[(size_t)i] = (uint64_t)(1e5 * std::exp(-200 * x * x)) + (i == 2047 ? 3 : 0);
            if (kind == 2) h[(size_t)i] = 1000;
            if (kind == 3) h[(size_t)i] = random.below(50) ? random.below(1000) / (1 + (uint32_t)i / 50) : 0;
            if (kind == 4) h[(size_t)i] = i < 300 ? random.below(5000) : random.below(20) == 0;
        }
        int got = qe_range_kl_bins(h.data(), 2048, 128);
        EXPECT_EQ(got, plain_kl(h, 128)) << kind;
        clipped += got < 2048;
    }
    EXPECT_GT(clipped, 1);
    std::vector<uint64_t> empty(2048);
    EXPECT_EQ(qe_range_kl_bins(empty.data(), 2048, 128), 0);
}

TEST(Range, CrossEntropyKeepsTheTopOfLogitsBetterThanMse) {
    // Peaked logits: many small values, and a few candidates at the top whose order matters.
    const int64_t rows = 64, columns = 512;
    Random random(8);
    std::vector<float> x((size_t)(rows * columns));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c++) x[(size_t)(r * columns + c)] = random.normal() * 0.8f;
        for (int i = 0; i < 4; i++)
            x[(size_t)(r * columns) + random.below((uint32_t)columns)] = 9.0f + 3.0f * random.uniform();
    }
    qe_quant q = parse("int4:tensor:f32");
    int kept[2] = {0, 0};
    double loss[2] = {0, 0};
    for (int method = 0; method < 2; method++) {
        qe_range_options o = with(method ? QE_RANGE_CROSS_ENTROPY : QE_RANGE_MSE);
        float low, high, s;
        int32_t z;
        ASSERT_EQ(qe_range_of(x.data(), rows, columns, columns, &q, &o, &low, &high, nullptr), QE_OK);
        qe_range_scale(low, high, &q, nullptr, &s, &z);
        for (int64_t r = 0; r < rows; r++) {
            const float *row = x.data() + r * columns;
            std::vector<float> v((size_t)columns);
            for (int64_t c = 0; c < columns; c++)
                v[(size_t)c] = s * std::fmin(7.0f, std::fmax(-7.0f, std::nearbyintf(row[c] / s)));
            int64_t top = std::max_element(row, row + columns) - row;
            int ties = 0;
            for (float u : v) ties += u >= v[(size_t)top];
            kept[method] += ties == 1;                                // the winner wins alone
            double a = 0, b = 0, dot = 0;
            for (int64_t c = 0; c < columns; c++) a += std::exp((double)row[c]), b += std::exp((double)v[(size_t)c]);
            for (int64_t c = 0; c < columns; c++) dot += std::exp((double)row[c]) / a * v[(size_t)c];
            loss[method] += std::log(b) - dot;
        }
    }
    printf("top-1 kept alone: %d of 64 by MSE, %d by cross-entropy; cross-entropy %.3f and %.3f\n", kept[0], kept[1],
           loss[0] / rows, loss[1] / rows);
    EXPECT_GE(kept[1], kept[0]);
    EXPECT_LT(loss[1], loss[0]);
}

TEST(Range, RefusalsNameWhatIsWrong) {
    qe_quant q = parse("int8:tensor:f32");
    std::vector<float> x(60, 1.0f);
    float low, high;
    qe_error err;
    EXPECT_TRUE(has_status(qe_range_of(x.data(), 0, 20, 20, &q, nullptr, &low, &high, &err), QE_E_STATE, err));
    x[47] = NAN;
    EXPECT_TRUE(has_status(qe_range_of(x.data(), 3, 20, 20, &q, nullptr, &low, &high, &err), QE_E_VALUE, err));
    EXPECT_NE(std::string(err.message).find("row 2, column 7"), std::string::npos) << err.message;
    qe_range_options o = with(99);
    EXPECT_TRUE(has_status(qe_range_of(x.data(), 3, 20, 20, &q, &o, &low, &high, &err), QE_E_ARGUMENT, err));
    int count = 0;
#define QE_X(name, value, text, what) \
    EXPECT_EQ(qe_range_method_find(text), value); \
    EXPECT_STREQ(qe_range_method_name(value), text); \
    count++;
    QE_RANGE_LIST(QE_X)
#undef QE_X
    EXPECT_EQ(count, 8);
    EXPECT_EQ(qe_range_method_find("nothing"), -1);
}

}  // namespace
