/* algo_round.c -- qe_round_weights(): options, bands over threads, and the methods without calibration. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/algo.h"
#include "quant/range_values.h"

static const struct {
    int32_t value;
    const char *text;
    uint32_t needs;
} method_names[] = {
#define QE_X(name, value, text, needs, what) {value, text, needs},
    QE_METHOD_LIST(QE_X)
#undef QE_X
};
enum { METHOD_COUNT = sizeof method_names / sizeof method_names[0] };

static int method_index(int32_t method) {
    for (int i = 0; i < METHOD_COUNT; i++) {
        if (method_names[i].value == method) return i;
    }
    return -1;
}

const char *qe_method_name(int32_t method) {
    int i = method_index(method);
    return i < 0 ? NULL : method_names[i].text;
}

int32_t qe_method_find(const char *text) {
    for (int i = 0; text && i < METHOD_COUNT; i++) {
        if (!strcmp(method_names[i].text, text)) return method_names[i].value;
    }
    return -1;
}

uint32_t qe_method_needs(int32_t method) {
    int i = method_index(method);
    return i < 0 ? 0 : method_names[i].needs;
}

/* ---- methods without calibration --------------------------------------------------------------------------------- */
static qe_levels_job levels_job(const qe_round_job *j, const float *w, qe_qtensor *band) {
    return (qe_levels_job){w, j->ldw, band, j->o.range.full_range != 0};
}

qe_status qe_band_rtn(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    if (j->o.range.method == QE_RANGE_OUTPUT) return qe_band_clipped(j, w, band, err);
    qe_levels_job l = levels_job(j, w, band);
    QE_TRY(qe_levels_search(&l, &j->o.range, j->importance, 0, band->k, err));
    qe_codes_store(&l);
    return QE_OK;
}

/* A ternary group: its scale, and either codes by a threshold or by rounding. */
typedef struct ternary {
    const qe_levels_job *l;
    bool absmean;
} ternary;

static float at_of(const qe_levels_job *l, int64_t row, int64_t c) {
    return l->w[row * l->ldw + (l->t->order ? l->t->order[c] : c)];
}

static qe_status ternary_group(void *arg, const qe_rect *r, int64_t g, int64_t s) {
    static const int still[2] = {0, 0};
    const ternary *n = arg;
    qe_span x = qe_rect_scan(n->l, r);
    float threshold = qe_mul(0.7f, x.mean);
    double sum = 0.0;
    int64_t count = 0;
    for (int64_t row = r->row; row < r->row_end; row++) {
        for (int64_t c = r->column; c < r->column_end; c++) {
            float a = fabsf(at_of(n->l, row, c));
            if (!(a > threshold)) continue;
            sum += (double)a;
            count++;
        }
    }
    float scale = n->absmean ? x.mean : count ? (float)(sum / (double)count) : 0.0f;
    qe_want want = {scale > 0.0f ? scale : 1.0f, x.low, x.mean};
    qe_group_store(n->l->t, r, g, s, &want, still);
    if (n->absmean) return QE_OK;
    for (int64_t row = r->row; row < r->row_end; row++) {
        uint8_t *codes = (uint8_t *)n->l->t->codes + row * n->l->t->k;
        for (int64_t c = r->column; c < r->column_end; c++) {
            float v = at_of(n->l, row, c);
            codes[c] = (uint8_t)(v > threshold ? 2 : v < -threshold ? 0 : 1);
        }
    }
    return QE_OK;
}

static qe_status ternary_outer(void *arg, const qe_rect *r, int64_t s) {
    const ternary *n = arg;
    return qe_group_each(n->l->t, r, s, ternary_group, arg);
}

static qe_status band_ternary(qe_round_job *j, const float *w, qe_qtensor *band, bool absmean, qe_error *err) {
    const qe_quant *q = &band->quant;
    if (q->code != QE_CODE_INT || q->bits != 2 || q->zero != QE_ZERO_CONST || q->zero_const != 1 ||
        q->super != QE_NUM_ONE || q->scale == QE_NUM_ONE)
        return qe_error_set(err, QE_E_UNSUPPORTED, "ternary methods need int2 with zero 1 and one level of scales");
    qe_levels_job l = levels_job(j, w, band);
    ternary n = {&l, absmean};
    QE_TRY(qe_super_each(band, 0, band->k, ternary_outer, &n));
    if (absmean) qe_codes_store(&l);
    return QE_OK;
}

qe_status qe_band_twn(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    return band_ternary(j, w, band, false, err);
}

qe_status qe_band_absmean(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    return band_ternary(j, w, band, true, err);
}

/* Rows that share one table: {-mean below, 0, mean above, 0} around the threshold of TWN. */
static void ttq_rows(const qe_levels_job *l, int64_t from, int64_t end) {
    double sum[2] = {0.0, 0.0}, total = 0.0;
    int64_t count[2] = {0, 0}, k = l->t->k;
    for (int64_t i = from * k; i < end * k; i++) total += fabs((double)at_of(l, i / k, i % k));
    float threshold = (float)(0.7 * total / (double)((end - from) * k));
    for (int64_t i = from * k; i < end * k; i++) {
        float v = at_of(l, i / k, i % k);
        int side = v > threshold ? 1 : v < -threshold ? 0 : -1;
        ((uint8_t *)l->t->codes)[i] = (uint8_t)(side + 1 ? 2 * side : 1);
        if (side < 0) continue;
        sum[side] += fabs((double)v);
        count[side]++;
    }
    float *table = l->t->lut + (qe_group_row(l->t->first_row, from, l->t->quant.lut_n) << 2);
    table[0] = count[0] ? (float)(-sum[0] / (double)count[0]) : 0.0f;
    table[2] = count[1] ? (float)(sum[1] / (double)count[1]) : 0.0f;
    table[1] = table[3] = 0.0f;
}

qe_status qe_band_ttq(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    const qe_quant *q = &band->quant;
    if (q->code != QE_CODE_LUT || q->bits != 2 || qe_has_levels(q))
        return qe_error_set(err, QE_E_UNSUPPORTED, "TTQ needs a table of 2 bits without scales, lut2:t=1");
    qe_levels_job l = levels_job(j, w, band);
    int64_t step = q->lut_n ? q->lut_n : band->n;
    for (int64_t row = 0; row < band->n && band->k; row += step)
        ttq_rows(&l, row, row + step < band->n ? row + step : band->n);
    return QE_OK;
}

qe_status qe_band_stochastic(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    if (band->quant.code != QE_CODE_SIGN)
        return qe_error_set(err, QE_E_UNSUPPORTED, "stochastic binarization needs code SIGN");
    qe_levels_job l = levels_job(j, w, band);
    qe_levels_plain(&l, 0, band->k);
    for (int64_t row = 0; row < band->n; row++) {
        qe_group g = {0};
        for (int64_t c = 0; c < band->k; c++) {
            if (c == 0 || (band->quant.group_k && c % band->quant.group_k == 0)) g = qe_group_at(band, row, c);
            double p = 0.5 * ((double)at_of(&l, row, c) / (double)g.scale + 1.0);
            double u = qe_uniform(j->o.seed, (uint64_t)((band->first_row + row) * band->k + c));
            ((uint8_t *)band->codes)[row * band->k + c] = u < p;
        }
    }
    return QE_OK;
}

/* ---- bands over threads ------------------------------------------------------------------------------------------ */
static qe_band_fn *const bands[] = {qe_band_rtn, qe_band_gptq, qe_band_adaround, qe_band_kmeans, qe_band_twn,
                                    qe_band_ttq, qe_band_absmean, qe_band_rtn, qe_band_stochastic};
_Static_assert(sizeof bands / sizeof bands[0] == METHOD_COUNT, "one function per method, in the order of the list");

qe_qtensor qe_qtensor_rows(const qe_qtensor *t, int64_t row, int64_t count) {
    const qe_quant *q = &t->quant;
    qe_qtensor out = *t;
    int64_t g = qe_group_row(t->first_row, row, q->group_n) * qe_groups(t->k, q->group_k);
    int64_t s = qe_group_row(t->first_row, row, q->super_n) * qe_groups(t->k, q->super_k);
    out.n = count;
    out.first_row = t->first_row + row;
    out.codes = (char *)t->codes + (size_t)(row * t->k) * qe_code_bytes(q);
    if (t->scales) out.scales = (char *)t->scales + (size_t)g * qe_num_bytes(q->scale);
    if (t->zeros) out.zeros = (char *)t->zeros + (size_t)g * qe_num_bytes(q->zero_num);
    if (t->super) out.super = (char *)t->super + (size_t)s * qe_num_bytes(q->super);
    if (t->zero_super) out.zero_super = (char *)t->zero_super + (size_t)s * qe_num_bytes(q->super);
    if (t->lut) out.lut = t->lut + (qe_group_row(t->first_row, row, q->lut_n) << q->bits);
    return out;
}

static void band_task(void *arg, int32_t index, int32_t count) {
    qe_round_job *j = arg;
    int64_t row = (int64_t)index * j->rows_each, rows = j->t->n - row < j->rows_each ? j->t->n - row : j->rows_each;
    qe_qtensor band = qe_qtensor_rows(j->t, row, rows);
    qe_error err = {0};
    uint32_t facts = QE_FACT_TERNARY | QE_FACT_NO_MIN | QE_FACT_SCALES_POS | QE_FACT_INT8_PRODUCT;
    const float *w = j->w + row * j->ldw;
    (void)count;
    qe_status status = qe_finite_check(w, j->ldw, band.first_row, rows, band.k, &err);
    if (!status) status = bands[method_index(j->o.method)](j, w, &band, &err);
    if (!status) status = qe_qtensor_check(&band, &facts, &err);
    if (!status) {
        __atomic_fetch_and(&j->facts, facts, __ATOMIC_RELAXED);
        return;
    }
    j->errors[index] = err;
}

/* ---- the call ---------------------------------------------------------------------------------------------------- */
static qe_status read_options(const qe_round_options *given, qe_round_options *o, qe_error *err) {
    memset(o, 0, sizeof *o);
    if (given) {
        if (given->struct_size != sizeof *o)
            return qe_error_set(err, QE_E_ARGUMENT, "round options of %zu bytes, %zu are known", given->struct_size,
                                sizeof *o);
        *o = *given;
    }
    QE_TRY(qe_range_options_read(&o->range, &o->range, err));
    if (method_index(o->method) < 0)
        return qe_error_set(err, QE_E_ARGUMENT, "rounding method %d is none of the %d", o->method, METHOD_COUNT);
    int32_t m = o->range.method;
    if (m != QE_RANGE_MINMAX && m != QE_RANGE_MSE && m != QE_RANGE_PERCENTILE && m != QE_RANGE_OCTAV &&
        m != QE_RANGE_OUTPUT)
        return qe_error_set(err, QE_E_UNSUPPORTED, "the range method '%s' is for activations, not for weights",
                            qe_range_method_name(m));
    if (o->order < 0 || o->order > QE_ORDER_STATIC || o->iterations < 0 || o->batch_rows < 0 ||
        !(o->damping >= 0.0f && o->damping < 1e6f) || !(o->learning_rate >= 0.0f) || !(o->regularizer >= 0.0f))
        return qe_error_set(err, QE_E_ARGUMENT, "round options: order %d, iterations %d, batch_rows %d, damping %g",
                            o->order, o->iterations, o->batch_rows, (double)o->damping);
    if (o->damping == 0.0f) o->damping = 0.01f;
    if (!o->iterations) o->iterations = o->method == QE_METHOD_KMEANS ? 50 : 1000;
    if (o->learning_rate == 0.0f) o->learning_rate = 0.01f;
    if (o->regularizer == 0.0f) o->regularizer = 100.0f;
    if (!o->batch_rows) o->batch_rows = 32;
    return QE_OK;
}

static qe_status check_calibration(const qe_calibration *c, const qe_round_options *o, int64_t k, qe_error *err) {
    uint32_t needs = qe_method_needs(o->method);
    if (needs & QE_NEEDS_HESSIAN && (!c || !c->hessian))
        return qe_error_set(err, QE_E_STATE, "%s needs the Hessian of a calibration, none is given",
                            qe_method_name(o->method));
    if (needs & QE_NEEDS_INPUTS && (!c || !c->x || c->x_rows < 1))
        return qe_error_set(err, QE_E_STATE, "%s needs inputs of a calibration, none are given",
                            qe_method_name(o->method));
    if (c && c->x && c->x_rows > 0 && c->ldx < k)
        return qe_error_set(err, QE_E_ARGUMENT, "calibration inputs have ldx %lld for k %lld", (long long)c->ldx,
                            (long long)k);
    if (!c || !c->hessian) return QE_OK;
    double sum = 0.0;
    for (int64_t i = 0; i < k; i++) {
        double d = c->hessian[i * k + i];
        if (!isfinite(d) || d < 0.0)
            return qe_error_set(err, QE_E_VALUE, "the Hessian's diagonal is not usable at column %lld: %g",
                                (long long)i, d);
        sum += d;
    }
    if (sum == 0.0 && needs & QE_NEEDS_HESSIAN)
        return qe_error_set(err, QE_E_STATE, "the Hessian is all zero: the calibration is empty");
    return QE_OK;
}

static qe_status prepare(qe_round_job *j, qe_error *err) {
    qe_qtensor *t = j->t;
    const qe_calibration *c = j->calibration;
    if (c && c->hessian) {
        j->importance = qe_scratch((size_t)t->k * sizeof(float), err);
        if (!j->importance) return QE_E_NOMEM;
        double mean = 0.0;
        for (int64_t i = 0; i < t->k; i++) mean += c->hessian[i * t->k + i] / (double)t->k;
        for (int64_t i = 0; i < t->k; i++)
            j->importance[i] = mean > 0.0 ? (float)(c->hessian[i * t->k + i] / mean) : 1.0f;
    }
    if (j->o.range.method == QE_RANGE_OUTPUT) return qe_clip_prepare(j, err);
    if (j->o.method == QE_METHOD_GPTQ) return qe_gptq_prepare(j, err);
    if (j->o.method == QE_METHOD_ADAROUND) return qe_adaround_prepare(j, err);
    return QE_OK;
}

void qe_round_release(qe_round_job *j) {
    free(j->importance);
    free(j->factor);
    free(j->work_order);
    free(j->shared);
    free(j->errors);
}

/* A permutation that was placed with the tensor is the caller's, unless GPTQ is to choose it. */
static qe_status check_order(const qe_qtensor *t, const qe_round_options *o, qe_error *err) {
    bool chooses = o->method == QE_METHOD_GPTQ && o->order == QE_ORDER_GROUPS;
    if (chooses && !t->order)
        return qe_error_set(err, QE_E_ARGUMENT, "QE_ORDER_GROUPS needs a tensor placed with QE_PLACE_ORDER");
    if (chooses || !t->order) return QE_OK;
    for (int64_t i = 0; i < t->k; i++) {
        if (t->order[i] >= (uint64_t)t->k)
            return qe_error_set(err, QE_E_RANGE, "order[%lld] is %u of %lld columns", (long long)i, t->order[i],
                                (long long)t->k);
    }
    return QE_OK;
}

/* The error is that of the lowest failing band, so that it does not depend on timing. */
static qe_status run_bands(qe_round_job *j, int32_t tasks, qe_error *err) {
    j->errors = calloc((size_t)tasks, sizeof *j->errors);
    if (!j->errors) return qe_error_set(err, QE_E_NOMEM, "no memory for %d bands", tasks);
    qe_parallel(j->o.executor, band_task, j, tasks);
    for (int32_t i = 0; i < tasks; i++) {
        if (!j->errors[i].status) continue;
        if (err) *err = j->errors[i];
        return (qe_status)j->errors[i].status;
    }
    return QE_OK;
}

qe_status qe_round_weights(const float *w, int64_t ldw, const qe_calibration *calibration,
                           const qe_round_options *options, qe_qtensor *t, qe_error *err) {
    enum { ROWS = 96 };
    qe_round_job j = {.w = w, .ldw = ldw, .calibration = calibration, .t = t, .facts = UINT32_MAX};
    if (!w || !t) return qe_error_set(err, QE_E_ARGUMENT, "w or tensor is NULL");
    QE_TRY(qe_quant_check(&t->quant, t->n, t->k, err));
    if (ldw < t->k || !t->codes)
        return qe_error_set(err, QE_E_ARGUMENT, "ldw %lld for k %lld, or arrays that are not placed", (long long)ldw,
                            (long long)t->k);
    QE_TRY(read_options(options, &j.o, err));
    if (t->quant.code == QE_CODE_LUT && j.o.method == QE_METHOD_RTN) j.o.method = QE_METHOD_KMEANS;
    bool sign = j.o.method == QE_METHOD_BINARY && t->quant.code != QE_CODE_SIGN;
    if (sign) return qe_error_set(err, QE_E_UNSUPPORTED, "binarization needs code SIGN");
    QE_TRY(check_calibration(calibration, &j.o, t->k, err));
    QE_TRY(check_order(t, &j.o, err));
    if (!t->n || !t->k) return QE_OK;
    qe_status status = prepare(&j, err);
    if (!status) {
        int64_t band = qe_quant_band_rows(&t->quant);
        j.rows_each = !band ? t->n : band >= ROWS ? band : ROWS / band * band;
        /* The first band ends where a band of the whole tensor would, so that groups of rows stay whole. */
        int64_t tasks = band && t->first_row % band == 0 ? (t->n + j.rows_each - 1) / j.rows_each : 1;
        if (tasks == 1) j.rows_each = t->n;
        status = run_bands(&j, (int32_t)tasks, err);
    }
    if (!status) t->facts = j.facts;
    qe_round_release(&j);
    return status;
}
