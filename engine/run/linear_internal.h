/* linear_internal.h -- a linear, while its bands arrive (linear_pack.c), when it runs (linear.c), and which of its plans
 * the device's tuning cache chose (linear_tuning.c). */
#ifndef QE_LINEAR_INTERNAL_H
#define QE_LINEAR_INTERNAL_H
#include <stdatomic.h>

#include "run/linear_requant.h"
#include "run/linear_tuning.h"

struct qe_linear {
    qe_device    *device;
    qk_weight     weight;
    char         *blob;                 /* weight.blob */
    size_t        head_bytes, band_bytes;
    float        *bias;                 /* on the device, as are order and col_scale of the weight */
    uint32_t      gemm_flags;
    int32_t       y_type;
    qe_requant_table requant;           /* int8 output */
    int64_t       layout_bands;
    atomic_uchar *have;                 /* per layout band: taken by an append, or packed */
    _Atomic int64_t packed;             /* layout bands done */
    atomic_bool   head_taken;
    bool          checked;              /* the caller's whole tensor was scanned already */
    bool          finished;
    qe_linear_choice *choices;          /* the cache's, for this linear */
    int32_t       choice_count;
    const qk_tuning *forced;            /* whoever measures: this plan at every m */
};
#endif
