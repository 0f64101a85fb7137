/* The public functions of absgd.h: each checks its arguments, then calls the kernel of the best
 * level that the processor has. */
#include "absgd_math.h"
#include "checks.h"
#include "kernels.h"
#include "lam_search_math.h"

#include <stdlib.h>

#if !ABSGD_ONE_LEVEL
/* Processors that have these have the rest of x86-64-v3 (v4) as well; clang before 18 knows no
 * such names as "x86-64-v4". */
static int has_v3(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("fma");
}

static int has_v4(void) {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512cd");
}

/* The environment variable ABSGD_CPU_LEVEL (2, 3 or 4) lowers the level, for tests and benchmarks.
 * Threads that race here write the same value. */
static int cpu_level(void) {
    static int cached = 0;
    int level = __atomic_load_n(&cached, __ATOMIC_RELAXED);
    if (level) return level;
    __builtin_cpu_init();
    level = has_v4() ? 4 : has_v3() ? 3 : 2;
    const char *wanted = getenv("ABSGD_CPU_LEVEL");
    if (wanted && wanted[0] >= '2' && wanted[0] - '0' < level && !wanted[1])
        level = wanted[0] - '0';
    __atomic_store_n(&cached, level, __ATOMIC_RELAXED);
    return level;
}

#define CALL(name, ...)                                                                            \
    switch (cpu_level()) {                                                                         \
        case 4: name##_v4(__VA_ARGS__); break;                                                     \
        case 3: name##_v3(__VA_ARGS__); break;                                                     \
        default: name##_v2(__VA_ARGS__); break;                                                    \
    }
#else
static int cpu_level(void) { return 1; }

#define CALL(name, ...) name##_v1(__VA_ARGS__)
#endif

int32_t absgd_cpu_level(void) { return cpu_level(); }

/* Whether weights_large.c may do it. For weights it is asked of the whole batch's count, so that a
 * split changes no bit of them. */
static int is_large(absgd_dtype dtype, double count, double lam) {
    const double size = fabs(lam);
    return dtype != ABSGD_FLOAT64 && count >= ABSGD_LARGE && 1e-30 < size && size < 1e30;
}

/* The same of a round of the search, where the target is not so near to equal weights that it is
 * lost in a float's digits. */
static int is_large_round(absgd_dtype dtype, int64_t n, const absgd_lam_rule *rule,
                          const absgd_lam_search *search) {
    return is_large(dtype, (double)n, exp(search->u)) && absgd_lam_goal(rule) > 0.05 &&
           (search->round == 0.0 || (search->has_answer != 0.0 && fabs(search->max) < 1e12));
}

/* No sample is bad, and no exponential overflows. */
static int is_ordinary(const absgd_stats *stats, absgd_weigher weigher) {
    return !absgd_is_bad(stats) && fabs(weigher.log_s) < 1e6 && stats->max - weigher.log_s < 80.0;
}

absgd_status absgd_batch_stats(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                               const void *weight, int64_t n, const double *lam,
                               absgd_stats *stats) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(lam && stats && (losses || n == 0), ABSGD_NULL_POINTER);
    if (is_large(dtype, (double)n, *lam)) {
        int is_done = 0;
        CALL(is_done = absgd_batch_stats_large, dtype, losses, mask, weight, n, *lam, stats);
        if (is_done) return ABSGD_OK;
    }
    CALL(absgd_batch_stats, dtype, losses, mask, weight, n, *lam, stats);
    return ABSGD_OK;
}

absgd_status absgd_combine_stats(const absgd_stats *rows, int64_t n_rows, absgd_stats *stats) {
    ABSGD_REQUIRE(n_rows >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(stats && (rows || n_rows == 0), ABSGD_NULL_POINTER);
    absgd_stats whole = absgd_empty_stats();
    for (int64_t i = 0; i < n_rows; i++) whole = absgd_join_stats(whole, rows[i]);
    *stats = whole;
    return ABSGD_OK;
}

absgd_status absgd_carry_log_s(const double *lam, const absgd_rule *rule, double *log_s,
                               double *log_s_lam) {
    ABSGD_REQUIRE(lam && rule && log_s && log_s_lam, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    absgd_carry(*lam, rule->s_init, log_s, log_s_lam);
    return ABSGD_OK;
}

absgd_status absgd_update_log_s(const absgd_stats *stats, const double *lam, const absgd_rule *rule,
                                double *log_s, double *log_s_lam) {
    ABSGD_REQUIRE(stats && lam && rule && log_s && log_s_lam, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    absgd_update(stats, *lam, rule, log_s, log_s_lam);
    return ABSGD_OK;
}

absgd_status absgd_weights(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                           const void *weight, int64_t n, const double *lam, const absgd_rule *rule,
                           const double *log_s, const absgd_stats *stats, double factor,
                           void *weights, void *coefficients, double *capped) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(lam && rule && log_s && stats, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE((losses && weights && coefficients) || n == 0, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    const absgd_weigher weigher =
        absgd_weigher_of(stats, *lam, rule, *log_s, factor, weight != NULL);
    double above;
    if (is_large(dtype, stats->count, *lam) && is_ordinary(stats, weigher)) {
        CALL(absgd_weights_large, dtype, losses, mask, weight, n, *lam, weigher, weights,
             coefficients, &above);
    } else {
        CALL(absgd_weights, dtype, losses, mask, weight, n, *lam, weigher, weights, coefficients,
             &above);
    }
    if (capped) *capped = above;
    return ABSGD_OK;
}

absgd_status absgd_observe(const absgd_stats *stats, const double *lam, const absgd_rule *rule,
                           const double *log_s, double capped, absgd_report reports[2]) {
    ABSGD_REQUIRE(stats && lam && rule && log_s && reports, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    absgd_report_of(stats, *lam, rule, *log_s, capped, reports);
    return ABSGD_OK;
}

absgd_status absgd_weigh(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                         const void *weight, int64_t n, const double *lam, const absgd_rule *rule,
                         double *log_s, double *log_s_lam, absgd_report reports[2], void *weights,
                         void *coefficients) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(lam && rule && log_s && log_s_lam, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE((losses && weights && coefficients) || n == 0, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    const int64_t loss_size = absgd_size_of(dtype);
    const int64_t weight_size = dtype == ABSGD_FLOAT64 ? sizeof(double) : sizeof(float);
    absgd_stats whole = absgd_empty_stats();
    for (int64_t i = 0; i < n; i += ABSGD_STATS_CHUNK) {
        const int64_t part = n - i < ABSGD_STATS_CHUNK ? n - i : ABSGD_STATS_CHUNK;
        absgd_stats row;
        absgd_batch_stats(dtype, (const char *)losses + i * loss_size, mask ? mask + i : NULL,
                          weight ? (const char *)weight + i * weight_size : NULL, part, lam, &row);
        whole = absgd_join_stats(whole, row);
    }
    absgd_update(&whole, *lam, rule, log_s, log_s_lam);
    double capped;
    absgd_weights(dtype, losses, mask, weight, n, lam, rule, log_s, &whole, 1.0, weights,
                  coefficients, &capped);
    const double share = capped == 0.0 ? 0.0 : capped / whole.count;
    if (reports) absgd_report_of(&whole, *lam, rule, *log_s, share, reports);
    return ABSGD_OK;
}

absgd_status absgd_accumulate(const absgd_stats *stats, const double *lam, const absgd_rule *rule,
                              const double *log_s, const double *log_s_lam,
                              absgd_accumulation *accumulation, double *shrink) {
    ABSGD_REQUIRE(stats && lam && rule && log_s && log_s_lam && accumulation && shrink,
                  ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    *shrink = absgd_accumulate_batch(stats, *lam, rule, *log_s, *log_s_lam, accumulation);
    return ABSGD_OK;
}

absgd_status absgd_settle(absgd_accumulation *accumulation, const double *lam,
                          const absgd_rule *rule, double divisor, double *log_s, double *log_s_lam,
                          double *factor) {
    ABSGD_REQUIRE(accumulation && lam && rule && log_s && log_s_lam && factor, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(rule) && divisor > 0.0 && isfinite(divisor),
                  ABSGD_INVALID_HYPERPARAMETER);
    *factor = absgd_settle_batch(accumulation, *lam, rule, divisor, log_s, log_s_lam);
    return ABSGD_OK;
}

absgd_status absgd_lam_sums(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                            const void *weight, int64_t n, const absgd_lam_rule *rule,
                            const absgd_lam_search *search, absgd_lam_row *row) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(rule && search && row && (losses || n == 0), ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_lam_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    if (is_large_round(dtype, n, rule, search)) {
        int is_done = 0;
        CALL(is_done = absgd_lam_sums_large, dtype, losses, mask, weight, n, rule->sign, search,
             row);
        if (is_done) return ABSGD_OK;
    }
    CALL(absgd_lam_sums, dtype, losses, mask, weight, n, rule->sign, search, row);
    return ABSGD_OK;
}

absgd_status absgd_lam_join(const absgd_lam_row *rows, int64_t n_rows, absgd_lam_row *row) {
    ABSGD_REQUIRE(n_rows >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(row && (rows || n_rows == 0), ABSGD_NULL_POINTER);
    absgd_lam_row whole = absgd_empty_lam_row();
    for (int64_t i = 0; i < n_rows; i++) whole = absgd_join_lam_rows(whole, rows[i]);
    *row = whole;
    return ABSGD_OK;
}

absgd_status absgd_lam_round(const absgd_lam_rule *rule, const absgd_lam_row *rows, int64_t n_rows,
                             absgd_lam_search *search) {
    ABSGD_REQUIRE(n_rows >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(rule && search && (rows || n_rows == 0), ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_lam_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    absgd_lam_row whole;
    absgd_lam_join(rows, n_rows, &whole);
    absgd_lam_advance(rule, whole, search);
    return ABSGD_OK;
}

absgd_status absgd_lam_update(const absgd_lam_rule *rule, const absgd_lam_search *search,
                              double *lam) {
    ABSGD_REQUIRE(rule && search && lam, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_lam_rule(rule), ABSGD_INVALID_HYPERPARAMETER);
    absgd_lam_follow(rule, search, lam);
    return ABSGD_OK;
}

/* Whether to ask for memory ahead. It saves Intel's processors a tenth of a step that no cache
 * holds; AMD's lose as much there, and a third within the cache; others were not measured. */
static int looks_ahead(absgd_dtype dtype, int64_t n) {
#if defined(__x86_64__) || defined(__i386__)
    enum { FAR = 1 << 24 }; /* bytes of three arrays */
    return n > FAR / 3 / absgd_size_of(dtype) && __builtin_cpu_is("intel");
#else
    (void)dtype, (void)n;
    return 0;
#endif
}

absgd_status absgd_sgd_step(absgd_dtype dtype, const absgd_tensor *tensors, int64_t n_tensors,
                            const absgd_sgd_options *options, int64_t begin, int64_t end) {
    absgd_status status = absgd_check_step(dtype, tensors, n_tensors, options);
    if (status != ABSGD_OK) return status;
    int64_t size = 0;
    for (int64_t i = 0; i < n_tensors; i++) size += tensors[i].numel;
    ABSGD_REQUIRE(0 <= begin && begin <= end && end <= size, ABSGD_INVALID_SIZE);
    CALL(absgd_sgd_step, dtype, tensors, options, looks_ahead(dtype, end - begin), begin, end);
    return ABSGD_OK;
}

static int is_nonnegative(absgd_dtype dtype, const void *values, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const double x = dtype == ABSGD_FLOAT64 ? ((const double *)values)[i]
                                                : (double)((const float *)values)[i];
        if (!(x >= 0.0)) return 0;
    }
    return 1;
}

static absgd_status check_softmax_loss(absgd_dtype dtype, const absgd_softmax_loss *o,
                                       const int64_t *target, const void *soft_target,
                                       int64_t begin, int64_t end) {
    absgd_status status = absgd_check_softmax_loss(dtype, o, target, soft_target, begin, end);
    if (status != ABSGD_OK) return status;
    if (begin < end && soft_target && o->margin) {
        ABSGD_REQUIRE(is_nonnegative(dtype, o->margin, o->classes), ABSGD_INVALID_HYPERPARAMETER);
    }
    for (int64_t i = begin; target && i < end; i++) {
        ABSGD_REQUIRE(target[i] == o->ignore_index || (0 <= target[i] && target[i] < o->classes),
                      ABSGD_TARGET_OUT_OF_RANGE);
    }
    return ABSGD_OK;
}

absgd_status absgd_softmax_loss_forward(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                        const void *logits, const int64_t *target,
                                        const void *soft_target, void *loss, void *saved,
                                        void *kept, int64_t begin, int64_t end) {
    ABSGD_REQUIRE(begin == end || (logits && loss && saved), ABSGD_NULL_POINTER);
    absgd_status status = check_softmax_loss(dtype, spec, target, soft_target, begin, end);
    if (status != ABSGD_OK) return status;
    CALL(absgd_softmax_loss_forward, dtype, spec, logits, target, soft_target, loss, saved, kept,
         begin, end);
    return ABSGD_OK;
}

absgd_status absgd_softmax_loss_backward(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                         const void *logits, const int64_t *target,
                                         const void *soft_target, const void *saved,
                                         const void *kept, const void *grad_loss, void *grad_logits,
                                         int64_t begin, int64_t end) {
    ABSGD_REQUIRE(begin == end || (logits && saved && grad_loss && grad_logits),
                  ABSGD_NULL_POINTER);
    absgd_status status = check_softmax_loss(dtype, spec, target, soft_target, begin, end);
    if (status != ABSGD_OK) return status;
    CALL(absgd_softmax_loss_backward, dtype, spec, logits, target, soft_target, saved, kept,
         grad_loss, grad_logits, begin, end);
    return ABSGD_OK;
}

absgd_status absgd_sigmoid_loss_forward(absgd_dtype dtype, const absgd_sigmoid_loss *spec,
                                        const void *logits, const void *target, void *loss,
                                        void *known, int64_t begin, int64_t end) {
    absgd_status status = absgd_check_sigmoid_loss(dtype, spec, begin, end);
    if (status != ABSGD_OK || begin == end) return status;
    const int has_elements = spec->classes > 0 && spec->inner > 0;
    ABSGD_REQUIRE(loss && (known || !spec->per_sample), ABSGD_NULL_POINTER);
    ABSGD_REQUIRE((logits && target) || !has_elements, ABSGD_NULL_POINTER);
    int fit = 1;
    CALL(fit = absgd_sigmoid_targets_fit, dtype, spec, target, begin, end);
    ABSGD_REQUIRE(fit, ABSGD_TARGET_OUT_OF_RANGE);
    CALL(absgd_sigmoid_loss_forward, dtype, spec, logits, target, loss, known, begin, end);
    return ABSGD_OK;
}

absgd_status absgd_sigmoid_loss_backward(absgd_dtype dtype, const absgd_sigmoid_loss *spec,
                                         const void *logits, const void *target, const void *known,
                                         const void *grad_loss, void *grad_logits, int64_t begin,
                                         int64_t end) {
    absgd_status status = absgd_check_sigmoid_loss(dtype, spec, begin, end);
    if (status != ABSGD_OK || begin == end) return status;
    const int has_elements = spec->classes > 0 && spec->inner > 0;
    ABSGD_REQUIRE(grad_loss && (known || !spec->per_sample), ABSGD_NULL_POINTER);
    ABSGD_REQUIRE((logits && target && grad_logits) || !has_elements, ABSGD_NULL_POINTER);
    CALL(absgd_sigmoid_loss_backward, dtype, spec, logits, target, known, grad_loss, grad_logits,
         begin, end);
    return ABSGD_OK;
}
