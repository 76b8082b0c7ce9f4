/* attention.h -- what a block of attention is: up to 4 queries (row, head) of one sequence that read one KV head. */
#ifndef CPU_ATTENTION_H
#define CPU_ATTENTION_H
#include <qk.h>

enum { ATTEND_QUERIES_MAX = 4 };

typedef struct attend_block {
    const qk_attention *a;
    int32_t sequence, kv_head, count;          /* count: 1, 2 or 4, at most panel_isa.attend_queries */
    const float *q[ATTEND_QUERIES_MAX];
    float *out[ATTEND_QUERIES_MAX];
    int64_t first[ATTEND_QUERIES_MAX], last[ATTEND_QUERIES_MAX];   /* slots each query sees */
    int64_t low;                               /* the lowest of `first` */
    float *scores;                             /* (highest last - low + 1) * count, rounded up to 16 */
} attend_block;
#endif
