/* ref_layout.c -- the layout that takes every descriptor: the canonical arrays of 16 rows, one after the other, with
 * row extents undone (each row has its own scales and table). */
#include <string.h>

#include "ref_internal.h"

enum { CODES, SCALES, SUPER, ZEROS, ZERO_SUPER, LUT, PARTS };

static int64_t groups(int64_t k, int32_t extent) { return extent ? (k + extent - 1) / extent : 1; }

/* Bytes of one row's part of each array. */
static void row_bytes(const qk_shape *s, size_t bytes[PARTS]) {
    const qe_quant *q = &s->quant;
    size_t code = q->code == QE_CODE_F32 ? 4 : q->code == QE_CODE_F16 || q->code == QE_CODE_BF16 ? 2 : 1;
    size_t supers = (size_t)groups(s->k, q->super_k) * qe_num_bytes(q->super);
    bool mins = q->zero == QE_ZERO_REAL && q->super != QE_NUM_ONE && q->zero_num >= QE_NUM_U8;
    bytes[CODES] = (size_t)s->k * code;
    bytes[SCALES] = (size_t)groups(s->k, q->group_k) * qe_num_bytes(q->scale);
    bytes[SUPER] = supers;
    bytes[ZEROS] = q->zero == QE_ZERO_CONST ? 0 : (size_t)groups(s->k, q->group_k) * qe_num_bytes(q->zero_num);
    bytes[ZERO_SUPER] = mins ? supers : 0;
    bytes[LUT] = q->code == QE_CODE_LUT ? sizeof(float) << q->bits : 0;
}

static size_t padded(size_t bytes) { return (bytes * REF_BAND_ROWS + 63) & ~(size_t)63; }

static bool supports(const qk_device *device, const qk_shape *shape, qk_why *why) {
    (void)device;
    if (shape->n < 1 || shape->k < 1) return qk_no(why, "an empty weight");
    return true;
}

static size_t head_bytes(const qk_shape *shape) {
    (void)shape;
    return 0;
}

static size_t band_bytes(const qk_shape *shape) {
    size_t bytes[PARTS], sum = 0;
    row_bytes(shape, bytes);
    for (int i = 0; i < PARTS; i++) sum += padded(bytes[i]);
    return (sum + 255) & ~(size_t)255;
}

static void pack_head(const qk_shape *shape, const qe_qtensor *any_band, void *head) {
    (void)shape, (void)any_band, (void)head;
}

/* The arrays of a canonical band and the row extent of each. */
static void arrays_of(const qe_qtensor *t, char *array[PARTS], int32_t extent[PARTS]) {
    const qe_quant *q = &t->quant;
    array[CODES] = t->codes, extent[CODES] = 1;
    array[SCALES] = t->scales, extent[SCALES] = q->group_n;
    array[SUPER] = t->super, extent[SUPER] = q->super_n;
    array[ZEROS] = t->zeros, extent[ZEROS] = q->group_n;
    array[ZERO_SUPER] = t->zero_super, extent[ZERO_SUPER] = q->super_n;
    array[LUT] = (char *)t->lut, extent[LUT] = q->lut_n;
}

static void pack(const qk_shape *shape, const qe_qtensor *band, void *dst) {
    size_t bytes[PARTS];
    char *array[PARTS], *out = dst;
    int32_t extent[PARTS];
    row_bytes(shape, bytes);
    arrays_of(band, array, extent);
    memset(dst, 0, band_bytes(shape));
    for (int i = 0; i < PARTS; i++) {
        for (int64_t r = 0; r < band->n && bytes[i]; r++)
            memcpy(out + (size_t)r * bytes[i],
                   array[i] + (size_t)qk_group_row(band->first_row, r, extent[i]) * bytes[i], bytes[i]);
        out += padded(bytes[i]);
    }
}

static void unpack(const qk_shape *shape, const void *head, const void *src, qe_qtensor *band) {
    size_t bytes[PARTS];
    char *array[PARTS];
    const char *in = src;
    int32_t extent[PARTS];
    (void)head;
    row_bytes(shape, bytes);
    arrays_of(band, array, extent);
    for (int i = 0; i < PARTS; i++) {
        for (int64_t r = 0; r < band->n && bytes[i]; r++)
            memcpy(array[i] + (size_t)qk_group_row(band->first_row, r, extent[i]) * bytes[i],
                   in + (size_t)r * bytes[i], bytes[i]);
        in += padded(bytes[i]);
    }
}

void qk_ref_row_view(const qk_shape *shape, const void *band, int32_t row, qe_qtensor *out) {
    size_t bytes[PARTS];
    char *at[PARTS], *p = (char *)(uintptr_t)band;
    row_bytes(shape, bytes);
    for (int i = 0; i < PARTS; i++) {
        at[i] = bytes[i] ? p + (size_t)row * bytes[i] : NULL;
        p += padded(bytes[i]);
    }
    memset(out, 0, sizeof *out);
    out->quant = shape->quant;
    out->quant.group_n = 1;
    out->quant.super_n = shape->quant.super == QE_NUM_ONE ? 0 : 1;
    out->quant.lut_n = shape->quant.code == QE_CODE_LUT ? 1 : 0;
    out->n = out->rows = 1;
    out->k = shape->k;
    out->codes = at[CODES];
    out->scales = at[SCALES];
    out->super = at[SUPER];
    out->zeros = at[ZEROS];
    out->zero_super = at[ZERO_SUPER];
    out->lut = (float *)(void *)at[LUT];
}

static void row(const qk_shape *shape, const void *head, const void *src, int32_t r, float *w) {
    qe_qtensor view;
    (void)head;
    qk_ref_row_view(shape, src, r, &view);
    qe_dequantize(&view, 0, 1, w, shape->k, NULL);
}

const qk_layout qk_ref_canonical = {
    .name = "ref/canonical",
    .version = 2,
    .band_rows = REF_BAND_ROWS,
    .supports = supports,
    .head_bytes = head_bytes,
    .band_bytes = band_bytes,
    .pack_head = pack_head,
    .pack = pack,
    .unpack = unpack,
    .row = row,
};
