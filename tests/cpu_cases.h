// Weights, activations and calls for the bit tests of the CPU's layouts: hostile values, ragged shapes, any backend.
#ifndef CPU_CASES_H
#define CPU_CASES_H
#include <gtest/gtest.h>
#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <vector>
#include <qengine/num.h>
#include "qk.h"

inline qe_quant Quant(int bits, qe_num scale, int group, int zero) {
    qe_quant q = {};
    q.code = QE_CODE_INT, q.bits = bits, q.scale = scale, q.group_n = 1, q.group_k = group, q.zero_const = zero;
    return q;
}
inline qe_quant Points(qe_quant q) {
    q.zero = QE_ZERO_POINT, q.zero_num = QE_NUM_U8, q.zero_const = 0;
    return q;
}
inline qe_quant Signs(qe_num scale, int group) {
    qe_quant q = Quant(1, scale, group, 0);
    q.code = QE_CODE_SIGN;
    return q;
}
inline qe_quant Super(qe_quant q, qe_num super, int k) {
    q.super = super, q.super_n = 1, q.super_k = k;
    return q;
}
inline qe_quant Mins(qe_quant q) {
    q.zero = QE_ZERO_REAL, q.zero_num = QE_NUM_U6, q.zero_const = 0;
    return q;
}

struct Tensor {
    qe_qtensor t = {};
    std::vector<char> block;
};

inline int64_t Groups(int64_t n, int32_t extent) {
    return extent ? (n + extent - 1) / extent : 1;
}

inline void FillNumber(qe_num num, void *p, int64_t i, std::mt19937 &rng) {
    float v = std::uniform_real_distribution<float>(-0.02f, 0.02f)(rng); // negative ones too
    switch (num) {
    case QE_NUM_F32:
        static_cast<float *>(p)[i] = v;
        break;
    case QE_NUM_F16:
        static_cast<uint16_t *>(p)[i] = qe_f32_to_f16(v);
        break;
    case QE_NUM_BF16:
        static_cast<uint16_t *>(p)[i] = qe_f32_to_bf16(v);
        break;
    case QE_NUM_E8M0:
        static_cast<uint8_t *>(p)[i] = 115 + rng() % 8;
        break;
    case QE_NUM_U6:
        static_cast<uint8_t *>(p)[i] = rng() % 64;
        break;
    case QE_NUM_S8:
        static_cast<uint8_t *>(p)[i] = rng() % 256;
        break;
    default:
        static_cast<uint8_t *>(p)[i] = 1 + rng() % 8;
        break; // U8: 8 * 15 fits int8
    }
}

inline Tensor MakeTensor(const qe_quant &quant, int64_t n, int64_t k, std::mt19937 &rng) {
    Tensor x;
    size_t bytes = qe_qtensor_bytes(&quant, n, k, 0);
    x.block.resize(bytes + 64);
    void *at = reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(x.block.data()) + 63) & ~uintptr_t{63});
    qe_error err;
    EXPECT_EQ(qe_qtensor_place(&x.t, &quant, n, k, 0, at, bytes, &err), QE_OK) << err.message;
    x.t.n = n, x.t.k = k, x.t.rows = n, x.t.first_row = 0;
    x.t.facts = quant.scale == QE_NUM_U8 ? QE_FACT_INT8_PRODUCT : 0;
    auto *codes = static_cast<uint8_t *>(x.t.codes);
    for (int64_t i = 0; i < n * k; i++) codes[i] = rng() % (1u << quant.bits);
    codes[0] = 0; // stored -128
    for (int64_t i = 0; i < n * Groups(k, quant.group_k); i++) FillNumber(qe_num(quant.scale), x.t.scales, i, rng);
    for (int64_t i = 0; quant.super && i < n * Groups(k, quant.super_k); i++) {
        FillNumber(qe_num(quant.super), x.t.super, i, rng);
        if (x.t.zero_super) FillNumber(qe_num(quant.super), x.t.zero_super, i, rng);
    }
    for (int64_t i = 0; x.t.zeros && i < n * Groups(k, quant.group_k); i++)
        static_cast<uint8_t *>(x.t.zeros)[i] = rng() % (quant.zero == QE_ZERO_REAL ? 64 : 1u << quant.bits);
    if (quant.scale == QE_NUM_U8) // keep L * (c - z) in int8
        for (int64_t i = 0; i < n * Groups(k, quant.group_k); i++)
            static_cast<uint8_t *>(x.t.scales)[i] = 1 + rng() % 8;
    return x;
}

inline qe_act Act(int group) {
    qe_act a = {};
    a.mode = QE_ACT_DYNAMIC;
    a.quant = Quant(8, QE_NUM_F32, group, 128);
    return a;
}

inline qe_act SignAct() {
    qe_act a = {};
    a.mode = QE_ACT_DYNAMIC;
    a.quant = Signs(QE_NUM_F32, 0);
    return a;
}

// Threads started per call: the order in which indices run must not matter.
inline void Parallel(void *, qk_task *task, void *arg, int32_t count) {
    std::vector<std::thread> threads;
    for (int32_t i = count - 1; i >= 0; i--) threads.emplace_back(task, arg, i, count);
    for (auto &t : threads) t.join();
}

struct Loaded {
    qk_device device = {};
    qk_weight w = {};
    std::vector<char> blob;
};

inline char *Aligned(std::vector<char> &v, size_t bytes) {
    v.assign(bytes + 256, 0);
    return reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(v.data()) + 255) & ~uintptr_t{255});
}

// Rows [first, first + n) of a whole tensor, pointers into it.
inline qe_qtensor Band(const qe_qtensor &t, int64_t first, int64_t n) {
    const qe_quant &q = t.quant;
    qe_qtensor part = t;
    part.first_row = first, part.n = n, part.rows = t.n;
    auto move = [&](void *p, int32_t extent, size_t row_bytes) {
        return p ? static_cast<char *>(p) + (extent ? first / extent : 0) * row_bytes : nullptr;
    };
    size_t code = q.code == QE_CODE_F32 ? 4 : q.code == QE_CODE_F16 || q.code == QE_CODE_BF16 ? 2 : 1;
    size_t groups = Groups(t.k, q.group_k), supers = Groups(t.k, q.super_k) * qe_num_bytes(q.super);
    part.codes = move(t.codes, 1, t.k * code);
    part.scales = move(t.scales, q.group_n, groups * qe_num_bytes(q.scale));
    part.zeros = move(t.zeros, q.group_n, groups * qe_num_bytes(q.zero_num));
    part.super = move(t.super, q.super_n, supers);
    part.zero_super = move(t.zero_super, q.super_n, supers);
    part.lut = reinterpret_cast<float *>(move(t.lut, q.lut_n, sizeof(float) << q.bits));
    return part;
}

inline void Load(Loaded &l, int backend, uint32_t isa, int threads, const Tensor &t, const qe_act &act) {
    qe_error err;
    ASSERT_EQ(qk_backend_of(backend)->describe(0, &l.device, &err), QE_OK);
    l.device.units = threads;
    if (backend == QK_CPU) l.device.isa = isa;
    qk_shape s = {};
    s.quant = t.t.quant, s.act = act, s.n = t.t.n, s.k = t.t.k, s.facts = t.t.facts;
    s.chunk_k = qk_chunk_k(&s.quant, s.facts, &act, s.n, s.k);
    s.layout = qk_layout_choose(&l.device, &s, nullptr, nullptr);
    ASSERT_NE(s.layout, nullptr);
    size_t band = s.layout->band_bytes(&s), rows = s.layout->band_rows, bands = (s.n + rows - 1) / rows;
    char *blob = Aligned(l.blob, band * bands);
    for (size_t b = 0; b < bands; b++) {
        qe_qtensor part = Band(t.t, b * rows, std::min<int64_t>(rows, s.n - b * rows));
        s.layout->pack(&s, &part, blob + b * band);
    }
    l.w.shape = s, l.w.blob = blob, l.w.blob_bytes = band * bands;
}

struct Epilogue {
    int32_t act = QK_ACT_NONE, y_type = QE_CODE_F32;
    bool bias = false, gated = false, residual = false;
};

// y as stored: [m][n] (n / 2 when gated) of the epilogue's type, as floats. `planned`: the plan's tokens, if more than m.
inline std::vector<float> RunLinear(const Loaded &l, const std::vector<float> &x, int64_t m, bool parallel,
                                    const Epilogue &e = {}, int64_t planned = 0) {
    qe_error err = {};
    const qk_backend *backend = qk_backend_of(l.device.backend);
    qk_queue queue = {};
    queue.device = &l.device, queue.parallel = parallel ? Parallel : nullptr;
    qk_x q = {};
    std::vector<char> x_block, work;
    size_t bytes = qk_x_bytes(&l.device, &l.w.shape, m, QE_CODE_F32, &q);
    qk_x_rebase(&q, Aligned(x_block, bytes));
    q.m = m;
    qk_prepare p = {};
    p.x = x.data(), p.ldx = l.w.shape.k, p.x_type = QE_CODE_F32, p.next = &l.w, p.out = &q;
    EXPECT_EQ(backend->ops.prepare(&p, &queue, &err), QE_OK) << err.message;
    qk_gemm g = {};
    g.w = l.w.shape, g.x = q.quant, g.m = std::max(m, planned), g.y_type = e.y_type, g.act = e.act;
    g.flags = (e.bias ? QK_GEMM_BIAS : 0) | (e.gated ? QK_GEMM_GATED : 0) | (e.residual ? QK_GEMM_RESIDUAL : 0);
    qk_plan plan;
    EXPECT_EQ(qk_gemm_plan(&l.device, &g, &plan, nullptr, nullptr, &err), QE_OK) << err.message;
    const int64_t n = l.w.shape.n, width = e.gated ? n / 2 : n, ld = width + 3; // 3 columns that must stay
    std::vector<float> bias(n), residual(m * ld), y(m * ld, 12345.0f), out;
    std::mt19937 rng(9);
    std::normal_distribution<float> normal;
    for (auto &v : bias) v = normal(rng);
    for (auto &v : residual) v = normal(rng);
    auto narrow = [&](float v) { return e.y_type == QE_CODE_F16 ? qe_f32_to_f16(v) : qe_f32_to_bf16(v); };
    auto widen = [&](uint16_t v) { return e.y_type == QE_CODE_F16 ? qe_f16_to_f32(v) : qe_bf16_to_f32(v); };
    std::vector<uint16_t> y16(m * ld, 0x1234), residual16;
    for (float v : residual) residual16.push_back(narrow(v));
    bool wide = e.y_type == QE_CODE_F32;
    qk_gemm_args a = {};
    a.w = &l.w, a.x = q, a.y = wide ? static_cast<void *>(y.data()) : y16.data(), a.ldy = ld;
    if (e.bias) a.bias = bias.data();
    if (e.residual) a.residual = wide ? static_cast<const void *>(residual.data()) : residual16.data(), a.ldr = ld;
    const size_t guard = 4096;
    char *workspace = Aligned(work, plan.workspace_bytes + guard);
    memset(workspace, 0x5a, plan.workspace_bytes + guard); // what a run does not write it does not read
    a.workspace = workspace;
    EXPECT_EQ(qk_gemm_run(&plan, &a, &queue, &err), QE_OK) << err.message;
    for (size_t i = 0; i < guard; i++) EXPECT_EQ(workspace[plan.workspace_bytes + i], 0x5a) << "behind the workspace";
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = 0; c < ld; c++) {
            if (c < width)
                out.push_back(wide ? y[r * ld + c] : widen(y16[r * ld + c]));
            else
                EXPECT_TRUE(wide ? y[r * ld + c] == 12345.0f : y16[r * ld + c] == 0x1234)
                    << "column " << c << " written";
        }
    return out;
}

inline std::vector<float> MakeX(int64_t m, int64_t k, std::mt19937 &rng) {
    std::normal_distribution<float> normal;
    std::vector<float> x(m * k);
    for (auto &v : x) v = normal(rng) * (rng() % 17 == 0 ? 10.0f : 1.0f);
    for (int64_t i = 0; m > 1 && i < k; i++) x[k + i] = 0.0f;
    for (int64_t i = 0; m > 2 && i < k; i++) x[2 * k + i] = 1e-35f;
    if (m > 3) x[3 * k + k / 2] = NAN;
    if (m > 4) x[4 * k + k - 1] = -INFINITY;
    return x;
}

inline bool SameBits(float a, float b) {
    return (a != a && b != b) || !memcmp(&a, &b, 4);
}

inline int64_t Different(const std::vector<float> &a, const std::vector<float> &b) {
    int64_t bad = 0;
    for (size_t i = 0; i < a.size(); i++) bad += !SameBits(a[i], b[i]);
    return bad;
}

// What this program tests: every ISA of the machine; or, built over the software model, AVX-512 without and with unpacked panels, and with AMX.
inline std::vector<uint32_t> Isas() {
    qk_device d = {};
#ifdef QE_AVX512_MODEL
    qk_backend_of(QK_CPU)->describe(0, &d, nullptr);
    if (!(d.isa & QK_ISA_AVX2)) return {}; // the model is compiled for AVX2
    const uint32_t avx512 = QK_ISA_AVX2 | QK_ISA_AVX512 | QK_ISA_VNNI512 | QK_ISA_VPOPCNT;
    return {avx512, avx512 | QK_ISA_FEW_PORTS, avx512 | QK_ISA_AMX};
#endif
    qk_backend_of(QK_CPU)->describe(0, &d, nullptr);
    std::vector<uint32_t> isas = {0};
    if (d.isa & QK_ISA_AVX2) isas.push_back(QK_ISA_AVX2);
    const uint32_t vnni = d.isa & ~uint32_t{QK_ISA_AMX | QK_ISA_FEW_PORTS};
    if (d.isa & QK_ISA_VNNI512) isas.insert(isas.end(), {vnni, vnni | QK_ISA_FEW_PORTS});
    if (d.isa & QK_ISA_AMX) isas.push_back(d.isa);
    return isas;
}

// Under sanitizers the portable instance, whose tiles are of 1 and 4 tokens, takes most of the time: it runs so many tokens
// there as reach several tiles and every remainder. What threads share does not depend on the instruction set.
inline int64_t MostTokens(uint32_t isa, int64_t most) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return isa ? most : std::min<int64_t>(most, 16);
#else
    return (void)isa, most;
#endif
}

#endif
