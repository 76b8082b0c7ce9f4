// Codes of layout cuda/wxa16 (cuda_backend.h) to A fragments in registers, unscaled: c - z exactly, table values rounded once
// to the input's 16-bit type. kUnits: fp32 scales per row and block of 128 columns, 1, 4 or 8; they are applied to sums.
#pragma once
#include "cuda_backend.h"
#include "pairs.cuh"

namespace qk_cuda {

struct WxContext {
    const float *table; // of 16 values, for 4-bit codes
    int has_zeros, zero;
};
PTX_FN void move_context(WxContext &c, int64_t bytes) {
    c.table = reinterpret_cast<const float *>(reinterpret_cast<const unsigned char *>(c.table) + bytes);
}
template <int kUnits> struct WxScales {
    float scales[kUnits][2];
    PTX_FN void load_scales(uint32_t numbers, int t) {
#pragma unroll
        for (int u = 0; u < kUnits; u++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                scales[u][r] = qe_f32_from_bits(ptx::lds32(numbers + uint32_t(u * 256 + t / 32 * 64 + t % 32 / 4 * 8 + r * 4)));
    }
    PTX_FN float scale(int unit, int r) const { return scales[unit][r]; }
};

// 8-bit integers: 1024 + c in fp16 or 2^23 + c in fp32, less the same with z.
template <bool kBf16, int kUnits> struct WxCodes8 : WxScales<kUnits> {
    static constexpr int kBlockBytes = 2 * QK_W4_CODE_BYTES + kUnits * 320;
    using Context = WxContext;
    using State = WxContext;
    static PTX_FN State begin(const Context &context) { return context; }
    uint32_t codes[4][4], zeros[kUnits]; // zeros: of row r in halfword r
    PTX_FN void load(uint32_t block, int t, const State &s) {
        const uint32_t numbers = block + 2 * QK_W4_CODE_BYTES, row = uint32_t(t / 32 * 16 + t % 32 / 4 * 2);
#pragma unroll
        for (int p = 0; p < 4; p++) ptx::lds128(codes[p], block + uint32_t(p * 2048 + t * 16));
        this->load_scales(numbers, t);
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            zeros[u] = uint32_t(s.zero) * 0x00010001u;
            if (s.has_zeros) {
                const uint32_t at = numbers + uint32_t(kUnits * 256 + u * 64) + row;
                zeros[u] = ptx::prmt(ptx::lds32(at & ~3u), 0, row & 2 ? 0x4342 : 0x4140);
            }
        }
    }
    PTX_FN void unpack(uint32_t (&f)[4][4], int half) const {
#pragma unroll
        for (int st = 0; st < 4; st++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint32_t w = codes[half * 2 + st / 2][st % 2 * 2 + r], z = zeros[(half * 4 + st) * kUnits / 8];
                f[st][r] = difference<0>(w, z, r);
                f[st][r + 2] = difference<2>(w, z, r);
            }
    }
    // Bytes kAt and kAt + 1 less the zero point of row r.
    template <int kAt> static PTX_FN uint32_t difference(uint32_t bytes, uint32_t zeros, int r) {
        if constexpr (kBf16) {
            const float base = of(ptx::prmt(zeros, kMagic, r ? 0x7652 : 0x7650));
            const float low = qe_sub(of(ptx::prmt(bytes, kMagic, 0x7650 + kAt)), base),
                        high = qe_sub(of(ptx::prmt(bytes, kMagic, 0x7651 + kAt)), base);
            return ptx::prmt(qe_f32_bits(low), qe_f32_bits(high), 0x7632); // integers up to 256: the lower halves are zeros
        } else {
            const uint32_t zero = ptx::prmt(zeros, 0x64646464u, r ? 0x4242 : 0x4040);
            return bits_of(__hsub2(halves_of(ptx::prmt(bytes, 0x64646464u, kAt ? 0x4342 : 0x4140)), halves_of(zero)));
        }
    }
    static constexpr uint32_t kMagic = 0x4b000000u;
    static PTX_FN float of(uint32_t bits) { return qe_f32_from_bits(bits); }
};

// 4-bit codes of a table: the low and the high bytes of its 16 values stay in registers and are picked by PRMT.
template <bool kBf16, int kUnits> struct WxTable4 : WxScales<kUnits> {
    static constexpr int kBlockBytes = QK_W4_CODE_BYTES + kUnits * 256;
    using Context = WxContext;
    struct State {
        uint32_t low[4], high[4];
    };
    static PTX_FN State begin(const Context &context) {
        State s{};
#pragma unroll
        for (int c = 0; c < 16; c++) {
            const uint32_t v = kBf16 ? qe_f32_to_bf16(context.table[c]) : qe_f32_to_f16(context.table[c]);
            s.low[c / 4] |= (v & 255) << c % 4 * 8;
            s.high[c / 4] |= (v >> 8) << c % 4 * 8;
        }
        return s;
    }
    uint32_t codes[2][4];
    State table;
    PTX_FN void load(uint32_t block, int t, const State &s) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
        table = s;
        this->load_scales(block + QK_W4_CODE_BYTES, t);
    }
    PTX_FN void unpack(uint32_t (&f)[4][4], int half) const {
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // Nibbles of a word, from bit 0: (step 0, columns 2c, 8 + 2c), (step 1, the same), then columns + 1.
                const uint32_t w = codes[half][p * 2 + r];
                uint32_t pairs[2][2]; // of the lower columns and of the upper: those of step 0, of step 1
#pragma unroll
                for (int i = 0; i < 2; i++) values((w & 0x77777777u) >> 16 * i, (w >> 3 & 0x11111111u) >> 16 * i, pairs[i]);
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    f[p * 2 + s][r] = ptx::prmt(pairs[0][s], pairs[1][s], 0x5410);
                    f[p * 2 + s][r + 2] = ptx::prmt(pairs[0][s], pairs[1][s], 0x7632);
                }
            }
    }
    // Four codes, their lower three bits and the highest, to four 16-bit values. PRMT looks at 16 bits of a selector.
    PTX_FN void values(uint32_t index, uint32_t highest, uint32_t (&out)[2]) const {
        const uint32_t mask = ptx::prmt(0x0000ff00u, 0, highest);
        const uint32_t low = ptx::lop3<0xca>(mask, ptx::prmt(table.low[2], table.low[3], index),
                                             ptx::prmt(table.low[0], table.low[1], index)),
                       high = ptx::lop3<0xca>(mask, ptx::prmt(table.high[2], table.high[3], index),
                                              ptx::prmt(table.high[0], table.high[1], index));
        out[0] = ptx::prmt(low, high, 0x5140), out[1] = ptx::prmt(low, high, 0x7362);
    }
};

} // namespace qk_cuda
