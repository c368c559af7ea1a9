// Scale and minimum of a group, and the code of a value: the arithmetic of FORMAT.md, "A group", on single values.
#pragma once

#include "codec/half.h"

namespace mikv {

MIKV_FN float clamp_to_half(float x) {
    if (!(x == x)) {
        return 0.0f;
    }
    return x > half_max ? half_max : x < -half_max ? -half_max : x;
}

// u16 of a group: range in the low 9 bits, a float of 5 exponent and 4 mantissa bits (the top of an f16); above it the place of the minimum,
// in 64ths of the range: minimum = range * (place - 96) / 64. Groups that hold zero always fit, one-sided ones take a wider range.
constexpr uint32_t range_mask    = 0x1FFu;
constexpr uint32_t smallest_code = 0x010u; // 2^-14
constexpr uint32_t largest_code  = 0x1EFu; // 63488
constexpr int      place_shift   = 9;
constexpr int      place_of_zero = 96;

MIKV_FN float params_range(uint16_t params) { return half_to_float(uint16_t((params & range_mask) << 6)); }
MIKV_FN float params_min(uint16_t params) {
    return params_range(params) * (float(int(params >> place_shift) - place_of_zero) * (1.0f / 64.0f));
}

// Where the minimum of a group that begins at lo lies: the last 64th not above it.
MIKV_FN uint32_t place_of(float lo, float range) {
    const float at    = lo * (64.0f / range);
    int         whole = int(at);
    whole -= float(whole) > at ? 1 : 0;
    whole += place_of_zero;
    return whole < 0 ? 0u : whole > 127 ? 127u : uint32_t(whole);
}

// The smallest range, in steps of its float, that reaches from some 64th not above lo to hi. lo and hi: the group's extremes, clamped.
MIKV_FN uint16_t pack_params(float lo, float hi) {
    const float below = lo * (-2.0f / 3.0f), above = hi * (64.0f / 95.0f); // the minimum lies between -96 and 31 of its 64ths
    float       least = hi - lo > below ? hi - lo : below;
    least             = least > above ? least : above;
    uint32_t code     = least > 0.0f ? (half_above(least > half_max ? half_max : least) + 0x3Fu) >> 6 : 0u;
    if (code < smallest_code) {
        return uint16_t(place_of_zero << place_shift);
    }
    for (;; code++) {
        code                  = code > largest_code ? largest_code : code;
        const float    range  = params_range(uint16_t(code));
        const uint16_t params = uint16_t(code | (place_of(lo, range) << place_shift));
        const float    min    = params_min(params);
        if (code == largest_code || (min <= lo && min + range >= hi)) {
            return params;
        }
    }
}

// The same for a group's extremes; end_point_bits not 0: the range is half a bin wider at both ends, of so many bits, so that reading
// mid-bin is rounding to the end points (MiKV's equation 1).
MIKV_FN uint16_t params_of(float lo, float hi, int end_point_bits) {
    const float half_bin = end_point_bits ? (hi - lo) * (0.5f / float((1 << end_point_bits) - 1)) : 0.0f;
    return pack_params(lo - half_bin, hi + half_bin);
}

MIKV_FN uint32_t value_code(float x, float min, float per_range) {
    const float scaled = (clamp_to_half(x) - min) * per_range;
    return scaled >= 255.0f ? 255u : scaled > 0.0f ? uint32_t(scaled) : 0u;
}

} // namespace mikv
