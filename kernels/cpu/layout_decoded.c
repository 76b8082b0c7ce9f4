/* Packing into bands of lines (decoded.h), and the levels of a band's rows. */
#include <string.h>
#include <qengine/num.h>
#include "decoded.h"

static int64_t groups_of(int64_t k, int32_t extent) { return extent ? (k + extent - 1) / extent : 1; }

static int32_t stored_bits(const qe_quant *q) {
    if (q->code == QE_CODE_F32) return 32;
    if (q->code == QE_CODE_F16 || q->code == QE_CODE_BF16) return 16;
    return q->bits <= 2 ? q->bits : q->bits <= 4 ? 4 : 8;
}

void decoded_format_of(const qk_shape *s, decoded_format *f) {
    const qe_quant *q = &s->quant;
    memset(f, 0, sizeof *f);
    f->bits = stored_bits(q);
    f->per = f->bits < 8 ? 4 / f->bits : 1;
    f->line = f->bits < 8 ? 16 : f->bits * 4;
    f->mins = q->zero == QE_ZERO_REAL && q->super != QE_NUM_ONE && q->zero_num >= QE_NUM_U8;
    size_t groups = (size_t)groups_of(s->k, q->group_k), supers = (size_t)groups_of(s->k, q->super_k);
    f->row[DECODED_SCALES] = groups * qe_num_bytes(q->scale);
    f->row[DECODED_SUPER] = supers * qe_num_bytes(q->super);
    f->row[DECODED_ZEROS] = q->zero == QE_ZERO_CONST ? 0 : groups * qe_num_bytes(q->zero_num);
    f->row[DECODED_ZERO_SUPER] = f->mins ? supers * qe_num_bytes(q->super) : 0;
    f->row[DECODED_TABLE] = q->code == QE_CODE_LUT ? sizeof(float) << q->bits : 0;
    size_t at = (size_t)((s->k + f->per - 1) / f->per) * (size_t)f->line;
    for (int i = DECODED_SCALES; i < DECODED_PARTS; i++) {
        f->at[i] = at = (at + 63) & ~(size_t)63;
        at += f->row[i] * PANEL_COLUMNS;
    }
    f->band_bytes = (at + 255) & ~(size_t)255;
}

static bool decoded_supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    (void)device;
    if (s->n < 1 || s->k < 1) return qk_no(why, "an empty weight");
    return true;
}

static size_t decoded_head_bytes(const qk_shape *s) {
    (void)s;
    return 0;
}

static size_t decoded_band_bytes(const qk_shape *s) {
    decoded_format f;
    decoded_format_of(s, &f);
    return f.band_bytes;
}

static void decoded_pack_head(const qk_shape *s, const qe_qtensor *band, void *head) { (void)s, (void)band, (void)head; }

/* The arrays beside the codes of a canonical band and the row extent of each. */
static void arrays_of(const qe_qtensor *t, char *array[DECODED_PARTS], int32_t extent[DECODED_PARTS]) {
    const qe_quant *q = &t->quant;
    array[DECODED_CODES] = t->codes, extent[DECODED_CODES] = 1;
    array[DECODED_SCALES] = t->scales, extent[DECODED_SCALES] = q->group_n;
    array[DECODED_SUPER] = t->super, extent[DECODED_SUPER] = q->super_n;
    array[DECODED_ZEROS] = t->zeros, extent[DECODED_ZEROS] = q->group_n;
    array[DECODED_ZERO_SUPER] = t->zero_super, extent[DECODED_ZERO_SUPER] = q->super_n;
    array[DECODED_TABLE] = (char *)t->lut, extent[DECODED_TABLE] = q->lut_n;
}

static int field_of(const decoded_format *f, int64_t k, int c) { return ((int)(k % f->per) * 2 + c / 16) * f->bits; }

static void put_codes(const decoded_format *f, const qe_qtensor *t, int64_t r, uint8_t *lines) {
    const uint8_t *codes = t->codes;
    if (f->bits >= 8) {
        size_t bytes = (size_t)f->bits / 8;
        codes += (size_t)(r * t->k) * bytes;
        for (int64_t k = 0; k < t->k; k++)
            memcpy(lines + (size_t)(k * f->line) + (size_t)r * bytes, codes + (size_t)k * bytes, bytes);
        return;
    }
    codes += r * t->k;
    for (int64_t k = 0; k < t->k; k++)
        lines[k / f->per * f->line + r % 16] |= (uint8_t)(codes[k] << field_of(f, k, (int)r));
}

static void get_codes(const decoded_format *f, const uint8_t *lines, int64_t r, qe_qtensor *t) {
    uint8_t *codes = t->codes;
    if (f->bits >= 8) {
        size_t bytes = (size_t)f->bits / 8;
        codes += (size_t)(r * t->k) * bytes;
        for (int64_t k = 0; k < t->k; k++)
            memcpy(codes + (size_t)k * bytes, lines + (size_t)(k * f->line) + (size_t)r * bytes, bytes);
        return;
    }
    codes += r * t->k;
    for (int64_t k = 0; k < t->k; k++)
        codes[k] = lines[k / f->per * f->line + r % 16] >> field_of(f, k, (int)r) & ((1 << f->bits) - 1);
}

static void decoded_pack(const qk_shape *s, const qe_qtensor *t, void *dst) {
    decoded_format f;
    char *array[DECODED_PARTS];
    int32_t extent[DECODED_PARTS];
    decoded_format_of(s, &f);
    arrays_of(t, array, extent);
    memset(dst, 0, f.band_bytes);
    for (int64_t r = 0; r < t->n; r++) {
        put_codes(&f, t, r, dst);
        for (int i = DECODED_SCALES; i < DECODED_PARTS; i++) {
            if (!f.row[i]) continue;
            memcpy((char *)dst + f.at[i] + (size_t)r * f.row[i],
                   array[i] + (size_t)qk_group_row(t->first_row, r, extent[i]) * f.row[i], f.row[i]);
        }
    }
}

static void decoded_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *t) {
    decoded_format f;
    char *array[DECODED_PARTS];
    int32_t extent[DECODED_PARTS];
    (void)head;
    decoded_format_of(s, &f);
    arrays_of(t, array, extent);
    for (int64_t r = 0; r < t->n; r++) {
        get_codes(&f, src, r, t);
        for (int i = DECODED_SCALES; i < DECODED_PARTS; i++) {
            if (!f.row[i]) continue;
            memcpy(array[i] + (size_t)qk_group_row(t->first_row, r, extent[i]) * f.row[i],
                   (const char *)src + f.at[i] + (size_t)r * f.row[i], f.row[i]);
        }
    }
}

/* ---- levels ------------------------------------------------------------------------------------------------------ */
/* Element `index` of the array of each of `rows` rows. */
static void numbers(int32_t num, const uint8_t *array, size_t stride, int64_t index, int rows, float *out) {
    if (num == QE_NUM_F32 || num == QE_NUM_F16) {
        size_t bytes = num == QE_NUM_F32 ? 4 : 2;
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = array + (size_t)r * stride + (size_t)index * bytes;
            uint16_t half;
            if (bytes == 4) memcpy(out + r, p, 4);
            else memcpy(&half, p, 2), out[r] = qe_f16_to_f32(half);
        }
        return;
    }
    for (int r = 0; r < rows; r++) out[r] = qe_num_get(num, array + (size_t)r * stride, index);
}

static float pow2(int e) { return qe_f32_from_bits((uint32_t)(e + 127) << 23); }

/* Rows [first, first + rows) of the band. */
static void levels(const qk_shape *s, const decoded_format *f, const uint8_t *band, int first, int rows, int64_t k,
                   decoded_levels *out) {
    const qe_quant *q = &s->quant;
    int64_t g = q->group_k ? k / q->group_k : 0, top = q->super_k ? k / q->super_k : 0;
    const uint8_t *part[DECODED_PARTS];
    for (int i = DECODED_SCALES; i < DECODED_PARTS; i++) part[i] = band + f->at[i] + (size_t)first * f->row[i];
    numbers(q->scale, part[DECODED_SCALES], f->row[DECODED_SCALES], g, rows, out->lower);
    numbers(q->super, part[DECODED_SUPER], f->row[DECODED_SUPER], top, rows, out->super);
    float log2 = pow2(q->scale_log2);
    for (int r = 0; r < rows; r++) {
        float v = out->lower[r];
        if (q->super != QE_NUM_ONE) v = q->flags & QE_SUPER_DIVIDES ? qe_div(v, out->super[r]) : qe_mul(out->super[r], v);
        out->scale[r] = q->scale_log2 ? qe_mul(v, log2) : v;
        float above = q->super == QE_NUM_ONE ? 1.0f : out->super[r];
        if (q->flags & QE_SUPER_DIVIDES) above = qe_div(1.0f, above);
        out->super[r] = q->scale_log2 ? qe_mul(above, log2) : above;
        out->zero[r] = q->zero == QE_ZERO_CONST ? (float)q->zero_const : 0.0f;
        out->offset[r] = 0.0f;
    }
    if (q->zero == QE_ZERO_CONST) return;
    numbers(q->zero_num, part[DECODED_ZEROS], f->row[DECODED_ZEROS], g, rows,
            q->zero == QE_ZERO_POINT ? out->zero : f->mins ? out->min : out->offset);
    if (!f->mins) return;
    numbers(q->super, part[DECODED_ZERO_SUPER], f->row[DECODED_ZERO_SUPER], top, rows, out->min_super);
    for (int r = 0; r < rows; r++) out->offset[r] = qe_mul(out->min_super[r], out->min[r]);
}

void decoded_levels_at(const qk_shape *s, const decoded_format *f, const uint8_t *band, int64_t k,
                       decoded_levels *out) {
    levels(s, f, band, 0, PANEL_COLUMNS, k, out);
}

/* C of the codes [from, from + count) of a row. */
static void code_values(const qk_shape *s, const decoded_format *f, const uint8_t *band, int32_t row, int64_t from,
                        int64_t count, float *out) {
    const int32_t code = s->quant.code, bits = f->bits, mask = (1 << (bits < 8 ? bits : 8)) - 1;
    const float *table = code == QE_CODE_LUT ? (const float *)(const void *)(band + f->at[DECODED_TABLE] +
                                                                             (size_t)row * f->row[DECODED_TABLE])
                                             : qe_code_values(code);
    if (code == QE_CODE_F32) {
        for (int64_t i = 0; i < count; i++) memcpy(out + i, band + (from + i) * 128 + row * 4, 4);
        return;
    }
    for (int64_t i = 0; code < QE_CODE_INT && i < count; i++) {
        uint16_t half;
        memcpy(&half, band + (from + i) * 64 + row * 2, 2);
        out[i] = code == QE_CODE_F16 ? qe_f16_to_f32(half) : qe_bf16_to_f32(half);
    }
    for (int64_t i = 0; code >= QE_CODE_INT && i < count; i++) {
        int64_t k = from + i;
        int at = bits == 8 ? band[k * 32 + row] : band[k / f->per * 16 + row % 16] >> field_of(f, k, row) & mask;
        out[i] = code == QE_CODE_INT ? (float)at : table[at];
    }
}

static void decoded_row_values(const qk_shape *s, const void *head, const void *src, int32_t row, float *w) {
    decoded_format f;
    decoded_levels one;
    (void)head;
    decoded_format_of(s, &f);
    int64_t group = s->quant.group_k ? s->quant.group_k : s->k;
    for (int64_t k = 0; k < s->k; k += group) {
        int64_t count = s->k - k < group ? s->k - k : group;
        levels(s, &f, src, row, 1, k, &one);
        code_values(s, &f, src, row, k, count, w + k);
        for (int64_t i = k; i < k + count; i++) w[i] = one.scale[0] * (w[i] - one.zero[0]);
        for (int64_t i = k; s->quant.zero == QE_ZERO_REAL && i < k + count; i++) w[i] += one.offset[0];
    }
}

const qk_layout cpu_layout_decoded = {
    "cpu/decoded",      2,            PANEL_COLUMNS,  decoded_supports,  decoded_head_bytes, decoded_band_bytes,
    decoded_pack_head,  decoded_pack, decoded_unpack, decoded_row_values};
