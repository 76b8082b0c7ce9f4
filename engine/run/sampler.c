/* sampler.c -- the next token from one row of logits. top_k, top_p and min_p each keep a prefix of the tokens ranked by
 * likelihood, so the row is a heap from which tokens are taken until the shortest prefix ends; without a filter nothing
 * is ranked at all. */
#include <math.h>
#include <stdlib.h>

#include <qengine/num.h>
#include "run/engine_internal.h"

typedef struct candidate {
    float   weight;               /* e^((logit - top) / temperature) */
    int32_t id;
} candidate;

size_t qe_sample_scratch(int64_t vocab) {
    return vocab > 0 ? (size_t)vocab * sizeof(candidate) : 0;
}

/* A 53-bit fraction from (seed, draw), by two rounds of the splitmix64 finalizer. */
static double uniform(uint64_t seed, uint64_t draw) {
    uint64_t z = seed + 0x9e3779b97f4a7c15u;
    for (int round = 0; round < 2; round++) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        if (!round) z += (draw + 1) * 0x9e3779b97f4a7c15u;
    }
    return (double)(z >> 11) * 0x1p-53;
}

/* The largest of a row in lanes that compilers turn into vectors: a branch for each of 262144 logits took a share of a
 * small model's step. False: a logit is NaN or +infinity. */
static bool largest(const float *logits, int64_t vocab, float *top) {
    enum { LANES = 16 };
    float best[LANES];
    int32_t above[LANES] = {0};
    for (int j = 0; j < LANES; j++) best[j] = -INFINITY;
    for (int64_t i = 0; i < vocab; i += LANES) {
        int count = vocab - i < LANES ? (int)(vocab - i) : LANES;
        for (int j = 0; j < count; j++) {
            best[j] = logits[i + j] > best[j] ? logits[i + j] : best[j];
            above[j] |= !(logits[i + j] < INFINITY);
        }
    }
    for (int j = 1; j < LANES; j++) {
        best[0] = best[j] > best[0] ? best[j] : best[0];
        above[0] |= above[j];
    }
    *top = best[0];
    return !above[0];
}

/* The most likely token, the lowest id among equals. */
static qe_status find_top(const float *logits, int64_t vocab, int32_t *top, qe_error *err) {
    float best;
    bool good = largest(logits, vocab, &best);
    for (int64_t i = 0; i < vocab; i++) {
        if (good ? logits[i] != best : logits[i] < INFINITY) continue;
        if (isnan(logits[i])) return qe_error_set(err, QE_E_VALUE, "logit %lld is not a number", (long long)i);
        if (logits[i] == INFINITY) return qe_error_set(err, QE_E_VALUE, "logit %lld is infinite", (long long)i);
        if (best == -INFINITY) break;
        *top = (int32_t)i;
        return QE_OK;
    }
    return qe_error_set(err, QE_E_VALUE, "no finite logit in %lld", (long long)vocab);
}

static float log_probability(const float *logits, int64_t vocab, int32_t token, float top) {
    double sum = 0;
    for (int64_t i = 0; i < vocab; i++) sum += (double)qe_exp(logits[i] - top);
    return (float)((double)logits[token] - (double)top - log(sum));
}

static bool before(const candidate *a, const candidate *b) {
    return a->weight > b->weight || (a->weight == b->weight && a->id < b->id);
}

static void sift_down(candidate *heap, int64_t count, int64_t at) {
    candidate moving = heap[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &moving)) break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

/* Ranks the kept tokens at the end of `c`, most likely last; returns how many. */
static int64_t keep(candidate *c, int64_t count, const qe_sampling *s, double total) {
    int64_t limit = s->top_k && s->top_k < count ? s->top_k : count, left = count, kept = 0;
    for (int64_t i = count / 2 - 1; i >= 0; i--) sift_down(c, count, i);
    bool by_mass = s->top_p > 0 && s->top_p < 1;
    float floor_weight = s->min_p > 0 ? s->min_p * c[0].weight : 0;
    double taken = 0;
    /* With top_k the mass that top_p is a share of is known only after k tokens: take those first, then cut. */
    bool late = by_mass && limit < count;
    while (kept < limit && (c[0].weight >= floor_weight || late)) {
        candidate best = c[0];
        c[0] = c[--left];
        if (left) sift_down(c, left, 0);
        c[left] = best;
        kept++;
        taken += (double)best.weight;
        if (by_mass && !late && taken >= (double)s->top_p * total) break;
    }
    if (!late) return kept;
    double mass = 0;
    int64_t cut = 0;
    while (cut < kept && mass < (double)s->top_p * taken && c[count - 1 - cut].weight >= floor_weight)
        mass += (double)c[count - 1 - cut++].weight;
    return cut;
}

static int32_t draw_from(candidate *c, int64_t count, const qe_sampling *s, uint64_t draw) {
    double total = 0;
    for (int64_t i = 0; i < count; i++) total += (double)c[i].weight;
    bool ranked = s->top_k || s->min_p > 0 || (s->top_p > 0 && s->top_p < 1);
    int64_t kept = ranked ? keep(c, count, s, total) : count;
    double mass = 0, sum = 0;
    const candidate *first = ranked ? c + count - 1 : c;
    const int step = ranked ? -1 : 1;
    for (int64_t i = 0; i < kept; i++) mass += (double)first[step * i].weight;
    double target = uniform(s->seed, draw) * mass;
    for (int64_t i = 0; i < kept; i++) {
        sum += (double)first[step * i].weight;
        if (target < sum) return first[step * i].id;
    }
    return first[step * (kept - 1)].id;
}

static qe_status check(const qe_sampling *s, qe_error *err) {
    if (s->top_k < 0) return qe_error_set(err, QE_E_ARGUMENT, "top_k is %d, legal are 0 and up", s->top_k);
    if (!(s->temperature >= 0) || isinf(s->temperature))
        return qe_error_set(err, QE_E_ARGUMENT, "temperature is %g, legal are 0 and up", (double)s->temperature);
    if (!(s->top_p >= 0 && s->top_p <= 1))
        return qe_error_set(err, QE_E_ARGUMENT, "top_p is %g, legal are 0 to 1", (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return qe_error_set(err, QE_E_ARGUMENT, "min_p is %g, legal are 0 to 1", (double)s->min_p);
    return QE_OK;
}

static qe_status sample(const float *logits, int64_t vocab, const qe_sampling *s, uint64_t draw, void *scratch,
                        int32_t *token, float *logprob, qe_error *err) {
    int32_t top = 0;
    QE_TRY(find_top(logits, vocab, &top, err));
    int32_t chosen = top;
    if (s->temperature > 0) {
        candidate *c = scratch;
        int64_t count = 0;
        for (int64_t i = 0; i < vocab; i++) {
            if (logits[i] == -INFINITY) continue;
            c[count].weight = qe_exp((logits[i] - logits[top]) / s->temperature);
            c[count++].id = (int32_t)i;
        }
        chosen = draw_from(c, count, s, draw);
    }
    if (logprob) *logprob = log_probability(logits, vocab, chosen, logits[top]);
    *token = chosen;
    return QE_OK;
}

qe_status qe_sample(const float *logits, int64_t vocab, const qe_sampling *sampling, uint64_t draw, void *scratch,
                    int32_t *token, float *logprob, qe_error *err) {
    qe_sampling s;
    if (!logits || !token || vocab < 1 || vocab > INT32_MAX)
        return qe_error_set(err, QE_E_ARGUMENT, "sampling needs logits, a vocabulary and a place for the token");
    QE_TRY(qe_options_read(sampling, sampling ? sampling->struct_size : 0, &s, sizeof s, err));
    QE_TRY(check(&s, err));
    if (s.temperature > 0 && !scratch) return qe_error_set(err, QE_E_ARGUMENT, "sampling needs scratch memory");
    unsigned fp = qe_fp_enter();
    qe_status status = sample(logits, vocab, &s, draw, scratch, token, logprob, err);
    qe_fp_leave(fp);
    return status;
}

qe_status qe_session_sample(qe_session *session, const qe_sampling *sampling, int32_t *token, float *logprob,
                            qe_error *err) {
    if (!session || !token) return qe_error_set(err, QE_E_ARGUMENT, "sampling needs a session and a place for the token");
    if (!session->has_logits) return qe_error_set(err, QE_E_STATE, "the session keeps no logits to sample from");
    const int64_t vocab = session->engine->hp.vocab;
    if (sampling && sampling->temperature > 0 && !session->sample_scratch) {
        session->sample_scratch = malloc(qe_sample_scratch(vocab));
        if (!session->sample_scratch) return qe_error_set(err, QE_E_NOMEM, "no memory to sample");
    }
    return qe_sample(session->logits, vocab, sampling, (uint64_t)session->length, session->sample_scratch, token, logprob,
                     err);
}
