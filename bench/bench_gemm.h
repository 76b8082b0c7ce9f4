/* bench_gemm.h -- one shape and scheme under measurement: shared by the GEMM table and the tuning. */
#ifndef QE_BENCH_GEMM_H
#define QE_BENCH_GEMM_H
#include "bench.h"
#include "qk.h"

enum { COPIES_MAX = 1024, ROUNDS_MAX = 201, GRAPH_CALLS_MAX = 4096 };

typedef struct gemm_run {
    const bench_options *options;
    bench_report        *report;
    qe_device           *device;
    qe_device_info       info;
    bench_roof_meter    *meter;
    bench_cuda          *cuda;                 /* NULL on the CPU; so are the next two */
    bench_gpu_meter     *gpu_meter;
    bench_cublaslt      *blas;
    int32_t              io_type;              /* of x and y */
    const qk_backend    *backend;
    qk_device            facts;
    qk_queue             queue;
    const bench_scheme  *scheme;
    qe_quant             quant;
    qe_act               act;
    int64_t              n, k;
    qe_qtensor           weight;
    void                *block;
    qe_linear           *copies[COPIES_MAX];
    int                  copies_count, turn;
    float               *dense;                /* the weight in FP32, for the baseline */
    bool                 failed_check;
} gemm_run;

/* Buffers of one m; `dev_` ones lie where the backend works. x and y are exactly what those hold. */
typedef struct gemm_buffers {
    float    *x, *y;
    uint16_t *half;                            /* staging where x and y are float16 */
    void     *dev_x, *dev_y, *workspace;
    size_t    workspace_bytes;
    int64_t   m;
    gemm_run *run;
} gemm_buffers;

qe_status bench_buffers_make(gemm_run *run, int64_t m, gemm_buffers *b, qe_error *err);
void      bench_buffers_free(gemm_run *run, gemm_buffers *b);
/* bench_enqueue, with a gemm_buffers: one call with the next copy of the weight. */
qe_status bench_gemm_enqueue(void *ctx, void *stream, qe_error *err);
/* Calls of `us` each that make a sample. */
int       bench_calls(double us);
/* CPU: microseconds of a call, over `calls` of them. CUDA: a graph of whole turns through the copies. */
qe_status bench_sample(gemm_run *run, gemm_buffers *b, int calls, double *us, qe_error *err);
qe_status bench_graph_of(gemm_run *run, bench_enqueue *enqueue_one, void *ctx, int copies, bench_graph **out, qe_error *err);

/* An empty cache where there is none: whatever stands in the way of writing it is found before measuring. */
qe_status bench_tune_open(const char *cache, qe_error *err);
/* Measures the plans of m tokens, tells, and puts the fastest into the cache that --cache names. */
qe_status bench_tune(gemm_run *run, int64_t m, qe_error *err);
#endif
