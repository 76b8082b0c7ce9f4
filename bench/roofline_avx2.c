/* roofline_avx2.c -- arithmetic loops of AVX2: the maddubs, madd, add triple of int8 products, and fused multiply-add.
 * Unrolled, so that the sums stay in registers. */
#include "bench.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

enum { CHAINS = 12 };

double bench_int8_avx2(int64_t count) {
    __m256i sums[CHAINS], ones = _mm256_set1_epi16(1), weights = _mm256_set1_epi8(3);
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sums[i] = _mm256_set1_epi8((char)(i + 1));
    for (int64_t at = 0; at < count; at++)      /* the sums feed the products, so nothing can be hoisted */
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(sums[i], weights), ones));
#pragma GCC unroll 12
    for (int i = 1; i < CHAINS; i++) sums[0] = _mm256_xor_si256(sums[0], sums[i]);
    volatile int sink = _mm256_extract_epi32(sums[0], 0);
    (void)sink;
    return (double)count * CHAINS * 64;
}

double bench_fp32_avx2(int64_t count) {
    __m256 sums[CHAINS], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sums[i] = _mm256_set1_ps((float)i);
    for (int64_t at = 0; at < count; at++)
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sums[i] = _mm256_fmadd_ps(sums[i], a, b);
#pragma GCC unroll 12
    for (int i = 1; i < CHAINS; i++) sums[0] = _mm256_add_ps(sums[0], sums[i]);
    volatile float sink = _mm256_cvtss_f32(sums[0]);
    (void)sink;
    return (double)count * CHAINS * 16;
}
#else
double bench_int8_avx2(int64_t count) { return (double)(count - count); }
double bench_fp32_avx2(int64_t count) { return (double)(count - count); }
#endif
