// One KV head of one layer and stream: where its arrays lie in one block of memory (FORMAT.md, "A KV head").
#pragma once

#include "format/view.h"

namespace mikv {

struct HeadLayout : HeadShape {
    size_t base_bytes() const;     // k_params, k_base, v_params, v_base
    size_t refined_bytes() const;  // k_refined, v_refined, k_exact, v_exact
    size_t metadata_bytes() const; // k_mean, slot_cell, slot_mass, exact_cell, row_cell, row_mass
    size_t total_bytes() const { return base_bytes() + refined_bytes() + metadata_bytes(); }
};

// memory: layout.total_bytes() bytes at a multiple of 64; only counted with, not read, so that it may lie on a GPU.
HeadView view_head(const HeadLayout & layout, uint8_t * memory);

} // namespace mikv
