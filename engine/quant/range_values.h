/* quant/range_values.h -- range methods on plain arrays and on histograms; shared by weights and observers. */
#ifndef QE_RANGE_VALUES_H
#define QE_RANGE_VALUES_H
#include <qengine/quantize.h>

/* Fill in defaults and check; NULL gives all defaults. */
qe_status qe_range_options_read(const qe_range_options *given, qe_range_options *out, qe_error *err);

/* Move [low, high], the extremes of x[count], to what PERCENTILE or OCTAV says; other methods leave them. */
qe_status qe_range_clip(const float *x, int64_t count, const qe_quant *quant, const qe_range_options *options,
                        float *low, float *high, qe_error *err);

/* Bins of both signs, each 2^bin_log2 wide. */
typedef struct qe_bins {
    const uint64_t *positive, *negative;
    int32_t count, bin_log2;
    float low, high;           /* exact extremes */
} qe_bins;
/* Moves [low, high] as the method says: PERCENTILE, MSE, KL, OCTAV. */
qe_status qe_range_of_bins(const qe_bins *bins, const qe_quant *quant, const qe_range_options *options, float *low,
                           float *high, qe_error *err);

/* The same codes with one float32 scale and, where asymmetric, one integer zero. */
qe_quant qe_range_plain(const qe_quant *quant);

/* Steps of the rounding on one side of zero: the variance of one step is 1 / (12 steps^2) of the clip value squared. */
double qe_range_steps(const qe_quant *quant, const qe_range_options *options);
#endif
