/* float16 and bfloat16 as 16-bit patterns, converted without branches so that loops vectorise on
 * every level, also where the processor has no instruction for it. Rounds to nearest even. */
#ifndef ABSGD_HALF_H
#define ABSGD_HALF_H

#include "isa.h"

#include <stdint.h>
#include <string.h>

typedef uint16_t absgd_f16;
typedef uint16_t absgd_bf16;

ABSGD_INLINE uint32_t absgd_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

ABSGD_INLINE float absgd_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

ABSGD_INLINE float absgd_bf16_load(absgd_bf16 h) { return absgd_from_bits((uint32_t)h << 16); }

ABSGD_INLINE absgd_bf16 absgd_bf16_store(float x) {
    uint32_t bits = absgd_bits(x);
    uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    uint32_t quiet_nan = bits | 0x400000u;
    return (absgd_bf16)(((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded) >> 16);
}

/* The exponent is re-biased, by 112; a subnormal's fraction is put below a leading 1, which is then
 * taken away; infinity and NaN get their exponent by hand. No step meets a subnormal float, on
 * which processors are slow, or which they take for 0. */
ABSGD_INLINE float absgd_f16_load(absgd_f16 h) {
    uint32_t magnitude = ((uint32_t)h & 0x7fffu) << 13;
    uint32_t sign = ((uint32_t)h & 0x8000u) << 16;
    uint32_t normal = magnitude + 0x38000000u;
    uint32_t subnormal = absgd_bits(absgd_from_bits(magnitude + 0x38800000u) - 0x1p-14f);
    uint32_t special = magnitude | 0x7f800000u;
    uint32_t finite = magnitude < 0x00800000u ? subnormal : normal;
    return absgd_from_bits(sign | (magnitude >= 0x0f800000u ? special : finite));
}

/* Below 2^-14 the sum with 0.5 rounds at float16's subnormal spacing, 2^-24; above, the low 13 bits
 * are rounded in integers, and the carry runs into the exponent, up to infinity. */
ABSGD_INLINE absgd_f16 absgd_f16_store(float x) {
    uint32_t bits = absgd_bits(x);
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t subnormal = absgd_bits(absgd_from_bits(magnitude) + 0.5f) - absgd_bits(0.5f);
    uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    return (absgd_f16)(sign | (magnitude >= 0x47800000u ? special : finite));
}

#endif
