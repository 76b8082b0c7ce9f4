/* attention(): float32 rows over an fp16 cache on the ISA's own loops, every other form on the reference. */
#include "panel.h"

enum { ATTEND_COLUMNS = 32 };   /* head_dim is a multiple of this on the ISA's loops */

typedef struct attention_job {
    const qk_attention *a;
    const panel_isa *isa;
    size_t slice;               /* bytes of a task's scores in the workspace */
} attention_job;

static void attention_task(void *arg, int32_t index, int32_t count) {
    const attention_job *j = arg;
    const qk_attention *a = j->a;
    float *scores = (float *)(void *)((char *)a->workspace + (size_t)index * j->slice);
    int64_t item = 0;
    for (int32_t s = 0; s < a->sequences; s++) {
        int64_t begin = a->first_row[s], end = a->first_row[s + 1];
        for (int64_t row = begin; row < end; row++) {
            int64_t slot = a->kv->length[s] - end + row;
            for (int32_t head = 0; head < a->heads; head++, item++) {
                if (item % count == index) j->isa->attend_head(a, s, row, head, slot, scores);
            }
        }
    }
}

/* The form the loops know, and nothing the reference would refuse. */
static bool common(const qk_attention *a, const qk_queue *q) {
    if (!a || !q || !q->device || !a->q || !a->out || !a->workspace || !a->kv || !a->first_row) return false;
    if (!a->kv->pages || !a->kv->table || !a->kv->length || a->kv->page_tokens < 1) return false;
    if (a->kv->quant.code != QE_CODE_F16 || a->type != QE_CODE_F32) return false;
    if (a->head_dim < 1 || a->head_dim % ATTEND_COLUMNS || a->heads < 1 || a->kv_heads < 1) return false;
    if (a->heads % a->kv_heads || a->sequences < 1) return false;
    for (int32_t s = 0; s < a->sequences; s++) {
        int32_t rows = a->first_row[s + 1] - a->first_row[s];
        if (rows < 0 || a->kv->length[s] > a->max_length || a->kv->length[s] < rows) return false;
    }
    return true;
}

qe_status cpu_attention(const qk_attention *a, const qk_queue *q, qe_error *err) {
    if (!common(a, q)) return qk_ref_attention(a, q, err);
    int32_t units = q->device->units > 1 ? q->device->units : 1;
    attention_job j = {a, panel_isa_of(q->device->isa), qk_ref_attention_bytes(q->device, a) / (size_t)units};
    if (q->parallel && units > 1) q->parallel(q->pool, attention_task, &j, units);
    else attention_task(&j, 0, 1);
    return QE_OK;
}
