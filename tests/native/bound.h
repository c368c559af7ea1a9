// How far a kernel set may be from the plain one, derived from what each of them rounds. u = 2^-24, the unit roundoff of float.
#pragma once

#include <algorithm>
#include <functional>

#include "attention_case.h"

namespace mikv {

constexpr double unit_roundoff = 1.0 / 16777216.0;

// A value is min + (code + 0.5) * step. Fused or not, product and sum round once each: at most u * range + u * |result|, in each
// of the two sets.
inline double decode_bound(uint16_t params) {
    const double range = params_range(params), min = std::fabs(params_min(params));
    return 2 * unit_roundoff * (range + (min + range));
}

// What holds for the outputs of a case. Rounding errors add up like random walks here, since the inputs are random and without a
// trend; margin is four standard deviations and more, false less than once in a run. Both sets may be off, hence the twos.
// 1. A logit, a dot product of D terms in any order and any split of the key into mean, minimum and codes: every addition is off by
//    u times a partial sum, which is about |q| times the root mean square of the parts (in extreme cases, which have a trend, the sum
//    of |q|). ALiBi and soft-capping round a handful of times more, in proportion to what they are applied to.
// 2. A weight exp(s - m), normalised: a factor exp(2 e) for logits that are off by e, and 8 ulp each for exp and its argument.
// 3. Sums over n cells, in the numerator and in the denominator.
// 4. A decoded token's weights of packed rows, times their range, are rounded to 15 bits of the largest in a tile, at most
//    largest weight * largest range: half a unit each, evenly spread (hence the square root of 12), times a code of at most 1. A GPU's fast
//    kernels have 127 * 254 such units, and round once more for what refinement adds, which is at most a quarter of a unit of the code.
struct CaseBound {
    std::vector<double> logit;  // [n_rows]
    double              value;  // typical size of an output, generously
    double              decode; // of a value

    explicit CaseBound(const AttentionCase & c) {
        const double parts = key_parts(c), bias = c.rows.slope[0] < 1.0f ? c.n_kv / 16.0 : 0.0;
        for (int row = 0; row < c.rows.n_rows; row++) {
            double square = 0, sum = 0;
            for (int i = 0; i < c.head.k.dim; i++) {
                sum += std::fabs(c.rows.q[row * c.head.k.dim + i]);
                square += double(c.rows.q[row * c.head.k.dim + i]) * c.rows.q[row * c.head.k.dim + i];
            }
            const double size = (c.extreme ? sum : std::sqrt(square)) * parts; // of a logit's parts
            const double dot  = margin * std::sqrt(c.head.k.dim + 8.0) * size;
            logit.push_back(2 * unit_roundoff * (dot + 8 * (margin * size + bias + c.rows.softcap)));
        }
        value  = 4.0;
        decode = 2 * 4 * unit_roundoff * 24.0;
        range_ = value_range(c);
        sums_  = 2 * unit_roundoff * (2 * margin * std::sqrt(c.n_kv + 8.0) + 16);
    }

    // largest: the largest of a row's weights, normalised; seen: cells that have a weight.
    double words(double largest, int seen, double units = 32767.0) const {
        return margin * std::sqrt(double(seen)) * largest * range_ / (units * std::sqrt(12.0));
    }
    double two_bytes(double largest, int seen) const {
        return words(largest, seen, 127.0 * 254.0) * std::sqrt(1.0 + 1.0 / 16.0);
    }

    double relative(int row) const { return std::expm1(2 * logit[row]) + sums_; }

private:
    // Root mean square of |mean| + |min| + range, of the cell where it is largest; exact and waiting rows are below.
    static double key_parts(const AttentionCase & c) {
        double largest = 4.0;
        for (int cell = 0; cell < c.n_kv; cell++) {
            double square = 0;
            for (int g = 0; g < c.head.k.n_groups(); g++) {
                const uint16_t params = c.head.k_params[g * c.head.n_cells + cell];
                const double   min = params_min(params), range = params_range(params);
                square += (4.0 + min * min + range * range) / c.head.k.n_groups();
            }
            largest = std::isfinite(square) ? std::max(largest, std::sqrt(square)) : largest;
        }
        return largest;
    }

    static double value_range(const AttentionCase & c) {
        double largest = 0.0;
        for (int i = 0; i < c.head.v.n_groups() * c.head.n_cells; i++) {
            const double range = params_range(c.head.v_params[i]);
            largest            = std::isfinite(range) ? std::max(largest, range) : largest;
        }
        return largest;
    }

    static constexpr double margin = 4.0;

    double sums_;
    double range_; // of the values
};

constexpr double exp_end = 1.7e-38; // exp(-87): what is below it a set may flush to zero

using Count = std::function<void(bool good, const char * what, double got, double wanted, double bound)>;

// weigh and add_scaled, with lengths around every vector width; they may not touch what lies beyond.
inline void check_small_operations(const Kernels & set, const Count & count) {
    Random random(7);
    for (int n = 0; n < 140; n++) {
        std::vector<float> x(n + 16), sums(n + 16);
        for (int i = 0; i < n + 16; i++) {
            x[i]    = random.below(5) == 0 ? masked_logit : 20.0f * random.normal() - 40.0f * random.below(2);
            sums[i] = random.normal();
        }
        const float        m = 60.0f;
        std::vector<float> got(x), wanted(x);
        set.weigh(got.data(), m, n);
        plain_kernels.weigh(wanted.data(), m, n);
        for (int i = 0; i < n + 16; i++) {
            // the argument rounds by u |x - m|, exp by 8 ulp
            const double bound = i < n ? wanted[i] * unit_roundoff * 2 * (16 + std::fabs(x[i] - m)) + exp_end : 0.0;
            count(std::fabs(double(got[i]) - wanted[i]) <= bound, "weigh", got[i], wanted[i], bound);
        }
        std::vector<float> got_sums(sums), wanted_sums(sums);
        set.add_scaled(x.data(), 0.3f, n, got_sums.data());
        plain_kernels.add_scaled(x.data(), 0.3f, n, wanted_sums.data());
        for (int i = 0; i < n + 16; i++) {
            const double bound = i < n ? 4 * unit_roundoff * (std::fabs(0.3 * x[i]) + std::fabs(sums[i])) : 0.0;
            count(std::fabs(double(got_sums[i]) - wanted_sums[i]) <= bound, "add_scaled", got_sums[i], wanted_sums[i], bound);
        }
    }
}

} // namespace mikv
