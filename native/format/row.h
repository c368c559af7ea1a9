// What one row is: sizes of its parts. FORMAT.md says what the bytes mean.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "dialect/dialect.h"

namespace mikv {

constexpr int      block_cells = 128;         // cells that share one mean key
constexpr int      exact_bits  = 16;          // refined_bits of rows that are refined to f16
constexpr uint32_t free_slot   = 0xFFFFFFFFu; // slot_cell of a slot that no row owns

struct RowFormat {
    int dim;            // values in the row
    int group;          // values that share a scale and a minimum: 32 or 64
    int bits;           // base bits per value
    int refined_bits;   // base and refinement bits per value
    int end_points = 0; // 1: the middles of a group's first and last base bins are its extremes (FORMAT.md, "End points")

    int n_lead    = 0; // leading groups of the row, whose base has
    int lead_bits = 0; // so many bits instead (FORMAT.md, "Leading groups")

    MIKV_METHOD int end_point_bits() const { return end_points ? bits : 0; }
    MIKV_METHOD int n_groups() const { return dim / group; }
    MIKV_METHOD int extra_bits() const { return refined_bits - bits; }
    MIKV_METHOD int lead_dim() const { return n_lead * group; }
    MIKV_METHOD int lead_refined_bits() const { return refined_bits > lead_bits ? refined_bits : lead_bits; }
    MIKV_METHOD int base_bytes() const { return (lead_dim() * lead_bits + (dim - lead_dim()) * bits) / 8; }
    MIKV_METHOD int refinement_bytes() const {
        return (lead_dim() * (lead_refined_bits() - lead_bits) + (dim - lead_dim()) * extra_bits()) / 8;
    }
    // Base bits of a value on average, rounded up.
    MIKV_METHOD int mean_bits() const { return (base_bytes() * 8 + dim - 1) / dim; }
};

} // namespace mikv
