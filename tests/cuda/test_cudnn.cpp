/* Cross-entropy against cuDNN's softmax, forward and backward: on a card only. Times are printed,
 * not asserted; tests/gpu.sh shows them. */
#include "absgd_cuda.h"
#include "device_array.h"

#include <cudnn.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

namespace {

/* Milliseconds on the device that work takes, enqueued on the default stream. */
class DeviceTimer {
  public:
    DeviceTimer() {
        cudaEventCreate(&begin_);
        cudaEventCreate(&end_);
    }
    ~DeviceTimer() {
        cudaEventDestroy(begin_);
        cudaEventDestroy(end_);
    }
    template <class Work> float operator()(const Work &work) {
        float milliseconds = 0.0f;
        cudaEventRecord(begin_);
        work();
        cudaEventRecord(end_);
        cudaEventSynchronize(end_);
        cudaEventElapsedTime(&milliseconds, begin_, end_);
        return milliseconds;
    }

  private:
    cudaEvent_t begin_, end_;
};

float median(std::vector<float> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
}

void check_cudnn(cudnnStatus_t status) {
    if (status != CUDNN_STATUS_SUCCESS) throw std::runtime_error(cudnnGetErrorString(status));
}

class CudnnSoftmax : public testing::Test {
  protected:
    void SetUp() override {
        check_cudnn(cudnnCreate(&handle_));
        check_cudnn(cudnnCreateTensorDescriptor(&shape_));
    }
    void TearDown() override { /* of what there is */
        if (shape_) cudnnDestroyTensorDescriptor(shape_);
        if (handle_) cudnnDestroy(handle_);
    }

    cudnnHandle_t handle_ = nullptr;
    cudnnTensorDescriptor_t shape_ = nullptr;
};

TEST_F(CudnnSoftmax, LossAndGradientAreTheSame) {
    const float one = 1.0f, zero = 0.0f;
    for (int classes : {2, 10, 1000, 8142}) {
        for (int inner : {1, 49}) {
            const int n = 32, samples = n * inner;
            check_cudnn(cudnnSetTensor4dDescriptor(shape_, CUDNN_TENSOR_NCHW, CUDNN_DATA_FLOAT, n,
                                                   classes, inner, 1));
            const size_t size = static_cast<size_t>(samples) * classes;
            const std::vector<double> values = normal_values(size, 1, 0.0, 3.0);
            const DeviceArray<float> logits({values.begin(), values.end()}), log_p(logits.get()),
                grad(logits.get()), their_grad(logits.get());
            std::vector<int64_t> y(samples);
            for (int i = 0; i < samples; i++) y[i] = i * 31 % classes;
            const DeviceArray<int64_t> target(y);
            const DeviceArray<float> loss(std::vector<float>(samples, 0.0f)),
                saved(std::vector<float>(ABSGD_LOSS_SAVED * samples)),
                ones(std::vector<float>(samples, 1.0f));

            const absgd_softmax_loss spec = {samples, classes, inner, nullptr, nullptr,
                                             nullptr, 1.0,     0.0,   0.0,     -100};
            ASSERT_EQ(absgd_softmax_loss_forward_cuda(ABSGD_FLOAT32, &spec, logits.data(),
                                                      target.data(), nullptr, loss.data(),
                                                      saved.data(), nullptr),
                      ABSGD_OK);
            ASSERT_EQ(absgd_softmax_loss_backward_cuda(ABSGD_FLOAT32, &spec, logits.data(),
                                                       target.data(), nullptr, saved.data(),
                                                       ones.data(), nullptr, grad.data(), nullptr),
                      ABSGD_OK);

            check_cudnn(cudnnSoftmaxForward(handle_, CUDNN_SOFTMAX_LOG, CUDNN_SOFTMAX_MODE_CHANNEL,
                                            &one, shape_, logits.data(), &zero, shape_,
                                            log_p.data()));
            const std::vector<float> theirs = log_p.get();
            std::vector<float> upstream(size); /* of the log-softmax: −1 at the target */
            std::vector<double> their_loss(samples);
            for (int i = 0; i < samples; i++) {
                const size_t at =
                    (static_cast<size_t>(i / inner) * classes + y[i]) * inner + i % inner;
                upstream[at] = -1.0f;
                their_loss[i] = -theirs[at];
            }
            const DeviceArray<float> up(upstream);
            check_cudnn(cudnnSoftmaxBackward(handle_, CUDNN_SOFTMAX_LOG, CUDNN_SOFTMAX_MODE_CHANNEL,
                                             &one, shape_, log_p.data(), shape_, up.data(), &zero,
                                             shape_, their_grad.data()));
            const std::vector<float> l = loss.get(), g = grad.get(), h = their_grad.get();
            expect_close({l.begin(), l.end()}, their_loss, 1e-5, 1e-5, "loss");
            expect_close({g.begin(), g.end()}, {h.begin(), h.end()}, 1e-4, 1e-6, "gradient");
        }
    }
}

/* Ours reads targets and writes a loss; cuDNN's writes log-probabilities and is given the gradient
 * of them, as a framework would have to make it. Interleaved, medians. */
TEST_F(CudnnSoftmax, TimesBesideEachOther) {
    const float one = 1.0f, zero = 0.0f;
    for (int n : {512, 4096}) {
        const int classes = 8142;
        check_cudnn(cudnnSetTensor4dDescriptor(shape_, CUDNN_TENSOR_NCHW, CUDNN_DATA_FLOAT, n,
                                               classes, 1, 1));
        const size_t size = static_cast<size_t>(n) * classes;
        const std::vector<double> values = normal_values(size, 1, 0.0, 3.0);
        const DeviceArray<float> logits({values.begin(), values.end()}), log_p(logits.get()),
            upstream(std::vector<float>(size, 0.0f)), grad(logits.get());
        std::vector<int64_t> y(n);
        for (int i = 0; i < n; i++) y[i] = i * 31 % classes;
        const DeviceArray<int64_t> target(y);
        const DeviceArray<float> loss(std::vector<float>(n, 0.0f)),
            saved(std::vector<float>(ABSGD_LOSS_SAVED * n)), ones(std::vector<float>(n, 1.0f));
        const absgd_softmax_loss spec = {n,       classes, 1,   nullptr, nullptr,
                                         nullptr, 1.0,     0.0, 0.0,     -100};
        const auto ours = [&] {
            absgd_softmax_loss_forward_cuda(ABSGD_FLOAT32, &spec, logits.data(), target.data(),
                                            nullptr, loss.data(), saved.data(), nullptr);
            absgd_softmax_loss_backward_cuda(ABSGD_FLOAT32, &spec, logits.data(), target.data(),
                                             nullptr, saved.data(), ones.data(), nullptr,
                                             grad.data(), nullptr);
        };
        const auto theirs = [&] {
            check_cudnn(cudnnSoftmaxForward(handle_, CUDNN_SOFTMAX_LOG, CUDNN_SOFTMAX_MODE_CHANNEL,
                                            &one, shape_, logits.data(), &zero, shape_,
                                            log_p.data()));
            check_cudnn(cudnnSoftmaxBackward(handle_, CUDNN_SOFTMAX_LOG, CUDNN_SOFTMAX_MODE_CHANNEL,
                                             &one, shape_, log_p.data(), shape_, upstream.data(),
                                             &zero, shape_, grad.data()));
        };
        DeviceTimer time;
        std::vector<float> our_times, their_times;
        for (int round = 0; round < 60; round++) {
            const float a = time(ours), b = time(theirs);
            if (round < 10) continue; /* clocks and caches settle */
            our_times.push_back(a);
            their_times.push_back(b);
        }
        const float a = median(our_times), b = median(their_times);
        std::printf("cross-entropy %d x %d, forward and backward: ours %.1f us, cuDNN's softmax "
                    "%.1f us, ratio %.2f\n",
                    n, classes, 1e3f * a, 1e3f * b, b / a);
        EXPECT_GT(a, 0.0f);
    }
}

} // namespace
