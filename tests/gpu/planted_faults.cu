// Faults for compute-sanitizer to find, one kernel per tool: a sanitizer that passes these looks at nothing.
// Exit: what the launch gave (0 or 1); 2: no such fault; 3: no GPU.
#include <cstdio>
#include <cstring>

#include <cuda_runtime.h>

__global__ void out_of_bounds(int *p) {
    p[threadIdx.x + 1024] = 1;
}
__global__ void race(int *p) {
    __shared__ int s[64];
    s[threadIdx.x] = int(threadIdx.x);
    p[threadIdx.x] = s[63 - threadIdx.x]; // no barrier between two warps
}
__global__ void foreign_barrier(int *p) {
    const unsigned lane = threadIdx.x % 32, mask = __ballot_sync(0xffffffffu, lane < 16);
    if (lane <= 16) __syncwarp(mask); // lane 16 is not in the mask it waits with
    p[threadIdx.x] = 1;
}
__global__ void uninitialized(int *p) {
    p[threadIdx.x] = p[threadIdx.x + 64] + 1; // never written
}
struct Fault {
    const char *tool;
    void (*kernel)(int *);
};
const Fault kFaults[] = {
    {"memcheck", out_of_bounds}, {"racecheck", race}, {"synccheck", foreign_barrier}, {"initcheck", uninitialized}};

int main(int argc, char **argv) {
    int devices = 0, *p = nullptr;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) return std::printf("skipped: no GPU\n"), 3;
    for (const Fault &f : kFaults) {
        if (argc < 2 || std::strcmp(argv[1], f.tool)) continue;
        if (cudaMalloc(&p, 1024 * sizeof(int)) != cudaSuccess) return 1;
        f.kernel<<<1, 64>>>(p);
        const cudaError_t e = cudaDeviceSynchronize();
        std::printf("%s: %s\n", f.tool, cudaGetErrorString(e));
        return e != cudaSuccess;
    }
    return std::fprintf(stderr, "usage: planted_faults memcheck|racecheck|synccheck|initcheck\n"), 2;
}
