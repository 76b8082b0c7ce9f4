/* range.c -- the range methods on values that are all there: quantization.md section 4. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/dense.h"
#include "quant/levels.h"
#include "quant/range_values.h"

static const struct {
    int32_t value;
    const char *text;
} range_names[] = {
#define QE_X(name, value, text, what) {value, text},
    QE_RANGE_LIST(QE_X)
#undef QE_X
};
enum { RANGE_COUNT = sizeof range_names / sizeof range_names[0] };

const char *qe_range_method_name(int32_t method) {
    for (int i = 0; i < RANGE_COUNT; i++) {
        if (range_names[i].value == method) return range_names[i].text;
    }
    return NULL;
}

int32_t qe_range_method_find(const char *text) {
    for (int i = 0; text && i < RANGE_COUNT; i++) {
        if (!strcmp(range_names[i].text, text)) return range_names[i].value;
    }
    return -1;
}

qe_status qe_range_options_read(const qe_range_options *given, qe_range_options *out, qe_error *err) {
    qe_range_options o = {.struct_size = sizeof o};
    if (given && given->struct_size) {
        if (given->struct_size != sizeof o)
            return qe_error_set(err, QE_E_ARGUMENT, "range options of %zu bytes, %zu are known", given->struct_size,
                                sizeof o);
        o = *given;
    }
    if (!o.steps) o.steps = 60;
    if (o.least_ratio == 0.0f) o.least_ratio = 0.2f;
    if (o.percentile == 0.0f) o.percentile = 99.99f;
    if (o.momentum == 0.0f) o.momentum = 0.99f;
    if (!qe_range_method_name(o.method))
        return qe_error_set(err, QE_E_ARGUMENT, "range method %d is none of the %d", o.method, RANGE_COUNT);
    if (o.steps < 1 || o.steps > 10000 || !(o.least_ratio > 0.0f && o.least_ratio < 1.0f) ||
        !(o.percentile > 50.0f && o.percentile <= 100.0f) || !(o.momentum > 0.0f && o.momentum < 1.0f))
        return qe_error_set(err, QE_E_ARGUMENT,
                            "range options: steps %d of 1 to 10000, least_ratio %g and momentum %g between 0 and 1, "
                            "percentile %g above 50 to 100", o.steps, (double)o.least_ratio, (double)o.momentum,
                            (double)o.percentile);
    *out = o;
    return QE_OK;
}

double qe_range_steps(const qe_quant *q, const qe_range_options *o) {
    if (q->zero != QE_ZERO_CONST) return (double)((1 << q->bits) - 1) / 2.0;
    if (q->code != QE_CODE_INT) return q->bits > 1 ? (double)(1 << (q->bits - 1)) - 1.0 : 1.0;
    return o->full_range ? (double)q->zero_const : (double)qe_code_top(q);
}

qe_quant qe_range_plain(const qe_quant *quant) {
    qe_quant q = {.code = quant->code, .bits = quant->bits, .scale = QE_NUM_F32, .zero_const = quant->zero_const};
    if (quant->zero != QE_ZERO_CONST) {
        q.zero = QE_ZERO_POINT;
        q.zero_num = QE_NUM_U8;
    }
    return q;
}

/* ---- scale and zero ---------------------------------------------------------------------------------------------- */
void qe_range_scale(float low, float high, const qe_quant *quant, const qe_range_options *options, float *scale,
                    int32_t *zero) {
    qe_range_options o = {0};
    if (options) o = *options;
    float top = high > -low ? high : -low, s;
    bool symmetric = quant->zero == QE_ZERO_CONST || quant->code != QE_CODE_INT;
    if (!symmetric) s = qe_div(qe_sub(high, low), (float)((1 << quant->bits) - 1));
    else if (quant->code == QE_CODE_INT) s = qe_div(top, (float)qe_range_steps(quant, &o));
    else s = qe_div(top, qe_code_top(quant));
    if (o.power_of_two && s > 0.0f) {
        int e;
        float f = frexpf(s, &e);
        s = ldexpf(1.0f, f == 0.5f ? e - 1 : e);
    }
    bool silent = !(s > 0.0f) || !isfinite(s);
    if (silent) s = 1.0f;
    *scale = s;
    *zero = quant->zero_const;
    if (symmetric) return;
    if (silent) *zero = 1 << quant->bits >> 1;
    else *zero = (int32_t)qe_clamp(rintf(-qe_div(low, s)), 0.0f, (float)((1 << quant->bits) - 1));
}

/* ---- PERCENTILE ---------------------------------------------------------------------------------------- */
/* Element of rank `rank` (from 0) of x, which gets reordered. */
static float select_rank(float *x, int64_t count, int64_t rank) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        float pivot = x[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] < pivot) i++;
            while (x[j] > pivot) j--;
            if (i > j) break;
            float swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        if (rank <= j) high = j;
        else if (rank >= i) low = i;
        else return x[rank];
    }
    return x[rank];
}

/* Nearest rank: the smallest value with at least p percent of all at or below it. */
static int64_t rank_of(double percent, int64_t count) {
    int64_t rank = (int64_t)ceil(percent / 100.0 * (double)count) - 1;
    return rank < 0 ? 0 : rank >= count ? count - 1 : rank;
}

static qe_status clip_percentile(const float *x, int64_t count, bool symmetric, float percent, float *low, float *high,
                                 qe_error *err) {
    float *copy = qe_scratch((size_t)count * sizeof(float), err);
    if (!copy) return QE_E_NOMEM;
    for (int64_t i = 0; i < count; i++) copy[i] = symmetric ? fabsf(x[i]) : x[i];
    float top = select_rank(copy, count, rank_of((double)percent, count));
    float bottom = symmetric ? -top : select_rank(copy, count, rank_of(100.0 - (double)percent, count));
    free(copy);
    *high = qe_clamp(top, 0.0f, *high);
    *low = qe_clamp(bottom, *low, 0.0f);
    return QE_OK;
}

/* ---- the methods that search ------------------------------------------------------------------------------------- */
typedef struct values {
    const float *x;
    int64_t rows, columns;
    const qe_quant *quant;
    qe_quant plain;            /* the same codes with one float scale: what rounding sees */
    const qe_range_options *o;
    float *chances, *rounded;  /* CROSS_ENTROPY: softmax of x; one row */
    const qe_rounder *rounder; /* OCTAV */
} values;

static qe_grid grid_of(const qe_rounder *r, float low, float high, const qe_range_options *o) {
    float scale;
    int32_t zero;
    qe_range_scale(low, high, r->quant, o, &scale, &zero);
    qe_group group = {scale, (float)zero, 0.0f, false};
    return qe_grid_make(r, &group);
}

static double squared_error(const values *v, const qe_rounder *r, float low, float high) {
    qe_grid g = grid_of(r, low, high, v->o);
    return qe_round_error(r, &g, v->x, NULL, v->rows * v->columns);
}

/* ---- OCTAV ------------------------------------------------------------------------------------------------------- */
static void sums_above(const void *ctx, double s, double *sum, double *number) {
    const values *v = ctx;
    int64_t count = v->rows * v->columns, above = 0;
    *sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double a = fabs((double)v->x[i]);
        if (a > s) *sum += a, above++;
    }
    *number = (double)above;
}

static double value_loss(const void *ctx, float low, float high) {
    const values *v = ctx;
    return squared_error(v, v->rounder, low, high);
}

static void clip_octav(const float *x, int64_t count, const qe_quant *quant, const qe_range_options *o, float *low, float *high) {
    qe_rounder rounder;
    values v = {.x = x, .rows = 1, .columns = count, .quant = quant, .plain = qe_range_plain(quant), .o = o, .rounder = &rounder};
    double steps = qe_range_steps(quant, o), top = fmax((double)*high, (double)-*low);
    double start = qe_octav_start(sums_above, &v, 1.0 / (12.0 * steps * steps), top);
    if (quant->code == QE_CODE_LUT) {       /* a table of each row: its errors are not to be had here */
        qe_octav_clip(start, low, high);
        return;
    }
    qe_rounder_init(&rounder, &v.plain, NULL, o->full_range);
    qe_octav_refine(start, steps, quant->zero == QE_ZERO_CONST, value_loss, &v, low, high);
}

qe_status qe_range_clip(const float *x, int64_t count, const qe_quant *quant, const qe_range_options *o, float *low,
                        float *high, qe_error *err) {
    if (!count) return QE_OK;
    if (o->method == QE_RANGE_PERCENTILE)
        return clip_percentile(x, count, quant->zero == QE_ZERO_CONST, o->percentile, low, high, err);
    if (o->method == QE_RANGE_OCTAV) clip_octav(x, count, quant, o, low, high);
    return QE_OK;
}

/* ---- cross-entropy, searches by steps --------------------------------------------------------------------------- */
/* log of the sum of e^x, and its argument's maximum taken out. */
static double log_sum(const float *x, int64_t count) {
    float top = x[0];
    for (int64_t i = 1; i < count; i++) top = x[i] > top ? x[i] : top;
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) sum += (double)expf(x[i] - top);
    return (double)top + log(sum);
}

static double cross_entropy(const values *v, const qe_rounder *r, float low, float high) {
    qe_grid g = grid_of(r, low, high, v->o);
    double sum = 0.0;
    for (int64_t row = 0; row < v->rows; row++) {
        const float *p = v->chances + row * v->columns;
        qe_round_many(r, &g, v->x + row * v->columns, v->columns, NULL, v->rounded);
        double mean = 0.0;
        for (int64_t i = 0; i < v->columns; i++) mean += (double)p[i] * (double)v->rounded[i];
        sum += log_sum(v->rounded, v->columns) - mean;
    }
    return sum;
}

typedef double loss_fn(const values *v, const qe_rounder *r, float low, float high);

static void search_clip(const values *v, loss_fn *loss, float *low, float *high) {
    qe_rounder r;
    qe_rounder_init(&r, &v->plain, NULL, v->o->full_range);
    float l = *low, h = *high, step = (1.0f - v->o->least_ratio) / (float)v->o->steps;
    float best_low = 1.0f, best_high = 1.0f;
    double best = loss(v, &r, l, h);
    /* Both sides together, then each alone where the scheme is asymmetric. */
    for (int side = 0; side < (v->plain.zero == QE_ZERO_CONST ? 1 : 3); side++) {
        float from_low = best_low, from_high = best_high;
        for (int i = 1; i <= v->o->steps; i++) {
            float ratio = 1.0f - step * (float)i, rl = side == 2 ? from_low : ratio, rh = side == 1 ? from_high : ratio;
            double e = loss(v, &r, l * rl, h * rh);
            if (e < best) {
                best = e;
                best_low = rl;
                best_high = rh;
            }
        }
    }
    *low = l * best_low;
    *high = h * best_high;
}

static qe_status search_cross_entropy(values *v, float *low, float *high, qe_error *err) {
    v->chances = qe_scratch((size_t)((v->rows + 1) * v->columns) * sizeof(float), err);
    if (!v->chances) return QE_E_NOMEM;
    v->rounded = v->chances + v->rows * v->columns;
    for (int64_t row = 0; row < v->rows; row++) {
        const float *x = v->x + row * v->columns;
        double total = log_sum(x, v->columns);
        for (int64_t i = 0; i < v->columns; i++)
            v->chances[row * v->columns + i] = (float)exp((double)x[i] - total);
    }
    search_clip(v, cross_entropy, low, high);
    free(v->chances);
    return QE_OK;
}

enum { KL_BINS = 2048 };

/* Uniform bins of |x| up to its maximum. */
static qe_status threshold_kl(const values *v, float *low, float *high, qe_error *err) {
    float top = *high > -*low ? *high : -*low;
    uint64_t *bins = qe_scratch(KL_BINS * sizeof(uint64_t), err);
    if (!bins) return QE_E_NOMEM;
    memset(bins, 0, KL_BINS * sizeof(uint64_t));
    for (int64_t i = 0; i < v->rows * v->columns; i++) {
        int64_t at = (int64_t)((double)fabsf(v->x[i]) / (double)top * KL_BINS);
        bins[at < KL_BINS ? at : KL_BINS - 1]++;
    }
    int32_t kept = qe_range_kl_bins(bins, KL_BINS, 1 << v->quant->bits >> 1);
    free(bins);
    float t = (float)((double)top * (double)kept / KL_BINS);
    *high = qe_clamp(*high, 0.0f, t);
    *low = qe_clamp(*low, -t, 0.0f);
    return QE_OK;
}

/* x is contiguous, finite and not silent. */
static qe_status search_values(values *v, float *low, float *high, qe_error *err) {
    int64_t count = v->rows * v->columns;
    switch (v->o->method) {
    case QE_RANGE_MSE: search_clip(v, squared_error, low, high); return QE_OK;
    case QE_RANGE_CROSS_ENTROPY: return search_cross_entropy(v, low, high, err);
    case QE_RANGE_KL: return threshold_kl(v, low, high, err);
    default: return qe_range_clip(v->x, count, v->quant, v->o, low, high, err);
    }
}

qe_status qe_range_of(const float *x, int64_t rows, int64_t columns, int64_t ldx, const qe_quant *quant,
                      const qe_range_options *options, float *low, float *high, qe_error *err) {
    qe_range_options o;
    if (!x || !quant || !low || !high || rows < 0 || columns < 0 || ldx < columns)
        return qe_error_set(err, QE_E_ARGUMENT, "x, quant, low or high is NULL, or %lld x %lld values, ldx %lld",
                            (long long)rows, (long long)columns, (long long)ldx);
    QE_TRY(qe_range_options_read(options, &o, err));
    QE_TRY(qe_quant_check(quant, 0, 0, err));
    if (quant->code == QE_CODE_LUT || qe_code_is_float(quant->code))
        return qe_error_set(err, QE_E_UNSUPPORTED, "ranges are for integers and fixed tables");
    if (o.method == QE_RANGE_OUTPUT) return qe_error_set(err, QE_E_UNSUPPORTED, "the range 'output' is for weights");
    if (!rows || !columns) return qe_error_set(err, QE_E_STATE, "no values: an empty calibration has no range");
    float l = 0.0f, h = 0.0f;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c++) {
            float v = x[r * ldx + c];
            if (!isfinite(v))
                return qe_error_set(err, QE_E_VALUE, "value of row %lld, column %lld is not a finite number",
                                    (long long)r, (long long)c);
            l = v < l ? v : l;
            h = v > h ? v : h;
        }
    }
    qe_status status = QE_OK;
    if (o.method != QE_RANGE_MINMAX && o.method != QE_RANGE_MOVING && (l < 0.0f || h > 0.0f)) {
        float *copy = NULL;
        if (ldx != columns) {
            copy = qe_scratch((size_t)(rows * columns) * sizeof(float), err);
            if (!copy) return QE_E_NOMEM;
            for (int64_t r = 0; r < rows; r++)
                memcpy(copy + r * columns, x + r * ldx, (size_t)columns * sizeof(float));
        }
        values v = {.x = copy ? copy : x, .rows = rows, .columns = columns, .quant = quant, .o = &o};
        v.plain = qe_range_plain(quant);
        status = search_values(&v, &l, &h, err);
        free(copy);
    }
    *low = l;
    *high = h;
    return status;
}
