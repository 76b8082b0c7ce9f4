/* roofline.c -- what this machine can do at most, measured: DRAM read and copy, int8 and fp32 arithmetic.
 *
 * Arithmetic roofs are register-only loops of the instruction the kernels use; memory roofs stream over a buffer far
 * larger than the caches, every thread its own part. GEMM rounds measure them again between their own timings, so a
 * machine that slows down slows both. */
#define _DEFAULT_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <qk.h>

#include "bench.h"
#include "run/device.h"

enum { BUFFER_BYTES = 512 << 20 };

struct bench_roof_meter {
    qk_queue    queue;
    int32_t     threads;
    uint64_t   *buffer;
    bench_loop *int8, *fp32;
    const char *isa;
    uint64_t    sink[1024];
    double      done[1024];
    int64_t     count;
    bench_loop *loop;
};

bench_roof_meter *bench_roof_create(const qe_device *device) {
    bench_roof_meter *meter = calloc(1, sizeof *meter);
    qe_device_info    info;
    if (!meter) return NULL;
    qe_device_get_info(device, &info);
    meter->queue = qe_device_queue(device, NULL);
    meter->threads = info.threads < 1 ? 1 : info.threads;
    meter->buffer = aligned_alloc(2 << 20, BUFFER_BYTES);
    if (!meter->buffer) {
        free(meter);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    madvise(meter->buffer, BUFFER_BYTES, MADV_HUGEPAGE);      /* fewer walks of page tables: the faster way to read */
#endif
    memset(meter->buffer, 1, BUFFER_BYTES);
    meter->isa = "scalar";
#if defined(__x86_64__)
    const uint32_t isa = meter->queue.device->isa;      /* QE_ISA may hold some back */
    if (isa & QK_ISA_AVX2)
        meter->int8 = bench_int8_avx2, meter->fp32 = bench_fp32_avx2, meter->isa = "avx2";
    if (isa & QK_ISA_VNNI512)
        meter->int8 = bench_int8_avx512, meter->fp32 = bench_fp32_avx512, meter->isa = "avx512vnni";
    if (isa & QK_ISA_AMX)
        meter->int8 = bench_int8_amx, meter->isa = "amx+avx512";
#endif
    return meter;
}

void bench_roof_destroy(bench_roof_meter *meter) {
    if (!meter) return;
    free(meter->buffer);
    free(meter);
}

static void on_threads(bench_roof_meter *meter, qk_task *task) {
    if (meter->queue.parallel) meter->queue.parallel(meter->queue.pool, task, meter, meter->threads);
    else task(meter, 0, 1);
}

static void read_part(void *arg, int32_t index, int32_t count) {
    bench_roof_meter *meter = arg;
    size_t            words = BUFFER_BYTES / sizeof(uint64_t) / (size_t)count / 64 * 64;
    const uint64_t   *part = meter->buffer + (size_t)index * words;
    uint64_t          sums[32] = {0};
    for (size_t at = 0; at + 32 <= words; at += 32)
        for (int i = 0; i < 32; i++) sums[i] ^= part[at + (size_t)i];
    for (int i = 1; i < 32; i++) sums[0] ^= sums[i];
    meter->sink[index % 1024] = sums[0];
}

static void copy_part(void *arg, int32_t index, int32_t count) {
    bench_roof_meter *meter = arg;
    size_t            words = BUFFER_BYTES / 2 / sizeof(uint64_t) / (size_t)count / 64 * 64;
    uint64_t         *from = meter->buffer + (size_t)index * words;
    memcpy(from + BUFFER_BYTES / 2 / sizeof(uint64_t), from, words * sizeof(uint64_t));
}

static void arithmetic_part(void *arg, int32_t index, int32_t count) {
    bench_roof_meter *meter = arg;
    (void)count;
    meter->done[index % 1024] = meter->loop(meter->count);
}

static double arithmetic(bench_roof_meter *meter, bench_loop *loop) {
    if (!loop) return NAN;
    meter->loop = loop;
    meter->count = 1000000;      /* about 5 ms */
    double begin = bench_now_us(), operations = 0;
    on_threads(meter, arithmetic_part);
    double took = bench_now_us() - begin;
    for (int32_t i = 0; i < meter->threads && i < 1024; i++) operations += meter->done[i];
    return operations / took * 1e-6;
}

void bench_roof_measure(bench_roof_meter *meter, bench_roofs *out) {
    double begin = bench_now_us();
    on_threads(meter, read_part);
    out->read_gbps = BUFFER_BYTES / (bench_now_us() - begin) * 1e-3;
    out->int8_tops = arithmetic(meter, meter->int8);
    out->fp32_tflops = arithmetic(meter, meter->fp32);
    out->copy_gbps = out->fp16_tflops = NAN;
    snprintf(out->isa, sizeof out->isa, "%s", meter->isa);
}

int bench_roofline(const bench_options *options, bench_report *report) {
    qe_device     *device;
    qe_device_info info;
    int            code = bench_device(options, &device);
    if (code) return code;
    qe_device_get_info(device, &info);
    if (info.backend == QE_BACKEND_CUDA) {
        qe_device_destroy(device);
        return bench_roofline_cuda(&info, report);
    }
    bench_roof_meter *meter = bench_roof_create(device);
    if (!meter) {
        qe_device_destroy(device);
        fprintf(stderr, "qbench: no memory for a buffer of %d MiB\n", BUFFER_BYTES >> 20);
        return BENCH_ERROR;
    }
    enum { ROUNDS = 15 };
    double      values[4][ROUNDS];
    bench_roofs roofs;
    for (int i = 0; i < ROUNDS; i++) {
        bench_progress("roofs, round %d of %d", i + 1, ROUNDS);
        bench_roof_measure(meter, &roofs);
        double begin = bench_now_us();
        on_threads(meter, copy_part);
        values[0][i] = roofs.read_gbps, values[1][i] = BUFFER_BYTES / 2 / (bench_now_us() - begin) * 1e-3;
        values[2][i] = roofs.int8_tops, values[3][i] = roofs.fp32_tflops;
    }
    const char *names[4] = {"read", "copy", "int8", "fp32"};
    for (int i = 0; i < 4; i++) {
        bench_result r = bench_result_new("roofline");
        double       median = bench_quantile(values[i], ROUNDS, 0.5);
        snprintf(r.backend, sizeof r.backend, "cpu");
        snprintf(r.impl, sizeof r.impl, "%s", i < 2 ? "stream" : roofs.isa);
        snprintf(r.scheme, sizeof r.scheme, "%s", names[i]);
        snprintf(r.device, sizeof r.device, "%s", info.name);
        r.threads = info.threads;
        *(i < 2 ? &r.gbps : &r.tops) = median;
        bench_report_add(report, &r);
    }
    bench_roof_destroy(meter);
    qe_device_destroy(device);
    return BENCH_OK;
}
