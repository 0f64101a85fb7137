/* Algorithm 1 for a batch of losses, in one launch: statistics, the normaliser, weights.
 *
 *   - Chunks: each block reduces chunks of ABSGD_CUDA_CHUNK losses to a row of statistics.
 *     A grid barrier, if there are several.
 *   - Rows: every block joins all rows, and its first thread computes the new normaliser from the
 *     old state: the same arithmetic in each block, hence the same bits.
 *     A grid barrier: everybody has read the old state.
 *   - State: one thread of the grid writes the new one.
 *   - Weights: all threads write weights and coefficients.
 *
 * As on the CPU, z = L/λ and its exponential are double whatever the dtype (weights.c says why);
 * the formulas are absgd_math.h's. */
#ifndef ABSGD_WEIGHTS_CUH
#define ABSGD_WEIGHTS_CUH

#include "device.cuh"

namespace absgd {

template <class S> struct loss_batch : masked_losses<S> {
    const double *lam;
    const absgd_stats *rows; /* the statistics, if known; else NULL */
    int64_t n_rows;
    absgd_stats *scratch; /* a row for each chunk, if there are several */
};

/* ---- statistics ---- */

struct loss_sums {
    double count, nonfinite, sum, sum_sq, sum_loss, sum_weighted;
};

__device__ inline loss_sums add(const loss_sums &a, const loss_sums &b) {
    return {a.count + b.count,   a.nonfinite + b.nonfinite, a.sum + b.sum,
            a.sum_sq + b.sum_sq, a.sum_loss + b.sum_loss,   a.sum_weighted + b.sum_weighted};
}

/* The row of losses [begin, end), by one block. */
template <class S>
__device__ absgd_stats chunk_stats(const loss_batch<S> &batch, int64_t begin, int64_t end,
                                   double lam) {
    const double never = absgd_is_valid_lam(lam) ? 0.0 : NAN, inverse_lam = 1.0 / lam;
    double max = -INFINITY;
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
        if (batch.counts(i)) max = fmax(max, absgd_scaled_loss(batch.loss(i), inverse_lam));
    }
    max = reduce(max, blockDim.x, [](double a, double b) { return fmax(a, b); });
    loss_sums sums = {};
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
        if (!batch.counts(i)) continue;
        const double loss = batch.loss(i);
        const double z = absgd_scaled_loss(loss, inverse_lam);
        const double e = exp(z - max);
        sums = add(sums, {1.0, isfinite(loss + z + never) ? 0.0 : 1.0, e, e * e, loss, e * loss});
    }
    sums = reduce(sums, blockDim.x, add);
    return {sums.count,    sums.nonfinite,   max, sums.sum, sums.sum_sq,
            sums.sum_loss, sums.sum_weighted};
}

/* The union of rows, by a block. */
__device__ inline absgd_stats join_rows(const absgd_stats *rows, int64_t n_rows) {
    absgd_stats whole = absgd_empty_stats();
    for (int64_t i = threadIdx.x; i < n_rows; i += blockDim.x) {
        whole = absgd_join_stats(whole, rows[i]);
    }
    return reduce(whole, n_rows > WARP ? blockDim.x : WARP, absgd_join_stats);
}

/* The row of the whole batch, in the first thread of each block. */
template <class S> __device__ absgd_stats whole_batch(const loss_batch<S> &batch, double lam) {
    if (batch.rows) return join_rows(batch.rows, batch.n_rows);
    if (batch.n <= ABSGD_CUDA_CHUNK) return chunk_stats(batch, 0, batch.n, lam);
    const int64_t chunks = (batch.n + ABSGD_CUDA_CHUNK - 1) / ABSGD_CUDA_CHUNK;
    for (int64_t c = blockIdx.x; c < chunks; c += gridDim.x) {
        const int64_t begin = c * ABSGD_CUDA_CHUNK, rest = batch.n - begin;
        const int64_t end = begin + (rest < ABSGD_CUDA_CHUNK ? rest : ABSGD_CUDA_CHUNK);
        const absgd_stats row = chunk_stats(batch, begin, end, lam);
        if (threadIdx.x == 0) batch.scratch[c] = row;
    }
    sync_grid();
    return join_rows(batch.scratch, chunks);
}

template <class S>
__global__ void __launch_bounds__(THREADS, RESIDENT)
    stats_kernel(loss_batch<S> batch, absgd_stats *stats) {
    const absgd_stats whole = whole_batch(batch, *batch.lam);
    if (blockIdx.x == 0 && threadIdx.x == 0) *stats = whole;
}

/* ---- the normaliser ---- */

/* The state of a rule, as one thread works on it: take() reads the old state and gives what the
 * weights need, write() puts the new state where the old was. */
struct moving_average {
    absgd_rule rule;
    double *log_s, *log_s_lam;
    absgd_report *reports;

    struct state {
        absgd_stats whole;
        double lam, log_s, log_s_lam;
    };

    __device__ absgd_weigher take(const absgd_stats &whole, double lam, double factor,
                                  state &s) const {
        s = {whole, lam, *log_s, *log_s_lam};
        absgd_update(&whole, lam, rule.gamma, rule.alpha, rule.s_init, &s.log_s, &s.log_s_lam);
        return absgd_weigher_of(&whole, lam, s.log_s, factor);
    }

    __device__ void write(const state &s) const {
        *log_s = s.log_s;
        *log_s_lam = s.log_s_lam;
        absgd_report_of(&s.whole, s.lam, s.log_s, reports);
    }
};

struct provisional {
    absgd_rule rule;
    const double *log_s, *log_s_lam;
    absgd_accumulation *accumulation;
    double *shrink;

    struct state {
        absgd_accumulation accumulation;
        double shrink;
    };

    __device__ absgd_weigher take(absgd_stats whole, double lam, double factor, state &s) const {
        s.accumulation = *accumulation;
        s.shrink = absgd_accumulate_batch(&whole, lam, rule.alpha, rule.s_init, *log_s, *log_s_lam,
                                          &s.accumulation);
        whole.count = s.accumulation.whole.count == 0.0 ? 0.0 : s.accumulation.reference_count;
        return absgd_weigher_of(&whole, lam, s.accumulation.log_c, factor);
    }

    __device__ void write(const state &s) const {
        *accumulation = s.accumulation;
        *shrink = s.shrink;
    }
};

/* ---- weights ---- */

template <class S, class Rule>
__global__ void __launch_bounds__(THREADS, RESIDENT)
    weigh_kernel(loss_batch<S> batch, Rule rule, double factor,
                 typename arithmetic<S>::type *weights,
                 typename arithmetic<S>::type *coefficients) {
    ABSGD_SHARED(absgd_weigher, weigher);
    const double lam = *batch.lam, inverse_lam = 1.0 / lam;
    const absgd_stats whole = whole_batch(batch, lam);
    typename Rule::state state;
    if (threadIdx.x == 0) weigher = rule.take(whole, lam, factor, state);
    sync_grid();
    if (blockIdx.x == 0 && threadIdx.x == 0) rule.write(state);
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < batch.n;
         i += stride) {
        const double z = absgd_scaled_loss(batch.loss(i), inverse_lam);
        const double p = batch.counts(i) ? exp(z - weigher.log_s) : 0.0;
        weights[i] = static_cast<typename arithmetic<S>::type>(p);
        coefficients[i] = static_cast<typename arithmetic<S>::type>(p * weigher.scale);
    }
}

/* ---- single steps of the rule ---- */

[[maybe_unused]] static __global__ void carry_kernel(const double *lam, absgd_rule rule,
                                                     double *log_s, double *log_s_lam) {
    absgd_carry(*lam, rule.s_init, log_s, log_s_lam);
}

/* One warp. */
[[maybe_unused]] static __global__ void
settle_kernel(absgd_accumulation *accumulation, const absgd_stats *rows, int64_t n_rows,
              const double *lam, absgd_rule rule, double divisor, double *log_s, double *log_s_lam,
              absgd_report *reports, double *factor) {
    const absgd_stats joined = join_rows(rows, n_rows);
    if (threadIdx.x != 0) return;
    if (rows) accumulation->whole = joined;
    const absgd_stats whole = accumulation->whole;
    *factor = absgd_settle_batch(accumulation, *lam, rule.gamma, rule.alpha, rule.s_init, divisor,
                                 log_s, log_s_lam);
    absgd_report_of(&whole, *lam, *log_s, reports);
}

} // namespace absgd
#endif
