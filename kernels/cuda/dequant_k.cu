// Weights of layout cuda/k for the dense rows: the fragments that ka16 rows unpack in registers, written as rows of fp16 or bf16.
// A block of 128 threads takes a packed block of 64 rows x 128 columns.
#include "dense.cuh"
#include "k_unpack.cuh"

namespace qk_cuda {
namespace dense {

constexpr int kBlockThreads = 128;

struct KDequant {
    const unsigned char *bands;
    int64_t band_bytes;
    unsigned char *to;
    int64_t pitch, k;
    int expert;
    Groups groups;
};
// Two columns from an even one on; columns beyond k are zeros, those beyond the row's pitch are not there.
PTX_FN void store_pair(const KDequant &a, int64_t row, int64_t k, uint32_t pair) {
    if (k * 2 >= a.pitch) return;
    if (k + 1 >= a.k) pair = k < a.k ? pair & 0xffff : 0;
    *reinterpret_cast<uint32_t *>(a.to + row * a.pitch + k * 2) = pair;
}
template <template <bool> class Codes, bool kBf16>
__global__ void __launch_bounds__(kBlockThreads) dequantize_blocks(const __grid_constant__ KDequant a) {
    using C = Codes<kBf16>;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem);
    const int t = int(threadIdx.x), half = int(blockIdx.x) % 2;
    const Tile tokens = tile_of(a.groups, a.expert, 0, 1);
    if (tokens.first >= tokens.end) return;
    const unsigned char *band = a.bands + blockIdx.x / 2 * a.band_bytes;
    const unsigned char *block = band + (int64_t(blockIdx.y) * 2 + half) * C::kBlockBytes;
    for (int at = t * 16; at < C::kBlockBytes; at += kBlockThreads * 16) ptx::cp_async16(base + uint32_t(at), block + at);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    const int row = half * 64 + t / 32 * 16 + t % 32 / 4;
    C w;
    w.load(base, t, powers_of({a.band_bytes - QK_W4_ROWS * 4}, band, row));
#pragma unroll
    for (int part = 0; part < 2; part++) { // of 64 columns
        uint32_t f[C::kSteps][4];
        w.unpack(f, part);
#pragma unroll
        for (int step = 0; step < C::kSteps; step++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                store_pair(a, int64_t(blockIdx.x / 2) * kRows + row + i % 2 * 8,
                           int64_t(blockIdx.y) * QK_W4_BLOCK_K + part * 64 + step * 16 + i / 2 * 8 + t % 4 * 2, f[step][i]);
    }
}

qe_status dequantize_k(const qk_gemm_args *args, const Pass &pass, void *to, const qk_queue *queue, const char *name, qe_error *err) {
    const qk_shape &w = args->w->shape;
    KDequant a{};
    a.bands = pass.w, a.band_bytes = qk_k_band_bytes(&w.quant, w.k), a.to = static_cast<unsigned char *>(to);
    a.pitch = pitch_of(w), a.k = w.k, a.expert = pass.expert, a.groups = groups_of(args);
    const bool bf16 = args->x.quant.code == QE_CODE_BF16;
    const auto kernel = w.quant.bits == 4 ? bf16 ? dequantize_blocks<K4, true> : dequantize_blocks<K4, false>
                        : bf16            ? dequantize_blocks<K6, true>
                                          : dequantize_blocks<K6, false>;
    const dim3 grid(uint32_t((pass.rows + kRows - 1) / kRows * 2), uint32_t(qk_w4_blocks(w.k)));
    return launch(kernel, grid, kBlockThreads, size_t(qk_k_block_bytes(&w.quant)), queue, name, err, a);
}

} // namespace dense
} // namespace qk_cuda
