/* absgd.h — the C ABI of Attentional-Biased SGD on the CPU.
 *
 *   Qi, Xu, Yin, Jin, Yang: Attentional-Biased Stochastic Gradient Descent. TMLR 2023.
 *
 * Algorithm 1 of the paper, for a mini-batch of per-sample losses L_1 … L_B at temperature λ:
 *
 *   ℓ      = logsumexp(L/λ + log w) − log Σw              absgd_batch_stats, absgd_combine_stats
 *   log_s ← logaddexp(log(1−γ) + log_s, log γ + log α + ℓ)                    absgd_update_log_s
 *   p_i    = exp(L_i/λ − log_s)                                                    absgd_weights
 *   (1/B) Σ w_i p_i L_i: the scalar to differentiate; w, the base measure, is 1 in the paper
 *   v     ← βv + (1−dampening)·g,   w ← w − ηv      (or the paper's Equation 2)   absgd_sgd_step
 *
 * and the per-sample losses that it is used with, fused                      absgd_softmax_loss_*
 *
 * Promised of every function, and no more than this:
 *   - Pointers are to dense memory that the caller owns, aligned as its element type is. Nothing
 *     is allocated and no state is kept; thread pools, if any, are the caller's. Functions may be
 *     called from any threads at once that write to different memory.
 *   - Nothing that is written overlaps anything else that is passed, unless the function says so.
 *   - Sizes and indices are 64-bit and count elements.
 *   - Arguments are checked before anything is written. A result other than ABSGD_OK means that
 *     nothing was. What is checked: dtypes, sizes, NULL, hyper-parameters. A number among the data
 *     (losses, weights, λ, rows) may be anything, NaN included.
 *   - Where work is split by [begin, end), the split changes no bit of the result. Where it is
 *     split by passing parts of the arrays, that holds for elements (absgd_weights); sums
 *     (absgd_batch_stats, absgd_lam_sums) are the same in their bits only for the same parts,
 *     joined in the same order: cut at ABSGD_STATS_CHUNK, as the operators do.
 *   - Bits are the same on one machine; another processor may round the last place otherwise. Of a
 *     NaN no bit is promised.
 *   - The floating-point environment is the default one: rounding to nearest, subnormals kept
 *     (flushed, they read 0). Its exception flags mean nothing after a call.
 *   - Within a major version (ABSGD_VERSION_MAJOR; before 1.0, a minor one) structs keep their
 *     layout and functions their signature; new ones may be added. absgd_version tells what was
 *     linked.
 *   - "Arithmetic type": double for ABSGD_FLOAT64, float for the other three.
 */
#ifndef ABSGD_H
#define ABSGD_H

#include "absgd_version.h"

#include <math.h> /* NAN, for ABSGD_RULE_INIT */
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define ABSGD_API __attribute__((visibility("default")))
#else
#define ABSGD_API
#endif

/* ABSGD_VERSION of the library that was linked. */
ABSGD_API int32_t absgd_version(void);

/* Which kernels this processor runs: 2, 3 or 4 for x86-64-v2 to -v4; 1 where there is one level. */
ABSGD_API int32_t absgd_cpu_level(void);

typedef enum absgd_status {
    ABSGD_OK = 0,
    ABSGD_NULL_POINTER = 1,  /* a required pointer is NULL */
    ABSGD_INVALID_DTYPE = 2, /* not one of absgd_dtype */
    ABSGD_INVALID_SIZE = 3, /* a negative size, one whose sum or product overflows, or begin and end
                               outside 0 ≤ begin ≤ end ≤ size */
    ABSGD_INVALID_HYPERPARAMETER = 4, /* outside the range that its field documents */
    ABSGD_TARGET_OUT_OF_RANGE = 5,    /* a target is neither ignore_index nor in [0, classes) */
    ABSGD_CUDA_ERROR = 6,             /* a launch failed (CUDA only): see absgd_cuda.h */
} absgd_status;

/* A sentence in English for each status; "unknown status" for other values. Never NULL. */
ABSGD_API const char *absgd_status_string(absgd_status status);

typedef enum absgd_dtype {
    ABSGD_FLOAT32 = 0,
    ABSGD_FLOAT64 = 1,
    ABSGD_FLOAT16 = 2,
    ABSGD_BFLOAT16 = 3,
} absgd_dtype;

/* ---- weights ------------------------------------------------------------------------------- */

/* The unit of the sums of losses below: the sums are finite wherever the losses are, 1e308
 * included, while Σ w_i is below 2^63 (2^64, so that the scaling is exact). */
#define ABSGD_LOSS_UNIT 18446744073709551616.0

/* The sums that describe a batch, with z_i = L_i/λ (z_i = 0 for λ = ±∞), w_i the base measure (1
 * without one) and e_i = exp(z_i − m). Rows of two parts of a batch combine into the row of the
 * whole, so the parts can be threads' or ranks'. A sample that is masked out is in no sum. One of
 * w_i = 0 is in the first two only. */
typedef struct absgd_stats {
    double count;        /* B: samples that are not masked out */
    double nonfinite;    /* of these, how many have a non-finite L_i or z_i, a w_i that is negative
                            or not finite, or λ is NaN or 0: a bad batch if not 0 */
    double sum_weight;   /* Σ w_i; a bad batch if ∞, an empty one if 0 */
    double max;          /* m = max z_i over w_i > 0; −∞ if there is none */
    double sum;          /* Σ w_i e_i */
    double sum_sq;       /* Σ w_i e_i² */
    double sum_loss;     /* Σ w_i L_i, this and the following in ABSGD_LOSS_UNIT */
    double sum_weighted; /* Σ w_i e_i L_i */
    double sum_abs_loss; /* Σ w_i |L_i| */
    double sum_abs_weighted; /* Σ w_i e_i |L_i| */
} absgd_stats;

/* The normaliser's constants, and what guards training from the weights. With the last three fields
 * 0, there is no guard: Algorithm 1 to the letter. */
typedef struct absgd_rule {
    double gamma;      /* γ, moving-average rate, in (0, 1] */
    double alpha;      /* α, factor on the batch's mean, finite and > 0; 1 in the paper */
    double s_init;     /* s_1, ≥ 0, or NaN: the first batch sets log_s = log α + ℓ */
    double max_weight; /* c ≥ 1, a cap on weights; 0 or ∞: none */
    double keep_loss; /* 1: weights are scaled by κ = min(1, Σ w|L|/Σ w p|L|), which keeps the scale
                         of the gradient; 0: κ = 1 */
    double bounded;   /* 1: log_s is at most log α + ℓ − log γ. By Algorithm 1 itself s is at least
                         γα times the batch's mean; this is the mirror image, so that a batch's mean
                         weight stays within [γ, 1/γ] (α apart), however far the past was. 0: not */
} absgd_rule;

/* Algorithm 1 with γ = 0.9 and no guard, to begin from: absgd_rule rule = ABSGD_RULE_INIT; */
#define ABSGD_RULE_INIT {0.9, 1.0, NAN, 0.0, 0.0, 0.0}

/* The batch's work is cut into pieces of this many losses: one row of statistics each, combined in
 * order, so that the bits of log_s do not depend on the number of threads. */
#define ABSGD_STATS_CHUNK 16384

/* From this many losses on, if they are of single or half precision, exponentials are computed in
 * float: each weight, and each sum of a part of the batch that is so large, is then within
 * ABSGD_LARGE_ERROR of its exact value, relatively (of Σ w|L| where losses of either sign are
 * summed); so is what a λ that was searched for attains. Below it, in float64, and where numbers
 * are extreme (1e12), they are to rounding in double. */
#define ABSGD_LARGE 4096
#define ABSGD_LARGE_ERROR 1e-6

/* *stats = the sums of losses[0..n). mask[i] = 0 takes sample i out (its loss and weight are not
 * read as numbers); weight[i] = w_i ≥ 0, of the arithmetic type; mask and weight may be NULL. *lam
 * is λ: any double; NaN and 0 make the batch non-finite. */
ABSGD_API absgd_status absgd_batch_stats(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                         const void *weight, int64_t n, const double *lam,
                                         absgd_stats *stats);

/* *stats = the row of the union of rows[0..n_rows), combined in their order. May alias rows. */
ABSGD_API absgd_status absgd_combine_stats(const absgd_stats *rows, int64_t n_rows,
                                           absgd_stats *stats);

/* Re-expresses log_s, which was last written at temperature *log_s_lam, at temperature *lam:
 * log_s·λ_old/λ_new within one sign (λ·log_s, the estimate of the objective, carries over);
 * log(s_init) or NaN, "unset", on a change of sign, from ±∞, or where that overflows. At λ = ±∞
 * log_s stays. A λ that is NaN or 0 changes nothing. */
ABSGD_API absgd_status absgd_carry_log_s(const double *lam, const absgd_rule *rule, double *log_s,
                                         double *log_s_lam);

/* Algorithm 1, line "s ← (1−γ)s + γ·α·mean exp(L/λ)", in the log domain, after absgd_carry_log_s;
 * then rule->bounded. An empty batch and a bad one change neither log_s nor log_s_lam. */
ABSGD_API absgd_status absgd_update_log_s(const absgd_stats *stats, const double *lam,
                                          const absgd_rule *rule, double *log_s, double *log_s_lam);

/* weights[i] = min(κp_i, c) with p_i = exp(L_i/λ − log_s); 1 at λ = ±∞; 0 where masked out or
 * w_i = 0. coefficients[i] = factor·weights[i]·w_i/stats->count, so that Σ coefficients_i L_i is
 * the scalar to differentiate (factor: the number of ranks whose gradients are averaged, else 1).
 * Both in the arithmetic type. stats is the whole batch's row. In a bad batch the weights are NaN
 * at a finite λ, and the coefficients where weight is given. *capped, which may be NULL: how many
 * of these samples had κp_i > c. */
ABSGD_API absgd_status absgd_weights(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                     const void *weight, int64_t n, const double *lam,
                                     const absgd_rule *rule, const double *log_s,
                                     const absgd_stats *stats, double factor, void *weights,
                                     void *coefficients, double *capped);

/* What a person wants to know of a batch's weights. p is the rule's own here, before the guards. */
typedef struct absgd_report {
    double count;             /* B */
    double mean_loss;         /* (1/B) Σ w_i L_i */
    double weighted_loss;     /* (1/B) Σ w_i p_i L_i */
    double objective;         /* λ·log_s, the estimate of F_λ; Σ w_i L_i/Σ w_i at λ = ±∞ */
    double max_weight;        /* max p_i over w_i > 0 */
    double effective_samples; /* B·(Σ w_i p_i)²/(Σ w_i·Σ w_i p_i²) */
    double batches;           /* 1; in the running mean, how many batches it has seen */
    double kappa;             /* κ; 1 without keep_loss */
    double capped;            /* share of the samples whose weight was capped */
} absgd_report;

/* Rate of the exponential running mean that absgd_observe keeps. */
#define ABSGD_REPORT_RATE 0.01

/* reports[0] = the batch's report, after absgd_update_log_s; reports[1], its running mean, starts
 * at the first batch while its count reads NaN. capped: the share that the report is to tell. An
 * empty batch changes nothing, a bad one leaves the running mean. */
ABSGD_API absgd_status absgd_observe(const absgd_stats *stats, const double *lam,
                                     const absgd_rule *rule, const double *log_s, double capped,
                                     absgd_report reports[2]);

/* An absgd_report[2] before the first batch. */
#define ABSGD_REPORTS_INIT                                                                         \
    {                                                                                              \
        {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN}, {                                           \
            NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN                                            \
        }                                                                                          \
    }

/* A batch's step of Algorithm 1 in one call, for who has one thread: absgd_batch_stats in pieces of
 * ABSGD_STATS_CHUNK, absgd_combine_stats, absgd_update_log_s, absgd_weights (with factor 1) and
 * absgd_observe, of the same bits. reports may be NULL. */
ABSGD_API absgd_status absgd_weigh(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                   const void *weight, int64_t n, const double *lam,
                                   const absgd_rule *rule, double *log_s, double *log_s_lam,
                                   absgd_report reports[2], void *weights, void *coefficients);

/* ---- gradient accumulation ----------------------------------------------------------------- */

/* Gradients are linear in 1/s and in κ, so micro-batches can be weighted with a provisional
 * normaliser and the sum of their gradients turned into the large batch's at the end: exactly,
 * unless weights are capped. A cap is taken against the provisional normaliser. */
typedef struct absgd_accumulation {
    absgd_stats whole;      /* the micro-batches so far; all zero before the first */
    double log_c;           /* the provisional normaliser, in place of log_s */
    double reference_count; /* samples of the first non-empty micro-batch, in place of B */
    double capped;          /* the caller's: samples capped so far */
} absgd_accumulation;

/* A provisional weight above exp(this) raises log_c. */
#define ABSGD_PROVISIONAL_LIMIT 10.0

/* Adds a micro-batch, given its row of statistics. The first non-empty one sets log_c: to log_s
 * (carried over to *lam), or to its own log α + ℓ where log_s is unset or higher than that by more
 * than the limit. *shrink = the factor, 1 or less, by which gradients that are already accumulated
 * must be multiplied because log_c was raised; it never is where weights are capped. absgd_weights
 * then takes log_c for log_s, a row whose count is reference_count, and a rule with keep_loss 0. */
ABSGD_API absgd_status absgd_accumulate(const absgd_stats *stats, const double *lam,
                                        const absgd_rule *rule, const double *log_s,
                                        const double *log_s_lam, absgd_accumulation *accumulation,
                                        double *shrink);

/* Bounds the logarithm of absgd_settle's factor from above. */
#define ABSGD_FACTOR_LIMIT 80.0

/* Updates log_s with the whole batch and empties the accumulation. *factor = what the accumulated
 * gradients must be multiplied by: divisor·(reference_count/B)·κ·exp(log_c − log_s), with divisor
 * the number that the loop divided each micro-batch's loss by; 1 if nothing was accumulated. It is
 * finite unless the batch was bad: the exponent is cut at ABSGD_FACTOR_LIMIT, which it exceeds only
 * where the caller chose a log_c of its own, far above the batch, or a γα of 1e-30. */
ABSGD_API absgd_status absgd_settle(absgd_accumulation *accumulation, const double *lam,
                                    const absgd_rule *rule, double divisor, double *log_s,
                                    double *log_s_lam, double *factor);

/* ---- λ from how selective the weights shall be --------------------------------------------- */

typedef enum absgd_lam_kind {
    ABSGD_LAM_EFFECTIVE_SAMPLES = 1, /* (Σwq)²/(Σw Σwq²) = target, in (0, 1) */
    ABSGD_LAM_KL_RADIUS = 2,         /* KL(wq/Σwq ‖ w/Σw) = target > 0 */
} absgd_lam_kind;

/* What λ is to follow: on each batch, the λ* at which the batch's own weights q ∝ exp(L/λ*) are as
 * selective, against the base measure w, as target says. All fields are finite doubles, so that it
 * can be a row of a tensor. */
typedef struct absgd_lam_rule {
    double kind; /* absgd_lam_kind */
    double target;
    double sign;      /* of λ: 1 or −1 */
    double rate;      /* of the average of log|λ|, in (0, 1] */
    double low, high; /* bounds of |λ*| over the batch's max L − min L; 0 < low < high */
} absgd_lam_rule;

/* The sums of one round over a part of the batch; see lam_search_math.h. */
typedef struct absgd_lam_row {
    double count, nonfinite, sum_weight, max, max_negated, s0, s1, s2, t0, t1;
} absgd_lam_row;

/* The effective-sample-size rule at 0.8, each batch's own λ*, to begin from. */
#define ABSGD_LAM_RULE_INIT {ABSGD_LAM_EFFECTIVE_SAMPLES, 0.8, 1.0, 1.0, 1e-12, 1e6}

/* A search under way; all zero at its start. */
typedef struct absgd_lam_search {
    double round, has_answer, max, low, high, u, step; /* u = log|λ|, step: its last change */
    double is_low_tried, is_high_tried;                /* whether λ* is known to be inside */
} absgd_lam_search;

/* Rounds after which λ* stands, relatively to 1e-9; most searches are over after six, and from then
 * on low = high. */
#define ABSGD_LAM_ROUNDS 24

/* *row = the sums that this round of the search needs of losses[0..n). mask and weight as in
 * absgd_batch_stats. */
ABSGD_API absgd_status absgd_lam_sums(absgd_dtype dtype, const void *losses, const uint8_t *mask,
                                      const void *weight, int64_t n, const absgd_lam_rule *rule,
                                      const absgd_lam_search *search, absgd_lam_row *row);

/* *row = the row of the union of rows[0..n_rows), joined in their order. */
ABSGD_API absgd_status absgd_lam_join(const absgd_lam_row *rows, int64_t n_rows,
                                      absgd_lam_row *row);

/* One round: joins the rows of all parts and narrows the bracket. */
ABSGD_API absgd_status absgd_lam_round(const absgd_lam_rule *rule, const absgd_lam_row *rows,
                                       int64_t n_rows, absgd_lam_search *search);

/* After the last round: moves log|λ| towards log|λ*| by rate; sets λ = λ* if it is NaN, ±∞ ("no
 * answer yet", where p = 1) or of the other sign. A batch that defines no λ* (fewer than two
 * samples of w > 0, bad ones, all equal, too many tied for the target, or a radius out of reach)
 * leaves λ as it is. */
ABSGD_API absgd_status absgd_lam_update(const absgd_lam_rule *rule, const absgd_lam_search *search,
                                        double *lam);

/* ---- the momentum step --------------------------------------------------------------------- */

typedef struct absgd_tensor {
    void *param;      /* w */
    const void *grad; /* g, of the same dtype and in the same element order */
    void *momentum; /* v (or d), likewise; not read or written if the momentum factor is 0, else not
                       NULL unless numel is 0 */
    int64_t numel;
    int32_t fresh; /* not 0: momentum has no value yet and is not read: v ← g (d ← −ηg) */
} absgd_tensor;

typedef struct absgd_sgd_options {
    double lr;       /* η */
    double momentum; /* β ≥ 0 */
    double dampening;
    double weight_decay; /* g ← g + weight_decay·w */
    double grad_scale;   /* g ← g/grad_scale first (AMP), not 0; 1 otherwise; grad is not changed */
    int32_t nesterov;    /* step along g + βv; needs β > 0, dampening 0 and the torch form */
    int32_t maximize;    /* g ← −g, before weight decay */
    int32_t polyak;      /* 0: v ← βv + (1−dampening)g, w ← w − ηv, as torch.optim.SGD
                            1: d ← βd − ηg, w ← w + d, the paper's Equation 2; dampening must be 0 */
} absgd_sgd_options;

/* Plain SGD at η = 0.001, to begin from. */
#define ABSGD_SGD_OPTIONS_INIT {1e-3, 0.0, 0.0, 0.0, 1.0, 0, 0, 0}

/* One step of elements [begin, end) of the concatenation of tensors[0..n_tensors). Parameters in
 * half precision are computed in float32 and rounded once. */
ABSGD_API absgd_status absgd_sgd_step(absgd_dtype dtype, const absgd_tensor *tensors,
                                      int64_t n_tensors, const absgd_sgd_options *options,
                                      int64_t begin, int64_t end);

/* ---- per-sample softmax losses ------------------------------------------------------------- */

/* With z_c = scale·(x_c − margin_y·[c = y]) + offset_c and P = softmax(z), the loss of a sample is
 *
 *   integer target y:  weight_y·(1−ε)·(1−P_y)^γ·(−log P_y) + (ε/C)·Σ_c weight_c·(−log P_c)
 *   soft target q:     Σ_c weight_c·((1−ε)·q_c + ε/C)·(−log P_c)
 *     under margins or γ ≠ 0:  Σ_y q_y·(the loss of y), with q that sums to 1 where ε ≠ 0
 *
 * cross-entropy: γ = 0; focal (Lin et al. 2017, Equation 4): γ = focal_gamma, ε = 0;
 * LDAM (Cao et al. 2019, Equations 11–13): margin and scale; logit adjustment (Menon et al. 2021,
 * Equation 10): offset. */
typedef struct absgd_softmax_loss {
    int64_t samples;        /* N·d1·d2… */
    int64_t classes;        /* C ≥ 1 */
    int64_t inner;          /* d1·d2…, 1 for (N, C) logits; divides samples */
    const void *weight;     /* [C] of the arithmetic type, or NULL: 1 */
    const void *margin;     /* [C] of the arithmetic type, ≥ 0 with a soft target, or NULL: 0 */
    const void *offset;     /* [C] of the arithmetic type, or NULL: 0 */
    double scale;           /* finite, > 0 */
    double focal_gamma;     /* γ ≥ 0; not together with label_smoothing */
    double label_smoothing; /* ε in [0, 1] */
    int64_t ignore_index;   /* samples of this target have loss 0, gradient 0 */
} absgd_softmax_loss;

/* What the backward pass needs beside the logits: this many values of the arithmetic type for each
 * sample, laid out [ABSGD_LOSS_SAVED][samples]. They are M = max z_c, the two numbers in
 *
 *   ∂loss/∂z_c = saved_1·exp(z_c − M) − (ε/C)·weight_c  for c ≠ y,   ∂loss/∂z_y = saved_2
 *
 * (with a soft target: saved_1·exp(z_c − M) − weight_c·((1−ε)·q_c + ε/C) for every c), and
 * log Σ_c exp(z_c − M). With a soft target under margins or γ ≠ 0, z is without margins, M may be
 * below the largest, saved_2 is that one's ∂loss/∂z, and what is taken from the others' is r_c of
 * class_loss_math.h. */
#define ABSGD_LOSS_SAVED 4

/* loss[i], of the arithmetic type, for samples [begin, end). Exactly one of target ([samples]) and
 * soft_target (laid out as the logits, of the arithmetic type) is not NULL, else
 * ABSGD_NULL_POINTER. Only the targets of [begin, end) are read, and checked. kept: NULL, or memory
 * like the logits', in which exponentials may be left for the backward pass, so that it need not
 * compute them again; it is worth it as long as they stay in a cache. */
ABSGD_API absgd_status absgd_softmax_loss_forward(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                                  const void *logits, const int64_t *target,
                                                  const void *soft_target, void *loss, void *saved,
                                                  void *kept, int64_t begin, int64_t end);

/* grad_logits = grad_loss_i·∂loss_i/∂logits for samples [begin, end), in the logits' dtype.
 * grad_loss is of the arithmetic type. kept: what the same call of the forward pass had, with
 * what that left in it, or NULL; may be grad_logits. The gradient has the same bits either way. */
ABSGD_API absgd_status absgd_softmax_loss_backward(absgd_dtype dtype,
                                                   const absgd_softmax_loss *spec,
                                                   const void *logits, const int64_t *target,
                                                   const void *soft_target, const void *saved,
                                                   const void *kept, const void *grad_loss,
                                                   void *grad_logits, int64_t begin, int64_t end);

/* ---- per-sample sigmoid losses ------------------------------------------------------------- */

/* With q = (1−ε)·target + ε/2 and P = σ(x), the loss of an element, a label of a sample, is
 *
 *   weight_c·(α·q + (1−α)(1−q))·(1−P_t)^γ·(pos_weight_c·q·(−log P) + (1−q)·(−log(1−P)))
 *
 * where 1 − P_t = q(1−P) + (1−q)P. Binary cross-entropy: γ = 0 and no α; sigmoid focal (Lin et al.
 * 2017, Equation 5): α and γ. The loss of a sample is the mean over those of its elements whose
 * target is not ignore_index; 0 if there are none. */
typedef struct absgd_sigmoid_loss {
    int64_t samples;        /* N */
    int64_t classes;        /* C ≥ 0 */
    int64_t inner;          /* d1·d2… ≥ 0, 1 for (N, C) logits */
    const void *weight;     /* [C] of the arithmetic type, or NULL: 1 */
    const void *pos_weight; /* [C] of the arithmetic type, or NULL: 1 */
    double label_smoothing; /* ε in [0, 1] */
    double alpha;           /* α in [0, 1]; negative: the factor is absent */
    double focal_gamma;     /* γ ≥ 0 */
    double ignore_index;    /* elements of this target have loss 0, gradient 0; NaN: none has; not
                               in [0, 1], in the arithmetic type */
    int32_t per_sample;     /* 0: a loss for each of N·C·inner elements; else one for each of N */
} absgd_sigmoid_loss;

/* How far beyond [0, 1] a target may lie, for rounding. */
#define ABSGD_TARGET_SLACK 1e-5

/* loss[i], of the arithmetic type, for [begin, end) of the losses: logits and targets, laid out
 * alike, are read once. target is of the arithmetic type; one that is neither in [0, 1] nor
 * ignore_index, NaN too, gives ABSGD_TARGET_OUT_OF_RANGE. known[i], likewise: how many elements of
 * the sample count; NULL if not per_sample. */
ABSGD_API absgd_status absgd_sigmoid_loss_forward(absgd_dtype dtype, const absgd_sigmoid_loss *spec,
                                                  const void *logits, const void *target,
                                                  void *loss, void *known, int64_t begin,
                                                  int64_t end);

/* grad_logits, in the logits' dtype, of the elements of losses [begin, end), given grad_loss, of
 * the arithmetic type. */
ABSGD_API absgd_status absgd_sigmoid_loss_backward(absgd_dtype dtype,
                                                   const absgd_sigmoid_loss *spec,
                                                   const void *logits, const void *target,
                                                   const void *known, const void *grad_loss,
                                                   void *grad_logits, int64_t begin, int64_t end);

#ifdef __cplusplus
}
#endif
#endif
