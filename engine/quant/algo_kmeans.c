/* algo_kmeans.c -- 1-D k-means: Lloyd from k-means++ seeds on sorted values, or exact by dynamic programming, where the
 * best last cut of a prefix moves right with the prefix (divide and conquer, O(K n log n)). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/algo.h"

enum { EXACT_MOST = 65536 };

typedef struct point {
    float x, weight;
} point;

/* Sorted points with prefix sums, so that the cost of any run of points takes constant time. */
typedef struct points {
    int64_t count;
    const point *p;
    double *w, *wx, *wxx;      /* [count + 1] */
} points;

static int by_value(const void *a, const void *b) {
    const point *x = a, *y = b;
    return x->x < y->x ? -1 : x->x > y->x;
}

static double run_mean(const points *s, int64_t from, int64_t end) {
    double w = s->w[end] - s->w[from];
    return w > 0.0 ? (s->wx[end] - s->wx[from]) / w : 0.0;
}

/* Squared error of points [from, end) around their mean. */
static double run_cost(const points *s, int64_t from, int64_t end) {
    double w = s->w[end] - s->w[from], x = s->wx[end] - s->wx[from], xx = s->wxx[end] - s->wxx[from];
    if (!(w > 0.0)) return 0.0;
    double cost = xx - x * x / w;
    return cost > 0.0 ? cost : 0.0;
}

/* First point above the midpoint between two centers. */
static int64_t cut_between(const points *s, double a, double b) {
    double middle = 0.5 * (a + b);
    int64_t low = 0, high = s->count;
    while (low < high) {
        int64_t at = low + (high - low) / 2;
        if ((double)s->p[at].x <= middle) low = at + 1;
        else high = at;
    }
    return low;
}

/* ---- Lloyd ------------------------------------------------------------------------------------------------------- */
static int by_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* k-means++: each new center is a point drawn with chance weight * squared distance to the nearest one so far. */
static void seed_centers(const points *s, int32_t k, uint64_t seed, double *centers, double *distance) {
    double total = s->w[s->count], target = qe_uniform(seed, 0) * total;
    int64_t at = 0;
    while (at + 1 < s->count && s->w[at + 1] <= target) at++;
    centers[0] = (double)s->p[at].x;
    for (int64_t i = 0; i < s->count; i++) distance[i] = INFINITY;
    for (int32_t c = 1; c < k; c++) {
        double sum = 0.0;
        for (int64_t i = 0; i < s->count; i++) {
            double d = (double)s->p[i].x - centers[c - 1];
            d = d * d * (double)s->p[i].weight;
            distance[i] = d < distance[i] ? d : distance[i];
            sum += distance[i];
        }
        target = qe_uniform(seed, (uint64_t)c) * sum;
        for (at = 0; at + 1 < s->count; at++) {
            target -= distance[at];
            if (target < 0.0) break;
        }
        centers[c] = (double)s->p[at].x;
    }
    qsort(centers, (size_t)k, sizeof *centers, by_double);
}

static double lloyd(const points *s, int32_t k, int32_t iterations, double *centers) {
    double cost = INFINITY;
    for (int32_t step = 0; step <= iterations; step++) {
        double now = 0.0;
        int64_t from = 0;
        for (int32_t c = 0; c < k; c++) {
            int64_t end = c + 1 < k ? cut_between(s, centers[c], centers[c + 1]) : s->count;
            if (end < from) end = from;
            if (end > from && s->w[end] > s->w[from]) centers[c] = run_mean(s, from, end);
            now += run_cost(s, from, end);
            from = end;
        }
        if (!(now < cost)) break;
        cost = now;
    }
    return cost;
}

/* ---- exact ------------------------------------------------------------------------------------------------------- */
typedef struct cuts {
    const points *s;
    const double *before;      /* cost of the first i points in one cluster fewer */
    double *now;
    int32_t *cut;              /* where the last cluster starts */
} cuts;

/* now[i] for i in [low, high], knowing that the best cuts lie in [from, to]. */
static void solve_cuts(const cuts *c, int64_t low, int64_t high, int64_t from, int64_t to) {
    if (low > high) return;
    int64_t middle = low + (high - low) / 2, best_at = from;
    double best = INFINITY;
    for (int64_t at = from; at <= (middle < to ? middle : to); at++) {
        double cost = c->before[at] + run_cost(c->s, at, middle);
        if (cost < best) {
            best = cost;
            best_at = at;
        }
    }
    c->now[middle] = best;
    c->cut[middle] = (int32_t)best_at;
    solve_cuts(c, low, middle - 1, from, best_at);
    solve_cuts(c, middle + 1, high, best_at, to);
}

static qe_status exact(const points *s, int32_t k, double *centers, double *cost, qe_error *err) {
    int64_t n = s->count;
    double *rows = qe_scratch((size_t)(2 * (n + 1)) * sizeof(double), err);
    int32_t *cut = qe_scratch((size_t)(n + 1) * (size_t)k * sizeof(int32_t), err);
    if (!rows || !cut) {
        free(rows);
        free(cut);
        return QE_E_NOMEM;
    }
    for (int64_t i = 0; i <= n; i++) {
        rows[i] = run_cost(s, 0, i);
        cut[i] = 0;
    }
    for (int32_t c = 1; c < k; c++) {
        cuts job = {s, rows + (c % 2 ? 0 : n + 1), rows + (c % 2 ? n + 1 : 0), cut + (int64_t)c * (n + 1)};
        solve_cuts(&job, 0, n, 0, n);
    }
    *cost = rows[(k % 2 ? 0 : n + 1) + n];
    int64_t end = n;
    for (int32_t c = k - 1; c >= 0; c--) {
        int64_t from = cut[(int64_t)c * (n + 1) + end];
        /* An empty cluster repeats its neighbour: fewer distinct values than entries. */
        centers[c] = end > from ? run_mean(s, from, end) : end < n ? (double)s->p[end].x : (double)s->p[n - 1].x;
        end = from;
    }
    qsort(centers, (size_t)k, sizeof *centers, by_double);
    free(rows);
    free(cut);
    return QE_OK;
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */
static qe_status solve(point *p, int64_t count, int32_t bits, bool want_exact, int32_t iterations, uint64_t seed,
                       float *table, double *error, qe_error *err) {
    int32_t k = 1 << bits;
    double centers[256], cost = 0.0;
    qsort(p, (size_t)count, sizeof *p, by_value);
    double *sums = qe_scratch((size_t)(4 * (count + 1)) * sizeof(double), err);
    if (!sums) return QE_E_NOMEM;
    points s = {count, p, sums, sums + count + 1, sums + 2 * (count + 1)};
    s.w[0] = s.wx[0] = s.wxx[0] = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double w = (double)p[i].weight, x = (double)p[i].x;
        s.w[i + 1] = s.w[i] + w;
        s.wx[i + 1] = s.wx[i] + w * x;
        s.wxx[i + 1] = s.wxx[i] + w * x * x;
    }
    qe_status status = QE_OK;
    if (want_exact && count <= EXACT_MOST) {
        status = exact(&s, k, centers, &cost, err);
    } else {
        seed_centers(&s, k, seed, centers, sums + 3 * (count + 1));
        cost = lloyd(&s, k, iterations, centers);
        qsort(centers, (size_t)k, sizeof *centers, by_double);
    }
    for (int32_t c = 0; c < k && !status; c++) table[c] = (float)centers[c];
    if (error) *error = cost;
    free(sums);
    return status;
}

qe_status qe_kmeans(const float *x, const float *weights, int64_t count, int32_t bits, int32_t exact_wanted,
                    int32_t iterations, uint64_t seed, float *table, double *error, qe_error *err) {
    if (!x || !table || count < 1 || bits < 1 || bits > 8 || iterations < 0)
        return qe_error_set(err, QE_E_ARGUMENT, "k-means of %lld values into %d bits, %d iterations", (long long)count,
                            bits, iterations);
    if (exact_wanted && count > EXACT_MOST)
        return qe_error_set(err, QE_E_LIMIT, "exact k-means takes %d values, %lld are given", EXACT_MOST,
                            (long long)count);
    point *p = qe_scratch((size_t)count * sizeof *p, err);
    if (!p) return QE_E_NOMEM;
    qe_status status = QE_OK;
    double total = 0.0;
    for (int64_t i = 0; i < count && !status; i++) {
        p[i] = (point){x[i], weights ? weights[i] : 1.0f};
        total += (double)p[i].weight;
        if (!isfinite(x[i]) || !isfinite(p[i].weight) || p[i].weight < 0.0f)
            status = qe_error_set(err, QE_E_VALUE, "value or weight %lld is not a usable number", (long long)i);
    }
    for (int64_t i = 0; i < count && total == 0.0; i++) p[i].weight = 1.0f;
    if (!status) status = solve(p, count, bits, exact_wanted, iterations ? iterations : 50, seed, table, error, err);
    free(p);
    return status;
}

/* One table of the band, from rows [from, end) divided by their groups' scales. */
static qe_status fit_table(qe_round_job *j, const float *w, qe_qtensor *band, int64_t from, int64_t end,
                           qe_error *err) {
    int64_t k = band->k, count = (end - from) * k, step = band->quant.group_k ? band->quant.group_k : k;
    point *p = qe_scratch((size_t)count * sizeof *p, err);
    if (!p) return QE_E_NOMEM;
    double total = 0.0;
    for (int64_t row = from, at = 0; row < end; row++) {
        double scale = 1.0;
        for (int64_t c = 0; c < k; c++, at++) {
            int64_t column = band->order ? band->order[c] : c;
            if (c % step == 0) scale = (double)qe_group_at(band, row, c).scale;
            float weight = j->importance ? j->importance[column] : 1.0f;
            p[at] = (point){(float)((double)w[row * j->ldw + column] / scale), (float)((double)weight * scale * scale)};
            total += (double)p[at].weight;
        }
    }
    for (int64_t i = 0; i < count && total == 0.0; i++) p[i].weight = 1.0f;
    float *table = band->lut + (qe_group_row(band->first_row, from, band->quant.lut_n) << band->quant.bits);
    uint64_t seed = qe_mix(j->o.seed + (uint64_t)(band->first_row + from));
    qe_status status = solve(p, count, band->quant.bits, j->o.exact != 0, j->o.iterations, seed, table, NULL, err);
    free(p);
    return status;
}

qe_status qe_tables_fit(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    qe_levels_job l = {w, j->ldw, band, false};
    if (qe_num_is_integer(band->quant.scale) || band->quant.zero != QE_ZERO_CONST)
        return qe_error_set(err, QE_E_UNSUPPORTED, "tables take one level of float scales and no zeros");
    qe_levels_plain(&l, 0, band->k);
    int64_t step = band->quant.lut_n ? band->quant.lut_n : band->n;
    for (int64_t row = 0; row < band->n; row += step)
        QE_TRY(fit_table(j, w, band, row, row + step < band->n ? row + step : band->n, err));
    return QE_OK;
}

qe_status qe_band_kmeans(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err) {
    if (band->quant.code != QE_CODE_LUT)
        return qe_error_set(err, QE_E_UNSUPPORTED, "k-means makes tables: code LUT");
    QE_TRY(qe_tables_fit(j, w, band, err));
    qe_levels_job l = {w, j->ldw, band, false};
    qe_codes_store(&l);
    return QE_OK;
}
