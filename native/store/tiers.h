// Which rows of one KV head have refinement after a commit: a pure decision over plain numbers.
#pragma once

#include <cstdint>
#include <vector>

namespace mikv {

// A row that has or wants a slot.
struct Candidate {
    uint32_t cell;
    uint32_t born;
    float    mass; // as the policy's fold keeps it
    float    value_norm;
    int32_t  slot;      // the slot it holds, or -1: a row of this commit
    bool     guarded;   // sink or recent: keeps what it has, gets what it wants
    bool     forgotten; // not seen by a query for a while: loses first
    float    priority;  // the policy's, larger is better
};

struct TierChoice {
    std::vector<int> demoted; // indices of candidates that lose their slot
    std::vector<int> refined; // indices of candidates that get one
};

// n_free: slots nobody holds. spare: how many slots to free beyond the need, so that the next commits find some (amortises the search).
// Nothing is demoted while all wishes fit.
TierChoice choose_tiers(const std::vector<Candidate> & candidates, int n_free, int spare);

} // namespace mikv
