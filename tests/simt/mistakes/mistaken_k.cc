// Rows of layout cuda/k on one ragged shape with k split, against exact sums: built from copies of kernels/cuda that carry a
// seeded mistake. KERNEL: 5080 and 5086 ka16_sm80 of Q4_K and Q6_K, 5180 of
// Q4_K and so many tokens that the dense kernels serve them, 5090 ka16_sm90 of Q4_K with bf16 input, 5008 and 5006
// ka8_sm80 of Q4_K and Q6_K.
#if KERNEL == 5080 || KERNEL == 5086 || KERNEL == 5180
#include "dequant.cu"
#include "dequant_k.cu"
#include "gemm_dense_sm80.cu"
#include "gemm_ka16_sm80.cu"
#elif KERNEL == 5090
#include "gemm_ka16_sm90.cu"
#else
#include "gemm_ka8_sm80.cu"
#endif

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "simt_device.h"

constexpr bool kSix = KERNEL % 10 == 6, kHopper = KERNEL == 5090, kInt8 = KERNEL < 5010, kBf16 = kHopper;
constexpr int kM = KERNEL == 5180 ? 70 : 19, kN = 200, kK = 1300, kLd = 1344, kGroup = kSix ? 16 : 32;
constexpr int kGroups = (kK + kGroup - 1) / kGroup, kSupers = (kK + 255) / 256;

// The little of the library that these files ask for.
extern "C" bool qk_no(qk_why *, const char *, ...) {
    return false;
}
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

// Small numbers: every weight is exact in bf16, every sum in fp32.
struct Weight {
    qk_shape shape{};
    std::vector<uint8_t> codes, scales, mins;
    std::vector<uint16_t> supers, min_supers;
    std::vector<unsigned char> packed;
    double value(int row, int column) const {
        const size_t g = size_t(row * kGroups + column / kGroup), s = size_t(row * kSupers + column / 256);
        const double scale = double(qe_f16_to_f32(supers[s])) * (kSix ? int8_t(scales[g]) : scales[g]);
        const int code = codes[size_t(row) * kK + size_t(column)];
        return kSix ? scale * (code - 32) : scale * code + double(qe_f16_to_f32(min_supers[s])) * mins[g];
    }
};
Weight make_weight(std::mt19937 &g) {
    Weight w;
    qe_quant &q = w.shape.quant;
    w.shape.n = kN, w.shape.k = kK, w.shape.chunk_k = 512, w.shape.layout = &qk_cuda_k;
    q.code = QE_CODE_INT, q.bits = kSix ? 6 : 4, q.scale = kSix ? QE_NUM_S8 : QE_NUM_U6, q.group_n = 1, q.group_k = kGroup;
    q.super = QE_NUM_F16, q.super_n = 1, q.super_k = 256;
    q.zero = kSix ? QE_ZERO_CONST : QE_ZERO_REAL, q.zero_const = kSix ? 32 : 0, q.zero_num = kSix ? 0 : QE_NUM_U6;
    if (kInt8) {
        qe_act &x = w.shape.act;
        x.mode = QE_ACT_DYNAMIC, x.quant.code = QE_CODE_INT, x.quant.bits = 8, x.quant.zero_const = 128, x.quant.group_k = 256;
    }
    for (int i = 0; i < kN * kK; i++) w.codes.push_back(uint8_t(g() % (kSix ? 64 : 16)));
    for (int i = 0; i < kN * kGroups; i++) {
        w.scales.push_back(kSix ? uint8_t(int(g() % 5) - 2) : uint8_t(g() % 4)), w.mins.push_back(uint8_t(g() % 64));
        if (!kSix && w.scales.back() > 1) w.mins.back() = 0; // eight bits hold the sum
    }
    for (int i = 0; i < kN * kSupers; i++) {
        const float s = (g() % 2 ? 0.5f : -1.0f) * (i / kSupers % 3 ? 1.0f : 0.25f); // rows of different powers
        w.supers.push_back(qe_f32_to_f16(s)), w.min_supers.push_back(qe_f32_to_f16(-s));
    }
    const size_t band = qk_cuda_k.band_bytes(&w.shape);
    w.packed.resize(size_t((kN + 127) / 128) * band);
    for (int row = 0; row < kN; row += 128) {
        qe_qtensor t{};
        t.quant = q, t.n = kN - row < 128 ? kN - row : 128, t.k = kK, t.rows = kN, t.first_row = row;
        t.codes = &w.codes[size_t(row) * kK], t.scales = &w.scales[size_t(row * kGroups)];
        t.super = &w.supers[size_t(row * kSupers)];
        if (!kSix) t.zeros = &w.mins[size_t(row * kGroups)], t.zero_super = &w.min_supers[size_t(row * kSupers)];
        qk_cuda_k.pack(&w.shape, &t, w.packed.data() + size_t(row / 128) * band);
    }
    return w;
}

int main() {
    using Value = std::conditional_t<kInt8, int8_t, uint16_t>;
    std::mt19937 g(3);
    const Weight w = make_weight(g);
    qk_weight weight{};
    weight.shape = w.shape, weight.blob = device(w.packed), weight.blob_bytes = w.packed.size();
    std::vector<int> numbers(size_t(kM * kLd));
    std::vector<Value> x;
    for (int i = 0; i < kM * kLd; i++) {
        numbers[size_t(i)] = int(g() % (kInt8 ? 255 : 9)) - (kInt8 ? 127 : 4);
        const float v = float(numbers[size_t(i)]);
        x.push_back(kInt8 ? Value(numbers[size_t(i)]) : Value(kBf16 ? qe_f32_to_bf16(v) : qe_f32_to_f16(v)));
    }
    std::vector<float> x_scales;
    for (int i = 0; i < kM * kSupers; i++) x_scales.push_back(kInt8 ? float(1 + (i + i / kSupers) % 3) : 1.0f);
    qk_gemm_args args{};
    args.w = &weight, args.ldy = kN + 1;
    args.x.m = kM, args.x.k = kK, args.x.ld = kLd, args.x.data = device(x), args.x.quant.code = kBf16 ? QE_CODE_BF16 : QE_CODE_F16;
    if (kInt8) args.x.quant = w.shape.act.quant, args.x.scales = device(x_scales);
    simt::device().sm = kHopper ? 90 : 80;
    qk_device d{};
    qk_queue queue{};
    queue.device = &d;
    if (qk_cuda_describe(0, &d, nullptr)) return 1;
#if KERNEL == 5080 || KERNEL == 5086 || KERNEL == 5180
    const qk_row &row = qk_cuda_ka16_sm80_row;
#elif KERNEL == 5090
    const qk_row &row = qk_cuda_ka16_sm90_row;
#else
    const qk_row &row = qk_cuda_ka8_sm80_row;
#endif
    qk_gemm problem{};
    problem.w = w.shape, problem.m = kM, problem.y_type = QE_CODE_F32, problem.x = args.x.quant;
    for (const int units : {132, 1}) { // chunks as splits, and in one block
        d.units = units;
        qk_plan plan = qk_plan_begin(&row, &problem);
        row.plan(&d, &problem, &plan);
        if ((plan.splits > 1) != (units > 1)) return std::printf("FAIL %d splits\n", plan.splits), 2;
        simt::device().options = {simt::Order::Random, simt::Async::Lazy, 4};
        std::vector<float> y(size_t(kM * args.ldy), -1.5f);
        args.y = device(y);
        if (plan.workspace_bytes) args.workspace = simt::device_alloc(plan.workspace_bytes);
        if (row.run(&plan, &args, &queue, nullptr)) return 1;
        std::memcpy(y.data(), args.y, y.size() * 4);
        for (int i = 0; i < kM; i++)
            for (int j = 0; j <= kN; j++) {
                double want = j < kN ? 0 : -1.5;
                for (int c = 0; c < kK && j < kN; c++)
                    want += w.value(j, c) * numbers[size_t(i * kLd + c)] * double(x_scales[size_t(i * kSupers + c / 256)]);
                const float got = y[size_t(i * args.ldy + j)];
                if (double(got) != want) return std::printf("FAIL y[%d][%d] = %g, want %g\n", i, j, double(got), want), 1;
            }
    }
    return std::printf("PASSED\n"), 0;
}
