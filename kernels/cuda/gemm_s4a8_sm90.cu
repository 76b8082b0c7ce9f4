// Row cuda/s4a8_sm90: 4-bit weights of one scale a row x int8, layout cuda/s4a8: no instruction unpacks, ldmatrix loads int8
// for the A registers of wgmma. Nvcc 13.4 and later build its kernels; of an older one's binary the layout refuses every weight.
#include "gemm_sm90.cuh"
#include "w4_unpack.cuh"

namespace qk_cuda {
namespace s4a8_sm90 {

struct Format : S4A8 {
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
    return integer_output(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    sm90::plan_of<Format>(device, g, 3, 0, out);
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
#ifdef PTX_HAS_LDMATRIX_S4
    const qk_shape &w = args->w->shape;
    sm90::Args<Format> a{};
    a.band_bytes = qk_w4a8_band_bytes(&w.quant, w.k), a.block_bytes = QK_W4_CODE_BYTES;
    a.output = output_of(plan, args, a.band_bytes, a.band_bytes - QK_W4_ROWS * 8);
    return sm90::run_family<Format, 3>(plan, args, a, queue, "cuda/s4a8_sm90", err);
#else
    (void)plan, (void)args, (void)queue;
    return qe_error_set(err, QE_E_UNSUPPORTED, "cuda/s4a8_sm90: built by an nvcc before 13.4");
#endif
}

} // namespace s4a8_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_s4a8_sm90_row = {"cuda/s4a8_sm90", &qk_cuda_s4a8, qk_cuda::s4a8_sm90::supports,
                                                 qk_cuda::s4a8_sm90::plan, qk_cuda::s4a8_sm90::run};
