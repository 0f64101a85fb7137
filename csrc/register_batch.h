/* A batch of losses as the weighting operators take it, on any device. */
#ifndef ABSGD_REGISTER_BATCH_H
#define ABSGD_REGISTER_BATCH_H

#include "checks.h"
#include "register.h"

namespace absgd {

constexpr int64_t STATS_SIZE = sizeof(absgd_stats) / sizeof(double);
constexpr int64_t REPORT_SIZE = sizeof(absgd_report) / sizeof(double);
constexpr int64_t ACCUMULATION_SIZE = sizeof(absgd_accumulation) / sizeof(double);
constexpr int64_t LAM_RULE_SIZE = sizeof(absgd_lam_rule) / sizeof(double);
constexpr int64_t LAM_ROW_SIZE = sizeof(absgd_lam_row) / sizeof(double);
constexpr int64_t LAM_SEARCH_SIZE = sizeof(absgd_lam_search) / sizeof(double);

inline int64_t chunks(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* Losses with their mask and base measure, as absgd.h takes them. Owns what it had to copy. */
struct Losses {
    Tensor values;
    std::optional<Tensor> mask, weight;
    absgd_dtype dtype;
    int64_t n;

    Losses(const Tensor &losses, const std::optional<Tensor> &mask_,
           const std::optional<Tensor> &weight_)
        : values(as_contiguous(losses)), dtype(dtype_of(losses, "losses")), n(losses.numel()) {
        mask = like_losses(mask_, ScalarType::Bool, "mask");
        weight = like_losses(weight_, arithmetic_type(dtype), "weight");
    }

    const void *at(int64_t i) const {
        return static_cast<const char *>(values.const_data_ptr()) + i * values.element_size();
    }

    const uint8_t *mask_at(int64_t i) const {
        return mask ? static_cast<const uint8_t *>(mask->const_data_ptr()) + i : nullptr;
    }

    const void *weight_at(int64_t i) const {
        if (!weight) return nullptr;
        return static_cast<const char *>(weight->const_data_ptr()) + i * weight->element_size();
    }

  private:
    std::optional<Tensor> like_losses(const std::optional<Tensor> &t, ScalarType dtype,
                                      const char *name) const {
        if (!t) return std::nullopt;
        STD_TORCH_CHECK(t->scalar_type() == dtype, name, " must be ",
                        torch::headeronly::toString(dtype), " for ",
                        torch::headeronly::toString(values.scalar_type()), " losses, got ",
                        torch::headeronly::toString(t->scalar_type()));
        STD_TORCH_CHECK(same_shape(*t, values), name, " must have the losses' shape: ", n,
                        " elements in ", values.dim(), " dimensions, got ", t->numel(), " in ",
                        t->dim());
        STD_TORCH_CHECK(same_device(*t, values), name, " must be on the losses' device");
        return as_contiguous(*t);
    }
};

/* Of [2, losses.shape], weights and coefficients. */
inline char *coefficients_of(const Tensor &weights) {
    return static_cast<char *>(weights.mutable_data_ptr()) +
           weights.numel() / 2 * weights.element_size();
}

/* The rule's constants as the operators take them, checked; max_weight = ∞ for no cap. */
inline absgd_rule rule_of(double gamma, double alpha, double s_init, double max_weight,
                          bool keep_loss, bool bounded, const char *op) {
    const absgd_rule rule = {gamma, alpha, s_init, max_weight, keep_loss * 1.0, bounded * 1.0};
    check(absgd_is_rule(&rule) ? ABSGD_OK : ABSGD_INVALID_HYPERPARAMETER, op);
    return rule;
}

/* λ is found from the whole batch: with other ranks' rows, it is known by then. */
inline void check_rows_or_rule(const std::optional<Tensor> &rows,
                               const std::optional<Tensor> &lam_rule) {
    STD_TORCH_CHECK(!(rows && lam_rule), "lam_rule must be None where rows are given");
}

/* The state of the rule, which weigh updates. */
struct RuleState {
    double *lam, *log_s, *log_s_lam;
    absgd_report *reports;

    RuleState(const Tensor &lam_, const Tensor &log_s_, const Tensor &log_s_lam_,
              const Tensor &reports_)
        : lam(doubles(lam_, 1, "lam")), log_s(doubles(log_s_, 1, "log_s")),
          log_s_lam(doubles(log_s_lam_, 1, "log_s_lam")),
          reports(reinterpret_cast<absgd_report *>(doubles(reports_, 2 * REPORT_SIZE, "reports"))) {
    }
};

inline absgd_accumulation *accumulation_of(const Tensor &accumulation) {
    return reinterpret_cast<absgd_accumulation *>(
        doubles(accumulation, ACCUMULATION_SIZE, "accumulation"));
}

} // namespace absgd
#endif
