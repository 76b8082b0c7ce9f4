// prepare() and embed() of the CPU backend against the reference, bit for bit, on every ISA of this machine: each type of
// input and output, each kind of quantization, norms, residuals and gates, column order, scale and rotation.
#include "cpu_cases.h"

namespace {

constexpr int kSigns = -1;
struct Output {
    const char *name;
    int32_t mode;
    qe_code type; // of a float output
    int group; // kSigns: 1 bit a value
    bool asymmetric;
};
const Output kOutputs[] = {{"f32", QE_ACT_FLOAT, QE_CODE_F32, 0, false},
                           {"f16", QE_ACT_FLOAT, QE_CODE_F16, 0, false},
                           {"bf16", QE_ACT_FLOAT, QE_CODE_BF16, 0, false},
                           {"dynamic", QE_ACT_DYNAMIC, QE_CODE_F32, 0, false},
                           {"dynamic, groups of 32", QE_ACT_DYNAMIC, QE_CODE_F32, 32, false},
                           {"dynamic, groups of 256", QE_ACT_DYNAMIC, QE_CODE_F32, 256, false},
                           {"asymmetric", QE_ACT_DYNAMIC, QE_CODE_F32, 0, true},
                           {"asymmetric, groups of 32", QE_ACT_DYNAMIC, QE_CODE_F32, 32, true},
                           {"static", QE_ACT_STATIC, QE_CODE_F32, 0, false},
                           {"static, asymmetric", QE_ACT_STATIC, QE_CODE_F32, 0, true},
                           {"signs", QE_ACT_DYNAMIC, QE_CODE_F32, kSigns, false}};

qe_act ActOf(const Output &o) {
    qe_act a = {};
    a.mode = o.mode;
    if (o.mode == QE_ACT_FLOAT) return a;
    if (o.group == kSigns) return SignAct();
    a.quant = Quant(8, QE_NUM_F32, o.group, 128);
    if (o.asymmetric) a.quant.zero = QE_ZERO_POINT, a.quant.zero_num = QE_NUM_U8, a.quant.zero_const = 0;
    if (o.mode == QE_ACT_STATIC) a.scale = 0.02f, a.zero = o.asymmetric ? 93 : 128;
    return a;
}

// What happens to a row before it is rounded.
struct Form {
    const char *name;
    bool norm, residual, post_norm, order, col_scale;
    int32_t hadamard, act; // act: QK_ACT_*
    bool up;
};
const Form kForms[] = {{"plain", false, false, false, false, false, 0, 0, false},
                       {"norm", true, false, false, false, false, 0, 0, false},
                       {"residual", false, true, false, false, false, 0, 0, false},
                       {"residual, norm", true, true, false, false, false, 0, 0, false},
                       {"post norm, residual", false, true, true, false, false, 0, 0, false},
                       {"post norm, residual, norm", true, true, true, false, false, 0, 0, false},
                       {"silu, interleaved", false, false, false, false, false, 0, QK_ACT_SILU, false},
                       {"gelu tanh, interleaved", false, false, false, false, false, 0, QK_ACT_GELU_TANH, false},
                       {"silu", false, false, false, false, false, 0, QK_ACT_SILU, true},
                       {"gelu tanh", false, false, false, false, false, 0, QK_ACT_GELU_TANH, true},
                       {"gelu", false, false, false, false, false, 0, QK_ACT_GELU, true},
                       {"relu2", false, false, false, false, false, 0, QK_ACT_RELU2, true},
                       {"column scale", true, false, false, false, true, 0, 0, false},
                       {"order", false, false, false, true, false, 0, 0, false},
                       {"order, column scale", true, true, false, true, true, 0, 0, false},
                       {"rotation of 4", false, false, false, false, false, 4, 0, false},
                       {"rotation of 16", false, false, false, false, false, 16, 0, false},
                       {"order, column scale, rotation of 128", true, false, false, true, true, 128, 0, false}};

// x as stored, of one of the float types.
struct Input {
    std::vector<float> full;
    std::vector<uint16_t> half;
    const void *data() const { return half.empty() ? static_cast<const void *>(full.data()) : half.data(); }
};

Input InputOf(const std::vector<float> &x, int32_t type) {
    Input in = {x, {}};
    for (float v : x) {
        if (type == QE_CODE_F16) in.half.push_back(qe_f32_to_f16(v));
        if (type == QE_CODE_BF16) in.half.push_back(qe_f32_to_bf16(v));
    }
    return in;
}

struct Prepared {
    qk_x x = {};
    std::vector<char> block;
    std::vector<float> residual;
};

struct Case {
    int64_t m = 7, k = 0;
    int32_t x_type = QE_CODE_F32;
    std::vector<float> x, up, norm, post, residual, col_scale;
    std::vector<uint32_t> order;
};

void Prepare(const Case &c, const Output &o, const Form &form, int backend, uint32_t isa, const Tensor &t, Prepared &out) {
    Loaded l;
    qe_error err = {};
    ASSERT_NO_FATAL_FAILURE(Load(l, backend, isa, 3, t, ActOf(o)));
    if (form.order) l.w.order = c.order.data();
    if (form.col_scale) l.w.col_scale = c.col_scale.data();
    l.w.hadamard = form.hadamard;
    size_t bytes = qk_x_bytes(&l.device, &l.w.shape, c.m, o.type, &out.x);
    qk_x_rebase(&out.x, Aligned(out.block, bytes));
    Input x = InputOf(c.x, c.x_type), up = InputOf(c.up, c.x_type);
    out.residual = c.residual;
    qk_queue queue = {};
    queue.device = &l.device, queue.parallel = Parallel;
    qk_prepare p = {};
    p.x = x.data(), p.ldx = 2 * c.k, p.x_type = c.x_type, p.next = &l.w, p.out = &out.x, p.eps = 1e-6f;
    if (form.norm) p.norm = QK_NORM_RMS, p.norm_weight = c.norm.data();
    if (form.residual) p.residual = out.residual.data(), p.ldr = c.k;
    if (form.post_norm) p.post_norm = c.post.data();
    p.act = form.act;
    if (form.up) p.up = up.data();
    ASSERT_EQ(qk_backend_of(backend)->ops.prepare(&p, &queue, &err), QE_OK) << err.message;
}

void ExpectSame(const Prepared &a, const Prepared &b, const Case &c, const Output &o) {
    if (o.mode == QE_ACT_FLOAT) {
        for (int64_t i = 0; i < c.m * a.x.ld; i++) {
            auto at = [&](const qk_x &x) {
                if (o.type == QE_CODE_F32) return static_cast<const float *>(x.data)[i];
                uint16_t h = static_cast<const uint16_t *>(x.data)[i];
                return o.type == QE_CODE_F16 ? qe_f16_to_f32(h) : qe_bf16_to_f32(h);
            };
            ASSERT_TRUE(SameBits(at(a.x), at(b.x))) << i / a.x.ld << ", " << i % a.x.ld << ": " << at(b.x);
        }
    } else {
        int64_t scales = o.mode == QE_ACT_STATIC ? 1 : c.m * Groups(c.k, o.group == kSigns || o.group >= c.k ? 0 : o.group);
        ASSERT_EQ(memcmp(a.x.data, b.x.data, c.m * a.x.ld), 0);
        ASSERT_EQ(memcmp(a.x.sums, b.x.sums, c.m * Groups(c.k, a.x.sum_k) * 4), 0);
        if (o.group == kSigns) {
            ASSERT_EQ(memcmp(a.x.bits, b.x.bits, c.m * qk_bit_words(c.k) * 4), 0);
            ASSERT_EQ(memcmp(a.x.ones, b.x.ones, c.m * 4), 0);
        }
        for (int64_t i = 0; i < scales; i++) {
            ASSERT_TRUE(SameBits(a.x.scales[i], b.x.scales[i])) << i;
            if (!o.asymmetric) continue;
            ASSERT_EQ(a.x.zeros[i], b.x.zeros[i]) << i;
        }
    }
    ASSERT_EQ(Different(a.residual, b.residual), 0);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t kColumns[] = {1, 70, 640}; // the longest rows take two thirds of the time
#else
constexpr int64_t kColumns[] = {1, 70, 640, 1500};
#endif

TEST(CpuPrepare, EqualsReference) {
    int compared = 0;
    for (int64_t k : kColumns)
        for (int32_t x_type : {QE_CODE_F32, QE_CODE_F16, QE_CODE_BF16})
            for (const Output &o : kOutputs) {
                std::mt19937 rng(4);
                Case c;
                c.k = k, c.x_type = x_type;
                c.x = MakeX(c.m, 2 * k, rng), c.up = MakeX(c.m, 2 * k, rng), c.residual = MakeX(c.m, k, rng);
                c.norm = MakeX(1, k, rng), c.post = MakeX(1, k, rng), c.col_scale = MakeX(1, k, rng);
                for (int64_t i = 0; i < k; i++) c.order.push_back(i);
                std::shuffle(c.order.begin(), c.order.end(), rng);
                Tensor t = MakeTensor(Quant(8, QE_NUM_F16, 32, 128), 1, k, rng);
                for (const Form &form : kForms) {
                    if (form.hadamard && k % form.hadamard) continue; // refused, see Refuses
                    Prepared expected;
                    ASSERT_NO_FATAL_FAILURE(Prepare(c, o, form, QK_REF, 0, t, expected));
                    for (uint32_t isa : Isas()) {
                        Prepared got;
                        SCOPED_TRACE(std::string(o.name) + " of type " + std::to_string(x_type) + ", " + form.name +
                                     ", k " + std::to_string(k) + ", isa " + std::to_string(isa));
                        ASSERT_NO_FATAL_FAILURE(Prepare(c, o, form, QK_CPU, isa, t, got));
                        ASSERT_NO_FATAL_FAILURE(ExpectSame(expected, got, c, o));
                        compared++;
                    }
                }
            }
    printf("prepare: %d cases\n", compared);
    EXPECT_GT(compared, 0);
}

// The longest rows of the ISAs' own loops, rows of one more, which the reference takes, and the longest rotation.
TEST(CpuPrepare, LongestRows) {
    const Form rotation = {"rotation of 4096", true, false, false, false, false, 4096, 0, false};
    const Form *rows[] = {&kForms[0], &kForms[3], &kForms[14]};
    int compared = 0;
    auto compare = [&](int64_t k, const Form &form, const Output &o) {
        std::mt19937 rng(6);
        Case c;
        c.m = 2, c.k = k;
        c.x = MakeX(c.m, 2 * k, rng), c.up = MakeX(c.m, 2 * k, rng), c.residual = MakeX(c.m, k, rng);
        c.norm = MakeX(1, k, rng), c.post = MakeX(1, k, rng), c.col_scale = MakeX(1, k, rng);
        for (int64_t i = 0; i < k; i++) c.order.push_back(k - 1 - i);
        Tensor t = MakeTensor(Quant(8, QE_NUM_F16, 32, 128), 1, k, rng);
        Prepared expected;
        ASSERT_NO_FATAL_FAILURE(Prepare(c, o, form, QK_REF, 0, t, expected));
        for (uint32_t isa : Isas()) {
            Prepared got;
            SCOPED_TRACE(std::string(o.name) + ", " + form.name + ", k " + std::to_string(k) + ", isa " + std::to_string(isa));
            ASSERT_NO_FATAL_FAILURE(Prepare(c, o, form, QK_CPU, isa, t, got));
            ASSERT_NO_FATAL_FAILURE(ExpectSame(expected, got, c, o));
            compared++;
        }
    };
    for (const Output &o : {kOutputs[0], kOutputs[3], kOutputs[4]}) {
        for (int64_t k : {16384, 16385})
            for (const Form *form : rows) ASSERT_NO_FATAL_FAILURE(compare(k, *form, o));
        ASSERT_NO_FATAL_FAILURE(compare(8192, rotation, o));
    }
    printf("longest rows: %d cases\n", compared);
    EXPECT_GT(compared, 0);
}

// Every half there is, as floats and as codes.
TEST(CpuPrepare, EveryHalf) {
    int compared = 0;
    for (const Output &o : {kOutputs[0], kOutputs[1], kOutputs[4]}) {
        std::mt19937 rng(5);
        Case c;
        c.m = 64, c.k = 1024, c.x_type = QE_CODE_F16;
        Tensor t = MakeTensor(Quant(8, QE_NUM_F16, 32, 128), 1, c.k, rng);
        for (int64_t i = 0; i < c.m * 2 * c.k; i++) // rows are 2 k apart
            c.x.push_back(qe_f16_to_f32(static_cast<uint16_t>(i / (2 * c.k) * c.k + i % c.k)));
        Prepared expected;
        ASSERT_NO_FATAL_FAILURE(Prepare(c, o, kForms[0], QK_REF, 0, t, expected));
        for (uint32_t isa : Isas()) {
            Prepared got;
            ASSERT_NO_FATAL_FAILURE(Prepare(c, o, kForms[0], QK_CPU, isa, t, got));
            ASSERT_NO_FATAL_FAILURE(ExpectSame(expected, got, c, o)) << o.name << ", isa " << isa;
            compared++;
        }
    }
    EXPECT_GT(compared, 0);
}

// int8 codes on the static grid go through as they are.
TEST(CpuPrepare, TakesCodes) {
    int compared = 0;
    for (const Output &o : kOutputs) {
        if (o.mode != QE_ACT_STATIC) continue;
        for (int64_t k : {1, 70, 640})
            for (uint32_t isa : Isas()) {
                std::mt19937 rng(6);
                const int64_t m = 5, ld = k + 3;
                Tensor t = MakeTensor(Quant(8, QE_NUM_F16, 32, 128), 1, k, rng);
                std::vector<int8_t> codes(m * ld);
                for (auto &q : codes) q = static_cast<int8_t>(rng());
                Prepared out[2];
                for (int b = 0; b < 2; b++) {
                    Loaded l;
                    qe_error err = {};
                    ASSERT_NO_FATAL_FAILURE(Load(l, b ? QK_CPU : QK_REF, isa, 3, t, ActOf(o)));
                    qk_x_rebase(&out[b].x, Aligned(out[b].block, qk_x_bytes(&l.device, &l.w.shape, m, o.type, &out[b].x)));
                    qk_queue queue = {};
                    queue.device = &l.device, queue.parallel = Parallel;
                    qk_prepare p = {};
                    p.x = codes.data(), p.ldx = ld, p.x_type = QE_CODE_INT, p.next = &l.w, p.out = &out[b].x;
                    ASSERT_EQ(qk_backend_of(l.device.backend)->ops.prepare(&p, &queue, &err), QE_OK) << err.message;
                }
                Case c;
                c.m = m, c.k = k;
                ASSERT_NO_FATAL_FAILURE(ExpectSame(out[0], out[1], c, o)) << o.name << ", k " << k << ", isa " << isa;
                compared++;
            }
    }
    EXPECT_GT(compared, 0);
}

// What the row code does not know ends at the reference, with its message.
TEST(CpuPrepare, Refuses) {
    std::mt19937 rng(7);
    Tensor t = MakeTensor(Quant(8, QE_NUM_F16, 32, 128), 1, 70, rng);
    std::vector<float> x = MakeX(2, 70, rng);
    Loaded l;
    ASSERT_NO_FATAL_FAILURE(Load(l, QK_CPU, Isas()[0], 1, t, Act(0)));
    qk_x out;
    std::vector<char> block;
    qk_x_rebase(&out, Aligned(block, qk_x_bytes(&l.device, &l.w.shape, 2, QE_CODE_F32, &out)));
    qk_queue queue = {};
    queue.device = &l.device;
    qk_prepare good = {};
    good.x = x.data(), good.ldx = 70, good.x_type = QE_CODE_F32, good.next = &l.w, good.out = &out;
    struct Wrong {
        const char *what;
        qe_status status;
        void (*spoil)(qk_prepare *, qk_weight *);
    };
    const Wrong wrongs[] = {
        {"rotation of 16 in 70", QE_E_UNSUPPORTED, [](qk_prepare *, qk_weight *w) { w->hadamard = 16; }},
        {"rotation of 7", QE_E_UNSUPPORTED, [](qk_prepare *, qk_weight *w) { w->hadamard = 7; }},
        {"layer norm", QE_E_UNSUPPORTED, [](qk_prepare *p, qk_weight *) { p->norm = QK_NORM_LAYER; }},
        {"norm without weight", QE_E_ARGUMENT, [](qk_prepare *p, qk_weight *) { p->norm = QK_NORM_RMS; }},
        {"codes on a dynamic act", QE_E_ARGUMENT, [](qk_prepare *p, qk_weight *) { p->x_type = QE_CODE_INT; }},
        {"unknown type", QE_E_ARGUMENT, [](qk_prepare *p, qk_weight *) { p->x_type = QE_CODE_NF4; }},
        {"no x", QE_E_ARGUMENT, [](qk_prepare *p, qk_weight *) { p->x = nullptr; }}};
    for (const Wrong &wrong : wrongs) {
        qk_prepare p = good;
        qk_weight w = l.w;
        qe_error err = {};
        p.next = &w;
        wrong.spoil(&p, &w);
        EXPECT_EQ(qk_cpu_backend.ops.prepare(&p, &queue, &err), wrong.status) << wrong.what;
        EXPECT_NE(err.message[0], 0) << wrong.what;
    }
    qe_error err = {};
    EXPECT_EQ(qk_cpu_backend.ops.prepare(&good, &queue, &err), QE_OK) << err.message;
}

TEST(CpuPrepare, RefusesLongerRotations) {
    std::mt19937 rng(8);
    const int64_t k = 8192;
    Tensor t = MakeTensor(Quant(8, QE_NUM_F16, 32, 128), 1, k, rng);
    std::vector<float> x = MakeX(1, k, rng);
    Loaded l;
    ASSERT_NO_FATAL_FAILURE(Load(l, QK_CPU, Isas()[0], 1, t, Act(0)));
    l.w.hadamard = 8192;
    qk_x out;
    std::vector<char> block;
    qk_x_rebase(&out, Aligned(block, qk_x_bytes(&l.device, &l.w.shape, 1, QE_CODE_F32, &out)));
    qk_queue queue = {};
    queue.device = &l.device;
    qk_prepare p = {};
    p.x = x.data(), p.ldx = k, p.x_type = QE_CODE_F32, p.next = &l.w, p.out = &out;
    qe_error err = {};
    EXPECT_EQ(qk_cpu_backend.ops.prepare(&p, &queue, &err), QE_E_UNSUPPORTED);
    EXPECT_NE(strstr(err.message, "8192"), nullptr) << err.message;
}

// Rows of the embedding table times the model's factor, of each way the CPU keeps a table.
TEST(CpuEmbed, EqualsReference) {
    const struct {
        const char *name;
        qe_quant quant;
    } tables[] = {{"w4 g16, decoded", Quant(4, QE_NUM_F16, 16, 8)},
                  {"w8 channel", Quant(8, QE_NUM_F32, 0, 128)},
                  {"w4 g64 points", Points(Quant(4, QE_NUM_F16, 64, 0))},
                  {"q5_0", Quant(5, QE_NUM_F16, 32, 16)},
                  {"q6_k", Super(Quant(6, QE_NUM_S8, 16, 32), QE_NUM_F16, 256)},
                  {"q4_k", Mins(Super(Quant(4, QE_NUM_U6, 32, 0), QE_NUM_F16, 256))}};
    int compared = 0;
    for (const auto &table : tables)
        for (int64_t k : {70, 640})
            for (float scale : {1.0f, 25.25f}) {
                std::mt19937 rng(8);
                const int64_t n = 70, m = 9, ld = k + 5;
                Tensor t = MakeTensor(table.quant, n, k, rng);
                std::vector<int32_t> ids = {0, 69, 31, 32, 5, 5, 64, 1, 17};
                std::vector<float> expected(m * ld, 3.0f);
                Loaded ref;
                qe_error err = {};
                ASSERT_NO_FATAL_FAILURE(Load(ref, QK_REF, 0, 1, t, Act(0)));
                qk_queue queue = {};
                queue.device = &ref.device;
                ASSERT_EQ(qk_ref_embed(&ref.w, ids.data(), m, scale, expected.data(), ld, QE_CODE_F32, &queue, &err), QE_OK)
                    << err.message;
                for (int threads : {1, 3}) {
                    Loaded cpu;
                    std::vector<float> y(m * ld, 3.0f);
                    ASSERT_NO_FATAL_FAILURE(Load(cpu, QK_CPU, Isas().back(), threads, t, Act(0)));
                    queue.device = &cpu.device, queue.parallel = threads > 1 ? Parallel : nullptr;
                    ASSERT_EQ(qk_cpu_backend.ops.embed(&cpu.w, ids.data(), m, scale, y.data(), ld, QE_CODE_F32, &queue, &err),
                              QE_OK)
                        << err.message;
                    EXPECT_EQ(Different(y, expected), 0) << table.name << ", k " << k << ", factor " << scale;
                    compared++;
                }
                ids[3] = n;
                queue.device = &ref.device, queue.parallel = nullptr;
                EXPECT_EQ(qk_cpu_backend.ops.embed(&ref.w, ids.data(), m, scale, expected.data(), ld, QE_CODE_F32, &queue, &err),
                          QE_E_ARGUMENT);
            }
    printf("embed: %d cases\n", compared);
    EXPECT_GT(compared, 0);
}

} // namespace
