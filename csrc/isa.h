/* One source, several instruction sets. Each kernel file is compiled once for each level of the
 * processor (x86-64-v2, -v3: AVX2, -v4: AVX-512; elsewhere once) with ABSGD_LEVEL set to it, and
 * the compiler vectorises the same plain loops for each. dispatch.c picks a level at run time. */
#ifndef ABSGD_ISA_H
#define ABSGD_ISA_H

/* Defined as 1: one level, what the compiler's options ask for, on x86-64 as elsewhere (the
 * fuzzers' and sanitizers' builds). */
#ifndef ABSGD_ONE_LEVEL
#if defined(__x86_64__)
#define ABSGD_ONE_LEVEL 0
#else
#define ABSGD_ONE_LEVEL 1
#endif
#endif

/* exp.h rounds to integers by adding and taking away a large number. */
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "needs -msse2 -mfpmath=sse (32-bit x86) or -fexcess-precision=fast (s390x, -std=c17)"
#endif

#define ABSGD_CONCAT_(a, b) a##_v##b
#define ABSGD_CONCAT(a, b) ABSGD_CONCAT_(a, b)
#define ABSGD_KERNEL(name) ABSGD_CONCAT(name, ABSGD_LEVEL)

#define ABSGD_SIMD _Pragma("omp simd")
#define ABSGD_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define ABSGD_SIMD_WITH(...) ABSGD_PRAGMA(omp simd __VA_ARGS__) /* reduction(+ : a) … */
/* a·b + c, fused where one instruction does it. The compiler itself contracts nothing: it might
 * choose differently in a loop's body and in its remainder, and then the bits of a result would
 * depend on how the work was split. */
#ifdef __FP_FAST_FMAF
#define ABSGD_FMA(a, b, c)                                                                         \
    _Generic((a), float: __builtin_fmaf((a), (b), (c)), double: __builtin_fma((a), (b), (c)))
#else
#define ABSGD_FMA(a, b, c) ((a) * (b) + (c))
#endif

#define ABSGD_INLINE static inline __attribute__((always_inline))

#endif
