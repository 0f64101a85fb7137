/* One class's part in the loss of a soft target under margins or γ ≠ 0. The CPU and the CUDA
 * kernels share it, compiled by gcc and nvcc: included after absgd_math.h, once for each arithmetic
 * type `real`, with names REAL() and functions EXP, called for arguments ≤ 0, and LOG, in (0, 1]
 * where no margin is negative; they are undefined at the end.
 *
 * L = Σ_y q_y·(loss of class y), where class y's margin m_y lowers z_y alone. With P = softmax(z)
 * without margins and k_y = exp(−m_y), that turns Σ_c exp(z_c) into D_y times itself,
 *
 *   D_y = 1 − P_y(1 − k_y),   and P_y, 1 − P_y into P_y k_y/D_y and u_y = (1 − P_y)/D_y
 *
 * so that one softmax serves all classes, and
 *
 *   L = Σ_y ( a_y u_y^γ·n_y + b_y(−log P_y + q_y m_y) + q_y B·log D_y ),   B = Σ_c b_c
 *   n_y = −log P_y + m_y + log D_y,   a_y = weight_y(1−ε)·q_y,   b_y = weight_y·ε/C
 *   ∂L/∂z_c = P_c·Σ_y r_y − r_c
 *   r_y = a_y u_y^γ/D_y·(1 + γ·k_y P_y n_y/(1 − P_y)) + b_y + q_y B·P_y(1 − k_y)/D_y
 *
 * 1 − P_y has all its digits while P_y is no larger than a half or so. One class may be: the caller
 * takes it apart, and here P is cut at ¾, so that nothing overflows. */
typedef struct REAL(class_spec) {
    real weight; /* weight_y(1−ε) */
    real share;  /* b_y */
    real margin; /* m_y */
    real lost;   /* 1 − k_y */
} REAL(class_spec);

typedef struct REAL(class_result) {
    real loss, slope; /* y's term of L; r_y */
} REAL(class_result);

/* nll: −log P; has_margin and focus (γ is 0, 2 or any) are constants in each call */
ABSGD_FN_OF_LOOPS REAL(class_result)
    REAL(class_loss)(int has_margin, int focus, REAL(class_spec) of, real q, real p, real nll,
                     real gamma, real share_sum) {
    p = p < (real)0.75 ? p : (real)0.75;
    const real a = of.weight * q, u = 1 - p;
    real rise = 1, log_total = 0, own_nll = nll, own_p = p, own_u = u; /* 1/D, log D */
    if (has_margin) {
        rise = 1 / (1 - p * of.lost);
        log_total = LOG(1 - p * of.lost);
        own_nll = nll + (of.margin + log_total);
        own_p = p - p * of.lost;
        own_u = u * rise;
    }
    real focal = 1;
    if (focus == ABSGD_FOCUS_SQUARED) focal = own_u * own_u;
    if (focus == ABSGD_FOCUS) focal = EXP(gamma * LOG(own_u));
    REAL(class_result) r;
    r.loss = a * focal * own_nll;
    r.slope = a * focal;
    if (focus != ABSGD_NO_FOCUS) r.slope *= 1 + gamma * own_p * own_nll / u;
    if (has_margin) r.slope *= rise;
    if (focus == ABSGD_NO_FOCUS) { /* else nothing is smoothed */
        const real smooth = share_sum * q;
        r.loss += of.share * (nll + q * of.margin) + smooth * log_total;
        r.slope += of.share + smooth * (p * of.lost * rise);
    }
    return r;
}

#undef EXP
#undef LOG
