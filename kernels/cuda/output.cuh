// From the sums of a GEMM tile to y. Tiles have weight rows on the M side (Y^T = W X^T), so a thread's fragment holds
// sums of few columns of y and many tokens: a tile is turned around in shared memory and leaves in whole rows, either as
// raw sums of one split of k (workspace, added in order by `reduce`) or finished by quantization.md 7.3 or 7.6.
#pragma once
#include <type_traits>

#include "epilogue.cuh"
#include "launch.cuh"

namespace qk_cuda {

// The sums of a token, four columns at a time.
struct Output {
    const float *x_scale;
    const int32_t *x_zero; // NULL: symmetric
    int x_static;          // one scale and zero for all tokens
    int shift;             // sums are of weights times 2^shift
    const unsigned char *bands;
    int64_t band_bytes, scales_at; // of 128 rows: float scale[128], int32 sum of the row's integers[128]
    Epilogue out;
    Requant requant; // where out.type is INT

    // Expert e's own, its weight `bytes` after expert 0's.
    PTX_FN Output of(int64_t expert, int64_t bytes) const {
        Output o = *this;
        o.bands += bytes;
        o.out = out.of(expert), o.requant = requant.of(expert * out.n);
        return o;
    }
    // Float input: the sums are y before the epilogue.
    PTX_FN void finish(int64_t m, int64_t n, const float (&v)[4]) const { out.quad(m, n, v); }
    // Integer input: n is a multiple of 4, columns beyond the last are not stored.
    PTX_FN void finish(int64_t m, int64_t n, const int32_t (&sum)[4]) const {
        if (n >= out.n) return;
        const unsigned char *band = bands + n / 128 * band_bytes + scales_at;
        const float *scale = reinterpret_cast<const float *>(band) + n % 128;
        const int32_t *row_sum = reinterpret_cast<const int32_t *>(band) + 128 + n % 128;
        const int64_t token = x_static ? 0 : m;
        const uint32_t zero = x_zero ? uint32_t(x_zero[token]) : 0;
        uint32_t exact[4];
#pragma unroll
        for (int i = 0; i < 4; i++) exact[i] = uint32_t(sum[i] >> shift) - (zero ? zero * uint32_t(row_sum[i]) : 0);
        store(m, n, exact, scale);
    }
    // Sums of products of quantized numbers; the scales of four columns.
    PTX_FN void store(int64_t m, int64_t n, const uint32_t (&exact)[4], const float *scale) const {
        if (out.type == QE_CODE_INT) return store_int8(m, n, exact);
        const float s = x_scale[x_static ? 0 : m];
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = qe_mul(qe_mul(float(int32_t(exact[i])), s), scale[i]);
        out.quad(m, n, v);
    }
    PTX_FN void store_int8(int64_t m, int64_t n, const uint32_t (&sum)[4]) const {
        int8_t *y = static_cast<int8_t *>(out.y) + m * out.ldy + n;
        if (n + 4 > out.n || (reinterpret_cast<uintptr_t>(y) & 3)) {
            for (int i = 0; i < 4 && n + i < out.n; i++) y[i] = requant(sum[i], n + i);
            return;
        }
        uint32_t word = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) word |= uint32_t(uint8_t(requant(sum[i], n + i))) << 8 * i;
        *reinterpret_cast<uint32_t *>(y) = word;
    }
};
// Of sums that count the bits which x and w both have.
struct BitOutput : Output {
    const int32_t *x_ones; // bits set of a token
    PTX_FN BitOutput of(int64_t expert, int64_t bytes) const {
        BitOutput o = *this;
        static_cast<Output &>(o) = Output::of(expert, bytes);
        return o;
    }
    PTX_FN void finish(int64_t m, int64_t n, const int32_t (&sum)[4]) const {
        if (n >= out.n) return;
        const float *scale = reinterpret_cast<const float *>(bands + n / 128 * band_bytes + scales_at) + n % 128;
        const int32_t *row_sum = reinterpret_cast<const int32_t *>(scale) + 128;
        uint32_t exact[4]; // signs are 2 b - 1, and the sum of a row's is 2 ones - k: no k is left
#pragma unroll
        for (int i = 0; i < 4; i++) exact[i] = 4 * uint32_t(sum[i]) - 2 * uint32_t(x_ones[m]) - uint32_t(row_sum[i]);
        store(m, n, exact, scale);
    }
};

inline Output output_of(const qk_plan *plan, const qk_gemm_args *args, int64_t band_bytes, int64_t scales_at) {
    Output o{};
    o.x_scale = args->x.scales, o.x_zero = args->x.zeros;
    o.x_static = args->w->shape.act.mode == QE_ACT_STATIC;
    o.bands = static_cast<const unsigned char *>(args->w->blob);
    o.band_bytes = band_bytes, o.scales_at = scales_at;
    o.out = epilogue_of(plan, args);
    if (o.out.type == QE_CODE_INT) o.requant = requant_of(plan, args);
    return o;
}
// Blocks of 128 columns after which float sums restart.
inline int chunk_blocks(const qk_shape &w) {
    return int(((w.chunk_k > 0 && w.chunk_k < w.k ? w.chunk_k : w.k) + 127) / 128);
}
// Formats that say kPowers multiply rows by powers of two: their State comes from begin(context, band, row) and knows
// inverse(r) of the thread's rows r = 0 and 1, which leaves the sums: an exact product.
template <class F, class = void> constexpr bool kPowers = false;
template <class F> constexpr bool kPowers<F, std::void_t<decltype(F::kPowers)>> = F::kPowers;
template <class State> PTX_FN void leave_powers(const State &state, float *sums, int count) {
    const float inverse[2] = {state.inverse(0), state.inverse(1)};
#pragma unroll
    for (int i = 0; i < count; i++) sums[i] = qe_mul(sums[i], inverse[i >> 1 & 1]);
}
// What a format's Context holds of the weight itself, moved to an expert's: formats that keep a pointer overload this.
template <class C> PTX_FN void move_context(C &, int64_t) {}
// What integer rows can store: floats with any epilogue, or int8 of the sums alone.
inline bool integer_output(const qk_gemm *g, qk_why *why) {
    if (g->y_type != QE_CODE_INT) return float_output(g, why);
    if (g->act || g->flags & (QK_GEMM_RESIDUAL | QK_GEMM_GATED)) return qk_no(why, "int8 output with activation");
    return true;
}

// ---- the tile in shared memory -----------------------------------------------------------------------------------
// [kTok][kRows + 4] words: the padding keeps both directions free of bank conflicts.
template <int kRows, int kTok> constexpr int tile_bytes() {
    return kTok * (kRows + 4) * 4;
}
// Every warp owns 16 rows of the weight; d[j] is its m16n8 accumulator of the tokens 8j .. 8j + 7.
template <int kRows, class T>
PTX_FN void put_fragment(unsigned char *tile, int warp, int lane, int j, const T *d) {
    T *to = reinterpret_cast<T *>(tile) + (j * 8 + lane % 4 * 2) * (kRows + 4) + warp * 16 + lane / 4;
    to[0] = d[0], to[kRows + 4] = d[1];
    to[8] = d[2], to[kRows + 4 + 8] = d[3];
}
// Sums of one split of k: [splits][m][ld], ld a multiple of 128.
template <class T> struct Partial {
    T *sums; // NULL: the tile holds the whole sums
    int64_t ld;
};
template <int kRows, int kTok, class T, class Out>
PTX_FN void store_tile(const unsigned char *tile, int thread, int threads, int64_t tokens, int64_t m0, int64_t n0,
                       int split, const Partial<T> &partial, const Out &output) {
    constexpr int kQuads = kRows / 4;
    for (int i = thread; i < kTok * kQuads; i += threads) {
        const int token = i / kQuads, column = i % kQuads * 4;
        const int64_t m = m0 + token, n = n0 + column;
        if (m >= tokens) return;
        const T *from = reinterpret_cast<const T *>(tile) + token * (kRows + 4) + column;
        const T v[4] = {from[0], from[1], from[2], from[3]};
        if (partial.sums) {
            T *to = partial.sums + (split * tokens + m) * partial.ld + n;
            to[0] = v[0], to[1] = v[1], to[2] = v[2], to[3] = v[3];
        } else
            output.finish(m, n, v);
    }
}

// ---- the second launch of a split call: ascending, so the bits do not depend on which block came first -----------
PTX_FN int32_t plus(int32_t a, int32_t b) {
    return int32_t(uint32_t(a) + uint32_t(b));
}
PTX_FN float plus(float a, float b) {
    return qe_add(a, b);
}
// Static, so that each file launches its own copy: files for sm_90a hold no code for other devices, and host stubs of
// equal names would be merged by the linker.
constexpr int kReduceThreads = 128;
template <class T, class Out>
static __global__ void __launch_bounds__(kReduceThreads)
    reduce(const T *sums, int splits, int64_t tokens, int64_t ld, const __grid_constant__ Out output) {
    const int64_t n = (int64_t(blockIdx.y) * kReduceThreads + threadIdx.x) * 4, m = blockIdx.x;
    ptx::griddep_launch();
    ptx::griddep_wait();
    if (n >= output.out.n) return;
    const T *from = sums + m * ld + n;
    T v[4] = {from[0], from[1], from[2], from[3]};
    for (int s = 1; s < splits; s++) {
        from += tokens * ld;
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = plus(v[i], from[i]);
    }
    output.finish(m, n, v);
}
inline int64_t partial_ld(int64_t n) {
    return (n + 127) / 128 * 128;
}
// Early: in files for sm_90a alone.
template <class T, Start kStart = Start::InOrder, class Out>
static qe_status launch_reduce(const qk_plan *plan, const qk_gemm_args *args, const Out &output, const qk_queue *queue,
                        const char *name, qe_error *err) {
    const int64_t n = args->w->shape.n;
    const dim3 grid(uint32_t(args->x.m), uint32_t((n + 4 * kReduceThreads - 1) / (4 * kReduceThreads))); // x: up to 2^31 - 1
    return launch<kStart>(reduce<T, Out>, grid, kReduceThreads, 0, queue, name, err, static_cast<const T *>(args->workspace),
                  plan->splits, args->x.m, partial_ld(n), output);
}

} // namespace qk_cuda
