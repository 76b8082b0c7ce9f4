/* write_native.c -- the engine's own form (wts_native.c), which holds every scheme. */
#include <stdlib.h>
#include <string.h>

#include "format/native.h"
#include "format/write_weights.h"

typedef char qe_native_parts_fit[(int)QE_PART_COUNT == (int)QE_WEIGHT_PARTS ? 1 : -1];

static qe_status check(const qe_weight_out *w, qe_error *err) {
    return qe_quant_check(&w->form.quant, w->form.rows, w->form.k, err);
}

static qe_native_array array_of(const qe_weight_out *w, int part) {
    bool optional = part == QE_PART_ORDER ? w->form.order != NULL : part == QE_PART_COL_SCALE ? w->form.col_scale != NULL
                                                                  : w->form.act.mode == QE_ACT_STATIC;
    return qe_native_part(&w->form.quant, (qe_part)part, w->form.rows, w->form.k, optional);
}

static qe_status declare(qe_out *out, qe_weight_out *w, qe_error *err) {
    for (int i = 0; i < QE_PART_COUNT; i++) {
        qe_native_array a = array_of(w, i);
        if (!a.dtype) continue;
        size_t bits = (size_t)(a.dtype[0] == 'U' && a.dtype[1] == '8' ? 8 : 8 * a.row_bytes / a.stored_columns);
        QE_TRY(qe_weight_declare(out, w, i, qe_native_suffix[i], a.dtype, 2, a.rows, a.stored_columns, bits, err));
    }
    return QE_OK;
}

static qe_status put(qe_out *out, const qe_weight_out *w, const qe_qtensor *t, qe_error *err) {
    for (int i = 0; i < QE_PART_COUNT; i++) {
        qe_native_array a = array_of(w, i);
        if (!a.dtype) continue;
        if (i == QE_PART_INPUT) {
            const float input[2] = {t->act.scale, (float)t->act.zero};
            QE_TRY(qe_out_put(out, w->index[i], 0, input, sizeof input, err));
            continue;
        }
        uint8_t *row = malloc((size_t)a.row_bytes + 1);
        if (!row) return qe_out_nomem(out, err);
        qe_status status = QE_OK;
        for (int64_t r = 0; r < a.rows && !status; r++) {
            qe_native_pack_row(&a, qe_native_pointer(t, (qe_part)i), r, row);
            status = qe_out_put(out, w->index[i], (uint64_t)(r * a.row_bytes), row, (size_t)a.row_bytes, err);
        }
        free(row);
        QE_TRY(status);
    }
    return QE_OK;
}

static json_t *act_settings(const qe_act *act) {
    char text[96];
    if (act->mode == QE_ACT_FLOAT) return json_null();
    qe_quant_name(&act->quant, text, sizeof text);
    return json_pack("{s:s, s:s}", "mode", act->mode == QE_ACT_DYNAMIC ? "dynamic" : "static", "quant", text);
}

static json_t *settings(const qe_weight_out *weights, int64_t count, const char *const *plain, int64_t plain_count) {
    (void)plain, (void)plain_count;
    json_t *map = json_object();
    bool ok = map != NULL;
    for (int64_t i = 0; i < count && ok; i++) {
        const qe_qtensor *f = &weights[i].form;
        char text[96];
        qe_quant_name(&f->quant, text, sizeof text);
        ok = !json_object_set_new(map, weights[i].module,
                                  json_pack("{s:s, s:I, s:I, s:o, s:i, s:i}", "quant", text, "n", (json_int_t)f->rows, "k",
                                            (json_int_t)f->k, "act", act_settings(&f->act), "hadamard", f->hadamard,
                                            "facts", (int)f->facts));
    }
    json_t *out = ok ? json_pack("{s:s, s:i, s:O}", "quant_method", "qengine", "version", 1, "weights", map) : NULL;
    json_decref(map);
    return out;
}

const qe_weight_format qe_format_native = {"qengine", "this engine alone: every scheme, column scales, rotations",
                                           QE_OUT_SAFETENSORS, check, declare, put, settings};
