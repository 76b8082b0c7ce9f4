// Row cuda/wxa16_sm90: 8-bit integers and 4-bit table codes x fp16 or bf16, layout cuda/wxa16, wgmma with the codes from
// registers. They enter the product unscaled; sums are scaled in fp32 after every unit of columns, whatever type the
// checkpoint keeps scales in.
#include "units_sm90.cuh"
#include "wx_unpack.cuh"

namespace qk_cuda {
namespace wxa16_sm90 {

template <template <bool, int> class Codes, bool kBf16, int kUnitCount> struct Format : Codes<kBf16, kUnitCount> {
    using Acc = float;
    static constexpr int kXBytes = 2, kUnits = kUnitCount;
    static constexpr bool kFromShared = false, kTotals = true, kPromotes = true;
    static constexpr int kCluster = 1, kLargest = 2;
    template <int N> static PTX_FN void mma(Acc (&d)[N / 2], const uint32_t (&a)[4], uint64_t x) {
#if PTX_SM90
        if constexpr (kBf16)
            ptx::wgmma_rs_bf16<N>(d, a, x);
        else
            ptx::wgmma_rs_f16<N>(d, a, x);
#endif
    }
    template <int N> static PTX_FN void mma_keep(Acc (&d)[N / 2], const uint32_t (&a)[4], uint64_t x, uint32_t keep) {
#if PTX_SM90
        if constexpr (kBf16)
            ptx::wgmma_rs_bf16_keep<N>(d, a, x, keep);
        else
            ptx::wgmma_rs_f16_keep<N>(d, a, x, keep);
#endif
    }
};
template <bool kBf16, int kUnits> using Codes8 = Format<WxCodes8, kBf16, kUnits>;
template <bool kBf16, int kUnits> using Table4 = Format<WxTable4, kBf16, kUnits>;

// use(F{}) for the format of a call.
template <bool kBf16, class Use> auto with_type(const qe_quant &q, int64_t k, Use use) {
    const int64_t units = qk_wx_units(&q, k);
    if (qk_wx_code_bits(&q) == 8)
        return units == 1 ? use(Codes8<kBf16, 1>{}) : units == 4 ? use(Codes8<kBf16, 4>{}) : use(Codes8<kBf16, 8>{});
    return units == 1   ? use(Table4<kBf16, 1>{})
           : units == 2 ? use(Table4<kBf16, 2>{})
           : units == 4 ? use(Table4<kBf16, 4>{})
                        : use(Table4<kBf16, 8>{});
}
template <class Use> auto with_format(const qe_quant &q, int64_t k, int x_code, Use use) {
    return x_code == QE_CODE_BF16 ? with_type<true>(q, k, use) : with_type<false>(q, k, use);
}

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr int bytes = 227 * 1024; // rings take what a block of sm_90 has
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", int(device->sm));
    if (g->x.code != QE_CODE_F16 && g->x.code != QE_CODE_BF16) return qk_no(why, "input is not of 16 bits");
    if (g->w.chunk_k % sm90::kBlockK && g->w.chunk_k < g->w.k)
        return qk_no(why, "chunks of %lld columns", (long long)g->w.chunk_k);
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    return float_output(g, why);
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
        a.band_bytes = qk_wx_band_bytes(&w.quant, w.k), a.block_bytes = int(qk_wx_block_bytes(&w.quant, w.k));
        a.chunk_blocks = chunk_blocks(w);
        a.context = {static_cast<const float *>(args->w->blob), w.quant.zero == QE_ZERO_POINT, w.quant.zero_const};
        a.output = output_of(plan, args, a.band_bytes, 0);
        return sm90::run_units(plan, args, a, queue, "cuda/wxa16_sm90", err, qk_cuda_wxa16.head_bytes(&w));
    });
}

} // namespace wxa16_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_wxa16_sm90_row = {"cuda/wxa16_sm90", &qk_cuda_wxa16, qk_cuda::wxa16_sm90::supports,
                                                  qk_cuda::wxa16_sm90::plan, qk_cuda::wxa16_sm90::run};
