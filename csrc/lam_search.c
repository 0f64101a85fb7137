/* One round of the search for λ: the sums of lam_search_math.h over a part of the batch. */
#include "exp.h"
#include "half.h"
#include "kernels.h"
#include "lam_search_math.h"

#define LOAD_PLAIN(x) (x)

#define DEFINE_SUMS(S, load, suffix)                                                               \
    ABSGD_INLINE void extremes_##suffix(const S *losses, const uint8_t *mask, int64_t n,           \
                                        double sign, absgd_lam_row *row) {                         \
        double count = 0.0, finite = 0.0, max = -INFINITY, max_negated = -INFINITY;                \
        ABSGD_SIMD_WITH(reduction(+ : count, finite) reduction(max : max, max_negated))            \
        for (int64_t i = 0; i < n; i++) {                                                          \
            double x = sign * (double)load(losses[i]);                                             \
            int counts = !mask || mask[i];                                                         \
            count += counts ? 1.0 : 0.0;                                                           \
            finite += counts && x - x == 0.0 ? 1.0 : 0.0;                                          \
            max = counts && x > max ? x : max;                                                     \
            max_negated = counts && -x > max_negated ? -x : max_negated;                           \
        }                                                                                          \
        *row = absgd_empty_lam_row();                                                              \
        row->count = count;                                                                        \
        row->nonfinite = count - finite;                                                           \
        row->max = max;                                                                            \
        row->max_negated = max_negated;                                                            \
    }                                                                                              \
                                                                                                   \
    ABSGD_INLINE void sums_##suffix(const S *losses, const uint8_t *mask, int64_t n, double sign,  \
                                    const absgd_lam_search *search, absgd_lam_row *row) {          \
        const double max = search->max, inverse_lam = exp(-search->u);                             \
        double count = 0.0, s0 = 0.0, s1 = 0.0, s2 = 0.0, t0 = 0.0, t1 = 0.0;                      \
        ABSGD_SIMD_WITH(reduction(+ : count, s0, s1, s2, t0, t1))                                  \
        for (int64_t i = 0; i < n; i++) {                                                          \
            int counts = !mask || mask[i];                                                         \
            double x = counts ? sign * (double)load(losses[i]) - max : 0.0;                        \
            double y = x * inverse_lam;                                                            \
            double e = counts ? absgd_exp_f64(y) : 0.0;                                            \
            count += counts ? 1.0 : 0.0;                                                           \
            s0 += e;                                                                               \
            s1 += e * y;                                                                           \
            s2 += e * y * y;                                                                       \
            t0 += e * e;                                                                           \
            t1 += e * e * y;                                                                       \
        }                                                                                          \
        *row = (absgd_lam_row){count, 0.0, max, -INFINITY, s0, s1, s2, t0, t1};                    \
    }                                                                                              \
                                                                                                   \
    ABSGD_INLINE void round_##suffix(const S *losses, const uint8_t *mask, int64_t n, double sign, \
                                     const absgd_lam_search *search, absgd_lam_row *row) {         \
        if (search->round == 0.0) {                                                                \
            extremes_##suffix(losses, mask, n, sign, row);                                         \
        } else {                                                                                   \
            sums_##suffix(losses, mask, n, sign, search, row);                                     \
        }                                                                                          \
    }

DEFINE_SUMS(float, LOAD_PLAIN, f32)
DEFINE_SUMS(double, LOAD_PLAIN, f64)
DEFINE_SUMS(absgd_f16, absgd_f16_load, f16)
DEFINE_SUMS(absgd_bf16, absgd_bf16_load, bf16)

void ABSGD_KERNEL(absgd_lam_sums)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                  int64_t n, double sign, const absgd_lam_search *search,
                                  absgd_lam_row *row) {
#define CASE(name, suffix)                                                                         \
    case name:                                                                                     \
        mask ? round_##suffix(losses, mask, n, sign, search, row)                                  \
             : round_##suffix(losses, 0, n, sign, search, row);                                    \
        break;
    switch (dtype) {
        CASE(ABSGD_FLOAT32, f32)
        CASE(ABSGD_FLOAT64, f64)
        CASE(ABSGD_FLOAT16, f16)
        CASE(ABSGD_BFLOAT16, bf16)
    }
#undef CASE
}
