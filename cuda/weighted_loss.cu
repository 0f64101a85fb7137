/* Launchers of weighted_loss.cuh. */
#include "weighted_loss.cuh"

#include "checks.h"

using namespace absgd;

template <class T>
static measure_call<T> measure_call_of(const absgd_softmax_loss *spec, const int64_t *target,
                                       const void *soft_target, const uint8_t *mask,
                                       const void *weight, const void *class_weight) {
    return {target,
            static_cast<const T *>(soft_target),
            mask,
            static_cast<const T *>(weight),
            static_cast<const T *>(class_weight),
            spec->samples,
            spec->classes,
            spec->inner,
            spec->ignore_index};
}

template <class T>
static absgd_status measure_of(const absgd_softmax_loss *spec, const int64_t *target,
                               const void *soft_target, const uint8_t *mask, const void *weight,
                               const void *class_weight, uint8_t *counts, void *measure,
                               void *stream) {
    const auto call = measure_call_of<T>(spec, target, soft_target, mask, weight, class_weight);
    const int64_t blocks = ceil_div(spec->samples, THREADS);
    return launch(measure_kernel<T>, {blocks < 65536 ? blocks : 65536}, stream, call, counts,
                  static_cast<T *>(measure));
}

absgd_status absgd_base_measure_cuda(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                     const int64_t *target, const void *soft_target,
                                     const uint8_t *mask, const void *weight,
                                     const void *class_weight, uint8_t *counts, void *measure,
                                     void *stream) {
    const absgd_status status =
        absgd_check_softmax_loss(dtype, spec, target, soft_target, 0, spec ? spec->samples : 0);
    if (status != ABSGD_OK) return status;
    if (spec->samples == 0) return ABSGD_OK;
    return (dtype == ABSGD_FLOAT64 ? measure_of<double>
                                   : measure_of<float>)(spec, target, soft_target, mask, weight,
                                                        class_weight, counts, measure, stream);
}

template <class T>
static absgd_status dot_of(const void *coefficients, const void *losses, const uint8_t *mask,
                           int64_t n, void *total, void *stream) {
    return launch(dot_kernel<T>, {1}, stream, static_cast<const T *>(coefficients),
                  static_cast<const T *>(losses), mask, n, static_cast<T *>(total));
}

absgd_status absgd_dot_cuda(absgd_dtype dtype, const void *coefficients, const void *losses,
                            const uint8_t *mask, int64_t n, void *total, void *stream) {
    ABSGD_REQUIRE(dtype == ABSGD_FLOAT32 || dtype == ABSGD_FLOAT64, ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(total && ((coefficients && losses) || n == 0), ABSGD_NULL_POINTER);
    return (dtype == ABSGD_FLOAT64 ? dot_of<double> : dot_of<float>)(coefficients, losses, mask, n,
                                                                     total, stream);
}

/* ---- all of it ---- */

template <class T>
static weighting_call<T> weighting_call_of(const absgd_softmax_loss *spec, const int64_t *target,
                                           const void *soft_target, const absgd_weighting &w,
                                           const void *loss) {
    weighting_call<T> call;
    call.measured = measure_call_of<T>(spec, target, soft_target, w.mask, w.weight, w.class_weight);
    call.counts = w.counts;
    call.measure = static_cast<T *>(w.measure);
    call.batch = {{static_cast<const T *>(loss), w.counts ? w.counts : w.mask,
                   static_cast<const T *>(w.measure ? w.measure : w.weight), spec->samples},
                  w.lam,
                  nullptr,
                  0,
                  w.scratch};
    call.lam_rule = w.lam_rule;
    call.lam_scratch = w.lam_scratch;
    call.lam = w.lam;
    call.rule = {*w.rule, w.log_s, w.log_s_lam, w.reports};
    call.weights = static_cast<T *>(w.weights);
    call.coefficients = static_cast<T *>(w.coefficients);
    call.total = static_cast<T *>(w.total);
    return call;
}

static absgd_status check_weighting(const absgd_weighting *w, int64_t samples) {
    ABSGD_REQUIRE(w && w->lam && w->rule && w->log_s && w->log_s_lam && w->reports && w->total,
                  ABSGD_NULL_POINTER);
    ABSGD_REQUIRE((w->weights && w->coefficients) || samples == 0, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(w->measure || !w->class_weight, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE((w->scratch && (w->lam_scratch || !w->lam_rule)) || samples <= ABSGD_CUDA_CHUNK,
                  ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(absgd_is_rule(w->rule), ABSGD_INVALID_HYPERPARAMETER);
    return ABSGD_OK;
}

absgd_status absgd_weighted_softmax_loss_cuda(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                              const void *logits, const int64_t *target,
                                              const void *soft_target,
                                              const absgd_weighting *weighting, void *loss,
                                              void *saved, void *stream) {
    absgd_status status =
        absgd_check_softmax_loss(dtype, spec, target, soft_target, 0, spec ? spec->samples : 0);
    if (status == ABSGD_OK) status = check_weighting(weighting, spec->samples);
    if (status != ABSGD_OK) return status;
    ABSGD_REQUIRE(spec->classes <= MAX_CLASSES, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE((logits && loss && saved) || spec->samples == 0, ABSGD_NULL_POINTER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        using A = typename arithmetic<S>::type;
        const auto call = loss_call_of<S>(*spec, logits, target, soft_target, THREADS);
        const auto rest = weighting_call_of<A>(spec, target, soft_target, *weighting, loss);
        constexpr int V = PER_16_BYTES<S>;
        const bool wide = is_wide(*spec, call.logits, call.logits), plain = call.is_plain();
        const int64_t wanted = ceil_div(call.samples, THREADS / call.lanes);
        const shape blocks = shape_that_meets(wanted, RESIDENT_LOSSES<S>);
        if (call.is_expected()) {
            const auto kernel =
                wide ? weighted_expected_kernel<V, S> : weighted_expected_kernel<1, S>;
            return launch(kernel, blocks, stream, call, absgd_focus_at(spec->focal_gamma), rest,
                          static_cast<A *>(loss), static_cast<A *>(saved));
        }
        const auto kernel =
            wide ? (plain ? weighted_loss_kernel<true, V, S> : weighted_loss_kernel<false, V, S>)
                 : (plain ? weighted_loss_kernel<true, 1, S> : weighted_loss_kernel<false, 1, S>);
        return launch(kernel, blocks, stream, call, rest, static_cast<A *>(loss),
                      static_cast<A *>(saved));
    });
}
