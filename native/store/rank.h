// The policy's question: who of a KV head's rows, held and new, deserves what there is too little of.
#pragma once

#include "store/commit.h"
#include "store/tiers.h"

namespace mikv {

// Whether the policy of this cache wants norms of values, estimated.
bool reads_norm_of_values(const Cache & cache);

// A row that is there, or a token of the micro-batch that wants to be.
struct RankedRow {
    uint32_t cell;
    int      row;   // -1: a token
    int      token; // -1: a row
    float    score; // as the policy's fold keeps it
    int      slot;  // what the row holds already, or -1
};

// Candidates in the order of `rows`, with the policy's priority.
std::vector<Candidate> ranked(Cache & cache, const Head & head, const Commit & c, const std::vector<RankedRow> & rows);

// The score of a row that is there, held since or asked for anew of the queries so far (reads_queries). place: as in CellIndex.
float score_now(const Cache & cache, const Head & head, int row, int32_t place, float held);

// What each token of the micro-batch scores before it has a row: [c.n].
std::vector<float> first_scores(const Head & head, const Commit & c, const Policy & policy);

} // namespace mikv
