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
    ABSGD_REQUIRE(o->momentum >= 0.0, ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(!o->polyak || (o->dampening == 0.0 && !o->nesterov),
                  ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(!o->nesterov || (o->momentum > 0.0 && o->dampening == 0.0),
                  ABSGD_INVALID_HYPERPARAMETER);
    for (int64_t i = 0; i < n_tensors; i++) {
        const absgd_tensor *t = &tensors[i];
        ABSGD_REQUIRE(t->numel >= 0, ABSGD_INVALID_SIZE);
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
    ABSGD_REQUIRE(0 <= begin && begin <= end && end <= o->samples, ABSGD_INVALID_SIZE);
    ABSGD_REQUIRE(o->scale > 0.0 && isfinite(o->scale), ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(o->focal_gamma >= 0.0 && isfinite(o->focal_gamma), ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(o->label_smoothing >= 0.0 && o->label_smoothing <= 1.0,
                  ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(o->focal_gamma == 0.0 || o->label_smoothing == 0.0, ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(!soft_target || (!o->margin && o->focal_gamma == 0.0),
                  ABSGD_INVALID_HYPERPARAMETER);
    ABSGD_REQUIRE(begin == end || !target != !soft_target, ABSGD_NULL_POINTER);
    return ABSGD_OK;
}

#endif
