/* Elements of an array whose dtype is known by name only. In a loop that is inlined into a call
 * which has the dtype constant, one conversion is left of the switch. */
#ifndef ABSGD_LOAD_H
#define ABSGD_LOAD_H

#include "absgd.h"
#include "half.h"

ABSGD_INLINE double absgd_load(absgd_dtype dtype, const void *x, int64_t i) {
    switch (dtype) {
        case ABSGD_FLOAT64: return ((const double *)x)[i];
        case ABSGD_FLOAT16: return (double)absgd_f16_load(((const absgd_f16 *)x)[i]);
        case ABSGD_BFLOAT16: return (double)absgd_bf16_load(((const absgd_bf16 *)x)[i]);
        default: return (double)((const float *)x)[i];
    }
}

/* The same of an array in dtype's arithmetic type. */
ABSGD_INLINE double absgd_load_arithmetic(absgd_dtype dtype, const void *x, int64_t i) {
    return dtype == ABSGD_FLOAT64 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

ABSGD_INLINE void absgd_store_arithmetic(absgd_dtype dtype, void *x, int64_t i, double value) {
    if (dtype == ABSGD_FLOAT64) {
        ((double *)x)[i] = value;
    } else {
        ((float *)x)[i] = (float)value;
    }
}

/* Sample i's part in the base measure; a weight that is masked out is not read as a number. */
ABSGD_INLINE double absgd_load_weight(absgd_dtype dtype, const void *weight, int64_t i,
                                      int counts) {
    double w = weight ? absgd_load_arithmetic(dtype, weight, i) : 1.0;
    return counts ? w : 0.0;
}

/* Calls of a loop with the dtype, and whether there is a mask and a weight, known to the compiler.
 */
#define ABSGD_EACH_MASK(f, dtype, losses, mask, weight, ...)                                       \
    if (mask) {                                                                                    \
        f(dtype, losses, mask, weight, __VA_ARGS__);                                               \
    } else {                                                                                       \
        f(dtype, losses, 0, weight, __VA_ARGS__);                                                  \
    }

#define ABSGD_EACH_BATCH(f, dtype, losses, mask, weight, ...)                                      \
    if (weight) {                                                                                  \
        ABSGD_EACH_MASK(f, dtype, losses, mask, weight, __VA_ARGS__)                               \
    } else {                                                                                       \
        ABSGD_EACH_MASK(f, dtype, losses, mask, 0, __VA_ARGS__)                                    \
    }

#define ABSGD_EACH_DTYPE(f, dtype, losses, mask, weight, ...)                                      \
    switch (dtype) {                                                                               \
        case ABSGD_FLOAT32:                                                                        \
            ABSGD_EACH_BATCH(f, ABSGD_FLOAT32, losses, mask, weight, __VA_ARGS__) break;           \
        case ABSGD_FLOAT64:                                                                        \
            ABSGD_EACH_BATCH(f, ABSGD_FLOAT64, losses, mask, weight, __VA_ARGS__) break;           \
        case ABSGD_FLOAT16:                                                                        \
            ABSGD_EACH_BATCH(f, ABSGD_FLOAT16, losses, mask, weight, __VA_ARGS__) break;           \
        case ABSGD_BFLOAT16:                                                                       \
            ABSGD_EACH_BATCH(f, ABSGD_BFLOAT16, losses, mask, weight, __VA_ARGS__) break;          \
    }

#endif
