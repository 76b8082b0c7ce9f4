/* quantize_gguf.c -- the key-values of a GGUF file from a model that was read as a Hugging Face folder: sizes, rotation, and
 * a byte-level BPE tokenizer. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/tokenizer.h>

#include "format/gguf_text.h"
#include "model/family.h"
#include "run/quantize_internal.h"

typedef struct keys {
    qe_gguf_text text;
    const char  *architecture;
} keys;

static const char *full(const keys *k, const char *name, char *out) {
    snprintf(out, 128, "%s.%s", k->architecture, name);
    return out;
}
static void put_u32(keys *k, const char *name, int64_t v) {
    char key[128];
    qe_gguf_key_u32(&k->text, full(k, name, key), (uint64_t)v);
}
static void put_f32(keys *k, const char *name, float v) {
    char key[128];
    qe_gguf_key_f32(&k->text, full(k, name, key), v);
}
static void put_string(keys *k, const char *name, const char *v) { qe_gguf_key_string(&k->text, name, v, strlen(v)); }

static void put_sizes(keys *k, const qe_hparams *hp) {
    put_u32(k, "context_length", hp->context);
    put_u32(k, "embedding_length", hp->hidden);
    put_u32(k, "block_count", hp->layers);
    put_u32(k, "feed_forward_length", hp->ffn);
    put_u32(k, "attention.head_count", hp->heads);
    put_u32(k, "attention.head_count_kv", hp->kv_heads);
    put_u32(k, "attention.key_length", hp->head_dim);
    put_u32(k, "attention.value_length", hp->head_dim);
    put_f32(k, "attention.layer_norm_rms_epsilon", hp->eps);
    put_u32(k, "rope.dimension_count", hp->rope_dims);
    put_f32(k, "rope.freq_base", hp->rope_global.base);
    put_u32(k, "vocab_size", hp->vocab);
    if (hp->window) put_u32(k, "attention.sliding_window", hp->window);
    if (hp->rope_global.scaling != QE_ROPE_SCALE_LINEAR) return;
    char key[128];
    qe_gguf_key_string(&k->text, full(k, "rope.scaling.type", key), "linear", 6);
    put_f32(k, "rope.scaling.factor", hp->rope_global.factor);
}

/* ---- tokenizer.json ---------------------------------------------------------------------------------------------------- */
typedef struct vocabulary {
    const char **texts;
    bool        *special;
    int64_t      count;
} vocabulary;

static qe_status place(vocabulary *v, const char *text, const json_t *id, bool special, qe_error *err) {
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= v->count)
        return qe_error_set(err, QE_E_RANGE, "tokenizer.json: an id is outside the vocabulary of %lld", (long long)v->count);
    v->texts[json_integer_value(id)] = text;
    v->special[json_integer_value(id)] |= special;
    return QE_OK;
}

static qe_status read_vocabulary(const json_t *root, vocabulary *v, qe_error *err) {
    json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab"), *added = json_object_get(root, "added_tokens");
    const char *text;
    json_t *id, *token;
    size_t at;
    v->texts = calloc((size_t)v->count + 1, sizeof *v->texts);
    v->special = calloc((size_t)v->count + 1, sizeof *v->special);
    if (!v->texts || !v->special) return qe_error_set(err, QE_E_NOMEM, "no memory for a vocabulary");
    json_object_foreach(vocab, text, id) QE_TRY(place(v, text, id, false, err));
    json_array_foreach(added, at, token) {
        text = json_string_value(json_object_get(token, "content"));
        if (text) QE_TRY(place(v, text, json_object_get(token, "id"), json_is_true(json_object_get(token, "special")), err));
    }
    return QE_OK;
}

static void put_tokens(keys *k, const vocabulary *v) {
    char hole[48];
    qe_gguf_key_array(&k->text, "tokenizer.ggml.tokens", QE_GGUF_STRING, (uint64_t)v->count);
    for (int64_t i = 0; i < v->count; i++) {
        snprintf(hole, sizeof hole, "[PAD%lld]", (long long)i);
        const char *text = v->texts[i] ? v->texts[i] : hole;
        qe_gguf_put_text(&k->text, text, strlen(text));
    }
    qe_gguf_key_array(&k->text, "tokenizer.ggml.token_type", QE_GGUF_I32, (uint64_t)v->count);
    for (int64_t i = 0; i < v->count; i++) qe_gguf_put_number(&k->text, !v->texts[i] ? 5 : v->special[i] ? 3 : 1, 4);
}

static qe_status put_merges(keys *k, const json_t *merges, qe_error *err) {
    size_t at;
    json_t *merge;
    qe_gguf_key_array(&k->text, "tokenizer.ggml.merges", QE_GGUF_STRING, json_array_size(merges));
    json_array_foreach((json_t *)(uintptr_t)merges, at, merge) {
        const char *whole = json_string_value(merge), *left = json_string_value(json_array_get(merge, 0)),
                   *right = json_string_value(json_array_get(merge, 1));
        if (whole) {
            qe_gguf_put_text(&k->text, whole, strlen(whole));
        } else if (left && right) {
            qe_gguf_put_number(&k->text, strlen(left) + strlen(right) + 1, 8);
            qe_gguf_put(&k->text, left, strlen(left));
            qe_gguf_put(&k->text, " ", 1);
            qe_gguf_put(&k->text, right, strlen(right));
        } else {
            return qe_error_set(err, QE_E_TYPE, "tokenizer.json: merge %zu is no pair", at);
        }
    }
    return QE_OK;
}

/* llama.cpp names patterns; the known ones are told apart by how they cut numbers. */
static const char *pattern_name(const char *json) {
    if (strstr(json, "\\\\p{N}{1,3}")) return "llama-bpe";
    if (strstr(json, "(?i:'s|'t|'re|'ve|'m|'ll|'d)")) return "qwen2";
    return "gpt-2";
}

static qe_status put_tokenizer(keys *k, const qe_model *model, const char *json, size_t bytes, qe_error *err) {
    json_t *root = json_loadb(json, bytes, 0, NULL), *bpe = json_object_get(root, "model");
    const char *kind = json_string_value(json_object_get(bpe, "type"));
    vocabulary v = {.count = model->hp.vocab};
    qe_status status = QE_OK;
    if (!kind || strcmp(kind, "BPE") || json_is_true(json_object_get(bpe, "byte_fallback")))
        status = qe_error_set(err, QE_E_UNSUPPORTED, "only byte-level BPE tokenizers are written to GGUF");
    if (!status) status = read_vocabulary(root, &v, err);
    if (!status) {
        static const struct { qe_special which; const char *key; } specials[] = {
            {QE_SPECIAL_BOS, "tokenizer.ggml.bos_token_id"}, {QE_SPECIAL_EOS, "tokenizer.ggml.eos_token_id"},
            {QE_SPECIAL_PAD, "tokenizer.ggml.padding_token_id"}, {QE_SPECIAL_UNK, "tokenizer.ggml.unknown_token_id"}};
        put_string(k, "tokenizer.ggml.model", "gpt2");
        put_string(k, "tokenizer.ggml.pre", pattern_name(json));
        put_tokens(k, &v);
        for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++) {
            int32_t id = qe_tokenizer_special(model->tokenizer, specials[i].which);
            if (id >= 0) qe_gguf_key_u32(&k->text, specials[i].key, (uint64_t)id);
        }
        int32_t first = -1;
        size_t count = 1;
        qe_tokenizer_encode(model->tokenizer, "", 0, NULL, &first, 1, &count, NULL);
        qe_gguf_key_bool(&k->text, "tokenizer.ggml.add_bos_token", count == 1);
        status = put_merges(k, json_object_get(bpe, "merges"), err);
    }
    free(v.texts);
    free(v.special);
    json_decref(root);
    return status;
}

static qe_status put_template(keys *k, const qe_model *model, qe_error *err) {
    char *json = NULL;
    size_t bytes;
    QE_TRY(qe_store_side_file(model->store, "tokenizer_config.json", 16 << 20, &json, &bytes, err));
    json_t *root = json ? json_loadb(json, bytes, 0, NULL) : NULL;
    const char *text = json_string_value(json_object_get(root, "chat_template"));
    if (text) put_string(k, "tokenizer.chat_template", text);
    json_decref(root);
    free(json);
    return QE_OK;
}

/* general.file_type by the type of the first layer's linears; readers go by each tensor's own. */
static uint32_t file_type(const qe_job *job) {
    static const struct { const char *scheme; uint32_t id; } types[] = {{"q4_0", 2}, {"q8_0", 7}, {"q4_k", 14}, {"q6_k", 18}};
    for (int64_t i = 0; i < job->count; i++)
        for (size_t t = 0; job->items[i].linear && t < sizeof types / sizeof types[0]; t++)
            if (!strcmp(job->items[i].decision.scheme, types[t].scheme)) return types[t].id;
    return 1;
}

static qe_status fill(qe_job *job, keys *k, qe_error *err) {
    const qe_model *model = job->model;
    if (qe_store_get_kind(model->store) == QE_STORE_GGUF) {
        qe_gguf_copy_keys(&k->text, model->store, "");
        return k->text.failed ? qe_error_set(err, QE_E_NOMEM, "no memory for a GGUF header") : QE_OK;
    }
    char *json = NULL;
    size_t bytes;
    const char *name = NULL;
    qe_store_get_string(model->store, "_name_or_path", &name, NULL, NULL);
    put_string(k, "general.architecture", k->architecture);
    put_string(k, "general.name", name && *name ? name : model->architecture);
    qe_gguf_key_u32(&k->text, "general.quantization_version", 2);
    qe_gguf_key_u32(&k->text, "general.file_type", file_type(job));
    put_sizes(k, &model->hp);
    if (model->hp.rope_global.scaling == QE_ROPE_SCALE_LLAMA3)
        return qe_error_set(err, QE_E_UNSUPPORTED, "Llama 3 rotation scaling is not written to GGUF");
    QE_TRY(qe_store_side_file(model->store, "tokenizer.json", 256 << 20, &json, &bytes, err));
    if (!json || !model->tokenizer) {
        free(json);
        return qe_error_set(err, QE_E_MISSING, "a GGUF file needs a tokenizer: there is no tokenizer.json");
    }
    qe_status status = put_tokenizer(k, model, json, bytes, err);
    free(json);
    QE_TRY(status);
    QE_TRY(put_template(k, model, err));
    return k->text.failed ? qe_error_set(err, QE_E_NOMEM, "no memory for a GGUF header") : QE_OK;
}

qe_status qe_job_gguf_keys(qe_job *job, qe_error *err) {
    keys k = {.architecture = job->model->family->gguf_architecture};
    qe_status status = fill(job, &k, err);
    if (!status) status = qe_out_keys(job->out, k.text.data, k.text.bytes, k.text.count, err);
    free(k.text.data);
    return status;
}
