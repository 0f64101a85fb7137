/* torch.ops.absgd.weighted_softmax_loss: a softmax loss, its weights, the scalar to differentiate
 * and that one's gradient in the logits, in one call: on a small batch, dispatch costs more than
 * arithmetic does. */
#include "operators.h"

#include <algorithm>

namespace absgd {
namespace {

/* Which targets count; none if all do. */
std::optional<Tensor> counted(const Tensor &target, const Tensor &losses, int64_t ignore_index) {
    if (target.scalar_type() != ScalarType::Long) return std::nullopt;
    const Tensor dense = as_contiguous(target);
    const int64_t *y = static_cast<const int64_t *>(dense.const_data_ptr());
    const int64_t n = dense.numel();
    if (std::find(y, y + n, ignore_index) == y + n) return std::nullopt;
    Tensor mask = new_empty(losses, losses.sizes(), ScalarType::Bool);
    bool *counts = static_cast<bool *>(mask.mutable_data_ptr());
    std::transform(y, y + n, counts, [=](int64_t c) { return c != ignore_index; });
    return mask;
}

/* Σ coefficients_i L_i, in double, in order; an ignored sample has loss 0 and coefficient 0. */
template <class T> void dot(const void *coefficients, const Tensor &losses, const Tensor &total) {
    const T *c = static_cast<const T *>(coefficients);
    const T *loss = static_cast<const T *>(losses.const_data_ptr());
    double sum = 0.0;
    for (int64_t i = 0; i < losses.numel(); i++) sum += static_cast<double>(c[i]) * loss[i];
    *static_cast<T *>(total.mutable_data_ptr()) = static_cast<T>(sum);
}

std::tuple<Tensor, Tensor, Tensor, Tensor>
weighted_softmax_loss(const Tensor &logits, const Tensor &target,
                      const std::optional<Tensor> &weight, const std::optional<Tensor> &margin,
                      const std::optional<Tensor> &offset, double scale, double focal_gamma,
                      double label_smoothing, int64_t ignore_index, const Tensor &lam,
                      const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports,
                      double gamma, double alpha, double s_init) {
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    auto [losses, saved] = forward(call);
    const Tensor weights = weigh(losses, counted(target, losses, ignore_index), std::nullopt, lam,
                                 log_s, log_s_lam, reports, gamma, alpha, s_init, 1.0);
    const void *coefficients = static_cast<const char *>(weights.const_data_ptr()) +
                               losses.numel() * losses.element_size();
    Tensor total = new_empty(losses, {}, losses.scalar_type());
    (call.dtype == ABSGD_FLOAT64 ? dot<double> : dot<float>)(coefficients, losses, total);
    return {total, losses, weights, backward(call, coefficients, saved)};
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_FRAGMENT(absgd, m) {
    m.def("weighted_softmax_loss("
          "Tensor logits, Tensor target, Tensor? weight, Tensor? margin, Tensor? offset, "
          "float scale, float focal_gamma, float label_smoothing, int ignore_index, "
          "Tensor lam, Tensor(a!) log_s, Tensor(b!) log_s_lam, Tensor(c!) reports, "
          "float gamma, float alpha, float s_init) "
          "-> (Tensor total, Tensor losses, Tensor weights, Tensor grad)");
}

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) {
    m.impl("weighted_softmax_loss", TORCH_BOX(&absgd::weighted_softmax_loss));
}
