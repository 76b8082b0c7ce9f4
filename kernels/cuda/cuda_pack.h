/* Numbers in packers: scales of the float types, exactly as fp32 and back. */
#ifndef QK_CUDA_PACK_H
#define QK_CUDA_PACK_H
#include <math.h>
#include <qengine/num.h>
#include <qk.h>

static inline bool qk_pack_is_float(int num) {
    return num == QE_NUM_ONE || num == QE_NUM_F32 || num == QE_NUM_F16 || num == QE_NUM_BF16;
}
/* scales[i] times 2^scale_log2 as fp32 */
static inline float qk_pack_scale(const qe_quant *q, const void *scales, int64_t i) {
    float v = 1;
    if (q->scale == QE_NUM_F32) v = ((const float *)scales)[i];
    if (q->scale == QE_NUM_F16) v = qe_f16_to_f32(((const uint16_t *)scales)[i]);
    if (q->scale == QE_NUM_BF16) v = qe_bf16_to_f32(((const uint16_t *)scales)[i]);
    return v * ldexpf(1, q->scale_log2);
}
static inline void qk_unpack_scale(const qe_quant *q, float v, void *scales, int64_t i) {
    v *= ldexpf(1, -q->scale_log2);
    if (q->scale == QE_NUM_F32) ((float *)scales)[i] = v;
    if (q->scale == QE_NUM_F16) ((uint16_t *)scales)[i] = qe_f32_to_f16(v);
    if (q->scale == QE_NUM_BF16) ((uint16_t *)scales)[i] = qe_f32_to_bf16(v);
}
#endif
