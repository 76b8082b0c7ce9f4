/* write_out.h -- tensor files on their way to disk. All tensors are declared first, so that sizes and places are known, the
 * disk's room is taken at once, and a stopped run can go on. Everything is written into `<path>.partial/`; only commit moves
 * it to `path`, in one rename: what is at `path` is whole.
 *
 *   qe_out_create() -> declare... -> qe_out_begin() -> put..., mark... -> side... -> qe_out_commit() -> qe_out_destroy()
 *
 * The journal in the partial folder holds the identity of the run and, for each marked tensor, the SHA-256 of its bytes; a
 * resumed run takes a tensor as done only if its bytes still have that hash. */
#ifndef QE_FORMAT_WRITE_OUT_H
#define QE_FORMAT_WRITE_OUT_H
#include <stdbool.h>
#include <jansson.h>
#include <qengine/base.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef enum qe_out_kind { QE_OUT_SAFETENSORS = 1, QE_OUT_GGUF = 2 } qe_out_kind;

typedef struct qe_out_options {
    const char *path;               /* a folder that is not there yet; GGUF: a file */
    const char *identity;           /* of the run: model, recipe, calibration. Resuming another one is QE_E_MISMATCH */
    qe_out_kind kind;
    bool        resume;             /* go on in a partial folder where there is one */
    uint64_t    shard_bytes;        /* safetensors: at most so many in a file (a larger tensor has its own); 0: 4 GiB */
    uint64_t    note_bytes;         /* safetensors: room kept in the first header for qe_out_commit()'s notes */
} qe_out_options;

typedef struct qe_out qe_out;
struct qe_store;

/* QE_E_STATE: path is there, or a partial folder is and resume is not set. Nothing is on disk before begin. */
qe_status qe_out_create(const qe_out_options *options, qe_out **out, qe_error *err);
/* dims row-major. type: safetensors dtype, or the ggml name ("Q4_K"). *index counts from 0. */
qe_status qe_out_declare(qe_out *out, const char *name, const char *type, int32_t rank, const int64_t *dims,
                         uint64_t bytes, int64_t *index, qe_error *err);
/* GGUF: the encoded key-values, `count` of them; copied. */
qe_status qe_out_keys(qe_out *out, const void *bytes, size_t n_bytes, uint64_t count, qe_error *err);
qe_status qe_out_begin(qe_out *out, qe_error *err);
bool      qe_out_done(const qe_out *out, int64_t index);
uint64_t  qe_out_bytes(const qe_out *out, int64_t index);
uint64_t  qe_out_total(const qe_out *out);          /* bytes of all tensors */
qe_status qe_out_put(qe_out *out, int64_t index, uint64_t offset, const void *data, size_t bytes, qe_error *err);
qe_status qe_out_get(qe_out *out, int64_t index, uint64_t offset, void *data, size_t bytes, qe_error *err);
/* Every tensor put since the last mark is complete: on disk, and in the journal. */
qe_status qe_out_mark(qe_out *out, qe_error *err);
/* A small file beside the tensors, whole and on disk on return. Safetensors only. */
qe_status qe_out_side(qe_out *out, const char *name, const void *data, size_t bytes, qe_error *err);
/* Such a file as an earlier run left it; *data NULL: none. free(). */
qe_status qe_out_side_read(qe_out *out, const char *name, char **data, size_t *bytes, qe_error *err);
/* A file beside a GGUF file: its path with `suffix`. */
qe_status qe_out_beside(qe_out *out, const char *suffix, const void *data, size_t bytes, qe_error *err);
/* What is written so far, as a store: qe_store_open_partial(). */
qe_status qe_out_open(qe_out *out, const char *config_json, bool (*only)(void *ctx, const char *module), void *ctx,
                      struct qe_store **store, qe_error *err);
/* notes: string to string, for the first safetensors header; NULL: none. QE_E_STATE: a tensor is not done. */
qe_status qe_out_commit(qe_out *out, const json_t *notes, qe_error *err);
/* NULL is fine. A partial folder stays if something in it was marked, else it goes. */
void      qe_out_destroy(qe_out *out);

/* The container's part of begin and commit; write_safetensors.c, write_gguf.c. */
typedef struct qe_out_tensor {
    char       *name;
    const char *type;
    int32_t     rank, file;
    int64_t     dims[8];
    uint64_t    bytes, offset;      /* offset: in its file */
    bool        put, done;
} qe_out_tensor;
typedef struct qe_out_file {
    char    *path, *name;
    int      fd;
    uint64_t header_bytes, bytes;   /* header: all before the first tensor */
} qe_out_file;
struct qe_out {
    qe_out_options options;
    char          *path, *partial, *identity;
    qe_out_tensor *tensors;
    int64_t        count, room;
    qe_out_file   *files;
    int32_t        file_count;
    int            journal;
    uint64_t       journal_bytes;
    bool           begun, committed, marked;
    void          *keys;            /* GGUF */
    size_t         key_bytes;
    uint64_t       key_count;
};
/* Give every tensor its file and offset, every file its sizes; then write headers. notes NULL: the room is left blank. */
qe_status qe_out_place_safetensors(qe_out *out, qe_error *err);
qe_status qe_out_header_safetensors(qe_out *out, int32_t file, const json_t *notes, qe_error *err);
qe_status qe_out_place_gguf(qe_out *out, qe_error *err);
qe_status qe_out_header_gguf(qe_out *out, qe_error *err);
qe_status qe_out_nomem(const qe_out *out, qe_error *err);
qe_status qe_out_files(qe_out *out, int32_t count, qe_error *err);
#ifdef __cplusplus
}
#endif
#endif
