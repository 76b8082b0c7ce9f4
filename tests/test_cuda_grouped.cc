// Grouped GEMMs of the emulated cuda backend: every row of the families that has a kernel for sm_80 or sm_90 gives the bits of one
// call per expert, whatever the counts say.
#include <set>

#include "grouped_rig.h"
#include "simt_device.h"

namespace {
using namespace grouped;

class CudaGrouped : public testing::TestWithParam<size_t> {
  protected:
    void open(int sm) {
        simt::device().sm = sm;
        qe_device_options o = {};
        o.struct_size = sizeof o, o.backend = QE_BACKEND_CUDA;
        ASSERT_EQ(qe_device_create(&o, &device, &err), QE_OK) << err.message;
    }
    void close() { qe_device_destroy(device), device = nullptr; }
    ~CudaGrouped() override { simt::device().options = {}, simt::device().sm = 90; }
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
    for (int sm : {80, 90}) {
        open(sm);
        {
            Experts experts(device, c, 4, 141, c.act_group == 256 ? 512 : 300);
            ASSERT_NE(experts.together, nullptr);
            qe_linear_info info;
            qe_linear_get_info(experts.together, &info);
            ASSERT_STREQ(info.layout, c.layout);
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
    if (!strcmp(c.layout, "cuda/any")) GTEST_SKIP() << "one thread per output has no tiles";
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
INSTANTIATE_TEST_SUITE_P(Cases, CudaGrouped, testing::Range(size_t(0), std::size(cases)),
                         [](const auto &i) { return std::string(cases[i.param].name); });

} // namespace
