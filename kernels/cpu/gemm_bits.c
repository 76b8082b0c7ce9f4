/* Signs by signs on the CPU (bits.h): packing, and the row. Bands are split over the threads by position alone; a task
 * counts a band against all rows of x, which are 1/32 of the floats they were and stay in cache. */
#include <string.h>
#include <qengine/num.h>
#include "bits.h"
#include "finish.h"

bits_kernel *bits_kernel_of(uint32_t isa) {
#if defined(__x86_64__)
    if (isa & QK_ISA_VPOPCNT) return bits_differ_vpopcnt;
    if (isa & QK_ISA_AVX2) return bits_differ_avx2;
#endif
    (void)isa;
    return bits_differ_portable;
}

/* ---- layout ------------------------------------------------------------------------------------------------------ */
static bool bits_supports(const qk_device *device, const qk_shape *s, qk_why *why) {
    const qe_quant *w = &s->quant;
    (void)device;
    if (s->act.mode == QE_ACT_FLOAT || s->act.quant.code != QE_CODE_SIGN) return qk_no(why, "the input is not signs");
    if (w->code != QE_CODE_SIGN) return qk_no(why, "codes are not signs");
    if (w->scale != QE_NUM_F32 && w->scale != QE_NUM_F16 && w->scale != QE_NUM_BF16) return qk_no(why, "the scale is no float");
    if (w->super != QE_NUM_ONE || w->scale_log2) return qk_no(why, "two levels of scales, or scales times 2^%d", w->scale_log2);
    if (!qk_whole_k(w, s->facts, &s->act, s->k)) return qk_no(why, "more than one scale along k (groups of %d), or k beyond int32", w->group_k);
    return true;
}

static size_t bits_head_bytes(const qk_shape *s) {
    (void)s;
    return 0;
}

static size_t bits_band_bytes(const qk_shape *s) { return (size_t)(BITS_HEAD + qk_bit_words(s->k) * BITS_LINE); }

static void bits_pack_head(const qk_shape *s, const qe_qtensor *band, void *head) { (void)s, (void)band, (void)head; }

static size_t scale_at(const qe_qtensor *t, int64_t r) {
    return (size_t)qk_group_row(t->first_row, r, t->quant.group_n) * qe_num_bytes(t->quant.scale);
}

static void bits_pack(const qk_shape *s, const qe_qtensor *t, void *dst) {
    uint32_t *lines = (uint32_t *)(void *)((char *)dst + BITS_HEAD);
    memset(dst, 0, bits_band_bytes(s));
    for (int64_t r = 0; r < t->n; r++) {
        const uint8_t *codes = (const uint8_t *)t->codes + r * t->k;
        ((float *)dst)[r] = qe_num_get(s->quant.scale, (const char *)t->scales + scale_at(t, r), 0);
        for (int64_t k = 0; k < t->k; k++) lines[k / 32 * PANEL_COLUMNS + r] |= (uint32_t)(codes[k] & 1) << k % 32;
    }
}

static uint8_t bit_at(const void *band, int64_t r, int64_t k) {
    const uint32_t *lines = (const uint32_t *)(const void *)((const char *)band + BITS_HEAD);
    return lines[k / 32 * PANEL_COLUMNS + r] >> k % 32 & 1;
}

static void bits_unpack(const qk_shape *s, const void *head, const void *src, qe_qtensor *t) {
    (void)head;
    for (int64_t r = 0; r < t->n; r++) {
        uint8_t *codes = (uint8_t *)t->codes + r * t->k;
        for (int64_t k = 0; k < t->k; k++) codes[k] = bit_at(src, r, k);
        float v = ((const float *)src)[r];
        uint16_t half = s->quant.scale == QE_NUM_F16 ? qe_f32_to_f16(v) : qe_f32_to_bf16(v);
        char *to = (char *)t->scales + scale_at(t, r);
        if (s->quant.scale == QE_NUM_F32) memcpy(to, &v, 4);
        else memcpy(to, &half, 2);
    }
}

static void bits_row(const qk_shape *s, const void *head, const void *src, int32_t row, float *w) {
    (void)head;
    for (int64_t k = 0; k < s->k; k++) w[k] = bit_at(src, row, k) ? ((const float *)src)[row] : -((const float *)src)[row];
}

const qk_layout cpu_layout_bits = {"cpu/w1a1",     1,         PANEL_COLUMNS, bits_supports, bits_head_bytes, bits_band_bytes,
                                   bits_pack_head, bits_pack, bits_unpack,   bits_row};

/* ---- the row ----------------------------------------------------------------------------------------------------- */
typedef struct bits_job {
    finish_job finish;
    bits_kernel *differ;
} bits_job;

static void close_row(const bits_job *j, int64_t token, int64_t column, const float *scale, const int32_t *differ) {
    const qk_gemm_args *a = j->finish.args;
    float v[PANEL_COLUMNS];
    for (int c = 0; c < PANEL_COLUMNS; c++)
        v[c] = (float)((int32_t)a->x.k - differ[c] - differ[c]) * a->x.scales[token] * scale[c];
    finish_row(&j->finish, token, column, v);
}

static void bits_task(void *arg, int32_t index, int32_t count) {
    const bits_job *j = arg;
    const qk_gemm_args *a = j->finish.args;
    const qk_shape *s = &a->w->shape;
    int64_t bands = (s->n + PANEL_COLUMNS - 1) / PANEL_COLUMNS, words = qk_bit_words(s->k);
    int64_t last = bands * (index + 1) / count;
    int32_t differ[BITS_ROWS][PANEL_COLUMNS];
    for (int64_t band = bands * index / count; band < last; band++) {
        const uint8_t *at = (const uint8_t *)a->w->blob + (size_t)band * bits_band_bytes(s);
        for (int64_t token = 0; token < a->x.m; token += BITS_ROWS) {
            int32_t rows = a->x.m - token < BITS_ROWS ? (int32_t)(a->x.m - token) : BITS_ROWS;
            j->differ(at + BITS_HEAD, a->x.bits + token * words, words, rows, differ);
            for (int32_t r = 0; r < rows; r++)
                close_row(j, token + r, band * PANEL_COLUMNS, (const float *)(const void *)at, differ[r]);
        }
    }
}

static bool bits_row_supports(const qk_device *device, const qk_gemm *g, qk_why *why) {
    (void)device;
    if (g->y_type == QE_CODE_INT) return qk_no(why, "int8 output of signs, which have no static scale");
    return finish_supports(g, why);
}

static qe_status bits_run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err) {
    bits_job j;
    memset(&j, 0, sizeof j);
    QE_TRY(finish_begin(plan, args, &j.finish, err));
    if (!args->x.bits || !args->x.scales) return qe_error_set(err, QE_E_ARGUMENT, "x is not prepared as signs");
    j.differ = bits_kernel_of(queue->device->isa);
    cpu_parallel(queue, bits_task, &j, (int32_t)plan->block);
    return QE_OK;
}

const qk_row cpu_row_bits = {"cpu/w1a1", &cpu_layout_bits, bits_row_supports, finish_plan, bits_run};
