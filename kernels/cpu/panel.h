/* Panels: the packed weights of the CPU backend, and the table of functions one ISA supplies to run them.
 *
 * A panel is 32 rows of W ("columns" of the output) by all of k, contiguous: a head of 32 fp32 row scales where the
 * format has them, then blocks along k. A block is its scales, then units of `unit` k; a unit is its planes of high
 * bits, then steps of 4 k. A step of 8-bit codes is two 64-byte lines: dword c holds the 4 k of column c. A step of
 * narrower codes is one line of nibbles: low ones columns 0..15, high ones 16..31; bits above the fourth lie in planes
 * of the same byte order, one (5-bit codes: 8 steps a byte) or two bits (6-bit codes: 4 steps a byte) a step.
 * Codes stay unsigned, as in the canonical form. Every ISA reads the same panels and returns the same bits. */
#ifndef PANEL_H
#define PANEL_H
#include <qk.h>
#include "attention.h"

enum { PANEL_COLUMNS = 32, PANEL_MAX_ROWS = 32, PANEL_HEAD = 128, PANEL_HEAD_DIM = 1024 };

typedef enum panel_scale {
    PANEL_CHANNEL,   /* one fp32 scale a row in the panel head; int32 sums over all of k */
    PANEL_INT,       /* the same, times an 8-bit integer scale a group: int32 over all of k */
    PANEL_F16,       /* a half a group */
    PANEL_F32,       /* a float a group */
    PANEL_Q4K,       /* half d and -dmin a block of 256, 6-bit scale and min per 32 */
    PANEL_Q6K        /* half d a block of 256, int8 scale per 16 */
} panel_scale;

typedef struct panel_format {
    panel_scale scale;
    int32_t bits;         /* stored width: 4, 5, 6 or 8 */
    int32_t unit;         /* k in one unit: 32, or 16 for PANEL_Q6K */
    int32_t group;        /* k under one scale */
    int32_t block;        /* k in one block */
    int32_t points;       /* 1: 8-bit zero points a group; 0: `zero` everywhere */
    int32_t zero;
    int32_t doubled;      /* 1: signs, stored as codes 0 and 2 with zero 1 */
    int32_t wide;         /* 1: codes of fewer bits, unpacked to a byte each: 128 bytes a step, as for 8 bits; 2: scales are floats
                           * as well, of PANEL_Q4K 8 x 32 a block, 32 -dmin, 4 x 32 pairs of int16 mins */
    int32_t scale_bytes, unit_bytes, block_bytes, panel_bytes, blocks;
} panel_format;

/* R rows of activations in the order [k/4][R][4], or where the ISA wants lines [k/64][R][64], and what goes with them, for
 * one panel. */
typedef struct panel_tile {
    const panel_format *format;
    const uint8_t *panel;
    const int8_t  *q;
    const int32_t *init;      /* [groups][R]: -zero * sum, or with points the sum itself; one entry for int sums.
                               * PANEL_INT: behind the groups -128 times the sum of all, for levels multiplied out */
    const int32_t *pairs;     /* [blocks][4][R]: int16 sums of two neighboring groups of 32; PANEL_Q4K */
    const float   *scale;     /* [spans][R] */
    int32_t span, chunk;      /* groups under one activation scale, groups in one chunk */
    int32_t ahead;            /* 1: the panel comes from memory, prefetch it */
    const uint8_t *next;      /* lines to fetch meanwhile, a part of the next panel */
    int32_t next_lines;
    float  *y;                /* [R] rows of PANEL_COLUMNS floats, */
    int64_t ldy;              /* so many floats apart */
    int32_t *sums;            /* [R][PANEL_COLUMNS] or NULL: the int32 sums in place of y; PANEL_CHANNEL and PANEL_INT */
} panel_tile;

typedef void panel_kernel(const panel_tile *tile);

/* What one ISA supplies. */
typedef struct panel_isa {
    const char *name;
    int32_t bias8;            /* subtracted from 8-bit codes by the dot product itself */
    int32_t max_rows;
    /* Kernel of a stored width, scale kind and tile height; NULL where the height is not built. */
    panel_kernel *(*kernel)(const panel_format *format, int32_t rows);
    /* The form in which kernels of many tokens read panels of this format, false: as they are stored; and a panel unpacked
     * to it. Both NULL: all kernels read stored panels. */
    bool (*wide)(const panel_format *format, panel_format *out);
    void (*widen)(const panel_format *format, const uint8_t *panel, const panel_format *wide, uint8_t *out);
    int32_t wide_tiles;       /* it pays from this many tiles on */
    bool (*lines)(const panel_format *format, int32_t rows);   /* whether a tile's activations lie in lines; NULL: never */
    /* Around the kernels of a task that has tiles in lines, with the format these read; or NULL. */
    void (*enter)(const panel_format *format);
    void (*leave)(void);
    /* One token of prepare(); `scratch` holds 2 k floats. */
    void (*prepare_row)(const qk_prepare *a, int64_t token, float *scratch);
    /* One head of rope_append(): norm and rotation where given, into `out` or else as halves. */
    void (*rope_head)(const qk_rope *r, const float *norm, const float *cos_sin, const float *from, int32_t dim, float *out,
                      uint16_t *halves);
    void (*attend)(const attend_block *block);
    int32_t attend_queries;   /* of a block at most */
} panel_isa;

extern const panel_isa panel_isa_portable;
#if defined(__x86_64__)
extern const panel_isa panel_isa_avx2, panel_isa_avx512, panel_isa_avx512_unpacked, panel_isa_amx;
#endif
uint32_t cpu_isa(void);                              /* QK_ISA_* of this machine */
void cpu_name(char *out, size_t bytes);              /* as its maker calls it */
const panel_isa *panel_isa_of(uint32_t isa);
/* For m tokens of a format: with float scales AMX pays from 25 tokens on, and not where groups are shorter than a product. */
const panel_isa *panel_isa_for(uint32_t isa, const panel_format *format, int64_t m);

extern const qk_layout cpu_layout_panel;
extern const qk_row cpu_row_panel;
void cpu_parallel(const qk_queue *q, qk_task *task, void *arg, int32_t count);   /* in place without a pool */
qe_status cpu_prepare(const qk_prepare *a, const qk_queue *q, qe_error *err);
qe_status cpu_embed(const qk_weight *table, const int32_t *ids, int64_t m, float scale, void *y, int64_t ldy,
                    int32_t y_type, const qk_queue *q, qe_error *err);
qe_status cpu_rope_append(const qk_rope *r, const qk_attention *a, const qk_queue *q, qe_error *err);
size_t cpu_attention_bytes(const qk_device *device, const qk_attention *a);
qe_status cpu_attention(const qk_attention *a, const qk_queue *q, qe_error *err);
bool panel_format_of(const qk_shape *shape, panel_format *out, qk_why *why);
bool panel_format_wide(const panel_format *format, int32_t wide, panel_format *out);   /* false: of bytes already */
#endif
