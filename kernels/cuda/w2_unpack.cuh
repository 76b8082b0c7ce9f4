// Codes of 1 and 2 bits from the blocks of layout cuda/w2a8 (cuda_backend.h) to A fragments of int8 in registers. Four codes
// are the low bits of four nibbles: shifted into place they are what PRMT takes as selectors, so one table of four values
// turns them into four bytes, whatever the zero point, and signs (-1, +1) are no special case.
#pragma once
#include "cuda_backend.h"
#include "ptx.cuh"

namespace qk_cuda {

struct W2Table {
    uint32_t values; // byte c: the value of code c
};
template <int kBits> struct W2A8 {
    using Context = W2Table;
    using State = W2Table;
    static PTX_FN State begin(const Context &context) { return context; }
    static constexpr int kSteps = 2; // fragments of 32 columns in half a block
    static constexpr int kBlockBytes = QK_W2_BIT_BYTES * kBits;
    uint32_t codes[2 * kBits], table;
    PTX_FN void load(uint32_t block, int t, const State &state) {
        if constexpr (kBits == 2)
            ptx::lds128(codes, block + uint32_t(t) * 16);
        else
#pragma unroll
            for (int r = 0; r < 2; r++) codes[r] = ptx::lds32(block + uint32_t(r * 512 + t * 4));
        table = state.values;
    }
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int st = 0; st < kSteps; st++)
#pragma unroll
            for (int i = 0; i < 4; i++) { // row i % 2, columns from 16 * (i / 2)
                const uint32_t w = codes[kBits == 2 ? half * 2 + i % 2 : i % 2];
                const int shift = kBits == 2 ? 16 * st + 2 * (i / 2) : 16 * half + 2 * st + i / 2;
                f[st][i] = ptx::prmt(table, 0, w >> shift & (kBits == 2 ? 0x3333u : 0x1111u));
            }
    }
};

// The table of a weight, on the host.
inline W2Table w2_table(const qe_quant &q) {
    W2Table t{};
    for (int c = 0; c < 1 << q.bits; c++)
        t.values |= uint32_t(uint8_t(q.code == QE_CODE_SIGN ? 2 * c - 1 : c - q.zero_const)) << 8 * c;
    return t;
}

} // namespace qk_cuda
