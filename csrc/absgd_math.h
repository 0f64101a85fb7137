/* The formulas of ABSGD that the CPU and the CUDA kernels share: compiled by gcc, g++ and nvcc. */
#ifndef ABSGD_MATH_H
#define ABSGD_MATH_H

#include "absgd.h"

#include <float.h>
#include <math.h>

#ifdef __CUDACC__
#define ABSGD_FN static inline __host__ __device__
#define ABSGD_FN_OF_LOOPS ABSGD_FN
#else
#define ABSGD_FN static inline
#define ABSGD_FN_OF_LOOPS                                                                          \
    static inline __attribute__((always_inline)) /* or loops do not vectorise */
#endif

ABSGD_FN int absgd_is_valid_lam(double lam) { return lam == lam && lam != 0.0; }

/* 1/λ = up·inverse: where λ is so small that 1/λ overflows, in two factors. */
typedef struct absgd_inverse {
    double up, inverse;
} absgd_inverse;

ABSGD_FN absgd_inverse absgd_inverse_of(double lam) {
    absgd_inverse of;
    of.up = fabs(lam) < 1e-300 ? 18446744073709551616.0 : 1.0; /* 2^64: exact */
    of.inverse = 1.0 / (lam * of.up);
    return of;
}

/* z_i = L_i/λ, by 1/λ: a product, where there are many losses. 0 at λ = ±∞, where even an infinite
 * loss has weight 1. */
ABSGD_FN double absgd_scaled_loss(double loss, absgd_inverse lam) {
    return lam.inverse == 0.0 ? 0.0 : loss * lam.up * lam.inverse;
}

ABSGD_FN absgd_stats absgd_empty_stats(void) {
    absgd_stats empty = {0.0, 0.0, 0.0, -INFINITY, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    return empty;
}

/* A batch that changes nothing, for its gradient is not to be trusted. */
ABSGD_FN int absgd_is_bad(const absgd_stats *batch) {
    return batch->nonfinite != 0.0 || isinf(batch->sum_weight);
}

/* A batch that changes nothing, for nothing in it has a weight. */
ABSGD_FN int absgd_is_empty(const absgd_stats *batch) {
    return batch->sum_weight == 0.0 && batch->nonfinite == 0.0;
}

/* exp(part − whole) for the maxima of a part and of the whole, both −∞ included. */
ABSGD_FN double absgd_shrink(double part, double whole) {
    return part == whole ? 1.0 : exp(part - whole);
}

ABSGD_FN absgd_stats absgd_join_stats(absgd_stats a, absgd_stats b) {
    if (a.count == 0.0) return b;
    if (b.count == 0.0) return a;
    absgd_stats whole;
    whole.count = a.count + b.count;
    whole.nonfinite = a.nonfinite + b.nonfinite;
    whole.sum_weight = a.sum_weight + b.sum_weight;
    whole.max = fmax(a.max, b.max);
    double shrink_a = absgd_shrink(a.max, whole.max);
    double shrink_b = absgd_shrink(b.max, whole.max);
    whole.sum = shrink_a * a.sum + shrink_b * b.sum;
    whole.sum_sq = shrink_a * shrink_a * a.sum_sq + shrink_b * shrink_b * b.sum_sq;
    whole.sum_loss = a.sum_loss + b.sum_loss;
    whole.sum_weighted = shrink_a * a.sum_weighted + shrink_b * b.sum_weighted;
    whole.sum_abs_loss = a.sum_abs_loss + b.sum_abs_loss;
    whole.sum_abs_weighted = shrink_a * a.sum_abs_weighted + shrink_b * b.sum_abs_weighted;
    return whole;
}

ABSGD_FN double absgd_logaddexp(double a, double b) {
    double larger = fmax(a, b);
    if (isinf(larger)) return larger; /* −∞ and −∞, which would be NaN below */
    return larger + log1p(exp(fmin(a, b) - larger));
}

/* log(s_init); NaN, "unset", without one. */
ABSGD_FN double absgd_initial_log_s(double s_init) { return s_init == s_init ? log(s_init) : NAN; }

ABSGD_FN void absgd_carry(double lam, double s_init, double *log_s, double *log_s_lam) {
    const double old = *log_s_lam, was = *log_s;
    if (!absgd_is_valid_lam(lam) || lam == old) return;
    *log_s_lam = lam;
    if (isinf(lam)) return;
    *log_s = absgd_initial_log_s(s_init);
    if (isinf(old) || !absgd_is_valid_lam(old) || (old < 0.0) != (lam < 0.0)) return;
    const double ratio = old / lam;
    const int is_normal = ratio >= DBL_MIN && !isinf(ratio); /* isnormal is no device function */
    const double carried = is_normal ? was * ratio : was * old / lam;
    if (isinf(was) || !isinf(carried)) *log_s = carried;
}

/* log α + ℓ, where a batch of its own would put log_s */
ABSGD_FN double absgd_own_log_s(const absgd_stats *batch, double alpha) {
    double log_mean = batch->max + log(batch->sum) - log(batch->sum_weight); /* ℓ */
    return log(alpha) + log_mean;
}

ABSGD_FN void absgd_update(const absgd_stats *batch, double lam, const absgd_rule *rule,
                           double *log_s, double *log_s_lam) {
    if (absgd_is_empty(batch) || absgd_is_bad(batch)) return;
    absgd_carry(lam, rule->s_init, log_s, log_s_lam);
    if (isinf(lam)) return;
    const double own = absgd_own_log_s(batch, rule->alpha), log_gamma = log(rule->gamma);
    *log_s =
        *log_s == *log_s ? absgd_logaddexp(log1p(-rule->gamma) + *log_s, log_gamma + own) : own;
    if (rule->bounded != 0.0) *log_s = fmin(*log_s, own - log_gamma);
}

/* log κ of keep_loss, κ = min(1, Σ w|L|/Σ w p|L|), from p without a cap. fmin takes NaN for 0. */
ABSGD_FN double absgd_log_kappa(const absgd_stats *batch, double lam, const absgd_rule *rule,
                                double log_s) {
    if (rule->keep_loss == 0.0 || isinf(lam) || !(batch->sum_abs_weighted > 0.0)) return 0.0;
    double log_weighted = log(batch->sum_abs_weighted) + (batch->max - log_s);
    return fmin(0.0, log(batch->sum_abs_loss) - log_weighted);
}

/* What turns z_i into a weight, min(exp(z_i − log_s), cap), and that into a coefficient, by scale
 * and w_i. */
typedef struct absgd_weigher {
    double log_s; /* less log κ; NaN for a bad batch */
    double cap, scale;
} absgd_weigher;

ABSGD_FN int absgd_has_cap(const absgd_rule *rule) {
    return rule->max_weight > 0.0 && !isinf(rule->max_weight);
}

/* has_weight: whether these samples have weights, which can make a batch bad whose losses are not
 * and so must show in the coefficients. */
ABSGD_FN absgd_weigher absgd_weigher_of(const absgd_stats *batch, double lam,
                                        const absgd_rule *rule, double log_s, double factor,
                                        int has_weight) {
    const int plain = isinf(lam), is_bad = absgd_is_bad(batch);
    absgd_weigher w;
    w.log_s = plain ? 0.0 : is_bad ? NAN : log_s - absgd_log_kappa(batch, lam, rule, log_s);
    w.cap = !plain && absgd_has_cap(rule) ? rule->max_weight : INFINITY;
    w.scale = batch->count == 0.0 ? 0.0 : factor / batch->count;
    if (has_weight && is_bad) w.scale = NAN;
    return w;
}

/* B·(Σwp)²/(Σw·Σwp²), at most B. Powers of 2 are put apart: of sums far from 1, and from each
 * other, squares and ratios overflow. */
ABSGD_FN double absgd_effective_samples(const absgd_stats *batch) {
    int of_sum, of_sum_sq, of_weight;
    const double sum = frexp(batch->sum, &of_sum), sum_sq = frexp(batch->sum_sq, &of_sum_sq);
    const double sum_weight = frexp(batch->sum_weight, &of_weight);
    return ldexp(sum * sum / sum_sq * (batch->count / sum_weight),
                 2 * of_sum - of_sum_sq - of_weight);
}

ABSGD_FN absgd_report absgd_batch_report(const absgd_stats *batch, double lam,
                                         const absgd_rule *rule, double log_s, double capped) {
    const int plain = isinf(lam);
    const double max_weight = plain ? 1.0 : exp(batch->max - log_s);
    absgd_report now;
    now.count = batch->count;
    now.mean_loss = batch->sum_loss / batch->count * ABSGD_LOSS_UNIT;
    /* 0·∞ where a w_i below 1e-300 carries the whole sum: a NaN would stay in the running mean */
    const double weighted = batch->sum_weighted == 0.0 ? 0.0 : max_weight * batch->sum_weighted;
    now.weighted_loss = weighted / batch->count * ABSGD_LOSS_UNIT;
    now.objective = plain ? batch->sum_loss / batch->sum_weight * ABSGD_LOSS_UNIT : lam * log_s;
    now.max_weight = max_weight;
    now.effective_samples = absgd_effective_samples(batch);
    now.batches = 1.0;
    now.kappa = exp(absgd_log_kappa(batch, lam, rule, log_s));
    now.capped = capped;
    return now;
}

/* mean + rate·(now − mean), where now − mean may overflow */
ABSGD_FN double absgd_running_mean(double mean, double now) {
    const double rate = ABSGD_REPORT_RATE, change = now - mean;
    return isinf(change) ? mean + (rate * now - rate * mean) : mean + rate * change;
}

ABSGD_FN void absgd_report_of(const absgd_stats *batch, double lam, const absgd_rule *rule,
                              double log_s, double capped, absgd_report reports[2]) {
    if (absgd_is_empty(batch)) return;
    const absgd_report now = absgd_batch_report(batch, lam, rule, log_s, capped);
    reports[0] = now;
    if (absgd_is_bad(batch)) return;
    absgd_report *mean = &reports[1];
    if (mean->count != mean->count) {
        *mean = now;
        return;
    }
    mean->count = absgd_running_mean(mean->count, now.count);
    mean->mean_loss = absgd_running_mean(mean->mean_loss, now.mean_loss);
    mean->weighted_loss = absgd_running_mean(mean->weighted_loss, now.weighted_loss);
    mean->objective = absgd_running_mean(mean->objective, now.objective);
    mean->max_weight = absgd_running_mean(mean->max_weight, now.max_weight);
    mean->effective_samples = absgd_running_mean(mean->effective_samples, now.effective_samples);
    mean->batches += 1.0;
    mean->kappa = absgd_running_mean(mean->kappa, now.kappa);
    mean->capped = absgd_running_mean(mean->capped, now.capped);
}

/* log_c of an accumulation that begins with this batch: log_s; the batch's own where that is unset,
 * or so high that coefficients would underflow. */
ABSGD_FN double absgd_first_log_c(const absgd_stats *batch, double lam, const absgd_rule *rule,
                                  double log_s, double log_s_lam) {
    if (isinf(lam)) return 0.0;
    absgd_carry(lam, rule->s_init, &log_s, &log_s_lam);
    const double own = absgd_own_log_s(batch, rule->alpha);
    const int is_unset = isinf(log_s) || log_s != log_s;
    return is_unset || log_s - own > ABSGD_PROVISIONAL_LIMIT ? own : log_s;
}

ABSGD_FN double absgd_accumulate_batch(const absgd_stats *batch, double lam, const absgd_rule *rule,
                                       double log_s, double log_s_lam, absgd_accumulation *acc) {
    if (batch->count == 0.0) return 1.0;
    const int first = absgd_is_empty(&acc->whole);
    acc->whole = absgd_join_stats(acc->whole, *batch);
    if (absgd_is_empty(batch)) return 1.0;
    if (first) {
        acc->log_c = absgd_first_log_c(batch, lam, rule, log_s, log_s_lam);
        acc->reference_count = batch->count;
    }
    const int is_high = batch->max - acc->log_c > ABSGD_PROVISIONAL_LIMIT;
    if (isinf(lam) || !is_high || absgd_has_cap(rule) || absgd_is_bad(batch)) return 1.0;
    const double shrink = exp(acc->log_c - batch->max);
    acc->log_c = batch->max;
    return first ? 1.0 : shrink;
}

ABSGD_FN double absgd_settle_batch(absgd_accumulation *acc, double lam, const absgd_rule *rule,
                                   double divisor, double *log_s, double *log_s_lam) {
    const absgd_accumulation was = *acc;
    const absgd_accumulation none = {
        {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}, 0.0, 0.0, 0.0};
    *acc = none;
    if (absgd_is_empty(&was.whole)) return 1.0;
    absgd_update(&was.whole, lam, rule, log_s, log_s_lam);
    const double share = was.reference_count / was.whole.count * divisor;
    if (isinf(lam)) return share;
    const double log_kappa = absgd_log_kappa(&was.whole, lam, rule, *log_s);
    const double exponent = was.log_c - *log_s + log_kappa;
    return share * exp(exponent > ABSGD_FACTOR_LIMIT ? ABSGD_FACTOR_LIMIT : exponent);
}

/* What a focal loss's u^γ is, a constant in each call. */
enum absgd_focus { ABSGD_NO_FOCUS, ABSGD_FOCUS_SQUARED, ABSGD_FOCUS }; /* γ = 0, γ = 2, any γ */

ABSGD_FN enum absgd_focus absgd_focus_at(double gamma) {
    return gamma == 0.0 ? ABSGD_NO_FOCUS : gamma == 2.0 ? ABSGD_FOCUS_SQUARED : ABSGD_FOCUS;
}

ABSGD_FN enum absgd_focus absgd_sigmoid_focus(const absgd_sigmoid_loss *spec) {
    if (spec->focal_gamma == 0.0 && spec->alpha >= 0.0) return ABSGD_FOCUS; /* for α alone */
    return absgd_focus_at(spec->focal_gamma);
}

/* What g is multiplied by first. */
ABSGD_FN double absgd_grad_factor(int maximize, double grad_scale) {
    return (maximize ? -1.0 : 1.0) / grad_scale;
}

#define STEP_REAL float
#define STEP(name) absgd_step_f32##name
#include "step_math.h"
#define STEP_REAL double
#define STEP(name) absgd_step_f64##name
#include "step_math.h"

#endif
