// The GEMM of sm_90a that w8a8, w4a8 and w4a16 share: Y^T = W X^T, weights on the M side of wgmma.
//
// A block computes 128 rows of W x kTok tokens. One producer lane fills a ring of stages: bulk copies bring the packed
// 128 x 128 block of W, TMA the tokens (128-byte rows, swizzled). Two consumer warpgroups take 64 rows each. A format
// says how W becomes the A operand: from registers, unpacked half a block at a time while wgmma reads the other half, or
// straight from shared memory. Rules that keep wgmma asynchronous (ptxas reports C75xx otherwise): accumulators are
// touched by nothing between the first product and wait<0>, no `if` around a product, A registers live until the wait.
//
// Many tokens and rows: two blocks of neighbouring bands form a cluster. They need the same tokens, so each brings half of
// them for both (multicast): 128 columns of k cost a block of w8a8 32 KiB of L2 instead of 48, of w4a8 24 instead of 40. A
// slot then is free when both blocks' consumers have left it, and no block ends before the other's last arrival.
//
// Float sums restart in every chunk of k (quantization.md 7.4), inside the block or as splits of the grid: the same bits.
// Tiles of 128 tokens do so too where they fill the device better. Where such clusters do not run (qk_device), blocks run alone.
// Splits are summed in the shared memory of a cluster where that takes no more waves, else through the workspace.
// Formats that promote have a main loop of their own (units_sm90.cuh).
//
// A block may begin before the kernels ahead in the stream have ended (launch.cuh): it fills its ring with weights, which no
// kernel writes, and then waits for them, before tokens, counts, anything of the epilogue, and every store.
#pragma once
#include "cluster_sums.cuh"

namespace qk_cuda {
namespace sm90 {

constexpr int kConsumers = 256, kRows = 128, kBlockK = 128;

template <class F> struct Args {
    int64_t m;
    const unsigned char *w;
    int64_t band_bytes;
    int block_bytes; // of 64 rows x 128 columns
    int blocks;      // 128-column blocks of k
    int split_blocks, chunk_blocks;
    typename F::Context context; // what the format's load() wants to know of the layout
    Output output;
    Groups groups;
    PTX_FN Args of(const Tile &t) const { // with the weight and the rows of a tile
        Args a = *this;
        const int64_t bytes = t.expert * groups.expert_bytes;
        a.w += bytes, a.m = t.end, a.output = output.of(t.expert, bytes);
        move_context(a.context, bytes);
        return a;
    }
};

// Whether two blocks of 16 tokens may share a unit: not where 80 registers spill.
template <class F> constexpr bool kSharesUnit = !F::kTotals;

// A format F has: Acc, Context, kXBytes (of one value of x), kBlockBytes (largest block of 64 x 128), kFromShared,
// kTotals (sums restart in chunks), kPromotes, kCluster (blocks that share tokens in the largest instance); load(), unpack()
// and mma<N>(), or product<N>() with descriptors. Promoting ones: kUnits (of a block); State and begin(context), what a
// thread keeps for the whole call and load() gets; scale(unit, row).
template <class F, int kTok> struct Config {
    // Nine warps put three on one of the four register files: 168 registers each. Tiles that need more hand registers
    // over: there the producer is a whole warpgroup (setmaxnreg).
    static constexpr int kAcc = kTok / 2 * (1 + F::kTotals + F::kPromotes);
    static constexpr bool kHandover = kAcc > 64;
    static constexpr int kThreads = kConsumers + (kHandover ? 128 : 32);
    static constexpr int kXTile = kTok * 128, kXStage = kXTile * F::kXBytes, kWStage = 2 * F::kBlockBytes;
    static constexpr int kTotalBytes = F::kPromotes ? kTok / 2 * kConsumers * 4 : 0; // sums of chunks before
    static constexpr int kFit = (232448 - 256 - kTotalBytes) / (kXStage + kWStage);
    static constexpr int kStages = kFit < 8 ? kFit : 8;
    static constexpr int kW = kStages * kXStage, kRing = kW + kStages * kWStage; // both on 1024-byte atoms
    static constexpr int kTile = tile_bytes<kRows, kTok>();                      // reuses the ring
    static constexpr int kBars = (kRing > kTile ? kRing : kTile) / 8 * 8 + 8;
    static constexpr int kTotals = kBars + 2 * kStages * 8;
    static constexpr int kSharedBytes = kTotals + kTotalBytes;
    // Two blocks of few tokens share a unit where memory allows: ptxas is told, else it takes registers for one. Units
    // count warps by fours, ptxas does not.
    static constexpr int kBlocks = kTok == 16 && kSharesUnit<F> && 2 * (kSharedBytes + 1024) <= 233472 ? 2 : 1;
    static constexpr int kBound = kBlocks == 1 ? kThreads : (kThreads + 127) / 128 * 128;
    static_assert(kStages >= 2 && kSharedBytes <= 232448 && kW % 1024 == 0, "a ring of at least two stages");
};

#if PTX_SM90
template <class F, int kTok, int kCluster>
PTX_FN void produce(const CUtensorMap &map, const Args<F> &a, uint32_t base, int m0, int begin, int end) {
    using C = Config<F, kTok>;
    const uint32_t full = base + C::kBars, empty = full + C::kStages * 8;
    const uint32_t w_bytes = 2 * uint32_t(a.block_bytes);
    int64_t band = blockIdx.y;
    if (kCluster > 1 && band * kRows >= a.output.out.n) band--; // bands are odd: the last block works for its peer alone
    const unsigned char *w = a.w + band * a.band_bytes + int64_t(begin) * w_bytes;
    const int share = kCluster > 1 ? int(ptx::cluster_rank()) * (kTok / kCluster) : 0;
    const auto bring_weights = [&](int s) {
        const uint32_t bar = full + uint32_t(s * 8);
        ptx::mbar_arrive_expect_tx(bar, w_bytes + C::kXStage);
        ptx::bulk_load(base + uint32_t(C::kW + s * C::kWStage), w, w_bytes, bar);
        w += w_bytes;
    };
    const int first_round = end - begin < C::kStages ? end : begin + C::kStages; // into slots that nobody has used
#pragma unroll 1
    for (int kb = begin; kb < first_round; kb++) bring_weights(kb - begin);
    ptx::griddep_wait(); // tokens are of a kernel before
    int s = 0;
    uint32_t parity = 1;
    for (int kb = begin; kb < end; kb++) {
        const uint32_t bar = full + uint32_t(s * 8);
        if (kb >= first_round) {
            if constexpr (kCluster > 1)
                ptx::mbar_wait_cluster(empty + uint32_t(s * 8), parity);
            else
                ptx::mbar_wait(empty + uint32_t(s * 8), parity);
            bring_weights(s);
        }
#pragma unroll
        for (int i = 0; i < F::kXBytes; i++)
            if constexpr (kCluster > 1)
                ptx::tma_load_2d_multicast(base + uint32_t(s * C::kXStage + i * C::kXTile + share * 128), &map, bar,
                                           (kb * F::kXBytes + i) * 128, m0 + share, (1 << kCluster) - 1);
            else
                ptx::tma_load_2d(base + uint32_t(s * C::kXStage + i * C::kXTile), &map, bar,
                                 (kb * F::kXBytes + i) * 128, m0);
        if (++s == C::kStages) s = 0, parity ^= 1;
    }
}
// Where a consumer stands in the ring.
struct Cursor {
    int s, previous;
    uint32_t parity;
};
template <int kStages> PTX_FN void advance(Cursor &c) {
    c.previous = c.s;
    if (++c.s == kStages) c.s = 0, c.parity ^= 1;
}

// A warp has left a slot: its producer may fill it, and so may those that send tokens to it.
template <int kCluster> PTX_FN void release(uint32_t empty, int lane) {
    if constexpr (kCluster > 1) {
        if (lane < kCluster) ptx::mbar_arrive_cluster(ptx::cluster_addr(empty, uint32_t(lane)));
    } else if (lane == 0)
        ptx::mbar_arrive(empty);
}

// What load() wants to know: of the layout, and with kPowers of the thread's rows.
template <class F> PTX_FN auto state_of(const Args<F> &a) {
    if constexpr (kPowers<F>)
        return F::begin(a.context, a.w + int64_t(blockIdx.y) * a.band_bytes, int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 4);
    else
        return a.context;
}
// Blocks [begin, end) into acc, which starts at zero.
template <class F, int kTok, int kCluster, class State>
PTX_FN void consume(const Args<F> &a, const State &state, uint32_t base, int begin, int end, bool first, Cursor &at,
                    typename F::Acc (&acc)[kTok / 2]) {
    using C = Config<F, kTok>;
    const int tid = int(threadIdx.x), group = tid / 128, lane = tid % 32;
    const uint32_t full = base + C::kBars, empty = full + C::kStages * 8;
    const uint32_t w_base = base + uint32_t(C::kW + group * a.block_bytes);
#pragma unroll
    for (int i = 0; i < kTok / 2; i++) acc[i] = 0;
    if constexpr (F::kFromShared) {
        for (int kb = begin; kb < end; kb++) {
            ptx::mbar_wait(full + uint32_t(at.s * 8), at.parity);
            const uint64_t w = ptx::wgmma_desc(w_base + uint32_t(at.s * C::kWStage)),
                           x = ptx::wgmma_desc(base + uint32_t(at.s * C::kXStage));
            ptx::reg_fence(acc);
            ptx::wgmma_fence();
#pragma unroll
            for (int st = 0; st < 4; st++) F::template product<kTok>(acc, w + uint64_t(st * 2), x + uint64_t(st * 2));
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>(); // the previous block's products are done
            if (kb > begin || !first) release<kCluster>(empty + uint32_t(at.previous * 8), lane);
            advance<C::kStages>(at);
        }
        ptx::wgmma_wait<0>();
    } else {
        uint32_t frag[2][F::kSteps][4];
        for (int kb = begin; kb < end; kb++) {
            ptx::mbar_wait(full + uint32_t(at.s * 8), at.parity);
            F w;
            w.load(w_base + uint32_t(at.s * C::kWStage), tid % 128, state);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                w.unpack(frag[half], half);
                // 64 columns are 64 bytes of int8, half a swizzled row; in fp16 they are a tile of their own.
                const uint64_t x =
                    ptx::wgmma_desc(base + uint32_t(at.s * C::kXStage + (F::kXBytes == 2 ? half * C::kXTile : 0))) +
                    uint64_t(F::kXBytes == 2 ? 0 : half * 4);
                ptx::reg_fence(frag[half]);
                ptx::reg_fence(acc);
                ptx::wgmma_fence();
#pragma unroll
                for (int st = 0; st < F::kSteps; st++)
                    F::template mma<kTok>(acc, frag[half][st], x + uint64_t(st * 2));
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>(); // the other half's products are done
                if (half == 0 && (kb > begin || !first))
                    release<kCluster>(empty + uint32_t(at.previous * 8), lane);
            }
            advance<C::kStages>(at);
        }
        ptx::wgmma_wait<0>();
    }
    ptx::reg_fence(acc);
}
#endif

template <class F, int kTok, int kCluster = 1>
__global__ void __launch_bounds__(Config<F, kTok>::kBound, Config<F, kTok>::kBlocks)
    gemm(const __grid_constant__ CUtensorMap map, const __grid_constant__ Args<F> args,
         const Partial<typename F::Acc> partial) {
    static_assert(!F::kPromotes, "formats that promote run gemm_units()");
#if PTX_SM90
    using C = Config<F, kTok>;
    using Acc = typename F::Acc;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::opaque(ptx::smem_addr(smem)), full = base + C::kBars, empty = full + C::kStages * 8;
    const int tid = int(threadIdx.x), warp = tid / 32;
    ptx::griddep_launch();
    if (args.groups.experts) ptx::griddep_wait(); // counts are of a kernel before
    const Tile rows = args.groups.tile(blockIdx.x, kTok);
    if (rows.first >= rows.end) return; // both blocks of a cluster, or none
    const Args<F> a = args.of(rows);
    const int begin = int(blockIdx.z) * a.split_blocks,
              end = begin + a.split_blocks < a.blocks ? begin + a.split_blocks : a.blocks;
    if (tid == 0) {
        for (int s = 0; s < C::kStages; s++) {
            ptx::mbar_init(full + uint32_t(s * 8), 1);
            ptx::mbar_init(empty + uint32_t(s * 8), kConsumers / 32 * kCluster); // one arrival per consumer warp
        }
        ptx::mbar_fence_init();
    }
    if constexpr (kCluster > 1) {
        ptx::cluster_arrive();
        ptx::cluster_wait();
    } else
        __syncthreads();
    if (warp >= kConsumers / 32) {
        if constexpr (C::kHandover) ptx::setmaxnreg_dec<40>();
        if (warp == kConsumers / 32 && ptx::elect_one()) produce<F, kTok, kCluster>(map, a, base, int(rows.first), begin, end);
        return;
    }
    if constexpr (C::kHandover) ptx::setmaxnreg_inc<232>();
    ptx::griddep_wait();
    Acc acc[kTok / 2];
    Cursor at{0, 0, 0};
    const auto state = state_of(a);
    if constexpr (F::kTotals) {
        Acc total[kTok / 2] = {};
        for (int chunk = begin; chunk < end; chunk += a.chunk_blocks) {
            const int stop = chunk + a.chunk_blocks < end ? chunk + a.chunk_blocks : end;
            consume<F, kTok, kCluster>(a, state, base, chunk, stop, chunk == begin, at, acc);
#pragma unroll
            for (int i = 0; i < kTok / 2; i++) total[i] = chunk == begin ? acc[i] : plus(total[i], acc[i]);
        }
#pragma unroll
        for (int i = 0; i < kTok / 2; i++) acc[i] = total[i];
    } else
        consume<F, kTok, kCluster>(a, state, base, begin, end, true, at, acc);
    if constexpr (kPowers<F>) leave_powers(state, acc, kTok / 2);

    if constexpr (kCluster > 1) ptx::cluster_arrive();
    ptx::named_bar_sync(1, kConsumers); // the ring is idle: it becomes the tile of sums
#pragma unroll
    for (int j = 0; j < kTok / 8; j++) put_fragment<kRows>(smem, warp, tid % 32, j, acc + j * 4);
    if (kCluster == 1 && gridDim.z > 1 && !partial.sums) {
        ptx::cluster_arrive();
        ptx::cluster_wait();
        store_cluster_tile<kRows, kTok, Acc>(base, tid, kConsumers, int(gridDim.z), a.m, rows.first,
                                             int64_t(blockIdx.y) * kRows, a.output);
        ptx::cluster_arrive(); // a block's tile stays until the others have read it
        ptx::cluster_wait();
        return;
    }
    ptx::named_bar_sync(1, kConsumers);
    if (kCluster == 1 || int64_t(blockIdx.y) * kRows < a.output.out.n) // sums of an idle block would leave their row
        store_tile<kRows, kTok>(smem, tid, kConsumers, a.m, rows.first, int64_t(blockIdx.y) * kRows,
                                int(blockIdx.z), partial, a.output);
    if constexpr (kCluster > 1) ptx::cluster_wait();
#endif
}

// ---- plans and launches of a family: instances by tokens per tile, the last two in clusters that share tokens ------
constexpr int kTiles[] = {16, 64, 128, 256, 256, 128};
constexpr int kClustered = 4, kPairs = 5;
inline int tile_of(int64_t m, int largest) {
    int i = 0;
    while (i < largest && m > kTiles[i]) i++;
    return i;
}
inline int64_t tile_count(const qk_gemm *g, int tokens) {
    return (g->w.n + kRows - 1) / kRows * ((g->m + tokens - 1) / tokens);
}
// Whether the splits of k of an instance are summed in clusters, else the workspace takes their sums.
inline bool sums_in_cluster(const qk_device *device, const qk_gemm *g, int instance, int splits, qk_why *why) {
    if (instance >= kClustered) return qk_no(why, "the blocks of a cluster share tokens");
    return clusters_fit(device, tile_count(g, kTiles[instance]), splits, why);
}
// Blocks of k a split takes. Where tiles fill less than half of the device, k is cut until they fill it, or at chunk
// borders; else sums stay on chip. By tiles, not by m, so that the time has no step where m leaves the decode path.
// A few units less are no loss where the splits then are a cluster: the weights' bytes bind, and no second kernel runs.
inline int split_blocks_of(const qk_device *device, const qk_gemm *g, int instance, int chunk_blocks) {
    const int64_t tiles = tile_count(g, kTiles[instance]);
    const int blocks = int((g->w.k + kBlockK - 1) / kBlockK);
    if (g->m > kTiles[1] ? tiles * 2 > device->units : tiles >= device->units) return blocks;
    if (chunk_blocks) return chunk_blocks;
    int splits = device->units / tiles < kClusterBlocks ? int(device->units / tiles) : kClusterBlocks;
    while (splits > 1 && blocks / splits < 4) splits--; // a split fills at least half of its ring
    for (int fewer = splits; 2 * fewer > splits; fewer--)
        if (sums_in_cluster(device, g, instance, fewer, nullptr)) return (blocks + fewer - 1) / fewer;
    return (blocks + splits - 1) / splits;
}
template <class F> uint32_t shared_bytes_of(int instance) {
    const int bytes[] = {Config<F, 16>::kSharedBytes, Config<F, 64>::kSharedBytes, Config<F, 128>::kSharedBytes};
    if constexpr (!F::kTotals)
        if (kTiles[instance] == 256) return uint32_t(Config<F, 256>::kSharedBytes);
    return uint32_t(bytes[instance == kPairs ? 2 : instance]);
}
template <class F> uint32_t threads_of(int instance) {
    const int threads[] = {Config<F, 16>::kThreads, Config<F, 64>::kThreads, Config<F, 128>::kThreads};
    if constexpr (!F::kTotals)
        if (kTiles[instance] == 256) return uint32_t(Config<F, 256>::kThreads);
    return uint32_t(threads[instance == kPairs ? 2 : instance]);
}
// What tiles of 256 or 128 tokens take, in clocks as bench/budget.py counts them on H100: k-blocks, the ends of a tile, and a
// second kernel. Only which is less matters: large tiles cost less per product, small ones fill the last wave.
inline int64_t clocks_of(const qk_device *device, const qk_gemm *g, int instance, int chunk_blocks) {
    const int64_t block = kTiles[instance] == 256 ? 1218 : 640, ends = kTiles[instance] == 256 ? 4640 : 2720;
    const int64_t blocks = (g->w.k + kBlockK - 1) / kBlockK, split = split_blocks_of(device, g, instance, chunk_blocks);
    const int64_t splits = (blocks + split - 1) / split, tiles = tile_count(g, kTiles[instance]) * splits;
    const int64_t waves = (tiles + device->units - 1) / device->units;
    // The workspace's bytes through L2, of whole tiles: a plan must not change between their edges.
    const int64_t m = (g->m + 127) / 128 * 128, second = splits > 1 ? 1800 + splits * m * g->w.n / 640 : 0;
    return waves * (split * block + ends) + second;
}
// The instance of a problem that tiles of `instance` would serve, where blocks may share tokens.
inline int shared_instance(const qk_device *device, const qk_gemm *g, int instance, int chunk_blocks) {
    if (instance == 2) // sums of splits in a cluster, or tokens from a neighbour
        return split_blocks_of(device, g, kPairs, chunk_blocks) * kBlockK >= g->w.k ? kPairs : instance;
    if (instance != 3) return instance;
    return clocks_of(device, g, kPairs, chunk_blocks) < clocks_of(device, g, kClustered, chunk_blocks) ? kPairs : kClustered;
}
template <class F>
void plan_of(const qk_device *device, const qk_gemm *g, int largest, int chunk_blocks, qk_plan *out) {
    int instance = tile_of(qk_tile_m(g), largest);
    const int bands = int((g->w.n + kRows - 1) / kRows);
    // An odd band costs an idle block.
    if (F::kCluster > 1 && cluster_runs(device, F::kCluster, nullptr) &&
        (bands % F::kCluster == 0 || bands >= 8 * F::kCluster))
        instance = shared_instance(device, g, instance, chunk_blocks);
    const int blocks = int((g->w.k + kBlockK - 1) / kBlockK), split = split_blocks_of(device, g, instance, chunk_blocks);
    out->variant = instance;
    out->splits = (blocks + split - 1) / split;
    out->grid[0] = uint32_t((g->m + kTiles[instance] - 1) / kTiles[instance]), out->grid[1] = uint32_t(bands);
    if (instance >= kClustered) out->grid[1] = uint32_t((bands + F::kCluster - 1) / F::kCluster * F::kCluster);
    out->grid[2] = uint32_t(out->splits);
    out->block = threads_of<F>(instance), out->shared_bytes = shared_bytes_of<F>(instance);
    if (out->splits > 1 && !sums_in_cluster(device, g, instance, out->splits, nullptr))
        out->workspace_bytes = uint64_t(out->splits) * uint64_t(g->m) * uint64_t(partial_ld(g->w.n)) * 4;
}
template <class F, int kTok, int kCluster = 1>
qe_status launch_kernel(void (*kernel)(CUtensorMap, Args<F>, Partial<typename F::Acc>), const qk_plan *plan, const qk_gemm_args *args,
                        const Args<F> &a, const qk_queue *queue, const char *name, qe_error *err) {
    using C = Config<F, kTok>;
    using Acc = typename F::Acc;
    const qk_x &x = args->x;
    CUtensorMap map; // columns end at k, so that whatever pads x contributes nothing
    const int code = qk_cuda_api_now()->tensor_map(&map, x.data, uint64_t(x.k) * F::kXBytes, uint64_t(x.m),
                                                   uint64_t(x.ld) * F::kXBytes, kTok / kCluster);
    if (code) return qk_cuda_fail(code, "encoding a tensor map", err);
    const bool in_cluster = plan->splits > 1 && !plan->workspace_bytes;
    const Partial<Acc> partial{plan->splits > 1 && !in_cluster ? static_cast<Acc *>(args->workspace) : nullptr,
                               partial_ld(args->w->shape.n)};
    const ClusterSize cluster{kCluster, in_cluster ? uint32_t(plan->splits) : 1};
    const dim3 grid(tiles_of(args, kTok), plan->grid[1], plan->grid[2]);
    const qe_status status =
        launch_cluster<Start::Early>(kernel, grid, cluster, C::kThreads, C::kSharedBytes, queue, name, err, map, a, partial);
    if (status != QE_OK || !partial.sums) return status;
    return launch_reduce<Acc, Start::Early>(plan, args, a.output, queue, name, err);
}
template <class F, int kTok, int kCluster = 1>
qe_status launch_tile(const qk_plan *plan, const qk_gemm_args *args, const Args<F> &a, const qk_queue *queue, const char *name,
                      qe_error *err) {
    return launch_kernel<F, kTok, kCluster>(gemm<F, kTok, kCluster>, plan, args, a, queue, name, err);
}
// `a` holds what the family knows of its layout; this adds what a call brings.
template <class F>
qe_status begin_call(const qk_plan *plan, const qk_gemm_args *args, Args<F> *a, const char *name, size_t head_bytes, qe_error *err) {
    a->m = args->x.m, a->groups = groups_of(args);
    a->w = static_cast<const unsigned char *>(args->w->blob) + head_bytes;
    if (a->groups.experts && plan->splits > 1) // partial sums know of one weight
        return qe_error_set(err, QE_E_ARGUMENT, "%s: experts with k in %d splits", name, plan->splits);
    a->blocks = int((args->w->shape.k + kBlockK - 1) / kBlockK);
    a->split_blocks = (a->blocks + plan->splits - 1) / plan->splits;
    if (a->chunk_blocks && plan->splits > 1) a->split_blocks = a->chunk_blocks;
    if (!a->chunk_blocks) a->chunk_blocks = a->blocks;
    return QE_OK;
}
template <class F, int kLargest>
qe_status run_family(const qk_plan *plan, const qk_gemm_args *args, Args<F> a, const qk_queue *queue, const char *name,
                     qe_error *err, size_t head_bytes = 0) {
    const qe_status status = begin_call(plan, args, &a, name, head_bytes, err);
    if (status != QE_OK || a.m == 0) return status;
    switch (plan->variant) {
    case 0:
        return launch_tile<F, 16>(plan, args, a, queue, name, err);
    case 1:
        return launch_tile<F, 64>(plan, args, a, queue, name, err);
    default:
        if constexpr (kLargest >= 2)
            if (plan->variant == 2) return launch_tile<F, 128>(plan, args, a, queue, name, err);
        if constexpr (F::kCluster > 1)
            if (plan->variant == kClustered)
                return launch_tile<F, 256, F::kCluster>(plan, args, a, queue, name, err);
        if constexpr (F::kCluster > 1)
            if (plan->variant == kPairs) return launch_tile<F, 128, F::kCluster>(plan, args, a, queue, name, err);
        if constexpr (kLargest == 3) return launch_tile<F, 256>(plan, args, a, queue, name, err);
        return qe_error_set(err, QE_E_ARGUMENT, "%s: no such instance", name);
    }
}

} // namespace sm90
} // namespace qk_cuda
