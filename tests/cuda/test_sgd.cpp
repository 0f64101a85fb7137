/* The momentum step of absgd_cuda.h against that of absgd.h. */
#include "absgd_cuda.h"
#include "device_array.h"

#include <memory>

namespace {

/* Tensors of given sizes, on both sides, each `offset` elements into its memory. */
class Tensors {
  public:
    Tensors(absgd_dtype dtype, const std::vector<int64_t> &sizes, bool has_momentum, bool fresh,
            size_t offset)
        : dtype_(dtype) {
        unsigned seed = 0;
        for (int64_t n : sizes) {
            const size_t size = n + offset;
            const Bytes w = encode(dtype, normal_values(size, seed++));
            const Bytes g = encode(dtype, normal_values(size, seed++));
            const Bytes v = encode(dtype, fresh ? std::vector<double>(size, NOT_A_NUMBER)
                                                : normal_values(size, seed++));
            host_.insert(host_.end(), {w, g, v});
            for (const Bytes *x : {&w, &g, &v}) {
                device_.push_back(std::make_unique<DeviceArray<char>>(*x));
            }
        }
        const size_t skip = offset * size_of(dtype);
        for (size_t i = 0; i < sizes.size(); i++) {
            on_host.push_back({host_[3 * i].data() + skip, host_[3 * i + 1].data() + skip,
                               has_momentum ? host_[3 * i + 2].data() + skip : nullptr, sizes[i],
                               fresh});
            on_device.push_back({device_[3 * i]->data() + skip, device_[3 * i + 1]->data() + skip,
                                 has_momentum ? device_[3 * i + 2]->data() + skip : nullptr,
                                 sizes[i], fresh});
        }
    }

    void step_on_cpu(const absgd_sgd_options &options) {
        int64_t size = 0;
        for (const absgd_tensor &t : on_host) size += t.numel;
        ASSERT_EQ(absgd_sgd_step(dtype_, on_host.data(), on_host.size(), &options, 0, size),
                  ABSGD_OK);
    }

    /* The CPU does not contract a·b + c, the card does: one rounding more or less for each of four
     * such terms. */
    void expect_same() const {
        const double rounding = 4 * epsilon(dtype_);
        for (size_t i = 0; i < host_.size(); i++) {
            expect_close(decode(dtype_, device_[i]->get()), decode(dtype_, host_[i]), rounding,
                         rounding, "array " + std::to_string(i % 3) + " of a tensor");
        }
    }

    bool is_unchanged() const {
        for (size_t i = 0; i < host_.size(); i++) {
            if (device_[i]->get() != host_[i]) return false;
        }
        return true;
    }

    std::vector<absgd_tensor> on_host, on_device;

  private:
    absgd_dtype dtype_;
    std::vector<Bytes> host_; /* w, g, v of each tensor */
    std::vector<std::unique_ptr<DeviceArray<char>>> device_;
};

absgd_sgd_options options_of(double momentum, double dampening, int nesterov, int maximize,
                             int polyak) {
    return {0.1, momentum, dampening, 0.01, 2.0, nesterov, maximize, polyak};
}

class CudaStep : public testing::TestWithParam<absgd_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaStep, testing::ValuesIn(DTYPES));

TEST_P(CudaStep, EveryRuleAtAwkwardSizes) {
    const std::vector<int64_t> sizes = {1, 0, 7, 8, 16, 17, 255, 256, 1023, 4096, 4097, 9000, 0};
    for (const absgd_sgd_options &o :
         {options_of(0, 0, 0, 0, 0), options_of(0.9, 0, 0, 0, 0), options_of(0.9, 0.5, 0, 1, 0),
          options_of(0.9, 0, 1, 0, 0), options_of(0.9, 0, 0, 1, 1)}) {
        for (bool fresh : {false, true}) {
            for (size_t offset : {0, 1}) { /* 1: no 16-byte access */
                SCOPED_TRACE(testing::Message()
                             << "momentum " << o.momentum << ", dampening " << o.dampening
                             << ", nesterov " << o.nesterov << ", polyak " << o.polyak << ", fresh "
                             << fresh << ", offset " << offset);
                Tensors tensors(GetParam(), sizes, o.momentum != 0, fresh, offset);
                ASSERT_EQ(absgd_sgd_step_cuda(GetParam(), tensors.on_device.data(), sizes.size(),
                                              &o, nullptr, nullptr, nullptr, nullptr),
                          ABSGD_OK);
                tensors.step_on_cpu(o);
                tensors.expect_same();
            }
        }
    }
}

TEST_P(CudaStep, MoreTensorsThanOneLaunchTakes) {
    std::vector<int64_t> sizes(900); /* 720 of them not empty */
    for (size_t i = 0; i < sizes.size(); i++) sizes[i] = i % 5;
    Tensors tensors(GetParam(), sizes, true, false, 0);
    const absgd_sgd_options o = options_of(0.9, 0, 0, 0, 0);
    ASSERT_EQ(absgd_sgd_step_cuda(GetParam(), tensors.on_device.data(), sizes.size(), &o, nullptr,
                                  nullptr, nullptr, nullptr),
              ABSGD_OK);
    tensors.step_on_cpu(o);
    tensors.expect_same();
}

TEST_P(CudaStep, HyperparametersOnTheDeviceTakeTheOptionsPlace) {
    Tensors tensors(GetParam(), {100, 5000}, true, false, 0);
    absgd_sgd_options o = options_of(0.9, 0, 0, 1, 0);
    o.lr = o.grad_scale = NOT_A_NUMBER; /* not to be used */
    const DeviceArray<double> lr(0.25), grad_scale(1024.0), found_inf(0.0);
    ASSERT_EQ(absgd_sgd_step_cuda(GetParam(), tensors.on_device.data(), 2, &o, lr.data(),
                                  grad_scale.data(), found_inf.data(), nullptr),
              ABSGD_OK);
    o.lr = 0.25;
    o.grad_scale = 1024.0;
    tensors.step_on_cpu(o);
    tensors.expect_same();
}

TEST_P(CudaStep, AnOverflowLeavesEveryBit) {
    for (bool fresh : {false, true}) {
        const Tensors tensors(GetParam(), {1, 100, 5000}, true, fresh, 0);
        const absgd_sgd_options o = options_of(0.9, 0, 0, 0, 0);
        const DeviceArray<double> found_inf(1.0);
        ASSERT_EQ(absgd_sgd_step_cuda(GetParam(), tensors.on_device.data(), 3, &o, nullptr, nullptr,
                                      found_inf.data(), nullptr),
                  ABSGD_OK);
        EXPECT_TRUE(tensors.is_unchanged());
    }
}

TEST_P(CudaStep, WithoutAMomentumFactorABufferIsLeftAlone) {
    for (bool fresh : {false, true}) { /* fresh: NaN, which would show */
        Tensors tensors(GetParam(), {1, 100, 5000}, true, fresh, 0);
        const absgd_sgd_options o = options_of(0, 0.5, 0, 0, 0);
        ASSERT_EQ(absgd_sgd_step_cuda(GetParam(), tensors.on_device.data(), 3, &o, nullptr, nullptr,
                                      nullptr, nullptr),
                  ABSGD_OK);
        tensors.step_on_cpu(o);
        tensors.expect_same();
    }
}

TEST(CudaStepArguments, AreChecked) {
    const Tensors tensors(ABSGD_FLOAT32, {4}, false, false, 0);
    const auto step = [&](const absgd_sgd_options &o, int64_t n) {
        return absgd_sgd_step_cuda(ABSGD_FLOAT32, tensors.on_device.data(), n, &o, nullptr, nullptr,
                                   nullptr, nullptr);
    };
    EXPECT_EQ(step(options_of(0.9, 0, 0, 0, 0), 1), ABSGD_NULL_POINTER); /* no buffer */
    EXPECT_EQ(step(options_of(0, 0, 1, 0, 0), 1), ABSGD_INVALID_HYPERPARAMETER);
    EXPECT_EQ(step(options_of(-1, 0, 0, 0, 0), 1), ABSGD_INVALID_HYPERPARAMETER);
    EXPECT_EQ(step(options_of(0, 0.5, 0, 0, 1), 1), ABSGD_INVALID_HYPERPARAMETER);
    EXPECT_EQ(step(options_of(0, 0, 0, 0, 0), -1), ABSGD_INVALID_SIZE);
    EXPECT_EQ(step(options_of(0, 0, 0, 0, 0), 0), ABSGD_OK);
    EXPECT_TRUE(tensors.is_unchanged());
}

} // namespace
