/* base/pool.h -- threads that run one task together. Each claims the next index until none is left, the caller among them,
 * so which thread runs an index is open: results depend on index and count alone. Nothing is pinned unasked. Inside a task the floating-point state is round to nearest, no flush to
 * zero, whatever the caller's is (restored on return).
 *
 * Concurrent callers take turns. A task never calls qe_pool_run of its own pool. In a forked child the workers are gone:
 * there the caller runs every index itself. */
#ifndef QE_BASE_POOL_H
#define QE_BASE_POOL_H
#include <qengine/base.h>

typedef struct qe_pool qe_pool;
typedef void qe_pool_task(void *arg, int32_t index, int32_t count);

qe_status qe_pool_create(int32_t threads, qe_pool **out, qe_error *err);   /* 1..1024 */
void      qe_pool_destroy(qe_pool *pool);                                  /* joins; NULL is fine */
int32_t   qe_pool_threads(const qe_pool *pool);

/* Binds thread i to a CPU of its own, distinct cores first; the caller's thread 0 is left as it is. QE_E_ARGUMENT with
 * fewer CPUs than threads, QE_E_UNSUPPORTED where the system refuses; the pool works either way. */
qe_status qe_pool_pin(qe_pool *pool, qe_error *err);

/* Runs task(arg, 0..count-1, count), each index once; returns when all are done. Fits qk_queue.parallel, hence void *;
 * NULL runs on the caller's thread. */
void qe_pool_run(void *pool, qe_pool_task *task, void *arg, int32_t count);
#endif
