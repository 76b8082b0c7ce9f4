/* forward.c -- the rows of a batch through the decoder: one layer is a list of kernel calls.
 *
 * h is the fp32 residual stream, d what the last linear adds to it. Adding d to h, the norm after it and quantizing are
 * one pass (qk_prepare), so each block begins by adding what the block before it left in d. */
#include <math.h>

#include <qengine/num.h>
#include "run/engine_internal.h"
#include "run/tuning.h"

typedef struct pass {
    qe_engine       *e;
    const qk_ops    *ops;
    const qk_queue  *queue;
    const qe_batch  *batch;
    qk_kv            kv;
    qk_attention     attention;
    const qe_tap    *tap;
    int64_t          layer;
    qe_error        *err;
} pass;

/* ---- linears ----------------------------------------------------------------------------------------------------------- */
/* Workspace and prepared input for m rows of one GEMM; the plan is kept until m changes. */
static qe_status plan(qe_engine *e, qe_packed *w, int64_t m, qk_x *x, qe_error *err) {
    const qk_device *device = e->queue.device;
    size_t x_bytes = qk_x_bytes(device, &w->weight.shape, m, QE_CODE_F32, x);
    if (w->planned_m != m) {
        qk_gemm gemm;
        memset(&gemm, 0, sizeof gemm);
        gemm.w = w->weight.shape;
        gemm.x = x->quant;
        gemm.m = m;
        gemm.y_type = QE_CODE_F32;
        gemm.flags = w->bias.data ? QK_GEMM_BIAS : 0;
        w->planned_m = 0;
        QE_TRY(qe_tuning_plan(e->device, &gemm, &w->plan, err));
        w->planned_m = m;
    }
    QE_TRY(qe_block_grow(e->device, w->plan.workspace_bytes, &e->scratch.gemm, err));
    QE_TRY(qe_block_grow(e->device, x_bytes, &e->scratch.x, err));
    qk_x_rebase(x, e->scratch.x.data);
    return QE_OK;
}

static qe_status show(const pass *p, int32_t which, const qk_x *x) {
    if (!p->tap || !p->tap->input || which < 0) return QE_OK;
    if (x->quant.code != QE_CODE_F32 || x->packing)
        return qe_error_set(p->err, QE_E_UNSUPPORTED, "only plain float inputs can be observed");
    return p->tap->input(p->tap->ctx, p->layer, which, x->data, x->m, x->k, x->ld, p->err);
}

/* y = W * prepare(input), for the linears of a group side by side; `which` as in qe_tap, below 0: not shown. Who watches
 * has seen everything with the last input: its product, a fifth of a layer's arithmetic or more, is not asked for. */
enum { LAST_INPUT = 3 };
static qe_status project(const pass *p, qe_group *group, int32_t which, const qk_prepare *input, int64_t m, qe_block *y) {
    qk_prepare prepare = *input;
    qk_x x;
    for (int32_t i = 0; i < group->count; i++) {
        qe_packed *w = &group->packed[i];
        QE_TRY(plan(p->e, w, m, &x, p->err));
        if (i == 0 || !qk_x_shared(&group->packed[i - 1].weight, &w->weight)) {
            prepare.next = &w->weight;
            prepare.out = &x;
            QE_TRY(p->ops->prepare(&prepare, p->queue, p->err));
            if (prepare.residual) {          /* now holds the sum: it must not be added twice */
                prepare.x = prepare.residual;
                prepare.ldx = prepare.ldr;
                prepare.residual = NULL;
                prepare.post_norm = NULL;
            }
            if (i == 0) QE_TRY(show(p, which, &x));
            if (p->tap && which == LAST_INPUT) return QE_OK;
        }
        qk_gemm_args args;
        memset(&args, 0, sizeof args);
        args.w = &w->weight;
        args.x = x;
        args.y = (float *)y->data + group->column[i];
        args.ldy = group->width;
        args.bias = w->bias.data;
        args.workspace = p->e->scratch.gemm.data;
        QE_TRY(qk_gemm_run(&w->plan, &args, p->queue, p->err));
    }
    return QE_OK;
}

/* ---- inputs of linears --------------------------------------------------------------------------------------------------- */
static qk_prepare plain_input(const qe_block *x, int64_t width) {
    return (qk_prepare){.x = x->data, .ldx = width, .x_type = QE_CODE_F32};
}

/* h += post_norm(d), then norm(h). Before the first layer there is no d. */
static qk_prepare normed_input(const qe_hparams *hp, const qe_block *h, const qe_block *d, const qe_block *post_norm,
                               const qe_block *norm) {
    qk_prepare in = plain_input(d ? d : h, hp->hidden);
    in.norm = QK_NORM_RMS;
    in.norm_weight = norm->data;
    in.eps = hp->eps;
    if (!d) return in;
    in.residual = h->data;
    in.ldr = hp->hidden;
    in.post_norm = post_norm->data;
    return in;
}

/* act(gate) * up, from rows that hold gate and up side by side. */
static qk_prepare gated_input(const qe_hparams *hp, const qe_block *gate_up) {
    qk_prepare in = plain_input(gate_up, 2 * hp->ffn);
    in.up = (const float *)gate_up->data + hp->ffn;
    in.act = hp->activation == QE_ACTIVATION_GELU_TANH ? QK_ACT_GELU_TANH : QK_ACT_SILU;
    return in;
}

/* ---- one layer ------------------------------------------------------------------------------------------------------------ */
static qe_status attend(pass *p, int64_t layer) {
    const qe_hparams *hp = &p->e->hp;
    const qe_layer *l = &p->e->layers[layer];
    bool local = hp->local && hp->local[layer];
    qk_rope rope = {.qkv = p->e->scratch.qkv.data,
                    .ld = l->qkv.width,
                    .type = QE_CODE_F32,
                    .cos_sin = p->e->cos_sin[local].data,
                    .position = p->batch->device.position,
                    .rotary_dim = (int32_t)hp->rope_dims,
                    .interleaved = hp->rope_kind == QE_ROPE_INTERLEAVED,
                    .q_norm = l->vectors[QE_ROLE_Q_NORM].data,
                    .k_norm = l->vectors[QE_ROLE_K_NORM].data,
                    .eps = hp->eps};
    p->attention.layer = (int32_t)(layer - p->e->kv_layer);
    p->attention.ldq = l->qkv.width;
    p->attention.window = local ? (int32_t)hp->window : 0;
    QE_TRY(p->ops->rope_append(&rope, &p->attention, p->queue, p->err));
    return p->ops->attention(&p->attention, p->queue, p->err);
}

static qe_status run_layer(pass *p, int64_t layer) {
    qe_engine *e = p->e;
    const qe_hparams *hp = &e->hp;
    qe_scratch *s = &e->scratch;
    qe_layer *l = &e->layers[layer], *previous = layer ? l - 1 : NULL;
    static const qe_block none = {NULL, 0};
    const int64_t m = p->batch->m;
    p->layer = layer;

    qk_prepare attn_in = normed_input(hp, &s->hidden, previous ? &s->delta : NULL,
                                      previous ? &previous->vectors[QE_ROLE_POST_FFN_NORM] : &none,
                                      &l->vectors[QE_ROLE_ATTN_NORM]);
    QE_TRY(project(p, &l->qkv, 0, &attn_in, m, &s->qkv));
    QE_TRY(attend(p, layer));
    qk_prepare attended = plain_input(&s->attended, hp->heads * hp->head_dim);
    QE_TRY(project(p, &l->o, 1, &attended, m, &s->delta));

    qk_prepare ffn_in = normed_input(hp, &s->hidden, &s->delta, &l->vectors[QE_ROLE_POST_ATTN_NORM],
                                     &l->vectors[QE_ROLE_FFN_NORM]);
    QE_TRY(project(p, &l->gate_up, 2, &ffn_in, m, &s->ffn));
    qk_prepare gated = gated_input(hp, &s->ffn);
    return project(p, &l->down, LAST_INPUT, &gated, m, &s->delta);
}

/* ---- logits ---------------------------------------------------------------------------------------------------------------- */
/* Rows of h and d whose logits are wanted, next to each other. */
static qe_status gather(const pass *p, const qe_wanted *wanted, int64_t count) {
    qe_scratch *s = &p->e->scratch;
    const size_t bytes = (size_t)p->e->hp.hidden * sizeof(float);
    qe_status (*copy)(const qk_queue *, void *, const void *, size_t, qe_error *) = p->e->device->backend->copy;
    for (int64_t i = 0; i < count; i++) {
        size_t to = (size_t)i * bytes, from = (size_t)wanted[i].row * bytes;
        QE_TRY(copy(p->queue, (char *)s->head_hidden.data + to, (char *)s->hidden.data + from, bytes, p->err));
        QE_TRY(copy(p->queue, (char *)s->head_delta.data + to, (char *)s->delta.data + from, bytes, p->err));
    }
    return QE_OK;
}

static void cap(float *logits, int64_t n, float softcap) {
    for (int64_t i = 0; softcap > 0 && i < n; i++) logits[i] = softcap * qe_tanh(logits[i] / softcap);
}

/* Host memory whose rows of logits lie one behind the other, as a single row does: the product goes there at once. */
static bool in_place(const qe_engine *e, const qe_wanted *wanted, int64_t count) {
    if (!qe_device_is_host(e->device)) return false;
    for (int64_t i = 1; i < count; i++)
        if ((uintptr_t)wanted[i].to != (uintptr_t)wanted[0].to + (uintptr_t)(i * e->hp.vocab) * sizeof(float)) return false;
    return true;
}

static qe_status run_head(const pass *p) {
    qe_engine *e = p->e;
    const qe_hparams *hp = &e->hp;
    qe_scratch *s = &e->scratch;
    const size_t bytes = (size_t)hp->vocab * sizeof(float);
    qe_group *head = e->output.count ? &e->output : &e->embed;
    for (int64_t done = 0; done < p->batch->wanted_count;) {
        const qe_wanted *wanted = p->batch->wanted + done;
        int64_t count = p->batch->wanted_count - done < e->head_rows ? p->batch->wanted_count - done : e->head_rows;
        QE_TRY(gather(p, wanted, count));
        qk_prepare in = normed_input(hp, &s->head_hidden, &s->head_delta,
                                     &e->layers[hp->layers - 1].vectors[QE_ROLE_POST_FFN_NORM], &e->output_norm);
        bool direct = in_place(e, wanted, count);
        qe_block rows = direct ? (qe_block){wanted[0].to, (size_t)count * bytes} : s->logits;
        QE_TRY(project(p, head, -1, &in, count, &rows));
        for (int64_t i = 0; i < count && !direct; i++) {
            const char *row = (const char *)s->logits.data + (size_t)i * bytes;
            QE_TRY(e->device->backend->copy(p->queue, wanted[i].to, row, bytes, p->err));
        }
        QE_TRY(e->device->backend->wait(p->queue, p->err));
        for (int64_t i = 0; i < count; i++) cap(wanted[i].to, hp->vocab, hp->final_softcap);
        done += count;
    }
    return QE_OK;
}

/* ---- the pass -------------------------------------------------------------------------------------------------------------- */
static void begin(pass *p, qe_engine *e, qe_error *err) {
    const qe_hparams *hp = &e->hp;
    const qe_batch *b = &e->batch;
    memset(p, 0, sizeof *p);
    p->e = e;
    p->ops = &e->device->backend->ops;
    p->queue = &e->queue;
    p->batch = b;
    p->err = err;
    p->kv = (qk_kv){.pages = e->kv.pages.data,
                    .page_bytes = e->kv.page_bytes,
                    .page_tokens = QE_KV_PAGE_TOKENS,
                    .layers = e->kv.layers,
                    .table = b->device.table,
                    .ld_table = b->ld_table,
                    .length = b->device.length,
                    .quant = e->kv.quant};
    p->attention = (qk_attention){.heads = (int32_t)hp->heads,
                                  .kv_heads = (int32_t)hp->kv_heads,
                                  .head_dim = (int32_t)hp->head_dim,
                                  .scale = hp->attn_scale,
                                  .softcap = hp->attn_softcap,
                                  .sequences = b->sequences,
                                  .max_new = b->max_new,
                                  .max_length = b->max_length,
                                  .type = QE_CODE_F32,
                                  .first_row = b->device.first_row,
                                  .q = e->scratch.qkv.data,
                                  .out = e->scratch.attended.data,
                                  .ldq = e->layers[e->kv_layer].qkv.width,
                                  .ldo = hp->heads * hp->head_dim,
                                  .kv = &p->kv};
}

static qe_status start(pass *p, qe_engine *e, qe_error *err) {
    qe_batch *b = &e->batch;
    begin(p, e, err);
    size_t workspace = p->ops->attention_bytes(e->queue.device, &p->attention);
    QE_TRY(qe_block_grow(e->device, workspace, &e->scratch.attention, err));
    p->attention.workspace = e->scratch.attention.data;
    return e->device->backend->copy(&e->queue, b->block.data, b->memory, b->bytes, err);
}

static qe_status embed(const pass *p) {
    qe_engine *e = p->e;
    return p->ops->embed(&e->embed.packed[0].weight, e->batch.device.ids, e->batch.m, e->hp.embed_scale,
                         e->scratch.hidden.data, e->hp.hidden, QE_CODE_F32, &e->queue, p->err);
}

qe_status qe_forward(qe_engine *e, const qe_cancel *cancel, qe_error *err) {
    pass p;
    QE_TRY(start(&p, e, err));
    QE_TRY(embed(&p));
    for (int64_t layer = 0; layer < e->hp.layers; layer++) {
        if (cancel && cancel->ask && cancel->ask(cancel->ctx))
            return qe_error_set(err, QE_E_CANCELLED, "the step was cancelled");
        QE_TRY(run_layer(&p, layer));
    }
    return run_head(&p);
}

qe_status qe_forward_embed(qe_engine *e, qe_error *err) {
    pass p;
    QE_TRY(start(&p, e, err));
    return embed(&p);
}

qe_status qe_forward_layer(qe_engine *e, int64_t layer, const qe_tap *tap, qe_error *err) {
    pass p;
    e->kv_layer = layer;
    QE_TRY(start(&p, e, err));
    p.tap = tap;
    return run_layer(&p, layer);
}

qe_status qe_forward_head(qe_engine *e, qe_error *err) {
    pass p;
    QE_TRY(start(&p, e, err));
    return run_head(&p);
}

static qe_status reserve_group(qe_engine *e, qe_group *group, int64_t m, qe_error *err) {
    qk_x x;
    for (int32_t i = 0; i < group->count; i++) QE_TRY(plan(e, &group->packed[i], m, &x, err));
    return QE_OK;
}

qe_status qe_forward_reserve(qe_engine *e, int64_t m, qe_error *err) {
    for (int64_t i = 0; i < e->hp.layers; i++) {
        qe_layer *l = &e->layers[i];
        QE_TRY(reserve_group(e, &l->qkv, m, err));
        QE_TRY(reserve_group(e, &l->o, m, err));
        QE_TRY(reserve_group(e, &l->gate_up, m, err));
        QE_TRY(reserve_group(e, &l->down, m, err));
    }
    int64_t rows = m < e->head_rows ? m : e->head_rows;
    return reserve_group(e, e->output.count ? &e->output : &e->embed, rows, err);
}
