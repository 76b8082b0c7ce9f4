/* quantize_statistics.c -- what calibration remembers of a layer's four inputs: Hessians, column magnitudes, a sample of
 * rows, ranges. */
#include <stdlib.h>
#include <string.h>

#include "run/quantize_round.h"

enum { SAMPLE_ROWS = 512 };

static qe_status nomem(qe_error *err) { return qe_error_set(err, QE_E_NOMEM, "no memory for calibration statistics"); }

/* What one linear asks of its input. */
static qe_status want(qe_statistics *s, const qe_item *item, qe_error *err) {
    qe_input_statistics *st = &s->input[qe_input_of(item->role)];
    const qe_decision *d = &item->decision;
    uint32_t needs = qe_method_needs(d->method);
    size_t k = (size_t)item->ref.k;
    st->k = item->ref.k;
    if (item->weight.form.hadamard) st->rotate = item->weight.form.hadamard;
    bool hessian = needs & QE_NEEDS_HESSIAN || d->method == QE_METHOD_KMEANS;
    if (hessian && !st->hessian && !(st->hessian = calloc(k * k, sizeof *st->hessian))) return nomem(err);
    if (!st->sample) {
        int64_t total = s->job->stream.count;
        st->sample_room = total < SAMPLE_ROWS ? total : SAMPLE_ROWS;
        st->step = (total + st->sample_room - 1) / st->sample_room;
        st->sample = malloc((size_t)st->sample_room * k * sizeof *st->sample);
        st->absmax = calloc(k, sizeof *st->absmax);
        st->sum_abs = calloc(k, sizeof *st->sum_abs);
        if (!st->sample || !st->absmax || !st->sum_abs) return nomem(err);
    }
    if (d->act.mode != QE_ACT_STATIC || st->observer) return QE_OK;
    const qe_range_options options = {.struct_size = sizeof options, .method = d->range && d->range != QE_RANGE_OUTPUT ? d->range : QE_RANGE_MSE};
    return qe_observer_create(&options, &st->observer, err);
}

qe_status qe_statistics_start(qe_statistics *s, qe_job *job, int64_t layer, qe_error *err) {
    s->job = job;
    for (int64_t i = 0; i < job->count; i++) {
        const qe_item *item = &job->items[i];
        if (item->layer == layer && item->linear && qe_input_of(item->role) >= 0) QE_TRY(want(s, item, err));
    }
    return QE_OK;
}

static qe_status rotate(qe_statistics *s, const qe_input_statistics *st, const float **x, int64_t m, int64_t *ldx, qe_error *err) {
    size_t need = (size_t)(m * st->k);
    qe_executor executor = qe_job_executor(s->job);
    if (need > s->rotated_room) {
        free(s->rotated);
        s->rotated = malloc(need * sizeof *s->rotated);
        s->rotated_room = s->rotated ? need : 0;
        if (!s->rotated) return nomem(err);
    }
    for (int64_t r = 0; r < m; r++) memcpy(s->rotated + r * st->k, *x + r * *ldx, (size_t)st->k * sizeof **x);
    QE_TRY(qe_hadamard(s->rotated, m, st->k, st->k, st->rotate, 0, 0, &executor, err));
    *x = s->rotated;
    *ldx = st->k;
    return QE_OK;
}

qe_status qe_statistics_input(void *statistics, int64_t layer, int32_t group, const float *x, int64_t m, int64_t k, int64_t ldx,
                              qe_error *err) {
    (void)layer;
    qe_statistics *s = statistics;
    qe_input_statistics *st = &s->input[group];
    if (!st->sample) return QE_OK;
    qe_executor executor = qe_job_executor(s->job);
    if (st->rotate) QE_TRY(rotate(s, st, &x, m, &ldx, err));
    if (st->hessian) QE_TRY(qe_hessian_add(st->hessian, k, x, m, ldx, &executor, err));
    QE_TRY(qe_columns_add(st->absmax, st->sum_abs, k, x, m, ldx, err));
    if (st->observer) QE_TRY(qe_observer_add(st->observer, x, m, k, ldx, err));
    for (int64_t r = 0; r < m; r++, st->seen++)
        if (st->seen % st->step == 0 && st->sample_rows < st->sample_room)
            memcpy(st->sample + st->sample_rows++ * k, x + r * ldx, (size_t)k * sizeof *x);
    st->tokens += m;
    return QE_OK;
}

void qe_statistics_end(qe_statistics *s) {
    for (int i = 0; i < QE_INPUTS; i++) {
        free(s->input[i].hessian);
        free(s->input[i].absmax);
        free(s->input[i].sum_abs);
        free(s->input[i].sample);
        qe_observer_destroy(s->input[i].observer);
    }
    free(s->rotated);
}
