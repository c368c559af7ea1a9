// One KV head of one layer and stream: where its arrays lie in one block of memory (FORMAT.md, "A KV head").
#pragma once

#include "format/row.h"

namespace mikv {

struct HeadLayout {
    RowFormat k;
    RowFormat v;
    int       n_cells;
    int       n_slots;
    int       n_exact;

    int n_blocks() const { return (n_cells + block_cells - 1) / block_cells; }

    size_t base_bytes() const;     // k_params, k_base, v_params, v_base
    size_t refined_bytes() const;  // k_refined, v_refined, k_exact, v_exact
    size_t metadata_bytes() const; // k_mean, slot_cell, slot_mass, exact_cell
    size_t total_bytes() const { return base_bytes() + refined_bytes() + metadata_bytes(); }
};

// Pointers into that memory. Kernels see the cache through this and nothing else.
struct HeadView {
    RowFormat k;
    RowFormat v;
    int       n_cells;
    int       n_slots;
    int       n_exact;

    int n_blocks() const { return (n_cells + block_cells - 1) / block_cells; }

    uint16_t * k_params; // [n_groups][n_cells]
    uint8_t *  k_base;   // [n_cells][k.base_bytes()]
    uint16_t * v_params;
    uint8_t *  v_base;
    uint16_t * k_mean;    // [n_blocks][k.dim], f16; zero: not centred
    uint8_t *  k_refined; // [n_slots][k.refinement_bytes()]
    uint8_t *  v_refined;
    uint32_t * slot_cell;  // [n_slots]
    float *    slot_mass;  // [n_slots]
    uint16_t * k_exact;    // [n_exact][k.dim], f16
    uint16_t * v_exact;    // [n_exact][v.dim], f16
    uint32_t * exact_cell; // [n_exact]
};

// memory: layout.total_bytes() bytes at a multiple of 64.
HeadView view_head(const HeadLayout & layout, uint8_t * memory);

} // namespace mikv
