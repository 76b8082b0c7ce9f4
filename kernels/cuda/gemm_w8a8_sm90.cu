// Row cuda/w8a8_sm90: int8 x int8 with wgmma; TMA of x, bulk copies of w, an mbarrier ring, two consumer warpgroups.
#include "cuda_backend.h"
#include "epilogue.cuh"
#include "launch.cuh"

namespace qk_cuda {
namespace w8a8_sm90 {

constexpr int BM = 128, BN = QK_W8_ROWS, BK = QK_W8_TILE_K, kStages = 4;
constexpr int kConsumers = 256, kThreads = kConsumers + 32; // warps 0-7 multiply, warp 8 loads
constexpr int kTileBytes = 128 * BK, kStageBytes = 2 * kTileBytes, kBars = kStages * kStageBytes;
constexpr int kSharedBytes = kBars + 2 * kStages * 8;

struct Args {
    int64_t m;
    const float *x_scale;
    const int32_t *x_zero; // NULL: symmetric
    int x_static;
    const unsigned char *w;
    int64_t band_bytes;
    int tiles;
    Epilogue out;
};

#if PTX_SM90
PTX_FN void produce(const CUtensorMap &map, const Args &a, uint32_t base, const unsigned char *band, int m0) {
    const uint32_t full = base + kBars, empty = full + kStages * 8;
    for (int t = 0; t < a.tiles; t++) {
        const int s = t % kStages, round = t / kStages;
        const uint32_t x = base + uint32_t(s * kStageBytes);
        ptx::mbar_wait(empty + uint32_t(s * 8), uint32_t(round & 1) ^ 1);
        ptx::mbar_arrive_expect_tx(full + uint32_t(s * 8), kStageBytes);
        ptx::tma_load_2d(x, &map, full + uint32_t(s * 8), t * BK, m0);
        ptx::bulk_load(x + kTileBytes, band + int64_t(t) * kTileBytes, kTileBytes, full + uint32_t(s * 8));
    }
}
#endif

__global__ void __launch_bounds__(kThreads) gemm(const __grid_constant__ CUtensorMap map, const Args a) {
#if PTX_SM90
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem), full = base + kBars, empty = full + kStages * 8;
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int m0 = int(blockIdx.y) * BM;
    const unsigned char *band = a.w + int64_t(blockIdx.x) * a.band_bytes;

    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; s++) {
            ptx::mbar_init(full + uint32_t(s * 8), 1);
            ptx::mbar_init(empty + uint32_t(s * 8), kConsumers / 32); // one arrival per consumer warp
        }
        ptx::mbar_fence_init();
    }
    __syncthreads();
    if (warp == kConsumers / 32) {
        if (ptx::elect_one()) produce(map, a, base, band, m0);
        return;
    }

    const int group = warp / 4;
    int32_t acc[64];
#pragma unroll
    for (int i = 0; i < 64; i++) acc[i] = 0;
    for (int t = 0; t < a.tiles; t++) {
        const int s = t % kStages, round = t / kStages;
        ptx::mbar_wait(full + uint32_t(s * 8), uint32_t(round & 1));
        const uint32_t x = base + uint32_t(s * kStageBytes + group * 64 * BK),
                       w = base + uint32_t(s * kStageBytes + kTileBytes);
        ptx::reg_fence(acc);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < BK / 32; k++)
            ptx::wgmma_s8s8<BN>(acc, ptx::wgmma_desc(x) + uint64_t(k * 2), ptx::wgmma_desc(w) + uint64_t(k * 2));
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>(); // the previous tile's products are done
        if (t > 0 && lane == 0) ptx::mbar_arrive(empty + uint32_t((t - 1) % kStages * 8));
    }
    ptx::wgmma_wait<0>();
    ptx::reg_fence(acc);

    const float *scale = reinterpret_cast<const float *>(band + int64_t(a.tiles) * kTileBytes);
    const int32_t *rowsum = reinterpret_cast<const int32_t *>(scale + BN);
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int64_t m = m0 + group * 64 + warp % 4 * 16 + h * 8 + g;
        if (m >= a.m) continue;
        const int64_t token = a.x_static ? 0 : m;
        const float s = a.x_scale[token];
        const uint32_t zero = a.x_zero ? uint32_t(a.x_zero[token]) : 0;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const int c = j * 8 + q * 2;
            float v[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const uint32_t sum = uint32_t(acc[j * 4 + h * 2 + e]) - zero * uint32_t(rowsum[c + e]);
                v[e] = qe_mul(qe_mul(float(int32_t(sum)), s), scale[c + e]);
            }
            a.out.pair(m, int64_t(blockIdx.x) * BN + c, v[0], v[1]);
        }
    }
#endif
}

bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (device->sm / 10 != 9) return qk_no(why, "sm_%d, needed sm_90", int(device->sm));
    if (g->m <= 32) return qk_no(why, "m = %lld fills a quarter of the tile", (long long)g->m);
    return float_output(g, why);
}
void plan(const qk_device *, const qk_gemm *g, qk_plan *out) {
    out->grid[0] = uint32_t((g->w.n + BN - 1) / BN), out->grid[1] = uint32_t((g->m + BM - 1) / BM), out->grid[2] = 1;
    out->block = kThreads;
    out->shared_bytes = kSharedBytes;
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    Args a{};
    a.m = args->x.m;
    a.x_scale = args->x.scales, a.x_zero = args->x.zeros, a.x_static = w.act.mode == QE_ACT_STATIC;
    a.w = static_cast<const unsigned char *>(args->w->blob);
    a.band_bytes = qk_w8_band_bytes(w.k), a.tiles = int(qk_w8_tiles(w.k));
    a.out = epilogue_of(plan, args);
    if (a.m == 0) return QE_OK;
    CUtensorMap map;
    int code = qk_cuda_api_now()->tensor_map(&map, args->x.data, uint64_t(args->x.ld), uint64_t(a.m),
                                             uint64_t(args->x.ld), BM);
    if (code) return qk_cuda_fail(code, "encoding a tensor map", err);
    dim3 grid(plan->grid[0], uint32_t((a.m + BM - 1) / BM));
    return launch(gemm, grid, plan->block, plan->shared_bytes, queue, "cuda/w8a8_sm90", err, map, a);
}

} // namespace w8a8_sm90
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w8a8_sm90_row = {"cuda/w8a8_sm90", &qk_cuda_w8a8, qk_cuda::w8a8_sm90::supports,
                                                 qk_cuda::w8a8_sm90::plan, qk_cuda::w8a8_sm90::run};
