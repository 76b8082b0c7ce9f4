/* run/linear_tuning.h -- which plan a linear runs; for tests and for whoever measures plans. */
#ifndef QE_LINEAR_TUNING_H
#define QE_LINEAR_TUNING_H
#include "run/tuning.h"

#ifdef __cplusplus
extern "C" {
#endif
typedef struct qe_linear_choice {
    int32_t   x_code;         /* what the GEMM reads, and the bucket of tokens */
    int64_t   m;
    qk_tuning tuning;
    double    times;          /* as fast as untuned, when measured */
} qe_linear_choice;

/* The problem of m tokens; x gets the layout of its input. Returns that input's bytes, in whole 256. */
size_t    qe_linear_problem(const qe_linear *l, int64_t m, int32_t x_type, int32_t y_type, qk_gemm *gemm, qk_x *x);
/* What the device's cache says of this linear, once at creation: of all buckets, and of one problem (NULL: nothing). */
qe_status qe_linear_choose(qe_linear *l, qe_error *err);
int32_t   qe_linear_choices(const qe_linear *l);
const qe_linear_choice *qe_linear_choice_of(const qe_linear *l, const qk_gemm *gemm);
/* This plan at every m, in place of all choices; NULL: no longer. It stays the caller's. Not beside running calls. */
void      qe_linear_force(qe_linear *l, const qk_tuning *tuning);
/* The plan that runs: forced, chosen, or the kernels' own. */
qe_status qe_linear_plan(const qe_linear *l, const qk_gemm *gemm, qk_plan *out, qe_error *err);
#ifdef __cplusplus
}
#endif
#endif
