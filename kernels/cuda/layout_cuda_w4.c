/* Layouts cuda/w4a8, cuda/s4a8 and cuda/w4a16: codes of up to 4 bits in the order of A fragments. See cuda_backend.h. */
#include "cuda_backend.h"
#include "cuda_pack.h"

#include <string.h>

/* ---- what both share --------------------------------------------------------------------------------------------- */
static size_t head_bytes(const qk_shape *s) {
    (void)s;
    return 0;
}
static void pack_head(const qk_shape *s, const qe_qtensor *any_band, void *head) {
    (void)s;
    (void)any_band;
    (void)head;
}
typedef struct place {
    size_t byte;
    int shift;
} place;
enum order { FOR_INT8, FOR_16_BITS, FOR_LDMATRIX };
/* Where the code of (row, k) lies. */
static place code_at(int64_t block_bytes, enum order order, int64_t row, int64_t k) {
    const bool int8_steps = order == FOR_INT8;
    const int64_t in = k % QK_W4_BLOCK_K, r64 = row % 64, r = r64 % 16 / 8;
    const int64_t column = in % (int8_steps ? 32 : 16), high = column / (int8_steps ? 16 : 8);
    const int64_t c = int8_steps ? column % 16 / 4 : column % 8 / 2;
    const int64_t thread = r64 / 16 * 32 + r64 % 8 * 4 + c, word = in / 32 * 2 + r;
    const int64_t byte = int8_steps ? column % 4 : column % 2 * 2 + in / 16 % 2;
    const int64_t block = (k / QK_W4_BLOCK_K * 2 + row / 64) * block_bytes;
    if (order == FOR_LDMATRIX) {
        const int64_t matrix = in % 32 / 16 * 2 + r;
        place m = {(size_t)(block + r64 / 16 * 1024 + in / 32 * 256 + matrix * 64 + r64 % 8 * 8 + in % 16 / 2), (int)(in % 2 * 4)};
        return m;
    }
    place p = {(size_t)(block + word / 4 * 2048 + thread * 16 + word % 4 * 4 + byte), (int)(4 * high)};
    return p;
}
static size_t numbers_at(int64_t block_bytes, int64_t row, int64_t block, int unit) {
    const int64_t r = row % 64;
    return (size_t)((block * 2 + row / 64) * block_bytes + QK_W4_CODE_BYTES + unit * 128 + r / 16 * 32 + r % 8 * 4 +
                    r % 16 / 8 * 2);
}
static int64_t group_count(const qe_quant *q, int64_t k) {
    return q->group_k ? (k + q->group_k - 1) / q->group_k : 1;
}
/* The group that a unit of a block lies in, -1 beyond k. */
static int64_t group_of(const qe_quant *q, int64_t k, int64_t block, int unit) {
    const int64_t column = block * QK_W4_BLOCK_K + unit * 32;
    if (column >= k) return -1;
    return q->group_k ? column / q->group_k : 0;
}
/* Nibbles are codes less `zero`, modulo 16. */
static void pack_codes(const qk_shape *s, const qe_qtensor *band, int64_t block_bytes, enum order order, int zero, uint8_t *out) {
    const uint8_t *codes = band->codes;
    for (int64_t r = 0; r < band->n; r++)
        for (int64_t k = 0; k < s->k; k++) {
            const place p = code_at(block_bytes, order, r, k);
            out[p.byte] = (uint8_t)(out[p.byte] | ((codes[r * s->k + k] - zero) & 15) << p.shift);
        }
}
static void unpack_codes(const qk_shape *s, qe_qtensor *band, int64_t block_bytes, enum order order, int zero,
                         const uint8_t *in) {
    uint8_t *codes = band->codes;
    for (int64_t r = 0; r < band->n; r++)
        for (int64_t k = 0; k < s->k; k++) {
            const place p = code_at(block_bytes, order, r, k);
            codes[r * s->k + k] = (uint8_t)(((in[p.byte] >> p.shift) + zero) & 15);
        }
}
static bool common(const qk_device *device, const qe_quant *w, int64_t k, qk_why *why) {
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", (int)device->sm);
    if (w->code != QE_CODE_INT || w->bits > 4) return qk_no(why, "codes are not integers of up to 4 bits");
    if (w->group_n != 1) return qk_no(why, "groups of %d rows", (int)w->group_n);
    if (w->group_k && w->group_k < k && w->group_k % 32)
        return qk_no(why, "group %d is not a multiple of 32", (int)w->group_k);
    if (w->zero == QE_ZERO_REAL) return qk_no(why, "real zeros");
    if (w->zero == QE_ZERO_POINT && w->zero_num != QE_NUM_U8) return qk_no(why, "zero points are not integers");
    return true;
}

/* ---- cuda/w4a8 --------------------------------------------------------------------------------------------------- */
static bool two_level(const qe_quant *w) {
    return w->super != QE_NUM_ONE;
}
static bool w4a8_supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *w = &s->quant;
    if (s->act.mode == QE_ACT_FLOAT) return qk_no(why, "the input stays float");
    if (!qk_act_int8(&s->act)) return qk_no(why, "the input is not int8");
    if (s->act.quant.group_k && s->act.quant.group_k < s->k) return qk_no(why, "input scales inside a row");
    if (!common(device, w, s->k, why)) return false;
    if (w->scale_log2) return qk_no(why, "scales times 2^%d", (int)w->scale_log2);
    if (two_level(w)) {
        if (w->scale < QE_NUM_U8 || w->scale == QE_NUM_S8 || w->scale == QE_NUM_S6 || w->scale > QE_NUM_U4)
            return qk_no(why, "group scales are not unsigned integers");
        if (w->super_n != 1 || (w->super_k && w->super_k < s->k))
            return qk_no(why, "second-level scales are not one per row");
        if (!qk_pack_is_float(w->super) || w->super == QE_NUM_ONE) return qk_no(why, "the row's scale is no float");
        if (!w->group_k || w->group_k >= s->k) return qk_no(why, "two levels of scales over one group");
        if (!(s->facts & QE_FACT_INT8_PRODUCT)) return qk_no(why, "scale times code may leave int8");
    } else {
        if (w->group_k && w->group_k < s->k)
            return qk_no(why, "fp group scales: %d columns of k each", (int)w->group_k);
        if (!qk_pack_is_float(w->scale)) return qk_no(why, "the scale is no float");
    }
    if (!qk_whole_k(w, s->facts, &s->act, s->k)) return qk_no(why, "int32 cannot carry k = %lld", (long long)s->k);
    return true;
}
static size_t w4a8_band_bytes(const qk_shape *s) {
    return (size_t)qk_w4a8_band_bytes(&s->quant, s->k);
}
/* The row's float scale, as the canonical array of its level. */
static float row_scale(const qe_quant *q, const qe_qtensor *band, int64_t r) {
    qe_quant level = *q;
    if (two_level(q)) level.scale = q->super;
    return qk_pack_scale(&level, two_level(q) ? band->super : band->scales, r);
}
static void pack_int8(const qk_shape *s, const qe_qtensor *band, enum order order, void *dst) {
    const qe_quant *q = &s->quant;
    const int64_t block_bytes = qk_w4a8_block_bytes(q, s->k), blocks = qk_w4_blocks(s->k), groups = group_count(q, s->k);
    const uint8_t *codes = band->codes, *zeros = band->zeros, *scales = band->scales;
    const int units = qk_w4a8_units(q, s->k);
    uint8_t *out = dst, *trailer = out + blocks * 2 * block_bytes;
    memset(out, 0, w4a8_band_bytes(s));
    pack_codes(s, band, block_bytes, order, units ? 0 : q->zero_const, out);
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t b = 0; b < blocks; b++)
            for (int unit = 0; unit < units; unit++) {
                const int64_t g = group_of(q, s->k, b, unit);
                if (g < 0) continue;
                uint8_t *two = out + numbers_at(block_bytes, r, b, unit);
                two[0] = two_level(q) ? scales[r * groups + g] : 1;
                two[1] = q->zero == QE_ZERO_POINT ? zeros[r * groups + g] : (uint8_t)q->zero_const;
            }
        int32_t sum = 0;
        for (int64_t k = 0; k < s->k; k++) {
            const int64_t g = q->group_k ? k / q->group_k : 0;
            const int32_t z = q->zero == QE_ZERO_POINT ? zeros[r * groups + g] : q->zero_const;
            sum += (codes[r * s->k + k] - z) * (two_level(q) ? scales[r * groups + g] : 1);
        }
        const float scale = row_scale(q, band, r);
        memcpy(trailer + 4 * r, &scale, 4);
        memcpy(trailer + 4 * QK_W4_ROWS + 4 * r, &sum, 4);
    }
}
static void unpack_int8(const qk_shape *s, const void *src, enum order order, qe_qtensor *band) {
    const qe_quant *q = &s->quant;
    const int64_t block_bytes = qk_w4a8_block_bytes(q, s->k), blocks = qk_w4_blocks(s->k), groups = group_count(q, s->k);
    const uint8_t *in = src, *trailer = in + blocks * 2 * block_bytes;
    const int units = qk_w4a8_units(q, s->k);
    uint8_t *zeros = band->zeros, *scales = band->scales;
    unpack_codes(s, band, block_bytes, order, units ? 0 : q->zero_const, in);
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t b = 0; b < blocks; b++)
            for (int unit = 0; unit < units; unit++) {
                const int64_t g = group_of(q, s->k, b, unit);
                if (g < 0) continue;
                const uint8_t *two = in + numbers_at(block_bytes, r, b, unit);
                if (two_level(q)) scales[r * groups + g] = two[0];
                if (q->zero == QE_ZERO_POINT) zeros[r * groups + g] = two[1];
            }
        float scale;
        memcpy(&scale, trailer + 4 * r, 4);
        qe_quant level = *q;
        if (two_level(q)) level.scale = q->super;
        qk_unpack_scale(&level, scale, two_level(q) ? band->super : band->scales, r);
    }
}
static void w4a8_pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    pack_int8(s, band, FOR_INT8, dst);
}
static void w4a8_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    (void)head;
    unpack_int8(s, src, FOR_INT8, band);
}
const qk_layout qk_cuda_w4a8 = {"cuda/w4a8",     2,         QK_W4_ROWS, w4a8_supports, head_bytes,
                                w4a8_band_bytes, pack_head, w4a8_pack,  w4a8_unpack,   NULL};

/* ---- cuda/s4a8: one row, of sm_90a -------------------------------------------------------------------------------- */
static bool s4a8_supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", (int)device->sm);
    if (!device->toolkit) return qk_no(why, "nvcc not named, ldmatrix.s4 needs 13.4");
    if (device->toolkit < QK_S4_TOOLKIT)
        return qk_no(why, "built by nvcc %d.%d, ldmatrix.s4 needs 13.4", (int)device->toolkit / 100, (int)device->toolkit % 100);
    if (device->unit_bytes < 227 * 1024) return qk_no(why, "%u bytes of shared memory", device->unit_bytes);
    if (!w4a8_supports(device, s, why)) return false;
    if (qk_w4a8_units(&s->quant, s->k)) return qk_no(why, "scales or zeros inside a row, or differences beyond -8..7");
    return true;
}
static void s4a8_pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    pack_int8(s, band, FOR_LDMATRIX, dst);
}
static void s4a8_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    (void)head;
    unpack_int8(s, src, FOR_LDMATRIX, band);
}
const qk_layout qk_cuda_s4a8 = {"cuda/s4a8",     1,         QK_W4_ROWS, s4a8_supports, head_bytes,
                                w4a8_band_bytes, pack_head, s4a8_pack,  s4a8_unpack,   NULL};

/* ---- cuda/w4a16 -------------------------------------------------------------------------------------------------- */
static bool w4a16_supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *w = &s->quant;
    if (s->act.mode != QE_ACT_FLOAT) return qk_no(why, "the input is quantized");
    if (!common(device, w, s->k, why)) return false;
    if (w->scale != QE_NUM_F16 || w->super != QE_NUM_ONE || w->scale_log2) return qk_no(why, "scales are not fp16");
    return true;
}
static size_t w4a16_band_bytes(const qk_shape *s) {
    return (size_t)qk_w4a16_band_bytes(&s->quant, s->k);
}
/* Zeros follow all scales of a block, at half the offset. */
static size_t zero_at(int64_t block_bytes, int units, int64_t row, int64_t block, int unit) {
    const int64_t r = row % 64;
    return (size_t)((block * 2 + row / 64) * block_bytes + QK_W4_CODE_BYTES + units * 128 + unit * 64 + r / 16 * 16 +
                    r % 8 * 2 + r % 16 / 8);
}
static void w4a16_pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    const qe_quant *q = &s->quant;
    const int64_t block_bytes = qk_w4a16_block_bytes(q, s->k), blocks = qk_w4_blocks(s->k);
    const int64_t groups = group_count(q, s->k);
    const int units = qk_w4_units(q, s->k);
    const uint16_t *scales = band->scales;
    uint8_t *out = dst;
    memset(out, 0, w4a16_band_bytes(s));
    pack_codes(s, band, block_bytes, FOR_16_BITS, 0, out);
    for (int64_t r = 0; r < band->n; r++)
        for (int64_t b = 0; b < blocks; b++)
            for (int unit = 0; unit < units; unit++) {
                const int64_t g = group_of(q, s->k, b, unit);
                if (g < 0) continue;
                memcpy(out + numbers_at(block_bytes, r, b, unit), &scales[r * groups + g], 2);
                if (q->zero == QE_ZERO_POINT)
                    out[zero_at(block_bytes, units, r, b, unit)] = ((const uint8_t *)band->zeros)[r * groups + g];
            }
}
static void w4a16_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    const qe_quant *q = &s->quant;
    const int64_t block_bytes = qk_w4a16_block_bytes(q, s->k), blocks = qk_w4_blocks(s->k);
    const int64_t groups = group_count(q, s->k);
    const int units = qk_w4_units(q, s->k);
    const uint8_t *in = src;
    uint16_t *scales = band->scales;
    (void)head;
    unpack_codes(s, band, block_bytes, FOR_16_BITS, 0, in);
    for (int64_t r = 0; r < band->n; r++)
        for (int64_t b = 0; b < blocks; b++)
            for (int unit = 0; unit < units; unit++) {
                const int64_t g = group_of(q, s->k, b, unit);
                if (g < 0) continue;
                memcpy(&scales[r * groups + g], in + numbers_at(block_bytes, r, b, unit), 2);
                if (q->zero == QE_ZERO_POINT)
                    ((uint8_t *)band->zeros)[r * groups + g] = in[zero_at(block_bytes, units, r, b, unit)];
            }
}
const qk_layout qk_cuda_w4a16 = {"cuda/w4a16",     2,         QK_W4_ROWS, w4a16_supports, head_bytes,
                                 w4a16_band_bytes, pack_head, w4a16_pack, w4a16_unpack,   NULL};
