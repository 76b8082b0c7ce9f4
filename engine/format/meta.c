/* Typed getters over the key-values of a store. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "format/store_internal.h"

static const char *const kind_names[] = {"null", "integer", "float", "bool", "string", "array"};

static const qe_meta_entry *find(const qe_store *store, const char *key) {
    int64_t lo = 0, hi = store->meta_count;
    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;
        const qe_meta_entry *e = &store->metas[store->meta_order[mid]];
        int order = strcmp(e->key, key);
        if (!order) return e;
        if (order < 0) lo = mid + 1;
        else hi = mid;
    }
    return NULL;
}

/* The entry, present and of the wanted kind. */
static qe_status need(const qe_store *store, const char *key, qe_meta_kind kind, const qe_meta_entry **out,
                      qe_error *err) {
    const qe_meta_entry *e = find(store, key);
    if (!e || e->kind == QE_META_NONE)
        return qe_error_at(err, QE_E_MISSING, store->name, -1, "key \"%s\" is missing", key);
    bool widened = kind == QE_META_FLOAT && e->kind == QE_META_INT && !e->exact_float;
    if (e->kind != kind && !widened)
        return qe_error_at(err, QE_E_TYPE, store->name, -1, "key \"%s\" holds %s, expected %s", key,
                           kind_names[e->kind], kind_names[kind]);
    *out = e;
    return QE_OK;
}

int64_t qe_store_meta_count(const qe_store *store) {
    return store->meta_count;
}

const char *qe_store_meta_key(const qe_store *store, int64_t index) {
    return index >= 0 && index < store->meta_count ? store->metas[index].key : NULL;
}

qe_meta_kind qe_store_meta_kind(const qe_store *store, const char *key) {
    const qe_meta_entry *e = find(store, key);
    return e ? e->kind : QE_META_NONE;
}

qe_status qe_store_get_int(const qe_store *store, const char *key, int64_t *out, qe_error *err) {
    const qe_meta_entry *e = NULL;
    QE_TRY(need(store, key, QE_META_INT, &e, err));
    if (e->big) return qe_error_at(err, QE_E_RANGE, store->name, -1, "key \"%s\" is over 2^63 - 1", key);
    *out = e->i;
    return QE_OK;
}

qe_status qe_store_get_float(const qe_store *store, const char *key, double *out, qe_error *err) {
    const qe_meta_entry *e = NULL;
    QE_TRY(need(store, key, QE_META_FLOAT, &e, err));
    *out = e->kind == QE_META_FLOAT ? e->f : (double)e->i;
    return QE_OK;
}

qe_status qe_store_get_bool(const qe_store *store, const char *key, bool *out, qe_error *err) {
    const qe_meta_entry *e = NULL;
    QE_TRY(need(store, key, QE_META_BOOL, &e, err));
    *out = e->i != 0;
    return QE_OK;
}

qe_status qe_store_get_string(const qe_store *store, const char *key, const char **out, size_t *bytes,
                              qe_error *err) {
    const qe_meta_entry *e = NULL;
    QE_TRY(need(store, key, QE_META_STRING, &e, err));
    *out = e->text;
    if (bytes) *bytes = e->text_bytes;
    return QE_OK;
}

qe_status qe_store_get_array(const qe_store *store, const char *key, qe_meta_array *out, qe_error *err) {
    const qe_meta_entry *e = NULL;
    QE_TRY(need(store, key, QE_META_ARRAY, &e, err));
    if (e->array.kind == QE_META_NONE && e->array.count)
        return qe_error_at(err, QE_E_TYPE, store->name, -1, "key \"%s\" holds an array of mixed or nested values", key);
    *out = e->array;
    return QE_OK;
}

/* ---- items: stored little-endian and unaligned; type ids of GGUF ---------------------------------------------- */
static uint64_t item_bits(const qe_meta_array *a, int64_t index) {
    const uint8_t *p = (const uint8_t *)a->data + (size_t)index * (size_t)a->item_bytes;
    uint64_t bits = 0;
    for (int32_t i = 0; i < a->item_bytes; i++) bits |= (uint64_t)p[i] << 8 * i;
    return bits;
}

int64_t qe_meta_array_int(const qe_meta_array *array, int64_t index) {
    uint64_t bits = item_bits(array, index);
    switch (array->item_type) {
        case 1: return (int8_t)bits;
        case 3: return (int16_t)bits;
        case 5: return (int32_t)bits;
        default: return (int64_t)bits;
    }
}

double qe_meta_array_float(const qe_meta_array *array, int64_t index) {
    if (array->kind != QE_META_FLOAT) return (double)qe_meta_array_int(array, index);
    uint64_t bits = item_bits(array, index);
    if (array->item_bytes == 4) {
        uint32_t half = (uint32_t)bits;
        float f;
        memcpy(&f, &half, sizeof f);
        return f;
    }
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

const char *qe_meta_array_string(const qe_meta_array *array, int64_t index, size_t *bytes) {
    const char *text = array->base + array->starts[index];
    const uint8_t *length = (const uint8_t *)text - 8;
    uint64_t n = 0;
    for (int i = 0; i < 8; i++) n |= (uint64_t)length[i] << 8 * i;
    *bytes = (size_t)n;
    return text;
}

bool qe_utf8_valid(const char *text, size_t bytes) {
    for (size_t at = 0, length; at < bytes; at += length)
        if (!(length = qe_utf8_length(text + at, bytes - at))) return false;
    return true;
}
