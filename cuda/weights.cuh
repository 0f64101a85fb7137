/* Algorithm 1 for a batch of losses, in one launch: statistics, the normaliser, weights.
 *
 *   - Chunks: each block reduces chunks of ABSGD_CUDA_CHUNK losses to a row of statistics.
 *     A grid barrier, if there are several.
 *   - Rows: every block joins all rows, and its first thread computes the new normaliser from the
 *     old state: the same arithmetic in each block, hence the same bits.
 *     A grid barrier: everybody has read the old state.
 *   - Weights: all threads write weights and coefficients, and count those that a cap cuts.
 *     A grid barrier, if there is a cap.
 *   - State: one thread of the grid writes the new one, and the report.
 *
 * As on the CPU, z = L/λ and its exponential are double whatever the dtype (weights.c says why);
 * the formulas are absgd_math.h's. */
#ifndef ABSGD_WEIGHTS_CUH
#define ABSGD_WEIGHTS_CUH

#include "team.cuh"

namespace absgd {

template <class S> struct loss_batch : masked_losses<S> {
    const double *lam;
    const absgd_stats *rows; /* the statistics, if known; else NULL */
    int64_t n_rows;
    absgd_stats *scratch; /* a row for each chunk, if there are several */
};

/* ---- statistics ---- */

/* absgd_stats without its maximum */
struct loss_sums {
    double of[9];
};

__device__ inline loss_sums add(loss_sums a, const loss_sums &b) {
#pragma unroll
    for (int i = 0; i < 9; i++) a.of[i] += b.of[i];
    return a;
}

/* The row of losses [begin, end), by one block. */
template <class S>
__device__ absgd_stats chunk_stats(const loss_batch<S> &batch, int64_t begin, int64_t end) {
    const double lam = *batch.lam;
    const double never = absgd_is_valid_lam(lam) ? 0.0 : NAN;
    const absgd_inverse inverse = absgd_inverse_of(lam);
    double max = -INFINITY;
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
        if (!batch.counts(i) || !(batch.weight(i) > 0.0)) continue;
        max = fmax(max, absgd_scaled_loss(batch.loss(i), inverse));
    }
    max = reduce(max, blockDim.x, [](double a, double b) { return fmax(a, b); });
    loss_sums sums = {};
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
        if (!batch.counts(i)) continue;
        const double loss = batch.loss(i), w = batch.weight(i);
        const double z = absgd_scaled_loss(loss, inverse);
        const double e = w > 0.0 ? exp(z - max) : 0.0;
        const double weighted = w * (loss * (1.0 / ABSGD_LOSS_UNIT));
        const bool is_finite = isfinite(loss + z + never) && is_weight(w);
        sums = add(sums, {{1.0, is_finite ? 0.0 : 1.0, w, w * e, w * (e * e), weighted,
                           e * weighted, fabs(weighted), e * fabs(weighted)}});
    }
    const loss_sums t = reduce(sums, blockDim.x, add);
    return {t.of[0], t.of[1], t.of[2], max, t.of[3], t.of[4], t.of[5], t.of[6], t.of[7], t.of[8]};
}

/* The union of rows, by a block. */
__device__ inline absgd_stats join_rows(const absgd_stats *rows, int64_t n_rows) {
    return join_all(rows, n_rows, absgd_empty_stats(), absgd_join_stats);
}

/* The row of the whole batch, in the first thread of each block. */
template <class S>
__device__ absgd_stats whole_batch(const loss_batch<S> &batch, const team &blocks) {
    if (batch.rows) return join_rows(batch.rows, batch.n_rows);
    return of_chunks(
        batch.n, blocks, batch.scratch, absgd_empty_stats(),
        [&](int64_t begin, int64_t end) { return chunk_stats(batch, begin, end); },
        absgd_join_stats);
}

template <class S>
__global__ void __launch_bounds__(THREADS, RESIDENT)
    stats_kernel(loss_batch<S> batch, absgd_stats *stats) {
    const absgd_stats whole = whole_batch(batch, whole_grid());
    if (blockIdx.x == 0 && threadIdx.x == 0) *stats = whole;
}

/* ---- the normaliser ---- */

/* The state of a rule, as one thread works on it: take() reads the old state and gives what the
 * weights need, write() puts the new state where the old was. capped: the share of samples whose
 * weight was. */
struct moving_average {
    absgd_rule rule;
    double *log_s, *log_s_lam;
    absgd_report *reports;

    struct state {
        absgd_stats whole;
        double lam, log_s, log_s_lam;
    };

    __device__ absgd_weigher take(const absgd_stats &whole, double lam, double factor,
                                  bool has_weight, state &s) const {
        s = {whole, lam, *log_s, *log_s_lam};
        absgd_update(&whole, lam, &rule, &s.log_s, &s.log_s_lam);
        return absgd_weigher_of(&whole, lam, &rule, s.log_s, factor, has_weight);
    }

    __device__ void write(const state &s, double capped) const {
        *log_s = s.log_s;
        *log_s_lam = s.log_s_lam;
        absgd_report_of(&s.whole, s.lam, &rule, s.log_s, capped, reports);
    }
};

struct provisional {
    absgd_rule rule;
    const double *log_s, *log_s_lam;
    absgd_accumulation *accumulation;
    double *shrink;

    struct state {
        absgd_accumulation accumulation;
        double count, shrink;
    };

    __device__ absgd_weigher take(absgd_stats whole, double lam, double factor, bool has_weight,
                                  state &s) const {
        s.count = whole.count;
        s.accumulation = *accumulation;
        s.shrink = absgd_accumulate_batch(&whole, lam, &rule, *log_s, *log_s_lam, &s.accumulation);
        whole.count = s.accumulation.reference_count;
        absgd_rule own = rule;
        own.keep_loss = 0.0; /* κ is the whole batch's: it joins settle's factor */
        return absgd_weigher_of(&whole, lam, &own, s.accumulation.log_c, factor, has_weight);
    }

    __device__ void write(const state &s, double capped) const {
        *accumulation = s.accumulation;
        accumulation->capped += s.count * capped;
        *shrink = s.shrink;
    }
};

/* ---- weights ---- */

/* Of the samples that count: how many a cap cuts. */
struct cap_counts {
    double capped, counted;
};

__device__ inline cap_counts add_counts(const cap_counts &a, const cap_counts &b) {
    return {a.capped + b.capped, a.counted + b.counted};
}

/* This thread's part of the weights. */
template <class S, class A>
__device__ cap_counts write_weights(const loss_batch<S> &batch, const absgd_weigher &weigher,
                                    const team &blocks, A *weights, A *coefficients) {
    const absgd_inverse inverse = absgd_inverse_of(*batch.lam);
    const bool is_bad = isnan(weigher.log_s) && isnan(weigher.scale); /* not merely unset */
    cap_counts seen = {0.0, 0.0};
    if (!blocks.has_work()) return seen;
    for (int64_t i = blocks.thread(); i < batch.n; i += blocks.threads()) {
        const bool counts = batch.counts(i);
        const double w = counts ? batch.weight(i) : 0.0;
        double p = 0.0;
        if (counts && (w > 0.0 || is_bad)) {
            p = exp(absgd_scaled_loss(batch.loss(i), inverse) - weigher.log_s);
        }
        seen = add_counts(seen, {p > weigher.cap ? 1.0 : 0.0, counts ? 1.0 : 0.0});
        p = p > weigher.cap ? weigher.cap : p;
        weights[i] = static_cast<A>(p);
        coefficients[i] = static_cast<A>(p * weigher.scale * w);
    }
    return seen;
}

/* The sum of all blocks' counts, in the first thread. Sums of whole numbers: exact in any order. */
__device__ inline cap_counts sum_of_blocks(cap_counts part, const team &blocks,
                                           absgd_stats *scratch) {
    part = reduce(part, blockDim.x, add_counts);
    if (blocks.blocks == 1) return part;
    if (threadIdx.x == 0 && blocks.has_work()) {
        scratch[blocks.block].sum = part.capped; /* nobody reads the rows any more */
        scratch[blocks.block].count = part.counted;
    }
    blocks.sync();
    cap_counts whole = {0.0, 0.0};
    if (blocks.thread() != 0) return whole;
    for (unsigned b = 0; b < blocks.blocks; b++) {
        whole = add_counts(whole, {scratch[b].sum, scratch[b].count});
    }
    return whole;
}

template <class S, class Rule, class A = typename arithmetic<S>::type>
__device__ void weigh_batch(const loss_batch<S> &batch, const Rule &rule, double factor,
                            const team &blocks, A *weights, A *coefficients) {
    ABSGD_SHARED(absgd_weigher, weigher);
    ABSGD_SHARED(typename Rule::state, state);
    const absgd_stats whole = whole_batch(batch, blocks);
    if (threadIdx.x == 0) {
        weigher = rule.take(whole, *batch.lam, factor, batch.weights != nullptr, state);
    }
    blocks.sync();
    cap_counts seen = write_weights(batch, weigher, blocks, weights, coefficients);
    if (weigher.cap < INFINITY) {
        seen = sum_of_blocks(seen, blocks, batch.scratch);
    } else {
        seen.capped = 0.0;
    }
    if (blocks.thread() != 0) return;
    rule.write(state, seen.capped == 0.0 ? 0.0 : seen.capped / seen.counted);
}

template <class S, class Rule, class A = typename arithmetic<S>::type>
__global__ void __launch_bounds__(THREADS, RESIDENT)
    weigh_kernel(loss_batch<S> batch, Rule rule, double factor, A *weights, A *coefficients) {
    weigh_batch(batch, rule, factor, whole_grid(), weights, coefficients);
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
    absgd_accumulation now = *accumulation;
    if (rows) now.whole = joined;
    const absgd_stats whole = now.whole;
    const double capped = now.capped / fmax(whole.count, 1.0);
    *factor = absgd_settle_batch(&now, *lam, &rule, divisor, log_s, log_s_lam);
    *accumulation = now;
    absgd_report_of(&whole, *lam, &rule, *log_s, capped, reports);
}

} // namespace absgd
#endif
