/* Status names, the caller's error record, and text from files made safe to print. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <qengine/base.h>
#include "base/utf8.h"

static const struct {
    qe_status status;
    const char *name, *text;
} statuses[] = {
#define QE_X(name, value, text) {name, #name, text},
    QE_STATUS_LIST(QE_X)
#undef QE_X
};
enum { STATUS_COUNT = sizeof statuses / sizeof statuses[0] };

const char *qe_status_name(qe_status status) {
    for (int i = 0; i < STATUS_COUNT; i++)
        if (statuses[i].status == status) return statuses[i].name;
    return "?";
}

const char *qe_status_text(qe_status status) {
    for (int i = 0; i < STATUS_COUNT; i++)
        if (statuses[i].status == status) return statuses[i].text;
    return "?";
}

const char *qe_version(void) {
    return QE_VERSION_TEXT;
}

/* Control characters and bytes that are not UTF-8 as \xNN; with `quotes` also quotes and backslashes behind one. */
static char *escape(const char *text, size_t text_bytes, bool quotes, char *out, size_t out_bytes) {
    const unsigned char *p = (const unsigned char *)text;
    size_t used = 0;
    for (size_t i = 0; i < text_bytes;) {
        char piece[8];
        size_t length = qe_utf8_length(text + i, text_bytes - i);
        size_t taken = length ? length : 1;
        /* U+0080..U+009F are control characters too: terminals act on them. */
        bool control = p[i] < 0x20 || p[i] == 0x7f || (length == 2 && p[i] == 0xc2 && p[i + 1] < 0xa0);
        if (!length || control) {
            taken = 1;
            length = (size_t)snprintf(piece, sizeof piece, "\\x%02x", p[i]);
        } else if (quotes && (p[i] == '"' || p[i] == '\\' || p[i] == '\'')) {
            piece[0] = '\\', piece[1] = (char)p[i], length = 2;
        } else {
            memcpy(piece, p + i, length);
        }
        if (used + length >= out_bytes) break;
        memcpy(out + used, piece, length);
        used += length;
        i += taken;
    }
    out[used] = 0;
    return out;
}

/* One printable line, whatever names of a file are in it. */
static qe_status fill(qe_error *err, qe_status status, const char *where, int64_t offset, const char *format,
                      va_list args) {
    if (!err) return status;
    /* Built aside: an argument may point into *err, as when a caller adds context to the message it received. */
    qe_error made = {.status = (int32_t)status, .offset = offset};
    char text[sizeof made.message + 64]; /* longer, so that the cut is made between characters */
    vsnprintf(text, sizeof text, format ? format : "", args);
    escape(text, strlen(text), false, made.message, sizeof made.message);
    escape(where ? where : "", where ? strlen(where) : 0, false, made.where, sizeof made.where);
    *err = made;
    return status;
}

qe_status qe_error_set(qe_error *err, qe_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fill(err, status, NULL, -1, format, args);
    va_end(args);
    return status;
}

qe_status qe_error_at(qe_error *err, qe_status status, const char *where, int64_t offset, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fill(err, status, where, offset, format, args);
    va_end(args);
    return status;
}

char *qe_escape(const char *text, size_t text_bytes, char *out, size_t out_bytes) {
    if (!out || !out_bytes) return out;
    return escape(text ? text : "", text ? text_bytes : 0, true, out, out_bytes);
}
