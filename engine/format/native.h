/* native.h -- the arrays of a canonical tensor as the engine's own checkpoints store them; shared by reader and writer. */
#ifndef QE_FORMAT_NATIVE_H
#define QE_FORMAT_NATIVE_H
#include "format/packed.h"

/* One array: `columns` fields of `bits` a row, rows in whole bytes. dtype NULL: this scheme has none. */
typedef struct qe_native_array {
    int64_t     rows, columns, row_bytes;
    int64_t     stored_columns;         /* of `dtype` in the file */
    int32_t     num, bits;
    const char *dtype;
} qe_native_array;

extern const char *const qe_native_suffix[QE_PART_COUNT];
/* optional: the arrays that only some weights have (order, col_scale, input) are there. */
qe_native_array qe_native_part(const qe_quant *q, qe_part part, int64_t n, int64_t k, bool optional);
void           *qe_native_pointer(const qe_qtensor *t, qe_part part);
void            qe_native_pack_row(const qe_native_array *a, const void *from, int64_t row, uint8_t *out);
void            qe_native_unpack_row(const qe_native_array *a, const uint8_t *from, int64_t row, void *out);
#endif
