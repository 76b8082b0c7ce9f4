/* mixed.c -- one choice per layer under a budget: the multiple-choice knapsack, exact. Layer after layer the front of
 * undominated (cost, loss) sums is kept; the best loss within the budget is its last point. */
#include <math.h>
#include <stdlib.h>

#include "quant/dense.h"

enum { MOST_POINTS = 4 << 20 };

typedef struct front_point {
    int64_t cost;
    double loss;
    int32_t from, choice;      /* index in the front before, choice of this layer */
} front_point;

typedef struct front {
    front_point *points;
    int64_t count;
} front;

static int by_cost(const void *a, const void *b) {
    const front_point *x = a, *y = b;
    if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
    if (x->loss != y->loss) return x->loss < y->loss ? -1 : 1;
    if (x->from != y->from) return x->from < y->from ? -1 : 1;
    return x->choice < y->choice ? -1 : x->choice > y->choice;
}

/* The front after one more layer; `room` is the budget less what the layers after it cost at least. */
static qe_status extend(const front *before, const qe_choice *choices, int32_t count, int64_t room, front *after,
                        qe_error *err) {
    if (before->count * count > MOST_POINTS)
        return qe_error_set(err, QE_E_LIMIT, "more than %d partial selections: coarsen the costs", MOST_POINTS);
    after->points = qe_scratch((size_t)(before->count * count) * sizeof(front_point), err);
    if (!after->points) return QE_E_NOMEM;
    int64_t all = 0, kept = 0;
    for (int64_t i = 0; i < before->count; i++) {
        for (int32_t c = 0; c < count; c++) {
            if (choices[c].cost < 0 || choices[c].cost > room - before->points[i].cost) continue;
            after->points[all++] = (front_point){before->points[i].cost + choices[c].cost,
                                                 before->points[i].loss + choices[c].loss, (int32_t)i, c};
        }
    }
    qsort(after->points, (size_t)all, sizeof(front_point), by_cost);
    for (int64_t i = 0; i < all; i++) {
        if (kept && !(after->points[i].loss < after->points[kept - 1].loss)) continue;
        after->points[kept++] = after->points[i];
    }
    after->count = kept;
    front_point *less = kept ? realloc(after->points, (size_t)kept * sizeof(front_point)) : NULL;
    if (less) after->points = less;
    return QE_OK;
}

static qe_status check_choices(const qe_choice *choices, int32_t layers, int32_t count, int64_t budget, int64_t *least,
                               qe_error *err) {
    *least = 0;
    for (int32_t l = 0; l < layers; l++) {
        int64_t low = -1;
        for (int32_t c = 0; c < count; c++) {
            const qe_choice *x = &choices[(int64_t)l * count + c];
            if (x->cost < 0) continue;
            if (!isfinite(x->loss))
                return qe_error_set(err, QE_E_VALUE, "the loss of layer %d, choice %d is not a finite number", l, c);
            low = low < 0 || x->cost < low ? x->cost : low;
        }
        if (low < 0) return qe_error_set(err, QE_E_ARGUMENT, "layer %d has no choice", l);
        if (low > budget - *least)
            return qe_error_set(err, QE_E_LIMIT, "no selection costs %lld or less: the cheapest passes it at layer %d",
                                (long long)budget, l);
        *least += low;
    }
    return QE_OK;
}

static int64_t cheapest(const qe_choice *choices, int32_t count) {
    int64_t low = -1;
    for (int32_t c = 0; c < count; c++) {
        if (choices[c].cost >= 0 && (low < 0 || choices[c].cost < low)) low = choices[c].cost;
    }
    return low;
}

qe_status qe_mixed_solve(const qe_choice *choices, int32_t layers, int32_t count, int64_t budget, int32_t *picked,
                         int64_t *cost, double *loss, qe_error *err) {
    int64_t least;
    if (!choices || !picked || layers < 1 || count < 1 || budget < 0 || budget > INT64_MAX / 2)
        return qe_error_set(err, QE_E_ARGUMENT, "%d layers of %d choices under %lld", layers, count,
                            (long long)budget);
    QE_TRY(check_choices(choices, layers, count, budget, &least, err));
    front *fronts = calloc((size_t)layers + 1, sizeof *fronts);
    if (!fronts) return qe_error_set(err, QE_E_NOMEM, "no memory for %d fronts", layers);
    front_point start = {0};
    fronts[0] = (front){&start, 1};
    qe_status status = QE_OK;
    for (int32_t l = 0; l < layers && !status; l++) {
        const qe_choice *row = choices + (int64_t)l * count;
        least -= cheapest(row, count);
        status = extend(&fronts[l], row, count, budget - least, &fronts[l + 1], err);
    }
    if (!status) {
        int64_t at = fronts[layers].count - 1;
        if (cost) *cost = fronts[layers].points[at].cost;
        if (loss) *loss = fronts[layers].points[at].loss;
        for (int32_t l = layers; l > 0; l--) {
            picked[l - 1] = fronts[l].points[at].choice;
            at = fronts[l].points[at].from;
        }
    }
    for (int32_t l = 1; l <= layers; l++) free(fronts[l].points);
    free(fronts);
    return status;
}
