/* The C ABI against its formulas written plainly in double, gradients against differences of
 * losses: no torch, no test framework, any C17 compiler. Prints what differs; 1 if anything did. */
#include "absgd.h"
#include "half.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void expect_close(double actual, double expected, double tolerance, const char *what) {
    if (actual == expected || (isnan(actual) && isnan(expected))) return;
    if (fabs(actual - expected) <= tolerance * fmax(1.0, fabs(expected))) return;
    if (++failures <= 20) printf("%s: %.17g, expected %.17g\n", what, actual, expected);
}

static void expect_ok(absgd_status status, const char *what) {
    if (status == ABSGD_OK) return;
    failures++;
    printf("%s: %s\n", what, absgd_status_string(status));
}

/* ---- numbers ---- */

enum { N = 40, DTYPES = 4 };
static const double DIGITS[DTYPES] = {2e-6, 1e-12, 2e-3, 1e-2}; /* of results in that dtype */

static double uniform(double low, double high) {
    static uint64_t state = 7;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (double)(state >> 11) / 9007199254740992.0;
}

static absgd_dtype arithmetic(absgd_dtype dtype) {
    return dtype == ABSGD_FLOAT64 ? ABSGD_FLOAT64 : ABSGD_FLOAT32;
}

static double get(absgd_dtype dtype, const void *x, int i) {
    if (dtype == ABSGD_FLOAT64) return ((const double *)x)[i];
    if (dtype == ABSGD_FLOAT32) return ((const float *)x)[i];
    const uint16_t h = ((const uint16_t *)x)[i];
    return dtype == ABSGD_FLOAT16 ? absgd_f16_load(h) : absgd_bf16_load(h);
}

/* Stores a number and returns what it was rounded to. */
static double put(absgd_dtype dtype, void *x, int i, double value) {
    const float f = (float)value;
    if (dtype == ABSGD_FLOAT64) ((double *)x)[i] = value;
    if (dtype == ABSGD_FLOAT32) ((float *)x)[i] = f;
    if (dtype == ABSGD_FLOAT16) ((uint16_t *)x)[i] = absgd_f16_store(f);
    if (dtype == ABSGD_BFLOAT16) ((uint16_t *)x)[i] = absgd_bf16_store(f);
    return get(dtype, x, i);
}

static void fill(absgd_dtype dtype, void *x, double *exact, int n, double low, double high) {
    for (int i = 0; i < n; i++) exact[i] = put(dtype, x, i, uniform(low, high));
}

static double half_value(uint16_t h, int fraction_bits, int bias) {
    const int exponent = (h & 0x7fff) >> fraction_bits, top = (1 << (15 - fraction_bits)) - 1;
    const double fraction = (double)(h & ((1 << fraction_bits) - 1)) / (1 << fraction_bits);
    const double sign = h >> 15 ? -1.0 : 1.0;
    if (exponent == top) return fraction == 0 ? sign * INFINITY : NAN;
    return sign * ldexp(exponent ? 1 + fraction : fraction, (exponent ? exponent : 1) - bias);
}

static void test_halves(void) {
    for (int h = 0; h < 65536; h++) {
        const uint16_t bits = (uint16_t)h;
        const double f16 = half_value(bits, 10, 15), bf16 = half_value(bits, 7, 127);
        expect_close(absgd_f16_load(bits), f16, 0, "float16");
        expect_close(absgd_bf16_load(bits), bf16, 0, "bfloat16");
        if (!isnan(f16)) expect_close(absgd_f16_store((float)f16), bits, 0, "to float16");
        if (!isnan(bf16)) expect_close(absgd_bf16_store((float)bf16), bits, 0, "to bfloat16");
        const double next = half_value(bits + 1, 10, 15); /* half-way: to the even one */
        if (isfinite(f16) && isfinite(next) && h != 0x7fff && h != 0xffff) {
            const uint16_t even = (uint16_t)(bits & 1 ? bits + 1 : bits);
            expect_close(absgd_f16_store((float)((f16 + next) / 2)), even, 0, "a tie in float16");
        }
    }
}

/* ---- weights ---- */

static void test_weigh(absgd_dtype dtype, double lam, int masked, int weighted, int guarded) {
    double losses[N], w[N], stored[N], stored_w[N], p[N], c[N];
    uint8_t mask[N];
    const absgd_dtype real = arithmetic(dtype);
    absgd_rule rule = ABSGD_RULE_INIT;
    rule.gamma = 0.7;
    if (guarded) rule.keep_loss = rule.bounded = 1, rule.max_weight = 1.5;
    double log_s = NAN, log_s_lam = lam, s = NAN;
    absgd_report reports[2] = ABSGD_REPORTS_INIT;
    for (int batch = 0; batch < 3; batch++) {
        fill(dtype, stored, losses, N, 0, 3);
        fill(real, stored_w, w, N, 0, 2);
        double count = 0, sum_w = 0, mean = 0, loss = 0, weighted_loss = 0;
        for (int i = 0; i < N; i++) {
            mask[i] = !masked || i % 3 != 0;
            if (!weighted) w[i] = 1;
            if (!mask[i]) w[i] = 0;
            count += mask[i];
            sum_w += w[i];
            mean += w[i] * exp(losses[i] / lam);
        }
        mean /= sum_w;
        s = isnan(s) ? mean : 0.3 * s + 0.7 * mean;
        if (guarded) s = fmin(s, mean / 0.7);
        for (int i = 0; i < N; i++) {
            loss += w[i] * losses[i];
            weighted_loss += w[i] * losses[i] * exp(losses[i] / lam) / s;
        }
        const double kappa = guarded ? fmin(1, loss / weighted_loss) : 1;
        expect_ok(absgd_weigh(dtype, stored, masked ? mask : NULL, weighted ? stored_w : NULL, N,
                              &lam, &rule, &log_s, &log_s_lam, reports, p, c),
                  "absgd_weigh");
        if (isinf(lam)) {
            s = 1;
            expect_close(log_s, NAN, 0, "log_s at infinity");
        } else {
            expect_close(log_s, log(s), 1e-12, "log_s");
        }
        expect_close(reports[0].mean_loss, loss / count, 1e-12, "mean_loss");
        for (int i = 0; i < N; i++) {
            double expected = w[i] > 0 ? (isinf(lam) ? 1 : kappa * exp(losses[i] / lam) / s) : 0;
            if (guarded && !isinf(lam)) expected = fmin(expected, 1.5);
            expect_close(get(real, p, i), expected, DIGITS[real], "weight");
            expect_close(get(real, c, i), expected * w[i] / count, DIGITS[real], "coefficient");
        }
    }
}

/* Relative to what a sum's terms are in size. */
static void expect_within(double actual, double expected, double size, const char *what) {
    if (fabs(actual - expected) <= ABSGD_LARGE_ERROR * size) return;
    if (++failures <= 20) printf("%s: %.17g, expected %.17g\n", what, actual, expected);
}

/* A batch whose exponentials are floats, against double; cut anywhere, its weights are the same. */
static void test_large(absgd_dtype dtype, double lam, int masked, int weighted, double least) {
    enum { LARGE = ABSGD_LARGE + 300 };
    static double losses[LARGE], w[LARGE], stored[LARGE], stored_w[LARGE], cut[2][LARGE];
    static double p[LARGE], c[LARGE];
    static uint8_t mask[LARGE];
    const absgd_dtype real = arithmetic(dtype);
    fill(dtype, stored, losses, LARGE, least, 30);
    fill(real, stored_w, w, LARGE, 0, 2);
    double count = 0, m = -INFINITY, s[7] = {0};
    for (int i = 0; i < LARGE; i++) {
        mask[i] = !masked || i % 3 != 0;
        if (!weighted) w[i] = 1;
        if (weighted && i % 5 == 0) w[i] = put(real, stored_w, i, 0);
        if (!mask[i]) w[i] = 0, losses[i] = 0, put(dtype, stored, i, NAN);
        count += mask[i];
        if (w[i] > 0) m = fmax(m, losses[i] / lam);
    }
    for (int i = 0; i < LARGE; i++) {
        const double e = w[i] > 0 ? exp(losses[i] / lam - m) : 0, loss = w[i] * losses[i];
        const double terms[7] = {w[i],     w[i] * e,   w[i] * e * e,  loss,
                                 e * loss, fabs(loss), e * fabs(loss)};
        for (int k = 0; k < 7; k++) s[k] += terms[k];
    }
    const void *mask_ = masked ? mask : NULL, *w_ = weighted ? stored_w : NULL;
    absgd_stats stats;
    expect_ok(absgd_batch_stats(dtype, stored, mask_, w_, LARGE, &lam, &stats), "stats");
    expect_close(stats.count, count, 0, "count");
    expect_close(stats.nonfinite, 0, 0, "nonfinite");
    expect_close(stats.max, m, 1e-12, "max");
    const double *sums = &stats.sum_weight;
    expect_within(sums[0], s[0], s[0], "sum_weight");
    for (int k = 1; k < 7; k++) { /* sums[1] is the maximum */
        const double unit =
            k < 3 ? 1 : ABSGD_LOSS_UNIT; /* of the losses, against Σ w|L|, Σ w e|L| */
        expect_within(sums[k + 1] * unit, s[k], k < 3 ? s[k] : s[k % 2 ? 5 : 6], "a large sum");
    }
    absgd_rule rule = ABSGD_RULE_INIT;
    rule.max_weight = 3;
    const double log_s = m - 2;
    double capped, part, capped_parts = 0;
    expect_ok(absgd_weights(dtype, stored, mask_, w_, LARGE, &lam, &rule, &log_s, &stats, 2, p, c,
                            &capped),
              "weights");
    const size_t of_real = real == ABSGD_FLOAT64 ? 8 : 4;
    const size_t of_loss = dtype >= ABSGD_FLOAT16 ? 2 : of_real;
    for (int i = 0; i < LARGE; i += 1234) {
        const int n = LARGE - i < 1234 ? LARGE - i : 1234;
        expect_ok(absgd_weights(dtype, (char *)stored + i * of_loss, masked ? mask + i : NULL,
                                weighted ? (char *)stored_w + i * of_real : NULL, n, &lam, &rule,
                                &log_s, &stats, 2, (char *)cut[0] + i * of_real,
                                (char *)cut[1] + i * of_real, &part),
                  "a part of the weights");
        capped_parts += part;
    }
    expect_close(memcmp(cut[0], p, LARGE * of_real) || memcmp(cut[1], c, LARGE * of_real), 0, 0,
                 "cuts");
    expect_close(capped_parts, capped, 0, "capped");
    for (int i = 0; i < LARGE; i++) {
        const double weight = w[i] > 0 ? fmin(3, exp(losses[i] / lam - log_s)) : 0;
        const double size = fmax(weight, 1e-30), share = w[i] * 2 / count; /* below 1e-37: 0 */
        expect_within(get(real, p, i), weight, size, "a large batch's weight");
        expect_within(get(real, c, i), weight * share, size * share, "its coefficient");
    }
}

/* A number that is not finite is told as in a small batch. */
static void test_bad_large(double bad) {
    enum { LARGE = ABSGD_LARGE };
    static float losses[LARGE], w[LARGE], p[LARGE], c[LARGE];
    const double lam = 0.5, log_s = 0;
    absgd_rule rule = ABSGD_RULE_INIT;
    for (int in_weight = 0; in_weight < 2; in_weight++) {
        for (int i = 0; i < LARGE; i++) losses[i] = w[i] = 1;
        (in_weight ? w : losses)[1000] = (float)bad;
        absgd_stats stats;
        expect_ok(absgd_batch_stats(ABSGD_FLOAT32, losses, NULL, w, LARGE, &lam, &stats), "stats");
        expect_close(stats.nonfinite, bad == -1 && !in_weight ? 0 : 1, 0, "nonfinite");
        expect_ok(absgd_weights(ABSGD_FLOAT32, losses, NULL, w, LARGE, &lam, &rule, &log_s, &stats,
                                1, p, c, NULL),
                  "weights");
        expect_close(isnan(c[7]), stats.nonfinite, 0, "coefficients of a bad batch");
    }
}

static void test_lam_search(absgd_dtype dtype, int kind, double sign, int n) {
    static double losses[2 * ABSGD_LARGE], stored[2 * ABSGD_LARGE];
    double lam = INFINITY;
    fill(dtype, stored, losses, n, 0, 3);
    absgd_lam_rule rule = ABSGD_LAM_RULE_INIT;
    rule.kind = kind;
    rule.target = kind == ABSGD_LAM_KL_RADIUS ? 0.3 : 0.6;
    rule.sign = sign;
    absgd_lam_search search;
    memset(&search, 0, sizeof search);
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        absgd_lam_row row;
        expect_ok(absgd_lam_sums(dtype, stored, NULL, NULL, n, &rule, &search, &row), "lam_sums");
        expect_ok(absgd_lam_round(&rule, &row, 1, &search), "lam_round");
    }
    expect_ok(absgd_lam_update(&rule, &search, &lam), "lam_update");
    expect_close(search.low, search.high, 0, "the search's end");
    double sum = 0, sum_sq = 0, kl = 0;
    for (int i = 0; i < n; i++) sum += exp(losses[i] / lam), sum_sq += exp(2 * losses[i] / lam);
    for (int i = 0; i < n; i++) {
        const double q = exp(losses[i] / lam) / sum;
        kl += q * log(q * n);
    }
    const double met = kind == ABSGD_LAM_KL_RADIUS ? kl : sum * sum / (n * sum_sq);
    const int is_large = n >= ABSGD_LARGE && dtype != ABSGD_FLOAT64;
    expect_close(met, rule.target, is_large ? ABSGD_LARGE_ERROR : 1e-9,
                 "what the rule for lambda asks for");
    if (lam * sign <= 0) expect_close(lam, sign, 0, "the sign of lambda");
}

/* A batch in which no sample counts has no largest: −∞, which OpenMP's max need not begin from. */
static void test_empty_batches(absgd_dtype dtype) {
    enum { MANY = 2 * ABSGD_LARGE };
    static double losses[MANY], exact[MANY];
    static uint8_t none[MANY];
    const absgd_lam_rule rule = ABSGD_LAM_RULE_INIT;
    const double lam = 0.5;
    fill(dtype, losses, exact, MANY, 0, 3);
    for (int n = 0; n <= MANY; n += MANY / 2) {
        absgd_stats stats;
        absgd_lam_search search;
        absgd_lam_row row;
        memset(&search, 0, sizeof search);
        expect_ok(absgd_batch_stats(dtype, losses, none, NULL, n, &lam, &stats), "stats");
        expect_ok(absgd_lam_sums(dtype, losses, none, NULL, n, &rule, &search, &row), "lam_sums");
        expect_close(stats.max, -INFINITY, 0, "the largest z of none");
        expect_close(row.max, -INFINITY, 0, "the largest loss of none");
        expect_close(row.max_negated, -INFINITY, 0, "the least loss of none");
    }
}

/* One sample carries the sum, by a weight that is all but 0: its part of the loss underflows, and
 * the report still has numbers, which go into running means. */
static void test_tiny_measure(void) {
    const double losses[2] = {0.5, -1}, w[2] = {5e-324, 1}, lam = 5e-4;
    absgd_rule rule = ABSGD_RULE_INIT;
    absgd_report reports[2];
    double log_s = 1e-300, log_s_lam = lam, p[2], c[2];
    reports[1].count = NAN;
    expect_ok(absgd_weigh(ABSGD_FLOAT64, losses, NULL, w, 2, &lam, &rule, &log_s, &log_s_lam,
                          reports, p, c),
              "absgd_weigh");
    expect_close(isnan(reports[1].weighted_loss), 0, 0, "a report of a tiny measure");
}

/* ---- the step ---- */

static void test_step(absgd_dtype dtype, int flags) {
    double w[N], g[N], v[N], stored_w[N], stored_g[N], stored_v[N];
    fill(dtype, stored_w, w, N, -1, 1);
    fill(dtype, stored_g, g, N, -1, 1);
    fill(dtype, stored_v, v, N, -1, 1);
    absgd_sgd_options o = ABSGD_SGD_OPTIONS_INIT;
    o.lr = 0.125;
    o.weight_decay = 0.25;
    o.grad_scale = 4;
    o.maximize = flags & 1;
    o.momentum = flags & 2 ? 0.5 : 0;
    o.polyak = !!(flags & 4);
    o.nesterov = flags & 2 && flags & 8 && !o.polyak;
    o.dampening = flags & 16 && !o.nesterov && !o.polyak ? 0.5 : 0;
    const int fresh = !!(flags & 32);
    const absgd_tensor tensor = {stored_w, stored_g, stored_v, N, fresh};
    expect_ok(absgd_sgd_step(dtype, &tensor, 1, &o, 0, N), "absgd_sgd_step");
    for (int i = 0; i < N; i++) {
        const double d = g[i] / 4 * (o.maximize ? -1 : 1) + 0.25 * w[i];
        double velocity = v[i], next = w[i] - o.lr * d;
        if (o.momentum != 0 && o.polyak) {
            velocity = (fresh ? 0 : 0.5 * v[i]) - o.lr * d;
            next = w[i] + velocity;
        } else if (o.momentum != 0) {
            velocity = fresh ? d : 0.5 * v[i] + (1 - o.dampening) * d;
            next = w[i] - o.lr * (o.nesterov ? d + 0.5 * velocity : velocity);
        }
        expect_close(get(dtype, stored_w, i), next, DIGITS[dtype], "parameter");
        expect_close(get(dtype, stored_v, i), velocity, DIGITS[dtype], "momentum");
    }
}

/* ---- losses ---- */

enum { SAMPLES = 6, CLASSES = 5, LOGITS = SAMPLES * CLASSES };

/* A loss of logits x in double, and the same by the library for what x rounds to. */
typedef double (*loss_of_sample)(const void *spec, const double *x, int sample);

/* Gradients with respect to logit j of sample i, by central differences. */
static double difference(loss_of_sample loss, const void *spec, const double *x, int i, int j) {
    double moved[LOGITS];
    memcpy(moved, x, sizeof moved);
    const double h = 1e-5;
    moved[i * CLASSES + j] = x[i * CLASSES + j] + h;
    const double up = loss(spec, moved, i);
    moved[i * CLASSES + j] = x[i * CLASSES + j] - h;
    return (up - loss(spec, moved, i)) / (2 * h);
}

/* loss and grad, of exact upstream gradients, against a plain loss and its differences. */
static void expect_results(absgd_dtype dtype, loss_of_sample of, const void *spec, const double *x,
                           const double *exact, const void *loss, const void *grad,
                           const char *the_loss, const char *the_gradient) {
    const absgd_dtype real = arithmetic(dtype);
    for (int i = 0; i < SAMPLES; i++) {
        expect_close(get(real, loss, i), of(spec, x, i), 3 * DIGITS[real], the_loss);
        for (int c = 0; c < CLASSES; c++) {
            expect_close(get(dtype, grad, i * CLASSES + c),
                         exact[i] * difference(of, spec, x, i, c), fmax(1e-7, 10 * DIGITS[dtype]),
                         the_gradient);
        }
    }
}

static double class_weight[CLASSES], margin[CLASSES], offset[CLASSES], targets[LOGITS];
static int64_t labels[SAMPLES] = {0, 4, 2, -100, 1, 3};
static int is_soft, has_margin;

/* The loss of class y, or of the soft target for y = −1. */
static double loss_of_class(const absgd_softmax_loss *s, const double *x, int i, int y) {
    double sum = 0, z[CLASSES], loss = 0;
    for (int c = 0; c < CLASSES; c++) {
        z[c] = s->scale * (x[i * CLASSES + c] - (has_margin && c == y ? margin[c] : 0)) + offset[c];
        sum += exp(z[c]);
    }
    for (int c = 0; c < CLASSES; c++) {
        const double p = exp(z[c]) / sum, spread = s->label_smoothing / CLASSES;
        const double q = y < 0 ? targets[i * CLASSES + c] : c == y ? pow(1 - p, s->focal_gamma) : 0;
        loss -= class_weight[c] * ((1 - s->label_smoothing) * q + spread) * log(p);
    }
    return loss;
}

static double softmax_reference(const void *spec, const double *x, int i) {
    const absgd_softmax_loss *s = spec;
    if (!is_soft) return labels[i] < 0 ? 0 : loss_of_class(s, x, i, (int)labels[i]);
    if (!has_margin && s->focal_gamma == 0) return loss_of_class(s, x, i, -1);
    double loss = 0;
    for (int y = 0; y < CLASSES; y++) {
        loss += targets[i * CLASSES + y] * loss_of_class(s, x, i, y);
    }
    return loss;
}

static void test_softmax(absgd_dtype dtype, int soft, int margins, double gamma, double smoothing,
                         double scale) {
    double x[LOGITS], stored[LOGITS], real_weight[CLASSES], real_margin[CLASSES];
    double real_offset[CLASSES], real_target[LOGITS], loss[SAMPLES], grad[LOGITS];
    double saved[ABSGD_LOSS_SAVED * SAMPLES], upstream[SAMPLES], exact[SAMPLES];
    const absgd_dtype real = arithmetic(dtype);
    is_soft = soft;
    has_margin = margins;
    fill(dtype, stored, x, LOGITS, -2, 2);
    fill(real, real_weight, class_weight, CLASSES, 0.5, 2);
    fill(real, real_margin, margin, CLASSES, 0, 0.5);
    fill(real, real_offset, offset, CLASSES, -1, 1);
    fill(real, real_target, targets, LOGITS, 0, 0.4);
    fill(real, upstream, exact, SAMPLES, 0.5, 1);
    const absgd_softmax_loss spec = {
        SAMPLES,     CLASSES, 1,     real_weight, margins ? real_margin : NULL,
        real_offset, scale,   gamma, smoothing,   -100};
    const int64_t *y = soft ? NULL : labels;
    const void *q = soft ? real_target : NULL;
    expect_ok(absgd_softmax_loss_forward(dtype, &spec, stored, y, q, loss, saved, grad, 0, SAMPLES),
              "absgd_softmax_loss_forward");
    expect_ok(absgd_softmax_loss_backward(dtype, &spec, stored, y, q, saved, grad, upstream, grad,
                                          0, SAMPLES),
              "absgd_softmax_loss_backward");
    expect_results(dtype, softmax_reference, &spec, x, exact, loss, grad, "softmax loss",
                   "softmax gradient");
}

/* Logits of which none is above −∞, and the mean of the classes' losses, which looks for the
 * largest: NaN, and nothing is read or written that is not the call's. */
static void test_no_largest_logit(double logit, int many) {
    enum { MANY = 40, ALL = 2 * MANY };
    float x[ALL], q[ALL], loss[2], saved[2 * ABSGD_LOSS_SAVED], grad[ALL];
    const float upstream[2] = {1, 1};
    for (int i = 0; i < ALL; i++) x[i] = (float)logit, q[i] = 1 / (float)many;
    const absgd_softmax_loss spec = {2, many, 1, NULL, NULL, NULL, 1, 2, 0, -100};
    expect_ok(absgd_softmax_loss_forward(ABSGD_FLOAT32, &spec, x, NULL, q, loss, saved, NULL, 0, 2),
              "absgd_softmax_loss_forward");
    expect_ok(absgd_softmax_loss_backward(ABSGD_FLOAT32, &spec, x, NULL, q, saved, NULL, upstream,
                                          grad, 0, 2),
              "absgd_softmax_loss_backward");
    expect_close(loss[0], NAN, 0, "loss without a largest logit");
    expect_close(grad[many], NAN, 0, "gradient without a largest logit");
}

static double sigmoid_reference(const void *spec, const double *x, int i) {
    const absgd_sigmoid_loss *s = spec;
    double loss = 0, known = 0;
    for (int c = 0; c < CLASSES; c++) {
        const double t = targets[i * CLASSES + c], e = s->label_smoothing;
        if (t == s->ignore_index) continue;
        const double q = (1 - e) * t + e / 2, p = 1 / (1 + exp(-x[i * CLASSES + c]));
        const double off = q * (1 - p) + (1 - q) * p;
        const double alpha = s->alpha < 0 ? 1 : s->alpha * q + (1 - s->alpha) * (1 - q);
        loss -= class_weight[c] * alpha * pow(off, s->focal_gamma) *
                (margin[c] * q * log(p) + (1 - q) * log(1 - p));
        known += 1;
    }
    return known > 0 ? loss / known : 0;
}

static void test_sigmoid(absgd_dtype dtype, double alpha, double gamma, double smoothing) {
    double x[LOGITS], stored[LOGITS], real_weight[CLASSES], real_pos[CLASSES], real_target[LOGITS];
    double loss[SAMPLES], grad[LOGITS], known[SAMPLES], upstream[SAMPLES], exact[SAMPLES];
    const absgd_dtype real = arithmetic(dtype);
    fill(dtype, stored, x, LOGITS, -2, 2);
    fill(real, real_weight, class_weight, CLASSES, 0.5, 2);
    fill(real, real_pos, margin, CLASSES, 0.5, 3); /* pos_weight */
    fill(real, real_target, targets, LOGITS, 0, 1);
    for (int i = 0; i < LOGITS; i += 7) targets[i] = put(real, real_target, i, -1);
    fill(real, upstream, exact, SAMPLES, 0.5, 1);
    const absgd_sigmoid_loss spec = {SAMPLES,   CLASSES, 1,     real_weight, real_pos,
                                     smoothing, alpha,   gamma, -1,          1};
    expect_ok(
        absgd_sigmoid_loss_forward(dtype, &spec, stored, real_target, loss, known, 0, SAMPLES),
        "absgd_sigmoid_loss_forward");
    expect_ok(absgd_sigmoid_loss_backward(dtype, &spec, stored, real_target, known, upstream, grad,
                                          0, SAMPLES),
              "absgd_sigmoid_loss_backward");
    expect_results(dtype, sigmoid_reference, &spec, x, exact, loss, grad, "sigmoid loss",
                   "sigmoid gradient");
}

int main(void) {
    test_halves();
    test_bad_large(NAN);
    test_bad_large(INFINITY);
    test_bad_large(-1);
    test_tiny_measure();
    for (int many = 4; many <= 40; many += 36) {
        test_no_largest_logit(-INFINITY, many);
        test_no_largest_logit(NAN, many);
    }
    for (int d = 0; d < DTYPES; d++) {
        const absgd_dtype dtype = (absgd_dtype)d;
        for (int flags = 0; flags < 8; flags++) {
            test_weigh(dtype, 0.5, flags & 1, flags & 2, flags & 4);
            test_weigh(dtype, -0.5, flags & 1, flags & 2, flags & 4);
            test_weigh(dtype, INFINITY, flags & 1, flags & 2, flags & 4);
        }
        for (int flags = 0; flags < 8; flags++) {
            const double least = flags & 4 ? -30 : 0;
            test_large(dtype, 0.5, flags & 1, flags & 2, least);
            test_large(dtype, -0.02, flags & 1, flags & 2, least);
            test_large(dtype, 20, flags & 1, flags & 2, least);
        }
        for (int kind = 1; kind <= 2; kind++) {
            for (int n = N; n <= 2 * ABSGD_LARGE; n += 2 * ABSGD_LARGE - N) {
                test_lam_search(dtype, kind, 1, n);
                test_lam_search(dtype, kind, -1, n);
            }
        }
        test_empty_batches(dtype);
        for (int flags = 0; flags < 64; flags++) test_step(dtype, flags);
        test_softmax(dtype, 0, 1, 0, 0, 1);
        test_softmax(dtype, 0, 1, 0, 0.1, 3);
        test_softmax(dtype, 0, 1, 2, 0, 1);
        test_softmax(dtype, 0, 1, 0.7, 0, 1);
        test_softmax(dtype, 1, 0, 0, 0.1, 1);
        test_softmax(dtype, 1, 0, 2, 0, 1);
        test_softmax(dtype, 1, 1, 0, 0, 3);
        test_softmax(dtype, 1, 1, 0.7, 0, 1);
        test_sigmoid(dtype, -1, 0, 0);
        test_sigmoid(dtype, 0.25, 2, 0.1);
        test_sigmoid(dtype, 0.25, 0.7, 0);
    }
    printf("%zu-bit pointers, %s-endian: %s\n", 8 * sizeof(void *),
           *(const char *)&(const int){1} ? "little" : "big", failures ? "FAILED" : "passed");
    return failures != 0;
}
