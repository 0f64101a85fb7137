/* The rounds of lam_search.c for large batches, in float: y_i within 2 roundings, and y exp y is at
 * most 1/e in size, so that each term is within 1e-7 of the largest; sums as in weights_large.c. */
#include "exp.h"
#include "kernels.h"
#include "lam_search_math.h"
#include "large.h"

typedef struct sums {
    double weight, s0, s1, s2, t0, t1;
} sums;

/* Of x and x², for the first λ. */
ABSGD_INLINE void add_moments(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                              const float *weight, int64_t begin, int64_t end, float sign,
                              sums *all) {
    float sum = 0.0f, s1 = 0.0f, s2 = 0.0f;
    ABSGD_SIMD_WITH(reduction(+ : sum, s1, s2))
    for (int64_t i = begin; i < end; i++) {
        const int counts = !mask || mask[i];
        const float w = !counts ? 0.0f : weight ? weight[i] : 1.0f;
        const float x = w > 0.0f ? sign * load_f32(dtype, losses, i) : 0.0f;
        sum += w;
        s1 += w * x;
        s2 += w * x * x;
    }
    all->weight += sum;
    all->s1 += s1;
    all->s2 += s2;
}

ABSGD_INLINE void add_block(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                            const float *weight, int64_t begin, int64_t end, float sign, float max,
                            float inverse_lam, sums *all) {
    float sum = 0.0f, s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, t0 = 0.0f, t1 = 0.0f;
    ABSGD_SIMD_WITH(reduction(+ : sum, s0, s1, s2, t0, t1))
    for (int64_t i = begin; i < end; i++) {
        const int counts = !mask || mask[i];
        const float w = !counts ? 0.0f : weight ? weight[i] : 1.0f;
        const float x = w > 0.0f ? sign * load_f32(dtype, losses, i) - max : 0.0f;
        const float y = x * inverse_lam < -87.0f ? -87.0f : x * inverse_lam;
        const float e = absgd_exp_nonpositive_f32(y);
        const float wy = w * y, square = square_f32(e);
        sum += w;
        s0 += w * e;
        s1 += wy * e;
        s2 += wy * y * e;
        t0 += w * square;
        t1 += wy * square;
    }
    all->weight += sum;
    all->s0 += s0;
    all->s1 += s1;
    all->s2 += s2;
    all->t0 += t0;
    all->t1 += t1;
}

/* 0 if that is not to be done in float. */
ABSGD_INLINE int extremes(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                          const float *weight, int64_t n, float sign, absgd_lam_row *row) {
    const extent over = extent_of(dtype, losses, mask, weight, n, sign);
    if (!is_ordinary(over)) return 0;
    sums all = {0};
    for (int64_t begin = 0; begin < n; begin += ABSGD_LARGE_BLOCK) {
        add_moments(dtype, losses, mask, weight, begin, end_of_block(begin, n), sign, &all);
    }
    *row = absgd_empty_lam_row();
    row->count = (double)over.count;
    row->sum_weight = all.weight;
    row->max = over.max;
    row->max_negated = -over.min;
    row->s1 = all.s1;
    row->s2 = all.s2;
    return isfinite(all.s2);
}

/* 0 if they are not finite, as where weights are huge. */
ABSGD_INLINE int later_sums(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                            const float *weight, int64_t n, float sign,
                            const absgd_lam_search *search, absgd_lam_row *row) {
    const float inverse_lam = (float)exp(-search->u), max = (float)search->max;
    sums all = {0};
    for (int64_t begin = 0; begin < n; begin += ABSGD_LARGE_BLOCK) {
        add_block(dtype, losses, mask, weight, begin, end_of_block(begin, n), sign, max,
                  inverse_lam, &all);
    }
    *row = (absgd_lam_row){0.0,    0.0,    all.weight, max,    -INFINITY,
                           all.s0, all.s1, all.s2,     all.t0, all.t1};
    return isfinite(all.s0 + all.s2 + all.t0);
}

ABSGD_INLINE int round_of(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                          const float *weight, int64_t n, double sign,
                          const absgd_lam_search *search, absgd_lam_row *row) {
    return search->round == 0.0
               ? extremes(dtype, losses, mask, weight, n, (float)sign, row)
               : later_sums(dtype, losses, mask, weight, n, (float)sign, search, row);
}

int ABSGD_KERNEL(absgd_lam_sums_large)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                       const void *weight, int64_t n, double sign,
                                       const absgd_lam_search *search, absgd_lam_row *row) {
    int is_done = 0;
    ABSGD_EACH_FLOAT(is_done = round_of, dtype, losses, mask, weight, n, sign, search, row)
    return is_done;
}
