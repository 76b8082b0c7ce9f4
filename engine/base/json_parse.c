/* JSON text (RFC 8259) to a jansson tree. The lexer is ours because jansson's ignores failed growths of its token
 * buffer (2.14; 2.15 too): a character is dropped, and then an assertion aborts the process or, where the closing quote
 * was dropped, memory is overrun. jansson's values report every failure, so nothing but QE_E_NOMEM comes of one here.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_internal.h"
#include "base/os.h"
#include "base/utf8.h"

typedef struct parser {
    const char *text, *where;
    size_t bytes, at;
    uint32_t depth, max_depth;
    char *token; /* the string or number at hand, unescaped and NUL-terminated */
    size_t length, room;
    qe_error *err;
} parser;

/* ---- failures --------------------------------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static qe_status fail(const parser *p, qe_status status, const char *format,
                                                            ...) {
    char text[160];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t line = 1;
    for (size_t i = 0; i < p->at; i++) line += p->text[i] == '\n';
    return qe_error_at(p->err, status, p->where, (int64_t)p->at, "line %zu: %s", line, text);
}

static qe_status no_memory(const parser *p) {
    return fail(p, QE_E_NOMEM, "no memory for the document");
}

/* What stands here does not belong here. */
static qe_status unexpected(const parser *p, const char *expected) {
    char shown[16];
    if (p->at >= p->bytes) return fail(p, QE_E_JSON, "the text ends, expected %s", expected);
    size_t length = qe_utf8_length(p->text + p->at, p->bytes - p->at);
    if (!length) return fail(p, QE_E_UTF8, "byte 0x%02x is not UTF-8", (unsigned char)p->text[p->at]);
    return fail(p, QE_E_JSON, "expected %s, found '%s'", expected,
                qe_escape(p->text + p->at, length, shown, sizeof shown));
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

static int peek(const parser *p) {
    return p->at < p->bytes ? (unsigned char)p->text[p->at] : -1;
}

static void skip_blanks(parser *p) {
    while (p->at < p->bytes && strchr(" \t\n\r", p->text[p->at]) && p->text[p->at]) p->at++;
}

static bool take(parser *p, char c) {
    if (peek(p) != (unsigned char)c) return false;
    p->at++;
    return true;
}

/* Room is kept for the NUL. */
static qe_status append(parser *p, const char *from, size_t bytes) {
    if (bytes >= p->room - p->length) {
        size_t room = 2 * p->room > p->length + bytes ? 2 * p->room : p->length + bytes + 1;
        char *token = realloc(p->token, room);
        if (!token) return no_memory(p);
        p->token = token;
        p->room = room;
    }
    memcpy(p->token + p->length, from, bytes);
    p->length += bytes;
    p->token[p->length] = 0;
    return QE_OK;
}

static qe_status read_hex(parser *p, uint32_t *out) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        int c = peek(p), digit = c >= '0' && c <= '9'                 ? c - '0'
                                 : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                                      : -1;
        if (c < 0 || digit < 0) return unexpected(p, "a hexadecimal digit");
        value = value << 4 | (uint32_t)digit;
    }
    *out = value;
    return QE_OK;
}

/* After "\u". */
static qe_status read_code_point(parser *p) {
    uint32_t c = 0, low = 0;
    QE_TRY(read_hex(p, &c));
    if (!c) return fail(p, QE_E_RANGE, "an escaped NUL in a string");
    if (c >= 0xdc00 && c < 0xe000) return fail(p, QE_E_JSON, "an escaped surrogate without its first half");
    if (c >= 0xd800 && c < 0xdc00) {
        if (!take(p, '\\') || !take(p, 'u')) return fail(p, QE_E_JSON, "an escaped surrogate without its second half");
        QE_TRY(read_hex(p, &low));
        if (low < 0xdc00 || low >= 0xe000) return fail(p, QE_E_JSON, "an escaped surrogate without its second half");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    char out[4];
    size_t length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char first[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length; i-- > 1; c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(first[length] | c);
    return append(p, out, length);
}

static qe_status read_escape(parser *p) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int c = peek(p);
    const char *name = c > 0 ? strchr(names, c) : NULL;
    if (c == 'u') {
        p->at++;
        return read_code_point(p);
    }
    if (!name) return unexpected(p, "an escape");
    p->at++;
    return append(p, values + (name - names), 1);
}

/* After the opening quote. */
static qe_status read_string(parser *p) {
    p->length = 0;
    p->token[0] = 0;
    for (;;) {
        size_t from = p->at;
        while (p->at < p->bytes && p->text[p->at] != '"' && p->text[p->at] != '\\' &&
               (unsigned char)p->text[p->at] >= 0x20) {
            size_t length = qe_utf8_length(p->text + p->at, p->bytes - p->at);
            if (!length) return unexpected(p, "a string");
            p->at += length;
        }
        if (p->at > from) QE_TRY(append(p, p->text + from, p->at - from));
        if (take(p, '"')) return QE_OK;
        if (!take(p, '\\')) return unexpected(p, "the rest of a string");
        QE_TRY(read_escape(p));
    }
}

static bool take_digits(parser *p) {
    size_t from = p->at;
    while (peek(p) >= '0' && peek(p) <= '9') p->at++;
    return p->at > from;
}

static qe_status read_integer(parser *p, const char *digits, json_t **out) {
    bool negative = *digits == '-';
    int64_t value = 0;
    for (const char *d = digits + negative; d < p->text + p->at; d++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_sub_overflow(value, *d - '0', &value))
            return fail(p, QE_E_OVERFLOW, "an integer beyond 64 bits");
    if (!negative && value == INT64_MIN) return fail(p, QE_E_OVERFLOW, "an integer beyond 64 bits");
    *out = json_integer(negative ? value : -value);
    return *out ? QE_OK : no_memory(p);
}

static qe_status read_number(parser *p, json_t **out) {
    size_t from = p->at;
    bool real = false;
    take(p, '-');
    if (!take(p, '0') && !take_digits(p)) return unexpected(p, "a value");
    if (take(p, '.')) {
        real = true;
        if (!take_digits(p)) return unexpected(p, "a digit");
    }
    if (take(p, 'e') || take(p, 'E')) {
        real = true;
        if (!take(p, '+')) take(p, '-');
        if (!take_digits(p)) return unexpected(p, "a digit");
    }
    if (!real) return read_integer(p, p->text + from, out);
    double value;
    p->length = 0;
    QE_TRY(append(p, p->text + from, p->at - from));
    if (!qe_os_real(p->token, &value)) return fail(p, QE_E_OVERFLOW, "a number beyond double precision");
    *out = json_real(value);
    return *out ? QE_OK : no_memory(p);
}

static qe_status read_word(parser *p, json_t **out) {
    static const struct {
        const char *word;
        json_t *(*make)(void);
    } words[] = {{"true", json_true}, {"false", json_false}, {"null", json_null}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = strlen(words[i].word);
        if (p->bytes - p->at < length || memcmp(p->text + p->at, words[i].word, length)) continue;
        p->at += length;
        *out = words[i].make();
        return QE_OK;
    }
    return unexpected(p, "a value");
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static qe_status read_value(parser *p, json_t **out);

/* After '['; items go into the array, which the caller drops on failure. */
static qe_status read_items(parser *p, json_t *array) {
    skip_blanks(p);
    if (take(p, ']')) return QE_OK;
    for (;;) {
        json_t *item;
        QE_TRY(read_value(p, &item));
        if (json_array_append_new(array, item)) return no_memory(p);
        skip_blanks(p);
        if (take(p, ']')) return QE_OK;
        if (!take(p, ',')) return unexpected(p, "',' or ']'");
    }
}

static qe_status read_member(parser *p, json_t *object) {
    char short_key[64], *key = short_key, shown[64];
    json_t *value = NULL;
    size_t at = p->at, before = json_object_size(object);
    if (!take(p, '"')) return unexpected(p, "a key");
    QE_TRY(read_string(p));
    if (p->length >= sizeof short_key && !(key = malloc(p->length + 1))) return no_memory(p);
    memcpy(key, p->token, p->length + 1);
    skip_blanks(p);
    qe_status status = take(p, ':') ? read_value(p, &value) : unexpected(p, "':'");
    if (!status && json_object_set_new_nocheck(object, key, value)) status = no_memory(p);
    if (!status && json_object_size(object) == before) {
        p->at = at;
        status =
            fail(p, QE_E_DUPLICATE, "the key \"%s\" is there twice", qe_escape(key, strlen(key), shown, sizeof shown));
    }
    if (key != short_key) free(key);
    return status;
}

/* After '{'. */
static qe_status read_members(parser *p, json_t *object) {
    skip_blanks(p);
    if (take(p, '}')) return QE_OK;
    for (;;) {
        skip_blanks(p);
        QE_TRY(read_member(p, object));
        skip_blanks(p);
        if (take(p, '}')) return QE_OK;
        if (!take(p, ',')) return unexpected(p, "',' or '}'");
    }
}

static qe_status read_nested(parser *p, bool object, json_t **out) {
    if (++p->depth > p->max_depth) return fail(p, QE_E_DEPTH, "nested deeper than %u", p->max_depth);
    json_t *made = object ? json_object() : json_array();
    if (!made) return no_memory(p);
    qe_status status = object ? read_members(p, made) : read_items(p, made);
    p->depth--;
    if (status)
        json_decref(made);
    else
        *out = made;
    return status;
}

static qe_status read_value(parser *p, json_t **out) {
    skip_blanks(p);
    if (take(p, '{')) return read_nested(p, true, out);
    if (take(p, '[')) return read_nested(p, false, out);
    if (take(p, '"')) {
        QE_TRY(read_string(p));
        *out = json_stringn_nocheck(p->token, p->length);
        return *out ? QE_OK : no_memory(p);
    }
    int c = peek(p);
    return c == '-' || (c >= '0' && c <= '9') ? read_number(p, out) : read_word(p, out);
}

qe_status qe_json_tree(const char *text, size_t bytes, uint32_t max_depth, const char *where, json_t **out,
                       qe_error *err) {
    enum { FIRST_ROOM = 256 };
    parser p = {.text = text, .where = where, .bytes = bytes, .max_depth = max_depth, .room = FIRST_ROOM, .err = err};
    json_t *root = NULL;
    if (!(p.token = malloc(FIRST_ROOM))) return no_memory(&p);
    qe_status status = read_value(&p, &root);
    free(p.token);
    QE_TRY(status);
    skip_blanks(&p);
    if (p.at == p.bytes) {
        *out = root;
        return QE_OK;
    }
    json_decref(root);
    return unexpected(&p, "the end of the text");
}
