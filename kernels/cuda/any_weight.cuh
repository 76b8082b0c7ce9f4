// A row of layout cuda/any (cuda_backend.h): its codes, scales and zeros of any scheme, and what they stand for.
#pragma once
#include "cuda_backend.h"
#include "epilogue.cuh"

namespace qk_cuda {

PTX_FN float number(int type, const unsigned char *p, int64_t i) {
    switch (type) {
    case QE_NUM_F32:
        return reinterpret_cast<const float *>(p)[i];
    case QE_NUM_F16:
        return qe_f16_to_f32(reinterpret_cast<const uint16_t *>(p)[i]);
    case QE_NUM_BF16:
        return qe_bf16_to_f32(reinterpret_cast<const uint16_t *>(p)[i]);
    case QE_NUM_E8M0:
        return qe_e8m0_to_f32(p[i]);
    case QE_NUM_E4M3:
        return qe_e4m3_to_f32(p[i]);
    case QE_NUM_U8:
    case QE_NUM_U6:
    case QE_NUM_U4:
        return float(p[i]);
    case QE_NUM_S8:
    case QE_NUM_S6:
        return float(int8_t(p[i]));
    case QE_NUM_POW2N:
        return p[i] ? 0.5f : 1.0f;
    default:
        return 1.0f;
    }
}
PTX_FN bool integer_number(int type) {
    return type >= QE_NUM_U8 && type <= QE_NUM_U4;
}
PTX_FN float power_of_two(int e) {
    return qe_f32_from_bits(uint32_t(e + 127) << 23);
}

// One row of the weight. k < 2^31: divisions of 32 bits.
struct AnyRow {
    const qe_quant &q;
    const qk_any_record &record;
    const unsigned char *head, *p; // the table of the layout's head, the row's record

    PTX_FN uint32_t code(int64_t k) const {
        const int bits = record.code_bits;
        if (bits == 8) return p[k];
        return uint32_t(p[k * bits / 8]) >> (k * bits % 8) & ((1u << bits) - 1);
    }
    PTX_FN float value(int64_t k) const { // C
        if (q.code == QE_CODE_INT) return float(code(k));
        if (q.code == QE_CODE_SIGN) return code(k) ? 1.0f : -1.0f;
        if (q.code <= QE_CODE_BF16) return load_real(p, k, q.code);
        const unsigned char *table = record.lut_in_head ? head : p + record.lut;
        return reinterpret_cast<const float *>(table)[code(k)];
    }
    PTX_FN int64_t group(int64_t k) const { return q.group_k ? uint32_t(k) / uint32_t(q.group_k) : 0; }
    PTX_FN int64_t super(int64_t k) const { return q.super_k ? uint32_t(k) / uint32_t(q.super_k) : 0; }
    PTX_FN float inner(int64_t k) const { return number(q.scale, p + record.scales, group(k)); }
    PTX_FN float outer(int64_t k) const { return number(q.super, p + record.super, super(k)); }
    PTX_FN float scale(int64_t k) const {
        float s = inner(k);
        if (q.super != QE_NUM_ONE) s = q.flags & QE_SUPER_DIVIDES ? qe_div(s, outer(k)) : qe_mul(outer(k), s);
        return q.scale_log2 ? qe_mul(s, power_of_two(q.scale_log2)) : s;
    }
    PTX_FN float zero(int64_t k) const {
        if (q.zero == QE_ZERO_CONST) return float(q.zero_const);
        return q.zero == QE_ZERO_POINT ? number(q.zero_num, p + record.zeros, group(k)) : 0.0f;
    }
    PTX_FN float min_factor(int64_t k) const { return number(q.zero_num, p + record.zeros, group(k)); }
    PTX_FN float min_super(int64_t k) const { return number(q.super, p + record.zero_super, super(k)); }
    PTX_FN float dequantized(int64_t k) const { // qe_dequantize()
        float v = qe_mul(scale(k), qe_sub(value(k), zero(k)));
        if (q.zero != QE_ZERO_REAL) return v;
        float b = min_factor(k);
        return qe_add(v, integer_number(q.zero_num) ? qe_mul(min_super(k), b) : b);
    }
    PTX_FN bool integers() const {
        if (q.code != QE_CODE_INT && q.code != QE_CODE_SIGN) return false;
        return q.zero != QE_ZERO_POINT || integer_number(q.zero_num);
    }
};

} // namespace qk_cuda
