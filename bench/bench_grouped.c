/* bench_grouped.c -- experts in one linear: one grouped call against one call for each expert, in turn, on the host.
 *
 * m is the tokens of an expert on average; every fourth has none, the others 1 to 3 parts of the rest. Both sides must give the
 * same bits before they are timed. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { ROUNDS_MAX = 201 };

typedef struct grouped_run {
    const bench_options *options;
    bench_report        *report;
    qe_device           *device;
    qe_device_info       info;
    const bench_scheme  *scheme;
    int64_t              n, k, m;              /* m: of all experts */
    int32_t              experts, *offsets;    /* [experts + 1] */
    qe_linear          **single, *together;
    float               *x, *y, *y_single;
    void                *workspace;
    size_t               workspace_bytes;
} grouped_run;

static void fill_offsets(grouped_run *run) {
    int64_t parts = 0, taken = 0;
    for (int32_t e = 0; e < run->experts; e++) parts += e % 4;
    for (int32_t e = 0; e < run->experts; e++) {
        run->offsets[e] = (int32_t)(parts ? run->m * taken / parts : 0);
        taken += e % 4;
    }
    run->offsets[run->experts] = (int32_t)run->m;
}

static qe_linear_args args_of(const grouped_run *run, int64_t first, int64_t m, float *y) {
    return (qe_linear_args){.struct_size = sizeof(qe_linear_args), .m = m, .x = run->x + first * run->k, .ldx = run->k,
                            .x_type = QE_CODE_F32, .y = y + first * run->n, .ldy = run->n, .workspace = run->workspace,
                            .workspace_bytes = run->workspace_bytes};
}

static qe_status call_grouped(const grouped_run *run, qe_error *err) {
    qe_linear_args   args = args_of(run, 0, run->m, run->y);
    qe_linear_groups groups = {.struct_size = sizeof groups, .layout = QE_GROUPS_CONTIGUOUS, .rows = run->offsets};
    return qe_linear_run_grouped(run->together, &args, &groups, err);
}

static qe_status call_singles(const grouped_run *run, qe_error *err) {
    for (int32_t e = 0; e < run->experts; e++) {
        qe_linear_args args = args_of(run, run->offsets[e], run->offsets[e + 1] - run->offsets[e], run->y_single);
        if (args.m) QE_TRY(qe_linear_run(run->single[e], &args, err));
    }
    return QE_OK;
}

static qe_status make_linears(grouped_run *run, const qe_quant *quant, const qe_act *act, qe_error *err) {
    qe_qtensor        *weights = calloc((size_t)run->experts, sizeof *weights);
    const qe_qtensor **all = calloc((size_t)run->experts, sizeof *all);
    void             **blocks = calloc((size_t)run->experts, sizeof *blocks);
    qe_linear_options  options = {.struct_size = sizeof options, .act = act};
    qe_status status = weights && all && blocks ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for %d weights", run->experts);
    for (int32_t e = 0; e < run->experts && !status; e++) {
        bench_progress("%s %lldx%lld: packing expert %d", run->scheme->name, (long long)run->n, (long long)run->k, e);
        status = bench_weight(quant, act, run->n, run->k, (uint64_t)e + 3, &weights[e], &blocks[e], err);
        all[e] = &weights[e];
        if (!status) status = qe_linear_create(run->device, all[e], &options, &run->single[e], err);
    }
    if (!status) status = qe_linear_create_grouped(run->device, all, run->experts, &options, &run->together, err);
    for (int32_t e = 0; blocks && e < run->experts; e++) free(blocks[e]);
    free(weights), free(all), free(blocks);
    return status;
}

static qe_status make_buffers(grouped_run *run, qe_error *err) {
    size_t y_bytes = (size_t)(run->m * run->n) * sizeof(float);
    run->workspace_bytes = qe_linear_workspace_grouped(run->together, QE_GROUPS_CONTIGUOUS, run->m, QE_CODE_F32);
    for (int32_t e = 0; e < run->experts; e++) {
        int64_t m = run->offsets[e + 1] - run->offsets[e];
        size_t  bytes = m ? qe_linear_workspace(run->single[e], m, QE_CODE_F32) : 0;
        if (bytes > run->workspace_bytes) run->workspace_bytes = bytes;
    }
    run->x = malloc((size_t)(run->m * run->k) * sizeof(float));
    run->y = calloc(1, y_bytes), run->y_single = calloc(1, y_bytes);
    run->workspace = aligned_alloc(256, (run->workspace_bytes + 511) / 256 * 256);
    if (!run->x || !run->y || !run->y_single || !run->workspace)
        return qe_error_set(err, QE_E_NOMEM, "no memory for %lld tokens", (long long)run->m);
    bench_random_floats(run->x, run->m * run->k, 17);
    return QE_OK;
}

static qe_status measure(grouped_run *run, bench_result *r, qe_error *err) {
    double ours[ROUNDS_MAX], single[ROUNDS_MAX];
    QE_TRY(call_grouped(run, err));
    QE_TRY(call_singles(run, err));
    if (memcmp(run->y, run->y_single, (size_t)(run->m * run->n) * sizeof(float)) != 0)
        return qe_error_set(err, QE_E_VALUE, "%s: the grouped call gives other bits than its experts", run->scheme->name);
    r->max_err = 0;
    int rounds = run->options->check ? 0 : run->options->rounds;
    for (int i = 0; i < rounds; i++) {
        double begin = bench_now_us();
        QE_TRY(call_grouped(run, err));
        double between = bench_now_us();
        QE_TRY(call_singles(run, err));
        ours[i] = between - begin, single[i] = bench_now_us() - between;
    }
    if (!rounds) return QE_OK;
    r->us_median = bench_quantile(ours, rounds, 0.5);
    r->us_p10 = bench_quantile(ours, rounds, 0.1), r->us_p90 = bench_quantile(ours, rounds, 0.9);
    r->tops = 2.0 * (double)run->m * (double)run->n * (double)run->k / r->us_median * 1e-6;
    snprintf(r->baseline, sizeof r->baseline, "%d-calls", run->experts);
    r->baseline_us = bench_quantile(single, rounds, 0.5);
    r->speedup = r->baseline_us / r->us_median;
    return QE_OK;
}

static void tell(void *ctx, const char *name, const char *why) {
    (void)ctx;
    printf("  %-28s %s\n", name, why ? why : "chosen");
}

static qe_status one_m(grouped_run *run, int64_t m, qe_error *err) {
    qe_linear_info info;
    bench_result   r = bench_result_new("gemm");
    run->m = m * run->experts;
    if (run->options->explain) {
        printf("%s %lldx%lld, %d experts of m %lld on %s:\n", run->scheme->name, (long long)run->n, (long long)run->k,
               run->experts, (long long)m, run->info.isa);
        return qe_linear_explain(run->together, m, tell, NULL, err);
    }
    fill_offsets(run);
    qe_linear_get_info(run->together, &info);
    snprintf(r.backend, sizeof r.backend, "%s", run->info.backend == QE_BACKEND_REF ? "ref" : "cpu");
    snprintf(r.impl, sizeof r.impl, "%.40s x %d", info.layout, run->experts);
    snprintf(r.scheme, sizeof r.scheme, "%s", run->scheme->name);
    snprintf(r.device, sizeof r.device, "%s", run->info.name);
    r.m = run->m, r.n = run->n, r.k = run->k, r.group = info.quant.group_k, r.threads = run->info.threads;
    qe_status status = make_buffers(run, err);
    if (!status) status = measure(run, &r, err);
    free(run->x), free(run->y), free(run->y_single), free(run->workspace);
    run->x = run->y = run->y_single = NULL, run->workspace = NULL;
    if (!status) bench_report_add(run->report, &r);
    return status;
}

static qe_status one_scheme(grouped_run *run, const bench_scheme *scheme, qe_error *err) {
    qe_quant quant = scheme->quant;
    qe_act   act;
    if (scheme->grouped) quant.group_k = run->options->group;
    bench_scheme_act(scheme, &quant, &act);
    run->scheme = scheme;
    run->single = calloc((size_t)run->experts, sizeof(qe_linear *));
    run->offsets = calloc((size_t)run->experts + 1, sizeof *run->offsets);
    qe_status status = run->single && run->offsets ? make_linears(run, &quant, &act, err)
                                                   : qe_error_set(err, QE_E_NOMEM, "no memory for %d experts", run->experts);
    for (int32_t i = 0; i < run->options->m_count && !status; i++) status = one_m(run, run->options->m[i], err);
    for (int32_t e = 0; run->single && e < run->experts; e++) qe_linear_destroy(run->single[e]);
    qe_linear_destroy(run->together);
    free(run->single), free(run->offsets);
    run->single = NULL, run->offsets = NULL, run->together = NULL;
    return status;
}

static int each_scheme(void *ctx, int64_t n, int64_t k) {
    grouped_run *run = ctx;
    qe_error     err;
    run->n = n, run->k = k;
    for (int32_t i = 0; i < run->options->scheme_count; i++)
        if (one_scheme(run, run->options->schemes[i], &err)) return bench_fail(&err);
    return BENCH_OK;
}

int bench_grouped(const bench_options *options, bench_report *report) {
    grouped_run run = {.options = options, .report = report, .experts = options->experts};
    int code = bench_device(options, &run.device);
    if (code) return code;
    qe_device_get_info(run.device, &run.info);
    if (run.info.backend == QE_BACKEND_CUDA && !options->explain) {
        fprintf(stderr, "qbench: --experts is timed on the host; on cuda it goes with --explain\n");
        code = BENCH_NO_BACKEND;
    }
    if (!code) code = bench_each_shape(options->shape, each_scheme, &run);
    qe_device_destroy(run.device);
    return code;
}
