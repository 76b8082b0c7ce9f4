// wgmma: D[64][N] += A[64][K] B[N][K]^T over two k-steps of 32 bytes, operands in 128-byte-swizzled rows, A also from
// registers; then the table of all conformance kernels. Included by ptx_conformance.cuh.
#pragma once

namespace conformance {

enum Wg { kRsU8, kRsS8, kRsF16, kRsBf16, kRsF16Keep, kRsBf16Keep, kSsS8, kSsF16, kSsBf16 };
template <Wg W> constexpr bool kKeeps = W == kRsF16Keep || W == kRsBf16Keep; // or not: the first product is one that forgets
template <Wg W> constexpr bool kIsBf16 = W == kRsBf16 || W == kRsBf16Keep || W == kSsBf16;
template <Wg W> constexpr bool kIsFloat = W == kRsF16 || kIsBf16<W> || kKeeps<W> || W == kSsF16;
template <Wg W> constexpr Product kElement = kIsBf16<W> ? kBf16 : kF16;
#if PTX_SM90
template <Wg W, int N, class T> PTX_FN void multiply(T (&acc)[N / 2], const uint32_t (&a)[4], uint64_t da, uint64_t db) {
    if constexpr (W == kRsU8)
        ptx::wgmma_rs_u8s8<N>(acc, a, db);
    else if constexpr (W == kRsS8)
        ptx::wgmma_rs_s8s8<N>(acc, a, db);
    else if constexpr (W == kRsF16)
        ptx::wgmma_rs_f16<N>(acc, a, db);
    else if constexpr (W == kRsF16Keep)
        ptx::wgmma_rs_f16_keep<N>(acc, a, db, ptx::opaque(4));
    else if constexpr (W == kRsBf16Keep)
        ptx::wgmma_rs_bf16_keep<N>(acc, a, db, ptx::opaque(4));
    else if constexpr (W == kRsBf16)
        ptx::wgmma_rs_bf16<N>(acc, a, db);
    else if constexpr (W == kSsS8)
        ptx::wgmma_s8s8<N>(acc, da, db);
    else if constexpr (W == kSsF16)
        ptx::wgmma_f16<N>(acc, da, db);
    else
        ptx::wgmma_bf16<N>(acc, da, db);
}
#endif
// in: A 64 rows of 64 bytes, B N rows of 64 bytes, C 64 x N words
template <Wg W, int N>
__global__ void __launch_bounds__(128, 1) wgmma(const __grid_constant__ Maps, const uint32_t *in, uint32_t *out) {
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    const int t = int(threadIdx.x), row0 = t / 32 * 16 + t % 32 / 4, q = t % 4;
    for (int i = t; i < (64 + N) * 16; i += 128) { // A at 0, B at 8192
        const int row = i / 16, word = i % 16, r = row < 64 ? row : row - 64;
        s[(row < 64 ? 0 : 2048) + r * 32 + (word / 4 ^ r % 8) * 4 + word % 4] = in[i];
    }
    ptx::fence_proxy_async();
    __syncthreads();
    using T = std::conditional_t<kIsFloat<W>, float, int32_t>;
    const uint32_t *c = in + (64 + N) * 16;
    T acc[N / 2];
    CONFORMANCE_UNROLL
    for (int i = 0; i < N / 2; i++) {
        const uint32_t start = c[(row0 + 8 * (i / 2 % 2)) * N + i / 4 * 8 + q * 2 + i % 2];
        acc[i] = kIsFloat<W> ? T(start % 1000) : T(int32_t(start));
    }
    uint32_t a[2][4];
    CONFORMANCE_UNROLL
    for (int step = 0; step < 2; step++)
    CONFORMANCE_UNROLL
        for (int r = 0; r < 4; r++) a[step][r] = in[(row0 + 8 * (r % 2)) * 16 + step * 8 + r / 2 * 4 + q];
    const uint64_t da = ptx::wgmma_desc(ptx::smem_addr(s)), db = ptx::wgmma_desc(ptx::smem_addr(s) + 8192);
    ptx::reg_fence(a);
    ptx::reg_fence(acc);
    ptx::wgmma_fence();
    if constexpr (W == kRsF16Keep)
        ptx::wgmma_rs_f16_keep<N>(acc, a[0], db, ptx::opaque(0));
    else if constexpr (W == kRsBf16Keep)
        ptx::wgmma_rs_bf16_keep<N>(acc, a[0], db, ptx::opaque(0));
    else
        multiply<W, N>(acc, a[0], da, db);
    ptx::wgmma_commit();
    multiply<W, N>(acc, a[1], da + 2, db + 2); // 32 bytes further along k
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    ptx::wgmma_wait<0>();
    ptx::reg_fence(acc);
    CONFORMANCE_UNROLL
    for (int i = 0; i < N / 2; i++) {
        uint32_t bits;
        memcpy(&bits, &acc[i], 4);
        out[(row0 + 8 * (i / 2 % 2)) * N + i / 4 * 8 + q * 2 + i % 2] = bits;
    }
#endif
}
template <Wg W, int N> void want_wgmma(const uint32_t *in, uint32_t *want) {
    const uint32_t *b_words = in + 64 * 16, *c = in + (64 + N) * 16;
    const uint8_t *a = reinterpret_cast<const uint8_t *>(in);
    const int8_t *b = reinterpret_cast<const int8_t *>(b_words);
    for (int m = 0; m < 64; m++)
        for (int n = 0; n < N; n++) {
            if (kIsFloat<W>) {
                double sum = kKeeps<W> ? 0 : c[m * N + n] % 1000;
                for (int k = 0; k < 32; k++)
                    sum += double(element(in, m * 32 + k, kElement<W>)) * element(b_words, n * 32 + k, kElement<W>);
                want[m * N + n] = qe_f32_bits(float(sum));
                continue;
            }
            int64_t sum = int32_t(c[m * N + n]);
            for (int k = 0; k < 64; k++)
                sum += (W == kRsU8 ? int(a[m * 64 + k]) : int(int8_t(a[m * 64 + k]))) * b[n * 64 + k];
            want[m * N + n] = uint32_t(sum);
        }
}

#define CONFORMANCE_WGMMA(name, W, N)                                                                                  \
    {#name "<" #N "> wgmma_desc wgmma_fence wgmma_commit wgmma_wait reg_fence", wgmma<W, N>, 128, 8192 + N * 128,       \
     (64 + N) * 16 + 64 * N, 64 * N, kIsBf16<W> ? kBfloats : kIsFloat<W> ? kHalves : kBytes, \
     want_wgmma<W, N>}
#define CONFORMANCE_WGMMA3(name, W)                                                                                    \
    CONFORMANCE_WGMMA(name, W, 16), CONFORMANCE_WGMMA(name, W, 64), CONFORMANCE_WGMMA(name, W, 128)
#define CONFORMANCE_WGMMA4(name, W) CONFORMANCE_WGMMA3(name, W), CONFORMANCE_WGMMA(name, W, 256)

static const Case kCases[] = {
    {"smem_addr lds128 lds32 opaque", shared_loads, 32, 512, 128, 160, kBytes, want_shared_loads},
    {"cp_async16 cp_async_commit cp_async_wait", async_copies, 32, 1024, 256, 256, kBytes, want_async_copies},
    {"ldmatrix_x1", load_matrices<1, false>, 32, 512, 128, 32, kBytes, want_load_matrices<1, false>},
    {"ldmatrix_x2", load_matrices<2, false>, 32, 512, 128, 64, kBytes, want_load_matrices<2, false>},
    {"ldmatrix_x4", load_matrices<4, false>, 32, 512, 128, 128, kBytes, want_load_matrices<4, false>},
    {"ldmatrix_x2_trans", load_matrices<2, true>, 32, 512, 128, 64, kBytes, want_load_matrices<2, true>},
    {"ldmatrix_x4_trans", load_matrices<4, true>, 32, 512, 128, 128, kBytes, want_load_matrices<4, true>},
#ifdef PTX_HAS_LDMATRIX_S4
    {"ldmatrix_x4_s8_s4", load_nibbles, 32, 256, 64, 128, kBytes, want_load_nibbles},
#endif
    {"stmatrix_x4_trans", store_matrices, 32, 512, 128, 128, kBytes, want_store_matrices},
    {"mma_m16n8k32_s8", products<kS8>, 32, 0, 320, 128, kBytes, want_products<kS8>},
    {"mma_m16n8k256_and_popc", products<kB1>, 32, 0, 320, 128, kBytes, want_products<kB1>},
    {"mma_m16n8k16_f16", products<kF16>, 32, 0, 320, 128, kHalves, want_products<kF16>},
    {"mma_m16n8k16_bf16", products<kBf16>, 32, 0, 320, 128, kBfloats, want_products<kBf16>},
    {"lop3 prmt", bit_tricks, 32, 0, 96, 32 * 257, kBytes, want_bit_tricks},
    {"named_bar_sync named_bar_arrive", named_barriers, 64, 128, 64, 64, kBytes, want_named_barriers},
    {"ld_acquire red_release_add", release_acquire, 64, 0, 33, 65, kBytes, want_release_acquire},
    {"__shfl_xor_sync", shuffles, 32, 0, 64, 320, kBytes, want_shuffles},
    {"__shfl_sync __ballot_sync", lanes_and_votes, 32, 0, 32, 160, kBytes, want_lanes_and_votes},
    {"elect_one", election, 32, 0, 1, 1, kBytes, want_election},
    {"setmaxnreg_inc setmaxnreg_dec griddep_wait griddep_launch tma_prefetch_map", hints, 384, 0, 384, 384, kBytes,
     want_hints},
    {"mbar_init mbar_fence_init mbar_arrive mbar_try_wait mbar_wait", barrier_objects, 64, 272, 64, 160, kBytes,
     want_barrier_objects},
    {"mbar_arrive_expect_tx bulk_load", bulk_copies, 32, 520, 128, 128, kBytes, want_bulk_copies},
    {"tma_load_2d", tensor_loads, 32, 2056, kMapPitch * kMapRows / 4, 512, kBytes, want_tensor_loads},
    {"tma_store_2d bulk_commit bulk_wait_read fence_proxy_async", tensor_stores, 32, 1024, 256,
     kOutPitch *kOutRows / 4, kBytes, want_tensor_stores},
    {"cluster_rank cluster_addr cluster_arrive cluster_wait mbar_arrive_cluster mbar_wait_cluster", cluster_barriers, 32,
     8, 64, 128, kBytes, want_cluster_barriers, 2},
    {"lds128_cluster", cluster_loads, 32, 512, 512, 512, kBytes, want_cluster_loads, 4},
    {"tma_load_2d_multicast", multicasts, 32, 3080, kMapPitch * kMapRows / 4, 1536, kBytes, want_multicasts, 2},
    CONFORMANCE_WGMMA4(wgmma_rs_u8s8, kRsU8),
    CONFORMANCE_WGMMA4(wgmma_rs_s8s8, kRsS8),
    CONFORMANCE_WGMMA4(wgmma_rs_f16, kRsF16),
    CONFORMANCE_WGMMA4(wgmma_rs_bf16, kRsBf16),
    CONFORMANCE_WGMMA3(wgmma_rs_f16_keep, kRsF16Keep),
    CONFORMANCE_WGMMA3(wgmma_rs_bf16_keep, kRsBf16Keep),
    CONFORMANCE_WGMMA4(wgmma_s8s8, kSsS8),
    CONFORMANCE_WGMMA4(wgmma_f16, kSsF16),
    CONFORMANCE_WGMMA4(wgmma_bf16, kSsBf16),
};

} // namespace conformance
