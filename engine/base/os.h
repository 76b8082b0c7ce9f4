/* base/os.h -- the floor under the library: all that differs between operating systems. One file implements it each. */
#ifndef QE_BASE_OS_H
#define QE_BASE_OS_H
#include <pthread.h>
#include <stdbool.h>
#include <qengine/base.h>

typedef struct qe_os_file {
    int      fd;
    uint64_t size;
    int64_t  mtime_s, mtime_ns;     /* as at open */
} qe_os_file;

/* Regular files only, without blocking on a FIFO. `where` names the file in errors. */
qe_status qe_os_open(const char *path, qe_os_file *out, qe_error *err);
qe_status qe_os_read(const qe_os_file *file, const char *where, uint64_t offset, void *dst, size_t bytes,
                     qe_error *err);
void      qe_os_close(qe_os_file *file);

typedef enum qe_os_kind { QE_OS_NOTHING, QE_OS_LINK, QE_OS_OTHER } qe_os_kind;
qe_os_kind qe_os_look(const char *path);     /* what the path names, itself: links are not followed */

uint64_t    qe_os_now_us(void);              /* monotonic */
int32_t     qe_os_cpus(void);                /* logical CPUs this process may use: affinity, then cgroup quota; >= 1 */
int32_t     qe_os_physical_cores(void);      /* of those, distinct cores */
int32_t     qe_os_cpu_list(int32_t *out, int32_t most);   /* CPUs this process may use: one of each core, then the rest */
bool        qe_os_pin_thread(pthread_t thread, int32_t cpu);   /* false when the system refuses */
const char *qe_os_env(const char *name);     /* NULL in set-user-id programs */

/* A decimal number as a double, '.' whatever the locale. False: beyond what a double holds. */
bool qe_os_real(const char *text, double *out);

/* 256-byte aligned host memory; NULL when there is none. Zero bytes give a block too. */
void *qe_os_alloc(size_t bytes);
void  qe_os_release(void *block);
#endif
