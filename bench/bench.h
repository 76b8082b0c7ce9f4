/* bench.h -- what the parts of qbench share. Exit codes: 0, 1 error or a failed check, 2 usage, 3 no such backend. */
#ifndef QE_BENCH_H
#define QE_BENCH_H
#include <stdbool.h>
#include <stdio.h>

#include <qengine/gemm.h>

#include "base/pool.h"

enum { BENCH_OK = 0, BENCH_ERROR = 1, BENCH_USAGE = 2, BENCH_NO_BACKEND = 3, BENCH_LIST = 32 };

typedef struct bench_options {
    const char *mode;                         /* "roofline", "gemm", "model" */
    const char *backend, *scheme, *shape, *baseline, *model;
    const char *json, *csv, *md, *commit;
    int64_t     m[BENCH_LIST];
    int32_t     m_count;
    int32_t     batch[BENCH_LIST];
    int32_t     batch_count;
    int32_t     group, threads, rounds, prompt, gen;
    bool        check, warm, explain;
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
    FILE                *json, *csv, *md;
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
    double read_gbps, copy_gbps, int8_tops, fp32_tflops;
    char   isa[32];
} bench_roofs;
typedef struct bench_roof_meter bench_roof_meter;
bench_roof_meter *bench_roof_create(qe_pool *pool, int32_t threads);          /* NULL: out of memory */
void              bench_roof_destroy(bench_roof_meter *meter);
void              bench_roof_measure(bench_roof_meter *meter, bench_roofs *out);

/* Loops for one instruction set: `count` rounds; they return the operations done. */
typedef double bench_loop(int64_t count);
double bench_int8_avx2(int64_t count), bench_fp32_avx2(int64_t count);
double bench_int8_avx512(int64_t count), bench_fp32_avx512(int64_t count);

/* Schemes by name, and random weights of one. */
typedef struct bench_scheme {
    const char *name;
    qe_quant    quant;
    bool        float_input, grouped;        /* grouped: --group sets group_k */
} bench_scheme;
const bench_scheme *bench_scheme_find(const char *name, size_t bytes);
extern const char   bench_scheme_names[];
void                bench_scheme_act(const bench_scheme *scheme, const qe_quant *quant, qe_act *out);
/* Random codes and plausible scales; block is freed by the caller. */
qe_status           bench_weight(const qe_quant *quant, const qe_act *act, int64_t n, int64_t k, uint64_t seed,
                                 qe_qtensor *out, void **block, qe_error *err);
void                bench_random_floats(float *out, int64_t count, uint64_t seed);
/* Largest |y - exact| / bound over a sample of outputs; above 1 the result is wrong. The input is quantized exactly as
 * the contract says, so the bound is only that of the sums. *max_err: largest |y - exact| / rms of exact. */
qe_status           bench_check(const qe_qtensor *weight, const qe_act *act, int64_t chunk_k, const float *x, int64_t m,
                                const float *y, double *worst, double *max_err, qe_error *err);

/* FP32 baseline: y[m][n] = x[m][k] w[n][k]^T. NULL when built without. */
const char *bench_openblas_core(void);
void        bench_openblas_setup(char **argv);                   /* may restart the program with the right core type */
void        bench_openblas_threads(int32_t threads);
bool        bench_openblas_gemm(int64_t m, int64_t n, int64_t k, const float *x, const float *w, float *y);

int bench_roofline(const bench_options *options, bench_report *report);
int bench_gemm(const bench_options *options, bench_report *report);
int bench_model(const bench_options *options, bench_report *report);
int bench_device(const bench_options *options, qe_device **out);              /* exit code; says why on stderr */
#endif
