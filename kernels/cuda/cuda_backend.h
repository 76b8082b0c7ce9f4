/* What the files of the cuda backend share. */
#ifndef QK_CUDA_BACKEND_H
#define QK_CUDA_BACKEND_H
#include "cuda_api.h"
#ifdef __cplusplus
extern "C" {
#endif

int32_t qk_cuda_count(void);
qe_status qk_cuda_describe(int32_t ordinal, qk_device *out, qe_error *err);
qe_status qk_cuda_alloc(const qk_device *device, size_t bytes, void **out, qe_error *err);
void qk_cuda_release(const qk_device *device, void *block);
qe_status qk_cuda_copy(const qk_queue *queue, void *dst, const void *src, size_t bytes, qe_error *err);
qe_status qk_cuda_wait(const qk_queue *queue, qe_error *err);

extern const qk_layout qk_cuda_w1a1, qk_cuda_w2a8, qk_cuda_w8a8, qk_cuda_s4a8, qk_cuda_w4a8, qk_cuda_w4a16, qk_cuda_wxa16, qk_cuda_k,
    qk_cuda_any;
extern const qk_row qk_cuda_w8a8_sm90_row, qk_cuda_w8a8_sm80_row, qk_cuda_s4a8_sm90_row, qk_cuda_w4a8_sm90_row, qk_cuda_w4a8_sm80_row,
    qk_cuda_w4a16_sm90_row, qk_cuda_w4a16_sm80_row, qk_cuda_w4a16_simt_row, qk_cuda_wxa16_sm90_row,
    qk_cuda_wxa16_sm80_row, qk_cuda_wxa16_simt_row, qk_cuda_ka16_sm90_row, qk_cuda_ka16_sm80_row,
    qk_cuda_ka16_simt_row, qk_cuda_ka8_sm80_row, qk_cuda_w2a8_sm90_row, qk_cuda_w2a8_sm80_row,
    qk_cuda_w1a1_sm80_row, qk_cuda_w1a1_popc_row, qk_cuda_dense_sm90_row, qk_cuda_dense_sm80_row, qk_cuda_any_row;
size_t qk_cuda_fake_quant_bytes(const qk_fake_quant *f);
qe_status qk_cuda_fake_quant(const qk_fake_quant *f, const qk_queue *queue, qe_error *err);
qe_status qk_cuda_prepare(const qk_prepare *a, const qk_queue *queue, qe_error *err);

/* ---- layout cuda/w8a8: bands of 128 rows; k padded to whole tiles of 128 columns.
 * band: [tiles][128 rows][128 bytes] int8 q = c - zero_const, 16-byte chunk j of row r at chunk j ^ (r & 7): the
 * 128-byte swizzle of TMA and wgmma, free of bank conflicts for ldmatrix; float scale[128]; int32 rowsum[128]. */
enum { QK_W8_ROWS = 128, QK_W8_TILE_K = 128, QK_W8_TILE_BYTES = QK_W8_ROWS * QK_W8_TILE_K };
static inline int64_t qk_w8_tiles(int64_t k) {
    return (k + QK_W8_TILE_K - 1) / QK_W8_TILE_K;
}
static inline int64_t qk_w8_band_bytes(int64_t k) {
    return qk_w8_tiles(k) * QK_W8_TILE_BYTES + QK_W8_ROWS * 8;
}

/* ---- layout cuda/w1a1: bands of 128 rows; k padded to whole tiles of 1024 columns, with zeros.
 * band: [tiles][128 rows][128 bytes] bits, column c of a row in bit c % 8 of byte c / 8, 16-byte chunks swizzled as in
 * cuda/w8a8; float scale[128]; int32 sum of the row's signs[128]. */
enum { QK_W1_TILE_K = 8 * QK_W8_TILE_K };
static inline int64_t qk_w1_tiles(int64_t k) {
    return (k + QK_W1_TILE_K - 1) / QK_W1_TILE_K;
}
static inline int64_t qk_w1_band_bytes(int64_t k) {
    return qk_w1_tiles(k) * QK_W8_TILE_BYTES + QK_W8_ROWS * 8;
}

/* ---- layouts cuda/w4a8 and cuda/w4a16: bands of 128 rows; k padded to blocks of 128 columns.
 * band: [blocks][2 halves of 64 rows][block]; w4a8 then has float scale[128], int32 sum of the row's products[128].
 * block: 4096 bytes of codes in the order of A fragments, two channels' numbers per 32-bit load after them:
 *   thread t (w = t / 32, g = t % 32 / 4, c = t % 4) holds rows 16w + g (r = 0) and 16w + g + 8 (r = 1); its word
 *   j = 2 * step + r lies at j / 4 * 2048 + 16 * t + 4 * (j % 4)
 *   w4a8:  step is 32 columns; byte i: column 4c + i in the low, 16 + 4c + i in the high nibble
 *   w4a16: step is two times 16 columns; halfword h, bits 0-3: column 2c + h, 4-7: 8 + 2c + h; 8-15 the next 16
 *   units: 1 for groups of a multiple of 128 columns or the row, else 4: one per 32 columns, repeated where groups are
 *   wider. [units][64 rows] of 2 bytes at 32 * (row / 16) + 4 * (row % 8) + 2 * (row % 16 / 8):
 *   w4a8: integer scale, zero; w4a16: fp16 scale, and if zeros differ [units][64] of 1 byte at half that offset.
 *   w4a8 of one scale a row whose codes less the one zero are in -8..7 has no units: its nibbles are those differences. */
enum { QK_W4_ROWS = 128, QK_W4_BLOCK_K = 128, QK_W4_CODE_BYTES = 4096 };
static inline int64_t qk_w4_blocks(int64_t k) {
    return (k + QK_W4_BLOCK_K - 1) / QK_W4_BLOCK_K;
}
static inline int qk_w4_units(const qe_quant *q, int64_t k) {
    return q->group_k == 0 || q->group_k >= k || q->group_k % QK_W4_BLOCK_K == 0 ? 1 : 4;
}
/* 0: nibbles with a sign, kept as 16 times their value. A sum of k products of 128 x 128 then is in int32. */
static inline int qk_w4a8_units(const qe_quant *q, int64_t k) {
    const bool whole = q->group_k == 0 || q->group_k >= k, one = q->zero == QE_ZERO_CONST && q->super == QE_NUM_ONE;
    const bool fits = q->zero_const >= 0 && q->zero_const <= 8 && (1 << q->bits) - 1 - q->zero_const <= 7;
    return whole && one && fits && k < 1 << 17 ? 0 : qk_w4_units(q, k);
}
static inline int64_t qk_w4a8_block_bytes(const qe_quant *q, int64_t k) {
    return QK_W4_CODE_BYTES + qk_w4a8_units(q, k) * 128;
}
static inline int64_t qk_w4a16_block_bytes(const qe_quant *q, int64_t k) {
    return QK_W4_CODE_BYTES + qk_w4_units(q, k) * (q->zero == QE_ZERO_POINT ? 192 : 128);
}
static inline int64_t qk_w4a8_band_bytes(const qe_quant *q, int64_t k) {
    return qk_w4_blocks(k) * 2 * qk_w4a8_block_bytes(q, k) + QK_W4_ROWS * 8;
}
static inline int64_t qk_w4a16_band_bytes(const qe_quant *q, int64_t k) {
    return qk_w4_blocks(k) * 2 * qk_w4a16_block_bytes(q, k);
}

/* ---- layout cuda/s4a8: weights that have no units in cuda/w4a8, for ldmatrix.s4. Bands as there; in a block column
 * 32s + 16h + c of row 16w + 8r + g lies at 1024w + 256s + 64 * (2h + r) + 8g + c / 2, even columns in low nibbles. */
enum { QK_S4_TOOLKIT = 1304 }; /* the first nvcc that knows it */

/* ---- layout cuda/w2a8: signs and codes of 1 or 2 bits; bands of 128 rows, k padded to blocks of 128 columns.
 * band: [blocks][2 halves of 64 rows][block], float scale[128], int32 sum of the row's values[128]
 * block: codes in the order of A fragments, thread t and its rows r as in cuda/w4a8; column 64h + 32s + 16j + 4c + i:
 *   2 bits: word 2h + r at 16 * t + 4 * (2h + r), bit 16s + 4i + 2j;  1 bit: word r at 512 * r + 4 * t, bit 16h + 4i + 2s + j */
enum { QK_W2_BIT_BYTES = 1024 };
static inline int64_t qk_w2a8_band_bytes(const qe_quant *q, int64_t k) {
    return qk_w4_blocks(k) * 2 * QK_W2_BIT_BYTES * q->bits + QK_W4_ROWS * 8;
}

/* ---- layout cuda/wxa16: bands of 128 rows, k padded to blocks of 128 columns; head: 16 floats, the values of 4-bit
 * codes. band: [blocks][2 halves of 64 rows][block], then float S[128] where scales have two levels.
 * block: codes of 8 bits: byte (i, j) of step s of 16 columns, row 8r + g, at s / 2 * 2048 + 16 * t + 4 * (s % 2 * 2 + r) +
 * i + 2j: column 2c + i + 8j; of 4 bits: words as in cuda/w4a16, halfword s % 2 of one for each step, nibble i + 2j for column
 * 2c + i + 8j; then [units][64] fp32 scales, both levels multiplied, at 64 * (row / 16) + 8 * (row % 8) + 4 * (row % 16 / 8),
 * and if zeros differ [units][64] bytes at a quarter of that. units: 1, 2 (of 4-bit codes), 4 or 8, for groups of 128, 64, 32
 * or 16 columns or multiples of them. */
static inline int qk_wx_code_bits(const qe_quant *q) {
    return q->code == QE_CODE_INT && (q->bits > 4 || q->zero == QE_ZERO_POINT) ? 8 : 4;
}
static inline int64_t qk_wx_code_bytes(const qe_quant *q) {
    return QK_W4_CODE_BYTES / 4 * qk_wx_code_bits(q);
}
static inline int64_t qk_wx_units(const qe_quant *q, int64_t k) {
    if (qk_w4_units(q, k) == 1) return 1;
    return q->group_k % 32 ? 8 : q->group_k % 64 || qk_wx_code_bits(q) == 8 ? 4 : 2;
}
static inline int64_t qk_wx_block_bytes(const qe_quant *q, int64_t k) {
    return qk_wx_code_bytes(q) + qk_wx_units(q, k) * (q->zero == QE_ZERO_POINT ? 320 : 256);
}
static inline int64_t qk_wx_band_bytes(const qe_quant *q, int64_t k) {
    return qk_w4_blocks(k) * 2 * qk_wx_block_bytes(q, k) + (q->super == QE_NUM_ONE ? 0 : QK_W4_ROWS * 4);
}

/* ---- layout cuda/k: GGUF's super-blocks of 256 columns; bands of 128 rows, k padded to blocks of 128 columns.
 * band: [blocks][2 halves of 64 rows][block], float power[128]: a power of two that brings the row's weights to at most 2^15,
 * as in cuda/any.
 * block: low 4 bits of the codes, words as in cuda/w4a8 for int8 input, else as in cuda/wxa16. Then, row r of 64 first at
 * f(r) = 2 * (8 * (r / 16) + r % 8) + r % 16 / 8:
 *   Q4_K [64] words at 4 f: byte u the scale of columns 32u .., above it the lower 2 bits of their min; [64] halfwords at 2 f,
 *        nibble u its upper 4 bits; [64] words at 4 f: both second levels in fp16, the min's above. 4.625 bits a weight
 *   Q6_K [128 threads][4] words: word p the upper 2 bits of the codes of columns 32p .., nibble i of the row's word of low
 *        bits at 8 * (i / 2) + 2 * (i % 2) + 4 * (r % 16 / 8); [64][8] bytes at 8 f: a scale for 16 columns; [64] halfwords
 *        at 2 f: the second level in fp16. 6.625 bits a weight
 * Second levels are stored twice, for either half of a super-block: a block is whole in itself. */
enum { QK_K4_BLOCK_BYTES = QK_W4_CODE_BYTES + 64 * (4 + 2 + 4), QK_K6_BLOCK_BYTES = QK_W4_CODE_BYTES + 2048 + 64 * (8 + 2) };
static inline int64_t qk_k_block_bytes(const qe_quant *q) {
    return q->bits == 4 ? QK_K4_BLOCK_BYTES : QK_K6_BLOCK_BYTES;
}
static inline int64_t qk_k_band_bytes(const qe_quant *q, int64_t k) {
    return qk_w4_blocks(k) * 2 * qk_k_block_bytes(q) + QK_W4_ROWS * 4;
}

/* ---- layout cuda/any: bands of 16 rows, each row a record of the canonical arrays of that row alone, at byte offsets
 * fixed by the shape. head: the values of the codes where they come from one table. power: a power of two that brings the
 * row's weights to at most 2^15, so that no weight of 16 bits overflows; 1 / power is a float too. */
enum { QK_ANY_ROWS = 16 };
typedef struct qk_any_record {
    int32_t code_bits;   /* stored: 1, 2, 4, 8, 16, 32 */
    int32_t lut_in_head; /* a table of 2^bits floats: in the head, or in the record */
    int64_t scales, super, zeros, zero_super, lut, power, bytes;
    int64_t groups, supers;
} qk_any_record;
void qk_any_record_of(const qe_quant *q, int64_t k, qk_any_record *out);

#ifdef __cplusplus
}
#endif
#endif
