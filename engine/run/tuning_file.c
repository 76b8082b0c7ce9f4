/* tuning_file.c -- reads and writes the file of a tuning cache. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/os.h"
#include "base/os_write.h"
#include "base/sha256.h"
#include "run/tuning.h"

enum { FORMAT_VERSION = 1, ENTRIES_MAX = 100000 };
static const char format_name[] = "qengine-tuning";

/* Changes with the library's version, any layout's version, and the rows there are. */
static void kernels_hash(char text[65]) {
    char line[192];
    qe_sha256 h;
    qe_sha256_start(&h);
    qe_sha256_add(&h, qe_version(), strlen(qe_version()));
    for (int32_t id = QK_REF; id <= QK_CUDA; id++) {
        const qk_backend *b = qk_backend_of(id);
        for (const qk_layout *const *l = b ? b->layouts : NULL; l && *l; l++) {
            snprintf(line, sizeof line, "\nlayout %s %u", (*l)->name, (*l)->version);
            qe_sha256_add(&h, line, strlen(line));
        }
        for (const qk_row *const *r = b ? b->rows : NULL; r && *r; r++) {
            snprintf(line, sizeof line, "\nrow %s of %s", (*r)->name, (*r)->layout->name);
            qe_sha256_add(&h, line, strlen(line));
        }
    }
    qe_sha256_end(&h, text);
    text[16] = 0;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */
static qe_status text_of(const json_t *object, const char *key, char *out, size_t bytes, qe_error *err) {
    const char *text;
    QE_TRY(qe_json_string(object, key, &text, err));
    if (strlen(text) >= bytes) return qe_error_set(err, QE_E_RANGE, "\"%s\" has %zu bytes, at most %zu", key, strlen(text), bytes - 1);
    memcpy(out, text, strlen(text) + 1);
    return QE_OK;
}

static qe_status time_of(const json_t *object, const char *key, double *out, qe_error *err) {
    QE_TRY(qe_json_real(object, key, out, err));
    return *out > 0 ? QE_OK : qe_error_set(err, QE_E_RANGE, "\"%s\" is %g, no time", key, *out);
}

static qe_status read_entry(const json_t *object, qe_tuning_entry *e, qe_error *err) {
    int64_t tile_m, units;
    if (!json_is_object(object)) return qe_error_set(err, QE_E_TYPE, "is no object");
    QE_TRY(text_of(object, "device", e->device, sizeof e->device, err));
    QE_TRY(text_of(object, "scheme", e->scheme, sizeof e->scheme, err));
    QE_TRY(text_of(object, "x", e->x, sizeof e->x, err));
    QE_TRY(text_of(object, "row", e->row, sizeof e->row, err));
    QE_TRY(qe_json_int(object, "n", 1, INT64_MAX, &e->n, err));
    QE_TRY(qe_json_int(object, "k", 1, INT64_MAX, &e->k, err));
    QE_TRY(qe_json_int(object, "m", 1, (int64_t)1 << 31, &e->m, err));
    QE_TRY(qe_json_int(object, "tile_m", 0, 65536, &tile_m, err));
    QE_TRY(qe_json_int(object, "units", 0, 65536, &units, err));
    QE_TRY(time_of(object, "us", &e->us, err));
    QE_TRY(time_of(object, "untuned_us", &e->untuned_us, err));
    e->tile_m = (int32_t)tile_m;
    e->units = (int32_t)units;
    return QE_OK;
}

static qe_status read_entries(const json_t *list, const char *path, qe_tuning *t, qe_error *err) {
    qe_error inner;
    size_t count = json_array_size(list);
    if (count > ENTRIES_MAX) return qe_error_at(err, QE_E_LIMIT, path, -1, "%zu entries, at most %d", count, ENTRIES_MAX);
    t->entries = calloc(count + 1, sizeof *t->entries);
    if (!t->entries) return qe_error_set(err, QE_E_NOMEM, "no memory for %zu tuning entries", count);
    for (size_t i = 0; i < count; i++) {
        qe_status status = read_entry(json_array_get(list, i), &t->entries[i], &inner);
        if (status) return qe_error_at(err, status, path, -1, "entry %zu: %s", i, inner.message);
    }
    t->count = (int64_t)count;
    return QE_OK;
}

static qe_status read_document(const json_t *doc, const char *path, qe_tuning *t, qe_error *err) {
    const char *format = json_string_value(json_object_get(doc, "format")), *kernels;
    char hash[65];
    int64_t version;
    json_t *list;
    if (!format || strcmp(format, format_name) != 0)
        return qe_error_at(err, QE_E_MAGIC, path, -1, "is no tuning cache: \"format\" is not \"%s\"", format_name);
    QE_TRY(qe_json_int(doc, "version", 1, INT32_MAX, &version, err));
    if (version != FORMAT_VERSION)
        return qe_error_at(err, QE_E_VERSION, path, -1, "version %lld of the tuning cache, this library reads %d",
                           (long long)version, FORMAT_VERSION);
    QE_TRY(qe_json_string(doc, "kernels", &kernels, err));
    kernels_hash(hash);
    if (strcmp(kernels, hash) != 0)
        return qe_error_at(err, QE_E_MISMATCH, path, -1, "was measured with other kernels; tune again");
    QE_TRY(qe_json_array(doc, "entries", &list, err));
    return read_entries(list, path, t, err);
}

qe_status qe_tuning_read(const char *path, qe_tuning **out, qe_error *err) {
    qe_reader reader;
    json_t *doc = NULL;
    *out = NULL;
    qe_tuning *t = calloc(1, sizeof *t);
    if (!t) return qe_error_set(err, QE_E_NOMEM, "no memory for a tuning cache");
    qe_status status = QE_OK;
    if (qe_os_look(path) != QE_OS_NOTHING) {
        status = qe_reader_open(path, &reader, err);
        if (!status) {
            status = qe_json_read(&reader, NULL, &doc, err);
            qe_reader_close(&reader);
        }
        if (!status) status = read_document(doc, path, t, err);
        json_decref(doc);
    }
    if (status) qe_tuning_free(t);
    else *out = t;
    return status;
}

void qe_tuning_free(qe_tuning *t) {
    if (!t) return;
    free(t->entries);
    free(t);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */
static json_t *object_of(const qe_tuning_entry *e) {
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:i, s:i, s:f, s:f}", "device", e->device, "scheme", e->scheme, "n",
                     (json_int_t)e->n, "k", (json_int_t)e->k, "m", (json_int_t)e->m, "x", e->x, "row", e->row, "tile_m",
                     e->tile_m, "units", e->units, "us", e->us, "untuned_us", e->untuned_us);
}

static bool replaced(const qe_tuning_entry *old, const qe_tuning_entry *entries, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (old->n == entries[i].n && old->k == entries[i].k && old->m == entries[i].m && !strcmp(old->x, entries[i].x) &&
            !strcmp(old->scheme, entries[i].scheme) && !strcmp(old->device, entries[i].device))
            return true;
    return false;
}

/* Text of the old entries that stay and the new ones; NULL: out of memory. */
static char *text_with(const qe_tuning *old, const qe_tuning_entry *entries, int64_t count) {
    char hash[65];
    kernels_hash(hash);
    json_t *list = json_array(), *doc = NULL;
    int failed = !list;
    for (int64_t i = 0; old && i < old->count && !failed; i++)
        if (!replaced(&old->entries[i], entries, count)) failed = json_array_append_new(list, object_of(&old->entries[i]));
    for (int64_t i = 0; i < count && !failed; i++)
        failed = replaced(&entries[i], entries + i + 1, count - i - 1) ? 0 : json_array_append_new(list, object_of(&entries[i]));
    if (!failed)
        doc = json_pack("{s:s, s:i, s:s, s:O}", "format", format_name, "version", FORMAT_VERSION, "kernels", hash,
                                    "entries", list);
    char *text = doc ? json_dumps(doc, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(doc);
    json_decref(list);
    return text;
}

/* Under a name of this writer's alone. */
static qe_status replace(const char *path, const char *text, qe_error *err) {
    size_t bytes = strlen(path) + 64;
    char *fresh = malloc(bytes);
    if (!fresh) return qe_error_set(err, QE_E_NOMEM, "no memory for a name");
    snprintf(fresh, bytes, "%s.%llx.new", path, (unsigned long long)qe_os_unique());
    qe_status status = qe_os_replace(path, fresh, text, strlen(text), err);
    free(fresh);
    return status;
}

qe_status qe_tuning_write(const char *path, const qe_tuning_entry *entries, int64_t count, qe_error *err) {
    int lock;
    qe_tuning *old = NULL;
    QE_TRY(qe_os_lock_folder(path, &lock, err));
    qe_status status = qe_tuning_read(path, &old, err);
    if (status == QE_E_MISMATCH) status = QE_OK;
    if (!status) {
        char *text = text_with(old, entries, count);
        status = text ? replace(path, text, err) : qe_error_set(err, QE_E_NOMEM, "no memory for a tuning cache");
        free(text);
    }
    qe_tuning_free(old);
    qe_os_write_close(lock);
    return status;
}
