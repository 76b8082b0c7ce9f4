/* quantize_budget.c -- what each candidate of a budget costs at each input, and the budget in the same unit: bytes, or ticks of
 * time. Times come from the caller, or are measured on the device (quantize_latency.c). */
#include <math.h>
#include <stdlib.h>

#include "run/quantize_mixed.h"
#include "run/quantize_round.h"

enum { TICKS = 65536 };

qe_status qe_mix_nomem(qe_error *err) { return qe_error_set(err, QE_E_NOMEM, "no memory to measure a budget's choices"); }

qe_status qe_mix_become(mix *m, unit *u, int32_t c, qe_error *err) {
    for (int32_t j = 0; j < u->count; j++) QE_TRY(qe_item_become(&m->job, m->candidates[c].recipe, u->item[j], err));
    return QE_OK;
}

qe_quantize_choice qe_mix_choice(const mix *m, int64_t u, int32_t c) {
    const int64_t at = u * m->count + c;
    return (qe_quantize_choice){.module = m->units[u].item[0]->name, .scheme = m->candidates[c].text, .layer = u / QE_INPUTS,
                                .input = (int32_t)(u % QE_INPUTS), .picked = m->picked[u] == c, .bytes = m->bytes[at],
                                .loss = m->choices[at].loss, .seconds = m->seconds ? m->seconds[at] : 0};
}

/* ---- bytes ------------------------------------------------------------------------------------------------------------- */
/* Bytes of a unit under a candidate; below 0 where the format cannot hold it. */
static qe_status bytes_of(mix *m, unit *u, int32_t c, int64_t *bytes, qe_error *err) {
    *bytes = 0;
    QE_TRY(qe_mix_become(m, u, c, err));
    for (int32_t j = 0; j < u->count && *bytes >= 0; j++) {
        bool holds = !u->item[j]->linear || !m->job.format->check(&u->item[j]->weight, NULL);
        *bytes = holds ? *bytes + (int64_t)qe_item_bytes(&m->job, u->item[j]) : -1;
    }
    return QE_OK;
}

/* Every choice's cost is its bytes; *least: of the cheapest ones. */
static qe_status price_bytes(mix *m, int64_t *least, qe_error *err) {
    *least = 0;
    for (int64_t u = 0; u < m->unit_count; u++) {
        int64_t low = -1;
        for (int32_t c = 0; c < m->count; c++) {
            int64_t *bytes = &m->bytes[u * m->count + c];
            QE_TRY(bytes_of(m, &m->units[u], c, bytes, err));
            m->choices[u * m->count + c].cost = *bytes;
            if (*bytes >= 0 && (low < 0 || *bytes < low)) low = *bytes;
        }
        if (low < 0)
            return qe_error_set(err, QE_E_UNSUPPORTED, "no candidate of the budget fits %s in the format %s",
                                m->units[u].item[0]->name, m->job.format->name);
        *least += low;
    }
    return QE_OK;
}

/* ---- time -------------------------------------------------------------------------------------------------------------- */
/* A unit of an earlier layer that is the same GEMM: what it took goes for this one too. */
static int64_t same_unit(const mix *m, int64_t u) {
    for (int64_t at = u % QE_INPUTS; at < u; at += QE_INPUTS) {
        int64_t n[2] = {0, 0};
        for (int32_t j = 0; j < m->units[at].count; j++) n[0] += m->units[at].item[j]->ref.n;
        for (int32_t j = 0; j < m->units[u].count; j++) n[1] += m->units[u].item[j]->ref.n;
        if (n[0] == n[1] && m->units[at].item[0]->ref.k == m->units[u].item[0]->ref.k) return at;
    }
    return -1;
}

/* Under one scheme the model's linears would be as many copies of the unit as have its weights together. */
static qe_status measure_time(mix *m, int64_t u, int32_t c, double *seconds, qe_error *err) {
    unit *at = &m->units[u];
    int64_t same = same_unit(m, u);
    if (same >= 0) *seconds = m->seconds[same * m->count + c];
    if (*seconds > 0) return QE_OK;
    QE_TRY(qe_job_progress(&m->job, 0, err));
    QE_TRY(qe_mix_become(m, at, c, err));
    return qe_job_latency(&m->job, at->item, at->count, (m->weights + at->weights - 1) / at->weights, seconds, err);
}

static qe_status time_of(mix *m, int64_t u, int32_t c, double *seconds, qe_error *err) {
    const qe_quantize_options *o = m->job.o;
    if (!o->seconds) return measure_time(m, u, c, seconds, err);
    qe_quantize_choice choice = qe_mix_choice(m, u, c);
    choice.picked = 0;
    *seconds = o->seconds(o->ctx, &choice);
    if (*seconds > 0 && isfinite(*seconds)) return QE_OK;
    return qe_error_set(err, QE_E_VALUE, "options.seconds gave %g for %s as %s, expected a time above 0", *seconds, choice.module,
                        choice.scheme);
}

/* A choice's cost is its time in ticks of a 65,536th of the budget, rounded up: what is chosen stays within the budget, and
 * partial sums stay few. */
static qe_status price_time(mix *m, qe_error *err) {
    double tick = m->job.o->budget_seconds / TICKS, quickest = 0;
    int64_t least = 0;
    m->seconds = calloc((size_t)(m->unit_count * m->count), sizeof *m->seconds);
    if (!m->seconds) return qe_mix_nomem(err);
    for (int64_t u = 0; u < m->unit_count; u++) {
        int64_t low = INT64_MAX;
        double time = INFINITY;
        for (int32_t c = 0; c < m->count; c++) {
            double *seconds = &m->seconds[u * m->count + c];
            int64_t *cost = &m->choices[u * m->count + c].cost;
            if (*cost < 0) continue;
            QE_TRY(time_of(m, u, c, seconds, err));
            double ticks = ceil(*seconds / tick);
            *cost = ticks < TICKS ? (int64_t)ticks : *seconds > m->job.o->budget_seconds ? TICKS + 1 : TICKS;
            low = *cost < low ? *cost : low;
            time = fmin(time, *seconds);
        }
        least += low;
        quickest += time;
    }
    m->budget = TICKS;
    if (least <= TICKS) return QE_OK;
    quickest /= 1 - (double)m->unit_count / TICKS;          /* what suffices, however it is rounded */
    return qe_error_set(err, QE_E_LIMIT, "a budget of %g ms a token: the quickest candidates take %.4g ms",
                        1e3 * m->job.o->budget_seconds, 1e3 * quickest);
}

/* ---- all three --------------------------------------------------------------------------------------------------------- */
qe_status qe_mix_price(mix *m, uint64_t kept, qe_error *err) {
    const qe_quantize_options *o = m->job.o;
    int64_t least;
    QE_TRY(price_bytes(m, &least, err));
    if (o->budget_seconds > 0) return price_time(m, err);
    if (o->budget_bits > 0) {
        m->budget = (int64_t)(o->budget_bits * (double)m->weights / 8);
        if (least <= m->budget) return QE_OK;
        return qe_error_set(err, QE_E_LIMIT, "a budget of %g bits a weight: the cheapest candidates take %.4f", o->budget_bits,
                            8 * (double)least / (double)m->weights);
    }
    if (o->budget_bytes > INT64_MAX / 2 || (uint64_t)least + kept > o->budget_bytes)
        return qe_error_set(err, QE_E_LIMIT, "a budget of %llu bytes: the cheapest candidates and what stays take %llu",
                            (unsigned long long)o->budget_bytes, (unsigned long long)((uint64_t)least + kept));
    m->budget = (int64_t)(o->budget_bytes - kept);
    return QE_OK;
}
