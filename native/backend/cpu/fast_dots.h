// Dots of packed codes with small integers: codes are unpacked so that each 32-bit lane holds four of them that meet the same four
// integers, and a lane is a sum. For keys a lane is a cell, and its four codes are neighbours in the row; for values a lane is a
// place in the row, and its four codes are those of four cells. Shifts and masks work on all lanes alike.
#pragma once

#include <utility>

#include "backend/cpu/fast_math.h"

namespace mikv {

template <int n> struct Number { static constexpr int value = n; };

template <class Work, int... i> static inline void each_of(std::integer_sequence<int, i...>, const Work & work) { (work(Number<i>{}), ...); }

// work(Number<i>) for i = 0 .. n - 1, without a loop.
template <int n, class Work> static inline void each_below(const Work & work) { each_of(std::make_integer_sequence<int, n>{}, work); }

// Calls work(Number<n>), so that what it does is compiled for every number of bits.
template <class Work> static inline void with_bits(int n, const Work & work) {
    switch (n) {
        case 1: return work(Number<1>{});
        case 2: return work(Number<2>{});
        case 3: return work(Number<3>{});
        case 4: return work(Number<4>{});
        case 5: return work(Number<5>{});
        default: return work(Number<6>{});
    }
}

// Calls work(Number<m>, row) for blocks of m = 1 .. 4 rows.
template <class Work> static inline void with_rows(int n_rows, const Work & work) {
    for (int row = 0; row < n_rows;) {
        const int left = n_rows - row;
        if (left == 4 || left > 6) {
            work(Number<4>{}, row);
            row += 4;
        } else if (left > 2) {
            work(Number<3>{}, row);
            row += 3;
        } else if (left == 2) {
            work(Number<2>{}, row);
            row += 2;
        } else {
            work(Number<1>{}, row);
            row += 1;
        }
    }
}

// The widest power of two of columns' vectors for which M rows of sums fit the registers.
template <class Isa, int M> constexpr int columns_for(int most) {
    int n = 1;
    while (2 * n <= most && 2 * n * M <= Isa::dot_sums) {
        n *= 2;
    }
    return n;
}

// A string of n-bit numbers: its planes, one after the other, and then what each of its vectors of codes is made of.
template <int n> struct Planes {
    static constexpr int top  = n >= 4 ? 4 : n >= 2 ? 2 : 1; // bits of the first plane
    static constexpr int rest = n - top;
};

// Keys: group g's codes of `width` cells: codes [group / 4][width lanes]. Cell i's lie at row(i).
template <class Isa, int group, int n, class Row> static inline void load_cells(const Row & row, typename Isa::I * planes) {
    constexpr int n_words = group * Planes<n>::top / 32;
    Isa::template load_cells<n_words>(row, planes);
    if constexpr (Planes<n>::rest > 0) {
        load_cells<Isa, group, Planes<n>::rest>([&](int i) { return row(i) + n_words * 4; }, planes + n_words);
    }
}

template <class Isa, int group, int n, int word> static inline typename Isa::I cells_word(const typename Isa::I * planes) {
    constexpr int p = Planes<n>::top, rest = Planes<n>::rest, n_words = group * p / 32;
    const auto    bits = Isa::mask(Isa::template shift<p *(word / n_words) - rest>(planes[word % n_words]), ((1 << p) - 1) << rest);
    if constexpr (rest > 0) {
        return Isa::either(bits, cells_word<Isa, group, rest, word>(planes + n_words));
    } else {
        return bits;
    }
}

template <class Isa, int group, int n, class Row> static inline void unpack_cells(const Row & row, uint8_t * codes) {
    typename Isa::I planes[group * n / 32];
    load_cells<Isa, group, n>(row, planes);
    each_below<group / 4>([&](auto word) {
        Isa::store_lanes(codes + word.value * Isa::width * 4, cells_word<Isa, group, n, word.value>(planes));
    });
}

// Values: a group's codes of four cells: codes [group lanes]. A plane of fewer bytes than lanes is repeated, shifted, to fill them.
template <class Isa, int group, int p> struct PlacePlane {
    static constexpr int n_bytes   = group * p / 8;
    static constexpr int n_vectors = n_bytes > Isa::width ? n_bytes / Isa::width : 1;
    static constexpr int shift     = n_bytes < Isa::width ? p * (Isa::width / n_bytes) : p;
};

template <class Isa, int group, int n, class Row> static inline void load_places(const Row & row, typename Isa::I * planes) {
    using Plane = PlacePlane<Isa, group, Planes<n>::top>;
    Isa::template load_places<Plane::n_bytes, Planes<n>::top>(row, planes);
    if constexpr (Planes<n>::rest > 0) {
        load_places<Isa, group, Planes<n>::rest>([&](int i) { return row(i) + Plane::n_bytes; }, planes + Plane::n_vectors);
    }
}

template <class Isa, int group, int n, int v> static inline typename Isa::I places_vector(const typename Isa::I * planes) {
    constexpr int p = Planes<n>::top, rest = Planes<n>::rest;
    using Plane     = PlacePlane<Isa, group, p>;
    const auto bits = Isa::mask(Isa::template shift<Plane::shift *(v / Plane::n_vectors) - rest>(planes[v % Plane::n_vectors]), ((1 << p) - 1) << rest);
    if constexpr (rest > 0) {
        return Isa::either(bits, places_vector<Isa, group, rest, v>(planes + Plane::n_vectors));
    } else {
        return bits;
    }
}

template <class Isa, int group, int n, class Row> static inline void unpack_places(const Row & row, uint8_t * codes) {
    typename Isa::I planes[2 * group / 8]; // enough for every n
    load_places<Isa, group, n>(row, planes);
    each_below<group / Isa::width>([&](auto v) {
        Isa::store_lanes(codes + v.value * Isa::width * 4, places_vector<Isa, group, n, v.value>(planes));
    });
}

// sums[i][j] = (sums or 0) + factor * sum over k < depth of codes[j][k] . words[i][k], for M rows i and N vectors of lanes j; a word
// is four int8.
struct Dots {
    const uint8_t * codes;
    int             code_step; // bytes from k to k + 1
    int             code_row;  // bytes from j to j + 1
    const int8_t *  words;
    int64_t         word_row; // bytes
    int             depth;
    int32_t *       sums;
    int             sum_row; // values
    bool            add;
    int             factor;
};

// Steps k .. k + S: codes in registers first, then row by row.
template <class Isa, int M, int N, int S> static inline void step_dots(const Dots & x, int k, typename Isa::I sum[M][N]) {
    typename Isa::I code[S][N];
    for (int s = 0; s < S; s++) {
        for (int j = 0; j < N; j++) {
            code[s][j] = Isa::load_lanes(x.codes + (k + s) * x.code_step + j * x.code_row);
        }
    }
    for (int i = 0; i < M; i++) {
        for (int s = 0; s < S; s++) {
            const auto word = Isa::spread(x.words + i * x.word_row + (k + s) * 4);
            for (int j = 0; j < N; j++) {
                sum[i][j] = Isa::add_dots(sum[i][j], code[s][j], word);
            }
        }
    }
}

// The same for one step of more columns than rows: words in registers first.
template <class Isa, int M, int N> static inline void step_wide_dots(const Dots & x, int k, typename Isa::I sum[M][N]) {
    typename Isa::I word[M];
    for (int i = 0; i < M; i++) {
        word[i] = Isa::spread(x.words + i * x.word_row + k * 4);
    }
    for (int j = 0; j < N; j++) {
        const auto code = Isa::load_lanes(x.codes + k * x.code_step + j * x.code_row);
        for (int i = 0; i < M; i++) {
            sum[i][j] = Isa::add_dots(sum[i][j], code, word[i]);
        }
    }
}

// most: the largest code. Depth must be a multiple of `unroll`.
template <class Isa, int M, int N, int most, int unroll> static inline void add_dots(Dots x) {
    using I              = typename Isa::I;
    constexpr int steps  = Isa::dot_steps(most); // that fit a sum
    constexpr int S      = steps < unroll ? 2 : unroll, stretch = steps / S * S;
    int           k      = 0;
    do {
        const int end = k + stretch < x.depth ? k + stretch : x.depth;
        I         sum[M][N];
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) {
                sum[i][j] = Isa::no_dots();
            }
        }
        for (int step = k; step < end; step += S) {
            if constexpr (N > M && S == 1) {
                step_wide_dots<Isa, M, N>(x, step, sum);
            } else {
                step_dots<Isa, M, N, S>(x, step, sum);
            }
        }
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) {
                int32_t * to    = x.sums + i * x.sum_row + j * Isa::width;
                const I   whole = Isa::whole_dots(sum[i][j], x.factor);
                Isa::store_lanes(to, x.add || k ? Isa::add_lanes(whole, Isa::load_lanes(to)) : whole);
            }
        }
        k = end;
    } while (k < x.depth);
}

} // namespace mikv
