/* compressed-tensors checkpoints: every decoded value against the formula of the format, bit for bit, and every refusal. */
#include "packed_builders.h"

using namespace packed;
using qe_test::has_status;
using qe_test::is_ok;

namespace {

std::string settings(const std::string &weights, const std::string &inputs = "null", const std::string &format = "pack-quantized",
                     const std::string &ignore = "[]", const std::string &targets = "[\"Linear\"]") {
    return R"({"quant_method":"compressed-tensors","format":")" + format + R"(","ignore":)" + ignore +
           R"(,"config_groups":{"group_0":{"targets":)" + targets + R"(,"weights":)" + weights + R"(,"input_activations":)" + inputs + "}}}";
}
std::string int_weights(int bits, bool symmetric, int64_t group, const std::string &more = "") {
    return R"({"num_bits":)" + std::to_string(bits) + R"(,"type":"int","symmetric":)" + (symmetric ? "true" : "false") +
           R"(,"strategy":")" + (group > 0 ? "group\",\"group_size\":" + std::to_string(group) : "channel\"") + more + "}";
}

TEST(Compressed, PackedValuesByTheFormula) {
    qe_test::Random r(1);
    int cases = 0;
    for (int bits = 1; bits <= 8; bits++)
        for (int64_t group : {-1, 32, 64})
            for (bool symmetric : {true, false})
                for (bool dense : {true, false})
                    for (const char *type : {"F16", "BF16", "F32"}) {
                        bool act_order = group == 64 && dense;
                        Weight w = random_weight(r, 50, 192, group, bits, symmetric, type, act_order);
                        Tensors t;
                        add_compressed(t, "m", w, type, symmetric, act_order, dense);
                        Opened o(t, settings(int_weights(bits, symmetric, group, act_order ? R"(,"actorder":"group")" : "")));
                        ASSERT_TRUE(is_ok(o.status, o.err)) << bits << " bits, group " << group;
                        expect_values(o, "m.weight", w, 7);
                        cases++;
                    }
    printf("%d kinds of packed tensors\n", cases);
    EXPECT_EQ(cases, 8 * 3 * 2 * 2 * 3);
}

TEST(Compressed, WordOfTheFormatDescription) {
    Weight w{1, 8, 1, 8, 4, {0, 1, 2, 3, 4, 5, 6, 7}, {8}, {1}, std::vector<int32_t>(8, 0)};
    Tensors t;
    add_compressed(t, "m", w, "F16", true, false);
    EXPECT_EQ(t["m.weight_packed"].data, build::u32(0x76543210u));
    Opened o(t, settings(int_weights(4, true, -1)));
    ASSERT_TRUE(is_ok(o.status, o.err));
    qe_error err{};
    qe_status status;
    EXPECT_EQ(values(o.store, "m.weight", 1, &err, &status), (std::vector<float>{-8, -7, -6, -5, -4, -3, -2, -1}));
}

TEST(Compressed, Int8AndItsInputs) {
    qe_test::Random r(2);
    for (bool symmetric : {true, false}) {
        Weight w = random_weight(r, 40, 96, -1, 8, symmetric, "BF16", false);
        Tensors t;
        add_int8(t, "m", w, "BF16", symmetric);
        const std::string dynamic = R"({"num_bits":8,"type":"int","symmetric":true,"strategy":"token","dynamic":true})";
        Opened o(t, settings(int_weights(8, symmetric, -1), dynamic, "int-quantized"));
        ASSERT_TRUE(is_ok(o.status, o.err));
        expect_values(o, "m.weight", w, 16);
        qe_qtensor form;
        int32_t known;
        qe_store_form(o.store, 0, &form, &known);
        EXPECT_EQ(form.act.mode, QE_ACT_DYNAMIC);
        EXPECT_EQ(form.act.quant.group_n, 1);
        EXPECT_EQ(form.act.quant.zero_const, 128);
        const std::string fixed = R"({"num_bits":8,"type":"int","symmetric":false,"strategy":"tensor","dynamic":false})";
        t["m.input_scale"] = {"F32", {1}, build::le(0.125f)};
        t["m.input_zero_point"] = {"I8", {1}, std::string(1, (char)-5)};
        Opened s(t, settings(int_weights(8, symmetric, -1), fixed, "int-quantized"));
        ASSERT_TRUE(is_ok(s.status, s.err));
        EXPECT_EQ(qe_store_tensor_count(s.store), 1);
        qe_store_form(s.store, 0, &form, &known);
        EXPECT_EQ(form.act.mode, QE_ACT_STATIC);
        EXPECT_EQ(form.act.scale, 0.125f);
        EXPECT_EQ(form.act.zero, 123);
        for (float bad : {0.0f, -1.0f, 1e-40f, (float)INFINITY, (float)NAN}) {
            t["m.input_scale"] = {"F32", {1}, build::le(bad)};
            Opened b(t, settings(int_weights(8, symmetric, -1), fixed, "int-quantized"));
            EXPECT_TRUE(has_status(b.status, QE_E_VALUE, b.err)) << bad;
        }
    }
}

TEST(Compressed, Fp8ByChannel) {
    qe_test::Random r(3);
    Tensors t;
    std::string codes;
    std::vector<float> scales;
    for (int i = 0; i < 16 * 32; i++) codes += (char)(r.below(2) << 7 | r.below(127));
    for (int i = 0; i < 16; i++) scales.push_back(r.uniform(0.01f, 1));
    t["m.weight"] = {"F8_E4M3", {16, 32}, codes};
    t["m.weight_scale"] = {"F32", {16, 1}, scale_bytes("F32", scales)};
    const std::string weights = R"({"num_bits":8,"type":"float","symmetric":true,"strategy":"channel"})";
    const std::string inputs = R"({"num_bits":8,"type":"float","strategy":"token","dynamic":true})";
    Opened o(t, settings(weights, inputs, "float-quantized"));
    ASSERT_TRUE(is_ok(o.status, o.err));
    qe_error err{};
    qe_status status;
    auto got = values(o.store, "m.weight", 16, &err, &status);
    ASSERT_TRUE(is_ok(status, err));
    for (int i = 0; i < 16 * 32; i++) ASSERT_EQ(got[i], scales[i / 32] * qe_e4m3_to_f32((uint8_t)codes[i]));
    t["m.weight"].data[40] = 0x7f;
    Opened nan(t, settings(weights, inputs, "float-quantized"));
    values(nan.store, "m.weight", 16, &err, &status);
    EXPECT_TRUE(has_status(status, QE_E_VALUE, err));
}

TEST(Compressed, TargetsAndIgnore) {
    qe_test::Random r(4);
    Weight w = random_weight(r, 32, 64, 32, 4, true, "F16", false);
    Tensors t;
    add_compressed(t, "model.layers.0.mlp.up_proj", w, "F16", true, false);
    t["lm_head.weight"] = {"F16", {4, 64}, std::string(512, 0)};
    t["model.norm.weight"] = {"F16", {64}, std::string(128, 0)};
    const std::string w4 = int_weights(4, true, 32);
    const struct { std::string ignore, targets; qe_status expected; } cases[] = {
        {R"(["lm_head"])", R"(["Linear"])", QE_OK},
        {R"(["re:.*head"])", R"(["re:.*up_proj$"])", QE_OK},
        {"[]", R"(["model.layers.0.mlp.up_proj"])", QE_OK},
        {R"(["re:.*up_proj"])", R"(["Linear"])", QE_E_MISMATCH},
        {"[]", R"(["re:^layers.*"])", QE_E_MISMATCH},
        {"[]", "[]", QE_E_MISSING},
        {"[7]", R"(["Linear"])", QE_E_TYPE},
        {"[]", R"(["re:(up"])", QE_E_REGEX},
    };
    for (const auto &c : cases) {
        Opened o(t, settings(w4, "null", "pack-quantized", c.ignore, c.targets));
        EXPECT_TRUE(has_status(o.status, c.expected, o.err)) << c.ignore << c.targets;
        if (!c.expected) {
            EXPECT_EQ(qe_store_tensor_count(o.store), 3);
        }
    }
    const std::string two = R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"a":{"targets":["Linear"],"weights":)" +
                            w4 + R"(},"b":{"targets":["re:.*up_proj"],"weights":)" + int_weights(8, true, 32) + "}}}";
    Opened both(t, two);
    EXPECT_TRUE(has_status(both.status, QE_E_MISMATCH, both.err));
    Opened preset(t, R"({"quant_method":"compressed-tensors","config_groups":{"W4A16":["Linear"]}})");
    EXPECT_TRUE(has_status(preset.status, QE_E_SHAPE, preset.err)) << "128 does not divide 64 inputs";
}

struct Fault {
    const char *name;
    std::string settings;
    std::function<void(Tensors &)> damage;
    qe_status expected;
};

TEST(Compressed, Refusals) {
    const std::string w4 = int_weights(4, false, 32), ok = settings(w4);
    const std::vector<Fault> faults = {
        {"no_groups", R"({"quant_method":"compressed-tensors"})", {}, QE_E_MISSING},
        {"empty_groups", R"({"quant_method":"compressed-tensors","config_groups":{}})", {}, QE_E_MISSING},
        {"no_weights", R"({"quant_method":"compressed-tensors","config_groups":{"a":{"targets":["Linear"]}}})", {}, QE_E_MISSING},
        {"bits_0", settings(int_weights(0, false, 32)), {}, QE_E_RANGE},
        {"bits_9", settings(int_weights(9, false, 32)), {}, QE_E_RANGE},
        {"bits_text", settings(R"({"num_bits":"4","strategy":"channel"})"), {}, QE_E_TYPE},
        {"strategy", settings(R"({"num_bits":4,"strategy":"diagonal"})"), {}, QE_E_UNSUPPORTED},
        {"group_without_size", settings(R"({"num_bits":4,"strategy":"group"})"), {}, QE_E_MISSING},
        {"group_0", settings(R"({"num_bits":4,"strategy":"group","group_size":0})"), {}, QE_E_RANGE},
        {"group_48", settings(int_weights(4, false, 48)), {}, QE_E_SHAPE},
        {"format", settings(w4, "null", "sparse-bitmask"), {}, QE_E_UNSUPPORTED},
        {"inputs_4_bit", settings(w4, R"({"num_bits":4,"type":"int","strategy":"token","dynamic":true})"), {}, QE_E_UNSUPPORTED},
        {"transforms", R"({"quant_method":"compressed-tensors","transform_config":{"a":1},"config_groups":{"a":{"targets":["Linear"],"weights":)" + w4 + "}}}", {}, QE_E_UNSUPPORTED},
        {"scale_missing", ok, [](Tensors &t) { t.erase("m.weight_scale"); }, QE_E_MISSING},
        {"codes_missing", ok, [](Tensors &t) { t.erase("m.weight_packed"); }, QE_E_MISSING},
        {"shape_missing", ok, [](Tensors &t) { t.erase("m.weight_shape"); }, QE_E_MISSING},
        {"zeros_missing", ok, [](Tensors &t) { t.erase("m.weight_zero_point"); }, QE_E_MISSING},
        {"zeros_beside_symmetric", settings(int_weights(4, true, 32)), {}, QE_E_MISMATCH},
        {"zeros_shape", ok, [](Tensors &t) { std::swap(t["m.weight_zero_point"].shape[0], t["m.weight_zero_point"].shape[1]); }, QE_E_SHAPE},
        {"scale_transposed", ok, [](Tensors &t) { std::swap(t["m.weight_scale"].shape[0], t["m.weight_scale"].shape[1]); }, QE_E_SHAPE},
        {"scale_type", ok, [](Tensors &t) { t["m.weight_scale"].dtype = "I16"; }, QE_E_TYPE},
        {"codes_type", ok, [](Tensors &t) { t["m.weight_packed"].dtype = "F32"; }, QE_E_TYPE},
        {"shape_lies", ok, [](Tensors &t) { t["m.weight_shape"].data = build::u64(64) + build::u64(64); }, QE_E_MISMATCH},
        {"shape_negative", ok, [](Tensors &t) { t["m.weight_shape"].data = build::u64(-1) + build::u64(64); }, QE_E_RANGE},
        {"shape_three", ok, [](Tensors &t) { t["m.weight_shape"] = {"I64", {3}, std::string(24, 1)}; }, QE_E_RANGE},
        {"order_missing", settings(int_weights(4, false, 32, R"(,"actorder":"group")")), {}, QE_E_MISSING},
        {"bits_disagree", settings(int_weights(8, false, 32)), {}, QE_E_MISMATCH},
        {"int8_settings", settings(int_weights(8, true, -1), "null", "int-quantized"), {}, QE_E_MISMATCH},
        {"fp8_data", settings(int_weights(8, true, -1), "null", "int-quantized"), [](Tensors &t) {
             t.clear();
             t["m.weight"] = {"F8_E4M3", {4, 4}, std::string(16, 1)}, t["m.weight_scale"] = {"F32", {4, 1}, std::string(16, 0)};
         }, QE_E_MISMATCH},
    };
    for (const auto &f : faults) {
        qe_test::Random r(5);
        Tensors t;
        add_compressed(t, "m", random_weight(r, 32, 64, 32, 4, false, "F16", false), "F16", false, false);
        Opened neighbor(t, ok);
        ASSERT_TRUE(is_ok(neighbor.status, neighbor.err));
        if (f.damage) f.damage(t);
        Opened o(t, f.settings);
        EXPECT_TRUE(has_status(o.status, f.expected, o.err)) << f.name;
        EXPECT_EQ(o.store, nullptr) << f.name;
    }
    printf("%zu faults\n", faults.size());
}

TEST(Compressed, ScaleValues) {
    for (size_t at : {0, 33, 63}) {
        qe_test::Random r(6);
        Tensors t;
        add_compressed(t, "m", random_weight(r, 32, 64, 32, 4, true, "F16", false), "F16", true, false);
        uint16_t inf = 0x7c00;
        memcpy(&t["m.weight_scale"].data[at * 2], &inf, 2);
        Opened o(t, settings(int_weights(4, true, 32)));
        ASSERT_TRUE(is_ok(o.status, o.err));
        qe_error err{};
        qe_status status;
        values(o.store, "m.weight", 8, &err, &status);
        EXPECT_TRUE(has_status(status, QE_E_VALUE, err));
        EXPECT_NE(std::string(err.message).find("weight_scale"), std::string::npos);
    }
}

}  // namespace
