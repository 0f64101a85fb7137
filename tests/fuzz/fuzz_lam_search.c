/* absgd_lam_sums, _lam_join, _lam_round and _lam_update: a search ends inside its bounds, of the
 * sign asked for, or leaves λ; rows and searches of any numbers do no harm. */
#include "batch.h"

static absgd_lam_rule take_lam_rule(input *in) {
    absgd_lam_rule rule = ABSGD_LAM_RULE_INIT;
    const uint8_t given = take_byte(in);
    rule.kind = 1 + (given & 1);
    rule.target = (1 + take_byte(in)) / 257.0;
    if (given & 2) rule.sign = -1;
    if (given & 4) rule.rate = (1 + take_byte(in)) / 256.0;
    if ((given & 24) == 24) rule.target = take_double(in);
    if ((given & 40) == 40) rule.kind = take_double(in);
    if ((given & 72) == 72) rule.low = take_double(in);
    if ((given & 136) == 136) rule.high = take_double(in);
    return rule;
}

static int is_lam_rule(const absgd_lam_rule *r) {
    return (r->kind == 1 || r->kind == 2) && r->target > 0 && isfinite(r->target) &&
           (r->kind == 2 || r->target < 1) && r->low > 0 && r->low < r->high && isfinite(r->high);
}

static void take_doubles(input *in, void *fields, size_t size) {
    for (size_t i = 0; i < size / sizeof(double); i++) ((double *)fields)[i] = take_double(in);
}

/* Rounds on rows that no batch has. */
static void any_rows(input *in, const absgd_lam_rule *rule) {
    absgd_lam_row rows[3];
    absgd_lam_search search;
    double lam = take_double(in);
    for (int i = 0; i < 3; i++) take_doubles(in, &rows[i], sizeof rows[i]);
    take_doubles(in, &search, sizeof search);
    for (int i = 0; i < 3; i++) absgd_lam_round(rule, rows, 3, &search);
    absgd_lam_update(rule, &search, &lam);
}

static void call(input *in) {
    const absgd_lam_rule rule = take_lam_rule(in);
    if (take_byte(in) < 32) {
        any_rows(in, &rule);
        return;
    }
    const batch b = take_batch(in);
    absgd_lam_search *search = allocate(sizeof *search, 1);
    absgd_lam_row *row = allocate(sizeof *row, 1);
    double *lam = output(ABSGD_FLOAT64, 1);
    memset(search, 0, sizeof *search);
    *lam = take_double(in);
    const int is_right = is_dtype(b.dtype) && b.given_n == b.n && (b.losses || b.n == 0);
    for (int round = 0; round < ABSGD_LAM_ROUNDS; round++) {
        remember();
        const absgd_status status =
            absgd_lam_sums(b.dtype, b.losses, b.mask, b.weight, b.given_n, &rule, search, row);
        INVARIANT((status == ABSGD_OK) == (is_right && is_lam_rule(&rule)));
        if (status != ABSGD_OK) {
            INVARIANT(is_untouched());
            break;
        }
        absgd_lam_row joined;
        INVARIANT(absgd_lam_join(row, 1, &joined) == ABSGD_OK);
        INVARIANT(absgd_lam_round(&rule, row, 1, search) == ABSGD_OK);
        if (search->has_answer == 0) break;
        INVARIANT(search->low <= search->high);
        INVARIANT(search->u >= -700.001 && search->u <= 700.001);
    }
    remember();
    const absgd_status status = absgd_lam_update(&rule, search, lam);
    INVARIANT((status == ABSGD_OK) == is_lam_rule(&rule));
    if (status != ABSGD_OK || search->has_answer == 0) {
        INVARIANT(is_untouched());
        return;
    }
    INVARIANT(isfinite(*lam) && *lam * rule.sign > 0);
    if (rule.rate == 1) INVARIANT(fabs(log(fabs(*lam)) - search->u) < 1e-9);
}
