// Kernel launches, one form for nvcc and the emulator: typed arguments into a qk_cuda_launch.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "cuda_api.h"

// NVTX ranges name the kernels in a profile; the header is part of the toolkit and optional.
#if defined(__CUDACC__) && __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define QK_RANGE_PUSH(name) nvtxRangePushA(name)
#define QK_RANGE_POP()      nvtxRangePop()
#else
#define QK_RANGE_PUSH(name) ((void)0)
#define QK_RANGE_POP()      ((void)0)
#endif

namespace qk_cuda {

#ifdef SIMT_EMULATE
template <class... P, std::size_t... I> void call(void (*kernel)(P...), void **args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<P> *>(args[I])...);
}
template <class... P> void invoke(const void *kernel, void **args) {
    call(reinterpret_cast<void (*)(P...)>(const_cast<void *>(kernel)), args, std::index_sequence_for<P...>{});
}
#endif

struct ClusterSize { // blocks along y and z that run together
    uint32_t y, z;
};
// When a kernel may begin. Early, where the device can: before the kernels ahead of it in the stream have ended (programmatic
// dependent launch). Then every block calls griddep_wait(), the first time all those have ended and their writes are
// seen; until then a thread writes nothing outside its block and reads only what no kernel writes: packed weights.
enum class Start { InOrder, Early };
// Arguments must have exactly the kernel's parameter types: their addresses are passed.
template <Start kStart = Start::InOrder, class... P>
qe_status launch_cluster(void (*kernel)(P...), dim3 grid, ClusterSize cluster, uint32_t block, size_t shared_bytes, const qk_queue *queue,
                 const char *name, qe_error *err, std::decay_t<P>... args) {
    void *pointers[] = {static_cast<void *>(&args)...};
    qk_cuda_launch l{};
    l.kernel = reinterpret_cast<const void *>(kernel);
#ifdef SIMT_EMULATE
    static const size_t bytes[] = {sizeof(std::decay_t<P>)...};
    l.invoke = &invoke<P...>, l.arg_bytes = bytes, l.arg_count = sizeof...(P);
#endif
    l.args = pointers;
    l.grid[0] = grid.x, l.grid[1] = grid.y, l.grid[2] = grid.z;
    l.block = block, l.cluster[0] = cluster.y, l.cluster[1] = cluster.z;
    l.shared_bytes = uint32_t(shared_bytes);
    l.early = kStart == Start::Early && queue->device->flags & QK_DEVICE_EARLY;
    QK_RANGE_PUSH(name);
    qe_status status = qk_cuda_enqueue(&l, queue, name, err);
    QK_RANGE_POP();
    return status;
}
template <Start kStart = Start::InOrder, class... P>
qe_status launch(void (*kernel)(P...), dim3 grid, uint32_t block, size_t shared_bytes, const qk_queue *queue,
                 const char *name, qe_error *err, std::decay_t<P>... args) {
    return launch_cluster<kStart, P...>(kernel, grid, ClusterSize{1, 1}, block, shared_bytes, queue, name, err, args...);
}

} // namespace qk_cuda
