// A batch of losses with a mask and a base measure, and Algorithm 1 on it in float64 tensors.
#pragma once

#include "absgd.h"
#include "torch_dtypes.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

constexpr double INF = std::numeric_limits<double>::infinity();

struct Batch {
    Dtype dtype;
    torch::Tensor losses, mask, weight; // the last two: undefined for none

    int64_t n() const { return losses.numel(); }

    absgd_stats stats(double lam) const { return part(lam, 0, n()); }

    absgd_stats part(double lam, int64_t begin, int64_t end) const {
        absgd_stats out;
        EXPECT_EQ(ABSGD_OK, absgd_batch_stats(dtype.absgd, at(losses, begin), mask_at(begin),
                                              at(weight, begin), end - begin, &lam, &out));
        return out;
    }

    static const void *at(const torch::Tensor &t, int64_t i) {
        if (!t.defined()) return nullptr;
        return static_cast<const char *>(t.const_data_ptr()) + i * t.element_size();
    }

    const uint8_t *mask_at(int64_t i) const { return static_cast<const uint8_t *>(at(mask, i)); }

    // Those of the samples that count, in float64.
    torch::Tensor counted() const { return of_mask(losses); }
    torch::Tensor measure() const {
        return of_mask(weight.defined() ? weight : torch::ones_like(losses));
    }

    torch::Tensor of_mask(const torch::Tensor &t) const {
        const torch::Tensor wide = t.to(torch::kFloat64);
        return mask.defined() ? wide.masked_select(mask) : wide;
    }

    // weights and coefficients, [2, n], of the arithmetic type
    torch::Tensor weigh(double lam, const absgd_rule &rule, double log_s, const absgd_stats &stats,
                        double factor = 1, double *capped = nullptr) const {
        return weigh_part(0, n(), lam, rule, log_s, stats, factor, capped);
    }

    torch::Tensor weigh_part(int64_t begin, int64_t end, double lam, const absgd_rule &rule,
                             double log_s, const absgd_stats &stats, double factor = 1,
                             double *capped = nullptr) const {
        const auto out = torch::empty({2, end - begin}, dtype.arithmetic);
        EXPECT_EQ(ABSGD_OK,
                  absgd_weights(dtype.absgd, at(losses, begin), mask_at(begin), at(weight, begin),
                                end - begin, &lam, &rule, &log_s, &stats, factor,
                                out[0].mutable_data_ptr(), out[1].mutable_data_ptr(), capped));
        return out;
    }
};

// Some weights are 0; masked losses and weights are NaN, and must not be looked at.
inline Batch random_batch(const Dtype &dtype, int64_t n, bool masked, bool weighted = false,
                          double scale = 3.0) {
    torch::manual_seed(n);
    Batch batch = {dtype, (torch::rand({n}) * scale).to(dtype.torch), {}, {}};
    if (weighted) {
        batch.weight = (torch::rand({n}) * 2 - 0.3).clamp_min(0).to(dtype.arithmetic);
        batch.weight[n / 2] = 1.5;
    }
    if (masked) {
        batch.mask = torch::rand({n}) < 0.7;
        batch.mask[n / 2] = true;
        batch.losses.masked_fill_(~batch.mask, NAN);
        if (weighted) batch.weight.masked_fill_(~batch.mask, NAN);
    }
    return batch;
}

inline void expect_close(double actual, double expected, double tolerance = 1e-12) {
    if (actual == expected) return; // infinities too
    EXPECT_NEAR(actual, expected, tolerance * std::max(1.0, std::fabs(expected)));
}

inline void expect_close(const torch::Tensor &actual, const torch::Tensor &expected, double rtol) {
    const auto wide = actual.to(torch::kFloat64);
    EXPECT_TRUE(torch::allclose(wide, expected.to(torch::kFloat64), rtol, 1e-30))
        << (wide - expected).abs().max();
}

// ℓ = logsumexp(L/λ + log w) − log Σw
inline double log_mean_exp(const torch::Tensor &losses, const torch::Tensor &w, double lam) {
    return ((losses / lam + w.log()).logsumexp(0) - w.sum().log()).item<double>();
}

inline double log_mean_exp(const torch::Tensor &losses, double lam) {
    return log_mean_exp(losses, torch::ones_like(losses), lam);
}

inline double total(const torch::Tensor &t) { return t.sum().item<double>(); }
