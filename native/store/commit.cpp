#include "store/commit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/cpu/kernels.h"
#include "codec/bitsplit.h"
#include "kernel/load.h"
#include "kernel/store.h"
#include "store/mean.h"
#include "store/tiers.h"

namespace mikv {

namespace {

constexpr int mean_rows = 8; // keys of a micro-batch whose mean says something

// The batch's cells may have been somebody else's: their slots are free now.
void release_overwritten(Head & head, const Commit & c) {
    for (int i = 0; i < c.n; i++) {
        int32_t & place = c.place[c.cells[i]];
        if (place >= 0) {
            free_slot_of(head, place);
        } else if (place < place_base) {
            free_exact_of(head, -2 - place);
        }
        place = place_base;
    }
}

// In blocks of floats that the compiler makes vectors of: the sum of a long context's cells one by one in doubles takes longer than its scores.
double sum_of(const float * x, int n) {
    constexpr int lanes = 16, block = 1024;
    double        total = 0;
    for (int first = 0; first < n; first += block) {
        const int last       = std::min(n, first + block);
        float     sum[lanes] = {0};
        int       i          = first;
        for (; i + lanes <= last; i += lanes) {
            for (int lane = 0; lane < lanes; lane++) {
                sum[lane] += x[i + lane];
            }
        }
        for (; i < last; i++) {
            sum[0] += x[i];
        }
        total += std::accumulate(sum, sum + lanes, 0.0);
    }
    return total;
}

// Adds the micro-batch's attention mass to the refined rows' scores, and to the totals by precision.
void add_mass(Head & head, const Commit & c, Fold fold) {
    if (!c.mass) {
        return;
    }
    double total = sum_of(c.mass, c.n_mass), refined = 0, exact = 0;
    for (int i = 0; i < c.n; i++) { // the batch's own rows were attended exactly and are not yet of any precision
        total -= c.cells[i] < c.n_mass ? c.mass[c.cells[i]] : 0.0f;
    }
    const HeadView & h = head.view;
    for (int slot = 0; slot < h.n_slots; slot++) {
        if (h.slot_cell[slot] < uint32_t(c.n_mass)) {
            const float mass  = c.mass[h.slot_cell[slot]] * c.mass_scale;
            h.slot_mass[slot] = folded(fold, h.slot_mass[slot], c.most ? c.most[h.slot_cell[slot]] : mass, c.n);
            refined += mass;
        }
    }
    for (int e = 0; e < h.n_exact; e++) {
        if (h.exact_cell[e] < uint32_t(c.n_mass)) {
            exact += c.mass[h.exact_cell[e]] * c.mass_scale;
        }
    }
    total *= c.mass_scale;
    head.state.mass[0] += exact;
    head.state.mass[1] += refined;
    head.state.mass[2] += std::max(0.0, total - exact - refined);
}

Candidate candidate(const CellTable & table, uint32_t cell, float mass, float value_norm, int slot) {
    const bool forgotten = table.is_forgotten(int(cell)); // a window that nobody looks through guards nothing
    return {cell, table.born(int(cell)), mass, value_norm, slot, table.is_guarded(int(cell)) && !forgotten, forgotten, 0.0f};
}

// Norm of a row from its groups' extremes: what a Gaussian group of 64 with that range and middle has.
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

float norm_of_new(const RowFormat & row, const float * value) {
    std::vector<uint16_t> params(size_t(row.n_groups()));
    for (int g = 0; g < row.n_groups(); g++) {
        params[g] = group_params(value + g * row.group, row.group, row.end_point_bits());
    }
    return estimated_norm(row, params.data(), 1);
}

void rank(Cache & cache, const Commit & c, const CellTable & table, std::vector<Candidate> & rows) {
    const int             n = int(rows.size());
    std::vector<uint32_t> cell(n), born(n);
    std::vector<float>    mass(n), norm(n), priority(n);
    for (int i = 0; i < n; i++) {
        cell[i] = rows[i].cell;
        born[i] = rows[i].born;
        mass[i] = rows[i].mass;
        norm[i] = rows[i].value_norm;
    }
    const mikv_policy_query query = {
        cache.layer_number(c.index), c.head, n, table.now(), cell.data(), born.data(), mass.data(), norm.data()};
    const PolicyChoice & choice = cache.policy();
    choice.policy->rank(choice.policy->user, &query, priority.data());
    for (int i = 0; i < n; i++) {
        const float p    = choice.by_value ? priority[i] * norm[i] : priority[i];
        rows[i].priority = p == p ? p : 0.0f;
    }
}

float query_logit(const Head & head, const float * key) {
    const int dim = head.view.k.dim;
    return expected_logit(key, head.query_sums, head.query_sums + dim, double(head.state.n_queries), dim);
}

// What each row of the batch scores before it has a slot: [c.n].
std::vector<float> first_scores(const Head & head, const Commit & c, const Policy & policy) {
    std::vector<float> scores(size_t(c.n)), mean(size_t(head.view.k.dim));
    for (int i = 0; i < c.n && policy.first; i++) {
        for (int d = 0; d < head.view.k.dim; d++) {
            mean[d] += c.k[i * c.k_stride + d] / float(c.n);
        }
    }
    for (int i = 0; i < c.n; i++) {
        const int   cell = c.cells[i];
        const float mass = c.mass && cell < c.n_mass ? c.most ? c.most[cell] : c.mass[cell] * c.mass_scale : 0.0f;
        if (policy.reads & reads_queries) {
            scores[i] = query_logit(head, c.k + i * c.k_stride);
        } else if (policy.first) { // a few keys say little of their mean: the block before knows better
            const bool few = c.n < mean_rows && cell >= block_cells && head.has_mean[cell / block_cells - 1];
            for (int d = 0; d < head.view.k.dim && few; d++) {
                mean[d] = half_to_float(head.view.k_mean[int64_t(cell / block_cells - 1) * head.view.k.dim + d]);
            }
            scores[i] = policy.first(c.k + i * c.k_stride, mean.data(), head.view.k.dim);
        } else {
            scores[i] = folded(policy.fold, 0.0f, mass, c.n);
        }
    }
    return scores;
}

// Sinks get exact rows, as far as those reach; how many others there are.
int place_sinks(Head & head, const CellTable & table, const Commit & c) {
    int n_others = 0;
    for (int i = 0; i < c.n; i++) {
        const int e = table.is_sink(c.cells[i]) ? take_exact(head, uint32_t(c.cells[i])) : -1;
        if (e >= 0) {
            c.place[c.cells[i]] = -2 - e;
        }
        n_others += e < 0;
    }
    return n_others;
}

// More rows want slots than there are: the policy's choice.
void choose_slots(Cache & cache, Head & head, const CellTable & table, const Commit & c, const std::vector<float> & scores) {
    const HeadView &       h     = head.view;
    const unsigned         reads = cache.policy().policy->reads | (cache.policy().by_value ? reads_norm : 0u);
    std::vector<Candidate> rows;
    std::vector<float>     key(size_t(h.k.dim));
    for (int slot = 0; slot < h.n_slots; slot++) {
        const uint32_t cell = h.slot_cell[slot];
        if (cell != free_slot) {
            const float norm = reads & reads_norm ? estimated_norm(h.v, h.v_params + cell, h.n_cells) : 0.0f;
            if (reads & reads_queries) { // what is known of the queries has changed: the refined key is read again
                load_key(h, int(cell), slot, key.data());
                h.slot_mass[slot] = query_logit(head, key.data());
            }
            rows.push_back(candidate(table, cell, h.slot_mass[slot], norm, slot));
        }
    }
    for (int i = 0; i < c.n; i++) {
        if (c.place[c.cells[i]] == place_base) {
            const float norm = reads & reads_norm ? norm_of_new(h.v, c.v + i * c.v_stride) : 0.0f;
            rows.push_back(candidate(table, uint32_t(c.cells[i]), scores[i], norm, -1));
        }
    }
    rank(cache, c, table, rows);
    const TierChoice choice = choose_tiers(rows, head.state.n_free, h.n_slots / 128);
    for (int i : choice.demoted) {
        if (rows[i].cell < uint32_t(c.n_place)) {
            c.place[rows[i].cell] = place_base;
        }
        free_slot_of(head, rows[i].slot);
        head.state.demotions++;
    }
    for (int i : choice.refined) {
        c.place[rows[i].cell] = take_slot(head, rows[i].cell);
    }
}

// Gives the batch's rows their places: exact for sinks, slots for those chosen; demotes whom the choice demotes.
void choose_places(Cache & cache, Head & head, const CellTable & table, const Commit & c) {
    const int                n_wishes = place_sinks(head, table, c);
    const std::vector<float> scores   = first_scores(head, c, *cache.policy().policy);
    if (n_wishes > head.state.n_free && head.view.n_slots > 0) {
        choose_slots(cache, head, table, c, scores);
    } else {
        for (int i = 0; i < c.n && head.view.n_slots > 0; i++) {
            if (c.place[c.cells[i]] == place_base) {
                c.place[c.cells[i]] = take_slot(head, uint32_t(c.cells[i]));
            }
        }
    }
    for (int i = 0; i < c.n; i++) {
        if (c.place[c.cells[i]] >= 0) {
            head.view.slot_mass[c.place[c.cells[i]]] = scores[i];
        }
    }
}

} // namespace

void store_key(const HeadView & h, int cell, int32_t place, const float * key, float * centred) {
    if (place < place_base) {
        store_exact(h.k_exact + int64_t(-2 - place) * h.k.dim, key, h.k.dim);
        return;
    }
    center_key(h, cell, key, centred);
    kernels().encode_row(h.k, centred, h.k_params + cell, h.n_cells, h.k_base + int64_t(cell) * h.k.base_bytes(),
                         place >= 0 ? h.k_refined + int64_t(place) * h.k.refinement_bytes() : nullptr);
}

void store_value(const HeadView & h, int cell, int32_t place, const float * value) {
    if (place < place_base) {
        store_exact(h.v_exact + int64_t(-2 - place) * h.v.dim, value, h.v.dim);
        return;
    }
    kernels().encode_row(h.v, value, h.v_params + cell, h.n_cells, h.v_base + int64_t(cell) * h.v.base_bytes(),
                         place >= 0 ? h.v_refined + int64_t(place) * h.v.refinement_bytes() : nullptr);
}

void commit_rows(Cache & cache, const Commit & c) {
    Head              head  = cache.head(c.index, c.stream, c.head);
    const CellTable & table = cache.cells(c.stream);
    head.state.settled      = true; // rows of its space are there from now on
    release_overwritten(head, c);
    add_mass(head, c, cache.policy().policy->fold);
    choose_places(cache, head, table, c);
    if (cache.config().center_keys) {
        update_means(head, table, c.place, c.cells, c.n, c.k, c.k_stride, false);
    }
    std::vector<float> centred(size_t(head.view.k.dim));
    for (int i = 0; i < c.n; i++) {
        const int32_t place = c.place[c.cells[i]];
        store_key(head.view, c.cells[i], place, c.k + i * c.k_stride, centred.data());
        store_value(head.view, c.cells[i], place, c.v + i * c.v_stride);
    }
}

} // namespace mikv
