// 4-bit weights from the blocks of layouts cuda/w4a8 and cuda/w4a16 (cuda_backend.h) to A fragments in registers.
// A block is 64 rows x 128 columns. Thread t of the 128 that share it owns rows 16 * (t / 32) + t % 32 / 4 (r = 0) and
// that + 8 (r = 1): the rows of its fragments of mma.m16n8k32, mma.m16n8k16 and wgmma alike.
// kUnits: scales per row and block, 1 (groups of 128 columns and more) or 4 (one per 32 columns).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda_backend.h"
#include "ptx.cuh"

namespace qk_cuda {

struct W4Zeros { // stored in the blocks, or one for all
    int stored, constant;
};

// w = (c - z) * s in int8. With every byte of c widened, c * s + (128 - z * s) is w + 128: in 0..255 wherever w fits, so
// the four bytes of a word do not carry into each other and zero points cost nothing. The sign comes back by one XOR;
// unsigned weights would save it, but then the sums need 128 * (sum of the token), and tokens carry sums of 32 columns.
template <int kUnits> struct W4A8 {
    using Context = W4Zeros;
    using State = W4Zeros;
    static PTX_FN State begin(const Context &context) { return context; }
    static constexpr int kSteps = 2; // fragments of 32 columns in half a block
    static constexpr int kBlockBytes = QK_W4_CODE_BYTES + kUnits * 128;
    uint32_t codes[2][4], scales[kUnits];
    PTX_FN void load(uint32_t block, int t, const W4Zeros &) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
#pragma unroll
        for (int u = 0; u < kUnits; u++)
            scales[u] = ptx::lds32(block + QK_W4_CODE_BYTES + uint32_t(u * 128 + t / 32 * 32 + t % 32 / 4 * 4));
    }
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int st = 0; st < kSteps; st++) {
            const uint32_t both = scales[kUnits == 1 ? 0 : half * 2 + st]; // s, z of row r = 0; s, z of r = 1
            const uint32_t s[2] = {both & 0xff, both >> 16 & 0xff};
            const uint32_t z[2] = {ptx::prmt(both, 0, 0x1111), ptx::prmt(both, 0, 0x3333)};
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint32_t w = codes[half][st * 2 + r], offset = 0x80808080u - z[r] * s[r];
                f[st][r] = ((w & 0x0f0f0f0fu) * s[r] + offset) ^ 0x80808080u;
                f[st][r + 2] = ((w >> 4 & 0x0f0f0f0fu) * s[r] + offset) ^ 0x80808080u;
            }
        }
    }
};

// w = fl16((c - z) * s): 1024 + c and 1024 + 16 c are made by one LOP3, the difference c - z is exact.
template <int kUnits> struct W4A16 {
    using Context = W4Zeros;
    using State = W4Zeros;
    static PTX_FN State begin(const Context &context) { return context; }
    static constexpr int kSteps = 4; // fragments of 16 columns in half a block
    static constexpr int kBlockBytes = QK_W4_CODE_BYTES + kUnits * (128 + 64);
    uint32_t codes[2][4], scales[kUnits], zeros[kUnits];
    PTX_FN void load(uint32_t block, int t, const W4Zeros &zero) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            const uint32_t row = uint32_t(t / 32 * 32 + t % 32 / 4 * 4);
            scales[u] = ptx::lds32(block + QK_W4_CODE_BYTES + uint32_t(u * 128) + row);
            zeros[u] = uint32_t(zero.constant) * 0x00010001u;
            if (zero.stored) {
                const uint32_t at = block + QK_W4_CODE_BYTES + uint32_t(kUnits * 128 + u * 64) + row / 2;
                const uint32_t two = ptx::lds32(at & ~3u);
                zeros[u] = ptx::prmt(two, 0, row & 4 ? 0x4342 : 0x4140);
            }
        }
    }
    static PTX_FN __half2 half2_of(uint32_t u) {
        return __halves2half2(__ushort_as_half(uint16_t(u)), __ushort_as_half(uint16_t(u >> 16)));
    }
    static PTX_FN uint32_t bits_of(__half2 v) {
        return uint32_t(__half_as_ushort(__low2half(v))) | uint32_t(__half_as_ushort(__high2half(v))) << 16;
    }
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int p = 0; p < kSteps / 2; p++) { // 32 columns
            const int u = kUnits == 1 ? 0 : half * 2 + p;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const __half2 s = half2_of(ptx::prmt(scales[u], 0, r ? 0x3232 : 0x1010));
                const uint32_t z = ptx::prmt(zeros[u], 0, r ? 0x3232 : 0x1010);
                const __half2 low = half2_of(z + 0x64006400u), high = half2_of((z << 4) + 0xd400d400u); // 1024+z, -64-z
                uint32_t w = codes[half][p * 2 + r];
#pragma unroll
                for (int st = 0; st < 2; st++, w >>= 8) {
                    const uint32_t lo = ptx::lop3<0xea>(w, 0x000f000fu, 0x64006400u),
                                   hi = ptx::lop3<0xea>(w, 0x00f000f0u, 0x64006400u);
                    f[p * 2 + st][r] = bits_of(__hmul2(__hsub2(half2_of(lo), low), s));
                    f[p * 2 + st][r + 2] = bits_of(__hmul2(__hfma2(half2_of(hi), half2_of(0x2c002c00u), high), s));
                }
            }
        }
    }
};

// w = c - z in bf16, exact: 128 + c less 128 + z. The scale is applied to sums, in fp32.
template <int kUnits> struct W4A16Codes : W4A16<kUnits> {
    using State = W4Zeros;
    static PTX_FN __nv_bfloat162 pair_of(uint32_t u) {
        return __halves2bfloat162(__ushort_as_bfloat16(uint16_t(u)), __ushort_as_bfloat16(uint16_t(u >> 16)));
    }
    static PTX_FN uint32_t difference(uint32_t w, __nv_bfloat162 zero) {
        const __nv_bfloat162 d = __hsub2(pair_of(ptx::lop3<0xea>(w, 0x000f000fu, 0x43004300u)), zero);
        return uint32_t(__bfloat16_as_ushort(d.x)) | uint32_t(__bfloat16_as_ushort(d.y)) << 16;
    }
    PTX_FN float scale(int unit, int r) const {
        return __half2float(__ushort_as_half(uint16_t(this->scales[unit] >> 16 * r)));
    }
    PTX_FN void unpack(uint32_t (&f)[4][4], int half) const {
#pragma unroll
        for (int p = 0; p < 2; p++) // 32 columns
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint32_t z = ptx::prmt(this->zeros[kUnits == 1 ? 0 : half * 2 + p], 0, r ? 0x3232 : 0x1010);
                const __nv_bfloat162 zero = pair_of(z + 0x43004300u);
                uint32_t w = this->codes[half][p * 2 + r];
#pragma unroll
                for (int st = 0; st < 2; st++, w >>= 8) {
                    f[p * 2 + st][r] = difference(w, zero);
                    f[p * 2 + st][r + 2] = difference(w >> 4, zero);
                }
            }
    }
};

} // namespace qk_cuda
