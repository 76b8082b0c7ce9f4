/* gguf_text.h -- key-values of a GGUF header, one after the other. A failed allocation is remembered, not reported. */
#ifndef QE_FORMAT_GGUF_TEXT_H
#define QE_FORMAT_GGUF_TEXT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct qe_gguf_text {
    char    *data;              /* free() */
    size_t   bytes, room;
    uint64_t count;             /* keys */
    bool     failed;
} qe_gguf_text;

enum { QE_GGUF_I32 = 5, QE_GGUF_F32 = 6, QE_GGUF_STRING = 8 };
void qe_gguf_put(qe_gguf_text *text, const void *data, size_t bytes);
void qe_gguf_put_number(qe_gguf_text *text, uint64_t value, int bytes);             /* little-endian */
void qe_gguf_put_text(qe_gguf_text *text, const char *value, size_t bytes);         /* length and bytes */
void qe_gguf_key_u32(qe_gguf_text *text, const char *name, uint64_t value);
void qe_gguf_key_f32(qe_gguf_text *text, const char *name, float value);
void qe_gguf_key_bool(qe_gguf_text *text, const char *name, bool value);
void qe_gguf_key_string(qe_gguf_text *text, const char *name, const char *value, size_t bytes);
/* The keys of a GGUF store that begin with `prefix`, as they stand; general.alignment is left out. */
struct qe_store;
void qe_gguf_copy_keys(qe_gguf_text *text, const struct qe_store *store, const char *prefix);
/* A whole GGUF file without tensors: free(). NULL: out of memory. */
char *qe_gguf_keys_alone(const qe_gguf_text *keys, size_t *bytes);
void qe_gguf_key_array(qe_gguf_text *text, const char *name, uint32_t item_type, uint64_t count);  /* items follow */
#endif
