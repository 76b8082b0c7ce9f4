/* safetensors: u64 header bytes, JSON header, data. Strict by the published rules: the header starts with '{' and is
 * padded with spaces only; tensors tile the data without hole or overlap. Offsets need not be aligned: rows are
 * copied. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "format/store_internal.h"

enum { HEADER_MAX = 100000000, RANK_LIMIT = 8, NAME_LIMIT = 1024, PREFIX = 8 };

typedef struct file_info {
    qe_store *store;
    const char *where;
    int32_t file;
    uint64_t data_start, data_bytes;
} file_info;

typedef struct span {
    uint64_t begin, end;
    const char *name;
} span;

/* Tensors of the header, counted without parsing, so that a header of millions is refused cheaply: the objects one level
 * inside, without the metadata. */
static uint64_t count_entries(const char *text, size_t bytes) {
    static const char metadata[] = "\"__metadata__\"";
    uint64_t count = 0;
    int64_t depth = 0;
    bool quoted = false, seen = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
        } else if (c == '"') {
            quoted = true;
            seen |= depth == 1 && bytes - i >= sizeof metadata && !memcmp(text + i, metadata, sizeof metadata - 1);
        } else if (c == '{' || c == '[') {
            count += ++depth == 2 && c == '{';
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return count - (seen && count);
}

static qe_status entry_fail(const file_info *f, qe_status status, const char *name, const char *what, qe_error *err) {
    char text[QE_TEXT_MAX];
    return qe_error_at(err, status, f->where, -1, "tensor \"%s\": %s", qe_escape(name, strlen(name), text, sizeof text),
                       what);
}

static qe_status read_shape(const file_info *f, const char *name, const json_t *shape, qe_store_tensor *t,
                            qe_error *err) {
    if (!json_is_array(shape)) return entry_fail(f, QE_E_TYPE, name, "shape is not an array", err);
    if (json_array_size(shape) > RANK_LIMIT) return entry_fail(f, QE_E_LIMIT, name, "more than 8 dimensions", err);
    t->rank = (int32_t)json_array_size(shape);
    for (int32_t i = 0; i < t->rank; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim)) return entry_fail(f, QE_E_TYPE, name, "a dimension is not an integer", err);
        t->dims[i] = json_integer_value(dim);
        if (t->dims[i] < 0) return entry_fail(f, QE_E_RANGE, name, "a dimension is negative", err);
    }
    return QE_OK;
}

static qe_status read_offsets(const file_info *f, const char *name, const json_t *offsets, qe_store_tensor *t,
                              qe_error *err) {
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return entry_fail(f, QE_E_TYPE, name, "data_offsets is not two integers", err);
    json_int_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin) return entry_fail(f, QE_E_OFFSET, name, "data_offsets are reversed or negative", err);
    if ((uint64_t)begin > f->data_bytes)
        return entry_fail(f, QE_E_OFFSET, name, "data_offsets begin after the end of the file", err);
    if ((uint64_t)end > f->data_bytes)
        return entry_fail(f, QE_E_TRUNCATED, name, "the file ends before data_offsets do", err);
    if ((uint64_t)(end - begin) != t->bytes)
        return entry_fail(f, QE_E_MISMATCH, name, "data_offsets disagree with dtype and shape", err);
    t->offset = f->data_start + (uint64_t)begin;
    return QE_OK;
}

static qe_status read_entry(const file_info *f, const char *name, json_t *entry, qe_store_tensor *t, qe_error *err) {
    const char *field;
    json_t *value, *dtype = NULL, *shape = NULL, *offsets = NULL;
    if (!*name) return entry_fail(f, QE_E_RANGE, name, "empty name", err);
    if (strlen(name) > NAME_LIMIT) return entry_fail(f, QE_E_LIMIT, name, "name of more than 1024 bytes", err);
    if (!json_is_object(entry)) return entry_fail(f, QE_E_TYPE, name, "entry is not an object", err);
    json_object_foreach(entry, field, value) {
        if (!strcmp(field, "dtype"))
            dtype = value;
        else if (!strcmp(field, "shape"))
            shape = value;
        else if (!strcmp(field, "data_offsets"))
            offsets = value;
        else
            return entry_fail(f, QE_E_UNSUPPORTED, name, "a field besides dtype, shape, data_offsets", err);
    }
    if (!dtype || !shape || !offsets)
        return entry_fail(f, QE_E_MISSING, name, "dtype, shape or data_offsets is missing", err);
    if (!json_is_string(dtype)) return entry_fail(f, QE_E_TYPE, name, "dtype is not a string", err);
    t->type = qe_safetensors_type(json_string_value(dtype));
    if (!t->type) return entry_fail(f, QE_E_UNSUPPORTED, name, "unknown dtype", err);
    t->file = f->file;
    QE_TRY(read_shape(f, name, shape, t, err));
    QE_TRY(qe_tensor_measure(t, f->where, PREFIX, err));
    QE_TRY(read_offsets(f, name, offsets, t, err));
    t->name = qe_store_text(f->store, name, strlen(name));
    return t->name ? QE_OK : qe_store_nomem(f->store, err);
}

static qe_status check_metadata(const file_info *f, json_t *map, qe_error *err) {
    const char *key;
    json_t *value;
    bool strings = json_is_object(map);
    json_object_foreach(map, key, value) strings &= json_is_string(value);
    return strings ? QE_OK : entry_fail(f, QE_E_TYPE, "__metadata__", "not a map of strings to strings", err);
}

/* ---- tiling --------------------------------------------------------------------------------------------------- */
static int by_place(const void *a, const void *b) {
    const span *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static qe_status check_tiling(const file_info *f, const qe_store_tensor *tensors, int64_t count, qe_error *err) {
    span *spans = calloc((size_t)count + 1, sizeof *spans);
    if (!spans) return qe_store_nomem(f->store, err);
    for (int64_t i = 0; i < count; i++)
        spans[i] = (span){tensors[i].offset, tensors[i].offset + tensors[i].bytes, tensors[i].name};
    qsort(spans, (size_t)count, sizeof *spans, by_place);
    uint64_t expected = f->data_start;
    qe_status status = QE_OK;
    for (int64_t i = 0; i < count && !status; expected = spans[i].end, i++) {
        if (spans[i].begin < expected) status = entry_fail(f, QE_E_OVERLAP, spans[i].name, "overlaps another", err);
        if (spans[i].begin > expected)
            status = entry_fail(f, QE_E_HOLE, spans[i].name, "bytes before it belong to none", err);
    }
    free(spans);
    QE_TRY(status);
    if (expected < f->data_start + f->data_bytes)
        return qe_error_at(err, QE_E_HOLE, f->where, (int64_t)expected, "%llu bytes after the last tensor",
                           (unsigned long long)(f->data_start + f->data_bytes - expected));
    return QE_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------ */
/* Integers beyond 64 bits: a dimension overflows, an offset is outside every file. Told apart by the field before. */
static qe_status too_big(const char *text, size_t at) {
    static const char offsets[] = "\"data_offsets\"", shape[] = "\"shape\"";
    for (size_t i = at; i-- > 0;) {
        if (at - i >= sizeof shape && !memcmp(text + i, shape, sizeof shape - 1)) return QE_E_OVERFLOW;
        if (at - i >= sizeof offsets && !memcmp(text + i, offsets, sizeof offsets - 1)) return QE_E_OFFSET;
    }
    return QE_E_RANGE;
}

static qe_status parse_header(const file_info *f, const char *text, size_t bytes, json_t **root, qe_error *err) {
    size_t end = bytes, at = 0;
    if (!bytes || text[0] != '{')
        return qe_error_at(err, QE_E_JSON, f->where, PREFIX, "the header does not start with '{'");
    while (end && text[end - 1] == ' ') end--;
    if (text[end - 1] != '}')
        return qe_error_at(err, QE_E_JSON, f->where, (int64_t)(PREFIX + end),
                           "the header does not end with '}' and spaces");
    if (count_entries(text, end) > f->store->limits.tensors)
        return qe_error_at(err, QE_E_LIMIT, f->where, PREFIX, "more tensors than the limit of %llu",
                           (unsigned long long)f->store->limits.tensors);
    qe_error mine;
    qe_status status = qe_store_json(f->where, text, end, PREFIX, root, &at, &mine);
    if (status == QE_E_OVERFLOW) status = too_big(text, at < end ? at : end);
    return status ? qe_error_at(err, status, f->where, mine.offset, "%s", mine.message) : QE_OK;
}

static qe_status load_entries(const file_info *f, json_t *root, qe_error *err) {
    qe_store *store = f->store;
    int64_t before = store->tensor_count, more = (int64_t)json_object_size(root);
    if (more > 0 && json_object_get(root, "__metadata__")) more--;
    if ((uint64_t)(before + more) > store->limits.tensors)
        return qe_error_at(err, QE_E_LIMIT, f->where, PREFIX, "more tensors than the limit of %llu",
                           (unsigned long long)store->limits.tensors);
    qe_store_tensor *all = qe_store_alloc(store, (uint64_t)(before + more), sizeof *all);
    if (!all) return qe_store_nomem(store, err);
    if (before) memcpy(all, store->tensors, (size_t)before * sizeof *all);
    store->tensors = all;
    const char *name;
    json_t *entry;
    int64_t at = before;
    json_object_foreach(root, name, entry) {
        if (!strcmp(name, "__metadata__")) {
            QE_TRY(check_metadata(f, entry, err));
            if (!store->notes) store->notes = json_incref(entry);
        } else
            QE_TRY(read_entry(f, name, entry, &all[at++], err));
    }
    store->tensor_count = at;
    return check_tiling(f, all + before, at - before, err);
}

qe_status qe_safetensors_load(qe_store *store, int32_t file, qe_error *err) {
    qe_reader *reader = &store->files[file];
    file_info f = {.store = store, .where = reader->name, .file = file};
    uint8_t prefix[PREFIX];
    uint64_t bytes = 0, swapped = 0;
    if (reader->size < PREFIX)
        return qe_error_at(err, QE_E_TRUNCATED, f.where, 0, "%llu bytes, a header length takes 8",
                           (unsigned long long)reader->size);
    QE_TRY(reader->read_at(reader->ctx, 0, prefix, PREFIX, err));
    for (int i = 0; i < PREFIX; i++) {
        bytes |= (uint64_t)prefix[i] << 8 * i;
        swapped |= (uint64_t)prefix[i] << 8 * (7 - i);
    }
    uint64_t limit = store->limits.header_bytes < HEADER_MAX ? store->limits.header_bytes : HEADER_MAX;
    if (bytes > limit)
        return qe_error_at(err, QE_E_LIMIT, f.where, 0, "header of %llu bytes, the limit is %llu%s",
                           (unsigned long long)bytes, (unsigned long long)limit,
                           swapped <= limit ? "; the length seems to be big-endian" : "");
    if (!qe_check_span(PREFIX, bytes, reader->size))
        return qe_error_at(err, QE_E_TRUNCATED, f.where, 0, "header of %llu bytes in a file of %llu",
                           (unsigned long long)bytes, (unsigned long long)reader->size);
    f.data_start = PREFIX + bytes;
    f.data_bytes = reader->size - f.data_start;
    char *text = malloc((size_t)bytes + 1);
    if (!text) return qe_store_nomem(store, err);
    json_t *root = NULL;
    qe_status status = reader->read_at(reader->ctx, PREFIX, text, (size_t)bytes, err);
    if (!status) status = parse_header(&f, text, (size_t)bytes, &root, err);
    free(text);
    if (!status) status = load_entries(&f, root, err);
    json_decref(root);
    return status;
}
