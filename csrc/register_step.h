/* The tensors of a momentum step, on any device, as absgd_sgd_step takes them. */
#ifndef ABSGD_REGISTER_STEP_H
#define ABSGD_REGISTER_STEP_H

#include "register.h"

#include <algorithm>
#include <utility>

namespace absgd {

/* Whether elements lie in memory without gaps or overlaps, in whatever order of dimensions. */
inline bool is_dense(const Tensor &t) {
    if (t.is_contiguous()) return true;
    std::vector<std::pair<int64_t, int64_t>> dims; /* stride, size */
    for (int64_t d = 0; d < t.dim(); d++) {
        if (t.size(d) != 1) dims.emplace_back(t.stride(d), t.size(d));
    }
    std::sort(dims.begin(), dims.end());
    int64_t expected = 1;
    for (auto [stride, size] : dims) {
        if (stride != expected) return false;
        expected *= size;
    }
    return true;
}

inline bool same_layout(const Tensor &a, const Tensor &b) {
    if (a.is_contiguous() && b.is_contiguous()) return true;
    for (int64_t d = 0; d < a.dim(); d++) {
        if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
    }
    return true;
}

/* Lists of tensors by dtype. Those that are not dense, or not laid out alike, are copied, and what
 * the step has written is copied back by write_back(). */
class StepTensors {
  public:
    std::vector<absgd_tensor> of[4]; /* absgd_dtype */

    StepTensors(const std::vector<Tensor> &params, const std::vector<Tensor> &grads,
                const std::vector<Tensor> &momenta, bool fresh) {
        STD_TORCH_CHECK(grads.size() == params.size() &&
                            (momenta.empty() || momenta.size() == params.size()),
                        "params, grads and momenta must have one length (momenta may be empty), ",
                        "got ", params.size(), ", ", grads.size(), " and ", momenta.size());
        for (size_t i = 0; i < params.size(); i++) {
            const Tensor &w = params[i], &g = grads[i];
            const Tensor *v = momenta.empty() ? nullptr : &momenta[i];
            STD_TORCH_CHECK(same_device(w, params[0]), "params[", i,
                            "] must be on the device of params[0]");
            check_alike(g, w, i, "grads");
            if (v) check_alike(*v, w, i, "momenta");
            const bool as_is = is_dense(w) && same_layout(g, w) && (!v || same_layout(*v, w));
            of[dtype_of(w, "params")].push_back({dense(w, as_is, true), dense(g, as_is, false),
                                                 v ? dense(*v, as_is, true) : nullptr, w.numel(),
                                                 fresh});
        }
    }

    void write_back() {
        for (auto &[original, copy] : written_) torch::stable::copy_(original, copy);
    }

  private:
    static void check_alike(const Tensor &t, const Tensor &param, size_t i, const char *name) {
        const auto sizes = t.sizes(), wanted = param.sizes();
        STD_TORCH_CHECK(t.scalar_type() == param.scalar_type() && same_device(t, param) &&
                            std::equal(sizes.begin(), sizes.end(), wanted.begin(), wanted.end()),
                        name, "[", i, "] must have the dtype, shape and device of params[", i, "]");
    }

    void *dense(const Tensor &t, bool as_is, bool written) {
        if (as_is) return t.mutable_data_ptr();
        copies_.push_back(as_contiguous(t));
        if (copies_.back().mutable_data_ptr() == t.mutable_data_ptr()) return t.mutable_data_ptr();
        if (written) written_.emplace_back(t, copies_.back());
        return copies_.back().mutable_data_ptr();
    }

    std::vector<Tensor> copies_;
    std::vector<std::pair<Tensor, Tensor>> written_;
};

/* A table as Python keeps it between steps: in host memory, [n, 5] int64, each row an
 * absgd_tensor. */
inline const absgd_tensor *step_table(const Tensor &table) {
    STD_TORCH_CHECK(table.scalar_type() == ScalarType::Long && table.is_contiguous() &&
                        table.dim() == 2 && table.size(1) * 8 == sizeof(absgd_tensor) &&
                        table.is_cpu(),
                    "table must be a contiguous int64 tensor of shape [n, 5] on the CPU");
    return static_cast<const absgd_tensor *>(table.data_ptr());
}

} // namespace absgd
#endif
