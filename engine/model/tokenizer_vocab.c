/* engine/model/tokenizer_vocab.c -- token texts, text to id, and the special-token trie. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "model/tokenizer_parts.h"

void qe_random_key(uint64_t key[2]) {
    if (getrandom(key, 2 * sizeof key[0], GRND_NONBLOCK) == (ssize_t)(2 * sizeof key[0])) return;
    key[0] = 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)key;      /* early boot: address randomization is what we have */
    key[1] = 0xd1b54a32d192ed03u ^ (uint64_t)(uintptr_t)&qe_random_key;
}

/* SipHash-1-3 (Aumasson, Bernstein 2012): one round per word, three at the end. */
static inline uint64_t rotl(uint64_t x, int by) { return x << by | x >> (64 - by); }
static inline void sip_round(uint64_t v[4]) {
    v[0] += v[1], v[2] += v[3];
    v[1] = rotl(v[1], 13) ^ v[0], v[3] = rotl(v[3], 16) ^ v[2];
    v[0] = rotl(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = rotl(v[1], 17) ^ v[2], v[3] = rotl(v[3], 21) ^ v[0];
    v[2] = rotl(v[2], 32);
}

static uint64_t sip_hash(const uint64_t key[2], const char *text, size_t bytes) {
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du, key[0] ^ 0x6c7967656e657261u,
                     key[1] ^ 0x7465646279746573u};
    size_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
        uint64_t word;
        memcpy(&word, text + at, 8);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    uint64_t last = (uint64_t)bytes << 56;
    memcpy(&last, text + at, bytes - at);
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++) sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

qe_text qe_vocab_text(const qe_vocab *vocab, int32_t id) {
    return (qe_text){vocab->bytes + vocab->starts[id], vocab->starts[id + 1] - vocab->starts[id]};
}

int32_t qe_vocab_find(const qe_vocab *vocab, const char *text, size_t bytes) {
    if (bytes == 0 || bytes > vocab->max_bytes) return -1;
    for (uint64_t slot = sip_hash(vocab->key, text, bytes);; slot++) {
        int32_t id = vocab->slots[slot & vocab->slots_mask];
        if (id < 0) return -1;
        qe_text found = qe_vocab_text(vocab, id);
        if (found.bytes == bytes && memcmp(found.data, text, bytes) == 0) return id;
    }
}

static qe_status vocab_map(qe_vocab *vocab, const bool *mapped, const char *where, qe_error *err) {
    for (int32_t id = 0; id < vocab->count; id++) {
        qe_text text = qe_vocab_text(vocab, id);
        if (text.bytes == 0 || (mapped && !mapped[id])) continue;
        if (text.bytes > vocab->max_bytes) vocab->max_bytes = (uint32_t)text.bytes;
        uint64_t slot = sip_hash(vocab->key, text.data, text.bytes);
        for (; vocab->slots[slot & vocab->slots_mask] >= 0; slot++) {
            int32_t other = vocab->slots[slot & vocab->slots_mask];
            qe_text found = qe_vocab_text(vocab, other);
            if (found.bytes != text.bytes || memcmp(found.data, text.data, text.bytes) != 0) continue;
            char shown[128];
            return qe_error_at(err, QE_E_DUPLICATE, where, -1, "tokens %d and %d are both \"%s\"", other, id,
                               qe_escape(text.data, text.bytes, shown, sizeof shown));
        }
        vocab->slots[slot & vocab->slots_mask] = id;
    }
    return QE_OK;
}

qe_status qe_vocab_build(qe_vocab *vocab, const qe_text *texts, const uint8_t *types, const bool *mapped,
                         int32_t count, const char *where, qe_error *err) {
    uint64_t total = 0, slots = 16;
    for (int32_t id = 0; id < count; id++) total += texts[id].bytes;
    if (total > 1u << 30)
        return qe_error_at(err, QE_E_LIMIT, where, -1, "token texts take %llu bytes, at most 1 GiB",
                           (unsigned long long)total);
    while (slots < 2 * (uint64_t)count) slots *= 2;
    qe_random_key(vocab->key);
    vocab->count = count;
    vocab->slots_mask = slots - 1;
    vocab->bytes = malloc(total + 1);
    vocab->starts = malloc(((size_t)count + 1) * sizeof *vocab->starts);
    vocab->types = malloc((size_t)count + 1);
    vocab->slots = malloc(slots * sizeof *vocab->slots);
    if (!vocab->bytes || !vocab->starts || !vocab->types || !vocab->slots)
        return qe_error_at(err, QE_E_NOMEM, where, -1, "no memory for %d tokens", count);
    uint32_t at = 0;
    for (int32_t id = 0; id < count; id++) {
        vocab->starts[id] = at;
        if (texts[id].bytes) memcpy(vocab->bytes + at, texts[id].data, texts[id].bytes);
        at += (uint32_t)texts[id].bytes;
    }
    vocab->starts[count] = at;
    memcpy(vocab->types, types, (size_t)count);
    memset(vocab->slots, 0xff, slots * sizeof *vocab->slots);
    return vocab_map(vocab, mapped, where, err);
}

void qe_vocab_free(qe_vocab *vocab) {
    free(vocab->bytes);
    free(vocab->starts);
    free(vocab->types);
    free(vocab->slots);
}

static uint64_t map64_slot(const qe_map64 *map, uint64_t key) {
    __uint128_t product = (__uint128_t)(key ^ map->seed) * 0x9e3779b97f4a7c15u;
    uint64_t mixed = (uint64_t)(product >> 64) ^ (uint64_t)product;
    return (uint64_t)(((__uint128_t)(mixed + map->seed) * 0xd1b54a32d192ed03u) >> 32);
}

qe_status qe_map64_init(qe_map64 *map, size_t expected, qe_error *err) {
    uint64_t slots = 16, key[2];
    while (slots < 2 * (uint64_t)expected) slots *= 2;
    qe_random_key(key);
    map->mask = slots - 1;
    map->seed = key[0];
    map->keys = malloc(slots * sizeof *map->keys);
    map->values = malloc(slots * sizeof *map->values);
    if (!map->keys || !map->values) return qe_error_set(err, QE_E_NOMEM, "no memory for a map of %zu", expected);
    memset(map->keys, 0xff, slots * sizeof *map->keys);
    return QE_OK;
}

bool qe_map64_put(qe_map64 *map, uint64_t key, uint64_t value) {
    uint64_t slot = map64_slot(map, key);
    for (; map->keys[slot & map->mask] != UINT64_MAX; slot++)
        if (map->keys[slot & map->mask] == key) return false;
    map->keys[slot & map->mask] = key;
    map->values[slot & map->mask] = value;
    map->count++;
    return true;
}

bool qe_map64_get(const qe_map64 *map, uint64_t key, uint64_t *value) {
    for (uint64_t slot = map64_slot(map, key);; slot++) {
        uint64_t found = map->keys[slot & map->mask];
        if (found == key) return *value = map->values[slot & map->mask], true;
        if (found == UINT64_MAX) return false;
    }
}

void qe_map64_free(qe_map64 *map) {
    free(map->keys);
    free(map->values);
}

qe_status qe_trie_init(qe_trie *trie, size_t total_bytes, qe_error *err) {
    QE_TRY(qe_map64_init(&trie->edges, total_bytes, err));
    trie->ids = malloc((total_bytes + 1) * sizeof *trie->ids);
    if (!trie->ids) return qe_error_set(err, QE_E_NOMEM, "no memory for special tokens of %zu bytes", total_bytes);
    trie->ids[0] = -1;
    trie->nodes = 1;
    return QE_OK;
}

bool qe_trie_put(qe_trie *trie, qe_text text, int32_t id) {
    uint64_t node = 0;
    for (size_t i = 0; i < text.bytes; i++) {
        uint64_t edge = node << 8 | (uint8_t)text.data[i], child;
        if (!qe_map64_get(&trie->edges, edge, &child)) {
            child = trie->nodes++;
            trie->ids[child] = -1;
            qe_map64_put(&trie->edges, edge, child);
        }
        node = child;
    }
    if (trie->ids[node] >= 0) return false;
    trie->ids[node] = id;
    trie->first[(uint8_t)text.data[0]] = true;
    return true;
}

void qe_trie_free(qe_trie *trie) {
    qe_map64_free(&trie->edges);
    free(trie->ids);
}
