// Fibers, scheduler, barriers, warp and warpgroup rendezvous.
#include "simt_impl.h"

#include <cstdarg>
#include <cstdio>

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ---------------------------------------------------------------- context switch
#if defined(__x86_64__)
extern "C" void simt_switch(void **save_sp, void *new_sp);
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch,.-simt_switch
)");
#else
#error "add a switch for this CPU (or fall back to swapcontext, about 30 times slower)"
#endif

namespace simt {

thread_local ThreadIds *t_ids = nullptr;
thread_local Runner *t_runner = nullptr;

void switch_to(Thread *next) {
    Runner *r = t_runner;
    Thread *prev = r->cur;
    void **save = prev ? &prev->sp : &r->main_sp;
    r->cur = next;
    if (next) t_ids = &next->ids;
#ifdef SIMT_ASAN
    static thread_local const void *main_bottom;
    static thread_local size_t main_size;
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(prev && prev->exited ? nullptr : &fake, next ? next->stack : main_bottom,
                                   next ? kStack : main_size);
    simt_switch(save, next ? next->sp : r->main_sp);
    const void *ob;
    size_t os;
    __sanitizer_finish_switch_fiber(fake, &ob, &os);
    if (!main_bottom) {
        main_bottom = ob;
        main_size = os;
    }
#else
    simt_switch(save, next ? next->sp : r->main_sp);
#endif
}

Thread *pick_lane(Warp &w) {
    Runner *r = t_runner;
    uint32_t m = w.runnable;
    unsigned l;
    if (r->opt.order == Order::RoundRobin)
        l = __builtin_ctz(m);
    else if (r->opt.order == Order::Reverse)
        l = 31 - __builtin_clz(m);
    else { // rotate by a random amount
        unsigned s = r->rand() & 31;
        uint32_t rot = (m >> s) | (s ? m << (32 - s) : 0);
        l = (__builtin_ctz(rot) + s) & 31;
    }
    return &w.block->threads[w.first_thread + l];
}

// Next fiber to run, or null when nothing is runnable.
Thread *pick() {
    Runner *r = t_runner;
    if (r->cur && r->cur->warp->runnable) return pick_lane(*r->cur->warp);
    if (r->opt.async == Async::Random && (r->rand() & 7) == 0)
        for (auto &b : r->blocks) complete_some_async(b.get(), false);
    std::vector<Warp *> &ready = *[] {
        static thread_local std::vector<Warp *> v;
        return &v;
    }();
    ready.clear();
    for (auto &b : r->blocks)
        for (Warp &w : b->warps)
            if (w.runnable) ready.push_back(&w);
    if (ready.empty()) return nullptr;
    size_t i = 0;
    if (r->opt.order == Order::Random)
        i = r->rand() % ready.size();
    else if (r->opt.order == Order::Reverse)
        i = ready.size() - 1;
    else { // the next one after the warp that ran last
        size_t me = r->cur ? r->cur->warp->index : 0;
        while (i < ready.size() && ready[i]->index <= me) i++;
        if (i == ready.size()) i = 0;
    }
    return pick_lane(*ready[i]);
}

static void resched() { // the current fiber is blocked, exited, or has given way
    Thread *n = pick();
    if (n != t_runner->cur) switch_to(n); // null: the main loop performs asynchronous work
}

void wake(Thread *t) {
    t->warp->runnable |= 1u << t->lane;
}

void block_here(const char *why, uint64_t a, uint64_t b, Loc loc) {
    Thread *t = self();
    t->why = why;
    t->why_a = a;
    t->why_b = b;
    t->why_loc = loc;
    t->warp->runnable &= ~(1u << t->lane);
    resched();
}

void yield() {
    Runner *r = t_runner;
    Warp *w = r->cur->warp;
    uint32_t keep = w->runnable;
    w->runnable = 0; // prefer another warp
    Thread *n = pick();
    w->runnable |= keep;
    if (!n) {
        for (auto &b : r->blocks) complete_some_async(b.get(), false);
        n = pick_lane(*w);
    }
    if (n != r->cur) switch_to(n);
}

void maybe_preempt() {
    Runner *r = t_runner;
    if (r->opt.order == Order::Random && (r->rand() & 15) == 0) yield();
}

static std::string who(const Thread *t) {
    char s[160];
    std::snprintf(s, sizeof s, "block (%u,%u,%u) thread %u (warp %u lane %u)", t->ids.bid.x, t->ids.bid.y, t->ids.bid.z,
                  t->index, t->index / 32, t->lane);
    return s;
}
std::string where(Loc l) {
    if (!l.file_name()) return where_pc(l.line());
    const char *f = std::strrchr(l.file_name(), '/');
    return std::string(f ? f + 1 : l.file_name()) + ":" + std::to_string(l.line());
}

void fail(Loc loc, const char *fmt, ...) {
    char msg[512];
    va_list ap;
    va_start(ap, fmt);
    std::vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    Runner *r = t_runner;
    if (!r || !r->cur) {
        std::fprintf(stderr, "simt: %s: %s\n", where(loc).c_str(), msg);
        std::abort();
    }
    r->failed = true;
    r->error = where(loc) + ": " + msg + " [" + who(r->cur) + "]";
    switch_to(nullptr);
    std::abort();
}

// ---------------------------------------------------------------- rendezvous
void warp_collective(uint32_t mask, void *args, WarpFn fn, const char *name, Loc loc) {
    Thread *t = self();
    Warp *w = t->warp;
    uint32_t bit = 1u << t->lane;
    if (!(mask & bit)) fail(loc, "%s: the calling lane is not in its mask %08x", name, mask);
    if (mask & w->exited)
        fail(loc, "%s waits for lanes that have exited (mask %08x, exited %08x)", name, mask, w->exited);
    Rendezvous *r = nullptr;
    for (auto &x : w->rdv)
        if (x.open && (x.mask & mask)) {
            r = &x;
            break;
        }
    if (!r) {
        for (auto &x : w->rdv)
            if (!x.open) {
                r = &x;
                break;
            }
        if (!r) fail(loc, "%s: too many warp operations open at once", name);
        r->open = true;
        r->mask = mask;
        r->arrived = 0;
        r->fn = fn;
        r->name = name;
        r->loc = loc;
    } else if (r->fn != fn || r->mask != mask || r->loc.line() != loc.line()) {
        fail(loc, "divergent warp: lane at %s (mask %08x) while lanes %08x are at %s (mask %08x, %s)", name, mask,
             r->arrived, r->name, r->mask, where(r->loc).c_str());
    }
    r->args[t->lane] = args;
    r->arrived |= bit;
    if (r->arrived != mask) return block_here(name, mask, r->arrived, loc);
    fn(r->args, mask);
    r->open = false;
    w->runnable |= mask;
    maybe_preempt();
}

void warpgroup_collective(void *args, GroupFn fn, const char *name, Loc loc) {
    Thread *t = self();
    unsigned g = t->index / 128;
    if ((g + 1) * 128 > t->block->threads.size()) fail(loc, "%s outside a whole warpgroup", name);
    WarpGroup &wg = t->block->groups[g];
    if (wg.arrived == 0) {
        wg.fn = fn;
        wg.name = name;
        wg.loc = loc;
    } else if (wg.fn != fn || wg.loc.line() != loc.line())
        fail(loc, "divergent warpgroup: thread at %s while %u threads are at %s (%s)", name, wg.arrived, wg.name,
             where(wg.loc).c_str());
    wg.args[t->index % 128] = args;
    if (++wg.arrived < 128) return block_here(name, g, 0, loc);
    wg.arrived = 0;
    fn(wg.args, int(g));
    for (unsigned i = 0; i < 128; i++) wake(&t->block->threads[g * 128 + i]);
    maybe_preempt();
}

static void bar_common(int id, int count, bool wait, Loc loc) {
    Thread *t = self();
    Block *b = t->block;
    if (id < 0 || id > 15) fail(loc, "named barrier %d", id);
    unsigned n = count ? unsigned(count) : unsigned(b->threads.size());
    if (n % 32 && count) fail(loc, "barrier %d: thread count %u is no multiple of 32", id, n);
    NamedBarrier &x = b->bars[id];
    if (x.arrived && x.expected != n) fail(loc, "barrier %d: counts differ (%u and %u)", id, x.expected, n);
    x.expected = n;
    x.arrived++;
    race_release(t, x.clock);
    if (wait) x.waiting.push_back(t);
    if (x.arrived < n) {
        if (wait) block_here("bar.sync", unsigned(id), n, loc);
        return;
    }
    auto waiting = std::move(x.waiting);
    x.waiting.clear();
    x.arrived = 0;
    for (Thread *o : waiting) {
        race_acquire(o, x.clock);
        wake(o);
    }
    for (Thread *o : waiting) race_syncwarp(o->warp);
    x.clock.clear();
    maybe_preempt();
}
void bar_sync(int id, int count, Loc loc) {
    bar_common(id, count, true, loc);
}
void bar_arrive(int id, int count, Loc loc) {
    bar_common(id, count, false, loc);
}

// ---------------------------------------------------------------- small builtins
unsigned lane_id() {
    return self()->lane;
}

void shfl(ShflArgs *a, uint32_t mask, Loc loc) {
    warp_collective(
        mask, a,
        [](void *const *p, uint32_t m) {
            for (int l = 0; l < 32; l++)
                if (m >> l & 1) {
                    auto *x = static_cast<ShflArgs *>(p[l]);
                    x->out =
                        (m >> (x->src & 31) & 1) ? static_cast<ShflArgs *>(p[x->src & 31])->in : 0xbadbadbadbadbadull;
                }
        },
        "__shfl_sync", loc);
}
uint32_t ballot(uint32_t mask, bool pred, Loc loc) {
    struct A {
        bool in;
        uint32_t out;
    } a{pred, 0};
    warp_collective(
        mask, &a,
        [](void *const *p, uint32_t m) {
            uint32_t r = 0;
            for (int l = 0; l < 32; l++)
                if ((m >> l & 1) && static_cast<A *>(p[l])->in) r |= 1u << l;
            for (int l = 0; l < 32; l++)
                if (m >> l & 1) static_cast<A *>(p[l])->out = r;
        },
        "vote.sync", loc);
    return a.out;
}

} // namespace simt

void __syncwarp(uint32_t mask, simt::Loc loc) {
    simt::warp_collective(
        mask, nullptr, [](void *const *, uint32_t) { simt::race_syncwarp(simt::self()->warp); }, "__syncwarp", loc);
}
