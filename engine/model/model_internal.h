/* model_internal.h -- what the run layer needs of a model: hyper-parameters with every family difference, and where
 * each weight of the forward pass is. A family is a table of differences (fam_*.c), never a function of its own
 * forward. */
#ifndef QE_MODEL_INTERNAL_H
#define QE_MODEL_INTERNAL_H
#include <stdbool.h>
#include <qengine/model.h>
#include "format/store.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum qe_activation { QE_ACTIVATION_SILU = 1, QE_ACTIVATION_GELU_TANH = 2 } qe_activation;
/* Pairs that rotate together: HALF (i, i + dims/2), INTERLEAVED (2i, 2i + 1). GGUF llama q/k rows are read through a
 * row map that undoes its permutation, so both families of this table run HALF. */
typedef enum qe_rope_kind { QE_ROPE_HALF = 1, QE_ROPE_INTERLEAVED = 2 } qe_rope_kind;
typedef enum qe_rope_scaling {
    QE_ROPE_SCALE_NONE = 0, QE_ROPE_SCALE_LINEAR = 1, QE_ROPE_SCALE_LLAMA3 = 2
} qe_rope_scaling;

/* Angle of pair i at position p: p * base^(-2i / rope_dims) * f, where f is 1 / rope_factor (LINEAR), or by wavelength
 * (LLAMA3: factor, low, high, original context), or 1 / rope_freqs[i] where the file carries that table. */
typedef struct qe_rope {
    float   base;
    int32_t scaling;                /* qe_rope_scaling */
    float   factor;                 /* 1 for NONE */
    float   low_freq, high_freq;    /* LLAMA3 */
    int64_t original_context;       /* LLAMA3 */
} qe_rope;

typedef struct qe_hparams {
    int64_t vocab, hidden, layers, heads, kv_heads, head_dim, ffn;
    int64_t context;                /* tokens the model was trained for */
    float   eps;                    /* of every RMS norm */
    qe_rope rope_global, rope_local;/* local: layers with a window (Gemma: base 10000, no scaling) */
    int32_t rope_kind;              /* qe_rope_kind */
    int64_t rope_dims;              /* = head_dim unless partial */
    int64_t window;                 /* tokens a local layer sees, its own included; 0: all layers global */
    const uint8_t *local;           /* [layers] 1: window and rope_local; owned by the model */
    float   embed_scale;            /* multiplies embedding rows; 1: none. Already rounded as the reference does */
    float   attn_scale;             /* multiplies q k^T */
    float   attn_softcap, final_softcap;    /* 0: none */
    int32_t activation;             /* qe_activation, of the gate */
    bool    qk_norm;                /* RMS norm over each head of q and k, before RoPE */
    bool    post_norms;             /* RMS norm of the attention and ffn outputs before they are added */
    bool    tied;                   /* output head = embedding; qe_model_weight(OUTPUT) then gives the embedding */
    bool    attn_bias, mlp_bias;    /* at least one bias role is present; ask qe_model_weight for each */
} qe_hparams;

/* Weights by what they do. X(name, text). The first three are asked for with layer 0. */
#define QE_ROLE_LIST(X)                                                                                           \
    X(QE_ROLE_EMBED, "embed")                                                                                     \
    X(QE_ROLE_OUTPUT, "output")                                                                                   \
    X(QE_ROLE_OUTPUT_NORM, "output_norm")                                                                         \
    X(QE_ROLE_ROPE_FREQS, "rope_freqs") /* optional table of divisors, [rope_dims / 2] */                         \
    X(QE_ROLE_ATTN_NORM, "attn_norm")                                                                             \
    X(QE_ROLE_Q, "q")                                                                                             \
    X(QE_ROLE_K, "k")                                                                                             \
    X(QE_ROLE_V, "v")                                                                                             \
    X(QE_ROLE_O, "o")                                                                                             \
    X(QE_ROLE_Q_NORM, "q_norm")                                                                                   \
    X(QE_ROLE_K_NORM, "k_norm")                                                                                   \
    X(QE_ROLE_POST_ATTN_NORM, "post_attn_norm")                                                                   \
    X(QE_ROLE_FFN_NORM, "ffn_norm")                                                                               \
    X(QE_ROLE_GATE, "gate")                                                                                       \
    X(QE_ROLE_UP, "up")                                                                                           \
    X(QE_ROLE_DOWN, "down")                                                                                       \
    X(QE_ROLE_POST_FFN_NORM, "post_ffn_norm")                                                                     \
    X(QE_ROLE_Q_BIAS, "q_bias")                                                                                   \
    X(QE_ROLE_K_BIAS, "k_bias")                                                                                   \
    X(QE_ROLE_V_BIAS, "v_bias")                                                                                   \
    X(QE_ROLE_O_BIAS, "o_bias")                                                                                   \
    X(QE_ROLE_GATE_BIAS, "gate_bias")                                                                             \
    X(QE_ROLE_UP_BIAS, "up_bias")                                                                                 \
    X(QE_ROLE_DOWN_BIAS, "down_bias")
typedef enum qe_role {
#define QE_X(name, text) name,
    QE_ROLE_LIST(QE_X)
#undef QE_X
    QE_ROLE_COUNT
} qe_role;
const char *qe_role_name(qe_role role);

/* Where a weight is: read it with qe_store_read(model->store, tensor, first_row, rows, row_map, band, err), or a vector
 * (norm, bias) with qe_model_read_vector(), which also applies norm_offset and row_map. */
typedef struct qe_weight_ref {
    int64_t        tensor;          /* index in the store; -1: this family or file has no such weight */
    const int64_t *row_map;         /* NULL, or the order to read rows in; owned by the model */
    int64_t        n, k;            /* outputs, inputs; vectors: n = 1 */
    float          norm_offset;     /* added to every element of a norm (1 for HF Gemma; GGUF already added it) */
    qe_quant       quant;           /* the stored tensor's canonical descriptor */
    qe_act         act;             /* how the checkpoint wants the input; only if act_known */
    int32_t        act_known;
    int32_t        hadamard;        /* these and the next as in qe_qtensor; owned by the model */
    const uint32_t *order;
    const float   *col_scale;
    uint32_t       facts;           /* QE_FACT_* that hold for every band; checked while packing */
} qe_weight_ref;

struct qe_family;
struct qe_model {
    qe_store               *store;
    const struct qe_family *family; /* NULL with QE_MODEL_INSPECT */
    qe_hparams              hp;
    struct qe_tokenizer    *tokenizer;
    uint8_t                *local;
    int64_t                *q_map, *k_map;     /* NULL or [heads * head_dim], [kv_heads * head_dim] */
    int64_t                *weights;           /* [layers][QE_ROLE_COUNT] tensor index or -1 */
    char                    architecture[64];
};

/* QE_OK with ref->tensor == -1 for an absent optional weight; QE_E_ARGUMENT for a role or layer out of range. All
 * required weights were found and their shapes and types checked by qe_model_open. */
qe_status qe_model_weight(const qe_model *model, qe_role role, int64_t layer, qe_weight_ref *ref, qe_error *err);

/* The name a weight has in files, ".weight" left out: "model.layers.3.mlp.up_proj", or "blk.3.ffn_up" for gguf. Empty where
 * the family has no such weight in that form. */
void qe_model_module(const qe_model *model, qe_role role, int64_t layer, bool gguf, char *text, size_t bytes);

/* GGUF keeps rows of this weight in another order than the published one: *map[i] is the file's row of row i (malloc); NULL:
 * the same order. */
qe_status qe_model_gguf_rows(const qe_model *model, qe_role role, int64_t **map, qe_error *err);

/* A whole norm or bias as ref->k floats. */
qe_status qe_model_read_vector(const qe_model *model, const qe_weight_ref *ref, float *out, qe_error *err);

static inline const qe_rope *qe_model_rope(const qe_hparams *hp, int64_t layer) {
    return hp->local[layer] ? &hp->rope_local : &hp->rope_global;
}

#ifdef __cplusplus
}
#endif
#endif
