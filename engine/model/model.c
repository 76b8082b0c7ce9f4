/* qe_model_*: a store, its family, and the public view of both. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/tokenizer.h>

#include "base/log.h"
#include "model/family.h"

enum {
    ARCHITECTURE_MAX = 63,
    KNOWN_FLAGS = QE_MODEL_INSPECT | QE_MODEL_NO_TOKENIZER | QE_MODEL_RELAXED_KEYS | QE_MODEL_FOLLOW_LINKS
};

static qe_status check_options(const qe_model_options *options, qe_error *err) {
    if (!options) return QE_OK;
    if (options->struct_size != sizeof *options)
        return qe_error_set(err, QE_E_ARGUMENT, "qe_model_options.struct_size is %u, expected %zu",
                            options->struct_size, sizeof *options);
    if (options->flags & ~(uint32_t)KNOWN_FLAGS)
        return qe_error_set(err, QE_E_ARGUMENT, "unknown flags 0x%x", options->flags);
    return QE_OK;
}

/* The architecture's name as the file gives it; missing is an error only for a model that is to be run. */
static qe_status read_architecture(qe_model *model, bool needed, qe_error *err) {
    const qe_store *store = model->store;
    const char *text = NULL, *key = "general.architecture";
    size_t bytes = 0;
    qe_status status;
    if (qe_store_get_kind(store) == QE_STORE_GGUF) {
        status = qe_store_get_string(store, key, &text, &bytes, err);
    } else {
        qe_meta_array list;
        key = "architectures";
        status = qe_store_get_array(store, key, &list, err);
        if (!status && list.count && list.kind != QE_META_STRING)
            status = qe_error_at(err, QE_E_TYPE, qe_store_name(store), -1, "key \"%s\" is no list of names", key);
        if (!status && list.count) text = qe_meta_array_string(&list, 0, &bytes);
    }
    if (!needed && (status == QE_E_MISSING || (!status && bytes > ARCHITECTURE_MAX))) return QE_OK;
    QE_TRY(status);
    if (bytes > ARCHITECTURE_MAX)
        return qe_error_at(err, QE_E_LIMIT, qe_store_name(store), -1, "architecture name of %zu bytes, the limit is %d",
                           bytes, ARCHITECTURE_MAX);
    if (bytes) memcpy(model->architecture, text, bytes);
    return QE_OK;
}

static qe_status load(qe_model *model, uint32_t flags, qe_error *err) {
    bool inspect = flags & QE_MODEL_INSPECT;
    QE_TRY(read_architecture(model, !inspect, err));
    if (inspect) return QE_OK;
    QE_TRY(qe_family_find(model->store, model->architecture, &model->family, err));
    QE_TRY(qe_family_read_hparams(model, err));
    QE_TRY(qe_family_bind_weights(model, err));
    return flags & QE_MODEL_NO_TOKENIZER ? QE_OK : qe_model_load_tokenizer(model, err);
}

/* What was opened; and tensors no layer reads, as of another variant of the family. */
static void report(const qe_model *model, const qe_log *log) {
    int64_t tensors = qe_store_tensor_count(model->store), bound = 0;
    if (!model->family) {
        qe_log_line(log, QE_LOG_INFO, "%s: %lld tensors, for inspection", qe_store_name(model->store), (long long)tensors);
        return;
    }
    for (int64_t i = 0; i < model->hp.layers * QE_ROLE_COUNT; i++) bound += model->weights[i] >= 0;
    if (model->hp.tied) bound--;       /* the embedding, a second time */
    qe_log_line(log, QE_LOG_INFO, "%s: %s, %lld layers, %lld of %lld tensors are run", qe_store_name(model->store),
                model->family->name, (long long)model->hp.layers, (long long)bound, (long long)tensors);
}

/* Takes the store over, also on failure. */
static qe_status finish(qe_store *store, const qe_model_options *options, qe_model **out, qe_error *err) {
    qe_model *model = calloc(1, sizeof *model);
    if (!model) {
        qe_store_close(store);
        return qe_error_set(err, QE_E_NOMEM, "no memory for a model");
    }
    model->store = store;
    qe_status status = load(model, options ? options->flags : 0, err);
    if (status) {
        qe_model_close(model);
        return status;
    }
    if (options) report(model, options->log);
    *out = model;
    return QE_OK;
}

qe_status qe_model_open(const char *path, const qe_model_options *options, qe_model **out, qe_error *err) {
    if (!path || !out) return qe_error_set(err, QE_E_ARGUMENT, "path and out must not be NULL");
    *out = NULL;
    QE_TRY(check_options(options, err));
    uint32_t flags = options ? options->flags : 0;
    qe_store *store;
    QE_TRY(qe_store_open(path, flags, options ? options->limits : NULL, &store, err));
    return finish(store, options, out, err);
}

qe_status qe_model_open_reader(qe_reader reader, const char *config_json, size_t config_bytes,
                               const qe_model_options *options, qe_model **out, qe_error *err) {
    qe_status status = out && reader.read_at ? check_options(options, err)
                                             : qe_error_set(err, QE_E_ARGUMENT, "reader and out must not be NULL");
    if (out) *out = NULL;
    if (status) {
        qe_reader_close(&reader);
        return status;
    }
    uint32_t flags = options ? options->flags : 0;
    qe_store *store;
    QE_TRY(
        qe_store_open_reader(reader, config_json, config_bytes, flags, options ? options->limits : NULL, &store, err));
    return finish(store, options, out, err);
}

void qe_model_close(qe_model *model) {
    if (!model) return;
    qe_tokenizer_close(model->tokenizer);
    qe_store_close(model->store);
    free(model->local);
    free(model->q_map);
    free(model->k_map);
    free(model->weights);
    free(model);
}

/* ---- inspection ----------------------------------------------------------------------------------------------- */
static double bits_per_weight(uint64_t bytes, uint64_t elements) {
    return elements ? 8.0 * (double)bytes / (double)elements : 0;
}

qe_status qe_model_get_info(const qe_model *model, qe_model_info *out, qe_error *err) {
    if (!model || !out) return qe_error_set(err, QE_E_ARGUMENT, "model and out must not be NULL");
    const qe_hparams *hp = &model->hp;
    const char *name = NULL;
    memset(out, 0, sizeof *out);
    memcpy(out->architecture, model->architecture, sizeof model->architecture);
    if (model->family) snprintf(out->family, sizeof out->family, "%s", model->family->name);
    bool gguf = qe_store_get_kind(model->store) == QE_STORE_GGUF;
    snprintf(out->format, sizeof out->format, "%s", gguf ? "gguf" : "safetensors");
    if (!qe_store_get_string(model->store, gguf ? "general.name" : "_name_or_path", &name, NULL, NULL))
        snprintf(out->name, sizeof out->name, "%s", name);
    out->vocab = (int32_t)hp->vocab;
    out->hidden = (int32_t)hp->hidden;
    out->layers = (int32_t)hp->layers;
    out->heads = (int32_t)hp->heads;
    out->kv_heads = (int32_t)hp->kv_heads;
    out->head_dim = (int32_t)hp->head_dim;
    out->ffn = (int32_t)hp->ffn;
    out->window = (int32_t)hp->window;
    out->context_tokens = hp->context;
    out->tensors = qe_store_tensor_count(model->store);
    for (int64_t i = 0; i < out->tensors; i++) {
        const qe_store_tensor *t = qe_store_tensor_at(model->store, i);
        out->parameters += (uint64_t)t->rows * (uint64_t)t->columns;
        out->bytes += t->bytes;
    }
    out->bits_per_weight = bits_per_weight(out->bytes, out->parameters);
    return QE_OK;
}

int64_t qe_model_tensor_count(const qe_model *model) {
    return model ? qe_store_tensor_count(model->store) : 0;
}

int64_t qe_model_find_tensor(const qe_model *model, const char *name) {
    return model && name ? qe_store_find(model->store, name) : -1;
}

qe_status qe_model_get_tensor(const qe_model *model, int64_t index, qe_tensor_info *out, qe_error *err) {
    const qe_store_tensor *t = model ? qe_store_tensor_at(model->store, index) : NULL;
    if (!t || !out) return qe_error_set(err, QE_E_ARGUMENT, "no tensor %lld", (long long)index);
    *out = (qe_tensor_info){.name = t->name,
                            .type = qe_store_type_name(t),
                            .rank = t->rank,
                            .rows = t->rows,
                            .columns = t->columns,
                            .bytes = t->bytes,
                            .quant = *qe_store_quant(t)};
    memcpy(out->dims, t->dims, sizeof out->dims);
    out->bits_per_weight = bits_per_weight(t->bytes, (uint64_t)t->rows * (uint64_t)t->columns);
    return QE_OK;
}

qe_status qe_model_read(const qe_model *model, int64_t index, int64_t first_row, int64_t rows, qe_qtensor *band,
                        qe_error *err) {
    if (!model || !band) return qe_error_set(err, QE_E_ARGUMENT, "model and band must not be NULL");
    return qe_store_read(model->store, index, first_row, rows, NULL, band, err);
}

qe_status qe_model_form(const qe_model *model, int64_t index, qe_qtensor *out, qe_error *err) {
    int32_t known;
    if (!model || !out || !qe_store_tensor_at(model->store, index))
        return qe_error_set(err, QE_E_ARGUMENT, "no tensor %lld", (long long)index);
    qe_store_form(model->store, index, out, &known);
    return QE_OK;
}

const char *qe_model_note(const qe_model *model, const char *key) {
    return model && key ? qe_store_note(model->store, key) : NULL;
}

int64_t qe_model_meta_count(const qe_model *model) {
    return model ? qe_store_meta_count(model->store) : 0;
}

const char *qe_model_meta_key(const qe_model *model, int64_t index) {
    return model ? qe_store_meta_key(model->store, index) : NULL;
}

/* A text that counts what it needs and writes what fits. */
typedef struct sink {
    char *text;
    size_t room, used;
} sink;

static void put(sink *s, const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++, s->used++)
        if (s->used + 1 < s->room) s->text[s->used] = text[i];
}

static void put_number(sink *s, const char *format, double value) {
    char text[64];
    int bytes = snprintf(text, sizeof text, format, value);
    put(s, text, bytes > 0 ? (size_t)bytes : 0);
}

static void put_array(sink *s, const qe_store *store, const char *key) {
    enum { SHOWN = 8 };
    qe_meta_array a;
    if (qe_store_get_array(store, key, &a, NULL)) {
        put(s, "[...]", 5);
        return;
    }
    put(s, "[", 1);
    for (int64_t i = 0; i < a.count && i < SHOWN; i++) {
        size_t bytes;
        if (i) put(s, ", ", 2);
        if (a.kind == QE_META_STRING) {
            const char *text = qe_meta_array_string(&a, i, &bytes);
            put(s, text, bytes);
        } else {
            put_number(s, "%.9g", qe_meta_array_float(&a, i));
        }
    }
    if (a.count > SHOWN) put_number(s, ", ... %.0f items", (double)a.count);
    put(s, "]", 1);
}

size_t qe_model_meta_text(const qe_model *model, int64_t index, char *text, size_t text_bytes) {
    sink s = {text, text ? text_bytes : 0, 0};
    const char *key = qe_model_meta_key(model, index), *string = NULL;
    size_t bytes = 0;
    int64_t integer = 0;
    double number = 0;
    bool flag = false;
    if (!key) return 0;
    switch (qe_store_meta_kind(model->store, key)) {
    case QE_META_INT:
        if (qe_store_get_int(model->store, key, &integer, NULL)) put(&s, "over 2^63", 9);
        char digits[32];
        snprintf(digits, sizeof digits, "%lld", (long long)integer);
        if (!s.used) put(&s, digits, strlen(digits));
        break;
    case QE_META_FLOAT:
        qe_store_get_float(model->store, key, &number, NULL);
        put_number(&s, "%.9g", number);
        break;
    case QE_META_BOOL:
        qe_store_get_bool(model->store, key, &flag, NULL);
        put(&s, flag ? "true" : "false", flag ? 4 : 5);
        break;
    case QE_META_STRING:
        if (!qe_store_get_string(model->store, key, &string, &bytes, NULL)) put(&s, string, bytes);
        break;
    case QE_META_ARRAY:
        put_array(&s, model->store, key);
        break;
    default:
        put(&s, "null", 4);
    }
    if (s.room) s.text[s.used < s.room ? s.used : s.room - 1] = 0;
    return s.used;
}

const struct qe_tokenizer *qe_model_tokenizer(const qe_model *model) {
    return model ? model->tokenizer : NULL;
}
