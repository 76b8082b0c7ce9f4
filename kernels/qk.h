/* kernels/qk.h -- the one seam between engine/ and kernels/. Plain C11, also read as C++17 and by nvcc.
 *
 * Life of a weight:   qk_layout_choose() -> qk_pack() band by band -> qk_weight          (once, at load)
 * Life of a call:     qk_gemm -> qk_gemm_plan() -> workspace from the caller -> qk_gemm_run()   (plan may be cached)
 *
 *   layout  how one weight is stored on one backend AND its arithmetic order: a token's row has the same bits whatever
 *           m, position, tile, split or thread count. Where sums are exact (qk_whole_k) all rows of a layout agree;
 *           where floats are summed, the first row that supports the problem is the one, at every m.
 *           Chosen before m is known.
 *   row     one kernel family that reads one layout. Both lists are ordered: first yes wins, every no has a reason.
 *   The last row of a layout accepts every m; the last layout of a backend accepts every descriptor.
 *
 * A backend (ref, cpu, cuda; the emulator is "cuda" linked against tests/simt) is one const qk_backend. kernels/ sees
 * include/ and this header, never engine/; a backend never includes another. All work functions:
 *   - enqueue on queue->stream (CUDA) or finish before returning (CPU); never allocate, wait, print, read the
 *     environment or change the current device; legal under stream capture: sizes and pointers are baked into the
 *     graph, whatever changes between replays (lengths, page tables, expert counts) is read from device memory;
 *   - check arguments first (QE_E_ARGUMENT, outputs untouched); a device fault is QE_E_DEVICE, outputs undefined;
 *   - may run concurrently on different queues; `const` arguments are never written;
 *   - on the CPU, run under round-to-nearest with subnormals kept, which the pool and every public call guarantee.
 * Shapes are row-major, ld in elements. m tokens, n outputs, k reduction. Device pointers are 16-byte aligned. */
#ifndef QK_H
#define QK_H
#include <stdbool.h>
#include <string.h>
#include <qengine/quant.h>
#ifdef __cplusplus
extern "C" {
#endif

/* ---- where work runs --------------------------------------------------------------------------------------------- */
enum { QK_REF = 0, QK_CPU = 1, QK_CUDA = 2 };
enum { QK_ISA_AVX2 = 1, QK_ISA_AVX_VNNI = 2, QK_ISA_AVX512 = 4, QK_ISA_VNNI512 = 8, QK_ISA_AMX = 16, QK_ISA_NEON = 32,
       QK_ISA_VPOPCNT = 64,
       QK_ISA_FEW_PORTS = 128 /* none itself: with AVX-512, bit operations take ports from dot products (Intel's cores) */ };

typedef struct qk_device {   /* facts only: tests write one for any machine and plan for it without owning it */
    int32_t  backend;        /* QK_* */
    int32_t  ordinal;        /* CUDA device; 0 */
    int32_t  units;          /* SMs; threads of the pool */
    int32_t  sm;             /* 80, 86, 89, 90, 100; 0 off CUDA */
    uint32_t isa;            /* QK_ISA_*; 0 on CUDA */
    uint32_t unit_bytes;     /* shared memory a block may opt in to; L2 of one core */
    uint64_t cache_bytes, memory_bytes;
    char     name[64];
    uint32_t flags;          /* QK_DEVICE_* */
    uint32_t clusters;       /* bit n: clusters of n blocks run, n of 2..8; 0 but on sm_90 */
    int32_t  toolkit;        /* nvcc that built the kernels: 1304 is 13.4; 0 off CUDA */
} qk_device;
enum { QK_CLUSTERS_ALL = 0x1fc };
enum {
    QK_DEVICE_EMULATED = 1, /* runs the kernels for tests, not for speed: taken only by name */
    QK_DEVICE_EARLY = 2     /* a kernel that waits itself may begin before those ahead of it in the stream have ended */
};

typedef void qk_task(void *arg, int32_t index, int32_t count);
typedef struct qk_queue {    /* one ordered stream of work, owned by the caller; POD, copied freely */
    const qk_device *device;
    void    *stream;         /* cudaStream_t, perhaps capturing; NULL on CPU */
    /* CPU: run task(arg, 0..count-1, count), each index once, and return when all are done. Which thread runs an
     * index is open; never nested. The pool guarantees round-to-nearest and no FTZ/DAZ inside tasks. NULL: the caller's thread alone. */
    void   (*parallel)(void *pool, qk_task *task, void *arg, int32_t count);
    void    *pool;
} qk_queue;

typedef struct qk_why { char text[120]; } qk_why;              /* "group 48 is not a multiple of 32" */
bool qk_no(qk_why *why, const char *format, ...);              /* fills why (may be NULL), returns false */

/* ---- packed weights ---------------------------------------------------------------------------------------------- */
typedef struct qk_layout qk_layout;
typedef struct qk_shape {    /* all that supports() and plans may look at: no pointers into data */
    qe_quant         quant;
    qe_act           act;        /* how the input arrives: FLOAT as f16/bf16/f32, else int8 (signs too, as -1 and +1,
                                  * and beside them as bits: see qk_x). Part of the choice: an */
    const qk_layout *layout;     /* fp16-scaled weight asked to take int8 input gets a layout that keeps its scales */
    int64_t          n, k;
    int64_t          chunk_k;    /* qk_chunk_k() of the whole linear as fused, before sharding */
    uint32_t         facts;      /* QE_FACT_* */
} qk_shape;
typedef struct qk_weight {   /* blob, order, col_scale live on the layout's backend; owned by the engine */
    qk_shape         shape;
    const void      *blob;       /* 256-byte aligned: head, then equal bands */
    uint64_t         blob_bytes;
    const uint32_t  *order;      /* [k] or NULL; applied by prepare(), never by a GEMM */
    const float     *col_scale;  /* [k] or NULL; likewise */
    int32_t          hadamard;   /* likewise; 0: none */
} qk_weight;

/* Bytes [head + i*band, head + (i+1)*band) hold rows [i*band_rows, (i+1)*band_rows) completely: codes, scales, zeros,
 * row sums. So bands are packed in parallel, uploaded one memcpy at a time, sharded by rows, cached on disk, gathered
 * by row (tied embeddings) and concatenated (QKV, gate+up) without repacking. Position independent, no pointers. */
struct qk_layout {
    const char *name;            /* "cpu/w4a8_vnni_16x4" */
    uint32_t    version;         /* changes with any bit of the blob or of the arithmetic order: cache key */
    int32_t     band_rows;       /* the last band is padded with rows that contribute 0 */
    bool      (*supports)(const qk_device *device, const qk_shape *shape, qk_why *why);
    size_t    (*head_bytes)(const qk_shape *shape);             /* tables shared by all bands */
    size_t    (*band_bytes)(const qk_shape *shape);
    void      (*pack_head)(const qk_shape *shape, const qe_qtensor *any_band, void *head);
    /* Host memory, lossless. The band holds rows first_row .. first_row + n, n <= band_rows (less: the tensor's end),
     * first_row a multiple of band_rows. Row extents may be wider than a band: see qk_group_row(). */
    void      (*pack)(const qk_shape *shape, const qe_qtensor *band, void *dst);
    /* Back into a placed band (n, k, first_row set): the same qe_dequantize() bits. Tests and writers. */
    void      (*unpack)(const qk_shape *shape, const void *head, const void *src, qe_qtensor *band);
    /* Row `row` of the packed band `src` as k floats, the bits of qe_dequantize(): embedding lookup. NULL on CUDA. */
    void      (*row)(const qk_shape *shape, const void *head, const void *src, int32_t row, float *w);
};
/* Which row of scales (or supers, zeros, tables) belongs to row `row` of a band: extents count from the whole tensor's
 * row 0, a band's arrays start with the group its first row lies in. */
static inline int64_t qk_group_row(int64_t first_row, int64_t row, int32_t extent) {
    return extent <= 0 ? 0 : (first_row + row) / extent - first_row / extent;
}

/* First layout of the backend that supports the shape. reasons (may be NULL) is called for each refusal before it. */
typedef void qk_reason(void *ctx, const char *name, const char *why);
const qk_layout *qk_layout_choose(const qk_device *device, const qk_shape *shape, qk_reason *reasons, void *ctx);

/* True if the input arrives as int8 codes: of 8 bits, or signs. */
static inline bool qk_act_int8(const qe_act *act) {
    return act->mode != QE_ACT_FLOAT &&
           (act->quant.code == QE_CODE_SIGN || (act->quant.code == QE_CODE_INT && act->quant.bits == 8));
}
/* Codes with integer values: c, or of signs 2c - 1. */
static inline bool qk_integer_code(const qe_quant *w) { return w->code == QE_CODE_INT || w->code == QE_CODE_SIGN; }

/* True if the sum over all of k runs in int32 (quantization.md 7.3): int8 per-token input, integer codes and zeros, and
 * per-row scales or QE_FACT_INT8_PRODUCT with per-row supers, k <= qe_quant_max_k(). Else the sums of 7.4 or 7.7. */
bool qk_whole_k(const qe_quant *w, uint32_t facts, const qe_act *act, int64_t k);

/* Where floats are accumulated, K is summed in chunks of this many columns (quantization.md 7). A function of the
 * weight alone, equal on every backend: k when int32 carries the whole sum, else k cut into
 * max(1, min(8, 16384 / n, k / 1024)) parts, rounded up to a multiple of 256 and of the outer group. */
int64_t qk_chunk_k(const qe_quant *w, uint32_t facts, const qe_act *act, int64_t n, int64_t k);

/* ---- activations ------------------------------------------------------------------------------------------------- */
/* What prepare() writes and a GEMM of the same backend reads. The storage is the backend's own: `packing` 0 is the
 * plain row-major form described here, other values are private to the backend (the CPU's interleaved [K/4][R][4]
 * tiles), which reads the pointers and `ld` as it likes. It depends on the device, m, k and the act of a linear only,
 * never on its weight type or layout, and always carries what any layout may ask (sums of at most 32 columns), so
 * linears of different types that share an input and an act share one prepared activation. */
typedef struct qk_x {
    int64_t     m, k, ld;    /* plain: ld >= k, multiple of 64; columns k..ld-1 are written as zero-valued codes */
    qe_quant    quant;       /* code F16/BF16/F32: plain floats. INT 8: bytes stored as int8 q = c - 128; signs as well */
    int32_t     packing, reserved;
    void       *data;
    float      *scales;      /* [m][ceil(k/group_k)]; static: [1] */
    int32_t    *zeros;       /* same shape, q units; NULL if symmetric */
    int32_t    *sums;        /* [m][ceil(k/sum_k)] exact sums of q, for zero points, mins and u8 offsets; or NULL */
    int64_t     sum_k;       /* divides 256 or is k */
    uint32_t   *bits;        /* signs only: [m][qk_bit_words(k)], bit c % 32 of word c / 32 set where q is +1, 0 behind k */
    int32_t    *ones;        /* [m] bits set of a row */
} qk_x;
/* 32-bit words of a row of k bits: whole 64-byte lines. */
static inline int64_t qk_bit_words(int64_t k) { return (k + 511) / 512 * 16; }
/* Bytes of a qk_x; `out` gets every field, pointers as offsets from 0 for qk_x_rebase(). float_type: what to hold if
 * the act is FLOAT (a backend without that type holds a wider one, in out->quant). */
size_t qk_x_bytes(const qk_device *device, const qk_shape *next, int64_t m, int32_t float_type, qk_x *out);
void   qk_x_rebase(qk_x *x, void *base);
/* True if a qk_x prepared for one serves the other: equal act, k and no or the same order, scale and rotation. */
struct qk_weight;
bool   qk_x_shared(const struct qk_weight *a, const struct qk_weight *b);

enum { QK_NORM_NONE = 0, QK_NORM_RMS = 1, QK_NORM_LAYER = 2 };
enum { QK_ACT_NONE = 0, QK_ACT_SILU = 1, QK_ACT_GELU = 2, QK_ACT_GELU_TANH = 3, QK_ACT_RELU2 = 4 };
/* x [post norm] (+ residual) -> norm or gate -> order, col_scale, Hadamard -> quantize: one pass over a token's row.
 * Arithmetic in fp32 as quantization.md 7.5: v = fl(fl(x * factor) * weight); gate: fl(act(gate) * up). */
typedef struct qk_prepare {
    const void *x;  int64_t ldx;  int32_t x_type;   /* qe_code F16/BF16/F32; INT: int8 codes on next's static grid, as
                                                     * they are: no norm, gate, residual, order, scale or rotation */
    int32_t     norm, act;                          /* act != NONE: x is the gate, `up` the factor; norm is NONE */
    const void *up;                                 /* [m][k], ldx, x_type; NULL: x is [m][2k], columns interleaved */
    const float *norm_weight; float eps;            /* weight as multiplied (Gemma's +1 already added at load) */
    const float *post_norm;                         /* RMS weight applied to x before the residual sum; NULL: none */
    float      *residual; int64_t ldr;              /* in: added to x; out: the sum before the norm; NULL: none */
    const qk_weight *next;                          /* its order, col_scale, hadamard and act decide the output */
    qk_x       *out;                                /* laid out by qk_x_bytes() for at least out->m rows */
    const int32_t *counts; int64_t max_rows;        /* CUDA: row r is left out unless r % max_rows < counts[r / max_rows] */
} qk_prepare;
/* QE_E_ARGUMENT unless a prepare of x_type INT asks for what leaves codes as they are. */
qe_status qk_prepare_codes_check(const qk_prepare *prepare, qe_error *err);

/* ---- GEMM: Y[m][n] = epilogue(X W^T) ----------------------------------------------------------------------------- */
typedef struct qk_gemm {     /* the problem: everything a plan may depend on; no pointers */
    qk_shape  w;
    qe_quant  x;             /* as qk_x.quant */
    int64_t   m;             /* largest m this plan will run; running with fewer tokens returns the same bits */
    int32_t   y_type;        /* qe_code F16, BF16, F32, or INT: int8 requantized with y_zero */
    int32_t   act;           /* QK_ACT_*, after bias */
    uint32_t  flags;         /* QK_GEMM_* */
    int32_t   tile_m;        /* tiles as for this many tokens; 0: as for m. Of tuning alone; never in the bits */
    int32_t   experts;       /* CUDA: 0, or the weights of a grouped call; m then is what chooses the tile, no bound */
} qk_gemm;
static inline int64_t qk_tile_m(const qk_gemm *gemm) { return gemm->tile_m > 0 ? gemm->tile_m : gemm->m; }
enum { QK_GEMM_BIAS = 1, QK_GEMM_RESIDUAL = 2, QK_GEMM_GATED = 4 }; /* GATED: rows 2i, 2i+1 -> y[i] = act(a) * b */

/* Weights of one shape, each a head and its bands, expert_bytes apart; bias, bias_q and requant one after another. The
 * counts are read by the kernels: a plan knows none of them. Rows of x, y and residual are numbered through. */
typedef struct qk_groups {
    const int32_t *rows;         /* device: offsets[experts + 1], or with max_rows counts[experts] */
    int32_t        experts;      /* 0: no groups, one weight for all rows */
    int32_t        reserved;
    int64_t        max_rows;     /* 0: contiguous; else expert e has rows e * max_rows .. + counts[e] */
    int64_t        expert_bytes;
} qk_groups;

typedef struct qk_gemm_args {
    const qk_weight *w;
    qk_x         x;
    void        *y; int64_t ldy;
    const float *bias;           /* [n], float outputs */
    const int32_t *bias_q;       /* [n], y_type INT: in units of s_x * s_w, added to the int32 sum */
    const void  *residual; int64_t ldr;      /* y's type, added last */
    const float *requant;        /* y_type INT: [n] multipliers, rounded once from double; or else */
    const int32_t *requant_fixed; /* [n][2] integer multiplier and shift (31..62): no float in the pipeline */
    int32_t      y_zero;
    void        *workspace;      /* plan.workspace_bytes, 256-byte aligned, contents free; one per queue */
    qk_groups    groups;         /* CUDA; a plan of as many experts */
} qk_gemm_args;

/* int8 output n of a sum, on the host: quantization.md 7.6. */
int8_t qk_requantize(const qk_gemm_args *args, uint32_t sum, int64_t n);

typedef struct qk_row qk_row;
typedef struct qk_plan {     /* plain data; equal inputs give equal plans on any machine */
    const qk_row *row;
    int32_t  variant;            /* index into the row's instance list */
    int32_t  splits;             /* of K, at chunk borders */
    int32_t  y_type, act;        /* the epilogue, as the qk_gemm asks for it */
    uint32_t flags;
    uint32_t grid[3], block, shared_bytes;
    uint64_t workspace_bytes;    /* 0 with splits: summed on chip */
} qk_plan;
struct qk_row {
    const char *name;            /* "cuda/w4a8_sm90" */
    const qk_layout *layout;
    bool      (*supports)(const qk_device *device, const qk_gemm *gemm, qk_why *why);
    void      (*plan)(const qk_device *device, const qk_gemm *gemm, qk_plan *out);      /* pure */
    qe_status (*run)(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err);
};
/* What a row's plan() starts from: the epilogue, one split, else zero. qk_gemm_plan() does this. */
static inline qk_plan qk_plan_begin(const qk_row *row, const qk_gemm *gemm) {
    qk_plan plan;
    memset(&plan, 0, sizeof plan);
    plan.row = row;
    plan.splits = 1;
    plan.y_type = gemm->y_type;
    plan.act = gemm->act;
    plan.flags = gemm->flags;
    return plan;
}
/* QE_E_UNSUPPORTED only if no row takes the epilogue asked for; err then names the last reason. */
qe_status qk_gemm_plan(const qk_device *device, const qk_gemm *gemm, qk_plan *out, qk_reason *reasons, void *ctx,
                       qe_error *err);
/* One of the plans that give a problem the same bits: another row where sums are exact, other tiles, other splits of K
 * (threads on the CPU). All zero: what qk_gemm_plan() chooses. */
typedef struct qk_tuning {
    const qk_row *row;       /* NULL: the first that supports the problem */
    int32_t tile_m;          /* as in qk_gemm */
    int32_t units;           /* planned as for a device of this many; 0: its own */
} qk_tuning;
enum { QK_TUNINGS = 96 };
/* Those with distinct plans, the untuned one first; how many. 0: the problem has no plan. */
int32_t qk_gemm_tunings(const qk_device *device, const qk_gemm *gemm, qk_tuning out[QK_TUNINGS]);
/* qk_gemm_plan() under a tuning. QE_E_UNSUPPORTED: it would change bits, or the row does not take the problem. */
qe_status qk_gemm_plan_tuned(const qk_device *device, const qk_gemm *gemm, const qk_tuning *tuning, qk_plan *out,
                             qe_error *err);
/* Checks what every row needs (shapes agree, pointers present and aligned), then runs the row. m = args->x.m, at most
 * the plan's m. */
qe_status qk_gemm_run(const qk_plan *plan, const qk_gemm_args *args, const qk_queue *queue, qe_error *err);

/* ---- attention over paged KV ------------------------------------------------------------------------------------- */
/* Device pointers. Page p of layer l is at pages + (p * layers + l) * page_bytes and holds keys
 * [kv_heads][page_tokens][head_dim], then values of the same shape. Sequence s holds slots 0 .. length[s] - 1, slot i
 * in page table[s * ld_table + i / page_tokens]; the rows of this step are its last ones. */
typedef struct qk_kv {
    void          *pages;  int64_t page_bytes;  int32_t page_tokens, layers;
    const int32_t *table;  int64_t ld_table;    /* [sequences][pages] */
    const int32_t *length;                      /* [sequences] tokens present after this step */
    qe_quant       quant;                       /* F16, or F32 for exact comparisons (CPU) */
} qk_kv;
typedef struct qk_attention {
    int32_t heads, kv_heads, head_dim, window;  /* window: slots a query sees, its own counted; 0: all before it */
    float   scale, softcap;                     /* softcap 0: none */
    int32_t sequences, max_new, max_length;     /* workspace for these; KV splits only at fixed positions */
    int32_t type;                               /* qe_code of q and out */
    const int32_t *first_row;                   /* device, [sequences + 1] into q and out */
    const void *q; void *out; int64_t ldq, ldo;
    const qk_kv *kv; int32_t layer;
    void *workspace;                            /* attention_bytes() */
} qk_attention;
/* Per row: [head norm] -> rotate q in place, write rotated keys and values of the row into their KV slots. */
typedef struct qk_rope {
    void          *qkv; int64_t ld; int32_t type;   /* row: heads * head_dim of q, kv_heads * head_dim of k, of v */
    const float   *cos_sin;                         /* [positions][rotary_dim / 2][2] */
    const int32_t *position;                        /* device, one a row */
    int32_t        rotary_dim, interleaved;         /* pairs (2i, 2i+1) instead of (i, i + rotary_dim / 2) */
    const float   *q_norm, *k_norm; float eps;      /* [head_dim] RMS weights, or NULL */
} qk_rope;

/* The ops with one implementation a backend. A backend without one (CUDA below the model level) names a function that
 * returns QE_E_UNSUPPORTED; a NULL slot fails the start-up test. CPU backends may name the qk_ref_* functions below. */
typedef struct qk_ops {
    size_t    (*x_bytes)(const qk_device *device, const qk_shape *next, int64_t m, int32_t float_type, qk_x *out);
    qe_status (*prepare)(const qk_prepare *a, const qk_queue *q, qe_error *err);
    /* y[i] = fl(row ids[i] of the packed weight * scale), one rounding to y_type */
    qe_status (*embed)(const qk_weight *table, const int32_t *ids, int64_t m, float scale, void *y, int64_t ldy,
                       int32_t y_type, const qk_queue *q, qe_error *err);
    qe_status (*rope_append)(const qk_rope *r, const qk_attention *a, const qk_queue *q, qe_error *err);
    size_t    (*attention_bytes)(const qk_device *device, const qk_attention *a);
    qe_status (*attention)(const qk_attention *a, const qk_queue *q, qe_error *err);
} qk_ops;
/* Plain implementations in host memory, bound to no layout; embed reads through qk_layout.row. */
size_t    qk_plain_x_bytes(const qk_shape *next, int64_t m, int32_t float_type, int64_t sum_k, qk_x *out);
qe_status qk_ref_embed(const qk_weight *table, const int32_t *ids, int64_t m, float scale, void *y, int64_t ldy,
                       int32_t y_type, const qk_queue *q, qe_error *err);
qe_status qk_ref_rope_append(const qk_rope *r, const qk_attention *a, const qk_queue *q, qe_error *err);
size_t    qk_ref_attention_bytes(const qk_device *device, const qk_attention *a);
qe_status qk_ref_attention(const qk_attention *a, const qk_queue *q, qe_error *err);

/* ---- fake quantization (quantize.h), for backends whose memory the host cannot reach ------------------------------- */
typedef struct qk_fake_quant {
    int64_t       n, k;
    int32_t       group_n, group_k, low, high;
    const float  *scale, *zero;
    int32_t       type, lsq_scaled;             /* qe_code of x, dy, out */
    const void   *x, *dy;                       /* dy NULL: forward */
    void         *out;
    double       *dscale, *dzero;
    void         *workspace;
} qk_fake_quant;

/* ---- backends ---------------------------------------------------------------------------------------------------- */
typedef struct qk_backend {
    const char *name;
    int32_t     id;
    int32_t   (*count)(void);                                         /* devices; 0 without driver is no error */
    qe_status (*describe)(int32_t ordinal, qk_device *out, qe_error *err);
    qe_status (*alloc)(const qk_device *d, size_t bytes, void **out, qe_error *err);  /* unless the host supplies it */
    void      (*release)(const qk_device *d, void *p);
    qe_status (*copy)(const qk_queue *q, void *dst, const void *src, size_t bytes, qe_error *err); /* any direction */
    qe_status (*wait)(const qk_queue *q, qe_error *err);              /* QE_E_DEVICE_LOST is sticky */
    const qk_layout *const *layouts;                                  /* NULL-terminated, order of preference */
    const qk_row    *const *rows;                                     /* likewise */
    qk_ops      ops;
    bool        linears_only;                                         /* no whole models: only prepare and GEMM work */
    size_t    (*fake_quant_bytes)(const qk_fake_quant *f);            /* both NULL: the host's own functions do it */
    qe_status (*fake_quant)(const qk_fake_quant *f, const qk_queue *q, qe_error *err);
} qk_backend;
const qk_backend *qk_backend_of(int32_t id);                          /* NULL if not linked in */
/* Each lives in its own folder. The registry refers to them weakly, so a build or a test may leave one out. */
extern const qk_backend qk_ref_backend, qk_cpu_backend, qk_cuda_backend;
#ifdef __cplusplus
}
#endif
#endif
