/* algo_adaround_step.c -- plain C without a branch, compiled once for each vector width. */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include <qengine/num.h>
#include "quant/algo_adaround.h"

#define INLINE static inline __attribute__((always_inline))

/* Each polynomial is the minimax of relative error: 9e-8 here, 2e-7 in log2_of(). x in [-126, 126]. */
INLINE float exp2_of(float x) {
    float shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f);
    float p = fmaf(f, 0.0013264726f, 0.0096715130f);
    p = fmaf(f, p, 0.0555073358f);
    p = fmaf(f, p, 0.2402224243f);
    p = fmaf(f, p, 0.6931470037f);
    p = fmaf(f, p, 1.0f);
    return qe_f32_from_bits(qe_f32_bits(p) + (qe_f32_bits(shifted) << 23));
}

/* x positive and normal; exact at 1. */
INLINE float log2_of(float x) {
    uint32_t bits = qe_f32_bits(x) - 0x3f3504f3u;          /* sqrt(1/2): the mantissa lies around 1 */
    float exponent = (float)(int32_t)((bits >> 23) ^ 256u) - 256.0f;
    float f = qe_f32_from_bits((bits & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    float p = fmaf(f, -0.1458107382f, 0.2340421081f);
    p = fmaf(f, p, -0.2488770485f);
    p = fmaf(f, p, 0.2870987356f);
    p = fmaf(f, p, -0.3602396250f);
    p = fmaf(f, p, 0.4809232354f);
    p = fmaf(f, p, -0.7213528156f);
    p = fmaf(f, p, 1.4426949024f);
    return fmaf(f, p, exponent);
}

/* Selects on the bits, which order as the numbers do: of floats gcc makes branches, and no vectors. */
INLINE float magnitude_within(float x, float low, float high) {
    uint32_t bits = qe_f32_bits(x), size = bits & 0x7fffffffu, least = qe_f32_bits(low), most = qe_f32_bits(high);
    size = size < least ? least : size;
    size = size > most ? most : size;
    return qe_f32_from_bits(size | (bits & 0x80000000u));
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp2_of(-1.44269504f * magnitude_within(x, 0.0f, 30.0f))); }

INLINE float share_of(float s) {
    int32_t one = 0x3f800000, bits = (int32_t)qe_f32_bits(fmaf(QE_ADAROUND_STRETCH, s, QE_ADAROUND_SHIFT));
    bits = bits < 0 ? 0 : bits;
    return qe_f32_from_bits((uint32_t)(bits > one ? one : bits));
}

/* |u|^(beta - 1) with the sign of u. */
INLINE float power_of(float u, float beta) {
    float size = magnitude_within(qe_f32_from_bits(qe_f32_bits(u) & 0x7fffffffu), 1e-30f, 1.0f);
    float p = exp2_of(magnitude_within((beta - 1.0f) * log2_of(size), 0.0f, 100.0f));
    return qe_f32_from_bits(qe_f32_bits(p) | (qe_f32_bits(u) & 0x80000000u));
}

/* Parameters, because gcc forgets the restrict of a local once it is inlined. */
INLINE void step(int64_t count, const qe_adaround_rates *rates, bool pulls, const float *restrict gradient,
                 const float *restrict gap, const float *restrict offset, float *restrict logit, float *restrict moment,
                 float *restrict square, float *restrict delta) {
    const float unit = rates->unit, beta = rates->beta, pull = 2.0f * rates->beta * rates->pull;
    const float first = rates->first, second = rates->second;
    for (int64_t i = 0; i < count; i++) {
        float s = sigmoid(logit[i]), g = unit * gradient[i] * gap[i];
        if (pulls) g = fmaf(-pull, power_of(fmaf(2.0f, share_of(s), -1.0f), beta), g);
        g *= QE_ADAROUND_STRETCH * s * (1.0f - s);
        float m = fmaf(0.9f, moment[i], 0.1f * g), v = fmaf(0.999f, square[i], 0.001f * g * g);
        float x = logit[i] - first * m / (sqrtf(v * second) + 1e-8f);
        moment[i] = m;
        square[i] = v;
        logit[i] = x;
        delta[i] = fmaf(share_of(sigmoid(x)), gap[i], offset[i]);
    }
}

#define ARRAYS(r) (r)->gradient, (r)->gap, (r)->offset, (r)->logit, (r)->m, (r)->v, (r)->delta
#define VARIANT(name, attribute)                                                                                        \
    attribute static void name(int64_t count, const qe_adaround_rates *rates, const qe_adaround_row *row) {             \
        if (rates->pull > 0.0f) step(count, rates, true, ARRAYS(row));                                                  \
        else step(count, rates, false, ARRAYS(row));                                                                    \
    }

VARIANT(step_plain, )
#if defined(__x86_64__)
VARIANT(step_avx2, __attribute__((target("avx2,fma"))))
VARIANT(step_avx512, __attribute__((target("avx512f,avx512vl,avx512dq,fma"))))
#endif

qe_adaround_step_fn *qe_adaround_step(int32_t index) {
    qe_adaround_step_fn *have[3] = {step_plain};
    int32_t count = 1;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) have[count++] = step_avx2;
    if (count == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        have[count++] = step_avx512;
#endif
    return index < count ? have[index] : NULL;
}
