// Scores of a tile of packed keys: products of bytes, whose 16 rows are cells and whose 8 columns are the two bytes of four query rows.
//
// A key is mean + low + (c + 1/2) * step, so its product with q is that of the mean, once a tile, plus for each group
// low * sum(q) + step * (q . c + sum(q) / 2). Queries are rounded to 15 bits of the largest in a group; codes are taken from their middle, for
// what is lost to be small beside that (backend/cpu/fast_score.h does the same). What a refinement adds is added by a second product.
#pragma once

#include "kernel/gpu/fast_tile.h"

namespace mikv {

MIKV_DEVICE_FN float middle_of(int32_t n_bits) { return float((1 << n_bits) - 1) * 0.5f; }

// --- queries --------------------------------------------------------------------------------------------------------------------

template <int n_rows, int dim>
MIKV_DEVICE_FN float query_number(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t r, int32_t i) {
    const int32_t row        = tile.first + r;
    const int64_t query_head = int64_t(tile.head) * a.layer.group + row / a.n_queries;
    return r < tile.n ? a.q[(query_head * a.layer.n_tokens + token_of(a, row)) * a.layer.dim_k + i] : 0.0f;
}

// A group of a row by a warp, two values a lane, four a word: of two lanes the first has that of the first bytes, the other of the second.
template <int n_rows, int dim>
MIKV_DEVICE_FN void round_query(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t r, int32_t g, int32_t lane,
                                MIKV_SHARED FastShared<n_rows, dim> * s) {
    const float    x      = query_number<n_rows, dim>(a, tile, r, g * fast_group + 2 * lane);
    const float    y      = query_number<n_rows, dim>(a, tile, r, g * fast_group + 2 * lane + 1);
    const float    x_size = x < 0.0f ? -x : x, y_size = y < 0.0f ? -y : y;
    const float    step = step_for(warp_max(x_size > y_size ? x_size : y_size)), per = per_step(step);
    const TwoBytes p = two_bytes(x * per), q = two_bytes(y * per);
    const float    sum      = warp_sum(x + y);
    const int32_t  steps    = warp_sum(254 * (p.first + q.first) + p.second + q.second);
    const uint32_t first    = uint32_t(p.first & 255) | uint32_t(q.first & 255) << 8;
    const uint32_t second   = uint32_t(p.second & 255) | uint32_t(q.second & 255) << 8;
    const uint32_t mine     = lane % 2 ? second : first;
    const uint32_t of_other = warp_xor(lane % 2 ? first : second, 1);
    const int32_t  word = lane / 2, column = 2 * (r % 4) + lane % 2; // code word, whose part 4 * (word / 4) is a product's
    s->q[((r / 4 * (dim / fast_group) + g) * 4 + word / 4) * 32 + column * 4 + word % 4] =
        lane % 2 ? of_other | mine << 16 : mine | of_other << 16;
    if (lane == 0) {
        s->q_step[g * n_rows + r]    = step;
        s->q_sum[g * n_rows + r]     = sum;
        s->q_rounded[g * n_rows + r] = step * float(steps);
    }
}

template <int n_rows, int dim>
MIKV_DEVICE_FN void round_queries(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, uint32_t tid,
                                  MIKV_SHARED FastShared<n_rows, dim> * s) {
    const int32_t n_groups = a.layer.dim_k / fast_group;
    for (int32_t i = int32_t(tid / warp_size); i < n_rows * n_groups; i += attend_warps) {
        round_query(a, tile, i / n_groups, i % n_groups, int32_t(tid % warp_size), s);
    }
    if (tid < uint32_t(n_rows)) {
        s->m[tid] = masked_logit;
        s->l[tid] = 0.0f;
    }
}

// Products of the rows with the mean key of the tile's cells: a warp a row.
template <int n_rows, int dim>
MIKV_DEVICE_FN void dot_mean(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t begin, uint32_t tid,
                             MIKV_SHARED FastShared<n_rows, dim> * s) {
    const MIKV_GLOBAL uint16_t * mean = a.layer.heads[tile.head].view.k_mean + int64_t(begin / block_cells) * a.layer.dim_k;
    for (int32_t r = int32_t(tid / warp_size); r < tile.n; r += attend_warps) {
        float dot = 0.0f;
        for (int32_t i = int32_t(tid % warp_size); i < a.layer.dim_k; i += int32_t(warp_size)) {
            dot += query_number<n_rows, dim>(a, tile, r, i) * half_to_float(mean[i]);
        }
        dot = warp_sum(dot);
        if (tid % warp_size == 0) {
            s->mean_dot[r] = dot;
        }
    }
}

// --- keys -----------------------------------------------------------------------------------------------------------------------

// What a lane has of 16 cells: cells lane / 4 and 8 further, rows lane % 4 and every fourth after it.
template <int n_rows> struct CellDots {
    float of[n_rows / 4][2];
};

struct TwoCells {
    int32_t row[2];  // of packed rows
    int32_t seat[2]; // of scales
};

// Adds low * sum(q) + step * (q . c + shift) for one group of two cells a lane; base: else what a refinement adds, without low.
template <int n_rows, int dim, class Rows>
MIKV_DEVICE_FN void add_key_group(Rows rows, RowFormat f, bool base, TwoCells cells, int32_t g, uint32_t lane,
                                  const MIKV_SHARED FastShared<n_rows, dim> * s, MIKV_LOCAL CellDots<n_rows> & dots) {
    const int32_t n_bits = base ? f.bits : f.extra_bits(), t = int32_t(lane % 4);
    const float   parts = 1.0f / float(1 << (base ? f.bits : f.refined_bits));
    uint32_t      code[2][4];
    MIKV_UNROLL
    for (int i = 0; i < 2; i++) {
        read_four(rows, cells.row[i], g * 2 * n_bits, n_bits, t, code[i]);
    }
    MIKV_UNROLL
    for (int set = 0; set < n_rows / 4; set++) {
        int32_t                      sums[4] = {0, 0, 0, 0};
        const MIKV_SHARED uint32_t * q       = s->q + (set * (dim / fast_group) + g) * 4 * 32 + lane;
        MIKV_UNROLL
        for (int k = 0; k < 4; k += 2) {
            const uint32_t codes[4] = {code[0][k], code[1][k], code[0][k + 1], code[1][k + 1]};
            const uint32_t two[2]   = {q[k * 32], q[k * 32 + 32]};
            add_byte_products(lane, sums, codes, two);
        }
        const int32_t at    = g * n_rows + set * 4 + t;
        const float   sum   = s->q_sum[at];
        const float   shift = (base ? middle_of(n_bits) + 0.5f : 0.0f) * sum - middle_of(n_bits) * s->q_rounded[at];
        MIKV_UNROLL
        for (int i = 0; i < 2; i++) {
            const int32_t seat = g * attend_tile + cells.seat[i];
            const float   dot  = s->q_step[at] * float(254 * sums[2 * i] + sums[2 * i + 1]) + shift;
            dots.of[set][i] += (base ? s->low[seat] * sum : 0.0f) + s->range[seat] * parts * dot;
        }
    }
}

template <int n_rows, int dim, class Rows>
MIKV_DEVICE_FN CellDots<n_rows> dot_keys(Rows rows, RowFormat f, bool base, TwoCells cells, uint32_t lane,
                                         const MIKV_SHARED FastShared<n_rows, dim> * s) {
    CellDots<n_rows> dots;
    MIKV_UNROLL
    for (int i = 0; i < n_rows / 2; i++) {
        dots.of[i / 2][i % 2] = 0.0f;
    }
    for (int32_t g = 0; g < f.n_groups(); g++) {
        add_key_group(rows, f, base, cells, g, lane, s, dots);
    }
    return dots;
}

// The base of all cells: a warp 32 of them.
template <int n_rows, int dim>
MIKV_DEVICE_FN void score_base(RowFormat f, uint32_t tid, MIKV_SHARED FastShared<n_rows, dim> * s) {
    const uint32_t lane = tid % warp_size;
    for (int32_t first = int32_t(tid - lane); first < int32_t(tid - lane + warp_size); first += 16) {
        const int32_t          cell  = first + int32_t(lane / 4);
        const TwoCells         cells = {{cell, cell + 8}, {seat_of(cell), seat_of(cell + 8)}};
        const CellDots<n_rows> dots  = dot_keys(tile_rows(s->packed, f.base_bytes()), f, true, cells, lane, s);
        MIKV_UNROLL
        for (int i = 0; i < n_rows / 2; i++) {
            s->weight[(i / 2 * 4 + int32_t(lane % 4)) * attend_tile + cells.seat[i % 2]] = dots.of[i / 2][i % 2];
        }
    }
}

// What refinements add: 16 cells of those that have one a warp.
template <int n_rows, int dim>
MIKV_DEVICE_FN void score_refined(const MIKV_GLOBAL GpuHead * h, RowFormat f, uint32_t tid,
                                  MIKV_SHARED FastShared<n_rows, dim> * s) {
    const uint32_t lane = tid % warp_size;
    const int32_t  n    = f.extra_bits() ? n_listed(&s->refined) : 0;
    for (int32_t first = int32_t(tid / warp_size) * 16; first < n; first += attend_warps * 16) {
        const int32_t item = first + int32_t(lane / 4);
        TwoCells      cells;
        MIKV_UNROLL
        for (int i = 0; i < 2; i++) {
            cells.seat[i] = seat_of(listed(&s->refined, item + 8 * i < n ? item + 8 * i : first));
            cells.row[i]  = s->place[cells.seat[i]];
        }
        const CellDots<n_rows> dots = dot_keys(slot_rows(h->view.k_refined, f.refinement_bytes()), f, false, cells, lane, s);
        MIKV_UNROLL
        for (int i = 0; i < n_rows / 2; i++) {
            if (item + 8 * (i % 2) < n) {
                s->weight[(i / 2 * 4 + int32_t(lane % 4)) * attend_tile + cells.seat[i % 2]] += dots.of[i / 2][i % 2];
            }
        }
    }
}

// Rows that are not packed, a warp one: exact ones and those that wait.
template <int n_rows, int dim>
MIKV_DEVICE_FN void score_direct(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t begin, uint32_t tid,
                                 MIKV_SHARED FastShared<n_rows, dim> * s) {
    const int32_t n = n_listed(&s->direct);
    for (int32_t item = int32_t(tid / warp_size); item < n; item += attend_warps) {
        const int32_t   in_tile = listed(&s->direct, item);
        const DirectRow row     = direct_row(a, tile, begin + in_tile, false);
        for (int32_t r = 0; r < tile.n; r++) {
            float dot = 0.0f;
            for (int32_t i = int32_t(tid % warp_size); i < a.layer.dim_k; i += int32_t(warp_size)) {
                dot += query_number<n_rows, dim>(a, tile, r, i) * direct_number(row, i);
            }
            dot = warp_sum(dot);
            if (tid % warp_size == 0) {
                s->weight[r * attend_tile + seat_of(in_tile)] = dot;
            }
        }
    }
}

} // namespace mikv
