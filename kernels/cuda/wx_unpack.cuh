// Codes of layout cuda/wxa16 (cuda_backend.h) to A fragments in registers, unscaled: c - z exactly, table values rounded once
// to the input's 16-bit type. kUnits: fp32 scales per row and block of 128 columns, 1, 2, 4 or 8; they are applied to sums.
// Numbers of units stay in shared memory until they are needed: in registers they would leave no room for 128 tokens.
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
    static constexpr int kStepsPerUnit = 8 / kUnits; // steps of 16 columns
    uint32_t scales;                                 // shared address of the thread's first scale
    PTX_FN void load_scales(uint32_t numbers, int t) { scales = numbers + uint32_t(t / 32 * 64 + t % 32 / 4 * 8); }
    PTX_FN float scale(int unit, int r) const {
        return qe_f32_from_bits(ptx::lds32(scales + uint32_t(unit * 256 + r * 4)));
    }
};

// 8-bit integers: 1024 + c in fp16 or 2^23 + c in fp32, less the same with z. Both are made by one PRMT.
template <bool kBf16, int kUnits> struct WxCodes8 : WxScales<kUnits> {
    static constexpr int kBlockBytes = 2 * QK_W4_CODE_BYTES + kUnits * 320;
    using Context = WxContext;
    struct State {
        uint32_t constant, select; // z four times; the PRMT that widens the zero point of row r = 0
        int stored;
    };
    static PTX_FN State begin(const Context &context) {
        const uint32_t byte = context.has_zeros ? threadIdx.x % 32 / 4 * 2 & 3 : 0; // of an aligned word
        return {uint32_t(context.zero) * 0x01010101u, widen(0) + (kBf16 ? byte : byte * 0x0101), context.has_zeros};
    }
    static constexpr PTX_FN uint32_t widen(int i) { return kBf16 ? 0x7440 + i : 0x4040 + i * 0x0101; }
    uint32_t codes, zeros, base[2]; // shared addresses; the widened zero points of the unit
    State state;
    PTX_FN void load(uint32_t block, int t, const State &s) {
        const uint32_t numbers = block + 2 * QK_W4_CODE_BYTES;
        codes = block + uint32_t(t) * 16, zeros = (numbers + uint32_t(kUnits * 256 + t / 32 * 16 + t % 32 / 4 * 2)) & ~3u;
        state = s;
        this->load_scales(numbers, t);
    }
    PTX_FN void load_zeros(int unit) {
        uint32_t two = state.constant;
        if (state.stored) two = ptx::lds32(zeros + uint32_t(unit * 64));
#pragma unroll
        for (int r = 0; r < 2; r++) base[r] = ptx::prmt(two, kMagic, state.select + uint32_t(r) * (widen(1) - widen(0)));
    }
    // Pieces of kSteps steps, in ascending order: a unit's zero points are loaded where it begins.
    template <int kSteps> PTX_FN void unpack(uint32_t (&f)[kSteps][4], int piece) {
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < kSteps; i++) {
            const int step = piece * kSteps + i;
            if (step % 2 == 0) ptx::lds128(w, codes + uint32_t(step / 2 * 2048));
            if (step % WxScales<kUnits>::kStepsPerUnit == 0) load_zeros(step / WxScales<kUnits>::kStepsPerUnit);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                f[i][r] = difference<0>(w[step % 2 * 2 + r], base[r]);
                f[i][r + 2] = difference<2>(w[step % 2 * 2 + r], base[r]);
            }
        }
    }
    static constexpr uint32_t kMagic = kBf16 ? 0x4b000000u : 0x64646464u;
    // Bytes kFirst and kFirst + 1 less z.
    template <int kFirst> static PTX_FN uint32_t difference(uint32_t bytes, uint32_t z) {
        if constexpr (kBf16) {
            const float base = qe_f32_from_bits(z);
            const uint32_t lo = qe_f32_bits(qe_sub(qe_f32_from_bits(ptx::prmt(bytes, kMagic, widen(kFirst))), base)),
                           hi = qe_f32_bits(qe_sub(qe_f32_from_bits(ptx::prmt(bytes, kMagic, widen(kFirst + 1))), base));
            return ptx::prmt(lo, hi, 0x7632); // integers up to 256: the lower halves are zeros
        } else
            return bits_of(__hsub2(halves_of(ptx::prmt(bytes, kMagic, kFirst ? 0x4342 : 0x4140)), halves_of(z)));
    }
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
    uint32_t codes, words[4]; // shared address of the thread's first word; the words of 64 columns
    State table;
    PTX_FN void load(uint32_t block, int t, const State &s) {
        codes = block + uint32_t(t) * 16, table = s;
        this->load_scales(block + QK_W4_CODE_BYTES, t);
    }
    // Pieces of kSteps steps, in ascending order.
    template <int kSteps> PTX_FN void unpack(uint32_t (&f)[kSteps][4], int piece) {
        static_assert(kSteps % 2 == 0, "a word holds two steps");
#pragma unroll
        for (int i = 0; i < kSteps; i += 2) {
            const int step = piece * kSteps + i;
            if (step % 4 == 0) ptx::lds128(words, codes + uint32_t(step / 4 * 2048));
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint32_t w = words[step % 4 + r], index = w & 0x77777777u;
                values(index >> 16, w >> 19, f[i + 1][r], f[i + 1][r + 2]);
                values(index, w >> 3, f[i][r], f[i][r + 2]);
            }
        }
    }
    // Four codes to the values of columns 2c and 2c + 1, of 8 + 2c and 9 + 2c: from the lower three bits, and from the highest
    // where a selector's lowest bit is. PRMT reads 16 bits of a selector; its bit 3 would repeat a sign, of bytes 0 and 255 alike.
    PTX_FN void values(uint32_t index, uint32_t highest, uint32_t &first, uint32_t &second) const {
        const uint32_t upper = ptx::prmt(0xff00ff00u, 0xff00ff00u, highest);
        const uint32_t low = ptx::lop3<0xca>(upper, ptx::prmt(table.low[2], table.low[3], index),
                                             ptx::prmt(table.low[0], table.low[1], index)),
                       high = ptx::lop3<0xca>(upper, ptx::prmt(table.high[2], table.high[3], index),
                                              ptx::prmt(table.high[0], table.high[1], index));
        first = ptx::prmt(low, high, 0x5140), second = ptx::prmt(low, high, 0x7362);
    }
};

} // namespace qk_cuda
