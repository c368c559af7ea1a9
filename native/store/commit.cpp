#include "store/commit.h"

#include <algorithm>

#include "backend/cpu/kernels.h"
#include "kernel/store.h"
#include "store/mean.h"
#include "store/tiers.h"

namespace mikv {

namespace {

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

// Adds the micro-batch's attention mass to the refined rows' scores, and to the totals by precision.
void add_mass(Head & head, const Commit & c) {
    if (!c.mass) {
        return;
    }
    double total = 0, refined = 0, exact = 0;
    for (int cell = 0; cell < c.n_mass; cell++) {
        total += c.mass[cell];
    }
    for (int i = 0; i < c.n; i++) { // the batch's own rows were attended exactly and are not yet of any precision
        total -= c.cells[i] < c.n_mass ? c.mass[c.cells[i]] : 0.0f;
    }
    const HeadView & h = head.view;
    for (int slot = 0; slot < h.n_slots; slot++) {
        if (h.slot_cell[slot] < uint32_t(c.n_mass)) {
            const float mass = c.mass[h.slot_cell[slot]] * c.mass_scale;
            h.slot_mass[slot] += mass;
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

Candidate candidate(const CellTable & table, uint32_t cell, float mass, int slot) {
    const bool forgotten = table.is_forgotten(int(cell)); // a window that nobody looks through guards nothing
    return {cell, table.born(int(cell)), mass, slot, table.is_guarded(int(cell)) && !forgotten, forgotten, 0.0f};
}

void rank(Cache & cache, const Commit & c, const CellTable & table, std::vector<Candidate> & rows) {
    const int             n = int(rows.size());
    std::vector<uint32_t> cell(n), born(n);
    std::vector<float>    mass(n), priority(n);
    for (int i = 0; i < n; i++) {
        cell[i] = rows[i].cell;
        born[i] = rows[i].born;
        mass[i] = rows[i].mass;
    }
    const mikv_policy_query query = {
        cache.layer_number(c.index), c.head, n, table.now(), cell.data(), born.data(), mass.data()};
    cache.policy().rank(cache.policy().user, &query, priority.data());
    for (int i = 0; i < n; i++) {
        rows[i].priority = priority[i] == priority[i] ? priority[i] : 0.0f;
    }
}

float mass_of(const Commit & c, int cell) { return c.mass && cell < c.n_mass ? c.mass[cell] * c.mass_scale : 0.0f; }

// Gives the batch's rows their places: exact for sinks, slots for those chosen; demotes whom the choice demotes.
void choose_places(Cache & cache, Head & head, const CellTable & table, const Commit & c) {
    int n_wishes = 0;
    for (int i = 0; i < c.n; i++) {
        if (table.is_sink(c.cells[i])) {
            const int e = take_exact(head, uint32_t(c.cells[i]));
            if (e >= 0) {
                c.place[c.cells[i]] = -2 - e;
                continue;
            }
        }
        n_wishes++;
    }
    if (n_wishes > head.state.n_free && head.view.n_slots > 0) {
        std::vector<Candidate> rows;
        for (int slot = 0; slot < head.view.n_slots; slot++) {
            const uint32_t cell = head.view.slot_cell[slot];
            if (cell != free_slot) {
                rows.push_back(candidate(table, cell, head.view.slot_mass[slot], slot));
            }
        }
        for (int i = 0; i < c.n; i++) {
            if (c.place[c.cells[i]] == place_base) {
                rows.push_back(candidate(table, uint32_t(c.cells[i]), mass_of(c, c.cells[i]), -1));
            }
        }
        rank(cache, c, table, rows);
        const TierChoice choice = choose_tiers(rows, head.state.n_free, head.view.n_slots / 128);
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
    } else {
        for (int i = 0; i < c.n && head.view.n_slots > 0; i++) {
            if (c.place[c.cells[i]] == place_base) {
                c.place[c.cells[i]] = take_slot(head, uint32_t(c.cells[i]));
            }
        }
    }
    for (int i = 0; i < c.n; i++) {
        if (c.place[c.cells[i]] >= 0) {
            head.view.slot_mass[c.place[c.cells[i]]] = mass_of(c, c.cells[i]);
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
    release_overwritten(head, c);
    add_mass(head, c);
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
