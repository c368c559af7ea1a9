#include "store/channels.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "codec/half.h"

namespace mikv {

namespace {

constexpr double largest_factor = 1024.0; // and its inverse the smallest, as of a balancer
constexpr int    most_sweeps    = 30;     // of Jacobi's method; 6 to 10 are usual
constexpr double small          = 1e-22;  // squared, of what is left off the diagonal over all

std::vector<double> saliences(Balance balance, const Sample & s) {
    const size_t        dim = size_t(s.dim);
    std::vector<double> low(dim, HUGE_VAL), high(dim, -HUGE_VAL), reach(dim);
    for (size_t i = 0; i < s.k.size(); i++) {
        low[i % dim]  = std::min(low[i % dim], double(s.k[i]));
        high[i % dim] = std::max(high[i % dim], double(s.k[i]));
    }
    for (size_t i = 0; i < s.q.size(); i++) {
        reach[i % dim] += std::fabs(double(s.q[i]));
    }
    for (size_t i = 0; i < dim; i++) {
        const double salience = (high[i] - low[i]) * (balance == Balance::salience ? reach[i] : 1.0);
        reach[i]              = std::isfinite(salience) ? salience : -1.0;
    }
    return reach;
}

// [dim][dim]; the mean of rows that are finite is left out.
std::vector<double> covariance(const Sample & s) {
    const size_t        dim = size_t(s.dim);
    std::vector<double> mean(dim), sum(dim * dim), x(dim);
    size_t              n         = 0;
    const auto          is_finite = [&](const float * row) {
        return std::all_of(row, row + dim, [](float v) { return std::isfinite(v); });
    };
    for (const float * row = s.k.data(); row < s.k.data() + s.k.size(); row += dim) {
        for (size_t i = 0; i < dim && is_finite(row); i++) {
            mean[i] += double(row[i]);
        }
        n += is_finite(row);
    }
    for (const float * row = s.k.data(); row < s.k.data() + s.k.size(); row += dim) {
        if (!is_finite(row)) {
            continue;
        }
        for (size_t i = 0; i < dim; i++) {
            x[i] = double(row[i]) - mean[i] / double(n);
        }
        for (size_t i = 0; i < dim; i++) {
            for (size_t j = 0; j < dim; j++) {
                sum[i * dim + j] += x[i] * x[j];
            }
        }
    }
    return sum;
}

// Turns rows p and q of the symmetric a, and of the axes, so that a[p][q] is zero.
void turn(std::vector<double> & a, std::vector<double> & axes, size_t dim, size_t p, size_t q) {
    const double theta = (a[q * dim + q] - a[p * dim + p]) / (2.0 * a[p * dim + q]);
    const double t     = (theta < 0 ? -1.0 : 1.0) / (std::fabs(theta) + std::sqrt(theta * theta + 1.0));
    const double c = 1.0 / std::sqrt(t * t + 1.0), s = t * c;
    for (size_t i = 0; i < dim; i++) {
        const double x = a[p * dim + i], y = a[q * dim + i];
        a[p * dim + i] = c * x - s * y;
        a[q * dim + i] = s * x + c * y;
    }
    for (size_t i = 0; i < dim; i++) {
        const double x = a[i * dim + p], y = a[i * dim + q];
        a[i * dim + p] = c * x - s * y;
        a[i * dim + q] = s * x + c * y;
    }
    for (size_t i = 0; i < dim; i++) {
        const double x = axes[p * dim + i], y = axes[q * dim + i];
        axes[p * dim + i] = c * x - s * y;
        axes[q * dim + i] = s * x + c * y;
    }
}

// Jacobi's method: a becomes diagonal; returns its axes, [dim][dim] in rows.
std::vector<double> diagonalize(std::vector<double> & a, size_t dim) {
    std::vector<double> axes(dim * dim);
    for (size_t i = 0; i < dim; i++) {
        axes[i * dim + i] = 1.0;
    }
    double all = 0.0;
    for (double x : a) {
        all += x * x;
    }
    for (int sweep = 0; sweep < most_sweeps; sweep++) {
        double off = 0.0;
        for (size_t p = 0; p < dim; p++) {
            for (size_t q = p + 1; q < dim; q++) {
                off += a[p * dim + q] * a[p * dim + q];
                if (a[p * dim + q] * a[p * dim + q] > small * all / double(dim * dim)) {
                    turn(a, axes, dim, p, q);
                }
            }
        }
        if (!(off > small * all)) {
            break;
        }
    }
    return axes;
}

// Numbers 0 .. n - 1, the largest value first, of equals the lower number.
std::vector<size_t> descending(const std::vector<double> & values) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
    return order;
}

} // namespace

void make_order(Balance balance, const Sample & sample, uint16_t * order) {
    const std::vector<size_t> channels = descending(saliences(balance, sample));
    for (size_t i = 0; i < channels.size(); i++) {
        order[i] = uint16_t(channels[i]);
    }
}

void make_alike(const Sample & sample, uint16_t * factors) {
    std::vector<double> ranges = saliences(Balance::range, sample);
    double              logs   = 0.0;
    for (double & range : ranges) {
        range = range > 0.0 ? range : 1.0;
        logs += std::log(range);
    }
    const double mean = std::exp(logs / double(ranges.size()));
    for (size_t i = 0; i < ranges.size(); i++) {
        factors[i] = half_nearest(float(std::min(std::max(mean / ranges[i], 1.0 / largest_factor), largest_factor)));
    }
}

void make_basis(const Sample & sample, float * basis) {
    const size_t              dim  = size_t(sample.dim);
    std::vector<double>       a    = covariance(sample), variance(dim);
    const std::vector<double> axes = diagonalize(a, dim);
    for (size_t i = 0; i < dim; i++) {
        variance[i] = a[i * dim + i];
    }
    const std::vector<size_t> order = descending(variance);
    for (size_t i = 0; i < dim; i++) {
        const double * axis = axes.data() + order[i] * dim;
        const double * most =
            std::max_element(axis, axis + dim, [](double x, double y) { return std::fabs(x) < std::fabs(y); });
        for (size_t j = 0; j < dim; j++) {
            basis[i * dim + j] = float(*most < 0 ? -axis[j] : axis[j]);
        }
    }
}

} // namespace mikv
