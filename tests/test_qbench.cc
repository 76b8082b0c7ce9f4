/* tests/test_qbench.cc -- the program from outside: exit codes, one line for each refusal, JSON lines that parse. */
#include "support.h"

#include <algorithm>
#include <set>
#include <sys/wait.h>

#include <jansson.h>

namespace {
struct Outcome {
    int code;
    std::string out, err;
};

Outcome qbench(const std::string &arguments) {
    qe_test::TempFolder folder;
    std::string command = std::string(QE_TEST_BIN "/qbench ") + arguments + " >" + folder.file("out") + " 2>" + folder.file("err");
    int status = system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, qe_test::read_file(folder.file("out")), qe_test::read_file(folder.file("err"))};
}

class Qbench : public testing::Test {
protected:
    void SetUp() override {
        if (access(QE_TEST_BIN "/qbench", X_OK) != 0) GTEST_SKIP() << "qbench is not built: " QE_TEST_BIN "/qbench";
    }
};

TEST_F(Qbench, UsageErrorsExitWithTwo) {
    for (const char *arguments : {"", "nonsense", "gemm model", "gemm --m 0", "gemm --m 1,,2", "gemm --m", "gemm --scheme w3a3", "gemm --scheme w8a8,w3a3 --shape 96x256 --m 1", "gemm --scheme w8a8, --shape 96x256 --m 1", "gemm --scheme ''",
                                  "gemm --shape nothing", "gemm --shape 0x5", "gemm --backend tpu", "gemm --group 1", "model",
                                  "gemm --threads 0", "gemm --baseline mkl", "gemm --unknown", "model -m x --batch 0",
                                  "gemm --baseline cublaslt-f16 --backend cpu", "gemm --gpu h100", "tune", "tune --cache",
                                  "tune --cache x --explain", "tune --cache x --check"}) {
        Outcome run = qbench(arguments);
        EXPECT_EQ(run.code, 2) << arguments << "\n" << run.err;
        EXPECT_FALSE(run.err.empty()) << arguments;
        EXPECT_TRUE(run.out.empty()) << arguments << run.out;
    }
    EXPECT_EQ(qbench("--help").code, 0);
}

TEST_F(Qbench, CudaWithoutGpuIsOneLineAndThree) {
    if (access("/dev/nvidiactl", F_OK) == 0) GTEST_SKIP() << "this machine has a GPU";
    for (const char *arguments : {"gemm --backend cuda --shape 256x256 --m 1", "gemm --baseline cublaslt-f16 --shape 256x256 --m 1",
                                  "gemm --baseline cublaslt-f16 --backend cuda", "roofline --backend cuda"}) {
        Outcome run = qbench(arguments);
        EXPECT_EQ(run.code, 3) << arguments << run.err;
        EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
        EXPECT_TRUE(run.out.empty()) << run.out;
    }
}

TEST_F(Qbench, MissingModelIsOneLineAndOne) {
    Outcome run = qbench("model -m /no/such/model.gguf");
    EXPECT_EQ(run.code, 1) << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
}

TEST_F(Qbench, FailuresLeaveNoFileAndOldResultsAlone) {
    qe_test::TempFolder folder;
    folder.write("old.jsonl", std::string("old results\n"));
    Outcome run = qbench("model -m /no/such/model.gguf --json " + folder.file("old.jsonl") + " --csv " + folder.file("new.csv"));
    EXPECT_EQ(run.code, 1) << run.err;
    EXPECT_EQ(qe_test::read_file(folder.file("old.jsonl")), "old results\n");
    EXPECT_NE(access(folder.file("new.csv").c_str(), F_OK), 0);
    run = qbench("gemm --scheme w8a8 --shape 96x256 --m 1 --check --json " + folder.file("old.jsonl"));
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(qe_test::read_file(folder.file("old.jsonl")).substr(0, 8), "{\"kind\":");
    if (access("/dev/full", W_OK) == 0) {
        std::string full = std::string(QE_TEST_BIN "/qbench gemm --scheme w8a8 --shape 96x256 --m 1 --check >/dev/full 2>") + folder.file("e");
        EXPECT_EQ(WEXITSTATUS(system(full.c_str())), 1);
        EXPECT_EQ(qe_test::read_file(folder.file("e")), "qbench: cannot write to stdout\n");
    }
    run = qbench("gemm --scheme w8a8 --shape 96x256 --m 1 --check --md " + folder.file("no/such/folder"));
    EXPECT_EQ(run.code, 1);
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
    EXPECT_TRUE(run.out.empty()) << run.out;
}

std::vector<json_t *> json_lines(const std::string &text) {
    std::vector<json_t *> rows;
    for (size_t at = 0; at < text.size();) {
        size_t end = text.find('\n', at);
        json_t *row = json_loadb(text.data() + at, end - at, JSON_REJECT_DUPLICATES, nullptr);
        EXPECT_NE(row, nullptr) << text.substr(at, end - at);
        if (row) rows.push_back(row);
        at = end + 1;
    }
    return rows;
}

std::string keys_of(json_t *row) {
    std::string keys;
    for (void *at = json_object_iter(row); at; at = json_object_iter_next(row, at)) keys += std::string(json_object_iter_key(at)) + " ";
    return keys;
}

TEST_F(Qbench, EverySchemeIsCheckedAndWrittenAsJson) {
    qe_test::TempFolder folder;
    Outcome run = qbench("gemm --scheme w8a8,w4a8,w4a16,w8a16,q4_0,q5_0,q8_0,q4_k,q6_k --shape 96x512 --m 1,5 --threads 2 --rounds 1 --warm"
                     " --json " + folder.file("r.jsonl") + " --csv " + folder.file("r.csv") + " --md " + folder.file("r.md"));
    ASSERT_EQ(run.code, 0) << run.err;
    std::vector<json_t *> rows = json_lines(qe_test::read_file(folder.file("r.jsonl")));
    EXPECT_EQ(rows.size(), 18u);
    std::set<std::string> schemes;
    const bool no_git = access(QE_SOURCE_DIR "/.git", F_OK) || system("git -C " QE_SOURCE_DIR " rev-parse HEAD >/dev/null 2>&1");
    for (json_t *row : rows) {
        EXPECT_EQ(keys_of(row), "kind backend impl scheme m n k group threads us_median us_p10 us_p90 tops gbps roof_pct baseline "
                                "baseline_us speedup max_err device commit ");
        EXPECT_GT(json_number_value(json_object_get(row, "us_median")), 0);
        EXPECT_LT(json_number_value(json_object_get(row, "max_err")), 1e-3);
        schemes.insert(json_string_value(json_object_get(row, "scheme")));
        const std::string commit = json_string_value(json_object_get(row, "commit"));
        EXPECT_EQ(commit == qe_version(), no_git) << commit;
        json_decref(row);
    }
    EXPECT_EQ(schemes.size(), 9u);
    std::string csv = qe_test::read_file(folder.file("r.csv")), md = qe_test::read_file(folder.file("r.md"));
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 19);
    EXPECT_EQ(std::count(md.begin(), md.end(), '\n'), 20);
    EXPECT_EQ(csv.substr(0, csv.find('\n')), "kind,backend,impl,scheme,m,n,k,group,threads,us_median,us_p10,us_p90,tops,gbps,roof_pct,"
                                              "baseline,baseline_us,speedup,max_err,device,commit");
    EXPECT_EQ(md.substr(0, 9), "| backend");
}

// bench/plot.py on what qbench wrote: both pictures, and nothing but a message for what is no result.
TEST_F(Qbench, ResultsAreDrawn) {
    const std::string python = QE_SOURCE_DIR "/build/venv/bin/python", plot = python + " " QE_SOURCE_DIR "/bench/plot.py ";
    if (system((python + " -c 'import matplotlib' >/dev/null 2>&1").c_str()) != 0)
        GTEST_SKIP() << "no matplotlib: python3 -m venv build/venv && build/venv/bin/pip install matplotlib";
    qe_test::TempFolder folder;
    Outcome roofs = qbench("roofline --threads 1 --json " + folder.file("roofs.jsonl"));
    ASSERT_EQ(roofs.code, 0) << roofs.err;
    Outcome gemms = qbench("gemm --scheme w8a8,q4_k --shape 96x256 --m 1,4 --threads 1 --rounds 1 --warm --json " + folder.file("gemms.jsonl"));
    ASSERT_EQ(gemms.code, 0) << gemms.err;
    const std::string files = folder.file("roofs.jsonl") + " " + folder.file("gemms.jsonl"), quiet = " >" + folder.file("out") + " 2>&1";
    ASSERT_EQ(system((plot + files + " --out " + folder.file("plain") + quiet).c_str()), 0) << qe_test::read_file(folder.file("out"));
    EXPECT_NE(qe_test::read_file(folder.file("plain-roofline.svg")).find("<svg"), std::string::npos);
    EXPECT_NE(access(folder.file("plain-speedup.svg").c_str(), F_OK), 0) << "a speed-up without a baseline";

    std::string rows = qe_test::read_file(folder.file("gemms.jsonl"));
    const std::string alone = "\"baseline\":\"\",\"baseline_us\":null,\"speedup\":null";
    for (size_t at; (at = rows.find(alone)) != std::string::npos;)
        rows.replace(at, alone.size(), "\"baseline\":\"cublaslt-f16\",\"baseline_us\":9,\"speedup\":3");
    const std::string compared = folder.write("compared.jsonl", rows);
    ASSERT_EQ(system((plot + compared + " --format png" + quiet).c_str()), 0) << qe_test::read_file(folder.file("out"));
    EXPECT_EQ(qe_test::read_file(folder.file("compared-speedup.png")).substr(1, 3), "PNG");
    EXPECT_EQ(qe_test::read_file(folder.file("compared-roofline.png")).substr(1, 3), "PNG");

    const std::string wrong = folder.write("wrong.jsonl", std::string("{\"kind\":\"gemm\"}\n"));
    EXPECT_NE(system((plot + wrong + quiet).c_str()), 0);
    EXPECT_NE(qe_test::read_file(folder.file("out")).find("wrong.jsonl:1"), std::string::npos) << qe_test::read_file(folder.file("out"));
}

TEST_F(Qbench, ExplainNamesTheChosenAndWhyNotTheOthers) {
    Outcome run = qbench("--explain --shape 256x256 --m 1 --scheme q4_k");
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_NE(run.out.find("chosen"), std::string::npos) << run.out;
}

TEST_F(Qbench, TuneFillsACacheThatOthersUse) {
    qe_test::TempFolder folder;
    const std::string cache = " --cache " + folder.file("cache"), problem = " --backend cpu --scheme w8a8,q4_k --shape 96x512 --m 1,16 --warm";
    Outcome first = qbench("tune --threads 2 --rounds 3" + problem + cache), second = qbench("tune --threads 2 --rounds 3" + problem + cache);
    for (const Outcome &run : {first, second}) {
        EXPECT_EQ(run.code, 0) << run.err;
        EXPECT_TRUE(run.err.empty()) << run.err;
        int old_lines = 0, new_lines = 0;
        for (size_t at = 0; (at = run.out.find("\n  old ", at)) != std::string::npos; at++) old_lines++;
        for (size_t at = 0; (at = run.out.find("times as fast as old", at)) != std::string::npos; at++) new_lines++;
        EXPECT_EQ(old_lines, 4) << run.out;
        EXPECT_EQ(new_lines, 4) << run.out;
    }
    EXPECT_EQ(first.out.find("old tuned"), std::string::npos) << first.out;
    EXPECT_EQ(second.out.find("old untuned"), std::string::npos) << second.out;
    json_error_t error;
    json_t *doc = json_load_file(folder.file("cache").c_str(), 0, &error);
    ASSERT_NE(doc, nullptr) << error.text;
    EXPECT_EQ(json_array_size(json_object_get(doc, "entries")), 4u);
    json_decref(doc);
    Outcome explained = qbench("gemm --explain --threads 2" + problem + cache), other = qbench("gemm --explain --threads 1" + problem + cache);
    EXPECT_NE(explained.out.find("tuned: cpu/panel instance 0"), std::string::npos) << explained.out;
    EXPECT_EQ(other.out.find("tuned:"), std::string::npos) << "other threads are another device";
}
TEST_F(Qbench, TuneSaysWhereThereIsNothingToChooseOrToWrite) {
    qe_test::TempFolder folder;
    const std::string problem = "tune --backend cpu --scheme w8a8 --shape 96x512 --m 1 --cache ";
    Outcome one = qbench(problem + folder.file("cache") + " --threads 1");
    EXPECT_EQ(one.code, 0) << one.err;
    EXPECT_NE(one.out.find("one plan, nothing to choose"), std::string::npos) << one.out;
    folder.write("letters", std::string("my letters"));
    for (const std::string &path : {folder.file("no/such/cache"), folder.path(), folder.file("letters")}) {
        Outcome run = qbench(problem + path);
        EXPECT_EQ(run.code, 1) << path;
        EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
        EXPECT_TRUE(run.out.empty()) << run.out;
    }
    EXPECT_EQ(qe_test::read_file(folder.file("letters")), "my letters");
}

TEST_F(Qbench, TinyModel) {
    std::string path = QE_TEST_DATA "/tiny-llama";
    if (access((path + "/model.safetensors").c_str(), R_OK) != 0) GTEST_SKIP() << "no bundled model: " << path;
    qe_test::TempFolder folder;
    Outcome run = qbench("model -m " + path + " --prompt 16 --gen 4 --batch 1,2 --json " + folder.file("r.jsonl"));
    ASSERT_EQ(run.code, 0) << run.err;
    std::vector<json_t *> rows = json_lines(qe_test::read_file(folder.file("r.jsonl")));
    EXPECT_EQ(rows.size(), 2u);
    for (json_t *row : rows) {
        for (const char *key : {"prefill_tok_s", "decode_tok_s", "load_ms", "peak_rss_bytes", "bits_per_weight"})
            EXPECT_GT(json_number_value(json_object_get(row, key)), 0) << key;
        json_decref(row);
    }
}
} // namespace
