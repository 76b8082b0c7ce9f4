/* write_compressed.c -- compressed-tensors: pack-quantized integer weights (1 to 8 bits; scale by tensor, channel or group;
 * symmetric or with zero points; column order as g_idx), and int-quantized where both weight and input are int8. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/write_weights.h"

enum { CODES, SCALE, ZERO, SHAPE, ORDER, IN_SCALE, IN_ZERO };

static bool plain_int8(const qe_weight_out *w) {
    return w->form.quant.bits == 8 && !w->form.quant.group_k && w->form.act.mode != QE_ACT_FLOAT;
}

static qe_status check(const qe_weight_out *w, qe_error *err) {
    const qe_quant *q = &w->form.quant, *x = &w->form.act.quant;
    const char *why = NULL;
    if (q->code != QE_CODE_INT || q->super != QE_NUM_ONE || q->scale_log2 || !qe_weight_scale_type(q))
        why = "only integer codes with one level of float scales";
    else if (q->zero == QE_ZERO_REAL || (q->zero == QE_ZERO_POINT && q->zero_num != QE_NUM_U8) ||
             (q->zero == QE_ZERO_CONST && q->zero_const != 1 << q->bits >> 1))
        why = "only symmetric codes and integer zero points";
    else if (q->group_n > 1 || (q->group_n == 0 && q->group_k)) why = "only scales by tensor, channel or group";
    else if (q->group_n == 0 && q->zero == QE_ZERO_POINT && !plain_int8(w)) why = "no zero point of a whole tensor";
    else if (w->form.col_scale || w->form.hadamard) why = "no column scales or rotations";
    else if (w->form.act.mode != QE_ACT_FLOAT && (x->code != QE_CODE_INT || x->bits != 8 || x->group_k))
        why = "only int8 inputs by token or tensor";
    return why ? qe_error_set(err, QE_E_UNSUPPORTED, "%s: compressed-tensors holds %s", w->module, why) : QE_OK;
}

static qe_status declare(qe_out *out, qe_weight_out *w, qe_error *err) {
    const qe_quant *q = &w->form.quant;
    int64_t n = w->form.rows, k = w->form.k, groups = qe_weight_groups(k, q->group_k), rows = q->group_n ? n : 1;
    bool scalar = !q->group_n;
    size_t scale_bits = 8 * qe_num_bytes(q->scale);
    if (plain_int8(w)) {
        QE_TRY(qe_weight_declare(out, w, CODES, ".weight", "I8", 2, n, k, 8, err));
        if (q->zero == QE_ZERO_POINT)
            QE_TRY(qe_weight_declare(out, w, ZERO, ".weight_zero_point", "I8", scalar ? 1 : 2, rows, 1, 8, err));
    } else {
        QE_TRY(qe_weight_declare(out, w, CODES, ".weight_packed", "I32", 2, n, (k * q->bits + 31) / 32, 32, err));
        QE_TRY(qe_weight_declare(out, w, SHAPE, ".weight_shape", "I64", 1, 1, 2, 64, err));
        if (q->zero == QE_ZERO_POINT)
            QE_TRY(qe_weight_declare(out, w, ZERO, ".weight_zero_point", "I32", 2, (n * q->bits + 31) / 32, groups, 32, err));
        if (w->form.order) QE_TRY(qe_weight_declare(out, w, ORDER, ".weight_g_idx", "I32", 1, 1, k, 32, err));
    }
    QE_TRY(qe_weight_declare(out, w, SCALE, ".weight_scale", qe_weight_scale_type(q), scalar ? 1 : 2, rows, groups,
                             scale_bits, err));
    if (w->form.act.mode != QE_ACT_STATIC) return QE_OK;
    QE_TRY(qe_weight_declare(out, w, IN_SCALE, ".input_scale", "F32", 1, 1, 1, 32, err));
    if (w->form.act.quant.zero == QE_ZERO_CONST) return QE_OK;
    return qe_weight_declare(out, w, IN_ZERO, ".input_zero_point", "I8", 1, 1, 1, 8, err);
}

/* Codes of one row in the caller's column order, as a stream of words or as signed bytes. */
static void encode_row(const qe_weight_out *w, const qe_qtensor *t, int64_t row, size_t row_bytes, uint8_t *out) {
    const uint8_t *codes = (const uint8_t *)t->codes + row * t->k;
    memset(out, 0, row_bytes);
    for (int64_t j = 0; j < t->k; j++) {
        int64_t c = t->order ? t->order[j] : j;
        if (plain_int8(w)) out[c] = codes[j] ^ 0x80;
        else qe_weight_field((uint32_t *)(void *)out, 1, c, t->quant.bits, codes[j]);
    }
}

static qe_status put_zeros(qe_out *out, const qe_weight_out *w, const qe_qtensor *t, qe_error *err) {
    size_t bytes = (size_t)qe_out_bytes(out, w->index[ZERO]);
    int64_t groups = qe_weight_groups(t->k, t->quant.group_k), rows = t->quant.group_n ? t->n : 1;
    const uint8_t *zeros = t->zeros;
    uint8_t *raw = calloc(1, bytes + 8);
    if (!raw) return qe_out_nomem(out, err);
    for (int64_t n = 0; n < rows; n++)
        for (int64_t g = 0; g < groups; g++) {
            if (plain_int8(w)) raw[n * groups + g] = zeros[n * groups + g] ^ 0x80;
            else qe_weight_field((uint32_t *)(void *)raw + g, groups, n, t->quant.bits, zeros[n * groups + g]);
        }
    qe_status status = qe_out_put(out, w->index[ZERO], 0, raw, bytes, err);
    free(raw);
    return status;
}

static qe_status put_order(qe_out *out, const qe_weight_out *w, const qe_qtensor *t, qe_error *err) {
    int32_t *groups = malloc((size_t)t->k * sizeof *groups);
    if (!groups) return qe_out_nomem(out, err);
    qe_weight_group_index(t, groups);
    qe_status status = qe_out_put(out, w->index[ORDER], 0, groups, (size_t)t->k * sizeof *groups, err);
    free(groups);
    return status;
}

static qe_status put(qe_out *out, const qe_weight_out *w, const qe_qtensor *t, qe_error *err) {
    size_t row_bytes = (size_t)(qe_out_bytes(out, w->index[CODES]) / (uint64_t)t->n);
    uint8_t *row = malloc(row_bytes + 8);
    if (!row) return qe_out_nomem(out, err);
    qe_status status = QE_OK;
    for (int64_t n = 0; n < t->n && !status; n++) {
        encode_row(w, t, n, row_bytes, row);
        status = qe_out_put(out, w->index[CODES], (uint64_t)n * row_bytes, row, row_bytes, err);
    }
    free(row);
    QE_TRY(status);
    QE_TRY(qe_out_put(out, w->index[SCALE], 0, t->scales, (size_t)qe_out_bytes(out, w->index[SCALE]), err));
    if (w->index[SHAPE] >= 0) {
        const int64_t shape[2] = {t->n, t->k};
        QE_TRY(qe_out_put(out, w->index[SHAPE], 0, shape, sizeof shape, err));
    }
    if (w->index[ZERO] >= 0) QE_TRY(put_zeros(out, w, t, err));
    if (w->index[ORDER] >= 0) QE_TRY(put_order(out, w, t, err));
    if (w->index[IN_SCALE] >= 0) QE_TRY(qe_out_put(out, w->index[IN_SCALE], 0, &t->act.scale, 4, err));
    if (w->index[IN_ZERO] < 0) return QE_OK;
    int8_t zero = (int8_t)(t->act.zero - 128);
    return qe_out_put(out, w->index[IN_ZERO], 0, &zero, 1, err);
}

/* ---- settings ------------------------------------------------------------------------------------------------------ */
static const char *strategy(const qe_quant *q) { return !q->group_n ? "tensor" : q->group_k ? "group" : "channel"; }

static json_t *group_settings(const qe_weight_out *w) {
    const qe_quant *q = &w->form.quant;
    bool dynamic = w->form.act.mode == QE_ACT_DYNAMIC;
    json_t *inputs = json_null();
    if (w->form.act.mode != QE_ACT_FLOAT)
        inputs = json_pack("{s:i, s:s, s:b, s:s, s:b}", "num_bits", 8, "type", "int", "symmetric",
                           w->form.act.quant.zero == QE_ZERO_CONST, "strategy", dynamic ? "token" : "tensor", "dynamic",
                           dynamic);
    return json_pack("{s:[], s:{s:i, s:s, s:b, s:s, s:o, s:b, s:o}, s:o, s:n, s:s}", "targets", "weights", "num_bits",
                     q->bits, "type", "int", "symmetric", q->zero == QE_ZERO_CONST, "strategy", strategy(q), "group_size",
                     q->group_k ? json_integer(q->group_k) : json_null(), "dynamic", 0, "actorder",
                     w->form.order ? json_string("group") : json_null(), "input_activations", inputs,
                     "output_activations", "format", plain_int8(w) ? "int-quantized" : "pack-quantized");
}

static bool same_group(const qe_weight_out *a, const qe_weight_out *b) {
    return !memcmp(&a->form.quant, &b->form.quant, sizeof a->form.quant) && a->form.act.mode == b->form.act.mode &&
           !memcmp(&a->form.act.quant, &b->form.act.quant, sizeof a->form.act.quant) && !a->form.order == !b->form.order;
}

/* One config group for each kind of weight; the only kind targets every linear, several name their modules. */
static json_t *settings(const qe_weight_out *weights, int64_t count, const char *const *plain, int64_t plain_count) {
    json_t *groups = json_object(), *ignore = json_array();
    bool ok = groups && ignore, mixed = false;
    for (int64_t i = 0; i < plain_count; i++) ok &= !json_array_append_new(ignore, json_string(plain[i]));
    for (int64_t i = 1; i < count; i++) mixed |= !same_group(&weights[0], &weights[i]);
    for (int64_t i = 0; i < count && ok; i++) {
        int64_t first = 0;
        char name[32];
        while (!same_group(&weights[first], &weights[i])) first++;
        snprintf(name, sizeof name, "group_%lld", (long long)first);
        if (first == i) ok = !json_object_set_new(groups, name, group_settings(&weights[i]));
        json_t *targets = json_object_get(json_object_get(groups, name), "targets");
        if (mixed || !i) ok &= targets && !json_array_append_new(targets, json_string(mixed ? weights[i].module : "Linear"));
    }
    const char *format = count && plain_int8(&weights[0]) ? "int-quantized" : "pack-quantized";
    for (int64_t i = 1; i < count; i++)
        if (plain_int8(&weights[i]) != plain_int8(&weights[0])) format = "mixed-precision";
    if (ok)
        return json_pack("{s:s, s:s, s:s, s:n, s:n, s:o, s:o}", "quant_method", "compressed-tensors", "format", format,
                         "quantization_status", "compressed", "global_compression_ratio", "kv_cache_scheme", "ignore",
                         ignore, "config_groups", groups);
    json_decref(groups);
    json_decref(ignore);
    return NULL;
}

const qe_weight_format qe_format_compressed = {"compressed-tensors", "vLLM, transformers: int weights, int8 or float inputs",
                                               QE_OUT_SAFETENSORS, check, declare, put, settings};
