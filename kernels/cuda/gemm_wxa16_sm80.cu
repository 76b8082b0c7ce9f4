// Rows of layout cuda/wxa16: cuda/wxa16_sm80 (mma.sync m16n8k16, fp16 or bf16 input) and cuda/wxa16_simt (one thread per
// output, any float input). Codes enter the product unscaled, c - z exactly, table values rounded once to the input's type;
// part sums are scaled in fp32 after every unit, whatever type the checkpoint keeps scales in.
#include "gemm_sm80.cuh"
#include "simt_row.cuh"
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
    return sm80::takes_halves(device, g, sm80::Config<Codes8<false, 8>, 64>::kSharedBytes, why);
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
struct SimtArgs : simt_row::Args {
    int code_bits, units;
    WxContext context;
    PTX_FN void move(int64_t bytes) { simt_row::Args::move(bytes), move_context(context, bytes); }
    PTX_FN float dot(int64_t m, int64_t n) const {
        const unsigned char *half = w + n / QK_W4_ROWS * band_bytes + n % QK_W4_ROWS / 64 * block_bytes;
        const int row = int(n % 64), r = row % 16 / 8, lane = row / 16 * 32 + row % 8 * 4;
        const int at = row / 16 * 16 + row % 8 * 2 + r;
        float sum = 0, y = 0;
        for (int64_t i = 0; i < k; i++) {
            if (i && i % chunk_k == 0) sum = qe_add(sum, y), y = 0;
            const unsigned char *block = half + i / 128 * 2 * block_bytes, *numbers = block + code_bits * 1024;
            const int in = int(i % 128), step = in / 16, column = in % 16, unit = in * units / 128, word = step / 2 * 2 + r;
            const unsigned char *quad = block + (lane + column % 8 / 2) * 16;
            float value;
            if (code_bits == 8) {
                const int c = quad[step / 2 * 2048 + (step % 2 * 2 + r) * 4 + column % 2 + column / 8 * 2];
                value = float(c - (context.has_zeros ? numbers[units * 256 + unit * 64 + at] : context.zero));
            } else
                value = context.table[quad[word / 4 * 2048 + word % 4 * 4 + step % 2 * 2 + column / 8] >> column % 2 * 4 & 15];
            const float scale = reinterpret_cast<const float *>(numbers + unit * 256)[at];
            y = qe_fma(x_at(m, i), qe_mul(scale, value), y);
        }
        return qe_add(sum, y);
    }
};
bool supports_simt(const qk_device *, const qk_gemm *g, qk_why *why) {
    return float_output(g, why);
}
qe_status run_simt(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    SimtArgs a{};
    a.band_bytes = qk_wx_band_bytes(&w.quant, w.k), a.block_bytes = qk_wx_block_bytes(&w.quant, w.k);
    a.code_bits = qk_wx_code_bits(&w.quant), a.units = int(qk_wx_units(&w.quant, w.k));
    a.context = context_of(w, args->w->blob);
    return simt_row::run(plan, args, a, qk_cuda_wxa16.head_bytes(&w), queue, err);
}

} // namespace wxa16
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_wxa16_sm80_row = {"cuda/wxa16_sm80", &qk_cuda_wxa16, qk_cuda::wxa16::supports_sm80,
                                                  qk_cuda::wxa16::plan_sm80, qk_cuda::wxa16::run_sm80};
extern "C" const qk_row qk_cuda_wxa16_simt_row = {"cuda/wxa16_simt", &qk_cuda_wxa16, qk_cuda::wxa16::supports_simt,
                                                  qk_cuda::simt_row::plan, qk_cuda::wxa16::run_simt};
