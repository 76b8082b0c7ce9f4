/* pack.c -- weights from the store into a layout of the device, band by band: nobody holds a whole canonical tensor.
 * Bands of one slice are read and packed by all threads; on a GPU each slice is then uploaded with one copy. */
#include <stdlib.h>

#include "base/check.h"
#include "base/os.h"
#include "run/linear_internal.h"
#include "run/engine_internal.h"

enum { SLICE_BYTES = 8 << 20 };

/* ---- memory of the device ------------------------------------------------------------------------------------------ */
qe_status qe_block_alloc(const qe_device *device, size_t bytes, qe_block *out, qe_error *err) {
    out->bytes = 0;
    QE_TRY(qe_device_alloc(device, bytes, &out->data, err));
    out->bytes = bytes;
    return QE_OK;
}

qe_status qe_block_grow(const qe_device *device, size_t bytes, qe_block *block, qe_error *err) {
    if (bytes <= block->bytes) return QE_OK;
    qe_block_release(device, block);
    return qe_block_alloc(device, bytes, block, err);
}

void qe_block_release(const qe_device *device, qe_block *block) {
    qe_device_release(device, block->data, block->bytes);
    memset(block, 0, sizeof *block);
}

static qe_status upload(const qe_device *device, void *to, const void *from, size_t bytes, qe_error *err) {
    qk_queue queue = qe_device_queue(device, NULL);
    QE_TRY(device->backend->copy(&queue, to, from, bytes, err));
    return device->backend->wait(&queue, err);
}

qe_status qe_loading_report(qe_loading *loading, uint64_t more_bytes, qe_error *err) {
    loading->done += more_bytes;
    if (!loading->progress || !loading->progress(loading->progress_ctx, loading->done, loading->total)) return QE_OK;
    return qe_error_set(err, QE_E_CANCELLED, "loading was cancelled");
}

/* ---- vectors -------------------------------------------------------------------------------------------------------- */
qe_status qe_vector_load(const qe_device *device, const qe_model *model, qe_role role, int64_t layer, qe_block *out,
                         qe_error *err) {
    qe_weight_ref ref;
    QE_TRY(qe_model_weight(model, role, layer, &ref, err));
    if (ref.tensor < 0) return QE_OK;
    size_t bytes = (size_t)ref.k * sizeof(float);
    float *values = malloc(bytes);
    if (!values) return qe_error_set(err, QE_E_NOMEM, "no memory for %s", qe_role_name(role));
    qe_status status = qe_model_read_vector(model, &ref, values, err);
    if (!status) status = qe_block_alloc(device, bytes, out, err);
    if (!status) status = upload(device, out->data, values, bytes, err);
    free(values);
    return status;
}

/* ---- one packed weight ----------------------------------------------------------------------------------------------- */
typedef struct part {
    qe_weight_ref ref;
    int64_t       first_row;      /* in the stack */
    qe_role       role, bias;
} part;

typedef struct packing {
    const qe_loading *loading;
    int64_t         layer;
    const qe_store *store;
    const part     *parts;
    int32_t         count;
    const qk_shape *shape;
    size_t          band_bytes, head_bytes;
    int64_t         first, end;   /* bands of this slice */
    char           *to;           /* of band `first` */
    void           *head;         /* NULL once written */
    char           *canonical;    /* a block for each task */
    size_t          canonical_bytes;
    qe_status      *status;       /* [tasks] */
    qe_error       *errors;
} packing;

/* The layout was chosen by what the checkpoint promises of all rows. */
static qe_status check_facts(const packing *p, const part *from, const qe_qtensor *band, qe_error *err) {
    uint32_t facts = p->shape->facts;
    QE_TRY(qe_qtensor_check(band, &facts, err));
    if (facts == p->shape->facts) return QE_OK;
    return qe_error_set(err, QE_E_VALUE, "layer %lld, %s: rows from %lld break the facts promised: 0x%x of 0x%x",
                        (long long)p->layer, qe_role_name(from->role), (long long)band->first_row, facts,
                        p->shape->facts);
}

static qe_status pack_band(const packing *p, int64_t band_index, char *canonical, qe_error *err) {
    const qk_shape *s = p->shape;
    int64_t row = band_index * s->layout->band_rows, rows = s->layout->band_rows;
    const part *from = p->parts;
    while (from + 1 < p->parts + p->count && row >= from[1].first_row) from++;
    int64_t at = row - from->first_row;
    if (rows > from->ref.n - at) rows = from->ref.n - at;
    qe_qtensor band;
    QE_TRY(qe_qtensor_place(&band, &s->quant, rows, s->k, 0, canonical, p->canonical_bytes, err));
    const qe_weight_source *source = p->loading->source;
    if (source) QE_TRY(source->read(source->ctx, from->role, p->layer, &from->ref, at, rows, &band, err));
    else QE_TRY(qe_store_read(p->store, from->ref.tensor, at, rows, from->ref.row_map, &band, err));
    if (s->facts) QE_TRY(check_facts(p, from, &band, err));
    band.first_row = row;
    band.rows = s->n;
    if (p->head && band_index == p->first) s->layout->pack_head(s, &band, p->head);
    s->layout->pack(s, &band, p->to + (size_t)(band_index - p->first) * p->band_bytes);
    return QE_OK;
}

static void pack_task(void *arg, int32_t index, int32_t count) {
    packing *p = arg;
    char *canonical = p->canonical + (size_t)index * p->canonical_bytes;
    for (int64_t i = p->first + index; i < p->end && !p->status[index]; i += count)
        p->status[index] = pack_band(p, i, canonical, &p->errors[index]);
}

/* The error of the lowest index: the same one whatever the timing. */
static qe_status first_error(const packing *p, int32_t tasks, qe_error *err) {
    for (int32_t i = 0; i < tasks; i++) {
        if (!p->status[i]) continue;
        if (err) *err = p->errors[i];
        return p->status[i];
    }
    return QE_OK;
}

static qe_status pack_slices(const qe_device *device, qe_loading *loading, packing *p, qe_packed *out, char *staging,
                             int64_t slice, int32_t tasks, qe_error *err) {
    const int64_t bands = (p->shape->n + p->shape->layout->band_rows - 1) / p->shape->layout->band_rows;
    uint64_t file_bytes = 0, reported = 0;
    for (int32_t i = 0; i < p->count; i++) file_bytes += qe_store_tensor_at(p->store, p->parts[i].ref.tensor)->bytes;
    qk_queue queue = qe_device_queue(device, NULL);
    char *blob = out->blob.data;
    for (p->first = 0; p->first < bands; p->first = p->end) {
        p->end = bands - p->first < slice ? bands : p->first + slice;
        char *target = blob + p->head_bytes + (size_t)p->first * p->band_bytes;
        size_t head = p->first ? 0 : p->head_bytes;
        p->head = head ? (staging ? staging : blob) : NULL;
        p->to = staging ? staging + head : target;
        if (queue.parallel) queue.parallel(queue.pool, pack_task, p, tasks);
        else for (int32_t i = 0; i < tasks; i++) pack_task(p, i, tasks);
        QE_TRY(first_error(p, tasks, err));
        if (staging) {
            size_t bytes = head + (size_t)(p->end - p->first) * p->band_bytes;
            QE_TRY(upload(device, target - head, staging, bytes, err));
        }
        uint64_t now = (uint64_t)((double)file_bytes * (double)p->end / (double)bands);
        QE_TRY(qe_loading_report(loading, now - reported, err));
        reported = now;
    }
    return QE_OK;
}

static qe_status pack_bands(const qe_device *device, qe_loading *loading, const part *parts, int32_t count,
                            int64_t layer, qe_packed *out, qe_error *err) {
    const qk_shape *s = &out->weight.shape;
    int32_t tasks = qe_device_is_host(device) && device->facts.units > 0 ? device->facts.units : 1;
    packing p = {.loading = loading, .layer = layer, .store = loading->model->store, .parts = parts, .count = count, .shape = s};
    p.head_bytes = s->layout->head_bytes(s);
    p.band_bytes = s->layout->band_bytes(s);
    p.canonical_bytes = (qe_qtensor_bytes(&s->quant, s->layout->band_rows, s->k, 0) + 255) & ~(size_t)255;
    int64_t slice = SLICE_BYTES / (int64_t)p.band_bytes + 1;
    char *staging = NULL;
    p.canonical = qe_os_alloc((size_t)tasks * p.canonical_bytes);
    p.status = calloc((size_t)tasks, sizeof *p.status);
    p.errors = calloc((size_t)tasks, sizeof *p.errors);
    bool have = p.canonical && p.status && p.errors;
    if (have && !qe_device_is_host(device)) {
        staging = qe_os_alloc(p.head_bytes + (size_t)slice * p.band_bytes);
        have = staging != NULL;
    }
    qe_status status = have ? pack_slices(device, loading, &p, out, staging, slice, tasks, err)
                            : qe_error_set(err, QE_E_NOMEM, "no memory to pack %s", qe_role_name(parts->role));
    qe_os_release(staging);
    free(p.errors);
    free(p.status);
    qe_os_release(p.canonical);
    return status;
}

static bool float_code(const qe_quant *quant) {
    return quant->code == QE_CODE_F32 || quant->code == QE_CODE_F16 || quant->code == QE_CODE_BF16;
}

/* n rows of k under the part's scheme: the layout they get. */
static qe_status choose(const qe_device *device, const qe_loading *loading, const part *one, int64_t n, qk_shape *s,
                        qe_error *err) {
    memset(s, 0, sizeof *s);
    s->quant = one->ref.quant;
    s->n = n;
    s->k = one->ref.k;
    s->facts = one->ref.facts;
    if (!one->ref.act_known) qe_act_default(&s->quant, &s->act);
    else if (one->ref.act.mode != QE_ACT_FLOAT) s->act = one->ref.act;
    if (loading->act && !float_code(&s->quant)) s->act = *loading->act;
    qe_error found;
    qe_status status = qe_act_check(&s->act, &s->quant, s->k, &found);
    if (status)
        return qe_error_at(err, status, qe_store_name(loading->model->store), -1, "%s: %s", qe_role_name(one->role), found.message);
    s->chunk_k = qk_chunk_k(&s->quant, s->facts, &s->act, s->n, s->k);
    s->layout = qk_layout_choose(&device->facts, s, NULL, NULL);
    if (s->layout) return QE_OK;
    char name[96];
    qe_quant_name(&s->quant, name, sizeof name);
    return qe_error_set(err, QE_E_UNSUPPORTED, "%s: no layout of this device takes %s", qe_role_name(one->role), name);
}

static qe_status load_bias(const qe_device *device, const qe_loading *loading, const part *parts, int32_t count,
                           int64_t layer, qe_packed *out, qe_error *err) {
    qe_weight_ref refs[QE_STACK_MAX];
    bool any = false;
    for (int32_t i = 0; i < count; i++) {
        refs[i].tensor = -1;
        if (parts[i].bias < QE_ROLE_COUNT)
            QE_TRY(qe_model_weight(loading->model, parts[i].bias, layer, &refs[i], err));
        any |= refs[i].tensor >= 0;
    }
    if (!any) return QE_OK;
    size_t bytes = (size_t)out->weight.shape.n * sizeof(float);
    float *values = calloc(1, bytes);
    if (!values) return qe_error_set(err, QE_E_NOMEM, "no memory for %s", qe_role_name(parts->bias));
    qe_status status = QE_OK;
    for (int32_t i = 0; i < count && !status; i++) {
        if (refs[i].tensor < 0) continue;
        status = qe_model_read_vector(loading->model, &refs[i], values + parts[i].first_row, err);
    }
    if (!status) status = qe_block_alloc(device, bytes, &out->bias, err);
    if (!status) status = upload(device, out->bias.data, values, bytes, err);
    free(values);
    return status;
}

/* Column order and scale, which prepare() applies to the input. */
static qe_status load_columns(const qe_device *device, const qe_weight_ref *ref, qe_packed *out, qe_error *err) {
    size_t bytes = (size_t)ref->k * 4;
    out->weight.hadamard = ref->hadamard;
    if (ref->order) {
        QE_TRY(qe_block_alloc(device, bytes, &out->order, err));
        QE_TRY(upload(device, out->order.data, ref->order, bytes, err));
        out->weight.order = out->order.data;
    }
    if (ref->col_scale) {
        QE_TRY(qe_block_alloc(device, bytes, &out->col_scale, err));
        QE_TRY(upload(device, out->col_scale.data, ref->col_scale, bytes, err));
        out->weight.col_scale = out->col_scale.data;
    }
    return QE_OK;
}

static qe_status pack_stack(const qe_device *device, qe_loading *loading, const part *parts, int32_t count,
                            int64_t layer, const qk_shape *shape, qe_packed *out, qe_error *err) {
    out->weight.shape = *shape;
    uint64_t bands = (uint64_t)(shape->n + shape->layout->band_rows - 1) / (uint64_t)shape->layout->band_rows, bytes;
    if (!qe_check_mul(bands, shape->layout->band_bytes(shape), &bytes) ||
        !qe_check_add(bytes, shape->layout->head_bytes(shape), &bytes))
        return qe_error_set(err, QE_E_OVERFLOW, "%s is too large", qe_role_name(parts->role));
    QE_TRY(qe_block_alloc(device, bytes, &out->blob, err));
    out->weight.blob = out->blob.data;
    out->weight.blob_bytes = bytes;
    QE_TRY(load_columns(device, &parts->ref, out, err));
    QE_TRY(pack_bands(device, loading, parts, count, layer, out, err));
    return load_bias(device, loading, parts, count, layer, out, err);
}

/* ---- groups ----------------------------------------------------------------------------------------------------------- */
static qe_role bias_of(qe_role role) {
    static const struct { qe_role weight, bias; } pairs[] = {
        {QE_ROLE_Q, QE_ROLE_Q_BIAS},       {QE_ROLE_K, QE_ROLE_K_BIAS},   {QE_ROLE_V, QE_ROLE_V_BIAS},
        {QE_ROLE_O, QE_ROLE_O_BIAS},       {QE_ROLE_GATE, QE_ROLE_GATE_BIAS}, {QE_ROLE_UP, QE_ROLE_UP_BIAS},
        {QE_ROLE_DOWN, QE_ROLE_DOWN_BIAS},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        if (pairs[i].weight == role) return pairs[i].bias;
    }
    return QE_ROLE_COUNT;
}

/* Extents count from a tensor's own row 0, so only schemes that are per row can be stacked. */
static bool per_row(const qe_quant *q) {
    if (q->code == QE_CODE_LUT && q->lut_n != 1) return false;
    if (q->scale == QE_NUM_ONE) return true;
    return q->group_n == 1 && (q->super == QE_NUM_ONE || q->super_n == 1);
}

static bool same_columns(const void *a, const void *b, int64_t k) {
    return a == b || (a && b && !memcmp(a, b, (size_t)k * 4));
}

/* Equal scheme, equal input. */
static bool stackable(const qe_weight_ref *a, const qe_weight_ref *b) {
    return !memcmp(&a->quant, &b->quant, sizeof a->quant) && a->act_known == b->act_known && a->facts == b->facts &&
           !memcmp(&a->act, &b->act, sizeof a->act) && a->hadamard == b->hadamard &&
           same_columns(a->order, b->order, a->k) && same_columns(a->col_scale, b->col_scale, a->k);
}

/* How many of the parts from `from` on go into one blob: same scheme, every part but the last whole bands. */
static qe_status stack_count(const qe_device *device, const qe_loading *loading, part *from, int32_t left,
                             qk_shape *shape, int32_t *count, qe_error *err) {
    from->first_row = 0;
    QE_TRY(choose(device, loading, from, from->ref.n, shape, err));
    *count = 1;
    for (int32_t i = 1; i < left && per_row(&from->ref.quant); i++) {
        qk_shape wider;
        if (!stackable(&from->ref, &from[i].ref)) break;
        if (shape->n % shape->layout->band_rows) break;
        QE_TRY(choose(device, loading, from, shape->n + from[i].ref.n, &wider, err));
        if (wider.layout != shape->layout) break;
        from[i].first_row = shape->n;
        *shape = wider;
        *count = i + 1;
    }
    return QE_OK;
}

qe_status qe_group_load(const qe_device *device, qe_loading *loading, const qe_role *roles, int32_t count, int64_t layer,
                        qe_group *out, qe_error *err) {
    part parts[QE_STACK_MAX];
    memset(parts, 0, sizeof parts);
    for (int32_t i = 0; i < count; i++) {
        parts[i].role = roles[i];
        parts[i].bias = bias_of(roles[i]);
        QE_TRY(qe_model_weight(loading->model, roles[i], layer, &parts[i].ref, err));
        if (parts[i].ref.tensor < 0)
            return qe_error_set(err, QE_E_MISSING, "layer %lld has no %s", (long long)layer, qe_role_name(roles[i]));
        const qe_weight_source *source = loading->source;
        if (source) QE_TRY(source->form(source->ctx, roles[i], layer, &parts[i].ref, err));
        const qe_weight_ref *ref = &parts[i].ref;
        if (roles[i] == QE_ROLE_EMBED && (ref->order || ref->col_scale || ref->hadamard))
            return qe_error_set(err, QE_E_UNSUPPORTED, "an embedding whose columns are reordered, scaled or rotated");
    }
    for (int32_t i = 0; i < count;) {
        qk_shape shape;
        int32_t taken;
        QE_TRY(stack_count(device, loading, &parts[i], count - i, &shape, &taken, err));
        qe_packed *packed = &out->packed[out->count];
        out->column[out->count++] = out->width;
        out->width += shape.n;
        QE_TRY(pack_stack(device, loading, &parts[i], taken, layer, &shape, packed, err));
        i += taken;
    }
    return QE_OK;
}

void qe_group_release(const qe_device *device, qe_group *group) {
    for (int32_t i = 0; i < QE_STACK_MAX; i++) {
        qe_block_release(device, &group->packed[i].blob);
        qe_block_release(device, &group->packed[i].bias);
        qe_block_release(device, &group->packed[i].order);
        qe_block_release(device, &group->packed[i].col_scale);
    }
    memset(group, 0, sizeof *group);
}
