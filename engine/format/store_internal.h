/* store_internal.h -- inside of a qe_store, shared by the readers of this folder. */
#ifndef QE_FORMAT_STORE_INTERNAL_H
#define QE_FORMAT_STORE_INTERNAL_H
#include "base/json.h"
#include "format/store.h"

enum { QE_TEXT_MAX = 129 };     /* text from a file in a message: cut to 128 bytes */

/* One element type of a format. A row is a whole number of blocks. decode fills row `row` of `band` and returns the
 * column of the first NaN or infinity, -1 if all is finite; NULL: listed by name, refused when read. */
typedef int64_t qe_decode_row(const uint8_t *blocks, int64_t row, qe_qtensor *band);
typedef struct qe_store_type {
    const char    *name;
    int32_t        block, block_bytes;
    qe_quant       quant;
    qe_decode_row *decode;
} qe_store_type;

/* NULL: not a type id. *retired: it once was one and may not come back. */
const qe_store_type *qe_gguf_type(uint32_t id, bool *retired);
const qe_store_type *qe_safetensors_type(const char *name);
/* The id of a type name the table has; the type whose canonical form this is, NULL if there is none. */
uint32_t             qe_gguf_type_id(const char *name);
const qe_store_type *qe_gguf_type_of(const qe_quant *quant);

/* One key-value. Scalars in i, f, text; integers beyond int64 have `big`. */
typedef struct qe_meta_entry {
    const char   *key;
    qe_meta_kind  kind;
    bool          big, exact_float;     /* exact_float: integers do not pass for floats (GGUF) */
    int64_t       i;                    /* INT, BOOL */
    double        f;
    const char   *text;                 /* STRING */
    size_t        text_bytes;
    qe_meta_array array;                /* scalars: item_type alone, the stored type */
    size_t        key_at, key_bytes, text_at;   /* while a header grows: positions in it */
} qe_meta_entry;

typedef struct qe_store_block { struct qe_store_block *next; } qe_store_block;

struct qe_store {
    qe_store_kind    kind;
    uint32_t         flags;
    qe_model_limits  limits;
    char            *name, *folder;     /* folder: NULL without one, else with a trailing slash */
    qe_reader       *files;
    int64_t          file_count;
    qe_store_tensor *tensors;
    int64_t          tensor_count;
    uint32_t        *tensor_order;      /* by name */
    qe_meta_entry   *metas;
    int64_t          meta_count;
    uint32_t        *meta_order;        /* by key */
    char            *header;            /* GGUF: the bytes names and keys point into; from malloc */
    qe_store_block  *blocks;            /* everything allocated for the store, freed together */
    json_t          *quantization;      /* quantization_config as it stands; NULL: none (packed.h) */
    json_t          *notes;             /* __metadata__ of the first safetensors file; NULL: none */
    struct qe_packed_cache *cache;
    bool           (*only)(void *ctx, const char *module);  /* packed modules to look at; NULL: all */
    void            *only_ctx;
};
qe_status qe_packed_cache_create(qe_store *store, qe_error *err);

/* Memory that lives as long as the store, zeroed. NULL: none, or the count overflows. */
void     *qe_store_alloc(qe_store *store, uint64_t count, size_t bytes_each);
char     *qe_store_text(qe_store *store, const char *text, size_t bytes);       /* NUL-terminated copy */
qe_status qe_store_nomem(const qe_store *store, qe_error *err);

/* Sort the lists by name; QE_E_DUPLICATE names the first pair. */
qe_status qe_store_index_tensors(qe_store *store, qe_error *err);
qe_status qe_store_index_metas(qe_store *store, qe_error *err);

/* Readers: fill tensors (and, GGUF, metas) from store->files[file]. Safetensors appends, so that shards add up. */
qe_status qe_gguf_load(qe_store *store, qe_error *err);
qe_status qe_safetensors_load(qe_store *store, int32_t file, qe_error *err);
qe_status qe_config_load(qe_store *store, const char *where, const char *json, size_t bytes, qe_error *err);
/* The shards an index names: opens them as files, loads and cross-checks them. */
qe_status qe_index_load(qe_store *store, const char *where, const char *json, size_t bytes, qe_error *err);

/* JSON text as a jansson tree, top level an object, every failure with its own status. base: offset of the text in
 * its file. *at (may be NULL): position of the error in the text. */
qe_status qe_store_json(const char *where, const char *text, size_t bytes, uint64_t base, json_t **out, size_t *at,
                        qe_error *err);

/* Dimensions to rows, columns and bytes; every product checked (a zero does not hide an overflow of the others). */
qe_status qe_tensor_measure(qe_store_tensor *t, const char *where, uint64_t at, qe_error *err);

/* A whole small file, NUL-terminated, freed with free(). */
qe_status qe_store_slurp(const char *path, size_t max_bytes, char **out, size_t *out_bytes, qe_error *err);

bool qe_utf8_valid(const char *text, size_t bytes);
#endif
