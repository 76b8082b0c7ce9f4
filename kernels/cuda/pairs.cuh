// Pairs of 16-bit floats as the 32-bit registers that hold them. The same bits through memory are no instruction; taken apart
// into halves and put together again they cost a shift and a PRMT each, which ptxas does not see through.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.cuh"

namespace qk_cuda {

template <class Pair> PTX_FN Pair pair_of(uint32_t bits) {
    static_assert(sizeof(Pair) == 4, "two 16-bit floats");
    Pair v;
    __builtin_memcpy(static_cast<void *>(&v), &bits, 4);
    return v;
}
template <class Pair> PTX_FN uint32_t bits_of(Pair v) {
    static_assert(sizeof(Pair) == 4, "two 16-bit floats");
    uint32_t bits;
    __builtin_memcpy(&bits, &v, 4);
    return bits;
}
PTX_FN __half2 halves_of(uint32_t bits) {
    return pair_of<__half2>(bits);
}
PTX_FN __nv_bfloat162 bfloats_of(uint32_t bits) {
    return pair_of<__nv_bfloat162>(bits);
}

} // namespace qk_cuda
