/* tests/test_token_malformed.cc -- what tokenizers refuse, with the exact status, and the good neighbor of each case.
 * Tables: one row is one file or one set of arrays with one fault in it. */
#include "support.h"

#include <cmath>
#include <functional>

extern "C" {
#include "model/tokenizer.h"
}

namespace {
std::string repeat(const std::string &part, size_t count) {
    std::string out;
    out.reserve(part.size() * count);
    for (size_t i = 0; i < count; i++) out += part;
    return out;
}

/* The good file: {a, b, ab} and one special token; each row replaces one part of it. */
struct Parts {
    std::string vocab = R"("a":0,"b":1,"ab":2)", merges = R"("a b")", model = R"("type":"BPE")",
                added = R"({"id":3,"content":"<s>","special":true})", normalizer = "null",
                pre = R"({"type":"ByteLevel","add_prefix_space":false})", decoder = R"({"type":"ByteLevel"})", post = "null";
    std::string json() const {
        return "{\"added_tokens\":[" + added + "],\"normalizer\":" + normalizer + ",\"pre_tokenizer\":" + pre +
               ",\"post_processor\":" + post + ",\"decoder\":" + decoder + ",\"model\":{" + model + ",\"vocab\":{" + vocab +
               "},\"merges\":[" + merges + "]}}";
    }
};

qe_status open_json(const std::string &json, qe_error *err, qe_tokenizer **out) {
    qe_tokenizer_options o{};
    o.struct_size = sizeof o;
    *out = nullptr;
    return qe_tokenizer_open_json_memory(json.data(), json.size(), &o, out, err);
}

struct JsonRow {
    const char *name;
    qe_status want;
    std::function<void(Parts &)> edit;
};

const JsonRow json_rows[] = {
    {"good", QE_OK, [](Parts &) {}},
    {"H4 empty vocabulary", QE_E_RANGE, [](Parts &p) { p.vocab = p.merges = p.added = ""; }},
    {"H4 one token", QE_OK, [](Parts &p) { p.vocab = R"("a":0)", p.merges = p.added = ""; }},
    {"H5 negative id", QE_E_RANGE, [](Parts &p) { p.vocab = R"("a":-1,"b":1,"ab":2)"; }},
    {"H5 id 2^31", QE_E_RANGE, [](Parts &p) { p.vocab = R"("a":2147483648,"b":1,"ab":2)"; }},
    {"H5 id 2^32", QE_E_RANGE, [](Parts &p) { p.vocab = R"("a":4294967296,"b":1,"ab":2)"; }},
    {"H5 id at the limit", QE_E_RANGE, [](Parts &p) { p.vocab = R"("a":4194304,"b":1,"ab":2)"; }},
    {"H5 id just below the limit", QE_OK, [](Parts &p) { p.vocab = R"("a":4194303,"b":1,"ab":2)"; }},
    {"H5 id 1.5", QE_E_TYPE, [](Parts &p) { p.vocab = R"("a":1.5,"b":1,"ab":2)"; }},
    {"H5 id as text", QE_E_TYPE, [](Parts &p) { p.vocab = R"("a":"0","b":1,"ab":2)"; }},
    {"H6 two tokens one id", QE_E_DUPLICATE, [](Parts &p) { p.vocab = R"("a":0,"b":0,"ab":2)"; }},
    {"H6 one token two ids", QE_E_DUPLICATE, [](Parts &p) { p.vocab = R"("a":0,"b":1,"ab":2,"a":3)"; }},
    {"H7 a hole", QE_OK, [](Parts &p) { p.vocab = R"("a":0,"b":1,"ab":5)"; }},
    {"H8 empty text", QE_E_RANGE, [](Parts &p) { p.vocab += R"(,"":4)"; }},
    {"H8 64 KiB + 1", QE_E_LIMIT, [](Parts &p) { p.vocab += ",\"" + repeat("x", 65537) + "\":4"; }},
    {"H8 64 KiB", QE_OK, [](Parts &p) { p.vocab += ",\"" + repeat("x", 65536) + "\":4"; }},
    {"H12 merge names unknown token", QE_E_MISSING, [](Parts &p) { p.merges = R"("a c")"; }},
    {"H13 result not in the vocabulary", QE_E_MISSING, [](Parts &p) { p.vocab = R"("a":0,"b":1)"; }},
    {"H14 one part", QE_E_RANGE, [](Parts &p) { p.merges = R"("ab")"; }},
    {"H14 three parts", QE_E_RANGE, [](Parts &p) { p.merges = R"("a b c")"; }},
    {"H14 empty", QE_E_RANGE, [](Parts &p) { p.merges = R"("")"; }},
    {"H14 empty half", QE_E_RANGE, [](Parts &p) { p.merges = R"(["a",""])"; }},
    {"H14 pair", QE_OK, [](Parts &p) { p.merges = R"(["a","b"])"; }},
    {"H14 pair of three", QE_E_RANGE, [](Parts &p) { p.merges = R"(["a","b","a"])"; }},
    {"H14 number", QE_E_TYPE, [](Parts &p) { p.merges = "7"; }},
    {"H14 half is a number", QE_E_TYPE, [](Parts &p) { p.merges = R"(["a",7])"; }},
    {"H14 1 MiB", QE_E_LIMIT, [](Parts &p) { p.merges = "\"a " + repeat("b", 1 << 20) + "\""; }},
    {"H15 prefix", QE_E_UNSUPPORTED, [](Parts &p) { p.model += R"(,"continuing_subword_prefix":"##")"; }},
    {"H16 merge twice", QE_E_DUPLICATE, [](Parts &p) { p.merges = R"("a b","a b")"; }},
    {"H17 added id collides", QE_E_DUPLICATE, [](Parts &p) { p.added = R"({"id":2,"content":"<s>","special":true})"; }},
    {"H17 added text has another id", QE_E_DUPLICATE, [](Parts &p) { p.added = R"({"id":3,"content":"ab","special":true})"; }},
    {"H17 added again as it is", QE_OK, [](Parts &p) { p.added = R"({"id":2,"content":"ab","special":true})", p.merges = ""; }},
    {"H17 added twice", QE_E_DUPLICATE, [](Parts &p) { p.added += "," + p.added; }},
    {"H17 added past the limit", QE_E_RANGE, [](Parts &p) { p.added = R"({"id":4194304,"content":"<s>"})"; }},
    {"H17 added empty", QE_E_RANGE, [](Parts &p) { p.added = R"({"id":3,"content":""})"; }},
    {"H17 added without id", QE_E_TYPE, [](Parts &p) { p.added = R"({"content":"<s>"})"; }},
    {"H17 added without content", QE_E_MISSING, [](Parts &p) { p.added = R"({"id":3})"; }},
    {"H18 unknown token is none", QE_E_MISSING, [](Parts &p) { p.model += R"(,"unk_token":"<unk>")"; }},
    {"H21 normalizers nested", QE_E_DEPTH, [](Parts &p) {
         p.normalizer = repeat(R"({"type":"Sequence","normalizers":[)", 100) + repeat("]}", 100);
     }},
    {"H21 normalizers nested 10,000", QE_E_DEPTH, [](Parts &p) {
         p.normalizer = repeat(R"({"type":"Sequence","normalizers":[)", 10000) + repeat("]}", 10000);
     }},
    {"H21 a million steps", QE_E_LIMIT, [](Parts &p) {
         p.pre = R"({"type":"Sequence","pretokenizers":[)" + repeat("0,", 999999) + "0]}";
     }},
    {"H22 model", QE_E_UNSUPPORTED, [](Parts &p) { p.model = R"("type":"WordPiece")"; }},
    {"H22 normalizer", QE_E_UNSUPPORTED, [](Parts &p) { p.normalizer = R"({"type":"Lowercase"})"; }},
    {"H22 normalizer NFC", QE_OK, [](Parts &p) { p.normalizer = R"({"type":"NFC"})"; }},
    {"H22 pre-tokenizer", QE_E_UNSUPPORTED, [](Parts &p) { p.pre = R"({"type":"Whitespace"})"; }},
    {"H22 no pre-tokenizer", QE_E_UNSUPPORTED, [](Parts &p) { p.pre = "null"; }},
    {"H22 decoder", QE_E_UNSUPPORTED, [](Parts &p) { p.decoder = R"({"type":"WordPiece"})"; }},
    {"H22 post-processor", QE_E_UNSUPPORTED, [](Parts &p) { p.post = R"({"type":"BertProcessing"})"; }},
    {"H22 post-processor BOS", QE_OK, [](Parts &p) {
         p.post = R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A"}}]})";
     }},
    {"H22 post-processor names no token", QE_E_MISSING, [](Parts &p) {
         p.post = R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<x>","type_id":0}}]})";
     }},
    {"E1 empty", QE_E_TYPE, [](Parts &) {}},
};

std::string with_pattern(const std::string &escaped) {
    Parts p;
    p.pre = R"({"type":"Sequence","pretokenizers":[{"type":"Split","behavior":"Isolated","invert":false,"pattern":{"Regex":")" +
            escaped + R"("}},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";
    return p.json();
}

TEST(Malformed, Json) {
    int cases = 0;
    for (const JsonRow &row : json_rows) {
        Parts parts;
        row.edit(parts);
        std::string json = row.name[0] == 'E' ? "[]" : parts.json();
        qe_error err{};
        qe_tokenizer *t = nullptr;
        qe_status got = open_json(json, &err, &t);
        EXPECT_EQ(got, row.want) << row.name << ": " << qe_status_name(got) << " " << err.message;
        EXPECT_EQ(t == nullptr, row.want != QE_OK) << row.name;
        EXPECT_EQ(err.message[0] != 0, row.want != QE_OK) << row.name;
        qe_tokenizer_close(t);
        ASSERT_EQ(open_json(Parts().json(), &err, &t), QE_OK) << "a good file after " << row.name;
        qe_tokenizer_close(t);
        cases++;
    }
    printf("%d files\n", cases);
}

TEST(Malformed, EveryPrefixOfAGoodFile) {
    std::string json = Parts().json();
    for (size_t bytes = 0; bytes < json.size(); bytes++) {
        qe_error err{};
        qe_tokenizer *t = nullptr;
        EXPECT_EQ(open_json(json.substr(0, bytes), &err, &t), bytes ? QE_E_JSON : QE_E_TRUNCATED) << bytes << ": " << err.message;
    }
}

TEST(Malformed, Patterns) {
    const struct { const char *name; std::string pattern; qe_status open, encode; } rows[] = {
        {"good", "a+|b", QE_OK, QE_OK},
        {"syntax", "(a", QE_E_REGEX, QE_OK},
        {"look-behind of open length", "(?<=a+)b", QE_E_REGEX, QE_OK},
        {"counted repetition", "a{1000000}", QE_E_REGEX, QE_OK},
        {"too large", "((((a{500}){500}){500}){500})", QE_E_REGEX, QE_OK},
        {"16 KiB", repeat("a", 16384), QE_OK, QE_OK},
        {"16 KiB + 1", repeat("a", 16385), QE_E_LIMIT, QE_OK},
        {"1 MiB", repeat("a", 1 << 20), QE_E_LIMIT, QE_OK},
        {"nested repetition", "(a+)+[cd]", QE_OK, QE_E_LIMIT},
        {"empty match", "(?=a)|b*", QE_OK, QE_OK},
        {"\\\\C", "\\\\C", QE_E_REGEX, QE_OK},
    };
    for (const auto &row : rows) {
        qe_error err{};
        qe_tokenizer *t = nullptr;
        EXPECT_EQ(open_json(with_pattern(row.pattern), &err, &t), row.open) << row.name << ": " << err.message;
        std::string text = repeat("a", 400) + "b";
        size_t count = 0;
        if (t) {
            EXPECT_EQ(qe_tokenizer_encode(t, text.data(), text.size(), nullptr, nullptr, 0, &count, &err), row.encode) << row.name;
        }
        qe_tokenizer_close(t);
    }
}

/* Arrays as GGUF brings them. */
struct Arrays {
    std::vector<std::string> texts{"<unk>", "<bos>", "a", "b", "ab"};
    std::vector<int32_t> types{2, 3, 1, 1, 1};
    std::vector<float> scores{0, 0, -1, -2, -3};
    std::vector<std::string> merges;
    int64_t bos = 1, eos = -1, unk = 0;
    const char *pre = nullptr;
    qe_tokenizer_kind kind = QE_TOKENIZER_SCORE;
    void bytes(int count) {
        for (int i = 0; i < count; i++) {
            char text[16];
            snprintf(text, sizeof text, "<0x%02X>", (unsigned)i);
            texts.push_back(text), types.push_back(6), scores.push_back(0);
        }
    }
    qe_status create(const qe_tokenizer_options *o, qe_tokenizer **out, qe_error *err) const {
        std::vector<const char *> t, m;
        std::vector<size_t> tb, mb;
        for (const auto &s : texts) t.push_back(s.data()), tb.push_back(s.size());
        for (const auto &s : merges) m.push_back(s.data()), mb.push_back(s.size());
        qe_tokenizer_source s{};
        s.where = "arrays", s.kind = kind, s.pre = pre;
        s.tokens_count = t.size(), s.scores_count = scores.size(), s.types_count = types.size(), s.merges_count = m.size();
        s.texts = t.data(), s.texts_bytes = tb.data(), s.scores = scores.data(), s.types = types.data();
        s.merges = m.data(), s.merges_bytes = mb.data();
        s.bos = bos, s.eos = eos, s.pad = -1, s.unk = unk;
        return qe_tokenizer_create(&s, o, out, err);
    }
};

void to_bpe(Arrays &a) {
    a.kind = QE_TOKENIZER_BPE;
    a.scores.clear();
    a.merges = {"a b"};
}

TEST(Malformed, Arrays) {
    const struct { const char *name; qe_status want; std::function<void(Arrays &)> edit; } rows[] = {
        {"good", QE_OK, [](Arrays &) {}},
        {"good with bytes", QE_OK, [](Arrays &a) { a.bytes(256); }},
        {"H3 a score too few", QE_E_MISMATCH, [](Arrays &a) { a.scores.pop_back(); }},
        {"H3 a type too many", QE_E_MISMATCH, [](Arrays &a) { a.types.push_back(1); }},
        {"H4 none", QE_E_RANGE, [](Arrays &a) { a.texts.clear(), a.types.clear(), a.scores.clear(); }},
        {"H6 one text twice", QE_E_DUPLICATE, [](Arrays &a) { a.texts[3] = "a"; }},
        {"H6 one special text twice", QE_E_DUPLICATE, [](Arrays &a) { a.texts[0] = "<bos>"; }},
        {"H8 empty", QE_E_RANGE, [](Arrays &a) { a.texts[2] = ""; }},
        {"H8 64 KiB + 1", QE_E_LIMIT, [](Arrays &a) { a.texts[2] = repeat("x", 65537); }},
        {"H9 NUL", QE_E_UTF8, [](Arrays &a) { a.texts[2] = std::string(1, 0); }},
        {"H9 not UTF-8", QE_E_UTF8, [](Arrays &a) { a.texts[2] = "\xff"; }},
        {"H9 overlong", QE_E_UTF8, [](Arrays &a) { a.texts[2] = "\xc0\x80"; }},
        {"H10 <0x-1>", QE_E_RANGE, [](Arrays &a) { a.bytes(256), a.texts[7] = "<0x-1>"; }},
        {"H10 <0xZZ>", QE_E_RANGE, [](Arrays &a) { a.bytes(256), a.texts[7] = "<0xZZ>"; }},
        {"H10 <0x100>", QE_E_RANGE, [](Arrays &a) { a.bytes(256), a.texts[7] = "<0x100>"; }},
        {"H10 <0x1>", QE_E_RANGE, [](Arrays &a) { a.bytes(256), a.texts[7] = "<0x1>"; }},
        {"H10 <0X41>", QE_E_RANGE, [](Arrays &a) { a.bytes(256), a.texts[7] = "<0X41>"; }},
        {"H10 <0x 1>", QE_E_RANGE, [](Arrays &a) { a.bytes(256), a.texts[7] = "<0x 1>"; }},
        {"H10 a byte twice", QE_E_DUPLICATE, [](Arrays &a) { a.bytes(256), a.texts[7] = "<0x41>"; }},
        {"H11 255 of 256", QE_E_MISSING, [](Arrays &a) { a.bytes(255); }},
        {"H11 no fallback at all", QE_E_MISSING, [](Arrays &a) { a.unk = -1; }},
        {"H18 bos past the end", QE_E_RANGE, [](Arrays &a) { a.bos = 5; }},
        {"H18 bos -2", QE_E_RANGE, [](Arrays &a) { a.bos = -2; }},
        {"H18 eos 2^32", QE_E_RANGE, [](Arrays &a) { a.eos = 1ll << 32; }},
        {"H19 score NaN", QE_E_VALUE, [](Arrays &a) { a.scores[4] = NAN; }},
        {"H19 score infinite", QE_E_VALUE, [](Arrays &a) { a.scores[4] = -INFINITY; }},
        {"type 0", QE_E_RANGE, [](Arrays &a) { a.types[4] = 0; }},
        {"type 7", QE_E_RANGE, [](Arrays &a) { a.types[4] = 7; }},
        {"BPE good", QE_OK, to_bpe},
        {"BPE H12", QE_E_MISSING, [](Arrays &a) { to_bpe(a), a.merges = {"a c"}; }},
        {"BPE H13", QE_E_MISSING, [](Arrays &a) { to_bpe(a), a.merges = {"b a"}; }},
        {"BPE H14 one part", QE_E_RANGE, [](Arrays &a) { to_bpe(a), a.merges = {"ab"}; }},
        {"BPE H14 three parts", QE_E_RANGE, [](Arrays &a) { to_bpe(a), a.merges = {"a b c"}; }},
        {"BPE H14 empty", QE_E_RANGE, [](Arrays &a) { to_bpe(a), a.merges = {""}; }},
        {"BPE H16", QE_E_DUPLICATE, [](Arrays &a) { to_bpe(a), a.merges = {"a b", "a b"}; }},
        {"BPE H22 pre", QE_E_UNSUPPORTED, [](Arrays &a) { to_bpe(a), a.pre = "who-knows"; }},
        {"BPE pre known", QE_OK, [](Arrays &a) { to_bpe(a), a.pre = "llama-bpe"; }},
    };
    for (const auto &row : rows) {
        Arrays a;
        row.edit(a);
        qe_error err{};
        qe_tokenizer *t = nullptr;
        qe_status got = a.create(nullptr, &t, &err);
        EXPECT_EQ(got, row.want) << row.name << ": " << qe_status_name(got) << " " << err.message;
        EXPECT_EQ(t == nullptr, row.want != QE_OK) << row.name;
        qe_tokenizer_close(t);
    }
    printf("%zu sets of arrays\n", sizeof rows / sizeof rows[0]);
}

TEST(Malformed, LimitsAreSettings) {
    Arrays a;
    qe_tokenizer_options o{};
    o.struct_size = sizeof o;
    for (uint32_t limit : {4u, 5u}) {
        qe_tokenizer *t = nullptr;
        o.max_tokens = limit;
        EXPECT_EQ(a.create(&o, &t, nullptr), limit < 5 ? QE_E_LIMIT : QE_OK);
        qe_tokenizer_close(t);
    }
    o.max_tokens = 0;
    for (uint64_t limit : {7u, 8u}) {
        qe_tokenizer *t = nullptr;
        size_t count;
        o.max_text_bytes = limit;
        ASSERT_EQ(a.create(&o, &t, nullptr), QE_OK);
        EXPECT_EQ(qe_tokenizer_encode(t, "abababab", 8, nullptr, nullptr, 0, &count, nullptr), limit < 8 ? QE_E_LIMIT : QE_OK);
        qe_tokenizer_close(t);
    }
}

TEST(Malformed, CallsOfTheCaller) {
    Arrays a;
    qe_tokenizer *t = nullptr;
    qe_error err{};
    ASSERT_EQ(a.create(nullptr, &t, &err), QE_OK);
    size_t count = 77;
    char text[8];
    for (int32_t id : {-1, 5, INT32_MAX, INT32_MIN}) {
        EXPECT_EQ(qe_tokenizer_piece(t, id, 0, text, 8, &count, &err), QE_E_RANGE) << id;
        int32_t ids[] = {2, id, 3};
        EXPECT_EQ(qe_tokenizer_decode(t, ids, 3, 0, text, 8, &count, &err), QE_E_RANGE) << id;
    }
    EXPECT_EQ(qe_tokenizer_encode(nullptr, "a", 1, nullptr, nullptr, 0, &count, &err), QE_E_ARGUMENT);
    EXPECT_EQ(qe_tokenizer_encode(t, nullptr, 1, nullptr, nullptr, 0, &count, &err), QE_E_ARGUMENT);
    EXPECT_EQ(qe_tokenizer_encode(t, "a", 1, nullptr, nullptr, 4, &count, &err), QE_E_ARGUMENT);
    EXPECT_EQ(qe_tokenizer_encode(t, "a", 1, nullptr, nullptr, 0, nullptr, &err), QE_E_ARGUMENT);
    EXPECT_EQ(qe_tokenizer_encode(t, "a", size_t(1) << 31, nullptr, nullptr, 0, &count, &err), QE_E_LIMIT);
    qe_encode_options o{};
    for (uint32_t size : {0u, 3u, 70000u, 0xffffffffu}) {
        o.struct_size = size;
        EXPECT_EQ(qe_tokenizer_encode(t, "a", 1, &o, nullptr, 0, &count, &err), QE_E_ARGUMENT) << size;
    }
    o = {sizeof o, 9, 0, 0};
    EXPECT_EQ(qe_tokenizer_encode(t, "a", 1, &o, nullptr, 0, &count, &err), QE_E_ARGUMENT);
    qe_tokenizer_close(t);
    EXPECT_EQ(qe_tokenizer_open_json("/no/such/file", nullptr, &t, &err), QE_E_IO);
    EXPECT_EQ(t, nullptr);
}
} // namespace
