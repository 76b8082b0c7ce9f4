// Observers: streaming, merging, saving, and ranges that agree with those of the values themselves.
#include <cmath>

#include <qengine/quantize.h>
#include "support.h"

using namespace qe_test;

namespace {

struct Observer {
    qe_observer *o = nullptr;
    explicit Observer(int32_t method, float momentum = 0) {
        qe_range_options options;
        memset(&options, 0, sizeof options);
        options.struct_size = sizeof options;
        options.method = method;
        options.momentum = momentum;
        EXPECT_EQ(qe_observer_create(&options, &o, nullptr), QE_OK);
    }
    ~Observer() { qe_observer_destroy(o); }
    Observer(const Observer &) = delete;
    Observer &operator=(const Observer &) = delete;
    qe_observed look() const {
        qe_observed out;
        qe_observer_look(o, &out);
        return out;
    }
};

qe_quant parse(const char *text) {
    qe_quant q;
    EXPECT_EQ(qe_quant_parse(text, &q, nullptr), QE_OK) << text;
    return q;
}

// Batches of growing and falling size, so that the histogram widens more than once.
std::vector<std::vector<float>> batches(int kind) {
    std::vector<std::vector<float>> out;
    Random random(3 + (uint64_t)kind);
    for (int b = 0; b < 12; b++) {
        std::vector<float> x(512);
        float size = kind == 0 ? 1.0f : kind == 1 ? std::ldexp(1.0f, b * 3 - 20) : std::ldexp(1.0f, -b);
        for (float &v : x) v = random.below(20) ? size * random.normal() : 0.0f;
        if (kind == 2) x[5] = b == 6 ? 500.0f : 1e-42f;
        out.push_back(x);
    }
    return out;
}

TEST(Observer, StreamingEqualsAScanAndMergingEqualsStreaming) {
    for (int kind = 0; kind < 3; kind++) {
        std::vector<std::vector<float>> data = batches(kind);
        Observer all(QE_RANGE_MOVING, 0.9f);
        float low = 0, high = 0;
        double moving_low = 0, moving_high = 0, sum_abs = 0;
        for (size_t b = 0; b < data.size(); b++) {
            ASSERT_EQ(qe_observer_add(all.o, data[b].data(), 8, 64, 64, nullptr), QE_OK);
            float l = data[b][0], h = l;
            for (float v : data[b]) l = std::fmin(l, v), h = std::fmax(h, v), sum_abs += std::fabs((double)v);
            low = b ? std::fmin(low, l) : l, high = b ? std::fmax(high, h) : h;
            double c = (double)0.9f;
            moving_low = b ? c * moving_low + (1 - c) * l : l;
            moving_high = b ? c * moving_high + (1 - c) * h : h;
        }
        qe_observed seen = all.look();
        EXPECT_EQ(seen.low, low);
        EXPECT_EQ(seen.high, high);
        EXPECT_EQ(seen.count, 12u * 512u);
        EXPECT_NEAR(seen.moving_low, moving_low, 1e-6 * std::fabs(moving_low));
        EXPECT_NEAR(seen.moving_high, moving_high, 1e-6 * std::fabs(moving_high));
        EXPECT_NEAR(seen.sum_abs, sum_abs, 1e-12 * sum_abs);
        // The histogram by its definition.
        std::vector<uint64_t> positive(QE_OBSERVER_BINS), negative(QE_OBSERVER_BINS);
        for (const std::vector<float> &x : data) {
            for (float v : x) {
                size_t at = (size_t)std::floor(std::ldexp(std::fabs((double)v), -seen.bin_log2));
                ASSERT_LT(at, (size_t)QE_OBSERVER_BINS);
                (v < 0 ? negative : positive)[at]++;
            }
        }
        EXPECT_EQ(memcmp(positive.data(), seen.positive, positive.size() * 8), 0) << kind;
        EXPECT_EQ(memcmp(negative.data(), seen.negative, negative.size() * 8), 0) << kind;
        for (size_t cut = 0; cut <= data.size(); cut++) {
            Observer a(QE_RANGE_MOVING, 0.9f), b(QE_RANGE_MOVING, 0.9f);
            for (size_t i = 0; i < data.size(); i++)
                ASSERT_EQ(qe_observer_add(i < cut ? a.o : b.o, data[i].data(), 8, 64, 64, nullptr), QE_OK);
            ASSERT_EQ(qe_observer_merge(a.o, b.o, nullptr), QE_OK);
            qe_observed merged = a.look();
            EXPECT_EQ(merged.low, seen.low);
            EXPECT_EQ(merged.high, seen.high);
            EXPECT_EQ(merged.count, seen.count);
            EXPECT_EQ(merged.batches, seen.batches);
            EXPECT_EQ(merged.bin_log2, seen.bin_log2);
            EXPECT_EQ(memcmp(merged.positive, seen.positive, QE_OBSERVER_BINS * 8), 0);
            EXPECT_EQ(memcmp(merged.negative, seen.negative, QE_OBSERVER_BINS * 8), 0);
            EXPECT_NEAR(merged.sum, seen.sum, 1e-12 * seen.sum_abs);
            EXPECT_NEAR(merged.sum_abs, seen.sum_abs, 1e-12 * seen.sum_abs);
            EXPECT_NEAR(merged.sum_squares, seen.sum_squares, 1e-12 * seen.sum_squares);
            EXPECT_NEAR(merged.moving_high, seen.moving_high, 1e-6 * std::fabs(seen.moving_high));
        }
    }
}

TEST(Observer, RangesAgreeWithThoseOfTheValues) {
    Random random(12);
    std::vector<float> x(40000);
    for (float &v : x) v = random.normal() * (random.below(300) ? 1.0f : 8.0f);
    Observer seen(QE_RANGE_MINMAX);
    for (int b = 0; b < 4; b++) ASSERT_EQ(qe_observer_add(seen.o, x.data() + b * 10000, 100, 100, 100, nullptr), QE_OK);
    for (const char *name : {"int8:tensor:f32", "int4:tensor:f32", "int8:tensor:f32:z=u8"}) {
        qe_quant q = parse(name);
        for (int method : {QE_RANGE_MINMAX, QE_RANGE_PERCENTILE, QE_RANGE_MSE, QE_RANGE_OCTAV}) {
            qe_range_options o;
            memset(&o, 0, sizeof o);
            o.struct_size = sizeof o;
            o.method = method;
            float low, high, l, h;
            ASSERT_EQ(qe_range_of(x.data(), 400, 100, 100, &q, &o, &low, &high, nullptr), QE_OK);
            ASSERT_EQ(qe_observer_range(seen.o, method, &q, &l, &h, nullptr), QE_OK);
            float slack = method == QE_RANGE_MINMAX ? 0 : method == QE_RANGE_MSE ? 0.1f * high : 0.01f * high;
            EXPECT_NEAR(low, l, slack) << name << " " << qe_range_method_name(method);
            EXPECT_NEAR(high, h, slack) << name << " " << qe_range_method_name(method);
        }
        float l, h;
        ASSERT_EQ(qe_observer_range(seen.o, QE_RANGE_KL, &q, &l, &h, nullptr), QE_OK);
        EXPECT_GT(h, 0);
        qe_act act;
        ASSERT_EQ(qe_observer_act(seen.o, QE_RANGE_MSE, &q, &act, nullptr), QE_OK);
        EXPECT_EQ(act.mode, QE_ACT_STATIC);
        EXPECT_GT(act.scale, 0);
        EXPECT_EQ(qe_quant_check(&act.quant, 3, 100, nullptr), QE_OK);
    }
}

TEST(Observer, SavedFormRoundTripsAndRefusesDamage) {
    for (int method : {QE_RANGE_KL, QE_RANGE_CROSS_ENTROPY}) {
        Observer seen(method);
        std::vector<std::vector<float>> data = batches(0);
        for (size_t b = 0; b < 3; b++) ASSERT_EQ(qe_observer_add(seen.o, data[b].data(), 8, 64, 64, nullptr), QE_OK);
        std::vector<uint8_t> bytes(qe_observer_save(seen.o, nullptr, 0)), again;
        ASSERT_EQ(qe_observer_save(seen.o, bytes.data(), bytes.size()), bytes.size());
        qe_observer *loaded;
        qe_error err;
        ASSERT_TRUE(is_ok(qe_observer_load(bytes.data(), bytes.size(), &loaded, &err), err));
        // Going on from the copy gives the bytes of going on from the original.
        ASSERT_EQ(qe_observer_add(seen.o, data[5].data(), 8, 64, 64, nullptr), QE_OK);
        ASSERT_EQ(qe_observer_add(loaded, data[5].data(), 8, 64, 64, nullptr), QE_OK);
        std::vector<uint8_t> a(qe_observer_save(seen.o, nullptr, 0)), b(qe_observer_save(loaded, nullptr, 0));
        qe_observer_save(seen.o, a.data(), a.size());
        qe_observer_save(loaded, b.data(), b.size());
        EXPECT_EQ(a, b);
        qe_observer_destroy(loaded);
        int refused = 0;
        for (size_t at = 0; at < bytes.size(); at += 997) {
            std::vector<uint8_t> bad = bytes;
            bad[at] ^= 0x41;
            qe_observer *none;
            refused += qe_observer_load(bad.data(), bad.size(), &none, nullptr) != QE_OK;
        }
        EXPECT_EQ(refused, (int)((bytes.size() + 996) / 997));
        for (size_t cut : {(size_t)0, (size_t)7, bytes.size() / 2, bytes.size() - 1}) {
            qe_observer *none;
            EXPECT_TRUE(has_status(qe_observer_load(bytes.data(), cut, &none, &err), QE_E_TRUNCATED, err));
        }
    }
}

TEST(Observer, RefusalsNameWhatIsWrong) {
    Observer seen(QE_RANGE_MINMAX), other(QE_RANGE_KL);
    qe_quant q = parse("int8:tensor:f32");
    float low, high;
    qe_error err;
    EXPECT_TRUE(has_status(qe_observer_range(seen.o, -1, &q, &low, &high, &err), QE_E_STATE, err));
    std::vector<float> x(64, 1.0f);
    x[8 * 3 + 2] = INFINITY;
    EXPECT_TRUE(has_status(qe_observer_add(seen.o, x.data(), 8, 8, 8, &err), QE_E_VALUE, err));
    EXPECT_NE(std::string(err.message).find("row 3, column 2"), std::string::npos) << err.message;
    EXPECT_EQ(seen.look().count, 0u);
    EXPECT_TRUE(has_status(qe_observer_merge(seen.o, other.o, &err), QE_E_MISMATCH, err));
    std::vector<float> zeros(64, 0.0f);
    ASSERT_EQ(qe_observer_add(seen.o, zeros.data(), 8, 8, 8, nullptr), QE_OK);
    for (int method : {QE_RANGE_MINMAX, QE_RANGE_PERCENTILE, QE_RANGE_MSE, QE_RANGE_KL, QE_RANGE_OCTAV}) {
        qe_act act;
        ASSERT_EQ(qe_observer_act(seen.o, method, &q, &act, nullptr), QE_OK) << method;
        EXPECT_EQ(act.scale, 1.0f);
    }
}

}  // namespace
