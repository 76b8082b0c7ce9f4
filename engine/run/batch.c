/* batch.c -- a step as pieces of at most max_batch_tokens rows: whose rows, at which positions, in which pages. */
#include <stdlib.h>

#include "base/os.h"
#include "run/engine_internal.h"

/* ---- memory ---------------------------------------------------------------------------------------------------------- */
static size_t lay_out(const qe_engine *e, int64_t ld_table, char *base, qe_batch_rows *rows) {
    int32_t **const arrays[] = {&rows->ids, &rows->position, &rows->first_row, &rows->length, &rows->table};
    const int64_t counts[] = {e->max_batch, e->max_batch, e->max_sessions + 1, e->max_sessions,
                              e->max_sessions * ld_table};
    size_t at = 0;
    for (int i = 0; i < 5; i++) {
        if (base) *arrays[i] = (int32_t *)(void *)(base + at);
        at = (at + (size_t)counts[i] * sizeof(int32_t) + 255) & ~(size_t)255;
    }
    return at;
}

qe_status qe_batch_create(qe_engine *e, qe_error *err) {
    qe_batch *b = &e->batch;
    b->ld_table = qe_kv_pages_for(e->context);
    b->bytes = lay_out(e, b->ld_table, NULL, &b->host);
    b->memory = calloc(1, b->bytes);
    b->wanted = malloc((size_t)e->max_batch * 2 * sizeof *b->wanted);
    if (!b->memory || !b->wanted) return qe_error_set(err, QE_E_NOMEM, "no memory for a batch");
    lay_out(e, b->ld_table, b->memory, &b->host);
    QE_TRY(qe_block_alloc(e->device, b->bytes, &b->block, err));
    lay_out(e, b->ld_table, b->block.data, &b->device);
    return QE_OK;
}

void qe_batch_destroy(qe_engine *e) {
    qe_block_release(e->device, &e->batch.block);
    free(e->batch.memory);
    free(e->batch.wanted);
    memset(&e->batch, 0, sizeof e->batch);
}

/* ---- checks ------------------------------------------------------------------------------------------------------------ */
static qe_status check_item(const qe_engine *e, const qe_step_item *item, long long index, qe_error *err) {
    if (!item->session || item->session->engine != e)
        return qe_error_set(err, QE_E_ARGUMENT, "item %lld has no session of this engine", index);
    if (!item->tokens || item->n_tokens < 1)
        return qe_error_set(err, QE_E_ARGUMENT, "item %lld has no tokens", index);
    if (item->want < QE_WANT_NONE || item->want > QE_WANT_ALL || item->reserved)
        return qe_error_set(err, QE_E_ARGUMENT, "item %lld: want is %d, legal are 0 to 2", index, item->want);
    if ((item->want == QE_WANT_ALL) != (item->logits != NULL) || (item->logits && item->ld_logits < e->hp.vocab))
        return qe_error_set(err, QE_E_ARGUMENT, "item %lld: logits need a buffer of rows of %lld, for QE_WANT_ALL alone",
                            index, (long long)e->hp.vocab);
    if (item->n_tokens > e->context - item->session->length)
        return qe_error_set(err, QE_E_CAPACITY, "item %lld: %lld + %lld tokens, context_tokens is %lld", index,
                            (long long)item->session->length, (long long)item->n_tokens, (long long)e->context);
    for (int64_t i = 0; i < item->n_tokens; i++) {
        if (item->tokens[i] < 0 || item->tokens[i] >= e->hp.vocab)
            return qe_error_set(err, QE_E_ARGUMENT, "item %lld: token %d, the vocabulary is %lld", index, item->tokens[i],
                                (long long)e->hp.vocab);
    }
    return QE_OK;
}

static qe_status check_items(qe_engine *e, const qe_step_item *items, int64_t n_items, qe_error *err) {
    e->serial++;
    for (int64_t i = 0; i < n_items; i++) {
        QE_TRY(check_item(e, &items[i], i, err));
        if (items[i].session->serial == e->serial)
            return qe_error_set(err, QE_E_ARGUMENT, "item %lld repeats a session", (long long)i);
        items[i].session->serial = e->serial;
    }
    return QE_OK;
}

/* ---- pieces ------------------------------------------------------------------------------------------------------------ */
typedef struct cursor {
    int64_t item, offset;         /* of the next token */
} cursor;

static void add_rows(qe_engine *e, const qe_step_item *item, int64_t offset, int64_t n) {
    qe_batch *b = &e->batch;
    const qe_session *s = item->session;
    int32_t sequence = b->sequences++;
    int64_t start = s->length + offset;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = b->m + i;
        b->host.ids[row] = item->tokens[offset + i];
        b->host.position[row] = (int32_t)(start + i);
        bool last = offset + i + 1 == item->n_tokens;
        if (item->want == QE_WANT_ALL)
            b->wanted[b->wanted_count++] = (qe_wanted){row, item->logits + (offset + i) * item->ld_logits};
        if (item->want != QE_WANT_NONE && last) b->wanted[b->wanted_count++] = (qe_wanted){row, s->logits};
    }
    b->m += n;
    b->host.first_row[sequence + 1] = (int32_t)b->m;
    b->host.length[sequence] = (int32_t)(start + n);
    memcpy(b->host.table + sequence * b->ld_table, s->pages.page, (size_t)qe_kv_pages_for(start + n) * sizeof(int32_t));
    if (n > b->max_new) b->max_new = (int32_t)n;
    if (start + n > b->max_length) b->max_length = (int32_t)(start + n);
}

static void fill(qe_engine *e, const qe_step_item *items, int64_t n_items, cursor *at) {
    qe_batch *b = &e->batch;
    b->m = b->wanted_count = 0;
    b->sequences = b->max_new = b->max_length = 0;
    b->host.first_row[0] = 0;
    while (at->item < n_items && b->m < e->max_batch) {
        int64_t n = items[at->item].n_tokens - at->offset;
        bool whole = n <= e->max_batch - b->m;
        if (!whole) n = e->max_batch - b->m;
        add_rows(e, &items[at->item], at->offset, n);
        *at = whole ? (cursor){at->item + 1, 0} : (cursor){at->item, at->offset + n};
    }
}

static qe_status run_pieces(qe_engine *e, const qe_step_item *items, int64_t n_items, const qe_cancel *cancel,
                            qe_error *err) {
    for (int64_t i = 0; i < n_items; i++) {
        qe_session *s = items[i].session;
        s->has_logits = false;
        if (!qe_kv_reserve(&e->kv, &s->pages, s->length + items[i].n_tokens))
            return qe_error_set(err, QE_E_CAPACITY, "the KV cache is full: %d of %d pages are free", e->kv.unused_count,
                                e->kv.count);
    }
    for (cursor at = {0, 0}; at.item < n_items;) {
        fill(e, items, n_items, &at);
        QE_TRY(qe_forward(e, cancel, err));
        e->stats.logit_rows += (uint64_t)e->batch.wanted_count;
    }
    return QE_OK;
}

static void count_step(qe_engine *e, const qe_step_item *items, int64_t n_items, uint64_t us) {
    uint64_t prefill = 0, decode = 0;
    for (int64_t i = 0; i < n_items; i++) {
        if (items[i].n_tokens == 1) decode++;
        else prefill += (uint64_t)items[i].n_tokens;
    }
    e->stats.steps++;
    e->stats.prefill_tokens += prefill;
    e->stats.decode_tokens += decode;
    uint64_t decode_us = us * decode / (decode + prefill);
    e->stats.decode_us += decode_us;
    e->stats.prefill_us += us - decode_us;
}

static qe_status step(qe_engine *e, const qe_step_item *items, int64_t n_items, const qe_cancel *cancel, qe_error *err) {
    QE_TRY(check_items(e, items, n_items, err));
    uint64_t start_us = qe_os_now_us();
    qe_status status = run_pieces(e, items, n_items, cancel, err);
    for (int64_t i = 0; i < n_items; i++) {
        qe_session *s = items[i].session;
        if (status) {
            qe_kv_trim(&e->kv, &s->pages, s->length);
            s->has_logits = false;
            continue;
        }
        s->length += items[i].n_tokens;
        s->has_logits = items[i].want != QE_WANT_NONE;
    }
    if (!status) count_step(e, items, n_items, qe_os_now_us() - start_us);
    return status;
}

qe_status qe_engine_step(qe_engine *engine, const qe_step_item *items, int64_t n_items, const qe_step_options *options,
                         qe_error *err) {
    qe_step_options o;
    if (!engine || !items || n_items < 1) return qe_error_set(err, QE_E_ARGUMENT, "a step needs an engine and items");
    QE_TRY(qe_options_read(options, options ? options->struct_size : 0, &o, sizeof o, err));
    if (o.flags) return qe_error_set(err, QE_E_ARGUMENT, "options.flags 0x%x has unknown bits", o.flags);
    if (n_items > engine->max_sessions)
        return qe_error_set(err, QE_E_ARGUMENT, "%lld items, max_sessions is %d", (long long)n_items,
                            engine->max_sessions);
    const qe_cancel cancel = {o.cancel, o.cancel_ctx};
    unsigned fp = qe_fp_enter();
    pthread_mutex_lock(&engine->turn);
    qe_status status = step(engine, items, n_items, &cancel, err);
    pthread_mutex_unlock(&engine->turn);
    qe_fp_leave(fp);
    return status;
}
