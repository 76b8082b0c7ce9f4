/* run/engine_internal.h -- inside of an engine: packed weights, KV pages, scratch memory, and one step's rows.
 *
 *   pack.c      one weight, or several stacked ones, from the store into a layout of the device
 *   engine.c    creation: everything a model needs, in the order of its layers
 *   kv_cache.c  which page belongs to whom
 *   batch.c     a step as pieces of at most max_batch_tokens rows
 *   forward.c   one piece through all layers
 *   session.c   timelines; sampler.c  the next token */
#ifndef QE_RUN_ENGINE_INTERNAL_H
#define QE_RUN_ENGINE_INTERNAL_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include <qengine/session.h>
#include "model/model_internal.h"
#include "run/device.h"

/* ---- memory of the device ------------------------------------------------------------------------------------------ */
typedef struct qe_block {
    void  *data;
    size_t bytes;
} qe_block;
qe_status qe_block_alloc(const qe_device *device, size_t bytes, qe_block *out, qe_error *err);
/* At least `bytes`; contents are lost when it grows, and so is the block when that fails. */
qe_status qe_block_grow(const qe_device *device, size_t bytes, qe_block *block, qe_error *err);
void      qe_block_release(const qe_device *device, qe_block *block);

/* ---- weights ------------------------------------------------------------------------------------------------------- */
enum { QE_STACK_MAX = 3 };

typedef struct qe_packed {        /* one GEMM: a weight, or several with one input stacked along n */
    qk_weight   weight;
    qe_block    blob, bias;       /* bias: [n] floats, or none */
    qe_block    order, col_scale; /* [k], or none; weight's pointers */
    int64_t     planned_m;        /* what `plan` was made for; 0: nothing yet */
    qk_plan     plan;
} qe_packed;

/* Linears that read the same input, q k v or gate and up; their outputs lie side by side in one row of `width`. Those of
 * one type are one GEMM, the others share the prepared input where qk_x_shared() allows. */
typedef struct qe_group {
    qe_packed packed[QE_STACK_MAX];
    int64_t   column[QE_STACK_MAX];
    int32_t   count;
    int64_t   width;
} qe_group;

typedef struct qe_layer {
    qe_group qkv, o, gate_up, down;
    qe_block vectors[QE_ROLE_COUNT];   /* norms by role; none where the family has none */
} qe_layer;

/* Where the rows of linears come from when they are not the store's own: quantized while loading, or just made by the
 * layer loop. `form` may change what `ref` says of scheme, input, order, scale and facts; `read` fills a band placed for
 * it and is called from several threads at once. */
typedef struct qe_weight_source {
    void *ctx;
    qe_status (*form)(void *ctx, qe_role role, int64_t layer, qe_weight_ref *ref, qe_error *err);
    qe_status (*read)(void *ctx, qe_role role, int64_t layer, const qe_weight_ref *ref, int64_t first_row, int64_t rows,
                      qe_qtensor *band, qe_error *err);
} qe_weight_source;

typedef struct qe_loading {       /* what packing reports to */
    const qe_model *model;
    const qe_act   *act;
    const qe_weight_source *source;   /* NULL: the store */
    qe_progress    *progress;
    void           *progress_ctx;
    uint64_t        done, total;  /* bytes in the file */
} qe_loading;

/* roles[count] of one layer into a group; absent biases count as zero. */
qe_status qe_group_load(const qe_device *device, qe_loading *loading, const qe_role *roles, int32_t count, int64_t layer,
                        qe_group *out, qe_error *err);
void      qe_group_release(const qe_device *device, qe_group *group);
qe_status qe_vector_load(const qe_device *device, const qe_model *model, qe_role role, int64_t layer, qe_block *out,
                         qe_error *err);
qe_status qe_loading_report(qe_loading *loading, uint64_t more_bytes, qe_error *err);

/* ---- KV cache ------------------------------------------------------------------------------------------------------- */
enum { QE_KV_PAGE_TOKENS = 64 };

typedef struct qe_kv_cache {
    qe_block pages;
    int64_t  page_bytes;          /* of one layer */
    qe_quant quant;               /* F16 or F32 */
    int32_t  layers, count;       /* pages */
    int32_t *unused;              /* a stack of page numbers */
    int32_t  unused_count;
} qe_kv_cache;

typedef struct qe_kv_pages {      /* one session's */
    int32_t *page;
    int32_t  count, capacity;
} qe_kv_pages;

qe_status qe_kv_create(const qe_device *device, const qe_hparams *hp, int32_t type, int64_t tokens, qe_kv_cache *out,
                       qe_error *err);
void      qe_kv_destroy(const qe_device *device, qe_kv_cache *kv);
bool      qe_kv_reserve(qe_kv_cache *kv, qe_kv_pages *pages, int64_t tokens);    /* false: full, nothing changed */
void      qe_kv_trim(qe_kv_cache *kv, qe_kv_pages *pages, int64_t tokens);
static inline int64_t qe_kv_pages_for(int64_t tokens) { return (tokens + QE_KV_PAGE_TOKENS - 1) / QE_KV_PAGE_TOKENS; }

/* ---- one piece of a step -------------------------------------------------------------------------------------------- */
typedef struct qe_batch_rows {    /* integers the kernels read; the same layout on host and device */
    int32_t *ids, *position;      /* [max_batch_tokens] */
    int32_t *first_row, *length;  /* [max_sessions + 1], [max_sessions] */
    int32_t *table;               /* [max_sessions][pages of the longest session] */
} qe_batch_rows;

typedef struct qe_wanted {        /* one row of logits */
    int64_t     row;
    float      *to;               /* host, vocab floats */
} qe_wanted;

typedef struct qe_batch {
    qe_batch_rows host, device;
    qe_block      block;          /* behind `device` */
    void         *memory;         /* behind `host`; the same bytes */
    size_t        bytes;
    int64_t       ld_table;
    int64_t       m;
    int32_t       sequences, max_new, max_length;
    qe_wanted    *wanted;         /* [2 * max_batch_tokens] */
    int64_t       wanted_count;
} qe_batch;

typedef struct qe_scratch {
    qe_block hidden, delta;       /* [B][hidden] fp32: residual stream, and what the last linear adds to it */
    qe_block qkv, attended, ffn;  /* [B][width] fp32 */
    qe_block x;                   /* one prepared input */
    qe_block gemm, attention;     /* workspaces */
    qe_block head_hidden, head_delta, logits;   /* [R][..]: rows whose logits are wanted */
} qe_scratch;

struct qe_engine {
    qe_device       *device;
    const qe_model  *model;
    qe_hparams       hp;
    qk_queue         queue;
    int64_t          context, kv_tokens;
    int32_t          kv_type;
    int32_t          max_sessions, max_batch, head_rows;
    int64_t          kv_layer;                 /* the layer whose keys are in layer 0 of the cache; a window: the one it runs */
    qe_group         embed, output;            /* output.count 0: tied, `embed` is used */
    qe_block         output_norm;
    qe_block         cos_sin[2];               /* global, local layers: [context][rope_dims / 2][2] */
    qe_layer        *layers;
    qe_kv_cache      kv;
    qe_scratch       scratch;
    qe_batch         batch;
    pthread_mutex_t  turn;                     /* kv, scratch, batch, sessions, stats */
    int32_t          sessions;
    uint64_t         serial;                   /* of the step going on; finds a session named twice */
    qe_engine_stats  stats;
    uint64_t         load_us;
};

struct qe_session {
    qe_engine  *engine;
    qe_kv_pages pages;
    int64_t     length;
    uint64_t    serial;
    float      *logits;           /* [vocab] */
    bool        has_logits;
    void       *sample_scratch;   /* made by the first sampling that is not greedy */
};

/* ---- batch, forward -------------------------------------------------------------------------------------------------- */
qe_status qe_batch_create(qe_engine *engine, qe_error *err);
void      qe_batch_destroy(qe_engine *engine);

typedef struct qe_cancel {
    int (*ask)(void *ctx);
    void *ctx;
} qe_cancel;
/* engine->batch through all layers; logits of its wanted rows are in place on return. */
qe_status qe_forward(qe_engine *engine, const qe_cancel *cancel, qe_error *err);
/* What reads the input of a group of linears as they are about to run: qkv 0, o 1, gate_up 2, down 3; x[m][ldx] floats in the
 * caller's column order. Only float inputs can be seen. A watched layer ends with its last input: delta is not its result. */
typedef struct qe_tap {
    void *ctx;
    qe_status (*input)(void *ctx, int64_t layer, int32_t group, const float *x, int64_t m, int64_t k, int64_t ldx,
                       qe_error *err);
} qe_tap;
/* Parts of a pass over engine->batch, for windows: embedding rows into scratch.hidden; one layer over scratch.hidden and
 * .delta; logits of the batch's wanted rows. tap may be NULL. */
qe_status qe_forward_embed(qe_engine *engine, qe_error *err);
qe_status qe_forward_layer(qe_engine *engine, int64_t layer, const qe_tap *tap, qe_error *err);
qe_status qe_forward_head(qe_engine *engine, qe_error *err);

/* An engine that holds no linears but those loaded one layer at a time, for texts of at most `context` tokens in pieces of
 * whole texts, at most `batch` >= context tokens; sessions and steps do not work on it. Free with qe_engine_destroy(). */
qe_status qe_engine_create_window(qe_device *device, const qe_model *model, int64_t context, int32_t batch, qe_engine **out,
                                  qe_error *err);
/* The linears of one layer, from a source (NULL: as the model has them); and one of its norms, already loaded, replaced. */
qe_status qe_window_load(qe_engine *engine, const qe_weight_source *source, int64_t layer, qe_error *err);
qe_status qe_window_vector(qe_engine *engine, int64_t layer, qe_role role, const float *values, qe_error *err);
void      qe_window_release(qe_engine *engine, int64_t layer);
qe_status qe_window_load_ends(qe_engine *engine, bool embed, bool head, qe_error *err);
void      qe_window_release_ends(qe_engine *engine);

/* Sizes the workspaces for pieces of m rows, so that steps need not grow them. */
qe_status qe_forward_reserve(qe_engine *engine, int64_t m, qe_error *err);

/* Of two rows of logits: sum of p (log p - log q), p the reference's. */
double qe_kl_divergence(const float *reference, const float *candidate, int64_t n);

/* Options as the caller's version of the struct has them; what it has beyond ours must be zero. */
qe_status qe_options_read(const void *in, uint32_t struct_size, void *out, size_t out_bytes, qe_error *err);
#endif
