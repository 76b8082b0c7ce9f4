/* quantize_files.c -- what stands beside the tensors: config.json with its settings, the tokenizer's files, the report. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run/quantize_internal.h"

enum { SIDE_MAX = 256 << 20 };
static const char report_name[] = "quantization_report.json", report_note[] = "qengine.report";

/* ---- config.json ------------------------------------------------------------------------------------------------------- */
static qe_status settings_of(const qe_job *job, json_t **out, qe_error *err) {
    qe_weight_out *weights = calloc((size_t)job->count + 1, sizeof *weights);
    const char **plain = calloc((size_t)job->count + 1, sizeof *plain);
    char(*modules)[256] = calloc((size_t)job->count + 1, sizeof *modules);
    int64_t count = 0, plain_count = 0;
    for (int64_t i = 0; weights && plain && modules && i < job->count; i++) {
        const qe_item *item = &job->items[i];
        if (item->linear) weights[count++] = item->weight;
        bool linear = qe_role_is_linear(item->role) || item->role == QE_ROLE_OUTPUT;
        if (item->linear || !linear) continue;
        qe_model_module(job->model, item->role, item->layer < 0 ? 0 : item->layer, false, modules[plain_count],
                        sizeof modules[0]);
        plain[plain_count] = modules[plain_count];
        plain_count++;
    }
    *out = weights && plain && modules ? job->format->settings(weights, count, plain, plain_count) : NULL;
    free(weights);
    free(plain);
    free(modules);
    return *out ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for settings");
}

char *qe_job_config(const qe_job *job, qe_error *err) {
    char *text = NULL, *out = NULL;
    size_t bytes = 0;
    json_t *root = NULL, *settings = NULL;
    qe_status status = qe_job_dequantizes(job) ? QE_OK : qe_store_side_file(job->model->store, "config.json", 16 << 20, &text, &bytes, err);
    if (!status && !text && !qe_job_dequantizes(job)) status = qe_error_set(err, QE_E_MISSING, "the model has no config.json to write");
    if (!status && job->linears) status = settings_of(job, &settings, err);
    if (!status) {
        root = text ? json_loadb(text, bytes, 0, NULL) : qe_job_hf_config(job);
        if (!root || (settings && json_object_set(root, "quantization_config", settings)) || !(out = json_dumps(root, JSON_INDENT(2))))
            qe_error_set(err, QE_E_NOMEM, "no memory for config.json");
    }
    json_decref(settings);
    json_decref(root);
    free(text);
    return out;
}

qe_status qe_job_side_files(qe_job *job, qe_error *err) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
                                        "added_tokens.json", "generation_config.json", "chat_template.jinja", "vocab.json",
                                        "merges.txt", "tokenizer.gguf", "LICENSE", "NOTICE"};
    if (qe_job_dequantizes(job)) QE_TRY(qe_job_gguf_tokenizer(job, err));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *text = NULL;
        size_t bytes = 0;
        QE_TRY(qe_store_side_file(job->model->store, names[i], SIDE_MAX, &text, &bytes, err));
        if (!text) continue;
        qe_status status = qe_out_side(job->out, names[i], text, bytes, err);
        free(text);
        QE_TRY(status);
    }
    char *config = qe_job_config(job, err);
    if (!config) return QE_E_NOMEM;
    qe_status status = qe_out_side(job->out, "config.json", config, strlen(config), err);
    free(config);
    return status;
}

/* ---- the report -------------------------------------------------------------------------------------------------------- */
static json_t *whole_report(const qe_job *job) {
    json_t *out = json_pack("{s:s, s:s, s:s, s:I, s:I, s:f}", "program", "qengine", "format", job->format->name, "recipe",
                            job->o->recipe, "linears", (json_int_t)job->plan.linears, "weights", (json_int_t)job->plan.weights,
                            "bits_per_weight", job->plan.bits_per_weight);
    if (!out) return NULL;
    json_object_set_new(out, "version", json_string(qe_version()));
    if (job->o->method) json_object_set_new(out, "method", json_string(job->o->method));
    if (job->calibrates) {
        json_object_set_new(out, "calibration_sha256", json_string(job->text_hash));
        json_object_set_new(out, "calibration_tokens", json_integer(job->stream.count));
    }
    if (job->quality) json_object_set(out, "quality", job->quality);
    json_object_set(out, "layers", job->report);
    return out;
}

qe_status qe_job_save_report(qe_job *job, bool last, qe_error *err) {
    json_t *root = whole_report(job);
    char *text = root ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(root);
    if (!text) return qe_error_set(err, QE_E_NOMEM, "no memory for the report");
    qe_status status = qe_out_side(job->out, report_name, text, strlen(text), err);
    if (!status && last && job->format->kind == QE_OUT_GGUF) status = qe_out_beside(job->out, ".report.json", text, strlen(text), err);
    free(text);
    return status;
}

static json_t *entry_of(const json_t *entries, const char *name) {
    size_t at;
    json_t *entry;
    json_array_foreach(entries, at, entry) {
        const char *module = json_string_value(json_object_get(entry, "module"));
        if (module && !strcmp(module, name)) return entry;
    }
    return NULL;
}

/* Entries of an earlier run whose linears are done, in its order. The report is written before they are marked, so that none
 * is missing unless somebody took it away. */
qe_status qe_job_load_report(qe_job *job, qe_error *err) {
    char *text = NULL;
    size_t bytes, at;
    QE_TRY(qe_out_side_read(job->out, report_name, &text, &bytes, err));
    json_t *root = text ? json_loadb(text, bytes, 0, NULL) : NULL, *layers = json_object_get(root, "layers"), *entry;
    qe_status status = QE_OK;
    json_array_foreach(layers, at, entry) {
        const char *module = json_string_value(json_object_get(entry, "module"));
        for (int64_t i = 0; module && i < job->count; i++) {
            const qe_item *item = &job->items[i];
            if (item->linear && !strcmp(item->name, module) && qe_item_done(job, item)) json_array_append(job->report, entry);
        }
    }
    for (int64_t i = 0; i < job->count && !status; i++) {
        const qe_item *item = &job->items[i];
        if (item->linear && qe_item_done(job, item) && !entry_of(job->report, item->name))
            status = qe_error_at(err, QE_E_MISMATCH, report_name, -1,
                                 "has no entry of \"%s\", which is finished: this run cannot be resumed", item->name);
    }
    json_decref(root);
    free(text);
    return status;
}

json_t *qe_job_notes(const qe_job *job) {
    json_t *root = whole_report(job);
    char *text = root ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    json_t *notes = text ? json_pack("{s:s}", report_note, text) : NULL;
    free(text);
    return notes;
}

/* Room for the report as it stands escaped in a header: its quotes double, those of a recipe within it twice. */
uint64_t qe_job_note_bytes(const qe_job *job) {
    return 4096 + 4 * strlen(job->o->recipe) + 600 * (uint64_t)job->plan.linears;
}
