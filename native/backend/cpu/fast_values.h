// The weighted sum of values, a tile of cells and a group at a time.
//
// A value is low + (c + 1/2) * step. A code c of n bits is taken for one of 8, with zeros behind it, so that it means the same with
// and without refinement: c times range / 256. It is multiplied with weight * range / 256, and what all values of a group have in
// common, weight * (low + step / 2), is added once.
#pragma once

#include "backend/cpu/fast_rows.h"
#include "backend/cpu/fast_tile.h"
#include "backend/cpu/fast_weighted.h"

namespace mikv {

template <class Isa> struct ValueSum {
    using F                    = typename Isa::F;
    static constexpr int width = Isa::width;

    const HeadView &   head;
    const CellIndex &  index;
    const StagedRows & staged;
    int                n_rows;
    const float *      weights; // [n_rows][weight_stride]
    int64_t            weight_stride;
    float *            acc; // [n_rows][v.dim]

    float *       tail         = nullptr; // [n_rows][tile_cells]: the weights of a tile that is not whole; set by lay_out()
    float *       scaled       = nullptr; // [n_rows][tile_cells]: weights times range / 256 of one group, or
    int16_t *     words        = nullptr; //   the same, rounded; the other of the two is null
    float *       units        = nullptr; // [n_rows]: what a step of such a word is
    float *       shared       = nullptr; // [n_rows]
    float *       per_range    = nullptr; // [tile_cells]: step / range of a packed row; 0: the row is floats, or has no weight
    float *       value        = nullptr; // [v.dim]
    uint8_t *     codes        = nullptr; // [tile_cells][group, or chunk where that is larger]
    const float * tile_weights = nullptr; // [n_rows][tile_stride], of the tile at work; set by read_weights()
    int64_t       tile_stride  = 0;

    void lay_out(Scratch & scratch) {
        tail      = scratch.take(size_t(n_rows) * tile_cells);
        scaled    = scratch.take(Isa::word_products ? 0 : size_t(n_rows) * tile_cells);
        words     = reinterpret_cast<int16_t *>(scratch.take(Isa::word_products ? size_t(n_rows) * tile_cells / 2 : 0));
        units     = scratch.take(n_rows);
        shared    = scratch.take(n_rows);
        per_range = scratch.take(tile_cells);
        value     = scratch.take(head.v.dim);
        codes     = reinterpret_cast<uint8_t *>(scratch.take(tile_cells * 64 / 4));
    }

    void add(int first, int last) {
        Tile tile;
        for (tile.first = first; tile.first < last; tile.first += tile.n) {
            tile.n = tile_end(tile.first, last) - tile.first;
            if (read_weights(tile)) {
                for (int g = 0; tile.end && g < head.v.n_groups(); g++) {
                    head.v.group == 64 ? add_group<64>(tile, g) : add_group<32>(tile, g);
                }
                for (int i = 0; i < tile.n_direct; i++) {
                    add_direct(tile, tile.direct[i]);
                }
            }
        }
    }

    // False if no cell has a weight.
    bool read_weights(Tile & tile) {
        alignas(64) float top[tile_cells];
        tile_weights = weights + tile.first;
        tile_stride  = weight_stride;
        if (tile.n < tile_cells) {
            memset(tail, 0, size_t(n_rows) * tile_cells * sizeof(float));
            for (int row = 0; row < n_rows; row++) {
                memcpy(tail + row * tile_cells, tile_weights + row * weight_stride, tile.n * sizeof(float));
            }
            tile_weights = tail;
            tile_stride  = tile_cells;
        }
        const F base = Isa::set(1.0f / float(1 << head.v.bits)), zero = Isa::set(0.0f);
        for (int i = 0; i < tile_cells; i += width) {
            F largest = zero;
            for (int row = 0; row < n_rows; row++) {
                largest = Isa::max(largest, Isa::load(tile_weights + row * tile_stride + i));
            }
            Isa::store(top + i, largest);
            Isa::store(per_range + i, Isa::select(Isa::less(zero, largest), base, zero));
        }
        tile.seen =
            ~bits_below<Isa>(reinterpret_cast<const int32_t *>(top), tile_cells, 1); // a positive float is a positive integer
        if (!tile.seen) {
            return false;
        }
        sort_cells<Isa>(index, tile);
        for (int i = 0; i < tile.n_refined; i++) {
            per_range[tile.refined[i]] = 1.0f / float(1 << head.v.refined_bits);
        }
        for (int i = 0; i < tile.n_direct; i++) {
            per_range[tile.direct[i]] = 0.0f;
        }
        return true;
    }

    template <int group> void add_group(const Tile & tile, int g) {
        constexpr int row_bytes = chunks_of<Isa, group>() * Isa::chunk;
        read_codes<group>(tile, g);
        scale_weights(head.v_params + int64_t(g) * head.n_cells + tile.first, tile.n);
        for (int row = 0; row < n_rows;) {
            const int           left = n_rows - row;
            const int           some = left == 7 || left == 8 ? 4 : left < 6 ? left : 6;
            const WeightedCodes x{scaled + row * tile_cells,
                                  words + row * tile_cells,
                                  tile_cells,
                                  codes,
                                  row_bytes,
                                  tile.end,
                                  units + row,
                                  shared + row,
                                  acc + int64_t(row) * head.v.dim + g * group,
                                  head.v.dim};
            switch (some) {
            case 1:
                add_rows<group, 1>(x);
                break;
            case 2:
                add_rows<group, 2>(x);
                break;
            case 3:
                add_rows<group, 3>(x);
                break;
            case 4:
                add_rows<group, 4>(x);
                break;
            case 5:
                add_rows<group, 5>(x);
                break;
            default:
                add_rows<group, 6>(x);
                break;
            }
            row += some;
        }
    }

    template <int group, int M> static void add_rows(WeightedCodes x) {
        constexpr int N = columns_for<M>(group / width, Isa::accumulators);
        for (int d = 0; d < group; d += N * width, x.codes += N * width, x.c += N * width) {
            if constexpr (Isa::word_products) {
                add_weighted_words<Isa, M, N>(x);
            } else {
                add_weighted<Isa, M, N>(x);
            }
        }
    }

    // Codes of group g of all packed rows of the tile, refinement included, in the upper bits of a byte.
    template <int group> void read_codes(const Tile & tile, int g) {
        constexpr int     chunks = chunks_of<Isa, group>();
        const RowFormat & f      = head.v;
        const uint8_t *   base   = head.v_base + int64_t(tile.first) * f.base_bytes() + g * (group / 8) * f.bits;
        with_bits(f.bits, [&](auto bits) {
            const int row_bytes = f.base_bytes();
            uint8_t * to        = codes;
            for (int i = 0; i < tile.end; i++, base += row_bytes, to += chunks * Isa::chunk) {
                for (int j = 0; j < chunks; j++) {
                    Isa::store_bytes(to + j * Isa::chunk,
                                     Isa::raise(group_codes<Isa, group, bits.value>(base, j), 8 - bits.value));
                }
            }
        });
        if (!f.extra_bits()) {
            return;
        }
        with_bits(f.extra_bits(), [&](auto bits) {
            const uint8_t * refinement = head.v_refined + g * (group / 8) * bits.value;
            for (int i = 0; i < tile.n_refined; i++) {
                const uint8_t * from = refinement + int64_t(index.place[tile.first + tile.refined[i]]) * f.refinement_bytes();
                uint8_t *       to   = codes + tile.refined[i] * chunks * Isa::chunk;
                for (int j = 0; j < chunks; j++, to += Isa::chunk) {
                    Isa::store_bytes(
                        to, Isa::join(group_codes<Isa, group, bits.value>(from, j), 8 - f.refined_bits, Isa::load_bytes(to)));
                }
            }
        });
    }

    // weights * range / 256; shared: what all values of a group get.
    void scale_weights(const uint16_t * params, int n) {
        F       steps[tile_cells / width], lows[tile_cells / width];
        const F zero = Isa::set(0.0f), half = Isa::set(0.5f), part = Isa::set(1.0f / 256.0f);
        for (int i = 0; i < tile_cells; i += width) {
            const F factor = Isa::load(per_range + i);
            F       range = zero, low = zero;
            if (i < n) {
                read_params<Isa>(params + i, n - i, range, low);
            }
            const auto packed = Isa::less(zero, factor); // elsewhere the params may be anything
            steps[i / width]  = Isa::select(packed, Isa::mul(range, part), zero);
            lows[i / width]   = Isa::select(packed, Isa::fma(Isa::mul(range, factor), half, low), zero);
        }
        for (int row = 0; row < n_rows; row++) {
            F sum = zero, products[tile_cells / width];
            for (int i = 0; i < tile_cells; i += width) {
                const F weight      = Isa::load(tile_weights + row * tile_stride + i);
                products[i / width] = Isa::mul(weight, steps[i / width]);
                sum                 = Isa::fma(weight, lows[i / width], sum);
            }
            shared[row] = Isa::sum(sum);
            if constexpr (Isa::word_products) {
                units[row] = round_weights<Isa>(products, tile_cells / width, words + row * tile_cells);
            } else {
                for (int i = 0; i < tile_cells; i += width) {
                    Isa::store(scaled + row * tile_cells + i, products[i / width]);
                }
            }
        }
    }

    void add_direct(const Tile & tile, int i) {
        const int     cell   = tile.first + i;
        const float * floats = value;
        if (index.staged[cell] >= 0) {
            floats = staged.v + index.staged[cell] * staged.v_stride;
        } else {
            halves_to_floats<Isa>(head.v_exact + int64_t(-2 - index.place[cell]) * head.v.dim, head.v.dim, value);
        }
        for (int row = 0; row < n_rows; row++) {
            const F weight = Isa::set(tile_weights[row * tile_stride + i]);
            float * to     = acc + int64_t(row) * head.v.dim;
            for (int d = 0; d < head.v.dim; d += width) {
                Isa::store(to + d, Isa::fma(weight, Isa::load(floats + d), Isa::load(to + d)));
            }
        }
    }
};

} // namespace mikv
