/* wts_gptq_awq.c -- GPTQ and AWQ checkpoints. Both store W[n, k] = scales[g, n] * (q - z) with outputs side by side:
 *
 *   GPTQ  qweight I32 [k * b / 32, n]   codes along k, LSB first       qzeros I32 [G, n * b / 32] along n, LSB first
 *   AWQ   qweight I32 [k, n / 8]        codes along n, interleaved     qzeros I32 [G, n / 8], interleaved likewise
 *
 * scales F16 or BF16 [G, n]. GPTQ version 1 stores z - 1, word by word; g_idx[k] names each column's group. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "format/packed.h"

static const char qweight[] = ".qweight", qzeros[] = ".qzeros", scales[] = ".scales", g_idx[] = ".g_idx";

typedef struct settings {
    int64_t bits, group;            /* -1: one group */
    bool    symmetric, act_order, skipped, first_version, awq;
} settings;

/* ---- settings -------------------------------------------------------------------------------------------------- */
static qe_status check_group(const qe_packed_list *list, int64_t group, qe_error *err) {
    if (group == -1 || (group > 0 && group <= INT32_MAX)) return QE_OK;
    return qe_error_at(err, QE_E_RANGE, list->where, -1, "group_size is %lld, legal are -1 and what divides the inputs",
                       (long long)group);
}

static qe_status either(const json_t *config, const char *key, const char *other, int64_t *out, qe_error *err) {
    const char *name = qe_json_has(config, key) || !qe_json_has(config, other) ? key : other;
    return qe_json_int(config, name, INT32_MIN, INT32_MAX, out, err);
}

static qe_status read_gptq(const qe_packed_list *list, settings *s, qe_error *err) {
    const char *format, *pack;
    const json_t *config = list->config;
    QE_TRY(qe_json_int(config, "bits", INT32_MIN, INT32_MAX, &s->bits, err));
    QE_TRY(qe_json_int(config, "group_size", INT64_MIN, INT64_MAX, &s->group, err));
    QE_TRY(check_group(list, s->group, err));
    QE_TRY(qe_json_bool_or(config, "sym", true, &s->symmetric, err));
    QE_TRY(qe_json_bool_or(config, "desc_act", false, &s->act_order, err));
    QE_TRY(qe_json_string_or(config, qe_json_has(config, "checkpoint_format") ? "checkpoint_format" : "format", "gptq",
                             &format, err));
    QE_TRY(qe_json_string_or(config, "pack_dtype", "int32", &pack, err));
    s->first_version = !strcmp(format, "gptq");
    char text[QE_TEXT_MAX];
    if (!s->first_version && strcmp(format, "gptq_v2"))
        return qe_error_at(err, QE_E_UNSUPPORTED, list->where, -1, "checkpoint_format \"%s\"; read are gptq, gptq_v2",
                           qe_escape(format, strlen(format), text, sizeof text));
    if (strcmp(pack, "int32"))
        return qe_error_at(err, QE_E_UNSUPPORTED, list->where, -1, "pack_dtype is not int32");
    return QE_OK;
}

static qe_status check_bits(const qe_packed_list *list, int64_t bits, qe_error *err) {
    if (bits == 2 || bits == 3 || bits == 4 || bits == 8) return QE_OK;
    return qe_error_at(err, QE_E_RANGE, list->where, -1, "bits is %lld, legal are 2, 3, 4, 8", (long long)bits);
}

/* "-:pattern" leaves modules out, "+:pattern" or "pattern" overrides; the negative ones come first, first match wins. */
static qe_status read_dynamic(const qe_packed_list *list, const char *module, settings *s, qe_error *err) {
    json_t *rules = json_object_get(list->config, "dynamic"), *rule;
    const char *key;
    if (!rules || json_is_null(rules)) return QE_OK;
    if (!json_is_object(rules)) return qe_error_at(err, QE_E_TYPE, list->where, -1, "dynamic is not a map");
    for (int pass = 0; pass < 2; pass++) {
        json_object_foreach(rules, key, rule) {
            bool negative = !strncmp(key, "-:", 2), matches;
            if (negative != !pass) continue;
            QE_TRY(qe_module_match(negative || !strncmp(key, "+:", 2) ? key + 2 : key, module, list->where, &matches, err));
            if (!matches) continue;
            s->skipped = negative;
            if (negative) return QE_OK;
            if (!json_is_object(rule)) return qe_error_at(err, QE_E_TYPE, list->where, -1, "dynamic holds no maps");
            QE_TRY(qe_json_int_or(rule, "bits", INT32_MIN, INT32_MAX, s->bits, &s->bits, err));
            QE_TRY(qe_json_int_or(rule, "group_size", INT64_MIN, INT64_MAX, s->group, &s->group, err));
            QE_TRY(qe_json_bool_or(rule, "sym", s->symmetric, &s->symmetric, err));
            QE_TRY(qe_json_bool_or(rule, "desc_act", s->act_order, &s->act_order, err));
            return check_group(list, s->group, err);
        }
    }
    return QE_OK;
}

static qe_status read_awq(const qe_packed_list *list, settings *s, qe_error *err) {
    const char *version;
    bool zero_point;
    QE_TRY(either(list->config, "bits", "w_bit", &s->bits, err));
    QE_TRY(either(list->config, "group_size", "q_group_size", &s->group, err));
    QE_TRY(check_group(list, s->group, err));
    QE_TRY(qe_json_bool_or(list->config, "zero_point", true, &zero_point, err));
    QE_TRY(qe_json_string_or(list->config, "version", "gemm", &version, err));
    s->symmetric = !zero_point;
    s->awq = true;
    char text[QE_TEXT_MAX];
    if (strcmp(version, "gemm") && strcmp(version, "GEMM"))
        return qe_error_at(err, QE_E_UNSUPPORTED, list->where, -1, "AWQ version \"%s\"; read is gemm",
                           qe_escape(version, strlen(version), text, sizeof text));
    if (s->bits != 4)
        return qe_error_at(err, QE_E_UNSUPPORTED, list->where, -1, "AWQ with bits %lld; read is 4", (long long)s->bits);
    return QE_OK;
}

static qe_status awq_skips(const qe_packed_list *list, const char *module, bool *skips, qe_error *err) {
    enum { SKIP_LIMIT = 10000 };
    const json_t *names = json_object_get(list->config, "modules_to_not_convert");
    *skips = false;
    if (!names || json_is_null(names)) return QE_OK;
    if (!json_is_array(names))
        return qe_error_at(err, QE_E_TYPE, list->where, -1, "modules_to_not_convert is not a list of names");
    if (json_array_size(names) > SKIP_LIMIT)
        return qe_error_at(err, QE_E_LIMIT, list->where, -1, "modules_to_not_convert holds %zu names, the limit is %d",
                           json_array_size(names), SKIP_LIMIT);
    for (size_t i = 0; i < json_array_size(names); i++) {
        const json_t *name = json_array_get(names, i);
        if (!json_is_string(name))
            return qe_error_at(err, QE_E_TYPE, list->where, -1, "modules_to_not_convert is not a list of names");
        *skips |= strstr(module, json_string_value(name)) != NULL;
    }
    return QE_OK;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */
static const int awq_nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};      /* which nibble holds output 8c + j */

static uint32_t word_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Zero point of group g, output n of the slab. */
static uint32_t zero_of(const qe_packed_tensor *p, const qe_slab *s, bool awq, int64_t g, int64_t n) {
    const uint8_t *row = s->zeros + (size_t)g * s->zero_ld;
    uint32_t mask = (1u << p->bits) - 1u;
    if (awq) return word_at(row + n / 8 * 4) >> 4 * awq_nibble[n % 8] & 15u;
    if (!p->zero_add) return qe_packed_field(row, 1, n, p->bits);
    if (32 % p->bits) return (qe_packed_field(row, 1, n, p->bits) + 1u) & mask;     /* fields straddle words */
    static const uint32_t ones[9] = {[2] = 0x55555555u, [4] = 0x11111111u, [8] = 0x01010101u};
    int per_word = 32 / p->bits;
    uint32_t word = word_at(row + n / per_word * 4) + ones[p->bits];    /* undoes the writer's word-wise subtraction */
    return word >> p->bits * (int)(n % per_word) & mask;
}

static qe_status row_scales(const qe_store *store, const qe_store_tensor *t, const qe_slab *s, bool awq, int64_t n,
                            int64_t row, qe_qtensor *band, qe_error *err) {
    const qe_packed_tensor *p = t->packed;
    const qe_quant *q = &band->quant;
    int64_t count = p->group_of ? t->columns : p->groups, at = row * count, in = n - s->first;
    for (int64_t j = 0; j < count; j++) {
        int64_t g = p->group_of ? p->group_of[j] : j;
        const uint8_t *from = s->scales + (size_t)g * s->scale_ld;
        memcpy((char *)band->scales + (at + j) * (int64_t)qe_num_bytes(q->scale), from + in * (int64_t)qe_num_bytes(q->scale),
               qe_num_bytes(q->scale));
        if (qe_packed_unusable(q->scale, band->scales, at + j))
            return qe_packed_bad_scale(store, p->part[QE_PART_SCALES], g, n, err);
        if (!p->part[QE_PART_ZEROS]) continue;
        uint32_t zero = zero_of(p, s, awq, g, in);
        if (q->zero == QE_ZERO_POINT) ((uint8_t *)band->zeros)[at + j] = (uint8_t)zero;
        else if (zero != (uint32_t)q->zero_const)
            return qe_error_at(err, QE_E_MISMATCH, store->files[t->file].name, -1,
                               "\"%s\": the settings say symmetric, but the zero point of group %lld, output %lld is %u, "
                               "not %d (is checkpoint_format right?)", p->part[QE_PART_ZEROS]->name, (long long)g,
                               (long long)n, zero, q->zero_const);
    }
    return QE_OK;
}

static void row_codes(const qe_store_tensor *t, const qe_slab *s, bool awq, int64_t n, uint8_t *codes) {
    const qe_packed_tensor *p = t->packed;
    int64_t in = n - s->first;
    const uint8_t *from = s->codes + (awq ? in / 8 * 4 : in * 4);
    for (int64_t c = 0; c < t->columns; c++) {
        uint32_t v = awq ? word_at(from + (size_t)c * s->code_ld) >> 4 * awq_nibble[in % 8] & 15u
                         : qe_packed_field(from, (int64_t)(s->code_ld / 4), c, p->bits);
        codes[p->position ? p->position[c] : c] = (uint8_t)v;
    }
}

static qe_status read_columns(const qe_store *store, const qe_store_tensor *t, bool awq, int64_t first_row, int64_t rows,
                              const int64_t *row_map, qe_qtensor *band, qe_error *err) {
    for (int64_t i = 0; i < rows; i++) {
        int64_t n = row_map ? row_map[first_row + i] : first_row + i;
        const qe_slab *s;
        QE_TRY(qe_slab_lock(store, t, n, awq ? 8 : 1, t->packed->bits, &s, err));
        qe_status status = row_scales(store, t, s, awq, n, i, band, err);
        if (!status) row_codes(t, s, awq, n, (uint8_t *)band->codes + i * t->columns);
        qe_slab_unlock(store);
        QE_TRY(status);
    }
    return QE_OK;
}

static qe_status read_gptq_rows(const qe_store *store, const qe_store_tensor *t, int64_t first_row, int64_t rows,
                                const int64_t *row_map, qe_qtensor *band, qe_error *err) {
    return read_columns(store, t, false, first_row, rows, row_map, band, err);
}

static qe_status read_awq_rows(const qe_store *store, const qe_store_tensor *t, int64_t first_row, int64_t rows,
                               const int64_t *row_map, qe_qtensor *band, qe_error *err) {
    return read_columns(store, t, true, first_row, rows, row_map, band, err);
}

/* ---- one module ------------------------------------------------------------------------------------------------ */
static qe_status check_k(const qe_packed_list *list, const char *module, const settings *s, int64_t n, int64_t k,
                         qe_error *err) {
    if (!n || !k || k * s->bits % 32 || n * s->bits % 32)
        return qe_packed_fail(list, QE_E_SHAPE, module, err, "%lld x %lld codes of %lld bits are no whole words",
                              (long long)n, (long long)k, (long long)s->bits);
    if (s->group > 0 && (s->group > k || k % s->group))
        return qe_packed_fail(list, QE_E_SHAPE, module, err, "%lld inputs are no whole groups of %lld", (long long)k,
                              (long long)s->group);
    return QE_OK;
}

static qe_status bind_zeros(const qe_packed_list *list, const char *module, const settings *s, int64_t n,
                            qe_packed_tensor *p, qe_error *err) {
    const qe_store_tensor *zeros = qe_packed_find(list, module, qzeros);
    qe_quant *q = &p->type.quant;
    p->part[QE_PART_ZEROS] = zeros;
    if (!zeros && !s->symmetric)
        return qe_packed_fail(list, QE_E_MISSING, module, err, "asymmetric, but there is no qzeros");
    if (s->symmetric) {
        q->zero_const = (int16_t)(1 << s->bits >> 1);
    } else {
        q->zero = QE_ZERO_POINT;
        q->zero_num = QE_NUM_U8;
    }
    if (!zeros) return QE_OK;
    QE_TRY(qe_packed_type(list, zeros, "I32", err));
    return qe_packed_shape(list, zeros, 2, p->groups, n * s->bits / 32, err);
}

static qe_status bind_module(qe_packed_list *list, const char *module, const settings *s, const qe_store_tensor *codes,
                             qe_error *err) {
    QE_TRY(qe_packed_type(list, codes, "I32", err));
    const qe_store_tensor *scale = qe_packed_find(list, module, scales);
    if (codes->rank != 2)
        return qe_packed_fail(list, QE_E_SHAPE, codes->name, err, "has rank %d, expected 2", codes->rank);
    if (!scale) return qe_packed_fail(list, QE_E_MISSING, module, err, "there is no scales");
    /* The one number that a wrong transposition of the codes cannot hide: scales have one column an output. */
    int64_t k = s->awq ? codes->rows : codes->rows * 32 / s->bits, n = s->awq ? codes->columns * 8 : codes->columns;
    QE_TRY(check_k(list, module, s, n, k, err));
    qe_packed_tensor *p = qe_packed_new(list, err);
    if (!p) return QE_E_NOMEM;
    p->read = s->awq ? read_awq_rows : read_gptq_rows;
    p->bits = (int32_t)s->bits;
    p->zero_add = s->first_version;
    p->group_k = s->group > 0 ? s->group : k;
    p->groups = k / p->group_k;
    p->part[QE_PART_CODES] = codes;
    p->part[QE_PART_SCALES] = scale;
    qe_quant *q = &p->type.quant;
    *q = (qe_quant){.code = QE_CODE_INT, .bits = (uint8_t)s->bits, .group_n = 1,
                    .group_k = s->group > 0 ? (int32_t)s->group : 0};
    QE_TRY(qe_packed_scale_num(list, scale, &q->scale, err));
    QE_TRY(qe_packed_shape(list, scale, 2, p->groups, n, err));
    QE_TRY(bind_zeros(list, module, s, n, p, err));
    QE_TRY(qe_packed_order(list, module, qe_packed_find(list, module, g_idx), s->act_order, k, p, err));
    return qe_packed_add(list, module, s->awq ? "AWQ" : "GPTQ", n, k, p, err);
}

/* A linear of a layer that the settings quantize, but that is stored as it was. */
static qe_status check_plain(const qe_packed_list *list, const settings *base, qe_error *err) {
    char module[QE_MODULE_MAX];
    for (int64_t at = 0, i; (i = qe_packed_next(list, "_proj.weight", &at, module)) >= 0;) {
        settings s = *base;
        memcpy(module + strlen(module), "_proj", 6);
        if (s.awq) QE_TRY(awq_skips(list, module, &s.skipped, err));
        else QE_TRY(read_dynamic(list, module, &s, err));
        if (!s.skipped)
            return qe_packed_fail(list, QE_E_MISMATCH, list->store->tensors[i].name, err,
                                  "is stored as %s, the settings say it is quantized", list->store->tensors[i].type->name);
    }
    return QE_OK;
}

static qe_status bind_all(qe_packed_list *list, const settings *base, qe_error *err) {
    static const char *const parts[] = {qzeros, scales, g_idx, NULL};
    char module[QE_MODULE_MAX];
    int64_t found = 0;
    for (int64_t at = 0, i; (i = qe_packed_next(list, qweight, &at, module)) >= 0; found++) {
        settings s = *base;
        if (s.awq) QE_TRY(awq_skips(list, module, &s.skipped, err));
        else QE_TRY(read_dynamic(list, module, &s, err));
        if (s.skipped)
            return qe_packed_fail(list, QE_E_MISMATCH, module, err, "is packed, the settings say it is not");
        QE_TRY(check_bits(list, s.bits, err));
        QE_TRY(bind_module(list, module, &s, &list->store->tensors[i], err));
    }
    QE_TRY(qe_packed_leftovers(list, parts, "qweight", err));
    if (!found)
        return qe_error_at(err, QE_E_MISMATCH, list->where, -1, "the settings say %s, no tensor ends in .qweight",
                           base->awq ? "awq" : "gptq");
    return check_plain(list, base, err);
}

qe_status qe_gptq_bind(qe_packed_list *list, qe_error *err) {
    settings s = {0};
    QE_TRY(read_gptq(list, &s, err));
    QE_TRY(check_bits(list, s.bits, err));
    return bind_all(list, &s, err);
}

qe_status qe_awq_bind(qe_packed_list *list, qe_error *err) {
    settings s = {0};
    bool skips;
    QE_TRY(read_awq(list, &s, err));
    QE_TRY(awq_skips(list, "", &skips, err));
    return bind_all(list, &s, err);
}
