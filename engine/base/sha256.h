/* base/sha256.h -- FIPS 180-4: names of calibration texts, and what a resumed run compares. */
#ifndef QE_BASE_SHA256_H
#define QE_BASE_SHA256_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
typedef struct qe_sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t  block[64];
} qe_sha256;
void qe_sha256_start(qe_sha256 *h);
void qe_sha256_add(qe_sha256 *h, const void *data, size_t bytes);
/* 64 hexadecimal digits and a terminator. */
void qe_sha256_end(qe_sha256 *h, char text[65]);
#ifdef __cplusplus
}
#endif
#endif
