// W8A8 GEMM for sm_90a: TMA loads, an mbarrier ring, two consumer warpgroups (64x128 each), wgmma.
// D[m][n] = half(sum_k A[m][k] * B[n][k] * sa[m] * sb[n]); K a multiple of 16, N a multiple of 8.
#pragma once
#include "ptx.cuh"
#ifndef SIMT_MISTAKE
#define SIMT_MISTAKE 0
#endif

namespace w8a8_sm90 {
constexpr int BM = 128, BN = 128, BK = 128, kStages = 4;
constexpr int kConsumers = 256, kThreads = kConsumers + 32; // warps 0-7 multiply, warp 8 loads
constexpr int kTileBytes = 128 * BK, kStageBytes = 2 * kTileBytes;
constexpr int kOut = kStages * kStageBytes; // 2 x (64 x 128 half), 128-byte swizzle
constexpr int kBars = kOut + 2 * 64 * 128 * 2;
constexpr int kSmemBytes = kBars + 2 * kStages * 8;

__global__ void __launch_bounds__(kThreads)
    gemm(const __grid_constant__ CUtensorMap ta, const __grid_constant__ CUtensorMap tb,
         const __grid_constant__ CUtensorMap td, const float *sa, const float *sb, int M, int N, int K) {
#if defined(SIMT_EMULATE) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem), full = base + kBars, empty = full + kStages * 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int tiles = (K + BK - 1) / BK;

    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; s++) {
            ptx::mbar_init(full + s * 8, 1);
            ptx::mbar_init(empty + s * 8, SIMT_MISTAKE == 13 ? 2 : kConsumers / 32); // one arrival per consumer warp
        }
        ptx::mbar_fence_init();
    }
#if SIMT_MISTAKE != 1
    __syncthreads();
#endif

    if (warp == kConsumers / 32) { // ---- producer
        if (ptx::elect_one()) {
            for (int t = 0; t < tiles; t++) {
                int s = t % kStages, round = t / kStages;
#if SIMT_MISTAKE == 4
                ptx::mbar_wait(empty + s * 8, round & 1);
#elif SIMT_MISTAKE != 8
                ptx::mbar_wait(empty + s * 8, (round & 1) ^ 1);
#endif
                uint32_t a = base + s * kStageBytes;
                ptx::mbar_arrive_expect_tx(full + s * 8, kStageBytes - (SIMT_MISTAKE == 10 ? 128 : 0));
                ptx::tma_load_2d(a, &ta, full + s * 8, t * BK, m0);
                ptx::tma_load_2d(a + kTileBytes, &tb, full + s * 8, t * BK, n0);
            }
        }
        return;
    }

    const int wg = warp / 4; // ---- consumers
    int32_t acc[64];
#pragma unroll
    for (int i = 0; i < 64; i++) acc[i] = 0;
    for (int t = 0; t < tiles; t++) {
        int s = t % kStages, round = t / kStages;
#if SIMT_MISTAKE == 5
        ptx::mbar_wait(full + s * 8, (round & 1) ^ 1); // returns at once, before the data
#else
        ptx::mbar_wait(full + s * 8, round & 1);
#endif
        uint32_t a = base + s * kStageBytes + wg * 64 * BK, b = base + s * kStageBytes + kTileBytes;
        ptx::reg_fence(acc);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < BK / 32; k++)
            ptx::wgmma_s8s8<BN>(acc, ptx::wgmma_desc(a) + k * (SIMT_MISTAKE == 2 ? 4 : 2), ptx::wgmma_desc(b) + k * 2);
        ptx::wgmma_commit();
#if SIMT_MISTAKE == 9
        if (lane == 0) ptx::mbar_arrive(empty + s * 8); // the slot is given back while wgmma reads it
#else
        ptx::wgmma_wait<1>(); // the previous tile's products are done
        if (t > 0 && lane == 0 && (SIMT_MISTAKE != 13 || warp % 4 == 0))
            ptx::mbar_arrive(empty + (t - 1) % kStages * 8);
#endif
    }
#if SIMT_MISTAKE != 11
    ptx::wgmma_wait<0>();
#endif
    ptx::reg_fence(acc);

    // Dequantise into shared memory (two 64-column halves, 128-byte swizzle) and store by TMA.
    const int g = lane / 4, q = lane % 4, w = warp % 4;
    unsigned char *out = smem + kOut + wg * 64 * 128 * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int r = w * 16 + h * 8 + g, m = m0 + wg * 64 + r;
        float s = m < M ? sa[m] : 0.f;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            int c = j * 8 + q * 2, n = n0 + c;
            float s0 = n < N ? sb[n] : 0.f, s1 = n + 1 < N ? sb[n + 1] : 0.f;
            int e = SIMT_MISTAKE == 6 ? j * 4 + (1 - h) * 2 : j * 4 + h * 2;
            __half2 v = __floats2half2_rn(float(acc[e]) * s * s0, float(acc[e + 1]) * s * s1);
            int off = c / 64 * 8192 + r * 128 + (((c % 64 / 8) ^ (r & 7)) << 4) + c % 8 * 2;
            *reinterpret_cast<__half2 *>(out + off) = v;
        }
    }
#if SIMT_MISTAKE != 7
    ptx::fence_proxy_async();
#endif
#if SIMT_MISTAKE != 12
    ptx::named_bar_sync(1 + wg, 128);
#endif
    if (threadIdx.x % 128 == 0) {
        ptx::tma_store_2d(&td, ptx::smem_addr(out), n0, m0 + wg * 64);
        ptx::tma_store_2d(&td, ptx::smem_addr(out) + 8192, n0 + 64, m0 + wg * 64);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
#endif
}
} // namespace w8a8_sm90
