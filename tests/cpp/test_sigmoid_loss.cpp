// absgd_sigmoid_loss_forward and _backward against LibTorch's own operators, and every status.
#include "absgd.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace {

constexpr double UNKNOWN = -1.0;

absgd_dtype dtype_of(torch::ScalarType type) {
    switch (type) {
        case torch::kFloat64: return ABSGD_FLOAT64;
        case torch::kFloat16: return ABSGD_FLOAT16;
        case torch::kBFloat16: return ABSGD_BFLOAT16;
        default: return ABSGD_FLOAT32;
    }
}

torch::ScalarType arithmetic_type(torch::ScalarType type) {
    return type == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

const void *pointer(const torch::Tensor &t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// logits and target [N, C, inner]; undefined weights are absent.
struct Problem {
    torch::Tensor logits, target, weight, pos_weight;
    double label_smoothing = 0.0, alpha = -1.0, focal_gamma = 0.0;
    bool per_sample = false;

    absgd_sigmoid_loss spec() const {
        return {
            logits.size(0),  logits.size(1), logits.size(2), pointer(weight), pointer(pos_weight),
            label_smoothing, alpha,          focal_gamma,    UNKNOWN,         per_sample};
    }

    int64_t losses() const { return per_sample ? logits.size(0) : logits.numel(); }
};

// losses and gradient, each call's work cut at the given places.
std::tuple<torch::Tensor, torch::Tensor> run(const Problem &p, const torch::Tensor &upstream,
                                             std::vector<int64_t> cuts = {}) {
    const absgd_sigmoid_loss spec = p.spec();
    const absgd_dtype dtype = dtype_of(p.logits.scalar_type());
    torch::Tensor loss = torch::empty_like(upstream), known = torch::empty_like(upstream);
    torch::Tensor grad = torch::empty_like(p.logits);
    cuts.insert(cuts.begin(), 0);
    cuts.push_back(p.losses());
    for (size_t i = 0; i + 1 < cuts.size(); i++) {
        EXPECT_EQ(absgd_sigmoid_loss_forward(dtype, &spec, p.logits.data_ptr(), p.target.data_ptr(),
                                             loss.data_ptr(), known.data_ptr(), cuts[i],
                                             cuts[i + 1]),
                  ABSGD_OK);
    }
    for (size_t i = 0; i + 1 < cuts.size(); i++) {
        EXPECT_EQ(absgd_sigmoid_loss_backward(
                      dtype, &spec, p.logits.data_ptr(), p.target.data_ptr(), known.data_ptr(),
                      upstream.data_ptr(), grad.data_ptr(), cuts[i], cuts[i + 1]),
                  ABSGD_OK);
    }
    return {loss, grad};
}

// The formula of absgd.h in float64, with torch's log_sigmoid.
torch::Tensor reference(const torch::Tensor &x, const Problem &p) {
    const auto of_class = [&](const torch::Tensor &t) {
        return t.defined() ? t.to(torch::kFloat64).view({1, -1, 1})
                           : torch::ones({1, 1, 1}, torch::kFloat64);
    };
    const torch::Tensor known = p.target != UNKNOWN;
    const double smoothing = p.label_smoothing;
    const torch::Tensor q =
        p.target.to(torch::kFloat64).masked_fill(~known, 0.0) * (1 - smoothing) + smoothing / 2;
    torch::Tensor loss =
        -of_class(p.pos_weight) * q * torch::log_sigmoid(x) - (1 - q) * torch::log_sigmoid(-x);
    if (p.focal_gamma > 0.0) {
        const torch::Tensor P = torch::sigmoid(x);
        loss = loss * torch::pow(q * (1 - P) + (1 - q) * P, p.focal_gamma);
    }
    if (p.alpha >= 0.0) loss = loss * (p.alpha * q + (1 - p.alpha) * (1 - q));
    loss = (loss * of_class(p.weight)).masked_fill(~known, 0.0);
    if (!p.per_sample) return loss.flatten();
    return loss.sum({1, 2}) / known.sum({1, 2}).clamp_min(1);
}

torch::Tensor some_targets(const torch::Tensor &logits, bool soft) {
    torch::Tensor target = torch::rand(logits.sizes(), torch::kFloat64);
    if (!soft) target = target.round();
    target.masked_fill_(torch::rand(logits.sizes()) < 0.3, UNKNOWN);
    return target.to(arithmetic_type(logits.scalar_type()));
}

std::vector<Problem> variants(const torch::Tensor &logits) {
    const auto type = arithmetic_type(logits.scalar_type());
    const auto values = [&] { return torch::rand({logits.size(1)}, torch::dtype(type)) + 0.5; };
    std::vector<Problem> all;
    for (const bool soft : {false, true}) {
        for (const bool per_sample : {false, true}) {
            Problem p;
            p.logits = logits;
            p.target = some_targets(logits, soft);
            p.per_sample = per_sample;
            all.push_back(p);
            p.weight = values();
            p.pos_weight = values();
            all.push_back(p);
            p.label_smoothing = 0.2;
            all.push_back(p);
            p.focal_gamma = 1.5;
            p.alpha = 0.25;
            all.push_back(p);
            p.focal_gamma = 2.0;
            p.weight = torch::Tensor();
            all.push_back(p);
        }
    }
    return all;
}

class SigmoidLoss : public testing::TestWithParam<torch::ScalarType> {
  protected:
    void SetUp() override { torch::manual_seed(0); }

    double loss_tolerance() const { return GetParam() == torch::kFloat64 ? 1e-13 : 3e-6; }

    double grad_tolerance() const {
        switch (GetParam()) {
            case torch::kFloat64: return 1e-13;
            case torch::kFloat16: return 6e-4;
            case torch::kBFloat16: return 4e-3;
            default: return 6e-6;
        }
    }

    torch::Tensor upstream_of(const Problem &p) const {
        return torch::rand({p.losses()}, torch::dtype(arithmetic_type(GetParam())));
    }
};

TEST_P(SigmoidLoss, EqualsTorch) {
    for (const auto &[N, C, inner] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
             {1, 1, 1}, {5, 10, 1}, {3, 1500, 1}, {3, 4, 5}, {2, 3, 300}}) {
        const torch::Tensor logits = (torch::randn({N, C, inner}) * 3).to(GetParam());
        for (const Problem &p : variants(logits)) {
            const torch::Tensor upstream = upstream_of(p);
            const auto [loss, grad] = run(p, upstream);
            torch::Tensor x = logits.detach().to(torch::kFloat64, false, true).requires_grad_();
            const torch::Tensor expected = reference(x, p);
            expected.backward(upstream.to(torch::kFloat64));
            const torch::Tensor error = (loss - expected).abs() / (1.0 + expected.abs());
            EXPECT_LE(error.max().item<double>(), loss_tolerance());
            const double largest = x.grad().abs().max().item<double>();
            EXPECT_LE((grad - x.grad()).abs().max().item<double>(),
                      grad_tolerance() * largest + 1e-14);
        }
    }
}

TEST_P(SigmoidLoss, HowTheWorkIsCutChangesNoBit) {
    const torch::Tensor logits = (torch::randn({7, 9, 97}) * 3).to(GetParam());
    for (const Problem &p : variants(logits)) {
        const torch::Tensor upstream = upstream_of(p);
        const auto [loss, grad] = run(p, upstream);
        std::vector<int64_t> cuts = {1, 2, 3};
        if (!p.per_sample) cuts.insert(cuts.end(), {66, 257, 600, 1001});
        const auto [loss_cut, grad_cut] = run(p, upstream, cuts);
        EXPECT_TRUE(torch::equal(loss, loss_cut));
        EXPECT_TRUE(torch::equal(grad, grad_cut));
    }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, SigmoidLoss,
                         testing::Values(torch::kFloat32, torch::kFloat64, torch::kFloat16,
                                         torch::kBFloat16),
                         [](const auto &info) { return std::string(torch::toString(info.param)); });

// A valid call of two samples and three classes, to be made invalid in one place.
struct Call {
    absgd_dtype dtype = ABSGD_FLOAT32;
    absgd_sigmoid_loss spec = {2, 3, 1, nullptr, nullptr, 0.0, -1.0, 0.0, UNKNOWN, 1};
    std::vector<float> logits = std::vector<float>(6, 1.0f), targets = std::vector<float>(6, 1.0f);
    std::vector<float> loss = {7.0f, 7.0f}, counts = {7.0f, 7.0f};
    std::vector<float> grad = std::vector<float>(6, 7.0f);
    const absgd_sigmoid_loss *spec_at = &spec;
    const void *x = logits.data(), *q = targets.data();
    void *out = loss.data(), *known = counts.data();
    int64_t begin = 0, end = 2;

    absgd_status forward() {
        return absgd_sigmoid_loss_forward(dtype, spec_at, x, q, out, known, begin, end);
    }

    absgd_status backward() {
        return absgd_sigmoid_loss_backward(dtype, spec_at, x, q, known, out, grad.data(), begin,
                                           end);
    }

    void expect_unwritten() {
        EXPECT_EQ(loss, std::vector<float>(2, 7.0f));
        EXPECT_EQ(counts, std::vector<float>(2, 7.0f));
        EXPECT_EQ(grad, std::vector<float>(6, 7.0f));
    }
};

template <class Change> void expect(absgd_status status, const Change &change) {
    Call call;
    change(call);
    EXPECT_EQ(call.forward(), status);
    EXPECT_EQ(call.backward(), status);
    call.expect_unwritten();
}

TEST(SigmoidLossStatus, EachFaultHasItsOwn) {
    const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
    expect(ABSGD_NULL_POINTER, [](Call &c) { c.spec_at = nullptr; });
    expect(ABSGD_NULL_POINTER, [](Call &c) { c.x = nullptr; });
    expect(ABSGD_NULL_POINTER, [](Call &c) { c.q = nullptr; });
    expect(ABSGD_NULL_POINTER, [](Call &c) { c.out = nullptr; });
    expect(ABSGD_NULL_POINTER, [](Call &c) { c.known = nullptr; });
    expect(ABSGD_INVALID_DTYPE, [](Call &c) { c.dtype = static_cast<absgd_dtype>(4); });
    expect(ABSGD_INVALID_SIZE, [](Call &c) { c.spec.samples = -1; });
    expect(ABSGD_INVALID_SIZE, [](Call &c) { c.spec.classes = -1; });
    expect(ABSGD_INVALID_SIZE, [](Call &c) { c.spec.inner = -1; });
    for (const int64_t huge : {int64_t{1} << 32, std::numeric_limits<int64_t>::max()}) {
        for (const int per_sample : {0, 1}) {
            expect(ABSGD_INVALID_SIZE, [&](Call &c) {
                c.spec.classes = c.spec.inner = huge, c.spec.per_sample = per_sample;
            });
            expect(ABSGD_INVALID_SIZE, [&](Call &c) {
                c.spec.samples = c.spec.classes = huge, c.spec.per_sample = per_sample;
            });
        }
    }
    expect(ABSGD_INVALID_SIZE, [](Call &c) { c.begin = -1; });
    expect(ABSGD_INVALID_SIZE, [](Call &c) { c.end = 3; });
    expect(ABSGD_INVALID_SIZE, [](Call &c) { c.begin = 2, c.end = 1; });
    const auto hyperparameter = [](auto change) { expect(ABSGD_INVALID_HYPERPARAMETER, change); };
    for (const double smoothing : {-0.1, 1.1, nan}) {
        hyperparameter([&](Call &c) { c.spec.label_smoothing = smoothing; });
    }
    for (const double alpha : {1.1, nan}) {
        hyperparameter([&](Call &c) { c.spec.alpha = alpha; });
    }
    for (const double gamma : {-1.0, inf, nan}) {
        hyperparameter([&](Call &c) { c.spec.focal_gamma = gamma; });
    }
    for (const double index : {0.0, 0.5, 1.0, 1.0 + 1e-9, -1e-300}) { // the last two as floats
        hyperparameter([&](Call &c) { c.spec.ignore_index = index; });
    }
}

TEST(SigmoidLossStatus, TargetOutOfRange) {
    for (const float target : {-0.5f, 1.1f, 2.0f, -2.0f, std::nanf("")}) {
        Call call;
        call.targets[4] = target;
        EXPECT_EQ(call.forward(), ABSGD_TARGET_OUT_OF_RANGE);
        call.expect_unwritten();
        call.end = 1; // only the targets of [begin, end) are looked at
        EXPECT_EQ(call.forward(), ABSGD_OK);
    }
    Call call;
    call.targets = {-1.0f, 0.0f, 1.0f, 0.5f, 1.000001f, -1e-6f};
    EXPECT_EQ(call.forward(), ABSGD_OK);
    EXPECT_EQ(call.counts, (std::vector<float>{2.0f, 3.0f}));
}

TEST(SigmoidLossStatus, EmptyWorkNeedsNoPointers) {
    const absgd_sigmoid_loss spec = {0, 3, 1, nullptr, nullptr, 0.0, -1.0, 0.0, NAN, 0};
    EXPECT_EQ(
        absgd_sigmoid_loss_forward(ABSGD_FLOAT32, &spec, nullptr, nullptr, nullptr, nullptr, 0, 0),
        ABSGD_OK);
    EXPECT_EQ(absgd_sigmoid_loss_backward(ABSGD_FLOAT32, &spec, nullptr, nullptr, nullptr, nullptr,
                                          nullptr, 0, 0),
              ABSGD_OK);
}

} // namespace
