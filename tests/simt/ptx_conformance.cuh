// One small kernel for every wrapper of kernels/cuda/ptx.cuh, and its answer computed on the host from the PTX ISA's
// description of the instruction. tests/test_simt_ptx.cc runs them in the emulator, run_conformance.cu on a GPU: both
// must give the same words. A kernel reads `in`, writes `out`; wgmma products follow in ptx_conformance_wgmma.cuh.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "ptx.cuh"
#include <qengine/num.h>

namespace conformance {

struct Maps { // 2-D maps of bytes with the 128-byte swizzle, boxes of 8 rows x 128 bytes
    CUtensorMap in, out;
};
constexpr int kMapPitch = 176, kMapCols = 160, kMapRows = 13, kOutPitch = 128, kOutCols = 112, kOutRows = 6;
using Kernel = void (*)(const Maps, const uint32_t *, uint32_t *);
using Reference = void (*)(const uint32_t *in, uint32_t *want); // want holds what `out` held before the launch
enum Fill { kBytes, kHalves, kBfloats };                         // random bytes, or integers of -8..8 in 16 bits

struct Case {
    const char *wrappers; // names shown by this kernel, separated by spaces
    Kernel kernel;
    unsigned threads, shared, in_words, out_words;
    Fill fill;
    Reference reference;
    unsigned cluster = 1; // blocks, all of one cluster
};
#ifdef __CUDACC__
#define CONFORMANCE_UNROLL _Pragma("unroll")
#else
#define CONFORMANCE_UNROLL
#endif
#define CONFORMANCE_KERNEL(name) __global__ void name(const __grid_constant__ Maps, const uint32_t *in, uint32_t *out)
#define CONFORMANCE_MAPPED(name)                                                                                       \
    __global__ void name(const __grid_constant__ Maps maps, const uint32_t *in, uint32_t *out)

// ---- loads by shared address -------------------------------------------------------------------------------------
CONFORMANCE_KERNEL(shared_loads) {
    PTX_DYN_SMEM(uint32_t, s);
    const int l = int(threadIdx.x);
    for (int i = l; i < 128; i += 32) s[i] = in[i];
    __syncthreads();
    uint32_t q[4];
    ptx::lds128(q, ptx::smem_addr(s) + uint32_t(31 - l) * 16);
    for (int i = 0; i < 4; i++) out[l * 5 + i] = q[i];
    out[l * 5 + 4] = ptx::opaque(ptx::lds32(ptx::smem_addr(s + 127 - l)));
}
inline void want_shared_loads(const uint32_t *in, uint32_t *want) {
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) want[l * 5 + i] = in[(31 - l) * 4 + i];
        want[l * 5 + 4] = in[127 - l];
    }
}

// ---- cp.async: 0, 4, 8, 12 or 16 source bytes, the rest zeros; two groups ---------------------------------------
CONFORMANCE_KERNEL(async_copies) {
    PTX_DYN_SMEM(uint32_t, s);
    const int l = int(threadIdx.x);
    const uint32_t base = ptx::smem_addr(s);
    ptx::cp_async16(base + uint32_t(l) * 16, in + l * 4, uint32_t(l % 5) * 4);
    ptx::cp_async_commit();
    ptx::cp_async16(base + 512 + uint32_t(l) * 16, in + 128 + l * 4);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>(); // a thread sees its own copies of the first group
    for (int i = 0; i < 4; i++) out[l * 8 + i] = s[l * 4 + i];
    ptx::cp_async_wait<0>();
    for (int i = 0; i < 4; i++) out[l * 8 + 4 + i] = s[128 + l * 4 + i];
}
inline void want_async_copies(const uint32_t *in, uint32_t *want) {
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            want[l * 8 + i] = i < l % 5 ? in[l * 4 + i] : 0;
            want[l * 8 + 4 + i] = in[128 + l * 4 + i];
        }
}

// ---- ldmatrix, stmatrix ------------------------------------------------------------------------------------------
// Matrix i has its row r where lane 8i + r says: here the row slot (5 * (8i + r) + 3) % 32.
PTX_FN uint32_t row_slot(uint32_t lane) {
    return (lane * 5 + 3) % 32;
}
template <int Count, bool Trans> CONFORMANCE_KERNEL(load_matrices) {
    PTX_DYN_SMEM(uint32_t, s);
    const int l = int(threadIdx.x);
    for (int i = l; i < 128; i += 32) s[i] = in[i];
    __syncthreads();
    uint32_t r[Count];
    const uint32_t addr = ptx::smem_addr(s) + row_slot(uint32_t(l)) * 16;
    if constexpr (Count == 1)
        ptx::ldmatrix_x1(r, addr);
    else if constexpr (Count == 2 && !Trans)
        ptx::ldmatrix_x2(r, addr);
    else if constexpr (Count == 2)
        ptx::ldmatrix_x2_trans(r, addr);
    else if constexpr (!Trans)
        ptx::ldmatrix_x4(r, addr);
    else
        ptx::ldmatrix_x4_trans(r, addr);
    for (int i = 0; i < Count; i++) out[l * Count + i] = r[i];
}
template <int Count, bool Trans> void want_load_matrices(const uint32_t *in, uint32_t *want) {
    const uint16_t *half = reinterpret_cast<const uint16_t *>(in);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < Count; i++) {
            uint32_t pair[2];
            for (int e = 0; e < 2; e++) {
                const int row = l / 4, column = l % 4 * 2 + e;
                const int from_row = Trans ? column : row, from_column = Trans ? row : column;
                pair[e] = half[((8 * i + from_row) * 5 + 3) % 32 * 8 + from_column];
            }
            want[l * Count + i] = pair[0] | pair[1] << 16;
        }
}
CONFORMANCE_KERNEL(store_matrices) {
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    const int l = int(threadIdx.x);
    uint32_t r[4];
    for (int i = 0; i < 4; i++) r[i] = in[l * 4 + i];
    ptx::stmatrix_x4_trans(ptx::smem_addr(s) + row_slot(uint32_t(l)) * 16, r);
    __syncthreads();
    for (int i = l; i < 128; i += 32) out[i] = s[i];
#endif
}
inline void want_store_matrices(const uint32_t *in, uint32_t *want) {
    uint16_t *half = reinterpret_cast<uint16_t *>(want);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            for (int e = 0; e < 2; e++) // element (row l/4, column 2(l%4)+e) of the fragment goes to its transpose
                half[((8 * i + l % 4 * 2 + e) * 5 + 3) % 32 * 8 + l / 4] = uint16_t(in[l * 4 + i] >> 16 * e);
}
#ifdef PTX_HAS_LDMATRIX_S4
CONFORMANCE_KERNEL(load_nibbles) {
    PTX_DYN_SMEM(uint32_t, s);
    const int l = int(threadIdx.x);
    for (int i = l; i < 64; i += 32) s[i] = in[i];
    __syncthreads();
    uint32_t r[4];
    ptx::ldmatrix_x4_s8_s4(r, ptx::smem_addr(s) + row_slot(uint32_t(l)) * 8);
    for (int i = 0; i < 4; i++) out[l * 4 + i] = r[i];
}
inline void want_load_nibbles(const uint32_t *in, uint32_t *want) {
    const uint8_t *bytes = reinterpret_cast<const uint8_t *>(in);
    int8_t *to = reinterpret_cast<int8_t *>(want);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) { // matrix i, row l/4, column 4(l%4)+j, even columns in the low nibble
                const int column = l % 4 * 4 + j, row = ((8 * i + l / 4) * 5 + 3) % 32;
                const int q = bytes[row * 8 + column / 2] >> 4 * (column & 1) & 15;
                to[(l * 4 + i) * 4 + j] = int8_t(q >= 8 ? q - 16 : q);
            }
}
#endif

// ---- mma.sync: D = A B + C, A 16 x K row-major in `in`, then B 8 x K (its columns), then C 16 x 8 -----------------
enum Product { kS8, kB1, kF16, kBf16 };
template <Product P> CONFORMANCE_KERNEL(products) {
    constexpr int kRow = 8; // words of a row of A and B: 32 bytes
    const int l = int(threadIdx.x), g = l / 4, t = l % 4;
    uint32_t a[4], b[2];
    for (int r = 0; r < 4; r++) a[r] = in[(g + 8 * (r & 1)) * kRow + 4 * (r >> 1) + t];
    for (int r = 0; r < 2; r++) b[r] = in[128 + g * kRow + 4 * r + t];
    if constexpr (P == kS8 || P == kB1) {
        int32_t d[4];
        for (int r = 0; r < 4; r++) d[r] = int32_t(in[192 + (g + 8 * (r >> 1)) * 8 + t * 2 + (r & 1)]);
        if constexpr (P == kS8)
            ptx::mma_m16n8k32_s8(d, a, b);
        else
            ptx::mma_m16n8k256_and_popc(d, a, b);
        for (int r = 0; r < 4; r++) out[(g + 8 * (r >> 1)) * 8 + t * 2 + (r & 1)] = uint32_t(d[r]);
    } else {
        float d[4];
        for (int r = 0; r < 4; r++) d[r] = float(in[192 + (g + 8 * (r >> 1)) * 8 + t * 2 + (r & 1)] % 1000);
        if constexpr (P == kF16)
            ptx::mma_m16n8k16_f16(d, a, b);
        else
            ptx::mma_m16n8k16_bf16(d, a, b);
        for (int r = 0; r < 4; r++) out[(g + 8 * (r >> 1)) * 8 + t * 2 + (r & 1)] = __float_as_uint(d[r]);
    }
}
inline float element(const uint32_t *rows, int index, Product p) {
    const uint16_t h = reinterpret_cast<const uint16_t *>(rows)[index];
    return p == kF16 ? qe_f16_to_f32(h) : qe_bf16_to_f32(h);
}
template <Product P> void want_products(const uint32_t *in, uint32_t *want) {
    const int8_t *a = reinterpret_cast<const int8_t *>(in), *b = reinterpret_cast<const int8_t *>(in + 128);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            const uint32_t c = in[192 + m * 8 + n];
            if (P == kS8) {
                int64_t sum = int32_t(c);
                for (int k = 0; k < 32; k++) sum += a[m * 32 + k] * b[n * 32 + k];
                want[m * 8 + n] = uint32_t(sum); // wraps modulo 2^32
            } else if (P == kB1) {
                want[m * 8 + n] = c;
                for (int k = 0; k < 256; k++) // bit k of a row is bit k % 32 of its word k / 32
                    want[m * 8 + n] += in[m * 8 + k / 32] >> k % 32 & in[128 + n * 8 + k / 32] >> k % 32 & 1;
            } else {
                double sum = c % 1000; // small integers: every order gives the same float
                for (int k = 0; k < 16; k++)
                    sum += double(element(in, m * 16 + k, P)) * element(in + 128, n * 16 + k, P);
                want[m * 8 + n] = qe_f32_bits(float(sum));
            }
        }
}

// ---- bit tricks --------------------------------------------------------------------------------------------------
template <int... Lut>
PTX_FN void every_lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t *out, std::integer_sequence<int, Lut...>) {
    ((out[Lut] = ptx::lop3<Lut>(a, b, c)), ...);
}
CONFORMANCE_KERNEL(bit_tricks) {
    const uint32_t l = threadIdx.x, a = in[l * 3], b = in[l * 3 + 1], c = in[l * 3 + 2];
    every_lop3(a, b, c, out + l * 257, std::make_integer_sequence<int, 256>());
    out[l * 257 + 256] = ptx::prmt(a, b, c & 0xffff);
}
inline void want_bit_tricks(const uint32_t *in, uint32_t *want) {
    for (int l = 0; l < 32; l++) {
        const uint32_t a = in[l * 3], b = in[l * 3 + 1], c = in[l * 3 + 2];
        for (uint32_t lut = 0; lut < 256; lut++) {
            uint32_t v = 0;
            for (int bit = 0; bit < 32; bit++)
                v |= (lut >> ((a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)) & 1) << bit;
            want[l * 257 + int(lut)] = v;
        }
        uint8_t bytes[8], r[4];
        std::memcpy(bytes, &a, 4), std::memcpy(bytes + 4, &b, 4);
        for (int i = 0; i < 4; i++) {
            const uint32_t select = c >> 4 * i & 15, byte = bytes[select & 7];
            r[i] = uint8_t(select & 8 ? (byte >= 128 ? 255 : 0) : byte);
        }
        std::memcpy(&want[l * 257 + 256], r, 4);
    }
}

// ---- order between warps -----------------------------------------------------------------------------------------
CONFORMANCE_KERNEL(named_barriers) { // warp 1 fills, warp 0 reads, warp 1 learns that it was read
    PTX_DYN_SMEM(uint32_t, s);
    const int l = int(threadIdx.x) % 32;
    if (threadIdx.x >= 32) {
        s[l] = in[l];
        ptx::named_bar_arrive(1, 64);
        ptx::named_bar_sync(2, 64);
        s[l] = in[32 + l];
        ptx::named_bar_arrive(3, 64);
    } else {
        ptx::named_bar_sync(1, 64);
        out[l] = s[31 - l];
        ptx::named_bar_arrive(2, 64);
        ptx::named_bar_sync(3, 64);
        out[32 + l] = s[31 - l];
    }
}
inline void want_named_barriers(const uint32_t *in, uint32_t *want) {
    for (int l = 0; l < 32; l++) want[l] = in[31 - l], want[32 + l] = in[32 + 31 - l];
}
CONFORMANCE_KERNEL(release_acquire) { // through global memory: out[64] counts the lanes that have written
    const int l = int(threadIdx.x) % 32;
    if (threadIdx.x >= 32) {
        out[l] = in[l];
        ptx::red_release_add(&out[64], 1);
    } else {
        const uint32_t start = in[32] & 0; // `out` starts as zeros
        while (ptx::ld_acquire(&out[64]) - start != 32) {}
        out[32 + l] = out[31 - l] + 1;
    }
}
inline void want_release_acquire(const uint32_t *in, uint32_t *want) {
    for (int l = 0; l < 32; l++) want[l] = in[l], want[32 + l] = in[31 - l] + 1;
    want[64] = 32;
}
CONFORMANCE_KERNEL(election) {
#if PTX_SM90
    (void)in;
    const bool chosen = ptx::elect_one();
    const uint32_t votes = __ballot_sync(0xffffffffu, chosen);
    if (threadIdx.x == 0) out[0] = uint32_t(__popc(votes)); // which lane is not defined, that it is one is
#endif
}
inline void want_election(const uint32_t *, uint32_t *want) {
    want[0] = 1;
}
CONFORMANCE_KERNEL(shuffles) { // of 64 bits, as the sums of gradients use them
    const int l = int(threadIdx.x);
    for (int step = 0; step < 5; step++) {
        double v;
        memcpy(&v, &in[2 * l], 8);
        v = __shfl_xor_sync(0xffffffffu, v, 16 >> step);
        memcpy(&out[step * 64 + 2 * l], &v, 8);
    }
}
CONFORMANCE_KERNEL(lanes_and_votes) { // a lane's word from another lane, and a bit of every lane
    const int l = int(threadIdx.x);
    for (int i = 0; i < 4; i++) out[i * 32 + l] = uint32_t(__shfl_sync(0xffffffffu, int(in[l]), 8 * i + l % 3));
    out[128 + l] = __ballot_sync(0xffffffffu, in[l] & 1);
}
inline void want_lanes_and_votes(const uint32_t *in, uint32_t *want) {
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) want[i * 32 + l] = in[8 * i + l % 3];
        want[128 + l] = 0;
        for (int k = 0; k < 32; k++) want[128 + l] |= (in[k] & 1) << k;
    }
}
inline void want_shuffles(const uint32_t *in, uint32_t *want) {
    for (int step = 0; step < 5; step++)
        for (int l = 0; l < 32; l++) std::memcpy(&want[step * 64 + 2 * l], &in[2 * (l ^ 16 >> step)], 8);
}
// Hints and register hand-over change no value.
__global__ void __launch_bounds__(384, 1) hints(const __grid_constant__ Maps maps, const uint32_t *in, uint32_t *out) {
#if PTX_SM90
    ptx::griddep_wait();
    const uint32_t v = in[threadIdx.x];
    ptx::tma_prefetch_map(&maps.in);
    if (threadIdx.x < 128)
        ptx::setmaxnreg_dec<40>();
    else
        ptx::setmaxnreg_inc<232>();
    ptx::griddep_launch();
    out[threadIdx.x] = v;
#endif
}
inline void want_hints(const uint32_t *in, uint32_t *want) {
    for (int t = 0; t < 384; t++) want[t] = in[t];
}

// ---- mbarriers and bulk copies -----------------------------------------------------------------------------------
CONFORMANCE_KERNEL(barrier_objects) { // two phases of a barrier of 64 arrivals; one that nobody completes
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    const uint32_t bar = ptx::smem_addr(s + 64), idle = bar + 8;
    const int l = int(threadIdx.x) % 32;
    if (threadIdx.x == 0) {
        ptx::mbar_init(bar, 64);
        ptx::mbar_init(idle, 1);
        ptx::mbar_fence_init();
    }
    __syncthreads();
    if (threadIdx.x >= 32) {
        s[l] = in[l];
        ptx::mbar_arrive(bar);
        ptx::mbar_wait(bar, 0); // else a lane could arrive twice in one phase
        s[32 + l] = in[32 + l];
        ptx::mbar_arrive(bar);
    } else {
        ptx::mbar_arrive(bar);
        ptx::mbar_wait(bar, 0);
        out[l] = s[31 - l];
        ptx::mbar_arrive(bar);
        ptx::mbar_wait(bar, 1);
        out[32 + l] = s[32 + 31 - l];
        out[64 + l] = ptx::mbar_try_wait(idle, 0) ? 1 : 0;  // its first phase is not complete
        out[96 + l] = ptx::mbar_try_wait(idle, 1) ? 1 : 0;  // the one before counts as complete
        out[128 + l] = ptx::mbar_try_wait(bar, 1) ? 1 : 0;
    }
#endif
}
inline void want_barrier_objects(const uint32_t *in, uint32_t *want) {
    for (int l = 0; l < 32; l++) {
        want[l] = in[31 - l], want[32 + l] = in[32 + 31 - l];
        want[64 + l] = 0, want[96 + l] = 1, want[128 + l] = 1;
    }
}
CONFORMANCE_KERNEL(bulk_copies) {
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    const uint32_t base = ptx::smem_addr(s), bar = base + 512;
    if (threadIdx.x == 0) {
        ptx::mbar_init(bar, 1);
        ptx::mbar_fence_init();
        ptx::mbar_arrive_expect_tx(bar, 512); // one phase ends with the bytes of both copies
        ptx::bulk_load(base, in + 64, 256, bar);
        ptx::bulk_load(base + 256, in, 256, bar);
    }
    __syncthreads();
    ptx::mbar_wait(bar, 0);
    for (int i = int(threadIdx.x); i < 128; i += 32) out[i] = s[i];
#endif
}
inline void want_bulk_copies(const uint32_t *in, uint32_t *want) {
    for (int i = 0; i < 128; i++) want[i] = in[(i + 64) % 128];
}
constexpr int kLoadColumn = 96, kLoadRow = 9; // the box leaves the tensor on both sides
CONFORMANCE_MAPPED(tensor_loads) {
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    const uint32_t base = ptx::smem_addr(s), bar = base + 2048;
    if (threadIdx.x == 0) {
        ptx::mbar_init(bar, 1);
        ptx::mbar_fence_init();
        ptx::mbar_arrive_expect_tx(bar, 2048);
        ptx::tma_load_2d(base, &maps.in, bar, kLoadColumn, kLoadRow);
        ptx::tma_load_2d(base + 1024, &maps.in, bar, 0, 2);
    }
    __syncthreads();
    ptx::mbar_wait(bar, 0);
    for (int i = int(threadIdx.x); i < 512; i += 32) out[i] = s[i];
    (void)in;
#endif
}
inline int swizzled_byte(int row, int column) { // chunks of 16 bytes XOR the row
    return row * 128 + (column / 16 ^ row % 8) * 16 + column % 16;
}
inline void want_tensor_loads(const uint32_t *in, uint32_t *want) {
    const uint8_t *from = reinterpret_cast<const uint8_t *>(in);
    uint8_t *to = reinterpret_cast<uint8_t *>(want);
    const int corner[2][2] = {{kLoadColumn, kLoadRow}, {0, 2}};
    for (int box = 0; box < 2; box++)
        for (int r = 0; r < 8; r++)
            for (int c = 0; c < 128; c++) {
                const int column = corner[box][0] + c, row = corner[box][1] + r;
                const bool inside = column < kMapCols && row < kMapRows;
                to[box * 1024 + swizzled_byte(r, c)] = inside ? from[row * kMapPitch + column] : 0;
            }
}
CONFORMANCE_MAPPED(tensor_stores) { // rows and columns beyond the tensor are not written
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    for (int i = int(threadIdx.x); i < 256; i += 32) s[i] = in[i];
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::tma_store_2d(&maps.out, ptx::smem_addr(s), 16, 1);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
    (void)out;
#endif
}
inline void want_tensor_stores(const uint32_t *in, uint32_t *want) {
    const uint8_t *from = reinterpret_cast<const uint8_t *>(in);
    uint8_t *to = reinterpret_cast<uint8_t *>(want);
    for (int r = 0; r + 1 < kOutRows && r < 8; r++)
        for (int c = 0; c + 16 < kOutCols && c < 128; c++) to[(r + 1) * kOutPitch + 16 + c] = from[swizzled_byte(r, c)];
}

} // namespace conformance
#include "ptx_conformance_cluster.cuh"
#include "ptx_conformance_wgmma.cuh"
