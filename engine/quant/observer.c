/* observer.c -- activations seen in batches: extremes, sums, a histogram and, for cross-entropy, some rows.
 *
 * Bins are powers of two wide and every bin starts at a multiple of its width, so a histogram at a coarser width is
 * what the finer one becomes by adding bins in pairs: the result depends on the values alone, not on batches or order. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/dense.h"
#include "quant/range_values.h"

enum { BINS = QE_OBSERVER_BINS, BINS_LOG2 = 13, UNSET_LOG2 = -200, KEPT_FLOATS = 1 << 20 };
_Static_assert(BINS == 1 << BINS_LOG2, "the width of bins follows from their number");

struct qe_observer {
    qe_range_options o;
    uint64_t count, batches;
    float low, high;
    double first_low, first_high, moving_low, moving_high;   /* of the first batch; the average so far */
    double sum, sum_abs, sum_squares;
    int32_t bin_log2;
    uint64_t positive[BINS], negative[BINS];
    int64_t rows, columns;           /* kept for CROSS_ENTROPY */
    float *kept;
};

qe_status qe_observer_create(const qe_range_options *options, qe_observer **out, qe_error *err) {
    qe_range_options o;
    if (!out) return qe_error_set(err, QE_E_ARGUMENT, "out is NULL");
    QE_TRY(qe_range_options_read(options, &o, err));
    qe_observer *n = calloc(1, sizeof *n);
    if (!n) return qe_error_set(err, QE_E_NOMEM, "no memory for an observer");
    n->o = o;
    n->bin_log2 = UNSET_LOG2;
    *out = n;
    return QE_OK;
}

void qe_observer_destroy(qe_observer *o) {
    if (!o) return;
    free(o->kept);
    free(o);
}

/* ---- the histogram ----------------------------------------------------------------------------------------------- */
static void coarsen(uint64_t *bins, int32_t shift) {
    if (shift <= 0) return;
    for (int32_t i = 1; i < BINS; i++) {
        int32_t to = shift >= BINS_LOG2 ? 0 : i >> shift;
        if (to == i) continue;
        bins[to] += bins[i];
        bins[i] = 0;
    }
}

static void widen(qe_observer *o, int32_t bin_log2) {
    if (bin_log2 <= o->bin_log2) return;
    coarsen(o->positive, bin_log2 - o->bin_log2);
    coarsen(o->negative, bin_log2 - o->bin_log2);
    o->bin_log2 = bin_log2;
}

/* The finest width under which a magnitude has a bin. */
static int32_t width_for(float magnitude) {
    int e;
    if (magnitude == 0.0f) return UNSET_LOG2;
    (void)frexp((double)magnitude, &e);
    return e - BINS_LOG2;
}

/* ---- batches ----------------------------------------------------------------------------------------------------- */
static qe_status keep_rows(qe_observer *o, const float *x, int64_t rows, int64_t columns, int64_t ldx, qe_error *err) {
    if (o->o.method != QE_RANGE_CROSS_ENTROPY || columns < 1) return QE_OK;
    if (o->columns && o->columns != columns)
        return qe_error_set(err, QE_E_SHAPE, "rows of %lld columns after rows of %lld", (long long)columns,
                            (long long)o->columns);
    int64_t most = KEPT_FLOATS / columns > 0 ? KEPT_FLOATS / columns : 1;
    int64_t take = most - o->rows < rows ? most - o->rows : rows;
    if (take <= 0) return QE_OK;
    float *grown = realloc(o->kept, (size_t)((o->rows + take) * columns) * sizeof(float));
    if (!grown) return qe_error_set(err, QE_E_NOMEM, "no memory to keep %lld rows", (long long)take);
    o->kept = grown;
    o->columns = columns;
    for (int64_t r = 0; r < take; r++)
        memcpy(grown + (o->rows + r) * columns, x + r * ldx, (size_t)columns * sizeof(float));
    o->rows += take;
    return QE_OK;
}

static qe_status batch_extremes(const float *x, int64_t rows, int64_t columns, int64_t ldx, float *low, float *high,
                                qe_error *err) {
    *low = *high = x[0];
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c++) {
            float v = x[r * ldx + c];
            if (!isfinite(v))
                return qe_error_set(err, QE_E_VALUE, "activation of row %lld, column %lld is not a finite number",
                                    (long long)r, (long long)c);
            *low = v < *low ? v : *low;
            *high = v > *high ? v : *high;
        }
    }
    return QE_OK;
}

qe_status qe_observer_add(qe_observer *o, const float *x, int64_t rows, int64_t columns, int64_t ldx, qe_error *err) {
    float low, high;
    if (!o || !x || rows < 0 || columns < 0 || ldx < columns)
        return qe_error_set(err, QE_E_ARGUMENT, "observer or x is NULL, or %lld x %lld values, ldx %lld",
                            (long long)rows, (long long)columns, (long long)ldx);
    if (!rows || !columns) return QE_OK;
    QE_TRY(batch_extremes(x, rows, columns, ldx, &low, &high, err));
    QE_TRY(keep_rows(o, x, rows, columns, ldx, err));
    widen(o, width_for(high > -low ? high : -low));
    double scale = ldexp(1.0, -o->bin_log2);
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0.0, sum_abs = 0.0, sum_squares = 0.0;
        for (int64_t c = 0; c < columns; c++) {
            double v = (double)x[r * ldx + c], a = fabs(v);
            (v < 0.0 ? o->negative : o->positive)[(int32_t)(a * scale)]++;
            sum += v;
            sum_abs += a;
            sum_squares += v * v;
        }
        o->sum += sum;
        o->sum_abs += sum_abs;
        o->sum_squares += sum_squares;
    }
    double c = (double)o->o.momentum;
    if (!o->batches) {
        o->low = low;
        o->high = high;
        o->first_low = o->moving_low = (double)low;
        o->first_high = o->moving_high = (double)high;
    } else {
        o->low = low < o->low ? low : o->low;
        o->high = high > o->high ? high : o->high;
        o->moving_low = c * o->moving_low + (1.0 - c) * (double)low;
        o->moving_high = c * o->moving_high + (1.0 - c) * (double)high;
    }
    o->count += (uint64_t)(rows * columns);
    o->batches++;
    return QE_OK;
}

qe_status qe_observer_merge(qe_observer *o, const qe_observer *later, qe_error *err) {
    if (!o || !later || o == later) return qe_error_set(err, QE_E_ARGUMENT, "two observers are needed to merge");
    if (o->o.method != later->o.method || o->o.momentum != later->o.momentum)
        return qe_error_set(err, QE_E_MISMATCH, "observers of different methods or momentums do not merge");
    if (!later->batches) return QE_OK;
    QE_TRY(keep_rows(o, later->kept, later->rows, later->columns, later->columns, err));
    widen(o, later->bin_log2);
    int32_t shift = o->bin_log2 - later->bin_log2;
    for (int32_t i = 0; i < BINS; i++) {
        int32_t to = shift >= BINS_LOG2 ? 0 : i >> shift;
        o->positive[to] += later->positive[i];
        o->negative[to] += later->negative[i];
    }
    if (!o->batches) {
        o->low = later->low;
        o->high = later->high;
        o->first_low = later->first_low;
        o->first_high = later->first_high;
        o->moving_low = later->moving_low;
        o->moving_high = later->moving_high;
    } else {
        /* The later average started from its first batch; had it started from ours, that share would be ours. */
        double share = pow((double)o->o.momentum, (double)later->batches);
        o->low = later->low < o->low ? later->low : o->low;
        o->high = later->high > o->high ? later->high : o->high;
        o->moving_low = later->moving_low + share * (o->moving_low - later->first_low);
        o->moving_high = later->moving_high + share * (o->moving_high - later->first_high);
    }
    o->count += later->count;
    o->batches += later->batches;
    o->sum += later->sum;
    o->sum_abs += later->sum_abs;
    o->sum_squares += later->sum_squares;
    return QE_OK;
}

void qe_observer_look(const qe_observer *o, qe_observed *out) {
    *out = (qe_observed){o->count, o->batches, o->low, o->high, (float)o->moving_low, (float)o->moving_high,
                         o->sum, o->sum_abs, o->sum_squares, o->bin_log2, o->positive, o->negative};
}

/* ---- ranges ------------------------------------------------------------------------------------------------------ */
qe_status qe_observer_range(const qe_observer *o, int32_t method, const qe_quant *quant, float *low, float *high,
                            qe_error *err) {
    if (!o || !quant || !low || !high) return qe_error_set(err, QE_E_ARGUMENT, "observer, quant, low or high is NULL");
    qe_range_options options = o->o;
    if (method >= 0) options.method = method;
    QE_TRY(qe_range_options_read(&options, &options, err));
    QE_TRY(qe_quant_check(quant, 0, 0, err));
    if (!o->count) return qe_error_set(err, QE_E_STATE, "nothing was observed: the calibration is empty");
    if (options.method == QE_RANGE_MOVING) {
        *low = qe_clamp((float)o->moving_low, -INFINITY, 0.0f);
        *high = qe_clamp((float)o->moving_high, 0.0f, INFINITY);
        return QE_OK;
    }
    if (options.method == QE_RANGE_CROSS_ENTROPY) {
        if (!o->rows) return qe_error_set(err, QE_E_STATE, "no rows were kept: the observer was not created for 'ce'");
        return qe_range_of(o->kept, o->rows, o->columns, o->columns, quant, &options, low, high, err);
    }
    qe_bins bins = {o->positive, o->negative, BINS, o->bin_log2, o->low, o->high};
    return qe_range_of_bins(&bins, quant, &options, low, high, err);
}

qe_status qe_observer_act(const qe_observer *o, int32_t method, const qe_quant *quant, qe_act *act, qe_error *err) {
    float low, high;
    if (!act || !quant || quant->code != QE_CODE_INT)
        return qe_error_set(err, QE_E_ARGUMENT, "static inputs are integers, and act is needed");
    QE_TRY(qe_observer_range(o, method, quant, &low, &high, err));
    memset(act, 0, sizeof *act);
    act->quant = qe_range_plain(quant);
    act->mode = QE_ACT_STATIC;
    qe_range_scale(low, high, &act->quant, &o->o, &act->scale, &act->zero);
    return QE_OK;
}

/* ---- saved form -------------------------------------------------------------------------------------------------- */
/* Magic, the fields as 64-bit words in the order of put_fields(), the bins, the kept rows, a checksum of all before. */
static const uint64_t MAGIC = 0x3152565342454751u;                  /* "QGEBSVR1" */
enum { FIELDS = 22 };

static void put_word(uint8_t *out, uint64_t v) {
    for (int i = 0; i < 8; i++) out[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_word(const uint8_t *in) {
    uint64_t v = 0;
    for (int i = 0; i < 8; i++) v |= (uint64_t)in[i] << (8 * i);
    return v;
}

static uint64_t from_double(double d) {
    uint64_t u;
    memcpy(&u, &d, sizeof u);
    return u;
}

static double to_double(uint64_t u) {
    double d;
    memcpy(&d, &u, sizeof d);
    return d;
}

static uint64_t checksum(const uint8_t *data, size_t bytes) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) h = (h ^ data[i]) * 0x100000001b3u;
    return h;
}

static size_t saved_bytes(int64_t rows, int64_t columns) {
    return 8 * (FIELDS + 2 * (size_t)BINS) + 4 * (size_t)(rows * columns) + 8;
}

size_t qe_observer_save(const qe_observer *o, void *out, size_t out_bytes) {
    size_t bytes = saved_bytes(o->rows, o->columns);
    if (!out || out_bytes < bytes) return bytes;
    const uint64_t fields[FIELDS] = {
        MAGIC, (uint64_t)o->o.method, (uint64_t)o->o.steps, qe_f32_bits(o->o.least_ratio), qe_f32_bits(o->o.percentile),
        qe_f32_bits(o->o.momentum), (uint64_t)o->o.power_of_two, (uint64_t)o->o.full_range, o->count, o->batches,
        qe_f32_bits(o->low), qe_f32_bits(o->high), from_double(o->first_low), from_double(o->first_high),
        from_double(o->moving_low), from_double(o->moving_high), from_double(o->sum), from_double(o->sum_abs),
        from_double(o->sum_squares), (uint64_t)(o->bin_log2 - UNSET_LOG2), (uint64_t)o->rows, (uint64_t)o->columns};
    uint8_t *p = out;
    for (int i = 0; i < FIELDS; i++, p += 8) put_word(p, fields[i]);
    for (int32_t i = 0; i < BINS; i++, p += 8) put_word(p, o->positive[i]);
    for (int32_t i = 0; i < BINS; i++, p += 8) put_word(p, o->negative[i]);
    for (int64_t i = 0; i < o->rows * o->columns; i++, p += 4) {
        uint32_t u = qe_f32_bits(o->kept[i]);
        for (int b = 0; b < 4; b++) p[b] = (uint8_t)(u >> (8 * b));
    }
    put_word(p, checksum(out, bytes - 8));
    return bytes;
}

static float word_float(uint64_t v) { return qe_f32_from_bits((uint32_t)v); }

/* Fields were checked by the checksum and for size; what remains could only be a foreign writer's nonsense. */
static qe_status load_fields(qe_observer *o, const uint8_t *p, qe_error *err) {
    uint64_t f[FIELDS];
    for (int i = 0; i < FIELDS; i++) f[i] = get_word(p + 8 * i);
    if (f[1] > 1000 || f[2] > 1000000 || f[6] > 1 || f[7] > 1 || f[19] > 400)
        return qe_error_set(err, QE_E_RANGE, "a saved observer holds impossible options");
    o->o = (qe_range_options){sizeof o->o, (int32_t)f[1], (int32_t)f[2], word_float(f[3]), word_float(f[4]),
                              word_float(f[5]), (int32_t)f[6], (int32_t)f[7]};
    QE_TRY(qe_range_options_read(&o->o, &o->o, err));
    o->count = f[8];
    o->batches = f[9];
    o->low = word_float(f[10]);
    o->high = word_float(f[11]);
    double *doubles[] = {&o->first_low, &o->first_high, &o->moving_low, &o->moving_high, &o->sum, &o->sum_abs,
                         &o->sum_squares};
    for (int i = 0; i < 7; i++) {
        *doubles[i] = to_double(f[12 + i]);
        if (!isfinite(*doubles[i])) return qe_error_set(err, QE_E_VALUE, "a saved observer holds a sum of no use");
    }
    o->bin_log2 = (int32_t)f[19] + UNSET_LOG2;
    if (!isfinite(o->low) || !isfinite(o->high) || o->low > o->high)
        return qe_error_set(err, QE_E_VALUE, "a saved observer holds unusable extremes");
    return QE_OK;
}

qe_status qe_observer_load(const void *data, size_t bytes, qe_observer **out, qe_error *err) {
    const uint8_t *p = data;
    if (!data || !out) return qe_error_set(err, QE_E_ARGUMENT, "data or out is NULL");
    if (bytes < saved_bytes(0, 0))
        return qe_error_set(err, QE_E_TRUNCATED, "a saved observer has %zu bytes or more, here are %zu",
                            saved_bytes(0, 0), bytes);
    if (get_word(p) != MAGIC) return qe_error_set(err, QE_E_MAGIC, "this is not a saved observer");
    uint64_t rows = get_word(p + 8 * 20), columns = get_word(p + 8 * 21);
    uint64_t most = columns > KEPT_FLOATS ? columns : KEPT_FLOATS;     /* one row is kept however long it is */
    if (rows > KEPT_FLOATS || columns > INT32_MAX || rows * columns > most)
        return qe_error_set(err, QE_E_RANGE, "a saved observer claims %llu rows of %llu", (unsigned long long)rows,
                            (unsigned long long)columns);
    size_t need = saved_bytes((int64_t)rows, (int64_t)columns);
    if (bytes != need)
        return qe_error_set(err, QE_E_TRUNCATED, "a saved observer of %zu bytes, here are %zu", need, bytes);
    if (get_word(p + bytes - 8) != checksum(p, bytes - 8))
        return qe_error_set(err, QE_E_MISMATCH, "the checksum of a saved observer does not match");
    qe_observer *o;
    QE_TRY(qe_observer_create(NULL, &o, err));
    qe_status status = load_fields(o, p, err);
    p += 8 * FIELDS;
    for (int32_t i = 0; i < BINS; i++, p += 8) o->positive[i] = get_word(p);
    for (int32_t i = 0; i < BINS; i++, p += 8) o->negative[i] = get_word(p);
    if (!status && rows) {
        o->kept = malloc((size_t)(rows * columns) * sizeof(float));
        if (!o->kept) status = qe_error_set(err, QE_E_NOMEM, "no memory for kept rows");
        for (uint64_t i = 0; i < rows * columns && !status; i++, p += 4) {
            uint32_t u = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
            o->kept[i] = qe_f32_from_bits(u);
        }
        o->rows = (int64_t)rows;
        o->columns = (int64_t)columns;
    }
    if (status) {
        qe_observer_destroy(o);
        return status;
    }
    *out = o;
    return QE_OK;
}
