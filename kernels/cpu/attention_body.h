/* attention_body.h -- one query row and head over paged fp16 keys and values, in the vocabulary of simd.h.
 *
 * A score sums 32 virtual lanes (lane j holds columns j mod 32, ascending) folded by halves, so every ISA returns the
 * same bits; values add in slot order, one fmaf each, as in the reference. A row's result depends on nothing but its own
 * sequence: not on the batch, the step it came in, or the thread. */
enum { ATTEND_LANES = 32, ATTEND_VECTORS = ATTEND_LANES / V_LANES };

/* Keys (part 0) or values (part 1) of a head in page `index` of a sequence: [page_tokens][head_dim] halves. */
INLINE const uint8_t *kv_page(const qk_attention *a, int32_t sequence, int64_t index, int32_t kv_head, int32_t part) {
    const qk_kv *kv = a->kv;
    int64_t page = kv->table[sequence * kv->ld_table + index];
    const uint8_t *layer = (const uint8_t *)kv->pages + (page * kv->layers + a->layer) * kv->page_bytes;
    return layer + (int64_t)(part * a->kv_heads + kv_head) * kv->page_tokens * a->head_dim * 2;
}

INLINE float dot_halves(const float *q, const uint8_t *key, int32_t dim) {
    vf sum[ATTEND_VECTORS];
    float lanes[ATTEND_LANES];
    for (int v = 0; v < ATTEND_VECTORS; v++) sum[v] = vf_set1(0.0f);
    for (int32_t i = 0; i < dim; i += ATTEND_LANES) {
        for (int v = 0; v < ATTEND_VECTORS; v++)
            sum[v] = vf_fma(vf_load(q + i + v * V_LANES), vf_half(key + (i + v * V_LANES) * 2), sum[v]);
    }
    for (int v = 0; v < ATTEND_VECTORS; v++) vf_store(lanes + v * V_LANES, sum[v]);
    for (int half = ATTEND_LANES / 2; half; half /= 2) {
        for (int i = 0; i < half; i++) lanes[i] = qe_add(lanes[i], lanes[i + half]);
    }
    return lanes[0];
}

/* Scores of slots [first, last] into `scores`; returns the largest. */
static float score_slots(const qk_attention *a, int32_t sequence, int32_t kv_head, const float *q, int64_t first,
                         int64_t last, float *scores) {
    int32_t tokens = a->kv->page_tokens, dim = a->head_dim;
    float top = -INFINITY;
    for (int64_t slot = first; slot <= last;) {
        const uint8_t *keys = kv_page(a, sequence, slot / tokens, kv_head, 0);
        int64_t at = slot % tokens, end = slot - at + tokens;
        for (; slot <= last && slot < end; slot++, at++) {
            float s = qe_mul(dot_halves(q, keys + at * dim * 2, dim), a->scale);
            if (a->softcap > 0.0f) s = qe_mul(a->softcap, qe_tanh(qe_div(s, a->softcap)));
            scores[slot - first] = s;
            top = s > top ? s : top;
        }
    }
    return top;
}

/* out = sum of p * values over the slots, ATTEND_LANES columns at a time in registers, then divided by `sum`. */
static void weigh_slots(const qk_attention *a, int32_t sequence, int32_t kv_head, int64_t first, int64_t last,
                        const float *p, float sum, float *out) {
    int32_t tokens = a->kv->page_tokens, dim = a->head_dim;
    for (int32_t i = 0; i < dim; i += ATTEND_LANES) {
        vf acc[ATTEND_VECTORS];
        for (int v = 0; v < ATTEND_VECTORS; v++) acc[v] = vf_set1(0.0f);
        for (int64_t slot = first; slot <= last;) {
            const uint8_t *values = kv_page(a, sequence, slot / tokens, kv_head, 1);
            int64_t at = slot % tokens, end = slot - at + tokens;
            for (; slot <= last && slot < end; slot++, at++) {
                vf weight = vf_set1(p[slot - first]);
                for (int v = 0; v < ATTEND_VECTORS; v++)
                    acc[v] = vf_fma(weight, vf_half(values + (at * dim + i + v * V_LANES) * 2), acc[v]);
            }
        }
        for (int v = 0; v < ATTEND_VECTORS; v++) vf_store(out + i + v * V_LANES, acc[v]);
    }
    for (int32_t i = 0; i < dim; i++) out[i] = qe_div(out[i], sum);
}

static void attend_head(const qk_attention *a, int32_t sequence, int64_t row, int32_t head, int64_t slot, float *scores) {
    int32_t kv_head = head / (a->heads / a->kv_heads);
    int64_t first = a->window && slot + 1 > a->window ? slot + 1 - a->window : 0, count = slot + 1 - first;
    const float *q = (const float *)a->q + row * a->ldq + (int64_t)head * a->head_dim;
    float top = score_slots(a, sequence, kv_head, q, first, slot, scores), sum = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        scores[i] = qe_exp(qe_sub(scores[i], top));
        sum = qe_add(sum, scores[i]);
    }
    weigh_slots(a, sequence, kv_head, first, slot, scores, sum,
                (float *)a->out + row * a->ldo + (int64_t)head * a->head_dim);
}
