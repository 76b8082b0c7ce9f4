// The cuda backend's device calls fail, one after the other: a table between the library and the emulated device refuses
// the n-th call, for every n of create, pack, upload, run, read back and destroy. Each failure has to come back as a
// named status, leave nothing allocated, and leave the linear usable, or after a lost device refusing.
#include <atomic>
#include <cstdlib>
#include <map>

#include <qengine/gemm.h>
#include "run/device.h"
#include "support.h"

#include "cuda_api.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define QE_TEST_SANITIZED 1
#endif

namespace {
std::atomic<bool> counting{false};
std::atomic<int64_t> host_blocks{0};
} // namespace

#ifndef QE_TEST_SANITIZED /* a sanitizer brings its own malloc */
extern "C" {
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);
static void *counted(void *p) {
    if (p && counting) host_blocks++;
    return p;
}
void *malloc(size_t n) { return counted(__libc_malloc(n)); }
void *calloc(size_t n, size_t each) { return counted(__libc_calloc(n, each)); }
void *aligned_alloc(size_t alignment, size_t n) { return counted(__libc_memalign(alignment, n)); }
void free(void *p) {
    if (p && counting) host_blocks--;
    __libc_free(p);
}
}
#endif

namespace {
using qe_test::has_status;

enum Failure { kNone = 0, kFault = 1001, kNoMemory = 1002, kLost = 1003 };
constexpr int kCallersDevice = 3; // what the host application had selected

struct Injection {
    int64_t calls = 0, fail_at = -1;
    Failure failure = kNone;
    bool lost = false, restore_failed = false, failed_in_count = false;
    int current = kCallersDevice;
    int64_t device_blocks = 0;
    const char *failed = nullptr;
    std::map<std::string, int64_t> seen;
};
Injection now;

// 0, or the code this call fails with.
int fails(const char *name) {
    now.seen[name]++;
    if (now.lost) return kLost;
    if (now.calls++ != now.fail_at) return 0;
    now.failed = name;
    now.lost = now.failure == kLost;
    return now.failure;
}
#define INJECT(name)                                                                                                   \
    if (int code = fails(name)) return code

int count(int *devices) {
    const int code = fails("count");
    now.failed_in_count = now.failed_in_count || code;
    if (code) return code;
    *devices = 4;
    return 0;
}
int current(int *ordinal) {
    INJECT("current");
    *ordinal = now.current;
    return 0;
}
int select(int ordinal) {
    const int code = fails("select");
    now.restore_failed = now.restore_failed || (code && ordinal == kCallersDevice);
    if (!code) now.current = ordinal;
    return code;
}
int facts(int ordinal, qk_device *out) {
    INJECT("facts");
    return qk_cuda_api_default.facts(ordinal, out);
}
int clusters(uint32_t blocks, int *at_once) {
    INJECT("clusters");
    return qk_cuda_api_default.clusters(blocks, at_once);
}
int alloc(void **out, size_t bytes) {
    INJECT("alloc");
    const int code = qk_cuda_api_default.alloc(out, bytes);
    if (!code) now.device_blocks++;
    return code;
}
// Whatever is answered, the block is gone: a runtime that fails to free reports an earlier fault, or has lost all.
int release(void *block) {
    const int code = fails("release");
    now.device_blocks--;
    qk_cuda_api_default.release(block);
    return code;
}
int copy(void *dst, const void *src, size_t bytes, void *stream) {
    INJECT("copy");
    return qk_cuda_api_default.copy(dst, src, bytes, stream);
}
int wait(void *stream) {
    INJECT("wait");
    return qk_cuda_api_default.wait(stream);
}
int launch(const qk_cuda_launch *l, void *stream) {
    INJECT("launch");
    return qk_cuda_api_default.launch(l, stream);
}
int tensor_map(void *map, const void *base, uint64_t cols, uint64_t rows, uint64_t pitch, uint32_t box_rows) {
    INJECT("tensor_map");
    return qk_cuda_api_default.tensor_map(map, base, cols, rows, pitch, box_rows);
}
const char *text(int code) { return code > 1000 ? "injected" : qk_cuda_api_default.text(code); }
bool out_of_memory(int code) { return code == kNoMemory || qk_cuda_api_default.out_of_memory(code); }
bool lost(int code) { return code == kLost; }

const qk_cuda_api failing = {count,   current, select, facts,      clusters, alloc,         release,
                             copy,    wait,    launch, tensor_map, text,     out_of_memory, lost};

struct Problem {
    const char *scheme;
    bool int8_input;
    int64_t n, k, tokens[2];
};
const Problem problems[] = {
    {"int8:channel:f32", true, 40, 64, {3, 33}},            // cuda/w8a8: mma.sync for m 3, wgmma for m 33
    {"int4:g32:f16", false, 40, 64, {2, 3}},                // cuda/w4a16
    {"int4:g32:u6:s=f16/g256:b=u6", true, 10, 256, {2, 3}}, // cuda/k
    {"int3:g64:f16:b=f16", true, 10, 256, {2, 3}},          // cuda/any
    {"int3:g64:f16:b=f16", false, 10, 256, {2, 3}},         // the same, dequantized first
};

struct Weight : qe_qtensor {
    std::vector<char> memory;
    std::vector<uint32_t> columns;
    std::vector<float> scales_of_columns, bias;
    qe_act input;
    const int64_t *tokens;
    explicit Weight(const Problem &p) : tokens(p.tokens) {
        qe_quant q;
        EXPECT_EQ(qe_quant_parse(p.scheme, &q, nullptr), QE_OK);
        memory.resize(qe_qtensor_bytes(&q, p.n, p.k, 0) + 64);
        char *base = (char *)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
        EXPECT_EQ(qe_qtensor_place(this, &q, p.n, p.k, 0, base, memory.size() - 64, nullptr), QE_OK);
        qe_test::Random random(7);
        std::vector<float> w((size_t)(p.n * p.k));
        for (float &v : w) v = random.uniform(-1, 1);
        EXPECT_EQ(qe_quantize(w.data(), p.k, 0, this, nullptr), QE_OK);
        for (int64_t i = 0; i < p.k; i++) columns.push_back((uint32_t)(p.k - 1 - i));
        scales_of_columns.assign((size_t)p.k, 2.0f);
        for (int64_t i = 0; i < p.n; i++) bias.push_back(random.uniform(-1, 1));
        order = columns.data();
        col_scale = scales_of_columns.data();
        memset(&input, 0, sizeof input);
        if (p.int8_input) {
            input.mode = QE_ACT_DYNAMIC;
            input.quant.code = QE_CODE_INT, input.quant.bits = 8, input.quant.scale = QE_NUM_F32;
            input.quant.group_n = 1, input.quant.zero_const = 128;
            if (quant.super_k) input.quant.group_k = quant.super_k;
        }
    }
};

// One linear on one device, all that lies in device memory, and results.
struct Use {
    qe_device *device = nullptr;
    qe_linear *linear = nullptr;
    void *x = nullptr, *y = nullptr, *workspace = nullptr;
    size_t workspace_bytes = 0;
    qe_error err;

    qe_status set_up(const Weight &w) {
        qe_device_options o = {};
        o.struct_size = sizeof o, o.backend = QE_BACKEND_CUDA;
        QE_TRY(qe_device_create(&o, &device, &err));
        qe_linear_options options = {};
        options.struct_size = sizeof options, options.act = &w.input, options.bias = w.bias.data();
        QE_TRY(qe_linear_create(device, &w, &options, &linear, &err));
        const int64_t m = w.tokens[1];
        workspace_bytes = qe_linear_workspace(linear, m, QE_CODE_F16);
        QE_TRY(qe_device_alloc(device, (size_t)(m * w.k) * 2, &x, &err));
        QE_TRY(qe_device_alloc(device, (size_t)(m * w.n) * 4, &y, &err));
        return qe_device_alloc(device, workspace_bytes, &workspace, &err);
    }
    qe_status run(const Weight &w, const uint16_t *input, int64_t m, float *output) {
        qk_queue q = qe_device_queue(device, nullptr);
        QE_TRY(device->backend->copy(&q, x, input, (size_t)(m * w.k) * 2, &err));
        qe_linear_args a = {};
        a.struct_size = sizeof a, a.m = m, a.x = x, a.ldx = w.k, a.x_type = QE_CODE_F16, a.y = y, a.ldy = w.n;
        a.workspace = workspace, a.workspace_bytes = workspace_bytes;
        QE_TRY(qe_linear_run(linear, &a, &err));
        QE_TRY(device->backend->copy(&q, output, y, (size_t)(m * w.n) * 4, &err));
        return device->backend->wait(&q, &err);
    }
    void tear_down() {
        if (device) {
            qe_device_release(device, x, 0);
            qe_device_release(device, y, 0);
            qe_device_release(device, workspace, 0);
        }
        qe_linear_destroy(linear);
        qe_device_destroy(device);
        *this = Use();
    }
};

struct Inputs {
    std::vector<uint16_t> x;
    std::vector<float> want[2], got;
};

// Sets up and runs; after a failure tries the step that failed once more. All that can be said afterwards is in the
// return value and in `now`: nothing here may allocate beyond what the library does.
struct Report {
    qe_status first = QE_OK, again = QE_OK, third = QE_OK;
    char message[sizeof(qe_error::message)] = "";
    bool wrong_bits = false, device_kept = true;
};
Report attempt(const Weight &w, Inputs &in) {
    Report r;
    Use use;
    auto failed = [&](qe_status status) {
        if (!status) return false;
        r.first = status;
        memcpy(r.message, use.err.message, sizeof r.message);
        return true;
    };
    auto kept = [&] { r.device_kept = r.device_kept && (now.current == kCallersDevice || now.restore_failed); };
    if (failed(use.set_up(w))) {
        kept();
        use.tear_down();
        now.current = kCallersDevice;
        r.again = use.set_up(w);
    }
    for (int i = 0; i < 2 && !r.again && use.workspace; i++) {
        qe_status status = use.run(w, in.x.data(), w.tokens[i], in.got.data());
        kept();
        if (failed(status)) {
            now.current = kCallersDevice;
            r.again = use.run(w, in.x.data(), w.tokens[i], in.got.data());
            r.third = use.run(w, in.x.data(), w.tokens[i], in.got.data());
        }
        if (!r.again) r.wrong_bits |= memcmp(in.got.data(), in.want[i].data(), in.want[i].size() * 4) != 0;
    }
    kept();
    use.tear_down();
    kept();
    return r;
}

void expect_named(const Report &r, Failure failure, const std::string &where) {
    const qe_status wanted = failure == kLost ? QE_E_DEVICE_LOST : failure == kNoMemory ? QE_E_NOMEM : QE_E_DEVICE;
    if (r.first) { // a device that cannot be counted is not there, whatever the reason
        EXPECT_TRUE(r.first == wanted || (now.failed_in_count && r.first == QE_E_DEVICE)) << where << qe_status_name(r.first) << " " << r.message;
        EXPECT_FALSE(std::string(r.message).empty()) << where;
        const bool again_refused = failure == kLost && !now.failed_in_count;
        if (again_refused) {
            EXPECT_EQ(r.again, QE_E_DEVICE_LOST) << where << "a lost device answered";
        } else if (failure != kLost) {
            EXPECT_EQ(r.again, QE_OK) << where << "not usable after " << r.message;
            EXPECT_EQ(r.third, QE_OK) << where;
        }
    } else { // only freeing has nobody to tell
        EXPECT_TRUE(std::string(now.failed) == "release" || std::string(now.failed) == "current" ||
                    std::string(now.failed) == "select")
            << where << "went unnoticed";
    }
    EXPECT_FALSE(r.wrong_bits) << where;
    EXPECT_TRUE(r.device_kept) << where << "the caller's device was not restored";
    EXPECT_EQ(now.device_blocks, 0) << where << "device memory leaked";
}

class CudaDevice : public testing::TestWithParam<Problem> {
protected:
    void SetUp() override { qk_cuda_api_replace(&failing); }
    void TearDown() override { qk_cuda_api_replace(nullptr); }
};

TEST_P(CudaDevice, EveryCallMayFail) {
    const Problem &p = GetParam();
    const Weight w(p);
    qe_test::Random random(3);
    Inputs in;
    for (int64_t i = 0; i < p.tokens[1] * p.k; i++) in.x.push_back((uint16_t)(0x2c00 + random.below(0x1000) + (i % 3 ? 0 : 0x8000)));
    in.got.resize((size_t)(p.tokens[1] * p.n));

    now = Injection();
    Use use; // without failures: what is right, and the emulator's own memory
    ASSERT_EQ(use.set_up(w), QE_OK) << use.err.message;
    for (int i = 0; i < 2; i++) {
        in.want[i].resize((size_t)(p.tokens[i] * p.n));
        ASSERT_EQ(use.run(w, in.x.data(), w.tokens[i], in.want[i].data()), QE_OK) << use.err.message;
    }
    use.tear_down();
    ASSERT_EQ(now.device_blocks, 0);
    for (const char *name : {"count", "current", "select", "facts", "clusters", "alloc", "release", "copy", "wait", "launch"})
        EXPECT_GT(now.seen[name], 0) << name << " is never called: nothing to fail";

    const int64_t calls = now.calls;
    int64_t cases = 0;
    for (Failure failure : {kFault, kNoMemory, kLost})
        for (int64_t at = 0; at < calls; at++, cases++) {
            now = Injection();
            for (const char *name : {"count", "current", "select", "facts", "clusters", "alloc", "release", "copy", "wait", "launch", "tensor_map"})
                now.seen[name] = 0; // so that counting needs no memory below
            now.fail_at = at, now.failure = failure;
            qk_cuda_api_replace(&failing); // forgets that the device was lost
            host_blocks = 0, counting = true;
            const Report r = attempt(w, in);
            counting = false;
            ASSERT_NE(now.failed, nullptr) << "call " << at << " of " << calls << " was never made";
            const std::string where = std::string(p.scheme) + ", call " + std::to_string(at) + " (" + now.failed + "), code " +
                                      std::to_string(failure) + ": ";
            expect_named(r, failure, where);
            EXPECT_EQ(host_blocks, 0) << where << "host memory leaked";
            if (HasFatalFailure() || HasNonfatalFailure()) return;
        }
    printf("%s: %lld failures injected\n", p.scheme, (long long)cases);
    EXPECT_GT(cases, 100);
}
const char *const names[] = {"W8A8", "W4A16", "K", "Any", "Dense"};
INSTANTIATE_TEST_SUITE_P(Layouts, CudaDevice, testing::ValuesIn(problems),
                         [](const testing::TestParamInfo<Problem> &info) { return std::string(names[info.index]); });

// A lost device stays lost for everything that uses it, whatever the table answers later, and others are not concerned.
TEST(CudaDeviceLost, IsSticky) {
    qk_cuda_api_replace(&failing);
    now = Injection();
    const Weight w(problems[0]);
    std::vector<uint16_t> x((size_t)(3 * w.k), 0x3c00);
    std::vector<float> y((size_t)(3 * w.n));
    Use use;
    ASSERT_EQ(use.set_up(w), QE_OK);
    ASSERT_EQ(use.run(w, x.data(), 3, y.data()), QE_OK);
    now.fail_at = now.calls, now.failure = kLost;
    EXPECT_EQ(use.run(w, x.data(), 3, y.data()), QE_E_DEVICE_LOST);
    now.lost = false; // from here on the table would answer
    const int64_t launches = now.seen["launch"];
    for (int i = 0; i < 3; i++) EXPECT_EQ(use.run(w, x.data(), 3, y.data()), QE_E_DEVICE_LOST);
    EXPECT_EQ(now.seen["launch"], launches) << "work was sent to a lost device";
    qe_device *second = nullptr;
    qe_device_options o = {};
    qe_error err;
    o.struct_size = sizeof o, o.backend = QE_BACKEND_CUDA;
    EXPECT_TRUE(has_status(qe_device_create(&o, &second, &err), QE_E_DEVICE_LOST, err));
    o.ordinal = 1;
    EXPECT_TRUE(has_status(qe_device_create(&o, &second, &err), QE_OK, err));
    qe_device_destroy(second);
    use.tear_down();
    EXPECT_EQ(now.device_blocks, 0);
    qk_cuda_api_replace(nullptr);
}
} // namespace
