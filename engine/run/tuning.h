/* run/tuning.h -- the tuning cache: a file of the user's with the fastest of the plans that give the same bits, by device,
 * scheme, shape and number of tokens. gemm.h says what a file that cannot be used means.
 *
 * JSON: {"format": "qengine-tuning", "version": 1, "kernels": hash of version, layouts and rows, "entries": [..]}. */
#ifndef QE_RUN_TUNING_H
#define QE_RUN_TUNING_H
#include "run/device.h"

#ifdef __cplusplus
extern "C" {
#endif
typedef struct qe_tuning_entry {
    char    device[192];       /* the key: name, instruction set, threads or SMs */
    char    scheme[256];       /* weight, activation and layout */
    int64_t n, k, m;           /* m: the bucket, a power of two */
    char    x[8];              /* what the GEMM reads: "f32", "f16", "bf16", "int8" */
    char    row[64];           /* the plan */
    int32_t tile_m, units;
    double  us, untuned_us;    /* measured */
} qe_tuning_entry;

struct qe_tuning {
    qe_tuning_entry *entries;
    int64_t          count;
};
typedef struct qe_tuning qe_tuning;

/* A file that is not there is an empty cache. Another version or kernel list is QE_E_VERSION or QE_E_MISMATCH. */
qe_status qe_tuning_read(const char *path, qe_tuning **out, qe_error *err);
void      qe_tuning_free(qe_tuning *tuning);
/* Puts entries in, each replacing the one of its key, and keeps the others. The file is replaced as a whole, writers wait
 * for each other; one of other kernels is started anew, one that is no tuning cache is left alone. */
qe_status qe_tuning_write(const char *path, const qe_tuning_entry *entries, int64_t count, qe_error *err);

/* The key of a problem; the rest of the entry is zero. */
void      qe_tuning_key(const qe_device *device, const qk_gemm *gemm, qe_tuning_entry *out);
/* The device's entry for a problem, or NULL; *out: its plan. An entry that this device cannot take is as none. */
const qe_tuning_entry *qe_tuning_find(const qe_device *device, const qk_gemm *gemm, qk_tuning *out);
/* qk_gemm_plan() under the device's entry for the problem. */
qe_status qe_tuning_plan(const qe_device *device, const qk_gemm *gemm, qk_plan *out, qe_error *err);
#ifdef __cplusplus
}
#endif
#endif
