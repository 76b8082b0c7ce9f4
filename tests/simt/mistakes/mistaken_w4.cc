// The pipelines of 4-bit weights on one shape, against exact sums: built from copies of kernels/cuda that carry a seeded
// mistake. KERNEL: 80, 90 (w4a8), 81 (w4a8 without zeros and groups), 91 (s4a8) or 16 (w4a16 on sm_90, values chosen so that
// fp32 sums are exact).
#include "gemm_sm80.cuh"
#include "gemm_sm90.cuh"
#include "w4_unpack.cuh"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

using namespace qk_cuda;
constexpr bool kFloat = KERNEL == 16, kSigned = KERNEL == 81 || KERNEL == 91;
constexpr int kTokens = 16;
using Sum = std::conditional_t<kFloat, float, int32_t>;
using Value = std::conditional_t<kFloat, uint16_t, int8_t>;

using Unpacked = std::conditional_t<kFloat, W4A16<4>, W4A8<kSigned ? 0 : 4>>;
struct Format : std::conditional_t<KERNEL == 91, S4A8, Unpacked> {
    using Acc = Sum;
    static constexpr int kXBytes = sizeof(Value);
    static constexpr bool kFromShared = false, kTotals = kFloat, kPromotes = false;
    template <int N> static PTX_FN void mma(Acc (&d)[N / 2], const uint32_t (&a)[4], uint64_t x) {
        if constexpr (kFloat)
            ptx::wgmma_rs_f16<N>(d, a, x);
        else
            ptx::wgmma_rs_s8s8<N>(d, a, x);
    }
    static PTX_FN void mma(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx::mma_m16n8k32_s8(d, a, b);
    }
};
template <class T> T *device(const std::vector<T> &v) {
    T *p = static_cast<T *>(simt::device_alloc(v.size() * sizeof(T)));
    std::memcpy(p, v.data(), v.size() * sizeof(T));
    return p;
}

// Asked by the packers' supports(), which this program does not call: the rest of the library stays out.
extern "C" bool qk_no(qk_why *, const char *, ...) {
    return false;
}
extern "C" bool qk_whole_k(const qe_quant *, uint32_t, const qe_act *, int64_t) {
    return false;
}

int main() {
    const int m = 19, n = 128, k = 2350, splits = 2; // 19 blocks: more than two rounds of 8 stages, ragged at the end
    std::mt19937 g(3);
    qk_shape shape{};
    shape.n = n, shape.k = k, shape.facts = QE_FACT_INT8_PRODUCT;
    qe_quant &q = shape.quant;
    q.code = QE_CODE_INT, q.bits = 4, q.group_n = 1, q.group_k = 32, q.zero = QE_ZERO_POINT, q.zero_num = QE_NUM_U8;
    q.scale = kFloat ? QE_NUM_F16 : QE_NUM_U8;
    if (!kFloat) q.super = QE_NUM_F32, q.super_n = 1;
    if (kSigned) q.group_k = 0, q.zero = QE_ZERO_CONST, q.zero_const = 8, q.scale = QE_NUM_F32, q.super = QE_NUM_ONE;
    const int groups = kSigned ? 1 : (k + 31) / 32;
    std::vector<uint8_t> codes(size_t(n * k)), zeros(size_t(n * groups)), scales(zeros.size());
    std::vector<uint16_t> halves(zeros.size());
    std::vector<float> super(size_t(n), 1.0f);
    for (auto &c : codes) c = uint8_t(g() % 16);
    for (size_t i = 0; i < zeros.size(); i++) {
        zeros[i] = uint8_t(g() % 16), scales[i] = uint8_t(1 + g() % 8);
        halves[i] = uint16_t(0x3400 + (g() % 4 << 10)); // 1/4 .. 2
    }
    for (size_t i = 0; i < codes.size(); i++) { // scale * (code - zero) is in int8
        const size_t at = i / size_t(k) * size_t(groups) + (kSigned ? 0 : i % size_t(k) / 32);
        if (kSigned) zeros[at] = 8, scales[at] = 1;
        const int s = scales[at], z = zeros[at];
        codes[i] = uint8_t(std::clamp<int>(codes[i], z - 128 / s, z + 127 / s));
    }
    qe_qtensor t{};
    t.quant = q, t.n = n, t.k = k, t.rows = n, t.codes = codes.data(), t.zeros = zeros.data(), t.super = super.data();
    t.scales = kFloat ? static_cast<void *>(halves.data()) : kSigned ? static_cast<void *>(super.data()) : scales.data();
    const qk_layout &layout = kFloat ? qk_cuda_w4a16 : KERNEL == 91 ? qk_cuda_s4a8 : qk_cuda_w4a8;
    std::vector<unsigned char> packed(layout.band_bytes(&shape));
    layout.pack(&shape, &t, packed.data());

    const int ld = (k + 63) / 64 * 64;
    std::vector<Value> x(size_t(m * ld));
    for (auto &v : x) v = kFloat ? qe_f32_to_f16(float(int(g() % 17) - 8)) : Value(g());
    std::vector<Sum> y(size_t(splits * m * n), 0);
    const Partial<Sum> partial{device(y), n};
    const Value *x_device = device(x);
    simt::Options o;
    o.async = simt::Async::Lazy;
    const dim3 grid((m + kTokens - 1) / kTokens, 1, splits);
    simt::Result r;
    const int block_bytes = int(kFloat ? qk_w4a16_block_bytes(&q, k) : qk_w4a8_block_bytes(&q, k));
#if KERNEL < 90 && KERNEL >= 80
    sm80::Args<Format> a{};
    a.x = reinterpret_cast<const unsigned char *>(x_device), a.x_pitch = ld, a.x_bytes = k;
#else
    sm90::Args<Format> a{};
    CUtensorMap map;
    simt::encode_tensor_map_2d(&map, x_device, 1, uint64_t(k) * sizeof(Value), uint64_t(m), uint64_t(ld) * sizeof(Value),
                               128, kTokens, 128);
#endif
    a.m = m, a.groups.total = m, a.w = device(packed), a.band_bytes = int64_t(packed.size()), a.block_bytes = block_bytes;
    a.blocks = int(qk_w4_blocks(k)), a.split_blocks = 18, a.chunk_blocks = 5, a.context = {1, 0};
#if KERNEL < 90 && KERNEL >= 80
    using C = sm80::Config<Format, kTokens>;
    r = simt::launch(sm80::gemm<Format, kTokens>, grid, sm80::kThreads, C::kSharedBytes, o, a, partial);
#else
    using C = sm90::Config<Format, kTokens>;
    r = simt::launch(sm90::gemm<Format, kTokens>, grid, C::kThreads, C::kSharedBytes, o, map, a, partial);
#endif
    if (!r.ok) return std::printf("FAIL %s\n", r.error.c_str()), 1;
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double want = 0, got = 0;
            for (int c = 0; c < k; c++) {
                const int at = j * groups + (kSigned ? 0 : c / 32), code = codes[size_t(j * k + c)] - zeros[size_t(at)];
                const double s = kFloat ? double(qe_f16_to_f32(halves[size_t(at)])) : scales[size_t(at)];
                const Value v = x[size_t(i * ld + c)];
                want += code * s * (kFloat ? double(qe_f16_to_f32(uint16_t(v))) : double(v));
            }
            for (int split = 0; split < splits; split++) got += double(partial.sums[(split * m + i) * n + j]);
            if (KERNEL == 81) want *= 16; // what leaves the sums behind this pipeline
            if (got != want) return std::printf("FAIL y[%d][%d] = %g, want %g\n", i, j, got, want), 1;
        }
    return std::printf("PASSED\n"), 0;
}
