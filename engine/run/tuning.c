/* tuning.c -- which entry of a tuning cache is meant by a problem, and the plan it asks for. */
#include "run/tuning.h"

#include <stdio.h>
#include <string.h>

static int64_t bucket_of(int64_t m) {
    int64_t bucket = 1;
    while (bucket < m) bucket *= 2;
    return bucket;
}

static const char *x_name(int32_t code) {
    switch (code) {
    case QE_CODE_F32: return "f32";
    case QE_CODE_F16: return "f16";
    case QE_CODE_BF16: return "bf16";
    default: return "int8";
    }
}

/* Bounded, so that a long scheme is cut where a description would be: two such keys would share an entry, not bits. */
static void scheme_key(const qk_shape *s, char *out, size_t bytes) {
    static const char *const modes[] = {"float", "dynamic", "static"};
    char weight[128] = "", act[96] = "";
    qe_quant_name(&s->quant, weight, sizeof weight);
    if (s->act.mode != QE_ACT_FLOAT) qe_quant_name(&s->act.quant, act, sizeof act);
    snprintf(out, bytes, "%s x %s%s%s in %s", weight, modes[s->act.mode], *act ? " " : "", act, s->layout->name);
}

void qe_tuning_key(const qe_device *device, const qk_gemm *gemm, qe_tuning_entry *out) {
    qe_device_info info;
    memset(out, 0, sizeof *out);
    qe_device_get_info(device, &info);
    snprintf(out->device, sizeof out->device, "%s, %s, %d %s", info.name, info.isa, device->facts.units,
             qe_device_is_host(device) ? "threads" : "SMs");
    scheme_key(&gemm->w, out->scheme, sizeof out->scheme);
    snprintf(out->x, sizeof out->x, "%s", x_name(gemm->x.code));
    out->n = gemm->w.n;
    out->k = gemm->w.k;
    out->m = bucket_of(gemm->m);
}

static bool same_key(const qe_tuning_entry *a, const qe_tuning_entry *b) {
    return a->n == b->n && a->k == b->k && a->m == b->m && !strcmp(a->x, b->x) && !strcmp(a->scheme, b->scheme) &&
           !strcmp(a->device, b->device);
}

static const qk_row *row_named(const qk_backend *backend, const char *name) {
    for (const qk_row *const *row = backend->rows; *row; row++)
        if (!strcmp((*row)->name, name)) return *row;
    return NULL;
}

const qe_tuning_entry *qe_tuning_find(const qe_device *device, const qk_gemm *gemm, qk_tuning *out) {
    qe_tuning_entry key;
    qk_plan plan;
    const qe_tuning *t = device->tuning;
    if (!t || !t->count) return NULL;
    qe_tuning_key(device, gemm, &key);
    for (int64_t i = 0; i < t->count; i++) {
        const qe_tuning_entry *e = &t->entries[i];
        if (!same_key(e, &key)) continue;
        *out = (qk_tuning){row_named(device->backend, e->row), e->tile_m, e->units};
        /* Asked of the plans and not trusted: whoever edits the file gets another plan at most, never other bits. */
        return out->row && !qk_gemm_plan_tuned(&device->facts, gemm, out, &plan, NULL) ? e : NULL;
    }
    return NULL;
}

qe_status qe_tuning_plan(const qe_device *device, const qk_gemm *gemm, qk_plan *out, qe_error *err) {
    qk_tuning tuning;
    if (qe_tuning_find(device, gemm, &tuning)) return qk_gemm_plan_tuned(&device->facts, gemm, &tuning, out, err);
    return qk_gemm_plan(&device->facts, gemm, out, NULL, NULL, err);
}
