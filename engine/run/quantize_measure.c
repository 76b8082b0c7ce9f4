/* quantize_measure.c -- the finished tensors, still in the partial folder, against the model they were made of. */
#include <stdlib.h>
#include <string.h>

#include <qengine/tokenizer.h>

#include "base/sha256.h"
#include "run/quantize_internal.h"

static int on_tokens(void *ctx, uint64_t done, uint64_t total) {
    const qe_job *job = ctx;
    (void)done;
    (void)total;
    return job->o->progress ? job->o->progress(job->o->ctx, job->done, job->total) : 0;
}

static json_t *entry_of(const qe_job *job, const qe_quality *q) {
    qe_sha256 h;
    char hash[65];
    qe_sha256_start(&h);
    qe_sha256_add(&h, job->o->quality_text, job->o->quality_bytes);
    qe_sha256_end(&h, hash);
    return json_pack("{s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "text_sha256", hash, "tokens", (json_int_t)q->tokens, "perplexity",
                     q->perplexity, "perplexity_reference", q->perplexity_reference, "kl_mean", q->kl_mean, "kl_p99", q->kl_p99,
                     "kl_max", q->kl_max, "top1_agreement", q->top1_agreement);
}

static qe_status compare(qe_job *job, qe_engine *const engine[2], const int32_t *ids, int64_t count, qe_error *err) {
    qe_quality q;
    QE_TRY(qe_quality_measure(engine[0], engine[1], ids, count, 0, on_tokens, job, &q, err));
    json_decref(job->quality);
    job->quality = entry_of(job, &q);
    if (!job->quality) return qe_error_set(err, QE_E_NOMEM, "no memory for the report");
    if (job->o->quality) job->o->quality(job->o->ctx, &q);
    return QE_OK;
}

static qe_status encode(const qe_job *job, int32_t **ids, size_t *count, qe_error *err) {
    const qe_tokenizer *t = job->model->tokenizer;
    const char *text = job->o->quality_text;
    *ids = NULL;
    if (!t) return qe_error_set(err, QE_E_MISSING, "a comparison needs a tokenizer, the model has none");
    QE_TRY(qe_tokenizer_encode(t, text, job->o->quality_bytes, NULL, NULL, 0, count, err));
    if (*count < 2) return qe_error_set(err, QE_E_VALUE, "the text to compare on gives %zu tokens, at least 2 are needed", *count);
    *ids = malloc(*count * sizeof **ids);
    if (!*ids) return qe_error_set(err, QE_E_NOMEM, "no memory for %zu tokens", *count);
    return qe_tokenizer_encode(t, text, job->o->quality_bytes, NULL, *ids, *count, count, err);
}

qe_status qe_job_measure(qe_job *job, qe_error *err) {
    const qe_engine_options options = {.struct_size = sizeof options};
    const qe_act floats = {.mode = QE_ACT_FLOAT};
    qe_engine_options source = options;
    const qe_model_options plain = {.struct_size = sizeof plain};
    qe_model *written = NULL;
    qe_engine *engine[2] = {NULL, NULL};
    int32_t *ids = NULL;
    size_t count = 0;
    bool gguf = job->format->kind == QE_OUT_GGUF;
    qe_status status = encode(job, &ids, &count, err);
    if (!status) status = qe_model_open(gguf ? job->out->files[0].path : job->out->partial, &plain, &written, err);
    if (qe_store_get_kind(job->model->store) == QE_STORE_GGUF) source.act = &floats;       /* the values, not their arithmetic */
    if (!status) status = qe_engine_create(job->device, job->model, &source, &engine[0], err);
    if (!status) status = qe_engine_create(job->device, written, &options, &engine[1], err);
    if (!status) status = compare(job, engine, ids, (int64_t)count, err);
    for (int i = 0; i < 2; i++) qe_engine_destroy(engine[i]);
    qe_model_close(written);
    free(ids);
    return status;
}
