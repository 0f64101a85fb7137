/* absgd_accumulate and absgd_settle: micro-batches, wherever a batch is cut, give its log_s and, by
 * the factor at the end, its coefficients. */
#include "batch.h"

enum { MAX_PARTS = 4 };

static void call(input *in) {
    batch b = take_batch(in);
    const absgd_rule rule = take_rule(in);
    const double lam = take_double(in), s0 = take_double(in), lam0 = take_double(in);
    const double divisor = take_byte(in) < 224 ? 1.0 + take_byte(in) % 4 : take_double(in);
    const int parts = 1 + take_byte(in) % MAX_PARTS;
    absgd_accumulation *acc = allocate(sizeof *acc, 1);
    double *log_s = output(ABSGD_FLOAT64, 1), *log_s_lam = output(ABSGD_FLOAT64, 1);
    double *factor = output(ABSGD_FLOAT64, 1), *shrink = output(ABSGD_FLOAT64, 1);
    memset(acc, 0, sizeof *acc);
    *log_s = s0;
    *log_s_lam = lam0;
    const int is_right = is_rule(&rule);
    if (!is_dtype(b.dtype) || !b.losses) return;

    const absgd_dtype real = arithmetic(b.dtype);
    void *weights = output(real, b.n), *coefficients = output(real, b.n);
    double scale[MAX_PARTS]; /* of what a part contributed, so far */
    int64_t begins[MAX_PARTS + 1];
    int is_first = 1;
    for (int i = 0; i < parts; i++) {
        const int64_t begin = begins[i] = b.n * i / parts, end = b.n * (i + 1) / parts;
        begins[i + 1] = end;
        const char *losses = (const char *)b.losses + (size_t)begin * size_of(b.dtype);
        const char *weight = b.weight;
        const uint8_t *mask = b.mask ? b.mask + begin : NULL;
        if (weight) weight += (size_t)begin * size_of(real);
        absgd_stats stats;
        INVARIANT(absgd_batch_stats(b.dtype, losses, mask, weight, end - begin, &lam, &stats) ==
                  ABSGD_OK);
        remember();
        const absgd_status status =
            absgd_accumulate(&stats, &lam, &rule, log_s, log_s_lam, acc, shrink);
        INVARIANT((status == ABSGD_OK) == is_right);
        if (status != ABSGD_OK) {
            INVARIANT(is_untouched());
            return;
        }
        INVARIANT(*shrink > 0 ? *shrink <= 1 : *shrink == 0);
        if (rule.max_weight > 0 && !isinf(rule.max_weight)) INVARIANT(*shrink == 1);
        if (is_first && stats.sum_weight > 0 && acc->whole.nonfinite == 0) {
            INVARIANT(*shrink == 1);
            is_first = 0;
        }
        for (int j = 0; j < i; j++) scale[j] *= *shrink;
        scale[i] = 1;
        absgd_rule provisional = rule;
        provisional.keep_loss = 0;
        stats.count = acc->reference_count;
        INVARIANT(
            absgd_weights(b.dtype, losses, mask, weight, end - begin, &lam, &provisional,
                          &acc->log_c, &stats, 1.0, (char *)weights + (size_t)begin * size_of(real),
                          (char *)coefficients + (size_t)begin * size_of(real), NULL) == ABSGD_OK);
    }

    const absgd_stats whole = acc->whole;
    remember();
    const absgd_status status = absgd_settle(acc, &lam, &rule, divisor, log_s, log_s_lam, factor);
    INVARIANT((status == ABSGD_OK) == (divisor > 0 && isfinite(divisor)));
    if (status != ABSGD_OK) {
        INVARIANT(is_untouched());
        return;
    }
    const absgd_accumulation none = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0, 0, 0};
    INVARIANT(memcmp(acc, &none, sizeof none) == 0);
    const int is_bad = whole.nonfinite != 0 || isinf(whole.sum_weight);
    if (is_bad || whole.sum_weight == 0) {
        INVARIANT(same_bits(*log_s, s0) && same_bits(*log_s_lam, lam0));
        return;
    }
    if (s0 == INFINITY) return;

    /* the batch as a whole */
    absgd_stats stats;
    double s = s0, s_lam = lam0;
    void *large = output(real, b.n), *expected = output(real, b.n);
    INVARIANT(absgd_batch_stats(b.dtype, b.losses, b.mask, b.weight, b.n, &lam, &stats) ==
              ABSGD_OK);
    INVARIANT(absgd_update_log_s(&stats, &lam, &rule, &s, &s_lam) == ABSGD_OK);
    INVARIANT(*log_s_lam == s_lam);
    if (isinf(lam)) {
        INVARIANT(same_bits(*log_s, s));
    } else {
        INVARIANT(fabs(*log_s - s) <= 1e-9 * fmax(1, fabs(s)));
    }
    INVARIANT(*factor >= 0 && (isfinite(*factor) || divisor > 1e270)); /* e^80 is 5.5e34 */
    if (isinf(*factor)) return;
    if ((rule.max_weight > 0 && !isinf(rule.max_weight)) || fabs(s) > 1e4 || divisor < 1e-200 ||
        rule.gamma * rule.alpha < 1e-20)
        return;
    INVARIANT(absgd_weights(b.dtype, b.losses, b.mask, b.weight, b.n, &lam, &rule, &s, &stats, 1.0,
                            large, expected, NULL) == ABSGD_OK);
    for (int i = 0; i < parts; i++) {
        for (int64_t j = begins[i]; j < begins[i + 1]; j++) {
            const double c = element(real, coefficients, j) * scale[i] * (*factor / divisor);
            const double e = element(real, expected, j);
            const double raw = element(real, coefficients, j);
            if (!(e > 1e-30 && e < 1e30 && raw > 1e-30 && raw < 1e30)) continue; /* of float */
            INVARIANT(fabs(c - e) <= 1e-4 * fabs(e));
        }
    }
}
