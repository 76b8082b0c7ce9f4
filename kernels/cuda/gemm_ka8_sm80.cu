// Row cuda/ka8_sm80: Q4_K and Q6_K x int8 with a scale per token and 256 columns, layout cuda/k, mma.sync m16n8k32 on every
// device. Sums of a group are integers; from there on every float step is that of quantization.md 7.4: the reference's bits.
//
// Sums start at 1.5 * 2^23, so that as floats they are that much more than the sum: one addition, no conversion. The largest,
// 63 * 127 * 256 of the mins, stays below 2^22. Mins are weights themselves, equal over 32 columns: a second product sums them.
#include "gemm_sm80.cuh"
#include "k_unpack.cuh"

namespace qk_cuda {
namespace ka8 {

struct Tokens {
    const float *scales; // [m][groups]
    int64_t groups;
};
template <class C> struct Format : C {
    using Codes = C;
    using Acc = float;
    using Context = Tokens;
    static constexpr int kXBytes = 1;
    static constexpr bool kTotals = true, kPromotes = false;
    static constexpr int kLargest = C::kUnitsPerStep == 1 ? 2 : 1; // two products for 32 columns of 64 tokens spill
};

constexpr int32_t kMagic = 0x4b400000;
PTX_FN float sum_of(int32_t magic_sum) {
    return qe_sub(qe_f32_from_bits(uint32_t(magic_sum)), 12582912.0f);
}
PTX_FN void start(int32_t (&sums)[4]) {
#pragma unroll
    for (int e = 0; e < 4; e++) sums[e] = kMagic;
}

// What a thread sums: rows r = 0 (e < 2) and 1 of the tokens 8j + 2 (lane % 4) + e % 2.
template <class C, int kTok> struct Sums {
    static constexpr int kTiles = kTok / 8;
    static constexpr bool kAhead = kTok < 64; // scales of tokens are read before they are needed: with more tokens they spill
    float y[kTiles][4], f[kTiles][4], x_scale[kAhead ? kTiles : 1][2];
    int32_t mins[C::kMins ? kTiles : 1][4];

    // f += scale * (sum of the products of a fragment)
    PTX_FN void add(int j, const uint32_t (&w)[4], const uint32_t (&x)[2], const float (&scale)[2]) {
        int32_t part[4];
        start(part);
        ptx::mma_m16n8k32_s8(part, w, x);
#pragma unroll
        for (int e = 0; e < 4; e++) f[j][e] = qe_fma(sum_of(part[e]), scale[e / 2], f[j][e]);
    }
    PTX_FN void read_scales(const Tokens &tokens, int64_t first, int64_t end, int group, int j, float (&to)[2]) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int64_t m = first + j * 8 + threadIdx.x % 4 * 2 + i;
            to[i] = m < end ? tokens.scales[m * tokens.groups + group] : 0.0f;
        }
    }
    PTX_FN void begin_group(const Tokens &tokens, int64_t first, int64_t end, int group) {
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
            if constexpr (kAhead) read_scales(tokens, first, end, group, j, x_scale[j]);
#pragma unroll
            for (int e = 0; e < 4; e++) f[j][e] = 0;
            if constexpr (C::kMins) start(mins[j]);
        }
    }
    PTX_FN void end_group(const C &w, const Tokens &tokens, int64_t first, int64_t end, int group) {
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
            float(&scale)[2] = x_scale[kAhead ? j : 0];
            if constexpr (!kAhead) read_scales(tokens, first, end, group, j, scale);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if constexpr (C::kMins) f[j][e] = qe_fma(sum_of(mins[j][e]), w.min_super(e / 2), f[j][e]);
                y[j][e] = qe_fma(f[j][e], scale[e % 2], y[j][e]);
            }
        }
    }
    // 32 columns of a block. x: where the lane reads the stage's tokens.
    PTX_FN void multiply(C &w, int p, uint32_t x) {
        uint32_t a[4], upper[4], mins_of_columns[4];
        w.unpack(a, p);
        if constexpr (C::kMins) w.unpack_mins(mins_of_columns, p);
        if constexpr (C::kUnitsPerStep == 2) { // groups of 16: two products, half of either's columns zeros
#pragma unroll
            for (int r = 0; r < 2; r++) upper[r] = 0, upper[r + 2] = a[r + 2], a[r + 2] = 0;
        }
        constexpr int kUnits = C::kUnitsPerStep;
        const float scale[2] = {w.scale(p * kUnits, 0), w.scale(p * kUnits, 1)};
        const float next[2] = {w.scale(p * kUnits + kUnits - 1, 0), w.scale(p * kUnits + kUnits - 1, 1)};
#pragma unroll
        for (int i = 0; i < kTok / 16; i++) {
            uint32_t b[4];
            ptx::ldmatrix_x4(b, (x ^ uint32_t(p << 5)) + uint32_t(i * 16 * 128));
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint32_t tokens[2] = {b[2 * h], b[2 * h + 1]};
                add(2 * i + h, a, tokens, scale);
                if constexpr (kUnits == 2) add(2 * i + h, upper, tokens, next);
                if constexpr (C::kMins) ptx::mma_m16n8k32_s8(mins[2 * i + h], mins_of_columns, tokens);
            }
        }
    }
};

// Sums of the chunks before: of 64 tokens the registers are full, they lie behind the ring.
template <int kTok> constexpr int kTotalBytes = kTok == 64 ? kTok * sm80::kRows * 4 : 0;
template <class F, int kTok> constexpr int kSharedBytes = sm80::Config<F, kTok>::kSharedBytes + kTotalBytes<kTok>;
template <int kTok> struct Totals {
    static constexpr bool kShared = kTotalBytes<kTok> > 0;
    float *at; // of the thread, where they are shared
    float sums[kShared ? 1 : kTok / 8][4];
    PTX_FN float &operator()(int j, int e) {
        if constexpr (kShared)
            return at[(j * 4 + e) * sm80::kThreads];
        else
            return sums[j][e];
    }
};

template <class F, int kTok>
__global__ void __launch_bounds__(sm80::kThreads, kTok == 16 ? 2 : 1)
    gemm(const __grid_constant__ sm80::Args<F> args, const Partial<float> partial) {
    using C = sm80::Config<F, kTok>;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const Tile rows = args.groups.tile(blockIdx.x, kTok);
    if (rows.first >= rows.end) return;
    const sm80::Args<F> a = args.of(rows);
    const unsigned char *band = a.w + int64_t(blockIdx.y) * a.band_bytes;
    const int begin = int(blockIdx.z) * a.split_blocks,
              end = begin + a.split_blocks < a.blocks ? begin + a.split_blocks : a.blocks;
    sm80::Loader<F, kTok> loader(a, band, rows.first, begin);
#pragma unroll
    for (int s = 0; s < C::kStages - 1; s++) {
        if (begin + s < end) loader.load(a, base + uint32_t(s * C::kStage));
        ptx::cp_async_commit();
    }
    const int row = (lane & 7) + (lane >> 4) * 8; // where ldmatrix reads, as in gemm_sm80.cuh
    const uint32_t lane_x = uint32_t(row * 128 + (((lane >> 3 & 1) ^ (row & 7)) << 4));
    uint32_t read = base, write = base + uint32_t((C::kStages - 1) * C::kStage);
    Sums<typename F::Codes, kTok> sums;
    Totals<kTok> total;
    total.at = reinterpret_cast<float *>(smem + C::kSharedBytes) + threadIdx.x;
    for (int chunk = begin; chunk < end; chunk += a.chunk_blocks) {
        const int stop = chunk + a.chunk_blocks < end ? chunk + a.chunk_blocks : end;
#pragma unroll
        for (int j = 0; j < kTok / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums.y[j][e] = 0;
#pragma unroll 1
        for (int kb = chunk; kb < stop; kb++) { // chunks are whole super-blocks: two blocks each
            if (kb % 2 == 0) sums.begin_group(a.context, rows.first, a.m, kb / 2);
            ptx::cp_async_wait<C::kStages - 2>();
            __syncthreads();
            if (kb + C::kStages - 1 < end) loader.load(a, write);
            ptx::cp_async_commit();
            typename F::Codes w;
            w.load(read + uint32_t(C::kXStage + warp / 4 * a.block_bytes), int(threadIdx.x) % 128);
#pragma unroll
            for (int p = 0; p < 4; p++) sums.multiply(w, p, read + lane_x);
            if (kb % 2 || kb + 1 == stop) sums.end_group(w, a.context, rows.first, a.m, kb / 2);
            read = sm80::next_stage<C>(read, base), write = sm80::next_stage<C>(write, base);
        }
#pragma unroll
        for (int j = 0; j < kTok / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if (chunk > begin) sums.y[j][e] = plus(total(j, e), sums.y[j][e]);
                if (stop < end) total(j, e) = sums.y[j][e];
            }
    }
    ptx::cp_async_wait<0>();
    __syncthreads(); // the ring is idle: it becomes the tile of sums
#pragma unroll
    for (int j = 0; j < kTok / 8; j++) put_fragment<sm80::kRows>(smem, warp, lane, j, sums.y[j]);
    __syncthreads();
    store_tile<sm80::kRows, kTok>(smem, int(threadIdx.x), sm80::kThreads, a.m, rows.first, int64_t(blockIdx.y) * sm80::kRows,
                                  int(blockIdx.z), partial, a.output);
}

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    constexpr int bytes = kSharedBytes<Format<K4Codes>, 64>;
    static_assert(bytes <= sm80::kLeastShared, "every device of sm_80 and later runs it");
    if (g->w.act.mode == QE_ACT_FLOAT) return qk_no(why, "the input is not quantized");
    if (device->unit_bytes < uint32_t(bytes))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, bytes);
    return float_output(g, why);
}
// use(F{}) for the format of a call.
template <class Use> auto with_format(const qe_quant &q, Use use) {
    return q.bits == 4 ? use(Format<K4Codes>{}) : use(Format<K6Codes>{});
}
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    with_format(g->w.quant, [&](auto format) {
        using F = decltype(format);
        sm80::plan_of<F>(device, g, F::kLargest, chunk_blocks(g->w), out);
    });
    if (out->variant == 2) out->shared_bytes += uint32_t(kTotalBytes<64>);
}
template <class F, int kTok>
qe_status launch_tile(const qk_plan *plan, const qk_gemm_args *args, const sm80::Args<F> &a, const qk_queue *queue, qe_error *err) {
    return sm80::launch_kernel<F, kTok>(gemm<F, kTok>, plan, args, a, queue, plan->row->name, err);
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    return with_format(w.quant, [&](auto format) {
        using F = decltype(format);
        sm80::Args<F> a{};
        a.band_bytes = qk_k_band_bytes(&w.quant, w.k), a.block_bytes = int(qk_k_block_bytes(&w.quant));
        a.chunk_blocks = chunk_blocks(w);
        a.context = {args->x.scales, (w.k + 255) / 256};
        a.output = output_of(plan, args, a.band_bytes, 0);
        const qe_status status = sm80::begin_call(plan, args, &a, plan->row->name, err);
        if (status != QE_OK || a.m == 0) return status;
        if constexpr (F::kLargest == 2)
            if (plan->variant == 2) return launch_tile<F, 64>(plan, args, a, queue, err);
        return plan->variant == 0 ? launch_tile<F, 16>(plan, args, a, queue, err) : launch_tile<F, 32>(plan, args, a, queue, err);
    });
}

} // namespace ka8
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_ka8_sm80_row = {"cuda/ka8_sm80", &qk_cuda_k, qk_cuda::ka8::supports, qk_cuda::ka8::plan,
                                                qk_cuda::ka8::run};
