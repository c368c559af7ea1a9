// The definition of every operation, as a kernel set.
#include <algorithm>
#include <vector>

#include "backend/cpu/kernels.h"
#include "kernel/attend.h"
#include "kernel/store.h"

namespace mikv {

float * thread_buffer(size_t n_floats) {
    static thread_local std::vector<float> memory;
    if (memory.size() < n_floats + 16) {
        memory.assign(n_floats + 16, 0.0f); // defined contents: masked values are multiplied by zero, not skipped
    }
    return reinterpret_cast<float *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

namespace {

void score(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows, int first,
           int last, float * logits, int64_t logit_stride) {
    plain_score(head, index, staged, rows, first, last, logits, logit_stride, thread_buffer(head.k.dim));
}

void attend_few(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows, int first,
                int last, float * weights, int64_t weight_stride, const Partial & out) {
    plain_attend(head, index, staged, rows, first, last, weights, weight_stride, out,
                 thread_buffer(std::max(head.k.dim, head.v.dim)));
}

void attend_many(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows, int first,
                 int last, const Partial & out) {
    const int64_t n_cells = last - first;
    float *       weights = thread_buffer(rows.n_rows * n_cells + std::max(head.k.dim, head.v.dim));
    plain_attend(head, index, staged, rows, first, last, weights - first, n_cells, out, weights + rows.n_rows * n_cells);
}

void add_scaled(const float * weights, float factor, int n, float * sums) {
    for (int i = 0; i < n; i++) {
        sums[i] += factor * weights[i];
    }
}

bool always() { return true; }

} // namespace

const Kernels plain_kernels = {"plain",    always,      encode_row,  decode_row, score,
                               attend_few, attend_many, plain_weigh, add_scaled};

} // namespace mikv
