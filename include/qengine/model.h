/* qengine/model.h -- open a checkpoint, look inside, read its weights.
 *
 * A model is an opened and checked checkpoint: a list of tensors, typed metadata, hyper-parameters and a tokenizer. It
 * holds no weights: those are read, band by band, in the canonical form of <qengine/quant.h>, either by qe_engine
 * (which packs them for its device) or by qe_model_read. Files are untrusted: nothing is allocated from a declared
 * size before it was checked against the bytes that are there, and every refusal has its own status and a message with
 * file, tensor or key, byte offset, value found and limit broken.
 *
 *   a path to                   is read as
 *   x.gguf                      GGUF version 2 or 3, one file
 *   x.safetensors               safetensors; config.json and tokenizer.json are taken from the same folder
 *   a folder                    Hugging Face layout: config.json, and model.safetensors or model.safetensors.index.json
 *                               with its shards
 *   any other name              by its first bytes
 *
 * Threads: an opened model is immutable; everything here but close may be called from any number of threads. */
#ifndef QENGINE_MODEL_H
#define QENGINE_MODEL_H
#include <stddef.h>
#include <stdint.h>
#include <qengine/base.h>
#include <qengine/quant.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct qe_model qe_model;
struct qe_tokenizer;

enum {
    QE_MODEL_INSPECT      = 1, /* tensors and metadata only: no architecture needed, no tokenizer, no engine */
    QE_MODEL_NO_TOKENIZER = 2, /* the caller brings token ids */
    QE_MODEL_RELAXED_KEYS = 4, /* GGUF keys outside [a-z0-9._-]; still no NUL and valid UTF-8 */
    QE_MODEL_FOLLOW_LINKS = 8  /* shards of a folder may be symbolic links (hub caches are made of them) */
};

/* What a file may make us believe; 0 keeps the default. Over one is QE_E_LIMIT. */
typedef struct qe_model_limits {
    uint64_t header_bytes;     /* 100,000,000 safetensors (fixed by its specification), 512 MiB GGUF */
    uint64_t config_bytes;     /* 16 MiB: config.json; 64 MiB: shard index */
    uint64_t string_bytes;     /* 64 MiB: one metadata string */
    uint64_t tensors;          /* 1,000,000, over all shards */
    uint64_t keys;             /* 100,000 metadata keys */
    uint64_t array_items;      /* 16,777,216 items of one metadata array */
    uint64_t shards;           /* 10,000 */
    uint64_t layers;           /* 4,096 */
    uint64_t vocab;            /* 4,194,304 */
    uint64_t context;          /* 16,777,216 tokens */
} qe_model_limits;

typedef struct qe_model_options {
    uint32_t struct_size;              /* sizeof(qe_model_options) */
    uint32_t flags;                    /* QE_MODEL_* */
    const qe_model_limits *limits;     /* NULL: defaults; copied */
    const qe_log *log;                 /* one line about the model opened; NULL: silent. Used during the call */
} qe_model_options;

/* On failure *out is NULL. options may be NULL. A path is at most 4,095 bytes (QE_E_PATH). */
QE_API qe_status qe_model_open(const char *path, const qe_model_options *options, qe_model **out, qe_error *err);

/* The same from one source of bytes (GGUF, or a single safetensors file with `config_json`). The reader is owned by
 * the call from its start, and closed on failure too. config_json may be NULL for GGUF. */
QE_API qe_status qe_model_open_reader(qe_reader reader, const char *config_json, size_t config_bytes,
                                      const qe_model_options *options, qe_model **out, qe_error *err);
QE_API void      qe_model_close(qe_model *model);      /* NULL is fine; no engine may use it any more */

typedef struct qe_model_info {
    char     architecture[64];         /* as the file says: "gemma3", "LlamaForCausalLM" */
    char     family[16];               /* the recipe that runs it: "gemma3", "llama"; empty with QE_MODEL_INSPECT */
    char     format[16];               /* "gguf", "safetensors" */
    char     name[128];                /* general.name, or the folder; may be empty */
    int32_t  vocab, hidden, layers, heads, kv_heads, head_dim, ffn, window;
    int64_t  context_tokens;
    int64_t  tensors;
    uint64_t parameters;               /* elements of all tensors */
    uint64_t bytes;                    /* tensor data in the file */
    double   bits_per_weight;          /* true: scales, minimums and unquantized tensors counted */
} qe_model_info;
QE_API qe_status qe_model_get_info(const qe_model *model, qe_model_info *out, qe_error *err);

/* Tensors, in file order. dims are row-major: a linear weight is [n outputs, k inputs]. As a matrix a tensor has
 * `columns` = its last dimension and `rows` = all others. Pointers live as long as the model. */
enum { QE_MODEL_RANK = 8 };
typedef struct qe_tensor_info {
    const char *name;
    const char *type;                  /* the file's word for it: "Q4_K", "BF16" */
    int32_t     rank;
    int64_t     dims[QE_MODEL_RANK];
    int64_t     rows, columns;
    uint64_t    bytes;                 /* in the file */
    double      bits_per_weight;
    qe_quant    quant;                 /* canonical form; code NONE: this type is listed but cannot be read */
} qe_tensor_info;
QE_API int64_t   qe_model_tensor_count(const qe_model *model);
QE_API int64_t   qe_model_find_tensor(const qe_model *model, const char *name);          /* -1: none */
QE_API qe_status qe_model_get_tensor(const qe_model *model, int64_t index, qe_tensor_info *out, qe_error *err);

/* Rows [first_row, first_row + rows) into `band`, which qe_qtensor_place() prepared for (info.quant, rows, columns).
 * Row order is the file's. QE_E_VALUE names row and block of a NaN or infinity. */
QE_API qe_status qe_model_read(const qe_model *model, int64_t index, int64_t first_row, int64_t rows, qe_qtensor *band,
                               qe_error *err);

/* What the checkpoint says of a weight beside its values: quant, rows, k, act (mode FLOAT where it names none), hadamard,
 * facts, and order and col_scale, which live as long as the model. Arrays of values are NULL. */
QE_API qe_status qe_model_form(const qe_model *model, int64_t index, qe_qtensor *out, qe_error *err);

/* A string that a safetensors file carries in its own __metadata__ ("qengine.report"); NULL if there is none. */
QE_API const char *qe_model_note(const qe_model *model, const char *key);

/* Metadata: GGUF key-values, or config.json flattened with dots ("rope_scaling.factor"). Values as text, strings
 * unquoted, arrays cut; returns the length the whole text needs without the terminator, like snprintf. */
QE_API int64_t     qe_model_meta_count(const qe_model *model);
QE_API const char *qe_model_meta_key(const qe_model *model, int64_t index);              /* NULL: no such index */
QE_API size_t      qe_model_meta_text(const qe_model *model, int64_t index, char *text, size_t text_bytes);

/* Borrowed, lives as long as the model; NULL if the file has none or it was not asked for. See tokenizer.h. */
QE_API const struct qe_tokenizer *qe_model_tokenizer(const qe_model *model);

#ifdef __cplusplus
}
#endif
#endif
