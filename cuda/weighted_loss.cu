/* Launchers of weighted_loss.cuh. */
#include "weighted_loss.cuh"

#include "checks.h"

using namespace absgd;

template <class T>
static absgd_status measure_of(const absgd_softmax_loss *spec, const int64_t *target,
                               const void *soft_target, const uint8_t *mask, const void *weight,
                               const void *class_weight, uint8_t *counts, void *measure,
                               void *stream) {
    const measure_call<T> call = {target,
                                  static_cast<const T *>(soft_target),
                                  mask,
                                  static_cast<const T *>(weight),
                                  static_cast<const T *>(class_weight),
                                  spec->samples,
                                  spec->classes,
                                  spec->inner,
                                  spec->ignore_index};
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
