// The software model of AVX-512 (avx512_model.h) against the manual's definitions of what kernels/cpu/simd.h uses, on
// random and extreme registers. Where the machine has AVX-512 the kernels run on it as well; this says that the model
// is fit to stand in where it has not.
#include "support.h"
#ifdef QE_AVX512_MODEL
#include "avx512_model.h"
#include <qengine/num.h>

using qe_test::Random;

namespace {

template <class T, int N> struct Lanes {
    T v[N];
    template <class R> R as() const {
        static_assert(sizeof(R) == sizeof(v), "size");
        R r;
        memcpy(&r, v, sizeof r);
        return r;
    }
};
template <class T, class R> Lanes<T, (int)(sizeof(R) / sizeof(T))> lanes(R r) {
    Lanes<T, (int)(sizeof(R) / sizeof(T))> l;
    memcpy(l.v, &r, sizeof r);
    return l;
}

/* Bytes with a share of extremes, so that 255 * -128 * 4 and wrapping sums come up. */
template <class R> R bytes(Random &random) {
    unsigned char b[sizeof(R)];
    for (auto &x : b) {
        const unsigned char extremes[] = {0, 1, 127, 128, 129, 255};
        x = random.below(3) ? (unsigned char)random.bits() : extremes[random.below(6)];
    }
    R r;
    memcpy(&r, b, sizeof r);
    return r;
}
__m512 floats(Random &random) {
    float f[16];
    for (auto &x : f) x = random.uniform(-100, 100) * (random.below(4) ? 1.0f : 1e30f);
    __m512 r;
    memcpy(&r, f, sizeof r);
    return r;
}

#define EACH(count, condition)                                                                                         \
    for (int i = 0; i < (count); i++) ASSERT_TRUE(condition) << "lane " << i;                                          \
    checks += (count)

TEST(Avx512Model, IntegersFollowTheManual) {
    if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "compiled for AVX2";
    Random random(1);
    int64_t checks = 0;
    for (int round = 0; round < 20000; round++) {
        __m512i a = bytes<__m512i>(random), b = bytes<__m512i>(random), c = bytes<__m512i>(random);
        auto ai = lanes<int32_t>(a), bi = lanes<int32_t>(b), ci = lanes<int32_t>(c);
        auto bu = lanes<uint8_t>(b);
        auto cs = lanes<int8_t>(c);
        auto bw = lanes<int16_t>(b), cw = lanes<int16_t>(c);
        auto dot = lanes<int32_t>(_mm512_dpbusd_epi32(a, b, c)), pair = lanes<int32_t>(_mm512_dpwssd_epi32(a, b, c));
        for (int i = 0; i < 16; i++) {
            int64_t eight = ai.v[i], words = ai.v[i];
            for (int j = 0; j < 4; j++) eight += (int64_t)bu.v[4 * i + j] * cs.v[4 * i + j];
            for (int j = 0; j < 2; j++) words += (int64_t)bw.v[2 * i + j] * cw.v[2 * i + j];
            ASSERT_EQ(dot.v[i], (int32_t)(uint64_t)eight) << i;
            ASSERT_EQ(pair.v[i], (int32_t)(uint64_t)words) << i;
            checks += 2;
        }
        auto sum = lanes<int32_t>(_mm512_add_epi32(b, c)), difference = lanes<int32_t>(_mm512_sub_epi32(b, c)),
             product = lanes<int32_t>(_mm512_mullo_epi32(b, c)), both = lanes<int32_t>(_mm512_and_si512(b, c)),
             any = lanes<int32_t>(_mm512_or_si512(b, c));
        EACH(16, sum.v[i] == (int32_t)((uint32_t)bi.v[i] + (uint32_t)ci.v[i]));
        EACH(16, difference.v[i] == (int32_t)((uint32_t)bi.v[i] - (uint32_t)ci.v[i]));
        EACH(16, product.v[i] == (int32_t)((uint32_t)bi.v[i] * (uint32_t)ci.v[i]));
        EACH(16, both.v[i] == (bi.v[i] & ci.v[i]) && any.v[i] == (bi.v[i] | ci.v[i]));
        auto bytes_apart = lanes<uint8_t>(_mm512_sub_epi8(b, c));
        auto cu = lanes<uint8_t>(c);
        EACH(64, bytes_apart.v[i] == (uint8_t)(bu.v[i] - cu.v[i]));
        auto words_apart = lanes<uint16_t>(_mm512_sub_epi16(b, c)), words_times = lanes<uint16_t>(_mm512_mullo_epi16(b, c));
        EACH(32, words_apart.v[i] == (uint16_t)(bw.v[i] - cw.v[i]) && words_times.v[i] == (uint16_t)((uint32_t)bw.v[i] * (uint32_t)cw.v[i]));
        for (int shift = 0; shift < 16; shift++) {
            auto right = lanes<uint16_t>(_mm512_srli_epi16(b, (unsigned)shift)),
                 left = lanes<uint16_t>(_mm512_slli_epi16(b, (unsigned)shift));
            EACH(32, right.v[i] == (uint16_t)bw.v[i] >> shift && left.v[i] == (uint16_t)((uint16_t)bw.v[i] << shift));
        }
        __m128i narrow = bytes<__m128i>(random);
        __m256i wide = bytes<__m256i>(random);
        auto u8 = lanes<uint8_t>(narrow);
        auto w8 = lanes<uint8_t>(wide);
        auto u16 = lanes<uint16_t>(wide);
        auto zero = lanes<int32_t>(_mm512_cvtepu8_epi32(narrow)), sign = lanes<int32_t>(_mm512_cvtepi8_epi32(narrow)),
             words = lanes<int32_t>(_mm512_cvtepu16_epi32(wide));
        auto pairs = lanes<uint16_t>(_mm512_cvtepu8_epi16(wide));
        EACH(16, zero.v[i] == u8.v[i] && sign.v[i] == (int8_t)u8.v[i] && words.v[i] == u16.v[i]);
        EACH(32, pairs.v[i] == w8.v[i]);
        auto ones = lanes<int32_t>(_mm512_popcnt_epi32(b));
        EACH(16, ones.v[i] == __builtin_popcount((uint32_t)bi.v[i]));
        auto set = lanes<int32_t>(_mm512_set1_epi32(ai.v[0]));
        auto set8 = lanes<int8_t>(_mm512_set1_epi8(cs.v[0]));
        auto set16 = lanes<int16_t>(_mm512_set1_epi16(bw.v[0]));
        EACH(16, set.v[i] == ai.v[0]);
        EACH(32, set16.v[i] == bw.v[0]);
        EACH(64, set8.v[i] == cs.v[0]);
        int32_t block[16];
        _mm512_storeu_ps(block, _mm512_castsi512_ps(a));
        EACH(16, block[i] == ai.v[i]);
        auto loaded = lanes<int32_t>(_mm512_loadu_si512(block));
        EACH(16, loaded.v[i] == ai.v[i]);
    }
    printf("%lld lanes\n", (long long)checks);
}

TEST(Avx512Model, FloatsFollowTheManual) {
    if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "compiled for AVX2";
    Random random(2);
    int64_t checks = 0;
    float table[300];
    for (auto &t : table) t = random.normal();
    for (int round = 0; round < 20000; round++) {
        __m512 a = floats(random), b = floats(random), c = floats(random);
        __m512i i32 = bytes<__m512i>(random);
        auto af = lanes<float>(a), bf = lanes<float>(b), cf = lanes<float>(c);
        auto ii = lanes<int32_t>(i32);
        auto sum = lanes<float>(_mm512_add_ps(a, b)), difference = lanes<float>(_mm512_sub_ps(a, b)),
             product = lanes<float>(_mm512_mul_ps(a, b)), fused = lanes<float>(_mm512_fmadd_ps(a, b, c)),
             from = lanes<float>(_mm512_cvtepi32_ps(i32)), set = lanes<float>(_mm512_set1_ps(af.v[3]));
        EACH(16, qe_test::float_bits(sum.v[i]) == qe_test::float_bits(af.v[i] + bf.v[i]));
        EACH(16, qe_test::float_bits(difference.v[i]) == qe_test::float_bits(af.v[i] - bf.v[i]));
        EACH(16, qe_test::canonical(product.v[i]) == qe_test::canonical(af.v[i] * bf.v[i]));
        EACH(16, qe_test::canonical(fused.v[i]) == qe_test::canonical(std::fmaf(af.v[i], bf.v[i], cf.v[i])));
        EACH(16, from.v[i] == (float)ii.v[i] && set.v[i] == af.v[3]);
        __m256i half = bytes<__m256i>(random);
        auto h = lanes<uint16_t>(half);
        auto wide = lanes<float>(_mm512_cvtph_ps(half));
        EACH(16, qe_test::canonical(wide.v[i]) == qe_test::canonical(qe_f16_to_f32(h.v[i])));
        int32_t index[16];
        for (auto &x : index) x = (int32_t)random.below(300);
        auto gathered = lanes<float>(_mm512_i32gather_ps(_mm512_loadu_si512(index), table, 4));
        EACH(16, gathered.v[i] == table[index[i]]);
        auto looked_up = lanes<float>(_mm512_permutexvar_ps(_mm512_loadu_si512(index), a));
        EACH(16, looked_up.v[i] == af.v[index[i] & 15]);
        auto low = _mm512_castps512_ps256(a), high = _mm512_extractf32x8_ps(a, 1);
        EACH(8, low[i] == af.v[i] && high[i] == af.v[i + 8]);
        int right = (int)random.below(40);
        auto shifted = lanes<uint32_t>(_mm512_srl_epi32(i32, _mm_cvtsi32_si128(right)));
        EACH(16, shifted.v[i] == (right > 31 ? 0 : (uint32_t)ii.v[i] >> right));
        auto sixteen = lanes<uint32_t>(_mm512_slli_epi32(i32, 16));
        EACH(16, sixteen.v[i] == (uint32_t)ii.v[i] << 16);
    }
    printf("%lld lanes\n", (long long)checks);
}

} // namespace
#else
TEST(Avx512Model, IsBuilt) {
    GTEST_SKIP()
        << "SIMDe (libsimde-dev) is not here, or this is a sanitizer build: AVX-512 kernels are not run in software";
}
#endif
