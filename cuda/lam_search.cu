/* Launchers of lam_search.cuh. */
#include "lam_search.cuh"

#include "checks.h"

using namespace absgd;

static absgd_status check_search(absgd_dtype dtype, const void *losses, int64_t n,
                                 const absgd_lam_rule *rule, const absgd_lam_row *scratch) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(rule && (losses || n == 0), ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(scratch || n <= ABSGD_CUDA_CHUNK, ABSGD_NULL_POINTER);
    return ABSGD_OK;
}

template <class S>
static masked_losses<S> batch_of(const void *losses, const uint8_t *mask, const void *weight,
                                 int64_t n) {
    using A = typename arithmetic<S>::type;
    return {static_cast<const S *>(losses), mask, static_cast<const A *>(weight), n};
}

absgd_status absgd_follow_lam_cuda(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                   const void *weight, int64_t n, const absgd_lam_rule *rule,
                                   absgd_lam_row *scratch, double *lam, void *stream) {
    const absgd_status status = check_search(dtype, losses, n, rule, scratch);
    if (status != ABSGD_OK) return status;
    ABSGD_REQUIRE(lam, ABSGD_NULL_POINTER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        const auto batch = batch_of<S>(losses, mask, weight, n);
        return launch(follow_lam_kernel<S>, shape_for_batch(n), stream, batch, rule, scratch, lam);
    });
}

absgd_status absgd_lam_sums_cuda(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                 const void *weight, int64_t n, const absgd_lam_rule *rule,
                                 const absgd_lam_search *search, absgd_lam_row *scratch,
                                 absgd_lam_row *row, void *stream) {
    const absgd_status status = check_search(dtype, losses, n, rule, scratch);
    if (status != ABSGD_OK) return status;
    ABSGD_REQUIRE(search && row, ABSGD_NULL_POINTER);
    return with_type(dtype, [&](auto zero) {
        using S = decltype(zero);
        const auto batch = batch_of<S>(losses, mask, weight, n);
        return launch(lam_sums_kernel<S>, shape_for_batch(n), stream, batch, rule, search, scratch,
                      row);
    });
}

absgd_status absgd_lam_round_cuda(const absgd_lam_rule *rule, const absgd_lam_row *rows,
                                  int64_t n_rows, absgd_lam_search *search, void *stream) {
    ABSGD_REQUIRE(n_rows >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(rule && search && (rows || n_rows == 0), ABSGD_NULL_POINTER);
    return launch(lam_round_kernel, {1, WARP}, stream, rule, rows, n_rows, search);
}

absgd_status absgd_lam_update_cuda(const absgd_lam_rule *rule, const absgd_lam_search *search,
                                   double *lam, void *stream) {
    ABSGD_REQUIRE(rule && search && lam, ABSGD_NULL_POINTER);
    return launch(lam_update_kernel, {1, 1}, stream, rule, search, lam);
}
