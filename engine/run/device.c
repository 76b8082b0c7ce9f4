/* device.c -- qe_device: which backend, how many threads, whose memory. The only reader of the QE_* overrides. */
#include "run/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/os.h"
#include "run/tuning.h"

static const struct {
    const char *name;
    int32_t     public_id, kernel_id;
} backends[] = {
    /* the order of AUTO */
    {"cuda", QE_BACKEND_CUDA, QK_CUDA},
    {"cpu", QE_BACKEND_CPU, QK_CPU},
    {"ref", QE_BACKEND_REF, QK_REF},
};
enum { BACKENDS = sizeof backends / sizeof backends[0], MAX_THREADS = 1024 };

static const struct {
    uint32_t    bit;
    const char *name;
} isas[] = {{QK_ISA_AVX2, "avx2+fma+f16c"}, {QK_ISA_AVX_VNNI, "avx-vnni"}, {QK_ISA_AVX512, "avx512"},
            {QK_ISA_VNNI512, "avx512-vnni"}, {QK_ISA_AMX, "amx"},          {QK_ISA_NEON, "neon"},
            {QK_ISA_VPOPCNT, "avx512-vpopcntdq"}};      /* QK_ISA_FEW_PORTS is no instruction set to name */

/* ---- options ----------------------------------------------------------------------------------------------------- */
/* Copies what the caller's version of the struct has; what it has beyond ours must be zero. */
static qe_status read_options(const qe_device_options *in, qe_device_options *out, qe_error *err) {
    memset(out, 0, sizeof *out);
    if (!in) return QE_OK;
    if (in->struct_size < sizeof in->struct_size)
        return qe_error_set(err, QE_E_ARGUMENT, "options.struct_size is not set");
    size_t known = in->struct_size < sizeof *out ? in->struct_size : sizeof *out;
    memcpy(out, in, known);
    for (size_t i = known; i < in->struct_size; i++) {
        if (((const unsigned char *)in)[i])
            return qe_error_set(err, QE_E_ARGUMENT, "options asks for something this version does not know");
    }
    if (out->backend < QE_BACKEND_AUTO || out->backend > QE_BACKEND_CUDA)
        return qe_error_set(err, QE_E_ARGUMENT, "options.backend is %d, legal are 0 to 3", out->backend);
    if (out->flags & ~(uint32_t)QE_DEVICE_PIN_THREADS)
        return qe_error_set(err, QE_E_ARGUMENT, "options.flags 0x%x has unknown bits", out->flags);
    if (out->threads < 0 || out->threads > MAX_THREADS)
        return qe_error_set(err, QE_E_ARGUMENT, "options.threads is %d, legal are 0 to %d", out->threads, MAX_THREADS);
    if (out->executor && (out->threads || !out->executor->parallel || out->executor->threads < 1))
        return qe_error_set(err, QE_E_ARGUMENT, "options.executor needs a function and its threads, options.threads 0");
    if (out->executor && out->flags & QE_DEVICE_PIN_THREADS)
        return qe_error_set(err, QE_E_ARGUMENT, "options.flags pins threads, but options.executor brings its own");
    if (out->allocator && (!out->allocator->alloc || !out->allocator->release))
        return qe_error_set(err, QE_E_ARGUMENT, "options.allocator needs alloc and release");
    return QE_OK;
}

static qe_status read_environment(qe_device_options *o, qe_error *err) {
    const char *backend = qe_os_env("QE_BACKEND"), *threads = qe_os_env("QE_THREADS");
    if (backend && o->backend == QE_BACKEND_AUTO && strcmp(backend, "auto")) {
        for (int i = 0; i < BACKENDS; i++) {
            if (!strcmp(backend, backends[i].name)) o->backend = backends[i].public_id;
        }
        if (o->backend == QE_BACKEND_AUTO)
            return qe_error_set(err, QE_E_ARGUMENT, "QE_BACKEND is none of auto, ref, cpu, cuda");
    }
    if (threads && !o->threads && !o->executor) {
        char *end;
        long v = strtol(threads, &end, 10);
        if (*end || end == threads || v < 1 || v > MAX_THREADS)
            return qe_error_set(err, QE_E_ARGUMENT, "QE_THREADS is no number from 1 to %d", MAX_THREADS);
        o->threads = (int32_t)v;
    }
    return QE_OK;
}

/* QE_ISA holds back instruction sets, for tests and bug reports. */
static qe_status limit_isa(qk_device *facts, qe_error *err) {
    const char *isa = qe_os_env("QE_ISA");
    if (!isa || facts->backend != QK_CPU) return QE_OK;
    if (!strcmp(isa, "scalar")) facts->isa = 0;
    else if (!strcmp(isa, "avx2")) facts->isa &= QK_ISA_AVX2;
    else if (!strcmp(isa, "avx512")) facts->isa &= QK_ISA_AVX2 | QK_ISA_AVX512 | QK_ISA_VNNI512 | QK_ISA_VPOPCNT | QK_ISA_FEW_PORTS;
    else return qe_error_set(err, QE_E_ARGUMENT, "QE_ISA is none of scalar, avx2, avx512");
    return QE_OK;
}

/* QE_EARLY=0: every CUDA kernel begins when those ahead of it have ended, for measurements and bug reports. */
static qe_status limit_early(qk_device *facts, qe_error *err) {
    const char *early = qe_os_env("QE_EARLY");
    if (!early || facts->backend != QK_CUDA) return QE_OK;
    if (strcmp(early, "0") && strcmp(early, "1")) return qe_error_set(err, QE_E_ARGUMENT, "QE_EARLY is none of 0, 1");
    if (*early == '0') facts->flags &= ~(uint32_t)QK_DEVICE_EARLY;
    return QE_OK;
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */
/* AUTO takes what everything runs on, sessions too; linears alone and an emulated device are for those who name them. */
static bool take_auto(const qk_backend *b, int32_t ordinal) {
    qk_device facts;
    if (!b || b->linears_only || b->count() <= ordinal) return false;
    return !b->describe(ordinal, &facts, NULL) && !(facts.flags & QK_DEVICE_EMULATED);
}

static qe_status choose_backend(qe_device *d, const qe_device_options *o, qe_error *err) {
    for (int i = 0; i < BACKENDS; i++) {
        const qk_backend *b = qk_backend_of(backends[i].kernel_id);
        bool automatic = o->backend == QE_BACKEND_AUTO;
        if (automatic ? !take_auto(b, b && b->id == QK_CUDA ? o->ordinal : 0) : o->backend != backends[i].public_id)
            continue;
        if (!b) return qe_error_set(err, QE_E_DEVICE, "this build has no %s kernels", backends[i].name);
        int32_t count = b->count(), ordinal = b->id == QK_CUDA ? o->ordinal : 0;
        if (ordinal < 0 || ordinal >= count)
            return qe_error_set(err, QE_E_DEVICE, "%s device %d is not there: %d found", b->name, ordinal, count);
        d->backend = b;
        QE_TRY(b->describe(ordinal, &d->facts, err));
        QE_TRY(limit_isa(&d->facts, err));
        return limit_early(&d->facts, err);
    }
    return qe_error_set(err, QE_E_DEVICE, "no backend for this machine");
}

static qe_status create_threads(qe_device *d, const qe_device_options *o, qe_error *err) {
    if (!qe_device_is_host(d)) return QE_OK;
    if (o->executor) {
        d->executor = *o->executor;
        d->facts.units = o->executor->threads;
        return QE_OK;
    }
    int32_t threads = o->threads ? o->threads : qe_os_physical_cores();
    d->facts.units = threads;
    QE_TRY(qe_pool_create(threads, &d->pool, err));
    return o->flags & QE_DEVICE_PIN_THREADS ? qe_pool_pin(d->pool, err) : QE_OK;
}

/* A cache that cannot be used costs speed alone. */
static void load_tuning(qe_device *d, const char *path) {
    qe_error err;
    if (!path || !qe_tuning_read(path, &d->tuning, &err)) return;
    qe_log_line(&d->log, QE_LOG_WARNING, "tuning cache %s is not used: %s", path, err.message);
}

qe_status qe_device_create(const qe_device_options *options, qe_device **out, qe_error *err) {
    qe_device_options o;
    if (!out) return qe_error_set(err, QE_E_ARGUMENT, "out is NULL");
    QE_TRY(read_options(options, &o, err));
    QE_TRY(read_environment(&o, err));
    qe_device *d = calloc(1, sizeof *d);
    if (!d) return qe_error_set(err, QE_E_NOMEM, "no memory for a device");
    if (o.allocator) d->allocator = *o.allocator;
    if (o.log) d->log = *o.log;
    qe_status status = choose_backend(d, &o, err);
    if (!status) status = create_threads(d, &o, err);
    if (status) {
        qe_device_destroy(d);
        return status;
    }
    load_tuning(d, o.tuning);
    if (d->facts.backend == QK_REF || (d->facts.backend == QK_CPU && !d->facts.isa))
        qe_log_line(&d->log, QE_LOG_WARNING, "no vector instructions in use: running scalar kernels");
    *out = d;
    return QE_OK;
}

void qe_device_destroy(qe_device *device) {
    if (!device) return;
    qe_pool_destroy(device->pool);
    qe_tuning_free(device->tuning);
    free(device);
}

void qe_device_get_info(const qe_device *device, qe_device_info *out) {
    memset(out, 0, sizeof *out);
    for (int i = 0; i < BACKENDS; i++) {
        if (backends[i].kernel_id == device->facts.backend) out->backend = backends[i].public_id;
    }
    out->ordinal = device->facts.ordinal;
    out->threads = qe_device_is_host(device) ? device->facts.units : 1;
    out->sm = device->facts.sm;
    out->memory_bytes = device->facts.memory_bytes;
    memcpy(out->name, device->facts.name, sizeof out->name);
    out->name[sizeof out->name - 1] = 0;
    if (out->sm) snprintf(out->isa, sizeof out->isa, "sm_%d", out->sm);
    size_t length = strlen(out->isa);
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        if (!(device->facts.isa & isas[i].bit)) continue;
        int wrote = snprintf(out->isa + length, sizeof out->isa - length, "%s%s", length ? "+" : "", isas[i].name);
        if (wrote > 0 && (size_t)wrote < sizeof out->isa - length) length += (size_t)wrote;
    }
    if (!length) snprintf(out->isa, sizeof out->isa, "scalar");
}

/* ---- queue and memory -------------------------------------------------------------------------------------------- */
typedef struct guarded_task {
    qk_task *task;
    void    *arg;
} guarded_task;

static void run_guarded(void *arg, int32_t index, int32_t count) {
    const guarded_task *g = arg;
    unsigned fp = qe_fp_enter();
    g->task(g->arg, index, count);
    qe_fp_leave(fp);
}

/* The host's threads may be in any floating-point state. */
static void run_on_executor(void *pool, qk_task *task, void *arg, int32_t count) {
    const qe_device *d = pool;
    guarded_task g = {task, arg};
    d->executor.parallel(d->executor.ctx, run_guarded, &g, count);
}

qk_queue qe_device_queue(const qe_device *device, void *stream) {
    qk_queue q;
    memset(&q, 0, sizeof q);
    q.device = &device->facts;
    q.stream = stream;
    if (device->pool) {
        q.parallel = qe_pool_run;
        q.pool = device->pool;
    } else if (device->executor.parallel) {
        q.parallel = run_on_executor;
        q.pool = (void *)(uintptr_t)device;
    }
    return q;
}

qe_status qe_device_alloc(const qe_device *device, size_t bytes, void **out, qe_error *err) {
    *out = NULL;
    if (!device->allocator.alloc) return device->backend->alloc(&device->facts, bytes, out, err);
    qe_where where = qe_device_is_host(device) ? QE_WHERE_HOST : QE_WHERE_DEVICE;
    *out = device->allocator.alloc(device->allocator.ctx, bytes, where, NULL);
    return *out ? QE_OK : qe_error_set(err, QE_E_NOMEM, "the allocator gave no %zu bytes", bytes);
}

void qe_device_release(const qe_device *device, void *block, size_t bytes) {
    if (!block) return;
    if (!device->allocator.alloc) {
        device->backend->release(&device->facts, block);
        return;
    }
    qe_where where = qe_device_is_host(device) ? QE_WHERE_HOST : QE_WHERE_DEVICE;
    device->allocator.release(device->allocator.ctx, block, bytes, where, NULL);
}
