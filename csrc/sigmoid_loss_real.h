/* The loops of sigmoid_loss.c, included there once for each arithmetic type `real`. Every function
 * that takes a dtype and a focus is inlined into a call that has them constant. */
#include "load_store_real.h"

/* Whether all of target[begin, end) are in [0, 1], up to rounding, or ignore_index. */
static int REAL(targets_fit)(const void *target, double ignore_index, int64_t begin, int64_t end) {
    const real *q = target, low = (real)-ABSGD_TARGET_SLACK, high = (real)(1 + ABSGD_TARGET_SLACK);
    const real ignored = (real)ignore_index;
    int misfits = 0;
#pragma omp simd reduction(+ : misfits)
    for (int64_t i = begin; i < end; i++) {
        misfits += !(((q[i] >= low) & (q[i] <= high)) | (q[i] == ignored));
    }
    return misfits == 0;
}

/* values_c of n elements from index `at` on; 1 if there are no values */
ABSGD_INLINE void REAL(of_elements)(const absgd_sigmoid_loss *spec, const real *values, int64_t at,
                                    int64_t n, real *restrict out) {
    for (int64_t i = 0, run; i < n; i += run) {
        const int64_t rest = n - i;
        if (!values) {
            run = rest;
            for (int64_t k = 0; k < run; k++) out[i + k] = 1;
            continue;
        }
        const int64_t c = (at + i) / spec->inner % spec->classes;
        if (spec->inner == 1) { /* classes lie side by side */
            run = spec->classes - c < rest ? spec->classes - c : rest;
            for (int64_t k = 0; k < run; k++) out[i + k] = values[c + k];
        } else {
            const int64_t of_class = spec->inner - (at + i) % spec->inner;
            run = of_class < rest ? of_class : rest;
            for (int64_t k = 0; k < run; k++) out[i + k] = values[c];
        }
    }
}

/* Losses or slopes, or both, of n ≤ TILE elements from index `at` on, 0 where the target is
 * ignored; how many are not. What is NULL, a constant in each call, is not computed. weight and
 * pos_weight hold 1 where there are none. */
ABSGD_INLINE int REAL(tile)(absgd_dtype dtype, enum absgd_focus focus, const loss_call *call,
                            int64_t at, int64_t n, real *restrict weight, real *restrict pos_weight,
                            real *restrict loss, real *restrict slope) {
    const absgd_sigmoid_loss *spec = &call->spec;
    const real kept = (real)(1.0 - spec->label_smoothing),
               share = (real)(spec->label_smoothing / 2);
    const real alpha_1 = spec->alpha < 0.0 ? 1 : (real)spec->alpha;
    const real alpha_0 = spec->alpha < 0.0 ? 1 : (real)(1.0 - spec->alpha);
    const real gamma = (real)spec->focal_gamma, ignored = (real)spec->ignore_index;
    const real *target = (const real *)call->target + at;
    if (spec->weight) REAL(of_elements)(spec, spec->weight, at, n, weight);
    if (spec->pos_weight) REAL(of_elements)(spec, spec->pos_weight, at, n, pos_weight);
    int known = 0;
#pragma omp simd reduction(+ : known)
    for (int64_t i = 0; i < n; i++) {
        const real q = ABSGD_FMA(kept, target[i], share),
                   rest = ABSGD_FMA(kept, 1 - target[i], share);
        REAL(element_result)
        r = REAL(element)(focus, REAL(load)(dtype, call->logits, at + i), q, rest, weight[i],
                          pos_weight[i], alpha_1, alpha_0, gamma);
        const int counts = target[i] != ignored;
        if (loss) loss[i] = counts ? r.loss : 0;
        if (slope) slope[i] = counts ? r.slope : 0;
        known += counts;
    }
    return known;
}

ABSGD_INLINE void REAL(forward)(absgd_dtype dtype, enum absgd_focus focus, const loss_call *call,
                                void *loss, void *known, int64_t begin, int64_t end) {
    const absgd_sigmoid_loss *spec = &call->spec;
    const int64_t size = elements_of_sample(spec);
    real *losses = loss, *counts = known;
    real weight[TILE], pos_weight[TILE], of_tile[TILE];
    REAL(of_elements)(spec, NULL, 0, TILE, weight);
    REAL(of_elements)(spec, NULL, 0, TILE, pos_weight);
    if (!spec->per_sample) {
        for (int64_t i = begin; i < end; i += TILE) {
            const int64_t n = end - i < TILE ? end - i : TILE;
            REAL(tile)(dtype, focus, call, i, n, weight, pos_weight, losses + i, NULL);
        }
        return;
    }
    for (int64_t s = begin; s < end; s++) {
        double sum = 0.0;
        int64_t count = 0;
        for (int64_t i = 0; i < size; i += TILE) {
            const int64_t n = size - i < TILE ? size - i : TILE;
            real part = 0;
            count +=
                REAL(tile)(dtype, focus, call, s * size + i, n, weight, pos_weight, of_tile, NULL);
#pragma omp simd reduction(+ : part)
            for (int64_t k = 0; k < n; k++) part += of_tile[k];
            sum += (double)part;
        }
        losses[s] = count ? (real)(sum / (double)count) : 0;
        counts[s] = (real)count;
    }
}

ABSGD_INLINE void REAL(backward)(absgd_dtype dtype, enum absgd_focus focus, const loss_call *call,
                                 const void *known, const void *grad_loss, void *grad_logits,
                                 int64_t begin, int64_t end) {
    const absgd_sigmoid_loss *spec = &call->spec;
    const int64_t size = elements_of_sample(spec);
    const real *counts = known, *upstream = grad_loss;
    real weight[TILE], pos_weight[TILE], slope[TILE];
    REAL(of_elements)(spec, NULL, 0, TILE, weight);
    REAL(of_elements)(spec, NULL, 0, TILE, pos_weight);
    if (!spec->per_sample) {
        for (int64_t i = begin; i < end; i += TILE) {
            const int64_t n = end - i < TILE ? end - i : TILE;
            REAL(tile)(dtype, focus, call, i, n, weight, pos_weight, NULL, slope);
            ABSGD_SIMD
            for (int64_t k = 0; k < n; k++) {
                const real g = slope[k] == 0 ? 0 : slope[k] * upstream[i + k];
                REAL(store)(dtype, grad_logits, i + k, g);
            }
        }
        return;
    }
    for (int64_t s = begin; s < end; s++) {
        const real factor = counts[s] == 0 ? 0 : upstream[s] / counts[s];
        for (int64_t i = 0; i < size; i += TILE) {
            const int64_t n = size - i < TILE ? size - i : TILE, at = s * size + i;
            REAL(tile)(dtype, focus, call, at, n, weight, pos_weight, NULL, slope);
            ABSGD_SIMD
            for (int64_t k = 0; k < n; k++) {
                REAL(store)(dtype, grad_logits, at + k, slope[k] == 0 ? 0 : slope[k] * factor);
            }
        }
    }
}
