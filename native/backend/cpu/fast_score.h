// score: logits of packed keys by integer dots, one tile of cells at a time, all query rows for each key that is unpacked.
//
// With q ~ scale * i (i: int8, one scale for each group), c the codes, mid the middle code, and key = low + (c + 1/2) * step:
//     q.key = step * (scale * (sum(c * i) - mid * sum(i)) + (mid + 1/2) * sum(q)) + low * sum(q)
// so what q loses by rounding is multiplied with c - mid, not with c. A refined key adds q.(finer code - its middle) * finer
// step.
#pragma once

#include "backend/cpu/fast_dots.h"
#include "backend/cpu/fast_rows.h"
#include "backend/cpu/fast_tile.h"

namespace mikv {

// q as one int8: logits off by 1e-2 rms where they are of order 1. With another int8 for what is left: 4e-5.
constexpr int query_planes = 2;

struct GroupTerms {
    float scale;        // of the second plane; of the first 254 times that
    float sum;          // of q
    float middle;       // (mid + 1/2) * sum(q) - mid * sum(q rounded)
    float finer_middle; // - finer mid * sum(q rounded)
};

// The query rows, rounded.
struct RoundedQuery {
    int8_t *     words; // [n_groups][n_rows][query_planes][group]
    GroupTerms * terms; // [n_groups][n_rows]
};

// Rounds one group of one row to words [query_planes][group]; returns the sum of the rounded values.
template <class Isa> static float round_group(const float * q, int group, int8_t * words, float & scale) {
    using F      = typename Isa::F;
    const F most = Isa::set(127.0f), parts = Isa::set(254.0f);
    F       top = Isa::set(0.0f), sum = top;
    for (int i = 0; i < group; i += Isa::width) {
        top = Isa::max(top, Isa::magnitude(Isa::load(q + i)));
    }
    scale            = Isa::largest(top) / (127.0f * 254.0f);
    const F per_step = Isa::set(scale > 1e-30f ? 1.0f / scale : 0.0f);
    for (int i = 0; i < group; i += Isa::width) {
        const F steps = Isa::mul(Isa::load(q + i), per_step);
        const F first = Isa::round(Isa::mul(steps, Isa::set(1.0f / 254.0f)));
        const F high  = Isa::max(Isa::min(first, most), Isa::sub(Isa::set(0.0f), most));
        const F low   = Isa::round(Isa::sub(steps, Isa::mul(high, parts)));
        Isa::store_truncated(words + i, high);
        Isa::store_truncated(words + group + i, low);
        sum = Isa::add(sum, Isa::fma(high, parts, low));
    }
    return scale * Isa::sum(sum);
}

template <class Isa> struct Scorer {
    using F                    = typename Isa::F;
    static constexpr int width = Isa::width;

    const HeadView &   head;
    const CellIndex &  index;
    const StagedRows & staged;
    const QueryRows &  rows;
    RoundedQuery       query     = {};      // this and what follows: set by lay_out()
    float *            logits    = nullptr; // [n_rows][tile_cells], of the tile at work
    float *            mean_dots = nullptr; // [n_rows], with the mean of block `block`
    float *            finer     = nullptr; // [n_rows][tile_cells], of the refined cells
    float *            nothing   = nullptr; // [n_rows, but at least tile_cells] zeros
    float *            key       = nullptr; // [k.dim]
    uint8_t *          codes     = nullptr; // [tile_cells][group]
    int                block     = -1;

    void lay_out(Scratch & scratch) {
        const size_t n = rows.n_rows, groups = n * head.k.n_groups();
        query.words = reinterpret_cast<int8_t *>(scratch.take(n * query_planes * head.k.dim / 4));
        query.terms = reinterpret_cast<GroupTerms *>(scratch.take(groups * sizeof(GroupTerms) / 4));
        logits      = scratch.take(n * tile_cells);
        mean_dots   = scratch.take(n);
        finer       = scratch.take(n * tile_cells);
        nothing     = scratch.take(n + tile_cells);
        key         = scratch.take(head.k.dim);
        codes       = reinterpret_cast<uint8_t *>(scratch.take(size_t(tile_cells) * head.k.group / 4));
    }

    void begin() {
        const RowFormat & f         = head.k;
        const float       mid       = float((1 << f.bits) - 1) * 0.5f;
        const float       finer_mid = float((1 << f.extra_bits()) - 1) * 0.5f;
        memset(nothing, 0, (size_t(rows.n_rows) + tile_cells) * sizeof(float));
        for (int g = 0; g < f.n_groups(); g++) {
            for (int row = 0; row < rows.n_rows; row++) {
                const size_t  at      = size_t(g) * rows.n_rows + row;
                const float * q       = rows.q + int64_t(row) * f.dim + g * f.group;
                GroupTerms &  terms   = query.terms[at];
                const float   rounded = round_group<Isa>(q, f.group, query.words + at * query_planes * f.group, terms.scale);
                F             sum     = Isa::set(0.0f);
                for (int i = 0; i < f.group; i += width) {
                    sum = Isa::add(sum, Isa::load(q + i));
                }
                terms.sum          = Isa::sum(sum);
                terms.middle       = (mid + 0.5f) * terms.sum - mid * rounded;
                terms.finer_middle = -finer_mid * rounded;
            }
        }
    }

    void read_mean(int cell) {
        if (cell / block_cells != block) {
            block = cell / block_cells;
            halves_to_floats<Isa>(head.k_mean + int64_t(block) * head.k.dim, head.k.dim, key);
            for (int row = 0; row < rows.n_rows; row++) {
                mean_dots[row] = dot_floats<Isa>(rows.q + int64_t(row) * head.k.dim, key, head.k.dim);
            }
        }
    }

    // Some cells of a tile, in the order in which they are worked on.
    struct Cells {
        int             n;
        const uint8_t * rows[tile_cells]; // repeated to a whole vector
        float           step[tile_cells]; // of the group at work
        const float *   low;              // [tile_cells]
    };

    static void repeat_last(Cells & cells) {
        for (int i = cells.n; i % width; i++) {
            cells.rows[i] = cells.rows[cells.n - 1];
        }
    }

    // to[row][cell] = (to or, for group 0, begin[row]) + low * sum(q) + step * (q . codes + offset), for all rows.
    template <int group, int bits>
    void add_group(int g, const Cells & cells, float GroupTerms::* offset, const float * begin, float * to) {
        constexpr int code_row = group * width; // bytes of a vector of cells
        const int     n        = (cells.n + width - 1) / width;
        for (int v = 0; v < n; v++) {
            const uint8_t * const * at = cells.rows + v * width;
            unpack_cells<Isa, group, bits>([&](int i) { return at[i] + g * (group / 8) * bits; }, codes + v * code_row);
        }
        const int8_t *     words = query.words + int64_t(g) * rows.n_rows * query_planes * group;
        const GroupTerms * terms = query.terms + int64_t(g) * rows.n_rows;
        with_rows<Isa::dot_rows>(rows.n_rows, [&](auto count, int first) {
            constexpr int       M = decltype(count)::value, most = (1 << bits) - 1;
            alignas(64) int32_t sums[M][tile_cells];
            Dots x{codes, code_row, words + int64_t(first) * query_planes * group, group, group / 4, sums[0], tile_cells};
            int  v = 0;
            for (; v + 2 <= n; v += 2, x.codes += 2 * code_row, x.sums += 2 * width) {
                dots<Isa, M, 2, most>(x);
            }
            if (v < n) {
                dots<Isa, M, 1, most>(x);
            }
            for (int i = 0; i < M; i++) {
                const GroupTerms & t     = terms[first + i];
                const F            scale = Isa::set(t.scale), shift = Isa::set(t.*offset), sum = Isa::set(t.sum),
                        start = Isa::set(begin[first + i]);
                float * logit = to + (first + i) * tile_cells;
                for (int c = 0; c < n * width; c += width) {
                    const F dot  = Isa::fma(Isa::floats(Isa::load_lanes(sums[i] + c)), scale, shift);
                    const F base = Isa::fma(Isa::load(cells.low + c), sum, g ? Isa::load(logit + c) : start);
                    Isa::store(logit + c, Isa::fma(Isa::load(cells.step + c), dot, base));
                }
            }
        });
    }

    // Base logits of the tile; of cells past the last that is seen: anything.
    template <int group, int bits> void score_base(const Tile & tile) {
        const RowFormat & f = head.k;
        alignas(64) float lows[tile_cells];
        Cells             cells;
        cells.n   = tile.end;
        cells.low = lows;
        for (int i = 0; i < tile.end; i++) {
            cells.rows[i] = head.k_base + int64_t(tile.first + i) * f.base_bytes();
        }
        repeat_last(cells);
        for (int g = 0; g < f.dim / group; g++) {
            const uint16_t * params = head.k_params + int64_t(g) * head.n_cells + tile.first;
            for (int i = 0; i < tile.end; i += width) {
                F range, low;
                read_params<Isa>(params + i, tile.n - i, range, low);
                Isa::store(cells.step + i, Isa::mul(range, Isa::set(1.0f / float(1 << bits))));
                Isa::store(lows + i, low);
            }
            add_group<group, bits>(g, cells, &GroupTerms::middle, mean_dots, logits);
        }
    }

    // Adds to the refined cells what their refinement says.
    template <int group, int bits> void score_refined(const Tile & tile) {
        const RowFormat &    f = head.k;
        alignas(64) uint16_t params[tile_cells];
        Cells                cells;
        cells.n   = tile.n_refined;
        cells.low = nothing;
        for (int i = 0; i < cells.n; i++) {
            cells.rows[i] = head.k_refined + int64_t(index.place[tile.first + tile.refined[i]]) * f.refinement_bytes();
        }
        repeat_last(cells);
        for (int g = 0; g < f.dim / group; g++) {
            for (int i = 0; i < cells.n; i++) {
                params[i] = head.k_params[int64_t(g) * head.n_cells + tile.first + tile.refined[i]];
            }
            for (int i = 0; i < cells.n; i += width) {
                F range, low;
                read_params<Isa>(params + i, cells.n - i, range, low);
                Isa::store(cells.step + i, Isa::mul(range, Isa::set(1.0f / float(1 << f.refined_bits))));
            }
            add_group<group, bits>(g, cells, &GroupTerms::finer_middle, nothing, finer);
        }
        for (int row = 0; row < rows.n_rows; row++) {
            float *       to   = logits + row * tile_cells;
            const float * more = finer + row * tile_cells;
            for (int i = 0; i < cells.n; i++) {
                to[tile.refined[i]] += more[i];
            }
        }
    }

    void score_direct(int cell, int at) {
        const float * floats = key;
        if (index.staged[cell] >= 0) {
            floats = staged.k + index.staged[cell] * staged.k_stride;
        } else {
            halves_to_floats<Isa>(head.k_exact + int64_t(-2 - index.place[cell]) * head.k.dim, head.k.dim, key);
        }
        for (int row = 0; row < rows.n_rows; row++) {
            logits[row * tile_cells + at] = dot_floats<Isa>(rows.q + int64_t(row) * head.k.dim, floats, head.k.dim);
        }
    }

    // Keys whose leading groups have bits of their own, one after the other by way of floats.
    void score_loaded(const Tile & tile) {
        for (int i = 0; i < tile.end; i++) {
            const int     cell  = tile.first + i;
            const int32_t place = index.place[cell];
            if (!(tile.seen >> i & 1) || index.staged[cell] >= 0 || place < place_base) {
                continue;
            }
            decode_row<Isa>(head.k, head.k_params + cell, head.n_cells, head.k_base + int64_t(cell) * head.k.base_bytes(),
                            place >= 0 ? head.k_refined + int64_t(place) * head.k.refinement_bytes() : nullptr, key);
            for (int row = 0; row < rows.n_rows; row++) {
                logits[row * tile_cells + i] =
                    mean_dots[row] + dot_floats<Isa>(rows.q + int64_t(row) * head.k.dim, key, head.k.dim);
            }
        }
    }

    template <int group> void score_tile(const Tile & tile) {
        if (tile.end && head.k.n_lead) {
            read_mean(tile.first);
            score_loaded(tile);
        } else if (tile.end) {
            read_mean(tile.first);
            with_bits(head.k.bits, [&](auto bits) { score_base<group, bits.value>(tile); });
        }
        if (tile.n_refined && head.k.extra_bits() && !head.k.n_lead) {
            with_bits(head.k.extra_bits(), [&](auto bits) { score_refined<group, bits.value>(tile); });
        }
        for (int i = 0; i < tile.n_direct; i++) {
            score_direct(tile.first + tile.direct[i], tile.direct[i]);
        }
    }

    // Soft cap, ALiBi and mask of the tile's logits of one row, written to x [tile_cells]; returns the largest.
    float finish(const Tile & tile, int row, float * x) const {
        alignas(64) uint16_t bits[tile_cells];
        const uint16_t *     mask   = rows.mask + (row % rows.n_tokens) * rows.mask_stride + tile.first;
        const float *        from   = logits + row * tile_cells;
        const F              masked = Isa::set(masked_logit), slope = Isa::set(rows.slope[row / rows.n_tokens]);
        F                    largest = masked;
        if (tile.n < tile_cells) {
            memcpy(bits, mask, tile.n * sizeof(uint16_t));
            for (int i = tile.n; i < tile_cells; i++) {
                bits[i] = 0xFC00u;
            }
            mask = bits;
        }
        for (int i = 0; i < tile_cells; i += width) {
            F logit = capped<Isa>(Isa::load(from + i), rows.softcap);
            if (!tile.clear) {
                logit = masked_by<Isa>(logit, Isa::halves(mask + i), slope);
            }
            Isa::store(x + i, logit);
            largest = Isa::max(logit, largest);
        }
        return Isa::largest(largest);
    }

    // Logits of the cells [first, last) at their columns; largest (may be null): of each row.
    void score(int first, int last, float * to, int64_t stride, float * largest) {
        for (int row = 0; largest && row < rows.n_rows; row++) {
            largest[row] = masked_logit;
        }
        Tile tile;
        for (int at = first; at < last; at += tile.n) {
            const bool seen = read_tile<Isa>(index, rows, at, tile_end(at, last), tile);
            if (seen && head.k.group == 64) {
                score_tile<64>(tile);
            } else if (seen) {
                score_tile<32>(tile);
            }
            for (int row = 0; row < rows.n_rows; row++) {
                const float top = write(tile, seen, row, to + row * stride + at);
                if (largest && top > largest[row]) {
                    largest[row] = top;
                }
            }
        }
    }

    float write(const Tile & tile, bool seen, int row, float * to) const {
        if (seen && tile.n == tile_cells) {
            return finish(tile, row, to);
        }
        float       rest[tile_cells];
        const float top = seen ? finish(tile, row, rest) : masked_logit;
        for (int i = 0; i < tile.n; i++) {
            to[i] = seen ? rest[i] : masked_logit;
        }
        return top;
    }
};

template <class Isa>
static void score(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows, int first,
                  int last, float * logits, int64_t logit_stride) {
    Scorer<Isa> scorer{head, index, staged, rows};
    reserve(scorer);
    scorer.begin();
    scorer.score(first, last, logits, logit_stride, nullptr);
}

} // namespace mikv
