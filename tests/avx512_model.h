/* AVX-512 in software, for kernels/cpu/isa_avx512.c and isa_vpopcnt.c on machines without it: SIMDe's intrinsics and, below, those that
 * release 0.7.4 lacks, as the manual defines them. Included by the compiler before anything else of them;
 * test_avx512_model.cc holds every intrinsic the kernels use against its definition. */
#ifndef AVX512_MODEL_H
#define AVX512_MODEL_H
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#define V_NO_ASM
#define __AVX512VPOPCNTDQ__ 1     /* simd.h asks; of SIMDe it is the name alone */

/* lanes of a register as arrays: memcpy keeps it free of aliasing questions and of the compiler's own intrinsics */
#define MODEL(result_type, lanes, to, name, from_type, from, expression)                                               \
    static inline result_type model_##name(from_type operand) {                                                        \
        from a[sizeof operand / sizeof(from)];                                                                         \
        to r[lanes];                                                                                                   \
        result_type result;                                                                                            \
        memcpy(a, &operand, sizeof operand);                                                                           \
        for (int i = 0; i < (lanes); i++) r[i] = (to)(expression);                                                     \
        memcpy(&result, r, sizeof result);                                                                             \
        return result;                                                                                                 \
    }
#include <string.h>
MODEL(__m512, 16, float, cvtepi32_ps, __m512i, int32_t, a[i])
MODEL(__m512i, 16, int32_t, cvtepi8_epi32, __m128i, int8_t, a[i])
MODEL(__m512i, 16, int32_t, cvtepu8_epi32, __m128i, uint8_t, a[i])
MODEL(__m512i, 16, int32_t, cvtepu16_epi32, __m256i, uint16_t, a[i])
MODEL(__m512i, 32, int16_t, cvtepu8_epi16, __m256i, uint8_t, a[i])
#define _mm512_cvtepi32_ps(a)    model_cvtepi32_ps(a)
#define _mm512_cvtepi8_epi32(a)  model_cvtepi8_epi32(a)
#define _mm512_cvtepu8_epi32(a)  model_cvtepu8_epi32(a)
#define _mm512_cvtepu16_epi32(a) model_cvtepu16_epi32(a)
#define _mm512_cvtepu8_epi16(a)  model_cvtepu8_epi16(a)

static inline __m512 model_cvtph_ps(__m256i halves) {
    __m128i half[2];
    __m256 whole[2];
    __m512 result;
    memcpy(half, &halves, sizeof half);
    for (int i = 0; i < 2; i++) whole[i] = _mm256_cvtph_ps(half[i]);
    memcpy(&result, whole, sizeof result);
    return result;
}
#define _mm512_cvtph_ps(a) model_cvtph_ps(a)

static inline __m256 model_extractf32x8_ps(__m512 v, int upper) {
    __m256 half[2];
    memcpy(half, &v, sizeof half);
    return half[upper & 1];
}
#undef _mm512_extractf32x8_ps     /* a macro of the compiler where it does not optimize */
#define _mm512_extractf32x8_ps(v, upper) model_extractf32x8_ps(v, upper)

static inline __m512 model_i32gather_ps(__m512i index, const void *base, int scale) {
    int32_t at[16];
    float r[16];
    __m512 result;
    memcpy(at, &index, sizeof at);
    for (int i = 0; i < 16; i++) memcpy(&r[i], (const char *)base + (intptr_t)at[i] * scale, 4);
    memcpy(&result, r, sizeof result);
    return result;
}
#undef _mm512_i32gather_ps
#define _mm512_i32gather_ps(index, base, scale) model_i32gather_ps(index, base, scale)
#endif
