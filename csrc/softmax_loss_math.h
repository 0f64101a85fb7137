/* One sample's softmax loss and its gradient, from the sums over its classes. The CPU and the CUDA
 * kernels share it, compiled by gcc and nvcc: included after absgd_math.h, once for each arithmetic
 * type `real`, with names REAL() and functions EXP, LOG and LOG1P, which are undefined at the end.
 * EXP is called for arguments ≤ 0, LOG in [0, 1] (below −700 at 0) and LOG1P for ≥ 0 and for −1 (−∞
 * or NaN), where every class is masked by −∞ and the loss is NaN; all hand NaN on.
 *
 * With M = max z_c, the sum over the classes other than the target, S = Σ_{c≠y} exp(z_c − M), and
 * T = S + exp(z_y − M):
 *
 *   P_y = exp(z_y − M)/T,   1 − P_y = S/T,   −log P_y = M − z_y + log T
 *
 * lose no digit to cancellation, however close P_y is to 0 or to 1: the target is never added to S
 * and taken away again, and log T is log1p(S) where the target is the largest. Each loss is
 *
 *   L = w_y(1−ε)·u^γ·(−log P_y) + Σ_c a_c·(−log P_c),   u = 1 − P_y,   a_c = weight_c·ε/C
 *   ∂L/∂z_c = others·exp(z_c − M) − a_c  for c ≠ y,     ∂L/∂z_y = at_target
 *
 * and with a soft target the first term is absent, a_c = weight_c·((1−ε)·q_c + ε/C), and every
 * class is one of the others. */
typedef struct REAL(result) {
    real loss, others, at_target;
} REAL(result);

/* max, sum: M and S; a_sum, a_dot: Σ a_c and Σ a_c(M − z_c); weight: w_y(1−ε); a_y: the target's
 * own a_c; is_focal: γ ≠ 0, a constant in each call */
ABSGD_FN_OF_LOOPS REAL(result) REAL(hard)(int is_focal, real max, real sum, real z_y, real weight,
                                          real gamma, real a_y, real a_sum, real a_dot) {
    real e_y = EXP(z_y - max);
    real total = sum + e_y; /* 0 only if every class is masked by −∞ */
    real p = e_y / total, u = sum / total;
    real log_total = LOG1P(z_y < max ? (sum - 1) + e_y : sum);
    real nll = max - z_y + log_total;
    real p_nll = p == 0 ? 0 : p * nll;
    real focal = is_focal ? EXP(gamma * LOG(u)) : 1;
    real slope = weight * focal * (gamma * p_nll + u); /* −∂/∂z_y of the first term */
    REAL(result) r;
    r.loss = weight * focal * nll + (a_dot + a_sum * log_total);
    r.others = slope / (sum > 0 ? sum : 1) + a_sum / total;
    r.at_target = a_sum * p - a_y - slope;
    return r;
}

ABSGD_FN_OF_LOOPS REAL(result) REAL(soft)(real sum, real a_sum, real a_dot) {
    REAL(result) r;
    r.others = a_sum / sum;
    r.loss = a_dot + a_sum * LOG1P(sum - 1);
    r.at_target = 0;
    return r;
}

#undef EXP
#undef LOG
#undef LOG1P
