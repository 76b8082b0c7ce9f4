/* attention(): float32 rows over an fp16 cache on the ISA's own loops, every other form on the reference.
 *
 * The queries of a KV head (rows times the heads that share it, row by row) are cut into blocks, and blocks are dealt to
 * the threads in turn. Neither changes a bit: a query's sums do not depend on its neighbors (attention_body.h). */
#include "attention.h"
#include "panel.h"

enum { ATTEND_COLUMNS = 32 };   /* head_dim is a multiple of this on the ISA's loops */

typedef struct attention_job {
    const qk_attention *a;
    const panel_isa *isa;
    size_t slice;               /* bytes of a task's scores in the workspace */
    int32_t queries;            /* of a block, a power of two */
} attention_job;

static size_t slice_bytes(const qk_attention *a) {
    return (((size_t)a->max_length * ATTEND_QUERIES_MAX + 16) * sizeof(float) + 255) & ~(size_t)255;
}

size_t cpu_attention_bytes(const qk_device *device, const qk_attention *a) {
    size_t ours = slice_bytes(a) * (size_t)(device && device->units > 0 ? device->units : 1);
    size_t reference = qk_ref_attention_bytes(device, a);
    return ours > reference ? ours : reference;
}

/* Query `index` of the sequence and KV head of the block, as its number q. */
static void place(attend_block *b, int q, int64_t index) {
    const qk_attention *a = b->a;
    int64_t group = a->heads / a->kv_heads, end = a->first_row[b->sequence + 1];
    int64_t row = a->first_row[b->sequence] + index / group, column = (b->kv_head * group + index % group) * a->head_dim;
    int64_t slot = a->kv->length[b->sequence] - end + row;
    b->q[q] = (const float *)a->q + row * a->ldq + column;
    b->out[q] = (float *)a->out + row * a->ldo + column;
    b->last[q] = slot;
    b->first[q] = a->window && slot + 1 > a->window ? slot + 1 - a->window : 0;
    if (q == 0 || b->first[q] < b->low) b->low = b->first[q];
}

static void attention_task(void *arg, int32_t index, int32_t count) {
    const attention_job *j = arg;
    const qk_attention *a = j->a;
    attend_block b = {.a = a, .scores = (float *)(void *)((char *)a->workspace + (size_t)index * j->slice)};
    int64_t block = 0;
    for (b.sequence = 0; b.sequence < a->sequences; b.sequence++) {
        int64_t rows = a->first_row[b.sequence + 1] - a->first_row[b.sequence], queries = rows * (a->heads / a->kv_heads);
        for (b.kv_head = 0; b.kv_head < a->kv_heads; b.kv_head++) {
            for (int64_t at = 0; at < queries; at += b.count, block++) {
                b.count = j->queries;
                while (b.count > queries - at) b.count /= 2;
                if (block % count != index) continue;
                for (int q = 0; q < b.count; q++) place(&b, q, at + q);
                j->isa->attend(&b);
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
    attention_job j = {a, panel_isa_of(q->device->isa), slice_bytes(a), 1};
    /* A block's worth for every thread before blocks grow: a decode step has few queries. */
    int64_t queries = (int64_t)a->first_row[a->sequences] * a->heads;
    while (j.queries < j.isa->attend_queries && queries >= 2 * j.queries * units) j.queries *= 2;
    if (q->parallel && units > 1) q->parallel(q->pool, attention_task, &j, units);
    else attention_task(&j, 0, 1);
    return QE_OK;
}
