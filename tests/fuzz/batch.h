/* What the functions that weigh a batch are given: losses, mask, base measure, λ, rule and state.
 */
#ifndef ABSGD_FUZZ_BATCH_H
#define ABSGD_FUZZ_BATCH_H

#include "input.h"

enum { MAX_LOSSES = 24 };

typedef struct batch {
    absgd_dtype dtype;
    int64_t n, given_n; /* how many there are; what the call is told, negative at times */
    void *losses, *weight;
    uint8_t *mask;
} batch;

static inline batch take_batch(input *in) {
    batch b;
    b.dtype = take_dtype(in);
    const absgd_dtype stored = stored_as(b.dtype);
    b.n = take_byte(in) % (MAX_LOSSES + 1);
    b.given_n = take_byte(in) < 250 ? b.n : -1 - b.n;
    b.losses = take_array(in, stored, b.n, -4.0);
    if (take_byte(in) >= 250) b.losses = NULL;
    b.mask = take_flag(in) ? allocate((size_t)b.n, 0) : NULL;
    for (int64_t i = 0; b.mask && i < b.n; i++) b.mask[i] = (uint8_t)take_flag(in);
    b.weight = take_optional(in, arithmetic(stored), b.n, 0.0);
    return b;
}

static inline int counts(const batch *b, int64_t i) { return !b->mask || b->mask[i]; }

static inline double measure(const batch *b, int64_t i) {
    return b->weight ? element(arithmetic(b->dtype), b->weight, i) : 1.0;
}

static inline absgd_rule take_rule(input *in) {
    absgd_rule rule = ABSGD_RULE_INIT;
    const uint8_t given = take_byte(in);
    if (given & 1) rule.gamma = take_double(in);
    if (given & 2) rule.alpha = take_double(in);
    if (given & 4) rule.s_init = take_double(in);
    if (given & 8) rule.max_weight = 1.0 + take_byte(in) / 32.0;
    if (given & 16) rule.keep_loss = 1.0;
    if (given & 32) rule.bounded = 1.0;
    if ((given & 192) == 192) rule.max_weight = take_double(in);
    return rule;
}

static inline int is_rule(const absgd_rule *r) {
    return r->gamma > 0 && r->gamma <= 1 && r->alpha > 0 && isfinite(r->alpha) &&
           (isnan(r->s_init) || (r->s_init >= 0 && isfinite(r->s_init))) &&
           (r->max_weight == 0 || r->max_weight >= 1);
}

static inline int same_bits(double a, double b) { return same_values(ABSGD_FLOAT64, &a, &b, 0, 1); }

#endif
