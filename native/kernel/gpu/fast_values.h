// The weighted sum of a tile's packed values: products of bytes, whose 16 rows are channels, whose 8 columns are the two bytes of four query
// rows' weights, and which add up cells.
//
// A value is low + (c + 1/2) * step: weight * range is rounded to 15 bits of its largest in the tile, for each row and group, and multiplied
// with the codes; weight * (low + step / 2) is added up apart. What a refinement adds is added by a second product.
#pragma once

#include "kernel/gpu/fast_tile.h"

namespace mikv {

// --- weights --------------------------------------------------------------------------------------------------------------------

// Those of a lane's four seats, for one row and group.
struct FourNumbers {
    float of[4];
};

template <int n_rows, int dim>
MIKV_DEVICE_FN void round_weights(FourNumbers x, float parts, int32_t r, int32_t g, uint32_t lane,
                                  MIKV_SHARED FastShared<n_rows, dim> * s) {
    float top = 0.0f;
    MIKV_UNROLL
    for (int i = 0; i < 4; i++) {
        top = x.of[i] > top ? x.of[i] : top;
    }
    const float step = step_for(warp_max(top)), per = per_step(step);
    uint32_t    first = 0, second = 0;
    MIKV_UNROLL
    for (int i = 0; i < 4; i++) {
        const TwoBytes two = two_bytes(x.of[i] * per);
        first |= uint32_t(two.first & 255) << (8 * i);
        second |= uint32_t(two.second & 255) << (8 * i);
    }
    MIKV_SHARED uint32_t * words = s->words + (g * n_rows + r) * 64 + lane;
    words[0]                     = first;
    words[32]                    = second;
    if (lane == 0) {
        s->unit[g * n_rows + r] = step * parts;
    }
}

// Of all packed cells, as the base has them; and what all values of a group get.
template <int n_rows, int dim>
MIKV_DEVICE_FN void round_base_weights(RowFormat f, RowTile tile, uint32_t tid, MIKV_SHARED FastShared<n_rows, dim> * s) {
    const uint32_t lane = tid % warp_size;
    const float    part = 1.0f / float(1 << f.bits), finer = 1.0f / float(1 << f.refined_bits);
    for (int32_t i = int32_t(tid / warp_size); i < tile.n * f.n_groups(); i += attend_warps) {
        const int32_t r = i / f.n_groups(), g = i % f.n_groups();
        FourNumbers   x;
        float         offset = 0.0f;
        MIKV_UNROLL
        for (int k = 0; k < 4; k++) {
            const int32_t seat = int32_t(lane) * 4 + k, place = s->place[seat];
            const float   w     = place >= gpu_place_base ? s->weight[r * attend_tile + seat] : 0.0f;
            const float   range = s->range[g * attend_tile + seat];
            x.of[k]             = w * range;
            offset += w * (s->low[g * attend_tile + seat] + 0.5f * (place >= 0 ? finer : part) * range);
        }
        round_weights(x, part, r, g, lane, s);
        offset = warp_sum(offset);
        if (lane == 0) {
            s->offset[g * n_rows + r] = offset;
        }
    }
}

// Of the cells that have a slot, in the order of their list.
template <int n_rows, int dim>
MIKV_DEVICE_FN void round_refined_weights(RowFormat f, RowTile tile, uint32_t tid, MIKV_SHARED FastShared<n_rows, dim> * s) {
    const uint32_t lane = tid % warp_size;
    const int32_t  n    = n_listed(&s->refined);
    for (int32_t i = int32_t(tid / warp_size); i < tile.n * f.n_groups(); i += attend_warps) {
        const int32_t r = i / f.n_groups(), g = i % f.n_groups();
        FourNumbers   x;
        MIKV_UNROLL
        for (int k = 0; k < 4; k++) {
            const int32_t item = seat_of(int32_t(lane) * 4 + k);
            const int32_t seat = item < n ? seat_of(listed(&s->refined, item)) : 0;
            x.of[k]            = item < n ? s->weight[r * attend_tile + seat] * s->range[g * attend_tile + seat] : 0.0f;
        }
        round_weights(x, 1.0f / float(1 << f.refined_bits), r, g, lane, s);
    }
}

// --- values ---------------------------------------------------------------------------------------------------------------------

// Each warp has every fourth part of 32 channels; a lane in it the four channels of code word lane / 4, and rows lane % 4 and every fourth after.
template <int n_rows, int dim> struct ChannelSums {
    float of[(dim + 127) / 128][n_rows / 4][4];
};

struct ChannelPlace {
    int32_t group, k, t; // code word 4 * k + t of the group
};
MIKV_DEVICE_FN ChannelPlace channels_of(int32_t part, uint32_t lane) {
    return ChannelPlace{part / 2, part % 2 * 2 + int32_t(lane / 16), int32_t(lane / 4 % 4)};
}
MIKV_DEVICE_FN int32_t first_channel(ChannelPlace at) { return at.group * fast_group + (4 * at.k + at.t) * 4; }

// Bytes of four cells' code words, of which each has four channels, to words of a channel, of which each has four cells.
MIKV_DEVICE_FN void turn_words(MIKV_LOCAL uint32_t * w) {
    const uint32_t a = pick_bytes(w[0], w[1], 0x5140u), b = pick_bytes(w[2], w[3], 0x5140u);
    const uint32_t c = pick_bytes(w[0], w[1], 0x7362u), d = pick_bytes(w[2], w[3], 0x7362u);
    w[0] = pick_bytes(a, b, 0x5410u);
    w[1] = pick_bytes(a, b, 0x7632u);
    w[2] = pick_bytes(c, d, 0x5410u);
    w[3] = pick_bytes(c, d, 0x7632u);
}

// Adds the codes of 32 rows, from number `first` on, times their weights: sums [n_rows / 4][2][4] as products have them, the second for the
// channels 2 and 3 of a lane. listed: rows are the slots of listed cells.
template <int n_rows, int dim, class Rows>
MIKV_DEVICE_FN void add_step(Rows rows, bool from_list, int32_t first, int32_t n_bits, ChannelPlace at, uint32_t lane,
                             const MIKV_SHARED FastShared<n_rows, dim> * s, MIKV_LOCAL int32_t * sums) {
    const int32_t n = from_list ? n_listed(&s->refined) : attend_tile;
    uint32_t      w[2][4];
    MIKV_UNROLL
    for (int i = 0; i < 8; i++) {
        const int32_t item = first + 4 * i + int32_t(lane % 4);
        const int32_t row  = from_list ? s->place[seat_of(listed(&s->refined, item < n ? item : 0))] : item;
        w[i / 4][i % 4]    = read_one(rows, row, at.group * 2 * n_bits, n_bits, at.k, at.t);
    }
    turn_words(w[0]);
    turn_words(w[1]);
    MIKV_UNROLL
    for (int set = 0; set < n_rows / 4; set++) {
        const MIKV_SHARED uint32_t * words =
            s->words + (at.group * n_rows + set * 4) * 64 + int32_t(lane / 4) * 32 + first / 4 + int32_t(lane % 4);
        const uint32_t two[2] = {words[0], words[4]};
        MIKV_UNROLL
        for (int pair = 0; pair < 2; pair++) {
            const uint32_t codes[4] = {w[0][2 * pair], w[0][2 * pair + 1], w[1][2 * pair], w[1][2 * pair + 1]};
            add_byte_products(lane, sums + (set * 2 + pair) * 4, codes, two);
        }
    }
}

template <int n_rows, int dim, class Rows>
MIKV_DEVICE_FN void add_values(Rows rows, RowFormat f, bool refined, uint32_t tid,
                               const MIKV_SHARED FastShared<n_rows, dim> * s, MIKV_LOCAL ChannelSums<n_rows, dim> & acc) {
    const uint32_t lane = tid % warp_size;
    const int32_t  n    = refined ? n_listed(&s->refined) : attend_tile;
    MIKV_UNROLL
    for (int u = 0; u < (dim + 127) / 128; u++) {
        const int32_t part = u * attend_warps + int32_t(tid / warp_size);
        if (part * 32 < f.dim) {
            const ChannelPlace at               = channels_of(part, lane);
            int32_t            sums[n_rows * 2] = {};
            for (int32_t first = 0; first < n; first += 32) {
                add_step(rows, refined, first, refined ? f.extra_bits() : f.bits, at, lane, s, sums);
            }
            MIKV_UNROLL
            for (int i = 0; i < n_rows; i++) {
                const int32_t r = at.group * n_rows + i / 4 * 4 + int32_t(lane % 4), c = i / 4 * 8 + i % 4 * 2;
                acc.of[u][i / 4][i % 4] += s->unit[r] * float(254 * sums[c] + sums[c + 1]) + (refined ? 0.0f : s->offset[r]);
            }
        }
    }
}

// Values that are not packed.
template <int n_rows, int dim>
MIKV_DEVICE_FN void add_direct(MIKV_ARGUMENTS AttendArgs & a, RowTile tile, int32_t begin, uint32_t tid,
                               const MIKV_SHARED FastShared<n_rows, dim> * s, MIKV_LOCAL ChannelSums<n_rows, dim> & acc) {
    const uint32_t lane = tid % warp_size;
    const int32_t  n    = n_listed(&s->direct);
    for (int32_t item = 0; item < n; item++) {
        const int32_t   in_tile = listed(&s->direct, item);
        const DirectRow row     = direct_row(a, tile, begin + in_tile, true);
        MIKV_UNROLL
        for (int u = 0; u < (dim + 127) / 128; u++) {
            const int32_t part = u * attend_warps + int32_t(tid / warp_size);
            MIKV_UNROLL
            for (int i = 0; i < n_rows; i++) {
                const int32_t r = i / 4 * 4 + int32_t(lane % 4);
                if (part * 32 < a.layer.dim_v && r < tile.n) {
                    const float x = direct_number(row, first_channel(channels_of(part, lane)) + i % 4);
                    acc.of[u][i / 4][i % 4] += s->weight[r * attend_tile + seat_of(in_tile)] * x;
                }
            }
        }
    }
}

} // namespace mikv
