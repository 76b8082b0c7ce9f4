/* Where each weight is: names from the family table, shapes against the hyper-parameters, row order of q and k. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/family.h"

enum { NAME_BYTES = 160 };

const char *qe_role_name(qe_role role) {
    static const char *const names[] = {
#define QE_X(name, text) text,
        QE_ROLE_LIST(QE_X)
#undef QE_X
    };
    return role >= 0 && role < QE_ROLE_COUNT ? names[role] : "?";
}

static int64_t size_of(const qe_hparams *hp, qe_size size) {
    const int64_t sizes[] = {1, hp->vocab, hp->hidden, hp->heads * hp->head_dim, hp->kv_heads * hp->head_dim, hp->ffn,
                             hp->head_dim, hp->rope_dims / 2};
    return sizes[size];
}

static bool is_gguf(const qe_model *model) {
    return qe_store_get_kind(model->store) == QE_STORE_GGUF;
}

/* The names come from the tables of this folder: a literal, or one with a single %lld. */
static const char *row_name(const qe_model *model, const qe_weight_row *row, int64_t layer, char *text) {
    const char *pattern = is_gguf(model) ? row->gguf : row->hf, *at = pattern ? strstr(pattern, "%lld") : NULL;
    if (!at) return pattern;
    snprintf(text, NAME_BYTES, "%.*s%lld%s", (int)(at - pattern), pattern, (long long)layer, at + 4);
    return text;
}

void qe_model_module(const qe_model *model, qe_role role, int64_t layer, bool gguf, char *text, size_t bytes) {
    const qe_weight_row *row = qe_family_row(model->family, role);
    const char *pattern = !row ? NULL : gguf ? row->gguf : row->hf, *at = pattern ? strstr(pattern, "%lld") : NULL;
    if (!pattern) text[0] = 0;
    else if (!at) snprintf(text, bytes, "%s", pattern);
    else snprintf(text, bytes, "%.*s%lld%s", (int)(at - pattern), pattern, (long long)layer, at + 4);
    char *tail = strstr(text, ".weight");
    if (tail && !tail[7]) *tail = 0;
}

static bool per_layer(const qe_weight_row *row) {
    return row->gguf && strstr(row->gguf, "%lld") != NULL;
}

static qe_status fail(const qe_model *model, qe_status status, const char *tensor, const char *what, qe_error *err) {
    return qe_error_at(err, status, qe_store_name(model->store), -1, "tensor \"%s\" %s", tensor, what);
}

static qe_status check_shape(const qe_model *model, const qe_weight_row *row, const qe_store_tensor *t, qe_error *err) {
    int64_t n = size_of(&model->hp, row->n), k = size_of(&model->hp, row->k);
    int32_t rank = row->n == QE_SIZE_ONE ? 1 : 2;
    char text[160];
    if (t->rank != rank) {
        snprintf(text, sizeof text, "has rank %d, expected %d", t->rank, rank);
        return fail(model, QE_E_SHAPE, t->name, text, err);
    }
    if (t->columns == k && t->rows == n) return QE_OK;
    bool transposed = t->columns == n && t->rows == k;
    snprintf(text, sizeof text, "is %lld x %lld, expected %lld x %lld%s", (long long)t->rows, (long long)t->columns,
             (long long)n, (long long)k, transposed ? " (transposed)" : "");
    return fail(model, transposed ? QE_E_SHAPE : QE_E_MISMATCH, t->name, text, err);
}

static qe_status check_type(const qe_model *model, const qe_store_tensor *t, qe_error *err) {
    if (qe_store_quant(t)->code != QE_CODE_NONE) return QE_OK;
    const char *type = qe_store_type_name(t);
    char text[128];
    snprintf(text, sizeof text, "is of type %s, which is not read as a weight", type);
    bool integer = type[0] == 'I' && type[1] != 'Q';
    integer |= !strcmp(type, "BOOL") || (type[0] == 'U' && type[1] >= '1' && type[1] <= '8');
    return fail(model, integer ? QE_E_TYPE : QE_E_UNSUPPORTED, t->name, text, err);
}

static qe_status bind(qe_model *model, const qe_weight_row *row, int64_t layer, qe_error *err) {
    char text[NAME_BYTES];
    const char *name = row_name(model, row, layer, text);
    int64_t index = name ? qe_store_find(model->store, name) : -1;
    model->weights[layer * QE_ROLE_COUNT + row->role] = index;
    if (row->role == QE_ROLE_OUTPUT && model->hp.tied) {
        model->weights[row->role] = model->weights[QE_ROLE_EMBED];
        return QE_OK;
    }
    if (index < 0) {
        bool needed = !(row->flags & QE_ROW_OPTIONAL) || row->role == QE_ROLE_OUTPUT;
        return needed ? fail(model, QE_E_MISSING, name, "is missing", err) : QE_OK;
    }
    const qe_store_tensor *t = qe_store_tensor_at(model->store, index);
    if (row->role == QE_ROLE_EMBED && !model->hp.vocab && t->rank == 2) model->hp.vocab = t->rows;
    model->hp.attn_bias |= row->role >= QE_ROLE_Q_BIAS && row->role <= QE_ROLE_O_BIAS;
    model->hp.mlp_bias |= row->role >= QE_ROLE_GATE_BIAS && row->role <= QE_ROLE_DOWN_BIAS;
    QE_TRY(check_shape(model, row, t, err));
    return check_type(model, t, err);
}

/* A file with layers the hyper-parameters do not count is cut or mislabeled. */
static qe_status check_no_more_layers(const qe_model *model, qe_error *err) {
    const char *prefix = is_gguf(model) ? "blk." : "model.layers.";
    size_t bytes = strlen(prefix);
    for (int64_t i = 0; i < qe_store_tensor_count(model->store); i++) {
        const char *name = qe_store_tensor_at(model->store, i)->name;
        if (strncmp(name, prefix, bytes) || name[bytes] < '0' || name[bytes] > '9') continue;
        unsigned long long layer = strtoull(name + bytes, NULL, 10);
        if (layer >= qe_store_limits(model->store)->layers)
            return fail(model, QE_E_LIMIT, name, "belongs to a layer beyond the limit of layers", err);
        if (layer >= (unsigned long long)model->hp.layers)
            return fail(model, QE_E_MISMATCH, name, "belongs to a layer beyond the count of layers", err);
    }
    return QE_OK;
}

/* Rows of GGUF llama q and k: row 2j + p of a head is row p * half + j of the published order. */
static int64_t *unpermute(int64_t heads, int64_t head_dim) {
    int64_t *map = calloc((size_t)(heads * head_dim), sizeof *map), half = head_dim / 2;
    for (int64_t i = 0; map && i < heads * head_dim; i++) {
        int64_t in = i % head_dim;
        map[i] = i - in + (in < half ? 2 * in : 2 * (in - half) + 1);
    }
    return map;
}

qe_status qe_model_gguf_rows(const qe_model *model, qe_role role, int64_t **map, qe_error *err) {
    const qe_weight_row *row = qe_family_row(model->family, role);
    *map = NULL;
    if (!row || !(row->flags & (QE_ROW_Q_ORDER | QE_ROW_K_ORDER))) return QE_OK;
    *map = unpermute(row->flags & QE_ROW_Q_ORDER ? model->hp.heads : model->hp.kv_heads, model->hp.head_dim);
    return *map ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for a row map");
}

static qe_status make_maps(qe_model *model, qe_error *err) {
    const qe_weight_row *q = qe_family_row(model->family, QE_ROLE_Q);
    if (!is_gguf(model) || !(q->flags & QE_ROW_Q_ORDER)) return QE_OK;
    model->q_map = unpermute(model->hp.heads, model->hp.head_dim);
    model->k_map = unpermute(model->hp.kv_heads, model->hp.head_dim);
    return model->q_map && model->k_map ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for row maps");
}

qe_status qe_family_bind_weights(qe_model *model, qe_error *err) {
    const qe_family *family = model->family;
    const uint64_t limit = qe_store_limits(model->store)->vocab;
    model->weights = malloc((size_t)model->hp.layers * QE_ROLE_COUNT * sizeof *model->weights);
    if (!model->weights) return qe_error_set(err, QE_E_NOMEM, "no memory for the weight table");
    for (int64_t i = 0; i < model->hp.layers * QE_ROLE_COUNT; i++) model->weights[i] = -1;
    for (size_t i = 0; i < family->weight_count; i++)
        if (!per_layer(&family->weights[i])) QE_TRY(bind(model, &family->weights[i], 0, err));
    if ((uint64_t)model->hp.vocab > limit)
        return qe_error_at(err, QE_E_LIMIT, qe_store_name(model->store), -1, "vocabulary of %lld, the limit is %llu",
                           (long long)model->hp.vocab, (unsigned long long)limit);
    for (int64_t layer = 0; layer < model->hp.layers; layer++)
        for (size_t i = 0; i < family->weight_count; i++)
            if (per_layer(&family->weights[i])) QE_TRY(bind(model, &family->weights[i], layer, err));
    QE_TRY(check_no_more_layers(model, err));
    return make_maps(model, err);
}

qe_status qe_model_weight(const qe_model *model, qe_role role, int64_t layer, qe_weight_ref *ref, qe_error *err) {
    if (!model || !ref || !model->family) return qe_error_set(err, QE_E_ARGUMENT, "no model that can be run");
    if (role < 0 || role >= QE_ROLE_COUNT || layer < 0 || layer >= model->hp.layers)
        return qe_error_set(err, QE_E_ARGUMENT, "no weight %d of layer %lld", (int)role, (long long)layer);
    *ref = (qe_weight_ref){.tensor = -1};
    const qe_weight_row *row = qe_family_row(model->family, role);
    if (!row) return QE_OK;
    ref->tensor = model->weights[(per_layer(row) ? layer : 0) * QE_ROLE_COUNT + role];
    ref->n = size_of(&model->hp, row->n);
    ref->k = size_of(&model->hp, row->k);
    if (ref->tensor < 0) return QE_OK;
    qe_qtensor form;
    qe_store_form(model->store, ref->tensor, &form, &ref->act_known);
    ref->quant = form.quant;
    ref->act = form.act;
    ref->hadamard = form.hadamard;
    ref->order = form.order;
    ref->col_scale = form.col_scale;
    ref->facts = form.facts;
    ref->row_map = row->flags & QE_ROW_Q_ORDER ? model->q_map : row->flags & QE_ROW_K_ORDER ? model->k_map : NULL;
    if (row->flags & QE_ROW_NORM && !is_gguf(model)) ref->norm_offset = model->family->hf_norm_offset;
    return QE_OK;
}

static qe_status read_vector(const qe_model *model, const qe_weight_ref *ref, qe_qtensor *band, float *values,
                             float *out, qe_error *err) {
    QE_TRY(qe_store_read(model->store, ref->tensor, 0, 1, NULL, band, err));
    QE_TRY(qe_dequantize(band, 0, 1, values, ref->k, err));
    for (int64_t i = 0; i < ref->k; i++) out[i] = values[ref->row_map ? ref->row_map[i] : i] + ref->norm_offset;
    return QE_OK;
}

qe_status qe_model_read_vector(const qe_model *model, const qe_weight_ref *ref, float *out, qe_error *err) {
    if (!model || !ref || !out || ref->tensor < 0 || ref->n != 1)
        return qe_error_set(err, QE_E_ARGUMENT, "not a vector of this model");
    qe_qtensor band;
    size_t bytes = qe_qtensor_bytes(&ref->quant, 1, ref->k, 0);
    void *block = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    float *values = malloc((size_t)ref->k * sizeof *values);
    qe_status status = block && values ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for a vector");
    if (!status) status = qe_qtensor_place(&band, &ref->quant, 1, ref->k, 0, block, bytes, err);
    if (!status) status = read_vector(model, ref, &band, values, out, err);
    free(values);
    free(block);
    return status;
}
