// binary16 for kernels compiled for the SIMT emulator: the subset of <cuda_fp16.h> they use, every operation rounded
// once to nearest even, subnormals kept.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
using half = __half;
using half2 = __half2;

namespace simt_half {
// Rounds a double to the nearest even value with `digits` significant bits and smallest exponent 2^min_exp.
inline double round_to(double v, int digits, int min_exp) {
    if (v == 0 || !std::isfinite(v)) return v;
    int e;
    std::frexp(v, &e);
    int unit = (e - digits > min_exp) ? e - digits : min_exp; // weight of the last place
    return std::ldexp(std::nearbyint(std::ldexp(v, -unit)), unit);
}
// Packs a value that round_to() has made representable, or an overflow, infinity or NaN.
inline uint16_t pack(double v, int mantissa_bits, int bias) {
    const int exp_bits = 15 - mantissa_bits;
    const uint16_t sign = std::signbit(v) ? 0x8000u : 0u, inf = uint16_t(((1u << exp_bits) - 1) << mantissa_bits);
    if (std::isnan(v)) return 0x7fffu;
    double a = std::fabs(v);
    if (a == 0) return sign;
    if (std::isinf(v)) return uint16_t(sign | inf);
    int e;
    double f = std::frexp(a, &e); // a = f * 2^e, f in [0.5, 1)
    int biased = e - 1 + bias;
    if (biased >= (1 << exp_bits) - 1) return uint16_t(sign | inf);
    if (biased <= 0) return uint16_t(sign | uint16_t(std::ldexp(a, bias - 1 + mantissa_bits)));
    return uint16_t(sign | (biased << mantissa_bits) | uint16_t(std::ldexp(2 * f - 1, mantissa_bits)));
}
} // namespace simt_half

inline float __half2float(__half h) {
    uint32_t sign = uint32_t(h.bits & 0x8000u) << 16, e = h.bits >> 10 & 31, m = h.bits & 1023, w;
    float f;
    if (e == 0) {
        f = std::ldexp(float(m), -24);
        return sign ? -f : f;
    }
    w = sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13;
    std::memcpy(&f, &w, 4);
    return f;
}
inline __half __double2half(double v) { return {simt_half::pack(simt_half::round_to(v, 11, -24), 10, 15)}; }
inline __half __float2half_rn(float v) { return __double2half(double(v)); }
inline __half __float2half(float v) { return __double2half(double(v)); }
inline __half __ushort_as_half(unsigned short u) { return {u}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half_rn(a), __float2half_rn(b)}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }

// Sums and products of two halves are exact in double; a product plus a half needs up to 66 bits in the worst case,
// so the addition's rounding error is folded in by rounding to odd first.
inline __half __hadd(__half a, __half b) { return __double2half(double(__half2float(a)) + double(__half2float(b))); }
inline __half __hsub(__half a, __half b) { return __double2half(double(__half2float(a)) - double(__half2float(b))); }
inline __half __hmul(__half a, __half b) { return __double2half(double(__half2float(a)) * double(__half2float(b))); }
inline __half __hfma(__half a, __half b, __half c) {
    double p = double(__half2float(a)) * double(__half2float(b)), q = double(__half2float(c)), s = p + q;
    if (std::isfinite(s)) {
        double t = s - p, error = (p - (s - t)) + (q - t); // exact: s + error = p + q
        uint64_t w;
        std::memcpy(&w, &s, 8);
        if (error != 0 && !(w & 1)) s = std::nextafter(s, error > 0 ? INFINITY : -INFINITY);
    }
    return __double2half(s);
}
inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
