/* Devices, memory and copies of the cuda backend, through qk_cuda_api. */
#include "cuda_backend.h"

#include <stdatomic.h>
#include <string.h>

enum { DEVICES_MAX = 64 };
static const qk_cuda_api *replaced;
/* The code that said a device's context is gone, 0 while it lives. Nothing revives it within a process. */
static atomic_int lost[DEVICES_MAX];

const qk_cuda_api *qk_cuda_api_now(void) {
    return replaced ? replaced : &qk_cuda_api_default;
}
void qk_cuda_api_replace(const qk_cuda_api *api) {
    replaced = api;
    for (int i = 0; i < DEVICES_MAX; i++) atomic_store(&lost[i], 0);
}

qe_status qk_cuda_fail(int code, const char *what, qe_error *err) {
    const qk_cuda_api *api = qk_cuda_api_now();
    qe_status status = api->out_of_memory(code) ? QE_E_NOMEM : api->lost(code) ? QE_E_DEVICE_LOST : QE_E_DEVICE;
    return qe_error_set(err, status, "cuda: %s failed: %s", what, api->text(code));
}

/* Remembers a lost device; returns the code. */
static int note(int32_t ordinal, int code) {
    if (code && ordinal < DEVICES_MAX && qk_cuda_api_now()->lost(code)) atomic_store(&lost[ordinal], code);
    return code;
}
/* Runs between enter and leave see `ordinal` as the thread's device; the caller's own is restored. A lost device is not
 * asked again: its code is the answer. Without success there is nothing to leave. */
static int enter(int32_t ordinal, int *before) {
    const qk_cuda_api *api = qk_cuda_api_now();
    int code = ordinal < DEVICES_MAX ? atomic_load(&lost[ordinal]) : 0;
    if (!code) code = api->current(before);
    if (!code && *before != ordinal) code = api->select(ordinal);
    return note(ordinal, code);
}
static int leave(int32_t ordinal, int before, int code) {
    int restored = before == ordinal ? 0 : qk_cuda_api_now()->select(before);
    note(ordinal, code);
    return code ? code : note(ordinal, restored);
}

int32_t qk_cuda_count(void) {
    int devices = 0;
    return qk_cuda_api_now()->count(&devices) ? 0 : devices;
}

/* A MIG slice, a limit of MPS or a part with other GPCs may refuse some sizes, or all. */
static int ask_clusters(uint32_t *sizes) {
    for (uint32_t blocks = 2; QK_CLUSTERS_ALL >> blocks; blocks++) {
        int at_once = 0, code = qk_cuda_api_now()->clusters(blocks, &at_once);
        if (code) return code;
        if (at_once > 0) *sizes |= 1u << blocks;
    }
    return 0;
}

qe_status qk_cuda_describe(int32_t ordinal, qk_device *out, qe_error *err) {
    int count = 0, code = qk_cuda_api_now()->count(&count);
    if (code) return qk_cuda_fail(code, "counting devices", err);
    if (ordinal < 0 || ordinal >= count)
        return qe_error_set(err, QE_E_ARGUMENT, "cuda: device %d of %d", (int)ordinal, count);
    qk_device device;
    memset(&device, 0, sizeof device);
    code = ordinal < DEVICES_MAX ? atomic_load(&lost[ordinal]) : 0;
    if (!code) code = note(ordinal, qk_cuda_api_now()->facts(ordinal, &device));
    if (code) return qk_cuda_fail(code, "reading device attributes", err);
    if (device.sm < 80)
        return qe_error_set(err, QE_E_UNSUPPORTED, "cuda: device %d is sm_%d, needed sm_80 or later", (int)ordinal,
                            (int)device.sm);
    device.backend = QK_CUDA;
    device.ordinal = ordinal;
    if (device.sm / 10 == 9) {
        int before = 0;
        code = enter(ordinal, &before);
        if (!code) code = leave(ordinal, before, ask_clusters(&device.clusters));
        if (code) return qk_cuda_fail(code, "counting clusters", err);
    }
    *out = device;
    return QE_OK;
}

qe_status qk_cuda_alloc(const qk_device *device, size_t bytes, void **out, qe_error *err) {
    const qk_cuda_api *api = qk_cuda_api_now();
    int before = 0;
    *out = NULL;
    int code = enter(device->ordinal, &before);
    if (!code) code = leave(device->ordinal, before, api->alloc(out, bytes ? bytes : 1));
    if (!code) return QE_OK;
    /* Allocated, but the caller's device could not be restored. */
    if (*out) (void)api->release(*out);
    *out = NULL;
    return qk_cuda_fail(code, "allocating device memory", err);
}

void qk_cuda_release(const qk_device *device, void *block) {
    int before = 0;
    if (!block) return;
    /* Freed even where the device cannot be selected: the runtime knows by the address whose memory it is. */
    int entered = enter(device->ordinal, &before), code = qk_cuda_api_now()->release(block);
    if (!entered) (void)leave(device->ordinal, before, code);
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
