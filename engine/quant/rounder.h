/* quant/rounder.h -- one weight to one code and back, under a group that is already chosen. Every method of this folder
 * rounds through here, so that round.c stays the only definition. */
#ifndef QE_ROUNDER_H
#define QE_ROUNDER_H
#include "quant/scheme_internal.h"

/* The codes of one descriptor: an integer span, or a table in ascending order. */
typedef struct qe_rounder {
    const qe_quant *quant;
    bool    table, full_range;
    float   limit;                /* CONST zero: |c - z| is at most this, but with full_range */
    int     count;                /* table entries: distinct finite values */
    float   sorted[256];
    uint8_t code[256];            /* of sorted[i]: the lowest that has this value */
} qe_rounder;

/* The values a group can take: scale * (c - zero) + bias for c in [low, high]; the stored code is c + offset. */
typedef struct qe_grid {
    float scale, divisor, zero, bias, low, high, offset;
} qe_grid;

/* `lut`: the row's table, for code LUT. Not for float codes. */
void    qe_rounder_init(qe_rounder *r, const qe_quant *quant, const float *lut, bool full_range);
qe_grid qe_grid_make(const qe_rounder *r, const qe_group *g);

/* Nearest code; *value is what qe_dequantize() gives for it. */
uint8_t qe_round_one(const qe_rounder *r, const qe_grid *g, float x, float *value);
/* The neighbours of x: largest value <= x and smallest above, both the same where x is beyond the end or hit. */
typedef struct qe_neighbours {
    float   value[2];             /* ascending */
    uint8_t code[2];
} qe_neighbours;
qe_neighbours qe_round_neighbours(const qe_rounder *r, const qe_grid *g, float x);

/* codes and values may be NULL. */
void    qe_round_many(const qe_rounder *r, const qe_grid *g, const float *x, int64_t count, uint8_t *codes,
                      float *values);
/* sum of weight[i] (NULL: 1) * (x[i] - rounded)^2, in a fixed order. */
double  qe_round_error(const qe_rounder *r, const qe_grid *g, const float *x, const float *weight, int64_t count);

/* The row's table of a LUT tensor, else NULL. */
static inline const float *qe_lut_of(const qe_qtensor *t, int64_t row) {
    if (t->quant.code != QE_CODE_LUT) return NULL;
    return t->lut + (qe_group_row(t->first_row, row, t->quant.lut_n) << t->quant.bits);
}
#endif
