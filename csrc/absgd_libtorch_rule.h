/* The rule of Algorithm 1 on LibTorch's tensors: λ and what moves it, and the state that batches
 * are taken into, on the CPU or, with ABSGD_WITH_CUDA, a CUDA device. Part of absgd_libtorch.h. */
#ifndef ABSGD_LIBTORCH_RULE_H
#define ABSGD_LIBTORCH_RULE_H

#include "absgd_libtorch_batch.h"

#include <map>
#include <optional>
#include <string>

namespace absgd {

/* What λ follows in place of being a number; see absgd_lam_rule:
 *   absgd::EffectiveSampleSize(0.8), absgd::KLRadius(0.5).noisy(true).rate(0.5) */
struct LamRule {
    absgd_lam_rule row = ABSGD_LAM_RULE_INIT;

    LamRule(absgd_lam_kind kind, double target) {
        row.kind = kind;
        row.target = target;
    }

    /* λ < 0, attention to the small losses, for noisy labels. */
    LamRule &noisy(bool is_noisy) {
        row.sign = is_noisy ? -1.0 : 1.0;
        return *this;
    }

    /* Of the average of log|λ|, in (0, 1]; 1, the default: each batch's own λ*. */
    LamRule &rate(double rate) {
        row.rate = rate;
        return *this;
    }

    /* Of |λ*|, in units of the batch's largest less its smallest loss. */
    LamRule &bounds(double low, double high) {
        row.low = low;
        row.high = high;
        return *this;
    }
};

/* λ at which a fraction in (0, 1) of the batch is effective: (Σwp)²/(Σw·Σwp²) = fraction. */
struct EffectiveSampleSize : LamRule {
    explicit EffectiveSampleSize(double fraction)
        : LamRule(ABSGD_LAM_EFFECTIVE_SAMPLES, fraction) {}
};

/* λ at which the weights are radius > 0 nats from the base measure. */
struct KLRadius : LamRule {
    explicit KLRadius(double radius) : LamRule(ABSGD_LAM_KL_RADIUS, radius) {}
};

/* A number, or a rule for it, where it reads sign·∞ (plain SGD) until a batch has had an answer. */
struct Lam {
    double number;
    std::optional<absgd_lam_rule> rule;

    Lam(double number = detail::INF) : number(number) {}
    Lam(const LamRule &rule) : number(rule.row.sign * detail::INF), rule(rule.row) {}

    void check() const {
        if (!rule) {
            TORCH_CHECK(!std::isnan(number) && number != 0,
                        "lam must be a number other than 0, got ", number);
            return;
        }
        const absgd_lam_search none = {};
        double lam = number;
        TORCH_CHECK(absgd_lam_update(&*rule, &none, &lam) == ABSGD_OK,
                    "lam's rule must have a fraction in (0, 1) or a finite radius > 0, a rate in "
                    "(0, 1] and bounds 0 < low < high, got ",
                    rule->target, ", ", rule->rate, ", ", rule->low, " and ", rule->high);
    }
};

/* λ, log_s and the reports: float64 tensors on the losses' device, changed in place. */
class RuleState {
  public:
    torch::Tensor lam = detail::scalar(detail::INF), log_s, log_s_lam = detail::scalar(detail::INF);
    torch::Tensor reports = detail::rows_of<absgd_report>(2, NAN);
    torch::Tensor lam_rule = detail::rows_of<absgd_lam_rule>(1, 0.0); /* zeros: λ is a number */
    bool has_lam_rule = false;

    /* constants.gamma is the default's where gamma is not given: 0.9, and 1 under a rule for λ. */
    RuleState(const Lam &first, const absgd_rule &constants, std::optional<double> gamma)
        : constants_(constants), gamma_(gamma) {
        const double g = gamma.value_or(1.0), cap = constants.max_weight;
        TORCH_CHECK(g > 0 && g <= 1, "gamma must be in (0, 1], got ", g);
        TORCH_CHECK(constants.alpha > 0 && std::isfinite(constants.alpha),
                    "alpha must be finite and > 0, got ", constants.alpha);
        TORCH_CHECK(!(constants.s_init < 0) && !std::isinf(constants.s_init),
                    "s_init must be finite and >= 0, or NaN, got ", constants.s_init);
        TORCH_CHECK(cap >= 1, "max_weight must be >= 1, or infinity, got ", cap);
        log_s = detail::scalar(std::log(constants.s_init));
        set_lam(first);
        log_s_lam.copy_(lam);
    }

    absgd_rule rule() const {
        absgd_rule rule = constants_;
        rule.gamma = gamma_.value_or(has_lam_rule ? 1.0 : 0.9);
        rule.bounded = rule.keep_loss != 0 || has_lam_rule || !std::isinf(rule.max_weight);
        return rule;
    }

    /* Sets λ; within one sign log_s is carried over, as absgd_carry_log_s says. */
    void set_lam(const Lam &to) {
        to.check();
        has_lam_rule = to.rule.has_value();
        lam.fill_(to.number);
        lam_rule.zero_();
        if (has_lam_rule) {
            const absgd_lam_rule row = *to.rule;
            lam_rule.copy_(torch::tensor(
                {{row.kind, row.target, row.sign, row.rate, row.low, row.high}}, torch::kDouble));
        } else {
            carry();
        }
    }

    /* Begins Algorithm 1 anew. */
    void restart(const Lam &to) {
        set_lam(to);
        log_s_lam.copy_(lam);
        log_s.fill_(std::log(constants_.s_init));
        reports.fill_(NAN);
    }

    void move_to(torch::Device device) {
        for (torch::Tensor *t : {&lam, &log_s, &log_s_lam, &reports, &lam_rule}) {
            *t = t->to(device);
        }
    }

    /* Moves λ to what this batch asks for, where it follows a rule. */
    void follow_lam(const Batch &batch) {
        if (!has_lam_rule) return;
        const auto *rule = detail::data<absgd_lam_rule>(lam_rule);
#ifdef ABSGD_WITH_CUDA
        if (batch.losses.is_cuda()) {
            const detail::Launch on(batch.losses);
            const auto scratch = on.scratch<absgd_lam_row>(batch.n(), 2);
            detail::check(absgd_follow_lam_cuda(batch.dtype, batch.losses_data(), batch.mask_data(),
                                                batch.weight_data(), batch.n(), rule,
                                                detail::data<absgd_lam_row>(scratch),
                                                lam.data_ptr<double>(), on.stream),
                          "follow_lam");
            return;
        }
#endif
        absgd_lam_search search = {};
        for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
            absgd_lam_row row;
            detail::check(absgd_lam_sums(batch.dtype, batch.losses_data(), batch.mask_data(),
                                         batch.weight_data(), batch.n(), rule, &search, &row),
                          "follow_lam");
            detail::check(absgd_lam_round(rule, &row, 1, &search), "follow_lam");
            if (search.has_answer == 0 || search.low == search.high) break;
        }
        detail::check(absgd_lam_update(rule, &search, lam.data_ptr<double>()), "follow_lam");
    }

    /* Takes a batch into log_s: its weights and coefficients, [2, n]. */
    torch::Tensor weigh(const Batch &batch) {
        const auto rows = batch.new_rows();
        const absgd_rule rule = this->rule();
#ifdef ABSGD_WITH_CUDA
        if (batch.losses.is_cuda()) {
            const detail::Launch on(batch.losses);
            const auto scratch = on.scratch<absgd_stats>(batch.n());
            detail::check(absgd_weigh_cuda(batch.dtype, batch.losses_data(), batch.mask_data(),
                                           batch.weight_data(), batch.n(), nullptr, 0,
                                           detail::data<absgd_stats>(scratch),
                                           lam.data_ptr<double>(), &rule, log_s.data_ptr<double>(),
                                           log_s_lam.data_ptr<double>(),
                                           detail::data<absgd_report>(reports), 1.0,
                                           rows[0].data_ptr(), rows[1].data_ptr(), on.stream),
                          "weigh");
            return rows;
        }
#endif
        detail::check(absgd_weigh(batch.dtype, batch.losses_data(), batch.mask_data(),
                                  batch.weight_data(), batch.n(), lam.data_ptr<double>(), &rule,
                                  log_s.data_ptr<double>(), log_s_lam.data_ptr<double>(),
                                  detail::data<absgd_report>(reports), rows[0].data_ptr(),
                                  rows[1].data_ptr()),
                      "weigh");
        return rows;
    }

    /* Adds a micro-batch to memory, an absgd_accumulation: its provisional weights and
     * coefficients, [2, n]. Gradients so far are to be multiplied by shrink. */
    torch::Tensor weigh_provisionally(const Batch &batch, const torch::Tensor &memory,
                                      const torch::Tensor &shrink) {
        const auto rows = batch.new_rows();
        absgd_rule rule = this->rule();
        auto *accumulation = detail::data<absgd_accumulation>(memory);
#ifdef ABSGD_WITH_CUDA
        if (batch.losses.is_cuda()) {
            const detail::Launch on(batch.losses);
            const auto scratch = on.scratch<absgd_stats>(batch.n());
            detail::check(absgd_weigh_provisionally_cuda(
                              batch.dtype, batch.losses_data(), batch.mask_data(),
                              batch.weight_data(), batch.n(), nullptr, 0,
                              detail::data<absgd_stats>(scratch), lam.data_ptr<double>(), &rule,
                              log_s.data_ptr<double>(), log_s_lam.data_ptr<double>(), accumulation,
                              shrink.data_ptr<double>(), 1.0, rows[0].data_ptr(),
                              rows[1].data_ptr(), on.stream),
                          "accumulate");
            return rows;
        }
#endif
        absgd_stats stats;
        detail::check(absgd_batch_stats(batch.dtype, batch.losses_data(), batch.mask_data(),
                                        batch.weight_data(), batch.n(), lam.data_ptr<double>(),
                                        &stats),
                      "accumulate");
        detail::check(absgd_accumulate(&stats, lam.data_ptr<double>(), &rule,
                                       log_s.data_ptr<double>(), log_s_lam.data_ptr<double>(),
                                       accumulation, shrink.data_ptr<double>()),
                      "accumulate");
        rule.keep_loss = 0; /* κ is the whole batch's: it joins settle's factor */
        stats.count = accumulation->reference_count;
        double capped;
        detail::check(absgd_weights(batch.dtype, batch.losses_data(), batch.mask_data(),
                                    batch.weight_data(), batch.n(), lam.data_ptr<double>(), &rule,
                                    &accumulation->log_c, &stats, 1.0, rows[0].data_ptr(),
                                    rows[1].data_ptr(), &capped),
                      "accumulate");
        accumulation->capped += capped;
        return rows;
    }

    /* Takes the micro-batches into log_s and empties memory: what gradients are to be multiplied
     * by, a 0-dim tensor. */
    torch::Tensor settle(const torch::Tensor &memory) {
        const absgd_rule rule = this->rule();
        const auto factor = torch::empty_like(log_s);
        auto *accumulation = detail::data<absgd_accumulation>(memory);
#ifdef ABSGD_WITH_CUDA
        if (memory.is_cuda()) {
            const detail::Launch on(memory);
            detail::check(absgd_settle_cuda(accumulation, nullptr, 0, lam.data_ptr<double>(), &rule,
                                            1.0, log_s.data_ptr<double>(),
                                            log_s_lam.data_ptr<double>(),
                                            detail::data<absgd_report>(reports),
                                            factor.data_ptr<double>(), on.stream),
                          "settle");
            return factor;
        }
#endif
        const absgd_stats whole = accumulation->whole;
        const double capped = accumulation->capped / std::max(whole.count, 1.0);
        detail::check(absgd_settle(accumulation, lam.data_ptr<double>(), &rule, 1.0,
                                   log_s.data_ptr<double>(), log_s_lam.data_ptr<double>(),
                                   factor.data_ptr<double>()),
                      "settle");
        detail::check(absgd_observe(&whole, lam.data_ptr<double>(), &rule, log_s.data_ptr<double>(),
                                    capped, detail::data<absgd_report>(reports)),
                      "settle");
        return factor;
    }

    /* What is saved, by name. */
    using Entries = std::map<std::string, torch::Tensor>;

    Entries entries() const {
        return {{"lam", lam},
                {"log_s", log_s},
                {"log_s_lam", log_s_lam},
                {"reports", reports},
                {"lam_rule", lam_rule}};
    }

    /* Entries of an archive, checked and as they are now: reports of before the guards are shorter,
     * with κ = 1 and nothing capped, and there was no rule for λ, which then stays. */
    Entries read(torch::serialize::InputArchive &archive) const {
        Entries loaded;
        for (const auto &[name, tensor] : entries()) {
            torch::Tensor value;
            if (name == "lam_rule" && !archive.try_read(name, value, true)) continue;
            if (name != "lam_rule") archive.read(name, value, true);
            value = value.to(torch::kDouble);
            if (name == "reports" && value.dim() == 2 && value.size(1) == OLD_REPORT_SIZE) {
                const auto kappa = torch::ones_like(value.slice(1, 0, 1));
                const auto guards = torch::cat({kappa, torch::zeros_like(kappa)}, 1);
                const auto unseen = value.slice(1, 0, 1);
                value = torch::cat({value, torch::where(unseen.isnan(), unseen, guards)}, 1);
            }
            TORCH_CHECK(value.sizes() == tensor.sizes(), "loaded state: ", name,
                        " must have shape ", tensor.sizes(), ", got ", value.sizes());
            loaded.emplace(name, value);
        }
        return loaded;
    }

    void load(const Entries &loaded) {
        torch::NoGradGuard no_grad;
        for (auto &[name, tensor] : entries()) {
            if (loaded.count(name)) tensor.copy_(loaded.at(name));
        }
        has_lam_rule = lam_rule.any().item<bool>();
    }

  private:
    static constexpr int64_t OLD_REPORT_SIZE = 7;

    void carry() {
        const absgd_rule rule = this->rule();
#ifdef ABSGD_WITH_CUDA
        if (lam.is_cuda()) {
            const detail::Launch on(lam);
            detail::check(absgd_carry_log_s_cuda(lam.data_ptr<double>(), &rule,
                                                 log_s.data_ptr<double>(),
                                                 log_s_lam.data_ptr<double>(), on.stream),
                          "lam");
            return;
        }
#endif
        detail::check(absgd_carry_log_s(lam.data_ptr<double>(), &rule, log_s.data_ptr<double>(),
                                        log_s_lam.data_ptr<double>()),
                      "lam");
    }

    absgd_rule constants_;
    std::optional<double> gamma_;
};

} // namespace absgd
#endif
