// Row cuda/w4a8_sm90: integer weights of up to 4 bits with integer group scales x int8, layout cuda/w4a8, wgmma with the
// weights from registers. The sums are exact, so tiles and splits of k do not show in y.
#include "gemm_sm90.cuh"
#include "w4_unpack.cuh"

namespace qk_cuda {
namespace w4a8_sm90 {

template <int kUnits> struct Format : W4A8<kUnits> {
    using Acc = int32_t;
    static constexpr int kXBytes = 1;
    static constexpr bool kFromShared = false, kTotals = false, kPromotes = false;
    static constexpr int kCluster = 2;
    template <int N> static PTX_FN void mma(Acc (&d)[N / 2], const uint32_t (&a)[4], uint64_t x) {
#if PTX_SM90
        ptx::wgmma_rs_s8s8<N>(d, a, x);
#endif
    }
};

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", int(device->sm));
    if (device->unit_bytes < uint32_t(sm90::Config<Format<4>, 256>::kSharedBytes))
        return qk_no(why, "%u bytes of shared memory", device->unit_bytes);
    return integer_output(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    const int units = qk_w4a8_units(&g->w.quant, g->w.k);
    auto *const form = units == 0   ? sm90::plan_of<Format<0>>
                       : units == 1 ? sm90::plan_of<Format<1>>
                                    : sm90::plan_of<Format<4>>;
    form(device, g, 3, 0, out);
}
template <int kUnits>
qe_status run_units(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    sm90::Args<Format<kUnits>> a{};
    a.band_bytes = qk_w4a8_band_bytes(&w.quant, w.k), a.block_bytes = int(qk_w4a8_block_bytes(&w.quant, w.k));
    a.output = output_of(plan, args, a.band_bytes, a.band_bytes - QK_W4_ROWS * 8), a.output.shift = Format<kUnits>::kShift;
    return sm90::run_family<Format<kUnits>, 3>(plan, args, a, queue, "cuda/w4a8_sm90", err);
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const int units = qk_w4a8_units(&args->w->shape.quant, args->w->shape.k);
    auto *const form = units == 0 ? run_units<0> : units == 1 ? run_units<1> : run_units<4>;
    return form(plan, args, queue, err);
}

} // namespace w4a8_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w4a8_sm90_row = {"cuda/w4a8_sm90", &qk_cuda_w4a8, qk_cuda::w4a8_sm90::supports,
                                                 qk_cuda::w4a8_sm90::plan, qk_cuda::w4a8_sm90::run};
