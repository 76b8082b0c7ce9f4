// Every PTX instruction the kernels use, one thin wrapper each.  Kernels contain no asm.
//
// With SIMT_EMULATE the same names come from the host emulator, so a kernel that compiles against
// this header runs on both.  Shared addresses are 32-bit (smem_addr).
#pragma once
#include <cstdint>

#ifdef SIMT_EMULATE
#include "simt_ptx.h"
#else
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define PTX_FN   __device__ __forceinline__
#define PTX_SM90 (__CUDA_ARCH__ >= 900) // code for instructions of sm_90a
#define PTX_DYN_SMEM(T, name)                                                                                          \
    extern __shared__ __align__(1024) unsigned char ptx_dyn_smem_[];                                                   \
    T *name = reinterpret_cast<T *>(ptx_dyn_smem_)

namespace ptx {

PTX_FN uint32_t smem_addr(const void *p) {
    return uint32_t(__cvta_generic_to_shared(p));
}

// loads by shared address
PTX_FN void lds128(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
PTX_FN uint32_t lds32(uint32_t addr) {
    uint32_t r;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(addr) : "memory");
    return r;
}
// Hides where a value came from, so that the compiler keeps it in a register instead of computing it again.
PTX_FN uint32_t opaque(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

// sm_80 asynchronous copies.  src_bytes < 16 fills the rest with zeros.
PTX_FN void cp_async16(uint32_t dst, const void *src, uint32_t src_bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(src_bytes) : "memory");
}
PTX_FN void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> PTX_FN void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// matrix loads and tensor-core products
PTX_FN void ldmatrix_x1(uint32_t (&r)[1], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(addr) : "memory");
}
PTX_FN void ldmatrix_x2(uint32_t (&r)[2], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(addr)
                 : "memory");
}
PTX_FN void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
PTX_FN void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(addr)
                 : "memory");
}
PTX_FN void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
// CUDA 13.4+, sm_90a and later: x4 matrices of 8 rows x 16 signed 4-bit values (8 bytes a row), widened to int8.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1304
#define PTX_HAS_LDMATRIX_S4 1
PTX_FN void ldmatrix_x4_s8_s4(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n16.x4.shared::cta.s8.s4 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
#endif
PTX_FN void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d += popc(a & b) over 256 bits. One instruction on sm_80 to sm_90; later chips make it of int8 products. There is
// .xor.popc as well, but sm_90 makes that of two of these.
PTX_FN void mma_m16n8k256_and_popc(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
PTX_FN void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
PTX_FN void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// bit tricks
template <int Lut> PTX_FN uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(Lut));
    return r;
}
PTX_FN uint32_t prmt(uint32_t a, uint32_t b, uint32_t sel) {
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sel));
    return r;
}

PTX_FN void named_bar_sync(int id, int n) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
PTX_FN void named_bar_arrive(int id, int n) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}
PTX_FN uint32_t ld_acquire(const uint32_t *p) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
PTX_FN void red_release_add(uint32_t *p, uint32_t v) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Programmatic dependent launch. wait: the kernels ahead in the stream have ended, their writes are seen; launch: those
// behind may begin once every block has said so. Nothing where kernels are not launched early (launch.cuh).
PTX_FN void griddep_wait() {
#if PTX_SM90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PTX_FN void griddep_launch() {
#if PTX_SM90
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
// mbarrier (bar: shared address of an 8-byte object)
PTX_FN void mbar_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
PTX_FN void mbar_fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}
PTX_FN void mbar_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
PTX_FN void mbar_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}
PTX_FN bool mbar_try_wait(uint32_t bar, uint32_t parity) {
    uint32_t ok;
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(ok)
        : "r"(bar), "r"(parity)
        : "memory");
    return ok;
}
PTX_FN void mbar_wait(uint32_t bar, uint32_t parity) {
    while (!mbar_try_wait(bar, parity)) {}
}

// clusters: blocks that run together. A shared address means the block's own memory, cluster_addr() gives the address of
// the same place in block `rank`. arrive and wait: every thread of the cluster that has not exited.
PTX_FN uint32_t cluster_rank() {
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}
PTX_FN uint32_t cluster_addr(uint32_t addr, uint32_t rank) {
    uint32_t r;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(addr), "r"(rank));
    return r;
}
PTX_FN void lds128_cluster(uint32_t (&r)[4], uint32_t addr) { // of any block of the cluster
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}
PTX_FN void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
PTX_FN void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
PTX_FN void mbar_arrive_cluster(uint32_t bar) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
PTX_FN void mbar_wait_cluster(uint32_t bar, uint32_t parity) { // arrivals came from other blocks too
    uint32_t ok;
    do asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(ok)
        : "r"(bar), "r"(parity)
        : "memory");
    while (!ok);
}

// TMA, 2-D tiles: c0 is the column (inner) coordinate, c1 the row
PTX_FN void tma_prefetch_map(const CUtensorMap *m) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory");
}
PTX_FN void tma_load_2d(uint32_t dst, const CUtensorMap *m, uint32_t bar, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
                 "%4}], [%2];" ::"r"(dst),
                 "l"(m), "r"(bar), "r"(c0), "r"(c1)
                 : "memory");
}
// The box goes to the same offset of every block in the mask, its bytes to the barrier there.
PTX_FN void tma_load_2d_multicast(uint32_t dst, const CUtensorMap *m, uint32_t bar, int c0, int c1, uint16_t mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(dst),
                 "l"(m), "r"(bar), "r"(c0), "r"(c1), "h"(mask)
                 : "memory");
}
// one contiguous range, 16-byte aligned, a multiple of 16 bytes
PTX_FN void bulk_load(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar)
                 : "memory");
}
PTX_FN void stmatrix_x4_trans(uint32_t addr, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
PTX_FN void tma_store_2d(const CUtensorMap *m, uint32_t src, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(m), "r"(src),
                 "r"(c0), "r"(c1)
                 : "memory");
}
PTX_FN void bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int N> PTX_FN void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
PTX_FN void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

PTX_FN bool elect_one() {
    uint32_t ok;
    asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(ok));
    return ok;
}
template <int N> PTX_FN void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> PTX_FN void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// wgmma (sm_90a): d is the m64nN accumulator fragment of the calling thread
PTX_FN void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Keeps the compiler from moving accumulator accesses across (else ptxas serialises wgmma: C7514).
template <int N> PTX_FN void reg_fence(int32_t (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}
template <int N> PTX_FN void reg_fence(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N, int M> PTX_FN void reg_fence(uint32_t (&d)[N][M]) {
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < M; j++) asm volatile("" : "+r"(d[i][j])::"memory");
}
PTX_FN void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> PTX_FN void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// wgmma wrappers: N in {16, 64, 128, 256}, d accumulates (zero the registers first). The operand lists are spelled by
// macros; *_rs takes A from registers, the other from shared memory.
#define WG_T(a)   "%" #a "0,%" #a "1,%" #a "2,%" #a "3,%" #a "4,%" #a "5,%" #a "6,%" #a "7,%" #a "8,%" #a "9"
#define WG_LIST16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define WG_LIST64 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," WG_T(1) "," WG_T(2) ",%30,%31"
#define WG_LIST128                                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," WG_T(1) "," WG_T(2) "," WG_T(3) "," WG_T(4) "," WG_T(5) ",%60,%61,%62,%63"
#define WG_LIST256                                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," WG_T(1) "," WG_T(2) "," WG_T(3) "," WG_T(4) "," WG_T(5) "," WG_T(6) "," WG_T(     \
        7) "," WG_T(8) "," WG_T(9) "," WG_T(10) "," WG_T(11) ",%120,%121,%122,%123,%124,%125,%126,%127"
#define WG_ROWS16    "{%8,%9,%10,%11}, %12"
#define WG_ROWS64    "{%32,%33,%34,%35}, %36"
#define WG_ROWS128   "{%64,%65,%66,%67}, %68"
#define WG_ROWS256   "{%128,%129,%130,%131}, %132"
#define WG_D4(c, i)  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define WG_D8(c, i)  WG_D4(c, i), WG_D4(c, i + 4)
#define WG_D32(c, i) WG_D8(c, i), WG_D8(c, i + 8), WG_D8(c, i + 16), WG_D8(c, i + 24)
#define WG_OPS16(c)  WG_D8(c, 0)
#define WG_OPS64(c)  WG_D32(c, 0)
#define WG_OPS128(c) WG_D32(c, 0), WG_D32(c, 32)
#define WG_OPS256(c) WG_D32(c, 0), WG_D32(c, 32), WG_D32(c, 64), WG_D32(c, 96)

#define WG_ONE(name, N, K, types, T, c, immediates)                                                                    \
    template <> PTX_FN void name<N>(T(&d)[N / 2], const uint32_t(&a)[4], uint64_t db) {                                \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k" #K types " {" WG_LIST##N "}, " WG_ROWS##N            \
                     ", 1" immediates ";"                                                                              \
                     : WG_OPS##N(c)                                                                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(db));                                           \
    }
#define WG_SS(name, N, K, types, T, c, tail)                                                                           \
    template <> PTX_FN void name<N>(T(&d)[N / 2], uint64_t da, uint64_t db) {                                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k" #K types " {" WG_LIST##N "}, " tail ";"                \
                     : WG_OPS##N(c)                                                                                    \
                     : "l"(da), "l"(db));                                                                              \
    }
#define WG_ALL(name, K, types, T, c, immediates)                                                                       \
    template <int N> PTX_FN void name(T(&d)[N / 2], const uint32_t(&a)[4], uint64_t db);                               \
    WG_ONE(name, 16, K, types, T, c, immediates)                                                                       \
    WG_ONE(name, 64, K, types, T, c, immediates)                                                                       \
    WG_ONE(name, 128, K, types, T, c, immediates)                                                                      \
    WG_ONE(name, 256, K, types, T, c, immediates)

WG_ALL(wgmma_rs_u8s8, 32, ".s32.u8.s8", int32_t, "+r", "")
WG_ALL(wgmma_rs_s8s8, 32, ".s32.s8.s8", int32_t, "+r", "")
WG_ALL(wgmma_rs_f16, 16, ".f32.f16.f16", float, "+f", ", 1, 1, 0")
WG_ALL(wgmma_rs_bf16, 16, ".f32.bf16.bf16", float, "+f", ", 1, 1, 0")
// d is forgotten where keep is 0. Not an immediate: ptxas would give the sums before other registers, and move them in flight.
#define WG_KEEP_ONE(name, N, keeps, types)                                                                             \
    template <> PTX_FN void name<N>(float(&d)[N / 2], const uint32_t(&a)[4], uint64_t db, uint32_t keep) {             \
        asm volatile("{.reg .pred p; setp.ne.u32 p, " keeps ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16" types    \
                     " {" WG_LIST##N "}, " WG_ROWS##N ", p, 1, 1, 0;}"                                                 \
                     : WG_OPS##N("+f")                                                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(db), "r"(keep));                                \
    }
#define WG_KEEP(name, types)                                                                                           \
    template <int N> PTX_FN void name(float(&d)[N / 2], const uint32_t(&a)[4], uint64_t db, uint32_t keep);            \
    WG_KEEP_ONE(name, 16, "%13", types)                                                                                \
    WG_KEEP_ONE(name, 64, "%37", types)                                                                                \
    WG_KEEP_ONE(name, 128, "%69", types)
WG_KEEP(wgmma_rs_f16_keep, ".f32.f16.f16")
WG_KEEP(wgmma_rs_bf16_keep, ".f32.bf16.bf16")
template <int N> PTX_FN void wgmma_s8s8(int32_t (&d)[N / 2], uint64_t da, uint64_t db);
WG_SS(wgmma_s8s8, 16, 32, ".s32.s8.s8", int32_t, "+r", "%8, %9, 1")
WG_SS(wgmma_s8s8, 64, 32, ".s32.s8.s8", int32_t, "+r", "%32, %33, 1")
WG_SS(wgmma_s8s8, 128, 32, ".s32.s8.s8", int32_t, "+r", "%64, %65, 1")
WG_SS(wgmma_s8s8, 256, 32, ".s32.s8.s8", int32_t, "+r", "%128, %129, 1")
#define WG_SS16(name, types)                                                                                           \
    template <int N> PTX_FN void name(float (&d)[N / 2], uint64_t da, uint64_t db);                                    \
    WG_SS(name, 16, 16, types, float, "+f", "%8, %9, 1, 1, 1, 0, 0")                                                   \
    WG_SS(name, 64, 16, types, float, "+f", "%32, %33, 1, 1, 1, 0, 0")                                                 \
    WG_SS(name, 128, 16, types, float, "+f", "%64, %65, 1, 1, 1, 0, 0")                                                \
    WG_SS(name, 256, 16, types, float, "+f", "%128, %129, 1, 1, 1, 0, 0")
WG_SS16(wgmma_f16, ".f32.f16.f16")
WG_SS16(wgmma_bf16, ".f32.bf16.bf16")
#endif // sm_90
} // namespace ptx
#endif // SIMT_EMULATE

namespace ptx {
// Descriptor of a K-major operand in 128-byte-swizzled rows (8-row atoms 1024 bytes apart).
#ifdef SIMT_EMULATE
inline
#else
__device__ __forceinline__
#endif
    uint64_t
    wgmma_desc(uint32_t addr) {
    return uint64_t((addr & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
} // namespace ptx
