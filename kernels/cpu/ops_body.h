/* One token's row of prepare() and one head of rope_append(), compiled once per ISA as plain loops: elementwise steps and the fixed 512 lanes of
 * quantization.md 7.5, so any vector width returns the same bits. */
#include "panel.h"
#include "simd.h"
#include <math.h>
#include <string.h>
#include <qengine/num.h>

static float fold_lanes(float lanes[512]) {
    for (int half = 256; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

static float rms_factor(const float *v, int64_t n, float eps) {
    float lanes[512];
    memset(lanes, 0, sizeof lanes);
    for (int64_t from = 0; from < n; from += 512) {
        int count = n - from < 512 ? (int)(n - from) : 512;
        for (int i = 0; i < count; i++) lanes[i] = fmaf(v[from + i], v[from + i], lanes[i]);
    }
    return qe_rsqrt(fold_lanes(lanes) / (float)n + eps);
}

static void scale_row(float *v, const float *weight, float factor, int64_t n) {
    for (int64_t i = 0; i < n; i++) v[i] = v[i] * factor * weight[i];
}

static void gate_row(const qk_prepare *a, int64_t token, float *v, int64_t k) {
    const float *gate = (const float *)a->x + token * a->ldx,
                *up = a->up ? (const float *)a->up + token * a->ldx : gate + 1;
    int64_t step = a->up ? 1 : 2;
    switch (a->act) {
    case QK_ACT_SILU:
        for (int64_t i = 0; i < k; i++) v[i] = qe_silu(gate[i * step]) * up[i * step];
        break;
    case QK_ACT_GELU_TANH:
        for (int64_t i = 0; i < k; i++) v[i] = qe_gelu_tanh(gate[i * step]) * up[i * step];
        break;
    case QK_ACT_GELU:
        for (int64_t i = 0; i < k; i++) v[i] = qe_gelu(gate[i * step]) * up[i * step];
        break;
    default:
        for (int64_t i = 0; i < k; i++)
            v[i] = (gate[i * step] > 0.0f ? gate[i * step] * gate[i * step] : 0.0f) * up[i * step];
    }
}

static void quantize_group(const float *v, int64_t n, int8_t *q, float *scale) {
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = qe_f32_bits(v[i]) & 0x7fffffffu;
        top = u > top ? u : top;
    }
    qe_act_range r = qe_act_range_symmetric(top);
    *scale = r.scale;
    if (r.inverse == 0.0f) {
        memset(q, 0, (size_t)n);
        return;
    }
    for (int64_t i = 0; i < n; i++) q[i] = (int8_t)qe_rne(qe_clamp(v[i] * r.inverse, -127.0f, 127.0f));
}

/* Signs: codes, their bits, and the mean of |v|. */
static void quantize_signs(const float *v, int64_t k, int64_t token, int8_t *q, qk_x *out) {
    uint32_t *bits = out->bits + token * qk_bit_words(k);
    int32_t ones = 0;
    float lanes[512];
    memset(lanes, 0, sizeof lanes);
    for (int64_t from = 0; from < k; from += 512) {
        int count = k - from < 512 ? (int)(k - from) : 512;
        for (int i = 0; i < count; i++) lanes[i] = qe_act_lane_sign(lanes[i], v[from + i]);
    }
    out->scales[token] = qe_act_range_sign(fold_lanes(lanes), k).scale;
    for (int64_t i = 0; i < k; i++) q[i] = qe_act_code_sign(v[i]);
    for (int64_t w = 0; w < qk_bit_words(k); w++) {
        uint32_t word = 0;
        if (32 * w + 32 <= k) {
            for (int i = 0; i < 32; i += V_LANES) word |= vf_negative(vf_load(v + 32 * w + i)) << i;
            word = ~word;
        } else
            for (int i = 0; 32 * w + i < k; i++) word |= (uint32_t)(q[32 * w + i] > 0) << i;
        bits[w] = word;
        ones += __builtin_popcount(word);
    }
    out->ones[token] = ones;
}

/* v holds k floats of scratch. The caller has checked that this is float input without order, column scale or
 * rotation, and symmetric int8 or sign output. */
static void prepare_row(const qk_prepare *a, int64_t token, float *v) {
    qk_x *out = a->out;
    int64_t k = a->next->shape.k;
    if (a->act != QK_ACT_NONE)
        gate_row(a, token, v, k);
    else
        memcpy(v, (const float *)a->x + token * a->ldx, (size_t)k * sizeof *v);
    if (a->post_norm) scale_row(v, a->post_norm, rms_factor(v, k, a->eps), k);
    if (a->residual) {
        float *r = a->residual + token * a->ldr;
        for (int64_t i = 0; i < k; i++) v[i] = r[i] = r[i] + v[i];
    }
    if (a->norm == QK_NORM_RMS) scale_row(v, a->norm_weight, rms_factor(v, k, a->eps), k);
    int8_t *q = (int8_t *)out->data + token * out->ld;
    int64_t group = out->quant.group_k ? out->quant.group_k : k, groups = (k + group - 1) / group;
    if (a->next->shape.act.quant.code == QE_CODE_SIGN) quantize_signs(v, k, token, q, out), groups = 0;
    for (int64_t g = 0; g < groups; g++) {
        int64_t from = g * group, n = k - from < group ? k - from : group;
        quantize_group(v + from, n, q + from, out->scales + token * groups + g);
    }
    memset(q + k, 0, (size_t)(out->ld - k));
    int64_t sums = (k + out->sum_k - 1) / out->sum_k;
    for (int64_t g = 0; g < sums; g++) {
        int32_t sum = 0;
        for (int64_t i = g * out->sum_k; i < (g + 1) * out->sum_k && i < k; i++) sum += q[i];
        out->sums[token * sums + g] = sum;
    }
}

/* ---- rope and append --------------------------------------------------------------------------------------------- */
static void store_halves(const float *v, int32_t n, uint16_t *out) {
    int32_t i = 0;
#if defined(V_AVX2) || defined(V_AVX512)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(v + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) out[i] = qe_f32_to_f16(v[i]);
}

static void rotate(const qk_rope *r, const float *restrict cs, float *restrict v) {
    int32_t half = r->rotary_dim / 2, step = r->interleaved ? 2 : 1;
    float *restrict w = v + (r->interleaved ? 1 : half);
    for (int32_t i = 0; i < half; i++) {
        float c = cs[2 * i], s = cs[2 * i + 1], a = v[i * step], b = w[i * step];
        v[i * step] = fmaf(a, c, -(b * s));
        w[i * step] = fmaf(b, c, a * s);
    }
}

static void rope_head(const qk_rope *r, const float *norm, const float *cs, const float *from, int32_t dim, float *out,
                      uint16_t *halves) {
    float v[PANEL_HEAD_DIM];
    memcpy(v, from, (size_t)dim * sizeof *v);
    if (norm) scale_row(v, norm, rms_factor(v, dim, r->eps), dim);
    if (cs) rotate(r, cs, v);
    if (out) memcpy(out, v, (size_t)dim * sizeof *v);
    else store_halves(v, dim, halves);
}
