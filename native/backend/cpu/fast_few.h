// attend for few rows (decode): logits of all cells, their weights, and then the weighted values.
#pragma once

#include "backend/cpu/fast_score.h"
#include "backend/cpu/fast_values.h"

namespace mikv {

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
    for (int row = 0; row < rows.n_rows; row++) {
        out.l[row] = weigh_sum<Isa>(weights + row * weight_stride + first, out.m[row], last - first);
    }
    memset(out.acc, 0, size_t(rows.n_rows) * head.v.dim * sizeof(float));
    few.values.add(first, last);
}

} // namespace mikv
