/* run/quantize_round.h -- the arithmetic of one layer: what is gathered of its inputs, and its linears rounded. */
#ifndef QE_RUN_QUANTIZE_ROUND_H
#define QE_RUN_QUANTIZE_ROUND_H
#include "run/quantize_internal.h"

/* Of the four inputs of a layer (qe_tap): only what its methods ask for. */
enum { QE_INPUTS = 4 };
typedef struct qe_input_statistics {
    int64_t      k, tokens, seen;       /* tokens: in the statistics; seen: shown, sampled or not */
    int32_t      rotate;                /* block of a Hadamard rotation before everything; 0: none */
    double      *hessian;           /* [k][k] lower triangle; NULL: not asked for */
    float       *absmax;
    double      *sum_abs;
    float       *sample;            /* [sample_rows][k] */
    int64_t      sample_rows, sample_room, step;
    qe_observer *observer;
} qe_input_statistics;
typedef struct qe_statistics {
    qe_job             *job;
    qe_input_statistics input[QE_INPUTS];
    float              *rotated;        /* rows of one piece */
    size_t              rotated_room;
} qe_statistics;

qe_status qe_statistics_start(qe_statistics *s, qe_job *job, int64_t layer, qe_error *err);
qe_status qe_statistics_input(void *statistics, int64_t layer, int32_t group, const float *x, int64_t m, int64_t k, int64_t ldx,
                              qe_error *err);
void      qe_statistics_end(qe_statistics *s);

/* Every linear of a layer (below 0: those of none) that is not done: rounded, written, reported. */
qe_status qe_round_layer(qe_job *job, int64_t layer, qe_statistics *statistics, qe_error *err);
/* One linear rounded as its decision says and measured, nothing written; values[n][k], if not NULL, is what it became. */
qe_status qe_round_try(qe_job *job, qe_statistics *statistics, const qe_item *item, float *values, qe_layer_report *out,
                       qe_error *err);
/* Tells the caller of linears an earlier run made. */
qe_status qe_round_resumed(qe_job *job, int64_t layer, qe_error *err);
/* Which input a linear reads; -1: none of the four. */
int32_t   qe_input_of(qe_role role);
qe_status qe_put_vector(qe_out *out, const qe_item *item, const float *values, qe_error *err);
/* The device's threads as an executor; ctx lives as long as the job. */
qe_executor qe_job_executor(qe_job *job);
#endif
