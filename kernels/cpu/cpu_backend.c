/* The CPU backend: panels where the descriptor has them, else decoded bands; host memory. */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bits.h"
#include "decoded.h"

enum { HUGE_BYTES = 2 << 20, SMALL_L2 = 512 << 10, AMX_L2 = 2 << 20, LARGE_L2 = 16 << 20 };

void cpu_parallel(const qk_queue *q, qk_task *task, void *arg, int32_t count) {
    if (q->parallel && count > 1) {
        q->parallel(q->pool, task, arg, count);
        return;
    }
    for (int32_t i = 0; i < count; i++) task(arg, i, count);
}

static int32_t count(void) {
    return 1;
}

static qe_status describe(int32_t ordinal, qk_device *out, qe_error *err) {
    if (ordinal) return qe_error_set(err, QE_E_ARGUMENT, "the CPU is one device, ordinal %d asked", ordinal);
    memset(out, 0, sizeof *out);
    out->backend = QK_CPU;
    out->units = 1;
    out->isa = cpu_isa();
    out->unit_bytes = out->isa & QK_ISA_AMX ? AMX_L2 : SMALL_L2;
#ifdef _SC_LEVEL2_CACHE_SIZE
    long l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);      /* 0: not known */
    if (l2 >= SMALL_L2 && l2 <= LARGE_L2) out->unit_bytes = (uint32_t)l2;
#endif
    cpu_name(out->name, sizeof out->name);
    return QE_OK;
}

/* Weights are streamed once a token: with small pages, each 4 KiB begins with a walk of page tables that have left the caches as
 * well, and in a virtual machine with two walks in one. Whole huge pages are asked for, of the rest if it fills half of one. */
static qe_status alloc(const qk_device *d, size_t bytes, void **out, qe_error *err) {
    (void)d;
    size_t huge = HUGE_BYTES, advised = bytes > SIZE_MAX - huge ? 0 : (bytes + huge / 2) & ~(huge - 1);
    size_t align = advised ? huge : 256;
    *out = bytes > SIZE_MAX - huge ? NULL : aligned_alloc(align, (bytes + align) & ~(align - 1));
#ifdef MADV_HUGEPAGE
    if (*out && advised) madvise(*out, advised, MADV_HUGEPAGE);
#endif
    return *out ? QE_OK : qe_error_set(err, QE_E_NOMEM, "no memory for %zu bytes", bytes);
}

static void release(const qk_device *d, void *p) {
    (void)d;
    free(p);
}

static qe_status copy(const qk_queue *q, void *dst, const void *src, size_t bytes, qe_error *err) {
    (void)q, (void)err;
    if (bytes) memcpy(dst, src, bytes);
    return QE_OK;
}

static qe_status wait(const qk_queue *q, qe_error *err) {
    (void)q, (void)err;
    return QE_OK;
}

static size_t x_bytes(const qk_device *device, const qk_shape *next, int64_t m, int32_t float_type, qk_x *out) {
    (void)device;
    return qk_plain_x_bytes(next, m, float_type, 32, out);
}

static const qk_layout *const layouts[] = {&cpu_layout_bits, &cpu_layout_panel, &cpu_layout_decoded, NULL};
static const qk_row *const rows[] = {&cpu_row_bits, &cpu_row_panel, &cpu_row_decoded, NULL};

const qk_backend qk_cpu_backend = {
    .name = "cpu",
    .id = QK_CPU,
    .count = count,
    .describe = describe,
    .alloc = alloc,
    .release = release,
    .copy = copy,
    .wait = wait,
    .layouts = layouts,
    .rows = rows,
    .ops = {x_bytes, cpu_prepare, cpu_embed, cpu_rope_append, cpu_attention_bytes, cpu_attention},
};
