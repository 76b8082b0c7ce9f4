// Row cuda/dense_sm80: layout cuda/any x fp16 or bf16 by mma.sync m16n8k16. Weights are dequantized first (dense.cuh), then
// both operands come from shared memory: Y^T = W X^T, 128 rows of W x kTok tokens a block, k in blocks of 64 columns, rows
// of 128 bytes with 16-byte chunks XORed with the row, filled by a cp.async ring, read by ldmatrix. Float sums restart in
// every chunk of k (quantization.md 7.4), inside the block or as splits of the grid: the same bits.
#include "dense.cuh"

namespace qk_cuda {
namespace dense_sm80 {

using dense::kRows;
constexpr int kBlockK = 64, kThreads = 256, kLeastShared = 99 * 1024; // of a block on sm_86 and sm_89

struct Args {
    const unsigned char *x;
    int64_t x_pitch, m; // m: where the expert's rows of x end
    dense::Pass pass;
    int64_t k_bytes; // of a row
    int blocks, split_blocks, chunk_blocks;
    Output output;
    Groups groups;
};
template <int kTok> struct Config {
    static constexpr int kWStage = kRows * 128, kStage = kWStage + kTok * 128;
    static constexpr int kFit = kLeastShared / kStage, kStages = kFit < 4 ? kFit : 4; // of few tokens two blocks fit an A100
    static constexpr int kTile = tile_bytes<kRows, kTok>();
    static constexpr int kSharedBytes = kStages * kStage > kTile ? kStages * kStage : kTile;
    // A warp computes 16 rows of all tokens; of many tokens 32 rows of half of them: it reads fewer bytes of shared memory.
    static constexpr int kRowTiles = kTok >= 64 ? 2 : 1, kWarpTok = kTok / kRowTiles, kRowWarps = 8 / kRowTiles;
    static_assert(kStages >= 3 && kSharedBytes <= kLeastShared, "every device of sm_80 and later runs it");
};

// What a thread copies of every k-block: 16-byte chunks of one column of chunks. Rows and columns beyond the last become zeros.
template <int kTok> struct Loader {
    static constexpr int kApart = kThreads / 8, kWCopies = kRows / kApart, kXCopies = (kTok + kApart - 1) / kApart;
    const unsigned char *w, *x;
    int64_t left; // bytes of a row from the thread's chunk on
    uint32_t to;
    int w_rows, x_rows; // copies whose rows exist

    PTX_FN Loader(const Args &a, int64_t n0, int64_t m0, int kb) {
        const int row = int(threadIdx.x) / 8, chunk = int(threadIdx.x) % 8;
        const int64_t at = int64_t(kb) * 128 + chunk * 16;
        w = a.pass.w + (n0 + row) * a.pass.pitch + at, x = a.x + (m0 + row) * a.x_pitch + at;
        w_rows = copies(a.pass.rows - n0, row, kWCopies), x_rows = row < kTok ? copies(a.m - m0, row, kXCopies) : 0;
        left = a.k_bytes - at;
        to = uint32_t(row * 128 + ((chunk ^ (row & 7)) << 4));
    }
    static PTX_FN int copies(int64_t rows, int row, int most) {
        const int64_t n = (rows - row + kApart - 1) / kApart;
        return rows <= row ? 0 : n < most ? int(n) : most;
    }
    PTX_FN void load(const Args &a, uint32_t stage) {
        const uint32_t bytes = left <= 0 ? 0 : left < 16 ? uint32_t(left) : 16;
#pragma unroll
        for (int i = 0; i < kWCopies; i++) copy(stage + uint32_t(i * kApart * 128), w + i * kApart * a.pass.pitch, i < w_rows ? bytes : 0, a);
        if (row_of_x())
#pragma unroll
            for (int i = 0; i < kXCopies; i++)
                copy(stage + uint32_t((kRows + i * kApart) * 128), x + i * kApart * a.x_pitch, i < x_rows ? bytes : 0, a);
        w += 128, x += 128, left -= 128;
    }
    static PTX_FN bool row_of_x() { return kTok >= kApart || int(threadIdx.x) / 8 < kTok; }
    PTX_FN void copy(uint32_t stage, const unsigned char *from, uint32_t bytes, const Args &a) const {
        ptx::cp_async16(stage + to, bytes ? from : a.x, bytes);
    }
};

template <bool kBf16> PTX_FN void mma(float (&d)[4], const uint32_t (&w)[4], uint32_t x0, uint32_t x1) {
    const uint32_t x[2] = {x0, x1};
    if constexpr (kBf16)
        ptx::mma_m16n8k16_bf16(d, w, x);
    else
        ptx::mma_m16n8k16_f16(d, w, x);
}
// One k-block, 16 columns a step.
template <bool kBf16, int kTok>
PTX_FN void multiply(uint32_t w_from, uint32_t x_from, float (&acc)[kTok / 8][4]) {
    using C = Config<kTok>;
#pragma unroll
    for (int step = 0; step < 4; step++) {
        uint32_t w[C::kRowTiles][4];
#pragma unroll
        for (int r = 0; r < C::kRowTiles; r++)
            ptx::ldmatrix_x4(w[r], (w_from ^ uint32_t(step << 5)) + uint32_t(r * 16 * 128));
#pragma unroll
        for (int j = 0; j < C::kWarpTok / 16; j++) {
            uint32_t x[4];
            ptx::ldmatrix_x4(x, (x_from ^ uint32_t(step << 5)) + uint32_t(j * 16 * 128));
#pragma unroll
            for (int r = 0; r < C::kRowTiles; r++) {
                mma<kBf16>(acc[r * C::kWarpTok / 8 + 2 * j], w[r], x[0], x[1]);
                mma<kBf16>(acc[r * C::kWarpTok / 8 + 2 * j + 1], w[r], x[2], x[3]);
            }
        }
    }
}
// Sums leave without their row's power of two: an exact product.
template <int kTok> PTX_FN void put(const Args &a, unsigned char *smem, int64_t n0, float (&sums)[kTok / 8][4]) {
    using C = Config<kTok>;
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
#pragma unroll
    for (int r = 0; r < C::kRowTiles; r++) {
        const int rows = warp % C::kRowWarps * C::kRowTiles + r; // 16 of the tile's 128
        float inverse[2];
#pragma unroll
        for (int h = 0; h < 2; h++) inverse[h] = dense::inverse_power(a.pass, n0 + rows * 16 + h * 8 + lane / 4);
#pragma unroll
        for (int j = 0; j < C::kWarpTok / 8; j++) {
            float(&d)[4] = sums[r * C::kWarpTok / 8 + j];
#pragma unroll
            for (int e = 0; e < 4; e++) d[e] = qe_mul(d[e], inverse[e / 2]);
            put_fragment<kRows>(smem, rows, lane, warp / C::kRowWarps * C::kWarpTok / 8 + j, d);
        }
    }
}

template <bool kBf16, int kTok>
__global__ void __launch_bounds__(kThreads, 1) gemm(const __grid_constant__ Args args, const Partial<float> partial) {
    using C = Config<kTok>;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem), ring = uint32_t(C::kStages * C::kStage);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const Tile rows = dense::tile_of(args.groups, args.pass.expert, blockIdx.x, kTok);
    if (rows.first >= rows.end) return;
    Args a = args;
    a.m = rows.end, a.output = args.output.of(rows.expert, 0);
    const int64_t n0 = int64_t(blockIdx.y) * kRows;
    const int begin = int(blockIdx.z) * a.split_blocks,
              end = begin + a.split_blocks < a.blocks ? begin + a.split_blocks : a.blocks;
    Loader<kTok> loader(a, n0, rows.first, begin);
#pragma unroll
    for (int s = 0; s < C::kStages - 1; s++) {
        if (begin + s < end) loader.load(a, base + uint32_t(s * C::kStage));
        ptx::cp_async_commit();
    }
    // Where ldmatrix reads: 8 rows a matrix; the two halves of 16 columns are for W the upper, for x the middle lanes.
    const int w_row = warp % C::kRowWarps * C::kRowTiles * 16 + (lane & 15),
              x_row = warp / C::kRowWarps * C::kWarpTok + (lane & 7) + (lane >> 4) * 8;
    const uint32_t lane_w = uint32_t(w_row * 128 + (((lane >> 4) ^ (w_row & 7)) << 4)),
                   lane_x = uint32_t((kRows + x_row) * 128 + (((lane >> 3 & 1) ^ (x_row & 7)) << 4));
    float acc[kTok / 8][4], total[kTok / 8][4] = {};
    uint32_t read = 0, write = uint32_t((C::kStages - 1) * C::kStage);
    for (int chunk = begin; chunk < end; chunk += a.chunk_blocks) {
        const int stop = chunk + a.chunk_blocks < end ? chunk + a.chunk_blocks : end;
#pragma unroll
        for (int j = 0; j < kTok / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[j][e] = 0;
#pragma unroll 1
        for (int kb = chunk; kb < stop; kb++) {
            ptx::cp_async_wait<C::kStages - 2>();
            __syncthreads();
            if (kb + C::kStages - 1 < end) loader.load(a, base + write);
            ptx::cp_async_commit();
            multiply<kBf16, kTok>(base + read + lane_w, base + read + lane_x, acc);
            read = read + C::kStage == ring ? 0 : read + C::kStage, write = write + C::kStage == ring ? 0 : write + C::kStage;
        }
#pragma unroll
        for (int j = 0; j < kTok / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) total[j][e] = chunk == begin ? acc[j][e] : plus(total[j][e], acc[j][e]);
    }
    ptx::cp_async_wait<0>();
    __syncthreads(); // the ring is idle: it becomes the tile of sums
    put<kTok>(a, smem, n0, total);
    __syncthreads();
    store_tile<kRows, kTok>(smem, int(threadIdx.x), kThreads, a.m, rows.first, a.pass.first + n0, int(blockIdx.z), partial,
                            a.output);
}

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr int bytes = Config<32>::kSharedBytes > Config<128>::kSharedBytes ? Config<32>::kSharedBytes : Config<128>::kSharedBytes;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    return dense::supports(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    const int64_t most = qk_tile_m(g);
    const int instance = most <= 16 ? 0 : most <= 32 ? 1 : most <= 64 ? 2 : 3, tokens = 16 << instance;
    const int blocks = int((g->w.k + kBlockK - 1) / kBlockK), bands = int(dense::pass_bands(device, g->w, g->x.code));
    const int64_t tiles = bands * ((g->m + tokens - 1) / tokens);
    // Tiles of a pass that fill less than half of the device: k is split at chunk borders.
    const int split = (g->m > 64 ? tiles * 2 <= device->units : tiles < device->units) ? dense::chunk_blocks_of(g->w, kBlockK) : blocks;
    const int shared[] = {Config<16>::kSharedBytes, Config<32>::kSharedBytes, Config<64>::kSharedBytes,
                          Config<128>::kSharedBytes};
    out->variant = instance;
    out->splits = (blocks + split - 1) / split;
    out->grid[0] = uint32_t((g->m + tokens - 1) / tokens), out->grid[1] = uint32_t(bands);
    out->grid[2] = uint32_t(out->splits);
    out->block = kThreads, out->shared_bytes = uint32_t(shared[instance]);
    out->workspace_bytes = dense::partial_bytes(g, out->splits) + dense::pass_bytes(g->w, g->x.code, bands);
}
template <bool kBf16, int kTok>
qe_status run_tile(const qk_plan *plan, const qk_gemm_args *args, Args a, const qk_queue *queue, qe_error *err) {
    const char *name = plan->row->name;
    const Partial<float> partial = dense::partial_of(plan, args);
    const auto multiply_pass = [&](const dense::Pass &pass) {
        a.pass = pass;
        const dim3 grid(dense::tiles_of_expert(args, kTok), uint32_t((pass.rows + kRows - 1) / kRows), plan->grid[2]);
        return launch(gemm<kBf16, kTok>, grid, kThreads, Config<kTok>::kSharedBytes, queue, name, err, a, partial);
    };
    const qe_status status = dense::each_pass(plan, args, queue, err, multiply_pass);
    if (status != QE_OK || !partial.sums) return status;
    return launch_reduce<float>(plan, args, a.output, queue, name, err);
}
template <bool kBf16>
qe_status run_type(const qk_plan *plan, const qk_gemm_args *args, const Args &a, const qk_queue *queue, qe_error *err) {
    switch (plan->variant) {
    case 0:
        return run_tile<kBf16, 16>(plan, args, a, queue, err);
    case 1:
        return run_tile<kBf16, 32>(plan, args, a, queue, err);
    case 2:
        return run_tile<kBf16, 64>(plan, args, a, queue, err);
    default:
        return run_tile<kBf16, 128>(plan, args, a, queue, err);
    }
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    Args a{};
    const qe_status status = dense::begin(plan, args, kBlockK, &a, err);
    if (status != QE_OK || args->x.m == 0) return status;
    a.x = static_cast<const unsigned char *>(args->x.data), a.x_pitch = args->x.ld * 2, a.k_bytes = args->x.k * 2;
    return args->x.quant.code == QE_CODE_BF16 ? run_type<true>(plan, args, a, queue, err)
                                              : run_type<false>(plan, args, a, queue, err);
}

} // namespace dense_sm80
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_dense_sm80_row = {"cuda/dense_sm80", &qk_cuda_any, qk_cuda::dense_sm80::supports,
                                                  qk_cuda::dense_sm80::plan, qk_cuda::dense_sm80::run};
