/* linear.c -- qe_linear: makes one weight ready for a device, runs prepare and GEMM on the caller's memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "run/device.h"
#include "run/linear_internal.h"

static qe_status fail_unless_finished(const qe_linear *l, qe_error *err) {
    return l->finished ? QE_OK : qe_error_set(err, QE_E_STATE, "the linear is not finished");
}

enum { QE_MAX_EXPERTS = 65535 };

static bool float_type(int32_t type) {
    return type == QE_CODE_F32 || type == QE_CODE_F16 || type == QE_CODE_BF16;
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */
qe_status qe_act_check(const qe_act *act, const qe_quant *w, int64_t k, qe_error *err) {
    const qe_quant *q = &act->quant;
    if (act->mode < QE_ACT_FLOAT || act->mode > QE_ACT_STATIC)
        return qe_error_set(err, QE_E_ARGUMENT, "act.mode is %d, legal are 0 to 2", act->mode);
    if (act->mode == QE_ACT_FLOAT) return QE_OK;
    QE_TRY(qe_quant_check(q, 1, k, err));
    bool signs = q->code == QE_CODE_SIGN, symmetric = q->zero == QE_ZERO_CONST && q->zero_const == 128;
    bool int8 = q->code == QE_CODE_INT && q->bits == 8 && (symmetric || (q->zero == QE_ZERO_POINT && q->zero_num == QE_NUM_U8));
    if (!(signs || int8) || q->scale != QE_NUM_F32 || q->super != QE_NUM_ONE || q->scale_log2)
        return qe_error_set(err, QE_E_UNSUPPORTED,
                            "activations are int8, symmetric or with zero points, or signs, with fp32 scales");
    if (signs && (act->mode != QE_ACT_DYNAMIC || (q->group_k && q->group_k < k)))
        return qe_error_set(err, QE_E_UNSUPPORTED, "sign activations are dynamic, with one scale per token");
    if (act->mode == QE_ACT_STATIC && (!(act->scale > 0.0f) || act->scale > 3e38f || act->zero < 0 || act->zero > 255))
        return qe_error_set(err, QE_E_ARGUMENT, "act.scale must be finite and positive, act.zero 0 to 255");
    if (act->mode == QE_ACT_DYNAMIC && q->group_n != 1)
        return qe_error_set(err, QE_E_ARGUMENT, "act.quant.group_n is %d, dynamic scales are per token: 1", q->group_n);
    int32_t a = q->group_k, b = w->group_k;
    if (a && b && a < k && b < k && a % b && b % a)
        return qe_error_set(err, QE_E_ARGUMENT, "activation groups of %d and weight groups of %d do not nest", a, b);
    return QE_OK;
}

qe_status qe_linear_options_read(const qe_linear_options *in, const qe_qtensor *t, qe_linear_options *o, qe_error *err) {
    memset(o, 0, sizeof *o);
    if (in) {
        if (in->struct_size < sizeof in->struct_size)
            return qe_error_set(err, QE_E_ARGUMENT, "options.struct_size is not set");
        size_t known = in->struct_size < sizeof *o ? in->struct_size : sizeof *o;
        memcpy(o, in, known);
        for (size_t i = known; i < in->struct_size; i++) {
            if (((const unsigned char *)in)[i])
                return qe_error_set(err, QE_E_ARGUMENT, "options asks for something this version does not know");
        }
    }
    if (!o->act) o->act = &t->act;
    if (!o->y_type) o->y_type = QE_CODE_F32;
    if (!float_type(o->y_type) && o->y_type != QE_CODE_INT)
        return qe_error_set(err, QE_E_ARGUMENT, "options.y_type is %d", o->y_type);
    if (o->flags & ~(uint32_t)(QE_LINEAR_RESIDUAL | QE_LINEAR_FIXED_POINT))
        return qe_error_set(err, QE_E_ARGUMENT, "options.flags 0x%x has unknown bits", o->flags);
    if (o->experts < 0 || o->reserved || o->experts > QE_MAX_EXPERTS)
        return qe_error_set(err, QE_E_ARGUMENT, "options.experts is %d, legal are 0 to %d", o->experts, QE_MAX_EXPERTS);
    return QE_OK;
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */
/* A copy of host data where the kernels reach it. */
static qe_status upload(const qe_device *d, const void *host, size_t bytes, void **out, qe_error *err) {
    QE_TRY(qe_device_alloc(d, bytes, out, err));
    qk_queue q = qe_device_queue(d, NULL);
    QE_TRY(d->backend->copy(&q, *out, host, bytes, err));
    return d->backend->wait(&q, err);
}

static void fill_shape(qk_shape *s, const qe_qtensor *form, const qe_act *act) {
    s->quant = form->quant;
    if (act->mode != QE_ACT_FLOAT) s->act = *act;
    s->n = form->rows;
    s->k = form->k;
    s->facts = form->facts;
    s->chunk_k = qk_chunk_k(&s->quant, s->facts, &s->act, s->n, s->k);
}

static qe_status set_up(qe_linear *l, const qe_qtensor *form, const qe_linear_options *o, qe_error *err) {
    qk_shape *s = &l->weight.shape;
    fill_shape(s, form, o->act);
    l->experts = o->experts;
    QE_TRY(qe_requant_begin(&l->requant, s, o, err));
    bool float_bias = o->bias && !l->requant.on;
    s->layout = qk_layout_choose(&l->device->facts, s, NULL, NULL);
    if (!s->layout)
        return qe_error_set(err, QE_E_UNSUPPORTED, "no %s layout takes this weight", l->device->backend->name);
    int64_t band_rows = s->layout->band_rows;
    l->head_bytes = s->layout->head_bytes(s);
    l->band_bytes = s->layout->band_bytes(s);
    l->layout_bands = (s->n + band_rows - 1) / band_rows;
    uint64_t bytes, experts = (uint64_t)l->experts;
    bool fits = qe_check_mul((uint64_t)l->layout_bands, l->band_bytes, &bytes) && qe_check_add(bytes, l->head_bytes, &bytes);
    if (fits && experts > 1) fits = qe_check_add(bytes, 255, &bytes);
    if (experts > 1) bytes &= ~(uint64_t)255;
    l->expert_bytes = (size_t)bytes;
    if (!fits || !qe_check_mul(bytes, experts, &bytes))
        return qe_error_set(err, QE_E_OVERFLOW, "the packed weight does not fit the address space");
    l->weight.blob_bytes = bytes;
    l->weight.hadamard = form->hadamard;
    l->gemm_flags = (o->bias ? QK_GEMM_BIAS : 0) | (o->flags & QE_LINEAR_RESIDUAL ? QK_GEMM_RESIDUAL : 0);
    l->y_type = o->y_type;
    l->have = calloc((size_t)(l->layout_bands + 1) * (size_t)experts, sizeof *l->have);
    if (!l->have) return qe_error_set(err, QE_E_NOMEM, "no memory for a linear");
    void *p;
    QE_TRY(qe_device_alloc(l->device, (size_t)bytes, &p, err));
    l->blob = p;
    l->weight.blob = p;
    size_t k = (size_t)s->k;
    if (form->order) {
        qe_status status = upload(l->device, form->order, k * sizeof *form->order, &p, err);
        l->weight.order = p;
        QE_TRY(status);
    }
    if (form->col_scale) {
        qe_status status = upload(l->device, form->col_scale, k * sizeof(float), &p, err);
        l->weight.col_scale = p;
        QE_TRY(status);
    }
    if (float_bias) {
        qe_status status = upload(l->device, o->bias, (size_t)experts * (size_t)s->n * sizeof(float), &p, err);
        l->bias = p;
        QE_TRY(status);
    }
    return qe_linear_choose(l, err);
}

qe_status qe_linear_begin(qe_device *device, const qe_qtensor *form, const qe_linear_options *options,
                          qe_linear **out, qe_error *err) {
    qe_linear_options o;
    if (!device || !form || !out) return qe_error_set(err, QE_E_ARGUMENT, "device, weight or out is NULL");
    QE_TRY(qe_quant_check(&form->quant, form->rows, form->k, err));
    if (form->rows < 1 || form->k < 1)
        return qe_error_set(err, QE_E_ARGUMENT, "an empty weight: %lld x %lld", (long long)form->rows,
                            (long long)form->k);
    QE_TRY(qe_linear_options_read(options, form, &o, err));
    if (!o.experts) o.experts = 1;
    QE_TRY(qe_act_check(o.act, &form->quant, form->k, err));
    int32_t h = form->hadamard;
    if (h < 0 || (h && (h & (h - 1) || form->k % h)))
        return qe_error_set(err, QE_E_ARGUMENT, "hadamard is %d: a power of two that divides k %lld", h,
                            (long long)form->k);
    qe_linear *l = calloc(1, sizeof *l);
    if (!l) return qe_error_set(err, QE_E_NOMEM, "no memory for a linear");
    l->device = device;
    qe_status status = set_up(l, form, &o, err);
    if (status) {
        qe_linear_destroy(l);
        return status;
    }
    *out = l;
    return QE_OK;
}

void qe_linear_destroy(qe_linear *l) {
    if (!l) return;
    size_t k = (size_t)l->weight.shape.k, n = (size_t)l->weight.shape.n * (size_t)l->experts;
    qe_device_release(l->device, l->blob, (size_t)l->weight.blob_bytes);
    qe_device_release(l->device, (void *)(uintptr_t)l->weight.order, k * sizeof(uint32_t));
    qe_device_release(l->device, (void *)(uintptr_t)l->weight.col_scale, k * sizeof(float));
    qe_device_release(l->device, l->bias, n * sizeof(float));
    qe_requant_end(&l->requant, l->device);
    free(l->choices);
    free(l->have);
    free(l);
}

void qe_linear_get_info(const qe_linear *l, qe_linear_info *out) {
    const qk_shape *s = &l->weight.shape;
    memset(out, 0, sizeof *out);
    out->n = s->n;
    out->k = s->k;
    out->chunk_k = s->chunk_k;
    out->packed_bytes = l->weight.blob_bytes;
    out->bits_per_weight = 8.0 * (double)l->weight.blob_bytes / ((double)s->n * (double)s->k * l->experts);
    out->quant = s->quant;
    out->act = s->act;
    snprintf(out->layout, sizeof out->layout, "%s", s->layout->name);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */
qe_status qe_linear_plan_run(const qe_linear *l, int64_t m, int64_t group_m, int32_t x_type, int32_t y_type, qe_run_plan *out,
                             qe_error *err) {
    qk_gemm g;
    out->x_bytes = qe_linear_problem(l, m, x_type, y_type, &g, &out->x);
    if (!group_m) return qe_linear_plan(l, &g, &out->plan, err);
    g.m = group_m;
    g.experts = l->experts;
    return qk_gemm_plan(&l->device->facts, &g, &out->plan, NULL, NULL, err);
}

/* Floats, or codes of the linear's own grid where nothing comes before them. */
bool qe_linear_takes(const qe_linear *l, int32_t x_type) {
    const qk_weight *w = &l->weight;
    if (x_type != QE_CODE_INT) return float_type(x_type);
    return w->shape.act.mode == QE_ACT_STATIC && !w->order && !w->col_scale && !w->hadamard;
}

static size_t bytes_of(const qe_linear *l, int64_t m, int32_t x_type) {
    qe_run_plan p;
    if (qe_linear_plan_run(l, m, 0, x_type, l->y_type, &p, NULL)) return 0;
    return p.x_bytes + (size_t)p.plan.workspace_bytes;
}

/* Fewer tokens may want more: where tiles do not fill the device k is split, and every split has sums of its own. Splits and
 * tuning are constant up to whole tiles and powers of two, so those are looked at; beyond 8 waves no plan splits. */
size_t qe_linear_workspace(const qe_linear *l, int64_t m, int32_t x_type) {
    if (!l || m < 1 || !qe_linear_takes(l, x_type) || m > INT32_MAX) return 0;
    size_t most = bytes_of(l, m, x_type);
    if (!most) return 0;
    for (int64_t less = 1; less < m; less *= 2) {
        size_t bytes = bytes_of(l, less, x_type);
        most = bytes > most ? bytes : most;
    }
    if (qe_device_is_host(l->device)) return most;
    for (int64_t tile = 8, less = 8; tile <= 256; tile *= 2)
        for (less = (less + tile - 1) / tile * tile; less < m && less <= tile * 8 * l->device->facts.units; less += tile) {
            size_t bytes = bytes_of(l, less, x_type);
            most = bytes > most ? bytes : most;
        }
    return most;
}

qe_status qe_linear_check_args(const qe_linear *l, const qe_linear_args *a, int32_t y_type, qe_error *err) {
    const qk_shape *s = &l->weight.shape;
    if (a->struct_size != sizeof *a) return qe_error_set(err, QE_E_ARGUMENT, "args.struct_size is %zu", a->struct_size);
    if (a->m < 0 || a->m > INT32_MAX) return qe_error_set(err, QE_E_ARGUMENT, "m is %lld", (long long)a->m);
    if (!qe_linear_takes(l, a->x_type))
        return qe_error_set(err, QE_E_ARGUMENT,
                            "x_type is %d, legal are F32, F16, BF16, and INT where the act is static and without column order, "
                            "scale and rotation", a->x_type);
    if ((y_type == QE_CODE_INT) != l->requant.on || (y_type != QE_CODE_INT && !float_type(y_type)))
        return qe_error_set(err, QE_E_ARGUMENT, "y_type is %d, the linear was created for %s", y_type,
                            l->requant.on ? "INT" : "F32, F16 or BF16");
    if (a->ldx < s->k || a->ldy < s->n)
        return qe_error_set(err, QE_E_ARGUMENT, "ldx %lld, ldy %lld for k %lld, n %lld", (long long)a->ldx,
                            (long long)a->ldy, (long long)s->k, (long long)s->n);
    bool residual = l->gemm_flags & QK_GEMM_RESIDUAL;
    if (a->m && (!a->x || !a->y)) return qe_error_set(err, QE_E_ARGUMENT, "x or y is NULL");
    if (a->m && residual != (a->residual != NULL))
        return qe_error_set(err, QE_E_ARGUMENT, "residual %s, the linear was created %s",
                            a->residual ? "given" : "missing", residual ? "with one" : "without");
    if (residual && a->ldr < s->n) return qe_error_set(err, QE_E_ARGUMENT, "ldr is %lld", (long long)a->ldr);
    return QE_OK;
}

qe_status qe_linear_check_workspace(const qe_linear_args *a, size_t need, qe_error *err) {
    if (need && (!a->workspace || a->workspace_bytes < need || (uintptr_t)a->workspace & 255))
        return qe_error_set(err, QE_E_ARGUMENT, "workspace of %zu bytes, %zu are needed, 256-byte aligned",
                            a->workspace ? a->workspace_bytes : 0, need);
    return QE_OK;
}

qe_status qe_linear_enqueue(const qe_linear *l, int32_t expert, const qk_groups *groups, qe_run_plan *p,
                            const qe_linear_args *a, qe_error *err) {
    QE_TRY(qe_linear_check_workspace(a, p->x_bytes + (size_t)p->plan.workspace_bytes, err));
    qk_weight weight = l->weight;
    weight.blob = l->blob + (size_t)expert * l->expert_bytes;
    qk_x_rebase(&p->x, a->workspace);
    qk_queue queue = qe_device_queue(l->device, a->stream);
    qk_prepare prepare;
    memset(&prepare, 0, sizeof prepare);
    prepare.x = a->x;
    prepare.ldx = a->ldx;
    prepare.x_type = a->x_type;
    prepare.next = &weight;
    prepare.out = &p->x;
    if (groups && groups->max_rows) prepare.counts = groups->rows, prepare.max_rows = groups->max_rows;
    QE_TRY(l->device->backend->ops.prepare(&prepare, &queue, err));
    qk_gemm_args g;
    memset(&g, 0, sizeof g);
    g.w = &weight;
    g.x = p->x;
    g.y = a->y;
    g.ldy = a->ldy;
    g.bias = l->bias ? l->bias + expert * weight.shape.n : NULL;
    qe_requant_give(&l->requant, expert * weight.shape.n, &g);
    g.residual = a->residual;
    g.ldr = a->ldr;
    g.workspace = (char *)a->workspace + p->x_bytes;
    if (groups) g.groups = *groups;
    return qk_gemm_run(&p->plan, &g, &queue, err);
}

qe_status qe_linear_run(const qe_linear *l, const qe_linear_args *args, qe_error *err) {
    if (!l || !args) return qe_error_set(err, QE_E_ARGUMENT, "linear or args is NULL");
    QE_TRY(fail_unless_finished(l, err));
    int32_t y_type = args->y_type ? args->y_type : l->y_type;
    QE_TRY(qe_linear_check_args(l, args, y_type, err));
    if (l->experts > 1)
        return qe_error_set(err, QE_E_STATE, "the linear holds %d experts: qe_linear_run_grouped runs them", l->experts);
    if (args->m == 0) return QE_OK;
    unsigned fp = qe_fp_enter();
    qe_run_plan p;
    qe_status status = qe_linear_plan_run(l, args->m, 0, args->x_type, y_type, &p, err);
    if (!status) status = qe_linear_enqueue(l, 0, NULL, &p, args, err);
    qe_fp_leave(fp);
    return status;
}
