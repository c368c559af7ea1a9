// Where the arrays of one KV head lie, for those who read and write them (FORMAT.md, "A KV head").
#pragma once

#include "dialect/dialect.h"
#include "format/row.h"

namespace mikv {

// Sizes of a KV head's arrays.
struct HeadShape {
    RowFormat k;
    RowFormat v;
    int       n_cells; // rows of the base: the cache's cells or, of a pool, as many as it keeps
    int       n_slots;
    int       n_exact;
    int       exact_slots = 0; // 1: refined rows are f16 (refined_bits 16), behind the sinks' in k_exact and v_exact
    int       pooled      = 0; // 1: row_cell says whose each row is; else a row's number is its cell

    // Every row of the pool is refined: its slot is its row, and nothing says so.
    bool whole() const { return pooled && n_slots == n_cells; }
    // f16 rows that are never demoted need no codes.
    bool has_base() const { return !(whole() && exact_slots); }
    int  n_blocks() const { return has_base() ? (n_cells + block_cells - 1) / block_cells : 0; }
    int  n_maps() const { return whole() ? 0 : n_slots; }
    int  n_halves() const { return n_exact + (exact_slots ? n_slots : 0); }
};

// Pointers into memory of the CPU or of a GPU. Kernels see the cache through this and nothing else.
struct HeadView : HeadShape {
    MIKV_GLOBAL uint16_t * k_params; // [n_groups][n_cells]
    MIKV_GLOBAL uint8_t *  k_base;   // [n_cells][k.base_bytes()]
    MIKV_GLOBAL uint16_t * v_params;
    MIKV_GLOBAL uint8_t *  v_base;
    MIKV_GLOBAL uint16_t * k_mean;    // [n_blocks][k.dim], f16; zero: not centred
    MIKV_GLOBAL uint8_t *  k_refined; // [n_slots][k.refinement_bytes()]
    MIKV_GLOBAL uint8_t *  v_refined;
    MIKV_GLOBAL uint32_t * slot_cell;  // [n_maps] the row that owns the slot
    MIKV_GLOBAL float *    slot_mass;  // [n_maps]
    MIKV_GLOBAL uint16_t * k_exact;    // [n_halves][k.dim], f16
    MIKV_GLOBAL uint16_t * v_exact;    // [n_halves][v.dim], f16
    MIKV_GLOBAL uint32_t * exact_cell; // [n_exact] the row that owns it
    MIKV_GLOBAL uint32_t * row_cell;   // [n_cells] of a pool: the cell that owns the row
    MIKV_GLOBAL float *    row_mass;   // [n_cells] of a pool

    // Places of rows (CellIndex::place) and what they mean: a slot, an exact row of a sink, or neither (-1).
    int32_t place_of_slot(int slot) const { return exact_slots ? -2 - (n_exact + slot) : slot; }
    int     slot_of(int32_t place) const { return place >= 0 ? place : place < -1 - n_exact ? -2 - place - n_exact : -1; }
    int     exact_of(int32_t place) const { return place < -1 && place >= -1 - n_exact ? -2 - place : -1; }
    // The cell whose row it is; free_slot: nobody's.
    uint32_t cell_of(uint32_t row) const { return pooled ? row_cell[row] : row; }
};

} // namespace mikv
