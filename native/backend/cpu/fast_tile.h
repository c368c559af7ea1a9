// A tile of cells: who sees it, and which of its rows are refined, or floats already.
#pragma once

#include "backend/cpu/fast_math.h"

namespace mikv {

constexpr int tile_cells = 64; // cells worked on together; a tile never crosses a block's edge, for it ends at a multiple of 64

struct Tile {
    int      first;
    int      n;
    int      end;   // one past the last place in the tile whose row is packed and seen; 0: nothing of the base is read
    bool     clear; // whole, and every row sees every cell, with a mask of 0
    uint64_t seen;  // bit i: some row sees cell first + i
    int      n_refined;
    int      n_direct;
    uint8_t  refined[tile_cells]; // places in the tile of the refined cells that are seen
    uint8_t  direct[tile_cells];  // and of those whose row is floats: exact or staged
};

static inline int tile_end(int first, int last) {
    const int edge = (first / tile_cells + 1) * tile_cells;
    return edge < last ? edge : last;
}

// Lists the numbers of the bits that are set, lowest first; returns how many. The exponent of a power of two is its number.
static inline int list_bits(uint64_t bits, uint8_t * list) {
    int n = 0;
    for (; bits; bits &= bits - 1) {
        const double lowest = double(int64_t(bits & (0 - bits)));
        list[n++]           = uint8_t((MIKV_BITCAST(uint64_t, lowest) >> 52 & 0x7FF) - 1023);
    }
    return n;
}

// One past the number of the highest bit that is set; 0 if none is.
static inline int places_of(uint64_t bits) {
    int n = 0;
    for (int step = 32; step; step /= 2) {
        if (bits >> step) {
            bits >>= step;
            n += step;
        }
    }
    return n + int(bits);
}

// Bit i: x[i] < limit.
template <class Isa> static inline uint64_t bits_below(const int32_t * x, int n, int32_t limit) {
    uint64_t bits = 0;
    int      i    = 0;
    for (; i + Isa::width <= n; i += Isa::width) {
        bits |= uint64_t(Isa::below(x + i, limit)) << i;
    }
    for (; i < n; i++) {
        bits |= uint64_t(x[i] < limit) << i;
    }
    return bits;
}

// Fills in the end and the lists of the cells in tile.seen.
template <class Isa> static void sort_cells(const CellIndex & index, Tile & tile) {
    const int32_t * place   = index.place + tile.first;
    const uint64_t  waiting = ~bits_below<Isa>(index.staged + tile.first, tile.n, 0);
    const uint64_t  direct  = (waiting | bits_below<Isa>(place, tile.n, place_base)) & tile.seen;
    tile.n_direct           = list_bits(direct, tile.direct);
    tile.end                = places_of(tile.seen & ~direct);
    tile.n_refined          = list_bits(~bits_below<Isa>(place, tile.n, 0) & ~direct & tile.seen, tile.refined);
}

// Reads the mask of the cells [first, end). False if no row sees any of them; the lists are then left unset.
template <class Isa> static bool read_tile(const CellIndex & index, const QueryRows & rows, int first, int end, Tile & tile) {
    uint32_t marks = 0;
    tile.first     = first;
    tile.n         = end - first;
    tile.seen      = ~uint64_t(0) >> (tile_cells - tile.n);
    for (int t = 0; t < rows.n_tokens; t++) {
        const uint16_t * mask = rows.mask + t * rows.mask_stride + first;
        uint16_t         some = 0;
        for (int i = 0; i < tile.n; i++) {
            some |= mask[i];
        }
        marks |= some;
    }
    tile.clear = marks == 0 && tile.n == tile_cells;
    if (marks) {
        uint8_t seen[tile_cells] = {0};
        for (int t = 0; t < rows.n_tokens; t++) {
            const uint16_t * mask = rows.mask + t * rows.mask_stride + first;
            for (int i = 0; i < tile.n; i++) {
                seen[i] |= mask[i] != 0xFC00u;
            }
        }
        tile.seen = 0;
        for (int i = 0; i < tile.n; i++) {
            tile.seen |= uint64_t(seen[i]) << i;
        }
    }
    if (!tile.seen) {
        return false;
    }
    sort_cells<Isa>(index, tile);
    return true;
}

} // namespace mikv
