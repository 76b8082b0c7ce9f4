/* engine/model/tokenizer.h -- the tokenizer inside: what a checkpoint hands over, and the parts it is built from. */
#ifndef ENGINE_MODEL_TOKENIZER_H
#define ENGINE_MODEL_TOKENIZER_H
#include <stdbool.h>

#include <qengine/tokenizer.h>

typedef enum qe_tokenizer_kind { QE_TOKENIZER_SCORE = 1, QE_TOKENIZER_BPE = 2 } qe_tokenizer_kind;

/* Numbers as in `tokenizer.ggml.token_type`. */
typedef enum qe_token_type {
    QE_TOKEN_HOLE = 0,              /* ours: an id nobody uses */
    QE_TOKEN_NORMAL = 1,
    QE_TOKEN_UNKNOWN = 2,
    QE_TOKEN_CONTROL = 3,
    QE_TOKEN_USER_DEFINED = 4,
    QE_TOKEN_UNUSED = 5,
    QE_TOKEN_BYTE = 6
} qe_token_type;

/* A tokenizer as GGUF stores it. Everything is copied; nothing is kept. Counts are checked against each other here
 * (QE_E_MISMATCH), element types by whoever reads the arrays. A special id of -1 means "none". */
typedef struct qe_tokenizer_source {
    const char        *where;                 /* file name for messages */
    qe_tokenizer_kind  kind;
    const char        *pre;                   /* BPE: `tokenizer.ggml.pre`; NULL: GPT-2 pattern */
    size_t             tokens_count, scores_count, types_count, merges_count;
    const char *const *texts;                 /* tokens_count pointers, */
    const size_t      *texts_bytes;           /* and lengths */
    const float       *scores;                /* score model only */
    const int32_t     *types;                 /* may be NULL with types_count 0: all normal */
    const char *const *merges;                /* BPE: "left right", best first */
    const size_t      *merges_bytes;
    int64_t            bos, eos, pad, unk;
    bool               add_bos, add_space_prefix;
    const char        *chat_template;         /* may be NULL */
    size_t             chat_template_bytes;
} qe_tokenizer_source;

qe_status qe_tokenizer_create(const qe_tokenizer_source *source, const qe_tokenizer_options *options,
                              qe_tokenizer **out, qe_error *err);
/* Special ids of config.json, for a tokenizer.json that does not name them; -1 leaves one as it is. */
qe_status qe_tokenizer_set_special(qe_tokenizer *tokenizer, int64_t bos, int64_t eos, int64_t pad, qe_error *err);

#endif
