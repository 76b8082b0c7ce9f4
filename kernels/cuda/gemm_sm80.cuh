// The GEMM of sm_80 and later for weights that are unpacked in registers: Y^T = W X^T with mma.sync, weights as A.
//
// A block computes 128 rows of W x kTok tokens, eight warps of 16 rows. A cp.async ring brings the packed 128 x 128 block
// of W (in fragment order: no shuffle, no ldmatrix) and the tokens (128-byte rows, chunks XORed with the row, read by
// ldmatrix). Formats that promote keep codes unscaled in the product and add part * scale in fp32 after every unit of
// columns; the others scale in registers. Float sums restart in every chunk of k (quantization.md 7.4).
#pragma once
#include <type_traits>

#include "output.cuh"

namespace qk_cuda {
namespace sm80 {

constexpr int kRows = 128, kBlockK = 128, kThreads = 256;
constexpr int kLeastShared = 99 * 1024; // of a block on sm_86 and sm_89
constexpr int kSmallStage = 8 * 1024;   // of so few bytes it takes more stages in flight to cover the latency of memory,
constexpr int kSmallRing = 48 * 1024;   // and still two blocks on a unit

// Columns of k in the 128 bytes of x that a k-block takes: 128 values, or what the format says in kColumns (bits).
template <class F, class = void> struct Block {
    static constexpr int kColumns = kBlockK;
};
template <class F> struct Block<F, std::void_t<decltype(F::kColumns)>> {
    static constexpr int kColumns = F::kColumns;
};

// How sums become y: as the format says in Out.
template <class F, class = void> struct OutputOf {
    using Type = Output;
};
template <class F> struct OutputOf<F, std::void_t<typename F::Out>> {
    using Type = typename F::Out;
};

template <class F> struct Args {
    const unsigned char *x;
    int64_t x_pitch, x_bytes, m; // bytes of a row, and of its k values
    const unsigned char *w;
    int64_t head_bytes, band_bytes;
    int block_bytes, blocks, split_blocks, chunk_blocks;
    typename F::Context context; // what the format wants to know of the layout
    typename OutputOf<F>::Type output;
    Groups groups;
    PTX_FN Args of(const Tile &t) const { // with the weight and the rows of a tile
        Args a = *this;
        const int64_t bytes = t.expert * groups.expert_bytes;
        a.w += bytes, a.m = t.end, a.output = output.of(t.expert, bytes);
        move_context(a.context, bytes);
        return a;
    }
};

// A format F has: Acc, Context, kXBytes (of one value of x), kBlockBytes (largest block of 64 x 128), kSteps, kTotals
// (sums restart in chunks), kPromotes; State and begin(context), what a thread keeps for the whole call; load(), unpack(),
// mma(), and promoting ones unit_ends(step), scale(step, row).
template <class F, int kTok> struct Config {
    static constexpr int kXTile = kTok * 128, kXStage = kXTile * F::kXBytes, kStage = kXStage + 2 * F::kBlockBytes;
    static constexpr int kSmall = kSmallRing / kStage < 8 ? kSmallRing / kStage : 8;
    // 16-bit formats that scale in registers leave room for a second block, or a third of 16 tokens: ptxas is told. One unpacks
    // while another multiplies; where two rings of two stages fit every device, they are that small.
    static constexpr int kBlocks = F::kXBytes == 1 || F::kPromotes || kPowers<F> ? 1 : kTok == 16 ? 3 : 2;
    static constexpr bool kTwoFit = kBlocks == 2 && 2 * (2 * kStage + 1024) <= kLeastShared + 1024;
    static constexpr int kStages = kStage <= kSmallStage ? kSmall : 3 * kStage <= kLeastShared && !kTwoFit ? 3 : 2;
    // A warp computes 16 rows of all tokens; of 128 tokens 32 rows of half of them: it reads fewer bytes of shared memory.
    // Formats that promote keep a row of scales, and have no tile of 128 tokens.
    static constexpr int kRowTiles = kTok == 128 ? 2 : 1, kWarpTok = kTok / kRowTiles, kRowWarps = 8 / kRowTiles;
    static constexpr int kTile = tile_bytes<kRows, kTok>();
    static constexpr int kSharedBytes = kStages * kStage > kTile ? kStages * kStage : kTile;
    static_assert(kSharedBytes <= kLeastShared, "every device of sm_80 and later runs it");
    static_assert(kStage % 128 == 0, "chunks are found by XOR");
};

// What a thread copies of every k-block: 16-byte chunks of one column of chunks of x, and of the packed block. Addresses
// move on by additions: the loop of a k-block has few instructions to hide them behind.
template <class F, int kTok> struct Loader {
    using C = Config<F, kTok>;
    static constexpr int kXCopies = (kTok * 8 * F::kXBytes + kThreads - 1) / kThreads;
    static constexpr int kWCopies = (2 * F::kBlockBytes + kThreads * 16 - 1) / (kThreads * 16);
    const unsigned char *x[kXCopies], *w, *nothing;
    int64_t left; // bytes of a row from the thread's chunk of tile 0 on
    uint32_t x_to;
    int w_bytes;

    PTX_FN Loader(const Args<F> &a, const unsigned char *band, int64_t m0, int kb) {
        const int t = int(threadIdx.x), chunk = t % 8;
        const int64_t at = int64_t(kb) * 128 * F::kXBytes + chunk * 16;
#pragma unroll
        for (int i = 0; i < kXCopies; i++) {
            const int row = (i * (kThreads / 8) + t / 8) % kTok, tile = tile_of(i);
            const int64_t m = m0 + row;
            x[i] = m < a.m && tile < F::kXBytes ? a.x + m * a.x_pitch + at + tile * 128 : nullptr;
        }
        nothing = a.x, left = a.x_bytes - at;
        x_to = uint32_t(t / 8 % kTok * 128 + ((chunk ^ (t / 8 & 7)) << 4));
        w = band + int64_t(kb) * 2 * a.block_bytes + t * 16, w_bytes = 2 * a.block_bytes - t * 16;
    }
    static PTX_FN int tile_of(int i) { return (i * (kThreads / 8) + int(threadIdx.x) / 8) / kTok; }
    PTX_FN void load(const Args<F> &a, uint32_t stage) {
#pragma unroll
        for (int i = 0; i < kXCopies; i++) {
            const int tile = tile_of(i);
            if (tile >= F::kXBytes) break;
            const int64_t rest = left - tile * 128;
            const uint32_t bytes = !x[i] || rest <= 0 ? 0 : rest < 16 ? uint32_t(rest) : 16;
            constexpr int kRowsApart = kTok < kThreads / 8 ? kTok : kThreads / 8;
            const uint32_t to = x_to + uint32_t(tile * C::kXTile + i * kRowsApart % kTok * 128);
            ptx::cp_async16(stage + to, bytes ? x[i] : nothing, bytes);
            if (x[i]) x[i] += 128 * F::kXBytes;
        }
        left -= 128 * F::kXBytes;
#pragma unroll
        for (int i = 0; i < kWCopies; i++)
            if (i * kThreads * 16 < w_bytes)
                ptx::cp_async16(stage + uint32_t(C::kXStage) + threadIdx.x * 16 + uint32_t(i * kThreads * 16),
                                w + i * kThreads * 16);
        w += 2 * a.block_bytes;
    }
};

// acc += part * scale of the fragment's two rows, part = 0.
template <int kTiles, class T>
PTX_FN void promote(float scale0, float scale1, T (&part)[kTiles][4], T (&acc)[kTiles][4]) {
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            acc[j][e] = qe_fma(part[j][e], e < 2 ? scale0 : scale1, acc[j][e]);
            part[j][e] = 0;
        }
}
// Half a block, 64 columns; a step is the 32 bytes of x that feed one product. x: where the lane reads a stage's tokens.
template <class F, int kTok, class T, int kSums, int kParts>
PTX_FN void multiply(F (&w)[Config<F, kTok>::kRowTiles], int half, uint32_t x, T (&acc)[kSums][4],
                     T (&part)[kParts][4]) {
    using C = Config<F, kTok>;
    uint32_t f[C::kRowTiles][F::kSteps][4];
#pragma unroll
    for (int r = 0; r < C::kRowTiles; r++) w[r].unpack(f[r], half);
#pragma unroll
    for (int st = 0; st < F::kSteps; st++) {
        const int chunk = (F::kXBytes == 2 ? 0 : half * 4) + st * 2, tile = F::kXBytes == 2 ? half : 0;
        const uint32_t from = (x ^ uint32_t(chunk << 4)) + uint32_t(tile * C::kXTile);
#pragma unroll
        for (int j = 0; j < C::kWarpTok / 16; j++) {
            uint32_t b[4];
            ptx::ldmatrix_x4(b, from + uint32_t(j * 16 * 128));
            const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
            if constexpr (F::kPromotes) {
                F::mma(part[2 * j], f[0][st], low);
                F::mma(part[2 * j + 1], f[0][st], high);
            } else {
#pragma unroll
                for (int r = 0; r < C::kRowTiles; r++) {
                    F::mma(acc[r * C::kWarpTok / 8 + 2 * j], f[r][st], low);
                    F::mma(acc[r * C::kWarpTok / 8 + 2 * j + 1], f[r][st], high);
                }
            }
        }
        if constexpr (F::kPromotes) {
            const int step = half * F::kSteps + st;
            if (w[0].unit_ends(step)) promote(w[0].scale(step, 0), w[0].scale(step, 1), part, acc);
        }
    }
}

template <class F> PTX_FN typename F::State state_of(const typename F::Context &context, const unsigned char *band, int row) {
    if constexpr (kPowers<F>)
        return F::begin(context, band, row);
    else
        return F::begin(context);
}
template <class C> PTX_FN uint32_t next_stage(uint32_t stage, uint32_t base) {
    const uint32_t next = stage + uint32_t(C::kStage);
    return next == base + uint32_t(C::kStages * C::kStage) ? base : next;
}

template <class F, int kTok>
__global__ void __launch_bounds__(kThreads, Config<F, kTok>::kBlocks)
    gemm(const __grid_constant__ Args<F> args, const Partial<typename F::Acc> partial) {
    using C = Config<F, kTok>;
    using Acc = typename F::Acc;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const Tile rows = args.groups.tile(blockIdx.x, kTok);
    if (rows.first >= rows.end) return;
    const Args<F> a = args.of(rows);
    const int64_t m0 = rows.first;
    const unsigned char *band = a.w + int64_t(blockIdx.y) * a.band_bytes;
    const int begin = int(blockIdx.z) * a.split_blocks,
              end = begin + a.split_blocks < a.blocks ? begin + a.split_blocks : a.blocks;

    const typename F::State state = state_of<F>(a.context, band, warp * 16 + lane / 4);
    Acc acc[kTok / 8][4] = {}, total[F::kTotals ? kTok / 8 : 1][4] = {}, part[F::kPromotes ? kTok / 8 : 1][4] = {};
    Loader<F, kTok> loader(a, band, m0, begin);
#pragma unroll
    for (int s = 0; s < C::kStages - 1; s++) {
        if (begin + s < end) loader.load(a, base + uint32_t(s * C::kStage));
        ptx::cp_async_commit();
    }
    // Where ldmatrix reads: rows of 128 bytes, chunks XORed with the row; a step moves to other chunks by XOR.
    const int row = warp / C::kRowWarps * C::kWarpTok + (lane & 7) + (lane >> 4) * 8;
    const uint32_t lane_x = uint32_t(row * 128 + (((lane >> 3 & 1) ^ (row & 7)) << 4));
    uint32_t read = base, write = base + uint32_t((C::kStages - 1) * C::kStage);
    int chunk_left = a.chunk_blocks; // k-blocks until the sums restart
    bool first = true;
    for (int kb = begin; kb < end; kb++) {
        ptx::cp_async_wait<C::kStages - 2>();
        __syncthreads();
        if (kb + C::kStages - 1 < end) loader.load(a, write);
        ptx::cp_async_commit();
        if constexpr (F::kTotals) {
            if (chunk_left == 0) {
#pragma unroll
                for (int j = 0; j < kTok / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        total[j][e] = first ? acc[j][e] : plus(total[j][e], acc[j][e]);
                        acc[j][e] = 0;
                    }
                chunk_left = a.chunk_blocks, first = false;
            }
            chunk_left--;
        }
        F w[C::kRowTiles];
#pragma unroll
        for (int r = 0; r < C::kRowTiles; r++) {
            const int rows = warp % C::kRowWarps * C::kRowTiles + r; // 16 of the tile's 128
            w[r].load(read + uint32_t(C::kXStage + rows / 4 * a.block_bytes), rows % 4 * 32 + lane, state);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) multiply<F, kTok>(w, half, read + lane_x, acc, part);
        read = next_stage<C>(read, base), write = next_stage<C>(write, base);
    }
    if constexpr (F::kTotals)
        if (!first) {
#pragma unroll
            for (int j = 0; j < kTok / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[j][e] = plus(total[j][e], acc[j][e]);
        }
    if constexpr (kPowers<F>) {
        static_assert(C::kRowTiles == 1, "two rows a thread");
#pragma unroll
        for (int j = 0; j < kTok / 8; j++) leave_powers(state, acc[j], 4);
    }

    ptx::cp_async_wait<0>();
    __syncthreads(); // the ring is idle: it becomes the tile of sums
#pragma unroll
    for (int r = 0; r < C::kRowTiles; r++)
#pragma unroll
        for (int j = 0; j < C::kWarpTok / 8; j++)
            put_fragment<kRows>(smem, warp % C::kRowWarps * C::kRowTiles + r, lane,
                                warp / C::kRowWarps * C::kWarpTok / 8 + j, acc[r * C::kWarpTok / 8 + j]);
    __syncthreads();
    store_tile<kRows, kTok>(smem, int(threadIdx.x), kThreads, a.m, m0, int64_t(blockIdx.y) * kRows, int(blockIdx.z),
                            partial, a.output);
}

// ---- plans and launches of a family ------------------------------------------------------------------------------
// Instances are tiles of 16, 32, 64 and (8-bit input) 128 tokens. Splits as on sm_90: up to 8, or at chunk borders, where
// tiles fill less than half of the device.
// What a format of 16-bit input needs; bytes: of shared memory.
inline bool takes_halves(const qk_device *device, const qk_gemm *g, int bytes, qk_why *why) {
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (g->x.code != QE_CODE_F16 && g->x.code != QE_CODE_BF16) return qk_no(why, "input is not of 16 bits");
    if (g->w.chunk_k % kBlockK && g->w.chunk_k < g->w.k) return qk_no(why, "chunks of %lld columns", (long long)g->w.chunk_k);
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    return float_output(g, why);
}
template <class F>
void plan_of(const qk_device *device, const qk_gemm *g, int largest, int chunk_blocks, qk_plan *out) {
    const int64_t most = qk_tile_m(g);
    const int fits = most <= 16 ? 0 : most <= 32 ? 1 : most <= 64 ? 2 : 3;
    const int instance = fits < largest ? fits : largest, tokens = 16 << instance;
    constexpr int kColumns = Block<F>::kColumns;
    const int blocks = int((g->w.k + kColumns - 1) / kColumns), bands = int((g->w.n + kRows - 1) / kRows);
    const int64_t tiles = bands * ((g->m + tokens - 1) / tokens);
    // Tiles of 64 tokens: units count as often as blocks share one.
    const int together = int((device->unit_bytes + 1024) / (Config<F, 64>::kSharedBytes + 1024));
    const int64_t slots = instance == 2 && together > 1 ? int64_t(device->units) * Config<F, 64>::kBlocks : device->units;
    int split = blocks;
    if (g->m > 64 ? tiles * 2 <= slots : tiles < slots) {
        int splits = slots / tiles < 8 ? int(slots / tiles) : 8;
        while (splits > 1 && blocks / splits * kColumns < 4 * kBlockK) splits--;
        split = chunk_blocks ? chunk_blocks : (blocks + splits - 1) / splits;
    }
    out->variant = instance;
    out->splits = (blocks + split - 1) / split;
    out->grid[0] = uint32_t((g->m + tokens - 1) / tokens), out->grid[1] = uint32_t(bands);
    out->grid[2] = uint32_t(out->splits);
    out->block = kThreads;
    const int bytes[] = {Config<F, 16>::kSharedBytes, Config<F, 32>::kSharedBytes, Config<F, 64>::kSharedBytes};
    out->shared_bytes = uint32_t(bytes[instance < 3 ? instance : 2]);
    if constexpr (!F::kTotals)
        if (instance == 3) out->shared_bytes = uint32_t(Config<F, 128>::kSharedBytes);
    if (out->splits > 1) out->workspace_bytes = uint64_t(out->splits) * uint64_t(g->m) * uint64_t(partial_ld(g->w.n)) * 4;
}
template <class F, int kTok>
qe_status launch_kernel(void (*kernel)(Args<F>, Partial<typename F::Acc>), const qk_plan *plan, const qk_gemm_args *args,
                        const Args<F> &a, const qk_queue *queue, const char *name, qe_error *err) {
    using Acc = typename F::Acc;
    const Partial<Acc> partial{plan->splits > 1 ? static_cast<Acc *>(args->workspace) : nullptr,
                               partial_ld(args->w->shape.n)};
    const dim3 grid(tiles_of(args, kTok), plan->grid[1], plan->grid[2]);
    const qe_status status = launch(kernel, grid, kThreads, plan->shared_bytes, queue, name, err, a, partial);
    if (status != QE_OK || !partial.sums) return status;
    return launch_reduce<Acc>(plan, args, a.output, queue, name, err);
}
template <class F, int kTok>
qe_status launch_tile(const qk_plan *plan, const qk_gemm_args *args, const Args<F> &a, const qk_queue *queue,
                      const char *name, qe_error *err) {
    return launch_kernel<F, kTok>(gemm<F, kTok>, plan, args, a, queue, name, err);
}
// `a` holds what the family knows of its layout (band_bytes, block_bytes, chunk_blocks, context, output); this adds what a
// call brings.
template <class F>
qe_status begin_call(const qk_plan *plan, const qk_gemm_args *args, Args<F> *a, const char *name, qe_error *err) {
    const qk_x &x = args->x;
    a->x = static_cast<const unsigned char *>(x.data);
    a->x_pitch = x.ld * F::kXBytes, a->x_bytes = x.k * F::kXBytes, a->m = x.m;
    a->groups = groups_of(args);
    a->w = static_cast<const unsigned char *>(args->w->blob) + a->head_bytes;
    if (a->groups.experts && plan->splits > 1) // partial sums know of one weight
        return qe_error_set(err, QE_E_ARGUMENT, "%s: experts with k in %d splits", name, plan->splits);
    a->blocks = int((args->w->shape.k + Block<F>::kColumns - 1) / Block<F>::kColumns);
    a->split_blocks = (a->blocks + plan->splits - 1) / plan->splits;
    if (a->chunk_blocks && plan->splits > 1) a->split_blocks = a->chunk_blocks;
    if (!a->chunk_blocks) a->chunk_blocks = a->blocks;
    return QE_OK;
}
template <class F, int kLargest>
qe_status run_family(const qk_plan *plan, const qk_gemm_args *args, Args<F> a, const qk_queue *queue, const char *name,
                     qe_error *err) {
    const qe_status status = begin_call(plan, args, &a, name, err);
    if (status != QE_OK || a.m == 0) return status;
    switch (plan->variant) {
    case 0:
        return launch_tile<F, 16>(plan, args, a, queue, name, err);
    case 1:
        return launch_tile<F, 32>(plan, args, a, queue, name, err);
    case 2:
        return launch_tile<F, 64>(plan, args, a, queue, name, err);
    default:
        if constexpr (kLargest == 3) return launch_tile<F, 128>(plan, args, a, queue, name, err);
        return qe_error_set(err, QE_E_ARGUMENT, "%s: no such instance", name);
    }
}

} // namespace sm80
} // namespace qk_cuda
