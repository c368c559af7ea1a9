// attend for many rows (prefill): tiles of keys and values are unpacked once and multiplied with all rows, softmax as we go.
//
// Everything is transposed, so that a vector holds query rows: logits [cells][rows] = K [cells][dim] * Q^T [dim][rows], softmax
// down the columns, and sums [dim][rows] += V^T [dim][cells] * weights [cells][rows]. No key or value is ever transposed. The
// rows are cut into blocks of a few vectors.
#pragma once

#include "backend/cpu/fast_multiply.h"
#include "backend/cpu/fast_rows.h"
#include "backend/cpu/fast_tile.h"

namespace mikv {

template <class Isa> struct ManyRows {
    using F                         = typename Isa::F;
    static constexpr int width      = Isa::width;
    static constexpr int gemm_rows  = Isa::gemm_rows;
    static constexpr int n_vectors  = Isa::accumulators / gemm_rows;
    static constexpr int block_rows = n_vectors * width;

    const HeadView &   head;
    const CellIndex &  index;
    const StagedRows & staged;
    const QueryRows &  rows;
    int                n_blocks = 0;       // this and what follows: set by lay_out()
    float *            q        = nullptr; // [n_blocks][k.dim][block_rows]
    float *            acc      = nullptr; // [n_blocks][v.dim][block_rows]
    float *            m        = nullptr; // [n_blocks][block_rows]
    float *            l        = nullptr; // [n_blocks][block_rows]
    float *            slope    = nullptr; // [n_blocks][block_rows]
    float *            mask     = nullptr; // [tile_cells][n_blocks * block_rows]
    float *            keys     = nullptr; // [tile_cells][row_size(k.dim)]
    float *            values   = nullptr; // [tile_cells][row_size(v.dim)]
    float *            logits   = nullptr; // [tile_cells][block_rows]
    float *            mean     = nullptr; // [k.dim]

    // Rows of a tile that lay a power of two apart would share few sets of the cache.
    static int row_size(int dim) { return dim + 16; }

    void lay_out(Scratch & scratch) {
        n_blocks          = (rows.n_rows + block_rows - 1) / block_rows;
        const size_t wide = size_t(n_blocks) * block_rows;
        q                 = scratch.take(wide * head.k.dim);
        acc               = scratch.take(wide * head.v.dim);
        m                 = scratch.take(wide);
        l                 = scratch.take(wide);
        slope             = scratch.take(wide);
        mask              = scratch.take(wide * tile_cells);
        keys              = scratch.take(size_t(tile_cells) * row_size(head.k.dim));
        values            = scratch.take(size_t(tile_cells) * row_size(head.v.dim));
        logits            = scratch.take(size_t(tile_cells) * block_rows);
        mean              = scratch.take(head.k.dim);
    }

    void begin() {
        const int wide = n_blocks * block_rows;
        memset(acc, 0, size_t(wide) * head.v.dim * sizeof(float));
        for (int row = 0; row < wide; row++) {
            const bool    real = row < rows.n_rows;
            const float * from = rows.q + int64_t(row) * head.k.dim;
            float *       to   = q + size_t(row / block_rows) * block_rows * head.k.dim + row % block_rows;
            m[row]             = masked_logit;
            l[row]             = 0.0f;
            slope[row]         = real ? rows.slope[row / rows.n_tokens] : 0.0f;
            for (int d = 0; d < head.k.dim; d++) {
                to[d * block_rows] = real ? from[d] : 0.0f;
            }
        }
    }

    void add(int first, int last) {
        Tile tile;
        for (int at = first; at < last; at += tile.n) {
            if (!read_tile<Isa>(index, rows, at, tile_end(at, last), tile)) {
                continue;
            }
            read_rows(tile);
            if (!tile.clear) {
                read_mask(tile);
            }
            for (int block = 0; block < n_blocks; block++) {
                add_block(tile, block);
            }
        }
    }

    // Keys and values of the tile as floats; zeros for a cell that nobody sees.
    void read_rows(const Tile & tile) {
        const int k_dim = head.k.dim, v_dim = head.v.dim;
        if (tile.end) {
            halves_to_floats<Isa>(head.k_mean + int64_t(tile.first / block_cells) * k_dim, k_dim, mean);
        }
        for (int i = 0; i < tile.n; i++) {
            const int     cell  = tile.first + i;
            const int32_t place = index.place[cell], row = index.staged[cell];
            float *       k = keys + i * row_size(k_dim);
            float *       v = values + i * row_size(v_dim);
            if (!(tile.seen >> i & 1)) {
                memset(k, 0, k_dim * sizeof(float));
                memset(v, 0, v_dim * sizeof(float));
            } else if (row >= 0) {
                memcpy(k, staged.k + row * staged.k_stride, k_dim * sizeof(float));
                memcpy(v, staged.v + row * staged.v_stride, v_dim * sizeof(float));
            } else if (place < place_base) {
                halves_to_floats<Isa>(head.k_exact + int64_t(-2 - place) * k_dim, k_dim, k);
                halves_to_floats<Isa>(head.v_exact + int64_t(-2 - place) * v_dim, v_dim, v);
            } else {
                decode_row<Isa>(head.k, head.k_params + cell, head.n_cells, head.k_base + int64_t(cell) * head.k.base_bytes(),
                                place >= 0 ? head.k_refined + int64_t(place) * head.k.refinement_bytes() : nullptr, k);
                decode_row<Isa>(head.v, head.v_params + cell, head.n_cells, head.v_base + int64_t(cell) * head.v.base_bytes(),
                                place >= 0 ? head.v_refined + int64_t(place) * head.v.refinement_bytes() : nullptr, v);
                for (int d = 0; d < k_dim; d += width) {
                    Isa::store(k + d, Isa::add(Isa::load(k + d), Isa::load(mean + d)));
                }
            }
        }
    }

    // The mask as floats, cell by cell: transposed once for the tokens, then repeated for the heads.
    void read_mask(const Tile & tile) {
        const int wide = n_blocks * block_rows, n_tokens = rows.n_tokens;
        for (int t = 0; t < n_tokens; t++) {
            alignas(64) uint16_t bits[tile_cells] = {0};
            alignas(64) float    floats[tile_cells];
            memcpy(bits, rows.mask + t * rows.mask_stride + tile.first, tile.n * sizeof(uint16_t));
            halves_to_floats<Isa>(bits, tile_cells, floats);
            for (int i = 0; i < tile.n; i++) {
                mask[i * wide + t] = floats[i];
            }
        }
        for (int i = 0; i < tile.n; i++) {
            float * x = mask + i * wide;
            for (int row = n_tokens; row < rows.n_rows; row += n_tokens) {
                memcpy(x + row, x, n_tokens * sizeof(float));
            }
            for (int row = rows.n_rows; row < wide; row++) {
                x[row] = 0.0f;
            }
        }
    }

    void add_block(const Tile & tile, int block) {
        const int k_dim = head.k.dim, v_dim = head.v.dim;
        multiply(
            {keys, row_size(k_dim), 1, q + size_t(block) * k_dim * block_rows, block_rows, k_dim, logits, block_rows, false},
            tile.n);
        for (int j = 0; j < n_vectors; j++) {
            finish(tile, block, j);
        }
        multiply({values, 1, row_size(v_dim), logits, block_rows, tile.n, acc + size_t(block) * v_dim * block_rows, block_rows,
                  true},
                 v_dim);
    }

    // Any number of rows of c. Multiples of 32 end without single rows: 8 = 4 + 4, not 6 + 1 + 1.
    static void multiply(Multiply x, int n) {
        constexpr int M = gemm_rows;
        while (n > 0) {
            int done = 1;
            if (n >= M && n != M + 2) {
                multiply_block<Isa, M, n_vectors>(x);
                done = M;
            } else if (n >= 4) {
                multiply_block<Isa, 4, n_vectors>(x);
                done = 4;
            } else {
                multiply_block<Isa, 1, n_vectors>(x);
            }
            n -= done;
            x.a += done * x.a_row;
            x.c += done * x.c_row;
        }
    }

    // Dots to logits to weights for vector j of a block, and the sums so far to the new maximum.
    void finish(const Tile & tile, int block, int j) {
        const int     at     = block * block_rows + j * width;
        float *       x      = logits + j * width;
        const float * hidden = mask + at;
        const F       slopes = Isa::load(slope + at), old = Isa::load(m + at);
        F             top = old;
        for (int i = 0; i < tile.n; i++) {
            F logit = Isa::load(x + i * block_rows);
            if (!tile.clear || rows.softcap > 0.0f) {
                logit = capped<Isa>(logit, rows.softcap);
                logit = tile.clear ? logit : masked_by<Isa>(logit, Isa::load(hidden + i * n_blocks * block_rows), slopes);
                Isa::store(x + i * block_rows, logit);
            }
            top = Isa::max(logit, top);
        }
        F sum = Isa::set(0.0f);
        for (int i = 0; i < tile.n; i++) {
            const F weight = weight_of<Isa>(Isa::load(x + i * block_rows), top);
            Isa::store(x + i * block_rows, weight);
            sum = Isa::add(sum, weight);
        }
        if (Isa::any(Isa::less(old, top))) {
            rescale(block, j, exp_of<Isa>(Isa::sub(old, top)));
            Isa::store(m + at, top);
        }
        Isa::store(l + at, Isa::add(Isa::load(l + at), sum));
    }

    void rescale(int block, int j, F factor) {
        float * sums  = acc + size_t(block) * head.v.dim * block_rows + j * width;
        float * total = l + block * block_rows + j * width;
        Isa::store(total, Isa::mul(Isa::load(total), factor));
        for (int d = 0; d < head.v.dim; d++) {
            Isa::store(sums + d * block_rows, Isa::mul(Isa::load(sums + d * block_rows), factor));
        }
    }

    void write(const Partial & out) const {
        for (int row = 0; row < rows.n_rows; row++) {
            const float * from = acc + size_t(row / block_rows) * block_rows * head.v.dim + row % block_rows;
            out.m[row]         = m[row];
            out.l[row]         = l[row];
            for (int d = 0; d < head.v.dim; d++) {
                out.acc[int64_t(row) * head.v.dim + d] = from[d * block_rows];
            }
        }
    }
};

template <class Isa>
static void attend_many(const HeadView & head, const CellIndex & index, const StagedRows & staged, const QueryRows & rows,
                        int first, int last, const Partial & out) {
    ManyRows<Isa> many{head, index, staged, rows};
    reserve(many);
    many.begin();
    many.add(first, last);
    many.write(out);
}

} // namespace mikv
