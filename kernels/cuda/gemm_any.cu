// Row cuda/any: one thread per output, any scheme, shape and input. Plain and right; not fast.
#include "any_weight.cuh"
#include "epilogue.cuh"
#include "launch.cuh"

namespace qk_cuda {
namespace any {

constexpr int kColumns = 32, kTokens = 4;

struct Args {
    qk_shape shape;
    qk_any_record record;
    const unsigned char *head, *rows;
    qk_x x;
    int whole_k;
    Epilogue out;
    Requant requant; // where out.type is INT
    Groups groups;
};

PTX_FN int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}
PTX_FN int64_t extent(int32_t group, int64_t k) {
    return group ? group : k;
}

PTX_FN float dot_float(const Args &a, const AnyRow &w, int64_t m) {
    float sum = 0;
    for (int64_t chunk = 0; chunk < a.shape.k; chunk += a.shape.chunk_k) {
        const int64_t end = smaller(chunk + a.shape.chunk_k, a.shape.k);
        float y = 0;
        for (int64_t k = chunk; k < end; k++)
            y = qe_fma(load_real(a.x.data, m * a.x.ld + k, a.x.quant.code), w.dequantized(k), y);
        sum = chunk ? qe_add(sum, y) : y;
    }
    return sum;
}

// quantization.md 7.3 up to the bias: the int32 sum and the scale of the row.
PTX_FN int32_t dot_whole_k(const Args &a, const AnyRow &w, int64_t m, float *scale) {
    const qe_quant &q = a.shape.quant;
    const bool product = q.super != QE_NUM_ONE && q.group_k && q.group_k < a.shape.k;
    const int8_t *x = static_cast<const int8_t *>(a.x.data) + m * a.x.ld;
    const int32_t zero = a.x.zeros ? a.x.zeros[a.shape.act.mode == QE_ACT_STATIC ? 0 : m] : 0;
    uint32_t sum = 0;
    for (int64_t k = 0; k < a.shape.k; k++) {
        int32_t c = int32_t(w.value(k)) - int32_t(w.zero(k));
        if (product) c *= int32_t(w.inner(k));
        sum += uint32_t((int32_t(x[k]) - zero) * c);
    }
    *scale = w.scale(0);
    if (product) {
        *scale = q.flags & QE_SUPER_DIVIDES ? qe_div(1.0f, w.outer(0)) : w.outer(0);
        if (q.scale_log2) *scale = qe_mul(*scale, power_of_two(q.scale_log2));
    }
    return int32_t(sum);
}

// quantization.md 7.4. Codes that are no integers sum their group in fp32, ascending by fmaf.
PTX_FN float dot_groups(const Args &a, const AnyRow &w, int64_t m) {
    const qe_quant &q = a.shape.quant;
    const int64_t k_all = a.shape.k, act = extent(a.x.quant.group_k, k_all), act_groups = (k_all + act - 1) / act;
    const int64_t group = smaller(extent(q.group_k, k_all), act);
    const int64_t outer = smaller(q.super == QE_NUM_ONE ? k_all : extent(q.super_k, k_all), act);
    const bool integers = w.integers(), mins = q.zero == QE_ZERO_REAL && integer_number(q.zero_num);
    const int8_t *x = static_cast<const int8_t *>(a.x.data) + m * a.x.ld;
    const bool fixed = a.shape.act.mode == QE_ACT_STATIC;
    float total = 0;
    for (int64_t chunk = 0; chunk < k_all; chunk += a.shape.chunk_k) {
        const int64_t chunk_end = smaller(chunk + a.shape.chunk_k, k_all);
        float y = 0, f = 0, group_sum = 0;
        uint32_t acc = 0, sum = 0, min_sum = 0;
        for (int64_t k = chunk; k < chunk_end; k++) {
            const int64_t token = fixed ? 0 : m * act_groups + k / act;
            const int32_t v = int32_t(x[k]) - (a.x.zeros ? a.x.zeros[token] : 0);
            const bool last = k + 1 == chunk_end;
            const bool act_end = last || (k + 1) % act == 0;
            sum += uint32_t(v);
            if (integers)
                acc += uint32_t(v * (int32_t(w.value(k)) - int32_t(w.zero(k))));
            else
                group_sum = qe_fma(qe_sub(w.value(k), w.zero(k)), float(v), group_sum);
            if (act_end || (k + 1) % group == 0) {
                f = qe_fma(integers ? float(int32_t(acc)) : group_sum, w.scale(k), f);
                if (mins)
                    min_sum += uint32_t(int32_t(w.min_factor(k))) * sum;
                else if (q.zero == QE_ZERO_REAL)
                    f = qe_fma(float(int32_t(sum)), w.min_factor(k), f);
                acc = sum = 0, group_sum = 0;
            }
            if (mins && (act_end || (k + 1) % outer == 0))
                f = qe_fma(float(int32_t(min_sum)), w.min_super(k), f), min_sum = 0;
            if (act_end) y = qe_fma(f, a.x.scales[token], y), f = 0;
        }
        total = chunk ? qe_add(total, y) : y;
    }
    return total;
}

PTX_FN float output(const Args &a, int64_t m, int64_t n) {
    const AnyRow w{a.shape.quant, a.record, a.head, a.rows + n * a.record.bytes};
    if (a.shape.act.mode == QE_ACT_FLOAT) return dot_float(a, w, m);
    if (!a.whole_k) return dot_groups(a, w, m);
    float scale;
    const int32_t sum = dot_whole_k(a, w, m, &scale);
    return qe_mul(qe_mul(float(sum), a.x.scales[a.shape.act.mode == QE_ACT_STATIC ? 0 : m]), scale);
}
PTX_FN void requantized(const Args &a, int64_t m, int64_t n) {
    const AnyRow w{a.shape.quant, a.record, a.head, a.rows + n * a.record.bytes};
    float scale;
    const uint32_t sum = uint32_t(dot_whole_k(a, w, m, &scale));
    static_cast<int8_t *>(a.out.y)[m * a.out.ldy + n] = a.requant(sum, n);
}

// A thread owns the outputs (m, 2i) and (m, 2i + 1), so that a gate meets its factor.
__global__ void __launch_bounds__(kColumns *kTokens, 1) gemm(const __grid_constant__ Args args) {
    const Tile rows = args.groups.tile(blockIdx.x, kTokens);
    const int64_t n = (int64_t(blockIdx.y) * kColumns + threadIdx.x % kColumns) * 2;
    const int64_t m = rows.first + threadIdx.x / kColumns;
    if (n >= args.shape.n || m >= rows.end) return;
    Args a = args;
    a.head += rows.expert * a.groups.expert_bytes, a.rows += rows.expert * a.groups.expert_bytes;
    a.out = args.out.of(rows.expert), a.requant = args.requant.of(rows.expert * args.shape.n);
    const bool second = n + 1 < a.shape.n;
    if (a.out.type == QE_CODE_INT) {
        requantized(a, m, n);
        if (second) requantized(a, m, n + 1);
        return;
    }
    const float v0 = output(a, m, n), v1 = second ? output(a, m, n + 1) : 0.0f;
    a.out.pair(m, n, v0, v1);
}

bool supports(const qk_device *, const qk_gemm *g, qk_why *why) {
    if ((g->flags & QK_GEMM_GATED) && g->w.n % 2) return qk_no(why, "gated with odd n");
    if (g->y_type != QE_CODE_INT) return true;
    if (!qk_whole_k(&g->w.quant, g->w.facts, &g->w.act, g->w.k)) return qk_no(why, "int8 output of float sums");
    if (g->act || g->flags & (QK_GEMM_RESIDUAL | QK_GEMM_GATED)) return qk_no(why, "int8 output with activation");
    return true;
}
void plan(const qk_device *, const qk_gemm *g, qk_plan *out) {
    out->grid[0] = uint32_t((g->m + kTokens - 1) / kTokens);
    out->grid[1] = uint32_t((g->w.n + 2 * kColumns - 1) / (2 * kColumns)), out->grid[2] = 1;
    out->block = kColumns * kTokens;
}
qe_status run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape &w = args->w->shape;
    Args a{};
    a.shape = w;
    qk_any_record_of(&w.quant, w.k, &a.record);
    a.head = static_cast<const unsigned char *>(args->w->blob);
    a.rows = a.head + qk_cuda_any.head_bytes(&w);
    a.x = args->x;
    a.whole_k = w.act.mode != QE_ACT_FLOAT && qk_whole_k(&w.quant, w.facts, &w.act, w.k);
    a.out = epilogue_of(plan, args), a.groups = groups_of(args);
    if (a.out.type == QE_CODE_INT) a.requant = requant_of(plan, args);
    if (a.x.m == 0) return QE_OK;
    if (a.shape.chunk_k <= 0) a.shape.chunk_k = w.k;
    const dim3 grid(tiles_of(args, kTokens), plan->grid[1]);
    return launch(gemm, grid, plan->block, 0, queue, "cuda/any", err, a);
}

} // namespace any
} // namespace qk_cuda

extern "C" const qk_row qk_cuda_any_row = {"cuda/any", &qk_cuda_any, qk_cuda::any::supports, qk_cuda::any::plan,
                                           qk_cuda::any::run};
