/* engine.c -- creation of an engine: packs every weight in the order of the layers, then the KV cache and scratch. */
#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/os.h"
#include "run/recipe_internal.h"

enum { DEFAULT_CONTEXT = 4096, DEFAULT_BATCH = 512, HEAD_ROWS = 32, MAX_SESSIONS = 65536, MAX_BATCH = 65536 };

/* ---- options ----------------------------------------------------------------------------------------------------------- */
qe_status qe_options_read(const void *in, uint32_t struct_size, void *out, size_t out_bytes, qe_error *err) {
    memset(out, 0, out_bytes);
    if (!in) return QE_OK;
    if (struct_size < sizeof struct_size) return qe_error_set(err, QE_E_ARGUMENT, "struct_size is not set");
    size_t known = struct_size < out_bytes ? struct_size : out_bytes;
    memcpy(out, in, known);
    for (size_t i = known; i < struct_size; i++) {
        if (((const unsigned char *)in)[i])
            return qe_error_set(err, QE_E_ARGUMENT, "options ask for something this version does not know");
    }
    return QE_OK;
}

static qe_status read_options(qe_engine *e, const qe_engine_options *o, qe_error *err) {
    const int64_t trained = e->hp.context > 0 ? e->hp.context : DEFAULT_CONTEXT;
    if (o->flags) return qe_error_set(err, QE_E_ARGUMENT, "options.flags 0x%x has unknown bits", o->flags);
    if (o->max_sessions < 0 || o->max_sessions > MAX_SESSIONS)
        return qe_error_set(err, QE_E_ARGUMENT, "max_sessions is %d, legal are 0 to %d", o->max_sessions, MAX_SESSIONS);
    if (o->max_batch_tokens < 0 || o->max_batch_tokens > MAX_BATCH)
        return qe_error_set(err, QE_E_ARGUMENT, "max_batch_tokens is %d, legal are 0 to %d", o->max_batch_tokens,
                            MAX_BATCH);
    if (o->context_tokens < 0 || o->context_tokens > trained)
        return qe_error_set(err, QE_E_ARGUMENT, "context_tokens is %lld, the model was trained for %lld",
                            (long long)o->context_tokens, (long long)trained);
    if ((o->kv_type && o->kv_type != QE_CODE_F16 && o->kv_type != QE_CODE_F32) || o->reserved)
        return qe_error_set(err, QE_E_ARGUMENT, "kv_type is %d, legal are QE_CODE_F16 and QE_CODE_F32", o->kv_type);
    e->kv_type = o->kv_type ? o->kv_type : QE_CODE_F16;
    if (o->kv_tokens < 0) return qe_error_set(err, QE_E_ARGUMENT, "kv_tokens is negative");
    e->context = o->context_tokens ? o->context_tokens : trained < DEFAULT_CONTEXT ? trained : DEFAULT_CONTEXT;
    e->max_sessions = o->max_sessions ? o->max_sessions : 1;
    e->max_batch = o->max_batch_tokens ? o->max_batch_tokens : DEFAULT_BATCH;
    uint64_t kv;
    if (!qe_check_mul((uint64_t)(qe_kv_pages_for(e->context) * QE_KV_PAGE_TOKENS), (uint64_t)e->max_sessions, &kv) ||
        kv > INT64_MAX)
        return qe_error_set(err, QE_E_OVERFLOW, "max_sessions times context_tokens is too large");
    e->kv_tokens = o->kv_tokens ? qe_kv_pages_for(o->kv_tokens) * QE_KV_PAGE_TOKENS : (int64_t)kv;
    e->head_rows = e->max_batch < HEAD_ROWS ? e->max_batch : HEAD_ROWS;
    return QE_OK;
}

/* ---- weights ------------------------------------------------------------------------------------------------------------ */
static const qe_role qkv_roles[] = {QE_ROLE_Q, QE_ROLE_K, QE_ROLE_V}, o_roles[] = {QE_ROLE_O},
                     gate_up_roles[] = {QE_ROLE_GATE, QE_ROLE_UP}, down_roles[] = {QE_ROLE_DOWN},
                     embed_roles[] = {QE_ROLE_EMBED}, output_roles[] = {QE_ROLE_OUTPUT};
static const qe_role vector_roles[] = {QE_ROLE_ATTN_NORM, QE_ROLE_Q_NORM,   QE_ROLE_K_NORM,
                                       QE_ROLE_POST_ATTN_NORM, QE_ROLE_FFN_NORM, QE_ROLE_POST_FFN_NORM};
enum { VECTOR_ROLES = sizeof vector_roles / sizeof vector_roles[0] };

static qe_status load_linears(qe_engine *e, qe_loading *loading, int64_t i, qe_error *err) {
    qe_layer *l = &e->layers[i];
    QE_TRY(qe_group_load(e->device, loading, qkv_roles, 3, i, &l->qkv, err));
    QE_TRY(qe_group_load(e->device, loading, o_roles, 1, i, &l->o, err));
    QE_TRY(qe_group_load(e->device, loading, gate_up_roles, 2, i, &l->gate_up, err));
    return qe_group_load(e->device, loading, down_roles, 1, i, &l->down, err);
}

static qe_status load_vectors(qe_engine *e, const qe_model *model, int64_t i, qe_error *err) {
    qe_layer *l = &e->layers[i];
    for (int v = 0; v < VECTOR_ROLES; v++) {
        qe_block_release(e->device, &l->vectors[vector_roles[v]]);
        QE_TRY(qe_vector_load(e->device, model, vector_roles[v], i, &l->vectors[vector_roles[v]], err));
    }
    return QE_OK;
}

static qe_status load_layer(qe_engine *e, qe_loading *loading, int64_t i, qe_error *err) {
    QE_TRY(load_linears(e, loading, i, err));
    return load_vectors(e, e->model, i, err);
}

static uint64_t bytes_of(const qe_model *model, qe_role role, int64_t layer) {
    qe_weight_ref ref;
    if (qe_model_weight(model, role, layer, &ref, NULL) || ref.tensor < 0) return 0;
    return qe_store_tensor_at(model->store, ref.tensor)->bytes;
}

static uint64_t bytes_to_load(const qe_engine *e) {
    static const qe_role roles[] = {QE_ROLE_Q, QE_ROLE_K, QE_ROLE_V, QE_ROLE_O, QE_ROLE_GATE, QE_ROLE_UP, QE_ROLE_DOWN};
    uint64_t total = bytes_of(e->model, QE_ROLE_EMBED, 0);
    if (!e->hp.tied) total += bytes_of(e->model, QE_ROLE_OUTPUT, 0);
    for (int64_t i = 0; i < e->hp.layers; i++)
        for (size_t r = 0; r < sizeof roles / sizeof roles[0]; r++) total += bytes_of(e->model, roles[r], i);
    return total;
}

static qe_status load_weights(qe_engine *e, const qe_engine_options *o, const qe_weight_source *source, qe_error *err) {
    qe_loading loading = {e->model, o->act, source, o->progress, o->progress_ctx, 0, bytes_to_load(e)};
    e->layers = calloc((size_t)e->hp.layers, sizeof *e->layers);
    if (!e->layers) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld layers", (long long)e->hp.layers);
    QE_TRY(qe_loading_report(&loading, 0, err));
    QE_TRY(qe_group_load(e->device, &loading, embed_roles, 1, 0, &e->embed, err));
    if (!e->hp.tied) QE_TRY(qe_group_load(e->device, &loading, output_roles, 1, 0, &e->output, err));
    QE_TRY(qe_vector_load(e->device, e->model, QE_ROLE_OUTPUT_NORM, 0, &e->output_norm, err));
    for (int64_t i = 0; i < e->hp.layers; i++) QE_TRY(load_layer(e, &loading, i, err));
    return QE_OK;
}

/* ---- rotation ----------------------------------------------------------------------------------------------------------- */
typedef struct rotation {
    const double *frequency;      /* [half] */
    float        *table;
    int64_t       positions, half;
} rotation;

static void rotation_task(void *arg, int32_t index, int32_t count) {
    const rotation *r = arg;
    for (int64_t p = index; p < r->positions; p += count) {
        float *row = r->table + p * r->half * 2;
        for (int64_t i = 0; i < r->half; i++) {
            double angle = (double)p * r->frequency[i];
            row[2 * i] = (float)cos(angle);
            row[2 * i + 1] = (float)sin(angle);
        }
    }
}

/* Llama 3 context extension: long waves are slowed by `factor`, short ones kept, those between blended. */
static double llama3_scaled(const qe_rope *rope, double frequency) {
    double waves = (double)rope->original_context * frequency / (2 * 3.14159265358979323846);
    if (waves < (double)rope->low_freq) return frequency / (double)rope->factor;
    if (waves > (double)rope->high_freq) return frequency;
    double blend = (waves - (double)rope->low_freq) / ((double)rope->high_freq - (double)rope->low_freq);
    return (1 - blend) * frequency / (double)rope->factor + blend * frequency;
}

static void find_frequencies(const qe_rope *rope, const float *divisors, int64_t half, double *out) {
    for (int64_t i = 0; i < half; i++) {
        out[i] = pow((double)rope->base, -(double)i / (double)half);
        if (divisors) out[i] /= (double)divisors[i];
        else if (rope->scaling == QE_ROPE_SCALE_LINEAR) out[i] /= (double)rope->factor;
        else if (rope->scaling == QE_ROPE_SCALE_LLAMA3) out[i] = llama3_scaled(rope, out[i]);
    }
}

static qe_status fill_rotation(qe_engine *e, const qe_rope *rope, const float *divisors, rotation *r, double *frequency,
                               qe_block *out, qe_error *err) {
    size_t bytes = (size_t)(r->positions * r->half * 2) * sizeof(float);
    find_frequencies(rope, divisors, r->half, frequency);
    QE_TRY(qe_block_alloc(e->device, bytes, out, err));
    if (qe_device_is_host(e->device)) r->table = out->data;
    if (e->queue.parallel) e->queue.parallel(e->queue.pool, rotation_task, r, e->queue.device->units);
    else rotation_task(r, 0, 1);
    if (qe_device_is_host(e->device)) return QE_OK;
    QE_TRY(e->device->backend->copy(&e->queue, out->data, r->table, bytes, err));
    return e->device->backend->wait(&e->queue, err);
}

static qe_status make_rotation(qe_engine *e, const qe_rope *rope, const float *divisors, qe_block *out, qe_error *err) {
    rotation r = {.positions = e->context, .half = e->hp.rope_dims / 2};
    if (!r.half) return QE_OK;
    double *frequency = malloc((size_t)r.half * sizeof *frequency);
    float *staging = NULL;
    r.frequency = frequency;
    bool have = frequency != NULL;
    if (have && !qe_device_is_host(e->device)) {
        r.table = staging = malloc((size_t)(r.positions * r.half * 2) * sizeof *staging);
        have = staging != NULL;
    }
    qe_status status = have ? fill_rotation(e, rope, divisors, &r, frequency, out, err)
                            : qe_error_set(err, QE_E_NOMEM, "no memory for a rotation table");
    free(staging);
    free(frequency);
    return status;
}

static qe_status make_rotations(qe_engine *e, qe_error *err) {
    qe_weight_ref ref;
    float *divisors = NULL;
    QE_TRY(qe_model_weight(e->model, QE_ROLE_ROPE_FREQS, 0, &ref, err));
    if (ref.tensor >= 0) {
        divisors = malloc((size_t)ref.k * sizeof *divisors);
        if (!divisors) return qe_error_set(err, QE_E_NOMEM, "no memory for rope_freqs");
    }
    qe_status status = divisors ? qe_model_read_vector(e->model, &ref, divisors, err) : QE_OK;
    for (int64_t i = 0; divisors && !status && i < ref.k; i++) {
        if (!(divisors[i] > 0)) status = qe_error_set(err, QE_E_VALUE, "rope_freqs: divisor %lld is not positive", (long long)i);
    }
    if (!status) status = make_rotation(e, &e->hp.rope_global, divisors, &e->cos_sin[0], err);
    if (!status && e->hp.window) status = make_rotation(e, &e->hp.rope_local, NULL, &e->cos_sin[1], err);
    free(divisors);
    return status;
}

/* ---- scratch ------------------------------------------------------------------------------------------------------------ */
static qe_status make_scratch(qe_engine *e, qe_error *err) {
    const qe_hparams *hp = &e->hp;
    qe_scratch *s = &e->scratch;
    const struct { qe_block *block; int64_t rows, width; } sizes[] = {
        {&s->hidden, e->max_batch, hp->hidden},
        {&s->delta, e->max_batch, hp->hidden},
        {&s->qkv, e->max_batch, (hp->heads + 2 * hp->kv_heads) * hp->head_dim},
        {&s->attended, e->max_batch, hp->heads * hp->head_dim},
        {&s->ffn, e->max_batch, 2 * hp->ffn},
        {&s->head_hidden, e->head_rows, hp->hidden},
        {&s->head_delta, e->head_rows, hp->hidden},
        {&s->logits, e->head_rows, hp->vocab},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t bytes = (size_t)sizes[i].rows * (size_t)sizes[i].width * sizeof(float);
        QE_TRY(qe_block_alloc(e->device, bytes, sizes[i].block, err));
    }
    if (!e->embed.count) return QE_OK;      /* a window: its layers come and go */
    QE_TRY(qe_forward_reserve(e, e->max_batch, err));
    return qe_forward_reserve(e, 1, err);
}

static void release_scratch(qe_engine *e) {
    qe_scratch *s = &e->scratch;
    qe_block *const blocks[] = {&s->hidden, &s->delta, &s->qkv,         &s->attended,   &s->ffn,   &s->x,
                                &s->gemm,   &s->attention, &s->head_hidden, &s->head_delta, &s->logits};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) qe_block_release(e->device, blocks[i]);
}

/* ---- creation ------------------------------------------------------------------------------------------------------------ */
static void release_layer(const qe_device *device, qe_layer *l) {
    qe_group *const groups[] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    for (int g = 0; g < 4; g++) qe_group_release(device, groups[g]);
    for (int r = 0; r < QE_ROLE_COUNT; r++) qe_block_release(device, &l->vectors[r]);
}

static void release(qe_engine *e) {
    for (int64_t i = 0; e->layers && i < e->hp.layers; i++) release_layer(e->device, &e->layers[i]);
    free(e->layers);
    qe_group_release(e->device, &e->embed);
    qe_group_release(e->device, &e->output);
    qe_block_release(e->device, &e->output_norm);
    for (int i = 0; i < 2; i++) qe_block_release(e->device, &e->cos_sin[i]);
    qe_kv_destroy(e->device, &e->kv);
    qe_batch_destroy(e);
    release_scratch(e);
    pthread_mutex_destroy(&e->turn);
    free(e);
}

static qe_status build(qe_engine *e, const qe_engine_options *o, qe_error *err) {
    QE_TRY(read_options(e, o, err));
    if (o->quantize) {
        qe_load_quantizer *quantizer;
        qe_weight_source source;
        QE_TRY(qe_load_quantizer_create(e->model, o->quantize, &quantizer, &source, err));
        qe_status status = load_weights(e, o, &source, err);
        qe_load_quantizer_free(quantizer);
        QE_TRY(status);
    } else {
        QE_TRY(load_weights(e, o, NULL, err));
    }
    QE_TRY(make_rotations(e, err));
    QE_TRY(qe_kv_create(e->device, &e->hp, e->kv_type, e->kv_tokens, &e->kv, err));
    QE_TRY(qe_batch_create(e, err));
    return make_scratch(e, err);
}

qe_status qe_engine_create(qe_device *device, const qe_model *model, const qe_engine_options *options, qe_engine **out,
                           qe_error *err) {
    qe_engine_options o;
    if (out) *out = NULL;
    if (!device || !model || !out) return qe_error_set(err, QE_E_ARGUMENT, "an engine needs a device, a model and a place");
    if (!model->family) return qe_error_set(err, QE_E_ARGUMENT, "the model was opened to be inspected, not run");
    QE_TRY(qe_options_read(options, options ? options->struct_size : 0, &o, sizeof o, err));
    uint64_t start_us = qe_os_now_us();
    qe_engine *e = calloc(1, sizeof *e);
    if (!e) return qe_error_set(err, QE_E_NOMEM, "no memory for an engine");
    pthread_mutex_init(&e->turn, NULL);
    e->device = device;
    e->model = model;
    e->hp = model->hp;
    e->queue = qe_device_queue(device, NULL);
    unsigned fp = qe_fp_enter();
    qe_status status = build(e, &o, err);
    qe_fp_leave(fp);
    if (status) {
        release(e);
        return status;
    }
    e->load_us = qe_os_now_us() - start_us;
    *out = e;
    return QE_OK;
}

/* ---- windows -------------------------------------------------------------------------------------------------------------- */
static qe_status build_window(qe_engine *e, int64_t context, int32_t batch, qe_error *err) {
    qe_hparams one = e->hp;
    one.layers = 1;
    e->context = context;
    e->max_batch = batch;
    e->max_sessions = (int32_t)(batch / context);       /* a piece is whole texts */
    e->kv_type = QE_CODE_F16;
    e->kv_tokens = e->max_sessions * qe_kv_pages_for(context) * QE_KV_PAGE_TOKENS;
    e->head_rows = batch < HEAD_ROWS ? batch : HEAD_ROWS;
    e->layers = calloc((size_t)e->hp.layers, sizeof *e->layers);
    if (!e->layers) return qe_error_set(err, QE_E_NOMEM, "no memory for %lld layers", (long long)e->hp.layers);
    for (int64_t i = 0; i < e->hp.layers; i++) QE_TRY(load_vectors(e, e->model, i, err));
    QE_TRY(qe_vector_load(e->device, e->model, QE_ROLE_OUTPUT_NORM, 0, &e->output_norm, err));
    QE_TRY(make_rotations(e, err));
    QE_TRY(qe_kv_create(e->device, &one, e->kv_type, e->kv_tokens, &e->kv, err));
    QE_TRY(qe_batch_create(e, err));
    return make_scratch(e, err);
}

qe_status qe_engine_create_window(qe_device *device, const qe_model *model, int64_t context, int32_t batch, qe_engine **out,
                                  qe_error *err) {
    *out = NULL;
    qe_engine *e = calloc(1, sizeof *e);
    if (!e) return qe_error_set(err, QE_E_NOMEM, "no memory for an engine");
    pthread_mutex_init(&e->turn, NULL);
    e->device = device;
    e->model = model;
    e->hp = model->hp;
    e->queue = qe_device_queue(device, NULL);
    qe_status status = build_window(e, context, batch, err);
    if (status) release(e);
    else *out = e;
    return status;
}

qe_status qe_window_load(qe_engine *e, const qe_weight_source *source, int64_t layer, qe_error *err) {
    qe_loading loading = {.model = e->model, .source = source};
    qe_window_release(e, layer);
    return load_linears(e, &loading, layer, err);
}

qe_status qe_window_vector(qe_engine *e, int64_t layer, qe_role role, const float *values, qe_error *err) {
    qe_block *block = &e->layers[layer].vectors[role];
    QE_TRY(e->device->backend->copy(&e->queue, block->data, values, block->bytes, err));
    return e->device->backend->wait(&e->queue, err);
}

void qe_window_release(qe_engine *e, int64_t layer) {
    qe_layer *l = &e->layers[layer];
    qe_group *const groups[] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    for (int g = 0; g < 4; g++) qe_group_release(e->device, groups[g]);
}

qe_status qe_window_load_ends(qe_engine *e, bool embed, bool head, qe_error *err) {
    qe_loading loading = {.model = e->model};
    if (embed || (head && e->hp.tied)) QE_TRY(qe_group_load(e->device, &loading, embed_roles, 1, 0, &e->embed, err));
    if (head && !e->hp.tied) QE_TRY(qe_group_load(e->device, &loading, output_roles, 1, 0, &e->output, err));
    return QE_OK;
}

void qe_window_release_ends(qe_engine *e) {
    qe_group_release(e->device, &e->embed);
    qe_group_release(e->device, &e->output);
}

qe_status qe_engine_destroy(qe_engine *engine) {
    if (!engine) return QE_OK;
    pthread_mutex_lock(&engine->turn);
    int32_t sessions = engine->sessions;
    pthread_mutex_unlock(&engine->turn);
    if (sessions) return QE_E_STATE;
    release(engine);
    return QE_OK;
}

/* ---- what it is ----------------------------------------------------------------------------------------------------------- */
typedef struct weight_sum {
    uint64_t bytes;
    double   elements;
} weight_sum;

static void add_group(weight_sum *sum, const qe_group *g) {
    for (int32_t i = 0; i < g->count; i++) {
        sum->bytes += g->packed[i].weight.blob_bytes;
        sum->elements += (double)g->packed[i].weight.shape.n * (double)g->packed[i].weight.shape.k;
    }
}

void qe_engine_get_info(const qe_engine *e, qe_engine_info *out) {
    const qe_scratch *s = &e->scratch;
    const qe_block *const blocks[] = {&s->hidden, &s->delta, &s->qkv,         &s->attended,   &s->ffn,   &s->x,
                                      &s->gemm,   &s->attention, &s->head_hidden, &s->head_delta, &s->logits};
    weight_sum sum = {0, 0};
    add_group(&sum, &e->embed);
    add_group(&sum, &e->output);
    for (int64_t i = 0; i < e->hp.layers; i++) {
        const qe_layer *l = &e->layers[i];
        const qe_group *const groups[] = {&l->qkv, &l->o, &l->gate_up, &l->down};
        for (int g = 0; g < 4; g++) add_group(&sum, groups[g]);
    }
    memset(out, 0, sizeof *out);
    out->vocab = e->hp.vocab;
    out->context_tokens = e->context;
    out->kv_tokens = e->kv_tokens;
    out->max_sessions = e->max_sessions;
    out->max_batch_tokens = e->max_batch;
    out->weight_bytes = sum.bytes;
    out->kv_bytes = e->kv.pages.bytes;
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) out->scratch_bytes += blocks[i]->bytes;
    out->load_us = e->load_us;
    out->bits_per_weight = sum.elements > 0 ? 8.0 * (double)sum.bytes / sum.elements : 0;
}

void qe_engine_get_stats(const qe_engine *engine, qe_engine_stats *out) {
    qe_engine *e = (qe_engine *)(uintptr_t)engine;
    pthread_mutex_lock(&e->turn);
    *out = e->stats;
    out->kv_tokens_used = (int64_t)(e->kv.count - e->kv.unused_count) * QE_KV_PAGE_TOKENS;
    out->sessions = e->sessions;
    pthread_mutex_unlock(&e->turn);
}
