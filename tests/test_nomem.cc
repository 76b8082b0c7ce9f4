/* A sample of the allocations of open, create, prefill, decode and free fails, each once, at malloc itself, so that those
 * of jansson and PCRE2 count too: each failure is a named error, nothing leaks, and the next attempt works.
 *
 * jansson 2.14 needs two exceptions. It ignores a failed growth of its token buffer, so that characters are dropped (a
 * closing quote among them, after which it writes beyond its memory): those growths, powers of two from 32 up, are not
 * made to fail. And it calls other failed allocations syntax errors: inside it any error will do. PCRE2 goes on without
 * its just-in-time compiler when that finds no memory: inside it success will do. */
#include <link.h>

#include <atomic>
#include <cerrno>

#include <qengine/session.h>
#include <qengine/tokenizer.h>
#include "support.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define QE_TEST_SANITIZED 1
#endif

namespace {
std::atomic<bool> watching{false};
std::atomic<int64_t> calls{0}, fail_at{-1}, live{0};

struct Code {                     /* where a library's code lies */
    const char *name;
    uintptr_t   from, to;
    bool holds(const void *p) const { return (uintptr_t)p >= from && (uintptr_t)p < to; }
};
Code jansson = {"libjansson", 0, 0}, pcre2 = {"libpcre2", 0, 0};
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
bool refuse(const void *caller, size_t bytes) {
    if (!watching || calls.fetch_add(1) != fail_at) return false;
    failed_in = jansson.holds(caller) ? &jansson : pcre2.holds(caller) ? &pcre2 : nullptr;
    return !(failed_in == &jansson && bytes >= 32 && !(bytes & (bytes - 1)));
}
#endif
}  // namespace
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
void *malloc(size_t n) { return refuse(CALLER, n) ? nullptr : counted(__libc_malloc(n)); }
void *calloc(size_t n, size_t each) { return refuse(CALLER, n * each) ? nullptr : counted(__libc_calloc(n, each)); }
void *realloc(void *p, size_t n) {
    if (refuse(CALLER, n)) return nullptr;
    void *moved = __libc_realloc(p, n);
    return p ? moved : counted(moved);
}
void *aligned_alloc(size_t alignment, size_t n) { return refuse(CALLER, n) ? nullptr : counted(__libc_memalign(alignment, n)); }
int posix_memalign(void **out, size_t alignment, size_t n) {
    void *p = refuse(CALLER, n) ? nullptr : counted(__libc_memalign(alignment, n));
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

qe_status use(qe_device *device, const char *path, qe_error *err) {
    qe_model *model = nullptr;
    qe_engine *engine = nullptr;
    qe_session *session = nullptr;
    qe_status status = qe_model_open(path, nullptr, &model, err);
    const char text[] = "In the beginning";
    int32_t ids[64], token = 0;
    size_t count = 0;
    if (!status) status = qe_tokenizer_encode(qe_model_tokenizer(model), text, sizeof text - 1, nullptr, ids, 64, &count, err);
    qe_engine_options o = {};
    o.struct_size = sizeof o;
    o.context_tokens = 64;
    o.max_batch_tokens = 4;
    if (!status) status = qe_engine_create(device, model, &o, &engine, err);
    if (!status) status = qe_session_create(engine, &session, err);
    qe_step_item item = {session, ids, (int64_t)count, QE_WANT_LAST, 0, nullptr, 0};
    if (!status) status = qe_engine_step(engine, &item, 1, nullptr, err);
    qe_sampling sampling = {};
    sampling.struct_size = sizeof sampling;
    sampling.temperature = 1;
    if (!status) status = qe_session_sample(session, &sampling, &token, nullptr, err);
    item.tokens = &token;
    item.n_tokens = 1;
    if (!status) status = qe_engine_step(engine, &item, 1, nullptr, err);
    qe_session_destroy(session);
    EXPECT_EQ(qe_engine_destroy(engine), QE_OK);
    qe_model_close(model);
    return status;
}

class NoMemory : public testing::TestWithParam<const char *> {};

TEST_P(NoMemory, EveryAllocationMayFail) {
#ifdef QE_TEST_SANITIZED
    GTEST_SKIP() << "the sanitizer has its own malloc; the plain build runs this";
#endif
    qe_error err = {};
    qe_device *device = nullptr;
    qe_device_options d = {};
    d.struct_size = sizeof d;
    d.backend = QE_BACKEND_CPU;
    d.threads = 1;                 /* so that the order of allocations is the same each time */
    ASSERT_TRUE(qe_test::is_ok(qe_device_create(&d, &device, &err), err));
    for (Code *c : {&jansson, &pcre2}) ASSERT_EQ(dl_iterate_phdr(find_code, c), 1) << c->name;
    std::string path = std::string(QE_TEST_DATA) + "/" + GetParam();
    ASSERT_TRUE(qe_test::is_ok(use(device, path.c_str(), &err), err));   /* what is allocated once and kept, is now */
    calls = 0, live = 0, fail_at = -1, watching = true;
    qe_status status = use(device, path.c_str(), &err);
    watching = false;
    int64_t total = calls;
    ASSERT_TRUE(qe_test::is_ok(status, err));
    ASSERT_EQ(live, 0) << "leaks without any failure";
    ASSERT_GT(total, 100);
    /* Points lie close together where there are few, else at a stride that shares no factor with the loops inside. */
    int64_t stride = total > 600 ? total / 600 | 1 : 1, points = 0;
    int64_t jansson_points = 0, pcre2_points = 0;
    for (int64_t at = 0; at < total; at += at < 200 || at > total - 100 ? 1 : stride) {
        err = {};
        failed_in = nullptr;
        calls = 0, live = 0, fail_at = at, watching = true;
        status = use(device, path.c_str(), &err);
        watching = false;
        points++;
        ASSERT_EQ(live, 0) << "leak when allocation " << at << " of " << total << " fails";
        jansson_points += failed_in == &jansson;
        pcre2_points += failed_in == &pcre2;
        if (failed_in == &jansson || (failed_in == &pcre2 && !status)) continue;
        EXPECT_EQ(status, QE_E_NOMEM) << "allocation " << at << " of " << total << ": " << err.message;
        EXPECT_EQ(err.status, QE_E_NOMEM) << "allocation " << at;
        EXPECT_NE(err.message[0], 0) << "allocation " << at;
    }
    printf("%s: %lld of %lld allocations made to fail, %lld of them jansson's, %lld PCRE2's\n", GetParam(),
           (long long)points, (long long)total, (long long)jansson_points, (long long)pcre2_points);
    EXPECT_GT(jansson_points, 0);
    EXPECT_GT(pcre2_points, 0);
    EXPECT_TRUE(qe_test::is_ok(use(device, path.c_str(), &err), err));
    qe_device_destroy(device);
}

TEST(NoMemoryDevice, EveryAllocationMayFail) {
#ifdef QE_TEST_SANITIZED
    GTEST_SKIP() << "the sanitizer has its own malloc; the plain build runs this";
#endif
    for (int64_t at = 0;; at++) {
        qe_error err = {};
        qe_device *device = nullptr;
        qe_device_options d = {};
        d.struct_size = sizeof d;
        d.threads = 1;
        calls = 0, live = 0, fail_at = at, watching = true;
        qe_status status = qe_device_create(&d, &device, &err);
        qe_device_destroy(device);
        watching = false;
        EXPECT_EQ(live, 0) << at;
        if (!status) {
            EXPECT_GE(at, 1);
            break;
        }
        ASSERT_EQ(status, QE_E_NOMEM) << at;
        ASSERT_LT(at, 100);
    }
}

INSTANTIATE_TEST_SUITE_P(Models, NoMemory, testing::Values("tiny-llama", "tiny-gemma3"),
                         [](const auto &info) { return std::string(info.param).substr(5); });

}  // namespace
