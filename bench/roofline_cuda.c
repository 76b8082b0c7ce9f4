/* roofline_cuda.c -- what a GPU can do at most, measured: device-to-device copy (read and written bytes both counted) and
 * the rate of cuBLASLt at 8192 x 8192 x 8192 in FP16 and INT8, its best of what the heuristic proposes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { COPY_BYTES = 512 << 20, PEAK = 8192, COPIES = 4 };

struct bench_gpu_meter {
    bench_cuda     *cuda;
    char           *buffer;
    bench_cublaslt *fp16, *int8;
    bench_graph    *copy_graph, *fp16_graph, *int8_graph;
};

static qe_status enqueue_copy(void *ctx, void *stream, qe_error *err) {
    bench_gpu_meter *meter = ctx;
    return bench_cuda_enqueue_copy(meter->buffer + COPY_BYTES, meter->buffer, COPY_BYTES, stream, err);
}

/* Without cuBLASLt the arithmetic roofs are unknown (NaN), not an error. */
static void make_peak(bench_gpu_meter *meter, bool int8, bench_cublaslt **blas, bench_graph **graph) {
    qe_error err;
    size_t   bytes = (size_t)PEAK * PEAK * 2;
    char    *data = malloc(bytes);
    if (!data) return;
    uint64_t state = 9;
    for (size_t i = 0; i < bytes; i += 2) { /* random bits: power, hence clocks, depend on the data */
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint16_t half = (uint16_t)(0x2c00 | (state >> 40 & 0x83ff) | (state >> 30 & 0x0c00)), any = (uint16_t)(state >> 48);
        memcpy(data + i, int8 ? &any : &half, 2);
    }
    if (!bench_cublaslt_create(meter->cuda, int8, PEAK, PEAK, PEAK, data, data, 0, blas, &err))
        bench_cuda_record(meter->cuda, bench_cublaslt_enqueue, *blas, 1, graph, &err);
    free(data);
}

qe_status bench_gpu_meter_create(bench_cuda *cuda, bench_gpu_meter **out, qe_error *err) {
    bench_gpu_meter *meter = calloc(1, sizeof *meter);
    *out = NULL;
    if (!meter) return qe_error_set(err, QE_E_NOMEM, "no memory for a meter");
    meter->cuda = cuda;
    qe_status status = bench_cuda_alloc((size_t)2 * COPY_BYTES, (void **)&meter->buffer, err);
    if (!status) status = bench_cuda_record(cuda, enqueue_copy, meter, COPIES, &meter->copy_graph, err);
    if (status) {
        bench_gpu_meter_destroy(meter);
        return status;
    }
    make_peak(meter, false, &meter->fp16, &meter->fp16_graph);
    make_peak(meter, true, &meter->int8, &meter->int8_graph);
    *out = meter;
    return QE_OK;
}

void bench_gpu_meter_destroy(bench_gpu_meter *meter) {
    if (!meter) return;
    bench_graph_destroy(meter->copy_graph), bench_graph_destroy(meter->fp16_graph), bench_graph_destroy(meter->int8_graph);
    bench_cublaslt_destroy(meter->fp16), bench_cublaslt_destroy(meter->int8);
    bench_cuda_free(meter->buffer);
    free(meter);
}

static double peak(bench_gpu_meter *meter, bench_graph *graph) {
    double   us;
    qe_error err;
    if (!graph || bench_cuda_replay(meter->cuda, graph, &us, &err)) return NAN;
    return 2.0 * PEAK * PEAK * PEAK / us * 1e-6;
}

qe_status bench_gpu_meter_measure(bench_gpu_meter *meter, bench_roofs *out, qe_error *err) {
    double us;
    QE_TRY(bench_cuda_replay(meter->cuda, meter->copy_graph, &us, err));
    out->read_gbps = out->copy_gbps = 2.0 * COPY_BYTES / us * 1e-3;
    out->fp32_tflops = NAN;
    out->fp16_tflops = peak(meter, meter->fp16_graph);
    out->int8_tops = peak(meter, meter->int8_graph);
    snprintf(out->isa, sizeof out->isa, "cublaslt");
    return QE_OK;
}

int bench_roofline_cuda(const qe_device_info *info, bench_report *report) {
    enum { ROUNDS = 15 };
    static const char *const names[3] = {"copy", "fp16", "int8"};
    double                   values[3][ROUNDS];
    bench_gpu_meter         *meter = NULL;
    bench_roofs              roofs;
    qe_error                 err;
    bench_cuda              *cuda = bench_cuda_create(info->ordinal, &err);
    qe_status                status = cuda ? bench_gpu_meter_create(cuda, &meter, &err) : QE_E_DEVICE;
    for (int i = 0; i < ROUNDS && !status; i++) {
        bench_progress("roofs, round %d of %d", i + 1, ROUNDS);
        status = bench_gpu_meter_measure(meter, &roofs, &err);
        values[0][i] = roofs.copy_gbps, values[1][i] = roofs.fp16_tflops, values[2][i] = roofs.int8_tops;
    }
    for (int i = 0; i < 3 && !status; i++) {
        bench_result r = bench_result_new("roofline");
        snprintf(r.backend, sizeof r.backend, "cuda");
        snprintf(r.impl, sizeof r.impl, "%s", i ? roofs.isa : "memcpy");
        snprintf(r.scheme, sizeof r.scheme, "%s", names[i]);
        snprintf(r.device, sizeof r.device, "%s", info->name);
        r.threads = info->threads;
        *(i ? &r.tops : &r.gbps) = bench_quantile(values[i], ROUNDS, 0.5);
        bench_report_add(report, &r);
    }
    bench_gpu_meter_destroy(meter);
    bench_cuda_destroy(cuda);
    return status ? bench_fail(&err) : BENCH_OK;
}
