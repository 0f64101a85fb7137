/* The operators torch.ops.absgd.softmax_loss and softmax_loss_backward: per-sample softmax losses
 * over (C), (N, C) or (N, C, d1, d2, …) logits, as absgd.h has them. Shapes and dtypes are checked
 * here, the range of targets in the kernel. Python (_loss_ops.py) adds the fake kernels and the
 * autograd formula. */
#include "operators.h"

#include <algorithm>
#include <atomic>
#include <tuple>

namespace absgd {
namespace {

constexpr int64_t LOSS_CHUNK = 16384; /* logits that are worth a thread */

const char *name_of(ScalarType type) { return torch::headeronly::toString(type); }

/* The arguments that both passes take, checked. Owns what it had to copy. */
struct SoftmaxLoss {
    Tensor logits, target;
    std::optional<Tensor> weight, margin, offset;
    absgd_dtype dtype;
    std::vector<int64_t> shape; /* of the losses */
    absgd_softmax_loss spec;

    SoftmaxLoss(const Tensor &logits_, const Tensor &target_, const std::optional<Tensor> &weight_,
                const std::optional<Tensor> &margin_, const std::optional<Tensor> &offset_,
                double scale, double focal_gamma, double label_smoothing, int64_t ignore_index)
        : logits(as_contiguous(logits_)), target(as_contiguous(target_)),
          dtype(dtype_of(logits_, "logits")) {
        STD_TORCH_CHECK(logits.dim() >= 1, "logits must have shape (C), (N, C) or (N, C, d1, …), "
                                           "got a 0-dimensional tensor");
        const int64_t class_dim = logits.dim() == 1 ? 0 : 1;
        const auto sizes = logits.sizes();
        for (int64_t d = 0; d < logits.dim(); d++) {
            if (d != class_dim) shape.push_back(sizes[d]);
        }
        const int64_t classes = sizes[class_dim];
        STD_TORCH_CHECK(classes >= 1, "logits must have at least one class, got none");
        int64_t inner = 1;
        for (int64_t d = 2; d < logits.dim(); d++) inner *= sizes[d];
        spec = {(class_dim ? sizes[0] : 1) * inner,
                classes,
                std::max<int64_t>(inner, 1),
                per_class(weight, weight_, "weight", classes),
                per_class(margin, margin_, "margin", classes),
                per_class(offset, offset_, "offset", classes),
                scale,
                focal_gamma,
                label_smoothing,
                ignore_index};
        check_target();
    }

    const int64_t *classes_of() const {
        return is_soft() ? nullptr : static_cast<const int64_t *>(target.const_data_ptr());
    }

    const void *soft_target() const { return is_soft() ? target.const_data_ptr() : nullptr; }

    /* kernel(begin, end) over all samples, by torch's threads. */
    template <class Kernel> void run(const char *op, const Kernel &kernel) const {
        check(kernel(0, 0), op); /* hyper-parameters, for empty logits too */
        std::atomic<int> status{ABSGD_OK};
        const int64_t grain = std::max<int64_t>(1, LOSS_CHUNK / spec.classes);
        torch::stable::parallel_for(0, spec.samples, grain, [&](int64_t begin, int64_t end) {
            const absgd_status part = kernel(begin, end);
            if (part != ABSGD_OK) status = part;
        });
        if (status == ABSGD_TARGET_OUT_OF_RANGE) complain_of_target();
        check(static_cast<absgd_status>(status.load()), op);
    }

  private:
    bool is_soft() const { return target.scalar_type() != ScalarType::Long; }

    const void *per_class(std::optional<Tensor> &kept, const std::optional<Tensor> &values,
                          const char *name, int64_t classes) const {
        if (!values) return nullptr;
        STD_TORCH_CHECK(values->dim() == 1 && values->numel() == classes, name,
                        " must have shape (C) with C = ", classes, ", got ", values->numel(),
                        " element(s) in ", values->dim(), " dimension(s)");
        STD_TORCH_CHECK(values->scalar_type() == arithmetic_type(dtype), name, " must be ",
                        name_of(arithmetic_type(dtype)), " for ", name_of(logits.scalar_type()),
                        " logits, got ", name_of(values->scalar_type()));
        STD_TORCH_CHECK(values->is_cpu(), name, " must be on the logits' device, the CPU");
        kept = as_contiguous(*values);
        return kept->const_data_ptr();
    }

    void check_target() const {
        STD_TORCH_CHECK(target.is_cpu(), "target must be on the logits' device, the CPU");
        if (is_soft()) {
            STD_TORCH_CHECK(target.scalar_type() == arithmetic_type(dtype),
                            "target must be int64 class indices, or ",
                            name_of(arithmetic_type(dtype)), " class probabilities for ",
                            name_of(logits.scalar_type()), " logits, got ",
                            name_of(target.scalar_type()));
            const auto a = target.sizes(), b = logits.sizes();
            STD_TORCH_CHECK(std::vector<int64_t>(a.begin(), a.end()) ==
                                std::vector<int64_t>(b.begin(), b.end()),
                            "target of class probabilities must have the logits' shape");
            return;
        }
        const auto sizes = target.sizes();
        STD_TORCH_CHECK(std::vector<int64_t>(sizes.begin(), sizes.end()) == shape,
                        "target of class indices must have the logits' shape without the class "
                        "dimension");
    }

    void complain_of_target() const {
        const int64_t *y = classes_of();
        const int64_t *bad = std::find_if(y, y + spec.samples, [&](int64_t c) {
            return c != spec.ignore_index && (c < 0 || c >= spec.classes);
        });
        STD_TORCH_CHECK(false, "target must be in [0, ", spec.classes, ") or ignore_index = ",
                        spec.ignore_index, ", got ", *bad, " at element ", bad - y);
    }
};

} // namespace

std::tuple<Tensor, Tensor> softmax_loss(const Tensor &logits, const Tensor &target,
                                        const std::optional<Tensor> &weight,
                                        const std::optional<Tensor> &margin,
                                        const std::optional<Tensor> &offset, double scale,
                                        double focal_gamma, double label_smoothing,
                                        int64_t ignore_index) {
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    const ScalarType arithmetic = arithmetic_type(call.dtype);
    const std::vector<int64_t> saved_shape{ABSGD_LOSS_SAVED, call.spec.samples};
    Tensor loss = torch::stable::new_empty(logits, call.shape, arithmetic);
    Tensor saved = torch::stable::new_empty(logits, saved_shape, arithmetic);
    const void *x = call.logits.const_data_ptr();
    void *loss_at = loss.mutable_data_ptr(), *saved_at = saved.mutable_data_ptr();
    call.run("absgd::softmax_loss", [&](int64_t begin, int64_t end) {
        return absgd_softmax_loss_forward(call.dtype, &call.spec, x, call.classes_of(),
                                          call.soft_target(), loss_at, saved_at, begin, end);
    });
    return {loss, saved};
}

namespace {

Tensor softmax_loss_backward(const Tensor &grad_loss, const Tensor &logits, const Tensor &target,
                             const Tensor &saved, const std::optional<Tensor> &weight,
                             const std::optional<Tensor> &margin,
                             const std::optional<Tensor> &offset, double scale, double focal_gamma,
                             double label_smoothing, int64_t ignore_index) {
    const SoftmaxLoss call(logits, target, weight, margin, offset, scale, focal_gamma,
                           label_smoothing, ignore_index);
    const ScalarType arithmetic = arithmetic_type(call.dtype);
    STD_TORCH_CHECK(grad_loss.numel() == call.spec.samples &&
                        grad_loss.scalar_type() == arithmetic && grad_loss.is_cpu(),
                    "grad_loss must be ", call.spec.samples, " value(s) of ", name_of(arithmetic),
                    " on the CPU, got ", grad_loss.numel(), " of ",
                    name_of(grad_loss.scalar_type()));
    STD_TORCH_CHECK(saved.numel() == ABSGD_LOSS_SAVED * call.spec.samples &&
                        saved.scalar_type() == arithmetic && saved.is_cpu() &&
                        saved.is_contiguous(),
                    "saved must be what absgd::softmax_loss returned for these logits");
    const Tensor upstream = as_contiguous(grad_loss);
    const auto sizes = logits.sizes();
    Tensor grad = torch::stable::new_empty(logits, sizes);
    const void *x = call.logits.const_data_ptr(), *kept = saved.const_data_ptr();
    const void *g = upstream.const_data_ptr();
    void *grad_at = grad.mutable_data_ptr();
    call.run("absgd::softmax_loss_backward", [&](int64_t begin, int64_t end) {
        return absgd_softmax_loss_backward(call.dtype, &call.spec, x, call.classes_of(),
                                           call.soft_target(), kept, g, grad_at, begin, end);
    });
    return grad;
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_FRAGMENT(absgd, m) {
    m.def("softmax_loss("
          "Tensor logits, Tensor target, Tensor? weight, Tensor? margin, Tensor? offset, "
          "float scale, float focal_gamma, float label_smoothing, int ignore_index) "
          "-> (Tensor loss, Tensor saved)");
    m.def("softmax_loss_backward("
          "Tensor grad_loss, Tensor logits, Tensor target, Tensor saved, "
          "Tensor? weight, Tensor? margin, Tensor? offset, "
          "float scale, float focal_gamma, float label_smoothing, int ignore_index) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) {
    m.impl("softmax_loss", TORCH_BOX(&absgd::softmax_loss));
    m.impl("softmax_loss_backward", TORCH_BOX(&absgd::softmax_loss_backward));
}
