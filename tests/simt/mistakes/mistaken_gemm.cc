// Runs the W8A8 kernels under the emulator against an exact int64 reference.
//   test_w8a8 80|90 [M N K]...   options: --order rr|rev|rand --async eager|lazy|rand --seed N --threads N --bench
#include "simt_ptx.h"
#ifdef KERNEL_SM90
#include "mistaken_sm90.cuh"
namespace kern = w8a8_sm90;
#else
#include "mistaken_sm80.cuh"
namespace kern = w8a8_sm80;
#endif
#include <chrono>
#include <ctime>
#include <cstdio>
#include <random>
#include <vector>

template <class T> struct Dev {
    T *p;
    size_t n;
    explicit Dev(size_t n_) : p(static_cast<T *>(simt::device_alloc(n_ * sizeof(T)))), n(n_) {}
    ~Dev() { simt::device_free(p); }
};

static int run(int M, int N, int K, const simt::Options &o, bool bench) {
    std::mt19937 g(12345);
    Dev<int8_t> A(size_t(M) * K), B(size_t(N) * K);
    Dev<float> sa{size_t(M)}, sb{size_t(N)};
    Dev<__half> D(size_t(M) * N);
    for (size_t i = 0; i < A.n; i++) A.p[i] = int8_t(g());
    for (size_t i = 0; i < B.n; i++) B.p[i] = int8_t(g());
    for (size_t i = 0; i < sa.n; i++) sa.p[i] = float(g() % 1000 + 1) * 1e-6f;
    for (size_t i = 0; i < sb.n; i++) sb.p[i] = float(g() % 1000 + 1) * 1e-3f;
    dim3 grid((N + kern::BN - 1) / kern::BN, (M + kern::BM - 1) / kern::BM);
    auto t0 = std::chrono::steady_clock::now();
    std::clock_t c0 = std::clock(); // CPU time: the machine may be shared
#ifdef KERNEL_SM90
    CUtensorMap ta, tb, td;
    simt::encode_tensor_map_2d(&ta, A.p, 1, K, M, K, 128, 128, 128);
    simt::encode_tensor_map_2d(&tb, B.p, 1, K, N, K, 128, 128, 128);
    simt::encode_tensor_map_2d(&td, D.p, 2, N, M, size_t(N) * 2, 64, 64, 128);
    auto r = simt::launch(kern::gemm, grid, kern::kThreads, kern::kSmemBytes, o, ta, tb, td, sa.p, sb.p, M, N, K);
#else
    auto r = simt::launch(kern::gemm, grid, kern::kThreads, kern::kSmemBytes, o, A.p, B.p, sa.p, sb.p, D.p, M, N, K);
#endif
    double cpu = double(std::clock() - c0) / CLOCKS_PER_SEC;
    double sec = std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
    if (!r.ok) {
        std::printf("FAIL %dx%dx%d: %s\n", M, N, K, r.error.c_str());
        return 1;
    }
    if (bench) {
        double macs = double(grid.x * kern::BN) * double(grid.y * kern::BM) * K;
        std::printf("%dx%dx%d: %.3f s, CPU %.3f s, %.2f GMAC per CPU second (tile-padded)\n", M, N, K, sec, cpu,
                    macs / cpu * 1e-9);
        if (double(M) * N * K > 2e9) return 0;
    }
    size_t bad = 0;
    double worst = 0;
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            int64_t s = 0;
            for (int k = 0; k < K; k++) s += int(A.p[size_t(m) * K + k]) * int(B.p[size_t(n) * K + k]);
            double want = double(__half2float(__float2half_rn(float(s) * sa.p[m] * sb.p[n]))); // same operations: exact
            double got = double(__half2float(D.p[size_t(m) * N + n]));
            double e = std::fabs(got - want);
            if (!(e == 0)) {
                if (!bad) std::printf("FAIL %dx%dx%d: D[%d][%d] = %g, want %g\n", M, N, K, m, n, got, want);
                bad++;
            }
            if (e > worst) worst = e;
        }
    if (bad) {
        std::printf("     %zu of %zu wrong\n", bad, D.n);
        return 1;
    }
    std::printf("ok   %dx%dx%d  %.3f s\n", M, N, K, sec);
    return 0;
}

int main(int argc, char **argv) {
    simt::Options o;
    std::vector<int> d;
    bool bench = false, set = false;
    auto is = [](const char *a, const char *b) { return !std::strcmp(a, b); };
    for (int i = 1; i < argc; i++) {
        if (is(argv[i], "--order")) {
            set = true;
            i++;
            o.order = is(argv[i], "rr")    ? simt::Order::RoundRobin
                      : is(argv[i], "rev") ? simt::Order::Reverse
                                           : simt::Order::Random;
        } else if (is(argv[i], "--async")) {
            set = true;
            i++;
            o.async = is(argv[i], "eager")  ? simt::Async::Eager
                      : is(argv[i], "lazy") ? simt::Async::Lazy
                                            : simt::Async::Random;
        } else if (is(argv[i], "--seed"))
            o.seed = std::strtoull(argv[++i], nullptr, 10);
        else if (is(argv[i], "--threads"))
            o.os_threads = std::atoi(argv[++i]);
        else if (is(argv[i], "--resident"))
            o.resident = std::atoi(argv[++i]);
        else if (is(argv[i], "--no-race"))
            o.racecheck = false;
        else if (is(argv[i], "--bench"))
            bench = true;
        else
            d.push_back(std::atoi(argv[i]));
    }
    if (d.empty()) d = {128, 128, 64, 128, 128, 1024, 1, 8, 16, 100, 72, 304, 257, 136, 720, 200, 264, 2064};
    int bad = 0;
    for (size_t i = 0; i + 2 < d.size(); i += 3) {
        if (set || bench)
            bad += run(d[i], d[i + 1], d[i + 2], o, bench);
        else
            for (int s = 0; s < 4; s++) { // the standard sweep of schedules
                o.order = s == 0 ? simt::Order::RoundRobin : s == 1 ? simt::Order::Reverse : simt::Order::Random;
                o.async = s == 0 ? simt::Async::Eager : s < 3 ? simt::Async::Lazy : simt::Async::Random;
                o.seed = uint64_t(s) * 77 + 1;
                bad += run(d[i], d[i + 1], d[i + 2], o, false);
            }
    }
    std::printf("%s\n", bad ? "FAILED" : "PASSED");
    return bad != 0;
}
