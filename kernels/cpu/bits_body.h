/* Counting bits that differ (bits.h), written once over simd.h and compiled once per ISA: a lane is a row of W. */
#include "bits.h"
#include "simd.h"

enum { BITS_VECTORS = PANEL_COLUMNS / V_LANES, BITS_PAIR = BITS_VECTORS < 2 ? BITS_VECTORS : 2 };

/* R rows of x against BITS_PAIR vectors of W from lane `first` on. */
INLINE void differ_tile(const int R, const uint8_t *lines, const uint32_t *x, int64_t words, int first,
                        int32_t differ[][PANEL_COLUMNS]) {
    vi acc[4][BITS_PAIR];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int p = 0; p < BITS_PAIR; p++) acc[r][p] = vi_set1(0);
    for (int64_t from = 0; from < words; from += 16) {
        vi part[4][BITS_PAIR];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int p = 0; p < BITS_PAIR; p++) part[r][p] = vi_set1(0);
        for (int64_t k = from; k < from + 16; k++) {
            const uint8_t *line = lines + k * BITS_LINE + first * 4;
            v_prefetch(line);
            vi w[BITS_PAIR];
#pragma GCC unroll 2
            for (int p = 0; p < BITS_PAIR; p++) w[p] = vi_load(line + p * V_LANES * 4);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const vi v = vi_set1((int32_t)x[r * words + k]);
#pragma GCC unroll 2
                for (int p = 0; p < BITS_PAIR; p++) part[r][p] = bits_count(part[r][p], vi_xor(w[p], v));
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int p = 0; p < BITS_PAIR; p++) acc[r][p] = bits_flush(acc[r][p], part[r][p]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int p = 0; p < BITS_PAIR; p++) vi_store(differ[r] + first + p * V_LANES, acc[r][p]);
}

static void differ_rows(const uint8_t *lines, const uint32_t *x, int64_t words, int32_t rows,
                        int32_t differ[][PANEL_COLUMNS]) {
    for (int first = 0; first < PANEL_COLUMNS; first += BITS_PAIR * V_LANES) {
        int32_t r = 0;
        for (; r + 4 <= rows; r += 4) differ_tile(4, lines, x + r * words, words, first, differ + r);
        for (; r + 2 <= rows; r += 2) differ_tile(2, lines, x + r * words, words, first, differ + r);
        if (r < rows) differ_tile(1, lines, x + r * words, words, first, differ + r);
    }
}
