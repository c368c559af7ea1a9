// begin: what the mask tells of the cells of a stream. store/cells.cpp is the definition.
#pragma once

#include "kernel/gpu/block.h"

namespace mikv {

MIKV_DEVICE_FN bool sees(MIKV_ARGUMENTS BeginArgs & a, int32_t stream, int32_t token, int32_t cell) {
    return !a.mask || (cell < a.n_kv && a.mask[stream * a.mask_stream + token * a.mask_token + cell] != hidden);
}

MIKV_DEVICE_FN int32_t cell_of(MIKV_ARGUMENTS BeginArgs & a, int32_t stream, int32_t token) {
    return int32_t(a.cells[int64_t(stream) * a.n_tokens + token] - int64_t(a.first_stream + stream) * a.n_cells);
}

// A thread a cell: nothing waits in it, nothing is loading, and who sees it.
MIKV_DEVICE_FN void begin_cells_block(MIKV_ARGUMENTS BeginArgs & a, WorkPlace at, MIKV_SHARED NothingShared *) {
    const int32_t cell = int32_t(at.x) * begin_threads + int32_t(at.tid), stream = int32_t(at.y);
    if (cell >= a.n_cells) {
        return;
    }
    const int64_t i = int64_t(stream) * a.n_cells + cell;
    a.staged[i]     = -1;
    a.flags[i]      = uint8_t(a.flags[i] & ~uint32_t(cell_loading));
    bool seen       = false;
    for (int32_t token = 0; token < a.n_tokens && cell < a.n_kv && !seen; token++) {
        seen = sees(a, stream, token, cell);
    }
    if (seen) {
        a.seen[i] = a.clock[stream].batch + 1;
    }
}

// A warp a token: it takes its cell, as a sink if it sees no more cells than there are sinks.
MIKV_DEVICE_FN void begin_tokens_block(MIKV_ARGUMENTS BeginArgs & a, WorkPlace at, MIKV_SHARED NothingShared *) {
    const int32_t token  = int32_t(at.x) * (begin_threads / int32_t(warp_size)) + int32_t(at.tid / warp_size);
    const int32_t stream = int32_t(at.y), lane = int32_t(at.tid % warp_size);
    if (token >= a.n_tokens) {
        return;
    }
    int32_t n_seen = 0;
    for (int32_t first = 0; first < a.n_kv && n_seen <= a.sinks; first += int32_t(warp_size)) {
        n_seen += warp_sum(first + lane < a.n_kv && sees(a, stream, token, first + lane) ? 1 : 0);
    }
    if (lane == 0) {
        const int64_t i = int64_t(stream) * a.n_cells + cell_of(a, stream, token);
        a.born[i]       = a.clock[stream].now + 1 + uint32_t(token);
        a.seen[i]       = a.clock[stream].batch + 1;
        a.flags[i]      = uint8_t(n_seen <= a.sinks ? cell_holds | cell_sink : cell_holds);
        a.staged[i]     = token;
    }
}

// How many cells that the token sees were stored at or after `oldest`.
MIKV_DEVICE_FN int32_t count_since(MIKV_ARGUMENTS BeginArgs & a, int32_t stream, int32_t token, uint32_t oldest, uint32_t tid,
                                   MIKV_SHARED RecentShared * s) {
    const int64_t base = int64_t(stream) * a.n_cells;
    int32_t       n    = 0;
    for (int32_t cell = int32_t(tid); cell < a.n_kv; cell += begin_threads) {
        n += a.born[base + cell] >= oldest && (a.flags[base + cell] & cell_holds) && sees(a, stream, token, cell) ? 1 : 0;
    }
    return block_sum(n, tid, begin_threads, &s->exchange);
}

// The youngest `window` cells that the token sees are those stored at or after this.
MIKV_DEVICE_FN uint32_t oldest_recent(MIKV_ARGUMENTS BeginArgs & a, int32_t stream, int32_t token, uint32_t now, uint32_t tid,
                                      MIKV_SHARED RecentShared * s) {
    uint32_t reach = uint32_t(a.window), oldest = 1;
    int32_t  n = 0;
    for (;;) { // further back until there are enough: other sequences' tokens may lie between
        oldest = reach < now ? now + 1 - reach : 1;
        n      = count_since(a, stream, token, oldest, tid, s);
        if (n >= a.window || oldest <= 1) {
            break;
        }
        reach = reach < 0x20000000u ? reach * 4 : 0x80000000u;
    }
    for (uint32_t bit = n > a.window ? 0x80000000u : 0u; bit > 0; bit /= 2) { // births are all different
        const uint32_t later = oldest + bit;
        if (later > oldest && later <= now && count_since(a, stream, token, later, tid, s) >= a.window) {
            oldest = later;
        }
    }
    return oldest;
}

MIKV_DEVICE_FN void mark_recent(MIKV_ARGUMENTS BeginArgs & a, int32_t stream, int32_t token, uint32_t now, uint32_t tid,
                                MIKV_SHARED RecentShared * s) {
    const uint32_t oldest = a.window > 0 ? oldest_recent(a, stream, token, now, tid, s) : 0u;
    const int64_t  base   = int64_t(stream) * a.n_cells;
    for (int32_t cell = int32_t(tid); cell < a.n_kv; cell += begin_threads) {
        const uint32_t flags = a.flags[base + cell];
        if ((flags & cell_holds) && sees(a, stream, token, cell)) {
            const bool recent    = a.window > 0 && a.born[base + cell] >= oldest;
            a.flags[base + cell] = uint8_t(recent ? flags | cell_recent : flags & ~uint32_t(cell_recent));
        }
    }
}

// A block a stream: the last token of each sequence in the micro-batch decides which cells of that sequence are recent. Then the clock goes on.
MIKV_DEVICE_FN void begin_recent_block(MIKV_ARGUMENTS BeginArgs & a, WorkPlace at, MIKV_SHARED RecentShared * s) {
    const int32_t  stream = int32_t(at.x);
    const uint32_t now    = a.clock[stream].now + uint32_t(a.n_tokens);
    int32_t        n_last = 0;
    for (int32_t token = a.n_tokens - 1; token >= 0; token--) {
        int32_t covered = 0;
        for (int32_t i = int32_t(at.tid); i < n_last; i += begin_threads) {
            covered += sees(a, stream, a.last[int64_t(stream) * a.n_tokens + i], cell_of(a, stream, token)) ? 1 : 0;
        }
        if (block_sum(covered, at.tid, begin_threads, &s->exchange) == 0) {
            if (at.tid == 0) {
                a.last[int64_t(stream) * a.n_tokens + n_last] = token;
            }
            n_last++;
            mark_recent(a, stream, token, now, at.tid, s);
            block_sync();
        }
    }
    if (at.tid == 0) {
        a.clock[stream].now = now;
        a.clock[stream].batch += 1;
    }
}

} // namespace mikv
