// Epilogue of every GEMM (quantization.md 7.3): bias, activation, gate product, residual, one rounding to y's type.
#pragma once
#include <qengine/num.h>

#include "cuda_api.h"
#include "groups.cuh"
#include "ptx.cuh"

namespace qk_cuda {

PTX_FN float load_real(const void *p, int64_t i, int type) {
    if (type == QE_CODE_F32) return static_cast<const float *>(p)[i];
    uint16_t h = static_cast<const uint16_t *>(p)[i];
    return type == QE_CODE_F16 ? qe_f16_to_f32(h) : qe_bf16_to_f32(h);
}
PTX_FN void store_real(void *p, int64_t i, int type, float v) {
    if (type == QE_CODE_F32)
        static_cast<float *>(p)[i] = v;
    else
        static_cast<uint16_t *>(p)[i] = type == QE_CODE_F16 ? qe_f32_to_f16(v) : qe_f32_to_bf16(v);
}
PTX_FN float activate(float v, int act) {
    if (act == QK_ACT_SILU) return qe_silu(v);
    if (act == QK_ACT_GELU) return qe_gelu(v);
    if (act == QK_ACT_GELU_TANH) return qe_gelu_tanh(v);
    if (act == QK_ACT_RELU2) return v > 0 ? qe_mul(v, v) : 0.0f;
    return v;
}

// int8 output (quantization.md 7.6) of an int32 sum: one fp32 product, or one integer product, addition and shift.
struct Requant {
    const int32_t *bias;
    const float *multiplier;
    const int32_t *fixed; // [n][2]
    int zero;

    PTX_FN Requant of(int64_t rows) const { // from row `rows` on
        return {bias ? bias + rows : nullptr, multiplier ? multiplier + rows : nullptr,
                fixed ? fixed + 2 * rows : nullptr, zero};
    }
    PTX_FN int8_t operator()(uint32_t sum, int64_t n) const {
        const int32_t acc = int32_t(bias ? sum + uint32_t(bias[n]) : sum);
        int64_t q;
        if (fixed) {
            const int shift = fixed[2 * n + 1];
            q = (int64_t(acc) * fixed[2 * n] + (int64_t(1) << (shift - 1))) >> shift;
        } else
            q = qe_rne(qe_clamp(qe_mul(float(acc), multiplier[n]), -1024.0f, 1024.0f));
        q += zero;
        return int8_t(q < -128 ? -128 : q > 127 ? 127 : q);
    }
};
inline Requant requant_of(const qk_plan *plan, const qk_gemm_args *a) {
    return {plan->flags & QK_GEMM_BIAS ? a->bias_q : nullptr, a->requant, a->requant_fixed, a->y_zero};
}

struct Epilogue {
    void *y;
    int64_t ldy, n;
    const float *bias;
    const void *residual;
    int64_t ldr;
    int type, act, gated;

    // Expert e's own: bias lies [experts][n].
    PTX_FN Epilogue of(int64_t expert) const {
        Epilogue e = *this;
        if (e.bias) e.bias += expert * n;
        return e;
    }
    PTX_FN void store(int64_t m, int64_t column, float v) const {
        if (residual) v = qe_add(v, load_real(residual, m * ldr + column, type));
        store_real(y, m * ldy + column, type, v);
    }
    PTX_FN void one(int64_t m, int64_t column, float v) const { // not gated
        if (column >= n) return;
        if (bias) v = qe_add(v, bias[column]);
        store(m, column, activate(v, act));
    }
    // v0, v1: outputs (m, column), (m, column + 1); column is even, the second may lie beyond n.
    PTX_FN void pair(int64_t m, int64_t column, float v0, float v1) const {
        const bool second = column + 1 < n;
        if (column >= n) return;
        if (bias) {
            v0 = qe_add(v0, bias[column]);
            if (second) v1 = qe_add(v1, bias[column + 1]);
        }
        if (gated) {
            if (second) store(m, column / 2, qe_mul(activate(v0, act), v1));
            return;
        }
        store(m, column, activate(v0, act));
        if (second) store(m, column + 1, activate(v1, act));
    }
    // Columns column .. column + 3, column a multiple of 4; halves leave in one 8-byte store where they may.
    PTX_FN void quad(int64_t m, int64_t column, const float (&v)[4]) const {
        if (gated || residual || type == QE_CODE_F32 || column + 4 > n || (ldy & 3) ||
            (reinterpret_cast<uintptr_t>(y) & 7)) {
            pair(m, column, v[0], v[1]);
            pair(m, column + 2, v[2], v[3]);
            return;
        }
        uint16_t h[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float w = activate(bias ? qe_add(v[i], bias[column + i]) : v[i], act);
            h[i] = type == QE_CODE_F16 ? qe_f32_to_f16(w) : qe_f32_to_bf16(w);
        }
        const uint2 word{uint32_t(h[0]) | uint32_t(h[1]) << 16, uint32_t(h[2]) | uint32_t(h[3]) << 16};
        *reinterpret_cast<uint2 *>(static_cast<uint16_t *>(y) + m * ldy + column) = word;
    }
};

inline Epilogue epilogue_of(const qk_gemm_args *a, int y_type, int act, uint32_t flags) {
    Epilogue e{};
    e.y = a->y, e.ldy = a->ldy, e.n = a->w->shape.n;
    e.bias = flags & QK_GEMM_BIAS ? a->bias : nullptr;
    e.residual = flags & QK_GEMM_RESIDUAL ? a->residual : nullptr;
    e.ldr = a->ldr;
    e.type = y_type, e.act = act, e.gated = (flags & QK_GEMM_GATED) != 0;
    return e;
}

inline Epilogue epilogue_of(const qk_plan *plan, const qk_gemm_args *a) {
    return epilogue_of(a, plan->y_type, plan->act, plan->flags);
}
inline bool float_output(const qk_gemm *g, qk_why *why) {
    if (g->y_type == QE_CODE_INT) return qk_no(why, "int8 output");
    if ((g->flags & QK_GEMM_GATED) && g->w.n % 2) return qk_no(why, "gated with odd n");
    return true;
}

} // namespace qk_cuda
