/* engine/model/tokenizer_decode.c -- ids to text: pieces, whole sequences, and the streaming decoder. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_parts.h"

static qe_status check_id(const qe_tokenizer *tokenizer, int32_t id, qe_error *err) {
    if (id >= 0 && id < tokenizer->vocab.count && tokenizer->vocab.types[id] != QE_TOKEN_HOLE) return QE_OK;
    return qe_error_at(err, QE_E_RANGE, tokenizer->where, -1, "%d is not a token id; the vocabulary has %d", id,
                       tokenizer->vocab.count);
}

static int byte_of(const qe_tokenizer *tokenizer, int32_t id) {
    for (int byte = 0; byte < 256; byte++)
        if (tokenizer->byte_ids[byte] == id) return byte;
    return -1;
}

/* Bytes of a checked id, written to out when it is not NULL. */
static size_t piece(const qe_tokenizer *tokenizer, int32_t id, int show_special, char *out) {
    uint8_t type = tokenizer->vocab.types[id];
    qe_text text = qe_vocab_text(&tokenizer->vocab, id);
    bool    scored = tokenizer->kind == QE_TOKENIZER_SCORE;
    if ((type == QE_TOKEN_CONTROL || type == QE_TOKEN_UNKNOWN) && !show_special) return 0;
    if (scored && type == QE_TOKEN_BYTE) {
        if (out) *out = (char)byte_of(tokenizer, id);
        return 1;
    }
    if (!scored || type == QE_TOKEN_CONTROL) {
        if (out) memcpy(out, text.data, text.bytes);
        return text.bytes;
    }
    size_t count = 0;
    for (size_t i = 0; i < text.bytes; count++) {
        bool mark = i + 3 <= text.bytes && memcmp(text.data + i, "\xe2\x96\x81", 3) == 0;
        if (out) out[count] = mark ? ' ' : text.data[i];
        i += mark ? 3 : 1;
    }
    return count;
}

static qe_status too_small(const qe_tokenizer *tokenizer, size_t need, const void *out, size_t capacity, qe_error *err) {
    if (!out && !capacity) return QE_OK;
    return qe_error_at(err, QE_E_CAPACITY, tokenizer->where, -1, "%zu bytes of text, room for %zu", need, capacity);
}

qe_status qe_tokenizer_piece(const qe_tokenizer *tokenizer, int32_t id, int show_special, char *out,
                             size_t out_capacity, size_t *out_bytes, qe_error *err) {
    if (!tokenizer || !out_bytes || (!out && out_capacity))
        return qe_error_set(err, QE_E_ARGUMENT, "qe_tokenizer_piece: NULL argument");
    QE_TRY(check_id(tokenizer, id, err));
    *out_bytes = piece(tokenizer, id, show_special, NULL);
    if (*out_bytes > out_capacity) return too_small(tokenizer, *out_bytes, out, out_capacity, err);
    if (out) piece(tokenizer, id, show_special, out);
    return QE_OK;
}

qe_status qe_tokenizer_decode(const qe_tokenizer *tokenizer, const int32_t *ids, size_t ids_count, int show_special,
                              char *out, size_t out_capacity, size_t *out_bytes, qe_error *err) {
    if (!tokenizer || !out_bytes || (!ids && ids_count) || (!out && out_capacity))
        return qe_error_set(err, QE_E_ARGUMENT, "qe_tokenizer_decode: NULL argument");
    size_t total = 0, skip_at = SIZE_MAX;
    for (size_t i = 0; i < ids_count; i++) {
        QE_TRY(check_id(tokenizer, ids[i], err));
        size_t bytes = piece(tokenizer, ids[i], show_special, NULL);
        /* encode put a space before the first text; it is not the caller's */
        if (tokenizer->kind == QE_TOKENIZER_SCORE && tokenizer->add_space_prefix && total == 0 && bytes) {
            qe_text text = qe_vocab_text(&tokenizer->vocab, ids[i]);
            if (text.bytes >= 3 && memcmp(text.data, "\xe2\x96\x81", 3) == 0 && skip_at == SIZE_MAX) skip_at = i;
        }
        total += bytes;
    }
    size_t skipped = skip_at != SIZE_MAX;
    *out_bytes = total - skipped;
    if (*out_bytes > out_capacity) return too_small(tokenizer, *out_bytes, out, out_capacity, err);
    for (size_t i = 0; out && i < ids_count; i++) {
        size_t bytes = piece(tokenizer, ids[i], show_special, NULL);
        if (i == skip_at) {      /* one byte shorter than the piece: written whole it may pass the end */
            char *whole = malloc(bytes);
            if (!whole) return qe_error_set(err, QE_E_NOMEM, "no memory for a piece of %zu bytes", bytes);
            piece(tokenizer, ids[i], show_special, whole);
            memcpy(out, whole + 1, bytes - 1);
            free(whole);
            out += bytes - 1;
        } else {
            out += piece(tokenizer, ids[i], show_special, out);
        }
    }
    return QE_OK;
}

struct qe_detokenizer {
    const qe_tokenizer *tokenizer;
    int                 show_special;
    uint8_t             held_bytes;
    char                held[4];
    char               *work;            /* held bytes and the piece */
    size_t              work_capacity;
};

qe_status qe_detokenizer_create(const qe_tokenizer *tokenizer, int show_special, qe_detokenizer **out, qe_error *err) {
    if (!tokenizer || !out) return qe_error_set(err, QE_E_ARGUMENT, "qe_detokenizer_create: NULL argument");
    *out = calloc(1, sizeof **out);
    if (!*out) return qe_error_set(err, QE_E_NOMEM, "no memory for a streaming decoder");
    (*out)->tokenizer = tokenizer;
    (*out)->show_special = show_special;
    return QE_OK;
}

void qe_detokenizer_destroy(qe_detokenizer *stream) {
    if (!stream) return;
    free(stream->work);
    free(stream);
}

/* Could these bytes be the start of one character whose rest is still to come? */
static bool unfinished(const char *text, size_t bytes) {
    uint8_t first = (uint8_t)text[0];
    size_t  length = first >= 0xf0 && first <= 0xf4 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
    if (first > 0xf4 || bytes >= length) return false;
    /* Fill up with the continuation bytes most likely to be legal: the check then only fails for what is wrong. */
    char filled[4] = {text[0], first == 0xe0 ? (char)0xa0 : first == 0xf0 ? (char)0x90 : (char)0x80, (char)0x80, (char)0x80};
    memcpy(filled, text, bytes);
    return qe_utf8_length(filled, length) == length;
}

/* Whole characters of text to out (NULL: count only); *rest: bytes held back at the end unless `last`. */
static size_t emit(const char *text, size_t bytes, bool last, char *out, size_t *rest) {
    size_t count = 0;
    *rest = 0;
    for (size_t at = 0; at < bytes;) {
        size_t length = qe_utf8_length(text + at, bytes - at);
        if (!length && !last && unfinished(text + at, bytes - at)) {
            *rest = bytes - at;
            break;
        }
        if (out) memcpy(out + count, length ? text + at : "\xef\xbf\xbd", length ? length : 3);
        count += length ? length : 3;
        at += length ? length : 1;
    }
    return count;
}

static qe_status stream_out(qe_detokenizer *stream, const char *text, size_t bytes, bool last, char *out,
                            size_t out_capacity, size_t *out_bytes, qe_error *err) {
    size_t rest;
    *out_bytes = emit(text, bytes, last, NULL, &rest);
    if (*out_bytes > out_capacity) {
        return qe_error_at(err, QE_E_CAPACITY, stream->tokenizer->where, -1, "%zu bytes of text, room for %zu",
                           *out_bytes, out_capacity);
    }
    if (*out_bytes) emit(text, bytes, last, out, &rest);
    memmove(stream->held, text + bytes - rest, rest);
    stream->held_bytes = (uint8_t)rest;
    return QE_OK;
}

qe_status qe_detokenizer_push(qe_detokenizer *stream, int32_t id, char *out, size_t out_capacity, size_t *out_bytes,
                              qe_error *err) {
    if (!stream || !out_bytes || (!out && out_capacity))
        return qe_error_set(err, QE_E_ARGUMENT, "qe_detokenizer_push: NULL argument");
    QE_TRY(check_id(stream->tokenizer, id, err));
    size_t bytes = stream->held_bytes + piece(stream->tokenizer, id, stream->show_special, NULL);
    if (bytes > stream->work_capacity) {
        char *moved = realloc(stream->work, bytes + 64);
        if (!moved) return qe_error_set(err, QE_E_NOMEM, "no memory for a piece of %zu bytes", bytes);
        stream->work = moved;
        stream->work_capacity = bytes + 64;
    }
    *out_bytes = 0;
    if (bytes == 0) return QE_OK;
    memcpy(stream->work, stream->held, stream->held_bytes);
    piece(stream->tokenizer, id, stream->show_special, stream->work + stream->held_bytes);
    return stream_out(stream, stream->work, bytes, false, out, out_capacity, out_bytes, err);
}

qe_status qe_detokenizer_finish(qe_detokenizer *stream, char *out, size_t out_capacity, size_t *out_bytes,
                                qe_error *err) {
    if (!stream || !out_bytes || (!out && out_capacity))
        return qe_error_set(err, QE_E_ARGUMENT, "qe_detokenizer_finish: NULL argument");
    return stream_out(stream, stream->held, stream->held_bytes, true, out, out_capacity, out_bytes, err);
}
