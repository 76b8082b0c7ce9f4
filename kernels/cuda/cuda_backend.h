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

extern const qk_layout qk_cuda_w8a8, qk_cuda_w4a16, qk_cuda_any;
extern const qk_row qk_cuda_w8a8_sm90_row, qk_cuda_w8a8_sm80_row, qk_cuda_w4a16_sm80_row, qk_cuda_w4a16_simt_row,
    qk_cuda_any_row;
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

/* ---- layout cuda/w4a16: bands of 64 rows; k padded to blocks of 64 columns.
 * band: [blocks][4 sub-bands of 16 rows][32 lanes][16 bytes] codes, then scales fp16 [groups][64], zeros u8
 * [groups][64]. Lane (g = lane / 4, c = lane % 4) holds word 2 * p + r for steps s = 2p, 2p + 1 of 16 columns and row
 * 8r + g: halfword h, bits 0-3: (s, column 2c + h), 4-7: (s, 8 + 2c + h), 8-15 the same of s + 1: the A fragments of
 * mma.m16n8k16 without a shuffle. */
enum { QK_W4_ROWS = 64, QK_W4_BLOCK_K = 64, QK_W4_BLOCK_BYTES = QK_W4_ROWS * QK_W4_BLOCK_K / 2 };
static inline int64_t qk_w4_blocks(int64_t k) {
    return (k + QK_W4_BLOCK_K - 1) / QK_W4_BLOCK_K;
}
static inline int64_t qk_w4_group(const qe_quant *q, int64_t k) {
    return q->group_k ? q->group_k : k;
}
static inline int64_t qk_w4_groups(const qe_quant *q, int64_t k) {
    return (k + qk_w4_group(q, k) - 1) / qk_w4_group(q, k);
}
static inline int64_t qk_w4_band_bytes(const qe_quant *q, int64_t k) {
    return qk_w4_blocks(k) * QK_W4_BLOCK_BYTES + (qk_w4_groups(q, k) * QK_W4_ROWS * 3 + 15) / 16 * 16;
}

/* ---- layout cuda/any: bands of 16 rows, each row a record of the canonical arrays of that row alone, at byte offsets
 * fixed by the shape. head: the values of the codes where they come from one table. */
enum { QK_ANY_ROWS = 16 };
typedef struct qk_any_record {
    int32_t code_bits;   /* stored: 1, 2, 4, 8, 16, 32 */
    int32_t lut_in_head; /* a table of 2^bits floats: in the head, or in the record */
    int64_t scales, super, zeros, zero_super, lut, bytes;
    int64_t groups, supers;
} qk_any_record;
void qk_any_record_of(const qe_quant *q, int64_t k, qk_any_record *out);

#ifdef __cplusplus
}
#endif
#endif
