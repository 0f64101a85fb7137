/* The operators that others are made of. */
#ifndef ABSGD_OPERATORS_H
#define ABSGD_OPERATORS_H

#include "register_batch.h"
#include "register_sigmoid_loss.h"
#include "register_softmax_loss.h"

#include <algorithm>
#include <atomic>
#include <tuple>

namespace absgd {

/* register.cpp: a batch's weights and coefficients, [2, losses.shape], after λ has moved to what
 * its rule, if it has one, asks of these losses, and log_s has taken the batch in. rows: of all
 * ranks that share the batch. */
Tensor weigh(const Losses &batch, const std::optional<Tensor> &rows,
             const std::optional<Tensor> &lam_rule, const RuleState &state, const absgd_rule &rule,
             double factor);

/* register_losses.cpp and register_sigmoid_loss.cpp: the losses and what backward wants of them;
 * the logits' gradient. kept: the gradient's memory, where both passes are one call: the first
 * leaves exponentials there for the second. */
std::tuple<Tensor, Tensor> forward(const SoftmaxLoss &call,
                                   const std::optional<Tensor> &kept = std::nullopt);
std::tuple<Tensor, Tensor> forward(const SigmoidLoss &call);
Tensor backward(const SoftmaxLoss &call, const void *grad_loss, const Tensor &saved,
                const std::optional<Tensor> &kept = std::nullopt);
Tensor backward(const SigmoidLoss &call, const void *grad_loss, const Tensor &known);

/* kernel(begin, end) over n losses of so many logits each, by torch's threads; complain() raises an
 * error that says which target was out of range. */
template <class Kernel, class Complain>
void run_losses(int64_t n, int64_t logits, const char *op, const Kernel &kernel,
                const Complain &complain) {
    constexpr int64_t CHUNK = 16384; /* logits that are worth a thread */
    check(kernel(0, 0), op);         /* hyper-parameters, for empty logits too */
    std::atomic<int> status{ABSGD_OK};
    const int64_t grain = std::max<int64_t>(1, CHUNK / std::max<int64_t>(1, logits));
    torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
        const absgd_status part = kernel(begin, end);
        if (part != ABSGD_OK) status = part;
    });
    if (status == ABSGD_TARGET_OUT_OF_RANGE) complain();
    check(static_cast<absgd_status>(status.load()), op);
}

/* register_weighted_loss.cpp: grad_loss, contiguous, times factor if there is one */
Tensor scaled(const Tensor &grad_loss, const std::optional<Tensor> &factor);

} // namespace absgd
#endif
