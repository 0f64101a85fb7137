/* Launchers of softmax_loss.cuh and expected_loss.cuh. */
#include "expected_loss.cuh"

#include "checks.h"

using namespace absgd;

template <class S> static shape shape_for(const loss_call<S> &call) {
    const int64_t blocks = ceil_div(call.samples, THREADS / call.lanes);
    return {blocks < INT32_MAX ? blocks : INT32_MAX};
}

absgd_status absgd_softmax_loss_forward_cuda(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                             const void *logits, const int64_t *target,
                                             const void *soft_target, void *loss, void *saved,
                                             void *stream) {
    const absgd_status status =
        absgd_check_softmax_loss(dtype, spec, target, soft_target, 0, spec ? spec->samples : 0);
    if (status != ABSGD_OK) return status;
    ABSGD_REQUIRE(spec->classes <= MAX_CLASSES, ABSGD_INVALID_SIZE);
    if (spec->samples == 0) return ABSGD_OK;
    ABSGD_REQUIRE(logits && loss && saved, ABSGD_NULL_POINTER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        using A = typename arithmetic<S>::type;
        const auto call = loss_call_of<S>(*spec, logits, target, soft_target, THREADS);
        constexpr int V = PER_16_BYTES<S>;
        const bool wide = is_wide(*spec, call.logits, call.logits), plain = call.is_plain();
        if (call.is_expected()) {
            const auto kernel =
                wide ? expected_forward_kernel<V, S> : expected_forward_kernel<1, S>;
            return launch(kernel, shape_for(call), stream, call, absgd_focus_at(spec->focal_gamma),
                          static_cast<A *>(loss), static_cast<A *>(saved));
        }
        const auto kernel =
            wide ? (plain ? loss_forward_kernel<true, V, S> : loss_forward_kernel<false, V, S>)
                 : (plain ? loss_forward_kernel<true, 1, S> : loss_forward_kernel<false, 1, S>);
        return launch(kernel, shape_for(call), stream, call, static_cast<A *>(loss),
                      static_cast<A *>(saved));
    });
}

absgd_status absgd_softmax_loss_backward_cuda(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                              const void *logits, const int64_t *target,
                                              const void *soft_target, const void *saved,
                                              const void *grad_loss, const void *grad_factor,
                                              void *grad_logits, void *stream) {
    const absgd_status status =
        absgd_check_softmax_loss(dtype, spec, target, soft_target, 0, spec ? spec->samples : 0);
    if (status != ABSGD_OK) return status;
    ABSGD_REQUIRE(spec->classes <= MAX_CLASSES, ABSGD_INVALID_SIZE);
    if (spec->samples == 0) return ABSGD_OK;
    ABSGD_REQUIRE(logits && saved && grad_loss && grad_logits, ABSGD_NULL_POINTER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        using A = typename arithmetic<S>::type;
        const auto call = loss_call_of<S>(*spec, logits, target, soft_target, THREADS);
        S *grad = static_cast<S *>(grad_logits);
        constexpr int V = PER_16_BYTES<S>;
        const bool wide = is_wide<S>(*spec, call.logits, grad), plain = call.is_plain();
        if (call.is_expected()) {
            const auto kernel =
                wide ? expected_backward_kernel<V, S> : expected_backward_kernel<1, S>;
            return launch(kernel, shape_for(call), stream, call, absgd_focus_at(spec->focal_gamma),
                          static_cast<const A *>(saved), static_cast<const A *>(grad_loss),
                          static_cast<const A *>(grad_factor), grad);
        }
        const auto kernel =
            wide ? (plain ? loss_backward_kernel<true, V, S> : loss_backward_kernel<false, V, S>)
                 : (plain ? loss_backward_kernel<true, 1, S> : loss_backward_kernel<false, 1, S>);
        return launch(kernel, shape_for(call), stream, call, static_cast<const A *>(saved),
                      static_cast<const A *>(grad_loss), static_cast<const A *>(grad_factor), grad);
    });
}
