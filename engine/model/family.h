/* family.h -- a model family as a table of differences: keys of its hyper-parameters, names and shapes of its weights,
 * and a few constants. fam_*.c hold one table each; family.c reads any of them. */
#ifndef QE_MODEL_FAMILY_H
#define QE_MODEL_FAMILY_H
#include "model/model_internal.h"

/* Sizes a weight may have, from the hyper-parameters. */
typedef enum qe_size {
    QE_SIZE_ONE, QE_SIZE_VOCAB, QE_SIZE_HIDDEN, QE_SIZE_Q, QE_SIZE_KV, QE_SIZE_FFN, QE_SIZE_HEAD, QE_SIZE_ROPE
} qe_size;

enum {
    QE_ROW_OPTIONAL = 1,    /* may be absent */
    QE_ROW_NORM = 2,        /* the family's norm offset applies */
    QE_ROW_Q_ORDER = 4,     /* GGUF rows are permuted for interleaved rotation, heads of q */
    QE_ROW_K_ORDER = 8      /* likewise, heads of k */
};

/* One weight. %lld in a name is the layer; a NULL name: that format has no such weight. n ONE: a vector of k. */
typedef struct qe_weight_row {
    qe_role     role;
    const char *gguf, *hf;
    qe_size     n, k;
    uint32_t    flags;
} qe_weight_row;

/* One integer or float of qe_hparams. GGUF keys follow "<architecture>."; at most two HF spellings, first found wins.
 * Values outside [min, max] are QE_E_RANGE; `limited` values above max are QE_E_LIMIT instead. */
typedef enum qe_key_kind { QE_KEY_INT, QE_KEY_FLOAT } qe_key_kind;
typedef struct qe_hparam_key {
    size_t      field;
    qe_key_kind kind;
    const char *gguf, *hf, *hf_other;
    bool        required;
    double      fallback, min, max;     /* fallback 0 of head_dim, kv_heads: derived afterwards */
} qe_hparam_key;

typedef struct qe_family {
    const char *name;
    const char *gguf_architecture;
    const char *hf_architectures[3];    /* NULL-terminated */
    const qe_weight_row *weights;       /* weight_count rows */
    size_t      weight_count;
    const qe_hparam_key *keys;          /* beside the common ones of family.c */
    size_t      key_count;
    float       hf_norm_offset;         /* norms are stored as weight - offset in HF files; GGUF already added it */
    bool        qk_norm, post_norms;
    bool        embed_scaled;           /* rows of the embedding times sqrt(hidden) */
    bool        tied_by_default;        /* HF: tie_word_embeddings absent */
    int32_t     activation;
    const char *hf_activation[2];       /* its spellings */
    const char *hf_activation_key;
    int32_t     local_period;           /* every local_period-th layer is global; 0: all are */
    float       local_rope_base;
    /* What no table entry can say: attention scale. May be NULL: 1 / sqrt(head_dim). */
    float     (*attn_scale)(const qe_hparams *hp, qe_store_kind kind, double query_scalar);
} qe_family;

extern const qe_family qe_family_gemma3, qe_family_llama;

/* The family of an architecture name; QE_E_UNSUPPORTED names it and lists what there is. */
qe_status qe_family_find(const qe_store *store, const char *architecture, const qe_family **out, qe_error *err);
/* Fill model->hp, local, weights, maps from the store and the family; every check of sizes against tensors. */
qe_status qe_family_read_hparams(qe_model *model, qe_error *err);
qe_status qe_family_bind_weights(qe_model *model, qe_error *err);
const qe_weight_row *qe_family_row(const qe_family *family, qe_role role);

/* The tokenizer of the store, or NULL when it has none. */
qe_status qe_model_load_tokenizer(qe_model *model, qe_error *err);
#endif
