// 4-bit weights from the blocks of layouts cuda/w4a8 and cuda/w4a16 (cuda_backend.h) to A fragments in registers.
// A block is 64 rows x 128 columns. Thread t of the 128 that share it owns rows 16 * (t / 32) + t % 32 / 4 (r = 0) and
// that + 8 (r = 1): the rows of its fragments of mma.m16n8k32, mma.m16n8k16 and wgmma alike.
// kUnits: scales per row and block, 1 (groups of 128 columns and more) or 4 (one per 32 columns).
#pragma once
#include "cuda_backend.h"
#include "pairs.cuh"

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
    static constexpr int kBlockBytes = QK_W4_CODE_BYTES + kUnits * 128, kShift = 0;
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

// Nibbles with a sign, one scale a row: a nibble in the upper half of a byte is 16 w in int8. kShift takes the 16 out of the
// sums, which are exact.
template <> struct W4A8<0> {
    using Context = W4Zeros;
    using State = W4Zeros;
    static PTX_FN State begin(const Context &context) { return context; }
    static constexpr int kSteps = 2, kBlockBytes = QK_W4_CODE_BYTES, kShift = 4;
    uint32_t codes[2][4];
    PTX_FN void load(uint32_t block, int t, const W4Zeros &) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
    }
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int st = 0; st < kSteps; st++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint32_t w = codes[half][st * 2 + r];
                f[st][r] = w << 4 & 0xf0f0f0f0u;
                f[st][r + 2] = w & 0xf0f0f0f0u;
            }
    }
};

// The same nibbles in the order of layout cuda/s4a8: ldmatrix widens them to int8 on their way into A registers.
struct S4A8 {
    using Context = W4Zeros;
    static constexpr int kSteps = 2, kBlockBytes = QK_W4_CODE_BYTES, kShift = 0;
    uint32_t row; // of 8 bytes that the lane points ldmatrix at
    PTX_FN void load(uint32_t block, int t, const W4Zeros &) { row = block + uint32_t(t / 32 * 1024 + t % 32 * 8); }
#ifdef PTX_HAS_LDMATRIX_S4
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int st = 0; st < kSteps; st++) ptx::ldmatrix_x4_s8_s4(f[st], row + uint32_t(half * 512 + st * 256));
    }
#endif
};

// w = fl16((c - z) * s): 1024 + c and 1024 + 16 c are made by one LOP3, the difference c - z is exact.
template <int kUnits> struct W4A16 {
    using Context = W4Zeros;
    using State = W4Zeros;
    static PTX_FN State begin(const Context &context) { return context; }
    static constexpr int kSteps = 4; // fragments of 16 columns in half a block
    static constexpr int kBlockBytes = QK_W4_CODE_BYTES + kUnits * (128 + 64);
    // fp16 scales of both rows, and of each row 0x64 above its zero point, twice: 1024 + z in fp16.
    uint32_t codes[2][4], scales[kUnits], zeros[kUnits][2];
    PTX_FN void load(uint32_t block, int t, const W4Zeros &zero) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
        const uint32_t row = uint32_t(t / 32 * 32 + t % 32 / 4 * 4);
        const uint32_t first = zero.stored ? row / 2 % 4 : 0; // byte of row r = 0 in an aligned word
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            scales[u] = ptx::lds32(block + QK_W4_CODE_BYTES + uint32_t(u * 128) + row);
            uint32_t two = uint32_t(zero.constant) * 0x0101u;
            if (zero.stored) two = ptx::lds32((block + QK_W4_CODE_BYTES + uint32_t(kUnits * 128 + u * 64) + row / 2) & ~3u);
#pragma unroll
            for (int r = 0; r < 2; r++) zeros[u][r] = ptx::prmt(two, 0x64646464u, 0x4040 + (first + uint32_t(r)) * 0x0101);
        }
    }
    PTX_FN __half scale_of(int unit, int r) const {
        const __half2 both = halves_of(scales[unit]);
        return r ? __high2half(both) : __low2half(both);
    }
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int p = 0; p < kSteps / 2; p++) { // 32 columns
            const int u = kUnits == 1 ? 0 : half * 2 + p;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const __half2 s = __half2half2(scale_of(u, r)), low = halves_of(zeros[u][r]);
                const __half2 high = __hsub2(halves_of(0x63806380u), low); // 960 - (1024 + z)
                uint32_t w = codes[half][p * 2 + r];
#pragma unroll
                for (int st = 0; st < 2; st++, w >>= 8) {
                    const uint32_t lo = ptx::lop3<0xea>(w, 0x000f000fu, 0x64006400u),
                                   hi = ptx::lop3<0xea>(w, 0x00f000f0u, 0x64006400u);
                    f[p * 2 + st][r] = bits_of(__hmul2(__hsub2(halves_of(lo), low), s));
                    f[p * 2 + st][r + 2] = bits_of(__hmul2(__hfma2(halves_of(hi), halves_of(0x2c002c00u), high), s));
                }
            }
        }
    }
};

// w = c - z in bf16, exact: 128 + c less 128 + z. The scale is applied to sums, in fp32.
template <int kUnits> struct W4A16Codes : W4A16<kUnits> {
    using State = W4Zeros;
    static PTX_FN uint32_t difference(uint32_t w, __nv_bfloat162 zero) {
        return bits_of(__hsub2(bfloats_of(ptx::lop3<0xea>(w, 0x000f000fu, 0x43004300u)), zero));
    }
    PTX_FN float scale_of_unit(int unit, int r) const { return __half2float(this->scale_of(unit, r)); } // exact
    template <int kCount> PTX_FN void unpack(uint32_t (&f)[kCount][4], int piece) const { // of kCount steps
#pragma unroll
        for (int i = 0; i < kCount; i += 2) { // 32 columns
            const int p = (piece * kCount + i) / 2;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint32_t z = this->zeros[kUnits == 1 ? 0 : p][r];
                const __nv_bfloat162 zero = bfloats_of(z ^ 0x27002700u); // from 0x6400 + z to 0x4300 + z
                uint32_t w = this->codes[p / 2][p % 2 * 2 + r];
#pragma unroll
                for (int st = 0; st < 2; st++, w >>= 8) {
                    f[i + st][r] = difference(w, zero);
                    f[i + st][r + 2] = difference(w >> 4, zero);
                }
            }
        }
    }
};

} // namespace qk_cuda
