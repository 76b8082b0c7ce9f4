/* SHA-256 as FIPS 180-4 states it. */
#include <stdio.h>
#include <string.h>

#include "base/sha256.h"

static const uint32_t k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
    0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
    0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
    0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* One round in which word a of the standard is s[first]. */
static inline void step(uint32_t s[8], int first, uint32_t word) {
    uint32_t a = s[first], b = s[(first + 1) & 7], c = s[(first + 2) & 7], e = s[(first + 4) & 7];
    uint32_t t1 = s[(first + 7) & 7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) +
                  ((e & s[(first + 5) & 7]) ^ (~e & s[(first + 6) & 7])) + word;
    s[(first + 3) & 7] += t1;
    s[(first + 7) & 7] = t1 + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
}

static void absorb(qe_sha256 *h, const uint8_t *p) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
    memcpy(s, h->state, sizeof s);
    for (int i = 0; i < 64; i += 8) {
        /* The eight words move one place a round: here their names do, not their values. */
        step(s, 0, k[i + 0] + w[i + 0]);
        step(s, 7, k[i + 1] + w[i + 1]);
        step(s, 6, k[i + 2] + w[i + 2]);
        step(s, 5, k[i + 3] + w[i + 3]);
        step(s, 4, k[i + 4] + w[i + 4]);
        step(s, 3, k[i + 5] + w[i + 5]);
        step(s, 2, k[i + 6] + w[i + 6]);
        step(s, 1, k[i + 7] + w[i + 7]);
    }
    for (int i = 0; i < 8; i++) h->state[i] += s[i];
}

void qe_sha256_start(qe_sha256 *h) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memset(h, 0, sizeof *h);
    memcpy(h->state, start, sizeof start);
}

void qe_sha256_add(qe_sha256 *h, const void *data, size_t bytes) {
    const uint8_t *p = data;
    while (bytes) {
        size_t have = (size_t)(h->bytes % 64), take = bytes < 64 - have ? bytes : 64 - have;
        if (take < 64) memcpy(h->block + have, p, take);
        h->bytes += take;
        if (h->bytes % 64 == 0) absorb(h, take < 64 ? h->block : p);
        p += take;
        bytes -= take;
    }
}

void qe_sha256_end(qe_sha256 *h, char text[65]) {
    uint64_t bits = h->bytes * 8;
    uint8_t length[8], pad = 0x80;
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(bits >> (56 - 8 * i));
    qe_sha256_add(h, &pad, 1);
    pad = 0;
    while (h->bytes % 64 != 56) qe_sha256_add(h, &pad, 1);
    qe_sha256_add(h, length, 8);
    for (int i = 0; i < 8; i++) snprintf(text + 8 * i, 9, "%08x", h->state[i]);
}
