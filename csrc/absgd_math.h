/* The formulas of ABSGD that the CPU and the CUDA kernels share: compiled by gcc, g++ and nvcc. */
#ifndef ABSGD_MATH_H
#define ABSGD_MATH_H

#include "absgd.h"

#include <math.h>

#ifdef __CUDACC__
#define ABSGD_FN static inline __host__ __device__
#else
#define ABSGD_FN static inline
#endif

ABSGD_FN int absgd_is_valid_lam(double lam) { return lam == lam && lam != 0.0; }

/* z_i = L_i/λ, by 1/λ: a product, where there are many losses. 0 at λ = ±∞, where even an infinite
 * loss has weight 1. */
ABSGD_FN double absgd_scaled_loss(double loss, double inverse_lam) {
    return inverse_lam == 0.0 ? 0.0 : loss * inverse_lam;
}

ABSGD_FN absgd_stats absgd_empty_stats(void) {
    absgd_stats empty = {0.0, 0.0, -INFINITY, 0.0, 0.0, 0.0, 0.0};
    return empty;
}

ABSGD_FN absgd_stats absgd_join_stats(absgd_stats a, absgd_stats b) {
    if (a.count == 0.0) return b;
    if (b.count == 0.0) return a;
    absgd_stats whole;
    whole.count = a.count + b.count;
    whole.nonfinite = a.nonfinite + b.nonfinite;
    whole.max = fmax(a.max, b.max);
    double shrink_a = exp(a.max - whole.max);
    double shrink_b = exp(b.max - whole.max);
    whole.sum = shrink_a * a.sum + shrink_b * b.sum;
    whole.sum_sq = shrink_a * shrink_a * a.sum_sq + shrink_b * shrink_b * b.sum_sq;
    whole.sum_loss = a.sum_loss + b.sum_loss;
    whole.sum_weighted = shrink_a * a.sum_weighted + shrink_b * b.sum_weighted;
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
    double old = *log_s_lam;
    if (!absgd_is_valid_lam(lam) || lam == old) return;
    *log_s_lam = lam;
    if (isinf(lam)) return;
    if (isinf(old) || old * lam < 0.0 || !absgd_is_valid_lam(old)) {
        *log_s = absgd_initial_log_s(s_init);
    } else {
        *log_s *= old / lam;
    }
}

ABSGD_FN void absgd_update(const absgd_stats *batch, double lam, double gamma, double alpha,
                           double s_init, double *log_s, double *log_s_lam) {
    if (batch->count == 0.0 || batch->nonfinite != 0.0) return;
    absgd_carry(lam, s_init, log_s, log_s_lam);
    if (isinf(lam)) return;
    double log_mean = batch->max + log(batch->sum) - log(batch->count); /* ℓ */
    double now = log(alpha) + log_mean;
    *log_s = *log_s == *log_s ? absgd_logaddexp(log1p(-gamma) + *log_s, log(gamma) + now) : now;
}

/* What turns z_i into a weight, p_i = exp(z_i − log_s), and p_i into a coefficient, scale·p_i. */
typedef struct absgd_weigher {
    double log_s, scale;
} absgd_weigher;

ABSGD_FN absgd_weigher absgd_weigher_of(const absgd_stats *batch, double lam, double log_s,
                                        double factor) {
    absgd_weigher w;
    w.log_s = isinf(lam) ? 0.0 : batch->nonfinite != 0.0 ? NAN : log_s;
    w.scale = batch->count == 0.0 ? 0.0 : factor / batch->count;
    return w;
}

ABSGD_FN void absgd_report_of(const absgd_stats *batch, double lam, double log_s,
                              absgd_report reports[2]) {
    if (batch->count == 0.0) return;
    int plain = isinf(lam);
    double max_weight = plain ? 1.0 : exp(batch->max - log_s);
    absgd_report now;
    now.count = batch->count;
    now.mean_loss = batch->sum_loss / batch->count;
    now.weighted_loss = max_weight * batch->sum_weighted / batch->count;
    now.objective = plain ? now.mean_loss : lam * log_s;
    now.max_weight = max_weight;
    now.effective_samples = batch->sum * batch->sum / batch->sum_sq;
    now.batches = 1.0;
    reports[0] = now;
    if (batch->nonfinite != 0.0) return;
    absgd_report *mean = &reports[1];
    if (mean->count != mean->count) {
        *mean = now;
        return;
    }
    const double rate = ABSGD_REPORT_RATE;
    mean->count += rate * (now.count - mean->count);
    mean->mean_loss += rate * (now.mean_loss - mean->mean_loss);
    mean->weighted_loss += rate * (now.weighted_loss - mean->weighted_loss);
    mean->objective += rate * (now.objective - mean->objective);
    mean->max_weight += rate * (now.max_weight - mean->max_weight);
    mean->effective_samples += rate * (now.effective_samples - mean->effective_samples);
    mean->batches += 1.0;
}

ABSGD_FN double absgd_accumulate_batch(const absgd_stats *batch, double lam, double alpha,
                                       double s_init, double log_s, double log_s_lam,
                                       absgd_accumulation *acc) {
    if (batch->count == 0.0) return 1.0;
    const int first = acc->whole.count == 0.0;
    acc->whole = first ? *batch : absgd_join_stats(acc->whole, *batch);
    if (first) {
        absgd_carry(lam, s_init, &log_s, &log_s_lam);
        double own = log(alpha) + batch->max + log(batch->sum) - log(batch->count);
        acc->reference_count = batch->count;
        acc->log_c = isinf(lam) ? 0.0 : isinf(log_s) || log_s != log_s ? own : log_s;
    }
    if (isinf(lam) || !(batch->max - acc->log_c > ABSGD_PROVISIONAL_LIMIT)) return 1.0;
    double shrink = exp(acc->log_c - batch->max);
    acc->log_c = batch->max;
    return first ? 1.0 : shrink;
}

ABSGD_FN double absgd_settle_batch(absgd_accumulation *acc, double lam, double gamma, double alpha,
                                   double s_init, double divisor, double *log_s,
                                   double *log_s_lam) {
    const absgd_accumulation was = *acc;
    if (was.whole.count == 0.0) return 1.0;
    acc->whole.count = 0.0;
    absgd_update(&was.whole, lam, gamma, alpha, s_init, log_s, log_s_lam);
    double share = divisor * was.reference_count / was.whole.count;
    return isinf(lam) ? share : share * exp(was.log_c - *log_s);
}

/* What g is multiplied by first. */
ABSGD_FN double absgd_grad_factor(int maximize, double grad_scale) {
    return (maximize ? -1.0 : 1.0) / grad_scale;
}

/* One element of the momentum step; w, g and v in the arithmetic type T. has_momentum and fresh
 * as in absgd_tensor, the rest as in absgd_sgd_options, converted to T. */
#define ABSGD_DEFINE_STEP(T, name)                                                                 \
    typedef struct name##_constants {                                                              \
        T lr, momentum, one_minus_dampening, weight_decay, grad_factor;                            \
        int nesterov, polyak;                                                                      \
    } name##_constants;                                                                            \
                                                                                                   \
    ABSGD_FN name##_constants name##_prepare(const absgd_sgd_options *o) {                         \
        name##_constants k;                                                                        \
        k.lr = (T)o->lr;                                                                           \
        k.momentum = (T)o->momentum;                                                               \
        k.one_minus_dampening = (T)(1.0 - o->dampening);                                           \
        k.weight_decay = (T)o->weight_decay;                                                       \
        k.grad_factor = (T)absgd_grad_factor(o->maximize, o->grad_scale);                          \
        k.nesterov = o->nesterov;                                                                  \
        k.polyak = o->polyak;                                                                      \
        return k;                                                                                  \
    }                                                                                              \
                                                                                                   \
    ABSGD_FN T name(T w, T g, T *v, int has_momentum, int fresh, name##_constants k) {             \
        g = k.grad_factor * g + k.weight_decay * w;                                                \
        if (!has_momentum) return w - k.lr * g;                                                    \
        if (k.polyak) {                                                                            \
            *v = fresh ? -k.lr * g : k.momentum * *v - k.lr * g;                                   \
            return w + *v;                                                                         \
        }                                                                                          \
        *v = fresh ? g : k.momentum * *v + k.one_minus_dampening * g;                              \
        return w - k.lr * (k.nesterov ? g + k.momentum * *v : *v);                                 \
    }

ABSGD_DEFINE_STEP(float, absgd_step_f32)
ABSGD_DEFINE_STEP(double, absgd_step_f64)

#endif
