/* The softmax losses of absgd_cuda.h against those of absgd.h. */
#include "absgd_cuda.h"
#include "device_array.h"

namespace {

/* A loss over random logits, as values; what is empty is NULL. */
struct Problem {
    absgd_dtype dtype;
    int64_t outer, classes, inner; /* N, C, d1·d2… */
    std::vector<double> logits, soft_target, weight, margin, offset;
    std::vector<int64_t> target;
    double scale = 1.0, focal_gamma = 0.0, label_smoothing = 0.0;

    int64_t samples() const { return outer * inner; }

    absgd_softmax_loss spec(const void *w, const void *m, const void *o) const {
        return {samples(), classes, inner, w, m, o, scale, focal_gamma, label_smoothing, -100};
    }
};

Problem cross_entropy(absgd_dtype dtype, int64_t outer, int64_t classes, int64_t inner,
                      unsigned seed) {
    Problem p;
    p.dtype = dtype;
    p.outer = outer;
    p.classes = classes;
    p.inner = inner;
    p.logits = normal_values(outer * classes * inner, seed, 0.0, 3.0);
    std::mt19937 random(seed);
    for (int64_t i = 0; i < p.samples(); i++) {
        p.target.push_back(i % 7 == 3 ? -100 : static_cast<int64_t>(random() % classes));
    }
    return p;
}

std::vector<double> positive(size_t n, unsigned seed) {
    std::vector<double> values = normal_values(n, seed);
    for (double &x : values) x = std::exp(0.5 * x);
    return values;
}

/* The losses of the package, each a variant of one problem. */
std::vector<Problem> variants(const Problem &p) {
    std::vector<Problem> all(10, p);
    all[1].weight = positive(p.classes, 5);
    all[1].label_smoothing = 0.1;
    all[2].focal_gamma = 2.0;
    all[2].weight = positive(p.classes, 6);
    all[3].margin = positive(p.classes, 7); /* LDAM, with smoothing */
    all[3].scale = 3.0;
    all[3].label_smoothing = 0.2;
    all[4].offset = normal_values(p.classes, 8); /* logit adjustment */
    all[5].target.clear();
    all[5].soft_target = positive(p.logits.size(), 9);
    for (double &q : all[5].soft_target) q /= static_cast<double>(p.classes);
    all[6] = all[5];
    all[6].label_smoothing = 0.3;
    all[6].weight = positive(p.classes, 10);
    all[6].offset = normal_values(p.classes, 11);
    all[7] = all[5];
    for (size_t i = 0; i < all[7].soft_target.size(); i += 2) all[7].soft_target[i] = 0;
    all[8] = all[9] = all[7];
    all[7].focal_gamma = 2.0;
    all[7].weight = positive(p.classes, 12);
    all[8].margin = positive(p.classes, 13);
    all[8].scale = 3.0;
    all[8].label_smoothing = 0.2;
    all[8].weight = positive(p.classes, 14);
    all[9].margin = positive(p.classes, 15);
    all[9].focal_gamma = 1.5;
    all[9].offset = normal_values(p.classes, 16);
    return all;
}

struct Result {
    std::vector<double> loss, grad;
};

std::vector<double> upstream_of(const Problem &p) { return normal_values(p.samples(), 99); }

template <class T> const T *or_null(const std::vector<T> &v) {
    return v.empty() ? nullptr : v.data();
}

Result on_cpu(const Problem &p) {
    const absgd_dtype A = arithmetic_type(p.dtype);
    const Bytes logits = encode(p.dtype, p.logits), weight = encode(A, p.weight),
                margin = encode(A, p.margin), offset = encode(A, p.offset),
                q = encode(A, p.soft_target), upstream = encode(A, upstream_of(p));
    const absgd_softmax_loss spec = p.spec(or_null(weight), or_null(margin), or_null(offset));
    const int64_t n = p.samples();
    Bytes loss(n * size_of(A)), saved(ABSGD_LOSS_SAVED * loss.size()), grad(logits.size());
    EXPECT_EQ(absgd_softmax_loss_forward(p.dtype, &spec, logits.data(), or_null(p.target),
                                         or_null(q), loss.data(), saved.data(), nullptr, 0, n),
              ABSGD_OK);
    EXPECT_EQ(absgd_softmax_loss_backward(p.dtype, &spec, logits.data(), or_null(p.target),
                                          or_null(q), saved.data(), nullptr, upstream.data(),
                                          grad.data(), 0, n),
              ABSGD_OK);
    return {decode(A, loss), decode(p.dtype, grad)};
}

/* Logits and gradients lie `shift` elements into their memory; factor 0 is none. */
Result on_device(const Problem &p, size_t shift = 0, double factor = 0.0) {
    const absgd_dtype A = arithmetic_type(p.dtype);
    const size_t skip = shift * size_of(p.dtype), n = p.samples();
    Bytes logits_bytes = encode(p.dtype, p.logits);
    logits_bytes.insert(logits_bytes.begin(), skip, 0);
    const DeviceArray<char> logits(logits_bytes), weight(encode(A, p.weight)),
        margin(encode(A, p.margin)), offset(encode(A, p.offset)), q(encode(A, p.soft_target)),
        upstream(encode(A, upstream_of(p))), loss(Bytes(n * size_of(A))),
        saved(Bytes(ABSGD_LOSS_SAVED * n * size_of(A))), grad(Bytes(logits_bytes.size())),
        grad_factor(encode(A, {factor}));
    const DeviceArray<int64_t> target(p.target);
    const absgd_softmax_loss spec = p.spec(p.weight.empty() ? nullptr : weight.data(),
                                           p.margin.empty() ? nullptr : margin.data(),
                                           p.offset.empty() ? nullptr : offset.data());
    const int64_t *y = p.target.empty() ? nullptr : target.data();
    const char *soft = p.soft_target.empty() ? nullptr : q.data();
    EXPECT_EQ(absgd_softmax_loss_forward_cuda(p.dtype, &spec, logits.data() + skip, y, soft,
                                              loss.data(), saved.data(), nullptr),
              ABSGD_OK);
    EXPECT_EQ(absgd_softmax_loss_backward_cuda(
                  p.dtype, &spec, logits.data() + skip, y, soft, saved.data(), upstream.data(),
                  factor == 0.0 ? nullptr : grad_factor.data(), grad.data() + skip, nullptr),
              ABSGD_OK);
    Bytes grad_bytes = grad.get();
    grad_bytes.erase(grad_bytes.begin(), grad_bytes.begin() + skip);
    return {decode(A, loss.get()), decode(p.dtype, grad_bytes)};
}

void expect_same(const Problem &p, const Result &got) {
    const Result wanted = on_cpu(p);
    const double arithmetic = 30 * epsilon(arithmetic_type(p.dtype));
    expect_close(got.loss, wanted.loss, arithmetic, arithmetic, "loss");
    expect_close(got.grad, wanted.grad, arithmetic + epsilon(p.dtype), arithmetic, "gradient");
}

class CudaLoss : public testing::TestWithParam<absgd_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaLoss, testing::ValuesIn(DTYPES));

TEST_P(CudaLoss, EveryLossAtAwkwardNumbersOfClasses) {
    /* Below, at and above what one lane, one warp and one block take at a time; multiples of 8 are
     * read in packs. */
    for (int64_t classes : {1, 2, 7, 8, 10, 100, 255, 256, 257, 1000, 1024, 1025, 2056, 8142}) {
        int index = 0;
        for (const Problem &p : variants(cross_entropy(GetParam(), 9, classes, 1, 1))) {
            SCOPED_TRACE(testing::Message() << classes << " classes, variant " << index++);
            expect_same(p, on_device(p));
        }
    }
}

TEST_P(CudaLoss, DenseTargets) {
    for (int64_t inner : {2, 5, 300}) {
        for (int64_t classes : {1, 3, 21}) {
            int index = 0;
            for (const Problem &p : variants(cross_entropy(GetParam(), 2, classes, inner, 2))) {
                SCOPED_TRACE(testing::Message()
                             << classes << " classes, inner " << inner << ", variant " << index++);
                expect_same(p, on_device(p));
            }
        }
    }
}

TEST_P(CudaLoss, UnalignedLogits) {
    for (int64_t classes : {16, 2048}) {
        const Problem p = cross_entropy(GetParam(), 5, classes, 1, 3);
        expect_same(p, on_device(p, 1));
    }
}

TEST_P(CudaLoss, AFactorMultipliesAllOfGradLoss) {
    for (const Problem &p : variants(cross_entropy(GetParam(), 5, 300, 1, 9))) {
        Result wanted = on_device(p);
        for (double &g : wanted.grad) g *= 4.0;
        expect_close(on_device(p, 0, 4.0).grad, wanted.grad, 0.0, 1e-6, "gradient");
    }
}

TEST_P(CudaLoss, ManySamples) {
    const Problem p = cross_entropy(GetParam(), 700, 10, 1, 4);
    expect_same(p, on_device(p));
}

TEST_P(CudaLoss, ExtremeLogits) {
    for (double far : {50.0, 2000.0}) { /* the target certain, and hopeless */
        Problem p = cross_entropy(GetParam(), 4, 6, 1, 5);
        p.target = {0, 1, 2, 3};
        p.logits.assign(24, 0.0);
        p.logits[0] = far;
        p.logits[7] = -far;
        p.logits[12] = p.logits[14] = far;
        for (const Problem &variant : variants(p)) expect_same(variant, on_device(variant));
    }
}

TEST_P(CudaLoss, NonFiniteLogitsStayInTheirSample) {
    Problem p = cross_entropy(GetParam(), 4, 300, 1, 6);
    p.target = {0, 1, 2, -100};
    p.logits[5] = NOT_A_NUMBER;
    p.logits[300 + 7] = INF;
    p.logits[600 + 9] = -INF;     /* a masked class is no error */
    p.logits[900] = NOT_A_NUMBER; /* of an ignored sample */
    const Result got = on_device(p);
    EXPECT_TRUE(std::isnan(got.loss[0]));
    EXPECT_FALSE(std::isfinite(got.loss[1]));
    EXPECT_TRUE(std::isfinite(got.loss[2]));
    EXPECT_EQ(got.grad[600 + 9], 0.0);
    EXPECT_EQ(got.loss[3], 0.0);
    for (int c = 0; c < 300; c++) ASSERT_EQ(got.grad[900 + c], 0.0);
}

TEST_P(CudaLoss, ATargetOutOfRangeGivesNan) {
    for (int64_t classes : {5, 2000}) {
        for (int64_t bad : {classes, int64_t{-1}, INT64_MIN, INT64_MAX}) {
            Problem p = cross_entropy(GetParam(), 3, classes, 1, 7);
            p.target = {1, bad, 2};
            const Result got = on_device(p);
            p.target[1] = -100;
            const Result wanted = on_cpu(p);
            EXPECT_TRUE(std::isnan(got.loss[1]));
            EXPECT_TRUE(is_close(got.loss[0], wanted.loss[0], 1e-5, 1e-5));
            EXPECT_TRUE(is_close(got.loss[2], wanted.loss[2], 1e-5, 1e-5));
            for (int64_t c = 0; c < classes; c++) ASSERT_TRUE(std::isnan(got.grad[classes + c]));
        }
    }
}

TEST_P(CudaLoss, HasTheSameBitsOnEveryRun) {
    const Problem p = variants(cross_entropy(GetParam(), 6, 3001, 1, 8))[3];
    const Result first = on_device(p), second = on_device(p);
    EXPECT_EQ(first.loss, second.loss);
    EXPECT_EQ(first.grad, second.grad);
}

TEST(CudaLossArguments, AreChecked) {
    const DeviceArray<double> d(std::vector<double>(8));
    const DeviceArray<int64_t> y(int64_t{0});
    absgd_softmax_loss spec = {1, 2, 1, nullptr, nullptr, nullptr, 1.0, 0.0, 0.0, -100};
    const auto forward = [&](const void *x, const int64_t *target, const void *q) {
        return absgd_softmax_loss_forward_cuda(ABSGD_FLOAT64, &spec, x, target, q, d.data(),
                                               d.data(), nullptr);
    };
    EXPECT_EQ(forward(nullptr, y.data(), nullptr), ABSGD_NULL_POINTER);
    EXPECT_EQ(forward(d.data(), nullptr, nullptr), ABSGD_NULL_POINTER);
    EXPECT_EQ(forward(d.data(), y.data(), d.data()), ABSGD_NULL_POINTER);
    spec.scale = 0.0;
    EXPECT_EQ(forward(d.data(), y.data(), nullptr), ABSGD_INVALID_HYPERPARAMETER);
    spec.scale = 1.0;
    spec.classes = 0;
    EXPECT_EQ(forward(d.data(), y.data(), nullptr), ABSGD_INVALID_SIZE);
    spec.classes = 2;
    spec.samples = 0;
    EXPECT_EQ(forward(nullptr, nullptr, nullptr), ABSGD_OK);
}

} // namespace
