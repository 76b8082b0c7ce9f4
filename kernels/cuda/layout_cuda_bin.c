/* Layouts of 1- and 2-bit codes: cuda/w1a1, bits in swizzled 128 x 1024 tiles, and cuda/w2a8, codes in the order of A
 * fragments. See cuda_backend.h. */
#include "cuda_backend.h"
#include "cuda_pack.h"

#include <string.h>

/* ---- what both share --------------------------------------------------------------------------------------------- */
static bool common(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *w = &s->quant;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", (int)device->sm);
    if (w->super != QE_NUM_ONE) return qk_no(why, "two levels of scales");
    if (w->group_k && w->group_k < s->k) return qk_no(why, "groups of %d along k", (int)w->group_k);
    if (!qk_pack_is_float(w->scale)) return qk_no(why, "the scale is no float");
    if (w->scale_log2) return qk_no(why, "scales times 2^%d", (int)w->scale_log2);
    if (!qk_whole_k(w, s->facts, &s->act, s->k)) return qk_no(why, "int32 cannot carry k = %lld", (long long)s->k);
    return true;
}
/* Scale and integer sum of a row, behind the codes. */
static void put_numbers(const qk_shape *s, const qe_qtensor *band, int64_t r, int32_t sum, uint8_t *trailer) {
    float scale = qk_pack_scale(&s->quant, band->scales, qk_group_row(band->first_row, r, s->quant.group_n));
    memcpy(trailer + 4 * r, &scale, 4);
    memcpy(trailer + 4 * QK_W8_ROWS + 4 * r, &sum, 4);
}
static void get_scale(const qk_shape *s, const uint8_t *trailer, int64_t r, qe_qtensor *band) {
    float scale;
    memcpy(&scale, trailer + 4 * r, 4);
    qk_unpack_scale(&s->quant, scale, band->scales, qk_group_row(band->first_row, r, s->quant.group_n));
}
static size_t head_bytes(const qk_shape *s) {
    (void)s;
    return 0;
}
static void pack_head(const qk_shape *s, const qe_qtensor *any_band, void *head) {
    (void)s;
    (void)any_band;
    (void)head;
}

/* ---- cuda/w1a1 --------------------------------------------------------------------------------------------------- */
static bool w1a1_supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    if (s->act.mode == QE_ACT_FLOAT || s->act.quant.code != QE_CODE_SIGN) return qk_no(why, "the input is not signs");
    if (s->quant.code != QE_CODE_SIGN) return qk_no(why, "codes are not signs");
    return common(device, s, why);
}
static size_t w1a1_band_bytes(const qk_shape *s) {
    return (size_t)qk_w1_band_bytes(s->k);
}
/* The byte that holds column k of a row. */
static size_t at(int64_t row, int64_t k) {
    const int64_t byte = k / 8;
    return (size_t)(byte / QK_W8_TILE_K * QK_W8_TILE_BYTES + row * QK_W8_TILE_K +
                    ((byte % QK_W8_TILE_K / 16 ^ (row & 7)) * 16) + byte % 16);
}
static void w1a1_pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    uint8_t *out = dst;
    const uint8_t *codes = band->codes;
    memset(out, 0, w1a1_band_bytes(s));
    uint8_t *scales = out + qk_w1_tiles(s->k) * QK_W8_TILE_BYTES;
    for (int64_t r = 0; r < band->n; r++) {
        int32_t sum = 0;
        for (int64_t k = 0; k < s->k; k++) {
            const int bit = codes[r * s->k + k] & 1;
            out[at(r, k)] = (uint8_t)(out[at(r, k)] | bit << k % 8);
            sum += 2 * bit - 1;
        }
        put_numbers(s, band, r, sum, scales);
    }
}
static void w1a1_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    const uint8_t *in = src, *scales = in + qk_w1_tiles(s->k) * QK_W8_TILE_BYTES;
    uint8_t *codes = band->codes;
    (void)head;
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t k = 0; k < s->k; k++) codes[r * s->k + k] = in[at(r, k)] >> k % 8 & 1;
        get_scale(s, scales, r, band);
    }
}
const qk_layout qk_cuda_w1a1 = {"cuda/w1a1",     1,         QK_W8_ROWS, w1a1_supports, head_bytes,
                                w1a1_band_bytes, pack_head, w1a1_pack,  w1a1_unpack,   NULL};

/* ---- cuda/w2a8 --------------------------------------------------------------------------------------------------- */
static bool w2a8_supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *w = &s->quant;
    if (s->act.mode == QE_ACT_FLOAT) return qk_no(why, "the input stays float");
    if (!qk_act_int8(&s->act)) return qk_no(why, "the input is not int8");
    if (!qk_integer_code(w) || w->bits > 2) return qk_no(why, "codes are not signs or integers of up to 2 bits");
    if (w->zero != QE_ZERO_CONST) return qk_no(why, "zero points per group");
    return common(device, s, why);
}
static size_t w2a8_band_bytes(const qk_shape *s) {
    return (size_t)qk_w2a8_band_bytes(&s->quant, s->k);
}
/* The byte that holds the code of (row, k), and where in it. */
static size_t code_at(int bits, int64_t row, int64_t k, int *shift) {
    const int64_t in = k % QK_W4_BLOCK_K, h = in / 64, step = in % 64 / 32, j = in % 32 / 16, c = in % 16 / 4, i = in % 4;
    const int64_t r64 = row % 64, r = r64 % 16 / 8, thread = r64 / 16 * 32 + r64 % 8 * 4 + c;
    const int64_t word = bits == 2 ? 16 * thread + 4 * (2 * h + r) : 512 * r + 4 * thread;
    const int64_t bit = bits == 2 ? 16 * step + 4 * i + 2 * j : 16 * h + 4 * i + 2 * step + j;
    *shift = (int)(bit % 8);
    return (size_t)((k / QK_W4_BLOCK_K * 2 + row / 64) * QK_W2_BIT_BYTES * bits + word + bit / 8);
}
static void w2a8_pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    const qe_quant *q = &s->quant;
    uint8_t *out = dst;
    const uint8_t *codes = band->codes;
    memset(out, 0, w2a8_band_bytes(s));
    for (int64_t r = 0; r < band->n; r++) {
        int32_t sum = 0;
        for (int64_t k = 0; k < s->k; k++) {
            int shift;
            const size_t byte = code_at(q->bits, r, k, &shift);
            const int code = codes[r * s->k + k] & ((1 << q->bits) - 1);
            out[byte] = (uint8_t)(out[byte] | code << shift);
            sum += q->code == QE_CODE_SIGN ? 2 * code - 1 : code - q->zero_const;
        }
        put_numbers(s, band, r, sum, out + w2a8_band_bytes(s) - QK_W4_ROWS * 8);
    }
}
static void w2a8_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    const uint8_t *in = src;
    uint8_t *codes = band->codes;
    (void)head;
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t k = 0; k < s->k; k++) {
            int shift;
            const size_t byte = code_at(s->quant.bits, r, k, &shift);
            codes[r * s->k + k] = in[byte] >> shift & ((1 << s->quant.bits) - 1);
        }
        get_scale(s, in + w2a8_band_bytes(s) - QK_W4_ROWS * 8, r, band);
    }
}
const qk_layout qk_cuda_w2a8 = {"cuda/w2a8",     1,         QK_W4_ROWS, w2a8_supports, head_bytes,
                                w2a8_band_bytes, pack_head, w2a8_pack,  w2a8_unpack,   NULL};
