// store: one row into the tier chosen for it. Plain definition; bit-exact on every backend.
#pragma once

#include "codec/bitsplit.h"
#include "format/head.h"
#include "format/lead.h"

namespace mikv {

MIKV_FN void encode_row(const RowFormat & f, const float * x, uint16_t * params, int64_t params_stride, uint8_t * base,
                        uint8_t * refinement) {
    if (f.n_lead) {
        const RowFormat lead = lead_format(f);
        encode_row(lead, x, params, params_stride, base, refinement);
        encode_row(rest_format(f), x + lead.dim, params + f.n_lead * params_stride, params_stride, base + lead.base_bytes(),
                   refinement ? refinement + lead.refinement_bytes() : nullptr);
        return;
    }
    const int extra_bytes = f.group * f.extra_bits() / 8;
    for (int g = 0; g < f.n_groups(); g++) {
        params[g * params_stride] = encode_group(x + g * f.group, f, base + g * (f.group * f.bits / 8),
                                                 refinement ? refinement + g * extra_bytes : nullptr);
    }
}

MIKV_FN void store_exact(uint16_t * row, const float * x, int dim) {
    for (int i = 0; i < dim; i++) {
        row[i] = half_nearest(clamp_to_half(x[i]));
    }
}

// x minus the block's mean: what a key's codes describe. centred: k.dim floats.
MIKV_FN void center_key(const HeadView & h, int cell, const float * x, float * centred) {
    const uint16_t * mean = h.k_mean + int64_t(cell / block_cells) * h.k.dim;
    for (int i = 0; i < h.k.dim; i++) {
        centred[i] = x[i] - half_to_float(mean[i]);
    }
}

} // namespace mikv
