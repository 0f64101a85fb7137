/* absgd_sgd_step: writes [begin, end) of parameters and, where there is momentum, of its buffers,
 * nothing else; a split changes no bit. */
#include "input.h"

enum { MAX_TENSORS = 4, MAX_NUMEL = 40 };

static absgd_sgd_options take_options(input *in) {
    absgd_sgd_options o = ABSGD_SGD_OPTIONS_INIT;
    const uint8_t given = take_byte(in);
    o.lr = 0.125;
    if (given & 1) o.momentum = 0.5;
    if (given & 2) o.weight_decay = 0.25;
    if (given & 4) o.nesterov = 1;
    if (given & 8) o.maximize = 1;
    if (given & 16) o.polyak = 1;
    if ((given & 96) == 96) o.momentum = take_double(in);
    if ((given & 160) == 160) o.dampening = take_double(in);
    if ((given & 192) == 192) o.grad_scale = take_double(in);
    if ((given & 224) == 224) {
        o.lr = take_double(in);
        o.weight_decay = take_double(in);
    }
    return o;
}

static int are_options(const absgd_sgd_options *o) {
    return o->momentum >= 0 && o->grad_scale != 0 &&
           (!o->polyak || (o->dampening == 0 && !o->nesterov)) &&
           (!o->nesterov || (o->momentum > 0 && o->dampening == 0));
}

typedef struct list {
    absgd_tensor tensors[MAX_TENSORS];
    void *param_before[MAX_TENSORS], *momentum_before[MAX_TENSORS]; /* copies, to step again */
    int64_t has[MAX_TENSORS]; /* elements that there is memory for */
    int is_right;
    int64_t size; /* of all, where that is a number */
} list;

static void *copy_of(absgd_dtype dtype, const void *x, int64_t n) {
    void *copy = allocate((size_t)n * size_of(dtype), 0);
    memcpy(copy, x, (size_t)n * size_of(dtype));
    return copy;
}

static list take_list(input *in, absgd_dtype stored, int n, double momentum) {
    list l = {.is_right = 1};
    for (int i = 0; i < n; i++) {
        absgd_tensor *t = &l.tensors[i];
        const int64_t has = l.has[i] = take_byte(in) % (MAX_NUMEL + 1);
        t->param = output(stored, has);
        t->momentum = output(stored, has);
        memcpy(t->param, take_array(in, stored, has, -16.0), (size_t)has * size_of(stored));
        memcpy(t->momentum, take_array(in, stored, has, -16.0), (size_t)has * size_of(stored));
        t->grad = take_array(in, stored, has, -16.0);
        t->fresh = take_flag(in);
        t->numel = take_byte(in) < 250 ? has : take_size(in, has);
        l.param_before[i] = copy_of(stored, t->param, has);
        l.momentum_before[i] = copy_of(stored, t->momentum, has);
        const uint8_t missing = take_byte(in);
        if (missing >= 252) t->param = NULL;
        if (missing == 251) t->grad = NULL;
        if (missing >= 230 && missing <= 250) t->momentum = NULL;
        const int sums = t->numel >= 0 && t->numel <= INT64_MAX - l.size;
        if (!l.is_right) continue;
        const int given = t->param && t->grad && (t->momentum || momentum == 0);
        l.is_right = sums && (given || t->numel == 0);
        if (l.is_right) l.size += t->numel;
    }
    return l;
}

/* Whether there is memory for elements [0, end) of the list. */
static int64_t reachable(const list *l, int n) {
    int64_t end = 0;
    for (int i = 0; i < n; i++) {
        if (l->tensors[i].numel < 0) return end;
        if (l->tensors[i].numel > l->has[i]) return end + l->has[i];
        end += l->tensors[i].numel;
    }
    return end;
}

static void call(input *in) {
    const absgd_dtype dtype = take_dtype(in);
    const absgd_dtype stored = stored_as(dtype);
    const absgd_sgd_options o = take_options(in);
    const int n = take_byte(in) % (MAX_TENSORS + 1);
    list l = take_list(in, stored, n, o.momentum);
    const int64_t end = take_byte(in) < 240 ? reachable(&l, n) : take_size(in, 60);
    const int64_t begin =
        take_byte(in) < 224 ? (end > 0 ? take_byte(in) % end : 0) : take_size(in, 60);
    if (end > reachable(&l, n) && end <= l.size) return; /* allowed, and there is no memory */
    const int is_range = 0 <= begin && begin <= end && end <= l.size;
    remember();
    const absgd_status status = absgd_sgd_step(dtype, l.tensors, n, &o, begin, end);
    INVARIANT((status == ABSGD_OK) ==
              (is_dtype(dtype) && are_options(&o) && l.is_right && is_range));
    if (status != ABSGD_OK) {
        INVARIANT(is_untouched());
        return;
    }

    void *after[MAX_TENSORS], *momentum_after[MAX_TENSORS];
    int64_t first = 0;
    for (int i = 0; i < n; i++) { /* what lies outside [begin, end) */
        absgd_tensor *t = &l.tensors[i];
        const int64_t has = t->numel < l.has[i] ? t->numel : l.has[i];
        int64_t from = begin > first ? begin - first : 0, to = end - first;
        if (from > has) from = has;
        to = to < from ? from : to > has ? has : to;
        after[i] = momentum_after[i] = NULL;
        if (t->param) {
            INVARIANT(same_values(dtype, t->param, l.param_before[i], 0, from));
            INVARIANT(same_values(dtype, t->param, l.param_before[i], to, has));
            after[i] = copy_of(dtype, t->param, has);
            memcpy(t->param, l.param_before[i], (size_t)has * size_of(dtype));
        }
        if (t->momentum) {
            const int is_left = o.momentum == 0;
            INVARIANT(
                same_values(dtype, t->momentum, l.momentum_before[i], 0, is_left ? has : from));
            INVARIANT(same_values(dtype, t->momentum, l.momentum_before[i], to, has));
            momentum_after[i] = copy_of(dtype, t->momentum, has);
            memcpy(t->momentum, l.momentum_before[i], (size_t)has * size_of(dtype));
        }
        if (t->numel > INT64_MAX - first) break;
        first += t->numel;
    }
    const int64_t middle = begin + (end - begin) / 3;
    INVARIANT(absgd_sgd_step(dtype, l.tensors, n, &o, begin, middle) == ABSGD_OK);
    INVARIANT(absgd_sgd_step(dtype, l.tensors, n, &o, middle, end) == ABSGD_OK);
    for (int i = 0; i < n; i++) {
        const absgd_tensor *t = &l.tensors[i];
        const int64_t has = t->numel < l.has[i] ? t->numel : l.has[i];
        if (t->param) INVARIANT(same_values(dtype, t->param, after[i], 0, has));
        if (t->momentum) INVARIANT(same_values(dtype, t->momentum, momentum_after[i], 0, has));
    }
}
