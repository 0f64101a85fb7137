/* Logarithms in float that loops can vectorise: no branch, no table. */
#ifndef ABSGD_LOG_F32_H
#define ABSGD_LOG_F32_H

#include "isa.h"

#include <stdint.h>
#include <string.h>

/* 2·artanh(s) for |s| ≤ 1/3, by its series to s^15. */
ABSGD_INLINE float absgd_twice_artanh_f32(float s) {
    const float z = s * s;
    float sum = 1.0f / 15.0f;
    sum = ABSGD_FMA(sum, z, 1.0f / 13.0f);
    sum = ABSGD_FMA(sum, z, 1.0f / 11.0f);
    sum = ABSGD_FMA(sum, z, 1.0f / 9.0f);
    sum = ABSGD_FMA(sum, z, 1.0f / 7.0f);
    sum = ABSGD_FMA(sum, z, 1.0f / 5.0f);
    sum = ABSGD_FMA(sum, z, 1.0f / 3.0f);
    return ABSGD_FMA(2.0f * s * z, sum, 2.0f * s);
}

/* log(1 + x) in float for x in [0, 1], to 2 ulp; NaN for NaN. x + x²·q(x), q fitted for the least
 * relative error (3.3e-8): no division. */
ABSGD_INLINE float absgd_log1p_unit_f32(float x) {
    float q = 0x1.5f96e8p-8f;
    q = ABSGD_FMA(q, x, -0x1.ec9928p-6f);
    q = ABSGD_FMA(q, x, 0x1.446c02p-4f);
    q = ABSGD_FMA(q, x, -0x1.19ad8cp-3f);
    q = ABSGD_FMA(q, x, 0x1.884452p-3f);
    q = ABSGD_FMA(q, x, -0x1.fd1320p-3f);
    q = ABSGD_FMA(q, x, 0x1.5535dap-2f);
    q = ABSGD_FMA(q, x, -0x1.ffff14p-2f);
    return ABSGD_FMA(x * x, q, x);
}

/* log(x) in float for normal x > 0, to 2 ulp or 1e-7; about −88 at 0, NaN for NaN.
 * x = 2^k·f with f in [√½, √2), and log f = 2·artanh((f−1)/(f+1)). */
ABSGD_INLINE float absgd_log_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits += 0x004afb0du; /* carries into the exponent from a mantissa of √2 on */
    const int32_t k = (int32_t)(bits >> 23) - 127;
    bits = (bits & 0x007fffffu) + 0x3f3504f3u; /* back, with f's exponent */
    float f;
    memcpy(&f, &bits, sizeof f);
    const float log_f = absgd_twice_artanh_f32((f - 1.0f) / (f + 1.0f));
    const float log_x =
        ABSGD_FMA((float)k, 0x1.62e400p-1f, ABSGD_FMA((float)k, 0x1.7f7d1cp-20f, log_f));
    return log_x + (x - x);
}

#endif
