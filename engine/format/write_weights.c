/* write_weights.c -- the list of forms, and what they share. */
#include <stdio.h>
#include <string.h>

#include "format/write_weights.h"

static const qe_weight_format *const formats[] = {&qe_format_compressed, &qe_format_gptq, &qe_format_gguf, &qe_format_native};
enum { FORMATS = sizeof formats / sizeof formats[0] };

const qe_weight_format *qe_weight_format_at(int32_t index) { return index >= 0 && index < FORMATS ? formats[index] : NULL; }

const qe_weight_format *qe_weight_format_find(const char *name) {
    for (int i = 0; i < FORMATS; i++)
        if (!strcmp(name, formats[i]->name)) return formats[i];
    return NULL;
}

qe_status qe_weight_declare(qe_out *out, qe_weight_out *w, int part, const char *suffix, const char *type, int32_t rank,
                            int64_t rows, int64_t columns, size_t item_bits, qe_error *err) {
    char name[1200];
    const int64_t dims[2] = {rank == 2 ? rows : columns, columns};
    if ((size_t)snprintf(name, sizeof name, "%s%s", w->module, suffix) >= sizeof name)
        return qe_error_set(err, QE_E_LIMIT, "a tensor name of more than %zu bytes", sizeof name - 1);
    uint64_t bytes = ((uint64_t)rows * (uint64_t)columns * item_bits + 7) / 8;
    return qe_out_declare(out, name, type, rank, dims, bytes, &w->index[part], err);
}

const char *qe_weight_scale_type(const qe_quant *q) {
    return q->scale == QE_NUM_F16 ? "F16" : q->scale == QE_NUM_BF16 ? "BF16" : q->scale == QE_NUM_F32 ? "F32" : NULL;
}

void qe_weight_group_index(const qe_qtensor *t, int32_t *out) {
    int32_t group = t->quant.group_k ? t->quant.group_k : (int32_t)t->k;
    for (int64_t j = 0; j < t->k; j++) out[t->order ? t->order[j] : j] = (int32_t)(j / group);
}
