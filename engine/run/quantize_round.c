/* quantize_round.c -- a linear as floats, rounded as its recipe says, written and measured. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "base/os.h"
#include "run/quantize_round.h"

int32_t qe_input_of(qe_role role) {
    switch (role) {
    case QE_ROLE_Q:
    case QE_ROLE_K:
    case QE_ROLE_V: return 0;
    case QE_ROLE_O: return 1;
    case QE_ROLE_GATE:
    case QE_ROLE_UP: return 2;
    case QE_ROLE_DOWN: return 3;
    default: return -1;
    }
}

static void parallel(void *ctx, void (*task)(void *arg, int32_t index, int32_t count), void *arg, int32_t count) {
    const qe_job *job = ctx;
    qk_queue queue = qe_device_queue(job->device, NULL);
    if (queue.parallel) {
        queue.parallel(queue.pool, task, arg, count);
        return;
    }
    for (int32_t i = 0; i < count; i++) task(arg, i, count);
}

qe_executor qe_job_executor(qe_job *job) {
    return (qe_executor){job, job->device->facts.units > 0 ? job->device->facts.units : 1, parallel};
}

/* ---- one linear -------------------------------------------------------------------------------------------------------- */
typedef struct linear_work {
    float     *w;                   /* [n][k] */
    void      *block;
    size_t     block_bytes;
    qe_qtensor t;
} linear_work;

static qe_status place(const qe_item *item, linear_work *work, qe_error *err) {
    const qe_qtensor *form = &item->weight.form;
    uint32_t parts = form->order ? QE_PLACE_ORDER : 0;
    work->block_bytes = qe_qtensor_bytes(&form->quant, form->rows, form->k, parts);
    work->block = qe_os_alloc(work->block_bytes);
    work->w = qe_os_alloc((size_t)(form->rows * form->k) * sizeof *work->w);
    if (!work->block || !work->w)
        return qe_error_set(err, QE_E_NOMEM, "no memory for %s: %lld x %lld", item->name, (long long)form->rows,
                            (long long)form->k);
    return qe_qtensor_place(&work->t, &form->quant, form->rows, form->k, parts, work->block, work->block_bytes, err);
}

static void release(linear_work *work) {
    qe_os_release(work->block);
    qe_os_release(work->w);
}

/* ---- the report -------------------------------------------------------------------------------------------------------- */
static void put_number(json_t *to, const char *key, double value) {
    json_object_set_new(to, key, isfinite(value) ? json_real(value) : json_null());
}

static double number(const json_t *from, const char *key) {
    const json_t *value = json_object_get(from, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static void tell(qe_job *job, const json_t *entry, int32_t resumed) {
    job->finished++;
    if (!job->o->layer) return;
    const qe_quantize_layer line = {.module = json_string_value(json_object_get(entry, "module")),
                                    .scheme = json_string_value(json_object_get(entry, "scheme")),
                                    .method = json_string_value(json_object_get(entry, "method")),
                                    .index = job->finished,
                                    .count = job->linears,
                                    .n = json_integer_value(json_object_get(entry, "n")),
                                    .k = json_integer_value(json_object_get(entry, "k")),
                                    .bits_per_weight = number(entry, "bits_per_weight"),
                                    .sqnr_db = number(entry, "sqnr_db"),
                                    .max_error = number(entry, "max_error"),
                                    .error_bound = number(entry, "error_bound"),
                                    .output_cosine = number(entry, "output_cosine"),
                                    .resumed = resumed};
    job->o->layer(job->o->ctx, &line);
}

static qe_status report(qe_job *job, const qe_item *item, const qe_layer_report *r, qe_error *err) {
    char scheme[96];
    qe_quant_name(&item->decision.quant, scheme, sizeof scheme);
    json_t *entry = json_pack("{s:s, s:s, s:s, s:I, s:I}", "module", item->name, "scheme", scheme, "method", item->decision.how,
                              "n", (json_int_t)item->weight.form.rows, "k", (json_int_t)item->weight.form.k);
    if (!entry) return qe_error_set(err, QE_E_NOMEM, "no memory for the report");
    put_number(entry, "bits_per_weight", r->bits_per_weight);
    put_number(entry, "sqnr_db", r->sqnr_db);
    put_number(entry, "max_error", r->max_error);
    put_number(entry, "mean_error", r->mean_error);
    put_number(entry, "error_bound", r->error_bound);
    put_number(entry, "output_sqnr_db", r->output_sqnr_db);
    put_number(entry, "output_cosine", r->output_cosine);
    tell(job, entry, 0);
    return json_array_append_new(job->report, entry) ? qe_error_set(err, QE_E_NOMEM, "no memory for the report") : QE_OK;
}

/* A layer that was stopped between two of its marks is made again, and so are its entries. */
static void forget(qe_job *job, int64_t layer) {
    for (int64_t i = 0; i < job->count; i++) {
        const qe_item *item = &job->items[i];
        for (size_t at = json_array_size(job->report); item->linear && item->layer == layer && at-- > 0;) {
            const char *module = json_string_value(json_object_get(json_array_get(job->report, at), "module"));
            if (module && !strcmp(module, item->name)) json_array_remove(job->report, at);
        }
    }
}

qe_status qe_round_resumed(qe_job *job, int64_t layer, qe_error *err) {
    size_t at;
    json_t *entry;
    for (int64_t i = 0; i < job->count; i++) {
        const qe_item *item = &job->items[i];
        if (item->layer != layer || !item->linear) continue;
        json_array_foreach(job->report, at, entry) {
            const char *module = json_string_value(json_object_get(entry, "module"));
            if (module && !strcmp(module, item->name)) tell(job, entry, 1);
        }
        QE_TRY(qe_job_progress(job, (double)(item->weight.form.rows * item->weight.form.k), err));
    }
    return QE_OK;
}

/* ---- vectors ----------------------------------------------------------------------------------------------------------- */
/* A norm as the file stores it: without the family's offset, in its own type. */
qe_status qe_put_vector(qe_out *out, const qe_item *item, const float *values, qe_error *err) {
    int64_t k = item->ref.k;
    bool wide = qe_out_bytes(out, item->out) == (uint64_t)k * sizeof(float);        /* dequantized, whatever it was */
    int32_t code = wide ? QE_CODE_F32 : item->ref.quant.code;
    float *raw = malloc((size_t)k * sizeof *raw);
    if (!raw) return qe_error_set(err, QE_E_NOMEM, "no memory for a norm");
    for (int64_t i = 0; i < k; i++) {
        float v = values[i] - item->stored_offset;
        if (code == QE_CODE_F32) raw[i] = v;
        else ((uint16_t *)(void *)raw)[i] = code == QE_CODE_F16 ? qe_f32_to_f16(v) : qe_f32_to_bf16(v);
    }
    qe_status status = qe_out_put(out, item->out, 0, raw, (size_t)k * (code == QE_CODE_F32 ? 4 : 2), err);
    free(raw);
    return status;
}

/* ---- rounding one ------------------------------------------------------------------------------------------------------ */
/* How a layer's linears were changed before rounding: columns of those that read input g, rows of up. */
typedef struct layer_work {
    qe_job        *job;
    qe_statistics *statistics;          /* NULL: nothing gathered */
    int64_t        layer;
    float         *scale[QE_INPUTS];    /* [k]: W * s, x / s; NULL: none */
} layer_work;

static qe_calibration calibration_of(const layer_work *lw, int32_t input) {
    qe_calibration c = {NULL, NULL, 0, 0};
    if (!lw->statistics || input < 0) return c;
    const qe_input_statistics *s = &lw->statistics->input[input];
    c.hessian = s->hessian;
    c.x = s->sample_rows ? s->sample : NULL;
    c.x_rows = s->sample_rows;
    c.ldx = s->k;
    return c;
}

static qe_status static_input(const layer_work *lw, qe_item *item, int32_t input, qe_act *act, qe_error *err) {
    const qe_decision *d = &item->decision;
    int32_t method = d->range && d->range != QE_RANGE_OUTPUT ? d->range : QE_RANGE_MSE;
    if (act->mode != QE_ACT_STATIC) return QE_OK;
    const qe_input_statistics *s = &lw->statistics->input[input];
    if (!lw->scale[input]) return qe_observer_act(s->observer, method, &d->act.quant, act, err);
    /* The scaled inputs were never seen: their sample has to do. */
    qe_observer *o;
    const qe_range_options options = {.struct_size = sizeof options, .method = method};
    QE_TRY(qe_observer_create(&options, &o, err));
    qe_status status = qe_observer_add(o, s->sample, s->sample_rows, s->k, s->k, err);
    if (!status) status = qe_observer_act(o, method, &d->act.quant, act, err);
    qe_observer_destroy(o);
    return status;
}

static void transform(const layer_work *lw, const qe_item *item, int32_t input, float *w) {
    int64_t n = item->ref.n, k = item->ref.k;
    if (input >= 0 && lw->scale[input]) qe_columns_scale(w, n, k, k, lw->scale[input], 0);
    for (int64_t r = 0; item->role == QE_ROLE_UP && lw->scale[3] && r < n; r++)
        for (int64_t c = 0; c < k; c++) w[r * k + c] = qe_div(w[r * k + c], lw->scale[3][r]);
}

static qe_status name_value(const qe_item *item, qe_status status, qe_error *err) {
    if (status != QE_E_VALUE || !err) return status;
    qe_error inner = *err;
    return qe_error_at(err, status, inner.where, inner.offset, "%s: %.300s", item->name, inner.message);
}

/* AWQ cuts weights as well. Its authors' code leaves out q and k; here the error fell with them (docs/quantize.md). */
static int32_t range_of(const qe_decision *d, const qe_calibration *calibration) {
    bool cuts = d->smooth == QE_SMOOTH_AWQ && d->method == QE_METHOD_RTN && !d->range && d->quant.group_n == 1 &&
                d->quant.scale != QE_NUM_ONE && calibration->x;
    return cuts ? QE_RANGE_OUTPUT : d->range;
}

/* The weights as floats, transformed, and rounded. */
static qe_status make(const layer_work *lw, const qe_item *item, const qe_calibration *calibration, linear_work *work,
                      qe_error *err) {
    const qe_decision *d = &item->decision;
    qe_executor executor = qe_job_executor(lw->job);
    qe_round_options options = {.struct_size = sizeof options, .method = d->method, .order = d->order, .seed = lw->job->o->seed,
                                .executor = &executor};
    options.range = (qe_range_options){.struct_size = sizeof options.range, .method = range_of(d, calibration),
                                       .full_range = d->full_range};
    QE_TRY(place(item, work, err));
    QE_TRY(name_value(item, qe_weight_floats(lw->job->model, &item->ref, 0, item->ref.n, work->w, err), err));
    transform(lw, item, qe_input_of(item->role), work->w);
    if (item->weight.form.hadamard)
        QE_TRY(qe_hadamard(work->w, item->ref.n, item->ref.k, item->ref.k, item->weight.form.hadamard, 0, 0, &executor, err));
    QE_TRY(name_value(item, qe_round_weights(work->w, item->ref.k, calibration, &options, &work->t, err), err));
    return QE_OK;
}

qe_status qe_round_try(qe_job *job, qe_statistics *statistics, const qe_item *item, float *values, qe_layer_report *out,
                       qe_error *err) {
    linear_work work;
    memset(&work, 0, sizeof work);
    const layer_work lw = {.job = job, .statistics = statistics, .layer = item->layer};
    qe_calibration calibration = calibration_of(&lw, qe_input_of(item->role));
    qe_executor executor = qe_job_executor(job);
    int64_t n = item->ref.n, k = item->ref.k;
    qe_status status = make(&lw, item, &calibration, &work, err);
    if (!status) status = qe_report_measure(work.w, k, &work.t, &calibration, &executor, out, err);
    if (!status && values) status = qe_dequantize(&work.t, 0, n, values, k, err);
    if (!status && values && item->weight.form.hadamard)
        status = qe_hadamard(values, n, k, k, item->weight.form.hadamard, 0, 1, &executor, err);
    release(&work);
    return status;
}

static qe_status round_one(layer_work *lw, qe_item *item, linear_work *work, qe_error *err) {
    int32_t input = qe_input_of(item->role);
    qe_calibration calibration = calibration_of(lw, input);
    QE_TRY(make(lw, item, &calibration, work, err));
    work->t.hadamard = item->weight.form.hadamard;
    work->t.act = item->weight.form.act;
    QE_TRY(static_input(lw, item, input, &work->t.act, err));
    item->weight.form.act = work->t.act;
    if (item->weight.form.facts & ~work->t.facts)
        return qe_error_set(err, QE_E_VALUE, "%s: levels leave int8 (facts 0x%x)", item->name, work->t.facts);
    QE_TRY(lw->job->format->put(lw->job->out, &item->weight, &work->t, err));
    qe_layer_report r;
    qe_executor executor = qe_job_executor(lw->job);
    QE_TRY(qe_report_measure(work->w, item->ref.k, &work->t, &calibration, &executor, &r, err));
    return report(lw->job, item, &r, err);
}

static qe_status round_item(layer_work *lw, qe_item *item, qe_error *err) {
    linear_work work;
    memset(&work, 0, sizeof work);
    qe_status status = round_one(lw, item, &work, err);
    release(&work);
    return status ? status : qe_job_progress(lw->job, (double)(item->ref.n * item->ref.k), err);
}

/* ---- column scales, folded into what comes before ---------------------------------------------------------------------- */
static qe_item *find(qe_job *job, qe_role role, int64_t layer) {
    for (int64_t i = 0; i < job->count; i++)
        if (job->items[i].role == role && job->items[i].layer == layer) return &job->items[i];
    return NULL;
}

static const qe_role readers[QE_INPUTS][3] = {{QE_ROLE_Q, QE_ROLE_K, QE_ROLE_V},
                                              {QE_ROLE_O, QE_ROLE_COUNT, QE_ROLE_COUNT},
                                              {QE_ROLE_GATE, QE_ROLE_UP, QE_ROLE_COUNT},
                                              {QE_ROLE_DOWN, QE_ROLE_COUNT, QE_ROLE_COUNT}};
static const qe_role norms[QE_INPUTS] = {QE_ROLE_ATTN_NORM, QE_ROLE_COUNT, QE_ROLE_FFN_NORM, QE_ROLE_COUNT};

/* The linears of an input when all of them are rounded with one kind of column scale; 0: none to be found. */
static int32_t smooth_group(const layer_work *lw, int32_t input, qe_item **items) {
    int32_t count = 0;
    for (int i = 0; i < 3 && readers[input][i] != QE_ROLE_COUNT; i++) {
        qe_item *item = find(lw->job, readers[input][i], lw->layer);
        if (!item || !item->linear || !item->decision.smooth || (count && item->decision.smooth != items[0]->decision.smooth)) return 0;
        items[count++] = item;
    }
    const qe_item *up = find(lw->job, QE_ROLE_UP, lw->layer), *bias = find(lw->job, QE_ROLE_UP_BIAS, lw->layer);
    bool folds = input == 3 ? up && up->linear && !bias : norms[input] != QE_ROLE_COUNT;
    return folds && lw->statistics && lw->statistics->input[input].sample_rows ? count : 0;
}

static qe_status search(layer_work *lw, int32_t input, qe_item **items, int32_t count, float *s, qe_error *err) {
    const float *w[3];
    float *own[3] = {NULL, NULL, NULL};
    int64_t n[3], ld[3];
    const qe_input_statistics *st = &lw->statistics->input[input];
    const qe_decision *d = &items[0]->decision;
    qe_executor executor = qe_job_executor(lw->job);
    qe_status status = QE_OK;
    for (int32_t i = 0; i < count && !status; i++) {
        n[i] = items[i]->ref.n;
        ld[i] = st->k;
        w[i] = own[i] = qe_os_alloc((size_t)(n[i] * st->k) * sizeof(float));
        status = own[i] ? qe_weight_floats(lw->job->model, &items[i]->ref, 0, n[i], own[i], err)
                        : qe_error_set(err, QE_E_NOMEM, "no memory for %s", items[i]->name);
        status = name_value(items[i], status, err);
    }
    const qe_linears linears = {count, w, n, ld, st->k};
    qe_calibration calibration = calibration_of(lw, input);
    qe_smooth_options options = {.struct_size = sizeof options, .by_weights = d->smooth == QE_SMOOTH_QUANT, .executor = &executor};
    options.range = (qe_range_options){.struct_size = sizeof options.range, .method = d->range, .full_range = d->full_range};
    const qe_act dynamic = {.quant = d->act.quant, .mode = d->act.mode == QE_ACT_STATIC ? QE_ACT_DYNAMIC : d->act.mode};
    qe_act act = dynamic;
    if (act.mode == QE_ACT_DYNAMIC) act.quant.group_n = 1;
    if (!status)
        status = qe_smooth_search(&linears, &calibration, st->absmax, st->sum_abs, st->tokens, &d->quant, &act, &options, s, NULL,
                                  NULL, err);
    for (int i = 0; i < 3; i++) qe_os_release(own[i]);
    return status;
}

/* The norm before an input takes up 1 / s. What its type rounds away goes back into s, so that nothing changes but bits. */
static qe_status fold_norm(layer_work *lw, int32_t input, float *s, qe_error *err) {
    qe_item *norm = find(lw->job, norms[input], lw->layer);
    if (!norm) return qe_error_set(err, QE_E_MISSING, "layer %lld has no norm to fold scales into", (long long)lw->layer);
    int64_t k = norm->ref.k;
    int32_t code = lw->job->format->kind == QE_OUT_GGUF ? QE_CODE_F32 : norm->ref.quant.code;
    float *values = malloc((size_t)k * 2 * sizeof *values), *changed = values + k;
    if (!values) return qe_error_set(err, QE_E_NOMEM, "no memory for a norm");
    qe_status status = qe_model_read_vector(lw->job->model, &norm->ref, values, err);
    for (int64_t i = 0; i < k && !status; i++) {
        float v = qe_sub(qe_div(values[i], s[i]), norm->stored_offset);
        if (code == QE_CODE_F16) v = qe_f16_to_f32(qe_f32_to_f16(v));
        if (code == QE_CODE_BF16) v = qe_bf16_to_f32(qe_f32_to_bf16(v));
        changed[i] = qe_add(v, norm->stored_offset);
        float exact = values[i] / changed[i];
        if (isfinite(exact) && exact > 0.0f) s[i] = exact;
        else changed[i] = values[i], s[i] = 1.0f;
    }
    free(norm->changed);
    norm->changed = status ? NULL : malloc((size_t)k * sizeof *changed);
    if (norm->changed) memcpy(norm->changed, changed, (size_t)k * sizeof *changed);
    else if (!status) status = qe_error_set(err, QE_E_NOMEM, "no memory for a norm");
    free(values);
    return status;
}

/* Statistics of x / s from those of x. */
static void rescale(qe_input_statistics *st, const float *s) {
    for (int64_t r = 0; r < st->sample_rows; r++)
        for (int64_t c = 0; c < st->k; c++) st->sample[r * st->k + c] = qe_div(st->sample[r * st->k + c], s[c]);
    for (int64_t r = 0; st->hessian && r < st->k; r++)
        for (int64_t c = 0; c <= r; c++) st->hessian[r * st->k + c] /= (double)s[r] * (double)s[c];
}

static qe_status smooth(layer_work *lw, int32_t input, qe_error *err) {
    qe_item *items[3];
    int32_t count = smooth_group(lw, input, items);
    if (!count) return QE_OK;
    lw->scale[input] = malloc((size_t)lw->statistics->input[input].k * sizeof(float));
    if (!lw->scale[input]) return qe_error_set(err, QE_E_NOMEM, "no memory for column scales");
    QE_TRY(search(lw, input, items, count, lw->scale[input], err));
    if (input != 3) QE_TRY(fold_norm(lw, input, lw->scale[input], err));
    rescale(&lw->statistics->input[input], lw->scale[input]);
    return QE_OK;
}

/* ---- the layer --------------------------------------------------------------------------------------------------------- */
static qe_status round_all(layer_work *lw, qe_error *err) {
    static const int32_t order[] = {0, 1, 3, 2};        /* down is searched before up, whose rows take its scales */
    for (int i = 0; i < QE_INPUTS && lw->layer >= 0; i++) QE_TRY(smooth(lw, order[i], err));
    for (int64_t i = 0; i < lw->job->count; i++)
        if (lw->job->items[i].layer == lw->layer && lw->job->items[i].linear) QE_TRY(round_item(lw, &lw->job->items[i], err));
    return QE_OK;
}

qe_status qe_round_layer(qe_job *job, int64_t layer, qe_statistics *statistics, qe_error *err) {
    layer_work lw = {.job = job, .statistics = statistics, .layer = layer};
    forget(job, layer);
    qe_status status = round_all(&lw, err);
    for (int i = 0; i < QE_INPUTS; i++) free(lw.scale[i]);
    return status;
}
