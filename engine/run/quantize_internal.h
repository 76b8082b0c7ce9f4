/* run/quantize_internal.h -- inside of qe_model_quantize().
 *
 *   quantize.c        the call: options, plan, layers in turn, commit
 *   quantize_plan.c   every tensor of the source and what becomes of it
 *   quantize_mixed.c  a budget turned into a recipe
 *   quantize_budget.c what each choice costs: bytes or time
 *   quantize_latency.c  what a linear takes on the device, for a budget of time
 *   quantize_layer.c  one layer: statistics of its inputs, roundings, what the next layer sees
 *   quantize_measure.c  the result against its source
 *   quantize_hf.c     what a GGUF source has no file for: config.json, tokenizer.gguf
 *   quantize_files.c  config.json, tokenizer files, GGUF keys, the report */
#ifndef QE_RUN_QUANTIZE_INTERNAL_H
#define QE_RUN_QUANTIZE_INTERNAL_H
#include <jansson.h>
#include <qengine/recipe.h>
#include "format/write_weights.h"
#include "run/recipe_internal.h"

typedef struct qe_item {            /* one tensor of the source */
    int64_t       tensor;           /* in its store */
    qe_role       role;             /* QE_ROLE_COUNT: no part of the forward pass */
    int64_t       layer;            /* -1: of no layer */
    bool          linear;           /* rounded to decision.quant; else copied */
    qe_weight_ref ref;
    qe_decision   decision;
    char         *name;             /* weight.module */
    qe_weight_out weight;           /* linears; GGUF: every tensor */
    int64_t      *row_map;          /* GGUF, owned */
    int64_t       out;              /* plain tensors of a folder: index in the output */
    float         stored_offset;    /* of a norm: what the output's file leaves out of its values */
    float        *changed;          /* a vector whose values a transform changed, as they act; else NULL */
} qe_item;

typedef struct qe_stream {          /* texts on their way through the layers */
    int32_t *ids;
    int64_t  count, length, sequences;      /* tokens; of a sequence, the last may be shorter */
    float   *hidden, *delta;        /* [count][hidden] */
} qe_stream;

typedef struct qe_job {
    qe_device                 *device;
    const qe_model            *model;
    const qe_quantize_options *o;
    qe_recipe                 *recipe;
    const qe_weight_format    *format;
    qe_out                    *out;
    qe_item                   *items;
    int64_t                    count, linears;      /* linears that are rounded */
    qe_quantize_plan           plan;
    bool                       calibrates;
    char                       text_hash[65];       /* of the calibration text */
    qe_engine                 *window;              /* NULL: no calibration */
    qe_stream                  stream;
    json_t                    *report;              /* list, one entry a linear */
    json_t                    *quality;             /* NULL: not measured */
    double                     done, total;
    int64_t                    finished;            /* linears */
    uint64_t                   start_us;
} qe_job;

qe_status qe_job_items(qe_job *job, qe_error *err);                /* the list, nothing decided */
qe_status qe_job_plan(qe_job *job, qe_error *err);                 /* items, format, sizes */
/* An item as a recipe has it under the job's format, whatever it was before; then its bytes there. */
qe_status qe_item_become(const qe_job *job, const qe_recipe *recipe, qe_item *item, qe_error *err);
uint64_t  qe_item_bytes(const qe_job *job, const qe_item *item);
/* The recipe that makes the most of the options' budget: sensitivities measured, then chosen exactly. *recipe: free(). */
qe_status qe_job_mix(qe_device *device, const qe_model *model, const qe_quantize_options *o, char **recipe, qe_error *err);
/* Seconds of one row through `items[count]`, as they are decided, side by side as one linear; the least of several rounds over
 * `copies` of it, or as many as exceed the caches, so that weights come from where decode finds them. */
qe_status qe_job_latency(qe_job *job, qe_item *const *items, int32_t count, int64_t copies, double *seconds, qe_error *err);
qe_status qe_job_declare(qe_job *job, qe_error *err);              /* into job->out */
bool      qe_item_done(const qe_job *job, const qe_item *item);
void      qe_job_free_items(qe_job *job);
bool      qe_role_is_linear(qe_role role);
/* The source is a GGUF file and the result a folder: what stays float is dequantized, to half floats. */
bool      qe_job_dequantizes(const qe_job *job);

/* One item that belongs to no layer, or is copied. */
qe_status qe_job_copy(qe_job *job, qe_item *item, qe_error *err);
/* Rounds a linear as its decision says and writes it; w[n][k] is changed by transforms before. */
qe_status qe_job_start_stream(qe_job *job, qe_error *err);
qe_status qe_job_layer(qe_job *job, int64_t layer, qe_error *err);
/* Every sequence through `layer` (below 0: the embedding): shown to `tap`, or, if that is NULL, the result takes the place of
 * the input. */
qe_status qe_job_run_stream(qe_job *job, int64_t layer, const qe_tap *tap, qe_error *err);
/* Sequences [from, to) become the window's batch; rows of theirs copied to or from the window. */
void      qe_stream_fill(qe_engine *window, const qe_stream *s, int64_t from, int64_t to);
void      qe_stream_free(qe_stream *s);
qe_status qe_stream_move(qe_engine *window, void *to, const void *from, int64_t rows, qe_error *err);
qe_status qe_job_progress(qe_job *job, double weights, qe_error *err);

char     *qe_job_config(const qe_job *job, qe_error *err);         /* config.json of the result; free() */
qe_status qe_job_side_files(qe_job *job, qe_error *err);
json_t   *qe_job_hf_config(const qe_job *job);                     /* config.json of a model read from GGUF */
qe_status qe_job_gguf_tokenizer(qe_job *job, qe_error *err);       /* its tokenizer, as tokenizer.gguf */
qe_status qe_job_gguf_keys(qe_job *job, qe_error *err);
qe_status qe_job_save_report(qe_job *job, bool last, qe_error *err);
qe_status qe_job_load_report(qe_job *job, qe_error *err);
/* The finished tensors against the model, on the options' text: job->quality. */
qe_status qe_job_measure(qe_job *job, qe_error *err);
json_t   *qe_job_notes(const qe_job *job);
uint64_t  qe_job_note_bytes(const qe_job *job);
#endif
