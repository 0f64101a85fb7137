// The guards of absgd.h (max_weight, keep_loss, bounded) and gradient accumulation, with a base
// measure and without, against float64 tensors.
#include "batch.h"

#include <vector>

namespace {

// p of a batch that sets log_s by itself, its κ, and log_s
struct Expected {
    torch::Tensor p;
    double kappa, log_s;

    Expected(const Batch &batch, double lam) {
        const torch::Tensor losses = batch.counted(), w = batch.measure();
        log_s = log_mean_exp(losses, w, lam);
        p = torch::where(w > 0, (losses / lam - log_s).exp(), 0.0);
        kappa = std::min(1.0, total(w * losses.abs()) / total(w * p * losses.abs()));
    }
};

double updated(const absgd_stats &stats, double lam, const absgd_rule &rule, double log_s = NAN) {
    double log_s_lam = lam;
    EXPECT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &rule, &log_s, &log_s_lam));
    return log_s;
}

class Guards : public testing::TestWithParam<std::tuple<Dtype, double, bool, bool, double, bool>> {
};

TEST_P(Guards, WeightsAreTheLesserOfKappaPAndTheCap) {
    const auto [dtype, lam, masked, weighted, cap, keep_loss] = GetParam();
    const Batch batch = random_batch(dtype, 67, masked, weighted);
    const absgd_rule rule = {1, 1, NAN, cap, keep_loss ? 1.0 : 0.0, 1};
    const absgd_stats stats = batch.stats(lam);
    const double log_s = updated(stats, lam, rule);
    const Expected expected(batch, lam);
    expect_close(log_s, expected.log_s);
    const double kappa = keep_loss ? expected.kappa : 1.0;
    const double c = cap == 0 ? INF : cap;
    const torch::Tensor uncapped = kappa * expected.p, p = uncapped.clamp_max(c);
    double capped = -1;
    const torch::Tensor out = batch.weigh(lam, rule, log_s, stats, 3.0, &capped);
    const double tolerance = dtype.arithmetic == torch::kFloat64 ? 1e-11 : 1e-6;
    expect_close(batch.of_mask(out[0]), p, tolerance);
    expect_close(batch.of_mask(out[1]), p * batch.measure() * (3.0 / p.numel()), tolerance);
    EXPECT_EQ(capped, total(uncapped > c));
    absgd_report reports[2];
    reports[1].count = NAN;
    ASSERT_EQ(ABSGD_OK, absgd_observe(&stats, &lam, &rule, &log_s, 0, reports));
    expect_close(reports[0].kappa, kappa);
    expect_close(reports[0].max_weight, expected.p.max().item<double>()); // before the guards
    if (keep_loss && kappa < 1 && cap == 0) { // the scalar is the plain mean loss
        expect_close(total(batch.of_mask(out[1]) * batch.counted()) / 3, reports[0].mean_loss,
                     10 * tolerance);
    }
}

INSTANTIATE_TEST_SUITE_P(All, Guards,
                         testing::Combine(testing::ValuesIn(DTYPES),
                                          testing::Values(0.05, 0.5, -0.5), testing::Bool(),
                                          testing::Bool(), testing::Values(0.0, 1.0, 2.5, INF),
                                          testing::Bool()));

TEST(Cap, NeverAtInfiniteLambda) {
    const absgd_rule rule = {0.9, 1, NAN, 1, 1, 1};
    Batch batch = random_batch(DTYPES[0], 9, false, true);
    double capped = -1;
    const auto out = batch.weigh(INF, rule, NAN, batch.stats(INF), 1, &capped);
    EXPECT_EQ(capped, 0);
    expect_close(out[1] * 9, batch.weight, 1e-6);
}

TEST(KeepLoss, NothingOverflows) {
    const absgd_rule rule = {1e-3, 1, 0.0, 0, 1, 0};
    const double lam = 1e-3;
    const Batch batch = {DTYPES[1], torch::tensor({0.0, 1e-3, 1e4}, torch::kFloat64), {}, {}};
    const absgd_stats stats = batch.stats(lam);
    const double log_s = updated(stats, lam, rule, -INF);
    const auto out = batch.weigh(lam, rule, log_s, stats);
    expect_close(total(out[1] * batch.losses), batch.losses.mean().item<double>(), 1e-9);
}

TEST(KeepLoss, ZeroLossesHaveKappaOne) {
    const absgd_rule rule = {0.9, 1, NAN, 0, 1, 0};
    const Batch batch = {DTYPES[1], torch::zeros({4}, torch::kFloat64), {}, {}};
    const absgd_stats stats = batch.stats(0.5);
    const auto out = batch.weigh(0.5, rule, updated(stats, 0.5, rule), stats);
    expect_close(out[0], torch::ones({4}, torch::kFloat64), 1e-12);
}

TEST(Bounded, AnOutlierDoesNotSilenceTheNextBatches) {
    const double lam = 1.0;
    const Batch batch = random_batch(DTYPES[1], 50, false);
    Batch outlier = random_batch(DTYPES[1], 50, false);
    outlier.losses[3] = 50;
    for (const double gamma : {0.9, 0.1}) {
        for (const double bounded : {0.0, 1.0}) {
            const absgd_rule rule = {gamma, 1, NAN, 0, 0, bounded};
            double log_s = updated(outlier.stats(lam), lam, rule);
            log_s = updated(batch.stats(lam), lam, rule, log_s);
            const double mean =
                batch.weigh(lam, rule, log_s, batch.stats(lam))[0].mean().item<double>();
            EXPECT_LE(mean, (1 / gamma) * (1 + 1e-12));
            if (bounded) {
                expect_close(mean, gamma);
            } else {
                EXPECT_LT(mean, 1e-15);
            }
        }
    }
}

TEST(Bounded, LeavesAloneWhatIsWithinTheBound) {
    const Batch batch = random_batch(DTYPES[1], 50, false);
    absgd_rule rule = {0.5, 2, NAN, 0, 0, 0};
    for (const double log_s : {0.0, 1.0, 2.0, -INF}) {
        rule.bounded = 0;
        const double without = updated(batch.stats(1), 1, rule, log_s);
        rule.bounded = 1;
        EXPECT_EQ(updated(batch.stats(1), 1, rule, log_s), without);
    }
}

// Micro-batches, cut at `cuts`, against the large batch: the gradient by losses that are
// parameters.
struct Step {
    double log_s, log_s_lam, factor = NAN, capped = 0;
    torch::Tensor gradient;

    Step(const Batch &batch, double lam, const absgd_rule &rule, double start,
         const std::vector<int64_t> &cuts, double divisor = 1)
        : log_s(start), log_s_lam(lam), gradient(torch::zeros({batch.n()}, torch::kFloat64)) {
        absgd_accumulation accumulation = {};
        absgd_rule provisional = rule;
        provisional.keep_loss = 0;
        for (size_t i = 0; i + 1 < cuts.size(); i++) {
            absgd_stats stats = batch.part(lam, cuts[i], cuts[i + 1]);
            double shrink = NAN, above = 0;
            EXPECT_EQ(ABSGD_OK, absgd_accumulate(&stats, &lam, &rule, &log_s, &log_s_lam,
                                                 &accumulation, &shrink));
            EXPECT_GT(shrink, 0.0);
            EXPECT_LE(shrink, 1.0);
            gradient *= shrink;
            stats.count = accumulation.reference_count;
            const auto out = batch.weigh_part(cuts[i], cuts[i + 1], lam, provisional,
                                              accumulation.log_c, stats, 1, &above);
            EXPECT_LE(total(out[0] > std::exp(ABSGD_PROVISIONAL_LIMIT) * (1 + 1e-6)), 0);
            gradient.slice(0, cuts[i], cuts[i + 1]) += out[1] / divisor;
            accumulation.capped += above;
        }
        capped = accumulation.capped;
        EXPECT_EQ(ABSGD_OK,
                  absgd_settle(&accumulation, &lam, &rule, divisor, &log_s, &log_s_lam, &factor));
        gradient *= factor;
        const absgd_accumulation none = {};
        EXPECT_EQ(0, std::memcmp(&accumulation, &none, sizeof none));
        double again = NAN; // nothing was accumulated since
        EXPECT_EQ(ABSGD_OK,
                  absgd_settle(&accumulation, &lam, &rule, divisor, &log_s, &log_s_lam, &again));
        EXPECT_EQ(again, 1.0);
    }
};

class Accumulating
    : public testing::TestWithParam<std::tuple<double, double, double, bool, double>> {};

TEST_P(Accumulating, MicroBatchesAreTheLargeBatch) {
    const auto [lam, jump, s_init, weighted, keep_loss] = GetParam();
    Batch batch = random_batch(DTYPES[1], 60, true, weighted);
    batch.losses.slice(0, 30, 40) *= jump;
    if (weighted) batch.weight.slice(0, 0, 7) *= 0; // a first micro-batch without weight
    const absgd_rule rule = {0.9, 0.7, s_init, 0, keep_loss, 0};
    const absgd_stats whole = batch.stats(lam);
    double log_s = std::log(s_init), log_s_lam = lam;
    ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&whole, &lam, &rule, &log_s, &log_s_lam));
    const Step step(batch, lam, rule, std::log(s_init), {0, 7, 7, 30, 31, 60}, 3);
    EXPECT_TRUE(
        torch::allclose(step.gradient, batch.weigh(lam, rule, log_s, whole)[1], 1e-11, 1e-300));
    if (!std::isnan(log_s)) expect_close(step.log_s, log_s);
    EXPECT_EQ(step.log_s_lam, log_s_lam);
}

INSTANTIATE_TEST_SUITE_P(All, Accumulating,
                         testing::Combine(testing::Values(0.1, 1.0, -0.5, INF, -INF),
                                          testing::Values(1.0, 20.0),
                                          testing::Values((double)NAN, 0.0, 2.0), testing::Bool(),
                                          testing::Values(0.0, 1.0)));

TEST(Accumulation, AStaleNormaliserDoesNotUnderflow) {
    const absgd_rule rule = {1, 1, NAN, 0, 0, 0};
    const double lam = 0.1; // log_s is that of losses of 12, and here come losses of 1, at γ = 1
    for (const Dtype &dtype : DTYPES) {
        const Batch batch = {dtype, torch::ones({8}, dtype.torch), {}, {}};
        const Step step(batch, lam, rule, 120, {0, 3, 8});
        expect_close(step.gradient, torch::full({8}, 1 / 8.0), 1e-6);
        EXPECT_TRUE(std::isfinite(step.factor));
    }
}

TEST(Accumulation, TheFactorIsFiniteWhateverLogC) {
    const absgd_rule rule = {1, 1, NAN, 0, 0, 0};
    const double lam = 0.1;
    const Batch batch = {DTYPES[1], torch::ones({8}, torch::kFloat64), {}, {}};
    absgd_accumulation accumulation = {batch.stats(lam), 5000, 8, 0};
    double log_s = 5000, log_s_lam = lam, factor;
    ASSERT_EQ(ABSGD_OK, absgd_settle(&accumulation, &lam, &rule, 1, &log_s, &log_s_lam, &factor));
    expect_close(factor, std::exp(ABSGD_FACTOR_LIMIT));
}

TEST(Accumulation, ACapIsTakenAgainstTheProvisionalNormaliser) {
    const absgd_rule rule = {1, 1, NAN, 2, 0, 0};
    const double lam = 0.5;
    Batch batch = random_batch(DTYPES[1], 40, false, true);
    batch.losses.slice(0, 20, 40) *= 20; // would raise log_c
    const Batch first = {
        batch.dtype, batch.losses.slice(0, 0, 20), {}, batch.weight.slice(0, 0, 20)};
    const double log_c = updated(first.stats(lam), lam, rule);
    const Step step(batch, lam, rule, NAN, {0, 20, 40});
    const torch::Tensor p = (batch.losses / lam - log_c).exp().clamp_max(2.0);
    const torch::Tensor expected = p * batch.weight / 40 * std::exp(log_c - step.log_s);
    EXPECT_TRUE(torch::allclose(step.gradient, expected, 1e-11, 1e-300));
    EXPECT_EQ(step.capped, total((batch.losses / lam - log_c).exp().mul(batch.weight > 0) > 2.0));
}

} // namespace
