// Every panel format against the scalar reference, bits for bits, on every ISA this machine has and on the portable
// instance; every shape ragged; with hostile activations (zeros, tiny, NaN, infinity) and scales (negative).
#include "cpu_cases.h"
extern "C" {
#include "cpu/panel.h"
}

namespace {

struct Format {
    const char *name;
    qe_quant quant;
    std::vector<int> act_groups;
    bool panel;
    bool signs = false; // 1-bit input
    qe_act Input(int group) const { return signs ? SignAct() : Act(group); }
};

const std::vector<Format> &Formats() {
    static const std::vector<Format> all = {
        {"w8 channel", Quant(8, QE_NUM_F32, 0, 128), {0}, true},
        {"w8 channel f16", Quant(8, QE_NUM_F16, 0, 128), {0}, true},
        {"w8 channel, grouped input", Quant(8, QE_NUM_F32, 0, 128), {128}, false},
        {"w4 channel", Quant(4, QE_NUM_BF16, 0, 8), {0}, true},
        {"w8 g128", Quant(8, QE_NUM_F32, 128, 128), {0, 128, 256}, true},
        {"w8 g64, zero 100", Quant(8, QE_NUM_F32, 64, 100), {0, 64}, true},
        {"w6 g32", Quant(6, QE_NUM_F16, 32, 32), {0, 32}, true},
        {"w8 g64 points", Points(Quant(8, QE_NUM_F32, 64, 0)), {0, 64}, true},
        {"w4 two-level", Super(Quant(4, QE_NUM_U8, 128, 8), QE_NUM_F16, 0), {0}, true},
        {"w4 two-level points", Super(Points(Quant(4, QE_NUM_U8, 64, 0)), QE_NUM_F32, 0), {0}, true},
        {"gptq g128", Quant(4, QE_NUM_F16, 128, 8), {0, 128}, true},
        {"awq g64", Points(Quant(4, QE_NUM_F16, 64, 0)), {0, 64, 256}, true},
        {"q4_0", Quant(4, QE_NUM_F16, 32, 8), {0, 32, 256}, true},
        {"q5_0", Quant(5, QE_NUM_F16, 32, 16), {0, 32, 256}, true},
        {"q8_0", Quant(8, QE_NUM_F16, 32, 128), {0, 32, 256}, true},
        {"q4_k", Mins(Super(Quant(4, QE_NUM_U6, 32, 0), QE_NUM_F16, 256)), {0, 256, 512}, true},
        {"q4_k, narrow input", Mins(Super(Quant(4, QE_NUM_U6, 32, 0), QE_NUM_F16, 256)), {32}, false},
        {"q6_k", Super(Quant(6, QE_NUM_S8, 16, 32), QE_NUM_F16, 256), {0, 256}, true},
        {"signs", Signs(QE_NUM_F32, 0), {0}, true},
        {"signs g64", Signs(QE_NUM_F16, 64), {0, 64}, true},
        {"signs by signs", Signs(QE_NUM_F32, 0), {0}, false, true},
        {"signs by signs, f16 scales", Signs(QE_NUM_F16, 0), {0}, false, true},
        {"w8 by signs", Quant(8, QE_NUM_F32, 0, 128), {0}, true, true},
        {"q4_k by signs", Mins(Super(Quant(4, QE_NUM_U6, 32, 0), QE_NUM_F16, 256)), {0}, true, true},
        {"mxfp4",
         [] {
             qe_quant q = Quant(4, QE_NUM_E8M0, 32, 0);
             q.code = QE_CODE_E2M1;
             return q;
         }(),
         {32},
         false},
    };
    return all;
}

class CpuGemm : public testing::TestWithParam<size_t> {};

// Under sanitizers every count of tokens meets one number of threads, and every number several counts; and one count for a
// kind: one token, a tile and a remainder, full tiles. Elsewhere all of them.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
const int64_t kTokenStep = 6, kBitsStep = 3;
const std::vector<int64_t> kSharedRows = {1, 2, 13, 25, 64};
bool Threads(size_t of_rows, size_t of_threads) {
    return (of_rows + 2) % 3 == of_threads; // the most rows, several threads
}
#else
const int64_t kTokenStep = 1, kBitsStep = 1;
const std::vector<int64_t> kSharedRows = {1, 2, 8, 13, 24, 25, 64};
bool Threads(size_t, size_t) {
    return true;
}
#endif

TEST_P(CpuGemm, EqualsReference) {
    const Format &format = Formats()[GetParam()];
    const struct {
        int64_t n, k;
    } shapes[] = {{1, 1}, {31, 4}, {33, 70}, {64, 256}, {100, 1000}, {40, 2304}};
    const int64_t rows[] = {1, 2, 3, 5, 8, 13, 45};
    int64_t cases = 0;
    std::mt19937 rng(1);
    for (auto shape : shapes)
        for (int group : format.act_groups) {
            Tensor t = MakeTensor(format.quant, shape.n, shape.k, rng);
            Loaded ref;
            ASSERT_NO_FATAL_FAILURE(Load(ref, QK_REF, 0, 1, t, format.Input(group)));
            std::vector<float> x = MakeX(45, shape.k, rng), expected = RunLinear(ref, x, 45, false);
            for (uint32_t isa : Isas()) {
                Loaded cpu;
                ASSERT_NO_FATAL_FAILURE(Load(cpu, QK_CPU, isa, 1, t, format.Input(group)));
                for (int threads : {1, 2, 3}) {
                    cpu.device.units = threads;
                    if (!strncmp(format.name, "signs by", 8)) { EXPECT_STREQ(cpu.w.shape.layout->name, "cpu/w1a1"); }
                    if (shape.k >= 256) { EXPECT_EQ(!strcmp(cpu.w.shape.layout->name, "cpu/panel"), format.panel); }
                    for (size_t i = 0; i < std::size(rows); i++) {
                        if (!Threads(i, static_cast<size_t>(threads - 1)) || rows[i] > MostTokens(isa, 45)) continue;
                        const int64_t m = rows[i];
                        std::vector<float> y = RunLinear(cpu, x, m, threads > 1);
                        std::vector<float> want(expected.begin(), expected.begin() + m * shape.n);
                        ASSERT_EQ(Different(y, want), 0)
                            << format.name << " n " << shape.n << " k " << shape.k << " m " << m << " act group "
                            << group << " isa " << isa << " threads " << threads;
                        cases++;
                    }
                }
            }
        }
    printf("%s: %lld cases\n", format.name, static_cast<long long>(cases));
}

// Every number of tokens from 1 to 70, so every tile height built and every remainder behind full tiles.
TEST_P(CpuGemm, EveryCountOfTokens) {
    const Format &format = Formats()[GetParam()];
    const struct {
        int64_t n, k, step;
    } shapes[] = {{33, 300, kTokenStep}, {65, 515, 7}};
    std::mt19937 rng(5);
    int64_t cases = 0, counts = 0;
    for (auto shape : shapes) {
        Tensor t = MakeTensor(format.quant, shape.n, shape.k, rng);
        qe_act act = format.Input(format.act_groups.back());
        Loaded ref;
        ASSERT_NO_FATAL_FAILURE(Load(ref, QK_REF, 0, 1, t, act));
        std::vector<float> x = MakeX(70, shape.k, rng), expected = RunLinear(ref, x, 70, false);
        for (uint32_t isa : Isas()) {
            const int64_t most = MostTokens(isa, 70);
            counts += (most - 1) / shape.step + 1;
            Loaded cpu;
            ASSERT_NO_FATAL_FAILURE(Load(cpu, QK_CPU, isa, 1, t, act));
            for (int64_t m = 1; m <= most; m += shape.step) {
                const int threads = cpu.device.units = 1 + static_cast<int>(m % 5);
                std::vector<float> want(expected.begin(), expected.begin() + m * shape.n);
                ASSERT_EQ(Different(RunLinear(cpu, x, m, threads > 1), want), 0)
                    << format.name << " n " << shape.n << " k " << shape.k << " m " << m << " isa " << isa
                    << " threads " << threads;
                // The same rows at another place in the batch: the last ones of 70 alone.
                std::vector<float> tail(x.end() - m * shape.k, x.end()),
                    last(expected.end() - m * shape.n, expected.end());
                ASSERT_EQ(Different(RunLinear(cpu, tail, m, threads > 1), last), 0)
                    << format.name << " last " << m << " of 70";
                cases += 2;
            }
        }
    }
    printf("%s: %lld cases, m 1 to 70, 1 to 5 threads\n", format.name, static_cast<long long>(cases));
    EXPECT_EQ(cases, 2 * counts);
}

#if defined(__SANITIZE_THREAD__)
const std::vector<int32_t> kKinds = {QK_ACT_NONE, QK_ACT_GELU}; // a function of one value: nothing for threads to share
#else
const std::vector<int32_t> kKinds = {QK_ACT_NONE, QK_ACT_SILU, QK_ACT_GELU, QK_ACT_GELU_TANH, QK_ACT_RELU2};
#endif

TEST_P(CpuGemm, EveryEpilogue) {
    const Format &format = Formats()[GetParam()];
    std::mt19937 rng(6);
    int64_t cases = 0, types = 0;
    for (int64_t n : {66, 38}) {
        const int64_t k = 300;
        Tensor t = MakeTensor(format.quant, n, k, rng);
        qe_act act = format.Input(format.act_groups[0]);
        Loaded ref;
        ASSERT_NO_FATAL_FAILURE(Load(ref, QK_REF, 0, 1, t, act));
        std::vector<float> x = MakeX(14, k, rng);
        std::vector<Loaded> cpus(Isas().size());
        for (size_t i = 0; i < cpus.size(); i++)
            ASSERT_NO_FATAL_FAILURE(Load(cpus[i], QK_CPU, Isas()[i], 3, t, act));
        for (int32_t y_type : {QE_CODE_F32, QE_CODE_F16, QE_CODE_BF16}) {
            if (n == 66 && y_type != QE_CODE_F32) continue;
            types++;
            for (int32_t kind : kKinds)
                for (int64_t bits = 0; bits < 8; bits += kBitsStep) {
                    Epilogue e;
                    e.y_type = y_type, e.act = kind, e.bias = bits & 1, e.residual = bits & 2, e.gated = bits & 4;
                    std::vector<float> want = RunLinear(ref, x, 14, false, e);
                    for (const Loaded &cpu : cpus)
                        for (int64_t m : {14, 1}) {
                            std::vector<float> part(want.begin(), want.begin() + m * (e.gated ? n / 2 : n));
                            ASSERT_EQ(Different(RunLinear(cpu, x, m, true, e), part), 0)
                                << format.name << " n " << n << " m " << m << " type " << y_type << " act " << kind
                                << " bias " << e.bias << " residual " << e.residual << " gated " << e.gated << " isa "
                                << cpu.device.isa;
                            cases++;
                        }
                }
        }
    }
    printf("%s: %lld epilogues\n", format.name, static_cast<long long>(cases));
    EXPECT_EQ(cases, static_cast<int64_t>(types * kKinds.size() * (7 / kBitsStep + 1) * 2 * Isas().size()));
}

// The tile heights each ISA builds, so that the cases above are known to reach them.
TEST(CpuGemmHeights, AreThoseTheTestsCount) {
    std::mt19937 rng(7);
    for (uint32_t isa : Isas()) {
        const char *name = panel_isa_of(isa)->name;
        int formats = 0;
        for (const Format &format : Formats()) {
            if (!format.panel) continue;
            qk_shape s = {};
            s.quant = format.quant, s.act = format.Input(format.act_groups[0]), s.n = 64, s.k = 512;
            s.facts = format.quant.scale == QE_NUM_U8 ? QE_FACT_INT8_PRODUCT : 0;
            panel_format f, wide;
            ASSERT_TRUE(panel_format_of(&s, &f, nullptr)) << format.name;
            const panel_isa *p = panel_isa_for(isa, &f, 32);
            std::vector<int> expected = {1, 4};
            if (!strcmp(p->name, "avx2")) expected = {1, 2, 4};
            if (!strcmp(p->name, "avx512")) expected = {1, 2, 4, 8, 12};
            if (!strcmp(p->name, "amx")) expected = {1, 2, 4, 8, 12, 16, 32};
            bool unpacks = p->wide && p->wide(&f, &wide);
            std::vector<int> built;
            for (int rows = 1; rows <= PANEL_MAX_ROWS; rows++)
                if (p->kernel(&f, rows) || (unpacks && p->kernel(&wide, rows))) built.push_back(rows);
            bool sums = f.scale != PANEL_CHANNEL && f.scale != PANEL_INT;
            if (p->lines && sums) expected.insert(expected.end() - 1, 24); // of float sums: the dot products of AVX-512
            EXPECT_EQ(built, expected) << p->name << " " << format.name;
            EXPECT_STREQ(panel_isa_for(isa, &f, 24)->name, sums && !strcmp(name, "amx") ? "avx512" : name) << format.name;
            formats++;
        }
        printf("%s: %d formats\n", name, formats);
        EXPECT_GT(formats, 0);
    }
    EXPECT_FALSE(Isas().empty()) << "nothing is tested on this machine";
}

// Activations of many sweeps: a panel is unpacked, and walked, once for each, of one tile or several.
TEST_P(CpuGemm, ManySweeps) {
    const Format &format = Formats()[GetParam()];
    std::mt19937 rng(9);
    const int64_t m = 107, n = 70, k = 512;
    Tensor t = MakeTensor(format.quant, n, k, rng);
    const qe_act act = format.Input(format.act_groups[0]);
    std::vector<float> x = MakeX(m, k, rng);
    Loaded ref;
    ASSERT_NO_FATAL_FAILURE(Load(ref, QK_REF, 0, 1, t, act));
    std::vector<float> want = RunLinear(ref, x, m, false);
    for (uint32_t isa : Isas()) {
        Loaded cpu;
        ASSERT_NO_FATAL_FAILURE(Load(cpu, QK_CPU, isa, 2, t, act));
        for (uint32_t l2 : {1, 60000, 120000, 300000}) {
            cpu.device.unit_bytes = l2;
            ASSERT_EQ(Different(RunLinear(cpu, x, m, true), want), 0) << format.name << ", isa " << isa << ", L2 " << l2;
        }
    }
}

// So many panels that threads share them in rounds; and runs of fewer tokens than planned, in the workspace of the plan.
TEST_P(CpuGemm, SharesOfFewTokens) {
    const Format &format = Formats()[GetParam()];
    std::mt19937 rng(12);
    const int64_t n = 32 * 37 + 5, k = 512, most = 64;
    Tensor t = MakeTensor(format.quant, n, k, rng);
    const qe_act act = format.Input(format.act_groups.back());
    std::vector<float> x = MakeX(most, k, rng);
    Loaded ref;
    ASSERT_NO_FATAL_FAILURE(Load(ref, QK_REF, 0, 1, t, act));
    std::vector<float> want = RunLinear(ref, x, most, false);
    const int counts[] = {2, 3, 5};
    for (uint32_t isa : Isas()) {
        Loaded cpu;
        ASSERT_NO_FATAL_FAILURE(Load(cpu, QK_CPU, isa, 1, t, act));
        for (size_t c = 0; c < std::size(counts); c++) {
            const int threads = cpu.device.units = counts[c];
            for (size_t i = 0; i < kSharedRows.size(); i++) {
                const int64_t m = kSharedRows[i];
                if (!Threads(i, c) || m > MostTokens(isa, most)) continue;
                for (int64_t planned = m;; planned = most) {
                    std::vector<float> rows(want.begin(), want.begin() + m * n);
                    ASSERT_EQ(Different(RunLinear(cpu, x, m, true, {}, planned), rows), 0)
                        << format.name << ", isa " << isa << ", " << threads << " threads, m " << m << " of " << planned;
                    if (planned == most) break;
                }
            }
        }
    }
}

TEST_P(CpuGemm, UnpackAndRowReturnTheValues) {
    const Format &format = Formats()[GetParam()];
    std::mt19937 rng(2);
    Tensor t = MakeTensor(format.quant, 32, 600, rng), back = MakeTensor(format.quant, 32, 600, rng);
    Loaded cpu;
    ASSERT_NO_FATAL_FAILURE(Load(cpu, QK_CPU, 0, 1, t, format.Input(format.act_groups[0])));
    const qk_shape &s = cpu.w.shape;
    if (s.layout->band_rows != 32) GTEST_SKIP() << "the layout of this format is the reference's, tested there";
    s.layout->unpack(&s, nullptr, cpu.w.blob, &back.t);
    std::vector<float> a(32 * 600), b(32 * 600), row(600);
    ASSERT_EQ(qe_dequantize(&t.t, 0, 32, a.data(), 600, nullptr), QE_OK);
    ASSERT_EQ(qe_dequantize(&back.t, 0, 32, b.data(), 600, nullptr), QE_OK);
    EXPECT_EQ(Different(a, b), 0);
    for (int r = 0; r < 32; r++) {
        s.layout->row(&s, nullptr, cpu.w.blob, r, row.data());
        EXPECT_EQ(Different(row, std::vector<float>(a.begin() + r * 600, a.begin() + (r + 1) * 600)), 0) << r;
    }
}

INSTANTIATE_TEST_SUITE_P(Formats, CpuGemm, testing::Range<size_t>(0, Formats().size()));

} // namespace
