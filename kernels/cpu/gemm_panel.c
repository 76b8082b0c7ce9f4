/* The row that runs panels: activations cut into tiles of R rows once a call, panels split over the threads by position
 * alone. */
#include <limits.h>
#include <string.h>
#include <qengine/num.h>
#include "finish.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum {
    FEW_TILES = 2,              /* up to so many, tasks are smaller than a thread's share */
    CLAIM_BYTES = 64 * 1024     /* of panels in one task, at least */
};

/* How the tiles of one height run: on stored panels, or where there is a kernel on unpacked ones. */
typedef struct tile_way {
    int32_t rows, height;
    panel_kernel *stored, *wide;
} tile_way;

typedef struct panel_job {
    finish_job finish;
    const panel_isa *isa;
    panel_format format, wide;
    bool has_wide;
    tile_way tall, last;
    int64_t m;
    int32_t tiles, groups, spans, units;   /* units: threads that share the panels */
    size_t q_bytes, init_bytes, pair_bytes, tile_bytes;
    size_t sweep_bytes;           /* of activations held against one panel, in the L2 of a core */
} panel_job;

static size_t up(size_t bytes) {
    return (bytes + 63) & ~(size_t)63;
}

/* The smallest height built that holds `rows` rows. */
static tile_way way_of(const panel_job *j, int32_t rows) {
    tile_way way = {.rows = rows};
    for (way.height = rows;; way.height++) {
        way.stored = j->isa->kernel(&j->format, way.height);
        way.wide = j->has_wide ? j->isa->kernel(&j->wide, way.height) : NULL;
        if (way.stored || way.wide || way.height >= j->isa->max_rows) return way;
    }
}

static void job_sizes(panel_job *j, const qk_shape *s, int64_t m) {
    const panel_format *f = &j->format;
    int32_t xg = s->act.quant.group_k, rows = j->isa->max_rows;
    j->m = m;
    j->tiles = (int32_t)((m + rows - 1) / rows);
    j->groups = f->scale == PANEL_CHANNEL ? 1 : f->blocks * (f->block / f->group);
    j->spans = xg > 0 && xg < s->k ? (int32_t)((s->k + xg - 1) / xg) : 1;
    j->q_bytes = up((size_t)f->blocks * f->block) * (size_t)rows;
    j->init_bytes = up((size_t)(j->groups + 1) * rows * 4);
    j->pair_bytes = f->scale == PANEL_Q4K ? up((size_t)f->blocks * 16 * rows) : 0;
    j->has_wide = j->isa->wide && j->isa->wide(f, &j->wide);
    int64_t left = m - (int64_t)(j->tiles - 1) * rows;
    j->tall = way_of(j, rows);
    j->last = left < rows ? way_of(j, (int32_t)left) : j->tall;
    j->tile_bytes = j->q_bytes + j->init_bytes + j->pair_bytes + up((size_t)j->spans * rows * 4);
}

static const tile_way *way(const panel_job *j, int32_t tile) {
    return tile + 1 < j->tiles ? &j->tall : &j->last;
}

static bool in_lines(const panel_job *j, int32_t R) { return j->isa->lines && j->isa->lines(&j->format, R); }

/* Whether panels are unpacked for the tiles [begin, end); the first is the highest. */
static bool widened(const panel_job *j, int32_t begin, int32_t end) {
    return j->has_wide && end - begin >= j->isa->wide_tiles && way(j, begin)->wide;
}

static size_t work_bytes(const panel_job *j, uint32_t tasks) {
    return j->tile_bytes * (size_t)j->tiles + (widened(j, 0, j->tiles) ? (size_t)j->wide.panel_bytes * tasks : 0);
}

/* Tasks of a call: for many rows as many as threads, each with its slice of the workspace and few walks over the tiles. A
 * plan for fewer threads than there are has that many tasks, which is what keeps the others out. For few rows, where panels
 * come from memory in long walks, every round gives each thread half of what would be its share of the rest, down to some
 * microseconds of work, so that a thread which the system holds up keeps little from the others. */
static int32_t run_tasks(const panel_job *j, int64_t panels, int32_t units, int32_t threads) {
    if (units < threads || units == 1 || j->tiles > FEW_TILES || widened(j, 0, j->tiles)) return units;
    int32_t rounds = 1;
    while ((panels >> rounds) * j->format.panel_bytes >= (int64_t)CLAIM_BYTES * units) rounds++;
    return units * rounds;
}

/* The first panel of task `index` of `count` in rounds of `units`; of index count: behind the last. */
static int64_t task_begin(int64_t panels, int32_t index, int32_t count, int32_t units) {
    int32_t round = index / units;
    int64_t begin = round ? panels - (panels >> round) : 0;
    if (index == count) return panels;
    int64_t end = (round + 1) * units == count ? panels : panels - (panels >> (round + 1));
    return begin + (end - begin) * (index % units) / units;
}

static void tile_point(const panel_job *j, int32_t tile, panel_tile *t) {
    char *at = (char *)j->finish.args->workspace + (size_t)tile * j->tile_bytes;
    t->q = (const int8_t *)at;
    t->init = (const int32_t *)(const void *)(at + j->q_bytes);
    t->pairs = (const int32_t *)(const void *)(at + j->q_bytes + j->init_bytes);
    t->scale = (const float *)(const void *)(at + j->q_bytes + j->init_bytes + j->pair_bytes);
}

/* Columns [from, end) of one row of x, zeros behind k, into column r of a tile of R rows. */
static void fill_row(const int8_t *x, int64_t k, int64_t from, int64_t end, int32_t r, int32_t R, int8_t *q) {
    for (int64_t i = from; i < end; i += 4) {
        int8_t four[4] = {0, 0, 0, 0};
        if (x && i < k) memcpy(four, x + i, k - i < 4 ? (size_t)(k - i) : 4);
        memcpy(q + (i / 4 * R + r) * 4, four, 4);
    }
}

/* Columns [0, end) of four rows, into columns r to r + 3: 16 k at a time, so that stores are neighbors. */
static void fill_four(const int8_t *const x[4], int64_t end, int32_t r, int32_t R, int8_t *q) {
    for (int64_t i = 0; i < end; i += 16) {
        int32_t steps[4][4];
#if defined(__SSE2__)     /* gcc builds `steps` in memory word by word and waits for it */
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(x[0] + i));
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(x[1] + i));
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(x[2] + i));
        __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(x[3] + i));
        __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
        __m128i high_ab = _mm_unpackhi_epi32(a, b), high_cd = _mm_unpackhi_epi32(c, d);
        _mm_storeu_si128((__m128i *)steps[0], _mm_unpacklo_epi64(ab, cd));
        _mm_storeu_si128((__m128i *)steps[1], _mm_unpackhi_epi64(ab, cd));
        _mm_storeu_si128((__m128i *)steps[2], _mm_unpacklo_epi64(high_ab, high_cd));
        _mm_storeu_si128((__m128i *)steps[3], _mm_unpackhi_epi64(high_ab, high_cd));
#else
        int32_t rows[4][4];
        for (int j = 0; j < 4; j++) memcpy(rows[j], x[j] + i, 16);
        for (int s = 0; s < 4; s++)
            for (int j = 0; j < 4; j++) steps[s][j] = rows[j][s];
#endif
        for (int s = 0; s < 4; s++) memcpy(q + ((i / 4 + s) * R + r) * 4, steps[s], 16);
    }
}

/* Lines of 64 k, zeros behind k. */
static void fill_lines(int64_t k, int64_t padded, const int8_t *const x[], int32_t R, int8_t *q) {
    for (int32_t r = 0; r < R; r++) {
        int8_t *line = q + (size_t)r * 64;
        for (int64_t i = 0; i < padded; i += 64, line += (size_t)R * 64) {
            if (x[r] && i + 64 <= k) {
                memcpy(line, x[r] + i, 64);
                continue;
            }
            memset(line, 0, 64);
            if (x[r] && i < k) memcpy(line, x[r] + i, (size_t)(k - i));
        }
    }
}

static void fill_codes(const panel_job *j, const int8_t *const x[], int32_t R, int8_t *q) {
    int64_t k = j->finish.args->w->shape.k, padded = (int64_t)j->format.blocks * j->format.block, whole = k / 16 * 16;
    if (in_lines(j, R)) {
        fill_lines(k, padded, x, R, q);
        return;
    }
    if (R == 1 && x[0]) {
        memcpy(q, x[0], (size_t)k);
        memset(q + k, 0, (size_t)(padded - k));
        return;
    }
    for (int32_t r = 0; r < R;) {
        bool four = r + 4 <= R && x[r] && x[r + 1] && x[r + 2] && x[r + 3];
        if (four) fill_four(x + r, whole, r, R, q);
        for (int32_t end = r + (four ? 4 : 1); r < end; r++) fill_row(x[r], k, four ? whole : 0, padded, r, R, q);
    }
}

/* Sum of x over one group: of the sums that came with x where they divide it. */
static int32_t group_sum(const panel_job *j, const int8_t *x, const int32_t *sums, int64_t g, int64_t group) {
    int64_t k = j->finish.args->w->shape.k, unit = j->finish.args->x.sum_k, from = g * group;
    int64_t end = from + group < k ? from + group : k;
    int32_t sum = 0;
    if (sums && unit > 0 && group % unit == 0)
        for (int64_t i = from / unit; i * unit < end; i++) sum += sums[i];
    else
        for (int64_t i = from; i < end; i++) sum += x[i];
    return sum;
}

/* What goes with the codes of row r; x NULL: a row of zeros that fills the tile up. */
static void fill_beside(const panel_job *j, const int8_t *x, int64_t row, int32_t r, int32_t R, char *at) {
    const panel_format *f = &j->format;
    const qk_x *from = &j->finish.args->x;
    int32_t *init = (int32_t *)(void *)(at + j->q_bytes);
    int16_t *pairs = (int16_t *)(void *)(at + j->q_bytes + j->init_bytes);
    float *scale = (float *)(void *)(at + j->q_bytes + j->init_bytes + j->pair_bytes);
    int64_t group = f->scale == PANEL_CHANNEL ? (int64_t)f->blocks * f->block : f->group;
    bool points = in_lines(j, R) && j->has_wide ? j->wide.points : f->points;
    int32_t zero = points ? -1 : f->zero - (f->bits == 8 ? j->isa->bias8 : 0);
    const int32_t *sums = x && from->sums ? from->sums + row * ((from->k + from->sum_k - 1) / from->sum_k) : NULL;
    int32_t all = 0;
    for (int32_t g = 0; g < j->groups; g++) {
        int32_t sum = x ? group_sum(j, x, sums, g, group) : 0;
        init[(size_t)g * R + r] = -zero * sum;
        if (f->scale == PANEL_Q4K) pairs[((size_t)(g / 2) * R + r) * 2 + g % 2] = (int16_t)sum;
        all += sum;
    }
    if (f->scale == PANEL_INT) init[(size_t)j->groups * R + r] = -128 * all;   /* levels multiplied out: codes of one zero */
    bool fixed = j->finish.args->w->shape.act.mode == QE_ACT_STATIC;
    for (int32_t s = 0; s < j->spans; s++)
        scale[(size_t)s * R + r] = x ? from->scales[fixed ? 0 : row * j->spans + s] : 1.0f;
}

static void fill_task(void *arg, int32_t index, int32_t count) {
    const panel_job *j = arg;
    const qk_x *x = &j->finish.args->x;
    int64_t first = (int64_t)j->tiles * index / count, last = (int64_t)j->tiles * (index + 1) / count;
    for (int64_t tile = first; tile < last; tile++) {
        char *at = (char *)j->finish.args->workspace + (size_t)tile * j->tile_bytes;
        int32_t rows = way(j, (int32_t)tile)->rows, R = way(j, (int32_t)tile)->height;
        const int8_t *row[PANEL_MAX_ROWS];
        for (int32_t r = 0; r < R; r++) {
            int64_t token = tile * j->isa->max_rows + r;
            row[r] = r < rows ? (const int8_t *)x->data + token * x->ld : NULL;
            fill_beside(j, row[r], token, r, R, at);
        }
        fill_codes(j, row, R, (int8_t *)at);
    }
}

/* Part `index` of `count` of the panel behind this one, to come from memory while a tile is multiplied. */
static void fetch_part(const panel_format *f, const uint8_t *next, int32_t index, int32_t count, panel_tile *t) {
    int32_t lines = (f->panel_bytes + 63) / 64, first = (int32_t)((int64_t)lines * index / count);
    t->next = next ? next + (size_t)first * 64 : NULL;
    t->next_lines = next ? (int32_t)((int64_t)lines * (index + 1) / count) - first : 0;
}

/* The lines of y that a tile will write. */
static void fetch_y(const finish_job *j, int64_t token, int32_t rows, int64_t first) {
    int64_t n = j->args->w->shape.n, bytes = j->y_type == QE_CODE_F32 ? 4 : j->y_type == QE_CODE_INT ? 1 : 2;
    if (j->flags & QK_GEMM_GATED) first /= 2, n /= 2;
    int64_t wide = (j->flags & QK_GEMM_GATED ? PANEL_COLUMNS / 2 : PANEL_COLUMNS) * bytes;
    if (first + wide / bytes > n) return;
    for (int32_t r = 0; r < rows; r++) {
        const char *y = (const char *)j->args->y + ((token + r) * j->args->ldy + first) * bytes;
        for (int64_t i = 0; i < wide; i += 64) __builtin_prefetch(y + i, 1);
    }
}

static void run_task(void *arg, int32_t index, int32_t count) {
    const panel_job *j = arg;
    const qk_shape *s = &j->finish.args->w->shape;
    const panel_format *f = &j->format;
    int64_t panels = (s->n + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
    int32_t units = j->units;
    int64_t first = task_begin(panels, index, count, units), last = task_begin(panels, index + 1, count, units);
    int32_t xg = s->act.quant.group_k, sweep = (int32_t)(j->sweep_bytes / j->tile_bytes);
    if (sweep < 1) sweep = 1;
    int32_t sweeps = (j->tiles + sweep - 1) / sweep;
    sweep = (j->tiles + sweeps - 1) / sweeps;   /* all about as long: a short one reads all panels for few tiles */
    float y[PANEL_MAX_ROWS * PANEL_COLUMNS];
    int32_t sums[PANEL_MAX_ROWS * PANEL_COLUMNS];
    uint8_t *unpacked = (uint8_t *)j->finish.args->workspace + j->tile_bytes * (size_t)j->tiles +
                        (size_t)j->wide.panel_bytes * (size_t)index;
    panel_tile t;
    memset(&t, 0, sizeof t);
    t.sums = j->finish.y_type == QE_CODE_INT ? sums : NULL;
    t.span = xg > 0 && xg < s->k ? xg / f->group : INT_MAX;
    t.chunk = s->chunk_k > 0 && s->chunk_k < s->k ? (int32_t)(s->chunk_k / f->group) : INT_MAX;
    bool nothing = finish_nothing(&j->finish);
    bool lines = in_lines(j, way(j, 0)->height);
    if (lines && j->isa->enter) j->isa->enter(j->has_wide ? &j->wide : f);
    for (int32_t begin = 0; begin < j->tiles; begin += sweep) {
        int32_t end = begin + sweep < j->tiles ? begin + sweep : j->tiles;
        bool wide = widened(j, begin, end);
        for (int64_t panel = first; panel < last; panel++) {
            const uint8_t *packed = (const uint8_t *)j->finish.args->w->blob + (size_t)panel * f->panel_bytes;
            if (wide) j->isa->widen(f, packed, &j->wide, unpacked);
            for (int32_t tile = begin; tile < end; tile++) {
                const tile_way *how = way(j, tile);
                /* A last, lower tile may have no wide kernel. */
                bool unpack = wide && how->wide;
                t.format = unpack ? &j->wide : f;
                t.panel = unpack ? unpacked : packed;
                t.ahead = !unpack && tile == begin && panel == first;
                fetch_part(f, panel + 1 < last ? packed + f->panel_bytes : NULL, tile - begin, end - begin, &t);
                if (lines) fetch_y(&j->finish, tile * j->isa->max_rows, how->rows, panel * PANEL_COLUMNS);
                tile_point(j, tile, &t);
                int64_t token = (int64_t)tile * j->isa->max_rows, column = panel * PANEL_COLUMNS;
                bool in_place = nothing && how->rows == how->height && column + PANEL_COLUMNS <= s->n;
                t.y = in_place ? (float *)j->finish.args->y + token * j->finish.args->ldy + column : y;
                t.ldy = in_place ? j->finish.args->ldy : PANEL_COLUMNS;
                if (unpack && f->scale != j->wide.scale) t.init += (size_t)j->groups * (size_t)how->height;
                (unpack ? how->wide : how->stored)(&t);
                for (int32_t r = 0; r < how->rows && !in_place; r++) {
                    if (t.sums) finish_int8(&j->finish, token + r, column, sums + r * PANEL_COLUMNS);
                    else finish_row(&j->finish, token + r, column, y + r * PANEL_COLUMNS);
                }
            }
        }
    }
    if (lines && j->isa->leave) j->isa->leave();
}

static bool panel_row_supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    (void)device;
    return finish_supports(g, why);
}

static void panel_plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    panel_job j;
    memset(&j, 0, sizeof j);
    if (!panel_format_of(&g->w, &j.format, NULL)) return;
    j.isa = panel_isa_for(device->isa, &j.format, g->m);
    job_sizes(&j, &g->w, g->m);
    finish_plan(device, g, out);
    out->workspace_bytes = work_bytes(&j, out->block);
}

/* A little more than half of L2 (512 tokens of k 4096 in two sweeps of 2 MiB), less where an unpacked panel has to lie beside it, but never so little that panels are unpacked all the time. */
static size_t sweep_of(const panel_job *j, size_t l2) {
    size_t wide = j->has_wide ? (size_t)j->wide.panel_bytes : 0, room = l2 / 4 * 3;
    if (wide < l2 / 4) return l2 / 16 * 9;
    return wide < l2 / 2 ? room - wide : l2 / 4;
}

static qe_status panel_run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape *s = &args->w->shape;
    panel_job j;
    memset(&j, 0, sizeof j);
    QE_TRY(finish_begin(plan, args, &j.finish, err));
    if (args->x.quant.code != QE_CODE_INT || args->x.packing || !args->x.scales)
        return qe_error_set(err, QE_E_ARGUMENT, "x is not prepared as the weight asks");
    if (!panel_format_of(s, &j.format, NULL)) return qe_error_set(err, QE_E_ARGUMENT, "not a panel weight");
    j.isa = panel_isa_for(queue->device->isa, &j.format, args->x.m);
    job_sizes(&j, s, args->x.m);
    j.sweep_bytes = sweep_of(&j, queue->device->unit_bytes);
    if (work_bytes(&j, plan->block) > plan->workspace_bytes)
        return qe_error_set(err, QE_E_ARGUMENT, "m %lld is more than planned", (long long)args->x.m);
    int32_t units = (int32_t)plan->block;
    cpu_parallel(queue, fill_task, &j, j.tiles < units ? j.tiles : units);
    j.units = units;
    cpu_parallel(queue, run_task, &j, run_tasks(&j, (s->n + PANEL_COLUMNS - 1) / PANEL_COLUMNS, units, queue->device->units));
    return QE_OK;
}

const qk_row cpu_row_panel = {"cpu/panel", &cpu_layout_panel, panel_row_supports, panel_plan, panel_run};
