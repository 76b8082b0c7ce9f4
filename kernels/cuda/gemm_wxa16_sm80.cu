// Rows of layout cuda/wxa16: cuda/wxa16_sm80 (mma.sync m16n8k16, fp16 or bf16 input) and cuda/wxa16_simt (one thread per
// output, any float input). Codes enter the product unscaled, c - z exactly, table values rounded once to the input's type;
// part sums are scaled in fp32 after every unit, whatever type the checkpoint keeps scales in.
#include "cuda_backend.h"
#include "gemm_sm80.cuh"
#include "pairs.cuh"

namespace qk_cuda {
namespace wxa16 {

struct Context {
    const float *table;
    int units, has_zeros, zero;
};
PTX_FN void move_context(Context &c, int64_t bytes) {
    c.table = reinterpret_cast<const float *>(reinterpret_cast<const unsigned char *>(c.table) + bytes);
}
template <bool kBf16> PTX_FN uint16_t rounded(float v) {
    return kBf16 ? qe_f32_to_bf16(v) : qe_f32_to_f16(v);
}
// kUnits: scales per row and block, 1, 4 or 8. Known to the compiler: a unit's end is no branch, and the first product
// after it starts from zero.
template <bool kBf16, int kUnits> struct Common {
    using Acc = float;
    using Context = wxa16::Context;
    static constexpr int kXBytes = 2, kSteps = 4;
    static constexpr bool kTotals = true, kPromotes = true;
    static constexpr int kStepsPerUnit = 8 / kUnits;
    uint32_t scales; // shared address of the thread's first scale
    static PTX_FN void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        if constexpr (kBf16)
            ptx::mma_m16n8k16_bf16(d, a, b);
        else
            ptx::mma_m16n8k16_f16(d, a, b);
    }
    PTX_FN void load_scales(uint32_t numbers, int t) { scales = numbers + uint32_t(t / 32 * 64 + t % 32 / 4 * 8); }
    PTX_FN bool unit_ends(int step) const { return (step + 1) % kStepsPerUnit == 0; }
    PTX_FN float scale(int step, int r) const {
        return qe_f32_from_bits(ptx::lds32(scales + uint32_t(step / kStepsPerUnit * 256 + r * 4)));
    }
};

// 8-bit integers: 1024 + c in fp16 or 2^23 + c in fp32, less the same with z. Both are made by one PRMT.
template <bool kBf16, int kUnits> struct Codes8 : Common<kBf16, kUnits> {
    static constexpr int kBlockBytes = 2 * QK_W4_CODE_BYTES + kUnits * 320;
    static constexpr int kStepsPerUnit = Common<kBf16, kUnits>::kStepsPerUnit;
    struct State {
        uint32_t constant, select; // z four times; the PRMT that widens the zero point of row r = 0
        int stored;
    };
    static PTX_FN State begin(const Context &context) {
        const uint32_t byte = context.has_zeros ? threadIdx.x % 32 / 4 * 2 & 3 : 0; // of an aligned word
        return {uint32_t(context.zero) * 0x01010101u, widen(0) + (kBf16 ? byte : byte * 0x0101), context.has_zeros};
    }
    static constexpr PTX_FN uint32_t widen(int i) { return kBf16 ? 0x7440 + i : 0x4040 + i * 0x0101; }
    uint32_t codes, base[kUnits][2];
    PTX_FN void load(uint32_t block, int t, const State &s) {
        const uint32_t numbers = block + 2 * QK_W4_CODE_BYTES;
        codes = block + uint32_t(t) * 16;
        this->load_scales(numbers, t);
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            uint32_t two = s.constant;
            if (s.stored) two = ptx::lds32((numbers + uint32_t(kUnits * 256 + u * 64 + t / 32 * 16 + t % 32 / 4 * 2)) & ~3u);
#pragma unroll
            for (int r = 0; r < 2; r++) base[u][r] = ptx::prmt(two, kMagic, s.select + uint32_t(r) * (widen(1) - widen(0)));
        }
    }
    PTX_FN void unpack(uint32_t (&f)[4][4], int half) const {
#pragma unroll
        for (int p = 0; p < 2; p++) {
            uint32_t w[4];
            ptx::lds128(w, codes + uint32_t((half * 2 + p) * 2048));
#pragma unroll
            for (int s = 0; s < 2; s++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const uint32_t z = base[(half * 4 + p * 2 + s) / kStepsPerUnit][r];
                    f[p * 2 + s][r] = pair<0>(w[s * 2 + r], z);
                    f[p * 2 + s][r + 2] = pair<2>(w[s * 2 + r], z);
                }
        }
    }
    static constexpr uint32_t kMagic = kBf16 ? 0x4b000000u : 0x64646464u;
    // Bytes kFirst and kFirst + 1 less z.
    template <int kFirst> static PTX_FN uint32_t pair(uint32_t bytes, uint32_t z) {
        if constexpr (kBf16) {
            const float base = qe_f32_from_bits(z);
            const uint32_t lo = qe_f32_bits(qe_sub(qe_f32_from_bits(ptx::prmt(bytes, kMagic, widen(kFirst))), base)),
                           hi = qe_f32_bits(qe_sub(qe_f32_from_bits(ptx::prmt(bytes, kMagic, widen(kFirst + 1))), base));
            return ptx::prmt(lo, hi, 0x7632); // integers up to 256: the lower halves are zeros
        } else {
            return bits_of(__hsub2(halves_of(ptx::prmt(bytes, kMagic, kFirst ? 0x4342 : 0x4140)), halves_of(z)));
        }
    }
};

// 4-bit codes of a table: the low and the high bytes of its 16 values stay in registers and are picked by PRMT.
template <bool kBf16, int kUnits> struct Table4 : Common<kBf16, kUnits> {
    static constexpr int kBlockBytes = QK_W4_CODE_BYTES + kUnits * 256;
    struct State {
        uint32_t low[4], high[4];
    };
    static PTX_FN State begin(const Context &context) {
        State s{};
#pragma unroll
        for (int c = 0; c < 16; c++) {
            const uint32_t v = rounded<kBf16>(context.table[c]);
            s.low[c / 4] |= (v & 255) << c % 4 * 8;
            s.high[c / 4] |= (v >> 8) << c % 4 * 8;
        }
        return s;
    }
    uint32_t codes[2][4], low[4], high[4];
    PTX_FN void load(uint32_t block, int t, const State &s) {
        ptx::lds128(codes[0], block + uint32_t(t) * 16);
        ptx::lds128(codes[1], block + 2048 + uint32_t(t) * 16);
#pragma unroll
        for (int i = 0; i < 4; i++) low[i] = s.low[i], high[i] = s.high[i];
        this->load_scales(block + QK_W4_CODE_BYTES, t);
    }
    PTX_FN void unpack(uint32_t (&f)[4][4], int half) const {
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // Nibbles of a word, from bit 0: (step 0, columns 2c, 8 + 2c), (step 1, the same), then columns + 1.
                const uint32_t w = codes[half][p * 2 + r], index = w & 0x77777777u, above = w >> 3 & 0x11111111u;
                uint32_t first[2], second[2];
                values(index, above, first);              // column 2c and 8 + 2c of step 0, of step 1
                values(index >> 16, above >> 16, second); // column 2c + 1 and 9 + 2c
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    f[p * 2 + s][r] = ptx::prmt(first[s], second[s], 0x5410);
                    f[p * 2 + s][r + 2] = ptx::prmt(first[s], second[s], 0x7632);
                }
            }
    }
    // Four nibbles, the lower three bits and the highest, to four 16-bit values. PRMT reads 16 bits of its selector.
    PTX_FN void values(uint32_t index, uint32_t above, uint32_t (&out)[2]) const {
        const uint32_t upper = ptx::prmt(0x0000ff00u, 0, above);
        const uint32_t lo = ptx::lop3<0xca>(upper, ptx::prmt(low[2], low[3], index), ptx::prmt(low[0], low[1], index)),
                       hi = ptx::lop3<0xca>(upper, ptx::prmt(high[2], high[3], index), ptx::prmt(high[0], high[1], index));
        out[0] = ptx::prmt(lo, hi, 0x5140), out[1] = ptx::prmt(lo, hi, 0x7362);
    }
};

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
    const int units = int(qk_wx_units(&w.quant, w.k));
    if (qk_wx_code_bits(&w.quant) == 4)
        return units == 1 ? f(Table4<kBf16, 1>()) : units == 4 ? f(Table4<kBf16, 4>()) : f(Table4<kBf16, 8>());
    return units == 1 ? f(Codes8<kBf16, 1>()) : units == 4 ? f(Codes8<kBf16, 4>()) : f(Codes8<kBf16, 8>());
}
void plan_sm80(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    with_format<false>(g->w, [&](auto format) { // bf16 has the same stages
        sm80::plan_of<decltype(format)>(device, g, 2, chunk_blocks(g->w), out);
    });
}
Context context_of(const qk_shape &w, const void *blob) {
    return {static_cast<const float *>(blob), int(qk_wx_units(&w.quant, w.k)), w.quant.zero == QE_ZERO_POINT,
            w.quant.zero_const};
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
    int code_bits;
    Context context;
    Epilogue out;
    Groups groups;
};
PTX_FN float dot(const SimtArgs &a, int64_t m, int64_t n) {
    const unsigned char *half = a.w + n / QK_W4_ROWS * a.band_bytes + n % QK_W4_ROWS / 64 * a.block_bytes;
    const int row = int(n % 64), r = row % 16 / 8, lane = row / 16 * 32 + row % 8 * 4, units = a.context.units;
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
            value = a.context.table[quad[word / 4 * 2048 + word % 4 * 4 + column % 2 * 2 + step % 2] >> column / 8 * 4 & 15];
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
    a.code_bits = qk_wx_code_bits(&w.quant);
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
