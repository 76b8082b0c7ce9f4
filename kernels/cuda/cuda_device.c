/* Devices, memory and copies of the cuda backend, through qk_cuda_api. */
#include "cuda_backend.h"

#include <string.h>

static const qk_cuda_api *replaced;

const qk_cuda_api *qk_cuda_api_now(void) {
    return replaced ? replaced : &qk_cuda_api_default;
}
void qk_cuda_api_replace(const qk_cuda_api *api) {
    replaced = api;
}

qe_status qk_cuda_fail(int code, const char *what, qe_error *err) {
    const qk_cuda_api *api = qk_cuda_api_now();
    qe_status status = api->out_of_memory(code) ? QE_E_NOMEM : api->lost(code) ? QE_E_DEVICE_LOST : QE_E_DEVICE;
    return qe_error_set(err, status, "cuda: %s failed: %s", what, api->text(code));
}

/* Runs between enter and leave see `ordinal` as the thread's device; the caller's own is restored. */
static int enter(int32_t ordinal, int *before) {
    const qk_cuda_api *api = qk_cuda_api_now();
    int code = api->current(before);
    if (!code && *before != ordinal) code = api->select(ordinal);
    return code;
}
static int leave(int32_t ordinal, int before, int code) {
    int restored = before == ordinal ? 0 : qk_cuda_api_now()->select(before);
    return code ? code : restored;
}

int32_t qk_cuda_count(void) {
    int devices = 0;
    return qk_cuda_api_now()->count(&devices) ? 0 : devices;
}

qe_status qk_cuda_describe(int32_t ordinal, qk_device *out, qe_error *err) {
    int32_t count = qk_cuda_count();
    if (ordinal < 0 || ordinal >= count)
        return qe_error_set(err, QE_E_ARGUMENT, "cuda: device %d of %d", (int)ordinal, (int)count);
    qk_device device;
    memset(&device, 0, sizeof device);
    int code = qk_cuda_api_now()->facts(ordinal, &device);
    if (code) return qk_cuda_fail(code, "reading device attributes", err);
    if (device.sm < 80)
        return qe_error_set(err, QE_E_UNSUPPORTED, "cuda: device %d is sm_%d, needed sm_80 or later", (int)ordinal,
                            (int)device.sm);
    device.backend = QK_CUDA;
    device.ordinal = ordinal;
    *out = device;
    return QE_OK;
}

qe_status qk_cuda_alloc(const qk_device *device, size_t bytes, void **out, qe_error *err) {
    int before = 0;
    int code = enter(device->ordinal, &before);
    if (!code) code = leave(device->ordinal, before, qk_cuda_api_now()->alloc(out, bytes ? bytes : 1));
    return code ? qk_cuda_fail(code, "allocating device memory", err) : QE_OK;
}

void qk_cuda_release(const qk_device *device, void *block) {
    int before = 0;
    if (!block) return;
    int code = enter(device->ordinal, &before);
    (void)leave(device->ordinal, before, qk_cuda_api_now()->release(block));
    (void)code;
}

qe_status qk_cuda_copy(const qk_queue *queue, void *dst, const void *src, size_t bytes, qe_error *err) {
    int before = 0;
    if (!bytes) return QE_OK;
    int code = enter(queue->device->ordinal, &before);
    if (!code) code = leave(queue->device->ordinal, before, qk_cuda_api_now()->copy(dst, src, bytes, queue->stream));
    return code ? qk_cuda_fail(code, "a copy", err) : QE_OK;
}

qe_status qk_cuda_wait(const qk_queue *queue, qe_error *err) {
    int before = 0;
    int code = enter(queue->device->ordinal, &before);
    if (!code) code = leave(queue->device->ordinal, before, qk_cuda_api_now()->wait(queue->stream));
    return code ? qk_cuda_fail(code, "waiting for a stream", err) : QE_OK;
}

qe_status qk_cuda_enqueue(const qk_cuda_launch *launch, const qk_queue *queue, const char *what, qe_error *err) {
    int before = 0;
    int code = enter(queue->device->ordinal, &before);
    if (!code) code = leave(queue->device->ordinal, before, qk_cuda_api_now()->launch(launch, queue->stream));
    return code ? qk_cuda_fail(code, what, err) : QE_OK;
}
