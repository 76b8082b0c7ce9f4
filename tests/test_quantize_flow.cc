/* Whole models quantized without calibration: the written checkpoint computes the same bits as quantizing while loading, a
 * stopped run goes on to the same bytes, and every refusal has its status. */
#include "quantize_rig.h"

using namespace quantize_rig;
using qe_test::has_status;
using qe_test::is_ok;
using qe_test::TempFolder;

namespace {

struct Case {
    const char *scheme, *format;
};
const Case cases[] = {
    {"w8a8", "compressed-tensors"}, {"w4a16-g128", "compressed-tensors"}, {"w4a16-g128-asym", "compressed-tensors"},
    {"int3:g64:f16", "compressed-tensors"}, {"int4:g64:f16@a8", "compressed-tensors"}, {"w4a16-g128", "gptq"},
    {"w4a16-g128-asym", "gptq"}, {"int8:g128:f16", "gptq"}, {"int2:g64:f16:z=u8", "gptq"},
    {"w4a16-g128", "qengine"}, {"int4:g128:u8:s=f16/channel@a8", "qengine"}, {"nf4:g64:f32", "qengine"}, {"mxfp4", "qengine"},
    {"mxint8", "qengine"}, {"mx6", "qengine"}, {"int4:g32:u6:s=f16/g256:b=u6", "qengine"},
    {"w1a1", "qengine"}, {"w1a8", "qengine"},
};

class Written : public testing::TestWithParam<Case> {};

TEST_P(Written, SameBitsAsQuantizingWhileLoading) {
    const Case &c = GetParam();
    TempFolder folder;
    auto d = device();
    auto source = model(tiny);
    Job run;
    run.recipe = c.scheme;
    run.format = c.format;
    run.out = folder.file("m");
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    EXPECT_EQ(run.layers, 28);
    EXPECT_EQ(run.plan.linears, 28);
    auto written = model(run.out);
    auto ids = ids_of(source.get(), "In the beginning the hacker said to his people:", 24);
    auto a = engine(d.get(), source.get(), c.scheme), b = engine(d.get(), written.get());
    auto plain = engine(d.get(), source.get());
    auto expected = logits(a.get(), ids, 1024), got = logits(b.get(), ids, 1024);
    EXPECT_TRUE(qe_test::same_bits(got, expected));
    EXPECT_FALSE(qe_test::same_bits(got, logits(plain.get(), ids, 1024))) << "nothing was quantized";
    const char *note = qe_model_note(written.get(), "qengine.report");
    ASSERT_NE(note, nullptr);
    EXPECT_NE(std::string(note).find("model.layers.3.mlp.down_proj"), std::string::npos);
    EXPECT_EQ(access((run.out + "/tokenizer.json").c_str(), R_OK), 0);
    EXPECT_EQ(access((run.out + "/quantization_report.json").c_str(), R_OK), 0);
    EXPECT_NE(access((run.out + "/journal").c_str(), F_OK), 0);
}
INSTANTIATE_TEST_SUITE_P(Schemes, Written, testing::ValuesIn(cases));

/* Inputs that no kernel takes, as a foreign program may have written them into config.json. */
TEST(WrittenNative, InputsThatNothingRuns) {
    TempFolder folder;
    auto d = device();
    auto source = model(tiny);
    Job run;
    run.recipe = "w1a1";
    run.format = "qengine";
    run.out = folder.file("m");
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    const std::string config = qe_test::read_file(run.out + "/config.json"), good = "sign:channel:f32";
    struct Wrong {
        const char *quant, *says;
    };
    int refused = 0;
    for (const Wrong &wrong : {Wrong{"sign:g32:f32", "one scale per token"}, Wrong{"sign:channel:f16", "fp32 scales"},
                               Wrong{"int4:channel:f32", "int8"}, Wrong{"nf4:channel:f32", "int8"},
                               Wrong{"int8:channel:f32:z=f16", "int8"}, Wrong{"int9:channel:f32", "int9"}}) {
        std::string text = config;
        size_t act = text.find("\"act\""), at = act == std::string::npos ? act : text.find(good, act);
        ASSERT_NE(at, std::string::npos);
        text.replace(at, good.size(), wrong.quant);
        folder.write("m/config.json", text);
        qe_error err{};
        qe_model *opened = nullptr;
        qe_engine *made = nullptr;
        qe_status status = qe_model_open(run.out.c_str(), nullptr, &opened, &err);
        if (!status) status = qe_engine_create(d.get(), opened, nullptr, &made, &err);
        EXPECT_TRUE(status == QE_E_UNSUPPORTED || status == QE_E_ARGUMENT) << wrong.quant << ": " << status;
        EXPECT_NE(std::string(err.message).find(wrong.says), std::string::npos) << wrong.quant << ": " << err.message;
        EXPECT_NE(std::string(err.where).find(run.out), std::string::npos) << wrong.quant << ": " << err.where;
        qe_engine_destroy(made);
        qe_model_close(opened);
        refused += status != QE_OK;
    }
    EXPECT_EQ(refused, 6);
}

/* GGUF: rows of q and k change places, norms become floats, the tokenizer moves into the header. */
TEST(WrittenGguf, SameValuesSameTokens) {
    for (const char *scheme : {"q4_0", "q8_0", "q4_k", "q6_k"}) {
        TempFolder folder;
        auto d = device();
        auto source = model(tiny);
        Job run;
        run.recipe = scheme;
        run.format = "gguf";
        run.out = folder.file("m.gguf");
        ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err)) << scheme;
        auto written = model(run.out);
        const std::string text = "In the beginning the hacker said, 12345 times: \xc3\xa9t\xc3\xa9!";
        auto ids = ids_of(source.get(), text, 64);
        EXPECT_EQ(ids_of(written.get(), text, 64), ids);
        auto native = folder.file("n");
        Job other;
        other.recipe = scheme;
        other.format = "qengine";
        other.out = native;
        ASSERT_TRUE(is_ok(other.go(d.get(), source.get()), other.err));
        /* GGUF names no input type: both run with the default of the weights' type. */
        qe_quant q;
        qe_error err{};
        qe_tensor_info info;
        ASSERT_EQ(qe_model_get_tensor(written.get(), qe_model_find_tensor(written.get(), "blk.0.ffn_up.weight"), &info, &err), QE_OK);
        q = info.quant;
        qe_act act;
        qe_act_default(&q, &act);
        qe_engine_options o = {};
        o.struct_size = sizeof o;
        o.act = &act;
        auto reference = model(native);
        qe_engine *e[2] = {};
        ASSERT_TRUE(is_ok(qe_engine_create(d.get(), reference.get(), &o, &e[0], &err), err));
        ASSERT_TRUE(is_ok(qe_engine_create(d.get(), written.get(), &o, &e[1], &err), err));
        EXPECT_TRUE(qe_test::same_bits(logits(e[1], ids, 1024), logits(e[0], ids, 1024))) << scheme;
        for (auto *x : e) EXPECT_EQ(qe_engine_destroy(x), QE_OK);
        EXPECT_EQ(access((run.out + ".report.json").c_str(), R_OK), 0);
    }
}

/* A GGUF file as the source: dequantized to a folder that computes what the file says in floats; quantized anew to a folder
 * or a file; row order, names, tokenizer carried over. */
TEST(GgufSource, DequantizedAndQuantizedAnew) {
    TempFolder folder;
    auto d = device();
    auto source = model(tiny);
    Job first;
    first.recipe = "q8_0", first.format = "gguf", first.out = folder.file("m.gguf");
    ASSERT_TRUE(is_ok(first.go(d.get(), source.get()), first.err));
    auto file = model(first.out);
    const std::string text = qe_test::read_file(QE_TEST_DATA "/heldout.txt").substr(0, 1500);
    auto ids = ids_of(source.get(), text, 400);
    qe_engine_options floats = {};
    floats.struct_size = sizeof floats;
    qe_act act = {};
    act.mode = QE_ACT_FLOAT;
    floats.act = &act;
    qe_error err{};
    qe_engine *raw = nullptr;
    ASSERT_TRUE(is_ok(qe_engine_create(d.get(), file.get(), &floats, &raw, &err), err));
    Owned<qe_engine> reference(raw);
    /* 8 bits rounded to half floats, and embedding and head as they were: very near; 4 bits: as far as 4 bits are. */
    const struct { const char *recipe, *format; double least, most; } cases[] = {
        {"f16", "qengine", 0, 2e-5}, {"w8a16", "qengine", 1e-7, 5e-4}, {"w4a16-g128", "compressed-tensors", 1e-4, 1e-2},
        {"nf4", "qengine", 1e-4, 1e-2}, {"q4_0", "gguf", 1e-4, 2e-2}};
    int checked = 0;
    for (const auto &c : cases) {
        Job run;
        run.recipe = c.recipe, run.format = c.format, run.out = folder.file("o" + std::to_string(checked));
        ASSERT_TRUE(is_ok(run.go(d.get(), file.get()), run.err)) << c.recipe;
        EXPECT_EQ(run.plan.linears, std::string(c.recipe) == "f16" ? 0 : 28);
        auto written = model(run.out);
        EXPECT_EQ(ids_of(written.get(), text, 400), ids) << c.recipe;
        auto candidate = engine(d.get(), written.get());
        qe_quality q;
        ASSERT_TRUE(is_ok(qe_quality_measure(reference.get(), candidate.get(), ids.data(), (int64_t)ids.size(), 0, nullptr, nullptr, &q, &err), err));
        printf("%s from q8_0: KL %.3e\n", c.recipe, q.kl_mean);
        EXPECT_GE(q.kl_mean, c.least) << c.recipe;
        EXPECT_LE(q.kl_mean, c.most) << c.recipe;
        /* A folder made so is a source like any other. */
        if (std::string(c.recipe) == "f16") {
            Job again;
            again.recipe = "w4a16-g128", again.method = "gptq", again.out = folder.file("again"), again.calibration = text;
            EXPECT_TRUE(is_ok(again.go(d.get(), written.get()), again.err));
            EXPECT_EQ(ids_of(model(again.out).get(), text, 400), ids);
        }
        checked++;
    }
    EXPECT_EQ(checked, 5);
    Job calibrated;
    calibrated.recipe = "w4a16-g128", calibrated.method = "gptq", calibrated.out = folder.file("x"), calibrated.calibration = text;
    EXPECT_TRUE(has_status(calibrated.go(d.get(), file.get()), QE_E_UNSUPPORTED, calibrated.err));
    EXPECT_NE(std::string(calibrated.err.message).find("f16"), std::string::npos) << calibrated.err.message;
    EXPECT_NE(access(calibrated.out.c_str(), F_OK), 0);
}

TEST(Flow, ShardsAndRules) {
    TempFolder folder;
    auto d = device();
    auto source = model(tiny);
    Job run;
    run.recipe = R"({"scheme": "w4a16-g128", "rules": [{"match": "*.layers.0.*", "scheme": "w8a8"}, {"match": "re:.*o_proj$", "scheme": "f16"},
                     {"match": "lm_head", "scheme": "w8a16-g128"}]})";
    run.out = folder.file("m");
    run.shard = 600000;
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    EXPECT_EQ(run.plan.linears, 28 - 3 + 1);     /* o_proj of layer 0 is w8a8 by the first rule */
    EXPECT_EQ(access((run.out + "/model.safetensors.index.json").c_str(), R_OK), 0);
    auto written = model(run.out);
    qe_error err{};
    const struct { const char *name, *scheme; } expected[] = {
        {"model.layers.0.self_attn.o_proj.weight", "int8:channel:f32"}, {"model.layers.1.self_attn.o_proj.weight", "f16"},
        {"model.layers.2.mlp.up_proj.weight", "int4:g128:f16"}, {"lm_head.weight", "int8:g128:f16"}, {"model.embed_tokens.weight", "f16"}};
    for (const auto &x : expected) {
        qe_tensor_info info;
        char text[96];
        ASSERT_EQ(qe_model_get_tensor(written.get(), qe_model_find_tensor(written.get(), x.name), &info, &err), QE_OK) << x.name;
        qe_quant_name(&info.quant, text, sizeof text);
        EXPECT_STREQ(text, x.scheme) << x.name;
    }
    auto ids = ids_of(source.get(), "In the beginning", 16);
    auto a = engine(d.get(), source.get(), run.recipe.c_str()), b = engine(d.get(), written.get());
    EXPECT_TRUE(qe_test::same_bits(logits(b.get(), ids, 1024), logits(a.get(), ids, 1024)));
}

TEST(Flow, StoppedAnywhereAndResumedToTheSameBytes) {
    for (const char *format : {"compressed-tensors", "gguf"}) {
        TempFolder folder;
        auto d = device();
        auto source = model(tiny);
        Job whole;
        whole.recipe = "q4_0";
        whole.format = format;
        whole.out = folder.file("whole");
        if (std::string(format) != "gguf") whole.recipe = "w4a16-g128";
        ASSERT_TRUE(is_ok(whole.go(d.get(), source.get()), whole.err));
        auto expected = contents(whole.out);
        int64_t steps = whole.calls, resumed = 0;
        ASSERT_GT(steps, 20);
        for (int64_t stop = 0; stop < steps; stop += 5) {
            Job first = whole;
            first.out = folder.file("s" + std::to_string(stop));
            first.stop_after = stop;
            EXPECT_TRUE(has_status(first.go(d.get(), source.get()), QE_E_CANCELLED, first.err));
            EXPECT_NE(access(first.out.c_str(), F_OK), 0);
            Job again = first;
            again.stop_after = -1;
            again.flags = QE_QUANTIZE_RESUME;
            ASSERT_TRUE(is_ok(again.go(d.get(), source.get()), again.err)) << stop;
            EXPECT_EQ(again.layers, 28);
            resumed += again.resumed;
            EXPECT_EQ(contents(again.out), expected) << "stopped at step " << stop;
        }
        EXPECT_GT(resumed, 0) << "no run went on from what was there";
    }
}

/* The report of what is finished lies beside it; a run that would silently write a shorter one is refused. */
TEST(Flow, NotResumedWithoutItsReport) {
    TempFolder folder;
    auto d = device();
    auto source = model(tiny);
    Job first;
    first.recipe = "w4a16-g128";
    first.out = folder.file("out");
    first.stop_after = 20;
    EXPECT_TRUE(has_status(first.go(d.get(), source.get()), QE_E_CANCELLED, first.err));
    folder.write("out.partial/quantization_report.json", "{\"layers\": [");
    Job again = first;
    again.stop_after = -1;
    again.flags = QE_QUANTIZE_RESUME;
    EXPECT_TRUE(has_status(again.go(d.get(), source.get()), QE_E_MISMATCH, again.err));
    EXPECT_NE(strstr(again.err.where, "quantization_report.json"), nullptr) << again.err.message;
}

TEST(Flow, Refusals) {
    TempFolder folder;
    auto d = device();
    auto source = model(tiny);
    folder.write("there", "x");
    const struct { const char *name, *recipe, *method, *format, *out; qe_status expected; } bad[] = {
        {"scheme", "w5a17", "", "", "a", QE_E_ARGUMENT},
        {"scheme_input", "int4:g64:f16@a2", "", "", "a", QE_E_ARGUMENT},
        {"signs_static", R"({"scheme": "w1a1", "static": true})", "", "", "a", QE_E_UNSUPPORTED},
        {"signs_gguf", "int4:g32:f16@a1", "", "gguf", "a", QE_E_UNSUPPORTED},
        {"descriptor", "int4:g7:f16:q=9", "", "", "a", QE_E_ARGUMENT},
        {"method", "w4a16-g128", "magic", "", "a", QE_E_ARGUMENT},
        {"two_methods", "w4a16-g128", "rtn+gptq", "", "a", QE_E_ARGUMENT},
        {"smooth_and_rotate", "w4a16-g128", "awq+rotate+rtn", "", "a", QE_E_ARGUMENT},
        {"format", "w4a16-g128", "", "onnx", "a", QE_E_ARGUMENT},
        {"format_cannot", "nf4:g64:f32", "", "gptq", "a", QE_E_UNSUPPORTED},
        {"gguf_cannot", "w4a16-g128", "", "gguf", "a", QE_E_UNSUPPORTED},
        {"out_there", "w4a16-g128", "", "", "there", QE_E_STATE},
        {"no_folder", "w4a16-g128", "", "", "none/a", QE_E_IO},
        {"no_calibration", "w4a16-g128", "gptq", "", "a", QE_E_VALUE},
        {"nothing", "f16", "", "", "a", QE_E_ARGUMENT},
        {"json", "{\"scheme\": ", "", "", "a", QE_E_JSON},
        {"json_member", R"({"scheme": "w8a8", "colour": 1})", "", "", "a", QE_E_ARGUMENT},
        {"json_no_scheme", "{}", "", "", "a", QE_E_MISSING},
        {"json_rules", R"({"scheme": "w8a8", "rules": 3})", "", "", "a", QE_E_TYPE},
        {"json_pattern", R"({"scheme": "w8a8", "rules": [{"match": "re:(", "scheme": "f16"}]})", "", "", "a", QE_E_REGEX},
    };
    for (const auto &b : bad) {
        Job run;
        run.recipe = b.recipe, run.method = b.method, run.format = b.format;
        run.out = folder.file(b.out);
        EXPECT_TRUE(has_status(run.go(d.get(), source.get()), b.expected, run.err)) << b.name;
        EXPECT_NE(std::string(run.err.message), "") << b.name;
        EXPECT_NE(access(folder.file("a").c_str(), F_OK), 0);
        EXPECT_NE(access(folder.file("a.partial").c_str(), F_OK), 0) << b.name;
    }
    /* A checkpoint that is quantized already. */
    Job once;
    once.recipe = "w4a16-g128";
    once.out = folder.file("q");
    ASSERT_TRUE(is_ok(once.go(d.get(), source.get()), once.err));
    auto quantized = model(once.out);
    Job twice = once;
    twice.out = folder.file("a");
    EXPECT_TRUE(has_status(twice.go(d.get(), quantized.get()), QE_E_UNSUPPORTED, twice.err));
}

/* One NaN in a weight: the message names the tensor, and nothing is left that looks like a result. */
TEST(Flow, NanInAWeight) {
    TempFolder folder;
    for (const char *name : {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
        std::string text = qe_test::read_file(tiny + "/" + name);
        folder.write(name, text);
    }
    std::string bytes = qe_test::read_file(tiny + "/model.safetensors");
    uint64_t header;
    memcpy(&header, bytes.data(), 8);
    const uint16_t nan = 0x7e00;
    memcpy(&bytes[8 + header + 3606528 + 2 * 777], &nan, 2);
    folder.write("model.safetensors", bytes);
    auto d = device();
    auto source = model(folder.path());
    Job run;
    run.recipe = "w4a16-g128";
    run.out = folder.file("out");
    EXPECT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_VALUE, run.err));
    EXPECT_NE(std::string(run.err.message).find("model.layers.1.mlp."), std::string::npos) << run.err.message;
    EXPECT_NE(access(run.out.c_str(), F_OK), 0);
}

TEST(Flow, PlanSaysWhatIsWritten) {
    TempFolder folder;
    auto d = device();
    auto source = model(tiny);
    Job run;
    run.recipe = "w4a16-g128";
    run.out = folder.file("m");
    run.flags = QE_QUANTIZE_PLAN_ONLY;
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    EXPECT_NE(access(run.out.c_str(), F_OK), 0);
    EXPECT_EQ(run.layers, 28);
    EXPECT_DOUBLE_EQ(run.plan.bits_per_weight, 4.125);
    EXPECT_EQ(run.plan.weights, 3145728u);
    run.flags = 0;
    uint64_t planned = run.plan.file_bytes;
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    double real = (double)qe_test::read_file(run.out + "/model.safetensors").size();
    EXPECT_NEAR(real / (double)planned, 1.0, 0.02);
}

TEST(Quality, OfAModelAndItself) {
    auto d = device();
    auto source = model(tiny);
    auto a = engine(d.get(), source.get()), b = engine(d.get(), source.get()), c = engine(d.get(), source.get(), "w4a16-g128");
    auto ids = ids_of(source.get(), qe_test::read_file(QE_TEST_DATA "/heldout.txt"), 700);
    qe_error err{};
    qe_quality same, other;
    ASSERT_TRUE(is_ok(qe_quality_measure(a.get(), b.get(), ids.data(), (int64_t)ids.size(), 0, nullptr, nullptr, &same, &err), err));
    EXPECT_EQ(same.kl_max, 0);
    EXPECT_EQ(same.top1_agreement, 1);
    EXPECT_EQ(same.perplexity, same.perplexity_reference);
    EXPECT_EQ(same.tokens, (int64_t)ids.size() - 1);     /* two windows, the second begins with BOS as well */
    ASSERT_TRUE(is_ok(qe_quality_measure(a.get(), c.get(), ids.data(), (int64_t)ids.size(), 0, nullptr, nullptr, &other, &err), err));
    EXPECT_GT(other.kl_mean, 0);
    EXPECT_GE(other.kl_max, other.kl_p99);
    EXPECT_LT(other.top1_agreement, 1);
    EXPECT_TRUE(has_status(qe_quality_measure(a.get(), b.get(), ids.data(), 1, 0, nullptr, nullptr, &same, &err), QE_E_ARGUMENT, err));
}

}  // namespace
