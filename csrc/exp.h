/* Exponentials that loops can vectorise: no branch, no table, no errno. */
#ifndef ABSGD_EXP_H
#define ABSGD_EXP_H

#include "isa.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* exp(r) for |r| ≤ log(2)/2, by its Taylor series to r^13/13!. */
ABSGD_INLINE double absgd_exp_reduced_f64(double r) {
    double e = 1.0 / 6227020800.0;
    e = ABSGD_FMA(e, r, 1.0 / 479001600.0);
    e = ABSGD_FMA(e, r, 1.0 / 39916800.0);
    e = ABSGD_FMA(e, r, 1.0 / 3628800.0);
    e = ABSGD_FMA(e, r, 1.0 / 362880.0);
    e = ABSGD_FMA(e, r, 1.0 / 40320.0);
    e = ABSGD_FMA(e, r, 1.0 / 5040.0);
    e = ABSGD_FMA(e, r, 1.0 / 720.0);
    e = ABSGD_FMA(e, r, 1.0 / 120.0);
    e = ABSGD_FMA(e, r, 1.0 / 24.0);
    e = ABSGD_FMA(e, r, 1.0 / 6.0);
    e = ABSGD_FMA(e, r, 0.5);
    e = ABSGD_FMA(e, r, 1.0);
    e = ABSGD_FMA(e, r, 1.0);
    return e;
}

/* exp(x) in double, to 2 ulp over the normal range; 0 below -708, where the result would be
 * subnormal, ∞ above 709.78, NaN for NaN.
 * x = n·log 2 + r with |r| ≤ log(2)/2. */
ABSGD_INLINE double absgd_exp_f64(double x) {
    const double magic = 0x1.8p52; /* adding it rounds to an integer, kept in the low bits */
    double shifted = ABSGD_FMA(x, 0x1.71547652b82fep0, magic);
    double n = shifted - magic;
    double r = ABSGD_FMA(n, -0x1.ef35793c76730p-45, ABSGD_FMA(n, -0x1.62e42fefa3800p-1, x));
    double e = absgd_exp_reduced_f64(r);
    uint64_t bits, exponent;
    memcpy(&exponent, &shifted, sizeof exponent);
    memcpy(&bits, &e, sizeof bits);
    bits += exponent << 52; /* e·2^n: the magic number's own bits are shifted out */
    memcpy(&e, &bits, sizeof e);
    e = x < -708.0 ? 0.0 : e;
    e = x > 709.782712893384 ? INFINITY : e;
    return x != x ? x : e;
}

/* exp(r) for |r| ≤ log(2)/2 in float: 1 + r + r²·q(r), q fitted for the least relative error
 * (1.1e-7). */
ABSGD_INLINE float absgd_exp_reduced_f32(float r) {
    float e = 0x1.10625p-7f;
    e = ABSGD_FMA(e, r, 0x1.572a64p-5f);
    e = ABSGD_FMA(e, r, 0x1.5557bp-3f);
    e = ABSGD_FMA(e, r, 0x1.fffdfcp-2f);
    e = ABSGD_FMA(e, r, 1.0f);
    return ABSGD_FMA(e, r, 1.0f);
}

/* exp(x) for x ≤ 0 in float, to 2.5 ulp; exactly 1 at 0, 0 below -87.3, where the result would be
 * subnormal, NaN for NaN. x = n·log 2 + r with |r| ≤ log(2)/2, where n·(log 2)'s high part is
 * exact. */
ABSGD_INLINE float absgd_exp_nonpositive_f32(float x) {
    const float magic =
        0x1.8000fep23f; /* rounds to an integer n, and keeps n + 127 in the low bits */
    float shifted = ABSGD_FMA(x, 0x1.715476p0f, magic);
    float n = shifted - magic;
    float r = ABSGD_FMA(n, -0x1.7f7d1cp-20f, ABSGD_FMA(n, -0x1.62e4p-1f, x));
    float e = absgd_exp_reduced_f32(r);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits <<= 23; /* 2^n: the magic number's own bits are shifted out */
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.3f ? 0.0f : e * power; /* a product, so that a NaN in e stays one */
}

/* exp(x) for x ≤ 0 in double, likewise: exactly 1 at 0, 0 below -708, NaN for NaN. */
ABSGD_INLINE double absgd_exp_nonpositive_f64(double x) {
    const double magic = 0x1.8p52 + 1023.0;
    double shifted = ABSGD_FMA(x, 0x1.71547652b82fep0, magic);
    double n = shifted - magic;
    double r = ABSGD_FMA(n, -0x1.ef35793c76730p-45, ABSGD_FMA(n, -0x1.62e42fefa3800p-1, x));
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits <<= 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return x < -708.0 ? 0.0 : absgd_exp_reduced_f64(r) * power;
}

/* log(x) in double for normal x > 0, to 2 ulp; about -709 at 0, NaN for NaN and ∞.
 * x = 2^k·f with f in [√½, √2), and log f = 2·artanh(s), s = (f-1)/(f+1), by its series to s^21. */
ABSGD_INLINE double absgd_log_f64(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += 0x00095f619980c433u; /* carries into the exponent from a mantissa of √2 on */
    uint64_t exponent = 0x4330000000000000u | (bits >> 52);    /* 2^52 + (k + 1023) */
    bits = (bits & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu; /* back, with f's exponent */
    double f, k;
    memcpy(&f, &bits, sizeof f);
    memcpy(&k, &exponent, sizeof k);
    k -= 0x1p52 + 1023.0;
    double s = (f - 1.0) / (f + 1.0);
    double z = s * s;
    double sum = 1.0 / 21.0;
    sum = ABSGD_FMA(sum, z, 1.0 / 19.0);
    sum = ABSGD_FMA(sum, z, 1.0 / 17.0);
    sum = ABSGD_FMA(sum, z, 1.0 / 15.0);
    sum = ABSGD_FMA(sum, z, 1.0 / 13.0);
    sum = ABSGD_FMA(sum, z, 1.0 / 11.0);
    sum = ABSGD_FMA(sum, z, 1.0 / 9.0);
    sum = ABSGD_FMA(sum, z, 1.0 / 7.0);
    sum = ABSGD_FMA(sum, z, 1.0 / 5.0);
    sum = ABSGD_FMA(sum, z, 1.0 / 3.0);
    double log_f = ABSGD_FMA(2.0 * s * z, sum, 2.0 * s);
    double log_x = ABSGD_FMA(k, 0x1.62e42fefa3800p-1, ABSGD_FMA(k, 0x1.ef35793c76730p-45, log_f));
    return log_x + (x - x); /* not x != x ? …: gcc would branch there, and not vectorise */
}

/* log(1 + x) in double for finite x ≥ 0, to 3 ulp; NaN for NaN and -1. */
ABSGD_INLINE double absgd_log1p_f64(double x) {
    double whole = 1.0 + x;
    return absgd_log_f64(whole) + (x - (whole - 1.0)) / whole; /* the part that the sum lost */
}

#endif
