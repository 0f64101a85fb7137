/* The CUDA implementations of torch.ops.absgd.*: a shared object of its own, on LibTorch's stable
 * ABI, loaded where there is a card. Schemas stand in csrc/register*.cpp. Nothing here waits for
 * the device; work goes to torch's current stream. */
#include "absgd_cuda.h"
#include "register_batch.h"
#include "register_softmax_loss.h"
#include "register_step.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cuda_runtime.h>

#include <tuple>

namespace absgd {
namespace {

/* Makes a tensor's device the current one, and knows its stream. */
class OnDeviceOf {
  public:
    explicit OnDeviceOf(const Tensor &t) : device_(t.get_device_index()), guard_(device_) {
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

void check_cuda(absgd_status status, const char *op) {
    STD_TORCH_CHECK(status != ABSGD_CUDA_ERROR, op, ": ", absgd_status_string(status), ": ",
                    cudaGetErrorString(cudaGetLastError()));
    check(status, op);
}

/* ---- weights ---- */

template <class Row> Row *as(double *values) { return reinterpret_cast<Row *>(values); }

/* Rows of statistics that are given, or room for those of the chunks. */
struct Rows {
    const absgd_stats *given = nullptr;
    int64_t n = 0;
    Tensor memory;
    absgd_stats *scratch = nullptr;

    Rows(const OnDeviceOf &device, const Losses &losses, const std::optional<Tensor> &rows) {
        if (rows) {
            n = rows->numel() / STATS_SIZE;
            given = as<absgd_stats>(device.doubles(*rows, n * STATS_SIZE, "rows"));
        } else if (losses.n > ABSGD_CUDA_CHUNK) {
            memory = new_empty(losses.values, {chunks(losses.n, ABSGD_CUDA_CHUNK) * STATS_SIZE},
                               ScalarType::Double);
            scratch = as<absgd_stats>(static_cast<double *>(memory.mutable_data_ptr()));
        }
    }
};

Tensor batch_stats(const Tensor &losses, std::optional<Tensor> mask, const Tensor &lam) {
    const OnDeviceOf device(losses);
    const Losses batch(losses, mask);
    const Rows rows(device, batch, std::nullopt);
    Tensor out = new_empty(losses, {STATS_SIZE}, ScalarType::Double);
    check_cuda(absgd_batch_stats_cuda(batch.dtype, batch.at(0), batch.mask_at(0), batch.n,
                                      device.doubles(lam, 1, "lam"), rows.scratch,
                                      as<absgd_stats>(device.doubles(out, STATS_SIZE, "stats")),
                                      device.stream()),
               "absgd::batch_stats");
    return out;
}

/* [2, losses.shape]: room for the weights and the coefficients. */
Tensor new_weights(const Losses &losses) {
    std::vector<int64_t> shape(losses.values.sizes().begin(), losses.values.sizes().end());
    shape.insert(shape.begin(), 2);
    return new_empty(losses.values, shape, arithmetic_type(losses.dtype));
}

char *coefficients_of(const Tensor &weights, const Losses &losses) {
    return static_cast<char *>(weights.mutable_data_ptr()) + losses.n * weights.element_size();
}

Tensor weigh(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> rows_,
             const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports,
             double gamma, double alpha, double s_init, double factor) {
    const OnDeviceOf device(losses);
    const Losses batch(losses, mask);
    const Rows rows(device, batch, rows_);
    const absgd_rule rule = rule_of(gamma, alpha, s_init);
    Tensor out = new_weights(batch);
    check_cuda(absgd_weigh_cuda(
                   batch.dtype, batch.at(0), batch.mask_at(0), batch.n, rows.given, rows.n,
                   rows.scratch, device.doubles(lam, 1, "lam"), &rule,
                   device.doubles(log_s, 1, "log_s"), device.doubles(log_s_lam, 1, "log_s_lam"),
                   as<absgd_report>(device.doubles(reports, 2 * REPORT_SIZE, "reports")), factor,
                   out.mutable_data_ptr(), coefficients_of(out, batch), device.stream()),
               "absgd::weigh");
    return out;
}

void carry_log_s(const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, double s_init) {
    const OnDeviceOf device(log_s);
    const absgd_rule rule = rule_of(1.0, 1.0, s_init);
    check_cuda(absgd_carry_log_s_cuda(device.doubles(lam, 1, "lam"), &rule,
                                      device.doubles(log_s, 1, "log_s"),
                                      device.doubles(log_s_lam, 1, "log_s_lam"), device.stream()),
               "absgd::carry_log_s");
}

Tensor weigh_provisionally(const Tensor &losses, std::optional<Tensor> mask,
                           std::optional<Tensor> rows_, const Tensor &lam, const Tensor &log_s,
                           const Tensor &log_s_lam, const Tensor &accumulation,
                           const Tensor &shrink, double alpha, double s_init, double factor) {
    const OnDeviceOf device(losses);
    const Losses batch(losses, mask);
    const Rows rows(device, batch, rows_);
    const absgd_rule rule = rule_of(1.0, alpha, s_init);
    Tensor out = new_weights(batch);
    check_cuda(
        absgd_weigh_provisionally_cuda(
            batch.dtype, batch.at(0), batch.mask_at(0), batch.n, rows.given, rows.n, rows.scratch,
            device.doubles(lam, 1, "lam"), &rule, device.doubles(log_s, 1, "log_s"),
            device.doubles(log_s_lam, 1, "log_s_lam"),
            as<absgd_accumulation>(device.doubles(accumulation, ACCUMULATION_SIZE, "accumulation")),
            device.doubles(shrink, 1, "shrink"), factor, out.mutable_data_ptr(),
            coefficients_of(out, batch), device.stream()),
        "absgd::weigh_provisionally");
    return out;
}

Tensor settle(const Tensor &accumulation, std::optional<Tensor> rows, const Tensor &lam,
              const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports, double gamma,
              double alpha, double s_init, double divisor) {
    const OnDeviceOf device(accumulation);
    const absgd_rule rule = rule_of(gamma, alpha, s_init);
    const int64_t n_rows = rows ? rows->numel() / STATS_SIZE : 0;
    const absgd_stats *given =
        rows ? as<absgd_stats>(device.doubles(*rows, n_rows * STATS_SIZE, "rows")) : nullptr;
    Tensor factor = new_empty(lam, {}, ScalarType::Double);
    check_cuda(
        absgd_settle_cuda(
            as<absgd_accumulation>(device.doubles(accumulation, ACCUMULATION_SIZE, "accumulation")),
            given, n_rows, device.doubles(lam, 1, "lam"), &rule, divisor,
            device.doubles(log_s, 1, "log_s"), device.doubles(log_s_lam, 1, "log_s_lam"),
            as<absgd_report>(device.doubles(reports, 2 * REPORT_SIZE, "reports")),
            device.doubles(factor, 1, "factor"), device.stream()),
        "absgd::settle");
    return factor;
}

/* ---- λ from how selective the weights shall be ---- */

const absgd_lam_rule *lam_rule_of(const OnDeviceOf &device, const Tensor &rule) {
    return as<absgd_lam_rule>(device.doubles(rule, LAM_RULE_SIZE, "lam_rule"));
}

absgd_lam_search *search_of(const OnDeviceOf &device, const Tensor &search) {
    return as<absgd_lam_search>(device.doubles(search, LAM_SEARCH_SIZE, "search"));
}

/* Room for `rows` rows a chunk; empty for a batch of one chunk. */
Tensor new_lam_rows(const Losses &losses, int64_t rows) {
    const int64_t n = chunks(losses.n, ABSGD_CUDA_CHUNK);
    return new_empty(losses.values, {n > 1 ? rows * n * LAM_ROW_SIZE : 0}, ScalarType::Double);
}

absgd_lam_row *lam_rows(const Tensor &memory) {
    return memory.numel() ? as<absgd_lam_row>(static_cast<double *>(memory.mutable_data_ptr()))
                          : nullptr;
}

void follow_lam(const Tensor &losses, std::optional<Tensor> mask, const Tensor &lam_rule,
                const Tensor &lam) {
    const OnDeviceOf device(losses);
    const Losses batch(losses, mask);
    const Tensor scratch = new_lam_rows(batch, 2);
    check_cuda(absgd_follow_lam_cuda(batch.dtype, batch.at(0), batch.mask_at(0), batch.n,
                                     lam_rule_of(device, lam_rule), lam_rows(scratch),
                                     device.doubles(lam, 1, "lam"), device.stream()),
               "absgd::follow_lam");
}

Tensor lam_sums(const Tensor &losses, std::optional<Tensor> mask, const Tensor &lam_rule,
                const Tensor &search) {
    const OnDeviceOf device(losses);
    const Losses batch(losses, mask);
    const Tensor scratch = new_lam_rows(batch, 1);
    Tensor out = new_empty(losses, {LAM_ROW_SIZE}, ScalarType::Double);
    check_cuda(absgd_lam_sums_cuda(
                   batch.dtype, batch.at(0), batch.mask_at(0), batch.n,
                   lam_rule_of(device, lam_rule), search_of(device, search), lam_rows(scratch),
                   as<absgd_lam_row>(device.doubles(out, LAM_ROW_SIZE, "row")), device.stream()),
               "absgd::lam_sums");
    return out;
}

void lam_round(const Tensor &lam_rule, const Tensor &rows, const Tensor &search) {
    const OnDeviceOf device(search);
    const int64_t n = rows.numel() / LAM_ROW_SIZE;
    check_cuda(
        absgd_lam_round_cuda(lam_rule_of(device, lam_rule),
                             as<absgd_lam_row>(device.doubles(rows, n * LAM_ROW_SIZE, "rows")), n,
                             search_of(device, search), device.stream()),
        "absgd::lam_round");
}

void lam_update(const Tensor &lam_rule, const Tensor &search, const Tensor &lam) {
    const OnDeviceOf device(lam);
    check_cuda(absgd_lam_update_cuda(lam_rule_of(device, lam_rule), search_of(device, search),
                                     device.doubles(lam, 1, "lam"), device.stream()),
               "absgd::lam_update");
}

/* ---- the momentum step ---- */

struct StepHyperparameters {
    absgd_sgd_options options;
    const double *lr, *grad_scale, *found_inf;

    void step(absgd_dtype dtype, const absgd_tensor *tensors, int64_t n, void *stream) const {
        check_cuda(
            absgd_sgd_step_cuda(dtype, tensors, n, &options, lr, grad_scale, found_inf, stream),
            "absgd::sgd_step_");
    }
};

void step(const StepArguments &a) {
    StepTensors tensors(a);
    if (a.written->params.size() == 0) return;
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(a.written->params[0], &handle));
    const Tensor first(handle);
    STD_TORCH_CHECK(first.is_cuda(), "params must be on a CUDA device");
    const OnDeviceOf device(first);
    const StepHyperparameters hyper = {
        {a.lr, a.momentum, a.dampening, a.weight_decay, 1.0, a.nesterov, a.maximize, a.polyak},
        device.doubles_or_null(a.lr_tensor, "lr_tensor"),
        device.doubles_or_null(a.grad_scale, "grad_scale"),
        device.doubles_or_null(a.found_inf, "found_inf")};
    for (int dtype = ABSGD_FLOAT32; dtype <= ABSGD_BFLOAT16; dtype++) {
        const std::vector<absgd_tensor> &list = tensors.of[dtype];
        hyper.step(static_cast<absgd_dtype>(dtype), list.data(), list.size(), device.stream());
    }
    tensors.write_back();
}

void sgd_step_(StableIValue *stack, uint64_t, uint64_t) { step(StepArguments::of_lists(stack)); }

void sgd_step_recorded(StableIValue *stack, uint64_t, uint64_t) {
    step(StepArguments::of_record(stack));
}

/* ---- per-sample softmax losses ---- */

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
                const Tensor &saved) {
    Tensor grad = new_empty(call.logits, call.logits.sizes(), call.logits.scalar_type());
    check_cuda(absgd_softmax_loss_backward_cuda(
                   call.dtype, &call.spec, call.logits.const_data_ptr(), call.classes_of(),
                   call.soft_target(), saved.const_data_ptr(), grad_loss, grad.mutable_data_ptr(),
                   device.stream()),
               "absgd::softmax_loss_backward");
    return grad;
}

std::tuple<Tensor, Tensor>
softmax_loss(const Tensor &logits, const Tensor &target, const std::optional<Tensor> &weight,
             const std::optional<Tensor> &margin, const std::optional<Tensor> &offset, double scale,
             double focal_gamma, double label_smoothing, int64_t ignore_index) {
    const OnDeviceOf device(logits);
    return forward(device, {logits, target, weight, margin, offset, scale, focal_gamma,
                            label_smoothing, ignore_index});
}

Tensor softmax_loss_backward(const Tensor &grad_loss, const Tensor &logits, const Tensor &target,
                             const Tensor &saved, const std::optional<Tensor> &weight,
                             const std::optional<Tensor> &margin,
                             const std::optional<Tensor> &offset, double scale, double focal_gamma,
                             double label_smoothing, int64_t ignore_index) {
    const OnDeviceOf device(logits);
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    check_backward(call, grad_loss, saved);
    const Tensor upstream = as_contiguous(grad_loss);
    return backward(device, call, upstream.const_data_ptr(), saved);
}

/* ---- a softmax loss, its weights, the scalar and its gradient in one call ---- */

/* Which targets count; all of the soft ones do. */
std::optional<Tensor> counted(const OnDeviceOf &device, const Tensor &target, const Tensor &losses,
                              int64_t ignore_index) {
    if (target.scalar_type() != ScalarType::Long) return std::nullopt;
    const Tensor dense = as_contiguous(target);
    Tensor mask = new_empty(losses, losses.sizes(), ScalarType::Bool);
    check_cuda(absgd_counted_cuda(static_cast<const int64_t *>(dense.const_data_ptr()),
                                  dense.numel(), ignore_index,
                                  static_cast<uint8_t *>(mask.mutable_data_ptr()), device.stream()),
               "absgd::weighted_softmax_loss");
    return mask;
}

std::tuple<Tensor, Tensor, Tensor, Tensor>
weighted_softmax_loss(const Tensor &logits, const Tensor &target,
                      const std::optional<Tensor> &weight, const std::optional<Tensor> &margin,
                      const std::optional<Tensor> &offset, double scale, double focal_gamma,
                      double label_smoothing, int64_t ignore_index, const Tensor &lam,
                      const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports,
                      double gamma, double alpha, double s_init) {
    const OnDeviceOf device(logits);
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    auto [losses, saved] = forward(device, call);
    const Tensor weights =
        weigh(losses, counted(device, target, losses, ignore_index), std::nullopt, lam, log_s,
              log_s_lam, reports, gamma, alpha, s_init, 1.0);
    const int64_t n = losses.numel();
    const void *coefficients =
        static_cast<const char *>(weights.const_data_ptr()) + n * weights.element_size();
    Tensor total = new_empty(losses, {}, losses.scalar_type());
    check_cuda(absgd_dot_cuda(dtype_of(losses, "losses"), coefficients, losses.const_data_ptr(), n,
                              total.mutable_data_ptr(), device.stream()),
               "absgd::weighted_softmax_loss");
    return {total, losses, weights, backward(device, call, coefficients, saved)};
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_IMPL(absgd, CUDA, m) {
    m.impl("batch_stats", TORCH_BOX(&absgd::batch_stats));
    m.impl("weigh", TORCH_BOX(&absgd::weigh));
    m.impl("carry_log_s", TORCH_BOX(&absgd::carry_log_s));
    m.impl("weigh_provisionally", TORCH_BOX(&absgd::weigh_provisionally));
    m.impl("settle", TORCH_BOX(&absgd::settle));
    m.impl("follow_lam", TORCH_BOX(&absgd::follow_lam));
    m.impl("lam_sums", TORCH_BOX(&absgd::lam_sums));
    m.impl("lam_round", TORCH_BOX(&absgd::lam_round));
    m.impl("lam_update", TORCH_BOX(&absgd::lam_update));
    m.impl("sgd_step_", &absgd::sgd_step_);
    m.impl("sgd_record", &absgd::sgd_record);
    m.impl("sgd_step_recorded", &absgd::sgd_step_recorded);
    m.impl("sgd_forget", &absgd::sgd_forget);
    m.impl("softmax_loss", TORCH_BOX(&absgd::softmax_loss));
    m.impl("softmax_loss_backward", TORCH_BOX(&absgd::softmax_loss_backward));
    m.impl("weighted_softmax_loss", TORCH_BOX(&absgd::weighted_softmax_loss));
}
