// Blocks and launch.
#include "simt_impl.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
// ---------------------------------------------------------------- memory of blocks
// Stacks and shared memory outlive a launch: thousands of launches map and touch them once. Each ends at a page that nobody
// may touch.
namespace {
class Kept {
  public:
    char *take(size_t bytes) { // of whole pages, between two that fault
        std::lock_guard l(mutex);
        std::vector<char *> &free = idle[bytes];
        if (free.empty()) {
            auto p = static_cast<char *>(mmap(nullptr, bytes + 2 * kPage, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
            mprotect(p, kPage, PROT_NONE);
            mprotect(p + kPage + bytes, kPage, PROT_NONE);
#ifdef SIMT_ASAN
            __asan_unpoison_memory_region(p + kPage, bytes); // memory that was here before may have been poisoned
#endif
            return p + kPage;
        }
        char *p = free.back();
        free.pop_back();
        return p;
    }
    void give(char *p, size_t bytes) {
        std::lock_guard l(mutex);
        idle[bytes].push_back(p);
    }

  private:
    static constexpr size_t kPage = 4096;
    std::mutex mutex;
    std::map<size_t, std::vector<char *>> idle;
};
Kept &kept() {
    static Kept k;
    return k;
}
} // namespace

// ---------------------------------------------------------------- blocks and launch
static void fiber_main() {
#ifdef SIMT_ASAN
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    Runner *r = t_runner;
    (*r->body)();
    Thread *t = r->cur;
    on_thread_exit(t);
    if (t->block->live == 1) {
        race_block_ends(t->block);
        if (r->early && !t->block->waited) fail(Loc::current(), "the block of an early kernel ends without griddepcontrol.wait");
    }
    Warp *w = t->warp;
    for (auto &x : w->rdv)
        if (x.open && (x.mask >> t->lane & 1))
            fail(x.loc, "lane %u exits while other lanes wait for it at %s", t->lane, x.name);
    t->exited = true;
    w->exited |= 1u << t->lane;
    w->runnable &= ~(1u << t->lane);
    t->block->live--;
    if (t->cluster_at > t->block->cluster->phase) t->block->cluster->arrived--;
    cluster_check(*t->block->cluster);
    Thread *n = t->block->live ? pick() : nullptr;
    switch_to(n);
    std::abort();
}

#ifdef SIMT_ASAN
constexpr size_t kLastFrames = 4096;
#endif
static void setup_block(Runner *r, Block *b, dim3 bid, dim3 bdim, dim3 gdim) {
    unsigned n = bdim.x * bdim.y * bdim.z;
    b->runner = r;
    b->live = n;
    b->waited = false;
    for (unsigned i = 0; i < 16; i++) b->bars[i] = {};
    b->mbars.clear();
    b->tma.clear();
    b->store_open.clear();
    b->store_groups.clear();
    b->groups.assign(n / 128, {});
    b->warps.assign((n + 31) / 32, {});
    if (b->threads.empty()) b->threads.resize(n);
    uint64_t *s = reinterpret_cast<uint64_t *>(b->smem); // poison: quiet NaNs, large odd integers
    for (size_t i = 0; i < (b->smem_bytes + 7) / 8; i++) s[i] = 0x7fd5a5b57fc3a5a5ull;
    for (unsigned i = 0; i < n; i++) {
        Thread &t = b->threads[i];
        if (!t.stack) t.stack = kept().take(kStack);
        // Tops that lie at one place of every page would compete for a few lines of the cache.
        char *end = t.stack + kStack - 64 - i % 61 * 64;
#ifdef SIMT_ASAN
        // What a fiber that came to its end leaves poisoned: the frames it never returned from.
        __asan_unpoison_memory_region(end - kLastFrames, size_t(t.stack + kStack - (end - kLastFrames)));
#endif
        t.ids = {{i % bdim.x, i / bdim.x % bdim.y, i / bdim.x / bdim.y}, {bid.x, bid.y, bid.z}, bdim, gdim};
        t.lane = i % 32;
        t.index = i;
        t.block = b;
        t.warp = &b->warps[i / 32];
        t.exited = t.waited = false;
        t.cluster_at = 0;
        t.why = "";
        t.cp_open.clear();
        t.cp_groups.clear();
        Warp &w = *t.warp;
        w.block = b;
        w.index = i / 32;
        w.first_thread = i / 32 * 32;
        w.exists |= 1u << t.lane;
        w.runnable |= 1u << t.lane;
        auto **top = reinterpret_cast<void **>(end); // 16-byte aligned at entry
        *--top = nullptr;
        *--top = reinterpret_cast<void *>(&fiber_main);
        for (int k = 0; k < 6; k++) *--top = nullptr;
        t.sp = top;
    }
}

// The blocks of one cluster, neighbours in the grid; ranks count x first, z last.
static void setup_cluster(Runner *r, std::vector<std::unique_ptr<Block>> &pool, uint64_t group, dim3 size, dim3 bdim,
                          dim3 gdim) {
    auto cluster = std::make_shared<Cluster>();
    const unsigned along_x = gdim.x / size.x, along_y = gdim.y / size.y;
    const dim3 first(unsigned(group % along_x) * size.x, unsigned(group / along_x % along_y) * size.y,
                     unsigned(group / along_x / along_y) * size.z);
    for (unsigned rank = 0; rank < size.x * size.y * size.z; rank++) {
        auto b = std::move(pool.back());
        pool.pop_back();
        b->cluster = cluster;
        b->rank = rank;
        cluster->blocks.push_back(b.get());
        setup_block(r, b.get(),
                    dim3(first.x + rank % size.x, first.y + rank / size.x % size.y, first.z + rank / size.x / size.y),
                    bdim, gdim);
        r->blocks.push_back(std::move(b));
    }
}

static std::string deadlock_report(Runner *r) {
    std::string s = "deadlock: no thread can run and nothing is in flight;";
    std::map<std::string, unsigned> kinds;
    for (auto &b : r->blocks)
        for (Thread &t : b->threads)
            if (!t.exited) {
                char k[200];
                std::snprintf(k, sizeof k, "%s(%llu, %llu) at %s [warp %u]", t.why, (unsigned long long)t.why_a,
                              (unsigned long long)t.why_b, where(t.why_loc).c_str(), t.index / 32);
                kinds[k]++;
            }
    int shown = 0;
    for (auto &[k, n] : kinds)
        if (shown++ < 8) s += " " + std::to_string(n) + " in " + k + ";";
    for (auto &b : r->blocks)
        for (auto &[a, m] : b->mbars)
            if (m.live && !m.waiting.empty())
                s += " mbarrier@" + std::to_string(a - kSmemBase) + ": phase " + std::to_string(m.phase) +
                     ", pending " + std::to_string(m.pending) + ", tx " + std::to_string(m.tx) + ";";
    return s;
}

static void run_resident(Runner *r) {
    for (;;) {
        unsigned live = 0;
        for (auto &b : r->blocks) live += b->live;
        for (auto &b : r->blocks)
            if (!b->live && !b->tma.empty()) {
                r->failed = true;
                r->error = where(b->tma.front().loc) + ": the block ended while this copy to it is in flight";
                return;
            }
        if (!live) return;
        r->cur = nullptr;
        Thread *n = pick();
        if (!n) {
            bool did = false;
            for (auto &b : r->blocks) did |= complete_some_async(b.get(), false);
            if (!did) {
                r->failed = true;
                r->error = deadlock_report(r);
                return;
            }
            continue;
        }
        switch_to(n);
        r->cur = nullptr;
        if (r->failed) return;
    }
}

Result launch_fn(const std::function<void()> &body, dim3 grid, dim3 block, size_t smem_bytes, const Options &opt,
                 dim3 cluster_of, bool early) {
    const unsigned cluster = cluster_of.x * cluster_of.y * cluster_of.z;
    const uint64_t nblocks = uint64_t(grid.x) * grid.y * grid.z;
    const unsigned resident = (unsigned(opt.resident) + cluster - 1) / (cluster ? cluster : 1); // clusters
    const unsigned nt = block.x * block.y * block.z;
    if (nt == 0 || nt > 1024 || nblocks == 0) return {false, "bad launch shape"};
    if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return {false, "more blocks than a grid holds"};
    if (cluster == 0 || cluster > 8) return {false, "a cluster of more than 8 blocks, or of none"};
    if (grid.x % cluster_of.x || grid.y % cluster_of.y || grid.z % cluster_of.z)
        return {false, "the grid is no multiple of the cluster"};
    if (smem_bytes > 227 * 1024) return {false, "more than 227 KiB of shared memory"};
    std::atomic<uint64_t> next{0};
    std::mutex m;
    Result res;
    auto worker = [&](int id) {
        Runner r;
        r.opt = opt;
        r.body = &body;
        r.early = early;
        r.rng = (opt.seed + uint64_t(id)) * 0x9e3779b97f4a7c15ull | 1;
        t_runner = &r;
        size_t bytes = (smem_bytes + 4095) / 4096 * 4096 + 4096;
        std::vector<std::unique_ptr<Block>> pool;
        for (unsigned i = 0; i < resident * cluster; i++) {
            auto b = std::make_unique<Block>();
            b->smem = kept().take(bytes);
            b->smem_bytes = smem_bytes;
            pool.push_back(std::move(b));
        }
        while (!r.failed) {
            for (unsigned i = 0; i < resident; i++) {
                const uint64_t group = next.fetch_add(1);
                if (group >= nblocks / cluster) break;
                setup_cluster(&r, pool, group, cluster_of, block, grid);
            }
            for (auto &b : r.blocks) race_begin(b.get(), opt.racecheck); // knows the whole cluster
            if (r.blocks.empty()) break;
            run_resident(&r);
            for (auto &b : r.blocks) pool.push_back(std::move(b));
            r.blocks.clear();
        }
        if (r.failed) {
            std::lock_guard l(m);
            if (res.ok) res = {false, r.error};
            next = nblocks;
        }
        for (auto &b : pool) {
            race_keep(b.get());
            for (Thread &t : b->threads)
                if (t.stack) {
#ifdef SIMT_ASAN
                    if (r.failed) __asan_unpoison_memory_region(t.stack, kStack); // fibers that stopped anywhere
#endif
                    kept().give(t.stack, kStack);
                }
            kept().give(b->smem, bytes);
        }
        t_runner = nullptr;
    };
    if (opt.os_threads <= 1)
        worker(0);
    else {
        std::vector<std::thread> ts;
        for (int i = 0; i < opt.os_threads; i++) ts.emplace_back(worker, i);
        for (auto &t : ts) t.join();
    }
    return res;
}

} // namespace simt
