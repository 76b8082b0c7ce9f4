/* round.c -- THE definition of rounding weights to a scheme: absmax or min-max scales, then round to nearest
 * (quantization.md section 2). */
#include <math.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/levels.h"

static float weight_at(const qe_levels_job *j, int64_t row, int64_t column) {
    return j->w[row * j->ldw + (j->t->order ? j->t->order[column] : column)];
}

/* ---- the formats of scales --------------------------------------------------------------------------------------- */
/* Store v as element i, rounded to the type and kept usable as a divisor: a scale never becomes 0. */
static void store_scale(int32_t num, void *array, int64_t i, float v) {
    switch (num) {
    case QE_NUM_F32: ((float *)array)[i] = v; break;
    case QE_NUM_F16: {
        uint16_t h = qe_f32_to_f16(qe_clamp(v, -65504.0f, 65504.0f));
        ((uint16_t *)array)[i] = v != 0.0f && !(h & 0x7fff) ? h | 1 : h;
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

static bool scale_is_signed(const qe_quant *q) {
    int32_t num = q->scale == QE_NUM_ONE ? q->super : q->scale;
    return qe_num_is_float(num) || num == QE_NUM_S8 || num == QE_NUM_S6;
}

/* Largest second-level integer a scheme uses. Four bits and fewer keep L * (c - z) inside int8, so that K loops stay in
 * integers; wider codes use the whole type. */
float qe_level_top(const qe_quant *q) {
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

float qe_zero_top(int32_t num) {
    switch (num) {
    case QE_NUM_U8: return 255.0f;
    case QE_NUM_S8: return 127.0f;
    case QE_NUM_U6: return 63.0f;
    case QE_NUM_U4: return 15.0f;
    default: return 31.0f;
    }
}

/* ---- ranges ------------------------------------------------------------------------------------------------------ */
qe_span qe_rect_scan(const qe_levels_job *j, const qe_rect *r) {
    qe_span out = {0.0f, 0.0f, 0.0f};
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
float qe_code_top(const qe_quant *q) {
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

/* With full_range the lowest code stands for the value of largest magnitude (GGUF Q4_0, Q5_0): a negative scale where
 * that value is positive and the type of scales has a sign. */
qe_want qe_want_of(const qe_levels_job *j, qe_span x) {
    const qe_quant *q = &j->t->quant;
    float top = x.high > -x.low ? x.high : -x.low, s;
    if (q->zero != QE_ZERO_CONST) s = qe_div(qe_sub(x.high, x.low), (float)((1 << q->bits) - 1));
    else if (q->code == QE_CODE_SIGN) s = x.mean;
    else if (j->full_range && q->code == QE_CODE_INT && x.high <= -x.low) s = qe_div(top, (float)q->zero_const);
    else if (j->full_range && q->code == QE_CODE_INT && scale_is_signed(q)) s = -qe_div(top, (float)q->zero_const);
    else s = qe_div(top, qe_code_top(q));
    if (q->scale_log2) s = ldexpf(s, -q->scale_log2);
    return (qe_want){s != 0.0f && isfinite(s) ? s : 1.0f, x.low, x.mean};
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows and columns of super block or group (gn, gk) of extents (n, k), 0: all. Groups count from the band's start. */
qe_rect qe_rect_of(const qe_qtensor *t, int64_t gn, int64_t gk, int32_t n, int32_t k) {
    int64_t lead = n ? t->first_row % n : 0;
    qe_rect r = {n ? gn * n - lead : 0, n ? (gn + 1) * n - lead : t->n, k ? gk * k : 0, k ? (gk + 1) * k : t->k};
    r.row = r.row < 0 ? 0 : r.row;
    r.row_end = least(r.row_end, t->n);
    r.column_end = least(r.column_end, t->k);
    return r;
}

/* ---- scales and zeros -------------------------------------------------------------------------------------------- */
static void store_integer(int32_t num, uint8_t *at, float v, float low, float high) {
    float level = rintf(v);
    if (num == QE_NUM_S8 || num == QE_NUM_S6) {
        if (level == 0.0f) level = v < 0.0f ? -low : low;
        low = -high;
    }
    *at = (uint8_t)(int)qe_clamp(level, low, high);
}

void qe_super_store(qe_qtensor *t, int64_t s, float top, float low) {
    const qe_quant *q = &t->quant;
    float super = top > 0.0f ? qe_div(top, qe_level_top(q)) : 1.0f;
    if (q->flags & QE_SUPER_DIVIDES) super = qe_div(1.0f, super);
    store_scale(q->super, t->super, s, super);
    if (!qe_has_zero_super(q)) return;
    store_scale(q->super, t->zero_super, s, -qe_div(low, qe_zero_top(q->zero_num)));
    /* Stored as a magnitude, which store_scale() keeps from 0; then the sign. */
    if (q->super == QE_NUM_F32) ((float *)t->zero_super)[s] = -((float *)t->zero_super)[s];
    else if (q->super != QE_NUM_E8M0) ((uint16_t *)t->zero_super)[s] ^= 0x8000u;
}

void qe_group_store(qe_qtensor *t, const qe_rect *r, int64_t g, int64_t s, const qe_want *want, const int nudge[2]) {
    const qe_quant *q = &t->quant;
    float super = q->super == QE_NUM_ONE ? 1.0f : qe_num_get(q->super, t->super, s);
    if (qe_num_is_integer(q->scale)) {
        bool silent = want->mean == 0.0f;
        float level = silent ? 1.0f : qe_div(want->scale, super);
        if (nudge[0]) level = rintf(level) + (float)nudge[0];
        store_integer(q->scale, (uint8_t *)t->scales + g, level, 1.0f, qe_level_top(q));
    } else if (q->scale == QE_NUM_POW2N) {
        ((uint8_t *)t->scales)[g] = want->scale <= qe_mul(super, 0.5f);
    } else if (q->scale != QE_NUM_ONE) {
        float scale = q->flags & QE_SUPER_DIVIDES ? qe_mul(want->scale, super) : qe_div(want->scale, super);
        store_scale(q->scale, t->scales, g, scale);
    }
    qe_group stored = qe_group_at(t, r->row, r->column);
    if (q->zero == QE_ZERO_POINT) {
        float z = -qe_div(want->low, stored.scale);
        if (q->zero_num == QE_NUM_U8) z = qe_clamp(rintf(z) + (float)nudge[1], 0.0f, (float)((1 << q->bits) - 1));
        store_zero(q->zero_num, t->zeros, g, z);
    } else if (q->zero == QE_ZERO_REAL && qe_has_zero_super(q)) {
        float bs = qe_num_get(q->super, t->zero_super, s), top = qe_zero_top(q->zero_num);
        float level = bs == 0.0f ? 0.0f : qe_div(want->low, bs);
        if (nudge[1]) level = rintf(level) + (float)nudge[1];
        store_integer(QE_NUM_ONE, (uint8_t *)t->zeros + g, level, 0.0f, top);
    } else if (q->zero == QE_ZERO_REAL) {
        store_zero(q->zero_num, t->zeros, g, want->low);
    }
}

qe_status qe_group_each(const qe_qtensor *t, const qe_rect *r, int64_t s, qe_group_visit *visit, void *arg) {
    const qe_quant *q = &t->quant;
    int64_t row_step = q->group_n ? q->group_n : t->n, step = q->group_k ? q->group_k : t->k;
    int64_t groups = qe_groups(t->k, q->group_k);
    for (int64_t row = r->row; row < r->row_end;) {
        int64_t into = q->group_n ? (t->first_row + row) % row_step : 0;
        for (int64_t c = r->column; c < r->column_end; c += step) {
            int64_t gn = qe_group_row(t->first_row, row, q->group_n), gk = q->group_k ? c / q->group_k : 0;
            qe_rect group = qe_rect_of(t, gn, gk, q->group_n, q->group_k);
            QE_TRY(visit(arg, &group, gn * groups + gk, s));
        }
        row = least(row + row_step - into, t->n);
    }
    return QE_OK;
}

qe_status qe_super_each(const qe_qtensor *t, int64_t from, int64_t to, qe_super_visit *visit, void *arg) {
    const qe_quant *q = &t->quant;
    bool two = q->super != QE_NUM_ONE;
    int32_t en = two ? q->super_n : q->group_n, ek = two ? q->super_k : q->group_k;
    int64_t supers = qe_groups(t->k, ek), bands = t->n ? qe_group_row(t->first_row, t->n - 1, en) + 1 : 0;
    for (int64_t sn = 0; sn < bands; sn++) {
        for (int64_t sk = ek ? from / ek : 0; sk < supers && (!ek || sk * ek < to); sk++) {
            qe_rect r = qe_rect_of(t, sn, sk, en, ek);
            QE_TRY(visit(arg, &r, sn * supers + sk));
        }
    }
    return QE_OK;
}

bool qe_has_levels(const qe_quant *q) {
    return q->scale != QE_NUM_ONE || q->super != QE_NUM_ONE || q->zero != QE_ZERO_CONST;
}

int32_t qe_levels_unit(const qe_quant *q) { return q->super != QE_NUM_ONE ? q->super_k : q->group_k; }

typedef struct plain {
    const qe_levels_job *j;
    float top, low;
} plain;

static qe_status plain_extremes(void *arg, const qe_rect *r, int64_t g, int64_t s) {
    plain *p = arg;
    qe_span x = qe_rect_scan(p->j, r);
    (void)g, (void)s;
    if (x.low == 0.0f && x.high == 0.0f) return QE_OK;
    float want = fabsf(qe_want_of(p->j, x).scale);
    p->top = want > p->top ? want : p->top;
    p->low = x.low < p->low ? x.low : p->low;
    return QE_OK;
}

static qe_status plain_group(void *arg, const qe_rect *r, int64_t g, int64_t s) {
    static const int still[2] = {0, 0};
    plain *p = arg;
    qe_want want = qe_want_of(p->j, qe_rect_scan(p->j, r));
    qe_group_store(p->j->t, r, g, s, &want, still);
    return QE_OK;
}

/* The groups inside one super block: first their largest scale (and minimum), then each group's own level. */
static qe_status plain_super(void *arg, const qe_rect *r, int64_t s) {
    plain *p = arg;
    qe_qtensor *t = p->j->t;
    if (t->quant.super != QE_NUM_ONE) {
        p->top = p->low = 0.0f;
        (void)qe_group_each(t, r, s, plain_extremes, p);
        qe_super_store(t, s, p->top, p->low);
    }
    return qe_group_each(t, r, s, plain_group, p);
}

void qe_levels_plain(const qe_levels_job *j, int64_t from, int64_t to) {
    plain p = {j, 0.0f, 0.0f};
    if (qe_has_levels(&j->t->quant)) (void)qe_super_each(j->t, from, to, plain_super, &p);
}

/* ---- codes ------------------------------------------------------------------------------------------------------- */
static void float_codes(const qe_levels_job *j, int64_t row) {
    qe_qtensor *t = j->t;
    qe_group g = {1.0f, 0.0f, 0.0f, false};
    for (int64_t c = 0; c < t->k; c++) {
        int64_t at = row * t->k + c;
        float x = weight_at(j, row, c);
        if (c == 0 || (t->quant.group_k && c % t->quant.group_k == 0)) g = qe_group_at(t, row, c);
        float v = g.scale == 1.0f ? x : qe_div(x, g.scale);
        if (t->quant.code == QE_CODE_F32) ((float *)t->codes)[at] = v;
        else if (t->quant.code == QE_CODE_F16) ((uint16_t *)t->codes)[at] = qe_f32_to_f16(v);
        else ((uint16_t *)t->codes)[at] = qe_f32_to_bf16(v);
    }
}

static void row_codes(const qe_levels_job *j, const qe_rounder *r, int64_t row) {
    enum { CHUNK = 256 };
    qe_qtensor *t = j->t;
    int64_t step = t->quant.group_k ? t->quant.group_k : t->k;
    for (int64_t c = 0; c < t->k; c += step) {
        qe_group group = qe_group_at(t, row, c);
        qe_grid g = qe_grid_make(r, &group);
        int64_t end = least(c + step, t->k);
        for (int64_t at = c; at < end; at += CHUNK) {
            float x[CHUNK];
            int64_t count = least(CHUNK, end - at);
            for (int64_t i = 0; i < count; i++) x[i] = weight_at(j, row, at + i);
            qe_round_many(r, &g, x, count, (uint8_t *)t->codes + row * t->k + at, NULL);
        }
    }
}

void qe_codes_store(const qe_levels_job *j) {
    qe_qtensor *t = j->t;
    if (qe_code_is_float(t->quant.code)) {
        for (int64_t row = 0; row < t->n; row++) float_codes(j, row);
        return;
    }
    qe_rounder r;
    const float *table = NULL;
    for (int64_t row = 0; row < t->n; row++) {
        const float *lut = qe_lut_of(t, row);
        if (row == 0 || lut != table) qe_rounder_init(&r, &t->quant, lut, j->full_range);
        table = lut;
        row_codes(j, &r, row);
    }
}

qe_status qe_finite_check(const float *w, int64_t ldw, int64_t first_row, int64_t n, int64_t k, qe_error *err) {
    for (int64_t r = 0; r < n; r++) {
        uint32_t top = 0;
        for (int64_t c = 0; c < k; c++) {
            uint32_t u = qe_f32_bits(w[r * ldw + c]) & 0x7fffffffu;
            top = u > top ? u : top;
        }
        if (top < 0x7f800000u) continue;
        int64_t c = 0;
        while (isfinite(w[r * ldw + c])) c++;
        return qe_error_set(err, QE_E_VALUE, "weight of row %lld, column %lld is not a finite number",
                            (long long)(first_row + r), (long long)c);
    }
    return QE_OK;
}

qe_status qe_quantize(const float *w, int64_t ldw, uint32_t flags, qe_qtensor *t, qe_error *err) {
    if (!w || !t) return qe_error_set(err, QE_E_ARGUMENT, "w or tensor is NULL");
    QE_TRY(qe_quant_check(&t->quant, t->n, t->k, err));
    if (ldw < t->k || flags & ~(uint32_t)(QE_QUANTIZE_KEEP_SCALES | QE_QUANTIZE_FULL_RANGE))
        return qe_error_set(err, QE_E_ARGUMENT, "ldw %lld for k %lld, flags 0x%x", (long long)ldw, (long long)t->k,
                            flags);
    if (!t->codes) return qe_error_set(err, QE_E_ARGUMENT, "the tensor's arrays are not placed");
    if (t->quant.code == QE_CODE_LUT && !(flags & QE_QUANTIZE_KEEP_SCALES))
        return qe_error_set(err, QE_E_UNSUPPORTED, "tables are not computed here: give one and keep the scales");
    QE_TRY(qe_finite_check(w, ldw, t->first_row, t->n, t->k, err));
    qe_levels_job j = {w, ldw, t, (flags & QE_QUANTIZE_FULL_RANGE) != 0};
    if (!(flags & QE_QUANTIZE_KEEP_SCALES)) qe_levels_plain(&j, 0, t->k);
    qe_codes_store(&j);
    uint32_t facts = QE_FACT_TERNARY | QE_FACT_NO_MIN | QE_FACT_SCALES_POS | QE_FACT_INT8_PRODUCT;
    QE_TRY(qe_qtensor_check(t, &facts, err));
    t->facts = facts;
    return QE_OK;
}
