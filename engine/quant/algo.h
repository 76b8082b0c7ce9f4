/* quant/algo.h -- what the rounding methods share. */
#ifndef QE_ALGO_H
#define QE_ALGO_H
#include "quant/dense.h"
#include "quant/levels.h"

/* One call of qe_round_weights() with its defaults filled in. Tasks round rows [index * rows_each, ...) of t. */
typedef struct qe_round_job {
    const float *w;
    int64_t ldw;
    const qe_calibration *calibration;      /* NULL: none */
    qe_round_options o;
    qe_qtensor *t;
    float *importance;                      /* [k] Hessian diagonal, caller's columns; NULL: none */
    int64_t rows_each;
    float *factor;                          /* GPTQ: [k][k], unit upper triangle, in the order of work */
    uint32_t *work_order;                   /* GPTQ: canonical column of each step; NULL: as they are */
    float *shared;                          /* GPTQ: importance in canonical order; ADAROUND, clipping: what all bands read */
    uint32_t facts;                         /* AND of all bands */
    qe_error *errors;                       /* of each band */
} qe_round_job;

/* Rounds one band: w[t->n][ldw] under `band`, whose arrays are in place. */
typedef qe_status qe_band_fn(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err);
qe_band_fn qe_band_rtn, qe_band_gptq, qe_band_adaround, qe_band_kmeans, qe_band_twn, qe_band_ttq, qe_band_absmean,
           qe_band_stochastic, qe_band_clipped;

/* What a method needs once for all bands; released after the last. */
qe_status qe_gptq_prepare(qe_round_job *j, qe_error *err);
qe_status qe_adaround_prepare(qe_round_job *j, qe_error *err);
qe_status qe_clip_prepare(qe_round_job *j, qe_error *err);
void      qe_round_release(qe_round_job *j);

/* Fill the tables of a LUT band by k-means; importance [k] or NULL. */
qe_status qe_tables_fit(qe_round_job *j, const float *w, qe_qtensor *band, qe_error *err);

/* The same number for the same seed and position, whatever the order of asking: SplitMix64's mix. */
static inline uint64_t qe_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline double qe_uniform(uint64_t seed, uint64_t index) {   /* [0, 1) */
    return (double)(qe_mix(seed + (index + 1) * 0x9e3779b97f4a7c15u) >> 11) * 0x1p-53;
}
#endif
