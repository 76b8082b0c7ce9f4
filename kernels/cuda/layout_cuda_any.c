/* Layout cuda/any: the canonical arrays, row by row. Takes every scheme and shape. See cuda_backend.h. */
#include "cuda_backend.h"

#include <math.h>
#include <qengine/num.h>
#include <string.h>

static int64_t num_bytes(int num) {
    switch (num) {
#define QE_X(name, value, bytes, bits)                                                                                 \
    case value:                                                                                                        \
        return bytes;
        QE_NUM_LIST(QE_X)
#undef QE_X
    }
    return 0;
}
static int64_t parts(int64_t k, int32_t extent) {
    return extent ? (k + extent - 1) / extent : 1;
}
static bool has_table(const qe_quant *q) {
    return q->code == QE_CODE_LUT || q->code >= QE_CODE_NF4;
}
static int64_t take(int64_t *end, int64_t bytes) {
    int64_t start = *end;
    *end += (bytes + 15) / 16 * 16;
    return start;
}

void qk_any_record_of(const qe_quant *q, int64_t k, qk_any_record *out) {
    int64_t end = 0, bits = q->bits;
    out->code_bits = (int32_t)(bits > 8 ? bits : bits > 4 ? 8 : bits == 3 ? 4 : bits);
    out->lut_in_head = q->code != QE_CODE_LUT || q->lut_n == 0;
    out->groups = parts(k, q->group_k);
    out->supers = parts(k, q->super_k);
    (void)take(&end, (k * out->code_bits + 7) / 8);
    out->scales = take(&end, out->groups * num_bytes(q->scale));
    out->super = take(&end, out->supers * num_bytes(q->super));
    out->zeros = take(&end, q->zero == QE_ZERO_CONST ? 0 : out->groups * num_bytes(q->zero_num));
    out->zero_super = take(&end, q->zero == QE_ZERO_REAL ? out->supers * num_bytes(q->super) : 0);
    out->lut = take(&end, out->lut_in_head ? 0 : (int64_t)4 << q->bits);
    out->power = take(&end, (int64_t)sizeof(float));
    out->bytes = end;
}

static bool supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", (int)device->sm);
    if (s->act.mode != QE_ACT_FLOAT && !qk_act_int8(&s->act))
        return qk_no(why, "the input is neither float nor int8");
    return true;
}
static size_t head_bytes(const qk_shape *s) {
    if (!has_table(&s->quant) || (s->quant.code == QE_CODE_LUT && s->quant.lut_n)) return 0;
    return (((size_t)4 << s->quant.bits) + 255) / 256 * 256; /* bands stay aligned */
}
static size_t band_bytes(const qk_shape *s) {
    qk_any_record r;
    qk_any_record_of(&s->quant, s->k, &r);
    return (size_t)(r.bytes * QK_ANY_ROWS);
}

/* A sign, `e_bits` of exponent and `m_bits` of mantissa without infinities. */
static float small_float(int c, int e_bits, int m_bits, int bias) {
    int sign = c >> (e_bits + m_bits), e = c >> m_bits & ((1 << e_bits) - 1), m = c & ((1 << m_bits) - 1);
    float v = e ? ldexpf((float)(m + (1 << m_bits)), e - bias - m_bits) : ldexpf((float)m, 1 - bias - m_bits);
    return sign ? -v : v;
}
static float table_value(int code, int c) {
    static const float nf4[16] = {-1.0f,
                                  -0.6961928009986877f,
                                  -0.5250730514526367f,
                                  -0.39491748809814453f,
                                  -0.28444138169288635f,
                                  -0.18477343022823334f,
                                  -0.09105003625154495f,
                                  0.0f,
                                  0.07958029955625534f,
                                  0.16093020141124725f,
                                  0.24611230194568634f,
                                  0.33791524171829224f,
                                  0.44070982933044434f,
                                  0.5626170039176941f,
                                  0.7229568362236023f,
                                  1.0f};
    static const float fp4b[8] = {0.0f, 0.0052083333333f, 0.66666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f};
    static const float iq4nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    switch (code) {
    case QE_CODE_NF4:
        return nf4[c];
    case QE_CODE_FP4B:
        return c & 8 ? -fp4b[c & 7] : fp4b[c & 7];
    case QE_CODE_IQ4NL:
        return iq4nl[c];
    case QE_CODE_E2M1:
        return small_float(c, 2, 1, 1);
    case QE_CODE_E4M3:
        return (c & 127) == 127 ? NAN : small_float(c, 4, 3, 7);
    default: /* E5M2 */
        if ((c & 0x7c) == 0x7c) return c & 3 ? NAN : c & 0x80 ? -INFINITY : INFINITY;
        return small_float(c, 5, 2, 15);
    }
}
static void pack_head(const qk_shape *s, const qe_qtensor *any_band, void *head) {
    float *table = head;
    if (!head_bytes(s)) return;
    memset(head, 0, head_bytes(s));
    for (int c = 0; c < 1 << s->quant.bits; c++)
        table[c] = s->quant.code == QE_CODE_LUT ? any_band->lut[c] : table_value(s->quant.code, c);
}

static void copy_codes(uint8_t *record, uint8_t *codes, int64_t k, int stored_bits, bool to_record) {
    if (stored_bits >= 8) {
        size_t bytes = (size_t)(k * stored_bits / 8);
        if (to_record)
            memcpy(record, codes, bytes);
        else
            memcpy(codes, record, bytes);
        return;
    }
    for (int64_t i = 0; i < k; i++) {
        int64_t bit = i * stored_bits;
        if (to_record)
            record[bit / 8] = (uint8_t)(record[bit / 8] | codes[i] << bit % 8);
        else
            codes[i] = (uint8_t)(record[bit / 8] >> bit % 8 & ((1 << stored_bits) - 1));
    }
}
static void copy_array(uint8_t *record, void *canonical, int64_t row, int64_t count, int num, bool to_record) {
    size_t bytes = (size_t)(count * num_bytes(num));
    if (!bytes) return;
    uint8_t *array = (uint8_t *)canonical + row * (int64_t)bytes;
    if (to_record)
        memcpy(record, array, bytes);
    else
        memcpy(array, record, bytes);
}
/* ---- the power of two of a row ----------------------------------------------------------------------------------- */
static double number(int num, const uint8_t *array, int64_t i) {
    switch (num) {
    case QE_NUM_F32:
        return ((const float *)(const void *)array)[i];
    case QE_NUM_F16:
        return qe_f16_to_f32(((const uint16_t *)(const void *)array)[i]);
    case QE_NUM_BF16:
        return qe_bf16_to_f32(((const uint16_t *)(const void *)array)[i]);
    case QE_NUM_E8M0:
        return qe_e8m0_to_f32(array[i]);
    case QE_NUM_E4M3:
        return qe_e4m3_to_f32(array[i]);
    case QE_NUM_S8:
    case QE_NUM_S6:
        return (int8_t)array[i];
    case QE_NUM_POW2N:
        return array[i] ? 0.5 : 1.0;
    case QE_NUM_ONE:
        return 1;
    default:
        return array[i];
    }
}
/* The largest finite magnitude of an array, or the smallest above 0. */
static double extreme(int num, const uint8_t *array, int64_t count, bool largest) {
    double found = largest ? 0 : INFINITY;
    for (int64_t i = 0; i < count; i++) {
        double v = fabs(number(num, array, i));
        if (isfinite(v) && (largest ? v > found : v < found && v > 0)) found = v;
    }
    return found;
}
static double largest_code(const qe_quant *q, const qk_any_record *layout, const float *head, const uint8_t *record, int64_t k) {
    if (q->code == QE_CODE_INT) return (double)((1 << q->bits) - 1);
    if (q->code == QE_CODE_SIGN) return 1;
    if (q->code == QE_CODE_F32) return extreme(QE_NUM_F32, record, k, true);
    if (q->code == QE_CODE_F16) return extreme(QE_NUM_F16, record, k, true);
    if (q->code == QE_CODE_BF16) return extreme(QE_NUM_BF16, record, k, true);
    const void *table = layout->lut_in_head ? (const void *)head : record + layout->lut;
    return extreme(QE_NUM_F32, table, (int64_t)1 << q->bits, true);
}
/* From a bound on the row's weights: the product of the largest of each factor. */
static float row_power(const qe_quant *q, const qk_any_record *layout, const float *head, const uint8_t *record, int64_t k) {
    double scale = extreme(q->scale, record + layout->scales, layout->groups, true) * ldexp(1, q->scale_log2);
    bool divides = q->flags & QE_SUPER_DIVIDES;
    double super = extreme(q->super, record + layout->super, layout->supers, !divides);
    double zero = q->zero == QE_ZERO_CONST ? q->zero_const : extreme(q->zero_num, record + layout->zeros, layout->groups, true);
    double code = largest_code(q, layout, head, record, k), most = scale * (divides ? 1 / super : super);
    if (q->zero == QE_ZERO_REAL) {
        bool integers = q->zero_num >= QE_NUM_U8 && q->zero_num <= QE_NUM_U4;
        most = most * code + zero * (integers ? extreme(q->super, record + layout->zero_super, layout->supers, true) : 1);
    } else
        most *= code + fabs(zero);
    int e = 0;
    if (most > 0 && isfinite(most)) frexp(most, &e); /* most < 2^e */
    e = 15 - e;
    return ldexpf(1, e < -126 ? -126 : e > 126 ? 126 : e);
}

static void copy_band(const qk_shape *s, const qe_qtensor *band, uint8_t *blob, bool to_blob) {
    float head[256];
    const qe_quant *q = &s->quant;
    qk_any_record layout;
    qk_any_record_of(q, s->k, &layout);
    if (to_blob && head_bytes(s)) pack_head(s, band, head);
    for (int64_t r = 0; r < band->n; r++) {
        uint8_t *record = blob + r * layout.bytes;
        int64_t group = qk_group_row(band->first_row, r, q->group_n),
                super = qk_group_row(band->first_row, r, q->super_n);
        uint8_t *codes = (uint8_t *)band->codes + r * s->k * (q->bits > 8 ? q->bits / 8 : 1);
        copy_codes(record, codes, s->k, layout.code_bits, to_blob);
        copy_array(record + layout.scales, band->scales, group, layout.groups, q->scale, to_blob);
        copy_array(record + layout.super, band->super, super, layout.supers, q->super, to_blob);
        if (q->zero != QE_ZERO_CONST)
            copy_array(record + layout.zeros, band->zeros, group, layout.groups, q->zero_num, to_blob);
        if (q->zero == QE_ZERO_REAL && band->zero_super)
            copy_array(record + layout.zero_super, band->zero_super, super, layout.supers, q->super, to_blob);
        if (!layout.lut_in_head) {
            float *lut = band->lut + (qk_group_row(band->first_row, r, q->lut_n) << q->bits);
            if (to_blob)
                memcpy(record + layout.lut, lut, (size_t)4 << q->bits);
            else
                memcpy(lut, record + layout.lut, (size_t)4 << q->bits);
        }
        if (to_blob) {
            float power = row_power(q, &layout, head, record, s->k);
            memcpy(record + layout.power, &power, sizeof power);
        }
    }
}
static void pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    memset(dst, 0, band_bytes(s));
    copy_band(s, band, dst, true);
}
static void unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    copy_band(s, band, (uint8_t *)src, false);
    if (s->quant.code == QE_CODE_LUT && !s->quant.lut_n) memcpy(band->lut, head, (size_t)4 << s->quant.bits);
}
const qk_layout qk_cuda_any = {"cuda/any", 2,         QK_ANY_ROWS, supports, head_bytes,
                               band_bytes, pack_head, pack,        unpack,   NULL};
