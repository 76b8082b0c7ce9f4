/* ref_gemm.c -- the bit-exact definition of the linear: quantization.md 7.3 (whole-k integer sums), 7.4 (float group
 * scales) and 7.7 (float input), one output at a time from canonical rows.
 *
 * Codes without an integer value (LUT, E2M1, fp8, HQQ zeros) under int8 input follow 7.4 with the group sum taken in
 * fp32, ascending by fmaf; it is exact wherever the codes are small multiples of a power of two. */
#include <string.h>

#include "ref_internal.h"

enum { WHOLE, GROUPS, FLOATS };

typedef struct ref_job {
    const qk_plan      *plan;
    const qk_gemm_args *args;
    size_t              slice;      /* workspace bytes a task */
    int32_t             mode;
} ref_job;

/* One weight row, decoded for the dot products of all tokens. */
typedef struct ref_decoded {
    bool     integer;      /* codes in q, else in f */
    float   *f;            /* FLOATS: values. Else fl(C - z) */
    int32_t *q;            /* c - z, times L where sums run over all of k */
    float   *scale;        /* per weight group: s_g */
    float   *bias;         /* per weight group: b_g of REAL zeros with a float type */
    int32_t *min;          /* per weight group: integer min of REAL zeros */
    float    row_scale;    /* WHOLE: s_w */
    bool     has_bias, has_min;
} ref_decoded;

/* ---- decoding ---------------------------------------------------------------------------------------------------- */
static float pow2(int e) { return qe_f32_from_bits((uint32_t)(e + 127) << 23); }

static float super_at(const qe_qtensor *t, const void *array, int64_t column) {
    return qe_num_get(t->quant.super, array, t->quant.super_k ? column / t->quant.super_k : 0);
}

/* s_g of the group that holds `column`, or with super_only its second level alone. */
static float group_scale(const qe_qtensor *t, int64_t g, int64_t column, bool super_only) {
    const qe_quant *q = &t->quant;
    float s = super_only ? 1.0f : qe_num_get(q->scale, t->scales, g);
    if (q->super != QE_NUM_ONE) {
        float super = super_at(t, t->super, column);
        s = q->flags & QE_SUPER_DIVIDES ? qe_div(s, super) : qe_mul(super, s);
    }
    return q->scale_log2 ? qe_mul(s, pow2(q->scale_log2)) : s;
}

static float code_value(const qe_qtensor *t, int64_t c) {
    if (t->quant.code == QE_CODE_LUT) return t->lut[((const uint8_t *)t->codes)[c]];
    const float *values = qe_code_values(t->quant.code);
    return values ? values[((const uint8_t *)t->codes)[c]] : ref_load(t->quant.code, t->codes, c);
}

static void decode(const qe_qtensor *t, int32_t mode, ref_decoded *d) {
    const qe_quant *q = &t->quant;
    const uint8_t *codes = t->codes;
    if (mode == FLOATS) {
        qe_dequantize(t, 0, 1, d->f, t->k, NULL);
        return;
    }
    bool groups_in_int = mode == WHOLE && q->super != QE_NUM_ONE && q->group_k && q->group_k < t->k;
    d->integer = qk_integer_code(q) && (q->zero != QE_ZERO_POINT || q->zero_num == QE_NUM_U8);
    d->has_min = q->zero == QE_ZERO_REAL && q->super != QE_NUM_ONE && q->zero_num >= QE_NUM_U8;
    d->has_bias = q->zero == QE_ZERO_REAL && !d->has_min;
    for (int64_t c = 0; c < t->k; c++) {
        int64_t g = q->group_k ? c / q->group_k : 0;
        float zero = q->zero == QE_ZERO_POINT ? qe_num_get(q->zero_num, t->zeros, g) : (float)q->zero_const;
        if (d->integer) d->q[c] = q->code == QE_CODE_SIGN ? 2 * codes[c] - 1 : codes[c] - (int32_t)zero;
        else d->f[c] = qe_sub(q->code == QE_CODE_INT ? (float)codes[c] : code_value(t, c), zero);
        if (groups_in_int) d->q[c] *= (int32_t)qe_num_get(q->scale, t->scales, g);
        if (c == 0 || (q->group_k && c % q->group_k == 0)) {
            d->scale[g] = group_scale(t, g, c, false);
            if (d->has_min) d->min[g] = (int32_t)qe_num_get(q->zero_num, t->zeros, g);
            if (d->has_bias) d->bias[g] = qe_num_get(q->zero_num, t->zeros, g);
        }
    }
    d->row_scale = groups_in_int ? group_scale(t, 0, 0, true) : d->scale[0];
}

/* ---- dot products ------------------------------------------------------------------------------------------------ */
static float dot_floats(const qk_shape *s, const ref_decoded *d, const qk_x *x, int64_t token) {
    float y = 0.0f;
    for (int64_t from = 0; from < s->k; from += s->chunk_k) {
        int64_t end = from + s->chunk_k < s->k ? from + s->chunk_k : s->k;
        float sum = 0.0f;
        for (int64_t c = from; c < end; c++)
            sum = qe_fma(ref_load(x->quant.code, x->data, token * x->ld + c), d->f[c], sum);
        y = from ? qe_add(y, sum) : sum;
    }
    return y;
}

static int64_t x_groups(const qk_x *x) {
    return x->quant.group_k ? (x->k + x->quant.group_k - 1) / x->quant.group_k : 1;
}

/* Scale and zero of activation group g of a token; a static input has one for all. */
static float x_range(const qk_shape *s, const qk_x *x, int64_t token, int64_t g, int32_t *zero) {
    int64_t at = s->act.mode == QE_ACT_STATIC ? 0 : token * x_groups(x) + g;
    *zero = x->zeros ? x->zeros[at] : 0;
    return x->scales[at];
}

static uint32_t sum_whole(const qk_shape *s, const ref_decoded *d, const qk_x *x, int64_t token, float *scale) {
    const int8_t *q = (const int8_t *)x->data + token * x->ld;
    int32_t zero;
    *scale = x_range(s, x, token, 0, &zero);
    uint32_t acc = 0;
    for (int64_t c = 0; c < s->k; c++) acc += (uint32_t)(q[c] - zero) * (uint32_t)d->q[c];
    return acc;
}

static float dot_whole(const qk_shape *s, const ref_decoded *d, const qk_x *x, int64_t token) {
    float scale;
    uint32_t acc = sum_whole(s, d, x, token, &scale);
    return qe_mul(qe_mul((float)(int32_t)acc, scale), d->row_scale);
}

static int64_t border(int64_t c, int32_t extent, int64_t end) {
    if (extent <= 0) return end;
    int64_t next = (c / extent + 1) * extent;
    return next < end ? next : end;
}

/* Columns [from, end) under one activation scale: f of 7.4. */
static float dot_act_group(const qk_shape *s, const ref_decoded *d, const int8_t *q, int32_t zero, int64_t from,
                           int64_t end, const qe_qtensor *row) {
    const qe_quant *w = &s->quant;
    float f = 0.0f;
    for (int64_t outer = from; outer < end;) {
        int64_t outer_end = border(outer, w->super != QE_NUM_ONE ? w->super_k : 0, end);
        uint32_t mins = 0;
        for (int64_t c = outer; c < outer_end;) {
            int64_t stop = border(c, w->group_k, outer_end), g = w->group_k ? c / w->group_k : 0;
            uint32_t acc = 0, sum = 0;
            float facc = 0.0f;
            for (; c < stop; c++) {
                int32_t v = q[c] - zero;
                sum += (uint32_t)v;
                if (d->integer) acc += (uint32_t)v * (uint32_t)d->q[c];
                else facc = qe_fma(d->f[c], (float)v, facc);
            }
            f = qe_fma(d->integer ? (float)(int32_t)acc : facc, d->scale[g], f);
            if (d->has_bias) f = qe_fma((float)(int32_t)sum, d->bias[g], f);
            if (d->has_min) mins += (uint32_t)d->min[g] * sum;
        }
        if (d->has_min) f = qe_fma((float)(int32_t)mins, super_at(row, row->zero_super, outer), f);
        outer = outer_end;
    }
    return f;
}

static float dot_groups(const qk_shape *s, const ref_decoded *d, const qk_x *x, int64_t token, const qe_qtensor *row) {
    const int8_t *q = (const int8_t *)x->data + token * x->ld;
    float y = 0.0f;
    for (int64_t from = 0; from < s->k; from += s->chunk_k) {
        int64_t end = from + s->chunk_k < s->k ? from + s->chunk_k : s->k;
        float sum = 0.0f;
        for (int64_t c = from; c < end;) {
            int64_t stop = border(c, x->quant.group_k, end);
            int32_t zero;
            float scale = x_range(s, x, token, x->quant.group_k ? c / x->quant.group_k : 0, &zero);
            sum = qe_fma(dot_act_group(s, d, q, zero, c, stop, row), scale, sum);
            c = stop;
        }
        y = from ? qe_add(y, sum) : sum;
    }
    return y;
}

/* ---- one task ---------------------------------------------------------------------------------------------------- */
static void finish(const qk_gemm_args *a, int32_t y_type, int64_t token, int64_t column, float v) {
    if (a->residual) v = qe_add(v, ref_load(y_type, a->residual, token * a->ldr + column));
    ref_store(y_type, a->y, token * a->ldy + column, v);
}

static void run_row(const ref_job *job, ref_decoded *d, float *keep, int64_t n) {
    const qk_gemm_args *a = job->args;
    const qk_shape *s = &a->w->shape;
    int32_t y_type = job->plan->y_type, act = job->plan->act;
    bool gated = job->plan->flags & QK_GEMM_GATED;
    const char *band = (const char *)a->w->blob + (size_t)(n / REF_BAND_ROWS) * qk_ref_canonical.band_bytes(s);
    qe_qtensor row;
    qk_ref_row_view(s, band, (int32_t)(n % REF_BAND_ROWS), &row);
    decode(&row, job->mode, d);
    for (int64_t token = 0; token < a->x.m; token++) {
        if (y_type == QE_CODE_INT) {
            float scale;
            uint32_t sum = sum_whole(s, d, &a->x, token, &scale);
            ((int8_t *)a->y)[token * a->ldy + n] = qk_requantize(a, sum, n);
            continue;
        }
        float v = job->mode == FLOATS  ? dot_floats(s, d, &a->x, token)
                  : job->mode == WHOLE ? dot_whole(s, d, &a->x, token)
                                       : dot_groups(s, d, &a->x, token, &row);
        if (a->bias) v = qe_add(v, a->bias[n]);
        if (!gated) finish(a, y_type, token, n, ref_act(act, v));
        else if (n % 2 == 0) keep[token] = ref_act(act, v);
        else finish(a, y_type, token, n / 2, qe_mul(keep[token], v));
    }
}

static void run_task(void *arg, int32_t index, int32_t count) {
    const ref_job *job = arg;
    const qk_shape *s = &job->args->w->shape;
    size_t k = (size_t)s->k;
    char *work = (char *)job->args->workspace + (size_t)index * job->slice;
    ref_decoded d;
    memset(&d, 0, sizeof d);
    d.f = (float *)(void *)work;
    d.q = (int32_t *)(void *)work;
    d.scale = d.f + k;
    d.bias = d.scale + k;
    d.min = (int32_t *)(void *)d.bias;
    float *keep = d.bias + k;
    for (int64_t band = index; band * REF_BAND_ROWS < s->n; band += count) {
        int64_t end = (band + 1) * REF_BAND_ROWS < s->n ? (band + 1) * REF_BAND_ROWS : s->n;
        for (int64_t n = band * REF_BAND_ROWS; n < end; n++) run_row(job, &d, keep, n);
    }
}

/* ---- the row ----------------------------------------------------------------------------------------------------- */
static bool supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    (void)device;
    if (g->y_type == QE_CODE_INT) {
        if (!qk_whole_k(&g->w.quant, g->w.facts, &g->w.act, g->w.k)) return qk_no(why, "int8 output of float sums");
        if (g->act || g->flags & (QK_GEMM_RESIDUAL | QK_GEMM_GATED)) return qk_no(why, "int8 output with activation");
    } else if (!ref_float_type(g->y_type)) return qk_no(why, "an output that is neither float nor int8");
    if (g->w.act.mode != QE_ACT_FLOAT && !qk_act_int8(&g->w.act))
        return qk_no(why, "activations of %d bits", g->w.act.quant.bits);
    if (g->flags & QK_GEMM_GATED && g->w.n % 2) return qk_no(why, "gated with an odd n");
    return true;
}

static void plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    out->block = (uint32_t)(device->units > 0 ? device->units : 1);
    size_t slice = ((size_t)g->w.k * 12 + (size_t)g->m * 4 + 255) & ~(size_t)255;
    out->workspace_bytes = slice * out->block;
}

static qe_status run(const qk_plan *p, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape *s = &args->w->shape;
    bool gated = p->flags & QK_GEMM_GATED;
    if (args->ldy < (gated ? s->n / 2 : s->n))
        return qe_error_set(err, QE_E_ARGUMENT, "ldy is %lld for n %lld", (long long)args->ldy, (long long)s->n);
    if (s->act.mode == QE_ACT_FLOAT ? !ref_float_type(args->x.quant.code) : args->x.quant.code != QE_CODE_INT)
        return qe_error_set(err, QE_E_ARGUMENT, "x is not prepared as the weight asks");
    if (args->x.packing) return qe_error_set(err, QE_E_ARGUMENT, "x is packed for another backend");
    ref_job job = {p, args, p->workspace_bytes / p->block, GROUPS};
    if (s->act.mode == QE_ACT_FLOAT) job.mode = FLOATS;
    else if (qk_whole_k(&s->quant, s->facts, &s->act, s->k)) job.mode = WHOLE;
    ref_parallel(queue, run_task, &job, (int32_t)p->block);
    return QE_OK;
}

const qk_row qk_ref_row = {"ref/any", &qk_ref_canonical, supports, plan, run};
