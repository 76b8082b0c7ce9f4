/* write_safetensors.c -- headers of safetensors files, and their index. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/os_write.h"
#include "format/write_out.h"

static uint64_t round_up(uint64_t x, uint64_t to) { return (x + to - 1) / to * to; }

/* The tensors of one file as the JSON of its header; offsets relative to `start`. */
static json_t *entries(const qe_out *out, int32_t file, uint64_t start, const json_t *notes) {
    json_t *root = json_object();
    json_t *metadata = notes ? json_deep_copy(notes) : json_object();
    bool ok = root && metadata && !json_object_set_new(metadata, "format", json_string("pt")) &&
              !json_object_set(root, "__metadata__", metadata);
    json_decref(metadata);
    for (int64_t i = 0; i < out->count && ok; i++) {
        const qe_out_tensor *t = &out->tensors[i];
        if (t->file != file) continue;
        json_t *dims = json_array();
        for (int32_t d = 0; d < t->rank; d++) ok &= dims && !json_array_append_new(dims, json_integer(t->dims[d]));
        json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", t->type, "shape", dims, "data_offsets",
                                  (json_int_t)(t->offset - start), (json_int_t)(t->offset - start + t->bytes));
        ok &= entry && !json_object_set_new(root, t->name, entry);
    }
    if (ok) return root;
    json_decref(root);
    return NULL;
}

static char *header_text(const qe_out *out, int32_t file, uint64_t start, const json_t *notes) {
    json_t *root = entries(out, file, start, notes);
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    return text;
}

/* Offsets have their final number of digits only once the header's length is known; they are counted as if they were
 * relative to the data, which they are, so one pass over sizes is enough. */
qe_status qe_out_place_safetensors(qe_out *out, qe_error *err) {
    uint64_t limit = out->options.shard_bytes ? out->options.shard_bytes : 4ull << 30, in_file = 0;
    int32_t file = 0;
    for (int64_t i = 0; i < out->count; i++) {
        qe_out_tensor *t = &out->tensors[i];
        if (in_file && t->bytes > limit - (in_file < limit ? in_file : limit)) {
            file++;
            in_file = 0;
        }
        t->file = file;
        t->offset = in_file;
        in_file += t->bytes;
    }
    QE_TRY(qe_out_files(out, file + 1, err));
    for (int32_t f = 0; f <= file; f++) {
        char *text = header_text(out, f, 0, NULL);
        if (!text) return qe_out_nomem(out, err);
        uint64_t header = round_up(strlen(text) + (f ? 0 : out->options.note_bytes), 64);
        free(text);
        out->files[f].bytes = out->files[f].header_bytes = header + 8;
    }
    for (int64_t i = 0; i < out->count; i++) {
        qe_out_tensor *t = &out->tensors[i];
        t->offset += out->files[t->file].header_bytes;
        out->files[t->file].bytes += t->bytes;
    }
    return QE_OK;
}

static qe_status write_index(qe_out *out, qe_error *err) {
    json_t *root = json_pack("{s:{s:I}, s:{}}", "metadata", "total_size", (json_int_t)qe_out_total(out), "weight_map");
    json_t *map = json_object_get(root, "weight_map");
    bool ok = map != NULL;
    for (int64_t i = 0; i < out->count && ok; i++)
        ok = !json_object_set_new(map, out->tensors[i].name, json_string(out->files[out->tensors[i].file].name));
    char *text = ok ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    json_decref(root);
    if (!text) return qe_out_nomem(out, err);
    qe_status status = qe_out_side(out, "model.safetensors.index.json", text, strlen(text), err);
    free(text);
    return status;
}

qe_status qe_out_header_safetensors(qe_out *out, int32_t file, const json_t *notes, qe_error *err) {
    qe_out_file *f = &out->files[file];
    size_t bytes = (size_t)f->header_bytes - 8;
    char *text = header_text(out, file, f->header_bytes, notes), *padded = malloc(f->header_bytes);
    qe_status status = text && padded ? QE_OK : qe_out_nomem(out, err);
    if (!status && strlen(text) > bytes)
        status = qe_error_at(err, QE_E_CAPACITY, f->path, -1, "notes of %zu bytes, %zu were kept for them",
                             strlen(text) - (bytes - (size_t)out->options.note_bytes), (size_t)out->options.note_bytes);
    if (!status) {
        for (int i = 0; i < 8; i++) padded[i] = (char)(uint8_t)((uint64_t)bytes >> 8 * i);
        memset(padded + 8, ' ', bytes);
        memcpy(padded + 8, text, strlen(text));
        status = qe_os_write(f->fd, f->path, 0, padded, (size_t)f->header_bytes, err);
    }
    free(padded);
    free(text);
    if (!status && file == 0 && out->file_count > 1 && !notes) status = write_index(out, err);
    return status;
}
