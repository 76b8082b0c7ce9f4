// The part of <cuda.h> that kernels compiled for the SIMT emulator use: an opaque tensor map.
#pragma once
#include <cstdint>

struct alignas(64) CUtensorMap {
    uint64_t opaque[16];
};
