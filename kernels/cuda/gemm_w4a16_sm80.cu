// Rows cuda/w4a16_sm80 (mma.sync m16n8k16, fp16 input) and cuda/w4a16_simt (any float input, gates), layout cuda/w4a16.
// Weights are the A operand: they arrive in fragment order, are unpacked in registers and never written back.
#include <cuda_fp16.h>

#include "cuda_backend.h"
#include "epilogue.cuh"
#include "launch.cuh"

namespace qk_cuda {
namespace w4a16 {

constexpr int BN = QK_W4_ROWS, BK = QK_W4_BLOCK_K, kStages = 4, kThreads = 128;

struct Args {
    const void *x;
    int64_t ld, m;
    int x_type;
    const unsigned char *w;
    int64_t band_bytes, blocks, k, chunk_k, group, groups;
    Epilogue out;
};

template <int BT> struct Stage { static constexpr int kBytes = BT * BK * 2 + QK_W4_BLOCK_BYTES; };
PTX_FN uint32_t swizzled(int row, int chunk) {
    return uint32_t(row * 128 + ((chunk ^ (row & 7)) << 4));
}

template <int BT>
PTX_FN void load_stage(const Args &a, uint32_t stage, const unsigned char *band, int64_t m0, int64_t t) {
    const uint16_t *x = static_cast<const uint16_t *>(a.x);
#pragma unroll
    for (int i = 0; i < BT * 8 / kThreads; i++) {
        const int c = i * kThreads + int(threadIdx.x), row = c / 8, chunk = c % 8;
        const int64_t m = m0 + row, k = t * BK + chunk * 8;
        const bool inside = m < a.m && k < a.ld;
        ptx::cp_async16(stage + swizzled(row, chunk), inside ? x + m * a.ld + k : x, inside ? 16 : 0);
    }
    ptx::cp_async16(stage + uint32_t(BT * BK * 2 + int(threadIdx.x) * 16),
                    band + t * QK_W4_BLOCK_BYTES + int(threadIdx.x) * 16);
}

PTX_FN uint32_t bits_of(__half2 v) {
    return uint32_t(__half_as_ushort(__low2half(v))) | uint32_t(__half_as_ushort(__high2half(v))) << 16;
}
// Two codes, in the low nibbles of the halfwords of w: fl(scale * (c - zero)). The subtraction is exact.
PTX_FN uint32_t unpack(uint32_t w, __half2 offset, __half2 scale) {
    const uint32_t magic = ptx::lop3<0xea>(w, 0x000f000fu, 0x64006400u); // (w & mask) | 1024
    const __half2 c = __halves2half2(__ushort_as_half(uint16_t(magic)), __ushort_as_half(uint16_t(magic >> 16)));
    return bits_of(__hmul2(__hsub2(c, offset), scale));
}

template <int BT> __global__ void __launch_bounds__(kThreads) gemm(const Args a) {
    constexpr int NT = BT / 8;
    PTX_DYN_SMEM(unsigned char, smem);
    const uint32_t base = ptx::smem_addr(smem);
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, g = lane / 4, q = lane % 4;
    const int64_t m0 = int64_t(blockIdx.y) * BT, n0 = int64_t(blockIdx.x) * BN;
    const unsigned char *band = a.w + int64_t(blockIdx.x) * a.band_bytes;
    const uint16_t *scales = reinterpret_cast<const uint16_t *>(band + a.blocks * QK_W4_BLOCK_BYTES);
    const unsigned char *zeros = reinterpret_cast<const unsigned char *>(scales + a.groups * BN);

    float acc[NT][4] = {}, total[NT][4] = {};
#pragma unroll
    for (int s = 0; s < kStages - 1; s++) {
        if (s < a.blocks) load_stage<BT>(a, base + uint32_t(s * Stage<BT>::kBytes), band, m0, s);
        ptx::cp_async_commit();
    }
    for (int64_t t = 0; t < a.blocks; t++) {
        ptx::cp_async_wait<kStages - 2>();
        __syncthreads();
        const int64_t next = t + kStages - 1;
        if (next < a.blocks) load_stage<BT>(a, base + uint32_t(next % kStages * Stage<BT>::kBytes), band, m0, next);
        ptx::cp_async_commit();
        if (t > 0 && t * BK % a.chunk_k == 0) {
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) total[j][i] = qe_add(total[j][i], acc[j][i]), acc[j][i] = 0;
        }
        const uint32_t xs = base + uint32_t(t % kStages * Stage<BT>::kBytes);
        uint32_t words[4];
        ptx::lds128(words, xs + uint32_t(BT * BK * 2 + int(threadIdx.x) * 16));
#pragma unroll
        for (int p = 0; p < 2; p++) { // 32 columns: one group at most
            int64_t group = (t * BK + p * 32) / a.group;
            if (group >= a.groups) group = a.groups - 1;
            __half2 scale[2], offset[2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int64_t at = group * BN + warp * 16 + 8 * r + g;
                scale[r] = __half2half2(__ushort_as_half(scales[at]));
                offset[r] = __half2half2(__ushort_as_half(uint16_t(0x6400 + zeros[at]))); // 1024 + zero
            }
#pragma unroll
            for (int s = 0; s < 2; s++) {
                uint32_t w[4];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    w[r] = unpack(words[2 * p + r] >> (8 * s), offset[r], scale[r]);
                    w[r + 2] = unpack(words[2 * p + r] >> (8 * s + 4), offset[r], scale[r]);
                }
#pragma unroll
                for (int j = 0; j < NT / 2; j++) {
                    uint32_t x[4];
                    ptx::ldmatrix_x4(
                        x, xs + swizzled(j * 16 + (lane & 7) + (lane >> 4) * 8, p * 4 + s * 2 + (lane >> 3 & 1)));
                    const uint32_t low[2] = {x[0], x[1]}, high[2] = {x[2], x[3]};
                    ptx::mma_m16n8k16_f16(acc[2 * j], w, low);
                    ptx::mma_m16n8k16_f16(acc[2 * j + 1], w, high);
                }
            }
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t m = m0 + j * 8 + q * 2 + (i & 1), n = n0 + warp * 16 + g + 8 * (i >> 1);
            if (m < a.m) a.out.one(m, n, qe_add(total[j][i], acc[j][i]));
        }
}

PTX_FN float dot(const Args &a, int64_t m, int64_t n) {
    const unsigned char *band = a.w + n / BN * a.band_bytes;
    const uint16_t *scales = reinterpret_cast<const uint16_t *>(band + a.blocks * QK_W4_BLOCK_BYTES);
    const unsigned char *zeros = reinterpret_cast<const unsigned char *>(scales + a.groups * BN);
    const int row = int(n % BN), g = row % 8, r = row % 16 / 8;
    float sum = 0, y = 0;
    for (int64_t k = 0; k < a.k; k++) {
        if (k && k % a.chunk_k == 0) sum = qe_add(sum, y), y = 0;
        const int in = int(k % BK), step = in / 16, col = in % 16;
        const unsigned char *byte = band + k / BK * QK_W4_BLOCK_BYTES + row / 16 * 512 + (4 * g + col % 8 / 2) * 16 +
                                    (step / 2 * 2 + r) * 4 + 2 * (col % 2) + step % 2;
        const int c = *byte >> (4 * (col / 8)) & 15;
        const int64_t at = k / a.group * BN + row;
        const float w = qe_mul(qe_f16_to_f32(scales[at]), float(c - int(zeros[at])));
        y = qe_fma(load_real(a.x, m * a.ld + k, a.x_type), w, y);
    }
    return qe_add(sum, y);
}
__global__ void __launch_bounds__(kThreads) plain(const Args a) {
    const int64_t n = (int64_t(blockIdx.x) * 32 + threadIdx.x % 32) * 2, m = int64_t(blockIdx.y) * 4 + threadIdx.x / 32;
    if (n >= a.out.n || m >= a.m) return;
    const float v0 = dot(a, m, n), v1 = n + 1 < a.out.n ? dot(a, m, n + 1) : 0.0f;
    a.out.pair(m, n, v0, v1);
}

Args args_of(const qk_plan *plan, const qk_gemm_args *args) {
    const qk_shape &w = args->w->shape;
    Args a{};
    a.x = args->x.data, a.ld = args->x.ld, a.m = args->x.m, a.x_type = args->x.quant.code;
    a.w = static_cast<const unsigned char *>(args->w->blob);
    a.band_bytes = qk_w4_band_bytes(&w.quant, w.k), a.blocks = qk_w4_blocks(w.k), a.k = w.k;
    a.chunk_k = w.chunk_k > 0 ? w.chunk_k : w.k;
    a.group = qk_w4_group(&w.quant, w.k), a.groups = qk_w4_groups(&w.quant, w.k);
    a.out = epilogue_of(plan, args);
    return a;
}

bool supports_sm80(const qk_device *device, const qk_gemm *g, qk_why *why) {
    if (device->sm < 80) return qk_no(why, "sm_%d, needed sm_80", int(device->sm));
    if (g->x.code != QE_CODE_F16) return qk_no(why, "input is not fp16");
    if (g->w.chunk_k % BK && g->w.chunk_k < g->w.k) return qk_no(why, "chunks of %lld", (long long)g->w.chunk_k);
    if (g->flags & QK_GEMM_GATED) return qk_no(why, "gate product");
    return float_output(g, why);
}
void plan_sm80(const qk_device *, const qk_gemm *g, qk_plan *out) {
    const int instance = g->m <= 16, bt = instance ? 16 : 64;
    out->variant = instance;
    out->grid[0] = uint32_t((g->w.n + BN - 1) / BN), out->grid[1] = uint32_t((g->m + bt - 1) / bt), out->grid[2] = 1;
    out->block = kThreads;
    out->shared_bytes = uint32_t(kStages * (instance ? Stage<16>::kBytes : Stage<64>::kBytes));
}
qe_status run_sm80(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const Args a = args_of(plan, args);
    const int bt = plan->variant ? 16 : 64;
    if (a.m == 0) return QE_OK;
    dim3 grid(plan->grid[0], uint32_t((a.m + bt - 1) / bt));
    return launch(bt == 16 ? gemm<16> : gemm<64>, grid, plan->block, plan->shared_bytes, queue, "cuda/w4a16_sm80", err,
                  a);
}
bool supports_simt(const qk_device *, const qk_gemm *g, qk_why *why) {
    if (g->x.code == QE_CODE_F16 && !(g->flags & QK_GEMM_GATED)) return qk_no(why, "left to cuda/w4a16_sm80");
    return float_output(g, why);
}
void plan_simt(const qk_device *, const qk_gemm *g, qk_plan *out) {
    out->grid[0] = uint32_t((g->w.n + 63) / 64), out->grid[1] = uint32_t((g->m + 3) / 4), out->grid[2] = 1;
    out->block = kThreads;
}
qe_status run_simt(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const Args a = args_of(plan, args);
    if (a.m == 0) return QE_OK;
    return launch(plain, dim3(plan->grid[0], uint32_t((a.m + 3) / 4)), plan->block, 0, queue, "cuda/w4a16_simt", err,
                  a);
}

} // namespace w4a16
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_w4a16_sm80_row = {"cuda/w4a16_sm80", &qk_cuda_w4a16, qk_cuda::w4a16::supports_sm80,
                                                  qk_cuda::w4a16::plan_sm80, qk_cuda::w4a16::run_sm80};
extern "C" const qk_row qk_cuda_w4a16_simt_row = {"cuda/w4a16_simt", &qk_cuda_w4a16, qk_cuda::w4a16::supports_simt,
                                                  qk_cuda::w4a16::plan_simt, qk_cuda::w4a16::run_simt};
