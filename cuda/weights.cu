/* Launchers of weights.cuh. */
#include "weights.cuh"

#include "checks.h"

using namespace absgd;

/* What the three reductions of a batch ask alike. */
static absgd_status check_batch(absgd_dtype dtype, const void *losses, int64_t n, int64_t n_rows,
                                const absgd_stats *scratch) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n >= 0 && n_rows >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(losses || n == 0, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(scratch || n <= ABSGD_CUDA_CHUNK, ABSGD_NULL_POINTER);
    return ABSGD_OK;
}

template <class S>
static loss_batch<S> batch_of(const void *losses, const uint8_t *mask, const void *weight,
                              int64_t n, const double *lam, const absgd_stats *rows, int64_t n_rows,
                              absgd_stats *scratch) {
    using A = typename arithmetic<S>::type;
    const A *weights = static_cast<const A *>(weight);
    return {{static_cast<const S *>(losses), mask, weights, n}, lam, rows, n_rows, scratch};
}

absgd_status absgd_batch_stats_cuda(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                    const void *weight, int64_t n, const double *lam,
                                    absgd_stats *scratch, absgd_stats *stats, void *stream) {
    const absgd_status status = check_batch(dtype, losses, n, 0, scratch);
    if (status != ABSGD_OK) return status;
    ABSGD_REQUIRE(lam && stats, ABSGD_NULL_POINTER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        const auto batch = batch_of<S>(losses, mask, weight, n, lam, NULL, 0, scratch);
        return launch(stats_kernel<S>, shape_for_batch(n), stream, batch, stats);
    });
}

absgd_status absgd_carry_log_s_cuda(const double *lam, const absgd_rule *rule, double *log_s,
                                    double *log_s_lam, void *stream) {
    ABSGD_REQUIRE(lam && rule && log_s && log_s_lam, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    return launch(carry_kernel, {1, 1}, stream, lam, *rule, log_s, log_s_lam);
}

template <class Rule>
static absgd_status weigh(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                          const void *weight, int64_t n, const absgd_stats *rows, int64_t n_rows,
                          absgd_stats *scratch, const double *lam, const Rule &rule, double factor,
                          void *weights, void *coefficients, void *stream) {
    const absgd_status status = check_batch(dtype, losses, n, n_rows, scratch);
    if (status != ABSGD_OK) return status;
    ABSGD_REQUIRE(lam && ((weights && coefficients) || n == 0), ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(&rule.rule), ABSGD_INVALID_HYPERPARAMETER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        using A = typename arithmetic<S>::type;
        const auto batch = batch_of<S>(losses, mask, weight, n, lam, rows, n_rows, scratch);
        return launch(weigh_kernel<S, Rule>, shape_for_batch(n), stream, batch, rule, factor,
                      static_cast<A *>(weights), static_cast<A *>(coefficients));
    });
}

absgd_status absgd_weigh_cuda(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                              const void *weight, int64_t n, const absgd_stats *rows,
                              int64_t n_rows, absgd_stats *scratch, const double *lam,
                              const absgd_rule *rule, double *log_s, double *log_s_lam,
                              absgd_report reports[2], double factor, void *weights,
                              void *coefficients, void *stream) {
    ABSGD_REQUIRE(rule && log_s && log_s_lam && reports, ABSGD_NULL_POINTER);
    const moving_average average = {*rule, log_s, log_s_lam, reports};
    return weigh(dtype, losses, mask, weight, n, rows, n_rows, scratch, lam, average, factor,
                 weights, coefficients, stream);
}

absgd_status
absgd_weigh_provisionally_cuda(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                               const void *weight, int64_t n, const absgd_stats *rows,
                               int64_t n_rows, absgd_stats *scratch, const double *lam,
                               const absgd_rule *rule, const double *log_s, const double *log_s_lam,
                               absgd_accumulation *accumulation, double *shrink, double factor,
                               void *weights, void *coefficients, void *stream) {
    ABSGD_REQUIRE(rule && log_s && log_s_lam && accumulation && shrink, ABSGD_NULL_POINTER);
    const provisional micro_batch = {*rule, log_s, log_s_lam, accumulation, shrink};
    return weigh(dtype, losses, mask, weight, n, rows, n_rows, scratch, lam, micro_batch, factor,
                 weights, coefficients, stream);
}

absgd_status absgd_settle_cuda(absgd_accumulation *accumulation, const absgd_stats *rows,
                               int64_t n_rows, const double *lam, const absgd_rule *rule,
                               double divisor, double *log_s, double *log_s_lam,
                               absgd_report reports[2], double *factor, void *stream) {
    ABSGD_REQUIRE(accumulation && lam && rule && log_s && log_s_lam && reports && factor,
                  ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(n_rows >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(absgd_is_rule(rule) && divisor > 0.0 && isfinite(divisor),
                  ABSGD_INVALID_HYPERPARAMETER);
    return launch(settle_kernel, {1, WARP}, stream, accumulation, rows, rows ? n_rows : 0, lam,
                  *rule, divisor, log_s, log_s_lam, reports, factor);
}
