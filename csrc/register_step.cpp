/* The step operators of torch.ops.absgd: their schemas, and the CPU kernel behind them. They take
 * tensors, or the id of a record that holds tensors, and read everything about them at each step:
 * no remembered address can be out of date. fused_step.py adds the fake kernels; the CUDA object
 * adds its own implementations. */
#include "register_step.h"

namespace absgd {
namespace {

constexpr int64_t CHUNK = 16384; /* elements that are worth a thread */

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

void step(const StepArguments &a) {
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
        check(absgd_sgd_step(static_cast<absgd_dtype>(dtype), list.data(), list.size(), &options, 0,
                             0),
              "absgd::sgd_step_");
    }
    for (int dtype = ABSGD_FLOAT32; dtype <= ABSGD_BFLOAT16; dtype++) {
        step_tensors(static_cast<absgd_dtype>(dtype), tensors.of[dtype], options);
    }
    tensors.write_back();
}

void sgd_step_(StableIValue *stack, uint64_t, uint64_t) { step(StepArguments::of_lists(stack)); }

void sgd_step_recorded(StableIValue *stack, uint64_t, uint64_t) {
    step(StepArguments::of_record(stack));
}

} // namespace
} // namespace absgd

#define HYPERPARAMETERS                                                                            \
    "float lr, Tensor? lr_tensor, float momentum, float dampening, float weight_decay, "           \
    "bool nesterov, bool maximize, bool polyak, Tensor? grad_scale, Tensor? found_inf) -> ()"

STABLE_TORCH_LIBRARY_FRAGMENT(absgd, m) {
    m.def(
        "sgd_step_("
        "Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, bool fresh, " HYPERPARAMETERS);
    m.def("sgd_record(Tensor[] params, Tensor[] momenta) -> int");
    m.def("sgd_step_recorded(int record, Tensor[] grads, " HYPERPARAMETERS);
    m.def("sgd_forget(int record) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) {
    m.impl("sgd_step_", &absgd::sgd_step_);
    m.impl("sgd_record", &absgd::sgd_record);
    m.impl("sgd_step_recorded", &absgd::sgd_step_recorded);
    m.impl("sgd_forget", &absgd::sgd_forget);
}
