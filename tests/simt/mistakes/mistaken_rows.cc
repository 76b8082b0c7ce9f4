// Whole rows (plan, launch, reduce) on one shape each, against exact sums: built from copies of kernels/cuda that carry a
// seeded mistake. KERNEL: 811 w1a1_sm80 with k split, 812 w1a1_popc, 821 w2a8_sm80 of 2 bits; 880 w8a8_sm80; 890
// w8a8_sm90 with k split over a workspace, 891 and 895 (int8 output) in clusters, 897 on a device that runs none; 892 tokens shared in clusters, 893 over an
// odd number of bands, 894 the same by tiles of 128 tokens; 1680 wxa16_sm80 of 8-bit codes with zero points, 1684 of a table; 1690 and 1694 the same of
// wxa16_sm90, the one with sums of all chunks in one block, the other with bf16 input and k split. Four experts, with
// counts out of range among them: contiguous 881 w8a8_sm80, 896 w8a8_sm90, 1685 wxa16_sm80 of a table each; masked 882
// w8a8_sm80.
// One format of wxa16 is in question: the compiler drops what the constant never reaches, 13 formats of 14.
#include "cuda_backend.h"
#define qk_wx_units(quant, k) int64_t(4)
#define qk_wx_code_bits(quant) (KERNEL == 1680 || KERNEL == 1690 ? 8 : 4)
#if KERNEL == 811
#include "gemm_w1a1_sm80.cu"
#elif KERNEL == 812
#include "gemm_w1a1_popc.cu"
#elif KERNEL == 821
#include "gemm_w2a8_sm80.cu"
#elif KERNEL / 10 == 88
#include "gemm_w8a8_sm80.cu"
#elif KERNEL < 1000
#include "gemm_w8a8_sm90.cu"
#elif KERNEL < 1690
#include "gemm_wxa16_sm80.cu"
#else
#include "gemm_wxa16_sm90.cu"
#endif

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "simt_device.h"

constexpr bool kSigns = KERNEL / 10 == 81, kTernary = KERNEL == 821;
constexpr bool kInt8 = KERNEL == 895, kFloat = KERNEL > 1000, kHopper = KERNEL >= 1690, kBf16 = KERNEL == 1694;
constexpr bool kTable = KERNEL == 1684 || KERNEL == 1685 || KERNEL == 1694;
constexpr bool kMasked = KERNEL == 882, kGrouped = kMasked || KERNEL == 881 || KERNEL == 896 || KERNEL == 1685;
constexpr int kExperts = kGrouped ? 4 : 1;
constexpr int kM = KERNEL == 880 ? 100 : KERNEL / 10 == 88 ? 40 : KERNEL == 892 ? 129 : KERNEL == 893 ? 130 : KERNEL == 894 ? 100 : 19;
constexpr int kN = KERNEL == 892 ? 256 : KERNEL == 893 || KERNEL == 894 ? 16 * 128 + 3 : 200;
constexpr int kK = KERNEL == 890 || KERNEL == 891 || KERNEL == 897 ? 4700 : KERNEL == 892 ? 2350 : KERNEL == 893 || KERNEL == 894 ? 300 : 1300;
using Value = std::conditional_t<kFloat, uint16_t, int8_t>;

// The little of the library that these files ask for.
extern "C" bool qk_no(qk_why *, const char *, ...) {
    return false;
}
extern "C" bool qk_whole_k(const qe_quant *, uint32_t, const qe_act *, int64_t) {
    return !kFloat;
}
extern "C" const float *qe_code_values(int32_t) {
    return nullptr;
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
uint16_t half_of(float v) {
    return kBf16 ? qe_f32_to_bf16(v) : qe_f32_to_f16(v);
}
struct Weight { // values are small enough for fp32 sums to be exact where sums are floats
    qk_shape shape{};
    std::vector<uint8_t> codes, zeros;
    std::vector<float> scales, lut;
    int groups = 1;
    std::vector<unsigned char> packed;
    double value(int row, int column) const {
        const int code = codes[size_t(row) * kK + size_t(column)], g = row * groups + (kFloat ? column / 32 : 0);
        if (kTable) return double(lut[size_t(code)]) * double(scales[size_t(g)]);
        if (kSigns || kTernary) return kSigns ? 2 * code - 1 : code - 1;
        return kFloat ? (code - zeros[size_t(g)]) * double(scales[size_t(g)]) : code - 128;
    }
};
Weight make_weight(std::mt19937 &g) {
    Weight w;
    qe_quant &q = w.shape.quant;
    w.shape.n = kN, w.shape.k = kK, w.shape.chunk_k = kFloat ? 512 : kK;
    q.code = kTable ? QE_CODE_LUT : QE_CODE_INT, q.bits = kTable ? 4 : 8, q.scale = QE_NUM_F32, q.group_n = 1;
    q.zero = QE_ZERO_CONST, q.zero_const = kTable ? 0 : 128;
    if (kFloat) q.group_k = 32, w.groups = (kK + 31) / 32;
    if (KERNEL == 1680 || KERNEL == 1690) q.zero = QE_ZERO_POINT, q.zero_num = QE_NUM_U8, q.zero_const = 0;
    if (kTernary) q.bits = 2, q.zero_const = 1, w.shape.act.quant.code = QE_CODE_INT, w.shape.act.quant.bits = 8;
    if (kSigns) q.code = QE_CODE_SIGN, q.bits = 1, q.zero_const = 0, w.shape.act.quant.code = QE_CODE_SIGN;
    if (kFloat) w.shape.act.mode = QE_ACT_FLOAT;
    else w.shape.act.mode = QE_ACT_DYNAMIC;
    for (int i = 0; i < kN * kK; i++) w.codes.push_back(uint8_t(kTable ? g() % 16 : kSigns ? g() % 2 : kTernary ? g() % 4 : g()));
    for (int i = 0; i < kN * w.groups; i++) {
        w.zeros.push_back(uint8_t(g()));
        w.scales.push_back(kFloat ? std::ldexp(1.0f, int(g() % 3) - 2) : float(1 + i % 5));
    }
    for (int i = 0; i < 16; i++) w.lut.push_back(float(int(g() % 31) - 15));
    const qk_layout &layout = kFloat ? qk_cuda_wxa16 : kSigns ? qk_cuda_w1a1 : kTernary ? qk_cuda_w2a8 : qk_cuda_w8a8;
    w.shape.layout = &layout;
    const size_t head = layout.head_bytes(&w.shape), band = layout.band_bytes(&w.shape);
    w.packed.resize(head + size_t((kN + 127) / 128) * band);
    if (kTable) std::memcpy(w.packed.data(), w.lut.data(), 64);
    for (int row = 0; row < kN; row += 128) {
        qe_qtensor t{};
        t.quant = q, t.n = kN - row < 128 ? kN - row : 128, t.k = kK, t.rows = kN, t.first_row = row;
        t.codes = &w.codes[size_t(row) * kK], t.scales = &w.scales[size_t(row * w.groups)];
        if (q.zero == QE_ZERO_POINT) t.zeros = &w.zeros[size_t(row * w.groups)];
        if (kTable) t.lut = w.lut.data();
        layout.pack(&w.shape, &t, w.packed.data() + head + size_t(row / 128) * band);
    }
    return w;
}

// int8 output by the integer multiplier: the formula of quantization.md 7.6, with floor division.
float requantized(double sum, const int32_t *fixed, int bias, int zero) {
    const double scaled = (sum + bias) * fixed[0] / std::ldexp(1.0, fixed[1]); // both exact: below 2^53
    return float(std::clamp(std::floor(scaled + 0.5) + zero, -128.0, 127.0));
}

// Of a grouped call as many rows again guard what lies behind y.
constexpr int kRowsOfY = kGrouped ? 2 * kM : kM;
// Which expert serves row i; -1: none.
int expert_of(int i) {
    if (!kGrouped) return 0;
    if (i >= kM) return -1;
    if (kMasked) return i % 10 < (i < 10 ? 4 : i < 20 ? 0 : 10) ? i / 10 : -1;
    return i < 2 ? -1 : i < 7 ? 0 : i < 17 ? 2 : 3;
}
const std::vector<int32_t> kRowsGiven = kMasked ? std::vector<int32_t>{4, -1, 10, 99} : std::vector<int32_t>{2, 7, -3, 17, 99};

int main() {
    std::mt19937 g(3);
    std::vector<Weight> experts;
    std::vector<unsigned char> blob;
    for (int e = 0; e < kExperts; e++) {
        experts.push_back(make_weight(g));
        blob.resize((blob.size() + 255) / 256 * 256);
        blob.insert(blob.end(), experts[size_t(e)].packed.begin(), experts[size_t(e)].packed.end());
    }
    const qk_shape shape = experts[0].shape;
    qk_weight weight{};
    weight.shape = shape, weight.blob = device(blob), weight.blob_bytes = blob.size();
    const int ld = (kK + 63) / 64 * 64;
    std::vector<Value> x(size_t(kM * ld));
    for (auto &v : x) v = kFloat ? half_of(float(int(g() % 9) - 4)) : Value(kSigns ? int(g() % 2 * 2) - 1 : g());
    std::vector<float> x_scales;
    std::vector<int32_t> x_zeros;
    for (int i = 0; i < kM; i++) x_scales.push_back(float(1 + i % 3)), x_zeros.push_back(i % 4 - 1);
    qk_gemm_args args{};
    args.w = &weight, args.ldy = kN + 1;
    args.x.m = kM, args.x.k = kK, args.x.ld = ld, args.x.data = fed(x), args.x.quant.code = kBf16 ? QE_CODE_BF16 : QE_CODE_F16;
    if (kGrouped) {
        args.groups.rows = fed(kRowsGiven), args.groups.experts = kExperts, args.groups.max_rows = kMasked ? 10 : 0;
        args.groups.expert_bytes = int64_t((experts[0].packed.size() + 255) / 256 * 256);
    }
    if (!kFloat) args.x.scales = fed(x_scales), args.x.zeros = fed(x_zeros);
    std::vector<uint32_t> bits(size_t(kM * qk_bit_words(kK)));
    std::vector<int32_t> ones;
    for (int i = 0; kSigns && i < kM; i++) {
        ones.push_back(0), x_zeros[size_t(i)] = 0;
        for (int c = 0; c < kK; c++) {
            const bool set = float(x[size_t(i * ld + c)]) > 0;
            bits[size_t(i * qk_bit_words(kK) + c / 32)] |= uint32_t(set) << c % 32, ones[size_t(i)] += set;
        }
    }
    if (kSigns) args.x.zeros = nullptr, args.x.bits = device(bits), args.x.ones = device(ones);
    simt::device().sm = kSigns || kTernary || KERNEL / 10 == 88 || (kFloat && !kHopper) ? 80 : 90;
    if (KERNEL == 897) simt::device().clusters = 0;
    qk_device d{};
    qk_queue queue{};
    queue.device = &d;
    if (qk_cuda_describe(0, &d, nullptr)) return 1;
    const bool splits = !kGrouped && (KERNEL == 890 || KERNEL == 891 || KERNEL == 897 || KERNEL == 811 || kTernary || kInt8 ||
                                      (kFloat && KERNEL != 1690));
    if (!splits) d.units = 1; // a device that the tiles fill
    if (KERNEL == 890) d.units = 15; // too small for a cluster
    const qk_row &row = KERNEL == 811       ? qk_cuda_w1a1_sm80_row
                        : KERNEL == 812     ? qk_cuda_w1a1_popc_row
                        : kTernary          ? qk_cuda_w2a8_sm80_row
                        : KERNEL / 10 == 88 ? qk_cuda_w8a8_sm80_row
                        : kHopper         ? qk_cuda_wxa16_sm90_row
                        : kFloat          ? qk_cuda_wxa16_sm80_row
                                          : qk_cuda_w8a8_sm90_row;
    qk_gemm problem{};
    problem.w = shape, problem.m = kM, problem.y_type = QE_CODE_F32, problem.x = args.x.quant;
    std::vector<int32_t> fixed, bias;
    for (int j = 0; j < kN; j++) {
        fixed.push_back(1000003 + j * 1001), fixed.push_back(31 + j % 5), bias.push_back(j * 997 - 90000);
    }
    if (kInt8) {
        problem.y_type = QE_CODE_INT, problem.flags = QK_GEMM_BIAS;
        args.requant_fixed = device(fixed), args.bias_q = device(bias), args.y_zero = 5;
        args.ldy = kN + 4; // rows of whole words
    }
    qk_plan plan = qk_plan_begin(&row, &problem);
    row.plan(&d, &problem, &plan);
    if (splits != (plan.splits > 1)) return std::printf("FAIL %d splits\n", plan.splits), 2;
    const bool clusters = splits && simt::device().sm == 90 && KERNEL != 890 && KERNEL != 897;
    if ((plan.workspace_bytes != 0) != (splits && !clusters)) return std::printf("FAIL sums in the wrong place\n"), 2;
    const simt::Options schedules[] = {{simt::Order::RoundRobin, simt::Async::Lazy}, {simt::Order::Random, simt::Async::Random, 4}};
    for (const simt::Options &o : schedules) {
        simt::device().options = o;
        std::vector<float> fill(size_t(kRowsOfY * args.ldy), -1.5f); // its bytes end in zeros
        float *y = device(fill);
        args.y = y;
        if (plan.workspace_bytes) args.workspace = simt::device_alloc(plan.workspace_bytes);
        if (row.run(&plan, &args, &queue, nullptr)) return 1;
        for (int row_of_y = 0; row_of_y < kRowsOfY; row_of_y++) {
            const int expert = expert_of(row_of_y), i = row_of_y % kM;
            const Weight &w = experts[size_t(expert < 0 ? 0 : expert)];
            for (int j = 0; j <= kN; j += (KERNEL == 893 || KERNEL == 894) && j < 2000 ? 7 : 1) {
                double sum = 0;
                for (int c = 0; c < kK && j < kN; c++) {
                    const Value v = x[size_t(i * ld + c)];
                    sum += w.value(j, c) * (kFloat ? double(kBf16 ? qe_bf16_to_f32(uint16_t(v)) : qe_f16_to_f32(uint16_t(v))) : v - x_zeros[size_t(i)]);
                }
                float want = float(sum);
                if (!kFloat) want = qe_mul(qe_mul(want, x_scales[size_t(i)]), w.scales[size_t(j < kN ? j : 0)]);
                if (j == kN || expert < 0) want = -1.5f;
                if (kInt8) want = j < kN ? requantized(sum, &fixed[size_t(2 * j)], bias[size_t(j)], 5) : 0;
                const float got = kInt8 ? float(reinterpret_cast<int8_t *>(y)[i * args.ldy + j]) : y[row_of_y * args.ldy + j];
                if (got != want) return std::printf("FAIL y[%d][%d] = %g, want %g\n", row_of_y, j, double(got), double(want)), 1;
            }
        }
    }
    return std::printf("PASSED\n"), 0;
}
