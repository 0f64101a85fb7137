/* Launcher of sgd.cuh. */
#include "sgd.cuh"

#include "checks.h"

using namespace absgd;

template <class S, int CAPACITY>
static absgd_status step_in_lists(const absgd_tensor *tensors, int64_t n_tensors,
                                  const absgd_sgd_options *options, const double *lr,
                                  const double *grad_scale, const double *found_inf, void *stream) {
    step_call<S, CAPACITY> call;
    call.constants = step_of<typename arithmetic<S>::type>::prepare(options);
    call.lr = lr;
    call.grad_scale = grad_scale;
    call.found_inf = found_inf;
    call.maximize = options->maximize;
    for (int64_t next = 0; next < n_tensors;) {
        fill(call, tensors, n_tensors, options->momentum != 0.0, &next);
        if (call.n_tensors == 0) break; /* only empty ones were left */
        const absgd_status status =
            launch(step_kernel<S, CAPACITY>, {call.first_block[call.n_tensors]}, stream, call);
        if (status != ABSGD_OK) return status;
    }
    return ABSGD_OK;
}

template <class S, class... Arguments>
static absgd_status step(const absgd_tensor *tensors, int64_t n, const Arguments &...arguments) {
    if (n <= 8) return step_in_lists<S, 8>(tensors, n, arguments...);
    if (n <= 128) return step_in_lists<S, 128>(tensors, n, arguments...);
    return step_in_lists<S, STEP_TENSORS>(tensors, n, arguments...);
}

absgd_status absgd_sgd_step_cuda(absgd_dtype dtype, const absgd_tensor *tensors, int64_t n_tensors,
                                 const absgd_sgd_options *options, const double *lr,
                                 const double *grad_scale, const double *found_inf, void *stream) {
    const absgd_status status = absgd_check_step(dtype, tensors, n_tensors, options);
    if (status != ABSGD_OK) return status;
    return with_type(dtype, [&](auto zero) {
        return step<decltype(zero)>(tensors, n_tensors, options, lr, grad_scale, found_inf, stream);
    });
}
