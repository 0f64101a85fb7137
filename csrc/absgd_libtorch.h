/* ABSGD for LibTorch's C++ front end: a torch::optim::Optimizer over the C ABI, header only.
 *
 *   absgd::ABSGD opt(model->parameters(), absgd::ABSGDOptions(0.1).momentum(0.9).lam(1.0));
 *   auto losses = torch::nn::functional::cross_entropy(model->forward(x), y, per_sample);
 *   opt.weigh(losses).backward();
 *   opt.step();
 *   opt.zero_grad();
 *
 * where per_sample has reduction(torch::kNone). Link absgd_kernels and LibTorch; with
 * ABSGD_WITH_CUDA defined, absgd_cuda_kernels too, and CUDA tensors work. Parameters and losses are
 * on one device, and parameters are dense float32, float64, float16 or bfloat16. Everything else,
 * such as several ranks, is the Python package's. */
#ifndef ABSGD_LIBTORCH_H
#define ABSGD_LIBTORCH_H

#include "absgd.h"
#ifdef ABSGD_WITH_CUDA
#include "absgd_cuda.h"
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace absgd {

/* The options of a parameter group. λ, γ, α, s_1 and the momentum's form are the whole optimizer's:
 * those given at its construction are in force. */
struct ABSGDOptions : torch::optim::OptimizerCloneableOptions<ABSGDOptions> {
    ABSGDOptions(double lr = 1e-3) : lr_(lr) {}

    TORCH_ARG(double, lr) = 1e-3;
    TORCH_ARG(double, momentum) = 0;
    TORCH_ARG(double, dampening) = 0;
    TORCH_ARG(double, weight_decay) = 0;
    TORCH_ARG(bool, nesterov) = false;
    TORCH_ARG(bool, maximize) = false;
    TORCH_ARG(bool, polyak) = false; /* the paper's Equation 2 */
    TORCH_ARG(double, lam) = std::numeric_limits<double>::infinity();
    TORCH_ARG(double, gamma) = 0.9;
    TORCH_ARG(double, alpha) = 1.0;
    TORCH_ARG(double,
              s_init) = std::numeric_limits<double>::quiet_NaN(); /* the first batch sets it */

  public:
    double get_lr() const override { return lr(); }
    void set_lr(double lr) override { this->lr(lr); }
};

struct ABSGDParamState : torch::optim::OptimizerCloneableParamState<ABSGDParamState> {
    TORCH_ARG(torch::Tensor, momentum_buffer);
};

namespace detail {

inline absgd_dtype dtype_of(const torch::Tensor &t, const char *name) {
    switch (t.scalar_type()) {
        case torch::kFloat: return ABSGD_FLOAT32;
        case torch::kDouble: return ABSGD_FLOAT64;
        case torch::kHalf: return ABSGD_FLOAT16;
        case torch::kBFloat16: return ABSGD_BFLOAT16;
        default:
            TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16, got ",
                        t.scalar_type());
    }
}

inline void check(absgd_status status, const char *call) {
    TORCH_CHECK(status == ABSGD_OK, call, ": ", absgd_status_string(status));
}

inline void check_device(const torch::Tensor &t, const char *name) {
#ifdef ABSGD_WITH_CUDA
    TORCH_CHECK(t.is_cpu() || t.is_cuda(), name, " must be on the CPU or a CUDA device, got ",
                t.device());
#else
    TORCH_CHECK(t.is_cpu(), name, " must be on the CPU (CUDA needs ABSGD_WITH_CUDA), got ",
                t.device());
#endif
}

} // namespace detail

class ABSGD : public torch::optim::Optimizer {
  public:
    ABSGD(const std::vector<torch::optim::OptimizerParamGroup> &groups, ABSGDOptions defaults = {})
        : Optimizer(groups, std::make_unique<ABSGDOptions>(defaults)),
          rule_{defaults.gamma(), defaults.alpha(), defaults.s_init(), 0, 0, 0} {
        TORCH_CHECK(!std::isnan(defaults.lam()) && defaults.lam() != 0,
                    "lam must be a number other than 0, got ", defaults.lam());
        for (const auto &group : param_groups()) {
            for (const torch::Tensor &p : group.params()) detail::check_device(p, "parameters");
        }
        lam_ = torch::full({}, defaults.lam(), torch::kDouble);
        log_s_ = torch::full({}, std::log(defaults.s_init()), torch::kDouble);
        log_s_lam_ = lam_.clone();
        reports_ = torch::full({2, static_cast<int64_t>(sizeof(absgd_report) / sizeof(double))},
                               std::numeric_limits<double>::quiet_NaN(), torch::kDouble);
        double lam = defaults.lam(), unset = NAN, unset_lam = lam; /* check the rule */
        detail::check(absgd_carry_log_s(&lam, &rule_, &unset, &unset_lam),
                      "gamma must be in (0, 1], alpha > 0, s_init >= 0 or NaN");
        check_groups();
    }

    explicit ABSGD(std::vector<torch::Tensor> params, ABSGDOptions defaults = {})
        : ABSGD({torch::optim::OptimizerParamGroup(std::move(params))}, defaults) {}

    /* The scalar to differentiate, (1/B) Σ p_i L_i with p a constant (Algorithm 1), after log_s has
     * taken in the batch. losses: per-sample, of any shape but (). Without grad mode, the mean. */
    torch::Tensor weigh(const torch::Tensor &losses) {
        TORCH_CHECK(losses.dim() > 0, "losses must be per-sample, got a scalar: compute them with "
                                      "reduction(torch::kNone)");
        detail::check_device(losses, "losses");
        if (!torch::GradMode::is_enabled()) return losses.mean();
        const auto coefficients = next_coefficients(losses.detach().contiguous());
        const bool is_half =
            losses.scalar_type() == torch::kHalf || losses.scalar_type() == torch::kBFloat16;
        return torch::dot(coefficients,
                          (is_half ? losses.to(torch::kFloat) : losses).reshape({-1}));
    }

    torch::Tensor step(LossClosure closure = nullptr) override {
        torch::Tensor loss;
        if (closure) {
            torch::AutoGradMode with_grad(true);
            loss = closure();
        }
        torch::NoGradGuard no_grad;
        for (auto &group : param_groups()) step_group(group);
        return loss;
    }

    /* p_i of the last batch, in the shape of its losses. */
    const torch::Tensor &weights() const { return weights_; }
    /* 0-dim float64: log s, NaN while unset. */
    const torch::Tensor &log_s() const { return log_s_; }
    const torch::Tensor &lam() const { return lam_; }

    /* Stage two: begins Algorithm 1 anew at another λ. Momentum is kept. */
    void restart(double lam) {
        TORCH_CHECK(!std::isnan(lam) && lam != 0, "lam must be a number other than 0, got ", lam);
        lam_.fill_(lam);
        log_s_lam_.fill_(lam);
        log_s_.fill_(std::log(rule_.s_init));
        reports_.fill_(std::numeric_limits<double>::quiet_NaN());
    }

    void save(torch::serialize::OutputArchive &archive) const override {
        archive.write("lam", lam_, true);
        archive.write("log_s", log_s_, true);
        archive.write("log_s_lam", log_s_lam_, true);
        archive.write("reports", reports_, true);
        size_t i = 0;
        for (const auto &group : param_groups()) {
            for (const torch::Tensor &p : group.params()) {
                const auto found = state().find(p.unsafeGetTensorImpl());
                const torch::Tensor buffer =
                    found == state().end() ? torch::Tensor() : buffer_of(*found->second);
                archive.write("momentum_buffer_" + std::to_string(i++),
                              buffer.defined() ? buffer : torch::empty({0}), true);
            }
        }
    }

    void load(torch::serialize::InputArchive &archive) override {
        for (auto &[name, tensor] : {std::pair<const char *, torch::Tensor &>{"lam", lam_},
                                     {"log_s", log_s_},
                                     {"log_s_lam", log_s_lam_},
                                     {"reports", reports_}}) {
            torch::Tensor loaded;
            archive.read(name, loaded, true);
            tensor.copy_(loaded);
        }
        size_t i = 0;
        for (const auto &group : param_groups()) {
            for (const torch::Tensor &p : group.params()) {
                torch::Tensor loaded;
                archive.read("momentum_buffer_" + std::to_string(i++), loaded, true);
                if (loaded.sizes() == p.sizes()) set_buffer(p, loaded.to(p.options()));
            }
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

    template <class T> static T *data(const torch::Tensor &t) {
        return reinterpret_cast<T *>(t.data_ptr<double>());
    }

    torch::Tensor next_coefficients(const torch::Tensor &losses) {
        for (torch::Tensor *t : {&lam_, &log_s_, &log_s_lam_, &reports_}) {
            *t = t->to(losses.device());
        }
        const absgd_dtype dtype = detail::dtype_of(losses, "losses");
        const auto arithmetic = dtype == ABSGD_FLOAT64 ? torch::kDouble : torch::kFloat;
        weights_ = torch::empty(losses.sizes(), losses.options().dtype(arithmetic));
        const auto coefficients =
            torch::empty({losses.numel()}, losses.options().dtype(arithmetic));
        const int64_t n = losses.numel();
        const double *lam = lam_.data_ptr<double>();
        double *log_s = log_s_.data_ptr<double>(), *log_s_lam = log_s_lam_.data_ptr<double>();
#ifdef ABSGD_WITH_CUDA
        if (losses.is_cuda()) {
            const c10::cuda::CUDAGuard guard(losses.device());
            const int64_t rows = (n + ABSGD_CUDA_CHUNK - 1) / ABSGD_CUDA_CHUNK;
            const auto scratch =
                torch::empty({rows * static_cast<int64_t>(sizeof(absgd_stats) / sizeof(double))},
                             losses.options().dtype(torch::kDouble));
            detail::check(absgd_weigh_cuda(dtype, losses.data_ptr(), nullptr, n, nullptr, 0,
                                           data<absgd_stats>(scratch), lam, &rule_, log_s,
                                           log_s_lam, data<absgd_report>(reports_), 1.0,
                                           weights_.data_ptr(), coefficients.data_ptr(),
                                           c10::cuda::getCurrentCUDAStream()),
                          "weigh");
            return coefficients;
        }
#endif
        absgd_stats stats;
        detail::check(absgd_batch_stats(dtype, losses.data_ptr(), nullptr, nullptr, n, lam, &stats),
                      "weigh");
        detail::check(absgd_update_log_s(&stats, lam, &rule_, log_s, log_s_lam), "weigh");
        detail::check(absgd_observe(&stats, lam, &rule_, log_s, 0.0, data<absgd_report>(reports_)),
                      "weigh");
        detail::check(absgd_weights(dtype, losses.data_ptr(), nullptr, nullptr, n, lam, &rule_,
                                    log_s, &stats, 1.0, weights_.data_ptr(),
                                    coefficients.data_ptr(), nullptr),
                      "weigh");
        return coefficients;
    }

    void step_group(torch::optim::OptimizerParamGroup &group) {
        const auto &options = static_cast<const ABSGDOptions &>(group.options());
        const absgd_sgd_options o = c_options(options);
        std::vector<torch::Tensor> kept; /* gradients, made dense, and new buffers */
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
            launch(static_cast<absgd_dtype>(dtype), tensors[dtype], o, group.params()[0]);
        }
        for (auto &[p, buffer] : fresh) set_buffer(p, buffer);
    }

    static void launch(absgd_dtype dtype, const std::vector<absgd_tensor> &tensors,
                       const absgd_sgd_options &options, const torch::Tensor &anchor) {
        if (tensors.empty()) return;
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

    absgd_rule rule_;
    torch::Tensor lam_, log_s_, log_s_lam_, reports_, weights_;
};

} // namespace absgd
#endif
