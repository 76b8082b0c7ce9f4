/* JSON of a checkpoint: parsing with our status codes, and config.json flattened into the key-values of a store. */
#include <stdlib.h>
#include <string.h>

#include "format/store_internal.h"

enum { KEY_LIMIT = 1024 };
enum { ITEM_I64 = 11, ITEM_F64 = 12 };  /* as GGUF numbers its value types */

qe_status qe_store_json(const char *where, const char *text, size_t bytes, uint64_t base, json_t **out, size_t *at,
                        qe_error *err) {
    qe_json_limits limits = {.max_bytes = bytes ? bytes : 1, .max_members = UINT64_MAX};     /* the caller's are checked */
    qe_error mine;
    qe_status status = qe_json_parse(text, bytes, &limits, where, out, &mine);
    if (status) {
        if (at) *at = (size_t)mine.offset;
        return qe_error_at(err, status, where, (int64_t)base + mine.offset, "JSON %s", mine.message);
    }
    if (json_is_object(*out)) return QE_OK;
    json_decref(*out);
    *out = NULL;
    return qe_error_at(err, QE_E_TYPE, where, (int64_t)base, "the top level of the JSON text is not an object");
}

qe_status qe_store_slurp(const char *path, size_t max_bytes, char **out, size_t *out_bytes, qe_error *err) {
    qe_reader reader;
    QE_TRY(qe_reader_open(path, &reader, err));
    qe_status status = QE_OK;
    char *text = NULL;
    if (reader.size > max_bytes)
        status = qe_error_at(err, QE_E_LIMIT, path, -1, "%llu bytes, the limit is %zu", (unsigned long long)reader.size,
                             max_bytes);
    else if (!(text = malloc((size_t)reader.size + 1)))
        status = qe_error_at(err, QE_E_NOMEM, path, -1, "no memory for %llu bytes", (unsigned long long)reader.size);
    else
        status = reader.read_at(reader.ctx, 0, text, (size_t)reader.size, err);
    if (!status) {
        text[reader.size] = 0;
        *out = text;
        *out_bytes = (size_t)reader.size;
    } else {
        free(text);
    }
    qe_reader_close(&reader);
    return status;
}

/* ---- config.json, flattened ----------------------------------------------------------------------------------- */
typedef struct flattener {
    qe_store   *store;
    const char *where;
    int64_t     room;
    char        key[KEY_LIMIT + 1];
} flattener;

static qe_status fail_limit(const flattener *f, const char *what, qe_error *err) {
    return qe_error_at(err, QE_E_LIMIT, f->where, -1, "over the limit of %s", what);
}

static uint64_t count_values(json_t *object) {
    uint64_t count = 0;
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) count += json_is_object(value) ? count_values(value) : 1;
    return count;
}

/* The kind all items share; integers among floats count as floats; NONE for mixed or nested items. */
static qe_meta_kind items_kind(const json_t *array) {
    qe_meta_kind kind = QE_META_NONE;
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *v = json_array_get(array, i);
        qe_meta_kind k = json_is_string(v) ? QE_META_STRING : json_is_integer(v) ? QE_META_INT
                         : json_is_real(v) ? QE_META_FLOAT : json_is_boolean(v) ? QE_META_BOOL : QE_META_NONE;
        bool numbers = (k == QE_META_INT && kind == QE_META_FLOAT) || (k == QE_META_FLOAT && kind == QE_META_INT);
        if (!k || (i && k != kind && !numbers)) return QE_META_NONE;
        kind = numbers ? QE_META_FLOAT : k;
    }
    return kind;
}

static qe_status flatten_strings(flattener *f, const json_t *array, qe_meta_array *out, qe_error *err) {
    size_t count = json_array_size(array), bytes = 0, at = 0;
    for (size_t i = 0; i < count; i++) bytes += 8 + json_string_length(json_array_get(array, i));
    size_t *starts = qe_store_alloc(f->store, count, sizeof *starts);
    char *base = qe_store_alloc(f->store, bytes, 1);
    if (!starts || !base) return qe_store_nomem(f->store, err);
    for (size_t i = 0; i < count; i++) {
        const json_t *v = json_array_get(array, i);
        size_t length = json_string_length(v);
        for (int b = 0; b < 8; b++) base[at + (size_t)b] = (char)(uint8_t)((uint64_t)length >> 8 * b);
        starts[i] = at + 8;
        memcpy(base + starts[i], json_string_value(v), length);
        at = starts[i] + length;
    }
    out->starts = starts;
    out->base = base;
    return QE_OK;
}

static qe_status flatten_array(flattener *f, const json_t *array, qe_meta_array *out, qe_error *err) {
    size_t count = json_array_size(array);
    *out = (qe_meta_array){.kind = items_kind(array), .count = (int64_t)count};
    if (count > f->store->limits.array_items) return fail_limit(f, "array items", err);
    if (out->kind == QE_META_NONE) return QE_OK;
    if (out->kind == QE_META_STRING) return flatten_strings(f, array, out, err);
    out->item_bytes = 8;
    out->item_type = out->kind == QE_META_FLOAT ? ITEM_F64 : ITEM_I64;
    int64_t *items = qe_store_alloc(f->store, count, sizeof *items);
    if (!items) return qe_store_nomem(f->store, err);
    for (size_t i = 0; i < count; i++) {
        const json_t *v = json_array_get(array, i);
        double number = json_number_value(v);
        if (out->kind == QE_META_FLOAT) memcpy(&items[i], &number, sizeof number);
        else items[i] = out->kind == QE_META_BOOL ? json_is_true(v) : json_integer_value(v);
    }
    out->data = items;
    return QE_OK;
}

static qe_status flatten_value(flattener *f, json_t *value, qe_error *err) {
    qe_store *store = f->store;
    qe_meta_entry *e = &store->metas[store->meta_count++];
    e->key = qe_store_text(store, f->key, strlen(f->key));
    if (!e->key) return qe_store_nomem(store, err);
    switch (json_typeof(value)) {
        case JSON_STRING:
            e->kind = QE_META_STRING;
            e->text_bytes = json_string_length(value);
            if (e->text_bytes > store->limits.string_bytes) return fail_limit(f, "string bytes", err);
            e->text = qe_store_text(store, json_string_value(value), e->text_bytes);
            return e->text ? QE_OK : qe_store_nomem(store, err);
        case JSON_INTEGER:
            e->kind = QE_META_INT;
            e->i = json_integer_value(value);
            return QE_OK;
        case JSON_REAL:
            e->kind = QE_META_FLOAT;
            e->f = json_real_value(value);
            return QE_OK;
        case JSON_TRUE:
        case JSON_FALSE:
            e->kind = QE_META_BOOL;
            e->i = json_is_true(value);
            return QE_OK;
        case JSON_ARRAY: e->kind = QE_META_ARRAY; return flatten_array(f, value, &e->array, err);
        default: return QE_OK; /* null: listed, counts as missing */
    }
}

static qe_status flatten(flattener *f, json_t *object, size_t prefix, qe_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        size_t bytes = strlen(key);
        if (bytes > KEY_LIMIT - prefix - 1) return fail_limit(f, "key bytes", err);
        memcpy(f->key + prefix, key, bytes + 1);
        if (json_is_object(value)) {
            f->key[prefix + bytes] = '.';
            f->key[prefix + bytes + 1] = 0;
            QE_TRY(flatten(f, value, prefix + bytes + 1, err));
        } else {
            QE_TRY(flatten_value(f, value, err));
        }
    }
    return QE_OK;
}

qe_status qe_config_load(qe_store *store, const char *where, const char *json, size_t bytes, qe_error *err) {
    if (bytes > store->limits.config_bytes)
        return qe_error_at(err, QE_E_LIMIT, where, -1, "%zu bytes, the limit is %llu", bytes,
                           (unsigned long long)store->limits.config_bytes);
    json_t *root;
    qe_status status = qe_store_json(where, json, bytes, 0, &root, NULL, err);
    /* No member has a legal value beyond 64 bits. */
    if (status == QE_E_OVERFLOW && err) err->status = QE_E_RANGE;
    if (status) return status == QE_E_OVERFLOW ? QE_E_RANGE : status;
    flattener f = {.store = store, .where = where};
    uint64_t count = count_values(root);
    if (count > store->limits.keys) status = fail_limit(&f, "keys", err);
    if (!status && !(store->metas = qe_store_alloc(store, count, sizeof *store->metas)))
        status = qe_store_nomem(store, err);
    if (!status) status = flatten(&f, root, 0, err);
    if (!status && json_is_object(json_object_get(root, "quantization_config")) && !store->quantization)
        store->quantization = json_incref(json_object_get(root, "quantization_config"));
    json_decref(root);
    return status;
}
