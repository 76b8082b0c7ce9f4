// Families: a tiny Gemma 3 and a tiny Llama in both formats: hyper-parameters, roles, row order, norm offsets; and bad
// hyper-parameters with their exact status.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <map>

#include "model/model_internal.h"
#include "support.h"
#include "test_format_builders.h"

using namespace build;

namespace {

using Config = std::map<std::string, std::string>; // key to JSON value
using Shapes = std::map<std::string, std::vector<uint64_t>>;

const int64_t kVocab = 24, kHidden = 16, kHeads = 2, kKv = 1, kHead = 8, kFfn = 32;

Config gemma_config() {
    return {{"architectures", "[\"Gemma3ForCausalLM\"]"},
            {"hidden_size", "16"},
            {"intermediate_size", "32"},
            {"num_hidden_layers", "7"},
            {"num_attention_heads", "2"},
            {"num_key_value_heads", "1"},
            {"head_dim", "8"},
            {"rms_norm_eps", "1e-06"},
            {"max_position_embeddings", "128"},
            {"vocab_size", "24"},
            {"sliding_window", "16"},
            {"rope_theta", "1000000.0"},
            {"rope_local_base_freq", "10000"},
            {"query_pre_attn_scalar", "64"},
            {"hidden_activation", "\"gelu_pytorch_tanh\""},
            {"rope_scaling", "null"}};
}
Config llama_config() {
    Config c = gemma_config();
    for (const char *k : {"sliding_window", "rope_local_base_freq", "query_pre_attn_scalar", "hidden_activation"})
        c.erase(k);
    c["architectures"] = "[\"LlamaForCausalLM\"]";
    c["hidden_act"] = "\"silu\"";
    c["num_hidden_layers"] = "2";
    c["tie_word_embeddings"] = "false";
    c["rope_theta"] = "500000";
    return c;
}
std::string json(const Config &c) {
    std::string out = "{";
    for (const auto &kv : c) out += (out.size() > 1 ? ",\"" : "\"") + kv.first + "\":" + kv.second;
    return out + "}";
}
Shapes hf_shapes(bool gemma, int layers) {
    Shapes s;
    s["model.embed_tokens.weight"] = {kVocab, kHidden};
    s["model.norm.weight"] = {kHidden};
    if (!gemma) s["lm_head.weight"] = {kVocab, kHidden};
    for (int l = 0; l < layers; l++) {
        std::string p = "model.layers." + std::to_string(l) + ".";
        s[p + "self_attn.q_proj.weight"] = {kHeads * kHead, kHidden};
        s[p + "self_attn.k_proj.weight"] = s[p + "self_attn.v_proj.weight"] = {kKv * kHead, kHidden};
        s[p + "self_attn.o_proj.weight"] = {kHidden, kHeads * kHead};
        s[p + "mlp.gate_proj.weight"] = s[p + "mlp.up_proj.weight"] = {kFfn, kHidden};
        s[p + "mlp.down_proj.weight"] = {kHidden, kFfn};
        s[p + "input_layernorm.weight"] = s[p + "post_attention_layernorm.weight"] = {kHidden};
        if (gemma) {
            s[p + "self_attn.q_norm.weight"] = s[p + "self_attn.k_norm.weight"] = {kHead};
            s[p + "pre_feedforward_layernorm.weight"] = s[p + "post_feedforward_layernorm.weight"] = {kHidden};
        }
    }
    return s;
}
// F32, or BF16 for the tensor named; element i of every tensor is i / 8.
std::string weights(const Shapes &shapes, const std::string &dtype = "F32") {
    std::string head = "{", data;
    for (const auto &kv : shapes) {
        std::string dims;
        uint64_t count = 1;
        for (uint64_t d : kv.second) {
            dims += (dims.empty() ? "" : ",") + std::to_string(d);
            count *= d;
        }
        size_t begin = data.size();
        for (uint64_t i = 0; i < count; i++) {
            std::string f = le(float(i) / 8);
            data += dtype == "F32" ? f : dtype == "BF16" ? f.substr(2) : std::string(8, '\0');
        }
        head += (head.size() > 1 ? ",\"" : "\"") + kv.first + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + dims +
                "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
    }
    return safetensors(head + "}", data);
}
qe_status open_hf(const std::string &bytes, const Config &config, qe_model **out, qe_error *err) {
    qe_reader reader;
    std::string text = json(config);
    if (qe_reader_memory(bytes.data(), bytes.size(), "m.safetensors", &reader, err)) return QE_E_ARGUMENT;
    return qe_model_open_reader(reader, text.data(), text.size(), nullptr, out, err);
}

Gguf llama_gguf() {
    Gguf g;
    g.keys = {kv_str("general.architecture", "llama"), kv_u32("llama.block_count", 1),
              kv_u32("llama.embedding_length", 16),    kv_u32("llama.feed_forward_length", 32),
              kv_u32("llama.attention.head_count", 2), kv_u32("llama.attention.head_count_kv", 1),
              kv_u32("llama.context_length", 128),     kv_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f)};
    auto add = [&](const std::string &name, std::vector<uint64_t> dims) {
        uint64_t count = 1;
        std::string data;
        for (uint64_t d : dims) count *= d;
        for (uint64_t i = 0; i < count; i++) data += le(float(i));
        g.tensors.push_back({name, dims, 0, data});
    };
    add("token_embd.weight", {16, 24});
    add("output_norm.weight", {16});
    for (const char *n : {"attn_norm", "ffn_norm"}) add("blk.0." + std::string(n) + ".weight", {16});
    for (const char *n : {"attn_q", "attn_output"}) add("blk.0." + std::string(n) + ".weight", {16, 16});
    for (const char *n : {"attn_k", "attn_v"}) add("blk.0." + std::string(n) + ".weight", {16, 8});
    for (const char *n : {"ffn_gate", "ffn_up"}) add("blk.0." + std::string(n) + ".weight", {16, 32});
    add("blk.0.ffn_down.weight", {32, 16});
    add("blk.0.attn_q.bias", {16});
    return g;
}

TEST(Family, Gemma3FromSafetensors) {
    qe_model *model;
    qe_error err;
    std::string bytes = weights(hf_shapes(true, 7), "BF16");
    ASSERT_EQ(open_hf(bytes, gemma_config(), &model, &err), QE_OK) << err.message;
    const qe_hparams &hp = model->hp;
    EXPECT_EQ(hp.layers, 7);
    EXPECT_EQ(hp.window, 16);
    EXPECT_EQ(hp.rope_global.base, 1000000.0f);
    EXPECT_EQ(hp.rope_local.base, 10000.0f);
    EXPECT_EQ(hp.attn_scale, 0.125f);
    EXPECT_EQ(hp.embed_scale, 4.0f);
    EXPECT_EQ(hp.activation, QE_ACTIVATION_GELU_TANH);
    EXPECT_TRUE(hp.qk_norm && hp.post_norms && hp.tied);
    EXPECT_FALSE(hp.attn_bias || hp.mlp_bias);
    for (int l = 0; l < 7; l++) EXPECT_EQ(hp.local[l], l != 5) << l;
    qe_weight_ref ref, embed;
    for (int role = 0; role < QE_ROLE_COUNT; role++) { // every role answers; the required ones are there
        ASSERT_EQ(qe_model_weight(model, qe_role(role), 0, &ref, &err), QE_OK);
        bool absent = role == QE_ROLE_ROPE_FREQS || role >= QE_ROLE_Q_BIAS;
        EXPECT_EQ(ref.tensor < 0, absent) << qe_role_name(qe_role(role));
        EXPECT_EQ(ref.row_map, nullptr);
    }
    ASSERT_EQ(qe_model_weight(model, QE_ROLE_OUTPUT, 0, &ref, &err), QE_OK);
    ASSERT_EQ(qe_model_weight(model, QE_ROLE_EMBED, 0, &embed, &err), QE_OK);
    EXPECT_EQ(ref.tensor, embed.tensor);
    EXPECT_EQ(ref.n, kVocab);
    ASSERT_EQ(qe_model_weight(model, QE_ROLE_K_NORM, 6, &ref, &err), QE_OK);
    std::vector<float> v(8);
    ASSERT_EQ(qe_model_read_vector(model, &ref, v.data(), &err), QE_OK) << err.message;
    for (int i = 0; i < 8; i++) EXPECT_EQ(v[size_t(i)], 1 + float(i) / 8);
    EXPECT_EQ(qe_model_weight(model, QE_ROLE_Q, 7, &ref, &err), QE_E_ARGUMENT);
    qe_model_close(model);
}

TEST(Family, EmbeddingScaleIsRoundedToTheEmbeddingsType) {
    Config c = gemma_config();
    Shapes s = hf_shapes(true, 7);
    c["hidden_size"] = "20";
    for (auto &kv : s)
        for (auto &d : kv.second)
            if (d == uint64_t(kHidden) && kv.first.find("q_proj") == std::string::npos &&
                kv.first.find("o_proj") == std::string::npos)
                d = 20;
    for (int l = 0; l < 7; l++) {
        s["model.layers." + std::to_string(l) + ".self_attn.q_proj.weight"] = {16, 20};
        s["model.layers." + std::to_string(l) + ".self_attn.o_proj.weight"] = {20, 16};
    }
    qe_error err;
    const struct {
        const char *dtype;
        float scale;
    } rows[] = {{"F32", std::sqrt(20.0f)}, {"BF16", 4.46875f}};
    for (const auto &row : rows) {
        qe_model *model;
        std::string bytes = weights(s, row.dtype);
        ASSERT_EQ(open_hf(bytes, c, &model, &err), QE_OK) << err.message;
        EXPECT_EQ(model->hp.embed_scale, row.scale) << row.dtype;
        qe_model_close(model);
    }
}

TEST(Family, LayerTypesAndNestedRope) {
    Config c = gemma_config();
    std::string types = "[";
    for (int l = 0; l < 7; l++)
        types += std::string(l ? "," : "") + (l % 2 ? "\"full_attention\"" : "\"sliding_attention\"");
    c["layer_types"] = types + "]";
    c["rope_parameters"] = "{\"full_attention\":{\"rope_theta\":5e5,\"rope_type\":\"linear\",\"factor\":8},"
                           "\"sliding_attention\":{\"rope_theta\":20000,\"rope_type\":\"default\"}}";
    qe_model *model;
    qe_error err;
    std::string bytes = weights(hf_shapes(true, 7));
    ASSERT_EQ(open_hf(bytes, c, &model, &err), QE_OK) << err.message;
    for (int l = 0; l < 7; l++) EXPECT_EQ(model->hp.local[l], l % 2 == 0);
    EXPECT_EQ(model->hp.rope_global.base, 5e5f);
    EXPECT_EQ(model->hp.rope_global.factor, 8);
    EXPECT_EQ(model->hp.rope_local.base, 20000);
    EXPECT_EQ(model->hp.rope_local.factor, 1);
    qe_model_close(model);
}

TEST(Family, LlamaFromSafetensors) {
    qe_model *model;
    qe_error err;
    Config c = llama_config();
    c["rope_scaling"] = "{\"rope_type\":\"llama3\",\"factor\":32.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                        "\"original_max_position_embeddings\":8192}";
    std::string bytes = weights(hf_shapes(false, 2));
    ASSERT_EQ(open_hf(bytes, c, &model, &err), QE_OK) << err.message;
    EXPECT_EQ(model->hp.rope_global.scaling, QE_ROPE_SCALE_LLAMA3);
    EXPECT_EQ(model->hp.rope_global.original_context, 8192);
    EXPECT_EQ(model->hp.window, 0);
    EXPECT_EQ(model->hp.embed_scale, 1);
    EXPECT_FALSE(model->hp.tied);
    qe_weight_ref out, embed, norm;
    qe_model_weight(model, QE_ROLE_OUTPUT, 0, &out, &err);
    qe_model_weight(model, QE_ROLE_EMBED, 0, &embed, &err);
    qe_model_weight(model, QE_ROLE_FFN_NORM, 1, &norm, &err);
    EXPECT_NE(out.tensor, embed.tensor);
    EXPECT_EQ(norm.norm_offset, 0);
    qe_model_close(model);
}

TEST(Family, LlamaGgufRowsComeBackInPublishedOrder) {
    qe_model *model;
    qe_error err;
    std::string bytes = llama_gguf().bytes();
    qe_reader reader;
    ASSERT_EQ(qe_reader_memory(bytes.data(), bytes.size(), "m.gguf", &reader, &err), QE_OK);
    ASSERT_EQ(qe_model_open_reader(reader, nullptr, 0, nullptr, &model, &err), QE_OK) << err.message;
    EXPECT_EQ(model->hp.vocab, 24);
    EXPECT_EQ(model->hp.head_dim, 8);
    EXPECT_TRUE(model->hp.tied && model->hp.attn_bias);
    qe_weight_ref q, bias;
    ASSERT_EQ(qe_model_weight(model, QE_ROLE_Q, 0, &q, &err), QE_OK);
    std::vector<float> w, b(16);
    ASSERT_EQ(read_rows(model->store, q.tensor, 0, 16, q.row_map, &w, &err), QE_OK);
    const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7}; // of GGUF rows inside a head of 8
    for (int r = 0; r < 16; r++) EXPECT_EQ(w[size_t(r * 16)], float((r / 8 * 8 + order[r % 8]) * 16)) << r;
    ASSERT_EQ(qe_model_weight(model, QE_ROLE_Q_BIAS, 0, &bias, &err), QE_OK);
    ASSERT_EQ(qe_model_read_vector(model, &bias, b.data(), &err), QE_OK);
    for (int r = 0; r < 16; r++) EXPECT_EQ(b[size_t(r)], float(r / 8 * 8 + order[r % 8]));
    qe_model_close(model);
}

TEST(Family, BadHyperParametersGiveTheirStatus) {
    struct Row {
        const char *row, *key, *value;
        qe_status want;
    };
    const Row rows[] = {
        {"F1", "num_attention_heads", "0", QE_E_RANGE},
        {"F2", "num_key_value_heads", "0", QE_E_RANGE},
        {"F3", "num_attention_heads", "3", QE_E_MISMATCH},
        {"F3", "num_key_value_heads", "4", QE_E_MISMATCH},
        {"F4", "hidden_size", "0", QE_E_RANGE},
        {"F4", "hidden_size", "-1", QE_E_RANGE},
        {"F4", "hidden_size", "2147483648", QE_E_RANGE},
        {"F4", "hidden_size", "17", QE_E_MISMATCH},
        {"F5", "head_dim", "0", QE_E_RANGE},
        {"F5", "head_dim", "7", QE_E_RANGE},
        {"F5", "head_dim", "65536", QE_E_RANGE},
        {"F5", "head_dim", "4", QE_E_MISMATCH},
        {"F6", "num_hidden_layers", "0", QE_E_RANGE},
        {"F6", "num_hidden_layers", "-1", QE_E_RANGE},
        {"F6", "num_hidden_layers", "4097", QE_E_LIMIT},
        {"F6", "num_hidden_layers", "2147483648", QE_E_RANGE},
        {"F7", "num_hidden_layers", "3", QE_E_MISSING},
        {"F8", "num_hidden_layers", "1", QE_E_MISMATCH},
        {"F10", "vocab_size", "0", QE_E_RANGE},
        {"F10", "vocab_size", "-5", QE_E_RANGE},
        {"F10", "vocab_size", "2147483648", QE_E_RANGE},
        {"F10", "vocab_size", "4194305", QE_E_LIMIT},
        {"F11", "vocab_size", "25", QE_E_MISMATCH},
        {"F12", "intermediate_size", "0", QE_E_RANGE},
        {"F12", "intermediate_size", "33", QE_E_MISMATCH},
        {"F13", "max_position_embeddings", "0", QE_E_RANGE},
        {"F13", "max_position_embeddings", "-1", QE_E_RANGE},
        {"F13", "max_position_embeddings", "1099511627776", QE_E_LIMIT},
        {"F14", "rms_norm_eps", "-1e-6", QE_E_RANGE},
        {"F14", "rms_norm_eps", "0", QE_E_RANGE},
        {"F15", "rope_theta", "0", QE_E_RANGE},
        {"F15", "rope_theta", "-1", QE_E_RANGE},
        {"F15", "rope_theta", "1e-310", QE_E_RANGE},
        {"F16", "rope_scaling", "{\"type\":\"linear\",\"factor\":0}", QE_E_RANGE},
        {"F16", "rope_scaling", "{\"type\":\"linear\"}", QE_E_MISSING},
        {"F16", "rope_scaling", "{\"type\":\"yarn\",\"factor\":2}", QE_E_UNSUPPORTED},
        {"F16", "rope_scaling", "{\"rope_type\":\"llama3\",\"factor\":8.0}", QE_E_MISSING},
        {"F22", "hidden_act", "\"relu\"", QE_E_UNSUPPORTED},
        {"F22", "architectures", "[\"XForCausalLM\"]", QE_E_UNSUPPORTED},
        {"F22", "architectures", "[]", QE_E_UNSUPPORTED},
        {"E10", "hidden_size", "\"16\"", QE_E_TYPE},
        {"E10", "hidden_size", "16.0", QE_E_TYPE},
        {"E10", "hidden_size", "true", QE_E_TYPE},
        {"E6", "hidden_size", "16,\"hidden_size\":16", QE_E_DUPLICATE},
        {"E11", "hidden_size", "9007199254740993", QE_E_RANGE},
        {"D21", "architectures", "null", QE_E_MISSING},
        {"F2", "hidden_size", "null", QE_E_MISSING},
    };
    std::string good = weights(hf_shapes(false, 2));
    qe_model *model;
    qe_error err;
    for (const auto &row : rows) {
        SCOPED_TRACE(std::string(row.row) + " " + row.key + " = " + row.value);
        Config c = llama_config();
        c[row.key] = row.value;
        model = nullptr;
        EXPECT_STREQ(qe_status_name(open_hf(good, c, &model, &err)), qe_status_name(row.want)) << err.message;
        EXPECT_EQ(model, nullptr);
        qe_model_close(model);
        ASSERT_EQ(open_hf(good, llama_config(), &model, &err), QE_OK) << err.message;
        qe_model_close(model);
    }
    struct Edit {
        const char *row, *tensor;
        std::vector<uint64_t> shape;
        qe_status want;
    };
    const Edit edits[] = {
        {"F7", "model.layers.1.mlp.down_proj.weight", {}, QE_E_MISSING},
        {"F23", "lm_head.weight", {}, QE_E_MISSING},
        {"F23", "model.embed_tokens.weight", {}, QE_E_MISSING},
        {"F26", "model.layers.0.mlp.up_proj.weight", {16, 32}, QE_E_SHAPE},
        {"F26", "model.norm.weight", {1, 16}, QE_E_SHAPE},
        {"F26", "model.layers.0.mlp.up_proj.weight", {512}, QE_E_SHAPE},
        {"F8", "model.layers.2.input_layernorm.weight", {16}, QE_E_MISMATCH},
    };
    for (const auto &e : edits) {
        Shapes s = hf_shapes(false, 2);
        s.erase(e.tensor);
        if (!e.shape.empty()) s[e.tensor] = e.shape;
        std::string bytes = weights(s);
        EXPECT_STREQ(qe_status_name(open_hf(bytes, llama_config(), &model, &err)), qe_status_name(e.want))
            << e.row << e.tensor << err.message;
    }
    std::string integers = weights(hf_shapes(false, 2), "I64");
    EXPECT_EQ(open_hf(integers, llama_config(), &model, &err), QE_E_TYPE) << err.message;
    std::printf("%zu rows\n", sizeof rows / sizeof rows[0] + sizeof edits / sizeof edits[0] + 1);
}

} // namespace
