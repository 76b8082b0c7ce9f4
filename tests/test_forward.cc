/* Logits of the two small models against golden ones, and the same bits however a text is cut into steps, whatever else
 * is in a step, and on any number of threads. */
#include <cmath>
#include <fstream>
#include <memory>

#include <qengine/num.h>
#include <qengine/session.h>
#include "support.h"
#include "test_format_builders.h"

using qe_test::is_ok;

namespace {

struct Closer {
    void operator()(qe_device *d) const { qe_device_destroy(d); }
    void operator()(qe_model *m) const { qe_model_close(m); }
    void operator()(qe_engine *e) const { EXPECT_EQ(qe_engine_destroy(e), QE_OK); }
    void operator()(qe_session *s) const { qe_session_destroy(s); }
};
template <typename T> using Owned = std::unique_ptr<T, Closer>;

struct Rig {                      /* in the order of destruction, reversed */
    Owned<qe_device> device;
    Owned<qe_model> model;
    Owned<qe_engine> engine;
    int64_t vocab = 0;

    Rig(const std::string &name, int32_t backend, int32_t threads, int32_t batch = 0, int32_t kv_type = 0) {
        qe_error err = {};
        qe_device_options d = {};
        d.struct_size = sizeof d;
        d.backend = backend;
        d.threads = threads;
        qe_device *device_made = nullptr;
        EXPECT_TRUE(is_ok(qe_device_create(&d, &device_made, &err), err));
        device.reset(device_made);
        qe_model *model_made = nullptr;
        qe_model_options ids_alone = {};
        ids_alone.struct_size = sizeof ids_alone;
        ids_alone.flags = QE_MODEL_NO_TOKENIZER;
        const std::string path = name[0] == '/' ? name : std::string(QE_TEST_DATA) + "/" + name;
        EXPECT_TRUE(is_ok(qe_model_open(path.c_str(), &ids_alone, &model_made, &err), err));
        model.reset(model_made);
        qe_engine_options e = {};
        e.struct_size = sizeof e;
        e.max_sessions = 4;
        e.max_batch_tokens = batch;
        e.kv_type = kv_type;
        qe_engine *engine_made = nullptr;
        EXPECT_TRUE(is_ok(qe_engine_create(device.get(), model.get(), &e, &engine_made, &err), err));
        engine.reset(engine_made);
        qe_engine_info info;
        qe_engine_get_info(engine.get(), &info);
        vocab = info.vocab;
    }
    Owned<qe_session> session() {
        qe_error err = {};
        qe_session *s = nullptr;
        EXPECT_TRUE(is_ok(qe_session_create(engine.get(), &s, &err), err));
        return Owned<qe_session>(s);
    }
    std::vector<float> all(qe_session *s, const int32_t *ids, size_t n) {
        qe_error err = {};
        std::vector<float> logits(n * (size_t)vocab);
        qe_step_item item = {s, ids, (int64_t)n, QE_WANT_ALL, 0, logits.data(), vocab};
        EXPECT_TRUE(is_ok(qe_engine_step(engine.get(), &item, 1, nullptr, &err), err));
        return logits;
    }
};

std::vector<int32_t> golden_ids(const std::string &name) {
    std::ifstream in(std::string(QE_TEST_GOLDEN) + "/" + name + ".ids.txt");
    std::vector<int32_t> ids;
    for (int32_t id; in >> id;) ids.push_back(id);
    return ids;
}

std::vector<float> golden_logits(const std::string &name) {
    std::string bytes = qe_test::read_file(std::string(QE_TEST_GOLDEN) + "/" + name + ".logits.f32");
    std::vector<float> out(bytes.size() / 4);
    memcpy(out.data(), bytes.data(), out.size() * 4);
    return out;
}

struct Case {
    const char *model;
    int32_t backend, kv_type;
    double limit;
    const char *name;
};

class Golden : public testing::TestWithParam<Case> {};

/* With an fp32 cache the only differences to fp32 throughout are orders of summation. An fp16 cache adds its rounding: a
 * float64 evaluation of tiny-llama that rounds keys and values to fp16 and nothing else differs by 0.0048. */
TEST_P(Golden, LogitsWithinTheLimit) {
    const Case &c = GetParam();
    Rig rig(c.model, c.backend, 2, 0, c.kv_type);
    auto ids = golden_ids(c.model);
    auto expected = golden_logits(c.model);
    ASSERT_FALSE(ids.empty());
    ASSERT_EQ(expected.size(), ids.size() * (size_t)rig.vocab);
    auto session = rig.session();
    auto got = rig.all(session.get(), ids.data(), ids.size());
    double worst = 0;
    for (size_t i = 0; i < got.size(); i++) {
        ASSERT_TRUE(std::isfinite(got[i])) << i;
        worst = std::max(worst, (double)std::fabs(got[i] - expected[i]));
    }
    printf("%s: largest difference %.3g over %zu logits, limit %g\n", c.name, worst, got.size(), c.limit);
    EXPECT_LE(worst, c.limit);
}

const Case golden_cases[] = {
    {"tiny-llama", QE_BACKEND_REF, QE_CODE_F32, 1e-3, "llama_ref_f32"},
    {"tiny-llama", QE_BACKEND_CPU, QE_CODE_F32, 1e-3, "llama_cpu_f32"},
    {"tiny-llama", QE_BACKEND_CPU, QE_CODE_F16, 6e-3, "llama_cpu_f16"},
    {"tiny-gemma3", QE_BACKEND_REF, QE_CODE_F32, 1e-3, "gemma3_ref_f32"},
    {"tiny-gemma3", QE_BACKEND_CPU, QE_CODE_F32, 1e-3, "gemma3_cpu_f32"},
    {"tiny-gemma3", QE_BACKEND_CPU, QE_CODE_F16, 6e-3, "gemma3_cpu_f16"},
};
INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::ValuesIn(golden_cases),
                         [](const auto &info) { return std::string(info.param.name); });

/* The bundled model as tests/peers/tiny_to_gguf.py writes it, without the tokenizer: other names, F16 matrices, F32 norms, and
 * the rows of a rotated head in pairs. */
std::string gguf_name(std::string name) {
    const char *const names[][2] = {
        {"model.layers.", "blk."}, {"model.embed_tokens", "token_embd"}, {"model.norm", "output_norm"}, {"lm_head", "output"},
        {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"}, {"self_attn.", "attn_"}, {"mlp.", "ffn_"},
        {"_o_proj", "_output"}, {"_proj", ""}};
    for (const auto &n : names)
        if (size_t at = name.find(n[0]); at != std::string::npos) name.replace(at, strlen(n[0]), n[1]);
    return name;
}

build::Gguf gguf_form(const qe_model *model) {
    using namespace build;
    qe_error err = {};
    qe_model_info m;
    EXPECT_TRUE(is_ok(qe_model_get_info(model, &m, &err), err));
    Gguf g;
    g.keys = {kv_str("general.architecture", "llama"), kv_u32("llama.context_length", (uint64_t)m.context_tokens),
              kv_u32("llama.embedding_length", (uint64_t)m.hidden), kv_u32("llama.block_count", (uint64_t)m.layers),
              kv_u32("llama.feed_forward_length", (uint64_t)m.ffn), kv_u32("llama.attention.head_count", (uint64_t)m.heads),
              kv_u32("llama.attention.head_count_kv", (uint64_t)m.kv_heads),
              kv_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f), kv_u32("llama.rope.dimension_count", (uint64_t)m.head_dim),
              kv_f32("llama.rope.freq_base", 10000.0f), kv_u32("llama.vocab_size", (uint64_t)m.vocab)};
    for (int64_t i = 0; i < qe_model_tensor_count(model); i++) {
        qe_tensor_info t;
        EXPECT_TRUE(is_ok(qe_model_get_tensor(model, i, &t, &err), err));
        Band band;
        band.place(t.quant, t.rows, t.columns);
        EXPECT_TRUE(is_ok(qe_model_read(model, i, 0, t.rows, &band.t, &err), err));
        const uint16_t *halves = static_cast<const uint16_t *>(band.t.codes);
        const bool pairs = strstr(t.name, "q_proj") || strstr(t.name, "k_proj"), vector = t.rank == 1;
        std::string data;
        for (int64_t row = 0; row < t.rows; row++) {
            const int64_t in_head = row % m.head_dim, half = m.head_dim / 2;
            const int64_t from = pairs ? row - in_head + in_head / 2 + in_head % 2 * half : row;
            for (int64_t k = 0; k < t.columns; k++) {
                const uint16_t h = halves[from * t.columns + k];
                data += vector ? le(qe_f16_to_f32(h)) : le(h);
            }
        }
        std::vector<uint64_t> dims(t.dims, t.dims + t.rank);
        g.tensors.push_back({gguf_name(t.name), {dims.rbegin(), dims.rend()}, vector ? 0u : 1u, data});
    }
    return g;
}

TEST(GgufForm, BitsOfTheSafetensorsFormAndLogitsOfLlamaCpp) {
    qe_test::TempFolder folder;
    Rig rig("tiny-llama", QE_BACKEND_CPU, 2);
    Rig other(folder.write("tiny.gguf", gguf_form(rig.model.get()).bytes()), QE_BACKEND_CPU, 2);
    auto ids = golden_ids("tiny-llama");
    auto expected = golden_logits("tiny-llama-gguf");
    auto a = rig.session(), b = other.session();
    auto got = other.all(b.get(), ids.data(), ids.size());
    EXPECT_TRUE(qe_test::same_bits(got, rig.all(a.get(), ids.data(), ids.size())));
    ASSERT_EQ(got.size(), expected.size());
    double worst = 0;
    for (size_t i = 0; i < got.size(); i++) worst = std::max(worst, (double)std::fabs(got[i] - expected[i]));
    printf("GGUF form: largest difference to llama.cpp %.3g over %zu logits\n", worst, got.size());
    EXPECT_LE(worst, 3e-3); /* both caches hold keys and values in fp16 */
}

/* Sanitizers slow every kernel call about tenfold: they get the combinations that share work among threads. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
const int32_t kThreads[] = {1, 3}, kBatches[] = {7};
#else
const int32_t kThreads[] = {1, 2, 3}, kBatches[] = {0, 1, 7};
#endif

class Invariant : public testing::TestWithParam<const char *> {};

TEST_P(Invariant, AnyCutAndAnyThreadCount) {
    auto ids = golden_ids(GetParam());
    std::vector<float> whole;
    size_t cases = 0;
    for (int32_t threads : kThreads) {
        for (int32_t batch : kBatches) {
            Rig rig(GetParam(), QE_BACKEND_CPU, threads, batch);
            for (size_t cut : {ids.size(), (size_t)1, (size_t)5}) {
                auto session = rig.session();
                std::vector<float> got;
                for (size_t at = 0; at < ids.size(); at += cut) {
                    auto rows = rig.all(session.get(), ids.data() + at, std::min(cut, ids.size() - at));
                    got.insert(got.end(), rows.begin(), rows.end());
                }
                if (whole.empty()) whole = got;
                EXPECT_TRUE(qe_test::same_bits(got, whole)) << threads << " threads, batch " << batch << ", cut " << cut;
                cases++;
            }
        }
    }
    printf("%s: %zu ways to run the same text\n", GetParam(), cases);
}

/* Rows of logits further apart than the vocabulary: what lies between them stays as it was. */
TEST_P(Invariant, RowsOfLogitsApart) {
    auto ids = golden_ids(GetParam());
    Rig rig(GetParam(), QE_BACKEND_CPU, 2, 7);
    auto session = rig.session(), other = rig.session();
    auto expected = rig.all(session.get(), ids.data(), ids.size());
    const int64_t ld = rig.vocab + 5;
    const float kept = -12345.0f;
    std::vector<float> apart(ids.size() * (size_t)ld, kept), got;
    qe_error err = {};
    qe_step_item item = {other.get(), ids.data(), (int64_t)ids.size(), QE_WANT_ALL, 0, apart.data(), ld};
    ASSERT_TRUE(is_ok(qe_engine_step(rig.engine.get(), &item, 1, nullptr, &err), err));
    for (size_t row = 0; row < ids.size(); row++) {
        auto at = apart.begin() + (int64_t)row * ld;
        got.insert(got.end(), at, at + rig.vocab);
        for (int64_t i = rig.vocab; i < ld; i++) ASSERT_EQ(at[i], kept) << "row " << row << ", column " << i;
    }
    EXPECT_TRUE(qe_test::same_bits(got, expected));
}

TEST_P(Invariant, AnyCompanyInAStep) {
    Rig rig(GetParam(), QE_BACKEND_CPU, 2, 16);
    auto ids = golden_ids(GetParam());
    auto alone = rig.session();
    auto expected = rig.all(alone.get(), ids.data(), ids.size());
    alone.reset();
    /* Four sessions, each over the same ids from its own start, in steps of unequal lengths. */
    const size_t lengths[] = {1, 3, 9, 4};
    std::vector<Owned<qe_session>> sessions;
    std::vector<std::vector<float>> got(4, std::vector<float>(expected.size()));
    for (int i = 0; i < 4; i++) sessions.push_back(rig.session());
    for (bool more = true; more;) {
        std::vector<qe_step_item> items;
        for (int i = 0; i < 4; i++) {
            size_t at = (size_t)qe_session_length(sessions[i].get()), n = std::min(lengths[i], ids.size() - at);
            if (n) items.push_back({sessions[i].get(), ids.data() + at, (int64_t)n, QE_WANT_ALL, 0, got[i].data() + at * rig.vocab, rig.vocab});
        }
        more = !items.empty();
        qe_error err = {};
        if (!more) break;
        ASSERT_TRUE(is_ok(qe_engine_step(rig.engine.get(), items.data(), (int64_t)items.size(), nullptr, &err), err));
    }
    for (int i = 0; i < 4; i++) EXPECT_TRUE(qe_test::same_bits(got[i], expected)) << "session " << i;
}

INSTANTIATE_TEST_SUITE_P(Models, Invariant, testing::Values("tiny-llama", "tiny-gemma3"),
                         [](const auto &info) { return std::string(info.param).substr(5); });

}  // namespace
