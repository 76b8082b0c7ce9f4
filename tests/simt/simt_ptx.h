// Host versions of the wrappers in kernels/ptx.cuh: same names, same signatures.
// A trailing source location (defaulted) lets failures name the kernel's line.
#pragma once
#include "simt.h"

#define PTX_FN   inline
#define PTX_SM90 1
// Dynamic shared memory: declares  T* name.
#define PTX_DYN_SMEM(T, name) T *name = static_cast<T *>(simt::dyn_smem())

namespace simt {
void cp_async(uint32_t dst, const void *src, uint32_t bytes, uint32_t src_bytes, Loc loc);
void cp_async_commit(Loc loc);
void cp_async_wait(unsigned keep, Loc loc);
void ldmatrix(uint32_t *r, int count, bool trans, uint32_t addr, Loc loc);
void lds(void *r, uint32_t bytes, uint32_t addr, Loc loc);
void ldmatrix_s4(uint32_t *r, int count, uint32_t addr, Loc loc);
void stmatrix(const uint32_t *r, int count, bool trans, uint32_t addr, Loc loc);
void bulk_load(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar, Loc loc);
enum class Mma { S8_16832, B1_168256, F16_16816, BF16_16816 };
void mma(Mma kind, void *d, const uint32_t *a, const uint32_t *b, Loc loc);
void mbar_arrive_cluster(uint32_t bar, Loc loc);
uint32_t cluster_rank();
uint32_t cluster_addr(uint32_t addr, uint32_t rank, Loc loc);
void lds_cluster(void *r, uint32_t bytes, uint32_t addr, Loc loc);
void cluster_arrive(Loc loc);
void cluster_wait(Loc loc);
void mbar_init(uint32_t bar, uint32_t count, Loc loc);
void mbar_arrive(uint32_t bar, uint32_t count, int64_t tx, Loc loc);
bool mbar_test(uint32_t bar, uint32_t parity, Loc loc);
void mbar_wait(uint32_t bar, uint32_t parity, Loc loc);
void tma_load_2d(uint32_t dst, const CUtensorMap *m, uint32_t bar, int c0, int c1, Loc loc);
void tma_load_2d_multicast(uint32_t dst, const CUtensorMap *m, uint32_t bar, int c0, int c1, uint32_t mask, Loc loc);
void tma_store_2d(const CUtensorMap *m, uint32_t src, int c0, int c1, Loc loc);
void bulk_commit(Loc loc);
void bulk_wait(unsigned keep, Loc loc);
void fence_proxy_async(Loc loc);
enum class Wgmma { S8, U8S8, F16, BF16 };
void wgmma(Wgmma kind, int n, void *d, const uint32_t *a, uint64_t da, uint64_t db, bool scale_d, Loc loc);
void wgmma_fence(Loc loc);
void wgmma_commit(Loc loc);
void wgmma_wait(unsigned keep, Loc loc);
void griddep_wait();
// The emulator's tensor map (2-D, row-major, inner dimension first), stored in CUtensorMap's bytes.
void encode_tensor_map_2d(CUtensorMap *out, const void *base, int elem_bytes, uint64_t cols, uint64_t rows,
                          uint64_t row_pitch_bytes, uint32_t box_cols, uint32_t box_rows, int swizzle_bytes);
} // namespace simt

namespace ptx {
using simt::Loc;

inline uint32_t smem_addr(const void *p, SIMT_LOC) {
    return simt::smem_offset(p, loc);
}

inline void lds128(uint32_t (&r)[4], uint32_t addr, SIMT_LOC) {
    simt::lds(r, 16, addr, loc);
}
inline uint32_t lds32(uint32_t addr, SIMT_LOC) {
    uint32_t r;
    simt::lds(&r, 4, addr, loc);
    return r;
}
inline uint32_t opaque(uint32_t x) {
    return x;
}

// sm_80 asynchronous copies
inline void cp_async16(uint32_t dst, const void *src, uint32_t src_bytes = 16, SIMT_LOC) {
    simt::cp_async(dst, src, 16, src_bytes, loc);
}
inline void cp_async_commit(SIMT_LOC) {
    simt::cp_async_commit(loc);
}
template <int N> void cp_async_wait(SIMT_LOC) {
    simt::cp_async_wait(N, loc);
}

// matrix loads and tensor-core products
inline void ldmatrix_x1(uint32_t (&r)[1], uint32_t addr, SIMT_LOC) {
    simt::ldmatrix(r, 1, false, addr, loc);
}
inline void ldmatrix_x2(uint32_t (&r)[2], uint32_t addr, SIMT_LOC) {
    simt::ldmatrix(r, 2, false, addr, loc);
}
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr, SIMT_LOC) {
    simt::ldmatrix(r, 4, false, addr, loc);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t addr, SIMT_LOC) {
    simt::ldmatrix(r, 2, true, addr, loc);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr, SIMT_LOC) {
    simt::ldmatrix(r, 4, true, addr, loc);
}
#define PTX_HAS_LDMATRIX_S4 1
inline void ldmatrix_x4_s8_s4(uint32_t (&r)[4], uint32_t addr, SIMT_LOC) {
    simt::ldmatrix_s4(r, 4, addr, loc);
}
inline void stmatrix_x4_trans(uint32_t addr, const uint32_t (&r)[4], SIMT_LOC) {
    simt::stmatrix(r, 4, true, addr, loc);
}
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_LOC) {
    simt::mma(simt::Mma::S8_16832, d, a, b, loc);
}
inline void mma_m16n8k256_and_popc(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_LOC) {
    simt::mma(simt::Mma::B1_168256, d, a, b, loc);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_LOC) {
    simt::mma(simt::Mma::F16_16816, d, a, b, loc);
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_LOC) {
    simt::mma(simt::Mma::BF16_16816, d, a, b, loc);
}

// bit tricks
template <int Lut> uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t r = 0;
    if (Lut & 0x01) r |= ~a & ~b & ~c;
    if (Lut & 0x02) r |= ~a & ~b & c;
    if (Lut & 0x04) r |= ~a & b & ~c;
    if (Lut & 0x08) r |= ~a & b & c;
    if (Lut & 0x10) r |= a & ~b & ~c;
    if (Lut & 0x20) r |= a & ~b & c;
    if (Lut & 0x40) r |= a & b & ~c;
    if (Lut & 0x80) r |= a & b & c;
    return r;
}
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t sel) { // with the sign-replicating bit
    uint64_t v = (uint64_t(b) << 32) | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = sel >> 4 * i & 15, x = uint32_t(v >> 8 * (s & 7)) & 0xff;
        if (s & 8) x = x & 0x80 ? 0xff : 0;
        r |= x << 8 * i;
    }
    return r;
}

// mbarrier (bar: 32-bit shared address of an 8-byte object)
inline void mbar_init(uint32_t bar, uint32_t count, SIMT_LOC) {
    simt::mbar_init(bar, count, loc);
}
inline void mbar_fence_init(SIMT_LOC) {
    simt::fence_proxy_async(loc);
}
inline void mbar_arrive(uint32_t bar, SIMT_LOC) {
    simt::mbar_arrive(bar, 1, 0, loc);
}
inline void mbar_arrive_expect_tx(uint32_t bar, uint32_t bytes, SIMT_LOC) {
    simt::mbar_arrive(bar, 1, bytes, loc);
}
inline bool mbar_try_wait(uint32_t bar, uint32_t parity, SIMT_LOC) {
    if (simt::mbar_test(bar, parity, loc)) return true;
    simt::yield();
    return simt::mbar_test(bar, parity, loc);
}
inline void mbar_wait(uint32_t bar, uint32_t parity, SIMT_LOC) {
    simt::mbar_wait(bar, parity, loc);
}

// clusters
inline uint32_t cluster_rank() {
    return simt::cluster_rank();
}
inline uint32_t cluster_addr(uint32_t addr, uint32_t rank, SIMT_LOC) {
    return simt::cluster_addr(addr, rank, loc);
}
inline void lds128_cluster(uint32_t (&r)[4], uint32_t addr, SIMT_LOC) {
    simt::lds_cluster(r, 16, addr, loc);
}
inline void cluster_arrive(SIMT_LOC) {
    simt::cluster_arrive(loc);
}
inline void cluster_wait(SIMT_LOC) {
    simt::cluster_wait(loc);
}
inline void mbar_arrive_cluster(uint32_t bar, SIMT_LOC) {
    simt::mbar_arrive_cluster(bar, loc);
}
inline void mbar_wait_cluster(uint32_t bar, uint32_t parity, SIMT_LOC) {
    simt::mbar_wait(bar, parity, loc);
}
inline void tma_load_2d_multicast(uint32_t dst, const CUtensorMap *m, uint32_t bar, int c0, int c1, uint16_t mask,
                                  SIMT_LOC) {
    simt::tma_load_2d_multicast(dst, m, bar, c0, c1, mask, loc);
}

// TMA
inline void tma_prefetch_map(const CUtensorMap *) {}
inline void tma_load_2d(uint32_t dst, const CUtensorMap *m, uint32_t bar, int c0, int c1, SIMT_LOC) {
    simt::tma_load_2d(dst, m, bar, c0, c1, loc);
}
inline void tma_store_2d(const CUtensorMap *m, uint32_t src, int c0, int c1, SIMT_LOC) {
    simt::tma_store_2d(m, src, c0, c1, loc);
}
inline void bulk_load(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar, SIMT_LOC) {
    simt::bulk_load(dst, src, bytes, bar, loc);
}
inline void bulk_commit(SIMT_LOC) {
    simt::bulk_commit(loc);
}
template <int N> void bulk_wait_read(SIMT_LOC) {
    simt::bulk_wait(N, loc);
}
inline void fence_proxy_async(SIMT_LOC) {
    simt::fence_proxy_async(loc);
}

// wgmma: d is the m64nN accumulator fragment of the calling thread (N/2 values)
inline void wgmma_fence(SIMT_LOC) {
    simt::wgmma_fence(loc);
}
template <class T, int N> void reg_fence(T (&)[N]) {}
template <int N, int M> void reg_fence(uint32_t (&)[N][M]) {}
inline void wgmma_commit(SIMT_LOC) {
    simt::wgmma_commit(loc);
}
template <int N> void wgmma_wait(SIMT_LOC) {
    simt::wgmma_wait(N, loc);
}
template <int N> void wgmma_s8s8(int32_t (&d)[N / 2], uint64_t da, uint64_t db, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::S8, N, d, nullptr, da, db, true, loc);
}
template <int N> void wgmma_f16(float (&d)[N / 2], uint64_t da, uint64_t db, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::F16, N, d, nullptr, da, db, true, loc);
}
template <int N> void wgmma_bf16(float (&d)[N / 2], uint64_t da, uint64_t db, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::BF16, N, d, nullptr, da, db, true, loc);
}
template <int N> void wgmma_rs_u8s8(int32_t (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::U8S8, N, d, a, 0, db, true, loc);
}
template <int N> void wgmma_rs_s8s8(int32_t (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::S8, N, d, a, 0, db, true, loc);
}
template <int N> void wgmma_rs_f16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::F16, N, d, a, 0, db, true, loc);
}
template <int N> void wgmma_rs_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::BF16, N, d, a, 0, db, true, loc);
}
template <int N> void wgmma_rs_f16_keep(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, uint32_t keep, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::F16, N, d, a, 0, db, keep != 0, loc);
}
template <int N> void wgmma_rs_bf16_keep(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, uint32_t keep, SIMT_LOC) {
    simt::wgmma(simt::Wgmma::BF16, N, d, a, 0, db, keep != 0, loc);
}

// the rest
inline void named_bar_sync(int id, int n, SIMT_LOC) {
    simt::bar_sync(id, n, loc);
}
inline void named_bar_arrive(int id, int n, SIMT_LOC) {
    simt::bar_arrive(id, n, loc);
}
template <int N> void setmaxnreg_inc() {}
template <int N> void setmaxnreg_dec() {}
inline void griddep_wait() {
    simt::griddep_wait();
}
inline void griddep_launch() {}
inline bool elect_one(SIMT_LOC) {
    return __ballot_sync(0xffffffffu, true, loc) && simt::lane_id() == 0;
}
inline uint32_t ld_acquire(const uint32_t *p, SIMT_LOC) {
    simt::global_access(p, 4, false, loc, "ld.acquire");
    simt::yield();
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
inline void red_release_add(uint32_t *p, uint32_t v, SIMT_LOC) {
    simt::global_access(p, 4, true, loc, "red.release");
    __atomic_fetch_add(p, v, __ATOMIC_RELEASE);
}
} // namespace ptx
