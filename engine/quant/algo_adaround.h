/* algo_adaround.h -- AdaRound's elementwise work: one Adam step over a row, and the error that the next step needs. */
#ifndef QE_ALGO_ADAROUND_H
#define QE_ALGO_ADAROUND_H
#include <stdint.h>

/* h = clamp(1.2 sigmoid(logit) - 0.1, 0, 1): the share of the neighbour above. */
static const float QE_ADAROUND_STRETCH = 1.2f, QE_ADAROUND_SHIFT = -0.1f;

typedef struct qe_adaround_row {
    const float *gradient;     /* d loss / d delta */
    const float *gap, *offset; /* the neighbour above minus the one below; the one below minus the weight */
    float *logit, *m, *v;      /* what is learned, and Adam's moments */
    float *delta;              /* out: offset + h gap */
} qe_adaround_row;

typedef struct qe_adaround_rates {
    float unit;                /* of the gradient */
    float beta, pull;          /* the exponent, at least 1, and the weight of -|2h - 1|^beta; pull 0: not yet */
    float first, second;       /* learning rate / (1 - 0.9^t), 1 / (1 - 0.999^t) */
} qe_adaround_rates;

typedef void qe_adaround_step_fn(int64_t count, const qe_adaround_rates *rates, const qe_adaround_row *row);

/* Plain C, and what this machine has of AVX2 and AVX-512, the best last; NULL: no more. The same bits from each: every
 * operation is one of IEEE 754, in one order. */
qe_adaround_step_fn *qe_adaround_step(int32_t index);
#endif
