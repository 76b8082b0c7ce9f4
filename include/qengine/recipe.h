/* qengine/recipe.h -- whole models quantized: what a recipe says, the layer loop that turns a float checkpoint into a
 * quantized one, and how far the result is from what it was made of.
 *
 *   qe_model_open() -> qe_model_quantize() -> a checkpoint that qe_model_open(), vLLM, transformers or llama.cpp reads
 *   qe_engine_options.quantize             the same roundings while an engine loads, nothing written
 *   qe_quality_measure()                   perplexity, KL and agreement of two engines on one text
 *
 * A recipe is one line, or JSON:
 *
 *   "w4a16-g128"                           a scheme of <qengine/quantize.h> by name
 *   "int4:g64:f16:z=u8"                    a descriptor (qe_quant_parse); "...@a8" rounds inputs to int8 by token,
 *                                          "...@a1" to signs
 *   {"scheme": "w4a16-g128", "method": "awq+gptq", "range": "mse", "static": false,
 *    "rules": [{"match": "*.down_proj", "scheme": "w8a16-g128"}, {"match": "lm_head", "scheme": "q6_k"}]}
 *
 * Rules are tried in order, the first whose `match` fits a module's name applies (a name, a pattern with *, or "re:" and a
 * regular expression); its missing members come from the top. The embedding and the output head stay as they are unless a
 * rule names them. Methods: those of QE_METHOD_LIST, and before one of them, joined by +, awq, smoothquant or rotate.
 * "gptq-order" is GPTQ in the order of falling importance. A folder whose recipe is JSON holds it as
 * quantization_recipe.json (GGUF: beside the file, with .recipe.json): the same call with it gives the same bytes.
 *
 * Threads: several calls may run at once, on one device too, with another `out` each. Callbacks come from the calling thread. */
#ifndef QENGINE_RECIPE_H
#define QENGINE_RECIPE_H
#include <stddef.h>
#include <stdint.h>
#include <qengine/session.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Forms a checkpoint can be written in, by index from 0: name and one line on it. NULL past the end. */
QE_API const char *qe_checkpoint_format(int32_t index, const char **what);

/* One line for each linear as it is finished (with PLAN_ONLY: as it will be); `index` of `count`. Numbers that were not measured are NaN. */
typedef struct qe_quantize_layer {
    const char *module, *scheme, *method;
    int64_t     index, count, n, k;
    double      bits_per_weight;
    double      sqnr_db, max_error, error_bound, output_cosine;
    int32_t     resumed, reserved;          /* 1: an earlier run made it */
} qe_quantize_layer;

/* A budget's choices, told once they are made: what an input's linears of one layer cost and lose under one candidate. */
typedef struct qe_quantize_choice {
    const char *module, *scheme;            /* the first linear that reads the input; the candidate */
    int64_t     layer;
    int32_t     input, picked;              /* qkv 0, o 1, gate and up 2, down 3; 1: this candidate was chosen */
    int64_t     bytes;                      /* below 0: the format cannot hold it, it was not offered */
    double      loss;                       /* mean KL of the model's output that it adds, on the calibration text */
    double      seconds;                    /* of one row through these linears on the device; 0: the budget is not of time */
} qe_quantize_choice;

/* What a run will do and need, known before it starts. */
typedef struct qe_quantize_plan {
    int64_t  linears, kept;                 /* quantized; left as they are */
    uint64_t weights, file_bytes;           /* elements of the quantized linears; bytes of all tensors written */
    uint64_t memory_bytes;                  /* peak of weights, activations and statistics, beside the program's own */
    double   bits_per_weight;               /* of the quantized linears, scales and zeros counted */
    int64_t  calibration_tokens;            /* 0: the method needs none */
} qe_quantize_plan;

/* How far one model is from another on a text. Natural logarithms. */
typedef struct qe_quality {
    int64_t tokens;                         /* predicted */
    double  perplexity_reference, perplexity;
    double  kl_mean, kl_p99, kl_max;        /* of the reference's distribution from the candidate's, per token */
    double  top1_agreement;                 /* share of tokens with the same most likely one */
} qe_quality;

enum { QE_QUANTIZE_RESUME = 1, QE_QUANTIZE_PLAN_ONLY = 2 };

typedef struct qe_quantize_options {
    uint32_t     struct_size;               /* sizeof(qe_quantize_options) */
    uint32_t     flags;                     /* QE_QUANTIZE_* of this header */
    const char  *recipe;                    /* as above */
    const char  *method;                    /* NULL: the recipe's, else the one its scheme is made for */
    const char  *format;                    /* NULL: "compressed-tensors" where it holds the recipe, else "qengine" */
    const char  *out;                       /* a folder (GGUF: a file) that is not there yet */
    const char  *calibration;               /* UTF-8 text; NULL: none */
    size_t       calibration_bytes;
    int32_t      sequence_tokens;           /* of one calibration sequence; 0: 512, at most the model's context */
    int32_t      sequences;                 /* at most so many; 0: 128 */
    uint64_t     shard_bytes;               /* 0: 4 GiB */
    uint64_t     seed;
    void       (*layer)(void *ctx, const qe_quantize_layer *done);      /* NULL: none */
    int        (*progress)(void *ctx, double done, double total);       /* not 0: stop with QE_E_CANCELLED */
    void        *ctx;
    /* Mixed precision: one of the budgets (budget_seconds: below) above 0. `recipe` is then schemes separated by commas (NULL:
     * those of the format) and the call makes its own recipe of them, which it tells. Sensitivities are measured on the
     * calibration text with float inputs, beside the plan's memory in two copies of some logits (256 MiB at most); methods with
     * awq+ or smoothquant+ are refused, since they tie a layer's linears together. */
    double       budget_bits;               /* mean bits of a linear's weight, scales and zeros counted */
    uint64_t     budget_bytes;              /* of all tensors written */
    void       (*choice)(void *ctx, const qe_quantize_choice *choice);  /* NULL: none */
    void       (*chosen)(void *ctx, const char *recipe);                /* NULL: none */
    /* Held-out UTF-8 text; NULL: none. Before the checkpoint takes its place it is compared with the model it was made of, as
     * by qe_quality_measure(), and its report says so. */
    const char  *quality_text;
    size_t       quality_bytes;
    void       (*quality)(void *ctx, const qe_quality *quality); /* NULL: none */
    /* The third budget: of one row through all linears a budget chooses for, as decode runs them. seconds() says what a choice
     * takes, as on the machine the model is meant for: above 0, of a choice without its loss. NULL: measured on the device (a
     * CPU) before anything else, in one linear and 128 MiB of copies. What is measured differs from run to run; the recipe it
     * leads to is what can be repeated. */
    double       budget_seconds;
    double     (*seconds)(void *ctx, const qe_quantize_choice *choice);
} qe_quantize_options;

/* Layer after layer, at most two of them in memory. Runs on the device's threads; the result does not depend on their
 * number. Stopped at any point (even by the machine), a call with QE_QUANTIZE_RESUME and the same options goes on and gives
 * the same bytes. plan may be NULL. QE_E_UNSUPPORTED: the form cannot hold the scheme, or the model is quantized already;
 * QE_E_STATE: `out` is there; QE_E_VALUE: a weight is not finite, or the calibration text is too short; QE_E_IO: the disk. */
QE_API qe_status qe_model_quantize(qe_device *device, const qe_model *model, const qe_quantize_options *options,
                                   qe_quantize_plan *plan, qe_error *err);

/* Distance of `candidate` from `reference` on a text of `count` ids, in windows of `window` tokens (0: 512; at most either
 * context). Where the ids begin with the reference's BOS, so does every window. Takes one session of each engine
 * (QE_E_CAPACITY: none is free) and some 256 MiB of logits. progress counts tokens, and may be NULL. QE_E_ARGUMENT: fewer than
 * two ids; QE_E_MISMATCH: vocabularies of two sizes; QE_E_CANCELLED. *out is written on success alone. */
QE_API qe_status qe_quality_measure(qe_engine *reference, qe_engine *candidate, const int32_t *ids, int64_t count,
                                    int64_t window, qe_progress *progress, void *ctx, qe_quality *out, qe_error *err);

#ifdef __cplusplus
}
#endif
#endif
