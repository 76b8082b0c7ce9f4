/* The epilogue of the CPU's GEMMs (finish.h). */
#include "finish.h"
#include <string.h>
#include <qengine/num.h>

bool finish_supports(const qk_gemm *g, qk_why *why) {
    if (g->y_type == QE_CODE_INT) {
        if (!qk_whole_k(&g->w.quant, g->w.facts, &g->w.act, g->w.k)) return qk_no(why, "int8 output of float sums");
        if (g->act || g->flags & (QK_GEMM_RESIDUAL | QK_GEMM_GATED)) return qk_no(why, "int8 output with activation");
        return true;
    }
    if (g->y_type != QE_CODE_F32 && g->y_type != QE_CODE_F16 && g->y_type != QE_CODE_BF16)
        return qk_no(why, "an output that is neither float nor int8");
    if (g->flags & QK_GEMM_GATED && g->w.n % 2) return qk_no(why, "gated with an odd n");
    return true;
}

void finish_plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    (void)g;     /* the plan has the epilogue already */
    out->block = (uint32_t)(device->units > 0 ? device->units : 1);
}

qe_status finish_begin(const qk_plan *plan, const qk_gemm_args *args, finish_job *out, qe_error *err) {
    out->args = args;
    out->y_type = plan->y_type;
    out->act = plan->act;
    out->flags = plan->flags;
    int64_t n = args->w->shape.n;
    if (args->ldy < (out->flags & QK_GEMM_GATED ? n / 2 : n))
        return qe_error_set(err, QE_E_ARGUMENT, "ldy is %lld for n %lld", (long long)args->ldy, (long long)n);
    return QE_OK;
}

static float activate(int32_t act, float v) {
    switch (act) {
    case QK_ACT_SILU: return qe_silu(v);
    case QK_ACT_GELU: return qe_gelu(v);
    case QK_ACT_GELU_TANH: return qe_gelu_tanh(v);
    case QK_ACT_RELU2: return v > 0.0f ? qe_mul(v, v) : 0.0f;
    default: return v;
    }
}

static float load(int32_t type, const void *p, int64_t i) {
    if (type == QE_CODE_F16) return qe_f16_to_f32(((const uint16_t *)p)[i]);
    if (type == QE_CODE_BF16) return qe_bf16_to_f32(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}

static void store(int32_t type, void *p, int64_t i, float v) {
    if (type == QE_CODE_F16) ((uint16_t *)p)[i] = qe_f32_to_f16(v);
    else if (type == QE_CODE_BF16) ((uint16_t *)p)[i] = qe_f32_to_bf16(v);
    else ((float *)p)[i] = v;
}

bool finish_nothing(const finish_job *j) {
    return j->y_type == QE_CODE_F32 && !j->args->bias && !j->args->residual && !j->act && !(j->flags & QK_GEMM_GATED);
}

void finish_row(const finish_job *j, int64_t token, int64_t first, float *v) {
    const qk_gemm_args *a = j->args;
    int64_t n = a->w->shape.n, count = n - first < PANEL_COLUMNS ? n - first : PANEL_COLUMNS;
    if (a->bias)
        for (int64_t c = 0; c < count; c++) v[c] += a->bias[first + c];
    if (j->flags & QK_GEMM_GATED) {
        count /= 2;
        first /= 2;
        for (int64_t c = 0; c < count; c++) v[c] = activate(j->act, v[2 * c]) * v[2 * c + 1];
    } else if (j->act) {
        for (int64_t c = 0; c < count; c++) v[c] = activate(j->act, v[c]);
    }
    if (a->residual)
        for (int64_t c = 0; c < count; c++) v[c] += load(j->y_type, a->residual, token * a->ldr + first + c);
    if (j->y_type == QE_CODE_F32) {
        float *y = (float *)a->y + token * a->ldy + first;
        if (count == PANEL_COLUMNS) memcpy(y, v, PANEL_COLUMNS * sizeof *v);   /* of a known size, so not a call */
        else memcpy(y, v, (size_t)count * sizeof *v);
        return;
    }
    for (int64_t c = 0; c < count; c++) store(j->y_type, a->y, token * a->ldy + first + c, v[c]);
}

void finish_int8(const finish_job *j, int64_t token, int64_t first, const int32_t *sums) {
    const qk_gemm_args *a = j->args;
    int64_t n = a->w->shape.n, count = n - first < PANEL_COLUMNS ? n - first : PANEL_COLUMNS;
    int8_t *y = (int8_t *)a->y + token * a->ldy + first;
    for (int64_t c = 0; c < count; c++) y[c] = qk_requantize(a, (uint32_t)sums[c], first + c);
}
