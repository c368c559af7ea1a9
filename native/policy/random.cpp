#include "policy/policy.h"

namespace mikv {

void rank_random(void *, const mikv_policy_query * query, float * priority) {
    for (int i = 0; i < query->n; i++) {
        uint32_t h = query->cell[i] * 2654435761u + uint32_t(query->layer) * 40503u + uint32_t(query->head) * 9973u +
                     query->born[i] * 2246822519u;
        h ^= h >> 15;
        h *= 2246822519u;
        h ^= h >> 13;
        priority[i] = float(h >> 8); // 24 bits: exact in f32
    }
}

} // namespace mikv
