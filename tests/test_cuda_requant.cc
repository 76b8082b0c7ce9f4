// int8 output of the cuda backend in the emulator, and of the reference: both forms of quantization.md 7.6, one linear's
// output as the next one's input, and arguments that say neither form or both.
#include "cuda_support.h"

#include <set>

#include <qengine/quantize.h>

namespace {
using namespace cuda_test;

// How one channel is requantized: the fp32 multiplier, or the integer one and its shift.
struct Multipliers {
    std::vector<float> factor;
    std::vector<int32_t> fixed, bias;
    std::vector<qe_requant> made;
    Multipliers(int64_t n, uint32_t seed) {
        for (float f : random_row(size_t(n), seed)) {
            const double m = std::ldexp(1e-3 + std::fabs(f), -int(made.size() % 13) - 2); // many shifts
            qe_requant r{};
            EXPECT_EQ(qe_requant_make(float(m), 1, 1, &r, nullptr), QE_OK);
            bias.push_back(int32_t(made.size() * 977) - 30000);
            made.push_back(r), factor.push_back(r.multiplier);
            fixed.push_back(r.fixed), fixed.push_back(r.shift);
        }
    }
    void give(Pool &pool, bool integers, qk_gemm_args *a) const {
        a->bias_q = static_cast<const int32_t *>(pool.put(bias.data(), bias.size() * 4));
        if (integers)
            a->requant_fixed = static_cast<const int32_t *>(pool.put(fixed.data(), fixed.size() * 4));
        else
            a->requant = static_cast<const float *>(pool.put(factor.data(), factor.size() * 4));
    }
};
// int8 y of one row, [m][ldy].
std::vector<int8_t> run_int8(Pool &pool, const qk_row *row, qk_gemm_args a, int64_t m, void **kept = nullptr) {
    std::vector<int8_t> y(size_t(m * a.ldy), 85);
    qk_gemm g{};
    g.w = a.w->shape, g.m = m, g.y_type = QE_CODE_INT, g.x = a.w->shape.act.quant, g.flags = QK_GEMM_BIAS;
    qk_plan plan = qk_plan_begin(row, &g);
    row->plan(&pool.device, &g, &plan);
    a.y = pool.put(y.data(), y.size());
    if (plan.workspace_bytes) a.workspace = pool.put(nullptr, plan.workspace_bytes);
    qe_error err{};
    EXPECT_EQ(qk_gemm_run(&plan, &a, &pool.queue, &err), QE_OK) << err.message;
    EXPECT_EQ(pool.backend->copy(&pool.queue, y.data(), a.y, y.size(), nullptr), QE_OK);
    EXPECT_EQ(pool.backend->wait(&pool.queue, nullptr), QE_OK);
    if (kept) *kept = a.y;
    return y;
}
std::vector<const qk_row *> int8_rows(const Pool &pool, const qk_shape &shape, int64_t m) {
    std::vector<const qk_row *> rows;
    qk_gemm g{};
    g.w = shape, g.m = m, g.y_type = QE_CODE_INT, g.x = shape.act.quant, g.flags = QK_GEMM_BIAS;
    for (auto row = pool.backend->rows; *row; row++) {
        const bool new_here = pool.device.sm != 90 || ends_with((*row)->name, "_sm90");
        if ((*row)->layout == shape.layout && new_here && (*row)->supports(&pool.device, &g, nullptr)) rows.push_back(*row);
    }
    return rows;
}
class CudaInt8 : public testing::Test {
  protected:
    ~CudaInt8() override { simt::device().sm = 90; }
};
class CudaRequant : public CudaInt8, public testing::WithParamInterface<size_t> {};

// int8 output (quantization.md 7.6) of every row that offers it, both forms, against the formula over canonical codes.
TEST_P(CudaRequant, Requantizes) {
    const Scheme &s = schemes()[GetParam()];
    const int64_t m = 19, n = 74, k = 1072; // k of more than one split
    const qk_shape shape = shape_of(s, n, k);
    if (!qk_whole_k(&shape.quant, shape.facts, &shape.act, k)) GTEST_SKIP() << s.name << " sums in floats";
    Tensor t;
    make_tensor(&t, s, n, k, 11);
    const qe_quant &q = s.quant;
    const int64_t groups = parts(k, q.group_k);
    const uint8_t *codes = static_cast<uint8_t *>(t.t.codes), *zeros = static_cast<uint8_t *>(t.t.zeros),
                  *scales = static_cast<uint8_t *>(t.t.scales);
    auto weight = [&](int64_t row, int64_t column) {
        if (q.code == QE_CODE_SIGN) return codes[row * k + column] ? 1 : -1;
        const int64_t g = row * groups + (q.group_k ? column / q.group_k : 0);
        const int value = codes[row * k + column] - (q.zero == QE_ZERO_POINT ? zeros[g] : q.zero_const);
        return q.super == QE_NUM_ONE ? value : value * scales[g];
    };
    const Multipliers multipliers(n, 31);
    const Problem p{m, n, k, QE_CODE_F16, QE_CODE_INT, 0, QK_GEMM_BIAS};
    int runs = 0;
    for (int sm : {0, 80, 90}) { // 0: the reference
        simt::device().sm = sm ? sm : 90;
        Pool pool(sm ? &qk_cuda_backend : &qk_ref_backend);
        const qk_weight w = pack(pool, shape, t.t);
        qk_gemm_args a{};
        a.w = &w, a.x = input(pool, w, p, 7), a.y_zero = 3;
        const std::vector<int8_t> x = pool.get(static_cast<const int8_t *>(a.x.data), size_t(m * a.x.ld));
        const std::vector<int32_t> x_zeros = pool.get(a.x.zeros, size_t(s.fixed ? 1 : m));
        std::vector<int32_t> sums;
        for (int64_t i = 0; i < m * n; i++) {
            const int zero = x_zeros.empty() ? 0 : x_zeros[size_t(s.fixed ? 0 : i / n)];
            int64_t sum = multipliers.bias[size_t(i % n)];
            for (int64_t c = 0; c < k; c++) sum += (x[size_t(i / n * a.x.ld + c)] - zero) * weight(i % n, c);
            sums.push_back(int32_t(sum));
        }
        for (const qk_row *row : int8_rows(pool, w.shape, m))
            for (int form = 0; form < 4; form++) { // even and odd rows of y: words and bytes
                a.ldy = n + (form & 1 ? 6 : 5), a.requant = nullptr, a.requant_fixed = nullptr;
                multipliers.give(pool, form >> 1, &a);
                const std::vector<int8_t> y = run_int8(pool, row, a, m);
                for (int64_t i = 0; i < m * a.ldy; i++) {
                    const int64_t c = i % a.ldy;
                    int want = 85; // beyond n nothing is written
                    if (c < n) {
                        const int32_t sum = sums[size_t(i / a.ldy * n + c)];
                        const qe_requant &r = multipliers.made[size_t(c)];
                        want = form >> 1 ? qe_requant_fixed(sum, &r, 3) : qe_requant_float(sum, &r, 3);
                    }
                    ASSERT_EQ(int(y[size_t(i)]), want) << row->name << " form " << form << " y[" << i / a.ldy << "][" << c << "]";
                }
                runs++;
            }
    }
    EXPECT_GE(runs, 8);
}
// A static pipeline: the int8 output of one linear is the input of the next as it lies, nothing between them.
TEST_F(CudaInt8, ChainsInt8) {
    const int64_t m = 21, n = 200, k = 272, last = 70;
    Scheme first = schemes()[0], second = schemes()[2];
    first.fixed = second.fixed = second.asymmetric = true;
    ASSERT_STREQ(first.name, "w8a8");
    ASSERT_STREQ(second.name, "w4a8_channel");
    Tensor t1, t2;
    make_tensor(&t1, first, n, k, 5), make_tensor(&t2, second, last, n, 6);
    const Multipliers m1(n, 8), m2(last, 9);
    const Problem p{m, n, k, QE_CODE_F16, QE_CODE_INT, 0, QK_GEMM_BIAS};
    std::vector<int8_t> want;
    int runs = 0;
    for (int sm : {0, 80, 90}) {
        simt::device().sm = sm ? sm : 90;
        Pool pool(sm ? &qk_cuda_backend : &qk_ref_backend);
        const qk_weight w1 = pack(pool, shape_of(first, n, k), t1.t), w2 = pack(pool, shape_of(second, last, n), t2.t);
        const struct { float scale; int32_t zero; } range{w2.shape.act.scale, w2.shape.act.zero - 128};
        for (const qk_row *row1 : int8_rows(pool, w1.shape, m))
            for (const qk_row *row2 : int8_rows(pool, w2.shape, m)) {
                qk_gemm_args a{}, b{};
                a.w = &w1, a.x = input(pool, w1, p, 7), a.ldy = 256, a.y_zero = range.zero;
                m1.give(pool, true, &a);
                b.w = &w2, b.ldy = last, b.y_zero = -4;
                b.x.m = m, b.x.k = n, b.x.ld = a.ldy, b.x.quant = w2.shape.act.quant;
                (void)run_int8(pool, row1, a, m, &b.x.data);
                b.x.scales = static_cast<float *>(pool.put(&range.scale, 4));
                b.x.zeros = static_cast<int32_t *>(pool.put(&range.zero, 4));
                m2.give(pool, true, &b);
                const std::vector<int8_t> y = run_int8(pool, row2, b, m);
                if (want.empty()) want = y;
                ASSERT_EQ(y, want) << row1->name << " -> " << row2->name;
                runs++;
            }
    }
    EXPECT_GE(runs, 3); // a GPU of sm_90 runs the rows below it, too
    EXPECT_GT(std::set<int8_t>(want.begin(), want.end()).size(), 50u); // not all saturated
}
TEST_F(CudaInt8, RefusesAnUnclearRequantization) {
    const Scheme &s = schemes()[0];
    Tensor t;
    make_tensor(&t, s, 8, 64, 3);
    Pool pool(&qk_cuda_backend);
    const qk_weight w = pack(pool, shape_of(s, 8, 64), t.t);
    qk_gemm g{};
    g.w = w.shape, g.m = 1, g.y_type = QE_CODE_INT, g.x = w.shape.act.quant;
    qk_plan plan;
    ASSERT_EQ(qk_gemm_plan(&pool.device, &g, &plan, nullptr, nullptr, nullptr), QE_OK);
    const float factor[8] = {};
    const int32_t fixed[16] = {};
    int8_t y[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    qk_gemm_args a{};
    a.w = &w, a.x = input(pool, w, {1, 8, 64, QE_CODE_F32, QE_CODE_INT, 0, 0}, 7), a.y = y, a.ldy = 8;
    for (int both : {0, 1}) {
        a.requant = both ? factor : nullptr, a.requant_fixed = both ? fixed : nullptr;
        qe_error err{};
        EXPECT_EQ(qk_gemm_run(&plan, &a, &pool.queue, &err), QE_E_ARGUMENT);
        EXPECT_NE(std::string(err.message).find("requant_fixed"), std::string::npos) << err.message;
        EXPECT_EQ(y[0], 1);
    }
}
INSTANTIATE_TEST_SUITE_P(Schemes, CudaRequant, testing::Range(size_t(0), schemes().size()),
                         [](const auto &i) { return std::string(schemes()[i.param].name); });

} // namespace
