// SIMT host emulator: runs CUDA kernel sources as ordinary C++, one fiber per CUDA thread.
//
// A kernel source is compiled with -DSIMT_EMULATE by the host C++ compiler.  It may use the CUDA
// builtins declared here and the PTX wrappers of kernels/ptx.cuh (host versions in simt_ptx.h);
// anything else that is GPU-only does not compile, on purpose.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <algorithm>
#include <functional>
#include <string>
#include <type_traits>

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace simt {

// The kernel's source line, captured by a defaulted argument (std::source_location needs clang 16).
struct Loc {
    const char *f = "";
    unsigned l = 0;
    static constexpr Loc current(const char *f = __builtin_FILE(), unsigned l = __builtin_LINE()) { return {f, l}; }
    const char *file_name() const { return f; }
    unsigned line() const { return l; }
};

// ---------------------------------------------------------------- launch interface (tests)
enum class Order { RoundRobin, Reverse, Random }; // which runnable warp / lane goes next
enum class Async { Eager, Lazy, Random };         // when cp.async / TMA / wgmma take effect

struct Options {
    Order order = Order::RoundRobin;
    Async async = Async::Eager;
    uint64_t seed = 1;
    int os_threads = 1;    // blocks spread over this many OS threads
    int resident = 1;      // blocks interleaved on one OS thread (spin-waits between blocks)
    bool racecheck = true; // effective only for kernels built with the memory hooks (racecheck build)
    bool check_proxy = true;
};

struct Result {
    bool ok = true;
    std::string error; // first failure: what, where (file:line), which thread
};

// cluster: so many neighbours along each axis of the grid run together and reach each other's shared memory.
// early: as if the kernels ahead had not ended. Until a thread calls griddep_wait() it writes no global memory and reads none
// that a kernel has ever written (stores are known in the race flavour alone); a block that never calls it is an error.
Result launch_fn(const std::function<void()> &body, dim3 grid, dim3 block, size_t smem_bytes, const Options &opt,
                 dim3 cluster = dim3(1), bool early = false);

template <class... P, class... A>
Result launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, const Options &o, const A &...args) {
    return launch_fn([&] { kernel(static_cast<P>(args)...); }, grid, block, smem, o);
}

// Device memory: 256-byte aligned, exact bounds known to the wrappers' checks.
void *device_alloc(size_t bytes);
void device_free(void *p);
void kernel_wrote(const void *p, size_t bytes); // as if one ahead had: early launches may not read it before they wait

// ---------------------------------------------------------------- thread identity
template <class T> struct Same { using type = T; }; // keeps a parameter out of deduction
struct Thread;
struct Block;
struct ThreadIds {
    uint3 tid;
    uint3 bid;
    dim3 bdim;
    dim3 gdim;
};
extern thread_local ThreadIds *t_ids; // of the running fiber

// ---------------------------------------------------------------- primitives used by wrappers
[[noreturn]] void fail(Loc loc, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void *dyn_smem();
uint32_t smem_offset(const void *p, Loc loc); // generic -> 32-bit shared address
void *smem_ptr(uint32_t addr, size_t bytes, size_t align, Loc loc, const char *what);
void check_global(const void *p, size_t bytes, size_t align, Loc loc, const char *what);
void global_access(const void *p, size_t bytes, bool write, Loc loc, const char *what); // against kernels before it
unsigned lane_id();

// Runs fn once, when every lane of mask has arrived with the same (fn, mask, source line).
using WarpFn = void (*)(void *const *lane_args, uint32_t mask);
void warp_collective(uint32_t mask, void *args, WarpFn fn, const char *name, Loc loc);
// The same for the 128 threads of a warpgroup.
using GroupFn = void (*)(void *const *thread_args, int warpgroup);
void warpgroup_collective(void *args, GroupFn fn, const char *name, Loc loc);

void bar_sync(int id, int count, Loc loc); // count 0: the whole block
void bar_arrive(int id, int count, Loc loc);
void yield(); // a legal place for other warps to run

} // namespace simt

#define threadIdx (simt::t_ids->tid)
#define blockIdx  (simt::t_ids->bid)
#define blockDim  (simt::t_ids->bdim)
#define gridDim   (simt::t_ids->gdim)
constexpr int warpSize = 32;

// ---------------------------------------------------------------- CUDA builtins
#define SIMT_LOC simt::Loc loc = simt::Loc::current()

inline void __syncthreads(SIMT_LOC) {
    simt::bar_sync(0, 0, loc);
}
void __syncwarp(uint32_t mask = 0xffffffffu, SIMT_LOC);
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace simt {
struct ShflArgs {
    uint64_t in, out;
    int src;
};
void shfl(ShflArgs *a, uint32_t mask, Loc loc);
template <class T> T shfl_any(uint32_t mask, T v, int src, Loc loc) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    ShflArgs a{0, 0, src};
    std::memcpy(&a.in, &v, sizeof(T));
    shfl(&a, mask, loc);
    std::memcpy(&v, &a.out, sizeof(T));
    return v;
}
uint32_t ballot(uint32_t mask, bool pred, Loc loc);
} // namespace simt

template <class T> T __shfl_sync(uint32_t m, T v, int src, int w = 32, SIMT_LOC) {
    int l = int(simt::lane_id());
    return simt::shfl_any(m, v, (l & ~(w - 1)) | (src & (w - 1)), loc);
}
template <class T> T __shfl_xor_sync(uint32_t m, T v, int x, int w = 32, SIMT_LOC) {
    int l = int(simt::lane_id()), s = l ^ x;
    return simt::shfl_any(m, v, (s & ~(w - 1)) > (l & ~(w - 1)) ? l : s, loc);
}
template <class T> T __shfl_down_sync(uint32_t m, T v, int d, int w = 32, SIMT_LOC) {
    int l = int(simt::lane_id()), s = l + d;
    return simt::shfl_any(m, v, s > (l | (w - 1)) ? l : s, loc);
}
template <class T> T __shfl_up_sync(uint32_t m, T v, int d, int w = 32, SIMT_LOC) {
    int l = int(simt::lane_id()), s = l - d;
    return simt::shfl_any(m, v, s < (l & ~(w - 1)) ? l : s, loc);
}
inline uint32_t __ballot_sync(uint32_t m, bool p, SIMT_LOC) {
    return simt::ballot(m, p, loc);
}
inline int __any_sync(uint32_t m, bool p, SIMT_LOC) {
    return simt::ballot(m, p, loc) != 0;
}
inline int __all_sync(uint32_t m, bool p, SIMT_LOC) {
    return simt::ballot(m, p, loc) == m;
}

template <class T> T atomicAdd(T *p, typename simt::Same<T>::type v) {
    if constexpr (std::is_integral_v<T>)
        return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
    else {
        T old = *p, want;
        do want = old + v;
        while (!__atomic_compare_exchange(p, &old, &want, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        return old;
    }
}
inline unsigned atomicMax(unsigned *p, unsigned v) {
    unsigned o = *p;
    while (o < v && !__atomic_compare_exchange_n(p, &o, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return o;
}
inline unsigned atomicCAS(unsigned *p, unsigned c, unsigned v) {
    __atomic_compare_exchange_n(p, &c, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return c;
}

template <class T> T __ldg(const T *p) {
    return *p;
}
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
    return c;
}
inline int __float2int_rn(float x) {
    return int(std::nearbyintf(x));
}
inline float __int2float_rn(int x) {
    return float(x);
}
inline float __int_as_float(int x) {
    float f;
    std::memcpy(&f, &x, 4);
    return f;
}
inline int __float_as_int(float f) {
    int x;
    std::memcpy(&x, &f, 4);
    return x;
}
inline unsigned __float_as_uint(float f) {
    unsigned x;
    std::memcpy(&x, &f, 4);
    return x;
}
inline float __uint_as_float(unsigned x) {
    float f;
    std::memcpy(&f, &x, 4);
    return f;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fsqrt_rn(float a) {
    return std::sqrt(a);
}
inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline float __fmul_rn(float a, float b) {
    return a * b;
} // host: -ffp-contract=off
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline int __clz(int x) {
    return x ? __builtin_clz(unsigned(x)) : 32;
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t s) {
    uint64_t v = (uint64_t(b) << 32) | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) r |= uint32_t((v >> (8 * ((s >> 4 * i) & 7))) & 0xff) << 8 * i;
    return r;
}
using std::max;
using std::min;
