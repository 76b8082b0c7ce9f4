// Row cuda/w1a1_popc: signs x signs by AND and popcount, layout cuda/w1a1; any m and device. For the few tokens of decode,
// where reading the weight takes the time, and no shared memory or barrier stands between it and the counts.
//
// A warp counts 8 rows of W: lane 8 i + j holds 16-byte chunk j of row i and of row i + 4 of every tile of 1024 columns.
#include "cuda_backend.h"
#include "output.cuh"

namespace qk_cuda {
namespace w1a1_popc {

constexpr int kTokens = 4, kWarps = 4, kThreads = 32 * kWarps, kWarpRows = 8, kRows = kWarpRows * kWarps;

struct Args {
    const uint32_t *x;
    int64_t words; // of a row of x
    const unsigned char *w;
    int64_t band_bytes, n;
    int tiles;
    BitOutput output;
    Groups groups;
};

PTX_FN int common_ones(const uint4 &a, const uint4 &b) {
    return __popc(a.x & b.x) + __popc(a.y & b.y) + __popc(a.z & b.z) + __popc(a.w & b.w);
}
// Over the tiles of two rows; sum[r][t] is the lane's chunk alone.
PTX_FN void count(const Args &a, const unsigned char *rows, int row, int64_t m0, int64_t end, int (&sum)[2][kTokens]) {
    const int chunk = int(threadIdx.x) % 8;
    const unsigned char *from[2] = {rows + row * QK_W8_TILE_K + ((chunk ^ (row & 7)) << 4),
                                    rows + (row + 4) * QK_W8_TILE_K + ((chunk ^ ((row + 4) & 7)) << 4)};
#pragma unroll 4
    for (int tile = 0; tile < a.tiles; tile++) {
        const int64_t at = int64_t(tile) * (QK_W1_TILE_K / 32) + chunk * 4;
        uint4 w[2];
#pragma unroll
        for (int r = 0; r < 2; r++) w[r] = *reinterpret_cast<const uint4 *>(from[r] + int64_t(tile) * QK_W8_TILE_BYTES);
        if (at >= a.words) continue; // rows of x end at whole lines, tiles of w later
#pragma unroll
        for (int t = 0; t < kTokens; t++) {
            if (m0 + t >= end) break;
            const uint4 x = *reinterpret_cast<const uint4 *>(a.x + (m0 + t) * a.words + at);
#pragma unroll
            for (int r = 0; r < 2; r++) sum[r][t] += common_ones(w[r], x);
        }
    }
}

__global__ void __launch_bounds__(kThreads) gemm(const __grid_constant__ Args args) {
    const Tile tile = args.groups.tile(blockIdx.x, kTokens);
    if (tile.first >= tile.end) return;
    Args a = args;
    const int64_t bytes = tile.expert * a.groups.expert_bytes;
    a.w += bytes, a.output = args.output.of(tile.expert, bytes);
    const int lane = int(threadIdx.x) % 32;
    const int64_t n = int64_t(blockIdx.y) * kRows + int(threadIdx.x) / 32 * kWarpRows;
    if (n >= a.n) return;
    int sum[2][kTokens] = {};
    count(a, a.w + n / QK_W8_ROWS * a.band_bytes, int(n % QK_W8_ROWS) + lane / 8, tile.first, tile.end, sum);
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int t = 0; t < kTokens; t++) {
            int s = sum[r][t];
#pragma unroll
            for (int apart = 1; apart < 8; apart *= 2) s += __shfl_xor_sync(0xffffffffu, s, apart);
            int32_t four[4];
#pragma unroll
            for (int i = 0; i < 4; i++) four[i] = __shfl_sync(0xffffffffu, s, 8 * i);
            if (lane == r * kTokens + t && tile.first + t < tile.end) a.output.finish(tile.first + t, n + 4 * r, four);
        }
}

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    return integer_output(g, why);
}
void plan(const qk_device *, const qk_gemm *g, qk_plan *out) {
    out->grid[0] = uint32_t((g->m + kTokens - 1) / kTokens);
    out->grid[1] = uint32_t((g->w.n + kRows - 1) / kRows), out->grid[2] = 1;
    out->block = kThreads;
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    if (!args->x.bits || !args->x.ones)
        return qe_error_set(err, QE_E_ARGUMENT, "cuda/w1a1_popc: x was not prepared as signs");
    Args a{};
    a.x = args->x.bits, a.words = qk_bit_words(w.k);
    a.w = static_cast<const unsigned char *>(args->w->blob);
    a.band_bytes = qk_w1_band_bytes(w.k), a.n = w.n, a.tiles = int(qk_w1_tiles(w.k));
    a.output = {output_of(plan, args, a.band_bytes, qk_w1_tiles(w.k) * QK_W8_TILE_BYTES), args->x.ones};
    a.groups = groups_of(args);
    if (args->x.m == 0) return QE_OK;
    return launch(gemm, dim3(tiles_of(args, kTokens), plan->grid[1]), plan->block, 0, queue, "cuda/w1a1_popc", err, a);
}

} // namespace w1a1_popc
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w1a1_popc_row = {"cuda/w1a1_popc", &qk_cuda_w1a1, qk_cuda::w1a1_popc::supports,
                                                 qk_cuda::w1a1_popc::plan, qk_cuda::w1a1_popc::run};
