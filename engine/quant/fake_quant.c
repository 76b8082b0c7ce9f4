/* fake_quant.c -- quantization inside training: forward rounds, backward passes the gradient straight through inside
 * the range; the gradient of the scale is LSQ's (arXiv 1902.08153), of the zero LSQ+'s (2004.09576). */
#include <math.h>

#include <qengine/num.h>
#include <qengine/quantize.h>
#include "quant/scheme_internal.h"

static qe_status check(const qe_fake_quant *f, qe_error *err) {
    if (!f || !f->scale || f->n < 0 || f->k < 0 || f->group_n < 0 || f->group_k < 0 || f->low >= f->high)
        return qe_error_set(err, QE_E_ARGUMENT, "fake quantization needs scales, a shape and low below high");
    int64_t groups = qe_groups(f->n, f->group_n) * qe_groups(f->k, f->group_k);
    for (int64_t g = 0; g < groups; g++) {
        if (!(f->scale[g] > 0.0f) || !isfinite(f->scale[g]) || (f->zero && !isfinite(f->zero[g])))
            return qe_error_set(err, QE_E_VALUE, "scale or zero of group %lld is not usable", (long long)g);
    }
    return QE_OK;
}

static int64_t group_of(const qe_fake_quant *f, int64_t r, int64_t c) {
    return (f->group_n ? r / f->group_n : 0) * qe_groups(f->k, f->group_k) + (f->group_k ? c / f->group_k : 0);
}

qe_status qe_fake_quantize_forward(const qe_fake_quant *f, const float *x, float *y, qe_error *err) {
    QE_TRY(check(f, err));
    if (!x || !y) return qe_error_set(err, QE_E_ARGUMENT, "x or y is NULL");
    for (int64_t r = 0; r < f->n; r++) {
        for (int64_t c = 0; c < f->k; c++) {
            int64_t at = r * f->k + c, g = group_of(f, r, c);
            float z = f->zero ? f->zero[g] : 0.0f, u = qe_add(qe_div(x[at], f->scale[g]), z);
            float q = qe_clamp(rintf(u), (float)f->low, (float)f->high);
            y[at] = qe_mul(f->scale[g], qe_sub(q, z));
        }
    }
    return QE_OK;
}

/* Elements in the group of (r, c): groups at the ends are short. */
static double group_size(const qe_fake_quant *f, int64_t g) {
    int64_t columns = qe_groups(f->k, f->group_k), gr = g / columns, gc = g % columns;
    int64_t rows = f->group_n ? f->n - gr * f->group_n : f->n, width = f->group_k ? f->k - gc * f->group_k : f->k;
    if (f->group_n && rows > f->group_n) rows = f->group_n;
    if (f->group_k && width > f->group_k) width = f->group_k;
    return (double)rows * (double)width;
}

qe_status qe_fake_quantize_backward(const qe_fake_quant *f, const float *x, const float *dy, int32_t lsq_scaled,
                                    float *dx, double *dscale, double *dzero, qe_error *err) {
    QE_TRY(check(f, err));
    if (!x || !dy || !dx) return qe_error_set(err, QE_E_ARGUMENT, "x, dy or dx is NULL");
    float low = (float)f->low, high = (float)f->high;
    for (int64_t r = 0; r < f->n; r++) {
        for (int64_t c = 0; c < f->k; c++) {
            int64_t at = r * f->k + c, g = group_of(f, r, c);
            float s = f->scale[g], z = f->zero ? f->zero[g] : 0.0f, u = qe_add(qe_div(x[at], s), z), d = dy[at];
            bool inside = u >= low && u <= high;
            double q = inside ? (double)rintf(u) : u < low ? (double)low : (double)high;
            double slope = q - (double)z - (inside ? (double)x[at] / (double)s : 0.0);
            double lsq = lsq_scaled ? 1.0 / sqrt(group_size(f, g) * (double)(f->high > 1 ? f->high : 1)) : 1.0;
            if (dscale) dscale[g] += lsq * (double)d * slope;
            if (dzero && !inside) dzero[g] -= (double)s * (double)d;
            dx[at] = inside ? d : 0.0f;
        }
    }
    return QE_OK;
}
