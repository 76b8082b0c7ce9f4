/* roofline_avx512.c -- arithmetic loops of AVX-512 VNNI: vpdpbusd and fused multiply-add. The sums must stay in registers:
 * an array that is not unrolled lives in memory, and its stores are what is measured then. */
#include "bench.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define V_AVX512
#include <cpu/simd.h>

enum { CHAINS = 24 };

double bench_int8_avx512(int64_t count) {
    vi sums[CHAINS], weights = _mm512_set1_epi8(3), x = _mm512_set1_epi8(5);
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_set1_epi32(i);
    for (int64_t at = 0; at < count; at++)
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) sums[i] = dot_small(sums[i], weights, x);
#pragma GCC unroll 24
    for (int i = 1; i < CHAINS; i++) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
    volatile int sink = _mm512_reduce_add_epi32(sums[0]);
    (void)sink;
    return (double)count * CHAINS * 128;
}

double bench_fp32_avx512(int64_t count) {
    __m512 sums[CHAINS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_set1_ps((float)i);
    for (int64_t at = 0; at < count; at++)
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_fmadd_ps(sums[i], a, b);
#pragma GCC unroll 24
    for (int i = 1; i < CHAINS; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
    volatile float sink = _mm512_cvtss_f32(sums[0]);
    (void)sink;
    return (double)count * CHAINS * 32;
}
#else
double bench_int8_avx512(int64_t count) { return (double)(count - count); }
double bench_fp32_avx512(int64_t count) { return (double)(count - count); }
#endif
