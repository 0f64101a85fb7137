/* The momentum step over a list of tensors in one launch.
 *
 * The list is a kernel parameter (since CUDA 12.1 these may take 32,764 bytes), so that no copy to
 * the device comes before the launch; its capacity is that of a short, a usual or the longest list,
 * since all of it travels with the launch. A block does one piece of one tensor, and finds which by
 * bisection in the first blocks of all of them. Two arrays are written and three read, once, 16
 * bytes at a time where all three allow it. */
#ifndef ABSGD_SGD_CUH
#define ABSGD_SGD_CUH

#include "device.cuh"

namespace absgd {

constexpr int STEP_TENSORS = 640;       /* of a launch, at most */
constexpr int STEP_PIECE_BYTES = 16384; /* of a tensor, for one block */

template <class S> constexpr int64_t STEP_PIECE = STEP_PIECE_BYTES / sizeof(S);

/* The step of one element, by its arithmetic type. */
template <class A> struct step_of;

template <> struct step_of<float> {
    using constants = absgd_step_f32_constants;
    static constants prepare(const absgd_sgd_options *o) { return absgd_step_f32_prepare(o); }
    __device__ static float of(float w, float g, float *v, int has_momentum, int fresh,
                               const constants &k) {
        return absgd_step_f32(w, g, v, has_momentum, fresh, k);
    }
};

template <> struct step_of<double> {
    using constants = absgd_step_f64_constants;
    static constants prepare(const absgd_sgd_options *o) { return absgd_step_f64_prepare(o); }
    __device__ static double of(double w, double g, double *v, int has_momentum, int fresh,
                                const constants &k) {
        return absgd_step_f64(w, g, v, has_momentum, fresh, k);
    }
};

template <class S, int CAPACITY> struct step_call {
    using A = typename arithmetic<S>::type;

    typename step_of<A>::constants constants;
    const double *lr, *grad_scale, *found_inf; /* on the device, each may be NULL */
    int maximize;
    int n_tensors;
    absgd_tensor tensors[CAPACITY];     /* none of them empty */
    unsigned first_block[CAPACITY + 1]; /* ascending; the last one is the grid */
};

static_assert(sizeof(step_call<double, STEP_TENSORS>) <= 32764,
              "kernel parameters are limited to 32,764 bytes");

/* Fills call with as many tensors from *next on as fit, and moves *next past them. */
template <class S, int CAPACITY>
void fill(step_call<S, CAPACITY> &call, const absgd_tensor *tensors, int64_t n_tensors,
          bool has_momentum, int64_t *next) {
    call.n_tensors = 0;
    call.first_block[0] = 0;
    for (; *next < n_tensors && call.n_tensors < CAPACITY; ++*next) {
        const absgd_tensor &t = tensors[*next];
        if (t.numel == 0) continue;
        const int64_t end = call.first_block[call.n_tensors] + ceil_div(t.numel, STEP_PIECE<S>);
        call.tensors[call.n_tensors] = t;
        if (!has_momentum) call.tensors[call.n_tensors].momentum = nullptr;
        call.n_tensors++;
        call.first_block[call.n_tensors] = static_cast<unsigned>(end);
    }
}

/* The tensor that a block works on: the last whose first block is not after it. */
template <class S, int CAPACITY>
__device__ int tensor_of(const step_call<S, CAPACITY> &call, unsigned block) {
    int low = 0, high = call.n_tensors;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (call.first_block[middle] <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Elements [0, n), by the threads of a block, V at a time; n is a multiple of V. */
template <int V, class S, class K>
__device__ void step_span(S *w, const S *g, S *v, int64_t n, int fresh, const K &k) {
    using A = typename arithmetic<S>::type;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * V; i < n; i += blockDim.x * V) {
        pack<S, V> weights = read<V>(w + i), momentum = {};
        const pack<S, V> gradient = read<V>(g + i);
        if (v && !fresh) momentum = read<V>(v + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            A velocity = to_real(momentum.of[j]);
            weights.of[j] =
                from_real<S>(step_of<A>::of(to_real(weights.of[j]), to_real(gradient.of[j]),
                                            &velocity, v != nullptr, fresh, k));
            momentum.of[j] = from_real<S>(velocity);
        }
        write(w + i, weights);
        if (v) write(v + i, momentum);
    }
}

template <class S, int CAPACITY>
__global__ void __launch_bounds__(THREADS)
    step_kernel(const __grid_constant__ step_call<S, CAPACITY> call) {
    using A = typename arithmetic<S>::type;
    if (call.found_inf && *call.found_inf != 0.0) return;
    typename step_of<A>::constants k = call.constants;
    if (call.lr) k.lr = static_cast<A>(*call.lr);
    if (call.grad_scale) {
        k.grad_factor = static_cast<A>(absgd_grad_factor(call.maximize, *call.grad_scale));
    }
    const int index = tensor_of(call, blockIdx.x);
    const absgd_tensor &t = call.tensors[index];
    const int64_t from = (blockIdx.x - call.first_block[index]) * STEP_PIECE<S>;
    const int64_t rest = t.numel - from;
    const int64_t n = rest < STEP_PIECE<S> ? rest : STEP_PIECE<S>;
    S *w = static_cast<S *>(t.param) + from;
    const S *g = static_cast<const S *>(t.grad) + from;
    S *v = t.momentum ? static_cast<S *>(t.momentum) + from : nullptr;

    constexpr int V = PER_16_BYTES<S>;
    const int64_t packed = is_aligned(w) && is_aligned(g) && is_aligned(v) ? n / V * V : 0;
    step_span<V>(w, g, v, packed, t.fresh, k);
    step_span<1>(w + packed, g + packed, v ? v + packed : nullptr, n - packed, t.fresh, k);
}

} // namespace absgd
#endif
