// Row cuda/dense_sm90: layout cuda/any x fp16 or bf16 by wgmma with both operands from shared memory. Weights are dequantized
// first (dense.cuh): Y^T = W X^T, 128 rows of W x kTok tokens a block, k in blocks of 64 columns. One producer lane fills a
// ring of stages by TMA, two consumer warpgroups take 64 rows each; rules of gemm_sm90.cuh. Weights that lie where they are
// read are brought before the kernels ahead have ended; those that one of them writes are waited for.
//
// Many tokens: two blocks of neighbouring bands form a cluster and bring half of their tokens each for both (multicast).
// Float sums restart in every chunk of k (quantization.md 7.4), inside the block or as splits of the grid: the same bits.
// Sums and totals of 256 tokens do not fit the registers: that tile serves weights whose k is one chunk.
#include "dense.cuh"
#include "gemm_sm90.cuh"

namespace qk_cuda {
namespace dense_sm90 {

using dense::kRows;
constexpr int kBlockK = 64, kConsumers = 256;

struct Args {
    int64_t m; // where the expert's rows of x end
    dense::Pass pass;
    int blocks, split_blocks, chunk_blocks;
    Output output;
    Groups groups;
};
template <int kTok> struct Config {
    static constexpr bool kTotals = kTok <= 128, kHandover = kTok >= 128;
    static constexpr int kThreads = kConsumers + (kHandover ? 128 : 32);
    static constexpr int kWStage = kRows * 128, kXStage = kTok * 128;
    static constexpr int kFit = (232448 - 256) / (kWStage + kXStage), kStages = kFit < 8 ? kFit : 8;
    static constexpr int kX = kStages * kWStage, kRing = kX + kStages * kXStage; // all on 1024-byte atoms
    static constexpr int kTile = tile_bytes<kRows, kTok>();                      // reuses the ring
    static constexpr int kBars = (kRing > kTile ? kRing : kTile) / 8 * 8 + 8, kSharedBytes = kBars + 2 * kStages * 8;
    static_assert(kStages >= 3 && kSharedBytes <= 232448, "a ring of at least three stages");
};

#if PTX_SM90
template <int kTok, int kCluster>
PTX_FN void produce(const CUtensorMap &w, const CUtensorMap &x, uint32_t base, int m0, int begin, int end) {
    using C = Config<kTok>;
    const uint32_t full = base + C::kBars, empty = full + C::kStages * 8;
    const int share = kCluster > 1 ? int(ptx::cluster_rank()) * (kTok / kCluster) : 0, n0 = int(blockIdx.y) * kRows;
    const auto bring_weights = [&](int kb, int s) {
        const uint32_t bar = full + uint32_t(s * 8);
        ptx::mbar_arrive_expect_tx(bar, C::kWStage + C::kXStage);
        ptx::tma_load_2d(base + uint32_t(s * C::kWStage), &w, bar, kb * 128, n0); // rows beyond the last are zeros
    };
    const int first_round = end - begin < C::kStages ? end : begin + C::kStages; // into slots that nobody has used
#pragma unroll 1
    for (int kb = begin; kb < first_round; kb++) bring_weights(kb, kb - begin);
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
            bring_weights(kb, s);
        }
        const uint32_t to = base + uint32_t(C::kX + s * C::kXStage + share * 128);
        if constexpr (kCluster > 1)
            ptx::tma_load_2d_multicast(to, &x, bar, kb * 128, m0 + share, (1 << kCluster) - 1);
        else
            ptx::tma_load_2d(to, &x, bar, kb * 128, m0);
        if (++s == C::kStages) s = 0, parity ^= 1;
    }
}
template <bool kBf16, int N> PTX_FN void product(float (&d)[N / 2], uint64_t w, uint64_t x) {
    if constexpr (kBf16)
        ptx::wgmma_bf16<N>(d, w, x);
    else
        ptx::wgmma_f16<N>(d, w, x);
}
// Blocks [begin, end) into acc, which starts at zero.
template <bool kBf16, int kTok, int kCluster>
PTX_FN void consume(uint32_t base, int begin, int end, bool first, sm90::Cursor &at, float (&acc)[kTok / 2]) {
    using C = Config<kTok>;
    const int group = int(threadIdx.x) / 128, lane = int(threadIdx.x) % 32;
    const uint32_t full = base + C::kBars, empty = full + C::kStages * 8;
#pragma unroll
    for (int i = 0; i < kTok / 2; i++) acc[i] = 0;
    for (int kb = begin; kb < end; kb++) {
        ptx::mbar_wait(full + uint32_t(at.s * 8), at.parity);
        const uint64_t w = ptx::wgmma_desc(base + uint32_t(at.s * C::kWStage + group * 64 * 128)),
                       x = ptx::wgmma_desc(base + uint32_t(C::kX + at.s * C::kXStage));
        ptx::reg_fence(acc);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < 4; step++) product<kBf16, kTok>(acc, w + uint64_t(step * 2), x + uint64_t(step * 2));
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>(); // the previous block's products are done
        if (kb > begin || !first) sm90::release<kCluster>(empty + uint32_t(at.previous * 8), lane);
        sm90::advance<C::kStages>(at);
    }
    ptx::wgmma_wait<0>();
    ptx::reg_fence(acc);
}
// Sums leave without their row's power of two: an exact product.
template <int kTok> PTX_FN void put(const Args &a, unsigned char *smem, int64_t n0, float (&acc)[kTok / 2]) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; h++) inverse[h] = dense::inverse_power(a.pass, n0 + warp * 16 + h * 8 + lane / 4);
#pragma unroll
    for (int j = 0; j < kTok / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) acc[j * 4 + e] = qe_mul(acc[j * 4 + e], inverse[e / 2]);
        put_fragment<kRows>(smem, warp, lane, j, acc + j * 4);
    }
}
#endif

template <bool kBf16, int kTok, int kCluster>
__global__ void __launch_bounds__(Config<kTok>::kThreads, 1)
    gemm(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x, const __grid_constant__ Args args,
         const Partial<float> partial) {
#if PTX_SM90
    using C = Config<kTok>;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::opaque(ptx::smem_addr(smem)), full = base + C::kBars, empty = full + C::kStages * 8;
    const int tid = int(threadIdx.x), warp = tid / 32;
    ptx::griddep_launch();
    if (args.groups.experts || args.pass.written) ptx::griddep_wait(); // counts and weights are of kernels before
    const Tile rows = dense::tile_of(args.groups, args.pass.expert, blockIdx.x, kTok);
    if (rows.first >= rows.end) return; // both blocks of a cluster, or none
    Args a = args;
    a.m = rows.end, a.output = args.output.of(rows.expert, 0);
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
        if (warp == kConsumers / 32 && ptx::elect_one()) produce<kTok, kCluster>(w, x, base, int(rows.first), begin, end);
        return;
    }
    if constexpr (C::kHandover) ptx::setmaxnreg_inc<232>();
    ptx::griddep_wait();
    float acc[kTok / 2];
    sm90::Cursor at{0, 0, 0};
    if constexpr (C::kTotals) {
        float total[kTok / 2] = {};
        for (int chunk = begin; chunk < end; chunk += a.chunk_blocks) {
            const int stop = chunk + a.chunk_blocks < end ? chunk + a.chunk_blocks : end;
            consume<kBf16, kTok, kCluster>(base, chunk, stop, chunk == begin, at, acc);
#pragma unroll
            for (int i = 0; i < kTok / 2; i++) total[i] = chunk == begin ? acc[i] : plus(total[i], acc[i]);
        }
#pragma unroll
        for (int i = 0; i < kTok / 2; i++) acc[i] = total[i];
    } else
        consume<kBf16, kTok, kCluster>(base, begin, end, true, at, acc);

    if constexpr (kCluster > 1) ptx::cluster_arrive();
    const int64_t n0 = int64_t(blockIdx.y) * kRows;
    ptx::named_bar_sync(1, kConsumers); // the ring is idle: it becomes the tile of sums
    put<kTok>(a, smem, n0, acc);
    ptx::named_bar_sync(1, kConsumers);
    if (kCluster == 1 || n0 < a.pass.rows) // sums of an idle block would leave their row
        store_tile<kRows, kTok>(smem, tid, kConsumers, a.m, rows.first, a.pass.first + n0, int(blockIdx.z), partial, a.output);
    if constexpr (kCluster > 1) ptx::cluster_wait();
#endif
}

// ---- plan and run: instances by tokens per tile; an odd band costs a cluster an idle block. The last serves devices that
// run no clusters.
constexpr int kAlone = 4;
struct Instance {
    int tokens, cluster;
    uint32_t threads, shared;
};
template <int kTok> constexpr Instance instance_of(int cluster) {
    return {kTok, cluster, uint32_t(Config<kTok>::kThreads), uint32_t(Config<kTok>::kSharedBytes)};
}
constexpr Instance kInstances[] = {instance_of<16>(1), instance_of<64>(1), instance_of<128>(2), instance_of<256>(2),
                                   instance_of<128>(1)};

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr uint32_t bytes = 232448; // what every instance fits in
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", int(device->sm));
    if (device->unit_bytes < bytes) return qk_no(why, "%u bytes of shared memory, needed %u", device->unit_bytes, bytes);
    return dense::supports(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    const int64_t most = qk_tile_m(g);
    const int blocks = int((g->w.k + kBlockK - 1) / kBlockK), bands = int(dense::pass_bands(device, g->w, g->x.code));
    const int chunk = dense::chunk_blocks_of(g->w, kBlockK);
    int instance = most <= 16 ? 0 : most <= 64 ? 1 : most > 128 && chunk >= blocks ? 3 : 2;
    if (kInstances[instance].cluster > 1 && !cluster_runs(device, kInstances[instance].cluster, nullptr)) instance = kAlone;
    const Instance &i = kInstances[instance];
    const int64_t tiles = bands * ((g->m + i.tokens - 1) / i.tokens);
    // Tiles of a pass that fill less than half of the device: k is split at chunk borders.
    const int split = (g->m > 64 ? tiles * 2 <= device->units : tiles < device->units) ? chunk : blocks;
    out->variant = instance;
    out->splits = (blocks + split - 1) / split;
    out->grid[0] = uint32_t((g->m + i.tokens - 1) / i.tokens), out->grid[1] = uint32_t(bands);
    out->grid[2] = uint32_t(out->splits);
    out->block = i.threads, out->shared_bytes = i.shared;
    out->workspace_bytes = dense::partial_bytes(g, out->splits) + dense::pass_bytes(g->w, g->x.code, bands);
}
qe_status map_of(CUtensorMap *map, const void *base, int64_t cols, int64_t rows, int64_t pitch, int box, qe_error *err) {
    const int code = qk_cuda_api_now()->tensor_map(map, base, uint64_t(cols), uint64_t(rows), uint64_t(pitch), uint32_t(box));
    return code ? qk_cuda_fail(code, "encoding a tensor map", err) : QE_OK;
}
template <bool kBf16, int kTok, int kCluster>
qe_status run_tile(const qk_plan *plan, const qk_gemm_args *args, Args a, const qk_queue *queue, qe_error *err) {
    using C = Config<kTok>;
    const qk_x &in = args->x;
    const Partial<float> partial = dense::partial_of(plan, args);
    CUtensorMap x; // columns end at k, so that whatever pads x contributes nothing
    qe_status status = map_of(&x, in.data, in.k * 2, in.m, in.ld * 2, kTok / kCluster, err);
    if (status != QE_OK) return status;
    status = dense::each_pass(plan, args, queue, err, [&](const dense::Pass &pass) {
        CUtensorMap w;
        const qe_status mapped = map_of(&w, pass.w, in.k * 2, pass.rows, pass.pitch, kRows, err);
        if (mapped != QE_OK) return mapped;
        a.pass = pass;
        const uint32_t bands = uint32_t((pass.rows + kRows - 1) / kRows);
        const dim3 grid(dense::tiles_of_expert(args, kTok), (bands + kCluster - 1) / kCluster * kCluster, plan->grid[2]);
        return launch_cluster<Start::Early>(gemm<kBf16, kTok, kCluster>, grid, ClusterSize{kCluster, 1}, C::kThreads, C::kSharedBytes, queue, plan->row->name,
                              err, w, x, a, partial);
    });
    if (status != QE_OK || !partial.sums) return status;
    return launch_reduce<float, Start::Early>(plan, args, a.output, queue, plan->row->name, err);
}
template <bool kBf16>
qe_status run_type(const qk_plan *plan, const qk_gemm_args *args, const Args &a, const qk_queue *queue, qe_error *err) {
    switch (plan->variant) {
    case 0:
        return run_tile<kBf16, 16, 1>(plan, args, a, queue, err);
    case 1:
        return run_tile<kBf16, 64, 1>(plan, args, a, queue, err);
    case 2:
        return run_tile<kBf16, 128, 2>(plan, args, a, queue, err);
    case kAlone:
        return run_tile<kBf16, 128, 1>(plan, args, a, queue, err);
    default:
        return run_tile<kBf16, 256, 2>(plan, args, a, queue, err);
    }
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    Args a{};
    const qe_status status = dense::begin(plan, args, kBlockK, &a, err);
    if (status != QE_OK || args->x.m == 0) return status;
    return args->x.quant.code == QE_CODE_BF16 ? run_type<true>(plan, args, a, queue, err)
                                              : run_type<false>(plan, args, a, queue, err);
}

} // namespace dense_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_dense_sm90_row = {"cuda/dense_sm90", &qk_cuda_any, qk_cuda::dense_sm90::supports,
                                                  qk_cuda::dense_sm90::plan, qk_cuda::dense_sm90::run};
