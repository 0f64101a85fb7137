// The normaliser and the weights of absgd.h against LibTorch's logsumexp, logaddexp and exp.
#include "batch.h"

#include <vector>

namespace {

const double LAMBDAS[] = {0.05, 1.0, 10.0, -0.5, INF, -INF};
const absgd_rule PLAIN = {0.9, 1, NAN, 0, 0, 0};

void expect_same(const absgd_stats &a, const absgd_stats &b) {
    EXPECT_EQ(0, std::memcmp(&a, &b, sizeof a));
}

class Weights : public testing::TestWithParam<std::tuple<Dtype, double, bool, bool, int64_t>> {};

TEST_P(Weights, OneBatchAgreesWithTorch) {
    const auto [dtype, lam, masked, weighted, n] = GetParam();
    const Batch batch = random_batch(dtype, n, masked, weighted);
    const torch::Tensor losses = batch.counted(), w = batch.measure();
    const double B = losses.numel(), unit = ABSGD_LOSS_UNIT;
    const absgd_stats stats = batch.stats(lam);
    EXPECT_EQ(stats.count, B);
    EXPECT_EQ(stats.nonfinite, 0);
    expect_close(stats.sum_weight, total(w));
    expect_close(stats.sum_loss * unit, total(w * losses));
    expect_close(stats.sum_abs_loss * unit, total(w * losses.abs()));
    const torch::Tensor z = std::isinf(lam) ? torch::zeros_like(losses) : losses / lam;
    expect_close(stats.max, z.masked_select(w > 0).max().item<double>());
    const torch::Tensor e = torch::where(w > 0, (z - stats.max).exp(), 0.0);
    expect_close(stats.sum, total(w * e));
    expect_close(stats.sum_sq, total(w * e.square()));
    expect_close(stats.sum_weighted * unit, total(w * e * losses));
    expect_close(stats.sum_abs_weighted * unit, total(w * e * losses.abs()));

    const absgd_rule rule = {0.25, 0.5, NAN, 0, 0, 0};
    double log_s = 0.3, log_s_lam = lam;
    const double expected =
        std::isinf(lam) ? 0.3
                        : std::log(0.75 * std::exp(0.3 - 10) +
                                   0.25 * 0.5 * std::exp(log_mean_exp(losses, w, lam) - 10)) +
                              10;
    ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &rule, &log_s, &log_s_lam));
    expect_close(log_s, expected);
    EXPECT_EQ(log_s_lam, lam);

    const torch::Tensor out = batch.weigh(lam, rule, log_s, stats, 2.0);
    torch::Tensor p = std::isinf(lam) ? torch::ones_like(losses) : (z - log_s).exp();
    p = torch::where(w > 0, p, 0.0);
    const double tolerance = dtype.arithmetic == torch::kFloat64 ? 1e-12 : 1e-6;
    expect_close(batch.of_mask(out[0]), p, tolerance);
    expect_close(batch.of_mask(out[1]), p * w * (2.0 / B), tolerance);
    if (masked) {
        EXPECT_EQ(total(out.masked_select(~batch.mask.expand({2, n})).abs()), 0.0);
    }

    absgd_report reports[2];
    for (auto &report : reports) report.count = NAN;
    ASSERT_EQ(ABSGD_OK, absgd_observe(&stats, &lam, &rule, &log_s, 0.25, reports));
    const absgd_report &last = reports[0];
    EXPECT_EQ(last.count, B);
    expect_close(last.mean_loss, total(w * losses) / B);
    expect_close(last.weighted_loss, total(w * p * losses) / B);
    expect_close(last.objective, std::isinf(lam) ? total(w * losses) / total(w) : lam * log_s);
    expect_close(last.max_weight, p.max().item<double>());
    expect_close(last.effective_samples,
                 B * std::pow(total(w * p), 2) / (total(w) * total(w * p.square())));
    EXPECT_EQ(last.kappa, 1.0);
    EXPECT_EQ(last.capped, 0.25);
    EXPECT_EQ(0, std::memcmp(&reports[0], &reports[1], sizeof reports[0]));
}

TEST_P(Weights, PartsCombineToTheWhole) {
    const auto [dtype, lam, masked, weighted, n] = GetParam();
    const Batch batch = random_batch(dtype, n, masked, weighted);
    const int64_t cuts[] = {0, 0, n / 3, n / 3, n / 2, n};
    std::vector<absgd_stats> rows;
    for (int i = 0; i + 1 < 6; i++) rows.push_back(batch.part(lam, cuts[i], cuts[i + 1]));
    absgd_stats whole;
    ASSERT_EQ(ABSGD_OK, absgd_combine_stats(rows.data(), rows.size(), &whole));
    const absgd_stats expected = batch.stats(lam);
    EXPECT_EQ(whole.count, expected.count);
    EXPECT_EQ(whole.max, expected.max);
    const auto *a = &whole.sum_weight, *b = &expected.sum_weight;
    for (int i = 0; i < 8; i++) expect_close(a[i], b[i]);
    ASSERT_EQ(ABSGD_OK, absgd_combine_stats(rows.data(), rows.size(), &rows[0])); // may alias
    expect_same(rows[0], whole);
}

INSTANTIATE_TEST_SUITE_P(All, Weights,
                         testing::Combine(testing::ValuesIn(DTYPES), testing::ValuesIn(LAMBDAS),
                                          testing::Bool(), testing::Bool(),
                                          testing::Values(5, 67, 2011)));

TEST(Combine, APartOfWeightZeroAddsItsCountAlone) {
    const double lam = 0.1;
    Batch batch = random_batch(DTYPES[1], 12, false);
    batch.weight = torch::zeros({12}, torch::kFloat64);
    batch.weight.slice(0, 4, 8) += 2;
    const absgd_stats nothing = batch.part(lam, 0, 4), some = batch.part(lam, 4, 8);
    EXPECT_EQ(nothing.max, -INF);
    EXPECT_EQ(nothing.count, 4);
    for (const auto &rows :
         {std::vector{nothing, some}, {some, nothing}, {nothing, some, nothing}}) {
        absgd_stats whole;
        ASSERT_EQ(ABSGD_OK, absgd_combine_stats(rows.data(), rows.size(), &whole));
        absgd_stats expected = some;
        expected.count = 4.0 * rows.size();
        expect_same(whole, expected);
    }
    const absgd_stats none[] = {nothing, nothing};
    absgd_stats whole;
    ASSERT_EQ(ABSGD_OK, absgd_combine_stats(none, 2, &whole));
    EXPECT_EQ(whole.sum, 0.0);
    EXPECT_EQ(whole.max, -INF);
}

TEST(Measure, NoWeightIsTheWeightOne) {
    for (const Dtype &dtype : DTYPES) {
        Batch batch = random_batch(dtype, 300, true);
        const absgd_stats without = batch.stats(0.3);
        const torch::Tensor weights = batch.weigh(0.3, PLAIN, 2.0, without);
        batch.weight = torch::ones({300}, dtype.arithmetic);
        expect_same(batch.stats(0.3), without);
        EXPECT_TRUE(torch::equal(batch.weigh(0.3, PLAIN, 2.0, without), weights));
    }
}

TEST(Measure, AWeightOfTwoIsTheSampleTwice) {
    const double lam = 0.4;
    Batch batch = random_batch(DTYPES[1], 9, false);
    batch.weight = torch::ones({9}, torch::kFloat64);
    batch.weight[3] = 2;
    Batch twice = batch;
    twice.losses = torch::cat({batch.losses, batch.losses.slice(0, 3, 4)});
    twice.weight = torch::Tensor();
    const absgd_stats a = batch.stats(lam), b = twice.stats(lam);
    double log_s = NAN, log_s_lam = lam, twice_log_s = NAN;
    absgd_update_log_s(&a, &lam, &PLAIN, &log_s, &log_s_lam);
    absgd_update_log_s(&b, &lam, &PLAIN, &twice_log_s, &log_s_lam);
    expect_close(log_s, twice_log_s);
}

TEST(Measure, ABatchOfWeightZeroChangesNothing) {
    for (const double lam : {0.5, -0.5, INF}) {
        Batch batch = random_batch(DTYPES[0], 20, false);
        batch.weight = torch::zeros({20});
        const absgd_stats stats = batch.stats(lam);
        EXPECT_EQ(stats.count, 20);
        double log_s = 1.5, log_s_lam = 2.0;
        absgd_report reports[2] = {{7, 7, 7, 7, 7, 7, 7, 7, 7}, {7, 7, 7, 7, 7, 7, 7, 7, 7}};
        ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &PLAIN, &log_s, &log_s_lam));
        ASSERT_EQ(ABSGD_OK, absgd_observe(&stats, &lam, &PLAIN, &log_s, 0, reports));
        EXPECT_EQ(log_s, 1.5);
        EXPECT_EQ(log_s_lam, 2.0);
        for (int i = 0; i < 18; i++) EXPECT_EQ((&reports[0].count)[i], 7);
        EXPECT_EQ(total(batch.weigh(lam, PLAIN, log_s, stats).abs()), 0.0);
    }
}

TEST(Measure, ABadWeightMakesABadBatchAndSoDoesABadLossOfWeightZero) {
    for (const double lam : {0.5, INF}) {
        for (const double bad : {-1.0, INF, (double)NAN}) {
            Batch batch = random_batch(DTYPES[1], 20, false);
            batch.weight = torch::ones({20}, torch::kFloat64);
            batch.weight[7] = bad;
            const absgd_stats stats = batch.stats(lam);
            EXPECT_EQ(stats.nonfinite, 1);
            double log_s = 1.5, log_s_lam = 2.0;
            ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &PLAIN, &log_s, &log_s_lam));
            EXPECT_EQ(log_s, 1.5);
            EXPECT_TRUE(batch.weigh(lam, PLAIN, log_s, stats)[1].isnan().all().item<bool>());
        }
        Batch batch = random_batch(DTYPES[1], 20, false);
        batch.weight = torch::ones({20}, torch::kFloat64);
        batch.weight[7] = 0;
        batch.losses[7] = NAN;
        EXPECT_EQ(batch.stats(lam).nonfinite, 1);
        EXPECT_TRUE(batch.weigh(lam, PLAIN, 0, batch.stats(lam))[1].isnan().all().item<bool>());
    }
}

TEST(Measure, WeightsWhoseSumOverflowsMakeABadBatch) {
    const double lam = 1.0;
    Batch batch = random_batch(DTYPES[1], 4, false);
    batch.weight = torch::full({4}, 1e308, torch::kFloat64);
    const absgd_stats stats = batch.stats(lam);
    double log_s = 1.5, log_s_lam = 1.0;
    ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &PLAIN, &log_s, &log_s_lam));
    EXPECT_EQ(log_s, 1.5);
    EXPECT_TRUE(batch.weigh(lam, PLAIN, log_s, stats)[1].isnan().all().item<bool>());
}

TEST(Combine, OfNothingIsEmpty) {
    absgd_stats whole;
    ASSERT_EQ(ABSGD_OK, absgd_combine_stats(nullptr, 0, &whole));
    expect_same(whole, {0, 0, 0, -INF, 0, 0, 0, 0, 0, 0});
    const double lam = 1.0;
    ASSERT_EQ(ABSGD_OK,
              absgd_batch_stats(ABSGD_FLOAT32, nullptr, nullptr, nullptr, 0, &lam, &whole));
    EXPECT_EQ(whole.count, 0);
    EXPECT_EQ(whole.max, -INF);
}

TEST(Update, TheFirstBatchSetsLogS) {
    const Batch batch = random_batch(DTYPES[1], 50, false);
    const double lam = 0.5;
    const absgd_stats stats = batch.stats(lam);
    const double own = log_mean_exp(batch.losses, lam) + std::log(2.0);
    for (const double s_init : {(double)NAN, 0.0, 3.0}) {
        const absgd_rule rule = {0.9, 2.0, s_init, 0, 0, 0};
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
    const absgd_rule rule = {1.0, 1.0, NAN, 0, 0, 0};
    double log_s = 700.0, log_s_lam = lam;
    ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &rule, &log_s, &log_s_lam));
    expect_close(log_s, log_mean_exp(batch.losses, lam));
}

TEST(Update, EmptyAndBadBatchesChangeNothing) {
    const absgd_rule &rule = PLAIN;
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
            EXPECT_TRUE(batch.weigh(lam, rule, log_s, stats).isnan().all().item<bool>());
        }
    }
    const absgd_stats empty = {0, 0, 0, -INF, 0, 0, 0, 0, 0, 0};
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
    const absgd_rule rule = {0.9, 1.0, c.s_init, 0, 0, 0};
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
    const double lam = 1.0, log_s = 0.0, unit = ABSGD_LOSS_UNIT;
    absgd_report reports[2];
    for (auto &report : reports) report.count = NAN;
    const absgd_stats first = {4, 0, 4, 1, 2, 2, 6 / unit, 3, 6, 3};
    const absgd_stats second = {8, 0, 8, 2, 3, 3, 8 / unit, 5, 8, 5};
    const auto observe = [&](const absgd_stats &stats) {
        ASSERT_EQ(ABSGD_OK, absgd_observe(&stats, &lam, &PLAIN, &log_s, 0.5, reports));
    };
    observe(first);
    observe(second);
    EXPECT_EQ(reports[0].count, 8);
    EXPECT_EQ(reports[0].batches, 1);
    EXPECT_EQ(reports[1].batches, 2);
    EXPECT_EQ(reports[1].capped, 0.5);
    expect_close(reports[1].count, 4 + ABSGD_REPORT_RATE * 4);
    expect_close(reports[1].mean_loss, 1.5 - ABSGD_REPORT_RATE * 0.5);
    const absgd_report mean = reports[1];
    observe({0, 0, 0, -INF, 0, 0, 0, 0, 0, 0});
    EXPECT_EQ(reports[0].count, 8);
    observe({4, 1, 4, 1, NAN, 2, NAN, 3, NAN, 3});
    EXPECT_TRUE(std::isnan(reports[0].mean_loss));
    EXPECT_EQ(0, std::memcmp(&reports[1], &mean, sizeof mean));
}

TEST(Weigh, IsTheSplitCallsInOne) {
    for (const Dtype &dtype : DTYPES) {
        const Batch batch = random_batch(dtype, ABSGD_STATS_CHUNK + 77, true, true);
        const double lam = 0.4;
        const absgd_rule rule = {0.9, 1, NAN, 2, 1, 1};
        std::vector<absgd_stats> rows = {batch.part(lam, 0, ABSGD_STATS_CHUNK),
                                         batch.part(lam, ABSGD_STATS_CHUNK, batch.n())};
        absgd_stats whole;
        ASSERT_EQ(ABSGD_OK, absgd_combine_stats(rows.data(), 2, &whole));
        double log_s = 1, log_s_lam = lam, capped, own_log_s = 1, own_log_s_lam = lam;
        absgd_report expected[2] = ABSGD_REPORTS_INIT, reports[2] = ABSGD_REPORTS_INIT;
        ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&whole, &lam, &rule, &log_s, &log_s_lam));
        const torch::Tensor out = batch.weigh(lam, rule, log_s, whole, 1, &capped);
        EXPECT_GT(capped, 0);
        absgd_observe(&whole, &lam, &rule, &log_s, capped / whole.count, expected);
        torch::Tensor own = torch::empty_like(out);
        ASSERT_EQ(ABSGD_OK, absgd_weigh(dtype.absgd, batch.losses.const_data_ptr(),
                                        batch.mask_at(0), batch.weight.const_data_ptr(), batch.n(),
                                        &lam, &rule, &own_log_s, &own_log_s_lam, reports,
                                        own[0].mutable_data_ptr(), own[1].mutable_data_ptr()));
        EXPECT_EQ(own_log_s, log_s);
        EXPECT_TRUE(torch::equal(own, out));
        EXPECT_EQ(0, std::memcmp(reports, expected, sizeof reports));
    }
}

TEST(Extremes, MeansOfLossesNearTheLargestDoubleAreFinite) {
    const double lam = 1e308;
    Batch batch = {DTYPES[1], torch::full({1000}, 1.5e308, torch::kFloat64), {}, {}};
    absgd_report reports[2];
    for (auto &report : reports) report.count = NAN;
    for (const double sign : {1.0, -1.0}) {
        const Batch now = {DTYPES[1], batch.losses * sign, {}, {}};
        const absgd_stats stats = now.stats(lam);
        double log_s = NAN, log_s_lam = lam;
        ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &PLAIN, &log_s, &log_s_lam));
        ASSERT_EQ(ABSGD_OK, absgd_observe(&stats, &lam, &PLAIN, &log_s, 0, reports));
        expect_close(reports[0].mean_loss / 1e308, sign * 1.5);
        expect_close(reports[0].weighted_loss / 1e308, sign * 1.5);
        expect_close(reports[0].objective / 1e308, sign * 1.5);
    }
    expect_close(reports[1].mean_loss / 1e308, 1.5 - 0.01 * 3.0);
}

// The sample with the largest loss has so small a part in the base measure that squares underflow.
TEST(Extremes, AnEffectiveSampleSizeNearZero) {
    const absgd_rule rule = {1, 1, NAN, 0, 0, 0};
    const double lam = 1e-3;
    for (const double least : {1e-2, 1e-290}) {
        const Batch batch = {DTYPES[1],
                             torch::tensor({0.0, 5.0}, torch::kFloat64),
                             {},
                             torch::tensor({1e10, least}, torch::kFloat64)};
        const absgd_stats stats = batch.stats(lam);
        double log_s = NAN, log_s_lam = lam;
        absgd_report reports[2];
        reports[1].count = NAN;
        ASSERT_EQ(ABSGD_OK, absgd_update_log_s(&stats, &lam, &rule, &log_s, &log_s_lam));
        ASSERT_EQ(ABSGD_OK, absgd_observe(&stats, &lam, &rule, &log_s, 0, reports));
        EXPECT_NEAR(reports[0].effective_samples / (2 * least / 1e10), 1, 1e-11);
    }
}

TEST(Extremes, ATinyLambda) {
    const double lam = 1e-310;
    const auto losses = torch::tensor({1e-310, 3e-310, 0.0}, torch::kFloat64);
    const Batch batch = {DTYPES[1], losses, {}, {}};
    const absgd_stats stats = batch.stats(lam);
    EXPECT_EQ(stats.nonfinite, 0);
    expect_close(stats.max, 3, 1e-9); // the losses are subnormal: few digits
    expect_close(batch.weigh(lam, PLAIN, 3, stats)[0],
                 torch::tensor({std::exp(-2.0), 1.0, std::exp(-3.0)}, torch::kFloat64), 1e-9);
}

TEST(Extremes, CarryOverRatiosThatOverflow) {
    const auto carried = [](double log_s, double old_lam, double lam) {
        double log_s_lam = old_lam;
        EXPECT_EQ(ABSGD_OK, absgd_carry_log_s(&lam, &PLAIN, &log_s, &log_s_lam));
        return log_s;
    };
    expect_close(carried(1e-300, 1e200, 1e-150) / 1e50, 1);
    expect_close(carried(1e100, 1e-200, 1e200) / 1e-300, 1);
    EXPECT_TRUE(std::isnan(carried(5.0, 1e200, 1e-200))); // ∞: unset
}

} // namespace
