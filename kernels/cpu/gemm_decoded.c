/* The row that runs decoded bands (decoded.h): x cut into tiles of floats once a call, bands split over the threads by
 * position alone; a task decodes a block of columns, multiplies every tile of its sweep by it, and closes what ends. */
#include <string.h>
#include <qengine/num.h>
#include "decoded.h"
#include "finish.h"

typedef struct decoded_job {
    finish_job finish;
    const qk_shape *shape;
    const decoded_isa *isa;
    decoded_format format;
    decoded_mode mode;
    bool integer, levels_in_sum;      /* WHOLE: the first level multiplies the codes */
    int32_t tiles;
    size_t tile_bytes, task_bytes;
    char *work;                       /* x tiles, then a slice per task: block, rows */
} decoded_job;

static size_t up(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

static void job_sizes(decoded_job *j, const qk_shape *s, int64_t m) {
    const qe_quant *q = &s->quant;
    int64_t rows = m < DECODED_SWEEP ? m : DECODED_SWEEP;
    j->shape = s;
    decoded_format_of(s, &j->format);
    j->mode = s->act.mode == QE_ACT_FLOAT                                 ? DECODED_FLOATS
              : qk_whole_k(q, s->facts, &s->act, s->k) ? DECODED_WHOLE
                                                                          : DECODED_GROUPS;
    j->integer = j->mode != DECODED_FLOATS && qk_integer_code(q) &&
                 (q->zero != QE_ZERO_POINT || q->zero_num == QE_NUM_U8);
    j->levels_in_sum = j->mode == DECODED_WHOLE && q->super != QE_NUM_ONE && q->group_k && q->group_k < s->k;
    j->tiles = (int32_t)((m + j->isa->max_rows - 1) / j->isa->max_rows);
    j->tile_bytes = up((size_t)s->k * (size_t)j->isa->max_rows * sizeof(float));
    j->task_bytes = DECODED_K * PANEL_COLUMNS * sizeof(float) +
                    up((size_t)(rows + j->isa->max_rows) * sizeof(decoded_row));
}

static int32_t tile_rows(const decoded_job *j, int32_t tile) {
    int64_t left = j->finish.args->x.m - (int64_t)tile * j->isa->max_rows;
    return left < j->isa->max_rows ? (int32_t)left : j->isa->max_rows;
}

static float *tile_at(const decoded_job *j, int32_t tile) {
    return (float *)(void *)(j->work + (size_t)tile * j->tile_bytes);
}

/* Where scale and zero of activation group `g` of a token lie; a static input has one pair. */
static int64_t range_at(const decoded_job *j, int64_t token, int64_t g) {
    const qk_x *x = &j->finish.args->x;
    int64_t groups = x->quant.group_k ? (x->k + x->quant.group_k - 1) / x->quant.group_k : 1;
    return j->shape->act.mode == QE_ACT_STATIC ? 0 : token * groups + g;
}

static void fill_row(const decoded_job *j, int64_t token, int32_t r, int32_t R, float *tile) {
    const qk_x *x = &j->finish.args->x;
    int64_t k = j->shape->k, group = x->quant.group_k ? x->quant.group_k : k;
    if (j->mode == DECODED_FLOATS) {
        const uint16_t *half = (const uint16_t *)x->data + token * x->ld;
        const float *full = (const float *)x->data + token * x->ld;
        if (x->quant.code == QE_CODE_F32)
            for (int64_t i = 0; i < k; i++) tile[i * R + r] = full[i];
        else if (x->quant.code == QE_CODE_F16)
            for (int64_t i = 0; i < k; i++) tile[i * R + r] = qe_f16_to_f32(half[i]);
        else
            for (int64_t i = 0; i < k; i++) tile[i * R + r] = qe_bf16_to_f32(half[i]);
        return;
    }
    const int8_t *q = (const int8_t *)x->data + token * x->ld;
    for (int64_t from = 0; from < k; from += group) {
        int32_t zero = x->zeros ? x->zeros[range_at(j, token, from / group)] : 0;
        int64_t end = from + group < k ? from + group : k;
        for (int64_t i = from; i < end; i++) tile[i * R + r] = (float)(q[i] - zero);
    }
}

static void fill_task(void *arg, int32_t index, int32_t count) {
    const decoded_job *j = arg;
    int64_t first = (int64_t)j->tiles * index / count, last = (int64_t)j->tiles * (index + 1) / count;
    for (int64_t tile = first; tile < last; tile++) {
        int32_t rows = tile_rows(j, (int32_t)tile), R = j->isa->height(rows);
        float *at = tile_at(j, (int32_t)tile);
        for (int32_t r = 0; r < rows; r++) fill_row(j, tile * j->isa->max_rows + r, r, R, at);
        for (int32_t r = rows; r < R; r++)
            for (int64_t i = 0; i < j->shape->k; i++) at[i * R + r] = 0.0f;
    }
}

/* ---- steps along k ----------------------------------------------------------------------------------------------- */
static int64_t border(int64_t k, int64_t extent, int64_t end) {
    if (extent <= 0) return end;
    int64_t next = (k / extent + 1) * extent;
    return next < end ? next : end;
}

/* The piece that begins at `from`: it ends with its block, group, super block, activation group or chunk. */
static void next_step(const decoded_job *j, int64_t from, bool starts, decoded_step *s) {
    const qk_shape *w = j->shape;
    int64_t chunk = border(from, w->chunk_k, w->k), x_end = border(from, j->finish.args->x.quant.group_k, chunk);
    memset(s, 0, sizeof *s);
    s->from = from;
    s->mode = j->mode;
    s->integer = j->integer;
    s->first_chunk = from < w->chunk_k || w->chunk_k <= 0;
    int64_t block = from + DECODED_K;
    if (j->mode == DECODED_GROUPS) {
        int64_t outer = border(from, w->quant.super == QE_NUM_ONE ? 0 : w->quant.super_k, x_end);
        int64_t group = border(from, w->quant.group_k, outer);
        s->end = group < block ? group : block;
        s->group_end = s->end == group;
        s->outer_end = s->end == outer;
        s->act_end = s->end == x_end;
        s->chunk_end = s->end == chunk;
    } else {
        int64_t last = j->mode == DECODED_FLOATS ? chunk : w->k;
        s->end = last < block ? last : block;
        s->group_end = s->chunk_end = s->end == last;
    }
    s->starts = starts || s->integer;
}

/* The codes of a step as floats, group by group; `levels` is left at the last group. */
static void decode_step(const decoded_job *j, const uint8_t *band, const decoded_step *s, decoded_block *b,
                        decoded_levels *levels, float *out) {
    const qk_shape *w = j->shape;
    static const float ones[PANEL_COLUMNS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                              1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    for (int64_t k = s->from; k < s->end;) {
        int64_t end = border(k, w->quant.group_k, s->end);
        if (k == 0 || (w->quant.group_k && k % w->quant.group_k == 0)) decoded_levels_at(w, &j->format, band, k, levels);
        b->from = k;
        b->count = (int32_t)(end - k);
        b->scale = j->mode == DECODED_FLOATS ? levels->scale : j->levels_in_sum ? levels->lower : ones;
        b->zero = levels->zero;
        b->offset = j->mode == DECODED_FLOATS && w->quant.zero == QE_ZERO_REAL ? levels->offset : NULL;
        j->isa->decode(b, out + (k - s->from) * PANEL_COLUMNS);
        k = end;
    }
}

static void point_levels(const decoded_job *j, const decoded_levels *levels, decoded_step *s) {
    if (j->mode == DECODED_FLOATS) return;
    s->scale = j->levels_in_sum ? levels->super : levels->scale;
    if (j->shape->quant.zero != QE_ZERO_REAL) return;
    if (j->format.mins) s->min = levels->min, s->min_super = levels->min_super;
    else s->offset = levels->offset;
}

/* Sum of a row's quantized columns in [from, end); exact. */
static int32_t x_sum(const float *tile, int32_t r, int32_t R, int64_t from, int64_t end) {
    int32_t sum = 0;
    for (int64_t i = from; i < end; i++) sum += (int32_t)tile[i * R + r];
    return sum;
}

static void close_rows(const decoded_job *j, const decoded_step *s, int32_t tile, int64_t group_from,
                       decoded_row *rows) {
    const qk_x *x = &j->finish.args->x;
    int32_t R = j->isa->height(tile_rows(j, tile)), count = tile_rows(j, tile);
    if (j->mode == DECODED_FLOATS && !s->chunk_end) return;
    for (int32_t r = 0; r < count; r++) {
        int64_t token = (int64_t)tile * j->isa->max_rows + r, group = x->quant.group_k ? s->from / x->quant.group_k : 0;
        float scale = j->mode == DECODED_FLOATS ? 1.0f : x->scales[range_at(j, token, group)];
        int32_t sum = s->group_end && (s->offset || s->min) ? x_sum(tile_at(j, tile), r, R, group_from, s->end) : 0;
        j->isa->close(rows + r, s, scale, sum);
    }
}

/* One band against the tiles [begin, end). */
static void run_band(const decoded_job *j, const uint8_t *band, int32_t begin, int32_t end, decoded_block *b,
                     float *block, decoded_row *rows) {
    decoded_levels levels;
    decoded_step s;
    int64_t group_from = 0;
    bool starts = true;
    int32_t height = j->isa->max_rows;
    memset(rows, 0, (size_t)(end - begin) * (size_t)height * sizeof *rows);
    b->lines = band;
    b->ahead = true;
    if (j->shape->quant.code == QE_CODE_LUT) b->table = (const float *)(const void *)(band + j->format.at[DECODED_TABLE]);
    for (int64_t k = 0; k < j->shape->k; k = s.end) {
        next_step(j, k, starts, &s);
        if (starts) group_from = k;
        decode_step(j, band, &s, b, &levels, block);
        point_levels(j, &levels, &s);
        for (int32_t t = begin; t < end; t++) {
            decoded_row *at = rows + (int64_t)(t - begin) * height;
            int32_t R = j->isa->height(tile_rows(j, t));
            j->isa->multiply(R, tile_at(j, t) + k * R, block, (int32_t)(s.end - k), at, s.starts);
            close_rows(j, &s, t, group_from, at);
        }
        starts = s.group_end;
    }
}

static void run_task(void *arg, int32_t index, int32_t count) {
    const decoded_job *j = arg;
    const qk_shape *s = j->shape;
    int64_t bands = (s->n + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
    int64_t first = bands * index / count, last = bands * (index + 1) / count;
    char *slice = j->work + (size_t)j->tiles * j->tile_bytes + (size_t)index * j->task_bytes;
    float *block = (float *)(void *)slice;
    decoded_row *rows = (decoded_row *)(void *)(slice + DECODED_K * PANEL_COLUMNS * sizeof(float));
    int32_t height = j->isa->max_rows, sweep = DECODED_SWEEP / height;
    decoded_block b;
    memset(&b, 0, sizeof b);
    b.format = &j->format;
    b.code = s->quant.code;
    b.table = qe_code_values(b.code);
    float sign[16] = {-1.0f, 1.0f};
    if (b.code == QE_CODE_SIGN) b.table = sign;
    b.plain = s->quant.scale == QE_NUM_ONE && s->quant.super == QE_NUM_ONE && s->quant.zero == QE_ZERO_CONST &&
              !s->quant.scale_log2 && !s->quant.zero_const;
    for (int c = 0; c < PANEL_COLUMNS && b.code == QE_CODE_LUT; c++) b.base[c] = c * (1 << s->quant.bits);
    for (int32_t begin = 0; begin < j->tiles; begin += sweep) {
        int32_t end = begin + sweep < j->tiles ? begin + sweep : j->tiles;
        for (int64_t band = first; band < last; band++) {
            run_band(j, (const uint8_t *)j->finish.args->w->blob + (size_t)band * j->format.band_bytes, begin, end, &b,
                     block, rows);
            for (int32_t t = begin; t < end; t++)
                for (int32_t r = 0; r < tile_rows(j, t); r++) {
                    decoded_row *row = rows + (int64_t)(t - begin) * height + r;
                    int64_t token = (int64_t)t * height + r, column = band * PANEL_COLUMNS;
                    if (j->finish.y_type == QE_CODE_INT) finish_int8(&j->finish, token, column, (int32_t *)row->acc);
                    else finish_row(&j->finish, token, column, row->total);
                }
        }
    }
}

/* ---- the row ----------------------------------------------------------------------------------------------------- */
static bool decoded_row_supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    (void)device;
    if (g->w.act.mode != QE_ACT_FLOAT && !qk_act_int8(&g->w.act))
        return qk_no(why, "activations of %d bits", g->w.act.quant.bits);
    return finish_supports(g, why);
}

static void decoded_plan(const qk_device *device, const qk_gemm *g, qk_plan *out) {
    decoded_job j;
    memset(&j, 0, sizeof j);
    j.isa = decoded_isa_of(device->isa);
    job_sizes(&j, &g->w, g->m);
    finish_plan(device, g, out);
    out->workspace_bytes = (size_t)j.tiles * j.tile_bytes + out->block * j.task_bytes;
}

static bool float_type(int32_t code) { return code == QE_CODE_F32 || code == QE_CODE_F16 || code == QE_CODE_BF16; }

static qe_status decoded_run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    const qk_shape *s = &args->w->shape;
    decoded_job j;
    memset(&j, 0, sizeof j);
    QE_TRY(finish_begin(plan, args, &j.finish, err));
    if (args->x.packing || (s->act.mode == QE_ACT_FLOAT ? !float_type(args->x.quant.code)
                                                        : args->x.quant.code != QE_CODE_INT || !args->x.scales))
        return qe_error_set(err, QE_E_ARGUMENT, "x is not prepared as the weight asks");
    j.isa = decoded_isa_of(queue->device->isa);
    job_sizes(&j, s, args->x.m);
    j.work = args->workspace;
    if ((size_t)j.tiles * j.tile_bytes + plan->block * j.task_bytes > plan->workspace_bytes)
        return qe_error_set(err, QE_E_ARGUMENT, "m %lld is more than planned", (long long)args->x.m);
    cpu_parallel(queue, fill_task, &j, j.tiles > (int32_t)plan->block ? (int32_t)plan->block : 1);
    cpu_parallel(queue, run_task, &j, (int32_t)plan->block);
    return QE_OK;
}

const qk_row cpu_row_decoded = {"cpu/decoded", &cpu_layout_decoded, decoded_row_supports, decoded_plan, decoded_run};
