// Weights of layout cuda/k (cuda_backend.h) to A fragments in registers: of 16 bits for float input, each the value of
// qe_dequantize() times its row's power of two, rounded once; the same bits as dequant.cu writes. In int8, for int8 input,
// the codes alone.
#pragma once
#include "cuda_backend.h"
#include "pairs.cuh"

namespace qk_cuda {

// float(byte i) - offset, exact.
template <int kOffset> PTX_FN float byte_of(uint32_t bytes, int i) {
    return qe_sub(qe_f32_from_bits(ptx::prmt(bytes, 0x4b000000u, uint32_t(0x7440 + i))), float(8388608 + kOffset));
}
PTX_FN float half_of(uint32_t word, int i) {
    const __half2 both = halves_of(word);
    return __half2float(i ? __high2half(both) : __low2half(both));
}
template <bool kBf16> PTX_FN uint32_t pair_of_floats(float low, float high) {
    if constexpr (kBf16)
        return bits_of(__floats2bfloat162_rn(low, high));
    else
        return bits_of(__floats2half2_rn(low, high));
}

struct KContext {
    int64_t powers_at; // of a band
};
// The powers of a thread's two rows; they leave the sums again.
struct KState {
    float power[2];
    PTX_FN float inverse(int r) const { return qe_f32_from_bits((254u << 23) - qe_f32_bits(power[r])); }
};
PTX_FN KState powers_of(const KContext &context, const unsigned char *band, int row) {
    const float *powers = reinterpret_cast<const float *>(band + context.powers_at) + row;
    return {{powers[0], powers[8]}};
}

// What a thread of the 128 that share a block of 64 rows keeps of it: its rows' numbers. t % 32 / 4 + 16 * (t / 32) is the
// row r = 0, 8 more r = 1.
struct K4Numbers {
    uint32_t scales[2], mins[2], supers[2]; // bytes; both second levels
    PTX_FN void load(uint32_t block, int t) {
        const uint32_t at = uint32_t(t / 32 * 64 + t % 32 / 4 * 8), from = block + QK_W4_CODE_BYTES;
        const uint32_t upper = ptx::lds32(from + 256 + at / 2); // nibbles of both rows
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint32_t word = ptx::lds32(from + at + uint32_t(r * 4)), twice = ptx::prmt(upper, 0, r ? 0x3322 : 0x1100);
            scales[r] = word & 0x3f3f3f3fu; // nibbles 0 and 2 lie low in their byte, 1 and 3 high
            mins[r] = (twice << 2 & 0x003c003cu) | (twice >> 2 & 0x3c003c00u) | (word >> 6 & 0x03030303u);
            supers[r] = ptx::lds32(from + 384 + at + uint32_t(r * 4));
        }
    }
    PTX_FN float scale(int u, int r) const { return qe_mul(half_of(supers[r], 0), byte_of<0>(scales[r], u)); } // exact
};

template <bool kBf16> struct K4 {
    static constexpr int kSteps = 4, kBlockBytes = QK_K4_BLOCK_BYTES;
    using Context = KContext;
    using State = KState;
    uint32_t codes[2][4];
    K4Numbers numbers;
    KState state;
    PTX_FN void load(uint32_t block, int t, const State &s) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
        numbers.load(block, t);
        state = s;
    }
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float super = qe_mul(half_of(numbers.supers[r], 0), state.power[r]),
                        min_super = qe_mul(half_of(numbers.supers[r], 1), state.power[r]);
#pragma unroll
            for (int p = 0; p < 2; p++) { // 32 columns
                const int u = half * 2 + p;
                const float scale = qe_mul(super, byte_of<0>(numbers.scales[r], u)),
                            min = qe_mul(min_super, byte_of<0>(numbers.mins[r], u));
                const uint32_t w = codes[half][p * 2 + r], even = w & 0x0f0f0f0fu, odd = w >> 4 & 0x0f0f0f0fu;
#pragma unroll
                for (int i = 0; i < 4; i++) // the product is exact: one rounding to fp32, as in qe_dequantize()
                    f[p * 2 + i / 2][r + i % 2 * 2] = pair_of_floats<kBf16>(qe_fma(scale, byte_of<0>(even, i), min),
                                                                            qe_fma(scale, byte_of<0>(odd, i), min));
            }
        }
    }
};

// Bytes of 6-bit codes, from a word of their lower bits and one of the upper bits of both rows.
PTX_FN void six_bits(uint32_t low, uint32_t high, int r, uint32_t &even, uint32_t &odd) {
    even = (low & 0x0f0f0f0fu) | ((r ? high : high << 4) & 0x30303030u);
    odd = (low >> 4 & 0x0f0f0f0fu) | ((r ? high >> 2 : high << 2) & 0x30303030u);
}
struct K6Numbers {
    uint32_t scales[4], supers; // of a row 8 bytes, 128 above the scale; second levels of both rows
    PTX_FN void load(uint32_t block, int t) {
        const uint32_t at = uint32_t(t / 32 * 8 + t % 32 / 4), from = block + QK_W4_CODE_BYTES + 2048;
        ptx::lds128(scales, from + at * 16);
#pragma unroll
        for (int i = 0; i < 4; i++) scales[i] ^= 0x80808080u;
        supers = ptx::lds32(from + 512 + at * 4);
    }
    PTX_FN float inner(int u, int r) const { return byte_of<128>(scales[r * 2 + u / 4], u % 4); }
    PTX_FN float scale(int u, int r) const { return qe_mul(half_of(supers, r), inner(u, r)); } // exact
};
template <bool kBf16> struct K6 {
    static constexpr int kSteps = 4, kBlockBytes = QK_K6_BLOCK_BYTES;
    using Context = KContext;
    using State = KState;
    uint32_t codes[2][4], high[4];
    K6Numbers numbers;
    KState state;
    PTX_FN void load(uint32_t block, int t, const State &s) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
        ptx::lds128(high, block + QK_W4_CODE_BYTES + uint32_t(t) * 16);
        numbers.load(block, t);
        state = s;
    }
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float super = qe_mul(half_of(numbers.supers, r), state.power[r]);
#pragma unroll
            for (int p = 0; p < 2; p++) { // 32 columns
                uint32_t even, odd;
                six_bits(codes[half][p * 2 + r], high[half * 2 + p], r, even, odd);
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    const float scale = qe_mul(super, numbers.inner(half * 4 + p * 2 + step, r));
#pragma unroll
                    for (int i = step * 2; i < step * 2 + 2; i++)
                        f[p * 2 + step][r + i % 2 * 2] = pair_of_floats<kBf16>(qe_mul(scale, byte_of<32>(even, i)),
                                                                               qe_mul(scale, byte_of<32>(odd, i)));
                }
            }
        }
    }
};

// For int8 input: a block's codes as A fragments of mma.m16n8k32, 32 columns each, and what their sums are multiplied by.
struct K4Codes {
    static constexpr int kBlockBytes = QK_K4_BLOCK_BYTES, kUnitsPerStep = 1;
    static constexpr bool kMins = true;
    uint32_t codes[2][4];
    K4Numbers numbers;
    PTX_FN void load(uint32_t block, int t) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
        numbers.load(block, t);
    }
    PTX_FN void unpack(uint32_t (&f)[4], int p) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const uint32_t w = codes[p / 2][p % 2 * 2 + r];
            f[r] = w & 0x0f0f0f0fu, f[r + 2] = w >> 4 & 0x0f0f0f0fu;
        }
    }
    // Every column's code replaced by its group's min: their products sum up to what 7.4 calls msum.
    PTX_FN void unpack_mins(uint32_t (&f)[4], int p) const {
#pragma unroll
        for (int r = 0; r < 2; r++) f[r] = f[r + 2] = ptx::prmt(numbers.mins[r], 0, uint32_t(p * 0x1111));
    }
    PTX_FN float scale(int u, int r) const { return numbers.scale(u, r); }
    PTX_FN float min_super(int r) const { return half_of(numbers.supers[r], 1); }
};
struct K6Codes {
    static constexpr int kBlockBytes = QK_K6_BLOCK_BYTES, kUnitsPerStep = 2;
    static constexpr bool kMins = false;
    uint32_t from, codes[4], high[4]; // shared address of the thread's first word; the words of 64 columns
    K6Numbers numbers;
    PTX_FN void load(uint32_t block, int t) {
        from = block + uint32_t(t) * 16;
        ptx::lds128(high, block + QK_W4_CODE_BYTES + uint32_t(t) * 16);
        numbers.load(block, t);
    }
    PTX_FN void unpack(uint32_t (&f)[4], int p) { // in ascending order. c - 32: no byte carries into the next
        if (p % 2 == 0) ptx::lds128(codes, from + uint32_t(p / 2 * 2048));
#pragma unroll
        for (int r = 0; r < 2; r++) {
            six_bits(codes[p % 2 * 2 + r], high[p], r, f[r], f[r + 2]);
            f[r] = (f[r] + 0x60606060u) ^ 0x80808080u, f[r + 2] = (f[r + 2] + 0x60606060u) ^ 0x80808080u;
        }
    }
    PTX_FN float scale(int u, int r) const { return numbers.scale(u, r); }
};

} // namespace qk_cuda
