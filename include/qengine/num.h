/* qengine/num.h -- number conversions and the few functions whose bits are part of the numerical contract.
 *
 * Header only; the same text is C11, C++17 and CUDA device code. Every result is built from + - * / fmaf and sqrt in
 * the written order, each rounded once to nearest even, so scalar, SIMD and GPU code that follows the same steps
 * returns the same bits. Needs -ffp-contract=off on the host (-fmad=false on the device), round to nearest and
 * subnormals kept. No function here has a domain error, reads memory it is not given or depends on the locale. */
#ifndef QENGINE_NUM_H
#define QENGINE_NUM_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define QE_NUM_FN static __host__ __device__ inline
#else
#define QE_NUM_FN static inline
#endif

/* ---- one rounding each; on the device the compiler may not contract them ----------------------------------------- */
#if defined(__CUDA_ARCH__)
QE_NUM_FN float qe_add(float a, float b) { return __fadd_rn(a, b); }
QE_NUM_FN float qe_sub(float a, float b) { return __fsub_rn(a, b); }
QE_NUM_FN float qe_mul(float a, float b) { return __fmul_rn(a, b); }
QE_NUM_FN float qe_div(float a, float b) { return __fdiv_rn(a, b); }
QE_NUM_FN float qe_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
QE_NUM_FN float qe_sqrt(float a) { return __fsqrt_rn(a); }
#else
QE_NUM_FN float qe_add(float a, float b) { return a + b; }
QE_NUM_FN float qe_sub(float a, float b) { return a - b; }
QE_NUM_FN float qe_mul(float a, float b) { return a * b; }
QE_NUM_FN float qe_div(float a, float b) { return a / b; }
QE_NUM_FN float qe_fma(float a, float b, float c) { return fmaf(a, b, c); }
QE_NUM_FN float qe_sqrt(float a) { return sqrtf(a); }
#endif

QE_NUM_FN uint32_t qe_f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

QE_NUM_FN float qe_f32_from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* ---- 16- and 8-bit float formats --------------------------------------------------------------------------------- */
QE_NUM_FN float qe_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
    if (exponent == 31) return qe_f32_from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent) return qe_f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    /* Subnormal or zero: fraction * 2^-24 is exact in fp32. */
    float f = (float)fraction * 5.9604644775390625e-8f;
    return sign ? -f : f;
}

/* Round to nearest even; overflow gives infinity, a NaN stays a (quiet) NaN. */
QE_NUM_FN uint16_t qe_f32_to_f16(float f) {
    uint32_t u = qe_f32_bits(f), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);        /* 65520 and above */
    if (a < 0x38800000u) {                                          /* below 2^-14: a subnormal half */
        if (a < 0x33000000u) return (uint16_t)sign;                 /* below 2^-25 */
        uint32_t shift = 126 - (a >> 23), m = (a & 0x7fffffu) | 0x800000u;
        uint32_t half = 1u << (shift - 1), rest = m & ((1u << shift) - 1), q = m >> shift;
        if (rest > half || (rest == half && (q & 1))) q++;
        return (uint16_t)(sign | q);
    }
    uint32_t rounded = a + 0xfffu + (a >> 13 & 1u);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

QE_NUM_FN float qe_bf16_to_f32(uint16_t b) { return qe_f32_from_bits((uint32_t)b << 16); }

QE_NUM_FN uint16_t qe_f32_to_bf16(float f) {
    uint32_t u = qe_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* 2^(u - 127); 255 is NaN. */
QE_NUM_FN float qe_e8m0_to_f32(uint8_t u) {
    return qe_f32_from_bits(u == 255 ? 0x7fc00000u : u == 0 ? 0x00400000u : (uint32_t)u << 23);
}

/* The "fn" variant: maximum 448, no infinity, 0x7f and 0xff are NaN. */
QE_NUM_FN float qe_e4m3_to_f32(uint8_t b) {
    uint32_t sign = (uint32_t)(b & 0x80u) << 24, exponent = (b >> 3) & 15u, fraction = b & 7u;
    if ((b & 0x7fu) == 0x7fu) return qe_f32_from_bits(sign | 0x7fc00000u);
    if (exponent) return qe_f32_from_bits(sign | (exponent + 120) << 23 | fraction << 20);
    float f = (float)fraction * 0.001953125f;                       /* 2^-9 */
    return sign ? -f : f;
}

/* Round to nearest even, saturating at 448; NaN gives NaN. */
QE_NUM_FN uint8_t qe_f32_to_e4m3(float f) {
    uint32_t u = qe_f32_bits(f), sign = u >> 24 & 0x80u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (a >= 0x43e00000u) return (uint8_t)(sign | 0x7eu);           /* 448 and above */
    if (a < 0x3c800000u) {                                          /* below 2^-6: multiples of 2^-9 */
        float scaled = qe_f32_from_bits(a) * 512.0f + 8388608.0f;   /* the sum rounds to an integer */
        return (uint8_t)(sign | (qe_f32_bits(scaled) & 15u));
    }
    uint32_t rounded = a + 0x7ffffu + (a >> 20 & 1u);
    uint32_t code = (rounded - 0x3c000000u) >> 20;
    return (uint8_t)(sign | (code > 0x7eu ? 0x7eu : code));
}

QE_NUM_FN float qe_e5m2_to_f32(uint8_t b) { return qe_f16_to_f32((uint16_t)((uint16_t)b << 8)); }

/* ---- rounding ---------------------------------------------------------------------------------------------------- */
/* Round half to even of |f| <= 2^22, as an integer: adding 1.5 * 2^23 leaves the integer in the low bits. */
QE_NUM_FN int32_t qe_rne(float f) {
    return (int32_t)(qe_f32_bits(qe_add(f, 12582912.0f)) - 0x4b400000u);
}

QE_NUM_FN float qe_clamp(float f, float low, float high) { return f < low ? low : f > high ? high : f; }

/* ---- dynamic int8 activations (quantization.md 7.1) -------------------------------------------------------------- */
/* One group of one token: real = scale * (q - zero). inverse multiplies x. */
typedef struct qe_act_range {
    float   scale, inverse;  /* inverse 0: every q is 0 (silence), or the scale is NaN (a non-finite input) */
    int32_t zero;
} qe_act_range;

/* `bits` is the unsigned maximum of the inputs' bit patterns with the sign cleared. */
QE_NUM_FN qe_act_range qe_act_range_symmetric(uint32_t bits) {
    qe_act_range r = {1.0f, 0.0f, 0};
    float a = qe_f32_from_bits(bits);
    if (bits >= 0x7f800000u) {
        r.scale = qe_f32_from_bits(0x7fc00000u);
    } else if (bits >= 0x0d800000u) {                               /* 2^-100 */
        r.scale = qe_div(a, 127.0f);
        r.inverse = qe_div(127.0f, a);
    }
    return r;
}

/* low = min(0, min x), high = max(0, max x), finite says that no input is NaN or infinite. */
QE_NUM_FN qe_act_range qe_act_range_asymmetric(float low, float high, int finite) {
    qe_act_range r = {1.0f, 0.0f, 0};
    float d = qe_sub(high, low);
    if (!finite || (qe_f32_bits(d) & 0x7fffffffu) >= 0x7f800000u) {
        r.scale = qe_f32_from_bits(0x7fc00000u);
    } else if (qe_f32_bits(d) >= 0x0d800000u) {
        r.scale = qe_div(d, 255.0f);
        r.inverse = qe_div(255.0f, d);
        r.zero = qe_rne(qe_clamp(qe_sub(-128.0f, qe_mul(low, r.inverse)), -128.0f, 127.0f));
    }
    return r;
}

QE_NUM_FN int8_t qe_act_code_symmetric(float x, float inverse) {
    if (inverse == 0.0f) return 0;
    return (int8_t)qe_rne(qe_clamp(qe_mul(x, inverse), -127.0f, 127.0f));
}

QE_NUM_FN int8_t qe_act_code_asymmetric(float x, float inverse, int32_t zero) {
    if (inverse == 0.0f) return 0;
    int32_t q = qe_rne(qe_clamp(qe_mul(x, inverse), -1024.0f, 1024.0f)) + zero;
    return (int8_t)(q < -128 ? -128 : q > 127 ? 127 : q);
}

/* Signs (quantization.md 2, XNOR-Net): real = scale * q, q = -1 below zero, else +1. The scale is the mean of |x| over
 * the row, `sum` its 512 lanes folded by halves as in 7.5; nothing is divided by it, so 0 and subnormals stay. */
QE_NUM_FN qe_act_range qe_act_range_sign(float sum, int64_t n) {
    qe_act_range r = {qe_f32_from_bits(0x7fc00000u), 0.0f, 0};
    if ((qe_f32_bits(sum) & 0x7fffffffu) < 0x7f800000u) r.scale = qe_div(sum, (float)n);
    return r;
}

QE_NUM_FN int8_t qe_act_code_sign(float x) { return x < 0.0f ? -1 : 1; }
QE_NUM_FN float  qe_act_lane_sign(float lane, float x) { return qe_add(lane, qe_f32_from_bits(qe_f32_bits(x) & 0x7fffffffu)); }

/* Signs of a row; returns their range. */
QE_NUM_FN qe_act_range qe_act_quantize_sign(const float *x, int64_t n, int8_t *q) {
    float lanes[512] = {0.0f};
    for (int64_t i = 0; i < n; i++) {
        lanes[i & 511] = qe_act_lane_sign(lanes[i & 511], x[i]);
        q[i] = qe_act_code_sign(x[i]);
    }
    for (int half = 256; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] = qe_add(lanes[i], lanes[i + half]);
    return qe_act_range_sign(lanes[0], n);
}

/* Quantize one group; returns its range. */
QE_NUM_FN qe_act_range qe_act_quantize_symmetric(const float *x, int64_t n, int8_t *q) {
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = qe_f32_bits(x[i]) & 0x7fffffffu;
        top = u > top ? u : top;
    }
    qe_act_range r = qe_act_range_symmetric(top);
    for (int64_t i = 0; i < n; i++) q[i] = qe_act_code_symmetric(x[i], r.inverse);
    return r;
}

QE_NUM_FN qe_act_range qe_act_quantize_asymmetric(const float *x, int64_t n, int8_t *q) {
    float low = 0.0f, high = 0.0f;
    int finite = 1;
    for (int64_t i = 0; i < n; i++) {
        finite &= (qe_f32_bits(x[i]) & 0x7fffffffu) < 0x7f800000u;
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    qe_act_range r = qe_act_range_asymmetric(low, high, finite);
    for (int64_t i = 0; i < n; i++) q[i] = qe_act_code_asymmetric(x[i], r.inverse, r.zero);
    return r;
}

/* ---- functions --------------------------------------------------------------------------------------------------- */
/* e^x within 2 ulp; inf above 88.73, 0 below -103.98, NaN for NaN. x = n ln 2 + r, Taylor to r^7, times 2^n in two
 * factors so that subnormal results round once. */
QE_NUM_FN float qe_exp(float x) {
    x = qe_clamp(x, -104.0f, 89.0f);
    float shifted = qe_fma(x, 1.44269504f, 12582912.0f);
    int32_t n = (int32_t)(qe_f32_bits(shifted) - 0x4b400000u);
    float t = qe_sub(shifted, 12582912.0f);
    float r = qe_fma(t, -0.693145752f, x);                          /* 16 leading bits of ln 2: t times it is exact */
    r = qe_fma(t, -1.42860677e-6f, r);
    float p = 1.98412698e-4f;
    p = qe_fma(p, r, 1.38888889e-3f);
    p = qe_fma(p, r, 8.33333333e-3f);
    p = qe_fma(p, r, 4.16666667e-2f);
    p = qe_fma(p, r, 1.66666667e-1f);
    p = qe_fma(p, r, 0.5f);
    p = qe_fma(p, r, 1.0f);
    p = qe_fma(p, r, 1.0f);
    int32_t half = n >> 1;
    float low = qe_f32_from_bits((uint32_t)(half + 127) << 23);
    float high = qe_f32_from_bits((uint32_t)(n - half + 127) << 23);
    return qe_mul(qe_mul(p, low), high);
}

/* Within 2 ulp. Below 0.56 tanh x = x + x^3 p(x^2), p by least squares weighted to equal relative errors (1.3e-9). */
QE_NUM_FN float qe_tanh(float x) {
    float a = x < 0.0f ? -x : x, y;
    if (a < 0.56f) {
        float u = qe_mul(x, x);
        float p = qe_fma(u, -6.1987252e-3f, 2.10205559e-2f);
        p = qe_fma(p, u, -5.3840518e-2f);
        p = qe_fma(p, u, 1.33324802e-1f);
        p = qe_fma(p, u, -3.33333135e-1f);
        return qe_fma(qe_mul(x, u), p, x);
    }
    y = qe_sub(1.0f, qe_div(2.0f, qe_add(qe_exp(qe_add(a, a)), 1.0f)));
    return x < 0.0f ? -y : y;
}

QE_NUM_FN float qe_sigmoid(float x) { return qe_div(1.0f, qe_add(1.0f, qe_exp(-x))); }

QE_NUM_FN float qe_silu(float x) { return qe_div(x, qe_add(1.0f, qe_exp(-x))); }

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
QE_NUM_FN float qe_gelu_tanh(float x) {
    float h = qe_mul(0.5f, x);
    float t = qe_tanh(qe_mul(x, qe_fma(qe_mul(x, x), 0.0356774081f, 0.797884561f)));
    return qe_fma(h, t, h);
}

/* 0.5 x (1 + erf(x / sqrt(2))), erf by the rational form of Abramowitz & Stegun 7.1.26: within 1e-6 * (1 + |x|). */
QE_NUM_FN float qe_gelu(float x) {
    float a = qe_mul(x < 0.0f ? -x : x, 0.707106781f);
    float t = qe_div(1.0f, qe_fma(0.3275911f, a, 1.0f));
    float p = qe_fma(t, 1.061405429f, -1.453152027f);
    p = qe_fma(p, t, 1.421413741f);
    p = qe_fma(p, t, -0.284496736f);
    p = qe_fma(p, t, 0.254829592f);
    float tail = qe_mul(qe_mul(p, t), qe_exp(-qe_mul(a, a)));       /* 1 - erf(a) */
    float h = qe_mul(0.5f, x);
    return x < 0.0f ? qe_mul(h, tail) : qe_mul(h, qe_sub(2.0f, tail));
}

QE_NUM_FN float qe_rsqrt(float x) { return qe_div(1.0f, qe_sqrt(x)); }

#endif
