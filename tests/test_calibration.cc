/* The methods that look at inputs, on the bundled model: each beats or equals its baseline where its paper says so, static
 * scales travel with the checkpoint, results do not depend on threads, and a stopped run goes on to the same bytes. */
#include "quantize_rig.h"

using namespace quantize_rig;
using qe_test::is_ok;
using qe_test::TempFolder;

namespace {

const char two_level[] = "int4:g128:u8:s=f16/channel@a8";

struct Fixture {
    TempFolder folder;
    Owned<qe_device> d = device();
    Owned<qe_model> source = model(tiny);
    Owned<qe_engine> reference = engine(d.get(), source.get());
    std::vector<int32_t> ids = ids_of(source.get(), qe_test::read_file(QE_TEST_DATA "/heldout.txt"), 512);
    std::string calibration = qe_test::read_file(QE_TEST_DATA "/calib.txt").substr(0, 3500);
    int made = 0;

    Job job(const std::string &recipe, const std::string &method, const std::string &format = "qengine") {
        Job j;
        j.recipe = recipe, j.method = method, j.format = format;
        j.calibration = calibration;
        j.out = folder.file("m" + std::to_string(made++));
        return j;
    }
    qe_quality quality(const std::string &recipe, const std::string &method, const std::string &format = "qengine") {
        Job j = job(recipe, method, format);
        EXPECT_TRUE(is_ok(j.go(d.get(), source.get()), j.err)) << recipe << " " << method;
        auto m = model(j.out);
        auto e = engine(d.get(), m.get());
        qe_quality q{};
        qe_error err{};
        EXPECT_TRUE(is_ok(qe_quality_measure(reference.get(), e.get(), ids.data(), (int64_t)ids.size(), 0, nullptr, nullptr, &q, &err), err));
        printf("%-34s %-18s %-18s perplexity %.3f (%.3f), KL %.5f\n", recipe.c_str(), method.c_str(), format.c_str(), q.perplexity,
               q.perplexity_reference, q.kl_mean);
        return q;
    }
};

TEST(Calibration, MethodsBeatTheirBaselines) {
    Fixture f;
    auto rtn = f.quality("w4a16-g128", "rtn"), gptq = f.quality("w4a16-g128", "gptq"), order = f.quality("w4a16-g128", "gptq-order");
    auto awq = f.quality("w4a16-g128", "awq+rtn");
    EXPECT_LT(gptq.kl_mean, 0.6 * rtn.kl_mean);
    EXPECT_LT(order.kl_mean, 0.6 * rtn.kl_mean);
    EXPECT_LT(awq.kl_mean, 0.85 * rtn.kl_mean);
    auto w8 = f.quality("w8a8", "rtn"), smooth = f.quality("w8a8", "smoothquant+rtn");
    EXPECT_LT(smooth.kl_mean, w8.kl_mean);
    auto two = f.quality(two_level, "rtn"), two_gptq = f.quality(two_level, "gptq");
    EXPECT_LT(two_gptq.kl_mean, two.kl_mean);
    EXPECT_LT(two.perplexity, 1.01 * f.quality("int4:g128:f16@a8", "rtn").perplexity);
}

TEST(Calibration, StaticInputsWithinTwoPercentOfDynamic) {
    Fixture f;
    const std::string recipe = R"({"scheme": "w8a8", "static": true})";
    auto dynamic = f.quality("w8a8", "rtn");
    for (const char *format : {"compressed-tensors", "qengine"}) {
        auto fixed = f.quality(recipe, "rtn", format);
        EXPECT_LT(fixed.perplexity, 1.02 * dynamic.perplexity) << format;
        EXPECT_GT(fixed.kl_mean, dynamic.kl_mean) << "are the inputs really static?";
    }
    auto rotated = f.quality(recipe, "rotate+rtn");
    EXPECT_LT(rotated.perplexity, 1.02 * dynamic.perplexity);
    EXPECT_LT(rotated.kl_mean, 0.5 * dynamic.kl_mean) << "a rotation makes one scale for all tokens enough";
    Job j = f.job(recipe, "rtn");
    ASSERT_TRUE(is_ok(j.go(f.d.get(), f.source.get()), j.err));
    auto m = model(j.out);
    qe_qtensor form;
    qe_error err{};
    ASSERT_EQ(qe_model_form(m.get(), qe_model_find_tensor(m.get(), "model.layers.2.mlp.down_proj.weight"), &form, &err), QE_OK);
    EXPECT_EQ(form.act.mode, QE_ACT_STATIC);
    EXPECT_GT(form.act.scale, 0);
}

/* A weight as floats, columns in the caller's order. */
std::vector<float> weight_of(qe_model *m, const char *name, bool *ordered) {
    qe_error err{};
    int64_t index = qe_model_find_tensor(m, name);
    qe_qtensor form, band;
    EXPECT_TRUE(is_ok(qe_model_form(m, index, &form, &err), err));
    *ordered = form.order != nullptr;
    size_t bytes = qe_qtensor_bytes(&form.quant, form.rows, form.k, 0);
    std::vector<uint8_t> raw(bytes + 64);
    void *block = (void *)(((uintptr_t)raw.data() + 63) / 64 * 64);
    EXPECT_TRUE(is_ok(qe_qtensor_place(&band, &form.quant, form.rows, form.k, 0, block, bytes, &err), err));
    EXPECT_TRUE(is_ok(qe_model_read(m, index, 0, form.rows, &band, &err), err));
    band.order = form.order;
    std::vector<float> w((size_t)(form.rows * form.k));
    EXPECT_TRUE(is_ok(qe_dequantize(&band, 0, form.rows, w.data(), form.k, &err), err));
    return w;
}

/* The first layer sees the same inputs whatever the format: its weights are the same values. Later layers see sums in
 * another order, since readers sort the columns of a group by number. */
TEST(Calibration, ActOrderInThreeFormats) {
    Fixture f;
    std::vector<float> first;
    for (const char *format : {"qengine", "compressed-tensors", "gptq"}) {
        Job j = f.job("w4a16-g64", "gptq-order", format);
        ASSERT_TRUE(is_ok(j.go(f.d.get(), f.source.get()), j.err)) << format;
        auto m = model(j.out);
        bool ordered;
        auto w = weight_of(m.get(), "model.layers.0.mlp.up_proj.weight", &ordered);
        EXPECT_TRUE(ordered) << format;
        if (first.empty()) first = w;
        EXPECT_TRUE(qe_test::same_bits(w, first)) << format;
    }
}

TEST(Calibration, ThreadsDoNotMatter) {
    Fixture f;
    auto one = device(1);
    for (const char *method : {"gptq", "awq+rtn"}) {
        Job a = f.job("w4a16-g128", method), b = a;
        b.out = a.out + "b";
        ASSERT_TRUE(is_ok(a.go(f.d.get(), f.source.get()), a.err));
        ASSERT_TRUE(is_ok(b.go(one.get(), f.source.get()), b.err));
        EXPECT_EQ(contents(a.out), contents(b.out)) << method;
    }
}

TEST(Calibration, StoppedAndResumed) {
    Fixture f;
    for (const char *method : {"smoothquant+gptq"}) {
        Job whole = f.job(R"({"scheme": "w8a8", "static": true})", method);
        ASSERT_TRUE(is_ok(whole.go(f.d.get(), f.source.get()), whole.err));
        auto expected = contents(whole.out);
        int64_t steps = whole.calls, resumed = 0;
        for (int64_t stop = steps / 4; stop < steps; stop += steps / 4) {
            Job first = whole;
            first.out = whole.out + "s" + std::to_string(stop);
            first.stop_after = stop;
            EXPECT_EQ(first.go(f.d.get(), f.source.get()), QE_E_CANCELLED);
            Job again = first;
            again.stop_after = -1;
            again.flags = QE_QUANTIZE_RESUME;
            ASSERT_TRUE(is_ok(again.go(f.d.get(), f.source.get()), again.err));
            resumed += again.resumed;
            EXPECT_EQ(contents(again.out), expected) << method << " stopped at step " << stop;
        }
        EXPECT_GT(resumed, 0);
    }
}

TEST(Calibration, OtherTextIsAnotherRun) {
    Fixture f;
    Job first = f.job("w4a16-g128", "gptq");
    first.stop_after = 20;
    EXPECT_EQ(first.go(f.d.get(), f.source.get()), QE_E_CANCELLED);
    Job again = first;
    again.stop_after = -1;
    again.flags = QE_QUANTIZE_RESUME;
    again.calibration += " and more";
    EXPECT_TRUE(qe_test::has_status(again.go(f.d.get(), f.source.get()), QE_E_MISMATCH, again.err));
}

}  // namespace
