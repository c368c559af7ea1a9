#include <cmath>

#include "policy/policy.h"

namespace mikv {

void rank_rdkv(void *, const mikv_policy_query * query, float * priority) {
    for (int i = 0; i < query->n; i++) {
        priority[i] = std::sqrt(query->mass[i] / float(query->now - query->born[i] + 1));
    }
}

} // namespace mikv
