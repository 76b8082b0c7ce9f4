// Malformed files as rows of a table: the one status a case must give, and the good file it was made from.
#pragma once
#include <dirent.h>
#include <sys/resource.h>

#include <ctime>

#include "support.h"
#include "test_format_builders.h"

namespace malformed {
using namespace build;

struct Case {
    std::string row, name; // "D7", what is wrong
    qe_status want;
    std::string bytes;
    std::string good = {}; // the repaired neighbor; empty: the format's plain good file
    std::string says = {}; // a part of the message
};

/* Refusing takes bounded work: processor time, since the wall clock of a busy machine says nothing of it; and bounded
 * memory, beyond what the process had before. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double processor_seconds = 10;
constexpr long spare_kib = 1 << 20;
#else
constexpr double processor_seconds = 1;
constexpr long spare_kib = 64 << 10;
#endif

inline long peak_kib() {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}
inline int open_files() {
    int count = 0;
    DIR *all = opendir("/proc/self/fd");
    while (all && readdir(all)) count++;
    if (all) closedir(all);
    return count;
}

/* Opens each case from memory and from a file, then its good neighbor. Returns how many there were. */
inline int run_cases(const std::vector<Case> &cases, const char *file, const std::string &good) {
    qe_test::TempFolder folder;
    int checked = 0, files = open_files();
    for (const auto &c : cases) {
        SCOPED_TRACE(c.row + " " + c.name);
        for (int from_file = 0; from_file < 2; from_file++) {
            qe_store *store = reinterpret_cast<qe_store *>(1);
            qe_error err{};
            const std::string path = from_file ? folder.write(file, c.bytes) : "";
            long before = peak_kib();
            std::clock_t start = std::clock();
            qe_status got = from_file ? qe_store_open(path.c_str(), 0, nullptr, &store, &err)
                                      : open_store(c.bytes, file, 0, &store, &err);
            double took = double(std::clock() - start) / CLOCKS_PER_SEC;
            EXPECT_LE(peak_kib() - before, spare_kib + 8 * long(c.bytes.size() >> 10));
            EXPECT_STREQ(qe_status_name(got), qe_status_name(c.want))
                << "from file: " << from_file << ": " << err.message;
            EXPECT_LT(took, processor_seconds);
            if (got) {
                EXPECT_EQ(store, nullptr);
                EXPECT_EQ(err.status, got);
                EXPECT_NE(err.message[0], 0);
                for (const char *p = err.message; *p; p++) EXPECT_TRUE((unsigned char)*p >= 0x20 && *p != 0x7f) << err.message;
                EXPECT_NE(std::string(err.message).find(c.says), std::string::npos) << err.message;
                EXPECT_NE(std::string(err.where).find(file), std::string::npos) << err.where;
            } else {
                qe_store_close(store);
            }
        }
        const std::string &neighbor = c.good.empty() ? good : c.good;
        qe_store *store;
        qe_error err;
        EXPECT_EQ(open_store(neighbor, file, 0, &store, &err), QE_OK) << err.message;
        qe_store_close(store);
        checked++;
    }
    EXPECT_EQ(open_files(), files);
    return checked;
}

// ---- a good GGUF file, and edits of it -------------------------------------------------------------------------------
inline Gguf good_gguf() {
    Gguf g;
    g.keys = {kv_str("general.architecture", "x"), kv_u32("general.quantization_version", 2)};
    g.tensors = {{"a", {32}, 0, std::string(32 * 4, '\1')}, {"b", {32, 2}, 8, std::string(68, '\1')}};
    return g;
}
using Edit = std::function<void(Gguf &)>;
inline std::string gguf(const Edit &edit) {
    Gguf g = good_gguf();
    edit(g);
    return g.bytes();
}
inline std::string key(const std::string &k) {
    return gguf([&](Gguf &g) { g.keys.push_back(k); });
}
inline std::string dims(std::vector<uint64_t> d, uint64_t type = 0) {
    return gguf([&](Gguf &g) {
        g.tensors[0].dims = std::move(d);
        g.tensors[0].type = type;
    });
}
inline std::string offset(int i, uint64_t at) {
    return gguf([&](Gguf &g) { g.tensors[size_t(i)].offset = int64_t(at); });
}

// ---- a good safetensors file ------------------------------------------------------------------------------------------
inline std::string entry(const std::string &name, const std::string &dtype, const std::string &shape,
                         const std::string &offsets) {
    return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}
inline std::string one(const std::string &json, size_t data = 4) {
    return safetensors("{" + json + "}", std::string(data, '\1'));
}
const std::string kGoodEntry = entry("w", "U8", "[4]", "[0,4]");

} // namespace malformed
