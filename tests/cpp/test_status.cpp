// Every check of dispatch.c: its status, and that nothing was written. (The losses' checks are in
// test_softmax_loss.cpp.)
#include "absgd.h"
#include "torch_dtypes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace {

constexpr double INF = std::numeric_limits<double>::infinity();
constexpr absgd_rule RULE = {0.9, 1.0, NAN, 0, 0, 0};
constexpr absgd_sgd_options OPTIONS = {0.1, 0.9, 0, 0, 1, 0, 0, 0};
constexpr double LAM = 1.0;

// Everything that a call could write to, compared as bytes.
struct Memory {
    float losses[4] = {1, 2, 3, 4};
    float weights[4] = {5, 5, 5, 5}, coefficients[4] = {6, 6, 6, 6}, momentum[4] = {7, 7, 7, 7};
    absgd_stats stats = {4, 0, 4, 4, 2, 2, 10, 6, 10, 6}, out = {};
    double log_s = 0.5, log_s_lam = 1.0, shrink = 3.0, factor = 3.0, capped = 3.0;
    absgd_accumulation accumulation = {{2, 0, 2, 1, 2, 2, 2, 2, 2, 2}, 1.0, 2.0, 0.0};
    absgd_report reports[2] = {{1, 2, 3, 4, 5, 6, 7, 8, 9}, {1, 2, 3, 4, 5, 6, 7, 8, 9}};

    bool operator==(const Memory &other) const {
        return std::memcmp(this, &other, sizeof *this) == 0;
    }
};

#define EXPECT_REFUSED(expected, call)                                                             \
    do {                                                                                           \
        Memory m;                                                                                  \
        const Memory before = m;                                                                   \
        EXPECT_EQ(expected, call) << #call;                                                        \
        EXPECT_TRUE(m == before) << "wrote: " << #call;                                            \
    } while (0)

const std::vector<absgd_rule> BAD_RULES = {
    {0.0, 1, NAN, 0, 0, 0},    {-0.1, 1, NAN, 0, 0, 0},  {1.1, 1, NAN, 0, 0, 0},
    {NAN, 1, NAN, 0, 0, 0},    {0.9, 0.0, NAN, 0, 0, 0}, {0.9, -1, NAN, 0, 0, 0},
    {0.9, INF, NAN, 0, 0, 0},  {0.9, NAN, NAN, 0, 0, 0}, {0.9, 1, -1.0, 0, 0, 0},
    {0.9, 1, INF, 0, 0, 0},    {0.9, 1, NAN, 0.5, 0, 0}, {0.9, 1, NAN, -1, 0, 0},
    {0.9, 1, NAN, NAN, 0, 0},  {0.9, 1, NAN, 0, 0.5, 0}, {0.9, 1, NAN, 0, NAN, 0},
    {0.9, 1, NAN, 0, 0, -1.0}, {0.9, 1, NAN, 0, 0, NAN},
};

TEST(Status, Strings) {
    for (int status = ABSGD_OK; status <= ABSGD_CUDA_ERROR; status++) {
        const std::string text = absgd_status_string(static_cast<absgd_status>(status));
        EXPECT_FALSE(text.empty());
        EXPECT_NE(text, "unknown status");
    }
    EXPECT_STREQ(absgd_status_string(static_cast<absgd_status>(-1)), "unknown status");
    EXPECT_STREQ(absgd_status_string(static_cast<absgd_status>(99)), "unknown status");
}

TEST(Status, BatchStats) {
#define CALL(dtype, losses, n, lam, out)                                                           \
    absgd_batch_stats(dtype, losses, nullptr, nullptr, n, lam, out)
    for (const int dtype : {-1, 4, 1000})
        EXPECT_REFUSED(ABSGD_INVALID_DTYPE, CALL(no_dtype(dtype), m.losses, 4, &LAM, &m.out));
    EXPECT_REFUSED(ABSGD_INVALID_SIZE, CALL(ABSGD_FLOAT32, m.losses, -1, &LAM, &m.out));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(ABSGD_FLOAT32, nullptr, 4, &LAM, &m.out));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(ABSGD_FLOAT32, m.losses, 4, nullptr, &m.out));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(ABSGD_FLOAT32, m.losses, 4, &LAM, nullptr));
#undef CALL
}

TEST(Status, CombineStats) {
    EXPECT_REFUSED(ABSGD_INVALID_SIZE, absgd_combine_stats(&m.stats, -1, &m.out));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, absgd_combine_stats(nullptr, 1, &m.out));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, absgd_combine_stats(&m.stats, 1, nullptr));
}

TEST(Status, CarryLogS) {
    const double lam = 2.0;
#define CALL(lam, rule, log_s, log_s_lam) absgd_carry_log_s(lam, rule, log_s, log_s_lam)
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(nullptr, &RULE, &m.log_s, &m.log_s_lam));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&lam, nullptr, &m.log_s, &m.log_s_lam));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&lam, &RULE, nullptr, &m.log_s_lam));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&lam, &RULE, &m.log_s, nullptr));
    for (const absgd_rule &rule : BAD_RULES)
        EXPECT_REFUSED(ABSGD_INVALID_HYPERPARAMETER, CALL(&lam, &rule, &m.log_s, &m.log_s_lam));
#undef CALL
}

TEST(Status, UpdateLogS) {
#define CALL(stats, lam, rule, log_s, log_s_lam)                                                   \
    absgd_update_log_s(stats, lam, rule, log_s, log_s_lam)
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(nullptr, &LAM, &RULE, &m.log_s, &m.log_s_lam));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, nullptr, &RULE, &m.log_s, &m.log_s_lam));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, &LAM, nullptr, &m.log_s, &m.log_s_lam));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, &LAM, &RULE, nullptr, &m.log_s_lam));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, &LAM, &RULE, &m.log_s, nullptr));
    for (const absgd_rule &rule : BAD_RULES)
        EXPECT_REFUSED(ABSGD_INVALID_HYPERPARAMETER,
                       CALL(&m.stats, &LAM, &rule, &m.log_s, &m.log_s_lam));
#undef CALL
}

TEST(Status, Weights) {
#define CALL(dtype, losses, n, lam, rule, log_s, stats, weights, coefficients)                     \
    absgd_weights(dtype, losses, nullptr, nullptr, n, lam, rule, log_s, stats, 1.0, weights,       \
                  coefficients, &m.capped)
    const absgd_dtype f32 = ABSGD_FLOAT32;
    for (const int dtype : {-1, 4})
        EXPECT_REFUSED(ABSGD_INVALID_DTYPE, CALL(no_dtype(dtype), m.losses, 4, &LAM, &RULE,
                                                 &m.log_s, &m.stats, m.weights, m.coefficients));
    EXPECT_REFUSED(ABSGD_INVALID_SIZE, CALL(f32, m.losses, -4, &LAM, &RULE, &m.log_s, &m.stats,
                                            m.weights, m.coefficients));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(f32, nullptr, 4, &LAM, &RULE, &m.log_s, &m.stats,
                                            m.weights, m.coefficients));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(f32, m.losses, 4, nullptr, &RULE, &m.log_s, &m.stats,
                                            m.weights, m.coefficients));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(f32, m.losses, 4, &LAM, nullptr, &m.log_s, &m.stats,
                                            m.weights, m.coefficients));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(f32, m.losses, 4, &LAM, &RULE, nullptr, &m.stats,
                                            m.weights, m.coefficients));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(f32, m.losses, 4, &LAM, &RULE, &m.log_s, nullptr,
                                            m.weights, m.coefficients));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(f32, m.losses, 4, &LAM, &RULE, &m.log_s, &m.stats,
                                            nullptr, m.coefficients));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(f32, m.losses, 4, &LAM, &RULE, &m.log_s, &m.stats, m.weights, nullptr));
    for (const absgd_rule &rule : BAD_RULES)
        EXPECT_REFUSED(ABSGD_INVALID_HYPERPARAMETER, CALL(f32, m.losses, 4, &LAM, &rule, &m.log_s,
                                                          &m.stats, m.weights, m.coefficients));
#undef CALL
}

TEST(Status, Observe) {
#define CALL(stats, lam, rule, log_s, reports) absgd_observe(stats, lam, rule, log_s, 0.0, reports)
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(nullptr, &LAM, &RULE, &m.log_s, m.reports));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, nullptr, &RULE, &m.log_s, m.reports));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, &LAM, nullptr, &m.log_s, m.reports));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, &LAM, &RULE, nullptr, m.reports));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, &LAM, &RULE, &m.log_s, nullptr));
    for (const absgd_rule &rule : BAD_RULES)
        EXPECT_REFUSED(ABSGD_INVALID_HYPERPARAMETER,
                       CALL(&m.stats, &LAM, &rule, &m.log_s, m.reports));
#undef CALL
}

TEST(Status, Accumulate) {
#define CALL(stats, lam, rule, log_s, log_s_lam, accumulation, shrink)                             \
    absgd_accumulate(stats, lam, rule, log_s, log_s_lam, accumulation, shrink)
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(nullptr, &LAM, &RULE, &m.log_s, &m.log_s_lam, &m.accumulation, &m.shrink));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, nullptr, &RULE, &m.log_s, &m.log_s_lam,
                                            &m.accumulation, &m.shrink));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, CALL(&m.stats, &LAM, nullptr, &m.log_s, &m.log_s_lam,
                                            &m.accumulation, &m.shrink));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.stats, &LAM, &RULE, nullptr, &m.log_s_lam, &m.accumulation, &m.shrink));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.stats, &LAM, &RULE, &m.log_s, nullptr, &m.accumulation, &m.shrink));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.stats, &LAM, &RULE, &m.log_s, &m.log_s_lam, nullptr, &m.shrink));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.stats, &LAM, &RULE, &m.log_s, &m.log_s_lam, &m.accumulation, nullptr));
    for (const absgd_rule &rule : BAD_RULES)
        EXPECT_REFUSED(
            ABSGD_INVALID_HYPERPARAMETER,
            CALL(&m.stats, &LAM, &rule, &m.log_s, &m.log_s_lam, &m.accumulation, &m.shrink));
#undef CALL
}

TEST(Status, Settle) {
#define CALL(accumulation, lam, rule, divisor, log_s, log_s_lam, factor)                           \
    absgd_settle(accumulation, lam, rule, divisor, log_s, log_s_lam, factor)
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(nullptr, &LAM, &RULE, 1.0, &m.log_s, &m.log_s_lam, &m.factor));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.accumulation, nullptr, &RULE, 1.0, &m.log_s, &m.log_s_lam, &m.factor));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.accumulation, &LAM, nullptr, 1.0, &m.log_s, &m.log_s_lam, &m.factor));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.accumulation, &LAM, &RULE, 1.0, nullptr, &m.log_s_lam, &m.factor));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.accumulation, &LAM, &RULE, 1.0, &m.log_s, nullptr, &m.factor));
    EXPECT_REFUSED(ABSGD_NULL_POINTER,
                   CALL(&m.accumulation, &LAM, &RULE, 1.0, &m.log_s, &m.log_s_lam, nullptr));
    for (const double divisor : {0.0, -1.0, INF, (double)NAN})
        EXPECT_REFUSED(ABSGD_INVALID_HYPERPARAMETER, CALL(&m.accumulation, &LAM, &RULE, divisor,
                                                          &m.log_s, &m.log_s_lam, &m.factor));
    for (const absgd_rule &rule : BAD_RULES)
        EXPECT_REFUSED(ABSGD_INVALID_HYPERPARAMETER,
                       CALL(&m.accumulation, &LAM, &rule, 1.0, &m.log_s, &m.log_s_lam, &m.factor));
#undef CALL
}

// A step over one tensor of four elements, one thing about it changed.
template <typename Change>
absgd_status step(Memory &m, Change change, absgd_dtype dtype = ABSGD_FLOAT32, int64_t n = 1,
                  int64_t begin = 0, int64_t end = 4) {
    absgd_tensor tensor = {m.weights, m.losses, m.momentum, 4, 0};
    absgd_sgd_options options = OPTIONS;
    change(tensor, options);
    return absgd_sgd_step(dtype, &tensor, n, &options, begin, end);
}

TEST(Status, SgdStep) {
    const auto same = [](absgd_tensor &, absgd_sgd_options &) {};
    for (const int dtype : {-1, 4})
        EXPECT_REFUSED(ABSGD_INVALID_DTYPE, step(m, same, no_dtype(dtype)));
    EXPECT_REFUSED(ABSGD_INVALID_SIZE, step(m, same, ABSGD_FLOAT32, -1));
    EXPECT_REFUSED(ABSGD_INVALID_SIZE, step(m, same, ABSGD_FLOAT32, 1, -1, 4));
    EXPECT_REFUSED(ABSGD_INVALID_SIZE, step(m, same, ABSGD_FLOAT32, 1, 3, 2));
    EXPECT_REFUSED(ABSGD_INVALID_SIZE, step(m, same, ABSGD_FLOAT32, 1, 0, 5));
    EXPECT_REFUSED(ABSGD_INVALID_SIZE, step(m, [](auto &t, auto &) { t.numel = -4; }));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, absgd_sgd_step(ABSGD_FLOAT32, nullptr, 1, &OPTIONS, 0, 0));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, absgd_sgd_step(ABSGD_FLOAT32, nullptr, 0, nullptr, 0, 0));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, step(m, [](auto &t, auto &) { t.param = nullptr; }));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, step(m, [](auto &t, auto &) { t.grad = nullptr; }));
    EXPECT_REFUSED(ABSGD_NULL_POINTER, step(m, [](auto &t, auto &) { t.momentum = nullptr; }));
    const auto refused = [](auto change) {
        EXPECT_REFUSED(ABSGD_INVALID_HYPERPARAMETER,
                       step(m, [&](absgd_tensor &, absgd_sgd_options &o) { change(o); }));
    };
    refused([](auto &o) { o.momentum = -0.1; });
    refused([](auto &o) { o.momentum = NAN; });
    refused([](auto &o) { o.grad_scale = 0; });
    refused([](auto &o) { o = {}; });
    Memory memory;
    const absgd_tensor half = {memory.weights, memory.losses, memory.momentum, INT64_MAX / 2 + 1,
                               0};
    const absgd_tensor huge[] = {half, half};
    EXPECT_EQ(ABSGD_INVALID_SIZE, absgd_sgd_step(ABSGD_FLOAT32, huge, 2, &OPTIONS, 0, 1));
    refused([](auto &o) { o.polyak = 1, o.dampening = 0.1; });
    refused([](auto &o) { o.polyak = 1, o.nesterov = 1; });
    refused([](auto &o) { o.nesterov = 1, o.momentum = 0; });
    refused([](auto &o) { o.nesterov = 1, o.dampening = 0.1; });
}

TEST(Status, SgdStepOfNothing) {
    EXPECT_EQ(ABSGD_OK, absgd_sgd_step(ABSGD_FLOAT32, nullptr, 0, &OPTIONS, 0, 0));
    const absgd_tensor empty = {nullptr, nullptr, nullptr, 0, 0};
    EXPECT_EQ(ABSGD_OK, absgd_sgd_step(ABSGD_FLOAT32, &empty, 1, &OPTIONS, 0, 0));
}

} // namespace
