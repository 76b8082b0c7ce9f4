/* Layout cuda/w8a8: int8 codes in swizzled 128 x 128 tiles. See cuda_backend.h. */
#include "cuda_backend.h"
#include "cuda_pack.h"

#include <string.h>

static bool supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *w = &s->quant;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", (int)device->sm);
    if (s->act.mode == QE_ACT_FLOAT) return qk_no(why, "the input stays float");
    if (!qk_act_int8(&s->act)) return qk_no(why, "the input is not int8");
    if (s->act.quant.group_k && s->act.quant.group_k < s->k) return qk_no(why, "input scales inside a row");
    if (w->code != QE_CODE_INT) return qk_no(why, "codes are not integers");
    if (w->zero != QE_ZERO_CONST) return qk_no(why, "zero points per group");
    if (w->zero_const > 128 || (1 << w->bits) - 1 - w->zero_const > 127) return qk_no(why, "c - z leaves int8");
    if (w->super != QE_NUM_ONE) return qk_no(why, "two levels of scales");
    if (w->group_k && w->group_k < s->k) return qk_no(why, "groups of %d along k", (int)w->group_k);
    if (!qk_pack_is_float(w->scale)) return qk_no(why, "the scale is no float");
    if (w->scale_log2) return qk_no(why, "scales times 2^%d", (int)w->scale_log2);
    if (!qk_whole_k(w, s->facts, &s->act, s->k)) return qk_no(why, "int32 cannot carry k = %lld", (long long)s->k);
    return true;
}
static size_t head_bytes(const qk_shape *s) {
    (void)s;
    return 0;
}
static size_t band_bytes(const qk_shape *s) {
    return (size_t)qk_w8_band_bytes(s->k);
}
static void pack_head(const qk_shape *s, const qe_qtensor *any_band, void *head) {
    (void)s;
    (void)any_band;
    (void)head;
}
static size_t at(int64_t row, int64_t column) {
    return (size_t)(column / QK_W8_TILE_K * QK_W8_TILE_BYTES + row * QK_W8_TILE_K +
                    ((column % QK_W8_TILE_K / 16 ^ (row & 7)) * 16) + column % 16);
}
static void pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    uint8_t *out = dst;
    const uint8_t *codes = band->codes;
    memset(out, 0, band_bytes(s));
    uint8_t *scales = out + qk_w8_tiles(s->k) * QK_W8_TILE_BYTES;
    for (int64_t r = 0; r < band->n; r++) {
        int32_t sum = 0;
        for (int64_t k = 0; k < s->k; k++) {
            int32_t q = (int32_t)codes[r * s->k + k] - s->quant.zero_const;
            out[at(r, k)] = (uint8_t)(int8_t)q;
            sum += q;
        }
        int64_t group = qk_group_row(band->first_row, r, s->quant.group_n);
        float scale = qk_pack_scale(&s->quant, band->scales, group);
        memcpy(scales + 4 * r, &scale, 4);
        memcpy(scales + 4 * QK_W8_ROWS + 4 * r, &sum, 4);
    }
}
static void unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    const uint8_t *in = src, *scales = in + qk_w8_tiles(s->k) * QK_W8_TILE_BYTES;
    uint8_t *codes = band->codes;
    (void)head;
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t k = 0; k < s->k; k++) codes[r * s->k + k] = (uint8_t)((int8_t)in[at(r, k)] + s->quant.zero_const);
        float scale;
        memcpy(&scale, scales + 4 * r, 4);
        qk_unpack_scale(&s->quant, scale, band->scales, qk_group_row(band->first_row, r, s->quant.group_n));
    }
}
const qk_layout qk_cuda_w8a8 = {"cuda/w8a8", 1,         QK_W8_ROWS, supports, head_bytes,
                                band_bytes,  pack_head, pack,       unpack,   NULL};
