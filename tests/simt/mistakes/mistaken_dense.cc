// The dense rows (dequantize, launch, reduce) on one shape each, against exact sums: built from copies of kernels/cuda that
// carry a seeded mistake. KERNEL: 4080 dense_sm80 with k split; 4081 the same of four experts, with weights in passes of one
// band; 4090 dense_sm90, bf16, in clusters over an odd number of bands, k split; 4091 with sums of all chunks in one block;
// 4092 its tile of 256 tokens; 4093 fp16 weights, read where they lie.
#include "dequant.cu"
#include "dequant_k.cu"
#if KERNEL < 4090
#include "gemm_dense_sm80.cu"
#else
#include "gemm_dense_sm90.cu"
#endif

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "simt_device.h"

constexpr bool kBf16 = KERNEL == 4090, kHopper = KERNEL >= 4090, kPlain = KERNEL == 4093, kSplit = KERNEL == 4080 || KERNEL == 4090;
constexpr int kExperts = KERNEL == 4081 ? 4 : 1;
constexpr int kM = KERNEL == 4080 || KERNEL == 4090 || KERNEL == 4091 ? 70 : KERNEL == 4092 ? 130 : KERNEL == 4081 ? 40 : 19;
constexpr int kN = KERNEL == 4090 ? 300 : KERNEL == 4091 ? 256 : KERNEL == 4092 ? 16 * 128 + 3 : 200;
constexpr int kK = KERNEL == 4092 ? 444 : 1300, kChunk = KERNEL == 4092 ? kK : 512, kGroups = (kK + 31) / 32;

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
template <class T> T *fed(const std::vector<T> &v) { // what a kernel ahead wrote
    T *p = device(v);
    simt::kernel_wrote(p, v.size() * sizeof(T));
    return p;
}
struct Weight { // scale * c + min, small enough for 16-bit weights and fp32 sums to be exact
    qk_shape shape{};
    std::vector<uint8_t> codes;
    std::vector<uint16_t> values;
    std::vector<float> scales, mins;
    std::vector<unsigned char> packed;
    double value(int row, int column) const {
        const size_t at = size_t(row) * kK + size_t(column), g = size_t(row * kGroups + column / 32);
        return kPlain ? double(qe_f16_to_f32(values[at])) : double(scales[g]) * codes[at] + double(mins[g]);
    }
};
Weight make_weight(std::mt19937 &g) {
    Weight w;
    qe_quant &q = w.shape.quant;
    w.shape.n = kN, w.shape.k = kK, w.shape.chunk_k = kChunk, w.shape.layout = &qk_cuda_any;
    q.code = kPlain ? QE_CODE_F16 : QE_CODE_INT, q.bits = kPlain ? 16 : 4;
    if (!kPlain) q.scale = QE_NUM_F32, q.group_n = 1, q.group_k = 32, q.zero = QE_ZERO_REAL, q.zero_num = QE_NUM_F32;
    for (int i = 0; i < kN * kK; i++) w.codes.push_back(uint8_t(g() % 16)), w.values.push_back(qe_f32_to_f16(float(int(g() % 31) - 15)));
    for (int i = 0; i < kN * kGroups; i++) {
        const float row = std::ldexp(1.0f, i / kGroups % 3 * 2); // rows of different powers
        w.scales.push_back(row * float(1 << g() % 2)), w.mins.push_back(row * -float(g() % 9));
    }
    const size_t band = qk_cuda_any.band_bytes(&w.shape);
    w.packed.resize((size_t((kN + QK_ANY_ROWS - 1) / QK_ANY_ROWS) * band + 255) / 256 * 256);
    for (int row = 0; row < kN; row += QK_ANY_ROWS) {
        qe_qtensor t{};
        t.quant = q, t.n = kN - row < QK_ANY_ROWS ? kN - row : QK_ANY_ROWS, t.k = kK, t.rows = kN, t.first_row = row;
        t.codes = &w.codes[size_t(row) * kK], t.scales = &w.scales[size_t(row * kGroups)], t.zeros = &w.mins[size_t(row * kGroups)];
        if (kPlain) t.codes = &w.values[size_t(row) * kK];
        qk_cuda_any.pack(&w.shape, &t, w.packed.data() + size_t(row / QK_ANY_ROWS) * band);
    }
    return w;
}
// Which expert serves row i of offsets 2, 7, -3, 17, 99; -1: none.
int expert_of(int i) {
    if (kExperts == 1) return 0;
    return i < 2 || i >= kM ? -1 : i < 7 ? 0 : i < 17 ? 2 : 3;
}

int main() {
    std::mt19937 g(3);
    std::vector<Weight> experts;
    std::vector<unsigned char> blob;
    for (int e = 0; e < kExperts; e++) {
        experts.push_back(make_weight(g));
        blob.insert(blob.end(), experts.back().packed.begin(), experts.back().packed.end());
    }
    qk_weight weight{};
    weight.shape = experts[0].shape, weight.blob = device(blob), weight.blob_bytes = blob.size();
    const int ld = (kK + 63) / 64 * 64;
    std::vector<uint16_t> x(size_t(kM * ld));
    for (auto &v : x) v = kBf16 ? qe_f32_to_bf16(float(int(g() % 9) - 4)) : qe_f32_to_f16(float(int(g() % 9) - 4));
    qk_gemm_args args{};
    args.w = &weight, args.ldy = kN + 1;
    args.x.m = kM, args.x.k = kK, args.x.ld = ld, args.x.data = fed(x), args.x.quant.code = kBf16 ? QE_CODE_BF16 : QE_CODE_F16;
    if (kExperts > 1) {
        args.groups.rows = fed(std::vector<int32_t>{2, 7, -3, 17, 99}), args.groups.experts = kExperts;
        args.groups.expert_bytes = int64_t(experts[0].packed.size());
    }
    simt::device().sm = kHopper ? 90 : 80;
    qk_device d{};
    qk_queue queue{};
    queue.device = &d;
    if (qk_cuda_describe(0, &d, nullptr)) return 1;
    d.units = kSplit ? 132 : 1;                  // 1: a device that the tiles fill
    if (kExperts > 1) d.memory_bytes = 256 * 1024; // passes of one band
    const qk_row &row =
#if KERNEL < 4090
        qk_cuda_dense_sm80_row;
#else
        qk_cuda_dense_sm90_row;
#endif
    qk_gemm problem{};
    problem.w = weight.shape, problem.m = kM, problem.y_type = QE_CODE_F32, problem.x = args.x.quant, problem.experts = kExperts > 1 ? kExperts : 0;
    qk_plan plan = qk_plan_begin(&row, &problem);
    row.plan(&d, &problem, &plan);
    if (kSplit != (plan.splits > 1)) return std::printf("FAIL %d splits\n", plan.splits), 2;
    if ((KERNEL == 4090 || KERNEL == 4091) && plan.variant != 2) return std::printf("FAIL not in clusters\n"), 2;
    if (KERNEL == 4092 && plan.variant != 3) return std::printf("FAIL not 256 tokens\n"), 2;
    const simt::Options schedules[] = {{simt::Order::RoundRobin, simt::Async::Lazy}, {simt::Order::Random, simt::Async::Random, 4}};
    for (const simt::Options &o : schedules) {
        simt::device().options = o;
        const int rows = kM + (kExperts > 1 ? 20 : 0); // of y; those behind m guard what lies behind it
        float *y = device(std::vector<float>(size_t(rows * args.ldy), -1.5f));
        args.y = y;
        if (plan.workspace_bytes) args.workspace = device(std::vector<unsigned char>(plan.workspace_bytes, 0x7f));
        if (row.run(&plan, &args, &queue, nullptr)) return 1;
        for (int i = 0; i < rows; i++) {
            const int expert = expert_of(i);
            for (int j = 0; j <= kN; j += KERNEL == 4092 && j < 2000 ? 7 : 1) {
                double sum = 0;
                for (int c = 0; c < kK && j < kN && expert >= 0; c++) {
                    const uint16_t v = x[size_t(i * ld + c)];
                    sum += experts[size_t(expert)].value(j, c) * double(kBf16 ? qe_bf16_to_f32(v) : qe_f16_to_f32(v));
                }
                const float want = j == kN || expert < 0 ? -1.5f : float(sum), got = y[i * args.ldy + j];
                if (got != want) return std::printf("FAIL y[%d][%d] = %g, want %g\n", i, j, double(got), double(want)), 1;
            }
        }
    }
    return std::printf("PASSED\n"), 0;
}
