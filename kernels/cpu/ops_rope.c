/* rope_append(): float32 rows into an fp16 cache on the ISA's own loops, every other form on the reference, which has the
 * same bits. */
#include "panel.h"

typedef struct rope_job {
    const qk_rope *r;
    const qk_attention *a;
    const panel_isa *isa;
} rope_job;

static void rope_row(const rope_job *j, int32_t s, int64_t row) {
    const qk_rope *r = j->r;
    const qk_attention *a = j->a;
    const qk_kv *kv = a->kv;
    const int32_t dim = a->head_dim;
    float *v = (float *)r->qkv + row * r->ld;
    const float *cs = r->cos_sin ? r->cos_sin + (int64_t)r->position[row] * (r->rotary_dim / 2) * 2 : NULL;
    int64_t slot = kv->length[s] - (a->first_row[s + 1] - row);
    int64_t page = kv->table[s * kv->ld_table + slot / kv->page_tokens];
    char *layer = (char *)kv->pages + (page * kv->layers + a->layer) * kv->page_bytes;
    uint16_t *keys = (uint16_t *)(void *)layer + slot % kv->page_tokens * dim;
    const int64_t head = (int64_t)kv->page_tokens * dim;      /* halves of one head of keys or values in a page */
    for (int32_t h = 0; h < a->heads; h++, v += dim) j->isa->rope_head(r, r->q_norm, cs, v, dim, v, NULL);
    for (int32_t h = 0; h < a->kv_heads; h++, v += dim)
        j->isa->rope_head(r, r->k_norm, cs, v, dim, NULL, keys + h * head);
    for (int32_t h = 0; h < a->kv_heads; h++, v += dim)
        j->isa->rope_head(r, NULL, NULL, v, dim, NULL, keys + (a->kv_heads + h) * head);
}

static void rope_task(void *arg, int32_t index, int32_t count) {
    const rope_job *j = arg;
    const qk_attention *a = j->a;
    for (int32_t s = 0; s < a->sequences; s++) {
        for (int64_t row = a->first_row[s]; row < a->first_row[s + 1]; row++)
            if (row % count == index) rope_row(j, s, row);
    }
}

qe_status cpu_rope_append(const qk_rope *r, const qk_attention *a, const qk_queue *q, qe_error *err) {
    bool common = r && a && q && q->device && r->qkv && r->position && a->kv && a->first_row && a->sequences > 0 &&
                  r->type == QE_CODE_F32 && a->kv->quant.code == QE_CODE_F16 && a->head_dim > 0 &&
                  a->head_dim <= PANEL_HEAD_DIM && a->heads > 0 && a->kv_heads > 0 && r->rotary_dim >= 0 &&
                  r->rotary_dim <= a->head_dim && r->rotary_dim % 2 == 0 && (r->cos_sin || !r->rotary_dim);
    if (!common) return qk_ref_rope_append(r, a, q, err);
    rope_job j = {r, a, panel_isa_of(q->device->isa)};
    int32_t units = q->device->units > 1 && a->first_row[a->sequences] > 1 ? q->device->units : 1;
    cpu_parallel(q, rope_task, &j, units);
    return QE_OK;
}
