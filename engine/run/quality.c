/* quality.c -- two engines side by side on one text: perplexity, KL divergence, agreement. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/recipe.h>
#include <qengine/tokenizer.h>
#include "run/engine_internal.h"

/* Rows of logits at a time: as many as 128 MiB of a model hold, so that weights are decoded seldom. */
enum { WINDOW = 512, FEWEST_ROWS = 64, LOGITS = 1 << 25 };

typedef struct pair {
    qe_engine  *engine[2];
    qe_session *session[2];
    float      *logits[2];          /* [rows][vocab] */
    double     *kl;                 /* of every scored token */
    int32_t    *ids;                /* [window]: one window's */
    int64_t     rows, vocab, scored, agreed;
    double      nll[2];
} pair;

static int64_t largest(const float *row, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

/* What one pass over two rows of logits gives: logarithms of the sums of exponentials, the most likely tokens, and
 * KL(P, Q) = sum p (a - b) - log_a + log_b. */
typedef struct both {
    double  log_a, log_b, kl;
    int64_t top_a, top_b;
} both;

static both compare_rows(const float *a, const float *b, int64_t n) {
    both r = {.top_a = largest(a, n), .top_b = largest(b, n)};
    double high_a = (double)a[r.top_a], high_b = (double)b[r.top_b], sum_a = 0, sum_b = 0, apart = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = (double)a[i], y = (double)b[i], e = exp(x - high_a);
        sum_a += e;
        apart += e * (x - y);
        sum_b += exp(y - high_b);
    }
    r.log_a = high_a + log(sum_a);
    r.log_b = high_b + log(sum_b);
    double kl = apart / sum_a - r.log_a + r.log_b;
    r.kl = kl < 0 ? 0 : kl;     /* rounding; what is not a number stays one */
    return r;
}

double qe_kl_divergence(const float *reference, const float *candidate, int64_t n) {
    return compare_rows(reference, candidate, n).kl;
}

static void score(pair *p, const float *a, const float *b, int32_t next) {
    both r = compare_rows(a, b, p->vocab);
    p->nll[0] += r.log_a - (double)a[next];
    p->nll[1] += r.log_b - (double)b[next];
    p->agreed += r.top_a == r.top_b;
    p->kl[p->scored++] = r.kl;
}

static qe_status window_scores(pair *p, const int32_t *ids, int64_t count, qe_error *err) {
    for (int i = 0; i < 2; i++) QE_TRY(qe_session_rewind(p->session[i], 0, err));
    for (int64_t at = 0; at < count; at += p->rows) {
        int64_t n = count - at < p->rows ? count - at : p->rows;
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
    int64_t fit = LOGITS / p->vocab;
    p->rows = fit < FEWEST_ROWS ? FEWEST_ROWS : fit < window ? fit : window;
    for (int i = 0; i < 2; i++) {
        p->logits[i] = malloc((size_t)(p->rows * p->vocab) * sizeof **p->logits);
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
