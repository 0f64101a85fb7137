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
    real log_total; /* log T */
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
    r.log_total = log_total;
    return r;
}

ABSGD_FN_OF_LOOPS REAL(result) REAL(soft)(real sum, real a_sum, real a_dot) {
    REAL(result) r;
    r.others = a_sum / sum;
    r.log_total = LOG1P(sum - 1);
    r.loss = a_dot + a_sum * r.log_total;
    r.at_target = 0;
    return r;
}

/* ---- the mean under a soft target of the classes' own losses ----
 *
 * Where these differ by more than z, by margins m_c = scale·margin_c or by γ, each class is a sum's
 * term of its own (class_loss_math.h), but for the largest of them, t: its 1 − P_t may be as small
 * as it likes, so that it is taken as a hard target is. max and sum are M and S of the classes
 * without t, all z being without margins. */
typedef struct REAL(top) {
    real z, q, margin; /* of t */
    real weight;       /* w_t(1−ε) */
    real share;        /* w_t·ε/C */
} REAL(top);

/* −log P_t */
ABSGD_FN_OF_LOOPS real REAL(top_nll)(real z_t, real max, real sum) {
    return LOG1P(sum * EXP(max - z_t));
}

/* loss_sum, slope_sum: Σ_c of the classes' terms, with q_t = 0; share_sum: Σ_c w_c·ε/C. The results
 * are for M, which is about as large as max and z_t − m_t; at_target is t's. */
ABSGD_FN_OF_LOOPS REAL(result)
    REAL(expected)(int is_focal, real M, real max, real sum, REAL(top) t, real gamma,
                   real share_sum, real loss_sum, real slope_sum) {
    const real nll = REAL(top_nll)(t.z, max, sum), above = t.z - M; /* z_t lies above M */
    const real rest = max - t.z, own = -t.margin, own_max = rest > own ? rest : own;
    REAL(result)
    r = REAL(hard)(is_focal, own_max, sum * EXP(rest - own_max), own, t.weight * t.q, gamma, 0, 0,
                   0);
    const real own_total = own_max + r.log_total; /* log Σ_c exp(z_c − z_t) with t's margin */
    const real h = EXP(-(above + nll)), p = EXP(-nll);
    const real own_h = EXP(-(above + own_total)), own_p = EXP(own - own_total);
    const real smooth = share_sum * t.q;
    r.loss += loss_sum + t.q * t.share * t.margin + smooth * (own_total - nll);
    r.others = r.others * EXP(-(above + own_max)) + h * slope_sum + smooth * (own_h - h);
    r.at_target += p * slope_sum - t.share + smooth * (own_p - p);
    r.log_total = above + nll;
    return r;
}

#undef EXP
#undef LOG
#undef LOG1P
