/* The weights and the accumulation of absgd_cuda.h against those of absgd.h. */
#include "absgd_cuda.h"
#include "device_array.h"

namespace {

constexpr double TIGHT = 1e-12; /* sums of doubles in another order */

struct Batch {
    absgd_dtype dtype;
    std::vector<double> values;
    std::vector<uint8_t> mask;  /* may be empty: none */
    std::vector<double> weight; /* likewise */

    Bytes losses() const { return encode(dtype, values); }
    Bytes weights() const { return encode(arithmetic_type(dtype), weight); }
    double count() const {
        double count = 0.0;
        for (size_t i = 0; i < values.size(); i++) count += mask.empty() || mask[i] ? 1.0 : 0.0;
        return count;
    }
    const uint8_t *mask_or_null() const { return mask.empty() ? nullptr : mask.data(); }
    int64_t n() const { return static_cast<int64_t>(values.size()); }
};

Batch batch_of(absgd_dtype dtype, size_t n, unsigned seed, bool masked, bool weighted = false) {
    Batch batch = {dtype, normal_values(n, seed, 3.0, 2.0), {}, {}};
    if (weighted) batch.weight = normal_values(n, seed + 100);
    for (size_t i = 0; i < batch.weight.size(); i++) {
        batch.weight[i] = i % 5 == 4 ? 0.0 : std::exp(batch.weight[i]);
    }
    if (!masked) return batch;
    for (size_t i = 0; i < n; i++) {
        batch.mask.push_back(i % 3 != 1);
        if (i % 3 == 1) batch.values[i] = NAN; /* never looked at */
    }
    return batch;
}

struct State {
    double log_s = NAN, log_s_lam = 1.0;
    absgd_report reports[2];

    explicit State(double lam = 1.0) : log_s_lam(lam) {
        for (auto &report : reports) report = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    }
};

struct Weights {
    std::vector<double> p, coefficients;
    double capped = 0.0; /* the share; on the CPU only */
};

absgd_stats stats_on_cpu(const Batch &batch, double lam) {
    absgd_stats stats;
    const Bytes weight = batch.weights();
    EXPECT_EQ(absgd_batch_stats(batch.dtype, batch.losses().data(), batch.mask_or_null(),
                                batch.weight.empty() ? nullptr : weight.data(), batch.n(), &lam,
                                &stats),
              ABSGD_OK);
    return stats;
}

Weights weights_on_cpu(const Batch &batch, double lam, const absgd_rule &rule, double log_s,
                       const absgd_stats &stats, double factor) {
    const absgd_dtype arithmetic = arithmetic_type(batch.dtype);
    Bytes p(batch.n() * size_of(arithmetic)), coefficients = p;
    const Bytes weight = batch.weights();
    double capped = 0.0;
    EXPECT_EQ(absgd_weights(batch.dtype, batch.losses().data(), batch.mask_or_null(),
                            batch.weight.empty() ? nullptr : weight.data(), batch.n(), &lam, &rule,
                            &log_s, &stats, factor, p.data(), coefficients.data(), &capped),
              ABSGD_OK);
    return {decode(arithmetic, p), decode(arithmetic, coefficients),
            capped == 0.0 ? 0.0 : capped / batch.count()};
}

Weights weigh_on_cpu(const Batch &batch, const absgd_stats &stats, double lam,
                     const absgd_rule &rule, State &state, double factor) {
    EXPECT_EQ(absgd_update_log_s(&stats, &lam, &rule, &state.log_s, &state.log_s_lam), ABSGD_OK);
    const Weights weights = weights_on_cpu(batch, lam, rule, state.log_s, stats, factor);
    EXPECT_EQ(absgd_observe(&stats, &lam, &rule, &state.log_s, weights.capped, state.reports),
              ABSGD_OK);
    return weights;
}

/* A batch and room for its results on the device. */
struct DeviceBatch {
    absgd_dtype dtype;
    int64_t n;
    DeviceArray<char> losses;
    DeviceArray<uint8_t> mask;
    DeviceArray<char> weight;
    bool has_mask, has_weight;
    DeviceArray<absgd_stats> scratch;
    DeviceArray<char> p, coefficients;

    explicit DeviceBatch(const Batch &batch)
        : dtype(batch.dtype), n(batch.n()), losses(batch.losses()), mask(batch.mask),
          weight(batch.weights()), has_mask(!batch.mask.empty()), has_weight(!batch.weight.empty()),
          scratch(std::vector<absgd_stats>((n + ABSGD_CUDA_CHUNK - 1) / ABSGD_CUDA_CHUNK)),
          p(Bytes(n * size_of(arithmetic_type(dtype)))), coefficients(p.get()) {}

    const uint8_t *mask_or_null() const { return has_mask ? mask.data() : nullptr; }
    const void *weight_or_null() const { return has_weight ? weight.data() : nullptr; }
    absgd_stats *scratch_or_null() const { return n > ABSGD_CUDA_CHUNK ? scratch.data() : nullptr; }
    Weights weights() const {
        return {decode(arithmetic_type(dtype), p.get()),
                decode(arithmetic_type(dtype), coefficients.get())};
    }
};

Weights weigh_on_device(const Batch &batch, const std::vector<absgd_stats> *rows, double lam,
                        const absgd_rule &rule, State &state, double factor) {
    const DeviceBatch on(batch);
    const DeviceArray<absgd_stats> all_rows(rows ? *rows : std::vector<absgd_stats>{});
    const DeviceArray<double> lam_(lam), log_s(state.log_s), log_s_lam(state.log_s_lam);
    const DeviceArray<absgd_report> reports({state.reports[0], state.reports[1]});
    EXPECT_EQ(absgd_weigh_cuda(on.dtype, on.losses.data(), on.mask_or_null(), on.weight_or_null(),
                               on.n, rows ? all_rows.data() : nullptr, rows ? rows->size() : 0,
                               on.scratch_or_null(), lam_.data(), &rule, log_s.data(),
                               log_s_lam.data(), reports.data(), factor, on.p.data(),
                               on.coefficients.data(), nullptr),
              ABSGD_OK);
    state.log_s = log_s.get()[0];
    state.log_s_lam = log_s_lam.get()[0];
    state.reports[0] = reports.get()[0];
    state.reports[1] = reports.get()[1];
    return on.weights();
}

double cpu_error(absgd_dtype dtype, size_t n) {
    return is_large_on_cpu(dtype, n) ? 4 * ABSGD_LARGE_ERROR : 0.0;
}

void expect_same(const State &got, const State &wanted, double error = 0.0) {
    const double tight = std::fmax(TIGHT, error);
    expect_close({got.log_s, got.log_s_lam}, {wanted.log_s, wanted.log_s_lam}, tight, tight,
                 "log_s and log_s_lam");
    for (int i = 0; i < 2; i++) {
        expect_close(doubles_of(got.reports[i]), doubles_of(wanted.reports[i]),
                     std::fmax(1e-11, error), 1e-290, i ? "the running mean" : "the report");
    }
}

void expect_same(const Weights &got, const Weights &wanted, absgd_dtype dtype) {
    const double rounding = dtype == ABSGD_FLOAT64
                                ? 1e-11
                                : std::fmax(epsilon(ABSGD_FLOAT32), cpu_error(dtype, got.p.size()));
    /* Below exp(-708) the CPU's exponential is 0. */
    expect_close(got.p, wanted.p, rounding, 1e-300, "weights");
    expect_close(got.coefficients, wanted.coefficients, rounding, 1e-300, "coefficients");
}

/* Every guard alone, and all of them. */
const absgd_rule GUARDS[] = {{0.9, 1.0, NAN, 1.5, 0, 0},
                             {0.9, 1.0, NAN, 0, 1, 0},
                             {0.1, 1.0, NAN, 0, 0, 1},
                             {0.1, 2.0, 0.0, 1.2, 1, 1}};

class CudaWeights : public testing::TestWithParam<absgd_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaWeights, testing::ValuesIn(DTYPES));

TEST_P(CudaWeights, WeighIsTheCpusAlgorithmAtEverySize) {
    const absgd_rule rule = {0.9, 1.0, NAN, 0, 0, 0};
    for (size_t n : {0, 1, 2, 31, 32, 33, 255, 256, 257, 1000, 2048, 2049, 4096, 9001}) {
        for (bool masked : {false, true}) {
            SCOPED_TRACE(testing::Message() << "n = " << n << ", masked = " << masked);
            State got, wanted;
            for (unsigned step = 0; step < 2; step++) {
                const Batch batch = batch_of(GetParam(), n, step, masked);
                const Weights p = weigh_on_device(batch, nullptr, 1.0, rule, got, 2.0);
                const absgd_stats stats = stats_on_cpu(batch, 1.0);
                expect_same(p, weigh_on_cpu(batch, stats, 1.0, rule, wanted, 2.0), GetParam());
                expect_same(got, wanted, cpu_error(GetParam(), n));
            }
        }
    }
}

TEST_P(CudaWeights, GuardsAndTheBaseMeasure) {
    for (const absgd_rule &rule : GUARDS) {
        for (size_t n : {1, 100, 5000}) { /* 5000: three chunks */
            State got, wanted;
            unsigned step = 0;
            for (double lam : {2.0, 0.3, -1.0, INF}) {
                SCOPED_TRACE(testing::Message() << "n = " << n << ", lam = " << lam << ", gamma = "
                                                << rule.gamma << ", cap " << rule.max_weight);
                const Batch batch = batch_of(GetParam(), n, step, step % 2 == 0, step % 3 < 2);
                step++;
                const Weights p = weigh_on_device(batch, nullptr, lam, rule, got, 1.0);
                expect_same(p,
                            weigh_on_cpu(batch, stats_on_cpu(batch, lam), lam, rule, wanted, 1.0),
                            GetParam());
                expect_same(got, wanted, cpu_error(GetParam(), n));
            }
        }
    }
}

TEST_P(CudaWeights, ABadWeightMakesABadBatch) {
    const absgd_rule rule = {0.9, 1.0, NAN, 0, 0, 0};
    for (double bad : {-1.0, NOT_A_NUMBER, INF}) {
        Batch batch = batch_of(GetParam(), 40, 1, false, true);
        batch.weight[3] = bad;
        for (double lam : {1.0, INF}) {
            State got(lam), wanted(lam);
            const Weights p = weigh_on_device(batch, nullptr, lam, rule, got, 1.0);
            expect_same(p, weigh_on_cpu(batch, stats_on_cpu(batch, lam), lam, rule, wanted, 1.0),
                        GetParam());
            EXPECT_TRUE(std::isnan(p.coefficients[0]));
            EXPECT_TRUE(std::isnan(got.log_s));
        }
    }
}

TEST_P(CudaWeights, NoWeightIsAnEmptyBatch) {
    Batch batch = batch_of(GetParam(), 40, 1, false);
    batch.weight.assign(40, 0.0);
    State got, wanted;
    const Weights p = weigh_on_device(batch, nullptr, 1.0, GUARDS[0], got, 1.0);
    expect_same(p, weigh_on_cpu(batch, stats_on_cpu(batch, 1.0), 1.0, GUARDS[0], wanted, 1.0),
                GetParam());
    EXPECT_EQ(p.coefficients, std::vector<double>(40, 0.0));
    EXPECT_TRUE(std::isnan(got.log_s));
}

TEST_P(CudaWeights, WeighFollowsLambda) {
    for (const absgd_rule &rule :
         {absgd_rule{0.9, 1.0, NAN, 0, 0, 0}, absgd_rule{0.1, 2.0, 0.0, 0, 0, 0},
          absgd_rule{1.0, 1.0, 0.5, 0, 0, 0}}) {
        State got(INFINITY), wanted(INFINITY);
        unsigned seed = 0;
        for (double lam : {INF, 2.0, 0.05, -1.0, -0.5, NOT_A_NUMBER, 0.0, 1.0, -INF, 1.0}) {
            SCOPED_TRACE(testing::Message() << "gamma = " << rule.gamma << ", lam = " << lam);
            const Batch batch = batch_of(GetParam(), 100, seed, seed % 2);
            seed++;
            const Weights p = weigh_on_device(batch, nullptr, lam, rule, got, 1.0);
            expect_same(p, weigh_on_cpu(batch, stats_on_cpu(batch, lam), lam, rule, wanted, 1.0),
                        GetParam());
            expect_same(got, wanted);
        }
    }
}

TEST_P(CudaWeights, ABadBatchLeavesTheNormaliser) {
    const absgd_rule rule = {0.9, 1.0, NAN, 0, 0, 0};
    for (double bad : {NOT_A_NUMBER, INF, -INF}) {
        for (size_t n : {7, 5000}) {
            State got, wanted;
            Batch batch = batch_of(GetParam(), n, 1, false);
            weigh_on_device(batch, nullptr, 1.0, rule, got, 1.0);
            const double before = got.log_s;
            weigh_on_cpu(batch, stats_on_cpu(batch, 1.0), 1.0, rule, wanted, 1.0);
            batch.values[n / 2] = bad;
            const Weights p = weigh_on_device(batch, nullptr, 1.0, rule, got, 1.0);
            expect_same(p, weigh_on_cpu(batch, stats_on_cpu(batch, 1.0), 1.0, rule, wanted, 1.0),
                        GetParam());
            EXPECT_TRUE(std::isnan(p.p[0]));
            EXPECT_EQ(got.log_s, before);
        }
    }
}

TEST_P(CudaWeights, GivenRowsStandForTheWholeBatch) {
    const absgd_rule rule = {0.5, 1.0, NAN, 1.5, 1, 0};
    for (size_t n_rows : {1, 2, 32, 33, 70}) {
        for (size_t n : {0, 5, 3000}) {
            std::vector<absgd_stats> rows;
            for (unsigned r = 0; r < n_rows; r++) {
                rows.push_back(stats_on_cpu(batch_of(GetParam(), r % 4 * 3, r, r % 2), 0.7));
            }
            absgd_stats whole;
            ASSERT_EQ(absgd_combine_stats(rows.data(), rows.size(), &whole), ABSGD_OK);
            const Batch batch = batch_of(GetParam(), n, 9, true);
            State got, wanted;
            const Weights p = weigh_on_device(batch, &rows, 0.7, rule, got, 4.0);
            expect_same(p, weigh_on_cpu(batch, whole, 0.7, rule, wanted, 4.0), GetParam());
            expect_same(got, wanted);
        }
    }
}

TEST_P(CudaWeights, BatchStats) {
    for (size_t n : {0, 1, 100, 2048, 2049, 10000}) {
        const Batch batch = batch_of(GetParam(), n, 3, true);
        const DeviceBatch on(batch);
        const DeviceArray<double> lam(0.3);
        const DeviceArray<absgd_stats> stats(absgd_stats{});
        ASSERT_EQ(absgd_batch_stats_cuda(on.dtype, on.losses.data(), on.mask_or_null(),
                                         on.weight_or_null(), on.n, lam.data(),
                                         on.scratch_or_null(), stats.data(), nullptr),
                  ABSGD_OK);
        const double error = cpu_error(GetParam(), n);
        const absgd_stats wanted = stats_on_cpu(batch, 0.3);
        expect_close(doubles_of(stats.get()[0]), doubles_of(wanted), std::fmax(TIGHT, error),
                     error * wanted.sum_abs_loss, "stats");
    }
}

TEST_P(CudaWeights, AccumulationGivesTheCpusNumbers) {
    const absgd_rule rules[] = {{0.9, 1.0, NAN, 0, 0, 0}, {0.9, 1.0, NAN, 1.5, 1, 1}};
    for (double lam : {1.0, 0.1, INF, -1.0}) {
        const absgd_rule &rule = rules[lam == 0.1 || lam == -1.0];
        State got, wanted;
        absgd_accumulation on_cpu = {};
        const DeviceArray<absgd_accumulation> accumulation(on_cpu);
        const DeviceArray<double> lam_(lam), log_s(got.log_s), log_s_lam(got.log_s_lam),
            shrink(NAN), factor(NAN);
        const DeviceArray<absgd_report> reports({got.reports[0], got.reports[1]});
        unsigned seed = 0;
        for (size_t n : {20, 0, 3000, 20}) {
            SCOPED_TRACE(testing::Message() << "lam = " << lam << ", n = " << n);
            Batch batch = batch_of(GetParam(), n, seed, seed % 2, seed > 1);
            if (seed++ == 3) batch.values[0] = 20.0; /* raises log_c */
            const DeviceBatch on(batch);
            ASSERT_EQ(absgd_weigh_provisionally_cuda(
                          on.dtype, on.losses.data(), on.mask_or_null(), on.weight_or_null(), on.n,
                          nullptr, 0, on.scratch_or_null(), lam_.data(), &rule, log_s.data(),
                          log_s_lam.data(), accumulation.data(), shrink.data(), 1.0, on.p.data(),
                          on.coefficients.data(), nullptr),
                      ABSGD_OK);
            absgd_stats stats = stats_on_cpu(batch, lam);
            double shrink_on_cpu;
            ASSERT_EQ(absgd_accumulate(&stats, &lam, &rule, &wanted.log_s, &wanted.log_s_lam,
                                       &on_cpu, &shrink_on_cpu),
                      ABSGD_OK);
            absgd_rule own = rule;
            own.keep_loss = 0;
            const double count = stats.count;
            stats.count = on_cpu.reference_count;
            const Weights p = weights_on_cpu(batch, lam, own, on_cpu.log_c, stats, 1.0);
            on_cpu.capped += count * p.capped;
            expect_close(shrink.get(), {shrink_on_cpu}, TIGHT, 0.0, "shrink");
            expect_close(doubles_of(accumulation.get()[0]), doubles_of(on_cpu), TIGHT, 0.0,
                         "accumulation");
            expect_same(on.weights(), p, GetParam());
        }
        ASSERT_EQ(absgd_settle_cuda(accumulation.data(), nullptr, 0, lam_.data(), &rule, 2.0,
                                    log_s.data(), log_s_lam.data(), reports.data(), factor.data(),
                                    nullptr),
                  ABSGD_OK);
        const absgd_stats whole = on_cpu.whole;
        const double capped = on_cpu.capped / whole.count;
        double factor_on_cpu;
        ASSERT_EQ(absgd_settle(&on_cpu, &lam, &rule, 2.0, &wanted.log_s, &wanted.log_s_lam,
                               &factor_on_cpu),
                  ABSGD_OK);
        ASSERT_EQ(absgd_observe(&whole, &lam, &rule, &wanted.log_s, capped, wanted.reports),
                  ABSGD_OK);
        expect_close(factor.get(), {factor_on_cpu}, TIGHT, 0.0, "factor");
        got.log_s = log_s.get()[0];
        got.log_s_lam = log_s_lam.get()[0];
        got.reports[0] = reports.get()[0];
        got.reports[1] = reports.get()[1];
        expect_same(got, wanted);
        EXPECT_EQ(accumulation.get()[0].whole.count, 0.0);
    }
}

TEST(CudaSettle, GivenRowsReplaceTheAccumulated) {
    const absgd_rule rule = {0.9, 1.0, NAN, 0, 0, 0};
    const double lam = 1.0;
    const std::vector<absgd_stats> rows = {
        stats_on_cpu(batch_of(ABSGD_FLOAT32, 10, 1, false), lam),
        stats_on_cpu(batch_of(ABSGD_FLOAT32, 20, 2, false), lam)};
    absgd_accumulation on_cpu = {{}, 2.5, 10.0, 0.0};
    const DeviceArray<absgd_accumulation> accumulation(on_cpu);
    const DeviceArray<absgd_stats> rows_(rows);
    const DeviceArray<double> lam_(lam), log_s(1.5), log_s_lam(lam), factor(NAN);
    const DeviceArray<absgd_report> reports({absgd_report{}, absgd_report{}});
    ASSERT_EQ(absgd_settle_cuda(accumulation.data(), rows_.data(), 2, lam_.data(), &rule, 1.0,
                                log_s.data(), log_s_lam.data(), reports.data(), factor.data(),
                                nullptr),
              ABSGD_OK);
    ASSERT_EQ(absgd_combine_stats(rows.data(), 2, &on_cpu.whole), ABSGD_OK);
    double log_s_on_cpu = 1.5, log_s_lam_on_cpu = lam, factor_on_cpu;
    ASSERT_EQ(
        absgd_settle(&on_cpu, &lam, &rule, 1.0, &log_s_on_cpu, &log_s_lam_on_cpu, &factor_on_cpu),
        ABSGD_OK);
    expect_close({log_s.get()[0], factor.get()[0]}, {log_s_on_cpu, factor_on_cpu}, TIGHT, 0.0,
                 "log_s and factor");
}

TEST(CudaCarry, IsTheCpus) {
    const absgd_rule rule = {1.0, 1.0, 0.5, 0, 0, 0};
    for (double old : {1.0, -2.0, INF}) {
        for (double lam : {2.0, -1.0, INF, NOT_A_NUMBER, 0.0}) {
            double log_s = 3.0, log_s_lam = old;
            const DeviceArray<double> lam_(lam), log_s_(log_s), log_s_lam_(log_s_lam);
            ASSERT_EQ(absgd_carry_log_s(&lam, &rule, &log_s, &log_s_lam), ABSGD_OK);
            ASSERT_EQ(absgd_carry_log_s_cuda(lam_.data(), &rule, log_s_.data(), log_s_lam_.data(),
                                             nullptr),
                      ABSGD_OK);
            expect_close({log_s_.get()[0], log_s_lam_.get()[0]}, {log_s, log_s_lam}, TIGHT, 0.0,
                         "log_s and log_s_lam");
        }
    }
}

TEST(CudaWeighArguments, AreChecked) {
    const absgd_rule rule = {0.9, 1.0, NAN, 0, 0, 0}, bad_rule = {0.0, 1.0, NAN, 0, 0, 0};
    const DeviceArray<double> d(std::vector<double>(8)); /* no call below gets to a launch */
    const DeviceArray<absgd_report> reports({absgd_report{}, absgd_report{}});
    const auto weigh = [&](absgd_dtype dtype, const void *losses, int64_t n, const absgd_rule *r,
                           void *weights) {
        return absgd_weigh_cuda(dtype, losses, nullptr, nullptr, n, nullptr, 0, nullptr, d.data(),
                                r, d.data(), d.data(), reports.data(), 1.0, weights, d.data(),
                                nullptr);
    };
    EXPECT_EQ(weigh(static_cast<absgd_dtype>(9), d.data(), 1, &rule, d.data()),
              ABSGD_INVALID_DTYPE);
    EXPECT_EQ(weigh(ABSGD_FLOAT32, d.data(), -1, &rule, d.data()), ABSGD_INVALID_SIZE);
    EXPECT_EQ(weigh(ABSGD_FLOAT32, nullptr, 1, &rule, d.data()), ABSGD_NULL_POINTER);
    EXPECT_EQ(weigh(ABSGD_FLOAT32, d.data(), 1, nullptr, d.data()), ABSGD_NULL_POINTER);
    EXPECT_EQ(weigh(ABSGD_FLOAT32, d.data(), 1, &rule, nullptr), ABSGD_NULL_POINTER);
    EXPECT_EQ(weigh(ABSGD_FLOAT32, d.data(), 1, &bad_rule, d.data()), ABSGD_INVALID_HYPERPARAMETER);
    /* several chunks and no scratch */
    EXPECT_EQ(weigh(ABSGD_FLOAT32, d.data(), ABSGD_CUDA_CHUNK + 1, &rule, d.data()),
              ABSGD_NULL_POINTER);
    EXPECT_EQ(absgd_settle_cuda(nullptr, nullptr, 0, d.data(), &rule, 1.0, d.data(), d.data(),
                                reports.data(), d.data(), nullptr),
              ABSGD_NULL_POINTER);
}

} // namespace
