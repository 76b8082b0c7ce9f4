/* The CPU backend: panels where the descriptor has them, else the canonical rows of the reference; host memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "panel.h"

/* ---- the last layout: takes every descriptor, through the reference's own table -----------------------------------
 */
static const qk_layout *plain(void) {
    return qk_ref_backend.layouts[0];
}

static bool any_supports(const qk_device *d, const qk_shape *s, qk_why *why) {
    return plain()->supports(d, s, why);
}
static size_t any_head_bytes(const qk_shape *s) {
    return plain()->head_bytes(s);
}
static size_t any_band_bytes(const qk_shape *s) {
    return plain()->band_bytes(s);
}
static void any_pack_head(const qk_shape *s, const qe_qtensor *t, void *head) {
    plain()->pack_head(s, t, head);
}
static void any_pack(const qk_shape *s, const qe_qtensor *t, void *dst) {
    plain()->pack(s, t, dst);
}
static void any_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *t) {
    plain()->unpack(s, head, src, t);
}
static void any_row(const qk_shape *s, const void *head, const void *src, int32_t row, float *w) {
    plain()->row(s, head, src, row, w);
}
enum { ANY_BAND_ROWS = 16 }; /* the reference's, checked by the backend's tests */
static const qk_layout layout_any = {
    "cpu/any",     1,        ANY_BAND_ROWS, any_supports, any_head_bytes, any_band_bytes,
    any_pack_head, any_pack, any_unpack,    any_row};

static bool any_row_supports(const qk_device *d, const qk_gemm *g, qk_why *why) {
    return qk_ref_backend.rows[0]->supports(d, g, why);
}
static void any_plan(const qk_device *d, const qk_gemm *g, qk_plan *out) {
    qk_ref_backend.rows[0]->plan(d, g, out);
}
static qe_status any_run(const qk_plan *p, const qk_gemm_args *a, const qk_queue *q, qe_error *err) {
    return qk_ref_backend.rows[0]->run(p, a, q, err);
}
static const qk_row row_any = {"cpu/any", &layout_any, any_row_supports, any_plan, any_run};

/* ---- device -------------------------------------------------------------------------------------------------------
 */
static int32_t count(void) {
    return 1;
}

static qe_status describe(int32_t ordinal, qk_device *out, qe_error *err) {
    if (ordinal) return qe_error_set(err, QE_E_ARGUMENT, "the CPU is one device, ordinal %d asked", ordinal);
    memset(out, 0, sizeof *out);
    out->backend = QK_CPU;
    out->units = 1;
    out->isa = cpu_isa();
    out->unit_bytes = 512 * 1024;
    snprintf(out->name, sizeof out->name, "CPU (%s)", panel_isa_of(out->isa)->name);
    return QE_OK;
}

static qe_status alloc(const qk_device *d, size_t bytes, void **out, qe_error *err) {
    (void)d;
    *out = bytes > SIZE_MAX - 256 ? NULL : aligned_alloc(256, (bytes + 256) & ~(size_t)255);
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

static const qk_layout *const layouts[] = {&cpu_layout_panel, &layout_any, NULL};
static const qk_row *const rows[] = {&cpu_row_panel, &row_any, NULL};

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
    .ops = {x_bytes, cpu_prepare, qk_ref_embed, qk_ref_rope_append, qk_ref_attention_bytes, cpu_attention},
};
