/* report.c -- what quantization did to one layer, in numbers and as a line of JSON. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/algo.h"

/* ---- weights ----------------------------------------------------------------------------------------------------- */
/* What nearest rounding guarantees for x under these levels: half of the widest gap, or the way to the nearest end. */
static double guaranteed(const qe_rounder *r, const qe_grid *g, float x) {
    double scale = fabs((double)g->scale), gap = scale, a, b;
    if (r->table) {
        gap = 0.0;
        for (int i = 1; i < r->count; i++) {
            double step = ((double)r->sorted[i] - (double)r->sorted[i - 1]) * scale;
            gap = step > gap ? step : gap;
        }
        a = (double)g->scale * (double)r->sorted[0];
        b = (double)g->scale * (double)r->sorted[r->count - 1];
    } else {
        a = (double)g->scale * ((double)g->low - (double)g->zero) + (double)g->bias;
        b = (double)g->scale * ((double)g->high - (double)g->zero) + (double)g->bias;
    }
    double low = a < b ? a : b, high = a < b ? b : a, v = (double)x;
    double beyond = v < low ? low - v : v > high ? v - high : 0.0;
    double bound = beyond > gap * 0.5 ? beyond : gap * 0.5;
    /* Three roundings of fp32 in the value itself. */
    double top = fabs(low) > fabs(high) ? fabs(low) : fabs(high);
    return bound + 4.0 * 0x1p-24 * (top + fabs(v));
}

/* Half a unit in the last place, and half the smallest number. */
static double float_bound(int32_t code, double x) {
    if (code == QE_CODE_F16) return fabs(x) > 65504.0 ? INFINITY : fabs(x) * 0x1p-11 + 0x1p-25;
    return code == QE_CODE_BF16 ? fabs(x) * 0x1p-8 + 0x1p-134 : 0.0;
}

static void measure_row(const float *w, const float *v, const qe_qtensor *t, int64_t row, double sums[2],
                        qe_layer_report *out) {
    bool floats = qe_code_is_float(t->quant.code);
    qe_rounder r;
    qe_grid g = {0};
    if (!floats) qe_rounder_init(&r, &t->quant, qe_lut_of(t, row), !(t->facts & QE_FACT_NO_MIN));
    for (int64_t c = 0; c < t->k; c++) {
        int64_t at = t->order ? t->order[c] : c;
        double x = (double)w[at], e = fabs(x - (double)v[at]);
        if (!floats && (c == 0 || (t->quant.group_k && c % t->quant.group_k == 0))) {
            qe_group group = qe_group_at(t, row, c);
            g = qe_grid_make(&r, &group);
        }
        double bound = floats ? float_bound(t->quant.code, x) : guaranteed(&r, &g, w[at]);
        if (bound > out->error_bound) out->error_bound = bound;
        if (e > out->max_error) out->max_error = e;
        out->mean_error += e;
        sums[0] += x * x;
        sums[1] += e * e;
    }
}

/* ---- outputs ----------------------------------------------------------------------------------------------------- */
/* Sums over outputs of y y, y' y', y y' and (y - y')^2. */
typedef struct outputs {
    double yy, vv, yv, ee;
} outputs;

static void outputs_of_sample(const qe_calibration *c, int64_t k, const float *w, const float *v, int64_t n, float *y,
                              void *scratch, outputs *o) {
    enum { TOKENS = 64 };
    float *z = y + n * TOKENS;
    for (int64_t at = 0; at < c->x_rows; at += TOKENS) {
        int64_t rows = c->x_rows - at < TOKENS ? c->x_rows - at : TOKENS;
        qe_view x = {c->x + at * c->ldx, 1, c->ldx};
        qe_gemm(n, rows, k, (qe_view){w, k, 1}, x, y, TOKENS, false, 1.0f, scratch);
        qe_gemm(n, rows, k, (qe_view){v, k, 1}, x, z, TOKENS, false, 1.0f, scratch);
        for (int64_t r = 0; r < n; r++) {
            for (int64_t i = 0; i < rows; i++) {
                double a = (double)y[r * TOKENS + i], b = (double)z[r * TOKENS + i];
                o->yy += a * a;
                o->vv += b * b;
                o->yv += a * b;
                o->ee += (a - b) * (a - b);
            }
        }
    }
}

static void outputs_of_hessian(const double *h, int64_t k, const float *w, const float *v, int64_t n, outputs *o) {
    for (int64_t r = 0; r < n; r++) {
        const float *a = w + r * k, *b = v + r * k;
        for (int64_t i = 0; i < k; i++) {
            double hw = 0.0, hv = 0.0;
            for (int64_t l = 0; l < i; l++) {
                hw += h[i * k + l] * (double)a[l];
                hv += h[i * k + l] * (double)b[l];
            }
            double x = (double)a[i], y = (double)b[i], d = h[i * k + i], e = x - y;
            o->yy += x * (2.0 * hw + d * x);
            o->vv += y * (2.0 * hv + d * y);
            o->yv += x * hv + y * hw + d * x * y;
            o->ee += e * (2.0 * (hw - hv) + d * e);
        }
    }
}

static double decibels(double signal, double noise) { return noise > 0.0 ? 10.0 * log10(signal / noise) : INFINITY; }

/* ---- the call ---------------------------------------------------------------------------------------------------- */
enum { ROWS = 64 };

/* What one block of rows adds; blocks are added up in order, whoever measured them. */
typedef struct block_sums {
    double weights[2];           /* w w, (w - w')^2 */
    qe_layer_report errors;      /* max_error, mean_error, error_bound */
    outputs o;
    qe_error error;
} block_sums;

typedef struct report_job {
    const float *w;
    int64_t ldw;
    const qe_qtensor *t;
    const qe_calibration *c;
    bool sample, hessian;
    block_sums *blocks;
} report_job;

static void measure_block(void *arg, int32_t index, int32_t count) {
    const report_job *j = arg;
    const qe_qtensor *t = j->t;
    block_sums *b = &j->blocks[index];
    int64_t k = t->k, row = (int64_t)index * ROWS, rows = t->n - row < ROWS ? t->n - row : ROWS;
    (void)count;
    size_t each = ((size_t)(ROWS * k) * sizeof(float) + 63) & ~(size_t)63;
    char *memory = qe_scratch(2 * each + qe_gemm_scratch_bytes() + 2 * ROWS * 64 * sizeof(float), &b->error);
    if (!memory) return;
    float *plain = (float *)memory, *rounded = (float *)(memory + each);
    void *scratch = memory + 2 * each;
    float *y = (float *)(memory + 2 * each + qe_gemm_scratch_bytes());
    bool ok = !qe_dequantize(t, row, rows, rounded, k, &b->error);
    for (int64_t r = 0; r < rows && ok; r++) {
        memcpy(plain + r * k, j->w + (row + r) * j->ldw, (size_t)k * sizeof(float));
        measure_row(plain + r * k, rounded + r * k, t, row + r, b->weights, &b->errors);
    }
    if (j->sample && ok) outputs_of_sample(j->c, k, plain, rounded, rows, y, scratch, &b->o);
    if (j->hessian && ok) outputs_of_hessian(j->c->hessian, k, plain, rounded, rows, &b->o);
    free(memory);
}

static qe_status add_blocks(const block_sums *blocks, int32_t count, block_sums *all, qe_error *err) {
    for (int32_t i = 0; i < count; i++) {
        const block_sums *b = &blocks[i];
        if (b->error.status) {
            if (err) *err = b->error;
            return (qe_status)b->error.status;
        }
        all->weights[0] += b->weights[0], all->weights[1] += b->weights[1];
        if (b->errors.max_error > all->errors.max_error) all->errors.max_error = b->errors.max_error;
        if (b->errors.error_bound > all->errors.error_bound) all->errors.error_bound = b->errors.error_bound;
        all->errors.mean_error += b->errors.mean_error;
        all->o.yy += b->o.yy, all->o.vv += b->o.vv, all->o.yv += b->o.yv, all->o.ee += b->o.ee;
    }
    return QE_OK;
}

qe_status qe_report_measure(const float *w, int64_t ldw, const qe_qtensor *t, const qe_calibration *c,
                            const qe_executor *executor, qe_layer_report *out, qe_error *err) {
    if (!w || !t || !out || ldw < t->k) return qe_error_set(err, QE_E_ARGUMENT, "w, tensor or out is missing");
    if (c && c->x && c->x_rows > 0 && c->ldx < t->k)
        return qe_error_set(err, QE_E_ARGUMENT, "inputs have ldx %lld for k %lld", (long long)c->ldx, (long long)t->k);
    QE_TRY(qe_finite_check(w, ldw, t->first_row, t->n, t->k, err));
    int32_t count = (int32_t)((t->n + ROWS - 1) / ROWS);
    block_sums all = {0}, *blocks = calloc((size_t)count + 1, sizeof *blocks);
    if (!blocks) return qe_error_set(err, QE_E_NOMEM, "no memory to measure %lld rows", (long long)t->n);
    report_job j = {w, ldw, t, c, c && c->x && c->x_rows > 0, false, blocks};
    j.hessian = c && c->hessian && !j.sample;
    qe_parallel(executor, measure_block, &j, count);
    qe_status status = add_blocks(blocks, count, &all, err);
    free(blocks);
    QE_TRY(status);
    out->n = t->n;
    out->k = t->k;
    out->bits_per_weight = qe_quant_bits_per_weight(&t->quant, t->n, t->k);
    (void)qe_quant_name(&t->quant, out->scheme, sizeof out->scheme);
    out->max_error = all.errors.max_error;
    out->error_bound = all.errors.error_bound;
    out->mean_error = all.errors.mean_error / (t->n && t->k ? (double)t->n * (double)t->k : 1.0);
    out->sqnr_db = decibels(all.weights[0], all.weights[1]);
    bool outputs = j.sample || j.hessian;
    out->output_sqnr_db = outputs ? decibels(all.o.yy, all.o.ee) : NAN;
    out->output_cosine = outputs ? all.o.yv / sqrt(all.o.yy * all.o.vv) : NAN;
    return QE_OK;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */
static void put_text(char *text, size_t bytes, size_t *at, const char *piece) {
    size_t length = strlen(piece);
    for (size_t i = 0; i < length; i++, (*at)++) {
        if (*at + 1 < bytes) text[*at] = piece[i];
    }
    if (bytes) text[*at < bytes ? *at : bytes - 1] = 0;
}

static void put_string(char *text, size_t bytes, size_t *at, const char *key, const char *value) {
    char piece[16];
    put_text(text, bytes, at, key);
    put_text(text, bytes, at, "\"");
    for (const char *p = value; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\') snprintf(piece, sizeof piece, "\\%c", c);
        else if (c < 0x20) snprintf(piece, sizeof piece, "\\u%04x", c);
        else snprintf(piece, sizeof piece, "%c", c);
        put_text(text, bytes, at, piece);
    }
    put_text(text, bytes, at, "\"");
}

static void put_number(char *text, size_t bytes, size_t *at, const char *key, double value) {
    char piece[64];
    if (isfinite(value)) snprintf(piece, sizeof piece, "%.9g", value);
    else snprintf(piece, sizeof piece, "null");
    for (char *p = piece; *p; p++) {
        if (*p == ',') *p = '.';                           /* the locale's point */
    }
    put_text(text, bytes, at, key);
    put_text(text, bytes, at, piece);
}

size_t qe_report_json(const qe_layer_report *r, char *text, size_t bytes) {
    size_t at = 0;
    put_string(text, bytes, &at, "{\"name\":", r->name);
    put_string(text, bytes, &at, ",\"scheme\":", r->scheme);
    put_string(text, bytes, &at, ",\"method\":", r->method);
    put_number(text, bytes, &at, ",\"n\":", (double)r->n);
    put_number(text, bytes, &at, ",\"k\":", (double)r->k);
    put_number(text, bytes, &at, ",\"bits_per_weight\":", r->bits_per_weight);
    put_number(text, bytes, &at, ",\"sqnr_db\":", r->sqnr_db);
    put_number(text, bytes, &at, ",\"max_error\":", r->max_error);
    put_number(text, bytes, &at, ",\"mean_error\":", r->mean_error);
    put_number(text, bytes, &at, ",\"error_bound\":", r->error_bound);
    put_number(text, bytes, &at, ",\"output_sqnr_db\":", r->output_sqnr_db);
    put_number(text, bytes, &at, ",\"output_cosine\":", r->output_cosine);
    put_text(text, bytes, &at, "}");
    return at;
}
