/* One element's sigmoid loss and its slope in the logit. The CPU and the CUDA kernels share it,
 * compiled by gcc and nvcc: included after absgd_math.h, once for each arithmetic type `real`, with
 * names REAL() and functions EXP, LOG and LOG1P, which are undefined at the end. EXP is called for
 * arguments ≤ 0, LOG and LOG1P in [0, 1], where LOG need not be right at 0; all hand NaN on.
 *
 * With q the (smoothed) target, n = 1 − q, P = σ(x), e = exp(−|x|), "agreeing" that one of q and n
 * on whose side the logit is, and a and b the agreeing and the other one of pos_weight·q and n:
 *
 *   D = −pos_weight·q·log P − n·log(1−P) = (a + b)·log(1+e) + b·|x|
 *   ∂D/∂x = sign(x)·(b − a·e)/(1+e)
 *   u = 1 − P_t = q(1−P) + nP = (agreeing·e + disagreeing)/(1+e),  ∂u/∂x = (n − q)·e/(1+e)²
 *
 * D and u are sums of terms ≥ 0, so that nothing cancels, however far out the logit is. The loss is
 *
 *   L = weight·(α₁q + α₀n)·u^γ·D
 *   ∂L/∂x = weight·(α₁q + α₀n)·u^γ·(∂D/∂x + γ·(∂u/∂x)/u·D),   |∂u/∂x| ≤ u
 *
 * and where e underflows to 0 in u, log u = −|x| − log(1+e) still holds it. A target that roundings
 * have put outside [0, 1] (ABSGD_TARGET_SLACK) has a disagreeing part below 0, taken for 0 in log
 * u. */
typedef struct REAL(element_result) {
    real loss, slope;
} REAL(element_result);

/* n: 1 − q, given so that it has its own digits. */
ABSGD_FN_OF_LOOPS REAL(element_result)
    REAL(element)(int focus, real x, real q, real n, real weight, real pos_weight, real alpha_1,
                  real alpha_0, real gamma) {
    real far = x < 0 ? -x : x;
    real e = EXP(-far), log_1_e = LOG1P(e), near_1 = 1 / (1 + e), near_0 = e * near_1;
    real q_1 = pos_weight * q, a = x < 0 ? n : q_1, b = x < 0 ? q_1 : n;
    real d = (a + b) * log_1_e + b * far;
    real up = (b - a * e) * near_1, d_slope = x < 0 ? -up : up;
    REAL(element_result) r;
    if (focus == ABSGD_NO_FOCUS) {
        r.loss = weight * d;
        r.slope = weight * d_slope;
        return r;
    }
    real agreeing = x < 0 ? n : q, disagreeing = x < 0 ? q : n;
    real above = agreeing * e + disagreeing; /* u·(1+e) */
    real factor = weight * (alpha_1 * q + alpha_0 * n);
    if (focus == ABSGD_FOCUS_SQUARED) {
        real u = above * near_1, u_slope = (n - q) * near_0 * near_1;
        r.loss = factor * u * u * d;
        r.slope = factor * u * (u * d_slope + 2 * u_slope * d);
        return r;
    }
    real log_above = disagreeing <= 0 ? -far : LOG(above);
    real power = EXP(gamma * (log_above - log_1_e));
    real u_slope = (n - q) * (disagreeing <= 0 ? near_1 : near_0 / above); /* over u */
    r.loss = factor * power * d;
    r.slope = factor * power * (d_slope + gamma * u_slope * d);
    return r;
}

#undef EXP
#undef LOG
#undef LOG1P
