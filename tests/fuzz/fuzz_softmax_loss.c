/* absgd_softmax_loss_forward and _backward: of moderate logits finite, a loss ≥ 0 with a gradient
 * that sums to 0; nothing outside [begin, end); neither a split nor kept exponentials change a bit.
 */
#include "input.h"

enum { MAX_SAMPLES = 6, MAX_CLASSES = 40, MAX_INNER = 3 };

typedef struct problem {
    absgd_dtype dtype, real;
    absgd_softmax_loss spec;
    int64_t samples, classes, inner; /* that there is memory for */
    void *logits, *soft_target;
    int64_t *target;
    int64_t begin, end;
} problem;

static problem take_problem(input *in) {
    problem p = {.dtype = take_dtype(in)};
    const absgd_dtype stored = stored_as(p.dtype);
    p.real = arithmetic(stored);
    p.inner = 1 + take_byte(in) % MAX_INNER;
    p.samples = p.inner * (take_byte(in) % (MAX_SAMPLES / p.inner + 1));
    p.classes = 1 + take_byte(in) % MAX_CLASSES;
    p.spec = (absgd_softmax_loss){.samples = p.samples,
                                  .classes = p.classes,
                                  .inner = p.inner,
                                  .scale = 1.0,
                                  .ignore_index = -100};
    const uint8_t odd = take_byte(in);
    if (odd >= 250) p.spec.samples = take_size(in, p.samples);
    if (odd >= 252) p.spec.classes = take_size(in, p.classes);
    if (odd >= 253) p.spec.inner = take_size(in, p.inner);
    p.spec.weight = take_optional(in, p.real, p.classes, 0.0);
    p.spec.margin = take_optional(in, p.real, p.classes, 0.0);
    p.spec.offset = take_optional(in, p.real, p.classes, -4.0);
    const uint8_t given = take_byte(in);
    if (given & 1) p.spec.scale = (1 + take_byte(in)) / 8.0;
    if (given & 2) p.spec.focal_gamma = take_byte(in) / 16.0;
    if (given & 4) p.spec.label_smoothing = take_byte(in) / 255.0;
    if ((given & 24) == 24) p.spec.scale = take_double(in);
    if ((given & 40) == 40) p.spec.focal_gamma = take_double(in);
    if ((given & 72) == 72) p.spec.label_smoothing = take_double(in);
    p.logits = take_array(in, stored, p.samples * p.classes, -16.0);
    const uint8_t targets = take_byte(in);
    if (targets < 170) {
        p.target = allocate((size_t)p.samples * sizeof(int64_t), 0);
        for (int64_t i = 0; i < p.samples; i++) {
            const uint8_t y = take_byte(in);
            p.target[i] = y < 220 ? y % p.classes : y < 250 ? -100 : take_size(in, p.classes);
        }
    }
    if (targets >= 165 && targets < 253) {
        p.soft_target = take_array(in, p.real, p.samples * p.classes, 0.0);
    }
    p.begin = take_size(in, p.samples);
    p.end = take_byte(in) < 200 ? p.samples : take_size(in, p.samples);
    return p;
}

static int is_in_range(double x, double low, double high) { return x >= low && x <= high; }

static int is_right(const problem *p) {
    const absgd_softmax_loss *s = &p->spec;
    if (!is_dtype(p->dtype) || s->classes < 1 || s->inner < 1 || s->samples < 0) return 0;
    if (s->samples % s->inner != 0 || s->samples > INT64_MAX / 8 / s->classes) return 0;
    if (s->samples > INT64_MAX / 8 / ABSGD_LOSS_SAVED) return 0;
    if (!(0 <= p->begin && p->begin <= p->end && p->end <= s->samples)) return 0;
    if (!(s->scale > 0 && isfinite(s->scale)) || !is_in_range(s->focal_gamma, 0, 1.7e308)) return 0;
    if (!is_in_range(s->label_smoothing, 0, 1)) return 0;
    if (s->focal_gamma != 0 && s->label_smoothing != 0) return 0;
    if (p->begin == p->end) return 1;
    if (!p->target == !p->soft_target) return 0;
    if (p->soft_target && s->margin && !all_at_least(p->real, s->margin, s->classes, 0)) return 0;
    for (int64_t i = p->begin; p->target && i < p->end; i++) {
        const int64_t y = p->target[i];
        if (y != s->ignore_index && (y < 0 || y >= s->classes)) return 0;
    }
    return 1;
}

static int64_t logit_at(const problem *p, int64_t sample, int64_t c) {
    return (sample / p->inner * p->classes + c) * p->inner + sample % p->inner;
}

static int is_moderate(const problem *p) {
    const absgd_softmax_loss *s = &p->spec;
    return all_within(p->dtype, p->logits, p->samples * p->classes, 100) &&
           all_within(p->real, s->weight, p->classes, 100) &&
           all_within(p->real, s->margin, p->classes, 100) &&
           all_within(p->real, s->offset, p->classes, 100) &&
           all_within(p->real, p->soft_target, p->samples * p->classes, 100) && s->scale > 1e-3 &&
           s->scale < 100 && s->focal_gamma < 100;
}

/* Smoothed under margins, a loss is one of q that sums to 1, as this does not. */
static int is_nonnegative(const problem *p) {
    if (p->soft_target && p->spec.margin && p->spec.label_smoothing != 0) return 0;
    return all_at_least(p->real, p->spec.weight, p->classes, 0) &&
           all_at_least(p->real, p->soft_target, p->samples * p->classes, 0);
}

/* Of the terms that a gradient is the difference of. */
static double magnitude(const problem *p, int64_t i) {
    double sum = 0;
    for (int64_t c = 0; c < p->classes; c++) {
        const double w = p->spec.weight ? element(p->real, p->spec.weight, c) : 1;
        const double q = p->soft_target ? element(p->real, p->soft_target, logit_at(p, i, c)) : 1;
        sum += fabs(w) * (fabs(q) + 1);
    }
    return sum * p->spec.scale * (1 + p->spec.focal_gamma);
}

static void check_sample(const problem *p, int64_t i, const void *loss, double grad_loss,
                         const void *grad) {
    const int is_ignored = p->target && p->target[i] == p->spec.ignore_index;
    const double l = element(p->real, loss, i);
    double sum = 0, sum_abs = 0;
    for (int64_t c = 0; c < p->classes; c++) {
        const double g = element(p->dtype, grad, logit_at(p, i, c));
        if (is_ignored) INVARIANT(g == 0);
        sum += g;
        sum_abs += fabs(g);
    }
    if (is_ignored) INVARIANT(l == 0);
    if (is_ignored || !is_moderate(p)) return;
    INVARIANT(isfinite(l) && (l >= -1e-3 || !is_nonnegative(p)));
    if (p->dtype == ABSGD_FLOAT16 && !isfinite(sum_abs)) return; /* beyond its range */
    INVARIANT(isfinite(sum_abs));
    const double digits = p->dtype == ABSGD_FLOAT64 ? 1e-9 : p->dtype == ABSGD_FLOAT32 ? 1e-4 : 0.1;
    const double tiny = size_of(p->dtype) == 2 ? 1e-6 : 1e-30; /* about the least normal number */
    INVARIANT(fabs(sum) <= tiny + digits * (sum_abs + magnitude(p, i) * fabs(grad_loss)));
}

static void call(input *in) {
    problem p = take_problem(in);
    if (p.spec.samples != p.samples || p.spec.classes != p.classes || p.spec.inner != p.inner) {
        p.end = p.begin; /* for what these sizes mean there is no memory */
    }
    const absgd_dtype stored = stored_as(p.dtype);
    const int64_t n = p.samples, size = n * p.classes;
    void *loss = output(p.real, n), *saved = output(p.real, ABSGD_LOSS_SAVED * n);
    void *grad = output(stored, size);
    void *grad_loss = take_array(in, p.real, n, 0.0);
    const int right = is_right(&p);
    remember();
    absgd_status status = absgd_softmax_loss_forward(
        p.dtype, &p.spec, p.logits, p.target, p.soft_target, loss, saved, NULL, p.begin, p.end);
    INVARIANT((status == ABSGD_OK) == right);
    if (!right) {
        INVARIANT(is_untouched());
        status = absgd_softmax_loss_backward(p.dtype, &p.spec, p.logits, p.target, p.soft_target,
                                             saved, NULL, grad_loss, grad, p.begin, p.end);
        INVARIANT(status != ABSGD_OK && is_untouched());
        return;
    }
    if (p.begin == p.end) {
        INVARIANT(is_untouched());
        return;
    }
    INVARIANT(absgd_softmax_loss_backward(p.dtype, &p.spec, p.logits, p.target, p.soft_target,
                                          saved, NULL, grad_loss, grad, p.begin,
                                          p.end) == ABSGD_OK);
    const int is_one = all_within(p.real, grad_loss, n, 100);
    for (int64_t i = p.begin; i < p.end; i++) {
        if (is_one) check_sample(&p, i, loss, element(p.real, grad_loss, i), grad);
    }

    void *loss_2 = output(p.real, n), *saved_2 = output(p.real, ABSGD_LOSS_SAVED * n);
    void *grad_2 = output(stored, size);
    const int64_t middle = p.begin + (p.end - p.begin) / 2;
    const int64_t cuts[] = {p.begin, middle, p.end};
    for (int k = 0; k < 2; k++) {
        INVARIANT(absgd_softmax_loss_forward(p.dtype, &p.spec, p.logits, p.target, p.soft_target,
                                             loss_2, saved_2, grad_2, cuts[k],
                                             cuts[k + 1]) == ABSGD_OK);
    }
    for (int k = 0; k < 2; k++) {
        INVARIANT(absgd_softmax_loss_backward(p.dtype, &p.spec, p.logits, p.target, p.soft_target,
                                              saved_2, grad_2, grad_loss, grad_2, cuts[k],
                                              cuts[k + 1]) == ABSGD_OK);
    }
    /* what lies outside [begin, end) is the filling of both */
    INVARIANT(same_values(p.real, loss, loss_2, 0, n));
    INVARIANT(same_values(p.real, saved, saved_2, 0, ABSGD_LOSS_SAVED * n));
    INVARIANT(same_values(stored, grad, grad_2, 0, size));
    for (int64_t i = 0; i < n; i++) {
        if (i >= p.begin && i < p.end) continue;
        INVARIANT(is_filling(p.real, loss, i));
        for (int64_t c = 0; c < p.classes; c++) {
            INVARIANT(is_filling(stored, grad, logit_at(&p, i, c)));
        }
    }
}
