/* The sums and the weights of weights.c for large batches whose arithmetic type is float, in half
 * the time and less: z_i − m and z_i − log_s are still taken in double, but their exponentials are
 * floats, and sums are of floats within a block of a few hundred, of doubles over blocks.
 *
 * Relative errors, of the exponentials ABSGD_LARGE_ERROR at most, whatever the size of z: from
 * rounding the exponent to 23 fractional binary digits, a polynomial, and roundings. */
#include "exp.h"
#include "kernels.h"
#include "large.h"

/* exp(x/|λ| − shift) for a float x = ±L: 2^t, t = x·slope + offset. */
typedef struct exponential {
    double slope, offset;
    float low; /* the x below which it is taken for 0 */
} exponential;

/* 1.5·2^29: added to t, it leaves t's integer part and 23 binary digits in the low 32 bits. */
#define FIXED_POINT 0x1.8p29
#define LOG2_E 0x1.71547652b82fep0

static exponential exponential_of(double lam, double shift) {
    const double size = fabs(lam);
    exponential of = {LOG2_E / size, FIXED_POINT + 0.5 - shift * LOG2_E,
                      (float)(size * (shift - 87.0))};
    return of;
}

ABSGD_INLINE float value(exponential of, float x) {
    const float inside = x < of.low ? of.low : x;
    const double t = ABSGD_FMA((double)inside, of.slope, of.offset);
    uint64_t wide;
    memcpy(&wide, &t, sizeof wide);
    const uint32_t fixed = (uint32_t)wide; /* the integer next to t, and the rest plus ½ */
    const float rest = absgd_from_bits((fixed & 0x007fffffu) | 0x3f800000u) - 1.5f;
    const float e = absgd_exp_reduced_f32(rest * 0x1.62e430p-1f);
    return x < of.low ? 0.0f : absgd_from_bits(absgd_bits(e) + (fixed & 0xff800000u));
}

/* max: the largest x = ±L over w > 0; where w = 0, x may lie so far above it that its exponential
 * has no float. has_negative: whether |L| is another number than L. */
ABSGD_INLINE void add_block(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                            const float *weight, int64_t begin, int64_t end, float sign, float max,
                            exponential of, int has_negative, absgd_stats *stats) {
    float sum_weight = 0.0f, sum = 0.0f, sum_sq = 0.0f, sum_loss = 0.0f, sum_weighted = 0.0f;
    float sum_abs_loss = 0.0f, sum_abs_weighted = 0.0f;
    ABSGD_SIMD_WITH(reduction(+ : sum_weight, sum, sum_sq, sum_loss, sum_weighted, sum_abs_loss,
                              sum_abs_weighted))
    for (int64_t i = begin; i < end; i++) {
        const int counts = !mask || mask[i];
        const float loss = counts ? load_f32(dtype, losses, i) : 0.0f;
        const float w = !counts ? 0.0f : weight ? weight[i] : 1.0f;
        const float x = sign * loss;
        const float e = value(of, (mask || weight) && x > max ? max : x);
        const float we = w * e, weighted_loss = w * loss;
        if (weight) sum_weight += w;
        sum += we;
        sum_sq += w * square_f32(e);
        sum_loss += weighted_loss;
        sum_weighted += e * weighted_loss;
        if (has_negative) sum_abs_loss += fabsf(weighted_loss);
        if (has_negative) sum_abs_weighted += e * fabsf(weighted_loss);
    }
    stats->sum_weight += sum_weight;
    stats->sum += sum;
    stats->sum_sq += sum_sq;
    stats->sum_loss += sum_loss / ABSGD_LOSS_UNIT;
    stats->sum_weighted += sum_weighted / ABSGD_LOSS_UNIT;
    stats->sum_abs_loss += (has_negative ? sum_abs_loss : sum_loss) / ABSGD_LOSS_UNIT;
    stats->sum_abs_weighted += (has_negative ? sum_abs_weighted : sum_weighted) / ABSGD_LOSS_UNIT;
}

ABSGD_INLINE int stats_of(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                          const float *weight, int64_t n, double lam, absgd_stats *stats) {
    const float sign = lam < 0.0 ? -1.0f : 1.0f;
    const extent over = extent_of(dtype, losses, mask, weight, n, sign);
    const double m = over.max / fabs(lam);
    if (!is_ordinary(over) || !(fabs(m) < 1e6)) return 0;
    const exponential of = exponential_of(lam, m);
    *stats = absgd_empty_stats();
    stats->max = m;
    const int has_negative = sign < 0.0f ? over.max > 0.0f : over.min < 0.0f;
    for (int64_t begin = 0; begin < n; begin += ABSGD_LARGE_BLOCK) {
        const int64_t end = end_of_block(begin, n);
        if (has_negative) {
            add_block(dtype, losses, mask, weight, begin, end, sign, over.max, of, 1, stats);
        } else {
            add_block(dtype, losses, mask, weight, begin, end, sign, over.max, of, 0, stats);
        }
    }
    stats->count = (double)over.count;
    if (!weight) stats->sum_weight = stats->count;
    return 1;
}

ABSGD_INLINE void weights_of(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                             const float *weight, int64_t n, double lam, absgd_weigher weigher,
                             float *weights, float *coefficients, double *capped) {
    const float sign = lam < 0.0 ? -1.0f : 1.0f, cap = (float)weigher.cap;
    const float scale = (float)weigher.scale;
    const exponential of = exponential_of(lam, weigher.log_s);
    int64_t above = 0;
    for (int64_t begin = 0; begin < n; begin += ABSGD_LARGE_BLOCK) {
        const int64_t end = end_of_block(begin, n);
        int32_t here = 0;
        ABSGD_SIMD_WITH(reduction(+ : here))
        for (int64_t i = begin; i < end; i++) {
            const int counts = !mask || mask[i];
            const float w = !counts ? 0.0f : weight ? weight[i] : 1.0f;
            float p = value(of, sign * load_f32(dtype, losses, i));
            p = w > 0.0f ? p : 0.0f;
            here += p > cap;
            p = p > cap ? cap : p;
            weights[i] = p;
            coefficients[i] = p * scale * (w > 0.0f ? w : 0.0f);
        }
        above += here;
    }
    *capped = (double)above;
}

int ABSGD_KERNEL(absgd_batch_stats_large)(absgd_dtype dtype, const void *losses,
                                          const uint8_t *mask, const void *weight, int64_t n,
                                          double lam, absgd_stats *stats) {
    int is_done = 0;
    ABSGD_EACH_FLOAT(is_done = stats_of, dtype, losses, mask, weight, n, lam, stats)
    return is_done;
}

void ABSGD_KERNEL(absgd_weights_large)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                       const void *weight, int64_t n, double lam,
                                       absgd_weigher weigher, void *weights, void *coefficients,
                                       double *capped) {
    ABSGD_EACH_FLOAT(weights_of, dtype, losses, mask, weight, n, lam, weigher, weights,
                     coefficients, capped)
}
