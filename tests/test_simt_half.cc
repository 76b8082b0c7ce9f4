// The emulator's 16-bit floats against num.h: all 65,536 values of both types, and rounding at every midpoint.
#include <gtest/gtest.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include <qengine/num.h>

namespace {
TEST(SimtHalf, EveryHalf) {
    for (uint32_t h = 0; h < 65536; h++) {
        const float f = __half2float(__ushort_as_half(uint16_t(h))), want = qe_f16_to_f32(uint16_t(h));
        if (std::isnan(want)) {
            ASSERT_TRUE(std::isnan(f)) << h;
            continue;
        }
        ASSERT_EQ(qe_f32_bits(f), qe_f32_bits(want)) << h;
        ASSERT_EQ(__half_as_ushort(__float2half_rn(f)), h);
        if ((h & 0x7fff) >= 0x7bff) continue;
        // the midpoint to the next value, and its two neighbors in fp32
        const float middle = (want + qe_f16_to_f32(uint16_t(h + 1))) / 2;
        for (float v : {std::nextafterf(middle, -INFINITY), middle, std::nextafterf(middle, INFINITY)})
            ASSERT_EQ(__half_as_ushort(__float2half_rn(v)), qe_f32_to_f16(v)) << h;
    }
}
TEST(SimtHalf, EveryBfloat) {
    for (uint32_t h = 0; h < 65536; h++) {
        const float f = __bfloat162float(__ushort_as_bfloat16(uint16_t(h)));
        if (std::isnan(f)) continue;
        ASSERT_EQ(qe_f32_bits(f), h << 16);
        for (uint32_t low : {0x7fffu, 0x8000u, 0x8001u}) {
            const float v = qe_f32_from_bits(h << 16 | low);
            if (std::isnan(v)) continue;
            ASSERT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(v)), qe_f32_to_bf16(v)) << h;
        }
    }
}
TEST(SimtHalf, FmaRoundsOnce) {
    // 1 + 2^-10 squared is 1 + 2^-9 + 2^-20; adding -(1 + 2^-9) leaves 2^-20, which a rounded product would lose.
    const __half a = __float2half_rn(1.0f + 0x1p-10f), c = __float2half_rn(-(1.0f + 0x1p-9f));
    EXPECT_EQ(__half2float(__hfma(a, a, c)), 0x1p-20f);
    EXPECT_EQ(__half2float(__hadd(__hmul(a, a), c)), 0.0f);
}
TEST(SimtHalf, BfloatDifferenceRoundsOnce) {
    auto value = [](float v) { return __float2bfloat16_rn(v); };
    for (int c = 0; c < 256; c++)
        for (int z = 0; z < 256; z++) // integers of eight bits: exact
            ASSERT_EQ(__bfloat162float(__hsub(value(float(c)), value(float(z)))), float(c - z));
    // 1 - 2^-9 lies between 1 - 2^-8 and 1: a tie, to even; less a little more it is no tie, which fp32 would hide.
    EXPECT_EQ(__bfloat162float(__hsub(value(1.0f), value(0x1p-9f))), 1.0f);
    EXPECT_EQ(__bfloat162float(__hsub(value(1.0f), value(0x1.02p-9f))), 1.0f - 0x1p-8f);
    EXPECT_EQ(__bfloat162float(__hsub(value(1.0f), value(-0x1p-40f))), 1.0f);
    const __nv_bfloat162 d = __hsub2(__halves2bfloat162(value(3), value(5)), __halves2bfloat162(value(1), value(7)));
    EXPECT_EQ(__bfloat162float(d.x), 2.0f);
    EXPECT_EQ(__bfloat162float(d.y), -2.0f);
}
} // namespace
