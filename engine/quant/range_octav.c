/* range_octav.c -- OCTAV (arXiv 2206.06501): the clip of least squared error by Newton's recursion, and what its model of the
 * noise leaves out. The model counts the variance of an even spread over one step for every value inside: true where the
 * density is smooth over a step, which a spike at zero, two clusters or a lone outlier are not. There the true optimum lies
 * above the recursion's, since values near a level make less noise than the model's; from a little below it up to the extreme
 * the error itself decides. */
#include <math.h>

#include <qengine/num.h>
#include "quant/range_values.h"

double qe_octav_start(qe_octav_sums *sums, const void *ctx, double c, double top) {
    double outer, outside;
    sums(ctx, 0.0, &outer, &outside);
    if (outside == 0.0) return 0.0;
    double live = outside, s = outer / live;
    for (int step = 0; step < 100; step++) {
        sums(ctx, s, &outer, &outside);
        double next = outer / (c * (live - outside) + outside);
        if (outside == 0.0) return s;
        if (next >= top) return top;
        if (fabs(next - s) <= 1e-7 * s) return next;
        s = next;
    }
    return s;
}

typedef struct sweep {
    qe_range_loss *loss;
    const void *ctx;
    float bottom, top, low, high;      /* extremes; the best so far */
    bool lower, upper;                 /* sides that move */
    double steps, best, error;
} sweep;

static float low_of(const sweep *w, double t) { return !w->lower ? w->low : -t > (double)w->bottom ? (float)-t : w->bottom; }
static float high_of(const sweep *w, double t) { return !w->upper ? w->high : t < (double)w->top ? (float)t : w->top; }

static double try_clip(sweep *w, double t) {
    double error = w->loss(w->ctx, low_of(w, t), high_of(w, t));
    if (error < w->error) {
        w->error = error;
        w->best = t;
    }
    return error;
}

static void by_steps(sweep *w, double reach, double step, double top) {
    double from = w->best / reach, end = fmin(w->best * reach, top);
    for (double t = from * step; t < end; t *= step) (void)try_clip(w, t);
}

/* Coarse from below the start to the top; by 1 % about the best, or less where steps are fine, since the error ripples as
 * values pass from level to level; then golden sections. Some 36 errors of 4 bits where the top is near. */
static void search(sweep *w, double start, double top) {
    enum { GOLDEN = 6 };
    const double coarse = 1.25, share = 0.6180339887498949;
    (void)try_clip(w, top);
    for (double t = start / coarse; t < top; t *= coarse) (void)try_clip(w, t);
    double fine = 1.011, ripple = 1.0 + 0.25 / w->steps;
    by_steps(w, coarse, fine, top);
    if (ripple < fine) by_steps(w, fine * fine, ripple, top);
    fine = fmin(fine, ripple);
    double from = w->best / fine, end = fmin(w->best * fine, top);
    double a = end - share * (end - from), b = from + share * (end - from), ea = try_clip(w, a), eb = try_clip(w, b);
    for (int i = 2; i < GOLDEN; i++) {
        if (ea < eb) {
            end = b, b = a, eb = ea;
            ea = try_clip(w, a = end - share * (end - from));
        } else {
            from = a, a = b, ea = eb;
            eb = try_clip(w, b = from + share * (end - from));
        }
    }
}

static void move(sweep *w, bool lower, bool upper, double start) {
    double top = fmax(lower ? (double)-w->bottom : 0.0, upper ? (double)w->top : 0.0);
    if (!(top > 0.0)) return;
    w->lower = lower;
    w->upper = upper;
    w->best = fmax(lower ? (double)-w->low : 0.0, upper ? (double)w->high : 0.0);
    search(w, fmin(start, top), top);
    float low = low_of(w, w->best), high = high_of(w, w->best);
    w->low = low;
    w->high = high;
}

void qe_octav_clip(double start, float *low, float *high) {
    if (!(start > 0.0)) return;
    *high = qe_clamp(*high, 0.0f, (float)start);
    *low = qe_clamp(*low, (float)-start, 0.0f);
}

void qe_octav_refine(double start, double steps, bool symmetric, qe_range_loss *loss, const void *ctx, float *low, float *high) {
    enum { ROUNDS = 4 };
    sweep w = {loss, ctx, *low, *high, *low, *high, false, false, steps, 0.0, INFINITY};
    if (!(start > 0.0)) return;
    move(&w, true, true, start);
    double before = INFINITY;
    /* Asymmetric: each side by itself, the other where it is best so far. */
    for (int round = 0; round < ROUNDS && !symmetric && w.error < 0.999 * before; round++) {
        before = w.error;
        move(&w, true, false, start);
        move(&w, false, true, start);
    }
    *low = w.low;
    *high = w.high;
}
