/* bench_model.c -- a whole model: tokens per second of prefill and decode, time to load, peak memory, true bits.
 *
 * Prompts are random ids and nothing is sampled but the most likely token, so a line depends on the model's shape and
 * weights' types alone. Every batch size gets an engine of its own; three rounds each, the median counts. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <qengine/session.h>

#include "bench.h"

enum { ROUNDS = 3 };

typedef struct model_run {
    const bench_options *options;
    qe_engine           *engine;
    int32_t              batch, vocab;
    qe_session         **sessions;
    qe_step_item        *items;
    int32_t             *prompt;         /* [batch][prompt] */
    int32_t             *last;           /* [batch] */
} model_run;

static qe_status run_make(model_run *run, qe_error *err) {
    size_t batch = (size_t)run->batch, prompt = (size_t)run->options->prompt;
    run->sessions = calloc(batch, sizeof *run->sessions);
    run->items = calloc(batch, sizeof *run->items);
    run->prompt = malloc(batch * prompt * sizeof *run->prompt);
    run->last = calloc(batch, sizeof *run->last);
    if (!run->sessions || !run->items || !run->prompt || !run->last)
        return qe_error_set(err, QE_E_NOMEM, "no memory for %d sessions", run->batch);
    uint64_t state = 1;
    for (size_t i = 0; i < batch * prompt; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        run->prompt[i] = (int32_t)((state >> 33) % (uint64_t)run->vocab);
    }
    for (int32_t i = 0; i < run->batch; i++) QE_TRY(qe_session_create(run->engine, &run->sessions[i], err));
    return QE_OK;
}

static void run_free(model_run *run) {
    for (int32_t i = 0; run->sessions && i < run->batch; i++) qe_session_destroy(run->sessions[i]);
    free(run->sessions), free(run->items), free(run->prompt), free(run->last);
    qe_engine_destroy(run->engine);
}

static qe_status step(model_run *run, const int32_t *tokens, int64_t count, qe_error *err) {
    for (int32_t i = 0; i < run->batch; i++)
        run->items[i] = (qe_step_item){.session = run->sessions[i], .tokens = tokens + i * count, .n_tokens = count,
                                       .want = QE_WANT_LAST};
    QE_TRY(qe_engine_step(run->engine, run->items, run->batch, NULL, err));
    for (int32_t i = 0; i < run->batch; i++)
        QE_TRY(qe_session_sample(run->sessions[i], NULL, &run->last[i], NULL, err));
    return QE_OK;
}

static qe_status one_round(model_run *run, double *prefill_us, double *decode_us, qe_error *err) {
    for (int32_t i = 0; i < run->batch; i++) QE_TRY(qe_session_rewind(run->sessions[i], 0, err));
    double begin = bench_now_us();
    QE_TRY(step(run, run->prompt, run->options->prompt, err));
    *prefill_us = bench_now_us() - begin;
    begin = bench_now_us();
    for (int32_t i = 0; i < run->options->gen; i++) {
        if (i % 16 == 0) bench_progress("batch %d: decoded %d of %d tokens", run->batch, i, run->options->gen);
        QE_TRY(step(run, run->last, 1, err));
    }
    *decode_us = bench_now_us() - begin;
    return QE_OK;
}

static qe_status one_batch(qe_device *device, const qe_model *model, int32_t batch, double open_ms,
                           const bench_options *options, bench_report *report, qe_error *err) {
    model_run         run = {.options = options, .batch = batch};
    qe_engine_options engine = {.struct_size = sizeof engine, .context_tokens = (int64_t)options->prompt + options->gen,
                                .max_sessions = batch, .quantize = options->quantize};
    double            prefill[ROUNDS], decode[ROUNDS], begin = bench_now_us();
    bench_progress("packing weights");
    QE_TRY(qe_engine_create(device, model, &engine, &run.engine, err));
    double         load_ms = open_ms + (bench_now_us() - begin) * 1e-3;
    qe_engine_info info;
    qe_device_info where;
    qe_model_info  about;
    qe_engine_get_info(run.engine, &info);
    qe_device_get_info(device, &where);
    run.vocab = (int32_t)info.vocab;
    qe_status status = qe_model_get_info(model, &about, err);
    if (!status) status = run_make(&run, err);
    for (int i = 0; i < ROUNDS && !status; i++) status = one_round(&run, &prefill[i], &decode[i], err);
    run_free(&run);
    if (status) return status;
    static const char *const backends[] = {"auto", "ref", "cpu", "cuda"};
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    bench_result r = bench_result_new("model");
    snprintf(r.backend, sizeof r.backend, "%s", backends[where.backend]);
    snprintf(r.impl, sizeof r.impl, "%.63s", where.isa);
    snprintf(r.scheme, sizeof r.scheme, "%.31s", options->quantize ? options->quantize : about.format);
    snprintf(r.device, sizeof r.device, "%s", where.name);
    r.threads = where.threads, r.batch = batch, r.prompt = options->prompt, r.gen = options->gen;
    r.prefill_tok_s = (double)batch * options->prompt / bench_quantile(prefill, ROUNDS, 0.5) * 1e6;
    if (options->gen) r.decode_tok_s = (double)batch * options->gen / bench_quantile(decode, ROUNDS, 0.5) * 1e6;
    r.load_ms = load_ms;
    r.peak_rss_bytes = (double)usage.ru_maxrss * 1024;
    r.bits_per_weight = options->quantize ? info.bits_per_weight : about.bits_per_weight;
    bench_report_add(report, &r);
    return QE_OK;
}

int bench_model(const bench_options *options, bench_report *report) {
    qe_device       *device;
    qe_model        *model = NULL;
    qe_error         err;
    qe_model_options open = {.struct_size = sizeof open, .flags = QE_MODEL_NO_TOKENIZER};
    int              code = bench_device(options, &device);
    if (code) return code;
    double    begin = bench_now_us();
    qe_status status = qe_model_open(options->model, &open, &model, &err);
    double    open_ms = (bench_now_us() - begin) * 1e-3;
    for (int32_t i = 0; !status && i < options->batch_count; i++)
        status = one_batch(device, model, options->batch[i], open_ms, options, report, &err);
    if (status) code = bench_fail(&err);
    qe_model_close(model);
    qe_device_destroy(device);
    return code;
}
