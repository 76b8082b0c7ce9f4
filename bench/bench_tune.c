/* bench_tune.c -- qbench tune: the plans that give one problem the same bits, timed in turns; the fastest goes into the tuning
 * cache. Differences of up to 2 % of the time are noise: the cache's plan stands only if it takes less than 98 % of the time
 * of the untuned one, which else stands in its place, and what stands gives way only to one that takes less than 98 % of its time. */
#include <stdlib.h>
#include <string.h>

#include "bench_gemm.h"
#include "run/device.h"
#include "run/linear_tuning.h"

enum { PLANS_MAX = QK_TUNINGS + 1 };
static const double gain = 0.98;     /* of the time */

typedef struct tuner {
    gemm_run    *run;
    gemm_buffers b;
    qk_gemm      gemm;
    qk_tuning    tunings[PLANS_MAX];     /* 0: untuned; the last may be what the cache says */
    int          count, old;
    bench_graph *graphs[PLANS_MAX];
    int          calls[PLANS_MAX];
    double       times[PLANS_MAX][ROUNDS_MAX], median[PLANS_MAX];
} tuner;

static void force(tuner *t, const qk_tuning *tuning) {
    for (int i = 0; i < t->run->copies_count; i++) qe_linear_force(t->run->copies[i], tuning);
}

static void find_plans(tuner *t) {
    const qe_linear *l = t->run->copies[0];
    qk_x             x;
    qe_linear_problem(l, t->b.m, t->run->io_type, t->run->io_type, &t->gemm, &x);
    t->count = qk_gemm_tunings(&t->run->device->facts, &t->gemm, t->tunings);
    const qe_linear_choice *choice = qe_linear_choice_of(l, &t->gemm);
    if (choice) t->old = t->count, t->tunings[t->count++] = choice->tuning;
}

static void print_plan(const tuner *t, int i) {
    qk_plan plan;
    if (qk_gemm_plan_tuned(&t->run->device->facts, &t->gemm, &t->tunings[i], &plan, NULL)) return;
    printf("%s instance %d, %d splits, %u threads", plan.row->name, plan.variant, plan.splits, plan.block);
}

/* Room for the plan that wants most. */
static qe_status grow_workspace(tuner *t, qe_error *err) {
    gemm_run *run = t->run;
    size_t    most = t->b.workspace_bytes;
    for (int i = 0; i < t->count; i++) {
        force(t, &t->tunings[i]);
        size_t bytes = qe_linear_workspace(run->copies[0], t->b.m, run->io_type);
        most = bytes > most ? bytes : most;
    }
    run->backend->release(&run->facts, t->b.workspace);
    t->b.workspace = NULL;
    t->b.workspace_bytes = most;
    return run->backend->alloc(&run->facts, most + 256, &t->b.workspace, err);
}

/* One call of each plan: the same bytes, or the plan is no candidate and the library is wrong. */
static qe_status compare_bits(tuner *t, qe_error *err) {
    gemm_run *run = t->run;
    size_t    bytes = (size_t)(t->b.m * run->n) * (run->io_type == QE_CODE_F16 ? 2 : 4);
    char     *want = malloc(2 * bytes), *got = want ? want + bytes : NULL;
    if (!want) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld tokens", (long long)t->b.m);
    qe_status status = QE_OK;
    for (int i = 0; i < t->count && !status; i++) {
        double us;
        run->turn = 0;
        force(t, &t->tunings[i]);
        status = bench_sample(run, &t->b, 1, &us, err);
        t->calls[i] = bench_calls(us);
        if (!status) status = run->backend->copy(&run->queue, i ? got : want, t->b.dev_y, bytes, err);
        if (!status) status = run->backend->wait(&run->queue, err);
        if (!status && i && memcmp(want, got, bytes))
            status = qe_error_set(err, QE_E_VALUE, "plan %d of %s %lldx%lld m %lld gives other bits", i, run->scheme->name,
                                  (long long)run->n, (long long)run->k, (long long)t->b.m);
    }
    free(want);
    return status;
}

static qe_status time_plan(tuner *t, int plan, int round, qe_error *err) {
    if (t->run->cuda) return bench_cuda_replay(t->run->cuda, t->graphs[plan], &t->times[plan][round], err);
    force(t, &t->tunings[plan]);
    return bench_sample(t->run, &t->b, t->calls[plan], &t->times[plan][round], err);
}

static qe_status time_plans(tuner *t, qe_error *err) {
    for (int i = 0; i < t->count && t->run->cuda; i++) {
        force(t, &t->tunings[i]);
        QE_TRY(bench_graph_of(t->run, bench_gemm_enqueue, &t->b, t->run->copies_count, &t->graphs[i], err));
    }
    for (int round = 0; round < t->run->options->rounds; round++) {
        bench_progress("%s %lldx%lld m %lld: round %d of %d, %d plans", t->run->scheme->name, (long long)t->run->n,
                       (long long)t->run->k, (long long)t->b.m, round + 1, t->run->options->rounds, t->count);
        for (int i = 0; i < t->count; i++) QE_TRY(time_plan(t, i, round, err));
    }
    for (int i = 0; i < t->count; i++) t->median[i] = bench_quantile(t->times[i], t->run->options->rounds, 0.5);
    return QE_OK;
}

static int best_of(const tuner *t) {
    int best = t->median[t->old] < t->median[0] * gain ? t->old : 0;
    int least = best;
    for (int i = 0; i < t->count; i++)
        if (t->median[i] < t->median[least]) least = i;
    return t->median[least] < t->median[best] * gain ? least : best;
}

static qe_status store(const tuner *t, int best, qe_error *err) {
    qe_tuning_entry e;
    const qe_device *device = t->run->device;
    qk_plan plan;
    QE_TRY(qk_gemm_plan_tuned(&device->facts, &t->gemm, &t->tunings[best], &plan, err));
    qe_tuning_key(device, &t->gemm, &e);
    snprintf(e.row, sizeof e.row, "%s", plan.row->name);
    e.tile_m = t->tunings[best].tile_m, e.units = t->tunings[best].units;
    e.us = t->median[best], e.untuned_us = t->median[0];
    return qe_tuning_write(t->run->options->cache, &e, 1, err);
}

static qe_status measure(tuner *t, qe_error *err) {
    QE_TRY(grow_workspace(t, err));
    QE_TRY(compare_bits(t, err));
    QE_TRY(time_plans(t, err));
    int best = best_of(t);
    QE_TRY(store(t, best, err));
    bench_progress("%s", "");
    printf("%d plans with equal bits\n  old %s ", t->count - (t->old > 0), t->old ? "tuned  " : "untuned");
    print_plan(t, t->old);
    printf(": %.1f us\n  new ", t->median[t->old]);
    print_plan(t, best);
    printf(": %.1f us, %.2f times as fast as old, %.2f as untuned\n", t->median[best], t->median[t->old] / t->median[best],
           t->median[0] / t->median[best]);
    return QE_OK;
}

qe_status bench_tune_open(const char *cache, qe_error *err) { return qe_tuning_write(cache, NULL, 0, err); }

qe_status bench_tune(gemm_run *run, int64_t m, qe_error *err) {
    tuner *t = calloc(1, sizeof *t);
    if (!t) return qe_error_set(err, QE_E_NOMEM, "no memory for the tuning");
    t->run = run;
    t->b.m = m;
    find_plans(t);
    printf("%s %lldx%lld m %lld: ", run->scheme->name, (long long)run->n, (long long)run->k, (long long)m);
    qe_status status = QE_OK;
    if (t->count < 2) {
        printf("one plan, nothing to choose\n");
    } else {
        status = bench_buffers_make(run, m, &t->b, err);
        if (!status) status = measure(t, err);
        force(t, NULL);
        for (int i = 0; i < t->count; i++) bench_graph_destroy(t->graphs[i]);
        bench_buffers_free(run, &t->b);
    }
    free(t);
    return status;
}
