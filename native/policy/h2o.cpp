#include "policy/policy.h"

namespace mikv {

void rank_h2o(void *, const mikv_policy_query * query, float * priority) {
    for (int i = 0; i < query->n; i++) {
        priority[i] = query->mass[i];
    }
}

} // namespace mikv
