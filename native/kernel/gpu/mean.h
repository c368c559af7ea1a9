// mean: of each block of cells, subtracted from its keys. store/mean.cpp is the definition. One block for each head, a channel a thread.
#pragma once

#include "kernel/gpu/score.h"

namespace mikv {

constexpr int32_t enough_rows   = 32; // a block's own mean, if so many of its keys are at hand
constexpr int32_t enough_before = 8;  // else the mean of the keys before, if there are so many
constexpr int32_t mean_spans    = largest_dim / mean_threads;

// Tokens [begin, end) whose cells lie in one block of cells, count of them quantized.
struct MeanRun {
    int32_t begin, end, block, count;
};

MIKV_DEVICE_FN MeanRun next_run(MIKV_ARGUMENTS CommitArgs & a, int32_t head, int32_t begin) {
    MeanRun run = {begin, begin, cell_of(a, head, begin) / block_cells, 0};
    while (run.end < a.layer.n_tokens && cell_of(a, head, run.end) / block_cells == run.block) {
        run.count += a.token_place[int64_t(head) * a.layer.n_tokens + run.end] >= gpu_place_base ? 1 : 0;
        run.end++;
    }
    return run;
}

MIKV_DEVICE_FN float sum_of_keys(MIKV_ARGUMENTS CommitArgs & a, int32_t head, MeanRun run, int32_t i) {
    float sum = 0.0f;
    for (int32_t t = run.begin; t < run.end; t++) {
        if (a.token_place[int64_t(head) * a.layer.n_tokens + t] >= gpu_place_base) {
            sum += a.staged_k[staged_row(a.layer, head, t) * a.layer.dim_k + i];
        }
    }
    return sum;
}

// Do the run's rows replace everything that the block holds?
MIKV_DEVICE_FN bool replaces_block(MIKV_ARGUMENTS CommitArgs & a, int32_t head, MeanRun run, uint32_t tid,
                                   MIKV_SHARED MeanShared * s) {
    const int32_t cell  = run.block * block_cells + int32_t(tid); // as many threads as cells
    const int64_t first = int64_t(head / a.layer.n_head_kv) * a.layer.n_cells;
    const int32_t holds = cell < a.layer.n_cells && (a.flags[first + cell] & cell_holds) ? 1 : 0;
    return run.end - run.begin >= block_sum(holds, tid, mean_threads, &s->exchange);
}

MIKV_DEVICE_FN void mean_of_run(MIKV_ARGUMENTS CommitArgs & a, int32_t head, MeanRun run, uint32_t tid,
                                MIKV_SHARED MeanShared * s) {
    const MIKV_GLOBAL GpuHead * h   = a.layer.heads + head;
    const int32_t               dim = h->view.k.dim, n_before = h->tally->mean_count;
    MIKV_GLOBAL uint16_t *      mean = h->view.k_mean + int64_t(run.block) * dim;
    const bool                  has = h->has_mean[run.block] != 0, neighbour = run.block > 0 && h->has_mean[run.block - 1] != 0;
    const bool                  fresh = replaces_block(a, head, run, tid, s) && run.count >= enough_rows;
    const bool                  renew = !has || fresh;
    for (int32_t i = int32_t(tid); i < dim; i += mean_threads) {
        const float own = sum_of_keys(a, head, run, i);
        if (renew) {
            const bool before = run.count < enough_rows && n_before >= enough_before;
            if (run.count < enough_rows && !before && neighbour) {
                mean[i] = h->view.k_mean[int64_t(run.block - 1) * dim + i];
            } else {
                mean[i] = half_nearest(before ? h->mean_sum[i] / float(n_before) : own / float(run.count));
            }
            h->mean_sum[i] = 0.0f;
        }
        h->mean_sum[i] += own;
    }
    block_sync();
    if (tid == 0) {
        h->has_mean[run.block] = 1;
        h->tally->mean_count   = (renew ? 0 : n_before) + run.count;
    }
    block_sync();
}

MIKV_DEVICE_FN void mean_block(MIKV_ARGUMENTS CommitArgs & a, WorkPlace at, MIKV_SHARED MeanShared * s) {
    const int32_t head = int32_t(at.x);
    MeanRun       run  = {0, 0, 0, 0};
    while (run.end < a.layer.n_tokens) {
        run = next_run(a, head, run.end);
        if (run.count > 0) {
            mean_of_run(a, head, run, at.tid, s);
        }
    }
}

} // namespace mikv
