/* qk_tuning.c -- the plans of one problem that give the same bits, for whoever measures which is fastest. A row is asked
 * for them by what its plan may depend on without showing in y: the tokens a tile is cut for, and the units of the device. */
#include <string.h>

#include "qk.h"

enum { UNITS_MORE = 8 };    /* splits beyond one wave of blocks: no more than this many waves */

/* Float sums of different rows differ in their last bits, so there the row is not free. */
static bool rows_agree(const qk_gemm *g) {
    return g->w.act.mode != QE_ACT_FLOAT && qk_whole_k(&g->w.quant, g->w.facts, &g->w.act, g->w.k);
}

static bool legal(const qk_device *device, const qk_gemm *g, const qk_tuning *t, const qk_row *first, qk_why *why) {
    int32_t most = device->backend == QK_CUDA ? UNITS_MORE * device->units : device->units;
    if (g->experts) return qk_no(why, "experts are not tuned");
    if (t->tile_m < 0 || t->units < 0 || t->units > most)
        return qk_no(why, "tiles for %d tokens on %d units: the device has %d", t->tile_m, t->units, device->units);
    if (!t->row || t->row == first) return true;
    if (t->row->layout != g->w.layout) return qk_no(why, "%s reads another layout", t->row->name);
    if (!rows_agree(g)) return qk_no(why, "%s sums floats in another order than %s", t->row->name, first->name);
    return t->row->supports(device, g, why);
}

qe_status qk_gemm_plan_tuned(const qk_device *device, const qk_gemm *gemm, const qk_tuning *tuning, qk_plan *out,
                             qe_error *err) {
    qk_plan plan;
    qk_why why = {""};
    QE_TRY(qk_gemm_plan(device, gemm, &plan, NULL, NULL, err));
    if (!legal(device, gemm, tuning, plan.row, &why)) return qe_error_set(err, QE_E_UNSUPPORTED, "tuning: %s", why.text);
    const qk_row *row = tuning->row ? tuning->row : plan.row;
    qk_gemm tiled = *gemm;
    qk_device like = *device;
    tiled.tile_m = tuning->tile_m;
    if (tuning->units) like.units = tuning->units;
    plan = qk_plan_begin(row, &tiled);
    row->plan(&like, &tiled, &plan);
    *out = plan;
    return QE_OK;
}

static bool same(const qk_plan *a, const qk_plan *b) {
    return a->row == b->row && a->variant == b->variant && a->splits == b->splits && !memcmp(a->grid, b->grid, sizeof a->grid) &&
           a->block == b->block && a->shared_bytes == b->shared_bytes && a->workspace_bytes == b->workspace_bytes;
}

typedef struct collector {
    const qk_device *device;
    const qk_gemm   *gemm;
    qk_tuning       *out;
    qk_plan          plans[QK_TUNINGS];
    int32_t          count;
} collector;

static void offer(collector *c, qk_tuning t) {
    qk_plan plan;
    if (c->count == QK_TUNINGS || qk_gemm_plan_tuned(c->device, c->gemm, &t, &plan, NULL)) return;
    for (int32_t i = 0; i < c->count; i++)
        if (same(&c->plans[i], &plan)) return;
    c->plans[c->count] = plan;
    c->out[c->count++] = t;
}

/* All tiles and units of one row. */
static void offer_row(collector *c, const qk_row *row) {
    static const int32_t tiles[] = {0, 16, 32, 64, 128, 256};
    int32_t units = c->device->units;
    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++) {
        offer(c, (qk_tuning){row, tiles[i], 0});
        if (c->device->backend == QK_CUDA) {
            const int32_t others[] = {1, units / 2, 2 * units, 4 * units, UNITS_MORE * units};
            for (size_t j = 0; j < sizeof others / sizeof others[0]; j++) offer(c, (qk_tuning){row, tiles[i], others[j]});
        } else
            for (int32_t less = units / 2; less > 0; less /= 2) offer(c, (qk_tuning){row, tiles[i], less});
    }
}

int32_t qk_gemm_tunings(const qk_device *device, const qk_gemm *gemm, qk_tuning out[QK_TUNINGS]) {
    collector c;
    memset(&c, 0, sizeof c);
    c.device = device;
    c.gemm = gemm;
    c.out = out;
    offer(&c, (qk_tuning){NULL, 0, 0});
    if (c.count == 0) return 0;
    const qk_row *first = c.plans[0].row;
    offer_row(&c, first);
    for (const qk_row *const *row = qk_backend_of(device->backend)->rows; *row; row++)
        if (*row != first && (*row)->layout == gemm->w.layout) offer_row(&c, *row);
    return c.count;
}
