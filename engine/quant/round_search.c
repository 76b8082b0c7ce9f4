/* round_search.c -- levels chosen by what rounding does to the weights: clip ratios by squared error (MSE), OCTAV, a
 * percentile, powers of two; integer second levels by trying their neighbours. The plain levels are always among the
 * candidates of MSE, so it is never worse than min-max. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/dense.h"
#include "quant/levels.h"
#include "quant/range_values.h"

typedef struct search {
    const qe_levels_job *j;
    qe_range_options o;
    const float *importance;
    qe_rounder rounder;
    float *x, *weight, *values;    /* of one group, gathered */
    int64_t count;
    qe_error *err;
} search;

/* One group while its levels are sought. stored: candidates pass through the types of the levels in place. */
typedef struct attempt {
    search *s;
    const qe_rect *r;
    int64_t g, super;
    bool stored;
    qe_want best;
    int nudge[2];
    double error;
} attempt;

static const int still[2] = {0, 0};

static qe_span gather(search *s, const qe_rect *r) {
    const qe_qtensor *t = s->j->t;
    qe_span x = {0.0f, 0.0f, 0.0f};
    double sum = 0.0;
    s->count = 0;
    for (int64_t row = r->row; row < r->row_end; row++) {
        for (int64_t c = r->column; c < r->column_end; c++) {
            int64_t at = t->order ? t->order[c] : c;
            float v = s->j->w[row * s->j->ldw + at];
            s->x[s->count] = v;
            if (s->importance) s->weight[s->count] = s->importance[at];
            x.low = v < x.low ? v : x.low;
            x.high = v > x.high ? v : x.high;
            sum += fabs((double)v);
            s->count++;
        }
    }
    if (s->count) x.mean = (float)(sum / (double)s->count);
    return x;
}

static qe_group ideal_group(const qe_quant *q, const qe_want *w) {
    qe_group g = {w->scale, (float)q->zero_const, w->low, q->zero == QE_ZERO_REAL};
    if (q->scale_log2) g.scale = ldexpf(g.scale, q->scale_log2);
    if (q->zero == QE_ZERO_POINT) {
        g.zero = -qe_div(w->low, g.scale);
        if (q->zero_num == QE_NUM_U8) g.zero = qe_clamp(rintf(g.zero), 0.0f, (float)((1 << q->bits) - 1));
    }
    return g;
}

static double error_of(const search *s, const qe_group *group) {
    qe_grid g = qe_grid_make(&s->rounder, group);
    return qe_round_error(&s->rounder, &g, s->x, s->importance ? s->weight : NULL, s->count);
}

static void try_want(attempt *a, qe_want want, const int nudge[2]) {
    qe_qtensor *t = a->s->j->t;
    qe_group group;
    if (!isfinite(want.scale) || want.scale == 0.0f) return;
    if (a->stored) {
        qe_group_store(t, a->r, a->g, a->super, &want, nudge);
        group = qe_group_at(t, a->r->row, a->r->column);
    } else {
        group = ideal_group(&t->quant, &want);
    }
    double error = error_of(a->s, &group);
    if (error < a->error) {
        a->error = error;
        a->best = want;
        memcpy(a->nudge, nudge, sizeof a->nudge);
    }
}

/* Clip ratios of either side; with full_range both ways of using the codes. */
static void try_clip(attempt *a, qe_span x, float low, float high) {
    qe_span clipped = {qe_mul(x.low, low), qe_mul(x.high, high), x.mean};
    try_want(a, qe_want_of(a->s->j, clipped), still);
    if (!a->s->j->full_range || a->s->j->t->quant.zero != QE_ZERO_CONST) return;
    qe_levels_job both = *a->s->j;
    both.full_range = false;
    try_want(a, qe_want_of(&both, clipped), still);
}

/* The least-squares scale (and bias) for the codes of the best candidate so far. */
static void try_refit(attempt *a) {
    search *s = a->s;
    qe_qtensor *t = s->j->t;
    const qe_quant *q = &t->quant;
    if (a->stored) qe_group_store(t, a->r, a->g, a->super, &a->best, a->nudge);
    qe_group group = a->stored ? qe_group_at(t, a->r->row, a->r->column) : ideal_group(q, &a->best);
    qe_grid g = qe_grid_make(&s->rounder, &group);
    if (group.scale == 0.0f) return;
    qe_round_many(&s->rounder, &g, s->x, s->count, NULL, s->values);
    double sw = 0.0, sv = 0.0, sx = 0.0, svv = 0.0, svx = 0.0, inverse = 1.0 / (double)group.scale;
    for (int64_t i = 0; i < s->count; i++) {
        double w = s->importance ? (double)s->weight[i] : 1.0, x = (double)s->x[i];
        double v = ((double)s->values[i] - (group.has_bias ? (double)group.bias : 0.0)) * inverse;
        sw += w;
        sv += w * v;
        sx += w * x;
        svv += w * v * v;
        svx += w * v * x;
    }
    double scale, bias = 0.0, determinant = sw * svv - sv * sv;
    if (q->zero == QE_ZERO_REAL) {
        if (!(determinant > 1e-12 * sw * svv)) return;
        scale = (sw * svx - sv * sx) / determinant;
        bias = (sx - scale * sv) / sw;
        if (bias > 0.0) {
            bias = 0.0;
            scale = svx / svv;
        }
    } else {
        if (!(svv > 0.0)) return;
        scale = svx / svv;
        if (q->zero == QE_ZERO_POINT) bias = -(double)group.zero * scale;
    }
    qe_want want = {ldexpf((float)scale, -q->scale_log2), (float)bias, a->best.mean};
    if (want.scale > 0.0f || s->j->full_range) try_want(a, want, still);
}

static void try_powers(attempt *a, const qe_want *plain, int deepest) {
    int e;
    float f = frexpf(fabsf(plain->scale), &e);
    if (f == 0.5f) e--;
    for (int i = 0; i <= deepest; i++) {
        qe_want want = *plain;
        want.scale = copysignf(ldexpf(1.0f, e - i), plain->scale);
        try_want(a, want, still);
    }
}

static void try_all_clips(attempt *a, qe_span x) {
    const qe_range_options *o = &a->s->o;
    const qe_quant *q = &a->s->j->t->quant;
    if (q->scale == QE_NUM_E8M0) {
        qe_want plain = qe_want_of(a->s->j, x);
        try_powers(a, &plain, 3);
        return;
    }
    float step = (1.0f - o->least_ratio) / (float)o->steps, low = 1.0f, high = 1.0f;
    for (int i = 1; i <= o->steps; i++) {
        double before = a->error;
        float ratio = 1.0f - step * (float)i;
        try_clip(a, x, ratio, ratio);
        if (a->error < before) low = high = ratio;
    }
    if (q->zero != QE_ZERO_CONST) {
        for (int side = 0; side < 2; side++) {
            float best = side ? high : low;
            for (int i = 0; i <= o->steps; i++) {
                double before = a->error;
                float ratio = 1.0f - step * (float)i;
                try_clip(a, x, side ? low : ratio, side ? ratio : high);
                if (a->error < before) best = ratio;
            }
            if (side) high = best;
            else low = best;
        }
    }
    for (int i = 0; i < 2; i++) try_refit(a);
}

/* The threshold of OCTAV or of a percentile: one candidate, no error is measured. */
static void try_threshold(attempt *a, qe_span x) {
    search *s = a->s;
    float low = x.low, high = x.high;
    (void)qe_range_clip(s->x, s->count, &s->j->t->quant, &s->o, &low, &high, NULL);
    a->error = INFINITY;
    try_want(a, qe_want_of(s->j, (qe_span){low, high, x.mean}), still);
}

/* Seek the levels of one group; the best ones are left stored when `stored`. Returns its error. */
static double fit_group(attempt *a) {
    search *s = a->s;
    qe_span x = gather(s, a->r);
    const qe_quant *q = &s->j->t->quant;
    a->error = INFINITY;
    a->best = qe_want_of(s->j, x);
    memcpy(a->nudge, still, sizeof still);
    try_want(a, a->best, still);
    if ((x.low != 0.0f || x.high != 0.0f) && q->code != QE_CODE_SIGN && q->scale != QE_NUM_POW2N) {
        if (s->o.method == QE_RANGE_MSE) try_all_clips(a, x);
        else if (s->o.method != QE_RANGE_MINMAX) try_threshold(a, x);
        if (s->o.power_of_two) {
            qe_want chosen = a->best;
            a->error = INFINITY;
            try_powers(a, &chosen, s->o.method == QE_RANGE_MSE ? 4 : 1);
        }
    }
    if (q->scale == QE_NUM_POW2N && a->stored) {
        float super = qe_num_get(q->super, s->j->t->super, a->super);
        try_want(a, (qe_want){super, x.low, x.mean}, still);
        try_want(a, (qe_want){super * 0.5f, x.low, x.mean}, still);
    }
    if (a->stored) qe_group_store(s->j->t, a->r, a->g, a->super, &a->best, a->nudge);
    return a->error;
}

/* ---- super blocks ------------------------------------------------------------------------------------------------ */
typedef struct super_search {
    search *s;
    qe_want *wants;            /* of each group, before integers */
    int64_t at;
    bool ideal;                /* gather wants, else fit stored levels */
    bool plain;
    double error;
    float top, low;
} super_search;

static qe_status fit_in_super(void *arg, const qe_rect *r, int64_t g, int64_t s) {
    super_search *u = arg;
    const qe_quant *q = &u->s->j->t->quant;
    attempt a = {.s = u->s, .r = r, .g = g, .super = s, .stored = !u->ideal};
    qe_want *want = u->wants + u->at++;
    if (u->ideal) {
        (void)fit_group(&a);
        *want = a.best;
        if (a.best.mean == 0.0f) return QE_OK;
        u->top = fabsf(a.best.scale) > u->top ? fabsf(a.best.scale) : u->top;
        u->low = a.best.low < u->low ? a.best.low : u->low;
        return QE_OK;
    }
    if (u->plain || qe_num_is_integer(q->scale)) {
        qe_span x = gather(u->s, r);
        a.error = INFINITY;
        a.best = u->plain ? qe_want_of(u->s->j, x) : *want;
        try_want(&a, a.best, still);
        bool second = q->zero == QE_ZERO_POINT ? q->zero_num == QE_NUM_U8 : qe_has_zero_super(q);
        for (int i = 0; i < 9 && !u->plain; i++) {
            int nudge[2] = {i / 3 - 1, i % 3 - 1};
            if (second || nudge[1] == 0) try_want(&a, *want, nudge);
        }
        qe_group_store(u->s->j->t, r, g, s, &a.best, a.nudge);
        u->error += a.error;
    } else {
        u->error += fit_group(&a);
    }
    return QE_OK;
}

static qe_status plain_extreme(void *arg, const qe_rect *r, int64_t g, int64_t s) {
    super_search *u = arg;
    (void)g, (void)s;
    qe_span x = gather(u->s, r);
    if (x.low == 0.0f && x.high == 0.0f) return QE_OK;
    float want = fabsf(qe_want_of(u->s->j, x).scale);
    u->top = want > u->top ? want : u->top;
    u->low = x.low < u->low ? x.low : u->low;
    return QE_OK;
}

static double try_super(super_search *u, const qe_rect *r, int64_t s, float top, float low, bool plain) {
    qe_super_store(u->s->j->t, s, top, low);
    u->at = 0;
    u->ideal = false;
    u->plain = plain;
    u->error = 0.0;
    (void)qe_group_each(u->s->j->t, r, s, fit_in_super, u);
    return u->error;
}

static qe_status fit_super(void *arg, const qe_rect *r, int64_t s) {
    search *one = arg;
    const qe_levels_job *j = one->j;
    const qe_quant *q = &j->t->quant;
    int64_t rows = q->group_n ? (r->row_end - r->row + q->group_n - 1) / q->group_n + 1 : 1;
    super_search u = {.s = one};
    u.wants = qe_scratch((size_t)(rows * qe_groups(r->column_end - r->column, q->group_k)) * sizeof(qe_want), one->err);
    if (!u.wants) return QE_E_NOMEM;
    /* Candidates: plain levels, searched groups under the plain second level, and under the one they want. */
    float top[3], low[3];
    int count = 2;
    (void)qe_group_each(j->t, r, s, plain_extreme, &u);
    top[0] = top[1] = u.top;
    low[0] = low[1] = u.low;
    if (qe_num_is_integer(q->scale)) {
        u.top = u.low = 0.0f;
        u.ideal = true;
        (void)qe_group_each(j->t, r, s, fit_in_super, &u);
        top[1] = u.top;
        low[1] = u.low;
    } else if (q->super == QE_NUM_E8M0) {
        top[2] = top[0] * 0.5f;
        low[2] = low[0];
        count = 3;
    }
    double best = INFINITY;
    int chosen = 0;
    for (int i = 0; i < count; i++) {
        double error = try_super(&u, r, s, top[i], low[i], i == 0);
        if (error < best) {
            best = error;
            chosen = i;
        }
    }
    if (chosen != count - 1) (void)try_super(&u, r, s, top[chosen], low[chosen], chosen == 0);
    free(u.wants);
    return QE_OK;
}

static qe_status fit_alone(void *arg, const qe_rect *r, int64_t g, int64_t s) {
    attempt a = {.s = arg, .r = r, .g = g, .super = s, .stored = true};
    (void)fit_group(&a);
    return QE_OK;
}

static qe_status fit_outer(void *arg, const qe_rect *r, int64_t s) {
    search *one = arg;
    if (one->j->t->quant.super != QE_NUM_ONE) return fit_super(arg, r, s);
    return qe_group_each(one->j->t, r, s, fit_alone, arg);
}

qe_status qe_levels_search(const qe_levels_job *j, const qe_range_options *options, const float *importance,
                           int64_t from, int64_t to, qe_error *err) {
    const qe_quant *q = &j->t->quant;
    if (!qe_has_levels(q)) return QE_OK;
    if (qe_code_is_float(q->code)) {
        qe_levels_plain(j, from, to);
        return QE_OK;
    }
    if (options->method == QE_RANGE_MINMAX && !options->power_of_two) {
        qe_levels_plain(j, from, to);
        return QE_OK;
    }
    int64_t rows = q->group_n && q->group_n < j->t->n ? q->group_n : j->t->n;
    int64_t columns = q->group_k && q->group_k < j->t->k ? q->group_k : j->t->k;
    size_t each = (size_t)(rows * columns + 16) * sizeof(float);
    search s = {.j = j, .o = *options, .importance = importance, .err = err};
    s.x = qe_scratch(3 * each, err);
    if (!s.x) return QE_E_NOMEM;
    s.weight = s.x + rows * columns + 16;
    s.values = s.weight + rows * columns + 16;
    qe_rounder_init(&s.rounder, q, j->t->lut, j->full_range);
    qe_status status = qe_super_each(j->t, from, to, fit_outer, &s);
    free(s.x);
    return status;
}
