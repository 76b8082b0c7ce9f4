// The cuda backend in the emulator against the scalar reference, through qk.h: every layout and row, ragged shapes, K
// of more than two rounds of the ring, three schedules. Integer families must agree bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <qengine/num.h>
#include <qk.h>

#include "simt_device.h"

namespace {

struct Scheme {
    const char *name;
    qe_quant quant;
    uint32_t facts;
    int act_group; // -1: float input; 0: per token
    bool asymmetric;
    const char *layout;
};
qe_quant integer(int bits, int scale, int group_k, int zero, int zero_num, int zero_const) {
    qe_quant q{};
    q.code = QE_CODE_INT, q.bits = uint8_t(bits), q.scale = uint8_t(scale), q.group_n = 1, q.group_k = group_k;
    q.zero = uint8_t(zero), q.zero_num = uint8_t(zero_num), q.zero_const = int16_t(zero_const);
    return q;
}
qe_quant two_level(qe_quant q, int super, int super_k) {
    q.super = uint8_t(super), q.super_n = 1, q.super_k = super_k;
    return q;
}
qe_quant table(int code, int bits, int scale, int group_k) {
    qe_quant q{};
    q.code = uint8_t(code), q.bits = uint8_t(bits), q.scale = uint8_t(scale), q.group_n = 1, q.group_k = group_k;
    return q;
}
qe_quant plain(int code, int bits) {
    qe_quant q{};
    q.code = uint8_t(code), q.bits = uint8_t(bits);
    return q;
}
const std::vector<Scheme> &schemes() {
    static const std::vector<Scheme> all = {
        {"w8a8", integer(8, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 128), 0, 0, false, "cuda/w8a8"},
        {"w8a8_f16_asym_x", integer(8, QE_NUM_F16, 0, QE_ZERO_CONST, 0, 128), 0, 0, true, "cuda/w8a8"},
        {"w4a8_channel", integer(4, QE_NUM_F32, 0, QE_ZERO_CONST, 0, 8), 0, 0, false, "cuda/w8a8"},
        {"w8a8_groups", integer(8, QE_NUM_F16, 32, QE_ZERO_CONST, 0, 128), 0, 32, false, "cuda/any"},
        {"w4a8_two_level", two_level(integer(4, QE_NUM_U4, 64, QE_ZERO_CONST, 0, 8), QE_NUM_F16, 0),
         QE_FACT_INT8_PRODUCT, 0, false, "cuda/any"},
        {"q4_k", two_level(integer(4, QE_NUM_U6, 32, QE_ZERO_REAL, QE_NUM_U6, 0), QE_NUM_F16, 256), 0, 256, false,
         "cuda/any"},
        {"q6_k", two_level(integer(6, QE_NUM_S8, 16, QE_ZERO_CONST, 0, 32), QE_NUM_F16, 256), 0, 256, false,
         "cuda/any"},
        {"w4a8_points", integer(4, QE_NUM_F16, 64, QE_ZERO_POINT, QE_NUM_U8, 0), 0, 0, true, "cuda/any"},
        {"w3a8_biases", integer(3, QE_NUM_F16, 64, QE_ZERO_REAL, QE_NUM_F16, 0), 0, 0, false, "cuda/any"},
        {"iq4nl_a8", table(QE_CODE_IQ4NL, 4, QE_NUM_F16, 32), 0, 32, false, "cuda/any"},
        {"mxfp4_a8", table(QE_CODE_E2M1, 4, QE_NUM_E8M0, 32), 0, 32, false, "cuda/any"},
        {"w4a16_sym", integer(4, QE_NUM_F16, 128, QE_ZERO_CONST, 0, 8), 0, -1, false, "cuda/w4a16"},
        {"w4a16_points", integer(4, QE_NUM_F16, 64, QE_ZERO_POINT, QE_NUM_U8, 0), 0, -1, false, "cuda/w4a16"},
        {"w4a16_g32", integer(4, QE_NUM_F16, 32, QE_ZERO_CONST, 0, 8), 0, -1, false, "cuda/w4a16"},
        {"w4a16_channel", integer(4, QE_NUM_F16, 0, QE_ZERO_CONST, 0, 8), 0, -1, false, "cuda/w4a16"},
        {"w8a16", integer(8, QE_NUM_F16, 128, QE_ZERO_CONST, 0, 128), 0, -1, false, "cuda/any"},
        {"nf4", table(QE_CODE_NF4, 4, QE_NUM_F32, 64), 0, -1, false, "cuda/any"},
        {"fp8", table(QE_CODE_E4M3, 8, QE_NUM_F32, 128), 0, -1, false, "cuda/any"},
        {"sign", table(QE_CODE_SIGN, 1, QE_NUM_F32, 0), 0, -1, false, "cuda/any"},
        {"lut", table(QE_CODE_LUT, 4, QE_NUM_F16, 64), 0, -1, false, "cuda/any"},
        {"f16", plain(QE_CODE_F16, 16), 0, -1, false, "cuda/any"},
        {"bf16", plain(QE_CODE_BF16, 16), 0, -1, false, "cuda/any"},
        {"f32", plain(QE_CODE_F32, 32), 0, -1, false, "cuda/any"},
    };
    return all;
}

// Memory of one backend, released together.
struct Pool {
    const qk_backend *backend;
    qk_device device{};
    qk_queue queue{};
    std::vector<void *> blocks;
    explicit Pool(const qk_backend *b) : backend(b) {
        EXPECT_EQ(b->describe(0, &device, nullptr), QE_OK);
        queue.device = &device;
    }
    ~Pool() {
        for (void *p : blocks) backend->release(&device, p);
    }
    void *put(const void *src, size_t bytes) {
        void *p = nullptr;
        EXPECT_EQ(backend->alloc(&device, bytes, &p, nullptr), QE_OK);
        blocks.push_back(p);
        if (src) { EXPECT_EQ(backend->copy(&queue, p, src, bytes, nullptr), QE_OK); }
        return p;
    }
};

struct Tensor {
    qe_qtensor t{};
    std::vector<char> block;
};
void fill_numbers(std::mt19937 &g, int num, void *p, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const float v = float(int(g() % 2001) - 1000) * 1e-4f + 1e-5f; // both signs
        if (num == QE_NUM_F32)
            static_cast<float *>(p)[i] = v;
        else if (num == QE_NUM_F16)
            static_cast<uint16_t *>(p)[i] = qe_f32_to_f16(v);
        else if (num == QE_NUM_BF16)
            static_cast<uint16_t *>(p)[i] = qe_f32_to_bf16(v);
        else if (num == QE_NUM_E8M0)
            static_cast<uint8_t *>(p)[i] = uint8_t(120 + g() % 8);
        else if (num == QE_NUM_E4M3)
            static_cast<uint8_t *>(p)[i] = uint8_t(g() % 120);
        else if (num == QE_NUM_S8)
            static_cast<int8_t *>(p)[i] = int8_t(int(g() % 255) - 127);
        else if (num == QE_NUM_U4)
            static_cast<uint8_t *>(p)[i] = uint8_t(1 + g() % 15);
        else if (num != QE_NUM_ONE)
            static_cast<uint8_t *>(p)[i] = uint8_t(g() % 16);
    }
}
int64_t parts(int64_t k, int32_t e) {
    return e ? (k + e - 1) / e : 1;
}
void make_tensor(Tensor *out, const Scheme &s, int64_t n, int64_t k, uint32_t seed) {
    std::mt19937 g(seed);
    const qe_quant &q = s.quant;
    out->block.resize(qe_qtensor_bytes(&q, n, k, 0) + 64);
    char *base = reinterpret_cast<char *>((uintptr_t(out->block.data()) + 63) / 64 * 64);
    ASSERT_EQ(qe_qtensor_place(&out->t, &q, n, k, 0, base, out->block.size() - 64, nullptr), QE_OK);
    qe_qtensor &t = out->t;
    t.facts = s.facts;
    const int64_t rows = q.group_n == 1 ? n : 1;
    if (q.code <= QE_CODE_BF16)
        fill_numbers(g,
                     q.code == QE_CODE_F32   ? QE_NUM_F32
                     : q.code == QE_CODE_F16 ? QE_NUM_F16
                                             : QE_NUM_BF16,
                     t.codes, n * k);
    else
        for (int64_t i = 0; i < n * k; i++) {
            uint8_t c = uint8_t(g() & ((1u << q.bits) - 1));
            if (q.code == QE_CODE_E4M3 && (c & 127) == 127) c = 0;
            static_cast<uint8_t *>(t.codes)[i] = c;
        }
    if (t.scales) fill_numbers(g, q.scale, t.scales, rows * parts(k, q.group_k));
    if (t.super) fill_numbers(g, q.super, t.super, rows * parts(k, q.super_k));
    if (t.zeros) fill_numbers(g, q.zero_num, t.zeros, rows * parts(k, q.group_k));
    if (t.zero_super) fill_numbers(g, q.super, t.zero_super, rows * parts(k, q.super_k));
    if (t.lut)
        for (int i = 0; i < 1 << q.bits; i++) t.lut[i] = float(int(g() % 2001) - 1000) * 1e-3f;
}

qk_shape shape_of(const Scheme &s, int64_t n, int64_t k) {
    qk_shape shape{};
    shape.quant = s.quant, shape.n = n, shape.k = k, shape.facts = s.facts;
    if (s.act_group >= 0) {
        shape.act.mode = QE_ACT_DYNAMIC;
        shape.act.quant = integer(8, QE_NUM_F32, s.act_group, QE_ZERO_CONST, 0, 128);
        if (s.asymmetric) {
            shape.act.quant.zero = QE_ZERO_POINT, shape.act.quant.zero_num = QE_NUM_U8, shape.act.quant.zero_const = 0;
        }
    }
    shape.chunk_k = qk_chunk_k(&shape.quant, shape.facts, &shape.act, n, k);
    return shape;
}

// A band of the tensor as a view of its arrays.
qe_qtensor band_of(const qe_qtensor &t, int64_t row, int64_t rows) {
    qe_qtensor b = t;
    const qe_quant &q = t.quant;
    auto num = [](int type) {
        return int64_t(type == QE_NUM_ONE ? 0 : type == QE_NUM_F32 ? 4 : type <= QE_NUM_BF16 ? 2 : 1);
    };
    auto at = [&](void *p, int64_t bytes) { return p ? static_cast<char *>(p) + row * bytes : nullptr; };
    b.first_row = row, b.n = rows, b.rows = t.n;
    b.codes = at(t.codes, t.k * (q.bits > 8 ? q.bits / 8 : 1));
    b.scales = at(t.scales, parts(t.k, q.group_k) * num(q.scale));
    b.super = at(t.super, parts(t.k, q.super_k) * num(q.super));
    b.zeros = at(t.zeros, parts(t.k, q.group_k) * num(q.zero_num));
    b.zero_super = at(t.zero_super, parts(t.k, q.super_k) * num(q.super));
    return b;
}
qk_weight pack(Pool &pool, qk_shape shape, const qe_qtensor &t, std::vector<char> *packed = nullptr) {
    shape.layout = nullptr;
    qk_why why{};
    for (auto l = pool.backend->layouts; *l && !shape.layout; l++)
        if ((*l)->supports(&pool.device, &shape, &why)) shape.layout = *l;
    EXPECT_NE(shape.layout, nullptr) << why.text;
    const qk_layout *l = shape.layout;
    const size_t head = l->head_bytes(&shape), band = l->band_bytes(&shape);
    const int64_t bands = (t.n + l->band_rows - 1) / l->band_rows;
    std::vector<char> host(head + size_t(bands) * band + 16);
    char *aligned = reinterpret_cast<char *>((uintptr_t(host.data()) + 15) / 16 * 16);
    qe_qtensor first = band_of(t, 0, std::min<int64_t>(t.n, l->band_rows));
    l->pack_head(&shape, &first, aligned);
    for (int64_t b = 0; b < bands; b++) {
        const int64_t row = b * l->band_rows;
        qe_qtensor view = band_of(t, row, std::min<int64_t>(l->band_rows, t.n - row));
        l->pack(&shape, &view, aligned + head + size_t(b) * band);
    }
    qk_weight w{};
    w.shape = shape, w.blob_bytes = head + size_t(bands) * band;
    w.blob = pool.put(aligned, w.blob_bytes);
    if (packed) packed->assign(aligned, aligned + w.blob_bytes);
    return w;
}

struct Problem {
    int64_t m, n, k;
    int x_type, y_type, act;
    uint32_t flags;
};
std::vector<float> random_row(size_t count, uint32_t seed) {
    std::mt19937 g(seed);
    std::vector<float> v(count);
    for (float &f : v) f = float(int(g() % 4001) - 2000) * 1e-3f;
    return v;
}
std::vector<char> as_type(const std::vector<float> &v, int type) {
    std::vector<char> out(v.size() * (type == QE_CODE_F32 ? 4 : 2));
    for (size_t i = 0; i < v.size(); i++) {
        uint16_t h = type == QE_CODE_F16 ? qe_f32_to_f16(v[i]) : qe_f32_to_bf16(v[i]);
        if (type == QE_CODE_F32)
            std::memcpy(&out[i * 4], &v[i], 4);
        else
            std::memcpy(&out[i * 2], &h, 2);
    }
    return out;
}
size_t type_bytes(int type) {
    return type == QE_CODE_F32 ? 4 : 2;
}

// prepare, then one row of the layout; returns y's bytes.
std::vector<char> run(Pool &pool, const qk_weight &w, const qk_row *row, const Problem &p, uint32_t seed) {
    qe_error err{};
    const std::vector<char> x = as_type(random_row(size_t(p.m * p.k), seed), p.x_type);
    qk_x prepared{};
    const size_t bytes = pool.backend->ops.x_bytes(&pool.device, &w.shape, p.m, p.x_type, &prepared);
    qk_x_rebase(&prepared, pool.put(nullptr, bytes));
    qk_prepare prepare{};
    prepare.x = pool.put(x.data(), x.size()), prepare.ldx = p.k, prepare.x_type = p.x_type;
    prepare.next = &w, prepare.out = &prepared;
    EXPECT_EQ(pool.backend->ops.prepare(&prepare, &pool.queue, &err), QE_OK) << err.message;

    const int64_t outputs = p.flags & QK_GEMM_GATED ? p.n / 2 : p.n, ldy = outputs + 3;
    const std::vector<float> bias = random_row(size_t(p.n), seed + 1);
    const std::vector<char> residual = as_type(random_row(size_t(p.m * ldy), seed + 2), p.y_type);
    std::vector<char> y(size_t(p.m * ldy) * type_bytes(p.y_type), 0x5a);
    qk_gemm g{};
    g.w = w.shape, g.x = prepared.quant, g.m = p.m, g.y_type = p.y_type, g.act = p.act, g.flags = p.flags;
    qk_plan plan = qk_plan_begin(row, &g);
    row->plan(&pool.device, &g, &plan);
    qk_gemm_args a{};
    a.w = &w, a.x = prepared, a.ldy = ldy, a.ldr = ldy;
    a.y = pool.put(y.data(), y.size());
    if (p.flags & QK_GEMM_BIAS) a.bias = static_cast<const float *>(pool.put(bias.data(), bias.size() * 4));
    if (p.flags & QK_GEMM_RESIDUAL) a.residual = pool.put(residual.data(), residual.size());
    if (plan.workspace_bytes) a.workspace = pool.put(nullptr, plan.workspace_bytes);
    EXPECT_EQ(row->run(&plan, &a, &pool.queue, &err), QE_OK) << row->name << ": " << err.message;
    EXPECT_EQ(pool.backend->copy(&pool.queue, y.data(), a.y, y.size(), nullptr), QE_OK);
    EXPECT_EQ(pool.backend->wait(&pool.queue, nullptr), QE_OK);
    return y;
}
float value_at(const std::vector<char> &y, size_t i, int type) {
    if (type == QE_CODE_F32) {
        float f;
        std::memcpy(&f, &y[i * 4], 4);
        return f;
    }
    uint16_t h;
    std::memcpy(&h, &y[i * 2], 2);
    return type == QE_CODE_F16 ? qe_f16_to_f32(h) : qe_bf16_to_f32(h);
}
bool close_enough(const std::vector<char> &got, const std::vector<char> &want, const Problem &p) {
    // 7.7 with the tensor cores' u_acc and u_w = 2^-11; |x| <= 2, |w| <= 1.6 bound the sum of |x||w|.
    const double slack = (double(p.k) + 16) * std::ldexp(1, -22) + std::ldexp(1, -11);
    for (size_t i = 0; i < got.size() / type_bytes(p.y_type); i++) {
        const double a = value_at(got, i, p.y_type), b = value_at(want, i, p.y_type);
        const double u_y = p.y_type == QE_CODE_F32   ? std::ldexp(1, -22)
                           : p.y_type == QE_CODE_F16 ? std::ldexp(1, -10)
                                                     : std::ldexp(1, -7);
        const double size = 0.8 * std::sqrt(double(p.k)) * 3; // typical |x||w| sum, far below its maximum
        if (std::isnan(a) && std::isnan(b)) continue;
        if (!(std::fabs(a - b) <= slack * size + u_y * std::fabs(b) + std::ldexp(1, -24))) return false;
    }
    return true;
}

const Problem kProblems[] = {
    {1, 8, 64, QE_CODE_F16, QE_CODE_F32, 0, 0},
    {33, 100, 304, QE_CODE_F16, QE_CODE_F16, QK_ACT_SILU, QK_GEMM_BIAS},
    {70, 136, 1072, QE_CODE_F16, QE_CODE_F16, 0, QK_GEMM_BIAS | QK_GEMM_RESIDUAL},
    {5, 66, 1300, QE_CODE_BF16, QE_CODE_BF16, QK_ACT_GELU_TANH, QK_GEMM_GATED},
    {17, 72, 512, QE_CODE_F32, QE_CODE_F32, 0, QK_GEMM_BIAS},
};
struct Schedule {
    simt::Order order;
    simt::Async async;
};
const Schedule kSchedules[] = {{simt::Order::RoundRobin, simt::Async::Eager},
                               {simt::Order::Reverse, simt::Async::Lazy},
                               {simt::Order::Random, simt::Async::Random}};

class CudaGemm : public testing::TestWithParam<size_t> {};

TEST_P(CudaGemm, MatchesReference) {
    const Scheme &s = schemes()[GetParam()];
    int cases = 0, rows_seen = 0;
    for (int sm : {80, 90}) {
        simt::device().sm = sm;
        for (const Problem &p : kProblems) {
            Pool ref(&qk_ref_backend), cuda(&qk_cuda_backend);
            Tensor t;
            make_tensor(&t, s, p.n, p.k, uint32_t(p.n));
            const qk_shape shape = shape_of(s, p.n, p.k);
            const qk_weight wr = pack(ref, shape, t.t), wc = pack(cuda, shape, t.t);
            ASSERT_STREQ(wc.shape.layout->name, s.layout);
            const std::vector<char> want = run(ref, wr, *qk_ref_backend.rows, p, 7);
            for (auto row = qk_cuda_backend.rows; *row; row++) {
                if ((*row)->layout != wc.shape.layout) continue;
                qk_gemm g{};
                g.w = wc.shape, g.m = p.m, g.y_type = p.y_type, g.act = p.act, g.flags = p.flags;
                g.x = s.act_group < 0 ? plain(p.x_type, p.x_type == QE_CODE_F32 ? 32 : 16) : shape.act.quant;
                qk_why why{};
                if (!(*row)->supports(&cuda.device, &g, &why)) continue;
                rows_seen++;
                const bool threads_only =
                    !std::strcmp((*row)->name, "cuda/any") || !std::strcmp((*row)->name, "cuda/w4a16_simt");
                for (const Schedule &schedule : kSchedules) {
                    if (threads_only && &schedule != kSchedules) continue; // no collective to reorder
                    simt::device().options.order = schedule.order;
                    simt::device().options.async = schedule.async;
                    simt::device().options.seed = uint64_t(cases) + 1;
                    const std::vector<char> got = run(cuda, wc, *row, p, 7);
                    const bool exact = s.act_group >= 0 || threads_only;
                    ASSERT_TRUE(exact ? got == want : close_enough(got, want, p))
                        << (*row)->name << " sm_" << sm << " m " << p.m << " n " << p.n << " k " << p.k;
                    cases++;
                }
            }
        }
    }
    simt::device().options = {};
    simt::device().sm = 90;
    EXPECT_GT(rows_seen, 0);
    std::printf("%s: %d runs\n", s.name, cases);
}
TEST_P(CudaGemm, PacksLosslessly) {
    const Scheme &s = schemes()[GetParam()];
    const int64_t n = 75, k = 304;
    Pool cuda(&qk_cuda_backend);
    Tensor t, back;
    make_tensor(&t, s, n, k, 3);
    make_tensor(&back, s, n, k, 4);
    std::vector<char> blob;
    const qk_weight w = pack(cuda, shape_of(s, n, k), t.t, &blob);
    const qk_layout *l = w.shape.layout;
    for (int64_t row = 0, b = 0; row < n; row += l->band_rows, b++) {
        qe_qtensor view = band_of(back.t, row, std::min<int64_t>(l->band_rows, n - row));
        l->unpack(&w.shape, blob.data(), blob.data() + l->head_bytes(&w.shape) + size_t(b) * l->band_bytes(&w.shape),
                  &view);
    }
    std::vector<float> a(size_t(n * k)), c(size_t(n * k));
    ASSERT_EQ(qe_dequantize(&t.t, 0, n, a.data(), k, nullptr), QE_OK);
    ASSERT_EQ(qe_dequantize(&back.t, 0, n, c.data(), k, nullptr), QE_OK);
    EXPECT_EQ(std::memcmp(a.data(), c.data(), a.size() * 4), 0);
}
INSTANTIATE_TEST_SUITE_P(Schemes, CudaGemm, testing::Range(size_t(0), schemes().size()),
                         [](const auto &i) { return std::string(schemes()[i.param].name); });

// prepare against the reference: every step, bit for bit.
struct PrepareCase {
    const char *name;
    int64_t k;
    int x_type, act_group, mode; // mode -1: float output
    bool asymmetric, norm, residual, gate, split_gate, post, order, scale;
    int hadamard;
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
    for (const PrepareCase &c : kPrepare)
        for (bool bad : {false, true}) {
            if (bad && (c.norm || c.hadamard || c.mode == QE_ACT_FLOAT)) continue; // NaN payloads differ by machine
            Pool ref(&qk_ref_backend), cuda(&qk_cuda_backend);
            const std::vector<char> want = prepare_bytes(ref, c, 5, bad), got = prepare_bytes(cuda, c, 5, bad);
            ASSERT_EQ(want.size(), got.size());
            for (size_t i = 0; i < want.size(); i++)
                ASSERT_EQ(int(want[i]), int(got[i]))
                    << c.name << (bad ? " with NaN" : "") << " byte " << i << " of " << want.size();
        }
}

TEST(CudaDevice, DescribesTheEmulator) {
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
