// The conformance kernels on a GPU of compute capability 9.0: prints the wrappers whose kernel disagrees with the host.
// Target ptx_conformance_gpu of the cuda preset, or
//   nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Iinclude -Ikernels/cuda -Itests/simt tests/simt/run_conformance.cu
// Exit 0: all agree; 1: some do not; 3: no such GPU. --plant spoils one answer, to see that a difference is found.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "ptx_conformance.cuh"
#include <cuda_runtime.h>

using namespace conformance;

// libcuda is not linked: its one entry point is resolved through the runtime.
using Encode = decltype(&cuTensorMapEncodeTiled);
static Encode encoder() {
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found) != cudaSuccess)
        entry = nullptr;
    return reinterpret_cast<Encode>(entry);
}
static void encode(CUtensorMap *map, void *base, uint64_t cols, uint64_t rows, uint64_t pitch) {
    const cuuint64_t size[2] = {cols, rows}, stride[1] = {pitch};
    const cuuint32_t box[2] = {128, 8}, step[2] = {1, 1};
    const Encode tiled = encoder();
    if (!tiled || tiled(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, base, size, stride, box, step,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
        std::printf("cuTensorMapEncodeTiled failed\n");
        std::exit(1);
    }
}
static void fill(std::vector<uint32_t> &words, Fill how, std::mt19937 &g) {
    auto small = [&] { return float(int(g() % 17) - 8); };
    for (uint32_t &w : words) {
        const float lo = small(), hi = small();
        w = how == kBytes    ? uint32_t(g())
            : how == kHalves ? uint32_t(qe_f32_to_f16(lo)) | uint32_t(qe_f32_to_f16(hi)) << 16
                             : uint32_t(qe_f32_to_bf16(lo)) | uint32_t(qe_f32_to_bf16(hi)) << 16;
    }
}
int main(int argc, char **argv) {
    int devices = 0;
    cudaDeviceProp device;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) return std::printf("skipped: no GPU\n"), 3;
    if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || device.major != 9)
        return std::printf("skipped: not of compute capability 9.0\n"), 3;
    const bool plant = argc > 1 && std::strcmp(argv[1], "--plant") == 0;
    std::mt19937 g(1);
    int wrong = 0;
    for (const Case &c : kCases) {
        std::vector<uint32_t> in(c.in_words), out(c.out_words), want(c.out_words, 0);
        fill(in, c.fill, g);
        uint32_t *device_in, *device_out;
        cudaMalloc(&device_in, in.size() * 4), cudaMalloc(&device_out, out.size() * 4);
        cudaMemcpy(device_in, in.data(), in.size() * 4, cudaMemcpyHostToDevice);
        cudaMemset(device_out, 0, out.size() * 4);
        Maps maps{};
        if (c.kernel == tensor_loads || c.kernel == multicasts)
            encode(&maps.in, device_in, kMapCols, kMapRows, kMapPitch);
        if (c.kernel == tensor_stores) encode(&maps.out, device_out, kOutCols, kOutRows, kOutPitch);
        cudaFuncSetAttribute(c.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(c.shared));
        cudaLaunchAttribute cluster{};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = 1, cluster.val.clusterDim.y = c.cluster, cluster.val.clusterDim.z = 1;
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(1, c.cluster), config.blockDim = dim3(c.threads), config.dynamicSmemBytes = c.shared;
        config.attrs = &cluster, config.numAttrs = c.cluster > 1;
        cudaError_t e = cudaLaunchKernelEx(&config, c.kernel, Maps(maps), static_cast<const uint32_t *>(device_in),
                                           device_out);
        if (e == cudaSuccess) e = cudaDeviceSynchronize();
        if (e != cudaSuccess) return std::printf("%s: %s\n", c.wrappers, cudaGetErrorString(e)), 1;
        cudaMemcpy(out.data(), device_out, out.size() * 4, cudaMemcpyDeviceToHost);
        c.reference(in.data(), want.data());
        if (plant && &c == kCases) want[0] ^= 1;
        if (out != want) std::printf("differs: %s\n", c.wrappers), wrong++;
        cudaFree(device_in), cudaFree(device_out);
    }
    std::printf("%d kernels, %d differ\n", int(sizeof kCases / sizeof *kCases), wrong);
    return wrong != 0;
}
