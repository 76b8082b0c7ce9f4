/* Threads that claim a task's indices one by one. Workers wait for `generation` to move, the caller waits for `running` to
 * reach zero; both spin about as long as one decode step's gaps last, then sleep on a futex, so an idle engine burns no
 * CPU. A worker that the system holds up, or that has not woken yet, delays the index it has claimed and no other: the
 * caller takes the rest, and does not wait for workers that claimed nothing. */
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

enum { MAX_THREADS = 1024, SPIN_US = 300, LOOKS = 32 };   /* a pause takes 10 to 150 cycles, so time is asked for, now and then */

struct qe_pool {
    int32_t         threads, spin_us;
    pid_t           owner;
    pthread_mutex_t turn;                 /* held by the caller whose task runs */
    qe_pool_task   *task;                 /* these three: written before `left`, read by who has claimed an index */
    void           *arg;
    int32_t         count;
    atomic_bool     stop;
    _Alignas(64) atomic_uint generation;
    atomic_uint     sleepers;             /* 1: a worker sleeps or is about to */
    _Alignas(64) atomic_int left;         /* indices nobody has claimed */
    _Alignas(64) atomic_uint running;     /* indices not done */
    atomic_uint     caller_sleeps;
    pthread_t       workers[];            /* threads - 1 */
};

static void futex_wait(atomic_uint *word, unsigned seen) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Until *word differs from `seen`. `sleepers` is raised before the last look, and whoever changes the word looks at
 * `sleepers` after it did (both sequentially consistent), so no wake-up is lost. The waker lowers it: a thread that is
 * awake but has no CPU yet is not woken again by each task that goes by. Threads sleep on `sleepers`, not on the word: a waker
 * that was held up since an earlier task lowers it as well, and then wakes them to look again. */
static void wait_change(atomic_uint *word, unsigned seen, atomic_uint *sleepers, int32_t spin_us) {
    uint64_t end = spin_us ? qe_os_now_us() + (uint64_t)spin_us : 0;
    do {
        for (int i = 0; i < LOOKS; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
            relax();
        }
    } while (end && qe_os_now_us() < end);
    for (;;) {
        atomic_store(sleepers, 1);
        if (atomic_load(word) != seen) return;
        futex_wait(sleepers, 1);
    }
}

static void wake(atomic_uint *sleepers) {
    if (atomic_load(sleepers) && atomic_exchange(sleepers, 0)) futex_wake(sleepers);
}

static void run_alone(qe_pool_task *task, void *arg, int32_t count) {
    unsigned saved = float_state_enter();
    for (int32_t i = 0; i < count; i++) task(arg, i, count);
    float_state_leave(saved);
}

/* Runs indices until all are claimed. Whoever holds a claim keeps `running` above zero, and with it the task in place. */
static void run_claims(qe_pool *p) {
    unsigned saved = float_state_enter();
    for (int left = atomic_load_explicit(&p->left, memory_order_relaxed); left > 0;) {
        if (!atomic_compare_exchange_weak_explicit(&p->left, &left, left - 1, memory_order_acq_rel, memory_order_relaxed))
            continue;
        p->task(p->arg, p->count - left, p->count);
        if (atomic_fetch_sub(&p->running, 1) == 1) wake(&p->caller_sleeps);
        left = atomic_load_explicit(&p->left, memory_order_relaxed);
    }
    float_state_leave(saved);
}

static void *work(void *arg) {
    qe_pool *p = arg;
    for (unsigned seen = 0;;) {
        wait_change(&p->generation, seen, &p->sleepers, p->spin_us);
        seen = atomic_load(&p->generation);      /* one that moves later is met by the next wait */
        if (atomic_load(&p->stop)) return NULL;
        run_claims(p);
    }
}

static void start_generation(qe_pool *p) {
    atomic_fetch_add(&p->generation, 1);
    wake(&p->sleepers);
}

void qe_pool_run(void *pool, qe_pool_task *task, void *arg, int32_t count) {
    qe_pool *p = pool;
    if (!p || p->threads == 1 || count <= 1 || p->owner != getpid()) {
        run_alone(task, arg, count);
        return;
    }
    pthread_mutex_lock(&p->turn);
    p->task = task, p->arg = arg, p->count = count;
    atomic_store(&p->running, (unsigned)count);
    atomic_store(&p->left, count);
    start_generation(p);
    run_claims(p);
    for (unsigned running; (running = atomic_load(&p->running)) != 0;)
        wait_change(&p->running, running, &p->caller_sleeps, p->spin_us);
    pthread_mutex_unlock(&p->turn);
}

/* Wakes and joins the first `started` workers. */
static void stop_workers(qe_pool *p, int32_t started) {
    atomic_store(&p->stop, true);
    start_generation(p);
    for (int32_t i = 0; i < started; i++) pthread_join(p->workers[i], NULL);
}

static qe_status start_workers(qe_pool *p, qe_error *err) {
    sigset_t all, before;
    int code = 0;
    int32_t started = 0;
    /* The host's signal handlers run on the host's threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; started < p->threads - 1; started++) {
        code = pthread_create(&p->workers[started], NULL, work, p);
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
    size_t bytes = sizeof(qe_pool) + (size_t)(threads - 1) * sizeof(pthread_t);
    qe_pool *p = qe_os_alloc(bytes);
    if (!p) return qe_error_set(err, QE_E_NOMEM, "no memory for a pool of %d threads", threads);
    memset(p, 0, bytes);
    p->threads = threads;
    p->owner = getpid();
    /* With more threads than CPUs a spinning thread holds the CPU that the awaited one needs. */
    p->spin_us = threads <= qe_os_cpus() ? SPIN_US : 0;
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

qe_status qe_pool_pin(qe_pool *pool, qe_error *err) {
    int32_t cpus[MAX_THREADS], refused = 0;
    int32_t found = qe_os_cpu_list(cpus, MAX_THREADS);
    if (pool->threads > found)
        return qe_error_set(err, QE_E_ARGUMENT, "%d threads cannot be pinned to %d CPUs", pool->threads, found);
    for (int32_t i = 1; i < pool->threads; i++) refused += !qe_os_pin_thread(pool->workers[i - 1], cpus[i]);
    return refused ? qe_error_set(err, QE_E_UNSUPPORTED, "the system refused to pin %d threads", refused) : QE_OK;
}

int32_t qe_pool_threads(const qe_pool *pool) {
    return pool ? pool->threads : 1;
}
