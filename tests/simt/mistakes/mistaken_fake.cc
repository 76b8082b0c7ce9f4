// Fake quantization, forward and backward, against sums that are exact: built from copies of kernels/cuda that carry a seeded
// mistake. KERNEL: 3000.
#include "fake_quant.cu"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "simt_device.h"

extern "C" qe_status qe_error_set(qe_error *, qe_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    std::printf("FAIL ");
    std::vprintf(format, args);
    std::printf("\n");
    va_end(args);
    return status;
}
template <class T> T *device(const std::vector<T> &v) {
    T *p = static_cast<T *>(simt::device_alloc(v.size() * sizeof(T)));
    std::memcpy(p, v.data(), v.size() * sizeof(T));
    return p;
}

struct Case {
    int n, k, group_n, group_k;
};
constexpr int kLow = -8, kHigh = 7;

int run(const Case &c, const qk_queue &queue) {
    std::mt19937 g(3);
    const int height = c.group_n ? c.group_n : c.n, width = c.group_k ? c.group_k : c.k;
    const int across = (c.k + width - 1) / width, groups = (c.n + height - 1) / height * across;
    std::vector<float> x(size_t(c.n) * size_t(c.k)), dy(x.size()), scale(groups, 0.0f), zero(scale.size());
    for (float &v : x) v = float(int(g() % 65) - 32) / 8; // quotients by powers of two are exact
    for (float &v : dy) v = float(int(g() % 15) - 7);
    for (float &v : scale) v = std::ldexp(1.0f, int(g() % 3) - 2);
    for (float &v : zero) v = float(int(g() % 3) - 1);
    std::vector<double> ds(scale.size()), dz(scale.size()), size(scale.size());
    std::vector<float> y(x.size()), dx(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        const size_t group = i / size_t(c.k) / size_t(height) * size_t(across) + i % size_t(c.k) / size_t(width);
        const double s = scale[group], z = zero[group], u = x[i] / s + z, q = std::clamp(std::nearbyint(u), double(kLow), double(kHigh));
        const bool inside = u >= kLow && u <= kHigh;
        y[i] = float(s * (q - z)), dx[i] = inside ? dy[i] : 0;
        ds[group] += dy[i] * (q - z - (inside ? x[i] / s : 0)), dz[group] -= inside ? 0 : s * dy[i], size[group]++;
    }
    qk_fake_quant f{};
    f.n = c.n, f.k = c.k, f.group_n = c.group_n, f.group_k = c.group_k, f.low = kLow, f.high = kHigh, f.type = QE_CODE_F32;
    f.scale = device(scale), f.zero = device(zero), f.x = device(x), f.lsq_scaled = 1;
    float *out = device(std::vector<float>(x.size(), -99.0f));
    f.out = out;
    if (qk_cuda_fake_quant(&f, &queue, nullptr)) return 1;
    for (size_t i = 0; i < x.size(); i++)
        if (out[i] != y[i]) return std::printf("FAIL y[%zu] = %g, want %g\n", i, double(out[i]), double(y[i])), 1;
    f.dy = device(dy), f.dscale = device(std::vector<double>(ds.size(), 1)), f.dzero = device(std::vector<double>(ds.size(), 1));
    if (const size_t bytes = qk_cuda_fake_quant_bytes(&f)) f.workspace = simt::device_alloc(bytes);
    if (qk_cuda_fake_quant(&f, &queue, nullptr)) return 1;
    for (size_t i = 0; i < x.size(); i++)
        if (out[i] != dx[i]) return std::printf("FAIL dx[%zu] = %g, want %g\n", i, double(out[i]), double(dx[i])), 1;
    for (size_t i = 0; i < ds.size(); i++) {
        const double want_s = 1 + ds[i] / std::sqrt(size[i] * kHigh), want_z = 1 + dz[i];
        if (std::fabs(f.dscale[i] - want_s) > 1e-9 || f.dzero[i] != want_z)
            return std::printf("FAIL gradients of group %zu: %g, %g, want %g, %g\n", i, f.dscale[i], f.dzero[i], want_s, want_z), 1;
    }
    return 0;
}

int main() {
    qk_device d{};
    qk_queue queue{};
    queue.device = &d;
    if (qk_cuda_describe(0, &d, nullptr)) return 1;
    const simt::Options schedules[] = {{simt::Order::RoundRobin, simt::Async::Lazy}, {simt::Order::Random, simt::Async::Random, 4}};
    for (const simt::Options &o : schedules) {
        simt::device().options = o;
        for (const Case &c : {Case{3, 40, 1, 32}, Case{7, 70, 3, 32}, Case{5, 4200, 0, 0}, Case{2, 9000, 1, 8500}})
            if (run(c, queue)) return 1;
    }
    return std::printf("PASSED\n"), 0;
}
