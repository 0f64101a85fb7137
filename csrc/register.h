/* What the registration files share: tensors seen through LibTorch's stable ABI, as pointers. */
#ifndef ABSGD_REGISTER_H
#define ABSGD_REGISTER_H

#include "absgd.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace absgd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline absgd_dtype dtype_of(const Tensor &t, const char *name) {
    switch (t.scalar_type()) {
        case ScalarType::Float: return ABSGD_FLOAT32;
        case ScalarType::Double: return ABSGD_FLOAT64;
        case ScalarType::Half: return ABSGD_FLOAT16;
        case ScalarType::BFloat16: return ABSGD_BFLOAT16;
        default:
            STD_TORCH_CHECK(false, name, " must be float32, float64, float16 or bfloat16, got ",
                            torch::headeronly::toString(t.scalar_type()));
    }
}

/* The type that values of dtype are computed in. */
inline ScalarType arithmetic_type(absgd_dtype dtype) {
    return dtype == ABSGD_FLOAT64 ? ScalarType::Double : ScalarType::Float;
}

inline const char *name_of(ScalarType type) { return torch::headeronly::toString(type); }

inline void check(absgd_status status, const char *op) {
    STD_TORCH_CHECK(status == ABSGD_OK, op, ": ", absgd_status_string(status));
}

inline Tensor as_contiguous(const Tensor &t) {
    return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

/* Of a contiguous tensor; or of one in whose memory the second dimension comes last. */
inline std::vector<int64_t> strides_of(torch::headeronly::IntHeaderOnlyArrayRef shape,
                                       bool second_last) {
    std::vector<int64_t> strides(shape.size());
    int64_t stride = 1;
    const auto lay = [&](size_t d) {
        strides[d] = stride;
        stride *= std::max<int64_t>(shape[d], 1);
    };
    if (second_last) lay(1);
    for (size_t d = shape.size(); d-- > 0;) {
        if (!second_last || d != 1) lay(d);
    }
    return strides;
}

/* Whether the second of at least three dimensions comes last in memory, as in channels_last. */
inline bool is_second_last(const Tensor &t) {
    if (t.dim() < 3 || t.is_contiguous()) return false;
    const auto shape = t.sizes(), strides = t.strides();
    const std::vector<int64_t> wanted = strides_of(shape, true);
    for (size_t d = 0; d < shape.size(); d++) {
        if (shape[d] != 1 && strides[d] != wanted[d]) return false;
    }
    return true;
}

/* A dense tensor on the device of `like`, not by way of the dispatcher, as
 * torch::stable::new_empty makes one: on a small batch that is as much as the arithmetic. */
inline Tensor new_empty(const Tensor &like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                        ScalarType dtype, bool second_last = false) {
    const std::vector<int64_t> strides = strides_of(shape, second_last);
    const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
    int32_t device_type;
    AtenTensorHandle out;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(shape.size(), shape.data(), strides.data(),
                                                    type, device_type, like.get_device_index(),
                                                    &out));
    return Tensor(out);
}

inline bool same_device(const Tensor &a, const Tensor &b) {
    return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

inline bool same_shape(const Tensor &a, const Tensor &b) {
    const auto x = a.sizes(), y = b.sizes();
    return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

/* The memory of an optional value for each class, of the logits' arithmetic type, which `kept`
 * owns; NULL if there is none. */
inline const void *per_class(std::optional<Tensor> &kept, const std::optional<Tensor> &values,
                             const char *name, int64_t classes, const Tensor &logits,
                             ScalarType type) {
    if (!values) return nullptr;
    STD_TORCH_CHECK(values->dim() == 1 && values->numel() == classes, name,
                    " must have shape (C) with C = ", classes, ", got ", values->numel(),
                    " element(s) in ", values->dim(), " dimension(s)");
    STD_TORCH_CHECK(values->scalar_type() == type, name, " must be ", name_of(type), " for ",
                    name_of(logits.scalar_type()), " logits, got ", name_of(values->scalar_type()));
    STD_TORCH_CHECK(same_device(*values, logits), name, " must be on the logits' device");
    kept = as_contiguous(*values);
    return kept->const_data_ptr();
}

/* Of a scalar that multiplies a backward pass's whole grad_loss, of this type; it may be missing.
 */
inline void check_factor(const std::optional<Tensor> &factor, ScalarType type, const Tensor &like) {
    STD_TORCH_CHECK(!factor || (factor->numel() == 1 && factor->scalar_type() == type &&
                                same_device(*factor, like)),
                    "factor must be one value of ", name_of(type), " on the logits' device, got ",
                    factor->numel(), " of ", name_of(factor->scalar_type()));
}

/* The memory of a float64 tensor of n elements: λ, log_s and the rows of statistics. */
inline double *doubles(const Tensor &t, int64_t n, const char *name) {
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Double && t.numel() == n && t.is_contiguous(),
                    name, " must be a contiguous float64 tensor of ", n, " element(s), got ",
                    t.numel(), " of ", torch::headeronly::toString(t.scalar_type()));
    return static_cast<double *>(t.mutable_data_ptr());
}

} // namespace absgd
#endif
