/* embed(): rows of a layout, times a factor. */
#include "panel.h"

typedef struct embed_job {
    float *y;
    int64_t m, k, ldy;
    float factor;
} embed_job;

static void scale_task(void *arg, int32_t index, int32_t count) {
    const embed_job *j = arg;
    for (int64_t row = j->m * index / count, last = j->m * (index + 1) / count; row < last; row++) {
        float *y = j->y + row * j->ldy;
        for (int64_t i = 0; i < j->k; i++) y[i] *= j->factor;
    }
}

/* The reference asks the layout for the rows; its loops are scalar by intent, so the factor is applied here. */
qe_status cpu_embed(const qk_weight *table, const int32_t *ids, int64_t m, float scale, void *y, int64_t ldy,
                    int32_t y_type, const qk_queue *q, qe_error *err) {
    QE_TRY(qk_ref_embed(table, ids, m, 1.0f, y, ldy, y_type, q, err));
    embed_job j = {y, m, table->shape.k, ldy, scale};
    int32_t units = q->device && q->device->units > 1 ? q->device->units : 1;
    if (scale != 1.0f) cpu_parallel(q, scale_task, &j, m < units ? (int32_t)m : units);
    return QE_OK;
}
