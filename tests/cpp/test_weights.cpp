// The normaliser and the weights of absgd.h against LibTorch's logsumexp, logaddexp and exp.
#include "absgd.h"
#include "torch_dtypes.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <vector>

namespace {

constexpr double INF = std::numeric_limits<double>::infinity();
const double LAMBDAS[] = {0.05, 1.0, 10.0, -0.5, INF, -INF};

struct Batch {
    Dtype dtype;
    torch::Tensor losses, mask; // mask: undefined for none

    absgd_stats stats(double lam) const { return part(lam, 0, losses.numel()); }

    absgd_stats part(double lam, int64_t begin, int64_t end) const {
        const char *data = static_cast<const char *>(losses.const_data_ptr());
        absgd_stats out;
        EXPECT_EQ(ABSGD_OK, absgd_batch_stats(dtype.absgd, data + begin * losses.element_size(),
                                              mask_at(begin), end - begin, &lam, &out));
        return out;
    }

    const uint8_t *mask_at(int64_t i) const {
        if (!mask.defined()) return nullptr;
        return static_cast<const uint8_t *>(mask.const_data_ptr()) + i;
    }

    torch::Tensor counted() const { // in double
        const torch::Tensor wide = losses.to(torch::kFloat64);
        return mask.defined() ? wide.masked_select(mask) : wide;
    }
};

Batch random_batch(const Dtype &dtype, int64_t n, bool masked, double scale = 3.0) {
    torch::manual_seed(n);
    Batch batch = {dtype, (torch::rand({n}) * scale).to(dtype.torch), {}};
    if (masked) {
        batch.mask = torch::rand({n}) < 0.7;
        batch.losses.masked_fill_(~batch.mask, NAN); // never looked at
    }
    return batch;
}

void expect_close(double actual, double expected, double tolerance = 1e-12) {
    if (actual == expected) return; // infinities too
    EXPECT_NEAR(actual, expected, tolerance * std::max(1.0, std::fabs(expected)));
}

void expect_same(const absgd_stats &a, const absgd_stats &b) {
    EXPECT_EQ(0, std::memcmp(&a, &b, sizeof a));
}

double log_mean_exp(const torch::Tensor &losses, double lam) {
    return (losses / lam).logsumexp(0).item<double>() - std::log(losses.numel());
}

class Weights : public testing::TestWithParam<std::tuple<Dtype, double, bool, int64_t>> {};

TEST_P(Weights, OneBatchAgreesWithTorch) {
    const auto [dtype, lam, masked, n] = GetParam();
    const Batch batch = random_batch(dtype, n, masked);
    const torch::Tensor losses = batch.counted();
    const absgd_stats stats = batch.stats(lam);
    EXPECT_EQ(stats.count, losses.numel());
    EXPECT_EQ(stats.nonfinite, 0);
    expect_close(stats.sum_loss, losses.sum().item<double>());
    const torch::Tensor z = std::isinf(lam) ? torch::zeros_like(losses) : losses / lam;
    expect_close(stats.max, z.max().item<double>());
    const torch::Tensor q = (z - stats.max).exp();
    expect_close(stats.sum, q.sum().item<double>());
    expect_close(stats.sum_sq, q.square().sum().item<double>());
    expect_close(stats.sum_weighted, (q * losses).sum().item<double>());

    const absgd_rule rule = {0.25, 0.5, NAN};
    double log_s = 0.3, log_s_lam = lam;
    const double expected = std::isinf(lam)
                                ? 0.3
                                : std::log(0.75 * std::exp(0.3 - 10) +
                                           0.25 * 0.5 * std::exp(log_mean_exp(losses, lam) - 10)) +
                                      10;
    ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &rule, &log_s, &log_s_lam));
    expect_close(log_s, expected);
    EXPECT_EQ(log_s_lam, lam);

    const auto options = torch::TensorOptions().dtype(dtype.arithmetic);
    torch::Tensor weights = torch::empty({n}, options), coefficients = torch::empty({n}, options);
    ASSERT_EQ(ABSGD_OK,
              absgd_weights(dtype.absgd, batch.losses.const_data_ptr(), batch.mask_at(0), n, &lam,
                            &log_s, &stats, 2.0, weights.data_ptr(), coefficients.data_ptr()));
    const torch::Tensor p = std::isinf(lam) ? torch::ones_like(losses) : (z - log_s).exp();
    const torch::Tensor counted = masked ? weights.masked_select(batch.mask) : weights;
    const double tolerance = dtype.arithmetic == torch::kFloat64 ? 1e-12 : 1e-6;
    EXPECT_TRUE(torch::allclose(counted.to(torch::kFloat64), p, tolerance, 1e-30));
    EXPECT_TRUE(torch::allclose(coefficients, weights * (2.0 / losses.numel()), 1e-6, 1e-30));
    if (masked) {
        EXPECT_EQ(weights.masked_select(~batch.mask).abs().sum().item<double>(), 0.0);
    }

    absgd_report reports[2];
    for (auto &report : reports) report = {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    ASSERT_EQ(ABSGD_OK, absgd_observe(&stats, &lam, &log_s, reports));
    const absgd_report &last = reports[0];
    EXPECT_EQ(last.count, losses.numel());
    expect_close(last.mean_loss, losses.mean().item<double>());
    expect_close(last.weighted_loss, (p * losses).mean().item<double>());
    expect_close(last.objective, std::isinf(lam) ? last.mean_loss : lam * log_s);
    expect_close(last.max_weight, p.max().item<double>());
    const double effective = p.sum().square().item<double>() / p.square().sum().item<double>();
    expect_close(last.effective_samples, effective);
    EXPECT_EQ(0, std::memcmp(&reports[0], &reports[1], sizeof reports[0]));
}

TEST_P(Weights, PartsCombineToTheWhole) {
    const auto [dtype, lam, masked, n] = GetParam();
    const Batch batch = random_batch(dtype, n, masked);
    const int64_t cuts[] = {0, 0, n / 3, n / 3, n / 2, n};
    std::vector<absgd_stats> rows;
    for (int i = 0; i + 1 < 6; i++) rows.push_back(batch.part(lam, cuts[i], cuts[i + 1]));
    absgd_stats whole;
    ASSERT_EQ(ABSGD_OK, absgd_combine_stats(rows.data(), rows.size(), &whole));
    const absgd_stats expected = batch.stats(lam);
    EXPECT_EQ(whole.count, expected.count);
    EXPECT_EQ(whole.max, expected.max);
    expect_close(whole.sum, expected.sum);
    expect_close(whole.sum_sq, expected.sum_sq);
    expect_close(whole.sum_loss, expected.sum_loss);
    expect_close(whole.sum_weighted, expected.sum_weighted);
    ASSERT_EQ(ABSGD_OK, absgd_combine_stats(rows.data(), rows.size(), &rows[0])); // may alias
    expect_same(rows[0], whole);
}

INSTANTIATE_TEST_SUITE_P(All, Weights,
                         testing::Combine(testing::ValuesIn(DTYPES), testing::ValuesIn(LAMBDAS),
                                          testing::Bool(), testing::Values(5, 67, 2011)));

TEST(Combine, OfNothingIsEmpty) {
    absgd_stats whole;
    ASSERT_EQ(ABSGD_OK, absgd_combine_stats(nullptr, 0, &whole));
    expect_same(whole, {0, 0, -INF, 0, 0, 0, 0});
    const double lam = 1.0;
    ASSERT_EQ(ABSGD_OK, absgd_batch_stats(ABSGD_FLOAT32, nullptr, nullptr, 0, &lam, &whole));
    EXPECT_EQ(whole.count, 0);
    EXPECT_EQ(whole.max, -INF);
}

TEST(Update, TheFirstBatchSetsLogS) {
    const Batch batch = random_batch(DTYPES[1], 50, false);
    const double lam = 0.5;
    const absgd_stats stats = batch.stats(lam);
    const double own = log_mean_exp(batch.losses, lam) + std::log(2.0);
    for (const double s_init : {(double)NAN, 0.0, 3.0}) {
        const absgd_rule rule = {0.9, 2.0, s_init};
        double log_s = std::log(s_init), log_s_lam = lam; // NaN and −∞ included
        ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &rule, &log_s, &log_s_lam));
        expect_close(
            log_s, std::isnan(s_init) ? own : std::log(0.1 * s_init * std::exp(-own) + 0.9) + own);
    }
}

TEST(Update, GammaOneForgets) {
    const Batch batch = random_batch(DTYPES[1], 50, false);
    const double lam = 0.5;
    const absgd_stats stats = batch.stats(lam);
    const absgd_rule rule = {1.0, 1.0, NAN};
    double log_s = 700.0, log_s_lam = lam;
    ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &rule, &log_s, &log_s_lam));
    expect_close(log_s, log_mean_exp(batch.losses, lam));
}

TEST(Update, EmptyAndBadBatchesChangeNothing) {
    const absgd_rule rule = {0.9, 1.0, NAN};
    for (const double bad : {INF, -INF, (double)NAN}) {
        for (const double lam : {0.5, -0.5, INF, 0.0, (double)NAN}) {
            Batch batch = random_batch(DTYPES[0], 20, false);
            batch.losses[7] = bad;
            const absgd_stats stats = batch.stats(lam);
            EXPECT_EQ(stats.nonfinite, lam == 0.0 || std::isnan(lam) ? 20 : 1);
            double log_s = 1.5, log_s_lam = 2.0;
            ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &rule, &log_s, &log_s_lam));
            EXPECT_EQ(log_s, 1.5);
            EXPECT_EQ(log_s_lam, 2.0);
            if (std::isinf(lam)) continue;
            std::vector<float> weights(20), coefficients(20);
            ASSERT_EQ(ABSGD_OK,
                      absgd_weights(ABSGD_FLOAT32, batch.losses.const_data_ptr(), nullptr, 20, &lam,
                                    &log_s, &stats, 1.0, weights.data(), coefficients.data()));
            for (const float p : weights) EXPECT_TRUE(std::isnan(p));
            for (const float c : coefficients) EXPECT_TRUE(std::isnan(c));
        }
    }
    const absgd_stats empty = {0, 0, -INF, 0, 0, 0, 0};
    const double lam = 1.0;
    double log_s = 1.5, log_s_lam = 2.0;
    ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&empty, &lam, &rule, &log_s, &log_s_lam));
    EXPECT_EQ(log_s, 1.5);
    EXPECT_EQ(log_s_lam, 2.0);
}

struct Carry {
    double old_lam, lam, s_init, log_s, log_s_lam; // and what log_s and log_s_lam become
};

class Carrying : public testing::TestWithParam<Carry> {};

TEST_P(Carrying, FromLogSOfFour) {
    const Carry &c = GetParam();
    const absgd_rule rule = {0.9, 1.0, c.s_init};
    double log_s = 4.0, log_s_lam = c.old_lam;
    ASSERT_EQ(ABSGD_OK, absgd_carry_log_s(&c.lam, &rule, &log_s, &log_s_lam));
    EXPECT_TRUE(log_s == c.log_s || (std::isnan(log_s) && std::isnan(c.log_s))) << log_s;
    EXPECT_TRUE(log_s_lam == c.log_s_lam) << log_s_lam;
}

INSTANTIATE_TEST_SUITE_P(All, Carrying,
                         testing::Values(Carry{2, 1, NAN, 8, 1}, Carry{1, 4, NAN, 1, 4},
                                         Carry{-1, -2, NAN, 2, -2}, Carry{1, 1, 5, 4, 1},
                                         Carry{1, -1, NAN, NAN, -1}, Carry{-1, 1, 1.0, 0, 1},
                                         Carry{1, -1, 0.0, -INF, -1}, Carry{INF, 1, NAN, NAN, 1},
                                         Carry{-INF, -1, 1.0, 0, -1}, Carry{1, INF, NAN, 4, INF},
                                         Carry{-1, -INF, 3, 4, -INF}, Carry{1, 0, NAN, 4, 1},
                                         Carry{1, NAN, NAN, 4, 1}));

TEST(Observe, RunningMean) {
    const double lam = 1.0, log_s = 0.0;
    absgd_report reports[2];
    for (auto &report : reports) report = {NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    const absgd_stats first = {4, 0, 1, 2, 2, 6, 3}, second = {8, 0, 2, 3, 3, 8, 5};
    ASSERT_EQ(ABSGD_OK, absgd_observe(&first, &lam, &log_s, reports));
    ASSERT_EQ(ABSGD_OK, absgd_observe(&second, &lam, &log_s, reports));
    EXPECT_EQ(reports[0].count, 8);
    EXPECT_EQ(reports[0].batches, 1);
    EXPECT_EQ(reports[1].batches, 2);
    expect_close(reports[1].count, 4 + ABSGD_REPORT_RATE * 4);
    expect_close(reports[1].mean_loss, 1.5 - ABSGD_REPORT_RATE * 0.5);
    const absgd_report mean = reports[1];
    const absgd_stats empty = {0, 0, -INF, 0, 0, 0, 0}, bad = {4, 1, 1, NAN, 2, NAN, 3};
    ASSERT_EQ(ABSGD_OK, absgd_observe(&empty, &lam, &log_s, reports));
    EXPECT_EQ(reports[0].count, 8);
    ASSERT_EQ(ABSGD_OK, absgd_observe(&bad, &lam, &log_s, reports));
    EXPECT_TRUE(std::isnan(reports[0].mean_loss));
    EXPECT_EQ(0, std::memcmp(&reports[1], &mean, sizeof mean));
}

// Micro-batches against the large batch: the scalar's gradient by losses that are parameters.
class Accumulating : public testing::TestWithParam<std::tuple<double, double, double>> {};

TEST_P(Accumulating, MicroBatchesAreTheLargeBatch) {
    const auto [lam, jump, s_init] = GetParam();
    Batch batch = random_batch(DTYPES[1], 60, true);
    batch.losses.slice(0, 30, 40) *= jump;
    const int64_t cuts[] = {0, 7, 7, 30, 31, 60};
    const absgd_rule rule = {0.9, 0.7, s_init};
    const double start = std::log(s_init);

    double log_s = start, log_s_lam = lam;
    const absgd_stats whole = batch.stats(lam);
    ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&whole, &lam, &rule, &log_s, &log_s_lam));
    torch::Tensor weights = torch::empty({60}, torch::kFloat64), expected = weights.clone();
    ASSERT_EQ(ABSGD_OK,
              absgd_weights(ABSGD_FLOAT64, batch.losses.const_data_ptr(), batch.mask_at(0), 60,
                            &lam, &log_s, &whole, 1.0, weights.data_ptr(), expected.data_ptr()));

    torch::Tensor gradient = torch::zeros({60}, torch::kFloat64), step = gradient.clone();
    absgd_accumulation accumulation = {};
    double own_log_s = start, own_log_s_lam = lam, factor = NAN;
    for (int i = 0; i + 1 < 6; i++) {
        const int64_t begin = cuts[i], n = cuts[i + 1] - begin;
        absgd_stats stats = batch.part(lam, begin, begin + n);
        double shrink = NAN;
        ASSERT_EQ(ABSGD_OK, absgd_accumulate(&stats, &lam, &rule, &own_log_s, &own_log_s_lam,
                                             &accumulation, &shrink));
        EXPECT_GT(shrink, 0.0);
        EXPECT_LE(shrink, 1.0);
        gradient *= shrink;
        stats.count = accumulation.reference_count;
        double *out = step.mutable_data_ptr<double>() + begin;
        ASSERT_EQ(ABSGD_OK,
                  absgd_weights(ABSGD_FLOAT64, batch.losses.const_data_ptr<double>() + begin,
                                batch.mask_at(begin), n, &lam, &accumulation.log_c, &stats, 1.0,
                                weights.mutable_data_ptr<double>() + begin, out));
        EXPECT_LE(weights.slice(0, begin, begin + n).numel()
                      ? weights.slice(0, begin, begin + n).max().item<double>()
                      : 0.0,
                  std::exp(ABSGD_PROVISIONAL_LIMIT) * (1 + 1e-12));
        gradient.slice(0, begin, begin + n) += step.slice(0, begin, begin + n) / 3.0;
    }
    ASSERT_EQ(ABSGD_OK,
              absgd_settle(&accumulation, &lam, &rule, 3.0, &own_log_s, &own_log_s_lam, &factor));
    EXPECT_TRUE(torch::allclose(gradient * factor, expected, 1e-12, 1e-300));
    if (!std::isnan(log_s)) expect_close(own_log_s, log_s);
    EXPECT_EQ(own_log_s_lam, log_s_lam);
    EXPECT_EQ(accumulation.whole.count, 0.0);

    ASSERT_EQ(ABSGD_OK, absgd_settle(&accumulation, &lam, &rule, 3.0, &own_log_s, &own_log_s_lam,
                                     &factor)); // nothing was accumulated since
    EXPECT_EQ(factor, 1.0);
}

INSTANTIATE_TEST_SUITE_P(All, Accumulating,
                         testing::Combine(testing::Values(0.1, 1.0, -0.5, INF, -INF),
                                          testing::Values(1.0, 20.0),
                                          testing::Values((double)NAN, 0.0, 2.0)));

} // namespace
