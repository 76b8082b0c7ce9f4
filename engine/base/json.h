/* base/json.h -- jansson's values behind our parser, limits, codes and messages. Sizes, nesting and member counts are
 * checked in a scan of the text before the parse, so hostile text costs no tree. Documents are ordinary json_t: whoever
 * parses one drops it with json_decref, and iterates with jansson's own macros. */
#ifndef QE_BASE_JSON_H
#define QE_BASE_JSON_H
#include <stdbool.h>
#include <jansson.h>
#include <qengine/base.h>

typedef struct qe_json_limits {       /* zero: the default */
    uint64_t max_bytes;               /* 16 MiB */
    uint32_t max_depth;               /* 2048 */
    uint64_t max_members;             /* of the outermost object or array; 4,194,304 */
} qe_json_limits;

/* Codes: LIMIT (size, members), UTF8, DEPTH, DUPLICATE (keys, after unescaping), OVERFLOW (an integer beyond int64, a
 * number beyond double), RANGE (an escaped NUL), NOMEM, else JSON. The top level may be any value. `where` names the
 * file; err->offset is the byte within the text. */
qe_status qe_json_parse(const char *text, size_t bytes, const qe_json_limits *limits, const char *where, json_t **out,
                        qe_error *err);
/* The whole reader. Its size is checked against the limit before memory is asked for. */
qe_status qe_json_read(const qe_reader *reader, const qe_json_limits *limits, json_t **out, qe_error *err);

/* Typed members of an object. The plain form fails with MISSING; the _or form takes `fallback` when the member is
 * absent or null. A member of another type is TYPE, a number outside [lo, hi] RANGE; messages name the key. */
qe_status qe_json_int(const json_t *object, const char *key, int64_t lo, int64_t hi, int64_t *out, qe_error *err);
qe_status qe_json_int_or(const json_t *object, const char *key, int64_t lo, int64_t hi, int64_t fallback, int64_t *out,
                         qe_error *err);
qe_status qe_json_real(const json_t *object, const char *key, double *out, qe_error *err);       /* integers too */
qe_status qe_json_real_or(const json_t *object, const char *key, double fallback, double *out, qe_error *err);
qe_status qe_json_bool_or(const json_t *object, const char *key, bool fallback, bool *out, qe_error *err);
qe_status qe_json_string(const json_t *object, const char *key, const char **out, qe_error *err);
qe_status qe_json_string_or(const json_t *object, const char *key, const char *fallback, const char **out,
                            qe_error *err);
qe_status qe_json_object(const json_t *object, const char *key, json_t **out, qe_error *err);
qe_status qe_json_array(const json_t *object, const char *key, json_t **out, qe_error *err);
bool      qe_json_has(const json_t *object, const char *key);                       /* present and not null */
#endif
