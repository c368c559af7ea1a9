#include "store/tiers.h"

#include <algorithm>

namespace mikv {

namespace {

// Does a keep its place rather than b?
bool before(const Candidate & a, const Candidate & b) {
    if (a.guarded != b.guarded) {
        return a.guarded;
    }
    if (a.guarded && a.born != b.born) {
        return a.born > b.born; // more guarded rows than slots: the youngest
    }
    if (a.forgotten != b.forgotten) {
        return b.forgotten;
    }
    if (a.priority != b.priority) {
        return a.priority > b.priority;
    }
    return a.born > b.born;
}

} // namespace

TierChoice choose_tiers(const std::vector<Candidate> & candidates, int n_free, int spare) {
    TierChoice       choice;
    std::vector<int> order;
    int              n_held = 0;
    for (int i = 0; i < int(candidates.size()); i++) {
        order.push_back(i);
        n_held += candidates[i].slot >= 0;
    }
    const int n_wishes = int(candidates.size()) - n_held;
    int       n_keep   = int(candidates.size());
    if (n_wishes > n_free) {
        n_keep = std::max(0, n_held + n_free - spare);
        std::nth_element(order.begin(), order.begin() + std::min<size_t>(n_keep, order.size()), order.end(),
                         [&](int a, int b) { return before(candidates[a], candidates[b]); });
    }
    for (int i = 0; i < int(order.size()); i++) {
        const Candidate & row = candidates[order[i]];
        if (i < n_keep && row.slot < 0) {
            choice.refined.push_back(order[i]);
        } else if (i >= n_keep && row.slot >= 0) {
            choice.demoted.push_back(order[i]);
        }
    }
    std::sort(choice.refined.begin(), choice.refined.end());
    return choice;
}

} // namespace mikv
