/* torch.ops.absgd.weighted_softmax_loss and weighted_sigmoid_loss: a loss, its weights, the scalar
 * to differentiate and that one's gradient in the logits, in one call: on a small batch, dispatch
 * costs more than arithmetic does. With at_once=False the gradient is left to the loss's backward
 * operator, whose grad_loss are the coefficients, and in place of it stands what that one asks of
 * the forward pass. */
#include "operators.h"

#include <algorithm>
#include <type_traits>

namespace absgd {
namespace {

/* Which samples count: those of the mask whose target is not ignored. None if all do. */
std::optional<Tensor> counted(const SoftmaxLoss &call, const Losses &batch) {
    const int64_t *y = call.classes_of();
    const int64_t n = call.spec.samples, ignored = call.spec.ignore_index;
    if (!y || std::find(y, y + n, ignored) == y + n) return batch.mask;
    Tensor counts = new_empty(batch.values, batch.values.sizes(), ScalarType::Bool);
    auto *out = static_cast<uint8_t *>(counts.mutable_data_ptr());
    const uint8_t *mask = batch.mask_at(0);
    for (int64_t i = 0; i < n; i++) out[i] = y[i] != ignored && (!mask || mask[i]);
    return counts;
}

/* Multiplies each sample's weight by its class's: class_weight[y], or Σ_c class_weight_c q_c. */
template <class T>
void multiply_by_class_weight(const SoftmaxLoss &call, const T *class_weight, T *weight) {
    const int64_t *y = call.classes_of();
    const T *q = static_cast<const T *>(call.soft_target());
    const int64_t classes = call.spec.classes, inner = call.spec.inner;
    for (int64_t i = 0; i < call.spec.samples; i++) {
        if (y) {
            if (y[i] != call.spec.ignore_index) weight[i] *= class_weight[y[i]];
            continue;
        }
        const T *first = q + (i / inner) * classes * inner + i % inner;
        double sum = 0.0;
        for (int64_t c = 0; c < classes; c++) {
            sum += static_cast<double>(class_weight[c]) * first[c * inner];
        }
        weight[i] *= static_cast<T>(sum);
    }
}

/* The base measure: of samples times of classes; none if neither is given. */
std::optional<Tensor> base_measure(const SoftmaxLoss &call, const Losses &batch,
                                   const std::optional<Tensor> &class_weight) {
    if (!class_weight) return batch.weight;
    const ScalarType type = arithmetic_type(call.dtype);
    const Tensor of_classes = call.checked_class_weight(*class_weight);
    Tensor weight = new_empty(batch.values, batch.values.sizes(), type);
    const auto multiply = [&](auto *out) {
        using T = std::remove_pointer_t<decltype(out)>;
        const T *given = static_cast<const T *>(batch.weight_at(0));
        for (int64_t i = 0; i < batch.n; i++) out[i] = given ? given[i] : T(1);
        multiply_by_class_weight(call, static_cast<const T *>(of_classes.const_data_ptr()), out);
    };
    void *out = weight.mutable_data_ptr();
    type == ScalarType::Double ? multiply(static_cast<double *>(out))
                               : multiply(static_cast<float *>(out));
    return weight;
}

/* Σ coefficients_i L_i over the samples that count, in double, in order. */
template <class T> void dot(const void *coefficients, const Losses &batch, const Tensor &total) {
    const T *c = static_cast<const T *>(coefficients), *loss = static_cast<const T *>(batch.at(0));
    const uint8_t *mask = batch.mask_at(0);
    double sum = 0.0;
    for (int64_t i = 0; i < batch.n; i++) {
        if (!mask || mask[i]) sum += static_cast<double>(c[i]) * loss[i];
    }
    *static_cast<T *>(total.mutable_data_ptr()) = static_cast<T>(sum);
}

/* What both operators return of a batch: its total, losses, weights, and what last(coefficients)
 * is: the gradient, or where that is not wanted at once what it will be made of. */
template <class Last>
std::tuple<Tensor, Tensor, Tensor, Tensor>
weighted(absgd_dtype dtype, const Losses &batch, const std::optional<Tensor> &lam_rule,
         const RuleState &state, const absgd_rule &rule, const Last &last) {
    const Tensor &losses = batch.values;
    const Tensor weights = weigh(batch, std::nullopt, lam_rule, state, rule, 1.0);
    const void *coefficients = coefficients_of(weights);
    Tensor total = new_empty(losses, {}, losses.scalar_type());
    (dtype == ABSGD_FLOAT64 ? dot<double> : dot<float>)(coefficients, batch, total);
    return {total, losses, weights, last(coefficients)};
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
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    const RuleState state(lam, log_s, log_s_lam, reports);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded,
                                    "absgd::weighted_softmax_loss");
    std::optional<Tensor> kept;
    if (at_once) kept = call.new_gradient();
    const auto made = forward(call, kept);
    const Tensor losses = std::get<0>(made), saved = std::get<1>(made);
    Losses batch(losses, mask, base_weight);
    batch.weight = base_measure(call, batch, class_weight);
    batch.mask = counted(call, batch);
    return weighted(call.dtype, batch, lam_rule, state, rule, [&](const void *coefficients) {
        return at_once ? backward(call, coefficients, saved, kept) : saved;
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> weighted_sigmoid_loss(
    const Tensor &logits, const Tensor &target, const std::optional<Tensor> &weight,
    const std::optional<Tensor> &pos_weight, double label_smoothing, double focal_alpha,
    double focal_gamma, std::optional<double> ignore_index, bool per_sample,
    const std::optional<Tensor> &mask, const std::optional<Tensor> &base_weight,
    const std::optional<Tensor> &lam_rule, const Tensor &lam, const Tensor &log_s,
    const Tensor &log_s_lam, const Tensor &reports, double gamma, double alpha, double s_init,
    double max_weight, bool keep_loss, bool bounded, bool at_once) {
    const SigmoidLoss call(logits, target, weight, pos_weight, label_smoothing, focal_alpha,
                           focal_gamma, ignore_index, per_sample);
    const RuleState state(lam, log_s, log_s_lam, reports);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded,
                                    "absgd::weighted_sigmoid_loss");
    const auto made = forward(call);
    const Tensor losses = std::get<0>(made), known = std::get<1>(made);
    const Losses batch(losses, mask, base_weight);
    return weighted(call.dtype, batch, lam_rule, state, rule, [&](const void *coefficients) {
        return at_once ? backward(call, coefficients, known) : known;
    });
}

} // namespace

Tensor scaled(const Tensor &grad_loss, const std::optional<Tensor> &factor) {
    const Tensor given = as_contiguous(grad_loss);
    if (!factor) return given;
    Tensor product = new_empty(given, given.sizes(), given.scalar_type());
    const auto multiply = [&](auto *out) {
        using T = std::remove_pointer_t<decltype(out)>;
        const T *values = static_cast<const T *>(given.const_data_ptr());
        const T by = *static_cast<const T *>(factor->const_data_ptr());
        std::transform(values, values + given.numel(), out, [by](T x) { return x * by; });
    };
    void *out = product.mutable_data_ptr();
    given.scalar_type() == ScalarType::Double ? multiply(static_cast<double *>(out))
                                              : multiply(static_cast<float *>(out));
    return product;
}

} // namespace absgd

STABLE_TORCH_LIBRARY_FRAGMENT(absgd, m) {
    m.def("weighted_softmax_loss("
          "Tensor logits, Tensor target, Tensor? weight, Tensor? margin, Tensor? offset, "
          "float scale, float focal_gamma, float label_smoothing, int ignore_index, "
          "Tensor? mask, Tensor? base_weight, Tensor? class_weight, Tensor? lam_rule, "
          "Tensor(a!) lam, Tensor(b!) log_s, Tensor(c!) log_s_lam, Tensor(d!) reports, "
          "float gamma, float alpha, float s_init, "
          "float max_weight, bool keep_loss, bool bounded, bool at_once=True) "
          "-> (Tensor total, Tensor losses, Tensor weights, Tensor grad)");
    m.def("weighted_sigmoid_loss("
          "Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, "
          "float label_smoothing, float focal_alpha, float focal_gamma, float? ignore_index, "
          "bool per_sample, Tensor? mask, Tensor? base_weight, Tensor? lam_rule, "
          "Tensor(a!) lam, Tensor(b!) log_s, Tensor(c!) log_s_lam, Tensor(d!) reports, "
          "float gamma, float alpha, float s_init, "
          "float max_weight, bool keep_loss, bool bounded, bool at_once=True) "
          "-> (Tensor total, Tensor losses, Tensor weights, Tensor grad)");
}

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) {
    m.impl("weighted_softmax_loss", TORCH_BOX(&absgd::weighted_softmax_loss));
    m.impl("weighted_sigmoid_loss", TORCH_BOX(&absgd::weighted_sigmoid_loss));
}
