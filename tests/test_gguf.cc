// GGUF: every block type decoded against the formula of its format, metadata of every type, row maps, and a real file.
#include <gtest/gtest.h>
#include <qengine/num.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "test_format_builders.h"

using namespace build;
using namespace std::string_literals;

namespace {

float half(const uint8_t *p) {
    return qe_f16_to_f32(uint16_t(p[0] | p[1] << 8));
}

// The published formulas, element by element, in fp32 and in the reference's order of operations.
float q4_0(const uint8_t *b, int e) {
    return float((e < 16 ? b[2 + e] & 15 : b[2 + e - 16] >> 4) - 8) * half(b);
}
float iq4_nl(const uint8_t *b, int e) {
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return float(values[e < 16 ? b[2 + e] & 15 : b[2 + e - 16] >> 4]) * half(b);
}
float q5_0(const uint8_t *b, int e) {
    uint32_t qh;
    std::memcpy(&qh, b + 2, 4);
    int low = e < 16 ? b[6 + e] & 15 : b[6 + e - 16] >> 4;
    return float((low | int(qh >> e & 1) << 4) - 16) * half(b);
}
float q8_0(const uint8_t *b, int e) {
    return float(int8_t(b[2 + e])) * half(b);
}
float q4_k(const uint8_t *b, int e) {
    const uint8_t *s = b + 4, *qs = b + 16;
    int i = e / 32, sc, mn;
    if (i < 4) {
        sc = s[i] & 63;
        mn = s[i + 4] & 63;
    } else {
        sc = (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
        mn = (s[i + 4] >> 4) | (s[i] >> 6) << 4;
    }
    uint8_t byte = qs[32 * (e / 64) + e % 32];
    int q = e % 64 < 32 ? byte & 15 : byte >> 4;
    float d1 = half(b) * float(sc), m1 = half(b + 2) * float(mn), product = d1 * float(q);
    return product - m1;
}
float q6_k(const uint8_t *b, int e) {
    int c = e / 128, t = e % 128 / 32, l = e % 32;
    uint8_t x = b[64 * c + l + 32 * (t & 1)];
    int q = ((t >= 2 ? x >> 4 : x & 15) | (b[128 + 32 * c + l] >> 2 * t & 3) << 4) - 32;
    float s = half(b + 208) * float(int8_t(b[192 + e / 16]));
    return s * float(q);
}
float f32(const uint8_t *b, int) {
    float f;
    std::memcpy(&f, b, 4);
    return f;
}
float f16(const uint8_t *b, int) {
    return half(b);
}
float bf16(const uint8_t *b, int) {
    return qe_bf16_to_f32(uint16_t(b[0] | b[1] << 8));
}

struct BlockType {
    const char *name;
    uint32_t id;
    int block, bytes;
    float (*value)(const uint8_t *, int);
    std::vector<int> scales; // byte positions of fp16 fields; the exponent of a plain float likewise
};
const BlockType kTypes[] = {
    {"F32", 0, 1, 4, f32, {2}},           {"F16", 1, 1, 2, f16, {0}},          {"BF16", 30, 1, 2, bf16, {0}},
    {"Q4_0", 2, 32, 18, q4_0, {0}},       {"Q5_0", 6, 32, 22, q5_0, {0}},      {"Q8_0", 8, 32, 34, q8_0, {0}},
    {"Q4_K", 12, 256, 144, q4_k, {0, 2}}, {"Q6_K", 14, 256, 210, q6_k, {208}}, {"IQ4_NL", 20, 32, 18, iq4_nl, {0}},
};

std::string random_blocks(const BlockType &type, int count, uint32_t seed) {
    std::mt19937 rng(seed);
    std::string out(size_t(count) * size_t(type.bytes), '\0');
    for (auto &c : out) c = char(rng());
    for (int b = 0; b < count; b++)
        for (int at : type.scales) { // keep exponents finite; signs and subnormals stay random
            auto *p = reinterpret_cast<uint8_t *>(&out[size_t(b) * size_t(type.bytes) + size_t(at)]);
            p[1] = uint8_t(p[1] & ~0x40);
        }
    return out;
}

Gguf one_tensor(const BlockType &type, int64_t rows, int64_t row_blocks, const std::string &data) {
    Gguf g;
    g.keys = {kv_str("general.architecture", "x"), kv_u32("general.quantization_version", 2)};
    g.tensors = {{"w", {uint64_t(row_blocks) * uint64_t(type.block), uint64_t(rows)}, type.id, data}};
    return g;
}

TEST(Gguf, EveryBlockTypeEqualsItsFormulaBitForBit) {
    const int64_t rows = 40, row_blocks = 256; // 10,240 blocks of each type
    int64_t checked = 0, negative = 0;
    for (const auto &type : kTypes) {
        std::string data = random_blocks(type, int(rows * row_blocks), type.id + 7), file;
        file = one_tensor(type, rows, row_blocks, data).bytes();
        qe_store *store;
        qe_error err;
        ASSERT_EQ(open_store(file, "t.gguf", 0, &store, &err), QE_OK) << err.message;
        std::vector<float> w;
        ASSERT_EQ(read_rows(store, 0, 0, rows, nullptr, &w, &err), QE_OK) << type.name << err.message;
        for (size_t i = 0; i < w.size(); i++) {
            auto *block = reinterpret_cast<const uint8_t *>(data.data()) + i / size_t(type.block) * size_t(type.bytes);
            float want = type.value(block, int(i % size_t(type.block)));
            ASSERT_EQ(qe_f32_bits(want), qe_f32_bits(w[i])) << type.name << " element " << i;
            checked++;
        }
        for (int64_t b = 0; b < rows * row_blocks; b++)
            negative += uint8_t(data[size_t(b) * size_t(type.bytes) + size_t(type.scales[0]) + 1]) >> 7;
        qe_store_close(store);
    }
    std::printf("%lld elements, %lld blocks with a negative scale\n", (long long)checked, (long long)negative);
    EXPECT_GT(negative, 10000);
}

TEST(Gguf, NanInEveryScaleFieldIsFoundAndNamed) {
    for (const auto &type : kTypes)
        for (int at : type.scales)
            for (int bad : {0x7c, 0xfc, 0x7e}) {
                std::string data(size_t(type.bytes) * 12, '\0');
                size_t block = 7; // 3 blocks a row: row 2, second block
                data[block * size_t(type.bytes) + size_t(at) + 1] = char(type.id == 30 || type.id == 0 ? bad | 3 : bad);
                data[block * size_t(type.bytes) + size_t(at)] = char(type.id == 30 || type.id == 0 ? 0x80 : 0);
                std::string file = one_tensor(type, 4, 3, data).bytes();
                qe_store *store;
                qe_error err;
                ASSERT_EQ(open_store(file, "t.gguf", 0, &store, &err), QE_OK) << err.message;
                std::vector<float> w;
                EXPECT_EQ(read_rows(store, 0, 2, 1, nullptr, &w, &err), QE_E_VALUE) << type.name << " " << bad;
                EXPECT_NE(std::string(err.message).find("\"w\""), std::string::npos);
                EXPECT_NE(std::string(err.message).find("row 2"), std::string::npos) << err.message;
                EXPECT_EQ(read_rows(store, 0, 0, 2, nullptr, &w, &err), QE_OK) << err.message;
                qe_store_close(store);
            }
}

// A name is the file's: what a terminal would act on never reaches a message.
TEST(Gguf, NamesInMessagesAreEscaped) {
    Gguf g = one_tensor(kTypes[0], 1, 1, le(0x7fc00000u));
    g.tensors[0].name = "a\x1b[31m\nb";
    std::string file = g.bytes();
    qe_store *store;
    qe_error err;
    ASSERT_EQ(open_store(file, "t.gguf", 0, &store, &err), QE_OK) << err.message;
    std::vector<float> w;
    EXPECT_EQ(read_rows(store, 0, 0, 1, nullptr, &w, &err), QE_E_VALUE);
    EXPECT_NE(std::string(err.message).find("\"a\\x1b[31m\\x0ab\""), std::string::npos) << err.message;
    qe_store_close(store);
}

TEST(Gguf, GoldenBlocks) {
    // By hand: Q4_0 with d = -0.5 (0xb800), byte 0 = 0x21; Q8_0 of 32 ones, d = 1/127 (0x2008).
    std::string q4 = std::string("\x00\xb8\x21", 3) + std::string(15, '\x88');
    std::string q8 = std::string("\x08\x20", 2) + std::string(32, '\x7f');
    qe_error err;
    qe_store *store;
    std::vector<float> w;
    std::string file = one_tensor(kTypes[3], 1, 1, q4).bytes();
    ASSERT_EQ(open_store(file, "t.gguf", 0, &store, &err), QE_OK);
    ASSERT_EQ(read_rows(store, 0, 0, 1, nullptr, &w, &err), QE_OK);
    EXPECT_EQ(w[0], 3.5f);
    EXPECT_EQ(w[16], 3.0f);
    EXPECT_EQ(w[1], 0.0f);
    qe_store_close(store);
    file = one_tensor(kTypes[5], 1, 1, q8).bytes();
    ASSERT_EQ(open_store(file, "t.gguf", 0, &store, &err), QE_OK);
    ASSERT_EQ(read_rows(store, 0, 0, 1, nullptr, &w, &err), QE_OK);
    for (float v : w) EXPECT_EQ(v, 127 * qe_f16_to_f32(0x2008));
    qe_store_close(store);
}

TEST(Gguf, RowMapsAndBandsGiveTheSameRows) {
    const int64_t rows = 1000;
    std::string data;
    for (int64_t r = 0; r < rows; r++)
        for (int c = 0; c < 8; c++) data += le(float(r * 10 + c));
    Gguf g = one_tensor(kTypes[0], rows, 8, data);
    std::string file = g.bytes();
    qe_store *store;
    qe_error err;
    ASSERT_EQ(open_store(file, "t.gguf", 0, &store, &err), QE_OK);
    std::vector<int64_t> maps[3];
    std::mt19937 rng(1);
    for (int64_t r = 0; r < rows; r++) {
        maps[0].push_back(rows - 1 - r);
        maps[1].push_back(r / 100 * 100 + (r % 100 < 50 ? 2 * (r % 50) : 2 * (r % 50) + 1));
        maps[2].push_back(int64_t(rng() % rows));
    }
    for (const auto &map : maps)
        for (int64_t first = 0; first < rows; first += 333) {
            int64_t count = std::min<int64_t>(333, rows - first);
            std::vector<float> w;
            ASSERT_EQ(read_rows(store, 0, first, count, map.data(), &w, &err), QE_OK) << err.message;
            for (int64_t r = 0; r < count; r++)
                for (int c = 0; c < 8; c++) ASSERT_EQ(w[size_t(r * 8 + c)], float(map[size_t(first + r)] * 10 + c));
        }
    std::vector<int64_t> bad(size_t(rows), rows);
    std::vector<float> w;
    EXPECT_EQ(read_rows(store, 0, 0, 1, bad.data(), &w, &err), QE_E_ARGUMENT);
    EXPECT_EQ(read_rows(store, 0, 999, 2, nullptr, &w, &err), QE_E_ARGUMENT);
    qe_store_close(store);
}

TEST(Gguf, MetadataOfEveryType) {
    Gguf g;
    g.keys = {kv("a.u8", U8, "\xff"),
              kv("a.i8", I8, "\xff"),
              kv("a.u16", U16, le(uint16_t(65535))),
              kv("a.i16", I16, le(int16_t(-2))),
              kv("a.u32", U32, u32(4294967295u)),
              kv("a.i32", I32, le(int32_t(-3))),
              kv("a.u64", U64, u64(1ull << 40)),
              kv("a.i64", I64, le(int64_t(-4))),
              kv("a.f32", F32, le(1.5f)),
              kv("a.f64", F64, le(2.25)),
              kv("a.yes", BOOL, "\1"),
              kv("a.text", STRING, text("h\xc3\xa9")),
              kv_array("a.words", STRING, 3, text("x") + text("") + text("\xff\0z"s)),
              kv_array("a.floats", F32, 2, le(0.5f) + le(-1.0f)),
              kv_array("a.bytes", I8, 2, "\x01\xfe"),
              kv("a.big", U64, u64(~0ull))};
    std::string file = g.bytes();
    qe_store *store;
    qe_error err;
    ASSERT_EQ(open_store(file, "t.gguf", 0, &store, &err), QE_OK) << err.message;
    const struct {
        const char *key;
        int64_t value;
    } ints[] = {{"a.u8", 255},         {"a.i8", -1},  {"a.u16", 65535},     {"a.i16", -2},
                {"a.u32", 4294967295}, {"a.i32", -3}, {"a.u64", 1ll << 40}, {"a.i64", -4}};
    for (const auto &row : ints) {
        int64_t v = 0;
        EXPECT_EQ(qe_store_get_int(store, row.key, &v, &err), QE_OK);
        EXPECT_EQ(v, row.value) << row.key;
    }
    int64_t i;
    double d;
    bool b;
    const char *s;
    size_t n;
    EXPECT_EQ(qe_store_get_int(store, "a.big", &i, &err), QE_E_RANGE);
    EXPECT_EQ(qe_store_get_int(store, "a.f32", &i, &err), QE_E_TYPE);
    EXPECT_EQ(qe_store_get_float(store, "a.u8", &d, &err), QE_E_TYPE);
    EXPECT_EQ(qe_store_get_int(store, "a.none", &i, &err), QE_E_MISSING);
    ASSERT_EQ(qe_store_get_float(store, "a.f64", &d, &err), QE_OK);
    EXPECT_EQ(d, 2.25);
    ASSERT_EQ(qe_store_get_bool(store, "a.yes", &b, &err), QE_OK);
    EXPECT_TRUE(b);
    ASSERT_EQ(qe_store_get_string(store, "a.text", &s, &n, &err), QE_OK);
    EXPECT_STREQ(s, "h\xc3\xa9");
    EXPECT_EQ(n, 3u);
    qe_meta_array a;
    ASSERT_EQ(qe_store_get_array(store, "a.words", &a, &err), QE_OK);
    ASSERT_EQ(a.count, 3);
    s = qe_meta_array_string(&a, 2, &n);
    EXPECT_EQ(std::string(s, n), "\xff\0z"s);
    ASSERT_EQ(qe_store_get_array(store, "a.floats", &a, &err), QE_OK);
    EXPECT_EQ(qe_meta_array_float(&a, 1), -1.0);
    ASSERT_EQ(qe_store_get_array(store, "a.bytes", &a, &err), QE_OK);
    EXPECT_EQ(qe_meta_array_int(&a, 1), -2);
    EXPECT_EQ(a.item_bytes, 1);
    qe_store_close(store);
}

TEST(Gguf, TypesWithoutDecoderAreListedAndRefusedByName) {
    const BlockType q5_k = {"Q5_K", 13, 256, 176, q4_k, {0}};
    std::string file = one_tensor(q5_k, 2, 1, std::string(352, '\0')).bytes();
    qe_store *store;
    qe_error err;
    ASSERT_EQ(open_store(file, "t.gguf", 0, &store, &err), QE_OK) << err.message;
    const qe_store_tensor *t = qe_store_tensor_at(store, 0);
    EXPECT_STREQ(qe_store_type_name(t), "Q5_K");
    EXPECT_EQ(t->bytes, 352u);
    qe_qtensor band{};
    EXPECT_EQ(qe_store_read(store, 0, 0, 1, nullptr, &band, &err), QE_E_UNSUPPORTED);
    EXPECT_NE(std::string(err.message).find("Q5_K"), std::string::npos);
    qe_store_close(store);
}

TEST(Gguf, RealModel) {
    std::string path = std::getenv("QE_TEST_GGUF") ? std::getenv("QE_TEST_GGUF") : "";
    if (path.empty() && std::getenv("HOME"))
        path = std::string(std::getenv("HOME")) + "/.cache/qengine/gemma-3-270m-q4_k_m.gguf";
    std::FILE *f = std::fopen(path.c_str(), "rb");
    if (!f) GTEST_SKIP() << "no real model: set QE_TEST_GGUF or run `make run` once (" << path << ")";
    std::fclose(f);
    qe_model *model;
    qe_error err;
    ASSERT_EQ(qe_model_open(path.c_str(), nullptr, &model, &err), QE_OK) << err.message;
    qe_model_info info;
    ASSERT_EQ(qe_model_get_info(model, &info, &err), QE_OK);
    std::printf("%s: %s, %lld tensors, %.1f M parameters, %.3f bits each\n", info.name, info.family,
                (long long)info.tensors, double(info.parameters) / 1e6, info.bits_per_weight);
    EXPECT_GT(info.parameters, 1000000u);
    EXPECT_NE(qe_model_tokenizer(model), nullptr);
    for (int64_t i = 0; i < info.tensors; i++) { // every tensor reads; the first rows suffice for the large ones
        qe_tensor_info t;
        ASSERT_EQ(qe_model_get_tensor(model, i, &t, &err), QE_OK);
        int64_t rows = std::min<int64_t>(t.rows, 2048);
        Band band;
        band.place(t.quant, rows, t.columns);
        ASSERT_EQ(qe_model_read(model, i, t.rows - rows, rows, &band.t, &err), QE_OK) << err.message;
    }
    qe_model_close(model);
}

} // namespace
