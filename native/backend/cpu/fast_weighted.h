// Sums of codes with weights, a block of the result in registers at a time: as floats, or as words of 16 bits, of which a vector
// multiplies twice as many.
#pragma once

#include "backend/cpu/fast_math.h"

namespace mikv {

// c[i][d] += sum over cells t of weights[i][t] * codes[t][d] + shared[i], for M rows i and N vectors of columns d; codes are
// bytes.
struct WeightedCodes {
    const float *   weights; // the weights are these, or
    const int16_t * words;   //   words[i][t] * units[i]
    int64_t         weight_row;
    const uint8_t * codes;
    int             code_row;
    int             n_cells;
    const float *   units;
    const float *   shared;
    float *         c;
    int64_t         c_row;
};

template <class Isa, int M, int N> static inline void add_weighted(WeightedCodes x) {
    using F         = typename Isa::F;
    constexpr int W = Isa::width;
    F             c[M][N];
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            c[i][j] = Isa::add(Isa::load(x.c + i * x.c_row + j * W), Isa::set(x.shared[i]));
        }
    }
    for (int t = 0; t < x.n_cells; t++, x.weights++, x.codes += x.code_row) {
        // the fewer of the two kinds of factors stay in registers
        if constexpr (N <= M) {
            F column[N];
            for (int j = 0; j < N; j++) {
                column[j] = Isa::load_codes(x.codes + j * W);
            }
            for (int i = 0; i < M; i++) {
                const F weight = Isa::set(x.weights[i * x.weight_row]);
                for (int j = 0; j < N; j++) {
                    c[i][j] = Isa::fma(weight, column[j], c[i][j]);
                }
            }
        } else {
            F weight[M];
            for (int i = 0; i < M; i++) {
                weight[i] = Isa::set(x.weights[i * x.weight_row]);
            }
            for (int j = 0; j < N; j++) {
                const F column = Isa::load_codes(x.codes + j * W);
                for (int i = 0; i < M; i++) {
                    c[i][j] = Isa::fma(weight[i], column, c[i][j]);
                }
            }
        }
    }
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            Isa::store(x.c + i * x.c_row + j * W, c[i][j]);
        }
    }
}

// Weights of n vectors of cells, none below 0, to words: the largest is 32767 of what this returns. A sum of a tile's 64 words with codes of
// 8 bits fits 32. What is lost is half a unit of each weight: 2^-16 of the tile's largest (bound.h of the tests says what that makes).
template <class Isa> static inline float round_weights(const typename Isa::F * weights, int n, int16_t * words) {
    using F = typename Isa::F;
    F top   = weights[0];
    for (int i = 1; i < n; i++) {
        top = Isa::max(top, weights[i]);
    }
    const float largest = Isa::largest(top);
    const F     per_unit =
        Isa::set(largest > 1e-30f ? 32767.0f / largest : 0.0f); // what is smaller is nothing beside the largest weight, 1
    for (int i = 0; i < n; i++) {
        Isa::store_words(words + i * Isa::width, Isa::mul(weights[i], per_unit));
    }
    return largest / 32767.0f;
}

// Two cells at a time: a lane holds a value's codes of both. Where n_cells is odd there is one cell more, of which the words are 0.
template <class Isa, int M, int N> static inline void add_weighted_words(WeightedCodes x) {
    using F         = typename Isa::F;
    using I         = typename Isa::I;
    constexpr int W = Isa::width;
    I             sum[M][N];
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            sum[i][j] = Isa::no_dots();
        }
    }
    for (int t = 0; t < x.n_cells; t += 2, x.words += 2, x.codes += 2 * x.code_row) {
        if constexpr (N <= M) {
            I column[N];
            for (int j = 0; j < N; j++) {
                column[j] = Isa::pair_codes(x.codes + j * W, x.codes + x.code_row + j * W);
            }
            for (int i = 0; i < M; i++) {
                const I two = Isa::spread(x.words + i * x.weight_row);
                for (int j = 0; j < N; j++) {
                    sum[i][j] = Isa::add_products(sum[i][j], column[j], two);
                }
            }
        } else {
            I two[M];
            for (int i = 0; i < M; i++) {
                two[i] = Isa::spread(x.words + i * x.weight_row);
            }
            for (int j = 0; j < N; j++) {
                const I column = Isa::pair_codes(x.codes + j * W, x.codes + x.code_row + j * W);
                for (int i = 0; i < M; i++) {
                    sum[i][j] = Isa::add_products(sum[i][j], column, two[i]);
                }
            }
        }
    }
    for (int i = 0; i < M; i++) {
        const F unit = Isa::set(x.units[i]), shared = Isa::set(x.shared[i]);
        for (int j = 0; j < N; j++) {
            float * c = x.c + i * x.c_row + j * W;
            Isa::store(c, Isa::add(Isa::load(c), Isa::fma(Isa::floats(sum[i][j]), unit, shared)));
        }
    }
}

} // namespace mikv
