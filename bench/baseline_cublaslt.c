/* baseline_cublaslt.c -- cuBLASLt GEMMs: FP16 as the yardstick of the kernels, INT8 and FP16 of one large size as roofs.
 *
 * The library is opened when it is asked for, so qbench starts without it and its version may differ from the toolkit's
 * it was built with. 64 MiB of workspace; every algorithm the heuristic proposes is timed, the fastest is kept. */
#define _GNU_SOURCE
#include "bench.h"

#ifdef QE_HAVE_CUBLASLT
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { ALGOS = 16, WORKSPACE_BYTES = 64 << 20, TRIALS = 3 };

/* name, result, parameters */
#define CUBLASLT_FUNCTIONS(X)                                                                                             \
    X(Create, (cublasLtHandle_t *))                                                                                       \
    X(Destroy, (cublasLtHandle_t))                                                                                        \
    X(MatmulDescCreate, (cublasLtMatmulDesc_t *, cublasComputeType_t, cudaDataType_t))                                    \
    X(MatmulDescDestroy, (cublasLtMatmulDesc_t))                                                                          \
    X(MatmulDescSetAttribute, (cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *, size_t))               \
    X(MatrixLayoutCreate, (cublasLtMatrixLayout_t *, cudaDataType, uint64_t, uint64_t, int64_t))                          \
    X(MatrixLayoutDestroy, (cublasLtMatrixLayout_t))                                                                      \
    X(MatmulPreferenceCreate, (cublasLtMatmulPreference_t *))                                                             \
    X(MatmulPreferenceDestroy, (cublasLtMatmulPreference_t))                                                              \
    X(MatmulPreferenceSetAttribute,                                                                                       \
      (cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void *, size_t))                           \
    X(MatmulAlgoGetHeuristic,                                                                                             \
      (cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,    \
       cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t *, int *))                \
    X(Matmul, (cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *, cublasLtMatrixLayout_t, const void *,  \
               cublasLtMatrixLayout_t, const void *, const void *, cublasLtMatrixLayout_t, void *,                        \
               cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t))

typedef struct blas_api {
#define X(name, parameters) cublasStatus_t (*name) parameters;
    CUBLASLT_FUNCTIONS(X)
#undef X
} blas_api;

struct bench_cublaslt {
    blas_api                        api;
    void                           *library;
    cublasLtHandle_t                handle;
    cublasLtMatmulDesc_t            matmul;
    cublasLtMatrixLayout_t          w_layout, x_layout, y_layout;
    cublasLtMatmulHeuristicResult_t found[ALGOS];
    int                             found_count, best;
    bool                            int8;
    int64_t                         m, n, k;
    size_t                          w_bytes;
    char                           *w;             /* copies of the weight, one after the other */
    void                           *x, *y, *workspace;
    int                             copies, turn;
};

static qe_status check(cublasStatus_t status, const char *what, qe_error *err) {
    if (status == CUBLAS_STATUS_SUCCESS) return QE_OK;
    return qe_error_set(err, QE_E_DEVICE, "cublasLt: %s: status %d", what, (int)status);
}

static qe_status open_library(bench_cublaslt *b, qe_error *err) {
    char name[32];
    for (int major = CUBLAS_VER_MAJOR; major >= 12 && !b->library; major--) {
        snprintf(name, sizeof name, "libcublasLt.so.%d", major);
        b->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (!b->library) return qe_error_set(err, QE_E_UNSUPPORTED, "cublasLt: %s was not found", name);
#define X(name, parameters)                                                                                               \
    *(void **)&b->api.name = dlsym(b->library, "cublasLt" #name);                                                         \
    (void)sizeof(b->api.name = cublasLt##name); /* not called nor linked: the compiler compares the types */              \
    if (!b->api.name) return qe_error_set(err, QE_E_UNSUPPORTED, "cublasLt: no function " #name);
    CUBLASLT_FUNCTIONS(X)
#undef X
    return QE_OK;
}

/* Y[m][n] = X[m][k] W[n][k]^T row by row is Y^T = W X^T in columns: W transposed, X as it is. */
static qe_status describe(bench_cublaslt *b, qe_error *err) {
    cudaDataType_t      in = b->int8 ? CUDA_R_8I : CUDA_R_16F, out = b->int8 ? CUDA_R_32I : CUDA_R_16F;
    cublasComputeType_t compute = b->int8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F;
    cublasOperation_t   transposed = CUBLAS_OP_T;
    uint64_t            m = (uint64_t)b->m, n = (uint64_t)b->n, k = (uint64_t)b->k;
    size_t              workspace = WORKSPACE_BYTES;
    cublasLtMatmulPreference_t preference = NULL;
    QE_TRY(check(b->api.Create(&b->handle), "creating a handle", err));
    QE_TRY(check(b->api.MatmulDescCreate(&b->matmul, compute, b->int8 ? CUDA_R_32I : CUDA_R_32F), "describing", err));
    QE_TRY(check(b->api.MatmulDescSetAttribute(b->matmul, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
                 "describing", err));
    QE_TRY(check(b->api.MatrixLayoutCreate(&b->w_layout, in, k, n, b->k), "describing W", err));
    QE_TRY(check(b->api.MatrixLayoutCreate(&b->x_layout, in, k, m, b->k), "describing X", err));
    QE_TRY(check(b->api.MatrixLayoutCreate(&b->y_layout, out, n, m, b->n), "describing Y", err));
    QE_TRY(check(b->api.MatmulPreferenceCreate(&preference), "choosing", err));
    qe_status status = check(b->api.MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                 &workspace, sizeof workspace), "choosing", err);
    if (!status)
        status = check(b->api.MatmulAlgoGetHeuristic(b->handle, b->matmul, b->w_layout, b->x_layout, b->y_layout, b->y_layout,
                                                     preference, ALGOS, b->found, &b->found_count), "choosing", err);
    b->api.MatmulPreferenceDestroy(preference);
    if (!status && !b->found_count) return qe_error_set(err, QE_E_UNSUPPORTED, "cublasLt: no algorithm for this shape");
    return status;
}

/* bench_enqueue: one product with the next copy of the weight. */
qe_status bench_cublaslt_enqueue(void *ctx, void *stream, qe_error *err) {
    static const float   one = 1, zero = 0;
    static const int32_t one_int = 1, zero_int = 0;
    bench_cublaslt      *b = ctx;
    b->turn = (b->turn + 1) % b->copies;
    return check(b->api.Matmul(b->handle, b->matmul, b->int8 ? (const void *)&one_int : &one, b->w + (size_t)b->turn * b->w_bytes,
                               b->w_layout, b->x, b->x_layout, b->int8 ? (const void *)&zero_int : &zero, b->y, b->y_layout,
                               b->y, b->y_layout, &b->found[b->best].algo, b->workspace, WORKSPACE_BYTES, stream),
                 "a product", err);
}

/* Times all that the heuristic found and keeps the fastest; one that fails is passed over. */
static qe_status choose(bench_cublaslt *b, bench_cuda *cuda, qe_error *err) {
    double best_us = 0;
    int    best = -1;
    for (int i = 0; i < b->found_count; i++) {
        bench_graph *graph;
        b->best = i;
        if (b->found[i].state != CUBLAS_STATUS_SUCCESS) continue;
        if (bench_cuda_record(cuda, bench_cublaslt_enqueue, b, b->copies, &graph, err)) continue;
        for (int trial = 0; trial < TRIALS; trial++) {
            double us;
            if (bench_cuda_replay(cuda, graph, &us, err)) break;
            if (trial && (best < 0 || us < best_us)) best_us = us, best = i;      /* the first one warms up */
        }
        bench_graph_destroy(graph);
    }
    if (best < 0) return qe_error_set(err, QE_E_DEVICE, "cublasLt: none of %d algorithms ran", b->found_count);
    b->best = best;
    return QE_OK;
}

static qe_status fill(bench_cublaslt *b, bench_cuda *cuda, const void *x, const void *w, qe_error *err) {
    size_t element = b->int8 ? 1 : 2;
    QE_TRY(bench_cuda_alloc((size_t)b->copies * b->w_bytes, (void **)&b->w, err));
    QE_TRY(bench_cuda_alloc((size_t)(b->m * b->k) * element, &b->x, err));
    QE_TRY(bench_cuda_alloc((size_t)(b->m * b->n) * (b->int8 ? 4 : 2), &b->y, err));
    QE_TRY(bench_cuda_alloc(WORKSPACE_BYTES, &b->workspace, err));
    QE_TRY(bench_cuda_copy(cuda, b->x, x, (size_t)(b->m * b->k) * element, err));
    for (int i = 0; i < b->copies; i++)
        QE_TRY(bench_cuda_copy(cuda, b->w + (size_t)i * b->w_bytes, i ? b->w : w, (size_t)(b->n * b->k) * element, err));
    return QE_OK;
}

qe_status bench_cublaslt_create(bench_cuda *cuda, bool int8, int64_t m, int64_t n, int64_t k, const void *x, const void *w,
                                double rotate_bytes, bench_cublaslt **out, qe_error *err) {
    bench_cublaslt *b = calloc(1, sizeof *b);
    *out = NULL;
    if (!b) return qe_error_set(err, QE_E_NOMEM, "no memory for a baseline");
    b->int8 = int8, b->m = m, b->n = n, b->k = k;
    b->w_bytes = ((size_t)(n * k) * (int8 ? 1 : 2) + 255) & ~(size_t)255;
    b->copies = 1 + (int)(rotate_bytes / (double)b->w_bytes);
    qe_status status = open_library(b, err);
    if (!status) status = describe(b, err);
    if (!status) status = fill(b, cuda, x, w, err);
    if (!status) status = choose(b, cuda, err);
    if (status) {
        bench_cublaslt_destroy(b);
        return status;
    }
    *out = b;
    return QE_OK;
}

int         bench_cublaslt_copies(const bench_cublaslt *b) { return b->copies; }
const void *bench_cublaslt_y(const bench_cublaslt *b) { return b->y; }

void bench_cublaslt_destroy(bench_cublaslt *b) {
    if (!b) return;
    bench_cuda_free(b->w), bench_cuda_free(b->x), bench_cuda_free(b->y), bench_cuda_free(b->workspace);
    if (b->w_layout) b->api.MatrixLayoutDestroy(b->w_layout);
    if (b->x_layout) b->api.MatrixLayoutDestroy(b->x_layout);
    if (b->y_layout) b->api.MatrixLayoutDestroy(b->y_layout);
    if (b->matmul) b->api.MatmulDescDestroy(b->matmul);
    if (b->handle) b->api.Destroy(b->handle);
    if (b->library) dlclose(b->library);
    free(b);
}

const char *bench_cublaslt_missing(void) { return NULL; }
#else
const char *bench_cublaslt_missing(void) { return "qbench was built without the CUDA toolkit"; }

qe_status bench_cublaslt_create(bench_cuda *cuda, bool int8, int64_t m, int64_t n, int64_t k, const void *x, const void *w,
                                double rotate_bytes, bench_cublaslt **out, qe_error *err) {
    (void)cuda, (void)int8, (void)m, (void)n, (void)k, (void)x, (void)w, (void)rotate_bytes;
    *out = NULL;
    return qe_error_set(err, QE_E_UNSUPPORTED, "%s", bench_cublaslt_missing());
}
qe_status bench_cublaslt_enqueue(void *ctx, void *stream, qe_error *err) {
    (void)ctx, (void)stream;
    return qe_error_set(err, QE_E_UNSUPPORTED, "%s", bench_cublaslt_missing());
}
int         bench_cublaslt_copies(const bench_cublaslt *b) { return b ? 1 : 0; }
const void *bench_cublaslt_y(const bench_cublaslt *b) { return b; }
void        bench_cublaslt_destroy(bench_cublaslt *b) { (void)b; }
#endif
