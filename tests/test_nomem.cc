/* Every allocation of opening a model, creating an engine, prefill, sampling, decode and freeing fails, each once, at
 * malloc itself, so that those of jansson and PCRE2 count too: each failure is QE_E_NOMEM, nothing leaks, and what was
 * there before is usable afterwards.
 *
 * Two exceptions: PCRE2 goes on without its just-in-time compiler when that finds no memory, and the C library's
 * qsort() sorts in place then; so do we. A quota file of the system that cannot be opened is taken for no quota. */
#include <link.h>

#include <atomic>
#include <cerrno>
#include <functional>

#include <qengine/session.h>
#include <qengine/tokenizer.h>
#include "support.h"
#include "test_format_builders.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define QE_TEST_SANITIZED 1
#endif

namespace {
std::atomic<bool> watching{false};
std::atomic<int64_t> calls{0}, fail_at{-1}, live{0};

struct Code { /* where a library's code lies */
    const char *name;
    uintptr_t from, to;
    bool holds(const void *p) const { return (uintptr_t)p >= from && (uintptr_t)p < to; }
};
Code jansson = {"libjansson", 0, 0}, pcre2 = {"libpcre2", 0, 0}, libc = {"libc.so", 0, 0};
std::atomic<const Code *> failed_in{nullptr};

int find_code(dl_phdr_info *info, size_t, void *code) {
    Code *c = (Code *)code;
    if (!strstr(info->dlpi_name, c->name)) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD || !(info->dlpi_phdr[i].p_flags & PF_X)) continue;
        c->from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        c->to = c->from + info->dlpi_phdr[i].p_memsz;
    }
    return 1;
}

#ifndef QE_TEST_SANITIZED /* a sanitizer brings its own malloc */
bool refuse(const void *caller) {
    if (!watching || calls.fetch_add(1) != fail_at) return false;
    failed_in = jansson.holds(caller) ? &jansson : pcre2.holds(caller) ? &pcre2 : libc.holds(caller) ? &libc : nullptr;
    return true;
}
#endif
} // namespace
#define CALLER __builtin_return_address(0)

#ifndef QE_TEST_SANITIZED
extern "C" {
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

static void *counted(void *p) {
    if (p && watching) live++;
    return p;
}
void *malloc(size_t n) {
    return refuse(CALLER) ? nullptr : counted(__libc_malloc(n));
}
void *calloc(size_t n, size_t each) {
    return refuse(CALLER) ? nullptr : counted(__libc_calloc(n, each));
}
void *realloc(void *p, size_t n) {
    if (refuse(CALLER)) return nullptr;
    void *moved = __libc_realloc(p, n);
    return p ? moved : counted(moved);
}
void *aligned_alloc(size_t alignment, size_t n) {
    return refuse(CALLER) ? nullptr : counted(__libc_memalign(alignment, n));
}
int posix_memalign(void **out, size_t alignment, size_t n) {
    void *p = refuse(CALLER) ? nullptr : counted(__libc_memalign(alignment, n));
    if (!p) return ENOMEM;
    *out = p;
    return 0;
}
void free(void *p) {
    if (p && watching) live--;
    __libc_free(p);
}
}
#endif

namespace {

struct Points {
    int64_t all = 0, jansson = 0, pcre2 = 0, went_on = 0;
};

/* Runs `work` once for every allocation it makes, with that one failing. `work` frees all it made. */
Points each_fails(const char *name, const std::function<qe_status(qe_error *)> &work) {
    Points points;
    qe_error err = {};
    EXPECT_TRUE(qe_test::is_ok(work(&err), err)) << name; /* what is allocated once and kept, is now */
    calls = 0, live = 0, fail_at = -1, watching = true;
    qe_status status = work(&err);
    watching = false;
    int64_t total = calls;
    EXPECT_TRUE(qe_test::is_ok(status, err)) << name;
    EXPECT_EQ(live, 0) << name << " leaks without any failure";
    for (int64_t at = 0; at < total; at++) {
        err = {};
        failed_in = nullptr;
        calls = 0, live = 0, fail_at = at, watching = true;
        status = work(&err);
        watching = false;
        points.all++;
        points.jansson += failed_in == &jansson;
        points.pcre2 += failed_in == &pcre2;
        EXPECT_GT(calls, at) << name << ": allocation " << at << " of " << total << " was not reached";
        EXPECT_EQ(live, 0) << name << ": leak when allocation " << at << " of " << total << " fails";
        if ((failed_in == &pcre2 || failed_in == &libc) && !status) {
            points.went_on++;
            continue;
        }
        EXPECT_EQ(status, QE_E_NOMEM) << qe_status_name(status) << " " << name << ": allocation " << at << " of "
                                      << total << ": " << err.message;
        EXPECT_EQ(err.status, status) << name << ": allocation " << at;
        EXPECT_NE(err.message[0], 0) << name << ": allocation " << at;
        if (testing::Test::HasFailure()) break;
    }
    EXPECT_TRUE(qe_test::is_ok(work(&err), err)) << name << " after the failures";
    return points;
}

struct Counts {
    Points open, create, run;
    void print(const char *name) const {
        printf(
            "%s: allocations made to fail: open %lld (%lld jansson's, %lld PCRE2's), engine %lld, run %lld; PCRE2 or "
            "qsort did without one %lld times\n",
            name, (long long)open.all, (long long)open.jansson, (long long)open.pcre2, (long long)create.all,
            (long long)run.all, (long long)(open.went_on + create.went_on + run.went_on));
    }
};

qe_engine_options small_engine() {
    qe_engine_options o = {};
    o.struct_size = sizeof o;
    o.context_tokens = 64;
    o.max_batch_tokens = 4;
    return o;
}

qe_status encode(const qe_model *model, const char *text, std::vector<int32_t> *ids, qe_error *err) {
    const qe_tokenizer *t = qe_model_tokenizer(model);
    int32_t out[64];
    size_t count = 0;
    if (!t) {
        *ids = {1, 2, 3, 4, 5};
        return QE_OK;
    }
    qe_status status = qe_tokenizer_encode(t, text, strlen(text), nullptr, out, 64, &count, err);
    if (!status) ids->assign(out, out + count);
    return status;
}

/* Prefill, sample, decode, rewind, decode again. */
qe_status generate(qe_engine *engine, const std::vector<int32_t> &prompt, qe_error *err) {
    qe_session *session = nullptr;
    int32_t token = 0;
    qe_sampling sampling = {};
    sampling.struct_size = sizeof sampling;
    sampling.temperature = 1;
    sampling.top_p = 0.9f;
    qe_status status = qe_session_create(engine, &session, err);
    qe_step_item item = {session, prompt.data(), (int64_t)prompt.size(), QE_WANT_LAST, 0, nullptr, 0};
    if (!status) status = qe_engine_step(engine, &item, 1, nullptr, err);
    for (int i = 0; i < 2 && !status; i++) {
        status = qe_session_sample(session, &sampling, &token, nullptr, err);
        item.tokens = &token;
        item.n_tokens = 1;
        if (!status) status = qe_engine_step(engine, &item, 1, nullptr, err);
        if (!status && !i) status = qe_session_rewind(session, qe_session_length(session) - 1, err);
        if (!status && !i) status = qe_engine_step(engine, &item, 1, nullptr, err);
    }
    qe_session_destroy(session);
    return status;
}

class NoMemory : public testing::Test {
  protected:
    void SetUp() override {
#ifdef QE_TEST_SANITIZED
        GTEST_SKIP() << "the sanitizer has its own malloc; the plain build runs this";
#endif
        for (Code *c : {&jansson, &pcre2, &libc}) ASSERT_EQ(dl_iterate_phdr(find_code, c), 1) << c->name;
        qe_device_options d = {};
        d.struct_size = sizeof d;
        d.backend = QE_BACKEND_CPU;
        d.threads = 1; /* so that the order of allocations is the same each time */
        ASSERT_TRUE(qe_test::is_ok(qe_device_create(&d, &device, &err), err));
    }
    void TearDown() override { qe_device_destroy(device); }

    /* All of the life of a model at `path`; a generation after every failed one. */
    void check(const char *name, const std::string &path, const char *prompt, Counts *counts) {
        counts->open = each_fails("open", [&](qe_error *e) {
            qe_model *m = nullptr;
            qe_status status = qe_model_open(path.c_str(), nullptr, &m, e);
            qe_model_close(m);
            return status;
        });
        qe_model *model = nullptr;
        ASSERT_TRUE(qe_test::is_ok(qe_model_open(path.c_str(), nullptr, &model, &err), err));
        qe_engine_options o = small_engine();
        qe_engine *engine = nullptr;
        counts->create = each_fails("engine", [&](qe_error *e) {
            qe_engine *made = nullptr;
            qe_status status = qe_engine_create(device, model, &o, &made, e);
            EXPECT_EQ(qe_engine_destroy(made), QE_OK);
            return status;
        });
        ASSERT_TRUE(qe_test::is_ok(qe_engine_create(device, model, &o, &engine, &err), err));
        std::vector<int32_t> ids;
        ASSERT_TRUE(qe_test::is_ok(encode(model, prompt, &ids, &err), err));
        ASSERT_GT(ids.size(), 4u); /* more than one piece of max_batch_tokens */
        counts->run = each_fails("run", [&](qe_error *e) {
            const qe_tokenizer *t = qe_model_tokenizer(model);
            int32_t out[64];
            size_t count = 0;
            qe_status status = t ? qe_tokenizer_encode(t, prompt, strlen(prompt), nullptr, out, 64, &count, e) : QE_OK;
            return status ? status : generate(engine, ids, e);
        });
        qe_engine_destroy(engine);
        qe_model_close(model);
        counts->print(name);
        EXPECT_GT(counts->open.all, 20);
        EXPECT_GT(counts->create.all, 20);
        EXPECT_GT(counts->run.all, 0);
    }
    qe_error err = {};
    qe_device *device = nullptr;
};

TEST_F(NoMemory, BundledLlama) {
    Counts c;
    check("tiny-llama", QE_TEST_DATA "/tiny-llama", "In the beginning", &c);
    EXPECT_GT(c.open.jansson, 1000);
    EXPECT_GT(c.open.pcre2, 0);
}

TEST_F(NoMemory, BundledGemma) {
    Counts c;
    check("tiny-gemma3", QE_TEST_DATA "/tiny-gemma3", "In the beginning", &c);
    EXPECT_GT(c.open.jansson, 1000);
}

/* ---- made here: what the bundled models do not pass through ---------------------------------------------------- */
using namespace build;
using model_size::kFfn, model_size::kHidden, model_size::kVocab;

TEST_F(NoMemory, GgufWithScores) {
    qe_test::TempFolder folder;
    Counts c;
    check("GGUF", folder.write("m.gguf", llama_gguf().bytes()), "the cat and the dog", &c);
}

/* Two shards and their index, no tokenizer. */
TEST_F(NoMemory, ShardedSafetensors) {
    qe_test::TempFolder folder;
    std::string head[2] = {"{", "{"}, data[2], index = "{\"weight_map\":{";
    auto add = [&](int shard, const std::string &name, std::vector<int> dims) {
        size_t count = 1, begin = data[shard].size();
        std::string shape;
        for (int d : dims) count *= (size_t)d, shape += (shape.empty() ? "" : ",") + std::to_string(d);
        data[shard] += halves(count);
        head[shard] += (head[shard].size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"F16\",\"shape\":[" + shape +
                       "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(data[shard].size()) + "]}";
        index += (index.back() == '{' ? "\"" : ",\"") + name + "\":\"s" + std::to_string(shard) + ".safetensors\"";
    };
    add(0, "model.embed_tokens.weight", {kVocab, kHidden});
    add(1, "model.norm.weight", {kHidden});
    for (int l = 0; l < 2; l++) {
        std::string p = "model.layers." + std::to_string(l) + ".";
        for (const char *n : {"q_proj", "o_proj"}) add(l, p + "self_attn." + n + ".weight", {kHidden, kHidden});
        for (const char *n : {"k_proj", "v_proj"}) add(l, p + "self_attn." + n + ".weight", {kHidden / 2, kHidden});
        for (const char *n : {"gate_proj", "up_proj"}) add(l, p + "mlp." + n + ".weight", {kFfn, kHidden});
        add(l, p + "mlp.down_proj.weight", {kHidden, kFfn});
        for (const char *n : {"input_layernorm", "post_attention_layernorm"}) add(l, p + n + ".weight", {kHidden});
    }
    for (int s = 0; s < 2; s++)
        folder.write("s" + std::to_string(s) + ".safetensors", safetensors(head[s] + "}", data[s]));
    folder.write("model.safetensors.index.json", index + "}}");
    std::string config = folder.write(
        "config.json",
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"
        "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"rms_norm_eps\":1e-5,\"max_position_embeddings\":128,"
        "\"vocab_size\":40,\"rope_theta\":10000.0,\"hidden_act\":\"silu\",\"tie_word_embeddings\":true}");
    Counts c;
    check("sharded", config.substr(0, config.rfind('/')), "", &c);
    EXPECT_GT(c.open.jansson, 50);
}

TEST(NoMemoryDevice, WithOneThreadAndWithThree) {
#ifdef QE_TEST_SANITIZED
    GTEST_SKIP() << "the sanitizer has its own malloc; the plain build runs this";
#endif
    ASSERT_EQ(dl_iterate_phdr(find_code, &libc), 1);
    for (int threads : {1, 3}) {
        Points points = each_fails("device", [&](qe_error *e) {
            qe_device *device = nullptr;
            qe_device_options d = {};
            d.struct_size = sizeof d;
            d.backend = QE_BACKEND_CPU;
            d.threads = threads;
            qe_status status = qe_device_create(&d, &device, e);
            qe_device_destroy(device);
            return status;
        });
        printf("device with %d threads: %lld allocations made to fail\n", threads, (long long)points.all);
        EXPECT_GT(points.all, 0);
    }
}

} // namespace
