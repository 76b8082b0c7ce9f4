// prepare: residual, norm or gate, column order, scale, rotation and quantization of a token's row, in one pass.
// One block of 512 lanes per token; reductions as quantization.md 7.5.
#include "cuda_backend.h"
#include "epilogue.cuh"
#include "launch.cuh"

namespace qk_cuda {
namespace prepare {

constexpr int kLanes = 512;

struct Args {
    qk_prepare p;
    qk_x out;
    qe_act act;
    const uint32_t *order;
    const float *col_scale;
    int hadamard;
    float hadamard_scale;
    int bit_words; // of a row
};

// Sum of a lane's partial sums over the block, folded by halves.
PTX_FN float fold(float *lanes, float v) {
    const int j = int(threadIdx.x);
    __syncthreads();
    lanes[j] = v;
    for (int half = kLanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (j < half) lanes[j] = qe_add(lanes[j], lanes[j + half]);
    }
    __syncthreads();
    return lanes[0];
}
PTX_FN float rms_factor(float *lanes, const float *v, int64_t k, float eps) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < k; i += kLanes) sum = qe_fma(v[i], v[i], sum);
    return qe_rsqrt(qe_add(qe_div(fold(lanes, sum), float(k)), eps));
}
PTX_FN void scale_row(float *v, int64_t k, float factor, const float *weight) {
    for (int64_t i = threadIdx.x; i < k; i += kLanes) v[i] = qe_mul(qe_mul(v[i], factor), weight[i]);
}

// Lanes own columns j, j + 512, ...; every step until `permute` stays with its owner.
PTX_FN void load_row(const Args &a, float *lanes, float *v, int64_t m, int64_t k) {
    const qk_prepare &p = a.p;
    for (int64_t i = threadIdx.x; i < k; i += kLanes) {
        const int64_t at = m * p.ldx + i;
        if (p.act == QK_ACT_NONE)
            v[i] = load_real(p.x, at, p.x_type);
        else if (p.up)
            v[i] = qe_mul(activate(load_real(p.x, at, p.x_type), p.act), load_real(p.up, at, p.x_type));
        else
            v[i] = qe_mul(activate(load_real(p.x, at + i, p.x_type), p.act), load_real(p.x, at + i + 1, p.x_type));
    }
    if (p.post_norm) scale_row(v, k, rms_factor(lanes, v, k, p.eps), p.post_norm);
    if (p.residual)
        for (int64_t i = threadIdx.x; i < k; i += kLanes) {
            v[i] = qe_add(v[i], p.residual[m * p.ldr + i]);
            p.residual[m * p.ldr + i] = v[i];
        }
    if (p.norm == QK_NORM_RMS) scale_row(v, k, rms_factor(lanes, v, k, p.eps), p.norm_weight);
}
// v -> w: canonical column order and column scale, then the Walsh-Hadamard rotation in place.
PTX_FN void permute(const Args &a, const float *v, float *w, int64_t k) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < k; i += kLanes) {
        const int64_t from = a.order ? a.order[i] : i;
        w[i] = a.col_scale ? qe_mul(v[from], a.col_scale[from]) : v[from];
    }
    for (int64_t half = 1; half < a.hadamard; half *= 2) {
        __syncthreads();
        for (int64_t i = threadIdx.x; i < k / 2; i += kLanes) {
            const int64_t low = i / half * 2 * half + i % half;
            const float x = w[low], y = w[low + half];
            w[low] = qe_add(x, y), w[low + half] = qe_sub(x, y);
        }
    }
    __syncthreads();
    if (a.hadamard)
        for (int64_t i = threadIdx.x; i < k; i += kLanes) w[i] = qe_mul(w[i], a.hadamard_scale);
    __syncthreads();
}

struct Extremes {
    uint32_t top;
    float low, high;
    int finite;
    PTX_FN void add(float x) {
        const uint32_t u = qe_f32_bits(x) & 0x7fffffffu;
        top = u > top ? u : top;
        finite &= u < 0x7f800000u;
        low = x < low ? x : low, high = x > high ? x : high;
    }
    PTX_FN qe_act_range range(bool symmetric) const {
        return symmetric ? qe_act_range_symmetric(top) : qe_act_range_asymmetric(low, high, finite);
    }
};
// The extremes of the whole row; order does not matter to them.
PTX_FN Extremes row_extremes(float *lanes, const float *w, int64_t k) {
    Extremes e{0, 0, 0, 1};
    for (int64_t i = threadIdx.x; i < k; i += kLanes) e.add(w[i]);
    float *field = lanes; // 4 arrays of kLanes
    const int j = int(threadIdx.x);
    __syncthreads();
    field[j] = qe_f32_from_bits(e.top), field[kLanes + j] = e.low, field[2 * kLanes + j] = e.high;
    field[3 * kLanes + j] = e.finite ? 1.0f : 0.0f;
    for (int half = kLanes / 2; half > 0; half /= 2) {
        __syncthreads();
        if (j < half) {
            const uint32_t other = qe_f32_bits(field[j + half]);
            if (other > qe_f32_bits(field[j])) field[j] = field[j + half];
            if (field[kLanes + j + half] < field[kLanes + j]) field[kLanes + j] = field[kLanes + j + half];
            if (field[2 * kLanes + j + half] > field[2 * kLanes + j])
                field[2 * kLanes + j] = field[2 * kLanes + j + half];
            if (field[3 * kLanes + j + half] == 0) field[3 * kLanes + j] = 0;
        }
    }
    __syncthreads();
    return {qe_f32_bits(field[0]), field[kLanes], field[2 * kLanes], int(field[3 * kLanes])};
}

PTX_FN void quantize_columns(const float *w, int8_t *q, int64_t first, int64_t step, int64_t end, const qe_act_range &r,
                             bool symmetric) {
    for (int64_t i = first; i < end; i += step)
        q[i] = symmetric ? qe_act_code_symmetric(w[i], r.inverse) : qe_act_code_asymmetric(w[i], r.inverse, r.zero);
}
PTX_FN void write_range(const Args &a, int64_t at, const qe_act_range &r) {
    a.out.scales[at] = r.scale;
    if (a.out.zeros) a.out.zeros[at] = r.zero;
}
PTX_FN void quantize_dynamic(const Args &a, float *lanes, const float *w, int8_t *q, int64_t m, int64_t k) {
    const int64_t group = a.act.quant.group_k ? a.act.quant.group_k : k, groups = (k + group - 1) / group;
    const bool symmetric = a.act.quant.zero == QE_ZERO_CONST;
    if (groups == 1) {
        const qe_act_range r = row_extremes(lanes, w, k).range(symmetric);
        quantize_columns(w, q, threadIdx.x, kLanes, k, r, symmetric);
        if (threadIdx.x == 0) write_range(a, m, r);
        return;
    }
    for (int64_t g = threadIdx.x; g < groups; g += kLanes) {
        const int64_t first = g * group, end = first + group < k ? first + group : k;
        Extremes e{0, 0, 0, 1};
        for (int64_t i = first; i < end; i++) e.add(w[i]);
        const qe_act_range r = e.range(symmetric);
        quantize_columns(w, q, first, 1, end, r, symmetric);
        write_range(a, m * groups + g, r);
    }
}
// Signs: the mean of |x|, codes, and their bits by ballot.
PTX_FN void quantize_signs(const Args &a, float *lanes, const float *w, int8_t *q, int64_t m, int64_t k) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < k; i += kLanes) sum = qe_act_lane_sign(sum, w[i]);
    const qe_act_range r = qe_act_range_sign(fold(lanes, sum), k);
    uint32_t *bits = a.out.bits + m * a.bit_words;
    if (threadIdx.x == 0) a.out.scales[m] = r.scale;
    int ones = 0;
#pragma unroll 1
    for (int i = int(threadIdx.x); i < a.bit_words * 32; i += kLanes) { // whole warps: words are whole
        const int8_t code = i < k ? qe_act_code_sign(w[i]) : int8_t(-1);
        if (i < k) q[i] = code;
        const uint32_t word = __ballot_sync(0xffffffffu, code > 0);
        if (threadIdx.x % 32 == 0) bits[i / 32] = word, ones += __popc(word);
    }
    const float all = fold(lanes, float(ones)); // exact: a row in shared memory has fewer than 2^24 columns
    if (threadIdx.x == 0) a.out.ones[m] = int(all);
}
PTX_FN void quantize_static(const Args &a, const float *w, int8_t *q, int64_t m, int64_t k) {
    const int32_t zero = a.act.zero - 128;
    const float inverse = qe_div(1.0f, a.act.scale);
    quantize_columns(w, q, threadIdx.x, kLanes, k, {a.act.scale, inverse, zero}, a.act.quant.zero == QE_ZERO_CONST);
    if (m == 0 && threadIdx.x == 0) write_range(a, 0, {a.act.scale, inverse, zero});
}
PTX_FN void copy_codes(const Args &a, int8_t *q, int64_t m, int64_t k) {
    const int8_t *from = static_cast<const int8_t *>(a.p.x) + m * a.p.ldx;
    for (int64_t i = threadIdx.x; i < k; i += kLanes) q[i] = from[i];
    if (m == 0 && threadIdx.x == 0) write_range(a, 0, {a.act.scale, 0.0f, a.act.zero - 128});
}

__global__ void __launch_bounds__(kLanes) run_row(const __grid_constant__ Args a) {
    PTX_DYN_SMEM(float, shared);
    ptx::griddep_launch(); // the GEMM brings weights meanwhile
    ptx::griddep_wait();
    const int64_t m = blockIdx.x, k = a.out.k, ld = a.out.ld;
    if (a.p.counts && m % a.p.max_rows >= a.p.counts[m / a.p.max_rows]) {
        if (m == 0 && threadIdx.x == 0 && a.act.mode == QE_ACT_STATIC) // of all rows, though this one is none
            write_range(a, 0, {a.act.scale, 0.0f, a.act.zero - 128});
        return;
    }
    float *lanes = shared, *v = shared + 4 * kLanes, *w = v;
    const bool codes = a.p.x_type == QE_CODE_INT; // they stay as they are
    if (!codes) load_row(a, lanes, v, m, k);
    if (a.order || a.col_scale || a.hadamard) {
        w = v + k;
        permute(a, v, w, k);
    }
    __syncthreads();
    if (a.act.mode == QE_ACT_FLOAT) {
        for (int64_t i = threadIdx.x; i < ld; i += kLanes)
            store_real(a.out.data, m * ld + i, a.out.quant.code, i < k ? w[i] : 0.0f);
        return;
    }
    int8_t *q = static_cast<int8_t *>(a.out.data) + m * ld;
    if (codes)
        copy_codes(a, q, m, k);
    else if (a.act.mode == QE_ACT_STATIC)
        quantize_static(a, w, q, m, k);
    else if (a.act.quant.code == QE_CODE_SIGN)
        quantize_signs(a, lanes, w, q, m, k);
    else
        quantize_dynamic(a, lanes, w, q, m, k);
    __syncthreads();
    const bool fixed = a.act.mode == QE_ACT_STATIC;
    const int64_t groups = a.act.quant.group_k ? (k + a.act.quant.group_k - 1) / a.act.quant.group_k : 1;
    int32_t pad = 0;
    if (a.act.quant.zero != QE_ZERO_CONST) pad = fixed ? a.act.zero - 128 : a.out.zeros[(m + 1) * groups - 1];
    for (int64_t i = k + threadIdx.x; i < ld; i += kLanes) q[i] = int8_t(pad);
    if (!a.out.sums) return;
    const int64_t parts = (k + a.out.sum_k - 1) / a.out.sum_k;
    for (int64_t s = threadIdx.x; s < parts; s += kLanes) {
        const int64_t first = s * a.out.sum_k, end = first + a.out.sum_k < k ? first + a.out.sum_k : k;
        int32_t sum = 0;
        for (int64_t i = first; i < end; i++) sum += q[i];
        a.out.sums[m * parts + s] = sum;
    }
}

} // namespace prepare
} // namespace qk_cuda

extern "C" qe_status qk_cuda_prepare(const qk_prepare *p, const qk_queue *queue, qe_error *err) {
    using namespace qk_cuda;
    const qk_weight *next = p->next;
    prepare::Args a{};
    a.p = *p, a.out = *p->out, a.act = next->shape.act;
    a.order = next->order, a.col_scale = next->col_scale, a.hadamard = next->hadamard;
    if (p->norm == QK_NORM_LAYER) return qe_error_set(err, QE_E_UNSUPPORTED, "cuda: prepare with layer norm");
    if (p->norm == QK_NORM_RMS && !p->norm_weight)
        return qe_error_set(err, QE_E_ARGUMENT, "cuda: prepare without norm_weight");
    if (p->x_type == QE_CODE_INT) QE_TRY(qk_prepare_codes_check(p, err));
    if (a.out.packing) return qe_error_set(err, QE_E_ARGUMENT, "cuda: activations in packing %d", int(a.out.packing));
    if (a.hadamard && (a.hadamard & (a.hadamard - 1) || a.out.k % a.hadamard))
        return qe_error_set(err, QE_E_UNSUPPORTED, "cuda: rotation over %d columns", a.hadamard);
    a.bit_words = int(qk_bit_words(a.out.k));
    if (a.hadamard) a.hadamard_scale = qe_rsqrt(float(a.hadamard));
    const int64_t rows = a.order || a.col_scale || a.hadamard ? 2 : 1;
    const int64_t bytes = (4 * prepare::kLanes + (p->x_type == QE_CODE_INT ? 0 : rows * a.out.k)) * 4;
    if (bytes > int64_t(queue->device->unit_bytes))
        return qe_error_set(err, QE_E_UNSUPPORTED, "cuda: rows of %lld columns do not fit %u bytes of shared memory",
                            (long long)a.out.k, queue->device->unit_bytes);
    if (a.out.m == 0) return QE_OK;
    return launch<Start::Early>(prepare::run_row, dim3(uint32_t(a.out.m)), prepare::kLanes, size_t(bytes), queue, "cuda/prepare", err,
                  a);
}
