// Clusters: arrivals at each other's barriers, loads from each other's memory, boxes sent to both. Included by ptx_conformance.cuh.
#pragma once

namespace conformance {

// Block r's lanes write out[32r ..], and read what the other block wrote after its arrival.
CONFORMANCE_KERNEL(cluster_barriers) {
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    const uint32_t l = threadIdx.x, rank = ptx::cluster_rank(), other = rank ^ 1, bar = ptx::smem_addr(s);
    if (l == 0) {
        ptx::mbar_init(bar, 64); // both blocks' lanes
        ptx::mbar_fence_init();
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    out[rank * 32 + l] = in[rank * 32 + l];
    for (uint32_t to = 0; to < 2; to++) ptx::mbar_arrive_cluster(ptx::cluster_addr(bar, to));
    ptx::mbar_wait_cluster(bar, 0);
    out[64 + rank * 32 + l] = out[other * 32 + 31 - l] + blockIdx.y;
    ptx::cluster_arrive(); // neither leaves before the other's arrivals
    ptx::cluster_wait();
#endif
}
inline void want_cluster_barriers(const uint32_t *in, uint32_t *want) {
    for (uint32_t r = 0; r < 2; r++)
        for (uint32_t l = 0; l < 32; l++) {
            want[r * 32 + l] = in[r * 32 + l];
            want[64 + r * 32 + l] = in[(r ^ 1) * 32 + 31 - l] + r;
        }
}
// Four blocks: every block adds up what all of them hold, read from their shared memory.
CONFORMANCE_KERNEL(cluster_loads) {
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    const uint32_t l = threadIdx.x, rank = ptx::cluster_rank();
    for (uint32_t i = 0; i < 4; i++) s[l * 4 + i] = in[rank * 128 + l * 4 + i];
    ptx::cluster_arrive();
    ptx::cluster_wait();
    uint32_t sum[4] = {};
    for (uint32_t from = 0; from < 4; from++) {
        uint32_t r[4];
        ptx::lds128_cluster(r, ptx::cluster_addr(ptx::smem_addr(s), from) + (l ^ from) * 16);
        for (uint32_t i = 0; i < 4; i++) sum[i] += r[i] << from;
    }
    for (uint32_t i = 0; i < 4; i++) out[rank * 128 + l * 4 + i] = sum[i] + rank;
    ptx::cluster_arrive(); // no block leaves before the others have read
    ptx::cluster_wait();
#endif
}
inline void want_cluster_loads(const uint32_t *in, uint32_t *want) {
    for (uint32_t rank = 0; rank < 4; rank++)
        for (uint32_t l = 0; l < 32; l++)
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t sum = rank;
                for (uint32_t from = 0; from < 4; from++) sum += in[from * 128 + (l ^ from) * 4 + i] << from;
                want[rank * 128 + l * 4 + i] = sum;
            }
}
// Box r comes from block r for both; a third from each block for the other one alone.
CONFORMANCE_MAPPED(multicasts) {
#if PTX_SM90
    PTX_DYN_SMEM(uint32_t, s);
    const uint32_t base = ptx::smem_addr(s), bar = base + 3072, rank = ptx::cluster_rank();
    if (threadIdx.x == 0) {
        ptx::mbar_init(bar, 1);
        ptx::mbar_fence_init();
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    if (threadIdx.x == 0) {
        ptx::mbar_arrive_expect_tx(bar, 3072);
        ptx::tma_load_2d_multicast(base + rank * 1024, &maps.in, bar, 0, int(rank) * 4, 3);
        ptx::tma_load_2d_multicast(base + 2048, &maps.in, bar, 32, int(rank) * 6, uint16_t(2 >> rank));
    }
    ptx::mbar_wait(bar, 0);
    for (int i = int(threadIdx.x); i < 768; i += 32) out[rank * 768 + uint32_t(i)] = s[i];
    ptx::cluster_arrive();
    ptx::cluster_wait();
    (void)in;
#endif
}
inline void want_multicasts(const uint32_t *in, uint32_t *want) {
    const uint8_t *from = reinterpret_cast<const uint8_t *>(in);
    for (int block = 0; block < 2; block++) {
        uint8_t *to = reinterpret_cast<uint8_t *>(want + block * 768);
        const int corner[3][2] = {{0, 0}, {0, 4}, {32, block ? 0 : 6}};
        for (int box = 0; box < 3; box++)
            for (int r = 0; r < 8; r++)
                for (int c = 0; c < 128; c++) {
                    const int column = corner[box][0] + c, row = corner[box][1] + r;
                    const bool inside = column < kMapCols && row < kMapRows;
                    to[box * 1024 + swizzled_byte(r, c)] = inside ? from[row * kMapPitch + column] : 0;
                }
    }
}

} // namespace conformance
