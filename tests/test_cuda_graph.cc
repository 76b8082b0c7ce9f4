// A linear's run as a CUDA graph: under capture only launches and copies may be enqueued, on the caller's stream. Replays
// read what then lies in device memory, find the workspace as the last replay or anybody else left it, and give the bits
// of a run outside a graph.
#include <cstring>
#include <memory>

#include <qengine/gemm.h>
#include <qengine/num.h>
#include "grouped_rig.h"
#include "run/device.h"
#include "support.h"

#include "cuda_api.h"

namespace {

// What capture keeps of a launch: its parameters' values.
struct Node {
    qk_cuda_launch launch;
    struct alignas(64) Argument {
        unsigned char bytes[1024];
    };
    std::unique_ptr<Argument[]> values;
    std::vector<void *> args;
};
struct Stream {
    bool capturing = false;
    std::vector<Node> graph;
    std::vector<const char *> illegal; // calls that would break a capture
    int64_t elsewhere = 0;             // launches on another stream
};
Stream stream;

void forbidden(const char *call) {
    if (stream.capturing) stream.illegal.push_back(call);
}
int alloc(void **out, size_t bytes) {
    forbidden("alloc");
    return qk_cuda_api_default.alloc(out, bytes);
}
int release(void *block) {
    forbidden("release");
    return qk_cuda_api_default.release(block);
}
int wait(void *on) {
    forbidden("wait");
    return qk_cuda_api_default.wait(on);
}
int copy(void *dst, const void *src, size_t bytes, void *on) {
    forbidden("copy"); // legal in CUDA, but its source would have to outlive the graph
    return qk_cuda_api_default.copy(dst, src, bytes, on);
}
int launch(const qk_cuda_launch *l, void *on) {
    if (!stream.capturing) return qk_cuda_api_default.launch(l, on);
    stream.elsewhere += on != &stream;
    Node n{*l, std::unique_ptr<Node::Argument[]>(new Node::Argument[l->arg_count]), {}};
    for (uint32_t i = 0; i < l->arg_count; i++) {
        EXPECT_LE(l->arg_bytes[i], sizeof(Node::Argument));
        memcpy(n.values[i].bytes, l->args[i], l->arg_bytes[i]);
        n.args.push_back(n.values[i].bytes);
    }
    stream.graph.push_back(std::move(n));
    return 0;
}
void replay() {
    for (Node &n : stream.graph) {
        n.launch.args = n.args.data();
        ASSERT_EQ(qk_cuda_api_default.launch(&n.launch, &stream), 0) << qk_cuda_api_default.text(1);
    }
}

struct Problem {
    const char *scheme;
    bool int8_input;
    int64_t n, k, m;
    size_t launches; // prepare, GEMM, and the reduce of a call split over the workspace
};
const Problem problems[] = {
    {"int8:channel:f32", true, 40, 2100, 3, 2},             // w8a8, k split, summed in a cluster
    {"int8:channel:f32", true, 256, 300, 131, 2},           // tokens shared in clusters
    {"int8:channel:f32", true, 256, 1100, 131, 3},          // the same, k split
    {"int4:channel:f32", true, 40, 2100, 3, 2},             // w4a8
    {"int4:g128:f16", false, 136, 2304, 5, 2},              // w4a16
    {"nf4:g64:f32", false, 40, 2304, 5, 2},                 // wxa16
    {"int4:g32:u6:s=f16/g256:b=u6", true, 10, 256, 3, 2},   // k
    {"int4:g32:u6:s=f16/g256:b=u6", false, 136, 2304, 5, 2}, // k: k split, summed in a cluster
    {"int3:g64:f16:b=f16", true, 10, 256, 3, 2},            // any
    {"int3:g64:f16:b=f16", false, 136, 2304, 5, 4},         // any: weights dequantized, k split
};

class Captured : public testing::Test {
  protected:
    void SetUp() override {
        api = qk_cuda_api_default;
        api.alloc = alloc, api.release = release, api.wait = wait, api.copy = copy, api.launch = launch;
        qk_cuda_api_replace(&api);
        stream = Stream();
        qe_device_options o = {};
        o.struct_size = sizeof o, o.backend = QE_BACKEND_CUDA;
        ASSERT_EQ(qe_device_create(&o, &device, &err), QE_OK) << err.message;
    }
    void TearDown() override {
        for (void *p : blocks) qe_device_release(device, p, 0);
        qe_linear_destroy(linear);
        qe_device_destroy(device);
        qk_cuda_api_replace(nullptr);
    }
    void *device_memory(size_t bytes) {
        void *p = nullptr;
        EXPECT_EQ(qe_device_alloc(device, bytes, &p, &err), QE_OK) << err.message;
        blocks.push_back(p);
        return p;
    }
    void make_linear(const Problem &p) {
        qe_quant q;
        ASSERT_EQ(qe_quant_parse(p.scheme, &q, &err), QE_OK) << err.message;
        qe_qtensor t;
        std::vector<char> memory(qe_qtensor_bytes(&q, p.n, p.k, 0) + 64);
        char *base = (char *)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
        ASSERT_EQ(qe_qtensor_place(&t, &q, p.n, p.k, 0, base, memory.size() - 64, nullptr), QE_OK);
        qe_test::Random random(7);
        std::vector<float> w((size_t)(p.n * p.k));
        for (float &v : w) v = random.uniform(-1, 1);
        ASSERT_EQ(qe_quantize(w.data(), p.k, 0, &t, nullptr), QE_OK);
        qe_act input;
        memset(&input, 0, sizeof input);
        if (p.int8_input) {
            input.mode = QE_ACT_DYNAMIC;
            input.quant.code = QE_CODE_INT, input.quant.bits = 8, input.quant.scale = QE_NUM_F32;
            input.quant.group_n = 1, input.quant.zero_const = 128, input.quant.group_k = q.super_k;
        }
        qe_linear_options options = {};
        options.struct_size = sizeof options, options.act = &input;
        ASSERT_EQ(qe_linear_create(device, &t, &options, &linear, &err), QE_OK) << err.message;
    }
    qk_cuda_api api;
    qe_device *device = nullptr;
    qe_linear *linear = nullptr;
    std::vector<void *> blocks;
    qe_error err = {};
};
class CudaGraph : public Captured, public testing::WithParamInterface<Problem> {};

TEST_P(CudaGraph, ReplaysGiveTheBitsOfARun) {
    const Problem &p = GetParam();
    make_linear(p);
    ASSERT_NE(linear, nullptr);
    const size_t x_bytes = (size_t)(p.m * p.k) * 2, y_bytes = (size_t)(p.m * p.n) * 4;
    qe_linear_args a = {};
    a.struct_size = sizeof a, a.m = p.m, a.ldx = p.k, a.x_type = QE_CODE_F16, a.ldy = p.n;
    a.workspace_bytes = qe_linear_workspace(linear, p.m, QE_CODE_F16);
    a.x = device_memory(x_bytes), a.y = device_memory(y_bytes), a.workspace = device_memory(a.workspace_bytes);
    a.stream = &stream;
    // Emulated device memory is the host's.
    qe_test::Random random(11);
    auto new_input = [&] {
        for (int64_t i = 0; i < p.m * p.k; i++) ((uint16_t *)(uintptr_t)a.x)[i] = qe_f32_to_f16(random.uniform(-2, 2));
    };
    new_input();
    memset(a.y, 0x5a, y_bytes);
    stream.capturing = true;
    ASSERT_EQ(qe_linear_run(linear, &a, &err), QE_OK) << err.message;
    stream.capturing = false;
    EXPECT_EQ(((const unsigned char *)a.y)[0], 0x5a) << "work was done, not captured";
    EXPECT_TRUE(stream.illegal.empty()) << stream.illegal[0];
    EXPECT_EQ(stream.elsewhere, 0) << "launches beside the caller's stream";
    ASSERT_EQ(stream.graph.size(), p.launches);

    std::vector<char> want(y_bytes), got(y_bytes), before;
    for (int round = 0; round < 3; round++) {
        if (round == 2) memset(a.workspace, 0xff, a.workspace_bytes); // somebody else's
        new_input();
        replay();
        memcpy(got.data(), a.y, y_bytes);
        EXPECT_NE(got, before) << "replay " << round << " read an old input";
        before = got;
        memset(a.y, 0x5a, y_bytes);
        replay(); // the same again, over what the last one left
        EXPECT_EQ(memcmp(got.data(), a.y, y_bytes), 0) << "replay " << round;
        memset(a.y, 0x5a, y_bytes);
        ASSERT_EQ(qe_linear_run(linear, &a, &err), QE_OK) << err.message;
        memcpy(want.data(), a.y, y_bytes);
        EXPECT_EQ(got, want) << "replay " << round;
    }
}
// Which launches may begin before the kernels ahead have ended: prepare, the GEMM that brings weights meanwhile, its second
// kernel. Not those of sm_80, nor the kernel that dequantizes weights.
class CudaEarly : public Captured, public testing::WithParamInterface<std::pair<Problem, const char *>> {};
TEST_P(CudaEarly, LaunchesOfACall) {
    const auto [p, want] = GetParam();
    make_linear(p);
    ASSERT_NE(linear, nullptr);
    for (const bool possible : {true, false}) {
        device->facts.flags = possible ? device->facts.flags : device->facts.flags & ~QK_DEVICE_EARLY;
        qe_linear_args a = {};
        a.struct_size = sizeof a, a.m = p.m, a.ldx = p.k, a.x_type = QE_CODE_F16, a.ldy = p.n;
        a.workspace_bytes = qe_linear_workspace(linear, p.m, QE_CODE_F16);
        a.x = device_memory((size_t)(p.m * p.k) * 2), a.y = device_memory((size_t)(p.m * p.n) * 4);
        a.workspace = device_memory(a.workspace_bytes), a.stream = &stream;
        stream = Stream();
        stream.capturing = true;
        ASSERT_EQ(qe_linear_run(linear, &a, &err), QE_OK) << err.message;
        stream.capturing = false;
        std::string got;
        for (const Node &n : stream.graph) got += n.launch.early ? 'e' : '-';
        EXPECT_EQ(got, possible ? std::string(want) : std::string(got.size(), '-'));
    }
}
INSTANTIATE_TEST_SUITE_P(Problems, CudaEarly,
                         testing::Values(std::pair{problems[0], "ee"}, std::pair{problems[2], "eee"}, std::pair{problems[4], "ee"},
                                         std::pair{problems[6], "e-"}, std::pair{problems[9], "e-ee"}),
                         [](const auto &i) { return "p" + std::to_string(i.index); });
TEST(CudaEarlyDevice, TheEnvironmentHoldsItBack) {
    qe_device_options o = {};
    o.struct_size = sizeof o, o.backend = QE_BACKEND_CUDA;
    for (const char *value : {"", "1", "0", "no"}) {
        if (*value) setenv("QE_EARLY", value, 1);
        qe_device *d = nullptr;
        qe_error err = {};
        const qe_status status = qe_device_create(&o, &d, &err);
        unsetenv("QE_EARLY");
        EXPECT_EQ(status, strcmp(value, "no") ? QE_OK : QE_E_ARGUMENT) << value;
        if (!d) continue;
        EXPECT_EQ((d->facts.flags & QK_DEVICE_EARLY) != 0, strcmp(value, "0") != 0) << value;
        qe_device_destroy(d);
    }
}
// One graph of a grouped call serves every count that is written into device memory between replays.
class CudaGraphGrouped : public Captured, public testing::WithParamInterface<int32_t> {};
TEST_P(CudaGraphGrouped, ReplaysFollowTheCounts) {
    const bool masked = GetParam() == QE_GROUPS_MASKED;
    std::vector<grouped::Call> calls;
    for (auto counts : masked ? std::vector<std::vector<int32_t>>{{3, 0, 9, 1}, {0, 0, 0, 0}, {9, 9, 9, 9}, {0, 1, 0, 99}}
                              : std::vector<std::vector<int32_t>>{{0, 3, 3, 10, 11}, {0, 0, 0, 0, 0}, {9, 9, 9, 9, 33}, {0, 33, 33, 33, 33}})
        calls.emplace_back(GetParam(), masked ? 9 : 33, counts);
    int replays = 0;
    for (const grouped::Case &c : grouped::cases) {
        grouped::Experts experts(device, c, 4, 75, c.act_group == 256 ? 256 : 300);
        ASSERT_NE(experts.together, nullptr);
        grouped::Buffers b(experts, calls[0]);
        qe_linear_args a = b.args();
        const qe_linear_groups g = b.groups();
        a.stream = &stream;
        stream = Stream();
        stream.capturing = true;
        ASSERT_EQ(qe_linear_run_grouped(experts.together, &a, &g, &err), QE_OK) << c.name << ": " << err.message;
        stream.capturing = false;
        EXPECT_TRUE(stream.illegal.empty()) << c.name << ": " << stream.illegal[0];
        EXPECT_EQ(stream.elsewhere, 0) << c.name;
        const bool dense = !strcmp(c.layout, "cuda/any") && c.act_group < 0; // weights and GEMM of each expert
        ASSERT_EQ(stream.graph.size(), dense ? 9u : 2u) << c.name << ": one prepare and one GEMM for all experts";
        for (const grouped::Call &call : calls) {
            memcpy(b.rows.data, call.rows.data(), b.rows.bytes); // emulated device memory is the host's
            b.clear();
            replay();
            const std::vector<char> got = b.read();
            grouped::Buffers fresh(experts, call); // the same x: its seed is fixed
            ASSERT_EQ(grouped::first_difference(got, fresh.one_by_one(), fresh), "") << c.name << " replay " << replays;
            replays++;
        }
    }
    EXPECT_EQ(replays, int(std::size(grouped::cases) * calls.size()));
}
INSTANTIATE_TEST_SUITE_P(Layouts, CudaGraphGrouped, testing::Values(int32_t(QE_GROUPS_CONTIGUOUS), int32_t(QE_GROUPS_MASKED)),
                         [](const auto &i) { return i.param == QE_GROUPS_MASKED ? "masked" : "contiguous"; });
INSTANTIATE_TEST_SUITE_P(Problems, CudaGraph, testing::ValuesIn(problems),
                         [](const auto &i) { return "p" + std::to_string(i.index); });

} // namespace
