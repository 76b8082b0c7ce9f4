/* bench.h -- what the parts of qbench share. Exit codes: 0, 1 error or a failed check, 2 usage, 3 no such backend. */
#ifndef QE_BENCH_H
#define QE_BENCH_H
#include <stdbool.h>
#include <stdio.h>

#include <qengine/gemm.h>


enum { BENCH_OK = 0, BENCH_ERROR = 1, BENCH_USAGE = 2, BENCH_NO_BACKEND = 3, BENCH_LIST = 32 };

typedef struct bench_options {
    const char *mode;                         /* "roofline", "gemm", "tune", "model" */
    const char *backend, *scheme, *shape, *baseline, *model, *quantize;
    const struct bench_scheme *schemes[BENCH_LIST];   /* those of `scheme` */
    int32_t     scheme_count;
    const char *json, *csv, *md, *commit, *gpu, *cache;
    int64_t     m[BENCH_LIST];
    int32_t     m_count;
    int32_t     batch[BENCH_LIST];
    int32_t     batch_count;
    int32_t     experts;                      /* 0: single linears */
    int32_t     group, threads, rounds, prompt, gen;
    bool        check, warm, explain, tune;
} bench_options;

/* One line of results. Numbers that do not apply are NaN, integers 0, texts "". */
typedef struct bench_result {
    const char *kind;
    char        backend[16], impl[64], scheme[32], baseline[32], device[64];
    int64_t     m, n, k;
    int32_t     group, threads, batch, prompt, gen;
    double      us_median, us_p10, us_p90, tops, gbps, roof_pct, baseline_us, speedup, max_err;
    double      prefill_tok_s, decode_tok_s, load_ms, peak_rss_bytes, bits_per_weight;
} bench_result;

/* Where results go: a table on stdout, and the files asked for. */
typedef struct bench_report {
    const bench_options *options;
    FILE                *json, *csv, *md;                /* from the first row on */
    bool                 failed;
    int                  rows;
    const char          *last_kind;
} bench_report;
int          bench_report_open(bench_report *report, const bench_options *options);       /* exit code */
void         bench_report_add(bench_report *report, const bench_result *result);
int          bench_report_close(bench_report *report);                                    /* exit code */
bench_result bench_result_new(const char *kind);
void         bench_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));  /* stderr, when a terminal */
int          bench_fail(const qe_error *err);

/* Sorted quantile, q in [0, 1]; sorts in place. */
double bench_quantile(double *values, int count, double q);
double bench_now_us(void);

/* Roofs of this machine with these threads, measured when called. */
typedef struct bench_roofs {
    double read_gbps, copy_gbps, int8_tops, fp32_tflops, fp16_tflops;
    char   isa[32];
} bench_roofs;
typedef struct bench_roof_meter bench_roof_meter;
/* On the threads of the device that is measured beside it: a pool of its own would still spin on their CPUs. NULL: out of memory. */
bench_roof_meter *bench_roof_create(const qe_device *device);
void              bench_roof_destroy(bench_roof_meter *meter);
void              bench_roof_measure(bench_roof_meter *meter, bench_roofs *out);

/* Loops for one instruction set: `count` rounds; they return the operations done. */
typedef double bench_loop(int64_t count);
double bench_int8_avx2(int64_t count), bench_fp32_avx2(int64_t count);
double bench_int8_avx512(int64_t count), bench_fp32_avx512(int64_t count), bench_int8_amx(int64_t count);

/* Schemes by name, and random weights of one. */
typedef struct bench_scheme {
    const char *name;
    qe_quant    quant;
    bool        float_input, grouped;        /* grouped: --group sets group_k */
} bench_scheme;
int                 bench_schemes_parse(bench_options *o);    /* options.scheme into schemes; says what it knows not; exit code */
void                bench_scheme_act(const bench_scheme *scheme, const qe_quant *quant, qe_act *out);
/* Random codes and plausible scales; block is freed by the caller. */
qe_status           bench_weight(const qe_quant *quant, const qe_act *act, int64_t n, int64_t k, uint64_t seed,
                                 qe_qtensor *out, void **block, qe_error *err);
void                bench_random_floats(float *out, int64_t count, uint64_t seed);
/* Largest |y - exact| / bound over a sample of outputs; above 1 the result is wrong. The input is quantized exactly as
 * the contract says, so the bound is only that of the sums, of weights rounded to u_w (0: not) and of y rounded to u_y.
 * *max_err: largest |y - exact| / rms of exact. */
typedef struct bench_rounding { double u_w, u_y; } bench_rounding;
qe_status           bench_check(const qe_qtensor *weight, const qe_act *act, int64_t chunk_k, bench_rounding u,
                                const float *x, int64_t m, const float *y, double *worst, double *max_err, qe_error *err);

/* FP32 baseline: y[m][n] = x[m][k] w[n][k]^T. NULL when built without. */
const char *bench_openblas_core(void);
void        bench_openblas_setup(char **argv);                   /* may restart the program with the right core type */
void        bench_openblas_threads(int32_t threads);
bool        bench_openblas_gemm(int64_t m, int64_t n, int64_t k, const float *x, const float *w, float *y);

/* ---- CUDA: each says QE_E_UNSUPPORTED when built without ---- */
typedef struct bench_cuda  bench_cuda;         /* a stream and two events */
typedef struct bench_graph bench_graph;        /* calls, captured */
typedef qe_status bench_enqueue(void *ctx, void *stream, qe_error *err);
bench_cuda *bench_cuda_create(int32_t ordinal, qe_error *err);
void        bench_cuda_destroy(bench_cuda *cuda);
void       *bench_cuda_stream(const bench_cuda *cuda);
/* `calls` calls of enqueue() as one graph; they must not allocate or wait. */
qe_status   bench_cuda_record(bench_cuda *cuda, bench_enqueue *enqueue, void *ctx, int calls, bench_graph **out, qe_error *err);
qe_status   bench_cuda_replay(bench_cuda *cuda, bench_graph *graph, double *us_per_call, qe_error *err);
void        bench_graph_destroy(bench_graph *graph);
qe_status   bench_cuda_alloc(size_t bytes, void **out, qe_error *err);
void        bench_cuda_free(void *block);
qe_status   bench_cuda_copy(bench_cuda *cuda, void *dst, const void *src, size_t bytes, qe_error *err);    /* and waits */
qe_status   bench_cuda_enqueue_copy(void *dst, const void *src, size_t bytes, void *stream, qe_error *err);

/* cuBLASLt: y[m][n] = x[m][k] w[n][k]^T, FP16 in and out, or INT8 to INT32. x and w are host memory; copies of w take at
 * least rotate_bytes. The context of bench_cublaslt_enqueue() is the baseline itself. */
typedef struct bench_cublaslt bench_cublaslt;
const char *bench_cublaslt_missing(void);      /* why there is none, or NULL */
qe_status   bench_cublaslt_create(bench_cuda *cuda, bool int8, int64_t m, int64_t n, int64_t k, const void *x, const void *w,
                                  double rotate_bytes, bench_cublaslt **out, qe_error *err);
qe_status   bench_cublaslt_enqueue(void *ctx, void *stream, qe_error *err);
int         bench_cublaslt_copies(const bench_cublaslt *blas);
const void *bench_cublaslt_y(const bench_cublaslt *blas);                      /* device memory */
void        bench_cublaslt_destroy(bench_cublaslt *blas);

typedef struct bench_gpu_meter bench_gpu_meter;
qe_status bench_gpu_meter_create(bench_cuda *cuda, bench_gpu_meter **out, qe_error *err);
void      bench_gpu_meter_destroy(bench_gpu_meter *meter);
qe_status bench_gpu_meter_measure(bench_gpu_meter *meter, bench_roofs *out, qe_error *err);
int       bench_roofline_cuda(const qe_device_info *info, bench_report *report);

/* Each shape that `text` ("4096x1024" or the start of names of shapes.txt) stands for; exit code of the last call. */
typedef int bench_shape_visit(void *ctx, int64_t n, int64_t k);
int bench_each_shape(const char *text, bench_shape_visit *visit, void *ctx);
/* --explain for a GPU that is not here, from its descriptor in gpus.txt. */
int bench_explain_gpu(const bench_options *options);

int bench_roofline(const bench_options *options, bench_report *report);
int bench_gemm(const bench_options *options, bench_report *report);
int bench_grouped(const bench_options *options, bench_report *report);                     /* --experts */
int bench_model(const bench_options *options, bench_report *report);
int bench_device(const bench_options *options, qe_device **out);              /* exit code; says why on stderr */
#endif
