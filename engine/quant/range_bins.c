/* range_bins.c -- the range methods on histograms of activations. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/dense.h"
#include "quant/levels.h"
#include "quant/range_values.h"

/* ---- KL ---------------------------------------------------------------------------------------------------------- */
/* KL(P || Q) where P is bins [0, kept) with all beyond added to the last, and Q the same bins without those, merged
 * into `levels` levels and spread again over the bins that are not empty. Infinite where Q is empty and P is not. */
static double divergence(const uint64_t *h, int32_t kept, int32_t levels, double total, double inside) {
    double sum = 0.0;
    for (int32_t level = 0; level < levels; level++) {
        int32_t from = (int32_t)((int64_t)level * kept / levels), end = (int32_t)((int64_t)(level + 1) * kept / levels);
        double mass = 0.0;
        int32_t live = 0;
        for (int32_t i = from; i < end; i++) {
            mass += (double)h[i];
            live += h[i] > 0;
        }
        for (int32_t i = from; i < end; i++) {
            double p = (double)h[i] + (i == kept - 1 ? total - inside : 0.0);
            if (p == 0.0) continue;
            if (h[i] == 0) return INFINITY;
            sum += p / total * log((p / total) / (mass / (double)live / inside));
        }
    }
    return sum;
}

int32_t qe_range_kl_bins(const uint64_t *histogram, int32_t bins, int32_t levels) {
    double total = 0.0, inside = 0.0, best = INFINITY;
    int32_t chosen = bins;
    if (!histogram || bins < 1 || levels < 1) return 0;
    for (int32_t i = 0; i < bins; i++) total += (double)histogram[i];
    if (total == 0.0) return 0;
    for (int32_t kept = 1; kept <= bins; kept++) {
        inside += (double)histogram[kept - 1];
        if (kept < levels || inside == 0.0) continue;
        double d = divergence(histogram, kept, levels, total, inside);
        if (d < best) {
            best = d;
            chosen = kept;
        }
    }
    return chosen;
}

enum { KL_BINS = 2048 };

static qe_status clip_kl(const qe_bins *b, int32_t levels, float *low, float *high, qe_error *err) {
    uint64_t *coarse = qe_scratch(KL_BINS * sizeof(uint64_t), err);
    if (!coarse) return QE_E_NOMEM;
    memset(coarse, 0, KL_BINS * sizeof(uint64_t));
    int32_t each = b->count / KL_BINS, used = 0;
    for (int32_t i = 0; i < b->count; i++) {
        uint64_t n = b->positive[i] + b->negative[i];
        coarse[i / each] += n;
        if (n) used = i / each + 1;
    }
    int32_t kept = qe_range_kl_bins(coarse, used, levels);
    free(coarse);
    if (kept == used) return QE_OK;
    float t = ldexpf((float)(kept * each), b->bin_log2);
    *high = qe_clamp(*high, 0.0f, t);
    *low = qe_clamp(*low, -t, 0.0f);
    return QE_OK;
}

/* ---- PERCENTILE ------------------------------------------------------------------------------------------- */
static double edge(const qe_bins *b, int32_t i) { return ldexp((double)i, b->bin_log2); }
static double center(const qe_bins *b, int32_t i) { return ldexp((double)i + 0.5, b->bin_log2); }

/* Upper edge of the bin that holds the value of the given nearest rank, counted from 0 in `order`. */
static void clip_percentile(const qe_bins *b, bool symmetric, double percent, float *low, float *high) {
    uint64_t total = 0, seen = 0;
    for (int32_t i = 0; i < b->count; i++) total += b->positive[i] + b->negative[i];
    double rank = ceil(percent / 100.0 * (double)total);
    if (symmetric) {
        for (int32_t i = 0; i < b->count; i++) {
            seen += b->positive[i] + b->negative[i];
            if ((double)seen < rank) continue;
            *high = qe_clamp(*high, 0.0f, (float)edge(b, i + 1));
            *low = qe_clamp(*low, (float)-edge(b, i + 1), 0.0f);
            return;
        }
    }
    /* The few beyond the percentile, counted from each end. */
    uint64_t beyond = total - (uint64_t)rank;
    const uint64_t *sides[2] = {b->negative, b->positive};
    for (int side = 0; side < 2; side++) {
        int32_t i = b->count - 1;
        for (seen = 0; i >= 0; i--) {
            seen += sides[side][i];
            if (seen > beyond) break;
        }
        float t = (float)edge(b, i + 1);
        if (side) *high = qe_clamp(*high, 0.0f, t);
        else *low = qe_clamp(*low, -t, 0.0f);
    }
}

/* ---- MSE --------------------------------------------------------------------------------------------------------- */
static double bins_error(const qe_rounder *r, const float *x, const float *weight, int32_t count, float low, float high,
                         const qe_range_options *o) {
    float scale;
    int32_t zero;
    qe_range_scale(low, high, r->quant, o, &scale, &zero);
    qe_group group = {scale, (float)zero, 0.0f, false};
    qe_grid g = qe_grid_make(r, &group);
    return qe_round_error(r, &g, x, weight, count);
}

/* Live bins as values with a weight each: centers, negative ones first. */
typedef struct bin_values {
    float *x, *weight;
    int32_t count;
    qe_quant plain;
    qe_rounder rounder;
    const qe_range_options *o;
} bin_values;

static qe_status values_of(const qe_bins *b, const qe_quant *quant, const qe_range_options *o, bin_values *v, qe_error *err) {
    *v = (bin_values){.x = qe_scratch((size_t)b->count * 4 * sizeof(float), err), .plain = qe_range_plain(quant), .o = o};
    if (!v->x) return QE_E_NOMEM;
    v->weight = v->x + 2 * b->count;
    for (int32_t side = 0; side < 2; side++) {
        const uint64_t *bins = side ? b->positive : b->negative;
        for (int32_t i = 0; i < b->count; i++) {
            if (!bins[i]) continue;
            v->x[v->count] = (float)(side ? center(b, i) : -center(b, i));
            v->weight[v->count++] = (float)bins[i];
        }
    }
    qe_rounder_init(&v->rounder, &v->plain, NULL, o->full_range);
    return QE_OK;
}

static double loss(const void *ctx, float low, float high) {
    const bin_values *v = ctx;
    return bins_error(&v->rounder, v->x, v->weight, v->count, low, high, v->o);
}

static void clip_mse(const bin_values *v, float *low, float *high) {
    const qe_range_options *o = v->o;
    float l = *low, h = *high, step = (1.0f - o->least_ratio) / (float)o->steps, best_low = 1.0f, best_high = 1.0f;
    double best = loss(v, l, h);
    for (int side = 0; side < (v->plain.zero == QE_ZERO_CONST ? 1 : 3); side++) {
        float from_low = best_low, from_high = best_high;
        for (int i = 1; i <= o->steps; i++) {
            float ratio = 1.0f - step * (float)i, rl = side == 2 ? from_low : ratio, rh = side == 1 ? from_high : ratio;
            double e = loss(v, l * rl, h * rh);
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

/* ---- OCTAV ------------------------------------------------------------------------------------------------------- */
static void sums_above(const void *ctx, double s, double *sum, double *number) {
    const bin_values *v = ctx;
    *sum = *number = 0.0;
    for (int32_t i = 0; i < v->count; i++) {
        double a = fabs((double)v->x[i]), n = (double)v->weight[i];
        if (a > s) *sum += n * a, *number += n;
    }
}

static qe_status clip_bins(const qe_bins *b, const qe_quant *quant, const qe_range_options *o, float *low, float *high,
                           qe_error *err) {
    bin_values v;
    QE_TRY(values_of(b, quant, o, &v, err));
    double steps = qe_range_steps(quant, o), top = fmax((double)*high, (double)-*low);
    if (o->method == QE_RANGE_MSE) {
        clip_mse(&v, low, high);
    } else {
        double start = qe_octav_start(sums_above, &v, 1.0 / (12.0 * steps * steps), top);
        if (quant->code == QE_CODE_LUT) qe_octav_clip(start, low, high);   /* as for values: no table yet, no errors */
        else qe_octav_refine(start, steps, quant->zero == QE_ZERO_CONST, loss, &v, low, high);
    }
    free(v.x);
    return QE_OK;
}

qe_status qe_range_of_bins(const qe_bins *b, const qe_quant *quant, const qe_range_options *o, float *low, float *high,
                           qe_error *err) {
    *low = b->low < 0.0f ? b->low : 0.0f;
    *high = b->high > 0.0f ? b->high : 0.0f;
    if (*low == 0.0f && *high == 0.0f) return QE_OK;
    switch (o->method) {
    case QE_RANGE_PERCENTILE:
        clip_percentile(b, quant->zero == QE_ZERO_CONST, (double)o->percentile, low, high);
        return QE_OK;
    case QE_RANGE_MSE:
    case QE_RANGE_OCTAV: return clip_bins(b, quant, o, low, high, err);
    case QE_RANGE_KL: return clip_kl(b, 1 << quant->bits >> 1, low, high, err);
    case QE_RANGE_OUTPUT: return qe_error_set(err, QE_E_UNSUPPORTED, "the range 'output' is for weights");
    default: return QE_OK;
    }
}
