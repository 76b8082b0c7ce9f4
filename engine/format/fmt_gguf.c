/* GGUF: key-values and tensor directory.
 *
 *   "GGUF" u32 version, u64 tensors, u64 keys | keys: string key, u32 type, value | tensors: string name, u32 rank,
 *   u64 dims (fastest first), u32 type, u64 offset | zeros up to the alignment | data, each tensor aligned, in order
 *
 * The header's length is not declared, so it is read as far as it is parsed, never more than twice that. Positions,
 * not pointers, are kept while the buffer may move; at the end strings are terminated in place, over bytes that were
 * parsed already. Tensors must follow each other without gap or overlap in directory order, as every writer of the
 * format lays them out. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "format/store_internal.h"

enum { FIRST_CHUNK = 1 << 16, KEY_MAX = 65535, NAME_MAX_BYTES = 63, ARCH_MAX = 63, RANK_MAX = 4,
       MIN_KEY_BYTES = 14, MIN_TENSOR_BYTES = 33, ALIGN_MAX = 1 << 20, DEFAULT_ALIGN = 32 };
enum { T_U8, T_I8, T_U16, T_I16, T_U32, T_I32, T_F32, T_BOOL, T_STRING, T_ARRAY, T_U64, T_I64, T_F64, T_COUNT };

static const struct { uint8_t bytes; qe_meta_kind kind; } value_types[T_COUNT] = {
    {1, QE_META_INT}, {1, QE_META_INT}, {2, QE_META_INT}, {2, QE_META_INT}, {4, QE_META_INT}, {4, QE_META_INT},
    {4, QE_META_FLOAT}, {1, QE_META_BOOL}, {0, QE_META_STRING}, {0, QE_META_ARRAY}, {8, QE_META_INT}, {8, QE_META_INT},
    {8, QE_META_FLOAT}};

typedef struct header {
    qe_store  *store;
    qe_reader *file;
    const char *where;
    char      *bytes;           /* [loaded], one byte more is allocated for a terminator */
    size_t     at, loaded, room;
    uint64_t   limit, alignment;
} header;

static qe_status fail(const header *h, qe_status status, size_t at, const char *what, uint64_t found, qe_error *err) {
    return qe_error_at(err, status, h->where, (int64_t)at, "%s (found %llu)", what, (unsigned long long)found);
}

/* Bytes [at, at + count) are loaded. */
static qe_status need(header *h, uint64_t count, qe_error *err) {
    if (count <= h->loaded - h->at) return QE_OK;
    if (!qe_check_span(h->at, count, h->file->size))
        return qe_error_at(err, QE_E_TRUNCATED, h->where, (int64_t)h->at,
                           "the header needs %llu more bytes, but the file ends at %llu", (unsigned long long)count,
                           (unsigned long long)h->file->size);
    uint64_t end = h->at + count;
    if (end > h->limit)
        return qe_error_at(err, QE_E_LIMIT, h->where, (int64_t)h->at, "header of over %llu bytes",
                           (unsigned long long)h->limit);
    uint64_t want = (uint64_t)h->room * 2;
    if (want < end) want = end;
    if (want < FIRST_CHUNK) want = FIRST_CHUNK;
    if (want > h->limit) want = h->limit;
    if (want > h->file->size) want = h->file->size;
    char *bytes = realloc(h->bytes, (size_t)want + 1);
    if (!bytes) return qe_store_nomem(h->store, err);
    h->bytes = bytes;
    h->room = (size_t)want;
    QE_TRY(h->file->read_at(h->file->ctx, h->loaded, bytes + h->loaded, h->room - h->loaded, err));
    h->loaded = h->room;
    return QE_OK;
}

static qe_status take(header *h, int32_t count, uint64_t *out, qe_error *err) {
    QE_TRY(need(h, (uint64_t)count, err));
    uint64_t value = 0;
    for (int32_t i = 0; i < count; i++) value |= (uint64_t)(uint8_t)h->bytes[h->at + (size_t)i] << 8 * i;
    h->at += (size_t)count;
    *out = value;
    return QE_OK;
}

/* A string's text position and length; too_long is the status above `limit` bytes. */
static qe_status take_string(header *h, uint64_t limit, const char *what, size_t *text_at, size_t *bytes,
                             qe_error *err) {
    uint64_t length;
    QE_TRY(take(h, 8, &length, err));
    if (length > limit)
        return qe_error_at(err, QE_E_LIMIT, h->where, (int64_t)h->at - 8, "%s of %llu bytes, the limit is %llu", what,
                           (unsigned long long)length, (unsigned long long)limit);
    QE_TRY(need(h, length, err));
    *text_at = h->at;
    *bytes = (size_t)length;
    h->at += (size_t)length;
    return QE_OK;
}

static qe_status check_name(const header *h, size_t at, size_t bytes, const char *what, qe_error *err) {
    char text[QE_TEXT_MAX];
    if (!bytes) return fail(h, QE_E_RANGE, at, "empty name", 0, err);
    if (!qe_utf8_valid(h->bytes + at, bytes))
        return qe_error_at(err, QE_E_UTF8, h->where, (int64_t)at, "%s \"%s\" is not UTF-8", what,
                           qe_escape(h->bytes + at, bytes, text, sizeof text));
    if (memchr(h->bytes + at, 0, bytes))
        return qe_error_at(err, QE_E_RANGE, h->where, (int64_t)at, "%s \"%s\" holds a NUL", what,
                           qe_escape(h->bytes + at, bytes, text, sizeof text));
    return QE_OK;
}

static qe_status check_key(const header *h, size_t at, size_t bytes, qe_error *err) {
    QE_TRY(check_name(h, at, bytes, "key", err));
    if (h->store->flags & QE_MODEL_RELAXED_KEYS) return QE_OK;
    for (size_t i = 0; i < bytes; i++) {
        char c = h->bytes[at + i];
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-') continue;
        char text[QE_TEXT_MAX];
        return qe_error_at(err, QE_E_RANGE, h->where, (int64_t)(at + i),
                           "key \"%s\" holds a character outside a-z 0-9 . _ -",
                           qe_escape(h->bytes + at, bytes, text, sizeof text));
    }
    return QE_OK;
}

/* ---- values --------------------------------------------------------------------------------------------------- */
static void set_scalar(qe_meta_entry *e, uint64_t type, uint64_t bits) {
    uint32_t low = (uint32_t)bits;
    float f;
    switch (type) {
        case T_I8: e->i = (int8_t)bits; break;
        case T_I16: e->i = (int16_t)bits; break;
        case T_I32: e->i = (int32_t)bits; break;
        case T_F32:
            memcpy(&f, &low, sizeof f);
            e->f = f;
            break;
        case T_F64: memcpy(&e->f, &bits, sizeof e->f); break;
        default:
            e->i = (int64_t)bits;
            e->big = type == T_U64 && bits > INT64_MAX;
    }
}

static qe_status take_string_array(header *h, qe_meta_entry *e, uint64_t count, qe_error *err) {
    if (count > (h->file->size - h->at) / 8)
        return fail(h, QE_E_TRUNCATED, h->at, "more strings than the file has room for", count, err);
    size_t *starts = qe_store_alloc(h->store, count, sizeof *starts), bytes;
    if (!starts) return qe_store_nomem(h->store, err);
    e->array.starts = starts;
    for (uint64_t i = 0; i < count; i++)
        QE_TRY(take_string(h, h->store->limits.string_bytes, "string", &starts[i], &bytes, err));
    return QE_OK;
}

static qe_status take_array(header *h, qe_meta_entry *e, qe_error *err) {
    uint64_t type, count, bytes;
    size_t at = h->at;
    QE_TRY(take(h, 4, &type, err));
    QE_TRY(take(h, 8, &count, err));
    if (type >= T_COUNT) return fail(h, QE_E_TYPE, at, "unknown type of array items", type, err);
    if (type == T_ARRAY) return fail(h, QE_E_UNSUPPORTED, at, "arrays of arrays are not read", count, err);
    int32_t each = value_types[type].bytes;
    if (!qe_check_mul(count, each ? (uint64_t)each : 8, &bytes))
        return fail(h, QE_E_OVERFLOW, at + 4, "array count times item size overflows", count, err);
    if (!qe_check_span(h->at, bytes, h->file->size))
        return fail(h, QE_E_TRUNCATED, at + 4, "array longer than the file", count, err);
    if (count > h->store->limits.array_items)
        return fail(h, QE_E_LIMIT, at + 4, "array over the limit of items", count, err);
    e->array = (qe_meta_array){.kind = value_types[type].kind, .count = (int64_t)count, .item_bytes = each,
                               .item_type = (int32_t)type};
    if (type == T_STRING) return take_string_array(h, e, count, err);
    QE_TRY(need(h, bytes, err));
    e->text_at = h->at;
    for (uint64_t i = 0; type == T_BOOL && i < count; i++)
        if ((uint8_t)h->bytes[h->at + i] > 1)
            return fail(h, QE_E_RANGE, h->at + (size_t)i, "bool that is neither 0 nor 1", (uint8_t)h->bytes[h->at + i],
                        err);
    h->at += (size_t)bytes;
    return QE_OK;
}

static qe_status take_key(header *h, qe_meta_entry *e, qe_error *err) {
    uint64_t type, bits;
    QE_TRY(take_string(h, KEY_MAX, "key", &e->key_at, &e->key_bytes, err));
    QE_TRY(check_key(h, e->key_at, e->key_bytes, err));
    size_t at = h->at;
    QE_TRY(take(h, 4, &type, err));
    if (type >= T_COUNT) return fail(h, QE_E_TYPE, at, "unknown type of value", type, err);
    e->kind = value_types[type].kind;
    e->exact_float = true;
    if (type == T_ARRAY) return take_array(h, e, err);
    if (type == T_STRING) {
        QE_TRY(take_string(h, h->store->limits.string_bytes, "string", &e->text_at, &e->text_bytes, err));
        if (!qe_utf8_valid(h->bytes + e->text_at, e->text_bytes))
            return fail(h, QE_E_UTF8, e->text_at, "string value that is not UTF-8; its bytes", e->text_bytes, err);
        return QE_OK;
    }
    at = h->at;
    QE_TRY(take(h, value_types[type].bytes, &bits, err));
    if (type == T_BOOL && bits > 1) return fail(h, QE_E_RANGE, at, "bool that is neither 0 nor 1", bits, err);
    e->array.item_type = (int32_t)type;
    set_scalar(e, type, bits);
    return QE_OK;
}

/* ---- tensor directory ----------------------------------------------------------------------------------------- */
typedef struct entry_at { size_t entry, name, name_bytes; } entry_at;

/* One tensor; its offset stays relative until the data section is known. */
static qe_status take_tensor(header *h, qe_store_tensor *t, entry_at *place, qe_error *err) {
    uint64_t rank, dim, id;
    place->entry = h->at;
    QE_TRY(take_string(h, NAME_MAX_BYTES, "tensor name", &place->name, &place->name_bytes, err));
    QE_TRY(check_name(h, place->name, place->name_bytes, "tensor name", err));
    size_t at = h->at;
    QE_TRY(take(h, 4, &rank, err));
    if (rank < 1 || rank > RANK_MAX) return fail(h, QE_E_RANGE, at, "rank of a tensor must be 1..4", rank, err);
    t->rank = (int32_t)rank;
    for (int32_t i = t->rank - 1; i >= 0; i--) {
        at = h->at;
        QE_TRY(take(h, 8, &dim, err));
        if (dim > INT64_MAX) return fail(h, QE_E_RANGE, at, "dimension of a tensor is negative", dim, err);
        if (!dim) return fail(h, QE_E_SHAPE, at, "dimension of a tensor is zero", dim, err);
        t->dims[i] = (int64_t)dim;
    }
    at = h->at;
    QE_TRY(take(h, 4, &id, err));
    bool retired;
    t->type = qe_gguf_type((uint32_t)id, &retired);
    if (!t->type && retired) return fail(h, QE_E_UNSUPPORTED, at, "tensor type that was withdrawn", id, err);
    if (!t->type) return fail(h, QE_E_TYPE, at, "unknown tensor type", id, err);
    QE_TRY(qe_tensor_measure(t, h->where, place->entry, err));
    return take(h, 8, &t->offset, err);
}

static qe_status cut(const header *h, const qe_store_tensor *t, const entry_at *place, uint64_t start, qe_error *err) {
    return qe_error_at(err, QE_E_TRUNCATED, h->where, (int64_t)place->entry,
                       "tensor \"%.*s\" ends at byte %llu, but the file at %llu", (int)place->name_bytes, h->bytes + place->name,
                       (unsigned long long)(start + t->offset + t->bytes), (unsigned long long)h->file->size);
}

/* Each tensor starts where the one before ended, rounded up; `expected` runs along. Sums were proven to fit. */
static qe_status check_place(const header *h, const qe_store_tensor *t, const entry_at *place, uint64_t expected,
                             uint64_t start, qe_error *err) {
    uint64_t end, data_bytes = h->file->size - start;
    bool wraps = !qe_check_add(t->offset, t->bytes, &end), inside = !wraps && end <= data_bytes;
    if (t->offset == expected) return inside ? QE_OK : cut(h, t, place, start, err);
    if (t->offset % h->alignment)
        return inside ? fail(h, QE_E_ALIGN, place->entry, "tensor offset is not aligned", t->offset, err)
                      : fail(h, QE_E_OFFSET, place->entry, "tensor offset outside the file", t->offset, err);
    if (wraps) return fail(h, QE_E_OVERFLOW, place->entry, "tensor offset plus size overflows", t->offset, err);
    if (!inside) return fail(h, QE_E_OFFSET, place->entry, "tensor offset outside the file", t->offset, err);
    return t->offset < expected ? fail(h, QE_E_OVERLAP, place->entry, "tensor overlaps the one before", t->offset, err)
                                : fail(h, QE_E_HOLE, place->entry, "bytes between two tensors", t->offset, err);
}

static qe_status place_tensors(header *h, const entry_at *places, qe_error *err) {
    qe_store *store = h->store;
    uint64_t sum = 0, start, size = h->file->size;
    for (int64_t i = 0; i < store->tensor_count; i++) {
        if (!qe_check_add(sum, store->tensors[i].bytes, &sum) || !qe_check_align(sum, h->alignment, &sum) ||
            sum > INT64_MAX)
            return fail(h, QE_E_OVERFLOW, places[i].entry, "the sizes of all tensors overflow", sum, err);
    }
    if (!store->tensor_count && h->at == size) return QE_OK;
    if (!qe_check_align(h->at, h->alignment, &start) || start > size)
        return fail(h, QE_E_TRUNCATED, h->at, "the file ends before its data section", size, err);
    uint64_t expected = 0, end = 0;
    for (int64_t i = 0; i < store->tensor_count; i++) {
        qe_store_tensor *t = &store->tensors[i];
        QE_TRY(check_place(h, t, &places[i], expected, start, err));
        end = t->offset + t->bytes;
        qe_check_align(end, h->alignment, &expected);
        t->offset += start;
    }
    if (size - start > expected)
        return fail(h, QE_E_HOLE, (size_t)(start + expected), "bytes after the last tensor", size - start - expected,
                    err);
    return QE_OK;
}

static qe_status take_tensors(header *h, qe_error *err) {
    qe_store *store = h->store;
    entry_at *places = calloc((size_t)store->tensor_count + 1, sizeof *places);
    if (!places) return qe_store_nomem(store, err);
    qe_status status = QE_OK;
    for (int64_t i = 0; i < store->tensor_count && !status; i++)
        status = take_tensor(h, &store->tensors[i], &places[i], err);
    if (!status) status = place_tensors(h, places, err);
    for (int64_t i = 0; i < store->tensor_count && !status; i++) {
        store->tensors[i].name = h->bytes + places[i].name;
        h->bytes[places[i].name + places[i].name_bytes] = 0;
    }
    free(places);
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------------------------ */
static qe_status take_count(header *h, size_t internal_bytes, uint64_t limit, uint64_t min_bytes, const char *what,
                            uint64_t *out, qe_error *err) {
    uint64_t count, bytes;
    size_t at = h->at;
    QE_TRY(take(h, 8, &count, err));
    if (!qe_check_mul(count, internal_bytes, &bytes))
        return qe_error_at(err, QE_E_OVERFLOW, h->where, (int64_t)at, "count of %s overflows: %llu", what,
                           (unsigned long long)count);
    if (count > limit)
        return qe_error_at(err, QE_E_LIMIT, h->where, (int64_t)at, "%llu %s, the limit is %llu",
                           (unsigned long long)count, what, (unsigned long long)limit);
    if (count > h->file->size / min_bytes)
        return qe_error_at(err, QE_E_TRUNCATED, h->where, (int64_t)at, "%llu %s do not fit in a file of %llu bytes",
                           (unsigned long long)count, what, (unsigned long long)h->file->size);
    *out = count;
    return QE_OK;
}

static qe_status take_version(header *h, qe_error *err) {
    uint64_t version;
    QE_TRY(need(h, 4, err));
    char text[QE_TEXT_MAX];
    if (memcmp(h->bytes, "GGUF", 4))
        return qe_error_at(err, QE_E_MAGIC, h->where, 0, "the file starts with \"%s\", not with \"GGUF\"",
                           qe_escape(h->bytes, 4, text, sizeof text));
    h->at = 4;
    QE_TRY(take(h, 4, &version, err));
    if (version && !(version & 0xffff))
        return fail(h, QE_E_ENDIAN, 4, "big-endian GGUF is not read; version", version, err);
    if (version != 2 && version != 3) return fail(h, QE_E_VERSION, 4, "GGUF version must be 2 or 3", version, err);
    return QE_OK;
}

/* The two keys the container itself depends on. The key index is made here, so that a duplicate cannot hide. */
static qe_status read_settings(header *h, qe_error *err) {
    qe_store *store = h->store;
    int64_t value;
    h->alignment = DEFAULT_ALIGN;
    qe_status status = qe_store_meta_kind(store, "general.alignment")
                           ? qe_store_get_int(store, "general.alignment", &value, err) : QE_E_MISSING;
    if (status && status != QE_E_MISSING) return status;
    if (!status) {
        for (int64_t i = 0; i < store->meta_count; i++)
            if (!strcmp(store->metas[i].key, "general.alignment") && store->metas[i].array.item_type != T_U32)
                return fail(h, QE_E_TYPE, store->metas[i].key_at, "general.alignment must be a u32", (uint64_t)value,
                            err);
        if (value < 8 || value > ALIGN_MAX || (value & (value - 1)))
            return fail(h, QE_E_RANGE, 0, "general.alignment must be a power of two, 8..1048576", (uint64_t)value, err);
        h->alignment = (uint64_t)value;
    }
    return QE_OK;
}

static qe_status check_quantization_version(header *h, qe_error *err) {
    const qe_store *store = h->store;
    const qe_store_tensor *quantized = NULL;
    for (int64_t i = 0; i < store->tensor_count && !quantized; i++)
        if (store->tensors[i].type->block > 1) quantized = &store->tensors[i];
    if (!quantized) return QE_OK;
    int64_t version;
    QE_TRY(qe_store_get_int(store, "general.quantization_version", &version, err));
    if (version != 2)
        return fail(h, QE_E_UNSUPPORTED, 0, "general.quantization_version must be 2", (uint64_t)version, err);
    return QE_OK;
}

/* Key texts get their pointers. The array of all keys must be complete: the buffer no longer moves after this for
 * keys, but may for tensors, so it is called twice. */
static void point_keys(header *h) {
    for (int64_t i = 0; i < h->store->meta_count; i++) {
        qe_meta_entry *e = &h->store->metas[i];
        e->key = h->bytes + e->key_at;
        h->bytes[e->key_at + e->key_bytes] = 0;
        if (e->kind == QE_META_STRING) {
            e->text = h->bytes + e->text_at;
        } else if (e->kind == QE_META_ARRAY) {
            e->array.base = h->bytes;
            e->array.data = h->bytes + e->text_at;
        }
    }
}

static void terminate_strings(header *h) {
    for (int64_t i = 0; i < h->store->meta_count; i++) {
        const qe_meta_entry *e = &h->store->metas[i];
        if (e->kind == QE_META_STRING) h->bytes[e->text_at + e->text_bytes] = 0;
    }
}

static qe_status parse(header *h, qe_error *err) {
    qe_store *store = h->store;
    uint64_t tensors, keys;
    QE_TRY(take_version(h, err));
    QE_TRY(take_count(h, sizeof *store->tensors, store->limits.tensors, MIN_TENSOR_BYTES, "tensors", &tensors, err));
    QE_TRY(take_count(h, sizeof *store->metas, store->limits.keys, MIN_KEY_BYTES, "keys", &keys, err));
    store->metas = qe_store_alloc(store, keys, sizeof *store->metas);
    store->tensors = qe_store_alloc(store, tensors, sizeof *store->tensors);
    if (!store->metas || !store->tensors) return qe_store_nomem(store, err);
    for (uint64_t i = 0; i < keys; i++) QE_TRY(take_key(h, &store->metas[i], err));
    store->meta_count = (int64_t)keys;
    point_keys(h);
    QE_TRY(qe_store_index_metas(store, err));
    QE_TRY(read_settings(h, err));
    store->tensor_count = (int64_t)tensors;
    QE_TRY(take_tensors(h, err));
    point_keys(h);
    terminate_strings(h);
    QE_TRY(qe_store_index_tensors(store, err));
    return check_quantization_version(h, err);
}

qe_status qe_gguf_load(qe_store *store, qe_error *err) {
    header h = {.store = store, .file = &store->files[0], .where = store->name, .limit = store->limits.header_bytes};
    qe_status status = parse(&h, err);
    if (status) {
        free(h.bytes);
        store->meta_count = store->tensor_count = 0;
        return status;
    }
    store->header = h.bytes;
    return QE_OK;
}
