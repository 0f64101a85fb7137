/* Per-sample weights: the sums of a batch, and p_i = exp(L_i/λ − log_s).
 *
 * Whatever the dtype, z = L/λ and its exponential are computed in double: z reaches the thousands
 * (L = 100, λ = 0.05), where a float's rounding of z − log_s would show in the fourth digit of p.
 * Batches are small beside the logits that they came from. */
#include "absgd_math.h"
#include "exp.h"
#include "half.h"
#include "kernels.h"

#define LOAD_PLAIN(x) (x)

#define DEFINE_WEIGHTS(S, A, load, suffix)                                                         \
    ABSGD_INLINE void stats_##suffix(const S *losses, const uint8_t *mask, int64_t n, double lam,  \
                                     absgd_stats *stats) {                                         \
        const double never = absgd_is_valid_lam(lam) ? 0.0 : NAN, inverse_lam = 1.0 / lam;         \
        double count = 0.0, finite = 0.0, max = -INFINITY;                                         \
        ABSGD_SIMD_WITH(reduction(+ : count, finite) reduction(max : max))                         \
        for (int64_t i = 0; i < n; i++) {                                                          \
            double loss = (double)load(losses[i]);                                                 \
            double z = absgd_scaled_loss(loss, inverse_lam);                                       \
            int counts = !mask || mask[i];                                                         \
            int is_finite = (loss + z + never) - (loss + z + never) == 0.0;                        \
            count += counts ? 1.0 : 0.0;                                                           \
            finite += counts && is_finite ? 1.0 : 0.0;                                             \
            max = counts && z > max ? z : max;                                                     \
        }                                                                                          \
        double sum = 0.0, sum_sq = 0.0, sum_loss = 0.0, sum_weighted = 0.0;                        \
        ABSGD_SIMD_WITH(reduction(+ : sum, sum_sq, sum_loss, sum_weighted))                        \
        for (int64_t i = 0; i < n; i++) {                                                          \
            int counts = !mask || mask[i];                                                         \
            double loss = counts ? (double)load(losses[i]) : 0.0;                                  \
            double e = absgd_exp_f64(absgd_scaled_loss(loss, inverse_lam) - max);                  \
            e = counts ? e : 0.0;                                                                  \
            sum += e;                                                                              \
            sum_sq += e * e;                                                                       \
            sum_loss += loss;                                                                      \
            sum_weighted += e * loss;                                                              \
        }                                                                                          \
        *stats = (absgd_stats){count, count - finite, max, sum, sum_sq, sum_loss, sum_weighted};   \
    }                                                                                              \
                                                                                                   \
    ABSGD_INLINE void weights_##suffix(const S *losses, const uint8_t *mask, int64_t n,            \
                                       double lam, double log_s, double scale, A *weights,         \
                                       A *coefficients) {                                          \
        const double inverse_lam = 1.0 / lam;                                                      \
        ABSGD_SIMD                                                                                 \
        for (int64_t i = 0; i < n; i++) {                                                          \
            double z = absgd_scaled_loss((double)load(losses[i]), inverse_lam);                    \
            double p = absgd_exp_f64(z - log_s);                                                   \
            p = !mask || mask[i] ? p : 0.0;                                                        \
            weights[i] = (A)p;                                                                     \
            coefficients[i] = (A)(p * scale);                                                      \
        }                                                                                          \
    }

DEFINE_WEIGHTS(float, float, LOAD_PLAIN, f32)
DEFINE_WEIGHTS(double, double, LOAD_PLAIN, f64)
DEFINE_WEIGHTS(absgd_f16, float, absgd_f16_load, f16)
DEFINE_WEIGHTS(absgd_bf16, float, absgd_bf16_load, bf16)

/* The masked and the maskless loop are compiled apart. */
#define WITH_MASK(call_masked, call_plain) (mask ? call_masked : call_plain)

void ABSGD_KERNEL(absgd_batch_stats)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                     int64_t n, double lam, absgd_stats *stats) {
#define CASE(name, suffix)                                                                         \
    case name:                                                                                     \
        WITH_MASK(stats_##suffix(losses, mask, n, lam, stats),                                     \
                  stats_##suffix(losses, 0, n, lam, stats));                                       \
        break;
    switch (dtype) {
        CASE(ABSGD_FLOAT32, f32)
        CASE(ABSGD_FLOAT64, f64)
        CASE(ABSGD_FLOAT16, f16)
        CASE(ABSGD_BFLOAT16, bf16)
    }
#undef CASE
}

void ABSGD_KERNEL(absgd_weights)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                 int64_t n, double lam, double log_s, const absgd_stats *stats,
                                 double factor, void *weights, void *coefficients) {
    const absgd_weigher w = absgd_weigher_of(stats, lam, log_s, factor);
#define CASE(name, suffix)                                                                         \
    case name:                                                                                     \
        WITH_MASK(weights_##suffix(losses, mask, n, lam, w.log_s, w.scale, weights, coefficients), \
                  weights_##suffix(losses, 0, n, lam, w.log_s, w.scale, weights, coefficients));   \
        break;
    switch (dtype) {
        CASE(ABSGD_FLOAT32, f32)
        CASE(ABSGD_FLOAT64, f64)
        CASE(ABSGD_FLOAT16, f16)
        CASE(ABSGD_BFLOAT16, bf16)
    }
#undef CASE
}
