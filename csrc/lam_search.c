/* One round of the search for λ: the sums of lam_search_math.h over a part of the batch. */
#include "exp.h"
#include "kernels.h"
#include "lam_search_math.h"
#include "load.h"

ABSGD_INLINE void extremes(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                           const void *weight, int64_t n, double sign, absgd_lam_row *row) {
    double count = 0.0, finite = 0.0, sum_weight = 0.0, max = -INFINITY, max_negated = -INFINITY;
    double s1 = 0.0, s2 = 0.0;
    ABSGD_SIMD_WITH(reduction(+ : count, finite, sum_weight, s1, s2)
                        reduction(max : max, max_negated))
    for (int64_t i = 0; i < n; i++) {
        double x = sign * absgd_load(dtype, losses, i);
        int counts = !mask || mask[i];
        double w = absgd_load_weight(dtype, weight, i, counts);
        int is_finite = x - x == 0.0 && w - w == 0.0 && w >= 0.0;
        count += counts ? 1.0 : 0.0;
        finite += counts && is_finite ? 1.0 : 0.0;
        sum_weight += w;
        max = w > 0.0 && x > max ? x : max;
        max_negated = w > 0.0 && -x > max_negated ? -x : max_negated;
        s1 += w > 0.0 ? w * x : 0.0;
        s2 += w > 0.0 ? w * x * x : 0.0;
    }
    *row = absgd_empty_lam_row();
    row->count = count;
    row->nonfinite = count - finite;
    row->sum_weight = sum_weight;
    if (sum_weight != 0.0) { /* OpenMP lets a max begin from the least finite number, not from −∞ */
        row->max = max;
        row->max_negated = max_negated;
    }
    row->s1 = s1;
    row->s2 = s2;
}

ABSGD_INLINE void sums(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                       const void *weight, int64_t n, double sign, const absgd_lam_search *search,
                       absgd_lam_row *row) {
    const double max = search->max, inverse_lam = exp(-search->u);
    double count = 0.0, sum_weight = 0.0, s0 = 0.0, s1 = 0.0, s2 = 0.0, t0 = 0.0, t1 = 0.0;
    ABSGD_SIMD_WITH(reduction(+ : count, sum_weight, s0, s1, s2, t0, t1))
    for (int64_t i = 0; i < n; i++) {
        int counts = !mask || mask[i];
        double w = absgd_load_weight(dtype, weight, i, counts);
        double x = w > 0.0 ? sign * absgd_load(dtype, losses, i) - max : 0.0;
        double y = x * inverse_lam;
        double e = w > 0.0 ? absgd_exp_f64(y) : 0.0;
        double we = w * e;
        count += counts ? 1.0 : 0.0;
        sum_weight += w;
        s0 += we;
        s1 += we * y;
        s2 += we * y * y;
        t0 += we * e;
        t1 += we * e * y;
    }
    *row = (absgd_lam_row){count, 0.0, sum_weight, max, -INFINITY, s0, s1, s2, t0, t1};
}

ABSGD_INLINE void round_of(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                           const void *weight, int64_t n, double sign,
                           const absgd_lam_search *search, absgd_lam_row *row) {
    if (search->round == 0.0) {
        extremes(dtype, losses, mask, weight, n, sign, row);
    } else {
        sums(dtype, losses, mask, weight, n, sign, search, row);
    }
}

void ABSGD_KERNEL(absgd_lam_sums)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                  const void *weight, int64_t n, double sign,
                                  const absgd_lam_search *search, absgd_lam_row *row) {
    ABSGD_EACH_DTYPE(round_of, dtype, losses, mask, weight, n, sign, search, row)
}
