/* write_gguf.c -- the header of a GGUF file, version 3: counts, key-values, tensor list; tensors back to back, each start
 * aligned to 32 bytes. */
#include <stdlib.h>
#include <string.h>

#include "base/os_write.h"
#include "format/gguf_text.h"
#include "format/store_internal.h"
#include "format/write_out.h"

enum { ALIGN = 32 };
static uint64_t round_up(uint64_t x) { return (x + ALIGN - 1) / ALIGN * ALIGN; }

/* ---- bytes that grow ----------------------------------------------------------------------------------------------- */
void qe_gguf_put(qe_gguf_text *text, const void *data, size_t bytes) {
    if (text->failed) return;
    if (bytes > text->room - text->bytes) {
        size_t room = 2 * (text->room + bytes) + 256;
        char *more = realloc(text->data, room);
        if (!more) {
            text->failed = true;
            return;
        }
        text->data = more;
        text->room = room;
    }
    if (bytes) memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
}

void qe_gguf_put_number(qe_gguf_text *text, uint64_t value, int bytes) {
    uint8_t raw[8];
    for (int i = 0; i < 8; i++) raw[i] = (uint8_t)(value >> 8 * i);
    qe_gguf_put(text, raw, (size_t)bytes);
}

void qe_gguf_put_text(qe_gguf_text *text, const char *value, size_t bytes) {
    qe_gguf_put_number(text, bytes, 8);
    qe_gguf_put(text, value, bytes);
}

static void key(qe_gguf_text *text, const char *name, uint32_t type) {
    qe_gguf_put_text(text, name, strlen(name));
    qe_gguf_put_number(text, type, 4);
    text->count++;
}

void qe_gguf_key_u32(qe_gguf_text *text, const char *name, uint64_t value) {
    key(text, name, 4);
    qe_gguf_put_number(text, value, 4);
}

void qe_gguf_key_f32(qe_gguf_text *text, const char *name, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    key(text, name, 6);
    qe_gguf_put_number(text, bits, 4);
}

void qe_gguf_key_bool(qe_gguf_text *text, const char *name, bool value) {
    key(text, name, 7);
    qe_gguf_put_number(text, value, 1);
}

void qe_gguf_key_string(qe_gguf_text *text, const char *name, const char *value, size_t bytes) {
    key(text, name, 8);
    qe_gguf_put_text(text, value, bytes);
}

void qe_gguf_key_array(qe_gguf_text *text, const char *name, uint32_t item_type, uint64_t count) {
    key(text, name, 9);
    qe_gguf_put_number(text, item_type, 4);
    qe_gguf_put_number(text, count, 8);
}

/* ---- the file ------------------------------------------------------------------------------------------------------ */
static void header(const qe_out *out, uint64_t start, qe_gguf_text *text) {
    qe_gguf_put(text, "GGUF", 4);
    qe_gguf_put_number(text, 3, 4);
    qe_gguf_put_number(text, (uint64_t)out->count, 8);
    qe_gguf_put_number(text, out->key_count, 8);
    qe_gguf_put(text, out->keys, out->key_bytes);
    for (int64_t i = 0; i < out->count; i++) {
        const qe_out_tensor *t = &out->tensors[i];
        qe_gguf_put_text(text, t->name, strlen(t->name));
        qe_gguf_put_number(text, (uint64_t)t->rank, 4);
        for (int32_t d = t->rank - 1; d >= 0; d--) qe_gguf_put_number(text, (uint64_t)t->dims[d], 8);
        qe_gguf_put_number(text, qe_gguf_type_id(t->type), 4);
        qe_gguf_put_number(text, t->offset - start, 8);
    }
}

qe_status qe_out_place_gguf(qe_out *out, qe_error *err) {
    uint64_t at = 0;
    for (int64_t i = 0; i < out->count; i++) {
        out->tensors[i].offset = at;
        at = round_up(at + out->tensors[i].bytes);
    }
    QE_TRY(qe_out_files(out, 1, err));
    qe_gguf_text text = {0};
    header(out, 0, &text);
    uint64_t start = round_up(text.bytes);
    bool failed = text.failed;
    free(text.data);
    if (failed) return qe_out_nomem(out, err);
    for (int64_t i = 0; i < out->count; i++) out->tensors[i].offset += start;
    out->files[0].header_bytes = start;
    out->files[0].bytes = start + at;
    return QE_OK;
}

qe_status qe_out_header_gguf(qe_out *out, qe_error *err) {
    qe_gguf_text text = {0};
    header(out, out->files[0].header_bytes, &text);
    qe_status status = text.failed ? qe_out_nomem(out, err)
                                   : qe_os_write(out->files[0].fd, out->files[0].path, 0, text.data, text.bytes, err);
    free(text.data);
    return status;
}
