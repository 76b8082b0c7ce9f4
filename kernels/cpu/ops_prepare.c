/* prepare(): row by row on the ISA's own loops. What those do not know (very long rows, half-precision gates) and what is
 * wrong goes to the reference, which has the same bits and the messages. */
#include "panel.h"

enum { ROW_FLOATS = 16384, ROTATION_FLOATS = 4096 };   /* of a row on a thread's stack, twice under a column order; of a Hadamard block */

typedef struct prepare_job {
    const qk_prepare *a;
    const panel_isa *isa;
} prepare_job;

static void prepare_rows(const prepare_job *j, int32_t index, int32_t count, float *scratch) {
    int64_t m = j->a->out->m, last = m * (index + 1) / count;
    for (int64_t token = m * index / count; token < last; token++) j->isa->prepare_row(j->a, token, scratch);
}

__attribute__((noinline)) static void prepare_ordered(const prepare_job *j, int32_t index, int32_t count) {
    float scratch[2 * ROW_FLOATS];
    prepare_rows(j, index, count, scratch);
}

__attribute__((noinline)) static void prepare_plain(const prepare_job *j, int32_t index, int32_t count) {
    float scratch[ROW_FLOATS];
    prepare_rows(j, index, count, scratch);
}

static void prepare_task(void *arg, int32_t index, int32_t count) {
    const prepare_job *j = arg;
    (j->a->next->order ? prepare_ordered : prepare_plain)(j, index, count);
}

static bool float_type(int32_t code) { return code == QE_CODE_F32 || code == QE_CODE_F16 || code == QE_CODE_BF16; }

static bool known_output(const qe_act *act, const qk_x *out) {
    if (out->packing || !out->data || out->m < 0 || out->ld < out->k) return false;
    if (act->mode == QE_ACT_FLOAT) return float_type(out->quant.code);
    if (act->mode != QE_ACT_DYNAMIC && act->mode != QE_ACT_STATIC) return false;
    if (out->quant.code != QE_CODE_INT || out->quant.bits != 8 || out->quant.zero != act->quant.zero) return false;
    if (out->quant.zero != QE_ZERO_CONST && (out->quant.zero != QE_ZERO_POINT || !out->zeros)) return false;
    if (act->quant.code == QE_CODE_SIGN && (!out->bits || !out->ones)) return false;
    return out->scales && out->sums && out->sum_k > 0;
}

static bool known_input(const qk_prepare *a) {
    int32_t h = a->next->hadamard;
    if (a->x_type == QE_CODE_INT) return !qk_prepare_codes_check(a, NULL);
    if (!float_type(a->x_type) || (h && (h < 0 || h & (h - 1) || h > ROTATION_FLOATS || a->out->k % h))) return false;
    if (a->norm != QK_NORM_NONE && (a->norm != QK_NORM_RMS || !a->norm_weight)) return false;
    if (a->residual && a->ldr < a->out->k) return false;
    if (a->act == QK_ACT_NONE) return a->ldx >= a->out->k;
    return a->x_type == QE_CODE_F32 && !a->norm && !a->post_norm && !a->residual &&
           a->ldx >= (a->up ? 1 : 2) * a->out->k;
}

static bool known(const qk_prepare *a, const qk_queue *q) {
    if (!a || !a->x || !a->next || !a->out || !q || !q->device) return false;
    const qk_shape *s = &a->next->shape;
    return s->k >= 1 && s->k <= ROW_FLOATS && a->out->k == s->k && known_output(&s->act, a->out) && known_input(a);
}

qe_status cpu_prepare(const qk_prepare *a, const qk_queue *q, qe_error *err) {
    if (!known(a, q)) return qk_ref_backend.ops.prepare(a, q, err);
    const qe_act *act = &a->next->shape.act;
    prepare_job j = {a, panel_isa_of(q->device->isa)};
    if (act->mode == QE_ACT_STATIC && a->out->m) {      /* one pair for all rows */
        a->out->scales[0] = act->scale;
        if (a->out->zeros) a->out->zeros[0] = act->zero - 128;
    }
    int32_t units = q->device->units > 1 && a->out->m > 1 ? q->device->units : 1;
    cpu_parallel(q, prepare_task, &j, units);
    return QE_OK;
}
