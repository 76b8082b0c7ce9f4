/* linear_requant.h -- what a linear with int8 output multiplies its int32 sums by (quantization.md 7.6). */
#ifndef QE_LINEAR_REQUANT_H
#define QE_LINEAR_REQUANT_H
#include "run/device.h"

/* Filled row by row while bands arrive, from any thread; then moved to where the kernels read it. */
typedef struct qe_requant_table {
    float    s_x, s_y;
    int32_t  y_zero;
    bool     on, fixed;
    int64_t  n;
    float   *multiplier;    /* [n], or else */
    int32_t *fixed_shift;   /* [n][2] */
    float   *float_bias;    /* [n], or NULL: as given */
    int32_t *bias;          /* [n], or NULL: in steps of s_x * s_w */
    void    *device[2];     /* the first two and the bias */
} qe_requant_table;

/* y_act's grid; QE_E_UNSUPPORTED if the sums of `shape` are no int32 over all of k, QE_E_ARGUMENT for a grid that is none. */
qe_status qe_requant_begin(qe_requant_table *t, const qk_shape *shape, const qe_linear_options *o, qe_error *err);
/* The band's row 0 is row `first` of the table: of all experts, one after another. */
qe_status qe_requant_band(qe_requant_table *t, int64_t first, const qe_qtensor *band, qe_error *err);
qe_status qe_requant_finish(qe_requant_table *t, qe_device *device, qe_error *err);
void      qe_requant_give(const qe_requant_table *t, int64_t first, qk_gemm_args *args);
void      qe_requant_end(qe_requant_table *t, qe_device *device);
#endif
