/* write_out.c -- the partial folder, its journal, and the rename at the end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/os_write.h"
#include "base/sha256.h"
#include "format/store_internal.h"
#include "format/write_out.h"

enum { PATH_LIMIT = 4000, PIECE = 1 << 20 };
static const char journal_name[] = "journal";

qe_status qe_out_nomem(const qe_out *out, qe_error *err) {
    return qe_error_at(err, QE_E_NOMEM, out->path, -1, "no memory to write a checkpoint");
}

static char *joined(const char *a, const char *b, const char *c) {
    size_t x = strlen(a), y = strlen(b), z = strlen(c);
    char *text = malloc(x + y + z + 1);
    if (!text) return NULL;
    memcpy(text, a, x);
    memcpy(text + x, b, y);
    memcpy(text + x + y, c, z + 1);
    return text;
}

/* ---- before anything is on disk ------------------------------------------------------------------------------------ */
qe_status qe_out_create(const qe_out_options *options, qe_out **out, qe_error *err) {
    *out = NULL;
    size_t bytes = options->path ? strlen(options->path) : 0;
    if (!bytes || bytes > PATH_LIMIT)
        return qe_error_set(err, QE_E_PATH, "the output's path is %s", bytes ? "too long" : "empty");
    qe_out *o = calloc(1, sizeof *o);
    if (!o) return qe_error_set(err, QE_E_NOMEM, "no memory to write a checkpoint");
    o->options = *options;
    o->journal = -1;
    o->path = joined(options->path, "", "");
    o->identity = joined(options->identity ? options->identity : "", "", "");
    while (o->path && bytes > 1 && o->path[bytes - 1] == '/') o->path[--bytes] = 0;
    o->partial = o->path ? joined(o->path, ".partial", "") : NULL;
    qe_status status = o->path && o->identity && o->partial ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for paths");
    if (!status && qe_os_exists(o->path)) status = qe_error_at(err, QE_E_STATE, o->path, -1, "is there already");
    if (!status && !options->resume && qe_os_exists(o->partial))
        status = qe_error_at(err, QE_E_STATE, o->partial, -1, "holds an unfinished run: resume it, or remove it");
    if (status) qe_out_destroy(o);
    else *out = o;
    return status;
}

qe_status qe_out_declare(qe_out *out, const char *name, const char *type, int32_t rank, const int64_t *dims,
                         uint64_t bytes, int64_t *index, qe_error *err) {
    if (out->count == out->room) {
        int64_t room = out->room ? 2 * out->room : 256;
        qe_out_tensor *more = realloc(out->tensors, (size_t)room * sizeof *more);
        if (!more) return qe_out_nomem(out, err);
        out->tensors = more;
        out->room = room;
    }
    qe_out_tensor *t = &out->tensors[out->count];
    *t = (qe_out_tensor){.name = joined(name, "", ""), .type = type, .rank = rank, .bytes = bytes};
    if (!t->name) return qe_out_nomem(out, err);
    memcpy(t->dims, dims, (size_t)rank * sizeof *dims);
    *index = out->count++;
    return QE_OK;
}

qe_status qe_out_keys(qe_out *out, const void *bytes, size_t n_bytes, uint64_t count, qe_error *err) {
    out->keys = malloc(n_bytes + 1);
    if (!out->keys) return qe_out_nomem(out, err);
    memcpy(out->keys, bytes, n_bytes);
    out->key_bytes = n_bytes;
    out->key_count = count;
    return QE_OK;
}

qe_status qe_out_files(qe_out *out, int32_t count, qe_error *err) {
    out->files = calloc((size_t)count, sizeof *out->files);
    if (!out->files) return qe_out_nomem(out, err);
    out->file_count = count;
    for (int32_t i = 0; i < count; i++) out->files[i].fd = -1;
    for (int32_t i = 0; i < count; i++) {
        char name[64];
        if (out->options.kind == QE_OUT_GGUF) snprintf(name, sizeof name, "model.gguf");
        else if (count == 1) snprintf(name, sizeof name, "model.safetensors");
        else snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, count);
        out->files[i].name = joined(name, "", "");
        out->files[i].path = joined(out->partial, "/", name);
        if (!out->files[i].name || !out->files[i].path) return qe_out_nomem(out, err);
    }
    return QE_OK;
}

/* ---- the journal --------------------------------------------------------------------------------------------------- */
static qe_status append_journal(qe_out *out, const char *line, qe_error *err) {
    QE_TRY(qe_os_write(out->journal, out->partial, out->journal_bytes, line, strlen(line), err));
    out->journal_bytes += strlen(line);
    return QE_OK;
}

static qe_status hash_of(qe_out *out, int64_t index, char text[65], qe_error *err) {
    qe_sha256 h;
    const qe_out_tensor *t = &out->tensors[index];
    char *piece = malloc(PIECE);
    if (!piece) return qe_out_nomem(out, err);
    qe_status status = QE_OK;
    qe_sha256_start(&h);
    for (uint64_t at = 0; at < t->bytes && !status;) {
        size_t bytes = t->bytes - at < PIECE ? (size_t)(t->bytes - at) : PIECE;
        status = qe_out_get(out, index, at, piece, bytes, err);
        qe_sha256_add(&h, piece, bytes);
        at += bytes;
    }
    free(piece);
    qe_sha256_end(&h, text);
    return status;
}

/* The run's identity, and all that fixes the bytes of the files: names, types, shapes, places. */
static void plan_hash(const qe_out *out, char text[65]) {
    qe_sha256 h;
    qe_sha256_start(&h);
    qe_sha256_add(&h, out->identity, strlen(out->identity) + 1);
    qe_sha256_add(&h, out->keys, out->key_bytes);
    for (int64_t i = 0; i < out->count; i++) {
        const qe_out_tensor *t = &out->tensors[i];
        qe_sha256_add(&h, t->name, strlen(t->name) + 1);
        qe_sha256_add(&h, t->type, strlen(t->type) + 1);
        qe_sha256_add(&h, t->dims, sizeof t->dims);
        qe_sha256_add(&h, &t->offset, sizeof t->offset);
    }
    qe_sha256_end(&h, text);
}

/* Lines "index hash"; one that is cut or wrong ends what is believed. */
static qe_status read_journal(qe_out *out, const char *plan, qe_error *err) {
    uint64_t bytes = qe_os_file_bytes(out->journal);
    char *text = malloc((size_t)bytes + 1), *at = text, hash[65];
    if (!text) return qe_out_nomem(out, err);
    qe_status status = qe_os_read_back(out->journal, out->partial, 0, text, (size_t)bytes, err);
    text[bytes] = 0;
    if (!status && (strncmp(text, plan, 64) || text[64] != '\n'))
        status = qe_error_at(err, QE_E_MISMATCH, out->partial, -1,
                             "holds another run (model, recipe, calibration or program differ): it cannot be resumed");
    at = bytes > 64 ? text + 65 : text + bytes;
    while (!status) {
        char *end;
        long long index = strtoll(at, &end, 10);
        if (end == at || *end != ' ' || strlen(end) < 66 || end[65] != '\n' || index < 0 || index >= out->count) break;
        status = hash_of(out, index, hash, err);
        if (!status && strncmp(hash, end + 1, 64)) break;
        out->tensors[index].done = true;
        out->marked = true;
        at = end + 66;
    }
    out->journal_bytes = (uint64_t)(at - text);
    free(text);
    return status;
}

/* ---- begin --------------------------------------------------------------------------------------------------------- */
static qe_status write_headers(qe_out *out, qe_error *err) {
    if (out->options.kind == QE_OUT_GGUF) return qe_out_header_gguf(out, err);
    for (int32_t i = 0; i < out->file_count; i++) QE_TRY(qe_out_header_safetensors(out, i, NULL, err));
    return QE_OK;
}

static qe_status begin_new(qe_out *out, const char *journal, const char *plan, qe_error *err) {
    char line[80];
    QE_TRY(qe_os_make_folder(out->partial, err));
    out->begun = true;
    for (int32_t i = 0; i < out->file_count; i++) {
        qe_out_file *f = &out->files[i];
        QE_TRY(qe_os_create(f->path, false, &f->fd, err));
        QE_TRY(qe_os_reserve(f->fd, f->path, f->bytes, err));
    }
    QE_TRY(write_headers(out, err));
    for (int32_t i = 0; i < out->file_count; i++) QE_TRY(qe_os_sync(out->files[i].fd, out->files[i].path, err));
    QE_TRY(qe_os_create(journal, false, &out->journal, err));
    snprintf(line, sizeof line, "%s\n", plan);
    QE_TRY(append_journal(out, line, err));
    QE_TRY(qe_os_sync(out->journal, journal, err));
    return qe_os_sync_folder(out->partial, err);
}

static qe_status begin_again(qe_out *out, const char *journal, const char *plan, qe_error *err) {
    out->begun = out->marked = true;        /* whatever is wrong with it, it is not ours to remove */
    QE_TRY(qe_os_create(journal, true, &out->journal, err));
    for (int32_t i = 0; i < out->file_count; i++) {
        qe_out_file *f = &out->files[i];
        QE_TRY(qe_os_create(f->path, true, &f->fd, err));
        if (qe_os_file_bytes(f->fd) != f->bytes)
            return qe_error_at(err, QE_E_MISMATCH, f->path, -1, "has another size than this run makes");
    }
    return read_journal(out, plan, err);
}

qe_status qe_out_begin(qe_out *out, qe_error *err) {
    char plan[65];
    QE_TRY(out->options.kind == QE_OUT_GGUF ? qe_out_place_gguf(out, err) : qe_out_place_safetensors(out, err));
    plan_hash(out, plan);
    char *journal = joined(out->partial, "/", journal_name);
    if (!journal) return qe_out_nomem(out, err);
    /* A folder without a journal was stopped before there was anything to resume. */
    bool again = out->options.resume && qe_os_exists(journal);
    if (!again && out->options.resume) qe_os_remove(out->partial);
    qe_status status = again ? begin_again(out, journal, plan, err) : begin_new(out, journal, plan, err);
    free(journal);
    return status;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------- */
bool qe_out_done(const qe_out *out, int64_t index) { return out->tensors[index].done; }
uint64_t qe_out_bytes(const qe_out *out, int64_t index) { return out->tensors[index].bytes; }

uint64_t qe_out_total(const qe_out *out) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < out->count; i++) sum += out->tensors[i].bytes;
    return sum;
}

qe_status qe_out_put(qe_out *out, int64_t index, uint64_t offset, const void *data, size_t bytes, qe_error *err) {
    qe_out_tensor *t = &out->tensors[index];
    if (offset > t->bytes || bytes > t->bytes - offset)
        return qe_error_set(err, QE_E_ARGUMENT, "bytes %llu + %zu of \"%s\", which has %llu", (unsigned long long)offset,
                            bytes, t->name, (unsigned long long)t->bytes);
    t->put = true;
    return qe_os_write(out->files[t->file].fd, out->files[t->file].path, t->offset + offset, data, bytes, err);
}

qe_status qe_out_get(qe_out *out, int64_t index, uint64_t offset, void *data, size_t bytes, qe_error *err) {
    const qe_out_tensor *t = &out->tensors[index];
    return qe_os_read_back(out->files[t->file].fd, out->files[t->file].path, t->offset + offset, data, bytes, err);
}

qe_status qe_out_mark(qe_out *out, qe_error *err) {
    char line[128], hash[65];
    for (int32_t i = 0; i < out->file_count; i++) QE_TRY(qe_os_sync(out->files[i].fd, out->files[i].path, err));
    for (int64_t i = 0; i < out->count; i++) {
        qe_out_tensor *t = &out->tensors[i];
        if (t->done || (!t->put && t->bytes)) continue;
        QE_TRY(hash_of(out, i, hash, err));
        snprintf(line, sizeof line, "%lld %s\n", (long long)i, hash);
        QE_TRY(append_journal(out, line, err));
        t->done = out->marked = true;
    }
    return qe_os_sync(out->journal, out->partial, err);
}

static qe_status write_whole(const char *path, const void *data, size_t bytes, qe_error *err) {
    char *fresh = joined(path, ".new", "");
    if (!fresh) return qe_error_set(err, QE_E_NOMEM, "no memory for a name");
    qe_status status = qe_os_replace(path, fresh, data, bytes, err);
    free(fresh);
    return status;
}

qe_status qe_out_side(qe_out *out, const char *name, const void *data, size_t bytes, qe_error *err) {
    char *path = joined(out->partial, "/", name);
    qe_status status = path ? write_whole(path, data, bytes, err) : qe_out_nomem(out, err);
    free(path);
    return status;
}

qe_status qe_out_side_read(qe_out *out, const char *name, char **data, size_t *bytes, qe_error *err) {
    char *path = joined(out->partial, "/", name);
    *data = NULL;
    if (!path) return qe_out_nomem(out, err);
    qe_status status = qe_os_exists(path) ? qe_store_slurp(path, 1u << 30, data, bytes, err) : QE_OK;
    free(path);
    return status;
}

qe_status qe_out_beside(qe_out *out, const char *suffix, const void *data, size_t bytes, qe_error *err) {
    char *path = joined(out->path, suffix, "");
    qe_status status = path ? write_whole(path, data, bytes, err) : qe_out_nomem(out, err);
    free(path);
    return status;
}

qe_status qe_out_open(qe_out *out, const char *config_json, bool (*only)(void *ctx, const char *module), void *ctx,
                      qe_store **store, qe_error *err) {
    bool gguf = out->options.kind == QE_OUT_GGUF;
    return qe_store_open_partial(gguf ? out->files[0].path : out->partial, gguf ? NULL : config_json, only, ctx, store, err);
}

/* ---- commit -------------------------------------------------------------------------------------------------------- */
static qe_status move_into_place(qe_out *out, qe_error *err) {
    char *journal = NULL;
    bool gguf = out->options.kind == QE_OUT_GGUF;
    qe_status status = qe_os_rename(gguf ? out->files[0].path : out->partial, out->path, err);
    QE_TRY(status);
    out->committed = true;
    if (gguf) {
        qe_os_remove(out->partial);
        return QE_OK;
    }
    journal = joined(out->path, "/", journal_name);
    if (!journal) return qe_out_nomem(out, err);
    qe_os_remove(journal);
    free(journal);
    return qe_os_sync_folder(out->path, err);
}

qe_status qe_out_commit(qe_out *out, const json_t *notes, qe_error *err) {
    QE_TRY(qe_out_mark(out, err));
    for (int64_t i = 0; i < out->count; i++)
        if (!out->tensors[i].done)
            return qe_error_set(err, QE_E_STATE, "tensor \"%s\" was not written", out->tensors[i].name);
    if (notes && out->options.kind == QE_OUT_SAFETENSORS) QE_TRY(qe_out_header_safetensors(out, 0, notes, err));
    for (int32_t i = 0; i < out->file_count; i++) QE_TRY(qe_os_sync(out->files[i].fd, out->files[i].path, err));
    return move_into_place(out, err);
}

void qe_out_destroy(qe_out *out) {
    if (!out) return;
    for (int32_t i = 0; i < out->file_count; i++) {
        qe_os_write_close(out->files[i].fd);
        free(out->files[i].path);
        free(out->files[i].name);
    }
    qe_os_write_close(out->journal);
    if (out->begun && !out->committed && !out->marked) qe_os_remove(out->partial);
    for (int64_t i = 0; i < out->count; i++) free(out->tensors[i].name);
    free(out->tensors);
    free(out->files);
    free(out->keys);
    free(out->path);
    free(out->partial);
    free(out->identity);
    free(out);
}
