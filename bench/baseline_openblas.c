/* baseline_openblas.c -- OpenBLAS SGEMM, the FP32 yardstick.
 *
 * OpenBLAS picks its kernels by a table of processor names and takes very old ones for names it does not know. The
 * choice is made when the library is loaded, so where it is wrong the program starts again with the right name. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

#ifdef QE_HAVE_OPENBLAS
#include <cblas.h>

const char *bench_openblas_core(void) { return openblas_get_corename(); }

static const char *wanted_core(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return "SkylakeX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
    return NULL;
}

void bench_openblas_setup(char **argv) {
    static const char *const old[] = {"Prescott", "Core2", "Katmai", "Coppermine", "Northwood", "Banias", "Atom", "Penryn",
                                      "Dunnington", "Nehalem", "Athlon", "Opteron", "Opteron_SSE3", "Barcelona", "Bobcat",
                                      "Generic", "Nano", "Sandybridge"};
    const char *core = openblas_get_corename(), *want = wanted_core();
    bool        wrong = want && strcmp(want, "SkylakeX") == 0 && (strcmp(core, "Haswell") == 0 || strcmp(core, "Zen") == 0);
    for (size_t i = 0; want && i < sizeof old / sizeof old[0]; i++) wrong = wrong || strcmp(core, old[i]) == 0;
    if (!wrong || getenv("OPENBLAS_CORETYPE")) return;      /* fine, or the user's or our own choice */
    if (setenv("OPENBLAS_CORETYPE", want, 1) == 0) execv("/proc/self/exe", argv);
}

void bench_openblas_threads(int32_t threads) { openblas_set_num_threads(threads); }

bool bench_openblas_gemm(int64_t m, int64_t n, int64_t k, const float *x, const float *w, float *y) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)n, (int)k, 1.0f, x, (int)k, w, (int)k, 0.0f, y, (int)n);
    return true;
}
#else
const char *bench_openblas_core(void) { return NULL; }
void        bench_openblas_setup(char **argv) { (void)argv; }
void        bench_openblas_threads(int32_t threads) { (void)threads; }
bool        bench_openblas_gemm(int64_t m, int64_t n, int64_t k, const float *x, const float *w, float *y) {
    (void)m, (void)n, (void)k, (void)x, (void)w, (void)y;
    return false;
}
#endif
