/* Packing into panels (panel.h): plain C, the same bytes for every ISA. */
#include "panel.h"
#include <qengine/num.h>
#include <string.h>

enum { UNIT_MAX = 32 };   /* k in a unit, at most */

static int32_t ceil_div(int64_t a, int64_t b) { return (int32_t)((a + b - 1) / b); }

/* The descriptors taken, first match wins. `super` NONE means one level. */
typedef struct panel_kind {
    const char *name;
    panel_scale scale;
    uint8_t num, super, zero;      /* qe_num of scales and supers, qe_zero */
    int32_t group, super_k, block; /* 0: from the descriptor */
    int32_t low, high;             /* code bits taken */
} panel_kind;

static const panel_kind kinds[] = {
    {"int two-level", PANEL_INT, QE_NUM_U8, QE_NUM_F32, QE_ZERO_CONST, 0, 0, 0, 1, 4},
    {"int two-level", PANEL_INT, QE_NUM_U8, QE_NUM_F16, QE_ZERO_CONST, 0, 0, 0, 1, 4},
    {"int two-level", PANEL_INT, QE_NUM_U8, QE_NUM_F32, QE_ZERO_POINT, 0, 0, 0, 1, 4},
    {"int two-level", PANEL_INT, QE_NUM_U8, QE_NUM_F16, QE_ZERO_POINT, 0, 0, 0, 1, 4},
    {"4-bit with mins", PANEL_Q4K, QE_NUM_U6, QE_NUM_F16, QE_ZERO_REAL, 32, 256, 256, 4, 4},
    {"6-bit", PANEL_Q6K, QE_NUM_S8, QE_NUM_F16, QE_ZERO_CONST, 16, 256, 256, 6, 6},
    {"half groups", PANEL_F16, QE_NUM_F16, QE_NUM_ONE, QE_ZERO_CONST, 0, 0, 0, 1, 8},
    {"half groups", PANEL_F16, QE_NUM_F16, QE_NUM_ONE, QE_ZERO_POINT, 0, 0, 0, 1, 8},
    {"float groups", PANEL_F32, QE_NUM_F32, QE_NUM_ONE, QE_ZERO_CONST, 0, 0, 0, 1, 8},
    {"float groups", PANEL_F32, QE_NUM_F32, QE_NUM_ONE, QE_ZERO_POINT, 0, 0, 0, 1, 8},
};

static void format_sizes(panel_format *f, int64_t k) {
    static const int32_t scale_bytes[2][6] = {{0, 64, 64, 128, 640, 576}, {0, 64, 128, 128, 8 * 128 + 640, 16 * 128}};
    f->scale_bytes = scale_bytes[f->wide == 2][f->scale];
    if (f->points && f->scale != PANEL_INT) f->scale_bytes += 64;   /* 32 used: scales stay on their own lines */
    f->unit_bytes = f->unit * (f->wide ? 8 : f->bits) * 4;
    f->block_bytes = f->scale_bytes + f->block / f->unit * f->unit_bytes;
    f->blocks = ceil_div(k, f->block);
    int32_t head = f->scale == PANEL_CHANNEL || f->scale == PANEL_INT ? PANEL_HEAD : 0;
    f->panel_bytes = ceil_div((int64_t)head + (int64_t)f->blocks * f->block_bytes, 256) * 256;
}

bool panel_format_wide(const panel_format *f, int32_t wide, panel_format *out) {
    *out = *f;
    if (f->bits == 8) return false;
    out->wide = wide;
    format_sizes(out, (int64_t)f->blocks * f->block);
    return true;
}

static int32_t stored_bits(int32_t bits) { return bits <= 4 ? 4 : bits == 5 ? 5 : bits == 6 ? 6 : 8; }

bool panel_format_of(const qk_shape *s, panel_format *out, qk_why *why) {
    const qe_quant *q = &s->quant;
    memset(out, 0, sizeof *out);
    if (!qk_integer_code(q)) return qk_no(why, "codes are not plain integers");
    if (q->scale_log2 || q->flags) return qk_no(why, "scale_log2 %d or flags %u", q->scale_log2, q->flags);
    out->bits = stored_bits(q->bits);
    out->doubled = q->code == QE_CODE_SIGN;
    out->zero = out->doubled ? 1 : q->zero_const;
    out->points = q->zero == QE_ZERO_POINT;
    out->unit = 32;
    if (out->points && q->zero_num != QE_NUM_U8) return qk_no(why, "zero points are not bytes");
    bool whole = qk_whole_k(q, s->facts, &s->act, s->k), row = q->group_k == 0 || q->group_k >= s->k;
    if (row && whole && !out->points && q->super == QE_NUM_ONE &&
        (q->scale == QE_NUM_F32 || q->scale == QE_NUM_F16 || q->scale == QE_NUM_BF16)) {
        if (out->bits == 5 || out->bits == 6) out->bits = 8;
        out->scale = PANEL_CHANNEL;
        out->group = out->block = 32;
        format_sizes(out, s->k);
        return true;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const panel_kind *kind = &kinds[i];
        if (kind->num != q->scale || kind->super != q->super || kind->zero != q->zero) continue;
        if (q->bits < kind->low || q->bits > kind->high) continue;
        if ((kind->group && kind->group != q->group_k) || (kind->super_k && kind->super_k != q->super_k)) continue;
        if (kind->scale == PANEL_Q4K && (q->zero_num != QE_NUM_U6 || q->group_n != 1 || q->super_n != 1)) continue;
        /* With a single group the integer level belongs to the row scale (7.3): not this panel's order. */
        if (kind->scale == PANEL_INT && (!whole || row || (q->super_k && q->super_k < s->k))) continue;
        if (kind->scale != PANEL_INT && whole) continue;
        out->scale = kind->scale;
        out->group = q->group_k;
        if (out->group < 16 || (out->group % 32 && out->scale != PANEL_Q6K))
            return qk_no(why, "group %d is not a multiple of 32", out->group);
        out->block = kind->block ? kind->block : out->group;
        out->unit = out->scale == PANEL_Q6K ? 16 : 32;
        if ((out->bits == 5 && out->scale != PANEL_F16) || (out->bits == 6 && out->scale != PANEL_Q6K)) out->bits = 8;
        format_sizes(out, s->k);
        return true;
    }
    return qk_no(why, "no panel for this pair of scales and zeros");
}

static bool panel_supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    panel_format f;
    const qe_quant *a = &s->act.quant;
    if (s->act.mode == QE_ACT_FLOAT) return qk_no(why, "input is not quantized");
    bool symmetric = a->zero == QE_ZERO_CONST && a->zero_const == (a->code == QE_CODE_SIGN ? 0 : 128);
    if (!qk_act_int8(&s->act) || !symmetric)
        return qk_no(why, "input is not symmetric int8");
    if (!panel_format_of(s, &f, why)) return false;
    /* AVX2 multiplies magnitudes by signs (bias8), in 16 bits and with no place for +128. Codes that a caller brings, or that
     * another linear left, reach -128; those that are made here of floats do not. */
    if (f.bits == 8 && s->act.mode == QE_ACT_STATIC && panel_isa_of(device->isa)->bias8)
        return qk_no(why, "8-bit codes under static int8 input need more than AVX2's panels multiply");
    int32_t outer = f.scale == PANEL_Q4K || f.scale == PANEL_Q6K ? 256 : f.group;
    if (f.scale != PANEL_CHANNEL && f.scale != PANEL_INT && a->group_k && a->group_k < s->k && a->group_k % outer)
        return qk_no(why, "input group %d is not a multiple of %d", a->group_k, outer);
    return true;
}

static size_t panel_head_bytes(const qk_shape *s) {
    (void)s;
    return 0;
}

static void panel_pack_head(const qk_shape *s, const qe_qtensor *band, void *head) { (void)s, (void)band, (void)head; }

static size_t panel_band_bytes(const qk_shape *s) {
    panel_format f;
    return panel_format_of(s, &f, NULL) ? (size_t)f.panel_bytes : 0;
}

static float number(const void *array, qe_num num, int64_t i) {
    switch (num) {
    case QE_NUM_F32: return ((const float *)array)[i];
    case QE_NUM_F16: return qe_f16_to_f32(((const uint16_t *)array)[i]);
    default: return qe_bf16_to_f32(((const uint16_t *)array)[i]);
    }
}

static void store_number(void *array, qe_num num, int64_t i, float v) {
    if (num == QE_NUM_F32) ((float *)array)[i] = v;
    else ((uint16_t *)array)[i] = num == QE_NUM_F16 ? qe_f32_to_f16(v) : qe_f32_to_bf16(v);
}

/* Where code (column, k) of a unit of stored width `bits` lies. */
static inline void put_code(const int bits, uint8_t *unit, int c, int k, uint32_t code) {
    int step = k / 4, byte = c % 16 * 4 + k % 4, half = c / 16;
    if (bits == 8) {
        unit[step * 128 + c * 4 + k % 4] = (uint8_t)code;
        return;
    }
    uint8_t *lines = unit + (bits == 4 ? 0 : 128);
    lines[step * 64 + byte] |= (uint8_t)((code & 15) << 4 * half);
    if (bits == 5) unit[half * 64 + byte] |= (uint8_t)(code >> 4 << step);
    if (bits == 6) unit[half * 64 + byte] |= (uint8_t)(code >> 4 << 2 * step);
}

static void put_unit(const panel_format *f, uint8_t *unit, int c, const uint8_t *codes, int count) {
    if (f->bits == 4)
        for (int i = 0; i < count; i++) put_code(4, unit, c, i, (uint32_t)codes[i] << f->doubled);
    else if (f->bits == 5)
        for (int i = 0; i < count; i++) put_code(5, unit, c, i, codes[i]);
    else if (f->bits == 6)
        for (int i = 0; i < count; i++) put_code(6, unit, c, i, codes[i]);
    else
        for (int i = 0; i < count; i++) put_code(8, unit, c, i, codes[i]);
}

/* The codes of column c of a unit, in order; four at a time, as they lie in one dword. */
static void get_unit(const panel_format *f, const uint8_t *unit, int c, uint8_t *codes) {
    const uint8_t *planes = unit + c / 16 * 64 + c % 16 * 4, *lines = unit + (f->bits == 4 ? 0 : 128) + c % 16 * 4;
    uint32_t four, high = 0;
    if (f->bits == 5 || f->bits == 6) memcpy(&high, planes, 4);
    for (int s = 0; s < f->unit / 4; s++) {
        memcpy(&four, f->bits == 8 ? unit + s * 128 + c * 4 : lines + s * 64, 4);
        if (f->bits < 8) four = four >> c / 16 * 4 & 0x0f0f0f0fu;
        if (f->bits == 5) four |= (high >> s & 0x01010101u) << 4;
        if (f->bits == 6) four |= (high >> 2 * s & 0x03030303u) << 4;
        memcpy(codes + 4 * s, &four, 4);
    }
}

static int32_t groups_of(int64_t k, int32_t group) { return group > 0 ? ceil_div(k, group) : 1; }

/* Scales of row r of the band, as column c of the panel. */
static void pack_scales(const panel_format *f, const qe_qtensor *t, int64_t r, uint8_t *panel) {
    const qe_quant *q = &t->quant;
    int64_t groups = groups_of(t->k, q->group_k), supers = groups_of(t->k, q->super_k);
    int64_t row = qk_group_row(t->first_row, r, q->group_n) * groups;
    int64_t top = qk_group_row(t->first_row, r, q->super_n) * supers;
    const uint8_t *bytes = t->scales, *zeros = t->zeros;
    if (f->scale == PANEL_CHANNEL) {
        ((float *)panel)[r] = number(t->scales, q->scale, row);
        return;
    }
    if (f->scale == PANEL_INT) ((float *)panel)[r] = number(t->super, q->super, top);
    for (int64_t b = 0; b < f->blocks; b++) {
        uint8_t *block = panel + (f->scale == PANEL_INT ? PANEL_HEAD : 0) + b * f->block_bytes;
        if (f->scale == PANEL_F32) ((float *)block)[r] = number(t->scales, QE_NUM_F32, row + b);
        if (f->scale == PANEL_F16) ((uint16_t *)block)[r] = ((const uint16_t *)t->scales)[row + b];
        if (f->scale == PANEL_INT) block[r] = bytes[row + b];
        if (f->points) block[(f->scale == PANEL_INT ? 32 : f->scale == PANEL_F16 ? 64 : 128) + r] = zeros[row + b];
        if (f->scale != PANEL_Q4K && f->scale != PANEL_Q6K) continue;
        ((uint16_t *)block)[r] = ((const uint16_t *)t->super)[top + b];
        int count = 256 / q->group_k;
        for (int g = 0; g < count && b * count + g < groups; g++) {
            int64_t at = row + b * count + g;
            if (f->scale == PANEL_Q6K) {
                block[64 + g * 32 + r] = bytes[at];
            } else {
                block[128 + g * 32 + r] = bytes[at];
                block[384 + g / 2 * 64 + r * 2 + g % 2] = zeros[at];
            }
        }
        if (f->scale == PANEL_Q4K) ((uint16_t *)block)[32 + r] = ((const uint16_t *)t->zero_super)[top + b];
    }
}

static uint8_t *unit_at(const panel_format *f, uint8_t *panel, int64_t k) {
    int64_t b = k / f->block, u = k % f->block / f->unit;
    int32_t head = f->scale == PANEL_CHANNEL || f->scale == PANEL_INT ? PANEL_HEAD : 0;
    return panel + head + b * f->block_bytes + f->scale_bytes + u * f->unit_bytes;
}

static void panel_pack(const qk_shape *s, const qe_qtensor *t, void *dst) {
    panel_format f;
    if (!panel_format_of(s, &f, NULL)) return;
    memset(dst, 0, (size_t)f.panel_bytes);
    for (int64_t r = 0; r < t->n; r++) {
        const uint8_t *codes = (const uint8_t *)t->codes + r * t->k;
        pack_scales(&f, t, r, dst);
        for (int64_t k = 0; k < t->k; k += f.unit)
            put_unit(&f, unit_at(&f, dst, k), (int)r, codes + k, (int)(t->k - k < f.unit ? t->k - k : f.unit));
    }
}

static void unpack_scales(const panel_format *f, const uint8_t *panel, int64_t r, qe_qtensor *t) {
    const qe_quant *q = &t->quant;
    int64_t groups = groups_of(t->k, q->group_k), supers = groups_of(t->k, q->super_k);
    int64_t row = qk_group_row(t->first_row, r, q->group_n) * groups;
    int64_t top = qk_group_row(t->first_row, r, q->super_n) * supers;
    uint8_t *bytes = t->scales, *zeros = t->zeros;
    if (f->scale == PANEL_CHANNEL) {
        for (int64_t g = 0; g < groups; g++) store_number(t->scales, q->scale, row + g, ((const float *)panel)[r]);
        return;
    }
    if (f->scale == PANEL_INT) store_number(t->super, q->super, top, ((const float *)panel)[r]);
    for (int64_t b = 0; b < f->blocks; b++) {
        const uint8_t *block = panel + (f->scale == PANEL_INT ? PANEL_HEAD : 0) + b * f->block_bytes;
        if (f->scale == PANEL_F32) ((float *)t->scales)[row + b] = ((const float *)block)[r];
        if (f->scale == PANEL_F16) ((uint16_t *)t->scales)[row + b] = ((const uint16_t *)block)[r];
        if (f->scale == PANEL_INT) bytes[row + b] = block[r];
        if (f->points) zeros[row + b] = block[(f->scale == PANEL_INT ? 32 : f->scale == PANEL_F16 ? 64 : 128) + r];
        if (f->scale != PANEL_Q4K && f->scale != PANEL_Q6K) continue;
        ((uint16_t *)t->super)[top + b] = ((const uint16_t *)block)[r];
        int count = 256 / q->group_k;
        for (int g = 0; g < count && b * count + g < groups; g++) {
            int64_t at = row + b * count + g;
            bytes[at] = block[(f->scale == PANEL_Q6K ? 64 : 128) + g * 32 + r];
            if (f->scale == PANEL_Q4K) zeros[at] = block[384 + g / 2 * 64 + r * 2 + g % 2];
        }
        if (f->scale == PANEL_Q4K) ((uint16_t *)t->zero_super)[top + b] = ((const uint16_t *)block)[32 + r];
    }
}

static void panel_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *t) {
    panel_format f;
    (void)head;
    if (!panel_format_of(s, &f, NULL)) return;
    for (int64_t r = 0; r < t->n; r++) {
        uint8_t *codes = (uint8_t *)t->codes + r * t->k;
        unpack_scales(&f, src, r, t);
        for (int64_t k = 0; k < t->k; k += f.unit) {
            uint8_t unit[UNIT_MAX];
            get_unit(&f, unit_at(&f, (uint8_t *)(uintptr_t)src, k), (int)r, unit);
            for (int i = 0; f.doubled && i < UNIT_MAX; i++) unit[i] >>= 1;
            memcpy(codes + k, unit, (size_t)(t->k - k < f.unit ? t->k - k : f.unit));
        }
    }
}

/* Scale, zero and real offset of row r in group g of a block: the formula of quant.h. */
static float scale_at(const panel_format *f, const uint8_t *panel, const uint8_t *block, int r, int g, int32_t *zero,
                      float *offset) {
    *zero = f->zero;
    *offset = 0.0f;
    if (f->points) *zero = block[(f->scale == PANEL_INT ? 32 : f->scale == PANEL_F16 ? 64 : 128) + r];
    switch (f->scale) {
    case PANEL_CHANNEL: return ((const float *)panel)[r];
    case PANEL_INT: return ((const float *)panel)[r] * (float)block[r];
    case PANEL_F16: return qe_f16_to_f32(((const uint16_t *)block)[r]);
    case PANEL_F32: return ((const float *)block)[r];
    case PANEL_Q6K: return qe_f16_to_f32(((const uint16_t *)block)[r]) * (float)(int8_t)block[64 + g * 32 + r];
    default: break;
    }
    *offset = qe_f16_to_f32(((const uint16_t *)block)[32 + r]) * (float)block[384 + g / 2 * 64 + r * 2 + g % 2];
    return qe_f16_to_f32(((const uint16_t *)block)[r]) * (float)block[128 + g * 32 + r];
}

static void panel_row(const qk_shape *s, const void *head, const void *src, int32_t row, float *w) {
    panel_format f;
    (void)head;
    if (!panel_format_of(s, &f, NULL)) return;
    uint8_t codes[UNIT_MAX] = {0};
    float values[UNIT_MAX], scale = 0.0f, offset = 0.0f;
    int32_t zero = 0;
    const uint8_t *block = unit_at(&f, (uint8_t *)(uintptr_t)src, 0) - f.scale_bytes;
    for (int64_t from = 0; from < s->k; block += f.block_bytes) {
        const uint8_t *unit = block + f.scale_bytes;
        for (int k = 0; k < f.block && from < s->k; k += f.unit, from += f.unit, unit += f.unit_bytes) {
            if (k % f.group == 0) scale = scale_at(&f, src, block, row, k / f.group, &zero, &offset);
            get_unit(&f, unit, row, codes);
            for (int i = 0; i < UNIT_MAX; i++) values[i] = scale * (float)((int32_t)codes[i] - zero);
            for (int i = 0; f.scale == PANEL_Q4K && i < UNIT_MAX; i++) values[i] += offset;
            memcpy(w + from, values, (size_t)(s->k - from < f.unit ? s->k - from : f.unit) * sizeof *w);
        }
    }
}

const qk_layout cpu_layout_panel = {"cpu/panel", 1, PANEL_COLUMNS, panel_supports, panel_head_bytes, panel_band_bytes,
                                    panel_pack_head, panel_pack, panel_unpack, panel_row};
