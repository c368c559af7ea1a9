// load: one committed row back to floats. Plain definition.
#pragma once

#include "codec/bitsplit.h"
#include "format/lead.h"
#include "kernel/batch.h"

namespace mikv {

// refinement: this row's refinement bytes or null. params: those of group 0 of the cell, groups `params_stride` apart.
MIKV_FN void decode_row(const RowFormat & f, const uint16_t * params, int64_t params_stride, const uint8_t * base,
                        const uint8_t * refinement, float * out) {
    if (f.n_lead) {
        const RowFormat lead = lead_format(f);
        decode_row(lead, params, params_stride, base, refinement, out);
        decode_row(rest_format(f), params + f.n_lead * params_stride, params_stride, base + lead.base_bytes(),
                   refinement ? refinement + lead.refinement_bytes() : nullptr, out + lead.dim);
        return;
    }
    const int extra_bytes = f.group * f.extra_bits() / 8;
    for (int g = 0; g < f.n_groups(); g++) {
        decode_group(params[g * params_stride], f.group, f.bits, f.refined_bits, base + g * (f.group * f.bits / 8),
                     refinement ? refinement + g * extra_bytes : nullptr, out + g * f.group);
    }
}

// Key of a cell, mean added; place as in CellIndex.
MIKV_FN void load_key(const HeadView & h, int cell, int32_t place, float * out) {
    if (place < place_base) {
        const uint16_t * row = h.k_exact + int64_t(-2 - place) * h.k.dim;
        for (int i = 0; i < h.k.dim; i++) {
            out[i] = half_to_float(row[i]);
        }
        return;
    }
    decode_row(h.k, h.k_params + cell, h.n_cells, h.k_base + int64_t(cell) * h.k.base_bytes(),
               place >= 0 ? h.k_refined + int64_t(place) * h.k.refinement_bytes() : nullptr, out);
    const uint16_t * mean = h.k_mean + int64_t(cell / block_cells) * h.k.dim;
    for (int i = 0; i < h.k.dim; i++) {
        out[i] += half_to_float(mean[i]);
    }
}

MIKV_FN void load_value(const HeadView & h, int cell, int32_t place, float * out) {
    if (place < place_base) {
        const uint16_t * row = h.v_exact + int64_t(-2 - place) * h.v.dim;
        for (int i = 0; i < h.v.dim; i++) {
            out[i] = half_to_float(row[i]);
        }
        return;
    }
    decode_row(h.v, h.v_params + cell, h.n_cells, h.v_base + int64_t(cell) * h.v.base_bytes(),
               place >= 0 ? h.v_refined + int64_t(place) * h.v.refinement_bytes() : nullptr, out);
}

} // namespace mikv
