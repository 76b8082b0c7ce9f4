// Fake quantization of a trainer's tensors, forward and backward (quantize.h). A warp takes a piece: up to kPart columns of
// one row within one group. Gradients of a scale and a zero are sums over a group in float64: lanes by stride, the warp by
// halves, then the pieces of the group in an order fixed by their count. No atomics, so every run gives the same bits.
#include "cuda_backend.h"
#include "epilogue.cuh"
#include "launch.cuh"

namespace qk_cuda {
namespace fake_quant {

constexpr int kThreads = 256, kWarps = kThreads / 32, kPart = 4096;

struct Sums {
    double scale, zero;
};
struct Args {
    qk_fake_quant f;
    int64_t width, columns, parts; // columns of a group, groups side by side, pieces of a row in a group
    int64_t height, pieces;        // rows of a group; pieces of the tensor
    Sums *sums;                    // of each piece; NULL: a piece is a group
};
struct Piece {
    int64_t first, count, group;
};

PTX_FN Piece piece_of(const Args &a, int64_t index) {
    const int64_t part = index % a.parts, column = index / a.parts % a.columns, row = index / a.parts / a.columns;
    const int64_t from = column * a.width + part * kPart;
    int64_t end = from - part * kPart + a.width;
    end = end < a.f.k ? end : a.f.k;
    end = end < from + kPart ? end : from + kPart;
    return {row * a.f.k + from, end > from ? end - from : 0, row / a.height * a.columns + column};
}
PTX_FN double fold(double v) {
#pragma unroll
    for (int half = 16; half > 0; half /= 2) v += __shfl_xor_sync(0xffffffffu, v, half);
    return v;
}
// 1 / sqrt(size of the group * high), as LSQ scales the gradient of a step.
PTX_FN double lsq(const Args &a, int64_t group) {
    if (!a.f.lsq_scaled) return 1.0;
    const int64_t row = group / a.columns * a.height, column = group % a.columns * a.width;
    const int64_t rows = a.f.n - row < a.height ? a.f.n - row : a.height;
    const int64_t width = a.f.k - column < a.width ? a.f.k - column : a.width;
    return 1.0 / sqrt(double(rows) * double(width) * double(a.f.high > 1 ? a.f.high : 1));
}
PTX_FN void add_to(const Args &a, int64_t group, Sums s) {
    if (a.f.dscale) a.f.dscale[group] += lsq(a, group) * s.scale;
    if (a.f.dzero) a.f.dzero[group] += s.zero;
}

struct Grid {
    float s, z, low, high;

    PTX_FN float forward(float x) const {
        const float q = qe_clamp(rintf(qe_add(qe_div(x, s), z)), low, high);
        return qe_mul(s, qe_sub(q, z));
    }
    PTX_FN float backward(float x, float dy, Sums *sums) const {
        const float u = qe_add(qe_div(x, s), z);
        const bool inside = u >= low && u <= high;
        const double q = inside ? double(rintf(u)) : double(u < low ? low : high);
        sums->scale += double(dy) * (q - double(z) - (inside ? double(x) / double(s) : 0.0));
        if (!inside) sums->zero -= double(s) * double(dy);
        return inside ? dy : 0.0f;
    }
};
// A scale of 0, below, or not finite leaves NaN in all that depends on it.
PTX_FN Grid grid_of(const Args &a, int64_t group) {
    float s = a.f.scale[group], z = a.f.zero ? a.f.zero[group] : 0.0f;
    const bool usable = qe_f32_bits(s) - 1 < 0x7f7fffffu && (qe_f32_bits(z) & 0x7fffffffu) < 0x7f800000u;
    return {usable ? s : qe_f32_from_bits(0x7fc00000u), z, float(a.f.low), float(a.f.high)};
}

__global__ void __launch_bounds__(kThreads) forward(const __grid_constant__ Args a) {
    const int64_t index = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (index >= a.pieces) return;
    const Piece p = piece_of(a, index);
    const Grid grid = grid_of(a, p.group);
#pragma unroll 4
    for (int64_t i = p.first + threadIdx.x % 32; i < p.first + p.count; i += 32)
        store_real(a.f.out, i, a.f.type, grid.forward(load_real(a.f.x, i, a.f.type)));
}

__global__ void __launch_bounds__(kThreads) backward(const __grid_constant__ Args a) {
    const int64_t index = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (index >= a.pieces) return;
    const Piece p = piece_of(a, index);
    const Grid grid = grid_of(a, p.group);
    const bool usable = grid.s > 0;
    Sums sums{0, 0};
#pragma unroll 4
    for (int64_t i = p.first + threadIdx.x % 32; i < p.first + p.count; i += 32) {
        const float dy = load_real(a.f.dy, i, a.f.type), dx = grid.backward(load_real(a.f.x, i, a.f.type), dy, &sums);
        store_real(a.f.out, i, a.f.type, usable ? dx : grid.s);
    }
    if (!usable) sums = {double(grid.s), double(grid.s)};
    sums = {fold(sums.scale), fold(sums.zero)};
    if (threadIdx.x % 32) return;
    if (a.sums)
        a.sums[index] = sums;
    else
        add_to(a, p.group, sums);
}

// One block for each group: its pieces, by stride, then the warps in order.
__global__ void __launch_bounds__(kThreads) gather(const __grid_constant__ Args a) {
    PTX_DYN_SMEM(Sums, warps);
    const int64_t group = blockIdx.x, row = group / a.columns * a.height, column = group % a.columns;
    const int64_t rows = a.f.n - row < a.height ? a.f.n - row : a.height;
    Sums sums{0, 0};
    for (int64_t i = threadIdx.x; i < rows * a.parts; i += kThreads) {
        const Sums s = a.sums[((row + i / a.parts) * a.columns + column) * a.parts + i % a.parts];
        sums.scale += s.scale, sums.zero += s.zero;
    }
    sums = {fold(sums.scale), fold(sums.zero)};
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sums;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < kWarps; w++) sums.scale += warps[w].scale, sums.zero += warps[w].zero;
    add_to(a, group, sums);
}

Args args_of(const qk_fake_quant *f) {
    Args a{};
    a.f = *f;
    a.width = f->group_k > 0 && f->group_k < f->k ? f->group_k : f->k;
    a.height = f->group_n > 0 && f->group_n < f->n ? f->group_n : f->n;
    if (f->n == 0 || f->k == 0) return a;
    a.columns = (f->k + a.width - 1) / a.width;
    a.parts = (a.width + kPart - 1) / kPart;
    a.pieces = f->n * a.columns * a.parts;
    return a;
}
bool gathers(const Args &a) {
    return a.height > 1 || a.parts > 1;
}

} // namespace fake_quant
} // namespace qk_cuda

extern "C" size_t qk_cuda_fake_quant_bytes(const qk_fake_quant *f) {
    using namespace qk_cuda::fake_quant;
    const Args a = args_of(f);
    return a.pieces && gathers(a) ? size_t(a.pieces) * sizeof(Sums) : 0;
}

extern "C" qe_status qk_cuda_fake_quant(const qk_fake_quant *f, const qk_queue *queue, qe_error *err) {
    using namespace qk_cuda;
    using namespace qk_cuda::fake_quant;
    Args a = args_of(f);
    if (a.pieces == 0) return QE_OK;
    const int64_t blocks = (a.pieces + kWarps - 1) / kWarps;
    const int64_t groups = (f->n + a.height - 1) / a.height * a.columns;
    if (blocks > INT32_MAX || groups > INT32_MAX)
        return qe_error_set(err, QE_E_LIMIT, "cuda: fake quantization of %lld x %lld in groups of %d", (long long)f->n,
                            (long long)f->k, f->group_k);
    if (!f->dy) return launch(forward, dim3(uint32_t(blocks)), kThreads, 0, queue, "cuda/fake_quant", err, a);
    const bool wanted = f->dscale || f->dzero;
    if (wanted && gathers(a)) a.sums = static_cast<Sums *>(f->workspace);
    QE_TRY(launch(backward, dim3(uint32_t(blocks)), kThreads, 0, queue, "cuda/fake_quant_backward", err, a));
    if (!a.sums) return QE_OK;
    return launch(gather, dim3(uint32_t(groups)), kThreads, kWarps * sizeof(Sums), queue, "cuda/fake_quant_gather", err, a);
}
