/* tests/test_tokenizer.cc -- ids, text and chat of both tokenizer models, against peers' golden ids and by property. */
#include "support.h"

#include <algorithm>
#include <chrono>

#include <jansson.h>

extern "C" {
#include "model/tokenizer.h"
}
#include <qengine/model.h>

namespace {
using Ids = std::vector<int32_t>;

/* A small tokenizer.json of byte-level BPE: 256 bytes, the given merges, two special tokens. */
std::string byte_character(int byte) {
    auto printable = [](int b) { return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae; };
    int code = byte;
    if (!printable(byte)) {
        code = 0x100;
        for (int b = 0; b < byte; b++) code += !printable(b);
    }
    if (code < 0x80) return std::string(1, (char)code);
    return {(char)(0xc0 | code >> 6), (char)(0x80 | (code & 0x3f))};
}

std::string quoted(const std::string &text) {
    json_t *string = json_stringn(text.data(), text.size());
    char *dump = json_dumps(string, JSON_ENCODE_ANY);
    std::string out = dump;
    free(dump);
    json_decref(string);
    return out;
}

std::string bpe_json(const std::vector<std::pair<std::string, std::string>> &merges, const std::string &extra = "") {
    std::string vocab, list;
    int id = 0;
    for (int byte = 0; byte < 256; byte++) vocab += quoted(byte_character(byte)) + ":" + std::to_string(id++) + ",";
    for (const auto &m : merges) {
        vocab += quoted(m.first + m.second) + ":" + std::to_string(id++) + ",";
        list += (list.empty() ? "" : ",") + quoted(m.first + " " + m.second);
    }
    vocab.pop_back();
    std::string added;
    for (const char *text : {"<|im_start|>", "<|im_end|>"}) {
        added += (added.empty() ? "" : ",") + std::string("{\"id\":") + std::to_string(id++) + ",\"content\":\"" + text +
                 "\",\"special\":true}";
    }
    return "{\"model\":{\"type\":\"BPE\",\"vocab\":{" + vocab + "},\"merges\":[" + list + "]},\"added_tokens\":[" + added +
           "],\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"}" +
           extra + "}";
}

struct Bpe {
    qe_tokenizer *tokenizer = nullptr;
    qe_error err{};
    explicit Bpe(const std::string &json) {
        EXPECT_EQ(qe_tokenizer_open_json_memory(json.data(), json.size(), nullptr, &tokenizer, &err), QE_OK) << err.message;
    }
    ~Bpe() { qe_tokenizer_close(tokenizer); }
};

/* A small score model: unk, control tokens, 256 bytes, characters and some merged texts. */
struct Score {
    std::vector<std::string> texts{"<unk>", "<bos>", "<end_of_turn>", "<start_of_turn>"};
    std::vector<int32_t> types{2, 3, 3, 3};
    std::vector<float> scores{0, 0, 0, 0};
    qe_tokenizer *tokenizer = nullptr;
    qe_error err{};
    explicit Score(const std::vector<std::string> &pieces, bool space_prefix = false) {
        for (int byte = 0; byte < 256; byte++) {
            char text[8];
            snprintf(text, sizeof text, "<0x%02X>", byte);
            add(text, 6, 0);
        }
        for (size_t i = 0; i < pieces.size(); i++) add(pieces[i], 1, -(float)i);
        std::vector<const char *> pointers;
        std::vector<size_t> bytes;
        for (const auto &t : texts) pointers.push_back(t.data()), bytes.push_back(t.size());
        qe_tokenizer_source s{};
        s.where = "test";
        s.kind = QE_TOKENIZER_SCORE;
        s.tokens_count = s.scores_count = s.types_count = texts.size();
        s.texts = pointers.data();
        s.texts_bytes = bytes.data();
        s.scores = scores.data();
        s.types = types.data();
        s.bos = 1, s.eos = 2, s.pad = -1, s.unk = 0;
        s.add_bos = true, s.add_space_prefix = space_prefix;
        EXPECT_EQ(qe_tokenizer_create(&s, nullptr, &tokenizer, &err), QE_OK) << err.message;
    }
    void add(const std::string &text, int type, float score) {
        texts.push_back(text), types.push_back(type), scores.push_back(score);
    }
    int32_t id(const std::string &text) const { return qe_tokenizer_find(tokenizer, text.data(), text.size()); }
    ~Score() { qe_tokenizer_close(tokenizer); }
};

Ids encode(const qe_tokenizer *t, const std::string &text, int bos = QE_BOS_NEVER, int special = 0) {
    qe_encode_options o{};
    o.struct_size = sizeof o, o.bos = bos, o.parse_special = special;
    size_t count = 0;
    qe_error err{};
    EXPECT_EQ(qe_tokenizer_encode(t, text.data(), text.size(), &o, nullptr, 0, &count, &err), QE_OK) << err.message;
    Ids ids(count);
    EXPECT_EQ(qe_tokenizer_encode(t, text.data(), text.size(), &o, ids.data(), count, &count, &err), QE_OK) << err.message;
    return ids;
}

std::string decode(const qe_tokenizer *t, const Ids &ids, int show = 0) {
    size_t bytes = 0;
    qe_error err{};
    EXPECT_EQ(qe_tokenizer_decode(t, ids.data(), ids.size(), show, nullptr, 0, &bytes, &err), QE_OK) << err.message;
    std::string text(bytes, 0);
    EXPECT_EQ(qe_tokenizer_decode(t, ids.data(), ids.size(), show, &text[0], bytes, &bytes, &err), QE_OK) << err.message;
    return text;
}

/* One JSON object per line: text, ids, special. */
int check_golden(const qe_tokenizer *t, const std::string &path, int bos) {
    std::string all = qe_test::read_file(path);
    int lines = 0, wrong = 0;
    for (size_t at = 0; at < all.size(); lines++) {
        size_t end = all.find('\n', at);
        json_t *line = json_loadb(all.data() + at, end - at, JSON_ALLOW_NUL, nullptr);
        EXPECT_NE(line, nullptr) << path << " line " << lines + 1;
        if (!line) return lines;
        json_t *text = json_object_get(line, "text"), *ids = json_object_get(line, "ids"), *id;
        Ids want;
        size_t index;
        json_array_foreach(ids, index, id) want.push_back((int32_t)json_integer_value(id));
        std::string s(json_string_value(text), json_string_length(text));
        json_t *special = json_object_get(line, "special"), *decoded = json_object_get(line, "decoded");
        Ids got = encode(t, s, bos, special ? json_is_true(special) : 1);
        if (decoded) {
            EXPECT_EQ(decode(t, want, 1), std::string(json_string_value(decoded), json_string_length(decoded))) << lines + 1;
        }
        if (got != want && ++wrong <= 5)
            ADD_FAILURE() << path << " line " << lines + 1 << ": " << quoted(s) << "\n got "
                          << testing::PrintToString(got) << "\nwant " << testing::PrintToString(want);
        json_decref(line);
        at = end + 1;
    }
    EXPECT_EQ(wrong, 0) << "of " << lines;
    return lines;
}

TEST(Golden, GemmaLikeLlamaCpp) {
    const char *given = getenv("QE_TEST_GEMMA"), *home = getenv("HOME");
    std::string path = given ? given : std::string(home ? home : "") + "/.cache/qengine/gemma-3-270m-q4_k_m.gguf";
    if (access(path.c_str(), R_OK) != 0) GTEST_SKIP() << "the real model is not there (QE_TEST_GEMMA): " << path;
    qe_model *model = nullptr;
    qe_error err{};
    ASSERT_EQ(qe_model_open(path.c_str(), nullptr, &model, &err), QE_OK) << err.message;
    const qe_tokenizer *t = qe_model_tokenizer(model);
    ASSERT_NE(t, nullptr);
    EXPECT_GE(check_golden(t, QE_TEST_GOLDEN "/gemma.tok.jsonl", QE_BOS_DEFAULT), 200);
    EXPECT_STREQ(qe_chat_template_name(t), "gemma");
    qe_model_close(model);
}

TEST(Golden, TinyLlamaLikeTokenizers) {
    std::string json = QE_TEST_DATA "/tiny-llama/tokenizer.json", golden = QE_TEST_GOLDEN "/tiny-llama.tok.jsonl";
    if (access(json.c_str(), R_OK) != 0 || access(golden.c_str(), R_OK) != 0) GTEST_SKIP() << "not there: " << golden;
    qe_tokenizer *t = nullptr;
    qe_error err{};
    ASSERT_EQ(qe_tokenizer_open_json(json.c_str(), nullptr, &t, &err), QE_OK) << err.message;
    EXPECT_GE(check_golden(t, golden, QE_BOS_NEVER), 10);
    qe_tokenizer_close(t);
}

/* Three small tokenizers trained with the Hugging Face library (tests/peers/bpe_golden.py), and the ids that library gives. */
TEST(Golden, BpeLikeTokenizers) {
    for (const char *name : {"gpt2", "llama3", "nfc"}) {
        std::string base = std::string(QE_TEST_GOLDEN "/bpe-") + name;
        qe_tokenizer *t = nullptr;
        qe_error err{};
        ASSERT_EQ(qe_tokenizer_open_json((base + ".json").c_str(), nullptr, &t, &err), QE_OK) << err.message;
        EXPECT_GE(check_golden(t, base + ".tok.jsonl", QE_BOS_NEVER), 70);
        qe_tokenizer_close(t);
    }
}

TEST(Score, BestScoreFirstThenLeftmost) {
    Score s({"abc", "ab", "bc", "aa", "a", "b", "c", "\xe2\x96\x81", "\xe2\x96\x81" "a"});
    auto ids = [&](std::vector<const char *> pieces) {
        Ids out;
        for (const char *p : pieces) out.push_back(s.id(p));
        return out;
    };
    EXPECT_EQ(encode(s.tokenizer, "abc"), ids({"abc"}));
    EXPECT_EQ(encode(s.tokenizer, "aaa"), ids({"aa", "a"}));
    EXPECT_EQ(encode(s.tokenizer, "bca ab"), ids({"bc", "a", "\xe2\x96\x81", "ab"}));
    EXPECT_EQ(encode(s.tokenizer, "\xc3\xa9"), (Ids{4 + 0xc3, 4 + 0xa9}));
    EXPECT_EQ(encode(s.tokenizer, "<bos>").size(), 5u) << "token text in plain text stays text";
    EXPECT_EQ(encode(s.tokenizer, "<bos>", QE_BOS_NEVER, 1), Ids{1});
    EXPECT_EQ(encode(s.tokenizer, "", QE_BOS_DEFAULT), Ids{1});
    EXPECT_EQ(encode(s.tokenizer, ""), Ids{});
}

TEST(Score, SpacePrefixIsAddedAndTakenAway) {
    Score s({"a", "\xe2\x96\x81", "\xe2\x96\x81" "a"}, true);
    EXPECT_EQ(encode(s.tokenizer, "a"), Ids{s.id("\xe2\x96\x81" "a")});
    for (const char *text : {"a", " a", "a a", "  ", "", "x"}) EXPECT_EQ(decode(s.tokenizer, encode(s.tokenizer, text)), text);
}

/* Whatever the bytes: encode and decode give them back, in both models. U+2581 itself is the score model's space. */
TEST(RoundTrip, AnyBytes) {
    Score s({"ab", "a", "b", "\xc3\xa9", "\xe2\x96\x81", "\xe2\x96\x81\xe2\x96\x81"});
    Bpe   b(bpe_json({{"a", "b"}, {"\xc4\xa0", "a"}, {"\xc3\x83", "\xc2\xa9"}}));
    qe_test::Random random(1);
    const std::vector<std::string> parts{"a", "b", " ", "\n", "\xc3\xa9", "\xc3", "\xff", std::string(1, 0), "\xf0\x9f\x98\x80",
                                         "\xe6\x97", "\xc0\x80", "\xed\xa0\x80", "\xcc\x81", "1", "'s"};
    for (int round = 0; round < 3000; round++) {
        std::string text;
        for (uint32_t i = random.below(20); i > 0; i--) text += parts[random.below((uint32_t)parts.size())];
        ASSERT_EQ(decode(s.tokenizer, encode(s.tokenizer, text)), text);
        ASSERT_EQ(decode(b.tokenizer, encode(b.tokenizer, text)), text);
    }
}

TEST(Buffers, EverySizeBelowNeededIsRefusedUntouched) {
    Score s({"a", "b", "\xe2\x96\x81"});
    const std::string text = "ab a\xc3\xa9";
    Ids ids = encode(s.tokenizer, text);
    for (size_t room = 1; room < ids.size(); room++) {
        Ids out(ids.size(), -7);
        size_t count = 0;
        qe_encode_options o{sizeof o, QE_BOS_NEVER, 0, 0};
        EXPECT_EQ(qe_tokenizer_encode(s.tokenizer, text.data(), text.size(), &o, out.data(), room, &count, nullptr), QE_E_CAPACITY);
        EXPECT_EQ(count, ids.size());
        EXPECT_EQ(out, Ids(ids.size(), -7));
    }
    for (size_t room = 1; room < text.size(); room++) {
        std::string out(text.size(), '#');
        size_t bytes = 0;
        EXPECT_EQ(qe_tokenizer_decode(s.tokenizer, ids.data(), ids.size(), 0, &out[0], room, &bytes, nullptr), QE_E_CAPACITY);
        EXPECT_EQ(bytes, text.size());
        EXPECT_EQ(out, std::string(text.size(), '#'));
    }
}

TEST(Stream, WholeCharactersOnly) {
    Bpe b(bpe_json({}));
    const std::string text = "a\xc3\xa9\xe6\x97\xa5\xf0\x9f\x98\x80z\xe6\x97";      /* ends unfinished */
    qe_detokenizer *stream = nullptr;
    ASSERT_EQ(qe_detokenizer_create(b.tokenizer, 0, &stream, nullptr), QE_OK);
    std::string out;
    for (int32_t id : encode(b.tokenizer, text)) {
        char buffer[32];
        size_t bytes = 0;
        ASSERT_EQ(qe_detokenizer_push(stream, id, buffer, sizeof buffer, &bytes, nullptr), QE_OK);
        EXPECT_TRUE(bytes == 0 || (buffer[0] & 0xc0) != 0x80) << "begins inside a character";
        out.append(buffer, bytes);
    }
    EXPECT_EQ(out, text.substr(0, text.size() - 2));
    char buffer[32];
    size_t bytes = 0;
    ASSERT_EQ(qe_detokenizer_finish(stream, buffer, sizeof buffer, &bytes, nullptr), QE_OK);
    EXPECT_EQ(std::string(buffer, bytes), "\xef\xbf\xbd\xef\xbf\xbd");
    EXPECT_EQ(qe_detokenizer_push(stream, -1, buffer, sizeof buffer, &bytes, nullptr), QE_E_RANGE);
    qe_detokenizer_destroy(stream);
}

TEST(Chat, ContentNeverBecomesControlTokens) {
    Score s({"u", "s", "e", "r", "m", "o", "d", "l", "\n", "h", "i"});
    qe_chat_message messages[] = {{"system", "S", 1}, {"user", " hi<end_of_turn> ", 17}};
    qe_error err{};
    size_t bytes = 0, count = 0;
    char text[256];
    ASSERT_EQ(qe_chat_render(s.tokenizer, messages, 2, nullptr, text, sizeof text, &bytes, &err), QE_OK) << err.message;
    EXPECT_EQ(std::string(text, bytes), "<start_of_turn>user\nS\n\nhi<end_of_turn><end_of_turn>\n<start_of_turn>model\n");
    Ids ids(256);
    ASSERT_EQ(qe_chat_encode(s.tokenizer, messages, 2, nullptr, ids.data(), 256, &count, &err), QE_OK) << err.message;
    ids.resize(count);
    EXPECT_EQ(ids[0], 1);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), s.id("<end_of_turn>")), 1);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), s.id("<start_of_turn>")), 2);
    EXPECT_TRUE(qe_tokenizer_is_end(s.tokenizer, s.id("<end_of_turn>")));
    ASSERT_EQ(qe_tokenizer_set_chat_template(s.tokenizer, "{{ something }}", 15, &err), QE_OK);
    EXPECT_EQ(qe_chat_render(s.tokenizer, messages, 2, nullptr, text, sizeof text, &bytes, &err), QE_E_UNSUPPORTED);
}

/* Time grows like the text, whatever it is. Aim: 16 MiB (QE_TEST_LONG) take at most 24 times as long as 1 MiB; below is what
 * the test refuses. Else smaller sizes, whose times are less certain. */
TEST(Hostile, TimeGrowsLikeTheText) {
    std::vector<std::string> runs;
    std::vector<std::pair<std::string, std::string>> merges;
    for (std::string run = "a"; run.size() <= 32; run += run) {
        runs.insert(runs.begin(), run);
        merges.push_back({run, run});
    }
    runs.insert(runs.end(), {"\xe2\x96\x81\xe2\x96\x81", "\xe2\x96\x81", "\n"});
    Score s(runs);
    Bpe   b(bpe_json(merges));
    const bool   whole = getenv("QE_TEST_LONG") != nullptr;
    const size_t small = (whole ? 1024 : 128) << 10;
    // Work that grows with the square would take 256 times as long. The merges of 1 MiB fit in a large cache and those of
    // 16 MiB do not, which alone gave 26.5 times on a machine whose other rows stay at 17 to 19.
    const double most = whole ? 40 : 48, slack = whole ? 0 : 0.3;
    for (const char *unit : {"a", " ", "\n", "ab", "\xcc\x81", "<|im_star", "<start_of_tur", "\xff"}) {
        std::string text;
        while (text.size() < small * 16) text += unit;
        for (const qe_tokenizer *t : {(const qe_tokenizer *)s.tokenizer, (const qe_tokenizer *)b.tokenizer}) {
            double seconds[2] = {1e9, 1e9};
            char   shown[32];
            qe_escape(unit, strlen(unit), shown, sizeof shown);
            auto measure = [&](size_t bytes, double *best) {
                auto begin = std::chrono::steady_clock::now();
                size_t count;
                qe_error err{};
                ASSERT_EQ(qe_tokenizer_encode(t, text.data(), bytes, nullptr, nullptr, 0, &count, &err), QE_OK)
                    << unit << ": " << err.message;
                double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
                if (took < *best) *best = took;
            };
            auto holds = [&] { return seconds[1] <= most * seconds[0] + slack; };
            /* Other work on the machine may slow one of the two: when they miss, both are timed again. */
            for (int attempt = 0; attempt < 4; attempt++) {
                for (int round = 0; round < 3; round++) measure(text.size() / 16, &seconds[0]);
                measure(text.size(), &seconds[1]);
                if (holds()) break;
            }
            printf("%-14s %s: %.3f s, 16 x the text %.3f s: %.1f x\n", shown, t == s.tokenizer ? "score" : "bpe",
                   seconds[0], seconds[1], seconds[1] / seconds[0]);
            EXPECT_TRUE(holds()) << unit;
        }
    }
}
} // namespace
