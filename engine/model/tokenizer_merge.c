/* engine/model/tokenizer_merge.c -- merge neighbors, best pair first, in O(n log n) and without recursion.
 *
 * A binary heap holds every mergeable pair once it arises. Merging rewrites the left symbol and unlinks the right one;
 * entries that spoke of either are then stale. A pair is the one an entry speaks of if it starts at the same symbol, is
 * cut at the same symbol, and is as long as the token it makes. */
#include <stdlib.h>

#include "model/tokenizer_parts.h"

static bool grow(void **data, size_t *capacity, size_t need, size_t each) {
    if (need <= *capacity) return true;
    size_t larger = *capacity + *capacity / 2 + 64;
    if (larger < need) larger = need;
    void *moved = larger <= SIZE_MAX / each ? realloc(*data, larger * each) : NULL;
    if (!moved) return false;
    *data = moved;
    *capacity = larger;
    return true;
}

static qe_status no_memory(qe_encoder *encoder, size_t count) {
    return qe_error_at(encoder->err, QE_E_NOMEM, encoder->tokenizer->where, -1,
                       "no memory to encode text of %zu pieces or more", count);
}

qe_status qe_encoder_emit(qe_encoder *encoder, int32_t id) {
    if (!grow((void **)&encoder->ids, &encoder->ids_capacity, encoder->ids_count + 1, sizeof *encoder->ids))
        return no_memory(encoder, encoder->ids_count);
    encoder->ids[encoder->ids_count++] = id;
    return QE_OK;
}

qe_status qe_encoder_symbol(qe_encoder *encoder, uint32_t start, uint32_t bytes, int32_t id) {
    size_t at = encoder->symbols_count;
    if (!grow((void **)&encoder->symbols, &encoder->symbols_capacity, at + 1, sizeof *encoder->symbols))
        return no_memory(encoder, at);
    encoder->symbols[at] = (qe_symbol){start, bytes, id, at ? (uint32_t)at - 1 : QE_NO_SYMBOL, QE_NO_SYMBOL};
    if (at) encoder->symbols[at - 1].next = (uint32_t)at;
    encoder->symbols_count++;
    return QE_OK;
}

qe_status qe_encoder_text(qe_encoder *encoder, size_t bytes) {
    if (!grow((void **)&encoder->text, &encoder->text_capacity, bytes, 1)) return no_memory(encoder, bytes);
    return QE_OK;
}

/* Four children per node: half the levels of a binary heap, and siblings share cache lines. */
static qe_status heap_push(qe_encoder *encoder, qe_merge_entry entry) {
    size_t at = encoder->heap_count;
    if (!grow((void **)&encoder->heap, &encoder->heap_capacity, at + 1, sizeof *encoder->heap))
        return no_memory(encoder, at);
    qe_merge_entry *heap = encoder->heap;
    while (at > 0 && entry.key < heap[(at - 1) / 4].key) {
        heap[at] = heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    heap[at] = entry;
    encoder->heap_count++;
    return QE_OK;
}

static qe_merge_entry heap_pop(qe_encoder *encoder) {
    qe_merge_entry *heap = encoder->heap, top = heap[0], last = heap[--encoder->heap_count];
    size_t count = encoder->heap_count, at = 0;
    for (;;) {
        size_t child = 4 * at + 1, best = child, end = child + 4 < count ? child + 4 : count;
        if (child >= count) break;
        for (size_t i = child + 1; i < end; i++)
            if (heap[i].key < heap[best].key) best = i;
        if (heap[best].key >= last.key) break;
        heap[at] = heap[best];
        at = best;
    }
    heap[at] = last;
    return top;
}

static qe_status consider(qe_encoder *encoder, const char *text, qe_merge_find find, uint32_t left) {
    const qe_symbol *symbols = encoder->symbols;
    if (left == QE_NO_SYMBOL || symbols[left].next == QE_NO_SYMBOL) return QE_OK;
    uint32_t right = symbols[left].next, priority;
    int32_t  merged;
    if (!find(encoder->tokenizer, text, &symbols[left], &symbols[right], &merged, &priority)) return QE_OK;
    return heap_push(encoder, (qe_merge_entry){(uint64_t)priority << 32 | left, right, merged});
}

qe_status qe_merge_run(qe_encoder *encoder, const char *text, qe_merge_find find) {
    encoder->heap_count = 0;
    for (size_t i = 0; i + 1 < encoder->symbols_count; i++) QE_TRY(consider(encoder, text, find, (uint32_t)i));
    qe_symbol *symbols = encoder->symbols;
    while (encoder->heap_count) {
        qe_merge_entry best = heap_pop(encoder);
        uint32_t at = (uint32_t)best.key;
        qe_symbol *left = &symbols[at], *right = &symbols[best.right];
        size_t merged_bytes = qe_vocab_text(&encoder->tokenizer->vocab, best.merged).bytes;
        if (left->bytes == 0 || left->next != best.right || left->bytes + right->bytes != merged_bytes) continue;
        left->bytes += right->bytes;
        left->id = best.merged;
        left->next = right->next;
        right->bytes = 0;
        if (left->next != QE_NO_SYMBOL) symbols[left->next].prev = at;
        QE_TRY(consider(encoder, text, find, left->prev));
        QE_TRY(consider(encoder, text, find, at));
    }
    return QE_OK;
}
