/* The fuzzer's bytes as arguments of the C ABI. Each array is an allocation of its own, of just its
 * size, so that AddressSanitizer sees what lies beside it; of each that a call may write there is a
 * copy, to see whether it did. */
#ifndef ABSGD_FUZZ_INPUT_H
#define ABSGD_FUZZ_INPUT_H

#include "absgd.h"
#include "half.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INVARIANT(condition)                                                                       \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);         \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

typedef struct input {
    const uint8_t *at;
    size_t left;
} input;

static void take(input *in, void *to, size_t n) {
    const size_t have = n < in->left ? n : in->left;
    memset(to, 0, n);
    if (have) memcpy(to, in->at, have);
    in->at += have;
    in->left -= have;
}

static inline uint8_t take_byte(input *in) {
    uint8_t byte;
    take(in, &byte, 1);
    return byte;
}

static inline int take_flag(input *in) { return take_byte(in) & 1; }

/* Mostly a number that a caller would choose, else one that it should not, or any bits. */
static inline double take_double(input *in) {
    static const double special[] = {0.0,    -0.0,   1.0,    -1.0,    INFINITY, -INFINITY, NAN,
                                     0.5,    0.9,    1e-3,   -0.5,    2.0,      1e308,     -1e308,
                                     1e-310, 4e-324, 1e-300, -1e-300, 1e300,    3.5};
    const uint8_t kind = take_byte(in);
    if (kind < 160) return special[kind % (sizeof special / sizeof *special)];
    if (kind < 224) return (double)(int8_t)take_byte(in) / 16.0;
    double any;
    take(in, &any, sizeof any);
    return any;
}

/* Mostly in [0, small], where there is memory for it; seldom any. */
static inline int64_t take_size(input *in, int64_t small) {
    const uint8_t kind = take_byte(in);
    if (kind < 250) return kind % (small + 1);
    int64_t any;
    take(in, &any, sizeof any);
    return any;
}

static inline absgd_dtype take_dtype(input *in) {
    const uint8_t kind = take_byte(in);
    return kind < 250 ? (absgd_dtype)(kind % 4) : (absgd_dtype)((int)kind - 252);
}

static inline int is_dtype(absgd_dtype dtype) {
    return (int)dtype >= 0 && (int)dtype <= ABSGD_BFLOAT16;
}

/* What memory is made for: of a dtype that there is not, the largest. */
static inline absgd_dtype stored_as(absgd_dtype dtype) {
    return is_dtype(dtype) ? dtype : ABSGD_FLOAT64;
}

static inline size_t size_of(absgd_dtype dtype) {
    return dtype == ABSGD_FLOAT64 ? 8 : dtype == ABSGD_FLOAT32 ? 4 : 2;
}

static inline absgd_dtype arithmetic(absgd_dtype dtype) {
    return dtype == ABSGD_FLOAT64 ? ABSGD_FLOAT64 : ABSGD_FLOAT32;
}

/* ---- memory ---- */

enum { MAX_BLOCKS = 64, FILLING = 0xa5 };
static _Thread_local struct block {
    void *data, *before; /* before: NULL where nothing may be written at all */
    size_t size;
} blocks[MAX_BLOCKS];
static _Thread_local int n_blocks;

static inline void *allocate(size_t size, int is_output) {
    INVARIANT(n_blocks < MAX_BLOCKS);
    struct block *b = &blocks[n_blocks++];
    b->size = size;
    b->data = malloc(size ? size : 1);
    b->before = is_output ? malloc(size ? size : 1) : NULL;
    memset(b->data, FILLING, size);
    return b->data;
}

/* Remembers what the outputs hold now, for `is_untouched`. */
static inline void remember(void) {
    for (int i = 0; i < n_blocks; i++) {
        if (blocks[i].before) memcpy(blocks[i].before, blocks[i].data, blocks[i].size);
    }
}

static inline int is_untouched(void) {
    for (int i = 0; i < n_blocks; i++) {
        const struct block *b = &blocks[i];
        if (b->before && memcmp(b->before, b->data, b->size) != 0) return 0;
    }
    return 1;
}

static inline void free_all(void) {
    for (int i = 0; i < n_blocks; i++) {
        free(blocks[i].data);
        free(blocks[i].before);
    }
    n_blocks = 0;
}

static inline double element(absgd_dtype dtype, const void *x, int64_t i) {
    switch (dtype) {
        case ABSGD_FLOAT64: return ((const double *)x)[i];
        case ABSGD_FLOAT16: return (double)absgd_f16_load(((const uint16_t *)x)[i]);
        case ABSGD_BFLOAT16: return (double)absgd_bf16_load(((const uint16_t *)x)[i]);
        default: return (double)((const float *)x)[i];
    }
}

static inline void set_element(absgd_dtype dtype, void *x, int64_t i, double value) {
    switch (dtype) {
        case ABSGD_FLOAT64: ((double *)x)[i] = value; break;
        case ABSGD_FLOAT16: ((uint16_t *)x)[i] = absgd_f16_store((float)value); break;
        case ABSGD_BFLOAT16: ((uint16_t *)x)[i] = absgd_bf16_store((float)value); break;
        default: ((float *)x)[i] = (float)value; break;
    }
}

/* Whether element i is what `allocate` left there. */
static inline int is_filling(absgd_dtype dtype, const void *x, int64_t i) {
    const uint8_t *bytes = (const uint8_t *)x + (size_t)i * size_of(dtype);
    for (size_t k = 0; k < size_of(dtype); k++) {
        if (bytes[k] != FILLING) return 0;
    }
    return 1;
}

/* n numbers of dtype: eighths in [low, low + 32), or any doubles, rounded. */
static inline void *take_array(input *in, absgd_dtype dtype, int64_t n, double low) {
    void *x = allocate((size_t)n * size_of(dtype), 0);
    const int is_plain = take_byte(in) < 192;
    for (int64_t i = 0; i < n; i++) {
        const double value = is_plain ? low + take_byte(in) / 8.0 : take_double(in);
        set_element(dtype, x, i, value);
    }
    return x;
}

/* The same, or NULL. */
static inline void *take_optional(input *in, absgd_dtype dtype, int64_t n, double low) {
    return take_flag(in) ? take_array(in, dtype, n, low) : NULL;
}

/* Room for n results of dtype. */
static inline void *output(absgd_dtype dtype, int64_t n) {
    return allocate((size_t)n * size_of(dtype), 1);
}

/* Elements [from, to) of the same bits; of a NaN these are not promised. */
static inline int same_values(absgd_dtype dtype, const void *a, const void *b, int64_t from,
                              int64_t to) {
    const size_t size = size_of(dtype);
    for (int64_t i = from; i < to; i++) {
        const char *x = (const char *)a + (size_t)i * size, *y = (const char *)b + (size_t)i * size;
        const int are_nan = isnan(element(dtype, a, i)) && isnan(element(dtype, b, i));
        if (memcmp(x, y, size) != 0 && !are_nan) return 0;
    }
    return 1;
}

static inline int all_at_least(absgd_dtype dtype, const void *x, int64_t n, double low) {
    for (int64_t i = 0; x && i < n; i++) {
        if (!(element(dtype, x, i) >= low)) return 0;
    }
    return 1;
}

static inline int all_within(absgd_dtype dtype, const void *x, int64_t n, double limit) {
    for (int64_t i = 0; x && i < n; i++) {
        if (!(fabs(element(dtype, x, i)) <= limit)) return 0;
    }
    return 1;
}

/* ---- the target ---- */

static void call(input *in); /* each file's own */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    call(&in);
    free_all();
    return 0;
}

#endif
