// Malformed files: one table row for each case, with the one status it must give and the good file it was made from.
// Every case is opened from memory and from a file; the good neighbor must open straight afterwards.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cstdio>

#include "malformed_rig.h"

using namespace malformed;
using namespace std::string_literals;

namespace {

int checked = 0;

void run(const std::vector<Case> &cases, const char *file, const std::string &good) {
    checked += run_cases(cases, file, good);
}

// ---- GGUF ----------------------------------------------------------------------------------------------------------
std::vector<Case> gguf_counts() {
    std::vector<Case> out;
    const struct {
        uint64_t count;
        qe_status want;
    } sweep[] = {{~0ull, QE_E_OVERFLOW},          {~0ull - 1, QE_E_OVERFLOW},    {1ull << 63, QE_E_OVERFLOW},
                 {~0ull >> 1, QE_E_OVERFLOW},     {(1ull << 62) - 1, QE_E_OVERFLOW}, {1ull << 60, QE_E_OVERFLOW},
                 {(1ull << 53) + 1, QE_E_LIMIT},  {1ull << 53, QE_E_LIMIT},      {1ull << 32, QE_E_LIMIT},
                 {(1ull << 32) - 1, QE_E_LIMIT},  {1ull << 31, QE_E_LIMIT},      {(1ull << 31) - 1, QE_E_LIMIT},
                 {(1ull << 24) + 1, QE_E_LIMIT},  {1000001, QE_E_LIMIT},         {99999, QE_E_TRUNCATED},
                 {(1 << 16) - 1, QE_E_TRUNCATED}, {1 << 15, QE_E_TRUNCATED},     {255, QE_E_TRUNCATED},
                 {1 << 7, QE_E_TRUNCATED}};
    for (const auto &s : sweep) {
        out.push_back({"D4", "tensor count " + std::to_string(s.count), s.want,
                       gguf([&](Gguf &g) { g.tensor_count = int64_t(s.count); })});
        out.back().bytes.replace(8, 8, u64(s.count));
        out.push_back({"D5", "key count " + std::to_string(s.count), s.want, good_gguf().bytes()});
        out.back().bytes.replace(16, 8, u64(s.count));
    }
    /* Near the truth (2 and 2): one record is taken for another kind, or for data. */
    const struct {
        const char *row;
        size_t at;
        uint64_t count;
        qe_status want;
    } near[] = {{"D4", 8, 0, QE_E_HOLE},   {"D4", 8, 1, QE_E_HOLE},   {"D4", 8, 3, QE_E_RANGE},
                {"D5", 16, 0, QE_E_RANGE}, {"D5", 16, 1, QE_E_SHAPE}, {"D5", 16, 3, QE_E_RANGE}};
    for (const auto &n : near) {
        out.push_back({n.row, "count " + std::to_string(n.count), n.want, good_gguf().bytes()});
        out.back().bytes.replace(n.at, 8, u64(n.count));
    }
    for (uint64_t size : {16, 33, 64, int(sizeof(qe_store_tensor))}) {
        out.push_back({"D6", "tensor count wraps", QE_E_OVERFLOW, good_gguf().bytes()});
        out.back().bytes.replace(8, 8, u64(~0ull / size + 1));
    }
    return out;
}

std::vector<Case> gguf_keys() {
    auto raw_key = [](uint64_t length, const std::string &rest) {
        return gguf([&](Gguf &g) { g.keys.push_back(u64(length) + rest); });
    };
    std::string tail = u32(U32) + u32(7), nested;
    for (int i = 0; i < 10000; i++) nested += u32(ARRAY) + u64(1);
    std::vector<Case> out = {
        {"D7", "key length 0", QE_E_RANGE, raw_key(0, tail)},
        {"D7", "key length 65,536", QE_E_LIMIT, raw_key(65536, std::string(65536, 'a') + tail),
         raw_key(65535, std::string(65535, 'a') + tail)},
        {"D7", "key length 2^31", QE_E_LIMIT, raw_key(1ull << 31, tail)},
        {"D7", "key length 2^63", QE_E_LIMIT, raw_key(1ull << 63, tail)},
        {"D7", "key length 2^64-1", QE_E_LIMIT, raw_key(~0ull, tail)},
        {"D7", "key length past the end", QE_E_TRUNCATED, raw_key(60000, tail)},
        {"D8", "string length 2^64-1", QE_E_LIMIT, key(text("k") + u32(STRING) + u64(~0ull))},
        {"D8", "string length over the limit", QE_E_LIMIT, key(text("k") + u32(STRING) + u64((64u << 20) + 1))},
        {"D8", "string past the end", QE_E_TRUNCATED, key(text("k") + u32(STRING) + u64(64u << 20))},
        {"D9", "key with space", QE_E_RANGE, key(kv_u32("a b", 1)), key(kv_u32("a_b", 1))},
        {"D9", "key upper case", QE_E_RANGE, key(kv_u32("aB", 1))},
        {"D9", "key with NUL", QE_E_RANGE, key(kv_u32("a\0b"s, 1))},
        {"D9", "key not ASCII", QE_E_RANGE, key(kv_u32("a\xc3\xa9", 1))},
        {"D17", "key not UTF-8", QE_E_UTF8, key(kv_u32("a\xff", 1))},
        {"D10", "same key, same type", QE_E_DUPLICATE, key(kv_str("general.architecture", "x"))},
        {"D10", "same key, other type", QE_E_DUPLICATE, key(kv_u32("general.architecture", 3))},
        {"D11", "value type 13", QE_E_TYPE, key(kv("k", 13, u32(0)))},
        {"D11", "value type 2^31", QE_E_TYPE, key(kv("k", 1u << 31, u32(0)))},
        {"D11", "value type -1", QE_E_TYPE, key(kv("k", 0xffffffff, u32(0)))},
        {"D12", "item type 13", QE_E_TYPE, key(kv_array("k", 13, 1, u32(0)))},
        {"D12", "item type -1", QE_E_TYPE, key(kv_array("k", 0xffffffff, 1, u32(0)))},
        {"D13", "array of arrays", QE_E_UNSUPPORTED, key(kv_array("k", ARRAY, 1, u32(U32) + u64(1) + u32(1)))},
        {"D13", "10,000 arrays in one another", QE_E_UNSUPPORTED, key(kv_array("k", ARRAY, 1, nested))},
        {"D14", "item count wraps", QE_E_OVERFLOW, key(kv_array("k", U64, 1ull << 61, "")),
         key(kv_array("k", U64, 1, u64(1)))},
        {"D14", "string count wraps", QE_E_OVERFLOW, key(kv_array("k", STRING, 1ull << 61, ""))},
        {"D14", "bytes past the end", QE_E_TRUNCATED, key(kv_array("k", U8, 1ull << 62, ""))},
        {"D14", "8-byte items past the end", QE_E_TRUNCATED, key(kv_array("k", F64, 1ull << 40, ""))},
        {"D15", "2^30 strings in 1 KiB", QE_E_TRUNCATED, key(kv_array("k", STRING, 1u << 30, std::string(1024, '\0')))},
        {"D16", "bool 2", QE_E_RANGE, key(kv("k", BOOL, "\2")), key(kv("k", BOOL, "\1"))},
        {"D16", "bool 255", QE_E_RANGE, key(kv("k", BOOL, "\xff"))},
        {"D16", "bool 2 in an array", QE_E_RANGE, key(kv_array("k", BOOL, 3, "\1\1\2"))},
        {"D17", "texts of a vocabulary are bytes", QE_OK, key(kv_array("k", STRING, 1, text("\xff")))},
        {"D17", "string not UTF-8", QE_E_UTF8, key(kv_str("general.name", "a\xff")), key(kv_str("general.name", "a"))},
        {"D18", "alignment i32", QE_E_TYPE, key(kv("general.alignment", I32, u32(32))),
         key(kv_u32("general.alignment", 32))},
        {"D18", "alignment string", QE_E_TYPE, key(kv_str("general.alignment", "32"))},
        {"D18", "alignment array", QE_E_TYPE, key(kv_array("general.alignment", U32, 1, u32(32)))},
    };
    /* D14: the sweep of the rules for items of 1 and of 8 bytes, where there are four. 128 bytes are inside the file: what
     * comes behind them is no name of a tensor. */
    for (uint64_t each : {1, 8})
        for (uint64_t count : {1ull << 7, 1ull << 15, (1ull << 16) - 1, (1ull << 24) + 1, (1ull << 31) - 1, 1ull << 31, (1ull << 32) - 1,
                               1ull << 32, (1ull << 53) + 1, (1ull << 62) - 1, ~0ull >> 1, 1ull << 63, ~0ull - 1, ~0ull}) {
            bool wraps = each == 8 && count >> 61;
            std::string items(size_t(4 * each), '\1'), what = std::to_string(count) + " items of " + std::to_string(each);
            out.push_back({"D14", what, count * each == 128 ? QE_E_LIMIT : wraps ? QE_E_OVERFLOW : QE_E_TRUNCATED,
                           key(kv_array("k", each == 1 ? U8 : F64, count, items)), key(kv_array("k", each == 1 ? U8 : F64, 4, items))});
        }
    for (uint64_t a : {0ull, 1ull, 2ull, 3ull, 4ull, 13ull, 24ull, 1ull << 21, 1ull << 31, 0xffffffffull})
        out.push_back({"D19", "alignment " + std::to_string(a), QE_E_RANGE, key(kv_u32("general.alignment", a))});
    return out;
}

std::vector<Case> gguf_tensors() {
    auto name = [](const std::string &n) { return gguf([&](Gguf &g) { g.tensors[0].name = n; }); };
    auto rank = [](uint64_t r) { return gguf([&](Gguf &g) { g.tensors[0].rank = int64_t(r); }); };
    std::vector<Case> out = {
        {"D22", "empty name", QE_E_RANGE, name("")},
        {"D22", "64 bytes", QE_E_LIMIT, name(std::string(64, 'n')), name(std::string(63, 'n'))},
        {"D22", "length 2^40", QE_E_LIMIT,
         gguf([](Gguf &g) {
             g.keys.pop_back();
             g.keys.push_back(kv_u32("general.quantization_version", 2));
         }).replace(good_gguf().header().find(text("a") + u32(1)), 8, u64(1ull << 40))},
        {"D22", "NUL inside", QE_E_RANGE, name("a\0c"s)},
        {"D22", "not UTF-8", QE_E_UTF8, name("\xff")},
        {"D23", "name twice", QE_E_DUPLICATE, name("b")},
        {"D24", "rank 0", QE_E_RANGE, rank(0)},
        {"D24", "rank 5", QE_E_RANGE, rank(5)},
        {"D24", "rank 2^31", QE_E_RANGE, rank(1u << 31)},
        {"D24", "rank 2^32-1", QE_E_RANGE, rank(0xffffffff)},
        {"D25", "dimension 2^63", QE_E_RANGE, dims({1ull << 63})},
        {"D25", "dimension -1", QE_E_RANGE, dims({32, ~0ull})},
        {"D26", "first dimension 0", QE_E_SHAPE, dims({0})},
        {"D26", "second dimension 0", QE_E_SHAPE, dims({32, 0})},
        {"D26", "last 0, others huge", QE_E_SHAPE, dims({1ull << 20, 1ull << 20, 0})},
        {"D27", "four of 2^31-1", QE_E_OVERFLOW, dims({2147483647, 2147483647, 2147483647, 2147483647})},
        {"D27", "2^32 x 2^32", QE_E_OVERFLOW, dims({1ull << 32, 1ull << 32})},
        {"D27", "(2^42+1) x 2^22", QE_E_OVERFLOW, dims({(1ull << 42) + 1, 1ull << 22})},
        {"D28", "I64 bytes wrap", QE_E_OVERFLOW, dims({(1ull << 61) + 1}, 27)},
        {"D28", "Q8_0 bytes wrap", QE_E_OVERFLOW, dims({(1ull << 63) - 32}, 8)},
        {"D28", "Q4_0 bytes wrap", QE_E_OVERFLOW, dims({(1ull << 63) - 32, 4}, 2)},
        {"D28", "Q4_K within elements, over as I64", QE_E_OVERFLOW, dims({1ull << 60}, 27)},
        {"D29", "row bytes wrap before the division", QE_E_OVERFLOW, dims({1ull << 58, 32}, 8)},
        {"D30", "F32 of 2^62", QE_E_OVERFLOW, dims({1ull << 62})},
        {"D31", "F32 of 2^62-1", QE_E_OVERFLOW, dims({(1ull << 62) - 1})},
        {"D32", "two of nearly 2^63 bytes", QE_E_OVERFLOW, gguf([](Gguf &g) {
             g.tensors[0].dims = g.tensors[1].dims = {(1ull << 61) - 8};
             g.tensors[1].type = 0;
         })},
        {"D33", "padding of the last wraps", QE_E_OVERFLOW, dims({(1ull << 61) - 1})},
        {"D36", "Q4_K row of 255", QE_E_SHAPE, dims({255}, 12)},
        {"D36", "Q4_K row of 257", QE_E_SHAPE, dims({257}, 12)},
        {"D36", "Q4_K row of 32", QE_E_SHAPE, dims({32, 8}, 12)},
        {"D37", "offset 1", QE_E_ALIGN, offset(0, 1)},
        {"D37", "offset 31", QE_E_ALIGN, offset(0, 31)},
        {"D38", "offset at the end", QE_E_OFFSET, offset(0, 224)},
        {"D38", "offset one before the end", QE_E_OFFSET, offset(0, 223)},
        {"D38", "offset 2^63", QE_E_OFFSET, offset(0, 1ull << 63)},
        {"D38", "offset 2^64-1", QE_E_OFFSET, offset(1, ~0ull - 0)},
        {"D39", "offset plus size wraps", QE_E_OVERFLOW, offset(1, ~0ull - 31)},
        {"D40", "shared offset", QE_E_OVERLAP, offset(1, 0)},
        {"D40", "begins inside the one before", QE_E_OVERLAP, offset(1, 96)},
        {"D41", "inside the header by wrapping", QE_E_OFFSET, offset(0, ~0ull - 255)},
        {"D42", "gap", QE_E_HOLE, gguf([](Gguf &g) { g.tensors[0].data.append(32, 0); })},
        {"D46", "1 EiB in a tiny file", QE_E_TRUNCATED, gguf([](Gguf &g) {
             g.tensors.pop_back();
             g.tensors[0].dims = {1ull << 58};
         })},
        {"D47", "no quantization version", QE_E_MISSING, gguf([](Gguf &g) { g.keys.pop_back(); })},
        {"D47", "quantization version 99", QE_E_UNSUPPORTED,
         gguf([](Gguf &g) { g.keys.back() = kv_u32("general.quantization_version", 99); })},
    };
    for (uint64_t id : {43ull, 44ull, 1000ull, 1ull << 31, 0xffffffffull})
        out.push_back({"D34", "type " + std::to_string(id), QE_E_TYPE, dims({32}, id)});
    for (uint64_t id : {4, 5, 31, 32, 33, 36, 37, 38})
        out.push_back({"D35", "type " + std::to_string(id), QE_E_UNSUPPORTED, dims({32}, id)});
    return out;
}

/* A4: what is no model at all, and is called by its name. */
std::vector<Case> strangers() {
    return {
        {"A4", "ZIP", QE_E_MAGIC, "PK\3\4 and more, long enough to be looked at", "", "ZIP"},
        {"A4", "pickle", QE_E_MAGIC, "\x80\2}q\1 and more, long enough to be looked at", "", "pickle"},
        {"A4", "HTML", QE_E_MAGIC, "<html><body>404 not found</body></html>", "", "HTML"},
        {"A4", "LFS pointer", QE_E_MAGIC, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "", "Git LFS"},
    };
}

std::vector<Case> gguf_frame() {
    std::string good = good_gguf().bytes(), last = good;
    last.resize(last.size() - 28); // 68 bytes of data in 96: 28 of padding
    auto magic = [](const char *m) { return gguf([&](Gguf &g) { g.magic = m; }); };
    auto version = [](uint64_t v) { return gguf([&](Gguf &g) { g.version = v; }); };
    std::vector<Case> out = {
        {"D1", "FUGG", QE_E_MAGIC, magic("FUGG")},
        {"D1", "GGML", QE_E_MAGIC, magic("GGML")},
        {"D1", "lower case", QE_E_MAGIC, magic("gguf")},
        {"D2", "version 0", QE_E_VERSION, version(0)},
        {"D2", "version 1", QE_E_VERSION, version(1)},
        {"D2", "version 4", QE_E_VERSION, version(4), version(2)},
        {"D2", "version -1", QE_E_VERSION, version(0xffffffff)},
        {"D3", "big-endian", QE_E_ENDIAN, version(0x03000000)},
        {"D43", "last data byte missing", QE_E_TRUNCATED, last.substr(0, last.size() - 1), last},
        {"D44", "ends before the data section", QE_E_TRUNCATED, good_gguf().header()},
        {"D45", "one byte after", QE_E_HOLE, good + "x"},
        {"D45", "1 MiB after", QE_E_HOLE, good + std::string(1 << 20, 'x')},
        {"D49", "no tensors", QE_OK, gguf([](Gguf &g) { g.tensors.clear(); })},
        {"A1", "empty", QE_E_TRUNCATED, ""},
        {"A2", "one byte", QE_E_TRUNCATED, "G"},
        {"A4", "safetensors inside", QE_E_MAGIC, safetensors("{}", ""), "", "safetensors"},
    };
    for (const auto &s : strangers()) out.push_back(s);
    for (size_t n = 1; n < last.size(); n++)
        out.push_back({"A3", "cut at " + std::to_string(n), QE_E_TRUNCATED, last.substr(0, n)});
    return out;
}

TEST(Malformed, GgufCounts) {
    run(gguf_counts(), "t.gguf", good_gguf().bytes());
}
TEST(Malformed, GgufKeys) {
    run(gguf_keys(), "t.gguf", good_gguf().bytes());
}
TEST(Malformed, GgufTensors) {
    run(gguf_tensors(), "t.gguf", good_gguf().bytes());
}
TEST(Malformed, GgufFrame) {
    run(gguf_frame(), "t.gguf", good_gguf().bytes());
}

TEST(Malformed, GgufRelaxedKeysOpenWithTheFlag) {
    std::string bytes = key(kv_u32("A key", 1));
    qe_store *store;
    qe_error err;
    EXPECT_EQ(open_store(bytes, "t.gguf", 0, &store, &err), QE_E_RANGE);
    ASSERT_EQ(open_store(bytes, "t.gguf", QE_MODEL_RELAXED_KEYS, &store, &err), QE_OK) << err.message;
    qe_store_close(store);
}

// ---- safetensors ---------------------------------------------------------------------------------------------------
std::vector<Case> safetensors_header() {
    std::string good = one(kGoodEntry), json = "{" + kGoodEntry + "}", data(4, '\1');
    auto length = [&](uint64_t n) { return std::string(good).replace(0, 8, u64(n)); };
    std::string swapped = good, deep = "\"w\":" + std::string(100000, '[');
    std::reverse(swapped.begin(), swapped.begin() + 8);
    std::string million;
    for (int i = 0; i < 1000001; i++) million += (i ? ",\"" : "\"") + std::to_string(i) + "\":{}";
    std::vector<Case> out = {
        {"B1", "7 bytes", QE_E_TRUNCATED, good.substr(0, 7)},
        {"B2", "header length 0", QE_E_JSON, u64(0)},
        {"B2", "header length 0, data", QE_E_JSON, u64(0) + data},
        {"B3", "header {", QE_E_JSON, safetensors("{", data)},
        {"B4", "header of the file's length", QE_E_TRUNCATED, length(good.size())},
        {"B4", "header one too long", QE_E_TRUNCATED, length(good.size() - 7)},
        {"B5", "over the limit", QE_E_LIMIT, length(100000001)},
        {"B6", "2^64-1", QE_E_LIMIT, length(~0ull)},
        {"B6", "2^64-8", QE_E_LIMIT, length(~0ull - 7)},
        {"B6", "2^63", QE_E_LIMIT, length(1ull << 63)},
        {"B7", "big-endian length", QE_E_LIMIT, swapped, "", "big-endian"},
        {"B8", "leading space", QE_E_JSON, safetensors(" " + json, data)},
        {"B8", "BOM", QE_E_JSON, safetensors("\xef\xbb\xbf" + json, data)},
        {"B8", "array", QE_E_JSON, safetensors("[]", "")},
        {"B8", "null", QE_E_JSON, safetensors("null", "")},
        {"B9", "FF in a name", QE_E_UTF8, one(entry("w\xff", "U8", "[4]", "[0,4]"))},
        {"B9", "overlong", QE_E_UTF8, one(entry("w\xc0\x80", "U8", "[4]", "[0,4]"))},
        {"B9", "surrogate", QE_E_UTF8, one(entry("w\xed\xa0\x80", "U8", "[4]", "[0,4]"))},
        {"B10", "missing brace", QE_E_JSON, safetensors("{" + kGoodEntry.substr(0, kGoodEntry.size() - 1) + "}", data)},
        {"B10", "trailing comma", QE_E_JSON, one(kGoodEntry + ",")},
        {"B10", "comment", QE_E_JSON, one("/**/" + kGoodEntry)},
        {"B10", "single quotes", QE_E_JSON, one("'w':{}")},
        {"B10", "control character", QE_E_JSON, one(entry("w\x01", "U8", "[4]", "[0,4]"))},
        {"B10", "NaN", QE_E_JSON, one(entry("w", "U8", "[NaN]", "[0,4]"))},
        {"B11", "NUL after", QE_E_JSON, safetensors(json + "\0"s, data), safetensors(json + "    ", data)},
        {"B11", "tab after", QE_E_JSON, safetensors(json + "\t", data)},
        {"B11", "text after", QE_E_JSON, safetensors(json + "{}", data)},
        {"B12", "100,000 deep", QE_E_DEPTH, one(deep)},
        {"B13", "tensor twice", QE_E_DUPLICATE, one(kGoodEntry + "," + entry("w", "F32", "[1]", "[0,4]"))},
        {"B14", "twice by escape", QE_E_DUPLICATE, one(kGoodEntry + "," + entry("\\u0077", "U8", "[4]", "[0,4]"))},
        {"B15", "dtype twice", QE_E_DUPLICATE,
         one("\"w\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}")},
        {"B15", "data_offsets twice", QE_E_DUPLICATE,
         one("\"w\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"data_offsets\":[0,4]}")},
        {"B16", "metadata twice", QE_E_DUPLICATE, one("\"__metadata__\":{},\"__metadata__\":{}," + kGoodEntry)},
        {"B16", "metadata number", QE_E_TYPE, one("\"__metadata__\":{\"a\":1}," + kGoodEntry),
         one("\"__metadata__\":{\"a\":\"1\"}," + kGoodEntry)},
        {"B16", "metadata nested", QE_E_TYPE, one("\"__metadata__\":{\"a\":{}}," + kGoodEntry)},
        {"B16", "metadata null", QE_E_TYPE, one("\"__metadata__\":null," + kGoodEntry)},
        {"B38", "a million and one entries", QE_E_LIMIT, one(million)},
        {"A1", "empty", QE_E_TRUNCATED, ""},
        {"A4", "GGUF inside", QE_E_MAGIC, good_gguf().bytes(), "", "GGUF"},
    };
    for (const auto &s : strangers()) out.push_back(s);
    return out;
}

std::vector<Case> safetensors_entries() {
    auto shape = [](const std::string &s) { return one(entry("w", "F32", s, "[0,4]")); };
    auto offsets = [](const std::string &o) { return one(entry("w", "U8", "[4]", o)); };
    auto two = [](const std::string &a, const std::string &b, size_t data) {
        return one(entry("a", "U8", a.substr(0, a.find('@')), a.substr(a.find('@') + 1)) + "," +
                       entry("b", "U8", b.substr(0, b.find('@')), b.substr(b.find('@') + 1)),
                   data);
    };
    std::string many, rank9 = "[1,1,1,1,1,1,1,1,1]", rank8 = "[1,1,1,1,1,1,1,1]";
    for (int i = 0; i < 1000; i++) many += (i ? "," : "") + entry("t" + std::to_string(i), "U8", "[16]", "[0,16]");
    std::string wide = "[1";
    for (int i = 1; i < 1000000; i++) wide += ",1";
    std::vector<Case> out = {
        {"B17", "F33", QE_E_UNSUPPORTED, one(entry("w", "F33", "[1]", "[0,4]"))},
        {"B17", "f32", QE_E_UNSUPPORTED, one(entry("w", "f32", "[1]", "[0,4]")), shape("[1]")},
        {"B17", "empty", QE_E_UNSUPPORTED, one(entry("w", "", "[1]", "[0,4]"))},
        {"B17", "number", QE_E_TYPE, one("\"w\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}")},
        {"B18", "no dtype", QE_E_MISSING, one("\"w\":{\"shape\":[4],\"data_offsets\":[0,4]}")},
        {"B18", "no shape", QE_E_MISSING, one("\"w\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}")},
        {"B18", "no offsets", QE_E_MISSING, one("\"w\":{\"dtype\":\"U8\",\"shape\":[4]}")},
        {"B19", "strides", QE_E_UNSUPPORTED,
         one("\"w\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"strides\":[1]}")},
        {"B20", "-1", QE_E_RANGE, shape("[-1]")},
        {"B21", "2^64", QE_E_OVERFLOW, shape("[18446744073709551616]")},
        {"B22", "2 x (2^64-2)", QE_E_OVERFLOW, shape("[2,18446744073709551614]")},
        {"B22", "2^32 x 2^32", QE_E_OVERFLOW, shape("[4294967296,4294967296]")},
        {"B22", "2^22 cubed", QE_E_OVERFLOW, shape("[4194304,4194304,4194304]")},
        {"B23", "F32 of 2^62", QE_E_OVERFLOW, shape("[4611686018427387904]")},
        {"B23", "F32 of 2 x (2^63-1)", QE_E_OVERFLOW, shape("[2,9223372036854775807]")},
        {"B24", "wrap behind a zero", QE_E_OVERFLOW, shape("[0,4611686018427387904,4611686018427387904]")},
        {"B25", "rank 9", QE_E_LIMIT, shape(rank9), shape(rank8)},
        {"B25", "rank 1,000,000", QE_E_LIMIT, shape(wide + "]")},
        {"B26", "reversed", QE_E_OFFSET, one(entry("w", "U8", "[4]", "[16,0]"), 16)},
        {"B27", "one past the end", QE_E_TRUNCATED, one(entry("w", "U8", "[5]", "[0,5]"))},
        {"B27", "begin past the end", QE_E_OFFSET, one(entry("w", "U8", "[4]", "[5,9]"))},
        {"B27", "end 2^64-1", QE_E_OFFSET, offsets("[0,18446744073709551615]")},
        {"B28", "too short for its shape", QE_E_MISMATCH, one(entry("w", "I32", "[2,2]", "[0,4]"))},
        {"B28", "one less", QE_E_MISMATCH, one(entry("w", "I32", "[2,2]", "[0,15]"), 15)},
        {"B28", "one more", QE_E_MISMATCH, one(entry("w", "I32", "[2,2]", "[0,17]"), 17)},
        {"B29", "same bytes", QE_E_OVERLAP, two("[16]@[0,16]", "[16]@[0,16]", 16),
         two("[16]@[0,16]", "[16]@[16,32]", 32)},
        {"B29", "one byte early", QE_E_OVERLAP, two("[16]@[0,16]", "[16]@[15,31]", 31)},
        {"B30", "1,000 on one slice", QE_E_OVERLAP, one(many, 16)},
        {"B31", "first begins at 4", QE_E_HOLE, one(entry("w", "U8", "[4]", "[4,8]"), 8)},
        {"B31", "gap of one", QE_E_HOLE, two("[4]@[0,4]", "[4]@[5,9]", 9)},
        {"B32", "text after", QE_E_HOLE, one(kGoodEntry) + "text"},
        {"B32", "ZIP after", QE_E_HOLE, one(kGoodEntry) + "PK\3\4"},
        {"B32", "pickle after", QE_E_HOLE, one(kGoodEntry) + "\x80\2."},
        {"B33", "one byte short", QE_E_TRUNCATED, one(kGoodEntry, 3)},
        {"B33", "two bytes short", QE_E_TRUNCATED, one(kGoodEntry, 2)},
        {"B34", "empty tensors around", QE_OK,
         one(entry("a", "U8", "[0]", "[0,0]") + "," + kGoodEntry + "," + entry("z", "U8", "[0,5]", "[4,4]"))},
        {"B34", "empty tensor outside", QE_E_OFFSET, one(kGoodEntry + "," + entry("z", "U8", "[0]", "[5,5]"))},
        {"B34", "empty tensor reversed", QE_E_OFFSET, one(kGoodEntry + "," + entry("z", "U8", "[0]", "[4,0]"))},
        {"B35", "odd count of 4-bit", QE_E_ALIGN, one(entry("w", "F4", "[7]", "[0,4]")),
         one(entry("w", "F4", "[8]", "[0,4]"))},
        {"B36", "one offset", QE_E_TYPE, offsets("[0]")},
        {"B36", "three offsets", QE_E_TYPE, offsets("[0,4,8]")},
        {"B36", "a map", QE_E_TYPE, offsets("{\"begin\":0,\"end\":4}")},
        {"B37", "empty name", QE_E_RANGE, one(entry("", "U8", "[4]", "[0,4]"))},
        {"B37", "NUL in a name", QE_E_RANGE, one(entry("a\\u0000b", "U8", "[4]", "[0,4]"))},
        {"B37", "1,025 bytes", QE_E_LIMIT, one(entry(std::string(1025, 'n'), "U8", "[4]", "[0,4]")),
         one(entry(std::string(1024, 'n'), "U8", "[4]", "[0,4]"))},
        {"B37", "a path: names lead nowhere", QE_OK, one(entry("../x", "U8", "[4]", "[0,4]"))},
        {"B37", "control character: escaped in messages", QE_OK, one(entry("a\\u001bb", "U8", "[4]", "[0,4]"))},
        {"B37", "control character, escaped in the message", QE_E_HOLE, one(entry("a\\u001bb", "U8", "[4]", "[4,8]"), 8), "", "a\\x1bb"},
        {"B39", "F32 at an odd byte", QE_OK,
         one(entry("a", "U8", "[1]", "[0,1]") + "," + entry("b", "F32", "[1]", "[1,5]"), 5)},
        {"B40", "scalar", QE_OK, shape("[]")},
    };
    for (const char *s : {"[1.5]", "[\"4\"]", "[1e3]", "[true]", "[null]", "4", "{}"})
        out.push_back({"B20", s, QE_E_TYPE, shape(s)});
    std::string good = one(kGoodEntry);
    for (size_t n = 1; n < good.size(); n++)
        out.push_back({"A3", "cut at " + std::to_string(n), QE_E_TRUNCATED, good.substr(0, n)});
    return out;
}

TEST(Malformed, SafetensorsHeader) {
    run(safetensors_header(), "t.safetensors", one(kGoodEntry));
}
TEST(Malformed, SafetensorsEntries) {
    run(safetensors_entries(), "t.safetensors", one(kGoodEntry));
}

// ---- any file ------------------------------------------------------------------------------------------------------
TEST(Malformed, Paths) {
    qe_test::TempFolder folder;
    mkdir(folder.file("d.gguf").c_str(), 0700);
    mkdir(folder.file("plain").c_str(), 0700);
    ASSERT_EQ(mkfifo(folder.file("fifo.gguf").c_str(), 0600), 0);
    ASSERT_EQ(mkfifo(folder.file("fifo").c_str(), 0600), 0);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", folder.file("socket.gguf").c_str());
    ASSERT_EQ(bind(listener, reinterpret_cast<struct sockaddr *>(&address), sizeof address), 0);
    ASSERT_EQ(close(listener), 0);
    const struct {
        const char *row;
        std::string path;
        qe_status want;
    } rows[] = {
        {"A5", folder.file("d.gguf"), QE_E_IO},
        {"A5", folder.file("plain"), QE_E_IO},
        {"A6", folder.file("fifo.gguf"), QE_E_IO},
        {"A6", folder.file("fifo"), QE_E_IO},
        {"A6", folder.file("socket.gguf"), QE_E_IO},
        {"A6", "/dev/zero", QE_E_IO},
        {"A8", folder.file("none.gguf"), QE_E_IO},
        {"A8", folder.file("none"), QE_E_IO},
        {"A16", "", QE_E_PATH},
        {"A16", std::string(1 << 20, 'p'), QE_E_PATH},
    };
    for (const auto &row : rows) {
        qe_store *store;
        qe_error err;
        EXPECT_STREQ(qe_status_name(qe_store_open(row.path.c_str(), 0, nullptr, &store, &err)),
                     qe_status_name(row.want))
            << row.row << " " << row.path.substr(0, 60) << ": " << err.message;
        EXPECT_EQ(store, nullptr);
        checked++;
    }
}

// B5, second form: the file is as long as its header says, and sparse.
TEST(Malformed, HeaderOverTheLimitInAFileThatLong) {
    qe_test::TempFolder folder;
    const uint64_t limit = 100000000;
    for (uint64_t n : {limit + 1, limit}) {
        std::string path = folder.write("t.safetensors", u64(n) + "{");
        ASSERT_EQ(truncate(path.c_str(), off_t(8 + n)), 0);
        qe_store *store;
        qe_error err;
        long before = peak_kib();
        EXPECT_EQ(qe_store_open(path.c_str(), 0, nullptr, &store, &err), n > limit ? QE_E_LIMIT : QE_E_JSON) << err.message;
        EXPECT_EQ(store, nullptr);
        if (n > limit) {
            EXPECT_LE(peak_kib() - before, 1024);
        }
        checked++;
    }
}

// A13: a read error at every step of opening and reading.
struct Failing {
    std::string bytes;
    int left;
};
qe_status failing_read(void *ctx, uint64_t offset, void *dst, size_t bytes, qe_error *err) {
    auto *f = static_cast<Failing *>(ctx);
    if (f->left-- == 0) return qe_error_set(err, QE_E_IO, "injected");
    if (offset + bytes > f->bytes.size()) return qe_error_set(err, QE_E_TRUNCATED, "past the end");
    std::memcpy(dst, f->bytes.data() + offset, bytes);
    return QE_OK;
}
TEST(Malformed, ReadErrorAtEveryStep) {
    Gguf big = good_gguf();
    for (int i = 0; i < 4000; i++) big.keys.push_back(kv_str("k." + std::to_string(i), std::string(100, 'v')));
    const std::string files[] = {big.bytes(), one(entry("w", "F32", "[1]", "[0,4]"))};
    for (const auto &bytes : files)
        for (int step = 0, done = 0; !done; step++) {
            Failing f{bytes, step};
            qe_store *store;
            qe_error err;
            qe_status status = qe_store_open_reader({&f, bytes.size(), "mem", failing_read, nullptr}, nullptr, 0, 0,
                                                    nullptr, &store, &err);
            std::vector<float> w;
            if (!status) {
                status = read_rows(store, 0, 0, 1, nullptr, &w, &err);
                qe_store_close(store);
            }
            done = f.left >= 0;
            EXPECT_EQ(status, done ? QE_OK : QE_E_IO) << "step " << step << " " << err.message;
            ASSERT_LT(step, 100);
            checked++;
        }
}

// A15: tensors beyond 2^31 and 2^32 of a sparse file.
TEST(Malformed, FileAbove4GiBReadsTheRightBytes) {
    qe_test::TempFolder folder;
    const uint64_t half = 2200000000ull / 32 * 32, marks[] = {half, 2 * half};
    std::string json =
        "{" + entry("a", "U8", "[" + std::to_string(half) + "]", "[0," + std::to_string(half) + "]") + "," +
        entry("b", "F32", "[1]", "[" + std::to_string(half) + "," + std::to_string(half + 4) + "]") + "," +
        entry("c", "U8", "[" + std::to_string(half - 4) + "]",
              "[" + std::to_string(half + 4) + "," + std::to_string(2 * half) + "]") +
        "," + entry("d", "F32", "[1]", "[" + std::to_string(2 * half) + "," + std::to_string(2 * half + 4) + "]") + "}";
    std::string path = folder.write("big.safetensors", u64(json.size()) + json);
    FILE *f = std::fopen(path.c_str(), "r+b");
    ASSERT_NE(f, nullptr);
    for (int i = 0; i < 2; i++) {
        float value = 1.5f + float(i);
        ASSERT_EQ(fseeko(f, off_t(8 + json.size() + marks[i]), SEEK_SET), 0);
        if (std::fwrite(&value, 4, 1, f) != 1) {
            std::fclose(f);
            GTEST_SKIP() << "the file system does not hold sparse files above 4 GiB";
        }
    }
    std::fclose(f);
    qe_store *store;
    qe_error err;
    ASSERT_EQ(qe_store_open(path.c_str(), 0, nullptr, &store, &err), QE_OK) << err.message;
    for (int i = 0; i < 2; i++) {
        std::vector<float> w;
        ASSERT_EQ(read_rows(store, qe_store_find(store, i ? "d" : "b"), 0, 1, nullptr, &w, &err), QE_OK) << err.message;
        EXPECT_EQ(w[0], 1.5f + float(i));
    }
    qe_store_close(store);
}

// A9: the file shrinks between the header and the data.
TEST(Malformed, ShrinkingFileIsNoticed) {
    qe_test::TempFolder folder;
    std::string path = folder.write("t.gguf", good_gguf().bytes());
    qe_store *store;
    qe_error err;
    ASSERT_EQ(qe_store_open(path.c_str(), 0, nullptr, &store, &err), QE_OK);
    ASSERT_EQ(truncate(path.c_str(), 200), 0);
    std::vector<float> w;
    EXPECT_EQ(read_rows(store, 1, 0, 2, nullptr, &w, &err), QE_E_CHANGED) << err.message;
    qe_store_close(store);
}

TEST(Malformed, ZCount) {
    std::printf("%d malformed cases\n", checked);
    EXPECT_GT(checked, 500);
}

} // namespace
