/* quantize_mixed.c -- a budget turned into a recipe. What a candidate loses at an input of a layer is measured on
 * the calibration text: the KL of the model's output when that input's linears alone are rounded as one candidate, the probe,
 * has it; other candidates by their share of the probe's squared output error, which is what KL follows while errors are small.
 * Then the exact knapsack, with the costs of quantize_budget.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run/quantize_mixed.h"
#include "run/quantize_round.h"

enum { LOGIT_BYTES = 128 << 20 };

/* ---- candidates -------------------------------------------------------------------------------------------------------- */
static const char *default_candidates(const qe_weight_format *format) {
    if (format == &qe_format_gguf) return "q4_0,q4_k,q5_0,q6_k,q8_0";
    if (format == &qe_format_gptq) return "w2a16-g64,w3a16-g64-asym,w4a16-g128-asym,int8:g128:f16:z=u8";
    return "w3a16-g64-asym,w4a16-g128-asym,int4:g64:f16:z=u8,int5:g128:f16:z=u8,int6:g128:f16:z=u8,w8a16-g128";
}

static qe_status add_candidate(mix *m, const char *text, size_t bytes, qe_error *err) {
    candidate *c = &m->candidates[m->count];
    qe_decision d;
    if (m->count == CANDIDATES || bytes >= sizeof c->text || !bytes)
        return qe_error_set(err, QE_E_ARGUMENT, "a budget chooses among 1 to %d schemes separated by commas", (int)CANDIDATES);
    memcpy(c->text, text, bytes);
    c->text[bytes] = 0;
    QE_TRY(qe_recipe_parse(c->text, m->job.o->method, &c->recipe, err));
    m->count++;
    QE_TRY(qe_recipe_decide(c->recipe, "", false, &d, err));
    if (d.smooth)
        return qe_error_set(err, QE_E_UNSUPPORTED, "a budget chooses among roundings: \"%.40s\" would tie linears together",
                            m->job.o->method);
    return QE_OK;
}

static qe_status read_candidates(mix *m, qe_error *err) {
    const char *text = m->job.o->recipe && *m->job.o->recipe ? m->job.o->recipe : default_candidates(m->job.format);
    for (const char *end; ; text = end + 1) {
        end = strchr(text, ',');
        QE_TRY(add_candidate(m, text, end ? (size_t)(end - text) : strlen(text), err));
        if (!end) return QE_OK;
    }
}

/* ---- units ------------------------------------------------------------------------------------------------------------- */
static qe_status make_units(mix *m, uint64_t *kept, qe_error *err) {
    qe_job *job = &m->job;
    m->unit_count = job->model->hp.layers * QE_INPUTS;
    m->units = calloc((size_t)m->unit_count, sizeof *m->units);
    m->choices = calloc((size_t)(m->unit_count * m->count), sizeof *m->choices);
    m->picked = calloc((size_t)m->unit_count, sizeof *m->picked);
    m->bytes = calloc((size_t)(m->unit_count * m->count), sizeof *m->bytes);
    if (!m->units || !m->choices || !m->picked || !m->bytes) return qe_mix_nomem(err);
    for (int64_t i = 0; i < job->count; i++) {
        qe_item *item = &job->items[i];
        int32_t input = qe_input_of(item->role);
        if (input < 0 || item->layer < 0) {
            *kept += qe_item_bytes(job, item);
            continue;
        }
        unit *u = &m->units[item->layer * QE_INPUTS + input];
        u->item[u->count++] = item;
        u->weights += item->ref.n * item->ref.k;
        m->weights += item->ref.n * item->ref.k;
    }
    return QE_OK;
}

/* ---- KL of the model with one unit rounded ----------------------------------------------------------------------------- */
typedef struct replaced {
    const mix  *m;
    const unit *u;
} replaced;

static int32_t place_of(const replaced *r, qe_role role) {
    for (int32_t j = 0; j < r->u->count; j++)
        if (r->u->item[j]->role == role) return j;
    return -1;
}

static qe_status form_replaced(void *ctx, qe_role role, int64_t layer, qe_weight_ref *ref, qe_error *err) {
    (void)layer;
    (void)err;
    if (place_of(ctx, role) >= 0) ref->quant = (qe_quant){.code = QE_CODE_F32, .bits = 32};
    return QE_OK;
}

static qe_status read_replaced(void *ctx, qe_role role, int64_t layer, const qe_weight_ref *ref, int64_t first_row, int64_t rows,
                               qe_qtensor *band, qe_error *err) {
    (void)layer;
    const replaced *r = ctx;
    int32_t j = place_of(r, role);
    if (j < 0) return qe_store_read(r->m->job.model->store, ref->tensor, first_row, rows, ref->row_map, band, err);
    band->first_row = first_row;
    band->rows = ref->n;
    return qe_quantize(r->m->values[j] + first_row * ref->k, ref->k, 0, band, err);
}

/* Logits of every step-th token after layers from..; u NULL: nothing is rounded. The texts are one piece of the window's. */
static qe_status probe(mix *m, int64_t from, const unit *u, float *logits, qe_error *err) {
    qe_job *job = &m->job;
    qe_engine *e = job->window;
    replaced r = {m, u};
    const qe_weight_source source = {&r, form_replaced, read_replaced};
    qe_stream_fill(e, &job->stream, 0, m->sequences);
    QE_TRY(qe_stream_move(e, e->scratch.hidden.data, job->stream.hidden, m->tokens, err));
    QE_TRY(qe_stream_move(e, e->scratch.delta.data, job->stream.delta, m->tokens, err));
    for (int64_t layer = from; layer < e->hp.layers; layer++) {
        qe_status status = qe_window_load(e, u && layer == from ? &source : NULL, layer, err);
        if (!status) status = qe_forward_layer(e, layer, NULL, err);
        qe_window_release(e, layer);
        QE_TRY(status);
        QE_TRY(qe_job_progress(job, 0, err));
    }
    e->batch.wanted_count = m->rows;
    for (int64_t i = 0; i < m->rows; i++) e->batch.wanted[i] = (qe_wanted){i * m->step, logits + i * e->hp.vocab};
    return qe_forward_head(e, err);
}

static qe_status start_probe(mix *m, qe_error *err) {
    qe_job *job = &m->job;
    qe_stream *s = &job->stream;
    int64_t vocab = job->window->hp.vocab, most = LOGIT_BYTES / (vocab * (int64_t)sizeof(float));
    m->sequences = s->sequences < job->window->max_sessions ? s->sequences : job->window->max_sessions;
    m->tokens = m->sequences * s->length < s->count ? m->sequences * s->length : s->count;
    if (most < 1) most = 1;
    m->step = (m->tokens + most - 1) / most;
    m->rows = (m->tokens + m->step - 1) / m->step;
    m->reference = malloc((size_t)(m->rows * vocab) * sizeof(float));
    m->logits = malloc((size_t)(m->rows * vocab) * sizeof(float));
    if (!m->reference || !m->logits) return qe_mix_nomem(err);
    QE_TRY(qe_window_load_ends(job->window, false, true, err));
    return probe(m, 0, NULL, m->reference, err);
}

static qe_status kl_of(mix *m, int64_t layer, const unit *u, double *kl, qe_error *err) {
    int64_t vocab = m->job.window->hp.vocab;
    QE_TRY(probe(m, layer, u, m->logits, err));
    *kl = 0;
    for (int64_t i = 0; i < m->rows; i++) *kl += qe_kl_divergence(m->reference + i * vocab, m->logits + i * vocab, vocab);
    *kl /= (double)m->rows;
    return QE_OK;
}

/* ---- what every candidate loses ---------------------------------------------------------------------------------------- */
/* The offered candidate whose size is nearest to the budget's share: errors of about the size that will be made. */
static int32_t probe_of(const mix *m, int64_t u) {
    double share = (double)m->budget * (double)m->units[u].weights / (double)m->weights, best = 0;
    int32_t at = -1;
    for (int32_t c = 0; c < m->count; c++) {
        double away = fabs((double)m->choices[u * m->count + c].cost - share);
        qe_decision d;
        if (m->choices[u * m->count + c].cost < 0 || qe_recipe_decide(m->candidates[c].recipe, "", false, &d, NULL) || d.keep) continue;
        if (at < 0 || away < best) at = c, best = away;
    }
    return at;
}

/* Mean over the unit's linears of the squared output error, relative to the output; the probe's become m->values. */
static qe_status noise_of(mix *m, qe_statistics *statistics, int64_t u, int32_t c, bool keep, double noise[READERS], qe_error *err) {
    unit *at = &m->units[u];
    QE_TRY(qe_mix_become(m, at, c, err));
    for (int32_t j = 0; j < at->count; j++) {
        qe_layer_report r;
        noise[j] = 0;
        if (at->item[j]->linear) {
            QE_TRY(qe_round_try(&m->job, statistics, at->item[j], keep ? m->values[j] : NULL, &r, err));
            double db = isnan(r.output_sqnr_db) ? r.sqnr_db : r.output_sqnr_db;
            noise[j] = isinf(db) ? 0 : pow(10, -db / 10);
        }
        QE_TRY(qe_job_progress(&m->job, (double)(at->item[j]->ref.n * at->item[j]->ref.k), err));
    }
    return QE_OK;
}

static qe_status measure_unit(mix *m, qe_statistics *statistics, int64_t u, qe_error *err) {
    unit *at = &m->units[u];
    qe_choice *choices = m->choices + u * m->count;
    int32_t base = probe_of(m, u);
    double probed[READERS] = {0}, noise[READERS], kl = 0;
    if (base < 0) return QE_OK;         /* all of them keep it as it is */
    for (int32_t j = 0; j < at->count; j++) {
        m->values[j] = malloc((size_t)(at->item[j]->ref.n * at->item[j]->ref.k) * sizeof(float));
        if (!m->values[j]) return qe_mix_nomem(err);
    }
    QE_TRY(noise_of(m, statistics, u, base, true, probed, err));
    QE_TRY(kl_of(m, u / QE_INPUTS, at, &kl, err));
    choices[base].loss = kl;
    for (int32_t c = 0; c < m->count; c++) {
        if (c == base || choices[c].cost < 0) continue;
        QE_TRY(noise_of(m, statistics, u, c, false, noise, err));
        for (int32_t j = 0; j < at->count; j++)
            choices[c].loss += (probed[j] > 0 ? kl * noise[j] / probed[j] : noise[j]) / at->count;
    }
    for (int32_t j = 0; j < at->count; j++) {
        free(m->values[j]);
        m->values[j] = NULL;
    }
    return QE_OK;
}

/* Statistics hold what any candidate asks for. */
static qe_status gather(mix *m, qe_statistics *statistics, int64_t layer, qe_error *err) {
    for (int32_t c = 0; c < m->count; c++) {
        for (int32_t input = 0; input < QE_INPUTS; input++) QE_TRY(qe_mix_become(m, &m->units[layer * QE_INPUTS + input], c, err));
        QE_TRY(qe_statistics_start(statistics, &m->job, layer, err));
    }
    const qe_tap tap = {statistics, qe_statistics_input};
    qe_status status = qe_window_load(m->job.window, NULL, layer, err);
    if (!status) status = qe_job_run_stream(&m->job, layer, &tap, err);
    qe_window_release(m->job.window, layer);
    return status;
}

static qe_status measure_layer(mix *m, int64_t layer, qe_error *err) {
    qe_statistics statistics;
    memset(&statistics, 0, sizeof statistics);
    qe_status status = gather(m, &statistics, layer, err);
    for (int64_t u = layer * QE_INPUTS; u < (layer + 1) * QE_INPUTS && !status; u++)
        status = measure_unit(m, &statistics, u, err);
    qe_statistics_end(&statistics);
    QE_TRY(status);
    if (layer + 1 == m->job.model->hp.layers) return QE_OK;
    status = qe_window_load(m->job.window, NULL, layer, err);
    if (!status) status = qe_job_run_stream(&m->job, layer, NULL, err);
    qe_window_release(m->job.window, layer);
    return status;
}

/* ---- the recipe -------------------------------------------------------------------------------------------------------- */
static void tell(const mix *m) {
    for (int64_t u = 0; m->job.o->choice && u < m->unit_count; u++)
        for (int32_t c = 0; c < m->count; c++) {
            const qe_quantize_choice line = qe_mix_choice(m, u, c);
            m->job.o->choice(m->job.o->ctx, &line);
        }
}

static json_t *entry_of(const mix *m, int32_t c, const char *module) {
    json_t *entry = json_object();
    if (module) json_object_set_new(entry, "match", json_string(module));
    json_object_set_new(entry, "scheme", json_string(m->candidates[c].text));
    if (m->job.o->method) json_object_set_new(entry, "method", json_string(m->job.o->method));
    return entry;
}

/* The scheme of most weights at the top, a rule for each linear that has another. */
static char *write_recipe(const mix *m) {
    int64_t weights[CANDIDATES] = {0};
    bool good = true;
    int32_t top = 0;
    char module[256];
    for (int64_t u = 0; u < m->unit_count; u++) weights[m->picked[u]] += m->units[u].weights;
    for (int32_t c = 1; c < m->count; c++) top = weights[c] > weights[top] ? c : top;
    json_t *root = entry_of(m, top, NULL), *rules = json_array();
    for (int64_t u = 0; u < m->unit_count; u++)
        for (int32_t j = 0; m->picked[u] != top && j < m->units[u].count; j++) {
            const qe_item *item = m->units[u].item[j];
            qe_model_module(m->job.model, item->role, item->layer, false, module, sizeof module);
            good &= !json_array_append_new(rules, entry_of(m, m->picked[u], module));
        }
    good &= root && !json_object_set_new(root, "rules", rules);
    char *text = good ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    return text;
}

static qe_status mix_all(mix *m, qe_error *err) {
    qe_job *job = &m->job;
    const char *format = job->o->format;
    char shown[64];
    uint64_t kept = 0;
    job->format = format ? qe_weight_format_find(format) : &qe_format_native;
    if (!job->format)
        return qe_error_set(err, QE_E_ARGUMENT, "no such format: %s", qe_escape(format, strlen(format), shown, sizeof shown));
    QE_TRY(read_candidates(m, err));
    QE_TRY(qe_job_items(job, err));
    QE_TRY(make_units(m, &kept, err));
    job->total = (double)m->weights * m->count;
    QE_TRY(qe_mix_price(m, kept, err));
    QE_TRY(qe_job_start_stream(job, err));
    QE_TRY(start_probe(m, err));
    for (int64_t layer = 0; layer < job->model->hp.layers; layer++) QE_TRY(measure_layer(m, layer, err));
    QE_TRY(qe_mixed_solve(m->choices, (int32_t)m->unit_count, m->count, m->budget, m->picked, NULL, NULL, err));
    tell(m);
    return QE_OK;
}

qe_status qe_job_mix(qe_device *device, const qe_model *model, const qe_quantize_options *o, char **recipe, qe_error *err) {
    mix m = {.job = {.device = device, .model = model, .o = o}};
    *recipe = NULL;
    qe_status status = mix_all(&m, err);
    if (!status && !(*recipe = write_recipe(&m))) status = qe_mix_nomem(err);
    for (int32_t c = 0; c < m.count; c++) qe_recipe_free(m.candidates[c].recipe);
    for (int j = 0; j < READERS; j++) free(m.values[j]);
    qe_engine_destroy(m.job.window);
    qe_job_free_items(&m.job);
    qe_stream_free(&m.job.stream);
    free(m.units);
    free(m.choices);
    free(m.bytes);
    free(m.seconds);
    free(m.picked);
    free(m.reference);
    free(m.logits);
    return status;
}
