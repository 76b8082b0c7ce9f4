/* The lists of the cuda backend: layouts, rows, ops. First yes wins. */
#include "cuda_backend.h"

static const qk_layout *const layouts[] = {&qk_cuda_w1a1,  &qk_cuda_w2a8,  &qk_cuda_s4a8, &qk_cuda_w4a8, &qk_cuda_w8a8,
                                            &qk_cuda_w4a16, &qk_cuda_wxa16, &qk_cuda_k,    &qk_cuda_any,  0};
static const qk_row *const rows[] = {&qk_cuda_w8a8_sm90_row,  &qk_cuda_w8a8_sm80_row,  &qk_cuda_w4a8_sm90_row,
                                     &qk_cuda_w4a8_sm80_row,  &qk_cuda_w4a16_sm90_row, &qk_cuda_w4a16_sm80_row,
                                     &qk_cuda_w4a16_simt_row, &qk_cuda_wxa16_sm90_row, &qk_cuda_wxa16_sm80_row,
                                     &qk_cuda_wxa16_simt_row, &qk_cuda_ka16_sm90_row,  &qk_cuda_ka16_sm80_row,
                                     &qk_cuda_ka16_simt_row,  &qk_cuda_ka8_sm80_row,   &qk_cuda_w2a8_sm90_row,  &qk_cuda_w2a8_sm80_row,
                                     &qk_cuda_w1a1_sm80_row,  &qk_cuda_w1a1_popc_row,  &qk_cuda_dense_sm90_row,
                                     &qk_cuda_dense_sm80_row, &qk_cuda_s4a8_sm90_row,  &qk_cuda_any_row,        0};

static size_t x_bytes(const qk_device *device, const qk_shape *next, int64_t m, int32_t float_type, qk_x *out) {
    (void)device;
    return qk_plain_x_bytes(next, m, float_type, 32, out);
}
/* CUDA serves GEMMs; the model level runs elsewhere. */
static qe_status embed(const qk_weight *table, const int32_t *ids, int64_t m, float scale, void *y, int64_t ldy,
                       int32_t y_type, const qk_queue *q, qe_error *err) {
    (void)table, (void)ids, (void)m, (void)scale, (void)y, (void)ldy, (void)y_type, (void)q;
    return qe_error_set(err, QE_E_UNSUPPORTED, "cuda: embedding lookup");
}
static qe_status rope_append(const qk_rope *r, const qk_attention *a, const qk_queue *q, qe_error *err) {
    (void)r, (void)a, (void)q;
    return qe_error_set(err, QE_E_UNSUPPORTED, "cuda: rotary embedding");
}
static size_t attention_bytes(const qk_device *device, const qk_attention *a) {
    (void)device, (void)a;
    return 0;
}
static qe_status attention(const qk_attention *a, const qk_queue *q, qe_error *err) {
    (void)a, (void)q;
    return qe_error_set(err, QE_E_UNSUPPORTED, "cuda: attention");
}

const qk_backend qk_cuda_backend = {
    "cuda",
    QK_CUDA,
    qk_cuda_count,
    qk_cuda_describe,
    qk_cuda_alloc,
    qk_cuda_release,
    qk_cuda_copy,
    qk_cuda_wait,
    layouts,
    rows,
    {x_bytes, qk_cuda_prepare, embed, rope_append, attention_bytes, attention},
    true,
    qk_cuda_fake_quant_bytes,
    qk_cuda_fake_quant,
};
