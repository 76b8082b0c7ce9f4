/* quant/levels.h -- the scales and zeros of a tensor: from absmax or min-max, or searched. */
#ifndef QE_LEVELS_H
#define QE_LEVELS_H
#include <qengine/quantize.h>
#include "quant/rounder.h"

/* Where weights come from and whose levels are set. */
typedef struct qe_levels_job {
    const float *w;
    int64_t      ldw;
    qe_qtensor  *t;
    bool         full_range;
} qe_levels_job;

/* A rectangle of the band: rows and columns of one group or super block. */
typedef struct qe_rect {
    int64_t row, row_end, column, column_end;
} qe_rect;

typedef struct qe_span {
    float low, high, mean;     /* low <= 0 <= high; mean of |x| */
} qe_span;

/* What a group asks for, before its levels are rounded to their types. */
typedef struct qe_want {
    float scale, low, mean;    /* low: where an asymmetric group starts */
} qe_want;

qe_rect qe_rect_of(const qe_qtensor *t, int64_t gn, int64_t gk, int32_t n, int32_t k);
qe_span qe_rect_scan(const qe_levels_job *j, const qe_rect *r);
float   qe_code_top(const qe_quant *q);
/* The plain answer: absmax or min-max. Scale 1 for silence; negative only where full_range and the type allow it. */
qe_want qe_want_of(const qe_levels_job *j, qe_span x);
float   qe_level_top(const qe_quant *q);
float   qe_zero_top(int32_t num);
/* Second levels that let the largest wanted scale and the lowest minimum be expressed. */
void    qe_super_store(qe_qtensor *t, int64_t s, float top, float low);
/* Round a group's scale and zero to their types. `nudge` moves an integer scale or minimum by that many steps. */
void    qe_group_store(qe_qtensor *t, const qe_rect *r, int64_t g, int64_t s, const qe_want *want, const int nudge[2]);
/* Levels by absmax or min-max of the super blocks (groups, where there are none) of columns [from, to). */
void    qe_levels_plain(const qe_levels_job *j, int64_t from, int64_t to);

/* Call visit for each super block (or group) whose columns lie in [from, to). */
typedef qe_status qe_super_visit(void *arg, const qe_rect *r, int64_t s);
qe_status qe_super_each(const qe_qtensor *t, int64_t from, int64_t to, qe_super_visit *visit, void *arg);
/* The groups inside rectangle r. */
typedef qe_status qe_group_visit(void *arg, const qe_rect *r, int64_t g, int64_t s);
qe_status qe_group_each(const qe_qtensor *t, const qe_rect *r, int64_t s, qe_group_visit *visit, void *arg);

/* Searched levels. `importance` [k] in the order of w's columns, or NULL. QE_RANGE_MINMAX is qe_levels_plain(). */
qe_status qe_levels_search(const qe_levels_job *j, const qe_range_options *options, const float *importance,
                           int64_t from, int64_t to, qe_error *err);
bool      qe_has_levels(const qe_quant *q);
/* Columns after which all levels of the columns before are complete: super_k, group_k or 0 for the whole row. */
int32_t   qe_levels_unit(const qe_quant *q);

/* Rows [row, row + count) of t as a tensor of its own; row is a multiple of the band rows. */
qe_qtensor qe_qtensor_rows(const qe_qtensor *t, int64_t row, int64_t count);
/* Codes of every column under the levels in place. */
void       qe_codes_store(const qe_levels_job *j);
qe_status  qe_finite_check(const float *w, int64_t ldw, int64_t first_row, int64_t n, int64_t k, qe_error *err);
#endif
