// Attention of the CPU backend over a table of shapes: near the reference, and the same bits on every ISA and thread count.
#include <gtest/gtest.h>
#include <cmath>
#include <random>
#include <thread>
#include <vector>
#include <qengine/num.h>
#include "qk.h"

namespace {

struct Shape {
    int32_t heads, kv_heads, head_dim, window;
    float softcap;
    std::vector<int32_t> length, rows;   // tokens a sequence holds, and how many of them are queries of this step
};

const Shape kShapes[] = {
    {4, 1, 256, 0, 0.0f, {37}, {37}},                 // Gemma's heads, a whole prompt
    {4, 1, 256, 16, 0.0f, {100}, {33}},               // a window that begins inside a page
    {4, 2, 64, 0, 0.0f, {1, 70, 33}, {1, 1, 20}},     // decode and prefill in one step
    {6, 3, 32, 5, 30.0f, {64, 17}, {2, 17}},          // score cap
    {2, 2, 96, 0, 0.0f, {40}, {3}},
    {2, 2, 64, 7, 0.0f, {50, 3}, {41, 3}},            // no heads to share: blocks of rows with ragged windows
    {8, 1, 128, 1, 0.0f, {9}, {9}},                   // every query sees its own slot alone
    {7, 1, 64, 0, 0.0f, {90}, {1}},                   // one row whose heads fill no block
    {3, 1, 48, 0, 0.0f, {20}, {20}},                  // head_dim of no vector: the reference's loops
};

class Problem {
  public:
    explicit Problem(const Shape &s) : shape(s) {
        std::mt19937 random(7);
        std::normal_distribution<float> normal;
        int32_t sequences = (int32_t)s.length.size();
        first_row.push_back(0);
        for (int32_t rows : s.rows) first_row.push_back(first_row.back() + rows);
        per_sequence = 0;
        for (int32_t n : s.length) per_sequence = std::max(per_sequence, (n + kTokens - 1) / kTokens);
        for (int32_t i = 0; i < sequences * per_sequence; i++) table.push_back(sequences * per_sequence - 1 - i);
        int64_t layer = 2LL * s.kv_heads * kTokens * s.head_dim;
        for (int64_t i = 0; i < layer * 2 * (int64_t)table.size(); i++) pages.push_back(qe_f32_to_f16(normal(random)));
        for (int64_t i = 0; i < (int64_t)first_row.back() * s.heads * s.head_dim; i++) q.push_back(2 * normal(random));
        kv.pages = pages.data(), kv.page_bytes = layer * 2, kv.page_tokens = kTokens, kv.layers = 2;
        kv.table = table.data(), kv.ld_table = per_sequence, kv.length = shape.length.data();
        kv.quant.code = QE_CODE_F16, kv.quant.bits = 16;
        a.heads = s.heads, a.kv_heads = s.kv_heads, a.head_dim = s.head_dim, a.window = s.window;
        a.scale = 1.0f / std::sqrt((float)s.head_dim), a.softcap = s.softcap, a.sequences = sequences;
        a.max_new = first_row.back(), a.max_length = per_sequence * kTokens, a.type = QE_CODE_F32;
        a.first_row = first_row.data(), a.q = q.data(), a.ldq = a.ldo = (int64_t)s.heads * s.head_dim;
        a.kv = &kv, a.layer = 1;
    }
    std::vector<float> run(qe_status (*attention)(const qk_attention *, const qk_queue *, qe_error *), uint32_t isa,
                           int32_t threads) {
        qk_device device = {};
        device.backend = QK_CPU, device.units = threads, device.isa = isa;
        qk_queue queue = {&device, nullptr, parallel, nullptr};
        std::vector<float> out(q.size(), NAN);
        std::vector<char> workspace(qk_cpu_backend.ops.attention_bytes(&device, &a));
        a.out = out.data(), a.workspace = workspace.data();
        qe_error err = {};
        EXPECT_EQ(attention(&a, &queue, &err), QE_OK) << err.message;
        return out;
    }

  private:
    static constexpr int32_t kTokens = 16;
    static void parallel(void *, qk_task *task, void *arg, int32_t count) {
        std::vector<std::thread> threads;
        for (int32_t i = 0; i < count; i++) threads.emplace_back(task, arg, i, count);
        for (auto &t : threads) t.join();
    }
    Shape shape;
    std::vector<int32_t> first_row, table;
    std::vector<uint16_t> pages;
    std::vector<float> q;
    int32_t per_sequence;
    qk_kv kv = {};
    qk_attention a = {};
};

class CpuAttention : public testing::TestWithParam<Shape> {};

TEST_P(CpuAttention, NearTheReferenceAndTheSameBitsEverywhere) {
    Problem problem(GetParam());
    auto expected = problem.run(qk_ref_attention, 0, 1);
    auto portable = problem.run(qk_cpu_backend.ops.attention, 0, 1);
    for (size_t i = 0; i < expected.size(); i++) {
        // Scores of about 2 * N(0, 1) summed in another order: a few units of the last place of the largest value.
        ASSERT_NEAR(portable[i], expected[i], 1e-5) << "at " << i;
    }
    int compared = 0;
    qk_device here;
    ASSERT_EQ(qk_cpu_backend.describe(0, &here, nullptr), QE_OK);
#ifdef QE_AVX512_MODEL
    if (!(here.isa & QK_ISA_AVX2)) GTEST_SKIP() << "the software model of AVX-512 is compiled for AVX2";
    here.isa = QK_ISA_AVX2 | QK_ISA_AVX512 | QK_ISA_VNNI512;
    snprintf(here.name, sizeof here.name, "CPU (avx512 in software)");
#endif
    for (uint32_t isa : {0u, here.isa & QK_ISA_AVX2, here.isa}) {
        for (int32_t threads : {1, 3}) {
            ASSERT_EQ(problem.run(qk_cpu_backend.ops.attention, isa, threads), portable) << "isa " << isa << ", " << threads << " threads";
            compared++;
        }
    }
    printf("%zu outputs, %d runs, up to %s\n", expected.size(), compared, here.name);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CpuAttention, testing::ValuesIn(kShapes));

struct Rope {
    int32_t head_dim, rotary_dim, interleaved;
    bool norm;
};

// Norm, rotation and the cache's halves: on every ISA the bits of the reference.
TEST(CpuRope, EqualsTheReference) {
    const int32_t heads = 4, kv_heads = 2, page_tokens = 4, length[] = {7, 3}, first_row[] = {0, 5, 8}, table[] = {2, 0, 1, 3};
    int compared = 0;
    qk_device here;
    ASSERT_EQ(qk_cpu_backend.describe(0, &here, nullptr), QE_OK);
    for (const Rope &c : {Rope{256, 256, 0, true}, {256, 128, 0, false}, {64, 64, 1, true}, {48, 20, 1, false},
                          {32, 0, 0, true}, {20, 10, 0, true}}) {
        std::mt19937 random(11);
        std::normal_distribution<float> normal;
        std::vector<float> qkv(8 * (heads + 2 * kv_heads) * c.head_dim), norms(2 * c.head_dim), cs(16 * c.rotary_dim + 1);
        for (auto *v : {&qkv, &norms, &cs})
            for (float &x : *v) x = normal(random);
        for (size_t i = 0; i < qkv.size(); i += 37) qkv[i] *= i % 2 ? 1e6f : 1e-7f;   // infinite and subnormal halves
        std::vector<int32_t> position = {2, 3, 4, 5, 6, 0, 1, 2};
        int64_t layer = 2LL * kv_heads * page_tokens * c.head_dim;
        auto run = [&](auto rope_append, uint32_t isa, int32_t threads) {
            std::vector<float> rows = qkv;
            std::vector<uint16_t> pages((size_t)layer * 4, 0x1234);
            qk_device device = {};
            device.backend = QK_CPU, device.units = threads, device.isa = isa;
            qk_queue queue = {&device, nullptr, nullptr, nullptr};
            qk_kv kv = {};
            kv.pages = pages.data(), kv.page_bytes = layer * 2, kv.page_tokens = page_tokens, kv.layers = 1;
            kv.table = table, kv.ld_table = 2, kv.length = length, kv.quant.code = QE_CODE_F16, kv.quant.bits = 16;
            qk_attention a = {};
            a.heads = heads, a.kv_heads = kv_heads, a.head_dim = c.head_dim, a.sequences = 2, a.first_row = first_row;
            a.type = QE_CODE_F32, a.kv = &kv;
            qk_rope r = {};
            r.qkv = rows.data(), r.ld = (heads + 2 * kv_heads) * c.head_dim, r.type = QE_CODE_F32, r.cos_sin = cs.data();
            r.position = position.data(), r.rotary_dim = c.rotary_dim, r.interleaved = c.interleaved, r.eps = 1e-6f;
            r.q_norm = c.norm ? norms.data() : nullptr, r.k_norm = c.norm ? norms.data() + c.head_dim : nullptr;
            qe_error err = {};
            EXPECT_EQ(rope_append(&r, &a, &queue, &err), QE_OK) << err.message;
            std::vector<uint32_t> bits;   // queries, then the cache; the rest of qkv is scratch
            for (int64_t i = 0; i < 8; i++)
                for (int64_t d = 0; d < heads * c.head_dim; d++) bits.push_back(qe_f32_bits(rows[i * r.ld + d]));
            bits.insert(bits.end(), pages.begin(), pages.end());
            return bits;
        };
        auto expected = run(qk_ref_rope_append, 0, 1);
        for (uint32_t isa : {0u, here.isa & QK_ISA_AVX2, here.isa}) {
            for (int32_t threads : {1, 3}) {
                ASSERT_EQ(run(qk_cpu_backend.ops.rope_append, isa, threads), expected) << c.head_dim << ", isa " << isa;
                compared++;
            }
        }
    }
    printf("%d runs, up to %s\n", compared, here.name);
    ASSERT_EQ(compared, 36);
}

}  // namespace
