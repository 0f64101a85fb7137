/* What stands between a softmax loss, its weights and the scalar to differentiate. */
#ifndef ABSGD_WEIGHTED_LOSS_CUH
#define ABSGD_WEIGHTED_LOSS_CUH

#include "device.cuh"

namespace absgd {

template <class T> struct measure_call {
    const int64_t *target; /* or NULL */
    const T *soft_target;
    const uint8_t *mask;            /* or NULL */
    const T *weight, *class_weight; /* each may be NULL */
    int64_t samples, classes, inner, ignore_index;

    /* class_weight[y], or Σ_c class_weight_c q_c; 1 for an ignored sample, which has none */
    __device__ T of_class(int64_t i) const {
        if (!class_weight) return 1;
        if (target) {
            const int64_t y = target[i];
            if (y == ignore_index) return 1;
            return 0 <= y && y < classes ? class_weight[y] : T(NAN);
        }
        const T *q = soft_target + i / inner * classes * inner + i % inner;
        double sum = 0.0;
        for (int64_t c = 0; c < classes; c++) {
            sum += static_cast<double>(class_weight[c]) * static_cast<double>(q[c * inner]);
        }
        return static_cast<T>(sum);
    }
};

/* Which samples count, and their base measure; either may be NULL. */
template <class T>
__global__ void __launch_bounds__(THREADS)
    measure_kernel(measure_call<T> call, uint8_t *counts, T *measure) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < call.samples;
         i += stride) {
        if (counts) {
            const bool is_kept = !call.mask || call.mask[i];
            counts[i] = is_kept && !(call.target && call.target[i] == call.ignore_index);
        }
        if (measure) measure[i] = (call.weight ? call.weight[i] : T(1)) * call.of_class(i);
    }
}

/* One block, so that the order of the sum is fixed; in double, as on the CPU. */
template <class T>
__global__ void __launch_bounds__(THREADS)
    dot_kernel(const T *coefficients, const T *losses, const uint8_t *mask, int64_t n, T *total) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        if (mask && !mask[i]) continue;
        sum += static_cast<double>(coefficients[i]) * static_cast<double>(losses[i]);
    }
    sum = reduce(sum, blockDim.x, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) *total = static_cast<T>(sum);
}

} // namespace absgd
#endif
