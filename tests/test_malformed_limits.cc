// Every limit a caller may set (qe_model_limits): what the file holds opens, one less is QE_E_LIMIT. And the defaults that
// a small file reaches.
#include <qengine/tokenizer.h>

#include "malformed_rig.h"

using namespace malformed;

namespace {

struct Limit {
    const char *name;
    uint64_t qe_model_limits::*field;
    uint64_t held; // by the file at hand
};

// Opens at the limit, is refused below it, and 0 stands for the default.
template <class Open> void at_and_below(const Limit &l, const Open &open) {
    SCOPED_TRACE(l.name);
    for (uint64_t value : {l.held, l.held - 1, uint64_t(0)}) {
        if (!value && l.held == 1) continue;
        qe_model_limits limits = {};
        limits.*l.field = value;
        qe_error err = {};
        qe_status got = open(limits, &err);
        EXPECT_STREQ(qe_status_name(got), qe_status_name(value == l.held - 1 ? QE_E_LIMIT : QE_OK)) << value << ": " << err.message;
    }
}

TEST(MalformedLimits, Gguf) {
    Gguf g = llama_gguf();
    g.keys.push_back(kv_str("general.name", "The longest string of this file"));
    for (int i = 0; i < 2000; i++) g.keys.push_back(kv_u32("filler.number." + std::to_string(i), 1)); // more than one chunk
    const std::string bytes = g.bytes();
    const Limit rows[] = {
        {"header_bytes", &qe_model_limits::header_bytes, g.header().size()},
        {"string_bytes", &qe_model_limits::string_bytes, 31},
        {"tensors", &qe_model_limits::tensors, g.tensors.size()},
        {"keys", &qe_model_limits::keys, g.keys.size()},
        {"array_items", &qe_model_limits::array_items, uint64_t(model_size::kVocab)},
        {"layers", &qe_model_limits::layers, 2},
        {"vocab", &qe_model_limits::vocab, uint64_t(model_size::kVocab)},
        {"context", &qe_model_limits::context, 128},
    };
    ASSERT_GT(g.header().size(), size_t(1) << 16);
    for (const auto &row : rows)
        at_and_below(row, [&](const qe_model_limits &limits, qe_error *err) {
            qe_reader reader;
            qe_model *model = nullptr;
            qe_model_options o = {};
            o.struct_size = sizeof o;
            o.limits = &limits;
            EXPECT_EQ(qe_reader_memory(bytes.data(), bytes.size(), "m.gguf", &reader, err), QE_OK);
            qe_status status = qe_model_open_reader(reader, nullptr, 0, &o, &model, err);
            EXPECT_EQ(model == nullptr, status != QE_OK);
            qe_model_close(model);
            return status;
        });
}

// A header that one chunk holds is measured as well.
TEST(MalformedLimits, SmallGgufHeader) {
    const std::string bytes = good_gguf().bytes();
    at_and_below({"header_bytes", &qe_model_limits::header_bytes, good_gguf().header().size()},
                 [&](const qe_model_limits &limits, qe_error *err) {
                     qe_store *store = nullptr;
                     qe_status status = open_store(bytes, "t.gguf", 0, &store, err, &limits);
                     qe_store_close(store);
                     return status;
                 });
}

TEST(MalformedLimits, FolderOfShards) {
    qe_test::TempFolder folder;
    std::string map;
    size_t header = 0;
    for (const char *name : {"a", "b", "c"}) {
        std::string json = "{" + entry(name, "U8", "[4]", "[0,4]") + "}";
        header = json.size();
        folder.write(std::string(name) + ".safetensors", safetensors(json, std::string(4, '\1')));
        map += std::string(map.empty() ? "" : ",") + "\"" + name + "\":\"" + name + ".safetensors\"";
    }
    const std::string config = R"({"architectures":["LlamaForCausalLM","two"],"model_type":"a string of 23 bytes.."})";
    const std::string index = "{\"weight_map\":{" + map + "}}";
    folder.write("config.json", config);
    folder.write("model.safetensors.index.json", index);
    ASSERT_LE(index.size(), 4 * config.size()); // so that config.json meets the limit first
    const Limit rows[] = {
        {"header_bytes", &qe_model_limits::header_bytes, header},
        {"config_bytes", &qe_model_limits::config_bytes, config.size()},
        {"string_bytes", &qe_model_limits::string_bytes, 22},
        {"tensors", &qe_model_limits::tensors, 3},
        {"keys", &qe_model_limits::keys, 2},
        {"array_items", &qe_model_limits::array_items, 2},
        {"shards", &qe_model_limits::shards, 3},
    };
    for (const auto &row : rows)
        at_and_below(row, [&](const qe_model_limits &limits, qe_error *err) {
            qe_store *store = nullptr;
            qe_status status = qe_store_open(folder.path().c_str(), 0, &limits, &store, err);
            qe_store_close(store);
            return status;
        });
}

// D15, second form: many empty strings.
TEST(MalformedLimits, EmptyStrings) {
    const uint64_t limit = 16777216;
    for (uint64_t count : {limit, limit + 1}) {
        std::string bytes = key(kv_array("k", STRING, count, std::string(8 * count, '\0')));
        qe_store *store = nullptr;
        qe_error err = {};
        long before = peak_kib();
        EXPECT_EQ(open_store(bytes, "t.gguf", 0, &store, &err), count > limit ? QE_E_LIMIT : QE_OK) << err.message;
        EXPECT_LE(peak_kib() - before, spare_kib + 4 * long(bytes.size() >> 10));
        qe_store_close(store);
    }
}

} // namespace
