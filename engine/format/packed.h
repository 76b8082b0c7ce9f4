/* packed.h -- weights that a safetensors checkpoint spreads over several tensors (codes, scales, zero points, column
 * order): which tensors belong together is found once, when the store is opened; from then on the weight is one tensor of
 * the store, `<module>.weight`, of shape [n, k], and its parts are not listed any more.
 *
 *   quantization_config.quant_method    binder                 its files
 *   gptq, awq                           qe_gptq_bind, qe_awq_bind    wts_gptq_awq.c
 *   compressed-tensors                  qe_compressed_bind     wts_compressed.c
 *   qengine                             qe_native_bind         wts_native.c */
#ifndef QE_FORMAT_PACKED_H
#define QE_FORMAT_PACKED_H
#include "format/store_internal.h"

typedef enum qe_part {
    QE_PART_CODES, QE_PART_SCALES, QE_PART_ZEROS, QE_PART_ORDER, QE_PART_SUPER, QE_PART_ZERO_SUPER, QE_PART_LUT,
    QE_PART_COL_SCALE, QE_PART_INPUT, QE_PART_COUNT
} qe_part;

struct qe_packed_tensor;
/* Rows of a packed weight into a placed band, as qe_store_read() says. */
typedef qe_status qe_packed_read(const qe_store *store, const qe_store_tensor *t, int64_t first_row, int64_t rows,
                                 const int64_t *row_map, qe_qtensor *band, qe_error *err);

typedef struct qe_packed_tensor {
    qe_store_type    type;              /* name and canonical descriptor of the whole */
    qe_packed_read  *read;
    qe_act           act;               /* how the checkpoint wants its input: mode FLOAT for weight-only schemes */
    int32_t          hadamard;
    uint32_t         facts;             /* QE_FACT_* the file promises; readers check them */
    int32_t          bits, dense;       /* of a code; 0: words hold a whole number of codes (old 3, 5, 6, 7 bits) */
    int32_t          zero_add;          /* GPTQ v1: added to each stored zero point */
    int64_t          groups;            /* along k, as stored */
    int64_t          group_k;           /* columns of one, as stored */
    const qe_store_tensor *part[QE_PART_COUNT];     /* NULL: absent */
    uint32_t        *order, *position;  /* column stored at j; where column c is put; NULL: as they come */
    int32_t         *group_of;          /* [k]: groups of unequal size, scales are repeated per column; else NULL */
    float           *col_scale;
} qe_packed_tensor;

/* ---- binding --------------------------------------------------------------------------------------------------- */
typedef struct qe_packed_list {
    qe_store        *store;
    const json_t    *config;            /* quantization_config */
    const char      *where;             /* "config.json" of the folder, for messages */
    qe_store_tensor *tensors;           /* the logical list that grows */
    int64_t          count;
    uint8_t         *taken;             /* [store->tensor_count] raw tensors that became parts */
} qe_packed_list;

qe_status qe_gptq_bind(qe_packed_list *list, qe_error *err);
qe_status qe_awq_bind(qe_packed_list *list, qe_error *err);
qe_status qe_compressed_bind(qe_packed_list *list, qe_error *err);
qe_status qe_native_bind(qe_packed_list *list, qe_error *err);

/* After all tensors and the settings are known: nothing to do for a store without settings and packed parts. */
qe_status qe_packed_bind(qe_store *store, qe_error *err);
/* The cache of column slabs; NULL is fine. */
void      qe_packed_release(qe_store *store);

/* The raw tensor `module` + `suffix`, NULL if absent. */
const qe_store_tensor *qe_packed_find(const qe_packed_list *list, const char *module, const char *suffix);
/* Modules that have a raw tensor ending in `suffix`: index of the next raw tensor from *at on, -1 at the end; module
 * (QE_MODULE_MAX bytes) gets the name without it. */
enum { QE_MODULE_MAX = 1025 };
int64_t   qe_packed_next(const qe_packed_list *list, const char *suffix, int64_t *at, char *module);
/* Checks of one part. count -1: any. */
qe_status qe_packed_shape(const qe_packed_list *list, const qe_store_tensor *t, int32_t rank, int64_t rows,
                          int64_t columns, qe_error *err);
qe_status qe_packed_type(const qe_packed_list *list, const qe_store_tensor *t, const char *types, qe_error *err);
/* F16, BF16 or F32 as a qe_num. */
qe_status qe_packed_scale_num(const qe_packed_list *list, const qe_store_tensor *t, uint8_t *out, qe_error *err);
/* The whole of a small part; freed with free(). */
qe_status qe_packed_slurp(const qe_store *store, const qe_store_tensor *t, void **out, qe_error *err);
/* g_idx: order and group_of from it. `required` order: act-order is set. */
qe_status qe_packed_order(qe_packed_list *list, const char *module, const qe_store_tensor *g_idx, bool act_order,
                          int64_t k, qe_packed_tensor *p, qe_error *err);
/* The logical tensor takes the place of its parts. */
qe_status qe_packed_add(qe_packed_list *list, const char *module, const char *type_name, int64_t n, int64_t k,
                        qe_packed_tensor *p, qe_error *err);
qe_packed_tensor *qe_packed_new(const qe_packed_list *list, qe_error *err);
qe_status qe_packed_fail(const qe_packed_list *list, qe_status status, const char *name, qe_error *err,
                         const char *format, ...) QE_PRINTF(5, 6);

/* Parts left over that end in one of these (NULL-terminated) are MISSING their codes. */
qe_status qe_packed_leftovers(const qe_packed_list *list, const char *const *suffixes, const char *codes,
                              qe_error *err);

/* Python's re.match: anchored at the start alone. QE_E_REGEX, or QE_E_LIMIT where a match takes too long. */
qe_status qe_module_match(const char *pattern, const char *module, const char *where, bool *matches, qe_error *err);

/* ---- reading --------------------------------------------------------------------------------------------------- */
/* Field `index` of a dense LSB-first stream of little-endian 32-bit words that are `stride` words apart. */
static inline uint32_t qe_packed_field(const uint8_t *words, int64_t stride, int64_t index, int32_t bits) {
    int64_t at = index * bits, word = at / 32;
    int shift = (int)(at % 32);
    const uint8_t *p = words + 4 * word * stride;
    uint64_t v = (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24;
    if (shift + bits > 32) {
        p += 4 * stride;
        v |= ((uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24) << 32;
    }
    return (uint32_t)(v >> shift) & ((1u << bits) - 1u);
}

/* A rectangle of a part: rows [row, row + rows) and bytes [byte, byte + bytes) of each, one after the other. */
qe_status qe_packed_rect(const qe_store *store, const qe_store_tensor *t, int64_t row, int64_t rows, uint64_t byte,
                         size_t bytes, void *out, qe_error *err);
qe_status qe_packed_bad_scale(const qe_store *store, const qe_store_tensor *scales, int64_t row, int64_t column,
                              qe_error *err);
/* True if element `index` of an array of F16, BF16 or F32 is a NaN or an infinity. */
bool      qe_packed_unusable(uint8_t num, const void *array, int64_t index);

/* Tensors stored with outputs side by side: the columns of one slab, read once for many bands. One slab a store. */
enum { QE_SLAB_COLUMNS = 992 };     /* of 32, and no power of two: rows of a slab do not share cache sets */
typedef struct qe_slab {
    const qe_store_tensor *tensor;
    int64_t  first, count;              /* outputs */
    uint8_t *codes, *zeros, *scales;    /* [rows of the part][bytes of `count` outputs] */
    size_t   code_ld, zero_ld, scale_ld;
    size_t   room;
} qe_slab;
/* The slab that holds output n, locked until qe_slab_unlock(). `code_outputs`, `zero_outputs`: outputs one 32-bit word
 * of a row covers (codes 1 where words run along k). */
qe_status qe_slab_lock(const qe_store *store, const qe_store_tensor *t, int64_t n, int32_t code_outputs,
                       int32_t zero_bits, const qe_slab **out, qe_error *err);
void      qe_slab_unlock(const qe_store *store);
#endif
