/* engine/model/tokenizer_pattern.c -- pre-tokenizer patterns through PCRE2, and canonical composition.
 *
 * Patterns come from files: their length, compiled size and match effort are bounded, and a match that exceeds its
 * effort is QE_E_LIMIT, not a wrong cut. Subjects are valid UTF-8 by the time they get here. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "model/tokenizer_parts.h"

struct qe_pattern { pcre2_code *code; };

const char qe_pattern_gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char pattern_llama3[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char pattern_qwen2[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static const struct { const char *name, *steps[2]; } known[] = {
    {"gpt-2", {qe_pattern_gpt2}},      {"gpt2", {qe_pattern_gpt2}},   {"llama-bpe", {pattern_llama3}},
    {"llama3", {pattern_llama3}},      {"qwen2", {pattern_qwen2}},    {"smollm", {"\\p{N}", qe_pattern_gpt2}},
};

int qe_pattern_known(const char *name, const char *steps[QE_PATTERN_STEPS]) {
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(name, known[i].name) != 0) continue;
        steps[0] = known[i].steps[0];
        steps[1] = known[i].steps[1];
        return steps[1] ? 2 : 1;
    }
    return 0;
}

qe_status qe_pattern_compile(const char *text, size_t bytes, bool literal, const char *where, qe_pattern **out,
                             qe_error *err) {
    int        code;
    PCRE2_SIZE offset;
    uint32_t   flags = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
    qe_pattern *pattern = malloc(sizeof *pattern);
    if (!pattern) return qe_error_at(err, QE_E_NOMEM, where, -1, "no memory for a pattern");
    pattern->code = pcre2_compile((PCRE2_SPTR)text, bytes, flags, &code, &offset, NULL);
    if (!pattern->code) {
        char reason[96] = "", shown[96];
        free(pattern);
        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
        return qe_error_at(err, code == PCRE2_ERROR_NOMEMORY || code == 121 ? QE_E_NOMEM : QE_E_REGEX, where, -1,
                           "pattern \"%s\": %s at %zu", qe_escape(text, bytes, shown, sizeof shown), reason, offset);
    }
    pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE);      /* where it cannot, the interpreter matches the same */
    *out = pattern;
    return QE_OK;
}

void qe_pattern_free(qe_pattern *pattern) {
    if (!pattern) return;
    pcre2_code_free(pattern->code);
    free(pattern);
}

static qe_status match_prepare(qe_encoder *encoder, size_t bytes) {
    if (!encoder->match) encoder->match = pcre2_match_data_create(1, NULL);
    if (!encoder->match_context) encoder->match_context = pcre2_match_context_create(NULL);
    if (!encoder->match_stack) encoder->match_stack = pcre2_jit_stack_create(32 << 10, 1 << 20, NULL);
    if (!encoder->match || !encoder->match_context)
        return qe_error_set(encoder->err, QE_E_NOMEM, "no memory to match a pattern");
    pcre2_jit_stack_assign(encoder->match_context, NULL, encoder->match_stack);
    /* Known patterns look at each character a few times at most; a million steps more is for small texts. */
    uint64_t limit = 1000000 + 8 * (uint64_t)bytes;
    pcre2_set_match_limit(encoder->match_context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
    return QE_OK;
}

void qe_pattern_release(qe_encoder *encoder) {
    if (encoder->match) pcre2_match_data_free(encoder->match);
    if (encoder->match_context) pcre2_match_context_free(encoder->match_context);
    if (encoder->match_stack) pcre2_jit_stack_free(encoder->match_stack);
}

/* Matches and what lies between them are pieces alike. Recursion is as deep as there are steps. */
qe_status qe_pattern_split(qe_encoder *encoder, int32_t step, const char *text, size_t bytes) {
    if (bytes == 0) return QE_OK;
    if (step == encoder->tokenizer->steps_count) return qe_bpe_piece(encoder, text, bytes);
    size_t done = 0, from = 0;
    while (from < bytes) {
        QE_TRY(match_prepare(encoder, bytes));
        int rc = pcre2_match(encoder->tokenizer->steps[step]->code, (PCRE2_SPTR)text, bytes, from,
                             PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, encoder->match, encoder->match_context);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc < 0)
            return qe_error_at(encoder->err, rc == PCRE2_ERROR_NOMEMORY ? QE_E_NOMEM : QE_E_LIMIT,
                               encoder->tokenizer->where, -1, "pre-tokenizer pattern %d gave up at byte %zu (%d)", step,
                               from, rc);
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(encoder->match);
        size_t            begin = span[0], end = span[1];
        if (begin < done || end <= begin)
            return qe_error_at(encoder->err, QE_E_REGEX, encoder->tokenizer->where, -1,
                               "pre-tokenizer pattern %d matches backward at byte %zu", step, from);
        QE_TRY(qe_pattern_split(encoder, step + 1, text + done, begin - done));
        QE_TRY(qe_pattern_split(encoder, step + 1, text + begin, end - begin));
        done = from = end;
    }
    return qe_pattern_split(encoder, step + 1, text + done, bytes - done);
}

enum { MARKS_MAX = 4096 };      /* reordering a run of combining marks takes time in its square */

static qe_status nfc_codes(qe_encoder *encoder, const char *text, size_t bytes, int32_t **codes, size_t *count) {
    const uint8_t *in = (const uint8_t *)text;
    size_t         marks = 0;
    int32_t        code;
    for (size_t at = 0; at < bytes;) {
        at += (size_t)utf8proc_iterate(in + at, (utf8proc_ssize_t)(bytes - at), &code);
        marks = utf8proc_get_property(code)->combining_class || utf8proc_get_property(code)->decomp_type ? marks + 1 : 0;
        if (code < 0x300) marks = 0;
        if (marks > MARKS_MAX)
            return qe_error_at(encoder->err, QE_E_LIMIT, encoder->tokenizer->where, -1,
                               "more than %d combining characters in a row", MARKS_MAX);
    }
    const utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    utf8proc_ssize_t        need = utf8proc_decompose(in, (utf8proc_ssize_t)bytes, NULL, 0, options);
    if (need >= 0) *codes = malloc(((size_t)need + 1) * sizeof **codes);
    if (need < 0 || !*codes) return qe_error_set(encoder->err, QE_E_NOMEM, "no memory to normalize %zu bytes", bytes);
    need = utf8proc_decompose(in, (utf8proc_ssize_t)bytes, *codes, need, options);
    *count = (size_t)utf8proc_normalize_utf32(*codes, need, options);
    return QE_OK;
}

qe_status qe_normal_nfc(qe_encoder *encoder, const char *text, size_t bytes, size_t *out_bytes) {
    size_t   ascii = 0, count = 0, at = 0;
    int32_t *codes = NULL;
    while (ascii < bytes && (uint8_t)text[ascii] < 0x80) ascii++;
    if (ascii < bytes) {
        qe_status status = nfc_codes(encoder, text, bytes, &codes, &count);
        if (!status) status = qe_encoder_text(encoder, count * 4 + 1);
        for (size_t i = 0; !status && i < count; i++)
            at += (size_t)utf8proc_encode_char(codes[i], (uint8_t *)encoder->text + at);
        free(codes);
        *out_bytes = at;
        return status;
    }
    QE_TRY(qe_encoder_text(encoder, bytes + 1));
    memcpy(encoder->text, text, bytes);
    *out_bytes = bytes;
    return QE_OK;
}
