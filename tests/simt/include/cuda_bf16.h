// bfloat16 for kernels compiled for the SIMT emulator: the subset of <cuda_bf16.h> they use.
#pragma once
#include <cuda_fp16.h>

struct __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 h) {
    uint32_t w = uint32_t(h.bits) << 16;
    float f;
    std::memcpy(&f, &w, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
    uint32_t w;
    std::memcpy(&w, &v, 4);
    if ((w & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
    return {uint16_t((w + 0x7fffu + (w >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float v) { return __float2bfloat16_rn(v); }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return {u}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat16 __hsub(__nv_bfloat16 a, __nv_bfloat16 b) { // a difference of two is exact in double
    const double d = double(__bfloat162float(a)) - double(__bfloat162float(b));
    float f = float(d); // to odd, so that the second rounding decides right
    uint32_t w;
    std::memcpy(&w, &f, 4);
    if (double(f) != d && std::isfinite(f) && !(w & 1)) f = std::nextafterf(f, double(f) < d ? INFINITY : -INFINITY);
    return __float2bfloat16_rn(f);
}
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
