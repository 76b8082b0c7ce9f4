/* finish.h -- the last steps of an output row: bias, activation, gate, residual, one rounding to the output's type. */
#ifndef FINISH_H
#define FINISH_H
#include "panel.h"

typedef struct finish_job {
    const qk_gemm_args *args;
    int32_t y_type, act;
    uint32_t flags;
} finish_job;

/* What a plan keeps of the epilogue, and back. */
void finish_plan(const qk_device *device, const qk_gemm *g, qk_plan *out);
qe_status finish_begin(const qk_plan *plan, const qk_gemm_args *args, finish_job *out, qe_error *err);
bool finish_supports(const qk_gemm *g, qk_why *why);

/* Whether nothing is left to do to the sums: they are y. */
bool finish_nothing(const finish_job *j);
/* Outputs of one token from column `first` on; v holds PANEL_COLUMNS sums and is overwritten. */
void finish_row(const finish_job *j, int64_t token, int64_t first, float *v);
/* The same of int32 sums over all of k, to int8 by quantization.md 7.6. */
void finish_int8(const finish_job *j, int64_t token, int64_t first, const int32_t *sums);
#endif
