// What the tests of the cuda backend share: schemes, random canonical tensors, packing by bands, and one prepared GEMM
// through qk.h on any backend.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <qengine/num.h>
#include <qk.h>

#ifdef QE_TEST_GPU
#include "gpu/real_device.h"
#else
#include "simt_device.h"
#endif

namespace cuda_test {

struct Scheme {
    const char *name;
    qe_quant quant;
    uint32_t facts;
    int act_group; // -1: float input; 0: per token
    bool asymmetric;
    const char *layout;
    bool fixed = false;    // static activations
    bool thorough = false; // the one of its kernels that runs every problem
    bool signs = false;    // 1-bit activations
};
inline qe_quant integer(int bits, int scale, int group_k, int zero, int zero_num, int zero_const) {
    qe_quant q{};
    q.code = QE_CODE_INT, q.bits = uint8_t(bits), q.scale = uint8_t(scale), q.group_n = 1, q.group_k = group_k;
    q.zero = uint8_t(zero), q.zero_num = uint8_t(zero_num), q.zero_const = int16_t(zero_const);
    return q;
}
inline qe_quant two_level(qe_quant q, int super, int super_k) {
    q.super = uint8_t(super), q.super_n = 1, q.super_k = super_k;
    return q;
}
inline qe_quant table(int code, int bits, int scale, int group_k) {
    qe_quant q{};
    q.code = uint8_t(code), q.bits = uint8_t(bits), q.scale = uint8_t(scale), q.group_n = 1, q.group_k = group_k;
    return q;
}
inline qe_quant plain(int code, int bits) {
    qe_quant q{};
    q.code = uint8_t(code), q.bits = uint8_t(bits);
    return q;
}
inline qe_quant table_of_rows(int bits) {
    qe_quant q = table(QE_CODE_LUT, bits, QE_NUM_F16, 64);
    q.lut_n = 1;
    return q;
}
inline const std::vector<Scheme> &schemes() {
    static const std::vector<Scheme> all = {
        {"w8a8", integer(8, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 128), 0, 0, false, "cuda/w8a8", false, true},
        {"w8a8_f16_asym_x", integer(8, QE_NUM_F16, 0, QE_ZERO_CONST, 0, 128), 0, 0, true, "cuda/w8a8"},
        {"w4a8_channel", integer(4, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 8), 0, 0, false, "cuda/w4a8", false, true},
        {"w8a8_static", integer(8, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 128), 0, 0, true, "cuda/w8a8", true},
        {"w4a8_points", integer(4, QE_NUM_BF16, 0, QE_ZERO_POINT, QE_NUM_U8, 0), 0, 0, true, "cuda/w4a8"},
        {"w3a8_static", integer(3, QE_NUM_F16, 0, QE_ZERO_CONST, 0, 4), 0, 0, false, "cuda/w4a8", true},
        {"w4a8_g128", two_level(integer(4, QE_NUM_U8, 128, QE_ZERO_POINT, QE_NUM_U8, 0), QE_NUM_F16, 0),
         QE_FACT_INT8_PRODUCT, 0, false, "cuda/w4a8", false, true},
        {"w4a8_g32_asym_x", two_level(integer(4, QE_NUM_U8, 32, QE_ZERO_POINT, QE_NUM_U8, 0), QE_NUM_F32, 0),
         QE_FACT_INT8_PRODUCT, 0, true, "cuda/w4a8", false, true},
        {"w8a8_groups", integer(8, QE_NUM_F16, 32, QE_ZERO_CONST, 0, 128), 0, 32, false, "cuda/any"},
        {"w4a8_two_level", two_level(integer(4, QE_NUM_U4, 64, QE_ZERO_CONST, 0, 8), QE_NUM_F16, 0),
         QE_FACT_INT8_PRODUCT, 0, false, "cuda/w4a8"},
        {"q4_k", two_level(integer(4, QE_NUM_U6, 32, QE_ZERO_REAL, QE_NUM_U6, 0), QE_NUM_F16, 256), 0, 256, false,
         "cuda/k", false, true},
        {"q6_k", two_level(integer(6, QE_NUM_S8, 16, QE_ZERO_CONST, 0, 32), QE_NUM_F16, 256), 0, 256, false,
         "cuda/k", false, true},
        {"w4a8_fp16_groups", integer(4, QE_NUM_F16, 64, QE_ZERO_POINT, QE_NUM_U8, 0), 0, 0, true, "cuda/any"},
        {"w3a8_biases", integer(3, QE_NUM_F16, 64, QE_ZERO_REAL, QE_NUM_F16, 0), 0, 0, false, "cuda/any"},
        {"iq4nl_a8", table(QE_CODE_IQ4NL, 4, QE_NUM_F16, 32), 0, 32, false, "cuda/any"},
        {"mxfp4_a8", table(QE_CODE_E2M1, 4, QE_NUM_E8M0, 32), 0, 32, false, "cuda/any"},
        {"w4a16_sym", integer(4, QE_NUM_F16, 128, QE_ZERO_CONST, 0, 8), 0, -1, false, "cuda/w4a16", false, true},
        {"w4a16_points", integer(4, QE_NUM_F16, 64, QE_ZERO_POINT, QE_NUM_U8, 0), 0, -1, false, "cuda/w4a16", false, true},
        {"w4a16_g32", integer(4, QE_NUM_F16, 32, QE_ZERO_CONST, 0, 8), 0, -1, false, "cuda/w4a16"},
        {"w4a16_channel", integer(4, QE_NUM_F16, 0, QE_ZERO_CONST, 0, 8), 0, -1, false, "cuda/w4a16"},
        {"w8a16", integer(8, QE_NUM_F16, 128, QE_ZERO_CONST, 0, 128), 0, -1, false, "cuda/wxa16", false, true},
        {"nf4", table(QE_CODE_NF4, 4, QE_NUM_F32, 64), 0, -1, false, "cuda/wxa16", false, true},
        {"w8a16_points", integer(8, QE_NUM_BF16, 32, QE_ZERO_POINT, QE_NUM_U8, 0), 0, -1, false, "cuda/wxa16"},
        {"w8a16_g16_points", integer(8, QE_NUM_F16, 16, QE_ZERO_POINT, QE_NUM_U8, 0), 0, -1, false, "cuda/wxa16"},
        {"w8a16_zero_256", integer(8, QE_NUM_F16, 128, QE_ZERO_CONST, 0, 256), 0, -1, false, "cuda/any"},
        {"nf4_g128", table(QE_CODE_NF4, 4, QE_NUM_F32, 128), 0, -1, false, "cuda/wxa16"},
        {"w6a16_channel", integer(6, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 32), 0, -1, false, "cuda/wxa16"},
        {"w4a16_bf16_scales", integer(4, QE_NUM_BF16, 48, QE_ZERO_CONST, 0, 8), 0, -1, false, "cuda/wxa16"},
        {"iq4nl", table(QE_CODE_IQ4NL, 4, QE_NUM_F16, 32), 0, -1, false, "cuda/wxa16"},
        {"mxfp4", table(QE_CODE_E2M1, 4, QE_NUM_E8M0, 32), 0, -1, false, "cuda/wxa16"},
        {"nvfp4", two_level(table(QE_CODE_E2M1, 4, QE_NUM_E4M3, 16), QE_NUM_F32, 0), 0, -1, false, "cuda/wxa16"},
        {"fp8", table(QE_CODE_E4M3, 8, QE_NUM_F32, 128), 0, -1, false, "cuda/any"},
        {"sign", table(QE_CODE_SIGN, 1, QE_NUM_F32, 0), 0, -1, false, "cuda/any"},
        {"w1a1", table(QE_CODE_SIGN, 1, QE_NUM_F32, 0), 0, 0, false, "cuda/w1a1", false, true, true},
        {"w1a1_groups", table(QE_CODE_SIGN, 1, QE_NUM_F16, 64), 0, 0, false, "cuda/any", false, false, true},
        {"w8a1", integer(8, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 128), 0, 0, false, "cuda/w8a8", false, false, true},
        {"w4a1_g128", two_level(integer(4, QE_NUM_U8, 128, QE_ZERO_POINT, QE_NUM_U8, 0), QE_NUM_F16, 0),
         QE_FACT_INT8_PRODUCT, 0, false, "cuda/w4a8", false, false, true},
        {"w1a8", table(QE_CODE_SIGN, 1, QE_NUM_F32, 0), 0, 0, false, "cuda/w2a8", false, true},
        {"w2a8", integer(2, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 1), 0, 0, false, "cuda/w2a8", false, true},
        {"w2a8_asym_x", integer(2, QE_NUM_F16, 0, QE_ZERO_CONST, 0, 2), 0, 0, true, "cuda/w2a8"},
        {"w2a8_static", integer(2, QE_NUM_BF16, 0, QE_ZERO_CONST, 0, 4), 0, 0, true, "cuda/w2a8", true},
        {"w1a8_01", integer(1, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 0), 0, 0, true, "cuda/w2a8"},
        {"w2a1", integer(2, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 1), 0, 0, false, "cuda/w2a8", false, false, true},
        {"w2a8_points", integer(2, QE_NUM_F32, 0, QE_ZERO_POINT, QE_NUM_U8, 0), 0, 0, false, "cuda/w4a8"},
        {"lut", table(QE_CODE_LUT, 4, QE_NUM_F16, 64), 0, -1, false, "cuda/wxa16"},
        {"q4_k_a16", two_level(integer(4, QE_NUM_U6, 32, QE_ZERO_REAL, QE_NUM_U6, 0), QE_NUM_F16, 256), 0, -1, false,
         "cuda/k", false, true},
        {"q6_k_a16", two_level(integer(6, QE_NUM_S8, 16, QE_ZERO_CONST, 0, 32), QE_NUM_F16, 256), 0, -1, false, "cuda/k", false,
         true},
        {"w3a16_biases", integer(3, QE_NUM_F16, 64, QE_ZERO_REAL, QE_NUM_F16, 0), 0, -1, false, "cuda/any", false, true},
        {"w2a16_g20", integer(2, QE_NUM_F16, 20, QE_ZERO_POINT, QE_NUM_F16, 0), 0, -1, false, "cuda/any"},
        {"fp8_e5m2", table(QE_CODE_E5M2, 8, QE_NUM_E8M0, 32), 0, -1, false, "cuda/any"},
        {"lut_rows", table_of_rows(3), 0, -1, false, "cuda/any"},
        {"f16", plain(QE_CODE_F16, 16), 0, -1, false, "cuda/any"},
        {"bf16", plain(QE_CODE_BF16, 16), 0, -1, false, "cuda/any"},
        {"f32", plain(QE_CODE_F32, 32), 0, -1, false, "cuda/any"},
    };
    return all;
}

// Memory of one backend, released together.
struct Pool {
    const qk_backend *backend;
    qk_device device{};
    qk_queue queue{};
    std::vector<void *> blocks;
    explicit Pool(const qk_backend *b) : backend(b) {
        EXPECT_EQ(b->describe(0, &device, nullptr), QE_OK);
        queue.device = &device;
    }
    ~Pool() {
        for (void *p : blocks) backend->release(&device, p);
    }
    void *put(const void *src, size_t bytes) {
        void *p = nullptr;
        EXPECT_EQ(backend->alloc(&device, bytes, &p, nullptr), QE_OK);
        blocks.push_back(p);
        if (src) { EXPECT_EQ(backend->copy(&queue, p, src, bytes, nullptr), QE_OK); }
        return p;
    }
    template <class T> std::vector<T> get(const T *p, size_t count) {
        std::vector<T> out(p ? count : 0);
        if (p) { EXPECT_EQ(backend->copy(&queue, out.data(), p, count * sizeof(T), nullptr), QE_OK); }
        EXPECT_EQ(backend->wait(&queue, nullptr), QE_OK);
        return out;
    }
};

struct Tensor {
    qe_qtensor t{};
    std::vector<char> block;
};
inline void fill_numbers(std::mt19937 &g, int num, void *p, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const float v = float(int(g() % 2001) - 1000) * 1e-4f + 1e-5f; // both signs
        if (num == QE_NUM_F32)
            static_cast<float *>(p)[i] = v;
        else if (num == QE_NUM_F16)
            static_cast<uint16_t *>(p)[i] = qe_f32_to_f16(v);
        else if (num == QE_NUM_BF16)
            static_cast<uint16_t *>(p)[i] = qe_f32_to_bf16(v);
        else if (num == QE_NUM_E8M0)
            static_cast<uint8_t *>(p)[i] = uint8_t(120 + g() % 8);
        else if (num == QE_NUM_E4M3)
            static_cast<uint8_t *>(p)[i] = uint8_t(g() % 120);
        else if (num == QE_NUM_S8)
            static_cast<int8_t *>(p)[i] = int8_t(int(g() % 255) - 127);
        else if (num == QE_NUM_U6)
            static_cast<uint8_t *>(p)[i] = uint8_t(g() % 64);
        else if (num == QE_NUM_U4)
            static_cast<uint8_t *>(p)[i] = uint8_t(1 + g() % 15);
        else if (num != QE_NUM_ONE)
            static_cast<uint8_t *>(p)[i] = uint8_t(g() % 16);
    }
}
inline int64_t parts(int64_t k, int32_t e) {
    return e ? (k + e - 1) / e : 1;
}
// Any zero with any scale: codes move to where scale * (code - zero) is in [-128, 127].
inline void fit_int8_products(std::mt19937 &g, qe_qtensor &t, int64_t n, int64_t k) {
    const int64_t groups = parts(k, t.quant.group_k);
    uint8_t *codes = static_cast<uint8_t *>(t.codes), *scales = static_cast<uint8_t *>(t.scales);
    const uint8_t *zeros = static_cast<uint8_t *>(t.zeros);
    for (int64_t i = 0; i < n * groups; i++) scales[i] = uint8_t(g() % 128);
    for (int64_t i = 0; i < n * k; i++) {
        const int64_t group = i / k * groups + i % k / t.quant.group_k;
        const int s = std::max<int>(scales[group], 1), z = zeros[group];
        codes[i] = uint8_t(std::clamp<int>(codes[i], z - 128 / s, z + 127 / s));
    }
}
inline void make_tensor(Tensor *out, const Scheme &s, int64_t n, int64_t k, uint32_t seed) {
    std::mt19937 g(seed);
    const qe_quant &q = s.quant;
    out->block.resize(qe_qtensor_bytes(&q, n, k, 0) + 64);
    char *base = reinterpret_cast<char *>((uintptr_t(out->block.data()) + 63) / 64 * 64);
    ASSERT_EQ(qe_qtensor_place(&out->t, &q, n, k, 0, base, out->block.size() - 64, nullptr), QE_OK);
    qe_qtensor &t = out->t;
    t.facts = s.facts;
    const int64_t rows = q.group_n == 1 ? n : 1;
    if (q.code <= QE_CODE_BF16)
        fill_numbers(g,
                     q.code == QE_CODE_F32   ? QE_NUM_F32
                     : q.code == QE_CODE_F16 ? QE_NUM_F16
                                             : QE_NUM_BF16,
                     t.codes, n * k);
    else
        for (int64_t i = 0; i < n * k; i++) {
            uint8_t c = uint8_t(g() & ((1u << q.bits) - 1));
            if (q.code == QE_CODE_E4M3 && (c & 127) == 127) c = 0;
            if (q.code == QE_CODE_E5M2 && (c & 127) >= 124) c = 0;
            static_cast<uint8_t *>(t.codes)[i] = c;
        }
    if (t.scales) fill_numbers(g, q.scale, t.scales, rows * parts(k, q.group_k));
    if (t.super) fill_numbers(g, q.super, t.super, rows * parts(k, q.super_k));
    if (t.zeros) fill_numbers(g, q.zero_num, t.zeros, rows * parts(k, q.group_k));
    if (s.facts & QE_FACT_INT8_PRODUCT && t.zeros) fit_int8_products(g, t, n, k);
    if (t.zero_super) fill_numbers(g, q.super, t.zero_super, rows * parts(k, q.super_k));
    if (t.lut)
        for (int64_t i = 0; i < (q.lut_n ? parts(n, q.lut_n) : 1) << q.bits; i++) t.lut[i] = float(int(g() % 2001) - 1000) * 1e-3f;
}

// A group of 16 to k columns: powers of two, multiples of 16, and k itself.
inline int32_t random_group(std::mt19937 &g, int64_t k) {
    switch (g() % 3) {
    case 0:
        return int32_t(16 << g() % 6);
    case 1:
        return int32_t(16 * (1 + int64_t(g() % uint32_t((k + 15) / 16))));
    default:
        return int32_t(std::max<int64_t>(k, 16));
    }
}
inline qk_shape shape_of(const Scheme &s, int64_t n, int64_t k) {
    qk_shape shape{};
    shape.quant = s.quant, shape.n = n, shape.k = k, shape.facts = s.facts;
    if (s.act_group >= 0) {
        shape.act.mode = QE_ACT_DYNAMIC;
        shape.act.quant = integer(8, QE_NUM_F32, s.act_group, QE_ZERO_CONST, 0, 128);
        if (s.asymmetric) {
            shape.act.quant.zero = QE_ZERO_POINT, shape.act.quant.zero_num = QE_NUM_U8, shape.act.quant.zero_const = 0;
        }
    }
    if (s.signs) shape.act.quant = table(QE_CODE_SIGN, 1, QE_NUM_F32, 0);
    if (s.fixed) shape.act.mode = QE_ACT_STATIC, shape.act.scale = 0.013f, shape.act.zero = s.asymmetric ? 139 : 128;
    shape.chunk_k = qk_chunk_k(&shape.quant, shape.facts, &shape.act, n, k);
    return shape;
}

// A band of the tensor as a view of its arrays.
inline qe_qtensor band_of(const qe_qtensor &t, int64_t row, int64_t rows) {
    qe_qtensor b = t;
    const qe_quant &q = t.quant;
    auto num = [](int type) {
        return int64_t(type == QE_NUM_ONE ? 0 : type == QE_NUM_F32 ? 4 : type <= QE_NUM_BF16 ? 2 : 1);
    };
    auto at = [&](void *p, int64_t bytes) { return p ? static_cast<char *>(p) + row * bytes : nullptr; };
    b.first_row = row, b.n = rows, b.rows = t.n;
    b.codes = at(t.codes, t.k * (q.bits > 8 ? q.bits / 8 : 1));
    b.scales = at(t.scales, parts(t.k, q.group_k) * num(q.scale));
    b.super = at(t.super, parts(t.k, q.super_k) * num(q.super));
    b.zeros = at(t.zeros, parts(t.k, q.group_k) * num(q.zero_num));
    if (q.lut_n == 1) b.lut = t.lut + (row << q.bits);
    b.zero_super = at(t.zero_super, parts(t.k, q.super_k) * num(q.super));
    return b;
}
inline qk_weight pack_as(Pool &pool, const qk_shape &shape, const qe_qtensor &t, std::vector<char> *packed = nullptr) {
    const qk_layout *l = shape.layout;
    const size_t head = l->head_bytes(&shape), band = l->band_bytes(&shape);
    const int64_t bands = (t.n + l->band_rows - 1) / l->band_rows;
    std::vector<char> host(head + size_t(bands) * band + 16);
    char *aligned = reinterpret_cast<char *>((uintptr_t(host.data()) + 15) / 16 * 16);
    qe_qtensor first = band_of(t, 0, std::min<int64_t>(t.n, l->band_rows));
    l->pack_head(&shape, &first, aligned);
    for (int64_t b = 0; b < bands; b++) {
        const int64_t row = b * l->band_rows;
        qe_qtensor view = band_of(t, row, std::min<int64_t>(l->band_rows, t.n - row));
        l->pack(&shape, &view, aligned + head + size_t(b) * band);
    }
    qk_weight w{};
    w.shape = shape, w.blob_bytes = head + size_t(bands) * band;
    w.blob = pool.put(aligned, w.blob_bytes);
    if (packed) packed->assign(aligned, aligned + w.blob_bytes);
    return w;
}
// In the layout that the backend chooses.
inline qk_weight pack(Pool &pool, qk_shape shape, const qe_qtensor &t, std::vector<char> *packed = nullptr) {
    shape.layout = nullptr;
    qk_why why{};
    for (auto l = pool.backend->layouts; *l && !shape.layout; l++)
        if ((*l)->supports(&pool.device, &shape, &why)) shape.layout = *l;
    EXPECT_NE(shape.layout, nullptr) << why.text;
    return pack_as(pool, shape, t, packed);
}

struct Problem {
    int64_t m, n, k;
    int x_type, y_type, act;
    uint32_t flags;
    bool tiles = false; // only for rows that work in tiles: too large for one thread per output
    int units = 132;    // SMs of the device: few enough, and k is not split
};
inline std::vector<float> random_row(size_t count, uint32_t seed) {
    std::mt19937 g(seed);
    std::vector<float> v(count);
    for (float &f : v) f = float(int(g() % 4001) - 2000) * 1e-3f;
    return v;
}
inline std::vector<char> as_type(const std::vector<float> &v, int type) {
    std::vector<char> out(v.size() * (type == QE_CODE_F32 ? 4 : 2));
    for (size_t i = 0; i < v.size(); i++) {
        uint16_t h = type == QE_CODE_F16 ? qe_f32_to_f16(v[i]) : qe_f32_to_bf16(v[i]);
        if (type == QE_CODE_F32)
            std::memcpy(&out[i * 4], &v[i], 4);
        else
            std::memcpy(&out[i * 2], &h, 2);
    }
    return out;
}
inline bool ends_with(const char *text, const char *end) {
    const size_t a = std::strlen(text), b = std::strlen(end);
    return a >= b && !std::strcmp(text + a - b, end);
}
// Whether a plan writes 16-bit weights into its workspace: dense rows, and what is handed over to their kernels.
inline bool dense_plan(const qk_plan &plan) {
    return !std::strncmp(plan.row->name, "cuda/dense", 10) || (!std::strcmp(plan.row->name, "cuda/ka16_sm80") && plan.variant >= 8);
}
inline size_t type_bytes(int type) {
    return type == QE_CODE_F32 ? 4 : 2;
}

// The prepared input of a problem; kept for all rows and schedules that read it.
inline qk_x input(Pool &pool, const qk_weight &w, const Problem &p, uint32_t seed) {
    qe_error err{};
    const std::vector<char> x = as_type(random_row(size_t(p.m * p.k), seed), p.x_type);
    qk_x prepared{};
    const size_t bytes = pool.backend->ops.x_bytes(&pool.device, &w.shape, p.m, p.x_type, &prepared);
    qk_x_rebase(&prepared, pool.put(nullptr, bytes));
    qk_prepare prepare{};
    prepare.x = pool.put(x.data(), x.size()), prepare.ldx = p.k, prepare.x_type = p.x_type;
    prepare.next = &w, prepare.out = &prepared;
    EXPECT_EQ(pool.backend->ops.prepare(&prepare, &pool.queue, &err), QE_OK) << err.message;
    return prepared;
}
inline qk_gemm gemm_of(const qk_weight &w, const Problem &p, const qk_x &prepared) {
    qk_gemm g{};
    g.w = w.shape, g.x = prepared.quant, g.m = p.m, g.y_type = p.y_type, g.act = p.act, g.flags = p.flags;
    return g;
}
// One plan; returns y's bytes.
inline std::vector<char> run_plan(Pool &pool, const qk_weight &w, const qk_plan &plan, const Problem &p,
                                  const qk_x &prepared, uint32_t seed) {
    qe_error err{};
    const int64_t outputs = p.flags & QK_GEMM_GATED ? p.n / 2 : p.n, ldy = outputs + 3;
    const std::vector<float> bias = random_row(size_t(p.n), seed + 1);
    const std::vector<char> residual = as_type(random_row(size_t(p.m * ldy), seed + 2), p.y_type);
    std::vector<char> y(size_t(p.m * ldy) * type_bytes(p.y_type), 0x5a);
    qk_gemm_args a{};
    a.w = &w, a.x = prepared, a.ldy = ldy, a.ldr = ldy;
    a.y = pool.put(y.data(), y.size());
    if (p.flags & QK_GEMM_BIAS) a.bias = static_cast<const float *>(pool.put(bias.data(), bias.size() * 4));
    if (p.flags & QK_GEMM_RESIDUAL) a.residual = pool.put(residual.data(), residual.size());
    if (plan.workspace_bytes) a.workspace = pool.put(nullptr, plan.workspace_bytes);
    EXPECT_EQ(plan.row->run(&plan, &a, &pool.queue, &err), QE_OK) << plan.row->name << ": " << err.message;
    EXPECT_EQ(pool.backend->copy(&pool.queue, y.data(), a.y, y.size(), nullptr), QE_OK);
    EXPECT_EQ(pool.backend->wait(&pool.queue, nullptr), QE_OK);
    return y;
}
// One row of the layout, as it plans.
inline std::vector<char> run(Pool &pool, const qk_weight &w, const qk_row *row, const Problem &p, const qk_x &prepared,
                             uint32_t seed) {
    const qk_gemm g = gemm_of(w, p, prepared);
    qk_plan plan = qk_plan_begin(row, &g);
    row->plan(&pool.device, &g, &plan);
    return run_plan(pool, w, plan, p, prepared, seed);
}
inline float value_at(const std::vector<char> &y, size_t i, int type) {
    if (type == QE_CODE_F32) {
        float f;
        std::memcpy(&f, &y[i * 4], 4);
        return f;
    }
    uint16_t h;
    std::memcpy(&h, &y[i * 2], 2);
    return type == QE_CODE_F16 ? qe_f16_to_f32(h) : qe_bf16_to_f32(h);
}

} // namespace cuda_test
