/* qengine/session.h -- run a model: an engine holds packed weights and a KV cache, sessions are timelines in it.
 *
 *   qe_engine_create(device, model) -> qe_session_create() -> qe_engine_step() ... qe_session_sample() ...
 *
 * A session is a sequence of tokens whose keys and values are in the cache. A step appends tokens to one or several
 * sessions at once (prefill and decode alike) and gives logits of the positions asked for. A session's numbers do not
 * depend on what else is in a step, on how its tokens are cut into steps, or on the number of threads: same bits.
 *
 * Threads: an engine may be used from several threads; steps take turns. A session belongs to one thread at a time.
 * The device and the model must outlive the engine, the engine its sessions. */
#ifndef QENGINE_SESSION_H
#define QENGINE_SESSION_H
#include <stddef.h>
#include <stdint.h>
#include <qengine/base.h>
#include <qengine/gemm.h>
#include <qengine/model.h>
#include <qengine/quant.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct qe_engine qe_engine;
typedef struct qe_session qe_session;

/* ---- engine ------------------------------------------------------------------------------------------------------ */
/* Called while weights are packed, from the creating thread. Not 0: stop, the call returns QE_E_CANCELLED. */
typedef int qe_progress(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

typedef struct qe_engine_options {
    uint32_t      struct_size;       /* sizeof(qe_engine_options) */
    uint32_t      flags;             /* 0 */
    int64_t       context_tokens;    /* longest session; 0: the model's context, at most 4096 */
    int32_t       max_sessions;      /* 0: 1 */
    int32_t       max_batch_tokens;  /* tokens computed together, longer prompts go in such pieces; 0: 512 */
    int64_t       kv_tokens;         /* cache shared by all sessions; 0: room for every session at full length */
    const qe_act *act;               /* how inputs of integer-coded linears are quantized; NULL: qe_act_default() of
                                        each weight's type. Float weights always take float inputs. */
    qe_progress  *progress;          /* NULL: none */
    void         *progress_ctx;
    int32_t       kv_type;           /* of the cache: QE_CODE_F16 (0 too), or F32: twice the memory, for comparisons */
    int32_t       reserved;          /* 0 */
    const char   *quantize;          /* a recipe (<qengine/recipe.h>): float weights are rounded to it while they are
                                        loaded; NULL: as they are stored */
} qe_engine_options;

/* Reads, packs and uploads every weight. options may be NULL. On failure *out is NULL. */
QE_API qe_status qe_engine_create(qe_device *device, const qe_model *model, const qe_engine_options *options,
                                  qe_engine **out, qe_error *err);
/* NULL is fine. Sessions still alive: nothing is freed and the answer is QE_E_STATE. */
QE_API qe_status qe_engine_destroy(qe_engine *engine);

typedef struct qe_engine_info {
    int64_t  vocab, context_tokens, kv_tokens;
    int32_t  max_sessions, max_batch_tokens;
    uint64_t weight_bytes;           /* as packed, padding counted */
    uint64_t kv_bytes, scratch_bytes;
    uint64_t load_us;
    double   bits_per_weight;        /* of the packed linears */
} qe_engine_info;
QE_API void qe_engine_get_info(const qe_engine *engine, qe_engine_info *out);

/* Sums since creation. A step that appends one token to a session decodes it, longer ones are prefill; the time of a
 * step that does both is divided by tokens. */
typedef struct qe_engine_stats {
    uint64_t steps, prefill_tokens, decode_tokens, logit_rows;
    uint64_t prefill_us, decode_us;
    int64_t  kv_tokens_used;         /* now, in whole pages */
    int32_t  sessions, reserved;     /* now */
} qe_engine_stats;
QE_API void qe_engine_get_stats(const qe_engine *engine, qe_engine_stats *out);

/* ---- sessions ---------------------------------------------------------------------------------------------------- */
/* QE_E_CAPACITY: max_sessions are alive. */
QE_API qe_status qe_session_create(qe_engine *engine, qe_session **out, qe_error *err);
QE_API void      qe_session_destroy(qe_session *session);            /* NULL is fine */
QE_API int64_t   qe_session_length(const qe_session *session);       /* tokens */
/* Forget all tokens from `length` on. What follows has the same bits as if they had never been. QE_E_ARGUMENT: longer
 * than the session. The kept logits are gone. */
QE_API qe_status qe_session_rewind(qe_session *session, int64_t length, qe_error *err);

/* ---- steps ------------------------------------------------------------------------------------------------------- */
typedef enum qe_want {
    QE_WANT_NONE = 0,                /* only extend the cache */
    QE_WANT_LAST = 1,                /* logits of the last token, kept in the session for qe_session_logits/sample */
    QE_WANT_ALL  = 2                 /* those, and one row for every token in `logits` */
} qe_want;

typedef struct qe_step_item {
    qe_session    *session;          /* each session at most once in a step */
    const int32_t *tokens;           /* ids, 0 .. vocab - 1 */
    int64_t        n_tokens;         /* >= 1 */
    int32_t        want, reserved;   /* qe_want; 0 */
    float         *logits;           /* QE_WANT_ALL: host memory, [n_tokens][ld_logits]; else NULL */
    int64_t        ld_logits;        /* >= vocab */
} qe_step_item;

typedef struct qe_step_options {
    uint32_t struct_size;            /* sizeof(qe_step_options) */
    uint32_t flags;                  /* 0 */
    int    (*cancel)(void *ctx);     /* asked before every layer; not 0: stop with QE_E_CANCELLED. NULL: never */
    void    *cancel_ctx;
} qe_step_options;

/* Appends every item's tokens to its session. options may be NULL. On any failure all sessions are as they were before
 * the step (their kept logits are gone). QE_E_CAPACITY: a session would outgrow context_tokens, or the cache is full. */
QE_API qe_status qe_engine_step(qe_engine *engine, const qe_step_item *items, int64_t n_items,
                                const qe_step_options *options, qe_error *err);

/* The kept row, `vocab` floats, until the session's next call; NULL if there is none. The caller may change values in
 * place (masks, penalties) before sampling. */
QE_API float    *qe_session_logits(qe_session *session);

/* ---- sampling ---------------------------------------------------------------------------------------------------- */
/* Filters apply in this order; those at 0 do nothing. Tokens with equal logits rank by id, lower first. */
typedef struct qe_sampling {
    uint32_t struct_size;            /* sizeof(qe_sampling) */
    int32_t  top_k;                  /* the k most likely tokens; 0: all */
    float    temperature;            /* 0: greedy, the most likely token; else logits are divided by it */
    float    top_p;                  /* smallest set of most likely tokens whose probability is >= top_p; 0 or 1: all */
    float    min_p;                  /* tokens at least min_p times as likely as the most likely one; 0: all */
    uint32_t reserved;               /* 0 */
    uint64_t seed;
} qe_sampling;

/* The next token after the session's last. The random number is a function of (seed, session length) alone, so the same
 * text with the same settings continues the same way, after a rewind too. logprob (may be NULL): natural logarithm of
 * the token's probability in the whole, untempered distribution. sampling NULL: greedy. QE_E_STATE: no kept logits;
 * QE_E_VALUE: a NaN, or no finite logit. */
QE_API qe_status qe_session_sample(qe_session *session, const qe_sampling *sampling, int32_t *token, float *logprob,
                                   qe_error *err);

/* The same from a row of one's own. `draw` takes the place of the session length. scratch: qe_sample_scratch(vocab)
 * bytes, 16-byte aligned; may be NULL when greedy. */
QE_API size_t    qe_sample_scratch(int64_t vocab);
QE_API qe_status qe_sample(const float *logits, int64_t vocab, const qe_sampling *sampling, uint64_t draw, void *scratch,
                           int32_t *token, float *logprob, qe_error *err);

#ifdef __cplusplus
}
#endif
#endif
