// Internals of the emulator, shared by its source files.
#pragma once
#include "simt.h"

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#endif

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <vector>

// Hot loops get an AVX2/AVX-512 clone chosen at load time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define SIMT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIMT_CLONES
#endif

namespace simt {

typedef float V8 __attribute__((vector_size(32), aligned(4)));
typedef float V16 __attribute__((vector_size(64), aligned(4)));
struct Warp;
struct Runner;
struct RaceState;

struct CpAsync {
    uint32_t dst;
    const void *src;
    uint32_t bytes, src_bytes;
    Loc loc;
};

struct Thread {
    ThreadIds ids;
    void *sp = nullptr;
    char *stack = nullptr;
    unsigned lane = 0, index = 0; // index: linear in the block
    Warp *warp = nullptr;
    Block *block = nullptr;
    bool exited = false;
    const char *why = ""; // what it is blocked on, for deadlock reports
    uint64_t why_a = 0, why_b = 0;
    Loc why_loc;
    std::vector<CpAsync> cp_open;               // cp.async not yet committed
    std::deque<std::vector<CpAsync>> cp_groups; // committed, not yet waited for
    bool waited = false;     // griddepcontrol.wait
    uint64_t cluster_at = 0; // arrived at the cluster's barrier for this phase (from 1) and not waited yet
    void *asan_fake = nullptr;
};

struct Rendezvous {
    bool open = false;
    uint32_t mask = 0, arrived = 0;
    WarpFn fn = nullptr;
    const char *name = "";
    Loc loc;
    void *args[32];
};

struct Warp {
    Block *block = nullptr;
    unsigned index = 0, first_thread = 0;
    uint32_t exists = 0, runnable = 0, exited = 0;
    Rendezvous rdv[4];
};

struct NamedBarrier {
    unsigned arrived = 0, expected = 0;
    std::vector<Thread *> waiting;
    std::vector<uint32_t> clock;
};

struct MBarrier {
    bool live = false;
    uint32_t expected = 0, pending = 0, phase = 0;
    int64_t tx = 0;
    int slot = 0;                                       // async agent number for the race checker
    std::vector<std::pair<Thread *, uint32_t>> waiting; // thread, parity
    std::vector<uint32_t> acc, done;                    // vector clocks
};

struct Tma {
    enum Kind { Load, Store, Bulk } kind;
    CUtensorMap map; // a copy: the issuing thread may exit before it is used
    int c0, c1;
    uint32_t smem, mbar;
    Loc loc;
    Thread *issuer;
    const void *src = nullptr; // Bulk: one range
    uint32_t bytes = 0;
};

struct WgmmaOp {
    std::function<void(WgmmaOp &)> run;         // performs D = A*B (+ D)
    std::function<void()> check_a;              // the A registers must not change before the wait
    std::vector<std::pair<void *, size_t>> acc; // accumulator registers of the 128 threads
    std::vector<char> saved;
    bool holds = false;                               // saved is valid and the registers are poisoned
    std::vector<std::pair<uint32_t, uint32_t>> reads; // shared ranges in use until the wait
};

struct WarpGroup {
    unsigned arrived = 0;
    GroupFn fn = nullptr;
    const char *name = "";
    Loc loc;
    void *args[128];
    bool fenced = false;
    std::vector<std::shared_ptr<WgmmaOp>> open;
    std::deque<std::vector<std::shared_ptr<WgmmaOp>>> groups;
};

#ifdef SIMT_ASAN
constexpr size_t kStack = 512 * 1024;
#else
constexpr size_t kStack = 128 * 1024;
#endif
// The shared window starts at this 32-bit address (sm_90 reserves the first KiB).
constexpr uint32_t kSmemBase = 1024;

// Blocks that run together: their barrier (barrier.cluster), complete when every thread that has not exited arrived.
struct Cluster {
    std::vector<Block *> blocks;
    uint64_t phase = 0;
    unsigned arrived = 0;
    std::vector<Thread *> waiting;
    std::vector<uint32_t> acc, done; // vector clocks
};

struct Block {
    Runner *runner = nullptr;
    std::shared_ptr<Cluster> cluster;
    unsigned rank = 0; // in the cluster
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<WarpGroup> groups;
    NamedBarrier bars[16];
    std::map<uint32_t, MBarrier> mbars;
    std::deque<Tma> tma;                             // issued, not performed
    std::map<unsigned, std::vector<Tma>> store_open; // per thread: bulk stores not committed
    std::map<unsigned, std::deque<std::vector<Tma>>> store_groups;
    char *smem = nullptr;
    size_t smem_bytes = 0;
    unsigned live = 0;
    bool waited = false; // one of its threads
    std::shared_ptr<RaceState> race;
};

struct Runner {
    Options opt;
    const std::function<void()> *body = nullptr;
    std::vector<std::unique_ptr<Block>> blocks; // resident ones
    void *main_sp = nullptr;
    Thread *cur = nullptr;
    uint64_t rng = 1;
    bool early = false; // the launch may begin before those ahead have ended
    bool failed = false;
    std::string error;
    size_t next_warp = 0;
    uint32_t rand() {
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        return uint32_t(rng >> 16);
    }
    bool async_now() const { return opt.async == Async::Eager; }
};

extern thread_local Runner *t_runner;
inline Thread *self() {
    return t_runner->cur;
}
inline Block *self_block() {
    return t_runner->cur->block;
}

std::string where(Loc l);
std::string where_pc(unsigned offset_in_executable);
void wake(Thread *t);
Thread *pick(); // the next fiber to run, null when nothing is runnable
Thread *pick_lane(Warp &w);
void switch_to(Thread *next);    // null: back to the launch loop
void maybe_preempt();            // Order::Random gives way now and then
void garbage(void *p, size_t n); // what a register or shared byte holds while in flight
bool coin();
float h16(uint32_t bits, bool bfloat);
MBarrier &mbar_at(Block *b, uint32_t bar, Loc loc);
Block *cluster_block(uint32_t addr, uint32_t *local, Loc loc); // whose shared memory a shared::cluster address names
void cluster_check(Cluster &c);
void mbar_check(MBarrier &m);               // completes the phase when nothing is pending
uint32_t swizzle(uint32_t addr, int bytes); // XOR the 16-byte chunk number with the 128-byte row number
void block_here(const char *why, uint64_t a, uint64_t b, Loc loc); // until woken
bool complete_some_async(Block *b, bool all);                      // true when something was performed
void on_thread_exit(Thread *t);
bool near_global(const void *p); // in the arena of device_alloc()

// Race checker (simt_race.cc); every call is a no-op when b->race is null.
void race_begin(Block *b, bool enabled);
void race_keep(Block *b); // the block is done: its memory serves another
void race_access(Thread *t, uint32_t off, unsigned n, bool write, Loc loc, const char *what);
void race_release(Thread *t, std::vector<uint32_t> &into);
void race_acquire(Thread *t, const std::vector<uint32_t> &from);
void race_syncwarp(Warp *w);
void race_proxy_fence(Thread *t);
void race_remote_read(Thread *t, Block *b, uint32_t off, unsigned n, Loc loc, const char *what);
void race_block_ends(Block *b); // reads of other blocks are ordered before its end
void race_remote_arrive(Thread *t, Block *b, uint32_t off, Loc loc);
void race_async_write_begin(Thread *t, Block *b, uint32_t off, unsigned n, bool bulk, Loc loc, const char *what);
void race_cp_async_done(Thread *t, uint32_t off, unsigned n);
void race_tma_done(Block *b, MBarrier &m, uint32_t off, unsigned n);
void race_async_read_begin(Thread *t, uint32_t off, unsigned n, Loc loc, const char *what);
void race_async_read_end(Thread *t, uint32_t off, unsigned n, bool warpgroup); // wgmma: all four warps wait together

} // namespace simt
