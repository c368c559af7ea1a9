#include "policy/policy.h"

namespace mikv {

void rank_peak(void *, const mikv_policy_query * query, float * priority) {
    for (int i = 0; i < query->n; i++) {
        priority[i] = query->mass[i]; // folded by its peak
    }
}

} // namespace mikv
