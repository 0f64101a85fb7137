/* The CUDA implementations of torch.ops.absgd.*: a shared object of its own, on LibTorch's stable
 * ABI, loaded where there is a card. Schemas stand in csrc/register*.cpp. Nothing here waits for
 * the device; work goes to torch's current stream. */
#include "register_cuda.h"
#include "register_step.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace absgd {
namespace {

/* ---- weights ---- */

/* Rows of statistics that are given, and room for those of the chunks. */
struct Rows {
    const absgd_stats *given = nullptr;
    int64_t n = 0;
    Tensor memory;
    absgd_stats *scratch = nullptr;

    Rows(const OnDeviceOf &device, const Losses &losses, const std::optional<Tensor> &rows) {
        if (rows) {
            n = rows->numel() / STATS_SIZE;
            given = as<absgd_stats>(device.doubles(*rows, n * STATS_SIZE, "rows"));
        }
        if (losses.n > ABSGD_CUDA_CHUNK) {
            memory = new_empty(losses.values, {chunks(losses.n, ABSGD_CUDA_CHUNK) * STATS_SIZE},
                               ScalarType::Double);
            scratch = as<absgd_stats>(static_cast<double *>(memory.mutable_data_ptr()));
        }
    }
};

Tensor batch_stats(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> weight,
                   const Tensor &lam) {
    const OnDeviceOf device(losses);
    const Losses batch(losses, mask, weight);
    const Rows rows(device, batch, std::nullopt);
    Tensor out = new_empty(losses, {STATS_SIZE}, ScalarType::Double);
    check_cuda(absgd_batch_stats_cuda(
                   batch.dtype, batch.at(0), batch.mask_at(0), batch.weight_at(0), batch.n,
                   device.doubles(lam, 1, "lam"), rows.scratch,
                   as<absgd_stats>(device.doubles(out, STATS_SIZE, "stats")), device.stream()),
               "absgd::batch_stats");
    return out;
}

/* [2, losses.shape]: room for the weights and the coefficients. */
Tensor new_weights(const Losses &losses) {
    std::vector<int64_t> shape(losses.values.sizes().begin(), losses.values.sizes().end());
    shape.insert(shape.begin(), 2);
    return new_empty(losses.values, shape, arithmetic_type(losses.dtype));
}

const absgd_lam_rule *lam_rule_of(const OnDeviceOf &device, const Tensor &rule) {
    return as<absgd_lam_rule>(device.doubles(rule, LAM_RULE_SIZE, "lam_rule"));
}

absgd_lam_search *search_of(const OnDeviceOf &device, const Tensor &search) {
    return as<absgd_lam_search>(device.doubles(search, LAM_SEARCH_SIZE, "search"));
}

/* Room for `rows` rows a chunk; empty for a batch of one chunk. */
Tensor new_lam_rows(const Losses &losses, int64_t rows) {
    const int64_t n = chunks(losses.n, ABSGD_CUDA_CHUNK);
    return new_empty(losses.values, {n > 1 ? rows * n * LAM_ROW_SIZE : 0}, ScalarType::Double);
}

absgd_lam_row *lam_rows(const Tensor &memory) {
    return memory.numel() ? as<absgd_lam_row>(static_cast<double *>(memory.mutable_data_ptr()))
                          : nullptr;
}

void follow_lam(const OnDeviceOf &device, const Losses &batch, const Tensor &lam_rule,
                double *lam) {
    const Tensor scratch = new_lam_rows(batch, 2);
    check_cuda(absgd_follow_lam_cuda(batch.dtype, batch.at(0), batch.mask_at(0), batch.weight_at(0),
                                     batch.n, lam_rule_of(device, lam_rule), lam_rows(scratch), lam,
                                     device.stream()),
               "absgd::follow_lam");
}

} // namespace

Tensor weigh(const OnDeviceOf &device, const Losses &batch, const std::optional<Tensor> &rows_,
             const std::optional<Tensor> &lam_rule, const DeviceState &state,
             const absgd_rule &rule, double factor) {
    check_rows_or_rule(rows_, lam_rule);
    if (lam_rule) follow_lam(device, batch, *lam_rule, state.lam);
    const Rows rows(device, batch, rows_);
    Tensor out = new_weights(batch);
    check_cuda(absgd_weigh_cuda(batch.dtype, batch.at(0), batch.mask_at(0), batch.weight_at(0),
                                batch.n, rows.given, rows.n, rows.scratch, state.lam, &rule,
                                state.log_s, state.log_s_lam, state.reports, factor,
                                out.mutable_data_ptr(), coefficients_of(out), device.stream()),
               "absgd::weigh");
    return out;
}

namespace {

Tensor weigh_op(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> weight,
                std::optional<Tensor> rows, std::optional<Tensor> lam_rule, const Tensor &lam,
                const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports, double gamma,
                double alpha, double s_init, double max_weight, bool keep_loss, bool bounded,
                double factor) {
    const OnDeviceOf device(losses);
    return weigh(device, Losses(losses, mask, weight), rows, lam_rule,
                 DeviceState(device, lam, log_s, log_s_lam, reports),
                 rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded, "absgd::weigh"),
                 factor);
}

void carry_log_s(const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, double s_init) {
    const OnDeviceOf device(log_s);
    const absgd_rule rule = {1.0, 1.0, s_init, 0.0, 0.0, 0.0};
    check_cuda(absgd_carry_log_s_cuda(device.doubles(lam, 1, "lam"), &rule,
                                      device.doubles(log_s, 1, "log_s"),
                                      device.doubles(log_s_lam, 1, "log_s_lam"), device.stream()),
               "absgd::carry_log_s");
}

absgd_accumulation *accumulation_on(const OnDeviceOf &device, const Tensor &accumulation) {
    return as<absgd_accumulation>(device.doubles(accumulation, ACCUMULATION_SIZE, "accumulation"));
}

Tensor weigh_provisionally(const Tensor &losses, std::optional<Tensor> mask,
                           std::optional<Tensor> weight, std::optional<Tensor> rows_,
                           const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam,
                           const Tensor &accumulation, const Tensor &shrink, double gamma,
                           double alpha, double s_init, double max_weight, bool keep_loss,
                           bool bounded, double factor) {
    const char *op = "absgd::weigh_provisionally";
    const OnDeviceOf device(losses);
    const Losses batch(losses, mask, weight);
    const Rows rows(device, batch, rows_);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded, op);
    Tensor out = new_weights(batch);
    check_cuda(absgd_weigh_provisionally_cuda(
                   batch.dtype, batch.at(0), batch.mask_at(0), batch.weight_at(0), batch.n,
                   rows.given, rows.n, rows.scratch, device.doubles(lam, 1, "lam"), &rule,
                   device.doubles(log_s, 1, "log_s"), device.doubles(log_s_lam, 1, "log_s_lam"),
                   accumulation_on(device, accumulation), device.doubles(shrink, 1, "shrink"),
                   factor, out.mutable_data_ptr(), coefficients_of(out), device.stream()),
               op);
    return out;
}

Tensor settle(const Tensor &accumulation, std::optional<Tensor> rows, const Tensor &lam,
              const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports, double gamma,
              double alpha, double s_init, double max_weight, bool keep_loss, bool bounded,
              double divisor) {
    const char *op = "absgd::settle";
    const OnDeviceOf device(accumulation);
    const DeviceState state(device, lam, log_s, log_s_lam, reports);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded, op);
    const int64_t n_rows = rows ? rows->numel() / STATS_SIZE : 0;
    const absgd_stats *given =
        rows ? as<absgd_stats>(device.doubles(*rows, n_rows * STATS_SIZE, "rows")) : nullptr;
    Tensor factor = new_empty(lam, {}, ScalarType::Double);
    check_cuda(absgd_settle_cuda(accumulation_on(device, accumulation), given, n_rows, state.lam,
                                 &rule, divisor, state.log_s, state.log_s_lam, state.reports,
                                 device.doubles(factor, 1, "factor"), device.stream()),
               op);
    return factor;
}

/* ---- λ from how selective the weights shall be ---- */

void follow_lam_op(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> weight,
                   const Tensor &lam_rule, const Tensor &lam) {
    const OnDeviceOf device(losses);
    follow_lam(device, Losses(losses, mask, weight), lam_rule, device.doubles(lam, 1, "lam"));
}

Tensor lam_sums(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> weight,
                const Tensor &lam_rule, const Tensor &search) {
    const OnDeviceOf device(losses);
    const Losses batch(losses, mask, weight);
    const Tensor scratch = new_lam_rows(batch, 1);
    Tensor out = new_empty(losses, {LAM_ROW_SIZE}, ScalarType::Double);
    check_cuda(absgd_lam_sums_cuda(
                   batch.dtype, batch.at(0), batch.mask_at(0), batch.weight_at(0), batch.n,
                   lam_rule_of(device, lam_rule), search_of(device, search), lam_rows(scratch),
                   as<absgd_lam_row>(device.doubles(out, LAM_ROW_SIZE, "row")), device.stream()),
               "absgd::lam_sums");
    return out;
}

void lam_round(const Tensor &lam_rule, const Tensor &rows, const Tensor &search) {
    const OnDeviceOf device(search);
    const int64_t n = rows.numel() / LAM_ROW_SIZE;
    check_cuda(
        absgd_lam_round_cuda(lam_rule_of(device, lam_rule),
                             as<absgd_lam_row>(device.doubles(rows, n * LAM_ROW_SIZE, "rows")), n,
                             search_of(device, search), device.stream()),
        "absgd::lam_round");
}

void lam_update(const Tensor &lam_rule, const Tensor &search, const Tensor &lam) {
    const OnDeviceOf device(lam);
    check_cuda(absgd_lam_update_cuda(lam_rule_of(device, lam_rule), search_of(device, search),
                                     device.doubles(lam, 1, "lam"), device.stream()),
               "absgd::lam_update");
}

/* ---- the momentum step ---- */

void step(const StepArguments &a) {
    StepTensors tensors(a);
    if (a.written->params.size() == 0) return;
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(a.written->params[0], &handle));
    const Tensor first(handle);
    STD_TORCH_CHECK(first.is_cuda(), "params must be on a CUDA device");
    const OnDeviceOf device(first);
    /* A learning rate that is a tensor on the host goes by value, as a number does. */
    const bool by_value = !a.lr_tensor || a.lr_tensor->is_cpu();
    const absgd_sgd_options options = {
        a.lr_tensor && by_value ? *doubles(*a.lr_tensor, 1, "lr_tensor") : a.lr,
        a.momentum,
        a.dampening,
        a.weight_decay,
        1.0,
        a.nesterov,
        a.maximize,
        a.polyak};
    const double *lr = by_value ? nullptr : device.doubles(*a.lr_tensor, 1, "lr_tensor");
    const double *grad_scale = device.doubles_or_null(a.grad_scale, "grad_scale");
    const double *found_inf = device.doubles_or_null(a.found_inf, "found_inf");
    for (int dtype = ABSGD_FLOAT32; dtype <= ABSGD_BFLOAT16; dtype++) {
        const std::vector<absgd_tensor> &list = tensors.of[dtype];
        check_cuda(absgd_sgd_step_cuda(static_cast<absgd_dtype>(dtype), list.data(), list.size(),
                                       &options, lr, grad_scale, found_inf, device.stream()),
                   "absgd::sgd_step_");
    }
    tensors.write_back();
}

void sgd_step_(StableIValue *stack, uint64_t, uint64_t) { step(StepArguments::of_lists(stack)); }

void sgd_step_recorded(StableIValue *stack, uint64_t, uint64_t) {
    step(StepArguments::of_record(stack));
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY_IMPL(absgd, CUDA, m) {
    m.impl("batch_stats", TORCH_BOX(&absgd::batch_stats));
    m.impl("weigh", TORCH_BOX(&absgd::weigh_op));
    m.impl("carry_log_s", TORCH_BOX(&absgd::carry_log_s));
    m.impl("weigh_provisionally", TORCH_BOX(&absgd::weigh_provisionally));
    m.impl("settle", TORCH_BOX(&absgd::settle));
    m.impl("follow_lam", TORCH_BOX(&absgd::follow_lam_op));
    m.impl("lam_sums", TORCH_BOX(&absgd::lam_sums));
    m.impl("lam_round", TORCH_BOX(&absgd::lam_round));
    m.impl("lam_update", TORCH_BOX(&absgd::lam_update));
    m.impl("sgd_step_", &absgd::sgd_step_);
    m.impl("sgd_record", &absgd::sgd_record);
    m.impl("sgd_step_recorded", &absgd::sgd_step_recorded);
    m.impl("sgd_forget", &absgd::sgd_forget);
}
