// Where the arrays of one KV head lie, for those who read and write them (FORMAT.md, "A KV head").
#pragma once

#include "dialect/dialect.h"
#include "format/row.h"

namespace mikv {

// Pointers into memory of the CPU or of a GPU. Kernels see the cache through this and nothing else.
struct HeadView {
    RowFormat k;
    RowFormat v;
    int       n_cells;
    int       n_slots;
    int       n_exact;

    int n_blocks() const { return (n_cells + block_cells - 1) / block_cells; }

    MIKV_GLOBAL uint16_t * k_params; // [n_groups][n_cells]
    MIKV_GLOBAL uint8_t *  k_base;   // [n_cells][k.base_bytes()]
    MIKV_GLOBAL uint16_t * v_params;
    MIKV_GLOBAL uint8_t *  v_base;
    MIKV_GLOBAL uint16_t * k_mean;    // [n_blocks][k.dim], f16; zero: not centred
    MIKV_GLOBAL uint8_t *  k_refined; // [n_slots][k.refinement_bytes()]
    MIKV_GLOBAL uint8_t *  v_refined;
    MIKV_GLOBAL uint32_t * slot_cell;  // [n_slots]
    MIKV_GLOBAL float *    slot_mass;  // [n_slots]
    MIKV_GLOBAL uint16_t * k_exact;    // [n_exact][k.dim], f16
    MIKV_GLOBAL uint16_t * v_exact;    // [n_exact][v.dim], f16
    MIKV_GLOBAL uint32_t * exact_cell; // [n_exact]
};

} // namespace mikv
