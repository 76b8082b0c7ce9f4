// engine/base: errors, readers, checked arithmetic, pool, JSON, log.
#include <atomic>
#include <cmath>
#include <random>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "support.h"

extern "C" {
#include "base/check.h"
#include "base/json.h"
#include "base/log.h"
#include "base/os.h"
#include "base/pool.h"
#include "base/sha256.h"
}

using namespace qe_test;

namespace {

// ---- errors -----------------------------------------------------------------------------------------------------

TEST(Error, NamesAndTextsAreUniqueAndKnown) {
    const std::vector<std::pair<qe_status, std::string>> all = {
#define QE_X(name, value, text) {name, #name},
        QE_STATUS_LIST(QE_X)
#undef QE_X
    };
    for (size_t i = 0; i < all.size(); i++) {
        EXPECT_EQ(qe_status_name(all[i].first), all[i].second);
        EXPECT_STRNE(qe_status_text(all[i].first), "?");
        for (size_t j = 0; j < i; j++) EXPECT_STRNE(qe_status_text(all[i].first), qe_status_text(all[j].first));
    }
    EXPECT_STREQ(qe_status_name((qe_status)12345), "?");
    EXPECT_STREQ(qe_status_text((qe_status)12345), "?");
}

TEST(Error, SetReturnsStatusCutsAndAcceptsNull) {
    qe_error err;
    std::string big(1000, 'x');
    EXPECT_EQ(qe_error_set(nullptr, QE_E_IO, "lost"), QE_E_IO);
    EXPECT_EQ(qe_error_at(&err, QE_E_RANGE, "file", 7, "%s", big.c_str()), QE_E_RANGE);
    EXPECT_EQ(err.status, QE_E_RANGE);
    EXPECT_EQ(err.offset, 7);
    EXPECT_STREQ(err.where, "file");
    EXPECT_EQ(strlen(err.message), sizeof err.message - 1);
    EXPECT_EQ(qe_error_set(&err, QE_E_IO, "%.5s!", err.message), QE_E_IO);   // the argument lies in the record itself
    EXPECT_STREQ(err.message, "xxxxx!");
    EXPECT_EQ(err.offset, -1);
}

TEST(Error, MessagesArePrintableWhateverIsInThem) {
    const struct { const char *in, *out; } rows[] = {
        {"tensor \"a\\b\" h\xc3\xa9", "tensor \"a\\b\" h\xc3\xa9"},   // quotes of ours stay
        {"two\nlines\x1b[31m", "two\\x0alines\\x1b[31m"}, {"\xff\xc2\x9b", "\\xff\\xc2\\x9b"},
    };
    for (const auto &row : rows) {
        qe_error err;
        qe_error_at(&err, QE_E_VALUE, row.in, 1, "%s", row.in);
        EXPECT_STREQ(err.message, row.out);
        EXPECT_STREQ(err.where, row.out);
    }
    qe_error err;
    std::string wide;
    for (int i = 0; i < 300; i++) wide += "\xc3\xa9";
    qe_error_set(&err, QE_E_VALUE, "x%s", wide.c_str());
    EXPECT_EQ(std::string(err.message), "x" + wide.substr(0, (sizeof err.message - 2) / 2 * 2));   // no half of a character
}

TEST(Error, EscapeTable) {
    const struct { std::string in, out; } rows[] = {
        {"plain", "plain"},         {"a\"b\\c'", "a\\\"b\\\\c\\'"},     {std::string("\0\n\x1b", 3), "\\x00\\x0a\\x1b"},
        {"h\xc3\xa9", "h\xc3\xa9"}, {"\xc0\x80", "\\xc0\\x80"},        {"\xed\xa0\x80", "\\xed\\xa0\\x80"},
        {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"}, {"\xe2\x82", "\\xe2\\x82"}, {"\xc2\x9b", "\\xc2\\x9b"},
        {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80"}, {"\x7f", "\\x7f"},
    };
    for (const auto &row : rows) {
        char out[64];
        EXPECT_EQ(std::string(qe_escape(row.in.data(), row.in.size(), out, sizeof out)), row.out);
    }
    for (size_t room = 1; room < 12; room++) {                   // never half a sequence, never past the end
        char out[12];
        memset(out, 'Z', sizeof out);
        qe_escape("\xc3\xa9\n\xc3\xa9", 5, out, room);
        EXPECT_LT(strlen(out), room);
        for (size_t i = room; i < sizeof out; i++) EXPECT_EQ(out[i], 'Z');
    }
}

// ---- checked arithmetic -----------------------------------------------------------------------------------------

TEST(Check, Limits) {
    uint64_t out;
    size_t bytes;
    EXPECT_TRUE(qe_check_add(UINT64_MAX - 1, 1, &out));
    EXPECT_EQ(out, UINT64_MAX);
    EXPECT_FALSE(qe_check_add(UINT64_MAX, 1, &out));
    EXPECT_TRUE(qe_check_mul(1ull << 32, (1ull << 32) - 1, &out));
    EXPECT_FALSE(qe_check_mul(1ull << 32, 1ull << 32, &out));
    EXPECT_TRUE(qe_check_align(UINT64_MAX - 31, 32, &out));
    EXPECT_EQ(out, UINT64_MAX - 31);
    EXPECT_FALSE(qe_check_align(UINT64_MAX - 30, 32, &out));
    EXPECT_TRUE(qe_check_span(10, 0, 10));
    EXPECT_FALSE(qe_check_span(11, 0, 10));
    EXPECT_FALSE(qe_check_span(1, UINT64_MAX, 10));
    EXPECT_FALSE(qe_check_array(UINT64_MAX / 2, 4, &bytes));
}

// ---- readers ----------------------------------------------------------------------------------------------------

TEST(Reader, FileAndMemoryGiveTheSameBytes) {
    TempFolder folder;
    std::string text(100000, 0);
    Random(1).fill(text.data(), text.size());
    std::string path = folder.write("a", text);
    qe_reader readers[2];
    qe_error err;
    ASSERT_TRUE(is_ok(qe_reader_open(path.c_str(), &readers[0], &err), err));
    ASSERT_TRUE(is_ok(qe_reader_memory(text.data(), text.size(), "a", &readers[1], &err), err));
    for (qe_reader &r : readers) {
        std::string got(text.size(), 0);
        EXPECT_EQ(r.size, text.size());
        for (size_t at = 0; at < text.size(); at += 7001) {
            size_t n = std::min<size_t>(7001, text.size() - at);
            EXPECT_TRUE(is_ok(r.read_at(r.ctx, at, &got[at], n, &err), err));
        }
        EXPECT_TRUE(got == text);
        EXPECT_EQ(r.read_at(r.ctx, text.size(), &got[0], 0, &err), QE_OK);
        EXPECT_EQ(r.read_at(r.ctx, text.size(), &got[0], 1, &err), QE_E_TRUNCATED);
        EXPECT_EQ(r.read_at(r.ctx, UINT64_MAX, &got[0], 2, &err), QE_E_TRUNCATED);
        qe_reader_close(&r);
        qe_reader_close(&r);
    }
    qe_reader_close(nullptr);
}

TEST(Reader, RefusesWhatIsNotARegularFile) {
    TempFolder folder;
    std::string fifo = folder.file("fifo");
    ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
    const std::string huge(1 << 20, 'p');
    struct { std::string path; qe_status status; } rows[] = {
        {folder.path(), QE_E_IO}, {fifo, QE_E_IO}, {"/dev/null", QE_E_IO}, {folder.file("none"), QE_E_IO},
        {"", QE_E_PATH},          {huge, QE_E_PATH}, {huge.substr(0, 60000), QE_E_PATH},
    };
    for (const auto &row : rows) {
        qe_reader reader;
        qe_error err;
        EXPECT_TRUE(has_status(qe_reader_open(row.path.c_str(), &reader, &err), row.status, err));
        EXPECT_GT(strlen(err.message), 0u);
    }
    qe_reader reader;
    EXPECT_EQ(qe_reader_open(nullptr, &reader, nullptr), QE_E_ARGUMENT);
}

TEST(Reader, SeesChanges) {
    TempFolder folder;
    std::string path = folder.write("a", std::string(5000, 'a'));
    qe_reader reader;
    qe_error err;
    char byte[16];
    ASSERT_TRUE(is_ok(qe_reader_open(path.c_str(), &reader, &err), err));
    ASSERT_EQ(truncate(path.c_str(), 100), 0);
    EXPECT_EQ(reader.read_at(reader.ctx, 4000, byte, 16, &err), QE_E_CHANGED);
    qe_reader_close(&reader);

    ASSERT_TRUE(is_ok(qe_reader_open(path.c_str(), &reader, &err), err));     // replaced by rename: the old content
    std::string other = folder.write("b", std::string(100, 'b'));
    ASSERT_EQ(rename(other.c_str(), path.c_str()), 0);
    EXPECT_TRUE(is_ok(reader.read_at(reader.ctx, 0, byte, 16, &err), err));
    EXPECT_EQ(byte[0], 'a');
    qe_reader_close(&reader);
}

// ---- pool -------------------------------------------------------------------------------------------------------

struct Marks {
    std::vector<std::atomic<int>> hits;
    std::atomic<int> wrong{0};
    explicit Marks(int n) : hits(n) {}
};
void mark(void *arg, int32_t index, int32_t count) {
    Marks *m = (Marks *)arg;
    if (count != (int32_t)m->hits.size()) m->wrong++;
    m->hits[index]++;
}

TEST(Pool, EveryIndexOnceForAllThreadCounts) {
    for (int threads : {1, 2, 3, 8}) {
        qe_pool *pool = nullptr;
        qe_error err;
        ASSERT_TRUE(is_ok(qe_pool_create(threads, &pool, &err), err));
        EXPECT_EQ(qe_pool_threads(pool), threads);
        for (int count : {0, 1, 2, 3, 7, 64}) {
            Marks marks(count);
            for (int round = 0; round < 50; round++) qe_pool_run(pool, mark, &marks, count);
            EXPECT_EQ(marks.wrong, 0);
            for (auto &h : marks.hits) EXPECT_EQ(h, 50) << threads << " threads, " << count << " indices";
        }
        qe_pool_destroy(pool);
    }
    Marks marks(5);
    qe_pool_run(nullptr, mark, &marks, 5);
    for (auto &h : marks.hits) EXPECT_EQ(h, 1);
    qe_pool_destroy(nullptr);
}

TEST(Pool, WakesSleepersAndServesSeveralCallers) {
    qe_pool *pool = nullptr;
    ASSERT_EQ(qe_pool_create(2, &pool, nullptr), QE_OK);
    for (int i = 0; i < 5; i++) {                                 // longer than the spin: the worker is asleep
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        Marks marks(4);
        qe_pool_run(pool, mark, &marks, 4);
        for (auto &h : marks.hits) EXPECT_EQ(h, 1);
    }
    std::vector<std::thread> callers;
    std::atomic<int> bad{0};
    for (int c = 0; c < 4; c++)
        callers.emplace_back([&] {
            for (int i = 0; i < 100; i++) {
                Marks marks(5);
                qe_pool_run(pool, mark, &marks, 5);
                for (auto &h : marks.hits) bad += h != 1;
            }
        });
    for (auto &t : callers) t.join();
    EXPECT_EQ(bad, 0);
    qe_pool_destroy(pool);
}

struct HeldUp {
    std::atomic<int> done{0};
    bool alone = false;      // the others were done while index 0 was held up
};
void hold_first(void *arg, int32_t index, int32_t count) {
    HeldUp *h = (HeldUp *)arg;
    if (index) {
        h->done++;
        return;
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (h->done < count - 1 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    h->alone = h->done == count - 1;
}

TEST(Pool, AThreadHeldUpDelaysNoOtherIndex) {
    for (int threads : {2, 3, 8}) {
        qe_pool *pool = nullptr;
        ASSERT_EQ(qe_pool_create(threads, &pool, nullptr), QE_OK);
        for (int count : {2, 9, 64}) {
            HeldUp held;
            qe_pool_run(pool, hold_first, &held, count);
            EXPECT_TRUE(held.alone) << threads << " threads, " << count << " indices: " << held.done << " done";
        }
        qe_pool_destroy(pool);
    }
}

TEST(Pool, RefusesBadCounts) {
    qe_pool *pool = nullptr;
    EXPECT_EQ(qe_pool_create(0, &pool, nullptr), QE_E_ARGUMENT);
    EXPECT_EQ(qe_pool_create(1025, &pool, nullptr), QE_E_ARGUMENT);
    EXPECT_EQ(qe_pool_create(1, nullptr, nullptr), QE_E_ARGUMENT);
    EXPECT_EQ(pool, nullptr);
}

TEST(Pool, WorksInAForkedChild) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "ThreadSanitizer does not follow a fork of a process with threads";
#endif
    qe_pool *pool = nullptr;
    ASSERT_EQ(qe_pool_create(3, &pool, nullptr), QE_OK);
    pid_t child = fork();
    ASSERT_GE(child, 0);
    if (!child) {
        Marks marks(9);
        qe_pool_run(pool, mark, &marks, 9);
        int bad = 0;
        for (auto &h : marks.hits) bad += h != 1;
        qe_pool_destroy(pool);
        _exit(bad);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    qe_pool_destroy(pool);
}

#if defined(__x86_64__)
void float_state(void *arg, int32_t index, int32_t) { ((unsigned *)arg)[index] = _mm_getcsr(); }

TEST(Pool, SetsAndRestoresTheFloatingPointState) {
    for (int threads : {1, 2}) {
        qe_pool *pool = nullptr;
        ASSERT_EQ(qe_pool_create(threads, &pool, nullptr), QE_OK);
        unsigned before = _mm_getcsr(), seen[4] = {0}, callers = 0x1F80 | 0x8000 | 0x6000;   // FTZ, toward zero
        _mm_setcsr(callers);
        qe_pool_run(pool, float_state, seen, 4);
        unsigned after = _mm_getcsr();
        _mm_setcsr(before);
        EXPECT_EQ(after & 0xFFC0, callers & 0xFFC0);
        for (unsigned s : seen) EXPECT_EQ(s & 0xFFC0, 0x1F80u);
        qe_pool_destroy(pool);
    }
}
#endif

// ---- JSON -------------------------------------------------------------------------------------------------------

TEST(Json, ParseTable) {
    const std::string deep = "{\"a\":" + std::string(100000, '[');
    const std::string nested = std::string(2048, '[') + std::string(2048, ']');
    const struct { const char *name; std::string text; qe_status status; } rows[] = {
        {"good", "{\"a\":[1,2.5,true,null,\"x\"]}", QE_OK},
        {"empty", "", QE_E_JSON},
        {"missing brace", "{\"a\":1", QE_E_JSON},
        {"trailing comma", "{\"a\":1,}", QE_E_JSON},
        {"comment", "{/*x*/}", QE_E_JSON},
        {"single quotes", "{'a':1}", QE_E_JSON},
        {"NaN", "{\"a\":NaN}", QE_E_JSON},
        {"control character", "{\"a\":\"\n\"}", QE_E_JSON},
        {"text after the end", "{} x", QE_E_JSON},
        {"open string", "{\"a\\", QE_E_JSON},
        {"bare value", "1", QE_OK},
        {"only blanks", " \n\t\r", QE_E_JSON},
        {"byte order mark alone", "\xef\xbb\xbf", QE_E_JSON},
        {"two documents", "{}{}", QE_E_JSON},
        {"form feed for a blank", "{\f}", QE_E_JSON},
        {"integer after a zero", "[01]", QE_E_JSON},
        {"plus", "[+1]", QE_E_JSON},
        {"no digit before the point", "[.5]", QE_E_JSON},
        {"no digit after the point", "[1.]", QE_E_JSON},
        {"no digit in the exponent", "[1e+]", QE_E_JSON},
        {"hexadecimal", "[0x10]", QE_E_JSON},
        {"infinity", "[Infinity]", QE_E_JSON},
        {"underscore", "[1_000]", QE_E_JSON},
        {"word in capitals", "[True]", QE_E_JSON},
        {"word cut", "[tru", QE_E_JSON},
        {"unknown escape", "[\"\\x41\"]", QE_E_JSON},
        {"escape cut", "[\"\\u00", QE_E_JSON},
        {"escape with a wrong digit", "[\"\\u00g0\"]", QE_E_JSON},
        {"first surrogate alone", "[\"\\ud800\"]", QE_E_JSON},
        {"first surrogate before a letter", "[\"\\ud800\\u0041\"]", QE_E_JSON},
        {"second surrogate alone", "[\"\\udc00\"]", QE_E_JSON},
        {"real beyond double", "[1e999]", QE_E_OVERFLOW},
        {"one above int64", "[9223372036854775808]", QE_E_OVERFLOW},
        {"one below int64", "[-9223372036854775809]", QE_E_OVERFLOW},
        {"400 digits", "[" + std::string(400, '9') + "]", QE_E_OVERFLOW},
        {"byte FF between values", "[1,\xff]", QE_E_UTF8},
        {"key of 100 bytes twice", "{\"" + std::string(100, 'k') + "\":1,\"" + std::string(100, 'k') + "\":1}", QE_E_DUPLICATE},
        {"byte FF", "{\"\xff\":1}", QE_E_UTF8},
        {"overlong", "{\"\xc0\x80\":1}", QE_E_UTF8},
        {"surrogate bytes", "{\"\xed\xa0\x80\":1}", QE_E_UTF8},
        {"duplicate", "{\"w\":1,\"w\":2}", QE_E_DUPLICATE},
        {"duplicate by escape", "{\"w\":1,\"\\u0077\":2}", QE_E_DUPLICATE},
        {"beyond int64", "{\"a\":18446744073709551616}", QE_E_OVERFLOW},
        {"NUL in a value", "{\"a\":\"x\\u0000y\"}", QE_E_RANGE},
        {"NUL in a key", "{\"a\\u0000\":1}", QE_E_RANGE},
        {"raw NUL", std::string("{\"a\":\0}", 7), QE_E_JSON},
        {"too deep", deep, QE_E_DEPTH},
        {"depth at the limit", nested, QE_OK},
        {"brackets inside a string", "{\"a\":\"" + std::string(5000, '[') + "\\\"\"}", QE_OK},
    };
    for (const auto &row : rows) {
        json_t *root = nullptr;
        qe_error err;
        qe_status got = qe_json_parse(row.text.data(), row.text.size(), nullptr, "f.json", &root, &err);
        EXPECT_TRUE(has_status(got, row.status, err)) << row.name;
        EXPECT_EQ(root != nullptr, row.status == QE_OK) << row.name;
        if (got) {
            EXPECT_STREQ(err.where, "f.json") << row.name;
        }
        json_decref(root);
    }
}

// What jansson itself makes of a text, ours makes too: values, order of members, and refusals.
TEST(Json, EqualsJanssonsOwnReading) {
    std::mt19937 rng(11);
    const char *parts[] = {"{", "}", "[", "]", ",", ":", "\"a\"", "\"b\"", "\"\\u00e9\\ud83d\\ude00\\n\"", "\"\xe2\x82\xac/\\/\"",
                           "1", "-0", "-12.5e-3", "2E+5", "9223372036854775807", "-9223372036854775808", "1e400", "4.9e-324",
                           "0.1", "true", "false", "null", " ", "\n", "01", "\"", "\\", "x", "\x80", "1e-999"};
    const char *good[] = {"{\"a\":[1,-0,0.1,-12.5e-3,2E+5,4.9e-324,1.7976931348623157e308,1e-999],\"b\":{\"\":null}}",
                          "[\"\\u00e9\\ud83d\\ude00\\n\\t\\b\\f\\r\\\\\\/\\\"\",\"\xe2\x82\xac\xf0\x9f\x98\x80\",\"\"]",
                          "{\"z\":1,\"a\":2,\"m\":{\"z\":[[],{}]}}", " [ 123456789012345678 , -9223372036854775808 ] "};
    int cases = 0, accepted = 0;
    auto compare = [&](const std::string &text) {
        json_error_t fault;
        json_t *theirs = json_loadb(text.data(), text.size(), JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &fault), *ours = nullptr;
        qe_error err = {};
        qe_status status = qe_json_parse(text.data(), text.size(), nullptr, "f", &ours, &err);
        ASSERT_EQ(status == QE_OK, theirs != nullptr) << text << ": " << err.message << " / " << fault.text;
        if (theirs) {
            char *a = json_dumps(theirs, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17)), *b = json_dumps(ours, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
            EXPECT_STREQ(a, b) << text;
            EXPECT_TRUE(json_equal(ours, theirs)) << text;
            free(a), free(b);
            accepted++;
        } else {
            EXPECT_LE(err.offset, (int64_t)text.size()) << text;
            EXPECT_GE(err.offset, 0) << text;
        }
        json_decref(theirs), json_decref(ours);
        cases++;
    };
    for (const char *text : good)
        for (size_t cut = 0; cut <= strlen(text); cut++) compare(std::string(text, cut));
    for (const char *text : good)        // one byte replaced
        for (int i = 0; i < 2000; i++) {
            std::string other = text;
            other[rng() % other.size()] = (char)rng();
            compare(other);
        }
    for (int i = 0; i < 20000; i++) {
        std::string text = rng() % 2 ? "[" : "";
        for (int n = 1 + (int)(rng() % 8); n; n--) text += parts[rng() % (sizeof parts / sizeof *parts)];
        compare(text + (text[0] == '[' && rng() % 2 ? "]" : ""));
    }
    printf("%d texts, %d of them accepted by both\n", cases, accepted);
    EXPECT_GT(accepted, 1000);
}

TEST(Json, LimitsAtTheEdge) {
    json_t *root = nullptr;
    const std::string text = "{\"a\":[1,2,3,4],\"b\":2,\"c\":3}";
    qe_json_limits limits = {};
    limits.max_bytes = text.size();
    limits.max_members = 3;
    limits.max_depth = 2;
    ASSERT_EQ(qe_json_parse(text.data(), text.size(), &limits, "f", &root, nullptr), QE_OK);
    json_decref(root);
    for (int which = 0; which < 3; which++) {
        qe_json_limits tight = limits;
        if (which == 0) tight.max_bytes--;
        if (which == 1) tight.max_members--;
        if (which == 2) tight.max_depth--;
        root = nullptr;
        EXPECT_EQ(qe_json_parse(text.data(), text.size(), &tight, "f", &root, nullptr), which == 2 ? QE_E_DEPTH : QE_E_LIMIT);
        EXPECT_EQ(root, nullptr);
    }
}

TEST(Json, ReadChecksTheSizeBeforeAllocating) {
    qe_reader huge = {};
    json_t *root = nullptr;
    huge.size = 1ull << 50;
    huge.name = "huge.json";
    EXPECT_EQ(qe_json_read(&huge, nullptr, &root, nullptr), QE_E_LIMIT);
    qe_reader reader;
    ASSERT_EQ(qe_reader_memory("{\"n\":3}", 7, "m.json", &reader, nullptr), QE_OK);
    qe_error err;
    ASSERT_TRUE(is_ok(qe_json_read(&reader, nullptr, &root, &err), err));
    int64_t n = 0;
    EXPECT_TRUE(is_ok(qe_json_int(root, "n", 0, 5, &n, &err), err));
    EXPECT_EQ(n, 3);
    json_decref(root);
    qe_reader_close(&reader);
}

TEST(Json, TypedMembers) {
    const std::string text = "{\"i\":5,\"r\":0.5,\"s\":\"x\",\"b\":true,\"o\":{},\"a\":[],\"z\":null}";
    json_t *root = nullptr, *value = nullptr;
    qe_error err;
    ASSERT_EQ(qe_json_parse(text.data(), text.size(), nullptr, "f", &root, &err), QE_OK);
    int64_t i = -1;
    double r = -1;
    bool b = false;
    const char *s = nullptr;
    EXPECT_EQ(qe_json_int(root, "i", 5, 5, &i, &err), QE_OK);
    EXPECT_EQ(i, 5);
    EXPECT_EQ(qe_json_int(root, "i", 6, 9, &i, &err), QE_E_RANGE);
    EXPECT_NE(strstr(err.message, "\"i\""), nullptr) << err.message;
    EXPECT_EQ(qe_json_int(root, "r", 0, 9, &i, &err), QE_E_TYPE);
    EXPECT_EQ(qe_json_int(root, "none", 0, 9, &i, &err), QE_E_MISSING);
    EXPECT_EQ(qe_json_int(root, "z", 0, 9, &i, &err), QE_E_TYPE);
    EXPECT_EQ(i, 5);
    EXPECT_EQ(qe_json_int_or(root, "z", 0, 9, 7, &i, &err), QE_OK);
    EXPECT_EQ(i, 7);
    EXPECT_EQ(qe_json_int_or(root, "s", 0, 9, 7, &i, &err), QE_E_TYPE);
    EXPECT_EQ(qe_json_real(root, "i", &r, &err), QE_OK);
    EXPECT_EQ(r, 5.0);
    EXPECT_EQ(qe_json_real(root, "b", &r, &err), QE_E_TYPE);
    EXPECT_EQ(qe_json_real_or(root, "none", 0.25, &r, &err), QE_OK);
    EXPECT_EQ(r, 0.25);
    EXPECT_EQ(qe_json_bool_or(root, "b", false, &b, &err), QE_OK);
    EXPECT_TRUE(b);
    EXPECT_EQ(qe_json_bool_or(root, "i", false, &b, &err), QE_E_TYPE);
    EXPECT_EQ(qe_json_string(root, "s", &s, &err), QE_OK);
    EXPECT_STREQ(s, "x");
    EXPECT_EQ(qe_json_string(root, "a", &s, &err), QE_E_TYPE);
    EXPECT_EQ(qe_json_string_or(root, "none", "y", &s, &err), QE_OK);
    EXPECT_STREQ(s, "y");
    EXPECT_EQ(qe_json_object(root, "o", &value, &err), QE_OK);
    EXPECT_EQ(qe_json_object(root, "a", &value, &err), QE_E_TYPE);
    EXPECT_EQ(qe_json_array(root, "a", &value, &err), QE_OK);
    EXPECT_EQ(qe_json_array(root, "none", &value, &err), QE_E_MISSING);
    EXPECT_TRUE(qe_json_has(root, "i"));
    EXPECT_FALSE(qe_json_has(root, "z"));
    json_decref(root);
}

// ---- log, memory, machine ---------------------------------------------------------------------------------------

TEST(Log, FormatsOneLineOrNothing) {
    std::vector<std::string> lines;
    qe_log log = {&lines, [](void *ctx, qe_log_level level, const char *line) {
                      ((std::vector<std::string> *)ctx)->push_back(std::to_string(level) + line);
                  }};
    qe_log_line(nullptr, QE_LOG_INFO, "nobody hears %d", 1);
    qe_log_line(&log, QE_LOG_WARNING, "heard %d", 2);
    ASSERT_EQ(lines.size(), 1u);
    EXPECT_EQ(lines[0], "1heard 2");
}

TEST(Os, MachineAndMemory) {
    EXPECT_GE(qe_os_cpus(), 1);
    EXPECT_GE(qe_os_physical_cores(), 1);
    EXPECT_LE(qe_os_physical_cores(), qe_os_cpus());
    uint64_t t = qe_os_now_us();
    EXPECT_GE(qe_os_now_us(), t);
    for (size_t bytes : {size_t(0), size_t(1), size_t(256), size_t(100001)}) {
        void *p = qe_os_alloc(bytes);
        ASSERT_NE(p, nullptr);
        EXPECT_EQ((uintptr_t)p % 256, 0u);
        memset(p, 1, bytes);
        qe_os_release(p);
    }
    EXPECT_EQ(qe_os_alloc(SIZE_MAX), nullptr);
}

// FIPS 180-4 and NIST's long message, in one piece and in pieces that end anywhere in a block.
TEST(Sha256, KnownAnswersInAnyPieces) {
    const std::pair<std::string, const char *> answers[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {std::string(1000000, 'a'), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"}};
    for (const auto &[message, digest] : answers)
        for (size_t piece : {size_t(1), size_t(63), size_t(64), size_t(65), size_t(4096), message.size() + 1}) {
            qe_sha256 h;
            char text[65];
            qe_sha256_start(&h);
            for (size_t at = 0; at < message.size(); at += piece)
                qe_sha256_add(&h, message.data() + at, std::min(piece, message.size() - at));
            qe_sha256_end(&h, text);
            EXPECT_STREQ(text, digest) << message.size() << " bytes by " << piece;
        }
}

}  // namespace
