/* bench_gemm.c -- one quantized linear through the public interface: checked, then timed against roofs and a baseline.
 *
 * Rounds interleave all that is compared: roofs, our call, the baseline. Each call uses another copy of the weight, so
 * that together they exceed the caches (unless --warm). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "qk.h"

enum { COPIES_MAX = 64, ROUNDS_MAX = 201 };
static const double rotate_bytes = 192e6;      /* larger than the last-level caches of the machines we meet */

typedef struct gemm_run {
    const bench_options *options;
    bench_report        *report;
    qe_device           *device;
    qe_device_info       info;
    qe_pool             *pool;
    bench_roof_meter    *meter;
    const qk_backend    *backend;
    qk_device            facts;
    qk_queue             queue;
    const bench_scheme  *scheme;
    qe_quant             quant;
    qe_act               act;
    int64_t              n, k;
    qe_qtensor           weight;
    void                *block;
    qe_linear           *copies[COPIES_MAX];
    int                  copies_count, turn;
    float               *dense;                /* the weight in FP32, for the baseline */
    bool                 failed_check;
} gemm_run;

/* Buffers of one m; `dev_` ones lie where the backend works. */
typedef struct gemm_buffers {
    float *x, *y;
    void  *dev_x, *dev_y, *workspace;
    size_t workspace_bytes;
} gemm_buffers;

static void buffers_free(gemm_run *run, gemm_buffers *b) {
    free(b->x), free(b->y);
    run->backend->release(&run->facts, b->dev_x);
    run->backend->release(&run->facts, b->dev_y);
    run->backend->release(&run->facts, b->workspace);
}

static qe_status buffers_make(gemm_run *run, int64_t m, gemm_buffers *b, qe_error *err) {
    size_t x_bytes = (size_t)(m * run->k) * sizeof(float), y_bytes = (size_t)(m * run->n) * sizeof(float);
    memset(b, 0, sizeof *b);
    b->x = malloc(x_bytes);
    b->y = calloc(1, y_bytes);
    if (!b->x || !b->y) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld tokens", (long long)m);
    bench_random_floats(b->x, m * run->k, 17);
    b->workspace_bytes = qe_linear_workspace(run->copies[0], m, QE_CODE_F32);
    QE_TRY(run->backend->alloc(&run->facts, x_bytes, &b->dev_x, err));
    QE_TRY(run->backend->alloc(&run->facts, y_bytes, &b->dev_y, err));
    QE_TRY(run->backend->alloc(&run->facts, b->workspace_bytes + 256, &b->workspace, err));
    return run->backend->copy(&run->queue, b->dev_x, b->x, x_bytes, err);
}

static qe_status call(gemm_run *run, const gemm_buffers *b, int64_t m, qe_error *err) {
    qe_linear_args args = {.struct_size = sizeof args, .m = m, .x = b->dev_x, .ldx = run->k, .x_type = QE_CODE_F32,
                           .y_type = QE_CODE_F32, .y = b->dev_y, .ldy = run->n, .workspace = b->workspace,
                           .workspace_bytes = b->workspace_bytes};
    run->turn = (run->turn + 1) % run->copies_count;
    QE_TRY(qe_linear_run(run->copies[run->turn], &args, err));
    return run->backend->wait(&run->queue, err);
}

static qe_status check(gemm_run *run, gemm_buffers *b, int64_t m, bench_result *r, qe_error *err) {
    qe_linear_info info;
    double         worst;
    qe_linear_get_info(run->copies[0], &info);
    QE_TRY(call(run, b, m, err));
    QE_TRY(run->backend->copy(&run->queue, b->y, b->dev_y, (size_t)(m * run->n) * sizeof(float), err));
    QE_TRY(run->backend->wait(&run->queue, err));
    QE_TRY(bench_check(&run->weight, &info.act, info.chunk_k, b->x, m, b->y, &worst, &r->max_err, err));
    if (worst <= 1.0) return QE_OK;
    run->failed_check = true;
    return qe_error_set(err, QE_E_VALUE, "%s %lldx%lld m %lld: wrong result, %.3g times the error bound (%s)",
                        run->scheme->name, (long long)run->n, (long long)run->k, (long long)m, worst, info.layout);
}

/* Calls to time as one sample: at least 200 us of them, so that the clock and the wake-up do not matter. */
static qe_status sample(gemm_run *run, const gemm_buffers *b, int64_t m, int calls, double *us, qe_error *err) {
    double begin = bench_now_us();
    for (int i = 0; i < calls; i++) QE_TRY(call(run, b, m, err));
    *us = (bench_now_us() - begin) / calls;
    return QE_OK;
}

static qe_status time_rounds(gemm_run *run, gemm_buffers *b, int64_t m, bench_result *r, qe_error *err) {
    int    rounds = run->options->rounds, calls = 1;
    double ours[ROUNDS_MAX], base[ROUNDS_MAX], read[ROUNDS_MAX], peak[ROUNDS_MAX], first;
    bool   baseline = run->dense && strcmp(run->options->baseline, "openblas-f32") == 0;
    bench_roofs roofs = {.read_gbps = NAN, .int8_tops = NAN, .fp32_tflops = NAN};
    QE_TRY(sample(run, b, m, 1, &first, err));
    if (first < 200) calls = (int)(200 / (first > 1 ? first : 1)) + 1;
    for (int i = 0; i < rounds; i++) {
        bench_progress("%s %lldx%lld m %lld: round %d of %d", run->scheme->name, (long long)run->n, (long long)run->k,
                       (long long)m, i + 1, rounds);
        if (run->meter) bench_roof_measure(run->meter, &roofs);
        read[i] = roofs.read_gbps, peak[i] = run->act.mode == QE_ACT_FLOAT ? roofs.fp32_tflops : roofs.int8_tops;
        QE_TRY(sample(run, b, m, calls, &ours[i], err));
        double begin = bench_now_us();
        if (baseline) bench_openblas_gemm(m, run->n, run->k, b->x, run->dense, b->y);
        base[i] = bench_now_us() - begin;
    }
    r->us_median = bench_quantile(ours, rounds, 0.5);
    r->us_p10 = bench_quantile(ours, rounds, 0.1), r->us_p90 = bench_quantile(ours, rounds, 0.9);
    double operations = 2.0 * (double)m * (double)run->n * (double)run->k;
    double bits = qe_quant_bits_per_weight(&run->quant, run->n, run->k);
    double bytes = bits / 8 * (double)(run->n * run->k) + 4.0 * (double)(m * (run->n + run->k));
    r->tops = operations / r->us_median * 1e-6;
    r->gbps = bytes / r->us_median * 1e-3;
    if (run->meter) {
        double by_memory = bytes / bench_quantile(read, rounds, 0.5) * 1e-3;
        double by_arithmetic = operations / bench_quantile(peak, rounds, 0.5) * 1e-6;
        r->roof_pct = 100 * fmax(by_memory, isfinite(by_arithmetic) ? by_arithmetic : 0) / r->us_median;
    }
    if (!baseline) return QE_OK;
    snprintf(r->baseline, sizeof r->baseline, "%s", run->options->baseline);
    r->baseline_us = bench_quantile(base, rounds, 0.5);
    r->speedup = r->baseline_us / r->us_median;
    return QE_OK;
}

static void tell(void *ctx, const char *name, const char *why) {
    (void)ctx;
    printf("  %-28s %s\n", name, why ? why : "chosen");
}

static qe_status one_m(gemm_run *run, int64_t m, qe_error *err) {
    qe_linear_info info;
    qe_linear_get_info(run->copies[0], &info);
    if (run->options->explain) {
        printf("%s %lldx%lld m %lld on %s:\n", run->scheme->name, (long long)run->n, (long long)run->k, (long long)m,
               run->info.isa);
        return qe_linear_explain(run->copies[0], m, tell, NULL, err);
    }
    bench_result r = bench_result_new("gemm");
    gemm_buffers b;
    snprintf(r.backend, sizeof r.backend, "%s", run->backend->name);
    snprintf(r.impl, sizeof r.impl, "%s", info.layout);
    snprintf(r.scheme, sizeof r.scheme, "%s", run->scheme->name);
    snprintf(r.device, sizeof r.device, "%s", run->info.name);
    r.m = m, r.n = run->n, r.k = run->k, r.group = run->quant.group_k, r.threads = run->info.threads;
    qe_status status = buffers_make(run, m, &b, err);
    if (!status) status = check(run, &b, m, &r, err);
    if (!status && !run->options->check) status = time_rounds(run, &b, m, &r, err);
    buffers_free(run, &b);
    if (!status) bench_report_add(run->report, &r);
    return status;
}

static qe_status make_copies(gemm_run *run, qe_error *err) {
    qe_linear_options options = {.struct_size = sizeof options, .act = &run->act, .y_type = QE_CODE_F32};
    qe_linear_info    info;
    int               want = 1;
    for (run->copies_count = 0; run->copies_count < want; run->copies_count++) {
        bench_progress("%s %lldx%lld: packing", run->scheme->name, (long long)run->n, (long long)run->k);
        QE_TRY(qe_linear_create(run->device, &run->weight, &options, &run->copies[run->copies_count], err));
        if (run->copies_count || run->options->warm || run->options->explain || run->options->check) continue;
        qe_linear_get_info(run->copies[0], &info);
        double copies = ceil(rotate_bytes / (double)info.packed_bytes) + 1;
        want = copies > COPIES_MAX ? COPIES_MAX : (int)copies;
    }
    return QE_OK;
}

static qe_status one_shape(gemm_run *run, const bench_scheme *scheme, int64_t n, int64_t k, qe_error *err) {
    run->scheme = scheme;
    run->quant = scheme->quant;
    run->n = n, run->k = k;
    if (scheme->grouped) run->quant.group_k = run->options->group;
    bench_scheme_act(scheme, &run->quant, &run->act);
    qe_status status = bench_weight(&run->quant, &run->act, n, k, 3, &run->weight, &run->block, err);
    if (!status) status = make_copies(run, err);
    if (!status && strcmp(run->options->baseline, "openblas-f32") == 0 && !run->options->explain) {
        run->dense = malloc((size_t)(n * k) * sizeof *run->dense);
        if (!run->dense) status = qe_error_set(err, QE_E_NOMEM, "no memory for the FP32 weight");
        if (!status) status = qe_dequantize(&run->weight, 0, n, run->dense, k, err);
    }
    for (int32_t i = 0; !status && i < run->options->m_count; i++) status = one_m(run, run->options->m[i], err);
    for (int i = 0; i < COPIES_MAX; i++) qe_linear_destroy(run->copies[i]), run->copies[i] = NULL;
    free(run->dense), free(run->block);
    run->dense = NULL, run->block = NULL;
    return status;
}

typedef struct shape { const char *name; int64_t n, k; } shape;
static const shape shapes[] = {
#define SHAPE(name, n, k) {name, n, k},
#include "shapes.txt"
#undef SHAPE
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* "4096x1024" or a name; calls back for each shape it stands for. Exit code. */
static int each_scheme(gemm_run *run, int64_t n, int64_t k) {
    qe_error err;
    for (const char *at = run->options->scheme; *at;) {
        size_t              bytes = strcspn(at, ",");
        const bench_scheme *scheme = bench_scheme_find(at, bytes);
        if (!scheme) {
            fprintf(stderr, "qbench: scheme \"%.*s\" is none of %s\n", (int)bytes, at, bench_scheme_names);
            return BENCH_USAGE;
        }
        if (one_shape(run, scheme, n, k, &err)) return bench_fail(&err);
        at += bytes + (at[bytes] == ',');
    }
    return BENCH_OK;
}

static int each_shape(gemm_run *run) {
    const char *text = run->options->shape;
    char       *end;
    long long   n = strtoll(text, &end, 10), k = *end == 'x' ? strtoll(end + 1, &end, 10) : 0;
    if (*end == 0 && n > 0 && k > 0 && n < 1 << 24 && k < 1 << 20) return each_scheme(run, n, k);
    int found = 0, code = BENCH_OK;
    for (int i = 0; i < SHAPES && !code; i++) {
        if (strncmp(shapes[i].name, text, strlen(text)) != 0) continue;
        found++;
        code = each_scheme(run, shapes[i].n, shapes[i].k);
    }
    if (found) return code;
    fprintf(stderr, "qbench: shape \"%s\" is neither NxK nor one of:", text);
    for (int i = 0; i < SHAPES; i++) fprintf(stderr, " %s", shapes[i].name);
    fputc('\n', stderr);
    return BENCH_USAGE;
}

int bench_gemm(const bench_options *options, bench_report *report) {
    gemm_run run = {.options = options, .report = report};
    qe_error err;
    int      code = bench_device(options, &run.device);
    if (code) return code;
    qe_device_get_info(run.device, &run.info);
    run.backend = qk_backend_of(run.info.backend - QE_BACKEND_REF);
    run.queue.device = &run.facts;
    if (run.backend->describe(run.info.ordinal, &run.facts, &err)) {
        code = bench_fail(&err);
    } else if (run.info.backend != QE_BACKEND_CUDA && !options->explain && !options->check) {
        if (qe_pool_create(run.info.threads, &run.pool, &err)) code = bench_fail(&err);
        if (!code) run.meter = bench_roof_create(run.pool, run.info.threads);
        bench_openblas_threads(run.info.threads);
        if (strcmp(options->baseline, "openblas-f32") == 0 && bench_openblas_core())
            fprintf(stderr, "baseline: OpenBLAS, core type %s\n", bench_openblas_core());
    }
    if (!code) code = each_shape(&run);
    bench_roof_destroy(run.meter);
    qe_pool_destroy(run.pool);
    qe_device_destroy(run.device);
    return code;
}
