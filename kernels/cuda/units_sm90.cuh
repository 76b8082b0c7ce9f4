// The GEMM of sm_90a for weights whose codes enter the product unscaled: where a unit of columns ends, its sums are scaled
// in fp32 (quantization.md 7.7 then has no rounding of weights). Pipeline, tiles and plans are those of gemm_sm90.cuh.
//
// wgmma must be idle while its sums are read, so the fragments of the next piece are unpacked before the wait, and the other
// warpgroup multiplies meanwhile: two halves of 64 columns of 128 tokens are 512 clocks of the tensor cores. The first
// product of a unit forgets the sums before it; zeroing them would cost as many instructions as scaling.
#pragma once
#include "gemm_sm90.cuh"

namespace qk_cuda {
namespace sm90 {

#if PTX_SM90
// acc += part * scale of the fragment's two rows.
template <int N> PTX_FN void add_scaled(const float (&scale)[2], const float (&part)[N], float (&acc)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) acc[i] = qe_fma(part[i], scale[i >> 1 & 1], acc[i]);
}
// Blocks [begin, end) into acc, which starts at zero. A format F has: kUnits (of a block); load() of a block, unpack() of a
// piece of kPieceSteps steps of 16 columns, scale(unit, row); mma<N>(), and mma_keep<N>() that is told whether to keep sums.
// The first unit of a block scales the last one of the block before (of nothing: zeros times zero), so that no branch stands
// around a product. Its sums are zeroed all the same: else ptxas moves sums in flight where the loop closes (C7517).
template <class F, int kTok>
PTX_FN void consume_pieces(const Args<F> &a, const typename F::State &state, uint32_t base, int begin, int end, bool first,
                           Cursor &at, float (&acc)[kTok / 2]) {
    using C = Config<F, kTok>;
    constexpr int kUnitSteps = 8 / F::kUnits, kPieceSteps = kUnitSteps < 4 ? 2 : 4;
    const int tid = int(threadIdx.x), group = tid / 128, lane = tid % 32;
    const uint32_t full = base + C::kBars, empty = full + C::kStages * 8;
    const uint32_t w_base = base + uint32_t(C::kW + group * a.block_bytes);
    const uint32_t none = ptx::opaque(0);
    float part[kTok / 2], scale[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kTok / 2; i++) acc[i] = part[i] = 0;
    uint32_t frag[2][kPieceSteps][4];
    for (int kb = begin; kb < end; kb++) {
        ptx::mbar_wait(full + uint32_t(at.s * 8), at.parity);
        const uint64_t x = ptx::wgmma_desc(base + uint32_t(at.s * C::kXStage));
        F w;
        w.load(w_base + uint32_t(at.s * C::kWStage), tid % 128, state);
#pragma unroll
        for (int step = 0; step < 8; step++) {
            uint32_t(&f)[kPieceSteps][4] = frag[step / kPieceSteps % 2];
            if (step % kPieceSteps == 0) {
                w.unpack(f, step / kPieceSteps);
                ptx::reg_fence(f);
            }
            if (step % kUnitSteps == 0) {
                const float next[2] = {w.scale(step / kUnitSteps, 0), w.scale(step / kUnitSteps, 1)};
                ptx::wgmma_wait<0>();
                ptx::reg_fence(part);
                add_scaled(scale, part, acc);
                if (step == 0) {
#pragma unroll
                    for (int i = 0; i < kTok / 2; i++) part[i] = 0;
                }
                scale[0] = next[0], scale[1] = next[1];
                if (step == 0 && (kb > begin || !first)) release<1>(empty + uint32_t(at.previous * 8), lane);
                ptx::reg_fence(part);
            }
            if (step % kUnitSteps == 0 || step % kPieceSteps == 0) ptx::wgmma_fence();
            // 64 columns of 16 bits are a swizzled row, the next 64 a tile of their own.
            const uint64_t x_step = x + uint64_t(step / 4 * (C::kXTile >> 4) + step % 4 * 2);
            if (step > 0 && step % kUnitSteps == 0)
                F::template mma_keep<kTok>(part, f[step % kPieceSteps], x_step, none);
            else
                F::template mma<kTok>(part, f[step % kPieceSteps], x_step);
            if ((step + 1) % kUnitSteps == 0 || (step + 1) % kPieceSteps == 0) {
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>(); // inside a unit: the piece before has left the registers that the next one takes
            }
        }
        advance<C::kStages>(at);
    }
    ptx::wgmma_wait<0>();
    ptx::reg_fence(part);
    add_scaled(scale, part, acc);
}
#endif

template <class F, int kTok>
__global__ void __launch_bounds__(Config<F, kTok>::kThreads, 1)
    gemm_units(const __grid_constant__ CUtensorMap map, const __grid_constant__ Args<F> args, const Partial<float> partial) {
#if PTX_SM90
    using C = Config<F, kTok>;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::opaque(ptx::smem_addr(smem)), full = base + C::kBars, empty = full + C::kStages * 8;
    const int tid = int(threadIdx.x), warp = tid / 32;
    ptx::griddep_launch();
    if (args.groups.experts) ptx::griddep_wait(); // counts are of a kernel before
    const Tile rows = args.groups.tile(blockIdx.x, kTok);
    if (rows.first >= rows.end) return;
    const Args<F> a = args.of(rows);
    const int begin = int(blockIdx.z) * a.split_blocks,
              end = begin + a.split_blocks < a.blocks ? begin + a.split_blocks : a.blocks;
    if (tid == 0) {
        for (int s = 0; s < C::kStages; s++) {
            ptx::mbar_init(full + uint32_t(s * 8), 1);
            ptx::mbar_init(empty + uint32_t(s * 8), kConsumers / 32); // one arrival per consumer warp
        }
        ptx::mbar_fence_init();
    }
    __syncthreads();
    if (warp >= kConsumers / 32) {
        if constexpr (C::kHandover) ptx::setmaxnreg_dec<40>();
        if (warp == kConsumers / 32 && ptx::elect_one()) produce<F, kTok, 1>(map, a, base, int(rows.first), begin, end);
        return;
    }
    if constexpr (C::kHandover) ptx::setmaxnreg_inc<232>();
    ptx::griddep_wait();
    float acc[kTok / 2];
    Cursor at{0, 0, 0};
    const typename F::State state = F::begin(a.context);
    float *total = reinterpret_cast<float *>(smem + C::kTotals) + tid; // sums and part sums fill the registers
    for (int chunk = begin; chunk < end; chunk += a.chunk_blocks) {
        const int stop = chunk + a.chunk_blocks < end ? chunk + a.chunk_blocks : end;
        consume_pieces<F, kTok>(a, state, base, chunk, stop, chunk == begin, at, acc);
#pragma unroll
        for (int i = 0; i < kTok / 2; i++) {
            if (chunk > begin) acc[i] = plus(total[i * kConsumers], acc[i]);
            if (stop < end) total[i * kConsumers] = acc[i];
        }
    }
    ptx::named_bar_sync(1, kConsumers); // the ring is idle: it becomes the tile of sums
#pragma unroll
    for (int j = 0; j < kTok / 8; j++) put_fragment<kRows>(smem, warp, tid % 32, j, acc + j * 4);
    if (gridDim.z > 1 && !partial.sums) {
        ptx::cluster_arrive();
        ptx::cluster_wait();
        store_cluster_tile<kRows, kTok, float>(base, tid, kConsumers, int(gridDim.z), a.m, rows.first,
                                               int64_t(blockIdx.y) * kRows, a.output);
        ptx::cluster_arrive(); // a block's tile stays until the others have read it
        ptx::cluster_wait();
        return;
    }
    ptx::named_bar_sync(1, kConsumers);
    store_tile<kRows, kTok>(smem, tid, kConsumers, a.m, rows.first, int64_t(blockIdx.y) * kRows, int(blockIdx.z), partial,
                            a.output);
#endif
}

// As run_family() of gemm_sm90.cuh, for tiles of 16, 64 and 128 tokens.
template <class F>
qe_status run_units(const qk_plan *plan, const qk_gemm_args *args, Args<F> a, const qk_queue *queue, const char *name,
                    qe_error *err, size_t head_bytes = 0) {
    const qe_status status = begin_call(plan, args, &a, name, head_bytes, err);
    if (status != QE_OK || a.m == 0) return status;
    switch (plan->variant) {
    case 0:
        return launch_kernel<F, 16>(gemm_units<F, 16>, plan, args, a, queue, name, err);
    case 1:
        return launch_kernel<F, 64>(gemm_units<F, 64>, plan, args, a, queue, name, err);
    case 2:
        return launch_kernel<F, 128>(gemm_units<F, 128>, plan, args, a, queue, name, err);
    default:
        return qe_error_set(err, QE_E_ARGUMENT, "%s: no such instance", name);
    }
}

} // namespace sm90
} // namespace qk_cuda
