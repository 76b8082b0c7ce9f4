/* engine/model/tokenizer_json.c -- Hugging Face tokenizer.json: byte-level BPE. What it cannot run it refuses by name. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "model/tokenizer_parts.h"

enum { NESTING_MAX = 8 };

/* What building needs for a moment. Texts point into the document or into `plain`. */
typedef struct reading {
    qe_tokenizer *tokenizer;
    qe_error     *err;
    qe_text      *texts, *lefts, *rights;
    uint8_t      *types;
    bool         *mapped;
    char         *plain, *plain_end;
    int32_t       count;           /* largest id + 1 */
    size_t        merges_count;
    int64_t       special[4];
    bool          byte_level;
} reading;

#define FAIL(status, ...) qe_error_at(r->err, status, r->tokenizer->where, -1, __VA_ARGS__)

static qe_status unsupported(reading *r, const char *part, const char *kind) {
    char shown[64];
    return FAIL(QE_E_UNSUPPORTED, "%s \"%s\" is not known", part, qe_escape(kind, strlen(kind), shown, sizeof shown));
}

static qe_status check_id(reading *r, const char *text, const json_t *value, int64_t *id) {
    char shown[96];
    qe_escape(text, strlen(text), shown, sizeof shown);
    if (!json_is_integer(value)) return FAIL(QE_E_TYPE, "the id of token \"%s\" is not an integer", shown);
    *id = json_integer_value(value);
    if (*id < 0 || *id >= r->tokenizer->limits.max_tokens)
        return FAIL(QE_E_RANGE, "the id of token \"%s\" is %lld, expected 0 to %u", shown, (long long)*id,
                    r->tokenizer->limits.max_tokens - 1);
    if (*id >= r->count) r->count = (int32_t)*id + 1;
    return QE_OK;
}

static qe_status check_text(reading *r, const char *text) {
    size_t bytes = strlen(text);
    if (bytes == 0) return FAIL(QE_E_RANGE, "a token has no text");
    if (bytes > r->tokenizer->limits.max_token_bytes)
        return FAIL(QE_E_LIMIT, "a token has %zu bytes, at most %u", bytes, r->tokenizer->limits.max_token_bytes);
    return QE_OK;
}

/* Ids and texts are checked and the space they need is known before anything is sized by them. */
static qe_status measure(reading *r, const json_t *vocab, const json_t *added, const json_t *merges) {
    const char *text;
    json_t     *value;
    size_t      index, total = 1;
    int64_t     id;
    json_object_foreach((json_t *)vocab, text, value) {
        QE_TRY(check_text(r, text));
        QE_TRY(check_id(r, text, value, &id));
        total += strlen(text);
    }
    json_array_foreach(added, index, value) {
        if (!json_is_object(value)) return FAIL(QE_E_TYPE, "added token %zu is not an object", index);
        QE_TRY(qe_json_string(value, "content", &text, r->err));
        QE_TRY(check_text(r, text));
        QE_TRY(check_id(r, text, json_object_get(value, "id"), &id));
    }
    if (r->count == 0) return FAIL(QE_E_RANGE, "the vocabulary is empty");
    r->merges_count = json_array_size(merges);
    if (r->merges_count > r->tokenizer->limits.max_tokens || json_object_size(vocab) > r->tokenizer->limits.max_tokens)
        return FAIL(QE_E_LIMIT, "%zu tokens and %zu merges, at most %u each", json_object_size(vocab), r->merges_count,
                    r->tokenizer->limits.max_tokens);
    json_array_foreach(merges, index, value) {
        size_t bytes = json_string_length(value);
        for (size_t i = 0; i < json_array_size(value); i++) bytes += json_string_length(json_array_get(value, i));
        if (bytes > 2 * (size_t)r->tokenizer->limits.max_token_bytes)
            return FAIL(QE_E_LIMIT, "merge %zu has %zu bytes", index, bytes);
        total += bytes;
    }
    r->texts = calloc((size_t)r->count, sizeof *r->texts);
    r->types = calloc((size_t)r->count, 1);
    r->mapped = calloc((size_t)r->count, sizeof *r->mapped);
    r->lefts = calloc(r->merges_count + 1, sizeof *r->lefts);
    r->rights = calloc(r->merges_count + 1, sizeof *r->rights);
    r->plain = r->plain_end = malloc(total);
    if (!r->texts || !r->types || !r->mapped || !r->lefts || !r->rights || !r->plain)
        return FAIL(QE_E_NOMEM, "no memory for %d tokens", r->count);
    return QE_OK;
}

static qe_status read_vocab(reading *r, const json_t *vocab) {
    const char *text;
    json_t     *value;
    json_object_foreach((json_t *)vocab, text, value) {
        int64_t id = json_integer_value(value);
        size_t  out;
        if (r->types[id]) return FAIL(QE_E_DUPLICATE, "two tokens have the id %lld", (long long)id);
        r->types[id] = QE_TOKEN_NORMAL;
        r->texts[id] = (qe_text){text, strlen(text)};
        r->mapped[id] = qe_bpe_unmap(r->texts[id], r->plain_end, &out);
        if (r->mapped[id]) r->texts[id] = (qe_text){r->plain_end, out}, r->plain_end += out;
    }
    return QE_OK;
}

static qe_status read_added(reading *r, const json_t *vocab, const json_t *added) {
    size_t      index;
    json_t     *token;
    const char *text;
    json_array_foreach(added, index, token) {
        bool special, left, right, single;
        QE_TRY(qe_json_string(token, "content", &text, r->err));
        QE_TRY(qe_json_bool_or(token, "special", false, &special, r->err));
        QE_TRY(qe_json_bool_or(token, "lstrip", false, &left, r->err));
        QE_TRY(qe_json_bool_or(token, "rstrip", false, &right, r->err));
        QE_TRY(qe_json_bool_or(token, "single_word", false, &single, r->err));
        int64_t       id = json_integer_value(json_object_get(token, "id"));
        const json_t *other = json_object_get(vocab, text);
        bool          same = other && json_integer_value(other) == id;
        if ((r->types[id] && !same) || (other && !same) || r->types[id] == QE_TOKEN_CONTROL ||
            r->types[id] == QE_TOKEN_USER_DEFINED)
            return FAIL(QE_E_DUPLICATE, "added token %zu: id %lld or its text is taken", index, (long long)id);
        if (single) return FAIL(QE_E_UNSUPPORTED, "added token %zu: single_word is not supported", index);
        r->types[id] = special ? QE_TOKEN_CONTROL : QE_TOKEN_USER_DEFINED;
        r->texts[id] = (qe_text){text, strlen(text)};
        r->mapped[id] = false;
        if (!left && !right) continue;
        if (!r->tokenizer->strip) r->tokenizer->strip = calloc((size_t)r->count, 1);
        if (!r->tokenizer->strip) return FAIL(QE_E_NOMEM, "no memory for %d tokens", r->count);
        r->tokenizer->strip[id] = (uint8_t)((left ? QE_STRIP_LEFT : 0) | (right ? QE_STRIP_RIGHT : 0));
    }
    return QE_OK;
}

/* ["a", "b"] or "a b". */
static qe_status read_merge(reading *r, size_t rank, const json_t *merge) {
    qe_text halves[2];
    if (json_is_array(merge)) {
        if (json_array_size(merge) != 2) return FAIL(QE_E_RANGE, "merge %zu has %zu parts", rank, json_array_size(merge));
        for (size_t h = 0; h < 2; h++) {
            const json_t *half = json_array_get(merge, h);
            if (!json_is_string(half)) return FAIL(QE_E_TYPE, "merge %zu: part %zu is not text", rank, h);
            halves[h] = (qe_text){json_string_value(half), json_string_length(half)};
        }
    } else if (json_is_string(merge)) {
        const char *line = json_string_value(merge), *space = strchr(line, ' ');
        if (!space || strchr(space + 1, ' ')) return FAIL(QE_E_RANGE, "merge %zu is not two parts", rank);
        halves[0] = (qe_text){line, (size_t)(space - line)};
        halves[1] = (qe_text){space + 1, strlen(space + 1)};
    } else {
        return FAIL(QE_E_TYPE, "merge %zu is neither text nor a pair", rank);
    }
    for (int h = 0; h < 2; h++) {
        size_t out;
        if (halves[h].bytes == 0) return FAIL(QE_E_RANGE, "merge %zu has an empty part", rank);
        if (!qe_bpe_unmap(halves[h], r->plain_end, &out))
            return FAIL(QE_E_MISSING, "merge %zu has a character outside the byte alphabet", rank);
        *(h ? &r->rights[rank] : &r->lefts[rank]) = (qe_text){r->plain_end, out};
        r->plain_end += out;
    }
    return QE_OK;
}

static qe_status read_model(reading *r, const json_t *root) {
    json_t     *model, *vocab, *merges, *added = json_object_get(root, "added_tokens");
    const char *type, *prefix, *suffix, *unk;
    bool        fallback;
    QE_TRY(qe_json_object(root, "model", &model, r->err));
    QE_TRY(qe_json_string_or(model, "type", "BPE", &type, r->err));
    if (strcmp(type, "BPE") != 0) return unsupported(r, "tokenizer model", type);
    QE_TRY(qe_json_object(model, "vocab", &vocab, r->err));
    QE_TRY(qe_json_array(model, "merges", &merges, r->err));
    QE_TRY(qe_json_string_or(model, "continuing_subword_prefix", "", &prefix, r->err));
    QE_TRY(qe_json_string_or(model, "end_of_word_suffix", "", &suffix, r->err));
    QE_TRY(qe_json_string_or(model, "unk_token", NULL, &unk, r->err));
    QE_TRY(qe_json_bool_or(model, "byte_fallback", false, &fallback, r->err));
    QE_TRY(qe_json_bool_or(model, "ignore_merges", false, &r->tokenizer->ignore_merges, r->err));
    if (*prefix) return unsupported(r, "continuing_subword_prefix", prefix);
    if (*suffix) return unsupported(r, "end_of_word_suffix", suffix);
    if (fallback) return unsupported(r, "model option", "byte_fallback");
    if (qe_json_has(root, "added_tokens") && !json_is_array(added)) return FAIL(QE_E_TYPE, "added_tokens is not a list");
    QE_TRY(measure(r, vocab, added, merges));
    QE_TRY(read_vocab(r, vocab));
    QE_TRY(read_added(r, vocab, added));
    for (size_t rank = 0; rank < r->merges_count; rank++) QE_TRY(read_merge(r, rank, json_array_get(merges, rank)));
    if (unk) {
        for (int32_t id = 0; id < r->count && r->special[QE_SPECIAL_UNK] < 0; id++)
            if (r->texts[id].bytes == strlen(unk) && memcmp(r->texts[id].data, unk, strlen(unk)) == 0)
                r->special[QE_SPECIAL_UNK] = id;
        if (r->special[QE_SPECIAL_UNK] < 0) return FAIL(QE_E_MISSING, "unk_token is not in the vocabulary");
    }
    return QE_OK;
}

static qe_status read_normalizer(reading *r, const json_t *node, int depth) {
    const char *type;
    json_t     *list, *item;
    size_t      index;
    if (!node || json_is_null(node)) return QE_OK;
    if (depth > NESTING_MAX) return FAIL(QE_E_DEPTH, "normalizers nested more than %d deep", NESTING_MAX);
    if (!json_is_object(node)) return FAIL(QE_E_TYPE, "a normalizer is not an object");
    QE_TRY(qe_json_string(node, "type", &type, r->err));
    if (strcmp(type, "NFC") == 0) return r->tokenizer->nfc = true, QE_OK;
    if (strcmp(type, "Sequence") != 0) return unsupported(r, "normalizer", type);
    QE_TRY(qe_json_array(node, "normalizers", &list, r->err));
    if (json_array_size(list) > 64) return FAIL(QE_E_LIMIT, "%zu normalizers, at most 64", json_array_size(list));
    json_array_foreach(list, index, item) QE_TRY(read_normalizer(r, item, depth + 1));
    return QE_OK;
}

static qe_status add_step(reading *r, const char *text, bool literal) {
    qe_tokenizer *t = r->tokenizer;
    if (t->steps_count == QE_PATTERN_STEPS) return FAIL(QE_E_LIMIT, "more than %d pre-tokenizer steps", QE_PATTERN_STEPS);
    if (strlen(text) > t->limits.max_pattern_bytes)
        return FAIL(QE_E_LIMIT, "a pattern has %zu bytes, at most %u", strlen(text), t->limits.max_pattern_bytes);
    QE_TRY(qe_pattern_compile(text, strlen(text), literal, t->where, &t->steps[t->steps_count], r->err));
    t->steps_count++;
    return QE_OK;
}

static qe_status read_split(reading *r, const json_t *node) {
    json_t     *pattern;
    const char *behavior, *text;
    bool        invert;
    QE_TRY(qe_json_object(node, "pattern", &pattern, r->err));
    QE_TRY(qe_json_string(node, "behavior", &behavior, r->err));
    QE_TRY(qe_json_bool_or(node, "invert", false, &invert, r->err));
    /* With matches and gaps both kept as pieces, inverting changes nothing. */
    if (strcmp(behavior, "Isolated") != 0 && !(invert && strcmp(behavior, "Removed") == 0))
        return unsupported(r, "split behavior", behavior);
    bool literal = !qe_json_has(pattern, "Regex");
    QE_TRY(qe_json_string(pattern, literal ? "String" : "Regex", &text, r->err));
    return add_step(r, text, literal);
}

static qe_status read_pre(reading *r, const json_t *node, int depth) {
    const char *type;
    json_t     *list, *item;
    size_t      index;
    bool        flag;
    if (!node || json_is_null(node)) return QE_OK;
    if (depth > NESTING_MAX) return FAIL(QE_E_DEPTH, "pre-tokenizers nested more than %d deep", NESTING_MAX);
    if (!json_is_object(node)) return FAIL(QE_E_TYPE, "a pre-tokenizer is not an object");
    QE_TRY(qe_json_string(node, "type", &type, r->err));
    if (r->byte_level) return FAIL(QE_E_UNSUPPORTED, "a pre-tokenizer after ByteLevel: \"%s\"", type);
    if (strcmp(type, "Sequence") == 0) {
        QE_TRY(qe_json_array(node, "pretokenizers", &list, r->err));
        if (json_array_size(list) > 64) return FAIL(QE_E_LIMIT, "%zu pre-tokenizers, at most 64", json_array_size(list));
        json_array_foreach(list, index, item) QE_TRY(read_pre(r, item, depth + 1));
        return QE_OK;
    }
    if (strcmp(type, "Split") == 0) return read_split(r, node);
    if (strcmp(type, "Digits") == 0) {
        QE_TRY(qe_json_bool_or(node, "individual_digits", false, &flag, r->err));
        return add_step(r, flag ? "\\p{N}" : "\\p{N}+", false);
    }
    if (strcmp(type, "ByteLevel") != 0) return unsupported(r, "pre-tokenizer", type);
    r->byte_level = true;
    QE_TRY(qe_json_bool_or(node, "add_prefix_space", true, &r->tokenizer->add_space_prefix, r->err));
    if (r->tokenizer->add_space_prefix && (r->tokenizer->steps_count || r->tokenizer->nfc))
        return FAIL(QE_E_UNSUPPORTED, "add_prefix_space together with other steps");
    QE_TRY(qe_json_bool_or(node, "use_regex", true, &flag, r->err));
    return flag ? add_step(r, qe_pattern_gpt2, false) : QE_OK;
}

/* BOS is what a template puts before the text. */
static qe_status read_post(reading *r, const json_t *node, int depth) {
    const char *type, *name;
    json_t     *list, *item;
    size_t      index;
    bool        after = false;
    if (!node || json_is_null(node)) return QE_OK;
    if (depth > NESTING_MAX) return FAIL(QE_E_DEPTH, "post-processors nested more than %d deep", NESTING_MAX);
    if (!json_is_object(node)) return FAIL(QE_E_TYPE, "a post-processor is not an object");
    QE_TRY(qe_json_string(node, "type", &type, r->err));
    if (strcmp(type, "ByteLevel") == 0) return QE_OK;
    bool sequence = strcmp(type, "Sequence") == 0;
    if (!sequence && strcmp(type, "TemplateProcessing") != 0) return unsupported(r, "post-processor", type);
    QE_TRY(qe_json_array(node, sequence ? "processors" : "single", &list, r->err));
    if (json_array_size(list) > 64) return FAIL(QE_E_LIMIT, "%zu post-processor steps, at most 64", json_array_size(list));
    json_array_foreach(list, index, item) {
        if (sequence) {
            QE_TRY(read_post(r, item, depth + 1));
        } else if (qe_json_has(item, "SpecialToken")) {
            if (after || r->special[QE_SPECIAL_BOS] >= 0)
                return FAIL(QE_E_UNSUPPORTED, "a template that adds more than one token before the text");
            QE_TRY(qe_json_string(json_object_get(item, "SpecialToken"), "id", &name, r->err));
            for (int32_t id = 0; id < r->count; id++)
                if (r->texts[id].bytes == strlen(name) && memcmp(r->texts[id].data, name, strlen(name)) == 0)
                    r->special[QE_SPECIAL_BOS] = id;
            if (r->special[QE_SPECIAL_BOS] < 0) return FAIL(QE_E_MISSING, "the template's first token is no token");
            r->tokenizer->add_bos = true;
        } else {
            after = true;
        }
    }
    return QE_OK;
}

static qe_status read_all(reading *r, const json_t *root) {
    QE_TRY(read_model(r, root));
    QE_TRY(read_normalizer(r, json_object_get(root, "normalizer"), 0));
    QE_TRY(read_pre(r, json_object_get(root, "pre_tokenizer"), 0));
    QE_TRY(read_post(r, json_object_get(root, "post_processor"), 0));
    if (!r->byte_level) return FAIL(QE_E_UNSUPPORTED, "a pre-tokenizer without ByteLevel");
    const json_t *decoder = json_object_get(root, "decoder");
    const char   *type = "ByteLevel";
    if (decoder && !json_is_null(decoder)) {
        if (!json_is_object(decoder)) return FAIL(QE_E_TYPE, "the decoder is not an object");
        QE_TRY(qe_json_string(decoder, "type", &type, r->err));
    }
    if (strcmp(type, "ByteLevel") != 0) return unsupported(r, "decoder", type);
    QE_TRY(qe_vocab_build(&r->tokenizer->vocab, r->texts, r->types, r->mapped, r->count, r->tokenizer->where, r->err));
    QE_TRY(qe_tokenizer_finish(r->tokenizer, r->special, r->err));
    if (r->tokenizer->special[QE_SPECIAL_EOS] < 0 && r->tokenizer->ends_count)
        r->tokenizer->special[QE_SPECIAL_EOS] = r->tokenizer->ends[0];
    return qe_bpe_create(r->tokenizer, r->lefts, r->rights, r->merges_count, r->err);
}

static qe_status open_reader(const qe_reader *reader, const qe_tokenizer_options *options, qe_tokenizer **out,
                             qe_error *err) {
    reading r = {.err = err, .special = {-1, -1, -1, -1}};
    json_t *root = NULL;
    QE_TRY(qe_tokenizer_new(QE_TOKENIZER_BPE, reader->name, options, &r.tokenizer, err));
    qe_json_limits limits = {.max_bytes = r.tokenizer->limits.max_json_bytes};
    qe_status      status = qe_json_read(reader, &limits, &root, err);
    if (!status && !json_is_object(root))
        status = qe_error_at(err, QE_E_TYPE, r.tokenizer->where, -1, "the document is not an object");
    if (!status) status = read_all(&r, root);
    free(r.texts), free(r.types), free(r.mapped), free(r.lefts), free(r.rights), free(r.plain);
    json_decref(root);
    if (status)
        qe_tokenizer_close(r.tokenizer);
    else
        *out = r.tokenizer;
    return status;
}

qe_status qe_tokenizer_open_json(const char *path, const qe_tokenizer_options *options, qe_tokenizer **out,
                                 qe_error *err) {
    qe_reader reader;
    if (!path || !out) return qe_error_set(err, QE_E_ARGUMENT, "qe_tokenizer_open_json: NULL argument");
    *out = NULL;
    QE_TRY(qe_reader_open(path, &reader, err));
    qe_status status = open_reader(&reader, options, out, err);
    qe_reader_close(&reader);
    return status;
}

qe_status qe_tokenizer_open_json_memory(const void *json, size_t json_bytes, const qe_tokenizer_options *options,
                                        qe_tokenizer **out, qe_error *err) {
    qe_reader reader;
    if (!json || !out) return qe_error_set(err, QE_E_ARGUMENT, "qe_tokenizer_open_json_memory: NULL argument");
    *out = NULL;
    QE_TRY(qe_reader_memory(json, json_bytes, "tokenizer.json", &reader, err));
    qe_status status = open_reader(&reader, options, out, err);
    qe_reader_close(&reader);
    return status;
}
