/* The vector vocabulary the kernel bodies are written in: V_LANES lanes of int32 or float.
 *
 * dot_small() multiplies 4 unsigned codes below 2^bits with 4 int8 activations a lane. Partial sums may live in a
 * narrower form for V_FLUSH(bits) steps; dot_flush() adds them to int32 sums. dot_eight() takes codes of 8 bits and
 * subtracts V_BIAS8 from each. bits_count() adds the bits set of each lane to partial counts that last 31 steps before
 * bits_flush(); vf_negative() has a bit for every lane below zero. All results are exact modulo 2^32 for activations in [-127, 127]. vf_fold() adds the upper
 * half of the lanes to the lower until one is left.
 *
 * A tile has at most V_MAX_ROWS rows (24 beside AMX); where float sums must stay in registers beside the integer ones, tiles of
 * more than V_FLOAT_ROWS are walked in parts. */
#ifndef SIMD_H
#define SIMD_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <qengine/num.h>

#if defined(V_AVX2) || defined(V_AVX512)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* The border of two steps of an unrolled loop. Without it gcc gathers the prefetches of all steps in the first, where they fill the
 * buffers for lines under way and hold up what is behind them, and moves dot products until sums do not fit the registers. */
INLINE void v_in_order(void) { __asm__ volatile(""); }

#if defined(V_AVX2)
#include <immintrin.h>
enum { V_LANES = 8, V_BIAS8 = 128, V_MAX_ROWS = 4, V_FLOAT_ROWS = 4 };
#define V_FLUSH(bits) ((bits) == 4 ? 8 : (bits) == 5 ? 4 : 2)   /* int16: 8 * 30 * 127, 4 * 62 * 127, 2 * 126 * 127 */
typedef __m256i vi;
typedef __m256 vf;
INLINE vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void vi_store(void *p, vi v) { _mm256_storeu_si256((__m256i *)p, v); }
INLINE vi vi_set1(int32_t v) { return _mm256_set1_epi32(v); }
INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
INLINE vi vi_mul(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
INLINE vi vi_madd16(vi acc, vi a, vi b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
INLINE vi vi_u8(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE vi vi_s8(const uint8_t *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
INLINE vi vi_u8_pairs(const uint8_t *p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)); }
INLINE vi vi_bits(vi v, int right, int mask) {   /* bytes: (v >> right) & mask; right < 0 shifts left */
    vi s = right > 0 ? _mm256_srli_epi16(v, right) : right < 0 ? _mm256_slli_epi16(v, -right) : v;
    return _mm256_and_si256(s, _mm256_set1_epi8((char)mask));
}
INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
INLINE vi bits_count(vi part, vi v) {   /* bytes */
    const vi counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    vi low = _mm256_shuffle_epi8(counts, vi_bits(v, 0, 15)), high = _mm256_shuffle_epi8(counts, vi_bits(v, 4, 15));
    return _mm256_add_epi8(part, _mm256_add_epi8(low, high));
}
INLINE vi bits_flush(vi acc, vi part) {
    return vi_madd16(acc, _mm256_maddubs_epi16(part, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}
INLINE vf vf_load(const void *p) { return _mm256_loadu_ps((const float *)p); }
INLINE void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
INLINE uint32_t vf_negative(vf v) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ));
}
INLINE vf vf_half(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vf vf_set1(float v) { return _mm256_set1_ps(v); }
INLINE vf vf_from(vi v) { return _mm256_cvtepi32_ps(v); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_brain(const uint8_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE vi vi_field(vi v, int right, int mask) {   /* dwords: (v >> right) & mask */
    return _mm256_and_si256(_mm256_srl_epi32(v, _mm_cvtsi32_si128(right)), _mm256_set1_epi32(mask));
}
INLINE vf vf_gather(const float *table, vi i) { return _mm256_i32gather_ps(table, i, 4); }
INLINE float vf_fold4(__m128 v) {
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}
INLINE float vf_fold(vf v) { return vf_fold4(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1))); }
INLINE vf vf_lookup16(const float *table, vi i) {
    vf low = _mm256_permutevar8x32_ps(vf_load(table), i), high = _mm256_permutevar8x32_ps(vf_load(table + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}
INLINE vi dot_small(vi part, vi w, vi x) { return _mm256_add_epi16(part, _mm256_maddubs_epi16(w, x)); }
INLINE vi dot_flush(vi acc, vi part) { return vi_madd16(acc, part, _mm256_set1_epi16(1)); }
INLINE vi dot_eight(vi acc, vi w, vi x) {   /* |w| * (x with w's sign): 2 * 128 * 127 fits int16 */
    vi s = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    vi pair = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
    return vi_madd16(acc, pair, _mm256_set1_epi16(1));
}
INLINE void v_prefetch(const uint8_t *p) {
    _mm_prefetch((const char *)p + 4096, _MM_HINT_T1);
    _mm_prefetch((const char *)p + 1024, _MM_HINT_T0);
}
INLINE void v_prefetch_next(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
INLINE void v_prefetch_page(const uint8_t *keys, const uint8_t *values) {
    _mm_prefetch((const char *)keys + 2048, _MM_HINT_T0);
    _mm_prefetch((const char *)values, _MM_HINT_T1);
}

#elif defined(V_AVX512)
#include <immintrin.h>
enum { V_LANES = 16, V_BIAS8 = 0, V_MAX_ROWS = 12, V_FLOAT_ROWS = 8 };
#define V_DIRECT 1
typedef __m512i vi;
typedef __m512 vf;
INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void vi_store(void *p, vi v) { _mm512_storeu_si512(p, v); }
INLINE vi vi_set1(int32_t v) { return _mm512_set1_epi32(v); }
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
INLINE vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
#ifdef V_NO_ASM     /* tests: the same operations where they must be functions */
INLINE vi vi_madd16(vi acc, vi a, vi b) { return _mm512_dpwssd_epi32(acc, a, b); }
INLINE vi dot_small(vi acc, vi w, vi x) { return _mm512_dpbusd_epi32(acc, w, x); }
#else
/* gcc 12 copies, and with 24 accumulators spills, the destination of these intrinsics; "+v" ties it. */
INLINE vi vi_madd16(vi acc, vi a, vi b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
INLINE vi dot_small(vi acc, vi w, vi x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}
/* Tiles (amx.h). gcc's intrinsics do not say that loads read memory. */
#define amx_zero(t) __asm__ volatile("tilezero %%tmm" #t :::)
#define amx_load(t, base, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(base), "r"((int64_t)(stride)) : "memory")
#define amx_store(t, base, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(base), "r"((int64_t)(stride)) : "memory")
#define amx_dot(c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c :::)
#define amx_dot_unsigned(c, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c :::)
#define amx_configure(shapes) __asm__ volatile("ldtilecfg %0" ::"m"(*(shapes)) : "memory")
#define amx_end() __asm__ volatile("tilerelease" :::)
#endif
INLINE vi dot_eight(vi acc, vi w, vi x) { return dot_small(acc, w, x); }
INLINE vi vi_u8(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE vi vi_s8(const uint8_t *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE vi vi_u8_pairs(const uint8_t *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vi vi_bits(vi v, int right, int mask) {
    vi s = right > 0 ? _mm512_srli_epi16(v, right) : right < 0 ? _mm512_slli_epi16(v, -right) : v;
    return _mm512_and_si512(s, _mm512_set1_epi8((char)mask));
}
INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
INLINE vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
#ifdef __AVX512VPOPCNTDQ__
INLINE vi bits_count(vi part, vi v) { return _mm512_add_epi32(part, _mm512_popcnt_epi32(v)); }
INLINE vi bits_flush(vi acc, vi part) { return _mm512_add_epi32(acc, part); }
#endif
INLINE vf vf_load(const void *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
INLINE uint32_t vf_negative(vf v) { return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ); }
INLINE vf vf_half(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vf_set1(float v) { return _mm512_set1_ps(v); }
INLINE vf vf_from(vi v) { return _mm512_cvtepi32_ps(v); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_brain(const uint8_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
INLINE vi vi_field(vi v, int right, int mask) {
    return _mm512_and_si512(_mm512_srl_epi32(v, _mm_cvtsi32_si128(right)), _mm512_set1_epi32(mask));
}
INLINE vf vf_gather(const float *table, vi i) { return _mm512_i32gather_ps(i, table, 4); }
INLINE float vf_fold(vf v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
INLINE vf vf_lookup16(const float *table, vi i) { return _mm512_permutexvar_ps(i, vf_load(table)); }
INLINE void v_prefetch(const uint8_t *p) {
    _mm_prefetch((const char *)p + 8192, _MM_HINT_T1);
    _mm_prefetch((const char *)p + 2048, _MM_HINT_T0);
}
INLINE void v_prefetch_next(const uint8_t *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
INLINE void v_prefetch_page(const uint8_t *keys, const uint8_t *values) {
    _mm_prefetch((const char *)keys + 2048, _MM_HINT_T0);
    _mm_prefetch((const char *)values, _MM_HINT_T1);
}

#else /* portable: arrays of 16 lanes, the shape of AVX-512, so its logic runs on any machine */
enum { V_LANES = 16, V_BIAS8 = 0, V_MAX_ROWS = 4, V_FLOAT_ROWS = 2 };
#define V_DIRECT 1
typedef struct { int32_t v[16]; } vi;
typedef struct { float v[16]; } vf;
#define EACH_LANE(type, expression)                           \
    type result;                                              \
    for (int i = 0; i < 16; i++) result.v[i] = (expression);  \
    return result
INLINE vi vi_load(const void *p) {
    vi result;
    memcpy(&result, p, sizeof result);
    return result;
}
INLINE void vi_store(void *p, vi v) { memcpy(p, &v, sizeof v); }
INLINE vi vi_set1(int32_t v) { EACH_LANE(vi, v); }
INLINE vi vi_add(vi a, vi b) { EACH_LANE(vi, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i])); }
INLINE vi vi_sub(vi a, vi b) { EACH_LANE(vi, (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i])); }
INLINE vi vi_mul(vi a, vi b) { EACH_LANE(vi, (int32_t)((uint32_t)a.v[i] * (uint32_t)b.v[i])); }
INLINE int32_t lane_madd16(int32_t acc, int32_t a, int32_t b) {
    int32_t low = (int16_t)a * (int16_t)b, high = (a >> 16) * (b >> 16);
    return (int32_t)((uint32_t)acc + (uint32_t)low + (uint32_t)high);
}
INLINE vi vi_madd16(vi acc, vi a, vi b) { EACH_LANE(vi, lane_madd16(acc.v[i], a.v[i], b.v[i])); }
INLINE vi vi_u8(const uint8_t *p) { EACH_LANE(vi, p[i]); }
INLINE vi vi_s8(const uint8_t *p) { EACH_LANE(vi, (int8_t)p[i]); }
INLINE vi vi_u8_pairs(const uint8_t *p) { EACH_LANE(vi, p[2 * i] | p[2 * i + 1] << 16); }
INLINE vi vi_bits(vi v, int right, int mask) {
    uint32_t every = (uint32_t)mask * 0x01010101u;
    EACH_LANE(vi, (int32_t)((right >= 0 ? (uint32_t)v.v[i] >> right : (uint32_t)v.v[i] << -right) & every));
}
INLINE vi vi_or(vi a, vi b) { EACH_LANE(vi, a.v[i] | b.v[i]); }
INLINE vi vi_xor(vi a, vi b) { EACH_LANE(vi, a.v[i] ^ b.v[i]); }
INLINE vi bits_count(vi part, vi v) { EACH_LANE(vi, part.v[i] + __builtin_popcount((uint32_t)v.v[i])); }
INLINE vi bits_flush(vi acc, vi part) { return vi_add(acc, part); }
INLINE vf vf_load(const void *p) {
    vf result;
    memcpy(&result, p, sizeof result);
    return result;
}
INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE uint32_t vf_negative(vf v) {
    uint32_t mask = 0;
    for (int i = 0; i < 16; i++) mask |= (uint32_t)(v.v[i] < 0.0f) << i;
    return mask;
}
INLINE float lane_half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return qe_f16_to_f32(h);
}
INLINE vf vf_half(const uint8_t *p) { EACH_LANE(vf, lane_half(p + 2 * i)); }
INLINE vf vf_set1(float v) { EACH_LANE(vf, v); }
INLINE vf vf_from(vi v) { EACH_LANE(vf, (float)v.v[i]); }
INLINE vf vf_add(vf a, vf b) { EACH_LANE(vf, a.v[i] + b.v[i]); }
INLINE vf vf_mul(vf a, vf b) { EACH_LANE(vf, a.v[i] * b.v[i]); }
INLINE vf vf_fma(vf a, vf b, vf c) { EACH_LANE(vf, fmaf(a.v[i], b.v[i], c.v[i])); }
INLINE vf vf_sub(vf a, vf b) { EACH_LANE(vf, a.v[i] - b.v[i]); }
INLINE float lane_brain(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return qe_bf16_to_f32(h);
}
INLINE vf vf_brain(const uint8_t *p) { EACH_LANE(vf, lane_brain(p + 2 * i)); }
INLINE vi vi_field(vi v, int right, int mask) { EACH_LANE(vi, (int32_t)((uint32_t)v.v[i] >> right) & mask); }
INLINE float vf_fold(vf v) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) v.v[i] = v.v[i] + v.v[i + half];
    return v.v[0];
}
INLINE vf vf_gather(const float *table, vi at) { EACH_LANE(vf, table[at.v[i]]); }
INLINE vf vf_lookup16(const float *table, vi at) { return vf_gather(table, at); }
INLINE int32_t lane_dot(int32_t acc, uint32_t w, uint32_t x) {
    uint32_t sum = (uint32_t)acc;
    for (int i = 0; i < 32; i += 8) {
        int32_t code = (int32_t)(w >> i & 255), value = (int32_t)(x >> i & 255);
        sum += (uint32_t)(code * (value - (value & 128) * 2));
    }
    return (int32_t)sum;
}
INLINE vi dot_small(vi acc, vi w, vi x) { EACH_LANE(vi, lane_dot(acc.v[i], (uint32_t)w.v[i], (uint32_t)x.v[i])); }
INLINE vi dot_eight(vi acc, vi w, vi x) { return dot_small(acc, w, x); }
INLINE void v_prefetch(const uint8_t *p) { (void)p; }
INLINE void v_prefetch_next(const uint8_t *p) { (void)p; }
INLINE void v_prefetch_page(const uint8_t *keys, const uint8_t *values) { (void)keys, (void)values; }
#endif
#endif
