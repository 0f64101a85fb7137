/* A batch of per-sample losses in LibTorch's tensors, as the C ABI takes it. Part of
 * absgd_libtorch.h. */
#ifndef ABSGD_LIBTORCH_BATCH_H
#define ABSGD_LIBTORCH_BATCH_H

#include "absgd.h"
#ifdef ABSGD_WITH_CUDA
#include "absgd_cuda.h"
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace absgd {
namespace detail {

constexpr double INF = std::numeric_limits<double>::infinity();

inline void check(absgd_status status, const char *call) {
    TORCH_CHECK(status == ABSGD_OK, call, ": ", absgd_status_string(status));
}

inline absgd_dtype dtype_of(const torch::Tensor &t, const char *name) {
    switch (t.scalar_type()) {
        case torch::kFloat: return ABSGD_FLOAT32;
        case torch::kDouble: return ABSGD_FLOAT64;
        case torch::kHalf: return ABSGD_FLOAT16;
        case torch::kBFloat16: return ABSGD_BFLOAT16;
        default:
            TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16, got ",
                        t.scalar_type());
    }
}

inline void check_device(const torch::Tensor &t, const char *name) {
#ifdef ABSGD_WITH_CUDA
    TORCH_CHECK(t.is_cpu() || t.is_cuda(), name, " must be on the CPU or a CUDA device, got ",
                t.device());
#else
    TORCH_CHECK(t.is_cpu(), name, " must be on the CPU (CUDA needs ABSGD_WITH_CUDA), got ",
                t.device());
#endif
}

/* A float64 tensor's memory as the C struct of doubles that it holds. */
template <class T> T *data(const torch::Tensor &t) {
    return reinterpret_cast<T *>(t.data_ptr<double>());
}

template <class T> constexpr int64_t doubles_in = sizeof(T) / sizeof(double);

/* Rows of T, every field of which is this value. */
template <class T> torch::Tensor rows_of(int64_t rows, double value) {
    return torch::full({rows, doubles_in<T>}, value, torch::kDouble);
}

inline torch::Tensor scalar(double value) { return torch::full({}, value, torch::kDouble); }

#ifdef ABSGD_WITH_CUDA
/* For a call on a tensor's device and its current stream. */
struct Launch {
    c10::cuda::CUDAGuard guard;
    c10::cuda::CUDAStream stream;

    explicit Launch(const torch::Tensor &t)
        : guard(t.device()), stream(c10::cuda::getCurrentCUDAStream()), device_(t.device()) {}

    /* Room for rows of T for each chunk of n losses. */
    template <class T> torch::Tensor scratch(int64_t n, int64_t rows = 1) const {
        const int64_t chunks = (n + ABSGD_CUDA_CHUNK - 1) / ABSGD_CUDA_CHUNK;
        return torch::empty({chunks * rows, doubles_in<T>},
                            torch::dtype(torch::kDouble).device(device_));
    }

  private:
    torch::Device device_;
};
#endif

} // namespace detail

/* Per-sample losses with a mask (bool, true where a loss counts) and a base measure w_i ≥ 0, either
 * of which may be undefined, as the C ABI takes them. Owns what it had to copy. */
struct Batch {
    absgd_dtype dtype;
    torch::Tensor losses, mask, weight;

    Batch(const torch::Tensor &losses_, const torch::Tensor &mask_, const torch::Tensor &weight_) {
        TORCH_CHECK(losses_.dim() > 0, "losses must be per-sample, got a scalar: compute them with "
                                       "reduction(torch::kNone)");
        detail::check_device(losses_, "losses");
        dtype = detail::dtype_of(losses_, "losses");
        losses = losses_.detach().contiguous();
        if (mask_.defined()) {
            TORCH_CHECK(mask_.scalar_type() == torch::kBool, "mask must be bool, got ",
                        mask_.scalar_type());
            check_alike(mask_, "mask");
            mask = mask_.contiguous();
        }
        if (weight_.defined()) {
            TORCH_CHECK(weight_.is_floating_point(), "weight must be floating point, got ",
                        weight_.scalar_type());
            check_alike(weight_, "weight");
            weight = weight_.detach().to(arithmetic()).contiguous();
            if (weight.is_cpu()) check_nonnegative();
        }
    }

    int64_t n() const { return losses.numel(); }
    torch::ScalarType arithmetic() const {
        return dtype == ABSGD_FLOAT64 ? torch::kDouble : torch::kFloat;
    }
    const void *losses_data() const { return losses.const_data_ptr(); }
    const void *weight_data() const { return weight.defined() ? weight.const_data_ptr() : nullptr; }
    const uint8_t *mask_data() const {
        return mask.defined() ? static_cast<const uint8_t *>(mask.const_data_ptr()) : nullptr;
    }

    /* Room for weights and their coefficients, [2, n]. */
    torch::Tensor new_rows() const {
        return torch::empty({2, n()}, losses.options().dtype(arithmetic()));
    }

    /* Σ c_i L_i over the losses that count, attached to the graph of `attached`, the losses that
     * this was made of. */
    torch::Tensor sum(const torch::Tensor &coefficients, const torch::Tensor &attached) const {
        auto l = attached.to(arithmetic());
        if (mask.defined()) l = l.masked_fill(~mask, 0);
        return torch::dot(coefficients, l.reshape({-1}));
    }

    /* (1/B) Σ w_i L_i, attached likewise. */
    torch::Tensor mean(const torch::Tensor &attached) const {
        const auto w = weight.defined() ? weight : torch::ones_like(losses, arithmetic());
        const auto count = mask.defined()
                               ? mask.sum().clamp_min(1).to(arithmetic())
                               : torch::scalar_tensor(std::max<int64_t>(n(), 1), w.options());
        return sum((mask.defined() ? w.masked_fill(~mask, 0) : w).reshape({-1}), attached) / count;
    }

  private:
    void check_alike(const torch::Tensor &t, const char *name) const {
        TORCH_CHECK(t.sizes() == losses.sizes() && t.device() == losses.device(), name,
                    " must have the losses' shape ", losses.sizes(), " and device ",
                    losses.device(), ", got ", t.sizes(), " on ", t.device());
    }

    void check_nonnegative() const {
        const auto read = mask.defined() ? weight.masked_select(mask) : weight;
        const auto bad = read.masked_select(~((read >= 0) & read.isfinite()));
        TORCH_CHECK(bad.numel() == 0, "weight must be finite and >= 0, got ",
                    bad[0].item<double>());
    }
};

} // namespace absgd
#endif
