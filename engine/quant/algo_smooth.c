/* algo_smooth.c -- column scales that move difficulty between inputs and weights: AWQ's by mean |x|, SmoothQuant's by
 * the largest |x| and |w|. Either exponent is found by the output error of the rounded weights on sampled inputs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/algo.h"
#include "quant/range_values.h"

enum { CHUNK = 96 };

typedef struct smooth {
    const qe_linears *l;
    const qe_calibration *c;
    const qe_quant *weight;
    const qe_act *input;             /* NULL: inputs are not rounded */
    qe_smooth_options o;
    int64_t rows_each;               /* 0: whole tensors */
    int32_t *first;                  /* [count + 1]: index of each linear's first task */
    float *s, *x;                    /* candidate scales; rounded inputs X / s, [x_rows][k] */
    double *errors;                  /* of each task */
    qe_status *failed;
} smooth;

/* ---- one candidate ----------------------------------------------------------------------------------------------- */
static qe_status rounded(const qe_quant *quant, const qe_range_options *range, float *w, int64_t n, int64_t k) {
    qe_qtensor t;
    size_t bytes = qe_qtensor_bytes(quant, n, k, 0);
    void *block = qe_scratch(bytes, NULL);
    if (!block) return QE_E_NOMEM;
    qe_status status = qe_qtensor_place(&t, quant, n, k, 0, block, bytes, NULL);
    qe_levels_job j = {w, k, &t, range && range->full_range};
    if (!status && range) status = qe_levels_search(&j, range, NULL, 0, k, NULL);
    else if (!status) qe_levels_plain(&j, 0, k);
    if (!status) {
        qe_codes_store(&j);
        status = qe_dequantize(&t, 0, n, w, k, NULL);
    }
    free(block);
    return status;
}

/* Rows [from, end) of linear i: squared error of the outputs on the sample. */
static qe_status chunk_error(const smooth *m, int32_t i, int64_t from, int64_t end, double *error) {
    int64_t k = m->l->k, n = end - from, tokens = m->c->x_rows;
    size_t bytes = ((size_t)(n * k) * sizeof(float) + 63) & ~(size_t)63;
    char *memory = qe_scratch(bytes + (size_t)(n * tokens) * sizeof(float) + 64 + qe_gemm_scratch_bytes(), NULL);
    if (!memory) return QE_E_NOMEM;
    float *w = (float *)memory, *y = (float *)(memory + bytes + qe_gemm_scratch_bytes());
    void *scratch = memory + bytes;
    const float *original = m->l->w[i] + from * m->l->ldw[i];
    for (int64_t r = 0; r < n; r++) {
        for (int64_t c = 0; c < k; c++) w[r * k + c] = original[r * m->l->ldw[i] + c] * m->s[c];
    }
    qe_status status = rounded(m->weight, &m->o.range, w, n, k);
    if (m->input) {
        qe_gemm(n, tokens, k, (qe_view){original, m->l->ldw[i], 1}, (qe_view){m->c->x, 1, m->c->ldx}, y, tokens, false,
                1.0f, scratch);
        qe_gemm(n, tokens, k, (qe_view){w, k, 1}, (qe_view){m->x, 1, k}, y, tokens, true, -1.0f, scratch);
    } else {
        for (int64_t r = 0; r < n; r++) {
            for (int64_t c = 0; c < k; c++) w[r * k + c] = original[r * m->l->ldw[i] + c] - w[r * k + c] / m->s[c];
        }
        qe_gemm(n, tokens, k, (qe_view){w, k, 1}, (qe_view){m->c->x, 1, m->c->ldx}, y, tokens, false, 1.0f, scratch);
    }
    double sum = 0.0;
    for (int64_t at = 0; at < n * tokens; at++) sum += (double)y[at] * (double)y[at];
    *error = sum;
    free(memory);
    return status;
}

/* Evenly spread chunks of rows, most_rows in all. */
static void smooth_task(void *arg, int32_t index, int32_t count) {
    smooth *m = arg;
    int32_t i = 0;
    (void)count;
    while (index >= m->first[i + 1]) i++;
    int64_t rows = m->l->n[i], from = 0, end = rows, chunks = m->first[i + 1] - m->first[i];
    if (m->rows_each) {
        int64_t all = (rows + m->rows_each - 1) / m->rows_each;
        from = (index - m->first[i]) * all / chunks * m->rows_each;
        end = from + m->rows_each < rows ? from + m->rows_each : rows;
    }
    m->failed[index] = chunk_error(m, i, from, end, &m->errors[index]);
}

static qe_status candidate_error(smooth *m, double *error, qe_error *err) {
    int32_t tasks = m->first[m->l->count];
    if (m->input) {
        for (int64_t r = 0; r < m->c->x_rows; r++) {
            for (int64_t c = 0; c < m->l->k; c++) m->x[r * m->l->k + c] = m->c->x[r * m->c->ldx + c] / m->s[c];
        }
        if (rounded(&m->input->quant, NULL, m->x, m->c->x_rows, m->l->k))
            return qe_error_set(err, QE_E_NOMEM, "no memory to round the sampled inputs");
    }
    qe_parallel(m->o.executor, smooth_task, m, tasks);
    *error = 0.0;
    for (int32_t i = 0; i < tasks; i++) {
        if (m->failed[i]) return qe_error_set(err, m->failed[i], "no memory for an error on the sample");
        *error += m->errors[i];
    }
    return QE_OK;
}

/* ---- scales ------------------------------------------------------------------------------------------------------ */
/* s = x^alpha / w^(1 - alpha), w = 1 for AWQ; divided by its geometric middle. Silent columns keep 1. */
static void make_scales(const smooth *m, const float *x, const float *w, float alpha, float *s) {
    double low = INFINITY, high = 0.0;
    for (int64_t c = 0; c < m->l->k; c++) {
        double v = 0.0;
        if (x[c] > 0.0f && w[c] > 0.0f)
            v = pow((double)x[c], (double)alpha) / (m->o.by_weights ? pow((double)w[c], 1.0 - (double)alpha) : 1.0);
        s[c] = (float)v;
        if (v > 0.0 && v < low) low = v;
        if (v > high) high = v;
    }
    double middle = high > 0.0 ? sqrt(low * high) : 1.0;
    for (int64_t c = 0; c < m->l->k; c++) {
        double v = (double)s[c] / middle;
        s[c] = v > 0.0 ? (float)(v < 1e-4 ? 1e-4 : v > 1e4 ? 1e4 : v) : 1.0f;
    }
}

static qe_status search_alpha(smooth *m, const float *x, const float *w, float *best_s, float *alpha, double *error,
                              qe_error *err) {
    int64_t k = m->l->k;
    for (int64_t c = 0; c < k; c++) m->s[c] = best_s[c] = 1.0f;
    QE_TRY(candidate_error(m, error, err));
    *alpha = 0.0f;
    bool fixed = m->o.alpha > 0.0f;
    for (int32_t i = 0; i <= (fixed ? 0 : m->o.steps); i++) {
        float a = fixed ? m->o.alpha : (float)i / (float)m->o.steps;
        double e;
        make_scales(m, x, w, a, m->s);
        QE_TRY(candidate_error(m, &e, err));
        if (!fixed && !(e < *error)) continue;
        *error = e;
        *alpha = a;
        memcpy(best_s, m->s, (size_t)k * sizeof(float));
    }
    return QE_OK;
}

/* ---- the call ---------------------------------------------------------------------------------------------------- */
static qe_status check_linears(const qe_linears *l, const qe_calibration *c, qe_error *err) {
    if (!l || l->count < 1 || !l->w || !l->n || !l->ldw || l->k < 1)
        return qe_error_set(err, QE_E_ARGUMENT, "no linears to smooth");
    if (!c || !c->x || c->x_rows < 1) return qe_error_set(err, QE_E_STATE, "no inputs: the calibration is empty");
    if (c->ldx < l->k)
        return qe_error_set(err, QE_E_ARGUMENT, "inputs have ldx %lld for k %lld", (long long)c->ldx, (long long)l->k);
    for (int32_t i = 0; i < l->count; i++) {
        if (!l->w[i] || l->n[i] < 1 || l->ldw[i] < l->k)
            return qe_error_set(err, QE_E_ARGUMENT, "linear %d has %lld rows, ldw %lld for k %lld", i,
                                (long long)l->n[i], (long long)l->ldw[i], (long long)l->k);
        QE_TRY(qe_finite_check(l->w[i], l->ldw[i], 0, l->n[i], l->k, err));
    }
    for (int64_t r = 0; r < c->x_rows; r++) {
        for (int64_t i = 0; i < l->k; i++) {
            if (!isfinite(c->x[r * c->ldx + i]))
                return qe_error_set(err, QE_E_VALUE, "input of row %lld, column %lld is not a finite number",
                                    (long long)r, (long long)i);
        }
    }
    return QE_OK;
}

static qe_status read_smooth(const qe_smooth_options *given, qe_smooth_options *o, qe_error *err) {
    memset(o, 0, sizeof *o);
    if (given) {
        if (given->struct_size != sizeof *o)
            return qe_error_set(err, QE_E_ARGUMENT, "smooth options of %zu bytes, %zu are known", given->struct_size,
                                sizeof *o);
        *o = *given;
    }
    QE_TRY(qe_range_options_read(&o->range, &o->range, err));
    if (o->range.method == QE_RANGE_OUTPUT) o->range.method = QE_RANGE_MINMAX;   /* cut afterwards */
    if (!o->steps) o->steps = 20;
    if (!o->most_rows) o->most_rows = 512;
    if (o->steps < 1 || o->most_rows < 1 || !(o->alpha >= 0.0f && o->alpha <= 1.0f))
        return qe_error_set(err, QE_E_ARGUMENT, "smooth options: steps %d, most_rows %d, alpha %g of 0 to 1", o->steps,
                            o->most_rows, (double)o->alpha);
    return QE_OK;
}

/* Everything allocated here is freed by the caller through m. */
static qe_status plan(smooth *m, float **columns, qe_error *err) {
    const qe_linears *l = m->l;
    int64_t band = qe_quant_band_rows(m->weight), k = l->k;
    m->rows_each = !band ? 0 : band >= CHUNK ? band : CHUNK / band * band;
    m->first = calloc((size_t)l->count + 1, sizeof *m->first);
    m->s = qe_scratch((size_t)k * sizeof(float), err);
    *columns = qe_scratch((size_t)k * 2 * sizeof(float), err);
    if (m->input) m->x = qe_scratch((size_t)(m->c->x_rows * k) * sizeof(float), err);
    if (!m->first || !m->s || !*columns || (m->input && !m->x))
        return qe_error_set(err, QE_E_NOMEM, "no memory for column scales");
    for (int32_t i = 0; i < l->count; i++) {
        int64_t all = m->rows_each ? (l->n[i] + m->rows_each - 1) / m->rows_each : 1;
        int64_t some = m->rows_each ? (m->o.most_rows + m->rows_each - 1) / m->rows_each : 1;
        m->first[i + 1] = m->first[i] + (int32_t)(all < some ? all : some);
    }
    int32_t tasks = m->first[l->count];
    m->errors = calloc((size_t)tasks, sizeof *m->errors);
    m->failed = calloc((size_t)tasks, sizeof *m->failed);
    if (!m->errors || !m->failed) return qe_error_set(err, QE_E_NOMEM, "no memory for %d errors", tasks);
    return QE_OK;
}

qe_status qe_smooth_search(const qe_linears *linears, const qe_calibration *calibration, const float *absmax,
                           const double *sum_abs, int64_t tokens, const qe_quant *weight, const qe_act *input,
                           const qe_smooth_options *options, float *s, float *alpha, double *error, qe_error *err) {
    smooth m = {.l = linears, .c = calibration, .weight = weight};
    float *columns = NULL, chosen = 0.0f;
    double found = 0.0;
    if (!weight || !s) return qe_error_set(err, QE_E_ARGUMENT, "weight or s is NULL");
    QE_TRY(read_smooth(options, &m.o, err));
    QE_TRY(check_linears(linears, calibration, err));
    if (m.o.by_weights ? !absmax : !sum_abs || tokens < 1)
        return qe_error_set(err, QE_E_ARGUMENT, "no column statistics, or %lld tokens", (long long)tokens);
    if (weight->code == QE_CODE_LUT)
        return qe_error_set(err, QE_E_UNSUPPORTED, "column scales are searched for integers and fixed tables");
    if (input && input->mode != QE_ACT_FLOAT) m.input = input;
    qe_status status = plan(&m, &columns, err);
    if (!status) {
        int64_t k = linears->k;
        float *x = columns, *w = columns + k;
        for (int64_t c = 0; c < k; c++) {
            x[c] = m.o.by_weights ? absmax[c] : (float)(sum_abs[c] / (double)tokens);
            w[c] = 0.0f;
            for (int32_t i = 0; i < linears->count; i++) {
                for (int64_t r = 0; r < linears->n[i]; r++) {
                    float a = fabsf(linears->w[i][r * linears->ldw[i] + c]);
                    w[c] = a > w[c] ? a : w[c];
                }
            }
        }
        status = search_alpha(&m, x, w, s, &chosen, &found, err);
    }
    if (!status && alpha) *alpha = chosen;
    if (!status && error) {
        double outputs = 0.0;
        for (int32_t i = 0; i < linears->count; i++) {
            int64_t rows = (m.first[i + 1] - m.first[i]) * m.rows_each;
            outputs += (double)(m.rows_each && rows < linears->n[i] ? rows : linears->n[i]);
        }
        *error = found / (outputs * (double)calibration->x_rows);
    }
    free(m.first);
    free(m.s);
    free(m.x);
    free(m.errors);
    free(m.failed);
    free(columns);
    return status;
}

void qe_columns_scale(float *w, int64_t n, int64_t k, int64_t ldw, const float *s, int32_t divide) {
    for (int64_t r = 0; r < n; r++) {
        for (int64_t c = 0; c < k; c++) w[r * ldw + c] = divide ? w[r * ldw + c] / s[c] : w[r * ldw + c] * s[c];
    }
}

qe_status qe_columns_add(float *absmax, double *sum_abs, int64_t k, const float *x, int64_t rows, int64_t ldx,
                         qe_error *err) {
    if (!x || k < 1 || rows < 0 || ldx < k)
        return qe_error_set(err, QE_E_ARGUMENT, "x is NULL, or %lld x %lld inputs, ldx %lld", (long long)rows,
                            (long long)k, (long long)ldx);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < k; c++) {
            float a = fabsf(x[r * ldx + c]);
            if (!isfinite(a))
                return qe_error_set(err, QE_E_VALUE, "input of row %lld, column %lld is not a finite number",
                                    (long long)r, (long long)c);
            if (absmax && a > absmax[c]) absmax[c] = a;
            if (sum_abs) sum_abs[c] += (double)a;
        }
    }
    return QE_OK;
}
