/* Per-sample softmax losses: cross-entropy, focal, LDAM and logit adjustment in one kernel.
 *
 * Forward: one pass over the logits in tiles that stay in the first-level cache; the running
 * maximum and sums are rescaled when a tile raises the maximum. What a sample's sums come to is in
 * softmax_loss_math.h, in double whatever the dtype: it is done once for C classes. Backward: one
 * pass that reads logits and writes their gradient; the softmax is recomputed, or was kept.
 *
 * The classes of (N, C) logits lie side by side and fill the vector registers; of (N, C, inner)
 * logits the positions do, BLOCK at a time, and so do rows of few classes, transposed.
 * softmax_loss_real.h has both, once for each arithmetic type, and expected_loss_real.h what soft
 * targets under margins or γ ≠ 0 take beside it: a second look at the classes in each pass. */
#include "exp.h"
#include "half.h"
#include "kernels.h"
#include "log_f32.h"

#include <float.h>
#include <string.h>

#define ABSGD_NOINLINE __attribute__((noinline))

enum {
    BLOCK = 64,         /* samples whose sums are collected, then finished together */
    ROWS = 4,           /* rows at a time; divides BLOCK */
    TILE = 1024,        /* classes of them at a time; a multiple of 16 */
    BLOCK_CLASSES = 32, /* classes of a block of positions at a time */
};

#define REAL(name) sample_##name
#define real double
#define EXP absgd_exp_nonpositive_f64
#define LOG absgd_log_f64
#define LOG1P absgd_log1p_f64
#include "softmax_loss_math.h"
#undef REAL
#undef real

/* Of a block's samples: M, S, z_y, Σ a_c and Σ a_c(M − z_c), as softmax_loss_math.h has them; for
 * an expected loss, y is the top class, and the last two come of its second look at the classes. */
typedef struct sums {
    double max[BLOCK], sum[BLOCK], z_y[BLOCK], a_sum[BLOCK], a_dot[BLOCK];
    int64_t y[BLOCK];
} sums;

/* The arguments of a call, as the functions below pass them on. */
typedef struct loss_call {
    absgd_softmax_loss spec;
    const void *logits;
    const int64_t *target;
    const void *soft_target;
    void *kept; /* exp(z_c − M) of every logit, or NULL */
} loss_call;

/* Whether some class other than the target has a_c ≠ 0. */
static int spreads(const loss_call *call) {
    return call->soft_target || call->spec.label_smoothing != 0.0;
}

/* Whether the loss is the mean, under a soft target, of losses that differ by more than z. */
static int is_expected(const loss_call *call) {
    return call->soft_target && (call->spec.margin || call->spec.focal_gamma != 0.0);
}

/* Calls of a loop with what such losses have known to the compiler: margins, and what u^γ is. */
#define EACH_KIND(loop, spec, ...)                                                                 \
    if (!(spec)->margin && (spec)->focal_gamma == 2.0) {                                           \
        loop(0, ABSGD_FOCUS_SQUARED, __VA_ARGS__);                                                 \
    } else if (!(spec)->margin) {                                                                  \
        loop(0, ABSGD_FOCUS, __VA_ARGS__);                                                         \
    } else if ((spec)->focal_gamma == 0.0) {                                                       \
        loop(1, ABSGD_NO_FOCUS, __VA_ARGS__);                                                      \
    } else {                                                                                       \
        loop(1, ABSGD_FOCUS, __VA_ARGS__);                                                         \
    }

/* Whether rows are so short that positions fill the registers better than classes do. */
static int has_few_classes(const loss_call *call) {
    return call->spec.inner == 1 && call->spec.classes <= BLOCK_CLASSES && !call->soft_target;
}

/* Whether exponentials are kept where the caller asks for it: of rows of one tile, whose M is known
 * before the first of them. Half precision would round them, and blocks have them transposed. */
static int keeps(absgd_dtype dtype, const loss_call *call) {
    return (dtype == ABSGD_FLOAT32 || dtype == ABSGD_FLOAT64) && call->spec.inner == 1 &&
           call->spec.classes <= TILE && !has_few_classes(call) && !is_expected(call);
}

static int is_ignored(const loss_call *call, int64_t s) {
    return call->target && call->target[s] == call->spec.ignore_index;
}

/* Samples [s, result) are those of a block: at most BLOCK, and of one n of (N, C, inner). */
static int64_t block_end(const absgd_softmax_loss *spec, int64_t s, int64_t end) {
    int64_t limit = s + BLOCK;
    if (spec->inner > 1) {
        int64_t row_end = (s / spec->inner + 1) * spec->inner;
        if (row_end < limit) limit = row_end;
    }
    return limit < end ? limit : end;
}

#define REAL(name) name##_f32
#define real float
#define REAL_LOWEST (-FLT_MAX)
#define exp_nonpositive absgd_exp_nonpositive_f32
#define EXP absgd_exp_nonpositive_f32
#define LOG absgd_log_f32
#include "class_loss_math.h"
#include "softmax_loss_real.h"
#undef REAL
#undef real
#undef REAL_LOWEST
#undef exp_nonpositive

#define REAL(name) name##_f64
#define real double
#define REAL_LOWEST (-DBL_MAX)
#define exp_nonpositive absgd_exp_nonpositive_f64
#define EXP absgd_exp_nonpositive_f64
#define LOG absgd_log_f64
#include "class_loss_math.h"
#include "softmax_loss_real.h"

/* The dtype is a constant in each call, so that the loops hold one conversion and no switch. */
void ABSGD_KERNEL(absgd_softmax_loss_forward)(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                              const void *logits, const int64_t *target,
                                              const void *soft_target, void *loss, void *saved,
                                              void *kept, int64_t begin, int64_t end) {
    loss_call call = {*spec, logits, target, soft_target, NULL};
    if (keeps(dtype, &call)) call.kept = kept;
    switch (dtype) {
        case ABSGD_FLOAT32: forward_f32(ABSGD_FLOAT32, &call, loss, saved, begin, end); break;
        case ABSGD_FLOAT64: forward_f64(ABSGD_FLOAT64, &call, loss, saved, begin, end); break;
        case ABSGD_FLOAT16: forward_f32(ABSGD_FLOAT16, &call, loss, saved, begin, end); break;
        case ABSGD_BFLOAT16: forward_f32(ABSGD_BFLOAT16, &call, loss, saved, begin, end); break;
    }
}

void ABSGD_KERNEL(absgd_softmax_loss_backward)(absgd_dtype dtype, const absgd_softmax_loss *spec,
                                               const void *logits, const int64_t *target,
                                               const void *soft_target, const void *saved,
                                               const void *kept, const void *grad_loss,
                                               void *grad_logits, int64_t begin, int64_t end) {
    loss_call call = {*spec, logits, target, soft_target, NULL};
    if (keeps(dtype, &call)) call.kept = (void *)kept;
#define CASE(name, suffix)                                                                         \
    case name: backward_##suffix(name, &call, saved, grad_loss, grad_logits, begin, end); break;
    switch (dtype) {
        CASE(ABSGD_FLOAT32, f32)
        CASE(ABSGD_FLOAT64, f64)
        CASE(ABSGD_FLOAT16, f32)
        CASE(ABSGD_BFLOAT16, f32)
    }
#undef CASE
}
