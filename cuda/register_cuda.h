/* What the registration files for CUDA share: a tensor's device and stream, and the operators that
 * others are made of. */
#ifndef ABSGD_REGISTER_CUDA_H
#define ABSGD_REGISTER_CUDA_H

#include "absgd_cuda.h"
#include "register_batch.h"
#include "register_sigmoid_loss.h"
#include "register_softmax_loss.h"

#include <torch/csrc/stable/accelerator.h>

#include <cuda_runtime.h>

#include <tuple>

namespace absgd {

/* Makes a tensor's device the current one, and knows its stream. */
class OnDeviceOf {
  public:
    explicit OnDeviceOf(const Tensor &t) : OnDeviceOf(t.get_device_index()) {}
    explicit OnDeviceOf(int32_t device) : device_(device), guard_(device) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream_));
    }

    void *stream() const { return stream_; }

    /* float64 tensors of n elements on this device */
    double *doubles(const Tensor &t, int64_t n, const char *name) const {
        STD_TORCH_CHECK(
            !t.is_cpu() && t.get_device_index() == device_, name,
            " must be on the device of the tensors that it is used with, cuda:", device_);
        return absgd::doubles(t, n, name);
    }

    const double *doubles_or_null(const std::optional<Tensor> &t, const char *name) const {
        return t ? doubles(*t, 1, name) : nullptr;
    }

  private:
    int32_t device_;
    torch::stable::accelerator::DeviceGuard guard_;
    void *stream_ = nullptr;
};

inline void check_cuda(absgd_status status, const char *op) {
    STD_TORCH_CHECK(status != ABSGD_CUDA_ERROR, op, ": ", absgd_status_string(status), ": ",
                    cudaGetErrorString(cudaGetLastError()));
    check(status, op);
}

template <class Row> Row *as(double *values) { return reinterpret_cast<Row *>(values); }

/* The state of the rule, which weigh updates. */
struct DeviceState {
    double *lam, *log_s, *log_s_lam;
    absgd_report *reports;

    DeviceState(const OnDeviceOf &device, const Tensor &lam_, const Tensor &log_s_,
                const Tensor &log_s_lam_, const Tensor &reports_)
        : lam(device.doubles(lam_, 1, "lam")), log_s(device.doubles(log_s_, 1, "log_s")),
          log_s_lam(device.doubles(log_s_lam_, 1, "log_s_lam")),
          reports(as<absgd_report>(device.doubles(reports_, 2 * REPORT_SIZE, "reports"))) {}
};

/* register_cuda.cpp: as csrc/operators.h has it */
Tensor weigh(const OnDeviceOf &device, const Losses &batch, const std::optional<Tensor> &rows,
             const std::optional<Tensor> &lam_rule, const DeviceState &state,
             const absgd_rule &rule, double factor);

/* register_losses_cuda.cpp: the losses and what backward wants of them; the logits' gradient */
std::tuple<Tensor, Tensor> forward(const OnDeviceOf &device, const SoftmaxLoss &call);
std::tuple<Tensor, Tensor> forward(const OnDeviceOf &device, const SigmoidLoss &call);
Tensor backward(const OnDeviceOf &device, const SoftmaxLoss &call, const void *grad_loss,
                const Tensor &saved, const void *grad_factor = nullptr);
Tensor backward(const OnDeviceOf &device, const SigmoidLoss &call, const void *grad_loss,
                const Tensor &known, const void *grad_factor = nullptr);

} // namespace absgd
#endif
