/* engine/model/tokenizer_score.c -- SentencePiece-style merging by score, as GGUF's "llama" model stores it.
 *
 * Spaces become U+2581. Characters are merged, the pair with the highest token score first, leftmost among equals; a
 * character without a token falls back to its byte tokens. Merging is confined to stretches: where two neighboring
 * characters occur side by side in no token, nothing can ever merge across, so the text is cut there and every stretch
 * gets its own small heap. The result is the same, word for word, as over the whole text. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_parts.h"

enum { JOINT_BITS = 22 };
static const char space_mark[] = "\xe2\x96\x81";      /* U+2581 */

size_t qe_utf8_length(const char *text, size_t bytes) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
    size_t length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (length > bytes) return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    bool overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool surrogate = s[0] == 0xed && s[1] > 0x9f, past_end = s[0] == 0xf4 && s[1] > 0x8f;
    return overlong || surrogate || past_end ? 0 : length;
}

/* A character as a number; a byte that starts none stands for itself, out of the way of the characters. */
static size_t next_character(const char *text, size_t bytes, uint32_t *code) {
    size_t length = qe_utf8_length(text, bytes);
    *code = 0x80000000u | (uint8_t)text[0];
    if (length) *code = 0, memcpy(code, text, length);
    return length ? length : 1;
}

static uint32_t joint_bit(const qe_tokenizer *tokenizer, uint32_t left, uint32_t right) {
    uint64_t mixed = ((uint64_t)left << 32 | right) ^ tokenizer->joints_key;
    mixed *= 0x9e3779b97f4a7c15u;
    mixed ^= mixed >> 29;
    return (uint32_t)(mixed * 0xd1b54a32d192ed03u >> (64 - JOINT_BITS));
}

static void add_joints(qe_tokenizer *tokenizer, qe_text text) {
    uint32_t left, right;
    for (size_t at = next_character(text.data, text.bytes, &left); at < text.bytes; left = right) {
        at += next_character(text.data + at, text.bytes - at, &right);
        uint32_t bit = joint_bit(tokenizer, left, right);
        tokenizer->joints[bit / 64] |= 1ull << bit % 64;
    }
}

/* "<0x41>" -> 0x41; -1 for anything else. */
static int byte_token(qe_text text) {
    if (text.bytes != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = text.data[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

static qe_status collect_bytes(qe_tokenizer *tokenizer, qe_error *err) {
    int found = 0;
    for (int32_t id = 0; id < tokenizer->vocab.count; id++) {
        if (tokenizer->vocab.types[id] != QE_TOKEN_BYTE) continue;
        qe_text text = qe_vocab_text(&tokenizer->vocab, id);
        char    shown[64];
        int     value = byte_token(text);
        if (value < 0)
            return qe_error_at(err, QE_E_RANGE, tokenizer->where, -1,
                               "byte token %d is \"%s\", expected \"<0x00>\" to \"<0xFF>\"", id,
                               qe_escape(text.data, text.bytes, shown, sizeof shown));
        if (tokenizer->byte_ids[value] >= 0)
            return qe_error_at(err, QE_E_DUPLICATE, tokenizer->where, -1, "tokens %d and %d are both byte 0x%02X",
                               tokenizer->byte_ids[value], id, value);
        tokenizer->byte_ids[value] = id;
        found++;
    }
    for (int value = 0; found > 0 && value < 256; value++)
        if (tokenizer->byte_ids[value] < 0)
            return qe_error_at(err, QE_E_MISSING, tokenizer->where, -1,
                               "byte fallback has %d of 256 tokens; the first absent one is <0x%02X>", found, value);
    if (found == 0 && tokenizer->special[QE_SPECIAL_UNK] < 0)
        return qe_error_at(err, QE_E_MISSING, tokenizer->where, -1, "neither byte tokens nor an unknown token");
    return QE_OK;
}

qe_status qe_score_create(qe_tokenizer *tokenizer, const float *scores, qe_error *err) {
    int32_t  count = tokenizer->vocab.count;
    uint64_t key[2];
    qe_random_key(key);
    tokenizer->joints_key = key[0];
    tokenizer->priorities = malloc((size_t)count * sizeof *tokenizer->priorities);
    tokenizer->joints = calloc((1u << JOINT_BITS) / 64, sizeof *tokenizer->joints);
    if (!tokenizer->priorities || !tokenizer->joints)
        return qe_error_at(err, QE_E_NOMEM, tokenizer->where, -1, "no memory for %d scores", count);
    for (int32_t id = 0; id < count; id++) {
        if (!isfinite(scores[id]))
            return qe_error_at(err, QE_E_VALUE, tokenizer->where, -1, "score of token %d is not finite", id);
        uint32_t bits;      /* float order as unsigned order, then reversed: the best score is the smallest number */
        memcpy(&bits, &(float){scores[id] + 0.0f}, sizeof bits);
        tokenizer->priorities[id] = bits >> 31 ? bits : 0x7fffffffu - bits;
        qe_text text = qe_vocab_text(&tokenizer->vocab, id);
        if (text.bytes) add_joints(tokenizer, text);
    }
    return collect_bytes(tokenizer, err);
}

static bool find_merge(const qe_tokenizer *tokenizer, const char *text, const qe_symbol *left, const qe_symbol *right,
                       int32_t *merged, uint32_t *priority) {
    *merged = qe_vocab_find(&tokenizer->vocab, text + left->start, (size_t)left->bytes + right->bytes);
    if (*merged < 0) return false;
    *priority = tokenizer->priorities[*merged];
    return true;
}

static qe_status emit_bytes(qe_encoder *encoder, const char *text, size_t bytes) {
    const qe_tokenizer *tokenizer = encoder->tokenizer;
    if (tokenizer->byte_ids[0] < 0) return qe_encoder_emit(encoder, tokenizer->special[QE_SPECIAL_UNK]);
    for (size_t i = 0; i < bytes; i++) QE_TRY(qe_encoder_emit(encoder, tokenizer->byte_ids[(uint8_t)text[i]]));
    return QE_OK;
}

static qe_status encode_stretch(qe_encoder *encoder, const char *text) {
    QE_TRY(qe_merge_run(encoder, text, find_merge));
    for (uint32_t at = 0; at != QE_NO_SYMBOL; at = encoder->symbols[at].next) {
        const qe_symbol *symbol = &encoder->symbols[at];
        if (symbol->id >= 0)
            QE_TRY(qe_encoder_emit(encoder, symbol->id));
        else
            QE_TRY(emit_bytes(encoder, text + symbol->start, symbol->bytes));
    }
    encoder->symbols_count = 0;
    return QE_OK;
}

/* The fragment with U+2581 for spaces, in encoder->text. */
static qe_status mark_spaces(qe_encoder *encoder, const char *text, size_t bytes, size_t *out_bytes) {
    size_t spaces = encoder->tokenizer->add_space_prefix && encoder->after_special;
    bool   prefix = spaces;
    for (size_t i = 0; i < bytes; i++) spaces += text[i] == ' ';
    *out_bytes = bytes + spaces * (sizeof space_mark - 1) - (spaces - prefix);
    if (*out_bytes >= UINT32_MAX)
        return qe_error_at(encoder->err, QE_E_LIMIT, encoder->tokenizer->where, -1,
                           "text of %zu bytes with %zu spaces is too long to encode", bytes, spaces);
    QE_TRY(qe_encoder_text(encoder, *out_bytes));
    char *out = encoder->text;
    if (prefix) memcpy(out, space_mark, 3), out += 3;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == ' ')
            memcpy(out, space_mark, 3), out += 3;
        else
            *out++ = text[i];
    }
    return QE_OK;
}

qe_status qe_score_encode(qe_encoder *encoder, const char *fragment, size_t fragment_bytes) {
    const qe_tokenizer *tokenizer = encoder->tokenizer;
    size_t bytes;
    QE_TRY(mark_spaces(encoder, fragment, fragment_bytes, &bytes));
    const char *text = encoder->text;
    uint32_t    before = 0, code;
    encoder->symbols_count = 0;
    for (size_t at = 0, length; at < bytes; at += length, before = code) {
        length = next_character(text + at, bytes - at, &code);
        if (encoder->symbols_count) {
            uint32_t bit = joint_bit(tokenizer, before, code);
            if (!(tokenizer->joints[bit / 64] >> bit % 64 & 1)) QE_TRY(encode_stretch(encoder, text));
        }
        int32_t id = qe_vocab_find(&tokenizer->vocab, text + at, length);
        QE_TRY(qe_encoder_symbol(encoder, (uint32_t)at, (uint32_t)length, id));
    }
    return encoder->symbols_count ? encode_stretch(encoder, text) : QE_OK;
}
