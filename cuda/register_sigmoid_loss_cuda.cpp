/* The CUDA implementations of torch.ops.absgd.sigmoid_loss and sigmoid_loss_backward. The schemas
 * stand in csrc/register_sigmoid_loss.cpp. */
#include "absgd_sigmoid_loss_cuda.h"
#include "register_sigmoid_loss.h"

#include <torch/csrc/stable/accelerator.h>

#include <cuda_runtime.h>

namespace absgd {
namespace {

/* Makes a tensor's device the current one, and knows its stream. */
class OnDeviceOf {
  public:
    explicit OnDeviceOf(const Tensor &t) : guard_(t.get_device_index()) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
    }
    void *stream() const { return stream_; }

  private:
    torch::stable::accelerator::DeviceGuard guard_;
    void *stream_ = nullptr;
};

void check_cuda(absgd_status status, const char *op) {
    STD_TORCH_CHECK(status != ABSGD_CUDA_ERROR, op, ": ", absgd_status_string(status), ": ",
                    cudaGetErrorString(cudaGetLastError()));
    check(status, op);
}

std::tuple<Tensor, Tensor> sigmoid_loss(const Tensor &logits, const Tensor &target,
                                        const std::optional<Tensor> &weight,
                                        const std::optional<Tensor> &pos_weight,
                                        double label_smoothing, double alpha, double focal_gamma,
                                        std::optional<double> ignore_index, bool per_sample) {
    const OnDeviceOf device(logits);
    const SigmoidLoss call(logits, target, weight, pos_weight, label_smoothing, alpha, focal_gamma,
                           ignore_index, per_sample);
    Tensor loss = new_empty(call.logits, call.loss_shape(), call.arithmetic());
    Tensor known = new_empty(call.logits, {call.counts()}, call.arithmetic());
    check_cuda(absgd_sigmoid_loss_forward_cuda(call.dtype, &call.spec, call.logits.const_data_ptr(),
                                               call.target.const_data_ptr(),
                                               loss.mutable_data_ptr(), known.mutable_data_ptr(),
                                               device.stream()),
               "absgd::sigmoid_loss");
    return {loss, known};
}

Tensor sigmoid_loss_backward(const Tensor &grad_loss, const Tensor &logits, const Tensor &target,
                             const Tensor &known, const std::optional<Tensor> &weight,
                             const std::optional<Tensor> &pos_weight, double label_smoothing,
                             double alpha, double focal_gamma, std::optional<double> ignore_index,
                             bool per_sample) {
    const OnDeviceOf device(logits);
    const SigmoidLoss call(logits, target, weight, pos_weight, label_smoothing, alpha, focal_gamma,
                           ignore_index, per_sample);
    const Tensor upstream = as_contiguous(grad_loss);
    call.check_backward(upstream, known);
    Tensor grad = new_empty(call.logits, call.logits.sizes(), call.logits.scalar_type());
    check_cuda(absgd_sigmoid_loss_backward_cuda(
                   call.dtype, &call.spec, call.logits.const_data_ptr(),
                   call.target.const_data_ptr(), known.const_data_ptr(), upstream.const_data_ptr(),
                   grad.mutable_data_ptr(), device.stream()),
               "absgd::sigmoid_loss_backward");
    return grad;
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_IMPL(absgd, CUDA, m) {
    m.impl("sigmoid_loss", TORCH_BOX(&absgd::sigmoid_loss));
    m.impl("sigmoid_loss_backward", TORCH_BOX(&absgd::sigmoid_loss_backward));
}
