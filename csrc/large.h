/* What weights_large.c and lam_search_large.c share: large batches, whose arithmetic type is float.
 */
#ifndef ABSGD_LARGE_H
#define ABSGD_LARGE_H

#include "load.h"

#include <math.h>

#define real float
#define REAL(name) name##_f32
#include "load_store_real.h"

/* So many floats are added up as floats, before their sum is a double. */
enum { ABSGD_LARGE_BLOCK = 256 };

ABSGD_INLINE int64_t end_of_block(int64_t begin, int64_t n) {
    return n - begin < ABSGD_LARGE_BLOCK ? n : begin + ABSGD_LARGE_BLOCK;
}

/* What decides whether the sums can be taken in float. */
typedef struct extent {
    float min, max;          /* of ±L over w > 0 */
    float largest, heaviest; /* |L| over all that count (of w = 1, if above 0), and w */
    float odd;               /* not 0 if a number is NaN or a w negative */
    int64_t count;
} extent;

ABSGD_INLINE extent extent_of(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                              const float *weight, int64_t n, float sign) {
    float min = INFINITY, max = -INFINITY, largest = 0.0f, heaviest = 0.0f;
    float odd = 0.0f;
    int64_t count = mask ? 0 : n;
    ABSGD_SIMD_WITH(reduction(min : min) reduction(max : max, largest, heaviest)
                        reduction(+ : count, odd))
    for (int64_t i = 0; i < n; i++) {
        const int counts = !mask || mask[i];
        const float x = counts ? sign * load_f32(dtype, losses, i) : 0.0f;
        const float w = !counts ? 0.0f : weight ? weight[i] : 1.0f;
        if (mask) count += counts;
        odd += x == x && w >= 0.0f ? 0.0f : 1.0f;
        min = w > 0.0f && x < min ? x : min;
        max = w > 0.0f && x > max ? x : max;
        if (!weight) continue;
        largest = fabsf(x) > largest ? fabsf(x) : largest;
        heaviest = w > heaviest ? w : heaviest;
    }
    if (!weight) largest = fmaxf(-min, max);
    return (extent){min, max, largest, heaviest, odd, count};
}

/* Whether sums can be taken in float: nothing overflows, nothing has to be counted as bad. */
ABSGD_INLINE int is_ordinary(extent over) {
    return over.odd == 0.0f && over.largest < 1e12f && over.heaviest < 1e12f &&
           over.min <= over.max;
}

/* e², 0 where it would be a subnormal number, on which processors are slow. */
ABSGD_INLINE float square_f32(float e) { return e < 1.1e-19f ? 0.0f : e * e; }

#define ABSGD_EACH_FLOAT(f, dtype, losses, mask, weight, ...)                                      \
    switch (dtype) {                                                                               \
        case ABSGD_FLOAT16:                                                                        \
            ABSGD_EACH_BATCH(f, ABSGD_FLOAT16, losses, mask, weight, __VA_ARGS__) break;           \
        case ABSGD_BFLOAT16:                                                                       \
            ABSGD_EACH_BATCH(f, ABSGD_BFLOAT16, losses, mask, weight, __VA_ARGS__) break;          \
        default: ABSGD_EACH_BATCH(f, ABSGD_FLOAT32, losses, mask, weight, __VA_ARGS__) break;      \
    }

#endif
