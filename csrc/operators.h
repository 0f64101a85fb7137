/* The operators that others are made of. */
#ifndef ABSGD_OPERATORS_H
#define ABSGD_OPERATORS_H

#include "register.h"

#include <tuple>

namespace absgd {

/* register.cpp */
Tensor weigh(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> rows,
             const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports,
             double gamma, double alpha, double s_init, double factor);

/* register_losses.cpp */
std::tuple<Tensor, Tensor>
softmax_loss(const Tensor &logits, const Tensor &target, const std::optional<Tensor> &weight,
             const std::optional<Tensor> &margin, const std::optional<Tensor> &offset, double scale,
             double focal_gamma, double label_smoothing, int64_t ignore_index);

} // namespace absgd
#endif
