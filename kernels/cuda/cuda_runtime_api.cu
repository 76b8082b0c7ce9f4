// qk_cuda_api over the CUDA runtime. libcuda is never linked: its one entry point is resolved through the runtime.
#ifndef SIMT_EMULATE
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstring>

#include "cuda_api.h"

namespace {

int count(int *devices) {
    // No driver or no device is no error.
    cudaError_t code = cudaGetDeviceCount(devices);
    if (code != cudaSuccess) {
        (void)cudaGetLastError();
        *devices = 0;
    }
    return 0;
}
// A failure that is reported here must not be found again by the host application's cudaGetLastError(). A lost context
// keeps its error whatever is cleared.
int reported(cudaError_t code) {
    if (code != cudaSuccess) (void)cudaGetLastError();
    return code;
}
int current(int *ordinal) {
    return reported(cudaGetDevice(ordinal));
}
int select(int ordinal) {
    return reported(cudaSetDevice(ordinal));
}
int facts(int ordinal, qk_device *out) {
    cudaDeviceProp p;
    cudaError_t code = cudaGetDeviceProperties(&p, ordinal);
    if (code != cudaSuccess) return reported(code);
    out->units = p.multiProcessorCount;
    out->sm = p.major * 10 + p.minor;
    out->unit_bytes = uint32_t(p.sharedMemPerBlockOptin);
    out->toolkit = __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__;
    // Kernels that wait themselves are of sm_90; graphs hold such an edge since CUDA 12.3.
    int driver = 0;
    code = cudaDriverGetVersion(&driver);
    if (code != cudaSuccess) return reported(code);
    if (p.major == 9 && driver >= 12030) out->flags |= QK_DEVICE_EARLY;
    out->cache_bytes = uint64_t(p.l2CacheSize);
    out->memory_bytes = p.totalGlobalMem;
    std::strncpy(out->name, p.name, sizeof out->name - 1);
    return 0;
}
bool lost(int code);
int clusters(uint32_t blocks, int *at_once) {
    int device = 0, bytes = 0;
    const void *kernel = qk_cuda_whole_unit_sm90();
    cudaError_t code = cudaGetDevice(&device);
    if (code == cudaSuccess) code = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (code == cudaSuccess) code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (code != cudaSuccess) return reported(code);
    cudaLaunchAttribute size{};
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim.x = size.val.clusterDim.y = 1, size.val.clusterDim.z = blocks;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1, 1, blocks), config.blockDim = dim3(32), config.dynamicSmemBytes = size_t(bytes);
    config.attrs = &size, config.numAttrs = 1;
    code = cudaOccupancyMaxActiveClusters(at_once, kernel, &config);
    if (code == cudaSuccess || lost(code)) return reported(code);
    (void)cudaGetLastError(); // whatever the reason, such a cluster does not run: no failure
    *at_once = 0;
    return 0;
}
int alloc(void **out, size_t bytes) {
    return reported(cudaMalloc(out, bytes));
}
int release(void *block) {
    return reported(cudaFree(block));
}
int copy(void *dst, const void *src, size_t bytes, void *stream) {
    return reported(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(stream)));
}
int wait(void *stream) {
    return reported(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}
int launch(const qk_cuda_launch *l, void *stream) {
    if (l->shared_bytes > 48 * 1024) {
        cudaError_t code =
            cudaFuncSetAttribute(l->kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(l->shared_bytes));
        if (code != cudaSuccess) return reported(code);
    }
    cudaLaunchAttribute attributes[2] = {};
    unsigned count = 0;
    if (l->cluster[0] > 1 || l->cluster[1] > 1) {
        cudaLaunchAttribute &cluster = attributes[count++];
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = 1;
        cluster.val.clusterDim.y = l->cluster[0] > 1 ? l->cluster[0] : 1;
        cluster.val.clusterDim.z = l->cluster[1] > 1 ? l->cluster[1] : 1;
    }
    if (l->early) {
        cudaLaunchAttribute &early = attributes[count++];
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(l->grid[0], l->grid[1], l->grid[2]), config.blockDim = dim3(l->block);
    config.dynamicSmemBytes = l->shared_bytes, config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes, config.numAttrs = count;
    return reported(cudaLaunchKernelExC(&config, l->kernel, l->args));
}
int tensor_map(void *map, const void *base, uint64_t cols, uint64_t rows, uint64_t pitch, uint32_t box_rows) {
    using Encode = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaError_t code =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (code != cudaSuccess) return reported(code);
    if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
    const cuuint64_t sizes[2] = {cols, rows}, pitches[1] = {pitch};
    const cuuint32_t box[2] = {128, box_rows}, steps[2] = {1, 1};
    CUresult result = reinterpret_cast<Encode>(entry)(
        static_cast<CUtensorMap *>(map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void *>(base), sizes, pitches,
        box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? 0 : cudaErrorInvalidValue;
}
const char *text(int code) {
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
bool out_of_memory(int code) {
    return code == cudaErrorMemoryAllocation;
}
bool lost(int code) {
    switch (code) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
        return true;
    default:
        return false;
    }
}

} // namespace

extern "C" const qk_cuda_api qk_cuda_api_default = {count,   current, select, facts,      clusters, alloc,         release,
                                                    copy,    wait,    launch, tensor_map, text,     out_of_memory, lost};
#endif
