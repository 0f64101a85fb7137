/* Per-sample sigmoid losses, forward and backward: binary cross-entropy and sigmoid focal.
 *
 * Elements are independent: a loss or a gradient of each is a grid's walk over them. A loss of each
 * sample is the mean over its elements: `lanes` adjacent threads share the sample, a power of two
 * up to a warp or the whole block, and their sums are joined. */
#ifndef ABSGD_SIGMOID_LOSS_CUH
#define ABSGD_SIGMOID_LOSS_CUH

#include "device.cuh"

namespace absgd {

#define FORMULAS "sigmoid_loss_math.h"
#include "in_both_types.h"
using f32::element, f64::element;

template <class S> struct sigmoid_call {
    using A = typename arithmetic<S>::type;

    const S *logits;
    const A *target, *weight, *pos_weight; /* the last two may be NULL */
    int64_t samples, size, classes, inner; /* size: elements of a sample */
    A kept, share;                         /* 1 − ε and ε/2 */
    A alpha_1, alpha_0, gamma, ignored;
    int focus, lanes;

    __device__ bool counts(int64_t i) const { return target[i] != ignored; }

    /* Loss and slope of element i; NaN for a target out of range. */
    __device__ auto element(int64_t i) const {
        const A t = target[i];
        const bool fits =
            t >= -static_cast<A>(ABSGD_TARGET_SLACK) && t <= 1 + static_cast<A>(ABSGD_TARGET_SLACK);
        const A x = fits ? to_real(logits[i]) : static_cast<A>(NAN);
        const A q = kept * t + share, n = kept * (1 - t) + share;
        const int64_t c = weight || pos_weight ? i / inner % classes : 0;
        const A w = weight ? weight[c] : 1, w_pos = pos_weight ? pos_weight[c] : 1;
        return absgd::element(focus, x, q, n, w, w_pos, alpha_1, alpha_0, gamma);
    }
};

template <class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS) sigmoid_elements_kernel(sigmoid_call<S> call, A *loss) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
         i < call.samples * call.size; i += stride) {
        loss[i] = call.counts(i) ? call.element(i).loss : A(0);
    }
}

/* The sum of losses and how many they are, over part of a sample. */
template <class A> struct known_sum {
    A sum, count;
};

template <class A>
__device__ known_sum<A> join_known(const known_sum<A> &a, const known_sum<A> &b) {
    return {a.sum + b.sum, a.count + b.count};
}

template <class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS)
    sigmoid_samples_kernel(sigmoid_call<S> call, A *loss, A *known) {
    const int lane = threadIdx.x % call.lanes, samples_of_block = blockDim.x / call.lanes;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * samples_of_block;
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * samples_of_block; base < call.samples;
         base += stride) { /* all threads of a block stay, for the reduction */
        const int64_t sample = base + threadIdx.x / call.lanes;
        const bool is_here = sample < call.samples;
        known_sum<A> of = {0, 0};
        for (int64_t k = lane; is_here && k < call.size; k += call.lanes) {
            const int64_t i = sample * call.size + k;
            if (call.counts(i)) of = join_known(of, {call.element(i).loss, 1});
        }
        of = reduce(of, call.lanes, join_known<A>);
        if (!is_here || lane != 0) continue;
        loss[sample] = of.count == 0 ? 0 : of.sum / of.count;
        known[sample] = of.count;
    }
}

/* known is NULL where each element has a loss. */
template <class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS)
    sigmoid_backward_kernel(sigmoid_call<S> call, const A *known, const A *grad_loss,
                            const A *grad_factor, S *grad_logits) {
    const A all = grad_factor ? *grad_factor : A(1);
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
         i < call.samples * call.size; i += stride) {
        A g = 0;
        if (call.counts(i)) {
            const A slope = call.element(i).slope;
            const int64_t l = known ? i / call.size : i;
            const A upstream = grad_loss[l] * all;
            if (slope != 0) g = slope * (known ? upstream / known[l] : upstream);
        }
        grad_logits[i] = from_real<S>(g);
    }
}

/* Threads that share a sample. */
inline int lanes_of_sample(int64_t size, int threads) {
    if (size > WARP * 16) return threads;
    int lanes = 1;
    while (lanes < WARP && lanes * 4 < size) lanes *= 2;
    return lanes;
}

template <class S>
sigmoid_call<S> sigmoid_call_of(const absgd_sigmoid_loss &spec, const void *logits,
                                const void *target, int threads) {
    using A = typename arithmetic<S>::type;
    sigmoid_call<S> call;
    call.logits = static_cast<const S *>(logits);
    call.target = static_cast<const A *>(target);
    call.weight = static_cast<const A *>(spec.weight);
    call.pos_weight = static_cast<const A *>(spec.pos_weight);
    call.samples = spec.samples;
    call.size = spec.classes * spec.inner;
    call.classes = spec.classes;
    call.inner = spec.inner;
    call.kept = static_cast<A>(1.0 - spec.label_smoothing);
    call.share = static_cast<A>(spec.label_smoothing / 2);
    call.alpha_1 = spec.alpha < 0.0 ? A(1) : static_cast<A>(spec.alpha);
    call.alpha_0 = spec.alpha < 0.0 ? A(1) : static_cast<A>(1.0 - spec.alpha);
    call.gamma = static_cast<A>(spec.focal_gamma);
    call.ignored = static_cast<A>(spec.ignore_index);
    call.focus = absgd_sigmoid_focus(&spec);
    call.lanes = lanes_of_sample(call.size, threads);
    return call;
}

} // namespace absgd
#endif
