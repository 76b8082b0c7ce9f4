// Copies: cp.async, mbarrier, TMA and bulk copies.
#include "simt_ptx.h"
#include "simt_impl.h"

namespace simt {
void garbage(void *p, size_t n) {
    static const uint32_t pat = 0x7fc3a5a5u;
    for (size_t i = 0; i + 4 <= n; i += 4) std::memcpy(static_cast<char *>(p) + i, &pat, 4);
}
bool coin() {
    return t_runner->rand() & 1;
}
uint32_t swizzle(uint32_t addr, int bytes) { // XOR the 16-byte chunk number with the 128-byte row number
    if (bytes == 128) return addr ^ (addr >> 3 & 0x70);
    if (bytes == 64) return addr ^ (addr >> 3 & 0x30);
    if (bytes == 32) return addr ^ (addr >> 3 & 0x10);
    return addr;
}
static void cp_perform(Thread *t, const CpAsync &c) {
    char *d = t->block->smem + (c.dst - kSmemBase);
    std::memcpy(d, c.src, c.src_bytes);
    std::memset(d + c.src_bytes, 0, c.bytes - c.src_bytes);
}
void cp_async(uint32_t dst, const void *src, uint32_t bytes, uint32_t src_bytes, Loc loc) {
    Thread *t = self();
    void *d = smem_ptr(dst, bytes, bytes, loc, "cp.async");
    if (src_bytes > bytes) fail(loc, "cp.async: src size %u", src_bytes);
    if (src_bytes) check_global(src, src_bytes, bytes, loc, "cp.async");
    if (src_bytes) global_access(src, src_bytes, false, loc, "cp.async");
    race_async_write_begin(t, t->block, dst - kSmemBase, bytes, false, loc, "cp.async");
    t->cp_open.push_back({dst, src, bytes, src_bytes, loc});
    bool now = t_runner->async_now() || (t_runner->opt.async == Async::Random && coin());
    if (now)
        cp_perform(t, t->cp_open.back());
    else
        garbage(d, bytes);
}
void cp_async_commit(Loc) {
    Thread *t = self();
    t->cp_groups.push_back(std::move(t->cp_open));
    t->cp_open.clear();
}
static void cp_retire(Thread *t, const std::vector<CpAsync> &g) {
    for (auto &c : g) {
        cp_perform(t, c);
        race_cp_async_done(t, c.dst - kSmemBase, c.bytes);
    }
}
void cp_async_wait(unsigned keep, Loc) {
    Thread *t = self();
    while (t->cp_groups.size() > keep) {
        cp_retire(t, t->cp_groups.front());
        t->cp_groups.pop_front();
    }
}

static constexpr uint64_t kMbarMagic = 0x6d62617272696572ull; // stored in the barrier's 8 bytes
MBarrier &mbar_at(Block *b, uint32_t bar, Loc loc) {
    void *p = b->smem + (static_cast<char *>(smem_ptr(bar, 8, 8, loc, "mbarrier")) - self_block()->smem);
    auto it = b->mbars.find(bar);
    if (it == b->mbars.end()) fail(loc, "mbarrier at 0x%x was never initialised", bar - kSmemBase);
    if (std::memcmp(p, &kMbarMagic, 8)) fail(loc, "mbarrier at 0x%x was overwritten", bar - kSmemBase);
    return it->second;
}
void mbar_check(MBarrier &m) {
    if (m.pending || m.tx) return;
    m.phase++;
    m.pending = m.expected;
    m.done = m.acc;
    auto waiting = std::move(m.waiting);
    m.waiting.clear();
    for (auto &[t, parity] : waiting)
        if ((m.phase & 1) != parity) {
            race_acquire(t, m.done);
            wake(t);
        } else
            m.waiting.push_back({t, parity});
}
void mbar_init(uint32_t bar, uint32_t count, Loc loc) {
    Block *b = self_block();
    void *p = smem_ptr(bar, 8, 8, loc, "mbarrier.init");
    if (!count || count >= 1u << 20) fail(loc, "mbarrier.init: count %u", count);
    race_access(self(), bar - kSmemBase, 8, true, loc, "mbarrier.init");
    MBarrier m;
    m.live = true;
    m.expected = m.pending = count;
    m.slot = int(b->mbars.size());
    if (m.slot >= 64) fail(loc, "more than 64 mbarriers in a block");
    race_release(self(), m.done);
    b->mbars[bar] = m;
    std::memcpy(p, &kMbarMagic, 8);
}
static void arrive_at(MBarrier &m, uint32_t bar, uint32_t count, int64_t tx, Loc loc) {
    if (m.pending < count) fail(loc, "mbarrier at 0x%x: more arrivals than its count %u", bar - kSmemBase, m.expected);
    m.tx += tx;
    m.pending -= count;
    race_release(self(), m.acc);
    mbar_check(m);
}
void mbar_arrive(uint32_t bar, uint32_t count, int64_t tx, Loc loc) {
    MBarrier &m = mbar_at(self_block(), bar, loc);
    race_access(self(), bar - kSmemBase, 8, false, loc, "mbarrier.arrive");
    arrive_at(m, bar, count, tx, loc);
}
void mbar_arrive_cluster(uint32_t bar, Loc loc) {
    uint32_t local;
    Block *b = cluster_block(bar, &local, loc);
    MBarrier &m = mbar_at(b, local, loc);
    race_remote_arrive(self(), b, local - kSmemBase, loc);
    arrive_at(m, local, 1, 0, loc);
}
bool mbar_test(uint32_t bar, uint32_t parity, Loc loc) {
    MBarrier &m = mbar_at(self_block(), bar, loc);
    if (parity > 1) fail(loc, "mbarrier wait: parity %u", parity);
    if ((m.phase & 1) == parity) return false;
    race_access(self(), bar - kSmemBase, 8, false, loc, "mbarrier.try_wait");
    race_acquire(self(), m.done);
    return true;
}
void mbar_wait(uint32_t bar, uint32_t parity, Loc loc) {
    if (mbar_test(bar, parity, loc)) return;
    mbar_at(self_block(), bar, loc).waiting.push_back({self(), parity});
    block_here("mbarrier.wait", bar - kSmemBase, parity, loc);
}

namespace {
struct Map2d { // lives in the bytes of a CUtensorMap
    uint64_t magic, cols, rows, pitch;
    const char *base;
    uint32_t box_cols, box_rows;
    int elem, swizzle;
};
constexpr uint64_t kMapMagic = 0x544d413264656d75ull;
static_assert(sizeof(Map2d) <= sizeof(CUtensorMap));

Map2d read_map(const CUtensorMap *m, Loc loc) {
    Map2d x;
    std::memcpy(&x, m, sizeof x);
    if (x.magic != kMapMagic) fail(loc, "TMA: not an encoded tensor map");
    return x;
}
void tma_perform(Block *b, const Tma &op) {
    if (op.kind == Tma::Bulk) {
        std::memcpy(b->smem + (op.smem - kSmemBase), op.src, op.bytes);
        MBarrier &bar = b->mbars[op.mbar];
        bar.tx -= op.bytes;
        race_tma_done(b, bar, op.smem - kSmemBase, op.bytes);
        return mbar_check(bar);
    }
    Map2d m = read_map(&op.map, op.loc);
    uint32_t row_bytes = m.box_cols * uint32_t(m.elem);
    for (uint32_t r = 0; r < m.box_rows; r++) {
        int64_t gr = int64_t(op.c1) + r;
        // Whole 16-byte chunks inside the tensor move at once; the swizzle keeps them together.
        const uint32_t chunk = 16 / uint32_t(m.elem);
        for (uint32_t c = 0; c < m.box_cols;) {
            int64_t gc = int64_t(op.c0) + c;
            if (c % chunk == 0 && gr >= 0 && gr < int64_t(m.rows) && gc >= 0 && gc + chunk <= int64_t(m.cols)) {
                char *s = b->smem + (swizzle(op.smem + r * row_bytes + c * uint32_t(m.elem), m.swizzle) - kSmemBase);
                char *g = const_cast<char *>(m.base) + gr * int64_t(m.pitch) + gc * m.elem;
                std::memcpy(op.kind == Tma::Load ? s : g, op.kind == Tma::Load ? g : s, 16);
                c += chunk;
                continue;
            }
            bool in = gr >= 0 && gr < int64_t(m.rows) && gc >= 0 && gc < int64_t(m.cols);
            char *s = b->smem + (swizzle(op.smem + r * row_bytes + c * uint32_t(m.elem), m.swizzle) - kSmemBase);
            char *g = const_cast<char *>(m.base) + gr * int64_t(m.pitch) + gc * m.elem;
            if (op.kind == Tma::Load) {
                if (in)
                    std::memcpy(s, g, size_t(m.elem));
                else
                    std::memset(s, 0, size_t(m.elem));
            } else if (in)
                std::memcpy(g, s, size_t(m.elem));
            c++;
        }
    }
    if (op.kind == Tma::Load) {
        MBarrier &bar = b->mbars[op.mbar];
        bar.tx -= row_bytes * m.box_rows;
        race_tma_done(b, bar, op.smem - kSmemBase, row_bytes * m.box_rows);
        mbar_check(bar);
    } else
        race_async_read_end(op.issuer, op.smem - kSmemBase, row_bytes * m.box_rows, false);
}
// Every row of a box, as far as it is inside the tensor.
void map_access(const Map2d &m, int c0, int c1, bool write, Loc loc, const char *what) {
    const int64_t from = std::max(c0, 0), to = std::min<int64_t>(int64_t(c0) + m.box_cols, int64_t(m.cols));
    for (int64_t r = std::max(c1, 0); from < to && r < std::min<int64_t>(int64_t(c1) + m.box_rows, int64_t(m.rows)); r++)
        global_access(m.base + r * int64_t(m.pitch) + from * m.elem, size_t((to - from) * m.elem), write, loc, what);
}
} // namespace

void encode_tensor_map_2d(CUtensorMap *out, const void *base, int elem, uint64_t cols, uint64_t rows, uint64_t pitch,
                          uint32_t box_cols, uint32_t box_rows, int swz) {
    Loc loc = Loc::current();
    if (uintptr_t(base) % 16) fail(loc, "tensor map: base not 16-byte aligned");
    if (pitch % 16) fail(loc, "tensor map: row pitch %llu is no multiple of 16", (unsigned long long)pitch);
    if (box_cols > 256 || box_rows > 256 || !box_cols || !box_rows)
        fail(loc, "tensor map: box %u x %u", box_cols, box_rows);
    if (box_cols * uint32_t(elem) % 16) fail(loc, "tensor map: inner box is no multiple of 16 bytes");
    if (swz && box_cols * uint32_t(elem) != uint32_t(swz))
        fail(loc, "tensor map: inner box must span the %d-byte swizzle", swz);
    if (cols * uint64_t(elem) > pitch && rows > 1) fail(loc, "tensor map: rows overlap");
    check_global(base, (rows - 1) * pitch + cols * uint64_t(elem), 16, loc, "tensor map");
    Map2d m{kMapMagic, cols, rows, pitch, static_cast<const char *>(base), box_cols, box_rows, elem, swz};
    std::memset(static_cast<void *>(out), 0, sizeof *out);
    std::memcpy(static_cast<void *>(out), &m, sizeof m);
}
void tma_load_2d(uint32_t dst, const CUtensorMap *map, uint32_t bar, int c0, int c1, Loc loc) {
    Thread *t = self();
    Map2d m = read_map(map, loc);
    uint32_t bytes = m.box_cols * uint32_t(m.elem) * m.box_rows;
    void *d = smem_ptr(dst, bytes, m.swizzle == 128 ? 1024 : 128, loc, "TMA load");
    mbar_at(self_block(), bar, loc);
    map_access(m, c0, c1, false, loc, "TMA load");
    race_async_write_begin(t, t->block, dst - kSmemBase, bytes, true, loc, "TMA load");
    Tma op{Tma::Load, *map, c0, c1, dst, bar, loc, t, nullptr, 0};
    if (t_runner->async_now()) return tma_perform(t->block, op);
    garbage(d, bytes);
    t->block->tma.push_back(op);
}
// The same offset of every block in the mask gets the box and its barrier the bytes, each at a time of its own.
void tma_load_2d_multicast(uint32_t dst, const CUtensorMap *map, uint32_t bar, int c0, int c1, uint32_t mask, Loc loc) {
    Thread *t = self();
    const Map2d m = read_map(map, loc);
    const uint32_t bytes = m.box_cols * uint32_t(m.elem) * m.box_rows;
    const Cluster &cluster = *t->block->cluster;
    smem_ptr(dst, bytes, m.swizzle == 128 ? 1024 : 128, loc, "multicast");
    map_access(m, c0, c1, false, loc, "multicast");
    if (!mask || mask >> cluster.blocks.size()) fail(loc, "multicast to blocks 0x%x of %zu", mask, cluster.blocks.size());
    for (Block *b : cluster.blocks) {
        if (!(mask >> b->rank & 1)) continue;
        if (!b->live) fail(loc, "multicast to block %u of the cluster, which has exited", b->rank);
        mbar_at(b, bar, loc);
        race_async_write_begin(t, b, dst - kSmemBase, bytes, true, loc, "multicast");
        Tma op{Tma::Load, *map, c0, c1, dst, bar, loc, t, nullptr, 0};
        if (t_runner->async_now()) {
            tma_perform(b, op);
            continue;
        }
        garbage(b->smem + (dst - kSmemBase), bytes);
        b->tma.push_back(op);
    }
}
void bulk_load(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar, Loc loc) {
    Thread *t = self();
    if (!bytes || bytes % 16) fail(loc, "bulk copy: %u bytes", bytes);
    void *d = smem_ptr(dst, bytes, 16, loc, "bulk copy");
    check_global(src, bytes, 16, loc, "bulk copy");
    global_access(src, bytes, false, loc, "bulk copy");
    mbar_at(self_block(), bar, loc);
    race_async_write_begin(t, t->block, dst - kSmemBase, bytes, true, loc, "bulk copy");
    Tma op{Tma::Bulk, {}, 0, 0, dst, bar, loc, t, src, bytes};
    if (t_runner->async_now()) return tma_perform(t->block, op);
    garbage(d, bytes);
    t->block->tma.push_back(op);
}
void tma_store_2d(const CUtensorMap *map, uint32_t src, int c0, int c1, Loc loc) {
    Thread *t = self();
    Map2d m = read_map(map, loc);
    uint32_t bytes = m.box_cols * uint32_t(m.elem) * m.box_rows;
    smem_ptr(src, bytes, m.swizzle == 128 ? 1024 : 128, loc, "TMA store");
    map_access(m, c0, c1, true, loc, "TMA store");
    race_async_read_begin(t, src - kSmemBase, bytes, loc, "TMA store");
    Tma op{Tma::Store, *map, c0, c1, src, 0, loc, t, nullptr, 0};
    t->block->store_open[t->index].push_back(op);
}
void bulk_commit(Loc) {
    Thread *t = self();
    t->block->store_groups[t->index].push_back(std::move(t->block->store_open[t->index]));
    t->block->store_open[t->index].clear();
}
void bulk_wait(unsigned keep, Loc) {
    Thread *t = self();
    auto &q = t->block->store_groups[t->index];
    for (; q.size() > keep; q.pop_front())
        for (auto &op : q.front()) tma_perform(t->block, op);
}
bool complete_some_async(Block *b, bool) {
    if (b->tma.empty()) return false;
    size_t i = t_runner->opt.async == Async::Random ? t_runner->rand() % b->tma.size() : 0;
    Tma op = b->tma[i];
    b->tma.erase(b->tma.begin() + long(i));
    tma_perform(b, op);
    return true;
}
void on_thread_exit(Thread *t) {
    for (auto &g : t->cp_groups) cp_retire(t, g);
    cp_retire(t, t->cp_open);
    t->cp_groups.clear();
    t->cp_open.clear();
    auto &sg = t->block->store_groups;
    if (sg.count(t->index))
        for (auto &g : sg[t->index])
            for (auto &op : g) tma_perform(t->block, op);
}
void fence_proxy_async(Loc) {
    race_proxy_fence(self());
}

} // namespace simt
