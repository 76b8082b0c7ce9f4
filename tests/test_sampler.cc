/* Sampling: filters against a plain sort, reproducible draws, refused inputs. */
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include <qengine/session.h>
#include "support.h"

using qe_test::has_status;
using qe_test::is_ok;

namespace {

qe_sampling settings(float temperature, int32_t top_k, float top_p, float min_p, uint64_t seed = 1) {
    qe_sampling s = {};
    s.struct_size = sizeof s;
    s.temperature = temperature;
    s.top_k = top_k;
    s.top_p = top_p;
    s.min_p = min_p;
    s.seed = seed;
    return s;
}

int32_t draw(const std::vector<float> &logits, const qe_sampling &s, uint64_t at, float *logprob = nullptr) {
    std::vector<std::max_align_t> scratch(qe_sample_scratch((int64_t)logits.size()) / sizeof(std::max_align_t) + 1);
    qe_error err = {};
    int32_t token = -1;
    EXPECT_TRUE(is_ok(qe_sample(logits.data(), (int64_t)logits.size(), &s, at, scratch.data(), &token, logprob, &err), err));
    return token;
}

/* The tokens the filters keep, by definition: full sort, one filter after the other. */
std::map<int32_t, double> kept(const std::vector<float> &logits, const qe_sampling &s) {
    std::vector<std::pair<double, int32_t>> ranked;
    float top = *std::max_element(logits.begin(), logits.end());
    for (size_t i = 0; i < logits.size(); i++)
        ranked.push_back({-std::exp(((double)logits[i] - top) / s.temperature), (int32_t)i});
    std::sort(ranked.begin(), ranked.end());
    if (s.top_k && ranked.size() > (size_t)s.top_k) ranked.resize((size_t)s.top_k);
    double total = 0, mass = 0;
    for (auto &r : ranked) total -= r.first;
    if (s.top_p > 0 && s.top_p < 1) {
        size_t n = 0;
        while (n < ranked.size() && mass < s.top_p * total) mass -= ranked[n++].first;
        ranked.resize(n);
    }
    double best = ranked[0].first;
    if (s.min_p > 0) ranked.erase(std::remove_if(ranked.begin(), ranked.end(), [&](auto &r) { return -r.first < s.min_p * -best; }), ranked.end());
    double sum = 0;
    for (auto &r : ranked) sum -= r.first;
    std::map<int32_t, double> out;
    for (auto &r : ranked) out[r.second] = -r.first / sum;
    return out;
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
    EXPECT_EQ(draw({1, 5, 2, 5}, settings(0, 0, 0, 0), 0), 1);
    EXPECT_EQ(draw({-INFINITY, -3, -INFINITY}, settings(0, 0, 0, 0), 9), 1);
    float logprob = 0;
    EXPECT_EQ(draw({0, 0, 0, 0}, settings(0, 0, 0, 0), 0, &logprob), 0);
    EXPECT_NEAR(logprob, -std::log(4.0), 1e-6);
}

/* The row is searched in lanes: every place of the largest and of what is refused, in whole and in broken lanes. */
TEST(Sampler, FindsTheLargestAndTheRefusedAtEveryPlace) {
    int places = 0;
    for (size_t n : {1, 2, 15, 16, 17, 31, 32, 33, 49})
        for (size_t at = 0; at < n; at++, places++) {
            std::vector<float> row(n, -2.0f);
            row[at] = row[n - 1] = 3.0f;
            if (at) row[0] = -INFINITY;
            EXPECT_EQ(draw(row, settings(0, 0, 0, 0), 0), (int32_t)at) << n << " logits";
            for (float bad : {INFINITY, std::numeric_limits<float>::quiet_NaN()}) {
                row[at] = bad;
                qe_error err;
                int32_t token = -1;
                ASSERT_EQ(qe_sample(row.data(), (int64_t)n, nullptr, 0, nullptr, &token, nullptr, &err), QE_E_VALUE);
                EXPECT_NE(std::string(err.message).find("logit " + std::to_string(at) + " is"), std::string::npos)
                    << err.message;
            }
        }
    EXPECT_GT(places, 0);
}

/* Frequencies of 4,000 draws match the distribution the definition gives, and nothing else is ever drawn. */
TEST(Sampler, DrawsFollowTheFilteredDistribution) {
    qe_test::Random random(3);
    const float temperatures[] = {0.5f, 1.0f, 2.0f}, top_ps[] = {0, 0.3f, 0.9f, 1}, min_ps[] = {0, 0.05f, 0.5f};
    const int32_t top_ks[] = {0, 1, 3, 10, 1000};
    std::vector<float> logits(40);
    for (float &l : logits) l = 2 * random.normal();
    logits[7] = logits[11];
    int cases = 0;
    for (float t : temperatures) for (float p : top_ps) for (float m : min_ps) for (int32_t k : top_ks) {
        qe_sampling s = settings(t, k, p, m, 100 + (uint64_t)cases);
        auto expected = kept(logits, s);
        std::map<int32_t, int> counts;
        enum { DRAWS = 4000 };
        for (uint64_t i = 0; i < DRAWS; i++) counts[draw(logits, s, i)]++;
        for (auto &c : counts) EXPECT_TRUE(expected.count(c.first)) << "token " << c.first << " in case " << cases;
        for (auto &e : expected) {
            double sigma = std::sqrt(e.second * (1 - e.second) / DRAWS);
            EXPECT_NEAR((double)counts[e.first] / DRAWS, e.second, 5 * sigma + 1e-3) << "case " << cases << " token " << e.first;
        }
        cases++;
    }
    printf("%d filter combinations\n", cases);
}

TEST(Sampler, SameSeedSameDrawsOtherSeedOtherDraws) {
    std::vector<float> flat(1000, 0.0f);
    std::vector<int32_t> a, b, c;
    for (uint64_t i = 0; i < 50; i++) {
        a.push_back(draw(flat, settings(1, 0, 0, 0, 5), i));
        b.push_back(draw(flat, settings(1, 0, 0, 0, 5), i));
        c.push_back(draw(flat, settings(1, 0, 0, 0, 6), i));
    }
    EXPECT_EQ(a, b);
    EXPECT_NE(a, c);
    EXPECT_GT(std::set<int32_t>(a.begin(), a.end()).size(), 40u);
}

TEST(Sampler, RefusesWhatIsNoDistribution) {
    const float inf = INFINITY, nan = std::numeric_limits<float>::quiet_NaN();
    qe_error err = {};
    int32_t token = 77;
    char scratch[64] = {};
    qe_sampling ok = settings(1, 0, 0, 0);
    const struct {
        const char *what;
        std::vector<float> logits;
        qe_sampling s;
        qe_status status;
    } cases[] = {
        {"NaN", {0, nan}, ok, QE_E_VALUE},
        {"+inf", {0, inf}, ok, QE_E_VALUE},
        {"nothing finite", {-inf, -inf}, ok, QE_E_VALUE},
        {"negative temperature", {0, 1}, settings(-1, 0, 0, 0), QE_E_ARGUMENT},
        {"NaN temperature", {0, 1}, settings(nan, 0, 0, 0), QE_E_ARGUMENT},
        {"top_k", {0, 1}, settings(1, -1, 0, 0), QE_E_ARGUMENT},
        {"top_p", {0, 1}, settings(1, 0, 1.5f, 0), QE_E_ARGUMENT},
        {"min_p", {0, 1}, settings(1, 0, 0, -0.1f), QE_E_ARGUMENT},
    };
    for (const auto &c : cases) {
        EXPECT_TRUE(has_status(qe_sample(c.logits.data(), 2, &c.s, 0, scratch, &token, nullptr, &err), c.status, err)) << c.what;
        EXPECT_EQ(token, 77) << c.what;
    }
    const float two[] = {0, 1};
    EXPECT_TRUE(has_status(qe_sample(two, 2, &ok, 0, nullptr, &token, nullptr, &err), QE_E_ARGUMENT, err));
    EXPECT_TRUE(has_status(qe_sample(two, 0, &ok, 0, scratch, &token, nullptr, &err), QE_E_ARGUMENT, err));
}

}  // namespace
