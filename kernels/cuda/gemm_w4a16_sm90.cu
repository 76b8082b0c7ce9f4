// Row cuda/w4a16_sm90: int4 x fp16 or bf16, layout cuda/w4a16, wgmma with the weights dequantized into registers. fp16
// weights are scaled there; bf16 would round the fp16 scales, so codes stay integers and sums are scaled in fp32. Sums
// restart in every chunk of k; the decode path gives each chunk to a block of its own and adds them in order.
#include "units_sm90.cuh"
#include "w4_unpack.cuh"

namespace qk_cuda {
namespace w4a16_sm90 {

template <int kUnits> struct Format : W4A16<kUnits> {
    using Acc = float;
    static constexpr int kXBytes = 2;
    static constexpr bool kFromShared = false, kTotals = true, kPromotes = false;
    static constexpr int kCluster = 1, kLargest = 2;
    template <int N> static PTX_FN void mma(Acc (&d)[N / 2], const uint32_t (&a)[4], uint64_t x) {
#if PTX_SM90
        ptx::wgmma_rs_f16<N>(d, a, x);
#endif
    }
};
template <int kUnitCount> struct Bfloat : W4A16Codes<kUnitCount> {
    using Acc = float;
    static constexpr int kXBytes = 2, kUnits = kUnitCount;
    static constexpr bool kFromShared = false, kTotals = true, kPromotes = true;
    static constexpr int kCluster = 1, kLargest = 2;
    PTX_FN float scale(int unit, int r) const { return this->scale_of_unit(unit, r); }
    template <int N> static PTX_FN void mma(Acc (&d)[N / 2], const uint32_t (&a)[4], uint64_t x) {
#if PTX_SM90
        ptx::wgmma_rs_bf16<N>(d, a, x);
#endif
    }
    template <int N> static PTX_FN void mma_keep(Acc (&d)[N / 2], const uint32_t (&a)[4], uint64_t x, uint32_t keep) {
#if PTX_SM90
        ptx::wgmma_rs_bf16_keep<N>(d, a, x, keep);
#endif
    }
};

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", int(device->sm));
    if (g->x.code != QE_CODE_F16 && g->x.code != QE_CODE_BF16) return qk_no(why, "input is not of 16 bits");
    if (g->w.chunk_k % sm90::kBlockK && g->w.chunk_k < g->w.k)
        return qk_no(why, "chunks of %lld columns", (long long)g->w.chunk_k);
    if (device->unit_bytes < uint32_t(sm90::Config<Format<4>, 128>::kSharedBytes))
        return qk_no(why, "%u bytes of shared memory", device->unit_bytes);
    return float_output(g, why);
}
// use(F{}) for the format of a call.
template <class Use> auto with_format(const qe_quant &q, int64_t k, int x_code, Use use) {
    const bool one = qk_w4_units(&q, k) == 1;
    if (x_code == QE_CODE_BF16) return one ? use(Bfloat<1>{}) : use(Bfloat<4>{});
    return one ? use(Format<1>{}) : use(Format<4>{});
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    with_format(g->w.quant, g->w.k, g->x.code, [&](auto format) {
        using F = decltype(format);
        sm90::plan_of<F>(device, g, F::kLargest, chunk_blocks(g->w), out);
    });
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    return with_format(w.quant, w.k, args->x.quant.code, [&](auto format) {
        using F = decltype(format);
        sm90::Args<F> a{};
        a.band_bytes = qk_w4a16_band_bytes(&w.quant, w.k), a.block_bytes = int(qk_w4a16_block_bytes(&w.quant, w.k));
        a.chunk_blocks = chunk_blocks(w);
        a.context = {w.quant.zero == QE_ZERO_POINT, w.quant.zero_const};
        a.output = output_of(plan, args, a.band_bytes, 0);
        if constexpr (F::kPromotes)
            return sm90::run_units(plan, args, a, queue, "cuda/w4a16_sm90", err);
        else
            return sm90::run_family<F, F::kLargest>(plan, args, a, queue, "cuda/w4a16_sm90", err);
    });
}

} // namespace w4a16_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w4a16_sm90_row = {"cuda/w4a16_sm90", &qk_cuda_w4a16, qk_cuda::w4a16_sm90::supports,
                                                  qk_cuda::w4a16_sm90::plan, qk_cuda::w4a16_sm90::run};
