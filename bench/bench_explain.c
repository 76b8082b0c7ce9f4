/* bench_explain.c -- the shapes by name, and --explain --gpu: which layout and row a GPU would get, and why not the others,
 * from its descriptor alone. Plans are pure functions, so the GPU need not be there. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "qk.h"

typedef struct shape { const char *name; int64_t n, k; } shape;
static const shape shapes[] = {
#define SHAPE(name, n, k) {name, n, k},
#include "shapes.txt"
#undef SHAPE
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

int bench_each_shape(const char *text, bench_shape_visit *visit, void *ctx) {
    char     *end;
    long long n = strtoll(text, &end, 10), k = *end == 'x' ? strtoll(end + 1, &end, 10) : 0;
    if (*end == 0 && n > 0 && k > 0 && n < 1 << 24 && k < 1 << 20) return visit(ctx, n, k);
    int found = 0, code = BENCH_OK;
    for (int i = 0; i < SHAPES && !code; i++) {
        if (strncmp(shapes[i].name, text, strlen(text)) != 0) continue;
        found++;
        code = visit(ctx, shapes[i].n, shapes[i].k);
    }
    if (found) return code;
    fprintf(stderr, "qbench: shape \"%s\" is neither NxK nor one of:", text);
    for (int i = 0; i < SHAPES; i++) fprintf(stderr, " %s", shapes[i].name);
    fputc('\n', stderr);
    return BENCH_USAGE;
}

#ifndef QE_CUDA_TOOLKIT
#define QE_CUDA_TOOLKIT 0     /* this build has no kernels for a GPU */
#endif
static const qk_device gpus[] = {
#define GPU(id, title, sm_, units_, shared_kib, l2_mib, memory_gib)                                                       \
    {.backend = QK_CUDA, .units = units_, .sm = sm_, .unit_bytes = shared_kib * 1024u, .cache_bytes = l2_mib * 1048576ull, \
     .memory_bytes = memory_gib * 1073741824ull, .name = id,                                                           \
     .clusters = sm_ / 10 == 9 ? QK_CLUSTERS_ALL : 0, .toolkit = QE_CUDA_TOOLKIT},
#include "gpus.txt"
#undef GPU
};
enum { GPUS = sizeof gpus / sizeof gpus[0] };

typedef struct explain {
    const bench_options *options;
    const qk_device     *gpu;
} explain;

static void refused(void *ctx, const char *name, const char *why) {
    (void)ctx;
    printf("  %-28s %s\n", name, why);
}

/* Facts need data: those of a few random rows stand for all. */
static qe_status shape_of(const bench_scheme *scheme, const qe_quant *quant, int64_t n, int64_t k, qk_shape *out, qe_error *err) {
    qe_qtensor weight;
    void      *block = NULL;
    memset(out, 0, sizeof *out);
    bench_scheme_act(scheme, quant, &out->act);
    qe_status status = bench_weight(quant, &out->act, n < 8 ? n : 8, k, 3, &weight, &block, err);
    free(block);
    QE_TRY(status);
    out->quant = *quant, out->n = n, out->k = k, out->facts = weight.facts;
    out->chunk_k = qk_chunk_k(quant, out->facts, &out->act, n, k);
    return QE_OK;
}

static qe_status one_scheme(const explain *e, const bench_scheme *scheme, int64_t n, int64_t k, qe_error *err) {
    qe_quant quant = scheme->quant;
    qk_gemm  gemm;
    qk_plan  plan;
    qk_x     x;
    if (scheme->grouped) quant.group_k = e->options->group;
    memset(&gemm, 0, sizeof gemm);
    QE_TRY(shape_of(scheme, &quant, n, k, &gemm.w, err));
    printf("%s %lldx%lld on %s:\n", scheme->name, (long long)n, (long long)k, e->gpu->name);
    gemm.w.layout = qk_layout_choose(e->gpu, &gemm.w, refused, NULL);
    if (!gemm.w.layout) return qe_error_set(err, QE_E_UNSUPPORTED, "no layout takes %s", scheme->name);
    printf("  %-28s chosen, %.2f bits a weight\n", gemm.w.layout->name,
           8.0 * (double)gemm.w.layout->band_bytes(&gemm.w) / (double)gemm.w.layout->band_rows / (double)k);
    for (int32_t i = 0; i < e->options->m_count; i++) {
        gemm.m = e->options->m[i], gemm.y_type = QE_CODE_F16, gemm.experts = e->options->experts;
        qk_x_bytes(e->gpu, &gemm.w, gemm.m, QE_CODE_F16, &x);
        gemm.x = x.quant;
        printf(" m %lld:\n", (long long)gemm.m);
        QE_TRY(qk_gemm_plan(e->gpu, &gemm, &plan, refused, NULL, err));
        printf("  %-28s chosen: instance %d, grid %u x %u x %u of %u threads, %u bytes shared, %llu workspace%s\n", plan.row->name,
               plan.variant, plan.grid[0], plan.grid[1], plan.grid[2], plan.block, plan.shared_bytes,
               (unsigned long long)plan.workspace_bytes, plan.splits == 1 || plan.workspace_bytes ? "" : ", splits summed in clusters");
    }
    return QE_OK;
}

static int each_scheme(void *ctx, int64_t n, int64_t k) {
    const explain *e = ctx;
    qe_error       err;
    for (int32_t i = 0; i < e->options->scheme_count; i++)
        if (one_scheme(e, e->options->schemes[i], n, k, &err)) return bench_fail(&err);
    return BENCH_OK;
}

int bench_explain_gpu(const bench_options *options) {
    explain e = {.options = options};
    for (int i = 0; i < GPUS; i++)
        if (strcmp(gpus[i].name, options->gpu) == 0) e.gpu = &gpus[i];
    if (!e.gpu) {
        fprintf(stderr, "qbench: GPU \"%s\" is none of:", options->gpu);
        for (int i = 0; i < GPUS; i++) fprintf(stderr, " %s", gpus[i].name);
        fputc('\n', stderr);
        return BENCH_USAGE;
    }
    if (!qk_backend_of(QK_CUDA)) {
        fprintf(stderr, "qbench: this build has no cuda kernels\n");
        return BENCH_NO_BACKEND;
    }
    return bench_each_shape(options->shape, each_scheme, &e);
}
