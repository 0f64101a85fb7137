/* absgd_sigmoid_loss_forward and _backward: of moderate logits finite, a loss ≥ 0; ignored elements
 * without loss or gradient; nothing outside [begin, end); a split changes no bit. */
#include "input.h"

enum { MAX_SAMPLES = 5, MAX_CLASSES = 7, MAX_INNER = 3 };

typedef struct problem {
    absgd_dtype dtype, real;
    absgd_sigmoid_loss spec;
    int64_t samples, classes, inner; /* that there is memory for */
    void *logits, *target;
    int64_t begin, end;
} problem;

static int64_t results(const problem *p) {
    return p->spec.per_sample ? p->samples : p->samples * p->classes * p->inner;
}

static problem take_problem(input *in) {
    problem p = {.dtype = take_dtype(in)};
    const absgd_dtype stored = stored_as(p.dtype);
    p.real = arithmetic(stored);
    p.samples = take_byte(in) % (MAX_SAMPLES + 1);
    p.classes = take_byte(in) % (MAX_CLASSES + 1);
    p.inner = take_byte(in) % (MAX_INNER + 1);
    const int64_t size = p.samples * p.classes * p.inner;
    p.spec = (absgd_sigmoid_loss){.samples = p.samples,
                                  .classes = p.classes,
                                  .inner = p.inner,
                                  .alpha = -1.0,
                                  .ignore_index = -1.0,
                                  .per_sample = take_flag(in)};
    const uint8_t odd = take_byte(in);
    if (odd >= 250) p.spec.samples = take_size(in, p.samples);
    if (odd >= 252) p.spec.classes = take_size(in, p.classes);
    if (odd >= 253) p.spec.inner = take_size(in, p.inner);
    p.spec.weight = take_optional(in, p.real, p.classes, 0.0);
    p.spec.pos_weight = take_optional(in, p.real, p.classes, 0.0);
    const uint8_t given = take_byte(in);
    if (given & 1) p.spec.alpha = take_byte(in) / 255.0;
    if (given & 2) p.spec.focal_gamma = take_byte(in) / 16.0;
    if (given & 4) p.spec.label_smoothing = take_byte(in) / 255.0;
    if ((given & 24) == 24) p.spec.alpha = take_double(in);
    if ((given & 40) == 40) p.spec.focal_gamma = take_double(in);
    if ((given & 72) == 72) p.spec.label_smoothing = take_double(in);
    if ((given & 136) == 136) p.spec.ignore_index = take_double(in);
    p.logits = take_array(in, stored, size, -16.0);
    p.target = allocate((size_t)size * size_of(p.real), 0);
    for (int64_t i = 0; i < size; i++) {
        const uint8_t t = take_byte(in);
        const double value = t < 240 ? t / 239.0 : t < 252 ? -1.0 : take_double(in);
        set_element(p.real, p.target, i, value);
    }
    p.begin = take_size(in, results(&p));
    p.end = take_byte(in) < 200 ? results(&p) : take_size(in, results(&p));
    return p;
}

/* A product of sizes ≥ 0, or −1 where so many doubles have no size in bytes. */
static int64_t product(int64_t a, int64_t b) {
    int64_t out;
    return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &out) || out > INT64_MAX / 8 ? -1 : out;
}

static double ignored_target(const problem *p) {
    const double t = p->spec.ignore_index;
    return p->real == ABSGD_FLOAT64 ? t : (double)(float)t;
}

static int is_spec(const problem *p) {
    const absgd_sigmoid_loss *s = &p->spec;
    if (!is_dtype(p->dtype) || s->samples < 0 || s->classes < 0 || s->inner < 0) return 0;
    if (!(s->label_smoothing >= 0 && s->label_smoothing <= 1) || !(s->alpha <= 1)) return 0;
    if (!(s->focal_gamma >= 0 && isfinite(s->focal_gamma))) return 0;
    return !(ignored_target(p) >= 0 && ignored_target(p) <= 1);
}

static int is_ignored(const problem *p, int64_t i) {
    return element(p->real, p->target, i) == ignored_target(p);
}

static int targets_fit(const problem *p) {
    const int64_t each = p->spec.per_sample ? p->classes * p->inner : 1;
    for (int64_t i = p->begin * each; i < p->end * each; i++) {
        const double t = element(p->real, p->target, i);
        if (!is_ignored(p, i) && !(t >= -1e-5 && t <= 1 + 1e-5)) return 0;
    }
    return 1;
}

static int is_moderate(const problem *p) {
    const absgd_sigmoid_loss *s = &p->spec;
    return all_within(p->dtype, p->logits, p->samples * p->classes * p->inner, 100) &&
           all_within(p->real, s->weight, p->classes, 100) &&
           all_within(p->real, s->pos_weight, p->classes, 100) && s->focal_gamma < 100;
}

static int is_nonnegative(const problem *p) {
    for (int64_t i = 0; i < p->samples * p->classes * p->inner; i++) {
        const double t = element(p->real, p->target, i);
        if (!is_ignored(p, i) && !(t >= 0 && t <= 1)) return 0; /* ABSGD_TARGET_SLACK */
    }
    return all_at_least(p->real, p->spec.weight, p->classes, 0) &&
           all_at_least(p->real, p->spec.pos_weight, p->classes, 0);
}

static void check_result(const problem *p, int64_t i, const void *loss, const void *known,
                         const void *grad) {
    const int64_t each = p->spec.per_sample ? p->classes * p->inner : 1;
    double counted = 0;
    for (int64_t j = i * each; j < (i + 1) * each; j++) {
        counted += !is_ignored(p, j);
        const double g = element(p->dtype, grad, j);
        if (is_ignored(p, j)) INVARIANT(g == 0);
        if (is_moderate(p) && p->dtype != ABSGD_FLOAT16) INVARIANT(isfinite(g));
    }
    const double l = element(p->real, loss, i);
    if (p->spec.per_sample) INVARIANT(element(p->real, known, i) == counted);
    if (counted == 0) INVARIANT(l == 0);
    if (is_moderate(p)) INVARIANT(isfinite(l) && (l >= 0 || !is_nonnegative(p)));
}

static void call(input *in) {
    problem p = take_problem(in);
    const absgd_sigmoid_loss *s = &p.spec;
    const absgd_dtype stored = stored_as(p.dtype);
    const int64_t n = results(&p), size = p.samples * p.classes * p.inner;
    const int has_memory =
        s->samples == p.samples && s->classes == p.classes && s->inner == p.inner;
    void *loss = output(p.real, n), *grad = output(stored, size);
    void *known = output(p.real, p.spec.per_sample ? n : 0);
    void *grad_loss = take_array(in, p.real, n, 0.0);
    if (!has_memory) p.end = p.begin;
    const int64_t elements = product(s->samples, product(s->classes, s->inner));
    const int64_t told = s->per_sample ? s->samples : elements;
    const int is_range = elements >= 0 && s->samples <= INT64_MAX / 8 && 0 <= p.begin &&
                         p.begin <= p.end && p.end <= told;
    const int right = is_spec(&p) && is_range && (p.begin == p.end || targets_fit(&p));

    remember();
    absgd_status status =
        absgd_sigmoid_loss_forward(p.dtype, s, p.logits, p.target, loss, known, p.begin, p.end);
    INVARIANT((status == ABSGD_OK) == right);
    if (!right || p.begin == p.end) {
        INVARIANT(is_untouched());
        if (is_spec(&p) && is_range) return; /* targets are the forward pass's to look at */
        status = absgd_sigmoid_loss_backward(p.dtype, s, p.logits, p.target, known, grad_loss, grad,
                                             p.begin, p.end);
        INVARIANT(status != ABSGD_OK && is_untouched());
        return;
    }
    INVARIANT(absgd_sigmoid_loss_backward(p.dtype, s, p.logits, p.target, known, grad_loss, grad,
                                          p.begin, p.end) == ABSGD_OK);
    const int is_one = all_within(p.real, grad_loss, n, 100);
    for (int64_t i = p.begin; i < p.end; i++) {
        if (is_one) check_result(&p, i, loss, known, grad);
    }

    void *loss_2 = output(p.real, n), *grad_2 = output(stored, size);
    void *known_2 = output(p.real, p.spec.per_sample ? n : 0);
    const int64_t cuts[] = {p.begin, p.begin + (p.end - p.begin) / 2, p.end};
    for (int k = 0; k < 2; k++) {
        INVARIANT(absgd_sigmoid_loss_forward(p.dtype, s, p.logits, p.target, loss_2, known_2,
                                             cuts[k], cuts[k + 1]) == ABSGD_OK);
        INVARIANT(absgd_sigmoid_loss_backward(p.dtype, s, p.logits, p.target, known_2, grad_loss,
                                              grad_2, cuts[k], cuts[k + 1]) == ABSGD_OK);
    }
    INVARIANT(same_values(p.real, loss, loss_2, 0, n));
    INVARIANT(same_values(stored, grad, grad_2, 0, size));
    for (int64_t i = 0; i < n; i++) {
        if (i >= p.begin && i < p.end) continue;
        INVARIANT(is_filling(p.real, loss, i));
    }
}
