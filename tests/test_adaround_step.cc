#include <algorithm>
#include <cmath>

#include <qengine/num.h>
extern "C" {
#include "quant/algo_adaround.h"
}
#include "support.h"

using namespace qe_test;

namespace {

// One step of Adam on AdaRound's loss against float64, and every variant of this machine with the bits of plain C, whatever
// the width leaves over.
TEST(AdaRoundStep, IsAdamInEveryVariant) {
    struct State { std::vector<float> logit, m, v, delta; };
    Random random(3);
    int variants = 0, cases = 0;
    for (int64_t count : {1, 7, 15, 16, 17, 31, 64, 500}) {
        std::vector<float> gradient((size_t)count), gap(gradient), offset(gradient);
        State start{gradient, gradient, gradient, gradient};
        for (size_t i = 0; i < (size_t)count; i++) {
            gradient[i] = random.normal();
            gap[i] = i % 11 == 5 ? 0.0f : fabsf(random.normal());
            offset[i] = -0.5f * gap[i];
            start.logit[i] = i % 13 == 0 ? 0.0f : i % 5 == 0 ? 20.0f * random.normal() : 2.0f * random.normal();
            start.m[i] = random.normal();
            start.v[i] = 3.0f * fabsf(random.normal());
        }
        for (float beta : {2.0f, 3.7f, 20.0f}) {
            for (float pull : {0.0f, 0.3f, 100.0f}) {
                qe_adaround_rates rates = {0.7f, beta, pull, 0.013f, 1.1f};
                auto run = [&](qe_adaround_step_fn *step) {
                    State s = start;
                    qe_adaround_row row = {gradient.data(), gap.data(), offset.data(), s.logit.data(),
                                           s.m.data(), s.v.data(), s.delta.data()};
                    step(count, &rates, &row);
                    return s;
                };
                State plain = run(qe_adaround_step(0));
                for (variants = 1; qe_adaround_step(variants); variants++) {
                    State s = run(qe_adaround_step(variants));
                    EXPECT_TRUE(same_bits(s.logit, plain.logit) && same_bits(s.m, plain.m) && same_bits(s.v, plain.v) &&
                                same_bits(s.delta, plain.delta)) << "variant " << variants << ", " << count << " weights";
                }
                auto sigmoid = [](double x) { return 1 / (1 + exp(-x)); };
                auto share = [](double s) { return std::clamp(1.2 * s - 0.1, 0.0, 1.0); };
                for (size_t i = 0; i < (size_t)count; i++, cases++) {
                    double s = sigmoid(start.logit[i]), u = 2 * share(s) - 1;
                    double regular = -2.0 * beta * pull * copysign(pow(fabs(u), beta - 1.0), u);
                    double g = 1.2 * s * (1 - s) * (0.7 * gradient[i] * gap[i] + regular);
                    double m = 0.9 * start.m[i] + 0.1 * g, v = 0.999 * start.v[i] + 0.001 * g * g;
                    double x = start.logit[i] - 0.013 * m / (sqrt(1.1 * v) + 1e-8), size = 1 + beta * pull;
                    EXPECT_NEAR(plain.m[i], m, 1e-6 * size) << start.logit[i] << " beta " << beta;
                    EXPECT_NEAR(plain.v[i], v, 1e-6 * size * size) << start.logit[i] << " beta " << beta;
                    EXPECT_NEAR(plain.logit[i], x, 4e-6) << start.logit[i] << " beta " << beta;
                    EXPECT_NEAR(plain.delta[i], offset[i] + share(sigmoid(x)) * gap[i], 2e-6 * (1 + gap[i]));
                }
            }
        }
    }
    EXPECT_GT(cases, 5000);
    printf("%d steps of one weight, %d variants\n", cases, variants);
}

}  // namespace
