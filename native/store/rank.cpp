#include "store/rank.h"

#include <cmath>

#include "codec/bitsplit.h"
#include "kernel/load.h"

namespace mikv {

namespace {

constexpr int mean_rows = 8; // keys of a micro-batch whose mean says something

// What the ranges of a row's groups say of its norm: what a Gaussian group of 64 with that range and middle has.
float estimated_norm(const RowFormat & row, const uint16_t * params, int64_t stride) {
    constexpr float range_in_deviations = 4.7f; // of 64 values, on average
    float           square              = 0.0f;
    for (int g = 0; g < row.n_groups(); g++) {
        const uint16_t p         = params[g * stride];
        const float    deviation = params_range(p) / range_in_deviations;
        const float    middle    = params_min(p) + 0.5f * params_range(p);
        square += float(row.group) * (deviation * deviation + middle * middle);
    }
    return std::sqrt(square);
}

float norm_of_floats(const RowFormat & row, const float * value) {
    std::vector<uint16_t> params(size_t(row.n_groups()));
    for (int g = 0; g < row.n_groups(); g++) {
        params[g] = group_params(value + g * row.group, row.group, row.end_point_bits());
    }
    return estimated_norm(row, params.data(), 1);
}

float norm_of_row(const HeadView & h, int row) {
    if (h.has_base()) {
        return estimated_norm(h.v, h.v_params + row, h.n_cells);
    }
    std::vector<float> value(size_t(h.v.dim));
    load_value(h, row, h.place_of_slot(row), value.data());
    return norm_of_floats(h.v, value.data());
}

float query_logit(const Head & head, const float * key) {
    const int dim = head.view.k.dim;
    return expected_logit(key, head.query_sums, head.query_sums + dim, double(head.state.n_queries), dim);
}

Candidate candidate(const CellTable & table, const RankedRow & row, float norm) {
    const int  cell      = int(row.cell);
    const bool forgotten = table.is_forgotten(cell); // a window that nobody looks through guards nothing
    return {row.cell, table.born(cell), row.score, norm, row.slot, table.is_guarded(cell) && !forgotten, forgotten, 0.0f};
}

void ask_policy(Cache & cache, const Commit & c, std::vector<Candidate> & rows) {
    const int             n = int(rows.size());
    std::vector<uint32_t> cell(n), born(n);
    std::vector<float>    mass(n), norm(n), priority(n);
    for (int i = 0; i < n; i++) {
        cell[i] = rows[i].cell;
        born[i] = rows[i].born;
        mass[i] = rows[i].mass;
        norm[i] = rows[i].value_norm;
    }
    const mikv_policy_query query  = {cache.layer_number(c.index),
                                      c.head,
                                      n,
                                      cache.cells(c.stream).now(),
                                      cell.data(),
                                      born.data(),
                                      mass.data(),
                                      norm.data()};
    const PolicyChoice &    choice = cache.policy();
    choice.policy->rank(choice.policy->user, &query, priority.data());
    for (int i = 0; i < n; i++) {
        const float p    = choice.by_value ? priority[i] * norm[i] : priority[i];
        rows[i].priority = p == p ? p : 0.0f;
    }
}

} // namespace

bool reads_norm_of_values(const Cache & cache) {
    return cache.policy().by_value || (cache.policy().policy->reads & reads_norm);
}

std::vector<Candidate> ranked(Cache & cache, const Head & head, const Commit & c, const std::vector<RankedRow> & rows) {
    const bool             norms = reads_norm_of_values(cache);
    const CellTable &      table = cache.cells(c.stream);
    std::vector<Candidate> candidates;
    candidates.reserve(rows.size());
    for (const RankedRow & row : rows) {
        float norm = 0.0f;
        if (norms) {
            norm = row.row >= 0 ? norm_of_row(head.view, row.row) : norm_of_floats(head.view.v, c.v + row.token * c.v_stride);
        }
        candidates.push_back(candidate(table, row, norm));
    }
    ask_policy(cache, c, candidates);
    return candidates;
}

float score_now(const Cache & cache, const Head & head, int row, int32_t place, float held) {
    if (!(cache.policy().policy->reads & reads_queries)) {
        return held;
    }
    std::vector<float> key(size_t(head.view.k.dim)); // what is known of the queries has changed
    load_key(head.view, row, place, key.data());
    return query_logit(head, key.data());
}

std::vector<float> first_scores(const Head & head, const Commit & c, const Policy & policy) {
    std::vector<float> scores(size_t(c.n)), mean(size_t(head.view.k.dim));
    for (int i = 0; i < c.n && policy.first; i++) {
        for (int d = 0; d < head.view.k.dim; d++) {
            mean[d] += c.k[i * c.k_stride + d] / float(c.n);
        }
    }
    for (int i = 0; i < c.n; i++) {
        const int block = head.view.pooled ? 0 : c.cells[i] / block_cells - 1;
        if (policy.reads & reads_queries) {
            scores[i] = query_logit(head, c.k + i * c.k_stride);
        } else if (policy.first) { // a few keys say little of their mean: the block before knows better
            const bool few = c.n < mean_rows && block >= 0 && block < head.view.n_blocks() && head.has_mean[block];
            for (int d = 0; d < head.view.k.dim && few; d++) {
                mean[d] = half_to_float(head.view.k_mean[int64_t(block) * head.view.k.dim + d]);
            }
            scores[i] = policy.first(c.k + i * c.k_stride, mean.data(), head.view.k.dim);
        } else {
            scores[i] = folded(policy.fold, 0.0f, c.drawn ? c.drawn[i] : 0.0f, c.n_queries);
        }
    }
    return scores;
}

} // namespace mikv
