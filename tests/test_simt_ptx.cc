// Every wrapper of kernels/cuda/ptx.cuh in the emulator: each kernel of ptx_conformance.cuh against its host answer, in
// four schedules; and the table against the header, so that a wrapper without a kernel fails.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <vector>

#define SIMT_EMULATE
#include "simt/ptx_conformance.cuh"

namespace {
using namespace conformance;

struct Words {
    uint32_t *p;
    explicit Words(size_t count) : p(static_cast<uint32_t *>(simt::device_alloc(count * 4))) {}
    ~Words() { simt::device_free(p); }
    Words(const Words &) = delete;
};
void fill(uint32_t *p, size_t count, Fill how, std::mt19937 &g) {
    auto small = [&] { return float(int(g() % 17) - 8); };
    for (size_t i = 0; i < count; i++) {
        if (how == kBytes) {
            p[i] = uint32_t(g());
            continue;
        }
        const float lo = small(), hi = small();
        p[i] = how == kHalves ? uint32_t(qe_f32_to_f16(lo)) | uint32_t(qe_f32_to_f16(hi)) << 16
                              : uint32_t(qe_f32_to_bf16(lo)) | uint32_t(qe_f32_to_bf16(hi)) << 16;
    }
}
std::set<std::string> split(const std::string &text) {
    std::istringstream in(text);
    std::set<std::string> out;
    for (std::string word; in >> word;) out.insert(word);
    return out;
}

TEST(SimtPtx, EveryKernelGivesTheHostsAnswer) {
    const simt::Options schedules[] = {
        {simt::Order::RoundRobin, simt::Async::Eager},
        {simt::Order::Reverse, simt::Async::Lazy},
        {simt::Order::Random, simt::Async::Lazy, 5},
        {simt::Order::Random, simt::Async::Random, 9},
    };
    std::mt19937 g(1);
    int runs = 0;
    for (const Case &c : kCases)
        for (const simt::Options &o : schedules) {
            Words in(c.in_words), out(c.out_words);
            fill(in.p, c.in_words, c.fill, g);
            std::vector<uint32_t> want(c.out_words, 0);
            std::memset(out.p, 0, c.out_words * 4);
            Maps maps{};
            if (c.kernel == tensor_loads || c.kernel == multicasts)
                simt::encode_tensor_map_2d(&maps.in, in.p, 1, kMapCols, kMapRows, kMapPitch, 128, 8, 128);
            if (c.kernel == tensor_stores)
                simt::encode_tensor_map_2d(&maps.out, out.p, 1, kOutCols, kOutRows, kOutPitch, 128, 8, 128);
            const simt::Result r = simt::launch_fn([&] { c.kernel(maps, in.p, out.p); }, dim3(1, c.cluster), c.threads, c.shared, o,
                                                     dim3(1, c.cluster));
            ASSERT_TRUE(r.ok) << c.wrappers << ": " << r.error;
            c.reference(in.p, want.data());
            for (size_t i = 0; i < want.size(); i++) ASSERT_EQ(out.p[i], want[i]) << c.wrappers << ", word " << i;
            runs++;
        }
    EXPECT_GE(runs, 100);
    std::printf("%d kernels, %d runs\n", int(std::size(kCases)), runs);
}

// %cluster_ctarank counts x first, z last; whatever axes a cluster lies along, its blocks are neighbours there.
TEST(SimtPtx, ClustersLieAlongAnyAxis) {
    struct Shape {
        dim3 grid, cluster;
    };
    const Shape shapes[] = {{{2, 4, 4}, {1, 2, 2}}, {{3, 1, 8}, {1, 1, 8}}, {{4, 3, 2}, {2, 1, 1}}, {{2, 2, 2}, {2, 2, 2}}};
    int blocks = 0;
    for (const Shape &s : shapes) {
        Words out(size_t(s.grid.x) * s.grid.y * s.grid.z);
        const simt::Result r = simt::launch_fn(
            [&] {
                const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
                if (threadIdx.x == 0) out.p[block] = ptx::cluster_rank();
            },
            s.grid, dim3(32), 16, {}, s.cluster);
        ASSERT_TRUE(r.ok) << r.error;
        for (unsigned z = 0, i = 0; z < s.grid.z; z++)
            for (unsigned y = 0; y < s.grid.y; y++)
                for (unsigned x = 0; x < s.grid.x; x++, i++, blocks++)
                    EXPECT_EQ(out.p[i], (z % s.cluster.z * s.cluster.y + y % s.cluster.y) * s.cluster.x + x % s.cluster.x);
    }
    EXPECT_EQ(blocks, 32 + 24 + 24 + 8);
    const simt::Result odd = simt::launch_fn([] {}, dim3(1, 1, 6), dim3(32), 16, {}, dim3(1, 1, 4));
    EXPECT_FALSE(odd.ok);
}
// A launch that may begin before the kernels ahead have ended: what it does before griddep_wait() is held against them.
TEST(SimtPtx, EarlyLaunchesWaitFirst) {
    enum Kernel { kRight, kReadsBefore, kWritesBefore, kOneBlockNeverWaits };
    Words weights(32), x(32), y(64);
    for (uint32_t i = 0; i < 32; i++) weights.p[i] = 100 * i, x.p[i] = 0, y.p[i] = y.p[32 + i] = 0;
    auto add = [&](Kernel k) {
        const uint32_t i = threadIdx.x;
        uint32_t sum = ptx::ld_acquire(&weights.p[i]); // no kernel writes them
        if (k == kReadsBefore) sum += ptx::ld_acquire(&x.p[i]);
        if (k == kWritesBefore) ptx::red_release_add(&y.p[i], 1);
        if (k == kOneBlockNeverWaits && blockIdx.x == 1) return;
        ptx::griddep_wait();
        ptx::red_release_add(&y.p[blockIdx.x * 32 + i], sum + ptx::ld_acquire(&x.p[i]));
    };
    auto run = [&](Kernel k, bool early) {
        return simt::launch_fn([&] { add(k); }, dim3(2), dim3(32), 16, {}, dim3(1), early);
    };
    ASSERT_TRUE(run(kReadsBefore, true).ok) << "until now no kernel has written x";
    const simt::Result ahead = simt::launch_fn([&] { ptx::red_release_add(&x.p[threadIdx.x], threadIdx.x); }, dim3(1), dim3(32), 16, {});
    ASSERT_TRUE(ahead.ok) << ahead.error;
    std::memset(y.p, 0, 256);
    const simt::Result right = run(kRight, true);
    ASSERT_TRUE(right.ok) << right.error;
    for (uint32_t i = 0; i < 64; i++) EXPECT_EQ(y.p[i], 101 * (i % 32));
    for (Kernel k : {kReadsBefore, kWritesBefore, kOneBlockNeverWaits}) EXPECT_TRUE(run(k, false).ok) << k;
    auto says = [](const simt::Result &r, const char *text) { return !r.ok && r.error.find(text) != std::string::npos; };
    EXPECT_TRUE(says(run(kReadsBefore, true), "ld.acquire of global memory that a kernel has written, before griddepcontrol.wait"));
    EXPECT_TRUE(says(run(kWritesBefore, true), "red.release of global memory before griddepcontrol.wait"));
    EXPECT_TRUE(says(run(kOneBlockNeverWaits, true), "ends without griddepcontrol.wait"));
}
// Collectives of CUDA C++ itself that the kernels call: the emulator has an answer of its own for them, too.
std::set<std::string> called_collectives() {
    std::set<std::string> names;
    for (const auto &entry : std::filesystem::directory_iterator(QE_SOURCE_DIR "/kernels/cuda")) {
        std::ifstream file(entry.path());
        const std::string text{std::istreambuf_iterator<char>(file), {}};
        const std::regex call("\\b(__[a-z_]+_sync)\\(");
        for (std::sregex_iterator m(text.begin(), text.end(), call), end; m != end; ++m) names.insert((*m)[1]);
    }
    EXPECT_FALSE(names.empty());
    return names;
}
// What ptx.cuh defines: PTX_FN functions, and the names its wgmma macros expand (WG_KEEP has none of 256).
std::set<std::string> defined_wrappers() {
    std::ifstream file(QE_SOURCE_DIR "/kernels/cuda/ptx.cuh");
    EXPECT_TRUE(file.good());
    std::set<std::string> names;
    const std::regex function("^(?:template <[^>]*> )?PTX_FN [a-z0-9_ ]*?([a-z0-9_]+)\\("),
        all("^WG_(ALL|KEEP|SS16)\\(([a-z0-9_]+), "), one("^WG_SS\\(([a-z0-9_]+), ([0-9]+), ");
    std::smatch m;
    for (std::string line; std::getline(file, line);) {
        if (std::regex_search(line, m, function) && line.back() != ';') names.insert(m[1]);
        if (std::regex_search(line, m, one)) names.insert(m[1].str() + "<" + m[2].str() + ">");
        if (std::regex_search(line, m, all))
            for (const char *n : {"<16>", "<64>", "<128>", "<256>"})
                if (m[1] != "KEEP" || std::strcmp(n, "<256>")) names.insert(m[2].str() + n);
        if (line.find("wgmma_desc(uint32_t") != std::string::npos) names.insert("wgmma_desc");
    }
    return names;
}
TEST(SimtPtx, EveryWrapperHasAKernel) {
    std::set<std::string> defined = defined_wrappers();
    defined.merge(called_collectives());
    std::set<std::string> shown;
    for (const Case &c : kCases)
        for (const std::string &name : split(c.wrappers)) shown.insert(name);
    EXPECT_GE(defined.size(), 60u);
    for (const std::string &name : defined) EXPECT_TRUE(shown.count(name)) << "no conformance kernel for " << name;
    for (const std::string &name : shown) EXPECT_TRUE(defined.count(name)) << name << " is not in ptx.cuh";
    std::printf("%d wrappers\n", int(defined.size()));
}
} // namespace
