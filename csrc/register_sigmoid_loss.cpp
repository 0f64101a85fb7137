/* The operators torch.ops.absgd.sigmoid_loss and sigmoid_loss_backward: per-sample sigmoid losses
 * over (N), (N, C) or (N, C, d1, d2, …) logits, as absgd.h has them. Python (_sigmoid_ops.py) adds
 * the fake kernels and the autograd formula. */
#include "operators.h"

namespace absgd {
namespace {

template <class T> void complain_of_target(const SigmoidLoss &call) {
    const T *q = static_cast<const T *>(call.target.const_data_ptr());
    const T *end = q + call.target.numel(), ignored = static_cast<T>(call.spec.ignore_index);
    const T low = static_cast<T>(-ABSGD_TARGET_SLACK),
            high = static_cast<T>(1 + ABSGD_TARGET_SLACK);
    const T *bad =
        std::find_if(q, end, [=](T x) { return !((x >= low && x <= high) || x == ignored); });
    const bool may_ignore = !std::isnan(call.spec.ignore_index);
    STD_TORCH_CHECK(may_ignore, "target must be in [0, 1], got ", *bad, " at element ", bad - q);
    STD_TORCH_CHECK(false, "target must be in [0, 1] or ignore_index = ", call.spec.ignore_index,
                    ", got ", *bad, " at element ", bad - q);
}

/* kernel(begin, end) over all losses, by torch's threads. */
template <class Kernel> void run(const SigmoidLoss &call, const char *op, const Kernel &kernel) {
    const int64_t elements = call.spec.per_sample ? call.spec.classes * call.spec.inner : 1;
    run_losses(call.losses(), elements, op, kernel, [&] {
        (call.dtype == ABSGD_FLOAT64 ? complain_of_target<double>
                                     : complain_of_target<float>)(call);
    });
}

} // namespace

std::tuple<Tensor, Tensor> forward(const SigmoidLoss &call) {
    Tensor loss = new_empty(call.logits, call.loss_shape(), call.arithmetic());
    Tensor known = new_empty(call.logits, {call.counts()}, call.arithmetic());
    const void *x = call.logits.const_data_ptr(), *q = call.target.const_data_ptr();
    void *loss_at = loss.mutable_data_ptr(), *known_at = known.mutable_data_ptr();
    run(call, "absgd::sigmoid_loss", [&](int64_t begin, int64_t end) {
        return absgd_sigmoid_loss_forward(call.dtype, &call.spec, x, q, loss_at, known_at, begin,
                                          end);
    });
    return {loss, known};
}

Tensor backward(const SigmoidLoss &call, const void *grad_loss, const Tensor &known) {
    Tensor grad = new_empty(call.logits, call.logits.sizes(), call.logits.scalar_type());
    const void *x = call.logits.const_data_ptr(), *q = call.target.const_data_ptr();
    const void *known_at = known.const_data_ptr();
    void *grad_at = grad.mutable_data_ptr();
    run(call, "absgd::sigmoid_loss_backward", [&](int64_t begin, int64_t end) {
        return absgd_sigmoid_loss_backward(call.dtype, &call.spec, x, q, known_at, grad_loss,
                                           grad_at, begin, end);
    });
    return grad;
}

namespace {

std::tuple<Tensor, Tensor> sigmoid_loss(const Tensor &logits, const Tensor &target,
                                        const std::optional<Tensor> &weight,
                                        const std::optional<Tensor> &pos_weight,
                                        double label_smoothing, double alpha, double focal_gamma,
                                        std::optional<double> ignore_index, bool per_sample) {
    return forward(SigmoidLoss(logits, target, weight, pos_weight, label_smoothing, alpha,
                               focal_gamma, ignore_index, per_sample));
}

Tensor sigmoid_loss_backward(const Tensor &grad_loss, const Tensor &logits, const Tensor &target,
                             const Tensor &known, const std::optional<Tensor> &weight,
                             const std::optional<Tensor> &pos_weight, double label_smoothing,
                             double alpha, double focal_gamma, std::optional<double> ignore_index,
                             bool per_sample, const std::optional<Tensor> &factor) {
    const SigmoidLoss call(logits, target, weight, pos_weight, label_smoothing, alpha, focal_gamma,
                           ignore_index, per_sample);
    const Tensor given = as_contiguous(grad_loss);
    call.check_backward(given, known, factor);
    return backward(call, scaled(given, factor).const_data_ptr(), known);
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_FRAGMENT(absgd, m) {
    m.def("sigmoid_loss("
          "Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, "
          "float label_smoothing, float alpha, float focal_gamma, float? ignore_index, "
          "bool per_sample) -> (Tensor loss, Tensor known)");
    m.def("sigmoid_loss_backward("
          "Tensor grad_loss, Tensor logits, Tensor target, Tensor known, "
          "Tensor? weight, Tensor? pos_weight, "
          "float label_smoothing, float alpha, float focal_gamma, float? ignore_index, "
          "bool per_sample, Tensor? factor=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) {
    m.impl("sigmoid_loss", TORCH_BOX(&absgd::sigmoid_loss));
    m.impl("sigmoid_loss_backward", TORCH_BOX(&absgd::sigmoid_loss_backward));
}
