// Rows whose leading groups have other base bits than the rest (FORMAT.md, "Leading groups").
#pragma once

#include "format/row.h"

namespace mikv {

// A row with leading groups is two rows, one behind the other in all arrays.
MIKV_FN RowFormat lead_format(const RowFormat & f) {
    return {f.lead_dim(), f.group, f.lead_bits, f.lead_refined_bits(), f.end_points};
}
MIKV_FN RowFormat rest_format(const RowFormat & f) {
    return {f.dim - f.lead_dim(), f.group, f.bits, f.refined_bits, f.end_points};
}

} // namespace mikv
