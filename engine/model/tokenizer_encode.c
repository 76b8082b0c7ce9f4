/* engine/model/tokenizer_encode.c -- text to ids: find special tokens, hand what lies between to the model. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_parts.h"

typedef struct found { size_t begin, end; int32_t id; } found;

/* The longest special token at text[at]. Control tokens count only when they end by `trusted_end`. */
static found longest_at(const qe_tokenizer *tokenizer, const char *text, size_t bytes, size_t at, size_t trusted_end) {
    found    best = {at, at, -1};
    uint64_t node = 0;
    for (size_t end = at; end < bytes;) {
        if (!qe_map64_get(&tokenizer->specials.edges, node << 8 | (uint8_t)text[end], &node)) break;
        end++;
        int32_t id = tokenizer->specials.ids[node];
        if (id < 0) continue;
        if (tokenizer->vocab.types[id] == QE_TOKEN_USER_DEFINED || end <= trusted_end) best.end = end, best.id = id;
    }
    return best;
}

static bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static qe_status fragment(qe_encoder *encoder, const char *text, size_t begin, size_t end) {
    if (end <= begin) return QE_OK;
    qe_status status = encoder->tokenizer->kind == QE_TOKENIZER_SCORE
                           ? qe_score_encode(encoder, text + begin, end - begin)
                           : qe_bpe_encode(encoder, text + begin, end - begin);
    encoder->after_special = false;
    return status;
}

static qe_status run(qe_encoder *encoder, const char *text, size_t bytes, const qe_range *trusted, size_t trusted_count) {
    const qe_tokenizer *tokenizer = encoder->tokenizer;
    size_t begin = 0, range = 0;
    for (size_t at = 0; at < bytes;) {
        if (!tokenizer->specials.first[(uint8_t)text[at]]) {
            at++;
            continue;
        }
        while (range < trusted_count && trusted[range].end <= at) range++;
        bool  inside = range < trusted_count && trusted[range].begin <= at;
        found match = longest_at(tokenizer, text, bytes, at, inside ? trusted[range].end : 0);
        if (match.id < 0) {
            at++;
            continue;
        }
        int    strip = tokenizer->strip ? tokenizer->strip[match.id] : 0;
        size_t end = at;
        while ((strip & QE_STRIP_LEFT) && end > begin && is_blank(text[end - 1])) end--;
        QE_TRY(fragment(encoder, text, begin, end));
        QE_TRY(qe_encoder_emit(encoder, match.id));
        encoder->after_special = true;
        begin = match.end;
        while ((strip & QE_STRIP_RIGHT) && begin < bytes && is_blank(text[begin])) begin++;
        at = begin;
    }
    return fragment(encoder, text, begin, bytes);
}

qe_status qe_encode_ranges(const qe_tokenizer *tokenizer, const char *text, size_t bytes, const qe_range *trusted,
                           size_t trusted_count, int32_t bos, int32_t *ids, size_t ids_capacity, size_t *ids_count,
                           qe_error *err) {
    if (bytes > tokenizer->limits.max_text_bytes)
        return qe_error_at(err, QE_E_LIMIT, tokenizer->where, -1, "text of %zu bytes, at most %llu", bytes,
                           (unsigned long long)tokenizer->limits.max_text_bytes);
    qe_encoder encoder = {.tokenizer = tokenizer, .err = err, .after_special = true};
    qe_status  status = QE_OK;
    int32_t    bos_id = tokenizer->special[QE_SPECIAL_BOS];
    if (bos == QE_BOS_ALWAYS && bos_id < 0)
        return qe_error_at(err, QE_E_MISSING, tokenizer->where, -1, "the tokenizer has no BOS token");
    if (bos == QE_BOS_ALWAYS || (bos == QE_BOS_DEFAULT && tokenizer->add_bos)) status = qe_encoder_emit(&encoder, bos_id);
    if (!status) status = run(&encoder, text, bytes, trusted, trusted_count);
    if (!status) {
        *ids_count = encoder.ids_count;
        if (encoder.ids_count <= ids_capacity) {
            if (encoder.ids_count) memcpy(ids, encoder.ids, encoder.ids_count * sizeof *ids);
        } else if (ids || ids_capacity) {
            status = qe_error_at(err, QE_E_CAPACITY, tokenizer->where, -1, "%zu ids, room for %zu", encoder.ids_count,
                                 ids_capacity);
        }
    }
    qe_pattern_release(&encoder);
    free(encoder.ids), free(encoder.symbols), free(encoder.heap), free(encoder.text);
    return status;
}

qe_status qe_tokenizer_encode(const qe_tokenizer *tokenizer, const char *text, size_t text_bytes,
                              const qe_encode_options *options, int32_t *ids, size_t ids_capacity, size_t *ids_count,
                              qe_error *err) {
    if (!tokenizer || !ids_count || (!text && text_bytes) || (!ids && ids_capacity))
        return qe_error_set(err, QE_E_ARGUMENT, "qe_tokenizer_encode: NULL argument");
    qe_encode_options o;
    QE_TRY(qe_options_copy(options, sizeof o, &o, "qe_encode_options", err));
    if ((uint32_t)o.bos > QE_BOS_NEVER || (uint32_t)o.parse_special > 1 || o.reserved)
        return qe_error_set(err, QE_E_ARGUMENT, "qe_encode_options: bos %d, parse_special %d, reserved %d", o.bos,
                            o.parse_special, o.reserved);
    qe_range all = {0, text_bytes};
    return qe_encode_ranges(tokenizer, text, text_bytes, &all, o.parse_special ? 1 : 0, o.bos, ids, ids_capacity,
                            ids_count, err);
}
