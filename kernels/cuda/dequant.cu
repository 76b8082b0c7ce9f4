// Weights of layout cuda/any, dequantized for the dense rows: rows of fp16 or bf16, one rounding of qe_dequantize()'s value
// times the row's power of two. A thread writes eight columns; scales and zeros are read once for them where groups allow.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "any_weight.cuh"
#include "dense.cuh"

namespace qk_cuda {
namespace dense {

constexpr int kThreads = 128, kColumns = 8;

struct Dequant {
    qe_quant quant;
    qk_any_record record;
    int64_t k;
    const unsigned char *head, *rows;
    unsigned char *to;
    int64_t pitch;
    int bf16, whole; // whole: eight columns share their groups
    int expert;
    Groups groups;
};

// Eight codes of kBits from a multiple of eight columns on.
template <int kBits> PTX_FN void read_codes(const unsigned char *p, int64_t k, uint32_t (&c)[kColumns]) {
    const unsigned char *from = p + k * kBits / 8;
    if constexpr (kBits >= 8) {
        constexpr int kEach = 32 / kBits;
#pragma unroll
        for (int i = 0; i < kColumns / kEach; i++) {
            const uint32_t word = reinterpret_cast<const uint32_t *>(from)[i];
#pragma unroll
            for (int j = 0; j < kEach; j++) c[i * kEach + j] = word >> j * kBits & ((1u << kBits) - 1);
        }
    } else {
        const uint32_t word = kBits == 4   ? *reinterpret_cast<const uint32_t *>(from)
                              : kBits == 2 ? *reinterpret_cast<const uint16_t *>(from)
                                           : *from;
#pragma unroll
        for (int i = 0; i < kColumns; i++) c[i] = word >> i * kBits & ((1u << kBits) - 1);
    }
}
PTX_FN float value_of(const AnyRow &row, uint32_t c) {
    if (row.q.code == QE_CODE_INT) return float(c);
    if (row.q.code == QE_CODE_SIGN) return c ? 1.0f : -1.0f;
    if (row.q.code == QE_CODE_F16) return qe_f16_to_f32(uint16_t(c));
    if (row.q.code == QE_CODE_BF16) return qe_bf16_to_f32(uint16_t(c));
    return reinterpret_cast<const float *>(row.record.lut_in_head ? row.head : row.p + row.record.lut)[c];
}

// Two columns of 16 bits, each rounded once.
PTX_FN uint32_t rounded(const Dequant &a, float power, float v0, float v1) {
    const float w0 = qe_mul(v0, power), w1 = qe_mul(v1, power);
    if (a.bf16) {
        const __nv_bfloat162 h = __floats2bfloat162_rn(w0, w1);
        return uint32_t(__bfloat16_as_ushort(h.x)) | uint32_t(__bfloat16_as_ushort(h.y)) << 16;
    }
    const __half2 h = __floats2half2_rn(w0, w1);
    return uint32_t(__half_as_ushort(__low2half(h))) | uint32_t(__half_as_ushort(__high2half(h))) << 16;
}
template <int kBits> __global__ void __launch_bounds__(kThreads) dequantize_rows(const __grid_constant__ Dequant a) {
    const int64_t k = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * kColumns;
    const Tile tokens = tile_of(a.groups, a.expert, 0, 1);
    if (k >= a.k || tokens.first >= tokens.end) return;
    const AnyRow row{a.quant, a.record, a.head, a.rows + int64_t(blockIdx.x) * a.record.bytes};
    const float power = *reinterpret_cast<const float *>(row.p + a.record.power);
    uint32_t *to = reinterpret_cast<uint32_t *>(a.to + int64_t(blockIdx.x) * a.pitch + k * 2);
    if (!a.whole) { // every column by itself
#pragma unroll 1
        for (int i = 0; i < kColumns; i += 2) {
            const float second = k + i + 1 < a.k ? row.dequantized(k + i + 1) : 0.0f;
            to[i / 2] = k + i < a.k ? rounded(a, power, row.dequantized(k + i), second) : 0;
        }
        return;
    }
    const float scale = row.scale(k), zero = row.zero(k);
    const bool real = row.q.zero == QE_ZERO_REAL;
    float min = real ? row.min_factor(k) : 0.0f;
    if (real && integer_number(row.q.zero_num)) min = qe_mul(row.min_super(k), min);
    uint32_t c[kColumns], words[kColumns / 2];
    read_codes<kBits>(row.p, k, c);
#pragma unroll
    for (int i = 0; i < kColumns / 2; i++) {
        float v[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int at = 2 * i + j;
            v[j] = qe_mul(scale, qe_sub(value_of(row, c[at]), zero));
            if (real) v[j] = qe_add(v[j], min);
            if (k + at >= a.k) v[j] = 0;
        }
        words[i] = rounded(a, power, v[0], v[1]);
    }
    *reinterpret_cast<uint4 *>(to) = uint4{words[0], words[1], words[2], words[3]};
}

static bool shared_by_columns(int32_t extent) {
    return extent % kColumns == 0;
}
qe_status dequantize(const qk_gemm_args *args, const Pass &pass, const qk_any_record &record, void *to, const qk_queue *queue,
                     const char *name, qe_error *err) {
    const qk_shape &w = args->w->shape;
    Dequant a{};
    a.quant = w.quant, a.record = record, a.k = w.k, a.expert = pass.expert, a.groups = groups_of(args);
    a.head = static_cast<const unsigned char *>(args->w->blob) + pass.expert * args->groups.expert_bytes;
    a.rows = pass.w, a.to = static_cast<unsigned char *>(to), a.pitch = pitch_of(w);
    a.bf16 = args->x.quant.code == QE_CODE_BF16;
    a.whole = shared_by_columns(w.quant.group_k) && shared_by_columns(w.quant.super_k);
    const int64_t columns = kThreads * kColumns;
    const dim3 grid(uint32_t(pass.rows), uint32_t((w.k + columns - 1) / columns));
    const auto kernel = record.code_bits == 1   ? dequantize_rows<1>
                        : record.code_bits == 2 ? dequantize_rows<2>
                        : record.code_bits == 4 ? dequantize_rows<4>
                        : record.code_bits == 8 ? dequantize_rows<8>
                                                : dequantize_rows<16>;
    return launch(kernel, grid, kThreads, 0, queue, name, err, a);
}

} // namespace dense
} // namespace qk_cuda
