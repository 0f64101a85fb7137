/* absgd_cuda.h — the C ABI of Attentional-Biased SGD on CUDA: absgd.h, with a stream.
 *
 * The functions, structs, status codes and formulas are those of absgd.h, which is the reference
 * for every argument that is not explained here. What differs:
 *
 *   - Every pointer is to memory of the current device, except rule (an absgd_rule), options, spec,
 *     weighting and tensors themselves: they are the host's, and read before the call returns. λ,
 *     log_s, statistics, reports and accumulations so stay on the device, where a captured CUDA
 *     graph finds their new values at each replay.
 *   - Work is queued on `stream` (a cudaStream_t; NULL is the default stream). Nothing is
 *     allocated, nothing synchronises, and everything can be captured into a graph.
 *   - A call does all of the work: there is no [begin, end).
 *   - Reductions have a fixed shape: a result has the same bits on every run of a card, for arrays
 *     that lie alike modulo 16 bytes.
 *   - ABSGD_CUDA_ERROR: a launch failed, and cudaGetLastError says why, of the CUDA runtime that is
 *     linked in (the shared library has one of its own). Every other status is the arguments', as
 *     in absgd.h; what lies on the device is not looked at: an invalid λ there gives NaN and leaves
 *     the state alone.
 *
 * Compute capability 7.5 or newer. */
#ifndef ABSGD_CUDA_H
#define ABSGD_CUDA_H

#include "absgd.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- weights ---- */

/* A batch of more than ABSGD_CUDA_CHUNK losses is reduced in chunks of that many, by several
 * thread blocks; `scratch` then has room for a row of each, (n + CHUNK − 1)/CHUNK of them, given
 * `rows` or not. It may be NULL for a smaller batch. */
#define ABSGD_CUDA_CHUNK 2048

/* As absgd_batch_stats. */
ABSGD_API absgd_status absgd_batch_stats_cuda(absgd_dtype dtype, const void *losses,
                                              const uint8_t *mask, const void *weight, int64_t n,
                                              const double *lam, absgd_stats *scratch,
                                              absgd_stats *stats, void *stream);

/* As absgd_carry_log_s. */
ABSGD_API absgd_status absgd_carry_log_s_cuda(const double *lam, const absgd_rule *rule,
                                              double *log_s, double *log_s_lam, void *stream);

/* A step of Algorithm 1 in one launch: absgd_batch_stats (or absgd_combine_stats of rows[0..n_rows)
 * where rows is not NULL, the ranks' rows), then absgd_update_log_s, absgd_weights and
 * absgd_observe. The report's capped is the share of these samples, not of all ranks'. */
ABSGD_API absgd_status absgd_weigh_cuda(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                        const void *weight, int64_t n, const absgd_stats *rows,
                                        int64_t n_rows, absgd_stats *scratch, const double *lam,
                                        const absgd_rule *rule, double *log_s, double *log_s_lam,
                                        absgd_report reports[2], double factor, void *weights,
                                        void *coefficients, void *stream);

/* ---- gradient accumulation ---- */

/* A micro-batch in one launch: its statistics, or rows, as absgd_weigh_cuda; absgd_accumulate; and
 * absgd_weights with log_c for log_s, reference_count for B and no κ. Adds to capped. */
ABSGD_API absgd_status absgd_weigh_provisionally_cuda(
    absgd_dtype dtype, const void *losses, const uint8_t *mask, const void *weight, int64_t n,
    const absgd_stats *rows, int64_t n_rows, absgd_stats *scratch, const double *lam,
    const absgd_rule *rule, const double *log_s, const double *log_s_lam,
    absgd_accumulation *accumulation, double *shrink, double factor, void *weights,
    void *coefficients, void *stream);

/* absgd_settle, then absgd_observe. The whole batch is the accumulation's, or rows[0..n_rows)
 * joined where rows is not NULL. */
ABSGD_API absgd_status absgd_settle_cuda(absgd_accumulation *accumulation, const absgd_stats *rows,
                                         int64_t n_rows, const double *lam, const absgd_rule *rule,
                                         double divisor, double *log_s, double *log_s_lam,
                                         absgd_report reports[2], double *factor, void *stream);

/* ---- λ from how selective the weights shall be ---- */

/* The whole search on one process's batch, in one launch: absgd_lam_sums and absgd_lam_round until
 * the answer stands, then absgd_lam_update. rule is on the device; scratch has room for two rows a
 * chunk, or is NULL, as above. */
ABSGD_API absgd_status absgd_follow_lam_cuda(absgd_dtype dtype, const void *losses,
                                             const uint8_t *mask, const void *weight, int64_t n,
                                             const absgd_lam_rule *rule, absgd_lam_row *scratch,
                                             double *lam, void *stream);

/* As absgd_lam_sums, for all losses; absgd_lam_round; absgd_lam_update. */
ABSGD_API absgd_status absgd_lam_sums_cuda(absgd_dtype dtype, const void *losses,
                                           const uint8_t *mask, const void *weight, int64_t n,
                                           const absgd_lam_rule *rule,
                                           const absgd_lam_search *search, absgd_lam_row *scratch,
                                           absgd_lam_row *row, void *stream);
ABSGD_API absgd_status absgd_lam_round_cuda(const absgd_lam_rule *rule, const absgd_lam_row *rows,
                                            int64_t n_rows, absgd_lam_search *search, void *stream);
ABSGD_API absgd_status absgd_lam_update_cuda(const absgd_lam_rule *rule,
                                             const absgd_lam_search *search, double *lam,
                                             void *stream);

/* ---- the momentum step ---- */

/* As absgd_sgd_step. lr and grad_scale, where not NULL, stand in for options' own; found_inf, where
 * not NULL and not 0, leaves every parameter and buffer as it is. A launch takes 640 tensors. */
ABSGD_API absgd_status absgd_sgd_step_cuda(absgd_dtype dtype, const absgd_tensor *tensors,
                                           int64_t n_tensors, const absgd_sgd_options *options,
                                           const double *lr, const double *grad_scale,
                                           const double *found_inf, void *stream);

/* ---- per-sample softmax losses ---- */

/* As absgd_softmax_loss_forward and _backward without `kept`, for all samples; weight, margin and
 * offset are on the device, where the host cannot see them: a margin below 0 under a soft target is
 * not an error here. At most 2^30 classes. A target out of range, which the host cannot see either,
 * gives a NaN loss and gradient. A sample's sums are turned into its loss in the arithmetic type,
 * where the CPU takes double. *grad_factor, of the arithmetic type, multiplies all of grad_loss;
 * NULL: 1. */
ABSGD_API absgd_status absgd_softmax_loss_forward_cuda(absgd_dtype dtype,
                                                       const absgd_softmax_loss *spec,
                                                       const void *logits, const int64_t *target,
                                                       const void *soft_target, void *loss,
                                                       void *saved, void *stream);

ABSGD_API absgd_status absgd_softmax_loss_backward_cuda(
    absgd_dtype dtype, const absgd_softmax_loss *spec, const void *logits, const int64_t *target,
    const void *soft_target, const void *saved, const void *grad_loss, const void *grad_factor,
    void *grad_logits, void *stream);

/* ---- per-sample sigmoid losses ---- */

/* As absgd_sigmoid_loss_forward and _backward, for all samples; weight and pos_weight are on the
 * device. A target out of range, which the host cannot see, gives a NaN loss and gradient. A
 * sample's losses are summed in the arithmetic type, where the CPU takes double. *grad_factor, of
 * that type, multiplies all of grad_loss; NULL: 1. */
ABSGD_API absgd_status absgd_sigmoid_loss_forward_cuda(absgd_dtype dtype,
                                                       const absgd_sigmoid_loss *spec,
                                                       const void *logits, const void *target,
                                                       void *loss, void *known, void *stream);

ABSGD_API absgd_status absgd_sigmoid_loss_backward_cuda(absgd_dtype dtype,
                                                        const absgd_sigmoid_loss *spec,
                                                        const void *logits, const void *target,
                                                        const void *known, const void *grad_loss,
                                                        const void *grad_factor, void *grad_logits,
                                                        void *stream);

/* ---- from losses to the scalar ---- */

/* The base measure of a softmax loss's samples, of dtype's arithmetic type: measure[i] = weight[i],
 * or 1 if weight is NULL, times class_weight[target[i]] or Σ_c class_weight[c]·soft_target[i][c];
 * NaN for a target out of range. counts[i]: whether mask[i], where there is a mask, and target[i]
 * is not ignore_index. Either result may be NULL. spec, target and soft_target as above. */
ABSGD_API absgd_status absgd_base_measure_cuda(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                               const int64_t *target, const void *soft_target,
                                               const uint8_t *mask, const void *weight,
                                               const void *class_weight, uint8_t *counts,
                                               void *measure, void *stream);

/* *total = Σ coefficients_i·losses_i over mask_i ≠ 0, all of dtype, which is float32 or float64;
 * mask may be NULL. */
ABSGD_API absgd_status absgd_dot_cuda(absgd_dtype dtype, const void *coefficients,
                                      const void *losses, const uint8_t *mask, int64_t n,
                                      void *total, void *stream);

/* What absgd_weighted_softmax_loss_cuda makes of the losses. Values are of the arithmetic type, one
 * a sample where nothing else is said. */
typedef struct absgd_weighting {
    /* As absgd_base_measure_cuda; each may be NULL. */
    const uint8_t *mask;
    const void *weight;
    const void *class_weight; /* one a class */
    /* The rule. */
    const absgd_lam_rule *lam_rule; /* on the device; NULL: lam stays */
    double *lam;
    const absgd_rule *rule; /* the host's */
    double *log_s, *log_s_lam;
    absgd_report *reports; /* two */
    /* Room; each may be NULL where it is not needed. */
    uint8_t *counts;            /* if NULL, ignored samples count, with a loss of 0 */
    void *measure;              /* for class_weight */
    absgd_stats *scratch;       /* as absgd_weigh_cuda */
    absgd_lam_row *lam_scratch; /* as absgd_follow_lam_cuda */
    /* Results. */
    void *weights, *coefficients;
    void *total; /* one: Σ coefficients_i·loss_i, the scalar to differentiate */
} absgd_weighting;

/* absgd_softmax_loss_forward_cuda, absgd_base_measure_cuda, absgd_follow_lam_cuda, absgd_weigh_cuda
 * with factor 1, and absgd_dot_cuda: the same bits in one launch. */
ABSGD_API absgd_status absgd_weighted_softmax_loss_cuda(absgd_dtype dtype,
                                                        const absgd_softmax_loss *spec,
                                                        const void *logits, const int64_t *target,
                                                        const void *soft_target,
                                                        const absgd_weighting *weighting,
                                                        void *loss, void *saved, void *stream);

#ifdef __cplusplus
}
#endif
#endif
