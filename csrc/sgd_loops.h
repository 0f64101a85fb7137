/* The loops of sgd.c, included there once for each stored type. The flags are constants at each
 * call, so each combination is a loop of its own. */
ABSGD_INLINE void NAMED(few_)(STORED *restrict w, const STORED *restrict g, STORED *restrict v,
                              int64_t n, int has_momentum, int fresh, STEPPED(_constants) k) {
    ABSGD_SIMD
    for (int64_t i = 0; i < n; i++) {
        __typeof__(k.lr) velocity = has_momentum && !fresh ? LOAD(v[i]) : 0;
        w[i] = STORE(STEPPED()(LOAD(w[i]), LOAD(g[i]), &velocity, has_momentum, fresh, k));
        if (has_momentum) v[i] = STORE(velocity);
    }
}

ABSGD_INLINE void NAMED(step_)(STORED *w, const STORED *g, STORED *v, int64_t n, int looks_ahead,
                               int has_momentum, int fresh, STEPPED(_constants) k) {
    const int64_t ahead = AHEAD / (int64_t)sizeof(STORED);
    int64_t i = 0;
    for (; looks_ahead && i + ahead + BLOCK <= n; i += BLOCK) {
        FETCH_AHEAD(w + i, BLOCK)
        FETCH_AHEAD(g + i, BLOCK)
        if (has_momentum) FETCH_AHEAD(v + i, BLOCK)
        NAMED(few_)(w + i, g + i, has_momentum ? v + i : v, BLOCK, has_momentum, fresh, k);
    }
    NAMED(few_)(w + i, g + i, has_momentum ? v + i : v, n - i, has_momentum, fresh, k);
}

#define BY_FORM(is_polyak, is_nesterov)                                                            \
    k.polyak = is_polyak, k.nesterov = is_nesterov;                                                \
    t->fresh ? NAMED(step_)(w, g, v, n, looks_ahead, 1, 1, k)                                      \
             : NAMED(step_)(w, g, v, n, looks_ahead, 1, 0, k);

static void NAMED(span_)(const absgd_tensor *t, int64_t from, int64_t n, int looks_ahead,
                         const absgd_sgd_options *options) {
    STEPPED(_constants) k = STEPPED(_prepare)(options);
    STORED *w = (STORED *)t->param + from;
    const STORED *g = (const STORED *)t->grad + from;
    STORED *v = options->momentum != 0.0 ? (STORED *)t->momentum + from : 0;
    if (!v) {
        NAMED(step_)(w, g, v, n, looks_ahead, 0, 0, k);
    } else if (options->polyak) {
        BY_FORM(1, 0)
    } else if (options->nesterov) {
        BY_FORM(0, 1)
    } else {
        BY_FORM(0, 0)
    }
}

#undef BY_FORM
#undef STORED
#undef NAMED
#undef STEPPED
#undef LOAD
#undef STORE
