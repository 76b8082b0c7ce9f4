/* quantize_plan.c -- what becomes of every tensor, before anything is done. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/family.h"
#include "run/quantize_internal.h"

static const qe_role linear_roles[] = {QE_ROLE_Q, QE_ROLE_K, QE_ROLE_V, QE_ROLE_O, QE_ROLE_GATE, QE_ROLE_UP, QE_ROLE_DOWN};

bool qe_role_is_linear(qe_role role) {
    for (size_t i = 0; i < sizeof linear_roles / sizeof linear_roles[0]; i++)
        if (linear_roles[i] == role) return true;
    return false;
}

static bool is_head(qe_role role) { return role == QE_ROLE_EMBED || role == QE_ROLE_OUTPUT; }
static bool of_no_layer(qe_role role) { return role <= QE_ROLE_ROPE_FREQS; }
static bool gguf(const qe_job *job) { return job->format->kind == QE_OUT_GGUF; }

bool qe_job_dequantizes(const qe_job *job) { return qe_store_get_kind(job->model->store) == QE_STORE_GGUF && !gguf(job); }

/* ---- the list ---------------------------------------------------------------------------------------------------------- */
qe_status qe_job_items(qe_job *job, qe_error *err) {
    const qe_store *store = job->model->store;
    job->count = qe_store_tensor_count(store);
    job->items = calloc((size_t)job->count + 1, sizeof *job->items);
    if (!job->items) return qe_error_set(err, QE_E_NOMEM, "no memory for a plan");
    for (int64_t i = 0; i < job->count; i++) {
        job->items[i] = (qe_item){.tensor = i, .role = QE_ROLE_COUNT, .layer = -1, .out = -1};
        if (qe_store_tensor_at(store, i)->packed)
            return qe_error_at(err, QE_E_UNSUPPORTED, qe_store_name(store), -1, "\"%s\" is quantized already",
                               qe_store_tensor_at(store, i)->name);
    }
    for (int64_t layer = 0; layer < job->model->hp.layers; layer++)
        for (int role = 0; role < QE_ROLE_COUNT; role++) {
            qe_weight_ref ref;
            QE_TRY(qe_model_weight(job->model, (qe_role)role, layer, &ref, err));
            if (ref.tensor < 0 || job->items[ref.tensor].role != QE_ROLE_COUNT) continue;
            qe_item *item = &job->items[ref.tensor];
            item->role = (qe_role)role;
            item->layer = of_no_layer(item->role) ? -1 : layer;
            item->ref = ref;
        }
    return QE_OK;
}

static qe_status decide(const qe_job *job, const qe_recipe *recipe, qe_item *item, qe_error *err) {
    char module[256];
    qe_model_module(job->model, item->role, item->layer < 0 ? 0 : item->layer, false, module, sizeof module);
    QE_TRY(qe_recipe_decide(recipe, module, is_head(item->role), &item->decision, err));
    const qe_decision *d = &item->decision;
    item->linear = !d->keep && (qe_role_is_linear(item->role) || is_head(item->role));
    if (!item->linear || !is_head(item->role)) return QE_OK;
    if (qe_method_needs(d->method) || d->smooth || d->rotate || d->act.mode == QE_ACT_STATIC || d->range == QE_RANGE_OUTPUT)
        return qe_error_set(err, QE_E_UNSUPPORTED, "%s: only methods without calibration round the embedding and the head",
                            module);
    return QE_OK;
}

/* Integer levels under a float one keep level * code inside int8 (round.c): engines may choose layouts by that. */
static uint32_t facts_of(const qe_quant *q) {
    return q->super != QE_NUM_ONE && q->scale == QE_NUM_U8 && q->bits <= 4 && q->zero != QE_ZERO_REAL ? QE_FACT_INT8_PRODUCT
                                                                                                      : 0;
}

static int32_t rotation_block(int64_t k) {
    int32_t block = 1;
    while (block < 4096 && k % (2 * block) == 0) block *= 2;
    return block;
}

static char *name_of(const qe_job *job, const qe_item *item) {
    char text[1200];
    const char *source = qe_store_tensor_at(job->model->store, item->tensor)->name;
    if (gguf(job)) {
        qe_model_module(job->model, item->role, item->layer < 0 ? 0 : item->layer, true, text, sizeof text - 8);
        size_t bytes = strlen(text);
        if (bytes < 5 || strcmp(text + bytes - 5, ".bias")) memcpy(text + bytes, ".weight", 8);
    } else {
        snprintf(text, sizeof text, "%s", source);
        if (qe_job_dequantizes(job)) {
            qe_model_module(job->model, item->role, item->layer < 0 ? 0 : item->layer, false, text, sizeof text - 8);
            size_t bytes = strlen(text);
            if (bytes < 5 || strcmp(text + bytes - 5, ".bias")) memcpy(text + bytes, ".weight", 8);
        }
        char *tail = strstr(text, ".weight");
        if (item->linear && tail) *tail = 0;
    }
    char *name = malloc(strlen(text) + 1);
    if (name) memcpy(name, text, strlen(text) + 1);
    return name;
}

/* GGUF: everything is written as rows of blocks; vectors as F32. */
static void describe(const qe_job *job, qe_item *item) {
    static uint32_t some_order;
    qe_qtensor *form = &item->weight.form;
    const qe_decision *d = &item->decision;
    const qe_store_tensor *t = qe_store_tensor_at(job->model->store, item->tensor);
    *form = (qe_qtensor){.quant = item->linear ? d->quant : (*qe_store_quant(t)), .n = t->rows, .rows = t->rows, .k = t->columns};
    if (!item->linear && t->rank == 1) form->quant = (qe_quant){.code = QE_CODE_F32, .bits = 32};
    item->weight.module = item->name;
    item->weight.row_map = item->row_map;
    for (int i = 0; i < QE_WEIGHT_PARTS; i++) item->weight.index[i] = -1;
    if (!item->linear) return;
    form->act = d->act;
    form->order = d->order == QE_ORDER_GROUPS ? &some_order : NULL;
    form->hadamard = d->rotate ? rotation_block(t->columns) : 0;
    form->facts = facts_of(&d->quant);
    if (gguf(job)) form->act.mode = QE_ACT_FLOAT;
}

static qe_status check_all(qe_job *job, qe_error *err) {
    for (int64_t i = 0; i < job->count; i++)
        if (job->items[i].linear || gguf(job)) QE_TRY(job->format->check(&job->items[i].weight, err));
    return QE_OK;
}

static qe_status prepare(const qe_job *job, qe_item *item, qe_error *err) {
    const qe_weight_row *row = qe_family_row(job->model->family, item->role);
    bool renamed = gguf(job) || qe_job_dequantizes(job);
    if (gguf(job) && item->linear && item->decision.act.mode != QE_ACT_FLOAT && item->decision.act.quant.code == QE_CODE_SIGN)
        return qe_error_set(err, QE_E_UNSUPPORTED, "%s: a GGUF file cannot say that inputs are signs", item->name);
    if (renamed && (!row || !(gguf(job) ? row->gguf : row->hf)))
        return qe_error_set(err, QE_E_UNSUPPORTED, "tensor \"%s\" has no place in %s of this family",
                            qe_store_tensor_at(job->model->store, item->tensor)->name, gguf(job) ? "a GGUF file" : "a folder");
    item->stored_offset = row && row->flags & QE_ROW_NORM && !gguf(job) ? job->model->family->hf_norm_offset : 0;
    free(item->name);
    item->name = name_of(job, item);
    if (!item->name) return qe_error_set(err, QE_E_NOMEM, "no memory for a plan");
    if (gguf(job) && !item->row_map) QE_TRY(qe_model_gguf_rows(job->model, item->role, &item->row_map, err));
    describe(job, item);
    return QE_OK;
}

static qe_status prepare_items(qe_job *job, qe_error *err) {
    for (int64_t i = 0; i < job->count; i++) QE_TRY(prepare(job, &job->items[i], err));
    return QE_OK;
}

qe_status qe_item_become(const qe_job *job, const qe_recipe *recipe, qe_item *item, qe_error *err) {
    QE_TRY(decide(job, recipe, item, err));
    return prepare(job, item, err);
}

/* The form asked for, or compressed-tensors where it can hold the recipe. */
static qe_status choose_format(qe_job *job, qe_error *err) {
    char shown[64];
    const char *name = job->o->format;
    job->format = name ? qe_weight_format_find(name) : &qe_format_compressed;
    if (!job->format)
        return qe_error_set(err, QE_E_ARGUMENT, "no such format: %s", qe_escape(name, strlen(name), shown, sizeof shown));
    QE_TRY(prepare_items(job, err));
    if (name) return check_all(job, err);
    if (!check_all(job, NULL)) return QE_OK;
    job->format = &qe_format_native;
    QE_TRY(prepare_items(job, err));
    return check_all(job, err);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------------- */
uint64_t qe_item_bytes(const qe_job *job, const qe_item *item) {
    const qe_store_tensor *t = qe_store_tensor_at(job->model->store, item->tensor);
    if (!item->linear && qe_job_dequantizes(job)) return (uint64_t)(t->rows * t->columns * (t->rank == 1 ? 4 : 2));
    if (!item->linear) return t->bytes;
    return (uint64_t)(qe_quant_bits_per_weight(&item->weight.form.quant, t->rows, t->columns) * (double)t->rows *
                      (double)t->columns / 8);
}

static void add_sizes(qe_job *job) {
    double bits = 0;
    uint64_t layer_bytes[2] = {0, 0}, largest = 0;     /* of layer 0, as stored and as floats */
    const qe_hparams *hp = &job->model->hp;
    qe_quantize_plan *p = &job->plan;
    for (int64_t i = 0; i < job->count; i++) {
        const qe_item *item = &job->items[i];
        const qe_store_tensor *t = qe_store_tensor_at(job->model->store, item->tensor);
        uint64_t elements = (uint64_t)t->rows * (uint64_t)t->columns;
        if (item->layer == 0) layer_bytes[0] += t->bytes;
        if (item->layer == 0) layer_bytes[1] += 4 * elements;
        p->file_bytes += qe_item_bytes(job, item);
        if (!item->linear) {
            p->kept++;
            continue;
        }
        double b = qe_quant_bits_per_weight(&item->weight.form.quant, t->rows, t->columns);
        p->linears++;
        p->weights += elements;
        bits += b * (double)elements;
        largest = elements > largest ? elements : largest;
        job->calibrates |= qe_method_needs(item->decision.method) || item->decision.smooth ||
                           item->decision.act.mode == QE_ACT_STATIC || item->decision.range == QE_RANGE_OUTPUT ||
                           (item->decision.method == QE_METHOD_KMEANS && job->o->calibration);
    }
    if (p->weights) p->bits_per_weight = bits / (double)p->weights;
    p->memory_bytes = 12 * largest + (8u << 20);   /* a thread's blocks of rows among the 8 MiB */
    if (!job->calibrates) return;
    int64_t length = job->o->sequence_tokens ? job->o->sequence_tokens : 512, sequences = job->o->sequences ? job->o->sequences : 128;
    p->calibration_tokens = length * sequences;
    uint64_t h = (uint64_t)hp->hidden, f = (uint64_t)hp->ffn, q = (uint64_t)(hp->heads * hp->head_dim);
    uint64_t widest = f > h ? f : h;
    widest = q > widest ? q : widest;                  /* one Hessian is factored at a time; the allocator may hold as much again */
    p->memory_bytes += 2 * layer_bytes[0] + layer_bytes[1] + (uint64_t)p->calibration_tokens * 8 * h +
                       8 * (2 * h * h + q * q + f * f + widest * widest) + 4 * 512 * (2 * h + q + f);
}

qe_status qe_job_plan(qe_job *job, qe_error *err) {
    QE_TRY(qe_job_items(job, err));
    for (int64_t i = 0; i < job->count; i++)
        if (job->items[i].role != QE_ROLE_COUNT) QE_TRY(decide(job, job->recipe, &job->items[i], err));
    QE_TRY(choose_format(job, err));
    add_sizes(job);
    job->linears = job->plan.linears;
    job->total = (double)job->plan.weights;
    if (!job->linears && !qe_job_dequantizes(job)) return qe_error_set(err, QE_E_ARGUMENT, "the recipe leaves every linear as it is");
    return QE_OK;
}

/* ---- declaring --------------------------------------------------------------------------------------------------------- */
qe_status qe_job_declare(qe_job *job, qe_error *err) {
    bool one_kind = true;
    const qe_item *first = NULL;
    for (int64_t i = 0; i < job->count; i++) {
        qe_item *item = &job->items[i];
        const qe_store_tensor *t = qe_store_tensor_at(job->model->store, item->tensor);
        if (item->linear && !first) first = item;
        if (item->linear) one_kind &= (item->decision.quant.zero == QE_ZERO_CONST) == (first->decision.quant.zero == QE_ZERO_CONST);
        if (item->linear || gguf(job)) QE_TRY(job->format->declare(job->out, &item->weight, err));
        else QE_TRY(qe_out_declare(job->out, item->name, !qe_job_dequantizes(job) ? qe_store_type_name(t) : t->rank == 1 ? "F32" : "F16",
                                   t->rank, t->dims, qe_item_bytes(job, item), &item->out, err));
    }
    if (job->format == &qe_format_gptq && !one_kind)
        return qe_error_set(err, QE_E_UNSUPPORTED, "a GPTQ checkpoint is symmetric or has zero points, not both");
    return QE_OK;
}

bool qe_item_done(const qe_job *job, const qe_item *item) {
    if (item->out >= 0) return qe_out_done(job->out, item->out);
    for (int i = 0; i < QE_WEIGHT_PARTS; i++)
        if (item->weight.index[i] >= 0 && !qe_out_done(job->out, item->weight.index[i])) return false;
    return true;
}

void qe_job_free_items(qe_job *job) {
    for (int64_t i = 0; job->items && i < job->count; i++) {
        free(job->items[i].name);
        free(job->items[i].row_map);
        free(job->items[i].changed);
    }
    free(job->items);
}
