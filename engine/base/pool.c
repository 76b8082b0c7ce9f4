/* A static-partition pool. Workers wait for `generation` to move, the caller waits for `running` to reach zero; both
 * spin about as long as one decode step's gaps last, then sleep on a futex, so an idle engine burns no CPU. */
#define _GNU_SOURCE
#include "base/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/os.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
static unsigned float_state_enter(void) {
    unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return saved;
}
static void float_state_leave(unsigned saved) {
    _mm_setcsr(saved);
}
static void relax(void) {
    _mm_pause();
}
#else
static unsigned float_state_enter(void) {
    return 0;
}
static void float_state_leave(unsigned saved) {
    (void)saved;
}
static void relax(void) {
}
#endif

enum { MAX_THREADS = 1024, SPINS = 20000 };   /* about 0.3 ms where a pause takes 40 cycles */

typedef struct worker {
    qe_pool  *pool;
    pthread_t thread;
    int32_t   id;
} worker;

struct qe_pool {
    int32_t         threads, spins;
    pid_t           owner;
    pthread_mutex_t turn;                 /* held by the caller whose task runs */
    qe_pool_task   *task;                 /* these three: written before generation moves, read after */
    void           *arg;
    int32_t         count;
    bool            stop;
    _Alignas(64) atomic_uint generation;
    atomic_uint     sleepers;             /* workers that sleep or are about to */
    _Alignas(64) atomic_uint running;     /* workers not done with this generation */
    atomic_uint     caller_sleeps;
    worker          workers[];            /* threads - 1 */
};

static void futex_wait(atomic_uint *word, unsigned seen) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Until *word differs from `seen`. `sleepers` is raised before the last look, and whoever changes the word looks at
 * `sleepers` after it did (both sequentially consistent), so no wake-up is lost. */
static void wait_change(atomic_uint *word, unsigned seen, atomic_uint *sleepers, int32_t spins) {
    for (int32_t i = 0; i < spins; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
        relax();
    }
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(word) == seen) futex_wait(word, seen);
    atomic_fetch_sub(sleepers, 1);
}

static void run_share(qe_pool_task *task, void *arg, int32_t first, int32_t step, int32_t count) {
    unsigned saved = float_state_enter();
    for (int32_t i = first; i < count; i += step) task(arg, i, count);
    float_state_leave(saved);
}

static void *work(void *arg) {
    worker *self = arg;
    qe_pool *p = self->pool;
    for (unsigned seen = 0;; seen++) {
        wait_change(&p->generation, seen, &p->sleepers, p->spins);
        if (p->stop) return NULL;
        run_share(p->task, p->arg, self->id, p->threads, p->count);
        if (atomic_fetch_sub(&p->running, 1) == 1 && atomic_load(&p->caller_sleeps)) futex_wake(&p->running);
    }
}

static void start_generation(qe_pool *p) {
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->sleepers)) futex_wake(&p->generation);
}

void qe_pool_run(void *pool, qe_pool_task *task, void *arg, int32_t count) {
    qe_pool *p = pool;
    if (!p || p->threads == 1 || count <= 1 || p->owner != getpid()) {
        run_share(task, arg, 0, 1, count);
        return;
    }
    pthread_mutex_lock(&p->turn);
    p->task = task, p->arg = arg, p->count = count;
    atomic_store(&p->running, (unsigned)p->threads - 1);
    start_generation(p);
    run_share(task, arg, 0, p->threads, count);
    for (unsigned left; (left = atomic_load(&p->running)) != 0;)
        wait_change(&p->running, left, &p->caller_sleeps, p->spins);
    pthread_mutex_unlock(&p->turn);
}

/* Wakes and joins the first `started` workers. */
static void stop_workers(qe_pool *p, int32_t started) {
    p->stop = true;
    start_generation(p);
    for (int32_t i = 0; i < started; i++) pthread_join(p->workers[i].thread, NULL);
}

static qe_status start_workers(qe_pool *p, qe_error *err) {
    sigset_t all, before;
    int code = 0;
    int32_t started = 0;
    /* The host's signal handlers run on the host's threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; started < p->threads - 1; started++) {
        worker *w = &p->workers[started];
        w->pool = p;
        w->id = started + 1;
        code = pthread_create(&w->thread, NULL, work, w);
        if (code) break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!code) return QE_OK;
    stop_workers(p, started);
    return qe_error_set(err, QE_E_NOMEM, "cannot start thread %d of %d: error %d", started + 2, p->threads, code);
}

static void release(qe_pool *p) {
    pthread_mutex_destroy(&p->turn);
    qe_os_release(p);
}

qe_status qe_pool_create(int32_t threads, qe_pool **out, qe_error *err) {
    if (!out) return qe_error_set(err, QE_E_ARGUMENT, "out must not be NULL");
    if (threads < 1 || threads > MAX_THREADS)
        return qe_error_set(err, QE_E_ARGUMENT, "%d threads, expected 1 to %d", threads, MAX_THREADS);
    size_t bytes = sizeof(qe_pool) + (size_t)(threads - 1) * sizeof(worker);
    qe_pool *p = qe_os_alloc(bytes);
    if (!p) return qe_error_set(err, QE_E_NOMEM, "no memory for a pool of %d threads", threads);
    memset(p, 0, bytes);
    p->threads = threads;
    p->owner = getpid();
    /* With more threads than CPUs a spinning thread holds the CPU that the awaited one needs. */
    p->spins = threads <= qe_os_cpus() ? SPINS : 0;
    pthread_mutex_init(&p->turn, NULL);
    qe_status status = start_workers(p, err);
    if (status) {
        release(p);
        return status;
    }
    *out = p;
    return QE_OK;
}

void qe_pool_destroy(qe_pool *pool) {
    if (!pool) return;
    if (pool->owner == getpid()) stop_workers(pool, pool->threads - 1);
    release(pool);
}

typedef struct pin_job {
    const int32_t *cpus;
    atomic_int     refused;
} pin_job;

static void pin_task(void *arg, int32_t index, int32_t count) {
    pin_job *job = arg;
    (void)count;
    if (index > 0 && !qe_os_pin_thread(job->cpus[index])) atomic_fetch_add(&job->refused, 1);
}

qe_status qe_pool_pin(qe_pool *pool, qe_error *err) {
    int32_t cpus[MAX_THREADS];
    pin_job job = {.cpus = cpus};
    int32_t found = qe_os_cpu_list(cpus, MAX_THREADS);
    if (pool->threads > found)
        return qe_error_set(err, QE_E_ARGUMENT, "%d threads cannot be pinned to %d CPUs", pool->threads, found);
    qe_pool_run(pool, pin_task, &job, pool->threads);
    int refused = atomic_load(&job.refused);
    return refused ? qe_error_set(err, QE_E_UNSUPPORTED, "the system refused to pin %d threads", refused) : QE_OK;
}

int32_t qe_pool_threads(const qe_pool *pool) {
    return pool ? pool->threads : 1;
}
