/* scheme.c -- the descriptor: its rules, sizes and bounds. */
#include <string.h>

#include <qengine/num.h>
#include "base/check.h"
#include "quant/scheme_internal.h"

enum { MAX_EXTENT = 1 << 30 };

static const struct {
    uint8_t bytes, bits;
} nums[] = {
#define QE_X(name, value, bytes, bits) [value] = {bytes, bits},
    QE_NUM_LIST(QE_X)
#undef QE_X
};
enum { NUM_COUNT = sizeof nums / sizeof nums[0] };

static const uint8_t code_bits[] = {
#define QE_X(name, value, bits) [value] = bits,
    QE_CODE_LIST(QE_X)
#undef QE_X
};
enum { CODE_COUNT = sizeof code_bits };

size_t qe_num_bytes(int32_t num) {
    return num >= 0 && num < NUM_COUNT ? nums[num].bytes : 0;
}

float qe_num_get(int32_t num, const void *array, int64_t index) {
    switch (num) {
    case QE_NUM_F32: return ((const float *)array)[index];
    case QE_NUM_F16: return qe_f16_to_f32(((const uint16_t *)array)[index]);
    case QE_NUM_BF16: return qe_bf16_to_f32(((const uint16_t *)array)[index]);
    case QE_NUM_E8M0: return qe_e8m0_to_f32(((const uint8_t *)array)[index]);
    case QE_NUM_E4M3: return qe_e4m3_to_f32(((const uint8_t *)array)[index]);
    case QE_NUM_U8:
    case QE_NUM_U6:
    case QE_NUM_U4: return (float)((const uint8_t *)array)[index];
    case QE_NUM_S8:
    case QE_NUM_S6: return (float)((const int8_t *)array)[index];
    case QE_NUM_POW2N: return ((const uint8_t *)array)[index] ? 0.5f : 1.0f;
    default: return 1.0f;
    }
}

/* ---- rules ------------------------------------------------------------------------------------------------------- */
static qe_status check_code(const qe_quant *q, qe_error *err) {
    if (q->code == QE_CODE_NONE || q->code >= CODE_COUNT)
        return qe_error_set(err, QE_E_ARGUMENT, "quant.code is %d, legal are 1 to %d", q->code, CODE_COUNT - 1);
    int bits = code_bits[q->code];
    if (bits ? q->bits != bits : q->bits < 1 || q->bits > 8)
        return qe_error_set(err, QE_E_ARGUMENT, "quant.bits is %d, code %d needs %s%d", q->bits, q->code,
                            bits ? "" : "1 to ", bits ? bits : 8);
    if (q->flags & ~QE_SUPER_DIVIDES || q->reserved)
        return qe_error_set(err, QE_E_ARGUMENT, "quant.flags %d, quant.reserved %d: unknown bits", q->flags,
                            q->reserved);
    if (q->lut_n < 0 || (q->lut_n && q->code != QE_CODE_LUT))
        return qe_error_set(err, QE_E_ARGUMENT, "quant.lut_n is %d, legal is 0, and more only with code LUT", q->lut_n);
    return QE_OK;
}

static qe_status check_extents(const qe_quant *q, qe_error *err) {
    const int32_t extents[] = {q->group_n, q->group_k, q->super_n, q->super_k};
    static const char *const names[] = {"group_n", "group_k", "super_n", "super_k"};
    for (int i = 0; i < 4; i++) {
        if (extents[i] < 0 || extents[i] > MAX_EXTENT)
            return qe_error_set(err, QE_E_ARGUMENT, "quant.%s is %d, legal are 0 to %d", names[i], extents[i],
                                MAX_EXTENT);
    }
    if (q->super == QE_NUM_ONE) {
        if (q->super_n || q->super_k || q->flags & QE_SUPER_DIVIDES)
            return qe_error_set(err, QE_E_ARGUMENT, "quant.super_n, super_k and SUPER_DIVIDES are 0 without a super");
    } else {
        if (q->super_k && (!q->group_k || q->super_k % q->group_k))
            return qe_error_set(err, QE_E_ARGUMENT, "quant.super_k %d is not a multiple of group_k %d", q->super_k,
                                q->group_k);
        if (q->super_n && (!q->group_n || q->super_n % q->group_n))
            return qe_error_set(err, QE_E_ARGUMENT, "quant.super_n %d is not a multiple of group_n %d", q->super_n,
                                q->group_n);
    }
    if (q->scale == QE_NUM_ONE && q->super == QE_NUM_ONE && !qe_has_zeros(q) && (q->group_n || q->group_k))
        return qe_error_set(err, QE_E_ARGUMENT, "quant.group_n and group_k are 0 without scales and zeros");
    return QE_OK;
}

static qe_status check_scale(const qe_quant *q, qe_error *err) {
    if (q->scale >= NUM_COUNT) return qe_error_set(err, QE_E_ARGUMENT, "quant.scale %d is no qe_num", q->scale);
    bool ok = q->super == QE_NUM_ONE || qe_num_is_float(q->super) || q->super == QE_NUM_E8M0;
    if (!ok) return qe_error_set(err, QE_E_ARGUMENT, "quant.super %d: legal are ONE, F32, F16, BF16, E8M0", q->super);
    if ((qe_num_is_integer(q->scale) || q->scale == QE_NUM_POW2N) && q->super == QE_NUM_ONE)
        return qe_error_set(err, QE_E_ARGUMENT, "quant.scale %d is an integer and needs a super", q->scale);
    if (q->scale_log2 < -64 || q->scale_log2 > 64)
        return qe_error_set(err, QE_E_ARGUMENT, "quant.scale_log2 is %d, legal are -64 to 64", q->scale_log2);
    return QE_OK;
}

static qe_status check_zero(const qe_quant *q, qe_error *err) {
    int top = q->code == QE_CODE_INT ? 1 << q->bits : 0;
    switch (q->zero) {
    case QE_ZERO_CONST:
        if (q->zero_num != QE_NUM_ONE)
            return qe_error_set(err, QE_E_ARGUMENT, "quant.zero_num is %d, CONST needs ONE", q->zero_num);
        if (q->zero_const < 0 || q->zero_const > top)
            return qe_error_set(err, QE_E_ARGUMENT, "quant.zero_const is %d, legal are 0 to %d", q->zero_const, top);
        return QE_OK;
    case QE_ZERO_POINT:
        if (q->zero_num != QE_NUM_U8 && q->zero_num != QE_NUM_F16 && q->zero_num != QE_NUM_F32)
            return qe_error_set(err, QE_E_ARGUMENT, "quant.zero_num is %d, POINT needs U8, F16 or F32", q->zero_num);
        break;
    case QE_ZERO_REAL:
        if (!qe_num_is_float(q->zero_num) && !qe_num_is_integer(q->zero_num))
            return qe_error_set(err, QE_E_ARGUMENT, "quant.zero_num is %d, REAL needs a float or an integer",
                                q->zero_num);
        if (qe_num_is_integer(q->zero_num) && q->super == QE_NUM_ONE)
            return qe_error_set(err, QE_E_ARGUMENT, "quant.zero_num %d is an integer and needs a super", q->zero_num);
        break;
    default: return qe_error_set(err, QE_E_ARGUMENT, "quant.zero is %d, legal are 0 to 2", q->zero);
    }
    if (q->code != QE_CODE_INT)
        return qe_error_set(err, QE_E_ARGUMENT, "quant.zero is %d, only code INT has zeros", q->zero);
    if (q->zero_const) return qe_error_set(err, QE_E_ARGUMENT, "quant.zero_const is %d beside zeros", q->zero_const);
    return QE_OK;
}

qe_status qe_quant_check(const qe_quant *quant, int64_t n, int64_t k, qe_error *err) {
    if (!quant) return qe_error_set(err, QE_E_ARGUMENT, "quant is NULL");
    if (n < 0 || k < 0)
        return qe_error_set(err, QE_E_ARGUMENT, "shape %lld x %lld is negative", (long long)n, (long long)k);
    QE_TRY(check_code(quant, err));
    QE_TRY(check_extents(quant, err));
    QE_TRY(check_scale(quant, err));
    QE_TRY(check_zero(quant, err));
    /* No array is larger than 8 bytes an element (lut_n 1 with 256 entries: 1024 a row), so this bounds all sums. */
    uint64_t elements, rows, limit = SIZE_MAX / 64;
    if (!qe_check_mul((uint64_t)n, (uint64_t)k, &elements) || elements > limit / 8 ||
        !qe_check_mul((uint64_t)n, 4096, &rows) || rows > limit || (uint64_t)k > limit / 16)
        return qe_error_set(err, QE_E_OVERFLOW, "%lld x %lld elements do not fit the address space", (long long)n,
                            (long long)k);
    return QE_OK;
}

/* ---- sizes and bounds -------------------------------------------------------------------------------------------- */
double qe_quant_bits_per_weight(const qe_quant *q, int64_t n, int64_t k) {
    if (n <= 0 || k <= 0) return 0.0;
    double groups = (double)qe_groups(n, q->group_n) * (double)qe_groups(k, q->group_k);
    double supers = (double)qe_groups(n, q->super_n) * (double)qe_groups(k, q->super_k);
    double bits = (double)q->bits * (double)n * (double)k + groups * nums[q->scale].bits + supers * nums[q->super].bits;
    if (qe_has_zeros(q)) bits += groups * nums[q->zero_num].bits;
    if (qe_has_zero_super(q)) bits += supers * nums[q->super].bits;
    if (q->code == QE_CODE_LUT) bits += (double)qe_groups(n, q->lut_n) * 32.0 * (double)(1 << q->bits);
    return bits / ((double)n * (double)k);
}

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

int64_t qe_quant_band_rows(const qe_quant *q) {
    int64_t rows = 1;
    bool grouped = q->scale != QE_NUM_ONE || qe_has_zeros(q);
    const int32_t extents[] = {grouped ? q->group_n : 1, q->super != QE_NUM_ONE ? q->super_n : 1,
                               q->code == QE_CODE_LUT && q->lut_n ? q->lut_n : 1};
    for (int i = 0; i < 3; i++) {
        if (!extents[i]) return 0;
        rows = rows / gcd(rows, extents[i]) * extents[i];
        if (rows > MAX_EXTENT) return 0;
    }
    return rows;
}

/* max |c - z| over the codes and zeros a descriptor allows; 0: not an integer type. */
static int64_t max_code(const qe_quant *q, uint32_t facts) {
    if (q->code == QE_CODE_IQ4NL) return 127;
    if (q->code == QE_CODE_SIGN) return 1;
    if (q->code != QE_CODE_INT) return 0;
    int64_t top = (1 << q->bits) - 1, z = q->zero_const;
    if (facts & QE_FACT_TERNARY) return 1;
    if (q->zero == QE_ZERO_REAL) return top;
    if (q->zero == QE_ZERO_POINT) return q->zero_num != QE_NUM_U8 ? 0 : q->bits == 8 ? 255 : top + 1;
    int64_t low = facts & QE_FACT_NO_MIN && z > 0 ? z - 1 : z;
    return low > top - z ? low : top - z;
}

int64_t qe_quant_max_k(const qe_quant *w, uint32_t w_facts, const qe_quant *x) {
    /* Symmetric activations keep to -127 .. 127: their code 0 is never written. */
    int64_t mw = max_code(w, w_facts), mx = max_code(x, x->zero == QE_ZERO_CONST ? QE_FACT_NO_MIN : 0);
    if (w->super != QE_NUM_ONE && w_facts & QE_FACT_INT8_PRODUCT) mw = mw ? 128 : 0;
    return mw && mx ? INT32_MAX / (mw * mx) : 0;
}

void qe_act_default(const qe_quant *w, qe_act *out) {
    memset(out, 0, sizeof *out);
    if (qe_code_is_float(w->code)) return;
    out->mode = QE_ACT_DYNAMIC;
    out->quant.code = QE_CODE_INT;
    out->quant.bits = 8;
    out->quant.scale = QE_NUM_F32;
    out->quant.zero_const = 128;
    out->quant.group_n = 1;
    if (w->group_n == 1 && w->super_n == 1 && w->super_k == 256) out->quant.group_k = 256;
    else if (w->group_n == 1 && w->group_k == 32 && w->super == QE_NUM_ONE) out->quant.group_k = 32;
}
