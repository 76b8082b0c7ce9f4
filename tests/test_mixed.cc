/* Mixed precision under a budget: measured sensitivities, a choice no uniform scheme beats, a recipe that makes the same bytes;
 * and the whole-model quality a checkpoint carries. */
#include <cmath>
#include <set>

#include "quantize_rig.h"

using namespace quantize_rig;
using qe_test::has_status;
using qe_test::is_ok;
using qe_test::TempFolder;

namespace {

struct Choice {
    std::string module, scheme;
    int64_t layer, bytes;
    int input, picked;
    double loss, seconds;
};

struct Mixed {
    std::string candidates, method, format, out, calibration, recipe, text;
    double bits = 0, seconds = 0;
    uint64_t bytes = 0;
    uint32_t flags = QE_QUANTIZE_PLAN_ONLY;
    double (*told)(void *, const qe_quantize_choice *) = nullptr;
    double bad = 0;
    int bad_at = 0, asked = 0;
    int64_t stop_after = -1, calls = 0;
    std::vector<Choice> choices;
    std::vector<std::string> schemes;
    std::vector<qe_quality> qualities;
    qe_quantize_plan plan{};
    qe_error err{};

    qe_status go(qe_device *d, qe_model *m) {
        qe_quantize_options o = {};
        o.struct_size = sizeof o;
        o.flags = flags;
        o.recipe = candidates.empty() ? nullptr : candidates.c_str();
        o.method = method.empty() ? nullptr : method.c_str();
        o.format = format.empty() ? nullptr : format.c_str();
        o.out = out.empty() ? nullptr : out.c_str();
        o.calibration = calibration.data();
        o.calibration_bytes = calibration.size();
        o.budget_bits = bits;
        o.budget_bytes = bytes;
        o.budget_seconds = seconds;
        o.seconds = told;
        o.quality_text = text.empty() ? nullptr : text.data();
        o.quality_bytes = text.size();
        o.layer = [](void *ctx, const qe_quantize_layer *l) { ((Mixed *)ctx)->schemes.push_back(l->scheme); };
        o.choice = [](void *ctx, const qe_quantize_choice *c) {
            ((Mixed *)ctx)->choices.push_back({c->module, c->scheme, c->layer, c->bytes, c->input, c->picked, c->loss, c->seconds});
        };
        o.chosen = [](void *ctx, const char *recipe) { ((Mixed *)ctx)->recipe = recipe; };
        o.quality = [](void *ctx, const qe_quality *q) { ((Mixed *)ctx)->qualities.push_back(*q); };
        o.progress = [](void *ctx, double, double) {
            Mixed *r = (Mixed *)ctx;
            return (int)(r->calls++ == r->stop_after);
        };
        o.ctx = this;
        choices.clear();
        schemes.clear();
        qualities.clear();
        recipe.clear();
        calls = 0;
        return qe_model_quantize(d, m, &o, &plan, &err);
    }
};

std::string whole_calibration() { return qe_test::read_file(QE_TEST_DATA "/calib.txt"); }
std::string calibration() { return whole_calibration().substr(0, 1000); }

struct Sum {
    int64_t bytes = 0;
    double loss = 0;
    bool offered = true;
};

TEST(Budget, IsKeptAndNoUniformSchemeIsBetter) {
    auto d = device();
    auto source = model(tiny);
    const struct { const char *candidates, *method, *format; std::vector<double> bits; } cases[] = {
        {"", "", "", {3.5, 4.5, 9}},
        {"w3a16-g128,w4a16-g128,w8a16-g128", "gptq", "compressed-tensors", {3.125, 3.6, 4.5}},
        {"nf4,mxfp4,mxint8,mx6", "", "qengine", {4.4, 5}},
        {"w4a16-g128,f16", "", "", {4.125, 6}},
        {"", "gptq", "gguf", {4.7, 7}},
        {"", "", "gptq", {3, 4.5}},
        {"kmeans3,kmeans4", "", "qengine", {4}},
        {"w3a16-g128,w4a16-g128", "rotate+rtn", "qengine", {3.7}},
    };
    int budgets = 0, strictly = 0;
    for (const auto &c : cases)
        for (double bits : c.bits) {
            Mixed run;
            run.candidates = c.candidates, run.method = c.method, run.format = c.format, run.bits = bits, run.calibration = calibration();
            ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err)) << c.candidates << " " << bits;
            std::map<std::string, Sum> uniform;
            Sum mixed;
            int picked = 0;
            for (const Choice &x : run.choices) {
                EXPECT_TRUE(std::isfinite(x.loss) && x.loss >= 0) << x.module << " " << x.scheme;
                if (x.bytes >= 0 && x.scheme != "f16") {
                    EXPECT_GT(x.loss, 0) << x.module << " " << x.scheme;
                }
                uniform[x.scheme].offered &= x.bytes >= 0;
                uniform[x.scheme].bytes += x.bytes;
                uniform[x.scheme].loss += x.loss;
                if (x.picked) mixed.bytes += x.bytes, mixed.loss += x.loss, picked++;
            }
            EXPECT_EQ(picked, 16);        /* 4 layers of 4 inputs */
            EXPECT_EQ(run.schemes.empty(), false);
            EXPECT_LE(8.0 * (double)mixed.bytes / 3145728, bits);
            /* Linears that stay as they are do not count in the plan's bits. */
            if (std::string(c.candidates).find("f16") == std::string::npos) {
                EXPECT_LE(run.plan.bits_per_weight, bits + 1e-9);
            }
            for (const auto &u : uniform) {
                if (!u.second.offered || (double)u.second.bytes * 8 > bits * 3145728) continue;
                EXPECT_LE(mixed.loss, u.second.loss) << u.first << " at " << bits << " bits";
                strictly += mixed.loss < u.second.loss;
            }
            budgets++;
        }
    EXPECT_EQ(budgets, 16);
    EXPECT_GT(strictly, 15);
}

/* The losses are what they are said to be: their sum is near the KL that is then measured on that text. */
TEST(Budget, LossesPredictTheKL) {
    auto d = device();
    auto source = model(tiny);
    TempFolder folder;
    Mixed run;
    run.method = "gptq", run.bits = 4, run.calibration = whole_calibration(), run.flags = 0, run.out = folder.file("m");
    run.text = run.calibration;
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    double loss = 0;
    for (const Choice &x : run.choices) loss += x.picked ? x.loss : 0;
    ASSERT_EQ(run.qualities.size(), 1u);
    printf("losses sum to %.3e, KL %.3e\n", loss, run.qualities[0].kl_mean);
    EXPECT_GT(loss, 0.5 * run.qualities[0].kl_mean);
    EXPECT_LT(loss, 2 * run.qualities[0].kl_mean);
}

TEST(Budget, TheRecipeMakesTheSameBytes) {
    const struct { const char *method, *format, *recipe; } cases[] = {
        {"gptq", "", "/quantization_recipe.json"}, {"", "qengine", "/quantization_recipe.json"}, {"rtn", "gguf", ".recipe.json"}};
    for (const auto &c : cases) {
        TempFolder folder;
        auto source = model(tiny);
        auto one = device(1), two = device(2);
        Mixed run;
        run.method = c.method, run.format = c.format, run.calibration = calibration(), run.flags = 0;
        run.bits = std::string(c.format) == "gguf" ? 5 : 4.25;
        run.out = folder.file("a");
        ASSERT_TRUE(is_ok(run.go(two.get(), source.get()), run.err)) << c.method;
        EXPECT_EQ(qe_test::read_file(run.out + c.recipe), run.recipe);
        EXPECT_GE(std::set<std::string>(run.schemes.begin(), run.schemes.end()).size(), 2u) << "nothing is mixed";
        Job again;
        again.recipe = run.recipe, again.format = c.format, again.calibration = run.calibration;
        again.out = folder.file("b");
        ASSERT_TRUE(is_ok(again.go(one.get(), source.get()), again.err)) << run.recipe;
        EXPECT_EQ(contents(again.out), contents(run.out));
    }
}

TEST(Budget, InBytes) {
    auto d = device();
    auto source = model(tiny);
    TempFolder folder;
    Mixed run;
    run.calibration = calibration(), run.bytes = 2700000, run.flags = 0, run.out = folder.file("m"), run.format = "qengine";
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    auto written = model(run.out);
    qe_model_info info;
    ASSERT_EQ(qe_model_get_info(written.get(), &info, &run.err), QE_OK);
    EXPECT_LE(info.bytes, 2700000u);
    EXPECT_GT(info.bytes, 2600000u);
}

double told_seconds(const std::string &scheme, int64_t layer, int64_t bytes) {
    return 1e-11 * (double)bytes * (double)(layer + 1) * (scheme.find("@a8") == std::string::npos ? 4 : 1);
}

/* Times of a machine that runs int8 inputs four times as fast, and no layer as the one before. */
double told_time(void *ctx, const qe_quantize_choice *c) {
    Mixed *r = (Mixed *)ctx;
    EXPECT_TRUE(c->bytes > 0 && !c->picked && c->loss == 0) << c->module << " " << c->scheme;
    r->asked++;
    return r->bad_at == r->asked ? r->bad : told_seconds(c->scheme, c->layer, c->bytes);
}

/* A budget of time is kept, uses most of what it has, and no uniform scheme within it loses less: at every budget, by times that
 * are told. */
TEST(Budget, InTimeThatIsTold) {
    auto d = device();
    auto source = model(tiny);
    Mixed run;
    run.calibration = calibration().substr(0, 400), run.format = "qengine", run.told = told_time;
    run.candidates = "int3:g64:f16@a8,int4:g128:f16@a8,w8a8,w8a16-g128";
    run.seconds = 1e-9;
    ASSERT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_LIMIT, run.err));
    double quickest = 0;
    const char *said = strstr(run.err.message, "take ");
    ASSERT_TRUE(said && sscanf(said, "take %lf ms", &quickest) == 1 && strstr(run.err.message, "ms a token")) << run.err.message;
    std::set<std::string> recipes;
    double before = INFINITY, sum = 0;
    int strictly = 0, budgets = 0;
    for (double times : {1.001, 1.5, 2.5, 4.0, 1e6}) {
        run.seconds = 1e-3 * quickest * times, run.asked = 0;
        ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err)) << times;
        EXPECT_EQ(run.asked, 16 * 4);
        std::map<std::string, std::pair<double, double>> uniform;
        std::map<int64_t, double> least, quick;
        double time = 0, kl = 0, floor = 0;
        int picked = 0;
        for (const Choice &x : run.choices) {
            EXPECT_EQ(x.seconds, told_seconds(x.scheme, x.layer, x.bytes)) << x.module << " " << x.scheme;
            uniform[x.scheme].first += x.seconds, uniform[x.scheme].second += x.loss;
            double &low = least.emplace(x.layer * 4 + x.input, x.loss).first->second;
            low = std::min(low, x.loss);
            double &soon = quick.emplace(x.layer * 4 + x.input, x.seconds).first->second;
            soon = std::min(soon, x.seconds);
            if (x.picked) time += x.seconds, kl += x.loss, picked++;
        }
        for (auto &u : least) floor += u.second;
        sum = 0;
        for (auto &u : quick) sum += u.second;
        ASSERT_EQ(uniform.size(), 4u);
        EXPECT_EQ(picked, 16);
        EXPECT_LE(time, run.seconds);
        EXPECT_LE(kl, before) << "more time, more loss";
        for (auto &u : uniform) {
            if (u.second.first > run.seconds * (1 - 16.0 / 65536)) continue;
            EXPECT_LE(kl, u.second.second) << u.first << " at " << times;
            strictly += kl < u.second.second;
        }
        if (times == 1e6) {
            EXPECT_NEAR(kl, floor, 1e-12) << "time enough for the best of each";
        }
        before = kl;
        recipes.insert(run.recipe);
        budgets++;
    }
    EXPECT_EQ(budgets, 5);
    run.seconds = sum * (1 - 1e-6);
    EXPECT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_LIMIT, run.err)) << "rounded below what it takes";
    EXPECT_GE(recipes.size(), 4u);
    EXPECT_GT(strictly, 5);
    for (double wrong : {0.0, -1.0, (double)NAN, (double)INFINITY}) {
        run.bad = wrong, run.bad_at = 7, run.asked = 0;
        EXPECT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_VALUE, run.err)) << wrong;
        EXPECT_NE(std::string(run.err.message).find("w8a8"), std::string::npos) << run.err.message;
    }
}

/* What the format cannot hold is neither asked for nor chosen. */
TEST(Budget, InTimeWithinAFormat) {
    auto d = device();
    auto source = model(tiny);
    Mixed run;
    run.calibration = calibration().substr(0, 400), run.format = "gptq", run.candidates = "w4a16-g128-asym,nf4", run.seconds = 1, run.told = told_time;
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    EXPECT_EQ(run.asked, 16);
    for (const Choice &x : run.choices) EXPECT_EQ(x.picked, x.scheme != "nf4") << x.module;
}

/* Measured times, by bounds that hold on a machine however busy: each candidate is run (no weights come faster than 4 TB/s), the
 * layers of one shape share one measurement, and there is time for the best of each, which is to round nothing, or for nothing. */
TEST(Budget, InTimeThatIsMeasured) {
    auto d = device(1);
    auto source = model(tiny);
    Mixed run;
    run.calibration = calibration().substr(0, 400), run.format = "qengine", run.seconds = 1e6;
    run.candidates = "int4:g128:f16@a8,w4a16-g128,nf4,mxfp4,mx9,int4:g128:u8:s=f16/channel@a8,kmeans4,f16";
    ASSERT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_ARGUMENT, run.err));
    EXPECT_NE(std::string(run.err.message).find("leaves every linear as it is"), std::string::npos) << run.err.message;
    ASSERT_EQ(run.choices.size(), 16u * 8);
    std::map<std::pair<std::string, int>, double> of;
    for (const Choice &x : run.choices) {
        EXPECT_GT(x.seconds, (double)x.bytes / 4e12) << x.module << " " << x.scheme;
        EXPECT_LT(x.seconds, 60) << x.module << " " << x.scheme;
        EXPECT_EQ(of.emplace(std::make_pair(x.scheme, x.input), x.seconds).first->second, x.seconds) << x.module << " " << x.scheme;
        EXPECT_EQ(x.picked, x.scheme == "f16") << x.module << " " << x.scheme;
    }
    run.seconds = 1e-12;
    EXPECT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_LIMIT, run.err));
    EXPECT_NE(std::string(run.err.message).find("ms a token"), std::string::npos) << run.err.message;
    for (double wrong : {-1.0, (double)NAN, 1e9}) {
        run.seconds = wrong;
        EXPECT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_ARGUMENT, run.err)) << wrong;
    }
    run.seconds = 1, run.bits = 4.5;
    EXPECT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_ARGUMENT, run.err));
}

TEST(Budget, Refusals) {
    auto d = device();
    auto source = model(tiny);
    const struct { const char *candidates, *method, *format; double bits; uint64_t bytes; const char *text; qe_status expected; const char *says; } bad[] = {
        {"", "", "", 2, 0, "calib", QE_E_LIMIT, "3.3750"},
        {"", "", "", 0, 1000, "calib", QE_E_LIMIT, "1000 bytes"},
        {"", "", "", -1, 0, "calib", QE_E_ARGUMENT, "budget"},
        {"", "", "", NAN, 0, "calib", QE_E_ARGUMENT, "budget"},
        {"", "", "", 65, 0, "calib", QE_E_ARGUMENT, "budget"},
        {"", "", "", 4.5, 1000000, "calib", QE_E_ARGUMENT, "not both"},
        {"{\"scheme\": \"w8a8\"}", "", "", 4.5, 0, "calib", QE_E_ARGUMENT, "list of schemes"},
        {"w4a16-g128,,w8a16", "", "", 4.5, 0, "calib", QE_E_ARGUMENT, "separated by commas"},
        {"w4a16-g128,w99", "", "", 4.5, 0, "calib", QE_E_ARGUMENT, "w99"},
        {"", "awq+rtn", "", 4.5, 0, "calib", QE_E_UNSUPPORTED, "awq+rtn"},
        {"", "magic", "", 4.5, 0, "calib", QE_E_ARGUMENT, "magic"},
        {"", "", "onnx", 4.5, 0, "calib", QE_E_ARGUMENT, "onnx"},
        {"nf4,mxfp4", "", "gguf", 4.5, 0, "calib", QE_E_UNSUPPORTED, "gguf"},
        {"", "", "", 4.5, 0, "", QE_E_VALUE, "calibration text"},
        {"", "", "", 4.5, 0, "Hi", QE_E_VALUE, "tokens"},
    };
    int checked = 0;
    for (const auto &b : bad) {
        Mixed run;
        run.candidates = b.candidates, run.method = b.method, run.format = b.format, run.bits = b.bits, run.bytes = b.bytes;
        run.calibration = std::string(b.text) == "calib" ? calibration() : b.text;
        EXPECT_TRUE(has_status(run.go(d.get(), source.get()), b.expected, run.err)) << b.says;
        EXPECT_NE(std::string(run.err.message).find(b.says), std::string::npos) << run.err.message;
        EXPECT_EQ(run.recipe, "");
        checked++;
    }
    EXPECT_EQ(checked, 15);
    Mixed run;
    run.bits = 4.5, run.calibration = calibration();
    ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err));
    int64_t calls = run.calls;
    for (int64_t stop = 0; stop < calls; stop += calls / 7) {
        run.stop_after = stop;
        EXPECT_TRUE(has_status(run.go(d.get(), source.get()), QE_E_CANCELLED, run.err)) << stop;
    }
}

/* The quality in the report is that of the checkpoint as it stands. */
TEST(Report, HoldsTheQuality) {
    const struct { const char *recipe, *format; } cases[] = {{"w4a16-g128", "compressed-tensors"}, {"nf4", "qengine"}, {"q4_0", "gguf"}};
    std::string text = qe_test::read_file(QE_TEST_DATA "/heldout.txt").substr(0, 2000);
    for (const auto &c : cases) {
        TempFolder folder;
        auto d = device();
        auto source = model(tiny);
        Mixed run;
        run.candidates = c.recipe, run.format = c.format, run.out = folder.file("m"), run.flags = 0, run.text = text;
        ASSERT_TRUE(is_ok(run.go(d.get(), source.get()), run.err)) << c.format;
        ASSERT_EQ(run.qualities.size(), 1u);
        auto written = model(run.out);
        bool gguf = std::string(c.format) == "gguf";
        const char *note = gguf ? nullptr : qe_model_note(written.get(), "qengine.report");
        std::string report = gguf ? qe_test::read_file(run.out + ".report.json") : note ? note : "";
        for (const char *key : {"\"text_sha256\"", "\"perplexity\"", "\"kl_mean\"", "\"kl_p99\"", "\"top1_agreement\""})
            EXPECT_NE(report.find(key), std::string::npos) << c.format << " " << key;
        auto a = engine(d.get(), source.get()), b = engine(d.get(), written.get());
        auto ids = ids_of(source.get(), text, 10000);
        qe_quality q;
        ASSERT_TRUE(is_ok(qe_quality_measure(a.get(), b.get(), ids.data(), (int64_t)ids.size(), 0, nullptr, nullptr, &q, &run.err), run.err));
        EXPECT_EQ(memcmp(&q, &run.qualities[0], sizeof q), 0) << c.format;
        EXPECT_GT(q.kl_mean, 0);
    }
}

}  // namespace
