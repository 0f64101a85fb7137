/* ABSGD for LibTorch's C++ front end: a torch::optim::Optimizer over the C ABI, header only.
 *
 *   absgd::ABSGD opt(model->parameters(), absgd::ABSGDOptions(0.1).momentum(0.9).lam(1.0));
 *   auto losses = torch::nn::functional::cross_entropy(model->forward(x), y, per_sample);
 *   opt.weigh(losses).backward();
 *   opt.step();
 *   opt.zero_grad();
 *
 * where per_sample has reduction(torch::kNone). λ may be a number or a rule for it,
 * lam(absgd::EffectiveSampleSize(0.8)); masks, base weights, guards and accumulation are as the
 * Python package has them. Link absgd::absgd and LibTorch; with ABSGD_WITH_CUDA defined,
 * absgd::cuda too, and CUDA tensors work. Parameters and losses are on one device, and parameters
 * are dense float32, float64, float16 or bfloat16. Everything else, such as several ranks, is the
 * Python package's. */
#ifndef ABSGD_LIBTORCH_H
#define ABSGD_LIBTORCH_H

#include "absgd_libtorch_weigher.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace absgd {

/* The options of a parameter group. From lam on they are the whole optimizer's: those given at its
 * construction are in force. */
struct ABSGDOptions : torch::optim::OptimizerCloneableOptions<ABSGDOptions> {
    ABSGDOptions(double lr = 1e-3) : lr_(lr) {}

    TORCH_ARG(double, lr) = 1e-3;
    TORCH_ARG(double, momentum) = 0;
    TORCH_ARG(double, dampening) = 0;
    TORCH_ARG(double, weight_decay) = 0;
    TORCH_ARG(bool, nesterov) = false;
    TORCH_ARG(bool, maximize) = false;
    TORCH_ARG(bool, polyak) = false; /* the paper's Equation 2 */
    TORCH_ARG(Lam, lam) = detail::INF;
    TORCH_ARG(std::optional<double>, gamma) = std::nullopt; /* 0.9; 1 where a rule moves λ */
    TORCH_ARG(double, alpha) = 1.0;
    TORCH_ARG(double, s_init) = NAN;             /* the first batch sets it */
    TORCH_ARG(double, max_weight) = detail::INF; /* no cap */
    TORCH_ARG(bool, keep_loss) = false;

  public:
    double get_lr() const override { return lr(); }
    void set_lr(double lr) override { this->lr(lr); }
};

struct ABSGDParamState : torch::optim::OptimizerCloneableParamState<ABSGDParamState> {
    TORCH_ARG(torch::Tensor, momentum_buffer);
};

class ABSGD : public torch::optim::Optimizer {
  public:
    ABSGD(const std::vector<torch::optim::OptimizerParamGroup> &groups, ABSGDOptions defaults = {})
        : Optimizer(groups, std::make_unique<ABSGDOptions>(defaults)),
          weigher_(RuleState(defaults.lam(),
                             {defaults.gamma().value_or(1.0), defaults.alpha(), defaults.s_init(),
                              defaults.max_weight(), defaults.keep_loss() ? 1.0 : 0.0, 0.0},
                             defaults.gamma())) {
        for (const auto &group : param_groups()) {
            for (const torch::Tensor &p : group.params()) detail::check_device(p, "parameters");
        }
        check_groups();
    }

    explicit ABSGD(std::vector<torch::Tensor> params, ABSGDOptions defaults = {})
        : ABSGD({torch::optim::OptimizerParamGroup(std::move(params))}, defaults) {}

    /* The scalar to differentiate, (1/B) Σ w_i p_i L_i with p a constant (Algorithm 1), after log_s
     * has taken in the batch. losses: per-sample, of any shape but (). mask: bool, true where a
     * loss counts; weight: the base measure, w_i ≥ 0; both of the losses' shape. Without grad mode,
     * the mean (1/B) Σ w_i L_i, and nothing changes. */
    torch::Tensor weigh(const torch::Tensor &losses, const torch::Tensor &mask = {},
                        const torch::Tensor &weight = {}) {
        return weigher_.weigh(losses, mask, weight);
    }

    /* The same of a micro-batch. Several together make one step, exactly that of the large batch
     * (max_weight is taken against a provisional normaliser):
     *
     *   for (auto &[x, y] : micro_batches) opt.accumulate(losses_of(x, y)).backward();
     *   opt.step();            // clip between opt.finalize_grads() and step()
     *
     * Everything in .grad is scaled at the end; run each backward pass before the next micro-batch.
     */
    torch::Tensor accumulate(const torch::Tensor &losses, const torch::Tensor &mask = {},
                             const torch::Tensor &weight = {}) {
        return weigher_.accumulate(losses, mask, weight, gradients());
    }

    /* Turns accumulated gradients into those of the whole batch, and takes that into log_s. step()
     * does it if nobody has. */
    void finalize_grads() { weigher_.settle(gradients()); }

    /* Drops micro-batches that cannot be made a step, and their gradients. */
    void discard() {
        weigher_.discard();
        Optimizer::zero_grad();
    }

    void zero_grad(bool set_to_none = true) {
        Optimizer::zero_grad(set_to_none);
        weigher_.on_zero_grad();
    }

    torch::Tensor step(LossClosure closure = nullptr) override {
        torch::Tensor loss;
        if (closure) {
            torch::AutoGradMode with_grad(true);
            loss = closure();
        }
        torch::NoGradGuard no_grad;
        finalize_grads();
        for (auto &group : param_groups()) step_group(group);
        return loss;
    }

    /* min(κp_i, c) of the last batch, in the shape of its losses; p_i without guards. */
    const torch::Tensor &weights() const { return weigher_.weights(); }
    /* 0-dim float64: log s, NaN while unset; λ, ±∞ while a rule has had no answer. */
    const torch::Tensor &log_s() const { return weigher_.state().log_s; }
    const torch::Tensor &lam() const { return weigher_.state().lam; }
    /* float64 [2, 9]: absgd_report of the last batch, and its running mean. */
    const torch::Tensor &reports() const { return weigher_.state().reports; }

    /* Changes λ; within one sign, log_s is carried over (absgd_carry_log_s). */
    void set_lam(const Lam &lam) { weigher_.set_lam(lam); }

    /* Stage two: begins Algorithm 1 anew at another λ. */
    void restart(const Lam &lam, bool reset_momentum = false) {
        weigher_.restart(lam);
        if (reset_momentum) state().clear();
    }

    void save(torch::serialize::OutputArchive &archive) const override {
        for (const auto &[name, tensor] : weigher_.state().entries()) {
            archive.write(name, tensor, true);
        }
        size_t i = 0;
        for (const auto &group : param_groups()) {
            for (const torch::Tensor &p : group.params()) {
                const auto found = state().find(p.unsafeGetTensorImpl());
                const torch::Tensor buffer =
                    found == state().end() ? torch::Tensor() : buffer_of(*found->second);
                archive.write(buffer_name(group, i++),
                              buffer.defined() ? buffer : torch::empty({0}), true);
            }
        }
    }

    /* λ, log_s, the reports and momentum; γ, α, s_1 and the guards stay those of construction. */
    void load(torch::serialize::InputArchive &archive) override {
        const RuleState::Entries entries = weigher_.state().read(archive);
        std::vector<std::pair<torch::Tensor, torch::Tensor>>
            buffers; /* all read before any is set */
        for (const auto &group : param_groups()) {
            for (const torch::Tensor &p : group.params()) {
                const std::string name = buffer_name(group, buffers.size());
                torch::Tensor buffer;
                TORCH_CHECK(archive.try_read(name, buffer, true), "loaded state: there is no ",
                            name, ": it is of other parameters, or of the other momentum form");
                TORCH_CHECK(buffer.numel() == 0 || buffer.sizes() == p.sizes(),
                            "loaded state: ", name, " must have shape ", p.sizes(), ", got ",
                            buffer.sizes());
                buffers.emplace_back(p, buffer);
            }
        }
        weigher_.load(entries);
        state().clear();
        for (auto &[p, buffer] : buffers) {
            if (buffer.numel() > 0) set_buffer(p, buffer.to(p.options()));
        }
    }

  private:
    static torch::Tensor buffer_of(const torch::optim::OptimizerParamState &state) {
        return static_cast<const ABSGDParamState &>(state).momentum_buffer();
    }

    void set_buffer(const torch::Tensor &p, const torch::Tensor &buffer) {
        auto state = std::make_unique<ABSGDParamState>();
        state->momentum_buffer(buffer);
        this->state()[p.unsafeGetTensorImpl()] = std::move(state);
    }

    /* As in Python: −ηv of Equation 2 is not torch's v. */
    static std::string buffer_name(const torch::optim::OptimizerParamGroup &group, size_t i) {
        const bool polyak = static_cast<const ABSGDOptions &>(group.options()).polyak();
        return (polyak ? "displacement_buffer_" : "momentum_buffer_") + std::to_string(i);
    }

    static absgd_sgd_options c_options(const ABSGDOptions &o) {
        return {o.lr(), o.momentum(), o.dampening(), o.weight_decay(),
                1.0,    o.nesterov(), o.maximize(),  o.polyak()};
    }

    void check_groups() {
        for (auto &group : param_groups()) {
            const absgd_sgd_options options =
                c_options(static_cast<const ABSGDOptions &>(group.options()));
            detail::check(absgd_sgd_step(ABSGD_FLOAT32, nullptr, 0, &options, 0, 0),
                          "momentum must be >= 0; nesterov needs momentum and no dampening; polyak "
                          "needs neither dampening nor nesterov");
        }
    }

    Weigher::Gradients gradients() {
        Weigher::Gradients present;
        for (auto &group : param_groups()) {
            for (const torch::Tensor &p : group.params()) {
                if (p.grad().defined()) present.push_back(p.grad());
            }
        }
        return present;
    }

    void step_group(torch::optim::OptimizerParamGroup &group) {
        const auto &options = static_cast<const ABSGDOptions &>(group.options());
        const absgd_sgd_options o = c_options(options);
        std::vector<torch::Tensor> kept; /* gradients, made contiguous, and buffers */
        std::vector<std::pair<torch::Tensor, torch::Tensor>> fresh;
        std::vector<absgd_tensor> tensors[4];
        for (const torch::Tensor &p : group.params()) {
            if (!p.grad().defined()) continue;
            TORCH_CHECK(p.is_contiguous(), "parameters must be contiguous");
            kept.push_back(p.grad().to(p.scalar_type()).contiguous());
            const void *g = kept.back().data_ptr();
            void *v = nullptr;
            bool is_fresh = false;
            if (options.momentum() != 0) {
                const auto found = state().find(p.unsafeGetTensorImpl());
                is_fresh = found == state().end();
                kept.push_back(is_fresh ? torch::empty_like(p) : buffer_of(*found->second));
                if (is_fresh) fresh.emplace_back(p, kept.back());
                v = kept.back().data_ptr();
            }
            tensors[detail::dtype_of(p, "parameters")].push_back(
                {p.data_ptr(), g, v, p.numel(), is_fresh});
        }
        for (int dtype = ABSGD_FLOAT32; dtype <= ABSGD_BFLOAT16; dtype++) {
            if (tensors[dtype].empty()) continue;
            launch(static_cast<absgd_dtype>(dtype), tensors[dtype], o, group.params()[0]);
        }
        for (auto &[p, buffer] : fresh) set_buffer(p, buffer);
    }

    static void launch(absgd_dtype dtype, const std::vector<absgd_tensor> &tensors,
                       const absgd_sgd_options &options, const torch::Tensor &anchor) {
        const int64_t n_tensors = static_cast<int64_t>(tensors.size());
#ifdef ABSGD_WITH_CUDA
        if (anchor.is_cuda()) {
            const c10::cuda::CUDAGuard guard(anchor.device());
            detail::check(absgd_sgd_step_cuda(dtype, tensors.data(), n_tensors, &options, nullptr,
                                              nullptr, nullptr, c10::cuda::getCurrentCUDAStream()),
                          "step");
            return;
        }
#else
        (void)anchor;
#endif
        int64_t size = 0;
        for (const absgd_tensor &t : tensors) size += t.numel;
        detail::check(absgd_sgd_step(dtype, tensors.data(), n_tensors, &options, 0, size), "step");
    }

    Weigher weigher_;
};

} // namespace absgd
#endif
