/* From logits to the scalar to differentiate: one launch against its parts, and the parts. */
#include "absgd_cuda.h"
#include "device_array.h"

#include <array>

namespace {

std::vector<uint8_t> every_third_masked(size_t n) {
    std::vector<uint8_t> mask(n);
    for (size_t i = 0; i < n; i++) mask[i] = i % 3 != 1;
    return mask;
}

/* A batch of a loss with all that may come with it. */
struct Problem {
    absgd_dtype dtype;
    int64_t outer, classes, inner;
    bool is_soft, has_measure, has_rule;
    int64_t samples() const { return outer * inner; }
};

/* Its arguments on the device, and what a run leaves there. */
class WeightedLoss {
  public:
    explicit WeightedLoss(const Problem &p)
        : p_(p), wide_(arithmetic_type(p.dtype)), n_(p.samples()),
          logits_(encode(p.dtype, normal_values(n_ * p.classes, 1, 0.0, 2.0))),
          soft_(encode(wide_, std::vector<double>(n_ * p.classes, 1.0 / p.classes))),
          target_(targets()), mask_(every_third_masked(n_)),
          weight_(encode(wide_, std::vector<double>(n_, 2.0))),
          class_weight_(encode(wide_, weights_of_classes())),
          lam_rule_(absgd_lam_rule{1, 0.6, 1, 1, 1e-12, 1e6}), lam_(1.0), log_s_(NAN),
          log_s_lam_(1.0), reports_(std::vector<absgd_report>(2)),
          counts_(std::vector<uint8_t>(n_)), measure_(Bytes(n_ * size_of(wide_))),
          scratch_(std::vector<absgd_stats>(chunks())),
          lam_scratch_(std::vector<absgd_lam_row>(2 * chunks())), loss_(measure_.get()),
          saved_(Bytes(ABSGD_LOSS_SAVED * n_ * size_of(wide_))), weights_(measure_.get()),
          coefficients_(measure_.get()), total_(Bytes(size_of(wide_))) {}

    void in_one_launch() {
        absgd_weighting w = {};
        w.mask = mask();
        w.weight = weight();
        w.class_weight = class_weight();
        w.lam_rule = p_.has_rule ? lam_rule_.data() : nullptr;
        w.lam = lam_.data();
        w.rule = &rule;
        w.log_s = log_s_.data();
        w.log_s_lam = log_s_lam_.data();
        w.reports = reports_.data();
        w.counts = counts();
        w.measure = measure();
        w.scratch = scratch_.data();
        w.lam_scratch = lam_scratch_.data();
        w.weights = weights_.data();
        w.coefficients = coefficients_.data();
        w.total = total_.data();
        ASSERT_EQ(absgd_weighted_softmax_loss_cuda(p_.dtype, &spec(), logits_.data(), target(),
                                                   soft(), &w, loss_.data(), saved_.data(),
                                                   nullptr),
                  ABSGD_OK);
    }

    void in_parts() {
        ASSERT_EQ(absgd_softmax_loss_forward_cuda(p_.dtype, &spec(), logits_.data(), target(),
                                                  soft(), loss_.data(), saved_.data(), nullptr),
                  ABSGD_OK);
        ASSERT_EQ(absgd_base_measure_cuda(p_.dtype, &spec(), target(), soft(), mask(), weight(),
                                          class_weight(), counts(), measure(), nullptr),
                  ABSGD_OK);
        const uint8_t *counted = counts() ? counts() : mask();
        if (p_.has_rule) {
            ASSERT_EQ(absgd_follow_lam_cuda(wide_, loss_.data(), counted, measure(), n_,
                                            lam_rule_.data(), lam_scratch_.data(), lam_.data(),
                                            nullptr),
                      ABSGD_OK);
        }
        ASSERT_EQ(absgd_weigh_cuda(wide_, loss_.data(), counted, measure(), n_, nullptr, 0,
                                   scratch_.data(), lam_.data(), &rule, log_s_.data(),
                                   log_s_lam_.data(), reports_.data(), 1.0, weights_.data(),
                                   coefficients_.data(), nullptr),
                  ABSGD_OK);
        ASSERT_EQ(absgd_dot_cuda(wide_, coefficients_.data(), loss_.data(), counted, n_,
                                 total_.data(), nullptr),
                  ABSGD_OK);
    }

    /* All results, as bits. */
    std::vector<Bytes> results() const {
        std::vector<Bytes> all = {loss_.get(), saved_.get(), weights_.get(), coefficients_.get(),
                                  total_.get()};
        for (const DeviceArray<double> *x : {&lam_, &log_s_, &log_s_lam_}) {
            Bytes bits(sizeof(double));
            put(bits, 0, x->get()[0]);
            all.push_back(bits);
        }
        Bytes bits(2 * sizeof(absgd_report));
        for (size_t i = 0; i < 2; i++) put(bits, i, reports_.get()[i]);
        all.push_back(bits);
        return all;
    }

    double total() const { return decode(wide_, total_.get())[0]; }

    absgd_rule rule = {0.9, 1.0, NAN, 1.5, 1, 1};

  private:
    const absgd_softmax_loss &spec() { /* with soft targets, once of terms that differ by class */
        const double focal_gamma = p_.is_soft && p_.has_rule ? 2.0 : 0.0;
        spec_ = {n_, p_.classes, p_.inner, nullptr, nullptr, nullptr, 1.0, focal_gamma, 0.0, -100};
        return spec_;
    }
    std::vector<int64_t> targets() const {
        std::vector<int64_t> y(n_);
        for (int64_t i = 0; i < n_; i++) y[i] = i % 7 == 3 ? -100 : i * 31 % p_.classes;
        return y;
    }
    std::vector<double> weights_of_classes() const {
        std::vector<double> w(p_.classes);
        for (size_t c = 0; c < w.size(); c++) w[c] = 0.5 + 0.25 * static_cast<double>(c % 5);
        return w;
    }
    int64_t chunks() const { return (n_ + ABSGD_CUDA_CHUNK - 1) / ABSGD_CUDA_CHUNK; }
    const int64_t *target() const { return p_.is_soft ? nullptr : target_.data(); }
    const void *soft() const { return p_.is_soft ? soft_.data() : nullptr; }
    const uint8_t *mask() const { return p_.has_measure ? mask_.data() : nullptr; }
    const void *weight() const { return p_.has_measure ? weight_.data() : nullptr; }
    const void *class_weight() const { return p_.has_measure ? class_weight_.data() : nullptr; }
    uint8_t *counts() const { return p_.is_soft ? nullptr : counts_.data(); }
    void *measure() const { return p_.has_measure ? measure_.data() : nullptr; }

    Problem p_;
    absgd_dtype wide_;
    int64_t n_;
    absgd_softmax_loss spec_;
    DeviceArray<char> logits_, soft_;
    DeviceArray<int64_t> target_;
    DeviceArray<uint8_t> mask_;
    DeviceArray<char> weight_, class_weight_;
    DeviceArray<absgd_lam_rule> lam_rule_;
    DeviceArray<double> lam_, log_s_, log_s_lam_;
    DeviceArray<absgd_report> reports_;
    DeviceArray<uint8_t> counts_;
    DeviceArray<char> measure_;
    DeviceArray<absgd_stats> scratch_;
    DeviceArray<absgd_lam_row> lam_scratch_;
    DeviceArray<char> loss_, saved_, weights_, coefficients_, total_;
};

class CudaWeightedLoss : public testing::TestWithParam<absgd_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaWeightedLoss, testing::ValuesIn(DTYPES));

TEST_P(CudaWeightedLoss, OneLaunchHasTheBitsOfItsParts) {
    /* No sample, one, one chunk, two for three blocks, three; a block a sample; dense. */
    for (const auto &[outer, classes, inner] : {std::array<int64_t, 3>{0, 3, 1},
                                                {1, 5, 1},
                                                {300, 20, 1},
                                                {2100, 20, 1},
                                                {4200, 2, 1},
                                                {7, 1100, 1},
                                                {20, 3, 40}}) {
        for (int kind : {0, 3, 5, 6}) { /* each of the three with and without each other */
            const Problem p = {GetParam(),      outer,           classes,        inner,
                               (kind & 1) != 0, (kind & 2) != 0, (kind & 4) != 0};
            SCOPED_TRACE(testing::Message()
                         << outer << " x " << classes << " x " << inner << ", kind " << kind);
            WeightedLoss one(p), parts(p);
            for (int step = 0; step < 2; step++) {
                one.in_one_launch();
                parts.in_parts();
            }
            EXPECT_TRUE(std::isfinite(one.total()));
            EXPECT_EQ(one.total() == 0.0, outer == 0);
            EXPECT_EQ(one.results(), parts.results());
        }
    }
}

TEST(CudaWeightedLossArguments, AreChecked) {
    const DeviceArray<double> d(std::vector<double>(8)); /* no call below gets to a launch */
    const DeviceArray<int64_t> y(int64_t{0});
    const DeviceArray<absgd_report> reports(std::vector<absgd_report>(2));
    const absgd_rule rule = {0.9, 1.0, NAN, 0, 0, 0}, bad_rule = {0.0, 1.0, NAN, 0, 0, 0};
    absgd_softmax_loss spec = {1, 2, 1, nullptr, nullptr, nullptr, 1.0, 0.0, 0.0, -100};
    absgd_weighting w = {};
    w.lam = w.log_s = w.log_s_lam = d.data();
    w.rule = &rule;
    w.reports = reports.data();
    w.weights = w.coefficients = w.total = d.data();
    const auto call = [&](const absgd_weighting *weighting) {
        return absgd_weighted_softmax_loss_cuda(ABSGD_FLOAT64, &spec, nullptr, y.data(), nullptr,
                                                weighting, d.data(), d.data(), nullptr);
    };
    EXPECT_EQ(call(nullptr), ABSGD_NULL_POINTER);
    EXPECT_EQ(call(&w), ABSGD_NULL_POINTER); /* the logits */
    w.rule = &bad_rule;
    EXPECT_EQ(call(&w), ABSGD_INVALID_HYPERPARAMETER);
    w.rule = &rule;
    w.class_weight = d.data(); /* and no measure */
    EXPECT_EQ(call(&w), ABSGD_NULL_POINTER);
    w.class_weight = nullptr;
    spec.samples = ABSGD_CUDA_CHUNK + 1; /* and no scratch */
    EXPECT_EQ(call(&w), ABSGD_NULL_POINTER);
    spec.scale = 0.0;
    EXPECT_EQ(call(&w), ABSGD_INVALID_HYPERPARAMETER);
}

TEST(CudaWeightedLossParts, TheBaseMeasureOfClassesAndSamples) {
    const std::vector<int64_t> target = {3, -100, 0, 1, 7};
    const DeviceArray<int64_t> target_(target);
    const DeviceArray<uint8_t> mask(std::vector<uint8_t>{1, 1, 0, 1, 1}), counts(mask.get());
    const std::vector<double> of_classes = {0.5, 1, 2, 3}, of_samples = {2, 2, 2, 2, 2};
    const absgd_softmax_loss spec = {5, 4, 1, nullptr, nullptr, nullptr, 1.0, 0.0, 0.0, -100};
    for (absgd_dtype dtype : {ABSGD_FLOAT32, ABSGD_FLOAT64}) {
        const DeviceArray<char> class_weight(encode(dtype, of_classes)),
            weight(encode(dtype, of_samples)), measure(weight.get());
        ASSERT_EQ(absgd_base_measure_cuda(dtype, &spec, target_.data(), nullptr, mask.data(),
                                          weight.data(), class_weight.data(), counts.data(),
                                          measure.data(), nullptr),
                  ABSGD_OK);
        EXPECT_EQ(counts.get(), (std::vector<uint8_t>{1, 0, 0, 1, 1}));
        expect_close(decode(dtype, measure.get()), {6, 2, 1, 2, NOT_A_NUMBER}, 0.0, 0.0, "hard");
    }
}

TEST(CudaWeightedLossParts, TheBaseMeasureOfSoftTargets) {
    /* (N, C, inner) = (2, 3, 2) */
    const std::vector<double> q = {0.5, 1, 0.25, 0, 0.25, 0, 0, 0, 0, 0.5, 1, 0.5};
    const DeviceArray<char> q_(encode(ABSGD_FLOAT32, q)),
        class_weight(encode(ABSGD_FLOAT32, {1, 2, 4})), measure(Bytes(4 * sizeof(float)));
    const absgd_softmax_loss spec = {4, 3, 2, nullptr, nullptr, nullptr, 1.0, 0.0, 0.0, -100};
    ASSERT_EQ(absgd_base_measure_cuda(ABSGD_FLOAT32, &spec, nullptr, q_.data(), nullptr, nullptr,
                                      class_weight.data(), nullptr, measure.data(), nullptr),
              ABSGD_OK);
    expect_close(decode(ABSGD_FLOAT32, measure.get()), {2, 1, 4, 3}, 0.0, 0.0, "soft");
}

TEST(CudaWeightedLossParts, Dot) {
    for (absgd_dtype dtype : {ABSGD_FLOAT32, ABSGD_FLOAT64}) {
        for (size_t n : {0, 1, 1000}) {
            std::vector<uint8_t> mask = every_third_masked(n);
            std::vector<double> x = normal_values(n, 1);
            for (size_t i = 0; i < n; i++) x[i] = mask[i] ? x[i] : NAN;
            const Bytes a = encode(dtype, x), b = encode(dtype, normal_values(n, 2));
            x = decode(dtype, a);
            const std::vector<double> y = decode(dtype, b);
            double wanted = 0.0;
            for (size_t i = 0; i < n; i++) wanted += mask[i] ? x[i] * y[i] : 0.0;
            const DeviceArray<char> a_(a), b_(b), total(Bytes(size_of(dtype)));
            const DeviceArray<uint8_t> mask_(mask);
            ASSERT_EQ(
                absgd_dot_cuda(dtype, a_.data(), b_.data(), mask_.data(), n, total.data(), nullptr),
                ABSGD_OK);
            expect_close(decode(dtype, total.get()), {wanted}, epsilon(dtype), 1e-13, "dot");
        }
    }
}

} // namespace
