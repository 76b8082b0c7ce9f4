/* qk_registry.c -- the ordered lists with reasons: which backends are linked in, which layout a weight gets, which row
 * runs a call; and what all backends must agree on (whole-k sums, chunks, the plain form of activations). */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <qengine/num.h>

#include "qk.h"

extern const qk_backend qk_ref_backend __attribute__((weak));
extern const qk_backend qk_cpu_backend __attribute__((weak));
extern const qk_backend qk_cuda_backend __attribute__((weak));

const qk_backend *qk_backend_of(int32_t id) {
    switch (id) {
    case QK_REF: return &qk_ref_backend;
    case QK_CPU: return &qk_cpu_backend;
    case QK_CUDA: return &qk_cuda_backend;
    default: return NULL;
    }
}

bool qk_no(qk_why *why, const char *format, ...) {
    if (!why) return false;
    va_list args;
    va_start(args, format);
    vsnprintf(why->text, sizeof why->text, format, args);
    va_end(args);
    return false;
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */
const qk_layout *qk_layout_choose(const qk_device *device, const qk_shape *shape, qk_reason *reasons, void *ctx) {
    const qk_backend *backend = qk_backend_of(device->backend);
    if (!backend) return NULL;
    for (const qk_layout *const *layout = backend->layouts; *layout; layout++) {
        qk_why why = {""};
        if ((*layout)->supports(device, shape, &why)) return *layout;
        if (reasons) reasons(ctx, (*layout)->name, why.text);
    }
    return NULL;
}

qe_status qk_gemm_plan(const qk_device *device, const qk_gemm *gemm, qk_plan *out, qk_reason *reasons, void *ctx,
                       qe_error *err) {
    const qk_backend *backend = device ? qk_backend_of(device->backend) : NULL;
    if (!backend || !gemm || !out || !gemm->w.layout || gemm->m < 1)
        return qe_error_set(err, QE_E_ARGUMENT, "a plan needs a device, a layout, m of at least 1 and a place");
    if (gemm->experts && backend->id != QK_CUDA)
        return qe_error_set(err, QE_E_UNSUPPORTED, "%s runs experts one by one", backend->name);
    qk_device planned = *device;
    if (gemm->experts) planned.units = 1;      /* experts fill a device: none has to cut its k into splits */
    qk_why why = {"the backend has no row for this layout"};
    for (const qk_row *const *row = backend->rows; *row; row++) {
        if ((*row)->layout != gemm->w.layout) continue;
        if ((*row)->supports(device, gemm, &why)) {
            qk_plan plan = qk_plan_begin(*row, gemm);
            (*row)->plan(&planned, gemm, &plan);
            *out = plan;
            return QE_OK;
        }
        if (reasons) reasons(ctx, (*row)->name, why.text);
    }
    return qe_error_set(err, QE_E_UNSUPPORTED, "%s: %s", gemm->w.layout->name, why.text);
}

qe_status qk_gemm_run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    if (!plan || !plan->row || !args || !args->w || !queue)
        return qe_error_set(err, QE_E_ARGUMENT, "plan, arguments or queue missing");
    const qk_shape *shape = &args->w->shape;
    if (shape->layout != plan->row->layout)
        return qe_error_set(err, QE_E_ARGUMENT, "a plan of %s run on a weight of another layout",
                            plan->row->layout->name);
    if (args->x.k != shape->k || args->x.m < 0)
        return qe_error_set(err, QE_E_ARGUMENT, "x is %lld x %lld, the weight has k %lld", (long long)args->x.m,
                            (long long)args->x.k, (long long)shape->k);
    if (args->x.m == 0) return QE_OK;
    if (!args->x.data || !args->y || (plan->workspace_bytes && !args->workspace))
        return qe_error_set(err, QE_E_ARGUMENT, "x, y or workspace is NULL");
    if (plan->y_type == QE_CODE_INT && !args->requant == !args->requant_fixed)
        return qe_error_set(err, QE_E_ARGUMENT, "int8 output needs requant or requant_fixed, and one of them");
    return plan->row->run(plan, args, queue, err);
}

qe_status qk_prepare_codes_check(const qk_prepare *a, qe_error *err) {
    const qk_weight *w = a->next;
    if (w->shape.act.mode != QE_ACT_STATIC || a->norm || a->act || a->post_norm || a->residual || w->order ||
        w->col_scale || w->hadamard)
        return qe_error_set(err, QE_E_ARGUMENT,
                            "int8 input needs a static act and no norm, gate, residual, order, scale or rotation");
    return QE_OK;
}

int8_t qk_requantize(const qk_gemm_args *a, uint32_t sum, int64_t n) {
    int32_t acc = (int32_t)(a->bias_q ? sum + (uint32_t)a->bias_q[n] : sum);
    int64_t q;
    if (a->requant_fixed) {
        int32_t shift = a->requant_fixed[2 * n + 1];
        q = ((int64_t)acc * a->requant_fixed[2 * n] + ((int64_t)1 << (shift - 1))) >> shift;
    } else q = qe_rne(qe_clamp(qe_mul((float)acc, a->requant[n]), -1024.0f, 1024.0f));
    q += a->y_zero;
    return (int8_t)(q < -128 ? -128 : q > 127 ? 127 : q);
}

/* ---- what all backends agree on ---------------------------------------------------------------------------------- */
static bool whole(int32_t extent, int64_t k) { return extent == 0 || extent >= k; }

bool qk_whole_k(const qe_quant *w, uint32_t facts, const qe_act *act, int64_t k) {
    if (!qk_act_int8(act) || !whole(act->quant.group_k, k)) return false;
    if (!qk_integer_code(w) || w->zero == QE_ZERO_REAL) return false;
    if (w->zero == QE_ZERO_POINT && w->zero_num != QE_NUM_U8) return false;
    bool row_scales = whole(w->group_k, k) && whole(w->super_k, k) && w->zero == QE_ZERO_CONST;
    row_scales |= w->super == QE_NUM_ONE && whole(w->group_k, k);
    bool integer_groups = w->super != QE_NUM_ONE && whole(w->super_k, k) && facts & QE_FACT_INT8_PRODUCT &&
                          !(w->flags & QE_SUPER_DIVIDES);
    if (!row_scales && !integer_groups) return false;
    return k <= qe_quant_max_k(w, facts, &act->quant);
}

static int64_t lcm(int64_t a, int64_t b) {
    int64_t x = a, y = b;
    while (y) {
        int64_t r = x % y;
        x = y;
        y = r;
    }
    return a / x * b;
}

int64_t qk_chunk_k(const qe_quant *w, uint32_t facts, const qe_act *act, int64_t n, int64_t k) {
    if (k <= 0 || n <= 0 || qk_whole_k(w, facts, act, k)) return k;
    int64_t parts = 8;
    parts = 16384 / n < parts ? 16384 / n : parts;
    parts = k / 1024 < parts ? k / 1024 : parts;
    if (parts <= 1) return k;
    int64_t unit = 256;
    const int32_t groups[] = {w->group_k, w->super != QE_NUM_ONE ? w->super_k : 0,
                              act->mode == QE_ACT_FLOAT ? 0 : act->quant.group_k};
    for (int i = 0; i < 3; i++) {
        if (groups[i] > 0 && groups[i] < k) unit = lcm(unit, groups[i]);
        if (unit >= k) return k;
    }
    int64_t chunk = (k + parts - 1) / parts;
    chunk = (chunk + unit - 1) / unit * unit;
    return chunk < k ? chunk : k;
}

/* ---- activations ------------------------------------------------------------------------------------------------- */
static size_t reserve(size_t *at, int64_t bytes) {
    size_t from = *at;
    *at = (from + (size_t)bytes + 255) & ~(size_t)255;
    return from;
}

size_t qk_plain_x_bytes(const qk_shape *next, int64_t m, int32_t float_type, int64_t sum_k, qk_x *out) {
    qk_x x;
    size_t bytes = 0;
    memset(&x, 0, sizeof x);
    x.m = m;
    x.k = next->k;
    x.ld = (next->k + 63) / 64 * 64;
    if (next->act.mode == QE_ACT_FLOAT) {
        x.quant.code = (uint8_t)float_type;
        x.quant.bits = float_type == QE_CODE_F32 ? 32 : 16;
        x.data = (void *)(uintptr_t)reserve(&bytes, m * x.ld * (x.quant.bits / 8));
    } else {
        bool signs = next->act.quant.code == QE_CODE_SIGN;
        x.quant = next->act.quant;
        if (signs) x.quant.code = QE_CODE_INT, x.quant.bits = 8, x.quant.zero_const = 128;
        int64_t groups = x.quant.group_k ? (x.k + x.quant.group_k - 1) / x.quant.group_k : 1;
        int64_t scales = next->act.mode == QE_ACT_STATIC ? 1 : m * groups;
        x.sum_k = sum_k;
        x.data = (void *)(uintptr_t)reserve(&bytes, m * x.ld + 1);
        x.scales = (float *)(uintptr_t)reserve(&bytes, scales * 4);
        if (x.quant.zero != QE_ZERO_CONST) x.zeros = (int32_t *)(uintptr_t)reserve(&bytes, scales * 4);
        if (sum_k) x.sums = (int32_t *)(uintptr_t)reserve(&bytes, m * ((x.k + sum_k - 1) / sum_k) * 4);
        if (signs) {
            x.bits = (uint32_t *)(uintptr_t)reserve(&bytes, m * qk_bit_words(x.k) * 4);
            x.ones = (int32_t *)(uintptr_t)reserve(&bytes, m * 4);
        }
    }
    *out = x;
    return bytes;
}

size_t qk_x_bytes(const qk_device *device, const qk_shape *next, int64_t m, int32_t float_type, qk_x *out) {
    return qk_backend_of(device->backend)->ops.x_bytes(device, next, m, float_type, out);
}

void qk_x_rebase(qk_x *x, void *base) {
    char *b = base;
    x->data = b + (uintptr_t)x->data;
    if (x->scales) x->scales = (float *)(b + (uintptr_t)x->scales);
    if (x->zeros) x->zeros = (int32_t *)(b + (uintptr_t)x->zeros);
    if (x->sums) x->sums = (int32_t *)(b + (uintptr_t)x->sums);
    if (x->bits) x->bits = (uint32_t *)(b + (uintptr_t)x->bits);
    if (x->ones) x->ones = (int32_t *)(b + (uintptr_t)x->ones);
}

bool qk_x_shared(const qk_weight *a, const qk_weight *b) {
    return a->shape.k == b->shape.k && !memcmp(&a->shape.act, &b->shape.act, sizeof a->shape.act) &&
           a->order == b->order && a->col_scale == b->col_scale && a->hadamard == b->hadamard;
}
