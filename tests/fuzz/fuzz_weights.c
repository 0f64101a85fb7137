/* absgd_batch_stats, _combine_stats, _carry_log_s, _update_log_s, _weights, _observe and _weigh:
 * weigh is of the bits of the calls that it stands for, and each of these keeps its word. */
#include "batch.h"

static void check_stats(const batch *b, double lam, const absgd_stats *s) {
    double known = 0, bad = 0;
    for (int64_t i = 0; i < b->n; i++) {
        if (!counts(b, i)) continue;
        const double loss = element(b->dtype, b->losses, i), w = measure(b, i);
        known += 1;
        bad += !isfinite(loss) || !isfinite(w) || w < 0 || isnan(lam) || lam == 0;
    }
    INVARIANT(s->count == known);
    INVARIANT(s->nonfinite >= bad && s->nonfinite <= known); /* z may overflow where L does not */
    if (s->nonfinite != 0 || isinf(s->sum_weight)) return;
    INVARIANT(isfinite(s->sum) && isfinite(s->sum_sq));
    const double sums[] = {s->sum_loss, s->sum_weighted, s->sum_abs_loss, s->sum_abs_weighted};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) {
        INVARIANT(isfinite(sums[i]) || s->sum_weight > 9e18); /* 2^63 */
    }
    INVARIANT(s->sum_weight >= 0 && s->sum >= 0 && s->sum_sq >= 0);
    INVARIANT(s->sum_weight == 0 || (s->sum > 0 && s->sum_sq > 0 && isfinite(s->max)));
    INVARIANT(s->sum_weight > 9e18 || s->sum_abs_loss >= fabs(s->sum_loss) * (1 - 1e-9));
}

/* The row of the whole is that of its halves joined, up to rounding. */
static void check_halves(const batch *b, double lam, const absgd_stats *whole) {
    const int64_t half = b->n / 2;
    absgd_stats rows[2], joined;
    for (int i = 0; i < 2; i++) {
        const int64_t from = i * half, n = i ? b->n - half : half;
        const char *losses = (const char *)b->losses + (size_t)from * size_of(b->dtype);
        const char *weight = b->weight;
        if (weight) weight += (size_t)from * size_of(arithmetic(b->dtype));
        INVARIANT(absgd_batch_stats(b->dtype, losses, b->mask ? b->mask + from : NULL, weight, n,
                                    &lam, &rows[i]) == ABSGD_OK);
    }
    INVARIANT(absgd_combine_stats(rows, 2, &joined) == ABSGD_OK);
    INVARIANT(joined.count == whole->count && joined.nonfinite == whole->nonfinite);
    if (whole->nonfinite != 0 || isinf(whole->sum_weight)) return;
    INVARIANT(joined.max == whole->max);
    INVARIANT(fabs(joined.sum - whole->sum) <= 1e-9 * whole->sum + 1e-300);
    INVARIANT(fabs(joined.sum_weight - whole->sum_weight) <= 1e-9 * whole->sum_weight + 1e-300);
}

static void check_weights(const batch *b, double lam, const absgd_rule *rule,
                          const absgd_stats *stats, double log_s, const void *weights,
                          const void *coefficients) {
    const int is_bad = stats->nonfinite != 0 || isinf(stats->sum_weight);
    const int has_cap = rule->max_weight > 0 && rule->max_weight < 1e38 && !isinf(lam);
    for (int64_t i = 0; i < b->n; i++) {
        const double p = element(arithmetic(b->dtype), weights, i);
        const double c = element(arithmetic(b->dtype), coefficients, i);
        if (!counts(b, i)) INVARIANT(p == 0 && (c == 0 || (is_bad && b->weight)));
        if (is_bad || isnan(log_s)) continue;
        INVARIANT(p >= 0);
        if (measure(b, i) == 0) INVARIANT(p == 0);
        if (isinf(lam) && counts(b, i) && measure(b, i) > 0) INVARIANT(p == 1);
        if (has_cap) INVARIANT(p <= rule->max_weight * (1 + 1e-6));
    }
}

static void check_report(const absgd_stats *stats, const absgd_rule *rule,
                         const absgd_report *now) {
    INVARIANT(now->count == stats->count && now->batches == 1);
    INVARIANT(now->kappa >= 0 && now->kappa <= 1);
    INVARIANT(now->capped >= 0 && now->capped <= 1);
    INVARIANT(isfinite(now->mean_loss) || stats->sum_weight > stats->count);
    INVARIANT(now->max_weight >= 0);
    if (rule->gamma * rule->alpha > 1e-100 && stats->sum_weight < 1e100) {
        INVARIANT(!isnan(now->weighted_loss) && !isnan(now->objective));
    }
    INVARIANT(now->effective_samples >= 0);
    if (stats->sum_sq > 1e-290) {
        INVARIANT(now->effective_samples <= stats->count * (1 + 1e-9));
    }
}

enum { REPORTS = 2 * sizeof(absgd_report) / sizeof(double) };

static void call(input *in) {
    const batch b = take_batch(in);
    const double lam = take_double(in);
    const absgd_rule rule = take_rule(in);
    const double *lam_at = take_byte(in) < 252 ? &lam : NULL;
    const int64_t n = b.n;
    const absgd_dtype real = arithmetic(stored_as(b.dtype));
    void *weights = output(real, n), *coefficients = output(real, n);
    double *log_s = output(ABSGD_FLOAT64, 1), *log_s_lam = output(ABSGD_FLOAT64, 1);
    absgd_report *reports = allocate(2 * sizeof *reports, 1);
    *log_s = take_double(in);
    *log_s_lam = take_double(in);
    for (int i = 0; i < 2; i++) reports[i].count = i && take_flag(in) ? 4.0 : NAN;
    const double s0 = *log_s, lam0 = *log_s_lam;
    absgd_report split_reports[2];
    memcpy(split_reports, reports, sizeof split_reports);
    absgd_report *reports_at = take_byte(in) < 240 ? reports : NULL;

    remember();
    const absgd_status status =
        absgd_weigh(b.dtype, b.losses, b.mask, b.weight, b.given_n, lam_at, &rule, log_s, log_s_lam,
                    reports_at, weights, coefficients);
    const int is_right =
        is_dtype(b.dtype) && b.given_n == n && lam_at && (b.losses || n == 0) && is_rule(&rule);
    INVARIANT((status == ABSGD_OK) == is_right);
    if (status != ABSGD_OK) {
        INVARIANT(is_untouched());
        return;
    }

    /* the calls that it stands for */
    absgd_stats stats;
    double split_s = s0, split_lam = lam0, capped = -1;
    void *split_weights = output(real, n), *split_coefficients = output(real, n);
    INVARIANT(absgd_batch_stats(b.dtype, b.losses, b.mask, b.weight, n, &lam, &stats) == ABSGD_OK);
    INVARIANT(absgd_update_log_s(&stats, &lam, &rule, &split_s, &split_lam) == ABSGD_OK);
    INVARIANT(absgd_weights(b.dtype, b.losses, b.mask, b.weight, n, &lam, &rule, &split_s, &stats,
                            1.0, split_weights, split_coefficients, &capped) == ABSGD_OK);
    const double share = capped == 0 ? 0 : capped / stats.count;
    INVARIANT(absgd_observe(&stats, &lam, &rule, &split_s, share, split_reports) == ABSGD_OK);
    INVARIANT(same_bits(*log_s, split_s) && same_bits(*log_s_lam, split_lam));
    INVARIANT(same_values(real, weights, split_weights, 0, n));
    INVARIANT(same_values(real, coefficients, split_coefficients, 0, n));
    INVARIANT(!reports_at || same_values(ABSGD_FLOAT64, reports, split_reports, 0, REPORTS));

    if (n > 0) {
        check_stats(&b, lam, &stats);
        check_halves(&b, lam, &stats);
    }
    check_weights(&b, lam, &rule, &stats, *log_s, weights, coefficients);
    const int is_bad = stats.nonfinite != 0 || isinf(stats.sum_weight);
    if (is_bad || stats.sum_weight == 0) {
        INVARIANT(same_bits(*log_s, s0) && same_bits(*log_s_lam, lam0));
        return;
    }
    INVARIANT(*log_s_lam == lam);
    if (!isinf(lam) && !(s0 == INFINITY)) INVARIANT(isfinite(*log_s));
    if (reports_at && isfinite(*log_s)) check_report(&stats, &rule, &reports[0]);

    /* carried to another λ and back, the estimate of the objective stays */
    const double other = take_double(in);
    double carried = *log_s, at = lam;
    INVARIANT(absgd_carry_log_s(&other, &rule, &carried, &at) == ABSGD_OK);
    if (other == 0 || isnan(other)) INVARIANT(same_bits(carried, *log_s) && at == lam);
    if (isinf(other)) INVARIANT(same_bits(carried, *log_s) && at == other);
    const int is_moderate = fabs(lam) > 1e-100 && fabs(lam) < 1e50 && fabs(other) > 1e-100 &&
                            fabs(other) < 1e50 && fabs(*log_s) > 1e-100 && fabs(*log_s) < 1e50;
    if (is_moderate && other * lam > 0) {
        INVARIANT(fabs(carried * other - *log_s * lam) <= 1e-9 * fabs(*log_s * lam));
    }
}
