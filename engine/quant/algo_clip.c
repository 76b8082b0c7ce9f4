/* algo_clip.c -- AWQ's second half (arXiv 2306.00978, section 3.2): weights are cut off at a share of their group's largest
 * magnitude before they are rounded, and each group of each row takes the share whose output on the sampled inputs is
 * nearest the original's. Share 1 is among them, and no row ends worse than uncut. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/algo.h"

enum { SHARES = 10, SHARE_STEPS = 20 };      /* 1, 19/20 .. 11/20 */

/* What all bands read: of each group of columns the inputs' Gram matrix where that is smaller than the sample, else the
 * sample. width: columns of a group; depth: of a group's matrix. */
typedef struct form {
    int64_t width, depth;
    bool gram;
} form;

typedef struct clip {
    const qe_round_job *j;
    const float *original;
    qe_levels_job l;                         /* w: the cut copy, [n][k] */
    form f;
    float *error, *product, *largest;        /* [n][k] e = dq(q(cut)) - w; [n][depth]; [n][groups] */
    double *best, *now;                      /* [n][groups] */
    uint8_t *share;
    void *scratch;
} clip;

static form form_of(const qe_round_job *j) {
    form f = {j->t->quant.group_k && j->t->quant.group_k < j->t->k ? j->t->quant.group_k : j->t->k, 0, false};
    f.gram = f.width < j->calibration->x_rows;
    f.depth = f.gram ? f.width : j->calibration->x_rows;
    return f;
}

static int64_t column(const qe_qtensor *t, int64_t c) { return t->order ? t->order[c] : c; }

/* One group of columns: its Gram matrix, or its columns of the sample. */
typedef struct clip_fill {
    qe_round_job *j;
    form f;
    bool failed;
} clip_fill;

static void fill_group(void *arg, int32_t index, int32_t count) {
    clip_fill *p = arg;
    const qe_calibration *c = p->j->calibration;
    const form f = p->f;
    int64_t k = p->j->t->k, rows = c->x_rows, from = index * f.width, width = k - from < f.width ? k - from : f.width;
    (void)count;
    char *scratch = qe_scratch(qe_gemm_scratch_bytes() + (size_t)(rows * width) * sizeof(float), NULL);
    if (!scratch) {
        __atomic_store_n(&p->failed, true, __ATOMIC_RELAXED);
        return;
    }
    float *x = (float *)(void *)(scratch + qe_gemm_scratch_bytes()), *to = (float *)p->j->shared + from * f.depth;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) x[r * width + i] = c->x[r * c->ldx + column(p->j->t, from + i)];
    if (f.gram) qe_gemm(width, width, rows, (qe_view){x, 1, width}, (qe_view){x, width, 1}, to, f.depth, false, 1.0f, scratch);
    for (int64_t i = 0; i < width && !f.gram; i++)
        for (int64_t r = 0; r < rows; r++) to[i * f.depth + r] = x[r * width + i];
    free(scratch);
}

/* shared [groups][width][depth]: rows in canonical order. */
qe_status qe_clip_prepare(qe_round_job *j, qe_error *err) {
    const qe_quant *q = &j->t->quant;
    if (j->o.method != QE_METHOD_RTN || q->group_n != 1 || !qe_has_levels(q) || qe_code_is_float(q->code))
        return qe_error_set(err, QE_E_UNSUPPORTED, "the range 'output' needs method rtn and scales of each row");
    const qe_calibration *c = j->calibration;
    if (!c || !c->x || c->x_rows < 1)
        return qe_error_set(err, QE_E_STATE, "the range 'output' needs inputs of a calibration, none are given");
    clip_fill p = {j, form_of(j), false};
    j->shared = qe_scratch((size_t)(j->t->k * p.f.depth) * sizeof(float) + 64, err);
    if (!j->shared) return QE_E_NOMEM;
    qe_parallel(j->o.executor, fill_group, &p, (int32_t)((j->t->k + p.f.width - 1) / p.f.width));
    return p.failed ? qe_error_set(err, QE_E_NOMEM, "no memory for a group of the sampled inputs") : QE_OK;
}

/* c->now of the weights as c->l.w has them: rounded, and their outputs compared with the original's. */
static qe_status measure(clip *c, qe_error *err) {
    const qe_qtensor *t = c->l.t;
    int64_t n = t->n, k = t->k, groups = (k + c->f.width - 1) / c->f.width;
    qe_levels_plain(&c->l, 0, k);
    qe_codes_store(&c->l);
    QE_TRY(qe_dequantize(t, 0, n, c->error, k, err));
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < k; i++) c->error[r * k + i] -= c->original[r * c->j->ldw + i];
    for (int64_t g = 0; g < groups; g++) {
        int64_t from = g * c->f.width, width = k - from < c->f.width ? k - from : c->f.width;
        int64_t depth = c->f.gram ? width : c->f.depth;
        float *e = c->error + from;
        int64_t lde = k;
        if (t->order) {                      /* gathered behind the products */
            e = c->product + n * c->f.depth;
            lde = width;
            for (int64_t r = 0; r < n; r++)
                for (int64_t i = 0; i < width; i++) e[r * width + i] = c->error[r * k + column(t, from + i)];
        }
        qe_gemm(n, depth, width, (qe_view){e, lde, 1}, (qe_view){c->j->shared + from * c->f.depth, c->f.depth, 1}, c->product,
                depth, false, 1.0f, c->scratch);
        for (int64_t r = 0; r < n; r++) {
            double sum = 0.0;
            const float *y = c->product + r * depth, *other = c->f.gram ? e + r * lde : y;
            for (int64_t i = 0; i < depth; i++) sum += (double)y[i] * (double)other[i];
            c->now[r * groups + g] = sum;
        }
    }
    return QE_OK;
}

static void cut(const clip *c, float *w, int64_t r, int64_t g, uint8_t share) {
    const qe_qtensor *t = c->l.t;
    int64_t groups = (t->k + c->f.width - 1) / c->f.width, end = (g + 1) * c->f.width < t->k ? (g + 1) * c->f.width : t->k;
    float bound = c->largest[r * groups + g] * (1.0f - (float)share / (float)SHARE_STEPS);
    for (int64_t i = g * c->f.width; i < end; i++) {
        int64_t at = column(t, i);
        float v = c->original[r * c->j->ldw + at];
        w[r * t->k + at] = share ? qe_clamp(v, -bound, bound) : v;
    }
}

static void start(clip *c, float *w) {
    const qe_qtensor *t = c->l.t;
    int64_t groups = (t->k + c->f.width - 1) / c->f.width;
    for (int64_t at = 0; at < t->n * groups; at++) c->largest[at] = 0.0f;
    for (int64_t r = 0; r < t->n; r++) {
        for (int64_t i = 0; i < t->k; i++) {
            float a = fabsf(c->original[r * c->j->ldw + column(t, i)]), *to = &c->largest[r * groups + i / c->f.width];
            *to = a > *to ? a : *to;
        }
        for (int64_t g = 0; g < groups; g++) cut(c, w, r, g, 0);
    }
}

/* Groups under one second level share it, so that what was best alone may be worse together: such rows stay uncut. */
static qe_status settle(clip *c, float *w, const double *uncut, qe_error *err) {
    const qe_qtensor *t = c->l.t;
    int64_t groups = (t->k + c->f.width - 1) / c->f.width;
    for (int64_t r = 0; r < t->n; r++)
        for (int64_t g = 0; g < groups; g++) cut(c, w, r, g, c->share[r * groups + g]);
    QE_TRY(measure(c, err));
    bool again = false;
    for (int64_t r = 0; r < t->n; r++) {
        double before = 0.0, after = 0.0;
        for (int64_t g = 0; g < groups; g++) before += uncut[r * groups + g], after += c->now[r * groups + g];
        for (int64_t g = 0; g < groups && after > before; g++) cut(c, w, r, g, 0), again = true;
    }
    return again ? measure(c, err) : QE_OK;
}

static qe_status search(clip *c, float *w, double *uncut, qe_error *err) {
    const qe_qtensor *t = c->l.t;
    int64_t groups = (t->k + c->f.width - 1) / c->f.width, all = t->n * groups;
    start(c, w);
    QE_TRY(measure(c, err));
    memcpy(uncut, c->now, (size_t)all * sizeof *uncut);
    memcpy(c->best, c->now, (size_t)all * sizeof *uncut);
    memset(c->share, 0, (size_t)all);
    for (uint8_t share = 1; share < SHARES; share++) {
        for (int64_t r = 0; r < t->n; r++)
            for (int64_t g = 0; g < groups; g++) cut(c, w, r, g, share);
        QE_TRY(measure(c, err));
        for (int64_t at = 0; at < all; at++) {
            if (!(c->now[at] < c->best[at])) continue;
            c->best[at] = c->now[at];
            c->share[at] = share;
        }
    }
    return settle(c, w, uncut, err);
}

qe_status qe_band_clipped(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    clip c = {.j = j, .original = w, .f = form_of(j)};
    int64_t n = band->n, k = band->k, all = n * ((k + c.f.width - 1) / c.f.width);
    size_t floats = (size_t)(2 * n * k + n * c.f.depth + n * c.f.width + all), doubles = 3 * (size_t)all;
    char *memory = qe_scratch(qe_gemm_scratch_bytes() + doubles * sizeof(double) + floats * sizeof(float) + (size_t)all, err);
    if (!memory) return QE_E_NOMEM;
    c.scratch = memory;
    c.best = (double *)(void *)(memory + qe_gemm_scratch_bytes());
    c.now = c.best + all;
    double *uncut = c.now + all;
    float *copy = (float *)(void *)(uncut + all);
    c.error = copy + n * k;
    c.product = c.error + n * k;
    c.largest = c.product + n * (c.f.depth + c.f.width);
    c.share = (uint8_t *)(void *)(c.largest + all);
    c.l = (qe_levels_job){copy, k, band, j->o.range.full_range != 0};
    qe_status status = search(&c, copy, uncut, err);
    free(memory);
    return status;
}
