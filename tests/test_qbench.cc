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
    for (const char *arguments : {"", "nonsense", "gemm model", "gemm --m 0", "gemm --m 1,,2", "gemm --m", "gemm --scheme w3a3",
                                  "gemm --shape nothing", "gemm --shape 0x5", "gemm --backend tpu", "gemm --group 1", "model",
                                  "gemm --threads 0", "gemm --baseline mkl", "gemm --unknown", "model -m x --batch 0",
                                  "gemm --baseline cublaslt-f16 --backend cpu"}) {
        Outcome run = qbench(arguments);
        EXPECT_EQ(run.code, 2) << arguments << "\n" << run.err;
        EXPECT_FALSE(run.err.empty()) << arguments;
        EXPECT_TRUE(run.out.empty()) << arguments << run.out;
    }
    EXPECT_EQ(qbench("--help").code, 0);
}

TEST_F(Qbench, CudaWithoutGpuIsOneLineAndThree) {
    if (access("/dev/nvidiactl", F_OK) == 0) GTEST_SKIP() << "this machine has a GPU";
    Outcome run = qbench("gemm --backend cuda --shape 256x256 --m 1");
    EXPECT_EQ(run.code, 3) << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
}

TEST_F(Qbench, MissingModelIsOneLineAndOne) {
    Outcome run = qbench("model -m /no/such/model.gguf");
    EXPECT_EQ(run.code, 1) << run.err;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
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

TEST_F(Qbench, EverySchemeIsCheckedAndWrittenAsJson) {
    qe_test::TempFolder folder;
    Outcome run = qbench("gemm --scheme w8a8,w4a8,w4a16,w8a16,q4_0,q5_0,q8_0,q4_k,q6_k --shape 96x512 --m 1,5 --threads 2 --rounds 1 --warm"
                     " --json " + folder.file("r.jsonl") + " --csv " + folder.file("r.csv") + " --md " + folder.file("r.md"));
    ASSERT_EQ(run.code, 0) << run.err;
    std::vector<json_t *> rows = json_lines(qe_test::read_file(folder.file("r.jsonl")));
    EXPECT_EQ(rows.size(), 18u);
    std::set<std::string> schemes;
    for (json_t *row : rows) {
        for (const char *key : {"kind", "backend", "impl", "scheme", "m", "n", "k", "group", "threads", "us_median", "us_p10", "us_p90",
                                "tops", "gbps", "roof_pct", "baseline", "baseline_us", "speedup", "max_err", "device", "commit"})
            EXPECT_NE(json_object_get(row, key), nullptr) << key;
        EXPECT_GT(json_number_value(json_object_get(row, "us_median")), 0);
        EXPECT_LT(json_number_value(json_object_get(row, "max_err")), 1e-3);
        schemes.insert(json_string_value(json_object_get(row, "scheme")));
        json_decref(row);
    }
    EXPECT_EQ(schemes.size(), 9u);
    std::string csv = qe_test::read_file(folder.file("r.csv")), md = qe_test::read_file(folder.file("r.md"));
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 19);
    EXPECT_EQ(std::count(md.begin(), md.end(), '\n'), 20);
}

TEST_F(Qbench, ExplainNamesTheChosenAndWhyNotTheOthers) {
    Outcome run = qbench("--explain --shape 256x256 --m 1 --scheme q4_k");
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_NE(run.out.find("chosen"), std::string::npos) << run.out;
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
