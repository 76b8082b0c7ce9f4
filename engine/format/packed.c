/* packed.c -- from the tensors of a file to the weights they make up. */
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "base/check.h"
#include "base/json.h"
#include "format/packed.h"

qe_status qe_packed_fail(const qe_packed_list *list, qe_status status, const char *name, qe_error *err,
                         const char *format, ...) {
    char what[224], text[QE_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return qe_error_at(err, status, list->where, -1, "\"%s\": %s", qe_escape(name, strlen(name), text, sizeof text),
                       what);
}

/* ---- the raw tensors ------------------------------------------------------------------------------------------- */
const qe_store_tensor *qe_packed_find(const qe_packed_list *list, const char *module, const char *suffix) {
    char name[QE_MODULE_MAX + 64];
    int bytes = snprintf(name, sizeof name, "%s%s", module, suffix);
    if (bytes < 0 || (size_t)bytes >= sizeof name) return NULL;
    int64_t index = qe_store_find(list->store, name);
    return index < 0 ? NULL : &list->store->tensors[index];
}

static bool module_of(const char *name, const char *suffix, char *module) {
    size_t bytes = strlen(name), tail = strlen(suffix);
    if (bytes <= tail || bytes - tail >= QE_MODULE_MAX || strcmp(name + bytes - tail, suffix)) return false;
    memcpy(module, name, bytes - tail);
    module[bytes - tail] = 0;
    return true;
}

int64_t qe_packed_next(const qe_packed_list *list, const char *suffix, int64_t *at, char *module) {
    const qe_store *store = list->store;
    for (; *at < store->tensor_count; ++*at)
        if (!list->taken[*at] && module_of(store->tensors[*at].name, suffix, module) &&
            (!store->only || store->only(store->only_ctx, module)))
            return (*at)++;
    return -1;
}

qe_status qe_packed_leftovers(const qe_packed_list *list, const char *const *suffixes, const char *codes,
                              qe_error *err) {
    char module[QE_MODULE_MAX];
    for (; *suffixes; suffixes++) {
        int64_t at = 0, found = qe_packed_next(list, *suffixes, &at, module);
        if (found >= 0)
            return qe_packed_fail(list, QE_E_MISSING, list->store->tensors[found].name, err, "is there without its %s",
                                  codes);
    }
    return QE_OK;
}

qe_status qe_packed_shape(const qe_packed_list *list, const qe_store_tensor *t, int32_t rank, int64_t rows,
                          int64_t columns, qe_error *err) {
    if (t->rank == rank && t->rows == rows && t->columns == columns) return QE_OK;
    return qe_packed_fail(list, QE_E_SHAPE, t->name, err, "rank %d, %lld x %lld; expected rank %d, %lld x %lld",
                          t->rank, (long long)t->rows, (long long)t->columns, rank, (long long)rows,
                          (long long)columns);
}

/* types: "I32 U32", words apart by one space. */
qe_status qe_packed_type(const qe_packed_list *list, const qe_store_tensor *t, const char *types, qe_error *err) {
    const char *name = t->type->name;
    size_t bytes = strlen(name);
    for (const char *at = types; (at = strstr(at, name)); at += bytes)
        if ((at == types || at[-1] == ' ') && (at[bytes] == ' ' || !at[bytes])) return QE_OK;
    return qe_packed_fail(list, QE_E_TYPE, t->name, err, "is of type %s, expected %s", name, types);
}

qe_status qe_packed_scale_num(const qe_packed_list *list, const qe_store_tensor *t, uint8_t *out, qe_error *err) {
    QE_TRY(qe_packed_type(list, t, "F16 BF16 F32", err));
    uint8_t code = t->type->quant.code;
    *out = code == QE_CODE_F16 ? QE_NUM_F16 : code == QE_CODE_BF16 ? QE_NUM_BF16 : QE_NUM_F32;
    return QE_OK;
}

qe_status qe_packed_slurp(const qe_store *store, const qe_store_tensor *t, void **out, qe_error *err) {
    const qe_reader *file = &store->files[t->file];
    void *bytes = malloc((size_t)t->bytes + 1);
    if (!bytes) return qe_store_nomem(store, err);
    qe_status status = file->read_at(file->ctx, t->offset, bytes, (size_t)t->bytes, err);
    if (status) free(bytes);
    else *out = bytes;
    return status;
}

/* ---- column order ---------------------------------------------------------------------------------------------- */
static int32_t i32_at(const uint8_t *p) {
    return (int32_t)((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
}

/* Groups from raw values, each checked; *trivial: column k is in group k / group_k; *full: every group is full. */
static qe_status read_groups(const qe_packed_list *list, const qe_store_tensor *t, const uint8_t *raw, int64_t k,
                             qe_packed_tensor *p, bool *trivial, bool *full, bool *constant, qe_error *err) {
    int64_t *sizes = calloc((size_t)p->groups + 1, sizeof *sizes);
    if (!sizes) return qe_store_nomem(list->store, err);
    qe_status status = QE_OK;
    *trivial = *full = *constant = true;
    for (int64_t c = 0; c < k && !status; c++) {
        int32_t g = i32_at(raw + 4 * c);
        if (g < 0 || g >= p->groups) {
            status = qe_packed_fail(list, QE_E_RANGE, t->name, err, "element %lld is %d, legal are 0 to %lld",
                                    (long long)c, g, (long long)p->groups - 1);
            break;
        }
        p->group_of[c] = g;
        sizes[g]++;
        *trivial &= g == c / p->group_k;
        *constant &= g == 0;
    }
    for (int64_t g = 0; g < p->groups && !status; g++)
        *full &= sizes[g] == (g + 1 < p->groups ? p->group_k : k - g * p->group_k);
    free(sizes);
    return status;
}

/* A stable sort by group, by counting. */
static void sort_columns(const qe_packed_tensor *p, int64_t k) {
    int64_t at = 0;
    for (int64_t g = 0; g < p->groups; g++)
        for (int64_t c = 0; c < k; c++)
            if (p->group_of[c] == g) {
                p->order[at] = (uint32_t)c;
                p->position[c] = (uint32_t)at++;
            }
}

qe_status qe_packed_order(qe_packed_list *list, const char *module, const qe_store_tensor *g_idx, bool act_order,
                          int64_t k, qe_packed_tensor *p, qe_error *err) {
    if (!g_idx)
        return act_order ? qe_packed_fail(list, QE_E_MISSING, module, err, "act-order is set, the group index is absent")
                         : QE_OK;
    QE_TRY(qe_packed_shape(list, g_idx, 1, 1, k, err));
    QE_TRY(qe_packed_type(list, g_idx, "I32", err));
    p->part[QE_PART_ORDER] = g_idx;
    void *raw = NULL;
    bool trivial = true, full = true, constant = true;
    p->group_of = qe_store_alloc(list->store, (uint64_t)k, sizeof *p->group_of);
    if (!p->group_of) return qe_store_nomem(list->store, err);
    QE_TRY(qe_packed_slurp(list->store, g_idx, &raw, err));
    qe_status status = read_groups(list, g_idx, raw, k, p, &trivial, &full, &constant, err);
    free(raw);
    QE_TRY(status);
    if (act_order && constant && p->groups > 1)
        return qe_packed_fail(list, QE_E_RANGE, g_idx->name, err, "act-order is set, but every column is in group 0");
    if (!trivial && !full) {
        p->type.quant.group_k = 1;
        return QE_OK;
    }
    if (!trivial) {
        p->order = qe_store_alloc(list->store, (uint64_t)k, sizeof *p->order);
        p->position = qe_store_alloc(list->store, (uint64_t)k, sizeof *p->position);
        if (!p->order || !p->position) return qe_store_nomem(list->store, err);
        sort_columns(p, k);
    }
    p->group_of = NULL;
    return QE_OK;
}

/* ---- the logical tensor ---------------------------------------------------------------------------------------- */
qe_packed_tensor *qe_packed_new(const qe_packed_list *list, qe_error *err) {
    qe_packed_tensor *p = qe_store_alloc(list->store, 1, sizeof *p);
    if (!p) qe_store_nomem(list->store, err);
    return p;
}

qe_status qe_packed_add(qe_packed_list *list, const char *module, const char *type_name, int64_t n, int64_t k,
                        qe_packed_tensor *p, qe_error *err) {
    qe_store *store = list->store;
    char *name = qe_store_alloc(store, strlen(module) + 8, 1);
    if (!name) return qe_store_nomem(store, err);
    memcpy(name, module, strlen(module));
    memcpy(name + strlen(module), ".weight", 8);
    const qe_store_tensor *plain = qe_packed_find(list, module, ".weight");
    if (plain && plain != p->part[QE_PART_CODES])
        return qe_packed_fail(list, QE_E_MISMATCH, name, err, "is there both quantized and not");
    p->type.name = type_name;
    p->type.block = p->type.block_bytes = 1;
    QE_TRY(qe_quant_check(&p->type.quant, n, k, err));
    qe_store_tensor t = {.name = name, .type = &p->type, .rank = 2, .dims = {n, k}, .rows = n, .columns = k};
    t.packed = p;
    for (int i = 0; i < QE_PART_COUNT; i++) {
        if (!p->part[i]) continue;
        t.bytes += p->part[i]->bytes;
        if (i == QE_PART_CODES) t.file = p->part[i]->file, t.offset = p->part[i]->offset;
        list->taken[p->part[i] - store->tensors] = 1;
    }
    list->tensors[list->count++] = t;
    return QE_OK;
}

/* ---- which settings -------------------------------------------------------------------------------------------- */
static const struct {
    const char *method;
    qe_status (*bind)(qe_packed_list *list, qe_error *err);
} methods[] = {
    {"gptq", qe_gptq_bind}, {"awq", qe_awq_bind}, {"compressed-tensors", qe_compressed_bind}, {"qengine", qe_native_bind},
};
enum { METHODS = sizeof methods / sizeof methods[0] };

/* Settings of before there was a quantization_config. */
static qe_status side_settings(qe_store *store, qe_error *err) {
    static const char *const names[] = {"quantize_config.json", "quant_config.json"};
    for (int i = 0; i < 2 && !store->quantization; i++) {
        char *json;
        size_t bytes;
        QE_TRY(qe_store_side_file(store, names[i], (size_t)store->limits.config_bytes, &json, &bytes, err));
        if (!json) continue;
        qe_status status = qe_store_json(names[i], json, bytes, 0, &store->quantization, NULL, err);
        free(json);
        QE_TRY(status);
        if (!json_object_get(store->quantization, "quant_method") &&
            json_object_set_new(store->quantization, "quant_method", json_string(i ? "awq" : "gptq")))
            return qe_store_nomem(store, err);
    }
    return QE_OK;
}

static bool has_suffix(const qe_store *store, const char *suffix) {
    char module[QE_MODULE_MAX];
    for (int64_t i = 0; i < store->tensor_count; i++)
        if (module_of(store->tensors[i].name, suffix, module)) return true;
    return false;
}

static qe_status bind_method(qe_packed_list *list, const char *method, qe_error *err) {
    char text[QE_TEXT_MAX];
    for (int i = 0; i < METHODS; i++)
        if (!strcmp(method, methods[i].method)) return methods[i].bind(list, err);
    return qe_error_at(err, QE_E_UNSUPPORTED, list->where, -1,
                       "quant_method \"%s\"; read are gptq, awq, compressed-tensors, qengine",
                       qe_escape(method, strlen(method), text, sizeof text));
}

/* What no binder took stays listed as it is. */
static qe_status keep_rest(qe_packed_list *list, qe_error *err) {
    qe_store *store = list->store;
    for (int64_t i = 0; i < store->tensor_count; i++)
        if (!list->taken[i]) list->tensors[list->count++] = store->tensors[i];
    store->tensors = list->tensors;
    store->tensor_count = list->count;
    return qe_store_index_tensors(store, err);
}

qe_status qe_packed_bind(qe_store *store, qe_error *err) {
    static const char *const suffixes[] = {".qweight", ".weight_packed"};
    if (store->kind != QE_STORE_SAFETENSORS) return QE_OK;
    bool packed = has_suffix(store, suffixes[0]) || has_suffix(store, suffixes[1]);
    if (!store->quantization && packed) QE_TRY(side_settings(store, err));
    if (!store->quantization)
        return packed ? qe_error_at(err, QE_E_MISSING, store->name, -1,
                                    "packed weights, but no quantization_config in config.json")
                      : QE_OK;
    const char *method;
    QE_TRY(qe_json_string(store->quantization, "quant_method", &method, err));
    qe_packed_list list = {.store = store, .config = store->quantization, .where = store->name};
    list.tensors = qe_store_alloc(store, (uint64_t)store->tensor_count, 2 * sizeof *list.tensors);
    list.taken = calloc((size_t)store->tensor_count + 1, 1);
    qe_status status = list.tensors && list.taken ? bind_method(&list, method, err) : qe_store_nomem(store, err);
    if (!status) status = keep_rest(&list, err);
    free(list.taken);
    return status;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */
qe_status qe_packed_rect(const qe_store *store, const qe_store_tensor *t, int64_t row, int64_t rows, uint64_t byte,
                         size_t bytes, void *out, qe_error *err) {
    const qe_reader *file = &store->files[t->file];
    if (!t->rows || !t->bytes) return QE_OK;
    uint64_t row_bytes = t->bytes / (uint64_t)t->rows;
    if (bytes == row_bytes)
        return file->read_at(file->ctx, t->offset + (uint64_t)row * row_bytes, out, bytes * (size_t)rows, err);
    for (int64_t i = 0; i < rows; i++)
        QE_TRY(file->read_at(file->ctx, t->offset + (uint64_t)(row + i) * row_bytes + byte,
                             (char *)out + (size_t)i * bytes, bytes, err));
    return QE_OK;
}

qe_status qe_packed_bad_scale(const qe_store *store, const qe_store_tensor *scales, int64_t row, int64_t column,
                              qe_error *err) {
    return qe_error_at(err, QE_E_VALUE, store->files[scales->file].name, (int64_t)scales->offset,
                       "tensor \"%s\" holds a NaN or infinity at [%lld, %lld]", scales->name, (long long)row,
                       (long long)column);
}

bool qe_packed_unusable(uint8_t num, const void *array, int64_t index) {
    return !isfinite(qe_num_get(num, array, index));
}

struct qe_packed_cache {
    pthread_mutex_t lock;
    qe_slab slab;
};

static qe_status fill_slab(const qe_store *store, const qe_store_tensor *t, int64_t first, int32_t code_outputs,
                           int32_t zero_bits, qe_slab *s, qe_error *err) {
    const qe_packed_tensor *p = t->packed;
    const qe_store_tensor *codes = p->part[QE_PART_CODES], *zeros = p->part[QE_PART_ZEROS],
                          *scales = p->part[QE_PART_SCALES];
    int64_t left = t->rows - first;
    s->tensor = NULL;
    s->first = first;
    s->count = left < QE_SLAB_COLUMNS ? left : QE_SLAB_COLUMNS;
    size_t scale_bytes = qe_num_bytes(p->type.quant.scale);
    s->code_ld = (size_t)((s->count + code_outputs - 1) / code_outputs) * 4;
    s->zero_ld = zeros ? (size_t)((s->count * zero_bits + 31) / 32) * 4 : 0;
    s->scale_ld = (size_t)s->count * scale_bytes;
    size_t need = s->code_ld * (size_t)codes->rows + s->zero_ld * (size_t)(zeros ? zeros->rows : 0) +
                  s->scale_ld * (size_t)scales->rows + 192;
    if (need > s->room) {
        free(s->codes);
        s->codes = malloc(need);
        s->room = s->codes ? need : 0;
        if (!s->codes) return qe_store_nomem(store, err);
    }
    s->zeros = s->codes + ((s->code_ld * (size_t)codes->rows + 63) & ~(size_t)63);
    s->scales = s->zeros + ((s->zero_ld * (size_t)(zeros ? zeros->rows : 0) + 63) & ~(size_t)63);
    QE_TRY(qe_packed_rect(store, codes, 0, codes->rows, (uint64_t)(first / code_outputs) * 4, s->code_ld, s->codes, err));
    if (zeros)
        QE_TRY(qe_packed_rect(store, zeros, 0, zeros->rows, (uint64_t)(first * zero_bits / 32) * 4, s->zero_ld, s->zeros,
                              err));
    QE_TRY(qe_packed_rect(store, scales, 0, scales->rows, (uint64_t)first * scale_bytes, s->scale_ld, s->scales, err));
    s->tensor = t;
    return QE_OK;
}

qe_status qe_slab_lock(const qe_store *store, const qe_store_tensor *t, int64_t n, int32_t code_outputs,
                       int32_t zero_bits, const qe_slab **out, qe_error *err) {
    struct qe_packed_cache *cache = store->cache;
    qe_slab *s = &cache->slab;
    pthread_mutex_lock(&cache->lock);
    qe_status status = QE_OK;
    if (s->tensor != t || n < s->first || n >= s->first + s->count)
        status = fill_slab(store, t, n / QE_SLAB_COLUMNS * QE_SLAB_COLUMNS, code_outputs, zero_bits, s, err);
    if (status) pthread_mutex_unlock(&cache->lock);
    else *out = s;
    return status;
}

void qe_slab_unlock(const qe_store *store) { pthread_mutex_unlock(&store->cache->lock); }

qe_status qe_packed_cache_create(qe_store *store, qe_error *err) {
    if (store->cache) return QE_OK;
    store->cache = calloc(1, sizeof *store->cache);
    if (!store->cache) return qe_store_nomem(store, err);
    pthread_mutex_init(&store->cache->lock, NULL);
    return QE_OK;
}

void qe_packed_release(qe_store *store) {
    json_decref(store->quantization);
    json_decref(store->notes);
    if (!store->cache) return;
    pthread_mutex_destroy(&store->cache->lock);
    free(store->cache->slab.codes);
    free(store->cache);
}
