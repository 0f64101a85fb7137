/* The operators torch.ops.absgd.* for weights: schemas, and the CPU kernels
 * of absgd.h behind them. On LibTorch's stable ABI, so that one binary serves every torch since
 * 2.10. Python (_ops.py) adds the fake kernels; the CUDA object adds its own implementations. */
#include "operators.h"
#include "register_batch.h"

#include <algorithm>
#include <utility>

namespace absgd {
namespace {

absgd_stats stats_of(const Losses &losses, const double *lam) {
    std::vector<absgd_stats> rows(chunks(losses.n, ABSGD_STATS_CHUNK));
    torch::stable::parallel_for(0, rows.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const int64_t i = row * ABSGD_STATS_CHUNK;
            const int64_t n = std::min<int64_t>(ABSGD_STATS_CHUNK, losses.n - i);
            absgd_batch_stats(losses.dtype, losses.at(i), losses.mask_at(i), n, lam, &rows[row]);
        }
    });
    absgd_stats whole;
    check(absgd_combine_stats(rows.data(), rows.size(), &whole), "absgd::batch_stats");
    return whole;
}

absgd_stats joined(const Tensor &rows) {
    const int64_t n_rows = rows.numel() / STATS_SIZE;
    const double *data = doubles(rows, n_rows * STATS_SIZE, "rows");
    absgd_stats whole;
    check(absgd_combine_stats(reinterpret_cast<const absgd_stats *>(data), n_rows, &whole),
          "absgd::combine_stats");
    return whole;
}

/* The row of the whole batch: of the ranks' rows where they were gathered, else of these losses. */
absgd_stats whole_batch(const Losses &losses, const std::optional<Tensor> &rows,
                        const double *lam) {
    return rows ? joined(*rows) : stats_of(losses, lam);
}

/* [2, losses.shape]: the weights p and the coefficients factor·p/B. */
Tensor weights_of(const Losses &losses, const double *lam, const double *log_s,
                  const absgd_stats &stats, double factor) {
    std::vector<int64_t> shape(losses.values.sizes().begin(), losses.values.sizes().end());
    shape.insert(shape.begin(), 2);
    Tensor out = new_empty(losses.values, shape, arithmetic_type(losses.dtype));
    char *weights = static_cast<char *>(out.mutable_data_ptr());
    const int64_t size = out.element_size();
    torch::stable::parallel_for(
        0, chunks(losses.n, ABSGD_STATS_CHUNK), 1, [&](int64_t begin, int64_t end) {
            const int64_t i = begin * ABSGD_STATS_CHUNK;
            const int64_t n = std::min<int64_t>(end * ABSGD_STATS_CHUNK, losses.n) - i;
            absgd_weights(losses.dtype, losses.at(i), losses.mask_at(i), n, lam, log_s, &stats,
                          factor, weights + i * size, weights + (losses.n + i) * size);
        });
    return out;
}

Tensor batch_stats(const Tensor &losses, std::optional<Tensor> mask, const Tensor &lam) {
    const absgd_stats stats = stats_of(Losses(losses, mask), doubles(lam, 1, "lam"));
    Tensor out = new_empty(losses, {STATS_SIZE}, ScalarType::Double);
    *reinterpret_cast<absgd_stats *>(doubles(out, STATS_SIZE, "stats")) = stats;
    return out;
}

} // namespace

Tensor weigh(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> rows,
             const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports,
             double gamma, double alpha, double s_init, double factor) {
    const Losses batch(losses, mask);
    const double *lam_ = doubles(lam, 1, "lam");
    double *log_s_ = doubles(log_s, 1, "log_s");
    auto *reports_ = reinterpret_cast<absgd_report *>(doubles(reports, 2 * REPORT_SIZE, "reports"));
    const absgd_rule rule = rule_of(gamma, alpha, s_init);
    const absgd_stats stats = whole_batch(batch, rows, lam_);
    check(absgd_update_log_s(&stats, lam_, &rule, log_s_, doubles(log_s_lam, 1, "log_s_lam")),
          "absgd::weigh");
    check(absgd_observe(&stats, lam_, log_s_, reports_), "absgd::weigh");
    return weights_of(batch, lam_, log_s_, stats, factor);
}

namespace {

void carry_log_s(const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, double s_init) {
    const absgd_rule rule = rule_of(1.0, 1.0, s_init);
    check(absgd_carry_log_s(doubles(lam, 1, "lam"), &rule, doubles(log_s, 1, "log_s"),
                            doubles(log_s_lam, 1, "log_s_lam")),
          "absgd::carry_log_s");
}

Tensor weigh_provisionally(const Tensor &losses, std::optional<Tensor> mask,
                           std::optional<Tensor> rows, const Tensor &lam, const Tensor &log_s,
                           const Tensor &log_s_lam, const Tensor &accumulation,
                           const Tensor &shrink, double alpha, double s_init, double factor) {
    const Losses batch(losses, mask);
    const double *lam_ = doubles(lam, 1, "lam");
    auto *acc = reinterpret_cast<absgd_accumulation *>(
        doubles(accumulation, ACCUMULATION_SIZE, "accumulation"));
    const absgd_rule rule = rule_of(1.0, alpha, s_init);
    absgd_stats stats = whole_batch(batch, rows, lam_);
    check(absgd_accumulate(&stats, lam_, &rule, doubles(log_s, 1, "log_s"),
                           doubles(log_s_lam, 1, "log_s_lam"), acc, doubles(shrink, 1, "shrink")),
          "absgd::weigh_provisionally");
    stats.count = acc->whole.count == 0.0 ? 0.0 : acc->reference_count;
    return weights_of(batch, lam_, &acc->log_c, stats, factor);
}

Tensor settle(const Tensor &accumulation, std::optional<Tensor> rows, const Tensor &lam,
              const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports, double gamma,
              double alpha, double s_init, double divisor) {
    auto *acc = reinterpret_cast<absgd_accumulation *>(
        doubles(accumulation, ACCUMULATION_SIZE, "accumulation"));
    absgd_accumulation now = *acc;
    if (rows) now.whole = joined(*rows);
    const absgd_stats whole = now.whole;
    const double *lam_ = doubles(lam, 1, "lam");
    double *log_s_ = doubles(log_s, 1, "log_s");
    auto *reports_ = reinterpret_cast<absgd_report *>(doubles(reports, 2 * REPORT_SIZE, "reports"));
    const absgd_rule rule = rule_of(gamma, alpha, s_init);
    Tensor factor = new_empty(lam, {}, ScalarType::Double);
    check(absgd_settle(&now, lam_, &rule, divisor, log_s_, doubles(log_s_lam, 1, "log_s_lam"),
                       doubles(factor, 1, "factor")),
          "absgd::settle");
    *acc = now;
    check(absgd_observe(&whole, lam_, log_s_, reports_), "absgd::settle");
    return factor;
}

const absgd_lam_rule *lam_rule_of(const Tensor &rule) {
    return reinterpret_cast<absgd_lam_rule *>(doubles(rule, LAM_RULE_SIZE, "lam_rule"));
}

absgd_lam_search *search_of(const Tensor &search) {
    return reinterpret_cast<absgd_lam_search *>(doubles(search, LAM_SEARCH_SIZE, "search"));
}

std::vector<absgd_lam_row> lam_rows(const Losses &losses, const absgd_lam_rule *rule,
                                    const absgd_lam_search *search) {
    std::vector<absgd_lam_row> rows(chunks(losses.n, ABSGD_STATS_CHUNK));
    absgd_lam_row none; /* the arguments are checked where the batch is empty, too */
    check(absgd_lam_sums(losses.dtype, losses.at(0), nullptr, 0, rule, search, &none),
          "absgd::lam_sums");
    torch::stable::parallel_for(0, rows.size(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const int64_t i = row * ABSGD_STATS_CHUNK;
            const int64_t n = std::min<int64_t>(ABSGD_STATS_CHUNK, losses.n - i);
            absgd_lam_sums(losses.dtype, losses.at(i), losses.mask_at(i), n, rule, search,
                           &rows[row]);
        }
    });
    return rows;
}

/* The whole search on one process's batch. It stops early where the answer stands. */
void follow_lam(const Tensor &losses, std::optional<Tensor> mask, const Tensor &lam_rule,
                const Tensor &lam) {
    const Losses batch(losses, mask);
    if (batch.n == 0) return;
    const absgd_lam_rule *rule = lam_rule_of(lam_rule);
    absgd_lam_search search{};
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        const std::vector<absgd_lam_row> rows = lam_rows(batch, rule, &search);
        check(absgd_lam_round(rule, rows.data(), rows.size(), &search), "absgd::follow_lam");
        if (!search.has_answer || search.low == search.high) break;
    }
    check(absgd_lam_update(rule, &search, doubles(lam, 1, "lam")), "absgd::follow_lam");
}

/* The same in pieces, for a collective to stand between them. */
Tensor lam_sums(const Tensor &losses, std::optional<Tensor> mask, const Tensor &lam_rule,
                const Tensor &search) {
    const Losses batch(losses, mask);
    absgd_lam_row whole;
    const std::vector<absgd_lam_row> rows =
        lam_rows(batch, lam_rule_of(lam_rule), search_of(search));
    check(absgd_lam_join(rows.data(), rows.size(), &whole), "absgd::lam_sums");
    Tensor out = new_empty(losses, {LAM_ROW_SIZE}, ScalarType::Double);
    *reinterpret_cast<absgd_lam_row *>(doubles(out, LAM_ROW_SIZE, "row")) = whole;
    return out;
}

void lam_round(const Tensor &lam_rule, const Tensor &rows, const Tensor &search) {
    const int64_t n_rows = rows.numel() / LAM_ROW_SIZE;
    const double *data = doubles(rows, n_rows * LAM_ROW_SIZE, "rows");
    check(absgd_lam_round(lam_rule_of(lam_rule), reinterpret_cast<const absgd_lam_row *>(data),
                          n_rows, search_of(search)),
          "absgd::lam_round");
}

void lam_update(const Tensor &lam_rule, const Tensor &search, const Tensor &lam) {
    check(absgd_lam_update(lam_rule_of(lam_rule), search_of(search), doubles(lam, 1, "lam")),
          "absgd::lam_update");
}

} // namespace
} // namespace absgd

STABLE_TORCH_LIBRARY(absgd, m) {
    m.def("batch_stats(Tensor losses, Tensor? mask, Tensor lam) -> Tensor");
    m.def("weigh("
          "Tensor losses, Tensor? mask, Tensor? rows, "
          "Tensor lam, Tensor(a!) log_s, Tensor(b!) log_s_lam, Tensor(c!) reports, "
          "float gamma, float alpha, float s_init, float factor) -> Tensor");
    m.def("carry_log_s("
          "Tensor lam, Tensor(a!) log_s, Tensor(b!) log_s_lam, float s_init) -> ()");
    m.def("weigh_provisionally("
          "Tensor losses, Tensor? mask, Tensor? rows, "
          "Tensor lam, Tensor log_s, Tensor log_s_lam, "
          "Tensor(a!) accumulation, Tensor(b!) shrink, "
          "float alpha, float s_init, float factor) -> Tensor");
    m.def("settle("
          "Tensor(a!) accumulation, Tensor? rows, Tensor lam, "
          "Tensor(b!) log_s, Tensor(c!) log_s_lam, Tensor(d!) reports, "
          "float gamma, float alpha, float s_init, float divisor) -> Tensor");
    m.def("follow_lam(Tensor losses, Tensor? mask, Tensor lam_rule, Tensor(a!) lam) -> ()");
    m.def("lam_sums(Tensor losses, Tensor? mask, Tensor lam_rule, Tensor search) -> Tensor");
    m.def("lam_round(Tensor lam_rule, Tensor rows, Tensor(a!) search) -> ()");
    m.def("lam_update(Tensor lam_rule, Tensor search, Tensor(a!) lam) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) {
    m.impl("batch_stats", TORCH_BOX(&absgd::batch_stats));
    m.impl("weigh", TORCH_BOX(&absgd::weigh));
    m.impl("carry_log_s", TORCH_BOX(&absgd::carry_log_s));
    m.impl("weigh_provisionally", TORCH_BOX(&absgd::weigh_provisionally));
    m.impl("settle", TORCH_BOX(&absgd::settle));
    m.impl("follow_lam", TORCH_BOX(&absgd::follow_lam));
    m.impl("lam_sums", TORCH_BOX(&absgd::lam_sums));
    m.impl("lam_round", TORCH_BOX(&absgd::lam_round));
    m.impl("lam_update", TORCH_BOX(&absgd::lam_update));
}
