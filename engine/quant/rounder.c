/* rounder.c -- nearest code of a value: integers by one division and one rounding, tables by their ascending order. */
#include <math.h>
#include <string.h>

#include <qengine/num.h>
#include "quant/rounder.h"

/* Largest |C - z| a symmetric integer scheme uses on both sides. */
static float integer_limit(const qe_quant *q) {
    int high = (1 << q->bits) - 1 - q->zero_const, low = q->zero_const;
    return (float)(low < high || high < 1 ? (low > 1 ? low : 1) : high);
}

void qe_rounder_init(qe_rounder *r, const qe_quant *quant, const float *lut, bool full_range) {
    r->quant = quant;
    r->full_range = full_range;
    r->table = quant->code != QE_CODE_INT;
    r->count = 0;
    r->limit = r->table ? 0.0f : integer_limit(quant);
    const float *values = quant->code == QE_CODE_LUT ? lut : qe_code_values(quant->code);
    for (int i = 0; values && i < 1 << quant->bits; i++) {
        if (!isfinite(values[i])) continue;
        int at = r->count;
        while (at > 0 && r->sorted[at - 1] > values[i]) at--;
        if (at > 0 && r->sorted[at - 1] == values[i]) continue;
        memmove(r->sorted + at + 1, r->sorted + at, (size_t)(r->count - at) * sizeof(float));
        memmove(r->code + at + 1, r->code + at, (size_t)(r->count - at));
        r->sorted[at] = values[i];
        r->code[at] = (uint8_t)i;
        r->count++;
    }
}

qe_grid qe_grid_make(const qe_rounder *r, const qe_group *group) {
    const qe_quant *q = r->quant;
    qe_grid g = {group->scale, group->scale, 0.0f, group->has_bias ? group->bias : 0.0f, 0.0f, 0.0f, 0.0f};
    bool whole = q->zero == QE_ZERO_CONST || (q->zero == QE_ZERO_POINT && q->zero_num == QE_NUM_U8);
    if (!r->table) {
        float top = (float)((1 << q->bits) - 1);
        g.offset = whole ? group->zero : 0.0f;
        g.zero = whole ? 0.0f : group->zero;
        g.low = -g.offset;
        g.high = top - g.offset;
        if (q->zero == QE_ZERO_CONST && !r->full_range) {
            if (g.low < -r->limit) g.low = -r->limit;
            if (g.high > r->limit) g.high = r->limit;
        }
        if (g.scale == 0.0f) g.low = g.high = qe_clamp(rintf(group->zero), 0.0f, top) - g.offset;
    }
    if (g.scale == 0.0f) g.divisor = 1.0f;
    return g;
}

/* fl(x / s), moved into the units of c and rounded: rounding first and limiting after gives the same integer. */
static inline float integer_of(const qe_grid *g, float x) {
    float u = qe_add(qe_div(qe_sub(x, g->bias), g->divisor), g->zero);
    u = u < g->low ? g->low : u > g->high ? g->high : u;
    return qe_sub(qe_add(u, 12582912.0f), 12582912.0f);
}

static inline float integer_value(const qe_grid *g, float c) {
    return qe_add(qe_mul(g->scale, qe_sub(c, g->zero)), g->bias);
}

/* Index of the largest entry <= u, -1 below the first. */
static int floor_of(const qe_rounder *r, float u) {
    int low = -1, high = r->count;
    while (high - low > 1) {
        int middle = (low + high) >> 1;
        if (r->sorted[middle] <= u) low = middle;
        else high = middle;
    }
    return low;
}

/* Nearest of entries at and at + 1; the lower code on a tie. */
static inline int nearest_of(const qe_rounder *r, int at, float u) {
    if (at < 0) return 0;
    if (at + 1 >= r->count) return at;
    float down = qe_sub(u, r->sorted[at]), up = qe_sub(r->sorted[at + 1], u);
    if (down == up) return r->code[at] < r->code[at + 1] ? at : at + 1;
    return down < up ? at : at + 1;
}

/* Silence divides by nothing: with a scale of 0 every value is 0, and the code nearest to 0 says so. */
static inline float table_unit(const qe_grid *g, float x) { return g->scale == 0.0f ? 0.0f : qe_div(x, g->divisor); }

uint8_t qe_round_one(const qe_rounder *r, const qe_grid *g, float x, float *value) {
    if (r->table) {
        float u = table_unit(g, x);
        int at = nearest_of(r, floor_of(r, u), u);
        *value = qe_mul(g->scale, r->sorted[at]);
        return r->code[at];
    }
    float c = integer_of(g, x);
    *value = integer_value(g, c);
    return (uint8_t)(int)(c + g->offset);
}

qe_neighbours qe_round_neighbours(const qe_rounder *r, const qe_grid *g, float x) {
    qe_neighbours out;
    if (r->table) {
        float u = table_unit(g, x);
        int at = floor_of(r, u), low = at < 0 ? 0 : at, high = at + 1 < r->count ? at + 1 : at;
        if (g->scale == 0.0f || r->sorted[low] == u) high = low;
        bool turned = g->scale < 0.0f;
        int order[2] = {turned ? high : low, turned ? low : high};
        for (int i = 0; i < 2; i++) {
            out.value[i] = qe_mul(g->scale, r->sorted[order[i]]);
            out.code[i] = r->code[order[i]];
        }
        return out;
    }
    float u = qe_add(qe_div(qe_sub(x, g->bias), g->divisor), g->zero);
    float down = qe_clamp(floorf(u), g->low, g->high), up = qe_clamp(ceilf(u), g->low, g->high);
    bool turned = g->scale < 0.0f;
    float c[2] = {turned ? up : down, turned ? down : up};
    for (int i = 0; i < 2; i++) {
        out.value[i] = integer_value(g, c[i]);
        out.code[i] = (uint8_t)(int)(c[i] + g->offset);
    }
    return out;
}

/* ---- many -------------------------------------------------------------------------------------------------------- */
enum { BLOCK = 64, FEW = 32 };

/* Indices of the nearest entries. Small tables count the entries not above u, for all lanes at once. */
static void table_block(const qe_rounder *r, const qe_grid *g, const float *x, int n, int32_t at[BLOCK],
                        float u[BLOCK]) {
    for (int i = 0; i < n; i++) {
        u[i] = table_unit(g, x[i]);
        at[i] = -1;
    }
    if (r->count <= FEW) {
        for (int e = 0; e < r->count; e++) {
            float entry = r->sorted[e];
            for (int i = 0; i < n; i++) at[i] += entry <= u[i];
        }
    } else {
        for (int i = 0; i < n; i++) at[i] = floor_of(r, u[i]);
    }
    for (int i = 0; i < n; i++) at[i] = nearest_of(r, at[i], u[i]);
}

/* n: a multiple of 8; codes may be NULL. */
static void round_block(const qe_rounder *r, const qe_grid *grid, const float *x, int n, uint8_t *codes,
                        float *values) {
    const qe_grid g = *grid;
    if (r->table) {
        int32_t at[BLOCK];
        float u[BLOCK];
        table_block(r, &g, x, n, at, u);
        for (int i = 0; i < n; i++) {
            values[i] = qe_mul(g.scale, r->sorted[at[i]]);
            if (codes) codes[i] = r->code[at[i]];
        }
        return;
    }
    float c[BLOCK];
    for (int i = 0; i < n; i++) c[i] = integer_of(&g, x[i]);
    for (int i = 0; i < n; i++) values[i] = integer_value(&g, c[i]);
    for (int i = 0; codes && i < n; i++) codes[i] = (uint8_t)(int)(c[i] + g.offset);
}

/* Copy, filled up with zeros to a multiple of 8. */
static int fill_block(float in[BLOCK], const float *x, int64_t length) {
    int n = (int)(length + 7) & ~7;
    for (int i = (int)length; i < n; i++) in[i] = 0.0f;
    memcpy(in, x, (size_t)length * sizeof(float));
    return n;
}

void qe_round_many(const qe_rounder *r, const qe_grid *g, const float *x, int64_t count, uint8_t *codes,
                   float *values) {
    for (int64_t at = 0; at < count; at += BLOCK) {
        float in[BLOCK], out[BLOCK];
        uint8_t code[BLOCK];
        int64_t length = count - at < BLOCK ? count - at : BLOCK;
        round_block(r, g, in, fill_block(in, x + at, length), code, out);
        if (codes) memcpy(codes + at, code, (size_t)length);
        if (values) memcpy(values + at, out, (size_t)length * sizeof(float));
    }
}

double qe_round_error(const qe_rounder *r, const qe_grid *g, const float *x, const float *weight, int64_t count) {
    double sum = 0.0;
    for (int64_t at = 0; at < count; at += BLOCK) {
        float in[BLOCK], out[BLOCK], lanes[8] = {0};
        int64_t length = count - at < BLOCK ? count - at : BLOCK;
        int n = fill_block(in, x + at, length);
        round_block(r, g, in, n, NULL, out);
        for (int i = 0; i < n; i++) {
            float d = qe_sub(in[i], out[i]);
            out[i] = i < length ? qe_mul(d, d) : 0.0f;
        }
        if (weight) {
            for (int64_t i = 0; i < length; i++) out[i] = qe_mul(out[i], weight[at + i]);
        }
        for (int i = 0; i < n; i += 8) {
            for (int l = 0; l < 8; l++) lanes[l] += out[i + l];
        }
        sum += (double)((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
               (double)((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    }
    return sum;
}
