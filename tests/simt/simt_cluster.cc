// Clusters: addresses of other blocks' shared memory, the cluster's barrier.
#include "simt_ptx.h"
#include "simt_impl.h"

namespace simt {
// A shared::cluster address holds the rank above the block's own 24 bits, so that an instruction for the block's own
// shared memory refuses it.
constexpr int kRankShift = 24;

uint32_t cluster_rank() {
    return self_block()->rank;
}
uint32_t cluster_addr(uint32_t addr, uint32_t rank, Loc loc) {
    smem_ptr(addr, 1, 1, loc, "mapa");
    const size_t size = self_block()->cluster->blocks.size();
    if (rank >= size) fail(loc, "mapa: block %u of a cluster of %zu", rank, size);
    return addr | (rank + 1) << kRankShift;
}
Block *cluster_block(uint32_t addr, uint32_t *local, Loc loc) {
    const uint32_t rank = addr >> kRankShift;
    *local = addr & ((1u << kRankShift) - 1);
    if (!rank) return self_block();
    Block *b = self_block()->cluster->blocks[rank - 1];
    if (!b->live) fail(loc, "shared memory of block %u of the cluster, which has exited", rank - 1);
    return b;
}

void lds_cluster(void *r, uint32_t bytes, uint32_t addr, Loc loc) {
    uint32_t local;
    Block *b = cluster_block(addr, &local, loc);
    smem_ptr(local, bytes, bytes, loc, "ld.shared::cluster");
    if (b == self_block())
        race_access(self(), local - kSmemBase, bytes, false, loc, "ld.shared::cluster");
    else
        race_remote_read(self(), b, local - kSmemBase, bytes, loc, "ld.shared::cluster");
    std::memcpy(r, b->smem + (local - kSmemBase), bytes);
}
void cluster_check(Cluster &c) {
    unsigned live = 0;
    for (Block *b : c.blocks) live += b->live;
    if (!live || c.arrived < live) return;
    c.phase++;
    c.arrived = 0;
    c.done = std::move(c.acc);
    c.acc.clear();
    const auto waiting = std::move(c.waiting);
    c.waiting.clear();
    for (Thread *t : waiting) wake(t);
}
void cluster_arrive(Loc loc) {
    Thread *t = self();
    Cluster &c = *t->block->cluster;
    if (t->cluster_at) fail(loc, "barrier.cluster.arrive twice without a wait");
    t->cluster_at = c.phase + 1;
    c.arrived++;
    race_release(t, c.acc);
    cluster_check(c);
}
void cluster_wait(Loc loc) {
    Thread *t = self();
    Cluster &c = *t->block->cluster;
    if (!t->cluster_at) fail(loc, "barrier.cluster.wait without an arrive");
    if (c.phase < t->cluster_at) {
        c.waiting.push_back(t);
        block_here("barrier.cluster.wait", c.phase, c.arrived, loc);
    }
    t->cluster_at = 0;
    race_acquire(t, c.done);
    race_syncwarp(t->warp);
    maybe_preempt();
}

} // namespace simt
