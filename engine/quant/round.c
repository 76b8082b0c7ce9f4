/* round.c -- THE definition of rounding weights to a scheme: absmax or min-max scales, then round to nearest
 * (quantization.md section 2). */
#include <math.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/scheme_internal.h"

/* A rectangle of the band: rows and columns of one group or super block. */
typedef struct rect {
    int64_t row, row_end, column, column_end;
} rect;

typedef struct job {
    const float *w;
    int64_t      ldw;
    qe_qtensor  *t;
} job;

static float weight_at(const job *j, int64_t row, int64_t column) {
    return j->w[row * j->ldw + (j->t->order ? j->t->order[column] : column)];
}

/* ---- the formats of scales --------------------------------------------------------------------------------------- */
/* Store v as element i, rounded to the type and kept usable as a divisor: a positive scale never becomes 0. */
static void store_scale(int32_t num, void *array, int64_t i, float v) {
    switch (num) {
    case QE_NUM_F32: ((float *)array)[i] = v; break;
    case QE_NUM_F16: {
        uint16_t h = qe_f32_to_f16(v > 65504.0f ? 65504.0f : v);
        ((uint16_t *)array)[i] = v > 0.0f && !h ? 1 : h;
        break;
    }
    case QE_NUM_BF16: ((uint16_t *)array)[i] = qe_f32_to_bf16(v); break;
    case QE_NUM_E8M0: {                                     /* the smallest power of two that is not below v */
        int e = 0;
        float f = frexpf(v, &e);
        int u = (f == 0.5f ? e - 1 : e) + 127;
        ((uint8_t *)array)[i] = (uint8_t)(u < 0 ? 0 : u > 254 ? 254 : u);
        break;
    }
    case QE_NUM_E4M3: {
        uint8_t b = qe_f32_to_e4m3(v);
        ((uint8_t *)array)[i] = v > 0.0f && !b ? 1 : b;
        break;
    }
    default: break;
    }
}

static void store_zero(int32_t num, void *array, int64_t i, float v) {
    if (num == QE_NUM_F32) ((float *)array)[i] = v;
    else if (num == QE_NUM_F16) ((uint16_t *)array)[i] = qe_f32_to_f16(v);
    else if (num == QE_NUM_BF16) ((uint16_t *)array)[i] = qe_f32_to_bf16(v);
    else ((uint8_t *)array)[i] = (uint8_t)(int)v;
}

/* Largest second-level integer a scheme uses. Four bits and fewer keep L * (c - z) inside int8, so that K loops stay in
 * integers; wider codes use the whole type. */
static float level_top(const qe_quant *q) {
    int span = q->zero == QE_ZERO_CONST ? 1 << q->bits >> 1 : (1 << q->bits) - 1;
    switch (q->scale) {
    case QE_NUM_U8: return q->bits <= 4 && q->zero != QE_ZERO_REAL ? (float)(127 / span) : 255.0f;
    case QE_NUM_S8: return 127.0f;
    case QE_NUM_U6: return 63.0f;
    case QE_NUM_S6: return 31.0f;
    case QE_NUM_U4: return 15.0f;
    case QE_NUM_E4M3: return 448.0f;
    default: return 1.0f;
    }
}

static float zero_top(int32_t num) {
    switch (num) {
    case QE_NUM_U8: return 255.0f;
    case QE_NUM_S8: return 127.0f;
    case QE_NUM_U6: return 63.0f;
    case QE_NUM_U4: return 15.0f;
    default: return 31.0f;
    }
}

/* ---- ranges ------------------------------------------------------------------------------------------------------ */
typedef struct range {
    float low, high, mean;     /* low <= 0 <= high; mean of |x| */
} range;

static range scan(const job *j, const rect *r) {
    range out = {0.0f, 0.0f, 0.0f};
    double sum = 0.0;
    for (int64_t row = r->row; row < r->row_end; row++) {
        for (int64_t c = r->column; c < r->column_end; c++) {
            float x = weight_at(j, row, c);
            out.low = x < out.low ? x : out.low;
            out.high = x > out.high ? x : out.high;
            sum += fabs((double)x);
        }
    }
    int64_t count = (r->row_end - r->row) * (r->column_end - r->column);
    if (count) out.mean = (float)(sum / (double)count);
    return out;
}

/* Largest |C - z| a symmetric scheme uses on both sides. */
static float code_top(const qe_quant *q) {
    const float *values = qe_code_values(q->code);
    float top = 0.0f;
    if (q->code == QE_CODE_INT) {
        int high = (1 << q->bits) - 1 - q->zero_const, low = q->zero_const;
        return (float)(low < high || high < 1 ? (low > 1 ? low : 1) : high);
    }
    for (int i = 0; values && i < 1 << q->bits; i++) {
        if (isfinite(values[i]) && fabsf(values[i]) > top) top = fabsf(values[i]);
    }
    return values ? top : 1.0f;
}

/* The scale a range wants, before any rounding of the scale; 1 for silence (quantization.md section 2). */
static float wanted_scale(const qe_quant *q, range r) {
    float s;
    if (q->zero != QE_ZERO_CONST) s = qe_div(qe_sub(r.high, r.low), (float)((1 << q->bits) - 1));
    else if (q->code == QE_CODE_SIGN) s = r.mean;
    else s = qe_div(r.high > -r.low ? r.high : -r.low, code_top(q));
    if (q->scale_log2) s = ldexpf(s, -q->scale_log2);
    return s > 0.0f ? s : 1.0f;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows and columns of super block or group (gn, gk) of extents (n, k), 0: all. Groups count from the band's start. */
static rect rect_of(const qe_qtensor *t, int64_t gn, int64_t gk, int32_t n, int32_t k) {
    int64_t lead = n ? t->first_row % n : 0;
    rect r = {n ? gn * n - lead : 0, n ? (gn + 1) * n - lead : t->n, k ? gk * k : 0, k ? (gk + 1) * k : t->k};
    r.row = r.row < 0 ? 0 : r.row;
    r.row_end = least(r.row_end, t->n);
    r.column_end = least(r.column_end, t->k);
    return r;
}

/* ---- scales and zeros -------------------------------------------------------------------------------------------- */
static void store_integer(uint8_t *at, float v, float low, float high) {
    *at = (uint8_t)(int)qe_clamp(rintf(v), low, high);
}

static void group_levels(const job *j, const rect *r, int64_t g, int64_t s) {
    qe_qtensor *t = j->t;
    const qe_quant *q = &t->quant;
    range x = scan(j, r);
    float want = wanted_scale(q, x), super = q->super == QE_NUM_ONE ? 1.0f : qe_num_get(q->super, t->super, s);
    bool silent = x.low == 0.0f && x.high == 0.0f;
    if (qe_num_is_integer(q->scale))
        store_integer((uint8_t *)t->scales + g, silent ? 1.0f : qe_div(want, super), 1.0f, level_top(q));
    else if (q->scale == QE_NUM_POW2N) ((uint8_t *)t->scales)[g] = want <= qe_mul(super, 0.5f);
    else if (q->scale != QE_NUM_ONE)
        store_scale(q->scale, t->scales, g, q->flags & QE_SUPER_DIVIDES ? qe_mul(want, super) : qe_div(want, super));
    qe_group stored = qe_group_at(t, r->row, r->column);
    if (q->zero == QE_ZERO_POINT) {
        float z = -qe_div(x.low, stored.scale);
        if (q->zero_num == QE_NUM_U8) z = qe_clamp(rintf(z), 0.0f, (float)((1 << q->bits) - 1));
        store_zero(q->zero_num, t->zeros, g, z);
    } else if (q->zero == QE_ZERO_REAL && qe_has_zero_super(q)) {
        float bs = qe_num_get(q->super, t->zero_super, s), top = zero_top(q->zero_num);
        store_integer((uint8_t *)t->zeros + g, bs == 0.0f ? 0.0f : qe_div(x.low, bs), 0.0f, top);
    } else if (q->zero == QE_ZERO_REAL) {
        store_zero(q->zero_num, t->zeros, g, x.low);
    }
}

/* The groups inside one super block: first their largest scale (and minimum), then each group's own level. */
static void super_levels(const job *j, const rect *r, int64_t s) {
    qe_qtensor *t = j->t;
    const qe_quant *q = &t->quant;
    int64_t row_step = q->group_n ? q->group_n : t->n, step = q->group_k ? q->group_k : t->k;
    int64_t groups = qe_groups(t->k, q->group_k);
    for (int pass = q->super == QE_NUM_ONE; pass < 2; pass++) {
        float top = 0.0f, low = 0.0f;
        for (int64_t row = r->row; row < r->row_end;) {
            int64_t into = q->group_n ? (t->first_row + row) % row_step : 0;
            for (int64_t c = r->column; c < r->column_end; c += step) {
                int64_t gn = qe_group_row(t->first_row, row, q->group_n), gk = q->group_k ? c / q->group_k : 0;
                rect group = rect_of(t, gn, gk, q->group_n, q->group_k);
                if (pass) {
                    group_levels(j, &group, gn * groups + gk, s);
                    continue;
                }
                range x = scan(j, &group);
                if (x.low == 0.0f && x.high == 0.0f) continue;
                float want = wanted_scale(q, x);
                top = want > top ? want : top;
                low = x.low < low ? x.low : low;
            }
            row = least(row + row_step - into, t->n);
        }
        if (pass) break;
        float super = top > 0.0f ? qe_div(top, level_top(q)) : 1.0f;
        if (q->flags & QE_SUPER_DIVIDES) super = qe_div(1.0f, super);
        store_scale(q->super, t->super, s, super);
        if (qe_has_zero_super(q)) {
            store_scale(q->super, t->zero_super, s, -qe_div(low, zero_top(q->zero_num)));
            /* Stored as a magnitude, which store_scale() keeps from 0; then the sign. */
            if (q->super == QE_NUM_F32) ((float *)t->zero_super)[s] = -((float *)t->zero_super)[s];
            else if (q->super != QE_NUM_E8M0) ((uint16_t *)t->zero_super)[s] ^= 0x8000u;
        }
    }
}

static void all_levels(const job *j) {
    qe_qtensor *t = j->t;
    const qe_quant *q = &t->quant;
    if (q->scale == QE_NUM_ONE && q->super == QE_NUM_ONE && q->zero == QE_ZERO_CONST) return;
    bool two = q->super != QE_NUM_ONE;
    int32_t en = two ? q->super_n : q->group_n, ek = two ? q->super_k : q->group_k;
    int64_t supers = qe_groups(t->k, ek), bands = t->n ? qe_group_row(t->first_row, t->n - 1, en) + 1 : 0;
    for (int64_t sn = 0; sn < bands; sn++) {
        for (int64_t sk = 0; sk < supers; sk++) {
            rect r = rect_of(t, sn, sk, en, ek);
            super_levels(j, &r, sn * supers + sk);
        }
    }
}

/* ---- codes ------------------------------------------------------------------------------------------------------- */
static uint8_t integer_code(const qe_quant *q, const qe_group *g, float x) {
    float top = (float)((1 << q->bits) - 1), v;
    if (g->scale == 0.0f) return (uint8_t)qe_clamp(rintf(g->zero), 0.0f, top);
    if (q->zero == QE_ZERO_REAL) {
        v = rintf(qe_div(qe_sub(x, g->bias), g->scale));
    } else if (q->zero == QE_ZERO_CONST) {
        float limit = code_top(q);
        v = qe_add(qe_clamp(rintf(qe_div(x, g->scale)), -limit, limit), g->zero);
    } else {
        v = q->zero_num == QE_NUM_U8 ? qe_add(rintf(qe_div(x, g->scale)), g->zero)
                                     : rintf(qe_add(qe_div(x, g->scale), g->zero));
    }
    return (uint8_t)qe_clamp(v, 0.0f, top);
}

/* argmin |x / s - C|, the lowest code on a tie. */
static uint8_t table_code(const float *values, int count, float scale, float x) {
    float u = scale == 0.0f ? 0.0f : qe_div(x, scale), best = INFINITY;
    int at = 0;
    for (int i = 0; i < count; i++) {
        float d = fabsf(qe_sub(u, values[i]));
        if (d < best) {
            best = d;
            at = i;
        }
    }
    return (uint8_t)at;
}

static void row_codes(const job *j, int64_t row) {
    qe_qtensor *t = j->t;
    const qe_quant *q = &t->quant;
    const float *values = q->code == QE_CODE_LUT
                              ? t->lut + (qe_group_row(t->first_row, row, q->lut_n) << q->bits)
                              : qe_code_values(q->code);
    qe_group g = {1.0f, 0.0f, 0.0f, false};
    for (int64_t c = 0; c < t->k; c++) {
        int64_t at = row * t->k + c;
        float x = weight_at(j, row, c);
        if (c == 0 || (q->group_k && c % q->group_k == 0)) g = qe_group_at(t, row, c);
        if (q->code == QE_CODE_F32) ((float *)t->codes)[at] = g.scale == 1.0f ? x : qe_div(x, g.scale);
        else if (q->code == QE_CODE_F16) ((uint16_t *)t->codes)[at] = qe_f32_to_f16(qe_div(x, g.scale));
        else if (q->code == QE_CODE_BF16) ((uint16_t *)t->codes)[at] = qe_f32_to_bf16(qe_div(x, g.scale));
        else if (q->code == QE_CODE_INT) ((uint8_t *)t->codes)[at] = integer_code(q, &g, x);
        else ((uint8_t *)t->codes)[at] = table_code(values, 1 << q->bits, g.scale, x);
    }
}

qe_status qe_quantize(const float *w, int64_t ldw, uint32_t flags, qe_qtensor *t, qe_error *err) {
    if (!w || !t) return qe_error_set(err, QE_E_ARGUMENT, "w or tensor is NULL");
    QE_TRY(qe_quant_check(&t->quant, t->n, t->k, err));
    if (ldw < t->k || flags & ~(uint32_t)QE_QUANTIZE_KEEP_SCALES)
        return qe_error_set(err, QE_E_ARGUMENT, "ldw %lld for k %lld, flags 0x%x", (long long)ldw, (long long)t->k,
                            flags);
    if (!t->codes) return qe_error_set(err, QE_E_ARGUMENT, "the tensor's arrays are not placed");
    if (t->quant.code == QE_CODE_LUT && !(flags & QE_QUANTIZE_KEEP_SCALES))
        return qe_error_set(err, QE_E_UNSUPPORTED, "tables are not computed here: give one and keep the scales");
    for (int64_t r = 0; r < t->n; r++) {
        for (int64_t c = 0; c < t->k; c++) {
            if (!isfinite(w[r * ldw + c]))
                return qe_error_set(err, QE_E_VALUE, "weight of row %lld, column %lld is not a finite number",
                                    (long long)(t->first_row + r), (long long)c);
        }
    }
    job j = {w, ldw, t};
    if (!(flags & QE_QUANTIZE_KEEP_SCALES)) all_levels(&j);
    for (int64_t r = 0; r < t->n; r++) row_codes(&j, r);
    uint32_t facts = QE_FACT_TERNARY | QE_FACT_NO_MIN | QE_FACT_SCALES_POS | QE_FACT_INT8_PRODUCT;
    QE_TRY(qe_qtensor_check(t, &facts, err));
    t->facts = facts;
    return QE_OK;
}
