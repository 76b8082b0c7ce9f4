// prepare of the cuda backend in the emulator against the reference, bit for bit, and what the device says of itself.
#include "cuda_support.h"

namespace {
using namespace cuda_test;

// prepare against the reference: every step, bit for bit.
struct PrepareCase {
    const char *name;
    int64_t k;
    int x_type, act_group, mode; // mode -1: float output
    bool asymmetric, norm, residual, gate, split_gate, post, order, scale;
    int hadamard;
    bool signs = false;
};
const PrepareCase kPrepare[] = {
    {"token", 300, QE_CODE_F16, 0, QE_ACT_DYNAMIC, false, false, false, false, false, false, false, false, 0},
    {"rms", 640, QE_CODE_BF16, 0, QE_ACT_DYNAMIC, false, true, false, false, false, false, false, false, 0},
    {"rms_residual", 1100, QE_CODE_F32, 0, QE_ACT_DYNAMIC, true, true, true, false, false, false, false, false, 0},
    {"post_norm", 1100, QE_CODE_F16, 32, QE_ACT_DYNAMIC, false, true, true, false, false, true, false, false, 0},
    {"gate", 700, QE_CODE_F16, 256, QE_ACT_DYNAMIC, false, false, false, true, true, false, false, false, 0},
    {"gate_interleaved", 512, QE_CODE_F32, 0, QE_ACT_DYNAMIC, true, false, false, true, false, false, false, false, 0},
    {"order_scale", 640, QE_CODE_F16, 64, QE_ACT_DYNAMIC, true, false, false, false, false, false, true, true, 0},
    {"hadamard", 1024, QE_CODE_F16, 0, QE_ACT_DYNAMIC, false, true, false, false, false, false, true, true, 128},
    {"signs", 300, QE_CODE_F16, 0, QE_ACT_DYNAMIC, false, false, false, false, false, false, false, false, 0, true},
    {"signs_rms", 1100, QE_CODE_F32, 0, QE_ACT_DYNAMIC, false, true, true, false, false, false, false, false, 0, true},
    {"signs_gate", 512, QE_CODE_BF16, 0, QE_ACT_DYNAMIC, false, false, false, true, true, false, true, true, 0, true},
    {"static", 200, QE_CODE_F32, 0, QE_ACT_STATIC, true, false, false, false, false, false, false, false, 0},
    {"float", 330, QE_CODE_F16, 0, QE_ACT_FLOAT, false, true, true, false, false, false, true, true, 2},
};
std::vector<char> prepare_bytes(Pool &pool, const PrepareCase &c, int64_t m, bool bad_values) {
    Scheme s{"",
             integer(8, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 128),
             0,
             c.mode == QE_ACT_FLOAT ? -1 : c.act_group,
             c.asymmetric,
             ""};
    s.signs = c.signs;
    qk_weight w{};
    w.shape = shape_of(s, 8, c.k);
    w.hadamard = c.hadamard;
    if (c.mode == QE_ACT_STATIC) w.shape.act.mode = c.mode, w.shape.act.scale = 0.011f, w.shape.act.zero = 131;
    std::vector<uint32_t> order(size_t(c.k));
    for (size_t i = 0; i < order.size(); i++) order[i] = uint32_t((i * 7 + 3) % size_t(c.k));
    if (c.k % 7 == 0) std::swap(order[0], order[1]);
    const std::vector<float> scale = random_row(size_t(c.k), 21), norm = random_row(size_t(c.k), 22),
                             post = random_row(size_t(c.k), 23);
    if (c.order) w.order = static_cast<const uint32_t *>(pool.put(order.data(), order.size() * 4));
    if (c.scale) w.col_scale = static_cast<const float *>(pool.put(scale.data(), scale.size() * 4));
    std::vector<float> x = random_row(size_t(m * c.k * 2), 20), residual = random_row(size_t(m * c.k), 24);
    if (bad_values)
        x[5] = NAN, std::fill(x.begin() + 2 * c.k, x.begin() + 4 * c.k, 0.0f), x[size_t(5 * c.k) + 1] = INFINITY;
    const std::vector<char> typed = as_type(x, c.x_type);
    qk_x out{};
    const size_t bytes = pool.backend->ops.x_bytes(&pool.device, &w.shape, m, QE_CODE_F16, &out);
    std::vector<char> result(bytes, 0);
    char *base = static_cast<char *>(pool.put(result.data(), bytes));
    qk_x_rebase(&out, base);
    qk_prepare p{};
    p.x = pool.put(typed.data(), typed.size()), p.x_type = c.x_type;
    p.ldx = c.gate && !c.split_gate ? 2 * c.k : c.k;
    if (c.split_gate) p.up = static_cast<const char *>(p.x) + size_t(m * c.k) * type_bytes(c.x_type);
    p.act = c.gate ? QK_ACT_SILU : QK_ACT_NONE;
    p.norm = c.norm ? QK_NORM_RMS : QK_NORM_NONE, p.eps = 1e-6f;
    p.norm_weight = static_cast<const float *>(pool.put(norm.data(), norm.size() * 4));
    if (c.post) p.post_norm = static_cast<const float *>(pool.put(post.data(), post.size() * 4));
    if (c.residual) p.residual = static_cast<float *>(pool.put(residual.data(), residual.size() * 4)), p.ldr = c.k;
    p.next = &w, p.out = &out;
    qe_error err{};
    EXPECT_EQ(pool.backend->ops.prepare(&p, &pool.queue, &err), QE_OK) << err.message;
    EXPECT_EQ(pool.backend->copy(&pool.queue, result.data(), base, bytes, nullptr), QE_OK);
    if (c.residual) {
        const size_t at = result.size();
        result.resize(at + residual.size() * 4);
        EXPECT_EQ(pool.backend->copy(&pool.queue, &result[at], p.residual, residual.size() * 4, nullptr), QE_OK);
    }
    return result;
}
TEST(CudaPrepare, MatchesReference) {
    int runs = 0;
    for (const PrepareCase &c : kPrepare)
        for (bool bad : {false, true}) {
            if (bad && (c.norm || c.hadamard || c.mode == QE_ACT_FLOAT)) continue; // NaN payloads differ by machine
            Pool ref(&qk_ref_backend), cuda(&qk_cuda_backend);
            const std::vector<char> want = prepare_bytes(ref, c, 5, bad);
            for (simt::Order order : {simt::Order::RoundRobin, simt::Order::Reverse, simt::Order::Random}) {
                simt::device().options.order = order;
                const std::vector<char> got = prepare_bytes(cuda, c, 5, bad);
                ASSERT_EQ(want.size(), got.size());
                for (size_t i = 0; i < want.size(); i++)
                    ASSERT_EQ(int(want[i]), int(got[i]))
                        << c.name << (bad ? " with NaN" : "") << " byte " << i << " of " << want.size();
                runs++;
            }
        }
    simt::device().options = {};
    std::printf("%d runs\n", runs);
}

TEST(CudaDevice, DescribesTheEmulator) {
    if (simt::kGpu) GTEST_SKIP() << "a GPU is what it is";
    qk_device d{};
    for (int sm : {80, 86, 90}) {
        simt::device().sm = sm;
        ASSERT_EQ(qk_cuda_backend.describe(0, &d, nullptr), QE_OK);
        EXPECT_EQ(d.sm, sm);
        EXPECT_EQ(d.backend, QK_CUDA);
    }
    simt::device().sm = 75;
    qe_error err{};
    EXPECT_EQ(qk_cuda_backend.describe(0, &d, &err), QE_E_UNSUPPORTED);
    simt::device().sm = 90;
    EXPECT_EQ(qk_cuda_backend.describe(1, &d, &err), QE_E_ARGUMENT);
}
} // namespace
