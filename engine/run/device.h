/* run/device.h -- inside of a qe_device: backend, queue and where memory comes from. Immutable after creation. */
#ifndef QE_RUN_DEVICE_H
#define QE_RUN_DEVICE_H
#include <stdbool.h>

#include <qengine/gemm.h>
#include "base/pool.h"
#include "kernels/qk.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct qe_device {
    qk_device         facts;
    const qk_backend *backend;
    qe_pool          *pool;           /* NULL with an executor or on CUDA */
    qe_executor       executor;
    qe_allocator      allocator;      /* alloc NULL: the backend's own */
    qe_log            log;
    struct qe_tuning *tuning;         /* of the cache asked for; NULL: none */
};

/* A queue on the caller's stream; valid as long as the device. */
qk_queue  qe_device_queue(const qe_device *device, void *stream);

/* Memory the backend's kernels reach, 256-byte aligned; its contents are undefined. QE_E_NOMEM says how many bytes. */
qe_status qe_device_alloc(const qe_device *device, size_t bytes, void **out, qe_error *err);
void      qe_device_release(const qe_device *device, void *block, size_t bytes);
static inline bool qe_device_is_host(const qe_device *device) { return device->facts.backend != QK_CUDA; }

/* Public calls that compute do so in the contract's floating-point state: nearest even, subnormals kept. */
static inline unsigned qe_fp_enter(void) {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return before;
#else
    return 0;
#endif
}
static inline void qe_fp_leave(unsigned before) {
#if defined(__SSE__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}
#ifdef __cplusplus
}
#endif
#endif
