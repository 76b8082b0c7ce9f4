/* algo_gptq.c -- second-order rounding, column by column: each error is carried into the columns that follow, weighted
 * by a factor of the Hessian. This is LDLQ: with H = (U + I) D (U + I)^T, U strictly upper, the target of column j is
 * w_j + sum over i < j of (w_i - q_i) U_ij, which equals GPTQ's updates with the inverse Hessian (arXiv 2307.13304,
 * theorem 6) and needs one Cholesky factor in place of two and an inverse. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/algo.h"

/* ---- the factor -------------------------------------------------------------------------------------------------- */
static int64_t caller_column(const qe_round_job *j, int64_t step) {
    int64_t c = j->work_order ? j->work_order[step] : step;
    return j->t->order ? j->t->order[c] : c;
}

typedef struct ranked {
    double diagonal;
    uint32_t column;
} ranked;

static int by_falling_diagonal(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->diagonal != y->diagonal) return x->diagonal > y->diagonal ? -1 : 1;
    return x->column < y->column ? -1 : x->column > y->column;
}

static qe_status rank_columns(const qe_round_job *j, uint32_t *out, bool canonical, qe_error *err) {
    int64_t k = j->t->k;
    ranked *r = qe_scratch((size_t)k * sizeof *r, err);
    if (!r) return QE_E_NOMEM;
    for (int64_t c = 0; c < k; c++) {
        int64_t at = canonical && j->t->order ? j->t->order[c] : c;
        r[c] = (ranked){j->calibration->hessian[at * k + at], (uint32_t)c};
    }
    qsort(r, (size_t)k, sizeof *r, by_falling_diagonal);
    for (int64_t c = 0; c < k; c++) out[c] = r[c].column;
    free(r);
    return QE_OK;
}

/* The Hessian scaled to a diagonal of 1 and with rows and columns turned around, so that the lower Cholesky factor is
 * the upper one of the right order, reversed. `scale` gets 1 / sqrt(diagonal). */
static void load_reversed(const qe_round_job *j, float *a, double *scale, double damping) {
    int64_t k = j->t->k;
    const double *h = j->calibration->hessian;
    double mean = 0.0;
    for (int64_t i = 0; i < k; i++) mean += h[i * k + i] / (double)k;
    for (int64_t i = 0; i < k; i++) {
        int64_t c = caller_column(j, i);
        scale[i] = 1.0 / sqrt(h[c * k + c] + damping * mean);
    }
    for (int64_t i = 0; i < k; i++) {
        int64_t ci = caller_column(j, k - 1 - i);
        for (int64_t l = 0; l < i; l++) {
            int64_t cl = caller_column(j, k - 1 - l);
            double v = ci > cl ? h[ci * k + cl] : h[cl * k + ci];
            a[i * k + l] = (float)(v * scale[k - 1 - i] * scale[k - 1 - l]);
        }
        a[i * k + i] = 1.0f;
    }
}

/* The reversed lower factor becomes U + I in place: reading the array backwards turns both indices around. */
static void unit_upper(float *a, int64_t k, const double *scale) {
    for (int64_t i = 0, j = k * k - 1; i < j; i++, j--) {
        float swap = a[i];
        a[i] = a[j];
        a[j] = swap;
    }
    for (int64_t i = 0; i < k; i++) {
        for (int64_t c = i + 1; c < k; c++)
            a[i * k + c] = (float)((double)a[i * k + c] * scale[c] / ((double)a[c * k + c] * scale[i]));
    }
}

qe_status qe_gptq_prepare(qe_round_job *j, qe_error *err) {
    qe_qtensor *t = j->t;
    int64_t k = t->k;
    if (qe_code_is_float(t->quant.code)) return QE_OK;
    if (j->o.order == QE_ORDER_GROUPS) QE_TRY(rank_columns(j, t->order, false, err));
    if (j->o.order == QE_ORDER_STATIC) {
        j->work_order = qe_scratch((size_t)k * sizeof(uint32_t), err);
        if (!j->work_order) return QE_E_NOMEM;
        QE_TRY(rank_columns(j, j->work_order, true, err));
    }
    j->factor = qe_scratch((size_t)k * (size_t)k * sizeof(float), err);
    j->shared = qe_scratch((size_t)k * sizeof(float), err);
    double *scale = qe_scratch((size_t)k * sizeof(double), err);
    if (!j->factor || !j->shared || !scale) {
        free(scale);
        return QE_E_NOMEM;
    }
    for (int64_t c = 0; c < k; c++) j->shared[c] = j->importance[t->order ? t->order[c] : c];
    /* Few tokens leave a Hessian of low rank; more damping always mends that. */
    double damping = (double)j->o.damping;
    qe_status status;
    int tries = 0;
    do {
        load_reversed(j, j->factor, scale, damping);
        status = qe_cholesky(j->factor, k, j->o.executor, err);
        damping *= 10.0;
    } while (status == QE_E_RANGE && ++tries < 4);
    if (!status) unit_upper(j->factor, k, scale);
    free(scale);
    return status;
}

/* ---- a band of rows ---------------------------------------------------------------------------------------------- */
typedef struct gptq_band {
    const qe_round_job *j;
    qe_qtensor *t;
    float *original, *target, *error;     /* [n][k], columns in the order of work */
    void *scratch;
    qe_rounder rounder;
    const float *lut;                     /* the table the rounder holds */
} gptq_band;

/* One row, columns [from, end): round, and carry each error into the columns before `block_end`. */
static void round_row(gptq_band *b, int64_t row, int64_t from, int64_t end, int64_t block_end) {
    qe_qtensor *t = b->t;
    const uint32_t *work_order = b->j->work_order;
    int64_t k = t->k, group = -1, extent = t->quant.group_k ? t->quant.group_k : k;
    float *target = b->target + row * k, *error = b->error + row * k;
    const float *original = b->original + row * k;
    uint8_t *codes = (uint8_t *)t->codes + row * k;
    const float *lut = qe_lut_of(t, row);
    qe_grid g = {0};
    if (lut != b->lut) {
        qe_rounder_init(&b->rounder, &t->quant, lut, b->j->o.range.full_range != 0);
        b->lut = lut;
    }
    for (int64_t i = from; i < end; i++) {
        int64_t c = work_order ? work_order[i] : i;
        if (c / extent != group) {
            qe_group levels = qe_group_at(t, row, c);
            g = qe_grid_make(&b->rounder, &levels);
            group = c / extent;
        }
        float value;
        codes[c] = qe_round_one(&b->rounder, &g, target[i], &value);
        float e = qe_sub(original[i], value);
        const float *u = b->j->factor + i * k;
        error[i] = e;
        for (int64_t l = i + 1; l < block_end; l++) target[l] += e * u[l];
    }
}

static void load_band(gptq_band *b, const float *w) {
    int64_t k = b->t->k;
    for (int64_t c = 0; c < k; c++) {
        int64_t from = caller_column(b->j, c);
        for (int64_t row = 0; row < b->t->n; row++) b->original[row * k + c] = w[row * b->j->ldw + from];
    }
    memcpy(b->target, b->original, (size_t)(b->t->n * k) * sizeof(float));
}

static qe_status run_band(gptq_band *b, int64_t unit, bool fixed, qe_error *err) {
    enum { BLOCK = 128 };
    int64_t n = b->t->n, k = b->t->k, block = fixed ? BLOCK : (BLOCK + unit - 1) / unit * unit;
    qe_qtensor view = *b->t;
    view.order = NULL;
    qe_levels_job levels = {b->target, k, &view, b->j->o.range.full_range != 0};
    for (int64_t from = 0; from < k; from += block) {
        int64_t end = from + block < k ? from + block : k;
        if (from)
            qe_gemm(n, end - from, from, (qe_view){b->error, k, 1}, (qe_view){b->j->factor + from, k, 1},
                    b->target + from, k, true, 1.0f, b->scratch);
        for (int64_t at = from; at < end;) {
            int64_t stop = fixed ? end : at + unit < end ? at + unit : end;
            if (!fixed) QE_TRY(qe_levels_search(&levels, &b->j->o.range, b->j->shared, at, stop, err));
            for (int64_t row = 0; row < n; row++) round_row(b, row, at, stop, end);
            at = stop;
        }
    }
    return QE_OK;
}

qe_status qe_band_gptq(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    const qe_quant *q = &band->quant;
    qe_levels_job whole = {w, j->ldw, band, j->o.range.full_range != 0};
    if (qe_code_is_float(q->code)) return qe_band_rtn(j, w, band, err);
    if (q->code == QE_CODE_LUT) QE_TRY(qe_tables_fit(j, w, band, err));
    int64_t unit = qe_levels_unit(q);
    /* Levels of whole rows, and those of a foreign order of work, are chosen before the first column. */
    bool fixed = !unit || unit >= band->k || j->work_order || q->code == QE_CODE_LUT;
    if (fixed && q->code != QE_CODE_LUT)
        QE_TRY(qe_levels_search(&whole, &j->o.range, j->importance, 0, band->k, err));
    size_t each = (size_t)(band->n * band->k) * sizeof(float);
    char *memory = qe_scratch(3 * each + 64 + qe_gemm_scratch_bytes(), err);
    if (!memory) return QE_E_NOMEM;
    gptq_band b = {.j = j, .t = band, .original = (float *)memory, .target = (float *)(memory + each),
                   .error = (float *)(memory + 2 * each)};
    b.scratch = memory + ((3 * each + 63) & ~(size_t)63);
    qe_rounder_init(&b.rounder, q, b.lut = qe_lut_of(band, 0), whole.full_range);
    load_band(&b, w);
    qe_status status = run_band(&b, unit, fixed, err);
    free(memory);
    return status;
}
