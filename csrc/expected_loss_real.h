/* The loops of softmax_loss.c for the mean of the classes' losses under a soft target, where
 * margins or γ make these differ; included by softmax_loss_real.h. Each class has a term of its
 * own, which class_loss_math.h has, made of P = softmax(z): the classes are looked at again once M
 * and log T are known. */

/* What n classes side by side bring beside their logits. */
typedef struct REAL(class_tile) {
    real weight[TILE], share[TILE], margin[TILE], lost[TILE];
} REAL(class_tile);

/* What a call brings to every class, and a sample to each of its own: M, log T and 1/T. */
typedef struct REAL(common) {
    real gamma, share_sum;
} REAL(common);

typedef struct REAL(sample_frame) {
    real max, log_total, h;
} REAL(sample_frame);

ABSGD_INLINE REAL(class_spec) REAL(spec_of_class)(const absgd_softmax_loss *spec, int64_t c) {
    const real weight = REAL(of_class)(spec->weight, c, 1);
    const real margin = (real)spec->scale * REAL(of_class)(spec->margin, c, 0);
    REAL(class_spec)
    of = {(real)(1.0 - spec->label_smoothing) * weight,
          (real)(spec->label_smoothing / (double)spec->classes) * weight, margin,
          1 - exp_nonpositive(-margin)};
    return of;
}

static ABSGD_NOINLINE void REAL(fill_class_tile)(const absgd_softmax_loss *spec, int64_t c,
                                                 int64_t n, REAL(class_tile) *restrict tile) {
    ABSGD_SIMD
    for (int64_t i = 0; i < n; i++) {
        const REAL(class_spec) of = REAL(spec_of_class)(spec, c + i);
        tile->weight[i] = of.weight;
        tile->share[i] = of.share;
        tile->margin[i] = of.margin;
        tile->lost[i] = of.lost;
    }
}

static REAL(common) REAL(common_of)(const absgd_softmax_loss *spec) {
    double weights = (double)spec->classes;
    if (spec->weight && spec->label_smoothing != 0.0) {
        weights = 0.0;
        for (int64_t c = 0; c < spec->classes; c++) weights += ((const real *)spec->weight)[c];
    }
    const double share = spec->label_smoothing / (double)spec->classes;
    REAL(common) all = {(real)spec->focal_gamma, (real)(share * weights)};
    return all;
}

ABSGD_INLINE REAL(sample_frame) REAL(frame_of)(real max, real log_total) {
    REAL(sample_frame) frame = {max, log_total, exp_nonpositive(-log_total)};
    return frame;
}

/* ---- rows: (N, C) ---- */

/* Adds n classes' terms. The top's exp(z − M) may overflow: P is taken from −log P. */
ABSGD_INLINE void REAL(row_terms_of)(int has_margin, int focus, const REAL(class_tile) * of,
                                     const real *z, const real *q, int64_t n, REAL(sample_frame) at,
                                     REAL(common) all, double *loss_sum, double *slope_sum) {
    real loss = 0, slope = 0;
#pragma omp simd reduction(+ : loss, slope)
    for (int64_t i = 0; i < n; i++) {
        const REAL(class_spec) spec = {of->weight[i], of->share[i], of->margin[i], of->lost[i]};
        const real nll = (at.max - z[i]) + at.log_total;
        const REAL(class_result) r = REAL(class_loss)(
            has_margin, focus, spec, q[i], exp_nonpositive(-nll), nll, all.gamma, all.share_sum);
        loss += r.loss;
        slope += r.slope;
    }
    *loss_sum += (double)loss;
    *slope_sum += (double)slope;
}

static ABSGD_NOINLINE void REAL(row_terms)(const absgd_softmax_loss *spec,
                                           const REAL(class_tile) * of, const real *z,
                                           const real *q, int64_t n, REAL(sample_frame) at,
                                           REAL(common) all, double *loss_sum, double *slope_sum){
    EACH_KIND(REAL(row_terms_of), spec, of, z, q, n, at, all, loss_sum, slope_sum)}

/* In place of z: others·exp(z_c − M) − factor·r_c, but at_target of the one class that takes more
 * than exp(−½) of P, if there is one: 1 − P is lost there, and the top is known by it. */
ABSGD_INLINE
    void REAL(row_slopes_of)(int has_margin, int focus, const REAL(class_tile) * of,
                             real *restrict z, const real *q, int64_t n, REAL(sample_frame) at,
                             REAL(common) all, real others, real at_target, real factor) {
    ABSGD_SIMD
    for (int64_t i = 0; i < n; i++) {
        const REAL(class_spec) spec = {of->weight[i], of->share[i], of->margin[i], of->lost[i]};
        const real nll = (at.max - z[i]) + at.log_total, e = exp_nonpositive(z[i] - at.max);
        const REAL(class_result) r = REAL(class_loss)(has_margin, focus, spec, q[i], at.h * e, nll,
                                                      all.gamma, all.share_sum);
        z[i] = nll < (real)0.5 ? at_target : others * e - factor * r.slope;
    }
}

static ABSGD_NOINLINE void REAL(row_slopes)(const absgd_softmax_loss *spec,
                                            const REAL(class_tile) * of, real *z, const real *q,
                                            int64_t n, REAL(sample_frame) at, REAL(common) all,
                                            real others, real at_target, real factor){
    EACH_KIND(REAL(row_slopes_of), spec, of, z, q, n, at, all, others, at_target, factor)}

/* ---- blocks of positions: (N, C, inner) ---- */

ABSGD_INLINE void REAL(block_terms_of)(int has_margin, int focus, REAL(class_spec) of,
                                       const real *z, const real *q, int64_t n, const real *max,
                                       const real *log_total, REAL(common) all,
                                       double *restrict loss_sum, double *restrict slope_sum) {
    ABSGD_SIMD
    for (int64_t p = 0; p < n; p++) {
        const real nll = (max[p] - z[p]) + log_total[p];
        const REAL(class_result) r = REAL(class_loss)(
            has_margin, focus, of, q[p], exp_nonpositive(-nll), nll, all.gamma, all.share_sum);
        loss_sum[p] += (double)r.loss;
        slope_sum[p] += (double)r.slope;
    }
}

static ABSGD_NOINLINE void REAL(block_terms)(const absgd_softmax_loss *spec, REAL(class_spec) of,
                                             const real *z, const real *q, int64_t n,
                                             const real *max, const real *log_total,
                                             REAL(common) all, double *loss_sum, double *slope_sum){
    EACH_KIND(REAL(block_terms_of), spec, of, z, q, n, max, log_total, all, loss_sum, slope_sum)}

ABSGD_INLINE
    void REAL(block_slopes_of)(int has_margin, int focus, REAL(class_spec) of, real *restrict z,
                               const real *q, int64_t n, const real *max, const real *log_total,
                               const real *h, REAL(common) all, const real *others,
                               const real *at_target, const real *factor) {
    ABSGD_SIMD
    for (int64_t p = 0; p < n; p++) {
        const real nll = (max[p] - z[p]) + log_total[p], e = exp_nonpositive(z[p] - max[p]);
        const REAL(class_result) r =
            REAL(class_loss)(has_margin, focus, of, q[p], h[p] * e, nll, all.gamma, all.share_sum);
        z[p] = nll < (real)0.5 ? at_target[p] : others[p] * e - factor[p] * r.slope;
    }
}

static ABSGD_NOINLINE void
REAL(block_slopes)(const absgd_softmax_loss *spec, REAL(class_spec) of, real *z, const real *q,
                   int64_t n, const real *max, const real *log_total, const real *h,
                   REAL(common) all, const real *others, const real *at_target,
                   const real *factor){EACH_KIND(REAL(block_slopes_of), spec, of, z, q, n, max,
                                                 log_total, h, all, others, at_target, factor)}

/* ---- the passes ---- */

/* The terms of all classes but the top's into a_dot (losses) and a_sum (slopes). */
ABSGD_INLINE
    void REAL(expected_sums)(absgd_dtype dtype, const loss_call *call, int64_t s, int64_t n,
                             const real *max, const real *log_total, REAL(common) all, sums *of) {
    const absgd_softmax_loss *spec = &call->spec;
    const real *soft_target = call->soft_target;
    real z[TILE], q[TILE];
    memset(of->a_sum, 0, sizeof of->a_sum);
    memset(of->a_dot, 0, sizeof of->a_dot);
    if (spec->inner > 1) {
        for (int64_t c = 0; c < spec->classes; c++) {
            const int64_t at = REAL(first_logit)(spec, s) + c * spec->inner;
            REAL(positions_z)(dtype, call, at, c, n, z);
            for (int64_t p = 0; p < n; p++) q[p] = of->y[p] == c ? 0 : soft_target[at + p];
            REAL(block_terms)(spec, REAL(spec_of_class)(spec, c), z, q, n, max, log_total, all,
                              of->a_dot, of->a_sum);
        }
        return;
    }
    REAL(class_tile) tile;
    for (int64_t c = 0; c < spec->classes; c += TILE) {
        const int64_t width = spec->classes - c < TILE ? spec->classes - c : TILE;
        REAL(fill_class_tile)(spec, c, width, &tile);
        for (int64_t r = 0; r < n; r++) {
            const int64_t at = (s + r) * spec->classes + c, top = of->y[r] - c;
            REAL(row_z)(dtype, call, at, c, width, z);
            memcpy(q, soft_target + at, (size_t)width * sizeof *q);
            if (0 <= top && top < width) q[top] = 0;
            REAL(row_terms)(spec, &tile, z, q, width, REAL(frame_of)(max[r], log_total[r]), all,
                            &of->a_dot[r], &of->a_sum[r]);
        }
    }
}

static sample_top REAL(top_of)(const loss_call *call, const sums *of, int64_t s, int64_t p) {
    const absgd_softmax_loss *spec = &call->spec;
    const int64_t y = of->y[p] < 0 ? 0 : of->y[p]; /* none is larger than −∞ */
    const int64_t first = REAL(first_logit)(spec, s + p);
    const REAL(class_spec) own = REAL(spec_of_class)(spec, y);
    const sample_top top = {of->z_y[p], ((const real *)call->soft_target)[first + y * spec->inner],
                            own.margin, own.weight, own.share};
    return top;
}

/* The results of samples s … s+n−1 from the sums over their classes, the top's left out. */
ABSGD_INLINE void REAL(expected_finish)(absgd_dtype dtype, const loss_call *call, sums *of,
                                        int64_t s, int64_t n, void *loss, void *saved) {
    const REAL(results) to = REAL(results_at)(call, s, loss, saved);
    const REAL(common) all = REAL(common_of)(&call->spec);
    sample_top top[BLOCK];
    for (int64_t p = 0; p < n; p++) {
        top[p] = REAL(top_of)(call, of, s, p);
        const double own = top[p].z - top[p].margin, above = of->max[p] > own ? of->max[p] : own;
        to.max[p] = (real)above;
        const double nll = sample_top_nll(top[p].z, of->max[p], of->sum[p]);
        to.log_total[p] = (real)(top[p].z - (double)to.max[p] + nll);
    }
    REAL(expected_sums)(dtype, call, s, n, to.max, to.log_total, all, of);
    for (int64_t p = 0; p < n; p++) {
        const sample_result r = sample_expected(
            call->spec.focal_gamma != 0.0, to.max[p], of->max[p], of->sum[p], top[p],
            call->spec.focal_gamma, all.share_sum, of->a_dot[p], of->a_sum[p]);
        to.loss[p] = (real)r.loss;
        to.others[p] = (real)r.others;
        to.at_target[p] = (real)r.at_target;
    }
}

/* ∂L/∂x of samples s … s+n−1; factor: grad_loss·scale of each. */
ABSGD_INLINE void REAL(expected_gradient)(absgd_dtype dtype, const loss_call *call, int64_t s,
                                          int64_t n, const void *saved, const real *factor,
                                          void *grad) {
    const absgd_softmax_loss *spec = &call->spec;
    const REAL(results) from = REAL(results_at)(call, s, NULL, (void *)saved);
    const REAL(common) all = REAL(common_of)(spec);
    const real *q = call->soft_target;
    real z[TILE], h[BLOCK], others[BLOCK], at_target[BLOCK];
    for (int64_t p = 0; p < n; p++) {
        h[p] = exp_nonpositive(-from.log_total[p]);
        others[p] = factor[p] * from.others[p];
        at_target[p] = factor[p] * from.at_target[p];
    }
    if (spec->inner > 1) {
        for (int64_t c = 0; c < spec->classes; c++) {
            const int64_t at = REAL(first_logit)(spec, s) + c * spec->inner;
            REAL(positions_z)(dtype, call, at, c, n, z);
            REAL(block_slopes)(spec, REAL(spec_of_class)(spec, c), z, q + at, n, from.max,
                               from.log_total, h, all, others, at_target, factor);
            REAL(store_all)(dtype, grad, at, n, z);
        }
        return;
    }
    REAL(class_tile) tile;
    for (int64_t c = 0; c < spec->classes; c += TILE) {
        const int64_t width = spec->classes - c < TILE ? spec->classes - c : TILE;
        REAL(fill_class_tile)(spec, c, width, &tile);
        for (int64_t r = 0; r < n; r++) {
            const int64_t at = (s + r) * spec->classes + c;
            const REAL(sample_frame) frame = {from.max[r], from.log_total[r], h[r]};
            REAL(row_z)(dtype, call, at, c, width, z);
            REAL(row_slopes)(spec, &tile, z, q + at, width, frame, all, others[r], at_target[r],
                             factor[r]);
            REAL(store_all)(dtype, grad, at, width, z);
        }
    }
}
