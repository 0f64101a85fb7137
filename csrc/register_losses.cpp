/* The operators torch.ops.absgd.softmax_loss and softmax_loss_backward: per-sample softmax losses
 * over (C), (N, C) or (N, C, d1, d2, …) logits, as absgd.h has them. Shapes and dtypes are checked
 * here, the range of targets in the kernel. Python (_loss_ops.py) adds the fake kernels and the
 * autograd formula. */
#include "operators.h"

#include <algorithm>
#include <tuple>

namespace absgd {
namespace {

void complain_of_target(const SoftmaxLoss &call) {
    const int64_t *y = call.classes_of();
    const int64_t *bad = std::find_if(y, y + call.spec.samples, [&](int64_t c) {
        return c != call.spec.ignore_index && (c < 0 || c >= call.spec.classes);
    });
    STD_TORCH_CHECK(false, "target must be in [0, ", call.spec.classes,
                    ") or ignore_index = ", call.spec.ignore_index, ", got ", *bad, " at element ",
                    bad - y);
}

/* kernel(begin, end) over all samples, by torch's threads. */
template <class Kernel> void run(const SoftmaxLoss &call, const char *op, const Kernel &kernel) {
    run_losses(call.spec.samples, call.spec.classes, op, kernel, [&] { complain_of_target(call); });
}

} // namespace

std::tuple<Tensor, Tensor> forward(const SoftmaxLoss &call, const std::optional<Tensor> &kept) {
    const ScalarType arithmetic = arithmetic_type(call.dtype);
    const std::vector<int64_t> saved_shape{ABSGD_LOSS_SAVED, call.spec.samples};
    Tensor loss = new_empty(call.logits, call.shape, arithmetic);
    Tensor saved = new_empty(call.logits, saved_shape, arithmetic);
    const void *x = call.logits.const_data_ptr();
    void *loss_at = loss.mutable_data_ptr(), *saved_at = saved.mutable_data_ptr();
    void *kept_at = kept ? kept->mutable_data_ptr() : nullptr;
    run(call, "absgd::softmax_loss", [&](int64_t begin, int64_t end) {
        return absgd_softmax_loss_forward(call.dtype, &call.spec, x, call.classes_of(),
                                          call.soft_target(), loss_at, saved_at, kept_at, begin,
                                          end);
    });
    return {loss, saved};
}

Tensor backward(const SoftmaxLoss &call, const void *grad_loss, const Tensor &saved,
                const std::optional<Tensor> &kept) {
    Tensor grad = kept ? *kept : call.new_gradient();
    const void *x = call.logits.const_data_ptr(), *saved_at = saved.const_data_ptr();
    void *grad_at = grad.mutable_data_ptr();
    const void *kept_at = kept ? grad_at : nullptr;
    run(call, "absgd::softmax_loss_backward", [&](int64_t begin, int64_t end) {
        return absgd_softmax_loss_backward(call.dtype, &call.spec, x, call.classes_of(),
                                           call.soft_target(), saved_at, kept_at, grad_loss,
                                           grad_at, begin, end);
    });
    return grad;
}

namespace {

std::tuple<Tensor, Tensor>
softmax_loss(const Tensor &logits, const Tensor &target, const std::optional<Tensor> &weight,
             const std::optional<Tensor> &margin, const std::optional<Tensor> &offset, double scale,
             double focal_gamma, double label_smoothing, int64_t ignore_index) {
    return forward({logits, target, weight, margin, offset, scale, focal_gamma, label_smoothing,
                    ignore_index});
}

Tensor softmax_loss_backward(const Tensor &grad_loss, const Tensor &logits, const Tensor &target,
                             const Tensor &saved, const std::optional<Tensor> &weight,
                             const std::optional<Tensor> &margin,
                             const std::optional<Tensor> &offset, double scale, double focal_gamma,
                             double label_smoothing, int64_t ignore_index,
                             const std::optional<Tensor> &factor) {
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    check_backward(call, grad_loss, saved, factor);
    return backward(call, scaled(grad_loss, factor).const_data_ptr(), saved);
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_FRAGMENT(absgd, m) {
    m.def("softmax_loss("
          "Tensor logits, Tensor target, Tensor? weight, Tensor? margin, Tensor? offset, "
          "float scale, float focal_gamma, float label_smoothing, int ignore_index) "
          "-> (Tensor loss, Tensor saved)");
    m.def("softmax_loss_backward("
          "Tensor grad_loss, Tensor logits, Tensor target, Tensor saved, "
          "Tensor? weight, Tensor? margin, Tensor? offset, "
          "float scale, float focal_gamma, float label_smoothing, int ignore_index, "
          "Tensor? factor=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) {
    m.impl("softmax_loss", TORCH_BOX(&absgd::softmax_loss));
    m.impl("softmax_loss_backward", TORCH_BOX(&absgd::softmax_loss_backward));
}
