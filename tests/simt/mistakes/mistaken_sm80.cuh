// W8A8 GEMM for sm_80: D[m][n] = half(sum_k A[m][k] * B[n][k] * sa[m] * sb[n]).
// A is MxK, B is NxK, both row-major int8; K is a multiple of 16.
#pragma once
#include "ptx.cuh"
#ifndef SIMT_MISTAKE // seeded mistakes, for the test of the tests
#define SIMT_MISTAKE 0
#endif

namespace w8a8_sm80 {
constexpr int BM = 128, BN = 128, BK = 64, kStages = 4, kThreads = 256;
constexpr int kTileBytes = BM * BK, kStageBytes = 2 * kTileBytes;
constexpr int kSmemBytes = kStages * kStageBytes;

// Rows are 64 bytes (4 chunks of 16); the chunk number is XORed so that ldmatrix has no bank conflict.
PTX_FN int swz(int row, int chunk) {
    return row * BK + ((chunk ^ ((row >> 1) & 3)) << 4);
}

PTX_FN void load_tile(uint32_t dst, const int8_t *src, int rows, int K, int row0, int k0) {
#pragma unroll
    for (int i = 0; i < kTileBytes / 16 / kThreads; i++) {
        int c = i * kThreads + int(threadIdx.x), r = c >> 2, chunk = c & 3;
        int row = row0 + r, k = k0 + chunk * 16;
#if SIMT_MISTAKE == 3
        bool in = row <= rows && k < K;
#else
        bool in = row < rows && k < K;
#endif
        const int8_t *p = in ? src + int64_t(row) * K + k : src;
        ptx::cp_async16(dst + swz(r, chunk), p, in ? 16 : 0);
    }
}

__global__ void __launch_bounds__(kThreads)
    gemm(const int8_t *A, const int8_t *B, const float *sa, const float *sb, __half *D, int M, int N, int K) {
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int wm = warp / 4 * 64, wn = warp % 4 * 32; // the warp's 64x32 part
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int tiles = (K + BK - 1) / BK;

    int32_t acc[4][4][4] = {};
#pragma unroll
    for (int s = 0; s < kStages - 1; s++) {
        if (s < tiles) {
            load_tile(base + s * kStageBytes, A, M, K, m0, s * BK);
            load_tile(base + s * kStageBytes + kTileBytes, B, N, K, n0, s * BK);
        }
        ptx::cp_async_commit();
    }
    for (int t = 0; t < tiles; t++) {
#if SIMT_MISTAKE == 5
        ptx::cp_async_wait<kStages - 1>();
#else
        ptx::cp_async_wait<kStages - 2>();
#endif
#if SIMT_MISTAKE != 1 && SIMT_MISTAKE != 8
        __syncthreads();
#endif
        if (int u = t + kStages - 1; u < tiles) {
            load_tile(base + u % kStages * kStageBytes, A, M, K, m0, u * BK);
            load_tile(base + u % kStages * kStageBytes + kTileBytes, B, N, K, n0, u * BK);
        }
        ptx::cp_async_commit();
#if SIMT_MISTAKE == 8
        __syncthreads(); // too late: the slot refilled above may still be read by a slower warp
#endif
        const uint32_t as = base + t % kStages * kStageBytes, bs = as + kTileBytes;
#pragma unroll
        for (int kk = 0; kk < BK / 32; kk++) {
            uint32_t a[4][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
#if SIMT_MISTAKE == 2
                int r = wm + i * 16 + (lane & 15), c = kk * 2 + (lane >> 4);
                ptx::ldmatrix_x4(a[i], as + r * BK + ((c ^ (r & 3)) << 4));
#else
                ptx::ldmatrix_x4(a[i], as + swz(wm + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#endif
            }
#pragma unroll
            for (int j = 0; j < 2; j++)
                ptx::ldmatrix_x4(b[j], bs + swz(wn + j * 16 + (lane & 7) + (lane >> 4) * 8, kk * 2 + (lane >> 3 & 1)));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    uint32_t bj[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
#if SIMT_MISTAKE == 6
                    uint32_t ai[4] = {a[i][0], a[i][2], a[i][1], a[i][3]};
                    ptx::mma_m16n8k32_s8(acc[i][j], ai, bj);
#else
                    ptx::mma_m16n8k32_s8(acc[i][j], a[i], bj);
#endif
                }
        }
    }
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int m = m0 + wm + i * 16 + h * 8 + g;
            if (m >= M) continue;
            float s = sa[m];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int n = n0 + wn + j * 8 + q * 2;
#pragma unroll
                for (int e = 0; e < 2; e++)
#if SIMT_MISTAKE == 7
                    if (n + e <= N)
                        D[int64_t(m) * N + n + e] = __float2half_rn(float(acc[i][j][h * 2 + e]) * s * sb[n + e]);
#else
                    if (n + e < N)
                        D[int64_t(m) * N + n + e] = __float2half_rn(float(acc[i][j][h * 2 + e]) * s * sb[n + e]);
#endif
            }
        }
}
} // namespace w8a8_sm80
