// Packed checkpoints for tests, written from the formulas of the formats and from nothing of the readers under test.
#pragma once
#include <map>
#include <string>
#include <vector>

#include <qengine/num.h>

#include "support.h"
#include "test_format_builders.h"

namespace packed {

struct Raw {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string data;
};
using Tensors = std::map<std::string, Raw>;

inline std::string file_of(const Tensors &tensors) {
    std::string json = "{", data;
    for (const auto &t : tensors) {
        if (json.size() > 1) json += ",";
        json += "\"" + t.first + "\":{\"dtype\":\"" + t.second.dtype + "\",\"shape\":[";
        for (size_t i = 0; i < t.second.shape.size(); i++) json += (i ? "," : "") + std::to_string(t.second.shape[i]);
        json += "],\"data_offsets\":[" + std::to_string(data.size()) + "," + std::to_string(data.size() + t.second.data.size()) + "]}";
        data += t.second.data;
    }
    return build::safetensors(json + "}", data);
}

// One weight in numbers: codes q[n][k], zeros z[n][G] (both unsigned), scales s[n][G] as they will be stored.
struct Weight {
    int64_t n, k, groups, group;
    int bits;
    std::vector<uint32_t> q, z;
    std::vector<float> s;
    std::vector<int32_t> group_of;      // [k]
    float value(int64_t i, int64_t c) const {
        int64_t g = i * groups + group_of[c];
        return s[g] * ((float)q[i * k + c] - (float)z[g]);
    }
};

inline uint16_t stored(const std::string &dtype, float x) { return dtype == "F16" ? qe_f32_to_f16(x) : qe_f32_to_bf16(x); }
inline float loaded(const std::string &dtype, float x) {
    return dtype == "F32" ? x : dtype == "F16" ? qe_f16_to_f32(stored(dtype, x)) : qe_bf16_to_f32(stored(dtype, x));
}

inline Weight random_weight(qe_test::Random &r, int64_t n, int64_t k, int64_t group, int bits, bool symmetric,
                            const std::string &scale_type, bool act_order) {
    Weight w{n, k, group > 0 ? k / group : 1, group > 0 ? group : k, bits, {}, {}, {}, {}};
    for (int64_t i = 0; i < n * k; i++) w.q.push_back(r.below(1u << bits));
    for (int64_t i = 0; i < n * w.groups; i++) {
        w.z.push_back(symmetric ? 1u << bits >> 1 : r.below(1u << bits));
        w.s.push_back(loaded(scale_type, r.uniform(0.001f, 0.02f)));
    }
    for (int64_t c = 0; c < k; c++) w.group_of.push_back((int32_t)(c / w.group));
    for (int64_t c = k - 1; act_order && c > 0; c--) std::swap(w.group_of[c], w.group_of[r.below((uint32_t)c + 1)]);
    return w;
}

// A stream of fields, `bits` each, LSB first, in 32-bit words.
inline std::vector<uint32_t> stream(const std::vector<uint32_t> &fields, int bits) {
    std::vector<uint32_t> words((fields.size() * bits + 31) / 32, 0);
    for (size_t i = 0; i < fields.size(); i++)
        for (int b = 0; b < bits; b++)
            if (fields[i] >> b & 1) words[(i * bits + b) / 32] |= 1u << (i * bits + b) % 32;
    return words;
}
inline std::string bytes_of(const std::vector<uint32_t> &words) { return std::string((const char *)words.data(), words.size() * 4); }
inline std::string scale_bytes(const std::string &dtype, const std::vector<float> &s) {
    std::string out;
    for (float x : s) out += dtype == "F32" ? build::le(x) : build::le(stored(dtype, x));
    return out;
}

inline void add_gptq(Tensors &t, const std::string &module, const Weight &w, const std::string &scale_type, bool first_version,
                     bool with_order) {
    const int64_t rows = w.k * w.bits / 32, zero_words = w.n * w.bits / 32;
    std::vector<uint32_t> codes(rows * w.n), zeros(w.groups * zero_words);
    std::vector<float> scales(w.groups * w.n);
    for (int64_t n = 0; n < w.n; n++) {
        std::vector<uint32_t> column(w.q.begin() + n * w.k, w.q.begin() + (n + 1) * w.k), words = stream(column, w.bits);
        for (int64_t r = 0; r < rows; r++) codes[r * w.n + n] = words[r];
        for (int64_t g = 0; g < w.groups; g++) scales[g * w.n + n] = w.s[n * w.groups + g];
    }
    for (int64_t g = 0; g < w.groups; g++) {
        std::vector<uint32_t> fields;
        for (int64_t n = 0; n < w.n; n++) fields.push_back(w.z[n * w.groups + g]);
        // Version 1 subtracts one from whole words, so that a zero borrows from its neighbor; 3-bit fields singly.
        if (first_version && 32 % w.bits)
            for (auto &f : fields) f = (f - 1) & ((1u << w.bits) - 1);
        auto words = stream(fields, w.bits);
        uint32_t ones = w.bits == 2 ? 0x55555555u : w.bits == 4 ? 0x11111111u : 0x01010101u;
        for (int64_t i = 0; i < zero_words; i++) zeros[g * zero_words + i] = words[i] - (first_version && 32 % w.bits == 0 ? ones : 0);
    }
    t[module + ".qweight"] = {"I32", {rows, w.n}, bytes_of(codes)};
    t[module + ".qzeros"] = {"I32", {w.groups, zero_words}, bytes_of(zeros)};
    t[module + ".scales"] = {scale_type, {w.groups, w.n}, scale_bytes(scale_type, scales)};
    if (with_order) t[module + ".g_idx"] = {"I32", {w.k}, std::string((const char *)w.group_of.data(), w.group_of.size() * 4)};
}

inline void add_awq(Tensors &t, const std::string &module, const Weight &w, const std::string &scale_type) {
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    auto interleaved = [&](int64_t rows, auto field) {
        std::vector<uint32_t> words(rows * w.n / 8, 0);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < w.n / 8; c++)
                for (int i = 0; i < 8; i++) words[r * w.n / 8 + c] |= field(r, 8 * c + order[i]) << 4 * i;
        return bytes_of(words);
    };
    std::vector<float> scales(w.groups * w.n);
    for (int64_t n = 0; n < w.n; n++)
        for (int64_t g = 0; g < w.groups; g++) scales[g * w.n + n] = w.s[n * w.groups + g];
    t[module + ".qweight"] = {"I32", {w.k, w.n / 8}, interleaved(w.k, [&](int64_t k, int64_t n) { return w.q[n * w.k + k]; })};
    t[module + ".qzeros"] = {"I32", {w.groups, w.n / 8}, interleaved(w.groups, [&](int64_t g, int64_t n) { return w.z[n * w.groups + g]; })};
    t[module + ".scales"] = {scale_type, {w.groups, w.n}, scale_bytes(scale_type, scales)};
}

// `dense` false: 3, 5, 6 and 7 bits in whole codes a word, as releases before June 2026 wrote them.
inline void add_compressed(Tensors &t, const std::string &module, const Weight &w, const std::string &scale_type, bool symmetric,
                           bool with_order, bool dense = true) {
    std::string codes;
    int64_t width = 0;
    for (int64_t n = 0; n < w.n; n++) {
        std::vector<uint32_t> row(w.q.begin() + n * w.k, w.q.begin() + (n + 1) * w.k), words;
        if (dense) {
            words = stream(row, w.bits);
        } else {
            size_t per = 32 / w.bits;
            for (size_t at = 0; at < row.size(); at += per) {
                uint32_t word = 0;
                for (size_t i = 0; i < per && at + i < row.size(); i++) word |= row[at + i] << i * w.bits;
                words.push_back(word);
            }
        }
        width = (int64_t)words.size();
        codes += bytes_of(words);
    }
    t[module + ".weight_packed"] = {"I32", {w.n, width}, codes};
    t[module + ".weight_scale"] = {scale_type, {w.n, w.groups}, scale_bytes(scale_type, w.s)};
    t[module + ".weight_shape"] = {"I64", {2}, build::u64((uint64_t)w.n) + build::u64((uint64_t)w.k)};
    if (with_order) t[module + ".weight_g_idx"] = {"I32", {w.k}, std::string((const char *)w.group_of.data(), w.group_of.size() * 4)};
    if (symmetric) return;
    int64_t rows = (w.n * w.bits + 31) / 32;
    std::vector<uint32_t> zeros(rows * w.groups);
    for (int64_t g = 0; g < w.groups; g++) {
        std::vector<uint32_t> fields;
        for (int64_t n = 0; n < w.n; n++) fields.push_back(w.z[n * w.groups + g]);
        auto words = stream(fields, w.bits);
        for (int64_t r = 0; r < rows; r++) zeros[r * w.groups + g] = words[r];
    }
    t[module + ".weight_zero_point"] = {"I32", {rows, w.groups}, bytes_of(zeros)};
}

inline void add_int8(Tensors &t, const std::string &module, const Weight &w, const std::string &scale_type, bool symmetric) {
    std::string codes, zeros;
    for (uint32_t q : w.q) codes += (char)(int8_t)((int)q - 128);
    for (uint32_t z : w.z) zeros += (char)(int8_t)((int)z - 128);
    t[module + ".weight"] = {"I8", {w.n, w.k}, codes};
    t[module + ".weight_scale"] = {scale_type, {w.n, 1}, scale_bytes(scale_type, w.s)};
    if (!symmetric) t[module + ".weight_zero_point"] = {"I8", {w.n, 1}, zeros};
}

// A store from tensors and a quantization_config; keeps the bytes it borrows.
struct Opened {
    std::string bytes;
    qe_store *store = nullptr;
    qe_error err{};
    qe_status status;
    Opened(const Tensors &t, const std::string &settings) : bytes(file_of(t)) {
        std::string config = settings.empty() ? "{}" : "{\"quantization_config\":" + settings + "}";
        status = build::open_store(bytes, "model.safetensors", 0, &store, &err, nullptr, config);
    }
    ~Opened() { qe_store_close(store); }
    Opened(const Opened &) = delete;
};

// Rows of a weight in the caller's column order, read in bands of `step`.
inline std::vector<float> values(const qe_store *store, const std::string &name, int64_t step, qe_error *err, qe_status *status) {
    int64_t index = qe_store_find(store, name.c_str());
    std::vector<float> out;
    *status = QE_E_MISSING;
    if (index < 0) return out;
    qe_qtensor form;
    int32_t known;
    qe_store_form(store, index, &form, &known);
    for (int64_t row = 0; row < form.rows; row += step) {
        int64_t rows = std::min(step, form.rows - row);
        build::Band band;
        band.place(form.quant, rows, form.k);
        *status = qe_store_read(store, index, row, rows, nullptr, &band.t, err);
        if (*status) return out;
        uint32_t facts = 0;
        *status = qe_qtensor_check(&band.t, &facts, err);
        if (*status) return out;
        band.t.order = form.order;
        out.resize((size_t)((row + rows) * form.k));
        *status = qe_dequantize(&band.t, 0, rows, out.data() + row * form.k, form.k, err);
        if (*status) return out;
    }
    return out;
}

/* Every value of a tensor read `step` rows at a time is the formula's, bit for bit. */
inline void expect_values(const Opened &o, const std::string &name, const Weight &w, int64_t step) {
    qe_error err{};
    qe_status status;
    auto got = values(o.store, name, step, &err, &status);
    ASSERT_TRUE(qe_test::is_ok(status, err));
    std::vector<float> expected;
    for (int64_t n = 0; n < w.n; n++)
        for (int64_t k = 0; k < w.k; k++) expected.push_back(w.value(n, k));
    EXPECT_TRUE(qe_test::same_bits(got, expected));
}

}  // namespace packed
