#include "policy/policy.h"

namespace mikv {

void rank_recent(void *, const mikv_policy_query * query, float * priority) {
    for (int i = 0; i < query->n; i++) {
        priority[i] = -float(query->now - query->born[i]); // the age is exact in f32 up to 2^24 tokens
    }
}

} // namespace mikv
