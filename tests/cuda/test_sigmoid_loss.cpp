/* The sigmoid losses of absgd_cuda.h against those of absgd.h. */
#include "absgd_cuda.h"
#include "device_array.h"

#include <array>

namespace {

constexpr double UNKNOWN = -1.0;

/* A loss over random logits, as values; what is empty is NULL. */
struct Problem {
    absgd_dtype dtype;
    int64_t samples, classes, inner;
    std::vector<double> logits, target, weight, pos_weight;
    double label_smoothing = 0.0, alpha = -1.0, focal_gamma = 0.0;
    bool per_sample = false;

    int64_t losses() const { return per_sample ? samples : samples * classes * inner; }

    absgd_sigmoid_loss spec(const void *w, const void *w_pos) const {
        return {samples,         classes, inner,       w,       w_pos,
                label_smoothing, alpha,   focal_gamma, UNKNOWN, per_sample};
    }
};

std::vector<Problem> problems(absgd_dtype dtype, int64_t samples, int64_t classes, int64_t inner) {
    Problem p;
    p.dtype = dtype;
    p.samples = samples;
    p.classes = classes;
    p.inner = inner;
    p.logits = normal_values(samples * classes * inner, 1, 0.0, 3.0);
    std::mt19937 random(2);
    for (size_t i = 0; i < p.logits.size(); i++) {
        const int kind = static_cast<int>(random() % 4);
        p.target.push_back(kind == 3 ? UNKNOWN : kind / 2.0); /* 0, ½, 1 and unknown */
    }
    std::vector<Problem> all(6, p);
    all[1].weight = normal_values(classes, 3, 2.0, 0.3);
    all[1].pos_weight = normal_values(classes, 4, 2.0, 0.3);
    all[1].per_sample = true;
    all[2].label_smoothing = 0.2;
    all[2].per_sample = true;
    all[3].alpha = 0.25;
    all[3].focal_gamma = 2.0;
    all[4] = all[1];
    all[4].focal_gamma = 0.7;
    all[5].alpha = 0.9;
    all[5].per_sample = true;
    return all;
}

struct Result {
    std::vector<double> loss, grad;
};

std::vector<double> upstream_of(const Problem &p) { return normal_values(p.losses(), 99); }

Result on_cpu(const Problem &p) {
    const absgd_dtype A = arithmetic_type(p.dtype);
    const Bytes logits = encode(p.dtype, p.logits), target = encode(A, p.target),
                weight = encode(A, p.weight), pos_weight = encode(A, p.pos_weight),
                upstream = encode(A, upstream_of(p));
    const absgd_sigmoid_loss spec = p.spec(weight.empty() ? nullptr : weight.data(),
                                           pos_weight.empty() ? nullptr : pos_weight.data());
    const int64_t n = p.losses();
    Bytes loss(n * size_of(A)), known(loss.size()), grad(logits.size());
    EXPECT_EQ(absgd_sigmoid_loss_forward(p.dtype, &spec, logits.data(), target.data(), loss.data(),
                                         known.data(), 0, n),
              ABSGD_OK);
    EXPECT_EQ(absgd_sigmoid_loss_backward(p.dtype, &spec, logits.data(), target.data(),
                                          known.data(), upstream.data(), grad.data(), 0, n),
              ABSGD_OK);
    return {decode(A, loss), decode(p.dtype, grad)};
}

/* factor 0 is none */
Result on_device(const Problem &p, double factor = 0.0) {
    const absgd_dtype A = arithmetic_type(p.dtype);
    const size_t n = p.losses();
    const DeviceArray<char> logits(encode(p.dtype, p.logits)), target(encode(A, p.target)),
        weight(encode(A, p.weight)), pos_weight(encode(A, p.pos_weight)),
        upstream(encode(A, upstream_of(p))), loss(Bytes(n * size_of(A))),
        known(Bytes(n * size_of(A))), grad(Bytes(p.logits.size() * size_of(p.dtype))),
        grad_factor(encode(A, {factor}));
    const absgd_sigmoid_loss spec = p.spec(p.weight.empty() ? nullptr : weight.data(),
                                           p.pos_weight.empty() ? nullptr : pos_weight.data());
    EXPECT_EQ(absgd_sigmoid_loss_forward_cuda(p.dtype, &spec, logits.data(), target.data(),
                                              loss.data(), known.data(), nullptr),
              ABSGD_OK);
    EXPECT_EQ(absgd_sigmoid_loss_backward_cuda(
                  p.dtype, &spec, logits.data(), target.data(), known.data(), upstream.data(),
                  factor == 0.0 ? nullptr : grad_factor.data(), grad.data(), nullptr),
              ABSGD_OK);
    return {decode(A, loss.get()), decode(p.dtype, grad.get())};
}

class CudaSigmoidLoss : public testing::TestWithParam<absgd_dtype> {};

TEST_P(CudaSigmoidLoss, EveryLossIsTheCpus) {
    const double of_type = epsilon(GetParam()), of_sums = epsilon(arithmetic_type(GetParam()));
    for (const auto &[samples, classes, inner] : {std::array<int64_t, 3>{1, 1, 1},
                                                  {37, 5, 1},
                                                  {3, 700, 1},
                                                  {4, 3, 50},
                                                  {2, 0, 1},
                                                  {0, 3, 1}}) {
        for (const Problem &p : problems(GetParam(), samples, classes, inner)) {
            const Result got = on_device(p), wanted = on_cpu(p);
            expect_close(got.loss, wanted.loss, 20 * of_sums, 20 * of_sums, "loss");
            expect_close(got.grad, wanted.grad, 2 * of_type + 20 * of_sums, 20 * of_sums,
                         "gradient");
        }
    }
}

TEST_P(CudaSigmoidLoss, AFactorMultipliesAllOfGradLoss) {
    for (const Problem &p : problems(GetParam(), 5, 7, 1)) {
        Result wanted = on_device(p);
        for (double &g : wanted.grad) g *= 4.0;
        expect_close(on_device(p, 4.0).grad, wanted.grad, 0.0, 1e-6, "gradient");
    }
}

TEST_P(CudaSigmoidLoss, ATargetOutOfRangeGivesNan) {
    for (const double bad : {-0.5, 1.5, -2.0, NOT_A_NUMBER}) {
        Problem p = problems(GetParam(), 2, 3, 1)[0];
        p.target = {0, 1, bad, 1, 0, UNKNOWN};
        Result got = on_device(p);
        for (size_t i = 0; i < 6; i++) {
            EXPECT_EQ(std::isnan(got.loss[i]), i == 2);
            EXPECT_EQ(std::isnan(got.grad[i]), i == 2);
        }
        p.per_sample = true;
        got = on_device(p);
        EXPECT_TRUE(std::isnan(got.loss[0]));
        EXPECT_FALSE(std::isnan(got.loss[1]));
    }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaSigmoidLoss, testing::ValuesIn(DTYPES));

TEST(CudaSigmoidLossTargets, ATargetThatARoundingPutOutsideIsAsOneInside) {
    for (double gamma : {0.0, 0.5, 1.5, 2.0}) {
        Problem p = problems(ABSGD_FLOAT32, 6, 1, 1)[3];
        p.focal_gamma = gamma;
        p.logits = {17.0, 12.0, 30.0, -17.0, -12.0, -30.0};
        p.target = {1 + 1.2e-7, 1 + 9e-6, 1 + 1.2e-7, -1e-9, -9e-6, -1e-9};
        for (const Result &got : {on_cpu(p), on_device(p)}) {
            for (size_t i = 0; i < 6; i++) {
                EXPECT_LT(std::abs(got.loss[i]), 1e-3) << "gamma " << gamma << ", " << i;
                EXPECT_LT(std::abs(got.grad[i]), 1e-3) << "gamma " << gamma << ", " << i;
            }
        }
    }
}

TEST(CudaSigmoidLossArguments, AreChecked) {
    const DeviceArray<float> x(std::vector<float>(3));
    absgd_sigmoid_loss spec = {1, 3, 1, nullptr, nullptr, 0.0, -1.0, 0.0, UNKNOWN, 1};
    const auto forward = [&](const void *logits, void *known) {
        return absgd_sigmoid_loss_forward_cuda(ABSGD_FLOAT32, &spec, logits, x.data(), x.data(),
                                               known, nullptr);
    };
    EXPECT_EQ(forward(nullptr, x.data()), ABSGD_NULL_POINTER);
    EXPECT_EQ(forward(x.data(), nullptr), ABSGD_NULL_POINTER);
    spec.focal_gamma = -1.0;
    EXPECT_EQ(forward(x.data(), x.data()), ABSGD_INVALID_HYPERPARAMETER);
    spec.focal_gamma = 0.0;
    spec.samples = 0;
    EXPECT_EQ(forward(nullptr, nullptr), ABSGD_OK);
}

} // namespace
