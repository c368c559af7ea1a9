// The bit-split codec: one 8-bit code per value, its top bits in the base, the next in the refinement (FORMAT.md).
// Mid-bin reading: an error of at most range / 2^(n+1) with n bits, a third less at 2 bits than rounding to end points
// (MiKV's equation 1, arXiv 2402.18096).
#pragma once

#include "codec/params.h"
#include "codec/planes.h"
#include "format/row.h"

namespace mikv {

MIKV_FN uint16_t group_params(const float * x, int group, int end_point_bits) {
    float lo = clamp_to_half(x[0]), hi = lo;
    for (int i = 1; i < group; i++) {
        const float value = clamp_to_half(x[i]);
        lo                = value < lo ? value : lo;
        hi                = value > hi ? value : hi;
    }
    return params_of(lo, hi, end_point_bits);
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
