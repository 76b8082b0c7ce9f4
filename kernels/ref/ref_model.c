/* Embedding lookup, rotary embedding with KV append, attention over paged fp16 or fp32 KV: plain loops in host memory, for the reference and for any CPU backend without its own. */
#include <string.h>

#include "ref_internal.h"

enum { MAX_HEAD_DIM = 1024 };

/* ---- embedding --------------------------------------------------------------------------------------------------- */
typedef struct ref_embed {
    const qk_weight *table;
    const int32_t   *ids;
    int64_t          m, ldy;
    float            scale;
    float           *y;
} ref_embed;

static void embed_task(void *arg, int32_t index, int32_t count) {
    const ref_embed *e = arg;
    const qk_shape *s = &e->table->shape;
    const char *head = e->table->blob;
    const char *bands = head + s->layout->head_bytes(s);
    size_t band_bytes = s->layout->band_bytes(s);
    for (int64_t i = index; i < e->m; i += count) {
        int32_t id = e->ids[i], rows = s->layout->band_rows;
        float *y = e->y + i * e->ldy;
        s->layout->row(s, head, bands + (size_t)(id / rows) * band_bytes, id % rows, y);
        for (int64_t c = 0; c < s->k && e->scale != 1.0f; c++) y[c] = qe_mul(y[c], e->scale);
    }
}

qe_status qk_ref_embed(const qk_weight *table, const int32_t *ids, int64_t m, float scale, void *y, int64_t ldy,
                       int32_t y_type, const qk_queue *q, qe_error *err) {
    if (!table || !ids || !y || !q || m < 0) return qe_error_set(err, QE_E_ARGUMENT, "embed: a pointer is NULL");
    if (ldy < table->shape.k) return qe_error_set(err, QE_E_ARGUMENT, "embed: ldy %lld", (long long)ldy);
    if (y_type != QE_CODE_F32) return qe_error_set(err, QE_E_UNSUPPORTED, "embed: y_type %d, F32 is supported", y_type);
    if (!table->shape.layout->row || table->order)
        return qe_error_set(err, QE_E_UNSUPPORTED, "embed: %s gives no rows", table->shape.layout->name);
    for (int64_t i = 0; i < m; i++) {
        if (ids[i] < 0 || ids[i] >= table->shape.n)
            return qe_error_set(err, QE_E_ARGUMENT, "token %d of a vocabulary of %lld", ids[i],
                                (long long)table->shape.n);
    }
    ref_embed e = {table, ids, m, ldy, scale, y};
    int32_t units = q->device && q->device->units > 0 ? q->device->units : 1;
    ref_parallel(q, embed_task, &e, m < units ? (int32_t)m : units);
    return QE_OK;
}

/* ---- the KV cache ------------------------------------------------------------------------------------------------ */
/* Index, in elements of a page's layer, of the keys (values: part 1) of one slot and head; *layer is where that lies. */
static int64_t kv_at(const qk_attention *a, int32_t sequence, int64_t slot, int32_t head, int part,
                     void **layer) {
    const qk_kv *kv = a->kv;
    int64_t page = kv->table[sequence * kv->ld_table + slot / kv->page_tokens];
    *layer = (char *)kv->pages + (page * kv->layers + a->layer) * kv->page_bytes;
    return ((int64_t)(part * a->kv_heads + head) * kv->page_tokens + slot % kv->page_tokens) * a->head_dim;
}

static qe_status check_attention(const qk_attention *a, const qk_queue *q, qe_error *err) {
    if (!a || !a->kv || !a->first_row || !q) return qe_error_set(err, QE_E_ARGUMENT, "attention: a pointer is NULL");
    if (a->heads < 1 || a->kv_heads < 1 || a->heads % a->kv_heads || a->head_dim < 1 || a->head_dim > MAX_HEAD_DIM)
        return qe_error_set(err, QE_E_ARGUMENT, "attention: %d heads, %d kv heads of %d", a->heads, a->kv_heads,
                            a->head_dim);
    if (!ref_float_type(a->type)) return qe_error_set(err, QE_E_ARGUMENT, "attention: type %d", a->type);
    if (a->kv->quant.code != QE_CODE_F16 && a->kv->quant.code != QE_CODE_F32)
        return qe_error_set(err, QE_E_UNSUPPORTED, "attention: KV that is neither F16 nor F32");
    return QE_OK;
}

static int32_t sequence_of(const qk_attention *a, int64_t row) {
    int32_t s = 0;
    while (s + 1 < a->sequences && a->first_row[s + 1] <= row) s++;
    return s;
}

static int64_t slot_of(const qk_attention *a, int32_t s, int64_t row) {
    return a->kv->length[s] - (a->first_row[s + 1] - row);
}

/* ---- rope and append --------------------------------------------------------------------------------------------- */
typedef struct ref_rope {
    const qk_rope      *r;
    const qk_attention *a;
} ref_rope;

static void head_norm(float *v, int32_t n, const float *weight, float eps) {
    float lanes[512] = {0};
    for (int32_t i = 0; i < n; i++) ref_lanes_add(lanes, i, v[i]);
    float factor = ref_rms_factor(lanes, n, eps);
    for (int32_t i = 0; i < n; i++) v[i] = qe_mul(qe_mul(v[i], factor), weight[i]);
}

static void rotate(const qk_rope *r, float *v, int32_t position) {
    int32_t half = r->rotary_dim / 2;
    const float *cs = r->cos_sin + (int64_t)position * half * 2;
    for (int32_t i = 0; i < half; i++) {
        int32_t x = r->interleaved ? 2 * i : i, y = r->interleaved ? 2 * i + 1 : i + half;
        float c = cs[2 * i], s = cs[2 * i + 1], a = v[x], b = v[y];
        v[x] = qe_fma(a, c, -qe_mul(b, s));
        v[y] = qe_fma(b, c, qe_mul(a, s));
    }
}

static void rope_task(void *arg, int32_t index, int32_t count) {
    const ref_rope *job = arg;
    const qk_rope *r = job->r;
    const qk_attention *a = job->a;
    float v[MAX_HEAD_DIM];
    int32_t dim = a->head_dim;
    for (int64_t row = index; row < a->first_row[a->sequences]; row += count) {
        int32_t s = sequence_of(a, row);
        int64_t slot = slot_of(a, s, row);
        for (int32_t h = 0; h < a->heads + 2 * a->kv_heads; h++) {
            int64_t at = row * r->ld + (int64_t)h * dim;
            int32_t kv_head = h - a->heads;
            for (int32_t i = 0; i < dim; i++) v[i] = ref_load(r->type, r->qkv, at + i);
            if (kv_head < 0 && r->q_norm) head_norm(v, dim, r->q_norm, r->eps);
            if (kv_head >= 0 && kv_head < a->kv_heads && r->k_norm) head_norm(v, dim, r->k_norm, r->eps);
            if (kv_head < a->kv_heads) rotate(r, v, r->position[row]);
            if (kv_head < 0) {
                for (int32_t i = 0; i < dim; i++) ref_store(r->type, r->qkv, at + i, v[i]);
                continue;
            }
            void *layer;
            int64_t to = kv_at(a, s, slot, kv_head % a->kv_heads, kv_head / a->kv_heads, &layer);
            for (int32_t i = 0; i < dim; i++) ref_store(a->kv->quant.code, layer, to + i, v[i]);
        }
    }
}

qe_status qk_ref_rope_append(const qk_rope *r, const qk_attention *a, const qk_queue *q, qe_error *err) {
    QE_TRY(check_attention(a, q, err));
    if (!r || !r->qkv || !r->position || (r->rotary_dim && !r->cos_sin) || !ref_float_type(r->type))
        return qe_error_set(err, QE_E_ARGUMENT, "rope: a pointer is NULL or the type is unknown");
    if (r->rotary_dim < 0 || r->rotary_dim % 2 || r->rotary_dim > a->head_dim)
        return qe_error_set(err, QE_E_ARGUMENT, "rope: rotary_dim %d of %d", r->rotary_dim, a->head_dim);
    ref_rope job = {r, a};
    ref_parallel(q, rope_task, &job, q->device && q->device->units > 0 ? q->device->units : 1);
    return QE_OK;
}

/* ---- attention --------------------------------------------------------------------------------------------------- */
typedef struct ref_attend {
    const qk_attention *a;
    size_t              slice;
} ref_attend;

static float score(const qk_attention *a, int64_t at, const void *keys, int64_t key) {
    float s = 0.0f;
    for (int32_t i = 0; i < a->head_dim; i++)
        s = qe_fma(ref_load(a->type, a->q, at + i), ref_load(a->kv->quant.code, keys, key + i), s);
    s = qe_mul(s, a->scale);
    return a->softcap > 0.0f ? qe_mul(a->softcap, qe_tanh(qe_div(s, a->softcap))) : s;
}

/* One query row and head: scores, softmax (maximum taken off, sum ascending), weighted values. */
static void attend(const qk_attention *a, int64_t row, int32_t head, float *scores) {
    int32_t s = sequence_of(a, row), kv_head = head / (a->heads / a->kv_heads), dim = a->head_dim;
    int64_t last = slot_of(a, s, row), first = a->window && last + 1 > a->window ? last + 1 - a->window : 0;
    float top = -INFINITY, sum = 0.0f, out[MAX_HEAD_DIM] = {0};
    for (int64_t slot = first; slot <= last; slot++) {
        void *layer;
        int64_t key = kv_at(a, s, slot, kv_head, 0, &layer);
        float v = score(a, row * a->ldq + (int64_t)head * dim, layer, key);
        scores[slot - first] = v;
        top = v > top ? v : top;
    }
    for (int64_t slot = first; slot <= last; slot++) {
        float p = qe_exp(qe_sub(scores[slot - first], top));
        void *layer;
        int64_t value = kv_at(a, s, slot, kv_head, 1, &layer);
        sum = qe_add(sum, p);
        for (int32_t i = 0; i < dim; i++) out[i] = qe_fma(p, ref_load(a->kv->quant.code, layer, value + i), out[i]);
    }
    int64_t at = row * a->ldo + (int64_t)head * dim;
    for (int32_t i = 0; i < dim; i++) ref_store(a->type, a->out, at + i, qe_div(out[i], sum));
}

static void attend_task(void *arg, int32_t index, int32_t count) {
    const ref_attend *job = arg;
    const qk_attention *a = job->a;
    float *scores = (float *)(void *)((char *)a->workspace + (size_t)index * job->slice);
    int64_t items = (int64_t)a->first_row[a->sequences] * a->heads;
    for (int64_t i = index; i < items; i += count) attend(a, i / a->heads, (int32_t)(i % a->heads), scores);
}

static size_t attention_slice(const qk_attention *a) { return ((size_t)a->max_length * 4 + 255) & ~(size_t)255; }

size_t qk_ref_attention_bytes(const qk_device *device, const qk_attention *a) {
    return attention_slice(a) * (size_t)(device && device->units > 0 ? device->units : 1);
}

qe_status qk_ref_attention(const qk_attention *a, const qk_queue *q, qe_error *err) {
    QE_TRY(check_attention(a, q, err));
    if (!a->q || !a->out || !a->workspace)
        return qe_error_set(err, QE_E_ARGUMENT, "attention: q, out or workspace is NULL");
    for (int32_t s = 0; s < a->sequences; s++) {
        if (a->kv->length[s] > a->max_length || a->kv->length[s] < a->first_row[s + 1] - a->first_row[s])
            return qe_error_set(err, QE_E_ARGUMENT, "attention: sequence %d holds %d tokens", s, a->kv->length[s]);
    }
    ref_attend job = {a, attention_slice(a)};
    ref_parallel(q, attend_task, &job, q->device && q->device->units > 0 ? q->device->units : 1);
    return QE_OK;
}
