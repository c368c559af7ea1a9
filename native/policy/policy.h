// Policies: which rows deserve refinement when not all can have it. One file each; the interface is mikv_policy_query.
#pragma once

#include "include/mikv.h"

namespace mikv {

struct Policy {
    const char *   name;
    mikv_policy_fn rank; // writes priority[query->n]
    void *         user;
};

// Accumulated attention: heavy hitters (H2O, arXiv 2306.14048; MiKV's importance, arXiv 2402.18096).
void rank_h2o(void * user, const mikv_policy_query * query, float * priority);
// Youngest first: a plain recency window (StreamingLLM, arXiv 2309.17453, once sinks are exact).
void rank_recent(void * user, const mikv_policy_query * query, float * priority);
// The control: a fixed hash of the row.
void rank_random(void * user, const mikv_policy_query * query, float * priority);

int            policy_count();
const Policy * policy_at(int index);            // null past the end
const Policy * policy_named(const char * name); // null: unknown
// Adds or replaces a registered policy; false: the name is taken by a built-in one, empty or too long.
bool policy_register(const char * name, mikv_policy_fn rank, void * user);

} // namespace mikv
