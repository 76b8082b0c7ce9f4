/* Layout cuda/wxa16: 8-bit integers and 4-bit table codes for float input, one fp32 scale per unit. See cuda_backend.h. */
#include "cuda_backend.h"
#include "cuda_pack.h"

#include <string.h>

static bool fixed_table(int code) {
    return code == QE_CODE_NF4 || code == QE_CODE_FP4B || code == QE_CODE_IQ4NL || code == QE_CODE_E2M1;
}
static int64_t group_count(const qe_quant *q, int64_t k) {
    return q->group_k ? (k + q->group_k - 1) / q->group_k : 1;
}
/* A byte or a float: scale types that fp32 holds exactly and that can be found again from their product with S. */
static bool is_byte(int num) {
    return num == QE_NUM_E8M0 || num == QE_NUM_E4M3 || (num >= QE_NUM_U8 && num <= QE_NUM_U4);
}
static float scale_value(int num, const void *array, int64_t i) {
    switch (num) {
    case QE_NUM_E8M0:
        return qe_e8m0_to_f32(((const uint8_t *)array)[i]);
    case QE_NUM_E4M3:
        return qe_e4m3_to_f32(((const uint8_t *)array)[i]);
    case QE_NUM_U8:
    case QE_NUM_U6:
    case QE_NUM_U4:
        return ((const uint8_t *)array)[i];
    case QE_NUM_S8:
    case QE_NUM_S6:
        return ((const int8_t *)array)[i];
    default: {
        qe_quant q;
        memset(&q, 0, sizeof q);
        q.scale = (uint8_t)num;
        return qk_pack_scale(&q, array, i);
    }
    }
}
/* s of quantization.md's formula: both levels and the power of two. */
static float full_scale(const qe_quant *q, float inner, float super) {
    float s = inner;
    if (q->super != QE_NUM_ONE) s = q->flags & QE_SUPER_DIVIDES ? qe_div(inner, super) : qe_mul(super, inner);
    return q->scale_log2 ? qe_mul(s, ldexpf(1, q->scale_log2)) : s;
}
static bool supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *w = &s->quant;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", (int)device->sm);
    if (s->act.mode != QE_ACT_FLOAT) return qk_no(why, "the input is quantized");
    if (w->code == QE_CODE_LUT ? w->bits > 4 || w->lut_n : w->code != QE_CODE_INT && !fixed_table(w->code))
        return qk_no(why, "codes are neither integers nor of one table of 16 values");
    if (w->zero == QE_ZERO_REAL) return qk_no(why, "real zeros");
    if (w->zero == QE_ZERO_POINT && (w->zero_num != QE_NUM_U8 || w->code != QE_CODE_INT))
        return qk_no(why, "zero points are not integers");
    if (w->zero == QE_ZERO_CONST && w->zero_const > 255) return qk_no(why, "zero %d is no byte", (int)w->zero_const);
    if (w->group_n != 1) return qk_no(why, "groups of %d rows", (int)w->group_n);
    if (w->group_k && w->group_k < s->k && w->group_k % 16)
        return qk_no(why, "group %d is not a multiple of 16", (int)w->group_k);
    if (w->super == QE_NUM_ONE) {
        if (w->scale_log2 && !qk_pack_is_float(w->scale)) return qk_no(why, "scales times 2^%d", (int)w->scale_log2);
        if (!qk_pack_is_float(w->scale) && w->scale != QE_NUM_E8M0 && w->scale != QE_NUM_E4M3)
            return qk_no(why, "integer scales without a second level");
        if (w->scale_log2) return qk_no(why, "scales times 2^%d", (int)w->scale_log2);
        return true;
    }
    if (!is_byte(w->scale)) return qk_no(why, "two levels of float scales");
    if (w->super_n > 1 || (w->super_k && w->super_k < s->k) || w->super != QE_NUM_F32)
        return qk_no(why, "second-level scales are not fp32, one per row or tensor");
    return true;
}
static size_t head_bytes(const qk_shape *s) {
    (void)s;
    return 256; /* 16 values; aligned for the bands */
}
static void pack_head(const qk_shape *s, const qe_qtensor *any_band, void *head) {
    const qe_quant *q = &s->quant;
    const float *values = qe_code_values(q->code);
    float *table = head;
    memset(head, 0, head_bytes(s));
    if (qk_wx_code_bits(q) == 8) return;
    for (int c = 0; c < 1 << q->bits; c++)
        table[c] = q->code == QE_CODE_INT ? (float)(c - q->zero_const) : values ? values[c] : any_band->lut[c];
}
static size_t band_bytes(const qk_shape *s) {
    return (size_t)qk_wx_band_bytes(&s->quant, s->k);
}

/* ---- where things lie -------------------------------------------------------------------------------------------- */
static uint8_t *block_of(const qe_quant *q, int64_t k_all, uint8_t *band, int64_t row, int64_t k) {
    return band + (k / QK_W4_BLOCK_K * 2 + row / 64) * qk_wx_block_bytes(q, k_all);
}
/* Byte and shift of a code in its block. */
static int64_t code_at(int bits, int64_t row, int64_t k, int *shift) {
    const int64_t in = k % QK_W4_BLOCK_K, r64 = row % 64, r = r64 % 16 / 8, step = in / 16, column = in % 16;
    const int64_t thread = r64 / 16 * 32 + r64 % 8 * 4 + column % 8 / 2;
    *shift = bits == 8 ? 0 : (int)(column % 2 * 4);
    if (bits == 8)
        return step / 2 * 2048 + thread * 16 + (step % 2 * 2 + r) * 4 + column % 2 + column / 8 * 2;
    const int64_t word = step / 2 * 2 + r;
    return word / 4 * 2048 + thread * 16 + word % 4 * 4 + step % 2 * 2 + column / 8;
}
static int64_t scale_at(const qe_quant *q, int64_t row, int64_t unit) {
    const int64_t r = row % 64;
    return qk_wx_code_bytes(q) + unit * 256 + r / 16 * 64 + r % 8 * 8 + r % 16 / 8 * 4;
}
static int64_t zero_at(const qe_quant *q, int64_t k, int64_t row, int64_t unit) {
    const int64_t r = row % 64;
    return qk_wx_code_bytes(q) + qk_wx_units(q, k) * 256 + unit * 64 + r / 16 * 16 + r % 8 * 2 + r % 16 / 8;
}
static int64_t first_column(const qe_quant *q, int64_t k, int64_t block, int64_t unit) {
    return block * QK_W4_BLOCK_K + unit * (QK_W4_BLOCK_K / qk_wx_units(q, k));
}
static float *row_supers(const qe_quant *q, int64_t k, uint8_t *band) {
    return (float *)(void *)(band + qk_wx_band_bytes(q, k) - QK_W4_ROWS * 4);
}

static void pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    const qe_quant *q = &s->quant;
    const int64_t groups = group_count(q, s->k), blocks = qk_w4_blocks(s->k);
    const uint8_t *codes = band->codes, *zeros = band->zeros;
    uint8_t *out = dst;
    memset(out, 0, band_bytes(s));
    for (int64_t r = 0; r < band->n; r++) {
        const int64_t super_row = qk_group_row(band->first_row, r, q->super_n);
        const float super = q->super == QE_NUM_ONE ? 1.0f : ((const float *)band->super)[super_row];
        if (q->super != QE_NUM_ONE) row_supers(q, s->k, out)[r] = super;
        for (int64_t k = 0; k < s->k; k++) {
            int shift;
            uint8_t *byte = block_of(q, s->k, out, r, k) + code_at(qk_wx_code_bits(q), r, k, &shift);
            *byte = (uint8_t)(*byte | codes[r * s->k + k] << shift);
        }
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t unit = 0; unit < qk_wx_units(q, s->k); unit++) {
                const int64_t column = first_column(q, s->k, b, unit);
                if (column >= s->k) continue;
                const int64_t g = r * groups + (q->group_k ? column / q->group_k : 0);
                uint8_t *block = block_of(q, s->k, out, r, column);
                const float scale = full_scale(q, scale_value(q->scale, band->scales, g), super);
                memcpy(block + scale_at(q, r, unit), &scale, 4);
                if (q->zero == QE_ZERO_POINT) block[zero_at(q, s->k, r, unit)] = zeros[g];
            }
    }
}
/* A stored scale back into its canonical type: the byte whose full scale it is. */
static void put_scale(const qe_quant *q, float scale, float super, void *scales, int64_t g) {
    if (!is_byte(q->scale)) {
        qk_unpack_scale(q, scale, scales, g);
        return;
    }
    for (int byte = 0; byte < 256; byte++) {
        const uint8_t candidate = (uint8_t)byte;
        if (q->scale == QE_NUM_E8M0 && byte == 255) break;
        const float v = full_scale(q, scale_value(q->scale, &candidate, 0), super);
        if (memcmp(&v, &scale, 4)) continue;
        ((uint8_t *)scales)[g] = candidate;
        return;
    }
}
static void unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    const qe_quant *q = &s->quant;
    const int64_t groups = group_count(q, s->k), blocks = qk_w4_blocks(s->k);
    uint8_t *in = (uint8_t *)(uintptr_t)src, *codes = band->codes, *zeros = band->zeros;
    if (q->code == QE_CODE_LUT) memcpy(band->lut, head, (size_t)4 << q->bits);
    for (int64_t r = 0; r < band->n; r++) {
        const float super = q->super == QE_NUM_ONE ? 1.0f : row_supers(q, s->k, in)[r];
        if (q->super != QE_NUM_ONE) ((float *)band->super)[qk_group_row(band->first_row, r, q->super_n)] = super;
        for (int64_t k = 0; k < s->k; k++) {
            int shift;
            const int64_t at = code_at(qk_wx_code_bits(q), r, k, &shift);
            codes[r * s->k + k] = (uint8_t)(block_of(q, s->k, in, r, k)[at] >> shift & (qk_wx_code_bits(q) == 8 ? 255 : 15));
        }
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t unit = 0; unit < qk_wx_units(q, s->k); unit++) {
                const int64_t column = first_column(q, s->k, b, unit);
                if (column >= s->k) continue;
                const int64_t g = r * groups + (q->group_k ? column / q->group_k : 0);
                const uint8_t *block = block_of(q, s->k, in, r, column);
                float scale;
                memcpy(&scale, block + scale_at(q, r, unit), 4);
                put_scale(q, scale, super, band->scales, g);
                if (q->zero == QE_ZERO_POINT) zeros[g] = block[zero_at(q, s->k, r, unit)];
            }
    }
}
const qk_layout qk_cuda_wxa16 = {"cuda/wxa16", 2,         QK_W4_ROWS, supports, head_bytes,
                                 band_bytes,   pack_head, pack,       unpack,   NULL};
