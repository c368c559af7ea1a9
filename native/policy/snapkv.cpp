#include <algorithm>
#include <numeric>
#include <vector>

#include "policy/policy.h"

namespace mikv {

namespace {

constexpr uint32_t reach = 3; // cells to each side: the paper's pooling kernel of 7

} // namespace

void rank_snapkv(void *, const mikv_policy_query * query, float * priority) {
    std::vector<int> order(size_t(query->n));
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return query->cell[a] < query->cell[b]; });
    for (int i = 0; i < query->n; i++) {
        const uint32_t here = query->cell[order[i]];
        float          most = query->mass[order[i]];
        for (int j = i - 1; j >= 0 && here - query->cell[order[j]] <= reach; j--) {
            most = std::max(most, query->mass[order[j]]);
        }
        for (int j = i + 1; j < query->n && query->cell[order[j]] - here <= reach; j++) {
            most = std::max(most, query->mass[order[j]]);
        }
        priority[order[i]] = most;
    }
}

} // namespace mikv
