/* linear.c -- qe_linear: packs one weight for a device band by band, runs prepare and GEMM on the caller's memory. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/os.h"
#include "run/device.h"
#include "run/linear_requant.h"

struct qe_linear {
    qe_device    *device;
    qk_weight     weight;
    char         *blob;                 /* weight.blob */
    size_t        head_bytes, band_bytes;
    float        *bias;                 /* on the device, as are order and col_scale of the weight */
    uint32_t      gemm_flags;
    int32_t       y_type;
    qe_requant_table requant;           /* int8 output */
    int64_t       layout_bands;
    atomic_uchar *have;                 /* per layout band: taken by an append, or packed */
    _Atomic int64_t packed;             /* layout bands done */
    atomic_bool   head_taken;
    bool          checked;              /* the caller's whole tensor was scanned already */
    bool          finished;
};

static qe_status fail_unless_finished(const qe_linear *l, qe_error *err) {
    return l->finished ? QE_OK : qe_error_set(err, QE_E_STATE, "the linear is not finished");
}

static bool float_type(int32_t type) {
    return type == QE_CODE_F32 || type == QE_CODE_F16 || type == QE_CODE_BF16;
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */
static qe_status check_act(const qe_act *act, const qe_quant *w, int64_t k, qe_error *err) {
    const qe_quant *q = &act->quant;
    if (act->mode < QE_ACT_FLOAT || act->mode > QE_ACT_STATIC)
        return qe_error_set(err, QE_E_ARGUMENT, "act.mode is %d, legal are 0 to 2", act->mode);
    if (act->mode == QE_ACT_FLOAT) return QE_OK;
    QE_TRY(qe_quant_check(q, 1, k, err));
    bool symmetric = q->zero == QE_ZERO_CONST && q->zero_const == 128;
    if (q->code != QE_CODE_INT || q->bits != 8 || q->scale != QE_NUM_F32 || q->super != QE_NUM_ONE || q->scale_log2 ||
        !(symmetric || q->zero == QE_ZERO_POINT))
        return qe_error_set(err, QE_E_UNSUPPORTED, "activations are int8, fp32 scales, symmetric or with zero points");
    if (act->mode == QE_ACT_STATIC && (!(act->scale > 0.0f) || act->scale > 3e38f || act->zero < 0 || act->zero > 255))
        return qe_error_set(err, QE_E_ARGUMENT, "act.scale must be finite and positive, act.zero 0 to 255");
    if (act->mode == QE_ACT_DYNAMIC && q->group_n != 1)
        return qe_error_set(err, QE_E_ARGUMENT, "act.quant.group_n is %d, dynamic scales are per token: 1", q->group_n);
    int32_t a = q->group_k, b = w->group_k;
    if (a && b && a < k && b < k && a % b && b % a)
        return qe_error_set(err, QE_E_ARGUMENT, "activation groups of %d and weight groups of %d do not nest", a, b);
    return QE_OK;
}

static qe_status read_options(const qe_linear_options *in, const qe_qtensor *t, qe_linear_options *o, qe_error *err) {
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
    QE_TRY(qe_requant_begin(&l->requant, s, o, err));
    bool float_bias = o->bias && !l->requant.on;
    s->layout = qk_layout_choose(&l->device->facts, s, NULL, NULL);
    if (!s->layout)
        return qe_error_set(err, QE_E_UNSUPPORTED, "no %s layout takes this weight", l->device->backend->name);
    int64_t band_rows = s->layout->band_rows;
    l->head_bytes = s->layout->head_bytes(s);
    l->band_bytes = s->layout->band_bytes(s);
    l->layout_bands = (s->n + band_rows - 1) / band_rows;
    uint64_t bytes;
    if (!qe_check_mul((uint64_t)l->layout_bands, l->band_bytes, &bytes) || !qe_check_add(bytes, l->head_bytes, &bytes))
        return qe_error_set(err, QE_E_OVERFLOW, "the packed weight does not fit the address space");
    l->weight.blob_bytes = bytes;
    l->weight.hadamard = form->hadamard;
    l->gemm_flags = (o->bias ? QK_GEMM_BIAS : 0) | (o->flags & QE_LINEAR_RESIDUAL ? QK_GEMM_RESIDUAL : 0);
    l->y_type = o->y_type;
    l->have = calloc((size_t)l->layout_bands, sizeof *l->have);
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
        qe_status status = upload(l->device, o->bias, (size_t)s->n * sizeof(float), &p, err);
        l->bias = p;
        QE_TRY(status);
    }
    return QE_OK;
}

qe_status qe_linear_begin(qe_device *device, const qe_qtensor *form, const qe_linear_options *options,
                          qe_linear **out, qe_error *err) {
    qe_linear_options o;
    if (!device || !form || !out) return qe_error_set(err, QE_E_ARGUMENT, "device, weight or out is NULL");
    QE_TRY(qe_quant_check(&form->quant, form->rows, form->k, err));
    if (form->rows < 1 || form->k < 1)
        return qe_error_set(err, QE_E_ARGUMENT, "an empty weight: %lld x %lld", (long long)form->rows,
                            (long long)form->k);
    QE_TRY(read_options(options, form, &o, err));
    QE_TRY(check_act(o.act, &form->quant, form->k, err));
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

int64_t qe_linear_band_rows(const qe_linear *l) {
    int64_t a = l->weight.shape.layout->band_rows, b = qe_quant_band_rows(&l->weight.shape.quant), x = a, y = b;
    if (!b) return l->weight.shape.n;
    while (y) {
        int64_t r = x % y;
        x = y;
        y = r;
    }
    return a / x * b;
}

void qe_linear_destroy(qe_linear *l) {
    if (!l) return;
    size_t k = (size_t)l->weight.shape.k, n = (size_t)l->weight.shape.n;
    qe_device_release(l->device, l->blob, (size_t)l->weight.blob_bytes);
    qe_device_release(l->device, (void *)(uintptr_t)l->weight.order, k * sizeof(uint32_t));
    qe_device_release(l->device, (void *)(uintptr_t)l->weight.col_scale, k * sizeof(float));
    qe_device_release(l->device, l->bias, n * sizeof(float));
    qe_requant_end(&l->requant, l->device);
    free(l->have);
    free(l);
}

/* ---- packing ----------------------------------------------------------------------------------------------------- */
static int64_t groups(int64_t k, int32_t extent) { return extent ? (k + extent - 1) / extent : 1; }

static void *advance(void *array, int64_t rows, int64_t columns, size_t bytes) {
    return array ? (char *)array + (size_t)(rows * columns) * bytes : NULL;
}

/* Rows [row, row + n) of a band as a band of their own. */
static qe_qtensor rows_of(const qe_qtensor *t, int64_t row, int64_t n) {
    const qe_quant *q = &t->quant;
    qe_qtensor out = *t;
    int64_t g = qk_group_row(t->first_row, row, q->group_n), s = qk_group_row(t->first_row, row, q->super_n);
    size_t code = q->code == QE_CODE_F32 ? 4 : q->code == QE_CODE_F16 || q->code == QE_CODE_BF16 ? 2 : 1;
    out.codes = advance(t->codes, row, t->k, code);
    out.scales = advance(t->scales, g, groups(t->k, q->group_k), qe_num_bytes(q->scale));
    out.zeros = advance(t->zeros, g, groups(t->k, q->group_k), qe_num_bytes(q->zero_num));
    out.super = advance(t->super, s, groups(t->k, q->super_k), qe_num_bytes(q->super));
    out.zero_super = advance(t->zero_super, s, groups(t->k, q->super_k), qe_num_bytes(q->super));
    if (t->lut)
        out.lut = advance(t->lut, qk_group_row(t->first_row, row, q->lut_n), (int64_t)1 << q->bits, sizeof(float));
    out.first_row = t->first_row + row;
    out.n = n;
    return out;
}

typedef struct pack_job {
    qe_linear        *linear;
    const qe_qtensor *band;
    char             *dst;
} pack_job;

static void pack_task(void *arg, int32_t index, int32_t count) {
    const pack_job *job = arg;
    const qk_shape *s = &job->linear->weight.shape;
    int64_t rows = s->layout->band_rows, bands = (job->band->n + rows - 1) / rows;
    for (int64_t i = index; i < bands; i += count) {
        int64_t left = job->band->n - i * rows;
        qe_qtensor part = rows_of(job->band, i * rows, left < rows ? left : rows);
        s->layout->pack(s, &part, job->dst + (size_t)i * job->linear->band_bytes);
    }
}

/* Packs into the blob, or on CUDA into host memory that is then copied there. */
static qe_status pack_band(qe_linear *l, const qe_qtensor *band, qe_error *err) {
    const qk_shape *s = &l->weight.shape;
    int64_t first = band->first_row / s->layout->band_rows;
    size_t bytes = (size_t)((band->n + s->layout->band_rows - 1) / s->layout->band_rows) * l->band_bytes;
    char *target = l->blob + l->head_bytes + (size_t)first * l->band_bytes;
    bool host = qe_device_is_host(l->device), head = l->head_bytes && !atomic_exchange(&l->head_taken, true);
    size_t lead = head && !host ? l->head_bytes : 0;
    char *stage = host ? NULL : qe_os_alloc(lead + bytes);
    if (!host && !stage) return qe_error_set(err, QE_E_NOMEM, "no memory for %zu bytes of packed rows", lead + bytes);
    qk_queue queue = qe_device_queue(l->device, NULL);
    if (head) s->layout->pack_head(s, band, host ? l->blob : stage);
    pack_job job = {l, band, host ? target : stage + lead};
    if (queue.parallel) queue.parallel(queue.pool, pack_task, &job, l->device->facts.units);
    else pack_task(&job, 0, 1);
    if (host) return QE_OK;
    qe_status status = QE_OK;
    if (head) status = l->device->backend->copy(&queue, l->blob, stage, lead, err);
    if (!status) status = l->device->backend->copy(&queue, target, stage + lead, bytes, err);
    if (!status) status = l->device->backend->wait(&queue, err);
    qe_os_release(stage);
    return status;
}

static qe_status check_band(const qe_linear *l, const qe_qtensor *band, qe_error *err) {
    const qk_shape *s = &l->weight.shape;
    if (memcmp(&band->quant, &s->quant, sizeof s->quant) || band->k != s->k)
        return qe_error_set(err, QE_E_MISMATCH, "the band is quantized or shaped unlike the linear");
    int64_t unit = qe_linear_band_rows(l);
    if (band->n < 1 || band->first_row < 0 || band->first_row % unit || band->first_row > s->n - band->n ||
        (band->n % unit && band->first_row + band->n != s->n))
        return qe_error_set(err, QE_E_ARGUMENT, "rows %lld + %lld of %lld: whole bands start at multiples of %lld",
                            (long long)band->first_row, (long long)band->n, (long long)s->n, (long long)unit);
    if (l->checked) return QE_OK;
    qe_qtensor plain = *band;
    plain.order = NULL;
    plain.col_scale = NULL;
    uint32_t facts = s->facts;
    QE_TRY(qe_qtensor_check(&plain, &facts, err));
    if (facts != s->facts)
        return qe_error_set(err, QE_E_VALUE, "rows from %lld break the facts promised: 0x%x hold of 0x%x",
                            (long long)band->first_row, facts, s->facts);
    return QE_OK;
}

qe_status qe_linear_append(qe_linear *l, const qe_qtensor *band, qe_error *err) {
    if (!l || !band) return qe_error_set(err, QE_E_ARGUMENT, "linear or band is NULL");
    if (l->finished) return qe_error_set(err, QE_E_STATE, "the linear is finished");
    unsigned fp = qe_fp_enter();
    qe_status status = check_band(l, band, err);
    if (!status) status = qe_requant_band(&l->requant, band, err);
    if (!status) {
        int64_t rows = l->weight.shape.layout->band_rows, from = band->first_row / rows;
        int64_t end = (band->first_row + band->n + rows - 1) / rows, taken = from;
        while (taken < end && !atomic_exchange(&l->have[taken], 1)) taken++;
        if (taken < end) {
            for (int64_t i = from; i < taken; i++) atomic_store(&l->have[i], 0);
            status = qe_error_set(err, QE_E_DUPLICATE, "row %lld was appended before", (long long)(taken * rows));
        } else {
            status = pack_band(l, band, err);
            for (int64_t i = from; status && i < end; i++) atomic_store(&l->have[i], 0);
            if (!status) atomic_fetch_add(&l->packed, end - from);
        }
    }
    qe_fp_leave(fp);
    return status;
}

qe_status qe_linear_finish(qe_linear *l, qe_error *err) {
    if (!l) return qe_error_set(err, QE_E_ARGUMENT, "linear is NULL");
    if (l->finished) return qe_error_set(err, QE_E_STATE, "the linear is finished");
    int64_t packed = atomic_load(&l->packed);
    if (packed != l->layout_bands) {
        int64_t missing = 0;
        while (missing < l->layout_bands && atomic_load(&l->have[missing])) missing++;
        return qe_error_set(err, QE_E_STATE, "row %lld was never appended",
                            (long long)(missing * l->weight.shape.layout->band_rows));
    }
    QE_TRY(qe_requant_finish(&l->requant, l->device, err));
    l->finished = true;
    return QE_OK;
}

qe_status qe_linear_create(qe_device *device, const qe_qtensor *weight, const qe_linear_options *options,
                           qe_linear **out, qe_error *err) {
    if (!device || !weight || !out) return qe_error_set(err, QE_E_ARGUMENT, "device, weight or out is NULL");
    if (weight->first_row || weight->n != weight->rows)
        return qe_error_set(err, QE_E_ARGUMENT, "not a whole tensor: rows %lld + %lld of %lld",
                            (long long)weight->first_row, (long long)weight->n, (long long)weight->rows);
    qe_qtensor form = *weight;
    form.facts = ~(uint32_t)0;
    if (qe_device_is_host(device)) form.facts &= ~(uint32_t)QE_FACT_F16_RANGE;   /* a costly scan only GPUs use */
    unsigned fp = qe_fp_enter();
    qe_status status = qe_qtensor_check(weight, &form.facts, err);
    qe_fp_leave(fp);
    qe_linear *l = NULL;
    if (!status) status = qe_linear_begin(device, &form, options, &l, err);
    if (!status) {
        l->checked = true;
        status = qe_linear_append(l, weight, err);
    }
    if (!status) status = qe_linear_finish(l, err);
    if (status) qe_linear_destroy(l);
    else *out = l;
    return status;
}

void qe_linear_get_info(const qe_linear *l, qe_linear_info *out) {
    const qk_shape *s = &l->weight.shape;
    memset(out, 0, sizeof *out);
    out->n = s->n;
    out->k = s->k;
    out->chunk_k = s->chunk_k;
    out->packed_bytes = l->weight.blob_bytes;
    out->bits_per_weight = 8.0 * (double)l->weight.blob_bytes / ((double)s->n * (double)s->k);
    out->quant = s->quant;
    out->act = s->act;
    snprintf(out->layout, sizeof out->layout, "%s", s->layout->name);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */
typedef struct run_plan {
    qk_x    x;
    size_t  x_bytes;
    qk_plan plan;
} run_plan;

static qe_status plan_run(const qe_linear *l, int64_t m, int32_t x_type, int32_t y_type, run_plan *out,
                          qk_reason *reasons, void *ctx, qe_error *err) {
    qk_gemm g;
    memset(&g, 0, sizeof g);
    if (x_type == QE_CODE_INT) x_type = QE_CODE_F32;        /* of float inputs alone */
    out->x_bytes = qk_x_bytes(&l->device->facts, &l->weight.shape, m, x_type, &out->x);
    out->x_bytes = (out->x_bytes + 255) & ~(size_t)255;
    g.w = l->weight.shape;
    g.x = out->x.quant;
    g.m = m;
    g.y_type = y_type;
    g.flags = l->gemm_flags;
    return qk_gemm_plan(&l->device->facts, &g, &out->plan, reasons, ctx, err);
}

/* Floats, or codes of the linear's own grid where nothing comes before them. */
static bool takes(const qe_linear *l, int32_t x_type) {
    const qk_weight *w = &l->weight;
    if (x_type != QE_CODE_INT) return float_type(x_type);
    return w->shape.act.mode == QE_ACT_STATIC && !w->order && !w->col_scale && !w->hadamard;
}

size_t qe_linear_workspace(const qe_linear *l, int64_t m, int32_t x_type) {
    run_plan p;
    if (!l || m < 1 || !takes(l, x_type) || m > INT32_MAX) return 0;
    if (plan_run(l, m, x_type, l->y_type, &p, NULL, NULL, NULL)) return 0;
    return p.x_bytes + (size_t)p.plan.workspace_bytes;
}

static qe_status check_args(const qe_linear *l, const qe_linear_args *a, int32_t y_type, qe_error *err) {
    const qk_shape *s = &l->weight.shape;
    if (a->struct_size != sizeof *a) return qe_error_set(err, QE_E_ARGUMENT, "args.struct_size is %zu", a->struct_size);
    if (a->m < 0 || a->m > INT32_MAX) return qe_error_set(err, QE_E_ARGUMENT, "m is %lld", (long long)a->m);
    if (!takes(l, a->x_type))
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

static qe_status run(const qe_linear *l, const qe_linear_args *a, int32_t y_type, qe_error *err) {
    run_plan p;
    QE_TRY(plan_run(l, a->m, a->x_type, y_type, &p, NULL, NULL, err));
    size_t need = p.x_bytes + (size_t)p.plan.workspace_bytes;
    if (!a->workspace || a->workspace_bytes < need || (uintptr_t)a->workspace & 255)
        return qe_error_set(err, QE_E_ARGUMENT, "workspace of %zu bytes, %zu are needed, 256-byte aligned",
                            a->workspace ? a->workspace_bytes : 0, need);
    qk_x_rebase(&p.x, a->workspace);
    qk_queue queue = qe_device_queue(l->device, a->stream);
    qk_prepare prepare;
    memset(&prepare, 0, sizeof prepare);
    prepare.x = a->x;
    prepare.ldx = a->ldx;
    prepare.x_type = a->x_type;
    prepare.next = &l->weight;
    prepare.out = &p.x;
    QE_TRY(l->device->backend->ops.prepare(&prepare, &queue, err));
    qk_gemm_args g;
    memset(&g, 0, sizeof g);
    g.w = &l->weight;
    g.x = p.x;
    g.y = a->y;
    g.ldy = a->ldy;
    g.bias = l->bias;
    qe_requant_give(&l->requant, &g);
    g.residual = a->residual;
    g.ldr = a->ldr;
    g.workspace = (char *)a->workspace + p.x_bytes;
    return qk_gemm_run(&p.plan, &g, &queue, err);
}

qe_status qe_linear_run(const qe_linear *l, const qe_linear_args *args, qe_error *err) {
    if (!l || !args) return qe_error_set(err, QE_E_ARGUMENT, "linear or args is NULL");
    QE_TRY(fail_unless_finished(l, err));
    int32_t y_type = args->y_type ? args->y_type : l->y_type;
    QE_TRY(check_args(l, args, y_type, err));
    if (args->m == 0) return QE_OK;
    unsigned fp = qe_fp_enter();
    qe_status status = run(l, args, y_type, err);
    qe_fp_leave(fp);
    return status;
}

/* ---- explaining -------------------------------------------------------------------------------------------------- */
qe_status qe_linear_explain(const qe_linear *l, int64_t m, qe_explain *tell, void *ctx, qe_error *err) {
    run_plan p;
    if (!l || !tell || m < 1 || m > INT32_MAX) return qe_error_set(err, QE_E_ARGUMENT, "linear, tell or m is missing");
    const qk_shape *s = &l->weight.shape;
    qk_shape asked = *s;
    asked.layout = NULL;
    qk_layout_choose(&l->device->facts, &asked, tell, ctx);
    tell(ctx, s->layout->name, NULL);
    QE_TRY(plan_run(l, m, QE_CODE_F32, l->y_type, &p, tell, ctx, err));
    tell(ctx, p.plan.row->name, NULL);
    return QE_OK;
}
