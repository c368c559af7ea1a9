// Key centring: the mean key of each block of cells ("smooth K" of SageAttention, arXiv 2410.02367).
// Many models' keys carry a large constant per channel; softmax does not see it, a per-token quantizer spends its bits on it.
#pragma once

#include "store/cache.h"

namespace mikv {

// Gives every block that rows touch its mean, if it has none yet, and adds the rows to the running sum for later blocks.
// Sinks (exact rows, place as in CellIndex) do not count: they are not centred, and sinks' keys are unlike the others.
// rows[n]: row i's key at keys + i * stride.
// renew: blocks whose tokens are all among `rows` get a new mean even if they have one.
void update_means(Head & head, const CellTable & table, const int32_t * place, const int * rows, int n, const float * keys,
                  int64_t stride, bool renew);

} // namespace mikv
