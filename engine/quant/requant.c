/* requant.c -- int32 accumulators to int8 outputs of a static pipeline (quantization.md 7.6): one float32 multiplier,
 * or one integer product, one addition and one shift. */
#include <math.h>

#include <qengine/num.h>
#include <qengine/quantize.h>

qe_status qe_requant_make(float s_x, float s_w, float s_y, qe_requant *out, qe_error *err) {
    double m = (double)s_x * (double)s_w / (double)s_y;
    int e;
    if (!out) return qe_error_set(err, QE_E_ARGUMENT, "out is NULL");
    if (!(m > 0.0) || !(m < 1.0))
        return qe_error_set(err, QE_E_RANGE, "the multiplier %g of scales %g * %g / %g is not between 0 and 1", m,
                            (double)s_x, (double)s_w, (double)s_y);
    (void)frexp(m, &e);
    int shift = 31 - e > 62 ? 62 : 31 - e;
    double fixed = rint(ldexp(m, shift));
    if (fixed >= 2147483648.0) {                           /* m rounds up to a power of two */
        shift--;
        fixed = 1073741824.0;
        if (shift < 31) {                                  /* m rounds up to 1: the largest below it */
            shift = 31;
            fixed = 2147483647.0;
        }
    }
    *out = (qe_requant){(float)m, (int32_t)fixed, shift};
    return QE_OK;
}

qe_status qe_requant_bias(float bias, float s_x, float s_w, int32_t *out, qe_error *err) {
    double q = rint((double)bias / ((double)s_x * (double)s_w));
    if (!out) return qe_error_set(err, QE_E_ARGUMENT, "out is NULL");
    if (!(fabs(q) <= 2147483647.0))
        return qe_error_set(err, QE_E_RANGE, "bias %g in steps of %g does not fit 32 bits", (double)bias,
                            (double)s_x * (double)s_w);
    *out = (int32_t)q;
    return QE_OK;
}

static int8_t saturate(int64_t q) { return (int8_t)(q < -128 ? -128 : q > 127 ? 127 : q); }

int8_t qe_requant_float(int32_t acc, const qe_requant *r, int32_t zero) {
    return saturate((int64_t)qe_rne(qe_clamp(qe_mul((float)acc, r->multiplier), -1024.0f, 1024.0f)) + zero);
}

int8_t qe_requant_fixed(int32_t acc, const qe_requant *r, int32_t zero) {
    int64_t product = (int64_t)acc * r->fixed + ((int64_t)1 << (r->shift - 1));
    return saturate((product >> r->shift) + zero);
}
