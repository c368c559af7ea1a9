// attend: the rows of one KV head over one chunk of cells. In tiles of 128 cells: scores, a cell a thread, all rows from one read of the key;
// the running softmax, a row a warp; values, a channel a thread, all rows from one read of the value.
#pragma once

#include "kernel/gpu/rows.h"
#include "kernel/logit.h"

namespace mikv {

constexpr int32_t value_spans = largest_dim / attend_threads; // channels of a thread

// The rows of a block: which query each is, and what it sees.
struct RowTile {
    int32_t head;  // number of the KV head
    int32_t first; // row
    int32_t n;     // rows
    int32_t all;   // rows of the head
};

template <int n_rows> MIKV_DEVICE_FN RowTile row_tile(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at) {
    RowTile tile;
    tile.head  = int32_t(at.z);
    tile.first = int32_t(at.y) * n_rows;
    tile.all   = a.layer.group * a.n_queries;
    tile.n     = tile.all - tile.first < n_rows ? tile.all - tile.first : n_rows;
    return tile;
}

MIKV_DEVICE_FN int32_t token_of(MIKV_ARGUMENTS AttendArgs & a, int32_t row) {
    const int32_t query = row % a.n_queries;
    return a.tokens ? a.tokens[query] : query;
}

MIKV_DEVICE_FN uint16_t mask_of(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t row, int32_t cell) {
    const int32_t stream = tile.head / a.layer.n_head_kv;
    return a.mask ? a.mask[stream * a.mask_stream + token_of(a, tile.first + row) * a.mask_token + cell] : uint16_t(0);
}

template <int n_rows>
MIKV_DEVICE_FN void load_queries(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, uint32_t tid,
                                 MIKV_SHARED AttendShared<n_rows> * s) {
    const int32_t dim = a.layer.dim_k;
    for (int32_t i = int32_t(tid); i < n_rows * dim; i += attend_threads) {
        const int32_t r = i / dim, row = tile.first + r;
        float         x = 0.0f;
        if (r < tile.n) {
            const int64_t query_head = int64_t(tile.head) * a.layer.group + row / a.n_queries;
            x                        = a.q[(query_head * a.layer.n_tokens + token_of(a, row)) * dim + i % dim];
        }
        s->q[i] = x;
    }
    if (tid < uint32_t(n_rows)) {
        s->m[tid] = masked_logit;
        s->l[tid] = 0.0f;
    }
}

template <int n_rows> struct RowSums {
    float of[n_rows];
};

template <int n_rows>
MIKV_DEVICE_FN void add_products(MIKV_LOCAL RowSums<n_rows> & dot, const MIKV_SHARED AttendShared<n_rows> * s, int32_t dim,
                                 int32_t i, float x) {
    MIKV_UNROLL
    for (int r = 0; r < n_rows; r++) {
        dot.of[r] += s->q[r * dim + i] * x;
    }
}

// Products of all rows with the key of a cell, wherever it is.
template <int n_rows>
MIKV_DEVICE_FN void dot_key(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t cell, int32_t token, int32_t place,
                            const MIKV_SHARED AttendShared<n_rows> * s, MIKV_LOCAL RowSums<n_rows> & dot) {
    const MIKV_GLOBAL GpuHead * h = a.layer.heads + tile.head;
    const RowFormat             f = key_format(h);
    if (token >= 0) {
        const MIKV_GLOBAL float * key = a.staged_k + staged_row(a.layer, tile.head, token) * f.dim;
        for (int32_t i = 0; i < f.dim; i++) {
            add_products(dot, s, f.dim, i, key[i]);
        }
        return;
    }
    if (place < gpu_place_base) {
        for (int32_t i = 0; i < f.dim; i++) {
            add_products(dot, s, f.dim, i, key_number(h, f, cell, place, i));
        }
        return;
    }
    const MIKV_GLOBAL uint16_t * mean = h->view.k_mean + int64_t(cell / block_cells) * f.dim;
    const PackedRow              row  = packed_key(h, f, cell, place);
    for (int32_t g = 0; g < f.n_groups(); g++) {
        const Scale scale = scale_of(f, row, g);
        for (int32_t i = 0; i < f.group; i++) {
            const int32_t at = g * f.group + i;
            add_products(dot, s, f.dim, at, read_back(scale, code_of(f, row, g, i)) + half_to_float(mean[at]));
        }
    }
}

// Where the logits of a cell are kept: rows that hold or want a slot, and exact ones. Or -1.
MIKV_DEVICE_FN int32_t kept_at(const MIKV_GLOBAL GpuHead * h, int32_t token, int32_t place) {
    return token >= 0               ? h->view.n_slots + h->view.n_exact + token
           : place >= 0             ? place
           : place < gpu_place_base ? h->view.n_slots + (-2 - place)
                                    : -1;
}

template <int n_rows>
MIKV_DEVICE_FN void score_cell(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t cell, int32_t last, uint32_t tid,
                               MIKV_SHARED AttendShared<n_rows> * s) {
    RowSums<n_rows> dot, logit;
    bool            seen = false;
    for (int r = 0; r < n_rows; r++) {
        dot.of[r]   = 0.0f;
        logit.of[r] = masked_logit;
        seen        = seen || (r < tile.n && cell < last && mask_of(a, tile, r, cell) != hidden);
    }
    const int32_t token = cell < last ? staged_in(a.layer, tile.head, cell) : -1;
    const int32_t place = cell < last ? a.layer.place[int64_t(tile.head) * a.layer.n_kv + cell] : gpu_place_base;
    if (seen) { // never read a row that nobody sees: it may hold anything
        dot_key(a, tile, cell, token, place, s, dot);
        for (int r = 0; r < tile.n; r++) {
            const int32_t query_head = tile.head % a.layer.n_head_kv * a.layer.group + (tile.first + r) / a.n_queries;
            logit.of[r] = logit_of(dot.of[r], mask_of(a, tile, r, cell), a.softcap, a.slope ? a.slope[query_head] : 1.0f);
        }
    }
    for (int r = 0; r < n_rows; r++) {
        s->weight[r * attend_tile + int32_t(tid)] = logit.of[r];
    }
    s->seen[tid]       = seen ? 1 : 0;
    const int32_t kept = a.kept && cell < last ? kept_at(a.layer.heads + tile.head, token, place) : -1;
    for (int r = 0; r < tile.n && kept >= 0; r++) {
        a.kept[(int64_t(tile.head) * tile.all + tile.first + r) * a.n_kept + kept] = logit.of[r];
    }
}

// The tile's logits become weights, for the largest logit so far.
template <int n_rows> MIKV_DEVICE_FN void weigh_rows(RowTile tile, uint32_t tid, MIKV_SHARED AttendShared<n_rows> * s) {
    const int32_t lane = int32_t(tid % warp_size);
    for (int32_t r = int32_t(tid / warp_size); r < tile.n; r += attend_threads / int32_t(warp_size)) {
        MIKV_SHARED float * weight = s->weight + r * attend_tile;
        const float         before = s->m[r];
        float               m      = before;
        for (int32_t i = lane; i < attend_tile; i += int32_t(warp_size)) {
            m = weight[i] > m ? weight[i] : m;
        }
        m         = warp_max(m);
        float sum = 0.0f;
        for (int32_t i = lane; i < attend_tile; i += int32_t(warp_size)) {
            weight[i] = weight[i] <= masked_logit ? 0.0f : exp_of(weight[i] - m);
            sum += weight[i];
        }
        sum = warp_sum(sum);
        warp_sync();
        if (lane == 0) {
            s->correction[r] = exp_of(before - m);
            s->l[r]          = s->l[r] * s->correction[r] + sum;
            s->m[r]          = m;
        }
    }
}

template <int n_rows> struct ValueSums {
    float of[value_spans][n_rows];
};

// One cell's value, times the rows' weights.
template <int n_rows>
MIKV_DEVICE_FN void add_value(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t cell, int32_t in_tile, uint32_t tid,
                              const MIKV_SHARED AttendShared<n_rows> * s, MIKV_LOCAL ValueSums<n_rows> & acc) {
    const MIKV_GLOBAL GpuHead * h     = a.layer.heads + tile.head;
    const RowFormat             f     = value_format(h);
    const int32_t               token = staged_in(a.layer, tile.head, cell);
    const int32_t               place = a.layer.place[int64_t(tile.head) * a.layer.n_kv + cell];
    MIKV_UNROLL
    for (int span = 0; span < value_spans; span++) {
        const int32_t i = span * attend_threads + int32_t(tid);
        if (i < f.dim) {
            const float x =
                token >= 0 ? a.staged_v[staged_row(a.layer, tile.head, token) * f.dim + i] : value_number(h, f, cell, place, i);
            MIKV_UNROLL
            for (int r = 0; r < n_rows; r++) {
                acc.of[span][r] += s->weight[r * attend_tile + in_tile] * x;
            }
        }
    }
}

template <int n_rows>
MIKV_DEVICE_FN void write_part(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, WorkPlace at,
                               const MIKV_SHARED AttendShared<n_rows> * s, MIKV_LOCAL ValueSums<n_rows> & acc) {
    const int64_t part = (int64_t(tile.head) * a.n_chunks + int64_t(at.x)) * tile.all + tile.first;
    if (at.tid < uint32_t(tile.n)) {
        a.part_m[part + at.tid] = s->m[at.tid];
        a.part_l[part + at.tid] = s->l[at.tid];
    }
    MIKV_UNROLL
    for (int span = 0; span < value_spans; span++) {
        const int32_t i = span * attend_threads + int32_t(at.tid);
        MIKV_UNROLL
        for (int r = 0; r < n_rows; r++) {
            if (a.part_acc && i < a.layer.dim_v && r < tile.n) {
                a.part_acc[(part + r) * a.layer.dim_v + i] = acc.of[span][r];
            }
        }
    }
}

// A block: chunk x, rows from n_rows * y on, KV head z.
template <int n_rows>
MIKV_DEVICE_FN void attend_rows(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED AttendShared<n_rows> * s) {
    const RowTile     tile  = row_tile<n_rows>(a, at);
    const int32_t     first = int32_t(at.x) * a.chunk_cells;
    const int32_t     last  = first + a.chunk_cells < a.layer.n_kv ? first + a.chunk_cells : a.layer.n_kv;
    ValueSums<n_rows> acc;
    MIKV_UNROLL
    for (int i = 0; i < value_spans * n_rows; i++) {
        acc.of[i / n_rows][i % n_rows] = 0.0f;
    }
    load_queries(a, tile, at.tid, s);
    block_sync();
    for (int32_t begin = first; begin < last; begin += attend_tile) {
        score_cell(a, tile, begin + int32_t(at.tid), last, at.tid, s);
        block_sync();
        weigh_rows(tile, at.tid, s);
        block_sync();
        MIKV_UNROLL
        for (int i = 0; i < value_spans * n_rows; i++) {
            acc.of[i / n_rows][i % n_rows] *= i % n_rows < tile.n ? s->correction[i % n_rows] : 0.0f;
        }
        for (int32_t i = 0; a.part_acc && i < attend_tile && begin + i < last; i++) {
            if (s->seen[i]) {
                add_value(a, tile, begin + i, i, at.tid, s, acc);
            }
        }
        block_sync();
    }
    write_part(a, tile, at, s, acc);
}

MIKV_DEVICE_FN void attend_1_block(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED AttendShared<1> * s) {
    attend_rows<1>(a, at, s);
}
MIKV_DEVICE_FN void attend_2_block(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED AttendShared<2> * s) {
    attend_rows<2>(a, at, s);
}
MIKV_DEVICE_FN void attend_4_block(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED AttendShared<4> * s) {
    attend_rows<4>(a, at, s);
}
MIKV_DEVICE_FN void attend_8_block(MIKV_ARGUMENTS AttendArgs & a, WorkPlace at, MIKV_SHARED AttendShared<8> * s) {
    attend_rows<8>(a, at, s);
}

} // namespace mikv
