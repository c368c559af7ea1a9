// What is noted of a cell, in one byte each (FORMAT.md, "Per stream").
#pragma once

#include <stdint.h>

namespace mikv {

constexpr uint8_t cell_holds   = 1; // a token
constexpr uint8_t cell_sink    = 2; // one of the first of its sequence
constexpr uint8_t cell_recent  = 4; // in the recency window
constexpr uint8_t cell_loading = 8; // came from a state file, and no micro-batch since

constexpr uint16_t hidden = 0xFC00u; // a mask's f16 for a cell that a query does not see: minus infinity

constexpr uint32_t forgotten_after =
    64; // micro-batches without a query that saw the cell: removed, or of a sequence that sleeps

} // namespace mikv
