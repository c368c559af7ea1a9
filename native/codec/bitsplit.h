// The bit-split codec: one 8-bit code per value, its top bits in the base, the next in the refinement (FORMAT.md).
// Mid-bin reading: an error of at most range / 2^(n+1) with n bits, a third less at 2 bits than rounding to end points
// (MiKV's equation 1, arXiv 2402.18096).
#pragma once

#include "codec/half.h"
#include "codec/planes.h"
#include "format/row.h"

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

MIKV_FN uint16_t group_params(const float * x, int group, int end_point_bits) {
    float lo = clamp_to_half(x[0]), hi = lo;
    for (int i = 1; i < group; i++) {
        const float value = clamp_to_half(x[i]);
        lo                = value < lo ? value : lo;
        hi                = value > hi ? value : hi;
    }
    return params_of(lo, hi, end_point_bits);
}

MIKV_FN uint32_t value_code(float x, float min, float per_range) {
    const float scaled = (clamp_to_half(x) - min) * per_range;
    return scaled >= 255.0f ? 255u : scaled > 0.0f ? uint32_t(scaled) : 0u;
}

// Encodes one group; base and refinement are this group's bytes, refinement may be null.
MIKV_FN uint16_t encode_group(const float * x, const RowFormat & f, MIKV_GLOBAL uint8_t * base,
                              MIKV_GLOBAL uint8_t * refinement) {
    const int      group = f.group, bits = f.bits, refined_bits = f.refined_bits;
    const uint16_t params    = group_params(x, group, f.end_point_bits());
    const float    range     = params_range(params);
    const float    min       = params_min(params);
    const float    per_range = range > 0.0f ? 256.0f / range : 0.0f;
    const int      extra     = refined_bits - bits;
    for (int i = 0; i < group * bits / 8; i++) {
        base[i] = 0;
    }
    for (int i = 0; refinement && i < group * extra / 8; i++) {
        refinement[i] = 0;
    }
    for (int i = 0; i < group; i++) {
        const uint32_t code = value_code(x[i], min, per_range);
        planes_put(base, group, bits, i, code >> (8 - bits));
        if (refinement) {
            planes_put(refinement, group, extra, i, (code >> (8 - refined_bits)) & ((1u << extra) - 1));
        }
    }
    return params;
}

// Reads one group back at the middle of its bins; refinement null: from the base alone.
MIKV_FN void decode_group(uint16_t params, int group, int bits, int refined_bits, const MIKV_GLOBAL uint8_t * base,
                          const MIKV_GLOBAL uint8_t * refinement, float * x) {
    const int   extra = refinement ? refined_bits - bits : 0;
    const float step  = params_range(params) / float(1 << (bits + extra));
    const float min   = params_min(params);
    for (int i = 0; i < group; i++) {
        uint32_t code = planes_get(base, group, bits, i);
        if (extra) {
            code = (code << extra) | planes_get(refinement, group, extra, i);
        }
        x[i] = min + (float(code) + 0.5f) * step;
    }
}

} // namespace mikv
