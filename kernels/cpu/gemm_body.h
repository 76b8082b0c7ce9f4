/* The panel kernels, written once over simd.h and compiled once per ISA. R rows of activations times 32 columns. The
 * order of every float operation is quantization.md 7.3 and 7.4; integer sums are exact, so their order is free.
 *
 * V_LANES columns make a vector, NV vectors a panel; one nibble line yields vectors j and j + HALF. A kernel handles
 * P such pairs at once: all of them for few rows (the panel is read once, in order), one for many (registers). */
#include "panel.h"
#include "simd.h"

enum { NV = PANEL_COLUMNS / V_LANES, HALF = NV / 2, V_BYTES = 4 * V_LANES };

/* Codes of 4 k of the vectors j and j + HALF. `step` counts inside the unit. `wide` panels hold a code in a byte. */
INLINE void load_step(const int bits, const int wide, const uint8_t *unit, const int step, int j, vi w[2]) {
    if (bits == 8 || wide) {
        const uint8_t *line = unit + step * 128 + j * V_BYTES;
        w[0] = vi_load(line);
        w[1] = vi_load(line + HALF * V_BYTES);
        return;
    }
    const uint8_t *at = unit + j * V_BYTES;
    vi line = vi_load(at + (bits == 4 ? 0 : 128) + step * 64);
    w[0] = vi_bits(line, 0, 15);
    w[1] = vi_bits(line, 4, 15);
    if (bits > 4) {
        const int right = bits == 5 ? step - 4 : 2 * step - 4, mask = bits == 5 ? 16 : 48;
        w[0] = vi_or(w[0], vi_bits(vi_load(at), right, mask));
        w[1] = vi_or(w[1], vi_bits(vi_load(at + 64), right, mask));
    }
}

INLINE int32_t load_x(const int8_t *q) {
    int32_t x;
    memcpy(&x, q, sizeof x);
    return x;
}

/* acc += the products of one unit. */
INLINE void unit_dot(const int R, const int S, const int P, const int bits, const int wide, const int steps, const int ahead,
                     const uint8_t *unit, const int8_t *q, int first, vi acc[V_MAX_ROWS][HALF][2]) {
    const int step_bytes = bits == 8 || wide ? 128 : 64;
#ifdef V_DIRECT
    const int flush = steps, direct = 1;
#else
    const int flush = bits == 8 ? steps : V_FLUSH(bits), direct = bits == 8;
#endif
    for (int from = 0; from < steps; from += flush) {
        vi part[V_MAX_ROWS][HALF][2];
        if (!direct)
            for (int r = 0; r < R; r++)
                for (int p = 0; p < P; p++) part[r][p][0] = part[r][p][1] = vi_set1(0);
#pragma GCC unroll 8
        for (int s = from; s < from + flush; s++) {
            if (ahead) for (int i = 0; i < step_bytes; i += 64) v_prefetch(unit + s * step_bytes + i);
            v_in_order();
#pragma GCC unroll 2
            for (int p = 0; p < P; p++) {
                vi w[2];
                load_step(bits, wide, unit, s, first + p, w);
#pragma GCC unroll 12
                for (int r = 0; r < R; r++) {
                    vi x = vi_set1(load_x(q + (s * S + r) * 4));
#pragma GCC unroll 2
                    for (int h = 0; h < 2; h++) {
                        if (bits == 8) acc[r][p][h] = dot_eight(acc[r][p][h], w[h], x);
                        else if (direct) acc[r][p][h] = dot_small(acc[r][p][h], w[h], x);
                        else part[r][p][h] = dot_small(part[r][p][h], w[h], x);
                    }
                }
            }
        }
#ifndef V_DIRECT
        if (!direct)
            for (int r = 0; r < R; r++)
                for (int p = 0; p < P; p++)
                    for (int h = 0; h < 2; h++) acc[r][p][h] = dot_flush(acc[r][p][h], part[r][p][h]);
#endif
    }
}

INLINE void prefetch_bytes(const int ahead, const uint8_t *p, int bytes) {
    if (ahead)
        for (int i = 0; i < bytes; i += 64) v_prefetch(p + i);
}

/* Some lines of the panel behind this one, while this one is multiplied. */
typedef struct next_lines {
    const uint8_t *at, *end;
    int32_t each;
} next_lines;

INLINE next_lines next_begin(const panel_tile *t, int32_t steps) {
    next_lines n = {t->next, t->next ? t->next + (size_t)t->next_lines * 64 : NULL, (t->next_lines + steps - 1) / steps};
    return n;
}

INLINE void next_fetch(next_lines *n) {
    for (int i = 0; i < n->each && n->at < n->end; i++, n->at += 64) v_prefetch_next(n->at);
}

INLINE int column_of(int first, int p, int h) { return (first + p + h * HALF) * V_LANES; }

/* The scale of group g of a block for the vector that starts at `column`. */
INLINE vf group_scale(const panel_scale scale, const int wide, const uint8_t *block, int g, int column) {
    if (wide == 2) return vf_load(block + (g * PANEL_COLUMNS + column) * 4);
    if (scale == PANEL_F16) return vf_half(block + column * 2);
    if (scale == PANEL_F32) return vf_load(block + column * 4);
    if (scale == PANEL_Q4K) return vf_mul(vf_half(block + column * 2), vf_from(vi_u8(block + 128 + g * 32 + column)));
    return vf_mul(vf_half(block + column * 2), vf_from(vi_s8(block + 64 + g * 32 + column)));
}

typedef vf float_sums[V_MAX_ROWS][HALF][2];

INLINE void sums_clear(const int R, const int P, float_sums f) {
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) f[r][p][0] = f[r][p][1] = vf_set1(0.0f);
}

/* -dmin of a block, and int16 mins of two neighboring groups, for the vector that starts at `column`. */
INLINE vf block_dmin(const int wide, const uint8_t *block, int column) {
    return wide == 2 ? vf_load(block + 1024 + column * 4) : vf_half(block + 64 + column * 2);
}
INLINE vi pair_mins(const int wide, const uint8_t *block, int pair, int column) {
    return wide == 2 ? vi_load(block + 1152 + pair * 128 + column * 4) : vi_u8_pairs(block + 384 + pair * 64 + column * 2);
}

/* f = fmaf(float(msum), -dmin, f) at the end of a block of 256. */
INLINE void add_mins(const int R, const int S, const int P, const int wide, const uint8_t *block, const int32_t *pairs, int first,
                     float_sums f) {
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
            for (int h = 0; h < 2; h++) {
                int column = column_of(first, p, h);
                vi sum = vi_set1(0);
                for (int pair = 0; pair < 4; pair++)
                    sum = vi_madd16(sum, pair_mins(wide, block, pair, column), vi_set1(pairs[pair * S + r]));
                f[r][p][h] = vf_fma(vf_from(sum), block_dmin(wide, block, column), f[r][p][h]);
            }
}

/* What the compiler knows of a tile with float scales. Of groups of one unit without zero points it need not keep the sums
 * in memory across the loop over units; where activations have a scale a group as well, no sum `f` lives longer than one. */
typedef enum tile_form { TILE_GENERAL, TILE_PLAIN, TILE_PAIRED } tile_form;

/* Float scales along k (7.4), for R rows of a tile of S. */
INLINE void tile_groups(const int R, const int S, const int P, const int bits, const int wide, const panel_scale scale,
                        const tile_form form, const int ahead, const panel_tile *t, int first) {
    const panel_format *format = t->format;
    const int unit = scale == PANEL_Q6K ? 16 : 32, steps = unit / 4;
    const int unit_bytes = unit * (bits == 8 || wide ? 32 : bits * 4), many = scale == PANEL_Q4K || scale == PANEL_Q6K;
    const int groups = scale == PANEL_Q4K ? 8 : scale == PANEL_Q6K ? 16 : 1;
    const int plain = form != TILE_GENERAL, paired = form == TILE_PAIRED;
    const int units = many || plain ? 1 : format->group / 32, points = !many && !plain && format->points;
    const uint8_t *block = t->panel;
    const int8_t *q = t->q;
    const int32_t *init = t->init, *pairs = t->pairs;
    const float *xs = t->scale;
    const int fetch = !ahead && S == V_MAX_ROWS;   /* lower ones are alone with their panel, or the last of many */
    int all = format->blocks * groups, done = 0, span = 0, chunk = 0;
    float_sums f, y, total;
    next_lines next;
    if (fetch) next = next_begin(t, all);
    sums_clear(R, P, f);
    sums_clear(R, P, y);
    sums_clear(R, P, total);
    for (int b = 0; b < format->blocks; b++, block += format->block_bytes) {
        const uint8_t *at = block + format->scale_bytes;
        prefetch_bytes(ahead, block, format->scale_bytes);
        for (int g = 0; g < groups; g++, init += S) {
            if (fetch) next_fetch(&next);
            vi acc[V_MAX_ROWS][HALF][2];
            for (int r = 0; r < R; r++)
                for (int p = 0; p < P; p++) acc[r][p][0] = acc[r][p][1] = vi_set1(points ? 0 : init[r]);
            for (int u = 0; u < units; u++, at += unit_bytes, q += unit * S) {
                prefetch_bytes(ahead, at, unit_bytes - steps * (bits == 8 || wide ? 128 : 64));
                unit_dot(R, S, P, bits, wide, steps, ahead, at, q, first, acc);
            }
            for (int p = 0; p < P; p++)
                for (int h = 0; h < 2; h++) {
                    int column = column_of(first, p, h);
                    vf s = group_scale(scale, wide, block, g, column);
                    if (points) {
                        vi z = vi_u8(block + (scale == PANEL_F16 && wide < 2 ? 64 : 128) + column);
                        if (bits == 8) z = vi_sub(z, vi_set1(V_BIAS8));
                        for (int r = 0; r < R; r++) acc[r][p][h] = vi_sub(acc[r][p][h], vi_mul(z, vi_set1(init[r])));
                    }
#pragma GCC unroll 12
                    for (int r = 0; r < R; r++) {
                        vf v = vf_from(acc[r][p][h]);
                        /* v * s is fmaf(v, s, 0) but for the sign of a zero, which no sum of y keeps. */
                        if (paired) y[r][p][h] = vf_fma(vf_mul(v, s), vf_set1(xs[r]), y[r][p][h]);
                        else f[r][p][h] = vf_fma(v, s, f[r][p][h]);
                    }
                }
            if (paired) xs += S;
            done++, span++, chunk++;
            if (scale == PANEL_Q4K && g == groups - 1) {
                add_mins(R, S, P, wide, block, pairs, first, f);
                pairs += 4 * S;
            }
            int end = done == all || chunk == t->chunk;
            if (!paired && (span == t->span || end)) {
#pragma GCC unroll 12
                for (int r = 0; r < R; r++)
                    for (int p = 0; p < P; p++)
                        for (int h = 0; h < 2; h++) y[r][p][h] = vf_fma(f[r][p][h], vf_set1(xs[r]), y[r][p][h]);
                sums_clear(R, P, f);
                if (span == t->span) xs += S, span = 0;
            }
            if (end) {
                for (int r = 0; r < R; r++)
                    for (int p = 0; p < P; p++)
                        for (int h = 0; h < 2; h++) total[r][p][h] = vf_add(total[r][p][h], y[r][p][h]);
                sums_clear(R, P, y);
                chunk = 0;
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
            for (int h = 0; h < 2; h++) vf_store(t->y + r * t->ldy + column_of(first, p, h), total[r][p][h]);
}

/* Sums of int32 over all of k: kept, or the two multiplications of 7.3. */
INLINE void sums_out(const int R, const int P, const panel_tile *t, int first, vi sum[V_MAX_ROWS][HALF][2]) {
    for (int p = 0; p < P; p++)
        for (int h = 0; h < 2; h++) {
            int column = column_of(first, p, h);
            for (int r = 0; t->sums && r < R; r++) vi_store(t->sums + r * PANEL_COLUMNS + column, sum[r][p][h]);
            if (t->sums) continue;
            vf w = vf_load(t->panel + column * 4);
            for (int r = 0; r < R; r++)
                vf_store(t->y + r * t->ldy + column,
                         vf_mul(vf_mul(vf_from(sum[r][p][h]), vf_set1(t->scale[r])), w));
        }
}

/* One scale a row: nothing but dot products along k. */
INLINE void tile_channel(const int R, const int P, const int bits, const int wide, const int ahead, const panel_tile *t,
                         int first) {
    const int unit_bytes = 32 * (bits == 8 || wide ? 32 : bits * 4), units = t->format->blocks * t->format->block / 32;
    const uint8_t *at = t->panel + PANEL_HEAD;
    const int8_t *q = t->q;
    vi sum[V_MAX_ROWS][HALF][2];
    next_lines next;
    if (!ahead) next = next_begin(t, units);
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) sum[r][p][0] = sum[r][p][1] = vi_set1(t->init[r]);
    for (int u = 0; u < units; u++, at += unit_bytes, q += 32 * R) {
        if (!ahead) next_fetch(&next);
        unit_dot(R, R, P, bits, wide, 8, ahead, at, q, first, sum);
    }
    sums_out(R, P, t, first, sum);
}

/* A second level multiplies each group's sum. */
INLINE void tile_levels(const int R, const int P, const int bits, const int wide, const int ahead, const panel_tile *t, int first) {
    const panel_format *format = t->format;
    const int unit_bytes = 32 * (bits == 8 || wide ? 32 : bits * 4), units = format->block / 32, points = format->points;
    const uint8_t *block = t->panel + PANEL_HEAD;
    const int8_t *q = t->q;
    vi sum[V_MAX_ROWS][HALF][2];
    next_lines next;
    if (!ahead) next = next_begin(t, format->blocks * units);
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) sum[r][p][0] = sum[r][p][1] = vi_set1(0);
    for (int b = 0; b < format->blocks; b++, block += format->block_bytes) {
        const uint8_t *at = block + format->scale_bytes;
        const int32_t *init = t->init + b * R;
        vi group[V_MAX_ROWS][HALF][2];
        prefetch_bytes(ahead, block, format->scale_bytes);
        for (int r = 0; r < R; r++)
            for (int p = 0; p < P; p++) group[r][p][0] = group[r][p][1] = vi_set1(points ? 0 : init[r]);
        for (int u = 0; u < units; u++, at += unit_bytes, q += 32 * R) {
            if (!ahead) next_fetch(&next);
            unit_dot(R, R, P, bits, wide, 8, ahead, at, q, first, group);
        }
        for (int p = 0; p < P; p++)
            for (int h = 0; h < 2; h++) {
                int column = column_of(first, p, h);
                vi s = vi_u8(block + column), z = vi_u8(block + 32 + column);
                if (bits == 8) z = vi_sub(z, vi_set1(V_BIAS8));
                for (int r = 0; r < R; r++) {
                    vi g = group[r][p][h];
                    if (points) g = vi_sub(g, vi_mul(z, vi_set1(init[r])));
                    sum[r][p][h] = vi_add(sum[r][p][h], vi_mul(g, s));
                }
            }
    }
    sums_out(R, P, t, first, sum);
}

INLINE void tile_rows(const int R, const int S, const int P, const int bits, const int wide, const panel_scale scale,
                      const int ahead, const panel_tile *t, int first) {
    /* With the 16 registers of AVX2 it is a spill more. */
    bool plain = V_LANES == 16 && scale == PANEL_F16 && t->format->group == 32 && !t->format->points;
    if (scale == PANEL_CHANNEL) tile_channel(R, P, bits, wide, ahead, t, first);
    else if (scale == PANEL_INT) tile_levels(R, P, bits, wide, ahead, t, first);
    else if (plain && R > 2 && t->span == 1) tile_groups(R, S, P, bits, wide, scale, TILE_PAIRED, ahead, t, first);
    else if (plain) tile_groups(R, S, P, bits, wide, scale, TILE_PLAIN, ahead, t, first);
    else tile_groups(R, S, P, bits, wide, scale, TILE_GENERAL, ahead, t, first);
}

INLINE void tile_run(const int R, const int bits, const int wide, const panel_scale scale, const panel_tile *t) {
    const int P = R <= 2 ? HALF : 1, floats = scale != PANEL_CHANNEL && scale != PANEL_INT;
    const int rows = !floats || R <= V_FLOAT_ROWS ? R : R % V_FLOAT_ROWS ? R / 2 : V_FLOAT_ROWS;
    for (int first = 0; first < HALF; first += P)
        for (int from = 0; from < R; from += rows) {
            panel_tile part = *t;
            part.q += 4 * from, part.init += from, part.pairs += from, part.scale += from, part.y += from * t->ldy;
            if (!wide && (R != V_MAX_ROWS || (!from && t->ahead))) tile_rows(rows, R, P, bits, wide, scale, 1, &part, first);
            else tile_rows(rows, R, P, bits, wide, scale, 0, &part, first);
        }
}

/* Stored width and scale kind of every kernel built, and whether for wide panels. */
#define KERNEL_LIST(X, R)                                                                                            \
    X(R, 4, PANEL_CHANNEL, 0) X(R, 8, PANEL_CHANNEL, 0) X(R, 4, PANEL_INT, 0) X(R, 8, PANEL_INT, 0)                  \
    X(R, 4, PANEL_F16, 0) X(R, 5, PANEL_F16, 0) X(R, 8, PANEL_F16, 0) X(R, 4, PANEL_F32, 0) X(R, 8, PANEL_F32, 0)    \
    X(R, 4, PANEL_Q4K, 0) X(R, 6, PANEL_Q6K, 0)
#define WIDE_LIST(X, R, W)                                                                                           \
    X(R, 4, PANEL_CHANNEL, W) X(R, 4, PANEL_F16, W) X(R, 5, PANEL_F16, W) X(R, 4, PANEL_F32, W) X(R, 4, PANEL_Q4K, W) \
    X(R, 6, PANEL_Q6K, W)
#if defined(V_AVX2)
#define HEIGHT_LIST(X) KERNEL_LIST(X, 1) KERNEL_LIST(X, 2) KERNEL_LIST(X, 4) WIDE_LIST(X, 4, 1) X(4, 4, PANEL_INT, 1)
#elif !defined(V_AVX512)
#define HEIGHT_LIST(X) KERNEL_LIST(X, 1) KERNEL_LIST(X, 4) WIDE_LIST(X, 4, 1) X(4, 4, PANEL_INT, 1)
#else
#define HEIGHT_LIST(X)                                                                                               \
    KERNEL_LIST(X, 1) KERNEL_LIST(X, 2) KERNEL_LIST(X, 4) KERNEL_LIST(X, 8) KERNEL_LIST(X, 12) WIDE_LIST(X, 12, 2)      \
    X(12, 8, PANEL_CHANNEL, 2)
#endif

#define KERNEL(R, bits, scale, wide)                                                                                 \
    static __attribute__((noinline)) void kernel_##R##_##bits##_##scale##_##wide(const panel_tile *t) {              \
        tile_run(R, bits, wide, scale, t);                                                                           \
    }
HEIGHT_LIST(KERNEL)

static const struct {
    int32_t rows, bits, wide;
    panel_scale scale;
    panel_kernel *run;
} kernels[] = {
#define ENTRY(R, bits, scale, wide) {R, bits, wide, scale, kernel_##R##_##bits##_##scale##_##wide},
    HEIGHT_LIST(ENTRY)
};

static panel_kernel *kernel_find(const panel_format *format, int32_t rows) {
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (kernels[i].rows == rows && kernels[i].bits == format->bits && kernels[i].scale == format->scale &&
            kernels[i].wide == format->wide)
            return kernels[i].run;
    return NULL;
}
