// absgd_sgd_step against the same step written with LibTorch's operators, and against its SGD.
#include "absgd.h"
#include "torch_dtypes.h"
extern "C" {
#include "kernels.h"
}

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <vector>

#if ABSGD_ONE_LEVEL
#define STEP_KERNEL absgd_sgd_step_v1
#else
#define STEP_KERNEL absgd_sgd_step_v2
#endif

namespace {

using Tensors = std::vector<torch::Tensor>;

const int64_t SIZES[] = {1, 0, 7, 300, 33};

Tensors tensors(const Dtype &dtype, int seed) {
    torch::manual_seed(seed);
    Tensors out;
    for (const int64_t n : SIZES) out.push_back(torch::randn({n}).to(dtype.torch));
    return out;
}

Tensors cloned(const Tensors &tensors) {
    Tensors out;
    for (const auto &t : tensors) out.push_back(t.clone());
    return out;
}

std::vector<absgd_tensor> rows(const Tensors &w, const Tensors &g, const Tensors &v, bool fresh) {
    std::vector<absgd_tensor> out;
    for (size_t i = 0; i < w.size(); i++) {
        void *momentum = v.empty() ? nullptr : v[i].data_ptr();
        out.push_back({w[i].data_ptr(), g[i].const_data_ptr(), momentum, w[i].numel(), fresh});
    }
    return out;
}

int64_t total(const Tensors &w) {
    int64_t n = 0;
    for (const auto &t : w) n += t.numel();
    return n;
}

struct Expected {
    torch::Tensor w, v;
};

// In double, by the definitions in absgd.h.
Expected expected(torch::Tensor w, torch::Tensor g, torch::Tensor v, bool fresh,
                  const absgd_sgd_options &o) {
    w = w.to(torch::kFloat64);
    v = v.defined() ? v.to(torch::kFloat64) : torch::zeros_like(w);
    g = g.to(torch::kFloat64) / o.grad_scale;
    g = (o.maximize ? -g : g) + o.weight_decay * w;
    if (o.polyak) {
        v = fresh ? -o.lr * g : o.momentum * v - o.lr * g;
        return {w + v, v};
    }
    if (o.momentum == 0.0) return {w - o.lr * g, v};
    v = fresh ? g : o.momentum * v + (1 - o.dampening) * g;
    return {w - o.lr * (o.nesterov ? g + o.momentum * v : v), v};
}

std::vector<absgd_sgd_options> every_option() {
    std::vector<absgd_sgd_options> out;
    for (const double momentum : {0.0, 0.9})
        for (const double dampening : {0.0, 0.3})
            for (const double weight_decay : {0.0, 0.01})
                for (const double grad_scale : {1.0, 1024.0})
                    for (const int nesterov : {0, 1})
                        for (const int maximize : {0, 1})
                            for (const int polyak : {0, 1}) {
                                if (nesterov && (momentum == 0 || dampening != 0)) continue;
                                if (polyak && (nesterov || dampening != 0)) continue;
                                if (polyak && momentum == 0) continue;
                                out.push_back({0.1, momentum, dampening, weight_decay, grad_scale,
                                               nesterov, maximize, polyak});
                            }
    return out;
}

class Step : public testing::TestWithParam<std::tuple<Dtype, bool>> {};

TEST_P(Step, EveryOptionAgreesWithTorch) {
    const auto [dtype, fresh] = GetParam();
    for (const absgd_sgd_options &o : every_option()) {
        const Tensors w = tensors(dtype, 1), g = tensors(dtype, 2), v = tensors(dtype, 3);
        const Tensors w0 = cloned(w), g0 = cloned(g), v0 = cloned(v);
        const auto table = rows(w, g, o.momentum == 0 ? Tensors() : v, fresh);
        ASSERT_EQ(ABSGD_OK,
                  absgd_sgd_step(dtype.absgd, table.data(), table.size(), &o, 0, total(w)));
        for (size_t i = 0; i < w.size(); i++) {
            const Expected e = expected(w0[i], g0[i], v0[i], fresh, o);
            const double tolerance = 2 * dtype.eps();
            EXPECT_TRUE(torch::allclose(w[i].to(torch::kFloat64), e.w, tolerance, tolerance));
            EXPECT_TRUE(torch::allclose(v[i].to(torch::kFloat64), e.v, tolerance, tolerance));
            EXPECT_TRUE(torch::equal(g[i], g0[i]));
        }
    }
}

TEST_P(Step, HoweverTheWorkIsSplitTheBitsAreTheSame) {
    const auto [dtype, fresh] = GetParam();
    const absgd_sgd_options o = {0.1, 0.9, 0, 0.01, 1, 1, 0, 0};
    const Tensors g = tensors(dtype, 2);
    const Tensors w = tensors(dtype, 1), v = tensors(dtype, 3);
    const auto table = rows(w, g, v, fresh);
    const int64_t n = total(w);
    ASSERT_EQ(ABSGD_OK, absgd_sgd_step(dtype.absgd, table.data(), table.size(), &o, 0, n));
    for (const int64_t piece : {1, 5, 64, 131}) {
        const Tensors w2 = tensors(dtype, 1), v2 = tensors(dtype, 3);
        const auto pieces = rows(w2, g, v2, fresh);
        for (int64_t i = 0; i < n; i += piece) {
            ASSERT_EQ(ABSGD_OK, absgd_sgd_step(dtype.absgd, pieces.data(), pieces.size(), &o, i,
                                               std::min(i + piece, n)));
        }
        for (size_t i = 0; i < w.size(); i++) {
            EXPECT_TRUE(torch::equal(w2[i], w[i]));
            EXPECT_TRUE(torch::equal(v2[i], v[i]));
        }
    }
}

TEST_P(Step, LookingAheadChangesNoBit) {
    const auto [dtype, fresh] = GetParam();
    const absgd_sgd_options o = {0.1, 0.9, 0, 0.01, 1, 1, 0, 0};
    const auto stepped = [&](int looks_ahead) {
        const auto of = torch::TensorOptions().dtype(dtype.torch);
        const Tensors w = {torch::linspace(-3, 2, 9001, of)},
                      v = {torch::linspace(1, -1, 9001, of)};
        const Tensors g = {torch::linspace(-1, 5, 9001, of)};
        const auto table = rows(w, g, v, fresh);
        STEP_KERNEL(dtype.absgd, table.data(), &o, looks_ahead, 0, 9001);
        return std::pair{w[0], v[0]};
    };
    const auto [w, v] = stepped(0);
    const auto [w2, v2] = stepped(1);
    EXPECT_TRUE(torch::equal(w2, w) && torch::equal(v2, v));
    EXPECT_FALSE(torch::equal(w, torch::linspace(-3, 2, 9001, w.options())));
}

INSTANTIATE_TEST_SUITE_P(All, Step, testing::Combine(testing::ValuesIn(DTYPES), testing::Bool()));

// A NaN in memory that is said to hold no value must not get out.
TEST(Sgd, AFreshBufferIsNotRead) {
    for (const Dtype &dtype : DTYPES) {
        for (const int polyak : {0, 1}) {
            const absgd_sgd_options o = {0.1, 0.9, 0, 0, 1, 0, 0, polyak};
            const Tensors w = tensors(dtype, 1), g = tensors(dtype, 2), v = cloned(w);
            for (auto t : v) t.fill_(NAN);
            const auto table = rows(w, g, v, true);
            ASSERT_EQ(ABSGD_OK,
                      absgd_sgd_step(dtype.absgd, table.data(), table.size(), &o, 0, total(w)));
            for (const auto &t : w) EXPECT_TRUE(t.isfinite().all().item<bool>());
            for (const auto &t : v) EXPECT_TRUE(t.isfinite().all().item<bool>());
        }
    }
}

TEST(Sgd, AMomentumBufferIsUntouchedAtMomentumZero) {
    for (const Dtype &dtype : DTYPES) {
        for (const int polyak : {0, 1}) {
            for (const bool fresh : {false, true}) {
                const absgd_sgd_options o = {0.1, 0, 0, 0.01, 1, 0, 0, polyak};
                const Tensors w = tensors(dtype, 1), g = tensors(dtype, 2), v = tensors(dtype, 3);
                const Tensors w0 = cloned(w), v0 = cloned(v);
                const auto table = rows(w, g, v, fresh), without = rows(w0, g, {}, fresh);
                ASSERT_EQ(ABSGD_OK,
                          absgd_sgd_step(dtype.absgd, table.data(), table.size(), &o, 0, total(w)));
                ASSERT_EQ(ABSGD_OK, absgd_sgd_step(dtype.absgd, without.data(), without.size(), &o,
                                                   0, total(w)));
                for (size_t i = 0; i < w.size(); i++) {
                    EXPECT_TRUE(torch::equal(v[i], v0[i]));
                    EXPECT_TRUE(torch::equal(w[i], w0[i]));
                }
            }
        }
    }
}

TEST(Sgd, ManyStepsAreLibTorchsSGD) {
    auto options = torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.01).nesterov(true);
    torch::Tensor theirs = torch::randn({200}, torch::kFloat64).requires_grad_();
    torch::Tensor ours = theirs.detach().clone(), momentum = torch::empty_like(ours);
    torch::optim::SGD sgd({theirs}, options);
    const absgd_sgd_options o = {0.1, 0.9, 0, 0.01, 1, 1, 0, 0};
    for (int step = 0; step < 100; step++) {
        sgd.zero_grad();
        theirs.square().sum().backward();
        sgd.step();
        const torch::Tensor gradient = 2 * ours;
        const auto table = rows({ours}, {gradient}, {momentum}, step == 0);
        ASSERT_EQ(ABSGD_OK, absgd_sgd_step(ABSGD_FLOAT64, table.data(), 1, &o, 0, 200));
    }
    EXPECT_TRUE(torch::allclose(ours, theirs, 1e-12, 1e-12));
}

} // namespace
