// Malformed models: what shows only when a file is opened as a model, read by an engine, or read through an operating
// system that gives short answers. One table row for each case, with the one status it must give.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>

#include <qengine/session.h>
#include <qengine/tokenizer.h>
extern "C" {
#include "model/tokenizer.h"
}
#include "support.h"
#include "test_format_builders.h"

using namespace build;
using qe_test::is_ok;

// Reads of the whole program; while `stingy`, they give one byte or EINTR in turn.
static std::atomic<bool> stingy{false};
static std::atomic<long> stingy_reads{0};
extern "C" ssize_t pread(int fd, void *to, size_t bytes, off_t offset) {
    if (stingy) {
        if (stingy_reads++ % 2) {
            errno = EINTR;
            return -1;
        }
        bytes = bytes ? 1 : 0;
    }
    return syscall(SYS_pread64, fd, to, bytes, offset);
}

namespace {

qe_status open_model(const std::string &bytes, qe_model **out, qe_error *err) {
    qe_reader reader;
    *out = nullptr;
    if (qe_reader_memory(bytes.data(), bytes.size(), "m.gguf", &reader, err)) return QE_E_ARGUMENT;
    return qe_model_open_reader(reader, nullptr, 0, nullptr, out, err);
}

// What an engine computes from a model: the logits after five tokens.
qe_status logits_of(const qe_model *model, std::vector<float> *out, qe_error *err) {
    qe_device *device = nullptr;
    qe_engine *engine = nullptr;
    qe_session *session = nullptr;
    qe_device_options d = {};
    d.struct_size = sizeof d;
    d.backend = QE_BACKEND_CPU;
    d.threads = 1;
    qe_engine_options o = {};
    o.struct_size = sizeof o;
    o.context_tokens = 32;
    o.max_batch_tokens = 8;
    qe_status status = qe_device_create(&d, &device, err);
    if (!status) status = qe_engine_create(device, model, &o, &engine, err);
    if (!status) status = qe_session_create(engine, &session, err);
    const int32_t ids[] = {1, 5, 30, 7, 9};
    qe_step_item item = {session, ids, 5, QE_WANT_LAST, 0, nullptr, 0};
    if (!status) status = qe_engine_step(engine, &item, 1, nullptr, err);
    if (!status) {
        qe_engine_info info;
        qe_engine_get_info(engine, &info);
        const float *row = qe_session_logits(session);
        out->assign(row, row + info.vocab);
    }
    qe_session_destroy(session);
    EXPECT_EQ(qe_engine_destroy(engine), QE_OK);
    qe_device_destroy(device);
    return status;
}

// Not malformed: the one line a host's log gets about a model.
TEST(ModelLog, SaysWhatWasOpened) {
    std::vector<std::string> lines;
    qe_log log = {};
    log.ctx = &lines;
    log.write = [](void *ctx, qe_log_level, const char *line) {
        static_cast<std::vector<std::string> *>(ctx)->push_back(line);
    };
    qe_model_options o = {};
    o.struct_size = sizeof o;
    o.log = &log;
    Gguf g = llama_gguf();
    size_t weights = g.tensors.size();
    g.tensors.push_back({"other.weight", {32}, 0, std::string(128, '\0')});
    std::string bytes = g.bytes();
    qe_reader reader;
    qe_error err = {};
    qe_model *model = nullptr;
    ASSERT_TRUE(is_ok(qe_reader_memory(bytes.data(), bytes.size(), "m.gguf", &reader, &err), err));
    ASSERT_TRUE(is_ok(qe_model_open_reader(reader, nullptr, 0, &o, &model, &err), err));
    qe_model_close(model);
    ASSERT_EQ(lines.size(), 1u);
    EXPECT_EQ(lines[0], "m.gguf: llama, 2 layers, " + std::to_string(weights) + " of " + std::to_string(weights + 1) +
                            " tensors are run");
}

// ---- keys ----------------------------------------------------------------------------------------------------------
struct KeyCase {
    const char *row, *key;
    std::string replacement; // the whole key-value; empty: the key is left out
    qe_status want;
};

// A good model with one key replaced, removed or (when it was not there) added.
std::string with_key(const std::string &key, const std::string &replacement) {
    Gguf g = llama_gguf();
    std::vector<std::string> kept;
    for (const auto &k : g.keys)
        if (k.compare(0, key.size() + 8, text(key))) kept.push_back(k);
    if (!replacement.empty()) kept.push_back(replacement);
    g.keys = kept;
    return g.bytes();
}

std::string f32s(std::vector<float> v) {
    std::string out;
    for (float f : v) out += le(f);
    return out;
}
std::string u32s(std::vector<uint32_t> v) {
    std::string out;
    for (uint32_t i : v) out += u32(i);
    return out;
}

std::vector<KeyCase> key_cases() {
    const char *layers = "llama.block_count", *heads = "llama.attention.head_count",
               *kv_heads = "llama.attention.head_count_kv";
    const char *hidden = "llama.embedding_length", *ffn = "llama.feed_forward_length",
               *context = "llama.context_length";
    const char *eps = "llama.attention.layer_norm_rms_epsilon", *arch = "general.architecture";
    const char *base = "llama.rope.freq_base", *scaling = "llama.rope.scaling.type",
               *bos = "tokenizer.ggml.bos_token_id";
    const char *tokens = "tokenizer.ggml.tokens", *scores = "tokenizer.ggml.scores",
               *types = "tokenizer.ggml.token_type";
    const int n = model_size::kVocab;
    std::vector<KeyCase> all = {
        {"D20", layers, kv_str(layers, "2"), QE_E_TYPE},
        {"D20", layers, kv_f32(layers, 2), QE_E_TYPE},
        {"D20", layers, kv(layers, BOOL, "\1"), QE_E_TYPE},
        {"D20", layers, kv_array(layers, U32, 1, u32s({2})), QE_E_MISMATCH},
        {"D20", layers, kv(layers, I32, u32(0xffffffff)), QE_E_RANGE},
        {"D20", layers, kv(layers, U64, u64(~0ull)), QE_E_RANGE},
        {"D20", heads, kv_str(heads, "2"), QE_E_TYPE},
        {"D20", heads, kv_array(heads, U32, 3, u32s({2, 2, 2})), QE_E_MISMATCH},
        {"D20", heads, kv_array(heads, U32, 1, u32s({2})), QE_E_MISMATCH},
        {"D20", heads, kv_array(heads, U32, 0, ""), QE_E_MISMATCH},
        {"D20", heads, kv_array(heads, F32, 2, f32s({2, 2})), QE_E_TYPE},
        {"D20", heads, kv_array(heads, U32, 2, u32s({2, 0})), QE_E_RANGE},
        {"D20", heads, kv_array(heads, U32, 2, u32s({2, 4})), QE_E_UNSUPPORTED},
        {"D20", heads, kv_array(heads, U32, 2, u32s({2, 2})), QE_OK},
        {"D20", kv_heads, kv_array(kv_heads, U32, 3, u32s({1, 1, 1})), QE_E_MISMATCH},
        {"D20", hidden, kv_f32(hidden, 64), QE_E_TYPE},
        {"D20", ffn, kv_str(ffn, "96"), QE_E_TYPE},
        {"D20", ffn, kv_array(ffn, U32, 1, u32s({96})), QE_E_MISMATCH},
        {"D20", context, kv_f32(context, 128), QE_E_TYPE},
        {"D20", context, kv(context, U64, u64(128)), QE_OK},
        {"D20", eps, kv_u32(eps, 1), QE_E_TYPE},
        {"D20", eps, kv_str(eps, "1e-5"), QE_E_TYPE},
        {"D20", eps, kv(eps, F64, le(1e-5)), QE_OK},
        {"D20", arch, kv_u32(arch, 1), QE_E_TYPE},
        {"D20", arch, kv_array(arch, STRING, 1, text("llama")), QE_E_TYPE},
        {"D20", base, kv_str(base, "10000"), QE_E_TYPE},
        {"D20", base, kv_f32(base, 10000), QE_OK},
        {"D20", scaling, kv_u32(scaling, 1), QE_E_TYPE},
        {"D20", scaling, kv_str(scaling, "none"), QE_OK},
        {"D20", tokens, kv_str(tokens, "a"), QE_E_TYPE},
        {"D20", tokens, kv_array(tokens, U32, n, std::string(size_t(4 * n), '\1')), QE_E_TYPE},
        {"H1", scores, kv_array(scores, I8, n, std::string(size_t(n), '\1')), QE_E_TYPE},
        {"H1", scores, kv_array(scores, F64, n, std::string(size_t(8 * n), '\1')), QE_E_TYPE},
        {"H2", types, kv_array(types, I8, n, std::string(size_t(n), '\1')), QE_E_TYPE},
        {"H3", scores, kv_array(scores, F32, n - 1, std::string(size_t(4 * n - 4), '\0')), QE_E_MISMATCH},
        {"D20", bos, kv_str(bos, "1"), QE_E_TYPE},
        {"D20", bos, kv_f32(bos, 1), QE_E_TYPE},
        {"H18", bos, kv_u32(bos, uint64_t(n)), QE_E_RANGE},
        {"H18", bos, kv_u32(bos, 0xffffffff), QE_E_RANGE},
        {"D20", "tokenizer.ggml.add_bos_token", kv_u32("tokenizer.ggml.add_bos_token", 1), QE_E_TYPE},
        {"D20", "tokenizer.chat_template", kv_u32("tokenizer.chat_template", 1), QE_E_TYPE},
        {"H22", "tokenizer.ggml.model", kv_str("tokenizer.ggml.model", "t5"), QE_E_UNSUPPORTED},
        {"D21", arch, "", QE_E_MISSING},
        {"D21", arch, kv_str(arch, ""), QE_E_UNSUPPORTED},
        {"D21", arch, kv_str(arch, "who-knows"), QE_E_UNSUPPORTED},
        {"D21", arch, kv_str(arch, std::string(63, 'x')), QE_E_UNSUPPORTED},
        {"D21", arch, kv_str(arch, std::string(64, 'x')), QE_E_LIMIT},
        {"D21", arch, kv_str(arch, std::string(1 << 20, 'x')), QE_E_LIMIT},
        {"D48", arch, kv_str(arch, "controlvector"), QE_E_UNSUPPORTED},
        {"D48", "llama.layers", kv_array("llama.layers", U32, 1u << 31, ""), QE_E_TRUNCATED},
        {"D48", "llama.layers", kv_array("llama.layers", U8, (1u << 24) + 1, std::string((1u << 24) + 1, '\0')),
         QE_E_LIMIT},
        {"D48", "llama.layers", kv_array("llama.layers", U8, 1u << 24, std::string(1u << 24, '\0')), QE_OK},
    };
    for (const char *key : {layers, hidden, ffn, heads, context, eps}) all.push_back({"D21", key, "", QE_E_MISSING});
    return all;
}

TEST(MalformedModel, Keys) {
    qe_model *model;
    int refused = 0, accepted = 0;
    for (const auto &c : key_cases()) {
        SCOPED_TRACE(std::string(c.row) + " " + c.key);
        std::string bytes = with_key(c.key, c.replacement);
        qe_error err = {};
        qe_status got = open_model(bytes, &model, &err);
        EXPECT_STREQ(qe_status_name(got), qe_status_name(c.want)) << err.message;
        EXPECT_EQ(model == nullptr, got != QE_OK);
        EXPECT_EQ(err.message[0] != 0, got != QE_OK);
        qe_model_close(model);
        std::string good = llama_gguf().bytes();
        ASSERT_EQ(open_model(good, &model, &err), QE_OK) << err.message;
        qe_model_close(model);
        (c.want ? refused : accepted)++;
    }
    printf("%d keys refused, %d controls accepted\n", refused, accepted);
    EXPECT_GT(refused, 50);
}

// D48: an index in a tensor's name never sizes or indexes a table.
TEST(MalformedModel, LayerIndicesInNames) {
    const struct {
        const char *name;
        qe_status want;
    } rows[] = {
        {"direction.1073741824", QE_OK}, // not a weight of this family: listed, never run
        {"blk.2.attn_q.weight", QE_E_MISMATCH},
        {"blk.4095.attn_q.weight", QE_E_MISMATCH},
        {"blk.4096.attn_q.weight", QE_E_LIMIT},
        {"blk.1073741824.attn_q.weight", QE_E_LIMIT},
        {"blk.18446744073709551616.attn_q.weight", QE_E_LIMIT},
        {"blk.-1.attn_q.weight", QE_OK},
    };
    for (const auto &row : rows) {
        Gguf g = llama_gguf();
        g.tensors.push_back({row.name, {32}, 0, std::string(128, '\0')});
        std::string bytes = g.bytes();
        qe_error err;
        qe_model *model;
        EXPECT_STREQ(qe_status_name(open_model(bytes, &model, &err)), qe_status_name(row.want))
            << row.name << ": " << err.message;
        qe_model_close(model);
    }
}

// ---- the operating system ------------------------------------------------------------------------------------------

TEST(MalformedModel, A7NoPermission) {
    qe_test::TempFolder folder;
    std::string path = folder.write("m.gguf", llama_gguf().bytes());
    ASSERT_EQ(chmod(path.c_str(), 0), 0);
    ASSERT_EQ(chmod(path.substr(0, path.rfind('/')).c_str(), 0755), 0);
    bool root = geteuid() == 0; // root may read everything: be somebody else for a moment
    ASSERT_EQ(root ? seteuid(65534) : 0, 0);
    qe_model *model = nullptr;
    qe_error err = {};
    qe_status status = qe_model_open(path.c_str(), nullptr, &model, &err);
    ASSERT_EQ(root ? seteuid(0) : 0, 0);
    EXPECT_EQ(status, QE_E_IO) << err.message;
    EXPECT_EQ(model, nullptr);
    EXPECT_NE(std::string(err.message).find("ermission"), std::string::npos) << err.message;
    ASSERT_EQ(chmod(path.c_str(), 0600), 0);
    EXPECT_TRUE(is_ok(qe_model_open(path.c_str(), nullptr, &model, &err), err));
    qe_model_close(model);
}

// A10: nothing is mapped, so a file that loses its end while an engine reads it is an error, never a signal.
TEST(MalformedModel, A10ShrinksWhileAnEngineReads) {
    qe_test::TempFolder folder;
    const std::string good = llama_gguf().bytes();
    std::vector<float> logits;
    int cases = 0;
    for (size_t left : {good.size() - 1, good.size() - 4000, good.size() / 2, size_t(100), size_t(0)}) {
        std::string path = folder.write("m.gguf", good);
        qe_model *model = nullptr;
        qe_error err = {};
        ASSERT_TRUE(is_ok(qe_model_open(path.c_str(), nullptr, &model, &err), err));
        ASSERT_EQ(truncate(path.c_str(), (off_t)left), 0);
        EXPECT_EQ(logits_of(model, &logits, &err), QE_E_CHANGED) << left << ": " << err.message;
        qe_model_close(model);
        cases++;
    }
    EXPECT_EQ(cases, 5);
}

// A11: another file is renamed over it: the old content, complete. Written over in place: CHANGED. Never a mix.
TEST(MalformedModel, A11ReplacedAfterOpen) {
    qe_test::TempFolder folder;
    Gguf other = llama_gguf();
    for (auto &t : other.tensors)
        if (t.type == 8) t.data = std::string(t.data.size(), '\1');
    std::string path = folder.write("m.gguf", llama_gguf().bytes());
    qe_model *model = nullptr;
    qe_error err = {};
    std::vector<float> before, after, fresh;
    ASSERT_TRUE(is_ok(qe_model_open(path.c_str(), nullptr, &model, &err), err));
    ASSERT_TRUE(is_ok(logits_of(model, &before, &err), err));
    std::string second = folder.write("other.gguf", other.bytes());
    ASSERT_EQ(rename(second.c_str(), path.c_str()), 0);
    ASSERT_TRUE(is_ok(logits_of(model, &after, &err), err));
    EXPECT_TRUE(qe_test::same_bits(before, after));
    qe_model_close(model);
    ASSERT_TRUE(is_ok(qe_model_open(path.c_str(), nullptr, &model, &err), err));
    ASSERT_TRUE(is_ok(logits_of(model, &fresh, &err), err));
    EXPECT_FALSE(qe_test::same_bits(before, fresh)); // the other file is another model
    usleep(20000);                                   // so that the time of change differs
    folder.write("m.gguf", llama_gguf().bytes());    // the same file, other bytes
    EXPECT_EQ(logits_of(model, &after, &err), QE_E_CHANGED) << err.message;
    qe_model_close(model);
}

// A14: one byte at a time, interrupted between: the same numbers.
TEST(MalformedModel, A14ShortAndInterruptedReads) {
    qe_test::TempFolder folder;
    std::string path = folder.write("m.gguf", llama_gguf().bytes());
    qe_model *model = nullptr;
    qe_error err = {};
    std::vector<float> whole, bytewise;
    ASSERT_TRUE(is_ok(qe_model_open(path.c_str(), nullptr, &model, &err), err));
    ASSERT_TRUE(is_ok(logits_of(model, &whole, &err), err));
    qe_model_close(model);
    stingy_reads = 0, stingy = true;
    qe_status opened = qe_model_open(path.c_str(), nullptr, &model, &err);
    qe_status ran = opened ? opened : logits_of(model, &bytewise, &err);
    stingy = false;
    ASSERT_TRUE(is_ok(ran, err));
    EXPECT_GT(stingy_reads, 100000);
    EXPECT_TRUE(qe_test::same_bits(whole, bytewise));
    qe_model_close(model);
}

// A12: a sparse file of a tebibyte whose header declares it all. The header is true, so the model opens; an engine
// finds no memory for it, and finds that out before it fills what there is.
TEST(MalformedModel, A12ATebibyteDeclaredAndSparse) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "sanitizers treat a block of a tebibyte as an error of the program";
#endif
    qe_test::TempFolder folder;
    const uint64_t vocab = 1 << 22, hidden = 1 << 16, ffn = 64; // an embedding of 2^38 floats
    std::string json = "{", path, shape;
    uint64_t at = 0;
    auto add = [&](const std::string &name, uint64_t rows, uint64_t columns) {
        uint64_t bytes = (rows ? rows : 1) * columns * 4;
        json += (json.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"F32\",\"shape\":[" +
                (rows ? std::to_string(rows) + "," : "") + std::to_string(columns) + "],\"data_offsets\":[" +
                std::to_string(at) + "," + std::to_string(at + bytes) + "]}";
        at += bytes;
    };
    add("model.embed_tokens.weight", vocab, hidden);
    add("model.norm.weight", 0, hidden);
    std::string p = "model.layers.0.";
    add(p + "self_attn.q_proj.weight", 64, hidden), add(p + "self_attn.k_proj.weight", 64, hidden);
    add(p + "self_attn.v_proj.weight", 64, hidden), add(p + "self_attn.o_proj.weight", hidden, 64);
    add(p + "mlp.gate_proj.weight", ffn, hidden), add(p + "mlp.up_proj.weight", ffn, hidden),
        add(p + "mlp.down_proj.weight", hidden, ffn);
    add(p + "input_layernorm.weight", 0, hidden), add(p + "post_attention_layernorm.weight", 0, hidden);
    json += "}";
    path = folder.write("model.safetensors", u64(json.size()) + json);
    folder.write("config.json",
                 "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":65536,\"intermediate_size\":64,\"num_"
                 "hidden_layers\":1,"
                 "\"num_attention_heads\":1,\"head_dim\":64,\"rms_norm_eps\":1e-5,\"max_position_embeddings\":128,"
                 "\"vocab_size\":4194304,\"hidden_act\":\"silu\",\"tie_word_embeddings\":true}");
    if (truncate(path.c_str(), (off_t)(8 + json.size() + at)))
        GTEST_SKIP() << "the file system does not hold sparse files of a tebibyte: " << strerror(errno);
    qe_model *model = nullptr;
    qe_error err = {};
    ASSERT_TRUE(is_ok(qe_model_open(path.substr(0, path.rfind('/')).c_str(), nullptr, &model, &err), err));
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    std::vector<float> logits;
    qe_status status = logits_of(model, &logits, &err);
    getrusage(RUSAGE_SELF, &after);
    EXPECT_EQ(status, QE_E_NOMEM) << err.message;
    EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 * 1024) << "KiB more at the peak";
    qe_model_close(model);
}

// ---- tokenizers ----------------------------------------------------------------------------------------------------

// H20: a vocabulary whose texts add up to what a 32-bit count of their suffixes cannot hold.
TEST(MalformedModel, H20ManyTokensOfOneCharacterRepeated) {
    const int count = getenv("QE_TEST_LONG") ? 1000000 : 20000, times = 90;
    std::vector<std::string> texts = {"<unk>"};
    for (uint32_t c = 0x3400; (int)texts.size() < count; c++) {
        if (c == 0xd800) c = 0xe000;
        std::string one = c < 0x10000
                              ? std::string({char(0xe0 | c >> 12), char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))})
                              : std::string({char(0xf0 | c >> 18), char(0x80 | (c >> 12 & 63)),
                                             char(0x80 | (c >> 6 & 63)), char(0x80 | (c & 63))});
        std::string all;
        for (int i = 0; i < times; i++) all += one;
        texts.push_back(all);
    }
    std::vector<const char *> pointers;
    std::vector<size_t> bytes;
    std::vector<float> scores;
    std::vector<int32_t> types;
    for (const auto &t : texts)
        pointers.push_back(t.data()), bytes.push_back(t.size()), scores.push_back(-1), types.push_back(1);
    types[0] = 2;
    qe_tokenizer_source s = {};
    s.kind = QE_TOKENIZER_SCORE, s.where = "t";
    s.tokens_count = s.scores_count = s.types_count = texts.size();
    s.texts = pointers.data(), s.texts_bytes = bytes.data(), s.scores = scores.data(), s.types = types.data();
    s.bos = s.eos = s.pad = -1, s.unk = 0;
    qe_error err = {};
    qe_tokenizer *t = nullptr;
    ASSERT_TRUE(is_ok(qe_tokenizer_create(&s, nullptr, &t, &err), err));
    char text[512];
    size_t length = 0;
    for (int id : {1, 2, count / 2, count - 2, count - 1}) {
        ASSERT_TRUE(is_ok(qe_tokenizer_piece(t, id, 0, text, sizeof text, &length, &err), err));
        EXPECT_EQ(std::string(text, length), texts[(size_t)id]) << id;
    }
    printf("%d tokens, %zu bytes\n", count, texts.size() * texts.back().size());
    qe_tokenizer_close(t);
}

// H30 to H35 speak of protobuf and rank files, which are not read. Given where a tokenizer.json belongs, they are
// refused.
TEST(MalformedModel, H30OtherTokenizerFilesAreRefused) {
    const struct {
        const char *name;
        std::string bytes;
        qe_status want;
    } rows[] = {
        {"H30 protobuf of pieces", std::string("\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02", 16), QE_E_JSON},
        {"H30 varint never ending", std::string(64, '\xff'), QE_E_UTF8},
        {"H35 rank file", "IQ== 0\nIg== 1\n", QE_E_JSON},
        {"H34 character map",
         R"({"normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"},"pre_tokenizer":{"type":"ByteLevel"},)"
         R"("model":{"type":"BPE","vocab":{"a":0},"merges":[]}})",
         QE_E_UNSUPPORTED},
    };
    for (const auto &row : rows) {
        qe_tokenizer *t = nullptr;
        qe_error err = {};
        qe_status got = qe_tokenizer_open_json_memory(row.bytes.data(), row.bytes.size(), nullptr, &t, &err);
        EXPECT_STREQ(qe_status_name(got), qe_status_name(row.want)) << row.name << ": " << err.message;
        EXPECT_EQ(t, nullptr) << row.name;
        qe_tokenizer_close(t);
    }
}

} // namespace
