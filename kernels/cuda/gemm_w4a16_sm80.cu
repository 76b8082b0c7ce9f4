// Rows of layout cuda/w4a16 below sm_90: cuda/w4a16_sm80 (mma.sync m16n8k16, fp16 or bf16 input) and cuda/w4a16_simt (one
// thread per output, any float input). fp16 weights are scaled in registers; bf16 would round the fp16 scales, so there codes
// stay integers, exact in bf16, and sums are scaled in fp32.
#include "gemm_sm80.cuh"
#include "simt_row.cuh"
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
    return sm80::takes_halves(device, g, sm80::Config<Half<4>, 64>::kSharedBytes, why);
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
struct SimtArgs : simt_row::Args {
    int units, has_zeros, zero;
    PTX_FN float dot(int64_t m, int64_t n) const {
        const unsigned char *half = w + n / QK_W4_ROWS * band_bytes + n % QK_W4_ROWS / 64 * block_bytes;
        const int row = int(n % 64), r = row % 16 / 8, lane = row / 16 * 32 + row % 8 * 4;
        float sum = 0, y = 0;
        for (int64_t i = 0; i < k; i++) {
            if (i && i % chunk_k == 0) sum = qe_add(sum, y), y = 0;
            const unsigned char *block = half + i / 128 * 2 * block_bytes;
            const int in = int(i % 128), column = in % 16, word = in / 32 * 2 + r, unit = units == 1 ? 0 : in / 32;
            const unsigned char byte = block[word / 4 * 2048 + (lane + column % 8 / 2) * 16 + word % 4 * 4 +
                                             column % 2 * 2 + in / 16 % 2];
            const unsigned char *numbers = block + QK_W4_CODE_BYTES;
            const int at = row / 16 * 16 + row % 8 * 2 + r;
            const int z = has_zeros ? numbers[units * 128 + unit * 64 + at] : zero;
            const float s = qe_f16_to_f32(reinterpret_cast<const uint16_t *>(numbers + unit * 128)[at]);
            const float value = qe_mul(s, float((byte >> 4 * (column / 8) & 15) - z));
            y = qe_fma(x_at(m, i), value, y);
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
    a.band_bytes = qk_w4a16_band_bytes(&w.quant, w.k), a.block_bytes = qk_w4a16_block_bytes(&w.quant, w.k);
    a.units = qk_w4_units(&w.quant, w.k);
    a.has_zeros = w.quant.zero == QE_ZERO_POINT, a.zero = w.quant.zero_const;
    return simt_row::run(plan, args, a, 0, queue, err);
}

} // namespace w4a16
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w4a16_sm80_row = {"cuda/w4a16_sm80", &qk_cuda_w4a16, qk_cuda::w4a16::supports_sm80,
                                                  qk_cuda::w4a16::plan_sm80, qk_cuda::w4a16::run_sm80};
extern "C" const qk_row qk_cuda_w4a16_simt_row = {"cuda/w4a16_simt", &qk_cuda_w4a16, qk_cuda::w4a16::supports_simt,
                                                  qk_cuda::simt_row::plan, qk_cuda::w4a16::run_simt};
