/* qengine/quantize.h -- how weights and activations get their quantization: ranges, observers, rounding methods, the
 * transforms before them, mixed precision, fake quantization for training, static requantization, and the report.
 *
 * Pure arithmetic on float arrays and canonical tensors; no file, no model. Weights are w[n][ldw] in the caller's
 * column order, inputs x[rows][ldx]. Every function is deterministic: same inputs and seed, same bits for any executor
 * and any cut into bands (per-tensor scales excepted, which need all rows). An executor of NULL runs on the
 * caller's thread. Scratch comes from malloc and is gone on return; QE_E_NOMEM says how much was wanted. Distinct
 * outputs may be filled concurrently.
 *
 * Errors common to all: QE_E_ARGUMENT for bad sizes and options, QE_E_VALUE naming row and column of the first NaN or
 * Inf, QE_E_STATE for a calibration without data. Outputs are undefined after any error but QE_E_ARGUMENT.
 *
 * Options structs start with struct_size = sizeof; a zero field means its default. */
#ifndef QENGINE_QUANTIZE_H
#define QENGINE_QUANTIZE_H
#include <qengine/gemm.h>
#ifdef __cplusplus
extern "C" {
#endif

/* ---- lists ------------------------------------------------------------------------------------------------------- */
/* How a range is chosen: X(name, value, text, what). */
#define QE_RANGE_LIST(X)                                                                                   \
    X(QE_RANGE_MINMAX, 0, "minmax", "the exact extremes")                                                  \
    X(QE_RANGE_MOVING, 1, "moving", "moving average of the extremes of batches (activations)")             \
    X(QE_RANGE_PERCENTILE, 2, "percentile", "a percentile of the values")                                  \
    X(QE_RANGE_MSE, 3, "mse", "the clip ratio of least squared error")                                     \
    X(QE_RANGE_KL, 4, "kl", "the threshold of least KL divergence, 2048 bins over 128 levels")             \
    X(QE_RANGE_CROSS_ENTROPY, 5, "ce", "the clip ratio that keeps softmax(x), for logits")                 \
    X(QE_RANGE_OCTAV, 6, "octav", "Newton's recursion on the clipping and rounding error")                 \
    X(QE_RANGE_OUTPUT, 7, "output", "the cut of least output error on sampled inputs (AWQ; weights)")
typedef enum qe_range_method {
#define QE_X(name, value, text, what) name = value,
    QE_RANGE_LIST(QE_X)
#undef QE_X
    QE_RANGE_FORCE_INT32 = 0x7fffffff
} qe_range_method;

/* How codes are chosen: X(name, value, text, needs: QE_NEEDS_*, what). */
enum { QE_NEEDS_NOTHING = 0, QE_NEEDS_HESSIAN = 1, QE_NEEDS_INPUTS = 2 };
#define QE_METHOD_LIST(X)                                                                                  \
    X(QE_METHOD_RTN, 0, "rtn", 0, "round to nearest, any scheme and range")                                \
    X(QE_METHOD_GPTQ, 1, "gptq", 1, "second order, column by column (GPTQ, LDLQ); any scheme")             \
    X(QE_METHOD_ADAROUND, 2, "adaround", 2, "learned rounding up or down against the layer's output")      \
    X(QE_METHOD_KMEANS, 3, "kmeans", 0, "a table by k-means, weighted by the Hessian diagonal; code LUT")  \
    X(QE_METHOD_TWN, 4, "twn", 0, "ternary, threshold 0.7 mean|x|; int2 with zero 1")                      \
    X(QE_METHOD_TTQ, 5, "ttq", 0, "ternary with two scales per row; 2-bit LUT, one table per row")         \
    X(QE_METHOD_ABSMEAN, 6, "absmean", 0, "ternary, scale mean|x| (BitNet b1.58); int2 with zero 1")       \
    X(QE_METHOD_BINARY, 7, "binary", 0, "sign(x) times mean|x|; code SIGN")                                \
    X(QE_METHOD_STOCHASTIC, 8, "stochastic", 0, "+1 with probability (x/s + 1)/2, seeded; code SIGN")
typedef enum qe_method {
#define QE_X(name, value, text, needs, what) name = value,
    QE_METHOD_LIST(QE_X)
#undef QE_X
    QE_METHOD_FORCE_INT32 = 0x7fffffff
} qe_method;

/* Text of a value and back; NULL and -1 for unknown ones. */
QE_API const char *qe_range_method_name(int32_t method);
QE_API int32_t     qe_range_method_find(const char *text);
QE_API const char *qe_method_name(int32_t method);
QE_API int32_t     qe_method_find(const char *text);
QE_API uint32_t    qe_method_needs(int32_t method);

/* Schemes with a name, "w4a16-g128": what programs list and recipes may say in place of a descriptor's text. */
typedef struct qe_scheme {
    const char *name, *weight, *what;  /* weight: a text for qe_quant_parse() */
    const char *input;                 /* NULL: float; else the text of a dynamic input, "int8:channel:f32" */
    int32_t     method;                /* the qe_method this scheme is made for: RTN, or KMEANS, TWN, ... */
    int32_t     full_range;            /* 1: symmetric codes use the lowest code too (GGUF) */
} qe_scheme;
QE_API const qe_scheme *qe_scheme_at(int32_t index);        /* NULL past the end */
QE_API const qe_scheme *qe_scheme_find(const char *name);   /* NULL: none; the caller may try qe_quant_parse() */

/* ---- ranges ------------------------------------------------------------------------------------------------------ */
typedef struct qe_range_options {
    size_t  struct_size;
    int32_t method;         /* qe_range_method */
    int32_t steps;          /* MSE, CE: clip ratios tried; 0: 60 for values and histograms, weights see rounding */
    float   least_ratio;    /* MSE, CE: smallest clip ratio; 0: 0.2 */
    float   percentile;     /* in percent; 0: 99.99 */
    float   momentum;       /* MOVING: c of m = c m + (1-c) batch; 0: 0.99 */
    int32_t power_of_two;   /* 1: the scale becomes the best power of two */
    int32_t full_range;     /* 1: symmetric codes use the lowest code too */
} qe_range_options;

/* A range of values, low <= 0 <= high, from the values themselves. `quant` says bits, symmetric or not, and code.
 * rows x columns matter to CROSS_ENTROPY alone (one softmax per row). MOVING counts the whole array as one batch. */
QE_API qe_status qe_range_of(const float *x, int64_t rows, int64_t columns, int64_t ldx, const qe_quant *quant,
                             const qe_range_options *options, float *low, float *high, qe_error *err);
/* Scale and integer zero (in units of c) of a range under code INT; a range of nothing gives 1 and the middle code. */
QE_API void      qe_range_scale(float low, float high, const qe_quant *quant, const qe_range_options *options,
                                float *scale, int32_t *zero);
/* Threshold bin of KL: how many of the `bins` bins of |x| are kept so that `levels` levels lose least (TensorRT's
 * calibration). 0 if the histogram is empty. Candidates are levels .. bins. */
QE_API int32_t   qe_range_kl_bins(const uint64_t *histogram, int32_t bins, int32_t levels);

/* ---- observers --------------------------------------------------------------------------------------------------- */
/* Sees batches of activations, remembers what every range method needs in bounded memory. Merging two observers equals
 * observing both in order: bit for bit for extremes, counts and histograms (bins are powers of two wide, so halving the
 * resolution is exact), within 1e-12 for sums; moving averages and the rows kept for CROSS_ENTROPY depend on order.
 * One thread at a time per observer. */
typedef struct qe_observer qe_observer;
enum { QE_OBSERVER_BINS = 8192 };      /* of |x|, for each sign */
typedef struct qe_observed {
    uint64_t count, batches;
    float    low, high;                /* exact extremes of the values */
    float    moving_low, moving_high;
    double   sum, sum_abs, sum_squares;
    int32_t  bin_log2;                 /* bins are 2^bin_log2 wide */
    const uint64_t *positive, *negative;   /* [QE_OBSERVER_BINS]; bin i counts |x| in [i, i+1) * 2^bin_log2 */
} qe_observed;
QE_API qe_status qe_observer_create(const qe_range_options *options, qe_observer **out, qe_error *err);
QE_API void      qe_observer_destroy(qe_observer *o);      /* NULL is fine */
QE_API qe_status qe_observer_add(qe_observer *o, const float *x, int64_t rows, int64_t columns, int64_t ldx,
                                 qe_error *err);
QE_API qe_status qe_observer_merge(qe_observer *o, const qe_observer *later, qe_error *err);
QE_API void      qe_observer_look(const qe_observer *o, qe_observed *out);      /* pointers live until the next call */
/* The range under `quant`; QE_E_STATE if nothing was observed. `method` below 0: the observer's own. */
QE_API qe_status qe_observer_range(const qe_observer *o, int32_t method, const qe_quant *quant, float *low, float *high,
                                   qe_error *err);
/* Fill *act for static quantization of an input: mode STATIC, the given descriptor (group_n 0), scale and zero. */
QE_API qe_status qe_observer_act(const qe_observer *o, int32_t method, const qe_quant *quant, qe_act *act,
                                 qe_error *err);
/* Bytes of the saved form; written if they fit out_bytes (little endian, a checksum at the end). */
QE_API size_t    qe_observer_save(const qe_observer *o, void *out, size_t out_bytes);
QE_API qe_status qe_observer_load(const void *data, size_t bytes, qe_observer **out, qe_error *err);

/* ---- what calibration gathers for weights ------------------------------------------------------------------------ */
/* h[k][k] += sum over rows of x x^T: lower triangle only, float64 sums of short float32 ones. Start from zeros; partial
 * Hessians add up. */
QE_API qe_status qe_hessian_add(double *h, int64_t k, const float *x, int64_t rows, int64_t ldx,
                                const qe_executor *executor, qe_error *err);
/* Per column: largest |x| and sum of |x|; start from zeros. Either output may be NULL. */
QE_API qe_status qe_columns_add(float *absmax, double *sum_abs, int64_t k, const float *x, int64_t rows, int64_t ldx,
                                qe_error *err);

/* ---- rounding ---------------------------------------------------------------------------------------------------- */
/* What is known of a layer's input; members a method does not need may be NULL. Columns in the caller's order. */
typedef struct qe_calibration {
    const double *hessian;             /* [k][k], lower triangle, as qe_hessian_add() left it */
    const float  *x;                   /* [x_rows][ldx]: a sample of inputs */
    int64_t       x_rows, ldx;
} qe_calibration;

enum { QE_ORDER_NONE = 0,              /* columns as they are */
       QE_ORDER_GROUPS = 1,            /* GPTQ: by falling Hessian diagonal; groups follow it, t->order is set */
       QE_ORDER_STATIC = 2 };          /* GPTQ: the same order of work, groups and scales of the caller's order */
typedef struct qe_round_options {
    size_t           struct_size;
    int32_t          method;           /* qe_method */
    int32_t          order;            /* QE_ORDER_* */
    qe_range_options range;            /* of weights: MINMAX, PERCENTILE, MSE, OCTAV, OUTPUT (RTN); struct_size 0: all defaults */
    float            damping;          /* GPTQ: added to the diagonal, relative to its mean; 0: 0.01 */
    int32_t          iterations;       /* ADAROUND: steps, 0: 1000; KMEANS: 0: 50 */
    float            learning_rate;    /* ADAROUND; 0: 0.01 */
    float            regularizer;      /* ADAROUND: of 1 - |2h - 1|^beta, beside k times the error over RTN's; 0: 100 */
    int32_t          batch_rows;       /* ADAROUND: rows of x per step; 0: 32 */
    int32_t          exact;            /* KMEANS: 1: exact by dynamic programming where a table sees <= 65536 values */
    uint64_t         seed;
    const qe_executor *executor;
} qe_round_options;

/* Round w[t->n][ldw] under t->quant into t's placed arrays: scales, zeros, tables and codes, and t->facts.
 * RTN, GPTQ and ADAROUND take every scheme with scales (float codes: plain rounding). With a Hessian the range search
 * of RTN weighs columns by its diagonal. QE_E_UNSUPPORTED: the method cannot make this scheme. No row that ADAROUND
 * returns has more output error on its sample than RTN's. Sources: GPTQ arXiv 2210.17323 (as the LDLQ of 2307.13304),
 * AdaRound 2004.10568, TWN 1605.04711, TTQ 1612.01064, BitNet b1.58 2402.17764, BWN and XNOR-Net 1603.05279. */
QE_API qe_status qe_round_weights(const float *w, int64_t ldw, const qe_calibration *calibration,
                                  const qe_round_options *options, qe_qtensor *t, qe_error *err);

/* 1-D k-means of `count` values (weights NULL: all 1) into 2^bits ascending table entries. Lloyd from seeded k-means++,
 * or exact by dynamic programming. *error: the weighted sum of squares; may be NULL. */
QE_API qe_status qe_kmeans(const float *x, const float *weights, int64_t count, int32_t bits, int32_t exact,
                           int32_t iterations, uint64_t seed, float *table, double *error, qe_error *err);

/* ---- transforms before rounding ---------------------------------------------------------------------------------- */
/* Linears that share one input: n[i] rows of w[i][n[i]][ldw[i]], k columns. */
typedef struct qe_linears {
    int32_t             count;
    const float *const *w;
    const int64_t      *n, *ldw;
    int64_t             k;
} qe_linears;
typedef struct qe_smooth_options {
    size_t           struct_size;
    int32_t          by_weights;       /* 0: AWQ, s = mean|x|^a; 1: SmoothQuant, s = max|x|^a / max|w|^(1-a) */
    int32_t          steps;            /* a = 0/steps .. steps/steps; 0: 20 */
    float            alpha;            /* > 0: no search, this a */
    int32_t          most_rows;        /* rows of each w used to measure an error; 0: 512 (spread evenly) */
    qe_range_options range;
    const qe_executor *executor;
} qe_smooth_options;
/* Column scales s[k] for W' = W * s, X' = X / s, chosen by the output error of the rounded W' (and of X' rounded as
 * `input` says; NULL or FLOAT: not rounded) on the sample. sum_abs and absmax from qe_columns_add() over `tokens` rows.
 * *alpha, *error (mean square per output): may be NULL. s is 1 where a column is silent, and all 1 if nothing is won.
 * Source: AWQ arXiv 2306.00978; SmoothQuant 2211.10438. */
QE_API qe_status qe_smooth_search(const qe_linears *linears, const qe_calibration *calibration, const float *absmax,
                                  const double *sum_abs, int64_t tokens, const qe_quant *weight, const qe_act *input,
                                  const qe_smooth_options *options, float *s, float *alpha, double *error,
                                  qe_error *err);
/* w[r][c] *= s[c] (divide: /=), in place. */
QE_API void      qe_columns_scale(float *w, int64_t n, int64_t k, int64_t ldw, const float *s, int32_t divide);

/* Largest block that divides k and has a Hadamard matrix here: 2^e times 1 or an order m <= 256 of Paley's kinds. */
QE_API int64_t   qe_hadamard_block(int64_t k);
/* Rows of x times the orthonormal Hadamard matrix of each block of columns, in place; with a seed other than 0 columns
 * get random signs first (x D H), `inverse` undoes it. Both W and X transformed: X W^T is unchanged. Fast
 * Walsh-Hadamard in float32, Sylvester order. Source: QuaRot arXiv 2404.00456; Paley 1933. */
QE_API qe_status qe_hadamard(float *x, int64_t rows, int64_t k, int64_t ldx, int64_t block, uint64_t seed,
                             int32_t inverse, const qe_executor *executor, qe_error *err);

/* ---- mixed precision --------------------------------------------------------------------------------------------- */
/* One choice for one layer: what it costs of the budget (bytes or nanoseconds) and the loss it adds (measured). */
typedef struct qe_choice {
    int64_t cost;
    double  loss;
} qe_choice;
/* Exactly one choice per layer, sum of costs <= budget, least sum of losses: exact, by dynamic programming over the
 * Pareto front. choices[layers][count]; a negative cost: not offered. picked[layers]. Ties: less cost, then the lower
 * indices. QE_E_LIMIT: no selection fits, or more than 4 million partial fronts (coarsen the costs). */
QE_API qe_status qe_mixed_solve(const qe_choice *choices, int32_t layers, int32_t count, int64_t budget,
                                int32_t *picked, int64_t *cost, double *loss, qe_error *err);

/* ---- quantization-aware training --------------------------------------------------------------------------------- */
/* y = s (clamp(rne(x / s + z), low, high) - z) over x[n][k]; groups as in a descriptor (0: the whole dimension).
 * scale[Gn][Gk] > 0, zero[Gn][Gk] or NULL (0). */
typedef struct qe_fake_quant {
    int64_t      n, k;
    int32_t      group_n, group_k, low, high;
    const float *scale, *zero;
} qe_fake_quant;
QE_API qe_status qe_fake_quantize_forward(const qe_fake_quant *f, const float *x, float *y, qe_error *err);
/* dx = dy inside [low, high], 0 outside (straight through). dscale += lsq * sum dy * d, d = q - z - x/s inside and the
 * bound - z outside (LSQ, arXiv 1902.08153), lsq = 1/sqrt(group size * high) if lsq_scaled, else 1. dzero += sum of
 * -s dy outside (LSQ+). dscale and dzero are double[Gn][Gk] and may be NULL. */
QE_API qe_status qe_fake_quantize_backward(const qe_fake_quant *f, const float *x, const float *dy, int32_t lsq_scaled,
                                           float *dx, double *dscale, double *dzero, qe_error *err);

/* The same where a trainer's tensors are: on CUDA all pointers, those of f too, are the device's, and the work is enqueued
 * on the stream; elsewhere they are the host's, and the call returns when all is written. Computed in fp32 from x and dy
 * of `type`, rounded once to it. Sums in float64, in an order of their own that no run changes. A scale that is not
 * positive and finite is QE_E_VALUE on the host; on CUDA it makes its group's out and gradients NaN. */
typedef struct qe_fake_quant_run {
    size_t      struct_size;
    int32_t     type;              /* of x, dy and out: QE_CODE_F32, F16 or BF16 */
    int32_t     lsq_scaled;
    const void *x, *dy;            /* [n][k]. dy NULL: forward; else backward */
    void       *out;               /* [n][k]: y, or dx; may be x or dy itself */
    double     *dscale, *dzero;    /* backward: added to; NULL: not wanted */
    void       *workspace;         /* backward: qe_fake_quantize_workspace() bytes, 256-byte aligned */
    size_t      workspace_bytes;
    void       *stream;            /* cudaStream_t; NULL on the CPU */
} qe_fake_quant_run;
QE_API size_t    qe_fake_quantize_workspace(const qe_device *device, const qe_fake_quant *f);   /* may be 0 */
QE_API qe_status qe_fake_quantize_run(const qe_device *device, const qe_fake_quant *f, const qe_fake_quant_run *run,
                                      qe_error *err);

/* ---- static requantization (quantization.md 7.6) ----------------------------------------------------------------- */
typedef struct qe_requant {
    float   multiplier;                /* float(double(s_x) * s_w / s_y) */
    int32_t fixed, shift;              /* fixed * 2^-shift nearest the same quotient; 31 <= shift <= 62, 0 <= fixed */
} qe_requant;
/* One output channel. QE_E_RANGE if the quotient is not finite, not positive, or 1 or more. */
QE_API qe_status qe_requant_make(float s_x, float s_w, float s_y, qe_requant *out, qe_error *err);
/* bias of an int32 accumulator: rne(b / (s_x s_w)), QE_E_RANGE if it does not fit. */
QE_API qe_status qe_requant_bias(float bias, float s_x, float s_w, int32_t *out, qe_error *err);
/* q = clamp(rne(fl(float(acc) * multiplier)) + zero, -128, 127), and its integer-only twin. acc holds the bias. */
QE_API int8_t    qe_requant_float(int32_t acc, const qe_requant *r, int32_t zero);
QE_API int8_t    qe_requant_fixed(int32_t acc, const qe_requant *r, int32_t zero);

/* ---- report ------------------------------------------------------------------------------------------------------ */
typedef struct qe_layer_report {
    char    name[128], scheme[96], method[32];
    int64_t n, k;
    double  bits_per_weight;
    double  sqnr_db;                   /* of weights; +inf if exact */
    double  max_error, mean_error;     /* of |w - w'| */
    double  error_bound;               /* what nearest rounding under these scales guarantees; RTN keeps it */
    double  output_sqnr_db, output_cosine;   /* on the calibration sample or its Hessian; NaN without one */
} qe_layer_report;
/* Compare w with what t holds, blocks of rows on the executor. Leaves name and method to the caller. */
QE_API qe_status qe_report_measure(const float *w, int64_t ldw, const qe_qtensor *t, const qe_calibration *calibration,
                                   const qe_executor *executor, qe_layer_report *out, qe_error *err);
/* One layer as one line of JSON, numbers that are not finite as null. Returns the length needed, like snprintf. */
QE_API size_t    qe_report_json(const qe_layer_report *report, char *text, size_t text_bytes);

#ifdef __cplusplus
}
#endif
#endif
