// Writers of small checkpoints for tests: byte strings, every field free to be wrong.
#pragma once
#include <qengine/model.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "format/store.h"

namespace build {

template <class T> inline std::string le(T value) {
    std::string out(sizeof value, '\0');
    std::memcpy(&out[0], &value, sizeof value);
    return out;
}
inline std::string u32(uint64_t v) {
    return le(static_cast<uint32_t>(v));
}
inline std::string u64(uint64_t v) {
    return le(v);
}
inline std::string text(const std::string &s) {
    return u64(s.size()) + s;
}

enum Type { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

inline std::string kv(const std::string &key, uint64_t type, const std::string &value) {
    return text(key) + u32(type) + value;
}
inline std::string kv_u32(const std::string &key, uint64_t v) {
    return kv(key, U32, u32(v));
}
inline std::string kv_f32(const std::string &key, float v) {
    return kv(key, F32, le(v));
}
inline std::string kv_str(const std::string &key, const std::string &v) {
    return kv(key, STRING, text(v));
}
inline std::string kv_array(const std::string &key, uint64_t item, uint64_t count, const std::string &items) {
    return kv(key, ARRAY, u32(item) + u64(count) + items);
}

struct Tensor {
    std::string name;
    std::vector<uint64_t> dims; // as in the file: fastest first
    uint64_t type = 0;
    std::string data;
    int64_t offset = -2; // -2: the right one
    int64_t rank = -1;   // -1: dims.size()
};

struct Gguf {
    std::string magic = "GGUF";
    uint64_t version = 3;
    std::vector<std::string> keys;
    std::vector<Tensor> tensors;
    int64_t tensor_count = -1, key_count = -1; // -1: the right ones
    uint64_t align = 32;
    std::string after; // appended after the padded data

    static std::string pad(std::string s, uint64_t align) {
        s.resize((s.size() + align - 1) / align * align);
        return s;
    }
    std::string header() const {
        std::string out = magic + u32(version) + u64(tensor_count < 0 ? tensors.size() : uint64_t(tensor_count)) +
                          u64(key_count < 0 ? keys.size() : uint64_t(key_count));
        for (const auto &k : keys) out += k;
        uint64_t at = 0;
        for (const auto &t : tensors) {
            out += text(t.name) + u32(t.rank < 0 ? t.dims.size() : uint64_t(t.rank));
            for (uint64_t d : t.dims) out += u64(d);
            out += u32(t.type) + u64(t.offset == -2 ? at : uint64_t(t.offset));
            at = (at + t.data.size() + align - 1) / align * align;
        }
        return out;
    }
    std::string bytes() const {
        std::string out = header();
        if (tensors.empty()) return out + after;
        out = pad(out, align);
        size_t start = out.size();
        for (const auto &t : tensors) {
            out += t.data;
            out.resize(start + (out.size() - start + align - 1) / align * align);
        }
        return out + after;
    }
};

inline std::string safetensors(const std::string &json, const std::string &data) {
    return u64(json.size()) + json + data;
}

// ---- a whole model: a Llama of two layers with a tokenizer of scores; sensible numbers, Q8_0 matrices ----------------
namespace model_size {
const int kHidden = 64, kFfn = 96, kVocab = 40;
}

// +-0.03 to 0.06 as F16.
inline std::string halves(size_t count) {
    std::string out;
    for (size_t i = 0; i < count; i++)
        out += le(static_cast<uint16_t>(0x2800 + i * 37 % 512 + (i % 3 ? 0x8000 : 0)));
    return out;
}

inline Gguf llama_gguf() {
    using namespace model_size;
    Gguf g;
    std::string tokens, scores, types;
    for (int i = 0; i < kVocab; i++) {
        char letter = char('a' + (i < 29 ? i - 3 : i - 32));
        std::string word = i == 0 ? "<unk>" : i == 1 ? "<s>" : i == 2 ? "</s>" : i < 29 ? std::string(1, letter)
                           : i == 29 ? "\xe2\x96\x81" : i == 30 ? "th" : i == 31 ? "the" : std::string("w") + letter;
        tokens += text(word);
        scores += le(float(-i));
        types += u32(i == 0 ? 2 : i < 3 ? 3 : 1);
    }
    g.keys = {kv_str("general.architecture", "llama"),
              kv_u32("general.quantization_version", 2),
              kv_u32("llama.block_count", 2),
              kv_u32("llama.embedding_length", kHidden),
              kv_u32("llama.feed_forward_length", kFfn),
              kv_u32("llama.attention.head_count", 2),
              kv_u32("llama.attention.head_count_kv", 1),
              kv_u32("llama.context_length", 128),
              kv_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f),
              kv_str("tokenizer.ggml.model", "llama"),
              kv_array("tokenizer.ggml.tokens", STRING, kVocab, tokens),
              kv_array("tokenizer.ggml.scores", F32, kVocab, scores),
              kv_array("tokenizer.ggml.token_type", I32, kVocab, types),
              kv_u32("tokenizer.ggml.bos_token_id", 1),
              kv_u32("tokenizer.ggml.eos_token_id", 2),
              kv_u32("tokenizer.ggml.unknown_token_id", 0)};
    auto matrix = [&](const std::string &name, uint64_t columns, uint64_t rows) {
        std::string data;
        for (uint64_t b = 0; b < columns / 32 * rows; b++) {
            data += halves(1);
            for (uint64_t i = 0; i < 32; i++) data += char(b * 7 + i * 11);
        }
        g.tensors.push_back({name, {columns, rows}, 8, data});
    };
    auto vector = [&](const std::string &name) {
        std::string data;
        for (int i = 0; i < kHidden; i++) data += le(1.0f);
        g.tensors.push_back({name, {uint64_t(kHidden)}, 0, data});
    };
    matrix("token_embd.weight", kHidden, kVocab);
    vector("output_norm.weight");
    for (int l = 0; l < 2; l++) {
        std::string p = "blk." + std::to_string(l) + ".";
        vector(p + "attn_norm.weight"), vector(p + "ffn_norm.weight");
        for (const char *n : {"attn_q", "attn_output"}) matrix(p + n + ".weight", kHidden, kHidden);
        for (const char *n : {"attn_k", "attn_v"}) matrix(p + n + ".weight", kHidden, kHidden / 2);
        for (const char *n : {"ffn_gate", "ffn_up"}) matrix(p + n + ".weight", kHidden, kFfn);
        matrix(p + "ffn_down.weight", kFfn, kHidden);
    }
    return g;
}

// Open bytes as a store; the reader borrows them. status of the open; *out may be read while `bytes` lives.
inline qe_status open_store(const std::string &bytes, const char *name, uint32_t flags, qe_store **out, qe_error *err,
                            const qe_model_limits *limits = nullptr, const std::string &config = "") {
    qe_reader reader;
    qe_status status = qe_reader_memory(bytes.data(), bytes.size(), name, &reader, err);
    if (status) return status;
    return qe_store_open_reader(reader, config.empty() ? nullptr : config.data(), config.size(), flags, limits, out,
                                err);
}

// One tensor's rows as floats, through the canonical form.
struct Band {
    std::vector<uint8_t> raw;
    qe_qtensor t{};
    void place(const qe_quant &quant, int64_t n, int64_t k) {
        size_t bytes = qe_qtensor_bytes(&quant, n, k, 0);
        raw.assign(bytes + 64, 0);
        auto at = reinterpret_cast<uintptr_t>(raw.data());
        void *block = reinterpret_cast<void *>((at + 63) / 64 * 64);
        qe_error err;
        if (qe_qtensor_place(&t, &quant, n, k, 0, block, bytes, &err)) std::abort();
    }
};
inline qe_status read_rows(const qe_store *store, int64_t tensor, int64_t first, int64_t rows, const int64_t *map,
                           std::vector<float> *out, qe_error *err) {
    const qe_store_tensor *t = qe_store_tensor_at(store, tensor);
    Band band;
    band.place(*qe_store_quant(t), rows, t->columns);
    qe_status status = qe_store_read(store, tensor, first, rows, map, &band.t, err);
    if (status) return status;
    out->assign(size_t(rows * t->columns), 0);
    return qe_dequantize(&band.t, 0, rows, out->data(), t->columns, err);
}

} // namespace build
