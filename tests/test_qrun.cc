/* qrun as a user meets it: what it prints where, how it exits, and that it leaves nothing behind when it fails. */
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include <qengine/tokenizer.h>

#include "program_rig.h"
#include "support.h"
#include "test_format_builders.h"

namespace {

const std::string program = QE_TEST_BIN "/qrun", model = QE_TEST_DATA "/tiny-llama";

using program_rig::Result;
using program_rig::wait_for;
using qe_test::is_ok;
pid_t start(const std::vector<std::string> &args, const std::string &out, const std::string &err) {
    return program_rig::start(program, args, out, err);
}

class Qrun : public testing::Test {
protected:
    void SetUp() override {
        if (access(program.c_str(), X_OK)) GTEST_SKIP() << program << " was not built (QE_BUILD_PROGRAMS is off, or build all targets)";
    }
    Result run(const std::vector<std::string> &args) {
        std::string out = folder.file("stdout"), err = folder.file("stderr");
        int code = wait_for(start(args, out, err));
        return {code, qe_test::read_file(out), qe_test::read_file(err)};
    }
    qe_test::TempFolder folder;
};

size_t lines(const std::string &text) {
    size_t n = 0;
    for (char c : text) n += c == '\n';
    return n;
}

TEST_F(Qrun, TextOnStdoutSpeedOnStderr) {
    Result r = run({"-m", model, "-p", "In the beginning", "-n", "12"});
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_GT(r.out.size(), 5u);
    EXPECT_EQ(r.out.find("tok/s"), std::string::npos);
    EXPECT_NE(r.err.find("tok/s"), std::string::npos);
    Result again = run({"-m", model, "-p", "In the beginning", "-n", "12", "--threads", "1", "--quiet"});
    EXPECT_EQ(again.out, r.out);
    EXPECT_EQ(again.err, "");
    const std::vector<std::string> sampled = {"-m", model, "-p", "In", "-n", "12", "--temp", "1.2", "--top-k", "40", "--seed", "3"};
    EXPECT_EQ(run(sampled).out, run(sampled).out);
}

TEST_F(Qrun, UsageErrorsExitTwoWithOneLine) {
    const std::vector<std::string> cases[] = {
        {},
        {"-m", model},
        {"-m"},
        {"-p", "x"},
        {"-m", model, "-p", "x", "--nonsense"},
        {"-m", model, "-p", "x", "-n", "0"},
        {"-m", model, "-p", "x", "-n", "many"},
        {"-m", model, "-p", "x", "--temp", "-1"},
        {"-m", model, "-p", "x", "--top-p", "2"},
        {"-m", model, "-p", "x", "--backend", "abacus"},
        {"-m", model, "-p", "x", "-f", "y"},
        {"-m", model, "--logits", "out"},
        {"-m", model, "--inspect", "--perplexity", "y"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Result r = run(cases[i]);
        EXPECT_EQ(r.code, 2) << "case " << i;
        EXPECT_EQ(lines(r.err), 1u) << "case " << i << ": " << r.err;
        EXPECT_EQ(r.out, "") << "case " << i;
    }
}

TEST_F(Qrun, FailuresExitOneWithOneLineAndNoFiles) {
    std::string weights = qe_test::read_file(model + "/model.safetensors");
    ASSERT_GT(weights.size(), 100000u);
    std::string config = qe_test::read_file(model + "/config.json");
    folder.write("config.json", config);
    std::string cut = folder.write("cut.safetensors", weights.substr(0, weights.size() / 2));
    std::string junk = folder.write("junk.gguf", "this is no model at all, whatever its name says");
    std::string empty = folder.write("empty.gguf", "");
    std::string text = folder.write("text.txt", "In the beginning");
    std::string out = folder.file("logits.f32"), missing = folder.file("nowhere");
    const struct {
        std::vector<std::string> args;
        const char *says;
    } cases[] = {
        {{"-m", missing, "-p", "x"}, "nowhere"},
        {{"-m", cut, "-p", "x"}, "QE_E_TRUNCATED"},
        {{"-m", junk, "-p", "x"}, "QE_E_MAGIC"},
        {{"-m", empty, "-p", "x"}, "QE_E_"},
        {{"-m", missing, "--inspect"}, "nowhere"},
        {{"-m", model, "-f", missing}, "nowhere"},
        {{"-m", model, "--perplexity", missing}, "nowhere"},
        {{"-m", model, "--logits", out, "-f", missing}, "nowhere"},
        {{"-m", model, "--logits", folder.file("no/such/folder"), "-f", text}, "cannot create"},
        {{"-m", model, "-p", "x", "--context", "100000"}, "QE_E_ARGUMENT"},
        {{"-m", model, "--logits", out, "-f", text, "--context", "3"}, "the text has"},
        {{"-m", model, "-p", "one two three four five six", "--context", "3"}, "QE_E_CAPACITY"},
    };
    for (const auto &c : cases) {
        Result r = run(c.args);
        EXPECT_EQ(r.code, 1) << c.args[1] << ": " << r.err;
        EXPECT_EQ(lines(r.err), 1u) << r.err;
        EXPECT_NE(r.err.find(c.says), std::string::npos) << r.err;
        EXPECT_EQ(r.out, "");
        EXPECT_NE(access(out.c_str(), F_OK), 0) << "left behind";
    }
}

TEST_F(Qrun, AFullDiskIsAnError) {
    if (access("/dev/full", W_OK)) GTEST_SKIP() << "no /dev/full";
    std::string text = folder.write("text.txt", "In the beginning");
    const std::vector<std::string> runs[] = {{"-p", "x", "-n", "2"}, {"--inspect"}, {"--perplexity", text}, {"--logits", folder.file("full"), "-f", text}};
    ASSERT_EQ(symlink("/dev/full", folder.file("full").c_str()), 0);   // so that no mistake removes the device itself
    for (std::vector<std::string> args : runs) {
        args.insert(args.begin(), {"-m", model});
        int code = wait_for(start(args, "/dev/full", folder.file("err")));
        std::string said = qe_test::read_file(folder.file("err"));
        EXPECT_EQ(code, 1) << args[2];
        EXPECT_EQ(lines(said), 1u) << said;
        EXPECT_NE(said.find("QE_E_IO"), std::string::npos) << said;
    }
    EXPECT_EQ(access(folder.file("full").c_str(), W_OK), 0) << "removed, though it is no file of ours";
}

TEST_F(Qrun, LogitsFileHoldsEveryPosition) {
    std::string text = folder.write("text.txt", "In the beginning God created the heaven and the earth.");
    std::string out = folder.file("logits.f32");
    Result r = run({"-m", model, "--logits", out, "-f", text});
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_EQ(r.out, "");
    size_t tokens = 0, vocab = 0;
    ASSERT_EQ(sscanf(r.err.c_str(), "%zu tokens, %zu logits each", &tokens, &vocab), 2) << r.err;
    EXPECT_EQ(qe_test::read_file(out).size(), tokens * vocab * 4);
    EXPECT_GT(tokens, 8u);
}

TEST_F(Qrun, PerplexityIsFarBelowUniform) {
    std::string text = folder.write("text.txt", qe_test::read_file(QE_TEST_DATA "/heldout.txt").substr(0, 3000));
    Result r = run({"-m", model, "--perplexity", text});
    EXPECT_EQ(r.code, 0) << r.err;
    double perplexity = 0;
    size_t tokens = 0;
    ASSERT_EQ(sscanf(r.out.c_str(), "perplexity %lf over %zu tokens", &perplexity, &tokens), 2) << r.out;
    EXPECT_GT(tokens, 512u);                  /* more than one window */
    size_t ids = 0;
    qe_error error{};
    qe_tokenizer *tokenizer = nullptr;
    ASSERT_TRUE(is_ok(qe_tokenizer_open_json((model + "/tokenizer.json").c_str(), nullptr, &tokenizer, &error), error));
    std::string words = qe_test::read_file(text);
    EXPECT_TRUE(is_ok(qe_tokenizer_encode(tokenizer, words.data(), words.size(), nullptr, nullptr, 0, &ids, &error), error));
    qe_tokenizer_close(tokenizer);
    EXPECT_EQ(tokens, ids - 1);               /* every window has a BOS before its tokens, so that none of them goes unpredicted */
    EXPECT_GT(perplexity, 1.0);
    EXPECT_LT(perplexity, 1024 / 4.0);
}

TEST_F(Qrun, InspectListsEveryTensor) {
    Result r = run({"-m", model, "--inspect"});
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_NE(r.out.find("model.layers.0.self_attn.q_proj.weight"), std::string::npos);
    EXPECT_NE(r.out.find("bits per weight"), std::string::npos);
}

TEST_F(Qrun, InspectEscapesWhatTheFileCallsItself) {
    build::Gguf g = build::llama_gguf();
    g.keys.push_back(build::kv_str("general.name", "red\x1b[31m\nnext"));
    Result r = run({"-m", folder.write("m.gguf", g.bytes()), "--inspect"});
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_NE(r.out.find("red\\x1b[31m\\x0anext"), std::string::npos) << r.out.substr(0, 200);
    EXPECT_EQ(r.out.find('\x1b'), std::string::npos);
}

TEST_F(Qrun, InterruptExits130WithOneLine) {
    std::string text = folder.write("text.txt", qe_test::read_file(QE_TEST_DATA "/heldout.txt"));
    std::string out = folder.file("logits.f32"), err = folder.file("err");
    /* Longer than the model's context many times over, so that it runs until it is stopped. */
    std::string long_text;
    for (int i = 0; i < 200; i++) long_text += qe_test::read_file(text);
    std::string path = folder.write("long.txt", long_text);
    pid_t pid = start({"-m", model, "--perplexity", path}, folder.file("o"), err);
    EXPECT_TRUE(program_rig::handles(pid, SIGINT));
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    kill(pid, SIGINT);
    auto before = std::chrono::steady_clock::now();
    EXPECT_EQ(wait_for(pid), 130);
    EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(60));
    std::string said = qe_test::read_file(err);
    EXPECT_EQ(said, "qrun: interrupted\n");
}

}  // namespace
