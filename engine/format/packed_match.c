/* packed_match.c -- patterns over module names, as settings files hold them. They come from files: length, compile time
 * and match effort are bounded. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "format/packed.h"

enum { PATTERN_LIMIT = 4096, MATCH_LIMIT = 100000 };

static qe_status refuse(const char *where, const char *pattern, qe_status status, const char *what, qe_error *err) {
    char text[QE_TEXT_MAX];
    return qe_error_at(err, status, where, -1, "pattern \"%s\": %s",
                       qe_escape(pattern, strlen(pattern), text, sizeof text), what);
}

static qe_status run(pcre2_code *code, const char *pattern, const char *module, const char *where, bool *matches,
                     qe_error *err) {
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    qe_status status = data && context ? QE_OK : refuse(where, pattern, QE_E_NOMEM, "no memory to match it", err);
    if (!status) {
        pcre2_set_match_limit(context, MATCH_LIMIT);
        int rc = pcre2_match(code, (PCRE2_SPTR)module, strlen(module), 0, PCRE2_ANCHORED, data, context);
        *matches = rc >= 0;
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
            status = refuse(where, pattern, rc == PCRE2_ERROR_NOMEMORY ? QE_E_NOMEM : QE_E_LIMIT,
                            "takes too long on a module name", err);
    }
    if (data) pcre2_match_data_free(data);
    if (context) pcre2_match_context_free(context);
    return status;
}

qe_status qe_module_match(const char *pattern, const char *module, const char *where, bool *matches, qe_error *err) {
    int number;
    PCRE2_SIZE offset;
    *matches = false;
    size_t bytes = strlen(pattern);
    if (bytes > PATTERN_LIMIT) return refuse(where, pattern, QE_E_LIMIT, "more than 4096 bytes", err);
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)pattern, bytes, PCRE2_NEVER_BACKSLASH_C | PCRE2_NEVER_UTF, &number, &offset, NULL);
    if (!code) {
        char reason[96] = "not a pattern";
        pcre2_get_error_message(number, (PCRE2_UCHAR *)reason, sizeof reason);
        return refuse(where, pattern, QE_E_REGEX, reason, err);
    }
    qe_status status = run(code, pattern, module, where, matches, err);
    pcre2_code_free(code);
    return status;
}
