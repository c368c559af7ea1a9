// Products of matrices, a block of the result in registers at a time.
#pragma once

#include "backend/cpu/fast_math.h"

namespace mikv {

// c[i][j] = (c or 0) + sum over k of a[i * a_row + k * a_step] * b[k * b_row + j], for M rows i and N vectors of columns j.
struct Multiply {
    const float * a;
    int64_t       a_row;
    int64_t       a_step;
    const float * b;
    int64_t       b_row;
    int           depth;
    float *       c;
    int64_t       c_row;
    bool          add;
};

template <class Isa, int M, int N> static inline void multiply_block(const Multiply & x) {
    using F         = typename Isa::F;
    constexpr int W = Isa::width;
    F             c[M][N];
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            c[i][j] = x.add ? Isa::load(x.c + i * x.c_row + j * W) : Isa::set(0.0f);
        }
    }
    const float * a = x.a;
    const float * b = x.b;
    for (int k = 0; k < x.depth; k++, a += x.a_step, b += x.b_row) {
        F columns[N];
        for (int j = 0; j < N; j++) {
            columns[j] = Isa::load(b + j * W);
        }
        for (int i = 0; i < M; i++) {
            const F factor = Isa::set(a[i * x.a_row]);
            for (int j = 0; j < N; j++) {
                c[i][j] = Isa::fma(factor, columns[j], c[i][j]);
            }
        }
    }
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            Isa::store(x.c + i * x.c_row + j * W, c[i][j]);
        }
    }
}

} // namespace mikv
