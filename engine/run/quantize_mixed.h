/* run/quantize_mixed.h -- what quantize_mixed.c and quantize_budget.c share: the linears that read one input of a layer get one
 * scheme (engines run them as one GEMM), and every candidate has a cost there and a loss. */
#ifndef QE_RUN_QUANTIZE_MIXED_H
#define QE_RUN_QUANTIZE_MIXED_H
#include "run/quantize_internal.h"

enum { CANDIDATES = 32, READERS = 3 };

typedef struct candidate {
    char       text[64];
    qe_recipe *recipe;
} candidate;

typedef struct unit {                   /* linears of one input of one layer */
    qe_item *item[READERS];
    int32_t  count;
    int64_t  weights;
} unit;

typedef struct mix {
    qe_job     job;                     /* its items become one candidate after the other; it writes nothing */
    candidate  candidates[CANDIDATES];
    int32_t    count;
    unit      *units;                   /* [layers * QE_INPUTS] */
    qe_choice *choices;                 /* [units][count] */
    int64_t   *bytes;                   /* likewise */
    int32_t   *picked;
    double    *seconds;                 /* [units][count]; NULL: the budget is not of time */
    int64_t    unit_count, weights, budget;
    float     *values[READERS];         /* the probe's linears of one unit, as floats */
    float     *reference, *logits;      /* [rows][vocab] */
    int64_t    tokens, sequences, rows, step;   /* of the text that KL is measured on */
} mix;

qe_status qe_mix_nomem(qe_error *err);
/* The unit's items as candidate c has them. */
qe_status qe_mix_become(mix *m, unit *u, int32_t c, qe_error *err);
/* What is told of a candidate for units[u]. */
qe_quantize_choice qe_mix_choice(const mix *m, int64_t u, int32_t c);
/* Costs of all choices and the budget in their unit; `kept`: bytes of what is no linear. QE_E_LIMIT: the least is above it. */
qe_status qe_mix_price(mix *m, uint64_t kept, qe_error *err);
#endif
