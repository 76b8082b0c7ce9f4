/* roofline.c -- what this machine can do at most, measured: DRAM read and copy, int8 and fp32 arithmetic.
 *
 * Arithmetic roofs are register-only loops of the instruction the kernels use; memory roofs stream over a buffer far
 * larger than the caches, every thread its own part. GEMM rounds measure them again between their own timings, so a
 * machine that slows down slows both. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

enum { BUFFER_BYTES = 512 << 20 };

struct bench_roof_meter {
    qe_pool    *pool;
    int32_t     threads;
    uint64_t   *buffer;
    bench_loop *int8, *fp32;
    const char *isa;
    uint64_t    sink[1024];
    double      done[1024];
    int64_t     count;
    bench_loop *loop;
};

bench_roof_meter *bench_roof_create(qe_pool *pool, int32_t threads) {
    bench_roof_meter *meter = calloc(1, sizeof *meter);
    if (!meter) return NULL;
    meter->pool = pool;
    meter->threads = threads < 1 ? 1 : threads;
    meter->buffer = aligned_alloc(4096, BUFFER_BYTES);
    if (!meter->buffer) {
        free(meter);
        return NULL;
    }
    memset(meter->buffer, 1, BUFFER_BYTES);
    meter->isa = "scalar";
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        meter->int8 = bench_int8_avx2, meter->fp32 = bench_fp32_avx2, meter->isa = "avx2";
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl"))
        meter->int8 = bench_int8_avx512, meter->fp32 = bench_fp32_avx512, meter->isa = "avx512vnni";
#endif
    return meter;
}

void bench_roof_destroy(bench_roof_meter *meter) {
    if (!meter) return;
    free(meter->buffer);
    free(meter);
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
    qe_pool_run(meter->pool, arithmetic_part, meter, meter->threads);
    double took = bench_now_us() - begin;
    for (int32_t i = 0; i < meter->threads && i < 1024; i++) operations += meter->done[i];
    return operations / took * 1e-6;
}

void bench_roof_measure(bench_roof_meter *meter, bench_roofs *out) {
    double begin = bench_now_us();
    qe_pool_run(meter->pool, read_part, meter, meter->threads);
    out->read_gbps = BUFFER_BYTES / (bench_now_us() - begin) * 1e-3;
    out->int8_tops = arithmetic(meter, meter->int8);
    out->fp32_tflops = arithmetic(meter, meter->fp32);
    out->copy_gbps = out->fp16_tflops = NAN;
    snprintf(out->isa, sizeof out->isa, "%s", meter->isa);
}

int bench_roofline(const bench_options *options, bench_report *report) {
    qe_device     *device;
    qe_pool       *pool;
    qe_error       err;
    qe_device_info info;
    int            code = bench_device(options, &device);
    if (code) return code;
    qe_device_get_info(device, &info);
    qe_device_destroy(device);
    if (info.backend == QE_BACKEND_CUDA) return bench_roofline_cuda(&info, report);
    if (qe_pool_create(info.threads, &pool, &err)) return bench_fail(&err);
    bench_roof_meter *meter = bench_roof_create(pool, info.threads);
    if (!meter) {
        qe_pool_destroy(pool);
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
        qe_pool_run(pool, copy_part, meter, info.threads);
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
    qe_pool_destroy(pool);
    return BENCH_OK;
}
