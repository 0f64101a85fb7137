/* The operators torch.ops.absgd.* for weights: schemas, and the CPU kernels
 * of absgd.h behind them. On LibTorch's stable ABI, so that one binary serves every torch since
 * 2.10. Python (_ops.py) adds the fake kernels; the CUDA object adds its own implementations. */
#include "operators.h"
#include "register_batch.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace absgd {
namespace {

/* work(i, n) for pieces [i, i + n) of a batch, by torch's threads. */
template <class Work> void for_chunks(int64_t n, const Work &work) {
    torch::stable::parallel_for(0, chunks(n, ABSGD_STATS_CHUNK), 1,
                                [&](int64_t begin, int64_t end) {
                                    for (int64_t row = begin; row < end; row++) {
                                        const int64_t i = row * ABSGD_STATS_CHUNK;
                                        work(i, std::min<int64_t>(ABSGD_STATS_CHUNK, n - i));
                                    }
                                });
}

absgd_stats stats_of(const Losses &batch, const double *lam) {
    std::vector<absgd_stats> rows(chunks(batch.n, ABSGD_STATS_CHUNK));
    for_chunks(batch.n, [&](int64_t i, int64_t n) {
        absgd_batch_stats(batch.dtype, batch.at(i), batch.mask_at(i), batch.weight_at(i), n, lam,
                          &rows[i / ABSGD_STATS_CHUNK]);
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
absgd_stats whole_batch(const Losses &batch, const std::optional<Tensor> &rows, const double *lam) {
    return rows ? joined(*rows) : stats_of(batch, lam);
}

/* [2, losses.shape]: the weights and their coefficients. */
struct Weights {
    Tensor out;
    double capped = 0.0; /* how many */

    Weights(const Losses &batch, const double *lam, const absgd_rule &rule, const double *log_s,
            const absgd_stats &stats, double factor) {
        std::vector<int64_t> shape(batch.values.sizes().begin(), batch.values.sizes().end());
        shape.insert(shape.begin(), 2);
        out = new_empty(batch.values, shape, arithmetic_type(batch.dtype));
        char *weights = static_cast<char *>(out.mutable_data_ptr());
        const int64_t size = out.element_size();
        std::vector<double> above(chunks(batch.n, ABSGD_STATS_CHUNK));
        for_chunks(batch.n, [&](int64_t i, int64_t n) {
            absgd_weights(batch.dtype, batch.at(i), batch.mask_at(i), batch.weight_at(i), n, lam,
                          &rule, log_s, &stats, factor, weights + i * size,
                          weights + (batch.n + i) * size, &above[i / ABSGD_STATS_CHUNK]);
        });
        for (const double part : above) capped += part;
    }

    /* As a share of this process's samples, which are those of stats unless ranks' were gathered.
     */
    double capped_share(const Losses &batch, const absgd_stats &stats, bool gathered) const {
        if (capped == 0.0) return 0.0;
        if (!gathered) return capped / stats.count;
        const uint8_t *mask = batch.mask_at(0);
        return capped / (mask ? batch.n - std::count(mask, mask + batch.n, 0) : batch.n);
    }
};

Tensor batch_stats(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> weight,
                   const Tensor &lam) {
    const absgd_stats stats = stats_of(Losses(losses, mask, weight), doubles(lam, 1, "lam"));
    Tensor out = new_empty(losses, {STATS_SIZE}, ScalarType::Double);
    *reinterpret_cast<absgd_stats *>(doubles(out, STATS_SIZE, "stats")) = stats;
    return out;
}

const absgd_lam_rule *lam_rule_of(const Tensor &rule) {
    return reinterpret_cast<absgd_lam_rule *>(doubles(rule, LAM_RULE_SIZE, "lam_rule"));
}

absgd_lam_search *search_of(const Tensor &search) {
    return reinterpret_cast<absgd_lam_search *>(doubles(search, LAM_SEARCH_SIZE, "search"));
}

std::vector<absgd_lam_row> lam_rows(const Losses &batch, const absgd_lam_rule *rule,
                                    const absgd_lam_search *search) {
    std::vector<absgd_lam_row> rows(chunks(batch.n, ABSGD_STATS_CHUNK));
    absgd_lam_row none; /* the arguments are checked where the batch is empty, too */
    check(absgd_lam_sums(batch.dtype, nullptr, nullptr, nullptr, 0, rule, search, &none),
          "absgd::lam_sums");
    for_chunks(batch.n, [&](int64_t i, int64_t n) {
        absgd_lam_sums(batch.dtype, batch.at(i), batch.mask_at(i), batch.weight_at(i), n, rule,
                       search, &rows[i / ABSGD_STATS_CHUNK]);
    });
    return rows;
}

/* The whole search on one process's batch. It stops early where the answer stands. */
void follow_lam(const Losses &batch, const Tensor &lam_rule, double *lam) {
    const absgd_lam_rule *rule = lam_rule_of(lam_rule);
    absgd_lam_search search{};
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        const std::vector<absgd_lam_row> rows = lam_rows(batch, rule, &search);
        check(absgd_lam_round(rule, rows.data(), rows.size(), &search), "absgd::follow_lam");
        if (!search.has_answer || search.low == search.high) break;
    }
    check(absgd_lam_update(rule, &search, lam), "absgd::follow_lam");
}

} // namespace

Tensor weigh(const Losses &batch, const std::optional<Tensor> &rows,
             const std::optional<Tensor> &lam_rule, const RuleState &state, const absgd_rule &rule,
             double factor) {
    check_rows_or_rule(rows, lam_rule);
    if (lam_rule) follow_lam(batch, *lam_rule, state.lam);
    const absgd_stats stats = whole_batch(batch, rows, state.lam);
    check(absgd_update_log_s(&stats, state.lam, &rule, state.log_s, state.log_s_lam),
          "absgd::weigh");
    const Weights weights(batch, state.lam, rule, state.log_s, stats, factor);
    const double capped = weights.capped_share(batch, stats, rows.has_value());
    check(absgd_observe(&stats, state.lam, &rule, state.log_s, capped, state.reports),
          "absgd::weigh");
    return weights.out;
}

namespace {

Tensor weigh_op(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> weight,
                std::optional<Tensor> rows, std::optional<Tensor> lam_rule, const Tensor &lam,
                const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports, double gamma,
                double alpha, double s_init, double max_weight, bool keep_loss, bool bounded,
                double factor) {
    return weigh(
        Losses(losses, mask, weight), rows, lam_rule, RuleState(lam, log_s, log_s_lam, reports),
        rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded, "absgd::weigh"), factor);
}

void carry_log_s(const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam, double s_init) {
    const absgd_rule rule = {1.0, 1.0, s_init, 0.0, 0.0, 0.0};
    check(absgd_carry_log_s(doubles(lam, 1, "lam"), &rule, doubles(log_s, 1, "log_s"),
                            doubles(log_s_lam, 1, "log_s_lam")),
          "absgd::carry_log_s");
}

Tensor weigh_provisionally(const Tensor &losses, std::optional<Tensor> mask,
                           std::optional<Tensor> weight, std::optional<Tensor> rows,
                           const Tensor &lam, const Tensor &log_s, const Tensor &log_s_lam,
                           const Tensor &accumulation, const Tensor &shrink, double gamma,
                           double alpha, double s_init, double max_weight, bool keep_loss,
                           bool bounded, double factor) {
    const char *op = "absgd::weigh_provisionally";
    const Losses batch(losses, mask, weight);
    const double *lam_ = doubles(lam, 1, "lam");
    absgd_accumulation *acc = accumulation_of(accumulation);
    absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded, op);
    absgd_stats stats = whole_batch(batch, rows, lam_);
    check(absgd_accumulate(&stats, lam_, &rule, doubles(log_s, 1, "log_s"),
                           doubles(log_s_lam, 1, "log_s_lam"), acc, doubles(shrink, 1, "shrink")),
          op);
    rule.keep_loss = 0.0; /* κ is the whole batch's: it joins settle's factor */
    const double count = stats.count;
    stats.count = acc->reference_count;
    const Weights weights(batch, lam_, rule, &acc->log_c, stats, factor);
    stats.count = count;
    acc->capped += count * weights.capped_share(batch, stats, rows.has_value());
    return weights.out;
}

Tensor settle(const Tensor &accumulation, std::optional<Tensor> rows, const Tensor &lam,
              const Tensor &log_s, const Tensor &log_s_lam, const Tensor &reports, double gamma,
              double alpha, double s_init, double max_weight, bool keep_loss, bool bounded,
              double divisor) {
    const char *op = "absgd::settle";
    absgd_accumulation *acc = accumulation_of(accumulation);
    const RuleState state(lam, log_s, log_s_lam, reports);
    const absgd_rule rule = rule_of(gamma, alpha, s_init, max_weight, keep_loss, bounded, op);
    absgd_accumulation now = *acc;
    if (rows) now.whole = joined(*rows);
    const absgd_stats whole = now.whole;
    const double capped = now.capped / std::max(whole.count, 1.0);
    Tensor factor = new_empty(lam, {}, ScalarType::Double);
    check(absgd_settle(&now, state.lam, &rule, divisor, state.log_s, state.log_s_lam,
                       doubles(factor, 1, "factor")),
          op);
    *acc = now;
    check(absgd_observe(&whole, state.lam, &rule, state.log_s, capped, state.reports), op);
    return factor;
}

void follow_lam_op(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> weight,
                   const Tensor &lam_rule, const Tensor &lam) {
    follow_lam(Losses(losses, mask, weight), lam_rule, doubles(lam, 1, "lam"));
}

/* The same in pieces, for a collective to stand between them. */
Tensor lam_sums(const Tensor &losses, std::optional<Tensor> mask, std::optional<Tensor> weight,
                const Tensor &lam_rule, const Tensor &search) {
    const Losses batch(losses, mask, weight);
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
    m.def("batch_stats(Tensor losses, Tensor? mask, Tensor? weight, Tensor lam) -> Tensor");
    m.def("weigh("
          "Tensor losses, Tensor? mask, Tensor? weight, Tensor? rows, Tensor? lam_rule, "
          "Tensor(a!) lam, Tensor(b!) log_s, Tensor(c!) log_s_lam, Tensor(d!) reports, "
          "float gamma, float alpha, float s_init, "
          "float max_weight, bool keep_loss, bool bounded, float factor) -> Tensor");
    m.def("carry_log_s("
          "Tensor lam, Tensor(a!) log_s, Tensor(b!) log_s_lam, float s_init) -> ()");
    m.def("weigh_provisionally("
          "Tensor losses, Tensor? mask, Tensor? weight, Tensor? rows, "
          "Tensor lam, Tensor log_s, Tensor log_s_lam, "
          "Tensor(a!) accumulation, Tensor(b!) shrink, "
          "float gamma, float alpha, float s_init, "
          "float max_weight, bool keep_loss, bool bounded, float factor) -> Tensor");
    m.def("settle("
          "Tensor(a!) accumulation, Tensor? rows, Tensor lam, "
          "Tensor(b!) log_s, Tensor(c!) log_s_lam, Tensor(d!) reports, "
          "float gamma, float alpha, float s_init, "
          "float max_weight, bool keep_loss, bool bounded, float divisor) -> Tensor");
    m.def("follow_lam("
          "Tensor losses, Tensor? mask, Tensor? weight, Tensor lam_rule, Tensor(a!) lam) -> ()");
    m.def("lam_sums("
          "Tensor losses, Tensor? mask, Tensor? weight, Tensor lam_rule, Tensor search) "
          "-> Tensor");
    m.def("lam_round(Tensor lam_rule, Tensor rows, Tensor(a!) search) -> ()");
    m.def("lam_update(Tensor lam_rule, Tensor search, Tensor(a!) lam) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(absgd, CPU, m) {
    m.impl("batch_stats", TORCH_BOX(&absgd::batch_stats));
    m.impl("weigh", TORCH_BOX(&absgd::weigh_op));
    m.impl("carry_log_s", TORCH_BOX(&absgd::carry_log_s));
    m.impl("weigh_provisionally", TORCH_BOX(&absgd::weigh_provisionally));
    m.impl("settle", TORCH_BOX(&absgd::settle));
    m.impl("follow_lam", TORCH_BOX(&absgd::follow_lam_op));
    m.impl("lam_sums", TORCH_BOX(&absgd::lam_sums));
    m.impl("lam_round", TORCH_BOX(&absgd::lam_round));
    m.impl("lam_update", TORCH_BOX(&absgd::lam_update));
}
