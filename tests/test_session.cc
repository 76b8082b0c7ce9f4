/* The rules of sessions and steps: arguments, capacity, rewind, cancel, what a failed step leaves behind. */
#include <qengine/session.h>
#include <qengine/tokenizer.h>
#include "support.h"

using qe_test::has_status;
using qe_test::is_ok;

namespace {

class Session : public testing::Test {
protected:
    void SetUp() override {
        qe_device_options d = {};
        d.struct_size = sizeof d;
        d.backend = QE_BACKEND_CPU;
        d.threads = 2;
        ASSERT_TRUE(is_ok(qe_device_create(&d, &device, &err), err));
        ASSERT_TRUE(is_ok(qe_model_open(QE_TEST_DATA "/tiny-llama", nullptr, &model, &err), err));
        qe_engine_options o = {};
        o.struct_size = sizeof o;
        o.context_tokens = 160;
        o.max_sessions = 2;
        o.max_batch_tokens = 32;
        o.kv_tokens = 256;         /* 4 pages: less than two full sessions */
        ASSERT_TRUE(is_ok(qe_engine_create(device, model, &o, &engine, &err), err));
        ASSERT_TRUE(is_ok(qe_session_create(engine, &a, &err), err));
        ASSERT_TRUE(is_ok(qe_session_create(engine, &b, &err), err));
        qe_engine_info info;
        qe_engine_get_info(engine, &info);
        vocab = info.vocab;
        for (int i = 0; i < 256; i++) ids.push_back((i * 37 + 5) % (int32_t)vocab);
    }
    void TearDown() override {
        qe_session_destroy(a);
        qe_session_destroy(b);
        EXPECT_EQ(qe_engine_destroy(engine), QE_OK);
        qe_model_close(model);
        qe_device_destroy(device);
    }
    qe_status step(qe_session *s, int64_t at, int64_t n, int32_t want = QE_WANT_LAST) {
        qe_step_item item = {s, ids.data() + at, n, want, 0, nullptr, 0};
        return qe_engine_step(engine, &item, 1, nullptr, &err);
    }
    std::vector<float> kept(qe_session *s) {
        float *row = qe_session_logits(s);
        return row ? std::vector<float>(row, row + vocab) : std::vector<float>();
    }
    qe_error err = {};
    qe_device *device = nullptr;
    qe_model *model = nullptr;
    qe_engine *engine = nullptr;
    qe_session *a = nullptr, *b = nullptr;
    int64_t vocab = 0;
    std::vector<int32_t> ids;
};

TEST_F(Session, RewindLeavesNoTrace) {
    ASSERT_TRUE(is_ok(step(a, 0, 50), err));
    auto first = kept(a);
    ASSERT_TRUE(is_ok(step(a, 100, 40), err));
    ASSERT_TRUE(is_ok(qe_session_rewind(a, 20, &err), err));
    EXPECT_EQ(qe_session_length(a), 20);
    EXPECT_EQ(qe_session_logits(a), nullptr);
    ASSERT_TRUE(is_ok(step(a, 20, 30), err));
    EXPECT_TRUE(qe_test::same_bits(kept(a), first));
    EXPECT_TRUE(has_status(qe_session_rewind(a, 51, &err), QE_E_ARGUMENT, err));
    EXPECT_TRUE(has_status(qe_session_rewind(a, -1, &err), QE_E_ARGUMENT, err));
    EXPECT_EQ(qe_session_length(a), 50);
}

TEST_F(Session, ArgumentsAreRefusedAndNothingChanges) {
    ASSERT_TRUE(is_ok(step(a, 0, 3), err));
    float row[4];
    int32_t bad_high = (int32_t)vocab, bad_low = -1;
    const int32_t *t = ids.data();
    const struct {
        const char *what;
        qe_step_item item;
        qe_status status;
    } cases[] = {
        {"no session", {nullptr, t, 1, 0, 0, nullptr, 0}, QE_E_ARGUMENT},
        {"no tokens", {a, nullptr, 1, 0, 0, nullptr, 0}, QE_E_ARGUMENT},
        {"zero tokens", {a, t, 0, 0, 0, nullptr, 0}, QE_E_ARGUMENT},
        {"id too high", {a, &bad_high, 1, 0, 0, nullptr, 0}, QE_E_ARGUMENT},
        {"negative id", {a, &bad_low, 1, 0, 0, nullptr, 0}, QE_E_ARGUMENT},
        {"unknown want", {a, t, 1, 3, 0, nullptr, 0}, QE_E_ARGUMENT},
        {"reserved", {a, t, 1, 0, 1, nullptr, 0}, QE_E_ARGUMENT},
        {"ALL without buffer", {a, t, 1, QE_WANT_ALL, 0, nullptr, 0}, QE_E_ARGUMENT},
        {"buffer without ALL", {a, t, 1, QE_WANT_LAST, 0, row, vocab}, QE_E_ARGUMENT},
        {"rows too short", {a, t, 1, QE_WANT_ALL, 0, row, vocab - 1}, QE_E_ARGUMENT},
        {"beyond the context", {a, t, 158, 0, 0, nullptr, 0}, QE_E_CAPACITY},
    };
    for (const auto &c : cases) {
        EXPECT_TRUE(has_status(qe_engine_step(engine, &c.item, 1, nullptr, &err), c.status, err)) << c.what;
        EXPECT_EQ(qe_session_length(a), 3) << c.what;
    }
    qe_step_item twice[2] = {{a, t, 1, 0, 0, nullptr, 0}, {a, t, 1, 0, 0, nullptr, 0}};
    EXPECT_TRUE(has_status(qe_engine_step(engine, twice, 2, nullptr, &err), QE_E_ARGUMENT, err));
    EXPECT_TRUE(has_status(qe_engine_step(engine, twice, 0, nullptr, &err), QE_E_ARGUMENT, err));
    EXPECT_TRUE(has_status(qe_engine_step(engine, twice, 3, nullptr, &err), QE_E_ARGUMENT, err));
    qe_session *third = nullptr;
    EXPECT_TRUE(has_status(qe_session_create(engine, &third, &err), QE_E_CAPACITY, err));
    EXPECT_EQ(third, nullptr);
    EXPECT_EQ(qe_engine_destroy(engine), QE_E_STATE);
}

TEST_F(Session, FullCacheLeavesSessionsAsTheyWere) {
    ASSERT_TRUE(is_ok(step(a, 0, 130), err));                        /* 3 of 4 pages */
    ASSERT_TRUE(is_ok(step(b, 0, 10), err));
    qe_step_item items[2] = {{b, ids.data() + 10, 20, QE_WANT_LAST, 0, nullptr, 0}, {a, ids.data(), 30, 0, 0, nullptr, 0}};
    ASSERT_TRUE(is_ok(qe_engine_step(engine, items, 2, nullptr, &err), err));     /* still within their pages */
    items[0].n_tokens = 40;                                          /* b would need a second page */
    items[1].session = b;
    EXPECT_TRUE(has_status(qe_engine_step(engine, items, 1, nullptr, &err), QE_E_CAPACITY, err));
    EXPECT_EQ(qe_session_length(b), 30);
    qe_engine_stats stats;
    qe_engine_get_stats(engine, &stats);
    EXPECT_EQ(stats.kv_tokens_used, 256);
    EXPECT_EQ(stats.sessions, 2);
    ASSERT_TRUE(is_ok(qe_session_rewind(a, 64, &err), err));
    EXPECT_TRUE(is_ok(qe_engine_step(engine, items, 1, nullptr, &err), err));
    EXPECT_EQ(qe_session_length(b), 70);
}

struct Countdown {
    int left, asked;
};
int count_down(void *ctx) {
    Countdown *c = (Countdown *)ctx;
    c->asked++;
    return c->left-- <= 0;
}

TEST_F(Session, CancelAtEveryPointThenGoOn) {
    ASSERT_TRUE(is_ok(step(a, 0, 5), err));
    ASSERT_TRUE(is_ok(step(b, 0, 5), err));
    ASSERT_TRUE(is_ok(step(b, 5, 70), err));
    auto expected = kept(b);
    int cancelled = 0;
    for (int point = 0;; point++) {
        Countdown countdown = {point, 0};
        qe_step_options o = {};
        o.struct_size = sizeof o;
        o.cancel = count_down;
        o.cancel_ctx = &countdown;
        qe_step_item item = {a, ids.data() + 5, 70, QE_WANT_LAST, 0, nullptr, 0};
        qe_status status = qe_engine_step(engine, &item, 1, &o, &err);
        if (!status) break;
        ASSERT_TRUE(has_status(status, QE_E_CANCELLED, err));
        EXPECT_EQ(qe_session_length(a), 5);
        cancelled++;
    }
    EXPECT_GE(cancelled, 3 * 2);                                     /* three pieces of at least two layers */
    EXPECT_TRUE(qe_test::same_bits(kept(a), expected));
}

TEST_F(Session, SamplesTheSameTextAgain) {
    std::vector<int32_t> texts[2];
    qe_sampling s = {};
    s.struct_size = sizeof s;
    s.temperature = 0.9f;
    s.top_k = 50;
    s.top_p = 0.95f;
    s.seed = 7;
    int32_t token;
    EXPECT_TRUE(has_status(qe_session_sample(a, &s, &token, nullptr, &err), QE_E_STATE, err));
    for (auto &text : texts) {
        ASSERT_TRUE(is_ok(qe_session_rewind(a, 0, &err), err));
        ASSERT_TRUE(is_ok(step(a, 0, 4), err));
        for (int i = 0; i < 20; i++) {
            float logprob = 1;
            ASSERT_TRUE(is_ok(qe_session_sample(a, &s, &token, &logprob, &err), err));
            EXPECT_LE(logprob, 0.0f);
            text.push_back(token);
            qe_step_item item = {a, &token, 1, QE_WANT_LAST, 0, nullptr, 0};
            ASSERT_TRUE(is_ok(qe_engine_step(engine, &item, 1, nullptr, &err), err));
        }
    }
    EXPECT_EQ(texts[0], texts[1]);
    qe_engine_stats stats;
    qe_engine_get_stats(engine, &stats);
    EXPECT_EQ(stats.decode_tokens, 40u);
    EXPECT_EQ(stats.prefill_tokens, 8u);
    EXPECT_EQ(stats.steps, 42u);
    EXPECT_EQ(stats.logit_rows, 42u);
}

int stop_loading(void *ctx, uint64_t done, uint64_t total) {
    EXPECT_LE(done, total);
    return --*(int *)ctx < 0;
}

TEST_F(Session, LoadingCanBeCancelled) {
    for (int after : {0, 1, 5}) {
        int left = after;
        qe_engine_options o = {};
        o.struct_size = sizeof o;
        o.progress = stop_loading;
        o.progress_ctx = &left;
        qe_engine *other = nullptr;
        EXPECT_TRUE(has_status(qe_engine_create(device, model, &o, &other, &err), QE_E_CANCELLED, err));
        EXPECT_EQ(other, nullptr);
    }
}

TEST_F(Session, EngineOptionsAreChecked) {
    const struct {
        const char *what;
        void (*set)(qe_engine_options *);
    } cases[] = {
        {"no struct_size", [](qe_engine_options *o) { o->struct_size = 0; }},
        {"flags", [](qe_engine_options *o) { o->flags = 1; }},
        {"context beyond the model", [](qe_engine_options *o) { o->context_tokens = 1 << 28; }},
        {"negative context", [](qe_engine_options *o) { o->context_tokens = -1; }},
        {"negative sessions", [](qe_engine_options *o) { o->max_sessions = -1; }},
        {"negative batch", [](qe_engine_options *o) { o->max_batch_tokens = -1; }},
        {"negative cache", [](qe_engine_options *o) { o->kv_tokens = -1; }},
    };
    for (const auto &c : cases) {
        qe_engine_options o = {};
        o.struct_size = sizeof o;
        c.set(&o);
        qe_engine *other = nullptr;
        EXPECT_TRUE(has_status(qe_engine_create(device, model, &o, &other, &err), QE_E_ARGUMENT, err)) << c.what;
        EXPECT_EQ(other, nullptr) << c.what;
    }
}

}  // namespace
