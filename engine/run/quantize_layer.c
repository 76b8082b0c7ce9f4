/* quantize_layer.c -- one layer of the loop: the inputs its linears get, its roundings on disk, and what it passes on. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include <qengine/tokenizer.h>

#include "base/os.h"
#include "run/quantize_internal.h"
#include "run/quantize_round.h"

/* ---- texts through the window ------------------------------------------------------------------------------------------ */
static int64_t sequence_end(const qe_stream *s, int64_t sequence) {
    int64_t end = (sequence + 1) * s->length;
    return end < s->count ? end : s->count;
}

/* Sequences [from, to) as the batch: each from position 0, in pages of its own. */
void qe_stream_fill(qe_engine *e, const qe_stream *s, int64_t from, int64_t to) {
    qe_batch *b = &e->batch;
    int64_t pages = qe_kv_pages_for(s->length), first = from * s->length;
    b->m = sequence_end(s, to - 1) - first;
    b->sequences = (int32_t)(to - from);
    b->wanted_count = 0;
    b->max_new = b->max_length = 0;
    b->host.first_row[0] = 0;
    for (int64_t i = from; i < to; i++) {
        int64_t start = i * s->length, n = sequence_end(s, i) - start;
        for (int64_t t = 0; t < n; t++) {
            b->host.ids[start - first + t] = s->ids[start + t];
            b->host.position[start - first + t] = (int32_t)t;
        }
        b->host.first_row[i - from + 1] = (int32_t)(start - first + n);
        b->host.length[i - from] = (int32_t)n;
        for (int64_t p = 0; p < pages; p++) b->host.table[(i - from) * b->ld_table + p] = (int32_t)((i - from) * pages + p);
        if (n > b->max_new) b->max_new = b->max_length = (int32_t)n;
    }
}

qe_status qe_stream_move(qe_engine *e, void *to, const void *from, int64_t rows, qe_error *err) {
    QE_TRY(e->device->backend->copy(&e->queue, to, from, (size_t)(rows * e->hp.hidden) * sizeof(float), err));
    return e->device->backend->wait(&e->queue, err);
}

qe_status qe_job_run_stream(qe_job *job, int64_t layer, const qe_tap *tap, qe_error *err) {
    qe_engine *e = job->window;
    qe_stream *s = &job->stream;
    for (int64_t from = 0; from < s->sequences; from += e->max_sessions) {
        int64_t to = from + e->max_sessions < s->sequences ? from + e->max_sessions : s->sequences;
        float *hidden = s->hidden + from * s->length * e->hp.hidden, *delta = s->delta + from * s->length * e->hp.hidden;
        qe_stream_fill(e, s, from, to);
        if (layer >= 0) {
            QE_TRY(qe_stream_move(e, e->scratch.hidden.data, hidden, e->batch.m, err));
            QE_TRY(qe_stream_move(e, e->scratch.delta.data, delta, e->batch.m, err));
            QE_TRY(qe_forward_layer(e, layer, tap, err));
        } else {
            QE_TRY(qe_forward_embed(e, err));
        }
        if (!tap) {
            QE_TRY(qe_stream_move(e, hidden, e->scratch.hidden.data, e->batch.m, err));
            QE_TRY(qe_stream_move(e, delta, e->scratch.delta.data, e->batch.m, err));
        }
        QE_TRY(qe_job_progress(job, 0, err));
    }
    return QE_OK;
}

void qe_stream_free(qe_stream *s) {
    free(s->ids);
    free(s->hidden);
    free(s->delta);
}

static qe_status encode(qe_job *job, size_t *count, int32_t *ids, size_t room, qe_error *err) {
    return qe_tokenizer_encode(job->model->tokenizer, job->o->calibration, job->o->calibration_bytes, NULL, ids, room, count, err);
}

qe_status qe_job_start_stream(qe_job *job, qe_error *err) {
    qe_stream *s = &job->stream;
    const qe_hparams *hp = &job->model->hp;
    size_t count = 0;
    if (!job->o->calibration || !job->o->calibration_bytes)
        return qe_error_set(err, QE_E_VALUE, "this method needs a calibration text, and there is none");
    if (!job->model->tokenizer) return qe_error_set(err, QE_E_MISSING, "calibration needs a tokenizer, the model has none");
    QE_TRY(encode(job, &count, NULL, 0, err));
    s->length = job->o->sequence_tokens ? job->o->sequence_tokens : 512;
    if (hp->context > 0 && s->length > hp->context) s->length = hp->context;
    if (count < 32)
        return qe_error_set(err, QE_E_VALUE, "the calibration text gives %zu tokens, at least 32 are needed", count);
    s->ids = malloc((count + 1) * sizeof *s->ids);
    if (!s->ids) return qe_error_set(err, QE_E_NOMEM, "no memory for calibration");
    QE_TRY(encode(job, &count, s->ids, count, err));
    int64_t most = s->length * (job->o->sequences ? job->o->sequences : 128);
    s->count = (int64_t)count < most ? (int64_t)count : most;
    if (s->length > s->count) s->length = s->count;
    s->sequences = (s->count + s->length - 1) / s->length;
    size_t bytes = (size_t)(s->count * hp->hidden) * sizeof *s->hidden;
    s->hidden = calloc(1, bytes);
    s->delta = calloc(1, bytes);
    if (!s->hidden || !s->delta) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld calibration tokens", (long long)s->count);
    int64_t batch = s->length * (512 / s->length > 0 ? 512 / s->length : 1);
    QE_TRY(qe_engine_create_window(job->device, job->model, s->length, (int32_t)batch, &job->window, err));
    QE_TRY(qe_window_load_ends(job->window, true, false, err));
    qe_status status = qe_job_run_stream(job, -1, NULL, err);
    qe_window_release_ends(job->window);
    return status;
}

/* ---- plain tensors ----------------------------------------------------------------------------------------------------- */
static qe_status copy_bytes(qe_job *job, const qe_item *item, qe_error *err) {
    enum { PIECE = 1 << 20 };
    const qe_store *store = job->model->store;
    const qe_store_tensor *t = qe_store_tensor_at(store, item->tensor);
    char *piece = malloc(PIECE);
    if (!piece) return qe_error_set(err, QE_E_NOMEM, "no memory to copy a tensor");
    qe_status status = QE_OK;
    for (uint64_t at = 0; at < t->bytes && !status;) {
        size_t bytes = t->bytes - at < PIECE ? (size_t)(t->bytes - at) : PIECE;
        status = qe_store_read_raw(store, item->tensor, at, piece, bytes, err);
        if (!status) status = qe_out_put(job->out, item->out, at, piece, bytes, err);
        at += bytes;
    }
    free(piece);
    return status;
}

static qe_status put_vector(qe_job *job, const qe_item *item, const float *values, qe_error *err) {
    if (job->format->kind != QE_OUT_GGUF) return qe_put_vector(job->out, item, values, err);
    qe_qtensor t = item->weight.form;
    t.codes = (void *)(uintptr_t)values;
    return job->format->put(job->out, &item->weight, &t, err);
}

/* GGUF: vectors as they act, in the file's row order. */
static qe_status copy_vector(qe_job *job, const qe_item *item, qe_error *err) {
    int64_t k = item->ref.k;
    float *values = malloc((size_t)k * 2 * sizeof *values), *moved = values + k;
    if (!values) return qe_error_set(err, QE_E_NOMEM, "no memory to copy a tensor");
    qe_status status = item->changed ? QE_OK : qe_model_read_vector(job->model, &item->ref, values, err);
    if (item->changed) memcpy(values, item->changed, (size_t)k * sizeof *values);
    for (int64_t i = 0; i < k; i++) moved[item->row_map ? item->row_map[i] : i] = values[i];
    if (!status) status = put_vector(job, item, moved, err);
    free(values);
    return status;
}

/* GGUF: a matrix that stays float, band by band. */
static qe_status copy_matrix(qe_job *job, const qe_item *item, qe_error *err) {
    const qe_store *store = job->model->store;
    const qe_store_tensor *t = qe_store_tensor_at(store, item->tensor);
    int64_t rows = (8 << 20) / (4 * t->columns) + 1;
    if (rows > t->rows) rows = t->rows;
    size_t bytes = qe_qtensor_bytes(qe_store_quant(t), rows, t->columns, 0);
    void *block = qe_os_alloc(bytes);
    if (!block) return qe_error_set(err, QE_E_NOMEM, "no memory to copy a tensor");
    qe_status status = QE_OK;
    for (int64_t row = 0; row < t->rows && !status; row += rows) {
        qe_qtensor band;
        int64_t n = t->rows - row < rows ? t->rows - row : rows;
        status = qe_qtensor_place(&band, qe_store_quant(t), n, t->columns, 0, block, bytes, err);
        if (!status) status = qe_store_read(store, item->tensor, row, n, item->ref.row_map, &band, err);
        if (!status) status = job->format->put(job->out, &item->weight, &band, err);
    }
    qe_os_release(block);
    return status;
}

/* A GGUF source's matrix in the published row order, as half floats. */
static qe_status dequantize_matrix(qe_job *job, const qe_item *item, qe_error *err) {
    int64_t k = item->ref.k, rows = (8 << 20) / (4 * k) + 1;
    if (rows > item->ref.n) rows = item->ref.n;
    float *w = malloc((size_t)(rows * k) * sizeof *w);
    uint16_t *half = malloc((size_t)(rows * k) * sizeof *half);
    qe_status status = w && half ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory to copy a tensor");
    for (int64_t row = 0; row < item->ref.n && !status; row += rows) {
        int64_t n = item->ref.n - row < rows ? item->ref.n - row : rows;
        status = qe_weight_floats(job->model, &item->ref, row, n, w, err);
        for (int64_t i = 0; i < n * k && !status; i++) half[i] = qe_f32_to_f16(w[i]);
        if (!status) status = qe_out_put(job->out, item->out, (uint64_t)(row * k) * sizeof *half, half, (size_t)(n * k) * sizeof *half, err);
    }
    free(w);
    free(half);
    return status;
}

static qe_status dequantize(qe_job *job, const qe_item *item, qe_error *err) {
    if (item->ref.n != 1) return dequantize_matrix(job, item, err);
    float *values = malloc((size_t)item->ref.k * sizeof *values);
    if (!values) return qe_error_set(err, QE_E_NOMEM, "no memory to copy a tensor");
    qe_status status = qe_model_read_vector(job->model, &item->ref, values, err);
    if (!status) status = qe_put_vector(job->out, item, item->changed ? item->changed : values, err);
    free(values);
    return status;
}

qe_status qe_job_copy(qe_job *job, qe_item *item, qe_error *err) {
    if (qe_job_dequantizes(job)) return dequantize(job, item, err);
    const qe_store_tensor *t = qe_store_tensor_at(job->model->store, item->tensor);
    if (job->format->kind == QE_OUT_GGUF) return t->rank == 1 ? copy_vector(job, item, err) : copy_matrix(job, item, err);
    return item->changed ? put_vector(job, item, item->changed, err) : copy_bytes(job, item, err);
}

/* ---- what was written, read back for the next layer -------------------------------------------------------------------- */
typedef struct written {
    qe_job   *job;
    int64_t   layer;
    qe_store *store;
} written;

static qe_item *item_of(qe_job *job, qe_role role, int64_t layer) {
    for (int64_t i = 0; i < job->count; i++)
        if (job->items[i].role == role && job->items[i].layer == layer) return &job->items[i];
    return NULL;
}

static bool of_layer(void *ctx, const char *module) {
    const written *w = ctx;
    for (int64_t i = 0; i < w->job->count; i++)
        if (w->job->items[i].linear && w->job->items[i].layer == w->layer && !strcmp(w->job->items[i].name, module)) return true;
    return false;
}

static int64_t find_written(const written *w, const qe_item *item) {
    char name[1300];
    snprintf(name, sizeof name, "%s%s", item->name, item->linear && w->job->format->kind != QE_OUT_GGUF ? ".weight" : "");
    return qe_store_find(w->store, name);
}

static qe_status form_written(void *ctx, qe_role role, int64_t layer, qe_weight_ref *ref, qe_error *err) {
    const written *w = ctx;
    const qe_item *item = item_of(w->job, role, layer);
    int64_t index = item ? find_written(w, item) : -1;
    if (index < 0) return qe_error_set(err, QE_E_MISSING, "layer %lld has no written %s", (long long)layer, qe_role_name(role));
    qe_qtensor form;
    qe_store_form(w->store, index, &form, &ref->act_known);
    ref->quant = form.quant;
    ref->act = form.act;
    ref->order = form.order;
    ref->col_scale = form.col_scale;
    ref->hadamard = form.hadamard;
    ref->facts = form.facts;
    return QE_OK;
}

static qe_status read_written(void *ctx, qe_role role, int64_t layer, const qe_weight_ref *ref, int64_t first_row, int64_t rows,
                              qe_qtensor *band, qe_error *err) {
    (void)ref;
    const written *w = ctx;
    const qe_item *item = item_of(w->job, role, layer);
    return qe_store_read(w->store, find_written(w, item), first_row, rows, item->row_map, band, err);
}

/* Norms may have taken up column scales: the window gets them as they were written. */
static qe_status load_norms(qe_job *job, const written *w, qe_error *err) {
    for (int64_t i = 0; i < job->count; i++) {
        const qe_item *item = &job->items[i];
        if (item->layer != w->layer || (item->role != QE_ROLE_ATTN_NORM && item->role != QE_ROLE_FFN_NORM)) continue;
        float *values = malloc((size_t)item->ref.k * sizeof *values);
        if (!values) return qe_error_set(err, QE_E_NOMEM, "no memory for a norm");
        qe_weight_ref ref = item->ref;
        const qe_model model = {.store = w->store};
        ref.tensor = find_written(w, item);
        ref.quant = *qe_store_quant(qe_store_tensor_at(w->store, ref.tensor));
        ref.norm_offset = item->stored_offset;
        qe_status status = qe_model_read_vector(&model, &ref, values, err);
        if (!status) status = qe_window_vector(job->window, w->layer, item->role, values, err);
        free(values);
        QE_TRY(status);
    }
    return QE_OK;
}

static qe_status pass_on(qe_job *job, int64_t layer, qe_error *err) {
    written w = {job, layer, NULL};
    char *config = NULL;
    if (job->format->kind == QE_OUT_SAFETENSORS && !(config = qe_job_config(job, err))) return QE_E_NOMEM;
    qe_status status = qe_out_open(job->out, config, of_layer, &w, &w.store, err);
    free(config);
    const qe_weight_source source = {&w, form_written, read_written};
    if (!status) status = qe_window_load(job->window, &source, layer, err);
    if (!status) status = load_norms(job, &w, err);
    if (!status) status = qe_job_run_stream(job, layer, NULL, err);
    qe_window_release(job->window, layer);
    qe_store_close(w.store);
    return status;
}

/* ---- the layer --------------------------------------------------------------------------------------------------------- */
static bool layer_done(const qe_job *job, int64_t layer) {
    for (int64_t i = 0; i < job->count; i++)
        if (job->items[i].layer == layer && !qe_item_done(job, &job->items[i])) return false;
    return true;
}

static bool needs_inputs(const qe_job *job, int64_t layer) {
    for (int64_t i = 0; i < job->count; i++) {
        const qe_decision *d = &job->items[i].decision;
        if (job->items[i].layer == layer && job->items[i].linear &&
            (qe_method_needs(d->method) || d->smooth || d->range == QE_RANGE_OUTPUT || d->act.mode == QE_ACT_STATIC ||
             (d->method == QE_METHOD_KMEANS && job->o->calibration)))
            return true;
    }
    return false;
}

static qe_status make_layer(qe_job *job, int64_t layer, qe_error *err) {
    qe_statistics statistics;
    memset(&statistics, 0, sizeof statistics);
    qe_status status = QE_OK;
    if (job->calibrates && needs_inputs(job, layer)) {
        status = qe_statistics_start(&statistics, job, layer, err);
        if (!status) status = qe_window_load(job->window, NULL, layer, err);
        const qe_tap tap = {&statistics, qe_statistics_input};
        if (!status) status = qe_job_run_stream(job, layer, &tap, err);
        qe_window_release(job->window, layer);
    }
    if (!status) status = qe_round_layer(job, layer, statistics.job ? &statistics : NULL, err);
    qe_statistics_end(&statistics);
    for (int64_t i = 0; i < job->count && !status; i++)
        if (job->items[i].layer == layer && !job->items[i].linear) status = qe_job_copy(job, &job->items[i], err);
    if (!status) status = qe_job_save_report(job, false, err);
    return status ? status : qe_out_mark(job->out, err);
}

qe_status qe_job_layer(qe_job *job, int64_t layer, qe_error *err) {
    if (layer_done(job, layer)) QE_TRY(qe_round_resumed(job, layer, err));
    else QE_TRY(make_layer(job, layer, err));
    return job->window && layer + 1 < job->model->hp.layers ? pass_on(job, layer, err) : QE_OK;
}
