/* scheme_internal.h -- how the arrays of a canonical tensor are indexed; shared by the files of this folder. */
#ifndef QE_SCHEME_INTERNAL_H
#define QE_SCHEME_INTERNAL_H
#include <stdbool.h>
#include <qengine/quant.h>

/* Groups of `extent` in `size`; extent 0: one. */
static inline int64_t qe_groups(int64_t size, int32_t extent) {
    return extent <= 0 ? 1 : (size + extent - 1) / extent;
}

/* Index of the group of row `row` within a band that starts at first_row. */
static inline int64_t qe_group_row(int64_t first_row, int64_t row, int32_t extent) {
    return extent <= 0 ? 0 : (first_row + row) / extent - first_row / extent;
}

static inline bool qe_code_is_float(int32_t code) {
    return code == QE_CODE_F32 || code == QE_CODE_F16 || code == QE_CODE_BF16;
}

static inline bool qe_num_is_integer(int32_t num) {
    return num == QE_NUM_U8 || num == QE_NUM_S8 || num == QE_NUM_U6 || num == QE_NUM_S6 || num == QE_NUM_U4;
}

static inline bool qe_num_is_float(int32_t num) {
    return num == QE_NUM_F32 || num == QE_NUM_F16 || num == QE_NUM_BF16;
}

/* Bytes of one stored code. */
static inline size_t qe_code_bytes(const qe_quant *q) {
    return q->code == QE_CODE_F32 ? 4 : q->code == QE_CODE_F16 || q->code == QE_CODE_BF16 ? 2 : 1;
}

static inline bool qe_has_zeros(const qe_quant *q) { return q->zero != QE_ZERO_CONST; }
static inline bool qe_has_zero_super(const qe_quant *q) {
    return q->zero == QE_ZERO_REAL && qe_num_is_integer(q->zero_num);
}

/* Scale and zero of one group, decoded. value = fl(scale * fl(C - zero)) [+ bias]. */
typedef struct qe_group {
    float scale, zero, bias;
    bool  has_bias;
} qe_group;
qe_group qe_group_at(const qe_qtensor *t, int64_t row, int64_t column);

/* The float value C of the code at index `at` (row * k + column) of row `row`. */
float qe_code_at(const qe_qtensor *t, int64_t row, int64_t at);
#endif
