// Who keeps a slot rather than whom, as three words, larger first (store/tiers.cpp, `before`, is the definition): guarded, not forgotten; the
// priority, of guarded rows the birth; the birth.
#pragma once

#include "kernel/gpu/score.h"

namespace mikv {

// One block works on one head; what all its functions need to know.
struct Selection {
    int32_t  head, stream;
    int32_t  n_slots, n_tokens;
    uint32_t now, batch;
    uint32_t tid;
};

// The order of unsigned numbers as that of floats.
MIKV_DEVICE_FN uint32_t ordered(float x) {
    const uint32_t bits = MIKV_BITCAST(uint32_t, x == x ? x : 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Norm of a row from its groups' extremes: what a Gaussian group of 64 with that range and middle has.
MIKV_DEVICE_FN float group_square(uint16_t params, int32_t group) {
    const float deviation = params_range(params) / 4.7f; // a range is so many deviations, on average
    const float middle    = params_min(params) + 0.5f * params_range(params);
    return float(group) * (deviation * deviation + middle * middle);
}

MIKV_DEVICE_FN float norm_of_stored(const MIKV_GLOBAL GpuHead * h, uint32_t cell) {
    const RowFormat f      = value_format(h);
    float           square = 0.0f;
    for (int32_t g = 0; g < f.n_groups(); g++) {
        square += group_square(h->view.v_params[int64_t(g) * h->view.n_cells + cell], f.group);
    }
    return sqrt_of(square);
}

MIKV_DEVICE_FN float norm_of_staged(MIKV_ARGUMENTS CommitArgs & a, int32_t head, int32_t token) {
    const RowFormat           f      = value_format(a.layer.heads + head);
    const MIKV_GLOBAL float * value  = a.staged_v + staged_row(a.layer, head, token) * f.dim;
    float                     square = 0.0f;
    for (int32_t g = 0; g < f.n_groups(); g++) {
        float lo = clamp_to_half(value[g * f.group]), hi = lo;
        for (int32_t i = 1; i < f.group; i++) {
            const float x = clamp_to_half(value[g * f.group + i]);
            lo            = x < lo ? x : lo;
            hi            = x > hi ? x : hi;
        }
        square += group_square(params_of(lo, hi, f.end_point_bits()), f.group);
    }
    return sqrt_of(square);
}

// The place that select has given a token so far; exact rows do not compete.
MIKV_DEVICE_FN int32_t token_place(MIKV_ARGUMENTS CommitArgs & a, int32_t head, int32_t token) {
    return a.token_place[int64_t(head) * a.layer.n_tokens + token];
}
MIKV_DEVICE_FN float token_score(MIKV_ARGUMENTS CommitArgs & a, int32_t head, int32_t token) {
    return a.token_mass[(int64_t(head) * a.layer.n_tokens + token) * 2 + 1];
}

// A candidate: slots come first, then tokens. cell: free_slot if it is none.
struct Contender {
    uint32_t cell;
    float    score;
    int32_t  token; // -1: a slot's
};

MIKV_DEVICE_FN Contender contender(MIKV_ARGUMENTS CommitArgs & a, Selection x, int32_t i) {
    const MIKV_GLOBAL GpuHead * h = a.layer.heads + x.head;
    if (i < x.n_slots) {
        return Contender{h->view.slot_cell[i], h->view.slot_mass[i], -1};
    }
    const int32_t token = i - x.n_slots;
    const bool    wants = token_place(a, x.head, token) == gpu_place_base;
    return Contender{wants ? uint32_t(cell_of(a, x.head, token)) : free_slot, token_score(a, x.head, token), token};
}

// The score of a cell that competes; else, no more than any.
MIKV_DEVICE_FN float score_of_cell(MIKV_ARGUMENTS CommitArgs & a, Selection x, int32_t cell, float least) {
    if (cell < 0 || cell >= a.layer.n_kv) {
        return least;
    }
    const int32_t token = staged_in(a.layer, x.head, cell);
    if (token >= 0) {
        return token_place(a, x.head, token) == gpu_place_base ? token_score(a, x.head, token) : least;
    }
    const int32_t place = a.layer.place[int64_t(x.head) * a.layer.n_kv + cell];
    return place >= 0 ? a.layer.heads[x.head].view.slot_mass[place] : least;
}

MIKV_DEVICE_FN float hashed(uint32_t cell, uint32_t layer, uint32_t head, uint32_t born) {
    uint32_t h = cell * 2654435761u + layer * 40503u + head * 9973u + born * 2246822519u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    return float(h >> 8); // 24 bits: exact in f32
}

// mean: of all scores, for rank_by_clamped_score.
MIKV_DEVICE_FN float priority_of(MIKV_ARGUMENTS CommitArgs & a, Selection x, Contender c, uint32_t born, float mean) {
    float priority = c.score;
    if (a.rank == rank_by_age) {
        priority = c.score / float(x.now - born + 1);
    } else if (a.rank == rank_by_birth) {
        priority = -float(x.now - born);
    } else if (a.rank == rank_by_hash) {
        priority = hashed(c.cell, uint32_t(a.layer_number), uint32_t(x.head % a.layer.n_head_kv), born);
    } else if (a.rank == rank_by_clamped_score) {
        priority = c.score > mean ? c.score : mean;
    } else if (a.rank == rank_by_neighbours) {
        for (int32_t cell = int32_t(c.cell) - 3; cell <= int32_t(c.cell) + 3; cell++) {
            const float score = score_of_cell(a, x, cell, priority);
            priority          = score > priority ? score : priority;
        }
    }
    if (a.by_value) {
        priority *= c.token < 0 ? norm_of_stored(a.layer.heads + x.head, c.cell) : norm_of_staged(a, x.head, c.token);
    }
    return priority;
}

MIKV_DEVICE_FN MIKV_GLOBAL uint32_t * key_of(MIKV_ARGUMENTS CommitArgs & a, int32_t head, int32_t word) {
    return a.key + (int64_t(head) * 3 + word) * a.n_candidates;
}

// All candidates' keys; 0 for those that are none. Returns how many there are of slots.
MIKV_DEVICE_FN int32_t write_keys(MIKV_ARGUMENTS CommitArgs & a, Selection x, MIKV_SHARED SelectShared * s) {
    float   sum = 0.0f;
    int32_t n = 0, n_held = 0;
    for (int32_t i = int32_t(x.tid); i < x.n_slots + x.n_tokens; i += select_threads) {
        const Contender c  = contender(a, x, i);
        const bool      is = c.cell != free_slot;
        n += is ? 1 : 0;
        n_held += is && c.token < 0 ? 1 : 0;
        sum += is ? c.score : 0.0f;
    }
    n                = block_sum(n, x.tid, select_threads, &s->exchange);
    n_held           = block_sum(n_held, x.tid, select_threads, &s->exchange);
    const float mean = block_sum(sum, x.tid, select_threads, &s->exchange) / float(n > 0 ? n : 1);
    for (int32_t i = int32_t(x.tid); i < x.n_slots + x.n_tokens; i += select_threads) {
        const Contender c      = contender(a, x, i);
        uint32_t        key[3] = {0u, 0u, 0u};
        if (c.cell != free_slot) {
            const int64_t  cell      = int64_t(x.stream) * a.layer.n_cells + c.cell;
            const uint32_t born      = a.born[cell];
            const bool     forgotten = x.batch - a.seen[cell] > forgotten_after;
            const bool     guarded =
                (a.flags[cell] & (cell_sink | cell_recent)) != 0 && !forgotten; // a window nobody looks through guards nothing
            key[0] = guarded ? 3u : forgotten ? 1u : 2u;
            key[1] = guarded ? born : ordered(priority_of(a, x, c, born, mean));
            key[2] = born;
        }
        for (int word = 0; word < 3; word++) {
            key_of(a, x.head, word)[i] = key[word];
        }
    }
    block_sync();
    return n_held;
}

// The key of the last of the n_keep that go first, all different: by digits of 8 bits, from the most significant one on. Those that go before it,
// and itself, are not below it. n_keep: 1 .. candidates.
struct LastKey {
    uint32_t word[3];
};

MIKV_DEVICE_FN bool not_below(MIKV_ARGUMENTS CommitArgs & a, int32_t head, int32_t i, LastKey last) {
    for (int word = 0; word < 3; word++) {
        const uint32_t key = key_of(a, head, word)[i];
        if (key != last.word[word]) {
            return key > last.word[word];
        }
    }
    return true;
}

// The digit at which the n-th largest of the counted ones lies, and how many have a larger one; into s->digit, s->above.
MIKV_DEVICE_FN void find_digit(int32_t n, uint32_t tid, MIKV_SHARED SelectShared * s) {
    if (tid < 16) {
        int32_t sum = 0;
        for (uint32_t i = 0; i < 16; i++) {
            sum += int32_t(counted(&s->bin[tid * 16 + i]));
        }
        s->sixteenth[tid] = sum;
    }
    block_sync();
    if (tid == 0) {
        int32_t part = 15, above = 0;
        while (part > 0 && above + s->sixteenth[part] < n) {
            above += s->sixteenth[part--];
        }
        int32_t digit = part * 16 + 15;
        while (digit > part * 16 && above + int32_t(counted(&s->bin[digit])) < n) {
            above += int32_t(counted(&s->bin[digit--]));
        }
        s->digit = digit;
        s->above = above;
    }
    block_sync();
}

MIKV_DEVICE_FN LastKey last_key(MIKV_ARGUMENTS CommitArgs & a, Selection x, int32_t n_keep, MIKV_SHARED SelectShared * s) {
    LastKey last = {{0u, 0u, 0u}};
    for (int word = 0; word < 3; word++) {
        uint32_t known = 0; // bits of the word
        for (int shift = word == 0 ? 0 : 24; shift >= 0; shift -= 8) {
            for (uint32_t i = x.tid; i < 256; i += uint32_t(select_threads)) {
                reset_count(&s->bin[i]);
            }
            block_sync();
            for (int32_t i = int32_t(x.tid); i < x.n_slots + x.n_tokens; i += select_threads) {
                bool same = key_of(a, x.head, 0)[i] != 0u;
                for (int before = 0; before < word; before++) {
                    same = same && key_of(a, x.head, before)[i] == last.word[before];
                }
                const uint32_t key = key_of(a, x.head, word)[i];
                if (same && (key & known) == last.word[word]) {
                    count_one(&s->bin[(key >> shift) & 255u]);
                }
            }
            block_sync();
            find_digit(n_keep, x.tid, s);
            last.word[word] |= uint32_t(s->digit) << shift;
            known |= 255u << shift;
            n_keep -= s->above;
            block_sync();
        }
    }
    return last;
}

} // namespace mikv
