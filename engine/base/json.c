/* Limits before the parse, typed members after it. */
#include "base/json_internal.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_BYTES = 16 << 20, DEFAULT_DEPTH = 2048, DEFAULT_MEMBERS = 4 << 20 };

/* ---- before the parse ------------------------------------------------------------------------------------------- */

/* The byte after the string that starts at `at` (after its quote). */
static size_t skip_string(const char *text, size_t bytes, size_t at) {
    while (at < bytes && text[at] != '"') at += text[at] == '\\' ? 2 : 1;
    return at < bytes ? at + 1 : bytes;
}

/* Nesting and outermost members, without judging the grammar: that is the parser's work. */
static qe_status scan(const char *text, size_t bytes, const qe_json_limits *limits, const char *where, qe_error *err) {
    uint64_t members = 0;
    uint32_t depth = 0;
    for (size_t at = 0; at < bytes;) {
        char c = text[at++];
        if (c == '"') {
            at = skip_string(text, bytes, at);
        } else if (c == '{' || c == '[') {
            if (++depth > limits->max_depth)
                return qe_error_at(err, QE_E_DEPTH, where, (int64_t)at - 1, "nested deeper than %u", limits->max_depth);
        } else if (c == '}' || c == ']') {
            if (depth) depth--;
        } else if (c == ',' && depth == 1 && ++members >= limits->max_members) {
            return qe_error_at(err, QE_E_LIMIT, where, (int64_t)at - 1, "more than %llu members",
                               (unsigned long long)limits->max_members);
        }
    }
    return QE_OK;
}

static qe_status check_size(uint64_t bytes, const qe_json_limits *limits, const char *where, qe_error *err) {
    if (bytes <= limits->max_bytes) return QE_OK;
    return qe_error_at(err, QE_E_LIMIT, where, -1, "%llu bytes of JSON, the limit is %llu", (unsigned long long)bytes,
                       (unsigned long long)limits->max_bytes);
}

static qe_json_limits complete(const qe_json_limits *given) {
    qe_json_limits limits = given ? *given : (qe_json_limits){0};
    if (!limits.max_bytes) limits.max_bytes = DEFAULT_BYTES;
    if (!limits.max_depth || limits.max_depth > DEFAULT_DEPTH) limits.max_depth = DEFAULT_DEPTH;
    if (!limits.max_members) limits.max_members = DEFAULT_MEMBERS;
    return limits;
}

/* ---- the parse -------------------------------------------------------------------------------------------------- */

qe_status qe_json_parse(const char *text, size_t bytes, const qe_json_limits *given, const char *where, json_t **out,
                        qe_error *err) {
    qe_json_limits limits = complete(given);
    if (!text || !out) return qe_error_set(err, QE_E_ARGUMENT, "text and out must not be NULL");
    QE_TRY(check_size(bytes, &limits, where, err));
    QE_TRY(scan(text, bytes, &limits, where, err));
    return qe_json_tree(text, bytes, limits.max_depth, where, out, err);
}

qe_status qe_json_read(const qe_reader *reader, const qe_json_limits *given, json_t **out, qe_error *err) {
    qe_json_limits limits = complete(given);
    if (!reader || !out) return qe_error_set(err, QE_E_ARGUMENT, "reader and out must not be NULL");
    QE_TRY(check_size(reader->size, &limits, reader->name, err));
    if (!reader->size) return qe_error_at(err, QE_E_TRUNCATED, reader->name, 0, "the file is empty");
    char *text = malloc((size_t)reader->size);
    if (!text) return qe_error_at(err, QE_E_NOMEM, reader->name, -1, "no memory for %llu bytes of JSON",
                                  (unsigned long long)reader->size);
    qe_status status = reader->read_at(reader->ctx, 0, text, (size_t)reader->size, err);
    if (!status) status = qe_json_parse(text, (size_t)reader->size, &limits, reader->name, out, err);
    free(text);
    return status;
}

/* ---- typed members ---------------------------------------------------------------------------------------------- */

static const char *type_name(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number with fraction or exponent";
    case JSON_NULL: return "null";
    default: return "true or false";
    }
}

static qe_status wrong_type(const char *key, const char *expected, const json_t *value, qe_error *err) {
    return qe_error_set(err, QE_E_TYPE, "\"%s\": expected %s, found %s", key, expected, type_name(value));
}

/* The member, or MISSING. Without `required`, absent and null both give NULL. */
static qe_status find(const json_t *object, const char *key, bool required, json_t **out, qe_error *err) {
    *out = json_object_get(object, key);
    if (*out && !required && json_is_null(*out)) *out = NULL;
    if (*out || !required) return QE_OK;
    return qe_error_set(err, QE_E_MISSING, "\"%s\" is missing", key);
}

bool qe_json_has(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value);
}

static qe_status to_int(const json_t *value, const char *key, int64_t lo, int64_t hi, int64_t *out, qe_error *err) {
    if (!json_is_integer(value)) return wrong_type(key, "an integer", value, err);
    int64_t number = json_integer_value(value);
    if (number < lo || number > hi)
        return qe_error_set(err, QE_E_RANGE, "\"%s\": %lld, expected %lld to %lld", key, (long long)number,
                            (long long)lo, (long long)hi);
    *out = number;
    return QE_OK;
}

qe_status qe_json_int(const json_t *object, const char *key, int64_t lo, int64_t hi, int64_t *out, qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, true, &value, err));
    return to_int(value, key, lo, hi, out, err);
}

qe_status qe_json_int_or(const json_t *object, const char *key, int64_t lo, int64_t hi, int64_t fallback, int64_t *out,
                         qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, false, &value, err));
    if (value) return to_int(value, key, lo, hi, out, err);
    *out = fallback;
    return QE_OK;
}

static qe_status to_real(const json_t *value, const char *key, double *out, qe_error *err) {
    if (!json_is_number(value)) return wrong_type(key, "a number", value, err);
    *out = json_number_value(value);
    return QE_OK;
}

qe_status qe_json_real(const json_t *object, const char *key, double *out, qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, true, &value, err));
    return to_real(value, key, out, err);
}

qe_status qe_json_real_or(const json_t *object, const char *key, double fallback, double *out, qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, false, &value, err));
    if (value) return to_real(value, key, out, err);
    *out = fallback;
    return QE_OK;
}

qe_status qe_json_bool_or(const json_t *object, const char *key, bool fallback, bool *out, qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, false, &value, err));
    if (value && !json_is_boolean(value)) return wrong_type(key, "true or false", value, err);
    *out = value ? json_is_true(value) : fallback;
    return QE_OK;
}

static qe_status to_string(const json_t *value, const char *key, const char **out, qe_error *err) {
    if (!json_is_string(value)) return wrong_type(key, "a string", value, err);
    *out = json_string_value(value);
    return QE_OK;
}

qe_status qe_json_string(const json_t *object, const char *key, const char **out, qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, true, &value, err));
    return to_string(value, key, out, err);
}

qe_status qe_json_string_or(const json_t *object, const char *key, const char *fallback, const char **out,
                            qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, false, &value, err));
    if (value) return to_string(value, key, out, err);
    *out = fallback;
    return QE_OK;
}

qe_status qe_json_object(const json_t *object, const char *key, json_t **out, qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, true, &value, err));
    if (!json_is_object(value)) return wrong_type(key, "an object", value, err);
    *out = value;
    return QE_OK;
}

qe_status qe_json_array(const json_t *object, const char *key, json_t **out, qe_error *err) {
    json_t *value;
    QE_TRY(find(object, key, true, &value, err));
    if (!json_is_array(value)) return wrong_type(key, "an array", value, err);
    *out = value;
    return QE_OK;
}
