/* linear_internal.h -- a linear, while its bands arrive (linear_pack.c), when it runs (linear.c, linear_grouped.c), and
 * which of its plans the device's tuning cache chose (linear_tuning.c). */
#ifndef QE_LINEAR_INTERNAL_H
#define QE_LINEAR_INTERNAL_H
#include <stdatomic.h>

#include "run/linear_requant.h"
#include "run/linear_tuning.h"

struct qe_linear {
    qe_device    *device;
    qk_weight     weight;
    int32_t       experts;
    char         *blob;                 /* weight.blob: of expert 0 */
    size_t        expert_bytes;         /* from one expert's blob to the next, a multiple of 256 */
    size_t        head_bytes, band_bytes;
    float        *bias;                 /* on the device, as are order and col_scale of the weight */
    uint32_t      gemm_flags;
    int32_t       y_type;
    qe_requant_table requant;           /* int8 output */
    int64_t       layout_bands;         /* of an expert */
    atomic_uchar *have;                 /* per layout band of each expert: taken by an append, or packed; then per head */
    _Atomic int64_t packed;             /* layout bands done */
    bool          checked;              /* the caller's whole tensor was scanned already */
    bool          finished;
    qe_linear_choice *choices;          /* the cache's, for this linear */
    int32_t       choice_count;
    const qk_tuning *forced;            /* whoever measures: this plan at every m */
};

typedef struct qe_run_plan {
    qk_x    x;
    size_t  x_bytes;
    qk_plan plan;
} qe_run_plan;
/* m rows of x. group_m, unless 0: the tokens of an expert that a grouped plan is made for. */
qe_status qe_linear_plan_run(const qe_linear *l, int64_t m, int64_t group_m, int32_t x_type, int32_t y_type, qe_run_plan *out,
                             qe_error *err);
/* Inputs that a linear of k columns under the scheme w may have. */
qe_status qe_act_check(const qe_act *act, const qe_quant *w, int64_t k, qe_error *err);
/* As this version knows them, with what the weight `t` says where `in` does not. */
qe_status qe_linear_options_read(const qe_linear_options *in, const qe_qtensor *t, qe_linear_options *o, qe_error *err);
bool      qe_linear_takes(const qe_linear *l, int32_t x_type);
qe_status qe_linear_check_args(const qe_linear *l, const qe_linear_args *a, int32_t y_type, qe_error *err);
qe_status qe_linear_check_workspace(const qe_linear_args *a, size_t need, qe_error *err);
/* Prepare and GEMM of one expert, or of all in `groups`. */
qe_status qe_linear_enqueue(const qe_linear *l, int32_t expert, const qk_groups *groups, qe_run_plan *p,
                            const qe_linear_args *a, qe_error *err);
#endif
