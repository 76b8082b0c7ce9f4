// Fake quantization on the cuda backend, through the public call, against the CPU's: forward and dx in bits, the gradients
// of scales and zeros to float64's rounding and the same bits under every schedule.
#include <cmath>
#include <random>

#include <qengine/num.h>
#include <qengine/quantize.h>
#include "cuda_support.h"
#include "device_memory.h"

namespace {
using cuda_test::as_type;
using cuda_test::value_at;

struct Device {
    qe_device *handle = nullptr;
    explicit Device(int backend) {
        qe_device_options o{};
        qe_error err{};
        o.struct_size = sizeof o, o.backend = backend;
        EXPECT_EQ(qe_device_create(&o, &handle, &err), QE_OK) << err.message;
    }
    ~Device() { qe_device_destroy(handle); }
    Device(const Device &) = delete;
};

struct Case {
    const char *name;
    int64_t n, k;
    int32_t group_n, group_k, low, high;
    bool zero;
};
const Case kCases[] = {{"tensor", 37, 130, 0, 0, -8, 7, false},        {"tensor, wide", 3, 9000, 0, 0, -128, 127, true},
                       {"channel", 21, 300, 1, 0, -8, 7, false},       {"channel, wide", 4, 4097, 1, 0, 0, 255, true},
                       {"token", 5, 4096, 1, 0, -127, 127, false},     {"groups of 32", 9, 200, 1, 32, -2, 1, true},
                       {"groups of 128", 10, 384, 1, 128, -8, 7, true}, {"groups of 5", 7, 23, 1, 5, 0, 15, true},
                       {"blocks", 70, 150, 32, 64, -8, 7, false},      {"columns", 40, 33, 0, 1, -1, 1, true},
                       {"rows of 3", 10, 70, 3, 0, 0, 1, true},        {"group beyond k", 6, 20, 9, 64, -8, 7, true},
                       {"one", 1, 1, 0, 0, -8, 7, true},               {"ternary", 8, 64, 1, 0, -1, 1, false}};
const int kTypes[] = {QE_CODE_F32, QE_CODE_F16, QE_CODE_BF16};
const struct {
    simt::Order order;
    simt::Async async;
} kSchedules[] = {{simt::Order::RoundRobin, simt::Async::Eager}, {simt::Order::Reverse, simt::Async::Lazy}, {simt::Order::Random, simt::Async::Random}};

struct Data {
    std::vector<float> x, dy, scale, zero;
    explicit Data(const Case &c) {
        std::mt19937 g(uint32_t(c.n * 31 + c.k));
        std::normal_distribution<float> normal(0.0f, 1.0f);
        for (int64_t i = 0; i < c.n * c.k; i++) x.push_back(normal(g)), dy.push_back(normal(g));
        // Halves, both bounds and what lies beyond; zeros of both signs, infinities.
        const float special[] = {0.0f, -0.0f, 0.5f, -0.5f, 1.5f, 1e30f, -1e30f, INFINITY, -INFINITY, 1e-40f};
        for (size_t i = 0; i < x.size() && i < 10; i++) x[i * 7 % x.size()] = special[i];
        const int64_t groups = cuda_test::parts(c.n, c.group_n) * cuda_test::parts(c.k, c.group_k);
        for (int64_t i = 0; i < groups; i++) {
            scale.push_back(i % 5 ? 2.0f / float(c.high - c.low) * float(1 + g() % 3) : 0.25f);
            zero.push_back(float(int(g() % 5) - 2) * (i % 2 ? 1.0f : 0.37f));
        }
    }
};
qe_fake_quant problem(const Case &c, const float *scale, const float *zero) {
    return {c.n, c.k, c.group_n, c.group_k, c.low, c.high, scale, c.zero ? zero : nullptr};
}

struct Result {
    std::vector<char> y, dx;
    std::vector<double> dscale, dzero;
};
Result run(const Device &d, const Case &c, const Data &data, int type, bool lsq, bool in_place = false) {
    const std::vector<char> x = as_type(data.x, type), dy = as_type(data.dy, type);
    Result out{std::vector<char>(x.size(), 0x5a), std::vector<char>(x.size(), 0x5a), {}, {}};
    out.dscale.assign(data.scale.size(), 0.5), out.dzero.assign(data.scale.size(), -2.0); // gradients are added
    Memory scale(d.handle, data.scale.size() * 4, data.scale.data()), zero(d.handle, data.zero.size() * 4, data.zero.data());
    Memory mx(d.handle, x.size(), x.data()), mdy(d.handle, x.size(), dy.data()), my(d.handle, x.size(), out.y.data());
    Memory ms(d.handle, out.dscale.size() * 8, out.dscale.data()), mz(d.handle, out.dzero.size() * 8, out.dzero.data());
    const qe_fake_quant f = problem(c, static_cast<const float *>(scale.data), static_cast<const float *>(zero.data));
    const size_t bytes = qe_fake_quantize_workspace(d.handle, &f);
    Memory workspace(d.handle, bytes + 1);
    qe_error err{};
    qe_fake_quant_run r{};
    r.struct_size = sizeof r, r.type = type, r.lsq_scaled = lsq, r.x = mx.data, r.out = my.data;
    EXPECT_EQ(qe_fake_quantize_run(d.handle, &f, &r, &err), QE_OK) << err.message;
    my.copy(out.y.data(), my.data);
    r.dy = mdy.data, r.out = in_place ? mdy.data : my.data, r.workspace = workspace.data, r.workspace_bytes = bytes;
    r.dscale = static_cast<double *>(ms.data), r.dzero = static_cast<double *>(mz.data);
    EXPECT_EQ(qe_fake_quantize_run(d.handle, &f, &r, &err), QE_OK) << err.message;
    my.copy(out.dx.data(), r.out), ms.copy(out.dscale.data(), ms.data), mz.copy(out.dzero.data(), mz.data);
    return out;
}
// Sums of magnitudes, for the bound of a float64 sum in any order.
std::vector<double> magnitudes(const Case &c, const Data &data, int type) {
    std::vector<double> out(data.scale.size());
    const std::vector<char> x = as_type(data.x, type), dy = as_type(data.dy, type);
    for (int64_t i = 0; i < c.n * c.k; i++) {
        const int64_t row = i / c.k, column = i % c.k, across = cuda_test::parts(c.k, c.group_k);
        const int64_t g = (c.group_n ? row / c.group_n : 0) * across + (c.group_k ? column / c.group_k : 0);
        const double z = c.zero ? data.zero[size_t(g)] : 0, s = data.scale[size_t(g)];
        const double widest = std::fabs(double(c.low)) + std::fabs(double(c.high)) + std::fabs(z) + 1;
        out[size_t(g)] += std::fabs(double(value_at(dy, size_t(i), type))) * (2 * widest + s);
    }
    return out;
}

struct CudaFakeQuant : testing::Test {
    ~CudaFakeQuant() override { simt::device().options = {}; }
};

TEST_F(CudaFakeQuant, IsTheCpus) {
    const Device cpu(QE_BACKEND_CPU), cuda(QE_BACKEND_CUDA);
    int runs = 0;
    double worst = 0;
    for (const Case &c : kCases)
        for (int type : kTypes)
            for (bool lsq : {false, true}) {
                const Data data(c);
                const Result want = run(cpu, c, data, type, lsq);
                const std::vector<double> size = magnitudes(c, data, type);
                Result first;
                for (const auto &schedule : kSchedules) {
                    simt::device().options.order = schedule.order, simt::device().options.async = schedule.async;
                    simt::device().options.seed = uint64_t(runs) + 1;
                    const Result got = run(cuda, c, data, type, lsq, runs % 2);
                    ASSERT_TRUE(got.y == want.y) << c.name << " type " << type;
                    ASSERT_TRUE(got.dx == want.dx) << c.name << " type " << type;
                    for (size_t g = 0; g < size.size(); g++) {
                        const double bound = 0x1p-52 * double(c.n * c.k) * (size[g] + 3);
                        ASSERT_LE(std::fabs(got.dscale[g] - want.dscale[g]), bound) << c.name << " group " << g;
                        ASSERT_LE(std::fabs(got.dzero[g] - want.dzero[g]), bound) << c.name << " group " << g;
                        worst = std::max(worst, std::fabs(got.dscale[g] - want.dscale[g]) / bound);
                    }
                    if (first.y.empty()) first = got;
                    ASSERT_TRUE(got.dscale == first.dscale && got.dzero == first.dzero) << c.name << ": a schedule shows";
                    runs++;
                }
            }
    std::printf("%d runs, gradients off by %.3f of the bound\n", runs, worst);
    EXPECT_EQ(runs, int(std::size(kCases) * std::size(kTypes) * 6));
}

TEST_F(CudaFakeQuant, AnUnusableScaleIsNaNInItsGroupAlone) {
    const Case c{"", 3, 70, 1, 32, -8, 7, true};
    const Device cuda(QE_BACKEND_CUDA), cpu(QE_BACKEND_CPU);
    for (float bad : {0.0f, -1.0f, INFINITY, NAN, -0.0f}) {
        Data data(c);
        const Result good = run(cpu, c, data, QE_CODE_F32, false);
        data.scale[4] = bad; // row 1, columns 32 to 63
        const Result got = run(cuda, c, data, QE_CODE_F32, false);
        for (int64_t i = 0; i < c.n * c.k; i++) {
            const bool in = i / c.k == 1 && i % c.k / 32 == 1;
            EXPECT_EQ(bool(std::isnan(value_at(got.y, size_t(i), QE_CODE_F32))), in) << i;
            EXPECT_EQ(bool(std::isnan(value_at(got.dx, size_t(i), QE_CODE_F32))), in) << i;
        }
        for (size_t g = 0; g < data.scale.size(); g++) EXPECT_EQ(bool(std::isnan(got.dscale[g])), g == 4) << bad;
        EXPECT_NEAR(got.dscale[3], good.dscale[3], 1e-9);
    }
}

TEST_F(CudaFakeQuant, ArgumentsAreChecked) {
    for (int backend : {QE_BACKEND_CPU, QE_BACKEND_CUDA}) {
        const Device d(backend);
        const Case c{"", 4, 64, 0, 0, -8, 7, false};
        const Data data(c);
        std::vector<float> y(256, -7.0f);
        std::vector<double> gradient(1);
        Memory scale(d.handle, 4, data.scale.data()), x(d.handle, 1024, data.x.data()), out(d.handle, 1024, y.data());
        Memory ds(d.handle, 8, gradient.data()), workspace(d.handle, 4096);
        const qe_fake_quant f = problem(c, static_cast<const float *>(scale.data), nullptr);
        qe_fake_quant_run good{};
        good.struct_size = sizeof good, good.type = QE_CODE_F32, good.x = x.data, good.dy = x.data, good.out = out.data;
        good.dscale = static_cast<double *>(ds.data), good.workspace = workspace.data, good.workspace_bytes = 4096;
        auto refused = [&](qe_fake_quant ff, qe_fake_quant_run r) {
            qe_error err{};
            const qe_status status = qe_fake_quantize_run(d.handle, &ff, &r, &err);
            out.copy(y.data(), out.data);
            return status == QE_E_ARGUMENT && err.message[0] && y == std::vector<float>(256, -7.0f);
        };
        qe_fake_quant_run r;
        EXPECT_TRUE((r = good, r.struct_size--, refused(f, r)));
        EXPECT_TRUE((r = good, r.type = QE_CODE_INT, refused(f, r)));
        EXPECT_TRUE((r = good, r.x = nullptr, refused(f, r)));
        EXPECT_TRUE((r = good, r.out = nullptr, refused(f, r)));
        EXPECT_TRUE((r = good, r.dy = nullptr, refused(f, r))) << "gradients without dy";
        qe_fake_quant g;
        EXPECT_TRUE((g = f, g.scale = nullptr, refused(g, good)));
        EXPECT_TRUE((g = f, g.low = 7, refused(g, good)));
        EXPECT_TRUE((g = f, g.group_k = -1, refused(g, good)));
        EXPECT_TRUE((g = f, g.n = int64_t(1) << 40, g.k = int64_t(1) << 40, refused(g, good)));
        const size_t need = qe_fake_quantize_workspace(d.handle, &f);
        EXPECT_EQ(need > 0, backend == QE_BACKEND_CUDA);
        if (need) {
            EXPECT_TRUE((r = good, r.workspace_bytes = need - 1, refused(f, r)));
            EXPECT_TRUE((r = good, r.workspace = nullptr, refused(f, r)));
            EXPECT_TRUE((r = good, r.workspace = static_cast<char *>(r.workspace) + 8, refused(f, r)));
        }
        EXPECT_EQ((r = good, r.dscale = nullptr, r.workspace = nullptr, r.workspace_bytes = 0, qe_fake_quantize_run(d.handle, &f, &r, nullptr)), QE_OK)
            << "no gradients of scales, no workspace";
        EXPECT_EQ((g = f, g.n = 0, qe_fake_quantize_run(d.handle, &g, &good, nullptr)), QE_OK);
    }
}

} // namespace
