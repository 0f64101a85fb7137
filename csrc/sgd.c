/* The momentum step over a list of tensors, as if they were one array: [begin, end) counts through
 * their concatenation, so that threads share the list evenly however its sizes are spread. */
#include "absgd_math.h"
#include "half.h"
#include "kernels.h"

enum {
    BLOCK = 128,  /* elements between two looks ahead */
    AHEAD = 4096, /* bytes */
    LINE = 64,
};

/* Asks for the n elements of each array that come AHEAD bytes later. Of five streams in memory the
 * hardware's own prefetching falls behind. */
#define FETCH_AHEAD(array, n)                                                                      \
    for (size_t at = 0; at < (n) * sizeof *(array); at += LINE) {                                  \
        __builtin_prefetch((const char *)(array) + AHEAD + at);                                    \
    }

#define LOAD_PLAIN(x) (x)
#define STORE_PLAIN(x) (x)

/* S: stored type, A: arithmetic type. The flags are constants at each call, so each combination is
 * a loop of its own. */
#define DEFINE_STEP(S, A, step, load, store, suffix)                                               \
    ABSGD_INLINE void few_##suffix(S *restrict w, const S *restrict g, S *restrict v, int64_t n,   \
                                   int has_momentum, int fresh, step##_constants k) {              \
        ABSGD_SIMD                                                                                 \
        for (int64_t i = 0; i < n; i++) {                                                          \
            A velocity = has_momentum && !fresh ? load(v[i]) : 0;                                  \
            w[i] = store(step(load(w[i]), load(g[i]), &velocity, has_momentum, fresh, k));         \
            if (has_momentum) v[i] = store(velocity);                                              \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    ABSGD_INLINE void step_##suffix(S *w, const S *g, S *v, int64_t n, int has_momentum,           \
                                    int fresh, step##_constants k) {                               \
        const int64_t ahead = AHEAD / (int64_t)sizeof(S);                                          \
        int64_t i = 0;                                                                             \
        for (; i + ahead + BLOCK <= n; i += BLOCK) {                                               \
            FETCH_AHEAD(w + i, BLOCK)                                                              \
            FETCH_AHEAD(g + i, BLOCK)                                                              \
            if (has_momentum) FETCH_AHEAD(v + i, BLOCK)                                            \
            few_##suffix(w + i, g + i, has_momentum ? v + i : v, BLOCK, has_momentum, fresh, k);   \
        }                                                                                          \
        few_##suffix(w + i, g + i, has_momentum ? v + i : v, n - i, has_momentum, fresh, k);       \
    }                                                                                              \
                                                                                                   \
    static void span_##suffix(const absgd_tensor *t, int64_t from, int64_t n,                      \
                              const absgd_sgd_options *options) {                                  \
        step##_constants k = step##_prepare(options);                                              \
        S *w = (S *)t->param + from;                                                               \
        const S *g = (const S *)t->grad + from;                                                    \
        S *v = options->momentum != 0.0 ? (S *)t->momentum + from : 0;                             \
        if (!v) {                                                                                  \
            step_##suffix(w, g, v, n, 0, 0, k);                                                    \
            return;                                                                                \
        }                                                                                          \
        k.polyak = 1;                                                                              \
        if (options->polyak) {                                                                     \
            t->fresh ? step_##suffix(w, g, v, n, 1, 1, k) : step_##suffix(w, g, v, n, 1, 0, k);    \
            return;                                                                                \
        }                                                                                          \
        k.polyak = 0;                                                                              \
        k.nesterov = 1;                                                                            \
        if (options->nesterov) {                                                                   \
            t->fresh ? step_##suffix(w, g, v, n, 1, 1, k) : step_##suffix(w, g, v, n, 1, 0, k);    \
            return;                                                                                \
        }                                                                                          \
        k.nesterov = 0;                                                                            \
        t->fresh ? step_##suffix(w, g, v, n, 1, 1, k) : step_##suffix(w, g, v, n, 1, 0, k);        \
    }

DEFINE_STEP(float, float, absgd_step_f32, LOAD_PLAIN, STORE_PLAIN, f32)
DEFINE_STEP(double, double, absgd_step_f64, LOAD_PLAIN, STORE_PLAIN, f64)
DEFINE_STEP(absgd_f16, float, absgd_step_f32, absgd_f16_load, absgd_f16_store, f16)
DEFINE_STEP(absgd_bf16, float, absgd_step_f32, absgd_bf16_load, absgd_bf16_store, bf16)

void ABSGD_KERNEL(absgd_sgd_step)(absgd_dtype dtype, const absgd_tensor *tensors,
                                  const absgd_sgd_options *options, int64_t begin, int64_t end) {
    int64_t first = 0; /* of the tensor at hand, in the concatenation */
    for (const absgd_tensor *t = tensors; first < end; first += t->numel, t++) {
        int64_t from = begin > first ? begin - first : 0;
        int64_t to = end - first < t->numel ? end - first : t->numel;
        if (from >= to) continue;
        switch (dtype) {
            case ABSGD_FLOAT32: span_f32(t, from, to - from, options); break;
            case ABSGD_FLOAT64: span_f64(t, from, to - from, options); break;
            case ABSGD_FLOAT16: span_f16(t, from, to - from, options); break;
            case ABSGD_BFLOAT16: span_bf16(t, from, to - from, options); break;
        }
    }
}
