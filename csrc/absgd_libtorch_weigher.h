/* Losses in, scalar out, on LibTorch's tensors: what absgd_libtorch.h's optimizer holds. It knows
 * no optimizer, and goes with any. Part of absgd_libtorch.h. */
#ifndef ABSGD_LIBTORCH_WEIGHER_H
#define ABSGD_LIBTORCH_WEIGHER_H

#include "absgd_libtorch_rule.h"

#include <memory>
#include <utility>
#include <vector>

namespace absgd {

class Weigher {
  public:
    using Gradients = std::vector<torch::Tensor>;

    explicit Weigher(RuleState state) : state_(std::move(state)) {}

    /* The scalar to differentiate of a batch that is a step's only one. */
    torch::Tensor weigh(const torch::Tensor &losses, const torch::Tensor &mask,
                        const torch::Tensor &weight) {
        const Batch batch(losses, mask, weight);
        if (!torch::GradMode::is_enabled()) return batch.mean(losses);
        check_no_micro_batches("weigh() of another batch");
        state_.move_to(losses.device());
        state_.follow_lam(batch);
        return scalar_of(batch, state_.weigh(batch), losses);
    }

    /* The scalar to differentiate of the next micro-batch. gradients: of those before, of which
     * everything is multiplied where the provisional normaliser is raised. */
    torch::Tensor accumulate(const torch::Tensor &losses, const torch::Tensor &mask,
                             const torch::Tensor &weight, const Gradients &gradients) {
        const Batch batch(losses, mask, weight);
        if (!torch::GradMode::is_enabled()) return batch.mean(losses);
        const bool is_first = !memory_.defined();
        TORCH_CHECK(!awaits_backward(), "accumulate(): run the backward pass of each micro-batch "
                                        "before the next, for its gradients may have to be scaled; "
                                        "discard() drops them all");
        TORCH_CHECK(is_first || !backward_ || !gradients.empty(),
                    "accumulate(): the gradients of earlier micro-batches are gone, and may have "
                    "to be scaled; discard() drops the micro-batches");
        state_.move_to(losses.device());
        if (is_first) {
            state_.follow_lam(batch); /* one λ for all of them */
            memory_ = detail::rows_of<absgd_accumulation>(1, 0.0).to(losses.device());
        }
        const auto shrink = torch::empty_like(state_.log_s);
        const auto rows = state_.weigh_provisionally(batch, memory_, shrink);
        if (!is_first) scale(gradients, shrink);
        const auto total = scalar_of(batch, rows, losses);
        if (total.requires_grad()) {
            is_first_backward_ = !backward_;
            backward_ = std::make_shared<Backward>(Backward::AWAITED);
            total.register_hook([backward = backward_](const torch::Tensor &) {
                TORCH_CHECK(*backward != Backward::DROPPED,
                            "accumulate(): zero_grad() or discard() "
                            "dropped the micro-batch whose "
                            "backward pass this is");
                *backward = Backward::BEGUN;
            });
        }
        return total;
    }

    /* Takes the micro-batches into log_s and makes their gradients those of the whole batch. */
    void settle(const Gradients &gradients) {
        if (!memory_.defined()) return;
        scale(gradients, state_.settle(memory_));
        memory_ = torch::Tensor();
        backward_.reset();
    }

    void discard() {
        if (backward_ && *backward_ == Backward::AWAITED) *backward_ = Backward::DROPPED;
        memory_ = torch::Tensor();
        backward_.reset();
    }

    /* Gradients are dropped: of the step before, where the first backward pass has yet to begin. */
    void on_zero_grad() {
        if (!(awaits_backward() && is_first_backward_)) discard();
    }

    void set_lam(const Lam &lam) {
        check_no_micro_batches("lam cannot change");
        state_.set_lam(lam);
    }

    void restart(const Lam &lam) {
        check_no_micro_batches("lam cannot change");
        state_.restart(lam);
    }

    const RuleState &state() const { return state_; }
    const torch::Tensor &weights() const { return weights_; }

    void load(const RuleState::Entries &entries) {
        discard();
        state_.load(entries);
        weights_ = torch::Tensor();
    }

  private:
    enum class Backward { AWAITED, BEGUN, DROPPED };

    bool awaits_backward() const { return backward_ && *backward_ == Backward::AWAITED; }

    void check_no_micro_batches(const char *what) const {
        TORCH_CHECK(!memory_.defined(), what,
                    ", with micro-batches not yet turned into a step: "
                    "call finalize_grads(), step() or zero_grad() first; "
                    "discard() drops them");
    }

    torch::Tensor scalar_of(const Batch &batch, const torch::Tensor &rows,
                            const torch::Tensor &losses) {
        weights_ = rows[0].view(losses.sizes());
        return batch.sum(rows[1], losses);
    }

    static void scale(const Gradients &gradients, const torch::Tensor &factor) {
        if (factor.is_cpu() && factor.item<double>() == 1.0) return;
        torch::NoGradGuard no_grad;
        for (const torch::Tensor &gradient : gradients) gradient.mul_(factor.to(gradient.device()));
    }

    RuleState state_;
    torch::Tensor weights_, memory_;     /* memory_: from the first micro-batch on */
    std::shared_ptr<Backward> backward_; /* the last micro-batch's */
    bool is_first_backward_ = false;
};

} // namespace absgd
#endif
