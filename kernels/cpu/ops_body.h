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

/* `step` is known when compiled: neighbors, or pairs of gate and up that are shuffled apart. */
INLINE void gate_steps(const int step, int32_t act, const float *gate, const float *up, float *v, int64_t k) {
    switch (act) {
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

static void gate_row(const qk_prepare *a, int64_t token, float *v, int64_t k) {
    const float *gate = (const float *)a->x + token * a->ldx;
    if (a->up) gate_steps(1, a->act, gate, (const float *)a->up + token * a->ldx, v, k);
    else gate_steps(2, a->act, gate, gate + 1, v, k);
}

/* ---- what a weight asks of its input: column order, scale, rotation ------------------------------------------------- */
/* Butterflies of strides 1 to 8 within 16 values: lane i takes v[i ^ stride] + or - its own. */
static void rotate_lanes(float *v, int32_t n) {
    for (int stride = 1; stride < 16 && stride < n; stride *= 2)
        for (int32_t at = 0; at < n; at += 16) {
            float from[16];
            memcpy(from, v + at, sizeof from);
            for (int i = 0; i < 16; i++) v[at + i] = i & stride ? from[i ^ stride] - from[i] : from[i] + from[i ^ stride];
        }
}

/* Normalized Walsh-Hadamard of one block, strides ascending. */
static void hadamard(float *v, int32_t n) {
    int32_t stride = 1;
    if (n >= 16) rotate_lanes(v, n), stride = 16;
    for (; stride < n; stride *= 2)
        for (int32_t at = 0; at < n; at += 2 * stride) {
            float *restrict x = v + at, *restrict y = x + stride;
            for (int32_t i = 0; i < stride; i++) {
                float low = x[i], high = y[i];
                x[i] = low + high;
                y[i] = low - high;
            }
        }
    float factor = qe_rsqrt((float)n);
    for (int32_t i = 0; i < n; i++) v[i] *= factor;
}

/* The row as the weight takes it: v, or with a column order the k floats behind it. */
static float *arrange(const qk_weight *w, float *v, int64_t k) {
    float *to = v;
    if (w->order) {
        to = v + k;
        for (int64_t i = 0; i < k; i++) to[i] = w->col_scale ? v[w->order[i]] * w->col_scale[w->order[i]] : v[w->order[i]];
    } else if (w->col_scale) {
        for (int64_t i = 0; i < k; i++) v[i] *= w->col_scale[i];
    }
    for (int64_t at = 0; w->hadamard && at < k; at += w->hadamard) hadamard(to + at, w->hadamard);
    return to;
}

/* ---- quantize ---------------------------------------------------------------------------------------------------------- */
static qe_act_range range_of(const float *v, int64_t n, bool symmetric) {
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = qe_f32_bits(v[i]) & 0x7fffffffu;
        top = u > top ? u : top;
    }
    if (symmetric) return qe_act_range_symmetric(top);
    enum { LANES = 32 };
    float low[LANES] = {0}, high[LANES] = {0};
    for (int64_t from = 0; from < n; from += LANES) {
        int count = n - from < LANES ? (int)(n - from) : LANES;
        for (int i = 0; i < count; i++) {
            low[i] = v[from + i] < low[i] ? v[from + i] : low[i];
            high[i] = v[from + i] > high[i] ? v[from + i] : high[i];
        }
    }
    for (int i = 1; i < LANES; i++) {
        low[0] = low[i] < low[0] ? low[i] : low[0];
        high[0] = high[i] > high[0] ? high[i] : high[0];
    }
    return qe_act_range_asymmetric(low[0], high[0], top < 0x7f800000u);
}

static void encode(const float *v, int64_t n, qe_act_range r, bool symmetric, int8_t *q) {
    if (r.inverse == 0.0f) {
        memset(q, 0, (size_t)n);
    } else if (symmetric) {
        for (int64_t i = 0; i < n; i++) q[i] = (int8_t)qe_rne(qe_clamp(v[i] * r.inverse, -127.0f, 127.0f));
    } else {
        for (int64_t i = 0; i < n; i++) {
            int32_t code = qe_rne(qe_clamp(v[i] * r.inverse, -1024.0f, 1024.0f)) + r.zero;
            q[i] = (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
        }
    }
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

/* Codes of a row; returns the one that stands for zero. */
static int32_t quantize_row(const qe_act *act, const float *v, int64_t k, int64_t token, int8_t *q, qk_x *out) {
    bool symmetric = act->quant.zero == QE_ZERO_CONST;
    if (act->mode == QE_ACT_STATIC) {
        qe_act_range fixed = {act->scale, qe_div(1.0f, act->scale), act->zero - 128};
        encode(v, k, fixed, symmetric, q);
        return symmetric ? 0 : fixed.zero;
    }
    if (act->quant.code == QE_CODE_SIGN) {
        quantize_signs(v, k, token, q, out);
        return 0;
    }
    int64_t group = act->quant.group_k ? act->quant.group_k : k, groups = (k + group - 1) / group;
    int32_t zero = 0;
    for (int64_t g = 0; g < groups; g++) {
        int64_t from = g * group, n = k - from < group ? k - from : group;
        qe_act_range r = range_of(v + from, n, symmetric);
        encode(v + from, n, r, symmetric, q + from);
        out->scales[token * groups + g] = r.scale;
        if (out->zeros) out->zeros[token * groups + g] = r.zero;
        zero = r.zero;
    }
    return zero;
}

/* What lies behind the codes of a row, and their sums. */
static void finish_codes(int8_t *q, int32_t zero, int64_t token, qk_x *out) {
    int64_t sums = (out->k + out->sum_k - 1) / out->sum_k;
    memset(q + out->k, zero, (size_t)(out->ld - out->k));
    for (int64_t g = 0; g < sums; g++) {
        int32_t sum = 0;
        for (int64_t i = g * out->sum_k; i < (g + 1) * out->sum_k && i < out->k; i++) sum += q[i];
        out->sums[token * sums + g] = sum;
    }
}

/* ---- one token ----------------------------------------------------------------------------------------------------------- */
/* Row `token` of x as floats. Halves without branches, every bit as qe_f16_to_f32() has it: the exponent is moved by a
 * product, which is exact and takes subnormals along; infinities and NaNs are what it would miss. */
static void load_row(const qk_prepare *a, int64_t token, int64_t k, float *v) {
    const uint16_t *from = (const uint16_t *)a->x + token * a->ldx;
    if (a->x_type == QE_CODE_F32) {
        memcpy(v, (const float *)a->x + token * a->ldx, (size_t)k * sizeof *v);
    } else if (a->x_type == QE_CODE_BF16) {
        for (int64_t i = 0; i < k; i++) v[i] = qe_bf16_to_f32(from[i]);
    } else {
        for (int64_t i = 0; i < k; i++) {
            uint32_t half = (uint32_t)(from[i] & 0x7fff) << 13, sign = (uint32_t)(from[i] & 0x8000) << 16;
            uint32_t bits = qe_f32_bits(qe_f32_from_bits(half) * 0x1p112f);
            v[i] = qe_f32_from_bits((half >= 0x0f800000u ? half | 0x7f800000u : bits) | sign);
        }
    }
}

static void store_halves(const float *v, int64_t n, uint16_t *out) {
    int64_t i = 0;
#if defined(V_AVX2) || defined(V_AVX512)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(v + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) out[i] = qe_f32_to_f16(v[i]);
}

static void store_row(const float *v, int64_t k, int64_t token, qk_x *out) {
    size_t bytes = out->quant.code == QE_CODE_F32 ? 4 : 2;
    char *row = (char *)out->data + (size_t)(token * out->ld) * bytes;
    uint16_t *halves = (uint16_t *)(void *)row;
    if (out->quant.code == QE_CODE_F32) memcpy(row, v, (size_t)k * bytes);
    else if (out->quant.code == QE_CODE_F16) store_halves(v, k, halves);
    else
        for (int64_t i = 0; i < k; i++) halves[i] = qe_f32_to_bf16(v[i]);
    memset(row + (size_t)k * bytes, 0, (size_t)(out->ld - k) * bytes);
}

/* x as the weight multiplies it, but for the rounding to its type. */
static const float *values(const qk_prepare *a, int64_t token, float *v) {
    int64_t k = a->next->shape.k;
    if (a->act != QK_ACT_NONE) gate_row(a, token, v, k);
    else load_row(a, token, k, v);
    if (a->post_norm) scale_row(v, a->post_norm, rms_factor(v, k, a->eps), k);
    if (a->residual) {
        float *r = a->residual + token * a->ldr;
        for (int64_t i = 0; i < k; i++) v[i] = r[i] = r[i] + v[i];
    }
    if (a->norm == QK_NORM_RMS) scale_row(v, a->norm_weight, rms_factor(v, k, a->eps), k);
    return arrange(a->next, v, k);
}

/* v holds k floats of scratch, 2 k where the weight has a column order. The caller has checked that all that is read is there, and of the types known here. */
static void prepare_row(const qk_prepare *a, int64_t token, float *v) {
    const qe_act *act = &a->next->shape.act;
    qk_x *out = a->out;
    int8_t *q = (int8_t *)out->data + token * out->ld;
    int32_t zero = act->quant.zero == QE_ZERO_CONST ? 0 : act->zero - 128;
    if (act->mode == QE_ACT_FLOAT) {
        store_row(values(a, token, v), out->k, token, out);
        return;
    }
    if (a->x_type == QE_CODE_INT) memcpy(q, (const int8_t *)a->x + token * a->ldx, (size_t)out->k);
    else zero = quantize_row(act, values(a, token, v), out->k, token, q, out);
    finish_codes(q, zero, token, out);
}

/* ---- rope and append --------------------------------------------------------------------------------------------- */
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
