/* attention_body.h -- a block of queries that share a head of paged fp16 keys and values, in the vocabulary of simd.h.
 *
 * A score sums 32 virtual lanes (lane j holds columns j mod 32, ascending) folded by halves, so every ISA returns the
 * same bits; exponentials and values add in slot order. A query's result depends on nothing but its own sequence: slots
 * that only some queries of a block see are walked query by query, so a block only saves loads.
 *
 * Scores lie as [slot][queries]; a slot that a query does not see has weight 0 there. */
#include "attention.h"

enum { ATTEND_LANES = 32, ATTEND_VECTORS = ATTEND_LANES / V_LANES };
/* Registers: queries * keys * ATTEND_VECTORS sums of scores, queries * columns / V_LANES sums of values. */
enum { ATTEND_QUERIES = V_LANES == 16 ? 4 : 2, ATTEND_KEYS = V_LANES == 16 ? 3 : 1 };

/* Keys (part 0) or values (part 1) of slot `slot`; the slots of its page follow, `*run` of them. */
INLINE const uint8_t *kv_slot(const attend_block *b, int64_t slot, int32_t part, int64_t *run) {
    const qk_attention *a = b->a;
    const qk_kv *kv = a->kv;
    int64_t page = kv->table[b->sequence * kv->ld_table + slot / kv->page_tokens], at = slot % kv->page_tokens;
    const uint8_t *layer = (const uint8_t *)kv->pages + (page * kv->layers + a->layer) * kv->page_bytes;
    *run = kv->page_tokens - at;
    return layer + ((int64_t)(part * a->kv_heads + b->kv_head) * kv->page_tokens + at) * a->head_dim * 2;
}

/* ---- scores ------------------------------------------------------------------------------------------------------ */
INLINE float fold(const vf sum[ATTEND_VECTORS]) {
    vf half[ATTEND_VECTORS];
    for (int v = 0; v < ATTEND_VECTORS; v++) half[v] = sum[v];
    for (int n = ATTEND_VECTORS / 2; n; n /= 2)
        for (int v = 0; v < n; v++) half[v] = vf_add(half[v], half[v + n]);
    return vf_fold(half[0]);
}

/* Dot products of Q queries from `first` with K keys into scores[key][b->count]. */
INLINE void dot_keys(const int Q, const int K, const attend_block *b, int first, const uint8_t *keys, float *scores) {
    const int32_t dim = b->a->head_dim;
    vf sum[ATTEND_QUERIES][ATTEND_KEYS][ATTEND_VECTORS];
    for (int q = 0; q < Q; q++)
        for (int k = 0; k < K; k++)
            for (int v = 0; v < ATTEND_VECTORS; v++) sum[q][k][v] = vf_set1(0.0f);
    for (int32_t i = 0; i < dim; i += ATTEND_LANES) {
#pragma GCC unroll 4
        for (int v = 0; v < ATTEND_VECTORS; v++) {
            vf key[ATTEND_KEYS];
            for (int k = 0; k < K; k++) key[k] = vf_half(keys + ((int64_t)k * dim + i + v * V_LANES) * 2);
#pragma GCC unroll 4
            for (int q = 0; q < Q; q++) {
                vf x = vf_load(b->q[first + q] + i + v * V_LANES);
#pragma GCC unroll 4
                for (int k = 0; k < K; k++) sum[q][k][v] = vf_fma(x, key[k], sum[q][k][v]);
            }
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++)
#pragma GCC unroll 4
        for (int k = 0; k < K; k++) scores[k * b->count + first + q] = fold(sum[q][k]);
}

/* Few queries wait for memory: the next keys, and the values of the same slots, which lie a fixed way behind. */
INLINE void prefetch_slots(const attend_block *b, const uint8_t *keys, int64_t bytes) {
    const qk_attention *a = b->a;
    const uint8_t *values = keys + (int64_t)a->kv_heads * a->kv->page_tokens * a->head_dim * 2;
    for (int64_t i = 0; i < bytes; i += 64) v_prefetch_page(keys + i, values + i);
}

/* Scores of slots [from, end) for Q queries from `first`. */
INLINE void score_slots(const int Q, const attend_block *b, int first, int64_t from, int64_t end) {
    float *scores = b->scores + (from - b->low) * b->count;
    for (int64_t run; from < end; from += run) {
        const uint8_t *keys = kv_slot(b, from, 0, &run);
        const int64_t key_bytes = b->a->head_dim * 2;
        if (run > end - from) run = end - from;
        int64_t i = 0;
        for (; i + ATTEND_KEYS <= run; i += ATTEND_KEYS, scores += ATTEND_KEYS * b->count) {
            if (Q < ATTEND_QUERIES) prefetch_slots(b, keys + i * key_bytes, ATTEND_KEYS * key_bytes);
            dot_keys(Q, ATTEND_KEYS, b, first, keys + i * key_bytes, scores);
        }
        for (; i < run; i++, scores += b->count) dot_keys(Q, 1, b, first, keys + i * key_bytes, scores);
    }
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */
/* exp(score - largest), and its sum in slot order. Whole rows of 16 scores: those behind the last are never used. */
INLINE void weigh(const attend_block *b, int64_t slots, float sum[ATTEND_QUERIES]) {
    enum { ROW = 16 };
    const qk_attention *a = b->a;
    const int64_t n = slots * b->count, rows = (n + ROW - 1) / ROW;
    float *s = b->scores, top[ROW];
    for (int64_t i = n; i < rows * ROW; i++) s[i] = -INFINITY;
    for (int64_t i = 0; i < n; i++) s[i] = qe_mul(s[i], a->scale);
    for (int64_t i = 0; i < n && a->softcap > 0.0f; i++)
        s[i] = qe_mul(a->softcap, qe_tanh(qe_div(s[i], a->softcap)));
    for (int q = 0; q < b->count; q++) {     /* slots of other queries */
        for (int64_t slot = b->low; slot < b->first[q]; slot++) s[(slot - b->low) * b->count + q] = -INFINITY;
        for (int64_t slot = b->last[q] + 1; slot < b->low + slots; slot++) s[(slot - b->low) * b->count + q] = -INFINITY;
    }
    for (int j = 0; j < ROW; j++) top[j] = -INFINITY;
    for (int64_t i = 0; i < rows; i++)
        for (int j = 0; j < ROW; j++) top[j] = s[i * ROW + j] > top[j] ? s[i * ROW + j] : top[j];
    for (int n_lanes = ROW / 2; n_lanes >= b->count; n_lanes /= 2)
        for (int j = 0; j < n_lanes; j++) top[j] = top[j + n_lanes] > top[j] ? top[j + n_lanes] : top[j];
    for (int j = b->count; j < ROW; j++) top[j] = top[j - b->count];
    for (int64_t i = 0; i < rows; i++)
        for (int j = 0; j < ROW; j++) s[i * ROW + j] = qe_exp(qe_sub(s[i * ROW + j], top[j]));
    for (int q = 0; q < b->count; q++) {
        for (int64_t slot = b->low; slot < b->first[q]; slot++) s[(slot - b->low) * b->count + q] = 0.0f;
        for (int64_t slot = b->last[q] + 1; slot < b->low + slots; slot++) s[(slot - b->low) * b->count + q] = 0.0f;
        sum[q] = 0.0f;
    }
    for (int64_t i = 0; i < slots; i++)
        for (int q = 0; q < b->count; q++) sum[q] = qe_add(sum[q], s[i * b->count + q]);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */
/* out += weights * values over slots [from, end), V vectors of columns of Q queries in registers. */
INLINE void add_values(const int Q, const int V, const attend_block *b, int first, int64_t from, int64_t end) {
    const int32_t dim = b->a->head_dim, columns = V * V_LANES;
    for (int32_t i = 0; i < dim; i += columns) {
        vf sum[ATTEND_QUERIES][4];
        for (int q = 0; q < Q; q++)
            for (int v = 0; v < V; v++) sum[q][v] = vf_load(b->out[first + q] + i + v * V_LANES);
        const float *p = b->scores + (from - b->low) * b->count + first;
        for (int64_t slot = from, run; slot < end; slot += run) {
            const uint8_t *values = kv_slot(b, slot, 1, &run) + i * 2;
            if (run > end - slot) run = end - slot;
            for (int64_t n = 0; n < run; n++, values += dim * 2, p += b->count) {
                vf value[4];
                for (int v = 0; v < V; v++) value[v] = vf_half(values + v * V_LANES * 2);
#pragma GCC unroll 4
                for (int q = 0; q < Q; q++) {
                    vf weight = vf_set1(p[q]);
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) sum[q][v] = vf_fma(weight, value[v], sum[q][v]);
                }
            }
        }
        for (int q = 0; q < Q; q++)
            for (int v = 0; v < V; v++) vf_store(b->out[first + q] + i + v * V_LANES, sum[q][v]);
    }
}

INLINE void walk(const int Q, const attend_block *b, int first, int64_t from, int64_t end, int values) {
    if (from >= end) return;
    if (!values) score_slots(Q, b, first, from, end);
    else if (V_LANES == 16 && b->a->head_dim % (4 * V_LANES) == 0) add_values(Q, 4, b, first, from, end);
    else add_values(Q, ATTEND_VECTORS, b, first, from, end);
}

static void walk_one(const attend_block *b, int q, int64_t from, int64_t end, int values) {
    walk(1, b, q, from, end, values);
}

static void walk_all(const attend_block *b, int64_t from, int64_t end, int values) {
    if (b->count == ATTEND_QUERIES) walk(ATTEND_QUERIES, b, 0, from, end, values);
    else if (b->count == 2) walk(2, b, 0, from, end, values);
    else walk(1, b, 0, from, end, values);
}

/* Scores (or values) of the slots that every query sees together, those of the rest one query at a time. */
static void walk_block(const attend_block *b, int values) {
    int64_t from = b->first[0], end = b->last[0] + 1;
    for (int q = 1; q < b->count; q++) {
        from = b->first[q] > from ? b->first[q] : from;
        end = b->last[q] < end - 1 ? b->last[q] + 1 : end;
    }
    if (end < from) end = from;
    for (int q = 0; q < b->count; q++) walk_one(b, q, b->first[q], from < b->last[q] + 1 ? from : b->last[q] + 1, values);
    walk_all(b, from, end, values);
    for (int q = 0; q < b->count; q++) walk_one(b, q, end, b->last[q] + 1, values);
}

static void attend(const attend_block *b) {
    const int32_t dim = b->a->head_dim;
    int64_t high = b->last[0];
    float sum[ATTEND_QUERIES];
    for (int q = 1; q < b->count; q++) high = b->last[q] > high ? b->last[q] : high;
    walk_block(b, 0);
    weigh(b, high - b->low + 1, sum);
    for (int q = 0; q < b->count; q++) memset(b->out[q], 0, (size_t)dim * sizeof(float));
    walk_block(b, 1);
    for (int q = 0; q < b->count; q++)
        for (int32_t i = 0; i < dim; i++) b->out[q][i] = qe_div(b->out[q][i], sum[q]);
}
