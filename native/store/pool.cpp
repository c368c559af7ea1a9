#include "store/pool.h"

#include "store/rank.h"

namespace mikv {

namespace {

void drop(Head & head, const Commit & c, int row) {
    if (row < c.n_place) {
        free_place(head, c.place[row]);
        c.place[row] = place_base;
    }
    free_row(head, row);
}

// Rows of the cells that the micro-batch overwrites.
void drop_overwritten(Head & head, const Commit & c, const CellTable & table) {
    for (int row = 0; row < head.view.n_cells; row++) {
        const uint32_t cell = head.view.row_cell[row];
        if (cell != free_slot && table.staged()[cell] >= 0) {
            drop(head, c, row);
        }
    }
}

void fold_mass(const HeadView & h, const Commit & c, Fold fold) {
    for (int row = 0; c.mass && row < h.n_cells; row++) {
        if (h.row_cell[row] != free_slot) {
            h.row_mass[row] = folded(fold, h.row_mass[row], c.most ? c.most[row] : c.mass[row] * c.mass_scale, c.n_queries);
        }
    }
}

// More tokens than free rows: whom the policy keeps. Returns the tokens that stay; drops rows that do not.
std::vector<int> choose_tokens(Cache & cache, Head & head, const Commit & c, const std::vector<float> & scores) {
    const HeadView &       h = head.view;
    std::vector<RankedRow> rows;
    for (int row = 0; row < h.n_cells; row++) {
        if (h.row_cell[row] != free_slot) {
            h.row_mass[row] = score_now(cache, head, row, c.place[row], h.row_mass[row]);
            rows.push_back({h.row_cell[row], row, -1, h.row_mass[row], row});
        }
    }
    for (int i = 0; i < c.n; i++) {
        rows.push_back({uint32_t(c.cells[i]), -1, i, scores[i], -1});
    }
    const std::vector<Candidate> candidates = ranked(cache, head, c, rows);
    const TierChoice             choice     = choose_tiers(candidates, head.state.n_free_rows, h.n_cells / 128);
    for (int i : choice.demoted) {
        drop(head, c, rows[i].row);
        head.state.demotions++;
    }
    std::vector<int> tokens;
    for (int i : choice.refined) {
        tokens.push_back(rows[i].token);
    }
    head.state.demotions += c.n - int64_t(tokens.size());
    return tokens;
}

} // namespace

Admitted admit_tokens(Cache & cache, Head & head, const Commit & c) {
    const Policy & policy = *cache.policy().policy;
    drop_overwritten(head, c, cache.cells(c.stream));
    fold_mass(head.view, c, policy.fold);
    const std::vector<float> scores = first_scores(head, c, policy);
    std::vector<int>         tokens;
    if (c.n > head.state.n_free_rows) {
        tokens = choose_tokens(cache, head, c, scores);
    } else {
        for (int i = 0; i < c.n; i++) {
            tokens.push_back(i);
        }
    }
    Admitted admitted;
    for (int i : tokens) {
        const int row           = take_row(head, uint32_t(c.cells[i]));
        head.view.row_mass[row] = scores[i];
        c.place[row]            = place_base;
        admitted.cells.push_back(c.cells[i]);
        admitted.rows.push_back(row);
        admitted.k.insert(admitted.k.end(), c.k + i * c.k_stride, c.k + i * c.k_stride + head.view.k.dim);
        admitted.v.insert(admitted.v.end(), c.v + i * c.v_stride, c.v + i * c.v_stride + head.view.v.dim);
        admitted.drawn.push_back(c.drawn ? c.drawn[i] : 0.0f);
    }
    return admitted;
}

std::vector<int> rows_of_cells(const HeadView & head, int first, int n) {
    std::vector<int> rows(size_t(n), -1);
    for (int i = 0; i < n && !head.pooled; i++) {
        rows[i] = first + i;
    }
    for (int row = 0; row < head.n_cells && head.pooled; row++) {
        if (head.row_cell[row] - uint32_t(first) < uint32_t(n)) {
            rows[head.row_cell[row] - uint32_t(first)] = row;
        }
    }
    return rows;
}

} // namespace mikv
