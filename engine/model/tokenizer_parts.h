/* engine/model/tokenizer_parts.h -- the parts of a tokenizer and how they fit together.
 *
 *   text --special tokens (trie)--> fragments --+-- score: "▁" for space, characters, merges by score, byte fallback
 *                                               +-- BPE: NFC, pattern pieces, bytes, merges by rank
 *
 * Both models share one merge engine (tokenizer_merge.c). Everything here is immutable after creation; what a call
 * needs lives in a qe_encoder. Hash tables are keyed with a random secret, so a file cannot choose its collisions. */
#ifndef ENGINE_MODEL_TOKENIZER_PARTS_H
#define ENGINE_MODEL_TOKENIZER_PARTS_H
#include "model/tokenizer.h"

typedef struct qe_text {
    const char *data;
    size_t      bytes;
} qe_text;

/* Token texts, one after another, and a map from text to id for those a merge may produce. */
typedef struct qe_vocab {
    int32_t   count;
    uint32_t  max_bytes;         /* longest text in the map */
    char     *bytes;
    uint32_t *starts;            /* count + 1 */
    uint8_t  *types;             /* qe_token_type */
    int32_t  *slots;             /* id or -1 */
    uint64_t  slots_mask, key[2];
} qe_vocab;

/* `mapped` (may be NULL: all) tells which ids enter the map; two of them with one text are QE_E_DUPLICATE. */
qe_status qe_vocab_build(qe_vocab *vocab, const qe_text *texts, const uint8_t *types, const bool *mapped,
                         int32_t count, const char *where, qe_error *err);
int32_t   qe_vocab_find(const qe_vocab *vocab, const char *text, size_t bytes);      /* -1: none */
qe_text   qe_vocab_text(const qe_vocab *vocab, int32_t id);
void      qe_vocab_free(qe_vocab *vocab);

/* Open addressing from a 64-bit key to a 64-bit value. */
typedef struct qe_map64 {
    uint64_t *keys, *values;     /* key ~0: empty */
    uint64_t  mask, count, seed;
} qe_map64;
qe_status qe_map64_init(qe_map64 *map, size_t expected, qe_error *err);
bool      qe_map64_put(qe_map64 *map, uint64_t key, uint64_t value);                 /* false: the key is there */
bool      qe_map64_get(const qe_map64 *map, uint64_t key, uint64_t *value);
void      qe_map64_free(qe_map64 *map);
void      qe_random_key(uint64_t key[2]);

/* Special tokens: longest match at a position. */
typedef struct qe_trie {
    qe_map64  edges;             /* node << 8 | byte -> child */
    int32_t  *ids;               /* per node, -1: inner */
    uint32_t  nodes;
    bool      first[256];
} qe_trie;
qe_status qe_trie_init(qe_trie *trie, size_t total_bytes, qe_error *err);
bool      qe_trie_put(qe_trie *trie, qe_text text, int32_t id);                      /* false: the text is there */
void      qe_trie_free(qe_trie *trie);

/* Pre-tokenizer: each step cuts every piece of the step before it. */
typedef struct qe_pattern qe_pattern;
enum { QE_PATTERN_STEPS = 8 };
qe_status qe_pattern_compile(const char *text, size_t bytes, bool literal, const char *where, qe_pattern **out,
                             qe_error *err);
void      qe_pattern_free(qe_pattern *pattern);
/* The steps a GGUF `tokenizer.ggml.pre` name stands for, as patterns; 0: unknown name. */
int       qe_pattern_known(const char *name, const char *steps[QE_PATTERN_STEPS]);
extern const char qe_pattern_gpt2[];

enum { QE_STRIP_LEFT = 1, QE_STRIP_RIGHT = 2 };

struct qe_tokenizer {
    qe_tokenizer_kind    kind;
    qe_tokenizer_options limits;             /* resolved */
    char                 where[128];
    qe_vocab             vocab;
    qe_trie              specials;
    uint8_t             *strip;              /* per id, NULL when no token strips */
    int32_t              special[4];         /* by qe_special */
    int32_t              ends[16];
    int32_t              ends_count;
    int32_t              byte_ids[256];      /* the token of one byte, -1: none */
    bool                 add_bos, add_space_prefix;
    uint64_t            *joints;             /* bitmap over (hashed) neighbors that occur inside some token: between
                                                others nothing ever merges, so text is cut there first */
    /* score */
    uint32_t            *priorities;         /* per id, smaller merges first */
    uint64_t             joints_key;
    /* BPE */
    qe_map64             pairs;              /* left << 32 | right -> rank << 32 | merged */
    qe_pattern          *steps[QE_PATTERN_STEPS];
    int32_t              steps_count;
    bool                 nfc, ignore_merges;
    /* chat */
    const char          *chat;               /* name of the known template, or NULL */
};

/* One call of encode. */
typedef struct qe_symbol {
    uint32_t start, bytes;                   /* in the text being merged; bytes 0: merged away */
    int32_t  id;                             /* -1: no token has this text */
    uint32_t prev, next;                     /* QE_NO_SYMBOL at the ends */
} qe_symbol;
#define QE_NO_SYMBOL UINT32_MAX

typedef struct qe_merge_entry {
    uint64_t key;                            /* priority << 32 | left symbol: smallest first, then leftmost */
    uint32_t right;
    int32_t  merged;                         /* its length tells whether the pair is still the one that was found */
} qe_merge_entry;

typedef struct qe_encoder {
    const qe_tokenizer *tokenizer;
    qe_error           *err;
    int32_t            *ids;
    size_t              ids_count, ids_capacity;
    qe_symbol          *symbols;
    size_t              symbols_count, symbols_capacity;
    qe_merge_entry     *heap;
    size_t              heap_count, heap_capacity;
    char               *text;                /* rewritten fragment: "▁" or NFC */
    size_t              text_capacity;
    void               *match;               /* pcre2_match_data */
    void               *match_context, *match_stack;
    bool                after_special;       /* the fragment starts the text or follows a special token */
} qe_encoder;

qe_status qe_encoder_emit(qe_encoder *encoder, int32_t id);
qe_status qe_encoder_symbol(qe_encoder *encoder, uint32_t start, uint32_t bytes, int32_t id);   /* append */
qe_status qe_encoder_text(qe_encoder *encoder, size_t bytes);                                   /* make room */

/* Is there a token for left and right joined? Smaller priority merges first. */
typedef bool (*qe_merge_find)(const qe_tokenizer *tokenizer, const char *text, const qe_symbol *left,
                              const qe_symbol *right, int32_t *merged, uint32_t *priority);
/* Merge encoder->symbols until no pair has a token. The first symbol survives; follow `next`. */
qe_status qe_merge_run(qe_encoder *encoder, const char *text, qe_merge_find find);

qe_status qe_score_create(qe_tokenizer *tokenizer, const float *scores, qe_error *err);
qe_status qe_score_encode(qe_encoder *encoder, const char *text, size_t bytes);

qe_status qe_bpe_create(qe_tokenizer *tokenizer, const qe_text *lefts, const qe_text *rights, size_t merges_count,
                        qe_error *err);
qe_status qe_bpe_encode(qe_encoder *encoder, const char *text, size_t bytes);
/* One pre-tokenizer piece. */
qe_status qe_bpe_piece(qe_encoder *encoder, const char *text, size_t bytes);
/* Undo the byte-to-printable-character map of byte-level BPE; false: some character is not of that map. */
bool      qe_bpe_unmap(qe_text text, char *out, size_t *out_bytes);

qe_status qe_pattern_split(qe_encoder *encoder, int32_t step, const char *text, size_t bytes);
void      qe_pattern_release(qe_encoder *encoder);
/* Canonical composition of valid UTF-8 into encoder->text, linear also in runs of combining marks. */
qe_status qe_normal_nfc(qe_encoder *encoder, const char *text, size_t bytes, size_t *out_bytes);

/* Bytes of the UTF-8 character at text[0..bytes), bytes > 0; 0 when it is not one. */
size_t    qe_utf8_length(const char *text, size_t bytes);

/* The vocabulary is in place: index special tokens, collect end tokens, check special ids. */
qe_status qe_tokenizer_finish(qe_tokenizer *tokenizer, const int64_t special[4], qe_error *err);
qe_status qe_tokenizer_new(qe_tokenizer_kind kind, const char *where, const qe_tokenizer_options *options,
                           qe_tokenizer **out, qe_error *err);
/* Special tokens are recognized only inside `trusted` ranges of the text (ascending, not touching). */
typedef struct qe_range { size_t begin, end; } qe_range;
qe_status qe_encode_ranges(const qe_tokenizer *tokenizer, const char *text, size_t bytes, const qe_range *trusted,
                           size_t trusted_count, int32_t bos, int32_t *ids, size_t ids_capacity, size_t *ids_count,
                           qe_error *err);
/* Options structs of any version: copy what both know, refuse a non-zero tail. */
qe_status qe_options_copy(const void *options, size_t size, void *out, const char *name, qe_error *err);
#endif
