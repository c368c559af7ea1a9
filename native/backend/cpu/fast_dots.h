// Dots of packed keys with small integers. Codes are unpacked so that each 32-bit lane of a vector is a cell and holds four
// neighbours of its row, which meet the same four integers: a lane is a sum, nothing is ever added across lanes, and shifts and
// masks that unpack are the same for all of them.
#pragma once

#include "backend/cpu/fast_math.h"

namespace mikv {

// Calls work(Number<m>, row) for blocks of m = 1 .. most rows, most being 3 or 4.
template <int most, class Work> static inline void with_rows(int n_rows, const Work & work) {
    for (int row = 0; row < n_rows;) {
        const int left = n_rows - row;
        const int some = left == 4 || left > 6 ? most : left > 2 ? 3 : left;
        if (some == 4) {
            work(Number<most>{}, row);
        } else if (left == 4 || left == 2) { // 4 = 2 + 2
            work(Number<2>{}, row);
        } else if (some == 3) {
            work(Number<3>{}, row);
        } else {
            work(Number<1>{}, row);
        }
        row += left == 4 && most == 3 ? 2 : some;
    }
}

// A string of n-bit numbers: its planes, one after the other, and then what each of its vectors of codes is made of.
template <int n> struct Planes {
    static constexpr int top  = n >= 4 ? 4 : n >= 2 ? 2 : 1; // bits of the first plane
    static constexpr int rest = n - top;
};

template <class Isa, int group, int n, class Row> static inline void load_cells(const Row & row, typename Isa::I * planes) {
    constexpr int n_words = group * Planes<n>::top / 32;
    Isa::template load_cells<n_words>(row, planes);
    if constexpr (Planes<n>::rest > 0) {
        load_cells<Isa, group, Planes<n>::rest>([&](int i) { return row(i) + n_words * 4; }, planes + n_words);
    }
}

template <class Isa, int group, int n, int word> static inline typename Isa::I cells_word(const typename Isa::I * planes) {
    constexpr int p = Planes<n>::top, rest = Planes<n>::rest, n_words = group * p / 32;
    const auto    bits =
        Isa::mask(Isa::template shift<p *(word / n_words) - rest>(planes[word % n_words]), ((1 << p) - 1) << rest);
    if constexpr (rest > 0) {
        return Isa::either(bits, cells_word<Isa, group, rest, word>(planes + n_words));
    } else {
        return bits;
    }
}

// A group's codes of `width` cells: codes [group / 4][width lanes]. Cell i's packed group lies at row(i).
template <class Isa, int group, int n, class Row> static inline void unpack_cells(const Row & row, uint8_t * codes) {
    typename Isa::I planes[group * n / 32];
    load_cells<Isa, group, n>(row, planes);
    each_below<group / 4>([&](auto word) {
        Isa::store_lanes(codes + word.value * Isa::width * 4, cells_word<Isa, group, n, word.value>(planes));
    });
}

// sums[i][j] = sum over k < depth of codes[j][k] . (254 * words[i][0][k] + words[i][1][k]), for M rows i and N vectors of cells j; a word is
// four int8.
struct Dots {
    const uint8_t * codes;
    int             code_row; // bytes from j to j + 1
    const int8_t *  words;
    int             word_plane; // bytes from a row's first plane to its second, and on to the next row
    int             depth;
    int32_t *       sums;
    int             sum_row; // values
};

// most: the largest code.
template <class Isa, int M, int N, int most> static inline void dots(Dots x) {
    using I             = typename Isa::I;
    constexpr int steps = Isa::dot_steps(most); // that a sum can take
    for (int k = 0; k < x.depth; k += steps) {
        const int end = k + steps < x.depth ? k + steps : x.depth;
        I         high[M][N], low[M][N];
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) {
                high[i][j] = low[i][j] = Isa::no_dots();
            }
        }
        for (int step = k; step < end; step++) {
            I code[N];
            for (int j = 0; j < N; j++) {
                code[j] = Isa::load_lanes(x.codes + step * Isa::width * 4 + j * x.code_row);
            }
            for (int i = 0; i < M; i++) {
                const int8_t * words = x.words + 2 * i * x.word_plane + step * 4;
                const I        first = Isa::spread(words);
                for (int j = 0; j < N; j++) {
                    high[i][j] = Isa::add_dots(high[i][j], code[j], first);
                }
                const I second = Isa::spread(words + x.word_plane);
                for (int j = 0; j < N; j++) {
                    low[i][j] = Isa::add_dots(low[i][j], code[j], second);
                }
            }
        }
        for (int i = 0; i < M; i++) {
            for (int j = 0; j < N; j++) {
                int32_t * to    = x.sums + i * x.sum_row + j * Isa::width;
                const I   whole = Isa::whole_dots(high[i][j], low[i][j]);
                Isa::store_lanes(to, k ? Isa::add_lanes(whole, Isa::load_lanes(to)) : whole);
            }
        }
    }
}

} // namespace mikv
