/* Per-sample weights: the sums of a batch, and p_i = exp(L_i/λ − log_s).
 *
 * Whatever the dtype, z = L/λ and its exponential are computed in double: z reaches the thousands
 * (L = 100, λ = 0.05), where a float's rounding of z − log_s would show in the fourth digit of p.
 * Batches are small beside the logits that they came from; weights_large.c has those that are not.
 */
#include "absgd_math.h"
#include "exp.h"
#include "kernels.h"
#include "load.h"

ABSGD_INLINE void stats_of(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                           const void *weight, int64_t n, double lam, absgd_stats *stats) {
    const absgd_inverse inverse = absgd_inverse_of(lam);
    const double never = absgd_is_valid_lam(lam) ? 0.0 : NAN;
    double count = 0.0, finite = 0.0, max = -INFINITY;
    ABSGD_SIMD_WITH(reduction(+ : count, finite) reduction(max : max))
    for (int64_t i = 0; i < n; i++) {
        int counts = !mask || mask[i];
        double w = absgd_load_weight(dtype, weight, i, counts);
        double loss = absgd_load(dtype, losses, i);
        double z = absgd_scaled_loss(loss, inverse);
        int is_finite = (loss + z + never) - (loss + z + never) == 0.0;
        is_finite &= w - w == 0.0 && w >= 0.0;
        count += counts ? 1.0 : 0.0;
        finite += counts && is_finite ? 1.0 : 0.0;
        max = w > 0.0 && z > max ? z : max;
    }
    double sum_weight = 0.0, sum = 0.0, sum_sq = 0.0, sum_loss = 0.0, sum_weighted = 0.0;
    double sum_abs_loss = 0.0, sum_abs_weighted = 0.0;
    ABSGD_SIMD_WITH(reduction(+ : sum_weight, sum, sum_sq, sum_loss, sum_weighted, sum_abs_loss,
                              sum_abs_weighted))
    for (int64_t i = 0; i < n; i++) {
        int counts = !mask || mask[i];
        double w = absgd_load_weight(dtype, weight, i, counts);
        double loss = counts ? absgd_load(dtype, losses, i) : 0.0;
        double e = absgd_exp_f64(absgd_scaled_loss(loss, inverse) - max);
        e = w > 0.0 ? e : 0.0;
        double weighted_loss = w * (loss * (1.0 / ABSGD_LOSS_UNIT));
        sum_weight += w;
        sum += w * e;
        sum_sq += w * (e * e);
        sum_loss += weighted_loss;
        sum_weighted += e * weighted_loss;
        sum_abs_loss += fabs(weighted_loss);
        sum_abs_weighted += e * fabs(weighted_loss);
    }
    if (sum_weight == 0.0) max = -INFINITY; /* OpenMP lets it begin from the least finite number */
    *stats = (absgd_stats){count,  count - finite, sum_weight,   max,          sum,
                           sum_sq, sum_loss,       sum_weighted, sum_abs_loss, sum_abs_weighted};
}

ABSGD_INLINE void weights_of(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                             const void *weight, int64_t n, double lam, absgd_weigher weigher,
                             void *weights, void *coefficients, double *capped) {
    const absgd_inverse inverse = absgd_inverse_of(lam);
    const double log_s = weigher.log_s, cap = weigher.cap, scale = weigher.scale;
    const int is_bad = log_s != log_s && scale != scale; /* not merely an unset log_s */
    double above = 0.0;
    ABSGD_SIMD_WITH(reduction(+ : above))
    for (int64_t i = 0; i < n; i++) {
        int counts = !mask || mask[i];
        double w = absgd_load_weight(dtype, weight, i, counts);
        double p = absgd_exp_f64(absgd_scaled_loss(absgd_load(dtype, losses, i), inverse) - log_s);
        p = counts && (w > 0.0 || is_bad) ? p : 0.0;
        above += p > cap ? 1.0 : 0.0;
        p = p > cap ? cap : p;
        absgd_store_arithmetic(dtype, weights, i, p);
        absgd_store_arithmetic(dtype, coefficients, i, p * scale * w);
    }
    *capped = above;
}

void ABSGD_KERNEL(absgd_batch_stats)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                     const void *weight, int64_t n, double lam,
                                     absgd_stats *stats) {
    ABSGD_EACH_DTYPE(stats_of, dtype, losses, mask, weight, n, lam, stats)
}

void ABSGD_KERNEL(absgd_weights)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                 const void *weight, int64_t n, double lam, absgd_weigher weigher,
                                 void *weights, void *coefficients, double *capped) {
    ABSGD_EACH_DTYPE(weights_of, dtype, losses, mask, weight, n, lam, weigher, weights,
                     coefficients, capped)
}
