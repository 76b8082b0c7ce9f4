// Rows of layout cuda/wxa16: cuda/wxa16_sm80 (mma.sync m16n8k16, fp16 or bf16 input) and cuda/wxa16_simt (one thread per
// output, any float input). Codes enter the product unscaled, c - z exactly, table values rounded once to the input's type;
// part sums are scaled in fp32 after every unit, whatever type the checkpoint keeps scales in.
#include "gemm_sm80.cuh"
#include "wx_unpack.cuh"

namespace qk_cuda {
namespace wxa16 {

// A unit's end is known to the compiler: it is no branch, and the first product after it starts from zero.
template <template <bool, int> class Codes, bool kBf16, int kUnitCount> struct Format : Codes<kBf16, kUnitCount> {
    using Acc = float;
    using Unpacked = Codes<kBf16, kUnitCount>;
    static constexpr int kXBytes = 2, kSteps = 4;
    static constexpr bool kTotals = true, kPromotes = true;
    static PTX_FN void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        if constexpr (kBf16)
            ptx::mma_m16n8k16_bf16(d, a, b);
        else
            ptx::mma_m16n8k16_f16(d, a, b);
    }
    PTX_FN bool unit_ends(int step) const { return (step + 1) % Unpacked::kStepsPerUnit == 0; }
    PTX_FN float scale(int step, int r) const { return Unpacked::scale(step / Unpacked::kStepsPerUnit, r); }
};
template <bool kBf16, int kUnits> using Codes8 = Format<WxCodes8, kBf16, kUnits>;
template <bool kBf16, int kUnits> using Table4 = Format<WxTable4, kBf16, kUnits>;

bool supports_sm80(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr int bytes = sm80::Config<Codes8<false, 8>, 64>::kSharedBytes;
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (g->x.code != QE_CODE_F16 && g->x.code != QE_CODE_BF16) return qk_no(why, "input is not of 16 bits");
    if (g->w.chunk_k % sm80::kBlockK && g->w.chunk_k < g->w.k)
        return qk_no(why, "chunks of %lld columns", (long long)g->w.chunk_k);
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    return float_output(g, why);
}
// f(Format) of the weight, for fp16 or bf16 input.
template <bool kBf16, class Do> auto with_format(const qk_shape &w, Do f) {
    const int64_t units = qk_wx_units(&w.quant, w.k);
    if (qk_wx_code_bits(&w.quant) == 8)
        return units == 1 ? f(Codes8<kBf16, 1>()) : units == 4 ? f(Codes8<kBf16, 4>()) : f(Codes8<kBf16, 8>());
    return units == 1   ? f(Table4<kBf16, 1>())
           : units == 2 ? f(Table4<kBf16, 2>())
           : units == 4 ? f(Table4<kBf16, 4>())
                        : f(Table4<kBf16, 8>());
}
void plan_sm80(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    with_format<false>(g->w, [&](auto format) { // bf16 has the same stages
        sm80::plan_of<decltype(format)>(device, g, 2, chunk_blocks(g->w), out);
    });
}
WxContext context_of(const qk_shape &w, const void *blob) {
    return {static_cast<const float *>(blob), w.quant.zero == QE_ZERO_POINT, w.quant.zero_const};
}
template <class F>
qe_status run_format(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    sm80::Args<F> a{};
    a.band_bytes = qk_wx_band_bytes(&w.quant, w.k), a.block_bytes = int(qk_wx_block_bytes(&w.quant, w.k));
    a.head_bytes = int64_t(qk_cuda_wxa16.head_bytes(&w));
    a.chunk_blocks = chunk_blocks(w);
    a.context = context_of(w, args->w->blob);
    a.output = output_of(plan, args, a.band_bytes, 0);
    return sm80::run_family<F, 2>(plan, args, a, queue, "cuda/wxa16_sm80", err);
}
qe_status run_sm80(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const auto run = [&](auto format) { return run_format<decltype(format)>(plan, args, queue, err); };
    return args->x.quant.code == QE_CODE_F16 ? with_format<false>(args->w->shape, run)
                                             : with_format<true>(args->w->shape, run);
}

// ---- one thread per output ---------------------------------------------------------------------------------------
constexpr int kSimtThreads = 128;
struct SimtArgs {
    const void *x;
    int64_t ld, m, k, chunk_k;
    int x_type;
    const unsigned char *w;
    int64_t band_bytes, block_bytes;
    int code_bits, units;
    WxContext context;
    Epilogue out;
    Groups groups;
};
PTX_FN float dot(const SimtArgs &a, int64_t m, int64_t n) {
    const unsigned char *half = a.w + n / QK_W4_ROWS * a.band_bytes + n % QK_W4_ROWS / 64 * a.block_bytes;
    const int row = int(n % 64), r = row % 16 / 8, lane = row / 16 * 32 + row % 8 * 4, units = a.units;
    const int at = row / 16 * 16 + row % 8 * 2 + r;
    float sum = 0, y = 0;
    for (int64_t k = 0; k < a.k; k++) {
        if (k && k % a.chunk_k == 0) sum = qe_add(sum, y), y = 0;
        const unsigned char *block = half + k / 128 * 2 * a.block_bytes, *numbers = block + a.code_bits * 1024;
        const int in = int(k % 128), step = in / 16, column = in % 16, unit = in * units / 128, word = step / 2 * 2 + r;
        const unsigned char *quad = block + (lane + column % 8 / 2) * 16;
        float value;
        if (a.code_bits == 8) {
            const int c = quad[step / 2 * 2048 + (step % 2 * 2 + r) * 4 + column % 2 + column / 8 * 2];
            value = float(c - (a.context.has_zeros ? numbers[units * 256 + unit * 64 + at] : a.context.zero));
        } else
            value = a.context.table[quad[word / 4 * 2048 + word % 4 * 4 + step % 2 * 2 + column / 8] >> column % 2 * 4 & 15];
        const float scale = reinterpret_cast<const float *>(numbers + unit * 256)[at];
        y = qe_fma(load_real(a.x, m * a.ld + k, a.x_type), qe_mul(scale, value), y);
    }
    return qe_add(sum, y);
}
__global__ void __launch_bounds__(kSimtThreads) plain(const __grid_constant__ SimtArgs args) {
    const Tile rows = args.groups.tile(blockIdx.x, 4);
    const int64_t n = (int64_t(blockIdx.y) * 32 + threadIdx.x % 32) * 2, m = rows.first + threadIdx.x / 32;
    if (n >= args.out.n || m >= rows.end) return;
    SimtArgs a = args;
    a.w += rows.expert * a.groups.expert_bytes, a.out = args.out.of(rows.expert);
    move_context(a.context, rows.expert * a.groups.expert_bytes);
    const float v0 = dot(a, m, n), v1 = n + 1 < a.out.n ? dot(a, m, n + 1) : 0.0f;
    a.out.pair(m, n, v0, v1);
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
    a.w = static_cast<const unsigned char *>(args->w->blob) + qk_cuda_wxa16.head_bytes(&w);
    a.band_bytes = qk_wx_band_bytes(&w.quant, w.k), a.block_bytes = qk_wx_block_bytes(&w.quant, w.k);
    a.code_bits = qk_wx_code_bits(&w.quant), a.units = int(qk_wx_units(&w.quant, w.k));
    a.context = context_of(w, args->w->blob);
    a.out = epilogue_of(plan, args), a.groups = groups_of(args);
    if (a.m == 0) return QE_OK;
    return launch(plain, dim3(tiles_of(args, 4), plan->grid[1]), plan->block, 0, queue, "cuda/wxa16_simt", err,
                  a);
}

} // namespace wxa16
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_wxa16_sm80_row = {"cuda/wxa16_sm80", &qk_cuda_wxa16, qk_cuda::wxa16::supports_sm80,
                                                  qk_cuda::wxa16::plan_sm80, qk_cuda::wxa16::run_sm80};
extern "C" const qk_row qk_cuda_wxa16_simt_row = {"cuda/wxa16_simt", &qk_cuda_wxa16, qk_cuda::wxa16::supports_simt,
                                                  qk_cuda::wxa16::plan_simt, qk_cuda::wxa16::run_simt};
