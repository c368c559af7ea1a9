// A tile of 128 cells as the fast attention has it: packed rows as they are in memory, read in words of 16 bytes, and what its cells are.
// For groups of 64, of which a code word, four codes in four bytes, comes out of a plane by a shift and a mask (FORMAT.md, "Planes").
//
// What is shared of a cell lies at a place of its own, its seat: seats 4 l .. 4 l + 3 are cells that one lane of a product of bytes has.
#pragma once

#include "kernel/gpu/attend.h"

namespace mikv {

MIKV_DEVICE_FN int32_t seat_of(int32_t cell) { return (cell & ~15) | (cell & 3) << 2 | (cell >> 2 & 3); } // its own inverse

// What a cell of the tile is to the block: a slot or gpu_place_base, of a packed row that somebody sees; or
constexpr int32_t not_packed = -2;

constexpr int32_t attend_warps = attend_threads / 32;

// --- packed rows ----------------------------------------------------------------------------------------------------------------

constexpr int32_t words_of_four = 4;

// A thread's part of a tile's keys or values on their way: some of the packed rows' words, up to 4 bits a value, and a cell's params.
template <int dim> struct TileUnderWay {
    FourWords rows[dim / 32];
    uint16_t  params[dim / fast_group];
};

// Of the cells [first, last) that lie in the tile, which begins at a multiple of 128.
template <int dim>
MIKV_DEVICE_FN void fetch_tile(const MIKV_GLOBAL uint8_t * rows, const MIKV_GLOBAL uint16_t * params, RowFormat f,
                               int32_t n_cells, int32_t first, int32_t last, uint32_t tid, MIKV_LOCAL TileUnderWay<dim> & way) {
    const MIKV_GLOBAL FourWords * from    = (const MIKV_GLOBAL FourWords *)(rows + int64_t(first) * f.base_bytes());
    const int32_t                 n       = last - first < attend_tile ? last - first : attend_tile;
    const int32_t                 n_words = n * (f.base_bytes() / 4);
    MIKV_UNROLL
    for (int i = 0; i < dim / 32; i++) {
        const int32_t at = i * attend_threads + int32_t(tid);
        if (at * words_of_four + 3 < n_words) {
            way.rows[i] = from[at];
        } else if (at * words_of_four < n_words) { // rows of 64 values: there are always two
            const MIKV_GLOBAL uint32_t * rest = (const MIKV_GLOBAL uint32_t *)(from + at);
            const FourWords              two  = {rest[0], rest[1], 0u, 0u};
            way.rows[i]                       = two;
        }
    }
    MIKV_UNROLL
    for (int g = 0; g < dim / fast_group; g++) {
        if (g < f.n_groups() && int32_t(tid) < n) {
            way.params[g] = params[int64_t(g) * n_cells + first + int32_t(tid)];
        }
    }
}

// Packed rows that the block shares. Pieces of 16 bytes change places within a row, so that eight rows' words lie in different banks.
struct TileRows {
    const MIKV_SHARED uint32_t * words;
    int32_t                      row_words, mask;

    MIKV_METHOD int32_t at(int32_t row, int32_t i) const {
        return row * row_words + (((i >> 2) ^ ((row * row_words >> 5) & mask)) << 2 | (i & 3));
    }
    MIKV_METHOD uint32_t word(int32_t row, int32_t i) const { return words[mask ? at(row, i) : row * row_words + i]; }
};

MIKV_DEVICE_FN TileRows tile_rows(const MIKV_SHARED FourWords * packed, int32_t row_bytes) {
    const int32_t row_words = row_bytes / 4, pieces = row_words / words_of_four;
    const int32_t mask = row_words % words_of_four ? 0 : (pieces & -pieces) - 1;
    return TileRows{(const MIKV_SHARED uint32_t *)packed, row_words, mask};
}

template <int dim>
MIKV_DEVICE_FN void put_rows(const MIKV_LOCAL TileUnderWay<dim> & way, int32_t row_bytes, uint32_t tid,
                             MIKV_SHARED FourWords * packed) {
    const TileRows rows = tile_rows(packed, row_bytes);
    MIKV_UNROLL
    for (int i = 0; i < dim / 32; i++) {
        const int32_t at = i * attend_threads + int32_t(tid), word = at * words_of_four;
        if (word < attend_tile * rows.row_words) {
            packed[rows.mask ? rows.at(word / rows.row_words, word % rows.row_words) / words_of_four : at] = way.rows[i];
        }
    }
}

// Packed rows in the cache's memory, by slot.
struct SlotRows {
    const MIKV_GLOBAL uint32_t * words;
    int32_t                      row_words;

    MIKV_METHOD uint32_t word(int32_t row, int32_t i) const { return words[int64_t(row) * row_words + i]; }
};

MIKV_DEVICE_FN SlotRows slot_rows(const MIKV_GLOBAL uint8_t * rows, int32_t row_bytes) {
    return SlotRows{(const MIKV_GLOBAL uint32_t *)rows, row_bytes / 4};
}

// --- codes ----------------------------------------------------------------------------------------------------------------------

constexpr uint32_t bytes_of_one = 0x01010101u;

// Code words t, 4 + t, 8 + t and 12 + t of a group, whose planes of n bits a value begin at word `first` of the row.
template <class Rows>
MIKV_DEVICE_FN void read_four(Rows rows, int32_t row, int32_t first, int32_t n_bits, int32_t t, MIKV_LOCAL uint32_t * code) {
    MIKV_UNROLL
    for (int k = 0; k < 4; k++) {
        code[k] = 0;
    }
    while (n_bits > 0) {
        const int32_t  p = plane_bits(n_bits);
        const uint32_t a = rows.word(row, first + (p == 1 ? t & 1 : t)), b = p == 4 ? rows.word(row, first + 4 + t) : a;
        const uint32_t low = bytes_of_one * ((1u << p) - 1);
        MIKV_UNROLL
        for (int k = 0; k < 4; k++) {
            const int32_t shift = p == 4 ? 4 * (k / 2) : p == 2 ? 2 * k : 2 * k + (t >> 1);
            code[k]             = code[k] << p | ((k & 1 ? b : a) >> shift & low);
        }
        first += 2 * p;
        n_bits -= p;
    }
}

// Code word 4 * k + t alone.
template <class Rows>
MIKV_DEVICE_FN uint32_t read_one(Rows rows, int32_t row, int32_t first, int32_t n_bits, int32_t k, int32_t t) {
    uint32_t code = 0;
    while (n_bits > 0) {
        const int32_t p     = plane_bits(n_bits);
        const int32_t which = p == 4 ? 4 * (k & 1) + t : p == 2 ? t : t & 1;
        const int32_t shift = p == 4 ? 4 * (k >> 1) : p == 2 ? 2 * k : 2 * k + (t >> 1);
        code                = code << p | (rows.word(row, first + which) >> shift & (bytes_of_one * ((1u << p) - 1)));
        first += 2 * p;
        n_bits -= p;
    }
    return code;
}

// --- numbers of 15 bits as two bytes --------------------------------------------------------------------------------------------

constexpr float byte_steps = 254.0f; // of the second byte, which has a sign, in one of the first
constexpr float most_byte  = 127.0f;

// What a step of the second byte is, if the largest is `top`.
MIKV_DEVICE_FN float step_for(float top) { return top * (1.0f / (most_byte * byte_steps)); }
MIKV_DEVICE_FN float per_step(float step) { return step > 1e-30f ? 1.0f / step : 0.0f; }

MIKV_DEVICE_FN int32_t nearest(float x) { return int32_t(x + (x < 0.0f ? -0.5f : 0.5f)); }

struct TwoBytes {
    int32_t first, second;
};

MIKV_DEVICE_FN TwoBytes two_bytes(float steps) {
    int32_t first = nearest(steps * (1.0f / byte_steps));
    first         = first > 127 ? 127 : first < -127 ? -127 : first;
    return TwoBytes{first, nearest(steps - byte_steps * float(first))};
}

// --- the cells ------------------------------------------------------------------------------------------------------------------

// Cells of a tile that one in many is, listed by each warp of its own.
MIKV_DEVICE_FN int32_t n_listed(const MIKV_SHARED TileList * list) { return list->n[0] + list->n[1] + list->n[2] + list->n[3]; }
MIKV_DEVICE_FN int32_t listed(const MIKV_SHARED TileList * list, int32_t i) {
    int32_t warp = 0;
    while (warp < 3 && i >= list->n[warp]) {
        i -= list->n[warp];
        warp++;
    }
    return list->cell[warp * int32_t(warp_size) + i];
}
MIKV_DEVICE_FN void list_cell(MIKV_SHARED TileList * list, bool belongs, uint32_t tid) {
    const Rank rank = warp_rank(belongs, tid);
    if (belongs) {
        list->cell[tid / warp_size * warp_size + uint32_t(rank.before)] = uint8_t(tid);
    }
    if (tid % warp_size == 0) {
        list->n[tid / warp_size] = rank.all;
    }
}

MIKV_DEVICE_FN bool anyone_sees(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t cell) {
    const int32_t n_masks = tile.n < a.n_queries ? tile.n : a.n_queries; // query heads have theirs in common
    bool          seen    = false;
    for (int32_t r = 0; r < n_masks; r++) {
        seen = seen || mask_of(a, tile, r, cell) != hidden;
    }
    return seen;
}

// Scale and minimum of the cell's groups; what is not packed has none.
template <int n_rows, int dim>
MIKV_DEVICE_FN void put_scales(const MIKV_LOCAL TileUnderWay<dim> & way, RowFormat f, uint32_t tid,
                               MIKV_SHARED FastShared<n_rows, dim> * s) {
    const int32_t seat   = seat_of(int32_t(tid));
    const bool    packed = s->place[seat] >= gpu_place_base;
    MIKV_UNROLL
    for (int g = 0; g < dim / fast_group; g++) {
        if (g < f.n_groups()) {
            s->range[g * attend_tile + seat] = packed ? params_range(way.params[g]) : 0.0f;
            s->low[g * attend_tile + seat]   = packed ? params_min(way.params[g]) : 0.0f;
        }
    }
}

// A thread a cell: what it is, and where its logits are kept.
template <int n_rows, int dim>
MIKV_DEVICE_FN void read_cell(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t begin, int32_t last, uint32_t tid,
                              MIKV_SHARED FastShared<n_rows, dim> * s) {
    const MIKV_GLOBAL GpuHead * h    = a.layer.heads + tile.head;
    const int32_t               cell = begin + int32_t(tid), seat = seat_of(int32_t(tid));
    const bool                  in = cell < last, seen = in && anyone_sees(a, tile, cell);
    const int32_t               token  = in ? staged_in(a.layer, tile.head, cell) : -1;
    const int32_t               place  = in ? a.layer.place[int64_t(tile.head) * a.layer.n_kv + cell] : gpu_place_base;
    const bool                  packed = seen && token < 0 && place >= gpu_place_base;
    s->place[seat]                     = packed ? place : not_packed;
    s->kept[seat]                      = a.kept && in ? kept_at(h, token, place) : -1;
    list_cell(&s->refined, packed && place >= 0, tid);
    list_cell(&s->direct, seen && !packed, tid);
}

// A row that is not packed: exact, or of the micro-batch.
struct DirectRow {
    const MIKV_GLOBAL float *    waiting; // null: it is
    const MIKV_GLOBAL uint16_t * exact;
};

MIKV_DEVICE_FN DirectRow direct_row(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t cell, bool value) {
    const MIKV_GLOBAL GpuHead *  h     = a.layer.heads + tile.head;
    const int32_t                token = staged_in(a.layer, tile.head, cell);
    const int32_t                dim   = value ? a.layer.dim_v : a.layer.dim_k;
    const MIKV_GLOBAL float *    none  = nullptr;
    const MIKV_GLOBAL uint16_t * exact = value ? h->view.v_exact : h->view.k_exact;
    if (token >= 0) {
        return DirectRow{(value ? a.staged_v : a.staged_k) + staged_row(a.layer, tile.head, token) * dim, exact};
    }
    const int32_t place = a.layer.place[int64_t(tile.head) * a.layer.n_kv + cell];
    return DirectRow{none, exact + int64_t(-2 - place) * dim};
}
MIKV_DEVICE_FN float direct_number(DirectRow row, int32_t i) {
    return row.waiting ? row.waiting[i] : half_to_float(row.exact[i]);
}

} // namespace mikv
