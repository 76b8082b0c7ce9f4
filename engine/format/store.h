/* store.h -- an opened checkpoint, whatever its format: a list of tensors, typed metadata, and reading of rows into
 * the canonical form. Readers know neither heads nor families; the model layer passes a row map where it wants rows in
 * another order. A store is immutable once opened; every function but close is thread-safe. */
#ifndef QE_FORMAT_STORE_H
#define QE_FORMAT_STORE_H
#include <stdbool.h>
#include <qengine/model.h>
#include <qengine/quant.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct qe_store qe_store;

/* ---- opening -------------------------------------------------------------------------------------------------- */
/* flags and limits of <qengine/model.h>; limits may be NULL. The reader is owned by the call from its start. */
qe_status qe_store_open(const char *path, uint32_t flags, const qe_model_limits *limits, qe_store **out, qe_error *err);
qe_status qe_store_open_reader(qe_reader reader, const char *config_json, size_t config_bytes, uint32_t flags,
                               const qe_model_limits *limits, qe_store **out, qe_error *err);
/* A checkpoint that is still being written: a folder with its tensors and `config_json` in place of the file that is not
 * there yet, or a GGUF file. Packed modules that `only` does not name are left alone. */
qe_status qe_store_open_partial(const char *path, const char *config_json, bool (*only)(void *ctx, const char *module),
                                void *ctx, qe_store **out, qe_error *err);
void      qe_store_close(qe_store *store);                    /* NULL is fine */

typedef enum qe_store_kind { QE_STORE_GGUF = 1, QE_STORE_SAFETENSORS = 2 } qe_store_kind;
qe_store_kind          qe_store_get_kind(const qe_store *store);
const char            *qe_store_name(const qe_store *store);   /* path or reader name, for messages */
const qe_model_limits *qe_store_limits(const qe_store *store); /* every field filled */

/* A file beside the model ("tokenizer.json", "tokenizer_config.json"; a plain name without separators), at most
 * max_bytes (else QE_E_LIMIT), NUL-terminated, freed with free(). No such file, or a store without a folder:
 * QE_OK with *out NULL. */
qe_status qe_store_side_file(const qe_store *store, const char *name, size_t max_bytes, char **out, size_t *out_bytes,
                             qe_error *err);

/* ---- tensors -------------------------------------------------------------------------------------------------- */
struct qe_store_type;
typedef struct qe_store_tensor {
    const char *name;                   /* NUL-terminated UTF-8 */
    const struct qe_store_type *type;   /* name, block size, canonical descriptor, decoder */
    int32_t     rank, file;             /* file: index of the shard */
    int64_t     dims[QE_MODEL_RANK];    /* row-major, slowest first; rank 0 is one element */
    int64_t     rows, columns;          /* columns = last dimension (1 for rank 0), rows = product of the others */
    uint64_t    offset, bytes;          /* absolute position in its file; packed: of its codes, bytes of all parts */
    const struct qe_packed_tensor *packed;      /* spread over several tensors of the file; NULL: as it stands */
} qe_store_tensor;

int64_t                qe_store_tensor_count(const qe_store *store);
const qe_store_tensor *qe_store_tensor_at(const qe_store *store, int64_t index);   /* NULL: no such index */
int64_t                qe_store_find(const qe_store *store, const char *name);     /* index, -1: none */
const char            *qe_store_type_name(const qe_store_tensor *tensor);          /* "Q4_K", "BF16" */
const qe_quant        *qe_store_quant(const qe_store_tensor *tensor);              /* code NONE: cannot be read */

/* Rows first_row .. first_row + rows - 1 of the tensor into `band`: placed by qe_qtensor_place() for (the tensor's
 * quant, rows, columns); its first_row, rows (of the whole) and facts are set here. Band row i is file row
 * row_map[first_row + i], or first_row + i if row_map is NULL; a map holds one entry for each row of the tensor.
 * QE_E_UNSUPPORTED: type without a decoder. QE_E_VALUE: a NaN or infinity, named by tensor, row and column. */
qe_status qe_store_read(const qe_store *store, int64_t tensor, int64_t first_row, int64_t rows, const int64_t *row_map,
                        qe_qtensor *band, qe_error *err);

/* Bytes of a plain tensor as the file has them. */
qe_status qe_store_read_raw(const qe_store *store, int64_t tensor, uint64_t offset, void *data, size_t bytes, qe_error *err);

/* What a checkpoint says of a weight beside its codes: quant, n, k, rows; act (mode FLOAT for weight-only schemes) and
 * *act_known 1 where the file names one; hadamard; order and col_scale, owned by the store. Arrays of values are NULL. */
void qe_store_form(const qe_store *store, int64_t tensor, qe_qtensor *form, int32_t *act_known);

/* A string of a safetensors file's own __metadata__ ("qengine.report"), NULL if there is none. */
const char *qe_store_note(const qe_store *store, const char *key);

/* ---- metadata ------------------------------------------------------------------------------------------------- */
/* One set of getters for GGUF key-values and for config.json flattened with dots ("rope_scaling.factor"). A missing
 * key is QE_E_MISSING; JSON null counts as missing. A value of another kind is QE_E_TYPE, one that does not fit is
 * QE_E_RANGE. Integers of every width answer get_int; get_float also takes integers in JSON, never in GGUF. */
typedef enum qe_meta_kind {
    QE_META_NONE = 0, QE_META_INT = 1, QE_META_FLOAT = 2, QE_META_BOOL = 3, QE_META_STRING = 4, QE_META_ARRAY = 5
} qe_meta_kind;

int64_t      qe_store_meta_count(const qe_store *store);
const char  *qe_store_meta_key(const qe_store *store, int64_t index);
qe_meta_kind qe_store_meta_kind(const qe_store *store, const char *key);           /* NONE: missing or null */
qe_status    qe_store_get_int(const qe_store *store, const char *key, int64_t *out, qe_error *err);
qe_status    qe_store_get_float(const qe_store *store, const char *key, double *out, qe_error *err);
qe_status    qe_store_get_bool(const qe_store *store, const char *key, bool *out, qe_error *err);
/* Borrowed, NUL-terminated; *bytes (may be NULL) counts without the terminator. Scalar strings are valid UTF-8. */
qe_status    qe_store_get_string(const qe_store *store, const char *key, const char **out, size_t *bytes,
                                 qe_error *err);

/* Arrays hold one kind. `item_bytes` is the width stored in the file (tokenizers refuse 1-byte scores); strings: 0. */
typedef struct qe_meta_array {
    qe_meta_kind  kind;                 /* of the items; NONE for an empty JSON array */
    int64_t       count;
    int32_t       item_bytes, item_type;
    const void   *data;                 /* GGUF bytes, unaligned */
    const size_t *starts;               /* strings: text of item i at base + starts[i], its length before it */
    const char   *base;
} qe_meta_array;
qe_status   qe_store_get_array(const qe_store *store, const char *key, qe_meta_array *out, qe_error *err);
int64_t     qe_meta_array_int(const qe_meta_array *array, int64_t index);          /* kind INT or BOOL */
double      qe_meta_array_float(const qe_meta_array *array, int64_t index);        /* kind FLOAT or INT */
/* Not terminated, may hold any bytes (byte-level vocabularies); kind STRING. */
const char *qe_meta_array_string(const qe_meta_array *array, int64_t index, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
