// Row cuda/w8a8_sm80: int8 x int8 with mma.sync m16n8k32, cp.async ring, layout cuda/w8a8.
#include "cuda_backend.h"
#include "output.cuh"

namespace qk_cuda {
namespace w8a8_sm80 {

constexpr int BN = QK_W8_ROWS, BK = QK_W8_TILE_K, kStages = 3, kThreads = 256;

struct Args {
    const int8_t *x;
    int64_t ld, m;
    const unsigned char *w;
    int64_t band_bytes, tiles;
    Output output;
};

template <int BM> constexpr int shared_bytes() {
    return kStages * (BM + BN) * BK;
}

// 128-byte rows; the 16-byte chunk is XORed with the row so that ldmatrix has no bank conflict.
PTX_FN uint32_t swizzled(int row, int chunk) {
    return uint32_t(row * BK + ((chunk ^ (row & 7)) << 4));
}

template <int BM>
PTX_FN void load_stage(const Args &a, uint32_t stage, const unsigned char *band, int64_t m0, int64_t t) {
#pragma unroll
    for (int i = 0; i < BM * 8 / kThreads; i++) {
        const int c = i * kThreads + int(threadIdx.x), row = c / 8, chunk = c % 8;
        const int64_t m = m0 + row, k = t * BK + chunk * 16;
        const bool inside = m < a.m && k < a.ld;
        ptx::cp_async16(stage + swizzled(row, chunk), inside ? a.x + m * a.ld + k : a.x, inside ? 16 : 0);
    }
#pragma unroll
    for (int i = 0; i < BN * 8 / kThreads; i++) { // the tile is stored swizzled
        const int c = (i * kThreads + int(threadIdx.x)) * 16;
        ptx::cp_async16(stage + uint32_t(BM * BK + c), band + t * QK_W8_TILE_BYTES + c);
    }
}

template <int BM> __global__ void __launch_bounds__(kThreads) gemm(const __grid_constant__ Args a) {
    constexpr int kWarpsM = BM == 128 ? 2 : 1, kWarpM = BM / kWarpsM, kWarpN = BN * kWarpsM / 8;
    constexpr int MI = kWarpM / 16, NI = kWarpN / 8, kStageBytes = (BM + BN) * BK;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const int wm = warp / (8 / kWarpsM) * kWarpM, wn = warp % (8 / kWarpsM) * kWarpN;
    const int64_t m0 = int64_t(blockIdx.y) * BM, n0 = int64_t(blockIdx.x) * BN;
    const unsigned char *band = a.w + int64_t(blockIdx.x) * a.band_bytes;

    int32_t acc[MI][NI][4] = {};
#pragma unroll
    for (int s = 0; s < kStages - 1; s++) {
        if (s < a.tiles) load_stage<BM>(a, base + uint32_t(s * kStageBytes), band, m0, s);
        ptx::cp_async_commit();
    }
    for (int64_t t = 0; t < a.tiles; t++) {
        ptx::cp_async_wait<kStages - 2>();
        __syncthreads();
        const int64_t next = t + kStages - 1;
        if (next < a.tiles) load_stage<BM>(a, base + uint32_t(next % kStages * kStageBytes), band, m0, next);
        ptx::cp_async_commit();
        const uint32_t xs = base + uint32_t(t % kStages * kStageBytes), ws = xs + BM * BK;
#pragma unroll
        for (int kk = 0; kk < BK / 32; kk++) {
            uint32_t x[MI][4], w[NI / 2][4];
#pragma unroll
            for (int i = 0; i < MI; i++)
                ptx::ldmatrix_x4(x[i], xs + swizzled(wm + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < NI / 2; j++)
                ptx::ldmatrix_x4(w[j],
                                 ws + swizzled(wn + j * 16 + (lane & 7) + (lane >> 4) * 8, kk * 2 + (lane >> 3 & 1)));
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NI; j++) {
                    const uint32_t wj[2] = {w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]};
                    ptx::mma_m16n8k32_s8(acc[i][j], x[i], wj);
                }
        }
    }
    const Output &o = a.output;
    const float *scale = reinterpret_cast<const float *>(band + a.tiles * QK_W8_TILE_BYTES);
    const int32_t *rowsum = reinterpret_cast<const int32_t *>(scale + BN);
    const int g = lane / 4, q = lane % 4;
    const bool integers = o.out.type == QE_CODE_INT;
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int64_t m = m0 + wm + i * 16 + h * 8 + g;
            if (m >= a.m) continue;
            const int64_t token = o.x_static ? 0 : m;
            const float s = o.x_scale[token];
            const uint32_t zero = o.x_zero ? uint32_t(o.x_zero[token]) : 0;
#pragma unroll
            for (int j = 0; j < NI; j++) {
                const int c = wn + j * 8 + q * 2;
                float v[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const uint32_t sum = uint32_t(acc[i][j][h * 2 + e]) - zero * uint32_t(rowsum[c + e]);
                    v[e] = qe_mul(qe_mul(float(int32_t(sum)), s), scale[c + e]);
                    if (integers && n0 + c + e < o.out.n)
                        static_cast<int8_t *>(o.out.y)[m * o.out.ldy + n0 + c + e] = o.requant(sum, n0 + c + e);
                }
                if (!integers) o.out.pair(m, n0 + c, v[0], v[1]);
            }
        }
}

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (device->unit_bytes < uint32_t(shared_bytes<128>()))
        return qk_no(why, "%u bytes of shared memory, needed %d", device->unit_bytes, shared_bytes<128>());
    return integer_output(g, why);
}
int tokens_of(int instance) {
    return instance == 0 ? 128 : 32 * instance;
}
void plan(const qk_device *, const qk_gemm *g, qk_plan *out) {
    const int64_t most = qk_tile_m(g);
    const int instance = most <= 32 ? 1 : most <= 64 ? 2 : 0, bm = tokens_of(instance);
    out->variant = instance;
    out->grid[0] = uint32_t((g->w.n + BN - 1) / BN), out->grid[1] = uint32_t((g->m + bm - 1) / bm), out->grid[2] = 1;
    out->block = kThreads;
    out->shared_bytes = uint32_t(instance == 1 ? shared_bytes<32>() : instance ? shared_bytes<64>() : shared_bytes<128>());
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const int bm = tokens_of(plan->variant);
    Args a{};
    a.x = static_cast<const int8_t *>(args->x.data), a.ld = args->x.ld, a.m = args->x.m;
    a.w = static_cast<const unsigned char *>(args->w->blob);
    a.band_bytes = qk_w8_band_bytes(args->w->shape.k), a.tiles = qk_w8_tiles(args->w->shape.k);
    a.output = output_of(plan, args, a.band_bytes, a.tiles * QK_W8_TILE_BYTES);
    if (a.m == 0) return QE_OK;
    dim3 grid(plan->grid[0], uint32_t((a.m + bm - 1) / bm));
    return launch(bm == 32 ? gemm<32> : bm == 64 ? gemm<64> : gemm<128>, grid, plan->block, plan->shared_bytes, queue, "cuda/w8a8_sm80", err,
                  a);
}

} // namespace w8a8_sm80
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w8a8_sm80_row = {"cuda/w8a8_sm80", &qk_cuda_w8a8, qk_cuda::w8a8_sm80::supports,
                                                 qk_cuda::w8a8_sm80::plan, qk_cuda::w8a8_sm80::run};
