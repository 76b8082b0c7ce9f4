/* Layout cuda/w4a16: int4 codes in the order of mma.m16n8k16's A fragments. See cuda_backend.h. */
#include "cuda_backend.h"

#include <string.h>

static bool supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *w = &s->quant;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", (int)device->sm);
    if (s->act.mode != QE_ACT_FLOAT) return qk_no(why, "the input is quantized");
    if (w->code != QE_CODE_INT || w->bits != 4) return qk_no(why, "codes are not int4");
    if (w->scale != QE_NUM_F16 || w->super != QE_NUM_ONE || w->scale_log2) return qk_no(why, "scales are not fp16");
    if (w->group_n != 1) return qk_no(why, "groups of %d rows", (int)w->group_n);
    if (w->group_k && w->group_k % 32) return qk_no(why, "group %d is not a multiple of 32", (int)w->group_k);
    if (w->zero == QE_ZERO_REAL) return qk_no(why, "real zeros");
    if (w->zero == QE_ZERO_POINT && w->zero_num != QE_NUM_U8) return qk_no(why, "zero points are not integers");
    return true;
}
static size_t head_bytes(const qk_shape *s) {
    (void)s;
    return 0;
}
static size_t band_bytes(const qk_shape *s) {
    return (size_t)qk_w4_band_bytes(&s->quant, s->k);
}
static void pack_head(const qk_shape *s, const qe_qtensor *any_band, void *head) {
    (void)s;
    (void)any_band;
    (void)head;
}
/* Byte and shift of the code of (row, column). */
static size_t at(int64_t row, int64_t k, int *shift) {
    int64_t sub = row / 16, r = row % 16 / 8, g = row % 8, in = k % 64;
    int64_t step = in / 16, col = in % 16, c = col % 8 / 2, h = col % 2, high = col / 8;
    int64_t byte =
        k / 64 * QK_W4_BLOCK_BYTES + sub * 512 + (4 * g + c) * 16 + (step / 2 * 2 + r) * 4 + 2 * h + step % 2;
    *shift = (int)(4 * high);
    return (size_t)byte;
}
static void pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    uint8_t *out = dst;
    const uint8_t *codes = band->codes, *zeros = band->zeros;
    const uint16_t *scales = band->scales;
    int64_t groups = qk_w4_groups(&s->quant, s->k);
    uint8_t *scales_out = out + qk_w4_blocks(s->k) * QK_W4_BLOCK_BYTES,
            *zeros_out = scales_out + groups * QK_W4_ROWS * 2;
    memset(out, 0, band_bytes(s));
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t k = 0; k < s->k; k++) {
            int shift;
            size_t byte = at(r, k, &shift);
            out[byte] = (uint8_t)(out[byte] | codes[r * s->k + k] << shift);
        }
        for (int64_t g = 0; g < groups; g++) {
            memcpy(scales_out + 2 * (g * QK_W4_ROWS + r), &scales[r * groups + g], 2);
            zeros_out[g * QK_W4_ROWS + r] =
                s->quant.zero == QE_ZERO_POINT ? zeros[r * groups + g] : (uint8_t)s->quant.zero_const;
        }
    }
}
static void unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    const uint8_t *in = src;
    uint8_t *codes = band->codes, *zeros = band->zeros;
    uint16_t *scales = band->scales;
    int64_t groups = qk_w4_groups(&s->quant, s->k);
    const uint8_t *scales_in = in + qk_w4_blocks(s->k) * QK_W4_BLOCK_BYTES,
                  *zeros_in = scales_in + groups * QK_W4_ROWS * 2;
    (void)head;
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t k = 0; k < s->k; k++) {
            int shift;
            size_t byte = at(r, k, &shift);
            codes[r * s->k + k] = in[byte] >> shift & 15;
        }
        for (int64_t g = 0; g < groups; g++) {
            memcpy(&scales[r * groups + g], scales_in + 2 * (g * QK_W4_ROWS + r), 2);
            if (s->quant.zero == QE_ZERO_POINT) zeros[r * groups + g] = zeros_in[g * QK_W4_ROWS + r];
        }
    }
}
const qk_layout qk_cuda_w4a16 = {"cuda/w4a16", 1,         QK_W4_ROWS, supports, head_bytes,
                                 band_bytes,   pack_head, pack,       unpack,   NULL};
