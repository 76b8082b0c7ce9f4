// Decoded bands against the scalar reference, bits for bits: every kind of code, scale, second level, zero and extent,
// under every kind of activation, on every ISA this machine has and on the portable instance.
#include "cpu_cases.h"
#include "cpu/decoded.h"

namespace {

const char *const kSchemes[] = {
    "f32", "f16", "bf16", "int8:channel:f32", "int8:g32:f16:z=u8", "int4:g128:f16", "int4:g64:f16:z=u8",
    "int3:g64:f32", "int2:g32:f16:z=u8", "int2:channel:f32:z=1", "int1:g32:f16", "int7:tensor:f32",
    "int6:g16:s8:s=f16/g256", "int4:g32:u6:s=f16/g256:b=u6", "int4:g64:f16:b=f16", "int4:g128:u8:s=f32/channel",
    "int4:g64:f32:z=f16", "int8:g2:pow2n^-6:s=e8m0/g16", "int8:g32:e8m0^-6", "sign:channel:f32", "nf4:g64:f32",
    "fp4b:g64:f32", "iq4nl:g32:f16", "e2m1:g32:e8m0", "e2m1:g16:e4m3:d=f32/tensor", "e4m3:128x128:f32",
    "e5m2:tensor:f32", "lut4:channel:f16:t=1", "lut3:g64:f32:t=0", "lut8:channel:f32:t=1", "lut2:channel:f16:t=8",
    "int8:g600:f32",
};

struct ActCase {
    const char *name;
    qe_act_mode mode;
    int group;
    bool points, signs = false;
};
const ActCase kActs[] = {
    {"float", QE_ACT_FLOAT, 0, false},     {"token", QE_ACT_DYNAMIC, 0, false},
    {"group 32", QE_ACT_DYNAMIC, 32, false}, {"group 256", QE_ACT_DYNAMIC, 256, false},
    {"asymmetric token", QE_ACT_DYNAMIC, 0, true}, {"asymmetric group 64", QE_ACT_DYNAMIC, 64, true},
    {"signs", QE_ACT_DYNAMIC, 0, false, true},
    {"static", QE_ACT_STATIC, 0, false},   {"static asymmetric", QE_ACT_STATIC, 0, true},
};

qe_act MakeAct(const ActCase &c) {
    qe_act a = {};
    if (c.mode == QE_ACT_FLOAT) return a;
    a = Act(c.group);
    a.mode = c.mode;
    if (c.signs) a.quant.code = QE_CODE_SIGN, a.quant.bits = 1, a.quant.zero_const = 0;
    if (c.points) a.quant.zero = QE_ZERO_POINT, a.quant.zero_num = QE_NUM_U8, a.quant.zero_const = 0;
    if (c.mode == QE_ACT_STATIC) a.scale = 0.02f, a.zero = c.points ? 100 : 128, a.quant.group_n = 0;
    return a;
}

// Random weights rounded to the scheme; scales of groups take either sign where their type has one.
Tensor Rounded(const char *scheme, int64_t n, int64_t k, std::mt19937 &rng) {
    qe_quant q;
    qe_error err = {};
    Tensor x;
    EXPECT_EQ(qe_quant_parse(scheme, &q, &err), QE_OK) << scheme << ": " << err.message;
    size_t bytes = qe_qtensor_bytes(&q, n, k, 0);
    x.block.resize(bytes + 64);
    void *at = reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(x.block.data()) + 63) & ~uintptr_t{63});
    EXPECT_EQ(qe_qtensor_place(&x.t, &q, n, k, 0, at, bytes, &err), QE_OK) << scheme << ": " << err.message;
    x.t.n = x.t.rows = n, x.t.k = k, x.t.first_row = 0;
    int64_t scales = Groups(n, q.group_n) * Groups(k, q.group_k);
    if (q.code == QE_CODE_LUT) {
        for (int64_t i = 0; i < Groups(n, q.lut_n) << q.bits; i++)
            x.t.lut[i] = std::uniform_real_distribution<float>(-1.0f, 1.0f)(rng);
        for (int64_t i = 0; i < scales; i++) {
            if (q.scale == QE_NUM_F32) static_cast<float *>(x.t.scales)[i] = 0.1f + 0.001f * static_cast<float>(i);
            else static_cast<uint16_t *>(x.t.scales)[i] = qe_f32_to_f16(0.1f + 0.001f * static_cast<float>(i));
        }
    }
    std::normal_distribution<float> normal(0.0f, 0.05f);
    std::vector<float> w(n * k);
    for (auto &v : w) v = normal(rng);
    EXPECT_EQ(qe_quantize(w.data(), k, q.code == QE_CODE_LUT ? QE_QUANTIZE_KEEP_SCALES : 0, &x.t, &err), QE_OK) << scheme << ": " << err.message;
    x.t.facts = ~0u;
    EXPECT_EQ(qe_qtensor_check(&x.t, &x.t.facts, &err), QE_OK) << scheme << ": " << err.message;
    for (int64_t i = 0; i < scales; i += 3) {
        if (q.scale == QE_NUM_F32) static_cast<float *>(x.t.scales)[i] *= -1.0f;
        if (q.scale == QE_NUM_F16) static_cast<uint16_t *>(x.t.scales)[i] ^= 0x8000;
    }
    return x;
}

class CpuDecoded : public testing::TestWithParam<const char *> {};

// The panel layout would take some of these; the decoded one has to give the same bits for all.
void LoadDecoded(Loaded &l, uint32_t isa, int threads, const Tensor &t, const qe_act &act) {
    ASSERT_NO_FATAL_FAILURE(Load(l, QK_CPU, isa, threads, t, act));
    qk_shape s = l.w.shape;
    s.layout = &cpu_layout_decoded;
    size_t band = s.layout->band_bytes(&s), bands = (s.n + 31) / 32;
    char *blob = Aligned(l.blob, band * bands);
    for (size_t b = 0; b < bands; b++) {
        qe_qtensor part = Band(t.t, b * 32, std::min<int64_t>(32, s.n - b * 32));
        s.layout->pack(&s, &part, blob + b * band);
    }
    l.w.shape = s, l.w.blob = blob, l.w.blob_bytes = band * bands;
}

TEST_P(CpuDecoded, EqualsReference) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const struct { int64_t n, k; } shapes[] = {{1, 1}, {33, 70}, {40, 640}};   // the largest alone is six times the rest
#else
    const struct { int64_t n, k; } shapes[] = {{1, 1}, {33, 70}, {40, 640}, {70, 2304}};
#endif
    int64_t cases = 0;
    std::mt19937 rng(1);
    for (auto shape : shapes)
        for (const ActCase &act : kActs) {
            Tensor t = Rounded(GetParam(), shape.n, shape.k, rng);
            Loaded ref;
            ASSERT_NO_FATAL_FAILURE(Load(ref, QK_REF, 0, 1, t, MakeAct(act)));
            std::vector<float> x = MakeX(13, shape.k, rng), expected = RunLinear(ref, x, 13, false);
            for (uint32_t isa : Isas()) {
                Loaded cpu;
                ASSERT_NO_FATAL_FAILURE(LoadDecoded(cpu, isa, 3, t, MakeAct(act)));
                for (int64_t m : {1, 4, 13}) {
                    std::vector<float> y = RunLinear(cpu, x, m, true);
                    std::vector<float> want(expected.begin(), expected.begin() + m * shape.n);
                    ASSERT_EQ(Different(y, want), 0) << GetParam() << " n " << shape.n << " k " << shape.k << " m " << m
                                                     << " input " << act.name << " isa " << isa;
                    cases++;
                }
            }
        }
    printf("%s: %lld cases\n", GetParam(), static_cast<long long>(cases));
    if (Isas().empty()) GTEST_SKIP() << "no instruction set of this program on this machine";
    ASSERT_GT(cases, 0);
}

TEST_P(CpuDecoded, UnpackAndRowReturnTheValues) {
    const int64_t n = 70, k = 640;
    std::mt19937 rng(2);
    Tensor t = Rounded(GetParam(), n, k, rng), back = Rounded(GetParam(), n, k, rng);
    Loaded cpu;
    ASSERT_NO_FATAL_FAILURE(LoadDecoded(cpu, 0, 1, t, qe_act{}));
    const qk_shape &s = cpu.w.shape;
    std::vector<float> a(n * k), b(n * k), row(k);
    size_t band = s.layout->band_bytes(&s);
    for (int64_t first = 0; first < n; first += 32) {
        qe_qtensor part = Band(back.t, first, std::min<int64_t>(32, n - first));
        s.layout->unpack(&s, nullptr, static_cast<const char *>(cpu.w.blob) + first / 32 * band, &part);
    }
    ASSERT_EQ(qe_dequantize(&t.t, 0, n, a.data(), k, nullptr), QE_OK);
    ASSERT_EQ(qe_dequantize(&back.t, 0, n, b.data(), k, nullptr), QE_OK);
    EXPECT_EQ(Different(a, b), 0);
    for (int64_t r = 0; r < n; r++) {
        s.layout->row(&s, nullptr, static_cast<const char *>(cpu.w.blob) + r / 32 * band, r % 32, row.data());
        EXPECT_EQ(Different(row, std::vector<float>(a.begin() + r * k, a.begin() + (r + 1) * k)), 0) << r;
    }
}

// All rows of a sweep and beyond, float input: nothing depends on the tile a token lands in.
TEST(CpuDecodedRows, EveryHeightAndSweep) {
    const int64_t n = 40, k = 300, most = DECODED_SWEEP + 30;
    std::mt19937 rng(3);
    Tensor t = Rounded("int4:g64:f16:z=u8", n, k, rng);
    std::vector<float> x = MakeX(most, k, rng);
    int64_t cases = 0;
    for (uint32_t isa : Isas()) {
        Loaded cpu;
        ASSERT_NO_FATAL_FAILURE(LoadDecoded(cpu, isa, 2, t, qe_act{}));
        std::vector<float> all = RunLinear(cpu, x, most, true);
        for (int64_t m = 1; m < 71; m++, cases++) {
            std::vector<float> y = RunLinear(cpu, x, m, false);
            ASSERT_EQ(Different(y, std::vector<float>(all.begin(), all.begin() + m * n)), 0) << m << " isa " << isa;
        }
    }
    if (Isas().empty()) GTEST_SKIP() << "no instruction set of this program on this machine";
    EXPECT_EQ(cases, int64_t(70 * Isas().size()));
}

INSTANTIATE_TEST_SUITE_P(Schemes, CpuDecoded, testing::ValuesIn(kSchemes));

}  // namespace
