/* The scalar to differentiate, of a batch's coefficients and losses, whatever their type added up
 * in double. */
#include "kernels.h"
#include "load.h"

ABSGD_INLINE double sum_of(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                           const void *coefficients, int64_t n) {
    double sum = 0.0;
    ABSGD_SIMD_WITH(reduction(+ : sum))
    for (int64_t i = 0; i < n; i++) {
        const double product =
            absgd_load_arithmetic(dtype, coefficients, i) * absgd_load(dtype, losses, i);
        sum += !mask || mask[i] ? product : 0.0;
    }
    return sum;
}

double ABSGD_KERNEL(absgd_weighted_sum)(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                        const void *coefficients, int64_t n) {
    double sum = 0.0;
    switch (dtype) {
        case ABSGD_FLOAT32:
            ABSGD_EACH_MASK(sum = sum_of, ABSGD_FLOAT32, losses, mask, coefficients, n) break;
        case ABSGD_FLOAT64:
            ABSGD_EACH_MASK(sum = sum_of, ABSGD_FLOAT64, losses, mask, coefficients, n) break;
        case ABSGD_FLOAT16:
            ABSGD_EACH_MASK(sum = sum_of, ABSGD_FLOAT16, losses, mask, coefficients, n) break;
        case ABSGD_BFLOAT16:
            ABSGD_EACH_MASK(sum = sum_of, ABSGD_BFLOAT16, losses, mask, coefficients, n) break;
    }
    return sum;
}
