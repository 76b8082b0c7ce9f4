// Row cuda/w2a8_sm80: signs, ternary and other codes of up to 2 bits x int8 by mma.sync m16n8k32, layout
// cuda/w2a8. The sums are exact, so tiles and splits of k do not show in y.
#include "gemm_sm80.cuh"
#include "w2_unpack.cuh"

namespace qk_cuda {
namespace w2a8_sm80 {

template <int kBits> struct Format : W2A8<kBits> {
    using Acc = int32_t;
    static constexpr int kXBytes = 1;
    static constexpr bool kTotals = false, kPromotes = false;
    static PTX_FN void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx::mma_m16n8k32_s8(d, a, b);
    }
};

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr int bytes = sm80::Config<Format<2>, 128>::kSharedBytes;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    return integer_output(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    if (g->w.quant.bits == 1)
        sm80::plan_of<Format<1>>(device, g, 3, 0, out);
    else
        sm80::plan_of<Format<2>>(device, g, 3, 0, out);
}
template <int kBits>
qe_status run_bits(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    sm80::Args<Format<kBits>> a{};
    a.band_bytes = qk_w2a8_band_bytes(&w.quant, w.k), a.block_bytes = Format<kBits>::kBlockBytes;
    a.context = w2_table(w.quant);
    a.output = output_of(plan, args, a.band_bytes, a.band_bytes - QK_W4_ROWS * 8);
    return sm80::run_family<Format<kBits>, 3>(plan, args, a, queue, "cuda/w2a8_sm80", err);
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    return args->w->shape.quant.bits == 1 ? run_bits<1>(plan, args, queue, err) : run_bits<2>(plan, args, queue, err);
}

} // namespace w2a8_sm80
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w2a8_sm80_row = {"cuda/w2a8_sm80", &qk_cuda_w2a8, qk_cuda::w2a8_sm80::supports,
                                                 qk_cuda::w2a8_sm80::plan, qk_cuda::w2a8_sm80::run};
