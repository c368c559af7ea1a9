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

// u32 of a group: range (f16) below, minimum (f16) above. lo and hi: its extremes, clamped.
MIKV_FN uint32_t pack_params(float lo, float hi) {
    const uint16_t min   = lo == 0.0f ? uint16_t(0) : half_below(lo); // one zero, whichever came first
    const float    range = hi - half_to_float(min);
    const uint16_t wide  = half_above(range > half_max ? half_max : range);
    return uint32_t(half_to_float(wide) < half_min_normal ? uint16_t(0) : wide) | (uint32_t(min) << 16);
}

MIKV_FN uint32_t group_params(const float * x, int group) {
    float lo = clamp_to_half(x[0]), hi = lo;
    for (int i = 1; i < group; i++) {
        const float value = clamp_to_half(x[i]);
        lo                = value < lo ? value : lo;
        hi                = value > hi ? value : hi;
    }
    return pack_params(lo, hi);
}

MIKV_FN float params_range(uint32_t params) { return half_to_float(uint16_t(params & 0xFFFFu)); }
MIKV_FN float params_min(uint32_t params) { return half_to_float(uint16_t(params >> 16)); }

MIKV_FN uint32_t value_code(float x, float min, float per_range) {
    const float scaled = (clamp_to_half(x) - min) * per_range;
    return scaled >= 255.0f ? 255u : scaled > 0.0f ? uint32_t(scaled) : 0u;
}

// Encodes one group; base and refinement are this group's bytes, refinement may be null.
MIKV_FN uint32_t encode_group(const float * x, int group, int bits, int refined_bits, MIKV_GLOBAL uint8_t * base,
                              MIKV_GLOBAL uint8_t * refinement) {
    const uint32_t params    = group_params(x, group);
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
MIKV_FN void decode_group(uint32_t params, int group, int bits, int refined_bits, const MIKV_GLOBAL uint8_t * base,
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
