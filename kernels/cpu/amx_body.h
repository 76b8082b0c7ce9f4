/* The panel kernels of AMX: 32 tokens, with int32 sums over all of k also 16, times 32 columns. Read after gemm_body.h, with its
 * vectors of AVX-512.
 *
 * Activations lie in lines, [k/64][R][64]: 16 lines are one tile. Weights of 8 bits with one scale a row are read from the
 * panel as it is, unsigned. All others are first unpacked, once for all tokens of a sweep, to signed codes c - zero, of 8 bits
 * c - 128 with points that make up for it; with integer scales to their products, which are int8 as well (QE_FACT_INT8_PRODUCT). What is unpacked lies in this order,
 * every part for all of k: the head, or 32 float scales a group; 32 int32 zero points a group, if there are; for PANEL_Q4K
 * 32 floats -dmin and 4 x 32 pairs of int16 mins a block; codes, 32 bytes a k in the order of 8-bit panels. */
#include "amx.h"

enum { AMX_TILE = 16, AMX_ROWS = 32, AMX_LINE = 64, AMX_SUMS = AMX_ROWS * PANEL_COLUMNS,
       AMX_QUARTER = AMX_TILE * AMX_TILE };

static bool amx_whole(const panel_format *f) { return f->scale == PANEL_CHANNEL || f->scale == PANEL_INT; }

/* k in one product. */
static int32_t amx_step(const panel_format *f) {
    return amx_whole(f) || f->group % 64 == 0 ? 64 : 32;
}

typedef struct amx_parts {
    int32_t groups, points, mins, codes, bytes;   /* groups with float scales; where the parts begin */
} amx_parts;
enum { AMX_MINS = 640 };

static amx_parts amx_parts_of(const panel_format *f) {
    amx_parts p;
    p.groups = amx_whole(f) ? 0 : f->blocks * (f->block / f->group);
    p.points = amx_whole(f) ? PANEL_HEAD : p.groups * 128;
    p.mins = p.points + (f->points ? p.groups * 128 : 0);
    p.codes = p.mins + (f->scale == PANEL_Q4K ? f->blocks * AMX_MINS : 0);
    p.bytes = p.codes + (f->blocks * f->block + AMX_LINE - 1) / AMX_LINE * AMX_LINE * PANEL_COLUMNS;
    return p;
}

static bool amx_wide(const panel_format *f, panel_format *out) {
    *out = *f;
    if (f->scale == PANEL_CHANNEL && f->bits == 8) return false;
    out->wide = 1;
    if (amx_whole(f)) out->scale = PANEL_CHANNEL;
    else if (f->bits == 8 && f->zero != 128) out->points = 1;
    out->panel_bytes = amx_parts_of(out).bytes;
    return true;
}

/* ---- unpacking --------------------------------------------------------------------------------------------------- */
/* c - zero of the 4 k of each lane, in bytes. */
INLINE vi amx_shift(vi codes, vi zero) { return _mm512_sub_epi8(codes, zero); }

/* The codes of one block. */
INLINE void amx_unpack_codes(const int bits, const int levels, const panel_format *f, const uint8_t *from, uint8_t *to,
                             const vi level[2], const vi zero[2]) {
    const int steps = f->unit / 4;
    for (int u = 0; u < f->block / f->unit; u++, from += f->unit_bytes)
#pragma GCC unroll 8
        for (int s = 0; s < steps; s++, to += 128) {
            vi w[2];
            load_step(bits, 0, from, s, 0, w);
            for (int h = 0; h < 2; h++)
                vi_store(to + 64 * h, levels ? times_level(w[h], level[h], zero[h]) : amx_shift(w[h], zero[h]));
        }
}

/* The scales, points and mins of block b. */
INLINE void amx_unpack_scales(const panel_scale scale, const panel_format *f, const panel_format *wide, const uint8_t *block,
                              int b, uint8_t *out) {
    const int groups = scale == PANEL_Q4K ? 8 : 1;
    const amx_parts parts = amx_parts_of(wide);
    for (int h = 0; h < 2; h++) {
        const int column = 16 * h, at = 64 * h;
        for (int g = 0; g < groups; g++)
            vf_store((float *)(void *)(out + (b * groups + g) * 128 + at), group_scale(scale, 0, block, g, column));
        if (wide->points) {
            vi z = f->points ? vi_u8(block + (scale == PANEL_F16 ? 64 : 128) + column) : vi_set1(f->zero);
            vi_store(out + parts.points + b * 128 + at, f->bits == 8 ? vi_sub(z, vi_set1(128)) : z);
        }
        if (scale != PANEL_Q4K) continue;
        uint8_t *mins = out + parts.mins + b * AMX_MINS + at;
        vf_store((float *)(void *)mins, block_dmin(0, block, column));
        for (int pair = 0; pair < 4; pair++)
            vi_store(mins + 128 + pair * 128, pair_mins(0, block, pair, column));
    }
}

static void amx_widen(const panel_format *f, const uint8_t *panel, const panel_format *wide, uint8_t *out) {
    const int zero = f->bits == 8 ? 128 : f->points ? 0 : f->zero;
    const amx_parts parts = amx_parts_of(wide);
    vi level[2] = {vi_set1(0), vi_set1(0)}, zeros[2] = {_mm512_set1_epi8((char)zero), _mm512_set1_epi8((char)zero)};
    uint8_t *codes = out + parts.codes;
    if (amx_whole(f)) {
        memcpy(out, panel, PANEL_HEAD);
        panel += PANEL_HEAD;
    }
    for (int b = 0; b < f->blocks; b++, panel += f->block_bytes, codes += f->block * PANEL_COLUMNS) {
        const uint8_t *from = panel + f->scale_bytes;
        for (int h = 0; h < 2 && f->scale == PANEL_INT; h++) level[h] = block_level(f, panel, 16 * h, 0, &zeros[h]);
        if (f->scale == PANEL_F16) amx_unpack_scales(PANEL_F16, f, wide, panel, b, out);
        if (f->scale == PANEL_F32) amx_unpack_scales(PANEL_F32, f, wide, panel, b, out);
        if (f->scale == PANEL_Q4K) amx_unpack_scales(PANEL_Q4K, f, wide, panel, b, out);
        if (f->scale == PANEL_INT && f->bits == 4) amx_unpack_codes(4, 1, f, from, codes, level, zeros);
        else if (f->scale == PANEL_INT) amx_unpack_codes(8, 1, f, from, codes, level, zeros);
        else if (f->bits == 4) amx_unpack_codes(4, 0, f, from, codes, level, zeros);
        else if (f->bits == 5) amx_unpack_codes(5, 0, f, from, codes, level, zeros);
        else amx_unpack_codes(8, 0, f, from, codes, level, zeros);
    }
    memset(codes, 0, (size_t)(out + wide->panel_bytes - codes));   /* any do, against zeros */
}

/* ---- products ---------------------------------------------------------------------------------------------------- */
/* Sums of T tiles of tokens += one step of k. */
INLINE void amx_multiply(const int T, const int is_signed, const int8_t *q, const uint8_t *codes) {
    amx_load(6, codes, 128);
    amx_load(4, q, AMX_LINE);
    if (is_signed) amx_dot(0, 4, 6);
    else amx_dot_unsigned(0, 4, 6);
    amx_load(7, codes + 64, 128);
    if (is_signed) amx_dot(1, 4, 7);
    else amx_dot_unsigned(1, 4, 7);
    if (T == 1) return;
    amx_load(5, q + AMX_TILE * AMX_LINE, AMX_LINE);
    if (is_signed) {
        amx_dot(2, 5, 6);
        amx_dot(3, 5, 7);
    } else {
        amx_dot_unsigned(2, 5, 6);
        amx_dot_unsigned(3, 5, 7);
    }
}

INLINE void amx_clear(const int T) {
    amx_zero(0);
    amx_zero(1);
    if (T == 2) amx_zero(2);
    if (T == 2) amx_zero(3);
}

/* To [R][PANEL_COLUMNS]. */
INLINE void amx_keep(const int T, int32_t *sums) {
    amx_store(0, sums, 128);
    amx_store(1, sums + 16, 128);
    if (T == 2) amx_store(2, sums + AMX_TILE * PANEL_COLUMNS, 128);
    if (T == 2) amx_store(3, sums + AMX_TILE * PANEL_COLUMNS + 16, 128);
}

/* int32 over all of k, then the two multiplications of 7.3. */
INLINE void amx_integer(const int T, const int is_signed, const panel_tile *t) {
    const panel_format *f = t->format;
    /* What is unpacked has whole lines. */
    const int R = AMX_TILE * T, k = f->blocks * f->block, all = is_signed ? (k + AMX_LINE - 1) / AMX_LINE * AMX_LINE : k;
    const uint8_t *codes = t->panel + PANEL_HEAD;
    const int8_t *q = t->q;
    int32_t own[AMX_SUMS] __attribute__((aligned(64))), *sums = t->sums ? t->sums : own;
    next_lines next = next_begin(t, all / AMX_LINE + 1);
    amx_clear(T);
    for (int at = AMX_LINE; at <= all; at += AMX_LINE, q += R * AMX_LINE, codes += AMX_LINE * PANEL_COLUMNS) {
        prefetch_bytes(t->ahead, codes, AMX_LINE * PANEL_COLUMNS);
        next_fetch(&next);
        amx_multiply(T, is_signed, q, codes);
    }
    if (all % AMX_LINE) {   /* the panel ends in the middle of a step */
        uint8_t last[AMX_LINE * PANEL_COLUMNS] __attribute__((aligned(64))) = {0};
        memcpy(last, codes, (size_t)(all % AMX_LINE) * PANEL_COLUMNS);
        amx_multiply(T, is_signed, q, last);
    }
    amx_keep(T, sums);
    vf w[2] = {vf_load(t->panel), vf_load(t->panel + 64)};
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) {
            int32_t *here = sums + r * PANEL_COLUMNS + 16 * h;
            vi sum = vi_load(here);
            if (!is_signed) sum = vi_add(sum, vi_set1(t->init[r]));
            if (t->sums) vi_store(here, sum);
            else vf_store(t->y + r * t->ldy + 16 * h, vf_mul(vf_mul(vf_from(sum), vf_set1(t->scale[r])), w[h]));
        }
}

/* ---- float scales along k (7.4) ---------------------------------------------------------------------------------- */
/* A segment is a run of groups that ends where a float sum does: with a block of PANEL_Q4K, the span of an activation scale,
 * a chunk; or at the latest behind AMX_SEGMENT groups, which keeps the operands in L1. Its four quarters of 16 tokens and 16
 * columns follow each other: products of all groups, int32 sums to L1, then all of these scaled, the float sums of the quarter
 * in 16 registers. Tile products and vector arithmetic do not run side by side, so no more than this is interleaved. */
enum { AMX_SEGMENT = 16 };

typedef struct amx_segment {
    int32_t group, count;          /* count 0: behind the last */
    int32_t mins, spans, chunks;   /* what follows: the mins of a block, the end of f, the end of y */
    int32_t span;
} amx_segment;

typedef struct amx_walk {          /* along k, in groups */
    int32_t all, group, in_span, in_chunk, span;
} amx_walk;

/* Where a span is one group (`paired`) only the chunk ends a sum. */
INLINE amx_segment amx_next(const int paired, const int mins, const panel_tile *t, amx_walk *w) {
    amx_segment s = {.group = w->group, .span = w->span};
    int32_t most = w->all - w->group;
    if (most > AMX_SEGMENT) most = AMX_SEGMENT;
    if (most > t->chunk - w->in_chunk) most = t->chunk - w->in_chunk;
    if (!paired && most > t->span - w->in_span) most = t->span - w->in_span;
    if (mins && most > 8 - w->group % 8) most = 8 - w->group % 8;
    s.count = most;
    w->group += most, w->in_span += most, w->in_chunk += most;
    s.mins = mins && w->group % 8 == 0;
    s.chunks = w->group == w->all || w->in_chunk == t->chunk;
    s.spans = !paired && (s.chunks || w->in_span == t->span);
    if (paired) w->span += most;
    else if (w->in_span == t->span) w->span++, w->in_span = 0;
    if (s.chunks) w->in_chunk = 0;
    return s;
}

/* The sums of `count` groups of 16 tokens and 16 columns. */
INLINE void amx_make(const int step, const int8_t *q, int32_t line, int32_t k, int32_t size, const uint8_t *codes, int32_t count,
                     int32_t *sums) {
    const int within = AMX_LINE / step;   /* steps in a line of activations */
    int32_t at = k / step;
    for (; count; count--, sums += AMX_QUARTER) {
        amx_zero(0);
        for (int32_t end = at + size / step; at < end; at++, codes += step * PANEL_COLUMNS) {
            amx_load(4, q + (size_t)(at / within) * (size_t)line + at % within * step, AMX_LINE);
            amx_load(6, codes, 128);
            amx_dot(0, 4, 6);
        }
        amx_store(0, sums, 64);
    }
}

/* The float sums of 16 tokens and 16 columns += those of `count` groups, scaled. */
INLINE void amx_scale(const int paired, const int points, const int32_t *sums, int32_t count, const uint8_t *scale,
                      const uint8_t *zero, const int32_t *init, const float *xs, int32_t R, float *f) {
    vf v[AMX_TILE];
#pragma GCC unroll 16
    for (int r = 0; r < AMX_TILE; r++) v[r] = vf_load(f + r * PANEL_COLUMNS);
    for (; count; count--, sums += AMX_QUARTER, scale += 128, zero += 128, init += R, xs += R) {
        const vf s = vf_load(scale);
#pragma GCC unroll 16
        for (int r = 0; r < AMX_TILE; r++) {
            vi sum = vi_load(sums + r * 16);
            if (points) sum = vi_sub(sum, vi_mul(vi_load(zero), vi_set1(init[r])));
            /* v * s is fmaf(v, s, 0) but for the sign of a zero, which no sum of y keeps. */
            if (paired) v[r] = vf_fma(vf_mul(vf_from(sum), s), vf_set1(xs[r]), v[r]);
            else v[r] = vf_fma(vf_from(sum), s, v[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < AMX_TILE; r++) vf_store(f + r * PANEL_COLUMNS, v[r]);
}

/* What follows a segment: of 16 tokens from `row` on, columns of half h. */
INLINE void amx_close(const int R, const int mins, const panel_tile *t, const amx_parts *parts,
                      const amx_segment *s, int row, int h, float *f, float *y, float *total) {
    const int32_t block = s->group / 8;
    const uint8_t *low = t->panel + parts->mins + block * AMX_MINS + 64 * h;
    for (int r = row; r < row + AMX_TILE; r++) {
        const int at = r * PANEL_COLUMNS + 16 * h;
        vf v = vf_load(f + at);
        if (mins && s->mins) {
            vi sum = vi_set1(0);
            for (int pair = 0; pair < 4; pair++)
                sum = vi_madd16(sum, vi_load(low + 128 + pair * 128), vi_set1(t->pairs[(size_t)(block * 4 + pair) * R + r]));
            v = vf_fma(vf_from(sum), vf_load(low), v);
        }
        if (s->spans) {
            v = vf_fma(v, vf_set1(t->scale[(size_t)s->span * R + r]), vf_load(y + at));
            vf_store(y + at, s->chunks ? vf_set1(0.0f) : v);
        }
        if (s->chunks) vf_store(total + at, vf_add(vf_load(total + at), v));
        vf_store(f + at, s->spans || s->chunks ? vf_set1(0.0f) : v);
    }
}

INLINE void amx_floats(const int step, const int paired, const int points, const int mins, const panel_tile *t) {
    const int R = AMX_ROWS;
    const amx_parts parts = amx_parts_of(t->format);
    const uint8_t *codes = t->panel + parts.codes;
    int32_t sums[AMX_SEGMENT][AMX_QUARTER] __attribute__((aligned(64)));
    /* The open sums of a quarter between segments (y where paired, else f), and y beside f. */
    float f[AMX_SUMS] __attribute__((aligned(64))), y[AMX_SUMS] __attribute__((aligned(64)));
    float total[AMX_SUMS] __attribute__((aligned(64)));
    memset(f, 0, sizeof f);
    memset(y, 0, sizeof y);
    memset(total, 0, sizeof total);
    amx_walk walk = {.all = parts.groups};
    next_lines next = next_begin(t, parts.groups / AMX_SEGMENT * 4 + 1);
    for (amx_segment s = amx_next(paired, mins, t, &walk); s.count; s = amx_next(paired, mins, t, &walk))
        for (int quarter = 0; quarter < 4; quarter++) {
            const int row = quarter / 2 * AMX_TILE, h = quarter % 2;
            const int32_t size = t->format->group, k = s.group * size, at = row * PANEL_COLUMNS + 16 * h;
            const uint8_t *from = codes + (size_t)k * PANEL_COLUMNS + 64 * h;
            const size_t scale = (size_t)s.group * 128 + 64 * (size_t)h;
            next_fetch(&next);
            amx_make(step, t->q + row * AMX_LINE, R * AMX_LINE, k, size, from, s.count, sums[0]);
            amx_scale(paired, points, sums[0], s.count, t->panel + scale, t->panel + (size_t)parts.points + scale,
                      t->init + (size_t)s.group * R + row, t->scale + (size_t)s.span * R + row, R, f + at);
            if ((mins && s.mins) || s.spans || s.chunks) amx_close(R, mins, t, &parts, &s, row, h, f, y, total);
        }
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) vf_store(t->y + r * t->ldy + 16 * h, vf_load(total + r * PANEL_COLUMNS + 16 * h));
}

/* ---- kernels ----------------------------------------------------------------------------------------------------- */
#define AMX_INTEGER(T, is_signed)                                                                     \
    static __attribute__((noinline)) void amx_integer_##T##_##is_signed(const panel_tile *t) {        \
        amx_integer(T, is_signed, t);                                                                 \
    }
AMX_INTEGER(1, 0) AMX_INTEGER(2, 0) AMX_INTEGER(1, 1) AMX_INTEGER(2, 1)

/* Step, zero points, mins; each for activation scales of a span and of a group. */
#define AMX_FLOAT_LIST(X) X(64, 0, 0) X(64, 1, 0) X(32, 0, 0) X(32, 1, 0) X(32, 0, 1)
#define AMX_FLOATS(step, points, mins)                                                               \
    static __attribute__((noinline)) void amx_floats_##step##_##points##_##mins(const panel_tile *t) { \
        if (!mins && t->span == 1) amx_floats(step, 1, points, mins, t);                               \
        else amx_floats(step, 0, points, mins, t);                                                     \
    }
AMX_FLOAT_LIST(AMX_FLOATS)

/* The last tokens of many: with float scales the dot products of AVX-512 win up to 24. */
#define AMX_LOW_LIST(X, R)                                                                                           \
    X(R, 4, PANEL_F16, 0) X(R, 5, PANEL_F16, 0) X(R, 8, PANEL_F16, 0) X(R, 4, PANEL_F32, 0) X(R, 8, PANEL_F32, 0)    \
    X(R, 4, PANEL_Q4K, 0)
AMX_LOW_LIST(KERNEL, 16) AMX_LOW_LIST(KERNEL, 24)

static const struct {
    int32_t step, points, mins;
    panel_kernel *run;
} amx_kernels[] = {
#define AMX_ENTRY(step, points, mins) {step, points, mins, amx_floats_##step##_##points##_##mins},
    AMX_FLOAT_LIST(AMX_ENTRY)
};
static const struct {
    int32_t rows, bits, wide;
    panel_scale scale;
    panel_kernel *run;
} amx_low_kernels[] = {AMX_LOW_LIST(ENTRY, 16) AMX_LOW_LIST(ENTRY, 24)};

static bool amx_lines(const panel_format *f, int32_t rows) { return rows == AMX_ROWS || (rows == AMX_TILE && amx_whole(f)); }

static panel_kernel *amx_find(const panel_format *f, int32_t rows) {
    const bool tall = rows == AMX_ROWS;
    if (!amx_lines(f, rows)) {
        for (size_t i = 0; i < sizeof amx_low_kernels / sizeof *amx_low_kernels; i++)
            if (amx_low_kernels[i].rows == rows && amx_low_kernels[i].bits == f->bits &&
                amx_low_kernels[i].scale == f->scale && !f->wide)
                return amx_low_kernels[i].run;
        return f->wide ? NULL : kernel_find(f, rows);
    }
    if (f->scale == PANEL_CHANNEL && f->wide) return tall ? amx_integer_2_1 : amx_integer_1_1;
    if (f->scale == PANEL_CHANNEL && f->bits == 8) return tall ? amx_integer_2_0 : amx_integer_1_0;
    for (size_t i = 0; i < sizeof amx_kernels / sizeof *amx_kernels && f->wide; i++)
        if (amx_kernels[i].step == amx_step(f) && amx_kernels[i].points == f->points &&
            amx_kernels[i].mins == (f->scale == PANEL_Q4K))
            return amx_kernels[i].run;
    return NULL;
}

static void amx_enter(const panel_format *f) { amx_begin(amx_step(f)); }
static void amx_leave(void) { amx_end(); }
