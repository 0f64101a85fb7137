// absgd_softmax_loss_forward and _backward against LibTorch's own operators, and every status.
#include "absgd.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace {

constexpr int64_t IGNORED = -100;

absgd_dtype dtype_of(torch::ScalarType type) {
    switch (type) {
        case torch::kFloat64: return ABSGD_FLOAT64;
        case torch::kFloat16: return ABSGD_FLOAT16;
        case torch::kBFloat16: return ABSGD_BFLOAT16;
        default: return ABSGD_FLOAT32;
    }
}

torch::ScalarType arithmetic(torch::ScalarType type) {
    return type == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

// What a call needs beside the logits. Undefined tensors are absent.
struct Options {
    torch::Tensor weight, margin, offset;
    double scale = 1.0, focal_gamma = 0.0, label_smoothing = 0.0;
};

const void *pointer(const torch::Tensor &t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// logits [N, C, inner], target int64 [N, inner] or probabilities in the logits' shape
struct Problem {
    torch::Tensor logits, target;
    Options options;

    bool soft() const { return target.is_floating_point(); }

    absgd_softmax_loss spec() const {
        return {logits.size(0) * logits.size(2),
                logits.size(1),
                logits.size(2),
                pointer(options.weight),
                pointer(options.margin),
                pointer(options.offset),
                options.scale,
                options.focal_gamma,
                options.label_smoothing,
                IGNORED};
    }

    const int64_t *classes() const { return soft() ? nullptr : target.const_data_ptr<int64_t>(); }
    const void *probabilities() const { return soft() ? target.const_data_ptr() : nullptr; }
};

// loss [N·inner] and gradient, each call's work cut at the given places; exponentials are kept in
// the gradient's memory, or not.
std::tuple<torch::Tensor, torch::Tensor> run(const Problem &p, const torch::Tensor &upstream,
                                             std::vector<int64_t> cuts = {}, bool keep = false) {
    const absgd_softmax_loss spec = p.spec();
    const auto type = torch::dtype(arithmetic(p.logits.scalar_type()));
    torch::Tensor loss = torch::empty({spec.samples}, type);
    torch::Tensor saved = torch::empty({ABSGD_LOSS_SAVED, spec.samples}, type);
    torch::Tensor grad = torch::empty_like(p.logits);
    const absgd_dtype dtype = dtype_of(p.logits.scalar_type());
    void *kept = keep ? grad.data_ptr() : nullptr;
    cuts.insert(cuts.begin(), 0);
    cuts.push_back(spec.samples);
    for (size_t i = 0; i + 1 < cuts.size(); i++) {
        EXPECT_EQ(absgd_softmax_loss_forward(dtype, &spec, p.logits.data_ptr(), p.classes(),
                                             p.probabilities(), loss.data_ptr(), saved.data_ptr(),
                                             kept, cuts[i], cuts[i + 1]),
                  ABSGD_OK);
    }
    for (size_t i = 0; i + 1 < cuts.size(); i++) {
        EXPECT_EQ(absgd_softmax_loss_backward(dtype, &spec, p.logits.data_ptr(), p.classes(),
                                              p.probabilities(), saved.data_ptr(), kept,
                                              upstream.data_ptr(), grad.data_ptr(), cuts[i],
                                              cuts[i + 1]),
                  ABSGD_OK);
    }
    return {loss, grad};
}

// The formula of absgd.h in float64, with torch's log_softmax.
torch::Tensor reference(const torch::Tensor &logits, const Problem &p) {
    const Options &o = p.options;
    const int64_t C = logits.size(1);
    if (p.soft() && (o.margin.defined() || o.focal_gamma > 0.0)) {
        torch::Tensor loss;
        for (int64_t y = 0; y < C; y++) {
            const torch::Tensor q = p.target.select(1, y).to(torch::kFloat64);
            const torch::Tensor labels = torch::full(q.sizes(), y, torch::kInt64);
            const torch::Tensor term = q * reference(logits, {p.logits, labels, o});
            loss = loss.defined() ? loss + term : term;
        }
        return loss;
    }
    const auto of_class = [&](const torch::Tensor &t, double otherwise) {
        return (t.defined() ? t.to(torch::kFloat64) : torch::full({C}, otherwise, torch::kFloat64))
            .view({1, C, 1});
    };
    const torch::Tensor weight = of_class(o.weight, 1.0);
    torch::Tensor x = logits, hot;
    if (!p.soft()) {
        hot = torch::one_hot(p.target.clamp_min(0), C).movedim(-1, 1).to(torch::kFloat64);
        x = x - of_class(o.margin, 0.0) * hot;
    }
    const torch::Tensor nll = -torch::log_softmax(o.scale * x + of_class(o.offset, 0.0), 1);
    const torch::Tensor smooth = o.label_smoothing / C * (weight * nll).sum(1);
    const double kept = 1.0 - o.label_smoothing;
    if (p.soft()) return kept * (weight * p.target.to(torch::kFloat64) * nll).sum(1) + smooth;
    const torch::Tensor nll_y = (nll * hot).sum(1);
    torch::Tensor loss = (weight * hot).sum(1) * kept * nll_y;
    if (o.focal_gamma > 0.0) loss = loss * torch::pow(1.0 - torch::exp(-nll_y), o.focal_gamma);
    return (loss + smooth).masked_fill(p.target == IGNORED, 0.0);
}

torch::Tensor some_targets(int64_t N, int64_t C, int64_t inner) {
    torch::Tensor target = torch::randint(C, {N, inner}, torch::kInt64);
    if (target.numel() > 1) target.view({-1})[1] = IGNORED;
    return target;
}

std::vector<Options> hard_options(int64_t C, torch::ScalarType type) {
    const auto values = [&] { return torch::rand({C}, torch::dtype(type)) * 0.5; };
    std::vector<Options> all(7);
    all[1].weight = values();
    all[2].label_smoothing = 0.1;
    all[3].offset = values();
    all[4].margin = values();
    all[4].scale = 30.0;
    all[5].focal_gamma = 2.0;
    all[5].weight = values();
    all[6].weight = values();
    all[6].margin = values();
    all[6].offset = values();
    all[6].scale = 5.0;
    all[6].label_smoothing = 0.3;
    return all;
}

class SoftmaxLoss : public testing::TestWithParam<torch::ScalarType> {
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

    void expect_reference(const Problem &p) {
        const torch::Tensor upstream =
            torch::rand({p.spec().samples}, torch::dtype(arithmetic(GetParam())));
        const auto [loss, grad] = run(p, upstream);
        torch::Tensor x = p.logits.to(torch::kFloat64).requires_grad_();
        const torch::Tensor expected = reference(x, p).flatten();
        expected.backward(upstream.to(torch::kFloat64));
        const torch::Tensor error = (loss - expected).abs() / (1.0 + expected.abs());
        EXPECT_LE(error.max().item<double>(), loss_tolerance());
        const double largest = x.grad().abs().max().item<double>();
        // 1e-14: what the reference itself loses in P_y − 1
        EXPECT_LE((grad - x.grad()).abs().max().item<double>(), grad_tolerance() * largest + 1e-14);
    }
};

TEST_P(SoftmaxLoss, EqualsTorchOnClassIndices) {
    for (const auto &[N, C, inner] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
             {1, 2, 1}, {5, 10, 1}, {70, 33, 1}, {3, 1500, 1}, {3, 4, 5}, {2, 40, 130}}) {
        for (const Options &options : hard_options(C, arithmetic(GetParam()))) {
            const torch::Tensor logits = (torch::randn({N, C, inner}) * 3).to(GetParam());
            expect_reference({logits, some_targets(N, C, inner), options});
        }
    }
}

TEST_P(SoftmaxLoss, EqualsTorchOnProbabilities) {
    for (const auto &[N, C, inner] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
             {5, 10, 1}, {3, 1200, 1}, {2, 40, 130}}) {
        for (const Options &options : hard_options(C, arithmetic(GetParam()))) {
            const torch::Tensor logits = (torch::randn({N, C, inner}) * 3).to(GetParam());
            const torch::Tensor target = torch::randn({N, C, inner}, torch::kFloat64).softmax(1);
            expect_reference({logits, target.to(arithmetic(GetParam())), options});
        }
    }
}

TEST_P(SoftmaxLoss, HowTheWorkIsCutChangesNoBit) {
    for (const int64_t inner : {1, 97}) {
        const torch::Tensor logits =
            (torch::randn({200 / inner + 1, 70, inner}) * 3).to(GetParam());
        const torch::Tensor target = some_targets(logits.size(0), 70, inner);
        const Problem p{logits, target, hard_options(70, arithmetic(GetParam()))[6]};
        const torch::Tensor upstream =
            torch::rand({p.spec().samples}, torch::dtype(arithmetic(GetParam())));
        const auto [loss, grad] = run(p, upstream);
        const auto [loss_cut, grad_cut] = run(p, upstream, {1, 2, 3, 66, 66, 131, 190});
        EXPECT_TRUE(torch::equal(loss, loss_cut));
        EXPECT_TRUE(torch::equal(grad, grad_cut));
    }
}

TEST_P(SoftmaxLoss, KeptExponentialsChangeNoBit) {
    const torch::ScalarType real = arithmetic(GetParam());
    for (const int64_t C : {10, 33, 100, 365, 1000, 1024, 1025}) {
        const torch::Tensor logits = (torch::randn({11, C, 1}) * 3).to(GetParam());
        const torch::Tensor q = torch::randn({11, C, 1}, torch::kFloat64).softmax(1).to(real);
        const torch::Tensor upstream = torch::rand({11}, real);
        for (const Options &options : hard_options(C, real)) {
            for (const torch::Tensor &target : {some_targets(11, C, 1), q}) {
                const Problem p{logits, target, options};
                const auto [loss, grad] = run(p, upstream);
                const auto [loss_kept, grad_kept] = run(p, upstream, {3, 8}, true);
                EXPECT_TRUE(torch::equal(loss, loss_kept)) << C << " classes";
                EXPECT_TRUE(torch::equal(grad, grad_kept)) << C << " classes";
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, SoftmaxLoss,
                         testing::Values(torch::kFloat32, torch::kFloat64, torch::kFloat16,
                                         torch::kBFloat16),
                         [](const auto &info) { return std::string(torch::toString(info.param)); });

TEST(SoftmaxLossEdges, ExtremeLogitsAreExact) {
    const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
    torch::Tensor logits = torch::tensor({{1e4f, -1e4f, 0.0f},
                                          {-1e4f, 1e4f, 0.0f},
                                          {0.0f, -inf, -inf},
                                          {-inf, 0.0f, 0.0f},
                                          {-inf, -inf, -inf},
                                          {0.0f, nan, 0.0f},
                                          {nan, 0.0f, 0.0f},
                                          {0.0f, inf, 0.0f}})
                               .unsqueeze(2);
    const Problem p{logits, torch::zeros({8, 1}, torch::kInt64), {}};
    const auto [loss, grad] = run(p, torch::ones({8}));
    const torch::Tensor expected = torch::tensor({0.0f, 2e4f, 0.0f, inf, nan, nan, nan, nan});
    EXPECT_TRUE(torch::allclose(loss, expected, 0.0, 0.0, /*equal_nan=*/true));
    const torch::Tensor grads = torch::tensor(
        {{0.0f, 0.0f, 0.0f}, {-1.0f, 1.0f, 0.0f}, {0.0f, 0.0f, 0.0f}, {-1.0f, 0.5f, 0.5f}});
    EXPECT_TRUE(torch::equal(grad.squeeze(2).slice(0, 0, 4), grads));
}

TEST(SoftmaxLossEdges, IgnoredSamplesAreNotReadAndGetZeros) {
    Options smoothed;
    smoothed.weight = torch::full({3}, std::numeric_limits<float>::infinity());
    smoothed.label_smoothing = 0.1;
    for (const Options &options : {Options(), smoothed}) {
        for (const int64_t inner : {1, 2}) {
            const torch::Tensor logits = torch::full({2, 3, inner}, std::nanf(""));
            const Problem p{logits, torch::full({2, inner}, IGNORED, torch::kInt64), options};
            const auto [loss, grad] = run(p, torch::ones({2 * inner}));
            EXPECT_TRUE(torch::equal(loss, torch::zeros_like(loss)));
            EXPECT_TRUE(torch::equal(grad, torch::zeros_like(grad)));
        }
    }
}

// A valid call of two samples and three classes, to be made invalid in one place.
struct Call {
    absgd_dtype dtype = ABSGD_FLOAT32;
    absgd_softmax_loss spec = {2, 3, 1, nullptr, nullptr, nullptr, 1.0, 0.0, 0.0, IGNORED};
    std::vector<float> logits = std::vector<float>(6, 1.0f), values = std::vector<float>(3, 1.0f);
    std::vector<float> soft = std::vector<float>(6, 1.0f / 3.0f);
    std::vector<int64_t> classes = {0, 2};
    std::vector<float> loss = {7.0f, 7.0f}, grad = std::vector<float>(6, 7.0f);
    std::vector<float> saved = std::vector<float>(2 * ABSGD_LOSS_SAVED, 7.0f);
    const void *x = logits.data(), *soft_target = nullptr;
    const int64_t *target = classes.data();
    void *out = loss.data();
    const absgd_softmax_loss *spec_at = &spec;
    int64_t begin = 0, end = 2;

    absgd_status forward() {
        return absgd_softmax_loss_forward(dtype, spec_at, x, target, soft_target, out, saved.data(),
                                          grad.data(), begin, end);
    }

    absgd_status backward() {
        return absgd_softmax_loss_backward(dtype, spec_at, x, target, soft_target, saved.data(),
                                           grad.data(), out, grad.data(), begin, end);
    }

    // Both passes return the status, and have written nothing.
    void expect(absgd_status status) {
        EXPECT_EQ(forward(), status);
        EXPECT_EQ(backward(), status);
        EXPECT_EQ(loss, std::vector<float>(2, 7.0f));
        EXPECT_EQ(saved, std::vector<float>(2 * ABSGD_LOSS_SAVED, 7.0f));
        EXPECT_EQ(grad, std::vector<float>(6, 7.0f));
    }
};

TEST(SoftmaxLossStatus, NullPointer) {
    Call no_spec, no_logits, no_loss, no_target, two_targets;
    no_spec.spec_at = nullptr;
    no_spec.expect(ABSGD_NULL_POINTER);
    no_logits.x = nullptr;
    no_logits.expect(ABSGD_NULL_POINTER);
    no_loss.out = nullptr;
    no_loss.expect(ABSGD_NULL_POINTER);
    no_target.target = nullptr;
    no_target.expect(ABSGD_NULL_POINTER);
    two_targets.soft_target = two_targets.soft.data();
    two_targets.expect(ABSGD_NULL_POINTER);
}

TEST(SoftmaxLossStatus, InvalidDtype) {
    Call call;
    call.dtype = static_cast<absgd_dtype>(4);
    call.expect(ABSGD_INVALID_DTYPE);
}

TEST(SoftmaxLossStatus, InvalidSize) {
    const auto with = [](auto change) {
        Call call;
        change(call);
        call.expect(ABSGD_INVALID_SIZE);
    };
    with([](Call &c) { c.spec.samples = -1; });
    with([](Call &c) { c.spec.classes = 0; });
    with([](Call &c) { c.spec.inner = 0; });
    with([](Call &c) { c.spec.inner = 3; });
    with([](Call &c) { c.begin = -1; });
    with([](Call &c) { c.end = 3; });
    with([](Call &c) { c.begin = 2, c.end = 1; });
}

TEST(SoftmaxLossStatus, InvalidHyperparameter) {
    const auto with = [](auto change) {
        Call call;
        change(call);
        call.expect(ABSGD_INVALID_HYPERPARAMETER);
    };
    const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
    for (const double scale : {0.0, -1.0, inf, nan}) with([&](Call &c) { c.spec.scale = scale; });
    for (const double gamma : {-1.0, inf, nan}) {
        with([&](Call &c) { c.spec.focal_gamma = gamma; });
    }
    for (const double smoothing : {-0.1, 1.1, nan}) {
        with([&](Call &c) { c.spec.label_smoothing = smoothing; });
    }
    with([](Call &c) { c.spec.focal_gamma = 1.0, c.spec.label_smoothing = 0.1; });
    with([](Call &c) { // a margin below 0, under probabilities
        c.values[1] = -1.0f;
        c.spec.margin = c.values.data();
        c.target = nullptr, c.soft_target = c.soft.data();
    });
}

TEST(SoftmaxLossStatus, TargetOutOfRange) {
    for (const int64_t target : {int64_t{-1}, int64_t{3}, std::numeric_limits<int64_t>::min()}) {
        Call call;
        call.classes[1] = target;
        call.expect(ABSGD_TARGET_OUT_OF_RANGE);
        call.end = 1; // only the targets of [begin, end) are looked at
        EXPECT_EQ(call.forward(), ABSGD_OK);
    }
}

TEST(SoftmaxLossStatus, EmptyWorkNeedsNoPointers) {
    const absgd_softmax_loss spec = {0, 3, 1, nullptr, nullptr, nullptr, 1.0, 0.0, 0.0, IGNORED};
    EXPECT_EQ(absgd_softmax_loss_forward(ABSGD_FLOAT32, &spec, nullptr, nullptr, nullptr, nullptr,
                                         nullptr, nullptr, 0, 0),
              ABSGD_OK);
    EXPECT_EQ(absgd_softmax_loss_backward(ABSGD_FLOAT32, &spec, nullptr, nullptr, nullptr, nullptr,
                                          nullptr, nullptr, nullptr, 0, 0),
              ABSGD_OK);
}

} // namespace
