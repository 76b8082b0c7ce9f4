/* linear_tuning.c -- which plan a linear runs: the kernels' own choice, or the device's tuning cache's; and why. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run/linear_internal.h"

enum { BUCKETS = 31 };      /* m is at most 2^31 - 1 */

size_t qe_linear_problem(const qe_linear *l, int64_t m, int32_t x_type, int32_t y_type, qk_gemm *g, qk_x *x) {
    memset(g, 0, sizeof *g);
    if (x_type == QE_CODE_INT) x_type = QE_CODE_F32;        /* of float inputs alone */
    size_t bytes = qk_x_bytes(&l->device->facts, &l->weight.shape, m, x_type, x);
    g->w = l->weight.shape;
    g->x = x->quant;
    g->m = m;
    g->y_type = y_type;
    g->flags = l->gemm_flags;
    return (bytes + 255) & ~(size_t)255;
}

/* Looked up once, at creation: a run compares numbers. */
qe_status qe_linear_choose(qe_linear *l, qe_error *err) {
    static const int32_t types[] = {QE_CODE_F32, QE_CODE_F16, QE_CODE_BF16};
    const qe_tuning *t = l->device->tuning;
    if (!t || !t->count) return QE_OK;
    l->choices = calloc(BUCKETS * sizeof types / sizeof types[0] + 1, sizeof *l->choices);
    if (!l->choices) return qe_error_set(err, QE_E_NOMEM, "no memory for a linear");
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        for (int32_t b = 0; b < BUCKETS; b++) {
            qk_gemm g;
            qk_x x;
            qk_tuning tuning;
            qe_linear_problem(l, (int64_t)1 << b, types[i], l->y_type, &g, &x);
            if (qe_linear_choice_of(l, &g)) continue;       /* integers are the same for all types */
            const qe_tuning_entry *e = qe_tuning_find(l->device, &g, &tuning);
            if (e) l->choices[l->choice_count++] = (qe_linear_choice){g.x.code, g.m, tuning, e->untuned_us / e->us};
        }
    return QE_OK;
}

int32_t qe_linear_choices(const qe_linear *l) { return l->choice_count; }

void qe_linear_force(qe_linear *l, const qk_tuning *tuning) { l->forced = tuning; }

const qe_linear_choice *qe_linear_choice_of(const qe_linear *l, const qk_gemm *g) {
    for (int32_t i = 0; i < l->choice_count; i++) {
        const qe_linear_choice *c = &l->choices[i];
        if (c->x_code == g->x.code && g->m <= c->m && g->m > c->m / 2) return c;
    }
    return NULL;
}

qe_status qe_linear_plan(const qe_linear *l, const qk_gemm *g, qk_plan *out, qe_error *err) {
    const qk_device *device = &l->device->facts;
    if (l->forced) return qk_gemm_plan_tuned(device, g, l->forced, out, err);
    const qe_linear_choice *c = qe_linear_choice_of(l, g);
    /* Its row may take this bucket's largest m and not this one. */
    if (c && !qk_gemm_plan_tuned(device, g, &c->tuning, out, NULL)) return QE_OK;
    return qk_gemm_plan(device, g, out, NULL, NULL, err);
}

/* ---- explaining -------------------------------------------------------------------------------------------------- */
static void tell_tuned(const qe_linear_choice *c, const qk_plan *untuned, const qk_plan *plan, qe_explain *tell, void *ctx) {
    char why[160];
    snprintf(why, sizeof why, "tuned: %s instance %d, %d splits, %u threads was %.2f times as fast as instance %d, %d splits, %u threads",
             plan->row->name, plan->variant, plan->splits, plan->block, c->times, untuned->variant, untuned->splits,
             untuned->block);
    tell(ctx, untuned->row->name, why);
}

qe_status qe_linear_explain(const qe_linear *l, int64_t m, qe_explain *tell, void *ctx, qe_error *err) {
    qk_gemm g;
    qk_x x;
    qk_plan untuned, plan;
    if (!l || !tell || m < 1 || m > INT32_MAX) return qe_error_set(err, QE_E_ARGUMENT, "linear, tell or m is missing");
    const qk_device *device = &l->device->facts;
    qk_shape asked = l->weight.shape;
    asked.layout = NULL;
    qk_layout_choose(device, &asked, tell, ctx);
    tell(ctx, l->weight.shape.layout->name, NULL);
    qe_linear_problem(l, m, l->y_type, l->y_type, &g, &x);
    bool grouped = l->experts > 1 && !qe_device_is_host(l->device);     /* never tuned */
    if (grouped) g.experts = l->experts;
    QE_TRY(qk_gemm_plan(device, &g, &untuned, tell, ctx, err));
    plan = untuned;
    if (!grouped) QE_TRY(qe_linear_plan(l, &g, &plan, err));
    const qe_linear_choice *c = grouped ? NULL : qe_linear_choice_of(l, &g);
    if (c) tell_tuned(c, &untuned, &plan, tell, ctx);
    tell(ctx, plan.row->name, NULL);
    return QE_OK;
}
