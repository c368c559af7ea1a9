// Policies: which rows deserve refinement when not all can have it. One file each; the interface is mikv_policy_query.
#pragma once

#include "include/mikv.h"

namespace mikv {

// How a micro-batch's attention enters the score that a refined row keeps.
enum class Fold {
    sum,    // all of it since the row was stored
    window, // the same, fading by half every window_half_life queries
    peak,   // the most that the queries of one micro-batch gave it on average
    fixed,  // none: what Policy::first said when the row was stored
};
constexpr float window_half_life = 64.0f;

float folded(Fold fold, float score, float mass, int n_queries);

struct Policy {
    const char *   name;
    mikv_policy_fn rank; // writes priority[query->n]
    void *         user;
    Fold           fold;
    bool           weighs;     // priorities are weights, 0 or above: "*v" behind the name multiplies them with the value's norm
    bool           reads_norm; // wants mikv_policy_query.value_norm, which is then estimated
    float (*first)(const float * key, const float * mean,
                   int dim); // a row's score at the start, or null: the attention it drew
};

// By the score as it is. Folded as a sum, accumulated attention: heavy hitters (H2O, arXiv 2306.14048; MiKV's importance, arXiv 2402.18096).
// As a peak, rows that mattered once and may again (DefensiveKV's worst case, arXiv 2510.13334).
void rank_h2o(void * user, const mikv_policy_query * query, float * priority);
// The same divided by the queries that could see the row, so that early rows have no advantage (ZipCache, arXiv 2405.14256).
void rank_normalized(void * user, const mikv_policy_query * query, float * priority);
// Attention of the latest queries, pooled over neighbouring cells (SnapKV, arXiv 2404.14469, with a window that fades).
void rank_snapkv(void * user, const mikv_policy_query * query, float * priority);
// The score of keys unlike the mean key, whatever the queries (KeyDiff, arXiv 2504.15364): for prompts that are reused.
float first_keydiff(const float * key, const float * mean, int dim);
// Youngest first: a plain recency window (StreamingLLM, arXiv 2309.17453, once sinks are exact).
void rank_recent(void * user, const mikv_policy_query * query, float * priority);
// The control: a fixed hash of the row.
void rank_random(void * user, const mikv_policy_query * query, float * priority);

int            policy_count();
const Policy * policy_at(int index); // null past the end

struct PolicyChoice {
    const Policy * policy   = nullptr; // null: unknown
    bool           by_value = false;   // priority times the norm of the value
};
PolicyChoice policy_named(const char * name);

// Adds or replaces a registered policy; false: the name is taken by a built-in one, empty, too long or ends in "*v".
bool policy_register(const char * name, mikv_policy_fn rank, void * user);

} // namespace mikv
