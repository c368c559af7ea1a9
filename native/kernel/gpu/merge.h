// merge: the chunks' partial sums of a row to its output, in the model's space.
#pragma once

#include "kernel/gpu/rows.h"
#include "kernel/logit.h"

namespace mikv {

// A row's softmax over all chunks. An attention sink is one more logit without a value.
struct RowSum {
    float m, l;    // with the sink
    float largest; // without
    float share;   // of all weights, what fell on cells
};

MIKV_DEVICE_FN RowSum sum_of_chunks(MIKV_ARGUMENTS MergeArgs & a, int64_t first_part, int64_t n_rows, int32_t query_head) {
    RowSum sum = {masked_logit, 0.0f, masked_logit, 0.0f};
    for (int32_t c = 0; c < a.n_chunks; c++) {
        const int64_t part = first_part + c * n_rows;
        sum.m              = a.part_l[part] > 0.0f && a.part_m[part] > sum.m ? a.part_m[part] : sum.m;
    }
    for (int32_t c = 0; c < a.n_chunks; c++) {
        const int64_t part = first_part + c * n_rows;
        sum.l += a.part_l[part] > 0.0f ? a.part_l[part] * exp_of(a.part_m[part] - sum.m) : 0.0f;
    }
    sum.largest = sum.m;
    sum.share   = sum.l > 0.0f ? 1.0f : 0.0f;
    if (a.sinks) {
        const float sink = a.sinks[query_head], top = sink > sum.m ? sink : sum.m;
        const float cells = sum.l > 0.0f ? sum.l * exp_of(sum.m - top) : 0.0f;
        sum.l             = cells + exp_of(sink - top);
        sum.m             = top;
        sum.share         = sum.l > 0.0f ? cells / sum.l : 0.0f;
    }
    return sum;
}

// A block a row x of KV head y.
MIKV_DEVICE_FN void merge_block(MIKV_ARGUMENTS MergeArgs & a, WorkPlace at, MIKV_SHARED RowShared * s) {
    const int64_t n_rows = int64_t(a.group) * a.n_queries, row = at.x, head = at.y;
    const int32_t query_head = int32_t(head % a.n_head_kv) * a.group + int32_t(row) / a.n_queries;
    const int64_t first_part = head * a.n_chunks * n_rows + row;
    const RowSum  sum        = sum_of_chunks(a, first_part, n_rows, query_head);
    if (at.tid == 0) {
        a.final_m[head * n_rows + row] = sum.m;
        a.final_l[head * n_rows + row] = sum.l;
        a.share[head * n_rows + row]   = sum.share;
    }
    if (!a.part_acc) {
        return;
    }
    for (int32_t i = int32_t(at.tid); i < a.row; i += row_threads) {
        float acc = 0.0f;
        for (int32_t c = 0; c < a.n_chunks; c++) {
            const int64_t part = first_part + c * n_rows;
            if (a.part_l[part] > 0.0f) {
                acc += a.part_acc[part * a.row + i] * exp_of(a.part_m[part] - sum.largest);
            }
        }
        s->row[i] = sum.l > 0.0f ? acc * (exp_of(sum.largest - sum.m) / sum.l) : 0.0f;
    }
    if (a.rotate) {
        rotate_shared(s->row, a.row, at.tid);
    }
    const int64_t stream = head / a.n_head_kv, n_head = int64_t(a.n_head_kv) * a.group;
    const int64_t out = ((stream * a.n_queries + row % a.n_queries) * n_head + query_head) * a.dim;
    for (int32_t i = int32_t(at.tid); i < a.dim; i += row_threads) {
        a.out[out + i] = s->row[i];
    }
}

} // namespace mikv
