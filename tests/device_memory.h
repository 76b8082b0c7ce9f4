#ifndef DEVICE_MEMORY_H
#define DEVICE_MEMORY_H
#include <gtest/gtest.h>

#include "run/device.h"

// Memory a device's kernels reach, filled from and read back to the host.
struct Memory {
    const qe_device *device;
    size_t           bytes;
    void            *data = nullptr;
    Memory(const qe_device *d, size_t bytes_, const void *from = nullptr) : device(d), bytes(bytes_) {
        EXPECT_EQ(qe_device_alloc(device, bytes, &data, nullptr), QE_OK);
        if (from) copy(data, from);
    }
    ~Memory() { qe_device_release(device, data, bytes); }
    Memory(const Memory &) = delete;
    void copy(void *to, const void *from) const {
        qk_queue q = qe_device_queue(device, nullptr);
        EXPECT_EQ(device->backend->copy(&q, to, from, bytes, nullptr), QE_OK);
        EXPECT_EQ(device->backend->wait(&q, nullptr), QE_OK);
    }
};
#endif
