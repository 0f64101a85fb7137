/* The search for λ of absgd_cuda.h against that of absgd.h, and the sums of a weighted loss. */
#include "absgd_cuda.h"
#include "device_array.h"

namespace {

class CudaLam : public testing::TestWithParam<absgd_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaLam, testing::ValuesIn(DTYPES));

double lam_on_cpu(absgd_dtype dtype, const Bytes &losses, const uint8_t *mask, int64_t n,
                  const absgd_lam_rule &rule, double lam) {
    absgd_lam_search search = {};
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        absgd_lam_row row;
        EXPECT_EQ(absgd_lam_sums(dtype, losses.data(), mask, n, &rule, &search, &row), ABSGD_OK);
        EXPECT_EQ(absgd_lam_round(&rule, &row, 1, &search), ABSGD_OK);
    }
    EXPECT_EQ(absgd_lam_update(&rule, &search, &lam), ABSGD_OK);
    return lam;
}

const absgd_lam_rule RULES[] = {{ABSGD_LAM_EFFECTIVE_SAMPLES, 0.5, 1, 1, 1e-3, 1e3},
                                {ABSGD_LAM_KL_RADIUS, 0.2, -1, 0.3, 1e-3, 1e3}};

std::vector<uint8_t> every_third_masked(size_t n) {
    std::vector<uint8_t> mask(n);
    for (size_t i = 0; i < n; i++) mask[i] = i % 3 != 0;
    return mask;
}

TEST_P(CudaLam, FollowFindsTheCpusLambda) {
    for (int64_t n : {1, 100, 4100}) { /* 4100: three chunks */
        for (const absgd_lam_rule &rule : RULES) {
            for (bool masked : {false, true}) {
                if (masked && n != 100) continue; /* each is some thirty launches' work */
                SCOPED_TRACE(testing::Message() << "n = " << n << ", kind " << rule.kind);
                const Bytes losses = encode(GetParam(), normal_values(n, 1, 2.0));
                const std::vector<uint8_t> mask = every_third_masked(n);
                const double start = rule.sign * 3.0;
                const double wanted =
                    lam_on_cpu(GetParam(), losses, masked ? mask.data() : nullptr, n, rule, start);
                const DeviceArray<char> on(losses);
                const DeviceArray<uint8_t> mask_(mask);
                const DeviceArray<absgd_lam_rule> rule_(rule);
                const DeviceArray<absgd_lam_row> scratch(std::vector<absgd_lam_row>(8));
                const DeviceArray<double> lam(start);
                ASSERT_EQ(absgd_follow_lam_cuda(GetParam(), on.data(),
                                                masked ? mask_.data() : nullptr, n, rule_.data(),
                                                scratch.data(), lam.data(), nullptr),
                          ABSGD_OK);
                expect_close(lam.get(), {wanted}, 1e-9, 0.0, "lam");
            }
        }
    }
}

TEST_P(CudaLam, TheSearchInPiecesIsTheSame) {
    const int64_t n = 3000;
    const absgd_lam_rule rule = RULES[0];
    const Bytes losses = encode(GetParam(), normal_values(n, 2, 2.0));
    const DeviceArray<char> on(losses);
    const DeviceArray<absgd_lam_rule> rule_(rule);
    const DeviceArray<absgd_lam_search> search(absgd_lam_search{});
    const DeviceArray<absgd_lam_row> scratch(std::vector<absgd_lam_row>(2)), row(absgd_lam_row{});
    const DeviceArray<double> lam(1.0);
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        ASSERT_EQ(absgd_lam_sums_cuda(GetParam(), on.data(), nullptr, n, rule_.data(),
                                      search.data(), scratch.data(), row.data(), nullptr),
                  ABSGD_OK);
        ASSERT_EQ(absgd_lam_round_cuda(rule_.data(), row.data(), 1, search.data(), nullptr),
                  ABSGD_OK);
    }
    ASSERT_EQ(absgd_lam_update_cuda(rule_.data(), search.data(), lam.data(), nullptr), ABSGD_OK);
    expect_close(lam.get(), {lam_on_cpu(GetParam(), losses, nullptr, n, rule, 1.0)}, 1e-9, 0.0,
                 "lam");
}

TEST(CudaWeightedLoss, CountedAndDot) {
    const std::vector<int64_t> target = {3, -100, 0, -100, 7};
    const DeviceArray<int64_t> target_(target);
    const DeviceArray<uint8_t> mask(std::vector<uint8_t>(5, 9));
    ASSERT_EQ(absgd_counted_cuda(target_.data(), 5, -100, mask.data(), nullptr), ABSGD_OK);
    EXPECT_EQ(mask.get(), (std::vector<uint8_t>{1, 0, 1, 0, 1}));
    for (absgd_dtype dtype : {ABSGD_FLOAT32, ABSGD_FLOAT64}) {
        for (size_t n : {0, 1, 1000}) {
            const Bytes a = encode(dtype, normal_values(n, 1));
            const Bytes b = encode(dtype, normal_values(n, 2));
            const std::vector<double> x = decode(dtype, a), y = decode(dtype, b);
            double wanted = 0.0;
            for (size_t i = 0; i < n; i++) wanted += x[i] * y[i];
            const DeviceArray<char> a_(a), b_(b), total(Bytes(size_of(dtype)));
            ASSERT_EQ(absgd_dot_cuda(dtype, a_.data(), b_.data(), n, total.data(), nullptr),
                      ABSGD_OK);
            expect_close(decode(dtype, total.get()), {wanted}, epsilon(dtype), 1e-13, "dot");
        }
    }
}

} // namespace
