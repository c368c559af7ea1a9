// The fast attention: attend.h says what it computes, for few query rows; equal to it but for the rounding of queries and weights to 15 bits.
// For groups of 64 values and rows of up to 256. A tile's packed rows are fetched while the tile before it is worked on.
#pragma once

#include "kernel/gpu/fast_score.h"
#include "kernel/gpu/fast_values.h"

namespace mikv {

// The tile's dot products become logits, then weights, for the largest logit so far: a warp a row, four seats a lane.
template <int n_rows, int dim>
MIKV_DEVICE_FN void weigh_row(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t r, int32_t begin, int32_t last,
                              uint32_t lane, MIKV_SHARED FastShared<n_rows, dim> * s) {
    const int32_t query_head = tile.head % a.layer.n_head_kv * a.layer.group + (tile.first + r) / a.n_queries;
    const float   slope = a.slope ? a.slope[query_head] : 1.0f, before = s->m[r];
    float         x[4], m = before, sum = 0.0f;
    MIKV_UNROLL
    for (int i = 0; i < 4; i++) {
        const int32_t  seat = int32_t(lane) * 4 + i, cell = begin + seat_of(seat), kept = s->kept[seat];
        const float    dot  = s->weight[r * attend_tile + seat] + (s->place[seat] >= gpu_place_base ? s->mean_dot[r] : 0.0f);
        const uint16_t mask = cell < last ? mask_of(a, tile, r, cell) : hidden;
        x[i]                = logit_of(dot, mask, a.softcap, slope);
        m                   = x[i] > m ? x[i] : m;
        if (kept >= 0) {
            a.kept[(int64_t(tile.head) * tile.all + tile.first + r) * a.n_kept + kept] = x[i];
        }
    }
    m = warp_max(m);
    MIKV_UNROLL
    for (int i = 0; i < 4; i++) {
        const float weight                                 = x[i] <= masked_logit ? 0.0f : exp_of(x[i] - m);
        s->weight[r * attend_tile + int32_t(lane) * 4 + i] = weight;
        sum += weight;
    }
    sum = warp_sum(sum);
    warp_sync();
    if (lane == 0) {
        s->correction[r] = exp_of(before - m);
        s->l[r]          = s->l[r] * s->correction[r] + sum;
        s->m[r]          = m;
    }
}

template <int n_rows, int dim>
MIKV_DEVICE_FN void correct_sums(RowTile tile, uint32_t tid, const MIKV_SHARED FastShared<n_rows, dim> * s,
                                 MIKV_LOCAL ChannelSums<n_rows, dim> & acc) {
    MIKV_UNROLL
    for (int u = 0; u < (dim + 127) / 128; u++) {
        MIKV_UNROLL
        for (int i = 0; i < n_rows; i++) {
            const int32_t r = i / 4 * 4 + int32_t(tid % 4);
            acc.of[u][i / 4][i % 4] *= r < tile.n ? s->correction[r] : 0.0f;
        }
    }
}

template <int n_rows, int dim>
MIKV_DEVICE_FN void write_sums(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, WorkPlace at,
                               const MIKV_SHARED FastShared<n_rows, dim> * s, MIKV_LOCAL ChannelSums<n_rows, dim> & acc) {
    const int64_t part = (int64_t(tile.head) * a.n_chunks + int64_t(at.x)) * tile.all + tile.first;
    if (at.tid < uint32_t(tile.n)) {
        a.part_m[part + at.tid] = s->m[at.tid];
        a.part_l[part + at.tid] = s->l[at.tid];
    }
    MIKV_UNROLL
    for (int u = 0; u < (dim + 127) / 128; u++) {
        const int32_t of_warp = u * attend_warps + int32_t(at.tid / warp_size);
        const int32_t channel = first_channel(channels_of(of_warp, at.tid % warp_size));
        MIKV_UNROLL
        for (int i = 0; i < n_rows; i++) {
            const int32_t r = i / 4 * 4 + int32_t(at.tid % 4);
            if (a.part_acc && of_warp * 32 < a.layer.dim_v && r < tile.n) {
                a.part_acc[(part + r) * a.layer.dim_v + channel + i % 4] = acc.of[u][i / 4][i % 4];
            }
        }
    }
}

// A tile's values times its weights. way: its packed values' rows have been put where the keys' were.
template <int n_rows, int dim>
MIKV_DEVICE_FN void add_tile(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t begin, uint32_t tid,
                             MIKV_SHARED FastShared<n_rows, dim> * s, MIKV_LOCAL ChannelSums<n_rows, dim> & acc) {
    const MIKV_GLOBAL GpuHead * h = a.layer.heads + tile.head;
    const RowFormat             f = value_format(h);
    round_base_weights(f, tile, tid, s);
    block_sync();
    correct_sums(tile, tid, s, acc);
    add_values(tile_rows(s->packed, f.base_bytes()), f, false, tid, s, acc);
    add_direct(a, tile, begin, tid, s, acc);
    if (f.extra_bits() && n_listed(&s->refined) > 0) {
        block_sync();
        round_refined_weights(f, tile, tid, s);
        block_sync();
        add_values(slot_rows(h->view.v_refined, f.refinement_bytes()), f, true, tid, s, acc);
    }
}

// A block: chunk x, rows from n_rows * y on, KV head z.
template <int n_rows, int dim>
MIKV_DEVICE_FN void attend_packed(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED FastShared<n_rows, dim> * s) {
    const RowTile               tile = row_tile<n_rows>(a, at);
    const MIKV_GLOBAL GpuHead * h    = a.layer.heads + tile.head;
    const RowFormat             fk = key_format(h), fv = value_format(h);
    const int32_t               first = int32_t(at.x) * a.chunk_cells;
    const int32_t               last  = first + a.chunk_cells < a.layer.n_kv ? first + a.chunk_cells : a.layer.n_kv;
    ChannelSums<n_rows, dim>    acc;
    MIKV_UNROLL
    for (int i = 0; i < (dim + 127) / 128 * n_rows; i++) {
        acc.of[i / n_rows][i % n_rows / 4][i % 4] = 0.0f;
    }
    TileUnderWay<dim> keys, values;
    round_queries(a, tile, at.tid, s);
    fetch_tile(h->view.k_base, h->view.k_params, fk, h->view.n_cells, first, last, at.tid, keys);
    for (int32_t begin = first; begin < last; begin += attend_tile) {
        put_rows(keys, fk.base_bytes(), at.tid, s->packed);
        read_cell(a, tile, begin, last, at.tid, s);
        put_scales(keys, fk, at.tid, s);
        dot_mean(a, tile, begin, at.tid, s);
        block_sync();
        if (a.part_acc) {
            fetch_tile(h->view.v_base, h->view.v_params, fv, h->view.n_cells, begin, last, at.tid, values);
        }
        score_base(fk, at.tid, s);
        block_sync();
        score_refined(h, fk, at.tid, s);
        score_direct(a, tile, begin, at.tid, s);
        if (a.part_acc) {
            put_rows(values, fv.base_bytes(), at.tid, s->packed);
        }
        block_sync();
        for (int32_t r = int32_t(at.tid / warp_size); r < tile.n; r += attend_warps) {
            weigh_row(a, tile, r, begin, last, at.tid % warp_size, s);
        }
        if (a.part_acc) {
            put_scales(values, fv, at.tid, s);
        }
        if (begin + attend_tile < last) {
            fetch_tile(h->view.k_base, h->view.k_params, fk, h->view.n_cells, begin + attend_tile, last, at.tid, keys);
        }
        block_sync();
        if (a.part_acc) {
            add_tile(a, tile, begin, at.tid, s, acc);
            block_sync();
        }
    }
    write_sums(a, tile, at, s, acc);
}

MIKV_DEVICE_FN void attend_fast_4_block(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED FastShared<4, 128> * s) {
    attend_packed(a, at, s);
}
MIKV_DEVICE_FN void attend_fast_8_block(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED FastShared<8, 128> * s) {
    attend_packed(a, at, s);
}
MIKV_DEVICE_FN void attend_wide_4_block(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED FastShared<4, 256> * s) {
    attend_packed(a, at, s);
}

} // namespace mikv
