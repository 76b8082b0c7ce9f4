/* timer_cuda.c -- time on the GPU: calls are captured into one CUDA graph, replayed between two events, so that neither
 * launches nor the host's clock are measured. Device memory for baselines and roofs. */
#include "bench.h"

#ifdef QE_HAVE_CUDA
#include <cuda_runtime_api.h>
#include <stdlib.h>

struct bench_cuda {
    cudaStream_t stream;
    cudaEvent_t  begin, end;
};
struct bench_graph {
    cudaGraphExec_t exec;
    int             calls;
};

static qe_status check(cudaError_t code, const char *what, qe_error *err) {
    if (code == cudaSuccess) return QE_OK;
    (void)cudaGetLastError();
    return qe_error_set(err, code == cudaErrorMemoryAllocation ? QE_E_NOMEM : QE_E_DEVICE, "cuda: %s: %s", what,
                        cudaGetErrorString(code));
}

bench_cuda *bench_cuda_create(int32_t ordinal, qe_error *err) {
    bench_cuda *c = calloc(1, sizeof *c);
    if (!c) {
        qe_error_set(err, QE_E_NOMEM, "no memory for a timer");
        return NULL;
    }
    if (check(cudaSetDevice(ordinal), "selecting the device", err) ||
        check(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "creating a stream", err) ||
        check(cudaEventCreate(&c->begin), "creating an event", err) ||
        check(cudaEventCreate(&c->end), "creating an event", err)) {
        bench_cuda_destroy(c);
        return NULL;
    }
    return c;
}

void bench_cuda_destroy(bench_cuda *c) {
    if (!c) return;
    if (c->end) cudaEventDestroy(c->end);
    if (c->begin) cudaEventDestroy(c->begin);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
}

void *bench_cuda_stream(const bench_cuda *c) { return c->stream; }

qe_status bench_cuda_record(bench_cuda *c, bench_enqueue *enqueue, void *ctx, int calls, bench_graph **out, qe_error *err) {
    cudaGraph_t  graph = NULL;
    qe_status    status = QE_OK;
    bench_graph *g = calloc(1, sizeof *g);
    *out = NULL;
    if (!g) return qe_error_set(err, QE_E_NOMEM, "no memory for a graph");
    g->calls = calls;
    /* Once outside of the graph: modules are loaded and attributes set at the first launch. */
    status = enqueue(ctx, c->stream, err);
    if (!status) status = check(cudaStreamSynchronize(c->stream), "the first call", err);
    if (!status) status = check(cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal), "capturing", err);
    if (!status) {
        for (int i = 0; i < calls && !status; i++) status = enqueue(ctx, c->stream, err);
        cudaError_t code = cudaStreamEndCapture(c->stream, &graph);
        if (!status) status = check(code, "capturing", err);
    }
    if (!status) status = check(cudaGraphInstantiate(&g->exec, graph, 0), "building a graph", err);
    if (graph) cudaGraphDestroy(graph);
    if (status) {
        bench_graph_destroy(g);
        return status;
    }
    *out = g;
    return QE_OK;
}

qe_status bench_cuda_replay(bench_cuda *c, bench_graph *g, double *us, qe_error *err) {
    float ms = 0;
    QE_TRY(check(cudaEventRecord(c->begin, c->stream), "recording an event", err));
    QE_TRY(check(cudaGraphLaunch(g->exec, c->stream), "launching a graph", err));
    QE_TRY(check(cudaEventRecord(c->end, c->stream), "recording an event", err));
    QE_TRY(check(cudaEventSynchronize(c->end), "running a graph", err));
    QE_TRY(check(cudaEventElapsedTime(&ms, c->begin, c->end), "reading the time", err));
    *us = 1e3 * (double)ms / g->calls;
    return QE_OK;
}

void bench_graph_destroy(bench_graph *g) {
    if (!g) return;
    if (g->exec) cudaGraphExecDestroy(g->exec);
    free(g);
}

qe_status bench_cuda_alloc(size_t bytes, void **out, qe_error *err) {
    *out = NULL;
    return check(cudaMalloc(out, bytes ? bytes : 1), "allocating device memory", err);
}

void bench_cuda_free(void *block) {
    if (block) cudaFree(block);
}

qe_status bench_cuda_copy(bench_cuda *c, void *dst, const void *src, size_t bytes, qe_error *err) {
    QE_TRY(check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, c->stream), "a copy", err));
    return check(cudaStreamSynchronize(c->stream), "a copy", err);
}

qe_status bench_cuda_enqueue_copy(void *dst, const void *src, size_t bytes, void *stream, qe_error *err) {
    return check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream), "a copy", err);
}
#else
static qe_status none(qe_error *err) { return qe_error_set(err, QE_E_UNSUPPORTED, "qbench was built without CUDA"); }

bench_cuda *bench_cuda_create(int32_t ordinal, qe_error *err) {
    (void)ordinal;
    none(err);
    return NULL;
}
void      bench_cuda_destroy(bench_cuda *c) { (void)c; }
void     *bench_cuda_stream(const bench_cuda *c) { return (void)c, NULL; }
qe_status bench_cuda_record(bench_cuda *c, bench_enqueue *enqueue, void *ctx, int calls, bench_graph **out, qe_error *err) {
    (void)c, (void)enqueue, (void)ctx, (void)calls, (void)out;
    return none(err);
}
qe_status bench_cuda_replay(bench_cuda *c, bench_graph *g, double *us, qe_error *err) {
    (void)c, (void)g, (void)us;
    return none(err);
}
void      bench_graph_destroy(bench_graph *g) { (void)g; }
qe_status bench_cuda_alloc(size_t bytes, void **out, qe_error *err) {
    (void)bytes, (void)out;
    return none(err);
}
void      bench_cuda_free(void *block) { (void)block; }
qe_status bench_cuda_copy(bench_cuda *c, void *dst, const void *src, size_t bytes, qe_error *err) {
    (void)c, (void)dst, (void)src, (void)bytes;
    return none(err);
}
qe_status bench_cuda_enqueue_copy(void *dst, const void *src, size_t bytes, void *stream, qe_error *err) {
    (void)dst, (void)src, (void)bytes, (void)stream;
    return none(err);
}
#endif
