/* oracle.h -- float64 answers for tests and benchmarks: no layout, no rounding but that of the inputs. */
#ifndef QK_ORACLE_H
#define QK_ORACLE_H
#include <math.h>
#include <stdint.h>

/* One output and the sum of |x||w| that error bounds are made of. x and w are values, k of them. */
typedef struct qk_oracle {
    double y, magnitude;
} qk_oracle;

static inline qk_oracle qk_oracle_dot(const float *x, const float *w, int64_t k) {
    qk_oracle o = {0.0, 0.0};
    for (int64_t i = 0; i < k; i++) {
        double p = (double)x[i] * (double)w[i];
        o.y += p;
        o.magnitude += fabs(p);
    }
    return o;
}

/* quantization.md 7.7 without the rounding of the output: u_acc is 2^-24 for fmaf, 2^-22 for tensor cores. */
static inline double qk_oracle_bound(qk_oracle o, int64_t k, int64_t chunk_k, double u_acc, double u_w) {
    double chunks = (double)((k + chunk_k - 1) / chunk_k);
    return (((double)chunk_k + chunks + 8.0) * u_acc + u_w) * o.magnitude + 0x1p-25;
}
#endif
