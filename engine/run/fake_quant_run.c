/* fake_quant_run.c -- fake quantization where a trainer's tensors are: the backend's kernels, or on host memory the plain
 * functions, with 16-bit tensors widened around them. */
#include <stdlib.h>
#include <string.h>

#include <qengine/num.h>
#include <qengine/quantize.h>
#include "base/check.h"
#include "run/device.h"

static qk_fake_quant problem_of(const qe_fake_quant *f) {
    qk_fake_quant out;
    memset(&out, 0, sizeof out);
    out.n = f->n;
    out.k = f->k;
    out.group_n = f->group_n;
    out.group_k = f->group_k;
    out.low = f->low;
    out.high = f->high;
    out.scale = f->scale;
    out.zero = f->zero;
    return out;
}

static bool shape_ok(const qe_fake_quant *f) {
    uint64_t count;
    return f && f->scale && f->n >= 0 && f->k >= 0 && f->group_n >= 0 && f->group_k >= 0 && f->low < f->high &&
           qe_check_mul((uint64_t)f->n, (uint64_t)f->k, &count) && count <= INT64_MAX / 16;
}

size_t qe_fake_quantize_workspace(const qe_device *device, const qe_fake_quant *f) {
    if (!device || !shape_ok(f) || !device->backend->fake_quant) return 0;
    qk_fake_quant problem = problem_of(f);
    return device->backend->fake_quant_bytes(&problem);
}

static qe_status check(const qe_device *device, const qe_fake_quant *f, const qe_fake_quant_run *run, qe_error *err) {
    if (!device || !run) return qe_error_set(err, QE_E_ARGUMENT, "device or run is NULL");
    if (run->struct_size != sizeof *run) return qe_error_set(err, QE_E_ARGUMENT, "run.struct_size is %zu", run->struct_size);
    if (!shape_ok(f))
        return qe_error_set(err, QE_E_ARGUMENT, "fake quantization needs scales, a shape and low below high");
    if (run->type != QE_CODE_F32 && run->type != QE_CODE_F16 && run->type != QE_CODE_BF16)
        return qe_error_set(err, QE_E_ARGUMENT, "run.type is %d, legal are F32, F16 and BF16", run->type);
    if (f->n && f->k && (!run->x || !run->out)) return qe_error_set(err, QE_E_ARGUMENT, "x or out is NULL");
    if (!run->dy && (run->dscale || run->dzero))
        return qe_error_set(err, QE_E_ARGUMENT, "gradients are asked for, dy is NULL");
    size_t need = run->dscale || run->dzero ? qe_fake_quantize_workspace(device, f) : 0;
    if (need && (!run->workspace || run->workspace_bytes < need || (uintptr_t)run->workspace & 255))
        return qe_error_set(err, QE_E_ARGUMENT, "workspace of %zu bytes, %zu are needed, 256-byte aligned",
                            run->workspace ? run->workspace_bytes : 0, need);
    return QE_OK;
}

/* ---- host memory ------------------------------------------------------------------------------------------------- */
static void widen(const uint16_t *from, int64_t count, int32_t type, float *to) {
    for (int64_t i = 0; i < count; i++) to[i] = type == QE_CODE_F16 ? qe_f16_to_f32(from[i]) : qe_bf16_to_f32(from[i]);
}
static void narrow(const float *from, int64_t count, int32_t type, uint16_t *to) {
    for (int64_t i = 0; i < count; i++) to[i] = type == QE_CODE_F16 ? qe_f32_to_f16(from[i]) : qe_f32_to_bf16(from[i]);
}

static qe_status plain(const qe_fake_quant *f, const qe_fake_quant_run *run, const float *x, const float *dy, float *out,
                       qe_error *err) {
    if (!run->dy) return qe_fake_quantize_forward(f, x, out, err);
    return qe_fake_quantize_backward(f, x, dy, run->lsq_scaled, out, run->dscale, run->dzero, err);
}

static qe_status on_host(const qe_fake_quant *f, const qe_fake_quant_run *run, qe_error *err) {
    if (run->type == QE_CODE_F32) return plain(f, run, run->x, run->dy, run->out, err);
    int64_t count = f->n * f->k;
    float *x = malloc((size_t)(2 * count + 1) * sizeof *x);
    if (!x) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld floats", (long long)(2 * count));
    float *dy = run->dy ? x + count : NULL;
    widen(run->x, count, run->type, x);
    if (dy) widen(run->dy, count, run->type, dy);
    qe_status status = plain(f, run, x, dy, x, err);
    if (!status) narrow(x, count, run->type, run->out);
    free(x);
    return status;
}

qe_status qe_fake_quantize_run(const qe_device *device, const qe_fake_quant *f, const qe_fake_quant_run *run,
                               qe_error *err) {
    QE_TRY(check(device, f, run, err));
    if (f->n == 0 || f->k == 0) return QE_OK;
    if (!device->backend->fake_quant) {
        unsigned fp = qe_fp_enter();
        qe_status status = on_host(f, run, err);
        qe_fp_leave(fp);
        return status;
    }
    qk_fake_quant problem = problem_of(f);
    qk_queue queue = qe_device_queue(device, run->stream);
    problem.type = run->type;
    problem.lsq_scaled = run->lsq_scaled;
    problem.x = run->x;
    problem.dy = run->dy;
    problem.out = run->out;
    problem.dscale = run->dscale;
    problem.dzero = run->dzero;
    problem.workspace = run->workspace;
    return device->backend->fake_quant(&problem, &queue, err);
}
