// Row cuda/w2a8_sm90: signs, ternary and other codes of up to 2 bits x int8, wgmma with the weights from registers, layout
// cuda/w2a8. The sums are exact, so tiles and splits of k do not show in y.
#include "gemm_sm90.cuh"
#include "w2_unpack.cuh"

namespace qk_cuda {
namespace w2a8_sm90 {

template <int kBits> struct Format : W2A8<kBits> {
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

} // namespace w2a8_sm90
template <int kBits> constexpr bool sm90::kSharesUnit<w2a8_sm90::Format<kBits>> = false;
namespace w2a8_sm90 {

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", int(device->sm));
    if (device->unit_bytes < uint32_t(sm90::Config<Format<2>, 256>::kSharedBytes))
        return qk_no(why, "%u bytes of shared memory", device->unit_bytes);
    return integer_output(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    if (g->w.quant.bits == 1)
        sm90::plan_of<Format<1>>(device, g, 3, 0, out);
    else
        sm90::plan_of<Format<2>>(device, g, 3, 0, out);
}
template <int kBits>
qe_status run_bits(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    sm90::Args<Format<kBits>> a{};
    a.band_bytes = qk_w2a8_band_bytes(&w.quant, w.k), a.block_bytes = Format<kBits>::kBlockBytes;
    a.context = w2_table(w.quant);
    a.output = output_of(plan, args, a.band_bytes, a.band_bytes - QK_W4_ROWS * 8);
    return sm90::run_family<Format<kBits>, 3>(plan, args, a, queue, "cuda/w2a8_sm90", err);
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    return args->w->shape.quant.bits == 1 ? run_bits<1>(plan, args, queue, err) : run_bits<2>(plan, args, queue, err);
}

} // namespace w2a8_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w2a8_sm90_row = {"cuda/w2a8_sm90", &qk_cuda_w2a8, qk_cuda::w2a8_sm90::supports,
                                                 qk_cuda::w2a8_sm90::plan, qk_cuda::w2a8_sm90::run};
