/* The operators that others are made of. */
#ifndef ABSGD_OPERATORS_H
#define ABSGD_OPERATORS_H

#include "register_softmax_loss.h"

#include <tuple>

namespace absgd {

/* register.cpp */
Tensor weigh(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> rows,
             const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports,
             double gamma, double alpha, double s_init, double factor);

/* register_losses.cpp: the losses and what backward wants of them; the logits' gradient */
std::tuple<Tensor, Tensor> forward(const SoftmaxLoss &call);
Tensor backward(const SoftmaxLoss &call, const void *grad_loss, const Tensor &saved);

} // namespace absgd
#endif
