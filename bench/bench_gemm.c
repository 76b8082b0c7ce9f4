/* bench_gemm.c -- one quantized linear through the public interface: checked, then timed against roofs and a baseline.
 *
 * Rounds interleave all that is compared: roofs, our call, the baseline. Each call uses another copy of the weight, so
 * that together they exceed the caches (unless --warm). On the CPU x and y are float32 and a call returns when it is
 * done; on CUDA they are float16, as the baseline's are, and a sample is one replay of a graph of calls. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>

#include "bench_gemm.h"

static const double rotate_bytes = 192e6;      /* larger than the last-level caches of the CPUs we meet; GPUs: 3 x L2 */

static size_t io_bytes(const gemm_run *run) { return run->io_type == QE_CODE_F16 ? 2 : 4; }

void bench_buffers_free(gemm_run *run, gemm_buffers *b) {
    free(b->x), free(b->y), free(b->half);
    run->backend->release(&run->facts, b->dev_x);
    run->backend->release(&run->facts, b->dev_y);
    run->backend->release(&run->facts, b->workspace);
}

qe_status bench_buffers_make(gemm_run *run, int64_t m, gemm_buffers *b, qe_error *err) {
    size_t x_count = (size_t)(m * run->k), y_count = (size_t)(m * run->n), bytes = io_bytes(run);
    memset(b, 0, sizeof *b);
    b->m = m, b->run = run;
    b->x = malloc(x_count * sizeof(float));
    b->y = calloc(y_count, sizeof(float));
    b->half = calloc(x_count > y_count ? x_count : y_count, sizeof *b->half);
    if (!b->x || !b->y || !b->half) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld tokens", (long long)m);
    bench_random_floats(b->x, m * run->k, 17);
    for (size_t i = 0; i < x_count && bytes == 2; i++) {
        b->half[i] = qe_f32_to_f16(b->x[i]);
        b->x[i] = qe_f16_to_f32(b->half[i]);
    }
    b->workspace_bytes = qe_linear_workspace(run->copies[0], m, run->io_type);
    QE_TRY(run->backend->alloc(&run->facts, x_count * bytes, &b->dev_x, err));
    QE_TRY(run->backend->alloc(&run->facts, y_count * bytes, &b->dev_y, err));
    QE_TRY(run->backend->alloc(&run->facts, b->workspace_bytes + 256, &b->workspace, err));
    QE_TRY(run->backend->copy(&run->queue, b->dev_x, bytes == 2 ? (void *)b->half : b->x, x_count * bytes, err));
    return run->backend->wait(&run->queue, err);
}

/* m x n results of device memory as floats in b->y. */
static qe_status read_back(gemm_run *run, gemm_buffers *b, const void *from, qe_error *err) {
    size_t count = (size_t)(b->m * run->n), bytes = io_bytes(run);
    QE_TRY(run->backend->copy(&run->queue, bytes == 2 ? (void *)b->half : b->y, from, count * bytes, err));
    QE_TRY(run->backend->wait(&run->queue, err));
    for (size_t i = 0; i < count && bytes == 2; i++) b->y[i] = qe_f16_to_f32(b->half[i]);
    return QE_OK;
}

/* bench_enqueue: one call with the next copy of the weight. */
qe_status bench_gemm_enqueue(void *ctx, void *stream, qe_error *err) {
    gemm_buffers  *b = ctx;
    gemm_run      *run = b->run;
    qe_linear_args args = {.struct_size = sizeof args, .m = b->m, .x = b->dev_x, .ldx = run->k, .x_type = run->io_type,
                           .y_type = run->io_type, .y = b->dev_y, .ldy = run->n, .workspace = b->workspace,
                           .workspace_bytes = b->workspace_bytes, .stream = stream};
    run->turn = (run->turn + 1) % run->copies_count;
    return qe_linear_run(run->copies[run->turn], &args, err);
}

static qe_status call(gemm_run *run, gemm_buffers *b, qe_error *err) {
    QE_TRY(bench_gemm_enqueue(b, run->queue.stream, err));
    return run->backend->wait(&run->queue, err);
}

static qe_status check(gemm_run *run, gemm_buffers *b, bench_result *r, qe_error *err) {
    qe_linear_info info;
    bool           half = run->io_type == QE_CODE_F16;
    bench_rounding u = {.u_w = half && run->scheme->float_input ? 0x1p-11 : 0, .u_y = half ? 0x1p-11 : 0x1p-23};
    double         worst;
    qe_linear_get_info(run->copies[0], &info);
    QE_TRY(call(run, b, err));
    QE_TRY(read_back(run, b, b->dev_y, err));
    QE_TRY(bench_check(&run->weight, &info.act, info.chunk_k, u, b->x, b->m, b->y, &worst, &r->max_err, err));
    if (worst <= 1.0) return QE_OK;
    run->failed_check = true;
    return qe_error_set(err, QE_E_VALUE, "%s %lldx%lld m %lld: wrong result, %.3g times the error bound (%s)",
                        run->scheme->name, (long long)run->n, (long long)run->k, (long long)b->m, worst, info.layout);
}

/* ---- timing ------------------------------------------------------------------------------------------------------ */
typedef struct gemm_times {
    double ours[ROUNDS_MAX], base[ROUNDS_MAX], memory[ROUNDS_MAX], peak[ROUNDS_MAX];
    bool   baseline, roofs;
} gemm_times;

static void progress(const gemm_run *run, int64_t m, int round) {
    bench_progress("%s %lldx%lld m %lld: round %d of %d", run->scheme->name, (long long)run->n, (long long)run->k,
                   (long long)m, round + 1, run->options->rounds);
}

/* Calls of `us` each that make a sample: long enough that the clock does not matter. */
int bench_calls(double us) {
    const double sample_us = 10e3;
    return us < sample_us ? (int)(sample_us / (us > 1 ? us : 1)) + 1 : 1;
}

qe_status bench_sample(gemm_run *run, gemm_buffers *b, int calls, double *us, qe_error *err) {
    double begin = bench_now_us();
    for (int i = 0; i < calls; i++) QE_TRY(call(run, b, err));
    *us = (bench_now_us() - begin) / calls;
    return QE_OK;
}

static qe_status time_cpu(gemm_run *run, gemm_buffers *b, gemm_times *t, qe_error *err) {
    double      first;
    bench_roofs roofs = {.read_gbps = NAN, .int8_tops = NAN, .fp32_tflops = NAN};
    QE_TRY(bench_sample(run, b, 1, &first, err));
    int calls = bench_calls(first);
    t->baseline = run->dense && strcmp(run->options->baseline, "openblas-f32") == 0;
    t->roofs = run->meter != NULL;
    for (int i = 0; i < run->options->rounds; i++) {
        progress(run, b->m, i);
        if (run->meter) bench_roof_measure(run->meter, &roofs);
        t->memory[i] = roofs.read_gbps, t->peak[i] = run->act.mode == QE_ACT_FLOAT ? roofs.fp32_tflops : roofs.int8_tops;
        QE_TRY(bench_sample(run, b, 1, &first, err));   /* the roofs leave threads asleep; layers follow one another */
        QE_TRY(bench_sample(run, b, calls, &t->ours[i], err));
        double begin = bench_now_us();
        if (t->baseline) bench_openblas_gemm(b->m, run->n, run->k, b->x, run->dense, b->y);
        t->base[i] = bench_now_us() - begin;
    }
    return QE_OK;
}

/* The FP16 product of the same values, which must come out the same before it may be a yardstick. */
static qe_status make_blas(gemm_run *run, gemm_buffers *b, qe_error *err) {
    size_t    count = (size_t)(run->n * run->k), x_count = (size_t)(b->m * run->k);
    uint16_t *w = malloc(count * sizeof *w), *x = malloc(x_count * sizeof *x);
    double    rotate = run->options->warm ? 0 : fmax(rotate_bytes, 3.0 * (double)run->facts.cache_bytes), worst = 0;
    qe_status status = w && x ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for the FP16 weight");
    for (size_t i = 0; i < count && !status; i++) w[i] = qe_f32_to_f16(run->dense[i]);
    for (size_t i = 0; i < x_count && !status; i++) x[i] = qe_f32_to_f16(b->x[i]);
    if (!status)
        status = bench_cublaslt_create(run->cuda, false, b->m, run->n, run->k, x, w, rotate, &run->blas, err);
    if (!status) status = bench_cublaslt_enqueue(run->blas, run->queue.stream, err);
    if (!status) status = read_back(run, b, bench_cublaslt_y(run->blas), err);
    for (int64_t i = 0; i < 64 && !status; i++) {
        int64_t token = i * 7919 % b->m, row = i * 104729 % run->n;
        double  sum = 0, magnitude = 0;
        for (int64_t k = 0; k < run->k; k++) {
            double p = (double)b->x[token * run->k + k] * qe_f16_to_f32(w[row * run->k + k]);
            sum += p, magnitude += fabs(p);
        }
        double off = fabs(b->y[token * run->n + row] - sum) / (magnitude * 0x1p-10 + 0x1p-24);
        if (!(off <= worst)) worst = off;
    }
    free(w), free(x);
    if (!status && !(worst <= 1)) status = qe_error_set(err, QE_E_VALUE, "the baseline computes something else");
    return status;
}

qe_status bench_graph_of(gemm_run *run, bench_enqueue *enqueue_one, void *ctx, int copies, bench_graph **out, qe_error *err) {
    bench_graph *probe;
    double       us;
    QE_TRY(bench_cuda_record(run->cuda, enqueue_one, ctx, copies, &probe, err));
    qe_status status = bench_cuda_replay(run->cuda, probe, &us, err);
    if (!status) status = bench_cuda_replay(run->cuda, probe, &us, err);
    bench_graph_destroy(probe);
    QE_TRY(status);
    /* Whole turns through the copies, at least 2 ms. */
    int turns = 1 + (int)(2000 / (us * copies)), calls = turns * copies;
    return bench_cuda_record(run->cuda, enqueue_one, ctx, calls < GRAPH_CALLS_MAX ? calls : copies, out, err);
}

static qe_status time_cuda(gemm_run *run, gemm_buffers *b, gemm_times *t, qe_error *err) {
    bench_graph *ours = NULL, *base = NULL;
    bench_roofs  roofs;
    t->baseline = run->dense && strcmp(run->options->baseline, "cublaslt-f16") == 0;
    t->roofs = run->gpu_meter != NULL;
    qe_status status = t->baseline ? make_blas(run, b, err) : QE_OK;
    if (!status) status = bench_graph_of(run, bench_gemm_enqueue, b, run->copies_count, &ours, err);
    if (!status && t->baseline)
        status = bench_graph_of(run, bench_cublaslt_enqueue, run->blas, bench_cublaslt_copies(run->blas), &base, err);
    for (int i = 0; i < run->options->rounds && !status; i++) {
        progress(run, b->m, i);
        status = bench_gpu_meter_measure(run->gpu_meter, &roofs, err);
        t->memory[i] = roofs.copy_gbps, t->peak[i] = run->act.mode == QE_ACT_FLOAT ? roofs.fp16_tflops : roofs.int8_tops;
        if (!status) status = bench_cuda_replay(run->cuda, ours, &t->ours[i], err);
        if (!status && base) status = bench_cuda_replay(run->cuda, base, &t->base[i], err);
    }
    bench_graph_destroy(ours), bench_graph_destroy(base);
    bench_cublaslt_destroy(run->blas);
    run->blas = NULL;
    return status;
}

static qe_status time_rounds(gemm_run *run, gemm_buffers *b, bench_result *r, qe_error *err) {
    gemm_times t = {.baseline = false};
    int        rounds = run->options->rounds;
    QE_TRY(run->cuda ? time_cuda(run, b, &t, err) : time_cpu(run, b, &t, err));
    r->us_median = bench_quantile(t.ours, rounds, 0.5);
    r->us_p10 = bench_quantile(t.ours, rounds, 0.1), r->us_p90 = bench_quantile(t.ours, rounds, 0.9);
    double operations = 2.0 * (double)b->m * (double)run->n * (double)run->k;
    double bits = qe_quant_bits_per_weight(&run->quant, run->n, run->k);
    double bytes = bits / 8 * (double)(run->n * run->k) + (double)io_bytes(run) * (double)(b->m * (run->n + run->k));
    r->tops = operations / r->us_median * 1e-6;
    r->gbps = bytes / r->us_median * 1e-3;
    if (t.roofs) {
        double by_memory = bytes / bench_quantile(t.memory, rounds, 0.5) * 1e-3;
        double by_arithmetic = operations / bench_quantile(t.peak, rounds, 0.5) * 1e-6;
        r->roof_pct = 100 * fmax(by_memory, isfinite(by_arithmetic) ? by_arithmetic : 0) / r->us_median;
    }
    if (!t.baseline) return QE_OK;
    snprintf(r->baseline, sizeof r->baseline, "%s", run->options->baseline);
    r->baseline_us = bench_quantile(t.base, rounds, 0.5);
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
    if (run->options->tune) return bench_tune(run, m, err);
    bench_result r = bench_result_new("gemm");
    gemm_buffers b;
    snprintf(r.backend, sizeof r.backend, "%s", run->backend->name);
    snprintf(r.impl, sizeof r.impl, "%s", info.layout);
    snprintf(r.scheme, sizeof r.scheme, "%s", run->scheme->name);
    snprintf(r.device, sizeof r.device, "%s", run->info.name);
    r.m = m, r.n = run->n, r.k = run->k, r.group = run->quant.group_k, r.threads = run->info.threads;
    qe_status status = bench_buffers_make(run, m, &b, err);
    if (!status) status = check(run, &b, &r, err);
    if (!status && !run->options->check) status = time_rounds(run, &b, &r, err);
    bench_buffers_free(run, &b);
    if (!status) bench_report_add(run->report, &r);
    return status;
}

static qe_status make_copies(gemm_run *run, qe_error *err) {
    qe_linear_options options = {.struct_size = sizeof options, .act = &run->act, .y_type = run->io_type};
    double            rotate = fmax(rotate_bytes, run->cuda ? 3.0 * (double)run->facts.cache_bytes : 0);
    qe_linear_info    info;
    int               want = 1;
    for (run->copies_count = 0; run->copies_count < want; run->copies_count++) {
        bench_progress("%s %lldx%lld: packing", run->scheme->name, (long long)run->n, (long long)run->k);
        QE_TRY(qe_linear_create(run->device, &run->weight, &options, &run->copies[run->copies_count], err));
        if (run->copies_count || run->options->warm || run->options->explain || run->options->check) continue;
        qe_linear_get_info(run->copies[0], &info);
        double copies = ceil(rotate / (double)info.packed_bytes) + 1;
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
    if (!status && strcmp(run->options->baseline, "none") != 0 && !run->options->explain) {
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

static int each_scheme(void *ctx, int64_t n, int64_t k) {
    gemm_run *run = ctx;
    qe_error  err;
    for (int32_t i = 0; i < run->options->scheme_count; i++)
        if (one_shape(run, run->options->schemes[i], n, k, &err)) return bench_fail(&err);
    return BENCH_OK;
}

static int open_cuda(gemm_run *run) {
    qe_error err;
    run->io_type = QE_CODE_F16;
    if (run->options->explain) return BENCH_OK;
    run->cuda = bench_cuda_create(run->info.ordinal, &err);
    if (!run->cuda) return bench_fail(&err);
    run->queue.stream = bench_cuda_stream(run->cuda);
    if (run->options->check || run->options->tune) return BENCH_OK;
    return bench_gpu_meter_create(run->cuda, &run->gpu_meter, &err) ? bench_fail(&err) : BENCH_OK;
}

int bench_gemm(const bench_options *options, bench_report *report) {
    gemm_run run = {.options = options, .report = report, .io_type = QE_CODE_F32};
    qe_error err;
    if (options->gpu) return bench_explain_gpu(options);
    if (options->experts) return bench_grouped(options, report);
    if (options->tune && bench_tune_open(options->cache, &err)) return bench_fail(&err);
    int code = bench_device(options, &run.device);
    if (code) return code;
    qe_device_get_info(run.device, &run.info);
    run.backend = qk_backend_of(run.info.backend - QE_BACKEND_REF);
    run.queue.device = &run.facts;
    if (run.backend->describe(run.info.ordinal, &run.facts, &err)) {
        code = bench_fail(&err);
    } else if (run.info.backend == QE_BACKEND_CUDA) {
        code = open_cuda(&run);
    } else if (!options->explain && !options->check && !options->tune) {
        run.meter = bench_roof_create(run.device);
        bench_openblas_threads(run.info.threads);
        if (strcmp(options->baseline, "openblas-f32") == 0 && bench_openblas_core())
            fprintf(stderr, "baseline: OpenBLAS, core type %s\n", bench_openblas_core());
    }
    if (!code) code = bench_each_shape(options->shape, each_scheme, &run);
    bench_gpu_meter_destroy(run.gpu_meter);
    bench_cuda_destroy(run.cuda);
    bench_roof_destroy(run.meter);
    qe_device_destroy(run.device);
    return code;
}
