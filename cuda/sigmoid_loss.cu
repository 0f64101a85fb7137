/* Launchers of sigmoid_loss.cuh. */
#include "sigmoid_loss.cuh"

#include "checks.h"

using namespace absgd;

static int64_t at_most_int(int64_t blocks) { return blocks < INT32_MAX ? blocks : INT32_MAX; }

absgd_status absgd_sigmoid_loss_forward_cuda(absgd_dtype dtype, const absgd_sigmoid_loss *spec,
                                             const void *logits, const void *target, void *loss,
                                             void *known, void *stream) {
    const absgd_status status = absgd_check_sigmoid_loss(dtype, spec, 0, 0);
    if (status != ABSGD_OK) return status;
    const int64_t elements = spec->samples * spec->classes * spec->inner;
    if (spec->samples == 0 || (elements == 0 && !spec->per_sample)) return ABSGD_OK;
    ABSGD_REQUIRE(loss && (known || !spec->per_sample), ABSGD_NULL_POINTER);
    ABSGD_REQUIRE((logits && target) || elements == 0, ABSGD_NULL_POINTER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        using A = typename arithmetic<S>::type;
        const auto call = sigmoid_call_of<S>(*spec, logits, target, THREADS);
        A *losses = static_cast<A *>(loss);
        if (!spec->per_sample) {
            return launch(sigmoid_elements_kernel<S>, {at_most_int(ceil_div(elements, THREADS))},
                          stream, call, losses);
        }
        const int64_t blocks = at_most_int(ceil_div(spec->samples, THREADS / call.lanes));
        return launch(sigmoid_samples_kernel<S>, {blocks}, stream, call, losses,
                      static_cast<A *>(known));
    });
}

absgd_status absgd_sigmoid_loss_backward_cuda(absgd_dtype dtype, const absgd_sigmoid_loss *spec,
                                              const void *logits, const void *target,
                                              const void *known, const void *grad_loss,
                                              const void *grad_factor, void *grad_logits,
                                              void *stream) {
    const absgd_status status = absgd_check_sigmoid_loss(dtype, spec, 0, 0);
    if (status != ABSGD_OK) return status;
    const int64_t elements = spec->samples * spec->classes * spec->inner;
    if (elements == 0) return ABSGD_OK;
    ABSGD_REQUIRE(logits && target && grad_loss && grad_logits, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(known || !spec->per_sample, ABSGD_NULL_POINTER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        using A = typename arithmetic<S>::type;
        return launch(sigmoid_backward_kernel<S>, {at_most_int(ceil_div(elements, THREADS))},
                      stream, sigmoid_call_of<S>(*spec, logits, target, THREADS),
                      spec->per_sample ? static_cast<const A *>(known) : nullptr,
                      static_cast<const A *>(grad_loss), static_cast<const A *>(grad_factor),
                      static_cast<S *>(grad_logits));
    });
}
