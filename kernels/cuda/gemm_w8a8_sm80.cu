// Row cuda/w8a8_sm80: int8 x int8 by mma.sync m16n8k32, layout cuda/w8a8. Weights need no unpacking: a tile lies as
// ldmatrix reads it. The sums are exact, so tiles and splits of k do not show in y.
#include "gemm_sm80.cuh"
#include "w8_tile.cuh"

namespace qk_cuda {
namespace w8a8_sm80 {

struct Format : W8Tile {
    using Acc = int32_t;
    static constexpr int kXBytes = 1;
    static constexpr bool kTotals = false, kPromotes = false;
    static PTX_FN void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx::mma_m16n8k32_s8(d, a, b);
    }
};

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr int bytes = sm80::Config<Format, 128>::kSharedBytes;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    return integer_output(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    sm80::plan_of<Format>(device, g, 3, 0, out);
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const int64_t k = args->w->shape.k;
    sm80::Args<Format> a{};
    a.band_bytes = qk_w8_band_bytes(k), a.block_bytes = Format::kBlockBytes;
    a.output = output_of(plan, args, a.band_bytes, qk_w8_tiles(k) * QK_W8_TILE_BYTES);
    return sm80::run_family<Format, 3>(plan, args, a, queue, "cuda/w8a8_sm80", err);
}

} // namespace w8a8_sm80
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w8a8_sm80_row = {"cuda/w8a8_sm80", &qk_cuda_w8a8, qk_cuda::w8a8_sm80::supports,
                                                 qk_cuda::w8a8_sm80::plan, qk_cuda::w8a8_sm80::run};
