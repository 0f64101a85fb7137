/* The kernels at other launch shapes than the launchers choose: how work lies on threads must not
 * matter, beyond the order of a sum. */
#include "expected_loss.cuh"
#include "sgd.cuh"
#include "weights.cuh"

#include "device_array.h"

namespace {

using namespace absgd;

#if defined(CUDA_ON_CPU_TSAN) /* for which several are several */
constexpr int BLOCKS[] = {1, 2};
constexpr int BLOCK_SIZES[] = {32, 64};
#else
constexpr int BLOCKS[] = {1, 2, 4};
constexpr int BLOCK_SIZES[] = {32, 96, 256};
#endif

std::vector<float> floats(size_t n, unsigned seed) {
    const std::vector<double> values = normal_values(n, seed);
    return {values.begin(), values.end()};
}

std::vector<double> as_doubles(const DeviceArray<float> &values) {
    const std::vector<float> got = values.get();
    return {got.begin(), got.end()};
}

TEST(Shapes, Weigh) {
    for (int64_t n : {1, 300, 7000}) {
        std::vector<double> wanted;
        for (int blocks : BLOCKS) {
            for (int threads : BLOCK_SIZES) {
                const DeviceArray<float> losses(floats(n, 1)), p(losses.get()), c(losses.get());
                const DeviceArray<double> lam(0.5), log_s(0.3), log_s_lam(0.5);
                const DeviceArray<absgd_stats> scratch(std::vector<absgd_stats>(4));
                const DeviceArray<absgd_report> reports(std::vector<absgd_report>(2));
                const loss_batch<float> batch = {
                    {losses.data(), nullptr, nullptr, n}, lam.data(), nullptr, 0, scratch.data()};
                const moving_average rule = {
                    {0.9, 1.0, NAN, 1.2, 1, 0}, log_s.data(), log_s_lam.data(), reports.data()};
                ASSERT_EQ(launch(weigh_kernel<float, moving_average>, {blocks, threads, blocks > 1},
                                 nullptr, batch, rule, 1.0, p.data(), c.data()),
                          ABSGD_OK);
                std::vector<double> got = as_doubles(p);
                got.push_back(log_s.get()[0]);
                if (wanted.empty()) wanted = got;
                expect_close(got, wanted, 2e-7, 0.0, "weights and log_s");
            }
        }
    }
}

TEST(Shapes, TheNormaliserHasTheSameBitsOnEveryNumberOfMultiprocessors) {
    std::vector<double> wanted;
    for (int multiprocessors : {1, 2}) {
        cuda_on_cpu::multiprocessors = multiprocessors;
        const int64_t n = 15000;
        const DeviceArray<float> losses(floats(n, 2)), p(losses.get()), c(losses.get());
        const DeviceArray<double> lam(0.1), log_s(NAN), log_s_lam(0.1);
        const DeviceArray<absgd_stats> scratch(std::vector<absgd_stats>(8));
        const DeviceArray<absgd_report> reports(std::vector<absgd_report>(2));
        const absgd_rule rule = {0.9, 1.0, NAN, 1.2, 1, 0};
        ASSERT_EQ(absgd_weigh_cuda(ABSGD_FLOAT32, losses.data(), nullptr, nullptr, n, nullptr, 0,
                                   scratch.data(), lam.data(), &rule, log_s.data(),
                                   log_s_lam.data(), reports.data(), 1.0, p.data(), c.data(),
                                   nullptr),
                  ABSGD_OK);
        std::vector<double> got = as_doubles(p);
        got.push_back(log_s.get()[0]);
        if (wanted.empty()) wanted = got;
        EXPECT_EQ(got, wanted);
    }
    cuda_on_cpu::multiprocessors = 1;
}

TEST(Shapes, Step) {
    std::vector<double> wanted;
    for (int threads : BLOCK_SIZES) {
        const DeviceArray<float> w(floats(5000, 1)), g(floats(5000, 2)), v(floats(5000, 3));
        const absgd_tensor tensors[] = {{w.data(), g.data(), v.data(), 4999, 0}};
        const absgd_sgd_options options = {0.1, 0.9, 0, 0.01, 1, 0, 0, 0};
        step_call<float, 8> call = {};
        call.constants = step_of<float>::prepare(&options);
        int64_t next = 0;
        fill(call, tensors, 1, true, &next);
        ASSERT_EQ(launch(step_kernel<float, 8>, {call.first_block[1], threads}, nullptr, call),
                  ABSGD_OK);
        std::vector<double> got = as_doubles(w);
        const std::vector<double> momentum = as_doubles(v);
        got.insert(got.end(), momentum.begin(), momentum.end());
        if (wanted.empty()) wanted = got;
        EXPECT_EQ(got, wanted);
    }
}

/* Losses and gradients of 70 samples of 333 classes, whose rows begin on no boundary. */
template <bool PLAIN, int V> std::vector<double> softmax_loss(int blocks, int threads, int lanes) {
    const int64_t samples = 70, classes = 333;
    const DeviceArray<float> logits(floats(samples * classes, 1)), grad(logits.get()),
        loss(floats(samples, 2)), saved(floats(ABSGD_LOSS_SAVED * samples, 3)),
        up(floats(samples, 4));
    std::vector<int64_t> y(samples);
    for (int64_t i = 0; i < samples; i++) y[i] = i * 41 % classes;
    const DeviceArray<int64_t> target(y);
    const double smoothing = PLAIN ? 0.0 : 0.1;
    const absgd_softmax_loss spec = {samples, classes, 1,   nullptr,   nullptr,
                                     nullptr, 2.0,     0.0, smoothing, -100};
    loss_call<float> call =
        loss_call_of<float>(spec, logits.data(), target.data(), nullptr, threads);
    call.lanes = lanes;
    EXPECT_EQ(launch(loss_forward_kernel<PLAIN, V, float>, {blocks, threads}, nullptr, call,
                     loss.data(), saved.data()),
              ABSGD_OK);
    EXPECT_EQ(launch(loss_backward_kernel<PLAIN, V, float>, {blocks, threads}, nullptr, call,
                     saved.data(), up.data(), static_cast<const float *>(nullptr), grad.data()),
              ABSGD_OK);
    std::vector<double> got = as_doubles(loss);
    const std::vector<double> gradient = as_doubles(grad);
    got.insert(got.end(), gradient.begin(), gradient.end());
    return got;
}

TEST(Shapes, SoftmaxLoss) {
    const std::vector<double> plain = softmax_loss<true, 1>(1, 32, 1),
                              general = softmax_loss<false, 1>(1, 32, 1);
    for (int blocks : BLOCKS) {
        for (int threads : BLOCK_SIZES) {
            for (int lanes : {1, 2, 4, 8, 16, 32, threads}) {
                const auto expect = [](const std::vector<double> &got, auto &wanted) {
                    expect_close(got, wanted, 3e-6, 1e-6, "losses and gradients");
                };
                expect(softmax_loss<true, 1>(blocks, threads, lanes), plain);
                expect(softmax_loss<true, 4>(blocks, threads, lanes), plain);
                expect(softmax_loss<false, 4>(blocks, threads, lanes), general);
            }
        }
    }
}

std::vector<float> positive_floats(size_t n, unsigned seed) {
    std::vector<float> values = floats(n, seed);
    for (float &x : values) x = std::fabs(x); /* or the sums cancel */
    return values;
}

/* The same under soft targets with margins and γ. */
template <int V> std::vector<double> expected_loss(int blocks, int threads, int lanes) {
    const int64_t samples = 70, classes = 333;
    const DeviceArray<float> logits(floats(samples * classes, 1)), grad(logits.get()),
        q(positive_floats(samples * classes, 5)), margin(positive_floats(classes, 6)),
        loss(floats(samples, 2)), saved(floats(ABSGD_LOSS_SAVED * samples, 3)),
        up(floats(samples, 4));
    const absgd_softmax_loss spec = {samples, classes, 1,   nullptr, margin.data(),
                                     nullptr, 2.0,     1.5, 0.0,     -100};
    loss_call<float> call = loss_call_of<float>(spec, logits.data(), nullptr, q.data(), threads);
    call.lanes = lanes;
    EXPECT_EQ(launch(expected_forward_kernel<V, float>, {blocks, threads}, nullptr, call,
                     ABSGD_FOCUS, loss.data(), saved.data()),
              ABSGD_OK);
    EXPECT_EQ(launch(expected_backward_kernel<V, float>, {blocks, threads}, nullptr, call,
                     ABSGD_FOCUS, saved.data(), up.data(), static_cast<const float *>(nullptr),
                     grad.data()),
              ABSGD_OK);
    std::vector<double> got = as_doubles(loss);
    const std::vector<double> gradient = as_doubles(grad);
    got.insert(got.end(), gradient.begin(), gradient.end());
    return got;
}

TEST(Shapes, ExpectedLoss) {
    const std::vector<double> wanted = expected_loss<1>(1, 32, 1);
    for (int blocks : BLOCKS) {
        for (int threads : BLOCK_SIZES) {
            for (int lanes : {1, 4, 32, threads}) {
                expect_close(expected_loss<1>(blocks, threads, lanes), wanted, 3e-6, 1e-5, "one");
                expect_close(expected_loss<4>(blocks, threads, lanes), wanted, 3e-6, 1e-5, "packs");
            }
        }
    }
}

} // namespace
