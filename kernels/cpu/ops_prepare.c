/* prepare(): the common form row by row on the ISA's own loops, the rest (column order, scale, rotation, other types,
 * very long rows) on the reference, which has the same bits. */
#include "panel.h"

enum { ROW_FLOATS = 16384 };   /* of a row on a thread's stack */

typedef struct prepare_job {
    const qk_prepare *a;
    const panel_isa *isa;
} prepare_job;

static void prepare_task(void *arg, int32_t index, int32_t count) {
    const prepare_job *j = arg;
    float scratch[ROW_FLOATS];
    int64_t m = j->a->out->m, last = m * (index + 1) / count;
    for (int64_t token = m * index / count; token < last; token++) j->isa->prepare_row(j->a, token, scratch);
}

/* Everything the row code reads is present and of the form it knows. */
static bool common(const qk_prepare *a, const qk_queue *q) {
    if (!a || !a->x || !a->next || !a->out || !q || !q->device) return false;
    const qk_weight *w = a->next;
    const qk_x *out = a->out;
    if (w->order || w->col_scale || w->hadamard || w->shape.act.mode != QE_ACT_DYNAMIC) return false;
    if (a->x_type != QE_CODE_F32 || w->shape.k > ROW_FLOATS || w->shape.k < 1 || out->k != w->shape.k) return false;
    if (out->quant.code != QE_CODE_INT || out->quant.bits != 8 || out->quant.zero != QE_ZERO_CONST) return false;
    if (w->shape.act.quant.code == QE_CODE_SIGN && (!out->bits || !out->ones)) return false;
    if (out->packing || !out->data || !out->scales || !out->sums || out->sum_k < 1 || out->m < 0) return false;
    if (out->ld < out->k || a->norm == QK_NORM_LAYER || (a->norm == QK_NORM_RMS && !a->norm_weight)) return false;
    if (a->act != QK_ACT_NONE && (a->norm || a->post_norm || a->residual)) return false;
    if (a->residual && a->ldr < w->shape.k) return false;
    return a->ldx >= (a->act != QK_ACT_NONE && !a->up ? 2 : 1) * w->shape.k;
}

qe_status cpu_prepare(const qk_prepare *a, const qk_queue *q, qe_error *err) {
    if (!common(a, q)) return qk_ref_backend.ops.prepare(a, q, err);
    prepare_job j = {a, panel_isa_of(q->device->isa)};
    int32_t units = q->device->units > 1 && a->out->m > 1 ? q->device->units : 1;
    if (q->parallel && units > 1) q->parallel(q->pool, prepare_task, &j, units);
    else prepare_task(&j, 0, 1);
    return QE_OK;
}
