// half.h against torch's conversions: every load, and stores on and beside every rounding boundary.
#include "half.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

namespace {

uint32_t bits(float x) { return absgd_bits(x); }

template <typename Half> void expect_load(uint16_t pattern, float actual) {
    const float expected = static_cast<float>(Half(pattern, Half::from_bits()));
    EXPECT_TRUE(bits(actual) == bits(expected) || (std::isnan(actual) && std::isnan(expected)))
        << std::hex << pattern << ": " << actual << ", torch: " << expected;
}

template <typename Half> void expect_store(float x, uint16_t actual) {
    const Half expected = x;
    const bool both_nan =
        std::isnan(x) && std::isnan(static_cast<float>(Half(actual, Half::from_bits())));
    EXPECT_TRUE(actual == expected.x || both_nan)
        << x << ": " << std::hex << actual << ", torch: " << expected.x;
}

// Around each value of 16 bits, and around the middle between it and its neighbour.
template <typename Half> void expect_stores(uint16_t (*store)(float)) {
    for (uint32_t pattern = 0; pattern <= 0xffff; pattern++) {
        const float x = static_cast<float>(Half(static_cast<uint16_t>(pattern), Half::from_bits()));
        const float y =
            static_cast<float>(Half(static_cast<uint16_t>(pattern + 1), Half::from_bits()));
        const float middle = x + (y - x) / 2;
        for (const float centre : {x, middle}) {
            for (const float near :
                 {std::nextafterf(centre, -INFINITY), centre, std::nextafterf(centre, INFINITY)}) {
                expect_store<Half>(near, store(near));
            }
        }
    }
    for (const float x : {INFINITY, -INFINITY, NAN, -NAN, 65504.0f, 65519.0f, 65520.0f, 65536.0f,
                          3.4e38f, -3.4e38f, 1e-45f, -1e-45f, 5.9e-8f, 2.9e-8f, 0.0f, -0.0f}) {
        expect_store<Half>(x, store(x));
    }
    for (uint64_t pattern = 0; pattern <= 0xffffffff; pattern += 35521) { // odd: all low bits
        const float x = absgd_from_bits(static_cast<uint32_t>(pattern));
        expect_store<Half>(x, store(x));
    }
}

uint16_t f16_store(float x) { return absgd_f16_store(x); }
uint16_t bf16_store(float x) { return absgd_bf16_store(x); }

TEST(Half, EveryLoad) {
    for (uint32_t pattern = 0; pattern <= 0xffff; pattern++) {
        const uint16_t h = static_cast<uint16_t>(pattern);
        expect_load<c10::Half>(h, absgd_f16_load(h));
        expect_load<c10::BFloat16>(h, absgd_bf16_load(h));
    }
}

TEST(Half, StoresOfFloat16) { expect_stores<c10::Half>(f16_store); }
TEST(Half, StoresOfBfloat16) { expect_stores<c10::BFloat16>(bf16_store); }

} // namespace
