/* quant/dense.h -- float32 matrix products and the Cholesky factor that calibration needs. Every element is a sum in
 * ascending k, in chunks of QE_GEMM_CHUNK, so results do not depend on threads, tiles or the vector width. */
#ifndef QE_DENSE_H
#define QE_DENSE_H
#include <stdbool.h>
#include <qengine/quantize.h>

enum { QE_GEMM_CHUNK = 256 };

/* A matrix seen with strides: element (i, j) is p[i * row + j * column]. */
typedef struct qe_view {
    const float *p;
    int64_t row, column;
} qe_view;

/* c[m][ldc] (+)= sign * a[m][k] b[k][n]. scratch: qe_gemm_scratch_bytes() bytes, 64-byte aligned, one per thread. */
size_t qe_gemm_scratch_bytes(void);
void   qe_gemm(int64_t m, int64_t n, int64_t k, qe_view a, qe_view b, float *c, int64_t ldc, bool add, float sign,
               void *scratch);

/* In place: the lower triangle of a[k][k] becomes L with a = L L^T. QE_E_RANGE: not positive definite at a column. */
qe_status qe_cholesky(float *a, int64_t k, const qe_executor *executor, qe_error *err);

/* Aligned memory for scratch; NULL sets QE_E_NOMEM. free() releases it. */
void *qe_scratch(size_t bytes, qe_error *err);

static inline void qe_parallel(const qe_executor *e, void (*task)(void *arg, int32_t index, int32_t count), void *arg,
                               int32_t count) {
    if (e && e->parallel && count > 1) e->parallel(e->ctx, task, arg, count);
    else
        for (int32_t i = 0; i < count; i++) task(arg, i, count);
}
#endif
