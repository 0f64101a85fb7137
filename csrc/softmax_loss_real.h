/* The loops of softmax_loss.c, included there once for each arithmetic type `real`. Every function
 * that takes a dtype is inlined into a call that has it constant. */

#include "softmax_classes_real.h"

/* ---- rows: (N, C) ---- */

/* Reductions over a tile. Not inlined: gcc vectorises the one loop then, and of several inlined
 * copies it leaves some scalar. */
static ABSGD_NOINLINE real REAL(max_of)(const real *z, int64_t n, real max) {
    const int64_t quarter = n / 64 * 16; /* four chains: one waits for each of its comparisons */
    real a = max, b = max, c = max, d = max;
#pragma omp simd reduction(max : a, b, c, d)
    for (int64_t i = 0; i < quarter; i++) {
        a = z[i] > a ? z[i] : a;
        b = z[quarter + i] > b ? z[quarter + i] : b;
        c = z[2 * quarter + i] > c ? z[2 * quarter + i] : c;
        d = z[3 * quarter + i] > d ? z[3 * quarter + i] : d;
    }
    a = a > b ? a : b;
    c = c > d ? c : d;
    max = a > c ? a : c;
#pragma omp simd reduction(max : max)
    for (int64_t i = 4 * quarter; i < n; i++) max = z[i] > max ? z[i] : max;
    return max;
}

/* Σ exp(z − max), with what it adds up in the place of z */
static ABSGD_NOINLINE real REAL(exp_sum)(real *z, int64_t n, real max) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        const real e = exp_nonpositive(z[i] - max);
        z[i] = e;
        sum += e;
    }
    return sum;
}

/* Σ a and Σ a(max − z) */
static ABSGD_NOINLINE void REAL(weighted_sums)(const real *a, const real *z, int64_t n, real max,
                                               double *a_sum, double *a_dot) {
    real sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t i = 0; i < n; i++) {
        sum += a[i];
        dot += a[i] * (max - z[i]);
    }
    *a_sum += sum;
    *a_dot += dot;
}

/* Takes the largest of z, at class c and on, for the top's, and puts the last top in its place.
 * OpenMP lets max begin from the least finite number, which may be in no place. */
static ABSGD_NOINLINE void REAL(take_top)(real *z, int64_t n, int64_t c, real *top, int64_t *y) {
    const real max = REAL(max_of)(z, n, *top);
    if (!(max > *top)) return;
    int32_t at = TILE;
#pragma omp simd reduction(min : at)
    for (int32_t i = 0; i < (int32_t)n; i++) {
        const int32_t here = z[i] == max ? i : TILE;
        at = here < at ? here : at;
    }
    if (at == TILE) return;
    z[at] = *top;
    *top = max;
    *y = c + at;
}

/* The sums of samples s … s+n−1, n ≤ ROWS, as the entries from b on. Several rows go through each
 * loop before the next: the loops of one row wait for each other's results, those of several do
 * not. Ignored samples are summed along, and left out by the caller. */
ABSGD_INLINE void REAL(rows_sums)(absgd_dtype dtype, const loss_call *call, int64_t s, int64_t n,
                                  sums *out, int64_t b) {
    const int64_t classes = call->spec.classes;
    real z[ROWS][TILE], a[TILE], max[ROWS], z_y[ROWS];
    int64_t y[ROWS];
    for (int64_t r = 0; r < n; r++) {
        y[r] = call->target && !is_ignored(call, s + r) ? call->target[s + r] : -1;
        z_y[r] = y[r] < 0 ? -INFINITY : REAL(target_z)(dtype, call, (s + r) * classes + y[r], y[r]);
        max[r] = z_y[r] > REAL_LOWEST ? z_y[r] : REAL_LOWEST;
        out->sum[b + r] = out->a_sum[b + r] = out->a_dot[b + r] = 0.0;
    }
    for (int64_t c = 0; c < classes; c += TILE) {
        const int64_t width = classes - c < TILE ? classes - c : TILE;
        const int64_t padded = (width + 15) & ~(int64_t)15; /* with −∞: no remainder of exps */
        for (int64_t r = 0; r < n; r++) {
            REAL(row_z)(dtype, call, (s + r) * classes + c, c, width, z[r]);
            for (int64_t i = width; i < padded; i++) z[r][i] = -INFINITY;
            if (is_expected(call)) {
                REAL(take_top)(z[r], padded, c, &z_y[r], &y[r]);
            } else if (c <= y[r] && y[r] < c + width) {
                z[r][y[r] - c] = -INFINITY; /* it is not in S */
            }
        }
        for (int64_t r = 0; r < n; r++) {
            const real tile_max = REAL(max_of)(z[r], padded, max[r]);
            if (c > 0 && tile_max > max[r]) {
                const double rise = (double)tile_max - (double)max[r];
                out->sum[b + r] *= absgd_exp_nonpositive_f64(-rise);
                out->a_dot[b + r] += out->a_sum[b + r] == 0.0 ? 0.0 : rise * out->a_sum[b + r];
            }
            max[r] = tile_max;
        }
        for (int64_t r = 0; spreads(call) && !is_expected(call) && r < n; r++) {
            if (c <= y[r] && y[r] < c + width) z[r][y[r] - c] = z_y[r];
            REAL(row_a)(call, (s + r) * classes + c, c, width, a);
            REAL(weighted_sums)(a, z[r], width, max[r], &out->a_sum[b + r], &out->a_dot[b + r]);
            if (c <= y[r] && y[r] < c + width) z[r][y[r] - c] = -INFINITY;
        }
        for (int64_t r = 0; r < n; r++) {
            out->sum[b + r] += (double)REAL(exp_sum)(z[r], padded, max[r]);
            if (!call->kept) continue;
            memcpy((real *)call->kept + (s + r) * classes, z[r], (size_t)width * sizeof(real));
        }
    }
    for (int64_t r = 0; r < n; r++) {
        out->max[b + r] = max[r];
        out->z_y[b + r] = z_y[r];
        out->y[b + r] = y[r];
    }
}

/* ∂L/∂x of one row: others, at_target and a_factor have the factor grad_loss·scale. */
ABSGD_INLINE void REAL(row_gradient)(absgd_dtype dtype, const loss_call *call, int64_t s, real max,
                                     real others, real at_target, real a_factor, void *grad) {
    const int64_t classes = call->spec.classes, row = s * classes;
    real z[TILE], a[TILE];
    for (int64_t c = 0; c < classes; c += TILE) {
        const int64_t n = classes - c < TILE ? classes - c : TILE;
        REAL(row_z)(dtype, call, row + c, c, n, z);
        if (spreads(call)) {
            REAL(row_a)(call, row + c, c, n, a);
            ABSGD_SIMD
            for (int64_t i = 0; i < n; i++) {
                real g = others * exp_nonpositive(z[i] - max) - a_factor * a[i];
                REAL(store)(dtype, grad, row + c + i, g);
            }
        } else {
            ABSGD_SIMD
            for (int64_t i = 0; i < n; i++) {
                REAL(store)(dtype, grad, row + c + i, others * exp_nonpositive(z[i] - max));
            }
        }
    }
    if (call->target) REAL(store)(dtype, grad, row + call->target[s], at_target);
}

/* row_gradient from what the forward pass kept, in the memory of the gradient or elsewhere. */
ABSGD_INLINE void REAL(kept_gradient)(const loss_call *call, int64_t s, real others, real at_target,
                                      real a_factor, void *grad_logits) {
    const int64_t classes = call->spec.classes, row = s * classes;
    const real *kept = (const real *)call->kept + row;
    real a[TILE], *grad = (real *)grad_logits + row;
    if (spreads(call)) {
        REAL(row_a)(call, row, 0, classes, a);
        ABSGD_SIMD
        for (int64_t c = 0; c < classes; c++) grad[c] = others * kept[c] - a_factor * a[c];
    } else {
        ABSGD_SIMD
        for (int64_t c = 0; c < classes; c++) grad[c] = others * kept[c];
    }
    if (call->target) grad[call->target[s]] = at_target;
}

ABSGD_INLINE void REAL(row_zeros)(absgd_dtype dtype, const loss_call *call, int64_t s, void *grad) {
    const int64_t row = s * call->spec.classes;
    ABSGD_SIMD
    for (int64_t c = 0; c < call->spec.classes; c++) REAL(store)(dtype, grad, row + c, 0);
}

/* ---- blocks of positions: (N, C, inner) ---- */

/* take_top of each of n positions, for `rows` classes from c on */
ABSGD_INLINE void REAL(take_tops)(real z[BLOCK_CLASSES][BLOCK], int64_t rows, int64_t n, int64_t c,
                                  real *restrict top, int64_t *restrict y) {
    for (int64_t k = 0; k < rows; k++) {
        ABSGD_SIMD
        for (int64_t p = 0; p < n; p++) {
            const real last = top[p], x = z[k][p];
            top[p] = x > last ? x : last;
            z[k][p] = x > last ? last : x;
            y[p] = x > last ? c + k : y[p];
        }
    }
}

/* Samples s … s+n−1, n ≤ BLOCK. Ignored ones are summed along, and left out by the caller. */
ABSGD_INLINE void REAL(block_sums)(absgd_dtype dtype, const loss_call *call, int64_t s, int64_t n,
                                   sums *out) {
    const absgd_softmax_loss *spec = &call->spec;
    const int64_t first = REAL(first_logit)(spec, s), inner = spec->inner;
    const int64_t step = inner > 1 ? 1 : spec->classes; /* from a position to the next */
    real z[BLOCK_CLASSES][BLOCK], a[BLOCK], z_y[BLOCK], max[BLOCK], tile_max[BLOCK], tile[BLOCK];
    int64_t y[BLOCK];
    for (int64_t p = 0; p < n; p++) {
        y[p] = call->target && !is_ignored(call, s + p) ? call->target[s + p] : -1;
        z_y[p] = y[p] < 0 ? -INFINITY
                          : REAL(target_z)(dtype, call, first + y[p] * inner + p * step, y[p]);
        max[p] = REAL_LOWEST;
        out->sum[p] = out->a_sum[p] = out->a_dot[p] = 0.0;
    }
    for (int64_t c = 0; c < spec->classes; c += BLOCK_CLASSES) {
        const int64_t rest = spec->classes - c, rows = rest < BLOCK_CLASSES ? rest : BLOCK_CLASSES;
        REAL(block_z)(dtype, call, s, n, c, rows, z);
        if (is_expected(call)) REAL(take_tops)(z, rows, n, c, z_y, y);
        for (int64_t p = 0; p < n; p++) {
            if (!is_expected(call) && c <= y[p] && y[p] < c + rows) z[y[p] - c][p] = z_y[p];
            tile_max[p] = max[p];
        }
        for (int64_t k = 0; k < rows; k++) {
            ABSGD_SIMD
            for (int64_t p = 0; p < n; p++) {
                tile_max[p] = z[k][p] > tile_max[p] ? z[k][p] : tile_max[p];
            }
        }
        if (c > 0) {
            ABSGD_SIMD
            for (int64_t p = 0; p < n; p++) {
                const double rise = (double)tile_max[p] - (double)max[p];
                out->sum[p] *= absgd_exp_nonpositive_f64(-rise);
                out->a_dot[p] += out->a_sum[p] == 0.0 ? 0.0 : rise * out->a_sum[p];
            }
        }
        memcpy(max, tile_max, (size_t)n * sizeof *max);
        for (int64_t k = 0; spreads(call) && !is_expected(call) && k < rows; k++) {
            REAL(block_a)(call, first + (c + k) * inner, c + k, n, a);
            ABSGD_SIMD
            for (int64_t p = 0; p < n; p++) {
                out->a_sum[p] += (double)a[p];
                out->a_dot[p] += (double)(a[p] * (max[p] - z[k][p]));
            }
        }
        for (int64_t p = 0; p < n; p++) {
            if (!is_expected(call) && c <= y[p] && y[p] < c + rows) z[y[p] - c][p] = -INFINITY;
            tile[p] = 0;
        }
        for (int64_t k = 0; k < rows; k++) {
            ABSGD_SIMD
            for (int64_t p = 0; p < n; p++) tile[p] += exp_nonpositive(z[k][p] - max[p]);
        }
        ABSGD_SIMD
        for (int64_t p = 0; p < n; p++) out->sum[p] += (double)tile[p];
    }
    for (int64_t p = 0; p < n; p++) {
        out->max[p] = max[p];
        out->z_y[p] = z_y[p];
        out->y[p] = y[p];
    }
}

/* As row_gradient, for samples s … s+n−1; others is 0 for ignored ones, whatever their logits. */
ABSGD_INLINE void REAL(block_gradient)(absgd_dtype dtype, const loss_call *call, int64_t s,
                                       int64_t n, const real *max, const real *others,
                                       const real *at_target, const real *a_factor, void *grad) {
    const absgd_softmax_loss *spec = &call->spec;
    const int64_t first = REAL(first_logit)(spec, s), inner = spec->inner;
    const real scale = (real)spec->scale;
    real a[BLOCK] = {0};
    for (int64_t c = 0; c < spec->classes; c++) {
        const int64_t at = first + c * inner;
        const real offset = REAL(of_class)(spec->offset, c, 0);
        if (spreads(call)) REAL(block_a)(call, at, c, n, a);
        ABSGD_SIMD
        for (int64_t p = 0; p < n; p++) {
            real z = ABSGD_FMA(scale, REAL(load)(dtype, call->logits, at + p), offset);
            real g = others[p] * exp_nonpositive(z - max[p]);
            REAL(store)(dtype, grad, at + p, (others[p] == 0 ? 0 : g) - a_factor[p] * a[p]);
        }
    }
    for (int64_t p = 0; call->target && p < n; p++) {
        if (!is_ignored(call, s + p)) {
            REAL(store)(dtype, grad, first + call->target[s + p] * inner + p, at_target[p]);
            continue;
        }
        for (int64_t c = 0; spreads(call) && c < spec->classes; c++) { /* whatever the weights */
            REAL(store)(dtype, grad, first + c * inner + p, 0);
        }
    }
}

/* ---- the passes ---- */

/* Where the results of a block's samples go: loss, and saved = [M, others, at_target, log T]. */
typedef struct REAL(results) {
    real *loss, *max, *others, *at_target, *log_total;
} REAL(results);

ABSGD_INLINE REAL(results)
    REAL(results_at)(const loss_call *call, int64_t s, void *loss, void *saved) {
    const int64_t samples = call->spec.samples;
    real *first = (real *)saved + s;
    REAL(results)
    to = {loss ? (real *)loss + s : NULL, first, first + samples, first + 2 * samples,
          first + 3 * samples};
    return to;
}

/* weight[p]: w_y, 0 where ignored */
ABSGD_INLINE void REAL(finish_hard)(const absgd_softmax_loss *spec, int is_focal, const sums *of,
                                    const double *weight, int64_t n, REAL(results) to) {
    const double kept = 1.0 - spec->label_smoothing, gamma = spec->focal_gamma;
    const double share = (real)(spec->label_smoothing / (double)spec->classes);
    ABSGD_SIMD
    for (int64_t p = 0; p < n; p++) {
        const double a_y = (real)(weight[p] * share); /* rounded as it is within a_sum */
        sample_result r = sample_hard(is_focal, of->max[p], of->sum[p], of->z_y[p],
                                      weight[p] * kept, gamma, a_y, of->a_sum[p], of->a_dot[p]);
        to.loss[p] = (real)r.loss;
        to.max[p] = (real)of->max[p];
        to.others[p] = (real)r.others;
        to.at_target[p] = (real)r.at_target;
        to.log_total[p] = (real)r.log_total;
    }
}

ABSGD_INLINE void REAL(finish_soft)(const sums *of, int64_t n, REAL(results) to) {
    ABSGD_SIMD
    for (int64_t p = 0; p < n; p++) {
        sample_result r = sample_soft(of->sum[p], of->a_sum[p], of->a_dot[p]);
        to.loss[p] = (real)r.loss;
        to.max[p] = (real)of->max[p];
        to.others[p] = (real)r.others;
        to.at_target[p] = (real)r.at_target;
        to.log_total[p] = (real)r.log_total;
    }
}

/* The results of samples s … s+n−1 from their sums. */
static ABSGD_NOINLINE void REAL(finish)(const loss_call *call, const sums *of, int64_t s, int64_t n,
                                        void *loss, void *saved) {
    const absgd_softmax_loss *spec = &call->spec;
    const REAL(results) to = REAL(results_at)(call, s, loss, saved);
    if (call->soft_target) {
        REAL(finish_soft)(of, n, to);
        return;
    }
    double weight[BLOCK];
    for (int64_t p = 0; p < n; p++) {
        weight[p] =
            is_ignored(call, s + p) ? 0 : REAL(of_class)(spec->weight, call->target[s + p], 1);
    }
    if (spec->focal_gamma != 0.0) {
        REAL(finish_hard)(spec, 1, of, weight, n, to);
    } else {
        REAL(finish_hard)(spec, 0, of, weight, n, to);
    }
    for (int64_t p = 0; p < n; p++) {
        if (!is_ignored(call, s + p)) continue;
        to.loss[p] = to.max[p] = to.others[p] = to.at_target[p] = to.log_total[p] = 0;
    }
}

#include "expected_loss_real.h"

ABSGD_INLINE void REAL(forward)(absgd_dtype dtype, const loss_call *call, void *loss, void *saved,
                                int64_t begin, int64_t end) {
    sums of = {0};
    for (int64_t s = begin, next; s < end; s = next) {
        next = block_end(&call->spec, s, end);
        if (call->spec.inner > 1 || has_few_classes(call)) {
            REAL(block_sums)(dtype, call, s, next - s, &of);
        } else {
            for (int64_t i = s; i < next; i += ROWS) {
                REAL(rows_sums)(dtype, call, i, next - i < ROWS ? next - i : ROWS, &of, i - s);
            }
        }
        if (is_expected(call)) {
            REAL(expected_finish)(dtype, call, &of, s, next - s, loss, saved);
        } else {
            REAL(finish)(call, &of, s, next - s, loss, saved);
        }
    }
}

ABSGD_INLINE void REAL(backward)(absgd_dtype dtype, const loss_call *call, const void *saved,
                                 const void *grad_loss, void *grad_logits, int64_t begin,
                                 int64_t end) {
    const real scale = (real)call->spec.scale, *upstream = grad_loss, *max = saved;
    const real *others = max + call->spec.samples, *at_target = others + call->spec.samples;
    for (int64_t s = begin, next; s < end; s = next) {
        next = block_end(&call->spec, s, end);
        const int64_t n = next - s;
        real factor[BLOCK], factor_others[BLOCK], factor_at_target[BLOCK];
        for (int64_t p = 0; p < n; p++) {
            factor[p] = is_ignored(call, s + p) ? 0 : upstream[s + p] * scale;
            factor_others[p] = is_ignored(call, s + p) ? 0 : factor[p] * others[s + p];
            factor_at_target[p] = factor[p] * at_target[s + p];
        }
        if (is_expected(call)) {
            REAL(expected_gradient)(dtype, call, s, n, saved, factor, grad_logits);
            continue;
        }
        if (call->spec.inner > 1) {
            REAL(block_gradient)(dtype, call, s, n, max + s, factor_others, factor_at_target,
                                 factor, grad_logits);
            continue;
        }
        for (int64_t i = s; i < next; i++) {
            if (is_ignored(call, i)) {
                REAL(row_zeros)(dtype, call, i, grad_logits);
            } else if (call->kept) {
                REAL(kept_gradient)(call, i, factor_others[i - s], factor_at_target[i - s],
                                    factor[i - s], grad_logits);
            } else {
                REAL(row_gradient)(dtype, call, i, max[i], factor_others[i - s],
                                   factor_at_target[i - s], factor[i - s], grad_logits);
            }
        }
    }
}
