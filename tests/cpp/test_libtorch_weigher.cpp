// What absgd::ABSGD's weigh and accumulate do with masks, base measures, guards and rules for λ:
// against Algorithm 1 written in float64 tensors, and accumulation against one large batch.
#include "absgd_libtorch.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <vector>

namespace {

using absgd::ABSGDOptions;
using torch::Tensor;

constexpr double INF = std::numeric_limits<double>::infinity();
constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

// Algorithm 1 with base measure w, γ = 0.7 and the guards, by DESIGN's formulas and s itself.
struct Reference {
    double lam, cap;
    bool keep_loss;
    Tensor s = {};

    struct Answer {
        Tensor weights, coefficients;
    };

    Answer weigh(const Tensor &losses, const Tensor &mask, const Tensor &weight) {
        const auto counts = mask.to(torch::kDouble), l = losses.masked_fill(~mask, 0);
        const auto w = weight.masked_fill(~mask, 0);
        const auto mean = (w * torch::exp(l / lam)).sum() / w.sum();
        s = s.defined() ? 0.3 * s + 0.7 * mean : mean;
        if (keep_loss || cap < INF) s = torch::minimum(s, mean / 0.7);
        const auto p = torch::exp(l / lam) / s * (w > 0);
        auto kappa = torch::ones({}, torch::kDouble);
        if (keep_loss) kappa = ((w * l.abs()).sum() / (w * p * l.abs()).sum()).clamp_max(1);
        const auto capped = (kappa * p).clamp_max(cap);
        return {capped, capped * w / counts.sum()};
    }
};

struct Sample {
    Tensor losses, mask, weight;
};

Sample random_sample(int64_t n, bool masked, bool weighted) {
    const auto f64 = torch::kDouble;
    const auto mask = masked ? torch::rand({n}) < 0.7 : torch::ones({n}, torch::kBool);
    auto weight = weighted ? (torch::rand({n}, f64) * 2 - 0.3).clamp_min(0) : torch::ones({n}, f64);
    auto losses = torch::rand({n}, f64) * 3;
    losses.masked_fill_(~mask, NAN); // must not be looked at
    return {losses, mask, weight};
}

class Weighed : public testing::TestWithParam<std::tuple<bool, bool, double, bool, double>> {};

TEST_P(Weighed, AsTheReferenceSays) {
    const auto [masked, weighted, cap, keep_loss, lam] = GetParam();
    torch::manual_seed(2);
    const auto w = torch::zeros({1}).requires_grad_();
    absgd::ABSGD opt({w},
                     ABSGDOptions(0.1).lam(lam).gamma(0.7).max_weight(cap).keep_loss(keep_loss));
    Reference reference{lam, cap, keep_loss};
    for (int step = 0; step < 3; step++) {
        const Sample b = random_sample(24, masked, weighted);
        const auto losses = b.losses.view({4, 6}).clone().requires_grad_();
        const auto shaped = [](const Tensor &t, bool given) {
            return given ? t.view({4, 6}) : Tensor();
        };
        const auto total = opt.weigh(losses, shaped(b.mask, masked), shaped(b.weight, weighted));
        total.backward();
        const auto expected = reference.weigh(b.losses, b.mask, b.weight);
        EXPECT_TRUE(torch::allclose(opt.log_s(), reference.s.log(), 1e-12, 1e-12));
        EXPECT_TRUE(torch::allclose(opt.weights().flatten(), expected.weights, 1e-11));
        EXPECT_TRUE(torch::allclose(losses.grad().flatten(), expected.coefficients, 1e-11));
        const auto l = b.losses.masked_fill(~b.mask, 0);
        EXPECT_TRUE(torch::allclose(total, (expected.coefficients * l).sum(), 1e-11));
        EXPECT_EQ(opt.reports()[0][0].item<double>(), b.mask.sum().item<double>()); // B
    }
}

INSTANTIATE_TEST_SUITE_P(All, Weighed,
                         testing::Combine(testing::Bool(), testing::Bool(),
                                          testing::Values(INF, 1.3), testing::Bool(),
                                          testing::Values(0.5, -0.5)));

TEST(LibtorchWeigher, WithoutGradModeItIsTheMean) {
    absgd::ABSGD opt({torch::zeros({1})}, ABSGDOptions(0.1).lam(0.5));
    const torch::NoGradGuard no_grad;
    const auto l = torch::tensor({1.0, 2.0, NOT_A_NUMBER}), w = torch::tensor({2.0, 0.5, -1.0});
    const auto mask = torch::tensor({true, true, false});
    EXPECT_EQ(opt.weigh(l, mask).item<double>(), 1.5);
    EXPECT_EQ(opt.weigh(l, mask, w).item<double>(), 1.5);
    EXPECT_EQ(opt.weigh(l.slice(0, 0, 2)).item<double>(), 1.5);
    EXPECT_EQ(opt.weigh(l.slice(0, 0, 0)).item<double>(), 0);
    EXPECT_TRUE(opt.log_s().isnan().item<bool>());
}

TEST(LibtorchWeigher, NothingThatCountsIsAZeroAndChangesNothing) {
    absgd::ABSGD opt({torch::zeros({1})}, ABSGDOptions(0.1).lam(0.5).keep_loss(true));
    const auto losses = torch::ones({3}).requires_grad_();
    for (const auto &[mask, weight] : {std::pair(torch::zeros({3}, torch::kBool), Tensor()),
                                       std::pair(Tensor(), torch::zeros({3}))}) {
        const auto total = opt.weigh(losses, mask, weight);
        EXPECT_EQ(total.item<double>(), 0);
        total.backward();
        EXPECT_TRUE(opt.log_s().isnan().item<bool>());
    }
    EXPECT_TRUE(torch::equal(losses.grad(), torch::zeros({3})));
}

// The measure that each rule is to meet, of weights p against w.
double effective_share(const Tensor &p, const Tensor &w) {
    const auto wp = (w * p).sum();
    return (wp * wp / (w.sum() * (w * p * p).sum())).item<double>();
}

double kl(const Tensor &p, const Tensor &w) {
    const auto q = w * p / (w * p).sum(), base = w / w.sum();
    return torch::where(w > 0, q * (q / base).log(), 0.0).sum().item<double>();
}

TEST(LibtorchWeigher, ARuleMeetsItsTarget) {
    torch::manual_seed(3);
    for (const bool noisy : {false, true}) {
        const std::vector<absgd::LamRule> rules = {absgd::EffectiveSampleSize(0.6).noisy(noisy),
                                                   absgd::KLRadius(0.2).noisy(noisy)};
        for (const absgd::LamRule &rule : rules) {
            absgd::ABSGD opt({torch::zeros({1})}, ABSGDOptions(0.1).lam(rule));
            EXPECT_EQ(opt.lam().item<double>(), noisy ? -INF : INF);
            opt.weigh(torch::ones({5}).requires_grad_()); // ties: no answer yet
            EXPECT_EQ(opt.lam().item<double>(), noisy ? -INF : INF);
            EXPECT_TRUE(torch::equal(opt.weights(), torch::ones({5})));
            for (int step = 0; step < 2; step++) {
                const Sample b = random_sample(40, false, true);
                opt.weigh(b.losses.requires_grad_(), {}, b.weight);
                const auto &p = opt.weights();
                const double met = rule.row.kind == double(ABSGD_LAM_KL_RADIUS)
                                       ? kl(p, b.weight)
                                       : effective_share(p, b.weight);
                EXPECT_NEAR(met, rule.row.target, 1e-9);
                EXPECT_EQ(opt.lam().item<double>() < 0, noisy);
                // γ = 1: each batch is normalised by itself
                EXPECT_NEAR(((b.weight * p).sum() / b.weight.sum()).item<double>(), 1, 1e-9);
            }
        }
    }
}

TEST(LibtorchWeigher, ARulesRateAveragesLogLambda) {
    torch::manual_seed(4);
    absgd::ABSGD own({torch::zeros({1})}, ABSGDOptions(0.1).lam(absgd::EffectiveSampleSize(0.7)));
    absgd::ABSGD slow({torch::zeros({1})},
                      ABSGDOptions(0.1).lam(absgd::EffectiveSampleSize(0.7).rate(0.25)));
    double expected = 0;
    for (int step = 0; step < 4; step++) {
        const auto losses = (torch::rand({30}, torch::kDouble) * (step + 1)).requires_grad_();
        own.weigh(losses);
        slow.weigh(losses);
        const double log_lam = std::log(own.lam().item<double>());
        expected = step == 0 ? log_lam : 0.75 * expected + 0.25 * log_lam;
        EXPECT_NEAR(std::log(slow.lam().item<double>()), expected, 1e-9);
    }
}

// A linear model whose per-sample losses are squares; one optimizer takes the batch as a whole, the
// other in parts.
struct Pair {
    Tensor whole_w, parts_w;
    absgd::ABSGD whole, parts;

    explicit Pair(const ABSGDOptions &options)
        : whole_w(torch::tensor({0.5, -1.0}, torch::kDouble).requires_grad_()),
          parts_w(whole_w.detach().clone().requires_grad_()), whole({whole_w}, options),
          parts({parts_w}, options) {}

    static Tensor losses(const Tensor &w, const Tensor &x) { return torch::matmul(x, w).square(); }

    void step(const Tensor &x, const Tensor &mask, const Tensor &weight,
              const std::vector<int64_t> &sizes) {
        whole.zero_grad();
        parts.zero_grad();
        whole.weigh(losses(whole_w, x), mask, weight).backward();
        int64_t begin = 0;
        for (const int64_t n : sizes) {
            const auto of = [&](const Tensor &t) { return t.slice(0, begin, begin + n); };
            parts.accumulate(losses(parts_w, of(x)), of(mask), of(weight)).backward();
            begin += n;
        }
        whole.step();
        parts.step();
    }
};

TEST(LibtorchAccumulation, IsOneLargeBatch) {
    for (const bool keep_loss : {false, true}) {
        for (const double lam : {INF, 0.4, -0.4}) {
            torch::manual_seed(5);
            Pair pair(ABSGDOptions(0.02).momentum(0.9).lam(lam).gamma(0.7).keep_loss(keep_loss));
            for (int step = 0; step < 4; step++) {
                auto x = torch::randn({20, 2}, torch::kDouble);
                x[15].mul_(6); // raises the provisional normaliser within the step
                const Sample b = random_sample(20, true, true);
                pair.step(x, b.mask, b.weight, {5, 0, 8, 7});
                EXPECT_TRUE(
                    torch::allclose(pair.whole.log_s(), pair.parts.log_s(), 1e-12, 1e-12, true));
                EXPECT_TRUE(torch::allclose(pair.whole_w, pair.parts_w, 1e-10, 1e-12));
                EXPECT_TRUE(
                    torch::allclose(pair.whole.reports(), pair.parts.reports(), 1e-9, 1e-12, true));
            }
        }
    }
}

TEST(LibtorchAccumulation, UnderARuleTheFirstMicroBatchDecides) {
    torch::manual_seed(6);
    const auto w = torch::ones({1}, torch::kDouble).requires_grad_();
    absgd::ABSGD opt({w}, ABSGDOptions(0.1).lam(absgd::EffectiveSampleSize(0.6)));
    absgd::ABSGD alone({w}, ABSGDOptions(0.1).lam(absgd::EffectiveSampleSize(0.6)));
    const auto first = torch::rand({9}, torch::kDouble), second = torch::rand({9}, torch::kDouble);
    alone.weigh(first * w);
    opt.accumulate(first * w).backward();
    opt.accumulate(second * 7 * w).backward();
    EXPECT_TRUE(torch::equal(opt.lam(), alone.lam()));
    opt.finalize_grads();
    EXPECT_TRUE(torch::equal(opt.lam(), alone.lam()));
}

TEST(LibtorchAccumulation, WhatCannotBeMadeAStepIsAnError) {
    const auto w = torch::ones({2}, torch::kDouble).requires_grad_();
    absgd::ABSGD opt({w}, ABSGDOptions(0.1).lam(1.0));
    const auto handed_out = opt.accumulate(w * w);
    EXPECT_THROW(opt.accumulate(w * w), c10::Error); // before the backward pass
    opt.zero_grad();                                 // the step's before
    handed_out.backward();
    EXPECT_THROW(opt.weigh(w * w), c10::Error);
    EXPECT_THROW(opt.set_lam(2.0), c10::Error);
    EXPECT_THROW(opt.restart(2.0), c10::Error);
    w.mutable_grad() = Tensor(); // dropped, unheard
    EXPECT_THROW(opt.accumulate(w * w), c10::Error);
    opt.discard();
    EXPECT_TRUE(opt.log_s().isnan().item<bool>());
    const auto dropped = opt.accumulate(w * w);
    opt.discard();
    EXPECT_THROW(dropped.backward(), c10::Error);
    opt.zero_grad();
    opt.weigh(w * w).backward(); // as if nothing had been accumulated
    opt.step();
    EXPECT_TRUE(torch::allclose(w, torch::full({2}, 0.9, torch::kDouble)));
}

TEST(LibtorchWeigher, BadArgumentsAreErrors) {
    const std::vector<Tensor> params = {torch::zeros({1})};
    const auto refused = [&](const ABSGDOptions &options) {
        EXPECT_THROW(absgd::ABSGD(params, options), c10::Error);
    };
    refused(ABSGDOptions().max_weight(0.5));
    refused(ABSGDOptions().max_weight(NAN));
    refused(ABSGDOptions().alpha(0));
    refused(ABSGDOptions().s_init(-1));
    refused(ABSGDOptions().lam(absgd::EffectiveSampleSize(1)));
    refused(ABSGDOptions().lam(absgd::KLRadius(0)));
    refused(ABSGDOptions().lam(absgd::KLRadius(1).rate(0)));
    refused(ABSGDOptions().lam(absgd::KLRadius(1).bounds(1, 0.5)));
    absgd::ABSGD opt(params, ABSGDOptions().lam(1.0));
    const auto l = torch::ones({3}).requires_grad_();
    EXPECT_THROW(opt.weigh(l, torch::ones({3})), c10::Error);               // no bool
    EXPECT_THROW(opt.weigh(l, torch::ones({2}, torch::kBool)), c10::Error); // another shape
    EXPECT_THROW(opt.weigh(l, {}, torch::ones({3}, torch::kLong)), c10::Error);
    EXPECT_THROW(opt.weigh(l, {}, torch::tensor({1.0f, -1.0f, 1.0f})), c10::Error);
    EXPECT_THROW(opt.weigh(l, {}, torch::tensor({1.0, NOT_A_NUMBER, 1.0})), c10::Error);
    EXPECT_THROW(opt.set_lam(0), c10::Error);
    EXPECT_EQ(opt.lam().item<double>(), 1.0);
    EXPECT_TRUE(opt.log_s().isnan().item<bool>());
}

TEST(LibtorchWeigher, AChangeOfLambdaCarriesTheNormaliser) {
    absgd::ABSGD opt({torch::zeros({1})}, ABSGDOptions(0.1).lam(1.0));
    opt.weigh(torch::tensor({1.0, 3.0}).requires_grad_());
    const double log_s = opt.log_s().item<double>();
    opt.set_lam(0.5);
    EXPECT_DOUBLE_EQ(opt.log_s().item<double>(), 2 * log_s);
    opt.set_lam(-1.0);
    EXPECT_TRUE(opt.log_s().isnan().item<bool>());
    opt.set_lam(absgd::KLRadius(0.1));
    EXPECT_EQ(opt.lam().item<double>(), INF);
}

} // namespace
