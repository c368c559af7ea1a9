// The weighted sum of packed values by integer dots, a tile of cells and a group at a time.
//
// With u = weight * step of a cell, u ~ scale * i (i: 14 bits, one scale for each tile, group and row), c the codes, mid the middle
// code, and value = low + (c + 1/2) * step:
//     sum(weight * value) = sum(weight * (low + (mid + 1/2) * step)) + scale * (sum(c * i) - mid * sum(i))
// A refined value adds the same again for its finer code: scale * (sum(c * i) - mid * sum(i)) with the finer step.
#pragma once

#include "backend/cpu/fast_dots.h"
#include "backend/cpu/fast_tile.h"

namespace mikv {

template <class Isa> struct ValueSum {
    using F                    = typename Isa::F;
    static constexpr int width = Isa::width;
    static constexpr int most  = 128 * 128 - 1; // of i, which is held as two int8

    const HeadView &   head;
    const CellIndex &  index;
    const StagedRows & staged;
    int                n_rows;
    const float *      weights; // [n_rows][weight_stride]
    int64_t            weight_stride;
    float *            acc; // [n_rows][v.dim]

    float *       tail         = nullptr; // [n_rows][tile_cells]: the weights of a tile that is not whole; set by lay_out()
    float *       scaled       = nullptr; // [n_rows][tile_cells]: u, of the cells of one pass
    float *       shared       = nullptr; // [n_rows]: what is added to all values of a group
    float *       packed       = nullptr; // [tile_cells]: 1 for a packed row with a weight, else 0
    float *       value        = nullptr; // [v.dim]
    int8_t *      words        = nullptr; // [n_rows][2][tile_cells]: i, its upper and its lower half
    uint8_t *     codes        = nullptr; // [tile_cells / 4][group lanes]
    int32_t *     sums         = nullptr; // [n_rows][group]
    const float * tile_weights = nullptr; // [n_rows][tile_stride], of the tile at work; set by read_weights()
    int64_t       tile_stride  = 0;

    void lay_out(Scratch & scratch) {
        tail   = scratch.take(size_t(n_rows) * tile_cells);
        scaled = scratch.take(size_t(n_rows) * tile_cells);
        shared = scratch.take(n_rows);
        packed = scratch.take(tile_cells);
        value  = scratch.take(head.v.dim);
        words  = reinterpret_cast<int8_t *>(scratch.take(size_t(n_rows) * 2 * tile_cells / 4));
        codes  = reinterpret_cast<uint8_t *>(scratch.take(size_t(tile_cells) / 4 * head.v.group));
        sums   = reinterpret_cast<int32_t *>(scratch.take(size_t(n_rows) * head.v.group));
    }

    void add(int first, int last) {
        Tile tile;
        for (tile.first = first; tile.first < last; tile.first += tile.n) {
            tile.n = tile_end(tile.first, last) - tile.first;
            if (read_weights(tile)) {
                for (int g = 0; g < head.v.n_groups(); g++) {
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
        const F zero = Isa::set(0.0f);
        for (int i = 0; i < tile_cells; i += width) {
            F largest = zero;
            for (int row = 0; row < n_rows; row++) {
                largest = Isa::max(largest, Isa::load(tile_weights + row * tile_stride + i));
            }
            Isa::store(top + i, largest);
            Isa::store(packed + i, Isa::select(Isa::less(zero, largest), Isa::set(1.0f), zero));
        }
        tile.seen = ~bits_below<Isa>(reinterpret_cast<const int32_t *>(top), tile_cells, 1); // a positive float is a positive integer
        if (!tile.seen) {
            return false;
        }
        sort_cells<Isa>(index, tile);
        for (int i = 0; i < tile.n_direct; i++) {
            packed[tile.direct[i]] = 0.0f;
        }
        return true;
    }

    template <int group> void add_group(const Tile & tile, int g) {
        const RowFormat & f = head.v;
        scale_weights(head.v_params + int64_t(g) * head.n_cells + tile.first, tile.n);
        with_bits(f.bits, [&](auto bits) {
            const int       bytes = f.base_bytes();
            const uint8_t * base  = head.v_base + int64_t(tile.first) * bytes + g * (group / 8) * f.bits;
            add_codes<group, bits.value>([&](int i) { return base + i * bytes; }, tile.n, g);
        });
        if (f.extra_bits() && tile.n_refined) {
            scale_refined_weights(tile, head.v_params + int64_t(g) * head.n_cells + tile.first);
            with_bits(f.extra_bits(), [&](auto bits) {
                const int32_t * place      = index.place + tile.first;
                const uint8_t * refinement = head.v_refined + g * (group / 8) * f.extra_bits();
                add_codes<group, bits.value>([&](int i) { return refinement + int64_t(place[tile.refined[i]]) * f.refinement_bytes(); },
                                             tile.n_refined, g);
            });
        }
    }

    // scaled = weight * step; shared = the sums of weight * (low + (mid + 1/2) * step).
    void scale_weights(const uint32_t * params, int n) {
        F       steps[tile_cells / width], centres[tile_cells / width];
        const F zero = Isa::set(0.0f), per_range = Isa::set(1.0f / float(1 << head.v.bits)), half = Isa::set(0.5f);
        for (int i = 0; i < tile_cells; i += width) {
            F range = zero, low = zero;
            if (i < n) {
                read_params<Isa>(params + i, n - i, range, low);
            }
            const auto some    = Isa::less(zero, Isa::load(packed + i)); // elsewhere the params may be anything
            steps[i / width]   = Isa::select(some, Isa::mul(range, per_range), zero);
            centres[i / width] = Isa::select(some, Isa::fma(range, half, low), zero); // (mid + 1/2) * step is half the range
        }
        for (int row = 0; row < n_rows; row++) {
            F sum = zero;
            for (int i = 0; i < tile_cells; i += width) {
                const F weight = Isa::load(tile_weights + row * tile_stride + i);
                Isa::store(scaled + row * tile_cells + i, Isa::mul(weight, steps[i / width]));
                sum = Isa::fma(weight, centres[i / width], sum);
            }
            shared[row] = Isa::sum(sum);
        }
    }

    // The same for the refined cells alone, in the order of their list, with nothing in common.
    void scale_refined_weights(const Tile & tile, const uint32_t * params) {
        alignas(64) float    steps[tile_cells];
        alignas(64) uint32_t listed[tile_cells] = {0};
        const int            n                  = tile.n_refined;
        for (int i = 0; i < n; i++) {
            listed[i] = params[tile.refined[i]];
        }
        for (int i = 0; i < tile_cells; i += width) {
            F range, low;
            Isa::params(listed + i, range, low);
            Isa::store(steps + i, Isa::mul(range, Isa::set(1.0f / float(1 << head.v.refined_bits))));
        }
        for (int row = 0; row < n_rows; row++) {
            const float * weight = tile_weights + row * tile_stride;
            float *       to     = scaled + row * tile_cells;
            for (int i = 0; i < n; i++) {
                to[i] = weight[tile.refined[i]] * steps[i];
            }
            for (int i = n; i < tile_cells; i++) {
                to[i] = 0.0f;
            }
            shared[row] = 0.0f;
        }
    }

    // Adds the codes of the cells 0 .. n, weighted by `scaled`, and `shared`, to group g of acc. Cell i's group lies at row(i).
    template <int group, int bits, class Row> void add_codes(const Row & row, int n, int g) {
        constexpr float mid = float((1 << bits) - 1) * 0.5f;
        const int       n_quads = (n + 7) / 8 * 2; // an even number
        for (int quad = 0; quad < n_quads; quad++) {
            unpack_places<Isa, group, bits>([&](int i) { return row(4 * quad + i < n ? 4 * quad + i : n - 1); }, codes + quad * group * 4);
        }
        with_rows(n_rows, [&](auto count, int first) {
            constexpr int M = decltype(count)::value, N = columns_for<Isa, M>(group / width);
            float         scales[M];
            for (int i = 0; i < M; i++) {
                scales[i] = round_weights(first + i, n_quads * 4, mid);
            }
            for (int d = 0; d < group; d += N * width) {
                Dots dots{codes + d * 4, group * 4, width * 4, words + first * 2 * tile_cells, 2 * tile_cells, n_quads, sums + d, group, false, 128};
                add_dots<Isa, M, N, (1 << bits) - 1, 2>(dots);
                dots.words += tile_cells;
                dots.add    = true;
                dots.factor = 1;
                add_dots<Isa, M, N, (1 << bits) - 1, 2>(dots);
            }
            for (int i = 0; i < M; i++) {
                const F scale = Isa::set(scales[i]), offset = Isa::set(shared[first + i]);
                float * to    = acc + int64_t(first + i) * head.v.dim + g * group;
                for (int d = 0; d < group; d += width) {
                    const F sum = Isa::fma(Isa::floats(Isa::load_lanes(sums + i * group + d)), scale, offset);
                    Isa::store(to + d, Isa::add(Isa::load(to + d), sum));
                }
            }
        });
    }

    // Rounds the scaled weights of a row to words, takes mid * their sum from shared; returns the scale.
    float round_weights(int row, int n, float mid) {
        const float * from = scaled + row * tile_cells;
        int8_t *      to   = words + row * 2 * tile_cells;
        F             top = Isa::set(0.0f), sum = top;
        for (int i = 0; i < n; i += width) {
            top = Isa::max(top, Isa::load(from + i));
        }
        const float largest = Isa::largest(top);
        const float scale   = largest / float(most);
        const F     inverse = Isa::set(largest > 1e-30f ? float(most) / largest : 0.0f), half = Isa::set(128.0f);
        for (int i = 0; i < n; i += width) {
            const F whole = Isa::round(Isa::mul(Isa::load(from + i), inverse));
            const F upper = Isa::floor(Isa::mul(whole, Isa::set(1.0f / 128.0f)));
            Isa::store_truncated(to + i, upper);
            Isa::store_truncated(to + tile_cells + i, Isa::sub(whole, Isa::mul(upper, half)));
            sum = Isa::add(sum, whole);
        }
        shared[row] -= mid * scale * Isa::sum(sum);
        return scale;
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
