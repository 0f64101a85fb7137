// The search for λ in absgd.h: λ* against the definition of its target, and every status.
#include "absgd.h"
#include "torch_dtypes.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace {

constexpr double INF = std::numeric_limits<double>::infinity();

// λ after one batch, whose work is split at `cut`.
double followed(const Dtype &dtype, const torch::Tensor &losses, const torch::Tensor &mask,
                const absgd_lam_rule &rule, int64_t cut, double lam = NAN,
                const torch::Tensor &weight = {}) {
    const char *data = static_cast<const char *>(losses.const_data_ptr());
    const uint8_t *counted =
        mask.defined() ? static_cast<const uint8_t *>(mask.const_data_ptr()) : nullptr;
    const char *w = weight.defined() ? static_cast<const char *>(weight.const_data_ptr()) : nullptr;
    const int64_t w_size = weight.defined() ? weight.element_size() : 0;
    absgd_lam_search search = {};
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        absgd_lam_row rows[2];
        EXPECT_EQ(ABSGD_OK,
                  absgd_lam_sums(dtype.absgd, data, counted, w, cut, &rule, &search, &rows[0]));
        EXPECT_EQ(ABSGD_OK,
                  absgd_lam_sums(dtype.absgd, data + cut * losses.element_size(),
                                 counted ? counted + cut : nullptr, w ? w + cut * w_size : nullptr,
                                 losses.numel() - cut, &rule, &search, &rows[1]));
        EXPECT_EQ(ABSGD_OK, absgd_lam_round(&rule, rows, 2, &search));
    }
    EXPECT_EQ(ABSGD_OK, absgd_lam_update(&rule, &search, &lam));
    return lam;
}

double achieved(const torch::Tensor &losses, const torch::Tensor &w, double kind, double lam) {
    const torch::Tensor q = (losses / lam).softmax(0); // up to a factor
    const double W = w.sum().item<double>(), sum = (w * q).sum().item<double>();
    if (kind == double{ABSGD_LAM_EFFECTIVE_SAMPLES})
        return sum * sum / (W * (w * q.square()).sum().item<double>());
    return (w * q / sum * (q * W / sum).log()).nansum().item<double>();
}

TEST(LamSearch, TheBatchsOwnWeightsMeetTheTarget) {
    torch::manual_seed(0);
    for (const Dtype &dtype : DTYPES) {
        const torch::Tensor losses = (3 * torch::rand({301})).to(dtype.torch);
        const torch::Tensor mask = torch::rand({301}) < 0.8;
        const torch::Tensor counted = losses.to(torch::kFloat64).masked_select(mask);
        torch::Tensor weight = (torch::rand({301}) * 2 - 0.3).clamp_min(0).to(dtype.arithmetic);
        const torch::Tensor w = weight.to(torch::kFloat64).masked_select(mask);
        weight = weight.masked_fill(~mask, NAN);
        for (const absgd_lam_rule rule : {
                 absgd_lam_rule{ABSGD_LAM_EFFECTIVE_SAMPLES, 0.6, 1, 1, 1e-4, 1e4},
                 absgd_lam_rule{ABSGD_LAM_EFFECTIVE_SAMPLES, 0.2, -1, 1, 1e-4, 1e4},
                 absgd_lam_rule{ABSGD_LAM_KL_RADIUS, 0.3, 1, 1, 1e-4, 1e4},
                 absgd_lam_rule{ABSGD_LAM_KL_RADIUS, 0.1, -1, 1, 1e-4, 1e4},
             }) {
            const double lam = followed(dtype, losses, mask, rule, 100);
            EXPECT_GT(lam * rule.sign, 0);
            EXPECT_NEAR(achieved(counted, torch::ones_like(counted), rule.kind, lam), rule.target,
                        1e-9);
            EXPECT_NEAR(followed(dtype, losses, mask, rule, 0), lam, 1e-9 * std::fabs(lam));
            const double weighted = followed(dtype, losses, mask, rule, 100, NAN, weight);
            EXPECT_NEAR(achieved(counted, w, rule.kind, weighted), rule.target, 1e-9);
            EXPECT_NEAR(followed(dtype, losses, mask, rule, 0, NAN, weight), weighted,
                        1e-9 * std::fabs(weighted));
        }
    }
}

TEST(LamSearch, ScaleAndShiftOfLossesAndTheScaleOfWeights) {
    torch::manual_seed(1);
    const torch::Tensor losses = torch::rand({77}, torch::kFloat64);
    const torch::Tensor weight = (torch::rand({77}, torch::kFloat64) - 0.1).clamp_min(0);
    for (const double kind : {ABSGD_LAM_EFFECTIVE_SAMPLES, ABSGD_LAM_KL_RADIUS}) {
        const absgd_lam_rule rule = {kind, 0.4, 1, 1, 1e-12, 1e6};
        const double lam = followed(DTYPES[1], losses, {}, rule, 0, INF, weight);
        const auto same = [&](const torch::Tensor &x, const torch::Tensor &w, double scale) {
            EXPECT_NEAR(followed(DTYPES[1], x, {}, rule, 0, INF, w) / scale, lam, 1e-8 * lam);
        };
        same(losses * 1e10, weight, 1e10);
        same(losses * 1e-200, weight, 1e-200);
        same(losses + 100, weight, 1);
        same(losses, weight * 1e-100, 1);
        same(losses, weight * 1e100, 1);
    }
}

TEST(LamSearch, SamplesOfWeightZeroAreInNoSumAndNoExtremum) {
    const absgd_lam_rule rule = {ABSGD_LAM_EFFECTIVE_SAMPLES, 0.5, 1, 1, 1e-12, 1e6};
    torch::Tensor losses = torch::rand({40}, torch::kFloat64), weight = torch::ones_like(losses);
    const double lam = followed(DTYPES[1], losses, {}, rule, 0);
    losses = torch::cat({losses, torch::tensor({1e6, -1e6}, torch::kFloat64)});
    weight = torch::cat({weight, torch::zeros({2}, torch::kFloat64)});
    EXPECT_NEAR(followed(DTYPES[1], losses, {}, rule, 9, INF, weight), lam, 1e-9);
}

TEST(LamSearch, TheRateAveragesLogLam) {
    const torch::Tensor losses = torch::rand({64}, torch::kFloat64);
    absgd_lam_rule rule = {ABSGD_LAM_EFFECTIVE_SAMPLES, 0.5, 1, 1, 1e-4, 1e4};
    const double target = followed(DTYPES[1], losses, {}, rule, 7);
    rule.rate = 0.25;
    const double expected = std::exp(0.75 * std::log(5.0) + 0.25 * std::log(target));
    EXPECT_NEAR(followed(DTYPES[1], losses, {}, rule, 7, 5.0), expected, 1e-9);
    for (const double other : {INF, -INF, -5.0, (double)NAN})
        EXPECT_NEAR(followed(DTYPES[1], losses, {}, rule, 7, other), target, 1e-9);
}

TEST(LamSearch, ABatchWithoutAnAnswerLeavesLam) {
    const absgd_lam_rule rule = {ABSGD_LAM_EFFECTIVE_SAMPLES, 0.5, 1, 1, 1e-4, 1e4};
    for (const torch::Tensor &losses :
         {torch::empty({0}), torch::ones({1}), torch::ones({9}), torch::tensor({1.0f, 2.0f, NAN}),
          torch::tensor({1.0f, 2.0f, INFINITY})})
        for (const double lam : {5.0, INF, -INF}) // ±∞: no answer yet
            EXPECT_EQ(followed(DTYPES[0], losses, {}, rule, 0, lam), lam);
    const torch::Tensor losses = torch::rand({4});
    for (const torch::Tensor &weight :
         {torch::zeros({4}), torch::tensor({0.f, 1.f, 0.f, 0.f}), torch::tensor({1.f, 1, -1, 1}),
          torch::tensor({1.f, 1, INFINITY, 1})})
        EXPECT_EQ(followed(DTYPES[0], losses, {}, rule, 2, 5.0, weight), 5.0);
    const absgd_lam_rule out_of_reach = {ABSGD_LAM_KL_RADIUS, 1.4, 1, 1, 1e-12, 1e6}; // > log 4
    EXPECT_EQ(followed(DTYPES[0], losses, {}, out_of_reach, 0, INF), INF);
}

TEST(LamSearch, Status) {
    const absgd_lam_rule good = {ABSGD_LAM_EFFECTIVE_SAMPLES, 0.5, 1, 1, 1e-4, 1e4};
    const float losses[2] = {1, 2};
    absgd_lam_search search = {};
    absgd_lam_row row = {};
    double lam = 3.0;
    const absgd_lam_search search_before = search;
    const absgd_lam_row row_before = row;

    const auto sums = [&](absgd_dtype dtype, const void *data, int64_t n,
                          const absgd_lam_rule *rule, const absgd_lam_search *s,
                          absgd_lam_row *out) {
        return absgd_lam_sums(dtype, data, nullptr, nullptr, n, rule, s, out);
    };
    for (const int dtype : {-1, 4})
        EXPECT_EQ(ABSGD_INVALID_DTYPE, sums(no_dtype(dtype), losses, 2, &good, &search, &row));
    EXPECT_EQ(ABSGD_INVALID_SIZE, sums(ABSGD_FLOAT32, losses, -1, &good, &search, &row));
    EXPECT_EQ(ABSGD_NULL_POINTER, sums(ABSGD_FLOAT32, nullptr, 2, &good, &search, &row));
    EXPECT_EQ(ABSGD_NULL_POINTER, sums(ABSGD_FLOAT32, losses, 2, nullptr, &search, &row));
    EXPECT_EQ(ABSGD_NULL_POINTER, sums(ABSGD_FLOAT32, losses, 2, &good, nullptr, &row));
    EXPECT_EQ(ABSGD_NULL_POINTER, sums(ABSGD_FLOAT32, losses, 2, &good, &search, nullptr));
    EXPECT_EQ(ABSGD_INVALID_SIZE, absgd_lam_round(&good, &row, -1, &search));
    EXPECT_EQ(ABSGD_NULL_POINTER, absgd_lam_round(nullptr, &row, 1, &search));
    EXPECT_EQ(ABSGD_NULL_POINTER, absgd_lam_round(&good, nullptr, 1, &search));
    EXPECT_EQ(ABSGD_NULL_POINTER, absgd_lam_round(&good, &row, 1, nullptr));
    EXPECT_EQ(ABSGD_NULL_POINTER, absgd_lam_update(nullptr, &search, &lam));
    EXPECT_EQ(ABSGD_NULL_POINTER, absgd_lam_update(&good, nullptr, &lam));
    EXPECT_EQ(ABSGD_NULL_POINTER, absgd_lam_update(&good, &search, nullptr));

    const double E = ABSGD_LAM_EFFECTIVE_SAMPLES, K = ABSGD_LAM_KL_RADIUS;
    for (const absgd_lam_rule bad : {
             absgd_lam_rule{0, 0.5, 1, 1, 1, 2},
             absgd_lam_rule{3, 0.5, 1, 1, 1, 2},
             absgd_lam_rule{NAN, 0.5, 1, 1, 1, 2},
             absgd_lam_rule{E, 0, 1, 1, 1, 2},
             absgd_lam_rule{E, 1, 1, 1, 1, 2},
             absgd_lam_rule{E, NAN, 1, 1, 1, 2},
             absgd_lam_rule{K, 0, 1, 1, 1, 2},
             absgd_lam_rule{K, NAN, 1, 1, 1, 2},
             absgd_lam_rule{E, 0.5, 0, 1, 1, 2},
             absgd_lam_rule{E, 0.5, 1, 0, 1, 2},
             absgd_lam_rule{E, 0.5, 1, 1.5, 1, 2},
             absgd_lam_rule{E, 0.5, 1, NAN, 1, 2},
             absgd_lam_rule{E, 0.5, 1, 1, 0, 2},
             absgd_lam_rule{E, 0.5, 1, 1, 2, 2},
             absgd_lam_rule{E, 0.5, 1, 1, 1, NAN},
             absgd_lam_rule{E, 0.5, 1, 1, 1, INF},
             absgd_lam_rule{K, INF, 1, 1, 1, 2},
         }) {
        EXPECT_EQ(ABSGD_INVALID_HYPERPARAMETER,
                  sums(ABSGD_FLOAT32, losses, 2, &bad, &search, &row));
        EXPECT_EQ(ABSGD_INVALID_HYPERPARAMETER, absgd_lam_round(&bad, &row, 1, &search));
        EXPECT_EQ(ABSGD_INVALID_HYPERPARAMETER, absgd_lam_update(&bad, &search, &lam));
    }
    EXPECT_EQ(0, std::memcmp(&search, &search_before, sizeof search));
    EXPECT_EQ(0, std::memcmp(&row, &row_before, sizeof row));
    EXPECT_EQ(lam, 3.0);
}

} // namespace
