/* The two readers the library brings: a regular file, and memory. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/os.h"

typedef struct file_reader {
    qe_os_file file;
    char       path[];
} file_reader;

typedef struct memory_reader {
    const char *data;
    size_t      bytes;
    char        name[];
} memory_reader;

static qe_status past_end(const char *where, uint64_t offset, size_t bytes, uint64_t size, qe_error *err) {
    return qe_error_at(err, QE_E_TRUNCATED, where, (int64_t)offset, "expected %zu bytes, but the file ends at %llu",
                       bytes, (unsigned long long)size);
}

static qe_status file_read_at(void *ctx, uint64_t offset, void *dst, size_t bytes, qe_error *err) {
    const file_reader *r = ctx;
    if (!qe_check_span(offset, bytes, r->file.size)) return past_end(r->path, offset, bytes, r->file.size, err);
    return qe_os_read(&r->file, r->path, offset, dst, bytes, err);
}

static void file_close(void *ctx) {
    file_reader *r = ctx;
    qe_os_close(&r->file);
    free(r);
}

qe_status qe_reader_open(const char *path, qe_reader *out, qe_error *err) {
    if (!path || !out) return qe_error_set(err, QE_E_ARGUMENT, "path and out must not be NULL");
    size_t length = strlen(path);
    if (!length) return qe_error_set(err, QE_E_PATH, "empty path");
    if (length >= 65536) return qe_error_set(err, QE_E_PATH, "path of %zu bytes, the limit is 65535", length);
    file_reader *r = malloc(sizeof *r + length + 1);
    if (!r) return qe_error_at(err, QE_E_NOMEM, path, -1, "no memory for the reader");
    memcpy(r->path, path, length + 1);
    qe_status status = qe_os_open(path, &r->file, err);
    if (status) {
        free(r);
        return status;
    }
    *out = (qe_reader){r, r->file.size, r->path, file_read_at, file_close};
    return QE_OK;
}

static qe_status memory_read_at(void *ctx, uint64_t offset, void *dst, size_t bytes, qe_error *err) {
    const memory_reader *r = ctx;
    if (!qe_check_span(offset, bytes, r->bytes)) return past_end(r->name, offset, bytes, r->bytes, err);
    if (bytes) memcpy(dst, r->data + offset, bytes);
    return QE_OK;
}

qe_status qe_reader_memory(const void *data, size_t bytes, const char *name, qe_reader *out, qe_error *err) {
    if ((!data && bytes) || !out) return qe_error_set(err, QE_E_ARGUMENT, "data and out must not be NULL");
    if (!name) name = "memory";
    size_t length = strlen(name);
    memory_reader *r = malloc(sizeof *r + length + 1);
    if (!r) return qe_error_at(err, QE_E_NOMEM, name, -1, "no memory for the reader");
    r->data = data;
    r->bytes = bytes;
    memcpy(r->name, name, length + 1);
    *out = (qe_reader){r, bytes, r->name, memory_read_at, free};
    return QE_OK;
}

void qe_reader_close(qe_reader *reader) {
    if (!reader) return;
    if (reader->close) reader->close(reader->ctx);
    memset(reader, 0, sizeof *reader);
}
