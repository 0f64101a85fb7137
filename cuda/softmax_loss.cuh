/* Per-sample softmax losses, forward and backward: cross-entropy, focal, LDAM, logit adjustment.
 *
 * Forward: `lanes` adjacent threads share a sample. Each keeps a running maximum and the sums below
 * it over its own classes, TILE at a time, and rescales them when a tile raises the maximum; then
 * the lanes' sums are joined, and the first lane turns them into loss and saved numbers by the
 * formulas of softmax_loss_math.h. Logits are read once. Backward: each logit is read once and its
 * gradient written once; the softmax is recomputed from what was saved.
 *
 * How samples lie on threads:
 *   (N, C), few classes      several samples a warp: lanes is a power of two
 *   (N, C), many classes     a block a sample: lanes is blockDim
 *   (N, C, inner)            a thread a sample (lanes = 1): neighbours in `inner` are neighbours
 *                            in a warp, so that each class is read side by side */
#ifndef ABSGD_SOFTMAX_LOSS_CUH
#define ABSGD_SOFTMAX_LOSS_CUH

#include "device.cuh"

#include <float.h>

#include "softmax_loss_math.h"

namespace absgd {

constexpr int TILE = 8; /* logits that a thread has in registers */

ABSGD_DEFINE_SOFTMAX_LOSS(float, loss_f32, expf, logf, log1pf)
ABSGD_DEFINE_SOFTMAX_LOSS(double, loss_f64, exp, log, log1p)

__device__ inline loss_f32_result hard_loss(float max, float sum, float z_y, float weight,
                                            float gamma, float a_y, float a_sum, float a_dot) {
    return loss_f32_hard(gamma != 0, max, sum, z_y, weight, gamma, a_y, a_sum, a_dot);
}

__device__ inline loss_f64_result hard_loss(double max, double sum, double z_y, double weight,
                                            double gamma, double a_y, double a_sum, double a_dot) {
    return loss_f64_hard(gamma != 0, max, sum, z_y, weight, gamma, a_y, a_sum, a_dot);
}

__device__ inline loss_f32_result soft_loss(float sum, float a_sum, float a_dot) {
    return loss_f32_soft(sum, a_sum, a_dot);
}

__device__ inline loss_f64_result soft_loss(double sum, double a_sum, double a_dot) {
    return loss_f64_soft(sum, a_sum, a_dot);
}

__device__ inline float lowest(float) { return -FLT_MAX; }
__device__ inline double lowest(double) { return -DBL_MAX; }

template <class S> struct loss_call {
    using A = typename arithmetic<S>::type;

    const S *logits;
    const int64_t *target;
    const A *soft_target;
    const A *weight, *margin, *offset; /* each may be NULL */
    int64_t samples, classes, inner, ignore_index;
    A scale, gamma;
    A kept, share; /* 1 − ε and ε/C */
    int lanes;

    __device__ bool spreads() const { return soft_target || share != 0; }

    /* The index of class 0's logit; class c's is c·inner further. */
    __device__ int64_t first_logit(int64_t sample) const {
        return inner == 1 ? sample * classes : sample / inner * classes * inner + sample % inner;
    }

    __device__ A z(A logit, int64_t c) const { return scale * logit + (offset ? offset[c] : 0); }

    __device__ A z_of_target(int64_t first, int64_t y) const {
        return z(to_real(logits[first + y * inner]) - (margin ? margin[y] : 0), y);
    }

    __device__ A weight_of(int64_t c) const { return weight ? weight[c] : 1; }

    /* a_c of softmax_loss_math.h */
    __device__ A a(int64_t first, int64_t c) const {
        return weight_of(c) * (soft_target ? kept * soft_target[first + c * inner] + share : share);
    }
};

/* The classes of one lane are visited tile after tile; a tile is TILE/V packs of V neighbours, and
 * the packs of all lanes interleave, so that a warp reads side by side. */
template <int V, class S> struct lane_tile {
    int64_t first_class, step; /* of the first pack; from pack to pack */

    __device__ lane_tile(const loss_call<S> &call, int lane)
        : first_class(static_cast<int64_t>(lane) * V), step(static_cast<int64_t>(call.lanes) * V) {}

    __device__ bool is_in(const loss_call<S> &call) const { return first_class < call.classes; }
    __device__ void advance() { first_class += TILE / V * step; }
    __device__ int64_t class_of(int i) const { return first_class + i / V * step + i % V; }

    __device__ void load(const loss_call<S> &call, int64_t first,
                         typename arithmetic<S>::type (&logits)[TILE]) const {
        pack<S, V> packs[TILE / V] = {};
#pragma unroll
        for (int k = 0; k < TILE / V; k++) {
            const int64_t c = class_of(k * V);
            if (c < call.classes) packs[k] = read<V>(call.logits + first + c * call.inner);
        }
#pragma unroll
        for (int i = 0; i < TILE; i++) logits[i] = to_real(packs[i / V].of[i % V]);
    }
};

/* ---- forward ---- */

/* M, S, Σ a_c and Σ a_c(M − z_c) of softmax_loss_math.h, over part of the classes. */
template <class A> struct class_sums {
    A max, sum, a_sum, a_dot;
};

/* Re-expresses sums below a higher maximum. */
template <class A> __device__ class_sums<A> raised(const class_sums<A> &of, A max) {
    const A rise = max - of.max;
    return {max, of.sum == 0 ? 0 : of.sum * exp(-rise), of.a_sum,
            of.a_sum == 0 ? of.a_dot : of.a_dot + of.a_sum * rise};
}

template <class A>
__device__ class_sums<A> join_sums(const class_sums<A> &a, const class_sums<A> &b) {
    const A max = fmax(a.max, b.max);
    const class_sums<A> x = raised(a, max), y = raised(b, max);
    return {max, x.sum + y.sum, x.a_sum + y.a_sum, x.a_dot + y.a_dot};
}

/* One lane's part of a sample; y < 0: no target. */
template <int V, class S>
__device__ class_sums<typename arithmetic<S>::type>
lane_sums(const loss_call<S> &call, int64_t first, int64_t y, typename arithmetic<S>::type z_y,
          int lane) {
    using A = typename arithmetic<S>::type;
    class_sums<A> of = {lowest(A{}), 0, 0, 0};
    for (lane_tile<V, S> tile(call, lane); tile.is_in(call); tile.advance()) {
        A z[TILE];
        tile.load(call, first, z);
        A max = of.max;
#pragma unroll
        for (int i = 0; i < TILE; i++) {
            const int64_t c = tile.class_of(i);
            z[i] = c >= call.classes ? -INFINITY : c == y ? z_y : call.z(z[i], c);
            max = fmax(max, z[i]);
        }
        if (max > of.max) of = raised(of, max);
#pragma unroll
        for (int i = 0; i < TILE; i++) {
            const int64_t c = tile.class_of(i);
            if (call.spreads() && c < call.classes) {
                const A a = call.a(first, c);
                of.a_sum += a;
                of.a_dot += a * (max - z[i]);
            }
            of.sum += c == y ? 0 : exp(z[i] - max); /* the target is not in S */
        }
    }
    return of;
}

/* Loss and saved = [M, others, at_target] of a sample, from its sums. */
template <class S, class A>
__device__ void finish(const loss_call<S> &call, const class_sums<A> &of, int64_t sample, int64_t y,
                       A z_y, A *loss, A *saved) {
    A *max = saved + sample, *others = max + call.samples, *at_target = others + call.samples;
    *max = of.max;
    if (call.soft_target) {
        const auto r = soft_loss(of.sum, of.a_sum, of.a_dot);
        loss[sample] = r.loss;
        *others = r.others;
        *at_target = 0;
        return;
    }
    const A weight = call.weight_of(y);
    const auto r = hard_loss(of.max, of.sum, z_y, weight * call.kept, call.gamma,
                             weight * call.share, of.a_sum, of.a_dot);
    loss[sample] = r.loss;
    *others = r.others;
    *at_target = r.at_target;
}

/* The same for a sample without a usable target: 0 if it is ignored, NaN if it is out of range. */
template <class S, class A>
__device__ void finish_without(const loss_call<S> &call, int64_t sample, A value, A *loss,
                               A *saved) {
    loss[sample] = value;
    for (int k = 0; k < 3; k++) saved[k * call.samples + sample] = value;
}

template <int V, class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS)
    loss_forward_kernel(loss_call<S> call, A *loss, A *saved) {
    const int lane = threadIdx.x % call.lanes, samples_of_block = blockDim.x / call.lanes;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * samples_of_block;
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * samples_of_block; base < call.samples;
         base += stride) { /* all threads of a block stay, for the reduction */
        const int64_t sample = base + threadIdx.x / call.lanes;
        const bool is_here = sample < call.samples;
        const int64_t y = is_here && call.target ? call.target[sample] : -1;
        const bool is_ignored = call.target && y == call.ignore_index;
        const bool has_target = !is_ignored && 0 <= y && y < call.classes;
        const bool counts = is_here && (call.soft_target || has_target);
        const int64_t first = counts ? call.first_logit(sample) : 0;
        const A z_y = counts && has_target ? call.z_of_target(first, y) : 0;
        class_sums<A> of = {lowest(A{}), 0, 0, 0};
        if (counts) of = lane_sums<V>(call, first, call.target ? y : -1, z_y, lane);
        of = reduce(of, call.lanes, join_sums<A>);
        if (!is_here || lane != 0) continue;
        if (counts) {
            finish(call, of, sample, y, z_y, loss, saved);
        } else {
            finish_without(call, sample, is_ignored ? A(0) : A(NAN), loss, saved);
        }
    }
}

/* ---- backward ---- */

template <int V, class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS)
    loss_backward_kernel(loss_call<S> call, const A *saved, const A *grad_loss, S *grad_logits) {
    const int lane = threadIdx.x % call.lanes, samples_of_block = blockDim.x / call.lanes;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * samples_of_block;
    for (int64_t sample =
             static_cast<int64_t>(blockIdx.x) * samples_of_block + threadIdx.x / call.lanes;
         sample < call.samples; sample += stride) {
        const int64_t y = call.target ? call.target[sample] : -1;
        const bool is_ignored = call.target && y == call.ignore_index;
        const int64_t first = call.first_logit(sample);
        const A factor = is_ignored ? A(0) : grad_loss[sample] * call.scale;
        const A max = saved[sample];
        const A others = factor * saved[call.samples + sample];
        const A at_target = factor * saved[2 * call.samples + sample];
        for (lane_tile<V, S> tile(call, lane); tile.is_in(call); tile.advance()) {
            A x[TILE];
            tile.load(call, first, x);
#pragma unroll
            for (int k = 0; k < TILE / V; k++) {
                pack<S, V> gradient;
                if (tile.class_of(k * V) >= call.classes) break;
#pragma unroll
                for (int j = 0; j < V; j++) {
                    const int64_t c = tile.class_of(k * V + j);
                    A g = others * exp(call.z(x[k * V + j], c) - max);
                    if (call.spreads()) g -= factor * call.a(first, c);
                    if (call.target && c == y) g = at_target;
                    gradient.of[j] = from_real<S>(is_ignored ? A(0) : g);
                }
                write(grad_logits + first + tile.class_of(k * V) * call.inner, gradient);
            }
        }
    }
}

/* ---- the launch's shape ---- */

/* Threads that share a sample. */
inline int lanes_for(int64_t classes, int64_t inner, int threads) {
    if (inner > 1) return 1;
    if (classes > WARP * TILE * 4) return threads;
    int lanes = 1;
    while (lanes < WARP && lanes * TILE < classes) lanes *= 2;
    return lanes;
}

/* Whether rows can be read in packs of 16 bytes. */
template <class S> bool rows_are_aligned(const absgd_softmax_loss &spec, const S *logits) {
    return spec.inner == 1 && spec.classes % PER_16_BYTES<S> == 0 && is_aligned(logits);
}

template <class S>
loss_call<S> loss_call_of(const absgd_softmax_loss &spec, const void *logits, const int64_t *target,
                          const void *soft_target, int threads) {
    using A = typename arithmetic<S>::type;
    loss_call<S> call;
    call.logits = static_cast<const S *>(logits);
    call.target = target;
    call.soft_target = static_cast<const A *>(soft_target);
    call.weight = static_cast<const A *>(spec.weight);
    call.margin = static_cast<const A *>(spec.margin);
    call.offset = static_cast<const A *>(spec.offset);
    call.samples = spec.samples;
    call.classes = spec.classes;
    call.inner = spec.inner;
    call.ignore_index = spec.ignore_index;
    call.scale = static_cast<A>(spec.scale);
    call.gamma = static_cast<A>(spec.focal_gamma);
    call.kept = static_cast<A>(1.0 - spec.label_smoothing);
    call.share = static_cast<A>(spec.label_smoothing / static_cast<double>(spec.classes));
    call.lanes = lanes_for(spec.classes, spec.inner, threads);
    return call;
}

} // namespace absgd
#endif
