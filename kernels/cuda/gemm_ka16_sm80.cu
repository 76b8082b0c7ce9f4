// Rows of layout cuda/k for float input below sm_90: cuda/ka16_sm80 (mma.sync m16n8k16, fp16 or bf16 input) and cuda/ka16_simt
// (one thread per output, any float input). Weights are rounded once, as cuda/dense would write them, and multiplied in the
// same order: of many tokens the dense kernels, which do not unpack for every tile, take over with the same bits.
#include "dense.cuh"
#include "gemm_sm80.cuh"
#include "k_unpack.cuh"
#include "simt_row.cuh"

namespace qk_cuda {
namespace ka16 {

template <template <bool> class Codes, bool kBf16> struct Format : Codes<kBf16> {
    using Acc = float;
    static constexpr int kXBytes = 2;
    static constexpr bool kTotals = true, kPromotes = false, kPowers = true;
    static PTX_FN KState begin(const KContext &context, const unsigned char *band, int row) {
        return powers_of(context, band, row);
    }
    static PTX_FN void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        if constexpr (kBf16)
            ptx::mma_m16n8k16_bf16(d, a, b);
        else
            ptx::mma_m16n8k16_f16(d, a, b);
    }
};

bool supports_sm80(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (g->w.act.mode != QE_ACT_FLOAT) return qk_no(why, "the input is quantized: its sums are exact");
    return sm80::takes_halves(device, g, sm80::Config<Format<K6, false>, 64>::kSharedBytes, why);
}
// use(F{}) for the format of a call.
template <class Use> auto with_format(const qe_quant &q, int x_code, Use use) {
    const bool bf16 = x_code == QE_CODE_BF16;
    if (q.bits == 4) return bf16 ? use(Format<K4, true>{}) : use(Format<K4, false>{});
    return bf16 ? use(Format<K6, true>{}) : use(Format<K6, false>{});
}
constexpr int kDense = 8; // variants from here on are those of cuda/dense_sm80
// Cards with little bandwidth for their products write 16-bit weights dearly.
int64_t most_in_registers(const qk_device *device) {
    const bool graphics = (device->sm / 10 == 8 && device->sm > 80) || device->sm >= 120;
    return graphics ? 256 : 64;
}
void plan_sm80(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    if (qk_tile_m(g) > most_in_registers(device)) {
        dense_sm80::plan(device, g, out);
        out->variant += kDense;
        return;
    }
    with_format(g->w.quant, g->x.code,
                [&](auto format) { sm80::plan_of<decltype(format)>(device, g, 2, chunk_blocks(g->w), out); });
}
qe_status run_sm80(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    if (plan->variant >= kDense) {
        qk_plan dense = *plan;
        dense.variant -= kDense;
        return dense_sm80::run(&dense, args, queue, err);
    }
    const qk_shape &w = args->w->shape;
    return with_format(w.quant, args->x.quant.code, [&](auto format) {
        sm80::Args<decltype(format)> a{};
        a.band_bytes = qk_k_band_bytes(&w.quant, w.k), a.block_bytes = int(qk_k_block_bytes(&w.quant));
        a.chunk_blocks = chunk_blocks(w);
        a.context = {a.band_bytes - QK_W4_ROWS * 4};
        a.output = output_of(plan, args, a.band_bytes, 0);
        return sm80::run_family<decltype(format), 2>(plan, args, a, queue, "cuda/ka16_sm80", err);
    });
}

// ---- one thread per output ---------------------------------------------------------------------------------------
// qe_dequantize() of a column of a block; row: of 64.
PTX_FN float weight(const unsigned char *block, int bits, int row, int in) {
    const int r = row % 16 / 8, f = 2 * (8 * (row / 16) + row % 8) + r, p = in / 32, word = p * 2 + r;
    const int thread = row / 16 * 32 + row % 8 * 4 + in % 8 / 2, nibble = in % 32 / 16 * 4 + in % 2 + in % 16 / 8 * 2;
    int c = block[word / 4 * 2048 + thread * 16 + word % 4 * 4 + nibble / 2] >> nibble % 2 * 4 & 15;
    const unsigned char *numbers = block + QK_W4_CODE_BYTES;
    if (bits == 4) {
        const int scale = numbers[4 * f + p], upper = reinterpret_cast<const uint16_t *>(numbers + 256)[f] >> 4 * p & 15;
        const uint16_t *super = reinterpret_cast<const uint16_t *>(numbers + 384) + 2 * f;
        const float min = qe_mul(qe_f16_to_f32(super[1]), float(scale >> 6 | upper << 2));
        return qe_add(qe_mul(qe_mul(qe_f16_to_f32(super[0]), float(scale & 63)), float(c)), min);
    }
    c |= (numbers[thread * 16 + p * 4 + nibble / 2] >> (nibble % 2 * 2 + r * 4) & 3) << 4;
    const int scale = reinterpret_cast<const int8_t *>(numbers + 2048)[8 * f + in / 16];
    const float super = qe_f16_to_f32(reinterpret_cast<const uint16_t *>(numbers + 2048 + 512)[f]);
    return qe_mul(qe_mul(super, float(scale)), float(c - 32));
}
struct SimtArgs : simt_row::Args {
    int bits;
    PTX_FN float dot(int64_t m, int64_t n) const {
        const unsigned char *half = w + n / QK_W4_ROWS * band_bytes + n % QK_W4_ROWS / 64 * block_bytes;
        float sum = 0, y = 0;
        for (int64_t i = 0; i < k; i++) {
            if (i && i % chunk_k == 0) sum = qe_add(sum, y), y = 0;
            const float value = weight(half + i / 128 * 2 * block_bytes, bits, int(n % 64), int(i % 128));
            y = qe_fma(x_at(m, i), value, y);
        }
        return qe_add(sum, y);
    }
};
bool supports_simt(const qk_device *, const qk_gemm *g, qk_why *why) {
    if (g->w.act.mode != QE_ACT_FLOAT) return qk_no(why, "the input is quantized: its sums are exact");
    return float_output(g, why);
}
qe_status run_simt(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    SimtArgs a{};
    a.band_bytes = qk_k_band_bytes(&w.quant, w.k), a.block_bytes = qk_k_block_bytes(&w.quant), a.bits = w.quant.bits;
    return simt_row::run(plan, args, a, 0, queue, err);
}

} // namespace ka16
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_ka16_sm80_row = {"cuda/ka16_sm80", &qk_cuda_k, qk_cuda::ka16::supports_sm80,
                                                 qk_cuda::ka16::plan_sm80, qk_cuda::ka16::run_sm80};
extern "C" const qk_row qk_cuda_ka16_simt_row = {"cuda/ka16_simt", &qk_cuda_k, qk_cuda::ka16::supports_simt,
                                                 qk_cuda::simt_row::plan, qk_cuda::ka16::run_simt};
