/* One sample's softmax loss and its gradient, from the sums over its classes. The CPU and the CUDA
 * kernels share it: compiled by gcc and nvcc.
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
#ifndef ABSGD_SOFTMAX_LOSS_MATH_H
#define ABSGD_SOFTMAX_LOSS_MATH_H

#ifdef __CUDACC__
#define ABSGD_PER_SAMPLE static inline __host__ __device__
#else
#define ABSGD_PER_SAMPLE                                                                           \
    static inline __attribute__((always_inline)) /* or loops do not vectorise */
#endif

/* EXP is called for arguments ≤ 0, LOG in [0, 1] (below −700 at 0), LOG1P for ≥ 0 and for −1 (−∞
 * or NaN), where every class is masked by −∞ and the loss is NaN; all of them hand NaN on. max,
 * sum: M and S; a_sum, a_dot: Σ a_c and Σ a_c(M − z_c). */
#define ABSGD_DEFINE_SOFTMAX_LOSS(T, name, EXP, LOG, LOG1P)                                        \
    typedef struct name##_result {                                                                 \
        T loss, others, at_target;                                                                 \
    } name##_result;                                                                               \
                                                                                                   \
    /* weight: w_y(1−ε); a_y: the target's own a_c; is_focal: γ ≠ 0, a constant in each call */    \
    ABSGD_PER_SAMPLE name##_result name##_hard(int is_focal, T max, T sum, T z_y, T weight,        \
                                               T gamma, T a_y, T a_sum, T a_dot) {                 \
        T e_y = EXP(z_y - max);                                                                    \
        T total = sum + e_y; /* 0 only if every class is masked by −∞ */                           \
        T p = e_y / total, u = sum / total;                                                        \
        T log_total = LOG1P(z_y < max ? (sum - 1) + e_y : sum);                                    \
        T nll = max - z_y + log_total;                                                             \
        T p_nll = p == 0 ? 0 : p * nll;                                                            \
        T focal = is_focal ? EXP(gamma * LOG(u)) : 1;                                              \
        T slope = weight * focal * (gamma * p_nll + u); /* −∂/∂z_y of the first term */            \
        name##_result r;                                                                           \
        r.loss = weight * focal * nll + (a_dot + a_sum * log_total);                               \
        r.others = slope / (sum > 0 ? sum : 1) + a_sum / total;                                    \
        r.at_target = a_sum * p - a_y - slope;                                                     \
        return r;                                                                                  \
    }                                                                                              \
                                                                                                   \
    ABSGD_PER_SAMPLE name##_result name##_soft(T sum, T a_sum, T a_dot) {                          \
        name##_result r;                                                                           \
        r.others = a_sum / sum;                                                                    \
        r.loss = a_dot + a_sum * LOG1P(sum - 1);                                                   \
        r.at_target = 0;                                                                           \
        return r;                                                                                  \
    }

#endif
