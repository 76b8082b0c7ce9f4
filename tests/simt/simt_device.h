// What tests may set on the emulated cuda device.
#pragma once
#include <qk.h>

#include "simt.h"

namespace simt {
constexpr bool kGpu = false; // tests/gpu/real_device.h is the other
struct Device {
    Options options; // schedule and asynchrony of every launch
    int count = 1, sm = 90, units = 132;
    int toolkit = 1300; // as if this nvcc had built the kernels
    uint32_t shared_bytes = 227 * 1024;
    uint32_t clusters = QK_CLUSTERS_ALL; // as of qk_device; launches of other sizes fail
    uint64_t launches = 0;
    std::string error; // of the last failed launch
};
Device &device();
} // namespace simt
