/* A batch of losses as the weighting operators take it, on any device. */
#ifndef ABSGD_REGISTER_BATCH_H
#define ABSGD_REGISTER_BATCH_H

#include "register.h"

namespace absgd {

constexpr int64_t STATS_SIZE = sizeof(absgd_stats) / sizeof(double);
constexpr int64_t REPORT_SIZE = sizeof(absgd_report) / sizeof(double);
constexpr int64_t ACCUMULATION_SIZE = sizeof(absgd_accumulation) / sizeof(double);
constexpr int64_t LAM_RULE_SIZE = sizeof(absgd_lam_rule) / sizeof(double);
constexpr int64_t LAM_ROW_SIZE = sizeof(absgd_lam_row) / sizeof(double);
constexpr int64_t LAM_SEARCH_SIZE = sizeof(absgd_lam_search) / sizeof(double);

inline int64_t chunks(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* Losses with their mask, as absgd.h takes them. Owns what it had to copy. */
struct Losses {
    Tensor values;
    std::optional<Tensor> mask;
    absgd_dtype dtype;
    int64_t n;

    Losses(const Tensor &losses, const std::optional<Tensor> &mask_)
        : values(as_contiguous(losses)), dtype(dtype_of(losses, "losses")), n(losses.numel()) {
        if (!mask_) return;
        STD_TORCH_CHECK(mask_->scalar_type() == ScalarType::Bool, "mask must be bool, got ",
                        torch::headeronly::toString(mask_->scalar_type()));
        STD_TORCH_CHECK(mask_->numel() == n, "mask must have the losses' ", n, " elements, got ",
                        mask_->numel());
        STD_TORCH_CHECK(same_device(*mask_, losses), "mask must be on the losses' device");
        mask = as_contiguous(*mask_);
    }

    const void *at(int64_t i) const {
        return static_cast<const char *>(values.const_data_ptr()) + i * values.element_size();
    }

    const uint8_t *mask_at(int64_t i) const {
        return mask ? static_cast<const uint8_t *>(mask->const_data_ptr()) + i : nullptr;
    }
};

inline absgd_rule rule_of(double gamma, double alpha, double s_init) {
    return absgd_rule{gamma, alpha, s_init};
}

} // namespace absgd
#endif
