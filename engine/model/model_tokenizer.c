/* The tokenizer a checkpoint carries: GGUF arrays, or beside safetensors tokenizer.json, or tokenizer.gguf, which holds
 * those arrays and no tensor (a folder that was made of a GGUF file). */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/family.h"
#include "model/tokenizer.h"

enum { JSON_MAX = 256 << 20 };

typedef struct text_list {
    const char **texts;
    size_t *bytes;
} text_list;

static qe_status nomem(const qe_model *model, qe_error *err) {
    return qe_error_at(err, QE_E_NOMEM, qe_store_name(model->store), -1, "no memory for the tokenizer's arrays");
}

static qe_status get_array(const qe_model *model, const char *key, qe_meta_kind kind, int32_t item_bytes,
                           qe_meta_array *out, qe_error *err) {
    QE_TRY(qe_store_get_array(model->store, key, out, err));
    if (out->kind == kind && (!item_bytes || out->item_bytes == item_bytes)) return QE_OK;
    return qe_error_at(err, QE_E_TYPE, qe_store_name(model->store), -1, "key \"%s\" is an array of the wrong type",
                       key);
}

static qe_status list_strings(const qe_model *model, const qe_meta_array *a, text_list *out, qe_error *err) {
    out->texts = calloc((size_t)a->count + 1, sizeof *out->texts);
    out->bytes = calloc((size_t)a->count + 1, sizeof *out->bytes);
    if (!out->texts || !out->bytes) return nomem(model, err);
    for (int64_t i = 0; i < a->count; i++) out->texts[i] = qe_meta_array_string(a, i, &out->bytes[i]);
    return QE_OK;
}

/* -1 when the key is absent; an id that is not an integer is an error. */
static qe_status get_id(const qe_model *model, const char *key, int64_t *out, qe_error *err) {
    *out = -1;
    return qe_store_meta_kind(model->store, key) ? qe_store_get_int(model->store, key, out, err) : QE_OK;
}

static qe_status get_flag(const qe_model *model, const char *key, bool fallback, bool *out, qe_error *err) {
    *out = fallback;
    return qe_store_meta_kind(model->store, key) ? qe_store_get_bool(model->store, key, out, err) : QE_OK;
}

typedef struct gguf_parts {
    text_list tokens, merges;
    float *scores;
    int32_t *types;
} gguf_parts;

static qe_status read_arrays(const qe_model *model, gguf_parts *parts, qe_tokenizer_source *source, qe_error *err) {
    qe_meta_array a;
    QE_TRY(get_array(model, "tokenizer.ggml.tokens", QE_META_STRING, 0, &a, err));
    QE_TRY(list_strings(model, &a, &parts->tokens, err));
    source->tokens_count = (size_t)a.count;
    source->texts = parts->tokens.texts;
    source->texts_bytes = parts->tokens.bytes;
    if (source->kind == QE_TOKENIZER_SCORE || qe_store_meta_kind(model->store, "tokenizer.ggml.scores")) {
        QE_TRY(get_array(model, "tokenizer.ggml.scores", QE_META_FLOAT, 4, &a, err));
        if (!(parts->scores = calloc((size_t)a.count + 1, sizeof *parts->scores))) return nomem(model, err);
        for (int64_t i = 0; i < a.count; i++) parts->scores[i] = (float)qe_meta_array_float(&a, i);
        source->scores = parts->scores;
        source->scores_count = (size_t)a.count;
    }
    if (qe_store_meta_kind(model->store, "tokenizer.ggml.token_type")) {
        QE_TRY(get_array(model, "tokenizer.ggml.token_type", QE_META_INT, 4, &a, err));
        if (!(parts->types = calloc((size_t)a.count + 1, sizeof *parts->types))) return nomem(model, err);
        for (int64_t i = 0; i < a.count; i++) parts->types[i] = (int32_t)qe_meta_array_int(&a, i);
        source->types = parts->types;
        source->types_count = (size_t)a.count;
    }
    if (source->kind != QE_TOKENIZER_BPE) return QE_OK;
    QE_TRY(get_array(model, "tokenizer.ggml.merges", QE_META_STRING, 0, &a, err));
    QE_TRY(list_strings(model, &a, &parts->merges, err));
    source->merges_count = (size_t)a.count;
    source->merges = parts->merges.texts;
    source->merges_bytes = parts->merges.bytes;
    return QE_OK;
}

static qe_status read_settings(const qe_model *model, qe_tokenizer_source *source, qe_error *err) {
    const qe_store *store = model->store;
    bool score = source->kind == QE_TOKENIZER_SCORE;
    if (qe_store_meta_kind(store, "tokenizer.ggml.pre"))
        QE_TRY(qe_store_get_string(store, "tokenizer.ggml.pre", &source->pre, NULL, err));
    if (qe_store_meta_kind(store, "tokenizer.chat_template"))
        QE_TRY(qe_store_get_string(store, "tokenizer.chat_template", &source->chat_template,
                                   &source->chat_template_bytes, err));
    QE_TRY(get_id(model, "tokenizer.ggml.bos_token_id", &source->bos, err));
    QE_TRY(get_id(model, "tokenizer.ggml.eos_token_id", &source->eos, err));
    QE_TRY(get_id(model, "tokenizer.ggml.padding_token_id", &source->pad, err));
    QE_TRY(get_id(model, "tokenizer.ggml.unknown_token_id", &source->unk, err));
    QE_TRY(get_flag(model, "tokenizer.ggml.add_bos_token", score, &source->add_bos, err));
    return get_flag(model, "tokenizer.ggml.add_space_prefix", score, &source->add_space_prefix, err);
}

static qe_status load_gguf(qe_model *model, qe_error *err) {
    const char *kind;
    char text[129];
    if (!qe_store_meta_kind(model->store, "tokenizer.ggml.model")) return QE_OK;
    QE_TRY(qe_store_get_string(model->store, "tokenizer.ggml.model", &kind, NULL, err));
    qe_tokenizer_source source = {.where = qe_store_name(model->store)};
    if (!strcmp(kind, "llama"))
        source.kind = QE_TOKENIZER_SCORE;
    else if (!strcmp(kind, "gpt2"))
        source.kind = QE_TOKENIZER_BPE;
    else
        return qe_error_at(err, QE_E_UNSUPPORTED, source.where, -1,
                           "tokenizer \"%s\"; supported are llama, gpt2, or QE_MODEL_NO_TOKENIZER",
                           qe_escape(kind, strlen(kind), text, sizeof text));
    gguf_parts parts = {0};
    qe_status status = read_arrays(model, &parts, &source, err);
    if (!status) status = read_settings(model, &source, err);
    if (!status) status = qe_tokenizer_create(&source, NULL, &model->tokenizer, err);
    free(parts.tokens.texts);
    free(parts.tokens.bytes);
    free(parts.merges.texts);
    free(parts.merges.bytes);
    free(parts.scores);
    free(parts.types);
    return status;
}

/* A special id of config.json: one number, or a list whose first counts. */
static qe_status config_id(const qe_model *model, const char *key, int64_t *out, qe_error *err) {
    qe_meta_array list;
    if (qe_store_meta_kind(model->store, key) != QE_META_ARRAY) return get_id(model, key, out, err);
    QE_TRY(get_array(model, key, QE_META_INT, 0, &list, err));
    *out = list.count ? qe_meta_array_int(&list, 0) : -1;
    return QE_OK;
}

static qe_status load_beside(qe_model *model, qe_error *err) {
    char *data;
    size_t bytes;
    qe_reader reader;
    qe_model keys = {.store = NULL};
    QE_TRY(qe_store_side_file(model->store, "tokenizer.gguf", JSON_MAX, &data, &bytes, err));
    if (!data) return QE_OK;
    qe_status status = qe_reader_memory(data, bytes, "tokenizer.gguf", &reader, err);
    if (!status) status = qe_store_open_reader(reader, NULL, 0, 0, qe_store_limits(model->store), &keys.store, err);
    if (!status) status = load_gguf(&keys, err);
    model->tokenizer = keys.tokenizer;
    qe_store_close(keys.store);
    free(data);
    return status;
}

static qe_status load_json(qe_model *model, qe_error *err) {
    char *json;
    size_t bytes;
    int64_t bos, eos, pad;
    QE_TRY(qe_store_side_file(model->store, "tokenizer.json", JSON_MAX, &json, &bytes, err));
    if (!json) return load_beside(model, err);
    qe_status status = qe_tokenizer_open_json_memory(json, bytes, NULL, &model->tokenizer, err);
    free(json);
    if (!status) status = config_id(model, "bos_token_id", &bos, err);
    if (!status) status = config_id(model, "eos_token_id", &eos, err);
    if (!status) status = config_id(model, "pad_token_id", &pad, err);
    return status ? status : qe_tokenizer_set_special(model->tokenizer, bos, eos, pad, err);
}

qe_status qe_model_load_tokenizer(qe_model *model, qe_error *err) {
    QE_TRY(qe_store_get_kind(model->store) == QE_STORE_GGUF ? load_gguf(model, err) : load_json(model, err));
    if (!model->tokenizer || qe_tokenizer_vocab_size(model->tokenizer) <= model->hp.vocab) return QE_OK;
    return qe_error_at(err, QE_E_MISMATCH, qe_store_name(model->store), -1,
                       "the tokenizer has %d tokens, the embedding %lld rows",
                       qe_tokenizer_vocab_size(model->tokenizer), (long long)model->hp.vocab);
}
