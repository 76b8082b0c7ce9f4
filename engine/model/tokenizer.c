/* engine/model/tokenizer.c -- a tokenizer from what a checkpoint stores, and questions about it. */
#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_parts.h"

/* Tokens that end a turn or a text in the models of the field; those the vocabulary has as control tokens count. */
static const char *const end_texts[] = {"<end_of_turn>", "<|eot_id|>",    "<|end_of_text|>", "<|im_end|>",
                                        "<|endoftext|>", "<|eom_id|>",    "<|end|>",         "</s>", "<eos>"};

qe_status qe_options_copy(const void *options, size_t size, void *out, const char *name, qe_error *err) {
    uint32_t given;
    memset(out, 0, size);
    if (!options) return QE_OK;
    memcpy(&given, options, sizeof given);
    if (given < sizeof given || given > 65536)
        return qe_error_set(err, QE_E_ARGUMENT, "%s.struct_size is %u", name, given);
    for (size_t i = size; i < given; i++)
        if (((const uint8_t *)options)[i])
            return qe_error_set(err, QE_E_ARGUMENT, "%s has fields this version does not know", name);
    memcpy(out, options, given < size ? given : size);
    return QE_OK;
}

qe_status qe_tokenizer_new(qe_tokenizer_kind kind, const char *where, const qe_tokenizer_options *options,
                           qe_tokenizer **out, qe_error *err) {
    qe_tokenizer_options limits;
    QE_TRY(qe_options_copy(options, sizeof limits, &limits, "qe_tokenizer_options", err));
    if (!limits.max_tokens) limits.max_tokens = 4194304;
    if (!limits.max_json_bytes) limits.max_json_bytes = 256u << 20;
    if (!limits.max_text_bytes) limits.max_text_bytes = 1u << 30;
    if (!limits.max_token_bytes) limits.max_token_bytes = 64 << 10;
    if (!limits.max_pattern_bytes) limits.max_pattern_bytes = 16 << 10;
    if (limits.max_tokens > INT32_MAX / 2 || limits.max_text_bytes >= UINT32_MAX || limits.max_token_bytes > 1u << 30)
        return qe_error_set(err, QE_E_ARGUMENT, "qe_tokenizer_options: a limit is larger than the library can hold");
    qe_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer) return qe_error_set(err, QE_E_NOMEM, "no memory for a tokenizer");
    tokenizer->kind = kind;
    tokenizer->limits = limits;
    strncpy(tokenizer->where, where ? where : "tokenizer", sizeof tokenizer->where - 1);
    for (int i = 0; i < 256; i++) tokenizer->byte_ids[i] = -1;
    for (int i = 0; i < 4; i++) tokenizer->special[i] = -1;
    *out = tokenizer;
    return QE_OK;
}

void qe_tokenizer_close(qe_tokenizer *tokenizer) {
    if (!tokenizer) return;
    qe_vocab_free(&tokenizer->vocab);
    qe_trie_free(&tokenizer->specials);
    qe_map64_free(&tokenizer->pairs);
    for (int32_t i = 0; i < tokenizer->steps_count; i++) qe_pattern_free(tokenizer->steps[i]);
    free(tokenizer->strip);
    free(tokenizer->priorities);
    free(tokenizer->joints);
    free(tokenizer);
}

static bool is_special(uint8_t type) {
    return type == QE_TOKEN_CONTROL || type == QE_TOKEN_USER_DEFINED || type == QE_TOKEN_UNKNOWN;
}

static qe_status special_set(qe_tokenizer *tokenizer, int which, int64_t id, qe_error *err) {
    static const char *const names[4] = {"bos", "eos", "pad", "unk"};
    if (id == -1) return QE_OK;
    if (id < 0 || id >= tokenizer->vocab.count || tokenizer->vocab.types[id] == QE_TOKEN_HOLE)
        return qe_error_at(err, QE_E_RANGE, tokenizer->where, -1, "%s token id %lld, the vocabulary has %d", names[which],
                           (long long)id, tokenizer->vocab.count);
    tokenizer->special[which] = (int32_t)id;
    return QE_OK;
}

static void end_add(qe_tokenizer *tokenizer, int32_t id) {
    if (id < 0 || qe_tokenizer_is_end(tokenizer, id)) return;
    if (tokenizer->ends_count < (int32_t)(sizeof tokenizer->ends / sizeof tokenizer->ends[0]))
        tokenizer->ends[tokenizer->ends_count++] = id;
}

qe_status qe_tokenizer_finish(qe_tokenizer *tokenizer, const int64_t special[4], qe_error *err) {
    const qe_vocab *vocab = &tokenizer->vocab;
    size_t total = 0;
    for (int i = 0; i < 4; i++) QE_TRY(special_set(tokenizer, i, special[i], err));
    for (int32_t id = 0; id < vocab->count; id++)
        if (is_special(vocab->types[id])) total += qe_vocab_text(vocab, id).bytes;
    QE_TRY(qe_trie_init(&tokenizer->specials, total, err));
    for (int32_t id = 0; id < vocab->count; id++) {
        qe_text text = qe_vocab_text(vocab, id);
        if (!is_special(vocab->types[id]) || qe_trie_put(&tokenizer->specials, text, id)) continue;
        char shown[128];
        return qe_error_at(err, QE_E_DUPLICATE, tokenizer->where, -1, "special token %d repeats \"%s\"", id,
                           qe_escape(text.data, text.bytes, shown, sizeof shown));
    }
    end_add(tokenizer, tokenizer->special[QE_SPECIAL_EOS]);
    for (size_t i = 0; i < sizeof end_texts / sizeof end_texts[0]; i++) {
        int32_t id = qe_tokenizer_find(tokenizer, end_texts[i], strlen(end_texts[i]));
        if (id >= 0 && vocab->types[id] == QE_TOKEN_CONTROL) end_add(tokenizer, id);
    }
    return qe_tokenizer_set_chat_template(tokenizer, NULL, 0, err);
}

qe_status qe_tokenizer_set_special(qe_tokenizer *tokenizer, int64_t bos, int64_t eos, int64_t pad, qe_error *err) {
    QE_TRY(special_set(tokenizer, QE_SPECIAL_BOS, bos, err));
    QE_TRY(special_set(tokenizer, QE_SPECIAL_EOS, eos, err));
    QE_TRY(special_set(tokenizer, QE_SPECIAL_PAD, pad, err));
    end_add(tokenizer, tokenizer->special[QE_SPECIAL_EOS]);
    return QE_OK;
}

static bool valid_utf8(qe_text text) {
    for (size_t at = 0, length; at < text.bytes; at += length)
        if (!(length = qe_utf8_length(text.data + at, text.bytes - at))) return false;
    return true;
}

static qe_status source_check(const qe_tokenizer *tokenizer, const qe_tokenizer_source *source, qe_error *err) {
    const char *where = tokenizer->where;
    size_t      count = source->tokens_count;
    if (count == 0) return qe_error_at(err, QE_E_RANGE, where, -1, "the vocabulary is empty");
    if (count > tokenizer->limits.max_tokens || source->merges_count > tokenizer->limits.max_tokens)
        return qe_error_at(err, QE_E_LIMIT, where, -1, "%zu tokens and %zu merges, at most %u each", count,
                           source->merges_count, tokenizer->limits.max_tokens);
    bool scored = source->kind == QE_TOKENIZER_SCORE;
    if ((scored && source->scores_count != count) || (source->types_count && source->types_count != count))
        return qe_error_at(err, QE_E_MISMATCH, where, -1, "%zu tokens, %zu scores, %zu token types", count,
                           source->scores_count, source->types_count);
    for (size_t id = 0; id < count; id++) {
        qe_text text = {source->texts[id], source->texts_bytes[id]};
        int32_t type = source->types_count ? source->types[id] : QE_TOKEN_NORMAL;
        if (text.bytes == 0) return qe_error_at(err, QE_E_RANGE, where, -1, "token %zu has no text", id);
        if (text.bytes > tokenizer->limits.max_token_bytes)
            return qe_error_at(err, QE_E_LIMIT, where, -1, "token %zu has %zu bytes, at most %u", id, text.bytes,
                               tokenizer->limits.max_token_bytes);
        if (type < QE_TOKEN_NORMAL || type > QE_TOKEN_BYTE)
            return qe_error_at(err, QE_E_RANGE, where, -1, "token %zu has type %d, expected 1 to 6", id, type);
        if (scored && (memchr(text.data, 0, text.bytes) || !valid_utf8(text)))
            return qe_error_at(err, QE_E_UTF8, where, -1, "token %zu is not UTF-8 text", id);
    }
    return QE_OK;
}

/* What building needs for a moment: texts by id, and for BPE their plain bytes and the merges' halves. */
typedef struct scratch {
    qe_text *texts, *lefts, *rights;
    uint8_t *types;
    bool    *mapped;
    char    *plain;
} scratch;

static qe_status scratch_merges(const qe_tokenizer_source *source, scratch *s, char *plain, const char *where,
                                uint32_t max_bytes, qe_error *err) {
    for (size_t i = 0; i < source->merges_count; i++) {
        const char *line = source->merges[i];
        size_t      bytes = source->merges_bytes[i];
        const char *space = bytes > 1 ? memchr(line + 1, ' ', bytes - 1) : NULL;
        if (bytes > 2 * (size_t)max_bytes)
            return qe_error_at(err, QE_E_LIMIT, where, -1, "merge %zu has %zu bytes", i, bytes);
        if (!space || space + 1 == line + bytes || line[0] == ' ' || memchr(space + 1, ' ', (size_t)(line + bytes - space - 1)))
            return qe_error_at(err, QE_E_RANGE, where, -1, "merge %zu is not two parts with a space between", i);
        qe_text halves[2] = {{line, (size_t)(space - line)}, {space + 1, (size_t)(line + bytes - space - 1)}};
        for (int h = 0; h < 2; h++) {
            size_t out = 0;
            if (!qe_bpe_unmap(halves[h], plain, &out))
                return qe_error_at(err, QE_E_MISSING, where, -1, "merge %zu is not in the byte alphabet", i);
            *(h ? &s->rights[i] : &s->lefts[i]) = (qe_text){plain, out};
            plain += out;
        }
    }
    return QE_OK;
}

static qe_status scratch_fill(const qe_tokenizer *tokenizer, const qe_tokenizer_source *source, scratch *s,
                              qe_error *err) {
    size_t count = source->tokens_count, merges = source->merges_count, total = 1;
    bool   bpe = source->kind == QE_TOKENIZER_BPE;
    for (size_t i = 0; i < count; i++) total += source->texts_bytes[i];
    for (size_t i = 0; i < merges; i++) total += source->merges_bytes[i];
    s->texts = calloc(count, sizeof *s->texts);
    s->types = calloc(count, 1);
    s->mapped = calloc(count, sizeof *s->mapped);
    s->plain = malloc(bpe ? total : 1);
    s->lefts = calloc(merges + 1, sizeof *s->lefts);
    s->rights = calloc(merges + 1, sizeof *s->rights);
    if (!s->texts || !s->types || !s->mapped || !s->plain || !s->lefts || !s->rights)
        return qe_error_at(err, QE_E_NOMEM, tokenizer->where, -1, "no memory for %zu tokens", count);
    char *plain = s->plain;
    for (size_t id = 0; id < count; id++) {
        s->texts[id] = (qe_text){source->texts[id], source->texts_bytes[id]};
        s->types[id] = (uint8_t)(source->types_count ? source->types[id] : QE_TOKEN_NORMAL);
        s->mapped[id] = bpe ? s->types[id] == QE_TOKEN_NORMAL
                            : s->types[id] != QE_TOKEN_CONTROL && s->types[id] != QE_TOKEN_UNKNOWN &&
                                  s->types[id] != QE_TOKEN_BYTE;
        size_t out;
        if (!bpe || !s->mapped[id]) continue;
        s->mapped[id] = qe_bpe_unmap(s->texts[id], plain, &out);
        if (s->mapped[id]) s->texts[id] = (qe_text){plain, out}, plain += out;
    }
    return bpe ? scratch_merges(source, s, plain, tokenizer->where, tokenizer->limits.max_token_bytes, err) : QE_OK;
}

static qe_status build(qe_tokenizer *tokenizer, const qe_tokenizer_source *source, scratch *s, qe_error *err) {
    QE_TRY(source_check(tokenizer, source, err));
    QE_TRY(scratch_fill(tokenizer, source, s, err));
    QE_TRY(qe_vocab_build(&tokenizer->vocab, s->texts, s->types, s->mapped, (int32_t)source->tokens_count,
                          tokenizer->where, err));
    QE_TRY(qe_tokenizer_finish(tokenizer, (int64_t[4]){source->bos, source->eos, source->pad, source->unk}, err));
    tokenizer->add_bos = source->add_bos && tokenizer->special[QE_SPECIAL_BOS] >= 0;
    tokenizer->add_space_prefix = source->add_space_prefix;
    if (source->chat_template)
        QE_TRY(qe_tokenizer_set_chat_template(tokenizer, source->chat_template, source->chat_template_bytes, err));
    if (source->kind == QE_TOKENIZER_SCORE) return qe_score_create(tokenizer, source->scores, err);
    const char *steps[QE_PATTERN_STEPS];
    const char *name = source->pre ? source->pre : "gpt-2";
    int         count = qe_pattern_known(name, steps);
    char        shown[64];
    if (count == 0)
        return qe_error_at(err, QE_E_UNSUPPORTED, tokenizer->where, -1, "pre-tokenizer \"%s\" is not known",
                           qe_escape(name, strlen(name), shown, sizeof shown));
    for (int i = 0; i < count; i++) {
        QE_TRY(qe_pattern_compile(steps[i], strlen(steps[i]), false, tokenizer->where, &tokenizer->steps[i], err));
        tokenizer->steps_count++;
    }
    tokenizer->nfc = strcmp(name, "qwen2") == 0;
    tokenizer->ignore_merges = strcmp(name, "llama-bpe") == 0 || strcmp(name, "llama3") == 0;
    return qe_bpe_create(tokenizer, s->lefts, s->rights, source->merges_count, err);
}

qe_status qe_tokenizer_create(const qe_tokenizer_source *source, const qe_tokenizer_options *options,
                              qe_tokenizer **out, qe_error *err) {
    if (!source || !out) return qe_error_set(err, QE_E_ARGUMENT, "qe_tokenizer_create: NULL argument");
    *out = NULL;
    qe_tokenizer *tokenizer;
    scratch       s = {0};
    QE_TRY(qe_tokenizer_new(source->kind, source->where, options, &tokenizer, err));
    qe_status status = build(tokenizer, source, &s, err);
    free(s.texts), free(s.types), free(s.mapped), free(s.plain), free(s.lefts), free(s.rights);
    if (status)
        qe_tokenizer_close(tokenizer);
    else
        *out = tokenizer;
    return status;
}

int32_t qe_tokenizer_vocab_size(const qe_tokenizer *tokenizer) { return tokenizer ? tokenizer->vocab.count : 0; }

int32_t qe_tokenizer_special(const qe_tokenizer *tokenizer, qe_special which) {
    return tokenizer && (unsigned)which < 4 ? tokenizer->special[which] : -1;
}

int qe_tokenizer_is_end(const qe_tokenizer *tokenizer, int32_t id) {
    for (int32_t i = 0; tokenizer && i < tokenizer->ends_count; i++)
        if (tokenizer->ends[i] == id) return 1;
    return 0;
}

int32_t qe_tokenizer_find(const qe_tokenizer *tokenizer, const char *text, size_t text_bytes) {
    if (!tokenizer || !text) return -1;
    uint64_t node = 0;
    size_t   at = 0;
    while (at < text_bytes && qe_map64_get(&tokenizer->specials.edges, node << 8 | (uint8_t)text[at], &node)) at++;
    if (at == text_bytes && tokenizer->specials.ids[node] >= 0) return tokenizer->specials.ids[node];
    return qe_vocab_find(&tokenizer->vocab, text, text_bytes);
}
