/* What stands between a softmax loss, its weights and the scalar to differentiate. */
#ifndef ABSGD_WEIGHTED_LOSS_CUH
#define ABSGD_WEIGHTED_LOSS_CUH

#include "device.cuh"

namespace absgd {

[[maybe_unused]] static __global__ void counted_kernel(const int64_t *target, int64_t n,
                                                       int64_t ignore_index, uint8_t *mask) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
         i += stride) {
        mask[i] = target[i] != ignore_index;
    }
}

/* One block, so that the order of the sum is fixed; in double, as on the CPU. */
template <class T>
__global__ void __launch_bounds__(THREADS)
    dot_kernel(const T *coefficients, const T *losses, int64_t n, T *total) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        sum += static_cast<double>(coefficients[i]) * static_cast<double>(losses[i]);
    }
    sum = reduce(sum, blockDim.x, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) *total = static_cast<T>(sum);
}

} // namespace absgd
#endif
