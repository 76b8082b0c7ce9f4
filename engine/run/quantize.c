/* quantize.c -- qe_model_quantize(): a float checkpoint into a quantized one, layer after layer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "base/sha256.h"
#include "run/quantize_internal.h"
#include "run/quantize_round.h"

const char *qe_checkpoint_format(int32_t index, const char **what) {
    const qe_weight_format *format = qe_weight_format_at(index);
    if (what) *what = format ? format->what : NULL;
    return format ? format->name : NULL;
}

qe_status qe_job_progress(qe_job *job, double weights, qe_error *err) {
    job->done += weights;
    if (!job->o->progress || !job->o->progress(job->o->ctx, job->done, job->total)) return QE_OK;
    return qe_error_set(err, QE_E_CANCELLED, "stopped; what is finished can be resumed");
}

static void hash_text(const void *data, size_t bytes, char out[65]) {
    qe_sha256 h;
    qe_sha256_start(&h);
    qe_sha256_add(&h, data, bytes);
    qe_sha256_end(&h, out);
}

/* All that decides the bytes of the result, but the bytes of the model: its tensors' names, types, sizes. */
static char *identity_of(qe_job *job) {
    const qe_quantize_options *o = job->o;
    const qe_store *store = job->model->store;
    qe_sha256 h;
    char tensors[65], *text = malloc(1024 + strlen(o->recipe));
    if (!text) return NULL;
    qe_sha256_start(&h);
    for (int64_t i = 0; i < qe_store_tensor_count(store); i++) {
        const qe_store_tensor *t = qe_store_tensor_at(store, i);
        qe_sha256_add(&h, t->name, strlen(t->name) + 1);
        qe_sha256_add(&h, qe_store_type_name(t), strlen(qe_store_type_name(t)) + 1);
        qe_sha256_add(&h, t->dims, sizeof t->dims);
    }
    qe_sha256_end(&h, tensors);
    hash_text(o->calibration, o->calibration ? o->calibration_bytes : 0, job->text_hash);
    sprintf(text, "%s|%s|%s|%.200s|%s|%s|%d|%d|%llu|%llu", qe_version(), tensors, o->recipe, o->method ? o->method : "",
            job->format->name, job->text_hash, o->sequence_tokens, o->sequences, (unsigned long long)o->shard_bytes,
            (unsigned long long)o->seed);
    return text;
}

static qe_status open_output(qe_job *job, qe_error *err) {
    char *identity = identity_of(job);
    if (!identity) return qe_error_set(err, QE_E_NOMEM, "no memory to begin");
    const qe_out_options options = {.path = job->o->out, .identity = identity, .kind = job->format->kind,
                                    .resume = job->o->flags & QE_QUANTIZE_RESUME, .shard_bytes = job->o->shard_bytes,
                                    .note_bytes = qe_job_note_bytes(job)};
    qe_status status = qe_out_create(&options, &job->out, err);
    free(identity);
    QE_TRY(status);
    if (job->format->kind == QE_OUT_GGUF) QE_TRY(qe_job_gguf_keys(job, err));
    QE_TRY(qe_job_declare(job, err));
    return qe_out_begin(job->out, err);
}

/* What belongs to no layer. */
static qe_status make_ends(qe_job *job, qe_error *err) {
    bool done = true;
    for (int64_t i = 0; i < job->count; i++) done &= job->items[i].layer >= 0 || qe_item_done(job, &job->items[i]);
    if (done) return qe_round_resumed(job, -1, err);
    QE_TRY(qe_round_layer(job, -1, NULL, err));
    for (int64_t i = 0; i < job->count; i++)
        if (job->items[i].layer < 0 && !job->items[i].linear) QE_TRY(qe_job_copy(job, &job->items[i], err));
    QE_TRY(qe_job_save_report(job, false, err));
    return qe_out_mark(job->out, err);
}

/* A recipe of one line is in the report; one that was written, or chosen under a budget, is a file to run again. */
static qe_status save_recipe(qe_job *job, qe_error *err) {
    const char *recipe = job->o->recipe;
    if (!strchr(recipe, '{')) return QE_OK;
    if (job->format->kind == QE_OUT_GGUF) return qe_out_beside(job->out, ".recipe.json", recipe, strlen(recipe), err);
    return qe_out_side(job->out, "quantization_recipe.json", recipe, strlen(recipe), err);
}

static qe_status commit(qe_job *job, qe_error *err) {
    json_t *notes = NULL;
    QE_TRY(save_recipe(job, err));
    if (job->format->kind == QE_OUT_SAFETENSORS) {
        QE_TRY(qe_job_side_files(job, err));
    }
    if (job->o->quality_text) QE_TRY(qe_job_measure(job, err));
    if (job->format->kind == QE_OUT_SAFETENSORS) {
        notes = qe_job_notes(job);
        if (!notes) return qe_error_set(err, QE_E_NOMEM, "no memory for the report");
    }
    qe_status status = qe_job_save_report(job, true, err);
    if (!status) status = qe_out_commit(job->out, notes, err);
    json_decref(notes);
    return status;
}

/* What each linear will become, nothing measured. */
static qe_status explain(qe_job *job) {
    int64_t index = 0;
    for (int64_t i = 0; i < job->count && job->o->layer; i++) {
        const qe_item *item = &job->items[i];
        char scheme[96];
        if (!item->linear) continue;
        qe_quant_name(&item->decision.quant, scheme, sizeof scheme);
        const qe_quantize_layer line = {.module = item->name, .scheme = scheme, .method = item->decision.how, .index = ++index,
                                        .count = job->linears, .n = item->weight.form.rows, .k = item->weight.form.k,
                                        .bits_per_weight = qe_quant_bits_per_weight(&item->decision.quant, item->weight.form.rows,
                                                                                    item->weight.form.k),
                                        .sqnr_db = NAN, .max_error = NAN, .error_bound = NAN, .output_cosine = NAN};
        job->o->layer(job->o->ctx, &line);
    }
    return QE_OK;
}

/* Calibration sees float inputs, which a quantized source has none of. */
static qe_status check_source(const qe_model *model, bool calibrates, qe_error *err) {
    if (!calibrates || qe_store_get_kind(model->store) != QE_STORE_GGUF) return QE_OK;
    return qe_error_at(err, QE_E_UNSUPPORTED, qe_store_name(model->store), -1,
                       "calibration reads a folder: make one of this file first (scheme f16, format qengine)");
}

static qe_status run(qe_job *job, qe_error *err) {
    QE_TRY(qe_recipe_parse(job->o->recipe, job->o->method, &job->recipe, err));
    QE_TRY(qe_job_plan(job, err));
    QE_TRY(check_source(job->model, job->calibrates, err));
    if (job->o->flags & QE_QUANTIZE_PLAN_ONLY) return explain(job);
    job->report = json_array();
    if (!job->report) return qe_error_set(err, QE_E_NOMEM, "no memory for the report");
    if (job->calibrates && (!job->o->calibration || !job->o->calibration_bytes))
        return qe_error_set(err, QE_E_VALUE, "this method needs a calibration text, and there is none");
    QE_TRY(open_output(job, err));
    QE_TRY(qe_job_load_report(job, err));
    QE_TRY(qe_job_progress(job, 0, err));
    QE_TRY(make_ends(job, err));
    if (job->calibrates) QE_TRY(qe_job_start_stream(job, err));
    for (int64_t layer = 0; layer < job->model->hp.layers; layer++) QE_TRY(qe_job_layer(job, layer, err));
    return commit(job, err);
}

static bool has_budget(const qe_quantize_options *o) { return o->budget_bits > 0 || o->budget_bytes || o->budget_seconds > 0; }

static qe_status check_options(const qe_quantize_options *o, qe_error *err) {
    if (o->flags & ~(uint32_t)(QE_QUANTIZE_RESUME | QE_QUANTIZE_PLAN_ONLY))
        return qe_error_set(err, QE_E_ARGUMENT, "options.flags 0x%x has unknown bits", o->flags);
    if (!(o->budget_bits >= 0) || o->budget_bits > 64 || !(o->budget_seconds >= 0) || o->budget_seconds > 1e6 ||
        (o->budget_bits > 0) + (o->budget_bytes > 0) + (o->budget_seconds > 0) > 1)
        return qe_error_set(err, QE_E_ARGUMENT, "a budget is bits of a weight, at most 64, or bytes, or seconds at most 1e6, and not both");
    bool budget = has_budget(o);
    if (budget && o->recipe && strchr(o->recipe, '{'))
        return qe_error_set(err, QE_E_ARGUMENT, "with a budget the recipe is a list of schemes, not a map");
    if ((!o->recipe || !*o->recipe) && !budget)
        return qe_error_set(err, QE_E_ARGUMENT, "options.recipe is missing");
    if (!o->out && !(o->flags & QE_QUANTIZE_PLAN_ONLY)) return qe_error_set(err, QE_E_ARGUMENT, "options.out is missing");
    if (o->sequence_tokens < 0 || o->sequences < 0 || o->sequence_tokens > 65536)
        return qe_error_set(err, QE_E_ARGUMENT, "sequence_tokens or sequences is out of range");
    return QE_OK;
}

qe_status qe_model_quantize(qe_device *device, const qe_model *model, const qe_quantize_options *options, qe_quantize_plan *plan,
                            qe_error *err) {
    qe_quantize_options o;
    if (!device || !model || !options) return qe_error_set(err, QE_E_ARGUMENT, "device, model or options is NULL");
    if (!model->family) return qe_error_set(err, QE_E_ARGUMENT, "the model was opened to be inspected, not run");
    QE_TRY(qe_options_read(options, options->struct_size, &o, sizeof o, err));
    QE_TRY(check_options(&o, err));
    qe_job job = {.device = device, .model = model, .o = &o, .start_us = qe_os_now_us()};
    char *mixed = NULL;
    unsigned fp = qe_fp_enter();
    bool budget = has_budget(&o);
    qe_status status = check_source(model, budget, err);
    if (budget && !status) status = qe_job_mix(device, model, &o, &mixed, err);
    if (mixed) {
        if (o.chosen) o.chosen(o.ctx, mixed);
        o.recipe = mixed;
        o.method = NULL;        /* it is in the recipe */
    }
    if (!status) status = run(&job, err);
    qe_fp_leave(fp);
    if (plan) {
        *plan = job.plan;
        if (job.stream.count) plan->calibration_tokens = job.stream.count;
    }
    qe_engine_destroy(job.window);
    qe_out_destroy(job.out);
    qe_job_free_items(&job);
    qe_recipe_free(job.recipe);
    json_decref(job.report);
    json_decref(job.quality);
    qe_stream_free(&job.stream);
    free(mixed);
    return status;
}
