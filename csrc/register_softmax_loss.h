/* The arguments of the softmax losses, on any device, as absgd_softmax_loss_* takes them. */
#ifndef ABSGD_REGISTER_SOFTMAX_LOSS_H
#define ABSGD_REGISTER_SOFTMAX_LOSS_H

#include "register.h"

#include <algorithm>

namespace absgd {

/* The arguments that both passes take, checked. Owns what it had to copy: of logits, and of class
 * probabilities, what is neither contiguous nor rows of classes, as (N, C, d1, …) is in
 * channels_last memory; those are (N·d1·…, C), and so is their gradient. */
struct SoftmaxLoss {
    bool is_rows;
    Tensor logits, target;
    std::optional<Tensor> weight, margin, offset;
    absgd_dtype dtype;
    std::vector<int64_t> shape; /* of the losses */
    absgd_softmax_loss spec;

    SoftmaxLoss(const Tensor &logits_, const Tensor &target_, const std::optional<Tensor> &weight_,
                const std::optional<Tensor> &margin_, const std::optional<Tensor> &offset_,
                double scale, double focal_gamma, double label_smoothing, int64_t ignore_index)
        : is_rows(is_second_last(logits_)), logits(is_rows ? logits_ : as_contiguous(logits_)),
          target(laid_out(target_)), dtype(dtype_of(logits_, "logits")) {
        STD_TORCH_CHECK(logits.dim() >= 1, "logits must have shape (C), (N, C) or (N, C, d1, …), "
                                           "got a 0-dimensional tensor");
        const int64_t class_dim = logits.dim() == 1 ? 0 : 1;
        const auto sizes = logits.sizes();
        for (int64_t d = 0; d < logits.dim(); d++) {
            if (d != class_dim) shape.push_back(sizes[d]);
        }
        const int64_t classes = sizes[class_dim];
        STD_TORCH_CHECK(classes >= 1, "logits must have at least one class, got none");
        const ScalarType type = arithmetic_type(dtype);
        int64_t inner = 1;
        for (int64_t d = 2; d < logits.dim(); d++) inner *= sizes[d];
        spec = {(class_dim ? sizes[0] : 1) * inner,
                classes,
                is_rows ? 1 : std::max<int64_t>(inner, 1),
                per_class(weight, weight_, "weight", classes, logits, type),
                per_class(margin, margin_, "margin", classes, logits, type),
                per_class(offset, offset_, "offset", classes, logits, type),
                scale,
                focal_gamma,
                label_smoothing,
                ignore_index};
        check_target();
    }

    const int64_t *classes_of() const {
        return is_soft() ? nullptr : static_cast<const int64_t *>(target.const_data_ptr());
    }

    const void *soft_target() const { return is_soft() ? target.const_data_ptr() : nullptr; }

    /* Of a base measure by classes: contiguous. */
    Tensor checked_class_weight(const Tensor &values) const {
        const ScalarType type = arithmetic_type(dtype);
        STD_TORCH_CHECK(values.dim() == 1 && values.numel() == spec.classes &&
                            values.scalar_type() == type && same_device(values, logits),
                        "class_weight must be ", spec.classes, " value(s) of ", name_of(type),
                        " on the logits' device, got ", values.numel(), " of ",
                        name_of(values.scalar_type()));
        return as_contiguous(values);
    }

    Tensor new_gradient() const {
        return new_empty(logits, logits.sizes(), logits.scalar_type(), is_rows);
    }

  private:
    /* What has the logits' dimensions as the logits lie, else contiguous. */
    Tensor laid_out(const Tensor &t) const {
        if (!is_rows || t.dim() != logits.dim()) return as_contiguous(t);
        if (is_second_last(t)) return t;
        Tensor rows = new_empty(t, t.sizes(), t.scalar_type(), true);
        return torch::stable::copy_(rows, t);
    }

    bool is_soft() const { return target.scalar_type() != ScalarType::Long; }

    void check_target() const {
        STD_TORCH_CHECK(same_device(target, logits), "target must be on the logits' device");
        if (is_soft()) {
            STD_TORCH_CHECK(target.scalar_type() == arithmetic_type(dtype),
                            "target must be int64 class indices, or ",
                            name_of(arithmetic_type(dtype)), " class probabilities for ",
                            name_of(logits.scalar_type()), " logits, got ",
                            name_of(target.scalar_type()));
            STD_TORCH_CHECK(same_shape(target, logits),
                            "target of class probabilities must have the logits' shape");
            return;
        }
        const auto sizes = target.sizes();
        STD_TORCH_CHECK(std::vector<int64_t>(sizes.begin(), sizes.end()) == shape,
                        "target of class indices must have the logits' shape without the class "
                        "dimension");
    }
};

/* Those that only the backward pass has. */
inline void check_backward(const SoftmaxLoss &call, const Tensor &grad_loss, const Tensor &saved,
                           const std::optional<Tensor> &factor) {
    const ScalarType arithmetic = arithmetic_type(call.dtype);
    STD_TORCH_CHECK(grad_loss.numel() == call.spec.samples &&
                        grad_loss.scalar_type() == arithmetic &&
                        same_device(grad_loss, call.logits),
                    "grad_loss must be ", call.spec.samples, " value(s) of ", name_of(arithmetic),
                    " on the logits' device, got ", grad_loss.numel(), " of ",
                    name_of(grad_loss.scalar_type()));
    STD_TORCH_CHECK(saved.numel() == ABSGD_LOSS_SAVED * call.spec.samples &&
                        saved.scalar_type() == arithmetic && same_device(saved, call.logits) &&
                        saved.is_contiguous(),
                    "saved must be what absgd::softmax_loss returned for these logits");
    check_factor(factor, arithmetic, call.logits);
}

} // namespace absgd
#endif
