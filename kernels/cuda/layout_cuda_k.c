/* Layout cuda/k: GGUF's super-blocks of 256 columns with two levels of scales, Q4_K and Q6_K. See cuda_backend.h. */
#include "cuda_backend.h"
#include "cuda_pack.h"

#include <stdlib.h>
#include <string.h>

static bool is_q4(const qe_quant *q) {
    return q->bits == 4 && q->scale == QE_NUM_U6 && q->group_k == 32 && q->zero == QE_ZERO_REAL && q->zero_num == QE_NUM_U6;
}
static bool is_q6(const qe_quant *q) {
    return q->bits == 6 && q->scale == QE_NUM_S8 && q->group_k == 16 && q->zero == QE_ZERO_CONST && q->zero_const == 32;
}
static bool supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *q = &s->quant;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", (int)device->sm);
    if (q->code != QE_CODE_INT || (!is_q4(q) && !is_q6(q))) return qk_no(why, "codes and scales of neither Q4_K nor Q6_K");
    if (q->super != QE_NUM_F16 || q->super_k != 256 || q->super_n != 1 || q->group_n != 1 || q->scale_log2 || q->flags)
        return qk_no(why, "second-level scales are not fp16, one for 256 columns of a row");
    if (s->act.mode == QE_ACT_FLOAT) return true;
    const qe_quant *x = &s->act.quant;
    if (s->act.mode != QE_ACT_DYNAMIC || x->code != QE_CODE_INT || x->bits != 8 || x->zero != QE_ZERO_CONST ||
        (x->group_k != 256 && (x->group_k || s->k > 256)))
        return qk_no(why, "the input is not int8, symmetric and dynamic in groups of 256");
    if (s->chunk_k % 256 && s->chunk_k < s->k) return qk_no(why, "chunks of %lld columns", (long long)s->chunk_k);
    return true;
}
static size_t head_bytes(const qk_shape *s) {
    (void)s;
    return 0;
}
static void pack_head(const qk_shape *s, const qe_qtensor *any_band, void *head) {
    (void)s, (void)any_band, (void)head;
}
static size_t band_bytes(const qk_shape *s) {
    return (size_t)qk_k_band_bytes(&s->quant, s->k);
}

/* ---- where things lie -------------------------------------------------------------------------------------------- */
static uint8_t *block_of(const qk_shape *s, uint8_t *band, int64_t row, int64_t k) {
    return band + (k / QK_W4_BLOCK_K * 2 + row / 64) * qk_k_block_bytes(&s->quant);
}
static float *power_of(const qk_shape *s, uint8_t *band, int64_t row) {
    return (float *)(void *)(band + qk_k_band_bytes(&s->quant, s->k) - QK_W4_ROWS * 4) + row;
}
/* f(r) of cuda_backend.h. */
static int64_t place_of(int64_t row) {
    const int64_t r = row % 64;
    return 2 * (8 * (r / 16) + r % 8) + r % 16 / 8;
}
typedef struct place {
    int64_t low, high; /* bytes of the lower 4 and of the upper 2 bits */
    int low_shift, high_shift;
} place;
static place code_at(bool int8_input, int64_t row, int64_t k) {
    const int64_t in = k % QK_W4_BLOCK_K, p = in / 32, r64 = row % 64, r = r64 % 16 / 8;
    const int64_t c = int8_input ? in % 16 / 4 : in % 8 / 2, thread = r64 / 16 * 32 + r64 % 8 * 4 + c, word = p * 2 + r;
    const int64_t nibble = int8_input ? in % 4 * 2 + in % 32 / 16 : in % 32 / 16 * 4 + in % 2 + in % 16 / 8 * 2;
    place at;
    at.low = word / 4 * 2048 + thread * 16 + word % 4 * 4 + nibble / 2, at.low_shift = (int)(nibble % 2 * 4);
    at.high = QK_W4_CODE_BYTES + thread * 16 + p * 4 + nibble / 2, at.high_shift = (int)(nibble % 2 * 2 + r * 4);
    return at;
}
static void put_code(uint8_t *block, place at, int code) {
    block[at.low] = (uint8_t)(block[at.low] | (code & 15) << at.low_shift);
    if (code >> 4) block[at.high] = (uint8_t)(block[at.high] | code >> 4 << at.high_shift);
}
static uint8_t code_of(const qe_quant *q, const uint8_t *block, place at) {
    const int high = q->bits == 6 ? block[at.high] >> at.high_shift & 3 : 0;
    return (uint8_t)((block[at.low] >> at.low_shift & 15) | high << 4);
}
/* Q4_K: where a row's scales, the upper bits of its mins and its second levels lie. */
static uint8_t *scales4(uint8_t *block, int64_t row) {
    return block + QK_W4_CODE_BYTES + 4 * place_of(row);
}
static uint16_t *mins4(uint8_t *block, int64_t row) {
    return (uint16_t *)(void *)(block + QK_W4_CODE_BYTES + 256 + 2 * place_of(row));
}
static uint16_t *supers4(uint8_t *block, int64_t row) {
    return (uint16_t *)(void *)(block + QK_W4_CODE_BYTES + 384 + 4 * place_of(row));
}
static int8_t *scales6(uint8_t *block, int64_t row) {
    return (int8_t *)(block + QK_W4_CODE_BYTES + 2048 + 8 * place_of(row));
}
static uint16_t *super6(uint8_t *block, int64_t row) {
    return (uint16_t *)(void *)(block + QK_W4_CODE_BYTES + 2048 + 512 + 2 * place_of(row));
}

/* A row's numbers between the canonical arrays and the blocks. */
static void copy_numbers(const qk_shape *s, qe_qtensor *t, uint8_t *band, int64_t row, bool to_band) {
    const qe_quant *q = &s->quant;
    const int64_t groups = (s->k + q->group_k - 1) / q->group_k, supers = (s->k + 255) / 256;
    uint8_t *scales = (uint8_t *)t->scales + row * groups, *mins = (uint8_t *)t->zeros + row * groups;
    uint16_t *super = (uint16_t *)t->super + row * supers, *min_super = (uint16_t *)t->zero_super + row * supers;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t column = g * q->group_k, u = column % QK_W4_BLOCK_K / q->group_k;
        uint8_t *block = block_of(s, band, row, column);
        if (q->bits == 6) {
            int8_t *at = scales6(block, row) + u;
            if (to_band) *at = ((int8_t *)scales)[g], *super6(block, row) = super[column / 256];
            else ((int8_t *)scales)[g] = *at, super[column / 256] = *super6(block, row);
            continue;
        }
        uint8_t *at = scales4(block, row) + u;
        uint16_t *upper = mins4(block, row), *two = supers4(block, row);
        if (to_band) {
            *at = (uint8_t)((scales[g] & 63) | (mins[g] & 3) << 6);
            *upper = (uint16_t)(*upper | (mins[g] >> 2 & 15) << 4 * u);
            two[0] = super[column / 256], two[1] = min_super[column / 256];
        } else {
            scales[g] = *at & 63, mins[g] = (uint8_t)(*at >> 6 | (*upper >> 4 * u & 15) << 2);
            super[column / 256] = two[0], min_super[column / 256] = two[1];
        }
    }
}
/* The same as cuda/any's: from the largest of each factor. */
static double largest_half(const uint16_t *a, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        const double v = fabsf(qe_f16_to_f32(a[i]));
        if (isfinite(v) && v > most) most = v;
    }
    return most;
}
static int largest_byte(const uint8_t *a, int64_t count, bool with_sign) {
    int most = 0;
    for (int64_t i = 0; i < count; i++) {
        const int v = with_sign ? abs((int8_t)a[i]) : a[i];
        if (v > most) most = v;
    }
    return most;
}
static float power_of_row(const qk_shape *s, const qe_qtensor *t, int64_t row) {
    const qe_quant *q = &s->quant;
    const int64_t groups = (s->k + q->group_k - 1) / q->group_k, supers = (s->k + 255) / 256;
    const uint8_t *scales = (const uint8_t *)t->scales + row * groups, *mins = (const uint8_t *)t->zeros + row * groups;
    double most = largest_byte(scales, groups, q->bits == 6) * largest_half((const uint16_t *)t->super + row * supers, supers);
    if (q->bits == 6)
        most *= 63 + 32;
    else
        most = most * 15 + largest_byte(mins, groups, false) * largest_half((const uint16_t *)t->zero_super + row * supers, supers);
    int e = 0;
    if (most > 0) frexp(most, &e); /* most < 2^e */
    return ldexpf(1, 15 - e);
}
static void pack(const qk_shape *s, const qe_qtensor *band, void *dst) {
    const uint8_t *codes = band->codes;
    qe_qtensor t = *band;
    memset(dst, 0, band_bytes(s));
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t k = 0; k < s->k; k++)
            put_code(block_of(s, dst, r, k), code_at(s->act.mode != QE_ACT_FLOAT, r, k), codes[r * s->k + k]);
        copy_numbers(s, &t, dst, r, true);
        *power_of(s, dst, r) = power_of_row(s, band, r);
    }
}
static void unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *band) {
    uint8_t *in = (uint8_t *)(uintptr_t)src, *codes = band->codes;
    (void)head;
    for (int64_t r = 0; r < band->n; r++) {
        for (int64_t k = 0; k < s->k; k++)
            codes[r * s->k + k] = code_of(&s->quant, block_of(s, in, r, k), code_at(s->act.mode != QE_ACT_FLOAT, r, k));
        copy_numbers(s, band, in, r, false);
    }
}
const qk_layout qk_cuda_k = {"cuda/k",   1,         QK_W4_ROWS, supports, head_bytes,
                             band_bytes, pack_head, pack,       unpack,   NULL};
