/* linear_grouped.c -- linears from whole tensors, one or several experts, and runs in which rows choose their expert.
 *
 * Host backends run the experts one after another, each with the plan of its own count. On CUDA the counts lie on the
 * device and are never read here: one prepare and one GEMM serve all experts, planned for a typical one. */
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "run/device.h"
#include "run/linear_internal.h"

/* ---- creation ---------------------------------------------------------------------------------------------------- */
static bool same_array(const void *a, const void *b, size_t bytes) {
    return !a || !b ? a == b : a == b || !memcmp(a, b, bytes);
}

static qe_status check_alike(const qe_qtensor *a, const qe_qtensor *b, int32_t expert, qe_error *err) {
    const char *what = NULL;
    if (a->rows != b->rows || a->k != b->k)
        return qe_error_set(err, QE_E_MISMATCH, "expert %d is %lld x %lld, expert 0 is %lld x %lld", expert,
                            (long long)b->rows, (long long)b->k, (long long)a->rows, (long long)a->k);
    if (memcmp(&a->quant, &b->quant, sizeof a->quant)) what = "scheme";
    else if (memcmp(&a->act, &b->act, sizeof a->act)) what = "act";
    else if (a->hadamard != b->hadamard) what = "rotation";
    else if (!same_array(a->order, b->order, (size_t)a->k * sizeof *a->order)) what = "column order";
    else if (!same_array(a->col_scale, b->col_scale, (size_t)a->k * sizeof *a->col_scale)) what = "column scale";
    if (what) return qe_error_set(err, QE_E_MISMATCH, "expert %d has another %s than expert 0", expert, what);
    return QE_OK;
}

/* The facts that hold for every weight. */
static qe_status check_weights(const qe_qtensor *const *weights, int32_t experts, uint32_t *facts, qe_error *err) {
    for (int32_t e = 0; e < experts; e++) {
        const qe_qtensor *w = weights[e];
        if (!w) return qe_error_set(err, QE_E_ARGUMENT, "weight %d is NULL", e);
        if (w->first_row || w->n != w->rows)
            return qe_error_set(err, QE_E_ARGUMENT, "not a whole tensor: rows %lld + %lld of %lld",
                                (long long)w->first_row, (long long)w->n, (long long)w->rows);
        if (e) QE_TRY(check_alike(weights[0], w, e, err));
        unsigned fp = qe_fp_enter();
        qe_status status = qe_qtensor_check(w, facts, err);
        qe_fp_leave(fp);
        if (status) return status;
    }
    return QE_OK;
}

static qe_status create(qe_device *device, const qe_qtensor *const *weights, int32_t experts, const qe_linear_options *options,
                        qe_linear **out, qe_error *err) {
    uint32_t facts = ~(uint32_t)0;
    if (qe_device_is_host(device)) facts &= ~(uint32_t)QE_FACT_F16_RANGE;   /* a costly scan only GPUs use */
    QE_TRY(check_weights(weights, experts, &facts, err));
    qe_qtensor form = *weights[0];
    form.facts = facts;
    qe_linear *l = NULL;
    qe_status status = qe_linear_begin(device, &form, options, &l, err);
    if (status) return status;
    l->checked = true;
    for (int32_t e = 0; !status && e < experts; e++) status = qe_linear_append_expert(l, e, weights[e], err);
    if (!status) status = qe_linear_finish(l, err);
    if (status) qe_linear_destroy(l);
    else *out = l;
    return status;
}

qe_status qe_linear_create(qe_device *device, const qe_qtensor *weight, const qe_linear_options *options,
                           qe_linear **out, qe_error *err) {
    if (!device || !weight || !out) return qe_error_set(err, QE_E_ARGUMENT, "device, weight or out is NULL");
    return create(device, &weight, 1, options, out, err);
}

qe_status qe_linear_create_grouped(qe_device *device, const qe_qtensor *const *weights, int32_t experts,
                                   const qe_linear_options *options, qe_linear **out, qe_error *err) {
    if (!device || !weights || !out) return qe_error_set(err, QE_E_ARGUMENT, "device, weights or out is NULL");
    if (experts < 1) return qe_error_set(err, QE_E_ARGUMENT, "experts is %d", experts);
    if (!weights[0]) return qe_error_set(err, QE_E_ARGUMENT, "weight 0 is NULL");
    qe_linear_options o;
    QE_TRY(qe_linear_options_read(options, weights[0], &o, err));
    if (o.experts && o.experts != experts)
        return qe_error_set(err, QE_E_ARGUMENT, "options.experts is %d, %d weights are given", o.experts, experts);
    o.struct_size = sizeof o;
    o.experts = experts;
    return create(device, weights, experts, &o, out, err);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */
static bool grouped_layout(int32_t layout) { return layout == QE_GROUPS_CONTIGUOUS || layout == QE_GROUPS_MASKED; }

/* Rows of x, y and residual together; 0 if no kernel counts so far. */
static int64_t all_rows(const qe_linear *l, int32_t layout, int64_t m) {
    int64_t rows = layout == QE_GROUPS_MASKED ? m * l->experts : m;
    return rows <= INT32_MAX ? rows : 0;
}

/* Of a call on CUDA: one plan, made for a typical expert. */
static qe_status plan_at_once(const qe_linear *l, int32_t layout, int64_t m, int32_t x_type, int32_t y_type, qe_run_plan *p,
                              qe_error *err) {
    int64_t typical = layout == QE_GROUPS_MASKED ? m : (m + l->experts - 1) / l->experts;
    return qe_linear_plan_run(l, all_rows(l, layout, m), typical, x_type, y_type, p, err);
}

size_t qe_linear_workspace_grouped(const qe_linear *l, int32_t layout, int64_t m, int32_t x_type) {
    if (!l || !grouped_layout(layout) || m < 1 || m > INT32_MAX || !all_rows(l, layout, m)) return 0;
    if (!qe_linear_takes(l, x_type)) return 0;
    if (qe_device_is_host(l->device)) return qe_linear_workspace(l, m, x_type);     /* one expert may have all m rows */
    qe_run_plan p;
    if (plan_at_once(l, layout, m, x_type, l->y_type, &p, NULL)) return 0;
    return p.x_bytes + (size_t)p.plan.workspace_bytes;
}

static qe_status check_groups(const qe_linear *l, const qe_linear_groups *g, int64_t m, qe_error *err) {
    if (g->struct_size != sizeof *g) return qe_error_set(err, QE_E_ARGUMENT, "groups.struct_size is %zu", g->struct_size);
    if (!grouped_layout(g->layout) || g->reserved)
        return qe_error_set(err, QE_E_ARGUMENT, "groups.layout is %d, legal are contiguous 1 and masked 2", g->layout);
    if (!g->rows) return qe_error_set(err, QE_E_ARGUMENT, "groups.rows is NULL");
    if (m && !all_rows(l, g->layout, m))
        return qe_error_set(err, QE_E_ARGUMENT, "%d experts of %lld rows are more than int32 counts", l->experts,
                            (long long)m);
    return QE_OK;
}

static qe_status check_host_rows(const qe_linear *l, const qe_linear_groups *g, int64_t m, qe_error *err) {
    bool masked = g->layout == QE_GROUPS_MASKED;
    for (int32_t i = 0; i < l->experts + !masked; i++) {
        int32_t low = masked || !i ? 0 : g->rows[i - 1];
        if (g->rows[i] < low || g->rows[i] > m)
            return qe_error_set(err, QE_E_ARGUMENT, "groups.rows[%d] is %d, legal are %d to %lld", i, g->rows[i], low,
                                (long long)m);
    }
    return QE_OK;
}

static const void *row_of(const void *p, int64_t row, int64_t ld, int32_t type) {
    int64_t bytes = type == QE_CODE_F32 ? 4 : type == QE_CODE_INT ? 1 : 2;
    return p ? (const char *)p + row * ld * bytes : NULL;
}

static int64_t count_of(const qe_linear_groups *g, int64_t m, int32_t e, int64_t *first) {
    bool masked = g->layout == QE_GROUPS_MASKED;
    *first = masked ? e * m : g->rows[e];
    return masked ? g->rows[e] : g->rows[e + 1] - *first;
}

/* Before the first expert writes its rows. */
static qe_status check_workspace(const qe_linear *l, const qe_linear_args *args, const qe_linear_groups *g, int32_t y_type,
                                 qe_error *err) {
    size_t need = 0;
    for (int32_t e = 0; e < l->experts; e++) {
        qe_run_plan p;
        int64_t first, count = count_of(g, args->m, e, &first);
        if (!count) continue;
        QE_TRY(qe_linear_plan_run(l, count, 0, args->x_type, y_type, &p, err));
        size_t bytes = p.x_bytes + (size_t)p.plan.workspace_bytes;
        need = bytes > need ? bytes : need;
    }
    return qe_linear_check_workspace(args, need, err);
}

static qe_status run_experts(const qe_linear *l, const qe_linear_args *args, const qe_linear_groups *g, int32_t y_type,
                             qe_error *err) {
    QE_TRY(check_workspace(l, args, g, y_type, err));
    for (int32_t e = 0; e < l->experts; e++) {
        qe_run_plan p;
        int64_t first, count = count_of(g, args->m, e, &first);
        if (!count) continue;
        QE_TRY(qe_linear_plan_run(l, count, 0, args->x_type, y_type, &p, err));
        qe_linear_args a = *args;
        a.m = count;
        a.x = row_of(args->x, first, args->ldx, args->x_type);
        a.y = (void *)(uintptr_t)row_of(args->y, first, args->ldy, y_type);
        a.residual = row_of(args->residual, first, args->ldr, y_type);
        QE_TRY(qe_linear_enqueue(l, e, NULL, &p, &a, err));
    }
    return QE_OK;
}

static qe_status run_at_once(const qe_linear *l, const qe_linear_args *args, const qe_linear_groups *g, int32_t y_type,
                             qe_error *err) {
    qe_run_plan p;
    QE_TRY(plan_at_once(l, g->layout, args->m, args->x_type, y_type, &p, err));
    qk_groups groups;
    memset(&groups, 0, sizeof groups);
    groups.rows = g->rows;
    groups.experts = l->experts;
    groups.max_rows = g->layout == QE_GROUPS_MASKED ? args->m : 0;
    groups.expert_bytes = (int64_t)l->expert_bytes;
    return qe_linear_enqueue(l, 0, &groups, &p, args, err);
}

qe_status qe_linear_run_grouped(const qe_linear *l, const qe_linear_args *args, const qe_linear_groups *groups,
                                qe_error *err) {
    if (!l || !args || !groups) return qe_error_set(err, QE_E_ARGUMENT, "linear, args or groups is NULL");
    if (!l->finished) return qe_error_set(err, QE_E_STATE, "the linear is not finished");
    int32_t y_type = args->y_type ? args->y_type : l->y_type;
    QE_TRY(qe_linear_check_args(l, args, y_type, err));
    QE_TRY(check_groups(l, groups, args->m, err));
    bool host = qe_device_is_host(l->device);
    if (host) QE_TRY(check_host_rows(l, groups, args->m, err));
    if (args->m == 0) return QE_OK;
    unsigned fp = qe_fp_enter();
    qe_status status = (host ? run_experts : run_at_once)(l, args, groups, y_type, err);
    qe_fp_leave(fp);
    return status;
}
