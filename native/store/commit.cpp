#include "store/commit.h"

#include <algorithm>
#include <numeric>

#include "backend/cpu/kernels.h"
#include "kernel/store.h"
#include "store/mean.h"
#include "store/pool.h"
#include "store/rank.h"

namespace mikv {

namespace {

// The batch's rows may have been somebody else's: their slots are free now.
void release_overwritten(Head & head, const Commit & c) {
    for (int i = 0; i < c.n; i++) {
        int32_t & place = c.place[c.rows[i]];
        free_place(head, place);
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
    const HeadView & h     = head.view;
    double           total = sum_of(c.mass, c.n_mass), refined = 0, exact = 0;
    for (int i = 0; i < c.n && !h.pooled; i++) { // the batch's own rows were attended exactly and are not yet of any precision
        total -= c.rows[i] < c.n_mass ? c.mass[c.rows[i]] : 0.0f;
    }
    total *= c.mass_scale;
    for (int slot = 0; slot < head.state.end_slot; slot++) {
        if (h.slot_cell[slot] < uint32_t(c.n_mass)) {
            const float mass  = c.mass[h.slot_cell[slot]] * c.mass_scale;
            h.slot_mass[slot] = folded(fold, h.slot_mass[slot], c.most ? c.most[h.slot_cell[slot]] : mass, c.n_queries);
            refined += mass;
        }
    }
    for (int e = 0; e < h.n_exact; e++) {
        if (h.exact_cell[e] < uint32_t(c.n_mass)) {
            exact += c.mass[h.exact_cell[e]] * c.mass_scale;
        }
    }
    refined = h.whole() ? std::max(0.0, total - exact) : refined;
    head.state.mass[0] += exact;
    head.state.mass[1] += refined;
    head.state.mass[2] += std::max(0.0, total - exact - refined);
}

// Sinks get exact rows, as far as those reach; how many others there are.
int place_sinks(Head & head, const CellTable & table, const Commit & c) {
    int n_others = 0;
    for (int i = 0; i < c.n; i++) {
        const int e = table.is_sink(c.cells[i]) ? take_exact(head, uint32_t(c.rows[i])) : -1;
        if (e >= 0) {
            c.place[c.rows[i]] = -2 - e;
        }
        n_others += e < 0;
    }
    return n_others;
}

// More rows want slots than there are: the policy's choice.
void choose_slots(Cache & cache, Head & head, const Commit & c, const std::vector<float> & scores) {
    const HeadView &       h = head.view;
    std::vector<RankedRow> rows;
    for (int slot = 0; slot < head.state.end_slot; slot++) {
        const uint32_t row = h.slot_cell[slot];
        if (row != free_slot) {
            h.slot_mass[slot] = score_now(cache, head, int(row), h.place_of_slot(slot), h.slot_mass[slot]);
            rows.push_back({h.cell_of(row), int(row), -1, h.slot_mass[slot], slot});
        }
    }
    for (int i = 0; i < c.n; i++) {
        if (c.place[c.rows[i]] == place_base) {
            rows.push_back({uint32_t(c.cells[i]), -1, i, scores[i], -1});
        }
    }
    const TierChoice choice = choose_tiers(ranked(cache, head, c, rows), head.state.n_free, h.n_slots / 128);
    for (int i : choice.demoted) {
        if (rows[i].row < c.n_place) {
            c.place[rows[i].row] = place_base;
        }
        free_slot_of(head, rows[i].slot);
        head.state.demotions++;
    }
    for (int i : choice.refined) {
        const int row = c.rows[rows[i].token];
        c.place[row]  = h.place_of_slot(take_slot(head, uint32_t(row)));
    }
}

// Gives the batch's rows their places: exact for sinks, slots for those chosen; demotes whom the choice demotes.
void choose_places(Cache & cache, Head & head, const CellTable & table, const Commit & c) {
    const HeadView &         h        = head.view;
    const int                n_wishes = place_sinks(head, table, c);
    const std::vector<float> scores   = first_scores(head, c, *cache.policy().policy);
    if (n_wishes > head.state.n_free && h.n_slots > 0) {
        choose_slots(cache, head, c, scores);
    } else {
        for (int i = 0; i < c.n && h.n_slots > 0; i++) {
            int32_t & place = c.place[c.rows[i]];
            place           = place == place_base ? h.place_of_slot(take_slot(head, uint32_t(c.rows[i]))) : place;
        }
    }
    for (int i = 0; i < c.n && h.n_maps() > 0; i++) {
        const int slot = h.slot_of(c.place[c.rows[i]]);
        if (slot >= 0) {
            h.slot_mass[slot] = scores[i];
        }
    }
}

// Every token of c has a row now.
void commit_placed(Cache & cache, Head & head, const Commit & c) {
    const CellTable & table = cache.cells(c.stream);
    release_overwritten(head, c);
    add_mass(head, c, cache.policy().policy->fold);
    choose_places(cache, head, table, c);
    if (cache.config().center_keys && head.view.has_base()) {
        update_means(head, table, c.place, c.rows, c.n, c.k, c.k_stride, false);
    }
    std::vector<float> centred(size_t(head.view.k.dim));
    for (int i = 0; i < c.n; i++) {
        const int32_t place = c.place[c.rows[i]];
        store_key(head.view, c.rows[i], place, c.k + i * c.k_stride, centred.data());
        store_value(head.view, c.rows[i], place, c.v + i * c.v_stride);
    }
}

} // namespace

void store_key(const HeadView & h, int row, int32_t place, const float * key, float * centred) {
    if (place < place_base) {
        store_exact(h.k_exact + int64_t(-2 - place) * h.k.dim, key, h.k.dim);
    }
    if (!h.has_base() || h.exact_of(place) >= 0) {
        return;
    }
    center_key(h, row, key, centred);
    kernels().encode_row(h.k, centred, h.k_params + row, h.n_cells, h.k_base + int64_t(row) * h.k.base_bytes(),
                         place >= 0 ? h.k_refined + int64_t(place) * h.k.refinement_bytes() : nullptr);
}

void store_value(const HeadView & h, int row, int32_t place, const float * value) {
    if (place < place_base) {
        store_exact(h.v_exact + int64_t(-2 - place) * h.v.dim, value, h.v.dim);
    }
    if (!h.has_base() || h.exact_of(place) >= 0) {
        return;
    }
    kernels().encode_row(h.v, value, h.v_params + row, h.n_cells, h.v_base + int64_t(row) * h.v.base_bytes(),
                         place >= 0 ? h.v_refined + int64_t(place) * h.v.refinement_bytes() : nullptr);
}

void commit_rows(Cache & cache, const Commit & c) {
    Head head          = cache.head(c.index, c.stream, c.head);
    head.state.settled = true; // rows of its space are there from now on
    Commit placed      = c;
    placed.n_queries   = c.n;
    placed.rows        = c.cells;
    if (!head.view.pooled) {
        commit_placed(cache, head, placed);
        return;
    }
    const Admitted admitted = admit_tokens(cache, head, placed);
    placed.cells            = admitted.cells.data();
    placed.rows             = admitted.rows.data();
    placed.n                = int(admitted.rows.size());
    placed.k                = admitted.k.data();
    placed.v                = admitted.v.data();
    placed.k_stride         = head.view.k.dim;
    placed.v_stride         = head.view.v.dim;
    placed.n_mass           = std::min(c.n_mass, head.view.n_cells);
    placed.drawn            = admitted.drawn.data();
    commit_placed(cache, head, placed);
}

} // namespace mikv
