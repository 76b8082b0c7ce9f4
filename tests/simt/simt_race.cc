// Shared-memory race checker: happens-before by vector clocks, at warp granularity.
//
// Every shared byte remembers its last writer (agent, clock, lane) and the last read of each warp.
// Agents are the block's warps and, after them, the asynchronous side of each mbarrier (TMA).
// Kernel loads and stores reach it through the compiler's -fsanitize=thread instrumentation: the
// kernel file is compiled with that flag, and the __tsan_* callbacks below take the place of
// libtsan (which is not linked).  The same callbacks check global accesses against the bounds of
// device_alloc().  Builds without the flag carry no hooks, and the checker stays off.
#include "simt_impl.h"

#include <unistd.h>

#include <cstdio>

extern "C" char __executable_start;

namespace simt {

// Loads and stores seen by the hooks carry a return address, kept in a Loc with a null file; the
// line is looked up only when something is reported.
static Loc pc_loc(void *pc) {
    return Loc{nullptr, unsigned(static_cast<char *>(pc) - &__executable_start)};
}
std::string where_pc(unsigned off) {
    char cmd[160], out[256] = "";
    std::snprintf(cmd, sizeof cmd, "addr2line -e /proc/%d/exe 0x%x 2>/dev/null", int(getpid()), off - 1);
    if (FILE *f = popen(cmd, "r")) {
        if (!std::fgets(out, sizeof out, f)) out[0] = 0;
        pclose(f);
    }
    char *slash = std::strrchr(out, '/');
    std::string r = slash ? slash + 1 : out;
    while (!r.empty() && (r.back() == '\n')) r.pop_back();
    return r.empty() ? "pc+" + std::to_string(off) : r;
}

static bool g_hooks = false; // some kernel object was built with the hooks

struct Byte {
    uint32_t w_clock = 0; // writer's clock; 0: never written
    uint32_t w_epoch = 0; // its warp's syncwarp count
    uint32_t r_epoch = 0;
    uint32_t readers = 0; // warps that read it since the last write, which is ordered after all reads before it
    uint16_t w_agent = 0;
    uint8_t w_lane = 0;
    uint8_t r_lane = 0;
    bool generic = true;     // written by ordinary stores (not TMA)
    uint8_t in_flight = 0;   // 1: cp.async, 2: TMA load not complete
    uint8_t async_reads = 0; // wgmma / TMA stores that may still read it
};

struct PeerRead { // of this block's bytes, by a warp of another block
    uint32_t off, n;
    unsigned agent;
    uint32_t clock;
    Loc loc;
};

struct RaceState {
    unsigned warps = 0, first = 0, agents = 0; // agents first .. first + warps + 64 of the cluster's are this block's
    std::vector<Byte> bytes;
    std::vector<Loc> written_at;                 // per byte
    std::vector<uint32_t> reads;                 // [warp][byte]: clock of the warp's last read
    std::vector<char> dirty;                     // pieces of kPiece bytes with a write; reads come after writes
    std::vector<std::vector<uint32_t>> vc;       // per warp
    std::vector<std::vector<uint32_t>> fence_vc; // per warp: what its last proxy fence had seen
    std::vector<uint32_t> epoch, slot_clock;
    std::vector<PeerRead> peer_reads;

    static constexpr size_t kPiece = 256;
    uint32_t *reads_of(unsigned warp) { return &reads[warp * bytes.size()]; }
    void mark(uint32_t off, unsigned n) {
        for (size_t i = off / kPiece; i <= (off + n - 1) / kPiece; i++) dirty[i] = 1;
    }
    void clean() {
        for (size_t i = 0; i < dirty.size(); i++) {
            if (!dirty[i]) continue;
            const size_t from = i * kPiece, to = std::min(from + kPiece, bytes.size());
            std::fill(&bytes[from], &bytes[0] + to, Byte());
            for (unsigned w = 0; w < warps; w++) std::fill(reads_of(w) + from, reads_of(w) + to, 0);
            dirty[i] = 0;
        }
        peer_reads.clear();
    }
};
// States of blocks that are done: most launches need the sizes of the one before.
static thread_local std::vector<std::shared_ptr<RaceState>> t_spare;
static std::shared_ptr<RaceState> state_for(size_t bytes, unsigned warps) {
    for (auto &spare : t_spare)
        if (spare->bytes.size() == bytes && spare->warps == warps) {
            auto s = std::move(spare);
            spare = std::move(t_spare.back());
            t_spare.pop_back();
            s->clean();
            return s;
        }
    auto s = std::make_shared<RaceState>();
    s->warps = warps;
    s->bytes.resize(bytes);
    s->written_at.resize(bytes);
    s->reads.assign(bytes * warps, 0);
    s->dirty.assign((bytes + RaceState::kPiece - 1) / RaceState::kPiece, 0);
    return s;
}
void race_keep(Block *b) {
    if (!b->race) return;
    if (t_spare.size() >= 8) t_spare.erase(t_spare.begin()); // as many as a cluster has blocks
    t_spare.push_back(std::move(b->race));
    b->race.reset();
}

void race_begin(Block *b, bool enabled) {
    race_keep(b);
    if (!enabled || !g_hooks || !b->smem_bytes) return;
    auto s = state_for(b->smem_bytes, unsigned(b->warps.size()));
    s->first = b->rank * (s->warps + 64);
    s->agents = unsigned(b->cluster->blocks.size()) * (s->warps + 64);
    s->vc.assign(s->warps, std::vector<uint32_t>(s->agents, 0));
    s->fence_vc = s->vc;
    for (unsigned w = 0; w < s->warps; w++) s->vc[w][s->first + w] = 1;
    s->epoch.assign(s->warps, 1);
    s->slot_clock.assign(64, 1);
    b->race = s;
}

SIMT_CLONES static void join(uint32_t *a, const uint32_t *b, size_t n) {
    typedef uint32_t U8 __attribute__((vector_size(32), aligned(4)));
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const U8 x = *reinterpret_cast<const U8 *>(a + i), y = *reinterpret_cast<const U8 *>(b + i);
        *reinterpret_cast<U8 *>(a + i) = x > y ? x : y;
    }
    for (; i < n; i++) a[i] = std::max(a[i], b[i]);
}
static void join(std::vector<uint32_t> &a, const std::vector<uint32_t> &b) {
    if (a.size() < b.size()) a.resize(b.size(), 0);
    join(a.data(), b.data(), b.size());
}
void race_release(Thread *t, std::vector<uint32_t> &into) {
    RaceState *s = t->block->race.get();
    if (!s) return;
    auto &v = s->vc[t->warp->index];
    join(into, v);
    v[s->first + t->warp->index]++;
}
void race_acquire(Thread *t, const std::vector<uint32_t> &from) {
    if (RaceState *s = t->block->race.get()) join(s->vc[t->warp->index], from);
}
void race_syncwarp(Warp *w) {
    if (RaceState *s = w->block->race.get()) s->epoch[w->index]++;
}
void race_proxy_fence(Thread *t) {
    if (RaceState *s = t->block->race.get()) join(s->fence_vc[t->warp->index], s->vc[t->warp->index]);
}

static const char *agent_name(const RaceState *s, unsigned a, char *buf) {
    const unsigned per_block = s->warps + 64, local = a % per_block;
    if (local < s->warps)
        std::snprintf(buf, 32, "warp %u", local);
    else
        std::snprintf(buf, 32, "TMA (mbarrier %u)", local - s->warps);
    return buf;
}

static void check_peer_reads(const RaceState *s, const std::vector<uint32_t> &vc, uint32_t off, unsigned n, Loc loc,
                             const char *what) {
    char nm[32];
    const unsigned per_block = s->warps + 64;
    for (const PeerRead &r : s->peer_reads)
        if (r.off < off + n && off < r.off + r.n && vc[r.agent] < r.clock)
            fail(loc, "race: %s of shared byte %u is not ordered after its read by %s of block %u (%s)", what,
                 std::max(off, r.off), agent_name(s, r.agent, nm), r.agent / per_block, where(r.loc).c_str());
}

// proxy: the access goes through the async proxy (wgmma operand, TMA)
// s: the block whose bytes they are, perhaps another of the thread's cluster
static void check(Thread *t, RaceState *s, uint32_t off, unsigned n, bool write, bool proxy, Loc loc, const char *what) {
    RaceState *own = t->block->race.get();
    unsigned w = t->warp->index, me = own->first + w;
    auto &vc = own->vc[w];
    char nm[32];
    if (write && !s->peer_reads.empty()) check_peer_reads(s, vc, off, n, loc, what);
    for (uint32_t i = off; i < off + n; i++) {
        const Byte &b = s->bytes[i];
        if (b.in_flight == 1)
            fail(loc, "race: %s of shared byte %u while a cp.async (%s) to it is in flight", what, i,
                 where(s->written_at[i]).c_str());
        if (b.in_flight == 2)
            fail(loc, "race: %s of shared byte %u while a TMA load (%s) to it is in flight", what, i,
                 where(s->written_at[i]).c_str());
        if (!write && !b.w_clock) fail(loc, "%s of shared byte %u, which nothing has written", what, i);
        if (b.w_clock && vc[b.w_agent] < b.w_clock)
            fail(loc, "race: %s of shared byte %u is not ordered after its write by %s (%s)", what, i,
                 agent_name(s, b.w_agent, nm), where(s->written_at[i]).c_str());
        if (b.w_clock && b.w_agent == me && b.w_lane != t->lane && b.w_epoch == own->epoch[w] && b.generic && !proxy)
            fail(loc, "race: %s of shared byte %u, written by lane %u of the same warp (%s) without __syncwarp", what,
                 i, b.w_lane, where(s->written_at[i]).c_str());
        if (proxy && b.generic && b.w_clock && t->block->runner->opt.check_proxy) {
            const unsigned writer = b.w_agent - s->first;
            bool writer_fenced = writer < s->warps && s->fence_vc[writer][b.w_agent] >= b.w_clock;
            bool reader_fenced = own->fence_vc[w][b.w_agent] >= b.w_clock;
            if (!writer_fenced && !reader_fenced)
                fail(loc, "missing fence.proxy.async: %s of shared byte %u stored by %s (%s)", what, i,
                     agent_name(s, b.w_agent, nm), where(s->written_at[i]).c_str());
        }
        if (write) {
            if (b.async_reads)
                fail(loc, "race: %s of shared byte %u while wgmma or a TMA store may still read it", what, i);
            for (uint32_t left = b.readers; left; left &= left - 1) {
                const unsigned o = unsigned(__builtin_ctz(left));
                if (vc[s->first + o] < s->reads_of(o)[i])
                    fail(loc, "race: %s of shared byte %u is not ordered after its read by warp %u", what, i, o);
            }
            if (s == own && b.r_epoch == s->epoch[w] && b.r_lane != t->lane && !proxy && s->reads_of(w)[i] == vc[me])
                fail(loc, "race: %s of shared byte %u, read by lane %u of the same warp, without __syncwarp", what, i,
                     b.r_lane);
        }
    }
}
static void set_writer(Byte &b, unsigned agent, uint32_t clock, unsigned lane, uint32_t epoch, bool generic) {
    b.w_agent = uint16_t(agent);
    b.w_clock = clock;
    b.w_lane = uint8_t(lane);
    b.w_epoch = epoch;
    b.generic = generic;
    b.in_flight = 0;
    b.readers = 0;
}
void race_access(Thread *t, uint32_t off, unsigned n, bool write, Loc loc, const char *what) {
    RaceState *s = t->block->race.get();
    if (!s) return;
    check(t, s, off, n, write, false, loc, what);
    const unsigned w = t->warp->index;
    const uint32_t clock = s->vc[w][s->first + w], epoch = s->epoch[w];
    if (write) {
        s->mark(off, n);
        for (uint32_t i = off; i < off + n; i++) {
            set_writer(s->bytes[i], s->first + w, clock, t->lane, epoch, true);
            s->written_at[i] = loc;
        }
        return;
    }
    uint32_t *reads = s->reads_of(w);
    for (uint32_t i = off; i < off + n; i++) {
        Byte &b = s->bytes[i];
        reads[i] = clock;
        b.readers |= 1u << w;
        b.r_lane = uint8_t(t->lane);
        b.r_epoch = epoch;
    }
}
void race_remote_read(Thread *t, Block *b, uint32_t off, unsigned n, Loc loc, const char *what) {
    RaceState *s = b->race.get(), *own = t->block->race.get();
    if (!s) return;
    check(t, s, off, n, false, false, loc, what);
    const unsigned me = own->first + t->warp->index;
    s->peer_reads.push_back({off, n, me, own->vc[t->warp->index][me], loc});
}
void race_block_ends(Block *b) {
    RaceState *s = b->race.get();
    if (!s) return;
    std::vector<uint32_t> seen(s->agents, 0);
    for (const auto &vc : s->vc) join(seen, vc);
    for (const PeerRead &r : s->peer_reads)
        if (seen[r.agent] < r.clock)
            fail(r.loc, "race: block %u of the cluster may end before this read of its shared byte %u", b->rank, r.off);
}
void race_remote_arrive(Thread *t, Block *b, uint32_t off, Loc loc) {
    if (RaceState *s = b->race.get()) check(t, s, off, 8, false, false, loc, "mbarrier.arrive");
}
void race_async_write_begin(Thread *t, Block *b, uint32_t off, unsigned n, bool bulk, Loc loc, const char *what) {
    RaceState *s = b->race.get();
    if (!s) return;
    check(t, s, off, n, true, bulk, loc, what);
    s->mark(off, n);
    for (uint32_t i = off; i < off + n; i++) {
        s->bytes[i].in_flight = bulk ? 2 : 1;
        s->written_at[i] = loc;
    }
}
void race_cp_async_done(Thread *t, uint32_t off, unsigned n) {
    RaceState *s = t->block->race.get();
    if (!s) return;
    unsigned w = t->warp->index;
    for (uint32_t i = off; i < off + n; i++) // visible to its own thread now, to others after a barrier
        set_writer(s->bytes[i], s->first + w, s->vc[w][s->first + w], t->lane, s->epoch[w], true);
}
void race_tma_done(Block *b, MBarrier &m, uint32_t off, unsigned n) {
    RaceState *s = b->race.get();
    if (!s) return;
    unsigned agent = s->first + s->warps + unsigned(m.slot);
    uint32_t c = s->slot_clock[unsigned(m.slot)]++;
    for (uint32_t i = off; i < off + n; i++) set_writer(s->bytes[i], agent, c, 255, 0, false);
    if (m.acc.size() < s->agents) m.acc.resize(s->agents, 0);
    m.acc[agent] = c;
}
void race_async_read_begin(Thread *t, uint32_t off, unsigned n, Loc loc, const char *what) {
    RaceState *s = t->block->race.get();
    if (!s) return;
    check(t, s, off, n, false, true, loc, what);
    for (uint32_t i = off; i < off + n; i++) s->bytes[i].async_reads++;
}
void race_async_read_end(Thread *t, uint32_t off, unsigned n, bool warpgroup) {
    RaceState *s = t->block->race.get();
    if (!s) return;
    // A wgmma read belongs to every warp of the warpgroup (their releases follow the wait), a TMA store's
    // to the warp that waited for it.
    const unsigned g = warpgroup ? t->warp->index / 4 * 4 : t->warp->index, end = std::min(g + (warpgroup ? 4 : 1), s->warps);
    uint32_t readers = 0;
    for (unsigned w = g; w < end; w++) {
        std::fill_n(s->reads_of(w) + off, n, s->vc[w][s->first + w]);
        readers |= 1u << w;
    }
    for (uint32_t i = off; i < off + n; i++) {
        Byte &b = s->bytes[i];
        b.async_reads--;
        b.readers |= readers;
        b.r_epoch = 0;
    }
}

// ---------------------------------------------------------------- compiler hooks
static inline void hook(const void *p, unsigned n, bool write, void *pc) {
    Runner *r = t_runner;
    if (!r || !r->cur) return;
    Thread *t = r->cur;
    Block *b = t->block;
    auto a = static_cast<const char *>(p);
    size_t d = size_t(a - b->smem);
    if (d < b->smem_bytes + 4096) {
        if (d + n > b->smem_bytes) fail(pc_loc(pc), "shared access out of bounds: offset %zu of %zu", d, b->smem_bytes);
        if (b->race) race_access(t, uint32_t(d), n, write, pc_loc(pc), write ? "store" : "load");
        return;
    }
    if (a >= t->stack - 4096 && a < t->stack + 512 * 1024) return;
    if (!near_global(p)) return; // stack, constants
    check_global(p, n, 1, pc_loc(pc), write ? "store" : "load");
    global_access(p, n, write, pc_loc(pc), write ? "store" : "load");
}
} // namespace simt

extern "C" {
void __tsan_init() {
    simt::g_hooks = true;
}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define H(n)                                                                                                           \
    void __tsan_read##n(void *p) {                                                                                     \
        simt::hook(p, n, false, __builtin_return_address(0));                                                          \
    }                                                                                                                  \
    void __tsan_write##n(void *p) {                                                                                    \
        simt::hook(p, n, true, __builtin_return_address(0));                                                           \
    }                                                                                                                  \
    void __tsan_unaligned_read##n(void *p) {                                                                           \
        simt::hook(p, n, false, __builtin_return_address(0));                                                          \
    }                                                                                                                  \
    void __tsan_unaligned_write##n(void *p) {                                                                          \
        simt::hook(p, n, true, __builtin_return_address(0));                                                           \
    }                                                                                                                  \
    void __tsan_volatile_read##n(void *p) {                                                                            \
        simt::hook(p, n, false, __builtin_return_address(0));                                                          \
    }                                                                                                                  \
    void __tsan_volatile_write##n(void *p) {                                                                           \
        simt::hook(p, n, true, __builtin_return_address(0));                                                           \
    }
H(1) H(2) H(4) H(8) H(16) void __tsan_read_range(void *p, long n) {
    simt::hook(p, unsigned(n), false, __builtin_return_address(0));
}
void __tsan_write_range(void *p, long n) {
    simt::hook(p, unsigned(n), true, __builtin_return_address(0));
}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
int __tsan_atomic32_fetch_add(volatile int *p, int v, int) {
    if (simt::t_runner && simt::self()) simt::global_access(const_cast<int *>(p), 4, true, simt::pc_loc(__builtin_return_address(0)), "atomic");
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_load(const volatile int *p, int) {
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
void __tsan_atomic32_store(volatile int *p, int v, int) {
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}
}
