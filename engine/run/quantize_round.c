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
    QE_TRY(qe_qtensor_place(&work->t, &form->quant, form->rows, form->k, parts, work->block, work->block_bytes, err));
    work->t.act = form->act;
    work->t.hadamard = form->hadamard;
    return QE_OK;
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
    int32_t code = item->ref.quant.code;
    float *raw = malloc((size_t)k * sizeof *raw);
    if (!raw) return qe_error_set(err, QE_E_NOMEM, "no memory for a norm");
    for (int64_t i = 0; i < k; i++) {
        float v = values[i] - item->ref.norm_offset;
        if (code == QE_CODE_F32) raw[i] = v;
        else ((uint16_t *)(void *)raw)[i] = code == QE_CODE_F16 ? qe_f32_to_f16(v) : qe_f32_to_bf16(v);
    }
    qe_status status = qe_out_put(out, item->out, 0, raw, (size_t)k * (code == QE_CODE_F32 ? 4 : 2), err);
    free(raw);
    return status;
}

/* ---- the layer --------------------------------------------------------------------------------------------------------- */
static qe_status round_item(qe_job *job, qe_item *item, qe_error *err) {
    linear_work work;
    qe_layer_report r;
    memset(&work, 0, sizeof work);
    memset(&r, 0, sizeof r);
    qe_status status = place(item, &work, err);
    if (!status) status = qe_weight_floats(job->model, &item->ref, 0, item->ref.n, work.w, err);
    if (!status && item->decision.method != QE_METHOD_RTN)
        status = qe_error_set(err, QE_E_UNSUPPORTED, "%s: this build rounds to nearest alone, not by %s", item->name, item->decision.how);
    if (!status) status = qe_quantize(work.w, item->ref.k, item->decision.full_range ? QE_QUANTIZE_FULL_RANGE : 0, &work.t, err);
    if (status == QE_E_VALUE) {
        qe_error inner = *err;
        status = qe_error_at(err, QE_E_VALUE, inner.where, inner.offset, "%s: %.300s", item->name, inner.message);
    }
    if (!status) status = job->format->put(job->out, &item->weight, &work.t, err);
    if (!status) status = report(job, item, &r, err);
    release(&work);
    return status ? status : qe_job_progress(job, (double)(item->ref.n * item->ref.k), err);
}

qe_status qe_round_layer(qe_job *job, int64_t layer, const qe_statistics *statistics, qe_error *err) {
    (void)statistics;
    forget(job, layer);
    for (int64_t i = 0; i < job->count; i++)
        if (job->items[i].layer == layer && job->items[i].linear) QE_TRY(round_item(job, &job->items[i], err));
    return QE_OK;
}
qe_status qe_statistics_start(qe_statistics *s, qe_job *job, int64_t layer, qe_error *err) {
    (void)s, (void)job, (void)layer;
    return qe_error_set(err, QE_E_UNSUPPORTED, "methods with calibration are not in this build");
}
qe_status qe_statistics_input(void *statistics, int64_t layer, int32_t group, const float *x, int64_t m, int64_t k, int64_t ldx,
                              qe_error *err) {
    (void)statistics, (void)layer, (void)group, (void)x, (void)m, (void)k, (void)ldx, (void)err;
    return QE_OK;
}
void qe_statistics_end(qe_statistics *s) { (void)s; }
