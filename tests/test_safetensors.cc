// Safetensors: single file and shards in a folder, values through the canonical form, and the rules for shard names.
#include <gtest/gtest.h>
#include <qengine/num.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "support.h"
#include "test_format_builders.h"

using namespace build;

namespace {

std::string entry(const std::string &name, const std::string &dtype, const std::string &shape, size_t begin,
                  size_t end) {
    return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
           std::to_string(begin) + "," + std::to_string(end) + "]}";
}
std::string shard(const std::string &name, float value) {
    return safetensors("{" + entry(name, "F32", "[1,2]", 0, 8) + "}", le(value) + le(-value));
}

TEST(Safetensors, FloatsOfEveryReadType) {
    std::string f32, f16, bf16;
    for (uint32_t i = 0; i < 65536; i++) {
        f32 += le(float(i) - 0.25f);
        f16 += le(uint16_t((i & 0x7c00) == 0x7c00 ? 0 : i));
        bf16 += le(uint16_t((i & 0x7f80) == 0x7f80 ? 0 : i));
    }
    size_t a = f32.size(), b = a + f16.size();
    std::string file =
        safetensors("{" + entry("x", "F32", "[256,256]", 0, a) + "," + entry("y", "F16", "[4,64,256]", a, b) + "," +
                        entry("z", "BF16", "[65536]", b, b + bf16.size()) + "}",
                    f32 + f16 + bf16);
    qe_store *store;
    qe_error err;
    ASSERT_EQ(open_store(file, "t.safetensors", 0, &store, &err), QE_OK) << err.message;
    std::vector<float> w;
    ASSERT_EQ(read_rows(store, 0, 0, 256, nullptr, &w, &err), QE_OK) << err.message;
    for (size_t i = 0; i < 65536; i++) ASSERT_EQ(w[i], float(i) - 0.25f);
    ASSERT_EQ(read_rows(store, 1, 0, 256, nullptr, &w, &err), QE_OK) << err.message;
    for (uint32_t i = 0; i < 65536; i++)
        ASSERT_EQ(qe_f32_bits(w[i]), qe_f32_bits(qe_f16_to_f32(uint16_t((i & 0x7c00) == 0x7c00 ? 0 : i))));
    ASSERT_EQ(read_rows(store, 2, 0, 1, nullptr, &w, &err), QE_OK) << err.message;
    for (uint32_t i = 0; i < 65536; i++) ASSERT_EQ(qe_f32_bits(w[i]), (i & 0x7f80) == 0x7f80 ? 0 : i << 16);
    const qe_store_tensor *t = qe_store_tensor_at(store, 1);
    EXPECT_EQ(t->rank, 3);
    EXPECT_EQ(t->rows, 256);
    EXPECT_EQ(qe_store_find(store, "z"), 2);
    EXPECT_EQ(qe_store_find(store, "w"), -1);
    qe_store_close(store);
}

TEST(Safetensors, TypesNotReadAreListedAndRefusedByName) {
    for (const char *type : {"I64", "U64", "F64", "C64"}) {
        std::string file = safetensors("{" + entry("w", type, "[1]", 0, 8) + "}", std::string(8, '\0'));
        qe_store *store;
        qe_error err;
        ASSERT_EQ(open_store(file, "t.safetensors", 0, &store, &err), QE_OK) << err.message;
        qe_qtensor band{};
        EXPECT_EQ(qe_store_read(store, 0, 0, 1, nullptr, &band, &err), QE_E_UNSUPPORTED);
        EXPECT_NE(std::string(err.message).find(type), std::string::npos);
        qe_store_close(store);
    }
}

std::string index_of(const std::string &map) {
    return "{\"metadata\":{\"total_size\":16},\"weight_map\":{" + map + "}}";
}
const char kOne[] = "model-00001-of-00002.safetensors", kTwo[] = "model-00002-of-00002.safetensors";
std::string pair(const std::string &tensor, const std::string &file) {
    return "\"" + tensor + "\":\"" + file + "\"";
}

TEST(Safetensors, ShardedFolder) {
    qe_test::TempFolder folder;
    folder.write("config.json", "{\"a\":1,\"b\":{\"c\":[1,2.5],\"d\":[\"x\",\"\"]},\"n\":null}");
    folder.write(kOne, shard("a", 1));
    folder.write(kTwo, shard("b", 2));
    folder.write("model.safetensors.index.json", index_of(pair("a", kOne) + "," + pair("b", kTwo)));
    qe_store *store;
    qe_error err;
    ASSERT_EQ(qe_store_open(folder.path().c_str(), 0, nullptr, &store, &err), QE_OK) << err.message;
    EXPECT_EQ(qe_store_tensor_count(store), 2);
    for (int i = 0; i < 2; i++) {
        std::vector<float> w;
        ASSERT_EQ(read_rows(store, qe_store_find(store, i ? "b" : "a"), 0, 1, nullptr, &w, &err), QE_OK);
        EXPECT_EQ(w[0], float(i + 1));
    }
    int64_t v;
    qe_meta_array array;
    ASSERT_EQ(qe_store_get_int(store, "a", &v, &err), QE_OK);
    ASSERT_EQ(qe_store_get_array(store, "b.c", &array, &err), QE_OK);
    EXPECT_EQ(qe_meta_array_float(&array, 0), 1.0);
    EXPECT_EQ(qe_meta_array_float(&array, 1), 2.5);
    ASSERT_EQ(qe_store_get_array(store, "b.d", &array, &err), QE_OK);
    size_t bytes;
    EXPECT_EQ(*qe_meta_array_string(&array, 0, &bytes), 'x');
    EXPECT_EQ(qe_store_get_int(store, "n", &v, &err), QE_E_MISSING);
    char *side;
    ASSERT_EQ(qe_store_side_file(store, "config.json", 1000, &side, &bytes, &err), QE_OK);
    EXPECT_NE(side, nullptr);
    free(side);
    EXPECT_EQ(qe_store_side_file(store, "config.json", 10, &side, &bytes, &err), QE_E_LIMIT);
    EXPECT_EQ(qe_store_side_file(store, "none.json", 10, &side, &bytes, &err), QE_OK);
    EXPECT_EQ(side, nullptr);
    qe_store_close(store);
}

TEST(Safetensors, BadIndexes) {
    struct Row {
        const char *row;
        std::string index;
        qe_status want;
    };
    std::string a = pair("a", kOne), b = pair("b", kTwo), good = index_of(a + "," + b), both = a + ",";
    const Row rows[] = {
        {"C1", index_of(both + pair("b", "../other.safetensors")), QE_E_PATH},
        {"C2", index_of(both + pair("b", "/etc/hostname")), QE_E_PATH},
        {"C3", index_of(both + pair("b", "..")), QE_E_PATH},
        {"C3", index_of(both + pair("b", ".")), QE_E_PATH},
        {"C3", index_of(both + pair("b", "")), QE_E_PATH},
        {"C4", index_of(both + pair("b", "..\\\\x")), QE_E_PATH},
        {"C4", index_of(both + pair("b", "x:y")), QE_E_PATH},
        {"C5", index_of(both + pair("b", "sub/x.safetensors")), QE_E_PATH},
        {"C7", index_of(both + pair("b", "link.safetensors")), QE_E_PATH},
        {"C11", index_of(both + pair("b", "none.safetensors")), QE_E_MISSING},
        {"C12", index_of(both + b + "," + pair("c", kTwo)), QE_E_MISSING},
        {"C13", index_of(pair("a", kTwo) + "," + pair("b", kOne)), QE_E_MISMATCH},
        {"C14", index_of(a + "," + pair("b", "twin.safetensors") + "," + pair("c", kTwo)), QE_E_DUPLICATE},
        {"C15", index_of(a + "," + pair("c", kTwo)), QE_E_MISMATCH},
        {"C16", "{}", QE_E_MISSING},
        {"C16", "{\"weight_map\":[]}", QE_E_TYPE},
        {"C16", "{\"weight_map\":{\"a\":1}}", QE_E_TYPE},
        {"C17", index_of(a + "," + pair("a", kTwo)), QE_E_DUPLICATE},
        {"C19", index_of(both + pair("b", "model.bin")), QE_E_UNSUPPORTED},
        {"C21", "{\"metadata\":{\"total_size\":-1},\"weight_map\":{" + a + "," + b + "}}", QE_E_TYPE},
        {"C21", "{\"metadata\":{\"total_size\":\"x\"},\"weight_map\":{" + a + "," + b + "}}", QE_E_TYPE},
    };
    qe_test::TempFolder folder;
    folder.write("config.json", "{}");
    folder.write(kOne, shard("a", 1));
    folder.write(kTwo, shard("b", 2));
    folder.write("twin.safetensors", shard("b", 2));
    ASSERT_EQ(symlink(kTwo, folder.file("link.safetensors").c_str()), 0);
    qe_store *store;
    qe_error err;
    for (const auto &row : rows) {
        folder.write("model.safetensors.index.json", row.index);
        EXPECT_STREQ(qe_status_name(qe_store_open(folder.path().c_str(), 0, nullptr, &store, &err)),
                     qe_status_name(row.want))
            << row.row << " " << row.index << ": " << err.message;
        EXPECT_EQ(store, nullptr);
        folder.write("model.safetensors.index.json", good);
        ASSERT_EQ(qe_store_open(folder.path().c_str(), 0, nullptr, &store, &err), QE_OK) << err.message;
        qe_store_close(store);
    }
    folder.write("model.safetensors.index.json", index_of(a + "," + pair("b", "link.safetensors")));
    ASSERT_EQ(qe_store_open(folder.path().c_str(), QE_MODEL_FOLLOW_LINKS, nullptr, &store, &err), QE_OK) << err.message;
    qe_store_close(store);
    std::printf("%zu rows\n", sizeof rows / sizeof rows[0]);
}

} // namespace
