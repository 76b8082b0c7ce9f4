// qe_linear on every backend that is linked in: schemes x ragged shapes against the reference (bits, for the integer
// families) and against float64 (bounds), then the argument rules.
#include "support.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <qengine/gemm.h>
#include <qengine/num.h>
#include <qengine/quant.h>
#include "kernels/qk.h"
#include "kernels/ref/oracle.h"
#include "device_memory.h"

namespace {

struct Scheme {
    const char *weight;
    int  act_group;     // -1: float input
    bool asymmetric;
    bool bits_equal;    // the contract fixes the bits on every backend
    bool signs = false; // 1-bit input
};
const Scheme schemes[] = {
    {"int8:channel:f32", 0, false, true},                 // w8a8
    {"int4:g128:u8:s=f16/channel", 0, false, true},       // w4a8 two-level
    {"int8:channel:f32:z=u8", 0, false, true},
    {"int8:channel:f32", 0, true, true},
    {"int8:g128:f16", 0, false, true},
    {"int4:g32:f16", 32, false, true},                    // Q4_0
    {"int5:g32:f16", 32, false, true},                    // Q5_0
    {"int8:g32:f16", 32, false, true},                    // Q8_0
    {"int4:g32:u6:s=f16/g256:b=u6", 256, false, true},    // Q4_K
    {"int6:g16:s8:s=f16/g256", 256, false, true},         // Q6_K
    {"sign:channel:f32", 0, false, true, true},           // w1a1
    {"sign:g64:f16", 0, false, true, true},
    {"int8:channel:f32", 0, false, true, true},
    {"int4:g32:u6:s=f16/g256:b=u6", 0, false, true, true},
    {"sign:channel:f32", 0, false, true},                 // w1a8
    {"sign:tensor:f32", 0, true, true},
    {"int2:channel:f32:z=1", 0, false, true},             // w2a8
    {"int4:g128:f16:z=u8", -1, false, false},             // w4a16
    {"int8:g128:f16", -1, false, false},                  // w8a16
    {"int8:channel:f32", -1, false, false},
    {"f16", -1, false, false},
    {"bf16", -1, false, false},
    {"f32", -1, false, false},
};

struct Backend {
    int         id;
    const char *name, *isa;
};
const Backend backends[] = {{QE_BACKEND_REF, "ref", nullptr}, {QE_BACKEND_CPU, "cpu", nullptr}, {QE_BACKEND_CPU, "cpu avx2", "avx2"},
                            {QE_BACKEND_CUDA, "cuda", nullptr}};

struct Device {
    qe_device *handle = nullptr;
    qe_error   err;
    explicit Device(int backend, int threads = 2, const char *isa = nullptr) {
        qe_test::HeldBack held(isa);
        qe_device_options o = {};
        o.struct_size = sizeof o;
        o.backend = backend;
        o.threads = threads;
        qe_device_create(&o, &handle, &err);
    }
    ~Device() { qe_device_destroy(handle); }
    Device(const Device &) = delete;
};

struct Block {
    char  *data;
    size_t bytes;
    explicit Block(size_t bytes_) : bytes(bytes_) {
        data = (char *)aligned_alloc(256, (bytes + 511) & ~(size_t)255);
        memset(data, 0xa5, (bytes + 511) & ~(size_t)255);
    }
    ~Block() { free(data); }
    Block(const Block &) = delete;
};

struct Tensor : qe_qtensor {
    std::unique_ptr<Block> block;
    Tensor(const char *scheme, int64_t rows_, int64_t k_, unsigned seed) {
        qe_quant q;
        qe_error err;
        EXPECT_EQ(qe_quant_parse(scheme, &q, &err), QE_OK) << err.message;
        block = std::make_unique<Block>(qe_qtensor_bytes(&q, rows_, k_, 0));
        memset(block->data, 0, block->bytes);
        EXPECT_EQ(qe_qtensor_place(this, &q, rows_, k_, 0, block->data, block->bytes, &err), QE_OK) << err.message;
        std::mt19937 random(seed);
        std::normal_distribution<float> normal(0.0f, 0.05f);
        std::vector<float> w((size_t)(rows_ * k_));
        for (float &x : w) x = normal(random);
        EXPECT_EQ(qe_quantize(w.data(), k_, 0, this, &err), QE_OK) << err.message;
        spoil(random);
    }
    // Negative scales exist in files, and so does the lowest code; the round trip above writes neither.
    void spoil(std::mt19937 &random) {
        int64_t gk = quant.group_k ? (k + quant.group_k - 1) / quant.group_k : 1;
        for (int64_t i = 0; quant.scale == QE_NUM_F16 && i < n * gk; i += 3) ((uint16_t *)scales)[i] ^= 0x8000;
        for (int64_t i = 0; quant.scale == QE_NUM_S8 && i < n * gk; i += 3) ((int8_t *)scales)[i] *= -1;
        if (quant.code != QE_CODE_INT) return;
        for (int64_t i = 0; i < n * k / 50; i++) ((uint8_t *)codes)[random() % (size_t)(n * k)] = 0;
    }
};

qe_act act_of(const Scheme &s) {
    qe_act act;
    memset(&act, 0, sizeof act);
    if (s.act_group < 0) return act;
    act.mode = QE_ACT_DYNAMIC;
    act.quant.code = QE_CODE_INT;
    act.quant.bits = 8;
    act.quant.scale = QE_NUM_F32;
    act.quant.group_n = 1;
    act.quant.group_k = s.act_group;
    if (s.signs) {
        act.quant.code = QE_CODE_SIGN;
        act.quant.bits = 1;
    } else if (s.asymmetric) {
        act.quant.zero = QE_ZERO_POINT;
        act.quant.zero_num = QE_NUM_U8;
    } else {
        act.quant.zero_const = 128;
    }
    return act;
}

std::vector<float> inputs(int64_t m, int64_t k, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.1f, 1.0f);
    std::vector<float> x((size_t)(m * k));
    for (float &v : x) v = qe_f16_to_f32(qe_f32_to_f16(normal(random)));
    if (m > 2) std::fill(x.begin() + 2 * k, x.begin() + 3 * k, 0.0f);
    return x;
}

// Runs a linear; outputs beyond ldy's columns must survive.
std::vector<float> run(const Device &d, qe_linear *l, const std::vector<float> &x, int64_t m, int64_t n, int64_t k,
                       qe_status *status, qe_error *err) {
    int64_t ldy = n + 3;
    std::vector<float> y((size_t)(m * ldy), -7.0f), out((size_t)(m * n));
    size_t bytes = qe_linear_workspace(l, m, QE_CODE_F32);
    Memory workspace(d.handle, bytes), dx(d.handle, x.size() * 4, x.data()), dy(d.handle, y.size() * 4, y.data());
    qe_linear_args a = {};
    a.struct_size = sizeof a;
    a.m = m;
    a.x = dx.data;
    a.ldx = k;
    a.x_type = QE_CODE_F32;
    a.y = dy.data;
    a.ldy = ldy;
    a.workspace = workspace.data;
    a.workspace_bytes = bytes;
    *status = qe_linear_run(l, &a, err);
    dy.copy(y.data(), dy.data);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = n; j < ldy; j++) EXPECT_EQ(y[(size_t)(i * ldy + j)], -7.0f);
        std::copy_n(y.begin() + i * ldy, n, out.begin() + i * n);
    }
    return out;
}

struct Linear {
    qe_linear *handle = nullptr;
    qe_status  status;
    qe_error   err;
    Linear(const Device &d, const Tensor &t, const Scheme &s, const float *bias = nullptr) {
        qe_act act = act_of(s);
        qe_linear_options o = {};
        o.struct_size = sizeof o;
        o.act = &act;
        o.bias = bias;
        status = qe_linear_create(d.handle, &t, &o, &handle, &err);
    }
    ~Linear() { qe_linear_destroy(handle); }
    Linear(const Linear &) = delete;
};

// What the linear computes from its own quantized input, in float64: w and x as the kernel sees them.
std::vector<float> quantized(const Scheme &s, const std::vector<float> &x, int64_t m, int64_t k) {
    if (s.act_group < 0) return x;
    std::vector<float> out(x.size());
    int64_t group = s.act_group ? s.act_group : k;
    std::vector<int8_t> q((size_t)k);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t c = 0; c < k; c += group) {
            int64_t count = std::min(group, k - c);
            const float *from = x.data() + i * k + c;
            qe_act_range r = s.signs        ? qe_act_quantize_sign(from, count, q.data())
                             : s.asymmetric ? qe_act_quantize_asymmetric(from, count, q.data())
                                            : qe_act_quantize_symmetric(from, count, q.data());
            for (int64_t j = 0; j < count; j++) out[(size_t)(i * k + c + j)] = (float)(q[(size_t)j] - r.zero) * r.scale;
        }
    }
    return out;
}

struct Shape {
    int64_t m, n, k;
};

TEST(Linear, EveryBackendAndScheme) {
    const Shape shapes[] = {{1, 1, 1},   {1, 33, 256},  {5, 17, 300},  {2, 64, 512},  {13, 40, 1024},
                            {3, 70, 129}, {70, 19, 640}, {4, 128, 2048}, {1, 16, 2304}, {17, 9, 77}};
    for (const Backend &b : backends) {
        Device device(b.id, 2, b.isa), ref(QE_BACKEND_REF);
        ASSERT_NE(ref.handle, nullptr) << ref.err.message;
        if (!device.handle) {
            printf("not tested: backend %s: %s\n", b.name, device.err.message);
            EXPECT_EQ(device.err.status, QE_E_DEVICE) << device.err.message;
            continue;
        }
        int equal = 0, bounded = 0;
        for (const Scheme &s : schemes) {
            for (const Shape &shape : shapes) {
                auto [m, n, k] = shape;
                std::string at = std::string(b.name) + " " + s.weight + " m" + std::to_string(m) + " n" +
                                 std::to_string(n) + " k" + std::to_string(k);
                Tensor t(s.weight, n, k, (unsigned)(n * 7 + k));
                std::vector<float> x = inputs(m, k, (unsigned)(m + k)), bias((size_t)n);
                for (int64_t i = 0; i < n; i++) bias[(size_t)i] = (float)i * 0.125f - 1.0f;
                Linear l(device, t, s, bias.data()), r(ref, t, s, bias.data());
                ASSERT_EQ(l.status, QE_OK) << at << " " << l.err.message;
                ASSERT_EQ(r.status, QE_OK) << at << " " << r.err.message;
                qe_status status;
                qe_error err;
                std::vector<float> y = run(device, l.handle, x, m, n, k, &status, &err);
                ASSERT_EQ(status, QE_OK) << at << " " << err.message;
                std::vector<float> want = run(ref, r.handle, x, m, n, k, &status, &err);
                ASSERT_EQ(status, QE_OK) << at << " " << err.message;
                qe_linear_info info;
                qe_linear_get_info(l.handle, &info);
                std::vector<float> xq = quantized(s, x, m, k), w((size_t)(n * k));
                ASSERT_EQ(qe_dequantize(&t, 0, n, w.data(), k, nullptr), QE_OK);
                // Tensor cores truncate, and the fp16 rows round dequantized weights to fp16 first.
                double u_acc = b.id == QE_BACKEND_CUDA ? 0x1p-22 : 0x1p-24, u_w = b.id == QE_BACKEND_CUDA ? 0x1p-11 : 0;
                if (s.act_group >= 0) u_w = 0;      // codes times scales: rounded to float32 as the sums are
                for (int64_t i = 0; i < m * n; i++) {
                    if (s.bits_equal) {
                        ASSERT_EQ(qe_f32_bits(y[(size_t)i]), qe_f32_bits(want[(size_t)i]))
                            << at << " row " << i / n << " column " << i % n << ": " << y[(size_t)i] << " for "
                            << want[(size_t)i] << " by " << info.layout;
                        equal++;
                    }
                    qk_oracle o = qk_oracle_dot(&xq[(size_t)(i / n * k)], &w[(size_t)(i % n * k)], k);
                    double exact = o.y + bias[(size_t)(i % n)];
                    double bound = qk_oracle_bound(o, k, info.chunk_k, u_acc, u_w) + 0x1p-22 * std::fabs(exact);
                    ASSERT_LE(std::fabs(y[(size_t)i] - exact), bound) << at << " output " << i << " by " << info.layout;
                    bounded++;
                }
            }
        }
        printf("%s: %d outputs equal in bits, %d within bounds\n", b.name, equal, bounded);
        EXPECT_GT(equal, 10000);
    }
}

TEST(Linear, RefusesSignsThatAreNotPerTokenAndDynamic) {
    Device d(QE_BACKEND_REF);
    Tensor t("sign:channel:f32", 8, 256, 1);
    qe_act good = act_of({"", 0, false, true, true});
    const struct { qe_act act; const char *why; } cases[] = {
        {[&] { qe_act a = good; a.mode = QE_ACT_STATIC, a.scale = 1.0f, a.quant.group_n = 0; return a; }(), "dynamic"},
        {[&] { qe_act a = good; a.quant.group_k = 128; return a; }(), "one scale per token"},
        {[&] { qe_act a = good; a.quant.scale = QE_NUM_F16; return a; }(), "fp32 scales"},
    };
    for (const auto &c : cases) {
        qe_linear_options o = {};
        o.struct_size = sizeof o, o.act = &c.act;
        qe_linear *l = nullptr;
        qe_error err;
        EXPECT_EQ(qe_linear_create(d.handle, &t, &o, &l, &err), QE_E_UNSUPPORTED) << c.why;
        EXPECT_NE(std::string(err.message).find(c.why), std::string::npos) << err.message;
        qe_linear_destroy(l);
    }
}

TEST(Linear, RowsDoNotDependOnTheBatchOrThreads) {
    for (const Backend &b : backends) {
        Device one(b.id, 1, b.isa), many(b.id, 5, b.isa);
        if (!one.handle) {
            printf("not tested: backend %s: %s\n", b.name, one.err.message);
            continue;
        }
        for (const Scheme &s : schemes) {
            const int64_t m = 29, n = 21, k = 768;
            Tensor t(s.weight, n, k, 5);
            Linear l(one, t, s), p(many, t, s);
            ASSERT_EQ(l.status, QE_OK) << l.err.message;
            ASSERT_EQ(p.status, QE_OK) << p.err.message;
            std::vector<float> x = inputs(m, k, 11);
            qe_status status;
            std::vector<float> all = run(one, l.handle, x, m, n, k, &status, nullptr);
            ASSERT_EQ(status, QE_OK);
            for (int64_t count : {1, 2, 7, 16}) {
                for (int64_t row : {0, 3, 13}) {
                    std::vector<float> part(x.begin() + row * k, x.begin() + (row + count) * k);
                    std::vector<float> y = run(many, p.handle, part, count, n, k, &status, nullptr);
                    ASSERT_EQ(status, QE_OK);
                    ASSERT_EQ(memcmp(y.data(), &all[(size_t)(row * n)], y.size() * sizeof(float)), 0)
                        << b.name << " " << s.weight << " rows " << row << "+" << count;
                }
            }
        }
    }
}

TEST(Linear, LayoutsUnpackWhatTheyPacked) {
    int cases = 0;
    for (const Backend &b : backends) {
        Device device(b.id, 2, b.isa);
        if (!device.handle) continue;
        qe_device_info info;
        qe_device_get_info(device.handle, &info);
        const int32_t ids[] = {-1, QK_REF, QK_CPU, QK_CUDA};
        const qk_backend *kernels = qk_backend_of(ids[b.id]);
        qk_device facts;
        ASSERT_EQ(kernels->describe(0, &facts, nullptr), QE_OK);
        for (const Scheme &s : schemes) {
            for (int64_t k : {256, 300, 1024}) {
                Tensor t(s.weight, 5, k, 77), back(s.weight, 5, k, 78);
                qk_shape shape;
                memset(&shape, 0, sizeof shape);
                shape.quant = t.quant;
                shape.act = act_of(s);
                shape.n = 5;
                shape.k = k;
                uint32_t checked = ~0u;
                ASSERT_EQ(qe_qtensor_check(&t, &checked, nullptr), QE_OK);
                shape.facts = checked;
                shape.chunk_k = qk_chunk_k(&shape.quant, shape.facts, &shape.act, 5, k);
                const qk_layout *layout = qk_layout_choose(&facts, &shape, nullptr, nullptr);
                ASSERT_NE(layout, nullptr) << b.name << " " << s.weight;
                shape.layout = layout;
                if (layout->band_rows < 5) continue;
                Block head(layout->head_bytes(&shape) + 1), band(layout->band_bytes(&shape));
                layout->pack_head(&shape, &t, head.data);
                layout->pack(&shape, &t, band.data);
                layout->unpack(&shape, head.data, band.data, &back);
                std::vector<float> want((size_t)(5 * k)), got = want, row((size_t)k);
                qe_dequantize(&t, 0, 5, want.data(), k, nullptr);
                qe_dequantize(&back, 0, 5, got.data(), k, nullptr);
                ASSERT_EQ(want, got) << layout->name << " " << s.weight << " k" << k;
                for (int32_t i = 0; layout->row && i < 5; i++) {
                    layout->row(&shape, head.data, band.data, i, row.data());
                    ASSERT_EQ(memcmp(row.data(), &want[(size_t)(i * k)], (size_t)k * 4), 0)
                        << layout->name << " " << s.weight;
                }
                cases++;
            }
        }
    }
    printf("%d packed bands\n", cases);
    EXPECT_GE(cases, 48);
}

TEST(Linear, BandsInAnyOrderGiveTheWholeTensorsBits) {
    Device d(QE_BACKEND_AUTO);
    ASSERT_NE(d.handle, nullptr) << d.err.message;
    const Scheme &s = schemes[5];
    const int64_t n = 1000, k = 320;
    Tensor t(s.weight, n, k, 3);
    Linear whole(d, t, s);
    ASSERT_EQ(whole.status, QE_OK);
    qe_act act = act_of(s);
    qe_linear_options o = {};
    o.struct_size = sizeof o;
    o.act = &act;
    qe_qtensor form = t;
    form.facts = 0;
    qe_linear *l = nullptr;
    qe_error err;
    ASSERT_EQ(qe_linear_begin(d.handle, &form, &o, &l, &err), QE_OK) << err.message;
    int64_t unit = qe_linear_band_rows(l) * 4;
    std::vector<int64_t> starts;
    for (int64_t row = 0; row < n; row += unit) starts.push_back(row);
    std::reverse(starts.begin(), starts.end());
    EXPECT_EQ(qe_linear_finish(l, &err), QE_E_STATE);
    for (int64_t row : starts) {
        qe_qtensor band = t;
        band.first_row = row;
        band.n = std::min(unit, n - row);
        band.codes = (char *)t.codes + row * k;
        band.scales = (char *)t.scales + row * (k / 32) * 2;
        ASSERT_EQ(qe_linear_append(l, &band, &err), QE_OK) << err.message;
        EXPECT_EQ(qe_linear_append(l, &band, &err), QE_E_DUPLICATE);
    }
    ASSERT_EQ(qe_linear_finish(l, &err), QE_OK) << err.message;
    EXPECT_EQ(qe_linear_append(l, &t, &err), QE_E_STATE);
    std::vector<float> x = inputs(3, k, 9);
    qe_status status;
    EXPECT_EQ(run(d, l, x, 3, n, k, &status, &err), run(d, whole.handle, x, 3, n, k, &status, &err));
    qe_linear_destroy(l);
}

TEST(Linear, ArgumentErrorsLeaveOutputsUntouched) {
    Device d(QE_BACKEND_AUTO);
    ASSERT_NE(d.handle, nullptr) << d.err.message;
    Tensor t("int8:channel:f32", 8, 64, 3);
    Linear l(d, t, schemes[0]);
    ASSERT_EQ(l.status, QE_OK);
    std::vector<float> x(64, 1.0f), y(8, -3.0f);
    size_t bytes = qe_linear_workspace(l.handle, 1, QE_CODE_F32);
    ASSERT_GT(bytes, 0u);
    EXPECT_EQ(qe_linear_workspace(l.handle, 0, QE_CODE_F32), 0u);
    EXPECT_EQ(qe_linear_workspace(l.handle, 1, QE_CODE_INT), 0u);
    Block workspace(bytes);
    qe_linear_args good = {};
    good.struct_size = sizeof good;
    good.m = 1;
    good.x = x.data();
    good.ldx = 64;
    good.x_type = QE_CODE_F32;
    good.y = y.data();
    good.ldy = 8;
    good.workspace = workspace.data;
    good.workspace_bytes = bytes;
    void (*const mistakes[])(qe_linear_args *) = {
        [](qe_linear_args *a) { a->struct_size = 0; },      [](qe_linear_args *a) { a->m = -1; },
        [](qe_linear_args *a) { a->x = nullptr; },          [](qe_linear_args *a) { a->ldx = 63; },
        [](qe_linear_args *a) { a->x_type = QE_CODE_INT; }, [](qe_linear_args *a) { a->ldy = 7; },
        [](qe_linear_args *a) { a->y_type = QE_CODE_E4M3; }, [](qe_linear_args *a) { a->residual = a->x; },
        [](qe_linear_args *a) { a->workspace = nullptr; },  [](qe_linear_args *a) { a->workspace_bytes--; },
        [](qe_linear_args *a) { a->workspace = (char *)a->workspace + 64; },
        [](qe_linear_args *a) { a->y = nullptr; },
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        qe_linear_args a = good;
        qe_error err;
        mistakes[i](&a);
        EXPECT_EQ(qe_linear_run(l.handle, &a, &err), QE_E_ARGUMENT) << i;
        EXPECT_GT(strlen(err.message), 0u) << i;
        for (float v : y) ASSERT_EQ(v, -3.0f) << i;
    }
    qe_linear_args none = good;
    none.m = 0;
    EXPECT_EQ(qe_linear_run(l.handle, &none, nullptr), QE_OK);
    for (float v : y) ASSERT_EQ(v, -3.0f);
    EXPECT_EQ(qe_linear_run(l.handle, &good, nullptr), QE_OK);
    for (float v : y) EXPECT_NE(v, -3.0f);
}

TEST(Linear, CreationRefusesBadInput) {
    Device d(QE_BACKEND_AUTO);
    ASSERT_NE(d.handle, nullptr);
    Tensor t("int4:g32:f16", 8, 64, 3);
    qe_linear *l = nullptr;
    qe_error err;
    qe_act act = act_of(schemes[0]);
    qe_linear_options o = {};
    o.struct_size = sizeof o;
    o.act = &act;
    act.quant.group_k = 48;
    EXPECT_EQ(qe_linear_create(d.handle, &t, &o, &l, &err), QE_E_ARGUMENT) << err.message;
    act.quant.group_k = 32;
    o.flags = 8;
    EXPECT_EQ(qe_linear_create(d.handle, &t, &o, &l, &err), QE_E_ARGUMENT);
    o.flags = 0;
    ((uint8_t *)t.codes)[65] = 16;
    EXPECT_EQ(qe_linear_create(d.handle, &t, &o, &l, &err), QE_E_RANGE);
    EXPECT_NE(std::string(err.message).find("row 1, column 1"), std::string::npos) << err.message;
    ((uint8_t *)t.codes)[65] = 15;
    ((uint16_t *)t.scales)[0] = 0x7e00;
    EXPECT_EQ(qe_linear_create(d.handle, &t, &o, &l, &err), QE_E_VALUE);
    EXPECT_EQ(l, nullptr);
}

// "Up to m tokens": plans of fewer tokens may want more, where k is split to fill the device.
TEST(Linear, AWorkspaceServesFewerTokens) {
    int calls = 0;
    for (const Backend &b : backends) {
        Device d(b.id, 2, b.isa);
        if (!d.handle) continue;
        for (const Scheme &s : {schemes[0], schemes[1], schemes[10]}) {
            const int64_t n = b.id == QE_BACKEND_CUDA ? 8192 : 40, k = 1024;
            Tensor t(s.weight, n, k, 5);
            Linear l(d, t, s);
            ASSERT_EQ(l.status, QE_OK) << l.err.message;
            for (int64_t most : {2, 16, 17, 64, 65, 200, 1024, 5000}) {
                size_t bytes = qe_linear_workspace(l.handle, most, QE_CODE_F16);
                for (int64_t m = 1; m <= most; m += m < 1100 ? 1 : 37) {
                    EXPECT_LE(qe_linear_workspace(l.handle, m, QE_CODE_F16), bytes) << b.name << " " << s.weight << " " << m << " of " << most;
                    calls++;
                }
            }
        }
    }
    EXPECT_GT(calls, 100);
}

TEST(Linear, HalfTypesAndResidual) {
    for (const Backend &b : backends) {
        Device d(b.id, 2, b.isa);
        if (!d.handle) continue;
        const int64_t m = 3, n = 20, k = 128;
        Tensor t("int8:channel:f32", n, k, 3);
        qe_act act = act_of(schemes[0]);
        qe_linear_options o = {};
        o.struct_size = sizeof o;
        o.act = &act;
        o.flags = QE_LINEAR_RESIDUAL;
        qe_linear *with = nullptr;
        qe_error err;
        ASSERT_EQ(qe_linear_create(d.handle, &t, &o, &with, &err), QE_OK) << err.message;
        Linear plain(d, t, schemes[0]);
        std::vector<float> x = inputs(m, k, 4);
        qe_status status;
        std::vector<float> y = run(d, plain.handle, x, m, n, k, &status, &err);
        std::vector<uint16_t> xh(x.size()), yh((size_t)(m * n)), residual((size_t)(m * n));
        for (size_t i = 0; i < x.size(); i++) xh[i] = qe_f32_to_f16(x[i]);
        for (size_t i = 0; i < residual.size(); i++) residual[i] = qe_f32_to_f16((float)i * 0.25f - 3.0f);
        size_t bytes = qe_linear_workspace(with, m, QE_CODE_F16);
        Memory workspace(d.handle, bytes), dx(d.handle, xh.size() * 2, xh.data()), dy(d.handle, yh.size() * 2);
        Memory dr(d.handle, residual.size() * 2, residual.data());
        qe_linear_args a = {sizeof a, m, dx.data, k, QE_CODE_F16, QE_CODE_F16, dy.data, n, dr.data, n,
                            workspace.data, bytes, nullptr};
        ASSERT_EQ(qe_linear_run(with, &a, &err), QE_OK) << b.name << " " << err.message;
        dy.copy(yh.data(), dy.data);
        for (size_t i = 0; i < y.size(); i++)
            EXPECT_EQ(yh[i], qe_f32_to_f16(y[i] + qe_f16_to_f32(residual[i]))) << b.name << " " << i;
        qe_linear_destroy(with);
    }
}

TEST(Linear, ExplainNamesReasonsAndTheChoice) {
    Device d(QE_BACKEND_REF);
    Tensor t("int8:channel:f32", 8, 64, 3);
    Linear l(d, t, schemes[0]);
    std::vector<std::string> chosen;
    ASSERT_EQ(qe_linear_explain(l.handle, 4, [](void *ctx, const char *name, const char *why) {
                  if (!why) ((std::vector<std::string> *)ctx)->push_back(name);
              }, &chosen, nullptr), QE_OK);
    EXPECT_EQ(chosen, (std::vector<std::string>{"ref/canonical", "ref/any"}));
}

}  // namespace
