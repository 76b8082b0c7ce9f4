// Rounding methods on layers with correlated inputs: second-order and learned rounding against round to nearest, the
// search of levels, tables, ternary and binary values, and the report.
#include <algorithm>
#include <cmath>
#include <limits>

#include <qengine/num.h>
#include <qengine/quantize.h>
extern "C" {
#include "base/pool.h"
}
#include "support.h"

using namespace qe_test;

namespace {

qe_quant parse(const char *text) {
    qe_quant q;
    qe_error err;
    EXPECT_TRUE(is_ok(qe_quant_parse(text, &q, &err), err)) << text;
    return q;
}

struct Tensor : qe_qtensor {
    std::vector<char> memory;
    Tensor(const qe_quant &q, int64_t rows_, int64_t k_, uint32_t parts = 0) {
        size_t bytes = qe_qtensor_bytes(&q, rows_, k_, parts);
        memory.resize(bytes + 64);
        qe_error err;
        void *block = (void *)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
        EXPECT_TRUE(is_ok(qe_qtensor_place(this, &q, rows_, k_, parts, block, bytes, &err), err));
    }
    std::vector<float> values() const {
        std::vector<float> w((size_t)(n * k));
        EXPECT_EQ(qe_dequantize(this, 0, n, w.data(), k, nullptr), QE_OK);
        return w;
    }
};

enum Kind { GAUSSIAN, OUTLIERS, DEGENERATE };

std::vector<float> weights(int64_t n, int64_t k, Kind kind, uint64_t seed) {
    Random random(seed);
    std::vector<float> w((size_t)(n * k));
    for (float &x : w) x = 0.02f * random.normal();
    for (int64_t r = 0; r < n; r++) {
        for (int64_t c = 0; c < k; c++) {
            float &x = w[(size_t)(r * k + c)];
            if (kind == OUTLIERS && random.below(97) == 0) x *= 30.0f;
            if (kind != DEGENERATE) continue;
            x = r % 4 == 0 ? 0.0f : r % 4 == 1 ? 0.5f : r % 4 == 2 ? 1e-40f : (float)(c % 3) * x;
        }
    }
    return w;
}

// Inputs with strong correlation between columns and a few loud columns, as activations have.
std::vector<float> inputs(int64_t rows, int64_t k, uint64_t seed) {
    Random random(seed);
    const int64_t factors = 24;
    std::vector<float> mix((size_t)(factors * k)), x((size_t)(rows * k));
    for (float &m : mix) m = random.normal();
    for (int64_t r = 0; r < rows; r++) {
        std::vector<float> f((size_t)factors);
        for (float &v : f) v = random.normal();
        for (int64_t c = 0; c < k; c++) {
            float sum = 0.5f * random.normal();
            for (int64_t i = 0; i < factors; i++) sum += 0.3f * f[(size_t)i] * mix[(size_t)(i * k + c)];
            x[(size_t)(r * k + c)] = sum * (c % 61 == 7 ? 12.0f : 1.0f);
        }
    }
    return x;
}

double squared(const std::vector<float> &a, const std::vector<float> &b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sum;
}

double layer_error(const std::vector<float> &w, const std::vector<float> &v, int64_t n, int64_t k,
                   const std::vector<float> &x) {
    double sum = 0;
    for (size_t r = 0; r < x.size() / (size_t)k; r++) {
        for (int64_t i = 0; i < n; i++) {
            double y = 0;
            for (int64_t c = 0; c < k; c++)
                y += ((double)w[(size_t)(i * k + c)] - v[(size_t)(i * k + c)]) * x[r * (size_t)k + (size_t)c];
            sum += y * y;
        }
    }
    return sum;
}

qe_round_options options(int32_t method, int32_t range = QE_RANGE_MINMAX) {
    qe_round_options o;
    memset(&o, 0, sizeof o);
    o.struct_size = o.range.struct_size = sizeof o;
    o.range.struct_size = sizeof o.range;
    o.method = method;
    o.range.method = range;
    return o;
}

void round_ok(const std::vector<float> &w, const qe_calibration *c, const qe_round_options &o, qe_qtensor *t) {
    qe_error err;
    ASSERT_TRUE(is_ok(qe_round_weights(w.data(), t->k, c, &o, t, &err), err));
}

// Every named scheme whose method takes plain rounding, three kinds of tensors: RTN is qe_quantize(), and a searched
// range is never worse.
TEST(AlgoWeights, SearchedRangeIsNeverWorseThanMinMax) {
    const int64_t n = 12, k = 512;
    int cases = 0, better = 0;
    for (int32_t i = 0; const qe_scheme *s = qe_scheme_at(i); i++) {
        qe_quant q = parse(s->weight);
        if (s->method != QE_METHOD_RTN) continue;
        for (Kind kind : {GAUSSIAN, OUTLIERS, DEGENERATE}) {
            std::vector<float> w = weights(n, k, kind, 11 + (uint64_t)i);
            Tensor plain(q, n, k), rtn(q, n, k), mse(q, n, k);
            uint32_t flags = s->full_range ? QE_QUANTIZE_FULL_RANGE : 0;
            ASSERT_EQ(qe_quantize(w.data(), k, flags, &plain, nullptr), QE_OK) << s->name;
            qe_round_options o = options(QE_METHOD_RTN);
            o.range.full_range = s->full_range;
            round_ok(w, nullptr, o, &rtn);
            ASSERT_TRUE(same_bits(plain.values(), rtn.values())) << s->name;
            o.range.method = QE_RANGE_MSE;
            round_ok(w, nullptr, o, &mse);
            double a = squared(w, rtn.values()), b = squared(w, mse.values());
            EXPECT_LE(b, a * (1 + 1e-6)) << s->name << " kind " << kind;
            better += b < a * 0.98;
            cases++;
        }
    }
    EXPECT_GT(cases, 90);
    EXPECT_GT(better, cases / 3);
    printf("%d schemes and tensors, %d of them at least 2%% better\n", cases, better);
}

TEST(AlgoWeights, NamedSchemesParseAndNamesAreUnique) {
    int count = 0;
    for (int32_t i = 0; const qe_scheme *s = qe_scheme_at(i); i++, count++) {
        EXPECT_EQ(qe_scheme_find(s->name), s) << s->name;
        parse(s->weight);
        if (s->input) parse(s->input);
        EXPECT_NE(qe_method_name(s->method), nullptr) << s->name;
    }
    EXPECT_GT(count, 40);
    EXPECT_EQ(qe_scheme_find("none of them"), nullptr);
    struct Row { const char *name; double bits; };
    for (const Row &row : {Row{"mx9", 9}, Row{"mx6", 6}, Row{"mx4", 4}, Row{"mxint8", 8.25}, Row{"mxfp4", 4.25},
                           Row{"q4_0", 4.5}, Row{"q5_0", 5.5}, Row{"q8_0", 8.5}, Row{"q4_k", 4.5},
                           Row{"q6_k", 6.5625}}) {
        qe_quant q = parse(qe_scheme_find(row.name)->weight);
        EXPECT_DOUBLE_EQ(qe_quant_bits_per_weight(&q, 64, 4096), row.bits) << row.name;
    }
}

struct Layer {
    int64_t n = 48, k = 384, tokens = 512;
    std::vector<float> w = weights(n, k, GAUSSIAN, 3), x = inputs(tokens, k, 4), fresh = inputs(128, k, 4);
    std::vector<double> h = std::vector<double>((size_t)(k * k));
    qe_calibration c{};
    Layer() {
        EXPECT_EQ(qe_hessian_add(h.data(), k, x.data(), tokens, k, nullptr, nullptr), QE_OK);
        c.hessian = h.data();
        c.x = x.data();
        c.x_rows = tokens;
        c.ldx = k;
    }
};

TEST(AlgoWeights, HessianIsTheSumOfProductsAndAddsUp) {
    Layer l;
    std::vector<double> parts((size_t)(l.k * l.k));
    ASSERT_EQ(qe_hessian_add(parts.data(), l.k, l.x.data(), 200, l.k, nullptr, nullptr), QE_OK);
    ASSERT_EQ(qe_hessian_add(parts.data(), l.k, l.x.data() + 200 * l.k, l.tokens - 200, l.k, nullptr, nullptr), QE_OK);
    for (int64_t i = 0; i < l.k; i += 37) {
        for (int64_t j = 0; j <= i; j += 11) {
            double want = 0, size = 0;
            for (int64_t r = 0; r < l.tokens; r++) {
                double p = (double)l.x[(size_t)(r * l.k + i)] * l.x[(size_t)(r * l.k + j)];
                want += p;
                size += std::fabs(p);
            }
            EXPECT_NEAR(l.h[(size_t)(i * l.k + j)], want, 1e-6 * size);
            EXPECT_NEAR(parts[(size_t)(i * l.k + j)], want, 1e-6 * size);
        }
    }
}

TEST(AlgoWeights, GptqBeatsRoundToNearestOnTheLayersOutput) {
    Layer l;
    for (const char *name : {"int4:g128:f16", "int4:g128:f16:z=u8", "int3:g64:f16", "nf4:g64:f32", "int4:channel:f32",
                             "int4:g32:u6:s=f16/g256:b=u6", "int4:g128:u8:s=f16/channel", "e2m1:g32:e8m0", "lut3:t=1",
                             "int8:128x128:f32"}) {
        qe_quant q = parse(name);
        Tensor rtn(q, l.n, l.k);
        round_ok(l.w, &l.c, options(QE_METHOD_RTN), &rtn);
        double a = layer_error(l.w, rtn.values(), l.n, l.k, l.fresh);
        for (int order : {QE_ORDER_NONE, QE_ORDER_GROUPS, QE_ORDER_STATIC}) {
            Tensor gptq(q, l.n, l.k, order == QE_ORDER_GROUPS ? QE_PLACE_ORDER : 0);
            qe_round_options o = options(QE_METHOD_GPTQ);
            o.order = order;
            round_ok(l.w, &l.c, o, &gptq);
            double b = layer_error(l.w, gptq.values(), l.n, l.k, l.fresh);
            EXPECT_LT(b, 0.8 * a) << name << " order " << order;
            printf("%-30s order %d: layer error %.3f of RTN's\n", name, order, b / a);
        }
    }
}

// GPTQ written plainly: float64, the inverse Hessian, one column at a time.
TEST(AlgoWeights, GptqEqualsThePlainAlgorithm) {
    const int64_t n = 6, k = 48, tokens = 256;
    std::vector<float> w = weights(n, k, GAUSSIAN, 21), x = inputs(tokens, k, 22);
    std::vector<double> h((size_t)(k * k));
    ASSERT_EQ(qe_hessian_add(h.data(), k, x.data(), tokens, k, nullptr, nullptr), QE_OK);
    qe_calibration c{};
    c.hessian = h.data();
    Tensor t(parse("int4:channel:f32"), n, k);
    round_ok(w, &c, options(QE_METHOD_GPTQ), &t);
    std::vector<std::vector<double>> inverse((size_t)k, std::vector<double>((size_t)(2 * k)));
    double mean = 0;
    for (int64_t i = 0; i < k; i++) mean += h[(size_t)(i * k + i)] / (double)k;
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < k; j++)
            inverse[(size_t)i][(size_t)j] = h[(size_t)(i > j ? i * k + j : j * k + i)] + (i == j ? 0.01 * mean : 0);
        inverse[(size_t)i][(size_t)(k + i)] = 1;
    }
    for (int64_t p = 0; p < k; p++) {
        for (int64_t i = 0; i < k; i++) {
            if (i == p) continue;
            double f = inverse[(size_t)i][(size_t)p] / inverse[(size_t)p][(size_t)p];
            for (int64_t j = 0; j < 2 * k; j++) inverse[(size_t)i][(size_t)j] -= f * inverse[(size_t)p][(size_t)j];
        }
    }
    for (int64_t p = 0; p < k; p++) {
        double d = inverse[(size_t)p][(size_t)p];
        for (double &v : inverse[(size_t)p]) v /= d;
    }
    std::vector<std::vector<double>> g((size_t)k, std::vector<double>((size_t)k));
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < k; j++) g[(size_t)i][(size_t)j] = inverse[(size_t)i][(size_t)(k + j)];
    }
    int64_t different = 0;
    std::vector<double> a(w.begin(), w.end());
    for (int64_t j = 0; j < k; j++) {
        double d = g[(size_t)j][(size_t)j];
        for (int64_t r = 0; r < n; r++) {
            double s = ((float *)t.scales)[r], v = a[(size_t)(r * k + j)];
            double q = std::fmin(7, std::fmax(-7, std::nearbyint(v / s)));
            different += (int)q + 8 != ((uint8_t *)t.codes)[r * k + j];
            double e = (v - q * s) / d;
            for (int64_t m = j; m < k; m++) a[(size_t)(r * k + m)] -= e * g[(size_t)j][(size_t)m];
        }
        std::vector<double> column(g[(size_t)j]);
        for (int64_t i = 0; i < k; i++) {
            for (int64_t m = 0; m < k; m++) g[(size_t)i][(size_t)m] -= column[(size_t)i] * column[(size_t)m] / d;
        }
    }
    EXPECT_LE(different, 2) << "of " << n * k;   // float32 against float64 at a tie
}

TEST(AlgoWeights, AdaRoundBeatsRoundToNearestRowByRow) {
    Layer l;
    for (const char *name : {"int4:g128:f16", "int3:channel:f16:z=u8", "nf4:g64:f32"}) {
        qe_quant q = parse(name);
        Tensor rtn(q, l.n, l.k), ada(q, l.n, l.k);
        round_ok(l.w, nullptr, options(QE_METHOD_RTN), &rtn);
        qe_round_options o = options(QE_METHOD_ADAROUND);
        o.iterations = 400;
        qe_calibration c = l.c;
        c.hessian = nullptr;
        round_ok(l.w, &c, o, &ada);
        std::vector<float> a = rtn.values(), b = ada.values();
        double sum_a = 0, sum_b = 0;
        for (int64_t r = 0; r < l.n; r++) {
            auto row = [&](const std::vector<float> &m) {
                return std::vector<float>(m.begin() + r * l.k, m.begin() + (r + 1) * l.k);
            };
            double ea = layer_error(row(l.w), row(a), 1, l.k, l.x), eb = layer_error(row(l.w), row(b), 1, l.k, l.x);
            EXPECT_LE(eb, ea * (1 + 1e-5)) << name << " row " << r;
            sum_a += ea;
            sum_b += eb;
        }
        EXPECT_LT(sum_b, 0.7 * sum_a) << name;
        double fresh = layer_error(l.w, b, l.n, l.k, l.fresh) / layer_error(l.w, a, l.n, l.k, l.fresh);
        EXPECT_LT(fresh, 0.9) << name;
        printf("%-24s layer error %.3f of RTN's on the sample, %.3f on fresh inputs\n", name, sum_b / sum_a, fresh);
    }
}

// The cut of AWQ: what it minimizes, the output error of each group summed over the groups of a row, never exceeds that of
// round to nearest; the whole layer's error falls, on fresh inputs as well.
TEST(AlgoWeights, CutByOutputIsNeverWorseThanUncut) {
    Layer l;
    for (const char *name : {"int4:g128:f16", "int4:g48:f16:z=u8", "int3:channel:f16", "int4:g128:u8:s=f16/channel",
                             "nf4:g64:f32", "int4:g32:u6:s=f16/g256:b=u6"}) {
        qe_quant q = parse(name);
        Tensor rtn(q, l.n, l.k), cut(q, l.n, l.k);
        round_ok(l.w, nullptr, options(QE_METHOD_RTN), &rtn);
        round_ok(l.w, &l.c, options(QE_METHOD_RTN, QE_RANGE_OUTPUT), &cut);
        std::vector<float> a = rtn.values(), b = cut.values();
        int64_t width = q.group_k ? q.group_k : l.k, rows = (int64_t)l.x.size() / l.k;
        for (int64_t r = 0; r < l.n; r++) {
            double ea = 0, eb = 0;
            for (int64_t from = 0; from < l.k; from += width) {
                for (int64_t t = 0; t < rows; t++) {
                    double ya = 0, yb = 0;
                    for (int64_t c = from; c < std::min(from + width, l.k); c++) {
                        double x = l.x[(size_t)(t * l.k + c)], w = l.w[(size_t)(r * l.k + c)];
                        ya += x * (a[(size_t)(r * l.k + c)] - w);
                        yb += x * (b[(size_t)(r * l.k + c)] - w);
                    }
                    ea += ya * ya;
                    eb += yb * yb;
                }
            }
            EXPECT_LE(eb, ea * (1 + 1e-4)) << name << " row " << r;
        }
        double fresh = layer_error(l.w, b, l.n, l.k, l.fresh) / layer_error(l.w, a, l.n, l.k, l.fresh);
        EXPECT_LT(fresh, 0.95) << name;
        printf("%-30s cut: layer error %.3f of RTN's on fresh inputs\n", name, fresh);
    }
}

TEST(AlgoWeights, CutByOutputRefuses) {
    Layer l;
    qe_round_options o = options(QE_METHOD_RTN, QE_RANGE_OUTPUT);
    qe_error err{};
    Tensor plain(parse("int4:g128:f16"), l.n, l.k), block(parse("int4:8x128:f16"), l.n, l.k);
    EXPECT_EQ(qe_round_weights(l.w.data(), l.k, nullptr, &o, &plain, &err), QE_E_STATE);
    EXPECT_NE(std::string(err.message).find("'output' needs inputs"), std::string::npos) << err.message;
    EXPECT_EQ(qe_round_weights(l.w.data(), l.k, &l.c, &o, &block, &err), QE_E_UNSUPPORTED);
    EXPECT_NE(std::string(err.message).find("scales of each row"), std::string::npos) << err.message;
    o.method = QE_METHOD_GPTQ;
    EXPECT_EQ(qe_round_weights(l.w.data(), l.k, &l.c, &o, &plain, &err), QE_E_UNSUPPORTED);
    float low, high;
    EXPECT_EQ(qe_range_of(l.w.data(), 1, l.k, l.k, &plain.quant, &o.range, &low, &high, &err), QE_E_UNSUPPORTED);
    qe_observer *seen;
    ASSERT_EQ(qe_observer_create(nullptr, &seen, &err), QE_OK);
    ASSERT_EQ(qe_observer_add(seen, l.w.data(), 1, l.k, l.k, &err), QE_OK);
    EXPECT_EQ(qe_observer_range(seen, QE_RANGE_OUTPUT, &plain.quant, &low, &high, &err), QE_E_UNSUPPORTED);
    qe_observer_destroy(seen);
}

// Every method that fits a scheme: one thread, three threads and two bands give the same bytes.
TEST(AlgoWeights, ThreadsAndBandsDoNotChangeBits) {
    Layer l;
    l.n = 200;
    l.w = weights(l.n, l.k, OUTLIERS, 9);
    qe_pool *pool;
    ASSERT_EQ(qe_pool_create(3, &pool, nullptr), QE_OK);
    qe_executor executor = {pool, 3, qe_pool_run};
    struct Row { int method; const char *scheme; };
    const Row rows[] = {{QE_METHOD_RTN, "int4:g128:f16"}, {QE_METHOD_GPTQ, "int4:g128:f16"},
                        {QE_METHOD_ADAROUND, "int4:g128:f16"}, {QE_METHOD_KMEANS, "lut4:t=1"},
                        {QE_METHOD_TWN, "int2:channel:f32:z=1"}, {QE_METHOD_TTQ, "lut2:t=1"},
                        {QE_METHOD_ABSMEAN, "int2:channel:f32:z=1"}, {QE_METHOD_BINARY, "sign:channel:f32"},
                        {QE_METHOD_STOCHASTIC, "sign:channel:f32"}};
    for (const Row &row : rows) {
        qe_quant q = parse(row.scheme);
        Tensor one(q, l.n, l.k), three(q, l.n, l.k), low(q, 96, l.k), high(q, l.n - 96, l.k);
        qe_round_options o = options(row.method, row.method < QE_METHOD_ADAROUND ? QE_RANGE_MSE : QE_RANGE_MINMAX);
        o.seed = 5;
        o.iterations = 20;
        round_ok(l.w, &l.c, o, &one);
        o.executor = &executor;
        round_ok(l.w, &l.c, o, &three);
        EXPECT_EQ(one.memory.size(), three.memory.size());
        EXPECT_TRUE(same_bits(one.values(), three.values())) << qe_method_name(row.method);
        high.first_row = 96;
        round_ok(l.w, &l.c, o, &low);
        round_ok(std::vector<float>(l.w.begin() + 96 * l.k, l.w.end()), &l.c, o, &high);
        std::vector<float> both = low.values(), tail = high.values();
        both.insert(both.end(), tail.begin(), tail.end());
        EXPECT_TRUE(same_bits(one.values(), both)) << qe_method_name(row.method);
    }
    qe_pool_destroy(pool);
}

TEST(AlgoWeights, TernaryAndBinaryByTheirDefinitions) {
    const std::vector<float> w = {0.9f, -0.8f, 0.1f, 0.0f, 0.5f, -0.05f, -1.1f, 0.3f};
    double mean = 0;
    for (float x : w) mean += std::fabs((double)x) / 8;
    Tensor twn(parse("int2:channel:f32:z=1"), 1, 8), absmean(parse("int2:channel:f32:z=1"), 1, 8);
    Tensor ttq(parse("lut2:t=1"), 1, 8), binary(parse("sign:channel:f32"), 1, 8);
    round_ok(w, nullptr, options(QE_METHOD_TWN), &twn);
    round_ok(w, nullptr, options(QE_METHOD_ABSMEAN), &absmean);
    round_ok(w, nullptr, options(QE_METHOD_TTQ), &ttq);
    round_ok(w, nullptr, options(QE_METHOD_BINARY), &binary);
    double sum = 0, up = 0, down = 0;
    int count = 0, ups = 0;
    for (float x : w) {
        if (std::fabs(x) <= 0.7 * mean) continue;
        sum += std::fabs(x), count++;
        if (x > 0) up += x, ups++;
        else down += x;
    }
    for (size_t i = 0; i < 8; i++) {
        int sign = w[i] > 0.7 * mean ? 1 : w[i] < -0.7 * mean ? -1 : 0;
        EXPECT_NEAR(twn.values()[i], sign * sum / count, 1e-6) << i;
        EXPECT_NEAR(ttq.values()[i], sign > 0 ? up / ups : sign < 0 ? down / (count - ups) : 0, 1e-6) << i;
        EXPECT_NEAR(absmean.values()[i], mean * std::fmin(1, std::fmax(-1, std::nearbyint(w[i] / mean))), 1e-6) << i;
        EXPECT_NEAR(binary.values()[i], w[i] > 0 ? mean : -mean, 1e-6) << i;
    }
    // Stochastic signs: the mean of many draws is the hard sigmoid's chance.
    std::vector<float> same(100000, 0.3f);
    for (size_t i = 0; i < same.size(); i += 2) same[i] = -0.9f;        // mean |x| 0.6
    Tensor drawn(parse("sign:tensor:f32"), 1, 100000);
    round_ok(same, nullptr, options(QE_METHOD_STOCHASTIC), &drawn);
    double ones = 0, others = 0;
    for (size_t i = 0; i < same.size(); i++) (i % 2 ? ones : others) += ((uint8_t *)drawn.codes)[i] / 50000.0;
    EXPECT_NEAR(ones, 0.75, 0.01);
    EXPECT_EQ(others, 0.0);
}

TEST(AlgoWeights, KMeansExactIsBestAndWeightsMatter) {
    Random random(6);
    for (int count : {1, 5, 40, 3000}) {
        std::vector<float> x((size_t)count), weight((size_t)count);
        for (float &v : x) v = random.normal();
        for (float &v : weight) v = random.uniform(0.01f, 3.0f);
        for (int bits : {1, 2, 4}) {
            std::vector<float> a((size_t)1 << bits), b(a);
            double exact, lloyd;
            ASSERT_EQ(qe_kmeans(x.data(), weight.data(), count, bits, 1, 0, 1, a.data(), &exact, nullptr), QE_OK);
            ASSERT_EQ(qe_kmeans(x.data(), weight.data(), count, bits, 0, 200, 1, b.data(), &lloyd, nullptr), QE_OK);
            EXPECT_LE(exact, lloyd * (1 + 1e-9) + 1e-12) << count << " " << bits;
            double by_hand = 0;
            for (int i = 0; i < count; i++) {
                double best = 1e300;
                for (float c : a) best = std::fmin(best, ((double)x[(size_t)i] - c) * ((double)x[(size_t)i] - c));
                by_hand += weight[(size_t)i] * best;
            }
            EXPECT_NEAR(by_hand, exact, 1e-5 * exact + 1e-9);
            EXPECT_TRUE(std::is_sorted(a.begin(), a.end()));
        }
    }
    // All partitions of six points into two runs.
    const float x[] = {0, 1, 2, 10, 11, 30};
    float table[2];
    double error;
    ASSERT_EQ(qe_kmeans(x, nullptr, 6, 1, 1, 0, 0, table, &error, nullptr), QE_OK);
    double best = 1e300;
    for (int cut = 1; cut < 6; cut++) {
        double cost = 0;
        for (int side = 0; side < 2; side++) {
            int from = side ? cut : 0, end = side ? 6 : cut;
            double mean = 0;
            for (int i = from; i < end; i++) mean += x[i] / (end - from);
            for (int i = from; i < end; i++) cost += (x[i] - mean) * (x[i] - mean);
        }
        best = std::fmin(best, cost);
    }
    EXPECT_NEAR(error, best, 1e-9);
    // Hessian-weighted tables lower the weighted error.
    Layer l;
    Tensor plain(parse("lut3:t=1"), l.n, l.k), weighted(parse("lut3:t=1"), l.n, l.k);
    round_ok(l.w, nullptr, options(QE_METHOD_KMEANS), &plain);
    round_ok(l.w, &l.c, options(QE_METHOD_KMEANS), &weighted);
    double ea = 0, eb = 0;
    std::vector<float> a = plain.values(), b = weighted.values();
    for (size_t i = 0; i < a.size(); i++) {
        double d = l.h[(i % (size_t)l.k) * (size_t)(l.k + 1)];
        ea += d * (l.w[i] - a[i]) * (l.w[i] - a[i]);
        eb += d * (l.w[i] - b[i]) * (l.w[i] - b[i]);
    }
    EXPECT_LT(eb, ea);
}

TEST(AlgoWeights, RefusalsNameWhatIsWrong) {
    Layer l;
    Tensor t(parse("int4:g128:f16"), l.n, l.k);
    qe_error err;
    qe_round_options o = options(QE_METHOD_GPTQ);
    EXPECT_TRUE(has_status(qe_round_weights(l.w.data(), l.k, nullptr, &o, &t, &err), QE_E_STATE, err));
    std::vector<double> silent(l.h.size());
    qe_calibration c{};
    c.hessian = silent.data();
    EXPECT_TRUE(has_status(qe_round_weights(l.w.data(), l.k, &c, &o, &t, &err), QE_E_STATE, err));
    o.method = QE_METHOD_ADAROUND;
    EXPECT_TRUE(has_status(qe_round_weights(l.w.data(), l.k, &c, &o, &t, &err), QE_E_STATE, err));
    o.method = 77;
    EXPECT_TRUE(has_status(qe_round_weights(l.w.data(), l.k, &c, &o, &t, &err), QE_E_ARGUMENT, err));
    o.method = QE_METHOD_TWN;
    EXPECT_TRUE(has_status(qe_round_weights(l.w.data(), l.k, &c, &o, &t, &err), QE_E_UNSUPPORTED, err));
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        std::vector<float> w = l.w;
        w[(size_t)(31 * l.k + 5)] = bad;
        o.method = QE_METHOD_RTN;
        EXPECT_TRUE(has_status(qe_round_weights(w.data(), l.k, nullptr, &o, &t, &err), QE_E_VALUE, err));
        EXPECT_NE(std::string(err.message).find("row 31, column 5"), std::string::npos) << err.message;
    }
    std::vector<float> x = l.x;
    x[(size_t)(3 * l.k + 2)] = NAN;
    EXPECT_TRUE(has_status(qe_hessian_add(l.h.data(), l.k, x.data(), l.tokens, l.k, nullptr, &err), QE_E_VALUE, err));
    EXPECT_NE(std::string(err.message).find("row 3, column 2"), std::string::npos) << err.message;
}

TEST(AlgoWeights, ReportIsTheSameOnThreads) {
    const int64_t n = 200, k = 96, tokens = 130;
    std::vector<float> w = weights(n, k, OUTLIERS, 5), x = inputs(tokens, k, 6);
    std::vector<double> h((size_t)(k * k));
    ASSERT_EQ(qe_hessian_add(h.data(), k, x.data(), tokens, k, nullptr, nullptr), QE_OK);
    Tensor t(parse("int4:g32:f16"), n, k);
    round_ok(w, nullptr, options(QE_METHOD_RTN, QE_RANGE_MINMAX), &t);
    qe_pool *pool = nullptr;
    ASSERT_EQ(qe_pool_create(3, &pool, nullptr), QE_OK);
    qe_executor executor = {pool, 3, qe_pool_run};
    for (bool sample : {true, false}) {
        qe_calibration c{};
        c.hessian = h.data();
        if (sample) c.x = x.data(), c.x_rows = tokens, c.ldx = k;
        qe_layer_report alone{}, together{};
        qe_error err;
        ASSERT_TRUE(is_ok(qe_report_measure(w.data(), k, &t, &c, nullptr, &alone, &err), err));
        ASSERT_TRUE(is_ok(qe_report_measure(w.data(), k, &t, &c, &executor, &together, &err), err));
        EXPECT_EQ(memcmp(&alone, &together, sizeof alone), 0) << sample;
        EXPECT_GT(alone.output_cosine, 0.9);
    }
    qe_pool_destroy(pool);
}

TEST(AlgoWeights, ReportAgreesWithTheArraysAndItsBoundHolds) {
    Layer l;
    int cases = 0;
    for (int32_t i = 0; const qe_scheme *s = qe_scheme_at(i); i++) {
        qe_quant q = parse(s->weight);
        if (s->method != QE_METHOD_RTN) continue;
        Tensor t(q, l.n, l.k);
        qe_round_options o = options(QE_METHOD_RTN, QE_RANGE_MSE);
        o.range.full_range = s->full_range;
        round_ok(l.w, nullptr, o, &t);
        qe_layer_report r{}, by_hessian{};
        qe_error err;
        ASSERT_TRUE(is_ok(qe_report_measure(l.w.data(), l.k, &t, &l.c, nullptr, &r, &err), err));
        qe_calibration c = l.c;
        c.x = nullptr;
        ASSERT_TRUE(is_ok(qe_report_measure(l.w.data(), l.k, &t, &c, nullptr, &by_hessian, &err), err));
        EXPECT_LE(r.max_error, r.error_bound) << s->name;
        std::vector<float> v = t.values();
        double signal = 0, top = 0;
        for (size_t j = 0; j < v.size(); j++) {
            signal += (double)l.w[j] * l.w[j];
            top = std::fmax(top, std::fabs((double)l.w[j] - v[j]));
        }
        EXPECT_DOUBLE_EQ(r.max_error, top) << s->name;
        EXPECT_NEAR(r.sqnr_db, 10 * std::log10(signal / squared(l.w, v)), 1e-6) << s->name;
        EXPECT_NEAR(r.output_cosine, by_hessian.output_cosine, 1e-5) << s->name;
        EXPECT_NEAR(r.output_sqnr_db, by_hessian.output_sqnr_db, 0.05) << s->name;
        strcpy(r.name, "model.\"q\"\n");
        char text[1024];
        size_t length = qe_report_json(&r, text, sizeof text);
        EXPECT_EQ(length, strlen(text));
        EXPECT_NE(std::string(text).find("\"name\":\"model.\\\"q\\\"\\u000a\""), std::string::npos) << text;
        cases++;
    }
    EXPECT_GT(cases, 30);
}

}  // namespace
