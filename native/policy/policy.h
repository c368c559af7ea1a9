// Policies: which rows deserve refinement when not all can have it. One file each; the interface is mikv_policy_query.
#pragma once

#include <vector>

#include "include/mikv.h"

namespace mikv {

// How a micro-batch's attention enters the score that a refined row keeps.
enum class Fold {
    sum,    // all of it since the row was stored
    window, // the same, fading by half every window_half_life queries
    peak,   // the most that the queries of one micro-batch gave it on average
    most,   // the most that any one query gave it since (reads_most)
    fixed,  // none: what Policy::first said when the row was stored, or what reads_queries says now
};
constexpr float window_half_life = 64.0f;

float folded(Fold fold, float score, float mass, int n_queries);

// Which queries of a prompt's micro-batch are probed: the last `recent`, and `spread` of those before, at even distances or drawn by a fixed
// hash. Few queries, as in decoding, are all measured.
struct Probes {
    int  recent  = 8;
    int  spread  = 16;
    bool percent = false; // of the micro-batch's queries, rounded up; else a number of them
    bool drawn   = false;
};

// The tokens of n whose queries are probed, in order. now: tokens stored so far, so that each batch draws anew.
std::vector<int> probe_tokens(const Probes & probes, int n, uint32_t now);

// What a policy wants beyond the attention mass; none of it is worked out for the others.
enum Reads : unsigned {
    reads_norm    = 1, // mikv_policy_query.value_norm, estimated
    reads_most    = 2, // the most attention that one query gave a row, for Fold::most
    reads_squares = 8, // the sum of squares of the attention that queries gave a row, in place of its sum
    reads_queries = 4, // mean and variance of the queries so far; no attention of a prompt is then measured
};

struct Policy {
    const char *   name;
    mikv_policy_fn rank; // writes priority[query->n]
    void *         user;
    Fold           fold;
    bool           weighs; // priorities are weights, 0 or above: "*v" behind the name multiplies them with the value's norm
    unsigned       reads;
    float (*first)(const float * key, const float * mean,
                   int dim); // a row's score at the start, or null: the attention it drew
    Probes probes;
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
// The most that one query gave, but never less than the mean of that over the rows (DefensiveKV, arXiv 2510.13334, section 4). Alone, the rows
// below the mean are equal and the younger goes first; times the value's norm, the norm tells them apart.
void rank_clamped(void * user, const mikv_policy_query * query, float * priority);
// The attention that queries like those so far will give on average (Expected Attention, arXiv 2510.00636, equation 3): exp of expected_logit.
void rank_expected(void * user, const mikv_policy_query * query, float * priority);
// ln E[exp(q . key)] of a Gaussian q with these sums over n queries (scaled as for the logits): mu . key + key' diag(variance) key / 2.
float expected_logit(const float * key, const float * sum, const float * sum_of_squares, double n, int dim);
// What the row adds to the distortion of attention's output for each bit that it lacks, as a root mean square over the queries that could see it:
// sqrt(sum a^2 / queries), times the norm of the value (RDKV, arXiv 2605.08317: weights from attention distortion). mass: the sum of squares.
void rank_rdkv(void * user, const mikv_policy_query * query, float * priority);
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
