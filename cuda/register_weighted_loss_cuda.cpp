/* The CUDA implementations of torch.ops.absgd.weighted_softmax_loss, one launch without its
 * gradient, and weighted_sigmoid_loss. The schemas stand in csrc/register_weighted_loss.cpp. */
#include "register_cuda.h"

namespace absgd {
namespace {

using Optional = std::optional<Tensor>;

/* The memory of n values beside `like`, which `kept` owns; none for 0. */
void *new_room(Optional &kept, const Tensor &like, int64_t n, ScalarType type) {
    if (n == 0) return nullptr;
    kept = new_empty(like, {n}, type);
    return kept->mutable_data_ptr();
}

/* Losses, weights and total in one launch, and saved. What room the launch needs can go as soon as
 * it is queued: its memory is given out again on the same stream only. */
std::tuple<Tensor, Tensor, Tensor, Tensor>
in_one_launch(const OnDeviceOf &device, const SoftmaxLoss &call, const Optional &mask,
              const Optional &base_weight, const Optional &class_weight, const Optional &lam_rule,
              const DeviceState &state, const absgd_rule &rule) {
    const ScalarType type = arithmetic_type(call.dtype);
    const int64_t n = call.spec.samples, n_chunks = chunks(n, ABSGD_CUDA_CHUNK);
    std::vector<int64_t> two_of_each = call.shape;
    two_of_each.insert(two_of_each.begin(), 2);
    const std::vector<int64_t> saved_shape{ABSGD_LOSS_SAVED, n};
    Tensor total = new_empty(call.logits, {}, type),
           losses = new_empty(call.logits, call.shape, type),
           weights = new_empty(call.logits, two_of_each, type),
           saved = new_empty(call.logits, saved_shape, type);
    const Losses batch(losses, mask, base_weight);
    Optional of_classes;
    if (class_weight) of_classes = call.checked_class_weight(*class_weight);
    Optional counts, measure, scratch, lam_scratch;
    const int64_t rows = n_chunks > 1 ? n_chunks : 0, lam_rows = lam_rule ? 2 * rows : 0;
    absgd_weighting w = {};
    w.mask = batch.mask_at(0);
    w.weight = batch.weight_at(0);
    w.class_weight = of_classes ? of_classes->const_data_ptr() : nullptr;
    w.lam_rule = lam_rule ? as<absgd_lam_rule>(device.doubles(*lam_rule, LAM_RULE_SIZE, "lam_rule"))
                          : nullptr;
    w.lam = state.lam;
    w.rule = &rule;
    w.log_s = state.log_s;
    w.log_s_lam = state.log_s_lam;
    w.reports = state.reports;
    w.counts = static_cast<uint8_t *>(
        new_room(counts, losses, call.classes_of() ? n : 0, ScalarType::Bool));
    w.measure = new_room(measure, losses, of_classes ? n : 0, type);
    w.scratch = static_cast<absgd_stats *>(
        new_room(scratch, losses, rows * STATS_SIZE, ScalarType::Double));
    w.lam_scratch = static_cast<absgd_lam_row *>(
        new_room(lam_scratch, losses, lam_rows * LAM_ROW_SIZE, ScalarType::Double));
    w.weights = weights.mutable_data_ptr();
    w.coefficients = coefficients_of(weights);
    w.total = total.mutable_data_ptr();
    check_cuda(absgd_weighted_softmax_loss_cuda(call.dtype, &call.spec,
                                                call.logits.const_data_ptr(), call.classes_of(),
                                                call.soft_target(), &w, losses.mutable_data_ptr(),
                                                saved.mutable_data_ptr(), device.stream()),
               "absgd::weighted_softmax_loss");
    return {total, losses, weights, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> weighted_softmax_loss(
    const Tensor &logits, const Tensor &target, const std::optional<Tensor> &weight,
    const std::optional<Tensor> &margin, const std::optional<Tensor> &offset, double scale,
    double focal_gamma, double label_smoothing, int64_t ignore_index,
    const std::optional<Tensor> &mask, const std::optional<Tensor> &base_weight,
    const std::optional<Tensor> &class_weight, const std::optional<Tensor> &lam_rule,
    const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports,
    double gamma, double alpha, double s_init, double max_weight, bool keep_loss, bool bounded,
    bool at_once) {
    const OnDeviceOf device(logits);
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    const DeviceState state(device, lam, log_s, log_s_lam, reports);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded,
                                    "absgd::weighted_softmax_loss");
    const auto [total, losses, weights, saved] =
        in_one_launch(device, call, mask, base_weight, class_weight, lam_rule, state, rule);
    if (!at_once) return {total, losses, weights, saved};
    return {total, losses, weights, backward(device, call, coefficients_of(weights), saved)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> weighted_sigmoid_loss(
    const Tensor &logits, const Tensor &target, const std::optional<Tensor> &weight,
    const std::optional<Tensor> &pos_weight, double label_smoothing, double focal_alpha,
    double focal_gamma, std::optional<double> ignore_index, bool per_sample,
    const std::optional<Tensor> &mask, const std::optional<Tensor> &base_weight,
    const std::optional<Tensor> &lam_rule, const Tensor &lam, const Tensor &log_s,
    const Tensor &log_s_lam, const Tensor &reports, double gamma, double alpha, double s_init,
    double max_weight, bool keep_loss, bool bounded, bool at_once) {
    const OnDeviceOf device(logits);
    const SigmoidLoss call(logits, target, weight, pos_weight, label_smoothing, focal_alpha,
                           focal_gamma, ignore_index, per_sample);
    const DeviceState state(device, lam, log_s, log_s_lam, reports);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded,
                                    "absgd::weighted_sigmoid_loss");
    const auto [losses, known] = forward(device, call);
    const Losses batch(losses, mask, base_weight);
    const Tensor weights = weigh(device, batch, std::nullopt, lam_rule, state, rule, 1.0);
    const void *coefficients = coefficients_of(weights);
    Tensor total = new_empty(losses, {}, losses.scalar_type());
    check_cuda(absgd_dot_cuda(batch.dtype, coefficients, losses.const_data_ptr(), batch.mask_at(0),
                              batch.n, total.mutable_data_ptr(), device.stream()),
               "absgd_dot_cuda");
    return {total, losses, weights, at_once ? backward(device, call, coefficients, known) : known};
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_IMPL(absgd, CUDA, m) {
    m.impl("weighted_softmax_loss", TORCH_BOX(&absgd::weighted_softmax_loss));
    m.impl("weighted_sigmoid_loss", TORCH_BOX(&absgd::weighted_sigmoid_loss));
}
