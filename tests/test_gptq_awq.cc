/* GPTQ and AWQ checkpoints: every decoded value against the formula of the format, bit for bit, and every refusal. */
#include "packed_builders.h"

using namespace packed;
using qe_test::has_status;
using qe_test::is_ok;

namespace {

std::string gptq_settings(int bits, int64_t group, bool symmetric, bool act_order, bool first_version, const std::string &more = "") {
    auto flag = [](bool b) { return std::string(b ? "true" : "false"); };
    return "{\"quant_method\":\"gptq\",\"bits\":" + std::to_string(bits) + ",\"group_size\":" + std::to_string(group) +
           ",\"sym\":" + flag(symmetric) + ",\"desc_act\":" + flag(act_order) + ",\"checkpoint_format\":\"" +
           (first_version ? "gptq" : "gptq_v2") + "\"" + more + "}";
}
const char awq_settings[] = R"({"quant_method":"awq","bits":4,"group_size":32,"zero_point":true,"version":"gemm"})";

TEST(Gptq, EveryValueByTheFormula) {
    qe_test::Random r(1);
    int cases = 0;
    for (int bits : {2, 3, 4, 8})
        for (int64_t group : {(int64_t)-1, (int64_t)32, (int64_t)64})
            for (bool symmetric : {true, false})
                for (bool act_order : {false, true})
                    for (bool first : {true, false})
                        for (const char *type : {"F16", "BF16"}) {
                            if (act_order && group < 0) continue;
                            Weight w = random_weight(r, 96, 128, group, bits, symmetric, type, act_order);
                            Tensors t;
                            add_gptq(t, "m", w, type, first, act_order || group == 32);
                            Opened o(t, gptq_settings(bits, group, symmetric, act_order, first));
                            ASSERT_TRUE(is_ok(o.status, o.err)) << bits << " bits, group " << group;
                            EXPECT_EQ(qe_store_tensor_count(o.store), 1);
                            expect_values(o, "m.weight", w, 7);
                            cases++;
                        }
    printf("%d kinds of GPTQ tensors\n", cases);
    EXPECT_EQ(cases, 4 * 5 * 2 * 2 * 2);
}

/* Outputs beyond one slab, and bands read backwards, by two stores' worth of alternation between tensors. */
TEST(Gptq, WideTensorsInAnyOrderOfBands) {
    qe_test::Random r(2);
    Weight a = random_weight(r, 2048, 64, 32, 4, false, "F16", true), b = random_weight(r, 1024, 64, 64, 8, true, "F16", false);
    Tensors t;
    add_gptq(t, "a", a, "F16", true, true);
    add_gptq(t, "b", b, "F16", true, false);
    Opened o(t, gptq_settings(4, 32, false, true, true, R"(,"dynamic":{"+:b":{"bits":8,"group_size":64,"sym":true,"desc_act":false}})"));
    ASSERT_TRUE(is_ok(o.status, o.err));
    expect_values(o, "a.weight", a, 100);
    expect_values(o, "b.weight", b, 1024);
    qe_error err{};
    for (int64_t row : {2016, 0, 992, 480}) {
        std::vector<float> got;
        int64_t index = qe_store_find(o.store, "a.weight");
        ASSERT_TRUE(is_ok(build::read_rows(o.store, index, row, 32, nullptr, &got, &err), err));
        qe_qtensor form;
        int32_t known;
        qe_store_form(o.store, index, &form, &known);
        EXPECT_EQ(known, 1);
        EXPECT_EQ(form.act.mode, QE_ACT_FLOAT);
        ASSERT_NE(form.order, nullptr);
        for (int64_t i = 0; i < 32; i++)
            for (int64_t c = 0; c < 64; c++) ASSERT_EQ(got[i * 64 + c], a.value(row + i, form.order[c])) << row + i;
    }
}

/* Groups of unequal size cannot be sorted into equal ones: their scales are repeated per column. */
TEST(Gptq, UnbalancedGroupIndex) {
    qe_test::Random r(3);
    Weight w = random_weight(r, 32, 64, 32, 4, false, "F16", false);
    for (auto &g : w.group_of) g = r.below(8) == 0;
    Tensors t;
    add_gptq(t, "m", w, "F16", false, true);
    Opened o(t, gptq_settings(4, 32, false, true, false));
    ASSERT_TRUE(is_ok(o.status, o.err));
    expect_values(o, "m.weight", w, 32);
    std::fill(w.group_of.begin(), w.group_of.end(), 0);
    Tensors zeros;
    add_gptq(zeros, "m", w, "F16", false, true);
    Opened without(zeros, gptq_settings(4, 32, false, false, false));
    ASSERT_TRUE(is_ok(without.status, without.err));
    expect_values(without, "m.weight", w, 32);
    Opened with(zeros, gptq_settings(4, 32, false, true, false));
    EXPECT_TRUE(has_status(with.status, QE_E_RANGE, with.err));
}

TEST(Awq, EveryValueByTheFormula) {
    qe_test::Random r(4);
    for (const char *type : {"F16", "BF16"})
        for (int64_t group : {-1, 32, 64}) {
            Weight w = random_weight(r, 64, 128, group, 4, false, type, false);
            Tensors t;
            add_awq(t, "m", w, type);
            Opened o(t, R"({"quant_method":"awq","bits":4,"group_size":)" + std::to_string(group) + R"(,"zero_point":true,"version":"GEMM"})");
            ASSERT_TRUE(is_ok(o.status, o.err));
            expect_values(o, "m.weight", w, 5);
        }
}

TEST(Gptq, WordsOfTheFormatDescription) {
    Weight w{32, 32, 1, 32, 4, {}, {}, {}, std::vector<int32_t>(32, 0)};
    for (int i = 0; i < 32 * 32; i++) w.q.push_back(i % 8);
    w.z.assign(32, 8);
    w.s.assign(32, 1);
    Tensors t;
    add_gptq(t, "m", w, "F16", true, false);
    EXPECT_EQ(t["m.qweight"].data.substr(0, 4), build::u32(0x76543210u));
    EXPECT_EQ(t["m.qzeros"].data.substr(0, 4), build::u32(0x77777777u));
    Tensors a;
    for (int n = 0; n < 32; n++)
        for (int k = 0; k < 32; k++) w.q[n * 32 + k] = n % 8;
    add_awq(a, "m", w, "F16");
    EXPECT_EQ(a["m.qweight"].data.substr(0, 4), build::u32(0x75316420u));
}

/* ---- refusals ---- */
struct Fault {
    const char *name, *settings;        // settings NULL: the good ones
    std::function<void(Tensors &)> damage;
    qe_status expected;
};

const char good[] = R"({"quant_method":"gptq","bits":4,"group_size":32,"sym":false,"desc_act":true,"checkpoint_format":"gptq"})";

void set_i32(Raw &raw, size_t index, int32_t v) { memcpy(&raw.data[index * 4], &v, 4); }

const std::vector<Fault> gptq_faults = {
    {"bits_0", R"({"quant_method":"gptq","bits":0,"group_size":32})", {}, QE_E_RANGE},
    {"bits_5", R"({"quant_method":"gptq","bits":5,"group_size":32})", {}, QE_E_RANGE},
    {"bits_16", R"({"quant_method":"gptq","bits":16,"group_size":32})", {}, QE_E_RANGE},
    {"bits_negative", R"({"quant_method":"gptq","bits":-4,"group_size":32})", {}, QE_E_RANGE},
    {"bits_text", R"({"quant_method":"gptq","bits":"4","group_size":32})", {}, QE_E_TYPE},
    {"bits_missing", R"({"quant_method":"gptq","group_size":32})", {}, QE_E_MISSING},
    {"group_0", R"({"quant_method":"gptq","bits":4,"group_size":0})", {}, QE_E_RANGE},
    {"group_minus_2", R"({"quant_method":"gptq","bits":4,"group_size":-2})", {}, QE_E_RANGE},
    {"group_3", R"({"quant_method":"gptq","bits":4,"group_size":3})", {}, QE_E_SHAPE},
    {"group_over_k", R"({"quant_method":"gptq","bits":4,"group_size":128})", {}, QE_E_SHAPE},
    {"group_2_31", R"({"quant_method":"gptq","bits":4,"group_size":2147483648})", {}, QE_E_RANGE},
    {"method_unknown", R"({"quant_method":"quip","bits":4})", {}, QE_E_UNSUPPORTED},
    {"method_missing", R"({"bits":4,"group_size":32})", {}, QE_E_MISSING},
    {"no_settings", "", {}, QE_E_MISSING},
    {"format_marlin", R"({"quant_method":"gptq","bits":4,"group_size":32,"checkpoint_format":"marlin"})", {}, QE_E_UNSUPPORTED},
    {"pack_int64", R"({"quant_method":"gptq","bits":4,"group_size":32,"pack_dtype":"int64"})", {}, QE_E_UNSUPPORTED},
    {"codes_missing", nullptr, [](Tensors &t) { t.erase("m.qweight"); }, QE_E_MISSING},
    {"scales_missing", nullptr, [](Tensors &t) { t.erase("m.scales"); }, QE_E_MISSING},
    {"zeros_missing", nullptr, [](Tensors &t) { t.erase("m.qzeros"); }, QE_E_MISSING},
    {"order_missing", nullptr, [](Tensors &t) { t.erase("m.g_idx"); }, QE_E_MISSING},
    {"codes_rows", nullptr, [](Tensors &t) { t["m.qweight"].shape[0]--, t["m.qweight"].data.resize(t["m.qweight"].data.size() - 64 * 4); }, QE_E_SHAPE},
    {"codes_type", nullptr, [](Tensors &t) { t["m.qweight"].dtype = "F32"; }, QE_E_TYPE},
    {"scales_transposed", nullptr, [](Tensors &t) { std::swap(t["m.scales"].shape[0], t["m.scales"].shape[1]); }, QE_E_SHAPE},
    {"scales_group_more", nullptr, [](Tensors &t) { t["m.scales"].shape[0]++, t["m.scales"].data += std::string(64 * 2, 0); }, QE_E_SHAPE},
    {"scales_type", nullptr, [](Tensors &t) { t["m.scales"].dtype = "I16"; }, QE_E_TYPE},
    {"zeros_shape", nullptr, [](Tensors &t) { std::swap(t["m.qzeros"].shape[0], t["m.qzeros"].shape[1]); }, QE_E_SHAPE},
    {"order_past_end", nullptr, [](Tensors &t) { set_i32(t["m.g_idx"], 5, 2); }, QE_E_RANGE},
    {"order_2_31", nullptr, [](Tensors &t) { set_i32(t["m.g_idx"], 63, INT32_MAX); }, QE_E_RANGE},
    {"order_minus_1", nullptr, [](Tensors &t) { set_i32(t["m.g_idx"], 0, -1); }, QE_E_RANGE},
    {"order_int_min", nullptr, [](Tensors &t) { set_i32(t["m.g_idx"], 0, INT32_MIN); }, QE_E_RANGE},
    {"order_short", nullptr, [](Tensors &t) { t["m.g_idx"].shape[0]--, t["m.g_idx"].data.resize(63 * 4); }, QE_E_SHAPE},
    {"order_float", nullptr, [](Tensors &t) { t["m.g_idx"].dtype = "F32"; }, QE_E_TYPE},
    {"both_forms", nullptr, [](Tensors &t) { t["m.weight"] = {"F16", {64, 64}, std::string(64 * 64 * 2, 0)}; }, QE_E_MISMATCH},
    {"skipped_but_packed", R"({"quant_method":"gptq","bits":4,"group_size":32,"sym":false,"desc_act":true,"dynamic":{"-:m":{}}})", {}, QE_E_MISMATCH},
    {"plain_but_not_skipped", nullptr, [](Tensors &t) { t["l.q_proj.weight"] = {"F16", {4, 4}, std::string(32, 0)}; }, QE_E_MISMATCH},
    {"pattern_syntax", R"({"quant_method":"gptq","bits":4,"group_size":32,"dynamic":{"-:(":{}}})", {}, QE_E_REGEX},
    {"nothing_packed", nullptr, [](Tensors &t) { t.clear(), t["x.weight"] = {"F16", {4, 4}, std::string(32, 0)}; }, QE_E_MISMATCH},
};

Tensors gptq_tensors() {
    qe_test::Random r(5);
    Tensors t;
    add_gptq(t, "m", random_weight(r, 64, 64, 32, 4, false, "F16", true), "F16", true, true);
    return t;
}

TEST(Gptq, Refusals) {
    ASSERT_FALSE(gptq_faults.empty());
    for (const auto &f : gptq_faults) {
        Tensors t = gptq_tensors();
        Opened neighbor(t, good);
        ASSERT_TRUE(is_ok(neighbor.status, neighbor.err));
        if (f.damage) f.damage(t);
        Opened o(t, f.settings ? f.settings : good);
        EXPECT_TRUE(has_status(o.status, f.expected, o.err)) << f.name;
        EXPECT_EQ(o.store, nullptr) << f.name;
        EXPECT_NE(std::string(o.err.message), "") << f.name;
    }
    printf("%zu faults\n", gptq_faults.size());
}

TEST(Gptq, ScalesAndZerosWhileReading) {
    struct { const char *type; int bytes; uint32_t bits; } const bad[] = {
        {"F16", 2, 0x7c00}, {"F16", 2, 0xfc00}, {"F16", 2, 0x7e00}, {"BF16", 2, 0x7f80}, {"BF16", 2, 0x7fc0}, {"F32", 4, 0x7fc00000}};
    for (const auto &b : bad)
        for (size_t at : {0, 70, 127}) {
            qe_test::Random r(6);
            Tensors t;
            add_gptq(t, "m", random_weight(r, 64, 64, 32, 4, false, b.type, false), b.type, true, false);
            memcpy(&t["m.scales"].data[at * b.bytes], &b.bits, b.bytes);
            Opened o(t, R"({"quant_method":"gptq","bits":4,"group_size":32,"sym":false})");
            ASSERT_TRUE(is_ok(o.status, o.err));
            qe_error err{};
            qe_status status;
            values(o.store, "m.weight", 16, &err, &status);
            EXPECT_TRUE(has_status(status, QE_E_VALUE, err)) << b.type << " " << at;
            EXPECT_NE(std::string(err.message).find("m.scales"), std::string::npos) << err.message;
        }
    /* Scales of 0 and below are legal. */
    qe_test::Random r(7);
    Weight w = random_weight(r, 64, 64, 32, 4, true, "F16", false);
    w.s[0] = 0.0f, w.s[1] = -0.5f;
    Tensors t;
    add_gptq(t, "m", w, "F16", true, false);
    Opened o(t, gptq_settings(4, 32, true, false, true));
    ASSERT_TRUE(is_ok(o.status, o.err));
    expect_values(o, "m.weight", w, 64);
    /* Symmetric zero points of the other version: the settings lie. */
    Opened other(t, gptq_settings(4, 32, true, false, false));
    ASSERT_TRUE(is_ok(other.status, other.err));
    qe_error err{};
    qe_status status;
    values(other.store, "m.weight", 64, &err, &status);
    EXPECT_TRUE(has_status(status, QE_E_MISMATCH, err));
}

TEST(Gptq, HostilePatternsEndSoon) {
    Tensors t = gptq_tensors(), long_name;
    std::string module = std::string(60, 'a') + "!";
    for (auto &e : t) long_name[module + e.first.substr(1)] = e.second;
    Opened slow(long_name, R"({"quant_method":"gptq","bits":4,"group_size":32,"sym":false,"desc_act":true,"dynamic":{"-:(a+)+$":{}}})");
    EXPECT_TRUE(has_status(slow.status, QE_E_LIMIT, slow.err));
    Opened huge(long_name, R"({"quant_method":"gptq","bits":4,"group_size":32,"dynamic":{"-:)" + std::string(1 << 20, 'a') + R"(":{}}})");
    EXPECT_EQ(huge.status, QE_E_LIMIT) << huge.err.message;
}

TEST(Awq, Refusals) {
    qe_test::Random r(8);
    Tensors t;
    add_awq(t, "m", random_weight(r, 64, 64, 32, 4, false, "F16", false), "F16");
    const struct { const char *settings; qe_status expected; } cases[] = {
        {awq_settings, QE_OK},
        {R"({"quant_method":"awq","bits":4,"group_size":32,"version":"gemv_fast"})", QE_E_UNSUPPORTED},
        {R"({"quant_method":"awq","bits":8,"group_size":32})", QE_E_UNSUPPORTED},
        {R"({"quant_method":"awq","bits":3,"group_size":32})", QE_E_UNSUPPORTED},
        {R"({"quant_method":"awq","bits":4,"group_size":0})", QE_E_RANGE},
        {R"({"quant_method":"awq","bits":4,"group_size":32,"modules_to_not_convert":"lm_head"})", QE_E_TYPE},
        {R"({"quant_method":"awq","bits":4,"group_size":32,"modules_to_not_convert":[1]})", QE_E_TYPE},
        {R"({"quant_method":"awq","bits":4,"group_size":32,"modules_to_not_convert":["m"]})", QE_E_MISMATCH},
        {R"({"quant_method":"awq","w_bit":4,"q_group_size":32,"version":"GEMM"})", QE_OK},
    };
    for (const auto &c : cases) {
        Opened o(t, c.settings);
        EXPECT_TRUE(has_status(o.status, c.expected, o.err)) << c.settings;
    }
    std::string many = "[";
    for (int i = 0; i <= 10000; i++) many += (i ? ",\"x\"" : "\"x\"");
    Opened o(t, R"({"quant_method":"awq","bits":4,"group_size":32,"modules_to_not_convert":)" + many + "]}");
    EXPECT_TRUE(has_status(o.status, QE_E_LIMIT, o.err));
}

}  // namespace
