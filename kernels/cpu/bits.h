/* bits.h -- the layout and row of signs by signs: bits of W against bits of x (qk_x.bits), counted where they differ.
 *
 * A band is 32 rows of W ("columns" of the output): 32 fp32 scales, then a line of 32 words for every 32 k, word c the
 * bits of row c, lowest k lowest. Lines are padded to whole lines of x (qk_bit_words) with 0, as x is: what is equal
 * counts nothing, so the sum of signs is k - 2 * (bits that differ). */
#ifndef BITS_H
#define BITS_H
#include "panel.h"

enum { BITS_HEAD = PANEL_COLUMNS * 4, BITS_LINE = PANEL_COLUMNS * 4, BITS_ROWS = 8 };

/* differ[r][c] of rows 0 .. rows - 1 of x, `words` apart, at most BITS_ROWS; words is a multiple of 16. */
typedef void bits_kernel(const uint8_t *lines, const uint32_t *x, int64_t words, int32_t rows, int32_t differ[][PANEL_COLUMNS]);

extern bits_kernel bits_differ_portable;
#if defined(__x86_64__)
extern bits_kernel bits_differ_avx2, bits_differ_vpopcnt;
#endif
bits_kernel *bits_kernel_of(uint32_t isa);

extern const qk_layout cpu_layout_bits;
extern const qk_row cpu_row_bits;
#endif
