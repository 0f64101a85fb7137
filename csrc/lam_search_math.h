/* The search for the λ at which a batch's weights are as selective as asked for: shared by the CPU
 * and the CUDA kernels.
 *
 * With x_i = L_i (or −L_i for λ < 0), m = max x_i over w_i > 0, y_i = (x_i − m)/|λ|, q_i =
 * exp(y_i):
 *
 *   effective sample size   (Σwq)²/(Σw Σwq²)     = S0²/(W T0)         grows with |λ|
 *   KL radius               KL(wq/Σwq ‖ w/Σw)    = S1/S0 − log(S0/W)  falls with |λ|
 *
 * where W = Σ w, S_k = Σ w y^k exp y and T_k = Σ w y^k exp 2y. The divergence a, which is −log of
 * the former or the latter itself, falls with u = log|λ|; its derivative needs no further sums, so
 * that each round is one pass. Were the losses normal with variance V, a would be V/λ² or V/2λ²,
 * and log a linear in u: so the first round is where that meets the target, and Newton's steps are
 * those of log a. Where a step leaves the bracket, the end that it leaves by is tried, once; where
 * it does not halve the step before, the bracket is. */
#ifndef ABSGD_LAM_SEARCH_MATH_H
#define ABSGD_LAM_SEARCH_MATH_H

#include "absgd_math.h"

ABSGD_FN absgd_lam_row absgd_empty_lam_row(void) {
    absgd_lam_row empty = {0.0, 0.0, 0.0, -INFINITY, -INFINITY, 0.0, 0.0, 0.0, 0.0, 0.0};
    return empty;
}

ABSGD_FN absgd_lam_row absgd_join_lam_rows(absgd_lam_row a, absgd_lam_row b) {
    absgd_lam_row whole;
    whole.count = a.count + b.count;
    whole.nonfinite = a.nonfinite + b.nonfinite;
    whole.sum_weight = a.sum_weight + b.sum_weight;
    whole.max = fmax(a.max, b.max);
    whole.max_negated = fmax(a.max_negated, b.max_negated);
    whole.s0 = a.s0 + b.s0;
    whole.s1 = a.s1 + b.s1;
    whole.s2 = a.s2 + b.s2;
    whole.t0 = a.t0 + b.t0;
    whole.t1 = a.t1 + b.t1;
    return whole;
}

/* Where λ and 1/λ are finite. */
ABSGD_FN double absgd_lam_bound(double log_lam) {
    return log_lam < -700.0 ? -700.0 : log_lam > 700.0 ? 700.0 : log_lam;
}

/* a at the target. */
ABSGD_FN double absgd_lam_goal(const absgd_lam_rule *rule) {
    return rule->kind == ABSGD_LAM_KL_RADIUS ? rule->target : -log(rule->target);
}

/* a(u), and −a'(u). */
ABSGD_FN double absgd_lam_divergence(const absgd_lam_rule *rule, absgd_lam_row row, double *slope) {
    double mean = row.s1 / row.s0; /* E_q[y] */
    if (rule->kind == ABSGD_LAM_KL_RADIUS) {
        *slope = row.s2 / row.s0 - mean * mean; /* Var_q[y] */
        return mean - log(row.s0) + log(row.sum_weight);
    }
    *slope = 2.0 * row.t1 / row.t0 - 2.0 * mean;
    return log(row.t0) + log(row.sum_weight) - 2.0 * log(row.s0);
}

/* log|λ| at which normal losses of the batch's variance meet the target. The row holds Σ wx and Σ
 * wx² in s1 and s2, or 0 where they are not known; then, or where they cancel, a fourth of the
 * range stands for the deviation. */
ABSGD_FN double absgd_lam_guess(const absgd_lam_rule *rule, absgd_lam_row row, double spread) {
    double mean = row.s1 / row.sum_weight;
    double deviation = sqrt(row.s2 / row.sum_weight - mean * mean);
    if (!(deviation > 0.01 * spread && deviation < spread)) deviation = 0.25 * spread;
    double twice = rule->kind == ABSGD_LAM_KL_RADIUS ? 2.0 : 1.0;
    return log(deviation) - 0.5 * log(twice * absgd_lam_goal(rule));
}

ABSGD_FN void absgd_lam_begin(const absgd_lam_rule *rule, absgd_lam_row row,
                              absgd_lam_search *search) {
    double spread = row.max + row.max_negated;
    search->round = 1.0;
    search->max = row.max;
    search->has_answer =
        row.nonfinite == 0.0 && spread > 0.0 && !isinf(spread) && !isinf(row.sum_weight);
    search->low = absgd_lam_bound(log(spread) + log(rule->low));
    search->high = absgd_lam_bound(log(spread) + log(rule->high));
    search->step = search->high - search->low;
    search->u = fmin(fmax(absgd_lam_guess(rule, row, spread), search->low), search->high);
}

/* From the row of the whole batch at this round to the next round. */
ABSGD_FN void absgd_lam_advance(const absgd_lam_rule *rule, absgd_lam_row row,
                                absgd_lam_search *search) {
    if (search->round == 0.0) {
        absgd_lam_begin(rule, row, search);
        return;
    }
    if (search->low == search->high) return;
    double slope;
    const double goal = absgd_lam_goal(rule);
    const double divergence = absgd_lam_divergence(rule, row, &slope);
    if (divergence != divergence) search->has_answer = 0.0;
    if (search->has_answer == 0.0) return;
    const int is_flat = slope < 1e-6 * goal; /* as below all differences of losses */
    if (divergence > goal * (1.0 + 1e-12)) { /* λ* is larger */
        if (!(search->u < search->high)) {   /* beyond the upper bound, which is the answer */
            search->low = search->high;
            return;
        }
        search->low = search->u;
        search->is_low_tried = 1.0;
    } else {
        if (!(search->u > search->low) && search->is_low_tried == 0.0) {
            search->has_answer = 0.0; /* too many samples already, as where most are tied */
            return;
        }
        search->high = search->u;
        search->is_high_tried = 1.0;
    }
    const double newton = log(divergence / goal) * divergence / slope, next = search->u + newton;
    double u = 0.5 * (search->low + search->high);
    if (is_flat && search->is_low_tried == 0.0) { /* the target may be out of reach */
        u = search->low;
    } else if (fabs(newton) < 1e-5) { /* which squares: from here on, rounding errors */
        u = fmin(fmax(next, search->low), search->high);
        search->low = search->high = u;
    } else if (next <= search->low && search->is_low_tried == 0.0) {
        u = search->low;
    } else if (next >= search->high && search->is_high_tried == 0.0) {
        u = search->high;
    } else if (next > search->low && next < search->high &&
               fabs(newton) < 0.5 * fabs(search->step)) {
        u = next;
    }
    search->step = u - search->u;
    search->u = u;
}

/* λ ← λ^(1−rate)·λ*^rate; λ* itself where λ has no value of the wanted sign yet. */
ABSGD_FN void absgd_lam_follow(const absgd_lam_rule *rule, const absgd_lam_search *search,
                               double *lam) {
    if (search->has_answer == 0.0) return;
    double old = rule->sign * *lam;
    int follows = old > 0.0 && !isinf(old);
    double log_lam = follows ? log(old) + rule->rate * (search->u - log(old)) : search->u;
    *lam = rule->sign * exp(log_lam);
}

#endif
