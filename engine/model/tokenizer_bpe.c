/* engine/model/tokenizer_bpe.c -- byte-level BPE: any bytes, cut by a pattern, merged by rank.
 *
 * Files write the 256 bytes as printable characters (GPT-2's map). Texts are unmapped to plain bytes once, at load, so
 * that encoding and decoding never see that alphabet. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_parts.h"

/* Bytes that stand for themselves in GPT-2's map; the others are U+0100, U+0101, ... in order. */
static bool is_printable(uint32_t byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

static int unmap_character(uint32_t code) {
    if (code < 0x100) return is_printable(code) ? (int)code : -1;
    uint32_t rest = code - 0x100;
    for (int byte = 0; byte < 256; byte++)
        if (!is_printable((uint32_t)byte) && rest-- == 0) return byte;
    return -1;
}

bool qe_bpe_unmap(qe_text text, char *out, size_t *out_bytes) {
    size_t count = 0;
    for (size_t at = 0; at < text.bytes;) {
        uint8_t  first = (uint8_t)text.data[at];
        uint32_t code = first;
        size_t   length = 1;
        if (first >= 0x80) {
            if (first < 0xc2 || first > 0xc5 || at + 1 >= text.bytes) return false;
            code = (uint32_t)(first & 0x1f) << 6 | ((uint8_t)text.data[at + 1] & 0x3f);
            length = 2;
        }
        int byte = unmap_character(code);
        if (byte < 0) return false;
        out[count++] = (char)byte;
        at += length;
    }
    *out_bytes = count;
    return true;
}

static qe_status merge_part(const qe_tokenizer *tokenizer, size_t rank, const char *role, qe_text text, int32_t *id,
                            qe_error *err) {
    *id = qe_vocab_find(&tokenizer->vocab, text.data, text.bytes);
    if (*id >= 0) return QE_OK;
    char shown[128];
    return qe_error_at(err, QE_E_MISSING, tokenizer->where, -1, "merge %zu: its %s \"%s\" is not in the vocabulary",
                       rank, role, qe_escape(text.data, text.bytes, shown, sizeof shown));
}

static qe_status create_joints(qe_tokenizer *tokenizer, qe_error *err) {
    tokenizer->joints = calloc(65536 / 64, sizeof *tokenizer->joints);
    if (!tokenizer->joints) return qe_error_at(err, QE_E_NOMEM, tokenizer->where, -1, "no memory for a tokenizer");
    for (int32_t id = 0; id < tokenizer->vocab.count; id++) {
        qe_text text = qe_vocab_text(&tokenizer->vocab, id);
        for (size_t i = 1; i < text.bytes; i++) {
            unsigned joint = (unsigned)(uint8_t)text.data[i - 1] << 8 | (uint8_t)text.data[i];
            tokenizer->joints[joint / 64] |= 1ull << joint % 64;
        }
    }
    return QE_OK;
}

qe_status qe_bpe_create(qe_tokenizer *tokenizer, const qe_text *lefts, const qe_text *rights, size_t merges_count,
                        qe_error *err) {
    for (int byte = 0; byte < 256; byte++)
        tokenizer->byte_ids[byte] = qe_vocab_find(&tokenizer->vocab, &(char){(char)byte}, 1);
    QE_TRY(create_joints(tokenizer, err));
    QE_TRY(qe_map64_init(&tokenizer->pairs, merges_count, err));
    for (size_t rank = 0; rank < merges_count; rank++) {
        int32_t left, right, merged = -1;
        QE_TRY(merge_part(tokenizer, rank, "left half", lefts[rank], &left, err));
        QE_TRY(merge_part(tokenizer, rank, "right half", rights[rank], &right, err));
        /* Halves lie side by side in a buffer of the caller only by chance: compare by way of a joined copy. */
        char   joined[1024];
        size_t bytes = lefts[rank].bytes + rights[rank].bytes;
        if (bytes <= tokenizer->vocab.max_bytes && bytes <= sizeof joined) {
            memcpy(joined, lefts[rank].data, lefts[rank].bytes);
            memcpy(joined + lefts[rank].bytes, rights[rank].data, rights[rank].bytes);
            merged = qe_vocab_find(&tokenizer->vocab, joined, bytes);
        } else if (bytes <= tokenizer->vocab.max_bytes) {
            return qe_error_at(err, QE_E_LIMIT, tokenizer->where, -1, "merge %zu gives %zu bytes, at most %zu", rank,
                               bytes, sizeof joined);
        }
        if (merged < 0)
            return qe_error_at(err, QE_E_MISSING, tokenizer->where, -1,
                               "merge %zu: the result of %zu bytes is not in the vocabulary", rank, bytes);
        if (!qe_map64_put(&tokenizer->pairs, (uint64_t)left << 32 | (uint32_t)right,
                          (uint64_t)rank << 32 | (uint32_t)merged))
            return qe_error_at(err, QE_E_DUPLICATE, tokenizer->where, -1, "merge %zu repeats an earlier one", rank);
    }
    return QE_OK;
}

static bool find_merge(const qe_tokenizer *tokenizer, const char *text, const qe_symbol *left, const qe_symbol *right,
                       int32_t *merged, uint32_t *priority) {
    uint64_t found;
    (void)text;
    if (left->id < 0 || right->id < 0) return false;
    if (!qe_map64_get(&tokenizer->pairs, (uint64_t)left->id << 32 | (uint32_t)right->id, &found)) return false;
    *merged = (int32_t)(uint32_t)found;
    *priority = (uint32_t)(found >> 32);
    return true;
}

static qe_status encode_stretch(qe_encoder *encoder, const char *text) {
    const qe_tokenizer *tokenizer = encoder->tokenizer;
    QE_TRY(qe_merge_run(encoder, text, find_merge));
    for (uint32_t at = 0; at != QE_NO_SYMBOL; at = encoder->symbols[at].next) {
        int32_t id = encoder->symbols[at].id;
        if (id < 0) id = tokenizer->special[QE_SPECIAL_UNK];
        if (id < 0)
            return qe_error_at(encoder->err, QE_E_MISSING, tokenizer->where, -1,
                               "the vocabulary has no token for byte 0x%02X and no unknown token",
                               (uint8_t)text[encoder->symbols[at].start]);
        QE_TRY(qe_encoder_emit(encoder, id));
    }
    encoder->symbols_count = 0;
    return QE_OK;
}

qe_status qe_bpe_piece(qe_encoder *encoder, const char *text, size_t bytes) {
    const qe_tokenizer *tokenizer = encoder->tokenizer;
    if (bytes == 1 || tokenizer->ignore_merges) {
        int32_t id = qe_vocab_find(&tokenizer->vocab, text, bytes);
        if (id >= 0) return qe_encoder_emit(encoder, id);
    }
    encoder->symbols_count = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (encoder->symbols_count) {
            unsigned joint = (unsigned)(uint8_t)text[i - 1] << 8 | (uint8_t)text[i];
            if (!(tokenizer->joints[joint / 64] >> joint % 64 & 1)) QE_TRY(encode_stretch(encoder, text));
        }
        QE_TRY(qe_encoder_symbol(encoder, (uint32_t)i, 1, tokenizer->byte_ids[(uint8_t)text[i]]));
    }
    return encoder->symbols_count ? encode_stretch(encoder, text) : QE_OK;
}

static qe_status encode_valid(qe_encoder *encoder, const char *text, size_t bytes) {
    if (encoder->tokenizer->nfc) {
        QE_TRY(qe_normal_nfc(encoder, text, bytes, &bytes));
        text = encoder->text;
    }
    return qe_pattern_split(encoder, 0, text, bytes);
}

/* Patterns and normalization see valid UTF-8 only; a byte that is none of it is a piece of its own. */
qe_status qe_bpe_encode(qe_encoder *encoder, const char *text, size_t bytes) {
    bool ascii_space = bytes && text[0] == ' ';
    if (encoder->tokenizer->add_space_prefix && bytes && !ascii_space) {
        QE_TRY(qe_encoder_text(encoder, bytes + 1));
        encoder->text[0] = ' ';
        memcpy(encoder->text + 1, text, bytes);
        text = encoder->text;
        bytes++;
    }
    size_t begin = 0;
    for (size_t at = 0; at < bytes;) {
        size_t length = qe_utf8_length(text + at, bytes - at);
        if (length) {
            at += length;
            continue;
        }
        if (at > begin) QE_TRY(encode_valid(encoder, text + begin, at - begin));
        QE_TRY(qe_bpe_piece(encoder, text + at, 1));
        begin = ++at;
    }
    return bytes > begin ? encode_valid(encoder, text + begin, bytes - begin) : QE_OK;
}
