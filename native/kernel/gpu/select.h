// select: the places of the micro-batch's rows: exact for sinks, slots for those that deserve one; others lose theirs. store/commit.cpp is the
// definition. One block for each head.
#pragma once

#include "kernel/gpu/order.h"

namespace mikv {

// The batch's cells may have been somebody else's: their slots and exact rows are free now.
MIKV_DEVICE_FN void release_overwritten(MIKV_ARGUMENTS CommitArgs & a, Selection x, MIKV_SHARED SelectShared * s) {
    const MIKV_GLOBAL GpuHead * h       = a.layer.heads + x.head;
    int32_t                     n_slots = 0, n_exact = 0, first = x.n_slots;
    for (int32_t i = int32_t(x.tid); i < x.n_slots; i += select_threads) {
        const uint32_t cell = h->view.slot_cell[i];
        if (cell != free_slot && staged_in(a.layer, x.head, int32_t(cell)) >= 0) {
            h->view.slot_cell[i] = free_slot;
            first                = i < first ? i : first;
            n_slots++;
        }
    }
    for (int32_t i = int32_t(x.tid); i < h->view.n_exact; i += select_threads) {
        const uint32_t cell = h->view.exact_cell[i];
        if (cell != free_slot && staged_in(a.layer, x.head, int32_t(cell)) >= 0) {
            h->view.exact_cell[i] = free_slot;
            n_exact++;
        }
    }
    n_slots = block_sum(n_slots, x.tid, select_threads, &s->exchange);
    n_exact = block_sum(n_exact, x.tid, select_threads, &s->exchange);
    first   = block_least(first, x.tid, select_threads, &s->exchange);
    if (x.tid == 0) {
        h->tally->n_free += n_slots;
        h->tally->n_refined -= n_slots;
        h->tally->n_exact -= n_exact;
        h->tally->first_free = first < h->tally->first_free ? first : h->tally->first_free;
    }
    block_sync();
}

MIKV_DEVICE_FN void add_to_tally(MIKV_ARGUMENTS CommitArgs & a, Selection x) {
    if (x.tid != 0 || !a.kept) {
        return;
    }
    MIKV_GLOBAL HeadTally * tally = a.layer.heads[x.head].tally;
    float                   base = 0.0f, refined = 0.0f, exact = 0.0f;
    for (int32_t r = 0; r < a.n_rows; r++) {
        base += a.share[int64_t(x.head) * a.n_rows + r] * a.mass_scale;
    }
    for (int32_t b = 0; b < a.n_score_blocks; b++) {
        refined += a.part_mass[(int64_t(x.head) * a.n_score_blocks + b) * 2];
        exact += a.part_mass[(int64_t(x.head) * a.n_score_blocks + b) * 2 + 1];
    }
    base -= refined + exact;
    for (int32_t t = 0; t < a.layer.n_tokens;
         t++) { // the batch's own rows were attended exactly and are not yet of any precision
        base -= a.token_mass[(int64_t(x.head) * a.layer.n_tokens + t) * 2];
    }
    tally->mass[0] += int64_t(exact * mass_unit);
    tally->mass[1] += int64_t(refined * mass_unit);
    tally->mass[2] += int64_t((base > 0.0f ? base : 0.0f) * mass_unit);
}

// Sinks get exact rows, as far as those reach. Returns how many tokens did not.
MIKV_DEVICE_FN int32_t place_sinks(MIKV_ARGUMENTS CommitArgs & a, Selection x, MIKV_SHARED SelectShared * s) {
    const MIKV_GLOBAL GpuHead * h       = a.layer.heads + x.head;
    MIKV_GLOBAL int32_t *       place   = a.token_place + int64_t(x.head) * x.n_tokens;
    int32_t                     n_sinks = 0, n_placed = 0;
    for (int32_t t = int32_t(x.tid); t < x.n_tokens; t += select_threads) {
        place[t] = gpu_place_base;
        n_sinks += (a.flags[int64_t(x.stream) * a.layer.n_cells + cell_of(a, x.head, t)] & cell_sink) ? 1 : 0;
    }
    n_sinks = block_sum(n_sinks, x.tid, select_threads, &s->exchange);
    if (x.tid == 0 && n_sinks > 0) {
        int32_t e = 0;
        for (int32_t t = 0; t < x.n_tokens; t++) {
            const int32_t cell = cell_of(a, x.head, t);
            if (a.flags[int64_t(x.stream) * a.layer.n_cells + cell] & cell_sink) {
                while (e < h->view.n_exact && h->view.exact_cell[e] != free_slot) {
                    e++;
                }
                if (e < h->view.n_exact) {
                    h->view.exact_cell[e] = uint32_t(cell);
                    place[t]              = -2 - e;
                    n_placed++;
                }
            }
        }
        h->tally->n_exact += n_placed;
    }
    return x.n_tokens - block_sum(n_placed, x.tid, select_threads, &s->exchange);
}

// Slots of those that fall behind become free; keys say who. Returns how many did.
MIKV_DEVICE_FN int32_t demote(MIKV_ARGUMENTS CommitArgs & a, Selection x, int32_t n_keep, LastKey last,
                              MIKV_SHARED SelectShared * s) {
    const MIKV_GLOBAL GpuHead * h = a.layer.heads + x.head;
    int32_t                     n = 0, first = x.n_slots;
    for (int32_t i = int32_t(x.tid); i < x.n_slots; i += select_threads) {
        if (h->view.slot_cell[i] != free_slot && (n_keep == 0 || !not_below(a, x.head, i, last))) {
            h->view.slot_cell[i] = free_slot;
            first                = i < first ? i : first;
            n++;
        }
    }
    n     = block_sum(n, x.tid, select_threads, &s->exchange);
    first = block_least(first, x.tid, select_threads, &s->exchange);
    if (x.tid == 0) {
        h->tally->n_free += n;
        h->tally->n_refined -= n;
        h->tally->demotions += n;
        h->tally->first_free = first < h->tally->first_free ? first : h->tally->first_free;
    }
    block_sync();
    return n;
}

// Lists the tokens that get a slot, in their order. all: everyone that wants one; else those whose key says so.
MIKV_DEVICE_FN int32_t list_waiting(MIKV_ARGUMENTS CommitArgs & a, Selection x, bool all, int32_t n_keep, LastKey last,
                                    MIKV_SHARED SelectShared * s) {
    int32_t n = 0;
    for (int32_t first = 0; first < x.n_tokens; first += select_threads) {
        const int32_t t    = first + int32_t(x.tid);
        const bool    gets = t < x.n_tokens && token_place(a, x.head, t) == gpu_place_base &&
                          (all || (n_keep > 0 && not_below(a, x.head, x.n_slots + t, last)));
        const Rank rank = block_rank(gets, x.tid, select_threads, &s->exchange);
        if (gets) {
            a.waiting[int64_t(x.head) * x.n_tokens + n + rank.before] = t;
        }
        n += rank.all;
    }
    block_sync();
    return n;
}

// Free slots to the waiting tokens, both in their order.
MIKV_DEVICE_FN void take_slots(MIKV_ARGUMENTS CommitArgs & a, Selection x, int32_t n_waiting, MIKV_SHARED SelectShared * s) {
    const MIKV_GLOBAL GpuHead * h     = a.layer.heads + x.head;
    const int32_t               begin = h->tally->first_free;
    int32_t                     n = 0, end = begin;
    block_sync();
    for (int32_t first = begin; first < x.n_slots && n < n_waiting; first += select_threads) {
        const int32_t slot    = first + int32_t(x.tid);
        const bool    is_free = slot < x.n_slots && h->view.slot_cell[slot] == free_slot;
        const Rank    rank    = block_rank(is_free, x.tid, select_threads, &s->exchange);
        if (is_free && n + rank.before < n_waiting) {
            const int32_t t                                 = a.waiting[int64_t(x.head) * x.n_tokens + n + rank.before];
            h->view.slot_cell[slot]                         = uint32_t(cell_of(a, x.head, t));
            h->view.slot_mass[slot]                         = token_score(a, x.head, t);
            a.token_place[int64_t(x.head) * x.n_tokens + t] = slot;
        }
        end = n + rank.all <= n_waiting ? first + select_threads : end; // all of these are held now
        n += rank.all;
    }
    if (x.tid == 0) {
        const int32_t n_taken = n < n_waiting ? n : n_waiting;
        h->tally->n_free -= n_taken;
        h->tally->n_refined += n_taken;
        h->tally->first_free = end < x.n_slots ? end : x.n_slots;
    }
}

MIKV_DEVICE_FN void select_block(MIKV_ARGUMENTS CommitArgs & a, WorkPlace at, MIKV_SHARED SelectShared * s) {
    const MIKV_GLOBAL GpuHead * h      = a.layer.heads + at.x;
    const int32_t               stream = int32_t(at.x) / a.layer.n_head_kv;
    const CellClock             clock  = {a.clock[stream].now, a.clock[stream].batch};
    const Selection             x = {int32_t(at.x), stream, h->view.n_slots, a.layer.n_tokens, clock.now, clock.batch, at.tid};
    release_overwritten(a, x, s);
    add_to_tally(a, x);
    const int32_t n_wishes = place_sinks(a, x, s), n_free = h->tally->n_free;
    block_sync();
    LastKey last   = {{0u, 0u, 0u}};
    int32_t n_keep = 0;
    if (n_wishes > n_free && x.n_slots > 0) {
        const int32_t n_held = write_keys(a, x, s);
        n_keep               = n_held + n_free - x.n_slots / 128; // some more are freed, so that the next commits find slots
        if (n_keep > 0) {
            last = last_key(a, x, n_keep, s);
        }
        demote(a, x, n_keep > 0 ? n_keep : 0, last, s);
    }
    if (x.n_slots > 0) {
        take_slots(a, x, list_waiting(a, x, n_wishes <= n_free, n_keep, last, s), s);
    }
}

} // namespace mikv
