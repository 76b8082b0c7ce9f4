// Rows of one thread per output, which serve any m, any float input and every device: two columns and a token a thread, 64
// columns and four tokens a block. A kernel's arguments derive from Args and have dot(m, n); those that keep a pointer into the
// weight overload move().
#pragma once
#include "output.cuh"

namespace qk_cuda {
namespace simt_row {

constexpr int kThreads = 128, kTokens = 4;

struct Args {
    const void *x;
    int64_t ld, k, chunk_k;
    int x_type;
    const unsigned char *w; // bands
    int64_t band_bytes, block_bytes;
    Epilogue out;
    Groups groups;
    PTX_FN void move(int64_t bytes) { w += bytes; } // to an expert's weight
    PTX_FN float x_at(int64_t m, int64_t k_at) const { return load_real(x, m * ld + k_at, x_type); }
};

template <class A> static __global__ void __launch_bounds__(kThreads) plain(const __grid_constant__ A args) {
    const Tile rows = args.groups.tile(blockIdx.x, kTokens);
    const int64_t n = (int64_t(blockIdx.y) * 32 + threadIdx.x % 32) * 2, m = rows.first + threadIdx.x / 32;
    if (n >= args.out.n || m >= rows.end) return;
    A a = args;
    a.move(rows.expert * a.groups.expert_bytes);
    const float v0 = a.dot(m, n), v1 = n + 1 < args.out.n ? a.dot(m, n + 1) : 0.0f;
    args.out.of(rows.expert).pair(m, n, v0, v1);
}

inline void plan(const qk_device *, const qk_gemm *g, qk_plan *out) {
    out->variant = 0;
    out->grid[0] = uint32_t((g->m + kTokens - 1) / kTokens), out->grid[1] = uint32_t((g->w.n + 63) / 64), out->grid[2] = 1;
    out->block = kThreads;
}
// `a` holds what the layout knows (band_bytes, block_bytes and its own); this adds what a call brings.
template <class A>
qe_status run(const qk_plan *plan, const qk_gemm_args *args, A a, size_t head_bytes, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    if (args->x.m == 0) return QE_OK;
    a.x = args->x.data, a.x_type = args->x.quant.code, a.ld = args->x.ld, a.k = w.k;
    a.chunk_k = w.chunk_k > 0 ? w.chunk_k : w.k;
    a.w = static_cast<const unsigned char *>(args->w->blob) + head_bytes;
    a.out = epilogue_of(plan, args), a.groups = groups_of(args);
    return launch(plain<A>, dim3(tiles_of(args, kTokens), plan->grid[1]), plan->block, 0, queue, plan->row->name, err, a);
}

} // namespace simt_row
} // namespace qk_cuda
