/* The arguments of the sigmoid losses, on any device, as absgd_sigmoid_loss_* takes them. */
#ifndef ABSGD_REGISTER_SIGMOID_LOSS_H
#define ABSGD_REGISTER_SIGMOID_LOSS_H

#include "register.h"

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

namespace absgd {

/* The arguments that both passes take, checked. Owns what it had to copy. */
struct SigmoidLoss {
    Tensor logits, target;
    std::optional<Tensor> weight, pos_weight;
    absgd_dtype dtype;
    absgd_sigmoid_loss spec;

    SigmoidLoss(const Tensor &logits_, const Tensor &target_, const std::optional<Tensor> &weight_,
                const std::optional<Tensor> &pos_weight_, double label_smoothing, double alpha,
                double focal_gamma, std::optional<double> ignore_index, bool per_sample)
        : logits(as_contiguous(logits_)), target(as_contiguous(target_)),
          dtype(dtype_of(logits_, "logits")) {
        STD_TORCH_CHECK(logits.dim() >= 1, "logits must have shape (N), (N, C) or (N, C, d1, …), "
                                           "got a 0-dimensional tensor");
        const auto sizes = logits.sizes();
        const int64_t classes = logits.dim() == 1 ? 1 : sizes[1];
        int64_t inner = 1;
        for (int64_t d = 2; d < logits.dim(); d++) inner *= sizes[d];
        spec = {sizes[0],
                classes,
                inner,
                per_class(weight, weight_, "weight", classes, logits, arithmetic()),
                per_class(pos_weight, pos_weight_, "pos_weight", classes, logits, arithmetic()),
                label_smoothing,
                alpha,
                focal_gamma,
                ignore_index.value_or(std::numeric_limits<double>::quiet_NaN()),
                per_sample};
        check_target();
    }

    ScalarType arithmetic() const { return arithmetic_type(dtype); }

    std::vector<int64_t> loss_shape() const {
        if (spec.per_sample) return {spec.samples};
        const auto sizes = logits.sizes();
        return {sizes.begin(), sizes.end()};
    }

    int64_t losses() const {
        return spec.samples * (spec.per_sample ? 1 : spec.classes * spec.inner);
    }

    /* elements of `known` */
    int64_t counts() const { return spec.per_sample ? spec.samples : 0; }

    void check_backward(const Tensor &grad_loss, const Tensor &known,
                        const std::optional<Tensor> &factor) const {
        check_values(grad_loss, losses(), "grad_loss");
        check_values(known, counts(), "known");
        check_factor(factor, arithmetic(), logits);
    }

  private:
    void check_values(const Tensor &t, int64_t n, const char *name) const {
        STD_TORCH_CHECK(t.numel() == n && t.scalar_type() == arithmetic() &&
                            same_device(t, logits) && t.is_contiguous(),
                        name, " must be ", n, " contiguous value(s) of ", name_of(arithmetic()),
                        " on the logits' device, got ", t.numel(), " of ",
                        name_of(t.scalar_type()));
    }

    void check_target() const {
        STD_TORCH_CHECK(target.scalar_type() == arithmetic() && same_device(target, logits),
                        "target must be ", name_of(arithmetic()), " on the logits' device for ",
                        name_of(logits.scalar_type()), " logits, got ",
                        name_of(target.scalar_type()));
        STD_TORCH_CHECK(same_shape(target, logits), "target must have the logits' shape");
    }
};

} // namespace absgd
#endif
