// Row cuda/w8a8_sm90: int8 x int8, layout cuda/w8a8, wgmma with both operands from shared memory. Weights are on the M
// side at every m, so few tokens waste no tensor-core rows.
#include "cuda_backend.h"
#include "gemm_sm90.cuh"

namespace qk_cuda {
namespace w8a8_sm90 {

struct Format {
    using Acc = int32_t;
    struct Context {};
    static constexpr int kXBytes = 1, kBlockBytes = QK_W8_TILE_BYTES / 2; // 64 rows of the stored, swizzled tile
    static constexpr bool kFromShared = true, kTotals = false, kPromotes = false;
    static constexpr int kCluster = 2;
    template <int N> static PTX_FN void product(Acc (&d)[N / 2], uint64_t w, uint64_t x) {
#if PTX_SM90
        ptx::wgmma_s8s8<N>(d, w, x);
#endif
    }
};

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", int(device->sm));
    if (device->unit_bytes < uint32_t(sm90::Config<Format, 256>::kSharedBytes))
        return qk_no(why, "%u bytes of shared memory", device->unit_bytes);
    return integer_output(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    sm90::plan_of<Format>(device, g, 3, 0, out);
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    sm90::Args<Format> a{};
    a.band_bytes = qk_w8_band_bytes(args->w->shape.k), a.block_bytes = Format::kBlockBytes;
    a.output = output_of(plan, args, a.band_bytes, a.band_bytes - QK_W8_ROWS * 8);
    return sm90::run_family<Format, 3>(plan, args, a, queue, "cuda/w8a8_sm90", err);
}

} // namespace w8a8_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w8a8_sm90_row = {"cuda/w8a8_sm90", &qk_cuda_w8a8, qk_cuda::w8a8_sm90::supports,
                                                 qk_cuda::w8a8_sm90::plan, qk_cuda::w8a8_sm90::run};
