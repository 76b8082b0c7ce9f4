// Grouped GEMMs of the emulated cuda backend: every row of the families that has a kernel for sm_80 or sm_90 gives the bits of one
// call per expert, whatever the counts say.
#include <set>

#include <unistd.h>

#include "grouped_rig.h"
#include "run/linear_tuning.h"
#include "run/tuning.h"
#include "simt_device.h"

namespace {
using namespace grouped;

class CudaGrouped : public testing::TestWithParam<size_t> {
  protected:
    void open(int sm, const char *tuning = nullptr) {
        simt::device().sm = sm == 91 ? 90 : sm, simt::device().toolkit = sm == 91 ? 1304 : 1300;
        qe_device_options o = {};
        o.tuning = tuning, o.struct_size = sizeof o, o.backend = QE_BACKEND_CUDA;
        ASSERT_EQ(qe_device_create(&o, &device, &err), QE_OK) << err.message;
    }
    void close() { qe_device_destroy(device), device = nullptr; }
    ~CudaGrouped() override { simt::device() = {}; }
    void compare(const Experts &experts, const Call &call) {
        Buffers b(experts, call);
        const std::vector<char> want = b.one_by_one();
        simt::device().options.order = runs % 2 ? simt::Order::Reverse : simt::Order::Random;
        simt::device().options.async = runs % 2 ? simt::Async::Lazy : simt::Async::Random;
        ASSERT_EQ(first_difference(b.together(), want, b), "")
            << experts.c.name << " sm_" << simt::device().sm << " layout " << call.layout << " m " << call.m;
        runs++;
    }
    qe_device *device = nullptr;
    qe_error err = {};
    int runs = 0;
};

// Under the hooks of the race and asan flavours: a few calls.
bool hooks() { return std::getenv("SIMT_FLAVOUR") != nullptr; }
std::vector<Call> some(std::vector<Call> calls) {
    if (hooks()) calls = {calls[3], calls[calls.size() - 1]};
    return calls;
}

TEST_P(CudaGrouped, EveryRowHasTheBitsOfItsExpertAlone) {
    const Case &c = cases[GetParam()];
    std::set<std::string> rows;
    const bool nibbles = strstr(c.scheme, "int4:channel") != nullptr;
    for (int sm : {80, 90, 91}) { // 91: sm_90 with what nvcc 13.4 adds
        if (sm == 91 && !nibbles) continue;
        open(sm);
        {
            Experts experts(device, c, 4, 141, c.act_group == 256 ? 512 : 300);
            ASSERT_NE(experts.together, nullptr);
            qe_linear_info info;
            qe_linear_get_info(experts.together, &info);
            ASSERT_STREQ(info.layout, simt::device().toolkit > 1300 ? "cuda/s4a8" : c.layout);
            for (const Call &call : some(small_calls())) compare(experts, call);
            for (const Call &call : some(bad_calls())) compare(experts, call);
            auto tell = [](void *to, const char *name, const char *why) {
                if (!why) static_cast<std::set<std::string> *>(to)->insert(name);
            };
            ASSERT_EQ(qe_linear_explain(experts.together, 4, tell, &rows, &err), QE_OK) << err.message;
        }
        close();
    }
    std::printf("%s: %d runs;", c.name, runs);
    for (const std::string &r : rows) std::printf(" %s", r.c_str());
    std::printf("\n");
}
// Tiles of 128 and 256 tokens; 256 rows of the weight are two bands, which 8-bit weights on sm_90 take in a cluster.
TEST_P(CudaGrouped, LargeTiles) {
    const Case &c = cases[GetParam()];
    if (!strcmp(c.layout, "cuda/any") && c.act_group >= 0) GTEST_SKIP() << "one thread per output has no tiles";
    if (hooks()) GTEST_SKIP() << "the small calls alone run under hooks";
    for (int sm : {80, 90}) {
        open(sm);
        {
            Experts experts(device, c, 2, 256, 200);
            ASSERT_NE(experts.together, nullptr);
            compare(experts, Call(QE_GROUPS_MASKED, 135, {131, 3}));
            compare(experts, Call(QE_GROUPS_CONTIGUOUS, 270, {1, 5, 268}));
        }
        close();
    }
    EXPECT_EQ(runs, 4);
}
// A cache that gives the experts alone another tile and other splits at every m: bits stay, and a grouped call, which no cache
// tunes, stays as it was.
TEST_P(CudaGrouped, TheTuningCacheChangesNoBits) {
    const Case &c = cases[GetParam()];
    if (hooks()) GTEST_SKIP() << "the small calls alone run under hooks";
    const std::string path = testing::TempDir() + "grouped_" + c.name + std::to_string(getpid()) + ".json";
    std::remove(path.c_str());
    const int64_t k = c.act_group == 256 ? 512 : 300;
    const Call call(QE_GROUPS_CONTIGUOUS, 70, {0, 1, 1, 37, 70});
    int tuned = 0;
    for (int sm : {80, 90}) {
        std::vector<char> want;
        open(sm);
        {
            Experts experts(device, c, 4, 141, k);
            ASSERT_NE(experts.together, nullptr);
            Buffers b(experts, call);
            want = b.together();
            for (int64_t m : {1, 32, 64}) { // the buckets of 1, 32 and 33 tokens
                qk_gemm g;
                qk_x x;
                qk_tuning tunings[QK_TUNINGS];
                qe_linear_problem(experts.single[0], m, c.x_type, c.y_type, &g, &x);
                const int count = qk_gemm_tunings(&device->facts, &g, tunings);
                ASSERT_GT(count, 0);
                qk_plan plan;
                ASSERT_EQ(qk_gemm_plan_tuned(&device->facts, &g, &tunings[count - 1], &plan, nullptr), QE_OK);
                qe_tuning_entry e;
                qe_tuning_key(device, &g, &e);
                snprintf(e.row, sizeof e.row, "%s", plan.row->name);
                e.tile_m = tunings[count - 1].tile_m, e.units = tunings[count - 1].units, e.us = 1, e.untuned_us = 2;
                ASSERT_EQ(qe_tuning_write(path.c_str(), &e, 1, &err), QE_OK) << err.message;
                tuned += count > 1;
            }
        }
        close();
        open(sm, path.c_str());
        {
            Experts experts(device, c, 4, 141, k);
            ASSERT_NE(experts.together, nullptr);
            EXPECT_EQ(qe_linear_choices(experts.single[0]), 3) << "the cache was not read";
            Buffers b(experts, call);
            EXPECT_EQ(first_difference(b.together(), want, b), "") << c.name << " sm_" << sm;
            EXPECT_EQ(first_difference(b.one_by_one(), want, b), "") << c.name << " sm_" << sm << ", one by one";
        }
        close();
    }
    std::remove(path.c_str());
    if (strcmp(c.layout, "cuda/any") && c.x_type != QE_CODE_F32) { EXPECT_GT(tuned, 0); }
}
INSTANTIATE_TEST_SUITE_P(Cases, CudaGrouped, testing::Range(size_t(0), std::size(cases)),
                         [](const auto &i) { return std::string(cases[i.param].name); });

} // namespace
