// f16 <-> f32 on bits, with directed rounding: a range must not be below its group's.
#pragma once

#include "dialect/dialect.h"

namespace mikv {

constexpr float half_max        = 65504.0f;
constexpr float half_min_normal = 6.103515625e-05f; // 2^-14

MIKV_FN float half_to_float(uint16_t h) {
    const uint32_t sign     = uint32_t(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 0x1Fu;
    const uint32_t mantissa = h & 0x3FFu;
    if (exponent == 0) { // zero and subnormals: mantissa * 2^-24
        const float magnitude = float(mantissa) * 5.9604644775390625e-08f;
        return sign ? -magnitude : magnitude;
    }
    const uint32_t wide = exponent == 31 ? 0x7F800000u | (mantissa << 13) : ((exponent + 112) << 23) | (mantissa << 13);
    return MIKV_BITCAST(float, sign | wide);
}

// Towards zero; beyond the largest f16: the largest. value must not be NaN.
MIKV_FN uint16_t half_truncate(float value) {
    const uint32_t bits      = MIKV_BITCAST(uint32_t, value);
    const uint16_t sign      = uint16_t((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x477FE000u) {
        return uint16_t(sign | 0x7BFFu);
    }
    if (magnitude >= 0x38800000u) {
        return uint16_t(sign | ((magnitude - 0x38000000u) >> 13));
    }
    const float scaled = MIKV_BITCAST(float, magnitude) * 16777216.0f; // 2^24: subnormals count in these steps
    return uint16_t(sign | uint16_t(scaled));
}

// The smallest f16 that is not below value; value within +-half_max.
MIKV_FN uint16_t half_above(float value) {
    const uint16_t h = half_truncate(value);
    if (half_to_float(h) >= value) {
        return h;
    }
    return uint16_t(h + 1); // positive: away from zero (a negative value truncates upwards)
}

// To the nearest, ties to even; beyond the largest f16: the largest; NaN: 0.
MIKV_FN uint16_t half_nearest(float value) {
    if (!(value == value)) {
        return 0;
    }
    const uint16_t down = half_truncate(value);
    if ((down & 0x7FFFu) == 0x7BFFu) {
        return down;
    }
    const uint16_t up = uint16_t(down + 1);
    const float    lo = half_to_float(down), hi = half_to_float(up);
    const float    to_lo = value > lo ? value - lo : lo - value;
    const float    to_hi = value > hi ? value - hi : hi - value;
    if (to_lo < to_hi || (to_lo == to_hi && (down & 1) == 0)) {
        return down;
    }
    return up;
}

// value as f16 holds it, half_to_float(half_nearest(value)), without branches; within +-half_max.
MIKV_FN float half_rounded(float value) {
    const uint32_t bits   = MIKV_BITCAST(uint32_t, value);
    const uint32_t normal = (bits + 0xFFFu + ((bits >> 13) & 1u)) & ~0x1FFFu;       // 13 bits off, ties to even
    const float    shift = MIKV_BITCAST(float, (bits & 0x80000000u) | 0x3F400000u); // +-3/4: subnormals count in its last place
    const float    tiny  = (value + shift) - shift;
    const uint32_t low   = (bits & 0x80000000u) | (MIKV_BITCAST(uint32_t, tiny) & 0x7FFFFFFFu);
    const uint32_t choose = uint32_t(0) - uint32_t((bits & 0x7FFFFFFFu) < 0x38800000u);
    return MIKV_BITCAST(float, (low & choose) | (normal & ~choose));
}

} // namespace mikv
