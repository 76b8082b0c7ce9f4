/* linear_pack.c -- bands of a weight, in any order and from any thread, into the layout the kernels read. */
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "run/linear_internal.h"

int64_t qe_linear_band_rows(const qe_linear *l) {
    int64_t a = l->weight.shape.layout->band_rows, b = qe_quant_band_rows(&l->weight.shape.quant), x = a, y = b;
    if (!b) return l->weight.shape.n;
    while (y) {
        int64_t r = x % y;
        x = y;
        y = r;
    }
    return a / x * b;
}

static int64_t groups(int64_t k, int32_t extent) { return extent ? (k + extent - 1) / extent : 1; }

static void *advance(void *array, int64_t rows, int64_t columns, size_t bytes) {
    return array ? (char *)array + (size_t)(rows * columns) * bytes : NULL;
}

/* Rows [row, row + n) of a band as a band of their own. */
static qe_qtensor rows_of(const qe_qtensor *t, int64_t row, int64_t n) {
    const qe_quant *q = &t->quant;
    qe_qtensor out = *t;
    int64_t g = qk_group_row(t->first_row, row, q->group_n), s = qk_group_row(t->first_row, row, q->super_n);
    size_t code = q->code == QE_CODE_F32 ? 4 : q->code == QE_CODE_F16 || q->code == QE_CODE_BF16 ? 2 : 1;
    out.codes = advance(t->codes, row, t->k, code);
    out.scales = advance(t->scales, g, groups(t->k, q->group_k), qe_num_bytes(q->scale));
    out.zeros = advance(t->zeros, g, groups(t->k, q->group_k), qe_num_bytes(q->zero_num));
    out.super = advance(t->super, s, groups(t->k, q->super_k), qe_num_bytes(q->super));
    out.zero_super = advance(t->zero_super, s, groups(t->k, q->super_k), qe_num_bytes(q->super));
    if (t->lut)
        out.lut = advance(t->lut, qk_group_row(t->first_row, row, q->lut_n), (int64_t)1 << q->bits, sizeof(float));
    out.first_row = t->first_row + row;
    out.n = n;
    return out;
}

typedef struct pack_job {
    qe_linear        *linear;
    const qe_qtensor *band;
    char             *dst;
} pack_job;

static void pack_task(void *arg, int32_t index, int32_t count) {
    const pack_job *job = arg;
    const qk_shape *s = &job->linear->weight.shape;
    int64_t rows = s->layout->band_rows, bands = (job->band->n + rows - 1) / rows;
    for (int64_t i = index; i < bands; i += count) {
        int64_t left = job->band->n - i * rows;
        qe_qtensor part = rows_of(job->band, i * rows, left < rows ? left : rows);
        s->layout->pack(s, &part, job->dst + (size_t)i * job->linear->band_bytes);
    }
}

/* Packs into the blob, or on CUDA into host memory that is then copied there. */
static qe_status pack_band(qe_linear *l, int32_t expert, const qe_qtensor *band, qe_error *err) {
    const qk_shape *s = &l->weight.shape;
    int64_t first = band->first_row / s->layout->band_rows;
    size_t bytes = (size_t)((band->n + s->layout->band_rows - 1) / s->layout->band_rows) * l->band_bytes;
    char *blob = l->blob + (size_t)expert * l->expert_bytes;
    char *target = blob + l->head_bytes + (size_t)first * l->band_bytes;
    atomic_uchar *head_taken = l->have + l->experts * l->layout_bands + expert;
    bool host = qe_device_is_host(l->device), head = l->head_bytes && !atomic_exchange(head_taken, 1);
    size_t lead = head && !host ? l->head_bytes : 0;
    char *stage = host ? NULL : qe_os_alloc(lead + bytes);
    if (!host && !stage) {
        if (head) atomic_store(head_taken, 0);
        return qe_error_set(err, QE_E_NOMEM, "no memory for %zu bytes of packed rows", lead + bytes);
    }
    qk_queue queue = qe_device_queue(l->device, NULL);
    if (head) s->layout->pack_head(s, band, host ? blob : stage);
    pack_job job = {l, band, host ? target : stage + lead};
    if (queue.parallel) queue.parallel(queue.pool, pack_task, &job, l->device->facts.units);
    else pack_task(&job, 0, 1);
    if (host) return QE_OK;
    qe_status status = QE_OK;
    if (head) status = l->device->backend->copy(&queue, blob, stage, lead, err);
    if (!status) status = l->device->backend->copy(&queue, target, stage + lead, bytes, err);
    if (!status) status = l->device->backend->wait(&queue, err);
    if (status && head) atomic_store(head_taken, 0);
    qe_os_release(stage);
    return status;
}

static qe_status check_band(const qe_linear *l, const qe_qtensor *band, qe_error *err) {
    const qk_shape *s = &l->weight.shape;
    if (memcmp(&band->quant, &s->quant, sizeof s->quant) || band->k != s->k)
        return qe_error_set(err, QE_E_MISMATCH, "the band is quantized or shaped unlike the linear");
    int64_t unit = qe_linear_band_rows(l);
    if (band->n < 1 || band->first_row < 0 || band->first_row % unit || band->first_row > s->n - band->n ||
        (band->n % unit && band->first_row + band->n != s->n))
        return qe_error_set(err, QE_E_ARGUMENT, "rows %lld + %lld of %lld: whole bands start at multiples of %lld",
                            (long long)band->first_row, (long long)band->n, (long long)s->n, (long long)unit);
    if (l->checked) return QE_OK;
    qe_qtensor plain = *band;
    plain.order = NULL;
    plain.col_scale = NULL;
    uint32_t facts = s->facts;
    QE_TRY(qe_qtensor_check(&plain, &facts, err));
    if (facts != s->facts)
        return qe_error_set(err, QE_E_VALUE, "rows from %lld break the facts promised: 0x%x hold of 0x%x",
                            (long long)band->first_row, facts, s->facts);
    return QE_OK;
}

qe_status qe_linear_append_expert(qe_linear *l, int32_t expert, const qe_qtensor *band, qe_error *err) {
    if (!l || !band) return qe_error_set(err, QE_E_ARGUMENT, "linear or band is NULL");
    if (l->finished) return qe_error_set(err, QE_E_STATE, "the linear is finished");
    if (expert < 0 || expert >= l->experts)
        return qe_error_set(err, QE_E_ARGUMENT, "expert %d of a linear of %d", expert, l->experts);
    unsigned fp = qe_fp_enter();
    qe_status status = check_band(l, band, err);
    if (!status) {
        atomic_uchar *have = l->have + expert * l->layout_bands;
        int64_t rows = l->weight.shape.layout->band_rows, from = band->first_row / rows;
        int64_t end = (band->first_row + band->n + rows - 1) / rows, taken = from;
        while (taken < end && !atomic_exchange(&have[taken], 1)) taken++;
        if (taken < end) {
            for (int64_t i = from; i < taken; i++) atomic_store(&have[i], 0);
            status = qe_error_set(err, QE_E_DUPLICATE, "row %lld was appended before", (long long)(taken * rows));
        } else {
            status = qe_requant_band(&l->requant, expert * l->weight.shape.n + band->first_row, band, err);
            if (!status) status = pack_band(l, expert, band, err);
            for (int64_t i = from; status && i < end; i++) atomic_store(&have[i], 0);
            if (!status) atomic_fetch_add(&l->packed, end - from);
        }
    }
    qe_fp_leave(fp);
    return status;
}

qe_status qe_linear_append(qe_linear *l, const qe_qtensor *band, qe_error *err) {
    return qe_linear_append_expert(l, 0, band, err);
}

qe_status qe_linear_finish(qe_linear *l, qe_error *err) {
    if (!l) return qe_error_set(err, QE_E_ARGUMENT, "linear is NULL");
    if (l->finished) return qe_error_set(err, QE_E_STATE, "the linear is finished");
    int64_t packed = atomic_load(&l->packed), bands = l->experts * l->layout_bands;
    if (packed != bands) {
        int64_t missing = 0;
        while (missing < bands && atomic_load(&l->have[missing])) missing++;
        return qe_error_set(err, QE_E_STATE, "row %lld of expert %lld was never appended",
                            (long long)(missing % l->layout_bands * l->weight.shape.layout->band_rows),
                            (long long)(missing / l->layout_bands));
    }
    QE_TRY(qe_requant_finish(&l->requant, l->device, err));
    l->finished = true;
    return QE_OK;
}
