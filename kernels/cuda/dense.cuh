// What the dense rows share: weights of layout cuda/any, and for many tokens of cuda/k, written once as fp16 or bf16 into the workspace in passes of whole
// bands of 128 rows, then multiplied. A weight that already has the input's type is read where it lies.
//
// A pass takes at most kPassBytes of workspace and at most a share of the device's memory. Fewer and larger ones fill the
// device better: most layers of an 8B model take one. Every row of the weight is multiplied by its power of two (qk_any_record)
// before it is rounded, sums are divided by it: nothing overflows, and no weight above 2^-28 of its row's bound loses a bit to
// fp16's subnormals.
//
// These rows serve every m, few tokens too: another row for few would give a token other bits (docs/numerics.md).
#pragma once
#include "cuda_backend.h"
#include "output.cuh"

namespace qk_cuda {
namespace dense {

constexpr int kRows = 128;
constexpr int64_t kPassBytes = int64_t(128) << 20, kMemoryShare = 256;

inline bool direct(const qk_shape &w, int x_code) {
    const qe_quant &q = w.quant;
    return q.code == x_code && q.scale == QE_NUM_ONE && q.super == QE_NUM_ONE && q.zero == QE_ZERO_CONST &&
           !q.zero_const && !q.scale_log2;
}
inline int64_t pitch_of(const qk_shape &w) { // bytes of a dequantized row: whole chunks of 16
    return (w.k + 7) / 8 * 16;
}
// Bands of one pass: a plan's grid[1].
inline int64_t pass_bands(const qk_device *device, const qk_shape &w, int x_code) {
    const int64_t bands = (w.n + kRows - 1) / kRows, band_bytes = kRows * pitch_of(w);
    if (direct(w, x_code)) return bands;
    int64_t bytes = int64_t(device->memory_bytes / kMemoryShare);
    if (!bytes || bytes > kPassBytes) bytes = kPassBytes;
    const int64_t most = bytes > band_bytes ? bytes / band_bytes : 1, count = (bands + most - 1) / most;
    return (bands + count - 1) / count;
}
inline uint64_t pass_bytes(const qk_shape &w, int x_code, int64_t bands) {
    return direct(w, x_code) ? 0 : uint64_t(bands * kRows * pitch_of(w));
}
inline uint64_t partial_bytes(const qk_gemm *g, int splits) {
    return splits > 1 ? uint64_t(splits) * uint64_t(g->m) * uint64_t(partial_ld(g->w.n)) * 4 : 0; // multiples of 512
}

inline bool supports(const qk_gemm *g, qk_why *why) {
    const int code = g->w.quant.code, x = g->x.code;
    if (g->w.act.mode != QE_ACT_FLOAT) return qk_no(why, "the input is quantized: its sums are exact");
    if (x != QE_CODE_F16 && x != QE_CODE_BF16) return qk_no(why, "input is not of 16 bits");
    if (code == QE_CODE_F32) return qk_no(why, "fp32 weights would be rounded to 16 bits");
    if (code == QE_CODE_F16 && x == QE_CODE_BF16) return qk_no(why, "fp16 weights would be rounded to bf16");
    if (g->w.chunk_k % 64 && g->w.chunk_k < g->w.k) return qk_no(why, "chunks of %lld columns", (long long)g->w.chunk_k);
    return float_output(g, why);
}

// Rows of x that expert `expert` of a grouped call has (groups.cuh), cut into tiles; without groups all of them.
PTX_FN Tile tile_of(const Groups &g, int expert, int64_t index, int tokens) {
    int64_t first = 0, end = g.total;
    if (g.experts && g.max_rows) {
        const int64_t count = g.rows[expert];
        first = expert * g.max_rows, end = first + (count < g.max_rows ? count : g.max_rows);
    } else if (g.experts) {
        end = g.clamped(g.rows[0], 0);
        for (int e = 0; e <= expert; e++) first = end, end = g.clamped(g.rows[e + 1], first);
    }
    first += index * tokens;
    return first < end ? Tile{expert, first, end} : Tile{0, 0, 0};
}
inline uint32_t tiles_of_expert(const qk_gemm_args *a, int tokens) {
    const int64_t m = a->groups.experts && a->groups.max_rows ? a->groups.max_rows : a->x.m;
    return uint32_t((m + tokens - 1) / tokens);
}

// Where the GEMM of one pass finds its weights.
struct Pass {
    const unsigned char *w;      // row-major
    int64_t pitch;               // bytes between rows
    const unsigned char *powers; // a float of every row; NULL: no powers
    int64_t power_pitch, power_band; // bytes between those of rows, and of bands of 128 rows
    int64_t first, rows; // of the weight
    int expert;
    int written; // w is of the kernel ahead, not the packed weight itself
};
// 1 / the power of row n of a pass, a power of two within 2^-126 .. 2^126.
PTX_FN float inverse_power(const Pass &pass, int64_t n) {
    if (!pass.powers || n >= pass.rows) return 1.0f;
    const uint32_t bits = *reinterpret_cast<const uint32_t *>(pass.powers + n / kRows * pass.power_band + n % kRows * pass.power_pitch);
    return qe_f32_from_bits((254u << 23) - bits);
}
// What both rows' Args begin with.
inline int chunk_blocks_of(const qk_shape &w, int block_k) {
    return int(((w.chunk_k > 0 && w.chunk_k < w.k ? w.chunk_k : w.k) + block_k - 1) / block_k);
}
template <class Args> qe_status begin(const qk_plan *plan, const qk_gemm_args *args, int block_k, Args *a, qe_error *err) {
    const qk_shape &w = args->w->shape;
    a->blocks = int((w.k + block_k - 1) / block_k), a->chunk_blocks = chunk_blocks_of(w, block_k);
    a->split_blocks = plan->splits > 1 ? a->chunk_blocks : a->blocks;
    a->output = output_of(plan, args, 0, 0), a->groups = groups_of(args);
    if (a->groups.experts && plan->splits > 1) // partial sums know of one weight
        return qe_error_set(err, QE_E_ARGUMENT, "%s: experts with k in %d splits", plan->row->name, plan->splits);
    return QE_OK;
}
// The workspace: sums of splits, then the weights of a pass.
inline Partial<float> partial_of(const qk_plan *plan, const qk_gemm_args *args) {
    return {plan->splits > 1 ? static_cast<float *>(args->workspace) : nullptr, partial_ld(args->w->shape.n)};
}
// Calls run(Pass) for every expert and pass, each behind the kernel that writes its weights.
qe_status dequantize(const qk_gemm_args *args, const Pass &pass, const qk_any_record &record, void *to, const qk_queue *queue,
                     const char *name, qe_error *err);
qe_status dequantize_k(const qk_gemm_args *args, const Pass &pass, void *to, const qk_queue *queue, const char *name, qe_error *err);
// Of layout cuda/k: pass.first is a multiple of its bands.
inline qe_status write_k(const qk_gemm_args *args, Pass *pass, void *to, const qk_queue *queue, const char *name, qe_error *err) {
    const qk_shape &w = args->w->shape;
    const int64_t band_bytes = qk_k_band_bytes(&w.quant, w.k);
    pass->w = static_cast<const unsigned char *>(args->w->blob) + pass->expert * args->groups.expert_bytes + pass->first / kRows * band_bytes;
    pass->powers = pass->w + band_bytes - QK_W4_ROWS * 4, pass->power_pitch = 4, pass->power_band = band_bytes;
    const qe_status status = dequantize_k(args, *pass, to, queue, name, err);
    pass->w = static_cast<unsigned char *>(to), pass->pitch = pitch_of(w);
    return status;
}
template <class Run>
qe_status each_pass(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err, Run run) {
    const char *name = plan->row->name;
    const qk_shape &w = args->w->shape;
    unsigned char *to = static_cast<unsigned char *>(args->workspace);
    if (plan->splits > 1) to += plan->splits * args->x.m * partial_ld(w.n) * 4;
    const int64_t rows = int64_t(plan->grid[1]) * kRows;
    const bool written = !direct(w, args->x.quant.code);
    qk_any_record record;
    qk_any_record_of(&w.quant, w.k, &record);
    const int experts = args->groups.experts ? args->groups.experts : 1;
    for (int e = 0; e < experts; e++)
        for (int64_t first = 0; first < w.n; first += rows) {
            Pass pass{};
            pass.expert = e, pass.written = written, pass.first = first, pass.rows = w.n - first < rows ? w.n - first : rows;
            if (w.layout == &qk_cuda_k) {
                qe_status status = write_k(args, &pass, to, queue, name, err);
                if (status == QE_OK) status = run(pass);
                if (status != QE_OK) return status;
                continue;
            }
            const unsigned char *records = static_cast<const unsigned char *>(args->w->blob) + e * args->groups.expert_bytes +
                                           qk_cuda_any.head_bytes(&w) + pass.first * record.bytes;
            pass.w = records, pass.pitch = record.bytes;
            if (written) {
                pass.powers = records + record.power, pass.power_pitch = record.bytes, pass.power_band = kRows * record.bytes;
                const qe_status status = dequantize(args, pass, record, to, queue, name, err);
                if (status != QE_OK) return status;
                pass.w = to, pass.pitch = pitch_of(w);
            }
            const qe_status status = run(pass);
            if (status != QE_OK) return status;
        }
    return QE_OK;
}

} // namespace dense
// For rows that hand many tokens over.
namespace dense_sm80 {
void plan(const qk_device *device, const qk_gemm *g, qk_plan *out);
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err);
} // namespace dense_sm80
} // namespace qk_cuda
