/* write_weights.h -- quantized weights in the forms checkpoints keep them: which schemes a form can hold, what tensors a
 * weight becomes, and the settings that tell readers. One table entry a form. */
#ifndef QE_FORMAT_WRITE_WEIGHTS_H
#define QE_FORMAT_WRITE_WEIGHTS_H
#include <qengine/quant.h>
#include "format/write_out.h"

enum { QE_WEIGHT_PARTS = 9 };

typedef struct qe_weight_out {
    const char    *module;          /* "model.layers.0.mlp.up_proj"; GGUF: the tensor's whole name */
    qe_qtensor     form;            /* quant, act, rows n, k, hadamard, facts; order and col_scale: not NULL if it has any */
    const int64_t *row_map;         /* GGUF: file row of row i; NULL: as they are */
    int64_t        index[QE_WEIGHT_PARTS];      /* in the qe_out; -1: none */
} qe_weight_out;

typedef struct qe_weight_format {
    const char *name, *what;
    qe_out_kind kind;
    /* QE_E_UNSUPPORTED says what the form cannot hold. */
    qe_status (*check)(const qe_weight_out *w, qe_error *err);
    qe_status (*declare)(qe_out *out, qe_weight_out *w, qe_error *err);
    /* The whole weight: t->n rows from t->first_row 0. GGUF takes bands, too. */
    qe_status (*put)(qe_out *out, const qe_weight_out *w, const qe_qtensor *t, qe_error *err);
    /* quantization_config of config.json; plain: modules of linears that stay as they were. NULL: out of memory. */
    json_t   *(*settings)(const qe_weight_out *weights, int64_t count, const char *const *plain, int64_t plain_count);
} qe_weight_format;

extern const qe_weight_format qe_format_compressed, qe_format_gptq, qe_format_gguf, qe_format_native;
/* By index from 0 (NULL past the end), and by name (NULL: unknown). */
const qe_weight_format *qe_weight_format_at(int32_t index);
const qe_weight_format *qe_weight_format_find(const char *name);

/* `module` + `suffix` declared as one of the weight's tensors. */
qe_status qe_weight_declare(qe_out *out, qe_weight_out *w, int part, const char *suffix, const char *type, int32_t rank,
                            int64_t rows, int64_t columns, size_t item_bits, qe_error *err);
/* Field `index` of a dense LSB-first stream over words `stride` apart; the words start as zeros. */
static inline void qe_weight_field(uint32_t *words, int64_t stride, int64_t index, int32_t bits, uint32_t value) {
    int64_t at = index * bits;
    int shift = (int)(at % 32);
    words[at / 32 * stride] |= value << shift;
    if (shift + bits > 32) words[(at / 32 + 1) * stride] |= value >> (32 - shift);
}
static inline int64_t qe_weight_groups(int64_t size, int32_t extent) {
    return extent > 0 ? (size + extent - 1) / extent : 1;
}
const char *qe_weight_scale_type(const qe_quant *q);                /* "F16", "BF16", "F32"; NULL: none of these */
/* g_idx of a weight whose columns were sorted by group. */
void        qe_weight_group_index(const qe_qtensor *t, int32_t *out);
#endif
