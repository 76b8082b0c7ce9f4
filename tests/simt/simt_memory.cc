// Shared and global memory: addresses, bounds, the arena of device_alloc().
#include "simt_impl.h"

#include <sys/mman.h>

#include <mutex>

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
// ---------------------------------------------------------------- memory
void *dyn_smem() {
    return self_block()->smem;
}

uint32_t smem_offset(const void *p, Loc loc) {
    Block *b = self_block();
    auto d = static_cast<const char *>(p) - b->smem;
    if (d < 0 || size_t(d) > b->smem_bytes)
        fail(loc, "not a shared-memory address (offset %td of %zu)", d, b->smem_bytes);
    return kSmemBase + uint32_t(d);
}
void *smem_ptr(uint32_t addr, size_t bytes, size_t align, Loc loc, const char *what) {
    Block *b = self_block();
    if (addr % align) fail(loc, "%s: shared address 0x%x is not %zu-byte aligned", what, addr, align);
    if (addr < kSmemBase || addr - kSmemBase + bytes > b->smem_bytes)
        fail(loc, "%s: shared bytes [0x%x, +%zu) outside the block's %zu", what, addr - kSmemBase, bytes,
             b->smem_bytes);
    return b->smem + (addr - kSmemBase);
}

// Device memory is cut from one reserved arena, so that any pointer can be told to be "global".
static std::mutex g_alloc_mutex;
static std::map<uintptr_t, size_t> g_allocs;
constexpr size_t kArena = size_t(1) << 36, kGap = 4096;
static char *g_arena;
static size_t g_arena_used;
void *device_alloc(size_t bytes) {
    std::lock_guard l(g_alloc_mutex);
    if (!g_arena) {
        g_arena = static_cast<char *>(
            mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        g_arena_used = kGap;
    }
    char *p = g_arena + g_arena_used;
    size_t span = (bytes + 255) / 256 * 256 + kGap;
    g_arena_used += span;
    std::memset(p, 0xcb, bytes);
#ifdef SIMT_ASAN
    __asan_poison_memory_region(p + bytes, span - bytes);
#endif
    g_allocs[uintptr_t(p)] = bytes;
    return p;
}
void device_free(void *p) { // the arena only grows; freed memory becomes out of bounds
    std::lock_guard l(g_alloc_mutex);
    auto it = g_allocs.find(uintptr_t(p));
    if (it == g_allocs.end()) return;
#ifdef SIMT_ASAN
    __asan_poison_memory_region(p, it->second);
#endif
    uintptr_t lo = (uintptr_t(p) + 4095) & ~uintptr_t(4095), hi = (uintptr_t(p) + it->second) & ~uintptr_t(4095);
    if (hi > lo) madvise(reinterpret_cast<void *>(lo), hi - lo, MADV_DONTNEED);
    g_allocs.erase(it);
}
bool near_global(const void *p) {
    return g_arena && static_cast<const char *>(p) >= g_arena && static_cast<const char *>(p) < g_arena + kArena;
}
void check_global(const void *p, size_t bytes, size_t align, Loc loc, const char *what) {
    uintptr_t a = uintptr_t(p);
    if (a % align) fail(loc, "%s: global address %p is not %zu-byte aligned", what, p, align);
    if (!bytes) return;
    static thread_local uintptr_t lo = 0, hi = 0; // last allocation hit
    if (a >= lo && a + bytes <= hi) return;
    std::unique_lock l(g_alloc_mutex);
    auto it = g_allocs.upper_bound(a);
    if (it != g_allocs.begin()) {
        --it;
        lo = it->first;
        hi = lo + it->second;
        if (a >= lo && a + bytes <= hi) return;
        size_t len = it->second;
        uintptr_t base = lo;
        lo = hi = 0;
        l.unlock();
        fail(loc, "%s: global access out of bounds: %zu bytes at offset %td of an allocation of %zu", what, bytes,
             ptrdiff_t(a - base), len);
    }
    l.unlock();
    fail(loc, "%s: global access to unknown memory %p", what, p);
}


// ---- memory that kernels have written, by pieces of 256 bytes: no piece is of two allocations
constexpr size_t kPiece = 256;
static uint8_t *written_pieces() {
    static uint8_t *const map = static_cast<uint8_t *>(
        mmap(nullptr, kArena / kPiece, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    return map;
}
void kernel_wrote(const void *p, size_t bytes) {
    const size_t at = size_t(static_cast<const char *>(p) - g_arena);
    for (size_t i = at / kPiece; bytes && i <= (at + bytes - 1) / kPiece; i++) __atomic_store_n(written_pieces() + i, 1, __ATOMIC_RELAXED);
}
void global_access(const void *p, size_t bytes, bool write, Loc loc, const char *what) {
    const bool early = t_runner->early && !self()->waited;
    if ((!early && !write) || !bytes || !near_global(p)) return;
    if (early && write) fail(loc, "%s of global memory before griddepcontrol.wait", what);
    if (write) return kernel_wrote(p, bytes);
    const size_t at = size_t(static_cast<const char *>(p) - g_arena);
    for (size_t i = at / kPiece; i <= (at + bytes - 1) / kPiece; i++)
        if (__atomic_load_n(written_pieces() + i, __ATOMIC_RELAXED))
            fail(loc, "%s of global memory that a kernel has written, before griddepcontrol.wait", what);
}
void griddep_wait() {
    self()->waited = self_block()->waited = true;
    maybe_preempt();
}

} // namespace simt
