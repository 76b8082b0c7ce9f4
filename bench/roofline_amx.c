/* roofline_amx.c -- the arithmetic loop of AMX: tdpbssd on four tiles of sums. */
#include "bench.h"

#if defined(__AMX_TILE__) && defined(__AMX_INT8__)
#include <immintrin.h>

/* Palette 1; from byte 16 the bytes of a row of each tile, from byte 48 the rows. */
static const uint8_t shapes[64] = {1, [16] = 64, [18] = 64, [20] = 64, [22] = 64, [24] = 64, [26] = 64, [28] = 64, [30] = 64,
                                   [48] = 16, [49] = 16, [50] = 16, [51] = 16, [52] = 16, [53] = 16, [54] = 16, [55] = 16};

double bench_int8_amx(int64_t count) {
    _tile_loadconfig(shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    count /= 4;     /* 64 cycles each */
    for (int64_t at = 0; at < count; at++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return (double)count * 4 * 2 * 16 * 16 * 64;
}
#else
double bench_int8_amx(int64_t count) { return (double)(count - count); }
#endif
