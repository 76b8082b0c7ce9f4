/* decoded.h -- the layout and row that take every descriptor: weights are decoded to floats a block of columns at a
 * time, 32 rows beside each other, and multiplied by float activations. Integer activations travel as floats too, in
 * pieces whose sums stay below 2^24, so their sums are exact.
 *
 * A band holds 32 rows ("columns" of the output): lines of codes, then every other array of the canonical tensor row by
 * row. A line is the 32 codes of one k: 32 bytes of 8-bit codes, 64 of half, 128 of float. Codes of b = 1, 2, 4 bits
 * share a line of 16 bytes among 4 / b consecutive k: code (k, c) is the field 2 * (k mod 4 / b) + c / 16 of byte
 * c mod 16. */
#ifndef DECODED_H
#define DECODED_H
#include "panel.h"

enum {
    DECODED_K = 256,       /* columns decoded at once; 255 * 255 * 256 < 2^24 */
    DECODED_SWEEP = 240,   /* rows of x held against one band: a multiple of every tile height */
    DECODED_LUT = 256      /* largest table */
};

enum { DECODED_CODES, DECODED_SCALES, DECODED_SUPER, DECODED_ZEROS, DECODED_ZERO_SUPER, DECODED_TABLE, DECODED_PARTS };

typedef struct decoded_format {
    int32_t bits, per, line;            /* stored bits of a code, k in one line, bytes of a line */
    bool mins;                          /* REAL zeros are integers under a second level */
    size_t at[DECODED_PARTS], row[DECODED_PARTS], band_bytes;   /* first byte in a band, bytes a row */
} decoded_format;

void decoded_format_of(const qk_shape *shape, decoded_format *out);

/* The levels of the 32 rows of a band in the group that holds column k: s, z and b of quant.h; lower is L alone, super
 * what remains of s without it; min and min_super make b where they are integers. */
typedef struct decoded_levels {
    float scale[PANEL_COLUMNS], lower[PANEL_COLUMNS], super[PANEL_COLUMNS];
    float zero[PANEL_COLUMNS], offset[PANEL_COLUMNS], min[PANEL_COLUMNS], min_super[PANEL_COLUMNS];
} decoded_levels;
void decoded_levels_at(const qk_shape *shape, const decoded_format *f, const uint8_t *band, int64_t k,
                       decoded_levels *out);

/* Columns [from, from + count) of a band to out[count][32]: fl(scale * fl(C - zero)), + offset where there is one. */
typedef struct decoded_block {
    const decoded_format *format;
    const uint8_t *lines;
    int32_t code;              /* qe_code */
    int64_t from;
    int32_t count;
    const float *table;        /* values of a code; 16 entries at least */
    int32_t base[PANEL_COLUMNS];   /* of each column's table */
    const float *scale, *zero, *offset;
    bool plain;                /* float codes without scale, zero and offset */
    bool ahead;                /* the band comes from memory: prefetch it */
} decoded_block;

/* What one output row of a sweep carries through k. */
typedef struct decoded_row {
    float sum[PANEL_COLUMNS];       /* of the current piece or chain */
    uint32_t acc[PANEL_COLUMNS], mins[PANEL_COLUMNS];
    float f[PANEL_COLUMNS], y[PANEL_COLUMNS], total[PANEL_COLUMNS];
} decoded_row;

typedef enum decoded_mode { DECODED_FLOATS, DECODED_GROUPS, DECODED_WHOLE } decoded_mode;

/* What ends with a piece of columns (quantization.md 7.3, 7.4, 7.7). */
typedef struct decoded_step {
    int64_t from, end;
    decoded_mode mode;
    bool integer;                   /* pieces add up in int32 */
    bool starts;                    /* the chain of `sum` begins here */
    bool group_end, outer_end, act_end, chunk_end, first_chunk;
    const float *scale, *offset, *min_super;    /* offset, min: NULL where there is none */
    const float *min;
} decoded_step;

typedef struct decoded_isa {
    int32_t max_rows;
    int32_t (*height)(int32_t rows);     /* smallest tile height built that holds so many rows */
    void (*decode)(const decoded_block *block, float *out);
    /* sum[r] += x[count][R] times w[count][32], the rows' chains kept in order. */
    void (*multiply)(int32_t R, const float *x, const float *w, int32_t count, decoded_row *rows, bool starts);
    void (*close)(decoded_row *row, const decoded_step *step, float x_scale, int32_t x_sum);
} decoded_isa;

extern const decoded_isa decoded_isa_portable;
#if defined(__x86_64__)
extern const decoded_isa decoded_isa_avx2, decoded_isa_avx512;
#endif
const decoded_isa *decoded_isa_of(uint32_t isa);

extern const qk_layout cpu_layout_decoded;
extern const qk_row cpu_row_decoded;
#endif
