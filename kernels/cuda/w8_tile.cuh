// A fragments of tiles that lie as ldmatrix reads them, 128 rows x 128 bytes (layouts cuda/w8a8 and cuda/w1a1): no unpacking.
#pragma once
#include "cuda_backend.h"
#include "ptx.cuh"

namespace qk_cuda {

struct NoContext {};
struct W8Tile {
    using Context = NoContext;
    using State = NoContext;
    static constexpr int kSteps = 2, kBlockBytes = QK_W8_TILE_BYTES / 2;
    static PTX_FN State begin(const Context &) { return {}; }
    uint32_t rows; // where the lane reads the first 32 bytes of its warp's 16 rows
    // The 16-byte chunks of a row are XORed with its number; a step moves to other chunks by XOR.
    PTX_FN void load(uint32_t block, int t, const State &) {
        const int lane = t % 32, row = t / 32 * 16 + (lane & 15);
        rows = block + uint32_t(row * QK_W8_TILE_K + (((lane >> 4) ^ (row & 7)) << 4));
    }
    PTX_FN void unpack(uint32_t (&f)[kSteps][4], int half) const {
#pragma unroll
        for (int st = 0; st < kSteps; st++) ptx::ldmatrix_x4(f[st], rows ^ uint32_t(half * 64 + st * 32));
    }
};

} // namespace qk_cuda
