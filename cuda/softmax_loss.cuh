/* Per-sample softmax losses, forward and backward: cross-entropy, focal, LDAM, logit adjustment.
 *
 * Forward: `lanes` adjacent threads share a sample. Each keeps a running maximum and the sums below
 * it over its own classes, a tile at a time, and rescales them when a tile raises the maximum; then
 * the lanes' sums are joined, and the first lane turns them into loss and saved numbers by the
 * formulas of softmax_loss_math.h. Logits are read once. Backward: each logit is read once and its
 * gradient written once; the softmax is recomputed from what was saved.
 *
 * How samples lie on threads:
 *   (N, C), few classes      several samples a warp: lanes is a power of two
 *   (N, C), C ≤ 1024         a warp a sample, several samples a block (float64: ≤ 512)
 *   (N, C), many classes     a block a sample: lanes is blockDim
 *   (N, C, inner)            a thread a sample (lanes = 1): neighbours in `inner` are neighbours
 *                            in a warp, so that each class is read side by side. More lanes only
 *                            where samples are too few to fill a card
 *
 * PLAIN: neither offset, soft target nor label smoothing, so that a logit takes a handful of
 * instructions. V: elements that are read at once, 16 bytes of them if rows lie one after the
 * other; a row need not begin on such a boundary, its first and last pack are taken apart. */
#ifndef ABSGD_SOFTMAX_LOSS_CUH
#define ABSGD_SOFTMAX_LOSS_CUH

#include "device.cuh"

#include <float.h>

namespace absgd {

/* Logits that a thread has in registers. */
template <class S> constexpr int TILE = sizeof(S) == 8 ? 4 : 8;

/* Blocks of a multiprocessor at least: leaves a thread 64 registers, or 128, so that none spills.
 */
template <class S> constexpr int BLOCKS = sizeof(S) == 8 ? 2 : 4;

constexpr int64_t MAX_CLASSES = 1 << 30; /* class numbers are 32-bit */

#define FORMULAS "softmax_loss_math.h"
#include "in_both_types.h"
using f32::hard, f64::hard, f32::soft, f64::soft;

__device__ inline float lowest(float) { return -FLT_MAX; }
__device__ inline double lowest(double) { return -DBL_MAX; }

/* e^x for x ≤ 0, in float to a relative 2^-22 + |x|·2^-24: no digit of a sum of them. */
__device__ inline float exp_nonpositive(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
#else
    return expf(x);
#endif
}
__device__ inline double exp_nonpositive(double x) { return exp(x); }

template <class S> struct loss_call {
    using A = typename arithmetic<S>::type;

    const S *logits;
    const int64_t *target;
    const A *soft_target;
    const A *weight, *margin, *offset; /* each may be NULL */
    int64_t samples, inner, ignore_index;
    int classes;
    A scale, gamma;
    A kept, share; /* 1 − ε and ε/C */
    int lanes;

    __host__ __device__ bool spreads() const { return soft_target || share != 0; }
    bool is_plain() const { return !offset && !spreads(); }
    /* the mean, under a soft target, of losses that differ by more than z: expected_loss.cuh */
    bool is_expected() const { return soft_target && (margin || gamma != 0); }

    /* The index of class 0's logit; class c's is c·inner further. */
    __device__ int64_t first_logit(int64_t sample) const {
        return inner == 1 ? sample * classes : sample / inner * classes * inner + sample % inner;
    }

    __device__ A z(A logit, int c) const { return scale * logit + (offset ? offset[c] : 0); }

    __device__ A z_of_target(int64_t first, int y) const {
        return z(to_real(logits[first + y * inner]) - (margin ? margin[y] : 0), y);
    }

    __device__ A weight_of(int c) const { return weight ? weight[c] : 1; }

    /* a_c of softmax_loss_math.h */
    __device__ A a(int64_t first, int c) const {
        return weight_of(c) * (soft_target ? kept * soft_target[first + c * inner] + share : share);
    }
};

/* The classes of one lane are visited tile after tile; a tile is TILE/V packs of V neighbours, and
 * the packs of all lanes interleave, so that a warp reads side by side. Packs lie on 16-byte
 * boundaries: the first one of a row may begin before it, and the last one end after it. */
template <int V, class S> struct lane_tile {
    using A = typename arithmetic<S>::type;
    static constexpr int N = TILE<S>;

    int first_class, step; /* of the first pack; from pack to pack */

    __device__ lane_tile(const loss_call<S> &call, const S *row, int lane)
        : first_class(lane * V -
                      static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(S) % V)),
          step(call.lanes * V) {}

    __device__ bool is_in(const loss_call<S> &call) const { return first_class < call.classes; }
    __device__ void advance() { first_class += N / V * step; }
    __device__ int class_of(int i) const { return first_class + i / V * step + i % V; }

    /* Where the logit of class_of(i) stands in its row; packs are of neighbours. */
    __device__ int64_t place_of(const loss_call<S> &call, int i) const {
        return V > 1 ? class_of(i) : class_of(i) * call.inner;
    }

    __device__ bool is_in_row(const loss_call<S> &call, int i) const {
        return static_cast<unsigned>(class_of(i)) < static_cast<unsigned>(call.classes);
    }

    __device__ bool is_whole(const loss_call<S> &call) const {
        return first_class >= 0 && class_of(N - 1) < call.classes;
    }

    __device__ bool has(int c) const {
        bool found = false;
#pragma unroll
        for (int i = 0; i < N; i += V) {
            found |= static_cast<unsigned>(c) - static_cast<unsigned>(class_of(i)) < V;
        }
        return found;
    }

    /* −∞ beyond the row */
    __device__ void load(const loss_call<S> &call, const S *row, A (&logits)[N]) const {
        if (is_whole(call)) {
            pack<S, V> packs[N / V];
#pragma unroll
            for (int k = 0; k < N / V; k++) packs[k] = read<V>(row + place_of(call, k * V));
#pragma unroll
            for (int i = 0; i < N; i++) logits[i] = to_real(packs[i / V].of[i % V]);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) {
                logits[i] = is_in_row(call, i) ? to_real(row[place_of(call, i)]) : A(-INFINITY);
            }
        }
    }

    __device__ void store(const loss_call<S> &call, S *row, const A (&values)[N]) const {
        if (is_whole(call)) {
#pragma unroll
            for (int k = 0; k < N / V; k++) {
                pack<S, V> values_of;
#pragma unroll
                for (int j = 0; j < V; j++) values_of.of[j] = from_real<S>(values[k * V + j]);
                write(row + place_of(call, k * V), values_of);
            }
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (is_in_row(call, i)) row[place_of(call, i)] = from_real<S>(values[i]);
            }
        }
    }

    /* z of all logits of the tile, in their place */
    template <bool PLAIN> __device__ void scale(const loss_call<S> &call, A (&logits)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            logits[i] = PLAIN || !is_in_row(call, i) ? call.scale * logits[i]
                                                     : call.z(logits[i], class_of(i));
        }
    }

    __device__ void replace(int c, A value, A (&values)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (class_of(i) == c) values[i] = value;
        }
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

/* One lane's part of a sample, from max on; y < 0: no target. */
template <bool PLAIN, int V, class S, class A = typename arithmetic<S>::type>
__device__ class_sums<A> lane_sums(const loss_call<S> &call, int64_t first, int y, A z_y, A max,
                                   int lane) {
    class_sums<A> of = {max, 0, 0, 0};
    const S *row = call.logits + first;
    for (lane_tile<V, S> tile(call, row, lane); tile.is_in(call); tile.advance()) {
        A z[tile.N];
        tile.load(call, row, z);
        tile.template scale<PLAIN>(call, z);
        const bool has_target = tile.has(y);
        if (has_target) tile.replace(y, PLAIN ? A(-INFINITY) : z_y, z);
        max = of.max;
#pragma unroll
        for (int i = 0; i < tile.N; i++) max = fmax(max, z[i]);
        if (max > of.max) of = raised(of, max);
        if (!PLAIN && call.spreads()) {
#pragma unroll
            for (int i = 0; i < tile.N; i++) {
                if (!tile.is_in_row(call, i)) continue;
                const A a = call.a(first, tile.class_of(i));
                of.a_sum += a;
                of.a_dot += a * (max - z[i]);
            }
        }
        if (!PLAIN && has_target) tile.replace(y, A(-INFINITY), z); /* the target is not in S */
#pragma unroll
        for (int i = 0; i < tile.N; i++) of.sum += exp_nonpositive(z[i] - max);
    }
    return of;
}

/* Loss and saved = [M, others, at_target, log T] of a sample, from its sums. */
template <class S, class A>
__device__ void finish(const loss_call<S> &call, const class_sums<A> &of, int64_t sample, int y,
                       A z_y, A *loss, A *saved) {
    const auto keep = [&](const auto &r) {
        loss[sample] = r.loss;
        const A kept[ABSGD_LOSS_SAVED] = {of.max, r.others, r.at_target, r.log_total};
        for (int k = 0; k < ABSGD_LOSS_SAVED; k++) saved[k * call.samples + sample] = kept[k];
    };
    if (call.soft_target) return keep(soft(of.sum, of.a_sum, of.a_dot));
    const A weight = call.weight_of(y);
    keep(hard(call.gamma != 0, of.max, of.sum, z_y, weight * call.kept, call.gamma,
              weight * call.share, of.a_sum, of.a_dot));
}

/* The same for a sample without a usable target: 0 if it is ignored, NaN if it is out of range. */
template <class S, class A>
__device__ void finish_without(const loss_call<S> &call, int64_t sample, A value, A *loss,
                               A *saved) {
    loss[sample] = value;
    for (int k = 0; k < ABSGD_LOSS_SAVED; k++) saved[k * call.samples + sample] = value;
}

/* The losses of all samples, by the grid. */
template <bool PLAIN, int V, class S, class A = typename arithmetic<S>::type>
__device__ void write_losses(const loss_call<S> &call, A *loss, A *saved) {
    const int lane = threadIdx.x % call.lanes, samples_of_block = blockDim.x / call.lanes;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * samples_of_block;
    for (int64_t base = static_cast<int64_t>(blockIdx.x) * samples_of_block; base < call.samples;
         base += stride) { /* all threads of a block stay, for the reduction */
        const int64_t sample = base + threadIdx.x / call.lanes;
        const bool is_here = sample < call.samples;
        const int64_t target = is_here && call.target ? call.target[sample] : -1;
        const bool is_ignored = call.target && target == call.ignore_index;
        const bool has_target = !is_ignored && 0 <= target && target < call.classes;
        const bool counts = is_here && (call.soft_target || has_target);
        const int y = has_target ? static_cast<int>(target) : -1;
        const int64_t first = counts ? call.first_logit(sample) : 0;
        const A z_y = has_target ? call.z_of_target(first, y) : lowest(A{});
        const A max = fmax(lowest(A{}), z_y); /* M is the target's, or larger */
        class_sums<A> of = {max, 0, 0, 0};
        if (counts) of = lane_sums<PLAIN, V>(call, first, y, z_y, max, lane);
        of = reduce(of, call.lanes, join_sums<A>);
        if (!is_here || lane != 0) continue;
        if (counts) {
            finish(call, of, sample, y, z_y, loss, saved);
        } else {
            finish_without(call, sample, is_ignored ? A(0) : A(NAN), loss, saved);
        }
    }
}

template <bool PLAIN, int V, class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<S>)
    loss_forward_kernel(const __grid_constant__ loss_call<S> call, A *loss, A *saved) {
    write_losses<PLAIN, V>(call, loss, saved);
}

/* ---- backward ---- */

/* One lane's part of a sample: ∂L/∂z_c = others·exp(z_c − M) − factor·a_c, but at_target for y. */
template <bool PLAIN, int V, class S, class A = typename arithmetic<S>::type>
__device__ void lane_gradient(const loss_call<S> &call, int64_t first, int y, A max, A others,
                              A at_target, A factor, int lane, S *grad_logits) {
    const S *row = call.logits + first;
    for (lane_tile<V, S> tile(call, row, lane); tile.is_in(call); tile.advance()) {
        A g[tile.N];
        tile.load(call, row, g);
        tile.template scale<PLAIN>(call, g);
#pragma unroll
        for (int i = 0; i < tile.N; i++) {
            g[i] = others * exp_nonpositive(g[i] - max);
            if (!PLAIN && call.spreads() && tile.is_in_row(call, i)) {
                g[i] -= factor * call.a(first, tile.class_of(i));
            }
        }
        if (tile.has(y)) tile.replace(y, at_target, g);
        tile.store(call, grad_logits + first, g);
    }
}

template <int V, class S>
__device__ void lane_zeros(const loss_call<S> &call, int64_t first, int lane, S *grad_logits) {
    lane_tile<V, S> tile(call, call.logits + first, lane);
    const typename arithmetic<S>::type zeros[tile.N] = {};
    for (; tile.is_in(call); tile.advance()) tile.store(call, grad_logits + first, zeros);
}

template <bool PLAIN, int V, class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<S>)
    loss_backward_kernel(const __grid_constant__ loss_call<S> call, const A *saved,
                         const A *grad_loss, const A *grad_factor, S *grad_logits) {
    const int lane = threadIdx.x % call.lanes, samples_of_block = blockDim.x / call.lanes;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * samples_of_block;
    for (int64_t sample =
             static_cast<int64_t>(blockIdx.x) * samples_of_block + threadIdx.x / call.lanes;
         sample < call.samples; sample += stride) {
        const int64_t target = call.target ? call.target[sample] : -1;
        const int64_t first = call.first_logit(sample);
        if (call.target && target == call.ignore_index) {
            lane_zeros<V>(call, first, lane, grad_logits);
            continue;
        }
        const bool has_target = 0 <= target && target < call.classes;
        const A upstream = grad_factor ? grad_loss[sample] * *grad_factor : grad_loss[sample];
        const A factor = upstream * call.scale;
        lane_gradient<PLAIN, V>(call, first, has_target ? static_cast<int>(target) : -1,
                                saved[sample], factor * saved[call.samples + sample],
                                factor * saved[2 * call.samples + sample], factor, lane,
                                grad_logits);
    }
}

/* ---- the launch's shape ---- */

constexpr int64_t FULL = 65536; /* threads that keep a card busy */

/* Threads that share a sample. */
inline int lanes_for(const absgd_softmax_loss &spec, int tile, int threads) {
    if (spec.inner == 1 && spec.classes > WARP * tile * 4) return threads;
    int lanes = 1;
    while (lanes < WARP && lanes * tile < spec.classes &&
           (spec.inner == 1 || spec.samples * lanes < FULL)) {
        lanes *= 2;
    }
    return lanes;
}

/* Whether logits, and what is laid out as they are, can be read in packs of 16 bytes. */
template <class S> bool is_wide(const absgd_softmax_loss &spec, const S *logits, const S *other) {
    const auto address = [](const S *x) { return reinterpret_cast<uintptr_t>(x); };
    return spec.inner == 1 && address(logits) % sizeof(S) == 0 &&
           (address(logits) - address(other)) % 16 == 0;
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
    call.classes = static_cast<int>(spec.classes);
    call.inner = spec.inner;
    call.ignore_index = spec.ignore_index;
    call.scale = static_cast<A>(spec.scale);
    call.gamma = static_cast<A>(spec.focal_gamma);
    call.kept = static_cast<A>(1.0 - spec.label_smoothing);
    call.share = static_cast<A>(spec.label_smoothing / static_cast<double>(spec.classes));
    call.lanes = lanes_for(spec, TILE<S>, threads);
    return call;
}

} // namespace absgd
#endif
