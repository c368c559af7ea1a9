#include "store/transform.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "codec/half.h"

namespace mikv {

namespace {

constexpr double damping      = 0.2;
constexpr double least_effect = 1.2;
constexpr double largest_b    = 1024.0; // and its inverse the smallest: exact in f16, like keys times it

// Steps 1 and 2 at once, four values at a time: the compiler makes vectors of the others only.
void rotate_fours(float * x, int n) {
    for (int i = 0; i < n; i += 4) {
        const float a = x[i] + x[i + 1], b = x[i] - x[i + 1], c = x[i + 2] + x[i + 3], d = x[i + 2] - x[i + 3];
        x[i]     = a + c;
        x[i + 1] = b + d;
        x[i + 2] = a - c;
        x[i + 3] = b - d;
    }
}

void rotate_block(float * x, int n) { // n: at least 4
    rotate_fours(x, n);
    for (int half = 4; half < n; half *= 2) {
        for (int block = 0; block < n; block += 2 * half) {
            float *low = x + block, *high = low + half;
            for (int i = 0; i < half; i += 4) { // four at a time
                float sum[4], difference[4];
                for (int j = 0; j < 4; j++) {
                    sum[j]        = low[i + j] + high[i + j];
                    difference[j] = low[i + j] - high[i + j];
                }
                std::copy_n(sum, 4, low + i);
                std::copy_n(difference, 4, high + i);
            }
        }
    }
    const float scale = 1.0f / std::sqrt(float(n));
    for (int i = 0; i < n; i++) {
        x[i] *= scale;
    }
}

double bounded(double b) { return std::min(std::max(b, 1.0 / largest_b), largest_b); }

void damp(std::vector<double> & b) {
    double logs = 0.0;
    for (double x : b) {
        logs += std::log(x);
    }
    const double middle = std::exp(logs / double(b.size()));
    double       sum = 0.0, largest = 0.0, smallest = HUGE_VAL;
    for (double & x : b) {
        x /= middle;
        sum += x;
        largest  = std::max(largest, x);
        smallest = std::min(smallest, x);
    }
    const double mean = sum / double(b.size());
    if (std::max(largest / mean, mean / smallest) < least_effect) {
        std::fill(b.begin(), b.end(), 1.0);
    }
}

void rotate_parts(const Transform & t, float * row) {
    if (t.rotated) {
        rotate(row, t.lead);
        rotate(row + t.lead, t.row - t.lead);
    }
}

void pad_and_rotate(const Transform & t, float * row) {
    std::fill(row + t.dim, row + t.row, 0.0f);
    rotate_parts(t, row);
}

const float * basis_of(const Transform & t) { return reinterpret_cast<const float *>(t.balancer); }

// Into the order or the basis; in and out may be the same memory.
void reorder(const Transform & t, const float * in, float * out) {
    const std::vector<float> from(in, in + t.dim);
    for (int i = 0; i < t.dim && is_order(t.balance); i++) {
        out[i] = from[t.balancer[i]];
    }
    for (int i = 0; i < t.dim && t.balance == Balance::basis; i++) {
        const float * axis = basis_of(t) + size_t(i) * t.dim;
        float         sum  = 0.0f;
        for (int j = 0; j < t.dim; j++) {
            sum += axis[j] * from[j];
        }
        out[i] = sum;
    }
}

// And back; in and out are not the same memory.
void restore(const Transform & t, const float * in, float * out) {
    for (int i = 0; i < t.dim && is_order(t.balance); i++) {
        out[t.balancer[i]] = in[i];
    }
    if (t.balance == Balance::basis) {
        std::fill(out, out + t.dim, 0.0f);
        for (int i = 0; i < t.dim; i++) {
            const float * axis = basis_of(t) + size_t(i) * t.dim;
            for (int j = 0; j < t.dim; j++) {
                out[j] += axis[j] * in[i];
            }
        }
    }
}

bool is_reordered(const Transform & t) { return t.balancer && (is_order(t.balance) || t.balance == Balance::basis); }

} // namespace

void rotate(float * x, int n) {
    while (n > 0) {
        int block = 1;
        while (2 * block <= n) {
            block *= 2;
        }
        rotate_block(x, block);
        x += block;
        n -= block;
    }
}

void rotate_blocks(float * x, int n, int block) {
    for (int i = 0; i < n; i += block) {
        rotate_block(x + i, block);
    }
}

void enter_row(const Transform & t, const float * in, float * out) {
    if (is_reordered(t)) {
        reorder(t, in, out);
        pad_and_rotate(t, out);
        return;
    }
    for (int i = 0; i < t.dim; i++) {
        out[i] = t.balancer ? in[i] * half_to_float(t.balancer[i]) : in[i];
    }
    pad_and_rotate(t, out);
}

void enter_query(const Transform & t, const float * in, float * out) {
    if (is_reordered(t)) {
        enter_row(t, in, out);
        return;
    }
    for (int i = 0; i < t.dim; i++) {
        out[i] = t.balancer ? in[i] / half_to_float(t.balancer[i]) : in[i];
    }
    pad_and_rotate(t, out);
}

void leave_row(const Transform & t, float * in, float * out) {
    rotate_parts(t, in);
    if (is_reordered(t)) {
        restore(t, in, out);
        return;
    }
    for (int i = 0; i < t.dim; i++) {
        out[i] = t.balancer ? in[i] / half_to_float(t.balancer[i]) : in[i];
    }
}

void leave_output(const Transform & t, const float * in, float factor, float * out) {
    if (t.nothing()) {
        for (int i = 0; i < t.dim; i++) {
            out[i] = in[i] * factor;
        }
        return;
    }
    std::vector<float> row(in, in + t.row);
    for (float & x : row) {
        x *= factor;
    }
    leave_row(t, row.data(), out);
}

void add_reach(Balance balance, const float * row, int dim, float * reach) {
    for (int i = 0; i < dim; i++) {
        reach[i] = balance == Balance::damped ? reach[i] + row[i] * row[i] : std::max(reach[i], std::fabs(row[i]));
    }
}

void make_balancer(Balance balance, const Reach & reach, int64_t n_q, int64_t n_k, int dim, uint16_t * balancer) {
    std::vector<double> b(size_t(dim), 1.0);
    for (int i = 0; i < dim; i++) {
        const double q = double(reach.q[i]), k = double(reach.k[i]);
        if (!(q > 0.0 && k > 0.0) || std::isinf(q) || std::isinf(k)) {
            continue; // a channel that says nothing, or too much
        }
        b[size_t(i)] = balance == Balance::damped ? std::pow(std::sqrt(q / double(n_q)) / std::sqrt(k / double(n_k)), damping)
                                                  : std::sqrt(q / k);
    }
    if (balance == Balance::damped) {
        damp(b);
    }
    for (int i = 0; i < dim; i++) {
        balancer[i] = half_nearest(float(bounded(b[size_t(i)])));
    }
}

} // namespace mikv
