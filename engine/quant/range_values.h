/* quant/range_values.h -- range methods on plain arrays and on histograms; shared by weights and observers. */
#ifndef QE_RANGE_VALUES_H
#define QE_RANGE_VALUES_H
#include <stdbool.h>

#include <qengine/quantize.h>

/* Fill in defaults and check; NULL gives all defaults. */
qe_status qe_range_options_read(const qe_range_options *given, qe_range_options *out, qe_error *err);

/* Move [low, high], the extremes of x[count], to what PERCENTILE or OCTAV says; other methods leave them. */
qe_status qe_range_clip(const float *x, int64_t count, const qe_quant *quant, const qe_range_options *options,
                        float *low, float *high, qe_error *err);

/* OCTAV: of the magnitudes above s their sum and number. */
typedef void qe_octav_sums(const void *ctx, double s, double *sum, double *number);
/* Where s <- sum|x|[|x| > s] / (c count(0 < |x| <= s) + count(|x| > s)) comes to rest, c the variance of a step at s = 1; 0 of
 * zeros alone. top: the largest magnitude. */
double qe_octav_start(qe_octav_sums *sums, const void *ctx, double c, double top);
/* [low, high] within start of 0; where start is 0, as they are. */
void qe_octav_clip(double start, float *low, float *high);
/* [low, high], the extremes, become the clips of least loss about `start`; never worse than the extremes. steps: on one side. */
typedef double qe_range_loss(const void *ctx, float low, float high);
void qe_octav_refine(double start, double steps, bool symmetric, qe_range_loss *loss, const void *ctx, float *low, float *high);

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
