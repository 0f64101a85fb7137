/* The CUDA implementations of torch.ops.absgd.softmax_loss, sigmoid_loss and their backward passes.
 * The schemas stand in csrc/register_losses.cpp and csrc/register_sigmoid_loss.cpp. */
#include "register_cuda.h"

namespace absgd {

std::tuple<Tensor, Tensor> forward(const OnDeviceOf &device, const SoftmaxLoss &call) {
    const ScalarType arithmetic = arithmetic_type(call.dtype);
    const std::vector<int64_t> saved_shape{ABSGD_LOSS_SAVED, call.spec.samples};
    Tensor loss = new_empty(call.logits, call.shape, arithmetic);
    Tensor saved = new_empty(call.logits, saved_shape, arithmetic);
    check_cuda(absgd_softmax_loss_forward_cuda(call.dtype, &call.spec, call.logits.const_data_ptr(),
                                               call.classes_of(), call.soft_target(),
                                               loss.mutable_data_ptr(), saved.mutable_data_ptr(),
                                               device.stream()),
               "absgd::softmax_loss");
    return {loss, saved};
}

Tensor backward(const OnDeviceOf &device, const SoftmaxLoss &call, const void *grad_loss,
                const Tensor &saved, const void *grad_factor) {
    Tensor grad = call.new_gradient();
    check_cuda(absgd_softmax_loss_backward_cuda(
                   call.dtype, &call.spec, call.logits.const_data_ptr(), call.classes_of(),
                   call.soft_target(), saved.const_data_ptr(), grad_loss, grad_factor,
                   grad.mutable_data_ptr(), device.stream()),
               "absgd::softmax_loss_backward");
    return grad;
}

std::tuple<Tensor, Tensor> forward(const OnDeviceOf &device, const SigmoidLoss &call) {
    Tensor loss = new_empty(call.logits, call.loss_shape(), call.arithmetic());
    Tensor known = new_empty(call.logits, {call.counts()}, call.arithmetic());
    check_cuda(absgd_sigmoid_loss_forward_cuda(call.dtype, &call.spec, call.logits.const_data_ptr(),
                                               call.target.const_data_ptr(),
                                               loss.mutable_data_ptr(), known.mutable_data_ptr(),
                                               device.stream()),
               "absgd::sigmoid_loss");
    return {loss, known};
}

Tensor backward(const OnDeviceOf &device, const SigmoidLoss &call, const void *grad_loss,
                const Tensor &known, const void *grad_factor) {
    Tensor grad = new_empty(call.logits, call.logits.sizes(), call.logits.scalar_type());
    check_cuda(absgd_sigmoid_loss_backward_cuda(
                   call.dtype, &call.spec, call.logits.const_data_ptr(),
                   call.target.const_data_ptr(), known.const_data_ptr(), grad_loss, grad_factor,
                   grad.mutable_data_ptr(), device.stream()),
               "absgd::sigmoid_loss_backward");
    return grad;
}

namespace {

const void *pointer_to(const std::optional<Tensor> &t) { return t ? t->const_data_ptr() : nullptr; }

std::tuple<Tensor, Tensor>
softmax_loss(const Tensor &logits, const Tensor &target, const std::optional<Tensor> &weight,
             const std::optional<Tensor> &margin, const std::optional<Tensor> &offset, double scale,
             double focal_gamma, double label_smoothing, int64_t ignore_index) {
    const OnDeviceOf device(logits);
    return forward(device, SoftmaxLoss(logits, target, weight, margin, offset, scale, focal_gamma,
                                       label_smoothing, ignore_index));
}

Tensor softmax_loss_backward(const Tensor &grad_loss, const Tensor &logits, const Tensor &target,
                             const Tensor &saved, const std::optional<Tensor> &weight,
                             const std::optional<Tensor> &margin,
                             const std::optional<Tensor> &offset, double scale, double focal_gamma,
                             double label_smoothing, int64_t ignore_index,
                             const std::optional<Tensor> &factor) {
    const OnDeviceOf device(logits);
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    check_backward(call, grad_loss, saved, factor);
    const Tensor upstream = as_contiguous(grad_loss);
    return backward(device, call, upstream.const_data_ptr(), saved, pointer_to(factor));
}

std::tuple<Tensor, Tensor> sigmoid_loss(const Tensor &logits, const Tensor &target,
                                        const std::optional<Tensor> &weight,
                                        const std::optional<Tensor> &pos_weight,
                                        double label_smoothing, double alpha, double focal_gamma,
                                        std::optional<double> ignore_index, bool per_sample) {
    const OnDeviceOf device(logits);
    return forward(device, SigmoidLoss(logits, target, weight, pos_weight, label_smoothing, alpha,
                                       focal_gamma, ignore_index, per_sample));
}

Tensor sigmoid_loss_backward(const Tensor &grad_loss, const Tensor &logits, const Tensor &target,
                             const Tensor &known, const std::optional<Tensor> &weight,
                             const std::optional<Tensor> &pos_weight, double label_smoothing,
                             double alpha, double focal_gamma, std::optional<double> ignore_index,
                             bool per_sample, const std::optional<Tensor> &factor) {
    const OnDeviceOf device(logits);
    const SigmoidLoss call(logits, target, weight, pos_weight, label_smoothing, alpha, focal_gamma,
                           ignore_index, per_sample);
    const Tensor upstream = as_contiguous(grad_loss);
    call.check_backward(upstream, known, factor);
    return backward(device, call, upstream.const_data_ptr(), known, pointer_to(factor));
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_IMPL(absgd, CUDA, m) {
    m.impl("softmax_loss", TORCH_BOX(&absgd::softmax_loss));
    m.impl("softmax_loss_backward", TORCH_BOX(&absgd::softmax_loss_backward));
    m.impl("sigmoid_loss", TORCH_BOX(&absgd::sigmoid_loss));
    m.impl("sigmoid_loss_backward", TORCH_BOX(&absgd::sigmoid_loss_backward));
}
