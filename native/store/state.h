// A cache's contents as bytes, for state files: packed rows as they are, and all that is known of them (FORMAT.md, "A saved cache").
#pragma once

#include "store/cache.h"

namespace mikv {

constexpr uint32_t state_version = 1;

// Cells, numbered over all streams (stream * n_cells + cell), ascending.
using CellList = std::vector<int64_t>;

// The contents of these cells.
mikv_status write_state(Cache & cache, const CellList & cells, std::vector<uint8_t> * out);

// The cells that a state goes to unless told otherwise: the first ones of each stream.
mikv_status state_cells(const Cache & cache, const uint8_t * data, size_t size_bytes, CellList * cells);

// A twin of the cache that holds the state in these cells, as many in each stream as the state has; nothing happens to the cache. Rows of the
// same codec are copied, and lose their refinement where there is no slot for them; others are decoded and stored again.
// MIKV_ERROR_STATE: damaged, of another model, or of tokens that do not fit; the sentence says which.
mikv_status read_state(const Cache & cache, const uint8_t * data, size_t size_bytes, const CellList & cells,
                       std::shared_ptr<Cache> * out);

} // namespace mikv
