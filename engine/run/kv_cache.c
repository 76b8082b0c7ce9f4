/* kv_cache.c -- fp16 (or fp32) keys and values in pages of 64 tokens; a session holds the pages its tokens need. */
#include <stdlib.h>

#include "base/check.h"
#include "run/engine_internal.h"

qe_status qe_kv_create(const qe_device *device, const qe_hparams *hp, int32_t type, int64_t tokens, qe_kv_cache *out,
                       qe_error *err) {
    const uint8_t bits = type == QE_CODE_F32 ? 32 : 16;
    uint64_t page = 2 * QE_KV_PAGE_TOKENS * (bits / 8), bytes;
    int64_t count = qe_kv_pages_for(tokens);
    bool fits = qe_check_mul(page, (uint64_t)(hp->kv_heads * hp->head_dim), &page) &&
                qe_check_mul(page, (uint64_t)hp->layers, &bytes) && qe_check_mul(bytes, (uint64_t)count, &bytes);
    if (!fits || count > INT32_MAX)
        return qe_error_set(err, QE_E_OVERFLOW, "a KV cache of %lld tokens is too large", (long long)tokens);
    out->quant = (qe_quant){.code = (uint8_t)type, .bits = bits};
    out->page_bytes = (int64_t)page;
    out->layers = (int32_t)hp->layers;
    out->count = (int32_t)count;
    out->unused = malloc((size_t)count * sizeof *out->unused);
    if (!out->unused) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld KV pages", (long long)count);
    /* The lowest number is on top of the stack. */
    for (int32_t i = 0; i < out->count; i++) out->unused[i] = out->count - 1 - i;
    out->unused_count = out->count;
    return qe_block_alloc(device, bytes, &out->pages, err);
}

void qe_kv_destroy(const qe_device *device, qe_kv_cache *kv) {
    qe_block_release(device, &kv->pages);
    free(kv->unused);
    memset(kv, 0, sizeof *kv);
}

bool qe_kv_reserve(qe_kv_cache *kv, qe_kv_pages *pages, int64_t tokens) {
    int64_t needed = qe_kv_pages_for(tokens);
    if (needed > pages->capacity || needed - pages->count > kv->unused_count) return false;
    while (pages->count < needed) pages->page[pages->count++] = kv->unused[--kv->unused_count];
    return true;
}

void qe_kv_trim(qe_kv_cache *kv, qe_kv_pages *pages, int64_t tokens) {
    int64_t needed = qe_kv_pages_for(tokens);
    while (pages->count > needed) kv->unused[kv->unused_count++] = pages->page[--pages->count];
}
