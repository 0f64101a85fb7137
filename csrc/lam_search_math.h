/* The search for the λ at which a batch's weights are as selective as asked for: shared by the CPU
 * and the CUDA kernels.
 *
 * With x_i = L_i (or −L_i for λ < 0), m = max x_i over w_i > 0, y_i = (x_i − m)/|λ|, q_i =
 * exp(y_i):
 *
 *   effective sample size   (Σwq)²/(Σw Σwq²)     = S0²/(W T0)         grows with |λ|
 *   KL radius               KL(wq/Σwq ‖ w/Σw)    = S1/S0 − log(S0/W)  falls with |λ|
 *
 * where W = Σ w, S_k = Σ w y^k exp y and T_k = Σ w y^k exp 2y. Both are functions of u = log|λ|
 * whose derivatives need no further sums, so that each round is one pass: Newton's step where it
 * stays inside the bracket and halves the step before, else a bisection. */
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

/* g(u), which grows with u and is 0 at the answer, and its derivative. */
ABSGD_FN double absgd_lam_excess(const absgd_lam_rule *rule, absgd_lam_row row, double *slope) {
    double mean = row.s1 / row.s0; /* E_q[y] */
    if (rule->kind == ABSGD_LAM_KL_RADIUS) {
        *slope = row.s2 / row.s0 - mean * mean; /* Var_q[y] */
        return rule->target - (mean - log(row.s0) + log(row.sum_weight));
    }
    *slope = 2.0 * row.t1 / row.t0 - 2.0 * mean;
    return 2.0 * log(row.s0) - log(row.t0) - log(row.sum_weight) - log(rule->target);
}

/* From the row of the whole batch at this round to the next round. */
ABSGD_FN void absgd_lam_advance(const absgd_lam_rule *rule, absgd_lam_row row,
                                absgd_lam_search *search) {
    const double round = search->round;
    search->round = round + 1.0;
    if (round == 0.0) {
        double spread = row.max + row.max_negated;
        search->max = row.max;
        search->has_answer =
            row.nonfinite == 0.0 && spread > 0.0 && !isinf(spread) && !isinf(row.sum_weight);
        search->low = absgd_lam_bound(log(spread) + log(rule->low));
        search->high = absgd_lam_bound(log(spread) + log(rule->high));
        search->u = search->low;
        return;
    }
    if (search->has_answer == 0.0) return;
    double slope;
    double excess = absgd_lam_excess(rule, row, &slope);
    if (round == 1.0) { /* at the lower bound: too many samples already, as where most are tied */
        if (!(excess < 0.0)) search->has_answer = 0.0;
        search->u = search->high;
        return;
    }
    if (round == 2.0) { /* at the upper bound: the answer, if λ* is beyond it */
        search->step = search->high - search->low;
        search->u = excess < 0.0 ? search->high : 0.5 * (search->low + search->high);
        if (excess < 0.0) search->low = search->high;
        return;
    }
    if (search->low == search->high) return;
    if (excess < 0.0) {
        search->low = search->u;
    } else {
        search->high = search->u;
    }
    double newton = -excess / slope;
    double bisection = 0.5 * (search->low + search->high) - search->u;
    int has_converged = fabs(newton) < 1e-12; /* of u = log|λ|: from here on, rounding errors */
    int is_inside = search->u + newton > search->low && search->u + newton < search->high;
    int is_faster = fabs(newton) < 0.5 * fabs(search->step);
    search->step = has_converged || (is_inside && is_faster) ? newton : bisection;
    search->u += search->step;
    if (has_converged) search->low = search->high = search->u;
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
