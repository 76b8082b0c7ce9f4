/* wts_native.c -- the engine's own form, for every scheme of quant.h: the canonical arrays as safetensors, bit fields dense
 * and LSB first, each row in whole bytes, and one descriptor a weight in config.json:
 *
 *   "quantization_config": {"quant_method": "qengine", "version": 1, "weights": {"<module>": {
 *       "quant": "int4:g128:f16:z=u8", "act": {"mode": "dynamic", "quant": "int8:channel:f32"}, "hadamard": 0}}}
 *
 *   <module>.codes       U8 [n, k * bits / 8 up]          .scales, .zeros   [Gn, Gk] F32, F16, BF16, or U8 bit fields
 *   .super, .zero_super  [Sn, Sk] likewise                .lut F32 [Ln, 2^bits]    .order U32 [1, k]    .col_scale F32 [1, k]
 *   .input F32 [1, 2]    scale and zero of a static input */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "format/native.h"
#include "format/packed.h"

const char *const qe_native_suffix[QE_PART_COUNT] = {".codes", ".scales", ".zeros", ".order", ".super", ".zero_super",
                                                     ".lut", ".col_scale", ".input"};

/* ---- sizes ----------------------------------------------------------------------------------------------------- */
static int64_t groups(int64_t size, int32_t extent) { return extent ? (size + extent - 1) / extent : 1; }

static bool integer_zeros(const qe_quant *q) {
    return q->zero == QE_ZERO_REAL && q->zero_num != QE_NUM_F32 && q->zero_num != QE_NUM_F16 &&
           q->zero_num != QE_NUM_BF16;
}

static int field_bits(int32_t num) {
    static const uint8_t bits[] = {
#define QE_X(name, value, bytes, width) [value] = width,
        QE_NUM_LIST(QE_X)
#undef QE_X
    };
    return bits[num];
}

static qe_native_array array_of(int32_t num, int64_t rows, int64_t columns) {
    qe_native_array a = {.rows = rows, .columns = columns, .num = num, .bits = field_bits(num)};
    a.dtype = num == QE_NUM_F32 ? "F32" : num == QE_NUM_F16 ? "F16" : num == QE_NUM_BF16 ? "BF16" : "U8";
    a.row_bytes = (columns * a.bits + 7) / 8;
    a.stored_columns = a.dtype[0] == 'U' ? a.row_bytes : columns;
    return a;
}

qe_native_array qe_native_part(const qe_quant *q, qe_part part, int64_t n, int64_t k, bool optional) {
    qe_native_array none = {0}, a;
    int64_t gn = groups(n, q->group_n), gk = groups(k, q->group_k), sn = groups(n, q->super_n), sk = groups(k, q->super_k);
    switch (part) {
    case QE_PART_CODES:
        a = (qe_native_array){.rows = n, .columns = k, .bits = q->bits, .dtype = "U8"};
        if (q->bits > 8) a.dtype = q->code == QE_CODE_F32 ? "F32" : q->code == QE_CODE_F16 ? "F16" : "BF16";
        a.row_bytes = (k * q->bits + 7) / 8;
        a.stored_columns = q->bits > 8 ? k : a.row_bytes;
        a.num = QE_NUM_U8;
        return a;
    case QE_PART_SCALES: return q->scale == QE_NUM_ONE ? none : array_of(q->scale, gn, gk);
    case QE_PART_ZEROS: return q->zero == QE_ZERO_CONST ? none : array_of(q->zero_num, gn, gk);
    case QE_PART_SUPER: return q->super == QE_NUM_ONE ? none : array_of(q->super, sn, sk);
    case QE_PART_ZERO_SUPER: return integer_zeros(q) ? array_of(q->super, sn, sk) : none;
    case QE_PART_LUT:
        return q->code == QE_CODE_LUT ? array_of(QE_NUM_F32, groups(n, q->lut_n), (int64_t)1 << q->bits) : none;
    case QE_PART_COL_SCALE: return optional ? array_of(QE_NUM_F32, 1, k) : none;
    case QE_PART_INPUT: return optional ? array_of(QE_NUM_F32, 1, 2) : none;
    case QE_PART_ORDER:
        if (!optional) return none;
        a = array_of(QE_NUM_F32, 1, k);
        a.dtype = "U32";
        return a;
    default: return none;
    }
}

void *qe_native_pointer(const qe_qtensor *t, qe_part part) {
    switch (part) {
    case QE_PART_CODES: return t->codes;
    case QE_PART_SCALES: return t->scales;
    case QE_PART_ZEROS: return t->zeros;
    case QE_PART_SUPER: return t->super;
    case QE_PART_ZERO_SUPER: return t->zero_super;
    case QE_PART_LUT: return t->lut;
    case QE_PART_COL_SCALE: return t->col_scale;
    case QE_PART_ORDER: return t->order;
    default: return NULL;
    }
}

/* ---- bit fields ------------------------------------------------------------------------------------------------ */
/* Whole bytes (8, 16, 32 bits) are copied; narrower fields come from and go to bytes. S6 is kept as two's complement. */
void qe_native_pack_row(const qe_native_array *a, const void *from, int64_t row, uint8_t *out) {
    if (a->bits % 8 == 0) {
        memcpy(out, (const char *)from + row * a->row_bytes, (size_t)a->row_bytes);
        return;
    }
    const uint8_t *fields = (const uint8_t *)from + row * a->columns;
    unsigned mask = (1u << a->bits) - 1u;
    memset(out, 0, (size_t)a->row_bytes);
    for (int64_t c = 0; c < a->columns; c++) {
        int64_t at = c * a->bits;
        unsigned v = (fields[c] & mask) << at % 8;
        out[at / 8] |= (uint8_t)v;
        if (v >> 8) out[at / 8 + 1] |= (uint8_t)(v >> 8);
    }
}

void qe_native_unpack_row(const qe_native_array *a, const uint8_t *from, int64_t row, void *out) {
    if (a->bits % 8 == 0) {
        memcpy((char *)out + row * a->row_bytes, from, (size_t)a->row_bytes);
        return;
    }
    uint8_t *fields = (uint8_t *)out + row * a->columns;
    unsigned mask = (1u << a->bits) - 1u;
    for (int64_t c = 0; c < a->columns; c++) {
        int64_t at = c * a->bits;
        unsigned v = from[at / 8];
        if (at % 8 + a->bits > 8) v |= (unsigned)from[at / 8 + 1] << 8;
        v = v >> at % 8 & mask;
        if (a->num == QE_NUM_S6 && v > 31) v |= 0xc0;
        fields[c] = (uint8_t)v;
    }
}

/* ---- reading --------------------------------------------------------------------------------------------------- */
static int32_t extent_of(const qe_quant *q, qe_part part) {
    return part == QE_PART_CODES ? 1 : part == QE_PART_LUT ? q->lut_n
           : part == QE_PART_SUPER || part == QE_PART_ZERO_SUPER ? q->super_n : q->group_n;
}

static qe_status read_part(const qe_store *store, const qe_store_tensor *t, qe_part part, int64_t first_row, int64_t rows,
                           qe_qtensor *band, qe_error *err) {
    const qe_store_tensor *from = t->packed->part[part];
    const qe_quant *q = &band->quant;
    qe_native_array a = qe_native_part(q, part, t->rows, t->columns, false);
    int32_t extent = extent_of(q, part);
    int64_t first = extent ? first_row / extent : 0, last = extent ? (first_row + rows - 1) / extent : 0;
    uint8_t *raw = malloc((size_t)a.row_bytes + 1);
    if (!raw) return qe_store_nomem(store, err);
    qe_status status = QE_OK;
    for (int64_t r = first; r <= last && !status; r++) {
        status = qe_packed_rect(store, from, r, 1, 0, (size_t)a.row_bytes, raw, err);
        if (!status) qe_native_unpack_row(&a, raw, r - first, qe_native_pointer(band, part));
    }
    free(raw);
    return status;
}

static qe_status read_rows(const qe_store *store, const qe_store_tensor *t, int64_t first_row, int64_t rows,
                           const int64_t *row_map, qe_qtensor *band, qe_error *err) {
    static const qe_part parts[] = {QE_PART_CODES, QE_PART_SCALES, QE_PART_ZEROS, QE_PART_SUPER, QE_PART_ZERO_SUPER,
                                    QE_PART_LUT};
    if (row_map) return qe_error_set(err, QE_E_UNSUPPORTED, "\"%s\": rows are read in their order alone", t->name);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (t->packed->part[parts[i]]) QE_TRY(read_part(store, t, parts[i], first_row, rows, band, err));
    qe_error mine;
    uint32_t facts = t->packed->facts;
    qe_status status = qe_qtensor_check(band, &facts, &mine);
    if (!status && facts != t->packed->facts)
        status = qe_error_set(&mine, QE_E_MISMATCH, "rows from %lld break the facts 0x%x promised for them",
                              (long long)first_row, t->packed->facts);
    band->facts = facts;
    return status ? qe_error_at(err, status, store->files[t->file].name, (int64_t)t->offset, "\"%s\": %s", t->name,
                                mine.message) : QE_OK;
}

/* ---- binding --------------------------------------------------------------------------------------------------- */
static qe_status read_act(const qe_packed_list *list, const char *module, const json_t *act, qe_packed_tensor *p,
                          qe_error *err) {
    const char *mode, *quant;
    if (!act || json_is_null(act)) return QE_OK;
    QE_TRY(qe_json_string(act, "mode", &mode, err));
    if (strcmp(mode, "dynamic") && strcmp(mode, "static"))
        return qe_packed_fail(list, QE_E_UNSUPPORTED, module, err, "act.mode is neither dynamic nor static");
    QE_TRY(qe_json_string(act, "quant", &quant, err));
    QE_TRY(qe_quant_parse(quant, &p->act.quant, err));
    p->act.mode = strcmp(mode, "static") ? QE_ACT_DYNAMIC : QE_ACT_STATIC;
    return QE_OK;
}

/* Scale and zero of a static input. */
static qe_status load_input(const qe_packed_list *list, const char *module, qe_packed_tensor *p, qe_error *err) {
    const qe_store_tensor *t = p->part[QE_PART_INPUT];
    void *raw = NULL;
    float values[2];
    if (p->act.mode != QE_ACT_STATIC) return QE_OK;
    if (!t) return qe_packed_fail(list, QE_E_MISSING, module, err, "static inputs, but there is no input");
    QE_TRY(qe_packed_slurp(list->store, t, &raw, err));
    memcpy(values, raw, sizeof values);
    free(raw);
    p->act.scale = values[0];
    if (!(values[0] > 0.0f) || !isfinite(values[0]) || !isfinite(1.0f / values[0]) || !(values[1] >= 0 && values[1] <= 255))
        return qe_packed_fail(list, QE_E_VALUE, t->name, err, "scale %g, zero %g", (double)values[0], (double)values[1]);
    p->act.zero = (int32_t)values[1];
    return QE_OK;
}

static qe_status load_column_arrays(const qe_packed_list *list, int64_t k, qe_packed_tensor *p, qe_error *err) {
    const qe_store_tensor *order = p->part[QE_PART_ORDER], *scale = p->part[QE_PART_COL_SCALE];
    void *raw = NULL;
    if (order) {
        QE_TRY(qe_packed_slurp(list->store, order, &raw, err));
        p->order = qe_store_alloc(list->store, (uint64_t)k, sizeof *p->order);
        uint8_t *seen = calloc((size_t)k, 1);
        qe_status status = p->order && seen ? QE_OK : qe_store_nomem(list->store, err);
        if (!status) memcpy(p->order, raw, (size_t)k * 4);
        for (int64_t c = 0; c < k && !status; c++)
            if (p->order[c] >= k || seen[p->order[c]]++)
                status = qe_packed_fail(list, QE_E_RANGE, order->name, err, "element %lld is %u: no permutation",
                                        (long long)c, p->order[c]);
        free(seen);
        free(raw);
        QE_TRY(status);
    }
    if (!scale) return QE_OK;
    QE_TRY(qe_packed_slurp(list->store, scale, &raw, err));
    p->col_scale = qe_store_alloc(list->store, (uint64_t)k, sizeof *p->col_scale);
    if (p->col_scale) memcpy(p->col_scale, raw, (size_t)k * 4);
    free(raw);
    if (!p->col_scale) return qe_store_nomem(list->store, err);
    for (int64_t c = 0; c < k; c++)
        if (!isfinite(p->col_scale[c])) return qe_packed_bad_scale(list->store, scale, 0, c, err);
    return QE_OK;
}

static qe_status bind_module(qe_packed_list *list, const char *module, const json_t *entry, qe_error *err) {
    const char *text;
    int64_t hadamard, n, k, facts;
    qe_packed_tensor *p = qe_packed_new(list, err);
    if (!p) return QE_E_NOMEM;
    if (!json_is_object(entry)) return qe_packed_fail(list, QE_E_TYPE, module, err, "its entry is not a map");
    QE_TRY(qe_json_string(entry, "quant", &text, err));
    QE_TRY(qe_quant_parse(text, &p->type.quant, err));
    QE_TRY(qe_json_int(entry, "n", 1, INT32_MAX, &n, err));
    QE_TRY(qe_json_int(entry, "k", 1, INT32_MAX, &k, err));
    QE_TRY(qe_json_int_or(entry, "hadamard", 0, 1 << 20, 0, &hadamard, err));
    QE_TRY(qe_json_int_or(entry, "facts", 0, 31, 0, &facts, err));
    QE_TRY(qe_quant_check(&p->type.quant, n, k, err));
    p->facts = (uint32_t)facts;
    if (hadamard & (hadamard - 1) || (hadamard && k % hadamard))
        return qe_packed_fail(list, QE_E_RANGE, module, err, "hadamard %lld in %lld columns", (long long)hadamard,
                              (long long)k);
    p->read = read_rows;
    p->hadamard = (int32_t)hadamard;
    QE_TRY(read_act(list, module, json_object_get(entry, "act"), p, err));
    for (int i = 0; i < QE_PART_COUNT; i++) {
        const qe_store_tensor *t = qe_packed_find(list, module, qe_native_suffix[i]);
        qe_native_array a = qe_native_part(&p->type.quant, (qe_part)i, n, k, t != NULL);
        p->part[i] = a.dtype ? t : NULL;
        if (!a.dtype) continue;
        if (!t) return qe_packed_fail(list, QE_E_MISSING, module, err, "there is no %s", qe_native_suffix[i] + 1);
        QE_TRY(qe_packed_type(list, t, a.dtype, err));
        QE_TRY(qe_packed_shape(list, t, 2, a.rows, a.stored_columns, err));
    }
    QE_TRY(load_column_arrays(list, k, p, err));
    QE_TRY(load_input(list, module, p, err));
    return qe_packed_add(list, module, "QE", n, k, p, err);
}

/* What says nothing of the file, such as the text of a scheme, gets its name and the module's. */
static qe_status bind_named(qe_packed_list *list, const char *module, const json_t *entry, qe_error *err) {
    qe_error found = {.where = ""};
    qe_status status = bind_module(list, module, entry, &found);
    if (status && !found.where[0]) return qe_packed_fail(list, status, module, err, "%s", found.message);
    if (status && err) *err = found;
    return status;
}

qe_status qe_native_bind(qe_packed_list *list, qe_error *err) {
    static const char *const parts[] = {".codes", ".scales", ".zeros", ".super", ".zero_super", ".lut", ".order",
                                        ".col_scale", ".input", NULL};
    json_t *weights, *entry;
    const char *module;
    int64_t version;
    QE_TRY(qe_json_int(list->config, "version", INT32_MIN, INT32_MAX, &version, err));
    if (version != 1)
        return qe_error_at(err, QE_E_VERSION, list->where, -1, "quantization_config.version is %lld, read is 1",
                           (long long)version);
    QE_TRY(qe_json_object(list->config, "weights", &weights, err));
    const qe_store *store = list->store;
    json_object_foreach(weights, module, entry)
        if (!store->only || store->only(store->only_ctx, module)) QE_TRY(bind_named(list, module, entry, err));
    return qe_packed_leftovers(list, parts, "entry in quantization_config", err);
}
