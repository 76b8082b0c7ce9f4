/* wts_compressed.c -- compressed-tensors checkpoints: pack-quantized (integer weights of 1 to 8 bits, packed along k,
 * offset binary), int-quantized (int8), float-quantized (fp8 E4M3 by tensor or channel). Codes are signed, W = (q - z)
 * * s; the canonical code is c = q + 2^(b-1). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "base/json.h"
#include "format/packed.h"

static const char weight_packed[] = ".weight_packed", weight_scale[] = ".weight_scale",
                  weight_zero_point[] = ".weight_zero_point", weight_shape[] = ".weight_shape",
                  weight_g_idx[] = ".weight_g_idx", input_scale[] = ".input_scale",
                  input_zero_point[] = ".input_zero_point";

typedef enum strategy { TENSOR, CHANNEL, GROUP, TOKEN } strategy;
typedef enum layout { LAYOUT_PACK, LAYOUT_INT, LAYOUT_FLOAT } layout;

typedef struct scheme {             /* one config group; compared with memcmp */
    int64_t  bits, group;
    int32_t  strategy, layout;
    int32_t  symmetric, act_order;
    int32_t  act_mode, act_symmetric;   /* qe_act_mode */
} scheme;

/* ---- settings -------------------------------------------------------------------------------------------------- */
static qe_status refuse(const qe_packed_list *list, qe_status status, const char *what, const char *value,
                        qe_error *err) {
    char text[QE_TEXT_MAX];
    return qe_error_at(err, status, list->where, -1, "%s \"%s\"", what,
                       qe_escape(value, strlen(value), text, sizeof text));
}

static qe_status read_strategy(const qe_packed_list *list, const json_t *args, int32_t *out, qe_error *err) {
    static const char *const names[] = {"tensor", "channel", "group", "token"};
    const char *name;
    int64_t group;
    QE_TRY(qe_json_int_or(args, "group_size", INT64_MIN, INT64_MAX, 0, &group, err));
    QE_TRY(qe_json_string_or(args, "strategy", group > 0 ? "group" : group == -1 ? "channel" : "tensor", &name, err));
    for (int i = 0; i < 4; i++)
        if (!strcmp(name, names[i])) {
            *out = i;
            return QE_OK;
        }
    return refuse(list, QE_E_UNSUPPORTED, "strategy", name, err);
}

static qe_status read_weights(const qe_packed_list *list, const json_t *args, scheme *s, qe_error *err) {
    const char *type;
    bool symmetric;
    QE_TRY(qe_json_int_or(args, "num_bits", 1, 8, 8, &s->bits, err));
    QE_TRY(qe_json_string_or(args, "type", "int", &type, err));
    QE_TRY(qe_json_bool_or(args, "symmetric", true, &symmetric, err));
    QE_TRY(read_strategy(list, args, &s->strategy, err));
    s->symmetric = symmetric;
    if (s->strategy == TOKEN) return refuse(list, QE_E_UNSUPPORTED, "strategy of weights", "token", err);
    if (s->strategy == GROUP) {
        if (!qe_json_has(args, "group_size"))
            return qe_error_at(err, QE_E_MISSING, list->where, -1, "strategy group without group_size");
        QE_TRY(qe_json_int(args, "group_size", 1, INT32_MAX, &s->group, err));
    }
    const json_t *order = json_object_get(args, "actorder");
    const char *name = json_string_value(order);
    s->act_order = json_is_true(order) || (name && (!strcmp(name, "group") || !strcmp(name, "dynamic")));
    if (!strcmp(type, "float") && (s->bits != 8 || s->strategy == GROUP || !symmetric))
        return refuse(list, QE_E_UNSUPPORTED, "weights of type", "float, not 8 bits by tensor or channel", err);
    if (strcmp(type, "float") && strcmp(type, "int")) return refuse(list, QE_E_UNSUPPORTED, "weights of type", type, err);
    s->layout = !strcmp(type, "float") ? LAYOUT_FLOAT : LAYOUT_PACK;
    return QE_OK;
}

static qe_status read_inputs(const qe_packed_list *list, const json_t *args, scheme *s, qe_error *err) {
    int64_t bits;
    const char *type;
    bool symmetric, dynamic;
    int32_t by;
    QE_TRY(qe_json_int_or(args, "num_bits", 1, 16, 8, &bits, err));
    QE_TRY(qe_json_string_or(args, "type", "int", &type, err));
    QE_TRY(qe_json_bool_or(args, "symmetric", true, &symmetric, err));
    QE_TRY(qe_json_bool_or(args, "dynamic", false, &dynamic, err));
    QE_TRY(read_strategy(list, args, &by, err));
    /* fp8 inputs run as floats: a wider type loses nothing that the checkpoint keeps. */
    if (!strcmp(type, "float")) return QE_OK;
    if (strcmp(type, "int") || bits != 8)
        return refuse(list, QE_E_UNSUPPORTED, "input_activations of type", type, err);
    if (dynamic ? by != TOKEN : by != TENSOR)
        return qe_error_at(err, QE_E_UNSUPPORTED, list->where, -1,
                           "input_activations: read are dynamic by token and static by tensor");
    s->act_mode = dynamic ? QE_ACT_DYNAMIC : QE_ACT_STATIC;
    s->act_symmetric = symmetric;
    return QE_OK;
}

/* Named schemes and what they stand for. */
static const struct {
    const char *name;
    scheme s;
} presets[] = {
    {"W8A8", {8, 0, CHANNEL, LAYOUT_INT, 1, 0, QE_ACT_DYNAMIC, 1}},
    {"INT8", {8, 0, CHANNEL, LAYOUT_INT, 1, 0, QE_ACT_DYNAMIC, 1}},
    {"W4A16", {4, 128, GROUP, LAYOUT_PACK, 1, 0, QE_ACT_FLOAT, 0}},
    {"W4A16_ASYM", {4, 128, GROUP, LAYOUT_PACK, 0, 0, QE_ACT_FLOAT, 0}},
    {"W8A16", {8, 128, GROUP, LAYOUT_PACK, 1, 0, QE_ACT_FLOAT, 0}},
    {"W4A8", {4, 128, GROUP, LAYOUT_PACK, 1, 0, QE_ACT_DYNAMIC, 1}},
};

/* The settings of one config group, and its targets. */
static qe_status read_group(const qe_packed_list *list, const char *name, json_t *group, scheme *s, json_t **targets,
                            qe_error *err) {
    memset(s, 0, sizeof *s);
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        if (strcmp(name, presets[i].name)) continue;
        *s = presets[i].s;
        *targets = json_is_array(group) ? group : json_object_get(group, "targets");
        return *targets ? QE_OK : qe_error_at(err, QE_E_MISSING, list->where, -1, "a config group without targets");
    }
    if (!json_is_object(group)) return refuse(list, QE_E_TYPE, "config group", name, err);
    json_t *args = json_object_get(group, "input_activations");
    const char *format;
    QE_TRY(qe_json_array(group, "targets", targets, err));
    if (!json_array_size(*targets)) return refuse(list, QE_E_MISSING, "no targets in config group", name, err);
    if (!json_is_object(json_object_get(group, "weights")))
        return refuse(list, QE_E_MISSING, "no weights in config group", name, err);
    QE_TRY(read_weights(list, json_object_get(group, "weights"), s, err));
    if (json_is_object(args)) QE_TRY(read_inputs(list, args, s, err));
    QE_TRY(qe_json_string_or(group, "format", "", &format, err));
    if (!*format) QE_TRY(qe_json_string_or(list->config, "format", "pack-quantized", &format, err));
    if (!strcmp(format, "int-quantized") || (!strcmp(format, "naive-quantized") && s->layout == LAYOUT_PACK))
        s->layout = LAYOUT_INT;
    else if (strcmp(format, "pack-quantized") && strcmp(format, "float-quantized") && strcmp(format, "naive-quantized"))
        return refuse(list, QE_E_UNSUPPORTED, "format", format, err);
    if (s->layout == LAYOUT_INT && (s->bits != 8 || s->strategy == GROUP))
        return refuse(list, QE_E_UNSUPPORTED, "int-quantized weights other than 8 bits by channel or tensor in group",
                      name, err);
    return QE_OK;
}

static qe_status matches_any(const qe_packed_list *list, const json_t *names, const char *module, bool classes,
                             bool *out, qe_error *err) {
    enum { NAMES_LIMIT = 10000 };
    *out = false;
    if (!names || json_is_null(names)) return QE_OK;
    if (!json_is_array(names)) return qe_error_at(err, QE_E_TYPE, list->where, -1, "targets or ignore is not a list");
    if (json_array_size(names) > NAMES_LIMIT)
        return qe_error_at(err, QE_E_LIMIT, list->where, -1, "targets or ignore of %zu names, the limit is %d",
                           json_array_size(names), NAMES_LIMIT);
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        bool matches = false;
        if (!name) return qe_error_at(err, QE_E_TYPE, list->where, -1, "targets or ignore holds more than names");
        if (!strncmp(name, "re:", 3)) QE_TRY(qe_module_match(name + 3, module, list->where, &matches, err));
        else matches = !strcmp(name, module) || (classes && !strcmp(name, "Linear"));
        *out |= matches;
    }
    return QE_OK;
}

/* The settings of a module; *found 0: none, or ignored. */
static qe_status scheme_of(const qe_packed_list *list, const char *module, scheme *out, bool *found, qe_error *err) {
    json_t *groups, *group, *targets = NULL;
    const char *name;
    bool ignored, matches;
    *found = false;
    QE_TRY(qe_json_object(list->config, "config_groups", &groups, err));
    if (!json_object_size(groups)) return qe_error_at(err, QE_E_MISSING, list->where, -1, "config_groups is empty");
    QE_TRY(matches_any(list, json_object_get(list->config, "ignore"), module, false, &ignored, err));
    json_object_foreach(groups, name, group) {
        scheme s;
        QE_TRY(read_group(list, name, group, &s, &targets, err));
        QE_TRY(matches_any(list, targets, module, true, &matches, err));
        if (!matches) continue;
        if (*found && memcmp(&s, out, sizeof s))
            return qe_packed_fail(list, QE_E_MISMATCH, module, err, "two config groups with different settings match");
        *out = s;
        *found = true;
    }
    *found &= !ignored;
    return QE_OK;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */
static int64_t old_words(int64_t k, int32_t bits) { return (k + 32 / bits - 1) / (32 / bits); }

static void unpack_row(const qe_packed_tensor *p, const uint8_t *from, int64_t k, uint8_t *codes) {
    int per_word = 32 / p->bits;
    for (int64_t c = 0; c < k; c++) {
        uint32_t v = p->dense ? qe_packed_field(from, 1, c, p->bits)
                              : qe_packed_field(from + c / per_word * 4, 1, c % per_word, p->bits);
        codes[p->position ? p->position[c] : c] = (uint8_t)v;
    }
}

static qe_status read_codes(const qe_store *store, const qe_store_tensor *t, int64_t n, int64_t row, uint8_t *raw,
                            qe_qtensor *band, qe_error *err) {
    const qe_packed_tensor *p = t->packed;
    const qe_store_tensor *from = p->part[QE_PART_CODES];
    uint8_t *codes = (uint8_t *)band->codes + row * t->columns;
    QE_TRY(qe_packed_rect(store, from, n, 1, 0, (size_t)(from->bytes / (uint64_t)from->rows), raw, err));
    if (p->bits) {
        unpack_row(p, raw, t->columns, codes);
        return QE_OK;
    }
    bool floats = t->type->quant.code == QE_CODE_E4M3;
    for (int64_t c = 0; c < t->columns; c++) {
        if (floats && (raw[c] & 0x7f) == 0x7f) return qe_packed_bad_scale(store, from, n, c, err);
        codes[c] = floats ? raw[c] : raw[c] ^ 0x80;
    }
    return QE_OK;
}

static qe_status read_scales(const qe_store *store, const qe_store_tensor *t, int64_t n, int64_t row, int32_t *words,
                             qe_qtensor *band, qe_error *err) {
    const qe_packed_tensor *p = t->packed;
    const qe_quant *q = &band->quant;
    const qe_store_tensor *from = p->part[QE_PART_SCALES], *zeros = p->part[QE_PART_ZEROS];
    int64_t at = q->group_n ? n : 0, to = (q->group_n ? row : 0) * p->groups;
    size_t each = qe_num_bytes(q->scale);
    QE_TRY(qe_packed_rect(store, from, at, 1, 0, each * (size_t)p->groups, (char *)band->scales + (size_t)to * each, err));
    for (int64_t g = 0; g < p->groups; g++)
        if (qe_packed_unusable(q->scale, band->scales, to + g)) return qe_packed_bad_scale(store, from, at, g, err);
    if (!zeros) return QE_OK;
    uint8_t *out = (uint8_t *)band->zeros + to;
    if (!p->bits) {
        QE_TRY(qe_packed_rect(store, zeros, at, 1, 0, (size_t)p->groups, out, err));
        for (int64_t g = 0; g < p->groups; g++) out[g] ^= 0x80;
        return QE_OK;
    }
    /* Packed along n: the words of this row's fields, two rows of them where a field straddles. */
    int64_t first = n * p->bits / 32, last = (n * p->bits + p->bits - 1) / 32;
    QE_TRY(qe_packed_rect(store, zeros, first, last - first + 1, 0, (size_t)p->groups * 4, words, err));
    for (int64_t g = 0; g < p->groups; g++) {
        uint64_t both = (uint32_t)words[g] | (last > first ? (uint64_t)(uint32_t)words[p->groups + g] << 32 : 0);
        out[g] = (uint8_t)(both >> n * p->bits % 32 & ((1u << p->bits) - 1u));
    }
    return QE_OK;
}

/* Groups of unequal size: the row's group scales, spread over its columns. */
static void spread(const qe_packed_tensor *p, int64_t k, int64_t row, const char *scales, const uint8_t *zeros,
                   qe_qtensor *band) {
    size_t each = qe_num_bytes(band->quant.scale);
    for (int64_t c = 0; c < k; c++) {
        int64_t to = row * k + c;
        memcpy((char *)band->scales + (size_t)to * each, scales + (size_t)p->group_of[c] * each, each);
        if (zeros) ((uint8_t *)band->zeros)[to] = zeros[p->group_of[c]];
    }
}

static qe_status read_row(const qe_store *store, const qe_store_tensor *t, int64_t n, int64_t row, uint8_t *raw,
                          int32_t *words, qe_qtensor *band, qe_error *err) {
    const qe_packed_tensor *p = t->packed;
    QE_TRY(read_codes(store, t, n, row, raw, band, err));
    if (!p->group_of) return read_scales(store, t, n, row, words, band, err);
    /* Scales of one row aside, then spread. */
    qe_qtensor one = *band;
    size_t scale_bytes = ((size_t)p->groups * 4 + 63) & ~(size_t)63;
    char *aside = malloc(scale_bytes + (size_t)p->groups);
    if (!aside) return qe_store_nomem(store, err);
    one.scales = aside;
    one.zeros = band->zeros ? aside + scale_bytes : NULL;
    qe_status status = read_scales(store, t, n, 0, words, &one, err);
    if (!status) spread(p, t->columns, row, aside, one.zeros, band);
    free(aside);
    return status;
}

static qe_status read_rows(const qe_store *store, const qe_store_tensor *t, int64_t first_row, int64_t rows,
                           const int64_t *row_map, qe_qtensor *band, qe_error *err) {
    const qe_packed_tensor *p = t->packed;
    size_t row_bytes = (size_t)(p->part[QE_PART_CODES]->bytes / (uint64_t)p->part[QE_PART_CODES]->rows);
    uint8_t *raw = malloc(row_bytes + 8);
    int32_t *words = malloc((size_t)p->groups * 8 + 8);
    qe_status status = raw && words ? QE_OK : qe_store_nomem(store, err);
    for (int64_t i = 0; i < rows && !status; i++)
        status = read_row(store, t, row_map ? row_map[first_row + i] : first_row + i, i, raw, words, band, err);
    free(words);
    free(raw);
    return status;
}

/* ---- one module ------------------------------------------------------------------------------------------------ */
static qe_status scalar(const qe_packed_list *list, const qe_store_tensor *t, double *out, qe_error *err) {
    uint8_t num;
    void *raw = NULL;
    if (t->rows * t->columns != 1)
        return qe_packed_fail(list, QE_E_SHAPE, t->name, err, "holds %lld values, expected one",
                              (long long)(t->rows * t->columns));
    QE_TRY(qe_packed_scale_num(list, t, &num, err));
    QE_TRY(qe_packed_slurp(list->store, t, &raw, err));
    float value;
    memcpy(&value, raw, num == QE_NUM_F32 ? 4 : 2);
    *out = num == QE_NUM_F32 ? (double)value : (double)qe_num_get(num, raw, 0);
    free(raw);
    return QE_OK;
}

static qe_status bind_static(const qe_packed_list *list, const char *module, const scheme *s, qe_packed_tensor *p,
                             qe_error *err) {
    const qe_store_tensor *scale = qe_packed_find(list, module, input_scale),
                          *zero = qe_packed_find(list, module, input_zero_point);
    double value = 0;
    if (!scale) return qe_packed_fail(list, QE_E_MISSING, module, err, "static inputs, but there is no input_scale");
    QE_TRY(scalar(list, scale, &value, err));
    p->act.scale = (float)value;
    if (!(p->act.scale > 0.0f) || !isfinite(p->act.scale) || !isfinite(1.0f / p->act.scale))
        return qe_packed_fail(list, QE_E_VALUE, scale->name, err, "is %g, it must be positive and so must 1 / it", value);
    list->taken[scale - list->store->tensors] = 1;
    p->act.zero = 128;
    if (!zero) {
        if (!s->act_symmetric)
            return qe_packed_fail(list, QE_E_MISSING, module, err, "asymmetric inputs without input_zero_point");
        return QE_OK;
    }
    void *raw = NULL;
    QE_TRY(qe_packed_type(list, zero, "I8", err));
    QE_TRY(qe_packed_slurp(list->store, zero, &raw, err));
    p->act.zero = *(int8_t *)raw + 128;
    free(raw);
    list->taken[zero - list->store->tensors] = 1;
    return QE_OK;
}

static qe_status bind_act(const qe_packed_list *list, const char *module, const scheme *s, qe_packed_tensor *p,
                          qe_error *err) {
    p->act.mode = s->act_mode;
    if (s->act_mode == QE_ACT_FLOAT) return QE_OK;
    qe_quant *q = &p->act.quant;
    *q = (qe_quant){.code = QE_CODE_INT, .bits = 8, .scale = QE_NUM_F32, .zero_const = 128,
                    .group_n = s->act_mode == QE_ACT_DYNAMIC};
    if (!s->act_symmetric) {
        q->zero = QE_ZERO_POINT;
        q->zero_num = QE_NUM_U8;
        q->zero_const = 0;
    }
    return s->act_mode == QE_ACT_STATIC ? bind_static(list, module, s, p, err) : QE_OK;
}

/* [n, k] of packed codes, which weight_shape states and their width must agree with. */
static qe_status packed_size(const qe_packed_list *list, const char *module, const scheme *s, const qe_store_tensor *codes,
                             int64_t *n, int64_t *k, qe_packed_tensor *p, qe_error *err) {
    const qe_store_tensor *shape = qe_packed_find(list, module, weight_shape);
    void *raw = NULL;
    if (!shape) return qe_packed_fail(list, QE_E_MISSING, module, err, "there is no weight_shape");
    QE_TRY(qe_packed_type(list, shape, "I64 I32", err));
    if (shape->rank != 1 || shape->columns != 2)
        return qe_packed_fail(list, QE_E_RANGE, shape->name, err, "is not two numbers");
    QE_TRY(qe_packed_slurp(list->store, shape, &raw, err));
    int64_t size[2];
    for (int i = 0; i < 2; i++) {
        if (shape->bytes == 16) memcpy(&size[i], (char *)raw + 8 * i, 8);
        else {
            int32_t narrow;
            memcpy(&narrow, (char *)raw + 4 * i, 4);
            size[i] = narrow;
        }
    }
    free(raw);
    if (size[0] <= 0 || size[1] <= 0 || size[1] > INT32_MAX || size[0] > INT32_MAX)
        return qe_packed_fail(list, QE_E_RANGE, shape->name, err, "says %lld x %lld", (long long)size[0],
                              (long long)size[1]);
    list->taken[shape - list->store->tensors] = 1;
    *n = size[0];
    *k = size[1];
    p->bits = (int32_t)s->bits;
    p->dense = codes->columns == (*k * s->bits + 31) / 32;
    if (codes->rank == 2 && codes->rows == *n && (p->dense || codes->columns == old_words(*k, p->bits))) return QE_OK;
    return qe_packed_fail(list, QE_E_MISMATCH, codes->name, err, "is %lld x %lld words, %s says %lld x %lld",
                          (long long)codes->rows, (long long)codes->columns, shape->name, (long long)*n, (long long)*k);
}

static qe_status bind_zeros(const qe_packed_list *list, const char *module, const scheme *s, int64_t n,
                            qe_packed_tensor *p, qe_error *err) {
    const qe_store_tensor *zeros = qe_packed_find(list, module, weight_zero_point);
    qe_quant *q = &p->type.quant;
    if (s->layout == LAYOUT_FLOAT) return QE_OK;
    if (s->symmetric) {
        q->zero_const = (int16_t)(1 << s->bits >> 1);
        return zeros ? qe_packed_fail(list, QE_E_MISMATCH, zeros->name, err, "is there, the settings say symmetric")
                     : QE_OK;
    }
    if (!zeros) return qe_packed_fail(list, QE_E_MISSING, module, err, "asymmetric, but there is no weight_zero_point");
    q->zero = QE_ZERO_POINT;
    q->zero_num = QE_NUM_U8;
    p->part[QE_PART_ZEROS] = zeros;
    if (!p->bits) {
        QE_TRY(qe_packed_type(list, zeros, "I8", err));
        return qe_packed_shape(list, zeros, s->strategy == TENSOR ? 1 : 2, q->group_n ? n : 1, p->groups, err);
    }
    QE_TRY(qe_packed_type(list, zeros, "I32", err));
    return qe_packed_shape(list, zeros, 2, (n * s->bits + 31) / 32, p->groups, err);
}

static qe_status bind_scales(qe_packed_list *list, const char *module, const scheme *s, int64_t n, int64_t k,
                             qe_packed_tensor *p, qe_error *err) {
    const qe_store_tensor *scale = qe_packed_find(list, module, weight_scale);
    qe_quant *q = &p->type.quant;
    if (!scale) return qe_packed_fail(list, QE_E_MISSING, module, err, "there is no weight_scale");
    if (s->strategy == GROUP && (s->group > k || k % s->group))
        return qe_packed_fail(list, QE_E_SHAPE, module, err, "%lld inputs are no whole groups of %lld", (long long)k,
                              (long long)s->group);
    *q = (qe_quant){.code = s->layout == LAYOUT_FLOAT ? QE_CODE_E4M3 : QE_CODE_INT, .bits = (uint8_t)s->bits,
                    .group_n = s->strategy != TENSOR, .group_k = s->strategy == GROUP ? (int32_t)s->group : 0};
    p->group_k = s->strategy == GROUP ? s->group : k;
    p->groups = k / p->group_k;
    p->part[QE_PART_SCALES] = scale;
    QE_TRY(qe_packed_scale_num(list, scale, &q->scale, err));
    if (s->strategy == TENSOR) return qe_packed_shape(list, scale, scale->rank ? 1 : 0, 1, 1, err);
    return qe_packed_shape(list, scale, 2, n, p->groups, err);
}

static qe_status bind_module(qe_packed_list *list, const char *module, const scheme *s, const qe_store_tensor *codes,
                             qe_error *err) {
    int64_t n = codes->rows, k = codes->columns;
    qe_packed_tensor *p = qe_packed_new(list, err);
    if (!p) return QE_E_NOMEM;
    p->read = read_rows;
    p->part[QE_PART_CODES] = codes;
    if (s->layout == LAYOUT_PACK) {
        QE_TRY(qe_packed_type(list, codes, "I32", err));
        QE_TRY(packed_size(list, module, s, codes, &n, &k, p, err));
    } else if (strcmp(codes->type->name, s->layout == LAYOUT_INT ? "I8" : "F8_E4M3")) {
        return qe_packed_fail(list, QE_E_MISMATCH, codes->name, err, "is of type %s, the settings say %s",
                              codes->type->name, s->layout == LAYOUT_INT ? "int8" : "fp8");
    }
    if (!n || !k || codes->rank != 2) return qe_packed_fail(list, QE_E_SHAPE, codes->name, err, "is no matrix");
    QE_TRY(bind_scales(list, module, s, n, k, p, err));
    QE_TRY(bind_zeros(list, module, s, n, p, err));
    QE_TRY(bind_act(list, module, s, p, err));
    QE_TRY(qe_packed_order(list, module, qe_packed_find(list, module, weight_g_idx), s->act_order, k, p, err));
    return qe_packed_add(list, module, s->layout == LAYOUT_PACK ? "CT-INT" : s->layout == LAYOUT_INT ? "CT-INT8" : "CT-FP8",
                         n, k, p, err);
}

static qe_status bind_kind(qe_packed_list *list, const char *suffix, int64_t *found, qe_error *err) {
    char module[QE_MODULE_MAX];
    bool packs = !strcmp(suffix, weight_packed);
    for (int64_t at = 0, i; (i = qe_packed_next(list, suffix, &at, module)) >= 0;) {
        const qe_store_tensor *codes = &list->store->tensors[i];
        scheme s;
        bool named;
        bool scaled = qe_packed_find(list, module, weight_scale) != NULL;
        if (!packs && !scaled && codes->rank != 2) continue;
        QE_TRY(scheme_of(list, module, &s, &named, err));
        bool quantized = packs || scaled;
        if (!named && quantized)
            return qe_packed_fail(list, QE_E_MISMATCH, codes->name, err, "is quantized, the settings say it is not");
        if (named && !quantized && strstr(module, "_proj"))
            return qe_packed_fail(list, QE_E_MISMATCH, codes->name, err, "is not quantized, the settings say it is");
        if (!quantized) continue;
        if (packs != (s.layout == LAYOUT_PACK))
            return qe_packed_fail(list, QE_E_MISMATCH, codes->name, err, "is stored unlike the format in the settings");
        QE_TRY(bind_module(list, module, &s, codes, err));
        ++*found;
    }
    return QE_OK;
}

qe_status qe_compressed_bind(qe_packed_list *list, qe_error *err) {
    static const char *const parts[] = {weight_scale, weight_zero_point, weight_shape, weight_g_idx, NULL};
    const json_t *transforms = json_object_get(list->config, "transform_config");
    int64_t found = 0;
    scheme s;
    bool named;
    if (json_object_size(transforms) || json_array_size(transforms))
        return qe_error_at(err, QE_E_UNSUPPORTED, list->where, -1, "transform_config is not empty");
    QE_TRY(scheme_of(list, "", &s, &named, err));           /* the settings alone */
    QE_TRY(bind_kind(list, weight_packed, &found, err));
    QE_TRY(bind_kind(list, ".weight", &found, err));
    QE_TRY(qe_packed_leftovers(list, parts, "codes", err));
    if (found) return QE_OK;
    return qe_error_at(err, QE_E_MISMATCH, list->where, -1, "the settings say compressed-tensors, no tensor is");
}
