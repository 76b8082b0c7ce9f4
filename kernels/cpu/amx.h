/* Tiles of AMX: eight of at most 16 rows of 64 bytes, and products of int8 tiles with int32 sums. With V_NO_ASM
 * they are plain C, so that the kernels' logic runs on machines without AMX.
 *
 * Tiles 0 to 3 are sums, 4 and 5 activations (16 tokens of `step` k), 6 and 7 weights (step / 4 lines of 16 columns of 4
 * k, as panels hold them). Sums are exact modulo 2^32. */
#ifndef AMX_H
#define AMX_H
#include <stdint.h>
#include <string.h>
#include "simd.h"

typedef struct amx_shapes {    /* the operand of ldtilecfg */
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];        /* of a row */
    uint8_t rows[16];
} amx_shapes;

static inline amx_shapes amx_shapes_of(int step) {
    amx_shapes s;
    memset(&s, 0, sizeof s);
    s.palette = 1;
    for (int t = 0; t < 8; t++) {
        s.bytes[t] = (uint16_t)(t == 4 || t == 5 ? step : 64);
        s.rows[t] = (uint8_t)(t == 6 || t == 7 ? step / 4 : 16);
    }
    return s;
}

#ifndef V_NO_ASM     /* their instructions are in simd.h */
static inline void amx_begin(int step) {
    const amx_shapes shapes = amx_shapes_of(step);
    amx_configure(&shapes);
}

#else
typedef struct amx_state {
    amx_shapes shapes;
    uint8_t tile[8][16][64];
} amx_state;
static _Thread_local amx_state amx_now;

static inline void amx_zero(int t) { memset(amx_now.tile[t], 0, sizeof amx_now.tile[t]); }
static inline void amx_load(int t, const void *base, int64_t stride) {
    amx_zero(t);
    for (int r = 0; r < amx_now.shapes.rows[t]; r++)
        memcpy(amx_now.tile[t][r], (const uint8_t *)base + r * stride, amx_now.shapes.bytes[t]);
}
static inline void amx_store(int t, void *base, int64_t stride) {
    for (int r = 0; r < amx_now.shapes.rows[t]; r++)
        memcpy((uint8_t *)base + r * stride, amx_now.tile[t][r], amx_now.shapes.bytes[t]);
}
static inline void amx_product(int c, int a, int b, int is_signed) {
    for (int r = 0; r < amx_now.shapes.rows[c]; r++)
        for (int n = 0; n < amx_now.shapes.bytes[c] / 4; n++) {
            uint32_t sum;
            memcpy(&sum, &amx_now.tile[c][r][4 * n], 4);
            for (int k = 0; k < amx_now.shapes.bytes[a]; k++) {
                int32_t w = amx_now.tile[b][k / 4][4 * n + k % 4];
                sum += (uint32_t)((int8_t)amx_now.tile[a][r][k] * (is_signed ? (int8_t)w : w));
            }
            memcpy(&amx_now.tile[c][r][4 * n], &sum, 4);
        }
}
static inline void amx_dot(int c, int a, int b) { amx_product(c, a, b, 1); }
static inline void amx_dot_unsigned(int c, int a, int b) { amx_product(c, a, b, 0); }
static inline void amx_begin(int step) {
    memset(&amx_now, 0, sizeof amx_now);
    amx_now.shapes = amx_shapes_of(step);
}
static inline void amx_end(void) { memset(&amx_now, 0, sizeof amx_now); }
#endif
#endif
