/* algo_adaround.c -- AdaRound (arXiv 2004.10568): per weight, learn whether to round down or up so that the layer's
 * output on sampled inputs moves least. h = clamp(1.2 sigmoid(v) - 0.1, 0, 1) blends the two neighbours; a regularizer
 * whose exponent falls from 20 to 2 drives h to 0 or 1; Adam moves v. Any scheme: the neighbours of a table count. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/algo.h"
#include "quant/algo_adaround.h"

typedef struct adaround {
    const qe_round_job *j;
    qe_qtensor *t;
    int64_t n, k, batch;
    qe_adaround_step_fn *step;
    float *gap, *offset;       /* [n][k], caller's columns: up minus down, and down minus the weight */
    float *logit, *m, *v;      /* Adam */
    float *delta, *gradient;   /* w' - w; d loss / d w' */
    float *output;             /* [n][batch] */
    float *unit;               /* [n]: 1 / the row's loss under RTN */
    double *loss;              /* [n] */
    uint8_t *down, *up, *rtn;  /* codes */
    void *scratch;
} adaround;

/* ---- start ------------------------------------------------------------------------------------------------------- */
/* The neighbours of every weight, RTN's codes and errors, and logits whose blend is the weight itself, with the error of
 * that blend (in `gradient`): what lies beyond the grid has one. */
static void load_row(adaround *a, const float *w, int64_t row) {
    qe_qtensor *t = a->t;
    qe_rounder r;
    qe_rounder_init(&r, &t->quant, qe_lut_of(t, row), a->j->o.range.full_range != 0);
    qe_grid g = {0};
    for (int64_t c = 0; c < a->k; c++) {
        if (c == 0 || (t->quant.group_k && c % t->quant.group_k == 0)) {
            qe_group group = qe_group_at(t, row, c);
            g = qe_grid_make(&r, &group);
        }
        int64_t column = t->order ? t->order[c] : c, at = row * a->k + column;
        float x = w[row * a->j->ldw + column], nearest;
        qe_neighbours n = qe_round_neighbours(&r, &g, x);
        a->rtn[at] = qe_round_one(&r, &g, x, &nearest);
        a->down[at] = n.code[0];
        a->up[at] = n.code[1];
        a->offset[at] = n.value[0] - x;
        a->gap[at] = n.value[1] - n.value[0];
        float share = a->gap[at] > 0.0f ? qe_clamp((x - n.value[0]) / a->gap[at], 0.001f, 0.999f) : 0.5f;
        float s = (share - QE_ADAROUND_SHIFT) / QE_ADAROUND_STRETCH;
        a->logit[at] = logf(s / (1.0f - s));
        a->delta[at] = nearest - x;
        a->gradient[at] = fmaf(share, a->gap[at], a->offset[at]);
    }
}

/* loss[r] = mean over all inputs of (x . delta_r)^2. */
static void measure(adaround *a, double *loss) {
    const qe_calibration *c = a->j->calibration;
    memset(loss, 0, (size_t)a->n * sizeof(double));
    for (int64_t at = 0; at < c->x_rows; at += a->batch) {
        int64_t rows = c->x_rows - at < a->batch ? c->x_rows - at : a->batch;
        qe_gemm(a->n, rows, a->k, (qe_view){a->delta, a->k, 1}, (qe_view){c->x + at * c->ldx, 1, c->ldx}, a->output,
                a->batch, false, 1.0f, a->scratch);
        for (int64_t r = 0; r < a->n; r++) {
            for (int64_t i = 0; i < rows; i++) {
                double y = (double)a->output[r * a->batch + i];
                loss[r] += y * y / (double)c->x_rows;
            }
        }
    }
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */
/* The inputs of step i: a window of consecutive rows from a seeded place, the same for every band. */
static int64_t window(const adaround *a, int32_t step) {
    int64_t places = a->j->calibration->x_rows - a->batch + 1;
    return places <= 1 ? 0 : (int64_t)(qe_uniform(a->j->o.seed, (uint64_t)step) * (double)places);
}

static void find_gradient(adaround *a, int32_t step) {
    const qe_calibration *c = a->j->calibration;
    const float *x = c->x + window(a, step) * c->ldx;
    qe_gemm(a->n, a->batch, a->k, (qe_view){a->delta, a->k, 1}, (qe_view){x, 1, c->ldx}, a->output, a->batch, false,
            1.0f, a->scratch);
    qe_gemm(a->n, a->k, a->batch, (qe_view){a->output, a->batch, 1}, (qe_view){x, c->ldx, 1}, a->gradient, a->k, false,
            1.0f, a->scratch);
}

static void move(adaround *a, int32_t step, int32_t steps) {
    float warm = 0.2f, progress = ((float)step / (float)steps - warm) / (1.0f - warm);
    float t = (float)step + 1.0f;
    qe_adaround_rates rates = {.beta = 2.0f + 9.0f * (1.0f + cosf(3.14159265f * progress)),
                               .pull = progress < 0.0f ? 0.0f : a->j->o.regularizer,
                               .first = a->j->o.learning_rate / (1.0f - powf(0.9f, t)),
                               .second = 1.0f / (1.0f - powf(0.999f, t))};
    for (int64_t r = 0; r < a->n; r++) {
        int64_t at = r * a->k;
        qe_adaround_row row = {a->gradient + at, a->gap + at, a->offset + at, a->logit + at,
                               a->m + at,        a->v + at,   a->delta + at};
        /* The loss in units of RTN's, so that one regularizer fits every layer. */
        rates.unit = 2.0f / (float)a->batch * a->unit[r] * (float)a->k;
        a->step(a->k, &rates, &row);
    }
}

/* ---- end --------------------------------------------------------------------------------------------------------- */
/* Codes of each row: learned ones where the whole sample's loss is below RTN's. */
static void finish(adaround *a) {
    qe_qtensor *t = a->t;
    double *loss = a->loss + a->n;
    for (int64_t r = 0; r < a->n; r++) {
        for (int64_t i = 0; i < a->k; i++) {
            int64_t at = r * a->k + i;
            a->delta[at] = a->offset[at] + (a->logit[at] >= 0.0f ? a->gap[at] : 0.0f);
        }
    }
    measure(a, loss);
    for (int64_t r = 0; r < a->n; r++) {
        uint8_t *codes = (uint8_t *)t->codes + r * a->k;
        for (int64_t c = 0; c < a->k; c++) {
            int64_t at = r * a->k + (t->order ? t->order[c] : c);
            codes[c] = !(loss[r] < a->loss[r]) ? a->rtn[at] : a->logit[at] >= 0.0f ? a->up[at] : a->down[at];
        }
    }
}

static void learn(adaround *a, const float *w) {
    for (int64_t r = 0; r < a->n; r++) load_row(a, w, r);
    measure(a, a->loss);
    for (int64_t r = 0; r < a->n; r++) a->unit[r] = a->loss[r] > 0.0 ? (float)(1.0 / a->loss[r]) : 0.0f;
    float *start = a->gradient;
    a->gradient = a->delta;
    a->delta = start;
    for (int32_t step = 0; step < a->j->o.iterations; step++) {
        find_gradient(a, step);
        move(a, step, a->j->o.iterations);
    }
    finish(a);
}

qe_status qe_adaround_prepare(qe_round_job *j, qe_error *err) {
    const qe_calibration *c = j->calibration;
    for (int64_t r = 0; r < c->x_rows; r++) {
        for (int64_t i = 0; i < j->t->k; i++) {
            if (!isfinite(c->x[r * c->ldx + i]))
                return qe_error_set(err, QE_E_VALUE, "input of row %lld, column %lld is not a finite number",
                                    (long long)r, (long long)i);
        }
    }
    return QE_OK;
}

qe_status qe_band_adaround(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    if (qe_code_is_float(band->quant.code)) return qe_band_rtn(j, w, band, err);
    if (band->quant.code == QE_CODE_LUT) QE_TRY(qe_tables_fit(j, w, band, err));
    else QE_TRY(qe_band_rtn(j, w, band, err));
    int64_t rows = j->calibration->x_rows, batch = rows < j->o.batch_rows ? rows : j->o.batch_rows;
    size_t each = (size_t)(band->n * band->k), floats = 7 * each + (size_t)(band->n * (batch + 1));
    size_t bytes = floats * sizeof(float) + 2 * (size_t)band->n * sizeof(double) + 3 * each + 128;
    char *memory = qe_scratch(bytes + qe_gemm_scratch_bytes(), err);
    if (!memory) return QE_E_NOMEM;
    adaround a = {.j = j, .t = band, .n = band->n, .k = band->k, .batch = batch, .scratch = memory};
    float *p = (float *)(memory + qe_gemm_scratch_bytes());
    float **arrays[] = {&a.gap, &a.offset, &a.logit, &a.m, &a.v, &a.delta, &a.gradient};
    for (int i = 0; i < 7; i++, p += each) *arrays[i] = p;
    a.output = p;
    a.unit = p + band->n * batch;
    p = a.unit + band->n;
    a.loss = (double *)(((uintptr_t)p + 63) & ~(uintptr_t)63);
    a.rtn = (uint8_t *)(a.loss + 2 * band->n);
    a.down = a.rtn + each;
    a.up = a.down + each;
    memset(a.m, 0, 2 * each * sizeof(float));
    for (int32_t i = 0; qe_adaround_step(i); i++) a.step = qe_adaround_step(i);
    learn(&a, w);
    free(memory);
    return QE_OK;
}
