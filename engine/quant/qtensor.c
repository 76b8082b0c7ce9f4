/* qtensor.c -- the canonical tensor: placement, the value formula, and the scan that proves its facts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include "base/check.h"
#include "quant/scheme_internal.h"

/* ---- placement --------------------------------------------------------------------------------------------------- */
enum { CODES, SCALES, SUPER, ZEROS, ZERO_SUPER, LUT, COL_SCALE, ORDER, PARTS };

/* Bytes of each array, each padded to 64, and their sum. The descriptor passed qe_quant_check(), so nothing wraps. */
static size_t part_bytes(const qe_quant *q, int64_t n, int64_t k, uint32_t parts, size_t bytes[PARTS]) {
    size_t groups = (size_t)(qe_groups(n, q->group_n) * qe_groups(k, q->group_k));
    size_t supers = (size_t)(qe_groups(n, q->super_n) * qe_groups(k, q->super_k));
    bytes[CODES] = (size_t)(n * k) * qe_code_bytes(q);
    bytes[SCALES] = groups * qe_num_bytes(q->scale);
    bytes[SUPER] = supers * qe_num_bytes(q->super);
    bytes[ZEROS] = qe_has_zeros(q) ? groups * qe_num_bytes(q->zero_num) : 0;
    bytes[ZERO_SUPER] = qe_has_zero_super(q) ? bytes[SUPER] : 0;
    bytes[LUT] = q->code == QE_CODE_LUT ? (size_t)(qe_groups(n, q->lut_n) << q->bits) * sizeof(float) : 0;
    bytes[COL_SCALE] = parts & QE_PLACE_COL_SCALE ? (size_t)k * sizeof(float) : 0;
    bytes[ORDER] = parts & QE_PLACE_ORDER ? (size_t)k * sizeof(uint32_t) : 0;
    size_t sum = 0;
    for (int i = 0; i < PARTS; i++) {
        bytes[i] = (bytes[i] + 63) & ~(size_t)63;
        sum += bytes[i];
    }
    return sum;
}

size_t qe_qtensor_bytes(const qe_quant *quant, int64_t n, int64_t k, uint32_t parts) {
    size_t bytes[PARTS];
    return part_bytes(quant, n, k, parts, bytes);
}

qe_status qe_qtensor_place(qe_qtensor *out, const qe_quant *quant, int64_t n, int64_t k, uint32_t parts, void *block,
                           size_t block_bytes, qe_error *err) {
    size_t bytes[PARTS];
    if (!out || !quant || !block) return qe_error_set(err, QE_E_ARGUMENT, "out, quant or block is NULL");
    QE_TRY(qe_quant_check(quant, n, k, err));
    if (parts & ~(uint32_t)(QE_PLACE_ORDER | QE_PLACE_COL_SCALE))
        return qe_error_set(err, QE_E_ARGUMENT, "parts 0x%x has unknown bits", parts);
    if ((uintptr_t)block & 63) return qe_error_set(err, QE_E_ARGUMENT, "block is not 64-byte aligned");
    size_t need = part_bytes(quant, n, k, parts, bytes);
    if (block_bytes < need)
        return qe_error_set(err, QE_E_ARGUMENT, "block of %zu bytes, %zu are needed", block_bytes, need);
    memset(out, 0, sizeof *out);
    out->quant = *quant;
    out->n = out->rows = n;
    out->k = k;
    void *at[PARTS];
    char *p = block;
    for (int i = 0; i < PARTS; i++) {
        at[i] = bytes[i] ? p : NULL;
        p += bytes[i];
    }
    out->codes = at[CODES];
    out->scales = at[SCALES];
    out->super = at[SUPER];
    out->zeros = at[ZEROS];
    out->zero_super = at[ZERO_SUPER];
    out->lut = at[LUT];
    out->col_scale = at[COL_SCALE];
    out->order = at[ORDER];
    return QE_OK;
}

/* ---- the formula ------------------------------------------------------------------------------------------------- */
static float power_of_two(int exponent) { return qe_f32_from_bits((uint32_t)(exponent + 127) << 23); }

qe_group qe_group_at(const qe_qtensor *t, int64_t row, int64_t column) {
    const qe_quant *q = &t->quant;
    int64_t gk = qe_groups(t->k, q->group_k), sk = qe_groups(t->k, q->super_k);
    int64_t g = qe_group_row(t->first_row, row, q->group_n) * gk + (q->group_k ? column / q->group_k : 0);
    int64_t s = qe_group_row(t->first_row, row, q->super_n) * sk + (q->super_k ? column / q->super_k : 0);
    qe_group out = {qe_num_get(q->scale, t->scales, g), (float)q->zero_const, 0.0f, q->zero == QE_ZERO_REAL};
    if (q->super != QE_NUM_ONE) {
        float super = qe_num_get(q->super, t->super, s);
        out.scale = q->flags & QE_SUPER_DIVIDES ? qe_div(out.scale, super) : qe_mul(super, out.scale);
    }
    if (q->scale_log2) out.scale = qe_mul(out.scale, power_of_two(q->scale_log2));
    if (q->zero == QE_ZERO_POINT) out.zero = qe_num_get(q->zero_num, t->zeros, g);
    if (q->zero == QE_ZERO_REAL) {
        out.bias = qe_num_get(q->zero_num, t->zeros, g);
        if (qe_has_zero_super(q)) out.bias = qe_mul(qe_num_get(q->super, t->zero_super, s), out.bias);
    }
    return out;
}

float qe_code_at(const qe_qtensor *t, int64_t row, int64_t at) {
    const uint8_t *bytes = t->codes;
    switch (t->quant.code) {
    case QE_CODE_F32: return ((const float *)t->codes)[at];
    case QE_CODE_F16: return qe_f16_to_f32(((const uint16_t *)t->codes)[at]);
    case QE_CODE_BF16: return qe_bf16_to_f32(((const uint16_t *)t->codes)[at]);
    case QE_CODE_INT: return (float)bytes[at];
    case QE_CODE_LUT: return t->lut[(qe_group_row(t->first_row, row, t->quant.lut_n) << t->quant.bits) + bytes[at]];
    default: return qe_code_values(t->quant.code)[bytes[at]];
    }
}

static int64_t span_end(int64_t k, int32_t extent, int64_t column) {
    int64_t end = extent ? (column / extent + 1) * extent : k;
    return end < k ? end : k;
}

qe_status qe_dequantize(const qe_qtensor *t, int64_t row, int64_t count, float *w, int64_t ldw, qe_error *err) {
    if (!t || (!w && count)) return qe_error_set(err, QE_E_ARGUMENT, "tensor or w is NULL");
    if (row < 0 || count < 0 || row > t->n || count > t->n - row || ldw < t->k)
        return qe_error_set(err, QE_E_ARGUMENT, "rows %lld + %lld of %lld, ldw %lld for k %lld", (long long)row,
                            (long long)count, (long long)t->n, (long long)ldw, (long long)t->k);
    for (int64_t r = row; r < row + count; r++) {
        float *out = w + (r - row) * ldw;
        for (int64_t c = 0; c < t->k;) {
            int64_t end = span_end(t->k, t->quant.group_k, c);
            qe_group g = qe_group_at(t, r, c);
            for (; c < end; c++) {
                float v = qe_mul(g.scale, qe_sub(qe_code_at(t, r, r * t->k + c), g.zero));
                if (g.has_bias) v = qe_add(v, g.bias);
                out[t->order ? t->order[c] : c] = v;
            }
        }
    }
    return QE_OK;
}

/* ---- the scan ---------------------------------------------------------------------------------------------------- */
static qe_status check_numbers(const char *what, int num, const void *array, int64_t rows, int64_t columns,
                               qe_error *err) {
    static const int16_t low[] = {[QE_NUM_S6] = -32, [QE_NUM_POW2N] = 0};
    static const int16_t high[] = {[QE_NUM_U6] = 63, [QE_NUM_S6] = 31, [QE_NUM_U4] = 15, [QE_NUM_POW2N] = 1};
    if (num == QE_NUM_ONE || !array) return QE_OK;
    for (int64_t i = 0; i < rows * columns; i++) {
        long long r = i / columns, c = i % columns;
        if (num == QE_NUM_U6 || num == QE_NUM_S6 || num == QE_NUM_U4 || num == QE_NUM_POW2N) {
            int v = num == QE_NUM_S6 ? ((const int8_t *)array)[i] : ((const uint8_t *)array)[i];
            if (v < low[num] || v > high[num])
                return qe_error_set(err, QE_E_RANGE, "%s[%lld][%lld] is %d, legal are %d to %d", what, r, c, v,
                                    low[num], high[num]);
        } else if (!isfinite(qe_num_get(num, array, i))) {
            return qe_error_set(err, QE_E_VALUE, "%s[%lld][%lld] is not a finite number", what, r, c);
        }
    }
    return QE_OK;
}

static qe_status check_order(const qe_qtensor *t, qe_error *err) {
    if (!t->order) return QE_OK;
    uint8_t *seen = calloc((size_t)t->k / 8 + 1, 1);
    if (!seen) return qe_error_set(err, QE_E_NOMEM, "no memory to check the column order");
    qe_status status = QE_OK;
    for (int64_t i = 0; i < t->k && !status; i++) {
        uint32_t c = t->order[i];
        if (c >= t->k || seen[c / 8] >> c % 8 & 1)
            status = qe_error_set(err, QE_E_RANGE, "order[%lld] is %u: not a permutation of %lld columns",
                                  (long long)i, c, (long long)t->k);
        else seen[c / 8] = (uint8_t)(seen[c / 8] | 1u << c % 8);
    }
    free(seen);
    return status;
}

static qe_status check_floats(const qe_qtensor *t, int64_t row, qe_error *err) {
    for (int64_t c = 0; c < t->k; c++) {
        if (!isfinite(qe_code_at(t, row, row * t->k + c)))
            return qe_error_set(err, QE_E_VALUE, "row %lld, column %lld is not a finite number",
                                (long long)(t->first_row + row), (long long)c);
    }
    return QE_OK;
}

static bool normal_half(float v) {
    float a = fabsf(v);
    return a == 0.0f || (a >= 0x1p-14f && a <= 65504.0f && qe_f16_to_f32(qe_f32_to_f16(a)) == a);
}

/* What one group of one row still allows of `facts`. low, high: extreme codes of it. */
static uint32_t group_facts(const qe_qtensor *t, int64_t row, int64_t column, int low, int high, uint32_t facts) {
    const qe_quant *q = &t->quant;
    qe_group g = qe_group_at(t, row, column);
    uint32_t keep = 0;
    if (g.scale > 0.0f) keep |= QE_FACT_SCALES_POS;
    if (q->code != QE_CODE_INT) return keep & facts;
    float down = (float)low - g.zero, up = (float)high - g.zero;
    if (q->zero != QE_ZERO_REAL && down >= -1.0f && up <= 1.0f) keep |= QE_FACT_TERNARY;
    if (q->zero == QE_ZERO_CONST && q->zero_const == 1 << q->bits >> 1 && low >= 1) keep |= QE_FACT_NO_MIN;
    if (q->super != QE_NUM_ONE && qe_num_is_integer(q->scale) && q->zero != QE_ZERO_REAL) {
        int64_t gk = qe_groups(t->k, q->group_k);
        float l = qe_num_get(q->scale, t->scales, qe_group_row(t->first_row, row, q->group_n) * gk +
                                                      (q->group_k ? column / q->group_k : 0));
        float a = l * down, b = l * up;
        if (fminf(a, b) >= -128.0f && fmaxf(a, b) <= 127.0f) keep |= QE_FACT_INT8_PRODUCT;
    }
    return keep & facts;
}

static qe_status check_codes(const qe_qtensor *t, uint32_t *facts, qe_error *err) {
    const qe_quant *q = &t->quant;
    int top = (1 << q->bits) - 1;
    for (int64_t r = 0; r < t->n; r++) {
        const uint8_t *codes = (const uint8_t *)t->codes + r * t->k;
        for (int64_t c = 0; c < t->k;) {
            int64_t from = c, end = span_end(t->k, q->group_k, c);
            int low = 255, high = 0;
            for (; c < end; c++) {
                low = codes[c] < low ? codes[c] : low;
                high = codes[c] > high ? codes[c] : high;
            }
            if (high > top) {
                while (codes[from] <= top) from++;
                return qe_error_set(err, QE_E_RANGE, "code of row %lld, column %lld is %d, legal are 0 to %d",
                                    (long long)(t->first_row + r), (long long)from, codes[from], top);
            }
            if (*facts & ~(uint32_t)QE_FACT_F16_RANGE)
                *facts = group_facts(t, r, from, low, high, *facts) | (*facts & QE_FACT_F16_RANGE);
        }
        if (q->code == QE_CODE_E4M3 || q->code == QE_CODE_E5M2) QE_TRY(check_floats(t, r, err));
    }
    return QE_OK;
}

static bool check_f16_range(const qe_qtensor *t) {
    for (int64_t r = 0; r < t->n; r++) {
        qe_group g = {1.0f, 0.0f, 0.0f, false};
        for (int64_t c = 0; c < t->k; c++) {
            if (c == 0 || (t->quant.group_k && c % t->quant.group_k == 0)) g = qe_group_at(t, r, c);
            float v = qe_mul(g.scale, qe_sub(qe_code_at(t, r, r * t->k + c), g.zero));
            if (!normal_half(g.has_bias ? qe_add(v, g.bias) : v)) return false;
        }
    }
    return true;
}

qe_status qe_qtensor_check(const qe_qtensor *t, uint32_t *facts, qe_error *err) {
    uint32_t ignored = 0;
    if (!t) return qe_error_set(err, QE_E_ARGUMENT, "tensor is NULL");
    if (!facts) facts = &ignored;
    const qe_quant *q = &t->quant;
    QE_TRY(qe_quant_check(q, t->n, t->k, err));
    if (!t->codes && t->n && t->k) return qe_error_set(err, QE_E_ARGUMENT, "codes is NULL");
    int64_t gn = qe_groups(t->n, q->group_n), gk = qe_groups(t->k, q->group_k);
    int64_t sn = qe_groups(t->n, q->super_n), sk = qe_groups(t->k, q->super_k);
    if ((qe_num_bytes(q->scale) && !t->scales) || (qe_num_bytes(q->super) && !t->super) ||
        (qe_has_zeros(q) && !t->zeros) || (qe_has_zero_super(q) && !t->zero_super) ||
        (q->code == QE_CODE_LUT && !t->lut))
        return qe_error_set(err, QE_E_ARGUMENT, "an array the descriptor asks for is NULL");
    QE_TRY(check_numbers("scales", q->scale, t->scales, gn, gk, err));
    QE_TRY(check_numbers("super", q->super, t->super, sn, sk, err));
    if (q->zero == QE_ZERO_POINT && q->zero_num == QE_NUM_U8) {
        for (int64_t i = 0; i < gn * gk; i++) {
            if (((const uint8_t *)t->zeros)[i] > 1 << q->bits)
                return qe_error_set(err, QE_E_RANGE, "zeros[%lld][%lld] is %d, legal are 0 to %d", (long long)(i / gk),
                                    (long long)(i % gk), ((const uint8_t *)t->zeros)[i], 1 << q->bits);
        }
    } else if (qe_has_zeros(q)) {
        QE_TRY(check_numbers("zeros", q->zero_num, t->zeros, gn, gk, err));
    }
    if (qe_has_zero_super(q)) QE_TRY(check_numbers("zero_super", q->super, t->zero_super, sn, sk, err));
    if (q->code == QE_CODE_LUT)
        QE_TRY(check_numbers("lut", QE_NUM_F32, t->lut, qe_groups(t->n, q->lut_n), 1 << q->bits, err));
    if (t->col_scale) QE_TRY(check_numbers("col_scale", QE_NUM_F32, t->col_scale, 1, t->k, err));
    QE_TRY(check_order(t, err));
    uint32_t kept = *facts;
    if (qe_code_is_float(q->code)) {
        for (int64_t r = 0; r < t->n; r++) QE_TRY(check_floats(t, r, err));
        kept &= QE_FACT_F16_RANGE | QE_FACT_SCALES_POS;
    } else {
        QE_TRY(check_codes(t, &kept, err));
    }
    if (kept & QE_FACT_F16_RANGE && !check_f16_range(t)) kept &= ~(uint32_t)QE_FACT_F16_RANGE;
    *facts = kept;
    return QE_OK;
}
