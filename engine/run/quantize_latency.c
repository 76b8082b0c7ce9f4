/* quantize_latency.c -- what linears of a scheme take for one row on the device: made of empty codes, which cost what others do,
 * under the facts the checkpoint will promise, so that they get the layout and kernel that decode will use. */
#include <stdlib.h>
#include <string.h>

#include <qengine/gemm.h>
#include "base/os.h"
#include "run/quantize_mixed.h"

enum { COLD_BYTES = 128 << 20, COPIES = 256, ROUNDS = 7, LEAST_US = 200 };

typedef struct bench {
    qe_linear *linear[COPIES];
    int64_t    count, n, k;
    float     *x, *y;
    void      *workspace;
    size_t     workspace_bytes;
} bench;

static size_t groups_of(const qe_qtensor *t, int32_t extent_n, int32_t extent_k) {
    int64_t n = extent_n ? (t->n + extent_n - 1) / extent_n : 1, k = extent_k ? (t->k + extent_k - 1) / extent_k : 1;
    return (size_t)(n * k);
}

/* Codes, scales and zeros of 0 are valid under every descriptor. Only a power of two would be 2^-127, a subnormal that some
 * processors multiply slowly: it becomes 1. */
static void fill(qe_qtensor *t, void *block, size_t bytes) {
    const qe_quant *q = &t->quant;
    memset(block, 0, bytes);
    if (q->scale == QE_NUM_E8M0) memset(t->scales, 127, groups_of(t, q->group_n, q->group_k));
    if (q->super == QE_NUM_E8M0) memset(t->super, 127, groups_of(t, q->super_n, q->super_k));
}

static qe_status make_of(qe_device *device, const qe_item *item, void *block, size_t bytes, bench *b, qe_error *err) {
    qe_qtensor t;
    QE_TRY(qe_qtensor_place(&t, item->linear ? &item->decision.quant : &item->ref.quant, b->n, b->k, 0, block, bytes, err));
    fill(&t, block, bytes);
    if (item->linear) {
        t.facts = item->weight.form.facts;
        t.hadamard = item->weight.form.hadamard;
        t.act = item->weight.form.act;
    }
    if (t.act.mode == QE_ACT_STATIC) t.act.scale = 1.0f;
    QE_TRY(qe_linear_create(device, &t, NULL, &b->linear[b->count], err));
    b->count++;
    return QE_OK;
}

static qe_status make(qe_device *device, const qe_item *item, bench *b, qe_error *err) {
    size_t bytes = qe_qtensor_bytes(item->linear ? &item->decision.quant : &item->ref.quant, b->n, b->k, 0);
    void *block = qe_os_alloc(bytes);
    if (!block) return qe_mix_nomem(err);
    qe_status status = make_of(device, item, block, bytes, b, err);
    qe_os_release(block);
    return status;
}

static qe_status make_all(qe_device *device, const qe_item *item, int64_t copies, bench *b, qe_error *err) {
    qe_linear_info info;
    QE_TRY(make(device, item, b, err));
    qe_linear_get_info(b->linear[0], &info);
    int64_t most = COLD_BYTES / (int64_t)(info.packed_bytes + 1) + 1;
    if (copies > most) copies = most;
    while (b->count < copies && b->count < COPIES) QE_TRY(make(device, item, b, err));
    b->workspace_bytes = qe_linear_workspace(b->linear[0], 1, QE_CODE_F32);
    b->workspace = qe_os_alloc(b->workspace_bytes);
    b->x = qe_os_alloc((size_t)b->k * sizeof *b->x);
    b->y = qe_os_alloc((size_t)b->n * sizeof *b->y);
    if (!b->workspace || !b->x || !b->y) return qe_mix_nomem(err);
    for (int64_t i = 0; i < b->k; i++) b->x[i] = (float)(i % 17 - 8);
    return QE_OK;
}

static qe_status round_of(const bench *b, double *seconds, qe_error *err) {
    const qe_linear_args args = {.struct_size = sizeof args, .m = 1, .x = b->x, .ldx = b->k, .x_type = QE_CODE_F32, .y = b->y,
                                 .ldy = b->n, .workspace = b->workspace, .workspace_bytes = b->workspace_bytes};
    int64_t runs = 0;
    uint64_t start = qe_os_now_us(), took = 0;
    while (took < LEAST_US) {
        for (int64_t i = 0; i < b->count; i++) QE_TRY(qe_linear_run(b->linear[i], &args, err));
        runs += b->count;
        took = qe_os_now_us() - start;
    }
    double each = 1e-6 * (double)took / (double)runs;
    if (each < *seconds) *seconds = each;
    return QE_OK;
}

qe_status qe_job_latency(qe_job *job, qe_item *const *items, int32_t count, int64_t copies, double *seconds, qe_error *err) {
    bench b;
    memset(&b, 0, sizeof b);
    if (!qe_device_is_host(job->device))
        return qe_error_set(err, QE_E_UNSUPPORTED, "a budget of time is measured on a CPU, this device is none");
    b.k = items[0]->ref.k;
    for (int32_t i = 0; i < count; i++) b.n += items[i]->ref.n;
    *seconds = 1e9;
    qe_status status = make_all(job->device, items[0], copies, &b, err);
    for (int i = 0; i < ROUNDS && !status; i++) status = round_of(&b, seconds, err);
    for (int64_t i = 0; i < b.count; i++) qe_linear_destroy(b.linear[i]);
    qe_os_release(b.workspace);
    qe_os_release(b.x);
    qe_os_release(b.y);
    return status;
}
