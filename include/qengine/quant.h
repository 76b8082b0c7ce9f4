/* qengine/quant.h -- one descriptor for every quantization, and the canonical tensor it describes.
 *
 * Readers produce the canonical form, quantizers produce it, kernels are packed from it. Nothing else crosses.
 * The real value of one element, in fp32, in exactly this order (fl: one IEEE rounding to nearest even; never a
 * fused multiply-add, never flush-to-zero). qe_dequantize() is this formula and every kernel is tested against it:
 *
 *     s = L                     one level;                         L = scales[n / group_n][k / group_k]
 *     s = fl(S * L)             two levels;                        S = super [n / super_n][k / super_k]
 *     s = fl(L / S)             two levels with QE_SUPER_DIVIDES
 *     s = s * 2^scale_log2
 *     v = fl(s * fl(C - z))     C = c, lut[c] or the stored float; z = zero_const or zeros[n/group_n][k/group_k]
 *     v = fl(v + b)             only for QE_ZERO_REAL, where z = 0 and b = B, or fl(BS * B) if `zero_num` is an
 *                               integer type;                      B = zeros[..], BS = zero_super[..]
 *
 * c is the stored field, always unsigned, 0 .. 2^bits - 1: int8 is c = q + 128 with zero_const 128, GGUF Q4_0 is
 * zero_const 8, AWQ is zero_const 0 with integer zeros. So "signed" and "unsigned" are not two kinds of anything.
 *
 *   checkpoint          code   bits scale group(n,k)  super(n,k)   zero
 *   GPTQ, AWQ           INT    4    F16   1,g         -            POINT U8  (or CONST 8 when all equal)
 *   W8A8 channel        INT    8    F32   1,0         -            CONST 128
 *   W4A8 two-level      INT    4    U8    1,128       F16 1,0      POINT U8 or CONST 8
 *   FP8 block           E4M3   8    F32   128,128     -            CONST 0
 *   NVFP4               E2M1   4    E4M3  1,16        F32 0,0      CONST 0   (compressed-tensors: SUPER_DIVIDES)
 *   MXFP4 / MXINT8      E2M1/INT    E8M0  1,32        -            CONST 0 / CONST 128, scale_log2 -6
 *   GGUF Q4_K           INT    4    U6    1,32        F16 1,256    REAL U6, zero_super = -dmin
 *   GGUF Q6_K, IQ4_XS   INT 6, IQ4NL 4; S8, S6; 1,16 and 1,32; F16 1,256; CONST 32 and 0
 *   NF4 (bitsandbytes)  NF4    4    F32   1,64        -            CONST 0   (nested absmax folded by the reader)
 *   MX9                 INT    8    POW2N 1,2         E8M0 1,16    CONST 128, scale_log2 -6
 *   k-means, TTQ        LUT    b    ONE or F16        -            CONST 0;  lut_n 0: one table, 1: one per row
 *
 * Threads: pure functions; distinct outputs may be filled concurrently. Nothing here allocates or keeps pointers. */
#ifndef QENGINE_QUANT_H
#define QENGINE_QUANT_H
#include <stddef.h>
#include <stdint.h>
#include <qengine/base.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Number types of scales, second levels and zeros: X(name, value, bytes stored, bits counted). Values are ABI.
 * Sub-byte types are stored one per byte; `bits` is what the true size of a scheme counts. */
#define QE_NUM_LIST(X)                                                                        \
    X(QE_NUM_ONE,    0, 0,  0) /* absent: the constant 1 */                                   \
    X(QE_NUM_F32,    1, 4, 32)                                                                \
    X(QE_NUM_F16,    2, 2, 16)                                                                \
    X(QE_NUM_BF16,   3, 2, 16)                                                                \
    X(QE_NUM_E8M0,   4, 1,  8) /* 2^(u-127); 255 never appears, readers refuse it */          \
    X(QE_NUM_E4M3,   5, 1,  8) /* the "fn" variant: max 448, no infinity; NaN refused */      \
    X(QE_NUM_U8,     6, 1,  8)                                                                \
    X(QE_NUM_S8,     7, 1,  8) /* Q6_K: negative scales exist */                              \
    X(QE_NUM_U6,     8, 1,  6)                                                                \
    X(QE_NUM_S6,     9, 1,  6) /* Q3_K, IQ4_XS: -32..31, as a signed byte */                  \
    X(QE_NUM_U4,    10, 1,  4)                                                                \
    X(QE_NUM_POW2N, 11, 1,  1) /* 2^-u, u in {0,1}: micro-exponent of MX9/MX6/MX4 */
typedef enum qe_num {
#define QE_X(name, value, bytes, bits) name = value,
    QE_NUM_LIST(QE_X)
#undef QE_X
    QE_NUM_FORCE_INT32 = 0x7fffffff
} qe_num;

/* What a stored code means: X(name, value, bits or 0 if free). */
#define QE_CODE_LIST(X)                                                                       \
    X(QE_CODE_NONE,  0,  0) /* not quantized and not present (activations kept float) */      \
    X(QE_CODE_F32,   1, 32)                                                                   \
    X(QE_CODE_F16,   2, 16)                                                                   \
    X(QE_CODE_BF16,  3, 16)                                                                   \
    X(QE_CODE_INT,   4,  0) /* C = c, bits 1..8; ternary is bits 2, CONST 1, QE_FACT_TERNARY */ \
    X(QE_CODE_LUT,   5,  0) /* C = lut[c]: k-means, TTQ, foreign fp8; bits 1..8 */            \
    X(QE_CODE_SIGN,  6,  1) /* 0 -> -1, 1 -> +1 (BWN, XNOR, GGUF Q1_0) */                     \
    X(QE_CODE_NF4,   7,  4) /* fixed tables of formats.md from here on */                     \
    X(QE_CODE_FP4B,  8,  4) /* bitsandbytes FP4, not E2M1 */                                  \
    X(QE_CODE_IQ4NL, 9,  4)                                                                   \
    X(QE_CODE_E2M1, 10,  4)                                                                   \
    X(QE_CODE_E4M3, 11,  8)                                                                   \
    X(QE_CODE_E5M2, 12,  8)
typedef enum qe_code {
#define QE_X(name, value, bits) name = value,
    QE_CODE_LIST(QE_X)
#undef QE_X
    QE_CODE_FORCE_INT32 = 0x7fffffff
} qe_code;

typedef enum qe_zero {
    QE_ZERO_CONST = 0, /* z = zero_const for every element (symmetric schemes) */
    QE_ZERO_POINT = 1, /* z = zeros[], in units of c; U8, or F16/F32 (HQQ). v1 GPTQ is already +1: 0 .. 2^bits */
    QE_ZERO_REAL  = 2  /* z = 0, b added to the product (GGUF mins, MLX biases, llm-awq -(s*z)) */
} qe_zero;

enum { QE_SUPER_DIVIDES = 1 }; /* qe_quant.flags: s = L / S, as compressed-tensors NVFP4 stores it */

/* The descriptor: plain data, no pointers, compared with memcmp, so unused fields must be 0.
 * A group extent of 0 means "the whole dimension"; extents need not divide n or k (the last group is short), but
 * super_k is a multiple of group_k (or 0) and super_n of group_n (or 0). */
typedef struct qe_quant {
    uint8_t code;             /* qe_code */
    uint8_t bits;             /* of one code; 16, 32 for float codes */
    uint8_t scale, super;     /* qe_num; integer and POW2N scales need a `super` */
    uint8_t zero, zero_num;   /* qe_zero; qe_num of zeros[], ONE for CONST */
    uint8_t flags, reserved;
    int16_t zero_const;       /* 0 .. 2^bits; 0 unless CONST with code INT */
    int16_t scale_log2;       /* -64 .. 64 */
    int32_t group_n, group_k; /* 1,0 per row (channel or token) | 0,0 per tensor | 1,g group | 128,128 block */
    int32_t super_n, super_k;
    int32_t lut_n;            /* QE_CODE_LUT: rows sharing one table; 0: all */
} qe_quant;
typedef char qe_quant_is_32_bytes[sizeof(qe_quant) == 32 ? 1 : -1]; /* ABI */

/* How the input of a linear is quantized; the same descriptor with rows = tokens (group_n is 1, or 0 if static).
 * quant.code NONE: the input stays float. INT: 8 bits. SIGN: 1 bit, always dynamic and one scale a token. STATIC: one scale and zero for all tokens, fixed by calibration. */
typedef enum qe_act_mode { QE_ACT_FLOAT = 0, QE_ACT_DYNAMIC = 1, QE_ACT_STATIC = 2 } qe_act_mode;
typedef struct qe_act {
    qe_quant quant;
    int32_t  mode;            /* qe_act_mode */
    float    scale;           /* STATIC only, finite, > 0 */
    int32_t  zero;            /* STATIC only, in units of c */
} qe_act;

/* What a reader or quantizer knows to hold for every element of the tensor. A bit not set means "not known". */
enum {
    QE_FACT_TERNARY       = 1, /* code INT, |c - z| <= 1 */
    QE_FACT_NO_MIN        = 2, /* code INT, symmetric: c >= 1, so |c - z| <= 2^(bits-1) - 1 */
    QE_FACT_SCALES_POS    = 4, /* every s > 0 (GGUF may have negative ones) */
    QE_FACT_INT8_PRODUCT  = 8, /* integer L: every L * (c - z) is in [-128, 127]: int8 x int8 K loops */
    QE_FACT_F16_RANGE     = 16 /* every v is 0 or a normal fp16 */
};

/* The canonical tensor, or a band of its rows: plain row-major arrays, each 64-byte aligned, no row padding.
 * With Gn = ceil(n / group_n), Gk = ceil(k / group_k), Sn, Sk, Ln likewise (extent 0: 1):
 *   codes   [n][k] bytes, or 2 or 4 bytes for float codes      scales, zeros      [Gn][Gk] of their qe_num
 *   lut     [Ln][2^bits] float, QE_CODE_LUT only               super, zero_super  [Sn][Sk] of type `super`
 * Columns are in canonical order: with act-order they are stably sorted by group, so a group is always contiguous.
 * The input of this linear is  x'[j] = H( x[order[j]] * col_scale[order[j]] )  where
 *   order     [k], a permutation; NULL: identity
 *   col_scale [k], in the caller's column order (SmoothQuant/AWQ scales that could not be folded); NULL: 1
 *   hadamard  H = normalized Walsh-Hadamard over consecutive blocks of this many columns; 0: none
 * Ownership: pointers are borrowed; whoever placed them frees them, and they must live for the call they are
 * passed to, no longer. Large tensors travel as bands: first_row is a multiple of qe_quant_band_rows(). */
typedef struct qe_qtensor {
    qe_quant  quant;
    qe_act    act;             /* the input quantization the checkpoint asks for; mode FLOAT if none */
    int64_t   n, k;            /* rows present here, columns */
    int64_t   first_row, rows; /* where the band starts, rows of the whole tensor */
    uint32_t  facts;           /* QE_FACT_* */
    int32_t   hadamard;
    void     *codes, *scales, *super, *zeros, *zero_super;
    float    *lut, *col_scale;
    uint32_t *order;
} qe_qtensor;

/* Element `index` of an array of a qe_num as a float (1 for ONE), and bytes of one (0 for ONE and unknown types). */
QE_API float     qe_num_get(int32_t num, const void *array, int64_t index);
QE_API size_t    qe_num_bytes(int32_t num);
/* The 2^bits values C of a code with a fixed table (SIGN to E5M2), NULL for the others. */
QE_API const float *qe_code_values(int32_t code);

/* qe_quant_check(): the rules above for a tensor of n x k. QE_E_ARGUMENT names the field and the legal values;
 * QE_E_OVERFLOW if a byte count does not fit size_t. Everything below requires a descriptor that passed. */
QE_API qe_status qe_quant_check(const qe_quant *quant, int64_t n, int64_t k, qe_error *err);

/* Text form used by programs, recipes and reports, "int4:g128:f16:z=u8", and back. qe_quant_name() returns the
 * length it needs without the terminator, like snprintf. */
QE_API size_t    qe_quant_name(const qe_quant *quant, char *text, size_t text_bytes);
QE_API qe_status qe_quant_parse(const char *text, qe_quant *out, qe_error *err);

/* True bits per weight, scales, zeros and tables counted at QE_NUM_LIST's bits (not at canonical bytes). */
QE_API double    qe_quant_bits_per_weight(const qe_quant *quant, int64_t n, int64_t k);

/* Smallest number of rows a band may start at multiples of: lcm of the row extents; 0: only the whole tensor. */
QE_API int64_t   qe_quant_band_rows(const qe_quant *quant);

/* Largest k whose int32 sum cannot overflow: floor((2^31 - 1) / (max|c_w - z_w| * max|c_x - z_x|)) over the codes
 * and zeros the two descriptors (and facts) allow; 0 if the pair is not an integer pair. */
QE_API int64_t   qe_quant_max_k(const qe_quant *w, uint32_t w_facts, const qe_quant *x);

/* The activation quantization a weight type gets where its checkpoint names none and int8 input is wanted: dynamic
 * symmetric int8, groups of 256 for GGUF super-block types, of 32 for 32-blocks and MX, else one per token. Float codes
 * get mode FLOAT. */
QE_API void      qe_act_default(const qe_quant *w, qe_act *out);

/* Bytes for all arrays of an n-row band (order and col_scale included when asked), and carving them out of one
 * caller's block of that size, 64-byte aligned. qe_qtensor_place() sets every pointer and writes no data. */
enum { QE_PLACE_ORDER = 1, QE_PLACE_COL_SCALE = 2 };
QE_API size_t    qe_qtensor_bytes(const qe_quant *quant, int64_t n, int64_t k, uint32_t parts);
QE_API qe_status qe_qtensor_place(qe_qtensor *out, const qe_quant *quant, int64_t n, int64_t k, uint32_t parts,
                                  void *block, size_t block_bytes, qe_error *err);

/* Scan a band: codes in range, scales finite, zeros in range, order a permutation. QE_E_VALUE or QE_E_RANGE with
 * row and column; on success *facts is AND-ed with what this band satisfies, so bands can be checked in turn. */
QE_API qe_status qe_qtensor_check(const qe_qtensor *t, uint32_t *facts, qe_error *err);

/* The formula: rows [row, row + count) of the band into w[count][ldw], columns in the caller's order (order undone,
 * col_scale and hadamard not applied). ldw >= k floats. */
QE_API qe_status qe_dequantize(const qe_qtensor *t, int64_t row, int64_t count, float *w, int64_t ldw,
                               qe_error *err);

/* Round w[n][ldw] to nearest under t->quant into t's arrays. Without KEEP_SCALES scales, zeros and tables are first
 * computed from absmax or min-max; with it they are taken as given and only codes are written: the last step of
 * GPTQ, AdaRound and every range method of <qengine/quantize.h>. FULL_RANGE lets symmetric codes use the lowest code
 * too, as GGUF does: -8 .. 7, with a negative scale where that fits. QE_E_VALUE names the first NaN or Inf. */
enum { QE_QUANTIZE_KEEP_SCALES = 1, QE_QUANTIZE_FULL_RANGE = 2 };
QE_API qe_status qe_quantize(const float *w, int64_t ldw, uint32_t flags, qe_qtensor *t, qe_error *err);

#ifdef __cplusplus
}
#endif
#endif
