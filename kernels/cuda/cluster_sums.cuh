// Sums of splits of k on chip: the splits of one output tile are the blocks of a cluster, each holds its partial tile in
// shared memory. Every block reads its columns of all tiles and finishes them, so that the epilogue is spread; sums are
// added by rank, ascending like those of a workspace: the same bits.
#pragma once
#include "output.cuh"

namespace qk_cuda {

constexpr int kClusterBlocks = 8; // any device of compute capability 9.0 takes as many
// A cluster stays inside one GPC. Those of H100 and H200 hold 16 units or 18; larger counts are not relied on.
constexpr int kGpcUnits = 16;

// Whether clusters of so many blocks run at all.
inline bool cluster_runs(const qk_device *device, int blocks, qk_why *why) {
    return device->clusters >> blocks & 1 ? true : qk_no(why, "no cluster of %d blocks runs on this device", blocks);
}
// Whether `splits` blocks for each of so many tiles run as clusters in no more waves than one by one.
inline bool clusters_fit(const qk_device *device, int64_t tiles, int splits, qk_why *why) {
    if (splits < 2) return qk_no(why, "one block has all of k");
    if (splits > kClusterBlocks) return qk_no(why, "%d splits of k, a cluster holds %d", splits, kClusterBlocks);
    if (!cluster_runs(device, splits, why)) return false;
    const int64_t at_once = int64_t(device->units / kGpcUnits) * (kGpcUnits / splits);
    if (!at_once) return qk_no(why, "%d units, a GPC has %d", int(device->units), kGpcUnits);
    const int64_t waves = (tiles + at_once - 1) / at_once, alone = (tiles * splits + device->units - 1) / device->units;
    if (waves > alone)
        return qk_no(why, "%lld clusters of %d blocks, %lld run at once", (long long)tiles, splits, (long long)at_once);
    return true;
}

#if PTX_SM90
PTX_FN void sum_of_bits(uint32_t bits, int32_t &v) {
    v = int32_t(bits);
}
PTX_FN void sum_of_bits(uint32_t bits, float &v) {
    v = __uint_as_float(bits);
}
// Between two barriers of the cluster. tile: of put_fragment, at the same place in every block.
template <int kRows, int kTok, class T>
PTX_FN void store_cluster_tile(uint32_t tile, int thread, int threads, int splits, int64_t tokens, int64_t m0, int64_t n0,
                               const Output &output) {
    constexpr int kQuads = kRows / 4;
    const int share = (kQuads + splits - 1) / splits, quad = int(ptx::cluster_rank()) * share + thread % share;
    const int rows = threads / share; // tokens at a time
    if (quad >= kQuads || thread >= rows * share) return;
    for (int token = thread / share; token < kTok && m0 + token < tokens; token += rows) {
        const uint32_t at = tile + uint32_t((token * (kRows + 4) + quad * 4) * 4);
        uint32_t part[kClusterBlocks][4];
#pragma unroll
        for (int s = 0; s < kClusterBlocks; s++) // all on their way before the first is added
            if (s < splits) ptx::lds128_cluster(part[s], ptx::cluster_addr(at, uint32_t(s)));
        T v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum_of_bits(part[0][i], v[i]);
#pragma unroll
            for (int s = 1; s < kClusterBlocks; s++) {
                T next;
                sum_of_bits(part[s][i], next);
                if (s < splits) v[i] = plus(v[i], next);
            }
        }
        output.finish(m0 + token, n0 + quad * 4, v);
    }
}
#endif

} // namespace qk_cuda
