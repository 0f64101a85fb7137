/* torch.ops.absgd.sgd_step_: its schema, and the CPU kernel behind it. The operator takes tensors
 * and reads everything about them at each step, so that no remembered address can be out of date.
 * fused_step.py adds the fake kernel; the CUDA object adds its own implementation. */
#include "register_step.h"

namespace absgd {
namespace {

constexpr int64_t CHUNK = 16384; /* elements that are worth a thread */
constexpr int64_t ELEMENT_SIZE[] = {4, 8, 2, 2};

/* One step over tensors of one dtype. */
void step_tensors(absgd_dtype dtype, const std::vector<absgd_tensor> &tensors,
                  const absgd_sgd_options &options) {
    int64_t size = 0;
    for (const absgd_tensor &t : tensors) size += t.numel;
    const absgd_tensor *data = tensors.data();
    const int64_t n = tensors.size();
    torch::stable::parallel_for(0, (size + CHUNK - 1) / CHUNK, 1, [&](int64_t begin, int64_t end) {
        absgd_sgd_step(dtype, data, n, &options, begin * CHUNK, std::min(end * CHUNK, size));
    });
}

void sgd_step_(StableIValue *stack, uint64_t, uint64_t) {
    const StepArguments a(stack);
    StepTensors tensors(a);
    const absgd_sgd_options options = {a.lr_tensor ? *doubles(*a.lr_tensor, 1, "lr_tensor") : a.lr,
                                       a.momentum,
                                       a.dampening,
                                       a.weight_decay,
                                       a.grad_scale ? *doubles(*a.grad_scale, 1, "grad_scale")
                                                    : 1.0,
                                       a.nesterov,
                                       a.maximize,
                                       a.polyak};
    if (a.found_inf && *doubles(*a.found_inf, 1, "found_inf") != 0.0) return;
    for (int dtype = ABSGD_FLOAT32; dtype <= ABSGD_BFLOAT16; dtype++) {
        const std::vector<absgd_tensor> &list = tensors.of[dtype];
        check_overlap(list, ELEMENT_SIZE[dtype]);
        check(absgd_sgd_step(static_cast<absgd_dtype>(dtype), list.data(), list.size(), &options, 0,
                             0),
              "absgd::sgd_step_");
    }
    for (int dtype = ABSGD_FLOAT32; dtype <= ABSGD_BFLOAT16; dtype++) {
        step_tensors(static_cast<absgd_dtype>(dtype), tensors.of[dtype], options);
    }
    tensors.write_back();
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_FRAGMENT(absgd, m) { m.def(ABSGD_STEP_SCHEMA); }

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) { m.impl("sgd_step_", &absgd::sgd_step_); }
