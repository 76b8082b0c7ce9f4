/* qengine/base.h -- status codes, errors, memory, log and the one way bytes enter the library.
 *
 * Every call that can fail returns a qe_status and takes a `qe_error *err` last (caller-owned, may be NULL). The
 * library never prints, exits, aborts or installs signal handlers. Threads: everything here is thread-safe as long as
 * two threads do not share one qe_error or one reader that is being closed. */
#ifndef QENGINE_BASE_H
#define QENGINE_BASE_H
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define QE_API __attribute__((visibility("default")))
#define QE_PRINTF(fmt_at, args_at) __attribute__((format(printf, fmt_at, args_at)))
#else
#define QE_API
#define QE_PRINTF(fmt_at, args_at)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, value, text). Grouped with gaps, never renumbered: values are ABI. */
#define QE_STATUS_LIST(X)                                                                     \
    X(QE_OK, 0, "ok")                                                                         \
    /* the caller */                                                                          \
    X(QE_E_ARGUMENT, 1, "bad argument")                                                       \
    X(QE_E_STATE, 2, "not allowed in this state")                                             \
    X(QE_E_CAPACITY, 3, "capacity reached")                                                   \
    X(QE_E_CANCELLED, 4, "cancelled")                                                         \
    X(QE_E_DEADLINE, 5, "deadline passed")                                                    \
    X(QE_E_UNSUPPORTED, 6, "unsupported")                                                     \
    /* the machine */                                                                         \
    X(QE_E_NOMEM, 20, "out of memory")                                                        \
    X(QE_E_IO, 21, "input/output error")                                                      \
    X(QE_E_DEVICE, 22, "device error")                                                        \
    X(QE_E_DEVICE_LOST, 23, "device lost")                                                    \
    X(QE_E_CHANGED, 24, "file changed while in use")                                          \
    /* the shape of a file */                                                                 \
    X(QE_E_TRUNCATED, 40, "truncated")                                                        \
    X(QE_E_MAGIC, 41, "not a known file kind")                                                \
    X(QE_E_VERSION, 42, "unknown version")                                                    \
    X(QE_E_ENDIAN, 43, "wrong byte order")                                                    \
    X(QE_E_OFFSET, 44, "bad offset")                                                          \
    X(QE_E_OVERLAP, 45, "overlap")                                                            \
    X(QE_E_HOLE, 46, "hole")                                                                  \
    X(QE_E_ALIGN, 47, "bad alignment")                                                        \
    X(QE_E_JSON, 48, "bad JSON")                                                              \
    X(QE_E_UTF8, 49, "bad UTF-8")                                                             \
    X(QE_E_DEPTH, 50, "nested too deeply")                                                    \
    X(QE_E_PATH, 51, "bad path")                                                              \
    X(QE_E_REGEX, 52, "bad pattern")                                                          \
    /* what is in it */                                                                       \
    X(QE_E_LIMIT, 60, "over a limit")                                                         \
    X(QE_E_OVERFLOW, 61, "arithmetic overflow")                                               \
    X(QE_E_RANGE, 62, "out of range")                                                         \
    X(QE_E_TYPE, 63, "wrong type")                                                            \
    X(QE_E_DUPLICATE, 64, "duplicate")                                                        \
    X(QE_E_MISSING, 65, "missing")                                                            \
    X(QE_E_SHAPE, 66, "wrong shape")                                                          \
    X(QE_E_VALUE, 67, "unusable value")                                                       \
    X(QE_E_MISMATCH, 68, "parts disagree")
typedef enum qe_status {
#define QE_X(name, value, text) name = value,
    QE_STATUS_LIST(QE_X)
#undef QE_X
    QE_STATUS_FORCE_INT32 = 0x7fffffff
} qe_status;

/* What went wrong, for a person. `message` is one line holding file, tensor or field, expected and found; text taken
 * from a file is escaped and cut. `offset` is the byte offset in the file, -1 if there is none. */
typedef struct qe_error {
    int32_t status, reserved;
    int64_t offset;
    char    where[128];      /* file name, or the call's object */
    char    message[384];
} qe_error;

QE_API const char *qe_status_name(qe_status status);   /* "QE_E_RANGE"; "?" for unknown values */
QE_API const char *qe_status_text(qe_status status);   /* "out of range" */
QE_API const char *qe_version(void);                   /* "0.1.0" */

/* Fill *err (if not NULL) and return `status`; offset -1, where empty. For custom readers and callbacks as well. */
QE_API qe_status qe_error_set(qe_error *err, qe_status status, const char *format, ...) QE_PRINTF(3, 4);
QE_API qe_status qe_error_at(qe_error *err, qe_status status, const char *where, int64_t offset, const char *format,
                             ...) QE_PRINTF(5, 6);
/* Copy at most out_bytes - 1 of text with control, quote and non-UTF-8 bytes escaped; for messages. Returns out. */
QE_API char *qe_escape(const char *text, size_t text_bytes, char *out, size_t out_bytes);

#define QE_TRY(call)                               \
    do {                                           \
        qe_status qe_try_status = (call);          \
        if (qe_try_status) return qe_try_status;   \
    } while (0)

/* Memory. Large blocks (weights, KV cache, workspaces) come from here; small bookkeeping from malloc. Returned
 * blocks are 256-byte aligned. `stream` is a cudaStream_t for QE_WHERE_DEVICE, else NULL. Must be thread-safe. */
typedef enum qe_where { QE_WHERE_HOST = 0, QE_WHERE_PINNED = 1, QE_WHERE_DEVICE = 2 } qe_where;
typedef struct qe_allocator {
    void *ctx;
    void *(*alloc)(void *ctx, size_t bytes, qe_where where, void *stream);          /* NULL: out of memory */
    void  (*release)(void *ctx, void *block, size_t bytes, qe_where where, void *stream);
} qe_allocator;

typedef enum qe_log_level { QE_LOG_WARNING = 1, QE_LOG_INFO = 2, QE_LOG_DEBUG = 3 } qe_log_level;
typedef struct qe_log {
    void *ctx;
    void (*write)(void *ctx, qe_log_level level, const char *line);   /* may be called from any thread */
} qe_log;

/* A source of bytes. read_at fills exactly `bytes` or fails (QE_E_IO, QE_E_TRUNCATED, QE_E_CHANGED); it must be
 * thread-safe. Whoever is given a qe_reader by value owns it and calls close once (close may be NULL). */
typedef struct qe_reader {
    void       *ctx;
    uint64_t    size;
    const char *name;      /* for messages; lives as long as the reader */
    qe_status (*read_at)(void *ctx, uint64_t offset, void *dst, size_t bytes, qe_error *err);
    void      (*close)(void *ctx);
} qe_reader;

/* Regular files only (a folder, FIFO or device is QE_E_IO, without blocking). Plain positional reads; QE_E_CHANGED if
 * size or modification time differ from those at open. */
QE_API qe_status qe_reader_open(const char *path, qe_reader *out, qe_error *err);
QE_API qe_status qe_reader_memory(const void *data, size_t bytes, const char *name, qe_reader *out, qe_error *err);
QE_API void      qe_reader_close(qe_reader *reader);      /* NULL and closed readers are fine */

#ifdef __cplusplus
}
#endif
#endif
