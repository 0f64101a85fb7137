/* The search for λ of lam_search_math.h, all rounds in one launch: each is a pass over the batch
 * and, where it has several chunks, one grid barrier. Every block goes through the same search with
 * the same numbers, so that all of them stop at the same round. */
#ifndef ABSGD_LAM_SEARCH_CUH
#define ABSGD_LAM_SEARCH_CUH

#include "lam_search_math.h"
#include "team.cuh"

namespace absgd {

/* The sums of losses [begin, end), by one block. */
template <class S>
__device__ absgd_lam_row lam_chunk(const masked_losses<S> &batch, int64_t begin, int64_t end,
                                   double sign, const absgd_lam_search &search) {
    const double max = search.max, inverse_lam = exp(-search.u);
    absgd_lam_row row = absgd_empty_lam_row();
    if (search.round != 0.0) row.max = max;
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
        if (!batch.counts(i)) continue;
        const double x = sign * batch.loss(i), w = batch.weight(i);
        row.count += 1.0;
        row.sum_weight += w;
        if (search.round == 0.0) {
            row.nonfinite += isfinite(x) && is_weight(w) ? 0.0 : 1.0;
            if (!(w > 0.0)) continue;
            row.max = fmax(row.max, x);
            row.max_negated = fmax(row.max_negated, -x);
        } else if (w > 0.0) {
            const double y = (x - max) * inverse_lam, e = exp(y), we = w * e;
            row.s0 += we;
            row.s1 += we * y;
            row.s2 += we * y * y;
            row.t0 += we * e;
            row.t1 += we * e * y;
        }
    }
    return reduce(row, blockDim.x, absgd_join_lam_rows);
}

/* The row of the whole batch at this round, in the first thread of each block. */
template <class S>
__device__ absgd_lam_row lam_row(const masked_losses<S> &batch, double sign,
                                 const absgd_lam_search &search, const team &blocks,
                                 absgd_lam_row *scratch) {
    return of_chunks(
        batch.n, blocks, scratch, absgd_empty_lam_row(),
        [&](int64_t begin, int64_t end) { return lam_chunk(batch, begin, end, sign, search); },
        absgd_join_lam_rows);
}

template <class S>
__device__ void follow_batch(const masked_losses<S> &batch, const absgd_lam_rule *rule,
                             const team &blocks, absgd_lam_row *scratch, double *lam) {
    ABSGD_SHARED(absgd_lam_search, search);
    if (threadIdx.x == 0) search = absgd_lam_search();
    __syncthreads();
    const int64_t chunks = ceil_div(batch.n, ABSGD_CUDA_CHUNK);
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        /* Rows by turns: a block may still read those of the last round. */
        absgd_lam_row *rows = chunks > 1 ? scratch + round % 2 * chunks : nullptr;
        const absgd_lam_row row = lam_row(batch, rule->sign, search, blocks, rows);
        __syncthreads(); /* all have read the search */
        if (threadIdx.x == 0) absgd_lam_advance(rule, row, &search);
        __syncthreads();
        if (search.has_answer == 0.0 || search.low == search.high) break;
    }
    if (blocks.thread() == 0) absgd_lam_follow(rule, &search, lam);
}

template <class S>
__global__ void __launch_bounds__(THREADS, RESIDENT)
    follow_lam_kernel(masked_losses<S> batch, const absgd_lam_rule *rule, absgd_lam_row *scratch,
                      double *lam) {
    follow_batch(batch, rule, whole_grid(), scratch, lam);
}

template <class S>
__global__ void __launch_bounds__(THREADS, RESIDENT)
    lam_sums_kernel(masked_losses<S> batch, const absgd_lam_rule *rule,
                    const absgd_lam_search *search, absgd_lam_row *scratch, absgd_lam_row *row) {
    const absgd_lam_row whole = lam_row(batch, rule->sign, *search, whole_grid(), scratch);
    if (blockIdx.x == 0 && threadIdx.x == 0) *row = whole;
}

/* One warp. */
[[maybe_unused]] static __global__ void lam_round_kernel(const absgd_lam_rule *rule,
                                                         const absgd_lam_row *rows, int64_t n_rows,
                                                         absgd_lam_search *search) {
    const absgd_lam_row whole = join_all(rows, n_rows, absgd_empty_lam_row(), absgd_join_lam_rows);
    if (threadIdx.x == 0) absgd_lam_advance(rule, whole, search);
}

[[maybe_unused]] static __global__ void
lam_update_kernel(const absgd_lam_rule *rule, const absgd_lam_search *search, double *lam) {
    absgd_lam_follow(rule, search, lam);
}

} // namespace absgd
#endif
