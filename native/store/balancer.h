// When a head gets its channel balancer: at the first micro-batch that it meets, if that has tokens enough to tell what channels reach.
#pragma once

#include "store/step.h"

namespace mikv {

constexpr int enough_tokens = 32;

// For one head of a step (stream * n_head_kv + head) whose rows and queries are at hand; several threads may ask for the same head. A head that
// held rows before, and one whose first micro-batch is smaller, stays as it is until the cache is cleared.
void settle_balancer(Cache & cache, const StepShape & shape, const StepData & data, int head_item);

} // namespace mikv
