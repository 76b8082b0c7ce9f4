/* qquant as a user meets it: lists, exits, one line for each mistake, and runs that are killed and resumed. */
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "program_rig.h"
#include "quantize_rig.h"

namespace {

using quantize_rig::contents;
const std::string program = QE_TEST_BIN "/qquant", tiny = quantize_rig::tiny;

using program_rig::Result;
using program_rig::wait_for;
pid_t start(const std::vector<std::string> &args, const std::string &out, const std::string &err) {
    return program_rig::start(program, args, out, err);
}
size_t lines(const std::string &text) { return (size_t)std::count(text.begin(), text.end(), '\n'); }

class Qquant : public testing::Test {
protected:
    void SetUp() override {
        if (access(program.c_str(), X_OK)) GTEST_SKIP() << program << " was not built (QE_BUILD_PROGRAMS is off, or build all targets)";
    }
    Result run(const std::vector<std::string> &args) {
        int code = wait_for(start(args, folder.file("stdout"), folder.file("stderr")));
        return {code, qe_test::read_file(folder.file("stdout")), qe_test::read_file(folder.file("stderr"))};
    }
    qe_test::TempFolder folder;
};

TEST_F(Qquant, ListsAndPlans) {
    Result list = run({"--list"});
    EXPECT_EQ(list.code, 0);
    for (const char *word : {"w4a16-g128", "mxfp4", "gptq", "adaround", "awq", "compressed-tensors", "gguf", "qengine"})
        EXPECT_NE(list.out.find(word), std::string::npos) << word;
    Result dry = run({"--model", tiny, "--scheme", "w4a16-g128", "--dry-run"});
    EXPECT_EQ(dry.code, 0) << dry.err;
    EXPECT_NE(dry.out.find("28 linears"), std::string::npos) << dry.out;
    EXPECT_NE(dry.out.find("4.1250 bits"), std::string::npos) << dry.out;
    Result explain = run({"--model", tiny, "--scheme", "w4a16-g128", "--explain"});
    EXPECT_EQ(explain.code, 0) << explain.err;
    EXPECT_EQ(lines(explain.out), 30u) << explain.out;
}

TEST_F(Qquant, WritesReportsAndCompares) {
    Result r = run({"--model", tiny, "--scheme", "w4a16-g128", "--out", folder.file("m")});
    ASSERT_EQ(r.code, 0) << r.err;
    EXPECT_EQ(r.err, "");
    EXPECT_NE(r.out.find("model.layers.3.mlp.down_proj"), std::string::npos);
    Result again = run({"--model", tiny, "--scheme", "w4a16-g128", "--out", folder.file("m")});
    EXPECT_EQ(again.code, 1);
    EXPECT_EQ(lines(again.err), 1u) << again.err;
    Result compare = run({"--compare", tiny, "--model", folder.file("m"), "--text", QE_TEST_DATA "/calib.txt"});
    EXPECT_EQ(compare.code, 0) << compare.err;
    EXPECT_NE(compare.out.find("KL mean 0.00"), std::string::npos) << compare.out;
}

/* The recipe of a budget, run again, makes the same folder; --explain shows what was chosen from. */
TEST_F(Qquant, BudgetAndItsRecipe) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "minutes under ThreadSanitizer; test_quantize_flow runs the same layer loop on threads";
#endif
#if defined(__SANITIZE_ADDRESS__)
    std::vector<std::string> calibration = {"--calib", QE_TEST_DATA "/calib.txt", "--calib-sequences", "2", "--calib-tokens", "64"};
    const std::string text = folder.write("text", qe_test::read_file(QE_TEST_DATA "/calib.txt").substr(0, 1000));
#else
    std::vector<std::string> calibration = {"--calib", QE_TEST_DATA "/calib.txt", "--calib-sequences", "2"};
    const std::string text = QE_TEST_DATA "/calib.txt";
#endif
    auto with = [&](std::vector<std::string> args) {
        args.insert(args.end(), calibration.begin(), calibration.end());
        return run(args);
    };
    Result explain = with({"--model", tiny, "--budget", "4.5", "--scheme", "w3a16-g128,w4a16-g128,w8a16-g128", "--explain"});
    ASSERT_EQ(explain.code, 0) << explain.err;
    EXPECT_EQ(std::count(explain.out.begin(), explain.out.end(), '*'), 16);
    EXPECT_NE(explain.out.find("model.layers.3.mlp.down_proj"), std::string::npos);
    Result timed = with({"--model", tiny, "--budget", "1e9ms", "--scheme", "int4:g128:f16@a8,w8a16-g128", "--explain", "--threads", "1"});
    ASSERT_EQ(timed.code, 0) << timed.err;
    EXPECT_EQ(std::count(timed.out.begin(), timed.out.end(), '*'), 16) << timed.out;
    EXPECT_NE(timed.out.find(" ms for one token's linears, measured"), std::string::npos) << timed.out;
    Result first = with({"--model", tiny, "--budget", "4.5", "--out", folder.file("m"), "--recipe-out", folder.file("r.json"), "--text", text});
    ASSERT_EQ(first.code, 0) << first.err;
    EXPECT_NE(first.out.find("KL mean 0.00"), std::string::npos) << first.out;
    Result second = with({"--model", tiny, "--scheme", folder.file("r.json"), "--out", folder.file("n"), "--text", text});
    ASSERT_EQ(second.code, 0) << second.err;
    EXPECT_EQ(contents(folder.file("m")), contents(folder.file("n")));
}

TEST_F(Qquant, ComparesAsManyTokensAsAsked) {
    const std::vector<std::string> command = {"--compare", tiny, "--model", tiny, "--text", QE_TEST_DATA "/heldout.txt", "--text-tokens"};
    for (const char *tokens : {"1", "511", "512", "600"}) {     /* a window holds 511 behind BOS */
        auto args = command;
        args.push_back(tokens);
        Result r = run(args);
        EXPECT_EQ(r.code, 0) << r.err;
        EXPECT_EQ(r.out.rfind("tokens " + std::string(tokens) + " ", 0), 0u) << r.out;
    }
}

/* bench/plot.py on a report and on the golden table: both pictures, and one line for what is neither. */
TEST_F(Qquant, QualityIsDrawn) {
    const std::string python = QE_SOURCE_DIR "/build/venv/bin/python", plot = python + " " QE_SOURCE_DIR "/bench/plot.py ";
    if (system((python + " -c 'import matplotlib' >/dev/null 2>&1").c_str()) != 0)
        GTEST_SKIP() << "no matplotlib: python3 -m venv build/venv && build/venv/bin/pip install matplotlib";
    Result r = run({"--model", tiny, "--scheme", "w4a16-g128", "--out", folder.file("m"), "--quiet"});
    ASSERT_EQ(r.code, 0) << r.err;
    const std::string quiet = " >" + folder.file("out") + " 2>&1";
    const std::string files = QE_TEST_GOLDEN "/quality.csv " + folder.file("m/quantization_report.json");
    ASSERT_EQ(system((plot + files + " --out " + folder.file("p") + quiet).c_str()), 0) << qe_test::read_file(folder.file("out"));
    EXPECT_NE(qe_test::read_file(folder.file("p-quality.svg")).find("<svg"), std::string::npos);
    EXPECT_NE(qe_test::read_file(folder.file("p-layers.svg")).find("<svg"), std::string::npos);
    for (const char *name : {"wrong.json", "wrong.csv"}) {
        const std::string wrong = folder.write(name, std::string("model,name\ntiny,x\n"));
        EXPECT_NE(system((plot + wrong + quiet).c_str()), 0) << name;
        EXPECT_NE(qe_test::read_file(folder.file("out")).find(name), std::string::npos) << name;
        EXPECT_EQ(lines(qe_test::read_file(folder.file("out"))), 1u) << qe_test::read_file(folder.file("out"));
    }
}

TEST_F(Qquant, MistakesGetOneLine) {
    folder.write("empty.txt", "");
    folder.write("short.txt", "Hi");
    ASSERT_EQ(mkdir(folder.file("nan").c_str(), 0700), 0);
    for (const char *name : {"config.json", "tokenizer.json", "model.safetensors"}) {
        std::string bytes = qe_test::read_file(tiny + "/" + name);
        if (!strcmp(name, "model.safetensors")) {
            const uint16_t nan = 0x7e00;
            uint64_t header = 0, at = 0;
            memcpy(&header, bytes.data(), 8);
            size_t entry = bytes.find("\"model.layers.2.mlp.up_proj.weight\""), offsets = bytes.find("data_offsets", entry);
            ASSERT_NE(entry, std::string::npos);
            at = strtoull(bytes.c_str() + bytes.find('[', offsets) + 1, nullptr, 10);
            memcpy(&bytes[8 + header + at + 2 * 777], &nan, 2);
        }
        folder.write((std::string("nan/") + name).c_str(), bytes);
    }
    const struct { std::vector<std::string> args; int code; const char *says; } cases[] = {
        {{}, 2, "--model"},
        {{"--model"}, 2, "missing"},
        {{"--model", tiny}, 2, "--scheme"},
        {{"--model", tiny, "--scheme", "w8a8"}, 2, "--out"},
        {{"--model", tiny, "--scheme", "w8a8", "--nonsense"}, 2, "--nonsense"},
        {{"--model", tiny, "--scheme", "w8a8", "--out", "x", "--threads", "none"}, 2, "none"},
        {{"--compare", tiny, "--model", tiny}, 2, "--text"},
        {{"--model", tiny, "--scheme", "w8a8", "--out", "x", "--text", "x", "--text-tokens", "9"}, 2, "--compare"},
        {{"--model", tiny, "--budget", "many", "--calib", QE_TEST_DATA "/calib.txt", "--out", "x"}, 2, "many"},
        {{"--model", tiny, "--budget", "4.5X", "--calib", QE_TEST_DATA "/calib.txt", "--out", "x"}, 2, "4.5X"},
        {{"--model", tiny, "--budget", "4xs", "--calib", QE_TEST_DATA "/calib.txt", "--out", "x"}, 2, "4xs"},
        {{"--model", tiny, "--budget", "0.001us", "--calib", QE_TEST_DATA "/calib.txt", "--out", folder.file("a")}, 1, "ms a token"},
        {{"--model", tiny, "--budget", "-1", "--calib", QE_TEST_DATA "/calib.txt", "--out", "x"}, 2, "-1"},
        {{"--model", tiny, "--budget", "4.5", "--out", "x"}, 2, "--calib"},
        {{"--model", tiny, "--scheme", "w8a8", "--recipe-out", "r", "--out", "x"}, 2, "--budget"},
        {{"--model", tiny, "--budget", "2", "--calib", QE_TEST_DATA "/calib.txt", "--out", folder.file("a")}, 1, "3.3750"},
        {{"--model", tiny, "--budget", "1K", "--calib", QE_TEST_DATA "/calib.txt", "--out", folder.file("a")}, 1, "1000 bytes"},
        {{"--model", "/nowhere", "--scheme", "w8a8", "--out", folder.file("a")}, 1, "/nowhere"},
        {{"--model", tiny, "--scheme", "w99", "--out", folder.file("a")}, 1, "w99"},
        {{"--model", tiny, "--scheme", "w8a8", "--method", "magic", "--out", folder.file("a")}, 1, "magic"},
        {{"--model", tiny, "--scheme", "w8a8", "--format", "onnx", "--out", folder.file("a")}, 1, "onnx"},
        {{"--model", tiny, "--scheme", "w8a8", "--out", "/proc/a"}, 1, "/proc/a"},
        {{"--model", tiny, "--scheme", "w4a16-g128", "--method", "gptq", "--out", folder.file("a")}, 1, "calibration"},
        {{"--model", tiny, "--scheme", "w4a16-g128", "--method", "gptq", "--calib", folder.file("empty.txt"), "--out", folder.file("a")}, 1, "calibration"},
        {{"--model", folder.file("nan"), "--scheme", "w4a16-g128", "--out", folder.file("b")}, 1, "layers.2.mlp.up_proj"},
        {{"--model", tiny, "--scheme", "w4a16-g128", "--method", "gptq", "--calib", folder.file("short.txt"), "--out", folder.file("c")}, 1, "tokens"},
        {{"--model", tiny, "--scheme", "w4a16-g128", "--calib", folder.file("none.txt"), "--out", folder.file("a")}, 1, "none.txt"},
    };
    for (const auto &c : cases) {
        Result r = run(c.args);
        EXPECT_EQ(r.code, c.code) << r.err;
        EXPECT_EQ(lines(r.err), 1u) << r.err;
        EXPECT_NE(r.err.find(c.says), std::string::npos) << r.err;
        for (const char *name : {"a", "b", "c"}) EXPECT_NE(access(folder.file(name).c_str(), F_OK), 0) << name;
    }
}

/* A file system of one MiB where this process may mount one, else a limit on the size of files. */
struct SmallDisk {
    std::string path;
    bool mounted;
    explicit SmallDisk(const std::string &at) : path(at) {
        EXPECT_EQ(mkdir(path.c_str(), 0700), 0);
        mounted = !mount("tmpfs", path.c_str(), "tmpfs", 0, "size=1m");
        if (!mounted) printf("no tmpfs (%s): files are limited to 1 MiB in its place\n", strerror(errno));
        limit(1 << 20);
    }
    void limit(rlim_t bytes) {
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit now;
        EXPECT_EQ(getrlimit(RLIMIT_FSIZE, &now), 0);
        now.rlim_cur = bytes == RLIM_INFINITY ? now.rlim_max : bytes;
        EXPECT_TRUE(mounted || !setrlimit(RLIMIT_FSIZE, &now));
    }
    bool become(const char *options) { return mounted && !mount("tmpfs", path.c_str(), "tmpfs", MS_REMOUNT, options); }
    void grow() {
        limit(RLIM_INFINITY);
        EXPECT_TRUE(!mounted || become("size=64m"));
    }
    ~SmallDisk() {
        limit(RLIM_INFINITY);
        signal(SIGXFSZ, SIG_DFL);
        if (mounted) umount(path.c_str());
    }
};

/* A disk that is full, and one that takes nothing: one line, nothing at the result's place; with room, --resume ends as a run
 * that was never stopped. */
TEST_F(Qquant, FullAndReadOnlyDisks) {
    const struct { const char *scheme, *format, *name; } cases[] = {
        {"w4a16-g128", "compressed-tensors", "a"}, {"w4a16-g128", "gptq", "b"}, {"q8_0", "gguf", "c.gguf"}, {"nf4", "qengine", "d"}};
    int checked = 0, closed = 0;
    for (const auto &c : cases) {
        SmallDisk disk(folder.file(std::string("disk-") + c.name));
        const std::string out = disk.path + "/" + c.name, whole = folder.file(c.name);
        std::vector<std::string> args = {"--model", tiny, "--scheme", c.scheme, "--format", c.format, "--quiet", "--out", out};
        if (disk.become("ro,size=1m")) {
            Result r = run(args);
            EXPECT_EQ(r.code, 1) << r.err;
            EXPECT_EQ(lines(r.err), 1u) << r.err;
            EXPECT_NE(r.err.find(out), std::string::npos) << r.err;
            EXPECT_TRUE(disk.become("rw,size=1m"));
            closed++;
        }
        Result full = run(args);
        EXPECT_EQ(full.code, 1) << full.err;
        EXPECT_EQ(lines(full.err), 1u) << full.err;
        EXPECT_NE(full.err.find(out), std::string::npos) << full.err;
        EXPECT_NE(full.err.find("QE_E_IO"), std::string::npos) << full.err;
        EXPECT_NE(access(out.c_str(), F_OK), 0) << c.name;
        disk.grow();
        args.push_back("--resume");
        Result rest = run(args);
        EXPECT_EQ(rest.code, 0) << rest.err;
        args.pop_back();
        args.back() = whole;
        ASSERT_EQ(run(args).code, 0);
        EXPECT_TRUE(contents(out) == contents(whole)) << c.name;
        checked++;
    }
    printf("%d full disks, %d read-only ones\n", checked, closed);
    EXPECT_EQ(checked, 4);
}

/* Killed at different times: what stands at its place afterwards is whole, and --resume makes the same bytes. */
TEST_F(Qquant, KilledAndResumed) {
    std::vector<std::string> args = {"--model", tiny, "--scheme", "w4a16-g128", "--quiet", "--threads", "1", "--out", ""};
    args.back() = folder.file("whole");
    Result whole = run(args);
    ASSERT_EQ(whole.code, 0) << whole.err;
    auto expected = contents(folder.file("whole"));
    int cut = 0;
    for (int i = 0; i < 8; i++) {
        args.back() = folder.file("k" + std::to_string(i));
        pid_t pid = start(args, folder.file("stdout"), folder.file("stderr"));
        usleep((useconds_t)(15000 * i));
        kill(pid, SIGKILL);
        bool finished = wait_for(pid) == 0;
        cut += !finished;
        bool there = access(args.back().c_str(), F_OK) == 0; /* also when killed between putting it there and ending */
        EXPECT_TRUE(there || !finished) << "killed after " << 15 * i << " ms";
        if (!there) {
            auto resume = args;
            resume.push_back("--resume");
            Result r = run(resume);
            ASSERT_EQ(r.code, 0) << r.err;
        }
        EXPECT_TRUE(contents(args.back()) == expected) << "other bytes, killed after " << 15 * i << " ms";
    }
    printf("%d of 8 runs were cut\n", cut);
    EXPECT_GT(cut, 0);
}

}  // namespace
