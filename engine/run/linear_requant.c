/* linear_requant.c -- multipliers, int32 biases and the zero of a linear with int8 output. */
#include "run/linear_requant.h"

#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include <qengine/quantize.h>

qe_status qe_requant_begin(qe_requant_table *t, const qk_shape *shape, const qe_linear_options *o, qe_error *err) {
    const qe_act *y = o->y_act;
    bool fixed = o->flags & QE_LINEAR_FIXED_POINT;
    if (o->y_type != QE_CODE_INT) {
        if (y || fixed) return qe_error_set(err, QE_E_ARGUMENT, "y_act and fixed point are of y_type INT");
        return QE_OK;
    }
    if (!y || y->mode != QE_ACT_STATIC || y->quant.code != QE_CODE_INT || y->quant.bits != 8 || !(y->scale > 0.0f) ||
        y->scale > 3e38f || y->zero < 0 || y->zero > 255)
        return qe_error_set(err, QE_E_ARGUMENT, "y_type INT needs a y_act: static int8, scale > 0, zero 0 to 255");
    if (o->flags & QE_LINEAR_RESIDUAL) return qe_error_set(err, QE_E_ARGUMENT, "int8 output takes no residual");
    if (shape->act.mode != QE_ACT_STATIC)
        return qe_error_set(err, QE_E_UNSUPPORTED, "int8 output needs a static int8 input");
    if (!qk_whole_k(&shape->quant, shape->facts, &shape->act, shape->k))
        return qe_error_set(err, QE_E_UNSUPPORTED, "int8 output needs int32 sums over all of k, this weight's are floats");
    size_t n = (size_t)shape->n * (size_t)o->experts;
    t->on = true;
    t->fixed = fixed;
    t->n = (int64_t)n;
    t->s_x = shape->act.scale;
    t->s_y = y->scale;
    t->y_zero = (y->quant.zero == QE_ZERO_CONST ? 128 : y->zero) - 128;
    if (fixed) t->fixed_shift = calloc(n, 2 * sizeof *t->fixed_shift);
    else t->multiplier = calloc(n, sizeof *t->multiplier);
    if (o->bias) t->bias = calloc(n, sizeof *t->bias), t->float_bias = malloc(n * sizeof *t->float_bias);
    if ((!t->fixed_shift && !t->multiplier) || (o->bias && (!t->bias || !t->float_bias)))
        return qe_error_set(err, QE_E_NOMEM, "no memory for %lld multipliers", (long long)t->n);
    if (o->bias) memcpy(t->float_bias, o->bias, n * sizeof *t->float_bias);
    return QE_OK;
}

/* The float a row's int32 sum is multiplied by beside the input's scale. */
static float row_scale(const qe_qtensor *t, int64_t row) {
    const qe_quant *q = &t->quant;
    int64_t groups = q->group_k ? (t->k + q->group_k - 1) / q->group_k : 1;
    bool in_sum = q->super != QE_NUM_ONE && groups > 1;       /* the first level is an integer of the sum */
    float s = in_sum ? 1.0f : qe_num_get(q->scale, t->scales, qk_group_row(t->first_row, row, q->group_n) * groups);
    if (q->super != QE_NUM_ONE) {
        int64_t wide = q->super_k ? (t->k + q->super_k - 1) / q->super_k : 1;
        float super = qe_num_get(q->super, t->super, qk_group_row(t->first_row, row, q->super_n) * wide);
        s = q->flags & QE_SUPER_DIVIDES ? qe_div(s, super) : qe_mul(super, s);
    }
    return q->scale_log2 ? qe_mul(s, qe_f32_from_bits((uint32_t)(127 + q->scale_log2) << 23)) : s;
}

qe_status qe_requant_band(qe_requant_table *t, int64_t first, const qe_qtensor *band, qe_error *err) {
    for (int64_t i = 0; t->on && i < band->n; i++) {
        int64_t n = first + i;
        float s_w = row_scale(band, i);
        qe_requant r = {0.0f, 0, 31};                         /* a row of zeros stays at zero */
        if (s_w != 0.0f) QE_TRY(qe_requant_make(t->s_x, s_w, t->s_y, &r, err));
        if (t->fixed) t->fixed_shift[2 * n] = r.fixed, t->fixed_shift[2 * n + 1] = r.shift;
        else t->multiplier[n] = r.multiplier;
        if (t->bias && s_w != 0.0f) QE_TRY(qe_requant_bias(t->float_bias[n], t->s_x, s_w, t->bias + n, err));
    }
    return QE_OK;
}

static size_t bytes_of(const qe_requant_table *t, int which) {
    return (size_t)t->n * (which == 0 && t->fixed ? 8 : 4);
}

qe_status qe_requant_finish(qe_requant_table *t, qe_device *device, qe_error *err) {
    const void *from[2] = {t->fixed ? (void *)t->fixed_shift : (void *)t->multiplier, t->bias};
    qk_queue q = qe_device_queue(device, NULL);
    for (int i = 0; t->on && i < 2; i++) {
        if (!from[i]) continue;
        QE_TRY(qe_device_alloc(device, bytes_of(t, i), &t->device[i], err));
        QE_TRY(device->backend->copy(&q, t->device[i], from[i], bytes_of(t, i), err));
        QE_TRY(device->backend->wait(&q, err));
    }
    return QE_OK;
}

void qe_requant_give(const qe_requant_table *t, int64_t first, qk_gemm_args *args) {
    if (!t->on) return;
    if (t->fixed) args->requant_fixed = (const int32_t *)t->device[0] + 2 * first;
    else args->requant = (const float *)t->device[0] + first;
    args->bias_q = t->device[1] ? (const int32_t *)t->device[1] + first : NULL;
    args->y_zero = t->y_zero;
}

void qe_requant_end(qe_requant_table *t, qe_device *device) {
    for (int i = 0; i < 2; i++) qe_device_release(device, t->device[i], bytes_of(t, i));
    free(t->multiplier);
    free(t->fixed_shift);
    free(t->float_bias);
    free(t->bias);
}
