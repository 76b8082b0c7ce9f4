// The tuning cache: what it holds, what a linear makes of it, and that no file of any kind changes a result.
#include "support.h"

#include <atomic>
#include <random>
#include <thread>

#include <sys/stat.h>
#include <sys/wait.h>

#include <qengine/num.h>
#include "device_memory.h"
#include "run/linear_tuning.h"

namespace {

struct Log {
    std::vector<std::string> lines;
    qe_log log{this, [](void *ctx, qe_log_level level, const char *line) {
                   if (level == QE_LOG_WARNING) static_cast<Log *>(ctx)->lines.push_back(line);
               }};
};
struct Device {
    qe_device *handle = nullptr;
    Log log;
    explicit Device(int backend, const char *tuning = nullptr, int threads = 4) {
        qe_device_options o{};
        qe_error err{};
        o.struct_size = sizeof o, o.backend = backend, o.threads = backend == QE_BACKEND_CUDA ? 0 : threads;
        o.tuning = tuning, o.log = &log.log;
        EXPECT_EQ(qe_device_create(&o, &handle, &err), QE_OK) << err.message;
    }
    ~Device() { qe_device_destroy(handle); }
    Device(const Device &) = delete;
};

struct Linear {
    qe_linear *handle = nullptr;
    int64_t n, k;
    Linear(const Device &d, const char *scheme, bool int8, int64_t n_, int64_t k_) : n(n_), k(k_) {
        qe_quant q;
        qe_error err{};
        qe_qtensor t{};
        EXPECT_EQ(qe_quant_parse(scheme, &q, &err), QE_OK) << err.message;
        std::vector<char> block(qe_qtensor_bytes(&q, n, k, 0) + 64);
        void *at = reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(block.data()) + 63) & ~uintptr_t{63});
        EXPECT_EQ(qe_qtensor_place(&t, &q, n, k, 0, at, block.size() - 64, &err), QE_OK) << err.message;
        std::mt19937 random(3);
        std::normal_distribution<float> normal(0.0f, 0.05f);
        std::vector<float> w(size_t(n * k));
        for (float &x : w) x = normal(random);
        EXPECT_EQ(qe_quantize(w.data(), k, 0, &t, &err), QE_OK) << err.message;
        qe_act act{};
        if (int8) {
            act.mode = QE_ACT_DYNAMIC, act.quant.code = QE_CODE_INT, act.quant.bits = 8, act.quant.scale = QE_NUM_F32;
            act.quant.group_n = 1, act.quant.zero_const = 128;
        }
        qe_linear_options o{};
        o.struct_size = sizeof o, o.act = &act;
        EXPECT_EQ(qe_linear_create(d.handle, &t, &o, &handle, &err), QE_OK) << err.message;
    }
    ~Linear() { qe_linear_destroy(handle); }
    Linear(const Linear &) = delete;
};

std::vector<float> run(const Device &d, const Linear &l, int64_t m) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0.1f, 1.0f);
    std::vector<float> x(size_t(m * l.k)), y(size_t(m * l.n));
    for (float &v : x) v = normal(random);
    const size_t bytes = qe_linear_workspace(l.handle, m, QE_CODE_F32);
    Memory workspace(d.handle, bytes), dx(d.handle, x.size() * 4, x.data()), dy(d.handle, y.size() * 4);
    qe_linear_args a{};
    qe_error err{};
    a.struct_size = sizeof a, a.m = m, a.x = dx.data, a.ldx = l.k, a.x_type = QE_CODE_F32, a.y = dy.data, a.ldy = l.n;
    a.workspace = workspace.data, a.workspace_bytes = bytes;
    EXPECT_EQ(qe_linear_run(l.handle, &a, &err), QE_OK) << err.message;
    dy.copy(y.data(), dy.data);
    return y;
}

qk_gemm problem(const Linear &l, int64_t m) {
    qk_gemm g;
    qk_x x;
    qe_linear_problem(l.handle, m, QE_CODE_F32, QE_CODE_F32, &g, &x);
    return g;
}
qk_plan plan(const Linear &l, int64_t m) {
    const qk_gemm g = problem(l, m);
    qk_plan p{};
    qe_error err{};
    EXPECT_EQ(qe_linear_plan(l.handle, &g, &p, &err), QE_OK) << err.message;
    return p;
}
bool same(const qk_plan &a, const qk_plan &b) {
    return a.row == b.row && a.variant == b.variant && a.splits == b.splits && a.block == b.block;
}
qe_tuning_entry entry(const Device &d, const Linear &l, int64_t m, const qk_tuning &t) {
    qe_tuning_entry e;
    const qk_gemm g = problem(l, m);
    qk_plan p{};
    EXPECT_EQ(qk_gemm_plan_tuned(&d.handle->facts, &g, &t, &p, nullptr), QE_OK);
    qe_tuning_key(d.handle, &g, &e);
    snprintf(e.row, sizeof e.row, "%s", p.row->name);
    e.tile_m = t.tile_m, e.units = t.units, e.us = 2, e.untuned_us = 3;
    return e;
}

struct Case {
    int backend;
    const char *name, *scheme;
    bool int8;
};
std::vector<Case> cases() {
    std::vector<Case> out = {{QE_BACKEND_CPU, "cpu w8a8", "int8:channel:f32", true},
                             {QE_BACKEND_CPU, "cpu w4a8", "int4:g128:u8:s=f16/channel", true},
                             {QE_BACKEND_CPU, "cpu q4_0", "int4:g32:f16", true},
                             {QE_BACKEND_CPU, "cpu w4a16", "int4:g128:f16:z=u8", false}};
    if (qk_backend_of(QK_CUDA) && qk_backend_of(QK_CUDA)->count() > 0) {
        out.push_back({QE_BACKEND_CUDA, "cuda w8a8", "int8:channel:f32", true});
        out.push_back({QE_BACKEND_CUDA, "cuda w4a8", "int4:g128:u8:s=f16/channel", true});
    }
    return out;
}
constexpr int64_t kN = 140, kK = 1024;

// Each plan that may be chosen, through a file: the linear takes it, the bits are those without a cache.
TEST(Tuning, LinearsTakeThePlanOfTheCacheAndKeepTheirBits) {
    int taken = 0;
    for (const Case &c : cases()) {
        const Device plain(c.backend);
        const Linear untuned(plain, c.scheme, c.int8, kN, kK);
        const int64_t m = c.backend == QE_BACKEND_CUDA ? 9 : 33;
        const std::vector<float> want = run(plain, untuned, m);
        qk_tuning tunings[QK_TUNINGS];
        const qk_gemm g = problem(untuned, m);
        const int count = qk_gemm_tunings(&plain.handle->facts, &g, tunings);
        ASSERT_GT(count, 1) << c.name;
        for (int i = 1; i < count; i++) {
            qe_test::TempFolder folder;
            const std::string path = folder.file("cache");
            const qe_tuning_entry e = entry(plain, untuned, m, tunings[i]);
            qe_error err{};
            ASSERT_EQ(qe_tuning_write(path.c_str(), &e, 1, &err), QE_OK) << err.message;
            const Device tuned(c.backend, path.c_str());
            EXPECT_TRUE(tuned.log.lines.empty()) << tuned.log.lines[0];
            const Linear l(tuned, c.scheme, c.int8, kN, kK);
            qk_plan p{};
            ASSERT_EQ(qk_gemm_plan_tuned(&plain.handle->facts, &g, &tunings[i], &p, nullptr), QE_OK);
            EXPECT_TRUE(same(plan(l, m), p)) << c.name << " plan " << i;
            EXPECT_FALSE(same(plan(l, m), plan(untuned, m))) << c.name << " plan " << i;
            EXPECT_TRUE(same(plan(l, 4 * m), plan(untuned, 4 * m))) << c.name << ": another bucket";
            EXPECT_EQ(run(tuned, l, m), want) << c.name << " plan " << i;
            const Linear other(tuned, c.scheme, c.int8, kN + 1, kK);
            EXPECT_EQ(qe_linear_choices(other.handle), 0) << c.name << ": another shape";
            taken++;
        }
        const Device more(c.backend == QE_BACKEND_CUDA ? QE_BACKEND_CPU : c.backend, nullptr, 3);
        const Linear elsewhere(more, c.scheme, c.int8, kN, kK);
        EXPECT_NE(std::string(entry(more, elsewhere, m, {}).device), entry(plain, untuned, m, {}).device);
    }
    std::printf("%d plans taken from a cache\n", taken);
}

TEST(Tuning, ExplainNamesIt) {
    for (const Case &c : cases()) {
        qe_test::TempFolder folder;
        const std::string path = folder.file("cache");
        const Device plain(c.backend);
        const Linear untuned(plain, c.scheme, c.int8, kN, kK);
        qk_tuning tunings[QK_TUNINGS];
        const qk_gemm g = problem(untuned, 16);
        ASSERT_GT(qk_gemm_tunings(&plain.handle->facts, &g, tunings), 1);
        const qe_tuning_entry e = entry(plain, untuned, 16, tunings[1]);
        ASSERT_EQ(qe_tuning_write(path.c_str(), &e, 1, nullptr), QE_OK);
        const Device tuned(c.backend, path.c_str());
        const Linear l(tuned, c.scheme, c.int8, kN, kK);
        auto told = [](const Linear &linear, int64_t m) {
            int count = 0;
            EXPECT_EQ(qe_linear_explain(
                          linear.handle, m,
                          [](void *ctx, const char *, const char *why) {
                              if (why && strstr(why, "tuned: ") && strstr(why, "1.50 times as fast")) ++*static_cast<int *>(ctx);
                          },
                          &count, nullptr),
                      QE_OK);
            return count;
        };
        EXPECT_EQ(told(l, 16), 1) << c.name;
        EXPECT_EQ(told(l, 9), 1) << c.name << ": the same bucket";
        EXPECT_EQ(told(l, 17), 0) << c.name;
        EXPECT_EQ(told(untuned, 16), 0) << c.name;
    }
}

// ---- files -------------------------------------------------------------------------------------------------------------
struct Files : testing::Test {
    qe_test::TempFolder folder;
    const std::string path = folder.file("cache");
    std::string good;
    qe_tuning_entry made{};
    void SetUp() override {
        const Device d(QE_BACKEND_CPU);
        const Linear l(d, "int8:channel:f32", true, kN, kK);
        made = entry(d, l, 16, {nullptr, 0, 1});
        ASSERT_EQ(qe_tuning_write(path.c_str(), &made, 1, nullptr), QE_OK);
        good = qe_test::read_file(path);
    }
    std::string with(const std::string &from, const std::string &to) const {
        const size_t at = good.find(from);
        EXPECT_NE(at, std::string::npos) << from;
        return good.substr(0, at) + to + good.substr(at + from.size());
    }
    // A device on this file, and what it logged.
    std::vector<std::string> warnings(const std::string &text, int choices) {
        folder.write("cache", text);
        const Device d(QE_BACKEND_CPU, path.c_str()), plain(QE_BACKEND_CPU);
        const Linear l(d, "int8:channel:f32", true, kN, kK), untuned(plain, "int8:channel:f32", true, kN, kK);
        EXPECT_EQ(qe_linear_choices(l.handle), choices) << text;
        EXPECT_EQ(run(d, l, 16), run(plain, untuned, 16));
        return d.log.lines;
    }
};

TEST_F(Files, OneThatCannotBeUsedIsOneWarning) {
    EXPECT_TRUE(warnings(good, 1).empty());
    const struct {
        std::string text;
        const char *named;
    } bad[] = {{"", ""},
               {"{", ""},
               {"[]", "no tuning cache"},
               {"GGUF\x03", ""},
               {with("qengine-tuning", "another"), "no tuning cache"},
               {with("\"version\": 1", "\"version\": 2"), "version 2"},
               {with("\"version\": 1", "\"version\": \"1\""), "version"},
               {with("\"kernels\": \"", "\"kernels\": \"0"), "other kernels"},
               {with("\"entries\"", "\"others\""), "entries"},
               {with("\"n\": 140", "\"n\": -1"), "entry 0"},
               {with("\"n\": 140", "\"n\": 1e999"), ""},
               {with("\"units\": 1", "\"units\": 99999999999999"), "entry 0"},
               {with("\"row\": \"cpu/panel\"", "\"row\": \"" + std::string(100, 'x') + "\""), "entry 0"},
               {with("\"us\": 2.0", "\"us\": 0.0"), "entry 0"},
               {with("\"us\": 2.0", "\"us\": null"), "entry 0"}};
    for (const auto &b : bad) {
        const std::vector<std::string> lines = warnings(b.text, 0);
        ASSERT_EQ(lines.size(), 1u) << b.text;
        EXPECT_NE(lines[0].find(path), std::string::npos) << lines[0];
        EXPECT_NE(lines[0].find(b.named), std::string::npos) << lines[0] << " for " << b.text;
        EXPECT_EQ(lines[0].find('\n'), std::string::npos) << lines[0];
    }
}
TEST_F(Files, CutShortAnywhereIsOneWarning) {
    const size_t end = good.find_last_of('}');
    for (size_t bytes = 0; bytes <= end; bytes += 7) {
        folder.write("cache", good.substr(0, bytes));
        const Device d(QE_BACKEND_CPU, path.c_str());
        EXPECT_EQ(d.log.lines.size(), 1u) << bytes << " bytes of " << good.size();
    }
}
// Well-formed, but no plan of this device: not taken, and the bits stay.
TEST_F(Files, EntriesThatDoNotFitCountAsNone) {
    for (const std::string &text :
         {with("\"row\": \"cpu/panel\"", "\"row\": \"cpu/decoded\""), with("\"row\": \"cpu/panel\"", "\"row\": \"cuda/w8a8_sm90\""),
          with("\"row\": \"cpu/panel\"", "\"row\": \"nothing\""), with("\"units\": 1", "\"units\": 5"),
          with("4 threads", "8 threads"), with("\"m\": 16", "\"m\": 15"), with("\"x\": \"int8\"", "\"x\": \"f16\"")})
        EXPECT_TRUE(warnings(text, 0).empty()) << text;
}
TEST_F(Files, MissingIsEmpty) {
    ASSERT_EQ(remove(path.c_str()), 0);
    const Device d(QE_BACKEND_CPU, path.c_str());
    EXPECT_TRUE(d.log.lines.empty());
    EXPECT_EQ(access(path.c_str(), F_OK), -1) << "only writers create it";
}
TEST_F(Files, FoldersAndUnreadableOnesAreOneWarning) {
    const Device folder_as_file(QE_BACKEND_CPU, folder.path().c_str());
    EXPECT_EQ(folder_as_file.log.lines.size(), 1u);
    if (geteuid() == 0) GTEST_SKIP() << "root reads every file";
    ASSERT_EQ(chmod(path.c_str(), 0), 0);
    const Device unreadable(QE_BACKEND_CPU, path.c_str());
    EXPECT_EQ(unreadable.log.lines.size(), 1u);
}

TEST_F(Files, WritingKeepsOthersAndReplacesItsOwn) {
    qe_tuning_entry more = made, again = made;
    more.m = 64, again.units = 2, again.us = 1;
    const qe_tuning_entry both[] = {more, again};
    ASSERT_EQ(qe_tuning_write(path.c_str(), both, 2, nullptr), QE_OK);
    qe_tuning *t = nullptr;
    qe_error err{};
    ASSERT_EQ(qe_tuning_read(path.c_str(), &t, &err), QE_OK) << err.message;
    ASSERT_EQ(t->count, 2);
    EXPECT_EQ(t->entries[0].m, 64);
    EXPECT_EQ(t->entries[1].m, 16);
    EXPECT_EQ(t->entries[1].units, 2);
    EXPECT_EQ(t->entries[1].us, 1);
    EXPECT_EQ(t->entries[1].untuned_us, 3);
    EXPECT_STREQ(t->entries[1].device, made.device);
    EXPECT_STREQ(t->entries[1].scheme, made.scheme);
    qe_tuning_free(t);
}
TEST_F(Files, WritingStartsAnewAfterOtherKernelsAndLeavesForeignFilesAlone) {
    folder.write("cache", with("\"kernels\": \"", "\"kernels\": \"0"));
    ASSERT_EQ(qe_tuning_write(path.c_str(), &made, 1, nullptr), QE_OK);
    EXPECT_EQ(qe_test::read_file(path), good);
    for (const std::string &text : {std::string("my letters"), good.substr(0, good.size() / 2), with("\"version\": 1", "\"version\": 2")}) {
        folder.write("cache", text);
        qe_error err{};
        EXPECT_NE(qe_tuning_write(path.c_str(), &made, 1, &err), QE_OK);
        EXPECT_NE(err.message[0], 0);
        EXPECT_EQ(qe_test::read_file(path), text);
    }
}
TEST_F(Files, WhereNothingCanBeWrittenIsAnErrorAndKeepsTheOld) {
    qe_error err{};
    EXPECT_EQ(qe_tuning_write(folder.file("no/such/cache").c_str(), &made, 1, &err), QE_E_IO);
    EXPECT_EQ(qe_tuning_write("/proc/cache", &made, 1, &err), QE_E_IO) << err.message;
    EXPECT_NE(std::string(err.message).find("create"), std::string::npos) << err.message;
    if (geteuid() == 0) GTEST_SKIP() << "root writes to every folder";
    ASSERT_EQ(chmod(folder.path().c_str(), 0555), 0);
    EXPECT_EQ(qe_tuning_write(path.c_str(), &made, 1, &err), QE_E_IO);
    EXPECT_EQ(chmod(folder.path().c_str(), 0755), 0);
    EXPECT_EQ(qe_test::read_file(path), good);
}

// Threads and processes that write at once, and one that reads all the while: each entry arrives, no reader sees a part.
TEST_F(Files, WritersAtOnceLoseNothing) {
    enum { WRITERS = 4, EACH = 12 };
    auto write = [&](int who) {
        for (int i = 0; i < EACH; i++) {
            qe_tuning_entry e = made;
            e.n = 1000 + who * EACH + i;
            if (qe_tuning_write(path.c_str(), &e, 1, nullptr)) return false;
        }
        return true;
    };
    const pid_t child = fork();
    if (child == 0) _exit(write(0) ? 0 : 1);
    ASSERT_GT(child, 0);
    std::atomic<bool> done{false};
    int reads = 0, broken = 0;
    std::thread reader([&] {
        while (!done) {
            qe_tuning *t = nullptr;
            qe_error err{};
            if (qe_tuning_read(path.c_str(), &t, &err)) broken++;
            qe_tuning_free(t);
            reads++;
        }
    });
    std::vector<std::thread> writers;
    std::atomic<int> wrote{0};
    for (int who = 1; who < WRITERS; who++) writers.emplace_back([&, who] { wrote += write(who); });
    for (std::thread &w : writers) w.join();
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    done = true;
    reader.join();
    EXPECT_EQ(status, 0);
    EXPECT_EQ(wrote, WRITERS - 1);
    EXPECT_EQ(broken, 0);
    EXPECT_GT(reads, 0);
    qe_tuning *t = nullptr;
    ASSERT_EQ(qe_tuning_read(path.c_str(), &t, nullptr), QE_OK);
    EXPECT_EQ(t->count, 1 + WRITERS * EACH);
    qe_tuning_free(t);
    EXPECT_EQ(system(("test $(ls '" + folder.path() + "' | wc -l) = 1").c_str()), 0) << "temporary files are left";
}

} // namespace
