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
 * hardware's own prefetching may fall behind: dispatch.c knows where. */
#define FETCH_AHEAD(array, n)                                                                      \
    for (size_t at = 0; at < (n) * sizeof *(array); at += LINE) {                                  \
        __builtin_prefetch((const char *)(array) + AHEAD + at);                                    \
    }

/* For each stored type: the loops' names, and the step in its arithmetic type. */
#define STORED float
#define NAMED(name) name##f32
#define STEPPED(name) absgd_step_f32##name
#define LOAD(x) (x)
#define STORE(x) (x)
#include "sgd_loops.h"

#define STORED double
#define NAMED(name) name##f64
#define STEPPED(name) absgd_step_f64##name
#define LOAD(x) (x)
#define STORE(x) (x)
#include "sgd_loops.h"

#define STORED absgd_f16
#define NAMED(name) name##f16
#define STEPPED(name) absgd_step_f32##name
#define LOAD(x) absgd_f16_load(x)
#define STORE(x) absgd_f16_store(x)
#include "sgd_loops.h"

#define STORED absgd_bf16
#define NAMED(name) name##bf16
#define STEPPED(name) absgd_step_f32##name
#define LOAD(x) absgd_bf16_load(x)
#define STORE(x) absgd_bf16_store(x)
#include "sgd_loops.h"

void ABSGD_KERNEL(absgd_sgd_step)(absgd_dtype dtype, const absgd_tensor *tensors,
                                  const absgd_sgd_options *options, int looks_ahead, int64_t begin,
                                  int64_t end) {
    int64_t first = 0; /* of the tensor at hand, in the concatenation */
    for (const absgd_tensor *t = tensors; first < end; first += t->numel, t++) {
        int64_t from = begin > first ? begin - first : 0;
        int64_t to = end - first < t->numel ? end - first : t->numel;
        if (from >= to) continue;
        switch (dtype) {
            case ABSGD_FLOAT32: span_f32(t, from, to - from, looks_ahead, options); break;
            case ABSGD_FLOAT64: span_f64(t, from, to - from, looks_ahead, options); break;
            case ABSGD_FLOAT16: span_f16(t, from, to - from, looks_ahead, options); break;
            case ABSGD_BFLOAT16: span_bf16(t, from, to - from, looks_ahead, options); break;
        }
    }
}
