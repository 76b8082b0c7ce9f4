// Rows of layout cuda/w4a16 below sm_90: cuda/w4a16_sm80 (mma.sync m16n8k16, fp16 or bf16 input) and cuda/w4a16_simt (one
// thread per output, any float input). fp16 weights are scaled in registers; bf16 would round the fp16 scales, so there codes
// stay integers, exact in bf16, and sums are scaled in fp32.
#include "gemm_sm80.cuh"
#include "w4_unpack.cuh"

namespace qk_cuda {
namespace w4a16 {

template <int kUnits> struct Half : W4A16<kUnits> {
    using Acc = float;
    static constexpr int kXBytes = 2;
    static constexpr bool kTotals = true, kPromotes = false;
    static PTX_FN void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx::mma_m16n8k16_f16(d, a, b);
    }
};
template <int kUnits> struct Bfloat : W4A16Codes<kUnits> {
    using Acc = float;
    static constexpr int kXBytes = 2, kSteps = W4A16<kUnits>::kSteps;
    static constexpr bool kTotals = true, kPromotes = true;
    static PTX_FN void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx::mma_m16n8k16_bf16(d, a, b);
    }
    PTX_FN bool unit_ends(int step) const { return kUnits == 1 ? step == 2 * kSteps - 1 : step % 2 == 1; }
    PTX_FN float scale(int step, int r) const { return this->scale_of_unit(kUnits == 1 ? 0 : step / 2, r); }
};

bool supports_sm80(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr int bytes = sm80::Config<Half<4>, 64>::kSharedBytes;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (g->x.code != QE_CODE_F16 && g->x.code != QE_CODE_BF16) return qk_no(why, "input is not of 16 bits");
    if (g->w.chunk_k % sm80::kBlockK && g->w.chunk_k < g->w.k)
        return qk_no(why, "chunks of %lld columns", (long long)g->w.chunk_k);
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    return float_output(g, why);
}
void plan_sm80(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    const bool fine = qk_w4_units(&g->w.quant, g->w.k) == 4;
    auto *const form = g->x.code == QE_CODE_F16 ? (fine ? sm80::plan_of<Half<4>> : sm80::plan_of<Half<1>>)
                                                : (fine ? sm80::plan_of<Bfloat<4>> : sm80::plan_of<Bfloat<1>>);
    form(device, g, 2, chunk_blocks(g->w), out);
}
template <class F>
qe_status run_format(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    sm80::Args<F> a{};
    a.band_bytes = qk_w4a16_band_bytes(&w.quant, w.k), a.block_bytes = int(qk_w4a16_block_bytes(&w.quant, w.k));
    a.chunk_blocks = chunk_blocks(w);
    a.context = {w.quant.zero == QE_ZERO_POINT, w.quant.zero_const};
    a.output = output_of(plan, args, a.band_bytes, 0);
    return sm80::run_family<F, 2>(plan, args, a, queue, "cuda/w4a16_sm80", err);
}
qe_status run_sm80(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    const bool fine = qk_w4_units(&w.quant, w.k) == 4;
    if (args->x.quant.code == QE_CODE_F16)
        return fine ? run_format<Half<4>>(plan, args, queue, err) : run_format<Half<1>>(plan, args, queue, err);
    return fine ? run_format<Bfloat<4>>(plan, args, queue, err) : run_format<Bfloat<1>>(plan, args, queue, err);
}

// ---- one thread per output ---------------------------------------------------------------------------------------
constexpr int kSimtThreads = 128;
struct SimtArgs {
    const void *x;
    int64_t ld, m, k, chunk_k;
    int x_type;
    const unsigned char *w;
    int64_t band_bytes, block_bytes;
    int units, has_zeros, zero;
    Epilogue out;
    Groups groups;
};
PTX_FN float dot(const SimtArgs &a, const unsigned char *bands, int64_t m, int64_t n) {
    const unsigned char *half = bands + n / QK_W4_ROWS * a.band_bytes + n % QK_W4_ROWS / 64 * a.block_bytes;
    const int row = int(n % 64), r = row % 16 / 8, lane = row / 16 * 32 + row % 8 * 4;
    float sum = 0, y = 0;
    for (int64_t k = 0; k < a.k; k++) {
        if (k && k % a.chunk_k == 0) sum = qe_add(sum, y), y = 0;
        const unsigned char *block = half + k / 128 * 2 * a.block_bytes;
        const int in = int(k % 128), column = in % 16, word = in / 32 * 2 + r, unit = a.units == 1 ? 0 : in / 32;
        const unsigned char byte = block[word / 4 * 2048 + (lane + column % 8 / 2) * 16 + word % 4 * 4 +
                                         column % 2 * 2 + in / 16 % 2];
        const unsigned char *numbers = block + QK_W4_CODE_BYTES;
        const int at = row / 16 * 16 + row % 8 * 2 + r;
        const int z = a.has_zeros ? numbers[a.units * 128 + unit * 64 + at] : a.zero;
        const float s = qe_f16_to_f32(reinterpret_cast<const uint16_t *>(numbers + unit * 128)[at]);
        const float w = qe_mul(s, float((byte >> 4 * (column / 8) & 15) - z));
        y = qe_fma(load_real(a.x, m * a.ld + k, a.x_type), w, y);
    }
    return qe_add(sum, y);
}
__global__ void __launch_bounds__(kSimtThreads) plain(const __grid_constant__ SimtArgs args) {
    const Tile rows = args.groups.tile(blockIdx.x, 4);
    const int64_t n = (int64_t(blockIdx.y) * 32 + threadIdx.x % 32) * 2, m = rows.first + threadIdx.x / 32;
    if (n >= args.out.n || m >= rows.end) return;
    const unsigned char *bands = args.w + rows.expert * args.groups.expert_bytes;
    const float v0 = dot(args, bands, m, n), v1 = n + 1 < args.out.n ? dot(args, bands, m, n + 1) : 0.0f;
    args.out.of(rows.expert).pair(m, n, v0, v1);
}
bool supports_simt(const qk_device *, const qk_gemm *g, qk_why *why) {
    return float_output(g, why);
}
void plan_simt(const qk_device *, const qk_gemm *g, qk_plan *out) {
    out->variant = 0;
    out->grid[0] = uint32_t((g->m + 3) / 4), out->grid[1] = uint32_t((g->w.n + 63) / 64), out->grid[2] = 1;
    out->block = kSimtThreads;
}
qe_status run_simt(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    SimtArgs a{};
    a.x = args->x.data, a.x_type = args->x.quant.code, a.ld = args->x.ld, a.m = args->x.m, a.k = w.k;
    a.chunk_k = w.chunk_k > 0 ? w.chunk_k : w.k;
    a.w = static_cast<const unsigned char *>(args->w->blob);
    a.band_bytes = qk_w4a16_band_bytes(&w.quant, w.k), a.block_bytes = qk_w4a16_block_bytes(&w.quant, w.k);
    a.units = qk_w4_units(&w.quant, w.k);
    a.has_zeros = w.quant.zero == QE_ZERO_POINT, a.zero = w.quant.zero_const;
    a.out = epilogue_of(plan, args), a.groups = groups_of(args);
    if (a.m == 0) return QE_OK;
    return launch(plain, dim3(tiles_of(args, 4), plan->grid[1]), plan->block, 0, queue, "cuda/w4a16_simt", err,
                  a);
}

} // namespace w4a16
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w4a16_sm80_row = {"cuda/w4a16_sm80", &qk_cuda_w4a16, qk_cuda::w4a16::supports_sm80,
                                                  qk_cuda::w4a16::plan_sm80, qk_cuda::w4a16::run_sm80};
extern "C" const qk_row qk_cuda_w4a16_simt_row = {"cuda/w4a16_simt", &qk_cuda_w4a16, qk_cuda::w4a16::supports_simt,
                                                  qk_cuda::w4a16::plan_simt, qk_cuda::w4a16::run_simt};
