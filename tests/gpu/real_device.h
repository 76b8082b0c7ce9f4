// The tests of the cuda backend on a GPU: what they set on the emulated device is nothing to a real one, and without a GPU
// they say so and exit 3.
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include <qk.h>

namespace simt {
constexpr bool kGpu = true;
enum class Order { RoundRobin, Reverse, Random };
enum class Async { Eager, Lazy, Random };
struct Options {
    Order order = Order::RoundRobin;
    Async async = Async::Eager;
    uint64_t seed = 0;
};
struct Device {
    Options options;
    int sm = 0, units = 0, toolkit = 0;
    uint32_t clusters = 0;
};
inline Device &device() {
    static Device d;
    return d;
}
struct NeedsGpu : testing::Environment {
    void SetUp() override {
        if (qk_cuda_backend.count() > 0) return;
        std::printf("skipped: no GPU\n");
        std::fflush(stdout);
        std::_Exit(3);
    }
};
inline testing::Environment *const needs_gpu = testing::AddGlobalTestEnvironment(new NeedsGpu);
} // namespace simt
