// Arithmetic of whole vectors that the fast kernels share, and their working memory. Isa: see avx2.cpp.
#pragma once

#include <string.h>

#include <utility>

#include "backend/cpu/kernels.h"
#include "codec/half.h"

namespace mikv {

// Working memory handed out piece by piece, each at a multiple of 64 bytes. With base null it only counts.
struct Scratch {
    float * base;
    size_t  used; // floats

    float * take(size_t n) {
        const size_t at = used;
        used += (n + 15) / 16 * 16;
        return base ? base + at : nullptr;
    }
};

// Gives a kernel its working memory: its lay_out() says how much, and then where.
template <class Work> static void reserve(Work & work) {
    Scratch count{nullptr, 0};
    work.lay_out(count);
    Scratch scratch{thread_buffer(count.used), 0};
    work.lay_out(scratch);
}

static inline uint32_t load_4(const void * x) {
    uint32_t word;
    memcpy(&word, x, 4);
    return word;
}

template <int n> struct Number {
    static constexpr int value = n;
};

template <class Work, int... i> static inline void each_of(std::integer_sequence<int, i...>, const Work & work) {
    (work(Number<i>{}), ...);
}

// work(Number<i>) for i = 0 .. n - 1, without a loop.
template <int n, class Work> static inline void each_below(const Work & work) {
    each_of(std::make_integer_sequence<int, n>{}, work);
}

// Calls work(Number<n>), so that what it does is compiled for every number of bits.
template <class Work> static inline void with_bits(int n, const Work & work) {
    switch (n) {
    case 1:
        return work(Number<1>{});
    case 2:
        return work(Number<2>{});
    case 3:
        return work(Number<3>{});
    case 4:
        return work(Number<4>{});
    case 5:
        return work(Number<5>{});
    default:
        return work(Number<6>{});
    }
}

// The widest power of two of columns' vectors for which M rows of sums fit the registers.
template <int M> constexpr int columns_for(int most, int n_sums) {
    int n = 1;
    while (2 * n <= most && 2 * n * M <= n_sums) {
        n *= 2;
    }
    return n;
}

// Relative error below 2e-7; 0 below -87 (where f32 nearly ends).
template <class Isa> static inline typename Isa::F exp_of(typename Isa::F x) {
    using F       = typename Isa::F;
    const F low   = Isa::set(-87.0f);
    const F held  = Isa::min(Isa::max(x, low), Isa::set(88.0f));
    const F power = Isa::round(Isa::mul(held, Isa::set(1.44269504f)));
    F       r     = Isa::fma(power, Isa::set(-0.693359375f), held); // ln 2 in two parts: the first product is exact
    r             = Isa::fma(power, Isa::set(2.12194440e-4f), r);
    F p           = Isa::set(1.9875691500e-4f);
    p             = Isa::fma(p, r, Isa::set(1.3981999507e-3f));
    p             = Isa::fma(p, r, Isa::set(8.3334519073e-3f));
    p             = Isa::fma(p, r, Isa::set(4.1665795894e-2f));
    p             = Isa::fma(p, r, Isa::set(1.6666665459e-1f));
    p             = Isa::fma(p, r, Isa::set(5.0000001201e-1f));
    p             = Isa::fma(p, Isa::mul(r, r), Isa::add(r, Isa::set(1.0f)));
    return Isa::select(Isa::less(x, low), Isa::set(0.0f), Isa::times_power(p, power));
}

template <class Isa> static inline typename Isa::F tanh_of(typename Isa::F x) {
    using F     = typename Isa::F;
    const F one = Isa::set(1.0f), two = Isa::set(2.0f);
    const F square = Isa::mul(x, x);
    // 1 - 2 / (exp(2 x) + 1) cancels near 0; there the series to x^9 is exact to f32
    const F far = Isa::sub(one, Isa::div(two, Isa::add(exp_of<Isa>(Isa::mul(two, x)), one)));
    F       p   = Isa::set(62.0f / 2835.0f);
    p           = Isa::fma(p, square, Isa::set(-17.0f / 315.0f));
    p           = Isa::fma(p, square, Isa::set(2.0f / 15.0f));
    p           = Isa::fma(p, square, Isa::set(-1.0f / 3.0f));
    p           = Isa::fma(p, square, one);
    return Isa::select(Isa::less(square, Isa::set(0.04f)), Isa::mul(p, x), far);
}

// exp(x - m), 0 where x is masked.
template <class Isa> static inline typename Isa::F weight_of(typename Isa::F x, typename Isa::F m) {
    return Isa::select(Isa::less(Isa::set(masked_logit), x), exp_of<Isa>(Isa::sub(x, m)), Isa::set(0.0f));
}

template <class Isa> static inline typename Isa::F capped(typename Isa::F logit, float softcap) {
    if (softcap <= 0.0f) {
        return logit;
    }
    return Isa::mul(Isa::set(softcap), tanh_of<Isa>(Isa::mul(logit, Isa::set(1.0f / softcap))));
}

template <class Isa>
static inline typename Isa::F masked_by(typename Isa::F logit, typename Isa::F mask, typename Isa::F slope) {
    return Isa::select(Isa::less(mask, Isa::set(-half_max)), Isa::set(masked_logit), Isa::fma(slope, mask, logit));
}

// Ranges and minima of `width` neighbouring cells, of which n can be read.
template <class Isa>
static inline void read_params(const uint16_t * params, int n, typename Isa::F & range, typename Isa::F & low) {
    uint16_t some[Isa::width] = {0};
    if (n < Isa::width) {
        for (int i = 0; i < n; i++) {
            some[i] = params[i];
        }
        params = some;
    }
    Isa::params(params, range, low);
}

// Logits to weights in place; returns their sum.
template <class Isa> static inline float weigh_sum(float * x, float m, int n) {
    using F     = typename Isa::F;
    const F top = Isa::set(m);
    F       sum = Isa::set(0.0f);
    int     i   = 0;
    for (; i + Isa::width <= n; i += Isa::width) {
        const F weight = weight_of<Isa>(Isa::load(x + i), top);
        Isa::store(x + i, weight);
        sum = Isa::add(sum, weight);
    }
    if (i < n) {
        float rest[Isa::width];
        Isa::store(rest, Isa::set(masked_logit));
        memcpy(rest, x + i, (n - i) * sizeof(float));
        const F weight = weight_of<Isa>(Isa::load(rest), top);
        Isa::store(rest, weight);
        memcpy(x + i, rest, (n - i) * sizeof(float));
        sum = Isa::add(sum, weight);
    }
    return Isa::sum(sum);
}

template <class Isa> static inline float dot_floats(const float * a, const float * b, int n) {
    typename Isa::F even = Isa::set(0.0f), odd = even;
    for (int i = 0; i < n; i += 2 * Isa::width) { // n: a multiple of 32
        even = Isa::fma(Isa::load(a + i), Isa::load(b + i), even);
        odd  = Isa::fma(Isa::load(a + i + Isa::width), Isa::load(b + i + Isa::width), odd);
    }
    return Isa::sum(Isa::add(even, odd));
}

template <class Isa> static inline void halves_to_floats(const uint16_t * x, int n, float * to) {
    for (int i = 0; i < n; i += Isa::width) {
        Isa::store(to + i, Isa::halves(x + i));
    }
}

template <class Isa> static void weigh(float * x, float m, int n) { weigh_sum<Isa>(x, m, n); }

template <class Isa> static void add_scaled(const float * weights, float factor, int n, float * sums) {
    int i = 0;
    for (; i + Isa::width <= n; i += Isa::width) {
        Isa::store(sums + i, Isa::add(Isa::load(sums + i), Isa::mul(Isa::set(factor), Isa::load(weights + i))));
    }
    for (; i < n; i++) {
        sums[i] += factor * weights[i];
    }
}

} // namespace mikv
