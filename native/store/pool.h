// A pool of rows smaller than the context: which tokens have one. The others are dropped, and nothing of them remains.
#pragma once

#include "store/commit.h"

namespace mikv {

// The micro-batch's tokens that got a row of the head's pool, in order, with what commit_rows needs of them.
struct Admitted {
    std::vector<int>   cells, rows;
    std::vector<float> k, v; // [n][dim]
    std::vector<float> drawn;
};

// Frees rows whose cells were overwritten, lets the policy choose among rows and tokens when not all fit, and gives those that won their rows;
// c.place and all scores are then current.
Admitted admit_tokens(Cache & cache, Head & head, const Commit & c);

// The row of each cell in [first, first + n), or -1 where the cell has none. Of a head without a pool: the cells themselves.
std::vector<int> rows_of_cells(const HeadView & head, int first, int n);

} // namespace mikv
