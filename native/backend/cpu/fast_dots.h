// Dots of packed codes with small integers: codes are unpacked so that each 32-bit lane holds four of them that meet the same four
// integers, and a lane is a sum. For keys a lane is a cell, and its four codes are neighbours in the row; for values a lane is a
// place in the row, and its four codes are those of four cells. Shifts and masks work on all lanes alike.
#pragma once

#include "backend/cpu/fast_math.h"

namespace mikv {

template <int n> struct Number { static constexpr int value = n; };

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

// The widest power of two of columns' vectors for which M rows of accumulators fit the registers.
template <class Isa, int M> constexpr int columns_for(int most) {
    int n = 1;
    while (2 * n <= most && 2 * n * M <= Isa::accumulators) {
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

template <class Isa, int group, int n> static inline typename Isa::I cells_word(const typename Isa::I * planes, int word) {
    constexpr int p = Planes<n>::top, rest = Planes<n>::rest, n_words = group * p / 32;
    const auto    bits = Isa::mask(Isa::shift(planes[word % n_words], p * (word / n_words) - rest), ((1 << p) - 1) << rest);
    if constexpr (rest > 0) {
        return Isa::either(bits, cells_word<Isa, group, rest>(planes + n_words, word));
    } else {
        return bits;
    }
}

template <class Isa, int group, int n, class Row> static inline void unpack_cells(const Row & row, uint8_t * codes) {
    typename Isa::I planes[group * n / 32];
    load_cells<Isa, group, n>(row, planes);
    for (int word = 0; word < group / 4; word++) {
        Isa::store_lanes(codes + word * Isa::width * 4, cells_word<Isa, group, n>(planes, word));
    }
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

template <class Isa, int group, int n> static inline typename Isa::I places_vector(const typename Isa::I * planes, int v) {
    constexpr int p = Planes<n>::top, rest = Planes<n>::rest;
    using Plane     = PlacePlane<Isa, group, p>;
    const auto bits = Isa::mask(Isa::shift(planes[v % Plane::n_vectors], Plane::shift * (v / Plane::n_vectors) - rest), ((1 << p) - 1) << rest);
    if constexpr (rest > 0) {
        return Isa::either(bits, places_vector<Isa, group, rest>(planes + Plane::n_vectors, v));
    } else {
        return bits;
    }
}

template <class Isa, int group, int n, class Row> static inline void unpack_places(const Row & row, uint8_t * codes) {
    typename Isa::I planes[2 * group / 8]; // enough for every n
    load_places<Isa, group, n>(row, planes);
    for (int v = 0; v < group / Isa::width; v++) {
        Isa::store_lanes(codes + v * Isa::width * 4, places_vector<Isa, group, n>(planes, v));
    }
}

// sums[i][j] = (sums or 0) + factor * sum over k < depth of codes[k][j] . words[i][k], for M rows i and N vectors of lanes j; a word
// is four int8.
struct Dots {
    const uint8_t * codes;
    int             code_step; // bytes
    const int8_t *  words;
    int64_t         word_row; // bytes
    int             depth;
    int32_t *       sums;
    int             sum_row; // values
    bool            add;
    int             factor;
};

// most: the largest code.
template <class Isa, int M, int N, int most> static inline void add_dots(const Dots & x) {
    using I            = typename Isa::I;
    constexpr int most_steps = Isa::dot_steps(most);
    for (int k = 0; k < x.depth; k += most_steps) {
        const int end = k + most_steps < x.depth ? k + most_steps : x.depth;
        I         sum[M][N];
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) {
                sum[i][j] = Isa::no_dots();
            }
        }
        for (int step = k; step < end; step++) {
            const uint8_t * codes = x.codes + step * x.code_step;
            if constexpr (N <= M) {
                I code[N];
                for (int j = 0; j < N; j++) {
                    code[j] = Isa::load_lanes(codes + j * Isa::width * 4);
                }
                for (int i = 0; i < M; i++) {
                    const I word = Isa::spread(x.words + i * x.word_row + step * 4);
                    for (int j = 0; j < N; j++) {
                        sum[i][j] = Isa::add_dots(sum[i][j], code[j], word);
                    }
                }
            } else {
                I word[M];
                for (int i = 0; i < M; i++) {
                    word[i] = Isa::spread(x.words + i * x.word_row + step * 4);
                }
                for (int j = 0; j < N; j++) {
                    const I code = Isa::load_lanes(codes + j * Isa::width * 4);
                    for (int i = 0; i < M; i++) {
                        sum[i][j] = Isa::add_dots(sum[i][j], code, word[i]);
                    }
                }
            }
        }
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) {
                int32_t * to    = x.sums + i * x.sum_row + j * Isa::width;
                const I   whole = Isa::whole_dots(sum[i][j], x.factor);
                Isa::store_lanes(to, x.add || k ? Isa::add_lanes(whole, Isa::load_lanes(to)) : whole);
            }
        }
    }
}

} // namespace mikv
