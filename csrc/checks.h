/* What the C ABI asks of its arguments, before anything is written: shared by dispatch.c (CPU) and
 * the launchers in cuda/. */
#ifndef ABSGD_CHECKS_H
#define ABSGD_CHECKS_H

#include "absgd.h"

#include <math.h>

#define ABSGD_REQUIRE(condition, status)                                                           \
    if (!(condition)) return status

static inline int absgd_is_dtype(absgd_dtype dtype) {
    return (int)dtype >= (int)ABSGD_FLOAT32 && (int)dtype <= (int)ABSGD_BFLOAT16;
}

static inline int64_t absgd_size_of(absgd_dtype dtype) {
    return dtype == ABSGD_FLOAT64 ? 8 : dtype == ABSGD_FLOAT32 ? 4 : 2;
}

/* Whether a·b numbers of 8 bytes can be counted in bytes; a, b ≥ 0. */
static inline int absgd_fits(int64_t a, int64_t b) { return b == 0 || a <= INT64_MAX / 8 / b; }

static inline int absgd_is_switch(double value) { return value == 0.0 || value == 1.0; }

static inline int absgd_is_rule(const absgd_rule *rule) {
    int has_guards = (rule->max_weight == 0.0 || rule->max_weight >= 1.0) &&
                     absgd_is_switch(rule->keep_loss) && absgd_is_switch(rule->bounded);
    return has_guards && rule->gamma > 0.0 && rule->gamma <= 1.0 && rule->alpha > 0.0 &&
           isfinite(rule->alpha) && (rule->s_init >= 0.0 || isnan(rule->s_init)) &&
           !isinf(rule->s_init);
}

static inline int absgd_is_lam_rule(const absgd_lam_rule *rule) {
    int is_target = rule->kind == ABSGD_LAM_EFFECTIVE_SAMPLES ? rule->target < 1.0
                                                              : rule->kind == ABSGD_LAM_KL_RADIUS;
    return is_target && rule->target > 0.0 && isfinite(rule->target) &&
           (rule->sign == 1.0 || rule->sign == -1.0) && rule->rate > 0.0 && rule->rate <= 1.0 &&
           rule->low > 0.0 && rule->low < rule->high && isfinite(rule->high);
}

static inline absgd_status absgd_check_step(absgd_dtype dtype, const absgd_tensor *tensors,
                                            int64_t n_tensors, const absgd_sgd_options *o) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(n_tensors >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(o && (tensors || n_tensors == 0), ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(o->momentum >= 0.0 && o->grad_scale != 0.0, ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(!o->polyak || (o->dampening == 0.0 && !o->nesterov),
                  ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(!o->nesterov || (o->momentum > 0.0 && o->dampening == 0.0),
                  ABSGD_INVALID_HYPERPARAMETER);
    int64_t size = 0;
    for (int64_t i = 0; i < n_tensors; i++) {
        const absgd_tensor *t = &tensors[i];
        ABSGD_REQUIRE(t->numel >= 0 && t->numel <= INT64_MAX - size, ABSGD_INVALID_SIZE);
        size += t->numel;
        ABSGD_REQUIRE((t->param && t->grad) || t->numel == 0, ABSGD_NULL_POINTER);
        ABSGD_REQUIRE(t->momentum || o->momentum == 0.0 || t->numel == 0, ABSGD_NULL_POINTER);
    }
    return ABSGD_OK;
}

/* Without the targets' range: they may be on a device. */
static inline absgd_status absgd_check_softmax_loss(absgd_dtype dtype, const absgd_softmax_loss *o,
                                                    const int64_t *target, const void *soft_target,
                                                    int64_t begin, int64_t end) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(o, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(o->classes >= 1 && o->inner >= 1 && o->samples >= 0 && o->samples % o->inner == 0,
                  ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(absgd_fits(o->samples, o->classes), ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(absgd_fits(o->samples, ABSGD_LOSS_SAVED), ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(0 <= begin && begin <= end && end <= o->samples, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(o->scale > 0.0 && isfinite(o->scale), ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(o->focal_gamma >= 0.0 && isfinite(o->focal_gamma), ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(o->label_smoothing >= 0.0 && o->label_smoothing <= 1.0,
                  ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(o->focal_gamma == 0.0 || o->label_smoothing == 0.0, ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(begin == end || !target != !soft_target, ABSGD_NULL_POINTER);
    return ABSGD_OK;
}

/* Without the targets' range, which the kernels look at; losses [begin, end). */
static inline absgd_status absgd_check_sigmoid_loss(absgd_dtype dtype, const absgd_sigmoid_loss *o,
                                                    int64_t begin, int64_t end) {
    ABSGD_REQUIRE(absgd_is_dtype(dtype), ABSGD_INVALID_DTYPE);
    ABSGD_REQUIRE(o, ABSGD_NULL_POINTER);
    ABSGD_REQUIRE(o->samples >= 0 && o->classes >= 0 && o->inner >= 0, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(absgd_fits(o->classes, o->inner), ABSGD_INVALID_SIZE);
    const int64_t each = o->classes * o->inner;
    ABSGD_REQUIRE(absgd_fits(o->samples, each) && absgd_fits(o->samples, 1), ABSGD_INVALID_SIZE);
    const int64_t size = o->samples * (o->per_sample ? 1 : each);
    ABSGD_REQUIRE(0 <= begin && begin <= end && end <= size, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(o->label_smoothing >= 0.0 && o->label_smoothing <= 1.0,
                  ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(o->alpha <= 1.0, ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(o->focal_gamma >= 0.0 && isfinite(o->focal_gamma), ABSGD_INVALID_HYPERPARAMETER);
    const double ignored =
        dtype == ABSGD_FLOAT64 ? o->ignore_index : (double)(float)o->ignore_index;
    ABSGD_REQUIRE(!(ignored >= 0.0 && ignored <= 1.0), ABSGD_INVALID_HYPERPARAMETER);
    return ABSGD_OK;
}

#endif
