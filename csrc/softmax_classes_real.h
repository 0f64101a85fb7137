/* What the loops of softmax_loss.c read of each class: z_c and a_c, side by side or of positions.
 * Included by softmax_loss_real.h. */

#include "load_store_real.h"

/* [C] or one value for every class */
ABSGD_INLINE real REAL(of_class)(const void *values, int64_t c, real otherwise) {
    return values ? ((const real *)values)[c] : otherwise;
}

/* z_y, whose logit is at index i */
ABSGD_INLINE real REAL(target_z)(absgd_dtype dtype, const loss_call *call, int64_t i, int64_t y) {
    const absgd_softmax_loss *spec = &call->spec;
    real x = REAL(load)(dtype, call->logits, i) - REAL(of_class)(spec->margin, y, 0);
    return ABSGD_FMA((real)spec->scale, x, REAL(of_class)(spec->offset, y, 0));
}

/* z_c of n classes from c on, side by side from index `at` on */
ABSGD_INLINE void REAL(row_z)(absgd_dtype dtype, const loss_call *call, int64_t at, int64_t c,
                              int64_t n, real *restrict z) {
    const real scale = (real)call->spec.scale;
    const real *offset = call->spec.offset;
    if (offset) {
        offset += c;
        ABSGD_SIMD
        for (int64_t i = 0; i < n; i++) {
            z[i] = ABSGD_FMA(scale, REAL(load)(dtype, call->logits, at + i), offset[i]);
        }
    } else {
        ABSGD_SIMD
        for (int64_t i = 0; i < n; i++) z[i] = scale * REAL(load)(dtype, call->logits, at + i);
    }
}

/* a_c of the same classes */
ABSGD_INLINE void REAL(row_a)(const loss_call *call, int64_t at, int64_t c, int64_t n,
                              real *restrict a) {
    const absgd_softmax_loss *spec = &call->spec;
    const real share = (real)(spec->label_smoothing / (double)spec->classes);
    const real kept = (real)(1.0 - spec->label_smoothing);
    const real *q = call->soft_target, *weight = spec->weight;
    if (q) {
        ABSGD_SIMD
        for (int64_t i = 0; i < n; i++) a[i] = ABSGD_FMA(kept, q[at + i], share);
    } else {
        ABSGD_SIMD
        for (int64_t i = 0; i < n; i++) a[i] = share;
    }
    if (weight) {
        ABSGD_SIMD
        for (int64_t i = 0; i < n; i++) a[i] *= weight[c + i];
    }
}

ABSGD_INLINE void REAL(store_all)(absgd_dtype dtype, void *x, int64_t at, int64_t n,
                                  const real *restrict values) {
    ABSGD_SIMD
    for (int64_t i = 0; i < n; i++) REAL(store)(dtype, x, at + i, values[i]);
}

/* The index of class 0's logit of sample s; class c's is c·inner further. */
ABSGD_INLINE int64_t REAL(first_logit)(const absgd_softmax_loss *spec, int64_t s) {
    return s / spec->inner * spec->inner * spec->classes + s % spec->inner;
}

/* a_c of n positions from index `at` on */
ABSGD_INLINE void REAL(block_a)(const loss_call *call, int64_t at, int64_t c, int64_t n,
                                real *restrict a) {
    const absgd_softmax_loss *spec = &call->spec;
    const real weight = REAL(of_class)(spec->weight, c, 1);
    const real share = (real)(spec->label_smoothing / (double)spec->classes);
    const real kept = (real)(1.0 - spec->label_smoothing);
    const real *q = call->soft_target;
    if (q) {
        ABSGD_SIMD
        for (int64_t p = 0; p < n; p++) a[p] = weight * ABSGD_FMA(kept, q[at + p], share);
    } else {
        ABSGD_SIMD
        for (int64_t p = 0; p < n; p++) a[p] = weight * share;
    }
}

/* z_c of n positions from index `at` on */
ABSGD_INLINE void REAL(positions_z)(absgd_dtype dtype, const loss_call *call, int64_t at, int64_t c,
                                    int64_t n, real *restrict z) {
    const real scale = (real)call->spec.scale, offset = REAL(of_class)(call->spec.offset, c, 0);
    ABSGD_SIMD
    for (int64_t p = 0; p < n; p++) {
        z[p] = ABSGD_FMA(scale, REAL(load)(dtype, call->logits, at + p), offset);
    }
}

/* z of `rows` classes from c on, of n positions from s on. Rows of logits are transposed. */
ABSGD_INLINE void REAL(block_z)(absgd_dtype dtype, const loss_call *call, int64_t s, int64_t n,
                                int64_t c, int64_t rows, real z[BLOCK_CLASSES][BLOCK]) {
    const absgd_softmax_loss *spec = &call->spec;
    const real scale = (real)spec->scale;
    if (spec->inner > 1) {
        for (int64_t k = 0; k < rows; k++) {
            const int64_t at = REAL(first_logit)(spec, s) + (c + k) * spec->inner;
            REAL(positions_z)(dtype, call, at, c + k, n, z[k]);
        }
        return;
    }
    for (int64_t p = 0; p < n; p++) {
        const int64_t at = (s + p) * spec->classes + c;
        for (int64_t k = 0; k < rows; k++) {
            const real offset = REAL(of_class)(spec->offset, c + k, 0);
            z[k][p] = ABSGD_FMA(scale, REAL(load)(dtype, call->logits, at + k), offset);
        }
    }
}
