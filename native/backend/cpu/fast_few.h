// attend for few rows (decode): logits of all cells, their weights, and then the weighted values.
#pragma once

#include "backend/cpu/fast_score.h"
#include "backend/cpu/fast_values.h"

namespace mikv {

constexpr int weighed_cells = 4 * tile_cells;

template <class Isa> struct FewRows {
    Scorer<Isa>   scorer;
    ValueSum<Isa> values;

    void lay_out(Scratch & scratch) {
        scorer.lay_out(scratch);
        values.lay_out(scratch);
    }
};

template <class Isa>
static void attend_few(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows,
                       int first, int last, float * weights, int64_t weight_stride, const Partial & out) {
    FewRows<Isa> few{{head, index, staged, rows}, {head, index, staged, rows.n_rows, weights, weight_stride, out.acc}};
    reserve(few);
    few.scorer.begin();
    few.scorer.score(first, last, weights, weight_stride, out.m);
    memset(out.l, 0, size_t(rows.n_rows) * sizeof(float));
    memset(out.acc, 0, size_t(rows.n_rows) * head.v.dim * sizeof(float));
    for (int at = first, end; at < last; at = end) { // what is weighed is still in the nearest cache when its values are added
        end = at + weighed_cells - at % weighed_cells < last ? at + weighed_cells - at % weighed_cells : last;
        for (int row = 0; row < rows.n_rows; row++) {
            out.l[row] += weigh_sum<Isa>(weights + row * weight_stride + at, out.m[row], end - at);
        }
        few.values.add(at, end);
    }
}

} // namespace mikv
