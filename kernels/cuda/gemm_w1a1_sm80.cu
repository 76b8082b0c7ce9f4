// Row cuda/w1a1_sm80: signs x signs by mma.sync m16n8k256 and.popc, layout cuda/w1a1. Bytes of bits take the way of int8
// values through the pipeline, a k-block is 1024 columns; the epilogue turns counts of common ones into sums of signs.
#include "gemm_sm80.cuh"
#include "w8_tile.cuh"

namespace qk_cuda {
namespace w1a1_sm80 {

constexpr int kLeastTokens = 5; // fewer: cuda/w1a1_popc

struct Format : W8Tile {
    using Acc = int32_t;
    using Out = BitOutput;
    static constexpr int kXBytes = 1, kColumns = QK_W1_TILE_K;
    static constexpr bool kTotals = false, kPromotes = false;
    static PTX_FN void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx::mma_m16n8k256_and_popc(d, a, b);
    }
};

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr int bytes = sm80::Config<Format, 128>::kSharedBytes;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    if (qk_tile_m(g) < kLeastTokens) return qk_no(why, "%d tokens, needed %d", int(qk_tile_m(g)), kLeastTokens);
    return integer_output(g, why);
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    sm80::plan_of<Format>(device, g, 3, 0, out);
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const int64_t k = args->w->shape.k;
    if (!args->x.bits || !args->x.ones)
        return qe_error_set(err, QE_E_ARGUMENT, "cuda/w1a1_sm80: x was not prepared as signs");
    sm80::Args<Format> a{};
    a.band_bytes = qk_w1_band_bytes(k), a.block_bytes = Format::kBlockBytes;
    a.output = {output_of(plan, args, a.band_bytes, qk_w1_tiles(k) * QK_W8_TILE_BYTES), args->x.ones};
    qk_gemm_args bits = *args; // rows of bytes
    bits.x.data = args->x.bits, bits.x.ld = qk_bit_words(k) * 4, bits.x.k = (k + 7) / 8;
    return sm80::run_family<Format, 3>(plan, &bits, a, queue, "cuda/w1a1_sm80", err);
}

} // namespace w1a1_sm80
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w1a1_sm80_row = {"cuda/w1a1_sm80", &qk_cuda_w1a1, qk_cuda::w1a1_sm80::supports,
                                                 qk_cuda::w1a1_sm80::plan, qk_cuda::w1a1_sm80::run};
