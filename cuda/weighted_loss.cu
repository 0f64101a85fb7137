/* Launchers of weighted_loss.cuh. */
#include "weighted_loss.cuh"

#include "checks.h"

using namespace absgd;

absgd_status absgd_counted_cuda(const int64_t *target, int64_t n, int64_t ignore_index,
                                uint8_t *mask, void *stream) {
    ABSGD_REQUIRE(n >= 0, ABSGD_INVALID_SIZE);
    if (n == 0) return ABSGD_OK;
    ABSGD_REQUIRE(target && mask, ABSGD_NULL_POINTER);
    const int64_t blocks = ceil_div(n, THREADS);
    return launch(counted_kernel, {blocks < 65536 ? blocks : 65536}, stream, target, n,
                  ignore_index, mask);
}

absgd_status absgd_dot_cuda(absgd_dtype dtype, const void *coefficients, const void *losses,
                            int64_t n, void *total, void *stream) {
    ABSGD_REQUIRE(dtype == ABSGD_FLOAT32 || dtype == ABSGD_FLOAT64, ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(total && ((coefficients && losses) || n == 0), ABSGD_NULL_POINTER);
    if (dtype == ABSGD_FLOAT64) {
        return launch(dot_kernel<double>, {1}, stream, static_cast<const double *>(coefficients),
                      static_cast<const double *>(losses), n, static_cast<double *>(total));
    }
    return launch(dot_kernel<float>, {1}, stream, static_cast<const float *>(coefficients),
                  static_cast<const float *>(losses), n, static_cast<float *>(total));
}
