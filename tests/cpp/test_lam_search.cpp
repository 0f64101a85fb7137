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
                const absgd_lam_rule &rule, int64_t cut, double lam = NAN) {
    const char *data = static_cast<const char *>(losses.const_data_ptr());
    const uint8_t *counted =
        mask.defined() ? static_cast<const uint8_t *>(mask.const_data_ptr()) : nullptr;
    absgd_lam_search search = {};
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        absgd_lam_row rows[2];
        EXPECT_EQ(ABSGD_OK,
                  absgd_lam_sums(dtype.absgd, data, counted, cut, &rule, &search, &rows[0]));
        EXPECT_EQ(ABSGD_OK, absgd_lam_sums(dtype.absgd, data + cut * losses.element_size(),
                                           counted ? counted + cut : nullptr, losses.numel() - cut,
                                           &rule, &search, &rows[1]));
        EXPECT_EQ(ABSGD_OK, absgd_lam_round(&rule, rows, 2, &search));
    }
    EXPECT_EQ(ABSGD_OK, absgd_lam_update(&rule, &search, &lam));
    return lam;
}

double achieved(const torch::Tensor &losses, double kind, double lam) {
    const torch::Tensor q = (losses / lam).softmax(0);
    const double B = losses.numel();
    if (kind == double{ABSGD_LAM_EFFECTIVE_SAMPLES})
        return 1.0 / (B * q.square().sum().item<double>());
    return (q * (q * B).log()).sum().item<double>();
}

TEST(LamSearch, TheBatchsOwnWeightsMeetTheTarget) {
    torch::manual_seed(0);
    for (const Dtype &dtype : DTYPES) {
        const torch::Tensor losses = (3 * torch::rand({301})).to(dtype.torch);
        const torch::Tensor mask = torch::rand({301}) < 0.8;
        const torch::Tensor counted = losses.to(torch::kFloat64).masked_select(mask);
        for (const absgd_lam_rule rule : {
                 absgd_lam_rule{ABSGD_LAM_EFFECTIVE_SAMPLES, 0.6, 1, 1, 1e-4, 1e4},
                 absgd_lam_rule{ABSGD_LAM_EFFECTIVE_SAMPLES, 0.2, -1, 1, 1e-4, 1e4},
                 absgd_lam_rule{ABSGD_LAM_KL_RADIUS, 0.3, 1, 1, 1e-4, 1e4},
                 absgd_lam_rule{ABSGD_LAM_KL_RADIUS, 0.1, -1, 1, 1e-4, 1e4},
             }) {
            const double lam = followed(dtype, losses, mask, rule, 100);
            EXPECT_GT(lam * rule.sign, 0);
            EXPECT_NEAR(achieved(counted, rule.kind, lam), rule.target, 1e-9);
            EXPECT_NEAR(followed(dtype, losses, mask, rule, 0), lam, 1e-9 * std::fabs(lam));
        }
    }
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
        EXPECT_EQ(followed(DTYPES[0], losses, {}, rule, 0, 5.0), 5.0);
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
        return absgd_lam_sums(dtype, data, nullptr, n, rule, s, out);
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
