/* tests/support.h -- what every test shares: temporary files, a seeded generator, comparison of bits. */
#ifndef QE_TESTS_SUPPORT_H
#define QE_TESTS_SUPPORT_H
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <ftw.h>
#include <unistd.h>

#include <gtest/gtest.h>
#include <qengine/base.h>

namespace qe_test {

/* A folder that is gone, with all in it, at the end of the test. */
class TempFolder {
public:
    TempFolder() {
        const char *base = getenv("TMPDIR");
        std::string pattern = std::string(base && *base ? base : "/tmp") + "/qe_test_XXXXXX";
        std::vector<char> name(pattern.begin(), pattern.end());
        name.push_back(0);
        if (mkdtemp(name.data())) path_ = name.data();
        EXPECT_FALSE(path_.empty()) << "cannot create " << pattern;
    }
    ~TempFolder() {
        if (!path_.empty()) nftw(path_.c_str(), [](const char *p, const struct stat *, int, FTW *) { return remove(p); }, 16, FTW_DEPTH | FTW_PHYS);
    }
    TempFolder(const TempFolder &) = delete;
    TempFolder &operator=(const TempFolder &) = delete;

    const std::string &path() const { return path_; }
    std::string file(const std::string &name) const { return path_ + "/" + name; }

    /* Writes a file into the folder and returns its path. */
    std::string write(const std::string &name, const void *data, size_t bytes) const {
        std::string path = file(name);
        FILE *f = fopen(path.c_str(), "wb");
        EXPECT_NE(f, nullptr) << path;
        if (f) {
            EXPECT_EQ(fwrite(data, 1, bytes, f), bytes);
            EXPECT_EQ(fclose(f), 0);
        }
        return path;
    }
    std::string write(const std::string &name, const std::string &text) const {
        return write(name, text.data(), text.size());
    }

private:
    std::string path_;
};

inline std::string read_file(const std::string &path) {
    std::string out;
    FILE *f = fopen(path.c_str(), "rb");
    if (!f) return out;
    char buffer[65536];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, f)) > 0;) out.append(buffer, n);
    fclose(f);
    return out;
}

/* While it lives, devices are created with fewer instruction sets (QE_ISA); NULL: with those there are. */
class HeldBack {
public:
    explicit HeldBack(const char *isa) : held_(isa != nullptr) {
        const char *before = getenv("QE_ISA");
        if (held_ && before) before_ = before;
        if (isa) setenv("QE_ISA", isa, 1);
    }
    ~HeldBack() {
        if (held_ && before_.empty()) unsetenv("QE_ISA");
        else if (held_) setenv("QE_ISA", before_.c_str(), 1);
    }
    HeldBack(const HeldBack &) = delete;
    HeldBack &operator=(const HeldBack &) = delete;

private:
    bool held_;
    std::string before_;
};

/* SplitMix64: the same seed gives the same numbers everywhere. */
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    uint32_t below(uint32_t n) { return (uint32_t)(((bits() >> 32) * n) >> 32); }
    int32_t between(int32_t lo, int32_t hi) { return lo + (int32_t)below((uint32_t)(hi - lo) + 1u); }
    float uniform() { return (float)(bits() >> 40) * 0x1p-24f; }                  /* [0, 1) */
    float uniform(float lo, float hi) { return lo + (hi - lo) * uniform(); }
    float normal() {                                                               /* sum of 12: no libm */
        float sum = -6.0f;
        for (int i = 0; i < 12; i++) sum += uniform();
        return sum;
    }
    void fill(void *data, size_t bytes) {
        for (size_t i = 0; i < bytes; i++) ((uint8_t *)data)[i] = (uint8_t)(bits() >> 56);
    }

private:
    uint64_t state_;
};

inline uint32_t float_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

/* All NaNs are made one before bits are compared: x86 and CUDA produce different ones. */
inline uint32_t canonical(float x) { return x != x ? 0x7fc00000u : float_bits(x); }
inline uint32_t canonical_half(uint16_t h) { return (h & 0x7fffu) > 0x7c00u ? 0x7e00u : h; }
inline uint32_t canonical_bf16(uint16_t h) { return (h & 0x7fffu) > 0x7f80u ? 0x7fc0u : h; }
inline uint32_t canonical(int8_t x) { return (uint32_t)(int32_t)x; }
inline uint32_t canonical(uint8_t x) { return x; }
inline uint32_t canonical(uint16_t x) { return x; }
inline uint32_t canonical(int32_t x) { return (uint32_t)x; }
inline uint32_t canonical(uint32_t x) { return x; }

/* EXPECT_TRUE(same_bits(a, b, n)): names the first difference and counts them. */
template <typename T>
testing::AssertionResult same_bits(const T *a, const T *b, size_t n) {
    size_t first = n, different = 0;
    for (size_t i = 0; i < n; i++) {
        if (canonical(a[i]) == canonical(b[i])) continue;
        if (first == n) first = i;
        different++;
    }
    if (!different) return testing::AssertionSuccess();
    char text[160];
    snprintf(text, sizeof text, "%zu of %zu differ, first at %zu: %.9g (%08x) and %.9g (%08x)", different, n, first,
             (double)a[first], canonical(a[first]), (double)b[first], canonical(b[first]));
    return testing::AssertionFailure() << text;
}
template <typename T>
testing::AssertionResult same_bits(const std::vector<T> &a, const std::vector<T> &b) {
    if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " and " << b.size() << " elements";
    return same_bits(a.data(), b.data(), a.size());
}

/* EXPECT_TRUE(is_ok(call, err)) prints the library's own message. */
inline testing::AssertionResult is_ok(qe_status status, const qe_error &err) {
    if (status == QE_OK) return testing::AssertionSuccess();
    return testing::AssertionFailure() << qe_status_name(status) << ": " << err.where << ": " << err.message;
}
inline testing::AssertionResult has_status(qe_status got, qe_status expected, const qe_error &err) {
    if (got == expected) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "expected " << qe_status_name(expected) << ", got " << qe_status_name(got)
                                       << (got ? std::string(": ") + err.where + ": " + err.message : "");
}

}  // namespace qe_test
#endif
