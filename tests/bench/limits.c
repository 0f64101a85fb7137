/* What the machine can do at best, in bare loops over the same amounts of data as the kernels' own:
 * run.py times them beside the kernels and prints fractions of them. All cut [0, n) evenly over the
 * OpenMP threads, which in a Python process are torch's.
 *
 * The exponentials are those of the kernels (exp.h), so that a fraction says what a kernel spends
 * on everything else. */
#include "exp.h"

#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* The memory traffic of a momentum step: three arrays read, two written, in place. */
EXPORT void limits_read3_write2(float *restrict w, const float *restrict g, float *restrict v,
                                int64_t n) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        v[i] = 0.5f * v[i] + g[i];
        w[i] -= 1e-9f * v[i];
    }
}

/* Whole pages for each thread, so that memcpy may choose non-temporal stores where they pay. */
EXPORT void limits_copy(char *restrict to, const char *restrict from, int64_t bytes) {
    const int64_t piece = 1 << 20;
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < bytes; at += piece) {
        memcpy(to + at, from + at, (size_t)(bytes - at < piece ? bytes - at : piece));
    }
}

/* One read and one exponential an element. */
EXPORT float limits_exp_f32(const float *x, int64_t n) {
    float sum = 0;
#pragma omp parallel for simd reduction(+ : sum) schedule(static)
    for (int64_t i = 0; i < n; i++) sum += absgd_exp_nonpositive_f32(x[i]);
    return sum;
}

EXPORT double limits_exp_f64(const double *x, int64_t n) {
    double sum = 0;
#pragma omp parallel for simd reduction(+ : sum) schedule(static)
    for (int64_t i = 0; i < n; i++) sum += absgd_exp_nonpositive_f64(x[i]);
    return sum;
}
