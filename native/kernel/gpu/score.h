// score: what attention fell on each row that holds or wants a slot, into its score.
#pragma once

#include "kernel/gpu/rows.h"
#include "kernel/logit.h"

namespace mikv {

MIKV_DEVICE_FN float folded_score(int32_t fold, float score, float mass, int32_t n_queries) {
    if (fold == fold_sum) {
        return score + mass;
    }
    if (fold == fold_window) {
        return score * exp2_of(-float(n_queries) / gpu_window_half_life) + mass;
    }
    if (fold == fold_fixed) {
        return score;
    }
    const float now = fold == fold_peak ? mass / float(n_queries) : mass;
    return now > score ? now : score;
}

struct Mass {
    float all;  // times mass_scale
    float most; // of one query
};

// Over the rows of attention that were measured. at: as in AttendArgs::kept.
MIKV_DEVICE_FN Mass mass_at(MIKV_ARGUMENTS CommitArgs & a, int32_t head, int32_t at) {
    Mass mass = {0.0f, 0.0f};
    for (int32_t r = 0; r < a.n_rows; r++) {
        const int64_t row   = int64_t(head) * a.n_rows + r;
        const float   logit = a.kept[row * a.n_kept + at], l = a.final_l[row];
        const float   weight = logit <= masked_logit || !(l > 0.0f) ? 0.0f : exp_of(logit - a.final_m[row]) / l;
        mass.all += weight;
        mass.most = weight > mass.most ? weight : mass.most;
    }
    mass.all *= a.mass_scale;
    return mass;
}

MIKV_DEVICE_FN int32_t cell_of(MIKV_ARGUMENTS CommitArgs & a, int32_t head, int32_t token) {
    const int32_t stream = head / a.layer.n_head_kv;
    return int32_t(a.cells[int64_t(stream) * a.layer.n_tokens + token] - int64_t(a.first_stream + stream) * a.layer.n_cells);
}

// Does attention know the row of a cell, and is it not being overwritten?
MIKV_DEVICE_FN bool stays(MIKV_ARGUMENTS CommitArgs & a, int32_t head, uint32_t cell) {
    return cell < uint32_t(a.layer.n_kv) && staged_in(a.layer, head, int32_t(cell)) < 0;
}

// A thread a slot, an exact row or a token: number 256 x + thread of the KV head y.
MIKV_DEVICE_FN void score_block(MIKV_ARGUMENTS CommitArgs & a, WorkPlace at, MIKV_SHARED ScoreShared * s) {
    const int32_t               head = int32_t(at.y), i = int32_t(at.x) * score_threads + int32_t(at.tid);
    const MIKV_GLOBAL GpuHead * h       = a.layer.heads + head;
    const int32_t               n_slots = h->view.n_slots, n_rows = n_slots + h->view.n_exact, token = i - n_rows;
    float                       refined = 0.0f, exact = 0.0f;
    if (i < n_slots) {
        if (a.kept && stays(a, head, h->view.slot_cell[i])) {
            const Mass mass = mass_at(a, head, i);
            h->view.slot_mass[i] =
                folded_score(a.fold, h->view.slot_mass[i], a.fold == fold_most ? mass.most : mass.all, a.layer.n_tokens);
            refined = mass.all;
        }
    } else if (token < 0) {
        if (a.kept && stays(a, head, h->view.exact_cell[i - n_slots])) {
            exact = mass_at(a, head, i).all;
        }
    } else if (token < a.layer.n_tokens) {
        Mass mass = {0.0f, 0.0f};
        if (a.kept && cell_of(a, head, token) < a.layer.n_kv) {
            mass = mass_at(a, head, i);
        }
        MIKV_GLOBAL float * of_token = a.token_mass + (int64_t(head) * a.layer.n_tokens + token) * 2;
        of_token[0]                  = mass.all;
        of_token[1]                  = folded_score(a.fold, 0.0f, a.fold == fold_most ? mass.most : mass.all, a.layer.n_tokens);
    }
    refined = block_sum(refined, at.tid, score_threads, &s->exchange);
    exact   = block_sum(exact, at.tid, score_threads, &s->exchange);
    if (at.tid == 0) {
        a.part_mass[(int64_t(head) * a.n_score_blocks + at.x) * 2]     = refined;
        a.part_mass[(int64_t(head) * a.n_score_blocks + at.x) * 2 + 1] = exact;
    }
}

} // namespace mikv
