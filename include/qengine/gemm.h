/* qengine/gemm.h -- a device, and one quantized linear on it: Y[m][n] = X[m][k] W[n][k]^T (+ bias) (+ residual).
 *
 *   qe_device_create() -> qe_linear_create() or begin/append/finish -> qe_linear_workspace() -> qe_linear_run()
 *
 * The caller owns x, y, residual and the workspace; on CUDA these are device pointers and the work is enqueued on the
 * caller's stream, elsewhere they are host pointers and the call returns when y is complete. A run never allocates.
 * The weight, bias, order and column scale are copied at creation. Rows are batch-invariant: a token's row has the
 * same bits whatever m, its position, or the number of threads.
 *
 * On CUDA a kernel of the caller's that is launched behind a run with programmatic stream serialization has to wait (griddepcontrol.wait)
 * in every block, and before that may read nothing that work ahead of the run writes.
 *
 * A mixture of experts is one linear of several weights of one shape: qe_linear_create_grouped(), _run_grouped().
 *
 * Threads: a device and a linear may be used from several threads at once, each run with its own workspace.
 * Destroying anything while it is in use is an error of the caller. A linear must be destroyed before its device. */
#ifndef QENGINE_GEMM_H
#define QENGINE_GEMM_H
#include <stddef.h>
#include <stdint.h>
#include <qengine/base.h>
#include <qengine/quant.h>
#ifdef __cplusplus
extern "C" {
#endif

/* ---- device ------------------------------------------------------------------------------------------------------ */
typedef struct qe_device qe_device;

typedef enum qe_backend {
    QE_BACKEND_AUTO = 0,  /* the fastest that runs whole models: CPU, else REF. CUDA serves linears to who names it */
    QE_BACKEND_REF = 1,   /* the scalar definition: slow, on every machine */
    QE_BACKEND_CPU = 2,
    QE_BACKEND_CUDA = 3
} qe_backend;

/* A host application's own threads: run task(arg, 0 .. count - 1, count), each index once, return when all are done. Fastest
 * where threads take the next index when they are free: the first tasks may be the largest.
 * `threads` is how many run at once. It may be called from several threads. Tasks take up to 160 KiB of stack. */
typedef struct qe_executor {
    void   *ctx;
    int32_t threads;
    void  (*parallel)(void *ctx, void (*task)(void *arg, int32_t index, int32_t count), void *arg, int32_t count);
} qe_executor;

typedef struct qe_device_options {
    size_t              struct_size;  /* sizeof(qe_device_options) */
    int32_t             backend;      /* qe_backend */
    int32_t             ordinal;      /* CUDA device */
    int32_t             threads;      /* 0: physical cores this process may use; the caller's thread counts as one */
    uint32_t            flags;        /* QE_DEVICE_* */
    const qe_executor  *executor;     /* NULL: a pool of the device's own; given: `threads` must be 0 */
    const qe_allocator *allocator;    /* NULL: the backend's own */
    const qe_log       *log;          /* NULL: silence */
    const char         *tuning;       /* path of a tuning cache, or NULL */
} qe_device_options;
/* The tuning cache is a file that `qbench tune` fills: for a device, scheme, shape and number of tokens (up to the next
 * power of two) the fastest of the plans that give the same bits. It is read once, when the device is created, and its
 * path not kept. No file there yet is no error. One that cannot be used (unreadable, cut short, damaged, of another
 * version, measured with other kernels) is one warning in the log, then no tuning; an entry that does not fit its problem
 * counts as none. Results never depend on it, workspaces may: ask qe_linear_workspace() of the linear that will run. */
/* Bind each thread of the pool to a core of its own, the first being left to the caller's thread, which is never bound.
 * QE_E_ARGUMENT with more threads than CPUs. Never done unasked. */
enum { QE_DEVICE_PIN_THREADS = 1 };

/* options may be NULL. The environment is read here, once, and not in privileged processes: QE_BACKEND (auto, ref, cpu,
 * cuda) and QE_THREADS apply where the options say auto and 0; QE_ISA (avx512, avx2, scalar) holds back the CPU backend,
 * QE_EARLY=0 lets no CUDA kernel begin before those ahead of it in the stream have ended.
 * On a CPU with AMX the process asks Linux for its tile state (arch_prctl); from then on Linux refuses signal stacks
 * (sigaltstack) that do not hold it, some 11 KiB.
 * QE_E_DEVICE: the asked backend is not there, with the reason. */
QE_API qe_status qe_device_create(const qe_device_options *options, qe_device **out, qe_error *err);
QE_API void      qe_device_destroy(qe_device *device);      /* NULL is fine */

typedef struct qe_device_info {
    int32_t  backend, ordinal, threads, sm;   /* sm: 90 for compute capability 9.0; 0 off CUDA */
    uint64_t memory_bytes;
    char     name[64];                        /* "NVIDIA H100 80GB HBM3", "AMD EPYC ..." */
    char     isa[64];                         /* "avx2+fma+f16c", "sm_90", "scalar" */
} qe_device_info;
QE_API void qe_device_get_info(const qe_device *device, qe_device_info *out);

/* ---- linear ------------------------------------------------------------------------------------------------------ */
typedef struct qe_linear qe_linear;

typedef struct qe_linear_options {
    size_t        struct_size;
    const qe_act *act;        /* how x is quantized. NULL: as the tensor asks; if it asks for none, x stays float */
    const float  *bias;       /* [n] host memory, or NULL */
    uint32_t      flags;      /* QE_LINEAR_* */
    int32_t       y_type;     /* the output type runs will ask for: QE_CODE_F32 (0 too), F16, BF16 or INT */
    const qe_act *y_act;      /* y_type INT: the static int8 grid of y. Needs a static act and int32 sums over all of k
                               * (QE_E_UNSUPPORTED otherwise), no residual; bias is rounded to int32 (quantization.md 7.6) */
    int32_t       experts;    /* weights of this shape that the linear holds; 0 is 1. bias is then [experts][n] */
    int32_t       reserved;
} qe_linear_options;
enum {
    QE_LINEAR_RESIDUAL = 1,   /* runs give a residual, added last */
    QE_LINEAR_FIXED_POINT = 2 /* y_type INT: integer multiplier and shift in place of an fp32 multiplier */
};

/* One whole host tensor (its first_row is 0). options may be NULL. QE_E_VALUE, QE_E_RANGE: an unusable value. */
QE_API qe_status qe_linear_create(qe_device *device, const qe_qtensor *weight, const qe_linear_options *options,
                                  qe_linear **out, qe_error *err);
/* The same band by band, so that nobody holds a whole tensor. `form` has quant, act, rows, k, facts, hadamard, and
 * order and col_scale where there are any; its facts must hold for every band (tables included), which append
 * checks. Bands come in any order and from any thread; they start at multiples of qe_linear_band_rows() and cover each
 * row once; a band other than the last has a multiple of that many rows. Before finish only append and destroy are
 * allowed. */
QE_API qe_status qe_linear_begin(qe_device *device, const qe_qtensor *form, const qe_linear_options *options,
                                 qe_linear **out, qe_error *err);
QE_API int64_t   qe_linear_band_rows(const qe_linear *linear);
QE_API qe_status qe_linear_append(qe_linear *linear, const qe_qtensor *band, qe_error *err);   /* of expert 0 */
QE_API qe_status qe_linear_append_expert(qe_linear *linear, int32_t expert, const qe_qtensor *band, qe_error *err);
QE_API qe_status qe_linear_finish(qe_linear *linear, qe_error *err);
QE_API void      qe_linear_destroy(qe_linear *linear);      /* NULL is fine, and so is one that was not finished */

typedef struct qe_linear_info {
    int64_t  n, k, chunk_k;         /* chunk_k: columns summed together in floats (docs/numerics.md) */
    uint64_t packed_bytes;          /* of all experts */
    double   bits_per_weight;       /* of the packed form, padding counted */
    qe_quant quant;
    qe_act   act;
    char     layout[64];            /* "cpu/q4_k_avx2" */
} qe_linear_info;
QE_API void qe_linear_get_info(const qe_linear *linear, qe_linear_info *out);

/* Bytes of workspace, 256-byte aligned, for runs of up to m tokens with x of `x_type`. 0 on bad arguments. */
QE_API size_t qe_linear_workspace(const qe_linear *linear, int64_t m, int32_t x_type);

typedef struct qe_linear_args {
    size_t      struct_size;
    int64_t     m;
    /* x_type: QE_CODE_F32, F16, BF16, or INT: int8 codes c - 128 on the linear's own static grid, such as another linear
     * left. ld in elements; ldx >= k. */
    const void *x;        int64_t ldx;  int32_t x_type;
    int32_t     y_type;                                   /* 0: as created */
    void       *y;        int64_t ldy;                    /* ldy >= n; may not overlap x */
    const void *residual; int64_t ldr;                    /* of y's type; may be y itself */
    void       *workspace; size_t workspace_bytes;
    void       *stream;                                   /* cudaStream_t; NULL on the CPU */
} qe_linear_args;
/* m 0 is fine. Argument errors leave y untouched. */
QE_API qe_status qe_linear_run(const qe_linear *linear, const qe_linear_args *args, qe_error *err);

/* ---- experts ----------------------------------------------------------------------------------------------------- */
/* A linear of `experts` whole host tensors that agree in shape, scheme, act and, as they share an input, in column order,
 * column scale and rotation (QE_E_MISMATCH otherwise). options.experts is 0 or `experts`. */
QE_API qe_status qe_linear_create_grouped(qe_device *device, const qe_qtensor *const *weights, int32_t experts,
                                          const qe_linear_options *options, qe_linear **out, qe_error *err);

/* Which rows of x belong to which expert. CONTIGUOUS: x is [m][k], expert e has rows rows[e] .. rows[e + 1] - 1; groups
 * need no alignment and may be empty. MASKED: x is [experts][m][k], expert e has the first rows[e] rows of its m. y and
 * residual are laid out as x. Rows of x in no group are not used, and neither they nor their y are written. */
typedef enum qe_group_layout { QE_GROUPS_CONTIGUOUS = 1, QE_GROUPS_MASKED = 2 } qe_group_layout;
typedef struct qe_linear_groups {
    size_t         struct_size;
    int32_t        layout;    /* qe_group_layout */
    int32_t        reserved;  /* 0 */
    const int32_t *rows;      /* where the kernels reach it: offsets[experts + 1], ascending, or counts[experts] */
} qe_linear_groups;

/* As qe_linear_workspace(); m is args.m of the largest run, in rows of x or (MASKED) rows an expert. */
QE_API size_t qe_linear_workspace_grouped(const qe_linear *linear, int32_t layout, int64_t m, int32_t x_type);
/* Every row gets the bits that a qe_linear of its expert alone would give it, as long as the experts share the facts
 * (QE_FACT_*) that choose the layout. Which kernels run and how many blocks depends on args and the linear, not on
 * `rows`: on CUDA those are read on the device when the work runs, so that a captured graph serves any counts. There a
 * value out of range is brought to the nearest one in range (a descending offset to the one before it); elsewhere it is
 * QE_E_ARGUMENT and y stays untouched. */
QE_API qe_status qe_linear_run_grouped(const qe_linear *linear, const qe_linear_args *args,
                                       const qe_linear_groups *groups, qe_error *err);

/* Calls back for each layout and kernel considered for m tokens (of an expert) of the output's type, in order: `why` is the
 * reason it was refused ("tuned: ..." where the tuning cache chose another plan), NULL for the one chosen. Both texts live
 * during the call back. */
typedef void qe_explain(void *ctx, const char *name, const char *why);
QE_API qe_status qe_linear_explain(const qe_linear *linear, int64_t m, qe_explain *tell, void *ctx, qe_error *err);

#ifdef __cplusplus
}
#endif
#endif
