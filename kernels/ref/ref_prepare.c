/* ref_prepare.c -- x (+ residual) -> norm or gate -> order, column scale, Hadamard -> quantize, the definition.
 *
 * No memory of its own: the values of a tile of columns are computed again in each pass over the row. */
#include <string.h>

#include "ref_internal.h"

enum { TILE = 4096 };       /* columns on the stack; the largest Hadamard block */

typedef struct ref_source {
    const qk_prepare *a;
    int64_t           token, k;
    float             post, factor;     /* RMS factors */
} ref_source;

/* Column c before the norm: the residual sum when there is one. */
static float base_value(const ref_source *s, int64_t c) {
    const qk_prepare *a = s->a;
    if (a->residual) return a->residual[s->token * a->ldr + c];
    float v = ref_load(a->x_type, a->x, s->token * a->ldx + c);
    return a->post_norm ? qe_mul(qe_mul(v, s->post), a->post_norm[c]) : v;
}

/* Column c, in the caller's order, as the linear multiplies it before column scale and rotation. */
static float value(const ref_source *s, int64_t c) {
    const qk_prepare *a = s->a;
    if (a->act != QK_ACT_NONE) {
        int64_t row = s->token * a->ldx;
        float gate = ref_load(a->x_type, a->x, a->up ? row + c : row + 2 * c);
        float up = a->up ? ref_load(a->x_type, a->up, row + c) : ref_load(a->x_type, a->x, row + 2 * c + 1);
        return qe_mul(ref_act(a->act, gate), up);
    }
    float v = base_value(s, c);
    return a->norm == QK_NORM_NONE ? v : qe_mul(qe_mul(v, s->factor), a->norm_weight[c]);
}

static void begin_row(ref_source *s) {
    const qk_prepare *a = s->a;
    float lanes[512];
    if (a->post_norm) {
        memset(lanes, 0, sizeof lanes);
        for (int64_t c = 0; c < s->k; c++) ref_lanes_add(lanes, c, ref_load(a->x_type, a->x, s->token * a->ldx + c));
        s->post = ref_rms_factor(lanes, s->k, a->eps);
    }
    for (int64_t c = 0; a->residual && c < s->k; c++) {
        float v = ref_load(a->x_type, a->x, s->token * a->ldx + c);
        if (a->post_norm) v = qe_mul(qe_mul(v, s->post), a->post_norm[c]);
        float *r = a->residual + s->token * a->ldr + c;
        *r = qe_add(*r, v);
    }
    if (a->norm == QK_NORM_RMS) {
        memset(lanes, 0, sizeof lanes);
        for (int64_t c = 0; c < s->k; c++) ref_lanes_add(lanes, c, base_value(s, c));
        s->factor = ref_rms_factor(lanes, s->k, a->eps);
    }
}

/* Normalized Walsh-Hadamard of one block: butterflies from stride 1 up, then times 1 / sqrt(n). */
static void hadamard(float *v, int32_t n) {
    for (int32_t stride = 1; stride < n; stride *= 2) {
        for (int32_t i = 0; i < n; i++) {
            if (i & stride) continue;
            float x = v[i], y = v[i + stride];
            v[i] = qe_add(x, y);
            v[i + stride] = qe_sub(x, y);
        }
    }
    float factor = qe_rsqrt((float)n);
    for (int32_t i = 0; i < n; i++) v[i] = qe_mul(v[i], factor);
}

/* Columns [from, from + count) in canonical order; from is a multiple of the Hadamard block. */
static void fetch(const ref_source *s, int64_t from, int64_t count, float *out) {
    const qk_weight *w = s->a->next;
    for (int64_t i = 0; i < count; i++) {
        int64_t c = w->order ? w->order[from + i] : from + i;
        out[i] = value(s, c);
        if (w->col_scale) out[i] = qe_mul(out[i], w->col_scale[c]);
    }
    for (int64_t i = 0; w->hadamard && i < count; i += w->hadamard) hadamard(out + i, w->hadamard);
}

/* The range of columns [from, end), tile by tile. */
static qe_act_range range_of(const ref_source *s, const qe_act *act, int64_t from, int64_t end) {
    float v[TILE], low = 0.0f, high = 0.0f;
    uint32_t top = 0;
    for (int64_t at = from / TILE * TILE; at < end; at += TILE) {
        int64_t count = s->k - at < TILE ? s->k - at : TILE;
        fetch(s, at, count, v);
        for (int64_t i = 0; i < count; i++) {
            if (at + i < from || at + i >= end) continue;
            uint32_t bits = qe_f32_bits(v[i]) & 0x7fffffffu;
            top = bits > top ? bits : top;
            low = v[i] < low ? v[i] : low;
            high = v[i] > high ? v[i] : high;
        }
    }
    if (act->quant.zero == QE_ZERO_CONST) return qe_act_range_symmetric(top);
    return qe_act_range_asymmetric(low, high, top < 0x7f800000u);
}

/* Signs: the mean of |x| in the lanes of 7.5. */
static qe_act_range sign_range(const ref_source *s) {
    float v[TILE], lanes[512] = {0.0f};
    for (int64_t at = 0; at < s->k; at += TILE) {
        int64_t count = s->k - at < TILE ? s->k - at : TILE;
        fetch(s, at, count, v);
        for (int64_t i = 0; i < count; i++) lanes[(at + i) & 511] = qe_act_lane_sign(lanes[(at + i) & 511], v[i]);
    }
    return qe_act_range_sign(ref_fold(lanes), s->k);
}

static void pack_bits(const int8_t *q, int64_t token, qk_x *x) {
    uint32_t *bits = x->bits + token * qk_bit_words(x->k);
    int32_t ones = 0;
    memset(bits, 0, (size_t)qk_bit_words(x->k) * sizeof *bits);
    for (int64_t c = 0; c < x->k; c++) {
        bits[c / 32] |= (uint32_t)(q[c] > 0) << c % 32;
        ones += q[c] > 0;
    }
    x->ones[token] = ones;
}

/* What lies behind the codes of a row, and their sums. */
static void finish_codes(int8_t *q, int64_t token, int8_t pad, qk_x *x) {
    if (x->bits) pack_bits(q, token, x);
    for (int64_t c = x->k; c < x->ld; c++) q[c] = pad;
    for (int64_t c = 0; x->sums && c < x->k; c += x->sum_k) {
        int32_t sum = 0;
        for (int64_t i = c; i < x->k && i < c + x->sum_k; i++) sum += q[i];
        x->sums[token * ((x->k + x->sum_k - 1) / x->sum_k) + c / x->sum_k] = sum;
    }
}

static void write_static_range(const qe_act *act, int64_t token, qk_x *x) {
    if (act->mode != QE_ACT_STATIC || token) return;        /* one pair for all rows, written by one task */
    x->scales[0] = act->scale;
    if (x->zeros) x->zeros[0] = act->zero - 128;
}

static void copy_codes(const ref_source *s, const qe_act *act, qk_x *x) {
    int8_t *q = (int8_t *)x->data + s->token * x->ld;
    memcpy(q, (const int8_t *)s->a->x + s->token * s->a->ldx, (size_t)s->k);
    write_static_range(act, s->token, x);
    finish_codes(q, s->token, (int8_t)(act->quant.zero == QE_ZERO_CONST ? 0 : act->zero - 128), x);
}

static void quantize_row(const ref_source *s, const qe_act *act, qk_x *x) {
    bool signs = act->quant.code == QE_CODE_SIGN, symmetric = act->quant.zero == QE_ZERO_CONST;
    int64_t group = act->quant.group_k ? act->quant.group_k : s->k, groups = (s->k + group - 1) / group;
    int8_t *q = (int8_t *)x->data + s->token * x->ld;
    float v[TILE];
    qe_act_range r = {act->scale, act->mode == QE_ACT_STATIC ? qe_div(1.0f, act->scale) : 0.0f, act->zero - 128};
    write_static_range(act, s->token, x);
    for (int64_t at = 0; at < s->k; at += TILE) {
        int64_t count = s->k - at < TILE ? s->k - at : TILE;
        fetch(s, at, count, v);
        for (int64_t i = 0; i < count; i++) {
            int64_t c = at + i;
            if (act->mode != QE_ACT_STATIC && c % group == 0) {
                r = signs ? sign_range(s) : range_of(s, act, c, c + group < s->k ? c + group : s->k);
                x->scales[s->token * groups + c / group] = r.scale;
                if (x->zeros) x->zeros[s->token * groups + c / group] = r.zero;
            }
            q[c] = signs ? qe_act_code_sign(v[i]) : symmetric ? qe_act_code_symmetric(v[i], r.inverse)
                             : qe_act_code_asymmetric(v[i], r.inverse, r.zero);
        }
    }
    finish_codes(q, s->token, (int8_t)(symmetric ? 0 : r.zero), x);
}

static void float_row(const ref_source *s, qk_x *x) {
    float v[TILE];
    for (int64_t at = 0; at < s->k; at += TILE) {
        int64_t count = s->k - at < TILE ? s->k - at : TILE;
        fetch(s, at, count, v);
        for (int64_t i = 0; i < count; i++) ref_store(x->quant.code, x->data, s->token * x->ld + at + i, v[i]);
    }
    for (int64_t c = s->k; c < x->ld; c++) ref_store(x->quant.code, x->data, s->token * x->ld + c, 0.0f);
}

static void task(void *arg, int32_t index, int32_t count) {
    const qk_prepare *a = arg;
    for (int64_t token = index; token < a->out->m; token += count) {
        ref_source s = {a, token, a->out->k, 0.0f, 0.0f};
        if (a->x_type == QE_CODE_INT) {
            copy_codes(&s, &a->next->shape.act, a->out);
            continue;
        }
        begin_row(&s);
        if (a->next->shape.act.mode == QE_ACT_FLOAT) float_row(&s, a->out);
        else quantize_row(&s, &a->next->shape.act, a->out);
    }
}

qe_status qk_ref_prepare(const qk_prepare *a, const qk_queue *queue, qe_error *err) {
    if (!a || !a->x || !a->next || !a->out || !a->out->data || !queue)
        return qe_error_set(err, QE_E_ARGUMENT, "prepare: x, next or out is missing");
    if (a->x_type == QE_CODE_INT) QE_TRY(qk_prepare_codes_check(a, err));
    else if (!ref_float_type(a->x_type)) return qe_error_set(err, QE_E_ARGUMENT, "prepare: x_type %d", a->x_type);
    if (a->out->k != a->next->shape.k || a->out->packing)
        return qe_error_set(err, QE_E_ARGUMENT, "prepare: out is not laid out for this weight");
    if (a->norm == QK_NORM_LAYER) return qe_error_set(err, QE_E_UNSUPPORTED, "prepare: layer norm");
    if ((a->norm != QK_NORM_NONE && !a->norm_weight) || (a->act != QK_ACT_NONE && (a->norm || a->residual)))
        return qe_error_set(err, QE_E_ARGUMENT, "prepare: norm without weight, or norm or residual beside a gate");
    int32_t h = a->next->hadamard;
    if (h && (h & (h - 1) || h > TILE || a->out->k % h))
        return qe_error_set(err, QE_E_UNSUPPORTED, "prepare: Hadamard blocks of %d in %lld columns", h,
                            (long long)a->out->k);
    int32_t units = queue->device && queue->device->units > 0 ? queue->device->units : 1;
    ref_parallel(queue, task, (void *)(uintptr_t)a, units);
    return QE_OK;
}
