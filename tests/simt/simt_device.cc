// The emulated device behind qk_cuda_api: host memory with exact bounds, launches run to their end at once.
#include "simt_device.h"

#include "cuda_api.h"
#include "simt_ptx.h"

namespace simt {
Device &device() {
    static Device d;
    return d;
}
} // namespace simt

namespace {
using simt::device;
constexpr int kFailed = 1, kNoMemory = 2;

int count(int *devices) {
    *devices = device().count;
    return 0;
}
int current(int *ordinal) {
    *ordinal = 0;
    return 0;
}
int select(int) {
    return 0;
}
int facts(int, qk_device *out) {
    out->flags = QK_DEVICE_EMULATED | (device().sm / 10 == 9 ? QK_DEVICE_EARLY : 0);
    out->units = device().units, out->toolkit = device().toolkit;
    out->sm = device().sm;
    out->unit_bytes = device().shared_bytes;
    out->cache_bytes = 50u << 20;
    out->memory_bytes = uint64_t(1) << 34;
    std::snprintf(out->name, sizeof out->name, "SIMT emulator sm_%d", device().sm);
    return 0;
}
int clusters(uint32_t blocks, int *at_once) {
    *at_once = device().clusters >> blocks & 1 ? device().units / int(blocks) : 0;
    return 0;
}
int alloc(void **out, size_t bytes) {
    *out = simt::device_alloc(bytes);
    return *out ? 0 : kNoMemory;
}
int release(void *block) {
    simt::device_free(block);
    return 0;
}
int copy(void *dst, const void *src, size_t bytes, void *) {
    std::memcpy(dst, src, bytes);
    return 0;
}
int wait(void *) {
    return 0;
}
int launch(const qk_cuda_launch *l, void *) {
    device().launches++;
    const uint32_t blocks = std::max(l->cluster[0], 1u) * std::max(l->cluster[1], 1u);
    if (blocks > 1 && !(device().clusters >> blocks & 1)) {
        device().error = "a cluster of " + std::to_string(blocks) + " blocks does not run on this device";
        return kFailed;
    }
    if (l->early && device().sm / 10 != 9) {
        device().error = "an early launch: its kernel waits on sm_90 alone";
        return kFailed;
    }
    simt::Result r = simt::launch_fn([&] { l->invoke(l->kernel, l->args); }, dim3(l->grid[0], l->grid[1], l->grid[2]),
                                     dim3(l->block), l->shared_bytes, device().options,
                                     dim3(1, std::max(l->cluster[0], 1u), std::max(l->cluster[1], 1u)), l->early);
    if (r.ok) return 0;
    device().error = r.error;
    return kFailed;
}
int tensor_map(void *map, const void *base, uint64_t cols, uint64_t rows, uint64_t pitch, uint32_t box_rows) {
    simt::encode_tensor_map_2d(static_cast<CUtensorMap *>(map), base, 1, cols, rows, pitch, 128, box_rows, 128);
    return 0;
}
const char *text(int code) {
    return code == kNoMemory ? "out of memory" : device().error.c_str();
}
bool out_of_memory(int code) {
    return code == kNoMemory;
}
bool lost(int) {
    return false;
}
} // namespace

extern "C" const qk_cuda_api qk_cuda_api_default = {count,   current, select, facts,      clusters, alloc,         release,
                                                    copy,    wait,    launch, tensor_map, text,     out_of_memory, lost};
