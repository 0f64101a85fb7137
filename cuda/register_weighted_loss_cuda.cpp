/* The CUDA implementations of torch.ops.absgd.weighted_softmax_loss and weighted_sigmoid_loss. The
 * schemas stand in csrc/register_weighted_loss.cpp. */
#include "register_cuda.h"

namespace absgd {
namespace {

/* The batch of a loss's samples: those that count, with their base measure. */
Losses batch_of(const OnDeviceOf &device, const SoftmaxLoss &call, const Tensor &losses,
                const std::optional<Tensor> &mask, const std::optional<Tensor> &weight,
                const std::optional<Tensor> &class_weight) {
    Losses batch(losses, mask, weight);
    if (!call.classes_of() && !class_weight) return batch;
    std::optional<Tensor> of_classes, counts, measure;
    if (class_weight) {
        const ScalarType type = arithmetic_type(call.dtype);
        STD_TORCH_CHECK(class_weight->dim() == 1 && class_weight->numel() == call.spec.classes &&
                            class_weight->scalar_type() == type &&
                            same_device(*class_weight, call.logits),
                        "class_weight must be ", call.spec.classes, " value(s) of ", name_of(type),
                        " on the logits' device, got ", class_weight->numel(), " of ",
                        name_of(class_weight->scalar_type()));
        of_classes = as_contiguous(*class_weight);
        measure = new_empty(losses, losses.sizes(), type);
    }
    if (call.classes_of()) counts = new_empty(losses, losses.sizes(), ScalarType::Bool);
    check_cuda(absgd_base_measure_cuda(
                   call.dtype, &call.spec, call.classes_of(), call.soft_target(), batch.mask_at(0),
                   batch.weight_at(0), of_classes ? of_classes->const_data_ptr() : nullptr,
                   counts ? static_cast<uint8_t *>(counts->mutable_data_ptr()) : nullptr,
                   measure ? measure->mutable_data_ptr() : nullptr, device.stream()),
               "absgd::weighted_softmax_loss");
    if (counts) batch.mask = counts;
    if (measure) batch.weight = measure;
    return batch;
}

/* What both operators return of a batch: its total, losses, weights and gradient; saved is what
 * forward kept. */
template <class Loss>
std::tuple<Tensor, Tensor, Tensor, Tensor>
weighted(const OnDeviceOf &device, const Loss &call, const Losses &batch, const Tensor &saved,
         const std::optional<Tensor> &lam_rule, const DeviceState &state, const absgd_rule &rule) {
    const Tensor &losses = batch.values;
    if (lam_rule) follow_lam(device, batch, *lam_rule, state.lam);
    const Tensor weights = weigh(device, batch, std::nullopt, state, rule, 1.0);
    const void *coefficients = coefficients_of(weights, batch);
    Tensor total = new_empty(losses, {}, losses.scalar_type());
    check_cuda(absgd_dot_cuda(batch.dtype, coefficients, losses.const_data_ptr(), batch.mask_at(0),
                              batch.n, total.mutable_data_ptr(), device.stream()),
               "absgd_dot_cuda");
    return {total, losses, weights, backward(device, call, coefficients, saved)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> weighted_softmax_loss(
    const Tensor &logits, const Tensor &target, const std::optional<Tensor> &weight,
    const std::optional<Tensor> &margin, const std::optional<Tensor> &offset, double scale,
    double focal_gamma, double label_smoothing, int64_t ignore_index,
    const std::optional<Tensor> &mask, const std::optional<Tensor> &base_weight,
    const std::optional<Tensor> &class_weight, const std::optional<Tensor> &lam_rule,
    const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports,
    double gamma, double alpha, double s_init, double max_weight, bool keep_loss, bool bounded) {
    const OnDeviceOf device(logits);
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    const DeviceState state(device, lam, log_s, log_s_lam, reports);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded,
                                    "absgd::weighted_softmax_loss");
    const auto [losses, saved] = forward(device, call);
    const Losses batch = batch_of(device, call, losses, mask, base_weight, class_weight);
    return weighted(device, call, batch, saved, lam_rule, state, rule);
}

std::tuple<Tensor, Tensor, Tensor, Tensor>
weighted_sigmoid_loss(const Tensor &logits, const Tensor &target,
                      const std::optional<Tensor> &weight, const std::optional<Tensor> &pos_weight,
                      double label_smoothing, double focal_alpha, double focal_gamma,
                      std::optional<double> ignore_index, bool per_sample,
                      const std::optional<Tensor> &mask, const std::optional<Tensor> &base_weight,
                      const std::optional<Tensor> &lam_rule, const Tensor &lam, const Tensor &log_s,
                      const Tensor &log_s_lam, const Tensor &reports, double gamma, double alpha,
                      double s_init, double max_weight, bool keep_loss, bool bounded) {
    const OnDeviceOf device(logits);
    const SigmoidLoss call(logits, target, weight, pos_weight, label_smoothing, focal_alpha,
                           focal_gamma, ignore_index, per_sample);
    const DeviceState state(device, lam, log_s, log_s_lam, reports);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded,
                                    "absgd::weighted_sigmoid_loss");
    const auto [losses, known] = forward(device, call);
    const Losses batch(losses, mask, base_weight);
    return weighted(device, call, batch, known, lam_rule, state, rule);
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_IMPL(absgd, CUDA, m) {
    m.impl("weighted_softmax_loss", TORCH_BOX(&absgd::weighted_softmax_loss));
    m.impl("weighted_sigmoid_loss", TORCH_BOX(&absgd::weighted_sigmoid_loss));
}
