/* ref_internal.h -- what the files of the reference share: typed loads and stores, the split of work, its layout. */
#ifndef QK_REF_INTERNAL_H
#define QK_REF_INTERNAL_H
#include <qengine/num.h>
#include "qk.h"

enum { REF_BAND_ROWS = 16 };
extern const qk_layout qk_ref_canonical;
extern const qk_row qk_ref_row;

/* Row `row` of a packed band as a one-row canonical tensor (group_n, super_n, lut_n are 1); pointers into the band. */
void qk_ref_row_view(const qk_shape *shape, const void *band, int32_t row, qe_qtensor *out);

static inline float ref_load(int32_t type, const void *p, int64_t i) {
    if (type == QE_CODE_F16) return qe_f16_to_f32(((const uint16_t *)p)[i]);
    if (type == QE_CODE_BF16) return qe_bf16_to_f32(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}

static inline void ref_store(int32_t type, void *p, int64_t i, float v) {
    if (type == QE_CODE_F16) ((uint16_t *)p)[i] = qe_f32_to_f16(v);
    else if (type == QE_CODE_BF16) ((uint16_t *)p)[i] = qe_f32_to_bf16(v);
    else ((float *)p)[i] = v;
}

static inline bool ref_float_type(int32_t type) {
    return type == QE_CODE_F32 || type == QE_CODE_F16 || type == QE_CODE_BF16;
}

static inline void ref_parallel(const qk_queue *q, qk_task *task, void *arg, int32_t count) {
    if (q->parallel) {
        q->parallel(q->pool, task, arg, count);
        return;
    }
    for (int32_t i = 0; i < count; i++) task(arg, i, count);
}

static inline float ref_act(int32_t act, float v) {
    switch (act) {
    case QK_ACT_SILU: return qe_silu(v);
    case QK_ACT_GELU: return qe_gelu(v);
    case QK_ACT_GELU_TANH: return qe_gelu_tanh(v);
    case QK_ACT_RELU2: return v > 0.0f ? qe_mul(v, v) : 0.0f;
    default: return v;
    }
}

/* 1 / sqrt(sum / n + eps), sum over 512 lanes (quantization.md 7.5). */
static inline void ref_lanes_add(float lanes[512], int64_t column, float v) {
    lanes[column & 511] = qe_fma(v, v, lanes[column & 511]);
}
static inline float ref_fold(float lanes[512]) {
    for (int half = 256; half; half /= 2) {
        for (int i = 0; i < half; i++) lanes[i] = qe_add(lanes[i], lanes[i + half]);
    }
    return lanes[0];
}
static inline float ref_rms_factor(float lanes[512], int64_t n, float eps) {
    return qe_rsqrt(qe_add(qe_div(ref_fold(lanes), (float)n), eps));
}
#endif
