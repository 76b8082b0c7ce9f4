/* Logits of the two small models against golden ones, and the same bits however a text is cut into steps, whatever else
 * is in a step, and on any number of threads. */
#include <cmath>
#include <fstream>
#include <memory>

#include <qengine/session.h>
#include "support.h"

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
        EXPECT_TRUE(is_ok(qe_model_open((std::string(QE_TEST_DATA) + "/" + name).c_str(), nullptr, &model_made, &err), err));
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
