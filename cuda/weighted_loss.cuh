/* From logits to the scalar to differentiate, in one launch: softmax losses, their base measure, λ
 * if a rule moves it, weights, and Σ coefficients·losses.
 *
 * Losses and measure are the whole grid's work; then a grid barrier, and the blocks that the losses
 * need go on: one for a chunk, all of them for more. Each part is the code of its own kernel, and
 * so are the bits. The blocks meet, so that there are no more than a card holds at once. */
#ifndef ABSGD_WEIGHTED_LOSS_CUH
#define ABSGD_WEIGHTED_LOSS_CUH

#include "expected_loss.cuh"
#include "lam_search.cuh"
#include "weights.cuh"

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
__device__ void write_measure(const measure_call<T> &call, uint8_t *counts, T *measure) {
    const team blocks = whole_grid();
    for (int64_t i = blocks.thread(); i < call.samples; i += blocks.threads()) {
        if (counts) {
            const bool is_kept = !call.mask || call.mask[i];
            counts[i] = is_kept && !(call.target && call.target[i] == call.ignore_index);
        }
        if (measure) measure[i] = (call.weight ? call.weight[i] : T(1)) * call.of_class(i);
    }
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    measure_kernel(measure_call<T> call, uint8_t *counts, T *measure) {
    write_measure(call, counts, measure);
}

/* By one block, so that the order of the sum is fixed; in double, as on the CPU. */
template <class T>
__device__ void write_dot(const T *coefficients, const T *losses, const uint8_t *mask, int64_t n,
                          T *total) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        if (mask && !mask[i]) continue;
        sum += static_cast<double>(coefficients[i]) * static_cast<double>(losses[i]);
    }
    sum = reduce(sum, blockDim.x, [](double a, double b) { return a + b; });
    if (threadIdx.x == 0) *total = static_cast<T>(sum);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    dot_kernel(const T *coefficients, const T *losses, const uint8_t *mask, int64_t n, T *total) {
    write_dot(coefficients, losses, mask, n, total);
}

/* ---- all of it ---- */

template <class T> struct weighting_call {
    measure_call<T> measured;
    uint8_t *counts; /* this and measure may be NULL */
    T *measure;
    loss_batch<T> batch;            /* with what they hold */
    const absgd_lam_rule *lam_rule; /* NULL: λ stays */
    absgd_lam_row *lam_scratch;
    double *lam;
    moving_average rule;
    T *weights, *coefficients, *total;
};

/* As RESIDENT; a logit in double takes more registers. */
template <class S> constexpr int RESIDENT_LOSSES = sizeof(S) == 8 ? 2 : RESIDENT;

/* Of the losses, which the grid has just written; all its threads. */
template <class T> __device__ void write_weighting(const weighting_call<T> &w) {
    write_measure(w.measured, w.counts, w.measure);
    whole_grid().sync();
    const team blocks = team_for(w.batch.n);
    if (blocks.blocks == 1 && !blocks.has_work()) return;
    if (w.lam_rule) {
        follow_batch(w.batch, w.lam_rule, blocks, w.lam_scratch, w.lam);
        blocks.sync(); /* λ is there */
    }
    weigh_batch(w.batch, w.rule, 1.0, blocks, w.weights, w.coefficients);
    blocks.sync(); /* all coefficients are */
    if (blocks.block != 0) return;
    write_dot(w.coefficients, w.batch.losses, w.batch.mask, w.batch.n, w.total);
}

template <bool PLAIN, int V, class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS, RESIDENT_LOSSES<S>)
    weighted_loss_kernel(const __grid_constant__ loss_call<S> call,
                         const __grid_constant__ weighting_call<A> weighting, A *loss, A *saved) {
    write_losses<PLAIN, V>(call, loss, saved);
    write_weighting(weighting);
}

/* The same for the losses of expected_loss.cuh. */
template <int V, class S, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS, RESIDENT_LOSSES<S>)
    weighted_expected_kernel(const __grid_constant__ loss_call<S> call, absgd_focus focus,
                             const __grid_constant__ weighting_call<A> weighting, A *loss,
                             A *saved) {
    write_expected_losses<V>(call, focus, loss, saved);
    write_weighting(weighting);
}

} // namespace absgd
#endif
