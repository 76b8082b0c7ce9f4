/* quality.c -- two engines side by side on one text: perplexity, KL divergence, agreement. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/recipe.h>
#include <qengine/tokenizer.h>
#include "run/engine_internal.h"

enum { ROWS = 64, WINDOW = 512 };

typedef struct pair {
    qe_engine  *engine[2];
    qe_session *session[2];
    float      *logits[2];          /* [ROWS][vocab] */
    double     *kl;                 /* of every scored token */
    int32_t    *ids;                /* [window]: one window's */
    int64_t     vocab, scored, agreed;
    double      nll[2];
} pair;

/* Logarithm of the sum of exponentials, and the place of the largest. */
static double log_sum(const float *row, int64_t n, int64_t *top) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (row[i] > row[best]) best = i;
    double sum = 0, high = (double)row[best];
    for (int64_t i = 0; i < n; i++) sum += exp((double)row[i] - high);
    *top = best;
    return high + log(sum);
}

static double divergence(const float *reference, double la, const float *candidate, double lb, int64_t n) {
    double kl = 0;
    for (int64_t i = 0; i < n; i++) {
        double pa = (double)reference[i] - la, pb = (double)candidate[i] - lb;
        kl += exp(pa) * (pa - pb);
    }
    return kl > 0 ? kl : 0;
}

double qe_kl_divergence(const float *reference, const float *candidate, int64_t n) {
    int64_t top;
    double la = log_sum(reference, n, &top), lb = log_sum(candidate, n, &top);
    return divergence(reference, la, candidate, lb, n);
}

static void score(pair *p, const float *a, const float *b, int32_t next) {
    int64_t top[2];
    double la = log_sum(a, p->vocab, &top[0]), lb = log_sum(b, p->vocab, &top[1]);
    p->nll[0] += la - (double)a[next];
    p->nll[1] += lb - (double)b[next];
    p->agreed += top[0] == top[1];
    p->kl[p->scored++] = divergence(a, la, b, lb, p->vocab);
}

static qe_status window_scores(pair *p, const int32_t *ids, int64_t count, qe_error *err) {
    for (int i = 0; i < 2; i++) QE_TRY(qe_session_rewind(p->session[i], 0, err));
    for (int64_t at = 0; at < count; at += ROWS) {
        int64_t n = count - at < ROWS ? count - at : ROWS;
        for (int i = 0; i < 2; i++) {
            const qe_step_item item = {.session = p->session[i], .tokens = ids + at, .n_tokens = n, .want = QE_WANT_ALL,
                                       .logits = p->logits[i], .ld_logits = p->vocab};
            QE_TRY(qe_engine_step(p->engine[i], &item, 1, NULL, err));
        }
        for (int64_t r = 0; r < n && at + r + 1 < count; r++)
            score(p, p->logits[0] + r * p->vocab, p->logits[1] + r * p->vocab, ids[at + r + 1]);
    }
    return QE_OK;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void finish(pair *p, qe_quality *out) {
    double sum = 0;
    for (int64_t i = 0; i < p->scored; i++) sum += p->kl[i];
    qsort(p->kl, (size_t)p->scored, sizeof *p->kl, ascending);
    *out = (qe_quality){.tokens = p->scored,
                        .perplexity_reference = exp(p->nll[0] / (double)p->scored),
                        .perplexity = exp(p->nll[1] / (double)p->scored),
                        .kl_mean = sum / (double)p->scored,
                        .kl_p99 = p->kl[(int64_t)(0.99 * (double)(p->scored - 1))],
                        .kl_max = p->kl[p->scored - 1],
                        .top1_agreement = (double)p->agreed / (double)p->scored};
}

static bool begins_with_bos(const qe_model *model, int32_t id) {
    return model->tokenizer && id == qe_tokenizer_special(model->tokenizer, QE_SPECIAL_BOS);
}

static qe_status measure(pair *p, const int32_t *ids, int64_t count, int64_t window, qe_progress *progress, void *ctx,
                         qe_error *err) {
    for (int i = 0; i < 2; i++) {
        p->logits[i] = malloc((size_t)(ROWS * p->vocab) * sizeof **p->logits);
        if (!p->logits[i]) return qe_error_set(err, QE_E_NOMEM, "no memory for logits");
        QE_TRY(qe_session_create(p->engine[i], &p->session[i], err));
    }
    p->kl = malloc((size_t)count * sizeof *p->kl);
    if (!p->kl) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld tokens", (long long)count);
    p->ids = malloc((size_t)window * sizeof *p->ids);
    if (!p->ids) return qe_error_set(err, QE_E_NOMEM, "no memory for a window of %lld tokens", (long long)window);
    /* A text that begins with BOS is cut into windows that do: models trained so are lost without it. */
    int64_t bos = window > 1 && begins_with_bos(p->engine[0]->model, ids[0]);
    for (int64_t at = 0, n; at < count; at += n) {
        int64_t first = at > 0 ? bos : 0;
        n = count - at < window - first ? count - at : window - first;
        p->ids[0] = ids[0];
        memcpy(p->ids + first, ids + at, (size_t)n * sizeof *ids);
        QE_TRY(window_scores(p, p->ids, first + n, err));
        if (progress && progress(ctx, (uint64_t)at, (uint64_t)count)) return qe_error_set(err, QE_E_CANCELLED, "stopped");
    }
    return p->scored ? QE_OK : qe_error_set(err, QE_E_VALUE, "the text has a single token");
}

qe_status qe_quality_measure(qe_engine *reference, qe_engine *candidate, const int32_t *ids, int64_t count, int64_t window,
                             qe_progress *progress, void *ctx, qe_quality *out, qe_error *err) {
    if (!reference || !candidate || !ids || !out || count < 2 || window < 0)
        return qe_error_set(err, QE_E_ARGUMENT, "a comparison needs two engines, at least two tokens and a place");
    if (reference->hp.vocab != candidate->hp.vocab)
        return qe_error_set(err, QE_E_MISMATCH, "vocabularies of %lld and %lld", (long long)reference->hp.vocab,
                            (long long)candidate->hp.vocab);
    if (!window) window = WINDOW;
    if (window > reference->context) window = reference->context;
    if (window > candidate->context) window = candidate->context;
    pair p = {.engine = {reference, candidate}, .vocab = reference->hp.vocab};
    unsigned fp = qe_fp_enter();
    qe_status status = measure(&p, ids, count, window, progress, ctx, err);
    if (!status) finish(&p, out);
    qe_fp_leave(fp);
    for (int i = 0; i < 2; i++) {
        qe_session_destroy(p.session[i]);
        free(p.logits[i]);
    }
    free(p.kl);
    free(p.ids);
    return status;
}
