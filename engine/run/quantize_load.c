/* quantize_load.c -- float weights rounded band by band while an engine packs them: nothing is written, and nobody holds a
 * whole weight. */
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "run/recipe_internal.h"

struct qe_load_quantizer {
    const qe_model *model;
    qe_recipe      *recipe;
};

qe_status qe_weight_floats(const qe_model *model, const qe_weight_ref *ref, int64_t first_row, int64_t rows, float *w,
                           qe_error *err) {
    qe_qtensor band;
    const qe_quant stored = *qe_store_quant(qe_store_tensor_at(model->store, ref->tensor));
    size_t bytes = qe_qtensor_bytes(&stored, rows, ref->k, 0);
    void *block = qe_os_alloc(bytes);
    if (!block) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld rows of a weight", (long long)rows);
    qe_status status = qe_qtensor_place(&band, &stored, rows, ref->k, 0, block, bytes, err);
    if (!status) status = qe_store_read(model->store, ref->tensor, first_row, rows, ref->row_map, &band, err);
    band.order = (uint32_t *)(uintptr_t)ref->order;
    if (!status) status = qe_dequantize(&band, 0, rows, w, ref->k, err);
    qe_os_release(block);
    return status;
}

static bool is_float(const qe_quant *q) {
    return q->code == QE_CODE_F32 || q->code == QE_CODE_F16 || q->code == QE_CODE_BF16;
}

static qe_status decide(void *ctx, qe_role role, int64_t layer, qe_weight_ref *ref, qe_error *err) {
    const qe_load_quantizer *q = ctx;
    char module[256];
    qe_decision d;
    qe_model_module(q->model, role, layer, false, module, sizeof module);
    QE_TRY(qe_recipe_decide(q->recipe, module, role == QE_ROLE_EMBED || role == QE_ROLE_OUTPUT, &d, err));
    if (d.keep) return QE_OK;
    if (!is_float(&ref->quant) && (ref->order || ref->col_scale || ref->hadamard))
        return qe_error_set(err, QE_E_UNSUPPORTED, "%s is quantized already, with its columns changed", module);
    if (d.method != QE_METHOD_RTN || d.smooth || d.rotate || d.act.mode == QE_ACT_STATIC)
        return qe_error_set(err, QE_E_UNSUPPORTED, "%s: %s needs a whole weight or a calibration: quantize to a checkpoint first",
                            module, d.act.mode == QE_ACT_STATIC ? "a static input" : d.how);
    if (!qe_quant_band_rows(&d.quant))
        return qe_error_set(err, QE_E_UNSUPPORTED, "%s: scales of a whole tensor are not known while it is loaded", module);
    ref->quant = d.quant;
    ref->act = d.act;
    ref->act_known = 1;
    bool integer_levels = d.quant.super != QE_NUM_ONE && d.quant.scale == QE_NUM_U8 && d.quant.bits <= 4;
    ref->facts = integer_levels && d.quant.zero != QE_ZERO_REAL ? QE_FACT_INT8_PRODUCT : 0;
    return QE_OK;
}

static qe_status read_rows(void *ctx, qe_role role, int64_t layer, const qe_weight_ref *ref, int64_t first_row, int64_t rows,
                           qe_qtensor *band, qe_error *err) {
    const qe_load_quantizer *q = ctx;
    const qe_store *store = q->model->store;
    if (!memcmp(&ref->quant, qe_store_quant(qe_store_tensor_at(store, ref->tensor)), sizeof ref->quant))
        return qe_store_read(store, ref->tensor, first_row, rows, ref->row_map, band, err);
    float *w = qe_os_alloc((size_t)(rows * ref->k) * sizeof *w);
    if (!w) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld rows of a weight", (long long)rows);
    band->first_row = first_row;
    band->rows = ref->n;
    qe_status status = qe_weight_floats(q->model, ref, first_row, rows, w, err);
    char module[256];
    qe_model_module(q->model, role, layer, false, module, sizeof module);
    qe_decision d;
    if (!status) status = qe_recipe_decide(q->recipe, module, role == QE_ROLE_EMBED || role == QE_ROLE_OUTPUT, &d, err);
    if (!status) status = qe_quantize(w, ref->k, d.full_range ? QE_QUANTIZE_FULL_RANGE : 0, band, err);
    qe_os_release(w);
    return status;
}

qe_status qe_load_quantizer_create(const qe_model *model, const char *recipe, qe_load_quantizer **out,
                                   qe_weight_source *source, qe_error *err) {
    qe_load_quantizer *q = calloc(1, sizeof *q);
    *out = NULL;
    if (!q) return qe_error_set(err, QE_E_NOMEM, "no memory to quantize while loading");
    q->model = model;
    qe_status status = qe_recipe_parse(recipe, NULL, &q->recipe, err);
    if (status) {
        free(q);
        return status;
    }
    *source = (qe_weight_source){q, decide, read_rows};
    *out = q;
    return QE_OK;
}

void qe_load_quantizer_free(qe_load_quantizer *q) {
    if (!q) return;
    qe_recipe_free(q->recipe);
    free(q);
}
