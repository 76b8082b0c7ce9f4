// Row cuda/ka16_sm90: Q4_K and Q6_K x fp16 or bf16, layout cuda/k, wgmma with the weights dequantized into registers. They are
// rounded once, as cuda/dense would write them. Sums restart in every chunk of k.
#include "gemm_sm90.cuh"
#include "k_unpack.cuh"

namespace qk_cuda {
namespace ka16_sm90 {

template <template <bool> class Codes, bool kBf16> struct Format : Codes<kBf16> {
    using Acc = float;
    static constexpr int kXBytes = 2;
    static constexpr bool kFromShared = false, kTotals = true, kPromotes = false, kPowers = true;
    static constexpr int kCluster = 1, kLargest = 2;
    static PTX_FN KState begin(const KContext &context, const unsigned char *band, int row) {
        return powers_of(context, band, row);
    }
    template <int N> static PTX_FN void mma(Acc (&d)[N / 2], const uint32_t (&a)[4], uint64_t x) {
#if PTX_SM90
        if constexpr (kBf16)
            ptx::wgmma_rs_bf16<N>(d, a, x);
        else
            ptx::wgmma_rs_f16<N>(d, a, x);
#endif
    }
};
// use(F{}) for the format of a call.
template <class Use> auto with_format(const qe_quant &q, int x_code, Use use) {
    const bool bf16 = x_code == QE_CODE_BF16;
    if (q.bits == 4) return bf16 ? use(Format<K4, true>{}) : use(Format<K4, false>{});
    return bf16 ? use(Format<K6, true>{}) : use(Format<K6, false>{});
}

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (g->w.act.mode != QE_ACT_FLOAT) return qk_no(why, "the input is quantized: its sums are exact");
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", int(device->sm));
    if (g->x.code != QE_CODE_F16 && g->x.code != QE_CODE_BF16) return qk_no(why, "input is not of 16 bits");
    if (g->w.chunk_k % sm90::kBlockK && g->w.chunk_k < g->w.k)
        return qk_no(why, "chunks of %lld columns", (long long)g->w.chunk_k);
    if (device->unit_bytes < uint32_t(sm90::Config<Format<K4, false>, 128>::kSharedBytes))
        return qk_no(why, "%u bytes of shared memory", device->unit_bytes);
    return float_output(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    with_format(g->w.quant, g->x.code, [&](auto format) {
        using F = decltype(format);
        sm90::plan_of<F>(device, g, F::kLargest, chunk_blocks(g->w), out);
    });
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    return with_format(w.quant, args->x.quant.code, [&](auto format) {
        using F = decltype(format);
        sm90::Args<F> a{};
        a.band_bytes = qk_k_band_bytes(&w.quant, w.k), a.block_bytes = int(qk_k_block_bytes(&w.quant));
        a.chunk_blocks = chunk_blocks(w);
        a.context = {a.band_bytes - QK_W4_ROWS * 4};
        a.output = output_of(plan, args, a.band_bytes, 0);
        return sm90::run_family<F, F::kLargest>(plan, args, a, queue, "cuda/ka16_sm90", err);
    });
}

} // namespace ka16_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_ka16_sm90_row = {"cuda/ka16_sm90", &qk_cuda_k, qk_cuda::ka16_sm90::supports,
                                                 qk_cuda::ka16_sm90::plan, qk_cuda::ka16_sm90::run};
