/* The mean of the classes' losses under a soft target, where margins or γ make these differ,
 * forward and backward: samples lie on threads as in softmax_loss.cuh. Each class has a term of its
 * own, which class_loss_math.h has, made of P = softmax(z); so the forward pass looks at the logits
 * twice. The largest class is taken apart: in the first look each lane keeps it out of its sums. */
#ifndef ABSGD_EXPECTED_LOSS_CUH
#define ABSGD_EXPECTED_LOSS_CUH

#include "softmax_loss.cuh"

#include <type_traits>

namespace absgd {

#define FORMULAS "class_loss_math.h"
#include "in_both_types.h"
using f32::class_loss, f64::class_loss, f32::top_nll, f64::top_nll, f32::expected, f64::expected;

template <class A>
using class_spec = std::conditional_t<sizeof(A) == 4, f32::class_spec, f64::class_spec>;
template <class A> using top_class = std::conditional_t<sizeof(A) == 4, f32::top, f64::top>;

template <class S, class A = typename arithmetic<S>::type>
__device__ class_spec<A> spec_of_class(const loss_call<S> &call, int c) {
    const A weight = call.weight_of(c), margin = call.margin ? call.scale * call.margin[c] : 0;
    return {call.kept * weight, call.share * weight, margin, 1 - exp(-margin)};
}

/* ---- forward ---- */

/* The largest class and its z; M and S of the others; Σ weight_c·ε/C. */
template <class A> struct top_sums {
    A top, max, sum, share_sum;
    int64_t y; /* −1: none is larger than −∞ */
};

template <class A> __device__ void raise(top_sums<A> &of, A max) {
    if (max > of.max && of.sum != 0) of.sum *= exp_nonpositive(of.max - max);
    of.max = max;
}

/* The lesser top is one of the others. Commutes. */
template <class A> __device__ top_sums<A> join_tops(const top_sums<A> &a, const top_sums<A> &b) {
    const bool first = a.top > b.top || (a.top == b.top && a.y <= b.y);
    const A lesser = first ? b.top : a.top, max = fmax(fmax(a.max, b.max), lesser);
    top_sums<A> x = a, z = b;
    raise(x, max);
    raise(z, max);
    return {first ? a.top : b.top, max, x.sum + z.sum + exp_nonpositive(lesser - max),
            a.share_sum + b.share_sum, first ? a.y : b.y};
}

template <int V, class S, class A = typename arithmetic<S>::type>
__device__ top_sums<A> lane_tops(const loss_call<S> &call, int64_t first, int lane) {
    top_sums<A> of = {A(-INFINITY), lowest(A{}), 0, 0, -1};
    const S *row = call.logits + first;
    for (lane_tile<V, S> tile(call, row, lane); tile.is_in(call); tile.advance()) {
        A z[tile.N];
        tile.load(call, row, z);
        tile.template scale<false>(call, z);
        A max = of.max;
#pragma unroll
        for (int i = 0; i < tile.N; i++) {
            if (z[i] > of.top) {
                const A last = of.top;
                of.top = z[i];
                of.y = tile.class_of(i);
                z[i] = last;
            }
            max = fmax(max, z[i]);
        }
        raise(of, max);
#pragma unroll
        for (int i = 0; i < tile.N; i++) {
            of.sum += exp_nonpositive(z[i] - max);
            if (call.share != 0 && tile.is_in_row(call, i)) {
                of.share_sum += call.share * call.weight_of(tile.class_of(i));
            }
        }
    }
    return of;
}

/* Σ of the classes' terms: of the loss, and of r_c. */
template <class A> struct term_sums {
    A loss, slope;
};

template <class A>
__device__ term_sums<A> join_terms(const term_sums<A> &a, const term_sums<A> &b) {
    return {a.loss + b.loss, a.slope + b.slope};
}

template <int V, class S, class A = typename arithmetic<S>::type>
__device__ term_sums<A> lane_terms(const loss_call<S> &call, absgd_focus focus, int64_t first,
                                   const top_sums<A> &of, A max, A log_total, int lane) {
    term_sums<A> sums = {0, 0};
    const S *row = call.logits + first;
    for (lane_tile<V, S> tile(call, row, lane); tile.is_in(call); tile.advance()) {
        A z[tile.N];
        tile.load(call, row, z);
        tile.template scale<false>(call, z);
#pragma unroll
        for (int i = 0; i < tile.N; i++) {
            if (!tile.is_in_row(call, i)) continue;
            const int c = tile.class_of(i);
            const A q = c == of.y ? 0 : call.soft_target[first + c * call.inner];
            const A nll = (max - z[i]) + log_total;
            const auto r = class_loss(call.margin != nullptr, focus, spec_of_class(call, c), q,
                                      exp_nonpositive(-nll), nll, call.gamma, of.share_sum);
            sums.loss += r.loss;
            sums.slope += r.slope;
        }
    }
    return sums;
}

/* The losses of all samples, by the grid. */
template <int V, class S, class A = typename arithmetic<S>::type>
__device__ void write_expected_losses(const loss_call<S> &call, absgd_focus focus, A *loss,
                                      A *saved) {
    const int lane = threadIdx.x % call.lanes, samples_of_block = blockDim.x / call.lanes;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * samples_of_block;
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * samples_of_block; base < call.samples;
         base += stride) { /* all threads of a block stay, for the reductions */
        const int64_t sample = base + threadIdx.x / call.lanes;
        const bool is_here = sample < call.samples;
        const int64_t first = is_here ? call.first_logit(sample) : 0;
        const top_sums<A> of = reduce(lane_tops<V>(call, first, lane), call.lanes, join_tops<A>);
        const int y = of.y < 0 ? 0 : static_cast<int>(of.y);
        const auto own = spec_of_class(call, y);
        const A max = fmax(of.max, of.top - own.margin);
        const A log_total = (of.top - max) + top_nll(of.top, of.max, of.sum);
        const term_sums<A> terms = reduce(
            lane_terms<V>(call, focus, first, of, max, log_total, lane), call.lanes, join_terms<A>);
        if (!is_here || lane != 0) continue;
        const top_class<A> top = {of.top, call.soft_target[first + y * call.inner], own.margin,
                                  own.weight, own.share};
        const auto r = expected(focus != ABSGD_NO_FOCUS, max, of.max, of.sum, top, call.gamma,
                                of.share_sum, terms.loss, terms.slope);
        loss[sample] = r.loss;
        const A kept[ABSGD_LOSS_SAVED] = {max, r.others, r.at_target, log_total};
        for (int k = 0; k < ABSGD_LOSS_SAVED; k++) saved[k * call.samples + sample] = kept[k];
    }
}

template <int V, class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<S>)
    expected_forward_kernel(const __grid_constant__ loss_call<S> call, absgd_focus focus, A *loss,
                            A *saved) {
    write_expected_losses<V>(call, focus, loss, saved);
}

/* ---- backward ---- */

/* ∂L/∂z_c = others·exp(z_c − M) − r_c, but at_target for the class that takes more than exp(−½) of
 * P, if there is one: 1 − P is lost there, and the top is known by it. */
template <int V, class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<S>)
    expected_backward_kernel(const __grid_constant__ loss_call<S> call, absgd_focus focus,
                             const A *saved, const A *grad_loss, const A *grad_factor,
                             S *grad_logits) {
    const A scale = call.scale * (grad_factor ? *grad_factor : A(1));
    const int lane = threadIdx.x % call.lanes, samples_of_block = blockDim.x / call.lanes;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * samples_of_block;
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * samples_of_block; base < call.samples;
         base += stride) { /* all threads of a block stay, for the reduction */
        const int64_t sample = base + threadIdx.x / call.lanes;
        const bool is_here = sample < call.samples;
        const int64_t first = is_here ? call.first_logit(sample) : 0;
        const S *row = call.logits + first;
        A share_sum = 0;
        for (int c = lane; call.share != 0 && c < call.classes; c += call.lanes) {
            share_sum += call.share * call.weight_of(c);
        }
        share_sum = reduce(share_sum, call.lanes, [](A a, A b) { return a + b; });
        if (!is_here) continue;
        const A max = saved[sample], log_total = saved[3 * call.samples + sample];
        const A h = exp(-log_total), factor = grad_loss[sample] * scale;
        const A others = factor * saved[call.samples + sample];
        const A at_target = factor * saved[2 * call.samples + sample];
        for (lane_tile<V, S> tile(call, row, lane); tile.is_in(call); tile.advance()) {
            A g[tile.N];
            tile.load(call, row, g);
            tile.template scale<false>(call, g);
#pragma unroll
            for (int i = 0; i < tile.N; i++) {
                if (!tile.is_in_row(call, i)) continue;
                const int c = tile.class_of(i);
                const A nll = (max - g[i]) + log_total, e = exp_nonpositive(g[i] - max);
                const auto r = class_loss(call.margin != nullptr, focus, spec_of_class(call, c),
                                          call.soft_target[first + c * call.inner], h * e, nll,
                                          call.gamma, share_sum);
                g[i] = nll < A(0.5) ? at_target : others * e - factor * r.slope;
            }
            tile.store(call, grad_logits + first, g);
        }
    }
}

} // namespace absgd
#endif
