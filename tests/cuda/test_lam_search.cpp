/* The search for λ of absgd_cuda.h against that of absgd.h, and the sums of a weighted loss. */
#include "absgd_cuda.h"
#include "device_array.h"

namespace {

class CudaLam : public testing::TestWithParam<absgd_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaLam, testing::ValuesIn(DTYPES));

double lam_on_cpu(absgd_dtype dtype, const Bytes &losses, const uint8_t *mask, const void *weight,
                  int64_t n, const absgd_lam_rule &rule, double lam) {
    absgd_lam_search search = {};
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        absgd_lam_row row;
        EXPECT_EQ(absgd_lam_sums(dtype, losses.data(), mask, weight, n, &rule, &search, &row),
                  ABSGD_OK);
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

/* A base measure, in which some samples have no part. */
Bytes some_weights(absgd_dtype dtype, size_t n) {
    std::vector<double> weight = normal_values(n, 7);
    for (size_t i = 0; i < n; i++) weight[i] = i % 5 == 4 ? 0.0 : std::exp(weight[i]);
    return encode(arithmetic_type(dtype), weight);
}

TEST_P(CudaLam, FollowFindsTheCpusLambda) {
    for (int64_t n : {1, 100, 4100}) { /* 4100: three chunks */
        for (const absgd_lam_rule &rule : RULES) {
            for (bool masked : {false, true}) {
                if (masked && n != 100) continue; /* each is some thirty launches' work */
                SCOPED_TRACE(testing::Message() << "n = " << n << ", kind " << rule.kind);
                const Bytes losses = encode(GetParam(), normal_values(n, 1, 2.0));
                const std::vector<uint8_t> mask = every_third_masked(n);
                const Bytes weight = some_weights(GetParam(), n);
                const double start = rule.sign * 3.0;
                const double wanted = lam_on_cpu(GetParam(), losses, masked ? mask.data() : nullptr,
                                                 masked ? weight.data() : nullptr, n, rule, start);
                const DeviceArray<char> weight_(weight);
                const DeviceArray<char> on(losses);
                const DeviceArray<uint8_t> mask_(mask);
                const DeviceArray<absgd_lam_rule> rule_(rule);
                const DeviceArray<absgd_lam_row> scratch(std::vector<absgd_lam_row>(8));
                const DeviceArray<double> lam(start);
                ASSERT_EQ(absgd_follow_lam_cuda(GetParam(), on.data(),
                                                masked ? mask_.data() : nullptr,
                                                masked ? weight_.data() : nullptr, n, rule_.data(),
                                                scratch.data(), lam.data(), nullptr),
                          ABSGD_OK);
                expect_close(lam.get(), {wanted}, is_large_on_cpu(GetParam(), n) ? 1e-5 : 1e-9, 0.0,
                             "lam");
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
        ASSERT_EQ(absgd_lam_sums_cuda(GetParam(), on.data(), nullptr, nullptr, n, rule_.data(),
                                      search.data(), scratch.data(), row.data(), nullptr),
                  ABSGD_OK);
        ASSERT_EQ(absgd_lam_round_cuda(rule_.data(), row.data(), 1, search.data(), nullptr),
                  ABSGD_OK);
    }
    ASSERT_EQ(absgd_lam_update_cuda(rule_.data(), search.data(), lam.data(), nullptr), ABSGD_OK);
    expect_close(lam.get(), {lam_on_cpu(GetParam(), losses, nullptr, nullptr, n, rule, 1.0)}, 1e-9,
                 0.0, "lam");
}

} // namespace
