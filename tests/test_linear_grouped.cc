// Experts in one linear, on the backends of the host: cases x layouts x counts, then what is refused.
#include "grouped_rig.h"

namespace {
using namespace grouped;

struct Device {
    qe_device *handle = nullptr;
    qe_error err = {};
    explicit Device(int32_t backend) {
        qe_device_options o = {};
        o.struct_size = sizeof o, o.backend = backend, o.threads = 2;
        EXPECT_EQ(qe_device_create(&o, &handle, &err), QE_OK) << err.message;
    }
    ~Device() { qe_device_destroy(handle); }
};

TEST(LinearGrouped, EveryRowHasTheBitsOfItsExpertAlone) {
    for (int32_t backend : {QE_BACKEND_REF, QE_BACKEND_CPU}) {
        Device d(backend);
        ASSERT_NE(d.handle, nullptr);
        int runs = 0;
        for (const Case &c : cases) {
            const int64_t k = c.act_group == 256 ? 512 : 300;
            Experts experts(d.handle, c, 4, 45, k);
            ASSERT_NE(experts.together, nullptr);
            for (const Call &call : small_calls()) {
                Buffers b(experts, call);
                const std::vector<char> want = b.one_by_one();
                ASSERT_EQ(first_difference(b.together(), want, b), "") << c.name << " layout " << call.layout << " m " << call.m;
                runs++;
            }
        }
        EXPECT_GT(runs, 100);
        printf("backend %d: %d grouped runs\n", backend, runs);
    }
}

TEST(LinearGrouped, CountsOutOfRangeAreRefused) {
    Device d(QE_BACKEND_CPU);
    Experts experts(d.handle, cases[0], 4, 45, 300);
    for (const Call &call : bad_calls()) {
        Buffers b(experts, call);
        b.clear();
        const std::vector<char> before = b.read();
        const qe_linear_args a = b.args();
        const qe_linear_groups g = b.groups();
        qe_error err = {};
        EXPECT_EQ(qe_linear_run_grouped(experts.together, &a, &g, &err), QE_E_ARGUMENT);
        EXPECT_NE(strstr(err.message, "groups.rows["), nullptr) << err.message;
        EXPECT_EQ(b.read(), before);
    }
}

TEST(LinearGrouped, WrongCallsAreRefused) {
    Device d(QE_BACKEND_CPU);
    Experts experts(d.handle, cases[0], 4, 45, 300);
    const Call call(QE_GROUPS_MASKED, 9, {3, 0, 9, 1});
    Buffers b(experts, call);
    const qe_linear_args a = b.args();
    const qe_linear_groups g = b.groups();
    qe_error err = {};
    EXPECT_EQ(qe_linear_run(experts.together, &a, &err), QE_E_STATE);
    struct {
        const char *says;
        void (*spoil)(qe_linear_args *, qe_linear_groups *);
    } const wrong[] = {
        {"groups.struct_size", [](qe_linear_args *, qe_linear_groups *x) { x->struct_size = 3; }},
        {"groups.layout", [](qe_linear_args *, qe_linear_groups *x) { x->layout = 0; }},
        {"groups.layout", [](qe_linear_args *, qe_linear_groups *x) { x->reserved = 1; }},
        {"groups.rows is NULL", [](qe_linear_args *, qe_linear_groups *x) { x->rows = nullptr; }},
        {"more than int32", [](qe_linear_args *x, qe_linear_groups *) { x->m = INT32_MAX; }},
        {"workspace", [](qe_linear_args *x, qe_linear_groups *) { x->workspace_bytes = 1; }},
        {"m is -1", [](qe_linear_args *x, qe_linear_groups *) { x->m = -1; }},
        {"ldx", [](qe_linear_args *x, qe_linear_groups *) { x->ldx = 1; }},
    };
    for (const auto &w : wrong) {
        qe_linear_args wa = a;
        qe_linear_groups wg = g;
        w.spoil(&wa, &wg);
        EXPECT_EQ(qe_linear_run_grouped(experts.together, &wa, &wg, &err), QE_E_ARGUMENT) << w.says;
        EXPECT_NE(strstr(err.message, w.says), nullptr) << err.message;
    }
    EXPECT_EQ(qe_linear_workspace_grouped(experts.together, 3, 9, QE_CODE_F32), 0u);
    EXPECT_EQ(qe_linear_workspace_grouped(experts.together, QE_GROUPS_MASKED, 0, QE_CODE_F32), 0u);
    EXPECT_EQ(qe_linear_workspace_grouped(experts.together, QE_GROUPS_MASKED, INT32_MAX, QE_CODE_F32), 0u);
}

// The workspace of one row is asked for; the second expert has nine. The first has its row before it in turn.
TEST(LinearGrouped, ASmallWorkspaceLeavesYUntouched) {
    for (int id : {QE_BACKEND_CPU, QE_BACKEND_REF}) {
        Device d(id);
        Experts experts(d.handle, cases[0], 4, 45, 300);
        const Call call(QE_GROUPS_MASKED, 9, {1, 9, 0, 0});
        Buffers b(experts, call);
        qe_linear_args a = b.args();
        const qe_linear_groups g = b.groups();
        qe_error err = {};
        a.workspace_bytes = qe_linear_workspace_grouped(experts.together, QE_GROUPS_MASKED, 1, a.x_type);
        ASSERT_LT(a.workspace_bytes, qe_linear_workspace_grouped(experts.together, QE_GROUPS_MASKED, 9, a.x_type));
        std::vector<char> before(64);
        std::memcpy(before.data(), a.y, before.size());
        EXPECT_EQ(qe_linear_run_grouped(experts.together, &a, &g, &err), QE_E_ARGUMENT);
        EXPECT_NE(strstr(err.message, "workspace"), nullptr) << err.message;
        EXPECT_EQ(std::memcmp(before.data(), a.y, before.size()), 0);
    }
}
// As qe_linear_workspace(): what is asked for m serves every smaller m.
TEST(LinearGrouped, AWorkspaceServesFewerTokens) {
    Device d(QE_BACKEND_CPU);
    for (const Case &c : cases) {
        Experts experts(d.handle, c, 2, 300, c.act_group == 256 ? 512 : 300);
        for (int layout : {QE_GROUPS_CONTIGUOUS, QE_GROUPS_MASKED})
            for (int64_t most : {16, 64, 200}) {
                const size_t bytes = qe_linear_workspace_grouped(experts.together, layout, most, QE_CODE_F32);
                ASSERT_GT(bytes, 0u);
                for (int64_t m = 1; m <= most; m++)
                    EXPECT_LE(qe_linear_workspace_grouped(experts.together, layout, m, QE_CODE_F32), bytes) << c.name << m;
            }
    }
}
TEST(LinearGrouped, UnlikeWeightsAreRefused) {
    Device d(QE_BACKEND_CPU);
    Tensor a("int8:channel:f32", 45, 300, 1), narrow("int8:channel:f32", 44, 300, 2), other("int4:g32:f16", 45, 300, 3),
        ordered("int8:channel:f32", 45, 300, 4);
    std::vector<uint32_t> order(300);
    for (uint32_t i = 0; i < 300; i++) order[i] = 299 - i;
    ordered.order = order.data();
    qe_linear *l = nullptr;
    qe_error err = {};
    struct {
        const qe_qtensor *second;
        qe_status status;
        const char *says;
    } const wrong[] = {{&narrow, QE_E_MISMATCH, "44 x 300"}, {&other, QE_E_MISMATCH, "scheme"},
                       {&ordered, QE_E_MISMATCH, "column order"}, {nullptr, QE_E_ARGUMENT, "weight 1"}};
    for (const auto &w : wrong) {
        const qe_qtensor *both[] = {&a, w.second};
        EXPECT_EQ(qe_linear_create_grouped(d.handle, both, 2, nullptr, &l, &err), w.status) << w.says;
        EXPECT_NE(strstr(err.message, w.says), nullptr) << err.message;
    }
    const qe_qtensor *one[] = {&a};
    EXPECT_EQ(qe_linear_create_grouped(d.handle, one, 0, nullptr, &l, &err), QE_E_ARGUMENT);
    qe_linear_options o = {};
    o.struct_size = sizeof o, o.experts = 2;
    EXPECT_EQ(qe_linear_create_grouped(d.handle, one, 1, &o, &l, &err), QE_E_ARGUMENT);
    o.experts = -1;
    EXPECT_EQ(qe_linear_begin(d.handle, &a, &o, &l, &err), QE_E_ARGUMENT);
    EXPECT_EQ(l, nullptr);

    o.experts = 2; // the second is never appended
    ASSERT_EQ(qe_linear_begin(d.handle, &a, &o, &l, &err), QE_OK) << err.message;
    EXPECT_EQ(qe_linear_append_expert(l, 0, &a, &err), QE_OK) << err.message;
    EXPECT_EQ(qe_linear_append_expert(l, 0, &a, &err), QE_E_DUPLICATE);
    EXPECT_EQ(qe_linear_append_expert(l, 2, &a, &err), QE_E_ARGUMENT);
    EXPECT_EQ(qe_linear_finish(l, &err), QE_E_STATE);
    EXPECT_NE(strstr(err.message, "expert 1"), nullptr) << err.message;
    qe_linear_destroy(l);
}

} // namespace
