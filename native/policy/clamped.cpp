#include <algorithm>

#include "policy/policy.h"

namespace mikv {

void rank_clamped(void *, const mikv_policy_query * query, float * priority) {
    double sum = 0.0;
    for (int i = 0; i < query->n; i++) {
        sum += query->mass[i];
    }
    const float mean = query->n > 0 ? float(sum / query->n) : 0.0f;
    for (int i = 0; i < query->n; i++) {
        priority[i] = std::max(query->mass[i], mean);
    }
}

} // namespace mikv
